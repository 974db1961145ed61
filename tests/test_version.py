"""The version: from git tags in a checkout, from the installation elsewhere, and the same as setuptools-scm's."""

import importlib.metadata
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.version import Version

import mgi
from mgi import version

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def checkout(tmp_path):
    """Return a function that runs git in an empty repository."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")

    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-q")
    return git


def test_version_counts_commits_from_the_last_tag(checkout, tmp_path):
    assert version.find_version(tmp_path) == version.FALLBACK  # No commit yet.
    (tmp_path / "file").write_text("a")
    checkout("add", "file")
    checkout("commit", "-q", "-m", "first")
    untagged = Version(version.find_version(tmp_path))
    assert (untagged.base_version, untagged.dev) == (version.FALLBACK, 0) and untagged.local.startswith("g")
    checkout("tag", "v1.2.0")
    checkout("tag", "unrelated")
    assert version.find_version(tmp_path) == "1.2.0"
    checkout("commit", "-q", "--allow-empty", "-m", "second")
    found = Version(version.find_version(tmp_path))
    assert (found.base_version, found.post, found.dev) == ("1.2.0", 1, 1)
    assert Version("1.2.0") < found < Version("1.2.1")
    (tmp_path / "file").write_text("b")
    assert Version(version.find_version(tmp_path)).local == f"{found.local}.dirty"


def test_version_agrees_with_setuptools_scm(checkout, tmp_path):
    scm = pytest.importorskip("setuptools_scm")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools_scm"]
    for tag in (True, False):
        checkout("commit", "-q", "--allow-empty", "-m", "one")
        if tag:
            checkout("tag", "v0.3.0")
        theirs = scm.get_version(root=tmp_path, **settings)
        assert theirs.startswith(version.find_version(tmp_path))  # git abbreviates a commit by its own setting
    assert settings["fallback_version"] == version.FALLBACK


@pytest.mark.parametrize("installed", ["9.9", None])
def test_copy_without_git_takes_the_installed_version_or_the_fallback(tmp_path, monkeypatch, installed):
    def metadata_version(name):
        if installed is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(importlib.metadata, "version", metadata_version)
    assert version.find_version(tmp_path) == (installed or version.FALLBACK)


def test_broken_git_is_no_error(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    assert version.find_version(tmp_path) == version.FALLBACK
    monkeypatch.setenv("PATH", str(tmp_path))
    assert version.find_version(tmp_path) == version.FALLBACK


def test_package_has_its_version_from_a_bare_checkout():
    code = "import mgi; print(mgi.__version__)"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == mgi.__version__ == version.find_version()
    with pytest.raises(AttributeError, match="nothing"):
        mgi.nothing  # noqa: B018
