"""Whole-slide images cut into tiles of one physical size, where there is tissue."""

import json
import pickle
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openslide
from PIL import Image, ImageDraw
from scipy import ndimage

from mgi.config import StatedSlide, TileOptions
from mgi.console import log, progress
from mgi.errors import AnnotationError, SlideError
from mgi.files import atomic_write, require_file
from mgi.names import check_name
from mgi.prepare.annotations import Annotation, find_annotation, read_annotation
from mgi.prepare.isolation import IsolationError, run_isolated
from mgi.prepare.local import LocalSlide, read_mpp_table
from mgi.prepare.pictures import Picture
from mgi.prepare.reader import (
    Resolution,
    Slide,
    open_slide,
    read_downsampled,
    resolve_mpp,
    scanned_bounds,
)
from mgi.prepare.tiling import Grid, count_untiled_tumour, iterate_tiles, make_grid
from mgi.prepare.tissue import TISSUE, classify_pixels, thumbnail_scale
from mgi.tables import image_table, source_of, write_sources

PREVIEW_PX = 1600
MAX_ROUNDING = 1e-6
UNREADABLE = (openslide.OpenSlideError, IsolationError)


def tile_slides(
    slides: list[Path],
    case_ids: list[str],
    output: Path | str,
    options: TileOptions,
    status: Path | None = None,
    overlap: float = 0.0,
    names: list[str] | None = None,
    stated: Mapping[str, StatedSlide] | None = None,
) -> None:
    """Write the tissue tiles of slides into one table of images.

    A tile covers `tile_px * mpp` microns; it is read at the finest sufficient level and resampled by Lanczos' filter.
    Each slide is read in a process of its own: one that hangs for 5 minutes, takes an hour, crashes or needs more than
    3 GiB is unusable. With `status`, a slide that cannot be used leaves a row with its reason there and no row in
    `output`.

    Parameters
    ----------
    slides, case_ids : list
        The slides, and the case of each.
    output : Path
        The table of images.
    options : TileOptions
        `annotations` may also be the annotation of the only slide.
    status : Path, optional
        The table of what became of each slide.
    overlap : float
        Share of a tile's edge by which its neighbours reach into it: 0 for training, more to blend predictions.
    names : list of str, optional
        The source_id of each slide; None takes those of the files' names.
    stated : mapping of str to StatedSlide, optional
        What is stated of single slides, by source_id; it beats `options.annotations` and `options.mpp_table`.

    Raises
    ------
    MissingInputError
        If a slide, an annotation or the table of mpp is not there.
    SlideError
        If two slides share a source_id, slides and case ids differ in number, or a slide is bad and `status` None.
    AnnotationError
        If, without `status`, an annotation is unreadable or not its slide's.
    """
    output = Path(output)
    jobs = _list_jobs(slides, case_ids, names or [source_of(path) for path in slides])
    annotations = None if options.annotations is None else Path(options.annotations)
    if annotations is not None and annotations.is_file() and len(jobs) > 1:
        raise AnnotationError(f"{annotations} is one annotation for {len(jobs)} slides; give the folder of annotations")
    mpp_by_table = {} if options.mpp_table is None else read_mpp_table(options.mpp_table)
    records = []
    with image_table(output) as add:
        for case_id, source_id, path in progress(jobs, "slides"):
            own = (stated or {}).get(source_id, StatedSlide())
            found = None if annotations is None else find_annotation(annotations, source_id)
            if own.annotation is not None:
                found = require_file(own.annotation, "annotation")
            record: dict[str, Any] = {"source_id": source_id, "case_id": case_id, "table": output.stem}
            record["site"] = own.site
            record |= {"status": "ok", "n_images": 0, "labelled": found is not None}
            identity = {"case_id": case_id, "source_id": source_id, "z": 0, "mpp": options.mpp}
            # Tiles wait on the disk until the slide has been read to its end: half a slide must not enter the table.
            with tempfile.NamedTemporaryFile(dir=output.parent) as spool:
                try:
                    mpp = own.mpp or mpp_by_table.get(source_id)
                    arguments = (path, spool.name, identity, found, options, mpp, overlap)
                    record |= run_isolated(_spool_tiles, *arguments)
                except (SlideError, AnnotationError, *UNREADABLE) as error:
                    record |= _refuse(path, error, status)
                for _ in range(record["n_images"]):
                    add(pickle.load(spool))
            records.append(record)
    if status is not None:
        write_sources(records, status)
    used = sum(record["status"] == "ok" for record in records)
    log.info("%d tiles of %d of %d slides", sum(record["n_images"] for record in records), used, len(records))


def find_unusable(slides: list[LocalSlide], options: TileOptions) -> dict[str, str]:
    """Open every slide and return the reason why it will not be tiled, by source_id, of those that its header tells."""
    mpp_by_table = {} if options.mpp_table is None else read_mpp_table(options.mpp_table)
    reasons = {}
    for slide in progress(slides, "slides"):
        try:
            run_isolated(_check_slide, slide.path, options, slide.mpp or mpp_by_table.get(slide.source_id))
        except (SlideError, *UNREADABLE) as error:
            reasons[slide.source_id] = f"unreadable: {error}" if isinstance(error, UNREADABLE) else str(error)
    return reasons


def _check_slide(beat: Callable[[], None], path: Path, options: TileOptions, stated_mpp: float | None) -> None:
    """Raise what keeps a slide from being tiled, as far as its header tells."""
    with open_slide(path) as slide:
        resolve_mpp(slide.properties, options.mpp, options.default_mpp, stated_mpp)


def preview(slide: Path | str, output: Path | str, options: TileOptions) -> None:
    """Draw the outline of the tissue (yellow) and the tiles that would be kept (green) over a thumbnail, as PNG.

    Raises
    ------
    MissingInputError
        If the slide is not there.
    SlideError
        If it is unusable.
    """
    slide = require_file(slide, "slide")
    stated = {} if options.mpp_table is None else read_mpp_table(options.mpp_table)
    try:
        found = run_isolated(_look_over, slide, options, stated.get(source_of(slide)))
    except (SlideError, *UNREADABLE) as error:
        raise SlideError(f"{slide.name}: {error}") from error
    thumbnail, tissue, grid, scale = found
    picture = Image.fromarray(thumbnail)
    outline = np.asarray(Image.fromarray(tissue).resize(picture.size, Image.Resampling.NEAREST))
    outline = ndimage.binary_dilation(outline) & ~ndimage.binary_erosion(outline)
    picture.paste((255, 220, 0), mask=Image.fromarray(outline))
    draw = ImageDraw.Draw(picture)
    kept = grid.keep(options.min_tissue, options.max_tiles)
    for row, column in np.argwhere(kept):
        x, y = grid.x[column], grid.y[row]
        draw.rectangle([x / scale, y / scale, (x + grid.edge) / scale, (y + grid.edge) / scale], outline=(0, 130, 60))
    with atomic_write(output) as aside:
        picture.save(aside, "PNG")
    log.info("%d tiles kept of %d: %s", kept.sum(), grid.tissue.size, output)


def _list_jobs(slides: list[Path], case_ids: list[str], names: list[str]) -> list[tuple[str, str, Path]]:
    """Return case, source and path of each slide, in the order of the table."""
    for what, given in (("case ids", case_ids), ("names", names)):
        if len(slides) != len(given):
            raise SlideError(f"{len(slides)} slides but {len(given)} {what}; give one for each slide, in their order")
    jobs = sorted(zip(case_ids, names, map(Path, slides), strict=True))
    seen: dict[str, Path] = {}
    for _, source_id, path in jobs:
        require_file(path, "slide")
        check_name(source_id, "name of a slide", SlideError)
        if source_id in seen:
            raise SlideError(f"two slides are both {source_id}: {seen[source_id]} and {path}; give one")
        seen[source_id] = path
    return jobs


def _refuse(path: Path, error: Exception, status: Path | None) -> dict[str, Any]:
    """Return what the status table records of an unusable slide; without one, raise the error."""
    unreadable = isinstance(error, UNREADABLE)
    reason = f"unreadable: {error}" if unreadable else str(error)
    if status is None:
        kind = SlideError if unreadable else type(error)
        raise kind(f"{path.name}: {reason}") from error
    log.warning("%s left out: %s", path.name, reason)
    skipped = isinstance(error, SlideError)
    return {"status": "skipped" if skipped else "failed", "reason": reason, "labelled": False}


def _look_over(
    beat: Callable[[], None], path: Path, options: TileOptions, stated_mpp: float | None
) -> tuple[np.ndarray, np.ndarray, Grid, float]:
    """Return a thumbnail, the tissue, the grid, and the thumbnail's level-0 pixels per pixel."""
    with open_slide(path) as slide:
        _, codes, grid = _survey(beat, slide, options, stated_mpp)
        scale = max(1.0, max(slide.dimensions) / PREVIEW_PX)
        return read_downsampled(slide, scale, beat), codes == TISSUE, grid, scale


def _survey(
    beat: Callable[[], None],
    slide: Slide | Picture,
    options: TileOptions,
    stated_mpp: float | None,
    overlap: float = 0.0,
) -> tuple[Resolution, np.ndarray, Grid]:
    """Return the resolution of a slide, what the pixels of its thumbnail are, and its grid."""
    resolution = resolve_mpp(slide.properties, options.mpp, options.default_mpp, stated_mpp)
    scale = thumbnail_scale(slide.dimensions, resolution.mpp)
    codes = classify_pixels(read_downsampled(slide, scale, beat), scale * resolution.mpp)
    edge = _snap(options.tile_px * options.mpp / resolution.mpp)
    return resolution, codes, make_grid(slide.dimensions, codes == TISSUE, edge, overlap, options.partial_tiles)


def _snap(edge: float) -> float:
    """Return a whole number that an edge misses by rounding alone."""
    return float(round(edge)) if abs(edge - round(edge)) < MAX_ROUNDING else edge


def _spool_tiles(
    beat: Callable[[], None],
    path: Path,
    spool_path: str,
    identity: dict[str, Any],
    annotation_path: Path | None,
    options: TileOptions,
    stated_mpp: float | None,
    overlap: float,
) -> dict[str, Any]:
    """Write a slide's rows to a file; return what there is to record of it."""
    with open_slide(path) as slide, open(spool_path, "wb") as spool:
        annotation = None
        if annotation_path is not None:
            annotation = read_annotation(annotation_path, slide.dimensions, options, scanned_bounds(slide))
            beat()
        resolution, codes, grid = _survey(beat, slide, options, stated_mpp, overlap)
        tissue, kept = grid.keep(options.min_tissue), grid.keep(options.min_tissue, options.max_tiles)
        if not kept.any():
            raise SlideError(
                f"no tissue: none of {grid.tissue.size} tiles has a tissue fraction of {options.min_tissue:g} or more"
            )
        n_images = 0
        for tile in iterate_tiles(slide, grid, kept, options.tile_px, annotation):
            pickle.dump(identity | tile, spool)
            n_images += 1
            beat()
        record: dict[str, Any] = {"n_images": n_images, "mpp": resolution.mpp, "mpp_from": resolution.source}
        dropped = Counter(grid.count_reasons(codes, ~tissue))
        dropped["over the most of a slide"] = int((tissue & ~kept).sum())
        if annotation is not None:
            record |= _describe(annotation, grid, kept, slide.dimensions, options.tile_px)
            dropped.update(annotation.dropped)
    return record | {"dropped": json.dumps({reason: n for reason, n in sorted(dropped.items()) if n})}


def _describe(
    annotation: Annotation, grid: Grid, kept: np.ndarray, dimensions: tuple[int, int], tile_px: int
) -> dict[str, Any]:
    """Return what there is to record of a slide's annotation."""
    return {
        "has_tumour": annotation.tumour.area_px > 0,
        "tumour_px": annotation.tumour.area_px,
        "classes": json.dumps(annotation.classes),
        "untiled_tumour_px": count_untiled_tumour(annotation, grid.edge, kept, dimensions, tile_px),
    }
