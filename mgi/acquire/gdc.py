"""The Genomic Data Commons: a cohort's files listed into a manifest that pins them.

The requests and answers are those of the GDC API, https://docs.gdc.cancer.gov/API/Users_Guide/Getting_Started.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mgi.acquire.manifest import (
    ANNOTATION,
    EXPRESSION,
    KINDS,
    MAX_FILES,
    SLIDES,
    Row,
    read_exclusions,
    write_manifest,
)
from mgi.acquire.reasons import group_problems
from mgi.acquire.records import (
    CaseFileRecord,
    FileRecord,
    FilesAnswer,
    FileState,
    Status,
    Version,
    parse_answer,
    parse_records,
    parse_versions,
)
from mgi.acquire.retry import NotThereError
from mgi.acquire.samples import sample_type_of
from mgi.acquire.selection import Candidate, select_files
from mgi.acquire.web import Server
from mgi.barcodes import Barcode
from mgi.config import GENCODE_V36_FILE_ID, QueryOptions
from mgi.console import log
from mgi.errors import FetchError, ManifestError
from mgi.names import first_few, quote

# What narrows each kind to the files of one pipeline, in the GDC's own field names.
STRATEGIES = {"diagnostic": "Diagnostic Slide", "frozen": "Tissue Slide"}
FILE_FIELDS = ("file_id", "file_name", "file_size", "md5sum", "data_type")
SAMPLE_FIELDS = (
    "sample_type", "tissue_type", "tumor_descriptor", "specimen_type", "composition", "preservation_method", "is_ffpe",
)  # fmt: skip
BARCODE_FIELDS = {
    EXPRESSION: "portions.analytes.aliquots.submitter_id",
    SLIDES: "portions.slides.submitter_id",
}
GENCODE_V36 = {
    "file_id": GENCODE_V36_FILE_ID,
    "file_name": "gencode.v36.annotation.gtf.gz",
    "md5": "c03931958d4572148650d62eb6dec41a",
}

PAGE = 500


def query(options: QueryOptions, out: Path, url: str) -> None:
    """List the files of one or more projects into a manifest.

    Parameters
    ----------
    options : QueryOptions
        Projects, data types, the gene annotation to pin, and which files of a case are kept, see `select_files`.
    out : Path
        Manifest to write (Parquet, `MANIFEST_SCHEMA`; the GDC's data release and the choice in the schema metadata).
        Rows are sorted by data_type, case_id, file_name and file_id.
    url : str
        The http(s) address of the GDC API.

    Raises
    ------
    ManifestError
        If a project has no such files, records cannot be used, or the annotation or the exclusion table is unusable.
    MissingInputError
        If the exclusion table is missing.
    FetchError
        If the GDC cannot be reached or refuses the query.
    """
    excluded = read_exclusions(options.exclude) if options.exclude else {}
    rows: list[Row] = []
    left_out: set[str] = set()
    with Server(url, allow_http=options.allow_http) as server:
        release = read_release(server)
        for project, name in itertools.product(options.projects, options.data_types):
            kind = KINDS[name]
            hits = _list_open_files(server, project, kind, options)
            kept = [hit for hit in hits if _file_id(hit) not in excluded]
            left_out |= {_file_id(hit) for hit in hits} & excluded.keys()
            rows += select_files(_candidates(kept, kind, project), kind, f"the project {quote(project)}", options)
        if options.annotation_file_id is not None:
            rows.append(_find_annotation(server, options.annotation_file_id))
    _log_exclusions(excluded, left_out)
    choice = options.model_dump(include={"slides", "sample_types", "aliquots", "slides_per_case"})
    choice["slides"].sort()
    write_manifest(rows, out, "the answer of the GDC", release, choice)
    log.info("%d files of %s pinned in %s (%s)", len(rows), ", ".join(options.projects), out, release)


def read_release(server: Server, *, retry: bool = True) -> str | None:
    """Return the GDC's data release, by default asked for again where the server fails for a while."""
    return parse_answer(Status, server.ask("GET", "/status", retry=retry), f"{server}/status", "status").data_release


def read_states(server: Server, file_ids: Sequence[str]) -> dict[str, FileState]:
    """Return what the GDC says of files that are pinned, by their ids; it lists only those that it still has."""
    states: dict[str, FileState] = {}
    for start in range(0, len(file_ids), PAGE):
        hits = list_files(server, _among("file_id", list(file_ids[start : start + PAGE])), "file_id,md5sum,state")
        states |= {record.file_id: record for record in _parse_all(FileState, hits)}
    return states


def read_history(server: Server, file_id: str) -> list[Version]:
    """Return the versions of a file; none where the GDC does not know it."""
    path = f"/history/{file_id}"
    try:
        return parse_versions(server.ask("GET", path), f"{server}{path}")
    except NotThereError:
        return []


def list_files(server: Server, filters: dict[str, Any], fields: str) -> list[Any]:
    """Return every record of `/files` that passes the filters, page by page, not yet validated.

    Raises
    ------
    FetchError
        If the pages end before the number of files that they state, or state more than the GDC can hold.
    """
    hits: list[Any] = []
    while True:
        body = {"filters": filters, "fields": fields, "from": len(hits), "size": PAGE, "sort": "file_id:asc"}
        answer = server.ask("POST", "/files", {**body, "format": "JSON"})
        page = parse_answer(FilesAnswer, answer, f"{server}/files", "list of files").data
        total = page.pagination.total
        if total > MAX_FILES or len(page.hits) > PAGE:
            raise FetchError(
                f"{server}/files lists {total} files, {len(page.hits)} of them at once; is it the GDC's API?"
            )
        hits += page.hits
        if len(hits) >= total:
            return hits
        if not page.hits:
            raise FetchError(f"{server} lists {len(hits)} of {total} files and then nothing; try again later")


def _log_exclusions(excluded: dict[str, str], left_out: set[str]) -> None:
    """Log of every excluded file that it was left out, or that it is not among the files."""
    for file_id in sorted(left_out):
        log.info("excluded %s: %s", file_id, excluded[file_id])
    for file_id in sorted(set(excluded) - left_out):
        log.info("excluded %s is not among the files of the query", file_id)


def _equals(field: str, value: str) -> dict[str, Any]:
    return {"op": "=", "content": {"field": field, "value": value}}


def _among(field: str, values: list[str]) -> dict[str, Any]:
    return {"op": "in", "content": {"field": field, "value": values}}


def _list_open_files(server: Server, project: str, kind: str, options: QueryOptions) -> list[Any]:
    """Return the records of every open file of one kind and project."""
    if kind == EXPRESSION:
        narrowing = {"analysis.workflow_type": ["STAR - Counts"]}
    else:
        narrowing = {"experimental_strategy": [STRATEGIES[name] for name in options.slides]}
    required = {"cases.project.project_id": project, "data_type": kind, "access": "open"}
    content = [_equals(field, value) for field, value in required.items()]
    content += [_among(field, values) for field, values in narrowing.items()]
    samples = [f"cases.samples.{field}" for field in (*SAMPLE_FIELDS, BARCODE_FIELDS[kind])]
    fields = ",".join((*FILE_FIELDS, "cases.submitter_id", *samples))
    hits = list_files(server, {"op": "and", "content": content}, fields)
    if not hits:
        said = ", ".join(f"{field} {' or '.join(values)}" for field, values in narrowing.items())
        raise ManifestError(
            f"{server} lists no '{kind}' with {said} for the project {quote(project)}; is its name right?"
        )
    return hits


def _file_id(hit: Any) -> str:
    file_id = hit.get("file_id") if isinstance(hit, dict) else None
    return file_id.lower() if isinstance(file_id, str) else ""


def _candidates(hits: list[Any], kind: str, project: str) -> list[Candidate]:
    """Return the files of records, or raise `ManifestError` with all that cannot be used."""
    records, problems = parse_records(CaseFileRecord, hits)
    candidates = []
    for record in records:
        problem, candidate = _candidate(record, kind, project)
        if candidate is None:
            problems.append((record.file_id, problem))
        else:
            candidates.append(candidate)
    _refuse(problems, len(hits))
    return candidates


def _refuse(problems: list[tuple[str, str]], total: int) -> None:
    if problems:
        raise ManifestError(
            f"{len(problems)} of {total} records of the GDC cannot be used: {group_problems(problems)}; exclude these "
            "files, or report them to the GDC"
        )


def _parse_all(model: type[Any], hits: list[Any]) -> list[Any]:
    records, problems = parse_records(model, hits)
    _refuse(problems, len(hits))
    return records


def _candidate(record: CaseFileRecord, kind: str, project: str) -> tuple[str, Candidate | None]:
    """Return what is wrong with a record, or nothing and the file that it describes."""
    if len(record.cases) != 1:
        return f"it belongs to {len(record.cases)} cases, but files of one case are needed", None
    if record.data_type not in (None, kind):
        return f"it is {quote(record.data_type)}, which was not asked for", None
    case = record.cases[0]
    barcodes = {barcode for sample in case.samples for barcode in sample.barcodes()}
    if kind == SLIDES and len(barcodes) != 1:
        # The GDC may list every slide of the portion; the file is named after its own.
        barcodes = {record.file_name.split(".")[0]}
    if not barcodes:
        return f"it lacks '{BARCODE_FIELDS[kind]}'", None
    barcode = min(barcodes)
    parsed = Barcode.parse(barcode)
    # The GDC's own case id, which in TCGA is the beginning of every barcode.
    case_id = parsed.case_id if parsed else case.submitter_id
    if parsed and not case.submitter_id.startswith(case_id):
        return f"its barcode {barcode} is of another case than {quote(case.submitter_id)}", None
    own = [sample for sample in case.samples if barcodes & set(sample.barcodes())]
    samples = tuple(own or case.samples)
    sample_type = sample_type_of(samples, barcode)
    if sample_type is None:
        return "it lacks 'sample_type'", None
    size = record.file_size
    row = Row(record.file_id, record.file_name, record.md5sum, size, kind, case_id, sample_type, barcode, project)
    return "", Candidate(row, samples)


def _find_annotation(server: Server, file_id: str) -> Row:
    """Return the row of the gene annotation: as the GDC lists it, or GENCODE v36 from its published constants."""
    records = _parse_all(FileRecord, list_files(server, _equals("file_id", file_id), ",".join(FILE_FIELDS)))
    if records:
        record = records[0]
        if record.file_id != file_id.lower() or len(records) > 1:
            ids = first_few(record.file_id for record in records)
            raise FetchError(f"{server} was asked for the file {file_id} and lists {ids}")
        return Row(record.file_id, record.file_name, record.md5sum, record.file_size, ANNOTATION)
    if file_id == GENCODE_V36_FILE_ID:
        return Row(**GENCODE_V36, size=None, data_type=ANNOTATION)
    raise ManifestError(
        f"{server} lists no file with the id '{file_id}'; give the id of a gene annotation (GTF), such as "
        f"{GENCODE_V36_FILE_ID} for GENCODE v36"
    )
