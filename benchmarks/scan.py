"""How fast the fused selective scan is on a CPU, and what memory it takes, beside its peers; forward and backward.

Peers: mambapy's parallel scan with the arithmetic around it that its block does (`pip install --no-deps mambapy`);
mgi's plain loop; mamba-ssm's `selective_scan_ref`, written out here, since the package needs CUDA to install. The
backward pass of the last is quadratic in length: it runs at `--reference-length` and is named with it.

All take the same numbers, batch 1, with softplus, D and the gate. Each runs in a process of its own, in turn, in one
run; the best of `--rounds` (of one for the last). Memory is the peak of the process above what it holds with the inputs
made and everything warm. The scan is then timed from 1,000 to 60,000 steps, which benchmarks/out/scan.png shows.

The bound is the larger of two times: the exponentials that both passes need (a decay for each channel, state and step,
computed twice, since none is kept) at the rate of `exp2` alone in a loop over a block that stays in the cache; and the
bytes of inputs and outputs at the rate of a copy. Both rates are measured here on the same threads.

    python benchmarks/scan.py                              # 2 threads, length 20,000, 128 channels, state 16
    python benchmarks/scan.py --length 2000 --lengths 1000 2000 --rounds 1
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from memory import forget_peak, resident_gb
from torch import Tensor

from mgi.model.scan import selective_scan
from mgi.model.scan.reference import reference_scan

OUT = Path(__file__).resolve().parent / "out"
CHANNELS, STATE = 128, 16
BAR, GOAL, MEMORY_BAR_GB = 20, 40, 0.2
# Floats read and written per channel and step: u, delta, z and y forward; the first three, dy and their gradients back.
FLOATS_PER_CHANNEL, FLOATS_PER_STATE = 4 + 7, 2 + 4


def make_inputs(length: int) -> dict[str, Tensor]:
    """Draw inputs as a Mamba block makes them: channels innermost, time steps between 0.001 and 0.1."""
    draw = torch.Generator().manual_seed(0)

    def sequence(width: int) -> Tensor:
        return torch.randn(1, length, width, generator=draw).transpose(1, 2).requires_grad_()

    steps = torch.exp(torch.empty(CHANNELS).uniform_(np.log(1e-3), np.log(0.1), generator=draw))
    return {
        "u": sequence(CHANNELS),
        "delta": sequence(CHANNELS),
        "A": (-torch.arange(1.0, STATE + 1).repeat(CHANNELS, 1)).requires_grad_(),
        "B": sequence(STATE),
        "C": sequence(STATE),
        "D": torch.ones(CHANNELS, requires_grad=True),
        "z": sequence(CHANNELS),
        "delta_bias": torch.log(torch.expm1(steps)).requires_grad_(),
    }


def scan_as_mambapy(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """Scan as `mambapy.mamba.MambaBlock` does between its projections."""
    from mambapy.pscan import pscan

    u, delta, B, C, z = (part.transpose(1, 2) for part in (u, delta, B, C, z))
    delta = F.softplus(delta + delta_bias)
    decay = torch.exp(delta.unsqueeze(-1) * A)
    drive = delta.unsqueeze(-1) * B.unsqueeze(2) * u.unsqueeze(-1)
    y = (pscan(decay, drive) @ C.unsqueeze(-1)).squeeze(3) + D * u
    return (y * F.silu(z)).transpose(1, 2)


def scan_as_mamba_ssm(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """Scan as `mamba_ssm.ops.selective_scan_interface.selective_scan_ref` does."""
    delta = F.softplus(delta + delta_bias[..., None])
    decay = torch.exp(torch.einsum("bdl,dn->bdln", delta, A))
    drive = torch.einsum("bdl,bnl,bdl->bdln", delta, B, u)
    x, ys = A.new_zeros((u.shape[0], *A.shape)), []
    for step in range(u.shape[2]):
        x = decay[:, :, step] * x + drive[:, :, step]
        ys.append(torch.einsum("bdn,bn->bd", x, C[:, :, step]))
    return (torch.stack(ys, dim=2) + u * D[:, None]) * F.silu(z)


SCANS: dict[str, Callable[..., Tensor]] = {
    "mgi": selective_scan,
    "mambapy": scan_as_mambapy,
    "mgi's loop": reference_scan,
    "mamba-ssm's loop": scan_as_mamba_ssm,
}


def time_passes(scan: Callable[..., Tensor], inputs: dict[str, Tensor], gradient: Tensor) -> tuple[float, float]:
    started = time.perf_counter()
    y = scan(**inputs)
    between = time.perf_counter()
    torch.autograd.grad(y, list(inputs.values()), gradient)
    return between - started, time.perf_counter() - between


def measure(name: str, length: int, rounds: int) -> dict[str, float]:
    """Time one scan in this process, after a short run that loads and compiles what it needs."""
    scan = SCANS[name]
    for warm_up in (1, 64):
        inputs = make_inputs(warm_up)
        time_passes(scan, inputs, torch.ones(1, CHANNELS, warm_up))
    inputs, gradient = make_inputs(length), torch.randn(1, CHANNELS, length)
    before = resident_gb("VmRSS")
    forget_peak()
    times = [time_passes(scan, inputs, gradient) for _ in range(rounds)]
    forward, backward = min(times, key=sum)
    return {"forward": forward, "backward": backward, "memory_gb": resident_gb("VmHWM") - before}


def measure_apart(name: str, length: int, threads: int, rounds: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--only", name, "--length", str(length), "--rounds", str(rounds)]
    done = subprocess.run([*command, "--threads", str(threads)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def measure_rates(threads: int) -> tuple[float, float]:
    """Return exponentials and bytes copied per second, on all threads together."""
    from numba import njit

    from mgi.model.scan.cpu import load_kernels

    load_kernels()
    from mgi.model.scan.lanes import LANES, exp2, load, store

    @njit(nogil=True)
    def exponentiate(x, y, repeats):
        for _ in range(repeats):
            for start in range(0, x.size, LANES):
                store(y, start, exp2(load(x, start)))

    size, repeats = 1024, 20_000
    blocks = [(np.random.uniform(-20, 0, size).astype(np.float32), np.empty(size, np.float32)) for _ in range(threads)]
    copies = [(np.ones(16_000_000, np.float32), np.ones(16_000_000, np.float32)) for _ in range(threads)]
    exponentiate(*blocks[0], 1)
    best = [np.inf, np.inf]
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            for index, work in enumerate(
                (lambda pair: exponentiate(*pair, repeats), lambda pair: np.copyto(pair[1], pair[0]))
            ):
                started = time.perf_counter()
                list(pool.map(work, (blocks, copies)[index]))
                best[index] = min(best[index], time.perf_counter() - started)
    return threads * size * repeats / best[0], threads * 2 * copies[0][0].nbytes / best[1]


def report_bound(length: int, threads: int, seconds: float) -> None:
    exponentials, bytes_copied = measure_rates(threads)
    by_exponentials = 2 * length * CHANNELS * STATE / exponentials
    by_bytes = 4 * length * (CHANNELS * FLOATS_PER_CHANNEL + STATE * FLOATS_PER_STATE) / bytes_copied
    bound = max(by_exponentials, by_bytes)
    print(
        f"\nbound: {by_exponentials:.4f} s for the exponentials at {exponentials / 1e9:.2f} G/s, {by_bytes:.4f} s for "
        f"the bytes at {bytes_copied / 1e9:.1f} GB/s; the scan reaches {bound / seconds:.0%} of the larger"
    )


def report_linearity(lengths: list[int], threads: int, rounds: int) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    print(f"\n{'length':>8}  {'seconds':>8}  {'µs a step':>9}  {'peak GB':>8}")
    rows = []
    for length in lengths:
        row = measure_apart("mgi", length, threads, rounds)
        seconds = row["forward"] + row["backward"]
        rows.append((length, seconds))
        print(f"{length:8,}  {seconds:8.4f}  {seconds / length * 1e6:9.2f}  {row['memory_gb']:8.3f}")
    x, y = np.array(rows).T
    exponent = np.polyfit(np.log(x), np.log(y), 1)[0] if len(rows) > 1 else 1.0
    print(f"time grows as length to the power {exponent:.2f}")
    OUT.mkdir(exist_ok=True)
    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    axes.loglog(x, y, "o-", label="mgi, forward and backward")
    axes.loglog(x, y[-1] * x / x[-1], "--", color="grey", label="linear")
    axes.set(xlabel="length", ylabel="seconds", title=f"{CHANNELS} channels, state {STATE}, {threads} threads")
    axes.legend()
    figure.savefig(OUT / "scan.png", dpi=150)
    print(f"plot: {OUT / 'scan.png'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=20_000)
    parser.add_argument("--reference-length", type=int, default=1_000)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1_000, 2_000, 5_000, 10_000, 20_000, 40_000, 60_000])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=SCANS, help="time one scan in this process and print JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.only:
        print(json.dumps(measure(options.only, options.length, options.rounds)))
        return
    busy = os.getloadavg()[0]
    print(f"{options.threads} threads, load {busy:.1f} at the start; 1 x {CHANNELS} x length, state {STATE}\n")
    print(f"{'scan':<18}{'length':>8}  {'forward s':>9}  {'backward s':>10}  {'together':>8}  {'peak GB':>8}")
    rows = {}
    for name in SCANS:
        length = options.reference_length if name == "mamba-ssm's loop" else options.length
        rounds = 1 if name == "mamba-ssm's loop" else options.rounds
        rows[name] = row = measure_apart(name, length, options.threads, rounds)
        row["together"] = row["forward"] + row["backward"]
        print(
            f"{name:<18}{length:8,}  {row['forward']:9.4f}  {row['backward']:10.4f}  {row['together']:8.4f}  "
            f"{row['memory_gb']:8.3f}"
        )
    ratio = rows["mambapy"]["together"] / rows["mgi"]["together"]
    print(f"\nmgi is {ratio:.1f} times as fast as mambapy (bar {BAR}, goal {GOAL}),")
    print(f"and takes {rows['mgi']['memory_gb']:.3f} GB above its inputs (bar {MEMORY_BAR_GB})")
    report_bound(options.length, options.threads, rows["mgi"]["together"])
    report_linearity(options.lengths, options.threads, options.rounds)


if __name__ == "__main__":
    main()
