"""Files between the stages: written aside, then renamed, so that a name always means a complete file."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mgi.errors import MissingInputError


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on failure.

    The content is flushed to the disk before the rename, so a crash leaves either the old file or the new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield aside
        with open(aside, "rb+") as handle:
            os.fsync(handle.fileno())
        # Some libraries write for the user alone, whatever the umask.
        os.chmod(aside, 0o666 & ~_umask())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _umask() -> int:
    """Read the umask, which the system gives only for another."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def require_file(path: Path | str, what: str) -> Path:
    """Return `path` as a `Path`, or raise `MissingInputError` naming `what` was looked for."""
    path = Path(path)
    if not path.exists():
        raise MissingInputError(f"{what} not found: {path}")
    return path


def is_system_file(name: str) -> bool:
    """Return whether an operating system leaves files of this name beside the user's: `._*`, `Thumbs.db` and others."""
    return name.startswith(".") or name in ("Thumbs.db", "desktop.ini", "__MACOSX")
