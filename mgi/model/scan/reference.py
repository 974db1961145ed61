"""The selective scan in plain PyTorch: runs on any device, and is what the fused paths are tested against."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def reference_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """Compute `mgi.model.scan.selective_scan` a step at a time; float64 inputs are scanned in float64."""
    dtype, computed = u.dtype, torch.promote_types(u.dtype, torch.float32)
    u, delta, B, C = (part.to(computed).permute(2, 0, 1) for part in (u, delta, B, C))  # [length, batch, ...]
    A, D, delta_bias = (part.to(computed) for part in (A, D, delta_bias))
    delta = F.softplus(delta + delta_bias)
    decay = torch.exp(delta.unsqueeze(-1) * A)  # [length, batch, channels, state]
    drive = (delta * u).unsqueeze(-1) * B.unsqueeze(2)  # [length, batch, channels, state]
    states = _Recurrence.apply(decay, drive)
    # No matrix product: autocast would run it in bfloat16.
    y = (states * C.unsqueeze(2)).sum(dim=-1) + u * D  # [length, batch, channels]
    return (y.permute(1, 2, 0) * F.silu(z.to(computed))).to(dtype)


class _Recurrence(torch.autograd.Function):
    """Solve h[t] = decay[t] h[t-1] + drive[t] along the first axis, from h[-1] = 0.

    The gradient of the drive is the same recurrence run backwards. Written by hand, each way is one operation a step;
    left to autograd, a step costs several, and its bookkeeping more than its arithmetic.
    """

    @staticmethod
    def forward(ctx: Any, decay: Tensor, drive: Tensor) -> Tensor:
        """Return the states, of the shape [length, ...] of both inputs."""
        states = drive.clone()
        for now, before, kept in zip(states[1:].unbind(), states[:-1].unbind(), decay[1:].unbind(), strict=True):
            now.addcmul_(kept, before)
        ctx.save_for_backward(decay, states)
        return states

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of decay and drive."""
        decay, states = ctx.saved_tensors
        drive = gradient.clone()
        steps = zip(drive[:-1].unbind(), drive[1:].unbind(), decay[1:].unbind(), strict=True)
        for now, after, kept in reversed(list(steps)):
            now.addcmul_(kept, after)
        of_decay = torch.zeros_like(decay)
        torch.mul(drive[1:], states[:-1], out=of_decay[1:])
        return of_decay, drive
