"""Fixtures: one tiny simulated cohort, and copies of it that a test may spoil."""

import shutil
from pathlib import Path

import pytest

from mgi.acquire import fetch, gdc, web
from mgi.simulate.cohort import ANNOTATION_FILE_ID, PROJECT, simulate_cohort

TINY = {"cases": 4, "seed": 7, "genes": 1000, "slide_px": 512}


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four patients, 1,000 genes, slides of 512 pixels; read only."""
    folder = tmp_path_factory.mktemp("simulated") / "cohort"
    simulate_cohort(folder, **TINY, workers=1)
    return folder


@pytest.fixture(scope="session")
def manifest(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of that cohort."""
    path = tmp_path_factory.mktemp("pinned") / "manifest.parquet"
    gdc.query([PROJECT], path, f"local:{cohort}", ["expression", "slides"], ANNOTATION_FILE_ID)
    return path


@pytest.fixture
def own_cohort(cohort: Path, tmp_path: Path) -> Path:
    """A copy of the cohort for one test."""
    return Path(shutil.copytree(cohort, tmp_path / "own_cohort"))


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries without pauses, and no patience with an outage."""
    monkeypatch.setattr(web, "BACKOFF_SECONDS", 0.0)
    monkeypatch.setattr(fetch, "OUTAGE_SECONDS", 0.0)
