"""Prediction for one patient: one trained model on one slide or one MRI series."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pandas as pd
import shapely
from PIL import Image
from scipy import ndimage

from mgi.config import TileOptions
from mgi.console import log
from mgi.errors import CheckpointError, CohortError, ConfigError, SlideError
from mgi.files import atomic_write, require_file
from mgi.geojson import coordinates, polygons, tumour_feature
from mgi.inference import load_segmenter, move_to_device, read_profiles_for
from mgi.prepare.mri import SLICE_NAME, Series, import_series, mask_name
from mgi.prepare.reader import open_slide, read_downsampled, scanned_bounds
from mgi.prepare.slides import tile_slides
from mgi.tables import source_of
from mgi.train.data import Images, read_image_table
from mgi.train.validation import predict_probabilities

Batches = Iterator[tuple[np.ndarray, np.ndarray]]

LARGEST_PLANE_PX = 8192
OVERLAY_PX = 1600
TUMOUR = (213, 94, 0)


def predict(
    folder: Path,
    image: Path,
    output: Path,
    *,
    expression: Path | None = None,
    case_id: str | None = None,
    default_mpp: float | None = None,
    min_tissue: float = 0.5,
    device: str | None = None,
) -> None:
    """Segment one patient's slide or MRI series by one model, and write what can be looked at and used.

    Of a slide: `{slide}.geojson`, the outlines in level-0 pixels, which QuPath opens; `{slide}.png`, the outlines over
    a thumbnail; and `masks/{slide}_mask.tiff`, 0 or 255 over the whole slide at a whole number of level-0 pixels per
    pixel. `output` and the folder of masks in it are each a folder of annotations as tiling reads it, one for a slide.
    Of a series: `*_N_mask.tif` of each slice `*_N.tif` at its own size, as in kaggle_3m, and `{series}.png`. Masks that
    lie beside the slices are not read.

    Parameters
    ----------
    folder
        Folder of a fine-tuned model.
    image
        A slide that OpenSlide reads, or the folder of one series in the layout of kaggle_3m.
    output
        Folder to write to: not the image's own, and none that holds files of these names.
    expression, case_id
        expression.parquet, and the case in it that the image is of; without them the model sees the image alone.
    default_mpp, min_tissue
        As in `mgi.prepare.slides.tile_slides`.
    device
        `cpu`, `cuda`, or None for what this machine has.

    Raises
    ------
    MissingInputError
        If the image is not there.
    ConfigError
        If `output` would put the files among the image's own or over others, or the device is not there.
    CheckpointError
        If the model is not a segmenter, or is one of the other kind of image or of other genes.
    CohortError
        If the case has no profile in the table, or one of `expression` and `case_id` is missing.
    SlideError, MriError
        If the image cannot be used.
    """
    model = load_segmenter(folder)
    require_file(image, "image")
    if (expression is None) != (case_id is None):
        raise CohortError("a profile needs both --expression and --case-id: give the other, too, or neither")
    mpp = model.description.mpp
    of_slide = not image.is_dir()
    if of_slide and mpp is None:
        raise CheckpointError(
            f"the model in {folder} states no mpp to cut a slide's tiles at: give a model trained on slides, or the "
            "folder of one MRI series"
        )
    if mpp is not None and not of_slide:
        raise CheckpointError(f"the model in {folder} was trained on slides, of {mpp:g} mpp: give a slide")
    _refuse_to_overwrite(image, output, of_slide)
    case = case_id or source_of(image)
    profiles = read_profiles_for(model, expression, folder, {case})
    if expression is not None and model.gene_encoder is not None and case not in profiles.row:
        raise CohortError(f"{expression} has no profile of the case {case}: correct --case-id, or leave both out")
    model, place = move_to_device(model, device)
    image_px, threshold = model.description.image_px, model.description.threshold
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output) as scratch:
        table = Path(scratch) / "images.parquet"
        if of_slide:
            tiling = TileOptions(mpp=mpp, tile_px=image_px, default_mpp=default_mpp, min_tissue=min_tissue)
            tile_slides([image], [case], table, tiling)
        else:
            import_series(Series(image.name, case, image), table, image_px)
        images = read_image_table(table)
    batches = predict_probabilities(model, images, profiles, place)
    if of_slide:
        _write_slide(image, images, batches, image_px, threshold, output)
    else:
        _write_series(image, images, batches, image_px, threshold, output)


def _refuse_to_overwrite(image: Path, output: Path, of_slide: bool) -> None:
    """Raise `ConfigError` where the files would lie among the image's own, or over files that are there."""
    own = image.parent if of_slide else image
    if output.resolve() == own.resolve():
        raise ConfigError(f"--output is {output}, the folder of the image itself: name another folder")
    written = _slide_files(image, output) if of_slide else _series_files(image, output)
    if there := next((path for path in written.values() if path.exists()), None):
        raise ConfigError(f"{there} is there already and would be overwritten: name another folder with --output")


def _slide_files(image: Path, output: Path) -> dict[str, Path]:
    source = source_of(image)
    return {
        "outlines": output / f"{source}.geojson",
        "picture": output / f"{source}.png",
        "mask": output / "masks" / f"{source}_mask.tiff",
    }


def _series_files(image: Path, output: Path) -> dict[int | str, Path]:
    """Path of the mask of each slice, by its number, and of the picture."""
    numbered = ((SLICE_NAME.search(path.name), path.name) for path in image.iterdir())
    masks = {int(match[1]): output / mask_name(name) for match, name in numbered if match}
    return masks | {"picture": output / f"{image.name}.png"}


def _write_slide(path: Path, images: Images, batches: Batches, image_px: int, threshold: float, output: Path) -> None:
    source, frame, files = source_of(path), images.frame, _slide_files(path, output)
    edge = float(frame["size"].iloc[0])
    tumour, pixel = _plane(frame, batches, image_px, threshold)
    corner = (int(frame.x.min()), int(frame.y.min()))
    try:
        with open_slide(path) as slide:
            bounds = scanned_bounds(slide) or (0, 0)
            mask = _whole(tumour, corner, pixel, slide.dimensions)
            thumbnail = Image.fromarray(read_downsampled(slide, max(1.0, max(slide.dimensions) / OVERLAY_PX)))
    except openslide.OpenSlideError as problem:
        raise SlideError(f"{path.name}: unreadable: {problem}") from None
    # QuPath shows the scanned part of a slide alone, and counts from its corner.
    shown = (corner[0] - bounds[0], corner[1] - bounds[1])
    with atomic_write(files["outlines"]) as aside:
        aside.write_text(json.dumps(_geojson(tumour, shown, pixel, source)) + "\n")
    with atomic_write(files["mask"]) as aside:
        Image.fromarray(mask * np.uint8(255)).save(aside, "TIFF", compression="tiff_deflate")
    with atomic_write(files["picture"]) as aside:
        _overlaid(thumbnail, mask).save(aside, "PNG")
    area = tumour.sum() * (pixel / edge * image_px * float(frame.mpp.iloc[0]) / 1000) ** 2
    log.info("%s: %.2f mm2 of tumour in %d tiles: %s", source, area, len(images), output)


def _plane(frame: pd.DataFrame, batches: Batches, image_px: int, threshold: float) -> tuple[np.ndarray, float]:
    """Put tiles together as they come; return the plane of tumour, bool, and its level-0 pixels per pixel.

    Probabilities are averaged over squares of pixels where the plane would be larger than a picture should be. Where no
    tile was cut there is no tumour.
    """
    edge = float(frame["size"].iloc[0])
    column, row = (np.rint((frame[axis] - frame[axis].min()) / edge).to_numpy(int) for axis in "xy")
    columns, rows = int(column.max()) + 1, int(row.max()) + 1
    factor = next(
        k
        for k in range(1, image_px + 1)
        if image_px % k == 0 and (max(columns, rows) * image_px / k <= LARGEST_PLANE_PX or k == image_px)
    )
    small = image_px // factor
    plane = np.zeros((rows, small, columns, small), bool)
    for chosen, probability in batches:
        averaged = probability.reshape(-1, small, factor, small, factor).mean(axis=(2, 4))
        plane[row[chosen], :, column[chosen]] = averaged >= threshold
    return plane.reshape(rows * small, columns * small), edge / small


def _geojson(tumour: np.ndarray, corner: tuple[int, int], pixel: float, source: str) -> dict[str, Any]:
    """Outline a plane's tumour in level-0 pixels, as QuPath reads it."""
    parts = [shapely.transform(part, lambda at: np.round(at * pixel + corner, 2)) for part in polygons(tumour)]
    features = [
        tumour_feature(f"{source} {number}", {"type": "Polygon", "coordinates": coordinates(part)})
        for number, part in enumerate(parts)
    ]
    return {"type": "FeatureCollection", "features": features}


def _whole(tumour: np.ndarray, corner: tuple[int, int], pixel: float, dimensions: tuple[int, int]) -> np.ndarray:
    """Lay a plane over its slide, bool [rows, columns] at a whole number of level-0 pixels per pixel."""
    scale = max(1, round(pixel), -(-max(dimensions) // LARGEST_PLANE_PX))
    across, down = (
        np.floor(((np.arange(-(-length // scale)) + 0.5) * scale - start) / pixel).astype(np.int64)
        for length, start in zip(dimensions, corner, strict=True)
    )
    rows, columns = ((at >= 0) & (at < length) for at, length in zip((down, across), tumour.shape, strict=True))
    mask = np.zeros((len(down), len(across)), bool)
    mask[np.ix_(rows, columns)] = tumour[np.ix_(down[rows], across[columns])]
    return mask


def _write_series(path: Path, images: Images, batches: Batches, image_px: int, threshold: float, output: Path) -> None:
    files, pictures = _series_files(path, output), []
    probability = np.empty((len(images), image_px, image_px), np.float32)
    for rows, values in batches:
        probability[rows] = values
    for row, place in enumerate(images.frame.itertuples()):
        size = (int(place.size), int(place.size))
        mask = np.asarray(Image.fromarray(probability[row]).resize(size, Image.Resampling.BILINEAR)) >= threshold
        with atomic_write(files[int(place.z)]) as aside:
            Image.fromarray(mask * np.uint8(255)).save(aside, "TIFF")
        pictures.append(_overlaid(Image.fromarray(images.load(np.array([row]))[0]).resize(size), mask))
    columns = int(np.ceil(np.sqrt(len(pictures))))
    sheet = Image.new("RGB", (columns * size[0], -(-len(pictures) // columns) * size[0]))
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number % columns * size[0], number // columns * size[0]))
    with atomic_write(files["picture"]) as aside:
        sheet.save(aside, "PNG")
    tumour = int((probability >= threshold).any(axis=(1, 2)).sum())
    log.info("%s: tumour in %d of %d slices: %s", path.name, tumour, len(pictures), output)


def _overlaid(picture: Image.Image, mask: np.ndarray) -> Image.Image:
    """Outline a mask over a picture of the same field."""
    mask = np.asarray(Image.fromarray(mask).resize(picture.size, Image.Resampling.NEAREST))
    line = mask & ~ndimage.binary_erosion(mask, iterations=max(1, max(picture.size) // 500))
    picture.paste(TUMOUR, mask=Image.fromarray(line))
    return picture
