"""Write requirements.lock and requirements-cuda.lock: every package pinned, with the sha256 of each file accepted.

Needs uv on the PATH: `python dev/lock.py` keeps the versions that are pinned, `python dev/lock.py --upgrade` takes the
newest. The files of an index are kept that Python 3.11 to 3.13 on Linux (x86_64 and aarch64) may install.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK, CUDA_LOCK = ROOT / "requirements.lock", ROOT / "requirements-cuda.lock"
LINUX = [f"sys_platform == 'linux' and platform_machine == '{machine}'" for machine in ("x86_64", "aarch64")]
WHEEL = re.compile(
    r"-(py3|py2\.py3|cp31[123]|cp3\d?-abi3|cp31[0-3]-abi3)(-[^-]+)?-(any|.*manylinux.*_(x86_64|aarch64).*)\.whl$"
)
FREE_THREADED = re.compile(r"cp3\d+t")
CUDA = re.compile(r"^(nvidia|cuda)-")
# torch's CPU build (2.13.0+cpu for Python 3.11, x86_64) is accepted beside the index's, which is built with CUDA.
CPU_BUILDS = {
    "torch": ["6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"],
}
HEAD = """\
# Everything this project runs on, for Python 3.11 to 3.13 on Linux; written by dev/lock.py.
# `pip install --no-deps -r requirements.lock`, and where torch is built with CUDA its libraries from
# requirements-cuda.lock in the same way: `make .venv/.installed` does both. Of torch both the index's builds and a CPU
# build (the last hash) are accepted.
"""
CUDA_HEAD = """\
# The CUDA libraries of torch's wheel, which a CPU build does not need; written by dev/lock.py.
"""


def main() -> None:
    """Resolve, and write both files."""
    with tempfile.TemporaryDirectory() as folder:
        _write_project(Path(folder), upgrade="--upgrade" in sys.argv)
        _run_uv(folder, "lock")
        options = ("--extra=dev", "--no-emit-project", "--no-hashes", "--no-header", "--no-annotate")
        pins = _run_uv(folder, "export", *options).splitlines()
        hashes = {package["name"]: _hashes(package) for package in _packages(Path(folder))}
    lines = [_entry(pin, hashes) for pin in pins]
    LOCK.write_text(HEAD + "".join(line for line in lines if not CUDA.match(line)))
    CUDA_LOCK.write_text(CUDA_HEAD + "".join(line for line in lines if CUDA.match(line)))


def _write_project(folder: Path, upgrade: bool) -> None:
    """Write a pyproject.toml of the same requirements, held to the pins that are there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    files = () if upgrade else (path for path in (LOCK, CUDA_LOCK) if path.exists())
    pins = [line.split(";")[0].strip(" \\") for path in files for line in path.read_text().splitlines() if "==" in line]
    lines = [
        '[project]\nname = "mgi"\nversion = "0"\nrequires-python = ">=3.11,<3.14"',
        f"dependencies = {json.dumps(project['dependencies'])}\n[project.optional-dependencies]",
        *(f"{name} = {json.dumps(needed)}" for name, needed in project["optional-dependencies"].items()),
        f"[tool.uv]\nenvironments = {json.dumps(LINUX)}\nconstraint-dependencies = {json.dumps(pins)}",
    ]
    (folder / "pyproject.toml").write_text("\n".join(lines))


def _run_uv(folder: str, *command: str) -> str:
    return subprocess.run(["uv", "-q", *command], cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout


def _packages(folder: Path) -> list[dict]:
    return tomllib.loads((folder / "uv.lock").read_text())["package"]


def _hashes(package: dict) -> list[str]:
    """Return the sha256 of the wheels for Linux, or of the source distribution where there is none."""
    wheels = [
        file["hash"]
        for file in package.get("wheels", [])
        if WHEEL.search(file["url"]) and not FREE_THREADED.search(file["url"])
    ]
    source = [package["sdist"]["hash"]] if "sdist" in package and not wheels else []
    builds = [f"sha256:{digest}" for digest in CPU_BUILDS.get(package["name"], [])]
    return sorted(wheels + source) + builds


def _entry(pin: str, hashes: dict[str, list[str]]) -> str:
    """Write a pin with its hashes, and of its markers the one that tells versions of Python apart."""
    requirement, _, marker = pin.partition(";")
    requirement = requirement.strip()
    name = requirement.split("==")[0]
    python = re.search(r"python_(?:full_)?version [<>=]+ '3\.\d+'", marker)
    head = f"{requirement} ; {python[0]}" if python else requirement
    return " \\\n".join([head, *(f"    --hash={digest}" for digest in hashes[name])]) + "\n"


if __name__ == "__main__":
    main()
