"""Outlines of masks: exact, valid with holes and corners, one polygon for each part."""

import numpy as np
import pytest
import shapely
from scipy import ndimage

from mgi.geojson import coordinates, outline, polygons


def by_union(mask):
    """The union of all pixels: slow and plainly right."""
    row, column = np.nonzero(mask)
    return shapely.union_all(shapely.box(column, row, column + 1, row + 1))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_outlines_are_the_union_of_the_pixels_and_valid(share, seed):
    mask = np.random.default_rng(seed).random((23, 31)) < share
    parts = polygons(mask)
    assert len(parts) == ndimage.label(mask)[1]
    assert all(part.is_valid and part.exterior.is_ccw != part.interiors[0].is_ccw for part in parts if part.interiors)
    assert all(part.is_valid for part in parts)
    assert shapely.MultiPolygon(parts).equals(by_union(mask)) if parts else not mask.any()


def test_a_hole_that_touches_the_outside_at_a_corner_is_a_hole():
    mask = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 1]], bool)
    (part,) = polygons(mask)
    assert part.is_valid and len(part.interiors) == 1 and part.area == 7


def test_pixels_that_touch_at_a_corner_are_two_parts():
    assert [part.bounds for part in polygons(np.eye(2, dtype=bool))] == [(0, 0, 1, 1), (1, 1, 2, 2)]


def test_an_outline_has_whole_numbers_at_the_scale_asked_for():
    mask = np.ones((2, 3), bool)
    ring = outline(mask, 4)["coordinates"][0][0]
    assert sorted(map(tuple, ring[1:])) == [(0, 0), (0, 8), (12, 0), (12, 8)]
    assert all(isinstance(value, int) for point in ring for value in point)
    assert coordinates(polygons(mask)[0])[0][0] == [0.0, 0.0]


def test_a_speckled_plane_has_a_polygon_for_each_speck():
    mask = np.zeros((600, 600), bool)
    mask[::2, ::2] = True
    assert len(polygons(mask)) == 300 * 300
