"""The tumour on a slide: tiles assembled as they are predicted, small regions removed, and outlined."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import shapely
from scipy import ndimage

from mgi.geojson import coordinates, polygons, tumour_feature

Batches = Iterator[tuple[np.ndarray, np.ndarray]]

MAX_PLANE_PX = 8192
# An outline lies within so many pixels of the edges of the prediction's pixels.
TOLERANCE_PX = 0.75


def assemble_plane(frame: pd.DataFrame, batches: Batches, image_px: int, threshold: float) -> tuple[np.ndarray, float]:
    """Assemble tiles as they are predicted; return the plane of tumour, bool, and its level-0 pixels per pixel.

    Probabilities are averaged over squares of pixels where the plane would be larger than a picture should be. Where no
    tile was cut there is no tumour.
    """
    edge = float(frame["size"].iloc[0])
    column, row = (np.rint((frame[axis] - frame[axis].min()) / edge).to_numpy(int) for axis in "xy")
    columns, rows = int(column.max()) + 1, int(row.max()) + 1
    factor = next(
        k
        for k in range(1, image_px + 1)
        if image_px % k == 0 and (max(columns, rows) * image_px / k <= MAX_PLANE_PX or k == image_px)
    )
    small = image_px // factor
    plane = np.zeros((rows, small, columns, small), bool)
    for chosen, probability in batches:
        averaged = probability.reshape(-1, small, factor, small, factor).mean(axis=(2, 4))
        plane[row[chosen], :, column[chosen]] = averaged >= threshold
    return plane.reshape(rows * small, columns * small), edge / small


def remove_small(region: np.ndarray, min_px: float) -> tuple[np.ndarray, int]:
    """Return a region, bool [rows, columns], without its parts below `min_px` pixels, and how many those were."""
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
    """Return the valid polygons that a polygon becomes without its pixel steps; itself where nothing would be left."""
    simple = shapely.make_valid(polygon.simplify(TOLERANCE_PX))
    parts = [part for part in shapely.get_parts(simple) if isinstance(part, shapely.Polygon) and part.area > 0]
    return parts or [polygon]


def fit_to_slide(region: np.ndarray, corner: tuple[int, int], pixel: float, dimensions: tuple[int, int]) -> np.ndarray:
    """Return the region over its whole slide, bool [rows, columns] at a whole number of level-0 pixels per pixel."""
    scale = max(1, round(pixel), -(-max(dimensions) // MAX_PLANE_PX))
    across, down = (
        np.floor(((np.arange(-(-length // scale)) + 0.5) * scale - start) / pixel).astype(np.int64)
        for length, start in zip(dimensions, corner, strict=True)
    )
    rows, columns = ((at >= 0) & (at < length) for at, length in zip((down, across), region.shape, strict=True))
    mask = np.zeros((len(down), len(across)), bool)
    mask[np.ix_(rows, columns)] = region[np.ix_(down[rows], across[columns])]
    return mask
