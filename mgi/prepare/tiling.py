"""The tiles of a slide: their grid, their pixels and masks, and the tumour in none of them."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np

from mgi.codecs import JPEG_QUALITY, encode_mask
from mgi.prepare import reader
from mgi.prepare.annotations import Annotation
from mgi.prepare.focus import measure_focus
from mgi.prepare.pictures import Picture
from mgi.prepare.pixels import TileReader
from mgi.prepare.stain import Stain
from mgi.prepare.tissue import REASONS

# Rows and columns of a grid are fewer: a slide has 2 ** 20 pixels at most.
PLACE_BITS = 20
ROWS_AT_ONCE = 8
TILES_PER_TASK = 8
# Tasks that may be done before their tiles are taken.
TASKS_AHEAD = 16
# From which a slide's stain is estimated.
STAIN_TILES = 32
STAIN_PIXELS = 1 << 20


@dataclass(frozen=True)
class Grid:
    """The tiles of a slide.

    Attributes
    ----------
    edge : float
        Exact edge of a tile in level-0 pixels.
    x, y : int array [columns], int array [rows]
        Top-left corners in level-0 pixels, each rounded on its own from a multiple of the step from tile to tile.
    across, down : float array [columns, W], float array [rows, H]
        Share of each column and row of the thumbnail in each tile, of the tile's width and height.
    tissue : float array [rows, columns]
        Tissue fraction of each tile.
    """

    edge: float
    x: np.ndarray
    y: np.ndarray
    across: np.ndarray
    down: np.ndarray
    tissue: np.ndarray

    def keep(self, min_tissue: float, most: int | None = None) -> np.ndarray:
        """Return which tiles have that fraction of tissue, at most `most` evenly spread ones, bool [rows, columns]."""
        # The overlaps of a tile that is all tissue sum to one only within rounding.
        kept = self.tissue >= min_tissue - 1e-9
        if most is None or kept.sum() <= most:
            return kept
        rows, columns = np.nonzero(kept)
        along = np.argsort(_order_by_place(rows, columns), kind="stable")
        chosen = along[((np.arange(most) + 0.5) * len(along) / most).astype(np.int64)]
        spread = np.zeros_like(kept)
        spread[rows[chosen], columns[chosen]] = True
        return spread

    def count_reasons(self, codes: np.ndarray, dropped: np.ndarray) -> dict[str, int]:
        """Count dropped tiles by what covers most of them but tissue.

        Parameters
        ----------
        codes : uint8 array [H, W]
            What the pixels of the thumbnail are: see `classify_pixels`.
        dropped : bool array [rows, columns]
        """
        shares = np.stack([_cover(codes == code, self.across, self.down)[dropped] for code in REASONS])
        counts = np.bincount(shares.argmax(axis=0), minlength=len(REASONS))
        return dict(zip(REASONS.values(), counts.tolist(), strict=True))


def _cover(mask: np.ndarray, across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Return the share of each tile that a mask of the thumbnail covers, [rows, columns]."""
    covered = np.zeros((len(down), len(across)))
    # A few rows of tiles at a time, over the pixels under them: as floats a mask takes eight times its memory.
    for start in range(0, len(down), ROWS_AT_ONCE):
        shares = down[start : start + ROWS_AT_ONCE]
        under = np.flatnonzero(shares.any(axis=0))
        pixels = slice(under[0], under[-1] + 1)
        covered[start : start + ROWS_AT_ONCE] = shares[:, pixels] @ mask[pixels].astype(float) @ across.T
    return covered


def _order_by_place(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return where places lie along a Z-order curve, on which neighbours are near each other."""
    order = np.zeros(len(rows), np.int64)
    for bit in range(PLACE_BITS):
        order |= ((columns >> bit) & 1) << (2 * bit) | ((rows >> bit) & 1) << (2 * bit + 1)
    return order


def make_grid(
    dimensions: tuple[int, int], tissue: np.ndarray, edge: float, overlap: float = 0.0, partial: bool = False
) -> Grid:
    """Place tiles over the slide and weigh each by the tissue under it.

    Parameters
    ----------
    dimensions : (int, int)
        Width and height of level 0.
    tissue : bool array [H, W]
        Tissue of the whole slide.
    edge : float
        Edge of a tile in level-0 pixels.
    overlap : float
        Share of a tile's edge by which its neighbours reach into it.
    partial : bool
        Whether tiles may reach beyond the right and bottom margins; what lies beyond is no tissue.
    """
    corners, weights, step = [], [], edge * (1 - overlap)
    for length, mask_length in zip(dimensions, tissue.shape[::-1], strict=True):
        corner = np.rint(np.arange(int(np.ceil(length / step) if partial else length // step)) * step)
        corner = corner[corner < length] if partial else corner[corner + edge <= length]
        scale = mask_length / length
        start, stop = corner[:, None] * scale, (corner[:, None] + edge) * scale
        cell = np.arange(mask_length)
        overlap = np.minimum(stop, cell + 1) - np.maximum(start, cell)
        weights.append(np.clip(overlap, 0, None) / (edge * scale))
        corners.append(corner.astype(np.int64))
    (x, y), (across, down) = corners, weights
    return Grid(edge, x, y, across, down, _cover(tissue, across, down))


def iterate_tiles(
    slide: reader.Slide | Picture,
    grid: Grid,
    kept: np.ndarray,
    tile_px: int,
    annotation: Annotation | None,
    measured: bool,
    normalised: bool = False,
    encoded: bool = True,
) -> Iterator[tuple[dict[str, Any], float | None]]:
    """Yield the kept tiles by y, then x, as rows of a table of images, with their focus; each is read by itself.

    The focus is None unless `measured`, and of copied tiles, which are not decoded. With `normalised` the slide's stain
    is estimated from some of the tiles, and all have that of the reference; their focus is that of the pixels before.
    Unless `encoded`, a tile that is not copied is read all the same, and its row has no image.

    Raises
    ------
    SlideError
        If the stain is to be normalised and cannot be estimated.
    """
    tiles = TileReader(slide, grid.edge, tile_px)

    def cut(x: int, y: int, fraction: float) -> tuple[dict[str, Any], float | None]:
        image, focus = None if normalised else tiles.copy(x, y), None
        if image is None:
            pixels = tiles.read(x, y)
            focus = measure_focus(pixels) if measured else None
            if encoded:
                image = _encode_image(pixels if stain is None else stain.normalise(pixels))
        mask = _encode_mask(annotation, x, y, grid.edge, tile_px, tiles.count_inside(x, y))
        row = {"x": x, "y": y, "size": grid.edge, "tissue_fraction": fraction, "image": image, "mask": mask}
        return row, focus

    rows, columns = np.nonzero(kept)
    places = list(zip(grid.x[columns].tolist(), grid.y[rows].tolist(), grid.tissue[kept].tolist(), strict=True))
    stain = None
    if normalised and places:
        some = places[:: -(-len(places) // STAIN_TILES)]
        each = -(-(tile_px**2 * len(some)) // STAIN_PIXELS)
        stain = Stain.estimate(np.concatenate([tiles.read(x, y).reshape(-1, 3)[::each] for x, y, _ in some]))
    with ThreadPoolExecutor(reader.THREADS) as threads:
        waiting: deque[Future[list[tuple[dict[str, Any], float | None]]]] = deque()
        for start in range(0, len(places), TILES_PER_TASK):
            task = places[start : start + TILES_PER_TASK]
            waiting.append(threads.submit(lambda places: [cut(*place) for place in places], task))
            if len(waiting) > TASKS_AHEAD:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _encode_image(pixels: np.ndarray) -> bytes:
    """Encode as `mgi.codecs.encode_jpeg` does, without keeping other threads from running."""
    return bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(pixels), level=JPEG_QUALITY, subsampling="420"))


def _encode_mask(
    annotation: Annotation | None, x: int, y: int, edge: float, tile_px: int, inside: tuple[int, int]
) -> bytes | None:
    """Encode a tile's mask; what lies beyond the slide is ignored."""
    if annotation is None:
        return None
    mask, ignore = annotation.mask(x, y, edge, tile_px), annotation.ignore(x, y, edge, tile_px)
    if inside != (tile_px, tile_px):
        beyond = np.ones_like(mask)
        beyond[: inside[1], : inside[0]] = 0
        ignore = beyond if ignore is None else ignore | beyond
    return encode_mask(mask, ignore)


def count_untiled_tumour(
    annotation: Annotation, edge: float, kept: np.ndarray, dimensions: tuple[int, int], tile_px: int
) -> int:
    """Count the tumour pixels, of the tiles' size, in no kept tile; the margins too narrow for a tile count."""
    (width, height), (left, top, right, bottom) = dimensions, annotation.tumour.bounds
    x, y = (np.rint(np.arange(int(np.ceil(length / edge))) * edge) for length in dimensions)
    tiled = np.zeros((len(y), len(x)), bool)
    tiled[: kept.shape[0], : kept.shape[1]] = kept
    near = np.outer((y < bottom) & (y + edge > top), (x < right) & (x + edge > left))
    count = 0
    for row, column in np.argwhere(near & ~tiled):
        mask = annotation.mask(x[column], y[row], edge, tile_px)
        # What an annotator drew beyond the slide is no tissue.
        across, down = (
            int(np.ceil((length - corner) / edge * tile_px - 0.5))
            for length, corner in ((width, x[column]), (height, y[row]))
        )
        count += int(mask[:down, :across].sum())
    return count
