"""Tumour annotations of slides: polygons in GeoJSON, or coarse masks in TIFF, rasterised for any window.

The name of an annotation says its slide: the part before the first dot, without a trailing `_mask`, is the source_id,
as in `TCGA-A4-8098-01Z-00-DX1.geojson` and `TCGA-AC-A23C-01Z-00-DX1.0E67C785-..._mask.tiff`.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import shapely
from PIL import Image
from shapely.geometry import shape

from mgi.errors import AnnotationError, MissingInputError

POLYGONS = (".geojson",)
MASKS = (".tif", ".tiff")
NAMED_SO = "name an annotation {slide}.geojson or {slide}_mask.tiff"


class Annotation(Protocol):
    """Where the tumour is on one slide."""

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """The box around the tumour: left, top, right and bottom in level-0 pixels; all 0 where there is none."""
        ...

    def mask(self, x: float, y: float, size: float, px: int) -> np.ndarray:
        """Rasterise a square window to uint8 [px, px] of 0 and 1: a pixel is tumour if its centre is.

        `x`, `y` and `size` are the window's top-left corner and edge in level-0 pixels.
        """
        ...


@dataclass(frozen=True)
class PolygonAnnotation:
    """Polygons as edges, float64 [edges, 4] of x0, y0, x1, y1 in level-0 pixels; holes are rings like others."""

    edges: np.ndarray

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """The box around the polygons: see `Annotation`."""
        if not len(self.edges):
            return (0.0, 0.0, 0.0, 0.0)
        return (*self.edges[:, :2].min(axis=0), *self.edges[:, :2].max(axis=0))

    def mask(self, x: float, y: float, size: float, px: int) -> np.ndarray:
        """Fill by crossing number (even-odd rule): see `Annotation.mask`."""
        scale = px / size
        x0, y0, x1, y1 = ((self.edges - [x, y, x, y]) * scale - 0.5).T
        # In these coordinates pixel centres are whole numbers; an edge crosses the rows from first to last.
        first = np.clip(np.ceil(np.minimum(y0, y1)), 0, px).astype(np.int64)
        last = np.clip(np.ceil(np.maximum(y0, y1)), 0, px).astype(np.int64)
        crossings = last - first
        edge = np.repeat(np.arange(len(first)), crossings)
        row = first[edge] + np.arange(crossings.sum()) - np.repeat(np.cumsum(crossings) - crossings, crossings)
        column = x0[edge] + (row - y0[edge]) * (x1[edge] - x0[edge]) / (y1[edge] - y0[edge])
        toggles = np.zeros((px, px + 1), np.int64)
        np.add.at(toggles, (row, np.clip(np.ceil(column), 0, px).astype(np.int64)), 1)
        return (np.cumsum(toggles, axis=1)[:, :px] % 2).astype(np.uint8)


@dataclass(frozen=True)
class MaskAnnotation:
    """A mask of the whole slide, uint8 [rows, columns] of 0 and 1, each pixel `scale` level-0 pixels wide (x, y)."""

    pixels: np.ndarray
    scale: tuple[float, float]

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """The box around the pixels that are tumour: see `Annotation`."""
        columns, rows = np.flatnonzero(self.pixels.any(axis=0)), np.flatnonzero(self.pixels.any(axis=1))
        if not len(rows):
            return (0.0, 0.0, 0.0, 0.0)
        across, down = self.scale
        return columns[0] * across, rows[0] * down, (columns[-1] + 1) * across, (rows[-1] + 1) * down

    def mask(self, x: float, y: float, size: float, px: int) -> np.ndarray:
        """Take the nearest pixel of the coarse mask: see `Annotation.mask`."""
        centres = (np.arange(px) + 0.5) * size / px
        columns = np.floor((x + centres) / self.scale[0]).astype(np.int64)
        rows = np.floor((y + centres) / self.scale[1]).astype(np.int64)
        height, width = self.pixels.shape
        inside = np.outer((rows >= 0) & (rows < height), (columns >= 0) & (columns < width))
        return self.pixels[np.ix_(rows.clip(0, height - 1), columns.clip(0, width - 1))] * inside.astype(np.uint8)


def read_annotation(path: Path, dimensions: tuple[int, int]) -> Annotation:
    """Read an annotation of a slide of `dimensions` (width, height in level-0 pixels).

    A GeoJSON file without any feature means a slide without tumour.

    Raises
    ------
    AnnotationError
        If the file is unreadable, holds no polygon, or is a mask whose shape is not the slide's.
    """
    return _read_polygons(path) if path.suffix.lower() in POLYGONS else _read_mask(path, dimensions)


def find_annotation(folder_or_file: Path | str, source_id: str) -> Path | None:
    """Return the annotation of a slide in a folder, or the file itself; None if the slide has none.

    Raises
    ------
    MissingInputError
        If the folder or file is not there.
    AnnotationError
        If the slide has two.
    """
    path = Path(folder_or_file)
    return path if path.is_file() else _by_source(path).get(source_id)


def check_annotations(folder: Path | str, source_ids: Iterable[str]) -> None:
    """Raise `AnnotationError` naming the annotations of `folder` that belong to none of the slides `source_ids`."""
    known = set(source_ids)
    strangers = [path.name for source_id, path in _by_source(Path(folder)).items() if source_id not in known]
    if strangers:
        more = f" and {len(strangers) - 3} more" if len(strangers) > 3 else ""
        raise AnnotationError(
            f"{len(strangers)} of the annotations in {folder} belong to no slide of the cohort: "
            f"{', '.join(strangers[:3])}{more}; {NAMED_SO}, or move it out of the folder"
        )


def _by_source(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise MissingInputError(
            f"annotations not found: {folder}; put them there, or correct slides.annotations (--annotations)"
        )
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in POLYGONS + MASKS:
            continue
        source_id = path.name.split(".")[0].removesuffix("_mask")
        if source_id in found:
            raise AnnotationError(f"the slide {source_id} has two annotations: {found[source_id].name} and {path.name}")
        found[source_id] = path
    return found


def _read_polygons(path: Path) -> PolygonAnnotation:
    try:
        geometries = [shape(part) for part in _geometries(json.loads(path.read_text()))]
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        shapely.errors.ShapelyError,
    ) as problem:
        raise AnnotationError(f"unreadable annotation: {path.name} is not GeoJSON: {problem}") from None
    # Overlapping outlines are one tumour, and self-crossing ones are common in hand drawings.
    area = (
        shapely.union_all(shapely.make_valid(np.array(geometries, dtype=object))) if geometries else shapely.Polygon()
    )
    parts = shapely.get_parts(area)
    polygons = parts[shapely.get_type_id(parts) == shapely.GeometryType.POLYGON]
    if geometries and not len(polygons):
        raise AnnotationError(f"no polygon: {path.name} holds points or lines only; outline the tumour as polygons")
    rings = [shapely.get_coordinates(ring) for ring in shapely.get_rings(polygons)]
    edges = [np.hstack([ring[:-1], ring[1:]]) for ring in rings]
    return PolygonAnnotation(np.concatenate(edges) if edges else np.zeros((0, 4)))


def _geometries(node: dict[str, Any]) -> list[dict[str, Any]]:
    """List the plain geometries of a GeoJSON object (RFC 7946)."""
    kind = node["type"]
    if kind == "FeatureCollection":
        return [part for feature in node["features"] for part in _geometries(feature)]
    if kind == "Feature":
        return _geometries(node["geometry"]) if node["geometry"] else []
    if kind == "GeometryCollection":
        return [part for geometry in node["geometries"] for part in _geometries(geometry)]
    return [node]


def _read_mask(path: Path, dimensions: tuple[int, int]) -> MaskAnnotation:
    try:
        with Image.open(path) as image:
            pixels = (np.asarray(image.convert("L")) > 0).astype(np.uint8)
    except (OSError, Image.DecompressionBombError) as problem:
        raise AnnotationError(f"unreadable annotation: {path.name} is not a TIFF mask: {problem}") from None
    width, height = pixels.shape[::-1]
    across, down = _scale(dimensions[0], width), _scale(dimensions[1], height)
    if max(width, height) > 100 and not 0.98 < across / down < 1.02:
        raise AnnotationError(
            f"mask of another shape: {path.name} is {width} x {height}, its slide {dimensions[0]} x {dimensions[1]}"
        )
    return MaskAnnotation(pixels, (across, down))


def _scale(slide_px: int, mask_px: int) -> float:
    """Level-0 pixels per mask pixel: a whole number where the last mask pixel was merely cut or padded."""
    whole = max(round(slide_px / mask_px), 1)
    return whole if abs(mask_px * whole - slide_px) < whole else slide_px / mask_px
