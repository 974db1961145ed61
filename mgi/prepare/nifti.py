"""Brain MRI as NIfTI in the layout of BraTS and TCIA: one file per sequence and one of labels, named after the case.

A file is `{series}_{sequence}.nii.gz`, with `-` for `_` or `.nii` as well; sequences are told by their names, of which
each has several (`SEQUENCES`). So `BraTS20_Training_001_t1ce.nii.gz` and `BraTS-GLI-00000-000-t1c.nii.gz`.
"""

import io
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mgi.console import log
from mgi.errors import CohortError, MriError
from mgi.names import first_few
from mgi.prepare.rasters import Readable, read_limited

SEQUENCES = {
    "t1": ("t1", "t1n", "t1w"),
    "t1ce": ("t1ce", "t1c", "t1gd", "t1post"),
    "t2": ("t2", "t2w"),
    "flair": ("flair", "t2f", "t2flair"),
}
LABELS = (
    "seg", "segm", "label", "labels", "segmentation", "tumor_segmentation", "glistrboost",
    "glistrboost_manuallycorrected",
)  # fmt: skip
NAMES = {name: key for key, names in {**SEQUENCES, "seg": LABELS}.items() for name in names}
# The longest names first: `_t1ce` ends no `_t1`, but `_glistrboost_manuallycorrected` holds a separator.
FILE_NAME = re.compile(
    rf"^(.+?)[_-]({'|'.join(sorted(NAMES, key=len, reverse=True))})\.nii(\.gz)?$",
    re.IGNORECASE,
)
# Unpacked, of one file: a volume of 512 x 512 x 512 in single precision, twice.
MAX_BYTES = 2**30
# Of NIfTI-2, the longer of the two, with its flag of extensions.
HEADER_BYTES = 544
# What may follow the voxels.
TRAILING_BYTES = 2**20
GRID_TOLERANCE_MM = 0.01
MAX_LABELS = 64


@dataclass(frozen=True)
class Scan:
    """One series in canonical orientation, cut along the axis from foot to head.

    Attributes
    ----------
    image : float32 array [slices, height, width, channels]
        The patient's right is at the left of a slice, the front at its top.
    labels : int64 array [slices, height, width], or None
    spacing_mm : (float, float, float)
        Width and height of a pixel, and distance of slices.
    """

    image: np.ndarray
    labels: np.ndarray | None
    spacing_mm: tuple[float, float, float]


def group_files(files: Iterable[Readable]) -> tuple[dict[str, dict[str, Readable]], list[str]]:
    """Group NIfTI files by series, {series: {sequence or "seg": file}}; return also the names of those not understood.

    Raises
    ------
    CohortError
        If a series has two files of one sequence.
    """
    series: dict[str, dict[str, Readable]] = {}
    unknown = []
    for file in files:
        match = FILE_NAME.match(file.name)
        if match is None:
            unknown.append(file.name)
            continue
        key = NAMES[match[2].lower()]
        held = series.setdefault(match[1], {})
        if key in held:
            raise CohortError(
                f"the series {match[1]} has two files of {key}: {held[key].name} and {file.name}; keep one"
            )
        held[key] = file
    return series, unknown


def read_scan(files: dict[str, Readable], channels: Sequence[str], labelled: bool) -> Scan:
    """Read the sequences of a series as channels, and its labels.

    Raises
    ------
    MriError
        If a sequence or the labels are missing, unreadable or not of one grid.
    """
    images = _open_files(files, channels, labelled)
    image = np.stack([_slices(_read_voxels(images[key], files[key].name)) for key in channels], axis=-1)
    width, height, depth = _voxel_mm(images[channels[0]].affine)
    labels = _read_labels(images["seg"], files["seg"].name) if labelled else None
    return Scan(image, labels, (width, height, depth))


def inspect_labels(files: dict[str, Readable], channels: Sequence[str]) -> np.ndarray:
    """Return the values that a series' labels have, int64 [values], ascending.

    All files are unpacked and their grids compared, but only the values of the labels are looked at.

    Raises
    ------
    MriError
        As `read_scan` does.
    """
    images = _open_files(files, channels, labelled=True)
    return np.unique(_read_labels(images["seg"], files["seg"].name))


def _open_files(files: dict[str, Readable], channels: Sequence[str], labelled: bool) -> dict[str, Any]:
    """Return the images of a series by sequence, of one grid and in canonical orientation."""
    needed = [*channels, "seg"] if labelled else channels
    if missing := [key for key in needed if key not in files]:
        raise MriError(f"missing sequence: no file of {', '.join(missing)}; it has {', '.join(sorted(files))}")
    images = {key: _open(files[key]) for key in dict.fromkeys(needed)}
    first = images[channels[0]]
    for key, image in images.items():
        if image.shape != first.shape or np.abs(image.affine - first.affine).max() > GRID_TOLERANCE_MM:
            raise MriError(
                f"grids differ: {files[key].name} has {image.shape} voxels at {_origin(image.affine)} mm, "
                f"{files[channels[0]].name} {first.shape} at {_origin(first.affine)}; register them to one grid"
            )
    return images


def write_planes(planes: np.ndarray, reference: Path, path: Path) -> None:
    """Write planes as `read_scan` cuts them, [slices, height, width], on the grid of a NIfTI file, voxel for voxel."""
    import nibabel as nib

    image: Any = nib.load(reference)
    image = image.slicer[..., 0] if len(image.shape) > 3 else image
    volume = planes.transpose(2, 1, 0)[::-1, ::-1]
    turn = nib.orientations.ornt_transform(np.array([[0, 1], [1, 1], [2, 1]]), nib.io_orientation(image.affine))
    turned = nib.orientations.apply_orientation(volume, turn)
    written = nib.Nifti1Image(np.ascontiguousarray(turned), image.affine)
    written.header.set_xyzt_units(*image.header.get_xyzt_units())
    written.set_qform(image.affine, int(image.header["qform_code"]))
    written.set_sform(image.affine, int(image.header["sform_code"]))
    nib.save(written, path)


def _voxel_mm(affine: np.ndarray) -> tuple[float, float, float]:
    """Return the edges of a voxel."""
    right, front, head = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return right, front, head


def _origin(affine: np.ndarray) -> str:
    return ", ".join(f"{value:g}" for value in affine[:3, 3])


def _slices(volume: np.ndarray) -> np.ndarray:
    """Turn [right, front, head] into [head, rows from the front, columns from the right]."""
    return volume[::-1, ::-1].transpose(2, 1, 0)


def _open(file: Readable) -> Any:
    """Return a nibabel image, [right, front, head], unpacked; its voxels are read here only to be turned."""
    # The environment that plans a run lists series and has no nibabel.
    import nibabel as nib

    try:
        content = read_limited(file, MAX_BYTES)
        head = _unpack(content, HEADER_BYTES)
        kind = nib.Nifti2Image if head[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nib.Nifti1Image
        header = kind.header_class.from_fileobj(io.BytesIO(head))
        shape = tuple(int(length) for length in header.get_data_shape())
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) != 3 or min(shape) < 1:
            raise MriError(f"not a volume: {file.name} has {len(shape)} dimensions, {shape}; save one volume of three")
        held = 4
        for length in shape:
            held *= length
        if held > MAX_BYTES:
            raise MriError(f"implausible size: the header of {file.name} claims {shape} voxels")
        stated = int(header.get_data_offset()) + held // 4 * header.get_data_dtype().itemsize
        image: Any = kind.from_bytes(_unpack(content, min(stated, MAX_BYTES) + TRAILING_BYTES, whole=True))
        if not (int(header["sform_code"]) or int(header["qform_code"])):
            log.warning("%s states no orientation: the axes are taken as left, front, head", file.name)
        canonical = nib.as_closest_canonical(image.slicer[..., 0] if len(image.shape) > 3 else image)
    except MriError:
        raise
    except Exception as error:  # damaged bytes raise almost anything in a decoder
        raise _unreadable(file.name, error) from error
    if not np.isfinite(canonical.affine).all() or min(_voxel_mm(canonical.affine)) <= 0:
        raise MriError(f"impossible grid: the voxels of {file.name} have no size")
    return canonical


def _read_voxels(image: Any, name: str) -> np.ndarray:
    """Return the voxels of an image, float32 [right, front, head]."""
    try:
        volume = np.asanyarray(image.dataobj, dtype=np.float32)
    except Exception as error:  # damaged bytes raise almost anything in a decoder
        raise _unreadable(name, error) from error
    if not np.isfinite(volume).all():
        raise MriError(f"NaN or infinite voxels: {name}; save it without")
    return volume


def _unreadable(name: str, error: Exception) -> MriError:
    return MriError(f"unreadable image: {name}: {' '.join(str(error).split())[:200]}")


def _unpack(content: bytes, max_bytes: int, whole: bool = False) -> bytes:
    """Return the content of a `.nii` or `.nii.gz`, gunzipped up to a limit; where `whole`, all of it or ValueError."""
    if content[:2] != b"\x1f\x8b":
        return content
    unpacker = zlib.decompressobj(wbits=31)
    unpacked = unpacker.decompress(content, max_bytes)
    if whole and not unpacker.eof:
        raise ValueError("it is cut short, or larger than its header says")
    return unpacked


def _read_labels(image: Any, name: str) -> np.ndarray:
    """Return labels as `Scan` has them."""
    labels = _slices(_read_voxels(image, name))
    whole = np.rint(labels)
    if np.abs(whole - labels).max() > 1e-3:
        raise MriError(f"labels are no whole numbers: {name} was interpolated, or is a map of probabilities")
    found = np.unique(whole)
    if found[0] < 0 or len(found) > MAX_LABELS:
        raise MriError(f"not labels: {name} has {len(found)} values, {first_few(f'{value:g}' for value in found)}")
    return whole.astype(np.int64)
