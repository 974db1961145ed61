"""Tissue of simulated slides under pen and blur: what is found, what is out of focus, and how much tumour is lost."""

import json

import numpy as np
import openslide
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy import ndimage

from mgi.config import TileOptions
from mgi.prepare import focus
from mgi.prepare.focus import MIN_CONTRAST, MIN_SHARPNESS, estimate_focus, find_blurred, measure_focus
from mgi.prepare.slides import tile_slides
from mgi.prepare.tiling import make_grid
from mgi.prepare.tissue import PEN, TISSUE, classify_pixels, tissue_mask
from mgi.simulate import tissue as simulated
from tests.prepare.conftest import write_slide

PX, MPP, BLUR_UM = 1024, 0.5, 2.5
# A slide with a stroke of blue ink.
SEED = 13


@pytest.fixture(scope="module")
def drawn():
    """A simulated slide with ink: pixels, tissue and tumour, on the map of 1/4 of its resolution."""
    tissue = simulated._tissue_outline(np.random.default_rng(SEED), PX) > 0
    pixels, regions = simulated.draw_slide(np.random.default_rng(SEED), np.zeros(6), PX)
    return pixels, tissue, regions == simulated.TEXTURE_A


def blur(pixels):
    """Blur the left half as a defocused lens would, with the ink on it."""
    smooth = ndimage.gaussian_filter(pixels, (BLUR_UM / MPP, BLUR_UM / MPP, 0))
    return np.concatenate([smooth[:, : PX // 2], pixels[:, PX // 2 :]], axis=1)


def tile(path, **given):
    """Tile a slide; return its tiles and what was dropped."""
    options = TileOptions(**{"mpp": 1.0, "tile_px": 64, **given})
    output, status = path.with_suffix(".parquet"), path.with_suffix(".status.parquet")
    tile_slides([path], ["case"], output, options, status)
    (record,) = pq.read_table(status).to_pylist()
    tiles = pq.read_table(output, columns=["x", "y", "size"]).to_pandas()
    assert record["n_images"] == len(tiles)
    return tiles, json.loads(record["dropped"])


def test_tissue_is_found_under_pen_and_blur(drawn):
    pixels, tissue, _ = drawn
    edge = PX // 16
    truth = np.asarray(Image.fromarray((255 * tissue).astype(np.uint8)).resize((edge, edge))) >= 128
    for seen in (pixels, blur(pixels), ndimage.gaussian_filter(pixels, (10, 10, 0))):
        codes = classify_pixels(np.asarray(Image.fromarray(seen).resize((edge, edge), Image.Resampling.BOX)), 8.0)
        found = codes == TISSUE
        assert (found & truth).sum() / (found | truth).sum() >= 0.965 and (codes == PEN).sum() > 200


@pytest.mark.parametrize(("mpp", "tile_px", "missed"), [(1.0, 64, 0.0), (0.5, 48, 0.12)])
def test_blurred_tiles_are_left_out_and_counted(drawn, tmp_path, mpp, tile_px, missed):
    """Of tiles wholly within the blurred half nearly all, of those in the other none."""
    pixels = drawn[0]
    sharp, nothing = tile(write_slide(tmp_path / "a.svs", pixels, MPP), mpp=mpp, tile_px=tile_px)
    assert "blur" not in nothing
    kept, dropped = tile(write_slide(tmp_path / "b.svs", blur(pixels), MPP), mpp=mpp, tile_px=tile_px)
    left = (sharp.x + sharp["size"] <= PX // 2 - 32).sum()
    assert (kept.x >= PX // 2).sum() == (sharp.x >= PX // 2).sum()
    assert (kept.x + kept["size"] <= PX // 2 - 32).sum() <= missed * left
    everything, without = tile(tmp_path / "b.svs", mpp=mpp, tile_px=tile_px, min_focus=0)
    assert len(everything) == len(kept) + dropped["blur"] and "blur" not in without


@pytest.mark.parametrize(
    ("name", "mpp", "given"),
    [
        ("cmu-1-small-region.svs", 1.0, {"tile_px": 64}),
        ("tcga-cr-7395-01a-01-ts1.svs", 0.5, {"default_mpp": 0.25, "tile_px": 64}),
    ],
)
def test_no_tile_of_a_real_slide_in_focus_is_left_out(data_dir, tmp_path, name, mpp, given):
    (tmp_path / name).symlink_to(data_dir / "slides" / name)
    tiles, dropped = tile(tmp_path / name, mpp=mpp, **given)
    assert len(tiles) > 20 and "blur" not in dropped


def test_annotated_tumour_is_not_lost_with_the_edge_of_the_tissue(drawn):
    """Of the tumour at most 2% lies in tiles with too little tissue, by default."""
    pixels, _, tumour = drawn
    edge = PX // 16
    thumbnail = np.asarray(Image.fromarray(pixels).resize((edge, edge), Image.Resampling.BOX))
    grid = make_grid((PX, PX), tissue_mask(thumbnail, 8.0), 128)
    in_tile = tumour.reshape(PX // 128, 32, PX // 128, 32).sum(axis=(1, 3))
    lost = 1 - in_tile[grid.keep(TileOptions().min_tissue)].sum() / tumour.sum()
    assert lost <= 0.02 < 1 - in_tile[grid.keep(0.6)].sum() / tumour.sum()


def test_focus_is_the_variance_of_the_laplacian():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    expected = ndimage.laplace(pixels[..., 1].astype(float))[1:-1:2, 1:-1:2].var()
    assert measure_focus(pixels) == pytest.approx(expected, rel=1e-5)
    assert np.isnan(measure_focus(np.full((20, 30, 3), 200, np.uint8)))
    ramp = np.broadcast_to(np.linspace(100, 100 + 3 * MIN_CONTRAST, 64, dtype=np.uint8)[:, None], (64, 64))
    assert np.isnan(measure_focus(np.stack([ramp] * 3, axis=-1)))


def test_copied_tiles_are_measured_where_their_bytes_are_few():
    sizes = np.array([1000] * 300 + [400] * 10)
    true = np.where(sizes == 1000, 500.0, 7.0)
    asked = []
    found = estimate_focus(sizes, lambda number: asked.append(number) or true[number])
    assert np.array_equal(found, true) and len(asked) < 100
    assert np.isnan(estimate_focus(sizes, lambda number: np.nan)).all()


@pytest.mark.parametrize(("tile_px", "blurred"), [(256, 12), (224, 8)])
def test_copied_tiles_are_judged_as_others_are(data_dir, tmp_path, monkeypatch, tile_px, blurred):
    """A real region beside the same out of focus, in tiles that are the slide's own and in others."""
    with openslide.OpenSlide(data_dir / "slides" / "cmu-1-small-region.svs") as slide:
        sharp = np.asarray(slide.read_region((800, 1700), 0, (768, 1024)).convert("RGB"))
    both = np.concatenate([sharp, ndimage.gaussian_filter(sharp, (5, 5, 0))], axis=1)
    monkeypatch.setattr(focus, "SAMPLE", 2)
    path = write_slide(tmp_path / "a.svs", both, MPP)
    tiles, dropped = tile(path, mpp=MPP, tile_px=tile_px)
    assert tiles.x.max() < 768 and dropped["blur"] == blurred


def test_sharpness_is_relative_to_tissue_and_to_the_slide():
    values, tissue = np.full((3, 4), 400.0), np.ones((3, 4))
    values[0, 0], values[1, 1], values[2, 3] = 15, 25, np.nan
    values[2, 0], tissue[2, 0] = 50, 0.1
    blurred = find_blurred(values, tissue, 0.05, 64.0)
    assert np.argwhere(blurred).tolist() == [[0, 0]]
    assert not find_blurred(values, tissue, 0, 64.0).any()
    assert not find_blurred(values / 400 * (MIN_SHARPNESS - 1), tissue, 0.05, 64.0).any(), "no detail to compare with"
    assert not find_blurred(np.full((3, 4), np.nan), tissue, 0.05, 64.0).any()


def test_small_tiles_are_judged_with_their_neighbours():
    values, tissue = np.full((5, 5), 400.0), np.ones((5, 5))
    values[0, 0] = 1
    values[3:, 3:] = 1
    assert find_blurred(values, tissue, 0.05, 64.0).sum() == 5
    assert np.argwhere(find_blurred(values, tissue, 0.05, 32.0)).tolist() == [[4, 4]]
