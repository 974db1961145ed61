"""A manifest's files, fetched from mirrors and the GDC, verified, and resumed where an earlier attempt stopped.

A file has its name only once its size and md5 hold; until then it is `{file_name}.part`, locked while it grows, so
that two processes never write one file.
"""

import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import pandas as pd

from mgi.acquire.manifest import read_manifest, select_rows
from mgi.acquire.meter import Meter
from mgi.acquire.partial import PRIVATE, Part, RemoteFile, open_part, take_link
from mgi.acquire.reasons import group_problems
from mgi.acquire.retry import RetryPolicy
from mgi.acquire.sources import Folder, Site, Source, complete_part, open_mirror
from mgi.acquire.web import Server, read_token
from mgi.config import FetchOptions
from mgi.console import log, transfer
from mgi.errors import ConfigError, FetchError, ManifestError
from mgi.files import read_umask
from mgi.names import quote
from mgi.tables import write_tsv

POLL_SECONDS = 0.5
SECONDS_TO_STOP = 2.0
FETCHED, KEPT, FAILED, NOT_TRIED = "fetched", "kept", "failed", "not tried"


@dataclass
class Outcome:
    """What became of a file: a row of the status table."""

    file_id: str
    file_name: str
    state: str = NOT_TRIED
    attempts: int = 0
    seconds: float = 0.0
    reason: str = ""


def fetch(
    manifest: Path,
    out: Path,
    url: str,
    options: FetchOptions,
    *,
    data_type: str | None = None,
    file_ids: list[str] | None = None,
    rows: slice = slice(None),
    partial: Path | None = None,
    receipt: Path | None = None,
    status: Path | None = None,
) -> None:
    """Fetch a manifest's files to `out/{file_id}/{file_name}`, keeping complete ones and resuming partial ones.

    Parameters
    ----------
    manifest : Path
        Manifest made by `mgi.acquire.gdc.query` or `mgi.acquire.portal.import_manifest`, or one of the GDC portal.
    out : Path
        Folder to fill; one that the GDC's own client filled is used as it is, and its `.partial` files are continued.
    url : str
        The http(s) address of the GDC API.
    options : FetchOptions
        Downloads at once, mirrors, which are tried before the GDC, and the token, which is sent to `url` only. Files
        fetched with a token can be read by their owner only.
    data_type : str, optional
        Only `expression`, `slides` or `annotation`.
    file_ids : list of str, optional
        Only these files.
    rows : slice
        Only these of what is selected so far, in the manifest's order.
    partial : Path, optional
        Folder for what is under way, on the file system of `out`: files move to `out` when all are complete. By
        default they grow in `out`.
    receipt : Path, optional
        Table (TSV: file_id, file_name, size in bytes, md5, state) written last, only when every file is complete.
    status : Path, optional
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
    frame = select_rows(read_manifest(manifest), manifest, data_type, file_ids).iloc[rows]
    if frame.empty:
        raise ManifestError(
            f"manifest {manifest} holds no file to fetch: it is empty, or ends before the rows asked for"
        )
    # Beside the folder itself, should it be given as `.`.
    beside = receipt or Path(f"{os.path.abspath(out)}.tsv")
    status = status or beside.with_suffix(".status.tsv")
    staging = partial or out
    if nearest_folder(staging).stat().st_dev != nearest_folder(out).stat().st_dev:
        raise ConfigError(f"{staging} and {out} are on different file systems; files could not be moved between them")
    mode = PRIVATE if options.token_file else 0o666 & ~read_umask()
    files = [RemoteFile.from_row(row, out, staging, mode) for row in frame.itertuples()]
    refuse_without_room(sum(file.missing_bytes() for file in files), staging)
    meter = Meter(sum(file.size or 0 for file in files), patience=max(2 * options.workers, 8))
    started = time.monotonic()
    with ExitStack() as stack:
        sources = _open_sources(url, options, stack)
        outcomes = [Outcome(file.file_id, file.name) for file in files]
        try:
            _run_all(
                lambda file, outcome: _obtain(file, sources, meter, outcome), files, outcomes, options.workers, meter
            )
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


def refuse_without_room(needed: int, folder: Path) -> None:
    """Raise `FetchError` if the disk of `folder` has not `needed` bytes free."""
    free = shutil.disk_usage(nearest_folder(folder)).free
    if needed > free:
        raise FetchError(
            f"{needed / 1e9:.1f} GB are to be fetched to {folder}, but its disk has {free / 1e9:.1f} GB free; make "
            "room, or fetch fewer files at a time"
        )


def nearest_folder(folder: Path) -> Path:
    """Return the folder, or the nearest above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _open_sources(url: str, options: FetchOptions, stack: ExitStack) -> list[Source]:
    """Return the mirrors and, last, the GDC."""
    sources = [open_mirror(address, stack, allow_http=options.allow_http) for address in options.mirrors]
    token = read_token(options.token_file) if options.token_file else None
    gdc = stack.enter_context(Server(url, token, allow_http=options.allow_http))
    return [*sources, Site(gdc, "/data/{file_id}", RetryPolicy())]


def _run_all(
    one: Callable[[RemoteFile, Outcome], None],
    files: list[RemoteFile],
    outcomes: list[Outcome],
    workers: int,
    meter: Meter,
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
        for _ in transfer(_poll(threads, meter), "fetched", meter.total):
            pass
    except BaseException:  # Ctrl-C, too, must stop the threads; it is raised again
        meter.stop.set()
        until = time.monotonic() + SECONDS_TO_STOP
        for thread in threads:
            thread.join(max(until - time.monotonic(), 0))
        raise


def _poll(threads: list[threading.Thread], meter: Meter) -> Iterator[int]:
    """Yield the bytes done so far, twice a second, until every thread has ended."""
    for thread in threads:
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            yield meter.done


def _obtain(file: RemoteFile, sources: list[Source], meter: Meter, outcome: Outcome) -> None:
    """Make sure that a file is there and complete, and note in `outcome` what became of it."""
    started = time.monotonic()
    try:
        outcome.state = _complete(file, sources, meter, outcome)
    except Exception as error:  # whatever it is, it must not take the other files with it
        outcome.state, outcome.reason = FAILED, _describe(error)
        log.debug("%s failed", file.name, exc_info=True)
    outcome.seconds = time.monotonic() - started
    attempts = f", {outcome.attempts} attempts" if outcome.attempts > 1 else ""
    reason = f": {outcome.reason}" if outcome.reason else ""
    size = "" if file.size is None else f", {file.size / 1e6:.1f} MB"
    log.info(
        "%s %s (%s%s, %.1f s%s)%s", outcome.state, file.name, file.file_id, size, outcome.seconds, attempts, reason
    )


def _describe(error: Exception) -> str:
    if isinstance(error, FetchError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.strerror or error}"
    return f"{type(error).__name__}: {quote(str(error), 200)}" if str(error) else type(error).__name__


def _complete(file: RemoteFile, sources: list[Source], meter: Meter, outcome: Outcome) -> str:
    """Make sure that a file is there and complete; return whether it had to be fetched."""
    # What an earlier attempt left is removed below.
    if not os.access(file.part, os.W_OK) and _is_there(file, meter):
        return KEPT
    file.part.parent.mkdir(parents=True, exist_ok=True)
    with open_part(file.part, meter.stop) as handle:
        # Another process may have completed it while this one waited for the lock.
        if _is_there(file, meter):
            file.part.unlink()
            return KEPT
        if _link_from_folder(file, sources):
            meter.add(file.staged.stat().st_size)
            file.part.unlink()
            return FETCHED
        part = Part(handle, file, meter)
        try:
            complete_part(part, sources)
            part.sync()
        except BaseException:  # Ctrl-C, too; it is raised again
            part.forget()
            raise
        finally:
            outcome.attempts = part.attempts
        # Should a crash undo the renaming, the whole `.part` is there and is renamed again.
        os.replace(file.part, file.staged)
        if (left := file.find_partial()) is not None:
            left.unlink(missing_ok=True)
    return FETCHED


def _is_there(file: RemoteFile, meter: Meter) -> bool:
    for path in dict.fromkeys((file.target, file.staged)):
        if file.is_complete(path):
            meter.add(path.stat().st_size)
            return True
    return False


def _link_from_folder(file: RemoteFile, sources: list[Source]) -> bool:
    """Link a file to the copy in a mirror that is a folder; return whether one has it whole."""
    folders = [source for source in sources if isinstance(source, Folder)]
    found = (folder.find(file.file_id, file.name) for folder in folders)
    return any(take_link(file, path) for path in found if path is not None)


def _write_status(outcomes: list[Outcome], path: Path) -> None:
    table = pd.DataFrame([astuple(outcome) for outcome in outcomes], columns=[field.name for field in fields(Outcome)])
    write_tsv(table.assign(seconds=table["seconds"].round(2)), path)


def _refuse_failures(outcomes: list[Outcome], folder: Path) -> None:
    """Raise `FetchError` if any file is missing, with which files for each reason."""
    failed = [outcome for outcome in outcomes if outcome.state in (FAILED, NOT_TRIED)]
    if failed:
        problems = [(f"{outcome.file_name} ({outcome.file_id})", outcome.reason or NOT_TRIED) for outcome in failed]
        raise FetchError(
            f"{len(failed)} of {len(outcomes)} files could not be fetched: {group_problems(problems)}; the others are "
            f"kept in {folder}: repeat the command to try again"
        )


def _move(files: list[RemoteFile]) -> None:
    """Move complete files to their place, and clear away what they grew in."""
    for file in files:
        if file.staged.is_file():
            file.target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file.staged, file.target)
        with suppress(OSError):
            file.staged.parent.rmdir()
