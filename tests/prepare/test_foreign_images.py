"""Every reader of other people's images and outlines, given damaged files: only the project's own errors come out."""

import gzip
import io
import json
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image

from mgi.codecs import encode_mask, encode_png
from mgi.config import MriOptions, TileOptions
from mgi.prepare.annotations import read_annotation
from mgi.prepare.mri import import_mri
from mgi.prepare.series import find_series
from mgi.prepare.slides import tile_slides
from mgi.prepare.store import state_slides
from mgi.tables import IMAGES_SCHEMA
from mgi.train.data import read_image_table
from tests.conftest import ROOT
from tests.fuzzing import check_damaged
from tests.prepare.conftest import tissue_picture, write_slide

SLIDE = (64, 48)
PIXELS = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
MASK = np.zeros((16, 16), np.uint8)
MASK[4:9, 4:9] = 255
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
OUTLINE = {"type": "Polygon", "coordinates": [[[2, 2], [30, 2], [30, 30], [2, 2]]]}


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def tiff(pixels: np.ndarray, compression: str | None = None) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, compression=compression, photometric="rgb" if pixels.ndim == 3 else "minisblack")
    return buffer.getvalue()


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as writer:
        writer.writestr("kaggle_3m/TCGA_CS_0001_1/TCGA_CS_0001_1_1.tif", tiff(PIXELS))
        writer.writestr("kaggle_3m/TCGA_CS_0001_1/TCGA_CS_0001_1_1_mask.tif", tiff(MASK))
    return buffer.getvalue()


def volume(kind: type) -> bytes:
    return kind(np.arange(8 * 8 * 4, dtype=np.int16).reshape(8, 8, 4), AFFINE).to_bytes()


def image_table() -> bytes:
    row = {"case_id": "A", "source_id": "A", "x": 0, "y": 0, "z": 0, "size": 16, "mpp": 1.0, "tissue_fraction": 1.0}
    table = pa.Table.from_pylist([row | {"image": encode_png(PIXELS), "mask": encode_mask(MASK)}], IMAGES_SCHEMA)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def place_table() -> bytes:
    """Return a table of places in a picture, without images."""
    place = {"case_id": "A", "source_id": "A", "x": 64, "y": 32, "z": 0, "size": 64.0, "mpp": 1.0}
    slides = state_slides([("A", ROOT / "docs/images/overlays.jpg")], 32)
    table = pa.Table.from_pylist([place | {"mask": encode_mask(MASK)}], IMAGES_SCHEMA)
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"slides": slides}), buffer)
    return buffer.getvalue()


def read_outlines(path: Path) -> None:
    annotation = read_annotation(path, SLIDE)
    annotation.mask(0, 0, 64, 16)


def read_mri(path: Path) -> None:
    """Import a zip, or the folder of a slice or volume."""
    folder = path if path.suffix == ".zip" else path.parent
    find_series(folder)
    import_mri(folder, folder.parent / "mri.parquet", None, MriOptions(image_px=32))


def read_slice(path: Path) -> None:
    path.with_name(f"{path.stem}_mask.tif").write_bytes(tiff(MASK))
    read_mri(path)


def read_volume(path: Path) -> None:
    for sequence in ("t1", "t1ce", "seg"):
        other = nib.Nifti1Image(np.indices((8, 8, 4)).sum(0).astype(np.uint8) // 8, AFFINE)
        path.with_name(f"p_{sequence}.nii").write_bytes(other.to_bytes())
    read_mri(path)


def read_images(path: Path) -> None:
    images = read_image_table(path)
    rows = np.arange(len(images))
    images.load(rows), images.load_masks(rows), images.load_ignore(rows)


READERS = {
    "mask.png": (read_outlines, lambda: png(MASK)),
    "mask.tif": (read_outlines, lambda: tiff(MASK)),
    "deflated.tif": (read_outlines, lambda: tiff(MASK, "zlib")),
    "a.geojson": (read_outlines, lambda: json.dumps(OUTLINE).encode()),
    "images.parquet": (read_images, image_table),
    "places.parquet": (read_images, place_table),
    "kaggle.zip": (read_mri, archive),
    "TCGA_CS_0001_1/TCGA_CS_0001_1_1.tif": (read_slice, lambda: tiff(PIXELS)),
    "p/p_flair.nii": (read_volume, lambda: volume(nib.Nifti1Image)),
    "p/p_flair.nii.gz": (read_volume, lambda: gzip.compress(volume(nib.Nifti1Image))),
}


def tile_slide(path: Path) -> None:
    tile_slides([path], ["A"], path.parent / "tiles.parquet", TileOptions(mpp=0.5, tile_px=64))


def test_slides(tmp_path):
    """In a process of its own, as ever, since OpenSlide is no Python."""
    valid = write_slide(tmp_path / "valid.svs", tissue_picture(512, 512), 0.5).read_bytes()
    check_damaged(tile_slide, valid, tmp_path / "slide.svs", examples=40)


@pytest.mark.parametrize("name", READERS)
def test_only_own_errors_come_out(tmp_path, name):
    read, make = READERS[name]
    path = tmp_path / "top" / name
    path.parent.mkdir(parents=True)
    check_damaged(read, make(), path)
