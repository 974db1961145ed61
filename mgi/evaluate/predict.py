"""Prediction: one trained model on slides or MRI series, one patient each."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import openslide
import pyvips
from PIL import Image

from mgi.barcodes import Barcode
from mgi.config import MriOptions, PredictOptions, TileOptions
from mgi.console import log
from mgi.errors import CheckpointError, CohortError, ConfigError, MGIError, SlideError
from mgi.evaluate.overlay import add_legend, draw_outline
from mgi.evaluate.regions import assemble_plane, fit_to_slide, make_geojson, remove_small
from mgi.evaluate.series import list_series_files, write_series
from mgi.files import require_file
from mgi.inference import load_segmenter, move_to_device, read_profiles_for, warn_of_trained
from mgi.model.segmenter import Segmenter
from mgi.names import first_few
from mgi.prepare.mri import import_series
from mgi.prepare.reader import open_slide, read_downsampled, scanned_bounds
from mgi.prepare.series import open_series
from mgi.prepare.slides import tile_slides
from mgi.tables import source_of
from mgi.train.data import Images, read_image_table
from mgi.train.device import Place
from mgi.train.profiles import Profiles
from mgi.train.validation import Batches, predict_probabilities

OVERLAY_PX = 1600
# Neighbouring tiles of a slide reach into each other by half, so that no outline follows their borders.
OVERLAP = 0.5


def predict(
    folder: Path,
    image: Path | list[Path],
    output: Path,
    *,
    expression: Path | None = None,
    case_id: str | list[str] | None = None,
    names: list[str] | None = None,
    options: PredictOptions | None = None,
    device: str | None = None,
) -> None:
    """Segment slides or MRI series by one model, and write what can be looked at and used.

    Of a slide: `{slide}.geojson`, the outlines in level-0 pixels, which QuPath opens, within 0.75 pixels of the
    prediction; `{slide}.png`, the outlines over a thumbnail, with a scale bar; `masks/{slide}_mask.tiff`, 0 or 255 over
    the whole slide at a whole number of level-0 pixels per pixel; and `probability/{slide}.tiff`, 0 to 255 on the same
    grid, a pyramid. `output` and the folder of masks in it are each a folder of annotations as tiling reads it.

    Of a series of slices: `*_N_mask.tif` of each slice `*_N.tif` at its own size, as in kaggle_3m, and
    `{series}_probability.tiff`, a page for each. Of NIfTI: `{series}_seg.nii.gz`, 0 or 1, and
    `{series}_probability.nii.gz`, voxel for voxel on the grid of the first channel's file. Of both `{series}.png`,
    every slice with its number. Masks that lie beside the images are not read.

    The files of an image appear together once all are complete. Of several images those that are complete already are
    left as they are, and one that fails does not stop the others.

    Parameters
    ----------
    folder
        Folder of a fine-tuned model, or of its variant.
    image
        A slide that OpenSlide reads, or the folder of one MRI series, as slices in the layout of kaggle_3m or as NIfTI;
        or several.
    output
        Folder to write to: not the image's own, and none that holds files of these names.
    expression, case_id
        expression.parquet, and the case in it that each image is of; without them the model sees the images alone.
    names
        What the files of each slide are named after; None takes the names of the slides' own files.
    device
        `cpu`, `cuda`, or None for what this machine has.

    Raises
    ------
    MissingInputError
        If an image is not there.
    ConfigError
        If `output` would put the files among the image's own or over others, two images have one name, or the device is
        not there.
    CheckpointError
        If the model is not a segmenter, or is one of the other kind of image or of other genes.
    CohortError
        If a case has no profile in the table, one of `expression` and `case_id` is missing, or of several images some
        failed.
    SlideError, MriError
        If the only image cannot be used.
    """
    images = image if isinstance(image, list) else [image]
    case_ids = [case_id] if isinstance(case_id, str) else case_id
    model = load_segmenter(folder)
    for path in images:
        require_file(path, "image")
        _check_kind(model, path, folder)
    names = _name_images(images, names)
    cases = _name_cases(images, names, expression, case_ids)
    left = [index for index, path in enumerate(images) if not _is_complete(path, names[index], output, len(images))]
    profiles = read_profiles_for(model, expression, folder, set(cases))
    _check_cases(model, cases, profiles, expression, folder, (options or PredictOptions()).allow_missing)
    model, place = move_to_device(model, device)
    failed = []
    for index in left:
        try:
            one = (images[index], names[index], cases[index])
            _predict_image(model, place, *one, profiles, output, options or PredictOptions())
        except MGIError as error:
            if len(images) == 1:
                raise
            log.error("%s: %s", images[index].name, error)
            failed.append(images[index].name)
    if failed:
        raise CohortError(f"{len(failed)} of {len(images)} images could not be segmented: {first_few(failed)}")


def _name_images(images: list[Path], names: list[str] | None) -> list[str]:
    """Return what the files of each image are named after; raise `ConfigError` where two have one name."""
    if names is not None and len(names) != len(images):
        raise CohortError(f"{len(names)} names for {len(images)} images; give one for each, in their order")
    found = names or [open_series(path, "").source_id if path.is_dir() else source_of(path) for path in images]
    named: dict[str, Path] = {}
    for path, name in zip(images, found, strict=True):
        other = named.setdefault(name, path)
        if other is not path:
            raise ConfigError(f"{other} and {path} have one name: segment them one by one, each with its own --output")
    return found


def _name_cases(images: list[Path], names: list[str], expression: Path | None, case_ids: list[str] | None) -> list[str]:
    """Return the case of each image: as stated, or by the barcode in its name, or the image's own name."""
    if (expression is None) != (case_ids is None):
        raise CohortError("a profile needs both the expression table and a case id: give both or neither")
    if case_ids is not None:
        if len(case_ids) != len(images):
            raise CohortError(f"{len(case_ids)} case ids for {len(images)} images; give one for each, in their order")
        return case_ids
    barcodes = [Barcode.parse(name.replace("_", "-")[:12]) for name in names]
    return [barcode.case_id if barcode else name for barcode, name in zip(barcodes, names, strict=True)]


def _check_kind(model: Segmenter, image: Path, folder: Path) -> None:
    """Raise `CheckpointError` where a model of slides is given a series, or a model of MRI a slide."""
    mpp, is_slide = model.description.mpp, not image.is_dir()
    if is_slide and mpp is None:
        raise CheckpointError(
            f"the model in {folder} states no mpp to cut a slide's tiles at: give a model trained on slides, or the "
            "folder of one MRI series"
        )
    if mpp is not None and not is_slide:
        raise CheckpointError(f"the model in {folder} was trained on slides, of {mpp:g} mpp: give a slide")


def _is_complete(image: Path, name: str, output: Path, n_images: int) -> bool:
    """Return whether an image of several is done; raise `ConfigError` where files would be overwritten."""
    own = image if image.is_dir() else image.parent
    if output.resolve() == own.resolve():
        raise ConfigError(f"--output is {output}, the folder of the image itself: name another folder")
    files = list_series_files(open_series(image, ""), output) if image.is_dir() else _slide_files(name, output)
    paths = list(files.values())
    existing = [path for path in paths if path.exists()]
    if existing and n_images > 1 and len(existing) == len(paths):
        log.info("%s is complete already", image.name)
        return True
    if existing:
        raise ConfigError(f"{existing[0]} exists and would be overwritten: name another folder with --output")
    return False


def _check_cases(
    model: Segmenter, cases: list[str], profiles: Profiles, expression: Path | None, folder: Path, allow_missing: bool
) -> None:
    """Raise `CohortError` for cases without a profile, and warn of cases that the model was trained on."""
    if expression is not None and model.gene_encoder is not None:
        missing = [case for case in cases if case not in profiles.row]
        if missing and not allow_missing:
            raise CohortError(f"{expression} has no profile of the case {first_few(missing)}: correct --case-id")
        if missing:
            log.warning("%s has no profile of %s: segmented by the images alone", expression, first_few(missing))
    warn_of_trained(model, cases, folder)


def _predict_image(
    model: Segmenter,
    place: Place,
    image: Path,
    name: str,
    case: str,
    profiles: Profiles,
    output: Path,
    options: PredictOptions,
) -> None:
    """Segment one image into a folder aside, and move its files to `output` when all are there."""
    description = model.description
    with _stage(output) as aside:
        table = aside / "images.parquet"
        if image.is_dir():
            series = open_series(image, case)
            importing = MriOptions(image_px=description.image_px, channels=options.channels)
            shape = import_series(series, table, importing)
        else:
            tiling = TileOptions(
                mpp=description.mpp, tile_px=description.image_px, default_mpp=options.default_mpp,
                min_tissue=options.min_tissue, min_focus=0, partial_tiles=options.partial_tiles,
                stain=description.stain,
            )  # fmt: skip
            tile_slides([image], [case], table, tiling, overlap=OVERLAP, names=[name], stated=options.stated)
        images = read_image_table(table)
        batches = predict_probabilities(model, images, profiles, place)
        if image.is_dir():
            files, words = write_series(series, shape, images, batches, description.decision, aside, options)
        else:
            files, words = _write_slide(image, name, images, batches, model, aside, options.min_area)
        for path in files:
            final = output / path.relative_to(aside)
            final.parent.mkdir(exist_ok=True)
            os.replace(path, final)
    log.info("%s: %s: %s", image.name, words, output)


@contextmanager
def _stage(output: Path) -> Iterator[Path]:
    """Yield a temporary folder inside `output`; afterwards remove it, and what was made of `output` if it is empty."""
    made = [path for path in (output, *output.parents) if not path.exists()]
    output.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=output, prefix=".") as aside:
            yield Path(aside)
    finally:
        for path in made:
            with suppress(OSError):
                path.rmdir()


def _slide_files(name: str, output: Path) -> dict[str, Path]:
    """Path of each file that is written of a slide."""
    return {
        "outlines": output / f"{name}.geojson",
        "picture": output / f"{name}.png",
        "mask": output / "masks" / f"{name}_mask.tiff",
        "probability": output / "probability" / f"{name}.tiff",
    }


def _write_slide(
    path: Path, name: str, images: Images, batches: Batches, model: Segmenter, output: Path, min_area: float
) -> tuple[list[Path], str]:
    """Write the files of a slide, and return them and what was found."""
    frame, description, files = images.frame, model.description, _slide_files(name, output)
    region, probability, pixel = assemble_plane(frame, batches, description.image_px, description.threshold, OVERLAP)
    mpp_level0 = float(frame.mpp.iloc[0]) * description.image_px / float(frame["size"].iloc[0])
    pixel_area = (pixel * mpp_level0) ** 2
    region, removed = remove_small(region, min_area / pixel_area)
    corner = (int(frame.x.min()), int(frame.y.min()))
    try:
        with open_slide(path) as slide:
            bounds = scanned_bounds(slide) or (0, 0)
            mask, shades = (fit_to_slide(plane, corner, pixel, slide.dimensions) for plane in (region, probability))
            scale = max(1.0, max(slide.dimensions) / OVERLAY_PX)
            thumbnail = Image.fromarray(read_downsampled(slide, scale))
    except openslide.OpenSlideError as error:
        raise SlideError(f"{path.name}: unreadable: {error}") from error
    # QuPath shows the scanned part of a slide alone, and counts from its corner.
    outlines = make_geojson(region, (corner[0] - bounds[0], corner[1] - bounds[1]), pixel, name)
    files["outlines"].write_text(json.dumps(outlines) + "\n")
    for key in ("mask", "probability"):
        files[key].parent.mkdir()
    Image.fromarray(mask * np.uint8(255)).save(files["mask"], "TIFF", compression="tiff_deflate")
    shades = np.rint(255 * shades).astype(np.uint8)
    pyvips.Image.new_from_array(shades).tiffsave(
        str(files["probability"]), tile=True, pyramid=True, compression="deflate"
    )
    add_legend(draw_outline(thumbnail, mask), scale * mpp_level0).save(files["picture"], "PNG")
    area = region.sum() * pixel_area / 1e6
    return list(files.values()), (
        f"{area:.2f} mm2 of tumour in {len(images)} tiles; {removed} regions below {min_area:g} um2 left out"
    )
