"""Variants compared patient by patient."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from mgi.cli import app
from mgi.errors import CohortError, ConfigError, MissingInputError
from mgi.evaluate.comparison import compare
from mgi.evaluate.segmentation import summarise
from mgi.evaluate.statistics import detectable_difference
from mgi.tables import write_table
from tests.evaluate.predictions import prediction_row, random_mask, write_predictions


def write_dice(folder: Path, variant: str, scores: dict[str, float]) -> None:
    table = pd.DataFrame({"case_id": list(scores), "dice": list(scores.values())})
    write_table(table, folder / variant / "per_patient.parquet")
    write_table(table, folder / variant / "per_image.parquet")


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


def test_other_variants_are_compared_with_one_another(compared: Path) -> None:
    scores = pd.read_parquet(compared / "mgi" / "per_patient.parquet").set_index("case_id")["dice"]
    write_dice(compared, "again", scores.to_dict())
    variants = ["image-only", "mgi", "noise", "again"]
    compare(compared, variants, compared / "evaluate", "mgi", 1000, replicates={"mgi": ["again"]})
    pairs = pd.read_csv(compared / "evaluate" / "pairs.csv")
    assert pairs[["first", "second", "n_paired"]].to_numpy().tolist() == [["noise", "image-only", 25]]
    rest = pd.read_csv(compared / "evaluate" / "comparison.csv").set_index("variant")["difference"]
    row = pairs.iloc[0]
    assert 0.1 < row["low"] < row["difference"] < row["high"] < 0.3 and row["p_value"] == row["p_holm"] < 0.001
    assert row["difference"] == pytest.approx(rest["image-only"] - rest["noise"], abs=0.02)
    compare(compared, variants, compared / "evaluate", "image-only", 1000)
    pairs = pd.read_csv(compared / "evaluate" / "pairs.csv")
    assert list(pairs["first"] + "-" + pairs["second"]) == ["noise-mgi", "again-mgi", "again-noise"]
    assert (pairs["p_holm"] >= pairs["p_value"]).all() and (pairs["p_holm"] > pairs["p_value"]).any()
    compare(compared, ["mgi", "image-only"], compared / "evaluate", "mgi", 1000)
    assert pd.read_csv(compared / "evaluate" / "pairs.csv").empty


def test_paired_interval_is_narrower_than_unpaired_ones(compared: Path) -> None:
    compare(compared, ["mgi", "image-only"], compared / "evaluate", "mgi", 1000)
    table = pd.read_csv(compared / "evaluate" / "comparison.csv").set_index("variant")
    other = table.loc["image-only"]
    spread = (table["high"] - table["low"]).max()
    assert other["difference_high"] - other["difference_low"] < spread


def test_variants_of_the_same_dice_get_the_same_interval_as_their_summary(compared: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    rows = [prediction_row(f"C{n}", random_mask(rng), random_mask(rng)) for n in range(8)]
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


def test_first_variant_is_the_primary_contrast_and_the_rest_are_adjusted(compared: Path) -> None:
    variants = ["image-only", "mgi", "noise", "twin"]
    scores = pd.read_parquet(compared / "noise" / "per_patient.parquet").set_index("case_id")["dice"]
    write_dice(compared, "twin", (scores + np.random.default_rng(8).normal(0, 0.1, len(scores))).to_dict())
    compare(compared, variants, compared / "evaluate", "mgi", 200)
    table = pd.read_csv(compared / "evaluate" / "comparison.csv").set_index("variant")
    assert table["primary"].to_dict() == {"image-only": True, "mgi": False, "noise": False, "twin": False}
    assert np.isnan(table.loc["image-only", "p_holm"]) and np.isnan(table.loc["mgi", "p_holm"])
    rest = table.loc[["noise", "twin"], "p_value"]
    assert table.loc[rest.idxmin(), "p_holm"] == pytest.approx(min(2 * rest.min(), 1), abs=2e-6)
    assert table.loc[rest.idxmax(), "p_holm"] >= rest.max()
    compare(compared, ["mgi", "noise", "twin"], compared / "evaluate", "mgi", 200)
    table = pd.read_csv(compared / "evaluate" / "comparison.csv").set_index("variant")
    assert table["primary"].to_dict() == {"mgi": False, "noise": True, "twin": False}


def test_table_has_the_smallest_detectable_difference(compared: Path) -> None:
    compare(compared, ["image-only", "mgi"], compared / "evaluate", "mgi", 200)
    table = pd.read_csv(compared / "evaluate" / "comparison.csv").set_index("variant")
    scores = [pd.read_parquet(compared / name / "per_patient.parquet")["dice"] for name in ("mgi", "image-only")]
    expected = detectable_difference((scores[0] - scores[1]).to_numpy())
    assert table.loc["image-only", "detectable"] == pytest.approx(expected, abs=1e-6)
    assert np.isnan(table.loc["mgi", "detectable"])


def test_five_patients_have_differences_without_intervals_or_p_values(tmp_path: Path) -> None:
    for variant, dice in (("mgi", 0.9), ("image-only", 0.5)):
        write_dice(tmp_path, variant, {f"C{n}": dice + n / 100 for n in range(5)})
    compare(tmp_path, ["image-only", "mgi"], tmp_path / "evaluate")
    row = pd.read_csv(tmp_path / "evaluate" / "comparison.csv").set_index("variant").loc["image-only"]
    assert (row["dice"], row["difference"], row["n_paired"]) == pytest.approx((0.52, 0.4, 5))
    assert row[["low", "high", "difference_low", "difference_high", "p_value", "detectable"]].isna().all()


def test_spread_over_seeds_is_that_of_the_means_and_widens_the_interval(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    dice = rng.uniform(0.6, 0.9, 40)
    shifts = {"mgi": 0.0, "mgi-1": 0.09, "mgi-2": -0.06}
    for variant, shift in shifts.items():
        write_dice(tmp_path, variant, {f"C{n:02d}": value + shift for n, value in enumerate(dice)})
    write_dice(tmp_path, "same", {f"C{n:02d}": value for n, value in enumerate(dice)})
    replicates = {"mgi": ["mgi-1", "mgi-2"], "same": ["mgi"]}
    compare(tmp_path, [*shifts, "same"], tmp_path / "evaluate", "mgi", 2000, replicates=replicates)
    table = pd.read_csv(tmp_path / "evaluate" / "seeds.csv").set_index("variant")
    row, same = table.loc["mgi"], table.loc["same"]
    assert (row["seeds"], row["n_patients"]) == (3, 40)
    assert row["dice"] == pytest.approx(dice.mean() + 0.01, abs=1e-6)
    assert row["sd"] == pytest.approx(np.std([0, 0.09, -0.06], ddof=1), abs=1e-6)
    # Variances of independent draws add: patients' by 40, and seeds' (n - 1 in n of theirs) by 3.
    expected = 2 * 1.96 * np.sqrt(dice.var() / 40 + np.var([0, 0.09, -0.06]) / 3)
    assert row["high"] - row["low"] == pytest.approx(expected, rel=0.1)
    assert same["sd"] == 0 and same["high"] - same["low"] < row["high"] - row["low"]


def test_command_takes_the_repetitions(compared: Path) -> None:
    shutil.copytree(compared / "mgi", compared / "again")
    variants = ["--variant", "mgi", "--variant", "again", "-o", str(compared / "out")]
    assert CliRunner().invoke(app, ["compare", str(compared), *variants, "--replicate", "mgi=again"]).exit_code == 0
    assert pd.read_csv(compared / "out" / "seeds.csv")[["variant", "seeds"]].to_numpy().tolist() == [["mgi", 2]]
    for wrong in ("mgi", "mgi=mgi", "mgi=other"):
        with pytest.raises(ConfigError, match="must name two of the variants: write VARIANT=OTHER"):
            CliRunner().invoke(app, ["compare", str(compared), *variants, "--replicate", wrong], catch_exceptions=False)


def test_repetitions_are_no_hypotheses(compared: Path) -> None:
    for other in ("mgi-1", "noise-1"):
        shutil.copytree(compared / other.split("-")[0], compared / other)
    alone, repeated = compared / "alone", compared / "repeated"
    compare(compared, ["mgi", "image-only", "noise"], alone, "mgi", 200)
    variants = ["mgi", "mgi-1", "noise-1", "image-only", "noise"]
    compare(compared, variants, repeated, "mgi", 200, replicates={"mgi": ["mgi-1"], "noise": ["noise-1"]})
    expected, found = (pd.read_csv(folder / "comparison.csv").set_index("variant") for folder in (alone, repeated))
    columns = ["primary", "p_holm"]
    assert found.loc[expected.index, columns].equals(expected[columns])
    assert (
        found.loc[["mgi-1", "noise-1"], "p_holm"].isna().all() and not found.loc[["mgi-1", "noise-1"], "primary"].any()
    )


def test_projects_have_means_of_their_own(compared: Path) -> None:
    scores = pd.read_parquet(compared / "mgi" / "per_patient.parquet").set_index("case_id")["dice"]
    projects = ["TCGA-LGG"] * 20 + ["TCGA-GBM"] * 8 + [None] * 2
    splits = pd.DataFrame({"case_id": [*scores.index] * 2, "project": projects * 2})
    splits.to_parquet(compared / "splits.parquet")
    output = compared / "evaluate"
    compare(compared, ["mgi", "noise"], output, "mgi", 200, splits=compared / "splits.parquet")
    table = pd.read_csv(output / "projects.csv").fillna({"project": ""}).set_index(["project", "variant"])
    assert table["n_patients"].to_dict() == {
        ("", "mgi"): 2, ("", "noise"): 2, ("TCGA-GBM", "mgi"): 8, ("TCGA-GBM", "noise"): 8,
        ("TCGA-LGG", "mgi"): 20, ("TCGA-LGG", "noise"): 15,
    }  # fmt: skip
    lgg = table.loc[("TCGA-LGG", "mgi")]
    assert lgg["dice"] == pytest.approx(scores.iloc[:20].mean(), abs=1e-6) and lgg["low"] < lgg["dice"] < lgg["high"]
    assert np.isnan(table.loc[("", "mgi"), "low"]), "two patients are too few"
