"""Tiles stored as JPEG against tiles read from their slides: bytes of the table, and milliseconds a tile.

    python benchmarks/store.py SLIDE... [--mpp 0.5] [--tile-px 256] [--default-mpp 0.25]

One thread reads up to 200 tiles of each table in random order, one at a time: the median of three runs with the slides
open, and the time to open a slide first.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mgi.config import TileOptions
from mgi.prepare import store
from mgi.prepare.slides import tile_slides
from mgi.train.data import Images, read_image_table

TILES, RUNS = 200, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slides", type=Path, nargs="+")
    parser.add_argument("--mpp", type=float, default=0.5)
    parser.add_argument("--tile-px", type=int, default=256)
    parser.add_argument("--default-mpp", type=float)
    given = parser.parse_args()
    print("| store | tiles | bytes a tile | ms a tile |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("images", "coordinates"):
            table = Path(folder) / f"{kind}.parquet"
            options = TileOptions(mpp=given.mpp, tile_px=given.tile_px, default_mpp=given.default_mpp, store=kind)
            tile_slides(given.slides, [path.stem for path in given.slides], table, options)
            images = read_image_table(table)
            rows = np.random.default_rng(0).permutation(len(images))[:TILES]
            read_each(images, rows)
            taken = statistics.median(measure(lambda i=images, r=rows: read_each(i, r)) for _ in range(RUNS))
            print(
                f"| {kind} | {len(images)} | {table.stat().st_size / len(images):.0f} | {1e3 * taken / len(rows):.2f} |"
            )
        slides = {tile.slide for tile in images.encoded}
        store._kept.clear()
        opening = statistics.median(measure(lambda one=slide: store._open(one)) for slide in slides)
        print(f"\nopening a slide: {1e3 * opening:.0f} ms")


def read_each(images: Images, rows: np.ndarray) -> None:
    """Read tiles one by one."""
    for row in rows:
        images.load(np.array([row]))


def measure(run: Callable[[], None]) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
