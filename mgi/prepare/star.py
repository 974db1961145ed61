"""One STAR table of the GDC: what it counts, checked against the others of its cohort."""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv

from mgi.delimited import check_unique
from mgi.errors import ExpressionError
from mgi.files import require_file

COLUMNS = {"gene_id": pa.string(), "gene_name": pa.string(), "gene_type": pa.string(), "unstranded": pa.int64()}
NAMES = ["gene_id", "gene_name", "gene_type"]
COUNTERS = ["N_unmapped", "N_multimapping", "N_noFeature", "N_ambiguous"]
MODEL = b"# gene-model:"
LONGEST_HEAD = 4096
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
        If it is truncated, another kind of file, or unlike `like`.
    """
    path = require_file(path, "STAR table")
    content = _content(path)
    opening, header = [*content[:LONGEST_HEAD].split(b"\n", 2), b""][:2]
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
    wanted = [*(NAMES if like is None else NAMES[:1]), "unstranded"]
    table = _parsed(path, content, header, wanted)
    if table["gene_id"][: len(COUNTERS)].to_pylist() != COUNTERS:
        raise ExpressionError(f"{path}: lines 3 to 6 are not the counters {', '.join(COUNTERS)}; fetch it again")
    counts = _counts(path, table)
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
            raise ExpressionError(_difference(path, table["gene_id"].to_pylist(), like))
    return StarTable(path, model, genes, counts)


def _content(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
        raise ExpressionError(f"{path} is cut short or damaged: {problem}; fetch it again") from None
    except OSError as problem:
        raise ExpressionError(f"{path} cannot be read: {problem.strerror}") from None


def _parsed(path: Path, content: bytes, header: bytes, wanted: list[str]) -> pa.Table:
    present = header.decode(errors="replace").split("\t")
    missing = [name for name in COLUMNS if name not in present]
    if missing:
        raise ExpressionError(
            f"{path} is no STAR table: line 2 lacks the column {missing[0]}; it has {', '.join(present)[:200]}"
        )
    twice = next((name for name in COLUMNS if present.count(name) > 1), None)
    if twice is not None:
        raise ExpressionError(f"{path} is no STAR table: its column {twice} comes twice")
    try:
        return pcsv.read_csv(
            pa.py_buffer(content),
            # Files are read side by side, not blocks of a file.
            pcsv.ReadOptions(skip_rows=1, use_threads=False),
            pcsv.ParseOptions(delimiter="\t", quote_char=False),
            pcsv.ConvertOptions(column_types=COLUMNS, include_columns=wanted),
        )
    except pa.ArrowInvalid as problem:
        raise ExpressionError(f"{path} is cut short or damaged: {problem}; fetch it again") from None


def _counts(path: Path, table: pa.Table) -> np.ndarray:
    """Give the counts below the counters, int64 [genes]; none of either is missing or negative."""
    column = table["unstranded"]
    counts = column.fill_null(-1).to_numpy()
    bad = np.flatnonzero(counts < 0)
    if len(bad):
        what = "a missing" if column[bad[0]].as_py() is None else "the negative"
        said = "" if column[bad[0]].as_py() is None else f" {counts[bad[0]]}"
        raise ExpressionError(f"{path} holds {what} count{said} of {table['gene_id'][bad[0]]}; fetch it again")
    return counts[len(COUNTERS) :]


def _difference(path: Path, here: list[str], like: StarTable) -> str:
    """Say where the genes of a table part from those of another."""
    there = like.genes["gene_id"].to_pylist()
    line = next((k for k, (a, b) in enumerate(zip(here, there, strict=False)) if a != b), None)
    if line is not None:
        return f"{path} has the gene {here[line]} in line {line + FIRST_GENE_LINE}, where {like.path} has {there[line]}"
    return f"{path} lists {len(here)} genes but {like.path} {len(there)}: the shorter is cut short; fetch it again"
