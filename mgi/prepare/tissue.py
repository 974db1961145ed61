"""Where the tissue of a slide is, apart from glass and ink."""

import numpy as np
from scipy import ndimage
from skimage.color import rgb2hsv
from skimage.filters import threshold_otsu
from skimage.morphology import disk

TISSUE_MPP = 8.0
# A slide that would have more pixels at 8 microns, of 75 x 25 mm and beyond, is looked over coarser.
MAX_THUMBNAIL_PX = 2**25
ROWS = 1024
MIN_TISSUE_UM2 = 10_000.0
SATURATION_RANGE = (0.05, 0.20)
NEAR_WHITE = 235
NEAR_BLACK = 70
BLACK_INK_CHROMA = 25
PEN_GREEN_OVER_RED = 10


def thumbnail_scale(dimensions: tuple[int, int], mpp: float) -> float:
    """Return the level-0 pixels per pixel at which a slide of `mpp` microns per pixel is looked over for tissue."""
    width, height = dimensions
    return max(TISSUE_MPP / mpp, (width * height / MAX_THUMBNAIL_PX) ** 0.5)


def tissue_mask(thumbnail: np.ndarray, mpp: float) -> np.ndarray:
    """Find the tissue in a thumbnail of an H&E slide.

    Tissue is coloured: its HSV saturation exceeds Otsu's threshold (Otsu, 1979, doi 10.1109/TSMC.1979.4310076), kept
    within 0.05 to 0.20 for slides that are all glass or all tissue. Haematoxylin and eosin both absorb green
    more than red (Ruifrok and Johnston, 2001), so what is greener than red is the ink of a green or blue pen; black ink
    is dark and grey. Red ink cannot be told from eosin. Opening, and removal of pieces and
    holes below 0.01 mm2, clean the result.

    Parameters
    ----------
    thumbnail : uint8 array [H, W, 3]
    mpp : float
        Microns per pixel of the thumbnail, about 8 to 16.

    Returns
    -------
    bool array [H, W]
    """
    # A few rows at a time: the conversion takes ten times the memory of the thumbnail.
    rows = [rgb2hsv(thumbnail[top : top + ROWS])[..., 1] for top in range(0, len(thumbnail), ROWS)]
    saturation = ndimage.median_filter(np.concatenate(rows), size=3)
    low, high = SATURATION_RANGE
    threshold = low if np.ptp(saturation) == 0 else float(np.clip(threshold_otsu(saturation), low, high))
    levels = thumbnail.astype(np.int16)
    black = (levels.max(axis=-1) < NEAR_BLACK) & (np.ptp(levels, axis=-1) < BLACK_INK_CHROMA)
    ink = (levels[..., 1] > levels[..., 0] + PEN_GREEN_OVER_RED) | black
    # The rim of a stroke blends with the glass.
    ink = ndimage.binary_dilation(ndimage.binary_opening(ink), iterations=3)
    tissue = (saturation > threshold) & (levels.min(axis=-1) < NEAR_WHITE) & ~ink
    tissue = ndimage.binary_opening(tissue, disk(1))
    min_px = MIN_TISSUE_UM2 / mpp**2
    tissue = _remove_small(tissue, min_px)
    return ~_remove_small(~tissue, min_px) & ~ink


def _remove_small(mask: np.ndarray, min_px: float) -> np.ndarray:
    labels, _ = ndimage.label(mask)
    large = np.bincount(labels.ravel()) >= min_px
    large[0] = False
    return large[labels]
