"""What is written of a segmented MRI series: masks and probabilities on its own grid, and a picture of every slice."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from mgi.config import PredictOptions
from mgi.evaluate.overlay import add_legend, draw_number, draw_outline
from mgi.evaluate.regions import remove_small
from mgi.prepare.kaggle import SLICE_NAME, mask_name
from mgi.prepare.nifti import write_planes
from mgi.prepare.series import Series
from mgi.train.data import Images
from mgi.train.decision import Decision
from mgi.train.validation import Batches

MAX_SHEET_PX = 8000


def list_series_files(series: Series, output: Path) -> dict[int | str, Path]:
    """Return the path of each file that is written of a series; of slices, each mask by the slice's number."""
    files: dict[int | str, Path] = {"picture": output / f"{series.source_id}.png"}
    if series.sequences:
        names = {"mask": "seg.nii.gz", "probability": "probability.nii.gz"}
        return files | {key: output / f"{series.source_id}_{name}" for key, name in names.items()}
    numbered = ((SLICE_NAME.search(path.name), path.name) for path in series.folder.iterdir())
    files |= {int(match[1]): output / mask_name(name) for match, name in numbered if match}
    return files | {"probability": output / f"{series.source_id}_probability.tiff"}


def place_slice(pixels: np.ndarray, place: Sequence[int], shape: tuple[int, int]) -> np.ndarray:
    """Return a stored image at the place in its slice that it was cut from; elsewhere there is 0.

    Parameters
    ----------
    pixels : float32 array [P, P], or uint8 array [P, P, 3]
    place
        x, y and size: left, top and edge of the square that was cut, in pixels of the slice; it may reach beyond it.
    shape
        Height and width of the slice.

    Returns
    -------
    array [height, width, ...], of the type of `pixels`
    """
    x, y, size = place
    stored = Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR)
    whole = Image.new(stored.mode, (shape[1], shape[0]))
    whole.paste(stored, (x, y))
    return np.asarray(whole)


def write_series(
    series: Series,
    shape: tuple[int, int],
    images: Images,
    batches: Batches,
    decision: Decision,
    output: Path,
    options: PredictOptions,
) -> tuple[list[Path], str]:
    """Write the files of a series, and return them and what was found.

    Parameters
    ----------
    shape
        Height and width of its slices.
    images, batches
        The images that were cut from it, in the order of its slices; their rows and probabilities [rows, P, P].
    decision
        What is tumour, on the series' own grid.
    options
        The first of its `channels` is the NIfTI sequence whose grid and orientation the volumes get.
    """
    files, places = list_series_files(series, output), images.frame[["x", "y", "size"]].astype(int).to_numpy().tolist()
    probability = np.empty((len(images), *shape), np.float32)
    for rows, values in batches:
        for row, stored in zip(rows, values, strict=True):
            probability[row] = place_slice(stored, places[row], shape)
    masks, removed = remove_small(decision.apply(probability, images.has_series), options.min_voxels)
    if series.sequences:
        reference = Path(str(series.sequences[options.channels[0]]))
        write_planes(masks.astype(np.uint8), reference, files["mask"])
        write_planes(probability, reference, files["probability"])
    else:
        for number, mask in zip(images.frame.z, masks, strict=True):
            Image.fromarray(mask * np.uint8(255)).save(files[int(number)], "TIFF")
        tifffile.imwrite(files["probability"], probability, photometric="minisblack", compression="deflate")
    _draw_sheet(images, places, masks).save(files["picture"], "PNG")
    return list(files.values()), (
        f"tumour in {masks.any(axis=(1, 2)).sum()} of {len(masks)} slices, {masks.sum()} voxels; {removed} regions "
        f"below {options.min_voxels} voxels left out"
    )


def _draw_sheet(images: Images, places: list[list[int]], masks: np.ndarray) -> Image.Image:
    """Draw every slice with its number and the outline of its mask, row by row."""
    columns, (height, width) = int(np.ceil(np.sqrt(len(masks)))), masks.shape[1:]
    scale = min(1.0, MAX_SHEET_PX / (columns * max(height, width)))
    small = max(1, round(width * scale)), max(1, round(height * scale))
    sheet = Image.new("RGB", (columns * small[0], -(-len(masks) // columns) * small[1]))
    for row, (mask, number) in enumerate(zip(masks, images.frame.z, strict=True)):
        pixels = place_slice(images.load(np.array([row]))[0], places[row], (height, width))
        picture = draw_number(draw_outline(Image.fromarray(pixels).resize(small), mask), int(number))
        sheet.paste(picture, (row % columns * small[0], row // columns * small[1]))
    return add_legend(sheet)
