"""When to try again: what a failure means, how long to wait, and when to give up."""

import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import requests
import urllib3
from requests.exceptions import ChunkedEncodingError

from mgi.acquire.addresses import proxy_of
from mgi.console import log
from mgi.errors import FetchError
from mgi.names import quote

T = TypeVar("T")

MAX_TRIES = 10
MAX_MISMATCHES = 4
BACKOFF_SECONDS = 1.0
MAX_BACKOFF_SECONDS = 60.0
# A server that worked and has sent nothing for the first of these is down, and is waited for up to the second.
OUTAGE_AFTER_SECONDS = 60.0
OUTAGE_SECONDS = 3600.0
# The least progress that counts, bytes, unless a hundredth of the file is less.
PROGRESS_BYTES = 1 << 20


class TryAgainError(Exception):
    """A failure that another attempt may mend.

    `after` is how long the server asks to wait, seconds; `outage` whether it would answer any request so.
    """

    def __init__(self, reason: str, after: float = 0.0, outage: bool = False):
        super().__init__(reason)
        self.after, self.outage = after, outage


class MismatchError(TryAgainError):
    """What arrived is not the file."""


class NotThereError(FetchError):
    """The server does not have what was asked for."""


class ExhaustedError(FetchError):
    """A source failed as often as it may."""


PASSING = (
    TryAgainError, requests.ConnectionError, requests.Timeout, ChunkedEncodingError, urllib3.exceptions.HTTPError,
)  # fmt: skip


@dataclass(frozen=True)
class RetryPolicy:
    """How often a source may fail for one file before it is given up.

    Attributes
    ----------
    tries : int
        Failures in a row without progress.
    mismatches : int
        Downloads whose bytes were not the file.
    patient : bool
        Whether an outage is waited for, and as long as the server asks.
    """

    tries: int = MAX_TRIES
    mismatches: int = MAX_MISMATCHES
    patient: bool = True


class Health:
    """Whether a job's downloads receive anything, from any source; shared by all its threads.

    Parameters
    ----------
    patience : int
        Files in a row that may fail for good, with no byte received meanwhile, before each of the rest is tried once
        only.
    """

    def __init__(self, patience: int):
        self.patience = patience
        self.last_received = -math.inf
        self._failed_in_a_row = 0
        self._lock = threading.Lock()

    def record_bytes(self) -> None:
        """Note that bytes arrived."""
        with self._lock:
            self._failed_in_a_row = 0
            self.last_received = time.monotonic()

    def record_failed_file(self) -> None:
        """Note that the last source failed for a file as often as it may."""
        with self._lock:
            self._failed_in_a_row += 1

    @property
    def is_hopeless(self) -> bool:
        """Whether so many files failed that the rest is tried once only."""
        return self._failed_in_a_row >= self.patience


class Attempts:
    """The attempts to get one file from one source.

    An attempt that brings the file further, by a hundredth or a mebibyte, starts the count of failures again: a week's
    downloads meet more broken connections than any limit on their number allows for. While a server that worked fails
    everybody, the count does not matter: it is waited for.

    Parameters
    ----------
    policy : RetryPolicy
        How often the source may fail.
    health : Health
        Of the job.
    size : int or None
        Bytes of the file, if known.
    done : int
        Bytes of it that are already there.
    """

    def __init__(self, policy: RetryPolicy, health: Health, size: int | None, done: int):
        self.policy, self.health, self.furthest = policy, health, done
        self.step = max(min((size or PROGRESS_BYTES) // 100, PROGRESS_BYTES), 1)
        self.failures = self.mismatches = 0

    def pause_after(self, error: Exception, done: int) -> float:
        """Return the seconds to wait before the next attempt, after a failure that left `done` bytes.

        Raises
        ------
        ExhaustedError
            If there is no further attempt.
        FetchError
            If there is none, and bytes of another file arrived.
        """
        refuse_lasting(error)
        self.mismatches += isinstance(error, MismatchError)
        self.failures = 1 if done >= self.furthest + self.step else self.failures + 1
        self.furthest = max(self.furthest, done)
        limit = 1 if self.health.is_hopeless else self.policy.tries
        exhausted = self.failures >= limit and not self._waits_for(error)
        if exhausted or self.mismatches >= self.policy.mismatches:
            raise (FetchError if self.mismatches else ExhaustedError)(describe(error)) from error
        return pause_before(self.failures, error if self.policy.patient else TryAgainError(""))

    def _waits_for(self, error: Exception) -> bool:
        silent = time.monotonic() - self.health.last_received
        return self.policy.patient and is_outage(error) and OUTAGE_AFTER_SECONDS <= silent < OUTAGE_SECONDS


def pause_before(attempt: int, error: Exception) -> float:
    """Return the seconds to wait before the next attempt: doubling, with jitter, and no less than the server asks."""
    backoff = min(BACKOFF_SECONDS * 2.0 ** min(attempt - 1, 30), MAX_BACKOFF_SECONDS)
    return max(backoff * random.uniform(0.5, 1.5), getattr(error, "after", 0.0))


def is_outage(error: Exception) -> bool:
    """Return whether a passing failure is the whole server's rather than one file's."""
    return error.outage if isinstance(error, TryAgainError) else True


def refuse_lasting(error: Exception) -> None:
    """Raise `FetchError` for what looks like a broken connection but does not pass.

    Raises
    ------
    FetchError
        If the server's certificate is not trusted, or a proxy refuses.
    """
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        raise FetchError(
            "the server's certificate is not trusted; where a proxy signs, set REQUESTS_CA_BUNDLE to its authority"
        ) from error
    if isinstance(error, requests.exceptions.ProxyError) and "Tunnel connection failed: 4" in str(error):
        raise FetchError(describe(error)) from error


def describe(error: Exception) -> str:
    """Return a failure in words that a user can act on."""
    if isinstance(error, TryAgainError):
        return str(error)
    if isinstance(error, requests.exceptions.ProxyError):
        said = str(error).partition("Tunnel connection failed: ")[2].partition("'")[0]
        url = error.request.url if error.request is not None else None
        return f"the proxy {proxy_of(url or '') or ''} refused the connection{f': {quote(said)}' if said else ''}"
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
        return "the server did not answer in time"
    if isinstance(error, ChunkedEncodingError | urllib3.exceptions.ProtocolError):
        return "the connection broke off"
    return "the connection failed; is the address right and the network up?"


def with_retries(attempt: Callable[[], T], tries: int = MAX_TRIES) -> T:
    """Return the result of `attempt`, repeated while its failure may pass, at most `tries` times.

    Raises
    ------
    FetchError
        When it has failed for the last time.
    """
    attempts = Attempts(RetryPolicy(tries), Health(patience=1), None, 0)
    number = 0
    while True:
        number += 1
        try:
            return attempt()
        except PASSING as error:
            try:
                pause = attempts.pause_after(error, 0)
            except ExhaustedError as final:
                after = f" (after {number} attempts)" if number > 1 else ""
                raise FetchError(f"{final}{after}") from error
            log.info("%s; attempt %d of %d in %.0f s", describe(error), number + 1, tries, pause)
            time.sleep(pause)
