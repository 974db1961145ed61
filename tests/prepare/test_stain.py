"""Stain normalisation: planted stains are found, and slides of other stains become alike."""

import numpy as np
import pandas as pd
import pytest

from mgi.codecs import decode_image
from mgi.config import TileOptions
from mgi.errors import SlideError
from mgi.prepare.slides import tile_slides
from mgi.prepare.stain import GLASS, REFERENCE, REFERENCE_MOST, Stain
from mgi.simulate.cohort import write_svs

STAINS = {
    "Ruifrok": [[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]],
    "other": [[0.55, 0.75, 0.37], [0.20, 0.90, 0.38]],
}


def tissue(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Return amounts of two stains, [*shape, 2]: nuclei on stroma, with few pixels of one stain alone."""
    random = np.random.default_rng(seed)
    nucleus = random.random(shape) < 0.3
    haematoxylin = np.where(nucleus, random.gamma(6, 0.2, shape), random.gamma(2, 0.03, shape))
    eosin = np.where(nucleus, random.gamma(2, 0.06, shape), random.gamma(6, 0.12, shape))
    return np.stack([haematoxylin, eosin], axis=-1)


def stain(amounts: np.ndarray, directions: list[list[float]]) -> np.ndarray:
    unit = np.array(directions) / np.linalg.norm(directions, axis=1, keepdims=True)
    return np.rint(GLASS * np.exp(-amounts @ unit) - 1).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("directions", STAINS.values(), ids=STAINS)
def test_planted_stains_are_found(directions):
    found = Stain.estimate(stain(tissue((40_000,)), directions))
    unit = np.array(directions) / np.linalg.norm(directions, axis=1, keepdims=True)
    degrees = np.rad2deg(np.arccos((found.directions * unit).sum(axis=1)))
    assert degrees.max() < 2.5


def test_tissue_of_any_stain_and_strength_is_normalised_alike():
    amounts = tissue((40_000,))
    alike = [
        Stain.estimate(pixels).normalise(pixels).astype(float)
        for pixels in (stain(amounts, STAINS["Ruifrok"]), stain(amounts * [0.7, 1.2], STAINS["other"]))
    ]
    before = stain(amounts, STAINS["Ruifrok"]).astype(float) - stain(amounts * [0.7, 1.2], STAINS["other"])
    assert np.abs(alike[0] - alike[1]).mean() < 5 < 20 < np.abs(before).mean()


def test_reference_stains_are_left_as_they_are():
    pixels = stain(tissue((40_000,)) * 0.75, REFERENCE.tolist())
    found = Stain.estimate(pixels)
    assert np.abs(found.directions - REFERENCE).max() < 0.01
    same = Stain(REFERENCE, REFERENCE_MOST).normalise(pixels)
    assert np.abs(same.astype(int) - pixels).max() <= 2


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.full((5000, 3), 235, np.uint8), "no stain: 0 of 5000 pixels are dark enough"),
        (np.full((5000, 3), (120, 60, 140), np.uint8), "no stain: its colours are 0.0 degrees apart"),
    ],
)
def test_slide_without_two_stains_is_refused(pixels, reason):
    with pytest.raises(SlideError, match=reason):
        Stain.estimate(pixels)


def test_tiles_are_normalised_by_their_slide(tmp_path):
    # Blocks, since JPEG keeps no colour of single pixels.
    amounts = np.kron(tissue((64, 64)), np.ones((8, 8, 1)))
    paths = [tmp_path / f"{name}.svs" for name in STAINS]
    for path, directions in zip(paths, STAINS.values(), strict=True):
        write_svs(stain(amounts, directions), path)
    means = {}
    for chosen in (None, "macenko"):
        # The stored tiles, which are copied as they are where nothing is to change.
        options = TileOptions(mpp=0.5, tile_px=256, stain=chosen, min_focus=0)
        tile_slides(paths, ["A", "B"], tmp_path / "tiles.parquet", options)
        table = pd.read_parquet(tmp_path / "tiles.parquet")
        pixels = table.image.map(lambda image: decode_image(image).mean(axis=(0, 1)))
        means[chosen] = [np.mean([*pixels[table.case_id == case]], axis=0) for case in ("A", "B")]
    assert np.abs(means["macenko"][0] - means["macenko"][1]).max() < 6 < np.abs(means[None][0] - means[None][1]).max()
