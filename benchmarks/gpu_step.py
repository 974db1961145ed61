"""A pre-training step at full size on a GPU: a ViT-B/16 and a Mamba over 20,000 genes, contrasted.

Prints images per second, peak memory, and the share of the card's own bfloat16 rate, which a large matrix product
measures here. Operations are those of the matrix products and convolutions that torch counts; the scan's are left out,
so that the share is a lower bound. It has not been run on a GPU yet.

    python benchmarks/gpu_step.py                      # 32 patients, 4 images of each
    python benchmarks/gpu_step.py --patients 8 --genes 5000
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from mgi.model.alignment import Aligner
from mgi.model.gene_encoder import GeneEncoder
from mgi.model.image_encoder import ImageEncoder
from mgi.model.scan import describe_path


def best_seconds(work: Callable[[], object], rounds: int) -> float:
    """Return the shortest of several runs, after two that are not counted."""
    times = []
    for _ in range(rounds + 2):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times[2:])


def matrix_rate() -> float:
    """Return operations per second of a product of two bfloat16 matrices."""
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / best_seconds(lambda: a @ b, 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=32)
    parser.add_argument("--images", type=int, default=4, help="of each patient")
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = Aligner(
        GeneEncoder(options.genes, 128, 4), ImageEncoder("vit_base_patch16_224", 224), 128
    ).cuda()  # fmt: skip
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    count = options.patients * options.images
    images = torch.rand(count, 3, 224, 224, device="cuda")
    values = torch.randn(options.patients, options.genes, device="cuda")
    patient = torch.arange(options.patients, device="cuda").repeat_interleave(options.images)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(images, values, patient)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    with FlopCounterMode(display=False) as counter:
        step()
    torch.cuda.reset_peak_memory_stats()
    seconds, rate = best_seconds(step, options.rounds), matrix_rate()
    print(f"{torch.cuda.get_device_name()}; scan on {describe_path('cuda')}")
    print(f"{options.patients} patients x {options.images} images, {options.genes:,} genes: {seconds:.3f} s a step")
    print(f"{count / seconds:.0f} images/s, peak memory {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")
    share = counter.get_total_flops() / seconds / rate
    print(f"{share:.0%} of the {rate / 1e12:.0f} Tflop/s that a bfloat16 matrix product reaches here")


if __name__ == "__main__":
    main()
