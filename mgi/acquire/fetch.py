"""Files of a manifest, fetched from mirrors and the GDC, verified, and resumed where an earlier attempt stopped.

A file has its name only once its size and md5 hold; until then it is `{file_name}.part`, locked while it grows, so
that two processes never write one file. The manifest's md5 decides what a file is, wherever its bytes came from: a
`.part` is taken up across attempts, runs and sources alike, and no ETag needs to be kept.
"""

import hashlib
import math
import os
import re
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import quote, urlsplit

import pandas as pd
import requests

from mgi.acquire import web
from mgi.acquire.gdc import kind_of
from mgi.acquire.manifest import read_manifest
from mgi.console import log, transfer
from mgi.errors import ConfigError, FetchError, ManifestError, MissingInputError
from mgi.simulate.serve import endpoint
from mgi.tables import write_tsv

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MISMATCHES = 4
MIRROR_TRIES = 2
# So many files in a row, and a mirror is not asked any more.
MIRROR_FAILURES = 3
# A server that worked and has given nobody anything for the first of these is down, and is waited for up to the second.
OUTAGE_AFTER_SECONDS = 60.0
OUTAGE_SECONDS = 3600.0
# A server that sends less in such a time has stalled.
STALL_SECONDS = 120.0
STALL_BYTES = 1 << 16
# A piece of this size is still in the cache when it is summed and written.
CHUNK = 1 << 18
PROGRESS = 1 << 20
LOCK_POLL_SECONDS = 0.5
POLL_SECONDS = 0.5
SECONDS_TO_STOP = 2.0
FETCHED, KEPT, FAILED, NOT_TRIED = "fetched", "kept", "failed", "not tried"


def fetch(
    manifest: Path,
    out: Path,
    api_url: str,
    workers: int,
    *,
    data_type: str | None = None,
    file_ids: list[str] | None = None,
    rows: slice = slice(None),
    mirrors: list[str] | None = None,
    token_file: Path | None = None,
    partial: Path | None = None,
    receipt: Path | None = None,
    status: Path | None = None,
) -> None:
    """Fetch a manifest's files to `out/{file_id}/{file_name}`, keeping complete ones and resuming partial ones.

    Parameters
    ----------
    manifest
        Manifest made by `mgi.acquire.gdc.query`.
    out
        Folder to fill.
    api_url
        The GDC API, or `local:DIR`.
    workers
        Downloads at once.
    data_type
        Only `expression`, `slides` or `annotation`.
    file_ids
        Only these files.
    rows
        Only these of what is selected so far, in the manifest's order.
    mirrors
        Tried before the GDC, in this order: a folder that holds `{file_id}/{file_name}` or `{file_name}`, or an http(s)
        address, to which `/data/{file_id}` is appended unless it holds `{file_id}` or `{file_name}` itself.
    token_file
        File of the GDC token; it is sent to `api_url` only.
    partial
        Folder for what is under way, on the file system of `out`: files move to `out` when all are complete. By
        default they grow in `out`.
    receipt
        Table (TSV: file_id, file_name, size in bytes, md5, state) written last, only when every file is complete.
    status
        Table (TSV: file_id, file_name, state, attempts, seconds, reason) written in any case; state is `fetched`,
        `kept` (it was complete), `failed` or `not tried`. By default beside the receipt or, without one, beside `out`.

    Raises
    ------
    ManifestError
        If the manifest is unusable, or holds nothing of what is asked for.
    ConfigError, MissingInputError
        If an address, the token or a mirror cannot be used, or `partial` is on another file system than `out`.
    FetchError
        If the disk is too small, or any file could not be fetched; all others are kept.
    """
    frame = wanted(read_manifest(manifest), manifest, data_type, file_ids).iloc[rows]
    if frame.empty:
        raise ManifestError(
            f"manifest {manifest} holds no file to fetch: it is empty, or ends before the rows asked for"
        )
    # Beside the folder itself, should it be given as `.`.
    beside = receipt or Path(f"{os.path.abspath(out)}.tsv")
    status = status or beside.with_suffix(".status.tsv")
    staging = partial or out
    if _there(staging).stat().st_dev != _there(out).stat().st_dev:
        raise ConfigError(f"{staging} and {out} are on different file systems; files could not be moved between them")
    files = [_File.of(row, out, staging) for row in frame.itertuples()]
    refuse_without_room(sum(file.missing_bytes() for file in files), staging)
    meter = _Meter(sum(file.size or 0 for file in files), patience=max(2 * workers, 8))
    started = time.monotonic()
    with ExitStack() as stack:
        url = stack.enter_context(endpoint(api_url))
        sources = [_mirror(address, workers, stack) for address in mirrors or []]
        token = web.read_token(token_file) if token_file else None
        gdc = stack.enter_context(web.Server(url, workers, token))
        sources.append(_Site(gdc, "/data/{file_id}", web.TRIES, MISMATCHES, patient=True))
        outcomes = [_Outcome(file.file_id, file.name) for file in files]
        try:
            _all_done(lambda file, outcome: _obtain(file, sources, meter, outcome), files, outcomes, workers, meter)
        finally:
            _write_status(outcomes, status)
    _refuse_failures(outcomes, staging)
    if partial is not None:
        _move(files)
    seconds = time.monotonic() - started
    log.info("%d files complete in %s, %.1f MB fetched in %.1f s", len(files), out, meter.received / 1e6, seconds)
    if receipt is not None:
        sizes = [file.target.stat().st_size for file in files]
        table = frame[["file_id", "file_name", "md5"]].assign(size=sizes, state="complete")
        write_tsv(table[["file_id", "file_name", "size", "md5", "state"]], receipt)


def wanted(rows: pd.DataFrame, manifest: Path, data_type: str | None, file_ids: list[str] | None) -> pd.DataFrame:
    """Select the rows of a manifest that are asked for.

    Raises
    ------
    ManifestError
        If it holds no such data type, or not one of the files.
    """
    if data_type is not None:
        rows = rows[rows.data_type == kind_of(data_type)]
        if rows.empty:
            raise ManifestError(f"manifest {manifest} holds no file of type '{data_type}'")
    if file_ids:
        absent = [file_id for file_id in file_ids if file_id not in set(rows.file_id)]
        if absent:
            raise ManifestError(
                f"manifest {manifest} holds no file {absent[0]}{f' of type {data_type!r}' if data_type else ''}"
            )
        rows = rows[rows.file_id.isin(file_ids)]
    return rows


@dataclass(frozen=True)
class _File:
    """A file to fetch: where to, by way of what, and what it must be; size in bytes, None if unknown."""

    file_id: str
    name: str
    target: Path
    staged: Path
    md5: str
    size: int | None

    @classmethod
    def of(cls, row: Any, out: Path, staging: Path) -> "_File":
        """Take a row of a manifest."""
        size = None if pd.isna(row.size) else int(row.size)
        within = Path(row.file_id, row.file_name)
        return cls(row.file_id, row.file_name, out / within, staging / within, row.md5, size)

    @property
    def part(self) -> Path:
        return self.staged.with_name(f"{self.name}.part")

    def is_complete(self, path: Path) -> bool:
        """Whether `path` is this file, byte for byte."""
        if not path.is_file() or self.size not in (None, path.stat().st_size):
            return False
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, "md5").hexdigest() == self.md5

    def missing_bytes(self) -> int:
        """Bytes still to be written, as far as names and sizes tell."""
        done = [path.stat().st_size for path in (self.target, self.staged, self.part) if path.is_file()]
        return max((self.size or 0) - max(done, default=0), 0)


@dataclass
class _Outcome:
    """What became of a file: a row of the status table."""

    file_id: str
    file_name: str
    state: str = NOT_TRIED
    attempts: int = 0
    seconds: float = 0.0
    reason: str = ""


def refuse_without_room(needed: int, folder: Path) -> None:
    """Raise `FetchError` if the disk of `folder` has not `needed` bytes free."""
    free = shutil.disk_usage(_there(folder)).free
    if needed > free:
        raise FetchError(
            f"{needed / 1e9:.1f} GB are to be fetched to {folder}, but its disk has {free / 1e9:.1f} GB free; make "
            "room, or fetch fewer files at a time"
        )


def _there(folder: Path) -> Path:
    """Give the folder, or the nearest above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


class _Meter:
    """Bytes done and received over all downloads, and whether they should stop.

    `patience` is how many files in a row may fail for good, with no byte received meanwhile, before each of the rest is
    asked for once only.
    """

    def __init__(self, total: int, patience: int):
        self.total, self.patience = total, patience
        self.done = self.received = self.in_vain = 0
        self.last_received = -math.inf
        self.stop = web.Stop()
        self._lock = threading.Lock()

    def add(self, count: int, received: bool = False) -> None:
        """Count bytes as done, or as undone if negative; `received` ones came from a source."""
        with self._lock:
            self.done += count
            if received:
                self.received += count
                self.in_vain = 0
                self.last_received = time.monotonic()

    def failed(self) -> None:
        """Count a file that the last source failed for as often as it may."""
        with self._lock:
            self.in_vain += 1

    @property
    def hopeless(self) -> bool:
        return self.in_vain >= self.patience


def _all_done(
    one: Callable[[_File, _Outcome], None],
    files: list[_File],
    outcomes: list[_Outcome],
    workers: int,
    meter: _Meter,
) -> None:
    """Run `one` on every file in several threads, until all have ended or the command is interrupted.

    An interrupted command does not wait for a thread that waits for a silent server: the thread dies with it, and what
    it had received is on the disk.
    """
    left = deque(zip(files, outcomes, strict=True))

    def work() -> None:
        while not meter.stop.is_set():
            try:
                file, outcome = left.popleft()
            except IndexError:
                return
            one(file, outcome)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(workers, len(files)))]
    try:
        for thread in threads:
            thread.start()
        for _ in transfer(_polled(threads, meter), "fetched", meter.total):
            pass
    except BaseException:
        meter.stop.set()
        until = time.monotonic() + SECONDS_TO_STOP
        for thread in threads:
            thread.join(max(until - time.monotonic(), 0))
        raise


def _polled(threads: list[threading.Thread], meter: _Meter) -> Iterator[int]:
    """Yield the bytes done so far, twice a second, until every thread has ended."""
    for thread in threads:
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            yield meter.done


def _obtain(file: _File, sources: list["_Source"], meter: _Meter, outcome: _Outcome) -> None:
    """Make sure that a file is there and complete, and say in `outcome` what became of it."""
    started = time.monotonic()
    try:
        outcome.state = _fetched(file, sources, meter, outcome)
    except Exception as problem:
        # Whatever it is, it must not take the other files with it.
        outcome.state, outcome.reason = FAILED, _reason(problem)
        log.debug("%s failed", file.name, exc_info=True)
    outcome.seconds = time.monotonic() - started
    attempts = f", {outcome.attempts} attempts" if outcome.attempts > 1 else ""
    said = f": {outcome.reason}" if outcome.reason else ""
    size = "" if file.size is None else f", {file.size / 1e6:.1f} MB"
    log.info("%s %s (%s%s, %.1f s%s)%s", outcome.state, file.name, file.file_id, size, outcome.seconds, attempts, said)


def _reason(problem: Exception) -> str:
    if isinstance(problem, FetchError):
        return str(problem)
    if isinstance(problem, OSError):
        return f"{problem.strerror or problem}"
    return f"{type(problem).__name__}: {problem}".removesuffix(": ")


def _fetched(file: _File, sources: list["_Source"], meter: _Meter, outcome: _Outcome) -> str:
    """Make sure that a file is there and complete; say whether it had to be fetched."""
    if _is_there(file, meter):
        return KEPT
    file.part.parent.mkdir(parents=True, exist_ok=True)
    with _locked(file.part, meter.stop) as handle:
        # Another process may have completed it while this one waited for the lock.
        if _is_there(file, meter):
            file.part.unlink()
            return KEPT
        part = _Part(handle, file, meter)
        try:
            _from_any(sources, part, outcome)
            part.sync()
        except BaseException:
            part.forget()
            raise
        # Should a crash undo the renaming, the whole `.part` is there and is renamed again.
        os.replace(file.part, file.staged)
    return FETCHED


def _is_there(file: _File, meter: _Meter) -> bool:
    for path in dict.fromkeys((file.target, file.staged)):
        if file.is_complete(path):
            meter.add(path.stat().st_size)
            return True
    return False


@contextmanager
def _locked(path: Path, stop: web.Stop) -> Iterator[BinaryIO]:
    """Open a file for appending that no other process has open so; the system takes the lock back from a killed one."""
    while True:
        with open(path, "a+b") as handle:
            if not _lock(handle):
                stop.pause(LOCK_POLL_SECONDS)
                continue
            # The process that held the lock may have given the file another name, or removed it.
            if path.exists() and os.path.samestat(os.fstat(handle.fileno()), path.stat()):
                yield handle
                return


def _lock(handle: BinaryIO) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as problem:
        log.debug("%s cannot be locked: %s", handle.name, problem)
    return True


def _md5() -> "hashlib._Hash":
    return hashlib.md5(usedforsecurity=False)


class _Part:
    """The `.part` of a file: its length in bytes and md5 so far; what an earlier attempt left is taken up."""

    def __init__(self, handle: BinaryIO, file: _File, meter: _Meter):
        self.handle, self.file, self.meter = handle, file, meter
        self.have, self.md5 = 0, _md5()
        handle.seek(0)
        while chunk := handle.read(CHUNK):
            self._count(chunk)
        meter.add(self.have)
        if file.size is not None and self.have > file.size:
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
        """Take this file's bytes out of the meter."""
        self.meter.add(-self.have)
        self.have = 0

    def append(self, read: Callable[[], bytes]) -> None:
        """Append what `read` gives until it gives nothing, hardly anything, or more than the file holds."""
        since, before = time.monotonic(), self.have
        while chunk := read():
            if self.meter.stop.is_set():
                raise FetchError("interrupted")
            self.handle.write(chunk)
            # A killed process keeps what it has handed to the system.
            self.handle.flush()
            self._count(chunk)
            self.meter.add(len(chunk), received=True)
            if self.file.size is not None and self.have > self.file.size:
                return
            if time.monotonic() - since > STALL_SECONDS:
                if self.have - before < STALL_BYTES:
                    raise web.TryAgain(f"the server sent {self.have - before} bytes in {STALL_SECONDS:.0f} s")
                since, before = time.monotonic(), self.have

    def sync(self) -> None:
        """Flush the file to the disk."""
        self.handle.flush()
        os.fsync(self.handle.fileno())

    def verify(self) -> None:
        """Raise `TryAgain` if the file is short, `_Mismatch` if it is another; of that nothing is kept."""
        size, got = self.file.size, self.md5.hexdigest()
        if size is not None and self.have < size:
            raise web.TryAgain(f"the download ended after {self.have} of {size} bytes")
        if size not in (None, self.have) or got != self.file.md5:
            problem = f"{self.have} bytes with md5 {got} arrived, but the manifest says {size} and {self.file.md5}"
            self.restart()
            raise _Mismatch(problem)


class _Mismatch(web.TryAgain):
    """What arrived is not the file."""


class _Exhausted(FetchError):
    """A source failed as often as it may."""


class _Source(Protocol):
    """Where files come from, and how often it may fail for one.

    Whether it is `patient`ly waited for: through an outage, and as long as it asks. `failures` counts the files in a
    row that it failed for.
    """

    tries: int
    mismatches: int
    patient: bool
    failures: int

    def stream(self, part: _Part) -> None:
        """Append what is missing of a file."""


class _Folder:
    """A mirror on this machine."""

    tries = mismatches = 1
    patient = False

    def __init__(self, folder: Path):
        self.folder, self.failures = folder, 0

    def __str__(self) -> str:
        return str(self.folder)

    def stream(self, part: _Part) -> None:
        """Append what is missing of a file."""
        name = part.file.name
        path = next(
            (path for path in (self.folder / part.file.file_id / name, self.folder / name) if path.is_file()), None
        )
        if path is None:
            raise FetchError(f"{self.folder} does not have it")
        with open(path, "rb") as source:
            source.seek(part.have)
            part.append(lambda: source.read(CHUNK))


class _Site:
    """The GDC, or a mirror on the web; `path` is what follows the address."""

    def __init__(self, server: web.Server, path: str, tries: int, mismatches: int, patient: bool):
        self.server, self.path, self.tries, self.mismatches = server, path, tries, mismatches
        self.patient, self.failures = patient, 0

    def __str__(self) -> str:
        return self.server.address

    def stream(self, part: _Part) -> None:
        """Append what is missing of a file; begin again where the server does not continue at the right byte."""
        path = self.path.replace("{file_id}", part.file.file_id)
        path = path.replace("{file_name}", quote(part.file.name))
        headers = {"Range": f"bytes={part.have}-"} if part.have else {}
        with closing(self.server.request("GET", path, headers, stream=True)) as answer:
            if answer.status_code == requests.codes.requested_range_not_satisfiable:
                if part.file.size is None and answer.headers.get("Content-Range") == f"bytes */{part.have}":
                    return
                part.restart()
                raise web.TryAgain("the server cannot continue the partial file; it was dropped")
            web.check(answer)
            if answer.status_code == requests.codes.partial_content:
                if not answer.headers.get("Content-Range", "").startswith(f"bytes {part.have}-"):
                    part.restart()
                    raise web.TryAgain("the server continued at another byte than asked")
            elif part.have:
                part.restart()
            # Not `read`, which throws away what came before the connection broke off.
            part.append(lambda: answer.raw.read1(CHUNK, decode_content=False))


def _mirror(address: str, workers: int, stack: ExitStack) -> _Source:
    if not address.startswith(("http://", "https://")):
        if not Path(address).is_dir():
            raise MissingInputError(
                f"the mirror {address} is not there; gdc.mirrors takes folders and http(s) addresses"
            )
        return _Folder(Path(address))
    unknown = set(re.findall(r"{(.*?)}", address)) - {"file_id", "file_name"}
    if unknown:
        raise ConfigError(f"the mirror {address} has {{{min(unknown)}}}; only {{file_id}} and {{file_name}} are known")
    cut = address.rfind("/", 0, address.index("{")) if "{" in address else len(address)
    base, path = address[:cut], address[cut:] or "/data/{file_id}"
    server = stack.enter_context(web.Server(base, workers))
    if not urlsplit(base).hostname:
        raise ConfigError(f"the mirror {address} names no host before its first '{{'")
    return _Site(server, path, MIRROR_TRIES, 1, patient=False)


def _from_any(sources: list[_Source], part: _Part, outcome: _Outcome) -> None:
    """Complete a `.part` from the first source that can; the last one's failure is final."""
    for source in sources[:-1]:
        if source.failures >= MIRROR_FAILURES:
            continue
        try:
            _from(source, part, outcome)
            source.failures = 0
            return
        except (FetchError, OSError) as problem:
            if part.meter.stop.is_set():
                raise
            log.debug("%s: %s: %s; the next source is tried", part.file.name, source, problem)
            # A mirror that lacks a file is not down.
            source.failures = source.failures + 1 if isinstance(problem, _Exhausted) else 0
            if source.failures == MIRROR_FAILURES:
                log.warning("the mirror %s failed for %d files in a row and is left out: %s",
                            source, MIRROR_FAILURES, problem)  # fmt: skip
    try:
        _from(sources[-1], part, outcome)
    except _Exhausted:
        part.meter.failed()
        raise


def _from(source: _Source, part: _Part, outcome: _Outcome) -> None:
    """Complete a `.part` from one source, attempt by attempt.

    An attempt that brings the file further, by a hundredth or a mebibyte, starts the count of failures anew: a week's
    downloads meet more broken connections than any limit on their number allows for. While a server that worked fails
    everybody, the count does not matter: it is waited for.
    """
    meter = part.meter
    failures = mismatches = 0
    furthest = part.have
    step = max(min((part.file.size or PROGRESS) // 100, PROGRESS), 1)
    while True:
        outcome.attempts += 1
        try:
            if part.have != part.file.size:
                source.stream(part)
            part.verify()
            return
        except web.PASSING as problem:
            web.refuse_lasting(problem)
            mismatches += isinstance(problem, _Mismatch)
            failures = 1 if part.have >= furthest + step else failures + 1
            furthest = max(furthest, part.have)
            silent = time.monotonic() - meter.last_received
            down = web.is_outage(problem) and OUTAGE_AFTER_SECONDS <= silent < OUTAGE_SECONDS
            exhausted = failures >= (1 if meter.hopeless else source.tries) and not (down and source.patient)
            if exhausted or mismatches >= source.mismatches:
                final = FetchError if mismatches else _Exhausted
                lasting = "; if that lasts, leave it out by gdc.exclude and pin anew" if mismatches else ""
                raise final(f"{web.reason(problem)} (after {outcome.attempts} attempts{lasting})") from None
            pause = web.pause_before(failures, problem if source.patient else web.TryAgain(""))
            log.info("%s: %s; attempt %d in %.0f s", part.file.name, web.reason(problem), outcome.attempts + 1, pause)
            meter.stop.pause(pause)


def _write_status(outcomes: list[_Outcome], path: Path) -> None:
    table = pd.DataFrame([astuple(outcome) for outcome in outcomes], columns=[field.name for field in fields(_Outcome)])
    write_tsv(table.assign(seconds=table.seconds.round(2)), path)


def _refuse_failures(outcomes: list[_Outcome], folder: Path) -> None:
    """Raise `FetchError` if any file is missing, with how many for each reason."""
    failed = [outcome for outcome in outcomes if outcome.state in (FAILED, NOT_TRIED)]
    if failed:
        first = failed[0]
        raise FetchError(
            f"{len(failed)} of {len(outcomes)} files could not be fetched; the first, {first.file_name} "
            f"({first.file_id}): {first.reason}; the others are kept in {folder}: repeat the command to try again"
        )


def _move(files: list[_File]) -> None:
    """Give complete files their place, and clear away what they grew in."""
    for file in files:
        if file.staged.is_file():
            file.target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file.staged, file.target)
        with suppress(OSError):
            file.staged.parent.rmdir()
