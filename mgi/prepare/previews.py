"""Pictures of a whole slide: its tissue, the tiles that are kept of it, and its annotation."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from mgi.prepare.annotations import Annotation
from mgi.prepare.tiling import Grid

TISSUE_LINE, TUMOUR_LINE = (255, 220, 0), (213, 94, 0)
KEPT, BLURRED = (0, 130, 60), (0, 114, 178)
# Smaller tiles would hide the slide under their outlines, and are tinted.
MIN_OUTLINED_PX = 10.0
TINT = 0.3
# Of the longer side, so that lines can be seen on a sheet of many slides.
LINE_SHARE = 1 / 400


@dataclass(frozen=True)
class Overview:
    """What is drawn of a slide.

    Attributes
    ----------
    pixels : uint8 array [H, W, 3]
        A thumbnail of the whole slide.
    dimensions : (int, int)
        Width and height of level 0.
    tissue : bool array [h, w]
        Tissue of the whole slide, at any scale.
    grid : Grid
        Its tiles.
    kept, blurred : bool array [rows, columns]
        Tiles that are kept, and those that are left out as out of focus.
    annotation : Annotation, optional
        Its tumour.
    """

    pixels: np.ndarray
    dimensions: tuple[int, int]
    tissue: np.ndarray
    grid: Grid
    kept: np.ndarray
    blurred: np.ndarray
    annotation: Annotation | None = None


def draw_preview(overview: Overview) -> Image.Image:
    """Draw tissue (yellow), tumour (vermilion), and tiles kept (green) and out of focus (blue) over a thumbnail."""
    picture = Image.fromarray(overview.pixels)
    scale = overview.dimensions[0] / picture.width
    _draw_tiles(picture, overview.grid, overview.kept, KEPT, scale)
    _draw_tiles(picture, overview.grid, overview.blurred, BLURRED, scale)
    tissue = Image.fromarray(overview.tissue).resize(picture.size, Image.Resampling.NEAREST)
    _draw_outline(picture, np.asarray(tissue), TISSUE_LINE)
    if overview.annotation is not None:
        longest = max(picture.size)
        # A square window, which reaches beyond the shorter side.
        tumour = overview.annotation.mask(0, 0, longest * scale, longest).astype(bool)
        _draw_outline(picture, tumour[: picture.height, : picture.width], TUMOUR_LINE)
    return picture


def _draw_tiles(
    picture: Image.Image, grid: Grid, chosen: np.ndarray, colour: tuple[int, int, int], scale: float
) -> None:
    """Outline tiles, or tint them where they are small."""
    boxes = [
        (x / scale, y / scale, (x + grid.edge) / scale, (y + grid.edge) / scale)
        for y, x in ((grid.y[row], grid.x[column]) for row, column in np.argwhere(chosen))
    ]
    if grid.edge / scale >= MIN_OUTLINED_PX:
        draw = ImageDraw.Draw(picture)
        for box in boxes:
            draw.rectangle(box, outline=colour, width=_line_px(picture))
        return
    covered = Image.new("L", picture.size)
    draw = ImageDraw.Draw(covered)
    for box in boxes:
        draw.rectangle(box, fill=round(255 * TINT))
    picture.paste(colour, mask=covered)


def _draw_outline(picture: Image.Image, mask: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Outline a mask, bool [H, W], of the picture's own size."""
    outline = mask & ~ndimage.binary_erosion(mask, iterations=_line_px(picture))
    picture.paste(colour, mask=Image.fromarray(outline))


def _line_px(picture: Image.Image) -> int:
    return max(1, round(max(picture.size) * LINE_SHARE))
