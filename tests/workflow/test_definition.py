"""The workflow without running a job: its plan, its rules, and what it refuses."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from .conftest import ROOT, Workflow, counted, make_mri_inputs

# The examples are in test_examples.py.
CONFIGS = [ROOT / "config" / f"{name}.yaml" for name in ("config", "tcga-lgg-mri", "tcga-brca")]
RULE = re.compile(r"^( *)(?:rule|checkpoint) (\w+):\n((?:\1    .*\n|\n)+)", re.MULTILINE)
SHELL = re.compile(r"^ *shell:\n((?: +f?[\"'].*\n)+)", re.MULTILINE)
GENE_ANNOTATION = "be002a2c-3b27-43f3-9e0f-fd47db92a6b5"
BRCA_SITES = (
    "TCGA-(3C|4H|5L|5T|A1|A2|A7|A8|AC|AN|AO|AQ|AR|B6|BH|C8|D8|E2|E9|EW|GI|GM|HN|JL|LD|LL|LQ|MS|OK|OL|PE|PL|S3|UL|UU|"
    "V7|W8|WT|XX|Z7)-"
)


def identifier(number: int) -> str:
    return f"00000000-0000-4000-9000-{number:012d}"


def manifest_of(slides: pd.DataFrame, project: str) -> pd.DataFrame:
    """A manifest of these slides (file_id, file_name, md5, size), a STAR table per case and the gene annotation."""
    slides = slides.assign(case_id=slides.file_name.str[:12], aliquot=slides.file_name.str.split(".").str[0])
    cases = sorted(slides.case_id.unique())
    tables = pd.DataFrame({"case_id": cases, "file_id": [identifier(number) for number in range(len(cases))]})
    tables["file_name"] = tables.file_id + ".rna_seq.augmented_star_gene_counts.tsv"
    tables["aliquot"] = tables.case_id + "-01A-11R-A00Z-07"
    genes = pd.DataFrame({"file_id": [GENE_ANNOTATION], "file_name": ["gencode.v36.annotation.gtf.gz"]})
    parts = {
        "Gene Annotation": genes.assign(case_id=None, aliquot=None),
        "Gene Expression Quantification": tables,
        "Slide Image": slides,
    }
    rows = pd.concat([part.assign(data_type=kind) for kind, part in parts.items()], ignore_index=True)
    rows = rows.assign(sample_type="Primary Tumor", project=project)
    rows["md5"] = rows.md5.fillna("0" * 32)
    rows["size"] = rows["size"].fillna(1).astype("int64")
    return rows


def write_manifest(directory: Path, manifest: pd.DataFrame, project: str) -> Path:
    path = directory / f"resources/gdc/{project}/manifest.parquet"
    path.parent.mkdir(parents=True)
    manifest.to_parquet(path)
    return path


@pytest.fixture(scope="module")
def small_brca(tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """The BRCA configuration in a directory with a committed manifest of three slides of two cases."""
    directory = tmp_path_factory.mktemp("small_brca")
    names = ["TCGA-A1-A0SB-01Z-00-DX1.a.svs", "TCGA-A1-A0SD-01Z-00-DX1.b.svs", "TCGA-A1-A0SD-01Z-00-DX2.c.svs"]
    slides = pd.DataFrame({"file_name": names, "file_id": [identifier(900 + number) for number in range(3)]})
    write_manifest(directory, manifest_of(slides.assign(md5="0" * 32, size=1), "TCGA-BRCA"), "TCGA-BRCA")
    (directory / "resources/tcga-brca/masks").mkdir(parents=True)
    return Workflow(directory, ROOT / "config/tcga-brca.yaml")


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_snakemake_lint_is_clean(config, tmp_path):
    make_mri_inputs(tmp_path)
    assert "good condition" in Workflow(tmp_path, config).run("--lint")


def test_files_are_formatted():
    command = [Path(sys.executable).parent / "snakefmt", "--check", ROOT / "workflow"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stderr}\nrun: make format"


def test_every_rule_states_what_it_needs():
    rules = [rule for file in (ROOT / "workflow/rules").glob("*.smk") for rule in RULE.findall(file.read_text())]
    working = {name: body for _, name, body in rules if "shell:" in body}
    assert len(working) >= 18
    for name, body in working.items():
        for directive in ("log:", "benchmark:", "threads:", "resources:", "mem_mb=", "runtime=", "conda:"):
            assert directive in body, f"rule {name} has no {directive}"


def test_every_field_of_a_shell_line_is_quoted():
    texts = [file.read_text() for file in (ROOT / "workflow").rglob("*.smk")]
    commands = [command for text in texts for command in SHELL.findall(text)]
    assert len(commands) >= 18
    for command in commands:
        fields = re.findall(r"\{[^{}]*\}", command)
        assert fields
        assert [field for field in fields if not field.endswith(":q}")] == [], command
    assert not any(re.search(r"shell\.(prefix|suffix)|shell\(", text) for text in texts)


def test_every_rule_only_calls_mgi():
    texts = [file.read_text() for file in (ROOT / "workflow/rules").glob("*.smk")]
    commands = [command for text in texts for command in SHELL.findall(text)]
    assert commands
    assert all(command.strip().startswith('"{params.mgi:q} ') for command in commands)
    assert not any(re.search(r"^ *(run|script|notebook):", text, re.MULTILINE) for text in texts)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("sede=1", "unknown key 'sede': did you mean 'seed'?"),
        ("device=gpu", "'device' cannot be 'gpu'"),
        ("evaluate={reference: mgl}", "'evaluate.reference' is 'mgl', which 'evaluate.variants' lacks"),
    ],
)
def test_rejects_wrong_configuration_in_one_sentence(setting, message, tmp_path):
    text = Workflow(tmp_path).refusal("--dry-run", "--config", setting)
    assert message in text
    assert len([line for line in text.splitlines() if line.startswith("configuration:")]) == 1


def test_bare_snakemake_plans_the_simulated_cohort(tmp_path):
    planned = counted(Workflow(tmp_path).planned())
    assert planned["simulate"] == planned["query"] == 1
    assert (planned["pretrain"], planned["finetune"], planned["summarise"]) == (2, 6, 3)


def test_configuration_of_the_command_line_replaces_the_shipped_one(tmp_path):
    make_mri_inputs(tmp_path)
    planned = Workflow(tmp_path, ROOT / "config/tcga-lgg-mri.yaml").planned()
    names = {job.rule for job in planned}
    assert {"import_mri", "import_expression"} <= names
    assert not names & {"simulate", "query", "tile_slides"}
    assert {job.wildcards["fold"] for job in planned if job.rule == "finetune"} == set("01234")


def test_rejects_missing_input_naming_its_key(tmp_path):
    text = Workflow(tmp_path, ROOT / "config/tcga-lgg-mri.yaml").refusal("--dry-run")
    missing = "resources/tcga-lgg/expression_zscore.parquet"
    assert f"configuration: 'expression.table' is {missing}, which does not exist" in text


def test_rejects_missing_mri_naming_its_source(tmp_path):
    make_mri_inputs(tmp_path)
    text = Workflow(tmp_path, ROOT / "config/tcga-lgg-mri.yaml").refusal("-n", "--config", "mri={folder: away.zip}")
    assert "MRI folder not found: away.zip; get the set 'LGG MRI Segmentation'" in text


def test_rejects_missing_annotation_folder(small_brca, tmp_path):
    manifest = small_brca.directory / "resources/gdc/TCGA-BRCA/manifest.parquet"
    write_manifest(tmp_path, pd.read_parquet(manifest), "TCGA-BRCA")
    assert "annotations not found: resources/tcga-brca/masks" in Workflow(tmp_path, small_brca.config).refusal("-n")


def test_brca_plan_lists_every_fetch_tile_and_training_job(tmp_path):
    """On the GDC's list of all TCGA slides where it is at hand: 1,133 diagnostic slides of 1,062 BRCA cases."""
    data = Path(os.environ.get("MGI_DATA", ROOT.parent / "shared/data"))
    listed = data / "gdc/manifest_all_tcga_svs.tsv.gz"
    if listed.exists():
        slides = pd.read_csv(listed, sep="\t").rename(columns={"id": "file_id", "filename": "file_name"})
        slides = slides[slides.file_name.str.contains("-DX") & slides.file_name.str.match(BRCA_SITES)]
        assert len(slides) == 1133
    else:
        names = [f"TCGA-A1-{number:04d}-01Z-00-DX1.x.svs" for number in range(40)]
        slides = pd.DataFrame({"file_name": names, "file_id": [identifier(9000 + number) for number in range(40)]})
        slides = slides.assign(md5="0" * 32, size=1)
    write_manifest(tmp_path, manifest_of(slides, "TCGA-BRCA"), "TCGA-BRCA")
    (tmp_path / "resources/tcga-brca/masks").mkdir(parents=True)
    planned = Workflow(tmp_path, ROOT / "config/tcga-brca.yaml").planned()
    assert counted(planned) == {
        "check": 1,
        "fetch_annotation": 1,
        "fetch_expression": -(-slides.file_name.str[:12].nunique() // 500),
        "fetch_slides": len(slides),
        "build_expression": 1,
        "tile_slides": len(slides),
        "collect_sources": 1,
        "split": 1,
        "pretrain": 5,
        "embed": 5,
        "yardstick": 5,
        "retrieve": 1,
        "finetune": 25,
        "summarise": 5,
        "compare": 1,
        "draw_flow": 1,
        "draw_losses": 1,
        "draw_map": 1,
        "draw_comparison": 1,
        "draw_overlays": 1,
        "draw_slides": 1,
        "write_page": 1,
    }
    tiled = {job.wildcards["source"] for job in planned if job.rule == "tile_slides"}
    assert tiled == set(slides.file_name.str.split(".").str[0])


def test_training_asks_for_a_gpu_only_on_cuda(small_brca, tmp_path):
    for workflow, gpus in ((small_brca, "gpu=1"), (Workflow(tmp_path), "gpu=0")):
        trained = [job for job in workflow.planned() if job.rule in ("pretrain", "finetune", "embed")]
        assert trained
        assert all(gpus in job.text for job in trained)


def test_committed_manifest_is_never_made_again(small_brca):
    changed = small_brca.planned("--config", "gdc={api_url: https://elsewhere.example}")
    assert "fetch_slides" in {job.rule for job in changed}
    assert "query" not in {job.rule for job in changed}
    assert "query" not in {job.rule for job in small_brca.planned("--forceall")}
    assert "Nothing to be done" in small_brca.run("pin")


def test_pin_alone_makes_the_manifest(tmp_path):
    assert counted(Workflow(tmp_path, ROOT / "config/tcga-brca.yaml").planned("pin")) == {"query": 1, "pin": 1}


def test_slides_may_share_a_job(small_brca):
    together = small_brca.planned("--config", "slides={per_job: 2}")
    assert counted(together)["tile_slides"] == counted(together)["fetch_slides"] == 2


def test_slides_may_come_from_the_imaging_data_commons(small_brca):
    planned = small_brca.planned("--config", "slides={fetch_from: idc}")
    assert counted(planned)["fetch_slides_idc"] == counted(planned)["tile_slides"] == 3
    assert counted(planned)["fetch_slides"] == 0
    text = small_brca.run("--dry-run", "--printshellcmds", "--config", "slides={fetch_from: idc}")
    assert text.count(" -m mgi idc fetch resources/gdc/TCGA-BRCA/manifest.parquet") == 3
    assert f"slides/TCGA-A1-A0SD-01Z-00-DX2/{identifier(902)}/TCGA-A1-A0SD-01Z-00-DX2.c.dcm" in text


def test_rejects_annotation_without_a_slide_while_planning(small_brca):
    stray = small_brca.directory / "resources/tcga-brca/masks/TCGA-A1-0000-01Z-00-DX1_mask.tiff"
    stray.touch()
    try:
        text = small_brca.refusal("--dry-run")
    finally:
        stray.unlink()
    assert stray.name in text
    assert "belong to no slide" in text


def test_model_of_every_patient_starts_from_encoders_of_every_patient(tmp_path):
    planned = Workflow(tmp_path).planned("results/simulated/finetune/mgi/all/model.safetensors")
    for_all = next(job for job in planned if job.rule == "finetune_all")
    assert "pretrain/mgi/all/model.safetensors" in for_all.text
    # The folds, whose validation patients decide for it.
    assert {job.wildcards["fold"] for job in planned if job.rule == "finetune"} == {"0", "1"}
    assert {job.wildcards["run"] for job in planned if job.rule == "pretrain"} == {"all", "fold0", "fold1"}


def test_slurm_profile_is_read(small_brca):
    profile = ROOT / "workflow/profiles/slurm"
    keys = re.findall(r"^(\w[\w-]*):", (profile / "config.yaml").read_text(), re.MULTILINE)
    assert {"executor", "default-resources", "slurm-status-command"} <= set(keys)
    planned = small_brca.planned("--workflow-profile", str(profile))
    assert all("tasks=1" in job.text for job in planned if job.rule == "finetune")


def test_expression_options_reach_the_command(small_brca, tmp_path):
    target, plan = "results/tcga-brca/expression.parquet", ("--dry-run", "--printshellcmds")
    usual = small_brca.run(*plan, target)
    assert f"--annotation resources/gdc/TCGA-BRCA/annotation/{GENE_ANNOTATION}/gencode.v36.annotation.gtf.gz " in usual
    assert """--options '{"gene_types": ["protein_coding"], "unit": "log2-tpm"}' --workers 2 """ in usual
    assert '"gene_types": []' in small_brca.run(*plan, target, "--config", "expression={gene_types: []}")
    for name in ("my genes.txt", "places.tsv"):
        (tmp_path / name).touch()
    settings = f"genes: {tmp_path}/my genes.txt, positions: {tmp_path}/places.tsv, unit: log2-fpkm-uq"
    own = small_brca.run(*plan, target, "--config", f"expression={{{settings}}}")
    assert f"--annotation {tmp_path}/places.tsv --options '{{" in own
    assert f'"genes": "{tmp_path}/my genes.txt", "unit": "log2-fpkm-uq"}}' in own
    assert "rule fetch_annotation:" not in own and "rule fetch_annotation:" in usual


def test_rejects_missing_list_of_genes_naming_its_key(small_brca):
    text = small_brca.refusal("--dry-run", "--config", "expression={genes: absent.txt}")
    assert "configuration: 'expression.genes' is absent.txt, which does not exist" in text


def test_own_positions_need_no_annotation_pinned(tmp_path):
    (tmp_path / "places.tsv").touch()
    workflow, plan = Workflow(tmp_path, ROOT / "config/tcga-brca.yaml"), ("--dry-run", "--printshellcmds", "pin")
    assert '"annotation_file_id": ' in workflow.run(*plan)
    assert '"annotation_file_id": ' not in workflow.run(*plan, "--config", "expression={positions: places.tsv}")


def test_rejects_pinned_file_that_is_excluded(small_brca, tmp_path):
    table = tmp_path / "exclude.tsv"
    table.write_text(f"file_id\treason\n{identifier(901)}\tpen marks\n")
    text = small_brca.refusal("--dry-run", "--config", f"gdc={{exclude: {table}}}")
    assert f"pins 1 files that gdc.exclude leaves out, '{identifier(901)}'" in text
    table.write_text(f"file_id\treason\n{identifier(77)}\tpen marks\n")
    assert small_brca.planned("--config", f"gdc={{exclude: {table}}}")


def test_mirrors_and_the_token_file_reach_every_fetch(small_brca, tmp_path):
    token = tmp_path / "token"
    token.touch(0o600)
    setting = f"gdc={{mirrors: [/a mirror, 'https://b/{{file_id}}'], token_file: {token}}}"
    planned = small_brca.planned("--config", setting)
    fetched = [job for job in planned if job.rule.startswith("fetch_")]
    assert {job.rule for job in fetched} == {"fetch_annotation", "fetch_expression", "fetch_slides"}
    text = small_brca.run("--dry-run", "--printshellcmds", "--config", setting)
    given = f'"mirrors": ["/a mirror", "https://b/{{file_id}}"], "token_file": "{token}", "workers": 4}}'
    assert text.count(f"{given}' --receipt") == len(fetched)


def test_only_so_many_slides_are_in_flight(small_brca):
    planned = small_brca.planned()
    for rule in ("fetch_slides", "tile_slides"):
        assert all("slides_in_flight=1" in job.text for job in planned if job.rule == rule)
