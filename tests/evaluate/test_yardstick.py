"""The ridge yardstick: against least squares, and on a cohort whose images tell the genes."""

import numpy as np
import pandas as pd
import pytest

from mgi.errors import CohortError
from mgi.evaluate.yardstick import PENALTIES, embed_by_ridge, fit_components, fit_ridge
from mgi.train.profiles import read_profiles
from tests.tables import CASES, IMAGES, UNPAIRED


def test_ridge_equals_least_squares_at_the_penalty_that_leave_one_out_chooses():
    random = np.random.default_rng(0)
    targets, mixing = random.normal(size=(9, 3)), random.normal(size=(3, 7))
    counts = random.integers(2, 6, 9)
    patient = np.repeat(np.arange(9), counts)
    x = targets[patient] @ mixing + 3 * random.normal(size=(len(patient), 7))
    weights = (1 / counts)[patient]

    def fit(keep, penalty):
        # Ridge as least squares with a row for each feature.
        rows = np.concatenate([x[keep] * weights[keep, None] ** 0.5, (9 * penalty) ** 0.5 * np.eye(7)])
        wanted = np.concatenate([targets[patient[keep]] * weights[keep, None] ** 0.5, np.zeros((7, 3))])
        return np.linalg.lstsq(rows, wanted)[0]

    found = []
    for penalty in PENALTIES:
        reciprocal = []
        for left_out in range(9):
            predicted = x[patient == left_out] @ fit(patient != left_out, penalty)
            cosine = predicted @ (targets / np.linalg.norm(targets, axis=1, keepdims=True)).T
            reciprocal += [1 / (row >= row[left_out]).sum() for row in cosine]
        found.append(np.mean(reciprocal))
    expected = fit(np.ones(len(patient), dtype=bool), PENALTIES[int(np.argmax(found))])
    np.testing.assert_allclose(fit_ridge(x, targets, patient), expected, rtol=1e-8, atol=1e-10)


def test_components_are_white_over_the_training_patients(cohort):
    train = [case for case in CASES[:6] if case != UNPAIRED]
    components = fit_components(read_profiles(cohort.expression), train)(train)
    np.testing.assert_allclose(components.T @ components / 5, np.eye(4), atol=1e-8)


def test_embeddings_are_those_of_the_paired_test_patients_in_the_form_of_embed(cohort, tmp_path):
    embed_by_ridge(cohort.sources, cohort.expression, cohort.splits, 0, tmp_path / "e.parquet")
    table = pd.read_parquet(tmp_path / "e.parquet")
    assert table.groupby("kind").size().to_dict() == {"gene": 2, "image": 2 * IMAGES, "patient": 2}
    assert set(table.case_id) == set(CASES[6:]) and set(table.fold) == {0}
    np.testing.assert_allclose(np.linalg.norm(np.stack(table.vector), axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(("train", "refused"), [(CASES[:2], False), (CASES[2:4], True)])
def test_two_training_patients_are_enough_and_one_is_not(train, refused, cohort, tmp_path):
    splits = pd.read_parquet(cohort.splits)
    splits["role"] = ["test" if case in CASES[6:] else "train" if case in train else "val" for case in splits.case_id]
    splits.to_parquet(tmp_path / "splits.parquet")
    arguments = (cohort.sources, cohort.expression, tmp_path / "splits.parquet", 0, tmp_path / "e.parquet")
    if refused:
        with pytest.raises(CohortError, match="1 training patients with images and expression; 2 are needed"):
            embed_by_ridge(*arguments)
    else:
        embed_by_ridge(*arguments)
        vectors = np.stack(pd.read_parquet(tmp_path / "e.parquet").vector)
        assert vectors.shape == (2 * IMAGES + 4, 1) and np.isfinite(vectors).all()
