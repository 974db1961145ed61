"""What makes a mask of probabilities: a threshold, in a series its own, and the least size of a connected component."""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple, Self

import numpy as np
from scipy import ndimage, special

# Through sides, edges and corners, and so from slice to slice.
TOUCHING = np.ones((3, 3, 3), dtype=bool)


class Decision(NamedTuple):
    """Which pixels are tumour.

    Attributes
    ----------
    threshold : float
        The least probability; where a series has a threshold of its own, the least that one of its voxels must have for
        any to be tumour.
    min_component : float
        In a series of slices, connected components of fewer voxels than this share of the largest one's are left out: 0
        keeps all, 1 only the largest.
    uses_genes : bool
        Whether patients' profiles are used; otherwise everybody is segmented as one without a profile.
    temperature : float
        Above 0: each series of slices has the threshold of the highest Dice that its own probabilities let expect,
        their log odds divided by this (Guo et al., 2017, arXiv 1706.04599). Such a threshold is about half of that Dice
        (Lipton et al., 2014, arXiv 1402.1892), so a tumour that a network is unsure of is not cut to its surest part.
    """

    threshold: float = 0.5
    min_component: float = 0.0
    uses_genes: bool = True
    temperature: float = 0.0

    def apply(self, probability: np.ndarray, is_series: bool) -> np.ndarray:
        """Return the mask of an image or of several, bool [images, height, width], or of the slices of one series."""
        return next(apply_each((self,), probability, is_series))

    @classmethod
    def median(cls, decisions: Iterable[Self]) -> Self:
        """Return the lower median of each value."""
        return cls(*(statistics.median_low(values) for values in zip(*decisions, strict=True)))


# Not the largest component alone: where a false one is larger, the whole tumour would be lost.
MIN_COMPONENTS = (0.0, 0.1, 0.3)
DECISIONS = tuple(Decision(tenths / 10, share) for tenths in range(1, 10) for share in MIN_COMPONENTS)
# Networks trained by Dice are too sure: no temperature is below 1.
TEMPERATURES = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
SERIES_DECISIONS = tuple(
    Decision(min_component=share, temperature=temperature) for temperature in TEMPERATURES for share in MIN_COMPONENTS
)
# Less probable voxels are background whatever the temperature: there are so many of them.
LEAST_PROBABILITY = 0.05


def apply_each(decisions: Sequence[Decision], probability: np.ndarray, is_series: bool) -> Iterator[np.ndarray]:
    """Yield the mask of each decision; those of one threshold in succession share what is computed, and equal masks."""
    for (threshold, temperature), group in groupby(decisions, key=attrgetter("threshold", "temperature")):
        if is_series and temperature and probability.max(initial=0) >= threshold:
            threshold = find_threshold(probability, temperature)
        mask, alike = probability >= threshold, list(group)
        shares = _measure_components(mask) if is_series and any(one.min_component for one in alike) else None
        for decision in alike:
            yield mask if shares is None or not decision.min_component else shares >= decision.min_component


def find_threshold(probability: np.ndarray, temperature: float) -> float:
    """Return the least probability of the mask with the highest expected Dice, where log odds are divided first.

    The expectation is that of overlap and reference apart: twice the sum of the probabilities within the mask, over the
    mask's voxels plus the sum of all. Probabilities below `LEAST_PROBABILITY` count as 0, and a mask has a voxel at
    least: whether there is any tumour is not told by this.
    """
    found = np.sort(probability[probability >= LEAST_PROBABILITY].astype(np.float64))[::-1]
    if not len(found):
        return LEAST_PROBABILITY
    tempered = special.expit(special.logit(found) / temperature)
    inside = np.cumsum(tempered)
    expected = 2 * inside / (np.arange(1, len(found) + 1) + inside[-1])
    return float(found[np.argmax(expected)])


def _measure_components(mask: np.ndarray) -> np.ndarray:
    """Return of each voxel the size of its connected component, as a share of the largest one's; 0 outside."""
    labels, count = ndimage.label(mask, TOUCHING)
    voxels = np.bincount(labels.ravel(), minlength=count + 1)
    voxels[0] = 0
    return (voxels / max(1, voxels.max()))[labels]


def choose_decision(decisions: Sequence[Decision], dice: np.ndarray) -> Decision:
    """Return the decision of the highest Dice.

    Of equal ones the threshold nearest to 0.5 counts, then the lower one, then the decision that keeps more, then the
    lower temperature.

    Parameters
    ----------
    decisions : sequence of Decision
    dice : float ndarray, one for each of them
    """
    best = [decision for decision, value in zip(decisions, dice, strict=True) if np.isclose(value, dice.max())]
    return min(best, key=lambda decision: (round(abs(decision.threshold - Decision().threshold), 6), *decision))
