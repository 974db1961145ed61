"""What training reads: roles, profiles, the negative control's derangement, augmentation."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from skimage import color

from mgi.codecs import encode_png
from mgi.config.train import FinetuneOptions, Optimisation
from mgi.errors import CohortError, ImageTableError
from mgi.tables import image_table, write_table
from mgi.train.batches import Ahead, Augmentation, Warp, restain
from mgi.train.data import read_image_table, read_images, read_roles
from mgi.train.profiles import Profiles, read_profiles
from tests.tables import CASES, IMAGES, PX, UNPAIRED


def test_reads_images_of_given_cases(cohort):
    images = read_images(cohort.sources, set(CASES[:2]), labelled=True)
    assert sorted(images.frame.case_id.unique()) == CASES[:2]
    assert len(images) == 2 * IMAGES and images.image_px == PX
    assert images.positive.tolist() == [False, *[True] * (IMAGES - 1)] * 2
    masks = images.load_masks(np.arange(len(images)))
    assert (masks.any(axis=(1, 2)) == images.positive).all() and set(np.unique(masks)) == {0, 1}


def test_rejects_images_of_two_resolutions(write, tmp_path):
    data = write(tmp_path)
    path = data.folder / "images" / "all.parquet"
    table = pq.read_table(path)
    mpp = pa.array([0.5, *[0.37] * (len(table) - 1)], pa.float32())
    write_table(table.set_column(table.schema.get_field_index("mpp"), "mpp", mpp), path)
    with pytest.raises(ImageTableError, match=r"images of different mpp: 0\.37, 0\.5"):
        _ = read_images(data.sources, set(CASES)).mpp


def test_rejects_images_of_two_sizes_in_one_table(cohort):
    images = read_images(cohort.sources, set(CASES[:1]))
    images.encoded[2] = encode_png(np.zeros((48, 64, 3), np.uint8))
    with pytest.raises(ImageTableError, match=r"different sizes in one table: 32 x 32, 64 x 48 px; tile"):
        images.load(np.arange(4))


def test_rejects_cases_without_images(cohort):
    with pytest.raises(ImageTableError, match=r"no usable image for these cases in .*sources\.parquet"):
        read_images(cohort.sources, {"TCGA-ZZ-9999"})


def test_unpaired_case_has_zero_profile_marked_absent(cohort):
    profiles = read_profiles(cohort.expression)
    values, present = profiles.of([CASES[0], UNPAIRED])
    assert present.tolist() == [True, False]
    assert values[0].abs().sum() > 0 and values[1].abs().sum() == 0


def test_reads_profiles_of_given_cases(cohort):
    everyone = read_profiles(cohort.expression).of(CASES[1:3])[0]
    some = read_profiles(cohort.expression, {CASES[2], UNPAIRED})
    assert list(some.row) == [CASES[2]] and len(some.genes) == everyone.shape[1]
    values, present = some.of(CASES[1:3])
    assert present.tolist() == [False, True] and values[1].equal(everyone[1]) and not values[0].any()
    nobody, present = read_profiles(cohort.expression, {UNPAIRED}).of([UNPAIRED])
    assert nobody.shape == (1, everyone.shape[1]) and not present.any()


def test_shuffling_is_a_derangement_within_groups(cohort):
    profiles = read_profiles(cohort.expression)
    groups = [CASES[:4], CASES[4:6], CASES[6:]]
    deranged = profiles.shuffle(groups, seed=3)
    for group in groups:
        own = {case: profiles.row[case] for case in group if case in profiles.row}
        given = {case: deranged.row[case] for case in group if case in deranged.row}
        assert given.keys() == own.keys() and set(given.values()) == set(own.values())
        assert all(given[case] != own[case] for case in own)


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_profiles_are_of_ones_own_class_as_often_as_chance_has_it(seed):
    cases = [f"case-{index:02}" for index in range(24)]
    strata = {case: "ABB"[index % 3] for index, case in enumerate(cases)}
    profiles = Profiles(torch.arange(24.0)[:, None], {case: row for row, case in enumerate(cases)}, ["gene"])
    deranged = profiles.shuffle([cases], seed, strata)
    assert sorted(deranged.row.values()) == list(range(24))
    assert all(deranged.row[case] != profiles.row[case] for case in cases)
    given = Counter((strata[case], strata[cases[row]]) for case, row in deranged.row.items())
    # Of 8 and 16, independence is 2.67, 5.33, 5.33 and 10.67.
    assert given["A", "A"] in (2, 3) and given["B", "B"] in (10, 11)


def test_profiles_are_shuffled_within_a_site(caplog):
    cases = [f"case-{index}" for index in range(8)]
    sites = {case: "PPPQQQR"[index] for index, case in enumerate(cases[:7])}
    profiles = Profiles(torch.zeros(8, 1), {case: row for row, case in enumerate(cases)}, ["gene"])
    groups = profiles.group_by_site([cases[:5], cases[5:]], sites)
    assert groups == [cases[:3], cases[3:5]]
    assert "3 patients share their site with no other of their role" in caplog.text
    deranged = profiles.shuffle(groups, seed=0)
    assert deranged.row.keys() == set(cases[:5])
    assert all(sites[cases[row]] == sites[case] and cases[row] != case for case, row in deranged.row.items())
    with pytest.raises(CohortError, match="no two patients of one role and site have a profile"):
        profiles.group_by_site([cases[:1], cases[1:2], cases[6:]], sites)


def test_shuffling_drops_profile_of_lone_case(cohort):
    deranged = read_profiles(cohort.expression).shuffle([[CASES[0]], CASES[1:3]], seed=0)
    assert deranged.of([CASES[0]])[1].tolist() == [False]


def test_fold_all_trains_on_every_case_and_rejects_unknown_fold(cohort):
    assert read_roles(cohort.splits, "all") == {"train": CASES, "val": [], "test": []}
    with pytest.raises(CohortError, match=r"no fold '7' .*it has 0, and 'all'"):
        read_roles(cohort.splits, "7")


def test_draws_next_step_during_this_one():
    drawn, begun = [], threading.Event()

    def draw(step):
        drawn.append(step)
        if step == 4:
            begun.set()
        return 10 * step

    ahead = Ahead(draw, 20)
    assert ahead(3) == 30
    assert begun.wait(10), "step 4 is drawn before it is asked for"
    assert [ahead(step) for step in (4, 5, 9, 2)] == [40, 50, 90, 20]
    assert drawn[:4] == [3, 4, 5, 6]


def test_stops_drawing_after_last_step():
    drawn, before = [], set(threading.enumerate())
    ahead = Ahead(lambda step: drawn.append(step) or step, 3)
    assert [ahead(step) for step in range(3)] == [0, 1, 2]
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()
    assert drawn == [0, 1, 2]


def test_raises_what_drawing_raised():
    def draw(step):
        if step == 1:
            raise ImageTableError("damaged")

    ahead = Ahead(draw, 20)
    ahead(0)
    with pytest.raises(ImageTableError, match="damaged"):
        ahead(1)


def test_augmentation_moves_image_and_mask_alike():
    random = np.random.default_rng(0)
    masks = (random.random((40, 8, 8)) < 0.3).astype(np.uint8)
    images = np.repeat(masks[..., None] * 200, 3, axis=-1).astype(np.uint8)
    before = images.copy()
    augmentation = Augmentation.draw(40, Optimisation(augment="dihedral"), np.random.default_rng(1))
    moved, moved_masks = augmentation.apply(images), augmentation.move(masks)
    assert (moved[..., 0] == moved_masks * 200).all()
    assert (images == before).all()
    poses = [tuple(image[..., 0].ravel()) for image in moved]
    symmetries = [[np.rot90(m, k)[:, ::step] * 200 for k in range(4) for step in (1, -1)] for m in masks]
    pairs = zip(symmetries, poses, strict=True)
    chosen = {next(i for i, s in enumerate(group) if tuple(s.ravel()) == pose) for group, pose in pairs}
    assert len(chosen) == 8, "all eight symmetries occur"


def test_flip_is_left_to_right_only():
    images = np.tile(np.arange(8, dtype=np.uint8)[:, None, None], (20, 1, 8, 3))
    assert (Augmentation.draw(20, Optimisation(augment="flip"), np.random.default_rng(1)).apply(images) == images).all()


def test_intensities_change_by_channel_within_the_jitter_and_saturate():
    images = np.full((50, 4, 4, 3), 200, np.uint8)
    augmentation = Augmentation.draw(50, Optimisation(augment="none", intensity_jitter=0.5), np.random.default_rng(2))
    changed = augmentation.apply(images)
    expected = np.clip(200 * augmentation.gains, 0, 255).astype(np.uint8)
    assert (changed == expected[:, None, None]).all() and (images == 200).all()
    assert changed.max() == 255 and 100 <= changed.min() < 110
    assert 0.5 <= augmentation.gains.min() < 0.55 and 1.45 < augmentation.gains.max() <= 1.5
    assert not augmentation.turns.any() and not augmentation.flips.any()


def test_stains_are_those_of_scikit_image_and_change_within_the_jitter():
    image = color.hed2rgb(np.random.default_rng(0).uniform(0, 0.04, (8, 8, 3)))
    image = np.rint(255 * image).astype(np.uint8)
    factor, offset = np.array([1.2, 0.9, 1.0], np.float32), np.array([0.0, 0.02, 0.01], np.float32)
    # scikit-image measures densities in units of log(1e6).
    stains = color.rgb2hed(image) * factor + offset / np.log(1e6)
    expected = 255 * color.hed2rgb(stains)
    assert np.abs(restain(image, factor, offset) - expected).max() <= 1.5
    images = np.repeat(image[None], 50, axis=0)
    augmentation = Augmentation.draw(50, Optimisation(augment="none", stain_jitter=0.2), np.random.default_rng(1))
    assert np.abs(augmentation.factors - 1).max() <= 0.2 and 0.19 < np.abs(augmentation.offsets).max() <= 0.2
    assert (augmentation.apply(images) != images).any(axis=(1, 2, 3)).all() and (images == image).all()
    assert (restain(image, np.ones(3, np.float32), np.zeros(3, np.float32)) == image).all()


def test_without_stains_the_sequence_of_random_numbers_is_as_if_there_were_none():
    random, expected = np.random.default_rng(0), np.random.default_rng(0)
    Augmentation.draw(5, Optimisation(intensity_jitter=0.1), random)
    expected.integers(0, 4, 5), expected.random(5), expected.uniform(-1, 1, (5, 3))
    assert random.random() == expected.random()


def test_stain_normalisation_of_a_table_is_known_to_its_images(tmp_path):
    row = {"case_id": "A", "source_id": "A", "x": 0, "y": 0, "z": 0, "size": 8, "mpp": 0.5, "tissue_fraction": 1.0}
    row |= {"image": encode_png(np.zeros((8, 8, 3), np.uint8)), "mask": None}
    for stain in (None, "macenko", "vahadane"):
        with image_table(tmp_path / f"{stain}.parquet", stain) as add:
            add(row)
    assert read_image_table(tmp_path / "None.parquet").stain is None
    assert read_image_table(tmp_path / "macenko.parquet").stain == "macenko"
    with pytest.raises(
        ImageTableError, match="states the unknown stain normalisation 'vahadane'; tile its slides again"
    ):
        read_image_table(tmp_path / "vahadane.parquet")


def test_a_channel_shows_another_in_every_slice_of_a_stack():
    stack = np.broadcast_to(np.arange(9, dtype=np.uint8), (400, 2, 2, 9))
    options = Optimisation(augment="none", channel_swap=0.6)
    changed = Augmentation.draw(400, options, np.random.default_rng(0)).apply(stack)
    moved = [tuple(image[0, 0, :3].tolist()) for image in changed if (image != stack[0]).any()]
    # Of those drawn, a third show the channel itself.
    assert 0.4 - 0.08 < len(moved) / 400 < 0.4 + 0.08
    assert set(moved) == {(1, 1, 2), (2, 1, 2), (0, 0, 2), (0, 2, 2), (0, 1, 0), (0, 1, 1)}
    assert (changed[..., 3:6] == changed[..., :3] + 3).all() and (changed[..., 6:] == changed[..., :3] + 6).all()


def test_share_of_an_augmentation_does_to_its_images_what_the_whole_does():
    images = np.random.default_rng(0).integers(0, 255, (7, 6, 6, 3)).astype(np.uint8)
    augmentation = Augmentation.draw(
        7, Optimisation(augment="dihedral", intensity_jitter=0.3, channel_swap=0.5), np.random.default_rng(3)
    )
    assert (augmentation.share(slice(2, 5)).apply(images[2:5]) == augmentation.apply(images)[2:5]).all()


def test_images_are_decoded_alike_by_several_threads(cohort):
    images = read_images(cohort.sources, set(CASES[:3]), labelled=True)
    rows = np.arange(len(images))[::-1]
    with ThreadPoolExecutor(3) as pool:
        assert (images.load(rows, pool) == images.load(rows)).all()
        assert (images.load_masks(rows, pool) == images.load_masks(rows)).all()
        assert (images.load_ignore(rows, pool) == images.load_ignore(rows)).all()


def test_stack_has_the_neighbours_of_the_same_series(cohort):
    images = read_images(cohort.sources, set(CASES[:2]))
    shuffled = np.random.default_rng(0).permutation(len(images))
    images.frame = images.frame.iloc[shuffled].reset_index(drop=True)
    images.encoded = [images.encoded[row] for row in shuffled]
    by_place = {
        key: images.load(np.array([row]))[0]
        for row, key in enumerate(zip(images.frame.source_id, images.frame.z, strict=True))
    }
    stacks = images.load_stacks(np.arange(len(images)), 2)
    assert stacks.shape == (len(images), PX, PX, 15)
    for stack, (source, z) in zip(stacks, by_place, strict=True):
        for plane, offset in enumerate([0, -1, 1, -2, 2]):
            expected = by_place.get((source, z + offset), by_place[source, z])
            assert (stack[..., 3 * plane : 3 * plane + 3] == expected).all()


def test_gain_is_the_same_for_every_slice_of_a_stack():
    stack = np.tile(np.full((1, 4, 4, 3), 100, np.uint8), 3)
    augmented = Augmentation.draw(
        1, Optimisation(augment="none", intensity_jitter=0.5), np.random.default_rng(0)
    ).apply(stack)
    assert (augmented[..., :3] == augmented[..., 3:6]).all() and (augmented[..., :3] == augmented[..., 6:]).all()
    assert len(np.unique(augmented)) == 3


def make_warp(angle: float = 0, zoom: float = 1, gammas: tuple[float, ...] | list[float] = (1, 1, 1)) -> Warp:
    """Return the warp of one image, without noise."""
    return Warp(np.array([angle]), np.array([zoom]), np.array([gammas], float), np.zeros(1), np.zeros(1, np.int64))


def test_warp_turns_and_enlarges_image_and_mask_alike():
    images, masks = torch.zeros(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.uint8)
    images[:, :, 28:36, 44:52], masks[:, 28:36, 44:52] = 1, 1  # 16 pixels to the right of the centre
    half = make_warp(angle=np.pi / 2, zoom=0.5)
    warped, moved = half.apply(images, masks)
    inside = moved[0].nonzero().float().mean(dim=0) + 0.5 - 32
    assert moved.sum() == 16 and moved.dtype == torch.uint8  # half as wide and high
    assert sorted(inside.abs().tolist()) == pytest.approx([0, 8], abs=0.6)  # a quarter turn, and half as far
    assert ((warped[:, 0] > 0.5) == moved.bool()).float().mean() > 0.995


def test_warp_makes_no_tumour_between_ignored_pixels_and_background():
    masks = torch.zeros(1, 64, 64, dtype=torch.uint8)
    masks[:, 20:40, 20:40] = 2
    _, moved = make_warp(angle=0.3, zoom=1.2).apply(torch.zeros(1, 3, 64, 64), masks)
    assert moved.unique().tolist() == [0, 2]


def test_warp_of_nothing_changes_nothing():
    images, masks = torch.rand(3, 9, 16, 16), torch.ones(3, 16, 16, dtype=torch.uint8)
    same = Warp.draw(3, FinetuneOptions(), np.random.default_rng(0)).apply(images, masks)
    assert torch.equal(same[0], images) and torch.equal(same[1], masks)


def test_warps_stay_within_their_limits():
    options = FinetuneOptions(rotation=15, zoom=0.25, gamma=0.5, noise=0.1)
    warp = Warp.draw(4000, options, np.random.default_rng(0))
    assert np.abs(warp.angles).max() == pytest.approx(np.deg2rad(15), rel=0.01)
    assert [warp.zooms.min(), warp.zooms.max()] == pytest.approx([0.8, 1.25], rel=0.01)
    assert [warp.gammas.min(), warp.gammas.max()] == pytest.approx([1 / 1.5, 1.5], rel=0.01)
    assert [warp.deviations.min(), warp.deviations.max()] == pytest.approx([0, 0.1], abs=0.001)


def test_contrast_changes_by_channel_and_alike_in_every_slice():
    bright, _ = make_warp(gammas=[2, 1, 3]).apply(torch.full((1, 9, 4, 4), 0.5), torch.zeros(1, 4, 4))
    assert bright[0, :, 0, 0].tolist() == [0.25, 0.5, 0.125] * 3
    assert (bright.flatten(2).amax(2) == bright.flatten(2).amin(2)).all()


def test_noise_has_its_deviation_and_belongs_to_the_image_and_not_to_its_place_in_the_batch():
    options, images, masks = FinetuneOptions(noise=0.2), torch.full((4, 9, 64, 64), 0.5), torch.zeros(4, 64, 64)
    warp = Warp.draw(4, options, np.random.default_rng(0))
    noisy, same = warp.apply(images, masks)
    assert noisy.flatten(1).std(dim=1).tolist() == pytest.approx(warp.deviations.tolist(), rel=0.02)
    assert noisy.flatten(1).mean(dim=1).tolist() == pytest.approx([0.5] * 4, abs=0.01)
    assert torch.equal(same, masks)
    drawn = (noisy[:2] - 0.5) / torch.from_numpy(warp.deviations[:2])[:, None, None, None]
    assert not torch.allclose(drawn[0], drawn[1], atol=0.1), "no two images have the same noise"
    part = warp.share(slice(2, 4)).apply(images[2:], masks[2:])[0]
    assert torch.equal(part, noisy[2:])
