"""Brain MRI in the workflow: what is imported again, and what is refused before anything runs."""

import os

import numpy as np
import pytest
from PIL import Image

from .conftest import ROOT, Workflow, make_mri_inputs

NAME = "TCGA_CS_4941_19960909"
TABLE = "results/tcga-lgg-mri/images/mri.parquet"


@pytest.fixture
def imported(tmp_path):
    """Five series of two slices, imported; the folder is the first's."""
    make_mri_inputs(tmp_path)
    folder = tmp_path / "resources/kaggle_3m" / NAME
    workflow = Workflow(tmp_path, ROOT / "config/tcga-lgg-mri.yaml")
    workflow.run(TABLE)
    return workflow, folder


def test_corrected_mask_is_imported_again(imported):
    workflow, folder = imported
    assert "Nothing to be done" in workflow.run(TABLE)
    mask = folder / f"{NAME}_2_mask.tif"
    before = mask.stat()
    Image.fromarray(np.full((64, 64), 255, np.uint8)).save(mask)
    assert mask.stat().st_size == before.st_size
    assert [job.rule for job in workflow.planned(TABLE)] == ["import_mri"]


def test_correction_older_than_the_import_is_noticed(imported):
    workflow, folder = imported
    os.utime(folder / f"{NAME}_1_mask.tif", (1e9, 1e9))
    assert [job.rule for job in workflow.planned(TABLE)] == ["import_mri"]


def test_note_beside_the_series_imports_nothing_again(imported):
    workflow, folder = imported
    (folder.parent / "data.csv").touch()
    assert "Nothing to be done" in workflow.run(TABLE)


def test_folder_without_a_series_is_refused_while_planning(imported):
    workflow, folder = imported
    folder.parent.rename(workflow.directory / "elsewhere")
    folder.parent.mkdir()
    assert "resources/kaggle_3m" in workflow.refusal("--dry-run")


def test_series_is_predicted_by_its_name(imported):
    workflow, folder = imported
    jobs = workflow.planned(f"results/tcga-lgg-mri/predict/image-only/{NAME}")
    (job,) = [job for job in jobs if job.rule == "predict"]
    assert f"{folder.relative_to(workflow.directory)}, results/tcga-lgg-mri/finetune/image-only/all/" in job.text
    refused = workflow.snakemake("--dry-run", "results/tcga-lgg-mri/predict/mgi/TCGA_CS_0000")
    assert refused.returncode == 1 and f"has no series 'TCGA_CS_0000'; it has '{NAME}'" in refused.stdout
