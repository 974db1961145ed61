"""What makes a mask of probabilities: a threshold, and in a series the least size of a connected component."""

import statistics
from collections.abc import Iterable
from typing import NamedTuple, Self

import numpy as np
from scipy import ndimage

# Through sides, edges and corners, and so from slice to slice.
TOUCHING = np.ones((3, 3, 3), dtype=bool)


class Decision(NamedTuple):
    """Which pixels are tumour.

    Attributes
    ----------
    threshold : float
        The least probability.
    min_component : float
        In a series of slices, connected components of fewer voxels than this share of the largest one's are left out: 0
        keeps all, 1 only the largest.
    uses_genes : bool
        Whether patients' profiles are used; otherwise everybody is segmented as one without a profile.
    """

    threshold: float = 0.5
    min_component: float = 0.0
    uses_genes: bool = True

    def apply(self, probability: np.ndarray, is_series: bool) -> np.ndarray:
        """Return the mask of an image or of several, bool [images, height, width], or of the slices of one series."""
        mask = probability >= self.threshold
        if not is_series or not self.min_component:
            return mask
        labels, count = ndimage.label(mask, TOUCHING)
        voxels = np.bincount(labels.ravel(), minlength=count + 1)
        voxels[0] = 0
        kept = voxels >= max(1, self.min_component * voxels.max())
        return kept[labels]

    @classmethod
    def median(cls, decisions: Iterable[Self]) -> Self:
        """Return the lower median of each value."""
        return cls(*(statistics.median_low(values) for values in zip(*decisions, strict=True)))


# Not the largest component alone: where a false one is larger, the whole tumour would be lost.
MIN_COMPONENTS = (0.0, 0.1, 0.3)
DECISIONS = tuple(Decision(tenths / 10, share) for tenths in range(1, 10) for share in MIN_COMPONENTS)


def choose_decision(dice: np.ndarray) -> Decision:
    """Return the decision of the highest Dice.

    Of equal ones the threshold nearest to 0.5 counts, then the lower one, then the decision that keeps more.

    Parameters
    ----------
    dice : float ndarray, one for each of `DECISIONS`
    """
    best = [decision for decision, value in zip(DECISIONS, dice, strict=True) if np.isclose(value, dice.max())]
    return min(best, key=lambda decision: (round(abs(decision.threshold - Decision().threshold), 6), *decision))
