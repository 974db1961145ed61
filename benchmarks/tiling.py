"""Tiling against a plain loop of OpenSlide's read_region and Pillow over the same tiles.

    python benchmarks/tiling.py [--px 20000] [--slide FILE]

Prints seconds for the slide's own resolution and for half of it: the loop, `mgi slide tile`, and the bound, which is
decoding each stored tile that is needed once, resampling aside, and encoding. One process, two threads; the median of
three runs after one that warms the page cache. Without `--slide`, a slide of that edge is made of noise on tissue.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import pyarrow.parquet as pq
import pyvips
from PIL import Image

from mgi.codecs import encode_jpeg
from mgi.config import TileOptions
from mgi.prepare.reader import open_slide
from mgi.prepare.slides import tile_slides

MPP, TILE_PX, RUNS, THREADS = 0.5, 256, 3, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--px", type=int, default=20000, help="edge of the slide that is made")
    parser.add_argument("--slide", type=Path, help="an own slide of 0.5 microns per pixel")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        slide = given.slide or make_slide(Path(folder) / "slide.svs", given.px)
        print(
            "| mpp | tiles | loop, s | mgi, s | times | bound, s | share of the bound |\n|---|---|---|---|---|---|---|"
        )
        for mpp in (MPP, 2 * MPP):
            table = Path(folder) / "tiles.parquet"
            options = TileOptions(mpp=mpp, tile_px=TILE_PX, default_mpp=MPP)

            ours = partial(tile_slides, [slide], ["case"], table, options)
            ours()
            places = pq.read_table(table, columns=["x", "y", "size"]).to_pandas()
            seconds = [measure(run) for run in (partial(loop, slide, places), ours, partial(bound, slide, places))]
            print(
                f"| {mpp:g} | {len(places)} | {seconds[0]:.2f} | {seconds[1]:.2f} | {seconds[0] / seconds[1]:.1f} "
                f"| {seconds[2]:.2f} | {seconds[2] / seconds[1]:.2f} |"
            )


def measure(run: Callable[[], None]) -> float:
    """Return the median seconds of three runs."""
    taken = []
    for _ in range(RUNS):
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def make_slide(path: Path, px: int) -> Path:
    """Write a pyramidal JPEG SVS of grainy tissue, one eighth from every side, on glass."""
    grain = pyvips.Image.gaussnoise(px, px, mean=0, sigma=12).cast("char")
    inside = pyvips.Image.black(px, px).draw_rect(255, px // 8, px // 8, px * 3 // 4, px * 3 // 4, fill=True)
    colours = [inside.ifthenelse(tissue, 242) + grain for tissue in (200, 110, 175)]
    image = colours[0].bandjoin(colours[1:]).cast("uchar").copy(interpretation="srgb")
    image.set_type(pyvips.GValue.gstr_type, "image-description", f"Aperio Image Library v11|AppMag = 20|MPP = {MPP}")
    image.tiffsave(str(path), tile=True, tile_width=256, tile_height=256, pyramid=True, compression="jpeg", Q=90)
    return path


def loop(path: Path, places: pd.DataFrame) -> None:
    """Read, scale and encode each tile as a script of twenty lines does."""
    with openslide.OpenSlide(path) as slide:
        for x, y, size in places.itertuples(index=False):
            level = slide.get_best_level_for_downsample(size / TILE_PX)
            edge = round(size / slide.level_downsamples[level])
            tile = slide.read_region((x, y), level, (edge, edge)).convert("RGB")
            if edge != TILE_PX:
                tile = tile.resize((TILE_PX, TILE_PX), Image.Resampling.LANCZOS)
            encode_jpeg(np.asarray(tile))


def bound(path: Path, places: pd.DataFrame) -> None:
    """Decode each stored tile of the finest sufficient level that is needed once, and encode every tile."""
    with open_slide(path) as slide, ThreadPoolExecutor(THREADS) as threads:
        level = slide.get_best_level_for_downsample(places["size"].iloc[0] / TILE_PX)
        native, downsample = slide.native[level], slide.level_downsamples[level]
        width, height = slide.level_dimensions[level]

        def work(place: tuple[int, int, float]) -> None:
            x, y, size = place
            edge = round(size / downsample)
            x, y = min(int(x / downsample), width - edge), min(int(y / downsample), height - edge)
            encode_jpeg(native.read(x, y, edge, edge)[:TILE_PX, :TILE_PX])

        list(threads.map(work, places.itertuples(index=False)))


if __name__ == "__main__":
    main()
