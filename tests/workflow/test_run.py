"""The whole workflow on a tiny simulated cohort: what it leaves behind, and what a rerun does."""

import shutil
from pathlib import Path

import pandas as pd

from .conftest import counted

RESULTS = (
    "expression.parquet",
    "genes.parquet",
    "sources.parquet",
    "splits.parquet",
    "cohort_flow.csv",
    "pretrain/mgi/fold0/model.safetensors",
    "finetune/mgi/fold1/predictions.parquet",
    "finetune/image-only/summary.json",
    "evaluate/comparison.csv",
    "evaluate/retrieval.csv",
    "report/flow.png",
    "report/losses.png",
    "report/map.png",
    "report/comparison.png",
    "report/overlays.png",
    "report/slides.png",
    "report/index.html",
)


def test_run_leaves_every_result(tiny):
    missing = [name for name in RESULTS if not (tiny.directory / "results/tiny" / name).stat().st_size]
    assert not missing
    compared = pd.read_csv(tiny.directory / "results/tiny/evaluate/comparison.csv")
    assert set(compared.variant) == {"image-only", "mgi", "shuffled-genes"}


def test_every_slide_is_accounted_for(tiny):
    manifest = pd.read_parquet(tiny.directory / "resources/gdc/TCGA-SIM/manifest.parquet")
    slides = manifest[manifest.data_type == "Slide Image"].file_name.str.split(".").str[0]
    sources = pd.read_parquet(tiny.directory / "results/tiny/sources.parquet")
    assert set(sources.source_id) == set(slides)
    assert set(sources.status) == {"ok"}
    previews = [f"{row.table}/{row.source_id}.jpg" for row in sources.itertuples()]
    assert all((tiny.directory / "results/tiny/previews" / name).stat().st_size for name in previews)


def test_second_run_has_nothing_to_do(tiny):
    assert "Nothing to be done" in tiny.run()


def test_single_ablation_plans_only_its_own_jobs(tiny):
    planned = tiny.planned("results/tiny/finetune/no-vit/summary.json")
    assert counted(planned) == {"finetune": 2, "summarise": 1}
    assert {job.wildcards["variant"] for job in planned} == {"no-vit"}


def test_variants_without_genes_do_not_read_expression(tiny):
    planned = [job for job in tiny.planned("--forcerun", "finetune") if job.rule == "finetune"]
    reading = {job.wildcards["variant"] for job in planned if "expression.parquet" in job.text}
    assert reading == {"mgi", "shuffled-genes"}


def test_changed_variant_reruns_itself_and_its_aggregates_only(copy):
    changed = copy.with_config(lambda config: config["finetune"]["image-only"].update(lr=0.002))
    planned = changed.planned()
    aggregates = {"compare": 1, "draw_losses": 1, "draw_comparison": 1, "write_page": 1}
    assert counted(planned) == {"check": 1, "finetune": 2, "summarise": 1} | aggregates
    variants = {job.wildcards["variant"] for job in planned if job.rule in ("finetune", "summarise")}
    assert variants == {"image-only"}
    changed.run("results/tiny/finetune/image-only/summary.json")
    assert not {"finetune", "summarise"} & counted(changed.planned()).keys()


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_refused_device_costs_no_model(copy):
    """Snakemake deletes the outputs of a job before it starts; `cuda` was refused too late once."""
    folder = copy.directory / "results/tiny/finetune/mgi/fold0"
    before = contents(folder)
    changed = copy.with_config(lambda config: config.update(device="cuda"))
    for targets in ([], ["results/tiny/finetune/mgi/summary.json"]):
        refused = changed.snakemake(*targets)
        assert refused.returncode == 1
        assert "configuration: 'device' is cuda, but" in refused.stdout
        assert "rule finetune:" not in refused.stdout
        assert contents(folder) == before
    assert "Nothing to be done" in copy.run()


def test_failed_training_leaves_the_model_of_an_earlier_run(copy):
    folder = copy.directory / "results/tiny/finetune/no-vit/fold0"
    target = "results/tiny/finetune/no-vit/fold0/model.safetensors"
    copy.run(target)
    before = contents(folder)
    table = copy.directory / "results/tiny/sources.parquet"
    content = table.read_bytes()
    table.write_bytes(b"no table")
    changed = copy.with_config(lambda config: config["finetune"]["no-vit"].update(lr=0.002))
    assert changed.snakemake(target, "--rerun-triggers", "params").returncode == 1
    table.write_bytes(content)
    assert contents(folder) == before


def test_forced_finetuning_reruns_every_variant_and_no_pretraining(tiny):
    planned = counted(tiny.planned("--forcerun", "finetune"))
    assert planned["finetune"] == 6
    assert set(planned) == {
        "finetune",
        "summarise",
        "compare",
        "draw_losses",
        "draw_comparison",
        "draw_overlays",
        "write_page",
    }


def test_same_seed_same_bytes(copy):
    results = copy.directory / "results/tiny"
    names = [
        "expression.parquet",
        "genes.parquet",
        "splits.parquet",
        "pretrain/mgi/fold0/model.safetensors",
        "finetune/mgi/fold0/model.safetensors",
        *(str(path.relative_to(results)) for path in sorted((results / "images").glob("*.parquet"))),
    ]
    before = {name: (results / name).read_bytes() for name in names}
    shutil.rmtree(results)
    copy.run("results/tiny/finetune/mgi/fold0/model.safetensors")
    assert [name for name in names if (results / name).read_bytes() != before[name]] == []


def test_broken_slide_is_recorded_and_the_run_goes_on(copy):
    source = pd.read_parquet(copy.directory / "results/tiny/sources.parquet").source_id.iloc[0]
    (slide,) = (copy.directory / "resources/gdc/TCGA-SIM/slides").glob(f"*/*/{source}.*.svs")
    slide.write_bytes(b"no slide")
    copy.run("results/tiny/splits.parquet", "--forcerun", "tile_slides")
    sources = pd.read_parquet(copy.directory / "results/tiny/sources.parquet").set_index("source_id")
    assert sources.status[source] != "ok"
    assert sources.reason[source]
    assert (sources.status.drop(source) == "ok").all()


def test_changed_annotation_retiles_its_batch_and_retrains(copy):
    annotation = sorted((copy.directory / "resources/simulated/annotations").glob("*.geojson"))[0]
    annotation.write_text('{"type": "FeatureCollection", "features": []}')
    planned = counted(copy.planned())
    assert planned["tile_slides"] == 1
    assert planned["finetune"] == 6
    assert not planned["fetch_slides"]


def test_report_has_figures_and_captions(tiny):
    report = tiny.directory / "report.html"
    tiny.run("--report", str(report))
    text = report.read_text()
    for name in ("flow.png", "losses.png", "comparison.png", "overlays.png", "comparison.csv", "retrieval.csv"):
        assert name in text
    assert "A gain that survives shuffled genes" in text


def test_batch_of_slides_is_segmented_by_the_model_of_all_patients(copy):
    manifest = pd.read_parquet(copy.directory / "resources/gdc/TCGA-SIM/manifest.parquet")
    slides = sorted(manifest[manifest.data_type == "Slide Image"].file_name.str.split(".").str[0])
    batches = {path.name.split(".")[0] for path in (copy.directory / "results/tiny/images").glob("*.status.parquet")}
    first = sorted(batches)[0]
    copy.run(f"results/tiny/predict/mgi/{first}")
    written = {path.stem for path in (copy.directory / "results/tiny/predict/mgi" / first).glob("*.geojson")}
    assert len(written) == 6 and written < set(slides) and first in written
    log = (copy.directory / "logs/tiny/predict/mgi" / f"{first}.log").read_text()
    assert "the model in" in log and "was trained on" in log and "no expression table" not in log
    assert "nothing to be done" in copy.run(f"results/tiny/predict/mgi/{first}").lower()
