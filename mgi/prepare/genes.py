"""Genes: where they lie, how long they are, which are kept and in which order."""

import re
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv

from mgi.errors import ExpressionError
from mgi.files import require_file

GTF_COLUMNS = ["chromosome", "source", "feature", "start", "end", "score", "strand", "frame", "attributes"]
GTF_SUFFIXES = (".gtf", ".gtf.gz")
GENE_COLUMNS = ["gene_id", "gene_name", "chromosome", "start"]
AUTOSOMES = [f"chr{number}" for number in range(1, 23)]
CHROMOSOMES = [*AUTOSOMES, "chrX", "chrY", "chrM"]
UNPLACED = "unplaced"
VERSION = re.compile(r"^(ENS\w+)\.\d+")


def without_version(names: pd.Series) -> pd.Series:
    """Strip the version from Ensembl ids; a `_PAR_Y` after it stays, and symbols stay as they are."""
    return names.str.replace(VERSION, r"\1", regex=True)


def is_gtf(path: Path | str) -> bool:
    """Whether a file is a GTF by its name, .gtf or .gtf.gz."""
    return Path(path).name.lower().endswith(GTF_SUFFIXES)


def read_places(path: Path | str, key: str) -> pd.DataFrame:
    """Read where genes lie from a GTF (by its name, .gtf or .gtf.gz) or from a table (Parquet, CSV or TSV).

    A table has the columns `key`, chromosome, start and, where lengths are needed, length: the bases that a gene's
    exons cover together. Chromosomes may be named with or without `chr`.

    Parameters
    ----------
    path
        The file.
    key
        gene_id or gene_name: what the genes are known by. A gene_id may come once; of a gene_name with several places,
        as the pseudoautosomal genes have, the first in genomic order is taken.

    Returns
    -------
    frame
        Index `key`; chromosome (`UNPLACED` where there is none), start (int64) and, if the file tells it, length
        (float64).

    Raises
    ------
    MissingInputError
        If it is not there.
    ExpressionError
        If it is neither, lacks a column, or a cell makes no sense.
    """
    path = require_file(path, "gene positions")
    frame = read_gtf(path).reset_index() if is_gtf(path) else _places_of_table(path, read_frame(path), key)
    frame = frame.dropna(subset=[key])
    frame = in_genomic_order(frame.assign(gene_id=frame[key]))
    if key == "gene_name":
        frame = frame.drop_duplicates(key)
    twice = frame[key][frame[key].duplicated()]
    if len(twice):
        raise ExpressionError(f"{path}: the gene {twice.iloc[0]} comes twice; keep one")
    return frame.set_index(key)[[name for name in ("chromosome", "start", "length") if name in frame.columns]]


def read_gtf(path: Path | str) -> pd.DataFrame:
    """Read gene_name, chromosome, start and exon-union length (bases) of every gene of a GTF; index gene_id.

    Raises
    ------
    MissingInputError
        If it is not there.
    ExpressionError
        If it is no GTF, or a gene has no exon.
    """
    genes, exons = _gtf_lines(require_file(path, "gene annotation"))
    if genes.empty:
        raise ExpressionError(f"{path} holds no gene: it is no GTF")
    if genes["gene_id"].isna().any() or exons["gene_id"].isna().any():
        raise ExpressionError(f"{path}: a gene or an exon has no gene_id; give the annotation as GENCODE writes it")
    genes = genes.drop_duplicates("gene_id").set_index("gene_id")
    lengths = exon_union_lengths(exons["gene_id"], exons["start"].to_numpy(), exons["end"].to_numpy())
    genes = genes.join(lengths)
    bare = genes.index[genes["length"].isna()]
    if len(bare):
        raise ExpressionError(f"{path}: {len(bare)} genes have no exon, {bare[0]} the first; is the file cut short?")
    return genes.assign(chromosome=_chromosomes(genes["chromosome"]))


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


def in_genomic_order(genes: pd.DataFrame) -> pd.DataFrame:
    """Sort by chromosome (1 to 22, X, Y, M, then others by name, then the unplaced), start and gene_id."""
    others = sorted(set(genes["chromosome"]) - {*CHROMOSOMES, UNPLACED})
    rank = {name: k for k, name in enumerate([*CHROMOSOMES, *others, UNPLACED])}
    keyed = genes.assign(rank=genes["chromosome"].map(rank))
    return keyed.sort_values(["rank", "start", "gene_id"], kind="stable").drop(columns="rank")


def listed_genes(path: Path | str, genes: pd.DataFrame) -> np.ndarray:
    """Tell which genes a list names: one a line, an Ensembl id (of any version) or a symbol; `#` begins a comment.

    A symbol that several genes share names them all.

    Parameters
    ----------
    path
        The list, a text file.
    genes
        gene_id and gene_name of what there is.

    Returns
    -------
    bool ndarray, [genes]

    Raises
    ------
    MissingInputError
        If it is not there.
    ExpressionError
        If it is empty or no text, or names a gene that there is not.
    """
    try:
        lines = require_file(path, "list of genes").read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise ExpressionError(f"{path} is no list of genes, a text file of one a line: {problem}") from None
    names = pd.Series([line.partition("#")[0].strip() for line in lines], dtype=str)
    names = without_version(names[names != ""]).drop_duplicates()
    if names.empty:
        raise ExpressionError(f"{path} names no gene; write gene ids or symbols in it, one a line")
    gene_ids = without_version(genes["gene_id"])
    unknown = names[~(names.isin(gene_ids) | names.isin(genes["gene_name"]))].tolist()
    if unknown:
        raise ExpressionError(
            f"{path} names {len(unknown)} genes that the STAR tables do not have: {', '.join(unknown[:5])}"
            f"{', ...' if len(unknown) > 5 else ''}; correct or remove them"
        )
    return (gene_ids.isin(names) | genes["gene_name"].isin(names)).to_numpy()


def read_frame(path: Path) -> pd.DataFrame:
    """Read a table by its name: .parquet, .csv, or else TSV; the last two plain or gzipped.

    Raises
    ------
    ExpressionError
        If it is none of these, or two columns have one name.
    """
    kinds = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    try:
        if kinds and kinds[-1] == ".parquet":
            return pd.read_parquet(path)
        separator = "," if kinds and kinds[-1] == ".csv" else "\t"
        names = pd.read_csv(path, sep=separator, header=None, nrows=1, dtype=str).iloc[0]
        frame = pd.read_csv(path, sep=separator, low_memory=False)
    except (ValueError, OSError, EOFError, zlib.error, zipfile.BadZipFile) as problem:
        raise ExpressionError(f"{path} is not a readable Parquet, CSV or TSV table: {problem}") from None
    # pandas gives the second of two columns of one name another.
    twice = names[names.duplicated() & names.notna()]
    if len(twice):
        raise ExpressionError(f"{path}: the column {twice.iloc[0]} comes twice; keep one")
    return frame


def _places_of_table(path: Path, frame: pd.DataFrame, key: str) -> pd.DataFrame:
    """Check a table of positions, and give chromosomes, starts and lengths one form."""
    missing = [name for name in (key, "chromosome", "start") if name not in frame.columns]
    if missing:
        raise ExpressionError(f"{path} lacks the column {missing[0]}; it has {', '.join(map(str, frame.columns))}")
    frame = frame.assign(chromosome=_chromosomes(frame["chromosome"]))
    start = _numbers(path, frame, key, "start").astype(np.float64)
    endless = frame[np.isinf(start)]
    if len(endless):
        raise ExpressionError(f"{path}: the start of {endless[key].iloc[0]} is not finite")
    lost = frame[key][start.isna() & (frame["chromosome"] != UNPLACED)]
    if len(lost):
        raise ExpressionError(f"{path} has no start for the gene {lost.iloc[0]}; give one, or leave its chromosome out")
    frame = frame.assign(start=start.fillna(0).astype(np.int64))
    if "length" in frame.columns:
        frame = frame.assign(length=_numbers(path, frame, key, "length").astype(np.float64))
        short = frame[frame["length"] <= 0]
        if len(short):
            raise ExpressionError(
                f"{path}: the length of {short[key].iloc[0]} is {short['length'].iloc[0]:g}, not above 0"
            )
    return frame


def _numbers(path: Path, frame: pd.DataFrame, key: str, column: str) -> pd.Series:
    """Give a column as numbers, NaN where a cell is empty."""
    numbers = pd.to_numeric(frame[column], errors="coerce")
    bad = frame[numbers.isna() & frame[column].notna()]
    if len(bad):
        raise ExpressionError(f"{path}: the {column} of {bad[key].iloc[0]} is '{bad[column].iloc[0]}', not a number")
    return numbers


def _chromosomes(names: pd.Series) -> pd.Series:
    """Name chromosomes as GENCODE does, chr1 to chr22, chrX, chrY and chrM; other sequences keep their names."""
    # A column of whole numbers with a gap is read as 1.0, 2.0, ...
    text = names.astype(object).where(names.notna(), UNPLACED).astype(str).str.strip().str.removesuffix(".0")
    full = "chr" + text.str.replace("(?i)^chr", "", regex=True).str.upper().replace({"MT": "M"})
    return text.where(~full.isin(CHROMOSOMES), full)


def _gtf_lines(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read a GTF in blocks: its genes (gene_id, gene_name, chromosome, start) and its exons (gene_id, start, end)."""
    genes, exons = [], []
    try:
        with pa.input_stream(path, compression="detect") as stream:
            blocks = pcsv.open_csv(
                stream,
                pcsv.ReadOptions(column_names=GTF_COLUMNS, block_size=1 << 24, use_threads=False),
                pcsv.ParseOptions(delimiter="\t", quote_char=False, invalid_row_handler=_skip_comment),
                pcsv.ConvertOptions(
                    column_types=dict.fromkeys(GTF_COLUMNS, pa.string()) | {"start": pa.int64(), "end": pa.int64()},
                    include_columns=["feature", "chromosome", "start", "end", "attributes"],
                ),
            )
            for block in blocks:
                rows = block.filter(pc.equal(block["feature"], "gene"))
                named = [_attribute(rows, "gene_id"), _attribute(rows, "gene_name")]
                genes.append(pa.table([*named, rows["chromosome"], rows["start"]], GENE_COLUMNS))
                rows = block.filter(pc.equal(block["feature"], "exon"))
                gene_ids = _attribute(rows, "gene_id").dictionary_encode()
                exons.append(pa.table([gene_ids, rows["start"], rows["end"]], ["gene_id", "start", "end"]))
    except (pa.ArrowInvalid, OSError) as problem:
        raise ExpressionError(f"{path} is no GTF, or is cut short: {problem}") from None
    if not genes:
        raise ExpressionError(f"{path} is no GTF, or is cut short: it holds nothing but comments")
    return pa.concat_tables(genes).to_pandas(), pa.concat_tables(exons).unify_dictionaries().to_pandas()


def _attribute(rows: pa.RecordBatch, name: str) -> pa.Array:
    """Give one attribute of a GTF's rows, null where it is missing."""
    return pc.struct_field(pc.extract_regex(rows["attributes"], f'{name} "(?P<value>[^"]+)"'), "value")


def _skip_comment(row: pcsv.InvalidRow) -> str:
    return "skip" if row.text.startswith("#") else "error"
