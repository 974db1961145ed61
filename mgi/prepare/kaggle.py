"""Brain MRI in the layout of kaggle_3m: one folder per patient, slices `*_N.tif` and their masks `*_N_mask.tif`.

The layout is that of "LGG MRI Segmentation" (Buda et al., 2019, doi 10.1016/j.compbiomed.2019.05.002): the three
channels of a slice are pre-contrast, FLAIR and post-contrast, a missing sequence being replaced by FLAIR.
"""

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mgi.console import log
from mgi.errors import MriError
from mgi.files import is_system_file
from mgi.names import first_few
from mgi.prepare.rasters import RasterError, Readable, read_samples, to_plane

SLICE_NAME = re.compile(r"_(\d+)\.tiff?$", re.IGNORECASE)
MASK_NAME = re.compile(r"_mask\.tiff?$", re.IGNORECASE)
MAX_SLICE_BYTES = 64 * 2**20

Place = Path | zipfile.Path


@dataclass(frozen=True)
class Volume:
    """The slices of a series in numeric order.

    Attributes
    ----------
    numbers : int array [slices]
    image : uint8 array [slices, height, width, 3]
    mask : uint8 array [slices, height, width], 0 or 1; None where no slice has one
    unused : list of str
        Files of the folder that are neither slice nor mask.
    """

    numbers: np.ndarray
    image: np.ndarray
    mask: np.ndarray | None
    unused: list[str]


def mask_name(slice_name: str) -> str:
    """Return the name of a slice's mask: `*_N_mask.tif` of `*_N.tif`."""
    stem, _, suffix = slice_name.rpartition(".")
    return f"{stem}_mask.{suffix}"


def is_slice(name: str) -> bool:
    """Return whether a file of this name is a slice of a series."""
    return SLICE_NAME.search(name) is not None and not is_system_file(name)


def read_volume(folder: Place, labelled: bool = True) -> Volume:
    """Read the slices of a folder; unless `labelled`, whatever masks it has are left alone.

    Raises
    ------
    MriError
        If a slice is unreadable or differs in shape from the first, two have one number, or, in a labelled series, a
        slice has no mask or one of another shape or with more than two values.
    """
    files = {path.name: path for path in folder.iterdir() if not is_system_file(path.name)}
    numbered: dict[int, Place] = {}
    for name, path in sorted(files.items()):
        if match := SLICE_NAME.search(name):
            other = numbered.setdefault(int(match[1]), path)
            if other is not path:
                raise MriError(f"two slices have the number {match[1]}: {other.name} and {name}; keep one")
    if not numbered:
        raise MriError("no slice: the folder holds no file named *_N.tif")
    if missing := sorted(set(range(min(numbered), max(numbered))) - set(numbered)):
        log.warning("%s lacks %d slices between others, by their numbers: %s", folder.name, len(missing),
                    first_few(missing))  # fmt: skip
    images: list[np.ndarray] = []
    masks = []
    tumour: set[float] = set()
    for number in sorted(numbered):
        image = _read_slice(numbered[number])
        if images and image.shape != images[0].shape:
            raise MriError(
                f"shapes differ: {numbered[number].name} is {_size(image)}, the first slice {_size(images[0])}"
            )
        images.append(image)
        if labelled:
            mask = _read_mask(numbered[number], files, image)
            tumour |= set(np.unique(mask[mask != 0]).tolist())
            masks.append((mask != 0).astype(np.uint8))
    if len(tumour) > 1:
        shown = first_few(f"{value:g}" for value in sorted(tumour))
        raise MriError(f"not two values: beside 0 its masks have {shown}; save masks of 0 and 255")
    unused = [name for name in files if not SLICE_NAME.search(name) and not MASK_NAME.search(name)]
    stack = np.stack(masks) if labelled else None
    return Volume(np.array(sorted(numbered)), np.stack(images), stack, sorted(unused))


def _read_slice(path: Place) -> np.ndarray:
    image = _read(path)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise MriError(f"foreign image: {path.name} is not an 8-bit image of three channels")
    return image


def _read_mask(path: Place, files: Mapping[str, Place], image: np.ndarray) -> np.ndarray:
    name = mask_name(path.name)
    if name not in files:
        raise MriError(f"missing mask: {name}")
    try:
        mask = to_plane(_read(files[name]))
    except RasterError as error:
        raise MriError(f"not a mask: {name}: {error}") from error
    if mask.shape != image.shape[:2]:
        raise MriError(f"shapes differ: {name} is {_size(mask)}, its slice {_size(image)}")
    values = np.unique(mask)
    if len(values) > 2 or (len(values) == 2 and values[0] != 0) or values[-1] != values[-1]:
        shown = first_few(f"{value:g}" for value in values.astype(float))
        raise MriError(f"not two values: {name} has {shown}; save a mask of 0 and 255")
    return mask


def _read(path: Readable) -> np.ndarray:
    try:
        return read_samples(path, MAX_SLICE_BYTES)
    except RasterError as error:
        raise MriError(f"unreadable image: {path.name}: {error}") from error


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]} x {pixels.shape[0]}"
