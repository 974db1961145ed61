"""Brain MRI as slices with tumour masks: NIfTI in the layout of BraTS, or kaggle_3m, in a folder or a zip."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from mgi.codecs import encode_mask, encode_png
from mgi.config import MriOptions
from mgi.console import log, progress
from mgi.errors import MriError
from mgi.names import first_few
from mgi.prepare.kaggle import read_volume
from mgi.prepare.nifti import inspect_labels, read_scan
from mgi.prepare.series import Series, find_series
from mgi.tables import image_table, write_sources

# Of the normalised 8-bit intensities: 2 deviations below the median, and 4.4 above, are kept apart.
MEDIAN, DEVIATION = 80, 40
# Interquartile range of a normal distribution of unit deviation.
NORMAL_QUARTILES = 1.349
FOREGROUND_SHARE = 0.1
# Beyond these float32 cannot compute with intensities, and no scanner or preparation writes them.
LEAST_INTENSITY, MOST_INTENSITY = 1e-20, 1e20
AIR_SHARE = 0.1
# Which voxels of a volume touch: those of one slice.
IN_PLANE = np.array([np.zeros((3, 3)), [[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.zeros((3, 3))])


@dataclass(frozen=True)
class Slices:
    """What is imported of a series.

    Attributes
    ----------
    numbers : int array [slices]
    image : uint8 array [slices, height, width, 3]
        Normalised.
    foreground : bool array [slices, height, width]
    mask : uint8 array [slices, height, width] of 0 and 1, or None
    record : dict
        What there is to record of the series.
    shape : (int, int)
        Height and width of a slice before it was padded to a square.
    """

    numbers: np.ndarray
    image: np.ndarray
    foreground: np.ndarray
    mask: np.ndarray | None
    record: dict[str, Any]
    shape: tuple[int, int]


def import_mri(folder: Path | str, output: Path | str, sources: Path | str | None, options: MriOptions) -> None:
    """Import every slice of a folder or zip, resampled to `image_px` and normalised per patient.

    Slices that are not square are padded at the right and the bottom. They are resampled with an antialiasing window,
    masks by area average and a threshold of one half. With `sources`, a series that cannot be used is recorded there as
    skipped and the others go on.

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
    rows: list[dict[str, Any]] = []
    with image_table(output) as add:
        for series in progress(find_series(folder), "MRI series"):
            record = {"source_id": series.source_id, "case_id": series.case_id, "table": output.stem}
            try:
                slices = _read_series(series, options)
            except MriError as error:
                if sources is None:
                    raise MriError(
                        f"{series.source_id}: {error}; repair it, or give --sources to record it and go on"
                    ) from error
                log.warning("skipped %s: %s", series.source_id, error)
                rows.append(record | {"status": "skipped", "reason": str(error), "n_images": 0, "labelled": False})
                continue
            for row in _iterate_rows(series, slices, options.image_px):
                add(row)
            used = {"status": "ok", "n_images": len(slices.numbers), "labelled": True, "untiled_tumour_px": 0}
            rows.append(record | used | slices.record)
    _log_unseen_labels(rows, options.labels)
    if sources is not None:
        write_sources(rows, sources)
    log.info("%d slices of %d series in %s", sum(row["n_images"] for row in rows), len(rows), output)


def _log_unseen_labels(rows: list[dict[str, Any]], labels: list[int]) -> None:
    """Log which of the labels stated to be tumour no series has: the set may number its labels otherwise."""
    seen = {label for row in rows for label in json.loads(row.get("classes", "{}"))}
    unseen = [str(label) for label in labels if str(label) not in seen]
    if seen and unseen:
        log.warning("no series has the label %s, which is stated to be tumour; they have %s",
                    ", ".join(unseen), ", ".join(sorted(seen, key=int)))  # fmt: skip


def import_series(series: Series, output: Path | str, options: MriOptions) -> tuple[int, int]:
    """Import the slices of one series without masks, as `import_mri` does; return a slice's own height and width.

    Raises
    ------
    MriError
        If the series cannot be used.
    """
    slices = _read_series(series, options, labelled=False)
    with image_table(output) as add:
        for row in _iterate_rows(series, slices, options.image_px):
            add(row)
    return slices.shape


def inspect_series(found: list[Series], options: MriOptions) -> tuple[dict[str, str], dict[str, str]]:
    """Look at the files of series without importing them.

    Returns
    -------
    unusable : dict of str to str
        Why series will be left out, by source_id.
    without_tumour : dict of str to str
        The labels of the series that will be used and have no tumour, by source_id.
    """
    unusable, without_tumour = {}, {}
    for series in progress(found, "MRI series"):
        try:
            if series.sequences:
                labels = inspect_labels(series.sequences, options.channels)
                _refuse_no_background(labels, options)
                has_tumour = _is_tumour(labels, options).any()
            else:
                labels, has_tumour = np.zeros(1, int), np.any(read_volume(series.folder).mask)
        except MriError as error:
            unusable[series.source_id] = str(error)
        else:
            if not has_tumour:
                without_tumour[series.source_id] = first_few(map(str, labels.tolist()))
    return unusable, without_tumour


def _read_series(series: Series, options: MriOptions, labelled: bool = True) -> Slices:
    """Read, normalise and pad a series."""
    if series.sequences:
        return _read_nifti(series, options, labelled)
    volume = read_volume(series.folder, labelled)
    if volume.unused:
        log.warning("%s: %d files are not read: %s", series.source_id, len(volume.unused), first_few(volume.unused))
    image, foreground = _normalise(volume.image)
    tumour = 0 if volume.mask is None else int(volume.mask.sum())
    dropped = {"files not read": len(volume.unused)} if volume.unused else {}
    record = {"has_tumour": tumour > 0, "tumour_px": tumour, "dropped": json.dumps(dropped)}
    mask = None if volume.mask is None else _pad(volume.mask)
    return Slices(volume.numbers, _pad(image), _pad(foreground), mask, record, (image.shape[1], image.shape[2]))


def _read_nifti(series: Series, options: MriOptions, labelled: bool) -> Slices:
    scan = read_scan(series.sequences, options.channels, labelled)
    image, foreground = _normalise(scan.image)
    width, height, depth = scan.spacing_mm
    record: dict[str, Any] = {"mpp": 1000 * (width + height) / 2, "mpp_from": "metadata", "slice_mm": depth}
    mask = None
    if scan.labels is not None:
        found, counts = np.unique(scan.labels, return_counts=True)
        _refuse_no_background(found, options)
        mask = _is_tumour(scan.labels, options).astype(np.uint8)
        classes = {str(label): int(count) for label, count in zip(found.tolist(), counts, strict=True)}
        record |= {"has_tumour": bool(mask.any()), "tumour_px": int(mask.sum()), "classes": json.dumps(classes)}
        mask = _pad(mask)
    unused = sorted(set(series.sequences) - {*options.channels, "seg"})
    record["dropped"] = json.dumps({"sequences not read": len(unused)} if unused else {})
    shape = (image.shape[1], image.shape[2])
    return Slices(np.arange(len(image)), _pad(image), _pad(foreground), mask, record, shape)


def _refuse_no_background(labels: np.ndarray, options: MriOptions) -> None:
    """Raise where all of a series would be tumour, for the labels that it has, ascending."""
    if not options.labels and labels[0] != 0:
        shown = first_few(map(str, labels.tolist()))
        raise MriError(f"no background: its labels are {shown}, and none 0; state which are tumour")


def _is_tumour(labels: np.ndarray, options: MriOptions) -> np.ndarray:
    return np.isin(labels, options.labels) if options.labels else labels != 0


def _pad(planes: np.ndarray) -> np.ndarray:
    """Pad slices [slices, height, width, ...] with 0 at the right and the bottom, to squares."""
    height, width = planes.shape[1:3]
    edge = max(height, width)
    return np.pad(planes, [(0, 0), (0, edge - height), (0, edge - width)] + [(0, 0)] * (planes.ndim - 3))


def _iterate_rows(series: Series, slices: Slices, image_px: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table of images."""
    for k, number in enumerate(slices.numbers):
        yield {
            "case_id": series.case_id,
            "source_id": series.source_id,
            "x": 0,
            "y": 0,
            "z": int(number),
            "size": slices.image.shape[2],
            "mpp": None,
            "tissue_fraction": float(slices.foreground[k].mean()),
            "image": encode_png(_resize(slices.image[k], image_px, Image.Resampling.HAMMING)),
            "mask": None if slices.mask is None else _resize_mask(slices.mask[k], image_px),
        }


def _normalise(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Map the median of each channel's foreground, over the whole volume, to `MEDIAN`, and a deviation to `DEVIATION`.

    The deviation is that of a normal distribution of the same interquartile range: the bright fat of the scalp, which
    differs from scanner to scanner, does not set the contrast of the brain. All else is 0.

    Parameters
    ----------
    image : uint8 or float32 array [slices, height, width, 3]

    Returns
    -------
    image : uint8 array [slices, height, width, 3]
    foreground : bool array [slices, height, width]

    Raises
    ------
    MriError
        If no voxel is brighter than the background, or the intensities are too large or small to compute with.
    """
    largest = max(abs(float(image.min())), abs(float(image.max())))
    if largest and not LEAST_INTENSITY < largest < MOST_INTENSITY:
        raise MriError(f"implausible intensities: the largest is {largest:.3g}")
    foreground = _find_foreground(image)
    normalised = np.empty(image.shape, dtype=np.uint8)
    for channel in range(image.shape[-1]):
        plane = image[..., channel].astype(np.float32)
        values = plane[foreground]
        low, median, high = np.percentile(values, (25, 50, 75))
        deviation = (high - low) / NORMAL_QUARTILES or values.std() or 1
        plane -= np.float32(median)
        plane *= np.float32(DEVIATION / deviation)
        plane += MEDIAN
        plane *= foreground
        normalised[..., channel] = np.rint(plane.clip(0, 255, out=plane), out=plane)
    return normalised, foreground


def _find_foreground(image: np.ndarray) -> np.ndarray:
    """Find the voxels where most channels exceed a tenth of their own 99th percentile, holes in each slice included.

    The air around the head is not zero in every scanner's images, nor after every preparation of a sequence. A sequence
    that is missing and filled with 0 does not count. Where intensities are negative, as z-scores are, the foreground
    differs from the first voxel if that has the value of the air, and else the lowest intensity counts as 0.
    """
    above = np.zeros(image.shape[:-1], dtype=np.uint8)
    present = 0
    for plane in np.moveaxis(image, -1, 0):
        lowest, brightest = min(0.0, float(plane.min())), float(np.percentile(plane, 99))
        if brightest <= lowest:
            continue
        present += 1
        air = plane == plane[0, 0, 0]
        if lowest < 0 and air.mean() > AIR_SHARE:
            above += ~air
        else:
            above += plane > lowest + FOREGROUND_SHARE * (brightest - lowest)
    foreground = above * 2 > present
    if not foreground.any():
        raise MriError("empty: no voxel is brighter than the background")
    return ndimage.binary_fill_holes(foreground, IN_PLANE)


def _resize_mask(mask: np.ndarray, size_px: int) -> bytes:
    return encode_mask(_resize(mask * np.uint8(255), size_px, Image.Resampling.BOX) >= 128)


def _resize(pixels: np.ndarray, size_px: int, resampling: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((size_px, size_px), resampling))
