"""A ready matrix of expression in any common layout: which side the cases are on, which samples and genes are used."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mgi.barcodes import Barcode
from mgi.config.prepare import Expression
from mgi.console import log
from mgi.delimited import check_unique
from mgi.errors import ExpressionError
from mgi.names import check_case_ids, first_few, quote
from mgi.prepare.genes import UNPLACED, sort_by_position, without_version
from mgi.prepare.layouts import RawMatrix, read_raw_matrix
from mgi.prepare.positions import (
    index_places,
    normalise_column_name,
    read_positions,
    standardise_positions,
)
from mgi.prepare.profiles import profile_writer, require_anndata, write_h5ad
from mgi.prepare.units import UNITS, check_unit, compute_tpm, recognise_unit
from mgi.tables import GENES_SCHEMA

ENSEMBL = re.compile(r"^ENS\w*G[R\d]\d+")
PRIMARY = "01"
COUNTERS = re.compile(r"^(__\w+|N_(unmapped|multimapping|noFeature|ambiguous))$")
CASE_COLUMNS = [
    "case_id", "case", "patient_id", "patient", "bcr_patient_barcode", "submitter_id", "sample_id", "sample", "barcode",
]  # fmt: skip
# Columns beside the cases of a matrix of genes by cases that describe the genes.
GENE_COLUMNS = {
    "entrez_gene_id", "entrezid", "entrez_id", "gene_id", "hugo_symbol", "gene_name", "gene_symbol", "symbol", "gene",
    "description", "name", "length", "gene_length", "width", "chromosome", "chrom", "chr", "seqnames", "start", "end",
    "chromstart", "chromend", "strand", "cytoband", "locus_id", "gene_type", "gene_biotype", "biotype", "ensembl_id",
    "ensembl_gene_id", "id", "probe", "probe_id", "transcript_id", "accession", "level", "unnamed_0",
}  # fmt: skip
# Symbols are in capitals but for C1orf112 and the like; other animals' have a capital and digits.
SYMBOL = re.compile(r"^(?:[A-Z0-9?][A-Z0-9.@_/|-]*|C[\dXY]+orf\d+\w*|[A-Z][A-Za-z]*\d[\w.-]*|ENS\w+.*)$")
CLINICAL_WORDS = {
    "AGE", "BATCH", "BMI", "CENSORED", "CENSORSHIP", "CLUSTER", "COHORT", "DAYS", "DFI", "DFS", "DSS", "EVENT",
    "FRACTION", "GENDER", "GRADE", "HEIGHT", "IDH", "KPS", "LABEL", "MONTHS", "MSI", "OS", "PFI", "PFS", "PURITY",
    "RACE", "SEX", "STAGE", "STATUS", "SUBTYPE", "SURVIVAL", "TIME", "TMB", "WEIGHT", "YEAR", "YEARS",
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
        order = sorted(self.by, key=lambda key: (-forms[key].isin(self.by[key].index).sum(), (key == "gene_id") != all_ensembl))
        return order[0], forms[order[0]]

    def share_known(self, names: list[str]) -> float:
        """Return the share of names that are genes with a position."""
        key, forms = self.choose_key(names)
        return float(forms.isin(self.by[key].index).mean()) if len(forms) else 0.0


def import_table(
    table: Path, positions: Path | None, output: Path | str, options: Expression, h5ad: Path | None = None
) -> None:
    """Import a ready matrix of cases by genes, either way round, as `output` and genes.parquet beside it.

    Cases are known by their TCGA barcodes (in any case, joined by `-`, `.` or `_`), or by ids of their own, which are
    text exactly as written. Where barcodes tell samples, normal tissue and controls (sample types 10 to 29) are left
    out, and of several samples of a case one is kept: a primary tumour (01) before others, then the lowest barcode.
    Genes are known by symbol or Ensembl id, whichever the positions know; those without a position come last, on the
    chromosome "unplaced". Counters such as `__no_feature` and columns that describe genes or hold no numbers are left
    out; the log counts and names whatever is.

    Parameters
    ----------
    table
        Delimited text, GCT, Parquet or AnnData; see `layouts`.
    positions
        Positions of the genes; None where the table itself has them.
    output
        expression.parquet.
    options
        `unit`: what the values are, a key of `UNITS`; None recognises it where only one fits (`recognise_unit`).
        `normalise`: whether counts become log2(TPM+1), as STAR counts do; the positions must then have lengths.
        `duplicates`: which of several rows of one gene is used: the first, their mean, or the one that varies most.
        `leave_out`: whether genes and cases that cannot be used are left out; else the table is refused.
    h5ad
        Write the table as AnnData here too.

    Raises
    ------
    MissingInputError
        If a file is not there.
    ExpressionError
        If cases or genes cannot be told apart, a case comes twice, no case is of a tumour, a value is missing, no gene
        has a position, or the unit is in doubt or contradicts the values.
    MissingPackageError
        If AnnData is read or written without the package anndata.
    """
    if h5ad is not None:
        require_anndata()
    raw = read_raw_matrix(table)
    places = _find_positions(raw, positions)
    matrix = _orient(raw, places, options.leave_out)
    _name_cases(matrix)
    _name_genes(matrix, places)
    aliquots = _choose_samples(matrix)
    _resolve_duplicates(matrix, options.duplicates)
    _check_values(matrix)
    genes = _place_genes(matrix, places)
    matrix.keep("genes", genes.index.to_numpy())
    unit, fitted = _settle_unit(matrix, options.unit or _unit_of_file(raw))
    if options.normalise:
        matrix.values, unit = _normalise_counts(matrix, genes, unit), "log2-tpm"
    log.info("%s: taken for %s, %d cases of %d genes", table, UNITS[unit], *matrix.values.shape)
    with profile_writer(output, genes[GENES_SCHEMA.names], UNITS[unit], fitted) as add:
        for case_id, aliquot, profile in zip(matrix.cases, aliquots, matrix.values, strict=True):
            add(case_id, aliquot, profile)
    if h5ad is not None:
        write_h5ad(output, h5ad)


def parse_barcode(name: str) -> Barcode | None:
    """Return the TCGA barcode that a name is in any case and joined by hyphens, dots or underscores."""
    return Barcode.parse(standardise_barcode(name))


def standardise_barcode(name: str) -> str:
    """Return a name in capitals joined by hyphens, the form of a TCGA barcode."""
    return re.sub(r"[._ ]", "-", name.strip()).upper()


def _find_positions(raw: RawMatrix, path: Path | None) -> Positions | None:
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


def _orient(raw: RawMatrix, places: Positions | None, leave_out: bool) -> Matrix:
    """Find which side the cases are on: barcodes tell, else the side on which the positions know more names."""
    barcodes = {k: sum(cell is not None and parse_barcode(cell) is not None for cell in cells) for k, cells in raw.text.items()}
    id_column = max(barcodes, key=lambda k: (barcodes[k], -k), default=0)
    if barcodes.get(id_column):
        return _cases_in_rows(raw, id_column, leave_out)
    if any(parse_barcode(name) for name in raw.names):
        return _cases_in_columns(raw, places, leave_out)
    named = {normalise_column_name(name): k for k, name in reversed(list(enumerate(raw.names))) if k in raw.text}
    id_column = next((named[name] for name in CASE_COLUMNS if name in named), 0)
    if places is None:
        raise ExpressionError(f"{raw.path} does not say where its genes lie: give their positions")
    genes_in_columns = places.share_known([_canonical_gene(raw.names[k]) for k in raw.numeric if k != id_column])
    genes_in_rows = max(
        (places.share_known([_canonical_gene(cell) for cell in cells if cell]) for cells in raw.text.values()), default=0.0
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
    _refuse_spoilt(raw, lambda name: True)
    left = [k for k in raw.text if k != id_column and (k not in raw.numeric or _is_row_number(raw, k))]
    if left:
        names = first_few(raw.names[k] for k in left)
        log.info("%s: %d columns are no genes and are left out: %s", raw.path, len(left), names)
    used = [place for place, k in enumerate(raw.numeric) if k != id_column and k not in left]
    if not used:
        raise ExpressionError(f"{raw.path} holds no numbers")
    cases, kept = _named_rows(raw, raw.text[id_column], "case", False)
    values = raw.values[:, used] if len(used) < raw.values.shape[1] else raw.values
    return Matrix(raw.path, cases, [raw.names[raw.numeric[place]] for place in used], values[kept], leave_out)


def _cases_in_columns(raw: RawMatrix, places: Positions | None, leave_out: bool) -> Matrix:
    columns = {name: normalise_column_name(name) for name in raw.names}
    _refuse_spoilt(raw, lambda name: columns[name] not in GENE_COLUMNS)
    if not raw.text:
        raise ExpressionError(f"{raw.path}: its columns are cases but no column names the genes")
    gene_column = min(raw.text)
    if places is not None:
        share = {k: places.share_known([_canonical_gene(cell) for cell in cells if cell]) for k, cells in raw.text.items()}
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


def _refuse_spoilt(raw: RawMatrix, is_used: Callable[[str], bool]) -> None:
    """Refuse a column of numbers in which some cell is none."""
    for k, cell in raw.not_numbers.items():
        if is_used(raw.names[k]):
            raise ExpressionError(
                f"{raw.path}: the column {raw.names[k]} holds {quote(cell)}, not numbers; correct it, or leave it out"
            )
    text = [raw.names[k] for k in raw.text if k not in raw.numeric and standardise_barcode(raw.names[k]).startswith("TCGA-")]
    if text:
        raise ExpressionError(f"{raw.path}: {len(text)} cases hold text, not numbers: {first_few(text)}")


def _is_row_number(raw: RawMatrix, k: int) -> bool:
    """Return whether a nameless column only counts the rows."""
    if normalise_column_name(raw.names[k]) not in ("", "unnamed_0", "index"):
        return False
    cells, count = raw.text[k], len(raw.text[k])
    return cells in ([str(n) for n in range(count)], [str(n) for n in range(1, count + 1)])


def _named_rows(raw: RawMatrix, names: list[str | None], what: str, leave_out: bool) -> tuple[list[str], np.ndarray]:
    """Return the names of the rows and which rows are used: counters are not, nor, where asked, those without a name."""
    counters = [name for name in names if name and COUNTERS.match(name)]
    if counters:
        log.info("%s: %d rows count reads of no gene and are left out: %s", raw.path, len(counters), first_few(counters))
    nameless = [raw.locate(row) for row, name in enumerate(names) if not name]
    if nameless and not leave_out:
        raise ExpressionError(
            f"{raw.path}: {len(nameless)} rows have no name of a {what}: {', '.join(nameless[:3])}; name them, or have "
            "them left out"
        )
    if nameless:
        log.warning("%s: %d rows have no name of a %s and are left out: %s", raw.path, len(nameless), what, ", ".join(nameless[:3]))
    kept = np.array([bool(name) and not COUNTERS.match(name) for name in names], bool)
    return [name for name, used in zip(names, kept, strict=True) if name and used], kept


def _name_cases(matrix: Matrix) -> None:
    """Write barcodes in one form; where some cases have one, all must."""
    barcodes = [parse_barcode(name) for name in matrix.cases]
    if any(barcodes):
        matrix.drop("cases", (barcode is None for barcode in barcodes), "have no TCGA barcode, as the others have")
        matrix.cases = [standardise_barcode(name) for name in matrix.cases]
    matrix.drop("cases", np.isnan(matrix.values).all(axis=1), "have no value")
    matrix.cases = check_case_ids(matrix.cases, str(matrix.path), ExpressionError)
    check_unique(matrix.cases, "case", matrix.path, ExpressionError)


def _canonical_gene(name: str) -> str:
    """Return a gene's symbol or Ensembl id without what Firehose (SYMBOL|ENTREZ) and others append."""
    first, _, rest = name.strip().partition("|")
    return first if rest and first != "?" and (rest.isdigit() or ENSEMBL.match(first)) else name.strip()


def _name_genes(matrix: Matrix, places: Positions | None) -> None:
    """Write genes by their symbol or id, and leave out or refuse what is none."""
    matrix.genes = [_canonical_gene(name) for name in matrix.genes]
    nameless = sum(not name for name in matrix.genes)
    if nameless:
        raise ExpressionError(f"{matrix.path}: {nameless} genes have no name; name them or leave them out")
    if places is not None:
        key, forms = places.choose_key(matrix.genes)
        known = forms.isin(places.by[key].index)
        matrix.drop(
            "genes",
            (not here and not _looks_like_gene(name) for name, here in zip(matrix.genes, known, strict=True)),
            "are no genes",
        )
    matrix.drop("genes", np.isnan(matrix.values).all(axis=0), "have no value")


def _looks_like_gene(name: str) -> bool:
    """Return whether a name without a position may still be a gene's."""
    return bool(SYMBOL.match(name)) and not CLINICAL_WORDS & set(re.split(r"[^A-Z0-9]+", name.upper()))


def _choose_samples(matrix: Matrix) -> list[str | None]:
    """Keep the tumour sample of each case that the rule says, sorted by case; return their barcodes."""
    parsed = {name: Barcode.parse(name) for name in matrix.cases}

    def case_of(name: str) -> str:
        barcode = parsed[name]
        return barcode.case_id if barcode else name

    def rank(name: str) -> tuple[str, bool, str]:
        barcode = parsed[name]
        return case_of(name), ((barcode.sample or "") if barcode else "") != PRIMARY, name

    tumours = [name for name in sorted(matrix.cases, key=rank) if not (parsed[name] and parsed[name].is_tumour is False)]
    if not tumours:
        raise ExpressionError(
            f"{matrix.path} holds no tumour sample: all are normal tissue or controls, such as {min(matrix.cases)}"
        )
    if len(tumours) < len(matrix.cases):
        left = [name for name in matrix.cases if name not in set(tumours)]
        log.info("%s: %d of %d samples are normal tissue or controls and are left out: %s",
                 matrix.path, len(left), len(matrix.cases), first_few(left))  # fmt: skip
    # The first of a case is the one to keep.
    kept = {case_of(name): name for name in reversed(tumours)}
    chosen = list(kept.values())[::-1]
    if len(chosen) < len(tumours):
        left = [name for name in tumours if name not in set(chosen)]
        log.info(
            "%s: %d samples are of cases that have another; a primary tumour, then the lowest barcode, is kept: %s "
            "left out", matrix.path, len(left), first_few(left),
        )  # fmt: skip
    place = {name: k for k, name in enumerate(matrix.cases)}
    matrix.keep("cases", np.array([place[name] for name in chosen]))
    matrix.cases = [case_of(name) for name in chosen]
    return [name if name != case_id else None for name, case_id in zip(chosen, matrix.cases, strict=True)]


def _resolve_duplicates(matrix: Matrix, rule: str) -> None:
    """Use one row of a gene that has several, by a rule; versions of an Ensembl id are one gene."""
    codes, names = pd.factorize(without_version(pd.Series(matrix.genes, dtype=str)))
    counts = np.bincount(codes, minlength=len(names))
    if (counts == 1).all():
        return
    repeated = [name for name, count in zip(names, counts, strict=True) if count > 1]
    said = {"first": "the first is used", "mean": "their mean is used", "max-variance": "the one that varies most is used"}
    log.warning("%s: %d genes have several rows or columns; of each %s: %s",
                matrix.path, len(repeated), said[rule], first_few(repeated))  # fmt: skip
    chosen = np.full(len(names), -1)
    variance = np.nan_to_num(matrix.values.var(axis=0, dtype=np.float64), nan=-1.0) if rule == "max-variance" else None
    for place, code in enumerate(codes):
        if chosen[code] < 0 or (variance is not None and variance[place] > variance[chosen[code]]):
            chosen[code] = place
    if rule == "mean":
        for code in np.flatnonzero(counts > 1):
            members = np.flatnonzero(codes == code)
            matrix.values[:, chosen[code]] = matrix.values[:, members].mean(axis=1, dtype=np.float64)
    matrix.keep("genes", np.sort(chosen))


def _check_values(matrix: Matrix) -> None:
    """Refuse missing and infinite values, and a table of zeros."""
    incomplete = [name for name, bad in zip(matrix.genes, ~np.isfinite(matrix.values).all(axis=0), strict=True) if bad]
    if incomplete:
        raise ExpressionError(
            f"{matrix.path}: {len(incomplete)} genes lack a value that float32 holds for some case: "
            f"{first_few(incomplete)}; fill them in or leave these genes out"
        )
    if not matrix.values.any():
        raise ExpressionError(f"{matrix.path} holds nothing but zeros; give the table that was meant")


def _place_genes(matrix: Matrix, places: Positions | None) -> pd.DataFrame:
    """Return the genes in genomic order; the index says which column each is."""
    if places is None:
        raise ExpressionError(f"{matrix.path} does not say where its genes lie: give their positions")
    key, forms = places.choose_key(matrix.genes)
    genes = pd.DataFrame({"gene_id": matrix.genes, "gene_name": matrix.genes, "gene_type": None})
    if key == "gene_id":
        genes["gene_id"] = forms
    genes = genes.join(places.by[key], on=key)
    unplaced = genes[key][genes["start"].isna()].tolist()
    if len(unplaced) == len(genes):
        raise ExpressionError(f"no gene of {matrix.path} is in {places.where}: {unplaced[0]}, for one, is no {key} there")
    if 2 * len(unplaced) > len(genes):
        raise ExpressionError(
            f"{len(unplaced)} of {len(genes)} genes of {matrix.path} have no position in {places.where}: "
            f"{first_few(unplaced)}; leave out what is no gene, or give positions of these genes"
        )
    if unplaced:
        log.warning("%s: %d genes have no position and come last: %s", matrix.path, len(unplaced), first_few(unplaced))
    genes = genes.fillna({"chromosome": UNPLACED, "start": 0}).astype({"start": np.int64})
    return sort_by_position(genes)


def _unit_of_file(raw: RawMatrix) -> str | None:
    """Return the unit that the file states, None where it states none that is known."""
    return next((key for key, unit in UNITS.items() if raw.unit in (key, unit)), None)


def _settle_unit(matrix: Matrix, stated: str | None) -> tuple[str, str]:
    """Return the unit of the values, and whether their scale was fitted outside our folds."""
    unit = stated or recognise_unit(matrix.values)
    if unit is None:
        low, high = matrix.values.min(), matrix.values.max()
        raise ExpressionError(
            f"{matrix.path}: its values, {low:g} to {high:g}, could be of several units; state which: {', '.join(UNITS)}"
        )
    check_unit(matrix.values, unit, matrix.path)
    return unit, "outside the folds" if unit == "z-score" else "none"


def _normalise_counts(matrix: Matrix, genes: pd.DataFrame, unit: str) -> np.ndarray:
    """Turn counts into log2(TPM+1) over the genes of the table, float32 [cases, genes]."""
    if unit != "counts":
        raise ExpressionError(f"{matrix.path} holds {UNITS[unit]}: only counts are normalised")
    if "length" not in genes or genes["length"].isna().any():
        lacking = genes["gene_id"].tolist() if "length" not in genes else genes["gene_id"][genes["length"].isna()].tolist()
        raise ExpressionError(
            f"{len(lacking)} genes of {matrix.path} have no length, the bases of their exons: {first_few(lacking)}; give "
            "a GTF, or leave the counts as they are"
        )
    empty = [case for case, profile in zip(matrix.cases, matrix.values, strict=True) if not profile.any()]
    if empty:
        raise ExpressionError(f"{matrix.path}: {len(empty)} cases count no read: {first_few(empty)}")
    lengths = genes["length"].to_numpy(np.float64)
    return np.stack([np.log2(compute_tpm(profile, lengths) + 1) for profile in matrix.values.astype(np.float64)]).astype(np.float32)
