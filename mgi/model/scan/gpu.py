"""The fused selective scan in Triton, for CUDA machines without mamba-ssm's kernel.

One program scans one channel of one sequence, a chunk of the time axis after the other; within a chunk the recurrence
is an associative scan over (decay, drive). The forward pass keeps the state at the start of each chunk, the backward
pass recomputes a chunk's states from it, so that memory grows as batch x channels x length.

Tested in Triton's interpreter (TRITON_INTERPRET=1) against a float64 loop. It has not been run on a GPU yet.
Gradients of B and C are summed over channels by atomic additions, whose order changes from run to run.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 64


@triton.jit
def _combine(decay_a, value_a, decay_b, value_b):
    """Compose two steps h -> decay h + value, the first of them (a) applied first."""
    return decay_a * decay_b, decay_b * value_a + value_b


@triton.jit
def _softplus(x):
    small = tl.exp(-tl.abs(x))
    # log(1 + small) without losing small ones (Kahan): log of the rounded sum, corrected by what rounding changed.
    rounded = 1.0 + small
    changed = tl.where(rounded == 1.0, 1.0, rounded - 1.0)
    logarithm = tl.where(rounded == 1.0, small, tl.log(rounded) * (small / changed))
    return tl.maximum(x, 0.0) + logarithm


@triton.jit
def _load_channel(A_at, D_at, bias_at, channel, n, state):
    """Load A [N], D and the bias of a channel."""
    A = tl.load(A_at + channel * state + n, mask=n < state, other=0.0)
    return A, tl.load(D_at + channel), tl.load(bias_at + channel)


@triton.jit
def _forward(
    u_at, delta_at, A_at, B_at, C_at, D_at, z_at, bias_at, y_at, checkpoints_at, channels, length, state, chunks,
    u_batch, u_channel, u_step, delta_batch, delta_channel, delta_step, B_batch, B_state, B_step,
    C_batch, C_state, C_step, z_batch, z_channel, z_step, y_batch, y_channel, y_step,
    KEEP: tl.constexpr, T: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    batch, channel = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    n = tl.arange(0, N)
    in_state = n < state
    A, skip, bias = _load_channel(A_at, D_at, bias_at, channel, n, state)
    h = tl.zeros([N], tl.float32)
    for chunk in range(chunks):
        t = chunk * T + tl.arange(0, T)
        inside = t < length
        both = inside[:, None] & in_state[None, :]
        if KEEP:
            kept = checkpoints_at + ((batch * channels + channel) * chunks + chunk) * state
            tl.store(kept + n, h, mask=in_state)
        u = tl.load(u_at + batch * u_batch + channel * u_channel + t * u_step, mask=inside, other=0.0).to(tl.float32)
        delta_line = delta_at + batch * delta_batch + channel * delta_channel
        delta = tl.load(delta_line + t * delta_step, mask=inside, other=0.0).to(tl.float32)
        step = tl.where(inside, _softplus(delta + bias), 0.0)
        z = tl.load(z_at + batch * z_batch + channel * z_channel + t * z_step, mask=inside, other=0.0).to(tl.float32)
        places = B_at + batch * B_batch + n[None, :] * B_state + t[:, None] * B_step
        B = tl.load(places, mask=both, other=0.0).to(tl.float32)  # [T, N]
        places = C_at + batch * C_batch + n[None, :] * C_state + t[:, None] * C_step
        C = tl.load(places, mask=both, other=0.0).to(tl.float32)
        decay = tl.exp(step[:, None] * A[None, :])
        drive = (step * u)[:, None] * B
        total_decay, states = tl.associative_scan((decay, drive), 0, _combine)
        states += total_decay * h[None, :]
        y = (tl.sum(states * C, axis=1) + skip * u) * z * tl.sigmoid(z)
        tl.store(y_at + batch * y_batch + channel * y_channel + t * y_step, y.to(y_at.dtype.element_ty), mask=inside)
        h = tl.sum(tl.where((tl.arange(0, T) == T - 1)[:, None], states, 0.0), axis=0)


@triton.jit
def _backward(
    u_at, delta_at, A_at, B_at, C_at, D_at, z_at, bias_at, dy_at, checkpoints_at,
    du_at, ddelta_at, dA_at, dB_at, dC_at, dD_at, dz_at, dbias_at, channels, length, state, chunks,
    u_batch, u_channel, u_step, delta_batch, delta_channel, delta_step, B_batch, B_state, B_step,
    C_batch, C_state, C_step, z_batch, z_channel, z_step, dy_batch, dy_channel, dy_step,
    T: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    batch, channel = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    n = tl.arange(0, N)
    in_state = n < state
    A, skip, bias = _load_channel(A_at, D_at, bias_at, channel, n, state)
    line = (batch * channels + channel) * length
    carry, dA = tl.zeros([N], tl.float32), tl.zeros([N], tl.float32)
    dD, dbias = 0.0, 0.0
    for back in range(chunks):
        chunk = chunks - 1 - back
        t = chunk * T + tl.arange(0, T)
        inside = t < length
        both = inside[:, None] & in_state[None, :]
        h = tl.load(
            checkpoints_at + ((batch * channels + channel) * chunks + chunk) * state + n, mask=in_state, other=0.0
        )
        u = tl.load(u_at + batch * u_batch + channel * u_channel + t * u_step, mask=inside, other=0.0).to(tl.float32)
        delta_line = delta_at + batch * delta_batch + channel * delta_channel
        delta = tl.load(delta_line + t * delta_step, mask=inside, other=0.0).to(tl.float32) + bias
        step = tl.where(inside, _softplus(delta), 0.0)
        following = t + 1 < length
        later = tl.load(delta_line + (t + 1) * delta_step, mask=following, other=0.0).to(tl.float32)
        later = tl.where(following, _softplus(later + bias), 0.0)
        z = tl.load(z_at + batch * z_batch + channel * z_channel + t * z_step, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(dy_at + batch * dy_batch + channel * dy_channel + t * dy_step, mask=inside, other=0.0).to(
            tl.float32
        )
        places = B_at + batch * B_batch + n[None, :] * B_state + t[:, None] * B_step
        B = tl.load(places, mask=both, other=0.0).to(tl.float32)  # [T, N]
        places = C_at + batch * C_batch + n[None, :] * C_state + t[:, None] * C_step
        C = tl.load(places, mask=both, other=0.0).to(tl.float32)

        # States before each step, from the inputs one step earlier; the first of them is the checkpoint.
        earlier = (tl.arange(0, T) > 0) & (t - 1 < length)
        places = B_at + batch * B_batch + n[None, :] * B_state + (t - 1)[:, None] * B_step
        drive = tl.load(places, mask=earlier[:, None] & in_state[None, :], other=0.0).to(tl.float32)
        before = tl.load(delta_line + (t - 1) * delta_step, mask=earlier, other=0.0).to(tl.float32)
        before = tl.where(earlier, _softplus(before + bias), 0.0)
        u_line = u_at + batch * u_batch + channel * u_channel
        drive *= (before * tl.load(u_line + (t - 1) * u_step, mask=earlier, other=0.0).to(tl.float32))[:, None]
        total_decay, before = tl.associative_scan((tl.exp(before[:, None] * A[None, :]), drive), 0, _combine)
        before += total_decay * h[None, :]
        decayed = tl.exp(step[:, None] * A[None, :]) * before
        states = decayed + (step * u)[:, None] * B
        gate = tl.sigmoid(z)
        out = tl.sum(states * C, axis=1) + skip * u
        tl.store(dz_at + line + t, dy * out * gate * (1.0 + z * (1.0 - gate)), mask=inside)
        dy = dy * z * gate

        # dh[t] = C[t] dy[t] + decay[t + 1] dh[t + 1]; `carry` is dh at the start of the chunk after this one.
        later_decay = tl.exp(later[:, None] * A[None, :])
        total_decay, dh = tl.associative_scan((later_decay, dy[:, None] * C), 0, _combine, reverse=True)
        dh += total_decay * carry[None, :]
        carry = tl.sum(tl.where((tl.arange(0, T) == 0)[:, None], dh, 0.0), axis=0)

        exponent = dh * decayed  # the gradient of step x A
        dA += tl.sum(exponent * step[:, None], axis=0)
        of_drive = tl.sum(dh * B, axis=1)
        of_delta = (u * of_drive + tl.sum(exponent * A[None, :], axis=1)) * tl.sigmoid(delta)
        of_delta = tl.where(inside, of_delta, 0.0)
        dD += tl.sum(dy * u)
        dbias += tl.sum(of_delta)
        tl.store(du_at + line + t, step * of_drive + skip * dy, mask=inside)
        tl.store(ddelta_at + line + t, of_delta, mask=inside)
        places = batch * state * length + n[None, :] * length + t[:, None]
        tl.atomic_add(dB_at + places, dh * (step * u)[:, None], mask=both)
        tl.atomic_add(dC_at + places, dy[:, None] * states, mask=both)
    tl.store(dA_at + (batch * channels + channel) * state + n, dA, mask=in_state)
    tl.store(dD_at + batch * channels + channel, dD)
    tl.store(dbias_at + batch * channels + channel, dbias)


def triton_scan(*inputs: Tensor) -> Tensor:
    """Compute `mgi.model.scan.selective_scan` of its inputs, in its order; A, D and delta_bias in float32."""
    return _TritonScan.apply(torch.is_grad_enabled(), *inputs)


class _TritonScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, keep: bool, *inputs: Tensor) -> Tensor:
        u, delta, A, B, C, D, z, bias = inputs
        (batch, channels, length), state = u.shape, A.shape[1]
        chunks = triton.cdiv(length, CHUNK)
        keep = keep and any(ctx.needs_input_grad)
        y = torch.empty_like(u)
        checkpoints = u.new_empty(batch, channels, chunks if keep else 0, state, dtype=torch.float32)
        strides = [stride for part in (u, delta, B, C, z, y) for stride in part.stride()]
        _forward[(batch, channels)](
            u, delta, A.contiguous(), B, C, D, z, bias, y, checkpoints, channels, length, state, chunks, *strides,
            KEEP=keep, T=CHUNK, N=triton.next_power_of_2(state),
        )  # fmt: skip
        ctx.save_for_backward(*inputs, checkpoints)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, checkpoints = ctx.saved_tensors
        u, delta, A, B, C, D, z, bias = inputs
        (batch, channels, length), state = u.shape, A.shape[1]
        du, ddelta, dz = (u.new_empty(u.shape, dtype=torch.float32) for _ in range(3))
        dB, dC = (u.new_zeros(B.shape, dtype=torch.float32) for _ in range(2))
        dA = u.new_empty(batch, channels, state, dtype=torch.float32)
        dD, dbias = (u.new_empty(batch, channels, dtype=torch.float32) for _ in range(2))
        strides = [stride for part in (u, delta, B, C, z, dy) for stride in part.stride()]
        _backward[(batch, channels)](
            u, delta, A.contiguous(), B, C, D, z, bias, dy, checkpoints, du, ddelta, dA, dB, dC, dD, dz, dbias,
            channels, length, state, checkpoints.shape[2], *strides, T=CHUNK, N=triton.next_power_of_2(state),
        )  # fmt: skip
        gradients = (du, ddelta, dA.sum(0), dB, dC, dD.sum(0), dz, dbias.sum(0))
        return None, *(gradient.to(value.dtype) for gradient, value in zip(gradients, inputs, strict=True))
