"""Statistics over patients: bootstrap intervals, paired tests, and how small a gain can be detected."""

from typing import TypedDict

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
POWER = 0.8
DECIMALS = 6
SIGN_FLIPS = 9999
# With five patients even the smallest two-sided p-value of 2^5 sign flips, 0.0625, is above 0.05.
MIN_PATIENTS = 6


class Estimate(TypedDict, total=False):
    """A metric over n patients: JSON's null where no patient defines it, or too few for an interval."""

    mean: float | None
    low: float | None
    high: float | None
    n: int
    unit: str


def resample_patients(patients: int, samples: int, seed: int) -> np.ndarray:
    """Draw patients with replacement: indices [samples, patients]."""
    return np.random.default_rng(seed).integers(patients, size=(samples, patients))


def estimate_mean(values: np.ndarray, resamples: np.ndarray) -> Estimate:
    """Return the mean of `values` [patients] with its percentile interval.

    Patients with NaN are left out of every mean. The percentile bootstrap is that of Efron and Tibshirani (1993),
    chapter 13.
    """
    defined = ~np.isnan(values)
    drawn, filled = defined[resamples].sum(axis=1), np.where(defined, values, 0.0)
    means = filled[resamples].sum(axis=1)[drawn > 0] / drawn[drawn > 0]
    return round_estimate(filled.sum() / max(defined.sum(), 1), means, int(defined.sum()))


def round_estimate(mean: float, drawn: np.ndarray, n: int) -> Estimate:
    """Return an estimate from the mean of `n` patients and its bootstrap draws, without interval below 6 patients."""
    if n == 0:
        return {"mean": None, "low": None, "high": None, "n": 0}
    if n < MIN_PATIENTS:
        return {"mean": round(float(mean), DECIMALS), "low": None, "high": None, "n": n}
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return {
        "mean": round(float(mean), DECIMALS),
        "low": round(float(low), DECIMALS),
        "high": round(float(high), DECIMALS),
        "n": n,
    }


def p_value_of_sign_flips(difference: np.ndarray, seed: int) -> float:
    """Two-sided p-value of the mean of `difference` [n] under random signs; NaN for fewer than 6 patients.

    Exact where all 2^n flips are fewer than 9,999 draws.
    """
    if len(difference) < MIN_PATIENTS:
        return float("nan")
    test = stats.permutation_test(
        (difference,),
        lambda values, axis: values.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=SIGN_FLIPS,
        batch=1000,
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def adjust_holm(p_values: np.ndarray) -> np.ndarray:
    """Return p-values [n] adjusted for one another by Holm (1979); NaN stays NaN and is not counted."""
    adjusted = np.full(len(p_values), np.nan)
    order = np.argsort(p_values, kind="stable")
    order = order[~np.isnan(p_values[order])]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1.0)
    return adjusted


def detectable_difference(difference: np.ndarray) -> float:
    """Return the mean that a paired t-test of so many patients, so spread, would detect with 80% power at 5%.

    NaN for fewer than 6 patients.
    """
    n = len(difference)
    if n < MIN_PATIENTS:
        return float("nan")
    quantiles = sum(float(stats.t.ppf(share, n - 1)) for share in ((1 + CONFIDENCE) / 2, POWER))
    return float(quantiles * difference.std(ddof=1) / np.sqrt(n))
