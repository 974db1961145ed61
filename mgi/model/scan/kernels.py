"""The selective scan's two passes over a block of 16 channels, in Numba; importing this module compiles or loads them.

The time axis is cut into segments of `STEPS`. The forward pass keeps the state at the start of each segment; the
backward pass starts from it, recomputes the segment's states and runs the adjoint recurrence through them. Sequences are
read where they lie, whatever their strides, a tile of one segment by 16 channels at a time.

Every task writes to places of its own and sums in one order, so the number of threads does not change a bit.
"""

import numpy as np
from numba import config, float32, float64, intp, njit, void

from mgi.model.scan.lanes import LANES, exp2, load, sigmoid, softplus, spread, store, total

STEPS = 32
LN_2 = np.float32(np.log(2))
ONE = np.float32(1)

sequence = float32[:, :, :]  # [batch, channels or state, length], any strides
# `load_kernels` sets the folder, empty where none can be written.
OPTIONS = {"nogil": True, "cache": bool(config.CACHE_DIR)}


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
    channels, length = u.shape[1:]
    state, padded = A.shape
    blocks = padded // LANES
    tiles = np.zeros((4, STEPS * LANES), np.float32)
    u_tile, delta_tile, z_tile, y_tile = tiles[0], tiles[1], tiles[2], tiles[3]
    b_rows, c_rows = np.empty(STEPS * state, np.float32), np.empty(STEPS * state, np.float32)
    h = np.empty(state * LANES, np.float32)
    for task in range(first_task, last_task):
        batch, first = task // blocks, task % blocks * LANES
        h[:] = 0
        skip, shift = load(D, first), load(bias, first)
        for start in range(0, length, STEPS):
            count = min(STEPS, length - start)
            if checkpoints.shape[1]:
                kept = checkpoints[batch, start // STEPS]
                for n in range(state):
                    store(kept, n * padded + first, load(h, n * LANES))
            _read_tile(u[batch], first, start, count, u_tile)
            _read_tile(delta[batch], first, start, count, delta_tile)
            _read_tile(z[batch], first, start, count, z_tile)
            _read_rows(B[batch], start, count, b_rows)
            _read_rows(C[batch], start, count, c_rows)
            for t in range(count):
                value, step = load(u_tile, t * LANES), softplus(load(delta_tile, t * LANES) + shift)
                drive, out = step * value, skip * value
                for n in range(state):
                    decay = exp2(step * load(A, n * padded + first))
                    now = decay * load(h, n * LANES) + drive * spread(b_rows[t * state + n])
                    store(h, n * LANES, now)
                    out = out + now * spread(c_rows[t * state + n])
                gate = load(z_tile, t * LANES)
                store(y_tile, t * LANES, out * (gate * sigmoid(gate)))
            _write_tile(y_tile, first, start, count, y[batch])


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
    dA : [batch, state, padded], float64; dD, dbias : [batch, padded], float64
    dB, dC : [batch, groups, length, state], zero; summed over the channels of a group
    """
    channels, length = u.shape[1:]
    state, padded = A.shape
    blocks, groups = padded // LANES, dB.shape[1]
    tiles = np.zeros((5, STEPS * LANES), np.float32)
    u_tile, delta_tile, z_tile, dy_tile, step_tile = tiles[0], tiles[1], tiles[2], tiles[3], tiles[4]
    b_rows, c_rows = np.empty(STEPS * state, np.float32), np.empty(STEPS * state, np.float32)
    decays = np.empty(STEPS * state * LANES, np.float32)
    states = np.empty((STEPS + 1) * state * LANES, np.float32)
    carry, da = np.empty(state * LANES, np.float32), np.empty(state * LANES, np.float32)
    sums = np.empty(2 * LANES, np.float32)
    one, ln_2 = spread(ONE), spread(LN_2)
    for task in range(first_task, last_task):
        batch, group = task // groups, task % groups
        for block in range(blocks * group // groups, blocks * (group + 1) // groups):
            first = block * LANES
            carry[:] = 0
            skip, shift = load(D, first), load(bias, first)
            for start in range((length - 1) // STEPS * STEPS, -1, -STEPS):
                count = min(STEPS, length - start)
                _read_tile(u[batch], first, start, count, u_tile)
                _read_tile(delta[batch], first, start, count, delta_tile)
                _read_tile(z[batch], first, start, count, z_tile)
                _read_tile(dy[batch], first, start, count, dy_tile)
                _read_rows(B[batch], start, count, b_rows)
                _read_rows(C[batch], start, count, c_rows)
                kept = checkpoints[batch, start // STEPS]
                for n in range(state):
                    store(states, n * LANES, load(kept, n * padded + first))
                for t in range(count):
                    value, step = load(u_tile, t * LANES), softplus(load(delta_tile, t * LANES) + shift)
                    store(step_tile, t * LANES, step)
                    drive, out = step * value, skip * value
                    for n in range(state):
                        at = (t * state + n) * LANES
                        decay = exp2(step * load(A, n * padded + first))
                        store(decays, at, decay)
                        now = decay * load(states, at) + drive * spread(b_rows[t * state + n])
                        store(states, at + state * LANES, now)
                        out = out + now * spread(c_rows[t * state + n])
                    gate, gradient = load(z_tile, t * LANES), load(dy_tile, t * LANES)
                    open_ = sigmoid(gate)
                    store(z_tile, t * LANES, gradient * out * (open_ * (one + gate * (one - open_))))
                    store(dy_tile, t * LANES, gradient * (gate * open_))
                da[:] = 0
                dd, db = spread(np.float32(0)), spread(np.float32(0))
                for t in range(count - 1, -1, -1):
                    value, step, gradient = load(u_tile, t * LANES), load(step_tile, t * LANES), load(dy_tile, t * LANES)
                    drive = step * value
                    of_drive, of_exponent = spread(np.float32(0)), spread(np.float32(0))
                    for n in range(state):
                        at = (t * state + n) * LANES
                        dh = load(carry, n * LANES) + spread(c_rows[t * state + n]) * gradient
                        dC[batch, group, start + t, n] += total(gradient * load(states, at + state * LANES))
                        dB[batch, group, start + t, n] += total(drive * dh)
                        of_drive = of_drive + dh * spread(b_rows[t * state + n])
                        kept_gradient = dh * load(decays, at)
                        store(carry, n * LANES, kept_gradient)
                        exponent = kept_gradient * load(states, at)
                        store(da, n * LANES, load(da, n * LANES) + exponent * step)
                        of_exponent = of_exponent + exponent * load(A, n * padded + first)
                    of_delta = value * of_drive + ln_2 * of_exponent
                    of_delta = of_delta * sigmoid(load(delta_tile, t * LANES) + shift)
                    dd, db = dd + gradient * value, db + of_delta
                    store(u_tile, t * LANES, step * of_drive + skip * gradient)
                    store(delta_tile, t * LANES, of_delta)
                _write_tile(u_tile, first, start, count, du[batch])
                _write_tile(delta_tile, first, start, count, ddelta[batch])
                _write_tile(z_tile, first, start, count, dz[batch])
                store(sums, 0, dd)
                store(sums, LANES, db)
                for c in range(LANES):
                    dD[batch, first + c] += sums[c]
                    dbias[batch, first + c] += sums[LANES + c]
                    for n in range(state):
                        dA[batch, n, first + c] += da[n * LANES + c]
