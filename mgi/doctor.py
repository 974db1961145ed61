"""What this machine lacks for a configuration, found before a run and not hours into it."""

import importlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from mgi.config import Config, load_config
from mgi.errors import MGIError

PASS, WARN, FAIL = "PASS", "WARN", "FAIL"
LEAST_CONDA = Version("24.7.1")
LEAST_FREE_GB = 10
REINSTALL = "run: pip install --no-deps -r requirements.lock"
# Each loads a native library of its own, and fails in its own way where that library is missing or of another build.
NATIVE = {"openslide": "openslide-bin", "pyvips": "pyvips-binary", "torchvision": "torchvision", "timm": "timm"}


@dataclass(frozen=True)
class Finding:
    """One thing looked at: PASS, WARN (something optional is missing) or FAIL, what was found, and the fix if any."""

    state: str
    subject: str
    found: str
    fix: str = ""


def examine(config_file: Path | None) -> Iterator[Finding]:
    """Look at the machine and, with a configuration, at what it names; yield findings as they are made.

    Nothing is written, and nothing but the GDC's `/status` is asked over the network.
    """
    yield from _packages()
    yield from (_native(module, package) for module, package in NATIVE.items())
    yield _conda()
    yield _slurm()
    if config_file is None:
        yield Finding(WARN, "configuration", "none given", "name one with --config to have its inputs examined")
        return
    try:
        config = load_config(config_file)
    except MGIError as problem:
        yield Finding(FAIL, "configuration", str(problem), f"correct {config_file}")
        return
    yield Finding(PASS, "configuration", f"{config_file} is valid")
    yield from _inputs(config)
    for subject, findings in {
        "mri.folder": _mri(config),
        "slides.fetch_from": _idc(config),
        "device": _device(config),
        "scan": _scan(config),
        "gdc.api_url": _gdc(config),
    }.items():
        yield from _or_why_not(subject, findings)
    yield _room(Path.cwd())


def _packages() -> Iterator[Finding]:
    """Compare what is installed with what mgi requires."""
    try:
        required = [Requirement(line) for line in importlib.metadata.requires("mgi") or ()]
    except importlib.metadata.PackageNotFoundError:
        yield Finding(
            WARN, "packages", "mgi itself is not installed, so its requirements are unknown", "run: make test"
        )
        return
    required = [one for one in required if one.marker is None or one.marker.evaluate({"extra": ""})]
    wrong = []
    for one in required:
        try:
            version = importlib.metadata.version(one.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{one.name} is missing")
            continue
        if not one.specifier.contains(version, prereleases=True):
            wrong.append(f"{one.name} is {version}, not {one.specifier}")
    if wrong:
        yield Finding(FAIL, "packages", "; ".join(wrong), REINSTALL)
    else:
        yield Finding(PASS, "packages", f"all {len(required)} requirements are met")


def _native(module: str, package: str) -> Finding:
    try:
        if module in ("torchvision", "timm"):
            # Works around a CPU build of torch beside another build of torchvision.
            importlib.import_module("mgi.model.image_encoder").import_timm()
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as problem:
        fix = f"run: pip install --force-reinstall {package}, at the version of the lock"
        return Finding(FAIL, module, _line(problem), fix)
    return Finding(PASS, module, "loads")


def _line(problem: Exception) -> str:
    return " ".join(str(problem).split())


def _or_why_not(subject: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """Give the findings; where a package that they need cannot be imported, that is the finding."""
    try:
        yield from findings
    except (ImportError, OSError) as problem:
        yield Finding(FAIL, subject, f"cannot be examined: {_line(problem)}", REINSTALL)


def _answer(*command: str) -> str | None:
    """Give what a program prints, or None where there is no such program or it fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def _conda() -> Finding:
    fix = f"only --use-conda needs it: install conda {LEAST_CONDA} or later, from conda-forge"
    found = _answer("conda", "--version")
    version = re.search(r"\d+(\.\d+)+", found or "")
    if version is None:
        return Finding(WARN, "conda", "not found", fix)
    if Version(version[0]) < LEAST_CONDA:
        return Finding(WARN, "conda", version[0], fix)
    return Finding(PASS, "conda", version[0])


def _slurm() -> Finding:
    found = _answer("sbatch", "--version")
    if found is None:
        return Finding(WARN, "slurm", "no sbatch", "only the SLURM profile needs it: run Snakemake on a login node")
    return Finding(PASS, "slurm", found)


def _inputs(config: Config) -> Iterator[Finding]:
    given = config.given_files()
    # Read where the GDC is looked at.
    given.pop("gdc.token_file", None)
    # Not among the files given first: a cohort can be pinned before its slides are annotated.
    if config.slides is not None and config.slides.annotations is not None and config.simulate is None:
        given["slides.annotations"] = config.slides.annotations
    for key, path in given.items():
        if Path(path).exists():
            yield Finding(PASS, key, path)
        else:
            yield Finding(FAIL, key, f"{path} is not there", "put it there or correct the key")


def _mri(config: Config) -> Iterator[Finding]:
    if config.mri is None:
        return
    from mgi.prepare.mri import find_series

    try:
        yield Finding(PASS, "mri.folder", f"{config.mri.folder}: {len(find_series(config.mri.folder))} series")
    except MGIError as problem:
        yield Finding(FAIL, "mri.folder", str(problem))


def _idc(config: Config) -> Iterator[Finding]:
    if config.slides is None or config.slides.fetch_from != "idc":
        return
    if importlib.util.find_spec("idc_index") is None:
        yield Finding(FAIL, "slides.fetch_from", "'idc' needs idc-index", "run: pip install idc-index")
    else:
        yield Finding(PASS, "slides.fetch_from", "idc-index is installed")


def _device(config: Config) -> Iterator[Finding]:
    if config.device == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if config.threads > cores:
            yield Finding(WARN, "device", f"{config.threads} threads on {cores} cores", f"set 'threads: {cores}'")
        else:
            yield Finding(PASS, "device", f"cpu, {config.threads} of {cores} cores a job")
        return
    import torch

    from mgi.train.device import find_missing_for_cuda

    # Pre-training encodes genes whatever the variant that starts from it does.
    genes = any(
        config.finetune[name].genes != "none" or config.needs_pretraining(name) for name in config.evaluate.variants
    )
    if missing := find_missing_for_cuda(genes):
        yield Finding(FAIL, "device", f"'device' is cuda, but {missing}", "train elsewhere, or set 'device: cpu'")
        return
    yield Finding(PASS, "device", f"cuda, {torch.cuda.device_count()} of {torch.cuda.get_device_name()}")


def _scan(config: Config) -> Iterator[Finding]:
    from mgi.model.scan import describe_path

    path = describe_path(config.device)
    if path.startswith("plain"):
        yield Finding(WARN, "scan", path, f"install {'numba' if config.device == 'cpu' else 'Triton or mamba-ssm'}")
    else:
        yield Finding(PASS, "scan", path)


def _gdc(config: Config) -> Iterator[Finding]:
    """Look at the token and at the mirrors that are folders, and ask the API for its status, once."""
    if config.gdc is None or config.simulate is not None:
        return
    import requests

    from mgi.acquire import web
    from mgi.simulate import serve

    if config.gdc.token_file:
        try:
            web.read_token(config.gdc.token_file)
            yield Finding(PASS, "gdc.token_file", config.gdc.token_file)
        except MGIError as problem:
            yield Finding(FAIL, "gdc.token_file", str(problem))
    for address in config.gdc.mirrors:
        if "://" not in address and not Path(address).is_dir():
            yield Finding(FAIL, "gdc.mirrors", f"{address} is not there", "put it there or correct the key")
    try:
        with serve.endpoint(config.gdc.api_url) as url, web.Server(url) as server:
            answer = server.request("GET", "/status")
            web.check(answer)
            yield Finding(PASS, "gdc.api_url", f"{config.gdc.api_url}: {answer.json()['data_release']}")
    except (MGIError, web.TryAgain, requests.RequestException, ValueError, KeyError) as problem:
        yield Finding(
            FAIL, "gdc.api_url", f"{config.gdc.api_url} gives no status: {web.reason(problem)}",
            "check the network and the proxy of this machine; compute nodes often have none, login nodes do",
        )  # fmt: skip


def _room(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free / 1e9
    if free < LEAST_FREE_GB:
        return Finding(WARN, "disk", f"{free:.1f} GB free in {folder}", "make room: resources/ and results/ lie here")
    return Finding(PASS, "disk", f"{free:.0f} GB free in {folder}")
