"""The fused selective scan on a CPU: memory in proportion to batch, channels and length, on all of torch's threads."""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

LOG2_E = 1.4426950408889634
# Tasks of a call, more than the threads of most machines; fixed, since sums over channels follow the tasks.
TASKS = 64


@cache
def load_kernels() -> ModuleType:
    """Import the kernels, compiling them on the first use on a machine.

    Compiled code goes to NUMBA_CACHE_DIR or else to the user's cache folder, never into the package, which may be
    read-only; where that folder cannot be written either, each process compiles for itself.
    """
    import numba

    config: Any = numba.config
    before = config.CACHE_DIR
    config.CACHE_DIR = _find_cache_folder(before)
    try:
        from mgi.model.scan import kernels
    finally:
        config.CACHE_DIR = before
    return kernels


def _find_cache_folder(configured: str) -> str:
    """Return a writable folder of this version of the kernels, or "" for none."""
    # Numba compares the date of kernels.py alone, and would keep code that was compiled with another lanes.py.
    sources = b"".join(Path(__file__).with_name(name).read_bytes() for name in ("kernels.py", "lanes.py"))
    try:
        user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = Path(configured or user / "mgi" / "numba") / hashlib.sha256(sources).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            return str(folder)
    except (OSError, RuntimeError):  # RuntimeError: no home folder
        return ""


def fused_scan(*inputs: Tensor) -> Tensor:
    """Compute `mgi.model.scan.selective_scan` of its inputs, in its order; A, D and delta_bias in float32."""
    # Inside `forward` gradients are always off, and the inputs' own flags do not know of no_grad.
    return _FusedScan.apply(torch.is_grad_enabled(), *inputs)


class _FusedScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, keep: bool, *inputs: Tensor) -> Tensor:
        kernels, arguments = load_kernels(), _arguments(*inputs)
        u, A = arguments[0], arguments[2]
        segments = -(-u.shape[2] // kernels.STEPS) if keep and any(ctx.needs_input_grad) else 0
        checkpoints = inputs[0].new_empty((u.shape[0], segments, *A.shape), dtype=torch.float32)
        y = torch.empty_like(inputs[0], dtype=torch.float32)
        _run(kernels.forward, u.shape[0] * A.shape[1] // kernels.LANES, *arguments, y.numpy(), checkpoints.numpy())
        ctx.save_for_backward(*inputs, checkpoints)
        return y.to(inputs[0].dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, checkpoints = ctx.saved_tensors
        kernels, arguments = load_kernels(), _arguments(*inputs)
        (batch, channels, length), (state, padded) = inputs[0].shape, arguments[2].shape
        groups = min(padded // kernels.LANES, max(1, TASKS // max(1, batch)))
        du, ddelta, dz = (torch.empty_like(inputs[index], dtype=torch.float32) for index in (0, 1, 6))
        dB, dC = (np.zeros((batch, groups, length, state), np.float32) for _ in range(2))
        dA = np.zeros((batch, state, padded))
        dD, dbias = np.zeros((batch, padded)), np.zeros((batch, padded))
        _run(
            kernels.backward, batch * groups, *arguments, checkpoints.numpy(), dy.float().numpy(), du.numpy(),
            ddelta.numpy(), dA, dB, dC, dD, dz.numpy(), dbias,
        )  # fmt: skip
        of_a, of_d, of_bias = (torch.from_numpy(part.sum(axis=0)[..., :channels]).float() for part in (dA, dD, dbias))
        of_b, of_c = (torch.from_numpy(part).sum(dim=1).transpose(1, 2) for part in (dB, dC))
        gradients = (du, ddelta, of_a.T, of_b, of_c, of_d, dz, of_bias)
        return None, *(gradient.to(value.dtype) for gradient, value in zip(gradients, inputs, strict=True))


def _arguments(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> tuple[np.ndarray, ...]:
    """Return the inputs as the kernels take them: float32, channels of the parameters padded to whole blocks."""
    channels, lanes = u.shape[1], load_kernels().LANES
    padded = -(-channels // lanes) * lanes

    def pad(parameter: Tensor) -> np.ndarray:
        return torch.nn.functional.pad(parameter.detach(), (0, padded - channels)).contiguous().numpy()

    u, delta, B, C, z = (part.detach().float() for part in (u, delta, B, C, z))
    return (
        u.numpy(), delta.numpy(), pad(A.T * LOG2_E), B.numpy(), C.numpy(), pad(D), z.numpy(), pad(delta_bias),
    )  # fmt: skip


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="scan")


# Threads do not survive a fork.
os.register_at_fork(after_in_child=_pool.cache_clear)


def _run(kernel: Callable[..., None], tasks: int, *arguments: np.ndarray) -> None:
    """Run a kernel's tasks on as many threads as torch uses."""
    threads = min(torch.get_num_threads(), tasks)
    if threads <= 1:
        kernel(0, tasks, *arguments)
        return
    bounds = np.linspace(0, tasks, min(tasks, 4 * threads) + 1).astype(int).tolist()
    parts = _pool(threads).map(lambda first, last: kernel(first, last, *arguments), bounds[:-1], bounds[1:])
    for _ in parts:
        pass
