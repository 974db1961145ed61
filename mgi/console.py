"""Messages of a command while it works: a progress bar on a terminal, plain lines in a log."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from mgi.names import escape

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 15.0

log = logging.getLogger("mgi")
_terminal = Console(stderr=True)


def set_up_logging(verbose: bool = False) -> None:
    """Send the `mgi` logger to standard error: coloured on a terminal, dated plain lines elsewhere.

    A message is one line, whatever names are in it: control characters are escaped.

    Parameters
    ----------
    verbose
        Show debug messages and the causes of errors, too.
    """
    if _terminal.is_terminal:
        handler: logging.Handler = RichHandler(console=_terminal, show_path=False, show_level=False)
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    handler.addFilter(_escape_message)
    log.handlers[:] = [handler]
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    log.propagate = False


def _escape_message(record: logging.LogRecord) -> bool:
    record.msg, record.args = escape(record.getMessage()), None
    return True


def log_error(error: BaseException, sentence: str) -> None:
    """Log an error in one sentence and, for debugging, what caused it."""
    log.error("error: %s", sentence)
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    while cause is not None:
        log.debug("caused by %s: %s", type(cause).__name__, cause)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield `items`, showing how many are done: a bar on a terminal, else a line every 15 seconds and at the end."""
    if total is None:
        total = len(items)  # type: ignore[arg-type]
    if _terminal.is_terminal:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=_terminal, transient=True) as bar:
            yield from bar.track(items, total=total, description=escape(what))
        return
    started = logged = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += 1
        if time.monotonic() - logged > SECONDS_BETWEEN_LINES:
            logged = time.monotonic()
            log.info("%s: %d of %d, %.0f s", what, done, total, logged - started)
    log.info("%s: %d of %d done in %.1f s", what, done, total, time.monotonic() - started)


def transfer(polls: Iterable[int], what: str, total: int) -> Iterator[int]:
    """Yield `polls`, the bytes done so far, showing them with the rate and the time left, as `progress` does."""
    if _terminal.is_terminal:
        name = TextColumn("{task.description}", markup=False)
        columns = (name, BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, TimeRemainingColumn(), console=_terminal, transient=True) as bar:
            task = bar.add_task(escape(what), total=total)
            for done in polls:
                bar.update(task, completed=done)
                yield done
        return
    started = logged = time.monotonic()
    first = None
    for done in polls:
        yield done
        first = done if first is None else first
        if time.monotonic() - logged > SECONDS_BETWEEN_LINES:
            logged = time.monotonic()
            rate = max(done - first, 0) / (logged - started)
            # The size of some files is not known in advance.
            known = total > done
            of = f" of {total / 1e6:.1f}" if known else ""
            left = f"{(total - done) / rate / 60:.0f} min left" if known and rate else "time left unknown"
            log.info("%s: %.1f%s MB, %.1f MB/s, %s", what, done / 1e6, of, rate / 1e6, left)
