"""Regions of tumour: small ones removed, outlined validly and close to the prediction, and their pictures."""

import numpy as np
import pandas as pd
import pytest
import shapely
from PIL import Image
from scipy import ndimage

from mgi.evaluate import overlay, regions
from mgi.evaluate.regions import make_geojson, remove_small


def smooth_region(seed: int, px: int = 400) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((px, px)), 14)
    return remove_small(noise > 0.01, 200)[0]


def tiles_of(field: np.ndarray, px: int, step: int, corner: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Cut a field of probabilities into tiles whose left border is off, as a model's is for want of context."""
    places = [(x, y) for y in range(0, field.shape[0] - px + 1, step) for x in range(0, field.shape[1] - px + 1, step)]
    off = np.where(np.arange(px) < 3, 0.3, 0.0)
    tiles = np.stack([np.clip(field[y : y + px, x : x + px] + off, 0, 1) for x, y in places])
    frame = pd.DataFrame({"x": [corner + 2 * x for x, _ in places], "y": [2 * y for _, y in places]})
    return frame.assign(size=2.0 * px), tiles.astype(np.float32)


def test_overlapping_tiles_leave_no_seams() -> None:
    field = np.clip(0.5 + ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((256, 256)), 12) * 8, 0, 1)
    wrong = {}
    for overlap in (0.0, 0.5):
        frame, tiles = tiles_of(field, 32, round(32 * (1 - overlap)), corner=100)
        region, _, pixel = regions.assemble_plane(frame, iter([(np.arange(len(tiles)), tiles)]), 32, 0.5, overlap)
        assert region.shape == (256, 256) and pixel == 2.0
        wrong[overlap] = (region != (field >= 0.5))[:, 32:].mean()
    assert wrong[0.0] > 0.02 and wrong[0.5] < wrong[0.0] / 3


def test_blended_plane_averages_by_weight_and_leaves_gaps_empty() -> None:
    frame = pd.DataFrame({"x": [0, 4, 40], "y": [0, 0, 0], "size": 8.0})
    tiles = np.stack([np.full((8, 8), 0.9), np.full((8, 8), 0.3), np.full((8, 8), 0.9)]).astype(np.float32)
    region, probability, _ = regions.assemble_plane(
        frame, iter([(np.array([2, 0]), tiles[[2, 0]]), (np.array([1]), tiles[[1]])]), 8, 0.6, 0.5
    )
    # Between 4 and 8 the two weigh the same in the middle, at 6; left of it the first weighs more.
    assert region[0].tolist() == [True] * 6 + [False] * 34 + [True] * 8
    assert probability[0, [0, 20]].tolist() == pytest.approx([0.9, 0]) and 0.3 < probability[0, 6] < 0.9
    averaged, _, pixel = regions.assemble_plane(frame.iloc[:2], iter([(np.array([0, 1]), tiles[:2])]), 8, 0.6, 0.5)
    assert pixel == 1.0 and averaged.shape == (8, 12)


def test_large_plane_is_averaged_to_whole_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "MAX_PLANE_PX", 30)
    frame = pd.DataFrame({"x": [0, 16, 32, 48], "y": [0, 0, 0, 0], "size": 32.0})
    tiles = np.ones((4, 32, 32), np.float32)
    region, _, pixel = regions.assemble_plane(frame, iter([(np.arange(4), tiles)]), 32, 0.5, 0.5)
    assert region.all() and region.shape == (8, 20) and pixel == 4.0


@pytest.mark.parametrize("seed", range(4))
def test_outlines_are_valid_and_cover_the_prediction(seed: int) -> None:
    region = smooth_region(seed)
    features = make_geojson(region, (1000, 500), 4.0, "slide")["features"]
    parts = [shapely.geometry.shape(feature["geometry"]) for feature in features]
    assert parts and all(part.is_valid and part.geom_type == "Polygon" for part in parts)
    together = shapely.union_all(parts)
    y, x = np.mgrid[:400, :400]
    drawn = shapely.contains_xy(together, 1000 + 4.0 * (x + 0.5), 500 + 4.0 * (y + 0.5))
    assert (drawn & region).sum() / (drawn | region).sum() >= 0.99
    exact = sum(len(part.exterior.coords) for part in regions.polygons(region))
    assert sum(len(part.exterior.coords) for part in parts) < 0.6 * exact


def test_region_full_of_holes_keeps_them() -> None:
    noise = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((200, 200)), 2)
    region = noise > -0.3 * noise.std()
    parts = [
        shapely.geometry.shape(feature["geometry"]) for feature in make_geojson(region, (0, 0), 1.0, "s")["features"]
    ]
    assert all(part.is_valid for part in parts) and sum(len(part.interiors) for part in parts) > 50
    y, x = np.mgrid[:200, :200]
    drawn = shapely.contains_xy(shapely.union_all(parts), x + 0.5, y + 0.5)
    # Its holes are few pixels wide, and an edge moves by up to a pixel.
    assert (drawn & region).sum() / (drawn | region).sum() >= 0.96


def test_outlines_stay_within_the_tolerance() -> None:
    region = smooth_region(5)
    simple = shapely.union_all([part for whole in regions.polygons(region) for part in regions._simplify(whole)])
    exact = shapely.union_all(regions.polygons(region))
    assert shapely.hausdorff_distance(simple.boundary, exact.boundary, densify=0.1) <= regions.TOLERANCE_PX + 1e-9


def test_region_thinner_than_the_tolerance_keeps_its_outline() -> None:
    region = np.zeros((5, 5), bool)
    region[2, 2] = True
    [feature] = make_geojson(region, (0, 0), 1.0, "slide")["features"]
    assert shapely.geometry.shape(feature["geometry"]).area == pytest.approx(1, abs=0.6)


def test_small_parts_are_removed_and_counted() -> None:
    region = np.zeros((20, 20), bool)
    region[0:4, 0:4] = region[10:12, 10:12] = region[19, 19] = True
    kept, removed = remove_small(region, 4)
    assert removed == 1 and kept.sum() == 20
    kept, removed = remove_small(region, 5)
    assert removed == 2 and kept.sum() == 16 and kept[:4, :4].all()
    assert remove_small(region, 0)[1] == 0 and np.array_equal(remove_small(region, 0)[0], region)
    assert remove_small(np.zeros((3, 3), bool), 9)[1] == 0


@pytest.mark.parametrize(
    ("most", "microns", "words"),
    [(999, 500, "500 \N{MICRO SIGN}m"), (1000, 1000, "1 mm"), (2400, 2000, "2 mm"), (9, 5, "5 \N{MICRO SIGN}m")],
)
def test_scale_bar_is_the_largest_round_length(most: float, microns: float, words: str) -> None:
    assert overlay.choose_scale(most) == (microns, words)


def test_legend_is_added_below_and_leaves_the_picture() -> None:
    picture = Image.new("RGB", (400, 300), (10, 200, 10))
    sheet = overlay.add_legend(picture, 2.0)
    assert sheet.size[0] == 400 and sheet.size[1] > 300
    assert np.array_equal(np.asarray(sheet)[:300], np.asarray(picture))
    bar = (np.asarray(sheet)[300:] == overlay.INK).all(axis=-1)
    # The longest dark run is the bar: 200 microns, 100 pixels.
    runs = max(len(run) for row in bar for run in "".join("#" if dark else " " for dark in row).split())
    assert runs == pytest.approx(100, abs=1)
    plain = np.asarray(overlay.add_legend(picture))[300:]
    assert (plain == overlay.TUMOUR).all(axis=-1).any() and not (plain[:, 200:] == overlay.INK).all(axis=-1).any()
