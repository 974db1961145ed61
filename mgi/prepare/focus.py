"""Which tiles of a slide are out of focus."""

from collections.abc import Callable
from math import ceil, nan

import numpy as np
from scipy import ndimage

MIN_FIELD_UM = 64.0
# Standard deviation of grey levels. With less, as of a plain field of colour, there is nothing to be out of focus;
# tissue keeps more even under a Gaussian blur of 5 microns.
MIN_CONTRAST = 3.0
# Tissue in focus has several hundred. A slide with less has no detail that others could lack.
MIN_SHARPNESS = 50.0
# Of the bytes of a JPEG, and the number of tiles.
SMALL_SHARE, SAMPLE = 0.5, 32


def measure_focus(pixels: np.ndarray) -> float:
    """Return the variance of the Laplacian of a tile's green channel, in which both stains are dark, NaN if it is even.

    An image out of focus has little energy at high frequencies: Pech-Pacheco et al., 2000, doi
    10.1109/ICPR.2000.903548; LAP4 in the comparison of Pertuz et al., 2013, doi 10.1016/j.patcog.2012.11.011.

    Parameters
    ----------
    pixels : uint8 array [H, W, 3]
        At least 4 x 4 pixels, an even number of each.
    """
    # Every second row and column tell as much.
    green = pixels[..., 1].astype(np.int16)
    centre = green[1:-1:2, 1:-1:2]
    if centre.var(dtype=np.float32) < MIN_CONTRAST**2:
        return nan
    laplacian = 4 * centre - green[:-2:2, 1:-1:2] - green[2::2, 1:-1:2] - green[1:-1:2, :-2:2] - green[1:-1:2, 2::2]
    return float(laplacian.var(dtype=np.float32))


def estimate_focus(sizes: np.ndarray, measure: Callable[[int], float]) -> np.ndarray:
    """Return the focus of tiles that are stored as JPEG of one quality, most of them without decoding.

    What is out of focus compresses well. So tiles of less than half the bytes of the upper quartile are measured, and
    of the others a sample, whose median stands for the rest.

    Parameters
    ----------
    sizes : float array [tiles]
        Bytes of each, for its share of tissue.
    measure : callable
        Returns the focus of the tile with a number.

    Returns
    -------
    float array [tiles]
        NaN where there is nothing to measure.
    """
    focus = np.full(len(sizes), nan)
    small = sizes < SMALL_SHARE * np.quantile(sizes, 0.75)
    large = np.flatnonzero(~small)
    sample = large[:: max(1, len(large) // SAMPLE)]
    for number in (*np.flatnonzero(small).tolist(), *sample.tolist()):
        focus[number] = measure(number)
    measured = focus[sample][np.isfinite(focus[sample])]
    if len(measured):
        focus[np.setdiff1d(large, sample)] = np.median(measured)
    return focus


def find_blurred(focus: np.ndarray, tissue: np.ndarray, min_focus: float, tile_um: float) -> np.ndarray:
    """Return which tiles of one slide are out of focus.

    Sharpness differs by scanner, stain and compression. So that of a tile, for its share of tissue since glass has
    none, is compared with the upper quartile over the slide; where more than three quarters of a slide are out of
    focus, or its tissue has no fine detail, none is recognised. Small tiles are judged with their neighbours, over 64
    microns at least: a few cells may be smooth by nature.

    Parameters
    ----------
    focus : float array [rows, columns]
        See `measure_focus`; NaN where there is no tile, or nothing to measure.
    tissue : float array [rows, columns]
        Tissue fraction.
    min_focus : float
        Least share of the upper quartile.
    tile_um : float
        Edge of a tile in microns.

    Returns
    -------
    bool array [rows, columns]
    """
    tiles = np.isfinite(focus) & (tissue > 0)
    if not tiles.any():
        return tiles
    reach = ceil((MIN_FIELD_UM / tile_um - 1) / 2)
    total, under = (
        ndimage.uniform_filter(np.where(tiles, values, 0.0), 2 * reach + 1, mode="constant")
        for values in (focus, tissue)
    )
    sharpness = np.divide(total, under, out=np.zeros_like(total), where=tiles)
    sharp = np.quantile(sharpness[tiles], 0.75)
    return tiles & (sharpness < min_focus * sharp) if sharp >= MIN_SHARPNESS else np.zeros_like(tiles)
