"""The selective scan against the recurrence written out in float64."""

import numpy as np
import pytest
import torch

from mgi.model.scan import selective_scan

BATCH, CHANNELS, STATE = 2, 6, 4


def arguments(length: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    return {
        "u": normal(BATCH, CHANNELS, length).to(dtype),
        "delta": normal(BATCH, CHANNELS, length).to(dtype),
        "A": -torch.exp(normal(CHANNELS, STATE)),
        "B": normal(BATCH, STATE, length).to(dtype),
        "C": normal(BATCH, STATE, length).to(dtype),
        "D": normal(CHANNELS),
        "z": normal(BATCH, CHANNELS, length).to(dtype),
        "delta_bias": normal(CHANNELS),
    }


def recurrence(u, delta, A, B, C, D, z, delta_bias):
    """One number at a time, as the paper's equations 2a and 2b with the zero-order hold of A and Euler step of B."""
    y = np.zeros_like(u)
    for b in range(u.shape[0]):
        for c in range(u.shape[1]):
            state = np.zeros(A.shape[1])
            for t in range(u.shape[2]):
                step = np.log1p(np.exp(delta[b, c, t] + delta_bias[c]))
                for n in range(A.shape[1]):
                    state[n] = np.exp(step * A[c, n]) * state[n] + step * B[b, n, t] * u[b, c, t]
                gate = z[b, c, t] / (1 + np.exp(-z[b, c, t]))
                y[b, c, t] = (sum(C[b, n, t] * state[n] for n in range(A.shape[1])) + D[c] * u[b, c, t]) * gate
    return y


@pytest.mark.parametrize("length", [1, 2, 17, 64])
def test_scan_equals_the_recurrence_in_float64(length):
    inputs = arguments(length)
    expected = recurrence(**{name: value.double().numpy() for name, value in inputs.items()})
    np.testing.assert_allclose(selective_scan(**inputs).numpy(), expected, rtol=2e-5, atol=2e-5)


def test_scan_keeps_bfloat16_and_scans_in_float32():
    inputs = arguments(33, torch.bfloat16)
    result = selective_scan(**inputs)
    assert result.dtype == torch.bfloat16
    expected = recurrence(**{name: value.double().numpy() for name, value in inputs.items()})
    np.testing.assert_allclose(result.float().numpy(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("length", [1, 2, 9])
def test_gradients_equal_finite_differences(length):
    inputs = arguments(length)
    names = list(inputs)
    start = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    selective_scan(**start).square().sum().backward()
    for name in names:
        numbers = {key: value.double().numpy() for key, value in inputs.items()}
        place = tuple(size // 2 for size in inputs[name].shape)
        values = []
        for nudge in (1e-5, -1e-5):
            moved = {key: value.copy() for key, value in numbers.items()}
            moved[name][place] += nudge
            values.append((recurrence(**moved) ** 2).sum())
        slope = (values[0] - values[1]) / 2e-5
        assert start[name].grad[place].item() == pytest.approx(slope, rel=1e-3, abs=1e-3), name
