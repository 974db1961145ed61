"""Model folders, states and tables of folds with damaged bytes: only the project's own errors come out."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mgi.tables import SPLITS_SCHEMA
from mgi.train import checkpoint
from mgi.train.data import read_roles
from mgi.train.resume import LAST, read_state
from tests.fuzzing import check_damaged


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_model_folder(finetuned, tmp_path, name):
    for path in filter(Path.is_file, finetuned.iterdir()):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    valid = (tmp_path / name).read_bytes()
    # The weights themselves may be anything; what describes them comes first.
    check_damaged(lambda path: checkpoint.load(path.parent), valid, tmp_path / name, examples=40)


def test_state_of_a_run(tmp_path):
    buffer = io.BytesIO()
    torch.save({"identity": {}, "step": 3, "model": {"weight": torch.ones(4)}}, buffer)
    check_damaged(lambda path: read_state(path, {}, torch.device("cpu")), buffer.getvalue(), tmp_path / LAST)


def test_table_of_folds(tmp_path):
    rows = [{"case_id": f"P{k}", "fold": k % 2, "role": "train", "site": None} for k in range(4)]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, SPLITS_SCHEMA), buffer)
    check_damaged(lambda path: read_roles(path, "0"), buffer.getvalue(), tmp_path / "splits.parquet")
