"""What training reads: the images of some cases or their precomputed features, and the role of each case in a fold."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeVar, get_args

import numpy as np
import pandas as pd

from mgi.codecs import decode_ignore, decode_image, decode_mask
from mgi.config.prepare import Stain
from mgi.delimited import PARSER_ERRORS
from mgi.errors import CohortError, ImageTableError
from mgi.names import first_few, quote
from mgi.prepare.store import SlideTile, StoredSlide, read_slides
from mgi.tables import open_table, read_table

T = TypeVar("T")
PLACE = ["case_id", "source_id", "x", "y", "z", "size", "mpp"]


@dataclass
class Images:
    """Encoded images of a set of cases, decoded or read from their slides when asked for.

    Attributes
    ----------
    frame : DataFrame, one row per image
        case_id, source_id, x, y, z, size and mpp.
    encoded : list of bytes or SlideTile
        Image of each row, or where it is read from.
    masks : list of bytes
        Mask of each row, None where the source has no annotation.
    positive : ndarray of bool
        Whether the mask holds any tumour.
    stain : str or None
        How the stain of the images was normalised.
    """

    frame: pd.DataFrame
    encoded: Sequence[bytes | SlideTile]
    masks: list[bytes | None]
    positive: np.ndarray
    stain: Stain | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.encoded)

    @property
    def image_px(self) -> int:
        """Edge of the images, pixels."""
        return self.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Height and width of an image, pixels."""
        first = self.encoded[0]
        return decode_image(first).shape[:2] if isinstance(first, bytes) else (first.slide.tile_px,) * 2

    @property
    def features(self) -> int | None:
        """Values of precomputed features; None of images."""
        return None

    @property
    def has_series(self) -> bool:
        """Whether an image is a slice of a series."""
        return bool((self.frame.groupby("source_id").z.nunique() > 1).any())

    @property
    def mpp(self) -> float | None:
        """Microns per pixel of the images, None where they state none.

        Raises
        ------
        ImageTableError
            If they state several.
        """
        stated = sorted({float(f"{value:.4g}") for value in self.frame.mpp.dropna().unique()})
        if len(stated) > 1:
            raise ImageTableError(f"images of different mpp: {', '.join(map(str, stated))}; tile them alike")
        return stated[0] if stated else None

    def load(self, rows: np.ndarray, pool: ThreadPoolExecutor | None = None) -> np.ndarray:
        """Decode or read images, by the threads of `pool` where given, to uint8 [rows, height, width, 3].

        Raises
        ------
        ImageTableError
            If they differ in size, or a slide that they are read from is gone, has changed or cannot be read.
        """
        images = _decode(_load_image, [self.encoded[row] for row in rows], pool)
        sizes = sorted({image.shape[1::-1] for image in images})
        if len(sizes) > 1:
            listed = ", ".join(f"{width} x {height}" for width, height in sizes)
            raise ImageTableError(f"images of different sizes in one table: {listed} px; tile or import them alike")
        return np.stack(images)

    def load_stacks(self, rows: np.ndarray, neighbours: int, pool: ThreadPoolExecutor | None = None) -> np.ndarray:
        """Decode images beside their neighbouring slices to uint8 [rows, height, width, 3 (1 + 2 neighbours)].

        The slice itself comes first, then those 1, 2, ... below and above it. Where a series has no such slice, the
        slice itself stands in.
        """
        if not neighbours:
            return self.load(rows, pool)
        offsets = [sign * distance for distance in range(1, neighbours + 1) for sign in (-1, 1)]
        places = np.stack([rows, *(self._find_neighbours(rows, offset) for offset in offsets)], axis=1)
        needed, inverse = np.unique(places, return_inverse=True)
        planes = self.load(needed, pool)[inverse.reshape(places.shape)]  # [rows, planes, height, width, 3]
        return np.concatenate([planes[:, plane] for plane in range(planes.shape[1])], axis=-1)

    def _find_neighbours(self, rows: np.ndarray, offset: int) -> np.ndarray:
        """Return the row of the slice at `offset` from each, or its own."""
        sources, z = self.frame.source_id.to_numpy(), self.frame.z.to_numpy()
        return np.array([self._slices.get((sources[row], z[row] + offset), row) for row in rows], dtype=np.int64)

    @cached_property
    def _slices(self) -> dict[tuple[str, int], int]:
        """Row of each slice by source_id and z."""
        return {key: row for row, key in enumerate(zip(self.frame.source_id, self.frame.z, strict=True))}

    def load_masks(self, rows: np.ndarray, pool: ThreadPoolExecutor | None = None) -> np.ndarray:
        """Decode masks, by the threads of `pool` where given, to uint8 [rows, height, width], 0 or 1."""
        return np.stack(_decode(decode_mask, [self.masks[row] or b"" for row in rows], pool))

    def load_ignore(self, rows: np.ndarray, pool: ThreadPoolExecutor | None = None) -> np.ndarray:
        """Decode the pixels that are left out of loss and metrics to bool [rows, height, width]."""
        return np.stack(_decode(decode_ignore, [self.masks[row] or b"" for row in rows], pool))

    def digest(self) -> str:
        """Content hash of images, masks and case ids; of images in slides, of their place and their slide's size."""
        content = hashlib.sha256()
        for case, image, mask in zip(self.frame.case_id, self.encoded, self.masks, strict=True):
            image = image if isinstance(image, bytes) else image.identify()
            for part in (case.encode(), image, mask or b""):
                content.update(hashlib.sha256(part).digest())
        return content.hexdigest()


class Features(Images):
    """Precomputed features of patches in place of images: `encoded` holds each patch's float32 values, no mask."""

    encoded: Sequence[bytes]

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of values of a patch."""
        return (len(self.encoded[0]) // np.dtype(np.float32).itemsize,)

    @property
    def features(self) -> int | None:
        """Number of values of a patch."""
        return self.shape[0]

    def load(self, rows: np.ndarray, pool: ThreadPoolExecutor | None = None) -> np.ndarray:
        """Return the features of some patches, float32 [rows, features]."""
        return np.stack([np.frombuffer(self.encoded[row], np.float32) for row in rows])


def _load_image(image: bytes | SlideTile) -> np.ndarray:
    return decode_image(image) if isinstance(image, bytes) else image.read()


def _decode(decode: Callable[[T], np.ndarray], encoded: list[T], pool: ThreadPoolExecutor | None) -> list[np.ndarray]:
    return list(map(decode, encoded) if pool is None else pool.map(decode, encoded))


def read_images(sources: Path, cases: set[str], labelled: bool = False, images_per_source: int | None = None) -> Images:
    """Read the images of `cases`: with `labelled` only those with a mask, at most `images_per_source` of each source.

    Raises
    ------
    ImageTableError
        If none is left, or the images are not all of one size.
    """
    return _join(list(iterate_images(sources, cases, labelled, images_per_source)), str(sources))


def iterate_images(
    sources: Path, cases: set[str], labelled: bool = False, images_per_source: int | None = None
) -> Iterator[Images]:
    """Yield the images of `cases` one table after the other, so that no more than one need be in memory.

    Raises
    ------
    ImageTableError
        If there is none.
    """
    listed = read_table(sources, "table of sources", ["case_id", "status", "table"]).to_pandas()
    usable = listed[(listed.status == "ok") & listed.case_id.isin(cases)]
    found = False
    for name in usable.table.unique():
        for images in _iterate_table(sources.parent / "images" / f"{name}.parquet", cases, labelled, images_per_source):
            if len(images):
                found = True
                yield images
    if not found:
        raise ImageTableError(f"no usable image for these cases in {sources}; see the reasons in that table")


def _iterate_table(path: Path, cases: set[str], labelled: bool, images_per_source: int | None) -> Iterator[Images]:
    """Yield the images of one table at once, or its features slide by slide."""
    with open_table(path, "table of images", PLACE, ImageTableError) as file:
        if "features" not in file.schema_arrow.names:
            yield read_image_table(path, cases, labelled, images_per_source)
            return
        for group in range(0 if labelled else file.num_row_groups):
            try:
                frame = file.read_row_group(group, PLACE).to_pandas()
                rows = np.flatnonzero(frame.case_id.isin(cases))
                if not len(rows):
                    continue
                if images_per_source is not None:
                    rows = spread(rows, images_per_source)
                column = file.read_row_group(group, ["features"])["features"].combine_chunks()
            except PARSER_ERRORS as error:
                raise ImageTableError(f"table of images {path} cannot be read: {error}; make it again") from error
            values = column.values.to_numpy().reshape(len(frame), -1)
            encoded = [values[row].tobytes() for row in rows]
            yield Features(
                frame.iloc[rows].reset_index(drop=True), encoded, [None] * len(rows), np.zeros(len(rows), bool)
            )


def read_image_table(
    path: Path, cases: set[str] | None = None, labelled: bool = False, images_per_source: int | None = None
) -> Images:
    """Read one table of images, whole or for some cases; of each source at most `images_per_source`, evenly spaced.

    Raises
    ------
    MissingInputError
        If it is not there.
    ImageTableError
        If it is not a table of images, or a slide that they are read from is gone or has changed.
    """
    filters = None if cases is None else [("case_id", "in", sorted(cases))]
    table = read_table(path, "table of images", [*PLACE, "mask", "image"], ImageTableError, filters)
    if labelled:
        table = table.filter(table["mask"].is_valid())
    if images_per_source is not None:
        table = table.take(_spread_by_source(table["source_id"].to_pylist(), images_per_source))
    masks = table["mask"].to_pylist()
    # Most masks of a slide are the same few: all tumour or none.
    tumour = {mask: mask is not None and bool(decode_mask(mask).any()) for mask in set(masks)}
    positive = np.array([tumour[mask] for mask in masks], dtype=bool)
    metadata = table.schema.metadata or {}
    frame = table.select(PLACE).to_pandas()
    encoded = _locate_tiles(table["image"].to_pylist(), frame, metadata, path)
    return Images(frame, encoded, masks, positive, _read_stain(metadata, path))


def _locate_tiles(
    images: list[bytes | None], frame: pd.DataFrame, metadata: dict[bytes, bytes], path: Path
) -> list[bytes | SlideTile]:
    """Return images, and in place of those that a table does not hold where in their slides they are read from."""
    places = frame[["x", "y", "size"]].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)
    missing = np.array([image is None for image in images], dtype=bool)
    slides: dict[str, StoredSlide] = {}
    if missing.any():
        if b"slides" not in metadata:
            raise ImageTableError(f"{path} has rows without an image, and states no slides with them: make it again")
        slides = read_slides(metadata[b"slides"], path)
        needed = frame.source_id[missing].astype(str).unique()
        if unknown := sorted(set(needed) - set(slides)):
            raise ImageTableError(
                f"{path} states no slide of {first_few(unknown)}, whose tiles it lacks: tile it again"
            )
        if not np.isfinite(places[missing]).all():
            raise ImageTableError(f"{path} has rows with neither an image nor its place: make it again")
        for source_id in needed:
            slides[source_id].check()
    return [
        SlideTile(slides[source_id], int(x), int(y), float(size)) if image is None else image
        for image, source_id, (x, y, size) in zip(images, frame.source_id, places, strict=True)
    ]


def _read_stain(metadata: dict[bytes, bytes], path: Path) -> Stain | None:
    """Return the stain normalisation that a table of images states."""
    stated = metadata.get(b"stain", b"").decode(errors="replace")
    known = {name: name for name in get_args(Stain)}
    if stated and stated not in known:
        raise ImageTableError(f"{path} states the unknown stain normalisation {quote(stated)}; tile its slides again")
    return known.get(stated)


def spread(rows: np.ndarray, count: int) -> np.ndarray:
    """Return up to `count` of the rows at even distances."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, count).round().astype(int))]


def _spread_by_source(sources: list[str], count: int) -> np.ndarray:
    groups = pd.Series(sources, dtype=str).groupby(sources).indices
    return np.sort(np.concatenate([spread(np.sort(rows), count) for rows in groups.values()] or [np.empty(0, int)]))


def _join(parts: list[Images], where: str) -> Images:
    frame = pd.concat([part.frame for part in parts], ignore_index=True)
    encoded = [item for part in parts for item in part.encoded]
    masks = [item for part in parts for item in part.masks]
    stains = sorted({part.stain or "none" for part in parts})
    if len(stains) > 1:
        raise ImageTableError(f"the image tables of {where} differ in stain normalisation: {', '.join(stains)}")
    positive = np.concatenate([part.positive for part in parts])
    joined = type(parts[0])(frame, encoded, masks, positive, parts[0].stain)
    sizes = {part.shape for part in parts}
    if len(sizes) > 1:
        raise ImageTableError(f"the image tables of {where} hold images of different sizes: {sorted(sizes)}")
    return joined


def read_case_labels(splits: Path, column: Literal["site", "stratum"]) -> dict[str, str]:
    """Return the site of each case that has one, or the class that the folds share out alike."""
    table = read_table(splits, "table of splits", ["case_id", column]).to_pandas().dropna()
    return dict(zip(table.case_id, table[column], strict=True))


def read_roles(splits: Path, fold: str) -> dict[str, list[str]]:
    """Return the cases of each role (train, val, test) in a fold; for the fold `all` every case trains.

    Raises
    ------
    CohortError
        If the table has no such fold.
    """
    table = read_table(splits, "table of splits", ["case_id", "fold", "role"]).to_pandas()
    if fold == "all":
        return {"train": sorted(table.case_id.unique()), "val": [], "test": []}
    rows = table[table.fold.astype(str) == fold]
    if rows.empty:
        folds = ", ".join(map(str, sorted(table.fold.unique())))
        raise CohortError(f"no fold '{fold}' in {splits}; it has {folds}, and 'all' trains on every case")
    return {role: sorted(rows[rows.role == role].case_id) for role in ("train", "val", "test")}
