"""The Genomic Data Commons: a cohort's files listed into a manifest that pins them.

The requests and answers are those of the GDC API, https://docs.gdc.cancer.gov/API/Users_Guide/Getting_Started.
"""

import itertools
import json
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from mgi.acquire.manifest import (
    ANNOTATION,
    EXPRESSION,
    KINDS,
    QUERY_KEY,
    RELEASE_KEY,
    SLIDES,
    basename,
    read_exclusions,
    read_manifest,
    refuse_duplicates,
)
from mgi.acquire.web import NotThereError, Server, json_of
from mgi.barcodes import BARCODE, NOT_TUMOUR, SAMPLE_TYPES
from mgi.config import GENCODE_V36_FILE_ID
from mgi.console import log
from mgi.errors import ConfigError, FetchError, ManifestError
from mgi.simulate.serve import endpoint
from mgi.tables import MANIFEST_SCHEMA, write_table, write_tsv

# What narrows each kind to the files of one pipeline, in the GDC's own field names.
STRATEGIES = {"diagnostic": "Diagnostic Slide", "frozen": "Tissue Slide"}
BARCODE_FIELD = {
    EXPRESSION: "cases.samples.portions.analytes.aliquots.submitter_id",
    SLIDES: "cases.samples.portions.slides.submitter_id",
}
FILE_FIELDS = ("file_id", "file_name", "file_size", "md5sum", "data_type")
CASE_FIELDS = ("cases.submitter_id", "cases.samples.sample_type")
RULES = ("all", "first", "best")
GENCODE_V36 = {
    "file_id": GENCODE_V36_FILE_ID,
    "file_name": "gencode.v36.annotation.gtf.gz",
    "md5sum": "c03931958d4572148650d62eb6dec41a",
    "file_size": None,
}

PAGE = 500


def query(
    projects: list[str],
    out: Path,
    api_url: str,
    data_types: list[str],
    annotation_file_id: str | None,
    *,
    slides: list[str] | None = None,
    sample_types: list[str] | None = None,
    aliquots: str = "first",
    slides_per_case: str = "all",
    exclude: Path | None = None,
) -> None:
    """List the files of one or more projects into a manifest.

    Of several files of a case, `aliquots` (STAR counts) and `slides_per_case` keep

    - `all` of them;
    - the `first`: by sample type in the order of `sample_types`, diagnostic before frozen, the lowest barcode;
    - the `best`: by sample type and diagnostic before frozen likewise; then of STAR counts the analyte H before R
      before T and the highest barcode, which is the highest portion and plate (the replicate filters of the Broad's
      Firehose), and of slides the largest file, which shows the most tissue at the finest resolution.

    What still ties is decided by the lowest file id.

    Parameters
    ----------
    projects
        GDC projects, such as TCGA-BRCA.
    out
        Manifest to write (Parquet, `MANIFEST_SCHEMA`; the GDC's data release in the schema metadata). Rows are sorted
        by data_type, case_id, file_name and file_id.
    api_url
        The GDC API, or `local:DIR`.
    data_types
        Any of `expression` (STAR counts) and `slides`.
    annotation_file_id
        GDC file id of the gene annotation to pin, or None.
    slides
        Any of `diagnostic` (FFPE, the default) and `frozen`.
    sample_types
        Only these, in the GDC's words, in this order of preference; by default everything but normal tissue,
        controls and cell lines, primary tumours first. A barcode's sample code decides, or where there is none the
        GDC's field.
    aliquots, slides_per_case
        `all`, `first` or `best`.
    exclude
        Table (TSV, or CSV by its name) of files to leave out, with the columns file_id and reason.

    Raises
    ------
    ManifestError
        If a project has no such files, a record lacks a field, or the annotation or the exclusion table is unusable.
    ConfigError
        If a data type, kind of slide or rule is none of the above.
    MissingInputError
        If the exclusion table is not there.
    FetchError
        If the GDC cannot be reached or refuses the query.
    """
    kinds = [kind_of(name) for name in data_types]
    rules = {EXPRESSION: _one_of(aliquots, RULES, "rule"), SLIDES: _one_of(slides_per_case, RULES, "rule")}
    strategies = [STRATEGIES[_one_of(name, STRATEGIES, "kind of slide")] for name in slides or ["diagnostic"]]
    excluded = read_exclusions(exclude) if exclude else {}
    rows, left_out = [], set()
    with endpoint(api_url) as url, Server(url) as server:
        release = _release(server)
        for project, kind in itertools.product(projects, kinds):
            narrowing = (
                {"analysis.workflow_type": ["STAR - Counts"]}
                if kind == EXPRESSION
                else {"experimental_strategy": strategies}
            )
            records = _files(server, project, kind, narrowing)
            kept = [record for record in records if record.get("file_id") not in excluded]
            left_out |= {record["file_id"] for record in records if record.get("file_id") in excluded}
            found = [_row(record, kind, project) for record in kept]
            rows += _chosen(found, kind, project, rules[kind], sample_types, strategies)
        if annotation_file_id is not None:
            rows.append(_annotation_row(server, annotation_file_id))
    _report(excluded, left_out)
    rows.sort(key=lambda row: (row["data_type"], row["case_id"] or "", row["file_name"], row["file_id"]))
    refuse_duplicates([row["file_id"] for row in rows], "the answer of the GDC")
    choice = {"slides": sorted(slides or ["diagnostic"]), "sample_types": sample_types or []}
    choice |= {"aliquots": aliquots, "slides_per_case": slides_per_case}
    metadata = {RELEASE_KEY: str(release).encode(), QUERY_KEY: json.dumps(choice).encode()}
    write_table(pa.Table.from_pylist(rows, MANIFEST_SCHEMA.with_metadata(metadata)), out)
    log.info("%d files of %s pinned in %s (%s)", len(rows), ", ".join(projects), out, release)


def _release(server: Server) -> str | None:
    status = json_of(server, "GET", "/status")
    if not isinstance(status, dict):
        raise FetchError(f"{server.address}/status answers no status: {str(status)[:200]}; is it the GDC's API?")
    return status.get("data_release")


def kind_of(name: str) -> str:
    """Translate `expression`, `slides` or `annotation` to the GDC's data type."""
    return KINDS[_one_of(name, KINDS, "data type")]


def _one_of(name: str, known: Container[str], what: str) -> str:
    if name not in known:
        raise ConfigError(f"{what} '{name}' is unknown; give one of {', '.join(known)}")
    return name


def _report(excluded: dict[str, str], left_out: set[str]) -> None:
    """Say of every excluded file that it was left out, or that it was not there."""
    for file_id in sorted(left_out):
        log.info("excluded %s: %s", file_id, excluded[file_id])
    for file_id in sorted(set(excluded) - left_out):
        log.info("excluded %s is not among the files of the query", file_id)


def _equals(field: str, value: str) -> dict:
    return {"op": "=", "content": {"field": field, "value": value}}


def _among(field: str, values: list[str]) -> dict:
    return {"op": "in", "content": {"field": field, "value": values}}


def _files(server: Server, project: str, kind: str, narrowing: dict[str, list[str]]) -> list[dict]:
    """List every open file of one kind and project."""
    wanted = {"cases.project.project_id": project, "data_type": kind, "access": "open"}
    content = [_equals(field, value) for field, value in wanted.items()]
    content += [_among(field, values) for field, values in narrowing.items()]
    fields = ",".join((*FILE_FIELDS, *CASE_FIELDS, BARCODE_FIELD[kind]))
    records = _listed(server, {"op": "and", "content": content}, fields)
    if not records:
        said = ", ".join(f"{field} {' or '.join(values)}" for field, values in narrowing.items())
        raise ManifestError(
            f"{server.address} lists no '{kind}' with {said} for the project '{project}'; is its name right?"
        )
    return records


def _listed(server: Server, filters: dict, fields: str) -> list[dict]:
    """List every file that passes, page by page.

    Raises
    ------
    FetchError
        If the pages end before the number of files that the first ones stated.
    """
    records: list[dict] = []
    while True:
        body = {"filters": filters, "fields": fields, "from": len(records), "size": PAGE, "sort": "file_id:asc"}
        answer = json_of(server, "POST", "/files", {**body, "format": "JSON"})
        try:
            hits, total = answer["data"]["hits"], answer["data"]["pagination"]["total"]
        except (KeyError, TypeError):
            raise FetchError(f"{server.address}/files answers no list of files: {str(answer)[:200]}") from None
        records += hits
        if len(records) >= total:
            return records
        if not hits:
            raise FetchError(
                f"{server.address} lists {len(records)} of {total} files and then nothing; try again later"
            )


def _row(record: dict, kind: str, project: str) -> dict:
    """One row of the manifest from a record of `/files`."""
    try:
        cases = record["cases"]
        if len(cases) != 1:
            raise ManifestError(
                f"file {record['file_id']} belongs to {len(cases)} cases; only files of one case can be used: exclude "
                "it (gdc.exclude)"
            )
        barcodes = list(_leaves(cases[0], BARCODE_FIELD[kind].split(".")[1:]))
        if kind == SLIDES and len(barcodes) != 1:
            # The GDC may list every slide of the portion; the file is named after its own.
            barcodes = [record["file_name"].split(".")[0]]
        if not barcodes:
            raise KeyError(BARCODE_FIELD[kind])
        row = {
            "file_id": record["file_id"],
            "file_name": basename(record["file_name"]),
            "md5": record["md5sum"],
            "size": record["file_size"],
            "data_type": kind,
            "case_id": cases[0]["submitter_id"][:12],
            "sample_type": _sample_type(min(barcodes)) or cases[0]["samples"][0]["sample_type"],
            "aliquot": min(barcodes),
            "project": project,
        }
        empty = [name for name, value in row.items() if value is None]
        if empty:
            raise KeyError(empty[0])
    except (KeyError, IndexError, TypeError) as problem:
        raise ManifestError(
            f"the GDC's record of file {record.get('file_id')} lacks {problem}; exclude it (gdc.exclude), or report it "
            "to the GDC"
        ) from None
    return row


def _sample_type(barcode: str) -> str | None:
    match = BARCODE.match(barcode)
    return SAMPLE_TYPES.get(match["sample"]) if match else None


def _leaves(value: Any, path: list[str]) -> Iterator[str]:
    """Yield the values at the end of a path of keys, through the lists on its way."""
    if isinstance(value, list):
        for item in value:
            yield from _leaves(item, path)
    elif not path:
        yield value
    elif path[0] in value:
        yield from _leaves(value[path[0]], path[1:])


def _chosen(
    rows: list[dict], kind: str, project: str, rule: str, sample_types: list[str] | None, strategies: list[str]
) -> list[dict]:
    """Keep the files of the wanted samples and sections, and of each case those that the rule says."""
    wanted = [row for row in rows if _is_wanted(row, kind, sample_types, strategies)]
    names = ", ".join(sample_types) if sample_types else "tumour"
    if not wanted:
        raise ManifestError(f"the project '{project}' has {len(rows)} files of '{kind}', but none of {names} to use")
    order = sample_types or ["Primary Tumor"]
    chosen = wanted
    if rule != "all":
        best_first = sorted(wanted, key=lambda row: _preference(row, kind, rule, order), reverse=True)
        chosen = list({row["case_id"]: row for row in best_first}.values())
    for number, why in (
        (len(rows) - len(wanted), f"not of {names}, or not what was asked for"),
        (len(wanted) - len(chosen), f"of each case the {rule} is kept"),
    ):
        if number:
            log.info("%s, %s: %d of %d files left out: %s", project, kind, number, len(rows), why)
    return chosen


def _is_wanted(row: dict, kind: str, sample_types: list[str] | None, strategies: list[str]) -> bool:
    if kind == SLIDES and _is_diagnostic(row["aliquot"]) is not None:
        asked = STRATEGIES["diagnostic" if _is_diagnostic(row["aliquot"]) else "frozen"]
        if asked not in strategies:
            return False
    if sample_types:
        return row["sample_type"] in sample_types
    match = BARCODE.match(row["aliquot"])
    return match["sample"] < NOT_TUMOUR if match else "Normal" not in row["sample_type"]


def _is_diagnostic(barcode: str) -> bool | None:
    """Whether a slide is diagnostic (-DX) rather than frozen (-TS, -BS, -MS); None where its barcode does not tell."""
    match = BARCODE.match(barcode)
    return match["section"] == "DX" if match and match["section"] else None


def _preference(row: dict, kind: str, rule: str, order: list[str]) -> tuple:
    """Sort the file of a case to be kept before its others."""
    barcode = row["aliquot"]
    rank = order.index(row["sample_type"]) if row["sample_type"] in order else len(order)
    if rule == "best" and kind == EXPRESSION:
        match = BARCODE.match(barcode)
        analyte = "HRT".find(match["analyte"] or "-") if match else -1
        inner: tuple = (analyte if analyte >= 0 else 3, [-ord(letter) for letter in barcode])
    else:
        inner = (_is_diagnostic(barcode) is False, -row["size"] if rule == "best" else 0, barcode)
    return rank, *inner, row["file_id"]


def _annotation_row(server: Server, file_id: str) -> dict:
    """Make the row of the gene annotation: as the GDC lists it, or GENCODE v36 from its published constants."""
    hits = _listed(server, _equals("file_id", file_id), ",".join(FILE_FIELDS))
    if not hits and file_id != GENCODE_V36_FILE_ID:
        raise ManifestError(
            f"{server.address} lists no file with the id '{file_id}'; set expression.annotation_file_id to the GTF's "
            f"id, such as {GENCODE_V36_FILE_ID} for GENCODE v36"
        )
    record = hits[0] if hits else GENCODE_V36
    return {
        "file_id": record["file_id"],
        "file_name": basename(record["file_name"]),
        "md5": record["md5sum"],
        "size": record["file_size"],
        "data_type": ANNOTATION,
        **dict.fromkeys(("case_id", "sample_type", "aliquot", "project")),
    }


def check(manifest: Path, api_url: str, out: Path | None = None) -> None:
    """Ask the GDC whether it still has every file that a manifest pins, as pinned.

    Parameters
    ----------
    manifest
        Manifest made by `query`.
    api_url
        The GDC API, or `local:DIR`.
    out
        Table to write (TSV: file_id, file_name, state, reason), one row per file that it no longer has so; state is
        `superseded`, `withdrawn` or `changed`.

    Raises
    ------
    ManifestError
        If the manifest is unusable, or the GDC no longer has a file as pinned.
    FetchError
        If the GDC cannot be reached.
    """
    rows = read_manifest(manifest)
    listed: dict[str, dict] = {}
    with endpoint(api_url) as url, Server(url) as server:
        release = _release(server)
        for start in range(0, len(rows), PAGE):
            filters = _among("file_id", rows.file_id[start : start + PAGE].tolist())
            found = _listed(server, filters, "file_id,md5sum,state")
            listed |= {record["file_id"]: record for record in found}
        gone = [(row, *_fate(server, row, listed.get(row.file_id))) for row in rows.itertuples()]
    gone = [(row.file_id, row.file_name, state, reason) for row, state, reason in gone if state]
    for line in gone:
        log.warning("%s %s: %s, %s", *line)
    if out is not None:
        write_tsv(pd.DataFrame(gone, columns=["file_id", "file_name", "state", "reason"]), out)
    if gone:
        raise ManifestError(
            f"{len(gone)} of {len(rows)} files of {manifest} are no longer at the GDC ({release}) as pinned; the "
            f"first, {gone[0][1]} ({gone[0][0]}), was {gone[0][2]}: keep what you have fetched of them, or query anew"
        )
    log.info("all %d files of %s are at the GDC (%s) as pinned", len(rows), manifest, release)


def _fate(server: Server, row: Any, record: dict | None) -> tuple[str | None, str]:
    """Tell what became of a pinned file, None if nothing did, and how that is known."""
    if record is not None:
        if record.get("md5sum", row.md5) != row.md5:
            return "changed", f"its md5 is now {record['md5sum']}"
        if record.get("state", "released") not in ("released", "live", "validated", "submitted"):
            return "withdrawn", f"its state is now {record['state']}"
        return None, ""
    if row.file_id == GENCODE_V36_FILE_ID:
        return None, "a reference file, which /files does not list"
    versions = _history(server, row.file_id)
    newer = [entry for entry in versions if entry.get("file_change") == "released" and entry.get("uuid") != row.file_id]
    if newer:
        last = newer[-1]
        return "superseded", f"by {last['uuid']} in data release {last.get('data_release', 'unknown')}"
    return "withdrawn", "the GDC lists neither it nor a successor"


def _history(server: Server, file_id: str) -> list[dict]:
    """List the versions of a file; none where the GDC knows nothing of it."""
    try:
        versions = json_of(server, "GET", f"/history/{file_id}")
    except NotThereError:
        return []
    if not isinstance(versions, list):
        raise FetchError(f"{server.address}/history/{file_id} answers no list of versions: {str(versions)[:200]}")
    return versions
