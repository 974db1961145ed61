"""The table that ends a run."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mgi.errors import MissingInputError
from mgi.report.summary import print_summary


@pytest.fixture
def results(tmp_path: Path) -> Path:
    nothing = dict.fromkeys(("difference", "difference_low", "difference_high", "p_value", "p_holm", "detectable"))
    gain = {"difference": 0.3, "difference_low": 0.25, "difference_high": 0.35, "p_value": 0.0002, "detectable": 0.029}
    rows = [
        {"variant": "image-only", "n_patients": 48, "dice": 0.6, "low": 0.55, "high": 0.65} | gain | {"primary": True},
        {"variant": "mgi", "n_patients": 48, "dice": 0.9, "low": 0.88, "high": 0.92} | nothing,
        {"variant": "shuffled[1]", "n_patients": 48, "dice": 0.58, "low": 0.5, "high": 0.62}
        | gain
        | {"p_value": 0.02, "p_holm": 0.041},
    ]
    (tmp_path / "evaluate").mkdir()
    table = pd.DataFrame(rows).assign(n_paired=48).fillna({"primary": False})
    table.to_csv(tmp_path / "evaluate" / "comparison.csv", index=False)
    return tmp_path


def add_expression(results: Path, scale_fitted: str) -> None:
    table = pa.table({"case_id": ["A"]}).replace_schema_metadata({"unit": "z-score", "scale_fitted": scale_fitted})
    pq.write_table(table, results / "expression.parquet")


def test_variants_come_in_the_order_of_the_comparison(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(results)
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if "│" in line]
    assert [line.split("│")[1].strip() for line in lines] == ["image-only", "mgi", "shuffled[1]"]
    for words in ("0.600", "[0.550, 0.650]", "+0.300", "[+0.250, +0.350]", "<0.001", "0.029"):
        assert words in lines[0]
    assert "+" not in lines[1] and "0.041" in lines[2]
    assert "\x1b[" not in said
    words = " ".join(said.split())
    assert "Primary contrast: mgi minus image-only. The other p-values are adjusted by Holm's method." in words


def test_repetitions_alone_have_no_primary_contrast(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = results / "evaluate" / "comparison.csv"
    pd.read_csv(path).assign(primary=False, p_holm=float("nan")).to_csv(path, index=False)
    print_summary(results)
    said = capsys.readouterr().out
    assert "Primary contrast" not in said and "Holm" not in said and "Detectable" in said


def test_few_patients_get_a_sentence_instead_of_intervals(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = results / "evaluate" / "comparison.csv"
    table = pd.read_csv(path).assign(n_patients=5, n_paired=5)
    columns = ["low", "high", "difference_low", "difference_high", "p_value", "p_holm", "detectable"]
    table[columns] = float("nan")
    table.to_csv(path, index=False)
    print_summary(results)
    said = capsys.readouterr().out
    assert "Fewer than 6 patients: no interval and no p-value." in said
    assert "+0.300" in said and "nan" not in said and "[" not in said.replace("shuffled[1]", "")


def test_names_and_reasons_cannot_act_on_a_terminal(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flow = pd.DataFrame({"step": ["with masks"], "cases": [6], "lost": [2], "reason": ["\x1b[2Jgone [bold]x"]})
    flow.to_csv(results / "cohort_flow.csv", index=False)
    print_summary(results)
    said = capsys.readouterr().out
    assert "\x1b" not in said and "[bold]x" in said


def test_retrieval_stands_beside_chance(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("0", 1, 0.2), ("all", 1, 0.25), ("all", 5, 0.7)]
    table = pd.DataFrame(rows, columns=["fold", "k", "recall"])
    table = table.assign(variant="mgi", direction="image-to-gene", chance=0.0417, n_queries=900, n_gallery=24)
    table = table.assign(gallery="all", low=0.1, high=0.4, median_rank=3.5)
    table.to_csv(results / "evaluate" / "retrieval.csv", index=False)
    print_summary(results)
    [line] = [line for line in capsys.readouterr().out.splitlines() if "image-to-gene" in line]
    assert [cell.strip() for cell in line.split("│")[1:-1]] == [
        "mgi",
        "image-to-gene",
        "0.250",
        "[0.100, 0.400]",
        "0.042",
        "3.5",
        "24",
    ]


def test_pretraining_alone_shows_its_retrieval(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (results / "evaluate/comparison.csv").unlink()
    row = {"variant": "mgi", "direction": "image-to-gene", "fold": "all", "gallery": "all", "k": 1, "recall": 0.25}
    row |= {"chance": 0.0417, "n_gallery": 24, "low": 0.1, "high": 0.4, "median_rank": 3.5}
    pd.DataFrame([row]).to_csv(results / "evaluate/retrieval.csv", index=False)
    print_summary(results)
    said = capsys.readouterr().out
    assert "image-to-gene" in said and "Dice" not in said


@pytest.mark.parametrize(("scale_fitted", "noted"), [("outside the folds", True), ("none", False)])
def test_scaling_outside_the_folds_is_noted(
    results: Path, capsys: pytest.CaptureFixture[str], scale_fitted: str, noted: bool
) -> None:
    add_expression(results, scale_fitted)
    print_summary(results)
    assert ("scaled outside the folds" in capsys.readouterr().out) is noted


def test_lost_cases_are_listed_with_their_reason(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flow = pd.DataFrame(
        {"step": ["with a slide", "with masks"], "cases": [8, 6], "lost": [0, 2], "reason": ["", "cut"]}
    )
    flow.to_csv(results / "cohort_flow.csv", index=False)
    print_summary(results)
    said = capsys.readouterr().out
    assert "Cases with masks: 6; 2 left out: cut" in said and "with a slide" not in said


def test_report_comes_last_on_one_line(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = results / ("a" * 150)
    (folder / "evaluate").mkdir(parents=True)
    (folder / "evaluate" / "comparison.csv").write_text((results / "evaluate" / "comparison.csv").read_text())
    (folder / "report").mkdir()
    (folder / "report" / "index.html").write_text("")
    print_summary(folder)
    assert capsys.readouterr().out.splitlines()[-1] == f"Report: {folder / 'report' / 'index.html'}"


def test_unfinished_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"comparison\.csv"):
        print_summary(tmp_path)
