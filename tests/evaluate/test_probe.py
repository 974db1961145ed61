"""Linear probes against plain loops, and the table that they write."""

import numpy as np
import pandas as pd
import pytest
import torch

import mgi
from mgi.config import ProbeOptions
from mgi.errors import CheckpointError, CohortError, ConfigError
from mgi.evaluate.probe import COX_PENALTY, PENALTIES, _read_targets, fit_and_predict, fit_cox, probe, score
from mgi.train.data import read_images
from mgi.train.profiles import read_profiles
from tests.tables import CASES, UNPAIRED


def solve_ridge(x: np.ndarray, y: np.ndarray, test: np.ndarray, penalty: float) -> np.ndarray:
    """Predict by ridge with an intercept, the features and the penalty as they are."""
    middle = y.mean(0)
    weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ (y - middle))
    return test @ weights + middle


@pytest.mark.parametrize(("n", "dim"), [(30, 4), (8, 12)])
def test_prediction_is_ridge_at_the_penalty_of_the_smallest_leave_one_out_error(n, dim):
    random = np.random.default_rng(n)
    x, test = 5 + 3 * random.normal(size=(n, dim)), 5 + 3 * random.normal(size=(6, dim))
    y = x[:, :2] + random.normal(size=(n, 2))
    mean, scale = x.mean(0), x.std(0)
    white, tested = (x - mean) / scale, (test - mean) / scale
    errors = []
    for penalty in PENALTIES:
        # The leverage form: the features stay centred as they are, and the intercept is left out with the row.
        hat = white @ np.linalg.solve(white.T @ white + penalty * n * np.eye(dim), white.T) + 1 / n
        errors.append((((y - hat @ y) / (1 - np.diag(hat))[:, None]) ** 2).sum())
    expected = solve_ridge(white, y, tested, PENALTIES[int(np.argmin(errors))] * n)
    np.testing.assert_allclose(fit_and_predict(x, y, test), expected, rtol=1e-6)


def test_constant_features_tell_nothing():
    x, y = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20.0)[:, None]
    constant = np.concatenate([x, np.full((20, 1), 7.0)], axis=1)
    moved = np.concatenate([x, np.full((20, 1), 99.0)], axis=1)
    np.testing.assert_allclose(fit_and_predict(constant, y, moved), fit_and_predict(x, y, x), rtol=1e-6)


def test_auroc_is_the_share_of_ordered_pairs_and_ties_count_half():
    random = np.random.default_rng(1)
    classes, predicted = random.integers(0, 3, 40), random.integers(0, 5, (40, 3)).astype(float)
    truth = (classes[:, None] == np.arange(3)).astype(float)
    expected = []
    for one in range(3):
        pairs = [
            (predicted[i, one] > predicted[j, one]) + 0.5 * (predicted[i, one] == predicted[j, one])
            for i in np.flatnonzero(classes == one)
            for j in np.flatnonzero(classes != one)
        ]
        expected.append(np.mean(pairs))
    assert score(truth, predicted, "auroc") == pytest.approx(np.mean(expected))
    alone = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert np.isnan(score(alone, alone, "auroc")), "a class that all have is told from nothing"


def test_r2_is_one_minus_the_share_of_variance_that_is_left():
    truth = np.array([[1.0], [2.0], [3.0]])
    assert score(truth, truth, "r2") == 1
    assert score(truth, np.full((3, 1), 2.0), "r2") == 0
    assert score(truth, np.array([[1.0], [2.0], [4.0]]), "r2") == pytest.approx(0.5)


def test_c_index_is_the_share_of_ordered_pairs_of_whom_one_is_known_to_live_longer():
    random = np.random.default_rng(4)
    truth = np.stack([random.integers(1, 8, 30), random.integers(0, 2, 30)], 1).astype(float)
    hazard = random.integers(0, 5, (30, 1)).astype(float)
    pairs = [
        (hazard[i, 0] > hazard[j, 0]) + 0.5 * (hazard[i, 0] == hazard[j, 0])
        for i in range(30)
        for j in range(30)
        if truth[i, 1] == 1 and truth[i, 0] < truth[j, 0]
    ]
    assert score(truth, hazard, "c_index") == pytest.approx(np.mean(pairs))
    assert np.isnan(score(truth * [1, 0], hazard, "c_index"))


def test_cox_regression_is_where_the_penalised_partial_likelihood_has_no_slope():
    random = np.random.default_rng(5)
    x = 3 + 2 * random.normal(size=(60, 3))
    time = random.exponential(np.exp(-x[:, 0] + 3))
    y = np.stack([time.round(1), random.integers(0, 2, 60)], 1)
    unit = np.eye(3)
    hazard = fit_cox(x, y, x.mean(0) + x.std(0) * unit)[:, 0]  # the weights: the hazard of one deviation of each

    def likelihood(weights):
        risk, total = ((x - x.mean(0)) / x.std(0)) @ weights, 0.0
        for i in np.flatnonzero(y[:, 1]):
            total += np.log(np.exp(risk[y[:, 0] >= y[i, 0]]).sum()) - risk[i]
        return total / y[:, 1].sum() + COX_PENALTY * weights @ weights / 2

    slope = [(likelihood(hazard + 1e-5 * one) - likelihood(hazard - 1e-5 * one)) / 2e-5 for one in unit]
    np.testing.assert_allclose(slope, 0, atol=1e-4)
    assert hazard[0] > 0.5


@pytest.fixture
def labels(cohort, tmp_path):
    """A label that is a linear function of the profiles, and a class that half of the patients have."""
    values = read_profiles(cohort.expression).of(CASES)[0].numpy()
    pd.DataFrame({
        "case_id": CASES, "amount": values[:, :6].sum(1), "half": ["a", "b"] * 4, "same": "x",
        "days": range(10, 18), "died": [1, 0] * 4, "text": "soon",
    }).to_csv(tmp_path / "labels.csv", index=False)  # fmt: skip
    return tmp_path / "labels.csv"


def run(cohort, pretrained, labels, output, columns, **changes):
    options = ProbeOptions(labels=str(labels), columns=columns, bootstrap_samples=100, resamples=5, **changes)
    splits = pd.read_parquet(cohort.splits)
    splits.assign(site=[["AA", "BB"][index % 2] for index in range(len(splits))]).to_parquet(
        output.with_suffix(".splits")
    )
    probe([pretrained], cohort.sources, cohort.expression, output.with_suffix(".splits"), options, output)
    return pd.read_csv(output)


def test_table_has_trained_and_random_encoders_of_both_sides(cohort, pretrained, labels, tmp_path, monkeypatch):
    monkeypatch.setattr("mgi.evaluate.probe.MAX_CLASSES", 5)
    table = run(cohort, pretrained, labels, tmp_path / "probe.csv", ["amount", "half"])
    whole = table[table.shots == "all"]
    assert set(zip(whole.encoder, whole.side, whole.target, whole.metric, strict=True)) >= {
        (encoder, side, *target)
        for encoder in ("trained", "random")
        for side in ("image", "gene")
        for target in (("amount", "r2"), ("half", "auroc"), ("site", "auroc"))
    }
    assert set(whole[whole.target == "half"].n_patients) == {2}
    assert set(table[table.target == "half"].shots) == {"all", "1"}, "no class has five patients"
    again = run(cohort, pretrained, labels, tmp_path / "again.csv", ["amount", "half"])
    pd.testing.assert_frame_equal(again, table)


def test_fits_training_and_validation_patients_and_predicts_those_of_test(
    cohort, pretrained, labels, tmp_path, monkeypatch
):
    monkeypatch.setattr("mgi.evaluate.probe.MAX_CLASSES", 5)
    seen = []
    monkeypatch.setattr(
        "mgi.evaluate.probe.fit_and_predict",
        lambda x, y, test: seen.append((x, test)) or np.zeros((len(test), y.shape[1])),
    )
    run(cohort, pretrained, labels, tmp_path / "probe.csv", ["amount"])
    model = mgi.load(pretrained)
    images = read_images(cohort.sources, {CASES[7]})
    with torch.inference_mode():
        pictures = torch.from_numpy(images.load(np.arange(len(images)))).permute(0, 3, 1, 2) / 255
        vectors = model.project_images(pictures)
        bag = model.pool_bags(vectors, torch.zeros(len(vectors), dtype=torch.int64), 1)
    x, test = seen[0]
    assert UNPAIRED in CASES[:4] and len(x) == 5 and len(test) == 2
    np.testing.assert_allclose(test[1], bag[0].numpy(), atol=1e-5)


def test_survival_is_probed_by_its_two_columns(cohort, pretrained, labels, tmp_path):
    table = run(cohort, pretrained, labels, tmp_path / "probe.csv", [], survival=["days", "died"])
    survival = table[table.target == "survival"]
    assert set(survival.metric) == {"c_index"} and len(survival) == 4 and set(survival.n_patients) == {2}
    for columns in (["days", "text"], ["text", "died"]):
        with pytest.raises(CohortError, match=r"survival needs a number in .* of 'TCGA-AA-0000'"):
            run(cohort, pretrained, labels, tmp_path / "probe.csv", [], survival=columns)


@pytest.mark.parametrize(
    ("column", "rows", "message"),
    [
        ("grade", ["P1,II,3", "P1,III,3"], "rows of other labels for 1 patients: 'P1'; keep one each"),
        ("age", [f"P{k},I,{k}" for k in range(2, 30)] + ["P1,I,[Not Available]"], "'.Not Available.' beside numbers"),
        ("age", [f'P{k},I,"{k},5"' for k in range(30)], "has 30 distinct values for 30 patients, such as '0,5'"),
    ],
)
def test_rejects_labels_that_contradict_each_other_or_are_no_numbers(tmp_path, column, rows, message):
    (tmp_path / "l.csv").write_text("\n".join(["case_id,grade,age", *rows]) + "\n")
    cases = [f"P{k}" for k in range(30)]
    pd.DataFrame({"case_id": cases, "site": "S"}).to_parquet(tmp_path / "splits.parquet")
    options = ProbeOptions(labels=str(tmp_path / "l.csv"), columns=[column])
    with pytest.raises(CohortError, match=message):
        _read_targets(options, tmp_path / "splits.parquet", set(cases))


def test_labels_of_single_samples_are_one_where_they_agree(tmp_path, caplog):
    (tmp_path / "l.csv").write_text("case_id,sample,grade\nP1,a,II\nP1,b,II\nP2,c,III\nP9,d,II\nP9,e,III\n")
    pd.DataFrame({"case_id": ["P1", "P2", "P3"], "site": "S"}).to_parquet(tmp_path / "splits.parquet")
    options = ProbeOptions(labels=str(tmp_path / "l.csv"), columns=["grade"])
    values = _read_targets(options, tmp_path / "splits.parquet", {"P1", "P2", "P3"})["grade"].values
    assert values.to_dict() == {"II": {"P1": 1.0, "P2": 0.0}, "III": {"P1": 0.0, "P2": 1.0}}
    assert "lacks 1 of 3 patients: 'P3'" in caplog.text


def test_rejects_labels_without_variation_or_patients_and_models_of_no_fold(
    cohort, pretrained, finetuned, labels, tmp_path
):
    with pytest.raises(CohortError, match="'same' of the labels has 1 distinct"):
        run(cohort, pretrained, labels, tmp_path / "probe.csv", ["same"])
    pd.read_csv(labels).assign(case_id="nobody").to_csv(labels, index=False)
    with pytest.raises(CohortError, match="has none of the 8 patients, such as 'TCGA-AA-0000'"):
        run(cohort, pretrained, labels, tmp_path / "probe.csv", ["half"])
    with pytest.raises(CheckpointError, match="does not hold a pre-trained model of one fold"):
        run(cohort, finetuned, labels, tmp_path / "probe.csv", ["half"])
    for options, reason in (
        ({"columns": ["half"]}, "goes together"),
        ({"labels": "l", "survival": ["t"]}, "needs two"),
    ):
        with pytest.raises(ConfigError, match=reason):
            mgi.config.load_options(ProbeOptions, options)
