"""What answers of servers mean, and how much of them is read."""

import gzip
import json
import time
from contextlib import suppress

import pytest

from mgi.acquire import answers
from mgi.acquire.web import Server
from mgi.errors import FetchError
from tests.cohorts import fetch

from .servers import CONTENT, says, scripted

PAGE = b"<!DOCTYPE html><html><head><title>Blocked &amp; logged\x1b[31m</title></head><body>...</body></html>"


@pytest.mark.parametrize("code", [401, 403])
@pytest.mark.parametrize(
    ("body", "headers", "has_token", "said"),
    [
        (b'{"message": "Your token is expired."}', {}, True, "token is not accepted.*'Your token is expired.'"),
        (b'{"error": "invalid credentials"}', {}, True, "token is not accepted.*'invalid credentials'"),
        (b'{"message": "no access"}', {}, False, "controlled-access file, which needs the GDC token.*'no access'"),
        (b"", {}, False, "controlled-access file, which needs the GDC token"),
        (PAGE, {}, True, r"by a web page, 'Blocked & logged\\x1b\[31m', as a firewall"),
        (b"Denied by policy 7", {"Content_Type": "text/html"}, False, "by a web page, 'Denied by policy 7', as a fire"),
    ],
    ids=["expired", "credentials", "controlled", "bare", "firewall", "untitled page"],
)
def test_refusal_repeats_the_servers_message(one_file, tmp_path, token, code, body, headers, has_token, said):
    with scripted([says(code, body, **headers)]) as (url, seen), pytest.raises(FetchError, match=f"{code}.*{said}"):
        fetch(one_file, tmp_path / "got", url, 1, token_file=token if has_token else None)
    assert len(seen) == 1


def test_unreadable_file_is_reported(one_file, tmp_path, token):
    with (
        scripted([says(403, b'{"message": "dbGaP"}')]) as (url, _),
        pytest.raises(FetchError, match="owner may not read"),
    ):
        fetch(one_file, tmp_path / "got", url, 1, token_file=token)


def endless(code, piece, **headers):
    def answer(handler):
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        with suppress(OSError):
            for _ in range(100_000):
                handler.wfile.write(piece)
                handler.sent = getattr(handler, "sent", 0) + len(piece)
        sizes.append(getattr(handler, "sent", 0))

    sizes = []
    return answer, sizes


@pytest.mark.parametrize("code", [400, 403, 301])
def test_endless_error_body_is_read_to_a_limit(one_file, tmp_path, code):
    headers = {"Location": "/elsewhere"} if code == 301 else {}
    answer, sizes = endless(code, b"x" * 10_000, **headers)
    with scripted([answer]) as (url, _), pytest.raises(FetchError):
        fetch(one_file, tmp_path / "got", url, 1)
    assert max(sizes) < 50_000_000


def test_endless_answer_is_read_to_a_limit(monkeypatch):
    monkeypatch.setattr(answers, "MAX_JSON_BYTES", 1 << 20)
    answer, sizes = endless(200, b"[" * 10_000)
    with scripted([answer]) as (url, _), Server(url) as server, pytest.raises(FetchError, match="longer than 1 MiB"):
        server.ask("GET", "/status")
    assert max(sizes) < 50_000_000


def test_gzip_bomb_is_unpacked_to_a_limit(monkeypatch):
    monkeypatch.setattr(answers, "MAX_JSON_BYTES", 1 << 20)
    bomb = gzip.compress(b" " * (200 << 20))
    answer = says(200, bomb, Content_Encoding="gzip")
    with scripted([answer]) as (url, _), Server(url) as server, pytest.raises(FetchError, match="longer than 1 MiB"):
        server.ask("GET", "/status")


def test_gzipped_answer_that_was_not_asked_for_is_read_all_the_same():
    body = gzip.compress(json.dumps({"a": [1]}).encode())
    with scripted([says(200, body, Content_Encoding="gzip")]) as (url, _), Server(url) as server:
        assert server.ask("GET", "/x") == {"a": [1]}


def test_answer_that_drips_is_given_up(monkeypatch, no_waiting):
    monkeypatch.setattr(answers, "MAX_ANSWER_SECONDS", 0.1)

    def drips(handler):
        handler.send_response(200)
        handler.end_headers()
        with suppress(OSError):
            for _ in range(100):
                handler.wfile.write(b" ")
                time.sleep(0.01)

    with scripted([drips]) as (url, _), Server(url) as server, pytest.raises(FetchError, match="did not end within"):
        server.ask("GET", "/status")


@pytest.mark.parametrize(
    "asked", ["Fri, 01 Jan 99999999999 00:00:00 GMT", "nan", "-5", "inf", "soon", "1e400", "Mon, 99 Foo 2026", ""]
)
def test_ignores_invalid_retry_after(one_file, tmp_path, no_waiting, asked, monkeypatch):
    monkeypatch.setattr(answers, "MAX_RETRY_AFTER_SECONDS", 0.01)
    with scripted([says(429, Retry_After=asked), says(200, CONTENT)]) as (url, seen):
        fetch(one_file, tmp_path / "got", url, 1)
    assert len(seen) == 2


@pytest.mark.parametrize(
    "location",
    [
        "http://[::1/x",
        "http://user:s3cret@127.0.0.1/x",
        "http://elsewhere.example/x",
        "file:///etc/passwd",
        "http://a b/",
    ],
)
def test_rejects_invalid_redirect(one_file, tmp_path, location):
    with (
        scripted([says(302, Location=location)]) as (url, seen),
        pytest.raises(FetchError, match="not followed") as caught,
    ):
        fetch(one_file, tmp_path / "got", url, 1)
    assert len(seen) == 1
    assert "s3cret" not in str(caught.value)


def test_server_words_are_escaped(one_file, tmp_path, caplog):
    body = json.dumps({"message": "a\x1b[2J\nerror: forged\u202e"}).encode()
    caplog.set_level("INFO", "mgi")
    with scripted([says(400, body)]) as (url, _), pytest.raises(FetchError, match="400 Bad Request") as caught:
        fetch(one_file, tmp_path / "got", url, 1)
    for text in (str(caught.value), caplog.text, (tmp_path / "got.status.tsv").read_text()):
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert not [line for line in text.splitlines() if line.startswith("error: forged")]
