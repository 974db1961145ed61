"""Training by two processes: the loss and gradient of the global batch, and one set of files."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mgi.errors import MissingInputError
from mgi.train.distributed import Ranks
from mgi.train.launch import launch
from tests.conftest import ROOT
from tests.tables import TINY

COMMON = TINY | {"steps": 2, "gene_dropout": 0.0, "intensity_jitter": 0.2}
SETTINGS = {
    # Three patients, and so shares of two and of one.
    "pretrain": COMMON | {"embed_dim": 8, "batch_patients": 3, "images_per_patient": 2},
    "images": COMMON | {"embed_dim": 8, "batch_patients": 3, "images_per_patient": 2, "bags": False},
    "finetune": COMMON | {"channels": [8, 8, 16], "batch_images": 5, "lr": 1e-3, "patient_dropout": 0.4},
}


@pytest.fixture(scope="module")
def runs(cohort, tmp_path_factory):
    """The folders of one process and of two."""
    folders = []
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"by{processes}")
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if processes == 2 else []
        command = [sys.executable, *launcher, str(ROOT / "tests" / "train" / "ranks.py"), json.dumps(SETTINGS)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, str(cohort.folder), str(folder)], capture_output=True, text=True, env=environment, timeout=240
        )
        assert done.returncode == 0, done.stderr[-3000:]
        folders.append(folder)
    return folders


@pytest.mark.parametrize("stage", SETTINGS)
def test_two_processes_have_the_loss_and_gradient_of_one(stage, runs):
    alone = torch.load(runs[0] / "rank0.pt")[stage]
    for rank in (0, 1):
        together = torch.load(runs[1] / f"rank{rank}.pt")[stage]
        assert together.keys() == alone.keys()
        for name in alone:
            torch.testing.assert_close(together[name], alone[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stage", SETTINGS)
def test_first_process_writes_what_one_process_writes(stage, runs):
    alone, together = (folder / stage for folder in runs)
    assert {path.name for path in together.iterdir()} == {path.name for path in alone.iterdir()}
    expected, found = load_file(alone / "model.safetensors"), load_file(together / "model.safetensors")
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("count", "world"), [(5, 2), (3, 3), (8, 3), (2, 1)])
def test_shares_are_contiguous_and_complete(count, world):
    parts = [np.arange(count)[Ranks(rank, world).share(count)] for rank in range(world)]
    assert np.concatenate(parts).tolist() == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_processes_of_two_machines_meet(cohort, tmp_path):
    inputs = [f"--{name}={cohort.folder / f'{name}.parquet'}" for name in ("sources", "expression", "splits")]
    options = json.dumps(SETTINGS["images"] | {"steps": 1})
    command = ["mgi", "launch", "--nodes=2", "pretrain", *inputs, f"--options={options}", "-o", str(tmp_path / "out")]
    job = {"SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1", "SLURM_JOB_ID": str(os.getpid())}
    environment = os.environ | job | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    machines = [
        subprocess.Popen([sys.executable, "-m", *command], env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    errors = [machine.communicate(timeout=240)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], errors
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_failure_of_a_process_is_one_sentence(tmp_path, capfd):
    missing = [f"--{name}={tmp_path}/{name}.parquet" for name in ("sources", "expression", "splits")]
    assert launch(1, 1, ["pretrain", *missing, "-o", str(tmp_path / "out")]) == 1
    errors = capfd.readouterr().err
    assert "splits.parquet" in errors and "Traceback" not in errors


def test_rejects_several_machines_without_srun(monkeypatch):
    monkeypatch.delenv("SLURM_LAUNCH_NODE_IPADDR", raising=False)
    with pytest.raises(MissingInputError, match="srun --nodes=3"):
        launch(1, 3, ["pretrain"])
