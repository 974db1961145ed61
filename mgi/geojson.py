"""Tumour outlines in GeoJSON, as QuPath writes and reads them."""

import uuid
from typing import Any

import numpy as np
import shapely
from scipy import ndimage

# Steps east, south, west and north, as (row, column).
STEPS = np.array([(0, 1), (1, 0), (0, -1), (-1, 0)])
# From the pixel on the right of a step: the one ahead of it, and the one ahead on the left of the step.
AHEAD = STEPS
AHEAD_LEFT = STEPS + np.roll(STEPS, 1, axis=0)
# From the pixel's top-left corner to where the step ends.
END = np.array([(0, 1), (1, 1), (1, 0), (0, 0)])


def polygons(region: np.ndarray) -> list[shapely.Polygon]:
    """Outline a mask along its pixel edges: the area is exactly that of the mask.

    The edges are walked with the mask on the right, so the work grows with the length of the outlines.

    Parameters
    ----------
    region : bool array [rows, columns]

    Returns
    -------
    list of Polygon
        The parts whose pixels share edges, in pixels (x to the right, y down), by their bounds.
    """
    labels, count = ndimage.label(np.pad(region, 1))
    if not count:
        return []
    beside = np.pad(labels, 1)
    edges = []
    for direction, (down, right) in enumerate(STEPS):
        # The pixel on the left of a step to the east is the one above.
        outside = beside[1 - right : -1 - right or None, 1 + down : beside.shape[1] - 1 + down]
        edges.append(np.flatnonzero((labels > 0) & (outside == 0)) * 4 + direction)
    edge = np.sort(np.concatenate(edges))
    pixel, step = np.divmod(edge, 4)
    place = np.stack(np.divmod(pixel, labels.shape[1]), axis=1)
    own = labels[tuple(place.T)]
    left, ahead = place + AHEAD_LEFT[step], place + AHEAD[step]
    # Where two pixels touch at a corner, the walk crosses over between pixels of one part only: rings stay simple.
    turns_left = labels[tuple(left.T)] == own
    straight = ~turns_left & (labels[tuple(ahead.T)] == own)
    then = np.where(turns_left[:, None], left, np.where(straight[:, None], ahead, place))
    turned = (step + np.where(turns_left, 3, np.where(straight, 0, 1))) % 4
    following = np.searchsorted(edge, (then[:, 0] * labels.shape[1] + then[:, 1]) * 4 + turned).tolist()
    corner = (~straight).tolist()
    seen = bytearray(len(edge))
    order: list[int] = []
    ring: list[int] = []
    for start in range(len(edge)):
        if seen[start]:
            continue
        first, at = len(order), start
        while not seen[at]:
            seen[at] = 1
            if corner[at]:
                order.append(at)
            at = following[at]
        ring += [len(order) - first]
    number = np.repeat(np.arange(len(ring)), ring)
    points = (place[order] + END[step[order]])[:, ::-1] - 1
    rings = shapely.linearrings(points, indices=number)
    part = own[order][np.unique(number, return_index=True)[1]]
    # The outer ring of a part spans the most.
    area = shapely.area(shapely.polygons(rings))
    by_part = np.lexsort((-area, part))
    whole = shapely.normalize(shapely.polygons(rings[by_part], indices=part[by_part] - 1))
    whole = shapely.get_parts(shapely.normalize(shapely.multipolygons(whole)))
    return sorted(whole, key=lambda polygon: polygon.bounds)


def outline(region: np.ndarray, scale: int) -> dict[str, Any]:
    """Return a mask's outline as one MultiPolygon in whole level-0 pixels, `scale` of them to a pixel of `region`."""
    parts = [shapely.transform(part, lambda at: at * scale) for part in polygons(region)]
    return {"type": "MultiPolygon", "coordinates": [coordinates(part, int) for part in parts]}


def coordinates(polygon: shapely.Polygon, number: type[float] | type[int] = float) -> list[list[list[float]]]:
    """Return the rings of a polygon as GeoJSON wants them, the outer one first."""
    return [[[number(x), number(y)] for x, y in ring.coords] for ring in (polygon.exterior, *polygon.interiors)]


def tumour_feature(name: str, geometry: dict[str, Any]) -> dict[str, Any]:
    """Make a geometry QuPath's annotation of a tumour; `name` decides its id."""
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(uuid.NAMESPACE_OID, name)),
        "geometry": geometry,
        "properties": {"objectType": "annotation", "classification": {"name": "Tumor", "color": [200, 0, 0]}},
    }
