"""The JPEG tiles of a TIFF slide, decoded as they are stored: the same pixels as OpenSlide's, several times as fast."""

import os
from collections import OrderedDict
from pathlib import Path
from threading import Lock

import numpy as np
import openslide
import tifffile

from mgi.codecs import decode_image

JPEG = 7
MAX_STORED_TILE_PX = 4096 * 4096
# The stored tiles under one row of tiles, of which the next reads some again: 60,000 px wide, four rows of 256 px.
CACHED_PX = 2**26
SAMPLE_PX = 256
RGB = 2
COMPONENTS = 3
SOI, EOI = b"\xff\xd8", b"\xff\xd9"
# Baseline and extended sequential frames.
FRAMES = (0xC0, 0xC1)
START_OF_SCAN = 0xDA
# Adobe's segment says whether colours are transformed, which a decoder would guess otherwise.
ADOBE_RGB, ADOBE_YCC = (b"\xff\xee\0\x0eAdobe\0d\0\0\0\0" + transform for transform in (b"\0", b"\1"))


class NativeLevel:
    """One level of a slide, stored as JPEG tiles.

    Parameters
    ----------
    file : int
        Descriptor of the open file, which stays the caller's.
    page : tifffile.TiffPage
        The level: see `is_native`.
    cached_px : int
        Pixels of decoded tiles that are kept.
    """

    def __init__(self, file: int, page: tifffile.TiffPage, cached_px: int = CACHED_PX) -> None:
        self._file, self._page = file, page
        self.edges = page.tilewidth, page.tilelength
        # Whether the stored bytes, made into files, decode to the same pixels: set after trying one.
        self.copies = False
        self._across = -(-page.imagewidth // page.tilewidth)
        self._cache: OrderedDict[int, np.ndarray] = OrderedDict()
        self._most = max(4, cached_px // (page.tilewidth * page.tilelength))
        self._lock = Lock()

    def read(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Read a window within the level, in pixels of the level, as uint8 [height, width, 3].

        Raises
        ------
        OpenSlideError
            If a tile is damaged.
        """
        pixels = np.empty((height, width, 3), np.uint8)
        across, down = self.edges
        for row in range(y // down, -(-(y + height) // down)):
            for column in range(x // across, -(-(x + width) // across)):
                tile = self._tile(row * self._across + column)
                left, top = column * across - x, row * down - y
                part = tile[max(-top, 0) : height - top, max(-left, 0) : width - left]
                top, left = max(top, 0), max(left, 0)
                pixels[top : top + part.shape[0], left : left + part.shape[1]] = part
        return pixels

    def copy_tile(self, x: float, y: float, edge: int) -> bytes | None:
        """Return the JPEG file of a square window in pixels of the level, where it is exactly one whole stored tile.

        Its pixels are those that `read` returns. None where the window is no such tile.

        Raises
        ------
        OpenSlideError
            If the tile is damaged, as far as its header and end tell.
        """
        fits = self.edges == (edge, edge) and x % edge == 0 and y % edge == 0
        if not fits or not self.copies or x + edge > self._page.imagewidth or y + edge > self._page.imagelength:
            return None
        index = int(y) // edge * self._across + int(x) // edge
        try:
            return join_tables(self._load(index), self._page.jpegtables, self._page.photometric == RGB, edge)
        except ValueError as error:
            raise openslide.OpenSlideError(f"tile {index} is damaged: {error}") from error

    def _load(self, index: int) -> bytes:
        return os.pread(self._file, self._page.databytecounts[index], self._page.dataoffsets[index])

    def _tile(self, index: int) -> np.ndarray:
        with self._lock:
            if (held := self._cache.get(index)) is not None:
                self._cache.move_to_end(index)
                return held
        page = self._page
        try:
            decoded = page.decode(self._load(index), index, jpegtables=page.jpegtables)[0]
            if decoded is None:
                raise ValueError("it is empty")
            tile = decoded[0]
            if tile.shape != (self.edges[1], self.edges[0], 3):
                raise ValueError(f"it has the shape {tile.shape}")
        except Exception as error:  # damaged bytes raise almost anything in a decoder
            raise openslide.OpenSlideError(f"tile {index} is damaged: {str(error)[:200]}") from error
        with self._lock:
            self._cache[index] = tile
            while len(self._cache) > self._most:
                self._cache.popitem(last=False)
        return tile


def open_native(path: Path, slide: openslide.OpenSlide, file: int, cached_px: int) -> dict[int, NativeLevel]:
    """Return the levels of a slide that can be decoded so: those whose tile in the middle is what OpenSlide reads.

    See `NativeLevel` for `file` and `cached_px`.
    """
    found: dict[int, NativeLevel] = {}
    if slide.properties.get(openslide.PROPERTY_NAME_VENDOR) not in ("aperio", "generic-tiff"):
        return found
    try:
        with tifffile.TiffFile(path) as tiff:
            pages = [page for page in tiff.pages if isinstance(page, tifffile.TiffPage) and _is_native(page)]
            for level, dimensions in enumerate(slide.level_dimensions):
                page = next((page for page in pages if (page.imagewidth, page.imagelength) == dimensions), None)
                if page is None:
                    continue
                native = NativeLevel(file, page, cached_px)
                x, y = (length // 2 // edge * edge for length, edge in zip(dimensions, native.edges, strict=True))
                width, height = (
                    min(edge, length - start, SAMPLE_PX)
                    for edge, length, start in zip(native.edges, dimensions, (x, y), strict=True)
                )
                downsample = slide.level_downsamples[level]
                there = slide.read_region((round(x * downsample), round(y * downsample)), level, (width, height))
                if np.array_equal(np.asarray(there)[..., :3], native.read(x, y, width, height)):
                    native.copies = _decodes_alike(native, x, y)
                    found[level] = native
    except Exception:  # tifffile on foreign bytes raises almost anything; OpenSlide reads the slide, or says why not
        return {}
    return found


def _decodes_alike(native: NativeLevel, x: int, y: int) -> bool:
    """Return whether the file of a stored tile decodes, as files of tiles are read, to the pixels of the level."""
    edge = native.edges[0]
    native.copies = True
    content = native.copy_tile(x, y, edge)
    return content is not None and np.array_equal(decode_image(content), native.read(x, y, edge, edge))


def join_tables(content: bytes, tables: bytes | None, is_rgb: bool, edge: int) -> bytes:
    """Make a JPEG file of a tile whose tables the TIFF keeps apart.

    Parameters
    ----------
    content : bytes
        An abbreviated or whole JPEG stream.
    tables : bytes, optional
        A stream of tables alone.
    is_rgb : bool
        Whether its components are red, green and blue, rather than luma and chroma.
    edge : int
        Width and height that it must have, pixels.

    Raises
    ------
    ValueError
        If it is no complete stream of a baseline JPEG of three components and this size.
    """
    if content[:2] != SOI or content.rstrip(b"\0\xff")[-1:] != EOI[1:]:
        raise ValueError("it is no complete JPEG stream")
    if _read_frame(content) != (edge, edge, COMPONENTS):
        raise ValueError("its frame is of another size")
    middle = tables[len(SOI) : -len(EOI)] if tables else b""
    return SOI + (ADOBE_RGB if is_rgb else ADOBE_YCC) + middle + content[len(SOI) :]


def _read_frame(content: bytes) -> tuple[int, int, int] | None:
    """Return height, width and components of a JPEG stream's frame; None where it has none before its scan."""
    place = len(SOI)
    while content[place : place + 1] == b"\xff" and place + 9 < len(content):
        marker, length = content[place + 1], int.from_bytes(content[place + 2 : place + 4], "big")
        if marker in FRAMES:
            height, width = (int.from_bytes(content[place + k : place + k + 2], "big") for k in (5, 7))
            return height, width, content[place + 9]
        if marker == START_OF_SCAN:
            return None
        place += 2 + length
    return None


def _is_native(page: tifffile.TiffPage) -> bool:
    return (
        page.is_tiled
        and page.compression == JPEG
        and page.dtype == np.uint8
        and page.axes == "YXS"
        and page.samplesperpixel == 3
        and page.tilewidth * page.tilelength <= MAX_STORED_TILE_PX
        and len(page.databytecounts) == -(-page.imagewidth // page.tilewidth) * -(-page.imagelength // page.tilelength)
        and min(page.databytecounts) > 0
    )
