"""The tiny simulated cohort, and queries of records that a test makes the GDC list."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mgi.acquire.manifest import read_manifest
from tests.acquire.listings import PROJECT, make_listing
from tests.acquire.servers import FILE_ID, pin_one
from tests.cohorts import cohort, manifest, no_waiting, own_cohort, query

__all__ = ["cohort", "listing", "manifest", "no_waiting", "one_file", "own_cohort", "part", "token"]


@pytest.fixture
def listing(tmp_path: Path) -> Callable[..., list[str]]:
    """A function: the barcodes that a query keeps of records that the GDC lists."""

    def listed(records, kind, projects=(PROJECT,), **options):
        url = make_listing(tmp_path / "listing", records)
        query(list(projects), tmp_path / "m.parquet", url, [kind], **options)
        return read_manifest(tmp_path / "m.parquet").aliquot.tolist()

    return listed


@pytest.fixture
def one_file(tmp_path: Path) -> Path:
    """A manifest of one file, `CONTENT`."""
    return pin_one(tmp_path / "one.parquet")


@pytest.fixture
def token(tmp_path: Path) -> Path:
    """A GDC token that only its owner may read."""
    path = tmp_path / "token"
    path.touch(0o600)
    path.write_text("s3cret\n")
    return path


@pytest.fixture
def part(tmp_path: Path) -> Path:
    """Where the `.part` of the one file lies, fetched to `got`."""
    path = tmp_path / "got" / FILE_ID / "counts.tsv.part"
    path.parent.mkdir(parents=True)
    return path
