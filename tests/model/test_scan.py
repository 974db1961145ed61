"""The selective scan: every path against the recurrence in float64, values and all gradients."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mgi.model import scan
from mgi.model.scan import cpu, describe_path, missing_kernel, selective_scan
from mgi.model.scan.cpu import _find_cache_folder
from mgi.model.scan.reference import reference_scan

TOLERANCE = 1e-4
SEQUENCES = ("u", "delta", "B", "C", "z")


def arguments(
    batch: int = 2, channels: int = 6, state: int = 4, length: int = 17, shift: float = 0.0, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Draw inputs of the scan; `shift` makes the time steps short (negative) or long."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    return {
        "u": normal(batch, channels, length),
        "delta": normal(batch, channels, length) + shift,
        "A": -torch.exp(normal(channels, state)),
        "B": normal(batch, state, length),
        "C": normal(batch, state, length),
        "D": normal(channels),
        "z": normal(batch, channels, length),
        "delta_bias": normal(channels),
    }


def differentiate(function, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the values and, for a fixed weighting of them, the gradient of every input."""
    leaves = {name: value.detach().requires_grad_() for name, value in inputs.items()}
    y = function(*leaves.values())
    weights = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).view(y.shape).to(y.dtype)
    gradients = torch.autograd.grad((y * weights).sum(), list(leaves.values()))
    return {"y": y.detach()} | {f"d{name}": part for name, part in zip(leaves, gradients, strict=True)}


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = TOLERANCE):
    """Compare with an error relative to the largest entry of each tensor."""
    for name, value in expected.items():
        assert torch.isfinite(found[name]).all(), name
        error = (found[name].double() - value.double()).abs().max().item()
        assert error <= tolerance * value.abs().max().item() + 1e-30, f"{name}: {error}"


def to_float64(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.double() for name, value in inputs.items()}


def channels_innermost(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the sequences in the layout of a linear layer's output, seen through a transposed view."""
    return {
        name: value.transpose(1, 2).contiguous().transpose(1, 2) if name in SEQUENCES else value
        for name, value in inputs.items()
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
def test_reference_equals_the_recurrence_written_out(length):
    inputs = to_float64(arguments(length=length))
    expected = recurrence(**{name: value.numpy() for name, value in inputs.items()})
    np.testing.assert_allclose(reference_scan(**inputs).numpy(), expected, rtol=1e-12, atol=1e-12)


def test_gradients_of_the_reference_equal_finite_differences():
    inputs = to_float64(arguments(batch=2, channels=3, state=2, length=5))
    leaves = [value.requires_grad_() for value in inputs.values()]
    assert torch.autograd.gradcheck(reference_scan, leaves)


@pytest.mark.parametrize("layout", [dict, channels_innermost])
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 40),
    state=st.integers(1, 20),
    length=st.one_of(st.integers(1, 200), st.sampled_from([31, 32, 33, 63, 64, 65, 1023, 1025, 4097])),
    shift=st.sampled_from([-12.0, -5.0, 0.0, 5.0, 60.0]),
    zero=st.sampled_from([None, "u", "delta", "B", "C", "D", "z"]),
    seed=st.integers(0, 1000),
)
@example(batch=1, channels=17, state=16, length=4097, shift=-5.0, zero=None, seed=0)
@example(batch=2, channels=3, state=1, length=1, shift=60.0, zero=None, seed=1)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_fused_scan_equals_the_reference_in_float64(layout, batch, channels, state, length, shift, zero, seed):
    inputs = arguments(batch, channels, state, length, shift, seed)
    if zero is not None:
        inputs[zero] = torch.zeros_like(inputs[zero])
    inputs = layout(inputs)
    assert_close(differentiate(selective_scan, inputs), differentiate(reference_scan, to_float64(inputs)))


def test_fused_scan_does_not_depend_on_the_number_of_threads():
    inputs, before = arguments(batch=3, channels=100, state=5, length=150), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(differentiate(selective_scan, inputs))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(result[name], value) for name, value in results[0].items())


def test_fused_scan_is_the_same_with_and_without_gradients():
    inputs = arguments(length=100)
    with torch.no_grad():
        expected = selective_scan(**inputs)
    assert torch.equal(differentiate(selective_scan, inputs)["y"], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_scanned_in_float32_and_returned_in_its_own_type(dtype):
    inputs = arguments(length=100)
    half = {name: value.to(dtype) if name in SEQUENCES else value for name, value in inputs.items()}
    found = differentiate(selective_scan, half)
    assert all(found[name].dtype == dtype for name in ("y", "du", "ddelta", "dB", "dC", "dz"))
    assert found["dA"].dtype == torch.float32
    widened = {name: value.float() for name, value in half.items()}
    assert torch.equal(found["y"], selective_scan(**widened).to(dtype))
    assert_close(found, differentiate(reference_scan, to_float64(half)), tolerance=2e-2)


def test_reference_scans_in_float32_under_autocast():
    inputs = arguments(length=100)
    expected = reference_scan(**inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(reference_scan(**inputs), expected)


@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C", "D", "z", "delta_bias"])
def test_nan_in_any_input_reaches_the_output(name):
    inputs = arguments(length=40)
    inputs[name].view(-1)[0] = torch.nan
    assert selective_scan(**inputs).isnan().any()


@pytest.mark.parametrize("name", ["delta", "A", "B", "C", "D", "z", "delta_bias"])
def test_rejects_shapes_that_do_not_belong_together(name):
    inputs = arguments()
    inputs[name] = inputs[name][:-1]
    with pytest.raises(ValueError, match=rf"^{name} has shape"):
        selective_scan(**inputs)


def test_only_needed_gradients_are_returned():
    inputs = arguments()
    inputs["u"].requires_grad_()
    selective_scan(**inputs).sum().backward()
    assert inputs["u"].grad is not None and all(value.grad is None for name, value in inputs.items() if name != "u")


def test_memory_for_the_backward_pass_does_not_grow_with_length_times_state():
    inputs = arguments(batch=1, channels=32, state=16, length=2048)
    leaves = {name: value.requires_grad_() for name, value in inputs.items()}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        selective_scan(**leaves)
    own = {value.data_ptr() for value in leaves.values()}
    extra = sum(tensor.numel() for tensor in kept if tensor.data_ptr() not in own)
    assert extra <= inputs["u"].numel()


def test_states_are_kept_only_where_gradients_are_needed(monkeypatch):
    segments, run = [], cpu._run

    def record(kernel, tasks, *arguments):
        segments.append(arguments[-1].shape[1])
        run(kernel, tasks, *arguments)

    monkeypatch.setattr(cpu, "_run", record)
    inputs = {name: value.requires_grad_() for name, value in arguments(length=33).items()}
    with torch.no_grad():
        selective_scan(**inputs)
    selective_scan(**inputs)
    selective_scan(**{name: value.detach() for name, value in inputs.items()})
    assert segments == [0, 2, 0]


def test_compiled_kernels_are_kept_in_the_configured_folder_or_the_users(tmp_path, monkeypatch):
    assert _find_cache_folder(str(tmp_path / "own")).startswith(str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert _find_cache_folder("").startswith(str(tmp_path / "user" / "mgi"))
    (tmp_path / "file").touch()
    assert _find_cache_folder(str(tmp_path / "file")) == ""


def test_kernels_are_not_kept_without_a_home_folder(monkeypatch):
    def fail():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", fail)
    assert _find_cache_folder("") == ""


@pytest.fixture
def importable(monkeypatch):
    """A function that makes modules importable or not, as the choice of a path sees them."""

    def pretend(**modules: bool) -> None:
        names = {
            "selective_scan_cuda": "selective_scan_cuda", "mamba": "mamba_ssm.ops.selective_scan_interface",
            "triton": "triton", "numba": "numba",
        }  # fmt: skip
        for key, there in modules.items():
            monkeypatch.setitem(sys.modules, names[key], ModuleType(key) if there else None)
        scan._remember_path.cache_clear()

    yield pretend
    scan._remember_path.cache_clear()


def test_cpu_without_numba_takes_the_loop(importable, monkeypatch):
    inputs = arguments()
    importable(numba=False)
    monkeypatch.setitem(sys.modules, "mgi.model.scan.cpu", None)
    assert torch.equal(selective_scan(**inputs), reference_scan(**inputs))
    assert describe_path("cpu").startswith("plain PyTorch loop") and "numba" in describe_path("cpu")


def test_cpu_with_numba_names_it():
    assert describe_path("cpu").startswith("fused scan in Numba 0.")


@pytest.mark.parametrize(
    ("modules", "path"),
    [
        ({"selective_scan_cuda": True, "mamba": True, "triton": True}, "mamba"),
        ({"selective_scan_cuda": False, "mamba": True, "triton": True}, "triton"),
        ({"selective_scan_cuda": True, "mamba": False, "triton": True}, "triton"),
        ({"selective_scan_cuda": False, "mamba": False, "triton": False}, "loop"),
    ],
)
def test_cuda_prefers_mamba_then_triton_then_the_loop(importable, modules, path):
    importable(**modules)
    assert scan._select_path("cuda") == path
    assert (missing_kernel() is None) == (path != "loop")


def test_description_of_a_slower_path_names_what_is_missing(importable):
    importable(selective_scan_cuda=False, mamba=True, triton=True)
    assert describe_path("cuda").startswith("fused scan in Triton (") and "selective_scan_cuda" in describe_path("cuda")
    importable(selective_scan_cuda=False, mamba=True, triton=False)
    assert describe_path("cuda").startswith("plain PyTorch loop") and "triton" in describe_path("cuda")


def test_other_devices_take_the_loop():
    assert describe_path("mps").startswith("plain PyTorch loop")
    inputs = {name: value.to("meta") for name, value in arguments().items()}
    assert selective_scan(**inputs).shape == inputs["u"].shape
