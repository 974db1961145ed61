"""The example configurations: each plans its whole run on inputs laid out as its comments say."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.prepare.conftest import tissue_picture, write_slide
from tests.prepare.features import write_features

from .conftest import ROOT, Workflow, counted

CASES = [f"S21.{number}" for number in range(6)]


def write_expression(folder, suffix):
    """Write a table of expression of the cases, and the positions of its genes."""
    genes = [f"GENE{number}" for number in range(50)]
    values = np.random.default_rng(0).normal(size=(len(CASES), len(genes)))
    table = pd.DataFrame(values, pd.Index(CASES, name="case_id"), genes)
    table.to_parquet(folder / "expression.parquet") if suffix == "parquet" else table.to_csv(folder / "expression.csv")
    places = pd.DataFrame({"gene_name": genes, "chromosome": "chr2", "start": range(1, 51)})
    places.to_csv(folder / "gene_positions.tsv.gz", sep="\t", index=False)


def make_fields(folder):
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for case in CASES:
        Image.fromarray(tissue_picture(200, 200)).save(folder / f"images/{case}.png")
        Image.fromarray(np.eye(200, dtype=np.uint8)).save(folder / f"masks/{case}.png")
    write_expression(folder, "parquet")


def make_slides(folder):
    (folder / "annotations").mkdir(parents=True)
    for case in CASES:
        write_slide(folder / f"slides/{case}.A.svs", tissue_picture(256, 256), 0.5)
        (folder / f"annotations/{case}.A.geojson").write_text("[]")
    write_expression(folder, "csv")


def make_series(folder):
    for case in CASES:
        (folder / "series" / case).mkdir(parents=True)
        for name in ("t1", "t1ce", "t2", "flair", "seg"):
            (folder / "series" / case / f"{case}_{name}.nii.gz").touch()
    write_expression(folder, "parquet")


def make_features(folder):
    for case in CASES:
        write_features(folder / f"features_uni_v2/{case}.A.h5")
    write_expression(folder, "csv")


MAKERS = {
    "patch-features": make_features,
    "own-fields": make_fields,
    "own-slides": make_slides,
    "brats-mri": make_series,
}


@pytest.fixture
def example(request, tmp_path):
    """The workflow of an example configuration with its inputs."""
    name = request.param
    if name in MAKERS:
        MAKERS[name](tmp_path / "resources" / name)
    return Workflow(tmp_path, ROOT / f"config/{name}.yaml")


@pytest.mark.parametrize("example", MAKERS, indirect=True)
def test_example_plans_its_whole_run(example):
    jobs = counted(example.planned())
    folds = 1 if example.config.stem == "own-fields" else 2
    assert jobs["write_page"] == 1
    if example.config.stem == "patch-features":
        assert jobs["import_features"] == 1 and jobs["pretrain"] == jobs["embed"] == 2 * folds and not jobs["finetune"]
        return
    assert jobs["finetune"] == 3 * folds and jobs["pretrain"] == folds
    assert jobs["tile_slides"] == (0 if example.config.stem == "brats-mri" else 6)


@pytest.mark.parametrize("example", [*MAKERS, "gdc-portal"], indirect=True)
def test_example_is_short_and_passes_the_lint(example):
    assert len(example.config.read_text().splitlines()) < 40
    assert "good condition" in example.run("--lint")
