"""The selective scan of a state-space model: one call, mamba-ssm's kernel on CUDA and plain PyTorch elsewhere.

Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, arXiv 2312.00752.
"""

from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """Run the recurrence h[t] = exp(Δ[t] A) h[t-1] + Δ[t] B[t] u[t], y[t] = C[t] h[t] + D u[t], gated by SiLU(z).

    Δ is softplus(delta + delta_bias). On CUDA this is mamba-ssm's fused kernel; both paths take the same parameters.

    Parameters
    ----------
    u, delta, z : Tensor, [batch, channels, length]
    A : Tensor, [channels, state], float32, negative
    B, C : Tensor, [batch, state, length]
    D, delta_bias : Tensor, [channels], float32

    Returns
    -------
    Tensor, [batch, channels, length], of the dtype of `u`; the state itself is float32
    """
    if u.is_cuda:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        return selective_scan_fn(u, delta, A, B, C, D, z=z, delta_bias=delta_bias, delta_softplus=True)
    return _sequential_scan(u, delta, A, B, C, D, z, delta_bias)


def missing_kernel() -> str | None:
    """Say what of mamba-ssm's kernel cannot be imported here, and why; None where it can run."""
    # The package may be there without its compiled half.
    for module in ("selective_scan_cuda", "mamba_ssm.ops.selective_scan_interface"):
        try:
            import_module(module)
        except ImportError as problem:
            return " ".join(str(problem).split())
    return None


def _sequential_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    dtype = u.dtype
    u, delta, B, C = (part.float().permute(2, 0, 1) for part in (u, delta, B, C))  # [length, batch, channels or state]
    delta = F.softplus(delta + delta_bias)
    decay = torch.exp(delta.unsqueeze(-1) * A)  # [length, batch, channels, state]
    drive = (delta * u).unsqueeze(-1) * B.unsqueeze(2)  # [length, batch, channels, state]
    states = _Recurrence.apply(decay, drive)
    y = torch.matmul(states, C.unsqueeze(-1)).squeeze(-1) + u * D  # [length, batch, channels]
    return (y.permute(1, 2, 0) * F.silu(z.float())).to(dtype)


class _Recurrence(torch.autograd.Function):
    """Solve h[t] = decay[t] h[t-1] + drive[t] along the first axis, from h[-1] = 0.

    The gradient of the drive is the same recurrence run backwards. Written by hand, each way is one operation a step;
    left to autograd, a step costs several, and its bookkeeping more than its arithmetic.
    """

    @staticmethod
    def forward(ctx: Any, decay: Tensor, drive: Tensor) -> Tensor:
        """Give the states, of the shape [length, ...] of both inputs."""
        states = drive.clone()
        for now, before, kept in zip(states[1:].unbind(), states[:-1].unbind(), decay[1:].unbind(), strict=True):
            now.addcmul_(kept, before)
        ctx.save_for_backward(decay, states)
        return states

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Give the gradients of decay and drive."""
        decay, states = ctx.saved_tensors
        drive = gradient.clone()
        steps = zip(drive[:-1].unbind(), drive[1:].unbind(), decay[1:].unbind(), strict=True)
        for now, after, kept in reversed(list(steps)):
            now.addcmul_(kept, after)
        of_decay = torch.zeros_like(decay)
        torch.mul(drive[1:], states[:-1], out=of_decay[1:])
        return of_decay, drive
