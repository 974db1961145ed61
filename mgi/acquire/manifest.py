"""The manifest that pins a cohort: read, checked, and compared with what the configuration asks for."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from mgi.barcodes import BARCODE, SAMPLE_TYPES
from mgi.errors import ManifestError
from mgi.files import require_file
from mgi.tables import MANIFEST_SCHEMA, open_table, read_table

EXPRESSION = "Gene Expression Quantification"
SLIDES = "Slide Image"
ANNOTATION = "Gene Annotation"
KINDS = {"expression": EXPRESSION, "slides": SLIDES, "annotation": ANNOTATION}
RELEASE_KEY = b"gdc_data_release"
QUERY_KEY = b"query"
MOST_BYTES = 1 << 53
MD5 = re.compile(r"[0-9a-f]{32}")
UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def read_exclusions(path: Path | str) -> dict[str, str]:
    """Read the table of files to leave out: the reason by file id.

    Raises
    ------
    MissingInputError
        If it is not there.
    ManifestError
        If it lacks the columns file_id and reason, or a row lacks one of them.
    """
    path = require_file(path, "exclusion table")
    try:
        table = pd.read_csv(path, sep="," if ".csv" in path.suffixes else "\t", dtype=str, skipinitialspace=True)
    except (ValueError, UnicodeDecodeError) as problem:
        raise ManifestError(f"the exclusion table {path} cannot be read: {problem}") from None
    missing = {"file_id", "reason"} - set(table.columns)
    if missing:
        raise ManifestError(
            f"the exclusion table {path} lacks the column {', '.join(sorted(missing))}; "
            f"it has {', '.join(table.columns)}"
        )
    for number, row in enumerate(table.itertuples(), 2):
        if not UUID.fullmatch(str(row.file_id)) or pd.isna(row.reason):
            raise ManifestError(
                f"line {number} of the exclusion table {path} needs a GDC file id (a UUID) and a reason"
            )
    return dict(zip(table.file_id.str.lower(), table.reason, strict=True))


def refuse_other_choice(manifest: Path | str, **choice: Any) -> None:
    """Refuse a manifest that was pinned by another choice of slides, sample_types, aliquots or slides_per_case.

    A manifest that does not tell its choice, as one made by other means, is taken as it is.

    Raises
    ------
    MissingInputError, ManifestError
        If it is not there, is none, or was pinned by another choice.
    """
    with open_table(manifest, "manifest", MANIFEST_SCHEMA.names, ManifestError) as file:
        told = json.loads((file.schema_arrow.metadata or {}).get(QUERY_KEY, b"{}"))
    for name, value in choice.items():
        if name in told and told[name] != value:
            raise ManifestError(
                f"{manifest} was pinned with gdc.{name} {told[name]}, but the configuration says {value}: move it away "
                "and run `snakemake pin` to pin the cohort anew, or set the key back"
            )


def read_manifest(path: Path | str) -> pd.DataFrame:
    """Read a manifest: one made by `query`, or a TSV that the GDC portal gives (id, filename, md5, size).

    File names are reduced to their last part, so that none leads out of a folder. Of a file in a portal's TSV the data
    type is told from the name, and project, case, sample and slide from the TCGA barcode in it, as slides have one;
    where there is none they are null.

    Returns
    -------
    pandas.DataFrame
        The columns of `MANIFEST_SCHEMA`; size is Int64 (null where unknown), the rest strings (null where not
        applicable).

    Raises
    ------
    MissingInputError
        If it is not there.
    ManifestError
        If it is neither, lacks a column, repeats a file_id, or a row lacks a usable file_id, file_name or md5.
    """
    if Path(path).name.endswith((".tsv", ".txt", ".tsv.gz", ".txt.gz")):
        frame = _portal_manifest(require_file(path, "manifest"))
    else:
        table = read_table(path, "manifest", MANIFEST_SCHEMA.names, ManifestError)
        frame = table.select(MANIFEST_SCHEMA.names).to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    refuse_duplicates(frame.file_id.tolist(), f"manifest {path}")
    for row in frame.itertuples():
        if not UUID.fullmatch(str(row.file_id)):
            raise ManifestError(f"manifest {path}: '{row.file_id}' is not a GDC file id (a UUID)")
        if not MD5.fullmatch(str(row.md5)) or pd.isna(row.file_name) or basename(row.file_name) in ("", ".", ".."):
            raise ManifestError(f"manifest {path}: file {row.file_id} has no usable file_name and md5")
    return frame.assign(file_id=frame.file_id.str.lower(), file_name=frame.file_name.map(basename))


def _portal_manifest(path: Path) -> pd.DataFrame:
    """Read a manifest of the GDC portal."""
    try:
        table = pd.read_csv(path, sep="\t", dtype=str)
    except (ValueError, UnicodeDecodeError, OSError) as problem:
        raise ManifestError(f"manifest {path} cannot be read: {problem}") from None
    missing = [name for name in ("id", "filename", "md5", "size") if name not in table]
    if missing:
        raise ManifestError(f"manifest {path} lacks the column {', '.join(missing)}; it has {', '.join(table.columns)}")
    names = table.filename.fillna("")
    barcodes = names.str.extract(BARCODE.pattern)
    known = barcodes["sample"].notna()
    size = pd.to_numeric(table["size"], errors="coerce")
    odd = table["size"][(size.isna() & table["size"].notna()) | (size % 1 != 0) & size.notna() | (size > MOST_BYTES)]
    if len(odd):
        raise ManifestError(f"manifest {path}: the size '{odd.iloc[0]}' is no number of bytes")
    frame = pd.DataFrame({"file_id": table.id, "file_name": table.filename, "md5": table.md5, "size": size})
    kinds = {r"\.svs$": SLIDES, r"\.gtf(?:\.gz)?$": ANNOTATION, r"augmented_star_gene_counts\.tsv$": EXPRESSION}
    frame["data_type"] = table.get("data_type")
    for pattern, kind in kinds.items():
        frame.loc[names.str.contains(pattern), "data_type"] = kind
    frame["case_id"] = names.str[:12].where(known)
    frame["sample_type"] = barcodes["sample"].map(SAMPLE_TYPES)
    frame["aliquot"] = names.str.split(".").str[0].where(known)
    frame["project"] = table.get("project_id")
    order = ["data_type", "case_id", "file_name", "file_id"]
    frame = frame.astype({"size": "Int64"}).sort_values(order, ignore_index=True)
    return frame.astype(object).where(frame.notna(), None).astype({"size": "Int64"})[MANIFEST_SCHEMA.names]


def dicom_name(file_name: str) -> str:
    """Name the file by which a slide from the Imaging Data Commons is opened, given its name at the GDC."""
    return f"{Path(file_name).stem}.dcm"


def basename(name: str) -> str:
    """Return the last part of a file name, whichever system's separators it has."""
    return re.split(r"[/\\]", name)[-1]


def refuse_duplicates(file_ids: list[str], where: str) -> None:
    """Raise `ManifestError` if a file id is listed twice."""
    seen: set[str] = set()
    for file_id in file_ids:
        if file_id in seen:
            raise ManifestError(f"{where} lists the file {file_id} more than once; keep one row of it")
        seen.add(file_id)
