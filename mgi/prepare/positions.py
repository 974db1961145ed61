"""Where genes lie and how long they are: GTF, GFF3, and the tables of BioMart, Xena or one's own."""

import codecs
import re
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv

from mgi.delimited import PARSER_ERRORS, check_unique, unpacked_limit
from mgi.errors import ExpressionError
from mgi.files import require_file
from mgi.names import first_few, quote
from mgi.prepare.genes import CHROMOSOMES, ENSEMBL, UNPLACED, sort_by_position, without_version
from mgi.tables import read_any_table

GTF_COLUMNS = ["chromosome", "source", "feature", "start", "end", "score", "strand", "frame", "attributes"]
GTF_SUFFIXES = (".gtf", ".gtf.gz")
GFF3_SUFFIXES = (".gff3", ".gff3.gz", ".gff", ".gff.gz")
GENE_FEATURES = ["gene", "ncRNA_gene", "pseudogene"]
# What each column is called by BioMart, biomaRt, Xena's probemaps and UCSC; the first that is there is taken.
COLUMN_NAMES = {
    "gene_id": ["gene_id", "gene_stable_id_version", "gene_stable_id", "ensembl_gene_id_version", "ensembl_gene_id",
                "ensembl_id", "id"],
    "gene_name": ["gene_name", "external_gene_name", "hgnc_symbol", "gene_symbol", "hugo_symbol", "symbol", "gene"],
    "chromosome": ["chromosome", "chromosome_scaffold_name", "chromosome_name", "chrom", "chr", "seqnames", "seqname"],
    "start": ["start", "gene_start_bp", "start_position", "chromstart", "start_bp"],
    "length": ["length"],
}  # fmt: skip
_BLOCK_BYTES = 1 << 24
_REFSEQ_CHROMOSOME = re.compile(r"^NC_0000(\d\d)\.\d+$")
_REFSEQ_NAMES = {23: "chrX", 24: "chrY"} | {number: f"chr{number}" for number in range(1, 23)}


class Positions:
    """Where genes lie, by id and by symbol.

    Parameters
    ----------
    frame
        chromosome and start of genes with their gene_id, gene_name or both.
    where
        What they were read from.
    """

    def __init__(self, frame: pd.DataFrame, where: object) -> None:
        self.where = where
        self.by: dict[str, pd.DataFrame] = {}
        if "gene_name" in frame:
            self.by["gene_name"] = index_places(frame, "gene_name", where)
        if "gene_id" in frame:
            named = frame.dropna(subset=["gene_id"])
            self.by["gene_id"] = index_places(
                named.assign(gene_id=without_version(named["gene_id"].astype(str))), "gene_id", where
            )

    def choose_key(self, names: list[str]) -> tuple[str, pd.Series]:
        """Return what most of some names are, gene_id or gene_name, and the names in its form."""
        if not names:
            return next(iter(self.by)), pd.Series([], dtype=str)
        forms = {"gene_name": pd.Series(names, dtype=str)}
        forms["gene_id"] = without_version(forms["gene_name"])
        all_ensembl = all(map(ENSEMBL.match, names))
        order = sorted(
            self.by, key=lambda key: (-forms[key].isin(self.by[key].index).sum(), (key == "gene_id") != all_ensembl)
        )
        return order[0], forms[order[0]]

    def share_known(self, names: list[str]) -> float:
        """Return the share of names that are genes with a position."""
        key, forms = self.choose_key(names)
        return float(forms.isin(self.by[key].index).mean()) if len(forms) else 0.0


def is_gtf(path: Path | str) -> bool:
    """Return whether a file is an annotation of genes by its name: GTF or GFF3, plain or gzipped."""
    return Path(path).name.lower().endswith(GTF_SUFFIXES + GFF3_SUFFIXES)


def normalise_column_name(name: str) -> str:
    """Return a column's name in lower case with `_` for all but letters and digits."""
    return re.sub(r"[^a-z0-9]+", "_", str(name).casefold()).strip("_")


def read_places(path: Path | str, key: str) -> pd.DataFrame:
    """Read where genes lie, by one of their names.

    Parameters
    ----------
    path
        An annotation (GTF or GFF3, by its name) or a table (Parquet or delimited text) with `key`, chromosome, start
        and, where lengths are needed, length: the bases that a gene's exons cover together. The columns may be named
        as BioMart and Xena name them, chromosomes with or without `chr`.
    key
        gene_id or gene_name: what the genes are known by. A gene_id has one place; of a gene_name with several places,
        as the pseudoautosomal genes have, the first in genomic order is taken.

    Returns
    -------
    frame
        Index `key`; chromosome (`UNPLACED` where there is none), start (int64) and, if the file has it, length
        (float64).

    Raises
    ------
    MissingInputError
        If it is not there.
    ExpressionError
        If it is neither, lacks a column, or a cell makes no sense.
    """
    return index_places(read_positions(path, [key]), key, path)


def read_positions(path: Path | str, keys: list[str] | None = None) -> pd.DataFrame:
    """Read chromosome, start and, where told, length of genes with their gene_id, gene_name or both.

    Parameters
    ----------
    path
        As in `read_places`.
    keys
        The columns of names that it must have; None for either.

    Raises as `read_places` does.
    """
    path = require_file(path, "gene positions")
    if is_gtf(path):
        return read_gtf(path).reset_index()
    return standardise_positions(read_any_table(path, "table of positions", error=ExpressionError), path, keys)


def index_places(positions: pd.DataFrame, key: str, where: object) -> pd.DataFrame:
    """Index positions by `key` in genomic order; returns and raises as `read_places`."""
    frame = positions.dropna(subset=[key])
    frame = sort_by_position(frame.assign(gene_id=frame[key]))
    # BioMart writes a row per transcript.
    frame = frame.drop_duplicates(key if key == "gene_name" else [key, "chromosome", "start"])
    check_unique(frame[key].tolist(), "gene", where, ExpressionError)
    return frame.set_index(key)[[name for name in ("chromosome", "start", "length") if name in frame.columns]]


def read_gtf(path: Path | str) -> pd.DataFrame:
    """Read gene_name, chromosome, start and exon-union length (bases) of every gene of a GTF or GFF3; index gene_id.

    Raises
    ------
    MissingInputError
        If it is not there.
    ExpressionError
        If it is neither, or a gene has no exon.
    """
    genes, exons = _read_features(require_file(path, "gene annotation"))
    if genes.empty:
        raise ExpressionError(f"{path} holds no gene: it is no GTF or GFF3")
    if genes["gene_id"].isna().any() or exons["gene_id"].isna().any():
        raise ExpressionError(f"{path}: a gene or an exon has no gene_id; give the annotation as GENCODE writes it")
    genes = genes.drop_duplicates("gene_id").set_index("gene_id")
    genes = genes.join(exon_union_lengths(exons["gene_id"], exons["start"].to_numpy(), exons["end"].to_numpy()))
    bare = genes.index[genes["length"].isna()]
    if len(bare):
        raise ExpressionError(f"{path}: {len(bare)} genes have no exon, {bare[0]} the first; is the file cut short?")
    return genes.assign(chromosome=standardise_chromosomes(genes["chromosome"]))


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


def standardise_positions(frame: pd.DataFrame, where: object, keys: list[str] | None = None) -> pd.DataFrame:
    """Return the columns of `COLUMN_NAMES` that a table has, chromosomes, starts and lengths checked.

    Raises
    ------
    ExpressionError
        If a column is missing or a cell makes no sense.
    """
    present = {normalise_column_name(name): name for name in reversed(list(frame.columns))}
    found = {
        column: next(present[name] for name in names if name in present)
        for column, names in COLUMN_NAMES.items()
        if any(name in present for name in names)
    }
    for name in (*(keys or ()), "chromosome", "start"):
        if name not in found:
            raise ExpressionError(f"{where} lacks the column {name}; it has {', '.join(list(frame.columns)[:12])}")
    names = [name for name in ("gene_name", "gene_id") if name in found]
    if not names:
        raise ExpressionError(f"{where} lacks a column gene_id or gene_name; it has {', '.join(frame.columns[:12])}")
    table = pd.DataFrame({name: frame[column] for name, column in found.items()}, dtype=object)
    table = table.dropna(subset=keys or names, how="all" if keys is None else "any")
    label = table[keys[0] if keys else names[0]]
    table["chromosome"] = standardise_chromosomes(table["chromosome"])
    start = _parse_numbers(table["start"], label, "start", where)
    lost = label[start.isna() & (table["chromosome"] != UNPLACED)]
    if len(lost):
        raise ExpressionError(
            f"{where} has no start for the gene {lost.iloc[0]}; give one, or leave its chromosome out"
        )
    table["start"] = start.fillna(0).astype(np.int64)
    if "length" in table:
        table["length"] = _parse_numbers(table["length"], label, "length", where)
        short = table["length"][table["length"] <= 0]
        if len(short):
            raise ExpressionError(f"{where}: the length of {label[short.index[0]]} is {short.iloc[0]:g}, not above 0")
    return table


def standardise_chromosomes(names: pd.Series) -> pd.Series:
    """Name chromosomes as GENCODE does, chr1 to chr22, chrX, chrY and chrM; other sequences keep their names."""
    # A column of whole numbers with a gap is written as 1.0, 2.0, ...
    text = names.astype(object).where(names.notna(), UNPLACED).astype(str).str.strip().str.removesuffix(".0")
    text = text.map(_from_refseq)
    full = "chr" + text.str.replace("(?i)^chr", "", regex=True).str.upper().replace({"MT": "M"})
    return text.where(~full.isin(CHROMOSOMES), full)


def _from_refseq(name: str) -> str:
    match = _REFSEQ_CHROMOSOME.match(name)
    return _REFSEQ_NAMES.get(int(match[1]), name) if match else "chrM" if name.startswith("NC_012920.") else name


def _parse_numbers(cells: pd.Series, label: pd.Series, column: str, where: object) -> pd.Series:
    """Return a column as float64, NaN where a cell is empty."""
    numbers = pd.to_numeric(cells, errors="coerce").astype(np.float64)
    bad = cells[numbers.isna() & cells.notna()]
    if len(bad):
        raise ExpressionError(f"{where}: the {column} of {label[bad.index[0]]} is {quote(bad.iloc[0])}, not a number")
    endless = label[~(numbers.abs() < 2**53) & numbers.notna()]
    if len(endless):
        raise ExpressionError(f"{where}: the {column} of {first_few(endless)} is not finite or beyond any genome")
    return numbers


def _read_features(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read an annotation in blocks: genes (gene_id, gene_name, chromosome, start) and exons (gene_id, start, end)."""
    gff3 = path.name.lower().endswith(GFF3_SUFFIXES)
    read_genes, read_exons = (_gff3_genes, _gff3_exons) if gff3 else (_gtf_genes, _gtf_exons)
    genes, exons = [], []
    parents: dict[str, str] = {}
    try:
        check = _TextCheck(unpacked_limit(path.stat().st_size))
        with pa.input_stream(path, compression="detect") as stream:
            blocks = pcsv.open_csv(
                pa.TransformInputStream(stream, check),
                pcsv.ReadOptions(column_names=GTF_COLUMNS, block_size=_BLOCK_BYTES, use_threads=False),
                pcsv.ParseOptions(delimiter="\t", quote_char=False, invalid_row_handler=_skip_comment),
                pcsv.ConvertOptions(
                    column_types=dict.fromkeys(GTF_COLUMNS, pa.string()) | {"start": pa.int64(), "end": pa.int64()},
                    include_columns=["feature", "chromosome", "start", "end", "attributes"],
                ),
            )
            for block in blocks:
                genes.append(read_genes(block))
                exons.append(read_exons(block.filter(pc.equal(block["feature"], "exon"))))
                if gff3:
                    parents |= _gff3_parents(block)
            if check.pending:
                raise ValueError("it ends within a character")
    except PARSER_ERRORS as error:
        raise ExpressionError(f"{path} is no GTF or GFF3, or is cut short: {error}") from error
    if not genes:
        raise ExpressionError(f"{path} is no GTF or GFF3, or is cut short: it holds nothing but comments")
    table = pa.concat_tables(exons).unify_dictionaries().to_pandas()
    if gff3:
        # An exon names its transcript, and that its gene.
        table["gene_id"] = table["gene_id"].map(lambda name: _strip_prefix(parents.get(str(name), str(name))))
    return pa.concat_tables(genes).to_pandas(), table


class _TextCheck:
    """Pass on bytes that are UTF-8, up to a limit; pyarrow itself meets others only in a callback that cannot raise."""

    def __init__(self, limit: int) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._limit, self._passed = limit, 0
        self.pending = b""

    def __call__(self, data: bytes) -> bytes:
        self._passed += len(data)
        if self._passed > self._limit:
            raise ValueError(f"it unpacks to more than {self._limit} bytes")
        content = self.pending + bytes(data)
        self._decoder.decode(data)
        self.pending = self._decoder.getstate()[0]
        return content[: len(content) - len(self.pending)]


def _gtf_genes(block: pa.RecordBatch) -> pa.Table:
    rows = block.filter(pc.equal(block["feature"], "gene"))
    columns = [_gtf_attribute(rows, "gene_id"), _gtf_attribute(rows, "gene_name"), rows["chromosome"], rows["start"]]
    return pa.table(columns, ["gene_id", "gene_name", "chromosome", "start"])


def _gtf_exons(rows: pa.RecordBatch) -> pa.Table:
    gene_ids = _gtf_attribute(rows, "gene_id").dictionary_encode()
    return pa.table([gene_ids, rows["start"], rows["end"]], ["gene_id", "start", "end"])


def _gtf_attribute(rows: pa.RecordBatch, name: str) -> pa.Array:
    """Return one attribute of a GTF's rows, null where it is missing."""
    return pc.struct_field(pc.extract_regex(rows["attributes"], f'{name} "(?P<value>[^"]+)"'), "value")


def _gff3_genes(block: pa.RecordBatch) -> pa.Table:
    rows = block.filter(pc.is_in(block["feature"], pa.array(GENE_FEATURES)))
    ids = pc.coalesce(_gff3_attribute(rows, "gene_id"), _gff3_attribute(rows, "ID"))
    names = pc.coalesce(*(_gff3_attribute(rows, name) for name in ("gene_name", "Name", "gene")))
    gene_ids = pa.array([_strip_prefix(name) if name else None for name in ids.to_pylist()], pa.string())
    gene_names = pa.array([name and unquote(name) for name in names.to_pylist()], pa.string())
    return pa.table([gene_ids, gene_names, rows["chromosome"], rows["start"]],
                    ["gene_id", "gene_name", "chromosome", "start"])  # fmt: skip


def _gff3_exons(rows: pa.RecordBatch) -> pa.Table:
    gene_ids = pc.coalesce(_gff3_attribute(rows, "gene_id"), _gff3_attribute(rows, "Parent")).dictionary_encode()
    return pa.table([gene_ids, rows["start"], rows["end"]], ["gene_id", "start", "end"])


def _gff3_parents(block: pa.RecordBatch) -> dict[str, str]:
    """Return the parent of every feature that is neither a gene nor an exon."""
    rows = block.filter(pc.invert(pc.is_in(block["feature"], pa.array([*GENE_FEATURES, "exon", "CDS"]))))
    ids, parents = _gff3_attribute(rows, "ID").to_pylist(), _gff3_attribute(rows, "Parent").to_pylist()
    return {name: parent for name, parent in zip(ids, parents, strict=True) if name and parent}


def _gff3_attribute(rows: pa.RecordBatch, name: str) -> pa.Array:
    """Return one attribute of a GFF3's rows, the first value of several, null where it is missing."""
    pattern = f"(?:^|;) *{name}=(?P<value>[^;,]+)"
    return pc.struct_field(pc.extract_regex(rows["attributes"], pattern), "value")


def _strip_prefix(name: str) -> str:
    """Return an id without the `gene:` of Ensembl or the `gene-` of the NCBI."""
    return unquote(re.sub("^gene[:-]", "", name))


def _skip_comment(row: pcsv.InvalidRow) -> str:
    return "skip" if row.text.startswith("#") else "error"
