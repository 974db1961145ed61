"""The manifest that pins a cohort: read, validated, and compared with what the configuration asks for."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from mgi.acquire.fields import FileId, Md5, Name, Size, Text, describe_errors
from mgi.acquire.reasons import group_problems
from mgi.barcodes import Barcode
from mgi.delimited import PARSER_ERRORS, check_unique, read_delimited
from mgi.errors import ConfigError, ManifestError
from mgi.names import MAX_TEXT_LENGTH, check_case_ids, first_few, quote
from mgi.tables import MANIFEST_SCHEMA, open_table, write_table

EXPRESSION = "Gene Expression Quantification"
SLIDES = "Slide Image"
ANNOTATION = "Gene Annotation"
KINDS = {"expression": EXPRESSION, "slides": SLIDES, "annotation": ANNOTATION}
RELEASE_KEY = b"gdc_data_release"
QUERY_KEY = b"query"
MAX_FILES = 2_000_000
MAX_METADATA_BYTES = 1 << 20
PORTAL_COLUMNS = ("id", "filename", "md5", "size")
PORTAL_SUFFIXES = (".tsv", ".txt", ".tsv.gz", ".txt.gz")


class Row(NamedTuple):
    """A row of a manifest: a file of the GDC; None where it is unknown or not applicable."""

    file_id: str
    file_name: str
    md5: str
    size: int | None
    data_type: str | None
    case_id: str | None = None
    sample_type: str | None = None
    aliquot: str | None = None
    project: str | None = None


class _Record(BaseModel):
    """A row as it is read."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    file_id: FileId
    file_name: Name
    md5: Md5
    size: Size | None
    data_type: Text | None
    case_id: Text | None = None
    sample_type: Text | None = None
    aliquot: Text | None = None
    project: Name | None = None


def kind_of(name: str) -> str:
    """Return the GDC's data type of `expression`, `slides` or `annotation`.

    Raises
    ------
    ConfigError
        If it is none of them.
    """
    if name not in KINDS:
        raise ConfigError(f"unknown data type {quote(name)}; use one of {', '.join(KINDS)}")
    return KINDS[name]


def guess_kind(file_name: str) -> str | None:
    """Return the data type of a file by its name, None if it is none that is used here."""
    name = file_name.lower()
    if name.endswith(".svs"):
        return SLIDES
    if name.endswith("augmented_star_gene_counts.tsv"):
        return EXPRESSION
    return ANNOTATION if name.endswith((".gtf", ".gtf.gz")) else None


def read_exclusions(path: Path | str) -> dict[str, str]:
    """Read the table of files to leave out: the reason by file id.

    Raises
    ------
    MissingInputError
        If it is missing.
    ManifestError
        If it lacks the columns file_id and reason, or a row lacks one of them.
    """
    table = read_delimited(path, "exclusion table", ["file_id", "reason"], ManifestError)
    excluded, problems = {}, []
    for number, row in enumerate(table.itertuples(), 1):
        try:
            item = _Exclusion(file_id=row.file_id, reason=row.reason)
            excluded[item.file_id] = item.reason
        except ValidationError as error:
            problems.append((f"row {number}", describe_errors(error)))
    if problems:
        raise ManifestError(
            f"the exclusion table {path} needs a GDC file id (a UUID) and a reason in each row: "
            f"{group_problems(problems)}"
        )
    return excluded


class _Exclusion(BaseModel):
    """A row of an exclusion table."""

    file_id: FileId
    reason: Text


def refuse_other_choice(manifest: Path | str, **choice: Any) -> None:
    """Refuse a manifest that was pinned by another choice of slides, sample_types, aliquots or slides_per_case.

    A manifest that does not state its choice, as one made by other means, is taken as it is.

    Raises
    ------
    MissingInputError
        If it is missing.
    ManifestError
        If it is no manifest, or was pinned by another choice.
    """
    with open_table(manifest, "manifest", MANIFEST_SCHEMA.names, ManifestError) as file:
        text = (file.schema_arrow.metadata or {}).get(QUERY_KEY, b"{}")
    try:
        stated = json.loads(text) if len(text) <= MAX_METADATA_BYTES else None
    except (ValueError, RecursionError):
        stated = None
    if not isinstance(stated, dict):
        raise ManifestError(f"manifest {manifest} states in its metadata what is not a choice of files; pin it again")
    for name, value in choice.items():
        if name in stated and stated[name] != value:
            raise ManifestError(
                f"{manifest} was pinned with gdc.{name} {quote(stated[name])}, but the configuration says {value}; "
                "move it away and run `snakemake pin` to pin the cohort again, or set the key back"
            )


def read_manifest(path: Path | str) -> pd.DataFrame:
    """Read a manifest: one made by `mgi gdc query` or `import`, or one of the GDC portal (id, filename, md5, size).

    Of a file in a portal's manifest the name tells the data type, and of a slide the TCGA barcode in it the case and
    the sample; the rest is null.

    Returns
    -------
    pandas.DataFrame
        The columns of `MANIFEST_SCHEMA`; size is Int64 (bytes, null where unknown), the rest strings (None where
        unknown or not applicable).

    Raises
    ------
    MissingInputError
        If it is missing.
    ManifestError
        If it is no manifest, lacks a column, repeats a file, or a row has a name, id, md5 or size that is none.
    """
    path = Path(path)
    if path.name.lower().endswith(PORTAL_SUFFIXES):
        rows = sorted(read_portal_manifest(path), key=sort_key)
    else:
        rows = validate_rows(_read_parquet(path), f"manifest {path}")
    frame = pd.DataFrame(rows, columns=MANIFEST_SCHEMA.names, dtype=object)
    return frame.astype({"size": "Int64"})


def write_manifest(
    rows: list[Row], out: Path, where: str, release: str | None = None, choice: dict[str, Any] | None = None
) -> None:
    """Write a manifest, sorted, with the data release and the choice of files where they are known.

    Raises
    ------
    ManifestError
        If `where`, which the rows come from, lists a file more than once or a case id in two ways.
    """
    check_unique((row.file_id for row in rows), "file", where, ManifestError)
    check_case_ids(dict.fromkeys(row.case_id for row in rows if row.case_id is not None), where, ManifestError)
    metadata = {RELEASE_KEY: release.encode()} if release else {}
    metadata |= {QUERY_KEY: json.dumps(choice).encode()} if choice is not None else {}
    records = [row._asdict() for row in sorted(rows, key=sort_key)]
    write_table(pa.Table.from_pylist(records, MANIFEST_SCHEMA.with_metadata(metadata)), out)


def sort_key(row: Row) -> tuple[Any, ...]:
    """Return the key that sorts the rows of a manifest: data type, case, file name, file id."""
    return row.data_type is None, row.data_type or "", row.case_id or "", row.file_name, row.file_id


def read_portal_manifest(path: Path | str) -> list[Row]:
    """Read a manifest of the GDC portal.

    Raises
    ------
    MissingInputError
        If it is missing.
    ManifestError
        If it is no such table, or a row cannot be used.
    """
    table = read_delimited(path, "manifest", PORTAL_COLUMNS, ManifestError, delimiter="\t")
    return validate_rows((_portal_record(record) for record in table.to_dict("records")), f"manifest {path}")


def _portal_record(record: dict[Any, Any]) -> dict[str, Any]:
    """Return the record of a manifest for one of the portal's, with what the file's name tells."""
    name, size = record["filename"] or "", record["size"]
    barcode = name.split(".")[0]
    parsed = Barcode.parse(barcode)
    parsed = parsed if parsed and parsed.sample else None
    return {
        "file_id": record["id"],
        "file_name": record["filename"],
        "md5": record["md5"],
        "size": int(size) if size and size.isascii() and size.isdigit() and len(size) < 20 else size,
        "data_type": guess_kind(name) or record.get("data_type"),
        "case_id": parsed.case_id if parsed else None,
        "sample_type": parsed.sample_type if parsed else None,
        "aliquot": barcode if parsed else None,
        "project": record.get("project_id"),
    }


def validate_rows(records: Any, where: str) -> list[Row]:
    """Return the rows of a manifest, or raise `ManifestError` with everything that is wrong with them."""
    rows: list[Row] = []
    problems: list[tuple[str, str]] = []
    number = 0
    for number, record in enumerate(records, 1):
        try:
            row = Row(**dict(_Record.model_validate(record)))
        except ValidationError as error:
            problems.append((str(record.get("file_id") or f"row {number}"), describe_errors(error)))
            continue
        parsed = Barcode.parse(row.aliquot or "")
        if parsed is not None and row.case_id != parsed.case_id:
            problems.append((row.file_id, f"its barcode {row.aliquot} is not of its case {quote(row.case_id)}"))
        rows.append(row)
    if problems:
        raise ManifestError(f"{where}: {len(problems)} of {number} rows cannot be used: {group_problems(problems)}")
    check_unique((row.file_id for row in rows), "file", where, ManifestError)
    check_case_ids(dict.fromkeys(row.case_id for row in rows if row.case_id is not None), where, ManifestError)
    return rows


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    """Read the records of a Parquet manifest, no longer than a manifest can be, not yet validated."""
    with open_table(path, "manifest", MANIFEST_SCHEMA.names, ManifestError) as file:
        rows, types = file.metadata.num_rows, {field.name: field.type for field in file.schema_arrow}
    if rows > MAX_FILES:
        raise ManifestError(f"manifest {path} claims {rows} files; the limit is {MAX_FILES}")
    text = [field.name for field in MANIFEST_SCHEMA if field.type == pa.string()]
    odd = [name for name in text if not _is_text(types[name])]
    odd += ["size"] if not (pa.types.is_integer(types["size"]) or pa.types.is_floating(types["size"])
                            or pa.types.is_null(types["size"])) else []  # fmt: skip
    if odd:
        raise ManifestError(f"manifest {path}: the column {', '.join(odd)} is of another type than a manifest's")
    try:
        # Each text is held once, however often it is repeated.
        with pq.ParquetFile(path, read_dictionary=text) as file:
            table = file.read(MANIFEST_SCHEMA.names)
        for name in text:
            for chunk in table[name].chunks:
                values = chunk.dictionary if pa.types.is_dictionary(chunk.type) else chunk
                if pa.types.is_null(values.type):
                    continue
                if (pc.max(pc.binary_length(values)).as_py() or 0) > 4 * MAX_TEXT_LENGTH:
                    raise ManifestError(f"manifest {path}: a text in the column {name} is too long")
        # Tools that know no missing integers write sizes as floats.
        sizes = [int(size) if isinstance(size, float) and size.is_integer() else size for size in _sizes(table)]
        return [record | {"size": size} for record, size in zip(table.to_pylist(), sizes, strict=True)]
    except PARSER_ERRORS as error:
        raise ManifestError(f"manifest {path} cannot be read: {quote(' '.join(str(error).split()), 200)}") from error


def _sizes(table: pa.Table) -> list[Any]:
    """Return the sizes, None where they are missing or not a number."""
    return [None if size != size else size for size in table["size"].to_pylist()]


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def select_rows(rows: pd.DataFrame, manifest: Path, data_type: str | None, file_ids: list[str] | None) -> pd.DataFrame:
    """Return the rows of a manifest that are asked for.

    Raises
    ------
    ManifestError
        If it holds no such data type, or not one of the files.
    """
    if data_type is not None:
        rows = rows[rows["data_type"] == kind_of(data_type)]
        if rows.empty:
            raise ManifestError(f"manifest {manifest} holds no file of type '{data_type}'")
    if file_ids:
        present = set(rows["file_id"])
        absent = [file_id for file_id in file_ids if file_id.lower() not in present]
        if absent:
            kind = f" of type '{data_type}'" if data_type else ""
            raise ManifestError(f"manifest {manifest} holds no file {first_few(absent)}{kind}")
        rows = rows[rows["file_id"].isin([file_id.lower() for file_id in file_ids])]
    return rows


def dicom_name(file_name: str) -> str:
    """Return the name of the file that opens a slide from the Imaging Data Commons, given its name at the GDC."""
    return f"{Path(file_name).stem}.dcm"
