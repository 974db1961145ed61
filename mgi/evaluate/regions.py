"""The tumour on a slide: tiles assembled as they are predicted, small regions removed, and outlined."""

from typing import Any

import numpy as np
import pandas as pd
import shapely
from scipy import ndimage

from mgi.geojson import coordinates, polygons, tumour_feature
from mgi.train.validation import Batches

MAX_PLANE_PX = 8192
# An outline lies within so many pixels of the edges of the prediction's pixels.
TOLERANCE_PX = 0.75
# A triangle, whose first point is repeated at its end.
MIN_RING_POINTS = 4


def assemble_plane(
    frame: pd.DataFrame, batches: Batches, image_px: int, threshold: float, overlap: float = 0.0
) -> tuple[np.ndarray, np.ndarray, float]:
    """Blend tiles as they are predicted; return the plane of tumour, its probability, and level-0 pixels per pixel.

    Where tiles overlap, their probabilities are averaged, the middle of a tile counting more than its border, which has
    less context. Where the plane would be larger than a picture should be, they are averaged over squares of pixels,
    too. Where no tile was cut there is no tumour.

    Parameters
    ----------
    frame
        x, y and size of the tiles.
    batches
        Rows of `frame`, and their probabilities [rows, image_px, image_px].
    overlap
        0, or 0.5 where the tiles' neighbours reach into them by half.
    """
    edge = float(frame["size"].iloc[0])
    column, row = (np.rint((frame[axis] - frame[axis].min()) / (edge * (1 - overlap))).to_numpy(int) for axis in "xy")
    most = (max(int(column.max()), int(row.max())) * (1 - overlap) + 1) * image_px
    # The step from tile to tile is a whole number of the plane's pixels.
    factors = [k for k in range(1, image_px + 1) if image_px % k == 0 and (not overlap or image_px // k % 2 == 0)]
    factor = next((k for k in factors if most / k <= MAX_PLANE_PX), factors[-1])
    small = image_px // factor
    step = round(small * (1 - overlap))
    total = np.zeros((int(row.max()) * step + small, int(column.max()) * step + small), np.float32)
    weight, window = np.zeros_like(total), _make_window(small, overlap)
    for rows, probability in batches:
        averaged = probability.reshape(-1, small, factor, small, factor).mean(axis=(2, 4))
        for index, tile in zip(rows, averaged, strict=True):
            place = np.s_[row[index] * step :, column[index] * step :]
            total[place][:small, :small] += window * tile
            weight[place][:small, :small] += window
    region = (weight > 0) & (total >= threshold * weight)
    np.divide(total, weight, out=total, where=weight > 0)
    return region, total, edge / small


def _make_window(edge: int, overlap: float) -> np.ndarray:
    """Weights of a tile's pixels, float32 [edge, edge]: even, or highest in the middle and above 0 at the border."""
    if not overlap:
        return np.ones((edge, edge), np.float32)
    ramp = 1 - np.abs((np.arange(edge) + 0.5) * 2 / edge - 1)
    return np.outer(ramp, ramp).astype(np.float32)


def remove_small(region: np.ndarray, min_px: float) -> tuple[np.ndarray, int]:
    """Return a region, bool of two or three axes, without its parts below `min_px` pixels, and how many those were."""
    labels, count = ndimage.label(region)
    small = np.bincount(labels.ravel(), minlength=count + 1) < min_px
    small[0] = True
    return ~small[labels], int(small[1:].sum())


def make_geojson(region: np.ndarray, corner: tuple[int, int], pixel: float, source: str) -> dict[str, Any]:
    """Outline a region in level-0 pixels, as QuPath reads it: valid polygons, simplified to `TOLERANCE_PX`.

    Parameters
    ----------
    region
        Bool [rows, columns], `pixel` level-0 pixels to a pixel, its corner at `corner`.
    source
        Name of the slide, from which the ids of the features are made.
    """
    parts = [part for whole in polygons(region) for part in _simplify(whole)]
    placed = [shapely.transform(part, lambda points: np.round(points * pixel + corner, 2)) for part in parts]
    features = [
        tumour_feature(f"{source} {number}", {"type": "Polygon", "coordinates": coordinates(part)})
        for number, part in enumerate(placed)
    ]
    return {"type": "FeatureCollection", "features": features}


def _simplify(polygon: shapely.Polygon) -> list[shapely.Polygon]:
    """Return the valid polygons that a polygon becomes without its pixel steps; itself where nothing would be left.

    Ring by ring, since simplifying them together takes minutes for a region with many thousands of holes.
    """
    rings = shapely.simplify(shapely.get_rings(polygon), TOLERANCE_PX, preserve_topology=False)
    exterior, *holes = [ring if shapely.get_num_coordinates(ring) >= MIN_RING_POINTS else None for ring in rings]
    if exterior is None:
        return [polygon]
    simple = shapely.make_valid(shapely.Polygon(exterior, [hole for hole in holes if hole is not None]))
    parts = [part for part in shapely.get_parts(simple) if isinstance(part, shapely.Polygon) and part.area > 0]
    return parts or [polygon]


def fit_to_slide(region: np.ndarray, corner: tuple[int, int], pixel: float, dimensions: tuple[int, int]) -> np.ndarray:
    """Return a plane over its whole slide, at a whole number of level-0 pixels per pixel; elsewhere it is 0."""
    scale = max(1, round(pixel), -(-max(dimensions) // MAX_PLANE_PX))
    across, down = (
        np.floor(((np.arange(-(-length // scale)) + 0.5) * scale - start) / pixel).astype(np.int64)
        for length, start in zip(dimensions, corner, strict=True)
    )
    rows, columns = ((at >= 0) & (at < length) for at, length in zip((down, across), region.shape, strict=True))
    mask = np.zeros((len(down), len(across)), region.dtype)
    mask[np.ix_(rows, columns)] = region[np.ix_(down[rows], across[columns])]
    return mask
