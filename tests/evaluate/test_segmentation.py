"""Segmentation metrics against plain-Python oracles, and the pooling over images, patients and folds."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.ndimage import distance_transform_edt

from mgi.codecs import encode_mask
from mgi.errors import CohortError, ImageTableError, MissingInputError
from mgi.evaluate import segmentation
from mgi.evaluate.segmentation import compare, confusion, dice, hd95, iou, stitch, summarise
from mgi.tables import write_sources, write_table


def blobs(rng: np.random.Generator, shape: tuple[int, int] = (24, 20), share: float = 0.3) -> np.ndarray:
    return rng.random(shape) < share


def prediction_row(case: str, prediction: np.ndarray, reference: np.ndarray, **given: object) -> dict[str, object]:
    row = {"case_id": case, "source_id": f"{case}-01", "x": 0, "y": 0, "z": 0, "size": len(reference), "mpp": None}
    return row | {"fold": 0} | given | {"prediction": encode_mask(prediction), "reference": encode_mask(reference)}


def write_predictions(path: Path, rows: list[dict[str, object]]) -> Path:
    write_table(pd.DataFrame(rows).astype({"mpp": "float32"}), path)
    return path


def write_dice(folder: Path, variant: str, scores: dict[str, float]) -> None:
    table = pd.DataFrame({"case_id": list(scores), "dice": list(scores.values())})
    write_table(table, folder / variant / "per_patient.parquet")
    write_table(table, folder / variant / "per_image.parquet")


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
    prediction, reference = blobs(rng, share=0.1 + 0.15 * seed), blobs(rng)
    counts = confusion(prediction, reference)
    assert (dice(*counts), iou(*counts)) == pytest.approx(plain_overlap(prediction, reference), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_hd95_equals_brute_force_over_surface_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    prediction, reference = blobs(rng, share=0.02 + 0.2 * seed), blobs(rng, share=0.9)
    assert hd95(prediction, reference) == pytest.approx(brute_force_hd95(prediction, reference), abs=1e-9)


def test_hd95_equals_distance_maps_on_shifted_discs() -> None:
    yy, xx = np.mgrid[:64, :64]
    prediction, reference = (xx - 30) ** 2 + (yy - 30) ** 2 < 200, (xx - 36) ** 2 + (yy - 28) ** 2 < 150
    edges = [segmentation._surface(mask) for mask in (prediction, reference)]
    distances = []
    for here, there in (edges, edges[::-1]):
        outside = np.ones((64, 64), bool)
        outside[tuple(there.T)] = False
        distances.append(distance_transform_edt(outside)[tuple(here.T)])
    assert hd95(prediction, reference) == pytest.approx(np.percentile(np.concatenate(distances), 95))


def test_hd95_is_undefined_where_a_mask_is_empty() -> None:
    some, none = np.eye(8, dtype=bool), np.zeros((8, 8), bool)
    assert np.isnan([hd95(some, none), hd95(none, some), hd95(none, none)]).all()


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


def test_hd95_of_a_wide_slide_is_that_of_its_mask(tmp_path: Path) -> None:
    edge, count = 21.62, 120
    prediction, reference = np.zeros((2, 8, 4 * count), bool)
    prediction[:, :4] = reference[:, -4:] = True
    rows = []
    for i in range(2):
        for j in range(count):
            part, place = np.s_[4 * i : 4 * i + 4, 4 * j : 4 * j + 4], {"x": round(j * edge), "y": round(i * edge)}
            rows.append(prediction_row("A", prediction[part], reference[part], **place, size=edge))
    summarise([write_predictions(tmp_path / "p.parquet", rows)], tmp_path / "summary.json", 100)
    patient = pd.read_parquet(tmp_path / "per_patient.parquet").iloc[0]
    assert patient["hd95"] == pytest.approx(hd95(prediction, reference))


def test_missing_tiles_are_background() -> None:
    plane = stitch(np.ones((2, 4, 4), bool), np.array([0, 80]), np.array([0, 40]), size=40)
    assert plane.shape == (8, 12)
    assert plane.sum() == 32 and not plane[:, 4:8].any()


def test_overlapping_tiles_are_refused() -> None:
    with pytest.raises(ImageTableError, match="overlaps"):
        stitch(np.ones((2, 4, 4), bool), np.array([0, 3]), np.array([0, 0]), size=40)


def test_patient_dice_over_tiles_is_the_dice_of_the_stitched_mask(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    prediction, reference = blobs(rng, (32, 32)), blobs(rng, (32, 32))
    rows = []
    for y in (0, 16):
        for x in (0, 16):
            part = np.s_[y : y + 16, x : x + 16]
            rows.append(prediction_row("A", prediction[part], reference[part], x=2 * x, y=2 * y, size=32, mpp=0.5))
    summarise([write_predictions(tmp_path / "p.parquet", rows)], tmp_path / "summary.json", 100)
    patient = pd.read_parquet(tmp_path / "per_patient.parquet").iloc[0]
    expected = plain_overlap(prediction, reference)
    assert (patient["dice"], patient["iou"]) == pytest.approx(expected)
    assert patient["hd95"] == pytest.approx(0.5 * brute_force_hd95(prediction, reference), rel=1e-6)
    assert patient["dice"] != pytest.approx(patient["all_image_dice"], abs=1e-6)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A: one right slice, one empty slice with a false positive, one empty slice left empty. B: empty throughout."""
    square, none = np.zeros((10, 10), bool), np.zeros((10, 10), bool)
    square[2:6, 2:6] = True
    half = square.copy()
    half[4:] = False
    rows = [
        prediction_row("A", half, square, z=1),
        prediction_row("A", half, none, z=2),
        prediction_row("A", none, none, z=3),
        prediction_row("B", none, none, z=1, fold=1),
    ]
    first = write_predictions(tmp_path / "0.parquet", rows[:3])
    summarise([first, write_predictions(tmp_path / "1.parquet", rows[3:])], tmp_path / "out" / "summary.json", 500)
    return tmp_path / "out"


def test_patient_metrics_of_a_volume_follow_the_definitions(volume: Path) -> None:
    patients = pd.read_parquet(volume / "per_patient.parquet").set_index("case_id")
    a, b = patients.loc["A"], patients.loc["B"]
    assert a["dice"] == pytest.approx(2 * 8 / (2 * 8 + 8 + 8))
    assert a["positive_image_dice"] == pytest.approx(2 / 3)
    assert a["all_image_dice"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert a["empty_false_positive_rate"] == 0.5
    assert (a["n_images"], a["n_positive_images"], a["n_hd95_planes"]) == (3, 1, 1)
    assert (b["dice"], b["iou"], b["empty_false_positive_rate"], b["n_hd95_planes"]) == (1, 1, 0, 0)
    assert np.isnan(b["positive_image_dice"]) and np.isnan(b["hd95"])


def test_summary_has_one_form_for_every_metric(volume: Path) -> None:
    summary = json.loads((volume / "summary.json").read_text())
    assert (summary["n_patients"], summary["n_images"]) == (2, 4)
    assert summary["dice"]["mean"] == pytest.approx(0.75)
    assert summary["positive_image_dice"]["n"] == 1
    assert summary["hd95"]["unit"] == "pixels" and summary["hd95"]["n"] == 1
    assert summary["pooled_dice"]["mean"] == pytest.approx(0.5)
    assert summary["untiled_tumour_share"] is None
    for metric in set(summary) - {"n_patients", "n_images", "untiled_tumour_share"}:
        assert {"mean", "low", "high", "n"} <= set(summary[metric])
        assert summary[metric]["low"] <= summary[metric]["mean"] <= summary[metric]["high"]


def test_tumour_in_no_tile_counts_as_missed(tmp_path: Path) -> None:
    square = np.zeros((10, 10), bool)
    square[2:6, 2:6] = True
    rows = [prediction_row(case, square, square, source_id=f"{case}-0{n}") for case in "AB" for n in (1, 2)]
    path = write_predictions(tmp_path / "p.parquet", rows)
    untiled = {"A-01": 10, "A-02": 22, "B-01": 0, "B-02": None, "C-01": 99}
    write_sources(
        [
            {"source_id": name, "case_id": name[0], "status": "ok", "untiled_tumour_px": count}
            for name, count in untiled.items()
        ],
        tmp_path / "sources.parquet",
    )
    summarise([path], tmp_path / "summary.json", 100, sources=tmp_path / "sources.parquet")
    patients = pd.read_parquet(tmp_path / "per_patient.parquet").set_index("case_id")
    assert patients["untiled_tumour_px"].to_dict() == {"A": 32, "B": 0}
    assert patients["dice"].to_dict() == pytest.approx({"A": 2 * 32 / (2 * 32 + 32), "B": 1})
    assert patients["iou"].to_dict() == pytest.approx({"A": 32 / 64, "B": 1})
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["untiled_tumour_share"] == pytest.approx(32 / 96, abs=1e-6)
    assert summary["pooled_dice"]["mean"] == pytest.approx(2 * 64 / (2 * 64 + 32))


def test_sources_that_lack_a_slide_are_refused(tmp_path: Path) -> None:
    path = write_predictions(tmp_path / "p.parquet", [prediction_row("A", *np.zeros((2, 4, 4), bool))])
    write_sources([{"source_id": "B-01", "case_id": "B", "status": "ok"}], tmp_path / "sources.parquet")
    with pytest.raises(ImageTableError, match=r"sources\.parquet does not tell of A-01"):
        summarise([path], tmp_path / "summary.json", 100, sources=tmp_path / "sources.parquet")


def test_undefined_metric_is_null_and_does_not_break_json(tmp_path: Path) -> None:
    none = np.zeros((4, 4), bool)
    path = write_predictions(tmp_path / "p.parquet", [prediction_row("A", none, none)])
    summarise([path], tmp_path / "summary.json", 100)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["hd95"] == {"mean": None, "low": None, "high": None, "n": 0, "unit": "pixels"}
    assert summary["dice"]["mean"] == 1


def test_order_of_rows_and_files_does_not_change_a_byte(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    rows = [prediction_row(f"C{n % 5}", blobs(rng), blobs(rng), z=n, fold=n % 5 % 2) for n in range(20)]
    for name, order in (("a", rows), ("b", rows[::-1])):
        for fold in (0, 1):
            write_predictions(tmp_path / f"{name}{fold}.parquet", [row for row in order if row["fold"] == fold])
    summarise([tmp_path / "a0.parquet", tmp_path / "a1.parquet"], tmp_path / "a" / "summary.json", 200)
    summarise([tmp_path / "b1.parquet", tmp_path / "b0.parquet"], tmp_path / "b" / "summary.json", 200)
    for name in ("summary.json", "per_patient.parquet", "per_image.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_bootstrap_interval_agrees_with_scipy() -> None:
    values = np.random.default_rng(4).beta(5, 2, 60)
    ours = segmentation._interval(values, segmentation._resamples(60, 20_000, 0))
    peer = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    assert (ours["low"], ours["high"]) == pytest.approx((peer.low, peer.high), abs=0.003)


def test_patients_without_a_value_are_left_out_of_every_resample() -> None:
    values = np.array([0.5, np.nan, 0.5, np.nan])
    form = segmentation._interval(values, segmentation._resamples(4, 200, 0))
    assert form == {"mean": 0.5, "low": 0.5, "high": 0.5, "n": 2}


def test_bootstrap_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for trial in range(200):
        form = segmentation._interval(rng.normal(0.5, 0.1, 50), segmentation._resamples(50, 500, trial))
        covered += form["low"] <= 0.5 <= form["high"]
    assert 0.88 <= covered / 200 <= 0.98


def test_case_in_two_test_folds_is_refused(tmp_path: Path) -> None:
    mask = np.eye(4, dtype=bool)
    paths = [
        write_predictions(tmp_path / f"{fold}.parquet", [prediction_row("TCGA-A4-8098", mask, mask, fold=fold)])
        for fold in (0, 1)
    ]
    with pytest.raises(CohortError, match=r"TCGA-A4-8098 is tested in .*0\.parquet.*1\.parquet"):
        summarise(paths, tmp_path / "summary.json", 100)
    assert not (tmp_path / "summary.json").exists()


def test_predictions_without_a_labelled_image_are_refused(tmp_path: Path) -> None:
    mask = np.eye(4, dtype=bool)
    path = tmp_path / "none.parquet"
    write_table(pd.DataFrame([prediction_row("A", mask, mask)]).iloc[:0], path)
    with pytest.raises(CohortError, match="no labelled test image"):
        summarise([path], tmp_path / "summary.json", 100)


def test_prediction_of_another_shape_is_refused(tmp_path: Path) -> None:
    row = prediction_row("A", np.ones((4, 4), bool), np.ones((6, 6), bool))
    with pytest.raises(ImageTableError, match=r"\(4, 4\).*\(6, 6\)"):
        summarise([write_predictions(tmp_path / "p.parquet", [row])], tmp_path / "summary.json", 100)


@pytest.fixture
def compared(tmp_path: Path) -> Path:
    rng = np.random.default_rng(6)
    cases = [f"TCGA-{n:02d}" for n in range(30)]
    better = rng.uniform(0.8, 1, 30)
    write_dice(tmp_path, "mgi", dict(zip(cases, better, strict=True)))
    write_dice(tmp_path, "image-only", dict(zip(cases, better - rng.uniform(0.1, 0.3, 30), strict=True)))
    write_dice(tmp_path, "noise", dict(zip(cases[5:], (better + rng.normal(0, 0.05, 30))[5:], strict=True)))
    return tmp_path


def test_comparison_pairs_patients_and_finds_the_difference(compared: Path) -> None:
    compare(compared, ["image-only", "mgi", "noise"], compared / "evaluate", "mgi", 1000)
    table = pd.read_csv(compared / "evaluate" / "comparison.csv").set_index("variant")
    assert list(table.index) == ["image-only", "mgi", "noise"]
    scores = pd.read_parquet(compared / "evaluate" / "per_patient.parquet").pivot(
        index="case_id", columns="variant", values="dice"
    )
    difference = scores["mgi"] - scores["image-only"]
    row = table.loc["image-only"]
    assert row["difference"] == pytest.approx(difference.mean(), abs=1e-6)
    assert 0.1 < row["difference_low"] < row["difference"] < row["difference_high"] < 0.3
    assert row["p_value"] < 0.001 and row["n_paired"] == 30
    assert table.loc["noise", "n_paired"] == 25 and table.loc["noise", "p_value"] > 0.01
    assert table.loc["mgi", ["difference", "difference_low", "difference_high", "p_value"]].isna().all()


def test_paired_interval_is_narrower_than_unpaired_ones(compared: Path) -> None:
    compare(compared, ["mgi", "image-only"], compared / "evaluate", "mgi", 1000)
    table = pd.read_csv(compared / "evaluate" / "comparison.csv").set_index("variant")
    other = table.loc["image-only"]
    spread = (table["high"] - table["low"]).max()
    assert other["difference_high"] - other["difference_low"] < spread


def test_variants_of_the_same_dice_get_the_same_interval_as_their_summary(compared: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    rows = [prediction_row(f"C{n}", blobs(rng), blobs(rng)) for n in range(8)]
    path = write_predictions(tmp_path / "p.parquet", rows)
    for variant in ("mgi", "twin"):
        summarise([path], tmp_path / variant / "summary.json", 300, seed=3)
    compare(tmp_path, ["mgi", "twin"], tmp_path / "evaluate", "mgi", 300, seed=3)
    table = pd.read_csv(tmp_path / "evaluate" / "comparison.csv").set_index("variant")
    summary = json.loads((tmp_path / "twin" / "summary.json").read_text())["dice"]
    assert tuple(table.loc["twin", ["dice", "low", "high"]]) == (summary["mean"], summary["low"], summary["high"])
    assert tuple(table.loc["twin", ["difference", "difference_low", "difference_high"]]) == (0, 0, 0)
    assert table.loc["twin", "p_value"] == 1


def test_comparison_names_the_missing_variant_or_reference(compared: Path) -> None:
    with pytest.raises(MissingInputError, match="no-vit"):
        compare(compared, ["mgi", "no-vit"], compared / "evaluate")
    with pytest.raises(CohortError, match="'mgi' is not among"):
        compare(compared, ["image-only"], compared / "evaluate")


def test_variants_without_a_common_patient_are_refused(compared: Path) -> None:
    write_dice(compared, "elsewhere", {"TCGA-ZZ": 0.5})
    with pytest.raises(CohortError, match="no common patient"):
        compare(compared, ["mgi", "elsewhere"], compared / "evaluate")


def test_ignored_pixels_count_nowhere(tmp_path: Path) -> None:
    reference, ignore, prediction = (np.zeros((8, 8), bool) for _ in range(3))
    reference[:4], ignore[6:], prediction[:4], prediction[6:] = True, True, True, True
    row = prediction_row("A", prediction, reference) | {"reference": encode_mask(reference, ignore)}
    summarise([write_predictions(tmp_path / "predictions.parquet", [row])], tmp_path / "summary.json")
    report = json.loads((tmp_path / "summary.json").read_text())
    assert report["dice"]["mean"] == 1 and report["hd95"]["mean"] == 0
