"""What this machine lacks for a configuration, found before a run instead of hours into it."""

import importlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from mgi.check import check_inputs, check_models
from mgi.config import LOCAL, Config, load_config
from mgi.errors import MGIError, MissingPackageError
from mgi.findings import FAIL, PASS, WARN, Finding, examine_features, examine_pinned, examine_series, examine_slides

MIN_CONDA = Version("24.7.1")
MIN_FREE_GB = 10
PROGRAM_SECONDS = 20
SCAN_PACKAGES = {"cpu": "numba", "cuda": "mamba-ssm or triton"}
REINSTALL = "run: pip install --no-deps -r requirements.lock"
# Each loads a native library of its own, and fails in its own way where that library is missing or of another build.
NATIVE = {"openslide": "openslide-bin", "pyvips": "pyvips-binary", "torchvision": "torchvision", "timm": "timm"}


def examine(config_file: Path | None) -> Iterator[Finding]:
    """Yield what this machine has and lacks and, with a configuration, what is wrong with what it names.

    Nothing is written, and only the GDC's `/status` is asked over the network.
    """
    yield from _check_packages()
    yield from (_check_native(module, package) for module, package in NATIVE.items())
    yield _check_conda()
    yield _check_slurm()
    if config_file is None:
        yield from _explain_failure("scan", _check_scan(None))
        yield Finding(WARN, "configuration", "none given", "name one with --config to check its inputs and models")
        return
    try:
        config = load_config(config_file)
    except MGIError as error:
        yield Finding(FAIL, "configuration", str(error), f"correct {config_file}")
        return
    yield Finding(PASS, "configuration", f"{config_file} is valid")
    yield from (Finding(WARN, "configuration", sentence) for sentence in config.warnings())
    for subject, findings in {
        "mri.folder": _check_mri(config),
        "inputs": _check_inputs(config),
        "slides.fetch_from": _check_idc(config),
        "device": _check_device(config),
        "scan": _check_scan(config),
        "models": _check_models(config),
        "gdc.api_url": _check_gdc(config),
    }.items():
        yield from _explain_failure(subject, findings)
    yield _check_disk(Path.cwd())


def _check_packages() -> Iterator[Finding]:
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


def _check_native(module: str, package: str) -> Finding:
    try:
        if module in ("torchvision", "timm"):
            # Works around a CPU build of torch beside another build of torchvision.
            importlib.import_module("mgi.model.image_encoder").import_timm()
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        fix = f"run: pip install --force-reinstall {package}, at the version of the lock"
        return Finding(FAIL, module, _one_line(error), fix)
    return Finding(PASS, module, "loads")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _explain_failure(subject: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """Yield the findings; where a package that they need cannot be imported, that is the finding."""
    try:
        yield from findings
    except (ImportError, OSError, RuntimeError) as error:
        yield Finding(FAIL, subject, f"cannot be checked: {_one_line(error)}", REINSTALL)


def _run_program(*command: str) -> str | None:
    """Return what a program prints, or None where there is no such program, or it fails or hangs."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROGRAM_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _check_conda() -> Finding:
    fix = f"only --use-conda needs it: install conda {MIN_CONDA} or later, from conda-forge"
    found = _run_program("conda", "--version")
    version = re.search(r"\d+(\.\d+)+", found or "")
    if version is None:
        return Finding(WARN, "conda", "not found", fix)
    if Version(version[0]) < MIN_CONDA:
        return Finding(WARN, "conda", version[0], fix)
    return Finding(PASS, "conda", version[0])


def _check_slurm() -> Finding:
    found = _run_program("sbatch", "--version")
    if found is None:
        return Finding(WARN, "slurm", "no sbatch", "only the SLURM profile needs it: run Snakemake on a login node")
    return Finding(PASS, "slurm", found)


def _check_inputs(config: Config) -> Iterator[Finding]:
    """Look for every file that the configuration names, then check what is in them."""
    given = config.given_files()
    # Read where the GDC is looked at.
    given.pop("gdc.token_file", None)
    # Not among the files given first: a cohort can be pinned before its slides are annotated.
    if config.slides is not None and config.slides.annotations is not None and config.simulate is None:
        given["slides.annotations"] = config.slides.annotations
    missing = [key for key, path in given.items() if not Path(path).exists()]
    for key, path in given.items():
        if key in missing:
            yield Finding(FAIL, key, f"{path} does not exist", "create it or correct the key")
        else:
            yield Finding(PASS, key, path)
    # A missing MRI folder is reported by itself.
    if missing or (config.mri is not None and not Path(config.mri.folder).exists()):
        return
    try:
        plan = check_inputs(config)
        if config.simulate is None and config.expression.table is None and config.expression.positions is not None:
            from mgi.prepare.expression import read_star_places

            read_star_places(config.expression.positions, config.expression.unit)
        yield from examine_slides(config, plan)
        yield from examine_series(config, plan)
        yield from examine_features(config, plan)
        yield from (Finding(WARN, "inputs", sentence) for sentence in plan.find_unpaired() + plan.stray_mpp)
    except MGIError as error:
        yield Finding(FAIL, "inputs", str(error))


def _check_mri(config: Config) -> Iterator[Finding]:
    if config.mri is None:
        return
    from mgi.prepare.series import find_series

    try:
        yield Finding(PASS, "mri.folder", f"{config.mri.folder}: {len(find_series(config.mri.folder))} series")
    except MGIError as error:
        yield Finding(FAIL, "mri.folder", str(error))


def _check_idc(config: Config) -> Iterator[Finding]:
    if config.slides is None or config.slides.fetch_from != "idc":
        return
    if importlib.util.find_spec("idc_index") is None:
        yield Finding(FAIL, "slides.fetch_from", "'idc' needs idc-index", "run: pip install idc-index")
    else:
        yield Finding(PASS, "slides.fetch_from", "idc-index is installed")


def _check_device(config: Config) -> Iterator[Finding]:
    if config.device == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if config.threads > cores:
            yield Finding(WARN, "device", f"{config.threads} threads on {cores} cores", f"set 'threads: {cores}'")
        else:
            yield Finding(PASS, "device", f"cpu, {config.threads} of {cores} cores a job")
        return
    import torch

    if torch.cuda.is_available():
        yield Finding(PASS, "device", f"cuda, {torch.cuda.device_count()} of {torch.cuda.get_device_name()}")


def _check_scan(config: Config | None) -> Iterator[Finding]:
    """Name the path that the selective scan takes on the device of a configuration, or the best one here."""
    import torch

    from mgi.model.scan import describe_path

    device = config.device if config else "cuda" if torch.cuda.is_available() else "cpu"
    path = describe_path(device)
    if path.startswith("plain"):
        yield Finding(WARN, "scan", f"{device}: {path}", f"install {SCAN_PACKAGES[device]}")
    else:
        yield Finding(PASS, "scan", f"{device}: {path}")


def _check_models(config: Config) -> Iterator[Finding]:
    try:
        check_models(config)
    except MissingPackageError as error:
        yield Finding(WARN, "models", f"not built: {error}", "only training needs it")
    except MGIError as error:
        yield Finding(FAIL, "models", str(error))
    else:
        yield Finding(PASS, "models", f"{len(config.pretrain) + len(config.finetune)} can be built")


def _check_gdc(config: Config) -> Iterator[Finding]:
    """Look at the token and at the mirrors that are folders, and ask the API for its status, once."""
    if config.gdc is None or config.simulate is not None:
        return
    from mgi.acquire.gdc import read_release
    from mgi.acquire.web import Server, read_token

    if config.gdc.token_file:
        try:
            read_token(config.gdc.token_file)
            yield Finding(PASS, "gdc.token_file", config.gdc.token_file)
        except MGIError as error:
            yield Finding(FAIL, "gdc.token_file", str(error))
    lacking, findings = examine_pinned(config)
    yield from findings
    if config.gdc.api_url.startswith(LOCAL):
        yield _check_local_gdc(Path(config.gdc.api_url.removeprefix(LOCAL)))
        return
    try:
        with Server(config.gdc.api_url, allow_http=config.gdc.allow_http) as server:
            yield Finding(PASS, "gdc.api_url", f"{config.gdc.api_url}: {read_release(server, retry=False)}")
    except MGIError as error:
        if lacking == 0:
            yield Finding(WARN, "gdc.api_url", str(error), "not needed: the mirrors have every pinned file")
            return
        yield Finding(
            FAIL, "gdc.api_url", str(error),
            "check the network and the proxy of this machine; compute nodes often have none, login nodes do",
        )  # fmt: skip


def _check_local_gdc(folder: Path) -> Finding:
    """Check a folder that takes the place of the GDC."""
    missing = [name for name in ("manifest.tsv", "files.json", "status.json") if not (folder / name).is_file()]
    if missing:
        return Finding(
            FAIL, "gdc.api_url", f"{folder} lacks {', '.join(missing)}", f"make it with: mgi simulate {folder}"
        )
    return Finding(PASS, "gdc.api_url", f"{LOCAL}{folder}")


def _check_disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free / 1e9
    if free < MIN_FREE_GB:
        return Finding(WARN, "disk", f"{free:.1f} GB free in {folder}", "free some: resources/ and results/ are here")
    return Finding(PASS, "disk", f"{free:.0f} GB free in {folder}")
