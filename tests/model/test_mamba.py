"""The Mamba block: names, shapes and initial values of mamba_ssm.Mamba, and its forward pass written out."""

import math

import numpy as np
import pytest
import torch

from mgi.model.mamba import MambaBlock

from .test_scan import recurrence


def perturbed_block(dim: int = 20, state_dim: int = 3) -> MambaBlock:
    """Return a block with every parameter moved, so that none can be left out unnoticed."""
    torch.manual_seed(0)
    block = MambaBlock(dim, state_dim)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return block


def test_parameters_have_the_names_and_shapes_of_mamba_ssm():
    # mamba_ssm.Mamba(d_model=64): d_inner 128, dt_rank 4, d_state 16, d_conv 4.
    assert {name: tuple(value.shape) for name, value in MambaBlock(64).state_dict().items()} == {
        "A_log": (128, 16),
        "D": (128,),
        "in_proj.weight": (256, 64),
        "conv1d.weight": (128, 1, 4),
        "conv1d.bias": (128,),
        "x_proj.weight": (36, 128),
        "dt_proj.weight": (128, 4),
        "dt_proj.bias": (128,),
        "out_proj.weight": (64, 128),
    }


def test_rank_of_the_time_step_is_rounded_up():
    assert MambaBlock(20).dt_proj.weight.shape == (40, 2)


def test_initial_values_are_those_of_mamba_ssm():
    torch.manual_seed(0)
    block = MambaBlock(256, state_dim=5)
    expected = torch.tensor([math.log(n) for n in (1, 2, 3, 4, 5)])
    torch.testing.assert_close(block.A_log.data, expected.expand(512, 5))
    assert torch.equal(block.D.data, torch.ones(512))
    assert block.dt_proj.weight.abs().max().item() == pytest.approx(16**-0.5, rel=0.01)
    steps = torch.nn.functional.softplus(block.dt_proj.bias.double()).log10()
    assert -3 - 1e-4 < steps.min() < -2.95 and -1.05 < steps.max() < -1 + 1e-4
    # Log-uniform: a quarter of the steps lies in each quarter of the two decades.
    counts = torch.histc(steps, 4, min=-3.001, max=-0.999)
    assert counts.min() > 512 / 4 * 0.75


def test_parameters_of_the_recurrence_are_kept_from_weight_decay():
    block = MambaBlock(16)
    marked = {name for name, value in block.named_parameters() if getattr(value, "_no_weight_decay", False)}
    assert marked == {"A_log", "D"}


def test_forward_equals_the_block_written_out():
    block = perturbed_block()
    tokens = torch.randn(2, 7, 20)
    p = {name: value.double().numpy() for name, value in block.state_dict().items()}
    inner, rank, state = 40, 2, 3
    expected = np.zeros((2, 7, 20))
    for b, sequence in enumerate(tokens.double().numpy()):
        both = sequence @ p["in_proj.weight"].T
        x, z = both[:, :inner], both[:, inner:]
        convolved = np.zeros_like(x)
        for t in range(7):
            for back in range(4):
                if t - back >= 0:
                    convolved[t] += p["conv1d.weight"][:, 0, 3 - back] * x[t - back]
        convolved += p["conv1d.bias"]
        x = convolved / (1 + np.exp(-convolved))
        projected = x @ p["x_proj.weight"].T
        delta = projected[:, :rank] @ p["dt_proj.weight"].T
        B, C = projected[:, rank : rank + state], projected[:, rank + state :]
        y = recurrence(
            x.T[None], delta.T[None], -np.exp(p["A_log"]), B.T[None], C.T[None], p["D"], z.T[None], p["dt_proj.bias"]
        )
        expected[b] = y[0].T @ p["out_proj.weight"].T
    np.testing.assert_allclose(block(tokens).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_gradient_reaches_every_parameter():
    block = perturbed_block()
    block(torch.randn(2, 7, 20)).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in block.parameters())
