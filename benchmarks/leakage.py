"""How much a split by image flatters: the same network trained twice, once by patient and once by image.

By patient it is trained on a fold's training and validation patients and tested on the fold's test patients. By image
it is trained on as many slices drawn from all patients, and tested on the rest: the neighbours of a test slice, of the
same tumour, are then among those it was trained on. Everything else is alike: the variant's options, its steps, a
threshold of 0.5 and no choice on validation images. Only variants without genes.

**The figures of the split by image are leakage**: no measure of a model, and only to be seen beside the others.

    python benchmarks/leakage.py --configfile config/tcga-lgg-mri.yaml --results results/tcga-lgg-mri --fold 0
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mgi.config import FinetuneOptions, load_config
from mgi.evaluate.masks import dice
from mgi.model.segmenter import Segmenter
from mgi.train import checkpoint
from mgi.train.batches import to_tensor
from mgi.train.data import Images, read_images, read_roles
from mgi.train.description import SegmenterDescription
from mgi.train.device import Place, prepare_torch
from mgi.train.finetune import ImageBatches
from mgi.train.loop import TrainingRun, parameter_groups
from mgi.train.profiles import NO_PROFILES
from mgi.train.validation import BATCH

THRESHOLD = 0.5


def main() -> None:
    """Train by both splits and print what each says of its own test images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configfile", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True, help="folder with sources.parquet and splits.parquet")
    parser.add_argument("--variant", default="unet")
    parser.add_argument("--fold", default="0")
    parser.add_argument("--steps", type=int, help="in place of the variant's")
    parser.add_argument("--by", choices=("patient", "image"), nargs="+", default=["patient", "image"])
    chosen = parser.parse_args()
    options = FinetuneOptions(**load_config(chosen.configfile).finetune_options(chosen.variant))
    if options.genes != "none":
        parser.error(f"{chosen.variant} reads genes: name a variant without them")
    options = options.model_copy(update={"steps": chosen.steps or options.steps})
    roles = read_roles(chosen.results / "splits.parquet", chosen.fold)
    images = read_images(chosen.results / "sources.parquet", {case for cases in roles.values() for case in cases}, True)
    tested = images.frame.case_id.isin(roles["test"]).to_numpy()
    for by in chosen.by:
        drawn = tested if by == "patient" else np.random.default_rng(options.seed).permutation(tested)
        by_patient, by_slice = measure(images, np.flatnonzero(~drawn), np.flatnonzero(drawn), options)
        print(f"split by {by}{'' if by == 'patient' else ', LEAKAGE, no measure of a model'}: trained on "
              f"{(~drawn).sum()} images, tested on {drawn.sum()} of {len(by_patient)} patients; Dice by patient "
              f"{by_patient.mean():.3f}, median {np.median(by_patient):.3f}, by slice with tumour "
              f"{by_slice.mean():.3f}", flush=True)  # fmt: skip


def measure(
    images: Images, train: np.ndarray, test: np.ndarray, options: FinetuneOptions
) -> tuple[np.ndarray, np.ndarray]:
    """Train on some rows and return the Dice of each patient over the others, and of each of these with tumour."""
    place = prepare_torch(options, options.device, genes=False)
    torch.manual_seed(options.seed)
    description = SegmenterDescription(options=options, fold="0", image_px=images.image_px, genes=[], threshold=0.5)
    model = checkpoint.build_segmenter(description)
    if options.backbone is not None:
        model.path.load_published_weights()
    model = model.to(memory_format=torch.channels_last).to(place.device)
    batches = ImageBatches(images, NO_PROFILES, options, place)
    pools = [[np.intersect1d(rows, train) for rows in pool] for pool in batches.pools]
    batches.pools = [[rows for rows in pool if len(rows)] for pool in pools]
    with tempfile.TemporaryDirectory() as folder:
        groups = parameter_groups(model, options)
        run = TrainingRun(model, options, {}, Path(folder), groups, options.batch_images)
        run.train(options.seed, partial(batches.backward, model), None)
    counts = np.concatenate([
        count_pixels(model, images, rows, place) for rows in np.array_split(test, -(-len(test) // BATCH))
    ])  # fmt: skip
    by_patient = pd.DataFrame(counts).groupby(images.frame.case_id.to_numpy()[test]).sum().to_numpy()
    return dice(*by_patient.T), dice(*counts[images.positive[test]].T)


@torch.inference_mode()
def count_pixels(model: Segmenter, images: Images, rows: np.ndarray, place: Place) -> np.ndarray:
    """Count true-positive, false-positive and false-negative pixels of some images, int64 [rows, 3]."""
    inputs = to_tensor(images.load_stacks(rows, model.neighbours), place.device)
    nobody = torch.zeros(len(rows), dtype=torch.int64, device=place.device)
    with place.autocast():
        probability = model.predict(inputs.contiguous(memory_format=torch.channels_last), None, nobody, nobody.bool())
    ours, theirs = (probability >= THRESHOLD).cpu().numpy(), images.load_masks(rows).astype(bool)
    return np.stack([masks.sum(axis=(1, 2)) for masks in (ours & theirs, ours & ~theirs, ~ours & theirs)], axis=1)


if __name__ == "__main__":
    main()
