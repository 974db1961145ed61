"""Servers that misbehave, and manifests of what they serve."""

import hashlib
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from mgi.acquire import gdc
from mgi.files import write_table


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
    row = dict.fromkeys(gdc.SCHEMA.names) | {
        "file_id": FILE_ID, "file_name": "counts.tsv", "md5": hashlib.md5(CONTENT).hexdigest(),
        "size": len(CONTENT), "data_type": gdc.EXPRESSION,
    } | changes  # fmt: skip
    write_table(gdc.pa.Table.from_pylist([row], gdc.SCHEMA), path)
    return path
