"""Where the tissue of a slide is, apart from glass and ink."""

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

TISSUE_MPP = 8.0
# A slide that would have more pixels at 8 microns, of 75 x 25 mm and beyond, is looked over coarser.
MAX_THUMBNAIL_PX = 2**25
# What a pixel of a thumbnail is, and how that is called where a tile has too little tissue.
GLASS, TISSUE, PEN, BLACK = range(4)
REASONS = {GLASS: "glass", PEN: "pen", BLACK: "black"}
ROWS = 512
MIN_TISSUE_UM2 = 10_000.0
SATURATION_RANGE = (0.05, 0.20)
NEAR_WHITE = 235
NEAR_BLACK = 70
BLACK_INK_CHROMA = 25
PEN_GREEN_OVER_RED = 10
# Thin haematoxylin is blue, too, but redder than green.
PEN_BLUE_OVER_RED = 30


def thumbnail_scale(dimensions: tuple[int, int], mpp: float) -> float:
    """Return the level-0 pixels per pixel at which a slide of `mpp` microns per pixel is looked over for tissue."""
    width, height = dimensions
    return max(TISSUE_MPP / mpp, (width * height / MAX_THUMBNAIL_PX) ** 0.5)


def tissue_mask(thumbnail: np.ndarray, mpp: float) -> np.ndarray:
    """Find the tissue in a thumbnail, bool [H, W]: see `classify_pixels`."""
    return classify_pixels(thumbnail, mpp) == TISSUE


def classify_pixels(thumbnail: np.ndarray, mpp: float) -> np.ndarray:
    """Separate tissue from glass and ink in a thumbnail of an H&E slide.

    Tissue is coloured: its HSV saturation exceeds Otsu's threshold (Otsu, 1979, doi 10.1109/TSMC.1979.4310076), kept
    within 0.05 to 0.20 for slides that are all glass or all tissue. Haematoxylin and eosin both absorb green more than
    red (Ruifrok and Johnston, 2001), so what is greener than red is the ink of a green or blue pen; black ink, and what
    lies beyond a scan, is dark and grey. Red ink cannot be told from eosin. Opening, and removal of pieces and holes
    below 0.01 mm2, clean the result.

    Parameters
    ----------
    thumbnail : uint8 array [H, W, 3]
    mpp : float
        Microns per pixel of the thumbnail, about 8 to 16.

    Returns
    -------
    uint8 array [H, W]
        GLASS, TISSUE, PEN or BLACK.
    """
    shape = thumbnail.shape[:2]
    saturation = np.empty(shape, np.float32)
    pen, black, bright = (np.empty(shape, bool) for _ in range(3))
    # A few rows at a time, and one more on either side for the median: a band takes ten times its pixels in memory.
    for top in range(0, len(thumbnail), ROWS):
        first = max(top - 1, 0)
        inside = slice(top - first, top - first + ROWS)
        found = _look_at(thumbnail[first : top + ROWS + 1])
        for whole, part in zip((saturation, pen, black, bright), found, strict=True):
            whole[top : top + ROWS] = part[inside]
    low, high = SATURATION_RANGE
    threshold = low if np.ptp(saturation) == 0 else float(np.clip(threshold_otsu(saturation), low, high))
    # The rim of a stroke blends with the glass.
    ink = _dilate(_dilate(_dilate(_open(pen | black))))
    tissue = _open((saturation > threshold) & ~bright & ~ink)
    min_px = MIN_TISSUE_UM2 / mpp**2
    tissue = _remove_small(tissue, min_px)
    tissue = ~_remove_small(~tissue, min_px) & ~ink
    codes = np.where(tissue, np.uint8(TISSUE), np.uint8(GLASS))
    codes[ink] = np.where(_dilate(_dilate(_dilate(pen)))[ink], PEN, BLACK)
    return codes


def _look_at(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the median saturation of each neighbourhood, and where pen, black and near white are, of some rows."""
    # By channels, since NumPy is slow along an axis of three.
    red, green, blue = (np.ascontiguousarray(rows[..., channel]) for channel in range(3))
    highest = np.maximum(np.maximum(red, green), blue)
    lowest = np.minimum(np.minimum(red, green), blue)
    chroma = highest - lowest
    black = (highest < NEAR_BLACK) & (chroma < BLACK_INK_CHROMA)
    over_red = red.astype(np.int16)
    pen = (green > over_red + PEN_GREEN_OVER_RED) | ((green > over_red) & (blue > over_red + PEN_BLUE_OVER_RED))
    return _filter_median(chroma / np.maximum(highest, 1).astype(np.float32)), pen, black, lowest >= NEAR_WHITE


def _filter_median(values: np.ndarray) -> np.ndarray:
    """Return the median of each 3 x 3 neighbourhood, edges repeated: sorted by columns, then by rows."""
    padded = np.pad(values, 1, mode="edge")
    height, width = values.shape
    low, middle, high = _sort_three(*(padded[k : k + height] for k in range(3)))
    lows = (low[:, k : k + width] for k in range(3))
    middles = (middle[:, k : k + width] for k in range(3))
    highs = (high[:, k : k + width] for k in range(3))
    # Of nine values the median is that of the highest low, the middle one of the middle, and the lowest high.
    return _sort_three(_sort_three(*lows)[2], _sort_three(*middles)[1], _sort_three(*highs)[0])[1]


def _sort_three(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a, b = np.minimum(a, b), np.maximum(a, b)
    b, c = np.minimum(b, c), np.maximum(b, c)
    return np.minimum(a, b), np.maximum(a, b), c


def _open(mask: np.ndarray) -> np.ndarray:
    """Remove what is narrower than a cross of five pixels; beyond the image there is nothing."""
    return _dilate(_combine(mask, np.logical_and))


def _dilate(mask: np.ndarray) -> np.ndarray:
    """Add the four neighbours of each pixel."""
    return _combine(mask, np.logical_or)


def _combine(mask: np.ndarray, operation: np.ufunc) -> np.ndarray:
    padded = np.pad(mask, 1)
    combined = mask
    for shifted in (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]):
        combined = operation(combined, shifted)
    return combined


def _remove_small(mask: np.ndarray, min_px: float) -> np.ndarray:
    labels, _ = ndimage.label(mask)
    large = np.bincount(labels.ravel()) >= min_px
    large[0] = False
    return large[labels]
