"""The one table of images: a row is a model input, whether it was a tile of a slide or a slice of an MRI."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mgi.acquire.mri import Series, Volume, find_series, read_series
from mgi.console import log, progress
from mgi.errors import MriError
from mgi.files import write_table, written_aside

SCHEMA = pa.schema(
    [
        ("case_id", pa.string()),
        ("source_id", pa.string()),
        ("x", pa.int32()),
        ("y", pa.int32()),
        ("z", pa.int32()),
        ("size", pa.float64()),
        ("mpp", pa.float32()),
        ("tissue_fraction", pa.float32()),
        ("image", pa.binary()),
        ("mask", pa.binary()),
    ]
)
# A reason reads "kind: detail", so that the cohort flow can count by kind.
SOURCES_SCHEMA = pa.schema(
    [
        ("source_id", pa.string()),
        ("case_id", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("n_images", pa.int32()),
        ("labelled", pa.bool_()),
        ("untiled_tumour_px", pa.int64()),
        ("mpp", pa.float32()),
        ("mpp_from", pa.string()),
        ("table", pa.string()),
    ]
)
ROWS_PER_GROUP = 64
JPEG_QUALITY = 90
PERCENTILES = (1.0, 99.0)
FOREGROUND_SHARE = 0.1


def source_of(path: Path | str) -> str:
    """Return the source_id of a slide: its file name up to the first dot."""
    return Path(path).name.split(".")[0]


def encode_jpeg(pixels: np.ndarray) -> bytes:
    """Encode a uint8 image [H, W, 3] as JPEG of quality 90."""
    return _encoded(pixels, "JPEG", quality=JPEG_QUALITY)


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode a uint8 image [H, W, 3] or plane [H, W] as PNG, exactly."""
    return _encoded(pixels, "PNG")


def encode_mask(mask: np.ndarray) -> bytes:
    """Encode a mask [H, W] of 0 and 1 as a PNG of 0 and 255, which any viewer shows."""
    return _encoded(np.where(mask, np.uint8(255), np.uint8(0)), "PNG")


def decode_image(encoded: bytes) -> np.ndarray:
    """Decode JPEG or PNG bytes to a uint8 image [H, W, 3]."""
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image.convert("RGB"))


def decode_mask(encoded: bytes) -> np.ndarray:
    """Decode a mask's PNG bytes to uint8 [H, W] of 0 and 1."""
    with Image.open(io.BytesIO(encoded)) as image:
        return (np.asarray(image.convert("L")) >= 128).astype(np.uint8)


def _encoded(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


@contextmanager
def image_table(path: Path | str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield a function that adds a row of `SCHEMA` to the table `path`, which appears when the block ends.

    Rows must come sorted by (case_id, source_id, z, y, x). At most one row group of 64 is held in memory; encoded
    images are stored as they are, since they do not compress further.
    """
    codecs = {name: "NONE" if name in ("image", "mask") else "ZSTD" for name in SCHEMA.names}
    plain = [name for name in SCHEMA.names if name not in ("image", "mask")]
    pending: list[dict[str, Any]] = []
    with (
        written_aside(path) as aside,
        pq.ParquetWriter(aside, SCHEMA, compression=codecs, use_dictionary=plain) as writer,
    ):

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(pending, SCHEMA))
            pending.clear()

        def add(row: dict[str, Any]) -> None:
            pending.append(row)
            if len(pending) == ROWS_PER_GROUP:
                flush()

        yield add
        if pending:
            flush()


def write_sources(rows: list[dict[str, Any]], path: Path | str) -> None:
    """Write what became of each slide or series, sorted by case and source."""
    rows = sorted(rows, key=lambda row: (row["case_id"], row["source_id"]))
    write_table(pa.Table.from_pylist(rows, SOURCES_SCHEMA), path)


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
