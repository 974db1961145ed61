"""Brain MRI in the public kaggle_3m layout: one folder per patient, `*_N.tif` and `*_N_mask.tif`.

The layout is that of "LGG MRI Segmentation" (Buda et al., 2019, doi 10.1016/j.compbiomed.2019.05.002): the three
channels of a slice are pre-contrast, FLAIR and post-contrast, a missing sequence being replaced by FLAIR.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mgi.errors import CohortError, MissingInputError, MriError

WHERE_TO_GET_IT = "get the set 'LGG MRI Segmentation' by M. Buda from Kaggle and give its folder kaggle_3m"
SERIES_NAME = re.compile(r"^TCGA_[A-Z0-9]{2}_[A-Z0-9]{4}_\d{8}$")
SLICE_NAME = re.compile(r"_(\d+)\.tif$")


@dataclass(frozen=True)
class Series:
    """One MRI series: `source_id` is the name of its folder, `case_id` the patient's barcode."""

    source_id: str
    case_id: str
    folder: Path


@dataclass(frozen=True)
class Volume:
    """The slices of a series in numeric order.

    Attributes
    ----------
    numbers : int array [slices]
    image : uint8 array [slices, height, width, 3]
    mask : uint8 array [slices, height, width], 0 or 1
    """

    numbers: np.ndarray
    image: np.ndarray
    mask: np.ndarray


def find_series(folder: Path | str) -> list[Series]:
    """List the series of a kaggle_3m folder by case.

    Raises
    ------
    MissingInputError
        If the folder is not there or holds no series.
    CohortError
        If two folders belong to one case.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingInputError(f"MRI folder not found: {folder}; {WHERE_TO_GET_IT}")
    found: dict[str, Series] = {}
    for entry in sorted(folder.iterdir()):
        if not (entry.is_dir() and SERIES_NAME.match(entry.name)):
            continue
        case_id = "-".join(entry.name.split("_")[:3])
        if case_id in found:
            raise CohortError(
                f"two MRI folders belong to the case {case_id}: {found[case_id].source_id} and {entry.name}; keep one"
            )
        found[case_id] = Series(entry.name, case_id, entry)
    if not found:
        raise MissingInputError(f"{folder} holds no patient folder such as TCGA_CS_4941_19960909; {WHERE_TO_GET_IT}")
    return list(found.values())


def fingerprint(folder: Path | str) -> str:
    """Tell one state of a kaggle_3m folder from another by the names, sizes and times of its files, without reading.

    Raises
    ------
    MissingInputError, CohortError
        As `find_series` does.
    """
    content = hashlib.sha256()
    for series in find_series(folder):
        for path in sorted(series.folder.glob("*.tif")):
            state = path.stat()
            content.update(f"{path.parent.name}/{path.name} {state.st_size} {state.st_mtime_ns}\n".encode())
    return content.hexdigest()


def read_series(series: Series) -> Volume:
    """Read a series.

    Raises
    ------
    MriError
        If a slice has no mask, is unreadable, or differs in shape from its mask or from the first slice.
    """
    numbered = {}
    for path in series.folder.glob("*.tif"):
        match = SLICE_NAME.search(path.name)
        if match:
            numbered[int(match[1])] = path
    if not numbered:
        raise MriError("no slice: the folder holds no file named *_N.tif")
    numbers = sorted(numbered)
    images, masks = [], []
    for number in numbers:
        image, mask = _read_slice(numbered[number])
        if images and image.shape != images[0].shape:
            raise MriError(
                f"shapes differ: {numbered[number].name} is {_size(image)}, the first slice {_size(images[0])}"
            )
        images.append(image)
        masks.append(mask)
    return Volume(np.array(numbers), np.stack(images), np.stack(masks))


def _read_slice(path: Path) -> tuple[np.ndarray, np.ndarray]:
    mask_path = path.with_name(f"{path.stem}_mask.tif")
    if not mask_path.exists():
        raise MriError(f"missing mask: {mask_path.name}")
    image, mask = _pixels(path), _pixels(mask_path)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise MriError(f"foreign image: {path.name} is not an 8-bit image of three channels")
    if mask.shape != image.shape[:2]:
        raise MriError(f"shapes differ: {mask_path.name} is {_size(mask)}, its slice {_size(image)}")
    return image, (mask > 0).astype(np.uint8)


def _pixels(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image)
    except OSError:
        raise MriError(f"unreadable image: {path.name}") from None


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]} x {pixels.shape[0]}"
