"""A file that grows: its `.part`, opened by nobody else, summed while it is written.

The manifest's md5 decides what a file is, wherever its bytes came from: a `.part` is continued across attempts, runs
and sources alike, and no ETag needs to be kept.
"""

import errno
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd

from mgi.acquire.answers import describe_text, is_page
from mgi.acquire.meter import Meter, Stop
from mgi.acquire.retry import MismatchError, TryAgainError
from mgi.console import log
from mgi.errors import FetchError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# A server that sends less in such a time has stalled.
STALL_SECONDS = 120.0
STALL_BYTES = 1 << 16
# A piece of this size is still in the cache when it is summed and written.
CHUNK = 1 << 18
# The most of a file whose size the manifest does not state, and what its disk must keep free, bytes.
MAX_UNSIZED_BYTES = 8 << 30
MIN_FREE_BYTES = 1 << 30
FREE_CHECK_BYTES = 1 << 26
LOCK_POLL_SECONDS = 0.5
# So long another process may hold a file without adding to it.
MAX_LOCK_SECONDS = 900.0
PRIVATE = 0o600


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch: where to, by way of what, and what it must be.

    Attributes
    ----------
    target, staged : Path
        Where it is to be, and where it has its name first.
    size : int or None
        Bytes, None if unknown.
    mode : int
        Its permissions when it is complete.
    """

    file_id: str
    name: str
    target: Path
    staged: Path
    md5: str
    size: int | None
    mode: int = PRIVATE

    @classmethod
    def from_row(cls, row: Any, out: Path, staging: Path, mode: int) -> "RemoteFile":
        """Return the file of a manifest's row."""
        size = None if pd.isna(row.size) else int(row.size)
        within = Path(row.file_id, row.file_name)
        return cls(row.file_id, row.file_name, out / within, staging / within, row.md5, size, mode)

    @property
    def part(self) -> Path:
        """Where it grows."""
        return self.staged.with_name(f"{self.name}.part")

    def is_complete(self, path: Path) -> bool:
        """Return whether `path` is this file, byte for byte."""
        if not path.is_file() or self.size not in (None, path.stat().st_size):
            return False
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, "md5").hexdigest() == self.md5

    def find_partial(self) -> Path | None:
        """Return what the GDC's own client left of it, None without such a file."""
        paths = (path.with_name(f"{self.name}.partial") for path in (self.staged, self.target))
        return next((path for path in paths if path.is_file() and not path.is_symlink()), None)

    def missing_bytes(self) -> int:
        """Return the bytes still to be written, as far as names and sizes tell."""
        done = [path.stat().st_size for path in (self.target, self.staged, self.part) if path.is_file()]
        return max((self.size or 0) - max(done, default=0), 0)


@contextmanager
def open_part(path: Path, stop: Stop) -> Iterator[BinaryIO]:
    """Open a `.part` for appending, as no other process has it open; the system takes the lock back from a killed one.

    Raises
    ------
    FetchError
        If it is a link or another user's, or another process holds it for 15 minutes without adding to it.
    """
    held_since, held_size = time.monotonic(), -1
    while True:
        with _open_own(path) as handle:
            if not _lock(handle):
                size = os.fstat(handle.fileno()).st_size
                if held_size < 0:
                    log.info("waiting for another process that downloads %s", path.name.removesuffix(".part"))
                if size != held_size:
                    held_since, held_size = time.monotonic(), size
                elif time.monotonic() - held_since > MAX_LOCK_SECONDS:
                    raise FetchError(
                        f"another process has held {path} for {MAX_LOCK_SECONDS / 60:.0f} min without adding to it: "
                        "end that process, or remove the file"
                    )
                stop.pause(LOCK_POLL_SECONDS)
                continue
            # The process that held the lock may have given the file another name, or removed it.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle.fileno()), os.lstat(path)):
                    yield handle
                    return


def _open_own(path: Path) -> BinaryIO:
    """Open a file of this user's alone for appending, made if missing, so that nobody else can read or lock it."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
    for name in ("O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK"):
        flags |= getattr(os, name, 0)
    try:
        handle = os.open(path, flags, PRIVATE)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK, errno.EISDIR, errno.ENXIO):
            raise FetchError(f"{path} is not a plain file: remove it") from error
        raise
    found = os.fstat(handle)
    is_ours = not hasattr(os, "getuid") or found.st_uid == os.getuid()
    if not stat.S_ISREG(found.st_mode) or not is_ours or found.st_nlink > 1:
        os.close(handle)
        raise FetchError(f"{path} is no plain file, linked, or another user's: remove it")
    # Some file systems know no permissions.
    with suppress(OSError, AttributeError):
        os.fchmod(handle, PRIVATE)
    return os.fdopen(handle, "a+b")


def _lock(handle: BinaryIO) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.debug("%s cannot be locked: %s", handle.name, error)
    return True


def _md5() -> "hashlib._Hash":
    return hashlib.md5(usedforsecurity=False)


class Part:
    """The `.part` of a file: what an earlier attempt left is continued.

    Attributes
    ----------
    have : int
        Its bytes so far.
    attempts : int
        How often sources were asked for it.
    """

    def __init__(self, handle: BinaryIO, file: RemoteFile, meter: Meter):
        self.handle, self.file, self.meter = handle, file, meter
        self.have = self.attempts = 0
        self.md5 = _md5()
        handle.seek(0)
        while chunk := handle.read(CHUNK):
            self._count(chunk)
        meter.add(self.have)
        if file.size is not None and self.have > file.size:
            self.restart()
        self._take_over_partial()

    def _take_over_partial(self) -> None:
        """Continue from what the GDC's own client left, where that is more."""
        partial = self.file.find_partial()
        if partial is None or partial.stat().st_size <= self.have:
            return
        self.restart()
        with open(partial, "rb") as source:
            self.append(lambda: source.read(CHUNK), received=False)
        if self.file.size is not None and self.have > self.file.size:
            self.restart()

    def _count(self, chunk: bytes) -> None:
        self.have += len(chunk)
        self.md5.update(chunk)

    def restart(self) -> None:
        """Begin again from nothing."""
        self.forget()
        self.handle.flush()
        self.handle.truncate(0)
        self.md5 = _md5()

    def forget(self) -> None:
        """Subtract this file's bytes from the meter."""
        self.meter.add(-self.have)
        self.have = 0

    def append(self, read: Callable[[], bytes], received: bool = True) -> None:
        """Append what `read` returns until it returns nothing, hardly anything, or more than the file holds.

        Raises
        ------
        TryAgainError
            If a web page begins where the file should, or the server stalls.
        FetchError
            If a file of unknown size grows beyond the limit, the disk fills, or the job is interrupted.
        """
        since, before = time.monotonic(), self.have
        while chunk := read():
            if self.meter.stop.is_set():
                raise FetchError("interrupted")
            if self.have == 0 and is_page(chunk):
                raise TryAgainError(f"a web page arrived instead of the file: {describe_text(chunk)}")
            self._refuse_beyond_limit(len(chunk))
            self.handle.write(chunk)
            # A killed process keeps what it has handed to the system.
            self.handle.flush()
            self._count(chunk)
            self.meter.add(len(chunk), received)
            if self.file.size is not None and self.have > self.file.size:
                return
            if time.monotonic() - since > STALL_SECONDS:
                if self.have - before < STALL_BYTES:
                    raise TryAgainError(f"the server sent {self.have - before} bytes in {STALL_SECONDS:.0f} s")
                since, before = time.monotonic(), self.have

    def _refuse_beyond_limit(self, more: int) -> None:
        """Raise `FetchError` if a file of unknown size would grow too large for its limit or its disk."""
        if self.file.size is not None:
            return
        if self.have + more > MAX_UNSIZED_BYTES:
            raise FetchError(f"the file is larger than {MAX_UNSIZED_BYTES / 1e9:.1f} GB, and its size is not known")
        if self.have // FREE_CHECK_BYTES != (self.have + more) // FREE_CHECK_BYTES:
            free = shutil.disk_usage(self.file.part.parent).free
            if free < MIN_FREE_BYTES:
                raise FetchError(f"the disk has {free / 1e9:.1f} GB free, and the size of the file is not known")

    def sync(self) -> None:
        """Flush the file to the disk, and give it its permissions."""
        self.handle.flush()
        with suppress(OSError, AttributeError):
            os.fchmod(self.handle.fileno(), self.file.mode)
        with suppress(OSError):
            os.fsync(self.handle.fileno())

    def verify(self) -> None:
        """Return if the file is complete.

        Raises
        ------
        TryAgainError
            If it is short.
        MismatchError
            If it is another file; nothing of it is kept.
        """
        size, got = self.file.size, self.md5.hexdigest()
        if size is not None and self.have < size:
            raise TryAgainError(f"the download ended after {self.have} of {size} bytes")
        if size not in (None, self.have) or got != self.file.md5:
            stated = "an unknown size" if size is None else f"{size} bytes"
            message = f"{self.have} bytes with md5 {got} arrived, but the manifest says {stated} and {self.file.md5}"
            self.restart()
            raise MismatchError(message)


def take_link(file: RemoteFile, source: Path) -> bool:
    """Make `file` a hard link to `source` if that is it, byte for byte; return whether it is."""
    if not file.is_complete(source):
        return False
    aside = file.staged.with_name(f".{file.name}.link")
    try:
        aside.unlink(missing_ok=True)
        os.link(os.path.realpath(source), aside)
        os.replace(aside, file.staged)
    except OSError as error:
        log.debug("%s cannot be linked, it is copied: %s", source, error)
        return False
    return True
