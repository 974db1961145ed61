"""Brain MRI in the public kaggle_3m layout: one folder per patient, `*_N.tif` and `*_N_mask.tif`, unpacked or in a zip.

The layout is that of "LGG MRI Segmentation" (Buda et al., 2019, doi 10.1016/j.compbiomed.2019.05.002): the three
channels of a slice are pre-contrast, FLAIR and post-contrast, a missing sequence being replaced by FLAIR.
"""

import hashlib
import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mgi.codecs import encode_mask, encode_png
from mgi.console import log, progress
from mgi.errors import CohortError, MissingInputError, MriError
from mgi.tables import image_table, write_sources

WHERE_TO_GET_IT = (
    "get the set 'LGG MRI Segmentation' by M. Buda from Kaggle, "
    "https://www.kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation (a free account is needed), and give the zip or "
    "the folder kaggle_3m in it"
)
SERIES_NAME = re.compile(r"^TCGA_[A-Z0-9]{2}_[A-Z0-9]{4}_\d{8}$")
PERCENTILES = (1.0, 99.0)
FOREGROUND_SHARE = 0.1
SLICE_NAME = re.compile(r"_(\d+)\.tif$")

Place = Path | zipfile.Path


@dataclass(frozen=True)
class Series:
    """One MRI series: `source_id` is the name of its folder, `case_id` the patient's barcode."""

    source_id: str
    case_id: str
    folder: Place


@dataclass(frozen=True)
class Volume:
    """The slices of a series in numeric order.

    Attributes
    ----------
    numbers : int array [slices]
    image : uint8 array [slices, height, width, 3]
    mask : uint8 array [slices, height, width], 0 or 1; None where no slice has one
    """

    numbers: np.ndarray
    image: np.ndarray
    mask: np.ndarray | None


def find_series(folder: Path | str) -> list[Series]:
    """List the series of a kaggle_3m folder, or of the zip that holds one, by case.

    Raises
    ------
    MissingInputError
        If it is not there, is neither, or holds no series.
    CohortError
        If two folders belong to one case.
    """
    folder = Path(folder)
    if not folder.exists():
        raise MissingInputError(f"MRI folder not found: {folder}; {WHERE_TO_GET_IT}")
    found: dict[str, Series] = {}
    for entry in _patients(folder):
        case_id = "-".join(entry.name.split("_")[:3])
        if case_id in found:
            raise CohortError(
                f"two MRI folders belong to the case {case_id}: {found[case_id].source_id} and {entry.name}; keep one"
            )
        found[case_id] = Series(entry.name, case_id, entry)
    return list(found.values())


def _patients(folder: Path) -> list[Place]:
    """List the folders of patients, by name."""
    try:
        top = folder if folder.is_dir() else zipfile.Path(folder)
    except zipfile.BadZipFile:
        raise MissingInputError(f"{folder} is neither a folder nor a whole zip; {WHERE_TO_GET_IT}") from None
    # The published archive holds them twice.
    for root in (top, top / "kaggle_3m", top / "lgg-mri-segmentation" / "kaggle_3m"):
        entries = root.iterdir() if root.is_dir() else ()
        if patients := [entry for entry in entries if entry.is_dir() and SERIES_NAME.match(entry.name)]:
            return sorted(patients, key=lambda entry: entry.name)
    raise MissingInputError(f"{folder} holds no patient folder such as TCGA_CS_4941_19960909; {WHERE_TO_GET_IT}")


def fingerprint(folder: Path | str) -> str:
    """Tell one state of a kaggle_3m folder or zip from another by names, sizes and times of files, without reading.

    Raises
    ------
    MissingInputError, CohortError
        As `find_series` does.
    """
    top, series = Path(folder), find_series(folder)
    files = [top] if top.is_file() else [path for one in series for path in sorted(one.folder.glob("*.tif"))]
    content = hashlib.sha256()
    for path in files:
        state = path.stat()
        content.update(f"{path.relative_to(top)} {state.st_size} {state.st_mtime_ns}\n".encode())
    return content.hexdigest()


def read_series(series: Series, labelled: bool = True) -> Volume:
    """Read a series; unless `labelled`, whatever masks it has are left alone.

    Raises
    ------
    MriError
        If a slice is unreadable or differs in shape from the first, or, in a labelled series, has no mask or one of
        another shape.
    """
    files = {path.name: path for path in series.folder.iterdir()}
    numbered = {int(match[1]): files[name] for name in files if (match := SLICE_NAME.search(name))}
    if not numbered:
        raise MriError("no slice: the folder holds no file named *_N.tif")
    numbers = sorted(numbered)
    images, masks = [], []
    for number in numbers:
        image = _read_slice(numbered[number])
        if images and image.shape != images[0].shape:
            raise MriError(
                f"shapes differ: {numbered[number].name} is {_size(image)}, the first slice {_size(images[0])}"
            )
        images.append(image)
        if labelled:
            masks.append(_read_mask(numbered[number], files, image))
    return Volume(np.array(numbers), np.stack(images), np.stack(masks) if labelled else None)


def mask_name(slice_name: str) -> str:
    """Name the mask of a slice: `*_N_mask.tif` of `*_N.tif`."""
    return f"{slice_name.removesuffix('.tif')}_mask.tif"


def _read_slice(path: Place) -> np.ndarray:
    image = _pixels(path)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise MriError(f"foreign image: {path.name} is not an 8-bit image of three channels")
    return image


def _read_mask(path: Place, files: dict[str, Place], image: np.ndarray) -> np.ndarray:
    name = mask_name(path.name)
    if name not in files:
        raise MriError(f"missing mask: {name}")
    mask = _pixels(files[name])
    if mask.shape != image.shape[:2]:
        raise MriError(f"shapes differ: {name} is {_size(mask)}, its slice {_size(image)}")
    return (mask > 0).astype(np.uint8)


def _pixels(path: Place) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            return np.asarray(image)
    except (OSError, RuntimeError, zipfile.BadZipFile, zlib.error):  # a RuntimeError: encrypted, or packed unusually
        raise MriError(f"unreadable image: {path.name}") from None


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]} x {pixels.shape[0]}"


def import_mri(folder: Path | str, output: Path | str, sources: Path | str | None, image_px: int) -> None:
    """Import every slice of a kaggle_3m folder or zip, resampled to `image_px` and normalised per patient.

    Slices are resampled with an antialiasing window, masks by area average and a threshold of one half. With
    `sources`, a series that cannot be used is recorded there as skipped and the others go on.

    Raises
    ------
    MissingInputError
        If it is not there or holds no patient.
    CohortError
        If two folders belong to one case.
    MriError
        If a series cannot be used and `sources` is None.
    """
    output = Path(output)
    rows = []
    with image_table(output) as add:
        for series in progress(find_series(folder), "MRI series"):
            record = {"source_id": series.source_id, "case_id": series.case_id, "table": output.stem}
            try:
                images = list(_series_rows(series, image_px))
            except MriError as problem:
                if sources is None:
                    raise MriError(
                        f"{series.source_id}: {problem}; repair it, or give --sources to record it and go on"
                    ) from None
                log.warning("skipped %s: %s", series.source_id, problem)
                rows.append(record | {"status": "skipped", "reason": str(problem), "n_images": 0, "labelled": False})
                continue
            for image in images:
                add(image)
            used = {"status": "ok", "n_images": len(images), "labelled": True, "untiled_tumour_px": 0}
            rows.append(record | used)
    if sources is not None:
        write_sources(rows, sources)
    log.info("%d slices of %d series in %s", sum(row["n_images"] for row in rows), len(rows), output)


def import_series(series: Series, output: Path | str, image_px: int) -> None:
    """Import the slices of one series without masks, as `import_mri` does: to be segmented.

    Raises
    ------
    MriError
        If the series cannot be used.
    """
    with image_table(output) as add:
        for image in _series_rows(series, image_px, labelled=False):
            add(image)


def _series_rows(series: Series, image_px: int, labelled: bool = True) -> Iterator[dict[str, Any]]:
    volume = read_series(series, labelled)
    height, width = volume.image.shape[1:3]
    if height != width:
        raise MriError(f"not square: slices are {width} x {height}")
    image, foreground = _normalised(volume)
    for k, number in enumerate(volume.numbers):
        yield {
            "case_id": series.case_id,
            "source_id": series.source_id,
            "x": 0,
            "y": 0,
            "z": int(number),
            "size": width,
            "mpp": None,
            "tissue_fraction": float(foreground[k].mean()),
            "image": encode_png(_resized(image[k], image_px, Image.Resampling.HAMMING)),
            "mask": None if volume.mask is None else _resized_mask(volume.mask[k], image_px),
        }


def _normalised(volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Map the 1st to 99th percentile of each channel's foreground, over the whole volume, to 0..255.

    The air around the head is not zero in every scanner's images, so the foreground is where the brightest channel
    exceeds a tenth of its own 99th percentile.

    Returns
    -------
    image : uint8 array [slices, height, width, 3]
    foreground : bool array [slices, height, width]
    """
    brightest = volume.image.max(axis=-1)
    foreground = brightest > FOREGROUND_SHARE * np.percentile(brightest, PERCENTILES[1])
    if not foreground.any():
        raise MriError("empty: no voxel is brighter than the background")
    low, high = np.percentile(volume.image[foreground], PERCENTILES, axis=0)
    # A channel has 256 values only: a table per channel does the arithmetic once for the whole volume.
    levels = (np.arange(256)[:, None] - low) / np.maximum(high - low, 1)
    table = np.rint(np.clip(levels, 0, 1) * 255).astype(np.uint8)
    return np.stack([table[volume.image[..., channel], channel] for channel in range(3)], axis=-1), foreground


def _resized_mask(mask: np.ndarray, size_px: int) -> bytes:
    return encode_mask(_resized(mask * np.uint8(255), size_px, Image.Resampling.BOX) >= 128)


def _resized(pixels: np.ndarray, size_px: int, resampling: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((size_px, size_px), resampling))
