"""Test patients segmented with other profiles than their own."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from mgi.cli import app
from mgi.config import EvaluateOptions
from mgi.errors import CheckpointError, CohortError
from mgi.evaluate import swap
from mgi.evaluate.external import evaluate_tables
from mgi.evaluate.segmentation import summarise
from mgi.evaluate.swap import draw_donors, swap_genes
from mgi.tables import read_table, write_sources, write_table
from mgi.train.finetune import finetune
from tests.tables import CASES, UNPAIRED

KINDS = ["own", "none", "other", "same-class", "other-class", "same-site", "other-site"]
CLASSES = dict(zip(CASES, "aabbaabb", strict=True))
OPTIONS = EvaluateOptions(bootstrap_samples=200)


@pytest.fixture
def tested(cohort, tmp_path):
    """Splits in which every case is tested in fold 0, with two classes and two sites."""
    splits = read_table(cohort.splits, "splits").to_pandas().assign(role="test", stratum=list(CLASSES.values()))
    write_table(splits, tmp_path / "splits.parquet")
    return tmp_path / "splits.parquet"


def test_donors_are_others_of_the_kind_they_stand_for():
    cases = [f"case-{index}" for index in range(12)]
    strata = {case: "ab"[index // 6] for index, case in enumerate(cases)}
    sites = {case: "xyz"[index % 3] for index, case in enumerate(cases[:10])}
    drawn = {case: draw_donors(case, cases, strata, sites, 0) for case in cases}
    for case, kinds in drawn.items():
        assert list(kinds) == KINDS[: 7 if case in sites else 5]
        assert kinds["own"] == [case] and kinds["none"] == [None] and len(set(kinds["other"]) - {case}) == 3
        assert {strata[one] for one in kinds["same-class"]} == {strata[case]} and case not in kinds["same-class"]
        assert {strata[one] for one in kinds["other-class"]} == set("ab") - {strata[case]}
        if case in sites:
            assert {sites[one] for one in kinds["same-site"]} == {sites[case]} and case not in kinds["same-site"]
            assert sites[case] not in {sites[one] for one in kinds["other-site"]}
    assert drawn["case-0"] != draw_donors("case-0", cases, strata, sites, 1)
    assert list(draw_donors("case-0", cases, dict.fromkeys(cases, "all"), {}, 0)) == KINDS[:3]
    # Nobody else is of that class, so there is no such kind.
    assert "same-class" not in draw_donors("case-0", cases[:1] + cases[6:], strata, {}, 0)


def test_a_patient_counts_with_the_mean_over_its_donors(cohort, finetuned, tested, tmp_path, monkeypatch):
    """With own genes all is found, with those of the own class half, and with others' or none nothing."""
    owner = {row: case for row, case in enumerate(case for case in CASES if case != UNPAIRED)}

    def count(model, images, profiles, decisions, place):
        overlap = np.zeros(len(images), int)
        for index, case in enumerate(images.frame.case_id):
            donor = owner.get(profiles.row.get(case))
            overlap[index] = 0 if donor is None else 4 if donor == case else 2 * (CLASSES[donor] == CLASSES[case])
        return np.stack([overlap, np.full(len(images), 8)])[:, None], 0.0

    monkeypatch.setattr(swap, "count_pixels", count)
    swap_genes([finetuned], cohort.sources, cohort.expression, tested, tmp_path / "swap.csv", OPTIONS)
    table = pd.read_csv(tmp_path / "swap.csv").set_index("profile")
    assert table.index.tolist() == KINDS and set(table.n_patients) == {7}
    assert table.dice[["own", "same-class", "other-class", "none"]].tolist() == [1, 0.5, 0, 0]
    assert table.difference[KINDS[3:5]].tolist() == table.difference_low[KINDS[3:5]].tolist() == [0.5, 1]
    # All seven signs alike: 2 of 128.
    assert table.p_value["none"] == pytest.approx(2 / 128)
    assert table.donors[["none", "other", "other-class"]].tolist() == [1, 3, 3]
    # Four patients of one class, three of the other.
    assert table.donors["same-class"] == pytest.approx((4 * 3 + 3 * 2) / 7, abs=1e-6)


def test_own_profiles_give_the_dice_of_the_summary(cohort, finetuned, tested, tmp_path):
    evaluate_tables(finetuned, [cohort.folder / "images" / "all.parquet"], cohort.expression, tmp_path, 100)
    # Tumour that no tile holds is missed here too.
    records = read_table(cohort.sources, "sources").to_pylist()
    write_sources([record | {"untiled_tumour_px": 50} for record in records], tmp_path / "sources.parquet")
    (tmp_path / "images").symlink_to(cohort.folder / "images")
    summarise([tmp_path / "predictions.parquet"], tmp_path / "summary.json", 100, 0, tmp_path / "sources.parquet")
    expected = read_table(tmp_path / "per_patient.parquet", "patients").to_pandas().set_index("case_id").dice
    command = ["swap", str(finetuned), "--sources", str(tmp_path / "sources.parquet"), "--splits", str(tested)]
    command += ["--expression", str(cohort.expression), "--bootstrap-samples", "100", "-o", str(tmp_path / "swap.csv")]
    assert CliRunner().invoke(app, command).exit_code == 0
    table = pd.read_csv(tmp_path / "swap.csv").set_index("profile")
    assert table.dice["own"] == pytest.approx(expected.drop(UNPAIRED).mean(), abs=1e-6)
    assert table.dice.nunique() > 1, "other genes change nothing"


def test_models_that_cannot_be_asked_are_refused(cohort, finetuned, finetune_options, tested, tmp_path):
    def run(*folders, splits=tested):
        swap_genes(list(folders), cohort.sources, cohort.expression, splits, tmp_path / "swap.csv", OPTIONS)

    bare = tmp_path / "bare"
    finetune(finetune_options(genes="none", pretrained=False), cohort.sources, None, cohort.splits, "0", None, bare)
    with pytest.raises(CheckpointError, match="was trained without genes"):
        run(bare)
    for fold in ("fold0", "fold1"):
        shutil.copytree(finetuned, tmp_path / "variant" / fold)
    with pytest.raises(
        CheckpointError, match=r"variant is a variant's folder: give those of its folds, such as .*fold0"
    ):
        run(tmp_path / "variant")
    with pytest.raises(CheckpointError, match="tested on the same patients"):
        run(finetuned, finetuned)
    table = read_table(tested, "splits").to_pandas()
    write_table(table.assign(role=["test", *["train"] * 7]), tmp_path / "one.parquet")
    with pytest.raises(CohortError, match="fold 0 has 1 labelled test patients with a profile"):
        run(finetuned, splits=tmp_path / "one.parquet")
    description = json.loads((finetuned / "config.json").read_text())
    everyone = tmp_path / "all"
    everyone.mkdir()
    (everyone / "model.safetensors").write_bytes((finetuned / "model.safetensors").read_bytes())
    (everyone / "config.json").write_text(json.dumps(description | {"fold": "all"}))
    with pytest.raises(CheckpointError, match="was trained on every patient: give those of folds"):
        run(everyone)
    assert not (tmp_path / "swap.csv").exists()
