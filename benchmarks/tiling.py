"""Tiling against a plain loop of OpenSlide's read_region and Pillow over the same tiles.

    python benchmarks/tiling.py [--px 20000] [--slide FILE] [--region FILE]

Prints seconds for three grids: the slide's own resolution, half of it, and tiles that coincide with the slide's own,
whose bytes are taken over. Of each: the loop, `mgi slide tile`, and the bound, which is decoding each stored tile that
is needed once, resampling aside, and encoding. One process, two threads; the median of three runs after one that warms
the page cache. Without `--slide` a slide of that edge is made: of noise on tissue, or of a real region, repeated.
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

MPP, STORED_PX, RUNS, THREADS = 0.5, 256, 3, 2
# No multiple of the stored tiles, so that these are decoded.
TILE_PX = 224
GRIDS = {"own resolution": (1, TILE_PX), "half": (2, TILE_PX), "the slide's own tiles": (1, STORED_PX)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--px", type=int, default=20000, help="edge of the slide that is made")
    parser.add_argument("--slide", type=Path, help=f"an own slide of {MPP} microns, stored in tiles of {STORED_PX} px")
    parser.add_argument("--region", type=Path, help="a slide whose pixels are repeated instead of noise")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        slide = given.slide or make_slide(Path(folder) / "slide.svs", given.px, given.region)
        print("| grid | tiles | loop, s | mgi, s | times | bound, s | share of the bound |")
        print("|---|---|---|---|---|---|---|")
        for name, (scale, tile_px) in GRIDS.items():
            table = Path(folder) / "tiles.parquet"
            options = TileOptions(mpp=MPP * scale, tile_px=tile_px, default_mpp=MPP)

            ours = partial(tile_slides, [slide], ["case"], table, options)
            ours()
            places = pq.read_table(table, columns=["x", "y", "size"]).to_pandas()
            runs = (partial(loop, slide, places, tile_px), ours, partial(bound, slide, places, tile_px))
            seconds = [measure(run) for run in runs]
            print(
                f"| {name} | {len(places)} | {seconds[0]:.2f} | {seconds[1]:.2f} | {seconds[0] / seconds[1]:.1f} "
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


def make_slide(path: Path, px: int, region: Path | None) -> Path:
    """Write a pyramidal JPEG SVS of a repeated region, or of grainy tissue, one eighth from every side, on glass."""
    if region is None:
        grain = pyvips.Image.gaussnoise(px, px, mean=0, sigma=12).cast("char")
        inside = pyvips.Image.black(px, px).draw_rect(255, px // 8, px // 8, px * 3 // 4, px * 3 // 4, fill=True)
        colours = [inside.ifthenelse(tissue, 242) + grain for tissue in (200, 110, 175)]
        image = colours[0].bandjoin(colours[1:]).cast("uchar").copy(interpretation="srgb")
    else:
        with openslide.OpenSlide(region) as slide:
            pixels = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
        times = (-(-px // length) for length in pixels.shape[1::-1])
        image = pyvips.Image.new_from_array(pixels).replicate(*times).crop(0, 0, px, px).copy()
    image.set_type(pyvips.GValue.gstr_type, "image-description", f"Aperio Image Library v11|AppMag = 20|MPP = {MPP}")
    edges = {"tile_width": STORED_PX, "tile_height": STORED_PX}
    image.tiffsave(str(path), tile=True, pyramid=True, compression="jpeg", Q=85, **edges)
    return path


def loop(path: Path, places: pd.DataFrame, tile_px: int) -> None:
    """Read, scale and encode each tile as a script of twenty lines does."""
    with openslide.OpenSlide(path) as slide:
        for x, y, size in places.itertuples(index=False):
            level = slide.get_best_level_for_downsample(size / tile_px)
            edge = round(size / slide.level_downsamples[level])
            tile = slide.read_region((x, y), level, (edge, edge)).convert("RGB")
            if edge != tile_px:
                tile = tile.resize((tile_px, tile_px), Image.Resampling.LANCZOS)
            encode_jpeg(np.asarray(tile))


def bound(path: Path, places: pd.DataFrame, tile_px: int) -> None:
    """Decode each stored tile of the finest sufficient level that is needed once, and encode every tile."""
    with open_slide(path) as slide, ThreadPoolExecutor(THREADS) as threads:
        level = slide.get_best_level_for_downsample(places["size"].iloc[0] / tile_px)
        native, downsample = slide.native[level], slide.level_downsamples[level]
        width, height = slide.level_dimensions[level]

        def work(place: tuple[int, int, float]) -> None:
            x, y, size = place
            edge = round(size / downsample)
            x, y = min(int(x / downsample), width - edge), min(int(y / downsample), height - edge)
            encode_jpeg(native.read(x, y, edge, edge)[:tile_px, :tile_px])

        list(threads.map(work, places.itertuples(index=False)))


if __name__ == "__main__":
    main()
