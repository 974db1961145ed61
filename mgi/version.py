"""The version of this code: from git tags in a checkout, else what was installed."""

import importlib.metadata
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Of a copy of the sources without git and without installation; pyproject.toml names it, too.
FALLBACK = "0.1.0"
TAG = re.compile(r"v?(?P<release>\d[\w.]*)-(?P<distance>\d+)-(?P<commit>g[0-9a-f]+)(?P<dirty>-dirty)?")


def find_version(root: Path = ROOT) -> str:
    """Return the version as PEP 440 writes it: the tag, and how far from it the checkout `root` is.

    Rules run from the checkout in environments where mgi is not installed, and an installation made from an older
    commit may stand beside it, so git is asked first.
    """
    if (root / ".git").exists():
        return _describe(root) or FALLBACK
    try:
        return importlib.metadata.version("mgi")
    except importlib.metadata.PackageNotFoundError:
        return FALLBACK


def _describe(root: Path) -> str | None:
    """Return the version that git tells, or None where there is no git, or no commit that it will show."""
    command = ["git", f"--git-dir={root / '.git'}", f"--work-tree={root}", "describe"]
    described = _run([*command, "--tags", "--match=v[0-9]*", "--long", "--dirty"])
    tag = TAG.fullmatch(described or "")
    if tag is None:
        commit = _run([*command, "--always", "--exclude=*", "--dirty"])
        return commit and f"{FALLBACK}.dev0+g{commit.replace('-', '.')}"
    dirty = ".dirty" if tag["dirty"] else ""
    if tag["distance"] == "0" and not dirty:
        return tag["release"]
    return f"{tag['release']}.post1.dev{tag['distance']}+{tag['commit']}{dirty}"


def _run(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
