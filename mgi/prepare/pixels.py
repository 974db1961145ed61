"""The pixels of a slide's tiles: the same, whether they are stored or read when they are needed."""

from math import ceil, isclose

import numpy as np
from PIL import Image

from mgi.errors import SlideError
from mgi.prepare import reader
from mgi.prepare.pictures import Picture

LANCZOS_RADIUS = 3
# Of a level, under one tile: some 900 MB of memory on the way.
MAX_REGION_PX = 2**27


class TileReader:
    """The tiles of one size of a slide, each read by itself, at the finest sufficient level and by Lanczos' filter.

    Several threads may read at once.

    Parameters
    ----------
    slide : Slide or Picture
        Stays the caller's.
    edge : float
        Of a tile, pixels of level 0.
    tile_px : int
        Of a tile, its own pixels.

    Raises
    ------
    SlideError
        If a tile covers more than 134,217,728 pixels of the level.
    """

    def __init__(self, slide: reader.Slide | Picture, edge: float, tile_px: int) -> None:
        self._slide, self._edge, self._tile_px = slide, edge, tile_px
        self._level = slide.get_best_level_for_downsample(edge / tile_px * reader.LEVEL_TOLERANCE)
        self._downsample = slide.level_downsamples[self._level]
        self._at_scale = isclose(edge, tile_px * self._downsample, rel_tol=1e-9)
        # The filter reaches beyond a tile's edge; at the level's own scale there is none.
        self._margin = 0.0 if self._at_scale else LANCZOS_RADIUS * edge / tile_px + self._downsample
        reach = (edge + 2 * self._margin) / self._downsample
        width, height = (ceil(min(reach, length)) for length in slide.level_dimensions[self._level])
        if width * height > MAX_REGION_PX:
            raise SlideError(
                f"too few levels: a tile of {edge:g} x {edge:g} pixels covers {width} x {height} of its level "
                f"{self._level}, the nearest; make smaller or finer tiles"
            )

    def read(self, x: int, y: int) -> np.ndarray:
        """Read the tile at a place of level 0, uint8 [tile_px, tile_px, 3]; what lies beyond the slide is white."""
        margin, reach = self._margin, self._edge + self._margin
        region = reader.read_region(self._slide, self._level, (x - margin, y - margin, x + reach, y + reach))
        columns, rows = inside = self.count_inside(x, y)
        box = (x, y, x + self._edge * columns / self._tile_px, y + self._edge * rows / self._tile_px)
        pixels = region.resample(box, inside, Image.Resampling.LANCZOS)
        if inside == (self._tile_px, self._tile_px):
            return pixels
        whole = np.full((self._tile_px, self._tile_px, 3), 255, np.uint8)
        whole[:rows, :columns] = pixels
        return whole

    def copy(self, x: int, y: int) -> bytes | None:
        """Return the JPEG file of a tile that the slide stores just so; None where it stores no such tile."""
        native = self._slide.native.get(self._level) if self._at_scale else None
        return native.copy_tile(x / self._downsample, y / self._downsample, self._tile_px) if native else None

    def count_inside(self, x: int, y: int) -> tuple[int, int]:
        """Return how many columns and rows of a tile's pixels lie within the slide, at least one of each."""
        columns, rows = (
            min(self._tile_px, max(1, int((length - corner) / self._edge * self._tile_px + 1e-6)))
            for length, corner in zip(self._slide.dimensions, (x, y), strict=True)
        )
        return columns, rows
