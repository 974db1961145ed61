"""Fixtures: one tiny simulated cohort, copies of it that a test may spoil, and the GDC commands on either.

The commands take `local:DIR`, too, as the command line does; the library takes http(s) addresses only.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest

from mgi.acquire import check as check_stage
from mgi.acquire import fetch as fetch_stage
from mgi.acquire import gdc, retry
from mgi.config import FetchOptions, QueryOptions
from mgi.simulate.cohort import ANNOTATION_FILE_ID, PROJECT, simulate_cohort
from mgi.simulate.serve import endpoint

TINY = {"cases": 4, "seed": 7, "genes": 1000, "slide_px": 512}


def query(
    projects: list[str], out: Path, api_url: str, data_types: list[str], annotation: str | None = None, **more: Any
) -> None:
    """Query a GDC."""
    options = QueryOptions(projects=projects, data_types=data_types, annotation_file_id=annotation, **more)
    with endpoint(api_url) as url:
        gdc.query(options, out, url)


def check(manifest: Path, api_url: str, out: Path | None = None) -> None:
    """Check a manifest at a GDC."""
    with endpoint(api_url) as url:
        check_stage.check(manifest, url, out)


def fetch(
    manifest: Path, out: Path, api_url: str, workers: int = 1, *, token_file: Path | None = None, mirrors: Any = (),
    **more: Any,
) -> None:  # fmt: skip
    """Fetch a manifest from a GDC."""
    token = None if token_file is None else str(token_file)
    # Not validated: the library refuses what it cannot use by itself.
    options = FetchOptions.model_construct(
        workers=workers, mirrors=list(mirrors), token_file=token, allow_http=False, api_url=api_url
    )
    with endpoint(api_url) as url:
        fetch_stage.fetch(manifest, out, url, options, **more)


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
    query([PROJECT], path, f"local:{cohort}", ["expression", "slides"], ANNOTATION_FILE_ID)
    return path


@pytest.fixture
def own_cohort(cohort: Path, tmp_path: Path) -> Path:
    """A copy of the cohort for one test."""
    return Path(shutil.copytree(cohort, tmp_path / "own_cohort"))


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries without pauses, and no patience with an outage."""
    monkeypatch.setattr(retry, "BACKOFF_SECONDS", 0.0)
    monkeypatch.setattr(retry, "OUTAGE_SECONDS", 0.0)
