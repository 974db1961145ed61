"""What a training step of each gene encoder costs over 1,000, 5,000 and 20,000 genes: seconds and peak memory.

Mamba on the scan that this machine has (named in the first line), a Transformer on PyTorch's scaled dot-product
attention (flash attention where the device has it), and an MLP. One token per gene, the same width and depth; a step is
forward, backward and AdamW. Each runs in a process of its own, in turn; the best of `--rounds` after one that is not
counted. Memory is the peak above what the process holds with model, optimiser and batch made.

On CUDA steps run in bfloat16 autocast, and memory is that of torch's allocator. What each encoder is worth on the
simulated cohort is one target of the workflow each: results/simulated/finetune/mgi/summary.json, and the same of
mgi-transformer and mgi-mlp.

    python benchmarks/encoders.py                              # CPU, 2 threads, batch 1, width 64, depth 2
    python benchmarks/encoders.py --genes 1000 --rounds 1
    python benchmarks/encoders.py --device cuda --batch 32 --dim 128 --depth 4
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from memory import forget_peak, resident_gb

from mgi.model.gene_encoder import GeneEncoder
from mgi.model.scan import describe_path

KINDS = ("mamba", "transformer", "mlp")


def measure(kind: str, genes: int, options: argparse.Namespace) -> dict[str, float]:
    """Time steps of one encoder in this process."""
    torch.manual_seed(0)
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"

    def make_step(width: int) -> Callable[[], float]:
        model = GeneEncoder(width, options.dim, options.depth, kind=kind).to(device)
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
        values = torch.randn(options.batch, width, device=device)

        def step() -> float:
            started = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
                tokens, pooled = model(values)
            (tokens.float().square().mean() + pooled.float().square().mean()).backward()
            optimiser.step()
            optimiser.zero_grad()
            if on_gpu:
                torch.cuda.synchronize()
            return time.perf_counter() - started

        return step

    make_step(16)()  # loads and compiles what a step needs
    step = make_step(genes)
    before = torch.cuda.memory_allocated() / 1e9 if on_gpu else resident_gb("VmRSS")
    if not on_gpu:
        forget_peak()
    step()
    seconds = min(step() for _ in range(options.rounds))
    peak = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else resident_gb("VmHWM")
    return {"seconds": seconds, "memory_gb": peak - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genes", type=int, nargs="+", default=[1_000, 5_000, 20_000])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", choices=KINDS, help="time one encoder in this process and print JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.only:
        print(json.dumps(measure(options.only, options.genes[0], options)))
        return
    print(f"{options.device}, {options.threads} threads, load {os.getloadavg()[0]:.1f} at the start")
    print(
        f"batch {options.batch}, width {options.dim}, depth {options.depth}; Mamba on {describe_path(options.device)}\n"
    )
    print(f"{'encoder':<12}{'genes':>8}  {'seconds':>8}  {'peak GB':>8}")
    for genes in options.genes:
        for kind in KINDS:
            command = [sys.executable, *sys.argv, "--only", kind, "--genes", str(genes)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"{kind:<12}{genes:8,}  failed: {done.stderr.strip().splitlines()[-1]}")
                continue
            row = json.loads(done.stdout)
            print(f"{kind:<12}{genes:8,}  {row['seconds']:8.3f}  {row['memory_gb']:8.3f}")


if __name__ == "__main__":
    main()
