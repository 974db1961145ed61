"""Talking to a server that drops connections: what a failure means, when to try again, and who may see the token."""

import itertools
import os
import random
import stat
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.exceptions import ChunkedEncodingError

from mgi.console import log
from mgi.errors import ConfigError, FetchError, MissingInputError
from mgi.files import require_file

TRIES = 10
BACKOFF_SECONDS = 1.0
LONGEST_BACKOFF_SECONDS = 60.0
LONGEST_RETRY_AFTER_SECONDS = 900.0
# To connect, and between two bytes of an answer.
TIMEOUT_SECONDS = (15.0, 90.0)
REDIRECTS = 5
TOKEN_HEADER = "X-Auth-Token"


class TryAgain(Exception):
    """A failure that another attempt may mend.

    `after` is how long the server asks to wait, seconds; `outage` whether it would answer any request so.
    """

    def __init__(self, reason: str, after: float = 0.0, outage: bool = False):
        super().__init__(reason)
        self.after, self.outage = after, outage


class NotThereError(FetchError):
    """The server does not have what was asked for."""


PASSING = (
    TryAgain, requests.ConnectionError, requests.Timeout, ChunkedEncodingError, urllib3.exceptions.HTTPError,
)  # fmt: skip


def read_token(path: Path | str) -> str:
    """Read the GDC token from a file that only its owner may read.

    Raises
    ------
    MissingInputError
        If it is not there or cannot be read.
    ConfigError
        If others may read it, or it holds nothing that can be sent as a header.
    """
    path = require_file(path, "GDC token")
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as problem:
        raise MissingInputError(f"cannot read the GDC token {path}: {type(problem).__name__}") from None
    if os.name == "posix" and mode & 0o077:
        raise ConfigError(f"the GDC token {path} has mode {mode:04o}, so others may read it; run: chmod 600 {path}")
    if not token.isascii() or not token.isprintable() or not token:
        raise ConfigError(f"{path} does not hold a GDC token: download one from the GDC portal")
    return token


class Server:
    """A server known by its address, and a pool of connections to it.

    Parameters
    ----------
    address
        The http(s) address that paths are appended to.
    workers
        Connections to keep open.
    token
        GDC token: sent to this scheme, host and port only, never to where a redirect leads.

    Raises
    ------
    ConfigError
        If it is no address, or a token would travel unencrypted to another machine.
    """

    def __init__(self, address: str, workers: int = 1, token: str | None = None):
        self.address, self._token = address.rstrip("/"), token
        try:
            parts = urlsplit(address)
            self._origin = _origin(parts)
        except ValueError as problem:
            raise ConfigError(f"{address} is no address of a server: {problem}") from None
        if token is not None and parts.scheme != "https" and not _is_loopback(parts):
            raise ConfigError(f"the GDC token is not sent to {self.address}, which is not encrypted; use https://")
        self._session = requests.Session()
        # No proxy stands between this machine and itself.
        self._session.trust_env = not _is_loopback(parts)
        # Bodies come as stored, for the md5 is that of the stored bytes.
        self._session.headers["Accept-Encoding"] = "identity"
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=workers))

    def __enter__(self) -> "Server":
        """Open nothing yet: connections are made by requests."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        self._session.close()

    def request(
        self, method: str, url: str, headers: dict[str, str] | None = None, **options: Any
    ) -> requests.Response:
        """Send a request to a path of this server or a whole address, and follow redirects, the token left at home.

        Raises
        ------
        FetchError
            If redirects go in a circle, or lead away from encryption.
        requests.RequestException
            Where the connection fails.
        """
        url = f"{self.address}{url}" if url.startswith("/") else url
        for _ in range(REDIRECTS + 1):
            parts = urlsplit(url)
            sent = dict(headers or {})
            if self._token is not None and _origin(parts) == self._origin:
                sent[TOKEN_HEADER] = self._token
            answer = self._session.request(
                method, url, headers=sent, allow_redirects=False, timeout=TIMEOUT_SECONDS, **options
            )
            if not answer.is_redirect:
                return answer
            answer.close()
            url = urljoin(url, answer.headers["Location"])
            if urlsplit(url).scheme not in ("https", parts.scheme):
                raise FetchError(
                    f"{parts.hostname} redirects from {parts.scheme} to {url.partition(':')[0]}; not followed"
                )
        raise FetchError(f"{self.address} redirects more than {REDIRECTS} times")


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None]:
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _is_loopback(parts: SplitResult) -> bool:
    try:
        return parts.hostname == "localhost" or ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


def check(answer: requests.Response) -> None:
    """Sort an answer's status: good, worth another attempt, or final.

    Raises
    ------
    TryAgain
        For 408, 429 and 5xx.
    FetchError
        For a refusal that another attempt would meet again.
    """
    code = answer.status_code
    if code in (requests.codes.ok, requests.codes.partial_content):
        return
    if code in (requests.codes.request_timeout, requests.codes.too_many_requests) or code >= 500:
        outage = code in (requests.codes.too_many_requests, requests.codes.service_unavailable)
        after = _retry_after(answer.headers.get("Retry-After"))
        raise TryAgain(f"the server answered {code} {answer.reason}", after, outage)
    if code in (requests.codes.unauthorized, requests.codes.forbidden):
        raise FetchError(
            f"the server refused it ({code}): it is controlled access, not open; give a GDC token that may read it "
            "(gdc.token_file), or leave it out of the manifest"
        )
    if code in (requests.codes.not_found, requests.codes.gone):
        raise NotThereError(
            f"the server does not have it ({code}): it was withdrawn or superseded; `mgi gdc check` tells which"
        )
    raise FetchError(f"the server answered {code} {answer.reason}: {' '.join(answer.text.split())[:200]}")


def _retry_after(text: str | None) -> float:
    """Seconds that a Retry-After header asks for, as a number or a date (RFC 9110, 10.2.3); at most a quarter hour."""
    try:
        seconds = float(text or 0)
    except ValueError:
        try:
            until = parsedate_to_datetime(text or "")
        except ValueError:
            return 0.0
        seconds = (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_SECONDS)


def pause_before(attempt: int, problem: Exception) -> float:
    """Seconds to wait before the next attempt: doubling, by chance more or less, and no less than the server asks."""
    backoff = min(BACKOFF_SECONDS * 2.0 ** (attempt - 1), LONGEST_BACKOFF_SECONDS)
    return max(backoff * random.uniform(0.5, 1.5), getattr(problem, "after", 0.0))


def is_outage(problem: Exception) -> bool:
    """Whether a passing failure is the whole server's rather than one file's."""
    return problem.outage if isinstance(problem, TryAgain) else True


def refuse_lasting(problem: Exception) -> None:
    """Raise what looks like a broken connection but is not mended by waiting.

    Raises
    ------
    FetchError
        If the server's certificate is not trusted.
    """
    if "CERTIFICATE_VERIFY_FAILED" in str(problem):
        raise FetchError(
            "the server's certificate is not trusted; where a proxy signs, set REQUESTS_CA_BUNDLE to its authority"
        ) from None


def reason(problem: Exception) -> str:
    """Put a failure in words a user can act on."""
    if isinstance(problem, TryAgain):
        return str(problem)
    if isinstance(problem, requests.Timeout | urllib3.exceptions.TimeoutError):
        return "the server did not answer in time"
    if isinstance(problem, ChunkedEncodingError | urllib3.exceptions.ProtocolError):
        return "the connection broke off"
    return "the connection failed; is the address right and the network up?"


def retried(attempt: Callable[[], Any]) -> Any:
    """Repeat `attempt` while what fails may pass, at most `TRIES` times.

    Raises
    ------
    FetchError
        When it has failed for the last time.
    """
    for number in itertools.count(1):
        try:
            return attempt()
        except PASSING as problem:
            refuse_lasting(problem)
            if number == TRIES:
                raise FetchError(f"{reason(problem)} (after {number} attempts)") from None
            pause = pause_before(number, problem)
            log.info("%s; attempt %d of %d in %.0f s", reason(problem), number + 1, TRIES, pause)
            time.sleep(pause)


def json_of(server: Server, method: str, path: str, body: dict | None = None) -> Any:
    """Send a request to an API; return its JSON answer.

    Raises
    ------
    FetchError
        If the API cannot be reached, refuses, or answers something else.
    """

    def attempt() -> Any:
        answer = server.request(method, path, json=body)
        check(answer)
        return answer.json()

    try:
        return retried(attempt)
    except FetchError as problem:
        raise type(problem)(f"{server.address}{path}: {problem}") from None
    except requests.RequestException as problem:
        raise FetchError(f"{server.address}{path}: {problem}; is gdc.api_url the address of the GDC's API?") from None


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
