"""The selective scan of a state-space model: one call, and for each machine the fastest path it can run.

Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, arXiv 2312.00752.

On a CPU a fused scan in Numba (`cpu.py`), on CUDA mamba-ssm's kernel or, where that is not built, a fused scan in
Triton (`gpu.py`); where these are missing, and on other devices, the loop of `reference.py`. All take the same
parameters. The Triton scan has been run in Triton's interpreter only, on no GPU.

Why Numba: it installs as a wheel, needs no compiler on the user's machine, and the scan in it (forward and backward at
length 20,000, 128 channels, state 16: see `benchmarks/scan.py`) reaches what a compiled extension would.
"""

import importlib.metadata
from functools import cache
from importlib import import_module

import torch
from torch import Tensor

from mgi.model.scan.reference import reference_scan

# mamba-ssm may be installed without its compiled half.
MAMBA_MODULES = ("selective_scan_cuda", "mamba_ssm.ops.selective_scan_interface")
# What a faster path than the one taken would have needed.
REQUIRED = {
    ("cpu", "loop"): ("numba",),
    ("cuda", "triton"): MAMBA_MODULES,
    ("cuda", "loop"): (*MAMBA_MODULES, "triton"),
}


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """Run the recurrence h[t] = exp(Δ[t] A) h[t-1] + Δ[t] B[t] u[t], y[t] = C[t] h[t] + D u[t], gated by SiLU(z).

    Δ is softplus(delta + delta_bias). Sequences of any strides are accepted; channels innermost are read fastest.

    Parameters
    ----------
    u, delta, z : Tensor, [batch, channels, length], float32, bfloat16 or float16; float64 takes the loop
    A : Tensor, [channels, state], float32, negative
    B, C : Tensor, [batch, state, length]
    D, delta_bias : Tensor, [channels], float32

    Returns
    -------
    Tensor, [batch, channels, length], of the dtype of `u`; the state itself is float32

    Raises
    ------
    ValueError
        If the shapes do not belong together; the kernels would read beyond the arrays.
    """
    _check_shapes(u, delta, A, B, C, D, z, delta_bias)
    path = _remember_path(u.device.type)
    if path == "loop" or u.dtype == torch.float64:
        return reference_scan(u, delta, A, B, C, D, z, delta_bias)
    A, D, delta_bias = A.float(), D.float(), delta_bias.float()
    if path == "numba":
        from mgi.model.scan.cpu import fused_scan

        return fused_scan(u, delta, A, B, C, D, z, delta_bias)
    if path == "triton":
        from mgi.model.scan.gpu import triton_scan

        return triton_scan(u, delta, A, B, C, D, z, delta_bias)
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return selective_scan_fn(u, delta, A, B, C, D, z=z, delta_bias=delta_bias, delta_softplus=True)


def _check_shapes(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> None:
    (batch, channels, length), state = u.shape, A.shape[-1]
    expected = {
        "delta": (delta, (batch, channels, length)),
        "A": (A, (channels, state)),
        "B": (B, (batch, state, length)),
        "C": (C, (batch, state, length)),
        "D": (D, (channels,)),
        "z": (z, (batch, channels, length)),
        "delta_bias": (delta_bias, (channels,)),
    }
    for name, (value, shape) in expected.items():
        if value.shape != shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, not {shape} as u and A imply")


def describe_path(device: str) -> str:
    """Return in words which path the scan takes on a device type, such as "cpu" or "cuda", and why no faster one."""
    path = _select_path(device)
    if path == "numba":
        return f"fused scan in Numba {importlib.metadata.version('numba')}"
    if path == "mamba":
        return f"kernel of mamba-ssm {importlib.metadata.version('mamba-ssm')}"
    name = "fused scan in Triton" if path == "triton" else "plain PyTorch loop, slow and large in memory"
    reasons = [failure for failure in map(_import_failure, REQUIRED.get((device, path), ())) if failure]
    return f"{name} ({'; '.join(reasons)})" if reasons else name


def missing_kernel() -> str | None:
    """Return why neither of the fused scans for CUDA can be imported, or None where one can."""
    return describe_path("cuda") if _select_path("cuda") == "loop" else None


def _select_path(device: str) -> str:
    if device == "cpu" and _import_failure("numba") is None:
        return "numba"
    if device == "cuda" and not any(map(_import_failure, MAMBA_MODULES)):
        return "mamba"
    if device == "cuda" and _import_failure("triton") is None:
        return "triton"
    return "loop"


# A failed import is slow, and would be tried in every call.
_remember_path = cache(_select_path)


def _import_failure(module: str) -> str | None:
    try:
        import_module(module)
    except ImportError as error:
        return " ".join(str(error).split())
    return None
