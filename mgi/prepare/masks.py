"""Tumour masks of slides: images whose pixels are level-0 pixels or whole squares of them.

A mask has the value 0 and one other, which is tumour, or the user says what its values mean. Its pixels are taken as
they are stored. Its extent must be its slide's, by the first of these rules that holds:

1. A pixel is `k` x `k` level-0 pixels, `k` a whole number; the last row and column may be cut or reach over.
2. As 1, and the mask is padded at the right and the bottom to a multiple of 16, 32, ... 1024 of its pixels; `k` is a
   power of two, and the padding is empty.
3. It is the slide scaled down: both sides by one factor, rounded to a pixel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mgi.config import MaskValues
from mgi.console import log
from mgi.errors import AnnotationError
from mgi.names import first_few
from mgi.prepare.rasters import RasterError, read_samples, to_plane

PADDINGS = (16, 32, 64, 128, 256, 512, 1024)
# A mask coarser than this outlines no tumour.
MAX_SCALE = 256
TUMOUR, IGNORED = 1, 2
# A mask of one value is all tumour if that is how a mask of two writes tumour.
FULL = (1, 255, 65535)
MAX_VALUES = 256
# A mask a little smaller than its slide is a part of it rather than the whole, scaled.
MIN_SCALE = 2
ROWS = 1024


@dataclass(frozen=True)
class MaskArea:
    """The pixels of a mask with one meaning.

    Attributes
    ----------
    codes : uint8 array [rows, columns]
        Background is 0.
    code : int
        What the pixels of this area have.
    scale : (float, float)
        Level-0 pixels per pixel, across and down.
    origin : (float, float)
        Where the mask's top-left corner lies in level 0.
    area_px : int
        Level-0 pixels.
    """

    codes: np.ndarray
    code: int
    scale: tuple[float, float]
    origin: tuple[float, float]
    area_px: int

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """The box around them: left, top, right and bottom; all 0 where there are none."""
        inside = self.codes == self.code
        columns, rows = np.flatnonzero(inside.any(axis=0)), np.flatnonzero(inside.any(axis=1))
        if not len(rows):
            return (0.0, 0.0, 0.0, 0.0)
        (across, down), (left, top) = self.scale, self.origin
        return (
            float(columns[0] * across + left),
            float(rows[0] * down + top),
            float((columns[-1] + 1) * across + left),
            float((rows[-1] + 1) * down + top),
        )

    def rasterise(self, x: float, y: float, size: float, px: int) -> np.ndarray:
        """Return the nearest pixels of the mask: see `mgi.prepare.annotations.Region`."""
        centres = (np.arange(px) + 0.5) * size / px
        columns = np.floor((x - self.origin[0] + centres) / self.scale[0]).astype(np.int64)
        rows = np.floor((y - self.origin[1] + centres) / self.scale[1]).astype(np.int64)
        height, width = self.codes.shape
        inside = np.outer((rows >= 0) & (rows < height), (columns >= 0) & (columns < width))
        found = self.codes[np.ix_(rows.clip(0, height - 1), columns.clip(0, width - 1))]
        return ((found == self.code) & inside).astype(np.uint8)


def read_mask(
    path: Path, dimensions: tuple[int, int], bounds: tuple[int, int, int, int] | None, values: MaskValues | None
) -> tuple[MaskArea, MaskArea | None, dict[str, int]]:
    """Read the mask of a slide.

    Parameters
    ----------
    path : Path
        TIFF, PNG or JPEG.
    dimensions : (int, int)
        Width and height of level 0.
    bounds : (int, int, int, int), optional
        x, y, width and height of the scanned part of level 0, which a mask may be of instead.
    values : MaskValues, optional
        What its values mean.

    Returns
    -------
    tumour : MaskArea
    ignored : MaskArea or None
    classes : dict of str to int
        Pixels of the mask by value.

    Raises
    ------
    AnnotationError
        If it is unreadable, has other values than 0 and another and `values` is None, or is not of the slide's extent.
    """
    try:
        plane = to_plane(read_samples(path))
    except RasterError as error:
        raise AnnotationError(f"unreadable annotation: {path.name} is not a mask: {error}") from error
    counts = _count_values(plane, path)
    codes = _encode(plane, list(counts), values, path)
    scale, origin = _fit(codes, dimensions, bounds, path)
    tumour, ignored = (
        MaskArea(codes, code, scale, origin, _area_px(codes, code, scale, origin, dimensions))
        for code in (TUMOUR, IGNORED)
    )
    return tumour, ignored if (codes == IGNORED).any() else None, {str(value): n for value, n in counts.items()}


def _count_values(plane: np.ndarray, path: Path) -> dict[int | float, int]:
    """Count the pixels of each value, in ascending order."""
    if plane.dtype.kind not in "buif":
        raise AnnotationError(f"unreadable annotation: {path.name} holds {plane.dtype} samples, not numbers")
    if plane.dtype.kind == "f" and not np.isfinite(plane).all():
        raise AnnotationError(f"unreadable annotation: {path.name} holds NaN or infinite samples; save whole numbers")
    if plane.dtype.kind in "bu" and plane.dtype.itemsize == 1:
        # Counting takes eight bytes a pixel.
        pixels = np.zeros(MAX_VALUES, np.int64)
        for top in range(0, len(plane), ROWS):
            pixels += np.bincount(plane[top : top + ROWS].astype(np.uint8, copy=False).ravel(), minlength=MAX_VALUES)
        return {int(value): int(pixels[value]) for value in np.flatnonzero(pixels)}
    found, pixels = np.unique(plane, return_counts=True)
    if len(found) > MAX_VALUES:
        raise AnnotationError(
            f"not two values: {path.name} has {len(found)} values, from {found[0]:g} to {found[-1]:g}: it is a picture "
            "or a map of probabilities; save a mask"
        )
    whole = (int(value) if value == int(value) else float(value) for value in found.tolist())
    return dict(zip(whole, pixels.tolist(), strict=True))


def _encode(plane: np.ndarray, found: list[int | float], values: MaskValues | None, path: Path) -> np.ndarray:
    """Return background 0, tumour 1 and ignored 2, as uint8 [rows, columns]."""
    if values is not None:
        meaning: dict[int, Sequence[float]] = {TUMOUR: values.tumour, IGNORED: values.ignore}
    elif len(found) == 2 and found[0] == 0:
        meaning = {TUMOUR: found[1:]}
    elif len(found) == 1 and found[0] in (0, *FULL):
        meaning = {TUMOUR: [value for value in found if value]}
    else:
        wrong = "not two values from 0 up" if found[0] else "not two values"
        raise AnnotationError(
            f"{wrong}: {path.name} has {first_few(map(str, found))}; say which values are tumour and which are "
            "ignored (mask_values), or save a mask of 0 and 255"
        )
    codes = np.zeros(plane.shape, np.uint8)
    for top in range(0, len(plane), ROWS):
        rows = plane[top : top + ROWS]
        for code, names in meaning.items():
            for value in names:
                codes[top : top + ROWS][rows == value] = code
    return codes


def _fit(
    codes: np.ndarray, dimensions: tuple[int, int], bounds: tuple[int, int, int, int] | None, path: Path
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the level-0 pixels per pixel of a mask, and where in level 0 it starts."""
    frames = [(0, 0, *dimensions)] + ([bounds] if bounds else [])
    for rule in (_whole_scale, _padded_scale, _any_scale):
        for x, y, width, height in frames:
            scale = rule(codes, width, height)
            if scale is not None:
                if rule is _padded_scale:
                    log.info("%s: read as padded, of %g level-0 pixels a pixel", path.name, scale[0])
                return scale, (x, y)
    rows, columns = codes.shape
    raise AnnotationError(
        f"mask of another shape: {path.name} is {columns} x {rows}, its slide {dimensions[0]} x {dimensions[1]}; save "
        "it at a whole number of level-0 pixels a pixel, over the whole slide"
    )


def _whole_scale(codes: np.ndarray, width: int, height: int) -> tuple[float, float] | None:
    rows, columns = codes.shape
    for scale in (round(width / columns), round(height / rows)):
        if scale <= MAX_SCALE and abs(columns * scale - width) < scale and abs(rows * scale - height) < scale:
            return scale, scale
    return None


def _padded_scale(codes: np.ndarray, width: int, height: int) -> tuple[float, float] | None:
    scale = 1
    while scale <= MAX_SCALE:
        columns, rows = -(-width // scale), -(-height // scale)
        padded = any((-(-rows // step) * step, -(-columns // step) * step) == codes.shape for step in PADDINGS)
        if padded and not codes[rows:].any() and not codes[:, columns:].any():
            return scale, scale
        scale *= 2
    return None


def _any_scale(codes: np.ndarray, width: int, height: int) -> tuple[float, float] | None:
    rows, columns = codes.shape
    least = max(width / (columns + 1), height / (rows + 1))
    greatest = min(width / max(columns - 1, 0.5), height / max(rows - 1, 0.5))
    return (width / columns, height / rows) if max(least, MIN_SCALE) < min(greatest, MAX_SCALE) else None


def _area_px(
    codes: np.ndarray, code: int, scale: tuple[float, float], origin: tuple[float, float], dimensions: tuple[int, int]
) -> int:
    """Return the level-0 pixels of one code, within the slide."""
    weights = [
        np.clip(length - start - np.arange(count) * step, 0, step)
        for length, start, count, step in zip(dimensions, origin, codes.shape[::-1], scale, strict=True)
    ]
    rows = [(codes[top : top + ROWS] == code) @ weights[0] for top in range(0, len(codes), ROWS)]
    return round(float(np.concatenate(rows) @ weights[1]))
