"""What a command says while it works: a progress bar on a terminal, plain lines in a log."""

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

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 15.0

log = logging.getLogger("mgi")
_terminal = Console(stderr=True)


def set_up_logging() -> None:
    """Send the `mgi` logger to standard error: coloured on a terminal, dated plain lines elsewhere."""
    if _terminal.is_terminal:
        handler: logging.Handler = RichHandler(console=_terminal, show_path=False, show_level=False)
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield `items`, showing how many are done: a bar on a terminal, else a line every 15 seconds and at the end."""
    if total is None:
        total = len(items)  # type: ignore[arg-type]
    if _terminal.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=_terminal, transient=True) as bar:
            yield from bar.track(items, total=total, description=what)
        return
    started = said = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += 1
        if time.monotonic() - said > SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            log.info("%s: %d of %d, %.0f s", what, done, total, said - started)
    log.info("%s: %d of %d done in %.1f s", what, done, total, time.monotonic() - started)


def transfer(polls: Iterable[int], what: str, total: int) -> Iterator[int]:
    """Yield `polls`, the bytes done so far, showing them with the rate and the time left, as `progress` does."""
    if _terminal.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, TimeRemainingColumn(), console=_terminal, transient=True) as bar:
            task = bar.add_task(what, total=total)
            for done in polls:
                bar.update(task, completed=done)
                yield done
        return
    started = said = time.monotonic()
    first = None
    for done in polls:
        yield done
        first = done if first is None else first
        if time.monotonic() - said > SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            rate = max(done - first, 0) / (said - started)
            # Of some files the size is not known beforehand.
            known = total > done
            of = f" of {total / 1e6:.1f}" if known else ""
            left = f"{(total - done) / rate / 60:.0f} min left" if known and rate else "time left unknown"
            log.info("%s: %.1f%s MB, %.1f MB/s, %s", what, done / 1e6, of, rate / 1e6, left)
