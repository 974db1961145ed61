"""`last.ckpt`: the state of an unfinished training run, and what it must agree on to be resumed."""

import hashlib
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import mgi.model
import mgi.train
from mgi.codecs import decode_image
from mgi.console import log
from mgi.errors import TrainingError
from mgi.files import atomic_write
from mgi.prepare import native, pictures, pixels, reader, store

LAST = "last.ckpt"
LIBRARIES = ("imagecodecs", "numpy", "openslide-python", "pillow", "tifffile", "timm", "torch")
SLIDE_READERS = (native, pictures, pixels, reader, store)
_KEYS = {"identity", "step", "running", "history", "best", "best_weights", "average", "model", "optimiser"}


@cache
def code_hash() -> str:
    """Hash the code that decides the weights: mgi.model, mgi.train, codecs, readers of slides, libraries' versions."""
    content = hashlib.sha256()
    folders = [Path(package.__path__[0]) for package in (mgi.model, mgi.train)]
    modules = [Path(str(module.__file__)) for module in (sys.modules[decode_image.__module__], *SLIDE_READERS)]
    for path in sorted([*(path for folder in folders for path in folder.rglob("*.py")), *modules]):
        content.update(f"{path.parent.name}/{path.name}".encode() + hashlib.sha256(path.read_bytes()).digest())
    content.update(" ".join(map(version, LIBRARIES)).encode())
    return content.hexdigest()[:16]


def write_state(state: dict[str, Any], path: Path) -> None:
    """Write the state of a run, aside and renamed; the one before stays until the new one is complete.

    Raises
    ------
    TrainingError
        If the disk is full or cannot be written to.
    """
    try:
        with atomic_write(path) as aside, open(aside, "wb") as handle:
            torch.save(state, handle)
    except (OSError, RuntimeError) as error:
        # torch reports a failed write as a RuntimeError of its own, in the context of the system's.
        cause = error if isinstance(error, OSError) else error.__context__
        reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else " ".join(str(error).split())
        raise TrainingError(
            f"cannot write {path}: {reason}; make room and run again: training goes on from the state before this one"
        ) from error


def read_state(path: Path, identity: dict[str, Any], device: torch.device) -> dict[str, Any] | None:
    """Read the state of a run that agrees with `identity`; None, with one warning, where there is no such state."""
    # What an earlier run of this folder was killed while writing.
    for leftover in path.parent.glob(".*.part"):
        leftover.unlink(missing_ok=True)
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # whatever torch, pickle and zip raise for bytes that are no state
        reason = (" ".join(str(error).split()) or type(error).__name__)[:120]
        log.warning("%s cannot be read and is ignored; training starts from the beginning: %s", path, reason)
        return None
    if not isinstance(state, dict) or state.keys() != _KEYS or not isinstance(state["identity"], dict):
        log.warning("%s is not the state of a training run and is ignored; training starts from the beginning", path)
        return None
    differing = sorted(key for key in identity if state["identity"].get(key) != identity[key])
    if differing:
        log.warning(
            "%s was written under another %s and is ignored; training starts from the beginning",
            path, ", another ".join(differing),
        )  # fmt: skip
        return None
    return state
