"""What all downloads of a job share: the bytes so far, and whether they should stop."""

import threading

from mgi.acquire.retry import Health
from mgi.errors import FetchError


class Stop(threading.Event):
    """Set when the downloads under way shall end."""

    def pause(self, seconds: float) -> None:
        """Wait, unless it is set meanwhile.

        Raises
        ------
        FetchError
            If it is set.
        """
        if self.wait(seconds):
            raise FetchError("interrupted")


class Meter:
    """Bytes done and received over all downloads, the health of their sources, and whether they should stop.

    Parameters
    ----------
    total : int
        Bytes of all files whose size is known.
    patience : int
        See `Health`.
    """

    def __init__(self, total: int, patience: int):
        self.total = total
        self.done = self.received = 0
        self.health = Health(patience)
        self.stop = Stop()
        self._lock = threading.Lock()

    def add(self, count: int, received: bool = False) -> None:
        """Count bytes as done, or as undone if negative; `received` ones came from a source."""
        with self._lock:
            self.done += count
            self.received += count if received else 0
        if received:
            self.health.record_bytes()
