"""Slides as OpenSlide reads them: opened, their physical size resolved, and read at any scale."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path

import numpy as np
import openslide
from PIL import Image

from mgi.errors import SlideError
from mgi.prepare.native import CACHED_PX, NativeLevel, open_native
from mgi.prepare.pictures import DESCRIPTION, Picture, PictureError, is_picture, read_ome_mpp, read_picture

MAX_SIDE_PX = 2**20
MAX_STORED_TILE_PX = 8192 * 8192
# Even blank tiles take a byte for every 64 pixels as JPEG, for every 350 as deflate.
MAX_PX_PER_BYTE = 4000
BLOCK_PX = 2048
THREADS = 2
# A level that is a hair too coarse, as 4.0003 for 4, is the level meant.
LEVEL_TOLERANCE = 1.01
OPAQUE = 255
CACHE_BYTES = 2**27
# How much coarser than the tiles level 0 may be.
MAX_UPSAMPLING = 1.25
MAX_ANISOTROPY = 0.05
# Microns per pixel of level 0: no scanner is finer, and a whole slide at more is a thumbnail.
PLAUSIBLE_MPP = (0.05, 10.0)
REMEDIES = (
    "write it into the slide, state it (a table of slides, or --default-mpp) if you know the scanner's, or leave the "
    "slide out"
)


@dataclass(frozen=True)
class Resolution:
    """Microns per pixel of level 0, and whether a table, the slide's metadata or a default said so."""

    mpp: float
    source: str


class Slide(openslide.OpenSlide):
    """A slide of OpenSlide, some of whose levels may be decoded without it."""

    native: Mapping[int, NativeLevel]

    # OpenSlide computes these anew whenever they are asked for, which is for every tile.
    @cached_property
    def level_dimensions(self) -> tuple[tuple[int, int], ...]:
        """Width and height of each level, pixels."""
        return super().level_dimensions

    @cached_property
    def level_downsamples(self) -> tuple[float, ...]:
        """Pixels of level 0 to a pixel of each level."""
        return super().level_downsamples

    def read_rgb(self, x: int, y: int, level: int, size: tuple[int, int]) -> np.ndarray:
        """Read a window as `read_region` does, as uint8 [H, W, 3]; what was not scanned is white.

        `x` and `y` are pixels of level 0, `size` is width and height in pixels of `level`, all within the slide.
        """
        downsample = self.level_downsamples[level]
        if level in self.native and x % downsample == 0 and y % downsample == 0:
            return self.native[level].read(int(x / downsample), int(y / downsample), *size)
        pixels = np.asarray(self.read_region((x, y), level, size))
        colours, alpha = pixels[..., :3], pixels[..., 3:]
        if alpha.min() == OPAQUE:
            return np.ascontiguousarray(colours)
        white = Image.new("RGBA", size, (255, 255, 255, 255))
        return np.asarray(Image.alpha_composite(white, Image.fromarray(pixels)).convert("RGB"))


@contextmanager
def open_slide(path: Path, cached_share: float = 1.0) -> Iterator[Slide | Picture]:
    """Open a slide, or a plain picture, with one sentence in the `OpenSlideError` where it cannot be read.

    Its decoded tiles take some 330 MB of memory at most, times `cached_share`.
    """
    if not path.is_file():
        raise openslide.OpenSlideError("no regular file")
    try:
        slide = Slide(path)
    except openslide.OpenSlideUnsupportedFormatError as error:
        yield _open_picture(path, error)
        return
    slide.set_cache(openslide.OpenSlideCache(int(CACHE_BYTES * cached_share)))
    with slide, open(path, "rb") as file:
        check_header(slide, path)
        slide.native = open_native(path, slide, file.fileno(), int(CACHED_PX * cached_share))
        yield slide


def _open_picture(path: Path, unsupported: openslide.OpenSlideError) -> Picture:
    """Read a file that OpenSlide does not."""
    if not is_picture(path):
        raise openslide.OpenSlideError("not a slide that OpenSlide reads") from unsupported
    try:
        return read_picture(path)
    except PictureError as error:
        raise openslide.OpenSlideError(f"not a slide that OpenSlide reads, nor a plain picture: {error}") from error


def check_header(slide: openslide.OpenSlide, path: Path) -> None:
    """Check that a slide can be what its header claims, before anything is allocated for it.

    Raises
    ------
    SlideError
        If a side has more than 1,048,576 pixels, a stored tile more than 8192 x 8192, or the file is too small by far
        for its pixels.
    """
    width, height = slide.dimensions
    if max(width, height) > MAX_SIDE_PX:
        raise SlideError(f"implausible size: its header claims {width} x {height} pixels")
    for level in range(slide.level_count):
        sides = (slide.properties.get(f"openslide.level[{level}].tile-{side}", "0") for side in ("width", "height"))
        tile_width, tile_height = (int(side) if side.isdecimal() else 0 for side in sides)
        if tile_width * tile_height > MAX_STORED_TILE_PX:
            raise SlideError(f"implausible tiles: level {level} is stored in tiles of {tile_width} x {tile_height}")
    with open(path, "rb") as file:
        is_tiff = file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    size = path.stat().st_size
    if is_tiff and width * height > MAX_PX_PER_BYTE * size:
        raise SlideError(f"implausible size: its header claims {width} x {height} pixels in a file of {size} bytes")


def scanned_bounds(slide: Slide | Picture) -> tuple[int, int, int, int] | None:
    """Return x, y, width and height of the scanned part of level 0, None where the slide does not state one."""
    keys = (
        openslide.PROPERTY_NAME_BOUNDS_X,
        openslide.PROPERTY_NAME_BOUNDS_Y,
        openslide.PROPERTY_NAME_BOUNDS_WIDTH,
        openslide.PROPERTY_NAME_BOUNDS_HEIGHT,
    )
    try:
        x, y, width, height = (int(slide.properties[key]) for key in keys)
    except (KeyError, ValueError):
        return None
    return None if (x, y, width, height) == (0, 0, *slide.dimensions) else (x, y, width, height)


def resolve_mpp(
    properties: Mapping[str, str], mpp: float, default_mpp: float | None = None, stated_mpp: float | None = None
) -> Resolution:
    """Resolve the microns per pixel of level 0: what the user states for this slide, its metadata, then the default.

    The resolution tag of a plain TIFF, which many programs write without meaning it, comes after the default.

    Parameters
    ----------
    properties : mapping
        OpenSlide's properties of the slide.
    mpp : float
        That of the tiles.
    default_mpp, stated_mpp : float, optional
        What the user states for slides without it, and for this slide.

    Raises
    ------
    SlideError
        If none states a possible one, or level 0 is too coarse for the tiles.
    """
    if stated_mpp is not None:
        resolution = Resolution(stated_mpp, "table")
    else:
        found, reason = _metadata_mpp(properties)
        only_a_tag = properties.get(openslide.PROPERTY_NAME_VENDOR) == "generic-tiff" and not _find_ome_mpp(properties)
        if default_mpp is not None and (found is None or only_a_tag):
            resolution = Resolution(default_mpp, "default")
        elif found is not None:
            resolution = Resolution(found, "metadata")
        else:
            raise SlideError(f"{reason}; {REMEDIES}")
    if resolution.mpp > MAX_UPSAMPLING * mpp:
        raise SlideError(
            f"too coarse: level 0 has {resolution.mpp:g} microns per pixel and tiles were asked at {mpp:g}"
        )
    return resolution


def _find_ome_mpp(properties: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the microns per pixel of OME metadata, of which OpenSlide knows nothing."""
    return read_ome_mpp(properties.get(DESCRIPTION, ""))


def _metadata_mpp(properties: Mapping[str, str]) -> tuple[float | None, str]:
    """Return what the metadata state, or None and the reason."""
    keys = (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)
    stated = _find_ome_mpp(properties) or [properties.get(key) for key in keys]
    if None in stated:
        return None, "no mpp: its metadata state no microns per pixel"
    low, high = PLAUSIBLE_MPP
    values = []
    for text in stated:
        try:
            values.append(float(text or "nan"))
        except ValueError:
            values.append(float("nan"))
        if not (isfinite(values[-1]) and low <= values[-1] <= high):
            dpi = f" ({25400 / values[-1]:.0f} dpi)" if values[-1] > high and isfinite(values[-1]) else ""
            return None, (
                f"implausible mpp: its metadata state {text} microns per pixel{dpi}, and level 0 of a slide has "
                f"{low:g} to {high:g}"
            )
    across, down = values
    if abs(across - down) > MAX_ANISOTROPY * min(across, down):
        return None, f"mpp differs by direction: {across:g} across and {down:g} down"
    return (across + down) / 2, ""


@dataclass(frozen=True)
class Region:
    """Pixels read from a level, uint8 [H, W, 3], with the place of their top-left corner in level-0 pixels."""

    pixels: np.ndarray
    x: int
    y: int
    downsample: float

    def resample(self, box: tuple[float, ...], size: tuple[int, int], resampling: Image.Resampling) -> np.ndarray:
        """Resample a box of level-0 coordinates, fractions of pixels included, to `size`, as uint8 [H, W, 3]."""
        left, top, right, bottom = (
            (edge - origin) / self.downsample for edge, origin in zip(box, (self.x, self.y) * 2, strict=True)
        )
        height, width = self.pixels.shape[:2]
        inside = (max(left, 0), max(top, 0), min(right, width), min(bottom, height))
        if (right - left, bottom - top) == size and all(edge == int(edge) for edge in inside):
            # At its own scale, on whole pixels, resampling would change nothing.
            return self.pixels[int(inside[1]) : int(inside[3]), int(inside[0]) : int(inside[2])]
        return np.asarray(Image.fromarray(self.pixels).resize(size, resampling, box=inside))


def read_region(slide: Slide | Picture, level: int, box: tuple[float, ...]) -> Region:
    """Read a level under a box of level-0 coordinates, cut to the slide; what was not scanned is white."""
    downsample = slide.level_downsamples[level]
    x, y = max(0, int(box[0])), max(0, int(box[1]))
    width, height = (
        max(1, min(int(np.ceil((stop - start) / downsample)), length - int(start / downsample)))
        for start, stop, length in zip((x, y), box[2:], slide.level_dimensions[level], strict=True)
    )
    return Region(slide.read_rgb(x, y, level, (width, height)), x, y, downsample)


def read_downsampled(slide: Slide | Picture, scale: float, beat: Callable[[], None] = lambda: None) -> np.ndarray:
    """Read the whole slide at `scale` level-0 pixels per pixel, as uint8 [H, W, 3]; call `beat` after each block."""
    level = slide.get_best_level_for_downsample(max(scale, 1.0) * LEVEL_TOLERANCE)
    width, height = (max(1, round(length / scale)) for length in slide.dimensions)
    across, down = slide.dimensions[0] / width, slide.dimensions[1] / height
    step = max(1, int(BLOCK_PX * slide.level_downsamples[level] / scale))
    pixels = np.empty((height, width, 3), np.uint8)

    def read_block(corner: tuple[int, int]) -> None:
        top, left = corner
        bottom, right = min(top + step, height), min(left + step, width)
        box = (left * across, top * down, right * across, bottom * down)
        region = read_region(slide, level, box)
        pixels[top:bottom, left:right] = region.resample(box, (right - left, bottom - top), Image.Resampling.BOX)

    corners = [(top, left) for top in range(0, height, step) for left in range(0, width, step)]
    with ThreadPoolExecutor(THREADS) as threads:
        for _ in threads.map(read_block, corners):
            beat()
    return pixels
