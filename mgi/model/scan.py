"""The selective scan of a state-space model: one call, mamba-ssm's kernel on CUDA and plain PyTorch elsewhere.

Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, arXiv 2312.00752.
"""

from importlib import import_module

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
    """Step through the sequence; `unbind` keeps the backward pass linear in its length, which indexing does not."""
    dtype = u.dtype
    u, delta, B, C = (part.float().transpose(1, 2) for part in (u, delta, B, C))  # [batch, length, channels or state]
    delta = F.softplus(delta + delta_bias)
    decay = torch.exp(delta.unsqueeze(-1) * A)  # [batch, length, channels, state]
    drive = (delta * u).unsqueeze(-1) * B.unsqueeze(2)  # [batch, length, channels, state]
    state = torch.zeros_like(drive[:, 0])
    outputs = []
    for decay_t, drive_t, read_t in zip(decay.unbind(1), drive.unbind(1), C.unbind(1), strict=True):
        state = decay_t * state + drive_t
        outputs.append(torch.matmul(state, read_t.unsqueeze(-1)).squeeze(-1))  # [batch, channels]
    y = torch.stack(outputs, dim=1) + u * D  # [batch, length, channels]
    return (y.transpose(1, 2) * F.silu(z.float())).to(dtype)
