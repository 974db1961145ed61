"""Manifests and sample sheets of the GDC portal, made into a pinned manifest without a network."""

import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mgi.acquire.fields import FileId, Name, Text, describe_errors
from mgi.acquire.gdc import GENCODE_V36
from mgi.acquire.manifest import ANNOTATION, EXPRESSION, SLIDES, Row, guess_kind, read_portal_manifest, write_manifest
from mgi.acquire.reasons import group_problems
from mgi.acquire.samples import Sample, sample_type_of
from mgi.acquire.selection import Candidate, Choice, select_files
from mgi.barcodes import Barcode
from mgi.console import log
from mgi.delimited import check_unique, read_delimited
from mgi.errors import ManifestError
from mgi.names import first_few, quote

SHEET_COLUMNS = ("File ID", "Project ID", "Case ID", "Sample ID")
# Columns that describe the sample; sheets have all or some of them, by the portal's age.
SAMPLE_COLUMNS = {
    "sample_type": "Sample Type",
    "tissue_type": "Tissue Type",
    "tumor_descriptor": "Tumor Descriptor",
    "specimen_type": "Specimen Type",
    "preservation_method": "Preservation Method",
}
# Between several values of one field.
SEPARATOR = re.compile(r"\s*,\s*")


class SheetRow(BaseModel):
    """A row of a sample sheet; a field may state one value for each of several samples."""

    model_config = ConfigDict(frozen=True)

    file_id: FileId
    project: Name
    cases: tuple[Text, ...]
    sample_ids: tuple[Text, ...]
    samples: tuple[Sample, ...]


def import_manifest(manifest: Path, sheet: Path | None, out: Path, choice: Choice) -> None:
    """Make a pinned manifest of one that the GDC portal gives, without a network.

    Parameters
    ----------
    manifest : Path
        The portal's manifest (id, filename, md5, size).
    sheet : Path or None
        The portal's sample sheet of the same files, which states project, case and sample of each. Slides do without,
        since their names begin with a TCGA barcode.
    out : Path
        Manifest to write (Parquet, `MANIFEST_SCHEMA`).
    choice : Choice
        Which of several files of a case are kept, see `select_files`.

    Raises
    ------
    MissingInputError
        If a file is missing.
    ManifestError
        If either cannot be used, or files have no case.
    """
    rows = read_portal_manifest(manifest)
    sheet_rows = read_sample_sheet(sheet) if sheet else {}
    kinds = {row.file_id: guess_kind(row.file_name) for row in rows}
    other = [row.file_name for row in rows if kinds[row.file_id] is None]
    if other:
        log.info("%d of %d files left out, neither STAR counts nor slides: %s", len(other), len(rows), first_few(other))
    unlisted = sheet_rows.keys() - kinds.keys()
    if unlisted:
        log.info("%d files of %s are not in %s: %s", len(unlisted), sheet, manifest, first_few(sorted(unlisted)))
    kept = [row for row in rows if kinds[row.file_id] == ANNOTATION]
    candidates, problems = _describe_files(
        [row for row in rows if kinds[row.file_id] in (EXPRESSION, SLIDES)], sheet_rows
    )
    if problems:
        told = all(row.file_id in sheet_rows for row in rows)
        hint = "" if told else "; give the sample sheet that the portal offers beside the manifest"
        raise ManifestError(f"{len(problems)} files of {manifest} cannot be used: {group_problems(problems)}{hint}")
    for kind in (EXPRESSION, SLIDES):
        found = [candidate for candidate in candidates if candidate.row.data_type == kind]
        kept += select_files(found, kind, str(manifest), choice) if found else []
    if not candidates:
        raise ManifestError(
            f"manifest {manifest} holds neither STAR counts (augmented_star_gene_counts.tsv) nor slides"
        )
    if any(row.data_type == EXPRESSION for row in kept) and not any(row.data_type == ANNOTATION for row in kept):
        kept.append(Row(**GENCODE_V36, size=None, data_type=ANNOTATION))
        log.info("pinned %s, the gene annotation of STAR counts, too", GENCODE_V36["file_name"])
    write_manifest(kept, out, f"manifest {manifest}")
    listed = sum(row.file_id in kinds for row in kept)
    log.info("%d of %d files of %s pinned in %s", listed, len(rows), manifest, out)


def read_sample_sheet(path: Path) -> dict[str, SheetRow]:
    """Read a sample sheet of the GDC portal: its rows by file id.

    Raises
    ------
    MissingInputError
        If it is missing.
    ManifestError
        If it is none, repeats a file, or a row cannot be used.
    """
    table = read_delimited(path, "sample sheet", SHEET_COLUMNS, ManifestError, delimiter="\t")
    if not {"Sample Type", "Tissue Type"} & set(table.columns):
        raise ManifestError(f"sample sheet {path} lacks the column Sample Type or Tissue Type")
    rows, problems = [], []
    for number, record in enumerate(table.to_dict("records"), 2):
        try:
            rows.append(_sheet_row(record))
        except ValidationError as error:
            problems.append((str(record["File ID"] or f"row {number}"), describe_errors(error)))
    if problems:
        raise ManifestError(f"sample sheet {path}: {len(problems)} rows cannot be used: {group_problems(problems)}")
    check_unique((row.file_id for row in rows), "file", f"sample sheet {path}", ManifestError)
    return {row.file_id: row for row in rows}


def _sheet_row(record: dict[Any, Any]) -> SheetRow:
    values = {field: _split(record.get(column)) for field, column in SAMPLE_COLUMNS.items()}
    count = max(map(len, values.values()))
    samples = [
        {field: value[min(number, len(value) - 1)] for field, value in values.items() if value}
        for number in range(count)
    ]
    cases = tuple(dict.fromkeys(_split(record["Case ID"])))
    ids = _split(record["Sample ID"])
    return SheetRow.model_validate(
        {
            "file_id": record["File ID"],
            "project": record["Project ID"],
            "cases": cases,
            "sample_ids": ids,
            "samples": samples,
        }
    )


def _split(cell: str | None) -> tuple[str, ...]:
    return tuple(SEPARATOR.split(cell)) if cell else ()


def _describe_files(rows: list[Row], sheet: dict[str, SheetRow]) -> tuple[list[Candidate], list[tuple[str, str]]]:
    """Return the files with their cases and samples, and what is wrong with those that have none."""
    candidates, problems = [], []
    for row in rows:
        problem, candidate = _describe_file(row, sheet.get(row.file_id))
        if candidate is None:
            problems.append((row.file_name, problem))
        else:
            candidates.append(candidate)
    return candidates, problems


def _describe_file(row: Row, told: SheetRow | None) -> tuple[str, Candidate | None]:
    """Return what is wrong with a file, or nothing and the file with its case and samples."""
    if told is None:
        if row.case_id is None:
            return "its case is not known", None
        return "", Candidate(_with(row, row.case_id, row.sample_type, row.aliquot, row.project), ())
    if len(told.cases) != 1:
        return f"it belongs to {len(told.cases)} cases, but files of one case are needed", None
    aliquot = row.aliquot or min(told.sample_ids, default=None)
    parsed = Barcode.parse(aliquot or "")
    case_id = told.cases[0]
    if aliquot is None or (parsed is not None and parsed.case_id != case_id):
        return f"its sample {quote(aliquot)} is not of its case {quote(case_id)}", None
    sample_type = sample_type_of(told.samples, aliquot)
    if sample_type is None:
        return "its sample type is not known", None
    return "", Candidate(_with(row, case_id, sample_type, aliquot, told.project), told.samples)


def _with(row: Row, case_id: str, sample_type: str | None, aliquot: str | None, project: str | None) -> Row:
    kind = guess_kind(row.file_name)
    return Row(row.file_id, row.file_name, row.md5, row.size, kind, case_id, sample_type, aliquot, project)
