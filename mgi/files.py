"""Files between the stages: written under a temporary name, then renamed, so that a name means a complete file.

A temporary file is named `.{name}.{machine}-{process}-{random}.part`. What a killed process left is removed when the
same file is written again: at once where the process was on this machine and has ended, else after a week.
"""

import errno
import functools
import hashlib
import os
import platform
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mgi.errors import MissingInputError, OutputError

LEFTOVER_SECONDS = 7 * 24 * 3600
# What fsync reports that a full or broken disk did; anything else says that the file system knows no fsync.
LOST_DATA = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# A file name has 255 bytes at most, and the temporary one is longer by 31.
MAX_STEM_BYTES = 200
_PART = re.compile(r"(?P<machine>[0-9a-f]{8})-(?P<process>[0-9]{1,10})-[0-9a-f]{8}\.part")


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on failure.

    The content is flushed to the disk before the rename, so a crash leaves either the old file or the new one. The
    permissions are those of the umask. File systems that know neither flushing nor permissions are written to all the
    same.

    Raises
    ------
    OutputError
        If `path` is there and is no regular file.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OutputError(f"cannot write {path}: {'is a folder' if path.is_dir() else 'is no regular file'}")
    path.parent.mkdir(parents=True, exist_ok=True)
    stem = _part_stem(path)
    _remove_leftovers(path.parent, stem)
    part = path.with_name(f"{stem}{_identify_machine()}-{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        yield part
        with open(part, "rb+") as handle:
            _flush(handle.fileno())
        # Some libraries write for the user alone, whatever the umask.
        with suppress(OSError):
            os.chmod(part, 0o666 & ~read_umask())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _part_stem(path: Path) -> str:
    """Return what the temporary names of a file begin with."""
    name = path.name.encode()
    if len(name) > MAX_STEM_BYTES:
        name = hashlib.sha256(name).hexdigest().encode()
    return f".{name.decode(errors='replace')}."


def _remove_leftovers(folder: Path, stem: str) -> None:
    """Remove the temporary files of one file that no living process writes."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(stem) and (found := _PART.fullmatch(entry.name, len(stem))):
                with suppress(OSError):
                    if _is_abandoned(found["machine"], int(found["process"]), entry):
                        os.unlink(entry.path)


def _is_abandoned(machine: str, process: int, entry: os.DirEntry) -> bool:
    if machine == _identify_machine():
        return not _is_running(process)
    return time.time() - entry.stat(follow_symlinks=False).st_mtime > LEFTOVER_SECONDS


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@functools.cache
def _identify_machine() -> str:
    """Return eight digits for where process numbers mean the same: a host, and within it a container."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return hashlib.sha256(f"{platform.node()} {namespace}".encode()).hexdigest()[:8]


def _flush(descriptor: int) -> None:
    """Write a file's content to the disk, where its file system can."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in LOST_DATA:
            raise


def read_umask() -> int:
    """Return the umask, which the system tells only by setting another; not for threads."""
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
