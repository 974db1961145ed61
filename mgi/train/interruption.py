"""SIGTERM, by which a scheduler announces that it will kill a job."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mgi.errors import TrainingInterruptedError


class Interruption:
    """Raise `TrainingInterruptedError` when SIGTERM comes, but never in the middle of what must be completed.

    Parameters
    ----------
    at_once : bool
        Raise wherever the signal comes, unless in a `deferred` block. Processes that train together must stop after the
        same step, so they look at `requested` instead.
    """

    def __init__(self, at_once: bool = True) -> None:
        self.requested = False
        self._at_once = at_once

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch for SIGTERM within the block; outside the main thread, where Python cannot, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Complete the block before SIGTERM takes effect."""
        at_once, self._at_once = self._at_once, False
        try:
            yield
        finally:
            self._at_once = at_once
        if self.requested and at_once:
            self._raise()

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
        if self._at_once:
            self._raise()

    @staticmethod
    def _raise() -> None:
        raise TrainingInterruptedError("training was told to end (SIGTERM)")
