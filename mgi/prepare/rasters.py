"""Other people's TIFF, PNG and JPEG files: the samples as stored, of files of which nothing is believed."""

import io
import itertools
import zipfile
from pathlib import Path
from typing import Protocol

import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

# Decoded, of one image: checked from the header, before anything is allocated.
MAX_BYTES = 2**30
MAX_FILE_BYTES = 2**31
MAX_PAGES = 64
ORIENTATION_TAG, UPRIGHT = 274, 1
# Pillow scales samples of fewer than eight bits up to 255.
PILLOW_SCALE = {1: 255, 2: 85, 4: 17, 8: 1}


class RasterError(Exception):
    """A file is no image that can be read here; the text says why."""


class Readable(Protocol):
    """A file, on the disk or in a zip."""

    @property
    def name(self) -> str:
        """The file's name, without its folder."""
        ...

    def is_file(self) -> bool:
        """Return whether it is a regular file, which can be read without waiting."""
        ...

    def read_bytes(self) -> bytes:
        """Return the content."""
        ...


def read_limited(file: Readable, max_bytes: int) -> bytes:
    """Return the content of a regular file, no further than a limit, whatever its zip claims of its size.

    Raises
    ------
    RasterError
        If it is longer, or no regular file, which might be waited for forever.
    """
    if not file.is_file():
        raise RasterError("it is no regular file")
    if isinstance(file, Path) and file.stat().st_size > max_bytes:
        raise RasterError(f"it is larger than {max_bytes >> 20} MiB")
    if not isinstance(file, zipfile.Path):
        return file.read_bytes()
    with file.open("rb") as handle:
        content: bytes = handle.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise RasterError(f"it is larger than {max_bytes >> 20} MiB")
    return content


def read_samples(path: Readable, max_bytes: int = MAX_FILE_BYTES) -> np.ndarray:
    """Read the samples of an image as they are stored, before any palette, inversion or colour conversion.

    Parameters
    ----------
    path : Path or zipfile.Path
        A TIFF of one page (with reduced copies of it or without), a PNG, or a JPEG.
    max_bytes : int
        Limit on the size of the file.

    Returns
    -------
    array [H, W] or [H, W, channels]
        bool of one-bit samples; of samples of 2 and 4 bits, their values as uint8.

    Raises
    ------
    RasterError
        If it is none of these, is damaged, has several pages, or holds more than 1 GiB.
    """
    try:
        content = read_limited(path, max_bytes)
        tiff = content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
        return _read_tiff(content) if tiff else _read_picture(content)
    except RasterError:
        raise
    except Image.DecompressionBombError as error:
        raise RasterError(f"its header claims more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels") from error
    except LookupError as error:
        raise RasterError("it is damaged") from error
    except UnidentifiedImageError as error:
        raise RasterError("it is not a TIFF, PNG or JPEG") from error
    except Exception as error:  # damaged bytes raise almost anything in a decoder
        raise RasterError(" ".join(str(error).split())[:200] or type(error).__name__) from error


def to_plane(samples: np.ndarray) -> np.ndarray:
    """Reduce samples to one plane [H, W], where their channels are equal and their alpha says nothing.

    Raises
    ------
    RasterError
        If the channels differ, or some pixels are transparent.
    """
    if samples.ndim == 2:
        return samples
    channels = samples.shape[2]
    if channels in (2, 4):
        alpha = samples[..., -1]
        if channels == 4 and (alpha == alpha[0, 0]).all() and not _equal(samples[..., :3]):
            raise RasterError("its colour channels differ; save it with one channel")
        if not (alpha == alpha[0, 0]).all():
            raise RasterError("some of its pixels are transparent; save it with one channel and no alpha")
        samples = samples[..., :-1]
    if not _equal(samples):
        raise RasterError(f"its {samples.shape[2]} channels differ; save it with one channel")
    return samples[..., 0]


def _equal(samples: np.ndarray) -> bool:
    return bool((samples == samples[..., :1]).all())


def _read_tiff(content: bytes) -> np.ndarray:
    with tifffile.TiffFile(io.BytesIO(content)) as tiff:
        page = tiff.pages.first
        others = list(itertools.islice(tiff.pages, 1, MAX_PAGES))
        # Those of a pyramid are smaller.
        if any(max(other.shape) >= max(page.shape) for other in others):
            raise RasterError(f"it has {len(others) + 1} pages; save one")
        _check_size(page.shape, page.dtype)
        _check_upright(page.tags.valueof(ORIENTATION_TAG, UPRIGHT))
        axes, samples = page.axes, page.asarray(maxworkers=1)
        if page.colormap is not None:
            _check_palette(samples, page.colormap.T >> 8)
    if axes == "SYX":
        samples, axes = np.moveaxis(samples, 0, -1), "YXS"
    if axes not in ("YX", "YXS") or samples.ndim != len(axes) or not samples.size:
        raise RasterError(f"its axes are {axes}, not one image")
    return samples


def _read_picture(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
        if (frames := getattr(image, "n_frames", 1)) > 1:
            raise RasterError(f"it has {frames} frames; save one")
        _check_size((image.height, image.width, len(image.getbands())), np.dtype(np.uint32))
        # The ninth byte of a PNG's header chunk.
        bits = content[24] if image.format == "PNG" and image.mode == "L" else 8
        _check_upright(image.getexif().get(ORIENTATION_TAG, UPRIGHT))
        samples = np.asarray(image)
        if image.mode == "P":
            _check_palette(samples, np.reshape(image.getpalette("RGB") or [], (-1, 3)))
    return samples // PILLOW_SCALE[bits] if PILLOW_SCALE[bits] > 1 else samples


def _check_upright(orientation: int) -> None:
    if orientation != UPRIGHT:
        raise RasterError(f"its orientation tag is {orientation}, so programs turn it differently; save it upright")


def _check_palette(samples: np.ndarray, colours: np.ndarray) -> None:
    """Refuse two values of which the palette shows the larger, which should be the object, as the background.

    Programs that shrink images order palettes as they like, so that the white of a mask may be stored as 0.
    """
    low, high = samples.min(), samples.max()
    if high >= len(colours) or not ((samples == low) | (samples == high)).all():
        return
    grey_low, grey_high = np.ptp(colours[low]) == 0, np.ptp(colours[high]) == 0
    if grey_high and (not grey_low or colours[low][0] > colours[high][0]):
        shown = f"brighter than {high}" if grey_low else f"in colour and {high} in grey"
        raise RasterError(
            f"its palette shows the value {low} {shown}, so which is the object is in doubt; save it with one channel "
            "and no palette"
        )


def _check_size(shape: tuple[int, ...], dtype: np.dtype | None) -> None:
    held = 1 if dtype is None else dtype.itemsize
    for length in shape:
        held *= length
    if held > MAX_BYTES:
        size = " x ".join(map(str, shape))
        raise RasterError(f"its header claims {size} samples, more than {MAX_BYTES >> 30} GiB; save it coarser")
