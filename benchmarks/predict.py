"""How much of the time of `mgi predict` on a slide is the model's own: beside the bare model on the same tiles.

A simulated slide is tiled, segmented, blended, outlined and written by `mgi predict`; then the same tiles, decoded
beforehand, go through the same model in batches of the same size in a plain loop. Both in one process, in turn,
`--rounds` times; the best of each counts, and the ratio is bare over whole. The network has random weights, of the
default size or of the demo's, which is far cheaper than the reading around it.

    python benchmarks/predict.py
    python benchmarks/predict.py --network demo --slide-px 8192
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import mgi
from mgi.config import FinetuneOptions, PredictOptions, TileOptions
from mgi.config.demo import DEMO
from mgi.evaluate.predict import OVERLAP
from mgi.inference import move_to_device
from mgi.prepare.slides import tile_slides
from mgi.simulate.cohort import write_svs
from mgi.simulate.tissue import draw_slide
from mgi.train import checkpoint
from mgi.train.batches import to_tensor
from mgi.train.data import Images, read_image_table
from mgi.train.description import SegmenterDescription
from mgi.train.validation import BATCH

PX, MPP = 256, 0.5
NETWORKS = {
    "default": {"channels": [16, 32, 64, 128], "image_encoder": {"name": "vit_small_patch16_224"}},
    "demo": {
        "channels": DEMO["finetune"]["mgi"]["channels"],
        "image_encoder": {name: DEMO["pretrain"]["mgi"]["image_encoder"][name] for name in ("name", "options")},
    },
}


def time_bare(folder: Path, images: Images) -> float:
    """Time the model alone on the tiles, which lie decoded in memory."""
    model, place = move_to_device(mgi.load(folder), "cpu")
    rows = [np.arange(start, min(start + BATCH, len(images))) for start in range(0, len(images), BATCH)]
    batches = [to_tensor(images.load(part), place.device) for part in rows]
    started = time.perf_counter()
    with torch.inference_mode(), place.autocast():
        for batch in batches:
            inputs = batch.contiguous(memory_format=torch.channels_last)
            patient = torch.zeros(len(batch), dtype=torch.int64)
            model.predict(inputs, None, patient, torch.zeros(1, dtype=torch.bool)).numpy()
    return time.perf_counter() - started


def time_whole(folder: Path, slide: Path, output: Path) -> float:
    """Time `mgi predict` from the slide to the files."""
    started = time.perf_counter()
    mgi.predict(folder, slide, output, options=PredictOptions(default_mpp=MPP), device="cpu")
    return time.perf_counter() - started


def main() -> None:
    """Make a slide and a model, and time both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slide-px", type=int, default=4096)
    parser.add_argument("--network", choices=NETWORKS, default="default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    options = FinetuneOptions(
        genes="none", pretrained=False, threads=arguments.threads, precision="float32", **NETWORKS[arguments.network]
    )
    description = SegmenterDescription(options=options, fold="all", image_px=PX, mpp=MPP, genes=[], threshold=0.5)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        slide, folder = scratch / "slide.svs", scratch / "model"
        write_svs(draw_slide(np.random.default_rng(0), np.zeros(6), arguments.slide_px)[0], slide)
        checkpoint.save(checkpoint.build_segmenter(description), description, folder)
        table = scratch / "tiles.parquet"
        tile_slides([slide], ["A"], table, TileOptions(mpp=MPP, tile_px=PX, default_mpp=MPP), overlap=OVERLAP)
        images = read_image_table(table)
        print(
            f"{len(images)} tiles of {PX} px, {arguments.threads} threads, load {os.getloadavg()[0]:.1f} at the start"
        )
        bare, whole = [], []
        for number in range(arguments.rounds):
            whole.append(time_whole(folder, slide, scratch / f"out{number}"))
            bare.append(time_bare(folder, images))
    print(f"whole {min(whole):.2f} s, bare {min(bare):.2f} s, ratio {min(bare) / min(whole):.2f}")


if __name__ == "__main__":
    main()
