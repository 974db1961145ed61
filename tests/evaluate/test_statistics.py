"""Intervals, paired tests and detectable gains against scipy and worked cases."""

import numpy as np
import pytest
from scipy import stats

from mgi.evaluate import statistics
from mgi.evaluate.statistics import adjust_holm, detectable_difference, estimate_mean, p_value_of_sign_flips
from mgi.evaluate.statistics import resample_patients as resample


def test_bootstrap_interval_agrees_with_scipy() -> None:
    values = np.random.default_rng(4).beta(5, 2, 60)
    ours = estimate_mean(values, resample(60, 20_000, 0))
    peer = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    assert (ours["low"], ours["high"]) == pytest.approx((peer.low, peer.high), abs=0.003)


def test_patients_without_a_value_are_left_out_of_every_resample() -> None:
    values = np.array([0.5, np.nan] * 6)
    form = estimate_mean(values, resample(12, 200, 0))
    assert form == {"mean": 0.5, "low": 0.5, "high": 0.5, "n": 6}


def test_bootstrap_interval_covers_the_truth_at_its_nominal_rate() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for trial in range(200):
        form = estimate_mean(rng.normal(0.5, 0.1, 50), resample(50, 500, trial))
        covered += form["low"] <= 0.5 <= form["high"]
    assert 0.88 <= covered / 200 <= 0.98


@pytest.mark.parametrize("n", range(1, 6))
def test_fewer_than_six_patients_have_a_mean_alone(n: int) -> None:
    values = np.append(np.linspace(0.2, 0.8, n), [np.nan] * 10)
    assert estimate_mean(values, resample(len(values), 200, 0)) == {
        "mean": pytest.approx(np.nanmean(values), abs=1e-6), "low": None, "high": None, "n": n
    }  # fmt: skip
    assert np.isnan(p_value_of_sign_flips(values[:n], 0))
    assert np.isnan(detectable_difference(values[:n]))


def test_six_patients_have_an_interval_and_the_exact_p_value() -> None:
    values = np.array([0.1, 0.2, 0.3, 0.1, 0.2, 0.3])
    form = estimate_mean(values, resample(6, 500, 0))
    assert form["low"] < form["mean"] < form["high"]
    # Of the 64 flips only all and none reach the mean.
    assert p_value_of_sign_flips(values, 0) == pytest.approx(2 / 64)
    assert detectable_difference(values) > 0


def test_metric_that_no_patient_defines_is_null() -> None:
    assert estimate_mean(np.full(8, np.nan), resample(8, 100, 0)) == {"mean": None, "low": None, "high": None, "n": 0}


def test_bootstrap_is_the_same_for_a_seed_and_differs_by_seed() -> None:
    assert np.array_equal(resample(9, 50, 1), resample(9, 50, 1))
    assert not np.array_equal(resample(9, 50, 1), resample(9, 50, 2))
    drawn = resample(9, 500, 1)
    assert drawn.shape == (500, 9) and set(np.unique(drawn)) == set(range(9))


def test_interval_spans_the_middle_95_percent_of_the_draws() -> None:
    form = statistics.round_estimate(0.5, np.arange(1001) / 1000, 10)
    assert (form["low"], form["high"]) == pytest.approx((0.025, 0.975))


def test_sign_flip_test_agrees_with_all_flips_and_keeps_its_level() -> None:
    difference = np.random.default_rng(0).normal(0.3, 1, 10)
    signs = np.array(np.meshgrid(*[[-1, 1]] * 10)).reshape(10, -1).T
    means = (signs * difference).mean(axis=1)
    exact = (np.abs(means) >= abs(difference.mean()) - 1e-12).mean()
    assert p_value_of_sign_flips(difference, 0) == pytest.approx(exact)
    rng = np.random.default_rng(1)
    rejected = np.mean([p_value_of_sign_flips(rng.normal(0, 1, 8), 0) <= 0.05 for _ in range(400)])
    assert rejected <= 0.08


def test_many_patients_are_tested_by_9999_flips_of_the_seed() -> None:
    difference = np.random.default_rng(2).normal(0.1, 1, 60)
    p_value = p_value_of_sign_flips(difference, 0)
    assert p_value == p_value_of_sign_flips(difference, 0)
    assert p_value == pytest.approx(stats.ttest_1samp(difference, 0).pvalue, abs=0.02)
    assert p_value_of_sign_flips(difference + 10, 0) == pytest.approx(2 / 10_000)


def test_holm_adjusts_as_on_paper() -> None:
    # Sorted 0.01, 0.02, 0.04 times 3, 2, 1; the third is raised to the second.
    assert adjust_holm(np.array([0.02, 0.01, 0.04])) == pytest.approx([0.04, 0.03, 0.04])
    assert adjust_holm(np.array([0.5, 0.9, 0.6])) == pytest.approx([1, 1, 1])
    adjusted = adjust_holm(np.array([0.02, np.nan, 0.03]))
    assert np.isnan(adjusted[1]) and adjusted[[0, 2]] == pytest.approx([0.04, 0.04])
    assert len(adjust_holm(np.array([]))) == 0


def test_detectable_difference_is_detected_with_80_percent_power() -> None:
    rng = np.random.default_rng(3)
    sample = rng.normal(0, 0.1, 20)
    shift = detectable_difference(sample)
    spread = sample.std(ddof=1)
    detected = [stats.ttest_1samp(rng.normal(shift, spread, 20), 0).pvalue < 0.05 for _ in range(2000)]
    assert np.mean(detected) == pytest.approx(0.8, abs=0.04)
