"""What a server answers: read within limits, and sorted into good, worth another attempt, and final."""

import html
import json
import math
import re
import time
import zlib
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

import requests

from mgi.acquire.addresses import proxy_of
from mgi.acquire.retry import NotThereError, TryAgainError
from mgi.errors import FetchError
from mgi.names import quote

MAX_JSON_BYTES = 64 << 20
MAX_ERROR_BYTES = 64 << 10
MAX_SHOWN = 200
MAX_ANSWER_SECONDS = 300.0
MAX_RETRY_AFTER_SECONDS = 900.0
CHUNK = 1 << 16
TOKEN_HEADER = "X-Auth-Token"


def read_json(answer: requests.Response) -> Any:
    """Return the JSON of a good answer.

    Raises
    ------
    TryAgainError
        If the connection breaks off or the answer does not end in time.
    FetchError
        If it is longer than 64 MiB, or is no JSON.
    """
    body = read_body(answer, MAX_JSON_BYTES + 1)
    if len(body) > MAX_JSON_BYTES:
        raise FetchError(f"the answer is longer than {MAX_JSON_BYTES >> 20} MiB")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        what = f"a web page, {describe_text(body)}" if is_page(body) else "no JSON"
        raise FetchError(f"the answer is {what}") from error


def read_body(answer: requests.Response, limit: int) -> bytes:
    """Return the first `limit` bytes of an answer's body, decompressed."""
    body = bytearray()
    until = time.monotonic() + MAX_ANSWER_SECONDS
    while len(body) < limit and (chunk := answer.raw.read1(min(CHUNK, limit - len(body)), decode_content=False)):
        body += chunk
        if time.monotonic() > until:
            raise TryAgainError(f"the answer did not end within {MAX_ANSWER_SECONDS:.0f} s")
    stated = content_length(answer)
    if len(body) < limit and stated is not None and len(body) < stated:
        raise TryAgainError("the connection broke off")
    encoding = answer.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding in ("", "identity"):
        return bytes(body)
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise FetchError(f"the answer is compressed as {quote(encoding)}, which was not asked for")
    try:
        return zlib.decompressobj(47).decompress(bytes(body), limit)
    except zlib.error as error:
        raise TryAgainError("the answer cannot be decompressed") from error


def content_length(answer: requests.Response) -> int | None:
    """Return the stated length of a body, bytes; None where it is not stated."""
    stated = answer.headers.get("Content-Length", "")
    return int(stated) if re.fullmatch(r"[0-9]{1,18}", stated) else None


def is_page(body: bytes, content_type: str = "") -> bool:
    """Return whether a body is a web page, by its stated type or its beginning."""
    start = body[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return "html" in content_type.lower() or start.startswith((b"<!doctype html", b"<html", b"<head", b"<body"))


def describe_text(body: bytes) -> str:
    """Return what an error body says, quoted, on one line: its message, the title of a page, or its first words."""
    text = body.decode("utf-8", errors="replace")
    if is_page(body):
        title = re.search(r"<title[^>]*>(.{1,2000}?)</title", text, re.IGNORECASE | re.DOTALL)
        text = html.unescape(title[1] if title else re.sub(r"<[^>]{0,2000}>", " ", text))
    else:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict):
            words = (found.get(key) for key in ("message", "error", "detail", "description"))
            text = next((word for word in words if isinstance(word, str)), text)
    text = " ".join(text.split())
    return quote(text, MAX_SHOWN) if text else ""


def check_status(answer: requests.Response) -> None:
    """Return if an answer is good.

    Raises
    ------
    TryAgainError
        For 408, 429 and 5xx, which may pass.
    FetchError
        For a refusal that another attempt would meet again.
    """
    code = answer.status_code
    if code in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        return
    if code in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS) or code >= 500:
        outage = code in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
        raise TryAgainError(f"the server answered {_name(code)}", _retry_after(answer), outage)
    if code in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        raise NotThereError(
            f"the server does not have it ({code}): it was withdrawn or superseded; `mgi gdc check` shows which"
        )
    body = _read_error(answer)
    said = describe_text(body)
    if code == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        raise FetchError(f"the proxy {proxy_of(answer.url) or ''} asks for a password (407)")
    if code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise FetchError(_describe_refusal(answer, body, said))
    raise FetchError(f"the server answered {_name(code)}{f': {said}' if said else ''}")


def _describe_refusal(answer: requests.Response, body: bytes, said: str) -> str:
    """Return what a 401 or 403 means: a firewall's page, a token that is not accepted, or controlled access."""
    code = answer.status_code
    proxy = proxy_of(answer.url)
    if is_page(body, answer.headers.get("Content-Type", "")):
        return (
            f"access denied ({code}) by a web page{f', {said}' if said else ''}, as a firewall or proxy sends it"
            f"{f', through the proxy {proxy}' if proxy else ''}: ask your network's administrators to allow the server"
        )
    told = f"; the server said {said}" if said else ""
    told += f" (through the proxy {proxy})" if proxy else ""
    sent_token = TOKEN_HEADER in answer.request.headers
    if sent_token and (code == HTTPStatus.UNAUTHORIZED or re.search(r"token|expired|credential", said, re.IGNORECASE)):
        return f"access denied ({code}): the token is not accepted, it may have expired; get a new one{told}"
    if sent_token:
        return f"access denied ({code}): controlled-access file that the token's owner may not read{told}"
    return f"access denied ({code}): controlled-access file, which needs the GDC token of a reader{told}"


def _read_error(answer: requests.Response) -> bytes:
    """Return the beginning of an error's body, empty where it cannot be read."""
    try:
        return read_body(answer, MAX_ERROR_BYTES)
    except Exception:  # whatever is wrong with the body, the status is what counts
        return b""


def _name(code: int) -> str:
    try:
        return f"{code} {HTTPStatus(code).phrase}"
    except ValueError:
        return str(code)


def _retry_after(answer: requests.Response) -> float:
    """Return the seconds that a Retry-After header asks for, number or date (RFC 9110, 10.2.3), up to 15 minutes."""
    text = answer.headers.get("Retry-After", "0")
    try:
        seconds = float(text)
    except ValueError:
        try:
            until = parsedate_to_datetime(text)
            seconds = (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
        except (ValueError, OverflowError, TypeError):
            return 0.0
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS) if not math.isnan(seconds) else 0.0
