"""Vector operations of the scan's kernels: errors as stated, and values that are not finite."""

import numpy as np
import pytest

numba = pytest.importorskip("numba")

from mgi.model.scan.lanes import LANES, exp2, load, sigmoid, softplus, spread, store, total  # noqa: E402


@numba.njit
def apply_all(x, exponentials, softpluses, sigmoids):
    for start in range(0, x.size, LANES):
        values = load(x, start)
        store(exponentials, start, exp2(values))
        store(softpluses, start, softplus(values))
        store(sigmoids, start, sigmoid(values))


def evaluate(x: np.ndarray) -> np.ndarray:
    """Return exp2, softplus and sigmoid of x, whose length is a multiple of LANES."""
    results = np.empty((3, x.size), np.float32)
    apply_all(x.astype(np.float32), *results)
    return results.astype(float)


def largest_error(found: np.ndarray, expected: np.ndarray) -> float:
    return np.abs(found / expected - 1).max()


def test_exp2_keeps_its_stated_error():
    x = np.linspace(-126, 0, 16_000).astype(np.float32)
    assert largest_error(evaluate(x)[0], np.exp2(x.astype(float))) < 1.5e-7


@pytest.mark.parametrize(("low", "high", "error"), [(-8, 100, 5e-7), (-60, -8, 4e-6)])
def test_softplus_and_sigmoid_keep_their_stated_errors(low, high, error):
    x = np.linspace(low, high, 16_000).astype(np.float32)
    wide = x.astype(float)
    _, softpluses, sigmoids = evaluate(x)
    assert largest_error(softpluses, np.log1p(np.exp(wide))) < error
    assert largest_error(sigmoids, 1 / (1 + np.exp(-wide))) < error


def test_nan_stays_nan_and_extremes_stay_finite_or_zero():
    x = np.resize([np.nan, -np.inf, -1e30, 1e30], LANES)
    exponentials, softpluses, sigmoids = evaluate(x)
    assert all(np.isnan(found[0]) for found in (exponentials, softpluses, sigmoids))
    assert exponentials[1] == exponentials[2] == 2.0**-126
    assert (softpluses[1:3] < 1e-37).all() and softpluses[3] == pytest.approx(1e30)
    assert (sigmoids[1:3] < 1e-37).all() and sigmoids[3] == 1


def test_arithmetic_and_total():
    @numba.njit
    def compute(x):
        a, b = load(x, 0), load(x, LANES)
        return total(a + b), total(a - b), total(a * b), total(spread(x[1]))

    x = np.arange(2 * LANES, dtype=np.float32)
    a, b = x[:LANES], x[LANES:]
    assert compute(x) == ((a + b).sum(), (a - b).sum(), (a * b).sum(), LANES)
