"""Whole-slide images cut into tiles of one physical size, where there is tissue."""

import json
import pickle
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mgi.codecs import decode_image
from mgi.config import StatedSlide, TileOptions
from mgi.console import log, progress
from mgi.errors import AnnotationError, SlideError
from mgi.files import require_file
from mgi.names import check_case_ids, check_name, first_few
from mgi.prepare.annotations import Annotation, find_annotation
from mgi.prepare.focus import estimate_focus, find_blurred, measure_focus
from mgi.prepare.hdf5 import describe_patches, write_patches
from mgi.prepare.isolation import run_isolated
from mgi.prepare.local import DICOM, LocalSlide, read_mpp_table
from mgi.prepare.reader import (
    open_slide,
    resolve_mpp,
)
from mgi.prepare.store import state_slides
from mgi.prepare.survey import UNREADABLE, annotate, survey_slide, write_preview
from mgi.prepare.tiling import Grid, count_untiled_tumour, iterate_tiles
from mgi.tables import SUFFIXES, image_table, source_of, write_sources


def tile_slides(
    slides: list[Path],
    case_ids: list[str],
    output: Path | str,
    options: TileOptions,
    status: Path | None = None,
    overlap: float = 0.0,
    names: list[str] | None = None,
    stated: Mapping[str, StatedSlide] | None = None,
    previews: Path | None = None,
    coordinates: Path | None = None,
) -> None:
    """Write the tissue tiles of slides into one table of images.

    A tile covers `tile_px * mpp` microns; it is read at the finest sufficient level and resampled by Lanczos' filter.
    With `options.store` "coordinates" its row has no image, which is read from the slide when it is needed.
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
    previews : Path, optional
        Folder of a picture of each slide, {source_id}.jpg: see `draw_preview`. A slide that cannot be read has none.
    coordinates : Path, optional
        Folder of the tiles' coordinates, {stem of the slide's file}_patches.h5, for TRIDENT and CLAM: see
        `mgi.prepare.hdf5.describe_patches`. A slide without tiles has none.

    Raises
    ------
    MissingInputError
        If a slide, an annotation or the table of mpp is not there.
    SlideError
        If two slides share a source_id, slides and case ids differ in number, a path to be stored is not UTF-8, or a
        slide is bad and `status` None.
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
    for folder in (previews, coordinates):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    paths = [(source_id, path) for _, source_id, path in jobs]
    stated_slides = state_slides(paths, options.tile_px) if options.store == "coordinates" else None
    with image_table(output, options.stain, stated_slides) as add:
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
                    preview_path = None if previews is None else previews / f"{source_id}.jpg"
                    arguments = (path, spool.name, identity, found, options, mpp, overlap, preview_path)
                    record |= run_isolated(_spool_tiles, *arguments)
                    if "reason" in record:
                        raise SlideError(record["reason"])
                except (SlideError, AnnotationError, *UNREADABLE) as error:
                    record |= _refuse(path, error, status)
                corners: list[tuple[int, int]] = []
                for in_focus in record.pop("in_focus", []):
                    tile = pickle.load(spool)
                    if in_focus:
                        add(tile if stated_slides is None else tile | {"image": None})
                        corners.append((tile["x"], tile["y"]))
                levels = record.pop("levels", None)
                if coordinates is not None and corners:
                    stem = source_id if path.suffix.lower() == DICOM else SUFFIXES.sub("", path.name)
                    attributes = describe_patches(stem, options.tile_px, tile["size"], options.mpp, *levels)
                    write_patches(coordinates / f"{stem}_patches.h5", np.array(corners), attributes)
            records.append(record)
    if status is not None:
        write_sources(records, status)
    used = sum(record["status"] == "ok" for record in records)
    log.info("%d tiles of %d of %d slides", sum(record["n_images"] for record in records), used, len(records))


def inspect_slides(
    slides: list[LocalSlide], options: TileOptions, annotations: Mapping[str, Path] | None = None
) -> tuple[dict[str, str], dict[str, str]]:
    """Open slides and read their annotations, without tiling them.

    Parameters
    ----------
    slides : list of LocalSlide
    options : TileOptions
    annotations : mapping of str to Path, optional
        The annotations by source_id.

    Returns
    -------
    unusable : dict of str to str
        Why slides will not be tiled, by source_id, of those whose header or annotation tells.
    without_tumour : dict of str to str
        The classes or values of annotations that hold no tumour, by source_id, of the other slides.
    """
    mpp_by_table = {} if options.mpp_table is None else read_mpp_table(options.mpp_table)
    unusable, without_tumour = {}, {}
    for slide in progress(slides, "slides"):
        mpp = slide.mpp or mpp_by_table.get(slide.source_id)
        annotation = (annotations or {}).get(slide.source_id)
        try:
            classes = run_isolated(_check_slide, slide.path, options, mpp, annotation)
        except (SlideError, AnnotationError, *UNREADABLE) as error:
            unusable[slide.source_id] = f"unreadable: {error}" if isinstance(error, UNREADABLE) else str(error)
        else:
            if classes is not None:
                without_tumour[slide.source_id] = first_few(sorted(classes))
    return unusable, without_tumour


def _check_slide(
    beat: Callable[[], None], path: Path, options: TileOptions, stated_mpp: float | None, annotation_path: Path | None
) -> list[str] | None:
    """Raise what keeps a slide from being tiled, as far as its header and its annotation tell.

    Returns the classes of an annotation that holds no tumour.
    """
    with open_slide(path) as slide:
        resolve_mpp(slide.properties, options.mpp, options.default_mpp, stated_mpp)
        annotation = annotate(slide, annotation_path, options)
    return None if annotation is None or annotation.tumour.area_px else list(annotation.classes)


def _list_jobs(slides: list[Path], case_ids: list[str], names: list[str]) -> list[tuple[str, str, Path]]:
    """Return case, source and path of each slide, in the order of the table."""
    for what, given in (("case ids", case_ids), ("names", names)):
        if len(slides) != len(given):
            raise SlideError(f"{len(slides)} slides but {len(given)} {what}; give one for each slide, in their order")
    cases = check_case_ids(case_ids, "the list of slides", SlideError)
    jobs = sorted(zip(cases, names, map(Path, slides), strict=True))
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


def _spool_tiles(
    beat: Callable[[], None],
    path: Path,
    spool_path: str,
    identity: dict[str, Any],
    annotation_path: Path | None,
    options: TileOptions,
    stated_mpp: float | None,
    overlap: float,
    preview_path: Path | None,
) -> dict[str, Any]:
    """Write a slide's rows to a file, and its preview; return what there is to record of it."""
    with open_slide(path) as slide, open(spool_path, "w+b") as spool:
        annotation = annotate(slide, annotation_path, options)
        beat()
        survey = survey_slide(beat, slide, options, stated_mpp, overlap)
        grid = survey.grid
        tissue, kept = grid.keep(options.min_tissue), grid.keep(options.min_tissue, options.max_tiles)
        spooled, blurred = kept, np.zeros_like(kept)
        tiles = iterate_tiles(
            slide, grid, kept, options.tile_px, annotation, options.min_focus > 0, options.stain is not None,
            options.store == "images",
        )  # fmt: skip
        described = partial(_describe, annotation, grid, dimensions=slide.dimensions, tile_px=options.tile_px)
        try:
            focus = _spool(beat, tiles, identity, spool, options.min_focus > 0)
        except SlideError as error:
            return described(kept=np.zeros_like(kept)) | {"reason": str(error)}
        if options.min_focus > 0:
            sharpness = np.full(kept.shape, np.nan)
            sharpness[kept] = focus
            blurred = find_blurred(sharpness, grid.tissue, options.min_focus, options.tile_px * options.mpp)
        kept = kept & ~blurred
        if preview_path is not None:
            write_preview(beat, slide, survey, kept, blurred, annotation, preview_path)
        if not kept.any():
            reason = f"none of {grid.tissue.size} tiles has a tissue fraction of {options.min_tissue:g} or more"
            return described(kept=kept) | {"reason": f"no tissue: {reason}"}
        record: dict[str, Any] = {"n_images": int(kept.sum()), "in_focus": kept[spooled].tolist()}
        record["levels"] = (slide.dimensions, tuple(slide.level_downsamples))
        record |= {"mpp": survey.resolution.mpp, "mpp_from": survey.resolution.source}
        dropped = Counter(grid.count_reasons(survey.codes, ~tissue))
        dropped["over the most of a slide"] = int((tissue & ~spooled).sum())
        dropped["blur"] = int(blurred.sum())
        record |= described(kept=kept)
        if annotation is not None:
            dropped.update(annotation.dropped)
    return record | {"dropped": json.dumps({reason: n for reason, n in sorted(dropped.items()) if n})}


def _spool(
    beat: Callable[[], None],
    tiles: Iterable[tuple[dict[str, Any], float | None]],
    identity: dict[str, Any],
    spool: BinaryIO,
    measured: bool,
) -> np.ndarray:
    """Write tiles to a file, and return the focus of each; NaN unless it is measured."""
    focus, places, sizes = [], [], []
    for tile, sharpness in tiles:
        places.append(spool.tell())
        # Those of copied tiles, whose focus is not known yet, for their share of tissue since glass takes no bytes.
        sizes.append(len(tile["image"] or b"") / max(tile["tissue_fraction"], 0.01) if sharpness is None else 0.0)
        focus.append(np.nan if sharpness is None else sharpness)
        pickle.dump(identity | tile, spool)
        beat()

    def measure(number: int) -> float:
        beat()
        spool.seek(places[number])
        return measure_focus(decode_image(pickle.load(spool)["image"]))

    values, copied = np.array(focus), np.flatnonzero(sizes)
    if measured and len(copied):
        values[copied] = estimate_focus(np.array(sizes)[copied], lambda number: measure(copied[number]))
    return values


def _describe(
    annotation: Annotation | None, grid: Grid, kept: np.ndarray, dimensions: tuple[int, int], tile_px: int
) -> dict[str, Any]:
    """Return what there is to record of a slide's annotation, of a slide without tiles too: its tumour is missed."""
    if annotation is None:
        return {}
    return {
        "has_tumour": annotation.tumour.area_px > 0,
        "tumour_px": annotation.tumour.area_px,
        "classes": json.dumps(annotation.classes),
        "untiled_tumour_px": count_untiled_tumour(annotation, grid.edge, kept, dimensions, tile_px),
    }
