"""Slides of the user's own in the workflow: fields with masks to the report, slides with outlines to their folds."""

import copy as copying
import json

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from tests.prepare.conftest import tissue_picture, write_slide

from .conftest import TINY, Workflow, counted

CASES = [f"P{number:02d}" for number in range(6)]
GENES = [f"GENE{number}" for number in range(120)]
SPLITS = "results/own/splits.parquet"


def write_expression(folder, cases):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(len(cases), len(GENES))), pd.Index(cases, name="case_id"), GENES)
    table.to_csv(folder / "expression.csv")
    genes = pd.DataFrame({"gene_name": GENES, "chromosome": "chr1", "start": range(1, len(GENES) + 1)})
    genes.to_csv(folder / "genes.tsv", sep="\t", index=False)


def make_workflow(directory, cases=CASES, **slides):
    """Return the workflow of a configuration without the GDC."""
    write_expression(directory, cases)
    config = copying.deepcopy(TINY)
    del config["simulate"], config["gdc"]
    config["cohort"] = "own"
    config["expression"] = {"table": "expression.csv", "positions": "genes.tsv", "table_unit": "z-score"}
    config["slides"] = {"mpp": 1.0, "tile_px": 64} | slides
    config["split"] = {"folds": 2, "val_fraction": 0.3}
    config["evaluate"]["variants"] = ["image-only", "mgi"]
    (directory / "own.yaml").write_text(yaml.safe_dump(config))
    return Workflow(directory, directory / "own.yaml")


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """Six fields of 300 pixels at 0.5 microns, with masks; run to the report, which reads their tiles from them."""
    folder = tmp_path_factory.mktemp("fields")
    (folder / "masks").mkdir()
    rng = np.random.default_rng(1)
    for number, case in enumerate(CASES):
        (folder / "fields" / case).mkdir(parents=True)
        pixels = rng.normal((200, 110, 175), 12, (300, 300, 3)).clip(0, 255).astype(np.uint8)
        pixels[40:200, 60:220] //= 2
        suffix = ("png", "jpg", "tif")[number % 3]
        Image.fromarray(pixels).save(folder / "fields" / case / f"{case}_he.{suffix}")
        mask = np.zeros((300, 300), np.uint8)
        mask[40:200, 60:220] = 255
        Image.fromarray(mask).save(folder / "masks" / f"{case}_he_mask.png")
    workflow = make_workflow(
        folder, folder="fields", case_pattern="([^/]+)/", annotations="masks", default_mpp=0.5, partial_tiles=True,
        min_tissue=0, store="coordinates",
    )  # fmt: skip
    return workflow, workflow.run()


def test_fields_with_masks_run_to_the_report(fields):
    workflow, text = fields
    sources = pd.read_parquet(workflow.directory / "results/own/sources.parquet")
    assert (sources.status == "ok").all() and sources.case_id.tolist() == CASES
    assert sources.labelled.all() and sources.has_tumour.all() and set(sources.n_images) == {9}
    assert (sources.untiled_tumour_px == 0).all() and set(sources.mpp_from) == {"default"}
    tables = workflow.directory.glob("results/own/images/P??_he.parquet")
    assert sum(pd.read_parquet(path).image.isna().sum() for path in tables) == 9 * len(CASES)
    assert (workflow.directory / "results/own/report/index.html").exists()
    assert "Dice by patient" in text and "Nothing to be done" in workflow.run()


def test_only_the_slide_that_changed_is_tiled_again(fields):
    workflow, _ = fields
    mask = workflow.directory / "masks/P01_he_mask.png"
    Image.fromarray(np.eye(300, dtype=np.uint8)).save(mask)
    (job,) = [job for job in workflow.planned(SPLITS) if job.rule == "tile_slides"]
    assert job.wildcards["source"] == "P01_he"


@pytest.fixture
def scans(tmp_path):
    """Six slides in a folder with QuPath's outlines, and a table that states their cases, sites and mpp."""
    tumour = {"type": "Polygon", "coordinates": [[[100, 100], [400, 100], [400, 300], [100, 300], [100, 100]]]}
    feature = {"type": "Feature", "geometry": tumour, "properties": {"classification": {"name": "Tumor"}}}
    rows = []
    for number, case in enumerate(CASES):
        write_slide(tmp_path / "scans" / f"S21.{number}.A.svs", tissue_picture(512, 512), None if number else 1.0)
        (tmp_path / "scans" / f"S21.{number}.A.geojson").write_text(json.dumps([feature]))
        rows.append(f"{case},S21.{number}.A.svs,{'' if number == 0 else 1.0},S21.{number}.A.geojson,site{number}")
    (tmp_path / "scans/slides.csv").write_text("\n".join(["case_id,slide,mpp,annotation,site", *rows]) + "\n")
    return make_workflow(tmp_path, table="scans/slides.csv", coordinates=True)


def test_slides_with_outlines_run_to_their_folds(scans):
    by_site = scans.with_config(lambda config: config["split"].update(by="site"))
    by_site.run(SPLITS)
    sources = pd.read_parquet(scans.directory / "results/own/sources.parquet")
    sites = [f"site{number}" for number in range(6)]
    assert sources.case_id.tolist() == CASES and sources.site.tolist() == sites
    assert sources.mpp_from.tolist() == ["metadata", *["table"] * 5] and (sources.tumour_px == 300 * 200).all()
    splits = pd.read_parquet(scans.directory / SPLITS)
    written = scans.directory.glob("results/own/coordinates/*/*.h5")
    assert sorted(path.name for path in written) == [f"S21.{number}.A_patches.h5" for number in range(6)]
    assert set(splits.site) == set(sites) and splits.paired.all()
    # A row for another case does not tile these again.
    table = scans.directory / "scans/slides.csv"
    write_slide(scans.directory / "scans/new.svs", tissue_picture(512, 512), 1.0)
    table.write_text(table.read_text() + "P06,new.svs,,,\n")
    assert [job.wildcards["source"] for job in by_site.planned(SPLITS) if job.rule == "tile_slides"] == ["new"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "scans/S21.1.A.svs").unlink(), "1 files that scans/slides.csv names are not there"),
        (lambda folder: write_expression(folder, ["Q1"]), "no case has both images and expression"),
    ],
)
def test_what_would_fail_is_refused_while_planning(scans, change, message):
    change(scans.directory)
    assert message in scans.refusal("--dry-run")


def test_cases_without_expression_are_named_while_planning(scans):
    write_expression(scans.directory, CASES[:4])
    done = scans.snakemake("--dry-run", SPLITS)
    assert done.returncode == 0 and "2 of 6 cases with images have no expression: 'P04', 'P05'" in done.stdout


def test_star_counts_of_the_gdc_go_with_own_slides(scans):
    def change(config):
        config["gdc"] = {"projects": ["TCGA-AA"]}
        config["expression"] = {}

    jobs = counted(scans.with_config(change).planned(SPLITS))
    assert jobs["query"] == 1 and jobs["tile_slides"] == 6 and jobs["fetch_slides"] == 0
