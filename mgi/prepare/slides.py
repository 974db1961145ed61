"""Whole-slide images cut into tiles of one physical size, where there is tissue."""

import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import openslide
from PIL import Image, ImageDraw
from scipy import ndimage
from skimage.color import rgb2hsv
from skimage.filters import threshold_otsu
from skimage.morphology import disk

from mgi.codecs import encode_jpeg, encode_mask
from mgi.console import log, progress
from mgi.errors import AnnotationError, MGIError, SlideError
from mgi.files import atomic_write, require_file
from mgi.prepare.annotations import Annotation, find_annotation, read_annotation
from mgi.tables import image_table, source_of, write_sources

TISSUE_MPP = 8.0
LEAST_TISSUE_UM2 = 10_000.0
SATURATION_RANGE = (0.05, 0.20)
NEAR_WHITE = 235
NEAR_BLACK = 70
BLACK_INK_CHROMA = 25
PEN_GREEN_OVER_RED = 10
BLOCK_PX = 2048
PREVIEW_PX = 1600
LANCZOS_RADIUS = 3
# A level that is a hair too coarse, as 4.0003 for 4, is the level meant.
LEVEL_TOLERANCE = 1.01
COARSEST = 1.25
ANISOTROPY = 0.05


@dataclass(frozen=True)
class Resolution:
    """Microns per pixel of level 0, and whether the slide's metadata or a default said so."""

    mpp: float
    source: str


@dataclass(frozen=True)
class Grid:
    """The tiles of a slide.

    Attributes
    ----------
    edge : float
        Exact edge of a tile in level-0 pixels.
    x, y : int array [columns], int array [rows]
        Top-left corners in level-0 pixels, each rounded on its own from a multiple of `edge`.
    tissue : float array [rows, columns]
        Tissue fraction of each tile.
    """

    edge: float
    x: np.ndarray
    y: np.ndarray
    tissue: np.ndarray


def tile_slides(
    slides: list[Path],
    case_ids: list[str],
    output: Path | str,
    *,
    mpp: float,
    tile_px: int,
    default_mpp: float | None = None,
    min_tissue: float = 0.5,
    annotations: Path | None = None,
    status: Path | None = None,
) -> None:
    """Write the tissue tiles of slides into one table of images.

    A tile covers `tile_px * mpp` microns; it is read at the finest sufficient level and resampled by Lanczos' filter.
    With `status`, a slide that cannot be used leaves a row with its reason there and no row in `output`.

    Raises
    ------
    MissingInputError
        If a slide or the annotations are not there.
    SlideError
        If two slides share a source_id, slides and case ids differ in number, or a slide is bad and `status` None.
    AnnotationError
        If, without `status`, an annotation is unreadable or not its slide's.
    """
    output = Path(output)
    jobs = _jobs(slides, case_ids)
    if annotations is not None and annotations.is_file() and len(jobs) > 1:
        raise AnnotationError(f"{annotations} is one annotation for {len(jobs)} slides; give the folder of annotations")
    records = []
    with image_table(output) as add:
        for case_id, source_id, path in progress(jobs, "slides"):
            found = None if annotations is None else find_annotation(annotations, source_id)
            record: dict[str, Any] = {"source_id": source_id, "case_id": case_id, "table": output.stem}
            record |= {"status": "ok", "n_images": 0, "labelled": found is not None}
            identity = {"case_id": case_id, "source_id": source_id, "z": 0, "mpp": mpp}
            # Tiles wait on the disk until the slide has been read to its end: half a slide must not enter the table.
            with tempfile.TemporaryFile(dir=output.parent) as spool:
                try:
                    with opened(path) as slide:
                        record |= _spool_tiles(slide, spool, identity, found, mpp, tile_px, default_mpp, min_tissue)
                except (SlideError, AnnotationError, openslide.OpenSlideError) as problem:
                    record |= _refusal(path, problem, status)
                spool.seek(0)
                for _ in range(record["n_images"]):
                    add(pickle.load(spool))
            records.append(record)
    if status is not None:
        write_sources(records, status)
    used = sum(record["status"] == "ok" for record in records)
    log.info("%d tiles of %d of %d slides in %s", sum(r["n_images"] for r in records), used, len(records), output)


def preview(
    slide: Path | str,
    output: Path | str,
    *,
    mpp: float,
    tile_px: int,
    default_mpp: float | None = None,
    min_tissue: float = 0.5,
) -> None:
    """Draw the outline of the tissue (yellow) and the tiles that would be kept (green) over a thumbnail, as PNG.

    Raises
    ------
    MissingInputError
        If the slide is not there.
    SlideError
        If it is unusable.
    """
    slide = Path(slide)
    try:
        with opened(slide) as source:
            resolution = _resolution(source, default_mpp, mpp)
            tissue = tissue_mask(scaled(source, TISSUE_MPP / resolution.mpp), TISSUE_MPP)
            grid = _grid(source.dimensions, tissue, tile_px * mpp / resolution.mpp)
            scale = max(1.0, max(source.dimensions) / PREVIEW_PX)
            picture = Image.fromarray(scaled(source, scale))
    except (SlideError, openslide.OpenSlideError) as problem:
        raise SlideError(f"{slide.name}: {problem}") from None
    outline = np.asarray(Image.fromarray(tissue).resize(picture.size, Image.Resampling.NEAREST))
    outline = ndimage.binary_dilation(outline) & ~ndimage.binary_erosion(outline)
    picture.paste((255, 220, 0), mask=Image.fromarray(outline))
    draw = ImageDraw.Draw(picture)
    for row, column in np.argwhere(_kept(grid, min_tissue)):
        x, y = grid.x[column], grid.y[row]
        draw.rectangle([x / scale, y / scale, (x + grid.edge) / scale, (y + grid.edge) / scale], outline=(0, 130, 60))
    with atomic_write(output) as aside:
        picture.save(aside, "PNG")
    log.info("%d tiles kept of %d: %s", _kept(grid, min_tissue).sum(), grid.tissue.size, output)


def tissue_mask(thumbnail: np.ndarray, mpp: float) -> np.ndarray:
    """Find the tissue in a thumbnail of an H&E slide.

    Tissue is coloured: its HSV saturation exceeds Otsu's threshold (Otsu, 1979, doi 10.1109/TSMC.1979.4310076), which
    is held within 0.05 to 0.20 for slides that are all glass or all tissue. Haematoxylin and eosin both absorb green
    more than red (Ruifrok and Johnston, 2001), so what is greener than red is the ink of a green or blue pen; black ink
    is dark and grey. Red ink cannot be told from eosin. Opening, and removal of pieces and
    holes below 0.01 mm2, clean the result.

    Parameters
    ----------
    thumbnail : uint8 array [H, W, 3]
    mpp : float
        Microns per pixel of the thumbnail, about 8 to 16.

    Returns
    -------
    bool array [H, W]
    """
    saturation = ndimage.median_filter(rgb2hsv(thumbnail)[..., 1], size=3)
    low, high = SATURATION_RANGE
    threshold = low if np.ptp(saturation) == 0 else float(np.clip(threshold_otsu(saturation), low, high))
    levels = thumbnail.astype(np.int16)
    black = (levels.max(axis=-1) < NEAR_BLACK) & (np.ptp(levels, axis=-1) < BLACK_INK_CHROMA)
    ink = (levels[..., 1] > levels[..., 0] + PEN_GREEN_OVER_RED) | black
    # The rim of a stroke blends with the glass.
    ink = ndimage.binary_dilation(ndimage.binary_opening(ink), iterations=3)
    tissue = (saturation > threshold) & (levels.min(axis=-1) < NEAR_WHITE) & ~ink
    tissue = ndimage.binary_opening(tissue, disk(1))
    least = LEAST_TISSUE_UM2 / mpp**2
    tissue = _without_small(tissue, least)
    return ~_without_small(~tissue, least) & ~ink


def _without_small(mask: np.ndarray, least_px: float) -> np.ndarray:
    labels, _ = ndimage.label(mask)
    large = np.bincount(labels.ravel()) >= least_px
    large[0] = False
    return large[labels]


def _jobs(slides: list[Path], case_ids: list[str]) -> list[tuple[str, str, Path]]:
    """Case, source and path of each slide, in the order of the table."""
    if len(slides) != len(case_ids):
        raise SlideError(f"{len(slides)} slides but {len(case_ids)} case ids; give --case-id once per slide")
    jobs = sorted((case_id, source_of(path), Path(path)) for case_id, path in zip(case_ids, slides, strict=True))
    seen: dict[str, Path] = {}
    for _, source_id, path in jobs:
        require_file(path, "slide")
        if source_id in seen:
            raise SlideError(f"two slides are both {source_id}: {seen[source_id]} and {path}; give one")
        seen[source_id] = path
    return jobs


def _refusal(path: Path, problem: MGIError | openslide.OpenSlideError, status: Path | None) -> dict[str, Any]:
    """Say what the status table records of an unusable slide; without one, raise the error itself."""
    unreadable = isinstance(problem, openslide.OpenSlideError)
    reason = f"unreadable: {problem}" if unreadable else str(problem)
    if status is None:
        kind = SlideError if unreadable else type(problem)
        raise kind(f"{path.name}: {reason}") from None
    log.warning("%s left out: %s", path.name, reason)
    skipped = isinstance(problem, SlideError)
    return {"status": "skipped" if skipped else "failed", "reason": reason, "labelled": False}


@contextmanager
def opened(path: Path) -> Iterator[openslide.OpenSlide]:
    """Open a slide, with one sentence in the `OpenSlideError` where it is none."""
    try:
        slide = openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError:
        raise openslide.OpenSlideError("not a slide that OpenSlide reads") from None
    with slide:
        yield slide


def _spool_tiles(
    slide: openslide.OpenSlide,
    spool: Any,
    identity: dict[str, Any],
    annotation_path: Path | None,
    mpp: float,
    tile_px: int,
    default_mpp: float | None,
    min_tissue: float,
) -> dict[str, Any]:
    """Write a slide's rows to `spool`; return what there is to record of it."""
    resolution = _resolution(slide, default_mpp, mpp)
    annotation = None if annotation_path is None else read_annotation(annotation_path, slide.dimensions)
    tissue = tissue_mask(scaled(slide, TISSUE_MPP / resolution.mpp), TISSUE_MPP)
    grid = _grid(slide.dimensions, tissue, tile_px * mpp / resolution.mpp)
    if not _kept(grid, min_tissue).any():
        raise SlideError(f"no tissue: none of {grid.tissue.size} tiles has a tissue fraction of {min_tissue:g} or more")
    n_images = 0
    for tile in _tiles(slide, grid, _kept(grid, min_tissue), tile_px, annotation):
        pickle.dump(identity | tile, spool)
        n_images += 1
    record = {"n_images": n_images, "mpp": resolution.mpp, "mpp_from": resolution.source}
    if annotation is None:
        return record
    untiled = _untiled_tumour_px(annotation, grid.edge, _kept(grid, min_tissue), slide.dimensions, tile_px)
    return record | {"untiled_tumour_px": untiled}


def _resolution(slide: openslide.OpenSlide, default_mpp: float | None, mpp: float) -> Resolution:
    """Resolve the microns per pixel of level 0: metadata, then the default."""
    across, down = (
        _positive(slide.properties.get(key)) for key in (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)
    )
    if across and down:
        if abs(across - down) > ANISOTROPY * min(across, down):
            raise SlideError(f"mpp differs by direction: {across:g} across and {down:g} down")
        resolution = Resolution((across + down) / 2, "metadata")
    elif default_mpp is not None:
        resolution = Resolution(default_mpp, "default")
    else:
        raise SlideError(
            "no mpp: its metadata state no microns per pixel; write them into the slide, set slides.default_mpp "
            "(--default-mpp) if you know the scanner's, or leave the slide out of the manifest"
        )
    if resolution.mpp > COARSEST * mpp:
        raise SlideError(
            f"too coarse: level 0 has {resolution.mpp:g} microns per pixel and tiles were asked at {mpp:g}"
        )
    return resolution


def _positive(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if isfinite(value) and value > 0 else None


def _grid(dimensions: tuple[int, int], tissue: np.ndarray, edge: float) -> Grid:
    """Lay full tiles over the slide and weigh each by the tissue under it."""
    corners, weights = [], []
    for length, mask_length in zip(dimensions, tissue.shape[::-1], strict=True):
        corner = np.rint(np.arange(int(length // edge)) * edge)
        corner = corner[corner + edge <= length]
        scale = mask_length / length
        start, stop = corner[:, None] * scale, (corner[:, None] + edge) * scale
        cell = np.arange(mask_length)
        overlap = np.minimum(stop, cell + 1) - np.maximum(start, cell)
        weights.append(np.clip(overlap, 0, None) / (edge * scale))
        corners.append(corner.astype(np.int64))
    return Grid(edge, corners[0], corners[1], weights[1] @ tissue.astype(float) @ weights[0].T)


def _kept(grid: Grid, min_tissue: float) -> np.ndarray:
    # The overlaps of a tile that is all tissue sum to one only within rounding.
    return grid.tissue >= min_tissue - 1e-9


def _tiles(
    slide: openslide.OpenSlide, grid: Grid, kept: np.ndarray, tile_px: int, annotation: Annotation | None
) -> Iterator[dict[str, Any]]:
    """Yield the kept tiles by y, then x, reading blocks of several tiles at once."""
    level = slide.get_best_level_for_downsample(grid.edge / tile_px * LEVEL_TOLERANCE)
    margin = LANCZOS_RADIUS * grid.edge / tile_px + slide.level_downsamples[level]
    per_block = max(1, int(BLOCK_PX * slide.level_downsamples[level] / grid.edge))
    for top in range(0, len(grid.y), per_block):
        band = []
        for left in range(0, len(grid.x), per_block):
            rows, columns = np.nonzero(kept[top : top + per_block, left : left + per_block])
            if not len(rows):
                continue
            x, y = grid.x[columns + left], grid.y[rows + top]
            # The filter reaches beyond a tile's edge: without the margin, tiles would depend on the block they are in.
            box = (x.min() - margin, y.min() - margin, x.max() + grid.edge + margin, y.max() + grid.edge + margin)
            region = _read(slide, level, box)
            for k, fraction in enumerate(grid.tissue[rows + top, columns + left]):
                box = (x[k], y[k], x[k] + grid.edge, y[k] + grid.edge)
                pixels = region.cut(box, (tile_px, tile_px), Image.Resampling.LANCZOS)
                mask = None if annotation is None else encode_mask(annotation.mask(x[k], y[k], grid.edge, tile_px))
                place = {"x": int(x[k]), "y": int(y[k]), "size": grid.edge}
                band.append(place | {"tissue_fraction": fraction, "image": encode_jpeg(pixels), "mask": mask})
        yield from sorted(band, key=lambda tile: (tile["y"], tile["x"]))


def _untiled_tumour_px(
    annotation: Annotation, edge: float, kept: np.ndarray, dimensions: tuple[int, int], tile_px: int
) -> int:
    """Count the annotated pixels, of the tiles' size, in no kept tile; the margins too narrow for a tile count."""
    (width, height), (left, top, right, bottom) = dimensions, annotation.bounds
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


@dataclass(frozen=True)
class _Region:
    """Pixels read from a level, with the place of their top-left corner in level-0 pixels."""

    image: Image.Image
    x: int
    y: int
    downsample: float

    def cut(self, box: tuple[float, ...], size: tuple[int, int], resampling: Image.Resampling) -> np.ndarray:
        """Resample a box of level-0 coordinates, fractions of pixels included, to `size`."""
        left, top, right, bottom = (
            (edge - origin) / self.downsample for edge, origin in zip(box, (self.x, self.y) * 2, strict=True)
        )
        inside = (max(left, 0), max(top, 0), min(right, self.image.width), min(bottom, self.image.height))
        return np.asarray(self.image.resize(size, resampling, box=inside))


def _read(slide: openslide.OpenSlide, level: int, box: tuple[float, ...]) -> _Region:
    """Read a level under a box of level-0 coordinates, cut to the slide; what was not scanned is white."""
    downsample = slide.level_downsamples[level]
    x, y = max(0, int(box[0])), max(0, int(box[1]))
    size = [
        max(1, min(int(np.ceil((stop - start) / downsample)), length - int(start / downsample)))
        for start, stop, length in zip((x, y), box[2:], slide.level_dimensions[level], strict=True)
    ]
    pixels = slide.read_region((x, y), level, size)
    image = pixels.convert("RGB")
    if pixels.getchannel("A").getextrema()[0] < 255:
        white = Image.new("RGB", image.size, (255, 255, 255))
        image = Image.composite(image, white, pixels.getchannel("A"))
    return _Region(image, x, y, downsample)


def scaled(slide: openslide.OpenSlide, scale: float) -> np.ndarray:
    """Read the whole slide at `scale` level-0 pixels per pixel, in blocks, as uint8 [H, W, 3]."""
    level = slide.get_best_level_for_downsample(max(scale, 1.0) * LEVEL_TOLERANCE)
    width, height = (max(1, round(length / scale)) for length in slide.dimensions)
    across, down = slide.dimensions[0] / width, slide.dimensions[1] / height
    step = max(1, int(BLOCK_PX * slide.level_downsamples[level] / scale))
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, step):
        for left in range(0, width, step):
            bottom, right = min(top + step, height), min(left + step, width)
            box = (left * across, top * down, right * across, bottom * down)
            block = _read(slide, level, box).cut(box, (right - left, bottom - top), Image.Resampling.BOX)
            pixels[top:bottom, left:right] = block
    return pixels
