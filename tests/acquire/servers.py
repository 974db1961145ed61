"""Servers that misbehave, and manifests of what they serve."""

import hashlib
import random
import socket
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa

from mgi.acquire.manifest import EXPRESSION
from mgi.tables import MANIFEST_SCHEMA, write_table


def md5_of(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@contextmanager
def scripted(answers):
    """A server that gives each request the next of `answers`: a function of the handler; the last one repeats."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.headers.get("Range"))
            answers[min(len(seen), len(answers)) - 1](self)

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        server.server_close()


def says(code, body=b"", stated=None, **headers):
    """An answer with `body`, whose Content-Length may be stated wrongly."""

    def answer(handler):
        handler.send_response(code)
        handler.send_header("Content-Length", str(len(body) if stated is None else stated))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


CONTENT = bytes(range(256)) * 40
FILE_ID = "11111111-2222-4333-8444-555555555555"


def pin_one(path, **changes):
    row = dict.fromkeys(MANIFEST_SCHEMA.names) | {
        "file_id": FILE_ID, "file_name": "counts.tsv", "md5": hashlib.md5(CONTENT).hexdigest(),
        "size": len(CONTENT), "data_type": EXPRESSION,
    } | changes  # fmt: skip
    write_table(pa.Table.from_pylist([row], MANIFEST_SCHEMA), path)
    return path


class FaultyGDC:
    """Serves files, each request meeting a fault by chance, from two hosts, and counts what it sends.

    Parameters
    ----------
    files
        Content by file id.
    faults
        How often, out of 1, each fault is met: `drop` (the connection, at a random byte), `stall` (likewise, silently),
        `short` (a body cut off, its length stated so), `wrong` (bytes), `limit` (429 with Retry-After), `burst` (of
        500s), `redirect` (to the other host).
    restart_after
        Requests after which the server is away for a moment, its connections cut.
    pause
        Seconds between pieces of 16 KiB.
    """

    BURST = 12
    AWAY_SECONDS = 0.3
    STALL_SECONDS = 3.0

    def __init__(self, files, faults=None, restart_after=None, pause=0.0, seed=0):
        self.files, self.faults, self.restart_after, self.pause = files, faults or {}, restart_after, pause
        self.random = random.Random(seed)
        self.lock = threading.Lock()
        self.sent = self.corrupted = self.burst = 0
        self.requests, self.met, self.limited, self.tokens = [], Counter(), {}, []
        self.too_early = 0
        self.connections = set()
        self.servers = [self._serve(0), self._serve(0)]
        self.ports = [server.server_address[1] for server in self.servers]
        self.url = f"http://127.0.0.1:{self.ports[0]}"

    def _serve(self, port):
        faulty = self

        class Handler(_FaultyHandler):
            gdc = faulty

        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        server.daemon_threads = True
        server.handle_error = lambda *_: None
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return server

    def _stop(self, server):
        server.shutdown()
        server.server_close()
        with self.lock:
            connections = list(self.connections)
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def restart(self):
        self._stop(self.servers[0])
        time.sleep(self.AWAY_SECONDS)
        self.servers[0] = self._serve(self.ports[0])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for server in self.servers:
            self._stop(server)

    def next_fault(self):
        """Draw the fault that a request meets; called with the lock held."""
        if len(self.requests) == self.restart_after:
            threading.Thread(target=self.restart, daemon=True).start()
        if self.burst:
            self.burst -= 1
            return "burst"
        drawn = self.random.random()
        for fault, share in self.faults.items():
            drawn -= share
            if drawn < 0:
                self.met[fault] += 1
                if fault == "burst":
                    self.burst = self.BURST
                return fault
        return None


class _FaultyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    gdc: FaultyGDC

    def setup(self):
        super().setup()
        self.gdc.connections.add(self.connection)

    def finish(self):
        self.gdc.connections.discard(self.connection)
        super().finish()

    def log_message(self, *_):
        pass

    def do_GET(self):
        gdc, file_id = self.gdc, self.path.split("/")[-1]
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        is_other = self.server.server_address[1] == gdc.ports[1]
        with gdc.lock:
            gdc.requests.append((file_id, start))
            gdc.tokens.append((is_other, self.headers.get("X-Auth-Token")))
            gdc.too_early += time.monotonic() < gdc.limited.pop(file_id, 0)
            fault = gdc.next_fault()
            cut = gdc.random.random()
            if fault == "redirect" and is_other:
                fault = None
            if fault == "limit":
                gdc.limited[file_id] = time.monotonic() + 1
        if fault == "redirect":
            self._say(302, Location=f"http://localhost:{gdc.ports[1]}{self.path}")
        elif fault == "burst":
            self._say(500)
        elif fault == "limit":
            self._say(429, Retry_After="1")
        else:
            self._send(gdc.files[file_id], start, fault, cut)

    def _say(self, code, **headers):
        self.send_response(code)
        self.send_header("Content-Length", "0")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def _send(self, content, start, fault, cut):
        body = content[start:]
        keep = int(cut * len(body))
        if fault == "wrong":
            body = bytes(byte ^ 1 for byte in body)
            with self.gdc.lock:
                self.gdc.corrupted += len(body)
        stated = keep if fault == "short" else len(body)
        if fault == "short" and not start:
            # Of another length than the file, so it is not taken.
            with self.gdc.lock:
                self.gdc.corrupted += keep
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(stated))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{start + stated - 1}/{len(content)}")
        self.end_headers()
        if fault in ("drop", "stall", "short"):
            body = body[:keep]
        for at in range(0, len(body), 1 << 14):
            piece = body[at : at + (1 << 14)]
            self.wfile.write(piece)
            with self.gdc.lock:
                self.gdc.sent += len(piece)
            if self.gdc.pause:
                time.sleep(self.gdc.pause)
        if fault == "stall":
            self.connection.settimeout(self.gdc.STALL_SECONDS)
            with suppress(OSError):
                self.connection.recv(1)
        if fault in ("drop", "stall"):
            self.close_connection = True
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)


def contents(count, smallest, largest, seed=0):
    """Random files by file id."""
    draw = random.Random(seed)
    ids = [f"{number:08d}-2222-4333-8444-555555555555" for number in range(count)]
    return {file_id: draw.randbytes(draw.randint(smallest, largest)) for file_id in ids}


def pin(path, files, name="counts.tsv"):
    """Write a manifest of these files."""
    rows = [
        dict.fromkeys(MANIFEST_SCHEMA.names)
        | {"file_id": file_id, "file_name": name, "size": len(content), "data_type": EXPRESSION}
        | {"md5": hashlib.md5(content).hexdigest()}
        for file_id, content in files.items()
    ]
    write_table(pa.Table.from_pylist(rows, MANIFEST_SCHEMA), path)
    return path


def rest_of(start):
    """The answer to a request for `CONTENT` from `start` on."""
    return says(206, CONTENT[start:], Content_Range=f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")


def serving(files):
    """An answer to any request: the file that the path ends with, or 404."""

    def answer(handler):
        content = files.get(handler.path.split("/data/")[-1])
        says(404 if content is None else 200, content or b"")(handler)

    return answer
