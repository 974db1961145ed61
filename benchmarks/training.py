"""Images per second of training, beside the same network, loss and optimiser in loops that others would write.

- `memory`: a plain PyTorch loop on one batch that lies ready in memory: what the step itself allows.
- `mgi`: the product's own run, from encoded images: drawn, decoded, augmented, trained on.
- `dataloader`: a plain PyTorch loop over `torch.utils.data.DataLoader` with one worker per thread, the same images
  decoded by Pillow, the same flips and quarter turns.
- `monai`: the same with MONAI's `Dataset`, `RandFlipd` and `RandRotate90d`, where MONAI is installed.

With `--pretraining`, contrastive pre-training in place of fine-tuning: `mgi` from encoded images beside `memory`, the
same step on one batch drawn beforehand.

All in one process, in turn, `--rounds` times; the best round of each counts, and the last column is its ratio to
`memory`. No validation and no checkpoint is timed.

    python benchmarks/training.py
    python benchmarks/training.py --px 256 --batch 8 --precision bfloat16
    python benchmarks/training.py --pretraining
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset

from mgi.codecs import decode_image, decode_mask, encode_jpeg, encode_mask
from mgi.config import FinetuneOptions, PretrainOptions
from mgi.model.segmenter import Segmenter, dice_cross_entropy
from mgi.train import checkpoint
from mgi.train.batches import to_tensor
from mgi.train.data import PLACE, Images
from mgi.train.description import AlignerDescription, SegmenterDescription
from mgi.train.device import Place, prepare_torch
from mgi.train.finetune import ImageBatches
from mgi.train.loop import TrainingRun, parameter_groups
from mgi.train.pretrain import PatientBatches
from mgi.train.profiles import NO_PROFILES, Profiles

PATIENTS, IMAGES_EACH, GENES = 24, 20, 2000
VIT = {"name": "vit_tiny_patch16_224", "options": {"patch_size": 16, "depth": 4, "embed_dim": 96, "num_heads": 3}}


def make_images(px: int) -> Images:
    """Make images of smooth noise with a disc for a tumour, encoded as the tables hold them."""
    random = np.random.default_rng(0)
    yy, xx = np.mgrid[:px, :px]
    rows, encoded, masks = [], [], []
    for patient in range(PATIENTS):
        for z in range(IMAGES_EACH):
            y, x = random.integers(px // 4, 3 * px // 4, 2)
            disc = (yy - y) ** 2 + (xx - x) ** 2 < (px // 6) ** 2
            coarse = np.kron(random.integers(0, 90, (px // 8, px // 8, 3)), np.ones((8, 8, 1)))
            encoded.append(encode_jpeg((coarse + 100 * disc[..., None]).astype(np.uint8)))
            masks.append(encode_mask(disc))
            rows.append((f"P{patient:03d}", f"P{patient:03d}", 0, 0, z, px, np.nan))
    return Images(pd.DataFrame(rows, columns=PLACE), encoded, masks, np.ones(len(rows), bool))


class Encoded(Dataset):
    """The same images for a DataLoader: decoded by Pillow, flipped and turned at random."""

    def __init__(self, images: Images, augment: bool) -> None:
        self.images, self.augment = images, augment

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        image, mask = decode_image(self.images.encoded[row]), decode_mask(self.images.masks[row])
        if self.augment:
            turns, flip = int(torch.randint(4, ())), bool(torch.rand(()) < 0.5)
            image, mask = np.rot90(image, turns), np.rot90(mask, turns)
            if flip:
                image, mask = image[:, ::-1], mask[:, ::-1]
        image = np.ascontiguousarray(image.transpose(2, 0, 1), np.float32) / 255
        return {"image": image, "mask": np.ascontiguousarray(mask[None], np.float32)}


def iterate_forever(loader: DataLoader) -> Iterator[dict[str, torch.Tensor]]:
    while True:
        yield from loader


def plain_loader(images: Images, options: FinetuneOptions, dataset: Dataset) -> DataLoader:
    return DataLoader(
        dataset, options.batch_images, shuffle=True, drop_last=True, num_workers=options.threads,
        persistent_workers=True,
    )  # fmt: skip


def monai_dataset(images: Images) -> Dataset | None:
    try:
        from monai.data import Dataset as MonaiDataset
        from monai.transforms import Compose, RandFlipd, RandRotate90d
    except ImportError:
        return None
    keys = ["image", "mask"]
    read = Encoded(images, augment=False)
    chain = [lambda row: read[row], RandFlipd(keys, 0.5, 1), RandRotate90d(keys, 0.75)]
    return MonaiDataset(list(range(len(images))), Compose(chain))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--px", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("float32", "bfloat16", "auto"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--pretraining", action="store_true")
    arguments = parser.parse_args()
    if arguments.pretraining:
        compare_pretraining(arguments)
        return
    options = FinetuneOptions(
        steps=arguments.steps, val_every=arguments.steps, warmup_steps=5, genes="none", batch_images=arguments.batch,
        positive_fraction=1.0, threads=arguments.threads, precision=arguments.precision, device=arguments.device,
        channels=[8, 24, 48, 96],
        image_encoder=VIT,
    )  # fmt: skip
    place = prepare_torch(options, options.device, genes=False)
    images = make_images(arguments.px)
    description = SegmenterDescription(options=options, fold="0", image_px=arguments.px, genes=[], threshold=0.5)
    print(f"{place.device}, {options.threads} threads, {place.dtype}, load {os.getloadavg()[0]:.1f} at the start")
    print(f"{len(images)} images of {arguments.px} px, batches of {options.batch_images}, {options.steps} steps\n")

    def build() -> Segmenter:
        model = checkpoint.build_segmenter(description)
        return model.to(memory_format=torch.channels_last).to(place.device)

    loops: dict[str, Callable[[], float]] = {
        "memory": lambda: time_memory(build(), images, options, place),
        "mgi": lambda: time_mgi(build(), images, options, place),
        "dataloader": lambda: time_loader(
            build(), plain_loader(images, options, Encoded(images, augment=True)), options, place
        ),
    }
    dataset = monai_dataset(images)
    if dataset is None:
        print("monai is not installed: pip install monai to time its loader\n")
    else:
        loops["monai"] = lambda: time_loader(build(), plain_loader(images, options, dataset), options, place)
    compare(loops, arguments.rounds, options.batch_images * options.steps)


def compare(loops: dict[str, Callable[[], float]], rounds: int, count: int) -> None:
    """Time the loops over `count` images in turn, and print the best round of each."""
    best = dict.fromkeys(loops, float("inf"))
    for _ in range(rounds):
        for name, run in loops.items():
            best[name] = min(best[name], run())
    print(f"{'loop':<12}{'images/s':>10}{'of memory':>11}")
    for name, seconds in best.items():
        print(f"{name:<12}{count / seconds:10.1f}{best['memory'] / seconds:11.2f}")


def compare_pretraining(arguments: argparse.Namespace) -> None:
    """Compare pre-training from encoded images with the same step on one batch in memory."""
    options = PretrainOptions(
        steps=arguments.steps, val_every=arguments.steps, warmup_steps=5, batch_patients=arguments.batch,
        images_per_patient=4, threads=arguments.threads, precision=arguments.precision, device=arguments.device,
        gene_encoder={"dim": 32, "depth": 1, "state_dim": 8},
        image_encoder=VIT,
    )  # fmt: skip
    place = prepare_torch(options, options.device, genes=True)
    images = make_images(arguments.px)
    patients = sorted(images.frame.case_id.unique())
    genes = [f"gene {number}" for number in range(GENES)]
    values = torch.randn(len(patients), GENES, generator=torch.Generator().manual_seed(0))
    profiles = Profiles(values, {case: row for row, case in enumerate(patients)}, genes)
    description = AlignerDescription(
        options=options, fold="0", image_px=arguments.px, genes=genes, gene_names=genes, unit="z-score"
    )
    print(f"{place.device}, {options.threads} threads, {place.dtype}, load {os.getloadavg()[0]:.1f} at the start")
    print(f"{options.batch_patients} patients with {options.images_per_patient} images of {arguments.px} px each, "
          f"{GENES} genes, {options.steps} steps\n")  # fmt: skip

    def run(in_memory: bool) -> float:
        model = checkpoint.build_aligner(description).to(place.device)
        model.gene_encoder.fit_standardisation(values)
        batches = PatientBatches(images, profiles, patients, options, place)
        if in_memory:
            drawn = batches._draw(0)
            batches._ahead = lambda step: drawn
        return time_run(model, batches, options)

    count = options.batch_patients * options.images_per_patient * options.steps
    compare({"memory": lambda: run(True), "mgi": lambda: run(False)}, arguments.rounds, count)


def plain_step(
    model: Segmenter, optimiser: torch.optim.Optimizer, inputs: torch.Tensor, masks: torch.Tensor, place: Place
) -> None:
    nothing = torch.zeros(len(inputs), dtype=torch.int64, device=place.device)
    with place.autocast():
        logits = model(inputs, torch.zeros(1, 0), nothing, nothing.bool())
    optimiser.zero_grad()
    dice_cross_entropy(logits.float(), masks).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()


def time_memory(model: Segmenter, images: Images, options: FinetuneOptions, place: Place) -> float:
    rows = np.arange(options.batch_images)
    inputs = to_tensor(images.load(rows), place.device).contiguous(memory_format=torch.channels_last)
    masks = torch.from_numpy(images.load_masks(rows)).to(place.device).float()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    plain_step(model, optimiser, inputs, masks, place)
    started = time.perf_counter()
    for _ in range(options.steps):
        plain_step(model, optimiser, inputs, masks, place)
    return time.perf_counter() - started


def time_loader(model: Segmenter, loader: DataLoader, options: FinetuneOptions, place: Place) -> float:
    batches = iterate_forever(loader)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    started = 0.0
    for step in range(options.steps + 1):
        batch = next(batches)
        inputs = torch.as_tensor(batch["image"]).to(place.device).contiguous(memory_format=torch.channels_last)
        plain_step(model, optimiser, inputs, torch.as_tensor(batch["mask"])[:, 0].to(place.device), place)
        started = started if step else time.perf_counter()
    return time.perf_counter() - started


def time_mgi(model: Segmenter, images: Images, options: FinetuneOptions, place: Place) -> float:
    return time_run(model, ImageBatches(images, NO_PROFILES, options, place), options)


def time_run(
    model: torch.nn.Module, batches: ImageBatches | PatientBatches, options: FinetuneOptions | PretrainOptions
) -> float:
    """Time the steps of the product's own run."""
    with tempfile.TemporaryDirectory() as folder:
        run = TrainingRun(model, options, {}, Path(folder), parameter_groups(model, options), 1)
        model.train()
        started = time.perf_counter()
        for step in range(options.steps):
            run._update(step, options.seed, lambda step: batches.backward(model, step))
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
