"""A local GDC: a simulated cohort served through the GDC's API paths, on loopback.

`/status`, `/files` (GET and POST, with filters, fields, from, size, sort) and `/data/{uuid}` (with Range) answer in the
shapes of the GDC API, https://docs.gdc.cancer.gov/API/Users_Guide/Search_and_Retrieval.
"""

import errno
import json
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from operator import itemgetter
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from mgi.console import log
from mgi.errors import ConfigError, MissingInputError

LOCAL = "local:"
DEFAULT_SIZE = 10


@contextmanager
def endpoint(api_url: str) -> Iterator[str]:
    """Yield the http address of a GDC API, serving the folder of `local:DIR` for as long as the context lasts.

    Raises
    ------
    ConfigError
        If `api_url` is neither an http(s) address nor `local:DIR`.
    MissingInputError
        If DIR is not a complete simulated cohort.
    """
    if api_url.startswith(("http://", "https://")):
        yield api_url.rstrip("/")
        return
    if not api_url.startswith(LOCAL):
        raise ConfigError(
            f"the GDC address is '{api_url}'; give an https:// address, or local:DIR for a simulated cohort"
        )
    server = make_server(Path(api_url.removeprefix(LOCAL)), 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield address(server)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def serve_until_interrupted(folder: Path, port: int) -> None:
    """Serve `folder` on 127.0.0.1, print the address, and return on an interrupt or a request to terminate.

    Raises
    ------
    MissingInputError
        If `folder` is not a complete simulated cohort.
    ConfigError
        If the port is taken.
    """
    # Said outright, since a shell starts what it runs in the background with interrupts ignored.
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.default_int_handler)
    with make_server(folder, port) as server:
        print(address(server), flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            log.info("stopped")


def make_server(folder: Path, port: int) -> "LocalGDC":
    """Make the server of a simulated cohort on a port of 127.0.0.1; 0 takes a free one."""
    if not folder.is_dir():
        raise MissingInputError(f"no simulated cohort at {folder}; make one with: mgi simulate {folder}")
    if not (folder / "manifest.tsv").is_file():
        raise MissingInputError(f"{folder} is not a complete simulated cohort; make it with: mgi simulate {folder}")
    try:
        return LocalGDC(folder, port)
    except OSError as problem:
        if problem.errno in (errno.EADDRINUSE, errno.EACCES):
            raise ConfigError(
                f"port {port} cannot be used: {problem.strerror}; choose another, or 0 for a free one"
            ) from None
        raise


def address(server: "LocalGDC") -> str:
    """Return the address that a client gives as `api_url`."""
    return f"http://127.0.0.1:{server.server_address[1]}"


class LocalGDC(ThreadingHTTPServer):
    """The server, holding the records of the folder's files."""

    daemon_threads = True

    def __init__(self, folder: Path, port: int):
        self.folder = folder
        self.status = json.loads((folder / "status.json").read_text())
        self.records = json.loads((folder / "files.json").read_text())
        self.paths = {
            record["file_id"]: folder / "data" / record["file_id"] / record["file_name"] for record in self.records
        }
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say one line where a client has gone away."""
        log.debug("a client of the local GDC at %s broke off", client_address)


class _BadRequest(Exception):
    """A request that the GDC would answer with 400 and a message."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LocalGDC

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        path = parts.path.rstrip("/")
        if path == "/status":
            self._answer(HTTPStatus.OK, self.server.status)
        elif path == "/files":
            self._list(query)
        elif path.startswith("/data/"):
            self._send_file(path.removeprefix("/data/"))
        else:
            self._refuse(HTTPStatus.NOT_FOUND, f"there is no {path} here")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if urlsplit(self.path).path.rstrip("/") != "/files":
            self._refuse(HTTPStatus.NOT_FOUND, f"there is no {self.path} to post to here")
            return
        try:
            query = json.loads(body or b"{}")
        except ValueError:
            query = None
        if isinstance(query, dict):
            self._list(query)
        else:
            self._refuse(HTTPStatus.BAD_REQUEST, "the body is not a JSON object")

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("local GDC: " + format, *args)

    def _list(self, query: dict[str, Any]) -> None:
        try:
            answer = list_files(self.server.records, query)
        except _BadRequest as problem:
            self._refuse(HTTPStatus.BAD_REQUEST, str(problem))
        else:
            self._answer(HTTPStatus.OK, answer)

    def _answer(self, code: HTTPStatus, body: Any) -> None:
        content = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _refuse(self, code: HTTPStatus, message: str) -> None:
        self._answer(code, {"message": message, "code": int(code)})

    def _send_file(self, file_id: str) -> None:
        path = self.server.paths.get(file_id)
        if path is None or not path.is_file():
            self._refuse(HTTPStatus.NOT_FOUND, f"no file {file_id}")
            return
        size = path.stat().st_size
        try:
            part = _byte_range(self.headers.get("Range"), size)
        except ValueError:
            self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            self.send_header("Content-Range", f"bytes */{size}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start, end = part or (0, size)
        self.send_response(HTTPStatus.PARTIAL_CONTENT if part else HTTPStatus.OK)
        if part:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Disposition", f"attachment; filename={path.name}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        with open(path, "rb") as source:
            source.seek(start)
            if end == size:
                shutil.copyfileobj(source, self.wfile, 1 << 20)
            else:
                self.wfile.write(source.read(end - start))


def _byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First byte and the one after the last that a Range header asks for; None for the whole file (RFC 9110, 14.2).

    Raises
    ------
    ValueError
        If the range lies outside the file.
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", (header or "").replace(" ", ""))
    if match is None or match[0] == "bytes=-":
        return None
    if not match[1]:
        start, end = max(size - int(match[2]), 0), size
    else:
        start, end = int(match[1]), min(int(match[2]) + 1, size) if match[2] else size
    if start >= end:
        raise ValueError("range not satisfiable")
    return start, end


def list_files(records: list[dict], query: dict[str, Any]) -> dict:
    """Answer a query of `/files`: the matching records' fields, one page of them.

    Parameters
    ----------
    records
        Records as the GDC lists them, nested.
    query
        `filters` (a mapping, or its JSON), `fields` (names, comma-separated or a list), `from`, `size`, `sort`.
    """
    filters = query.get("filters")
    if isinstance(filters, str) and filters:
        try:
            filters = json.loads(filters)
        except ValueError:
            raise _BadRequest("filters is not JSON") from None
    if str(query.get("format", "JSON")).upper() != "JSON":
        raise _BadRequest(f"format {query['format']} is not served here; ask for JSON")
    try:
        start, size = int(query.get("from", 0)), int(query.get("size", DEFAULT_SIZE))
    except (TypeError, ValueError):
        raise _BadRequest("from and size must be whole numbers") from None
    if start < 0 or size < 0:
        raise _BadRequest("from and size must not be negative")
    found = [record for record in records if not filters or _matches(record, filters)]
    found = _sorted(found, str(query.get("sort") or ""))
    fields = query.get("fields") or []
    fields = fields.split(",") if isinstance(fields, str) else fields
    hits = [_selected(record, fields) for record in found[start : start + size]]
    pagination = {
        "count": len(hits),
        "total": len(found),
        "size": size,
        "from": start,
        "sort": query.get("sort") or "",
        "page": start // size + 1 if size else 1,
        "pages": -(-len(found) // size) if size else 1,
    }
    return {"data": {"hits": hits, "pagination": pagination}, "warnings": {}}


def _sorted(records: list[dict], sort: str) -> list[dict]:
    """Put records in the order of `field:asc,field:desc`, the first field counting most."""
    for key in reversed([part for part in sort.split(",") if part]):
        field, _, direction = key.partition(":")
        keyed = [([str(value) for value in _values(record, field)], record) for record in records]
        records = [record for _, record in sorted(keyed, key=itemgetter(0), reverse=direction == "desc")]
    return records


def _values(record: Any, field: str) -> list[Any]:
    """Every value of a dotted field, through the lists on its way."""
    found = [record]
    for key in field.removeprefix("files.").split("."):
        inner = [value[key] for value in found if isinstance(value, dict) and key in value]
        found = [item for value in inner for item in (value if isinstance(value, list) else [value])]
    return found


def _matches(record: dict, node: Any) -> bool:
    """Whether a record passes a filter of the GDC's query language."""
    operator = node.get("op") if isinstance(node, dict) else None
    content = node.get("content") if isinstance(node, dict) else None
    if operator in ("and", "or") and isinstance(content, list):
        results = (_matches(record, part) for part in content)
        return all(results) if operator == "and" else any(results)
    if operator not in ("=", "!=", "in", "exclude") or not isinstance(content, dict) or "field" not in content:
        raise _BadRequest(f"cannot read the filter {json.dumps(node)}; operators are and, or, =, !=, in, exclude")
    wanted = content.get("value")
    wanted = {str(value) for value in (wanted if isinstance(wanted, list) else [wanted])}
    present = any(str(value) in wanted for value in _values(record, content["field"]))
    return present == (operator in ("=", "in"))


def _selected(record: dict, fields: list[str]) -> dict:
    """Return the record reduced to the named fields, nested as before; its id is always there."""
    if not fields:
        return {key: value for key, value in record.items() if not isinstance(value, dict | list)}
    paths = [field.strip().split(".") for field in fields]
    return {"id": record["file_id"]} | _pruned(record, paths)


def _pruned(value: Any, paths: list[list[str]]) -> Any:
    if isinstance(value, list):
        kept = [_pruned(item, paths) for item in value]
        return [item for item in kept if item != {}]
    if not isinstance(value, dict) or [] in paths:
        return value
    result = {}
    for key, inner in value.items():
        deeper = [path[1:] for path in paths if path and path[0] == key]
        if deeper and (kept := _pruned(inner, deeper)) not in ({}, []):
            result[key] = kept
    return result
