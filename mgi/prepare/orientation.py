"""Which side of a matrix the cases are on, and what beside them is no case or no gene."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mgi.acquire.samples import is_said_not_tumour
from mgi.barcodes import Barcode, standardise_barcode
from mgi.console import log
from mgi.errors import ExpressionError
from mgi.names import first_few, quote
from mgi.prepare.genes import ENSEMBL
from mgi.prepare.layouts import CASE_COLUMNS, SAMPLE_COLUMNS, RawMatrix
from mgi.prepare.positions import Positions, normalise_column_name, read_positions, standardise_positions

COUNTERS = re.compile(r"^(__\w+|N_(unmapped|multimapping|noFeature|ambiguous))$")
# Columns beside the cases of a matrix of genes by cases that describe the genes.
GENE_COLUMNS = {
    "entrez_gene_id", "entrezid", "entrez_id", "gene_id", "hugo_symbol", "gene_name", "gene_symbol", "symbol", "gene",
    "description", "name", "length", "gene_length", "width", "chromosome", "chrom", "chr", "seqnames", "start", "end",
    "chromstart", "chromend", "strand", "cytoband", "locus_id", "gene_type", "gene_biotype", "biotype", "ensembl_id",
    "ensembl_gene_id", "id", "probe", "probe_id", "transcript_id", "accession", "level", "unnamed_0",
}  # fmt: skip


@dataclass
class Matrix:
    """Values of cases by genes, both known by text.

    Attributes
    ----------
    path : Path
    cases, genes : list of str
    values : float32 ndarray, [cases, genes]
        NaN where a cell is empty.
    leave_out : bool
        Whether what cannot be used is left out; else the table is refused.
    """

    path: Path
    cases: list[str]
    genes: list[str]
    values: np.ndarray
    leave_out: bool

    def drop(self, axis: str, unusable: Iterable[bool], why: str) -> None:
        """Leave out the cases or genes that cannot be used, or raise `ExpressionError` that names them."""
        mask = np.fromiter(unusable, bool)
        names = self.cases if axis == "cases" else self.genes
        found = [name for name, bad in zip(names, mask, strict=True) if bad]
        if found and not self.leave_out:
            raise ExpressionError(
                f"{self.path}: {len(found)} of {len(names)} {axis} {why}: {first_few(found)}; correct them, or have "
                "them left out"
            )
        if found:
            log.warning("%s: %d %s %s and are left out: %s", self.path, len(found), axis, why, first_few(found))
            self.keep(axis, ~mask)

    def keep(self, axis: str, chosen: np.ndarray) -> None:
        """Keep some cases or genes, by mask or index."""
        index = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        if axis == "cases":
            self.cases, self.values = [self.cases[k] for k in index], self.values[index]
        else:
            self.genes, self.values = [self.genes[k] for k in index], self.values[:, index]


def parse_barcode(name: str) -> Barcode | None:
    """Return the TCGA barcode that a name is in any case and joined by hyphens, dots or underscores."""
    return Barcode.parse(standardise_barcode(name))


def standardise_gene(name: str) -> str:
    """Return a gene's symbol or Ensembl id without what Firehose (SYMBOL|ENTREZ) and others append."""
    first, _, rest = name.strip().partition("|")
    return first if rest and first != "?" and (rest.isdigit() or ENSEMBL.match(first)) else name.strip()


def orient_matrix(raw: RawMatrix, places: Positions | None, leave_out: bool) -> Matrix:
    """Find which side the cases are on: barcodes tell, else the side on which the positions know more names."""
    barcodes = {k: [parse_barcode(cell) for cell in cells if cell] for k, cells in raw.text.items()}
    # Of samples rather than of patients, since those tell normal tissue.
    counts = {
        k: (sum(one is not None for one in found), sum(one is not None and one.sample is not None for one in found))
        for k, found in barcodes.items()
    }
    if not len(raw.values):
        raise ExpressionError(f"{raw.path} has a header but no rows")
    id_column = max(counts, key=lambda k: (counts[k], -k), default=0)
    if any(counts.get(id_column, ())):
        return _cases_in_rows(raw, id_column, leave_out)
    if any(parse_barcode(name) for name in raw.names):
        return _cases_in_columns(raw, places, leave_out)
    named = {normalise_column_name(name): k for k, name in reversed(list(enumerate(raw.names))) if k in raw.text}
    id_column = next((named[name] for name in CASE_COLUMNS if name in named), 0)
    if places is None:
        raise ExpressionError(f"{raw.path} does not say where its genes lie: give their positions")
    genes_in_columns = places.share_known([standardise_gene(raw.names[k]) for k in raw.numeric if k != id_column])
    genes_in_rows = max(
        (places.share_known([standardise_gene(cell) for cell in cells if cell]) for cells in raw.text.values()),
        default=0.0,
    )
    if not genes_in_columns and not genes_in_rows:
        raise ExpressionError(
            f"no gene of {raw.path} is in {places.where}: neither a column, such as "
            f"{quote(raw.names[-1])}, nor a row, such as {quote((raw.text.get(0) or [''])[0] or '')}"
        )
    if genes_in_rows > genes_in_columns:
        return _cases_in_columns(raw, places, leave_out)
    return _cases_in_rows(raw, id_column, leave_out)


def _cases_in_rows(raw: RawMatrix, id_column: int, leave_out: bool) -> Matrix:
    if id_column not in raw.text:
        raise ExpressionError(f"{raw.path}: no column names the cases")
    ids = {k for k in raw.text if normalise_column_name(raw.names[k]) in CASE_COLUMNS} | {id_column}
    _refuse_spoilt(raw, ids)
    left = [k for k in raw.text if k != id_column and (k not in raw.numeric or k in ids or _is_row_number(raw, k))]
    if left:
        names = first_few(raw.names[k] for k in left)
        log.info("%s: %d columns are no genes and are left out: %s", raw.path, len(left), names)
    used = [place for place, k in enumerate(raw.numeric) if k != id_column and k not in left]
    if not used:
        raise ExpressionError(f"{raw.path} holds no numbers")
    cases, kept = _named_rows(raw, raw.text[id_column], "case", False)
    values = raw.values[:, used] if len(used) < raw.values.shape[1] else raw.values
    matrix = Matrix(raw.path, cases, [raw.names[raw.numeric[place]] for place in used], values[kept], leave_out)
    _leave_out_normal(matrix, raw, left, kept)
    return matrix


def _leave_out_normal(matrix: Matrix, raw: RawMatrix, columns: list[int], kept: np.ndarray) -> None:
    """Leave out the cases of which a column beside the genes says that the sample is normal tissue or a control."""
    for k in columns:
        if normalise_column_name(raw.names[k]) not in SAMPLE_COLUMNS:
            continue
        said = [cell for cell, here in zip(raw.text[k], kept, strict=True) if here]
        normal = np.array([is_said_not_tumour(cell or "") for cell in said], bool)
        if normal.all():
            raise ExpressionError(f"{raw.path} holds no tumour sample by its column {raw.names[k]}: {first_few(said)}")
        if normal.any():
            left = [case for case, bad in zip(matrix.cases, normal, strict=True) if bad]
            log.info("%s: %d of %d samples are normal tissue or controls by the column %s and are left out: %s",
                     raw.path, len(left), len(said), raw.names[k], first_few(left))  # fmt: skip
            matrix.keep("cases", ~normal)
        return


def _cases_in_columns(raw: RawMatrix, places: Positions | None, leave_out: bool) -> Matrix:
    columns = {name: normalise_column_name(name) for name in raw.names}
    _refuse_spoilt(raw, {k for k in raw.text if columns[raw.names[k]] in GENE_COLUMNS})
    if not raw.text:
        raise ExpressionError(f"{raw.path}: its columns are cases but no column names the genes")
    gene_column = min(raw.text)
    if places is not None:
        share = {
            k: places.share_known([standardise_gene(cell) for cell in cells if cell]) for k, cells in raw.text.items()
        }
        gene_column = max(share, key=lambda k: (share[k], -k))
    used, left = [], []
    for place, k in enumerate(raw.numeric):
        is_gene_column = columns[raw.names[k]] in GENE_COLUMNS and not parse_barcode(raw.names[k])
        if k == gene_column or is_gene_column or not raw.names[k]:
            left += [raw.names[k]] * (k != gene_column)
        else:
            used.append(place)
    left += [raw.names[k] for k in raw.text if k != gene_column and k not in raw.numeric]
    if left:
        log.info("%s: %d columns are no cases and are left out: %s", raw.path, len(left), first_few(left))
    if not used:
        raise ExpressionError(f"{raw.path} holds no numbers")
    genes, kept = _named_rows(raw, raw.text[gene_column], "gene", leave_out)
    values = raw.values[kept][:, used].T
    return Matrix(raw.path, [raw.names[raw.numeric[place]] for place in used], genes, values, leave_out)


def _refuse_spoilt(raw: RawMatrix, labels: set[int]) -> None:
    """Refuse a column of numbers in which some cell is none, unless it is one of the labels of cases or genes."""
    for k, cell in raw.not_numbers.items():
        if k not in labels:
            raise ExpressionError(
                f"{raw.path}: the column {raw.names[k]} holds {quote(cell)}, not numbers; correct it, or leave it out"
            )
    text = [
        raw.names[k] for k in raw.text if k not in raw.numeric and standardise_barcode(raw.names[k]).startswith("TCGA-")
    ]
    if text:
        raise ExpressionError(f"{raw.path}: {len(text)} cases hold text, not numbers: {first_few(text)}")


def _is_row_number(raw: RawMatrix, k: int) -> bool:
    """Return whether a nameless column only counts the rows."""
    if normalise_column_name(raw.names[k]) not in ("", "unnamed_0", "index"):
        return False
    cells, count = raw.text[k], len(raw.text[k])
    return cells in ([str(n) for n in range(count)], [str(n) for n in range(1, count + 1)])


def _named_rows(raw: RawMatrix, names: list[str | None], what: str, leave_out: bool) -> tuple[list[str], np.ndarray]:
    """Return the names of the rows used and which they are: not counters nor, where asked, those without a name."""
    counters = [name for name in names if name and COUNTERS.match(name)]
    if counters:
        log.info(
            "%s: %d rows count reads of no gene and are left out: %s", raw.path, len(counters), first_few(counters)
        )
    nameless = [raw.locate(row) for row, name in enumerate(names) if not name]
    if nameless and not leave_out:
        raise ExpressionError(
            f"{raw.path}: {len(nameless)} rows have no name of a {what}: {', '.join(nameless[:3])}; name them, or have "
            "them left out"
        )
    if nameless:
        log.warning(
            "%s: %d rows have no name of a %s and are left out: %s",
            raw.path,
            len(nameless),
            what,
            ", ".join(nameless[:3]),
        )
    kept = np.array([name is not None and not COUNTERS.match(name) for name in names], dtype=np.bool_)
    return [name for name in names if name and not COUNTERS.match(name)], kept


def find_positions(raw: RawMatrix, path: Path | None) -> Positions | None:
    """Read the positions, or take those that the table has beside its genes; None where it has none."""
    if path is not None:
        return Positions(read_positions(path), path)
    frame = raw.places
    if frame is None:
        named = {normalise_column_name(name) for name in raw.names}
        if not named & {"chromosome", "chrom", "chr"} or not named & {"start", "chromstart"}:
            return None
        columns = {}
        for index, name in enumerate(raw.names):
            if normalise_column_name(name) in GENE_COLUMNS or not name:
                cells = raw.text.get(index)
                columns[name or "gene"] = cells or [f"{v:.0f}" for v in raw.values[:, raw.numeric.index(index)]]
        frame = pd.DataFrame(columns, dtype=object)
    frame = frame.rename(columns={frame.columns[0]: "gene"} if "gene" not in frame else {})
    if frame["gene"].map(lambda name: bool(name and ENSEMBL.match(str(name)))).all():
        frame = frame.assign(gene_id=frame["gene"])
    return Positions(standardise_positions(frame, raw.path), raw.path)
