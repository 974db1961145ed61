"""Tables of predictions and embeddings with damaged bytes or odd values: only the project's own errors come out."""

import contextlib

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mgi.config import EvaluateOptions
from mgi.errors import MGIError, MissingInputError
from mgi.evaluate.retrieval import retrieval_table, write_embeddings
from mgi.evaluate.segmentation import summarise
from tests.evaluate.predictions import prediction_row, square_mask, write_predictions
from tests.fuzzing import check_damaged

CASES = [f"P{k}" for k in range(6)]
OPTIONS = EvaluateOptions(bootstrap_samples=100)


def test_predictions(tmp_path):
    mask = square_mask(2, 2, 4)
    rows = [prediction_row(f"P{k}", mask, mask) for k in range(3)]
    valid = write_predictions(tmp_path / "valid.parquet", rows).read_bytes()
    out = tmp_path / "summary.json"
    check_damaged(lambda path: summarise([path], out, bootstrap_samples=10), valid, tmp_path / "predictions.parquet")


@pytest.fixture
def embeddings(tmp_path):
    path = tmp_path / "mgi" / "fold0" / "embeddings.parquet"
    path.parent.mkdir(parents=True)
    vectors = np.random.default_rng(0).normal(size=(6, 4))
    frame = pd.DataFrame({"case_id": CASES, "source_id": CASES, "x": 0, "y": 0, "z": 0})
    write_embeddings(0, [frame], vectors, (CASES, vectors), (CASES, vectors), path)
    return path


def read(path):
    retrieval_table([path], path.parent / "retrieval.csv", OPTIONS)


def test_embeddings(embeddings):
    check_damaged(read, embeddings.read_bytes(), embeddings)


ODD = {
    "case_id": [pa.nulls(18, pa.string()), pa.array(range(18)), pa.array([["A"]] * 18)],
    "fold": [pa.nulls(18, pa.int32()), pa.array(["0"] * 18), pa.array([2**62] * 18)],
    "kind": [pa.nulls(18, pa.string()), pa.array(["x"] * 18), pa.array(["image"] * 18).dictionary_encode()],
    "vector": [
        pa.nulls(18, pa.list_(pa.float32())),
        pa.array(["v"] * 18),
        pa.array([1.0] * 18),
        pa.array([[]] * 18, pa.list_(pa.float32())),
        pa.array([[1.0] * (k + 1) for k in range(18)]),
        pa.array([[None] * 4] * 18, pa.list_(pa.float32())),
        pa.array([[float("nan")] * 4] * 18),
        pa.array([["a"] * 4] * 18),
        pa.array([[[1.0]] * 4] * 18),
        pa.array([[0.0] * 4] * 18),
    ],
}


@pytest.mark.parametrize("name", ODD)
def test_embeddings_of_odd_types(embeddings, name):
    table = pq.read_table(embeddings)
    for values in ODD[name]:
        changed = table.set_column(table.schema.get_field_index(name), name, values)
        pq.write_table(changed, embeddings)
        with contextlib.suppress(MGIError):
            read(embeddings)


@pytest.mark.parametrize("values", ODD["vector"][:-1])
def test_refuses_vectors_that_are_none(embeddings, values):
    table = pq.read_table(embeddings)
    pq.write_table(table.set_column(table.schema.get_field_index("vector"), "vector", values), embeddings)
    with pytest.raises(MissingInputError, match="holds no embeddings"):
        read(embeddings)
