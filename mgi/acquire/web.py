"""Servers, and who may see the token."""

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter

from mgi.acquire.addresses import is_loopback, origin, parse_address
from mgi.acquire.answers import TOKEN_HEADER, check_status, read_json
from mgi.acquire.retry import MAX_TRIES, PASSING, with_retries
from mgi.errors import ConfigError, FetchError, MissingInputError
from mgi.files import require_file

# To connect, and between two bytes of an answer.
TIMEOUT_SECONDS = (15.0, 90.0)
MAX_REDIRECTS = 5
MAX_TOKEN_BYTES = 1 << 16


def read_token(path: Path | str) -> str:
    """Read the GDC token from a file that only its owner may read.

    Raises
    ------
    MissingInputError
        If it is missing or cannot be read.
    ConfigError
        If others may read it, or it holds nothing that can be sent as a header.
    """
    path = require_file(path, "GDC token")
    try:
        with open(path, "rb") as handle:
            mode = stat.S_IMODE(os.fstat(handle.fileno()).st_mode)
            token = handle.read(MAX_TOKEN_BYTES).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        # Not the message, which may hold a part of the token.
        raise MissingInputError(f"cannot read the GDC token {path}: {type(error).__name__}") from error
    if os.name == "posix" and mode & 0o077:
        raise ConfigError(f"the GDC token {path} has mode {mode:04o}, so others may read it; run: chmod 600 {path}")
    if not token.isascii() or not token.isprintable() or not token:
        raise ConfigError(f"{path} does not hold a GDC token: download one from the GDC portal")
    return token


class _Session(requests.Session):
    """A session that leaves redirects to `Server`, and their bodies unread."""

    def resolve_redirects(self, *_: Any, **__: Any) -> Iterator[Any]:
        return iter(())


class Server:
    """A server known by its address, with a session of connections for each thread.

    Parameters
    ----------
    address : str
        The http(s) address that paths are appended to.
    token : str, optional
        GDC token: sent to this scheme, host and port only, never to where a redirect leads.
    allow_http : bool
        Whether another machine may be asked without encryption.

    Raises
    ------
    ConfigError
        If it is no address, holds a password, or is not encrypted.
    """

    def __init__(self, address: str, token: str | None = None, *, allow_http: bool = False):
        parts = parse_address(address, allow_http=allow_http)
        self.address, self.allow_http, self._token = address.rstrip("/"), allow_http, token
        self._origin = _origin(parts)
        self._is_loopback = is_loopback(parts)
        if token is not None and parts.scheme != "https" and not self._is_loopback:
            raise ConfigError(f"the GDC token is not sent to {origin(parts)}, which is not encrypted; use https://")
        self._local = threading.local()
        self._sessions: list[requests.Session] = []

    def __str__(self) -> str:
        """Return the address, for messages."""
        return self.address

    def __enter__(self) -> "Server":
        """Open nothing yet: connections are made by requests."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections of all threads."""
        for session in self._sessions:
            session.close()

    def _session(self) -> requests.Session:
        """Return this thread's session: requests does not promise that threads can share one."""
        session = getattr(self._local, "session", None)
        if session is None:
            session = _Session()
            # No proxy stands between this machine and itself.
            session.trust_env = not self._is_loopback
            # Bodies come as stored: the md5 is that of the stored bytes.
            session.headers["Accept-Encoding"] = "identity"
            for scheme in ("http://", "https://"):
                session.mount(scheme, HTTPAdapter(pool_connections=2, pool_maxsize=1))
            self._local.session = session
            self._sessions.append(session)
        return session

    def request(
        self, method: str, url: str, headers: dict[str, str] | None = None, json: dict[str, Any] | None = None
    ) -> requests.Response:
        """Send a request to a path of this server, and follow redirects, but send the token to this server only.

        Returns
        -------
        requests.Response
            Whose body is still to be read.

        Raises
        ------
        FetchError
            If redirects go in a circle, lead away from encryption, or to what is no address.
        requests.RequestException
            Where the connection fails.
        """
        url = f"{self.address}{url}"
        for _ in range(MAX_REDIRECTS + 1):
            sent = dict(headers or {})
            if self._token is not None and _origin(urlsplit(url)) == self._origin:
                sent[TOKEN_HEADER] = self._token
            try:
                answer = self._session().request(
                    method, url, headers=sent, json=json, allow_redirects=False, timeout=TIMEOUT_SECONDS, stream=True
                )
            except PASSING:
                raise
            except (requests.RequestException, ValueError) as error:
                raise FetchError(f"{self.address} cannot be asked: {type(error).__name__}") from error
            if not answer.is_redirect:
                return answer
            answer.close()
            url = self._redirected(url, answer.headers["Location"])
        raise FetchError(f"{self.address} redirects more than {MAX_REDIRECTS} times")

    def _redirected(self, url: str, location: str) -> str:
        """Return where a redirect leads, if it may be followed."""
        here = urlsplit(url)
        try:
            target = urljoin(url, location)
            scheme = urlsplit(target).scheme
        except ValueError as error:
            raise FetchError(f"{here.hostname} redirects to what is no address; not followed") from error
        if scheme not in ("https", here.scheme):
            raise FetchError(f"{here.hostname} redirects from {here.scheme} to {scheme[:20]!r}; not followed")
        try:
            parse_address(target, allow_http=self.allow_http, error=FetchError)
        except FetchError as error:
            raise FetchError(f"{here.hostname} redirects elsewhere, which is not followed: {error}") from error
        return target

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None, *, retry: bool = True) -> Any:
        """Send a request to an API, by default again where it fails for a while; return its JSON answer.

        Raises
        ------
        FetchError
            If the API cannot be reached, refuses, or answers something else.
        """

        def attempt() -> Any:
            with closing(self.request(method, path, json=body)) as answer:
                check_status(answer)
                return read_json(answer)

        try:
            return with_retries(attempt, MAX_TRIES if retry else 1)
        except FetchError as error:
            raise type(error)(f"{self.address}{path}: {error}") from error


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None]:
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
