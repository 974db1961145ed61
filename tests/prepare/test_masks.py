"""Masks: raw samples, values with a stated meaning, and the extent of their slide."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from mgi.config import MaskValues, TileOptions
from mgi.errors import AnnotationError
from mgi.prepare import rasters
from mgi.prepare.annotations import read_annotation

SIZE = (64, 48)


def square(dtype=np.uint8, value=1):
    """A mask of the slide whose square of x 8 to 24, y 16 to 40 is tumour."""
    pixels = np.zeros(SIZE[::-1], dtype)
    pixels[16:40, 8:24] = value
    return pixels


def write(path, pixels, **options):
    if path.suffix.startswith(".tif"):
        tifffile.imwrite(path, pixels, **options)
    else:
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        image.save(path, **options)
    return path


def is_square(annotation):
    found = annotation.mask(0, 0, 48, 48)
    return np.array_equal(found, square()[:48, :48]) and annotation.tumour.area_px == 16 * 24


def palette(pixels, colours=(0, 0, 0, 255, 255, 255)):
    image = Image.fromarray(pixels, "P")
    image.putpalette(colours)
    return image


def stack(*planes):
    return np.stack(planes, axis=-1)


COLOURS = np.arange(768, dtype=np.uint16).reshape(3, 256)
FULL, MASK = np.full(SIZE[::-1], 255, np.uint8), square(value=255)


@pytest.mark.parametrize(
    ("name", "pixels", "options"),
    [
        ("bool.tif", square(bool), {}),
        ("bool-black-is-zero.tif", square(bool), {"photometric": "minisblack"}),
        ("white-is-zero.tif", MASK, {"photometric": "miniswhite"}),
        ("lzw.tif", MASK, {"compression": "lzw"}),
        ("deflate-tiled.tif", MASK, {"compression": "deflate", "tile": (16, 16)}),
        ("big.tif", MASK, {"bigtiff": True}),
        ("big-endian.tif", square(np.uint16, 500), {"byteorder": ">"}),
        ("float.tif", square(np.float32), {}),
        ("signed.tif", square(np.int32, 7), {}),
        ("palette.tif", square(), {"photometric": "palette", "colormap": COLOURS}),
        ("rgb.tif", stack(MASK, MASK, MASK), {"photometric": "rgb"}),
        ("planes.tif", np.stack([MASK] * 3), {"photometric": "rgb", "planarconfig": "separate"}),
        ("rgba.tif", stack(MASK, MASK, MASK, FULL), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
        ("grey.png", MASK, {}),
        ("bilevel.png", square(bool), {}),
        ("palette.png", palette(square()), {}),
        ("palette-red-on-white.png", palette(square(), [255, 255, 255, 200, 0, 0]), {}),
        ("palette-two-bits.png", palette(square()), {"bits": 2}),
        ("deep.png", square(np.uint16, 65535), {}),
        ("alpha.png", stack(MASK, FULL), {}),
        ("rgb.png", stack(MASK, MASK, MASK), {}),
        ("grey.jpg", MASK, {"quality": 100, "subsampling": 0}),
    ],
)  # fmt: skip
def test_two_values_are_a_mask_however_they_are_stored(tmp_path, name, pixels, options):
    path = write(tmp_path / name, pixels, **options)
    if name == "grey.jpg" and len(np.unique(np.asarray(Image.open(path)))) > 2:
        pytest.skip("this encoder blurs the edge")
    assert is_square(read_annotation(path, SIZE))


def test_four_bits_are_read_as_stored(tmp_path):
    """Pillow shows the value 3 of 15 as 51."""
    pixels = square(value=51)
    pixels[:4] = 17
    Image.fromarray(pixels).save(tmp_path / "a.png")
    content = rasters.read_samples(tmp_path / "a.png")
    assert set(np.unique(content)) == {0, 17, 51}
    packed = (square(value=3)[:, ::2] << 4) | square(value=3)[:, 1::2]
    write_png4(tmp_path / "b.png", packed)
    assert set(np.unique(rasters.read_samples(tmp_path / "b.png"))) == {0, 3}
    assert is_square(read_annotation(tmp_path / "b.png", SIZE))


def write_png4(path, packed):
    import struct
    import zlib

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    header = struct.pack(">IIBBBBB", packed.shape[1] * 2, packed.shape[0], 4, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


@pytest.mark.parametrize(
    ("name", "pixels", "options", "message"),
    [
        ("codes.tif", square() + square(value=1)[:, ::-1] * 2, {}, r"not two values: codes\.tif has '0', '1', '2'"),
        ("one.tif", np.full(SIZE[::-1], 7, np.uint8), {}, "not two values"),
        ("soft.tif", np.random.default_rng(0).random(SIZE[::-1]), {}, "picture or a map of probabilities"),
        ("nan.tif", np.where(square(bool), np.nan, 0), {}, "NaN"),
        ("red.png", stack(MASK, MASK * 0, MASK * 0), {}, "channels differ"),
        ("red-alpha.png", stack(MASK, MASK * 0, MASK * 0, FULL), {}, "channels differ"),
        ("transparent.png", stack(MASK, MASK, MASK, MASK), {}, "transparent"),
        ("transparent-grey.png", stack(MASK, MASK), {}, "transparent"),
        ("cmyk.jpg", Image.fromarray(stack(MASK, MASK * 0, FULL, FULL), "CMYK"), {}, "differ|transparent"),
        ("pages.tif", np.stack([MASK, MASK]), {"photometric": "minisblack"}, "2 pages"),
        ("complex.tif", square(np.complex64), {}, "not numbers|not a mask"),
        ("negative.tif", -square(np.int32), {}, "not two values from 0 up"),
        ("turned.tif", MASK, {"extratags": [(274, "H", 1, 3, True)]}, "orientation tag is 3"),
        ("red-on-grey.png", palette(1 - square(), [200, 0, 0, 0, 0, 0]), {}, "in colour and 1 in grey, .* in doubt"),
        ("white-first.png", palette(1 - square(), [255, 255, 255, 0, 0, 0]), {}, "0 brighter than 1, .* in doubt"),
        ("one-and-two.tif", square() + 1, {}, r"not two values from 0 up: one-and-two\.tif has '1', '2'; say which"),
    ],
)
def test_mask_without_a_plain_meaning_is_refused(tmp_path, name, pixels, options, message):
    with pytest.raises(AnnotationError, match=message):
        read_annotation(write(tmp_path / name, pixels, **options), SIZE)


@pytest.mark.parametrize(("dtype", "value"), [(np.uint8, 1), (np.uint8, 255), (np.uint16, 65535), (bool, 1)])
def test_mask_of_nothing_but_tumour_is_all_tumour(tmp_path, dtype, value):
    path = write(tmp_path / "a.tif", np.full(SIZE[::-1], value, dtype))
    assert read_annotation(path, SIZE).tumour.area_px == SIZE[0] * SIZE[1]


def test_stated_values_are_tumour_and_ignored(tmp_path):
    pixels = square(value=1)
    pixels[:8], pixels[40:44, :8] = 5, 0
    pixels[44:] = 9
    path = write(tmp_path / "a.tif", pixels)
    options = TileOptions(mask_values=MaskValues(tumour=[1, 9], ignore=[5]))
    annotation = read_annotation(path, SIZE, options)
    assert np.array_equal(annotation.mask(0, 0, 48, 48) == 1, np.isin(pixels, [1, 9])[:, :48])
    assert np.array_equal(annotation.ignore(0, 0, 48, 48) == 1, (pixels == 5)[:, :48])
    assert annotation.classes == {str(value): int((pixels == value).sum()) for value in (0, 1, 5, 9)}
    assert annotation.tumour.area_px == np.isin(pixels, [1, 9]).sum()


def test_a_value_has_one_meaning():
    with pytest.raises(ValueError, match="both tumour and ignored"):
        MaskValues(tumour=[1, 2], ignore=[2])


@pytest.mark.parametrize(("value", "area"), [(0, 0), (1, 48 * 64), (255, 48 * 64)])
def test_mask_of_one_value_is_empty_or_full(tmp_path, value, area):
    path = write(tmp_path / "a.tif", np.full(SIZE[::-1], value, np.uint8))
    assert read_annotation(path, SIZE).tumour.area_px == area


@pytest.mark.parametrize(
    ("slide", "mask", "scale"),
    [
        ((2000, 2000), (2048, 2048), 1),
        ((2000, 1500), (2000, 1504), 1),
        ((4000, 4000), (256, 256), 16),
        ((32000, 24000), (2000, 1500), 16),
        ((32007, 24009), (2001, 1501), 16),
        ((32007, 24009), (2000, 1500), 16),
        ((32007, 24009), (2048, 1536), 16),
    ],
)
def test_extent_is_whole_or_padded(tmp_path, slide, mask, scale):
    pixels = np.zeros(mask[::-1], np.uint8)
    pixels[10:20, 30:40] = 1
    annotation = read_annotation(write(tmp_path / "a.tif", pixels), slide)
    box = (30 * scale, 10 * scale, 40 * scale, 20 * scale)
    assert annotation.tumour.bounds == box and annotation.tumour.area_px == 100 * scale**2


def test_scaled_mask_is_stretched(tmp_path):
    pixels = np.zeros((757, 1000), np.uint8)
    pixels[:, 500:] = 1
    annotation = read_annotation(write(tmp_path / "a.tif", pixels), (23456, 17752))
    assert annotation.tumour.bounds == pytest.approx((11728, 0, 23456, 17752))
    assert annotation.tumour.area_px == 11728 * 17752


@pytest.mark.parametrize(
    ("slide", "mask"),
    [
        ((2000, 2000), (1900, 1900)),
        ((2000, 2000), (2100, 2100)),
        ((2000, 1000), (1000, 2000)),
        ((64, 48), (48, 64)),
        ((9000, 9000), (2, 2)),
    ],
)
def test_mask_of_another_extent_is_refused(tmp_path, slide, mask):
    with pytest.raises(AnnotationError, match=r"mask of another shape: a\.tif is \d+ x \d+, its slide"):
        read_annotation(write(tmp_path / "a.tif", np.zeros(mask[::-1], np.uint8)), slide)


def test_tumour_in_the_padding_is_refused(tmp_path):
    with pytest.raises(AnnotationError, match="another shape"):
        read_annotation(write(tmp_path / "a.tif", np.ones((2048, 2048), np.uint8)), (2000, 2000))


def test_mask_of_the_scanned_part_lies_there(tmp_path):
    pixels = np.zeros((30, 40), np.uint8)
    pixels[:10] = 1
    annotation = read_annotation(write(tmp_path / "a.tif", pixels), (1000, 900), bounds=(200, 100, 400, 300))
    assert annotation.tumour.bounds == (200, 100, 600, 200) and annotation.tumour.area_px == 400 * 100


def test_header_that_claims_too_much_is_refused_before_anything_is_read(tmp_path):
    path = write(tmp_path / "a.tif", MASK)
    content = path.read_bytes()
    with tifffile.TiffFile(path) as tiff:
        offsets = [tiff.pages[0].tags[name].valueoffset for name in ("ImageWidth", "ImageLength")]
    for offset in offsets:
        content = content[:offset] + (60000).to_bytes(2, "little") + content[offset + 2 :]
    path.write_bytes(content)
    with pytest.raises(AnnotationError, match="claims"):
        read_annotation(path, (60000, 60000))


@pytest.mark.parametrize("content", [b"", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"II*\0\xff\xff\xff\xff", b"\x89PNG\r\n\x1a\n"])
def test_foreign_bytes_are_refused(tmp_path, content):
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(AnnotationError, match=r"a\.tif is not a mask"):
        read_annotation(tmp_path / "a.tif", SIZE)
