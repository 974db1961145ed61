"""Gene expression of a cohort as one table: a row per case, its values in genomic order.

`expression.parquet` holds case_id, aliquot and values, a fixed-size list of float32 with one value per row of
`genes.parquet`, which lies beside it.
"""

import gzip
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from mgi.acquire.gdc import EXPRESSION, read_manifest
from mgi.console import log, progress
from mgi.errors import ExpressionError
from mgi.files import existing, read_table, write_table, written_aside

GENES_SCHEMA = pa.schema(
    [
        ("gene_id", pa.string()),
        ("gene_name", pa.string()),
        ("gene_type", pa.string()),
        ("chromosome", pa.string()),
        ("start", pa.int64()),
    ]
)
STAR_COLUMNS = (
    "gene_id",
    "gene_name",
    "gene_type",
    "unstranded",
    "stranded_first",
    "stranded_second",
    "tpm_unstranded",
    "fpkm_unstranded",
    "fpkm_uq_unstranded",
)
STAR_COUNTERS = ["N_unmapped", "N_multimapping", "N_noFeature", "N_ambiguous"]
GTF_COLUMNS = ["chromosome", "source", "feature", "start", "end", "score", "strand", "frame", "attributes"]
CHROMOSOMES = [f"chr{name}" for name in (*range(1, 23), "X", "Y", "M")]
UNPLACED = "unplaced"
CASES_PER_GROUP = 64
BARCODE = re.compile(r"^TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(-|$)")
LARGEST_LOG2 = 30.0


@dataclass(frozen=True)
class StarTable:
    """One STAR table: gene_id, gene_name and gene_type as the GDC writes them, and the unstranded counts, int64."""

    genes: pa.Table
    counts: np.ndarray


def build(
    folders: list[Path], manifests: list[Path], annotation_gtf: Path, output: Path | str, gene_types: list[str]
) -> None:
    """Build `output`, and genes.parquet beside it, from the STAR counts of manifests: log2(TPM + 1).

    TPM (Wagner et al., 2012, doi 10.1007/s12064-012-0162-3) is recomputed from the unstranded counts over the kept
    genes, with the exon-union lengths of the annotation. Genes are kept by type; an empty list keeps all. Tables are
    read one at a time, so memory does not grow with the cohort.

    Raises
    ------
    MissingInputError
        If a file is not there.
    ExpressionError
        If a table is truncated, foreign or unlike the first, if a case comes twice, or if no gene is kept.
    """
    files = _files(folders, manifests)
    first = read_star(files[0].path)
    annotated = read_gtf(annotation_gtf)
    order, genes, lengths = _kept_genes(first, annotated, gene_types, files[0].path)
    with _matrix_writer(output, genes, "log2(TPM+1)", "none") as add:
        for file in progress(files, "STAR tables"):
            table = read_star(file.path)
            _check_same_genes(table, first, file.path, files[0].path)
            add(file.case_id, file.aliquot, _log_tpm(table.counts[order], lengths, file.path))
    log.info("%d cases, %d of %d genes in %s", len(files), len(order), first.genes.num_rows, output)


def import_table(table: Path, positions: Path, output: Path | str) -> None:
    """Import a ready matrix of cases by genes, either way round, as `output` and genes.parquet beside it.

    Cases are known by their TCGA barcodes, or by a column case_id. Values are taken as they are, and what they were
    taken for is recorded: z-scores (negative values, and a typical gene of mean 0 and standard deviation 1), log2 (no
    value above 30), or linear. Genes without a position come last, on the chromosome "unplaced".

    Raises
    ------
    MissingInputError
        If a file is not there.
    ExpressionError
        If cases or genes cannot be told, a case or gene comes twice, or a value is missing.
    """
    frame = _cases_by_genes(existing(table, "expression table"), table)
    barcodes = frame.index.astype(str)
    case_ids = [name[:12] if BARCODE.match(name) else name for name in barcodes]
    _check_unique(case_ids, "case", table)
    _check_unique(list(frame.columns), "gene", table)
    incomplete = frame.columns[frame.isna().any()]
    if len(incomplete):
        raise ExpressionError(
            f"{table}: {len(incomplete)} genes lack a value for some case, {incomplete[0]} the first; "
            "fill them in or leave these genes out"
        )
    genes = _placed(frame.columns, _read_positions(positions))
    unplaced = genes["gene_name"][genes["chromosome"] == UNPLACED].tolist()
    if unplaced:
        log.info("%d genes have no position and come last: %s", len(unplaced), ", ".join(unplaced[:5]))
    values = frame[genes["gene_name"]].to_numpy(np.float32)
    unit, fitted = _unit(values)
    log.info("%s: taken for %s, %d cases of %d genes", table, unit, *values.shape)
    with _matrix_writer(output, genes, unit, fitted) as add:
        for k in np.argsort(case_ids, kind="stable"):
            add(case_ids[k], barcodes[k] if len(barcodes[k]) > 12 and BARCODE.match(barcodes[k]) else None, values[k])


def read_expression(path: Path | str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read expression.parquet and the genes.parquet beside it.

    Returns
    -------
    values : float32 frame, index case_id, columns gene_id
    genes : frame of gene_id, gene_name, gene_type, chromosome, start, in the order of the columns

    Raises
    ------
    MissingInputError
        If either table is not there.
    ExpressionError
        If either is not such a table, or they disagree on the number of genes.
    """
    case_ids, values = read_matrix(path)
    genes_path = Path(path).with_name("genes.parquet")
    genes = read_table(genes_path, "table of genes", GENES_SCHEMA.names, ExpressionError).to_pandas()
    if len(genes) != values.shape[1]:
        raise ExpressionError(
            f"{path} has {values.shape[1]} genes but {genes_path} {len(genes)}; they are of different cohorts"
        )
    return pd.DataFrame(values, pd.Index(case_ids, name="case_id"), genes["gene_id"]), genes


def read_matrix(path: Path | str) -> tuple[list[str], np.ndarray]:
    """Read the case ids and the values, float32 [cases, genes], of expression.parquet.

    Raises
    ------
    MissingInputError
        If it is not there.
    ExpressionError
        If it is not such a table.
    """
    table = read_table(path, "expression table", ["case_id", "values"], ExpressionError)
    kind = table.schema.field("values").type
    if not pa.types.is_fixed_size_list(kind):
        raise ExpressionError(f"{path}: its values are {kind}, not a fixed-size list; make it with `mgi expression`")
    values = table["values"].combine_chunks().flatten().to_numpy()
    return table["case_id"].to_pylist(), values.reshape(table.num_rows, kind.list_size)


def read_star(path: Path | str) -> StarTable:
    """Read a STAR table of the GDC ("augmented_star_gene_counts"), plain or gzipped.

    Raises
    ------
    MissingInputError
        If it is not there.
    ExpressionError
        If it is truncated or another kind of file.
    """
    content = _content(existing(path, "STAR table"))
    opening, _, _ = content.partition(b"\n")
    if not opening.startswith(b"# gene-model:"):
        raise ExpressionError(f"{path} is no STAR table of the GDC: its first line is not '# gene-model: ...'")
    if not content.endswith(b"\n"):
        raise ExpressionError(f"{path} is cut short: its last line is incomplete; fetch it again")
    types = dict.fromkeys(STAR_COLUMNS[:3], pa.string()) | {"unstranded": pa.int64()}
    try:
        table = pcsv.read_csv(
            pa.py_buffer(content),
            pcsv.ReadOptions(skip_rows=1, use_threads=False),
            pcsv.ParseOptions(delimiter="\t", quote_char=False),
            pcsv.ConvertOptions(column_types=types, include_columns=list(types)),
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError) as problem:
        raise ExpressionError(f"{path} is cut short or no STAR table: {problem}; fetch it again") from None
    if table["gene_id"][:4].to_pylist() != STAR_COUNTERS:
        raise ExpressionError(f"{path}: lines 3 to 6 are not the counters {', '.join(STAR_COUNTERS)}")
    counts = table["unstranded"][4:].to_numpy()
    if table["unstranded"].null_count or (counts < 0).any():
        raise ExpressionError(f"{path} holds a missing or negative count; fetch it again")
    return StarTable(table.select(list(STAR_COLUMNS[:3])).slice(4).combine_chunks(), counts)


def read_gtf(path: Path | str) -> pd.DataFrame:
    """Read chromosome, start and exon-union length (bases) of every gene of a GTF, plain or gzipped; index gene_id.

    Raises
    ------
    MissingInputError
        If it is not there.
    ExpressionError
        If it is no GTF, or a gene has no exon.
    """
    lines = _gtf_lines(existing(path, "gene annotation"))
    genes = lines[lines["feature"] == "gene"].drop_duplicates("gene_id").set_index("gene_id")
    exons = lines[lines["feature"] == "exon"]
    if genes.empty:
        raise ExpressionError(f"{path} holds no gene: it is no GTF")
    lengths = exon_union_lengths(exons["gene_id"], exons["start"].to_numpy(), exons["end"].to_numpy())
    genes = genes[["chromosome", "start"]].join(lengths)
    bare = genes.index[genes["length"].isna()]
    if len(bare):
        raise ExpressionError(f"{path}: {len(bare)} genes have no exon, {bare[0]} the first; is the file cut short?")
    return genes


def exon_union_lengths(gene_ids: pd.Series, starts: np.ndarray, ends: np.ndarray) -> pd.Series:
    """Count the bases that each gene's exons cover together; starts and ends are 1-based and inclusive, as in a GTF.

    Returns
    -------
    int64 series named length, index gene_id
    """
    codes, names = pd.factorize(gene_ids)
    order = np.lexsort((starts, codes))
    # Each gene on a stretch of its own: one running maximum then serves them all.
    offset = codes[order] * (int(ends.max(initial=0)) + 1)
    first, last = starts[order] + offset, ends[order] + offset
    covered = np.concatenate([[0], np.maximum.accumulate(last)[:-1]]) if len(last) else last
    new = np.clip(last - np.maximum(first - 1, covered), 0, None)
    lengths = np.bincount(codes[order], weights=new, minlength=len(names)).astype(np.int64)
    return pd.Series(lengths, pd.Index(names, name="gene_id"), name="length")


@dataclass(frozen=True)
class _File:
    case_id: str
    aliquot: str | None
    path: Path


def _files(folders: list[Path], manifests: list[Path]) -> list[_File]:
    """List the STAR tables of manifests by case."""
    if len(folders) != len(manifests):
        raise ExpressionError(f"{len(folders)} folders but {len(manifests)} manifests; give one folder per manifest")
    files = []
    for folder, manifest in zip(folders, manifests, strict=True):
        rows = read_manifest(manifest)
        rows = rows[rows["data_type"] == EXPRESSION].astype(object).where(lambda cells: cells.notna(), None)
        for row in rows.itertuples():
            files.append(_File(row.case_id, row.aliquot, Path(folder) / row.file_id / row.file_name))
    if not files:
        raise ExpressionError(f"{', '.join(map(str, manifests))}: no row of the data type '{EXPRESSION}'")
    files.sort(key=lambda file: file.case_id)
    for one, other in pairwise(files):
        if one.case_id == other.case_id:
            raise ExpressionError(
                f"the case {one.case_id} has two STAR tables: {one.path.name} and {other.path.name}; "
                "keep one in the manifest"
            )
    return files


def _content(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
        raise ExpressionError(f"{path} is cut short or damaged: {problem}; fetch it again") from None


def _check_same_genes(table: StarTable, first: StarTable, path: Path, first_path: Path) -> None:
    if table.genes["gene_id"].equals(first.genes["gene_id"]):
        return
    here, there = table.genes["gene_id"].to_pylist(), first.genes["gene_id"].to_pylist()
    if len(here) != len(there):
        raise ExpressionError(
            f"{path} lists {len(here)} genes but {first_path} {len(there)}: one is cut short or of another gene model"
        )
    line = next(k for k, (a, b) in enumerate(zip(here, there, strict=True)) if a != b)
    raise ExpressionError(f"{path} has the gene {here[line]} in line {line + 7}, where {first_path} has {there[line]}")


def _kept_genes(
    first: StarTable, annotated: pd.DataFrame, gene_types: list[str], path: Path
) -> tuple[np.ndarray, pd.DataFrame, np.ndarray]:
    """Choose rows of a STAR table, in genomic order; return them, the table of genes and their lengths in bases."""
    genes = first.genes.to_pandas()
    unknown = genes["gene_id"][~genes["gene_id"].isin(annotated.index)]
    if len(unknown):
        raise ExpressionError(
            f"{len(unknown)} genes of {path} are not in the annotation, {unknown.iloc[0]} the first; "
            "give the GTF that the counts were made with"
        )
    if len(genes) < len(annotated):
        raise ExpressionError(
            f"{path} lists {len(genes)} of the annotation's {len(annotated)} genes: it is cut short, or the GTF is "
            "not the one that the counts were made with"
        )
    genes = genes.join(annotated, on="gene_id")
    present = sorted(genes["gene_type"].unique())
    foreign = [name for name in gene_types if name not in present]
    if foreign:
        raise ExpressionError(f"no gene is of the type '{foreign[0]}'; the types are {', '.join(present)}")
    if gene_types:
        genes = genes[genes["gene_type"].isin(gene_types)]
    genes["gene_id"] = genes["gene_id"].str.replace(r"\.\d+", "", n=1, regex=True)
    _check_unique(genes["gene_id"].tolist(), "gene", path)
    genes = _in_genomic_order(genes)
    return genes.index.to_numpy(), genes[GENES_SCHEMA.names], genes["length"].to_numpy(np.float64)


def _in_genomic_order(genes: pd.DataFrame) -> pd.DataFrame:
    others = sorted(set(genes["chromosome"]) - {*CHROMOSOMES, UNPLACED})
    rank = {name: k for k, name in enumerate([*CHROMOSOMES, *others, UNPLACED])}
    keyed = genes.assign(rank=genes["chromosome"].map(rank))
    return keyed.sort_values(["rank", "start", "gene_id"], kind="stable").drop(columns="rank")


def _log_tpm(counts: np.ndarray, lengths: np.ndarray, path: Path) -> np.ndarray:
    rate = counts / lengths
    if not rate.any():
        raise ExpressionError(f"{path} counts no read in any kept gene; leave the file out of the manifest")
    return np.log2(rate * (1e6 / rate.sum()) + 1).astype(np.float32)


def _gtf_lines(path: Path) -> pd.DataFrame:
    """Read genes and exons of a GTF in blocks: feature, chromosome, start, end, gene_id."""
    kept = []
    try:
        with pa.input_stream(path, compression="detect") as stream:
            blocks = pcsv.open_csv(
                stream,
                pcsv.ReadOptions(column_names=GTF_COLUMNS, block_size=1 << 25, use_threads=False),
                pcsv.ParseOptions(delimiter="\t", quote_char=False, invalid_row_handler=_skip_comment),
                pcsv.ConvertOptions(
                    column_types=dict.fromkeys(GTF_COLUMNS, pa.string()) | {"start": pa.int64(), "end": pa.int64()},
                    include_columns=["feature", "chromosome", "start", "end", "attributes"],
                ),
            )
            for block in blocks:
                wanted = block.filter(pc.is_in(block["feature"], pa.array(["gene", "exon"])))
                found = pc.extract_regex(wanted["attributes"], r'gene_id "(?P<gene_id>[^"]+)"')
                named = wanted.drop_columns("attributes").append_column("gene_id", pc.struct_field(found, "gene_id"))
                kept.append(pa.table(named))
    except (pa.ArrowInvalid, OSError) as problem:
        raise ExpressionError(f"{path} is no GTF, or is cut short: {problem}") from None
    return pa.concat_tables(kept).to_pandas()


def _skip_comment(row: pcsv.InvalidRow) -> str:
    return "skip" if row.text.startswith("#") else "error"


def _cases_by_genes(path: Path, table: Path) -> pd.DataFrame:
    """Read a matrix as cases by genes, whichever way round it is stored."""
    frame = _read_frame(path)
    if "case_id" in frame.columns:
        return _numeric(frame.set_index("case_id"), table)
    if not _are_barcodes(frame.index) and len(frame.columns) and _are_barcodes(frame.iloc[:, 0]):
        frame = frame.set_index(frame.columns[0])
    if _are_barcodes(frame.index):
        return _numeric(frame, table)
    cases = [name for name in frame.columns if BARCODE.match(str(name))]
    if not cases:
        raise ExpressionError(
            f"{table}: neither rows nor columns are TCGA barcodes; name the cases in a column 'case_id'"
        )
    if isinstance(frame.index, pd.RangeIndex):
        text = [name for name in frame.columns if not pd.api.types.is_numeric_dtype(frame[name]) and name not in cases]
        if not text:
            raise ExpressionError(f"{table}: its columns are cases but no column names the genes")
        frame = frame.set_index(text[0])
    return _numeric(frame[cases].T, table)


def _read_frame(path: Path) -> pd.DataFrame:
    kinds = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    try:
        if kinds and kinds[-1] == ".parquet":
            return pd.read_parquet(path)
        return pd.read_csv(path, sep="," if kinds and kinds[-1] == ".csv" else "\t")
    except (ValueError, OSError, EOFError, zlib.error) as problem:
        raise ExpressionError(f"{path} is not a readable Parquet, CSV or TSV table: {problem}") from None


def _are_barcodes(names: pd.Index | pd.Series) -> bool:
    return len(names) > 0 and all(BARCODE.match(str(name)) for name in names)


def _numeric(frame: pd.DataFrame, table: Path) -> pd.DataFrame:
    numeric = frame.select_dtypes("number")
    if len(numeric.columns) < len(frame.columns):
        left_out = [str(name) for name in frame.columns if name not in numeric.columns]
        log.info("%s: %d columns are not numbers and are left out: %s", table, len(left_out), ", ".join(left_out[:5]))
    if numeric.empty:
        raise ExpressionError(f"{table} holds no numbers")
    return numeric.rename(columns=str)


def _read_positions(path: Path) -> pd.DataFrame:
    frame = _read_frame(existing(path, "gene positions"))
    missing = [name for name in ("gene_name", "chromosome", "start") if name not in frame.columns]
    if missing:
        raise ExpressionError(f"{path} lacks the column {missing[0]}; it has {', '.join(map(str, frame.columns))}")
    # A symbol with several places, as the pseudoautosomal genes have, takes the first.
    frame = _in_genomic_order(frame.assign(gene_id=frame["gene_name"])).drop_duplicates("gene_name")
    return frame.set_index("gene_name")[["chromosome", "start"]]


def _placed(symbols: pd.Index, positions: pd.DataFrame) -> pd.DataFrame:
    genes = pd.DataFrame({"gene_id": symbols, "gene_name": symbols, "gene_type": None}).join(positions, on="gene_name")
    genes["chromosome"] = genes["chromosome"].astype(object).where(genes["chromosome"].notna(), UNPLACED)
    genes["start"] = genes["start"].fillna(0).astype(np.int64)
    return _in_genomic_order(genes)


def _unit(values: np.ndarray) -> tuple[str, str]:
    """Tell what the values seem to be, and whether their scale was fitted outside our folds."""
    if values.min() < 0:
        centred = np.median(np.abs(values.mean(axis=0))) < 0.3 and 0.5 < np.median(values.std(axis=0)) < 2
        return ("z-score", "outside the folds") if centred else ("log2", "none")
    return ("log2" if values.max() <= LARGEST_LOG2 else "linear"), "none"


def _check_unique(names: list[str], what: str, table: Path) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ExpressionError(f"{table}: the {what} {name} comes twice; keep one")
        seen.add(name)


@contextmanager
def _matrix_writer(
    output: Path | str, genes: pd.DataFrame, unit: str, scale_fitted: str
) -> Iterator[Callable[[str, str | None, np.ndarray], None]]:
    """Yield a function that adds a case's values; both tables appear when the block ends."""
    kind = pa.list_(pa.float32(), len(genes))
    schema = pa.schema(
        [("case_id", pa.string()), ("aliquot", pa.string()), ("values", kind)],
        metadata={"unit": unit, "scale_fitted": scale_fitted},
    )
    pending: list[tuple[str, str | None, np.ndarray]] = []

    with written_aside(output) as aside, pq.ParquetWriter(aside, schema, compression="zstd") as writer:

        def flush() -> None:
            case_ids, aliquots, values = zip(*pending, strict=True)
            arrays = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(values)), type=kind)
            columns = [pa.array(case_ids, pa.string()), pa.array(aliquots, pa.string()), arrays]
            writer.write_table(pa.table(columns, schema=schema))
            pending.clear()

        def add(case_id: str, aliquot: str | None, values: np.ndarray) -> None:
            pending.append((case_id, aliquot, values))
            if len(pending) == CASES_PER_GROUP:
                flush()

        yield add
        if pending:
            flush()
        write_table(
            pa.Table.from_pandas(genes, GENES_SCHEMA, preserve_index=False).replace_schema_metadata(None),
            Path(output).with_name("genes.parquet"),
        )
