"""Images and masks as bytes of JPEG and PNG: what the tables of images and predictions hold."""

import io
from typing import Any

import numpy as np
from PIL import Image

from mgi.errors import ImageTableError

JPEG_QUALITY = 90
# Grey levels of a mask's PNG; background is 0.
TUMOUR_LEVEL = 255
IGNORE_LEVEL = 128
# Larger than any tile or slice; checked from the header, before anything is allocated.
MAX_IMAGE_PX = 8192 * 8192


def encode_jpeg(pixels: np.ndarray) -> bytes:
    """Encode a uint8 image [H, W, 3] as JPEG of quality 90."""
    return _encode(pixels, "JPEG", quality=JPEG_QUALITY)


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode a uint8 image [H, W, 3] or plane [H, W] as PNG, without loss."""
    return _encode(pixels, "PNG")


def encode_mask(mask: np.ndarray, ignore: np.ndarray | None = None) -> bytes:
    """Encode a mask as PNG: 0 background, 255 tumour, 128 ignored.

    Parameters
    ----------
    mask : array [H, W]
        Tumour where not 0.
    ignore : array [H, W], optional
        Where not 0, the pixel is neither tumour nor background, whatever `mask` says.
    """
    levels = np.where(mask, np.uint8(TUMOUR_LEVEL), np.uint8(0))
    if ignore is not None:
        levels[ignore.astype(bool)] = IGNORE_LEVEL
    return _encode(levels, "PNG")


def decode_image(encoded: bytes) -> np.ndarray:
    """Decode JPEG or PNG bytes to a uint8 image [H, W, 3].

    Raises
    ------
    ImageTableError
        If they are not a JPEG or PNG, are damaged, or are larger than 8192 x 8192 pixels.
    """
    return _decode(encoded, "RGB")


def decode_mask(encoded: bytes) -> np.ndarray:
    """Decode the tumour of a mask's PNG bytes to uint8 [H, W] of 0 and 1; raises as `decode_image` does."""
    return (_decode(encoded, "L") == TUMOUR_LEVEL).astype(np.uint8)


def decode_ignore(encoded: bytes) -> np.ndarray:
    """Decode the ignored pixels of a mask's PNG bytes to bool [H, W]; raises as `decode_image` does."""
    return _decode(encoded, "L") == IGNORE_LEVEL


def _encode(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def _decode(encoded: bytes, mode: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG")) as image:
            if image.width * image.height > MAX_IMAGE_PX:
                raise ValueError(f"{image.width} x {image.height} pixels are too many")
            return np.asarray(image.convert(mode))
    except Exception as error:  # damaged bytes raise almost anything in a decoder
        raise ImageTableError(f"unreadable image in a table: {error}; make the table again") from error
