"""Plain pictures of tissue, such as fields cut from slides: PNG, JPEG and TIFF that OpenSlide does not read."""

import html
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from mgi.prepare.native import NativeLevel

MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
COLOURS = ("RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr", "LAB")
# Decoded whole, three bytes a pixel: larger ones are slides, which are read in parts.
MAX_PICTURE_PX = 2**27
TOO_LARGE = f"more than {MAX_PICTURE_PX} pixels are too many for a plain picture; save it as a tiled TIFF"
UPRIGHT = 1
BITS_TAG, DESCRIPTION_TAG, ORIENTATION_TAG = 258, 270, 274
# In the header chunk.
PNG_BITS_AT = 24
DESCRIPTION = "tiff.ImageDescription"
OME_PIXELS = re.compile(r"<(?:\w+:)?Pixels\b[^>]{0,10000}>")
MICRONS = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4}


class PictureError(Exception):
    """A file is no picture that can be tiled; the text says why."""


class Picture:
    """A picture in memory, read as a slide of one level is.

    Parameters
    ----------
    pixels : uint8 array [H, W, 3]
    properties : dict of str to str
        What its file states, under OpenSlide's names.
    """

    level_count = 1
    # It has no tiles of its own.
    native: Mapping[int, NativeLevel] = MappingProxyType({})
    level_downsamples = (1.0,)

    def __init__(self, pixels: np.ndarray, properties: dict[str, str]) -> None:
        self._pixels = pixels
        self.dimensions = (pixels.shape[1], pixels.shape[0])
        self.level_dimensions = (self.dimensions,)
        self.properties = MappingProxyType(properties)

    def get_best_level_for_downsample(self, downsample: float) -> int:
        """Return the only level."""
        return 0

    def read_rgb(self, x: int, y: int, level: int, size: tuple[int, int]) -> np.ndarray:
        """Read a window within the picture, of width and height `size`."""
        return np.ascontiguousarray(self._pixels[y : y + size[1], x : x + size[0]])


def is_picture(path: Path) -> bool:
    """Return whether a file begins as a PNG, a JPEG or a TIFF does."""
    with open(path, "rb") as file:
        return file.read(4).startswith(MAGIC)


def read_picture(path: Path) -> Picture:
    """Read a picture of 8-bit colours; transparent pixels become white.

    Raises
    ------
    PictureError
        If it is none, is damaged, grey, of more bits, of several pages, turned by its EXIF orientation, or larger than
        134,217,728 pixels.
    """
    try:
        with warnings.catch_warnings():
            # The size is checked below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG", "JPEG", "TIFF")) as image:
                _check_header(image, path)
                description = _read_description(image) if isinstance(image, TiffImageFile) else ""
                pixels = _to_rgb(image)
    except PictureError:
        raise
    except Image.DecompressionBombError as error:
        raise PictureError(TOO_LARGE) from error
    except Exception as error:  # damaged bytes raise almost anything in a decoder
        raise PictureError(" ".join(str(error).split())[:200] or type(error).__name__) from error
    return Picture(pixels, {DESCRIPTION: description} if description else {})


def _read_description(image: TiffImageFile) -> str:
    """Return the description of a TIFF, which Pillow takes for Latin-1; OME metadata are UTF-8."""
    text = str(image.tag_v2.get(DESCRIPTION_TAG, ""))
    try:
        return text.encode("latin-1").decode()
    except UnicodeError:
        return text


def _check_header(image: Image.Image, path: Path) -> None:
    """Refuse what would be misread, before a pixel is decoded."""
    if image.width * image.height > MAX_PICTURE_PX:
        raise PictureError(TOO_LARGE)
    if (bits := _count_bits(image, path)) > 8:
        raise PictureError(f"its samples have {bits} bits; save it as 8-bit RGB")
    if image.mode not in COLOURS:
        raise PictureError(f"it is not in colour (mode {image.mode}), by which tissue is found; save it as 8-bit RGB")
    orientation = image.getexif().get(ORIENTATION_TAG, UPRIGHT)
    if orientation != UPRIGHT:
        raise PictureError(f"its EXIF orientation is {orientation}, so programs turn it differently; save it upright")
    size = image.size
    for page in range(1, getattr(image, "n_frames", 1)):
        image.seek(page)
        # The pages of a pyramid are smaller.
        if image.size == size:
            raise PictureError("it has several pages of one size; save one")
    image.seek(0)


def _count_bits(image: Image.Image, path: Path) -> int:
    """Return the bits of a sample, of which Pillow drops those beyond eight."""
    if isinstance(image, TiffImageFile):
        return max(np.atleast_1d(image.tag_v2.get(BITS_TAG, 1)))
    if image.format == "PNG":
        with open(path, "rb") as file:
            return file.read(PNG_BITS_AT + 1)[PNG_BITS_AT]
    return 8


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Decode an image to uint8 [H, W, 3], over white where it is transparent."""
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB"))
    layer = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, layer).convert("RGB"))


def read_ome_mpp(description: str) -> tuple[str, str] | None:
    """Return the microns per pixel, across and down, of OME metadata as text; None where they state none."""
    found = OME_PIXELS.search(description) if "<OME" in description or ":OME" in description else None
    if found is None:
        return None
    values = []
    for axis in "XY":
        size = re.search(rf'\bPhysicalSize{axis}="([0-9.eE+-]{{1,30}})"', found[0])
        unit = re.search(rf'\bPhysicalSize{axis}Unit="([^"]{{1,20}})"', found[0])
        factor = MICRONS.get(html.unescape(unit[1]) if unit else "µm")
        if size is None or factor is None:
            return None
        try:
            values.append(f"{float(size[1]) * factor:g}")
        except ValueError:
            return None
    return values[0], values[1]
