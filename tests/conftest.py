"""Fixtures shared by every floor's tests."""

import os
from pathlib import Path

import pytest

pytest_plugins = ("tests.tables",)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real TCGA data, from MGI_DATA or beside the checkout; the test is skipped where it is absent."""
    folder = Path(os.environ.get("MGI_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real TCGA data not found at {folder}; set MGI_DATA")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first, so that no worker is left alone with one of them at the end."""
    items.sort(key=lambda item: item.path.parent.name != "workflow")
