"""Patches of a slide in HDF5 as TRIDENT and CLAM have it, written and read; of a file nothing is believed.

The datasets are `features` [patches, values] and `coords` [patches, 2], x and y of each patch in pixels of level 0;
of a file that is read, either may have a first axis of length 1.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import h5py
import numpy as np

from mgi.errors import DISK_FULL, SlideError
from mgi.files import atomic_write
from mgi.names import first_few, quote

FEATURES, COORDS = "features", "coords"
# Of one slide; all are checked from the shapes, before anything is read.
MAX_PATCHES = 1 << 20
MIN_WIDTH, MAX_WIDTH = 2, 1 << 14
MAX_VALUES = 1 << 29
# A compressed chunk is unpacked whole, whatever part of it is read.
MAX_CHUNK_BYTES = 1 << 30
BLOCK_VALUES = 1 << 22
MAX_PIXEL = 2**31 - 1


def write_patches(
    path: Path, coords: np.ndarray, attributes: Mapping[str, object], features: np.ndarray | None = None
) -> None:
    """Write the coordinates of a slide's patches, and their features if given, aside and renamed.

    Parameters
    ----------
    path : Path
    coords : int array [patches, 2]
        x and y, pixels of level 0.
    attributes : mapping
        What `describe_patches` returns.
    features : float32 array [patches, width], optional
    """
    with atomic_write(path) as aside, h5py.File(aside, "w") as file:
        if features is not None:
            file.create_dataset(FEATURES, data=np.asarray(features, np.float32)).attrs["name"] = attributes["name"]
        file.create_dataset(COORDS, data=np.asarray(coords, np.int64).reshape(-1, 2)).attrs.update(attributes)


def describe_patches(
    name: str,
    tile_px: int | None,
    size: float | None,
    mpp: float | None,
    dimensions: tuple[int, int] | None = None,
    downsamples: Sequence[float] = (1.0,),
) -> dict[str, object]:
    """Return the attributes of `coords` by which TRIDENT and CLAM read a slide's patches again.

    TRIDENT's are `patch_size` (edge at the target magnification), `patch_size_level0` (at level 0), `overlap`, `name`,
    `level0_width` and `level0_height`, and `level0_magnification` and `target_magnification`: 10 / mpp, which is how
    TRIDENT takes a magnification for a pixel's size. CLAM reads `patch_size` pixels of `patch_level`, which is there
    where a level of the slide has the patches' own resolution. What is not known is left out.

    Parameters
    ----------
    name : str
        The slide's.
    tile_px : int or None
        Edge of a patch, its own pixels.
    size : float or None
        Edge of a patch, pixels of level 0.
    mpp : float or None
        Microns per pixel of a patch.
    dimensions : (int, int), optional
        Width and height of level 0.
    downsamples : sequence of float
        Pixels of level 0 per pixel of each level.
    """
    found: dict[str, object] = {"name": name, "overlap": 0}
    if dimensions is not None:
        found |= {"level0_width": dimensions[0], "level0_height": dimensions[1]}
    if size is not None:
        found["patch_size_level0"] = round(size)
    if tile_px is None or size is None:
        return found
    found["patch_size"] = tile_px
    levels = [level for level, downsample in enumerate(downsamples) if math.isclose(downsample, size / tile_px)]
    found |= {"patch_level": levels[0]} if levels else {}
    if mpp is not None:
        magnification = 10 / mpp
        found |= {"level0_magnification": magnification * size / tile_px, "target_magnification": magnification}
    return found


@dataclass(frozen=True)
class Patches:
    """The patches of a slide in an open file.

    Attributes
    ----------
    features, coords : h5py.Dataset
    patches, width : int
        Rows and columns of `features`.
    size : float or None
        Edge of a patch in pixels of level 0, None where the file does not state it.
    """

    features: h5py.Dataset
    coords: h5py.Dataset
    patches: int
    width: int
    size: float | None

    def read_coords(self) -> np.ndarray:
        """Read x and y of every patch, int32 [patches, 2].

        Raises
        ------
        SlideError
            If they are no pixels of a slide.
        """
        coords = self.coords[()].reshape(-1, 2)
        whole = np.isfinite(coords) & (coords == np.floor(coords)) & (coords >= 0) & (coords <= MAX_PIXEL)
        if not whole.all():
            odd = coords[~whole.all(axis=1)]
            raise SlideError(
                f"impossible coordinates: {len(odd)} of {len(coords)}, such as {tuple(odd[0].tolist())}; whole pixels "
                "of level 0 are needed"
            )
        return coords.astype(np.int32)

    def iterate_features(self) -> Iterator[np.ndarray]:
        """Yield the features in order, some patches at a time, float32 [patches, width]."""
        step = max(1, BLOCK_VALUES // self.width)
        if self.features.chunks:
            # Whole chunks, so that each is unpacked once.
            step = -(-step // self.features.chunks[-2]) * self.features.chunks[-2]
        for start in range(0, self.patches, step):
            rows = slice(start, min(start + step, self.patches))
            block = self.features[(0, rows)] if self.features.ndim == 3 else self.features[rows]
            with np.errstate(over="ignore"):  # what no float32 holds is counted as infinite
                yield np.asarray(block, np.float32)


@contextmanager
def open_patches(path: Path) -> Iterator[Patches]:
    """Open a file of patch features, and check that it can be what it claims before anything is read.

    Raises
    ------
    SlideError
        If it cannot be read, or holds no patch features.
    """
    if not path.is_file():
        raise SlideError("unreadable: no regular file")
    try:
        # A lock would need a file system that knows locks, and nothing is written.
        with h5py.File(path, "r", locking=False) as file:
            yield _find_patches(file)
    except Exception as error:  # HDF5 raises almost anything for a damaged file
        if isinstance(error, SlideError) or getattr(error, "errno", None) in DISK_FULL:
            raise
        reason = quote(str(error.args[0] if error.args else type(error).__name__), 200)[1:-1]
        raise SlideError(f"unreadable: no HDF5 file, or damaged: {reason}") from error


def read_header(path: Path) -> tuple[int, int]:
    """Return the number of patches and of the values of each, and read none; raises as `open_patches` does."""
    with open_patches(path) as found:
        return found.patches, found.width


def copy_features(beat: Callable[[], None], path: Path, copy: str) -> tuple[np.ndarray, float | None, dict[str, int]]:
    """Copy the usable features of a slide into a file of bare float32 values; for a process of its own.

    Returns
    -------
    int32 array [patches, 2]
        Coordinates of the patches that are copied, in the order of the file.
    float or None
        Edge of a patch, pixels of level 0.
    dict of str to int
        Patches left out, by reason.

    Raises
    ------
    SlideError
        As `open_patches`, or if no patch is usable.
    """
    kept: list[np.ndarray] = []
    dropped = {"NaN or infinite": 0, "all zero": 0}
    with open_patches(path) as found, open(copy, "wb") as file:
        coords = found.read_coords()
        for block in found.iterate_features():
            finite = np.isfinite(block).all(axis=1)
            # Of patches that an extraction which was cut short never wrote.
            zero = finite & ~block.any(axis=1)
            dropped["NaN or infinite"] += int((~finite).sum())
            dropped["all zero"] += int(zero.sum())
            kept.append(finite & ~zero)
            file.write(block[kept[-1]].tobytes())
            beat()
        usable = np.concatenate(kept)
        dropped = {reason: count for reason, count in dropped.items() if count}
        if not usable.any():
            counted = ", ".join(f"{count} are {reason}" for reason, count in dropped.items())
            raise SlideError(f"no usable features: of {found.patches} patches {counted}")
        return coords[usable], found.size, dropped


def _find_patches(file: h5py.File) -> Patches:
    features, coords = (_find_dataset(file, name) for name in (FEATURES, COORDS))
    if features.dtype.kind != "f" or coords.dtype.kind not in "iuf":
        raise SlideError(
            f"unexpected types: '{FEATURES}' holds {features.dtype} and '{COORDS}' {coords.dtype}; floating-point "
            "features and whole coordinates are needed"
        )
    patches, width = _shape_of(features)
    pairs = _shape_of(coords)
    if pairs[1] != 2:
        raise SlideError(f"no coordinates: '{COORDS}' is {coords.shape}; x and y of each patch are needed")
    if pairs[0] != patches:
        raise SlideError(f"counts differ: {patches} features and {pairs[0]} coordinates")
    if not patches:
        raise SlideError("no patches: both datasets are empty")
    if patches > MAX_PATCHES or not MIN_WIDTH <= width <= MAX_WIDTH or patches * width > MAX_VALUES:
        raise SlideError(
            f"implausible size: it claims {patches} patches of {width} values; {MIN_WIDTH} to {MAX_WIDTH} values of up "
            f"to {MAX_PATCHES} patches are read, {MAX_VALUES} in all"
        )
    if not features.id.get_storage_size():
        raise SlideError("no features: its space was reserved and never written")
    return Patches(features, coords, patches, width, _read_size(coords))


def _find_dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """Return a dataset that lies in this file."""
    link = file.get(name, getlink=True)
    if link is None:
        there = first_few(islice(file, 10)) or "nothing"
        raise SlideError(f"no dataset '{name}': it holds {there}; '{FEATURES}' and '{COORDS}' are needed")
    found = file[name] if isinstance(link, h5py.HardLink) else None
    if found is None or (isinstance(found, h5py.Dataset) and (found.external or found.is_virtual)):
        raise SlideError(f"a link: '{name}' may lie in another file; copy it into this one")
    if not isinstance(found, h5py.Dataset):
        raise SlideError(f"no dataset '{name}': it is a group")
    if found.chunks and np.prod(found.chunks, dtype=np.float64) * found.dtype.itemsize > MAX_CHUNK_BYTES:
        raise SlideError(f"implausible size: '{name}' is stored in chunks of {found.chunks}")
    stored = found.id.get_create_plist()
    filters = [stored.get_filter(number) for number in range(stored.get_nfilters())]
    if unknown := [filter_id for filter_id, *_ in filters if not h5py.h5z.filter_avail(filter_id)]:
        raise SlideError(
            f"unreadable: '{name}' is compressed by HDF5's filter {unknown[0]}, which is not here; write it with gzip"
        )
    return found


def _shape_of(dataset: h5py.Dataset) -> tuple[int, int]:
    """Return the rows and columns of a dataset, without a first axis of length 1."""
    shape: tuple[int, ...] = tuple(dataset.shape or ())
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) != 2:
        raise SlideError(
            f"no patches: '{dataset.name.lstrip('/')}' is {dataset.shape}; a row for each patch is needed, not a "
            "vector of the slide"
        )
    return int(shape[0]), int(shape[1])


def _read_size(coords: h5py.Dataset) -> float | None:
    """Read TRIDENT's attribute of the edge of a patch, where it is a number that can be one."""
    if "patch_size_level0" not in coords.attrs:
        return None
    stored = coords.attrs.get_id("patch_size_level0")
    if stored.shape not in ((), (1,)) or stored.dtype.kind not in "iuf":
        return None
    size = float(np.ravel(coords.attrs["patch_size_level0"])[0])
    return size if 0 < size <= MAX_PIXEL else None
