"""One trained model on images it has never seen: external validation, and prediction for one patient."""

import json
import tempfile
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import shapely
import torch
from PIL import Image
from scipy import ndimage

from mgi.acquire.mri import Series, mask_name
from mgi.console import log
from mgi.errors import CheckpointError, CohortError, ImageTableError
from mgi.evaluate.segmentation import stitch, summarise
from mgi.files import existing, written_aside
from mgi.geojson import outline
from mgi.model.segmenter import Segmenter
from mgi.prepare.images import import_series, source_of
from mgi.prepare.slides import tile_slides
from mgi.train import checkpoint
from mgi.train.data import NO_PROFILES, Images, Profiles, read_image_table, read_profiles
from mgi.train.inference import predict_probabilities, write_predictions
from mgi.train.loop import prepare_torch

LARGEST_PLANE_PX = 8192
OVERLAY_PX = 1600
TUMOUR = (213, 94, 0)


def evaluate_table(
    folder: Path,
    images: Path,
    expression: Path | None,
    output: Path,
    bootstrap_samples: int,
    device: str | None = None,
) -> None:
    """Evaluate one model on any table of labelled images: predictions.parquet and summary.json in `output`.

    `device` is `cpu`, `cuda`, or None for what this machine has.

    Raises
    ------
    CheckpointError
        If the model is not a segmenter, or was trained on genes in another choice or unit, or on images of another size
        or mpp.
    ImageTableError
        If the table holds no labelled image.
    """
    model = _segmenter(folder)
    config = model.config
    table = read_image_table(images, labelled=True)
    profiles = _profiles(model, expression, folder, set(table.frame.case_id))
    if not len(table):
        raise ImageTableError(f"{images} holds no image with a mask, so there is nothing to evaluate against")
    checkpoint.check_images(config, table.image_px, table.mpp, folder, images)
    model, device = _on(device, model)
    write_predictions(model, [table], profiles, 0, config["threshold"], device, output)
    summarise([output / "predictions.parquet"], output / "summary.json", bootstrap_samples)


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

    Of a slide: `{slide}_mask.tiff`, 0 or 255 over the whole slide at a whole number of level-0 pixels per pixel, which
    `mgi slide tile` reads as an annotation; `{slide}.geojson`, the outlines in level-0 pixels, which QuPath opens; and
    `{slide}.png`, the outlines over a thumbnail. Of a series: `*_N_mask.tif` of each slice at its own size, as in
    kaggle_3m, and `{series}.png`. Masks of a series that are there already are not read.

    Parameters
    ----------
    folder
        Folder of a fine-tuned model.
    image
        A slide that OpenSlide reads, or the folder of one series in the layout of kaggle_3m.
    output
        Folder to write to.
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
    CheckpointError
        If the model is not a segmenter, or is one of the other kind of image or of other genes.
    CohortError
        If the case has no profile in the table, or one of `expression` and `case_id` is missing.
    SlideError, MriError
        If the image cannot be used.
    """
    model = _segmenter(folder)
    existing(image, "image")
    if (expression is None) != (case_id is None):
        raise CohortError("a profile needs both --expression and --case-id: give the other, too, or neither")
    of_slides = model.config["mpp"] is not None
    if image.is_dir() == of_slides:
        kinds = ("a slide", "the folder of one MRI series")
        raise CheckpointError(
            f"the model in {folder} was trained on {'slides' if of_slides else 'MRI'}: give {kinds[not of_slides]}"
        )
    case = case_id or source_of(image)
    profiles = _profiles(model, expression, folder, {case})
    if expression is not None and model.gene_encoder is not None and case not in profiles.row:
        raise CohortError(f"{expression} has no profile of the case {case}: correct --case-id, or leave both out")
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output) as scratch:
        table = Path(scratch) / "images.parquet"
        if of_slides:
            tile_slides(
                [image], [case], table, mpp=model.config["mpp"], tile_px=model.config["image_px"],
                default_mpp=default_mpp, min_tissue=min_tissue,
            )  # fmt: skip
        else:
            import_series(Series(image.name, case, image), table, model.config["image_px"])
        images = read_image_table(table)
    model, place = _on(device, model)
    probability = np.empty((len(images), *[model.config["image_px"]] * 2), np.float32)
    for rows, values in predict_probabilities(model, images, profiles, place):
        probability[rows] = values
    write = _write_slide if of_slides else _write_series
    write(image, images, probability, model.config["threshold"], output)


def _segmenter(folder: Path) -> Segmenter:
    model = checkpoint.load(folder)
    if not isinstance(model, Segmenter):
        raise CheckpointError(f"{folder} holds a pre-trained model; give a fine-tuned one")
    return model


def _on(device: str | None, model: Segmenter) -> tuple[Segmenter, torch.device]:
    options = model.config["options"]
    place = prepare_torch(options["threads"], device, options["seed"], model.gene_encoder is not None)
    return model.to(place, memory_format=torch.channels_last), place


def _write_slide(path: Path, images: Images, probability: np.ndarray, threshold: float, output: Path) -> None:
    source, frame = source_of(path), images.frame
    edge = float(frame["size"].iloc[0])
    plane, pixel = _plane(frame, probability, edge)
    tumour = plane >= threshold
    corner = (int(frame.x.min()), int(frame.y.min()))
    with written_aside(output / f"{source}.geojson") as aside:
        aside.write_text(json.dumps(_geojson(tumour, corner, pixel, source)) + "\n")
    with openslide.OpenSlide(path) as slide:
        mask = _whole(tumour, corner, pixel, slide.dimensions)
        thumbnail = slide.get_thumbnail((OVERLAY_PX, OVERLAY_PX)).convert("RGB")
    with written_aside(output / f"{source}_mask.tiff") as aside:
        Image.fromarray(mask * np.uint8(255)).save(aside, "TIFF", compression="tiff_deflate")
    with written_aside(output / f"{source}.png") as aside:
        _overlaid(thumbnail, mask).save(aside, "PNG")
    area = tumour.sum() * (pixel / edge * probability.shape[1] * float(frame.mpp.iloc[0]) / 1000) ** 2
    log.info("%s: %.2f mm2 of tumour in %d tiles: %s", source, area, len(images), output)


def _plane(frame: Any, probability: np.ndarray, edge: float) -> tuple[np.ndarray, float]:
    """Put tiles together; return the plane, 0 where no tile was cut, and its level-0 pixels per pixel.

    Tiles are averaged over squares of pixels where the plane would be larger than a picture should be.
    """
    tile_px = probability.shape[1]
    span = max(np.ptp(frame.x), np.ptp(frame.y)) / edge + 1
    factor = next(
        k
        for k in range(1, tile_px + 1)
        if tile_px % k == 0 and (span * tile_px / k <= LARGEST_PLANE_PX or k == tile_px)
    )
    small = probability.reshape(len(frame), tile_px // factor, factor, tile_px // factor, factor).mean(axis=(2, 4))
    return stitch(small, frame.x.to_numpy(), frame.y.to_numpy(), edge), edge * factor / tile_px


def _geojson(tumour: np.ndarray, corner: tuple[int, int], pixel: float, source: str) -> dict[str, Any]:
    """Outline a plane's tumour in level-0 pixels, as QuPath reads it."""
    shapes = shapely.get_parts(shapely.from_geojson(json.dumps(outline(tumour, 1))))
    return {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{source} {number}")),
                "geometry": json.loads(shapely.to_geojson(shapely.transform(shape, lambda at: at * pixel + corner))),
                "properties": {"objectType": "annotation", "classification": {"name": "Tumor", "color": [200, 0, 0]}},
            }
            for number, shape in enumerate(shapes)
        ],
    }


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


def _write_series(path: Path, images: Images, probability: np.ndarray, threshold: float, output: Path) -> None:
    pictures = []
    for row, place in enumerate(images.frame.itertuples()):
        size = (int(place.size), int(place.size))
        mask = np.asarray(Image.fromarray(probability[row]).resize(size, Image.Resampling.BILINEAR)) >= threshold
        with written_aside(output / mask_name(f"{path.name}_{place.z}.tif")) as aside:
            Image.fromarray(mask * np.uint8(255)).save(aside, "TIFF")
        pictures.append(_overlaid(Image.fromarray(images.load(np.array([row]))[0]).resize(size), mask))
    columns = int(np.ceil(np.sqrt(len(pictures))))
    sheet = Image.new("RGB", (columns * size[0], -(-len(pictures) // columns) * size[0]))
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number % columns * size[0], number // columns * size[0]))
    with written_aside(output / f"{path.name}.png") as aside:
        sheet.save(aside, "PNG")
    tumour = int((probability >= threshold).any(axis=(1, 2)).sum())
    log.info("%s: tumour in %d of %d slices: %s", path.name, tumour, len(pictures), output)


def _overlaid(picture: Image.Image, mask: np.ndarray) -> Image.Image:
    """Outline a mask over a picture of the same field."""
    mask = np.asarray(Image.fromarray(mask).resize(picture.size, Image.Resampling.NEAREST))
    line = mask & ~ndimage.binary_erosion(mask, iterations=max(1, max(picture.size) // 500))
    picture.paste(TUMOUR, mask=Image.fromarray(line))
    return picture


def _profiles(model: Segmenter, expression: Path | None, folder: Path, cases: set[str]) -> Profiles:
    """Read the cases' profiles for a model with genes; without a table every case counts as having none."""
    if model.gene_encoder is None:
        return NO_PROFILES
    genes = model.config["genes"]
    if expression is None:
        log.warning("no --expression: the model in %s sees the images alone", folder)
        return Profiles(torch.zeros(1, len(genes)), {}, genes)
    profiles = read_profiles(expression, cases)
    checkpoint.check_expression(model.config, profiles, folder)
    return profiles
