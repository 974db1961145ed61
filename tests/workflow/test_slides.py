"""Slides that are deleted once they are tiled: how many are on the disk, and what survives a failed fetch."""

import copy as copying
import re

import pytest
import yaml

from mgi.acquire.manifest import SLIDES, read_manifest

from .conftest import TINY, Workflow

STARTED = re.compile(r"^localrule (fetch_slides|tile_slides):", re.MULTILINE)
TABLES = ("results/tiny/sources.parquet", "results/tiny/expression.parquet")


@pytest.fixture(scope="module")
def passing(tmp_path_factory):
    """A small cohort whose slides come and go one by one, and the output of Snakemake."""
    changed = copying.deepcopy(TINY)
    changed["simulate"]["cases"] = 4
    changed["slides"] |= {"keep_slides": False, "per_job": 1, "in_flight": 1}
    changed["gdc"]["files_per_job"] = 3
    directory = tmp_path_factory.mktemp("passing")
    (directory / "passing.yaml").write_text(yaml.safe_dump(changed))
    workflow = Workflow(directory, directory / "passing.yaml")
    return workflow, workflow.run(*TABLES)


def test_no_slide_is_fetched_before_the_one_before_it_is_tiled(passing):
    workflow, text = passing
    manifest = read_manifest(workflow.directory / "resources/gdc/TCGA-SIM/manifest.parquet")
    assert STARTED.findall(text) == ["fetch_slides", "tile_slides"] * int((manifest.data_type == SLIDES).sum())


def test_tiled_slides_are_gone_and_not_missed(passing):
    workflow, _ = passing
    assert list((workflow.directory / "resources/gdc").rglob("*.svs")) == []
    assert len(list(workflow.directory.glob("results/tiny/images/*.status.parquet"))) >= 4
    assert "Nothing to be done" in workflow.run(*TABLES)


def test_another_source_fetches_nothing_again(passing):
    workflow, _ = passing
    elsewhere = workflow.with_config(lambda config: config["gdc"].update(mirrors=["/mnt"], workers=2))
    assert "Nothing to be done" in elsewhere.run(*TABLES)


def test_small_files_are_fetched_so_many_per_job(passing):
    workflow, _ = passing
    receipts = sorted((workflow.directory / "resources/gdc/TCGA-SIM/receipts/expression").glob("?.tsv"))
    assert [len(receipt.read_text().splitlines()) - 1 for receipt in receipts] == [3, 1]


def test_failed_fetch_keeps_what_it_has_and_its_status(passing):
    workflow, _ = passing
    manifest = read_manifest(workflow.directory / "resources/gdc/TCGA-SIM/manifest.parquet")
    slides = manifest[manifest.data_type == SLIDES]
    first, second = slides.iloc[0], slides.iloc[1]
    served = workflow.directory / "resources/simulated/data" / second.file_id / second.file_name
    away = served.rename(served.with_suffix(".away"))
    together = workflow.with_config(lambda config: config["slides"].update(per_job=2))
    name = first.aliquot
    try:
        text = together.snakemake(f"results/tiny/images/{name}.parquet", "--forcerun", "fetch_slides").stdout
    finally:
        away.rename(served)
    resources = workflow.directory / "resources/gdc/TCGA-SIM"
    assert "1 of 2 files could not be fetched" in text
    assert not (resources / "slides" / name).exists()
    assert (resources / "partial" / first.file_id / first.file_name).stat().st_size == first["size"]
    status = (resources / f"receipts/slides/{name}.status.tsv").read_text()
    assert re.search(rf"{second.file_id}\t.*\tfailed\t.*\(404\)", status)
