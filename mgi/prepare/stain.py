"""Stain normalisation of haematoxylin and eosin (Macenko et al., 2009, doi 10.1109/ISBI.2009.5193250).

Of a whole slide at once, since a tile of stroma alone does not tell its haematoxylin; and by the mean density of a
pixel, where the authors want each channel dark: a stain that lets blue light through would be left out.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from mgi.errors import SlideError

# Optical densities of haematoxylin and eosin, and the amounts that few pixels exceed, which a normalised slide has:
# those of the authors' reference image.
REFERENCE = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
REFERENCE_MOST = np.array([1.9705, 1.0308])
# Intensity of light through glass.
GLASS = 240
# Pixels of less density, natural logarithm and mean of the channels, say nothing of a stain.
MIN_DENSITY = 0.15
ANGLE_PERCENTILES = (1, 99)
AMOUNT_PERCENTILE = 99
MIN_PIXELS = 1000
# Between the two stains; those of the reference are 24 degrees apart.
MIN_ANGLE = np.deg2rad(5)


@dataclass(frozen=True)
class Stain:
    """The stains of a slide.

    Attributes
    ----------
    directions : float array [2, 3]
        Unit optical densities in red, green and blue of haematoxylin and eosin.
    most : float array [2]
        Amount of each that 1% of the pixels exceed.
    """

    directions: np.ndarray
    most: np.ndarray

    @classmethod
    def estimate(cls, pixels: np.ndarray) -> Self:
        """Estimate the stains from pixels of a slide.

        Parameters
        ----------
        pixels : uint8 array [n, 3]

        Raises
        ------
        SlideError
            If too few pixels are stained, or they have one colour.
        """
        density = _measure_density(pixels)
        density = density[density.mean(axis=1) > MIN_DENSITY]
        if len(density) < MIN_PIXELS:
            raise SlideError(f"no stain: {len(density)} of {len(pixels)} pixels are dark enough to normalise by")
        plane = np.linalg.eigh(np.cov(density.T))[1][:, :0:-1]  # [3, 2], the directions of most variance
        plane = plane * np.where(plane[0] < 0, -1, 1)
        around = density @ plane
        angles = np.percentile(np.arctan2(around[:, 1], around[:, 0]), ANGLE_PERCENTILES)
        if angles[1] - angles[0] < MIN_ANGLE:
            raise SlideError(f"no stain: its colours are {np.rad2deg(angles[1] - angles[0]):.1f} degrees apart")
        extremes = np.array([np.cos(angles), np.sin(angles)]).T @ plane.T
        # Haematoxylin absorbs more red.
        directions = extremes[np.argsort(-extremes[:, 0])]
        amounts = _unmix(density, directions)
        return cls(directions, np.percentile(amounts, AMOUNT_PERCENTILE, axis=0))

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """Return pixels, uint8 [..., 3], as the reference stains would show them."""
        amounts = _unmix(_measure_density(pixels).reshape(-1, 3), self.directions)
        density = amounts * (REFERENCE_MOST / np.maximum(self.most, 1e-6)) @ REFERENCE
        return np.rint(GLASS * np.exp(-density)).clip(0, 255).astype(np.uint8).reshape(pixels.shape)


def _measure_density(pixels: np.ndarray) -> np.ndarray:
    return -np.log((pixels.astype(np.float64) + 1) / GLASS)


def _unmix(density: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Return the amounts [n, 2] whose sum of directions is nearest to densities [n, 3]."""
    return np.asarray(density @ np.linalg.pinv(directions))
