"""Outlines of a slide's tumour in GeoJSON (RFC 7946), as QuPath exports them.

Of a class derived from another, such as `Tumor: Positive`, the first part counts. Objects whose class is one of the
tumour classes are tumour, those of the class `Ignore` or `Ignore*` are left out of loss and metrics, and objects of
other classes are background; where they lie within tumour they are tumour, and counted. Objects without a class are
tumour where no outline of the file has one and nothing else says what they are, else background.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely

from mgi.console import log
from mgi.errors import AnnotationError
from mgi.names import first_few
from mgi.prepare.objects import Objects, read_objects

IGNORE_CLASSES = ("ignore", "ignore*")
# An outline traced to and fro encloses next to nothing by its winding, and all of it by its course.
MIN_ENCLOSED_SHARE = 0.1
RUN_EDGES = 128


@dataclass(frozen=True)
class Outlines:
    """Areas of a slide as the edges of their rings, holes included, in level-0 pixels.

    Attributes
    ----------
    edges : float64 array [edges, 4]
        x0, y0, x1, y1; the edges of one polygon follow each other.
    runs : int64 array [runs, 2]
        First and last + 1 of up to 128 edges in succession of one polygon.
    reach : float64 array [runs, 4]
        What tells which runs a window needs: the run's least x, least y and greatest y, the polygon's greatest x.
    area_px : int
        Area within the slide.
    """

    edges: np.ndarray
    runs: np.ndarray
    reach: np.ndarray
    area_px: int

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """The box around them: left, top, right and bottom; all 0 where there are none."""
        if not len(self.edges):
            return (0.0, 0.0, 0.0, 0.0)
        left, top = self.edges[:, :2].min(axis=0).tolist()
        right, bottom = self.edges[:, :2].max(axis=0).tolist()
        return left, top, right, bottom

    def rasterise(self, x: float, y: float, size: float, px: int) -> np.ndarray:
        """Fill a window by crossing number (even-odd rule): see `mgi.prepare.annotations.Region`.

        Only the runs of edges that cross the window's rows, of polygons that reach its left border, are looked at.
        """
        left, top, bottom, right = self.reach.T
        near = self.runs[(left < x + size) & (right > x) & (top < y + size) & (bottom > y)]
        lengths = near[:, 1] - near[:, 0]
        index = np.arange(lengths.sum()) + np.repeat(near[:, 0] - np.cumsum(lengths) + lengths, lengths)
        x0, y0, x1, y1 = ((self.edges[index] - [x, y, x, y]) * (px / size) - 0.5).T
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


def read_outlines(
    path: Path, dimensions: tuple[int, int], origin: tuple[float, float], tumour_classes: list[str]
) -> tuple[Outlines, Outlines | None, dict[str, int], dict[str, int]]:
    """Read the outlines of a slide.

    Parameters
    ----------
    path : Path
        A FeatureCollection, a Feature, a geometry, or an array of these.
    dimensions : (int, int)
        Width and height of level 0.
    origin : (float, float)
        Where the point (0, 0) of the file lies in level 0.
    tumour_classes : list of str
        Classes that are tumour, case ignored.

    Returns
    -------
    tumour : Outlines
        Without what is ignored.
    ignored : Outlines or None
    classes : dict of str to int
        Objects by class.
    dropped : dict of str to int
        Objects left out, by reason.

    Raises
    ------
    AnnotationError
        If the file is unreadable or holds no polygon, a coordinate is no finite number, all of it or of its tumour
        lies off the slide, or its objects have no class but something else that says what they are.
    """
    objects = read_objects(path)
    found = sum(objects.counts.values())
    if found and not objects.polygons:
        left = f" ({', '.join(f'{count} {reason}' for reason, count in sorted(objects.dropped.items()))})"
        raise AnnotationError(
            f"no polygon: none of the {found} objects of {path.name} is one that counts"
            f"{left if objects.dropped else ''}; outline the tumour as polygons"
        )
    polygons = _place(objects, dimensions, origin, path)
    names = {name.casefold().strip() for name in tumour_classes}
    kinds = np.array([_kind(name, names) for name in objects.classes], dtype=object)
    told = [name for name in objects.counts if _kind(name, names) == "tumour"]
    if told and "tumour" not in kinds:
        left = ", ".join(f"{count} {reason}" for reason, count in sorted(objects.dropped.items()))
        raise AnnotationError(
            f"no tumour polygon: {path.name} has objects of the class {first_few(told)}, but none is a polygon on the "
            f"slide ({left or 'they are empty'}); outline the tumour as polygons"
        )
    if not any(objects.classes):
        objects.check_meaning(names, path.name)
        kinds[:] = "tumour"
    elif "tumour" not in kinds:
        seen = first_few(sorted({name for name in objects.classes if name}))
        log.warning("%s: no tumour: none of its classes, %s, is a tumour class", path.name, seen)
    try:
        tumour, ignored = (_unite(polygons[kinds == kind]) for kind in ("tumour", "ignore"))
        other = kinds == "other"
        within = _count_within(polygons[other], np.array(objects.classes, object)[other], tumour)
        if count := sum(within.values()):
            objects.dropped["objects of other classes within tumour"] += count
            log.warning("%s: %d objects of other classes lie within tumour, and count as tumour: %s; cut out others",
                        path.name, count, first_few(sorted(within)))  # fmt: skip
        if not ignored.is_empty:
            tumour = _subtract(tumour, ignored)
        slide = shapely.box(0, 0, *dimensions)
        areas = _index(tumour, slide), None if ignored.is_empty else _index(ignored, slide)
    except (shapely.errors.ShapelyError, MemoryError) as error:
        raise AnnotationError(f"unreadable annotation: {path.name} has outlines without an area: {error}") from error
    return *areas, dict(sorted(objects.counts.items())), dict(sorted(objects.dropped.items()))


def _kind(name: str | None, tumour_classes: set[str]) -> str:
    whole = (name or "").casefold()
    for candidate in (whole, whole.split(":")[0].strip()):
        if candidate in IGNORE_CLASSES:
            return "ignore"
        if candidate in tumour_classes:
            return "tumour"
    return "other"


def _place(objects: Objects, dimensions: tuple[int, int], origin: tuple[float, float], path: Path) -> np.ndarray:
    """Return the polygons in level-0 pixels, repaired; those off the slide or without area are dropped and counted."""
    polygons = np.array(objects.polygons, dtype=object)
    classes = np.array(objects.classes, dtype=object)
    if not len(polygons):
        return polygons
    if any(origin):
        polygons = shapely.transform(polygons, lambda points: points + origin)
    left, top, right, bottom = shapely.bounds(polygons).T
    on_slide = (right > 0) & (bottom > 0) & (left < dimensions[0]) & (top < dimensions[1])
    if not on_slide.any():
        box = f"x {np.nanmin(left):g} to {np.nanmax(right):g}, y {np.nanmin(top):g} to {np.nanmax(bottom):g}"
        raise AnnotationError(
            f"off the slide: {path.name} spans {box}, and the slide {dimensions[0]} x {dimensions[1]} pixels at level "
            "0; give the outlines of this slide, in pixels of its level 0"
        )
    if lost := int((~on_slide).sum()):
        objects.dropped["outlines off the slide"] += lost
    polygons, classes = polygons[on_slide], classes[on_slide]
    for place in np.flatnonzero(~shapely.is_valid(polygons)):
        polygons[place] = _repair(polygons[place])
    # Not even a pixel together: traced flat, or in microns or millimetres.
    area = shapely.area(polygons)
    if area.sum() < 1:
        raise AnnotationError(
            f"no area: the outlines of {path.name} enclose less than a pixel in all; give them in pixels of level 0"
        )
    flat = area == 0
    if flat.any():
        objects.dropped["outlines without area"] += int(flat.sum())
    objects.classes = classes[~flat].tolist()
    return polygons[~flat]


def _repair(polygon: shapely.Polygon) -> shapely.Geometry:
    """Return the area inside a polygon whose rings cross or touch themselves: what the outer one encloses, less holes.

    Holes are cut out wherever they lie; one that is not inside of the outer ring takes nothing away.
    """
    holes = shapely.union_all([_fill(ring) for ring in polygon.interiors])
    return shapely.difference(_fill(polygon.exterior), holes)


def _fill(ring: shapely.LinearRing) -> shapely.Geometry:
    """Return the area inside a ring.

    By structure: what it winds around. Filling by linework would cut out what an outline drawn twice encloses twice.
    """
    repaired = shapely.make_valid(shapely.Polygon(ring), method="structure", keep_collapsed=False)
    course = shapely.node(shapely.LineString(ring.coords))
    filled = shapely.union_all(shapely.get_parts(shapely.polygonize(shapely.get_parts(course))))
    return filled if repaired.area < MIN_ENCLOSED_SHARE * filled.area else repaired


def _count_within(polygons: np.ndarray, classes: np.ndarray, tumour: shapely.Geometry) -> dict[str, int]:
    """Count the polygons with a class that lie within tumour, by class."""
    if not len(polygons) or tumour.is_empty:
        return {}
    parts = shapely.get_parts(tumour)
    tree = shapely.STRtree(parts)
    inside, part = tree.query(shapely.point_on_surface(polygons), predicate="within")
    # What surrounds tumour has a point in it, too.
    smaller = shapely.area(polygons[inside]) < shapely.area(parts[part])
    return dict(Counter(name for name in classes[inside[smaller]] if name))


def _unite(polygons: np.ndarray) -> shapely.Geometry:
    # Overlapping outlines are one area; among 100,000 cells most overlap no other.
    return shapely.disjoint_subset_union_all(polygons) if len(polygons) else shapely.Polygon()


def _subtract(area: shapely.Geometry, other: shapely.Geometry) -> shapely.Geometry:
    """Return an area without another, part by part."""
    parts = shapely.get_parts(area)
    shapely.prepare(other)
    touched = shapely.intersects(other, parts)
    remaining = shapely.get_parts(shapely.difference(parts[touched], other))
    return shapely.multipolygons(_polygons_of(np.concatenate([parts[~touched], remaining])))


def _polygons_of(parts: np.ndarray) -> np.ndarray:
    """Leave out points, lines and what is empty."""
    return parts[(shapely.get_type_id(parts) == shapely.GeometryType.POLYGON) & ~shapely.is_empty(parts)]


def _index(area: shapely.Geometry, slide: shapely.Polygon) -> Outlines:
    """Index the edges of an area, polygon by polygon."""
    polygons = _polygons_of(shapely.get_parts(area))
    within = shapely.covers(slide, polygons)
    area_px = shapely.area(polygons[within]).sum() + shapely.area(shapely.intersection(polygons[~within], slide)).sum()
    if not len(polygons):
        return Outlines(np.zeros((0, 4)), np.zeros((0, 2), np.int64), np.zeros((0, 4)), 0)
    rings, owner = shapely.get_rings(polygons, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    joined = ring[:-1] == ring[1:]
    edges, polygon = np.hstack([points[:-1], points[1:]])[joined], owner[ring[:-1][joined]]
    starts = _run_starts(polygon)
    low, high = np.minimum(edges[:, :2], edges[:, 2:]), np.maximum(edges[:, :2], edges[:, 2:])
    least, greatest = np.minimum.reduceat(low, starts), np.maximum.reduceat(high, starts)
    runs = np.stack([starts, np.append(starts[1:], len(edges))], axis=1)
    reach = np.column_stack([least, greatest[:, 1], shapely.bounds(polygons)[polygon[starts], 2]])
    return Outlines(edges, runs, reach, round(float(area_px)))


def _run_starts(polygon: np.ndarray) -> np.ndarray:
    """Return where runs start: at each polygon's first edge, and every 128 edges within it."""
    first = np.flatnonzero(np.append(True, polygon[1:] != polygon[:-1]))
    since = np.arange(len(polygon)) - np.repeat(first, np.diff(np.append(first, len(polygon))))
    return np.flatnonzero(since % RUN_EDGES == 0)
