"""The doctor: what is missing is named with its fix, before a run."""

import importlib.metadata
import json
import os
import stat
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from mgi import doctor
from mgi.acquire.manifest import EXPRESSION, SLIDES
from mgi.check import check_configuration
from mgi.cli import app
from mgi.errors import MGIError
from mgi.findings import FAIL, PASS, WARN
from mgi.simulate.cohort import RELEASE
from tests.conftest import ROOT
from tests.prepare.conftest import tissue_picture, write_manifest, write_slide
from tests.prepare.features import write_features
from tests.prepare.nifti import brain, write_nifti


def states(config=None) -> dict[str, tuple[str, str]]:
    return {found.subject: (found.state, f"{found.found}; {found.fix}") for found in doctor.examine(config)}


def configured(folder, **changes):
    raw = yaml.safe_load(Path("config/config.yaml").read_text())
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(raw | changes))
    return path


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A function that puts a program on an otherwise empty PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def put(name: str, prints: str) -> None:
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{prints}'\n")
        (tmp_path / name).chmod(stat.S_IRWXU)

    return put


def test_the_machine_that_runs_these_tests_lacks_nothing_needed(tmp_path):
    found = states(configured(tmp_path))
    assert not [subject for subject, (state, _) in found.items() if state == FAIL]
    assert found["packages"][0] == found["timm"][0] == found["device"][0] == PASS


def test_a_package_of_another_version_fails_with_the_fix(monkeypatch):
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.1" if name == "timm" else version(name))
    state, text = states()["packages"]
    assert state == FAIL and "timm is 0.1, not" in text and "pip install --no-deps -r requirements.lock" in text


def test_a_native_library_that_does_not_load_fails_with_its_reason(monkeypatch):
    def broken(name):
        raise OSError("libopenslide.so.1: cannot open shared object file")

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    assert doctor._check_native("openslide", "openslide-bin").state == FAIL
    assert "libopenslide" in doctor._check_native("openslide", "openslide-bin").found


def test_conda_and_slurm_are_optional(program):
    assert states()["conda"][0] == states()["slurm"][0] == WARN
    program("conda", "conda 4.12.0")
    assert states()["conda"][0] == WARN
    program("conda", "conda 24.11.3")
    program("sbatch", "slurm 22.05.8")
    assert states()["conda"] == (PASS, "24.11.3; ") and states()["slurm"] == (PASS, "slurm 22.05.8; ")


def test_inputs_that_are_not_there_are_named_by_their_key(tmp_path):
    path = configured(tmp_path, mri={"folder": str(tmp_path / "none")}, slides=None)
    assert states(path)["mri.folder"][0] == FAIL and "'LGG MRI Segmentation'" in states(path)["mri.folder"][1]
    state, text = states(configured(tmp_path, expression={"table": "gone.csv", "positions": "p.tsv"}))[
        "expression.table"
    ]
    assert state == FAIL and "gone.csv does not exist" in text


def test_an_invalid_configuration_fails_with_its_sentence(tmp_path):
    state, text = states(configured(tmp_path, sede=1))["configuration"]
    assert state == FAIL and "did you mean 'seed'?" in text


def test_more_threads_than_cores_is_a_warning(tmp_path):
    state, text = states(configured(tmp_path, threads=4096))["device"]
    assert state == WARN and "4096 threads" in text


def test_training_on_cuda_without_a_device_fails_with_the_fix(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    state, text = states(configured(tmp_path, device="cuda"))["models"]
    assert state == FAIL and "torch sees no CUDA device here" in text and "set 'device: cpu'" in text


@pytest.mark.parametrize(("genes", "state"), [("matched", FAIL), ("none", PASS)])
def test_only_variants_with_genes_need_the_kernel_on_cuda(tmp_path, monkeypatch, genes, state):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda on: None)
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.selective_scan_interface", ModuleType("interface"))
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", None)
    monkeypatch.setitem(sys.modules, "triton", None)
    evaluate = {"variants": ["one"], "reference": "one"}
    finetune = {"one": {"genes": genes, "pretrained": False}}
    path = configured(tmp_path, device="cuda", finetune=finetune, evaluate=evaluate)
    found = states(path)["models"]
    assert found[0] == state and ("selective_scan_cuda" in found[1]) == (state == FAIL)


@pytest.mark.parametrize(("numba", "state"), [(True, PASS), (False, WARN)])
def test_names_the_path_of_the_scan(tmp_path, monkeypatch, numba, state):
    if not numba:
        monkeypatch.setitem(sys.modules, "numba", None)
    found = states(configured(tmp_path))["scan"]
    assert found[0] == state and ("fused scan in Numba" in found[1]) == numba and ("install numba" in found[1]) != numba


@pytest.mark.parametrize(
    ("module", "subject", "changes"),
    [
        ("torch", "device", {"device": "cuda"}),
        ("mgi.prepare.series", "mri.folder", {"mri": {"folder": "m"}, "slides": None}),
        ("mgi.acquire.gdc", "gdc.api_url", {"simulate": None, "gdc": {"projects": ["TCGA-SIM"]}}),
    ],
)
def test_a_package_that_does_not_import_is_a_finding(tmp_path, monkeypatch, module, subject, changes):
    monkeypatch.setitem(sys.modules, module, None)
    state, text = states(configured(tmp_path, **changes))[subject]
    assert state == FAIL and module in text and "pip install --no-deps -r requirements.lock" in text


def test_the_cpu_is_examined_without_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert states(configured(tmp_path))["device"][0] == PASS


def test_slides_of_idc_need_its_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "idc_index", None)
    gdc = {"projects": ["TCGA-SIM"], "api_url": "http://127.0.0.1:9"}
    path = configured(tmp_path, simulate=None, gdc=gdc, slides={"fetch_from": "idc"})
    state, text = states(path)["slides.fetch_from"]
    assert state == FAIL and "pip install idc-index" in text


def test_the_gdc_is_asked_and_a_readable_token_refused(tmp_path):
    folder = tmp_path / "sim"
    folder.mkdir()
    for name, text in {
        "status.json": f'{{"data_release": "{RELEASE}"}}',
        "files.json": "[]",
        "manifest.tsv": "",
    }.items():
        (folder / name).write_text(text)
    token = tmp_path / "token"
    token.write_text("secret")
    os.chmod(token, 0o644)
    gdc = {"projects": ["TCGA-SIM"], "token_file": str(token), "mirrors": [str(tmp_path / "gone")]}
    path = configured(tmp_path, simulate=None, gdc=gdc | {"api_url": f"local:{folder}"}, split={})
    found = states(path)
    assert [one.state for one in doctor.examine(path) if one.subject == "gdc.token_file"] == [FAIL]
    assert found["gdc.api_url"] == (PASS, f"local:{folder}; ")
    assert "chmod 600" in found["gdc.token_file"][1] and "secret" not in str(found)
    assert found["gdc.mirrors"][0] == FAIL
    state, text = states(configured(tmp_path, simulate=None, gdc=gdc | {"api_url": "http://127.0.0.1:9"}))[
        "gdc.api_url"
    ]
    assert state == FAIL and "the connection failed" in text


@pytest.mark.usefixtures("program")
def test_the_command_prints_a_line_each_and_exits_with_1_on_a_failure(tmp_path):
    result = CliRunner().invoke(app, ["doctor", "--config", str(configured(tmp_path, sede=1))])
    assert result.exit_code == 1
    assert [line[:4] for line in result.stdout.splitlines()] == [PASS] * 5 + [WARN] * 2 + [FAIL]


def outlined(name: str) -> str:
    """Return a square of a class as GeoJSON."""
    square = {"type": "Polygon", "coordinates": [[[64, 64], [64, 192], [192, 192], [64, 64]]]}
    return json.dumps({"type": "Feature", "geometry": square, "properties": {"classification": {"name": name}}})


@pytest.fixture
def own_slides(tmp_path, monkeypatch):
    """A configuration of five own slides, of which one is damaged and one states no mpp, and expression of four."""
    monkeypatch.chdir(tmp_path)
    for number in range(5):
        path = write_slide(tmp_path / f"slides/P{number}.svs", tissue_picture(256, 256), 0.5 if number else None)
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / f"annotations/P{number}.geojson").write_text(outlined("Tumor"))
    path.write_bytes(b"\0" * 100)
    (tmp_path / "e.csv").write_text("case_id,TP53,EGFR\n" + "".join(f"P{number},1.5,-2\n" for number in range(1, 6)))
    (tmp_path / "g.tsv").write_text("gene_name\tchromosome\tstart\nTP53\tchr17\t5\nEGFR\tchr7\t9\n")
    raw = yaml.safe_load((ROOT / "config/own-slides.yaml").read_text())
    raw["expression"] = {"table": "e.csv", "positions": "g.tsv", "table_unit": "z-score"}
    raw["slides"] = {"folder": "slides", "annotations": "annotations", "mpp": 1.0, "tile_px": 128}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(raw))
    return tmp_path / "own.yaml"


def test_every_own_slide_is_opened(own_slides):
    found = [(one.state, one.found) for one in doctor.examine(own_slides) if one.subject in ("slides", "inputs")]
    assert found[0] == (PASS, "5 slides of 5 cases; 5 have an annotation")
    assert found[1][0] == WARN and found[1][1].startswith("1 of 5 will be left out, 'P0': no mpp: its metadata state")
    assert found[2] == (WARN, "1 of 5 will be left out, 'P4': unreadable: not a slide that OpenSlide reads")
    assert found[3] == (FAIL, "3 labelled patients are too few for 2 folds with a test, a val and a training patient "
                        "each: 4 are needed; label more, or ask for fewer folds")  # fmt: skip
    # The one without expression is tested in one fold, whose val patient is then a paired one.
    assert found[4][0] == FAIL and len(found) == 5
    assert found[4][1].startswith("4 patients with both images and expression are too few for 2 folds that each")


def test_slides_without_tumour_or_annotation_are_named(own_slides, tmp_path):
    for number in (1, 2):
        (tmp_path / f"annotations/P{number}.geojson").write_text(outlined("Stroma"))
    (tmp_path / "annotations/P3.geojson").rename(tmp_path / "annotations/P33.qpdata")
    found = [one for one in doctor.examine(own_slides) if one.subject == "slides"]
    assert found[0].found == "5 slides of 5 cases; 4 have an annotation"
    assert found[1].state == WARN and "{slide}.geojson" in found[1].fix
    assert found[1].found == (
        "1 of 5 have no annotation, pre-training alone uses them: 'P3'; 1 files in annotations are named after no "
        "slide: 'P33.qpdata'"
    )
    (bare,) = (one for one in found if "without tumour" in one.found)
    assert bare.state == WARN and "slides.tumour_classes" in bare.fix
    assert bare.found == "2 of 5 are annotated without tumour, 'P1', 'P2': the first has 'Stroma'"


def test_annotations_of_own_slides_are_read(own_slides, tmp_path):
    outline = {"type": "Polygon", "coordinates": [[[5000, 5000], [5000, 5100], [5100, 5100], [5000, 5000]]]}
    for number in (1, 2):
        (tmp_path / f"annotations/P{number}.geojson").write_text(json.dumps(outline))
    found = [one.found for one in doctor.examine(own_slides) if one.subject == "slides"]
    (said,) = (text for text in found if "annot" not in text and "off the slide" in text)
    assert said.startswith("2 of 5 will be left out, 'P1', 'P2': off the slide: P1.geojson spans x 5000 to 5100")


def test_every_file_of_features_is_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(8):
        path = write_features(tmp_path / f"features/P{number}.h5", seed=number)
    path.write_bytes(b"x")
    (tmp_path / "e.csv").write_text("case_id,TP53,EGFR\n" + "".join(f"P{number},1.5,-2\n" for number in range(1, 8)))
    (tmp_path / "g.tsv").write_text("gene_name\tchromosome\tstart\nTP53\tchr17\t5\nEGFR\tchr7\t9\n")
    raw = yaml.safe_load((ROOT / "config/patch-features.yaml").read_text()) | {"features": {"folder": "features"}}
    raw["expression"] = {"table": "e.csv", "positions": "g.tsv", "table_unit": "z-score"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(raw))

    def find() -> list[tuple[str, str]]:
        found = doctor.examine(tmp_path / "own.yaml")
        return [(one.state, one.found) for one in found if one.subject in ("features", "inputs", "models")]

    first, damaged, unpaired, models = find()
    assert first == (PASS, "8 files of features, of 8 cases") and models == (PASS, "2 can be built")
    assert damaged[0] == WARN and damaged[1].startswith("1 of 8 files of features will be left out, 'P7': unreadable")
    assert unpaired == (WARN, "1 of 8 cases with images have no expression: 'P0'")
    with pytest.raises(MGIError, match="3 paired patients are too few for 2 folds with a test, a val and a training"):
        for number in (3, 4, 5):
            (tmp_path / f"features/P{number}.h5").unlink()
        check_configuration(tmp_path / "own.yaml")
    for path in (tmp_path / "features").iterdir():
        path.write_bytes(b"x")
    assert (FAIL in dict(find())) and "none of 5 files of features can be used" in str(find())


@pytest.fixture
def own_mri(tmp_path, monkeypatch):
    """A configuration of six patients' NIfTI, of which the test spoils some."""
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        write_nifti(tmp_path / f"series/P{number}", f"P{number}", brain())
    (tmp_path / "e.csv").write_text("case_id,TP53,EGFR\n" + "".join(f"P{number},1.5,-2\n" for number in range(1, 6)))
    (tmp_path / "g.tsv").write_text("gene_name\tchromosome\tstart\nTP53\tchr17\t5\nEGFR\tchr7\t9\n")
    raw = yaml.safe_load((ROOT / "config/brats-mri.yaml").read_text())
    raw["expression"] = {"table": "e.csv", "positions": "g.tsv", "table_unit": "z-score"}
    raw["mri"]["folder"] = "series"
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(raw))
    return tmp_path / "own.yaml"


def describe(config):
    return [(one.state, one.found) for one in doctor.examine(config) if one.subject in ("mri.folder", "inputs")]


def test_every_series_is_opened_and_paired(own_mri, tmp_path):
    assert describe(own_mri) == [
        (PASS, "series: 6 series"),
        (WARN, "1 of 6 cases with images have no expression: 'P0'"),
    ]
    (tmp_path / "series/P1/P1_t1ce.nii.gz").unlink()
    write_nifti(tmp_path / "series/P2", "P2", {"flair": np.ones((8, 8, 3), np.int16)})
    found = describe(own_mri)
    assert (
        WARN,
        "1 of 6 will be left out, 'P1': missing sequence: no file of t1ce; it has flair, seg, t1, t2",
    ) in found
    (grids,) = (text for _, text in found if "grids differ" in text)
    assert grids.startswith("1 of 6 will be left out, 'P2': grids differ: P2_flair.nii.gz has (8, 8, 3) voxels")
    (tmp_path / "series/P3/P3_seg.nii.gz").unlink()
    assert (
        describe(own_mri)[-2][0] == FAIL and "3 labelled patients are too few for 2 folds" in describe(own_mri)[-2][1]
    )


def test_labels_that_no_series_has_are_told(own_mri):
    raw = yaml.safe_load(own_mri.read_text())
    raw["mri"]["labels"] = [9]
    own_mri.write_text(yaml.safe_dump(raw))
    found = [one for one in doctor.examine(own_mri) if one.subject == "mri.folder"]
    assert (
        found[1].fix == "correct mri.labels if that is not so" and "6 of 6 are annotated without tum" in found[1].found
    )
    assert found[2].state == FAIL and "0 labelled patients have tumour" in found[2].found


def test_cases_of_series_that_no_expression_has_are_refused(own_mri, tmp_path):
    (tmp_path / "e.csv").write_text("case_id,TP53,EGFR\nQ1,1.5,-2\n")
    assert describe(own_mri)[-1][0] == FAIL and "no case has both images and expression" in describe(own_mri)[-1][1]


def test_pinned_files_are_counted_in_the_mirrors(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror/a.svs").write_text("a")
    (tmp_path / "mirror/00000000-0000-4000-8000-000000000001").mkdir()
    part = tmp_path / "mirror/00000000-0000-4000-8000-000000000001/b.svs.partial"
    part.write_text("b")
    path = tmp_path / "resources/gdc/TCGA-SIM/manifest.parquet"
    path.parent.mkdir(parents=True)
    rows = [{"file_name": name, "data_type": SLIDES, "case_id": "TCGA-S1-0001"} for name in ("a.svs", "b.svs")]
    # The configuration has a table of expression and reads none of these.
    rows.append({"file_name": "c.star_counts.tsv", "data_type": EXPRESSION, "case_id": "TCGA-S1-0001"})
    write_manifest(path, rows)
    raw = yaml.safe_load((ROOT / "config/gdc-portal.yaml").read_text())
    raw["expression"] = {"table": "e.csv"}
    (tmp_path / "e.csv").touch()
    raw["slides"].pop("annotations")
    raw["gdc"] = {"projects": ["TCGA-SIM"], "mirrors": ["mirror"], "api_url": "http://127.0.0.1:9"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(raw))
    found = states(tmp_path / "own.yaml")
    assert found["gdc.projects"] == (PASS, "resources/gdc/TCGA-SIM/manifest.parquet pins 3 files of 1 cases; ")
    said = [(one.state, one.found) for one in doctor.examine(tmp_path / "own.yaml") if one.subject == "gdc.mirrors"]
    assert said[0] == (PASS, "mirror has 1 of 2 pinned files") and said[1][0] == WARN
    assert said[1][1] == "1 of 2 pinned files are in no folder, or in part, and are fetched: 'b.svs'"
    assert found["gdc.api_url"][0] == FAIL
    part.rename(part.with_suffix(""))
    write_slide(tmp_path / "mirror/c.svs", tissue_picture(256, 256), 0.5).replace(tmp_path / "mirror/a.svs")
    # A portal's sample sheet states no size.
    write_manifest(path, [rows[0] | {"size": None}, *rows[1:]])
    said = [(one.state, one.found) for one in doctor.examine(tmp_path / "own.yaml") if one.subject == "slides"]
    assert said[0] == (PASS, "2 pinned slides are in a folder; 0 have an annotation")
    assert said[1] == (WARN, "1 of 2 will be left out, 'b': unreadable: not a slide that OpenSlide reads")
    assert states(tmp_path / "own.yaml")["gdc.api_url"][0] == WARN


def test_positions_without_the_ids_or_lengths_that_star_counts_need_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raw = yaml.safe_load((ROOT / "config/gdc-portal.yaml").read_text()) | {"expression": {"positions": "g.tsv"}}
    raw["slides"].pop("annotations")
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(raw))
    (tmp_path / "g.tsv").write_text("gene_name\tchromosome\tstart\nTP53\tchr17\t5\n")
    assert (
        states(tmp_path / "own.yaml")["inputs"][0] == FAIL and "gene_id" in states(tmp_path / "own.yaml")["inputs"][1]
    )
    (tmp_path / "g.tsv").write_text("gene_id\tchromosome\tstart\nENSG00000141510\tchr17\t5\n")
    assert "lacks the column length" in states(tmp_path / "own.yaml")["inputs"][1]
