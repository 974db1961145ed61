"""Tiles of which a table holds the place alone: their pixels are read from the slide when they are needed."""

import os
import stat
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from pydantic import Field, ValidationError

from mgi.config import Section
from mgi.errors import ImageTableError, SlideError
from mgi.names import quote
from mgi.prepare.pictures import Picture
from mgi.prepare.pixels import TileReader
from mgi.prepare.reader import MAX_SIDE_PX, Slide, open_slide

# What open slides may take together; a picture takes its pixels, a slide about this with its decoded tiles.
MAX_OPEN_BYTES = 2**31
SLIDE_BYTES = 2**24
# Training draws its tiles from all slides, so the next is seldom near the last.
CACHED_SHARE = 1 / 32
REMEDY = "bring that file back, or tile the slides again"


class _SlideFile(Section):
    """A slide that tiles are read from."""

    reads_text = False
    path: str = Field(min_length=1)
    size: int = Field(ge=0)


class _Stated(Section):
    """What a table states of the tiles that it holds the places of."""

    reads_text = False
    tile_px: int = Field(ge=32, le=4096)
    slides: dict[str, _SlideFile]


@dataclass(frozen=True)
class StoredSlide:
    """A slide whose tiles are read when they are needed.

    Attributes
    ----------
    path : Path
        Absolute, where the slide was when it was tiled.
    size : int
        Of that file, bytes.
    tile_px : int
        Edge of its tiles, pixels.
    """

    path: Path
    size: int
    tile_px: int

    def check(self) -> None:
        """Raise `ImageTableError` unless the file is there and of its size."""
        try:
            found = os.stat(self.path)
        except (OSError, ValueError):
            found = None
        if found is None or not stat.S_ISREG(found.st_mode):
            raise ImageTableError(
                f"the slide {quote(str(self.path), 300)}, from which tiles are read, is missing: {REMEDY}"
            )
        if found.st_size != self.size:
            raise ImageTableError(
                f"the slide {quote(str(self.path), 300)}, from which tiles are read, has {found.st_size} bytes and had "
                f"{self.size} when it was tiled: {REMEDY}"
            )


@dataclass(frozen=True, slots=True)
class SlideTile:
    """A tile of a slide: its top-left corner and its edge, in pixels of level 0."""

    slide: StoredSlide
    x: int
    y: int
    edge: float

    def read(self) -> np.ndarray:
        """Read the pixels, uint8 [tile_px, tile_px, 3]; several threads may.

        Raises
        ------
        ImageTableError
            If the slide is gone, of another size, unreadable, or has no such tile.
        """
        held = _open(self.slide)
        width, height = held.slide.dimensions
        if not (0 <= self.x < width and 0 <= self.y < height and 1 <= self.edge <= MAX_SIDE_PX):
            raise ImageTableError(
                f"the slide {quote(str(self.slide.path), 300)} of {width} x {height} pixels has no tile of "
                f"{self.edge:g} pixels at {self.x}, {self.y}: tile it again"
            )
        try:
            return TileReader(held.slide, self.edge, self.slide.tile_px).read(self.x, self.y)
        except Exception as error:  # damaged bytes raise almost anything in a decoder
            raise _describe(self.slide, error) from error

    def identify(self) -> bytes:
        """Return what tells the tile from others: the slide's name and size, and the place."""
        slide = self.slide
        return f"{slide.path.name}\0{slide.size} {slide.tile_px} {self.x} {self.y} {self.edge!r}".encode()


class _Held:
    """An open slide, which is closed when it is neither kept nor read any more."""

    def __init__(self, path: Path) -> None:
        stack = ExitStack()
        self.slide: Slide | Picture = stack.enter_context(open_slide(path, CACHED_SHARE))
        weakref.finalize(self, stack.close)

    @property
    def n_bytes(self) -> int:
        """Roughly the memory it takes."""
        width, height = self.slide.dimensions
        return 3 * width * height if isinstance(self.slide, Picture) else SLIDE_BYTES


_kept: OrderedDict[StoredSlide, Future[_Held]] = OrderedDict()
_lock = Lock()


def _open(slide: StoredSlide) -> _Held:
    """Return a slide, opened once and kept while it is among the last that were read."""
    with _lock:
        opening = slide not in _kept
        future = _kept.setdefault(slide, Future())
        _kept.move_to_end(slide)
    if opening:
        try:
            slide.check()
            future.set_result(_Held(slide.path))
        except BaseException as error:  # Ctrl-C, too: no thread may wait for this slide for ever
            with _lock:
                _kept.pop(slide, None)
            is_fault = isinstance(error, Exception) and not isinstance(error, ImageTableError)
            refused = _describe(slide, error) if is_fault else error
            future.set_exception(refused)
            if refused is error:
                raise
            raise refused from error
        with _lock:
            _close_oldest()
    return future.result()


def _close_oldest() -> None:
    """Let go of the slides that were read longest ago, until the others are few enough."""
    sizes = {slide: one.result().n_bytes for slide, one in _kept.items() if one.done() and not one.exception()}
    total = sum(sizes.values())
    for slide in list(sizes)[:-1]:
        if total <= MAX_OPEN_BYTES:
            return
        total -= sizes[slide]
        del _kept[slide]


def _describe(slide: StoredSlide, error: BaseException) -> ImageTableError:
    reason = quote(" ".join(str(error).split()) or type(error).__name__, 300)[1:-1]
    return ImageTableError(
        f"the slide {quote(str(slide.path), 300)}, from which tiles are read, cannot be read: {reason}; {REMEDY}"
    )


def state_slides(slides: Iterable[tuple[str, Path]], tile_px: int) -> str:
    """Return as JSON what a table of places states of slides, given their source_id and path.

    Raises
    ------
    SlideError
        If a path is not UTF-8.
    """
    stated = {}
    for source_id, path in slides:
        resolved = path.resolve()
        try:
            stated[source_id] = _SlideFile(path=str(resolved), size=resolved.stat().st_size)
        except ValidationError as error:
            raise SlideError(f"the path {quote(str(resolved), 300)} is not UTF-8: rename its folders") from error
    return _Stated(tile_px=tile_px, slides=stated).model_dump_json()


def read_slides(stated: bytes, where: Path) -> dict[str, StoredSlide]:
    """Return the slides that a table of places states, by source_id.

    Parameters
    ----------
    stated : bytes
        JSON, as `state_slides` writes it; nothing else is trusted.
    where : Path
        The table, for the message.

    Raises
    ------
    ImageTableError
        If it is anything else.
    """
    try:
        read = _Stated.model_validate_json(stated)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise ImageTableError(
            f"{where} does not state the slides that its tiles are read from: {f'{quote(key, 100)}: ' if key else ''}"
            f"{quote(first['msg'], 200)[1:-1]}; tile them again"
        ) from error
    return {name: StoredSlide(Path(one.path), one.size, read.tile_px) for name, one in read.slides.items()}
