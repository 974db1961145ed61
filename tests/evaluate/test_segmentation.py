"""Metrics of patients and variants: pooled over images, planes and folds."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mgi.codecs import encode_mask
from mgi.errors import CohortError, ImageTableError
from mgi.evaluate.masks import hd95
from mgi.evaluate.segmentation import summarise
from mgi.tables import write_sources, write_table
from tests.evaluate.predictions import prediction_row, random_mask, square_mask, write_predictions
from tests.evaluate.test_masks import brute_force_hd95, plain_overlap


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


def test_patient_dice_over_tiles_is_the_dice_of_the_stitched_mask(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    prediction, reference = random_mask(rng, (32, 32)), random_mask(rng, (32, 32))
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
    for metric in set(summary) - {"n_patients", "n_images", "untiled_tumour_share", "note"}:
        assert {"mean", "low", "high", "n"} <= set(summary[metric])
        assert summary[metric]["low"] is None and summary[metric]["high"] is None
    assert summary["note"] == "2 patients are too few for an interval: at least 6 are needed"


def test_six_patients_have_intervals_and_no_note(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [prediction_row(f"C{n}", random_mask(rng), random_mask(rng)) for n in range(6)]
    summarise([write_predictions(tmp_path / "p.parquet", rows)], tmp_path / "summary.json", 500)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert "note" not in summary
    for metric in ("dice", "iou", "hd95", "pooled_dice", "positive_image_dice", "all_image_dice", "volume_error"):
        assert summary[metric]["low"] < summary[metric]["mean"] < summary[metric]["high"], metric


def summary_of(folder: Path, missed: int, mpp: float | None = 0.5) -> dict:
    """Summarise 20 patients of which all but `missed` are predicted one pixel off."""
    rows = []
    for n in range(20):
        reference = square_mask(8, 8, 6, 24)
        prediction = square_mask(9, 8, 6, 24) if n >= missed else np.zeros((24, 24), bool)
        rows.append(prediction_row(f"C{n:02d}", prediction, reference, mpp=mpp))
    summarise([write_predictions(folder / "p.parquet", rows)], folder / "summary.json", 200)
    return json.loads((folder / "summary.json").read_text())


def test_no_average_improves_when_more_tumour_is_missed(tmp_path: Path) -> None:
    summaries = [summary_of(tmp_path, missed) for missed in (0, 5, 19, 20)]
    for metric in ("dice", "iou", "pooled_dice", "positive_image_dice", "all_image_dice", "lesion_recall"):
        means = [summary[metric]["mean"] for summary in summaries]
        assert means == sorted(means, reverse=True) and means[0] > means[-1], metric
    for metric in ("hd95", "volume_error"):
        means = [summary[metric]["mean"] for summary in summaries]
        assert means == sorted(means) and means[0] < means[-1], metric
    assert [summary["hd95"]["n"] for summary in summaries] == [20] * 4
    assert [summary["hd95"]["missed_planes"] for summary in summaries] == [0, 5, 19, 20]
    assert summaries[0]["hd95"]["tumour_planes"] == 20
    # Half a micron to a pixel: one pixel off, and the diagonal of 24 x 24.
    assert summaries[0]["hd95"]["mean"] == 0.5
    assert summaries[3]["hd95"]["mean"] == pytest.approx(12 * 2**0.5, abs=1e-6)


def test_planes_without_tumour_enter_the_false_positives_alone(tmp_path: Path) -> None:
    square, none = square_mask(2, 2, 4), np.zeros((10, 10), bool)
    rows = [prediction_row("A", square, square, z=1), prediction_row("A", square, none, z=5)]
    summarise([write_predictions(tmp_path / "p.parquet", rows)], tmp_path / "summary.json", 100)
    patient = pd.read_parquet(tmp_path / "per_patient.parquet").iloc[0]
    assert (patient["hd95"], patient["n_hd95_planes"], patient["n_missed_planes"]) == (0, 1, 0)
    assert (patient["positive_image_dice"], patient["empty_false_positive_rate"]) == (1, 1)
    assert (patient["lesion_recall"], patient["false_lesions"], patient["volume_error"]) == (1, 1, 1)


def test_lesions_of_a_series_are_parts_of_its_volume(tmp_path: Path) -> None:
    first, none = square_mask(0, 0, 3), np.zeros((10, 10), bool)
    # One lesion through z 1 and 2, found in z 2 alone; another in z 4, which z 3 does not join to it, missed.
    rows = [
        prediction_row("A", none, first, z=1),
        prediction_row("A", first, first, z=2),
        prediction_row("A", none, first, z=4),
        prediction_row("A", none, first, source_id="A-02", z=5),
    ]
    summarise([write_predictions(tmp_path / "p.parquet", rows)], tmp_path / "summary.json", 100)
    patient = pd.read_parquet(tmp_path / "per_patient.parquet").iloc[0]
    assert (patient["n_lesions"], patient["n_lesions_found"], patient["false_lesions"]) == (3, 1, 0)
    assert patient["lesion_recall"] == pytest.approx(1 / 3)
    assert patient["volume_error"] == pytest.approx(27 / 36)


def test_metrics_without_tumour_are_undefined_and_not_perfect(tmp_path: Path) -> None:
    none = np.zeros((10, 10), bool)
    rows = [prediction_row("A", square_mask(0, 0, 2), none)]
    summarise([write_predictions(tmp_path / "p.parquet", rows)], tmp_path / "summary.json", 100)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {metric: summary[metric]["n"] for metric in ("hd95", "lesion_recall", "volume_error")} == {
        "hd95": 0, "lesion_recall": 0, "volume_error": 0
    }  # fmt: skip
    assert summary["false_lesions"]["mean"] == 1 and summary["dice"]["mean"] == 0


def test_tumour_in_no_tile_counts_as_missed(tmp_path: Path) -> None:
    square = np.zeros((10, 10), bool)
    square[2:6, 2:6] = True
    rows = [prediction_row(case, square, square, source_id=f"{case}-0{n}") for case in "AB" for n in (1, 2)]
    path = write_predictions(tmp_path / "p.parquet", rows)
    # No tile of A-03 was kept.
    untiled = {"A-01": 8, "A-02": 22, "A-03": 2, "B-01": 0, "B-02": None, "C-01": 99}
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
    with pytest.raises(ImageTableError, match=r"sources\.parquet has no row of 'A-01'"):
        summarise([path], tmp_path / "summary.json", 100, sources=tmp_path / "sources.parquet")


def test_undefined_metric_is_null_and_does_not_break_json(tmp_path: Path) -> None:
    none = np.zeros((4, 4), bool)
    path = write_predictions(tmp_path / "p.parquet", [prediction_row("A", none, none)])
    summarise([path], tmp_path / "summary.json", 100)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["hd95"] == {"mean": None, "low": None, "high": None, "n": 0} | {
        "unit": "pixels", "missed_planes": 0, "tumour_planes": 0
    }  # fmt: skip
    assert summary["dice"]["mean"] == 1


def test_order_of_rows_and_files_does_not_change_a_byte(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    rows = [prediction_row(f"C{n % 5}", random_mask(rng), random_mask(rng), z=n, fold=n % 5 % 2) for n in range(20)]
    for name, order in (("a", rows), ("b", rows[::-1])):
        for fold in (0, 1):
            write_predictions(tmp_path / f"{name}{fold}.parquet", [row for row in order if row["fold"] == fold])
    summarise([tmp_path / "a0.parquet", tmp_path / "a1.parquet"], tmp_path / "a" / "summary.json", 200)
    summarise([tmp_path / "b1.parquet", tmp_path / "b0.parquet"], tmp_path / "b" / "summary.json", 200)
    for name in ("summary.json", "per_patient.parquet", "per_image.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


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


def test_ignored_pixels_count_nowhere(tmp_path: Path) -> None:
    reference, ignore, prediction = (np.zeros((8, 8), bool) for _ in range(3))
    reference[:4], ignore[6:], prediction[:4], prediction[6:] = True, True, True, True
    row = prediction_row("A", prediction, reference) | {"reference": encode_mask(reference, ignore)}
    summarise([write_predictions(tmp_path / "predictions.parquet", [row])], tmp_path / "summary.json")
    report = json.loads((tmp_path / "summary.json").read_text())
    assert report["dice"]["mean"] == 1 and report["hd95"]["mean"] == 0
