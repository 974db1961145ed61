"""Brain MRI in the public kaggle_3m layout: one folder per patient, `*_N.tif` and `*_N_mask.tif`, unpacked or in a zip.

The layout is that of "LGG MRI Segmentation" (Buda et al., 2019, doi 10.1016/j.compbiomed.2019.05.002): the three
channels of a slice are pre-contrast, FLAIR and post-contrast, a missing sequence being replaced by FLAIR.
"""

import hashlib
import io
import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mgi.errors import CohortError, MissingInputError, MriError

WHERE_TO_GET_IT = (
    "get the set 'LGG MRI Segmentation' by M. Buda from Kaggle, "
    "https://www.kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation (a free account is needed), and give the zip or "
    "the folder kaggle_3m in it"
)
SERIES_NAME = re.compile(r"^TCGA_[A-Z0-9]{2}_[A-Z0-9]{4}_\d{8}$")
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
