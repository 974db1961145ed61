"""Files of the Genomic Data Commons: listed once into a manifest that pins them, then fetched and verified.

The requests and answers are those of the GDC API, https://docs.gdc.cancer.gov/API/Users_Guide/Getting_Started.
"""

import hashlib
import itertools
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import requests
from requests.adapters import HTTPAdapter
from requests.exceptions import ChunkedEncodingError

from mgi.acquire.serve import endpoint
from mgi.config import GDC_API, GENCODE_V36_FILE_ID
from mgi.console import log, progress
from mgi.errors import ConfigError, FetchError, ManifestError
from mgi.files import read_table, write_table, written_aside

__all__ = ["ANNOTATION", "EXPRESSION", "GDC_API", "SCHEMA", "SLIDES", "fetch", "query", "read_manifest"]

EXPRESSION = "Gene Expression Quantification"
SLIDES = "Slide Image"
ANNOTATION = "Gene Annotation"
KINDS = {"expression": EXPRESSION, "slides": SLIDES, "annotation": ANNOTATION}

SCHEMA = pa.schema(
    [
        ("file_id", pa.string()),
        ("file_name", pa.string()),
        ("md5", pa.string()),
        ("size", pa.int64()),
        ("data_type", pa.string()),
        ("case_id", pa.string()),
        ("sample_type", pa.string()),
        ("aliquot", pa.string()),
        ("project", pa.string()),
    ]
)
RELEASE_KEY = b"gdc_data_release"

# What narrows each kind to the files of one pipeline, in the GDC's own field names.
NARROWING = {
    EXPRESSION: {"analysis.workflow_type": "STAR - Counts"},
    SLIDES: {"experimental_strategy": "Diagnostic Slide"},
}
BARCODE_FIELD = {
    EXPRESSION: "cases.samples.portions.analytes.aliquots.submitter_id",
    SLIDES: "cases.samples.portions.slides.submitter_id",
}
FILE_FIELDS = ("file_id", "file_name", "file_size", "md5sum", "data_type")
CASE_FIELDS = ("cases.submitter_id", "cases.samples.sample_type")
GENCODE_V36 = {
    "file_id": GENCODE_V36_FILE_ID,
    "file_name": "gencode.v36.annotation.gtf.gz",
    "md5sum": "c03931958d4572148650d62eb6dec41a",
    "file_size": None,
}

PAGE = 500
TRIES = 4
BACKOFF_SECONDS = 1.0
TIMEOUT_SECONDS = (15, 90)
CHUNK = 1 << 20
UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def query(projects: list[str], out: Path, api_url: str, data_types: list[str], annotation_file_id: str | None) -> None:
    """List the files of one or more projects into a manifest.

    Parameters
    ----------
    projects
        GDC projects, such as TCGA-BRCA.
    out
        Manifest to write (Parquet, `SCHEMA`; the GDC's data release in the schema metadata). Rows are sorted by
        data_type, case_id, file_name and file_id.
    api_url
        The GDC API, or `local:DIR`.
    data_types
        Any of `expression` (STAR counts: one file per case, the primary tumour's lowest aliquot barcode) and `slides`
        (every diagnostic slide).
    annotation_file_id
        GDC file id of the gene annotation to pin, or None.

    Raises
    ------
    ManifestError
        If a project has no such files, a record lacks a field, or the annotation is unknown.
    ConfigError
        If a data type is none of the above.
    FetchError
        If the GDC cannot be reached or refuses the query.
    """
    kinds = [_kind(name) for name in data_types]
    rows: list[dict] = []
    with endpoint(api_url) as url, _session(1) as session:
        release = _json(session, "GET", f"{url}/status").get("data_release")
        for project in projects:
            for kind in kinds:
                found = [_row(record, kind, project) for record in _files(session, url, project, kind)]
                rows += _chosen(found, kind, project)
        if annotation_file_id is not None:
            rows.append(_annotation_row(session, url, annotation_file_id))
    rows.sort(key=lambda row: (row["data_type"], row["case_id"] or "", row["file_name"], row["file_id"]))
    _refuse_duplicates([row["file_id"] for row in rows], "the answer of the GDC")
    write_table(pa.Table.from_pylist(rows, SCHEMA.with_metadata({RELEASE_KEY: str(release).encode()})), out)
    log.info("%d files of %s pinned in %s (%s)", len(rows), ", ".join(projects), out, release)


def _kind(name: str) -> str:
    if name not in KINDS:
        raise ConfigError(f"data type '{name}' is unknown; give one of {', '.join(KINDS)}")
    return KINDS[name]


def _equals(field: str, value: str) -> dict:
    return {"op": "=", "content": {"field": field, "value": value}}


def _files(session: requests.Session, url: str, project: str, kind: str) -> list[dict]:
    """Every open file of one kind and project, page by page."""
    wanted = {"cases.project.project_id": project, "data_type": kind, "access": "open"} | NARROWING[kind]
    filters = {"op": "and", "content": [_equals(field, value) for field, value in wanted.items()]}
    fields = ",".join((*FILE_FIELDS, *CASE_FIELDS, BARCODE_FIELD[kind]))
    records: list[dict] = []
    while True:
        body = {"filters": filters, "fields": fields, "from": len(records), "size": PAGE, "sort": "file_id:asc"}
        data = _json(session, "POST", f"{url}/files", {**body, "format": "JSON"})["data"]
        records += data["hits"]
        if not data["hits"] or len(records) >= data["pagination"]["total"]:
            break
    if not records:
        narrowing = ", ".join(f"{field} '{value}'" for field, value in NARROWING[kind].items())
        raise ManifestError(f"{url} lists no '{kind}' with {narrowing} for the project '{project}'; is its name right?")
    return records


def _row(record: dict, kind: str, project: str) -> dict:
    """One row of the manifest from a record of `/files`."""
    try:
        cases = record["cases"]
        if len(cases) != 1:
            raise ManifestError(
                f"file {record['file_id']} belongs to {len(cases)} cases; only files of one case can be used"
            )
        barcodes = list(_leaves(cases[0], BARCODE_FIELD[kind].split(".")[1:]))
        if kind == SLIDES and len(barcodes) != 1:
            # The GDC may list every slide of the portion; the file is named after its own.
            barcodes = [record["file_name"].split(".")[0]]
        return {
            "file_id": record["file_id"],
            "file_name": Path(record["file_name"]).name,
            "md5": record["md5sum"],
            "size": record["file_size"],
            "data_type": kind,
            "case_id": cases[0]["submitter_id"][:12],
            "sample_type": cases[0]["samples"][0]["sample_type"],
            "aliquot": min(barcodes),
            "project": project,
        }
    except (KeyError, IndexError, ValueError) as problem:
        raise ManifestError(f"the GDC's record of file {record.get('file_id')} lacks {problem}") from None


def _leaves(value: Any, path: list[str]) -> Iterator[str]:
    """Yield the values at the end of a path of keys, through the lists on its way."""
    if isinstance(value, list):
        for item in value:
            yield from _leaves(item, path)
    elif not path:
        yield value
    elif path[0] in value:
        yield from _leaves(value[path[0]], path[1:])


def _chosen(rows: list[dict], kind: str, project: str) -> list[dict]:
    """All diagnostic slides; of each case's expression files the first: primary tumour, aliquot, file id."""
    if kind == SLIDES:
        chosen = [row for row in rows if "-DX" in row["aliquot"]]
        rule = "they are not diagnostic (-DX) slides"
    else:
        chosen = []
        cases = set()
        for row in sorted(
            rows, key=lambda row: (row["sample_type"] != "Primary Tumor", row["aliquot"], row["file_id"])
        ):
            if row["case_id"] not in cases and "Normal" not in row["sample_type"]:
                cases.add(row["case_id"])
                chosen.append(row)
        rule = "one per case is kept, the primary tumour's lowest aliquot barcode, and none of normal tissue"
    if not chosen:
        raise ManifestError(f"the project '{project}' has {len(rows)} files of '{kind}', but none to use: {rule}")
    if len(chosen) < len(rows):
        log.info("%s, %s: %d of %d files left out: %s", project, kind, len(rows) - len(chosen), len(rows), rule)
    return chosen


def _annotation_row(session: requests.Session, url: str, file_id: str) -> dict:
    """Make the row of the gene annotation: as the GDC lists it, or GENCODE v36 from its published constants."""
    body = {"filters": _equals("file_id", file_id), "fields": ",".join(FILE_FIELDS), "size": 1, "format": "JSON"}
    hits = _json(session, "POST", f"{url}/files", body)["data"]["hits"]
    if not hits and file_id != GENCODE_V36_FILE_ID:
        raise ManifestError(
            f"{url} lists no file with the id '{file_id}'; set expression.annotation_file_id to the GTF's id, "
            f"such as {GENCODE_V36_FILE_ID} for GENCODE v36"
        )
    record = hits[0] if hits else GENCODE_V36
    return {
        "file_id": record["file_id"],
        "file_name": Path(record["file_name"]).name,
        "md5": record["md5sum"],
        "size": record["file_size"],
        "data_type": ANNOTATION,
        **dict.fromkeys(("case_id", "sample_type", "aliquot", "project")),
    }


def read_manifest(path: Path | str) -> pd.DataFrame:
    """Read a manifest.

    Returns
    -------
    pandas.DataFrame
        The columns of `SCHEMA`; size is Int64 (null where unknown), the rest strings (null where not applicable).

    Raises
    ------
    MissingInputError
        If it is not there.
    ManifestError
        If it is no Parquet file, lacks a column, repeats a file_id, or a row lacks a usable file_id, file_name or md5.
    """
    table = read_table(path, "manifest", SCHEMA.names, ManifestError)
    frame = table.select(SCHEMA.names).to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    _refuse_duplicates(frame.file_id.tolist(), f"manifest {path}")
    for row in frame.itertuples():
        if not UUID.fullmatch(str(row.file_id)):
            raise ManifestError(f"manifest {path}: '{row.file_id}' is not a GDC file id (a UUID)")
        if pd.isna(row.md5) or pd.isna(row.file_name) or _basename(row.file_name) in ("", ".", ".."):
            raise ManifestError(f"manifest {path}: file {row.file_id} has no usable file_name and md5")
    return frame


def _basename(name: str) -> str:
    """Return the last part of a file name, whichever system's separators it has."""
    return re.split(r"[/\\]", name)[-1]


def _refuse_duplicates(file_ids: list[str], where: str) -> None:
    seen: set[str] = set()
    for file_id in file_ids:
        if file_id in seen:
            raise ManifestError(f"{where} lists the file {file_id} more than once; keep one row of it")
        seen.add(file_id)


def fetch(
    manifest: Path,
    out: Path,
    api_url: str,
    workers: int,
    *,
    data_type: str | None = None,
    file_ids: list[str] | None = None,
    receipt: Path | None = None,
) -> None:
    """Fetch a manifest's files to `out/{file_id}/{file_name}`, keeping complete ones and resuming partial ones.

    A file has its name only once its size and md5 are verified; until then it is `{file_name}.part`.

    Parameters
    ----------
    manifest
        Manifest made by `query`.
    out
        Folder to fill.
    api_url
        The GDC API, or `local:DIR`.
    workers
        Downloads at once.
    data_type
        Only `expression`, `slides` or `annotation`.
    file_ids
        Only these files.
    receipt
        Table (TSV: file_id, file_name, size in bytes, md5, state) written last, only when every file is complete.

    Raises
    ------
    ManifestError
        If the manifest is unusable, or holds nothing of what is asked for.
    FetchError
        If any file could not be fetched; all others are kept.
    """
    rows = _wanted(read_manifest(manifest), manifest, data_type, file_ids)
    meter = _Meter(total=int(rows["size"].fillna(0).sum()))
    started = time.monotonic()
    with endpoint(api_url) as url, _session(workers) as session:

        def one(row: Any) -> int:
            target = out / row.file_id / _basename(row.file_name)
            wanted = _Wanted(f"{url}/data/{row.file_id}", target, row.md5, None if pd.isna(row.size) else int(row.size))
            return _obtain(session, wanted, meter)

        results = _all_done(one, list(rows.itertuples()), workers, meter)
    failed = [(row, result) for row, result in results if isinstance(result, Exception)]
    if failed:
        row, reason = failed[0]
        raise FetchError(
            f"{len(failed)} of {len(rows)} files could not be fetched; the first, {row.file_name} ({row.file_id}): "
            f"{reason}; the others are kept in {out}: repeat the command to try again"
        )
    seconds = time.monotonic() - started
    log.info("%d files complete in %s, %.1f MB fetched in %.1f s", len(rows), out, meter.received / 1e6, seconds)
    if receipt is not None:
        table = rows[["file_id", "file_name", "md5"]].assign(size=[size for _, size in results], state="complete")
        with written_aside(receipt) as aside:
            columns = ["file_id", "file_name", "size", "md5", "state"]
            table[columns].to_csv(aside, sep="\t", index=False, lineterminator="\n")


def _wanted(rows: pd.DataFrame, manifest: Path, data_type: str | None, file_ids: list[str] | None) -> pd.DataFrame:
    """Select the rows that are asked for."""
    if data_type is not None:
        rows = rows[rows.data_type == _kind(data_type)]
        if rows.empty:
            raise ManifestError(f"manifest {manifest} holds no file of type '{data_type}'")
    if file_ids:
        absent = [file_id for file_id in file_ids if file_id not in set(rows.file_id)]
        if absent:
            raise ManifestError(
                f"manifest {manifest} holds no file {absent[0]}{f' of type {data_type!r}' if data_type else ''}"
            )
        rows = rows[rows.file_id.isin(file_ids)]
    return rows


class _Meter:
    """Bytes done over all downloads, and whether they should stop."""

    def __init__(self, total: int):
        self.total = total
        self.done = 0
        self.received = 0
        self.stop = threading.Event()
        self._lock = threading.Lock()

    def add(self, count: int, received: bool = False) -> None:
        """Count bytes as done, or as undone if negative; `received` ones came over the network."""
        with self._lock:
            self.done += count
            self.received += count if received else 0


def _all_done(one: Callable[[Any], int], rows: list[Any], workers: int, meter: _Meter) -> list[tuple[Any, Any]]:
    """Run `one` on every row in a pool of threads; pair each row with its result or exception, in order."""
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(one, row) for row in rows]
        try:
            for _ in progress(_mebibytes(futures, meter), "MiB fetched", max(-(-meter.total // CHUNK), 1)):
                pass
        except BaseException:
            meter.stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    for future in futures:
        problem = future.exception()
        if problem is not None and not isinstance(problem, FetchError | OSError):
            raise problem
    return [(row, future.exception() or future.result()) for row, future in zip(rows, futures, strict=True)]


def _mebibytes(futures: Iterable[Future], meter: _Meter) -> Iterator[None]:
    """Yield once for each mebibyte done, until every download has ended."""
    pending, said = set(futures), 0
    while pending:
        pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED).not_done
        while said < -(-min(meter.done, meter.total) // CHUNK):
            said += 1
            yield


@dataclass(frozen=True)
class _Wanted:
    """A file to fetch: where from, where to, and what it must be; size in bytes, None if unknown."""

    url: str
    target: Path
    md5: str
    size: int | None

    @property
    def part(self) -> Path:
        return self.target.with_name(self.target.name + ".part")


class _TryAgain(Exception):
    """A failure that another attempt may mend."""


def _obtain(session: requests.Session, wanted: _Wanted, meter: _Meter) -> int:
    """Make sure that a file is there and complete; return its size in bytes."""
    if _is_complete(wanted):
        meter.add(wanted.target.stat().st_size)
        return wanted.target.stat().st_size
    wanted.target.parent.mkdir(parents=True, exist_ok=True)
    _retried(lambda: _download(session, wanted, meter), meter.stop)
    os.replace(wanted.part, wanted.target)
    return wanted.target.stat().st_size


def _is_complete(wanted: _Wanted) -> bool:
    if not wanted.target.is_file() or wanted.size not in (None, wanted.target.stat().st_size):
        return False
    with open(wanted.target, "rb") as handle:
        return hashlib.file_digest(handle, "md5").hexdigest() == wanted.md5


def _retried(attempt: Callable[[], Any], stop: threading.Event | None = None) -> Any:
    """Repeat `attempt` while it says so, waiting longer each time, by chance more or less (exponential back-off)."""
    pause = stop or threading.Event()
    for number in itertools.count(1):
        try:
            return attempt()
        except (_TryAgain, requests.ConnectionError, requests.Timeout, ChunkedEncodingError) as problem:
            if number == TRIES or pause.is_set():
                raise FetchError(f"{_reason(problem)} (after {number} attempts)") from None
        pause.wait(BACKOFF_SECONDS * 2 ** (number - 1) * random.uniform(0.5, 1.5))


def _reason(problem: Exception) -> str:
    """Put a failure in words a user can act on."""
    if isinstance(problem, _TryAgain):
        return str(problem)
    if isinstance(problem, requests.Timeout):
        return "the server did not answer in time"
    if isinstance(problem, ChunkedEncodingError):
        return "the connection broke off"
    return "the connection failed; is the address right and the network up?"


class _Part:
    """The `.part` of a file, its md5 and length in bytes so far; an earlier attempt's is taken up unless too long."""

    def __init__(self, wanted: _Wanted, meter: _Meter):
        self.path, self.meter = wanted.part, meter
        self.have, self.digest = 0, hashlib.md5(usedforsecurity=False)
        if not self.path.is_file():
            return
        if wanted.size is None or self.path.stat().st_size > wanted.size:
            self.path.unlink()
            return
        with open(self.path, "rb") as handle:
            while chunk := handle.read(CHUNK):
                self._count(chunk)
        meter.add(self.have)

    def _count(self, chunk: bytes) -> None:
        self.have += len(chunk)
        self.digest.update(chunk)

    def restart(self) -> None:
        """Begin again from nothing."""
        self.forget()
        self.path.unlink(missing_ok=True)
        self.digest = hashlib.md5(usedforsecurity=False)

    def forget(self) -> None:
        """Take this file's bytes out of the meter."""
        self.meter.add(-self.have)
        self.have = 0

    def append(self, chunks: Iterable[bytes]) -> None:
        """Append to the file, and flush it to the disk at the end."""
        with open(self.path, "ab") as handle:
            for chunk in chunks:
                if self.meter.stop.is_set():
                    raise FetchError("interrupted")
                handle.write(chunk)
                self._count(chunk)
                self.meter.add(len(chunk), received=True)
            handle.flush()
            os.fsync(handle.fileno())


def _download(session: requests.Session, wanted: _Wanted, meter: _Meter) -> None:
    """Stream one file into its `.part`, from where an earlier attempt stopped, and verify it."""
    part = _Part(wanted, meter)
    try:
        if part.have != wanted.size:
            _stream(session, wanted, part)
        if wanted.size is not None and part.have < wanted.size:
            raise _TryAgain(f"the download ended after {part.have} of {wanted.size} bytes")
        got = part.digest.hexdigest()
        if wanted.size not in (None, part.have) or got != wanted.md5:
            problem = f"{part.have} bytes with md5 {got} arrived, but the manifest says {wanted.size} and {wanted.md5}"
            part.restart()
            raise _TryAgain(problem)
    except BaseException:
        part.forget()
        raise


def _stream(session: requests.Session, wanted: _Wanted, part: _Part) -> None:
    """Append what is missing of a file; begin again where the server does not continue at the right byte."""
    headers = {"Range": f"bytes={part.have}-"} if part.have else {}
    with session.get(wanted.url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as answer:
        if answer.status_code == requests.codes.requested_range_not_satisfiable:
            part.restart()
            raise _TryAgain("the server cannot continue the partial file; it was dropped")
        _check(answer)
        if answer.status_code == requests.codes.partial_content:
            if not answer.headers.get("Content-Range", "").startswith(f"bytes {part.have}-"):
                part.restart()
                raise _TryAgain("the server continued at another byte than asked")
        elif part.have:
            part.restart()
        part.append(answer.iter_content(CHUNK))


def _check(answer: requests.Response) -> None:
    """Sort an answer's status: good, worth another attempt, or final.

    Raises
    ------
    FetchError
        For a refusal that another attempt would meet again.
    """
    code = answer.status_code
    if code in (requests.codes.ok, requests.codes.partial_content):
        return
    if code == requests.codes.too_many_requests or code >= 500:
        raise _TryAgain(f"the server answered {code} {answer.reason}")
    if code in (requests.codes.unauthorized, requests.codes.forbidden):
        raise FetchError(f"the server refused it ({code}): it is not an open-access file; leave it out of the manifest")
    if code == requests.codes.not_found:
        raise FetchError("the server does not have it (404): it may be superseded; query the manifest anew")
    raise FetchError(f"the server answered {code} {answer.reason}: {' '.join(answer.text.split())[:200]}")


def _session(workers: int) -> requests.Session:
    """Open a session whose pool serves all workers; bodies come as stored, for the md5 is that of the stored bytes."""
    session = requests.Session()
    session.headers["Accept-Encoding"] = "identity"
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(pool_maxsize=workers))
    return session


def _json(session: requests.Session, method: str, url: str, body: dict | None = None) -> dict:
    """Send a request to the API; return its JSON answer."""

    def attempt() -> dict:
        answer = session.request(method, url, json=body, timeout=TIMEOUT_SECONDS)
        _check(answer)
        return answer.json()

    try:
        return _retried(attempt)
    except FetchError as problem:
        raise FetchError(f"{url}: {problem}") from None
    except requests.RequestException as problem:
        raise FetchError(f"{url}: {problem}; is gdc.api_url the address of the GDC's API?") from None
