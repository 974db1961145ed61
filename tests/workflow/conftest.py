"""A Snakemake to test with, and one run of the whole workflow on a tiny simulated cohort, which many tests look at."""

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]

TINY = {
    "cohort": "tiny",
    "simulate": {"cases": 8, "genes": 1000, "slide_px": 512},
    "gdc": {"api_url": "local:resources/simulated", "projects": ["TCGA-SIM"]},
    "expression": {"annotation_file_id": "00000000-0000-4000-8000-000000000036"},
    "slides": {
        "mpp": 1.0,
        "tile_px": 64,
        "min_tissue": 0.3,
        "annotations": "resources/simulated/annotations",
        "per_job": 6,
        "keep_slides": True,
    },
    "split": {
        "folds": 2,
        "val_fraction": 0.25,
        "stratify_table": "resources/simulated/truth.parquet",
        "stratify_column": "bit",
    },
    "pretrain": {
        "mgi": {
            "steps": 4,
            "warmup_steps": 1,
            "val_every": 2,
            "batch_patients": 3,
            "images_per_patient": 2,
            "embed_dim": 16,
            "gene_encoder": {"dim": 16, "depth": 1, "stride": 50, "state_dim": 4},
            "image_encoder": {
                "name": "vit_tiny_patch16_224",
                "options": {"patch_size": 16, "depth": 2, "embed_dim": 32, "num_heads": 2},
            },
        }
    },
    "finetune": {
        "mgi": {"steps": 4, "warmup_steps": 1, "val_every": 2, "channels": [8, 16], "batch_images": 4},
        "image-only": {"base": "mgi", "genes": "none"},
        "shuffled-genes": {"base": "mgi", "genes": "shuffled"},
        "no-vit": {"base": "image-only", "vit": False},
    },
    "evaluate": {"bootstrap_samples": 100},
    "resources": {
        "prepare_mem_mb": 1000,
        "prepare_runtime_min": 10,
        "train_mem_mb": 2000,
        "train_runtime_min": 10,
    },
}

JOB = re.compile(r"^(?:local)?(?:rule|checkpoint) (\w+):\n((?:    .*\n)+)", re.MULTILINE)
WILDCARDS = re.compile(r"^    wildcards: (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Job:
    """A job that a dry run lists."""

    rule: str
    wildcards: dict[str, str]
    text: str


@dataclass(frozen=True)
class Workflow:
    """The workflow of this checkout in a working directory of its own."""

    directory: Path
    config: Path | None = None

    def snakemake(self, *arguments: str) -> subprocess.CompletedProcess:
        """Run Snakemake; output and errors together in `stdout`."""
        command = [sys.executable, "-m", "snakemake", *arguments, "--snakefile", str(ROOT / "workflow/Snakefile")]
        command += ["--directory", str(self.directory), "--cores", "2"]
        if self.config is not None:
            command += ["--configfile", str(self.config)]
        return subprocess.run(
            command, cwd=self.directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )

    def run(self, *arguments: str) -> str:
        """Run Snakemake to the end and return its output."""
        done = self.snakemake(*arguments)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def refusal(self, *arguments: str) -> str:
        """Run Snakemake on what it must refuse, without a traceback, and return its output."""
        done = self.snakemake(*arguments)
        assert done.returncode == 1, done.stdout
        assert "Traceback" not in done.stdout
        return done.stdout

    def planned(self, *arguments: str) -> list[Job]:
        """List the jobs of a dry run."""
        jobs = []
        for rule, body in JOB.findall(self.run("--dry-run", *arguments)):
            named = WILDCARDS.search(body)
            pairs = named.group(1).split(", ") if named else []
            jobs.append(Job(rule, dict(pair.split("=", 1) for pair in pairs), body))
        return jobs

    def with_config(self, change: Callable[[dict], object]) -> "Workflow":
        """Return the same directory under a changed configuration."""
        changed = yaml.safe_load(self.config.read_text())
        change(changed)
        path = self.directory / "changed.yaml"
        path.write_text(yaml.safe_dump(changed))
        return Workflow(self.directory, path)


def counted(jobs: list[Job]) -> Counter:
    """Count jobs by rule, the target rule aside."""
    return Counter(job.rule for job in jobs if job.rule != "all")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """The whole workflow, run once on a tiny simulated cohort; tests only look at it."""
    directory = tmp_path_factory.mktemp("tiny")
    config = directory / "tiny.yaml"
    config.write_text(yaml.safe_dump(TINY))
    workflow = Workflow(directory, config)
    workflow.run()
    return workflow


@pytest.fixture
def copy(tiny: Workflow, tmp_path: Path) -> Workflow:
    """A copy of the finished run, to be changed."""
    directory = tmp_path / "copy"
    shutil.copytree(tiny.directory, directory)
    return Workflow(directory, directory / tiny.config.name)


def make_mri_inputs(directory: Path) -> None:
    """Make what tcga-lgg-mri.yaml names: five patients, of two slices and two genes each."""
    cases, genes = [f"TCGA-CS-494{number}" for number in range(1, 6)], ["TP53", "EGFR"]
    for case in cases:
        name = f"{case.replace('-', '_')}_19960909"
        folder = directory / "resources/kaggle_3m" / name
        folder.mkdir(parents=True)
        for number in (1, 2):
            Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(folder / f"{name}_{number}.tif")
            Image.fromarray(np.zeros((64, 64), np.uint8)).save(folder / f"{name}_{number}_mask.tif")
    place = directory / "resources/tcga-lgg"
    place.mkdir()
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(5, 2)), pd.Index(cases, name="case_id"), genes)
    table.to_parquet(place / "expression_zscore.parquet")
    places = pd.DataFrame({"gene_name": genes, "chromosome": ["chr17", "chr7"], "start": [1, 2]})
    places.to_csv(place / "gene_positions.tsv.gz", sep="\t", index=False)
