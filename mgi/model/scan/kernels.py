"""The selective scan's two passes over a block of 16 channels, in Numba; importing this module compiles or loads them.

The time axis is cut into segments of `STEPS`. The forward pass keeps the state at the start of each segment; the
backward pass starts from it, recomputes the segment's states and runs the adjoint recurrence through them. Sequences
are read where they lie, whatever their strides, a tile of one segment by 16 channels at a time.

Every task writes to places of its own and sums in one order, so the number of threads does not change a bit.
"""

from typing import Any

import numpy as np
from numba import config, float32, float64, intp, njit, void

from mgi.model.scan.lanes import LANES, exp2, load, sigmoid, softplus, spread, store, total

STEPS = 32
LN_2 = np.float32(np.log(2))
ONE, ZERO = np.float32(1), np.float32(0)

sequence = float32[:, :, :]  # [batch, channels or state, length], any strides
# `load_kernels` sets the folder, empty where none can be written.
OPTIONS: dict[str, Any] = {"nogil": True, "cache": bool(vars(config)["CACHE_DIR"])}


@njit(**OPTIONS)
def _read_tile(source, first, start, count, tile):
    """Copy source[first:, start:start + count] to tile [count, LANES]; lanes beyond the source become zero."""
    width = min(LANES, source.shape[0] - first)
    if width < LANES:
        tile[:] = 0
    for t in range(count):
        for c in range(width):
            tile[t * LANES + c] = source[first + c, start + t]


@njit(**OPTIONS)
def _write_tile(tile, first, start, count, target):
    """Copy tile [count, LANES] to target[first:, start:start + count], without the lanes beyond it."""
    width = min(LANES, target.shape[0] - first)
    for t in range(count):
        for c in range(width):
            target[first + c, start + t] = tile[t * LANES + c]


@njit(**OPTIONS)
def _read_rows(source, start, count, rows):
    """Copy source[:, start:start + count] to rows [count, state]."""
    state = source.shape[0]
    for n in range(state):
        for t in range(count):
            rows[t * state + n] = source[n, start + t]


@njit(**OPTIONS)
def _scan_segment(count, first, u, delta, A, B, C, skip, z, shift, h, y):
    """Scan one segment, from the state h [state, LANES] on, to y; tiles [count, LANES], rows [count, state]."""
    state, padded = A.shape
    for t in range(count):
        value, step = load(u, t * LANES), softplus(load(delta, t * LANES) + shift)
        drive, out = step * value, skip * value
        for n in range(state):
            decay = exp2(step * load(A, n * padded + first))
            now = decay * load(h, n * LANES) + drive * spread(B[t * state + n])
            store(h, n * LANES, now)
            out = out + now * spread(C[t * state + n])
        gate = load(z, t * LANES)
        store(y, t * LANES, out * (gate * sigmoid(gate)))


@njit(
    void(
        intp, intp, sequence, sequence, float32[:, ::1], sequence, sequence, float32[::1], sequence, float32[::1],
        sequence, float32[:, :, :, ::1],
    ),
    **OPTIONS,
)  # fmt: skip
def forward(first_task, last_task, u, delta, A, B, C, D, z, bias, y, checkpoints):
    """Scan the (sequence, channel block) pairs `first_task` to `last_task`.

    Parameters
    ----------
    u, delta, z, y : [batch, channels, length]
    A : [state, padded], times log2(e); D, bias : [padded], channels padded to a multiple of LANES
    B, C : [batch, state, length]
    checkpoints : [batch, segments, state, padded], or no segments: nothing is kept
    """
    length = u.shape[2]
    state, padded = A.shape
    blocks = padded // LANES
    tiles, rows = np.empty((4, STEPS * LANES), np.float32), np.empty((2, STEPS * state), np.float32)
    h = np.empty(state * LANES, np.float32)
    for task in range(first_task, last_task):
        batch, first = task // blocks, task % blocks * LANES
        h[:] = 0
        for start in range(0, length, STEPS):
            count = min(STEPS, length - start)
            if checkpoints.shape[1]:
                for n in range(state):
                    store(checkpoints[batch, start // STEPS], n * padded + first, load(h, n * LANES))
            _read_tile(u[batch], first, start, count, tiles[0])
            _read_tile(delta[batch], first, start, count, tiles[1])
            _read_tile(z[batch], first, start, count, tiles[2])
            _read_rows(B[batch], start, count, rows[0])
            _read_rows(C[batch], start, count, rows[1])
            _scan_segment(
                count, first, tiles[0], tiles[1], A, rows[0], rows[1], load(D, first), tiles[2], load(bias, first), h,
                tiles[3],
            )  # fmt: skip
            _write_tile(tiles[3], first, start, count, y[batch])


@njit(**OPTIONS)
def _replay_segment(count, first, u, delta, A, B, C, skip, z, shift, dy, steps, decays, states):
    """Recompute a segment from its first state, states[:state]; z becomes its own gradient, dy that before the gate."""
    state, padded = A.shape
    one = spread(ONE)
    for t in range(count):
        value, step = load(u, t * LANES), softplus(load(delta, t * LANES) + shift)
        store(steps, t * LANES, step)
        drive, out = step * value, skip * value
        for n in range(state):
            at = (t * state + n) * LANES
            decay = exp2(step * load(A, n * padded + first))
            store(decays, at, decay)
            now = decay * load(states, at) + drive * spread(B[t * state + n])
            store(states, at + state * LANES, now)
            out = out + now * spread(C[t * state + n])
        gate, gradient = load(z, t * LANES), load(dy, t * LANES)
        part = sigmoid(gate)
        store(z, t * LANES, gradient * out * (part * (one + gate * (one - part))))
        store(dy, t * LANES, gradient * (gate * part))


@njit(**OPTIONS)
def _reverse_segment(
    count, first, u, delta, A, B, C, skip, shift, dy, steps, decays, states, carry, dA, dB, dC, sums
):  # fmt: skip
    """Run the adjoint recurrence through a replayed segment; u and delta become their own gradients.

    `carry` [state, LANES] is the gradient that reaches the segment's last state from behind, then that of its first;
    dA [state, LANES] and sums (of D and of the bias) are the segment's alone, dB and dC [count, state] are added to.
    """
    state, padded = A.shape
    zero, ln_2 = spread(ZERO), spread(LN_2)
    dd, dbias = zero, zero
    for n in range(state):
        store(dA, n * LANES, zero)
    for t in range(count - 1, -1, -1):
        value, step, gradient = load(u, t * LANES), load(steps, t * LANES), load(dy, t * LANES)
        drive = step * value
        of_drive, of_exponent = zero, zero
        for n in range(state):
            at = (t * state + n) * LANES
            dh = load(carry, n * LANES) + spread(C[t * state + n]) * gradient
            dC[t, n] += total(gradient * load(states, at + state * LANES))
            dB[t, n] += total(drive * dh)
            of_drive = of_drive + dh * spread(B[t * state + n])
            passed = dh * load(decays, at)
            store(carry, n * LANES, passed)
            exponent = passed * load(states, at)
            store(dA, n * LANES, load(dA, n * LANES) + exponent * step)
            of_exponent = of_exponent + exponent * load(A, n * padded + first)
        of_delta = value * of_drive + ln_2 * of_exponent
        of_delta = of_delta * sigmoid(load(delta, t * LANES) + shift)
        dd, dbias = dd + gradient * value, dbias + of_delta
        store(u, t * LANES, step * of_drive + skip * gradient)
        store(delta, t * LANES, of_delta)
    store(sums, 0, dd)
    store(sums, LANES, dbias)


@njit(
    void(
        intp, intp, sequence, sequence, float32[:, ::1], sequence, sequence, float32[::1], sequence, float32[::1],
        float32[:, :, :, ::1], sequence, sequence, sequence, float64[:, :, ::1], float32[:, :, :, ::1],
        float32[:, :, :, ::1], float64[:, ::1], sequence, float64[:, ::1],
    ),
    **OPTIONS,
)  # fmt: skip
def backward(
    first_task, last_task, u, delta, A, B, C, D, z, bias, checkpoints, dy, du, ddelta, dA, dB, dC, dD, dz, dbias
):
    """Differentiate the (sequence, group of channel blocks) pairs `first_task` to `last_task`.

    Parameters
    ----------
    u, delta, A, B, C, D, z, bias, checkpoints : as `forward` had and left them
    dy, du, ddelta, dz : [batch, channels, length]
    dA : [batch, state, padded], float64; dD, dbias : [batch, padded], float64; all zero
    dB, dC : [batch, groups, length, state], zero; summed over the channels of a group
    """
    length = u.shape[2]
    state, padded = A.shape
    blocks, groups = padded // LANES, dB.shape[1]
    tiles, rows = np.empty((5, STEPS * LANES), np.float32), np.empty((2, STEPS * state), np.float32)
    decays, states = np.empty(STEPS * state * LANES, np.float32), np.empty((STEPS + 1) * state * LANES, np.float32)
    carry, da = np.empty(state * LANES, np.float32), np.empty(state * LANES, np.float32)
    sums = np.empty(2 * LANES, np.float32)
    for task in range(first_task, last_task):
        batch, group = task // groups, task % groups
        for block in range(blocks * group // groups, blocks * (group + 1) // groups):
            first = block * LANES
            carry[:] = 0
            skip, shift = load(D, first), load(bias, first)
            for start in range((length - 1) // STEPS * STEPS, -1, -STEPS):
                count = min(STEPS, length - start)
                _read_tile(u[batch], first, start, count, tiles[0])
                _read_tile(delta[batch], first, start, count, tiles[1])
                _read_tile(z[batch], first, start, count, tiles[2])
                _read_tile(dy[batch], first, start, count, tiles[3])
                _read_rows(B[batch], start, count, rows[0])
                _read_rows(C[batch], start, count, rows[1])
                for n in range(state):
                    store(states, n * LANES, load(checkpoints[batch, start // STEPS], n * padded + first))
                _replay_segment(
                    count, first, tiles[0], tiles[1], A, rows[0], rows[1], skip, tiles[2], shift, tiles[3], tiles[4],
                    decays, states,
                )  # fmt: skip
                _reverse_segment(
                    count, first, tiles[0], tiles[1], A, rows[0], rows[1], skip, shift, tiles[3], tiles[4], decays,
                    states, carry, da, dB[batch, group, start:], dC[batch, group, start:], sums,
                )  # fmt: skip
                _write_tile(tiles[0], first, start, count, du[batch])
                _write_tile(tiles[1], first, start, count, ddelta[batch])
                _write_tile(tiles[2], first, start, count, dz[batch])
                # Float64: a sum over a long sequence would lose digits in float32.
                for c in range(LANES):
                    dD[batch, first + c] += sums[c]
                    dbias[batch, first + c] += sums[LANES + c]
                    for n in range(state):
                        dA[batch, n, first + c] += da[n * LANES + c]
