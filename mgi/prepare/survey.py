"""A look at the whole slide: its resolution, tissue and grid of tiles, and the picture of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openslide
from PIL import Image

from mgi.config import TileOptions
from mgi.console import log
from mgi.errors import AnnotationError, SlideError
from mgi.files import atomic_write, require_file
from mgi.prepare.annotations import Annotation, find_annotation, read_annotation
from mgi.prepare.isolation import IsolationError, run_isolated
from mgi.prepare.local import read_mpp_table
from mgi.prepare.pictures import Picture
from mgi.prepare.previews import Overview, draw_preview
from mgi.prepare.reader import Resolution, Slide, open_slide, read_downsampled, resolve_mpp, scanned_bounds
from mgi.prepare.tiling import Grid, make_grid
from mgi.prepare.tissue import TISSUE, classify_pixels, thumbnail_scale
from mgi.tables import source_of

# The longer side of a preview that is asked for, and of those that are made while slides are tiled.
PREVIEW_PX = 1600
SMALL_PREVIEW_PX = 1024
PREVIEW_QUALITY = 88
MAX_ROUNDING = 1e-6
# What is raised of a file that cannot be read.
UNREADABLE = (openslide.OpenSlideError, IsolationError)


def preview(slide: Path | str, output: Path | str, options: TileOptions) -> None:
    """Draw the tissue, the tiles that would be kept, and the annotation over a thumbnail, as PNG: see `draw_preview`.

    Raises
    ------
    MissingInputError
        If the slide, its annotation or the table of mpp is not there.
    SlideError
        If it is unusable.
    AnnotationError
        If its annotation is.
    """
    slide = require_file(slide, "slide")
    stated = {} if options.mpp_table is None else read_mpp_table(options.mpp_table)
    found = None if options.annotations is None else find_annotation(options.annotations, source_of(slide))
    try:
        overview = run_isolated(_look_over, slide, found, options, stated.get(source_of(slide)))
    except AnnotationError as error:
        raise AnnotationError(f"{slide.name}: {error}") from error
    except (SlideError, *UNREADABLE) as error:
        raise SlideError(f"{slide.name}: {error}") from error
    with atomic_write(output) as aside:
        draw_preview(overview).save(aside, "PNG")
    log.info("%d tiles kept of %d: %s", overview.kept.sum(), overview.grid.tissue.size, output)


def _look_over(
    beat: Callable[[], None],
    path: Path,
    annotation_path: Path | None,
    options: TileOptions,
    stated_mpp: float | None,
) -> Overview:
    """Return what is drawn of a slide that is not tiled."""
    with open_slide(path) as slide:
        annotation = annotate(slide, annotation_path, options)
        survey = survey_slide(beat, slide, options, stated_mpp)
        pixels = read_downsampled(slide, max(1.0, max(slide.dimensions) / PREVIEW_PX), beat)
        kept = survey.grid.keep(options.min_tissue, options.max_tiles)
        return survey.show(pixels, slide.dimensions, kept, np.zeros_like(kept), annotation)


@dataclass(frozen=True)
class Survey:
    """What a look at the whole slide tells.

    Attributes
    ----------
    resolution : Resolution
    thumbnail : uint8 array [H, W, 3]
    codes : uint8 array [H, W]
        What its pixels are: see `classify_pixels`.
    grid : Grid
    """

    resolution: Resolution
    thumbnail: np.ndarray
    codes: np.ndarray
    grid: Grid

    def show(
        self,
        pixels: np.ndarray,
        dimensions: tuple[int, int],
        kept: np.ndarray,
        blurred: np.ndarray,
        annotation: Annotation | None,
    ) -> Overview:
        """Return what is drawn over a thumbnail of any size."""
        return Overview(pixels, dimensions, self.codes == TISSUE, self.grid, kept, blurred, annotation)


def survey_slide(
    beat: Callable[[], None],
    slide: Slide | Picture,
    options: TileOptions,
    stated_mpp: float | None,
    overlap: float = 0.0,
) -> Survey:
    """Look at the whole slide once: `overlap` is the share of a tile's edge by which its neighbours reach into it.

    Raises
    ------
    SlideError
        If its microns per pixel are not known, or are too coarse for the tiles.
    """
    resolution = resolve_mpp(slide.properties, options.mpp, options.default_mpp, stated_mpp)
    scale = thumbnail_scale(slide.dimensions, resolution.mpp)
    thumbnail = read_downsampled(slide, scale, beat)
    codes = classify_pixels(thumbnail, scale * resolution.mpp)
    edge = _snap(options.tile_px * options.mpp / resolution.mpp)
    grid = make_grid(slide.dimensions, codes == TISSUE, edge, overlap, options.partial_tiles)
    return Survey(resolution, thumbnail, codes, grid)


def annotate(slide: Slide | Picture, path: Path | None, options: TileOptions) -> Annotation | None:
    """Read a slide's annotation, where it has one; raises `AnnotationError`."""
    return None if path is None else read_annotation(path, slide.dimensions, options, scanned_bounds(slide))


def write_preview(
    beat: Callable[[], None],
    slide: Slide | Picture,
    survey: Survey,
    kept: np.ndarray,
    blurred: np.ndarray,
    annotation: Annotation | None,
    path: Path,
) -> None:
    """Draw a slide while it is open, over the thumbnail that was read already unless that is small."""
    scale = max(slide.dimensions) / SMALL_PREVIEW_PX
    if max(survey.thumbnail.shape) < SMALL_PREVIEW_PX:
        pixels = read_downsampled(slide, max(1.0, scale), beat)
    else:
        width, height = (max(1, round(length / scale)) for length in slide.dimensions)
        pixels = np.asarray(Image.fromarray(survey.thumbnail).resize((width, height), Image.Resampling.BOX))
    picture = draw_preview(survey.show(pixels, slide.dimensions, kept, blurred, annotation))
    with atomic_write(path) as aside:
        picture.save(aside, "JPEG", quality=PREVIEW_QUALITY, subsampling="4:4:4")


def _snap(edge: float) -> float:
    """Return a whole number that an edge misses by rounding alone."""
    return float(round(edge)) if abs(edge - round(edge)) < MAX_ROUNDING else edge
