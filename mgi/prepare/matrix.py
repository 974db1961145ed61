"""A ready matrix of expression in any common layout: which samples and genes of it are used, and in which unit."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from mgi.barcodes import Barcode, is_tumour, standardise_barcode
from mgi.config import TableImport
from mgi.console import log
from mgi.delimited import check_unique
from mgi.errors import ExpressionError
from mgi.names import MAX_NAME_LENGTH, check_case_ids, first_few
from mgi.prepare.genes import UNPLACED, sort_by_position, without_version
from mgi.prepare.layouts import RawMatrix, read_raw_matrix
from mgi.prepare.orientation import (
    Matrix,
    find_positions,
    orient_matrix,
    parse_barcode,
    standardise_gene,
)  # fmt: skip
from mgi.prepare.positions import Positions
from mgi.prepare.profiles import profile_writer, require_anndata, write_h5ad
from mgi.prepare.units import UNITS, check_unit, compute_tpm, find_fitting_units
from mgi.tables import GENES_SCHEMA

PRIMARY = "01"
# Symbols hold a capital and no space; a spreadsheet makes dates such as 1-Mar, Mar-01 or 1-Mrz-21, or numbers, of some.
NO_SYMBOL = re.compile(
    r"^[a-z_.-]*$|[\s()]|^\d{1,2}-[^\W\d_]{3,5}(-\d{2,4})?$|^[A-Z][a-z]{2,3}-\d{2,4}$|^[\d./:-]+([Ee]\+?\d+)?$"
)
CLINICAL_WORDS = {
    "AGE", "BATCH", "BMI", "CENSORED", "CENSORSHIP", "CLUSTER", "COHORT", "COUNT", "DAYS", "DFI", "DFS", "DSS",
    "EVENT", "FRACTION", "GENDER", "GRADE", "HEIGHT", "IDH", "INDEX", "KPS", "LABEL", "MONTHS", "MSI", "MUTATION",
    "MUTATIONS", "OS", "PATIENT", "PFI", "PFS", "PLOIDY", "PURITY", "RACE", "RISK", "SAMPLE", "SCORE", "SEX", "STAGE",
    "STATUS", "SUBTYPE", "SURVIVAL", "TIME", "TMB", "WEIGHT", "YEAR", "YEARS",
}  # fmt: skip


def import_table(
    table: Path, positions: Path | None, output: Path | str, options: TableImport, h5ad: Path | None = None
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
        `table_unit`: what the values are, a key of `UNITS`; None recognises it where only one fits.
        `normalise`: whether counts become log2(TPM+1), as STAR counts do; the positions must then have lengths.
        `duplicates`: which of several rows of one gene is used: the first, their mean, or the one that varies most.
        `leave_out`: whether genes and cases that cannot be used are left out; else the table is refused.
    h5ad
        Where the table is also written as AnnData; None writes none.

    Raises
    ------
    MissingInputError
        If a file is not there.
    ExpressionError
        If cases or genes cannot be told apart, a case is duplicate, no sample is tumour, a value is missing, no gene
        has a position, or the unit is in doubt or contradicts the values.
    MissingPackageError
        If AnnData is read or written without the package anndata.
    """
    if h5ad is not None:
        require_anndata()
    raw = read_raw_matrix(table)
    places, matrix = _orient(raw, positions, options)
    _name_genes(matrix, places)
    aliquots = _choose_samples(matrix)
    _resolve_duplicates(matrix, options.duplicates)
    _check_values(matrix)
    genes = _place_genes(matrix, places)
    matrix.keep("genes", genes.index.to_numpy())
    unit, fitted = _settle_unit(matrix, options.table_unit or _unit_of_file(raw))
    if options.normalise:
        matrix.values, unit = _normalise_counts(matrix, genes, unit), "log2-tpm"
    log.info("%s: taken for %s, %d cases of %d genes", table, UNITS[unit], *matrix.values.shape)
    with profile_writer(output, genes[GENES_SCHEMA.names], UNITS[unit], fitted) as add:
        for case_id, aliquot, profile in zip(matrix.cases, aliquots, matrix.values, strict=True):
            add(case_id, aliquot, profile)
    if h5ad is not None:
        write_h5ad(output, h5ad)


def list_cases(table: Path, positions: Path | None, options: TableImport) -> list[str]:
    """List the cases that `import_table` would import; raises as it does, genes and values aside."""
    _, matrix = _orient(read_raw_matrix(table), positions, options)
    _choose_samples(matrix)
    return matrix.cases


def _orient(raw: RawMatrix, positions: Path | None, options: TableImport) -> tuple[Positions | None, Matrix]:
    """Return the positions of genes, and the matrix of named cases by genes."""
    places = find_positions(raw, positions)
    matrix = orient_matrix(raw, places, options.leave_out)
    _name_cases(matrix)
    return places, matrix


def _name_cases(matrix: Matrix) -> None:
    """Write barcodes in one form; where some cases have one, all must."""
    barcodes = [parse_barcode(name) for name in matrix.cases]
    if any(barcodes) or any(standardise_barcode(name).startswith("TCGA-") for name in matrix.cases):
        matrix.drop(
            "cases", (barcode is None for barcode in barcodes), "have no valid TCGA barcode though others begin as one"
        )
        matrix.cases = [standardise_barcode(name) for name in matrix.cases]
    matrix.drop("cases", np.isnan(matrix.values).all(axis=1), "have no value")
    matrix.cases = check_case_ids(matrix.cases, str(matrix.path), ExpressionError)
    check_unique(matrix.cases, "case", matrix.path, ExpressionError)


def _name_genes(matrix: Matrix, places: Positions | None) -> None:
    """Write genes by their symbol or id, and leave out or refuse what is none."""
    matrix.genes = [standardise_gene(name) for name in matrix.genes]
    nameless = sum(not name for name in matrix.genes)
    if nameless:
        raise ExpressionError(f"{matrix.path}: {nameless} genes have no name; name them or leave them out")
    if places is not None:
        _restore_hyphens(matrix, places)
        key, forms = places.choose_key(matrix.genes)
        known = forms.isin(places.by[key].index)
        matrix.drop(
            "genes",
            (not here and not _looks_like_gene(name) for name, here in zip(matrix.genes, known, strict=True)),
            "are no genes",
        )
    matrix.drop("genes", np.isnan(matrix.values).all(axis=0), "have no value")


def _restore_hyphens(matrix: Matrix, places: Positions) -> None:
    """Write symbols such as HLA.A, in which R made a dot of the hyphen, as the positions know them."""
    key, _ = places.choose_key(matrix.genes)
    known, taken = set(places.by[key].index), set(matrix.genes)
    meant = {name: name.replace(".", "-") for name in taken - known if "." in name}
    meant = {name: symbol for name, symbol in meant.items() if symbol in known - taken}
    if meant:
        log.info("%s: %d genes are written with dots for hyphens and read as the positions write them: %s",
                 matrix.path, len(meant), first_few(sorted(meant)))  # fmt: skip
        matrix.genes = [meant.get(name, name) for name in matrix.genes]


def _looks_like_gene(name: str) -> bool:
    """Return whether a name without a position may still be a gene's."""
    plain = name.isprintable() and len(name) <= MAX_NAME_LENGTH
    return plain and not NO_SYMBOL.search(name) and not CLINICAL_WORDS & set(re.split(r"[^A-Z0-9]+", name.upper()))


def _choose_samples(matrix: Matrix) -> list[str | None]:
    """Keep the tumour sample of each case that the rule says, sorted by case; return their barcodes."""
    parsed = {name: Barcode.parse(name) for name in matrix.cases}

    def case_of(name: str) -> str:
        barcode = parsed[name]
        return barcode.case_id if barcode else name

    def rank(name: str) -> tuple[str, bool, str]:
        barcode = parsed[name]
        return case_of(name), ((barcode.sample or "") if barcode else "") != PRIMARY, name

    tumours = [name for name in sorted(matrix.cases, key=rank) if is_tumour(name) is not False]
    if not tumours:
        raise ExpressionError(
            f"{matrix.path} holds no tumour sample: all are normal tissue or controls, such as {min(matrix.cases)}"
        )
    if len(tumours) < len(matrix.cases):
        left = sorted(set(matrix.cases) - set(tumours))
        log.info("%s: %d of %d samples are normal tissue or controls and are left out: %s",
                 matrix.path, len(left), len(matrix.cases), first_few(left))  # fmt: skip
    # The first of a case is the one to keep.
    kept = {case_of(name): name for name in reversed(tumours)}
    chosen = list(kept.values())[::-1]
    if len(chosen) < len(tumours):
        left = sorted(set(tumours) - set(chosen))
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
    said = {
        "first": "the first is used",
        "mean": "their mean is used",
        "max-variance": "the one that varies most is used",
    }
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
        raise ExpressionError(
            f"no gene of {matrix.path} is in {places.where}: {unplaced[0]}, for one, is no {key} there"
        )
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
    fitting = [stated] if stated else find_fitting_units(matrix.values)
    if len(fitting) > 1:
        low, high = matrix.values.min(), matrix.values.max()
        raise ExpressionError(
            f"{matrix.path}: its values, {low:g} to {high:g}, can be of several units: state which, "
            f"{' or '.join(fitting)}"
        )
    unit = fitting[0]
    check_unit(matrix.values, unit, matrix.path)
    return unit, "outside the folds" if unit == "z-score" else "none"


def _normalise_counts(matrix: Matrix, genes: pd.DataFrame, unit: str) -> np.ndarray:
    """Turn counts into log2(TPM+1) over the genes of the table, float32 [cases, genes]."""
    if unit != "counts":
        raise ExpressionError(f"{matrix.path} holds {UNITS[unit]}: only counts are normalised")
    if "length" not in genes or genes["length"].isna().any():
        lacking = (
            genes["gene_id"].tolist() if "length" not in genes else genes["gene_id"][genes["length"].isna()].tolist()
        )
        raise ExpressionError(
            f"{len(lacking)} genes of {matrix.path} have no length, the bases of their exons: {first_few(lacking)}; "
            "give a GTF, or leave the counts as they are"
        )
    empty = [case for case, profile in zip(matrix.cases, matrix.values, strict=True) if not profile.any()]
    if empty:
        raise ExpressionError(f"{matrix.path}: {len(empty)} cases count no read: {first_few(empty)}")
    lengths = genes["length"].to_numpy(np.float64)
    return np.stack(
        [np.log2(compute_tpm(profile, lengths) + 1) for profile in matrix.values.astype(np.float64)]
    ).astype(np.float32)
