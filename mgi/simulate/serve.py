"""A local GDC: a simulated cohort served through the GDC's API paths, on loopback.

`/status`, `/files` (GET and POST, with filters, fields, from, size, sort) and `/data/{uuid}` (with Range) answer in the
shapes of the GDC API, https://docs.gdc.cancer.gov/API/Users_Guide/Search_and_Retrieval.
"""

import errno
import json
import os
import re
import shutil
import signal
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qs, urlsplit

from mgi.console import log
from mgi.errors import ConfigError, ManifestError, MissingInputError
from mgi.names import check_name, quote
from mgi.simulate.api import BadRequestError, list_files

LOCAL = "local:"
HOSTS = ("127.0.0.1", "localhost")
MAX_BODY_BYTES = 1 << 20
MAX_RECORDS_BYTES = 1 << 30


@contextmanager
def endpoint(api_url: str) -> Iterator[str]:
    """Yield the http(s) address of a GDC API, serving the folder of `local:DIR` for as long as the context lasts.

    Any other address is yielded as it is.

    Raises
    ------
    MissingInputError, ManifestError
        If DIR is not a complete simulated cohort.
    """
    if not api_url.startswith(LOCAL):
        yield api_url
        return
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
    MissingInputError, ManifestError
        If `folder` is not a complete simulated cohort.
    ConfigError
        If the port is taken.
    """
    # Set explicitly, since a shell starts what it runs in the background with interrupts ignored.
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.default_int_handler)
    with make_server(folder, port) as server:
        print(address(server), flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            log.info("stopped")


def make_server(folder: Path, port: int) -> "LocalGDC":
    """Return the server of a simulated cohort on a port of 127.0.0.1; 0 takes a free one."""
    if not folder.is_dir():
        raise MissingInputError(f"no simulated cohort at {folder}; make one with: mgi simulate {folder}")
    if not (folder / "manifest.tsv").is_file():
        raise MissingInputError(f"{folder} is not a complete simulated cohort; make it with: mgi simulate {folder}")
    status, records = _read_json(folder / "status.json", dict), _read_json(folder / "files.json", list)
    paths = _paths(folder, records)
    try:
        return LocalGDC(status, records, paths, port)
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise ConfigError(
                f"port {port} cannot be used: {error.strerror}; choose another, or 0 for a free one"
            ) from error
        raise


def address(server: "LocalGDC") -> str:
    """Return the address that a client gives as `api_url`."""
    return f"http://127.0.0.1:{server.server_address[1]}"


def _read_json(path: Path, kind: type) -> Any:
    """Read a JSON file that must hold a `kind`."""
    try:
        if path.stat().st_size > MAX_RECORDS_BYTES:
            raise ManifestError(f"{path} is larger than {MAX_RECORDS_BYTES >> 20} MiB")
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise MissingInputError(f"{path} is missing; make the cohort again with: mgi simulate {path.parent}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise ManifestError(f"{path} is not JSON: {quote(str(error), 200)}") from error
    if not isinstance(value, kind):
        raise ManifestError(f"{path} holds no {'list of records' if kind is list else 'status'}")
    return value


def _paths(folder: Path, records: list[Any]) -> dict[str, Path]:
    """Return where the file of each record lies, by its id."""
    paths = {}
    for record in records:
        if not isinstance(record, dict):
            raise ManifestError(f"{folder / 'files.json'} holds a record that is no object: {quote(record)}")
        file_id = check_name(record.get("file_id"), "file id", ManifestError)
        paths[file_id] = folder / "data" / file_id / check_name(record.get("file_name"), "file name", ManifestError)
    return paths


def open_within(folder: Path, path: Path) -> BinaryIO | None:
    """Open a file for reading if it is a plain one that lies in `folder`, through links too; None if it is not."""
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(os.path.realpath(folder)):
        return None
    try:
        handle = os.open(real, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        return None
    return os.fdopen(handle, "rb")


class LocalGDC(ThreadingHTTPServer):
    """The server, holding the records of the folder's files."""

    daemon_threads = True

    def __init__(self, status: dict[str, Any], records: list[dict[str, Any]], paths: dict[str, Path], port: int):
        self.status, self.records, self.paths = status, records, paths
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log one line where a client has gone away."""
        log.debug("a client of the local GDC at %s broke off", client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LocalGDC

    def do_GET(self) -> None:
        if not self._is_for_this_host():
            return
        try:
            parts = urlsplit(self.path)
            query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        except ValueError:
            self._refuse(HTTPStatus.BAD_REQUEST, "the address cannot be read")
            return
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
        if not self._is_for_this_host():
            return
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"[0-9]{1,10}", length) or int(length) > MAX_BODY_BYTES:
            self.close_connection = True
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body of up to {MAX_BODY_BYTES} bytes is read")
            return
        body = self.rfile.read(int(length))
        if urlsplit(self.path).path.rstrip("/") != "/files":
            self._refuse(HTTPStatus.NOT_FOUND, f"there is no {self.path} to post to here")
            return
        try:
            query = json.loads(body or b"{}")
        except (ValueError, RecursionError):
            query = None
        if isinstance(query, dict):
            self._list(query)
        else:
            self._refuse(HTTPStatus.BAD_REQUEST, "the body is not a JSON object")

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("local GDC: " + format, *(quote(arg) if isinstance(arg, str) else arg for arg in args))

    def _is_for_this_host(self) -> bool:
        """Refuse requests that a web page of another host sends here by way of the user's browser."""
        hosts = self.headers.get_all("Host", [])
        host = hosts[0] if len(hosts) == 1 else ""
        if re.fullmatch(rf"({'|'.join(map(re.escape, HOSTS))})(:\d{{1,5}})?", host, re.IGNORECASE):
            return True
        self.close_connection = True
        self._refuse(HTTPStatus.MISDIRECTED_REQUEST, "this server answers for 127.0.0.1 and localhost only")
        return False

    def _list(self, query: dict[str, Any]) -> None:
        try:
            answer = list_files(self.server.records, query)
        except BadRequestError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
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
        source = open_within(path.parents[2], path) if path else None
        if path is None or source is None:
            self._refuse(HTTPStatus.NOT_FOUND, f"no file {file_id}")
            return
        with source:
            self._send(source, path.name)

    def _send(self, source: BinaryIO, name: str) -> None:
        """Send a file, or the range of it that is asked for."""
        size = os.fstat(source.fileno()).st_size
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
        self.send_header("Content-Disposition", f"attachment; filename={name}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        source.seek(start)
        if end == size:
            shutil.copyfileobj(source, self.wfile, 1 << 20)
        else:
            self.wfile.write(source.read(end - start))


def _byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return the first byte and the one after the last that a Range header asks for (RFC 9110, 14.2).

    None stands for the whole file.

    Raises
    ------
    ValueError
        If the range lies outside the file.
    """
    match = re.fullmatch(r"bytes=([0-9]{0,18})-([0-9]{0,18})", (header or "").replace(" ", ""))
    if match is None or match[0] == "bytes=-":
        return None
    if not match[1]:
        start, end = max(size - int(match[2]), 0), size
    else:
        start, end = int(match[1]), min(int(match[2]) + 1, size) if match[2] else size
    if start >= end:
        raise ValueError("range not satisfiable")
    return start, end
