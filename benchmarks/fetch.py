"""How fast `mgi gdc fetch` is, beside curl on one large file and a sequential loop of requests on many small ones.

Both from loopback: a server of this script sends files from the page cache. Each side writes to the same disk, in turn,
in one run; the ratios are of the best of `--rounds`.

Large: `curl URL | tee FILE | md5sum`, which like us writes and sums what it receives, but is three processes.
Small: a `requests` session that fetches, sums and writes one file after the other, while the server waits 50 ms before
each answer; ours uses `--workers`.

    python benchmarks/fetch.py                       # 2,000 MB; 500 files of 4 MB
    python benchmarks/fetch.py --large-mb 200 --files 60 --file-mb 1
"""

import argparse
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import Process, Queue
from pathlib import Path

import pyarrow as pa
import requests

from mgi.acquire.fetch import fetch
from mgi.acquire.manifest import EXPRESSION
from mgi.config import FetchOptions
from mgi.tables import MANIFEST_SCHEMA, write_table

MB = 1_000_000
CHUNK = 1 << 20


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path
    latency: float

    def do_GET(self) -> None:
        time.sleep(self.latency)
        with open(self.folder / self.path.split("/")[-1], "rb") as source:
            self.send_response(200)
            self.send_header("Content-Length", str(os.fstat(source.fileno()).st_size))
            self.end_headers()
            self.wfile.flush()
            self.connection.sendfile(source)

    def log_message(self, *_: object) -> None:
        pass


def serve(folder: Path, latency: float, ports: Queue) -> None:
    handler = type("Here", (Handler,), {"folder": folder, "latency": latency})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    ports.put(server.server_address[1])
    server.serve_forever()


def make_files(folder: Path, count: int, size: int) -> list[dict]:
    """Write files of random bytes, named by their ids, and return the rows of their manifest."""
    folder.mkdir(parents=True)
    rows = []
    for number in range(count):
        file_id = f"{number:08d}-2222-4333-8444-555555555555"
        digest = hashlib.md5(usedforsecurity=False)
        with open(folder / file_id, "wb") as handle:
            for start in range(0, size, CHUNK):
                block = os.urandom(min(CHUNK, size - start))
                digest.update(block)
                handle.write(block)
        rows.append(
            dict.fromkeys(MANIFEST_SCHEMA.names)
            | {"file_id": file_id, "file_name": "file", "md5": digest.hexdigest(), "size": size}
            | {"data_type": EXPRESSION}
        )
    return rows


def seconds(action, *arguments) -> float:
    os.sync()
    started = time.perf_counter()
    action(*arguments)
    return time.perf_counter() - started


def by_mgi(manifest: Path, out: Path, url: str, workers: int) -> None:
    fetch(manifest, out, url, FetchOptions(workers=workers))
    shutil.rmtree(out)


def by_curl(row: dict, out: Path, url: str) -> None:
    command = f"set -o pipefail; curl -sS --fail {url}/data/{row['file_id']} | tee {out} | md5sum"
    done = subprocess.run(["bash", "-c", command], check=True, capture_output=True, text=True)
    assert done.stdout.split()[0] == row["md5"]
    out.unlink()


def by_requests(rows: list[dict], out: Path, url: str) -> None:
    out.mkdir()
    with requests.Session() as session:
        session.trust_env = False
        for row in rows:
            digest = hashlib.md5(usedforsecurity=False)
            with (
                session.get(f"{url}/data/{row['file_id']}", stream=True, timeout=60) as answer,
                open(out / row["file_id"], "wb") as handle,
            ):
                for chunk in answer.iter_content(CHUNK):
                    handle.write(chunk)
                    digest.update(chunk)
            assert digest.hexdigest() == row["md5"]
    shutil.rmtree(out)


def compare(folder: Path, count: int, size: int, latency: float, workers: int, rounds: int) -> tuple[float, float]:
    """Return the best seconds of mgi and of its peer: curl for one file, the loop for several."""
    rows = make_files(folder / "served", count, size)
    manifest = folder / "manifest.parquet"
    write_table(pa.Table.from_pylist(rows, MANIFEST_SCHEMA), manifest)
    ports: Queue = Queue()
    server = Process(target=serve, args=(folder / "served", latency, ports), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{ports.get()}"
    ours, theirs = [], []
    for _ in range(rounds):
        if count == 1:
            theirs.append(seconds(by_curl, rows[0], folder / "peer", url))
        else:
            theirs.append(seconds(by_requests, rows, folder / "peer", url))
        ours.append(seconds(by_mgi, manifest, folder / "ours", url, workers))
    server.terminate()
    shutil.rmtree(folder)
    return min(ours), min(theirs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large-mb", type=int, default=2000, help="the large file, MB")
    parser.add_argument("--files", type=int, default=500, help="small files")
    parser.add_argument("--file-mb", type=float, default=4.0, help="each of them, MB")
    parser.add_argument("--latency-ms", type=float, default=50.0, help="the server's wait before each small file, ms")
    parser.add_argument("--workers", type=int, default=8, help="downloads at once")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the best of each side counts")
    parser.add_argument("--folder", type=Path, help="where to work; the disk that counts")
    chosen = parser.parse_args()
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        folder = Path(name)
        size = chosen.large_mb * MB
        ours, theirs = compare(folder / "large", 1, size, 0.0, 1, chosen.rounds)
        print(f"one file of {chosen.large_mb} MB: curl | tee | md5sum {size / MB / theirs:.0f} MB/s, "
              f"mgi {size / MB / ours:.0f} MB/s, ratio {theirs / ours:.2f}")  # fmt: skip
        size = int(chosen.file_mb * MB)
        ours, theirs = compare(
            folder / "small", chosen.files, size, chosen.latency_ms / 1000, chosen.workers, chosen.rounds
        )
        print(f"{chosen.files} files of {chosen.file_mb:g} MB, {chosen.latency_ms:g} ms latency: sequential requests "
              f"{theirs:.1f} s, mgi with {chosen.workers} workers {ours:.1f} s, ratio {theirs / ours:.2f}")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
