"""Plain pictures as slides: what is read of them, what is refused, and tiles that reach beyond their margins."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import pyvips
import tifffile
from PIL import Image

from mgi.codecs import decode_ignore, decode_image, decode_mask
from mgi.config import StatedSlide, TileOptions
from mgi.errors import SlideError
from mgi.prepare.pictures import PictureError, read_ome_mpp, read_picture
from mgi.prepare.reader import open_slide, resolve_mpp
from mgi.prepare.slides import tile_slides
from tests.prepare.conftest import tissue_picture

OME = (
    '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image><Pixels SizeC="3" '
    'PhysicalSizeX="{size}" PhysicalSizeXUnit="{unit}" PhysicalSizeY="{size}" PhysicalSizeYUnit="{unit}"/>'
    "</Image></OME>"
)


def tile(path, output, status=None, stated=None, **given):
    options = TileOptions(**{"mpp": 0.5, "tile_px": 64, "default_mpp": 0.5, **given})
    tile_slides([path], ["case"], output, options, status, stated=stated)
    return pq.read_table(output).to_pandas()


def write(path, pixels):
    """Write pixels as the suffix says; those of a name with `ome` as OME-TIFF with a pyramid."""
    if ".ome" in path.name:
        image = pyvips.Image.new_from_array(pixels).copy()
        image.set_type(pyvips.GValue.gstr_type, "image-description", OME.format(size=0.5, unit="µm"))
        image.tiffsave(str(path), tile=True, pyramid=True, subifd=True, compression="lzw")
    else:
        Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.ome.tif", "a.jpg"])
def test_picture_gives_the_tiles_of_its_pixels(tmp_path, name):
    pixels = tissue_picture(512, 384)
    found = tile(write(tmp_path / name, pixels), tmp_path / "t.parquet", min_tissue=0, default_mpp=0.5)
    assert len(found) == 8 * 6 and set(found.source_id) == {"a"}
    for row in found.itertuples():
        expected = pixels[row.y : row.y + 64, row.x : row.x + 64].astype(float)
        assert np.abs(decode_image(row.image) - expected).mean() < 3


def test_pixels_are_exact_and_transparent_ones_white(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 4), np.uint8)
    pixels[..., 3] = np.where(np.arange(30) < 10, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    read = read_picture(tmp_path / "a.png").read_rgb(5, 3, 0, (20, 10))
    assert (read[:, :5] == 255).all() and np.array_equal(read[:, 5:], pixels[3:13, 10:25, :3])


def many_pages(path):
    Image.new("RGB", (64, 64)).save(path, save_all=True, append_images=[Image.new("RGB", (64, 64))])


def turned(path):
    image = Image.new("RGB", (64, 64))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, "TIFF", exif=exif)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: Image.new("L", (64, 64)).save(path, "PNG"), "it is not in colour"),
        (lambda path: tifffile.imwrite(path, np.zeros((64, 64, 3), np.uint16), photometric="rgb"), "have 16 bits"),
        (many_pages, "several pages of one size"),
        (turned, "EXIF orientation is 6"),
        (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 40), "."),
        (lambda path: Image.new("RGB", (20000, 20000)).save(path, "PNG"), "too many for a plain picture"),
    ],
)
def test_rejects_what_would_be_misread(tmp_path, make, message):
    path = tmp_path / "a.tif"
    make(path)
    with pytest.raises(PictureError, match=message):
        read_picture(path)


def test_truncated_picture_is_recorded_with_its_reason(tmp_path):
    path = write(tmp_path / "a.png", tissue_picture(256, 256))
    path.write_bytes(path.read_bytes()[:-200])
    found = tile(path, tmp_path / "t.parquet", tmp_path / "s.parquet")
    (record,) = pq.read_table(tmp_path / "s.parquet").to_pylist()
    assert found.empty and record["status"] == "failed" and "nor a plain picture" in record["reason"]


@pytest.mark.parametrize(
    ("size", "unit", "expected"),
    [
        ("0.25", "µm", "0.25"),
        ("0.25", "&#181;m", "0.25"),
        ("0.25", "&#xB5;m", "0.25"),
        ("250", "nm", "0.25"),
        ("0.00025", "mm", "0.25"),
        ("0.000025", "cm", "0.25"),
    ],
)
def test_mpp_of_ome_metadata_is_read(size, unit, expected):
    assert read_ome_mpp(OME.format(size=size, unit=unit)) == (expected, expected)


@pytest.mark.parametrize(
    "text", ["", "Aperio", "<OME/>", OME.format(size="1", unit="pixel"), OME.format(size="--", unit="um")]
)
def test_no_mpp_is_made_up(text):
    assert read_ome_mpp(text) is None


def test_mpp_of_ome_is_read_where_openslide_does_not_read_the_file(tmp_path):
    """Of an untiled TIFF, whose description Pillow decodes as Latin-1."""
    pixels = np.full((64, 64, 3), 200, np.uint8)
    description = OME.format(size="0.25", unit="µm").encode()
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels, photometric="rgb", description=description, metadata=None)
    picture = read_picture(tmp_path / "a.ome.tif")
    assert resolve_mpp(picture.properties, 0.5).mpp == 0.25


def test_mpp_of_ome_beats_the_default_and_the_user_beats_it(tmp_path):
    path = write(tmp_path / "a.ome.tif", tissue_picture(512, 512))
    with open_slide(path) as slide:
        assert resolve_mpp(slide.properties, 0.5, default_mpp=0.25).mpp == 0.5
        assert resolve_mpp(slide.properties, 0.5, stated_mpp=0.3).mpp == 0.3


def test_picture_without_mpp_names_the_remedies(tmp_path):
    with pytest.raises(SlideError, match=r"no mpp.*--default-mpp"):
        tile(write(tmp_path / "a.png", tissue_picture(256, 256)), tmp_path / "t.parquet", default_mpp=None)


def test_partial_tiles_cover_the_margins(tmp_path):
    """Of 200 x 150 pixels with tiles of 64: 4 x 3, the last 8 pixels wide and 22 high."""
    pixels = np.random.default_rng(1).integers(90, 160, (150, 200, 3), np.uint8)
    path = write(tmp_path / "a.png", pixels)
    Image.fromarray(np.full((150, 200), 255, np.uint8)).save(tmp_path / "a_mask.png")
    stated = {"a": StatedSlide(annotation=str(tmp_path / "a_mask.png"), site="Ulm")}
    assert len(tile(path, tmp_path / "t.parquet", min_tissue=0)) == 3 * 2
    found = tile(path, tmp_path / "t.parquet", tmp_path / "s.parquet", stated, min_tissue=0, partial_tiles=True)
    assert len(found) == 4 * 3
    corner = found[(found.x == 192) & (found.y == 128)].iloc[0]
    image, ignored = decode_image(corner.image).astype(int), decode_ignore(corner["mask"])
    assert not ignored[:22, :8].any() and ignored[22:].all() and ignored[:, 8:].all()
    assert decode_mask(corner["mask"]).sum() == 22 * 8
    assert image[32:, 16:].min() > 250 and np.abs(image[:22, :8].mean() - pixels[128:, 192:].mean()) < 8
    (record,) = pq.read_table(tmp_path / "s.parquet").to_pylist()
    assert (record["site"], record["untiled_tumour_px"], record["tumour_px"]) == ("Ulm", 0, 200 * 150)
    assert json.loads(record["dropped"]) == {}


def test_partial_tiles_are_kept_by_the_tissue_of_the_whole_tile(tmp_path):
    path = write(tmp_path / "a.png", np.full((192, 192 + 24, 3), (200, 110, 175), np.uint8))
    found = tile(path, tmp_path / "t.parquet", partial_tiles=True, min_tissue=0.3)
    assert found.x.max() == 192 and found.tissue_fraction.min() == pytest.approx(24 / 64, abs=0.02)
    assert tile(path, tmp_path / "t.parquet", partial_tiles=True, min_tissue=0.5).x.max() == 128


def test_slide_at_another_scale_is_not_stretched_at_its_margin(tmp_path):
    """At 0.25 microns a tile of 64 pixels of 0.5 is 128 wide: the second of 200 pixels holds 36."""
    pixels = np.zeros((128, 200, 3), np.uint8)
    pixels[..., :] = np.arange(200, dtype=np.uint8)[None, :, None]
    found = tile(write(tmp_path / "a.png", pixels), tmp_path / "t.parquet", default_mpp=0.25, min_tissue=0,
                 partial_tiles=True)  # fmt: skip
    last = decode_image(found[found.x == 128].image.iloc[0]).astype(int)
    assert np.abs(last[:, :34, 0].mean(axis=0) - (128.5 + 2 * np.arange(34))).max() < 4
