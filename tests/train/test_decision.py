"""Which pixels are tumour: the threshold, that of a series, and its connected components that are kept."""

from types import SimpleNamespace

import numpy as np
import pytest

from mgi.config import FinetuneOptions
from mgi.train import finetune as fine
from mgi.train.decision import (
    DECISIONS,
    LEAST_PROBABILITY,
    SERIES_DECISIONS,
    TEMPERATURES,
    Decision,
    apply_each,
    choose_decision,
    find_threshold,
)


@pytest.fixture
def series() -> np.ndarray:
    """Probabilities of three slices: a component of 20 voxels through two of them, one of 4 voxels, and one of 1."""
    probability = np.zeros((3, 12, 12), np.float32)
    probability[0, 1:3, 1:6] = 0.9
    # Touches the slice above by a corner alone.
    probability[1, 3:5, 6:11] = 0.9
    probability[2, 9:11, 1:3] = 0.8
    probability[2, 11, 11] = 0.7
    return probability


@pytest.mark.parametrize(("share", "voxels"), [(0.0, 25), (0.05, 25), (0.1, 24), (0.2, 24), (0.21, 20), (1.0, 20)])
def test_small_components_of_a_series_are_left_out(series, share, voxels):
    assert Decision(0.5, share).apply(series, is_series=True).sum() == voxels
    assert Decision(0.5, share).apply(series, is_series=False).sum() == 25


def test_threshold_is_the_least_probability_and_comes_first(series):
    assert Decision(0.8, 0.0).apply(series, is_series=True).sum() == 24
    assert Decision(0.85, 1.0).apply(series, is_series=True).sum() == 20
    assert Decision(0.95, 1.0).apply(series, is_series=True).sum() == 0


def test_equally_large_components_are_all_kept():
    mask = np.zeros((1, 3, 9))
    mask[0, 1, [0, 1, 4, 5, 8]] = 1
    assert Decision(0.5, 1.0).apply(mask, is_series=True).nonzero()[2].tolist() == [0, 1, 4, 5]


@pytest.mark.parametrize(
    ("best", "chosen"),
    [
        ([(0.3, 0.1)], (0.3, 0.1)),
        ([(0.9, 0.3)], (0.9, 0.3)),
        ([(0.4, 0.3), (0.6, 0.0)], (0.4, 0.3)),
        ([(0.1, 0.0), (0.7, 0.3)], (0.7, 0.3)),
        ([(0.5, 0.1), (0.5, 0.3), (0.9, 0.0)], (0.5, 0.1)),
        ([decision[:2] for decision in DECISIONS], (0.5, 0.0)),
    ],
)
def test_of_equal_dice_the_threshold_nearest_to_a_half_and_then_most_tissue_is_chosen(best, chosen):
    dice = np.array([0.8 if decision[:2] in best else 0.7 for decision in DECISIONS])
    assert choose_decision(DECISIONS, dice) == (*chosen, True, 0.0)


def test_of_equal_dice_the_lowest_temperature_that_keeps_most_is_chosen():
    dice = np.array([0.8 if decision.temperature in (2.0, 3.0) else 0.7 for decision in SERIES_DECISIONS])
    assert choose_decision(SERIES_DECISIONS, dice) == Decision(temperature=2.0)


def best_by_trial(probability: np.ndarray, temperature: float) -> float:
    """The expected Dice of every possible mask, one by one."""
    values = np.unique(probability[probability >= LEAST_PROBABILITY]).astype(np.float64)
    counted = probability[probability >= LEAST_PROBABILITY].astype(np.float64)
    odds = (counted / (1 - counted)) ** (1 / temperature)
    tempered = odds / (1 + odds)
    dice = [2 * tempered[counted >= t].sum() / ((counted >= t).sum() + tempered.sum()) for t in values]
    return float(values[int(np.argmax(dice))])


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_threshold_of_a_series_has_the_highest_expected_dice(temperature):
    probability = np.random.default_rng(0).beta(0.3, 0.6, size=(4, 20, 20)).clip(1e-6, 1 - 1e-6)
    assert find_threshold(probability, temperature) == pytest.approx(best_by_trial(probability, temperature))


def test_threshold_is_half_of_the_dice_that_can_be_expected():
    """Lipton et al. (2014), on probabilities that are what they say."""
    random = np.random.default_rng(1)
    probability = random.uniform(LEAST_PROBABILITY, 1, size=(10, 100, 100))
    reference = random.random(probability.shape) < probability
    threshold = find_threshold(probability, 1.0)
    mask = probability >= threshold
    dice = 2 * (mask & reference).sum() / (mask.sum() + reference.sum())
    assert threshold == pytest.approx(dice / 2, abs=0.01)


def test_threshold_of_an_unsure_series_is_lower_and_of_an_image_the_stated_one(series):
    unsure = np.where(series > 0, 0.25 * series, 0.0)
    unsure[0, 1, 1] = 0.6
    decision = Decision(0.5, 0.0, temperature=2.0)
    assert Decision(0.5).apply(unsure, is_series=True).sum() == 1
    assert decision.apply(unsure, is_series=True).sum() == 25
    assert decision.apply(unsure, is_series=False).sum() == 1
    assert not decision.apply(np.full_like(series, 0.04), is_series=True).any()
    assert [mask.sum() for mask in apply_each((Decision(0.5), decision), unsure, True)] == [1, 25]


@pytest.mark.parametrize("decision", SERIES_DECISIONS)
def test_series_of_which_no_voxel_is_likely_has_no_tumour(series, decision):
    doubtful = np.where(series > 0, 0.49, 0.0)
    assert not decision.apply(doubtful, is_series=True).any()
    assert decision.apply(np.where(series > 0, 0.51, 0.0), is_series=True).any()


def test_median_is_one_of_the_values():
    decisions = [Decision(0.3, 1.0), Decision(0.9, 0.0), Decision(0.5, 0.1, False), Decision(0.6, 0.1)]
    assert Decision.median(decisions) == (0.5, 0.1, True, 0.0)
    assert not Decision.median(decisions[1:3]).uses_genes
    assert Decision.median(decisions[:1]) == decisions[0]


@pytest.mark.parametrize(("dropout", "without", "used"), [(0.2, 0.6, False), (0.2, 0.5, True), (0.0, 0.6, True)])
def test_genes_are_left_out_where_validation_patients_are_better_off_without(
    dropout, without, used, monkeypatch, caplog
):
    model = SimpleNamespace(gene_encoder=object(), uses_genes=True)
    dice = {True: np.full(len(DECISIONS), 0.5), False: np.full(len(DECISIONS), 0.1)}
    dice[False][DECISIONS.index(Decision(0.7, 0.1))] = without
    monkeypatch.setattr(fine, "score", lambda model, *_: (dice[model.uses_genes], 0.0))
    tiles = SimpleNamespace(has_series=False)
    decision = fine._decide(model, tiles, None, FinetuneOptions(patient_dropout=dropout), None)
    assert decision == (Decision(0.5, 0.0) if used else Decision(0.7, 0.1, False))
    assert model.uses_genes is used
    assert ("0.500 with their genes and 0.600 without" in caplog.text) is not used
