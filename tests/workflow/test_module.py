"""The workflow from elsewhere: as a module, from a hosted repository, from an odd or read-only checkout, from `/`."""

import copy
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from .conftest import ROOT, TINY

MODULE = """\
configfile: "tiny.yaml"

module mgi:
    snakefile: {snakefile}
    config: config
    prefix: "sub"
    pathvars:
        results="out",
        logs="out/logs",

use rule * from mgi as mgi_*
"""
OUTPUTS = re.compile("^    output: (.*)$", re.MULTILINE)
SMALL = copy.deepcopy(TINY)
SMALL["simulate"]["cases"] = 4


def snakemake(directory: Path, *arguments: str, **variables: str) -> str:
    """Run Snakemake in `directory` without an installed mgi on the path, and return what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
    done = subprocess.run(
        command, cwd=directory, env=environment | variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture
def working_directory(tmp_path):
    """A working directory with a configuration."""
    directory = tmp_path / "work"
    directory.mkdir()
    (directory / "tiny.yaml").write_text(yaml.safe_dump(SMALL))
    return directory


@pytest.fixture
def checkout(tmp_path):
    """A checkout in a folder whose name a shell, Python and Snakemake would all read otherwise."""
    folder = tmp_path / "che {ck} 'o\"ut$(touch PWNED)"
    for name in ("workflow", "mgi", "config"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".snakemake"))
    return folder


@pytest.fixture
def repository(tmp_path):
    """A bare clone of this workflow as Snakemake keeps one of a hosted repository; the cache, and its commit."""
    bare = tmp_path / "cache/snakemake/snakemake/source-cache/snakemake-git-cache/github.com/someone/mgi"
    work = tmp_path / "repository"
    for name in ("workflow", "mgi", "config"):
        shutil.copytree(ROOT / name, work / name, ignore=shutil.ignore_patterns("__pycache__", ".snakemake"))
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(work)]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "All"], ["clone", "-q", "--bare", ".", str(bare)]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return tmp_path / "cache", head.stdout.strip()


def test_module_has_its_prefix_and_path_variables(working_directory):
    (working_directory / "Snakefile").write_text(MODULE.format(snakefile=repr(str(ROOT / "workflow/Snakefile"))))
    text = snakemake(working_directory, "--dry-run", "--printshellcmds")
    made = {name for line in OUTPUTS.findall(text) for name in re.split(", | \\(update\\)", line) if name}
    assert "sub/out/tiny/evaluate/comparison.csv" in made
    assert "sub/resources/gdc/TCGA-SIM/manifest.parquet" in made
    # What the configuration names is the user's, prefix or not.
    assert {name for name in made if not name.startswith("sub/")} == {
        "resources/simulated/manifest.tsv",
        "resources/simulated/truth.parquet",
    }
    assert f"PYTHONPATH={ROOT} " in text


def test_hosted_module_runs_its_own_code(working_directory, repository):
    cache, commit = repository
    source = f'github("someone/mgi", path="workflow/Snakefile", commit="{commit}")'
    (working_directory / "Snakefile").write_text(MODULE.format(snakefile=source))
    target = "sub/out/tiny/expression.parquet"
    text = snakemake(working_directory, "--printshellcmds", target, XDG_CACHE_HOME=str(cache))
    assert (working_directory / target).exists()
    assert f"PYTHONPATH={cache}/snakemake/snakemake/source-cache/mgi/{commit} " in text
    assert f"PYTHONPATH={ROOT}" not in text


def test_checkout_of_any_name_runs_from_the_root_folder_and_stays_as_it_is(working_directory, checkout):
    before = sorted(checkout.rglob("*"))
    for path in (*before, checkout):
        path.chmod(path.stat().st_mode & ~0o222)
    target = ("results/tiny/expression.parquet", "--snakefile", f"{checkout}/workflow/Snakefile")
    places = ("--directory", str(working_directory), "--configfile", str(working_directory / "tiny.yaml"))
    # As on the machine of a user: here Python may be told not to write bytecode anywhere.
    snakemake(Path("/"), *target, *places, PYTHONDONTWRITEBYTECODE="")
    assert (working_directory / target[0]).exists()
    assert sorted(checkout.rglob("*")) == before
    assert not list(working_directory.rglob("PWNED"))


@pytest.mark.parametrize("method", ["apptainer", "env-modules"])
def test_deployment_without_containers_or_modules_uses_the_running_python(method, tmp_path):
    text = snakemake(tmp_path, "-n", "-p", "--sdm", method, "--snakefile", str(ROOT / "workflow/Snakefile"))
    assert f" {sys.executable} -m mgi simulate " in text
