"""One STAR table of the GDC: what it counts, checked against the others of its cohort."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv

from mgi.delimited import PARSER_ERRORS, check_unique, read_content
from mgi.errors import ExpressionError
from mgi.files import require_file

COLUMNS = {"gene_id": pa.string(), "gene_name": pa.string(), "gene_type": pa.string(), "unstranded": pa.int64()}
NAMES = ["gene_id", "gene_name", "gene_type"]
COUNTERS = ["N_unmapped", "N_multimapping", "N_noFeature", "N_ambiguous"]
MODEL = b"# gene-model:"
# A table of 60,660 genes has 9 columns and 5 MB.
MAX_BYTES = 64 << 20
MAX_LINES = 1_000_000
MAX_COLUMNS = 64
MAX_HEAD_BYTES = 4096
# The model, the header and the counters come before the first gene, and lines count from 1.
FIRST_GENE_LINE = 3 + len(COUNTERS)


@dataclass(frozen=True)
class StarTable:
    """One STAR table.

    Attributes
    ----------
    path : Path
    model : str
        The gene model of its first line, such as "GENCODE v36".
    genes : pyarrow.Table
        gene_id, gene_name and gene_type as the GDC writes them.
    counts : int64 ndarray, [genes]
        The unstranded counts.
    """

    path: Path
    model: str
    genes: pa.Table
    counts: np.ndarray


def read_star(path: Path | str, like: StarTable | None = None) -> StarTable:
    """Read a STAR table of the GDC ("augmented_star_gene_counts") of any gene model, plain or gzipped.

    Parameters
    ----------
    path
        The file.
    like
        Another table of the cohort, which must have the same gene model and genes; names and types are taken from it.

    Raises
    ------
    MissingInputError
        If it is not there.
    ExpressionError
        If it is truncated, another kind of file, beyond the limits on bytes, lines and columns, or unlike `like`.
    """
    path = require_file(path, "STAR table")
    content = read_content(path, "STAR table", ExpressionError, MAX_BYTES)
    opening, header = [*content[:MAX_HEAD_BYTES].split(b"\n", 2), b""][:2]
    if not opening.startswith(MODEL):
        raise ExpressionError(f"{path} is no STAR table of the GDC: its first line is not '{MODEL.decode()} ...'")
    model = opening[len(MODEL) :].decode(errors="replace").strip()
    if like is not None and model != like.model:
        raise ExpressionError(
            f"{path} counts the genes of {model}, but {like.path} those of {like.model}; "
            "query a cohort of one gene model"
        )
    if not content.endswith(b"\n"):
        raise ExpressionError(f"{path} is cut short: its last line is incomplete; fetch it again")
    _check_size(path, content)
    needed = [*(NAMES if like is None else NAMES[:1]), "unstranded"]
    table = _parse_table(path, content, header, needed)
    if table["gene_id"][: len(COUNTERS)].to_pylist() != COUNTERS:
        raise ExpressionError(f"{path}: lines 3 to 6 are not the counters {', '.join(COUNTERS)}; fetch it again")
    counts = _check_counts(path, table)
    table = table.slice(len(COUNTERS))
    if like is None:
        genes = table.select(NAMES).combine_chunks()
        gene_ids = genes["gene_id"].to_pylist()
        check_unique(gene_ids, "gene", path, ExpressionError)
        if "" in gene_ids:
            raise ExpressionError(f"{path}: line {gene_ids.index('') + FIRST_GENE_LINE} names no gene; fetch it again")
    else:
        genes = like.genes
        if not table["gene_id"].equals(genes["gene_id"]):
            raise ExpressionError(_describe_difference(path, table["gene_id"].to_pylist(), like))
    return StarTable(path, model, genes, counts)


def _check_size(path: Path, content: bytes) -> None:
    """Refuse more columns or lines than a STAR table has, before they are parsed."""
    end = content.find(b"\n", content.find(b"\n") + 1)
    columns, lines = content.count(b"\t", 0, end) + 1, content.count(b"\n")
    if columns > MAX_COLUMNS or lines > MAX_LINES:
        raise ExpressionError(
            f"{path} is no STAR table: it has {columns} columns and {lines} lines, the limits are {MAX_COLUMNS} and "
            f"{MAX_LINES}"
        )


def _parse_table(path: Path, content: bytes, header: bytes, needed: list[str]) -> pa.Table:
    present = header.decode(errors="replace").rstrip("\r").split("\t")
    missing = [name for name in COLUMNS if name not in present]
    if missing:
        raise ExpressionError(
            f"{path} is no STAR table: line 2 lacks the column {missing[0]}; it has {', '.join(present)[:200]}"
        )
    check_unique((name for name in present if name in COLUMNS), "column", f"{path} is no STAR table", ExpressionError)
    try:
        return pcsv.read_csv(
            pa.py_buffer(content),
            # Files are read side by side, not blocks of a file.
            pcsv.ReadOptions(skip_rows=1, use_threads=False),
            pcsv.ParseOptions(delimiter="\t", quote_char=False),
            pcsv.ConvertOptions(column_types=COLUMNS, include_columns=needed),
        )
    except PARSER_ERRORS as error:
        raise ExpressionError(f"{path} is cut short or damaged: {error}; fetch it again") from error


def _check_counts(path: Path, table: pa.Table) -> np.ndarray:
    """Return the counts below the counters, int64 [genes]; none of either is missing or negative."""
    column = table["unstranded"]
    counts = column.fill_null(-1).to_numpy()
    bad = np.flatnonzero(counts < 0)
    if len(bad):
        missing = column[bad[0]].as_py() is None
        found = "a missing count" if missing else f"the negative count {counts[bad[0]]}"
        raise ExpressionError(f"{path} holds {found} of {table['gene_id'][bad[0]]}; fetch it again")
    return counts[len(COUNTERS) :]


def _describe_difference(path: Path, here: list[str], like: StarTable) -> str:
    """Return where the genes of a table part from those of another, in words."""
    there = like.genes["gene_id"].to_pylist()
    line = next((k for k, (a, b) in enumerate(zip(here, there, strict=False)) if a != b), None)
    if line is not None:
        return f"{path} has the gene {here[line]} in line {line + FIRST_GENE_LINE}, where {like.path} has {there[line]}"
    return f"{path} lists {len(here)} genes but {like.path} {len(there)}: the shorter is cut short; fetch it again"
