"""Metrics of masks against plain-Python oracles, worked cases and other libraries' conventions."""

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from mgi.errors import ImageTableError
from mgi.evaluate import masks
from mgi.evaluate.masks import confusion, count_lesions, dice, hd95, iou, stitch
from tests.evaluate.predictions import random_mask, square_mask


def plain_overlap(prediction: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    both = ours = theirs = 0
    for p, r in zip(prediction.ravel().tolist(), reference.ravel().tolist(), strict=True):
        both, ours, theirs = both + (p and r), ours + p, theirs + r
    return 2 * both / (ours + theirs), both / (ours + theirs - both)


def brute_force_hd95(prediction: np.ndarray, reference: np.ndarray) -> float:
    def surface(mask: np.ndarray) -> np.ndarray:
        inside = {(int(i), int(j)) for i, j in np.argwhere(mask)}
        edge = [
            (i, j) for i, j in inside if {(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)} - inside
        ]  # fmt: skip
        return np.array(edge, dtype=float)

    between = np.linalg.norm(surface(prediction)[:, None] - surface(reference)[None], axis=-1)
    return float(np.percentile(np.concatenate([between.min(axis=1), between.min(axis=0)]), 95))


@pytest.mark.parametrize("seed", range(5))
def test_dice_and_iou_equal_a_loop_over_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    prediction, reference = random_mask(rng, share=0.1 + 0.15 * seed), random_mask(rng)
    counts = confusion(prediction, reference)
    assert (dice(*counts), iou(*counts)) == pytest.approx(plain_overlap(prediction, reference), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_hd95_equals_brute_force_over_surface_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    prediction, reference = random_mask(rng, share=0.02 + 0.2 * seed), random_mask(rng, share=0.9)
    assert hd95(prediction, reference) == pytest.approx(brute_force_hd95(prediction, reference), abs=1e-9)


def test_hd95_equals_distance_maps_on_shifted_discs() -> None:
    yy, xx = np.mgrid[:64, :64]
    prediction, reference = (xx - 30) ** 2 + (yy - 30) ** 2 < 200, (xx - 36) ** 2 + (yy - 28) ** 2 < 150
    edges = [masks._surface(mask) for mask in (prediction, reference)]
    distances = []
    for here, there in (edges, edges[::-1]):
        outside = np.ones((64, 64), bool)
        outside[tuple(there.T)] = False
        distances.append(distance_transform_edt(outside)[tuple(here.T)])
    assert hd95(prediction, reference) == pytest.approx(np.percentile(np.concatenate(distances), 95))


def test_two_empty_masks_agree_and_one_empty_mask_does_not() -> None:
    assert (dice(0, 0, 0), iou(0, 0, 0)) == (1, 1)
    assert (dice(0, 5, 0), iou(0, 0, 5)) == (0, 0)


def test_tiles_stitch_to_the_plane_they_were_cut_from() -> None:
    plane = np.random.default_rng(0).random((48, 64)) < 0.4
    corners = [(j, i) for i in range(0, 48, 16) for j in range(0, 64, 16)]
    tiles = np.stack([plane[i : i + 16, j : j + 16] for j, i in corners])
    x, y = (np.array(values) * 4 + 1000 for values in zip(*corners, strict=True))
    assert np.array_equal(stitch(tiles, x, y, size=64), plane)


@pytest.mark.parametrize("step", [3.4, 511.6, 512.4])
def test_rounded_tile_positions_leave_no_seam_however_wide_the_slide(step: float) -> None:
    x = np.rint(np.arange(7, 2000) * step).astype(int)
    plane = stitch(np.ones((len(x), 2, 2), bool), x, np.zeros(len(x), int), size=step)
    assert plane.shape == (2, 2 * len(x)) and plane.all()


def test_missing_tiles_are_background() -> None:
    plane = stitch(np.ones((2, 4, 4), bool), np.array([0, 80]), np.array([0, 40]), size=40)
    assert plane.shape == (8, 12)
    assert plane.sum() == 32 and not plane[:, 4:8].any()


def test_overlapping_tiles_are_refused() -> None:
    with pytest.raises(ImageTableError, match="overlaps"):
        stitch(np.ones((2, 4, 4), bool), np.array([0, 3]), np.array([0, 0]), size=40)


def test_hd95_without_reference_is_undefined_whatever_is_predicted() -> None:
    some, none = np.eye(8, dtype=bool), np.zeros((8, 8), bool)
    assert np.isnan([hd95(some, none), hd95(none, none)]).all()


def test_hd95_of_a_missed_tumour_is_the_diagonal_of_the_image() -> None:
    reference = np.zeros((30, 40), bool)
    reference[3, 5] = True
    assert hd95(np.zeros_like(reference), reference) == 50
    # No prediction is worse than none.
    far = np.zeros_like(reference)
    far[29, 39] = True
    assert hd95(far, reference) < 50


def test_worked_case_has_the_values_of_other_libraries() -> None:
    """A 4 x 4 square and the same moved by two pixels: every value can be checked on paper."""
    reference, prediction = square_mask(2, 2, 4), square_mask(2, 4, 4)
    counts = confusion(prediction, reference)
    assert counts == (8, 8, 8)
    assert dice(*counts) == 0.5 and iou(*counts) == pytest.approx(1 / 3)
    # Of the 12 surface pixels of each, two lie on the other's surface, ...
    assert hd95(prediction, reference) == 2


@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_monai_where_definitions_coincide(seed: int) -> None:
    monai = pytest.importorskip("monai.metrics", reason="compares with MONAI where it is installed")
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    reference = square_mask(3, 4, 9, 24) | random_mask(rng, (24, 24), 0.02)
    prediction = square_mask(5, 6, 8, 24) | random_mask(rng, (24, 24), 0.02)
    ours, theirs = (torch.from_numpy(mask)[None, None].float() for mask in (prediction, reference))
    counts = confusion(prediction, reference)
    assert float(monai.DiceMetric()(ours, theirs)) == pytest.approx(float(dice(*counts)), abs=1e-6)
    assert float(monai.MeanIoU()(ours, theirs)) == pytest.approx(float(iou(*counts)), abs=1e-6)
    # MONAI takes the larger of the two directions' percentiles; without a percentile there is no difference.
    edges = [masks._surface(mask) for mask in (prediction, reference)]
    directions = [masks.KDTree(edges[1 - n]).query(edges[n])[0] for n in (0, 1)]
    largest = monai.HausdorffDistanceMetric(include_background=True)(ours, theirs)
    assert float(largest) == pytest.approx(max(part.max() for part in directions), abs=1e-6)
    by_direction = monai.HausdorffDistanceMetric(include_background=True, percentile=95)(ours, theirs)
    assert float(by_direction) == pytest.approx(max(np.percentile(part, 95) for part in directions), abs=1e-5)


def test_fixed_case_has_the_values_that_monai_and_torchmetrics_give() -> None:
    """MONAI 1.6.1 and torchmetrics 1.9.0 print these for the two masks, over the tumour class."""
    i, j = np.mgrid[:24, :24]
    prediction, reference = (i * j) % 7 < 3, (i + 2 * j) % 5 < 2
    counts = confusion(prediction, reference)
    assert (float(dice(*counts)), float(iou(*counts))) == pytest.approx((0.4695009, 0.3067633), abs=1e-6)


def test_lesions_are_parts_that_touch_by_side_or_corner() -> None:
    reference = square_mask(0, 0, 2) | square_mask(2, 2, 2) | square_mask(6, 6, 3)
    none = np.zeros_like(reference)
    assert count_lesions(none, reference) == (2, 0, 0)
    assert count_lesions(reference, none) == (0, 0, 2)
    assert count_lesions(square_mask(3, 3, 2), reference) == (2, 1, 0)
    # One part that covers both lesions finds both; one beside them is false.
    assert count_lesions(square_mask(0, 0, 7), reference) == (2, 2, 0)
    assert count_lesions(square_mask(0, 5, 2), reference) == (2, 0, 1)
    # Two predicted parts of one lesion are both right.
    assert count_lesions(square_mask(6, 6, 1) | square_mask(8, 8, 1), reference) == (2, 1, 0)


def test_lesions_of_a_volume_join_across_slices() -> None:
    volume = np.stack([square_mask(0, 0, 2), square_mask(2, 2, 2), square_mask(8, 8, 1)])
    assert count_lesions(volume, volume) == (2, 2, 0)
    middle = volume * np.array([0, 1, 0], bool)[:, None, None]
    assert count_lesions(middle, volume) == (2, 1, 0)
    assert count_lesions(middle | np.roll(volume, 1, axis=0), volume) == (2, 1, 1)
