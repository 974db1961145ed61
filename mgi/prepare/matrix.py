"""A ready matrix of expression, cases by genes or genes by cases, taken over as it is."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from mgi.console import log
from mgi.delimited import check_unique
from mgi.errors import ExpressionError
from mgi.files import require_file
from mgi.prepare.genes import UNPLACED, in_genomic_order, read_frame, read_places, without_version
from mgi.prepare.profiles import profile_writer, require_anndata, write_h5ad
from mgi.tables import GENES_SCHEMA

BARCODE = re.compile(r"^TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(-(?P<sample>\d{2})|-|$)")
CASE = slice(0, 12)
PRIMARY = "01"
# Sample types from here on are normal tissue (10 to 19) and controls (20 to 29).
NOT_TUMOUR = "10"
ENSEMBL = re.compile(r"^ENS\w*G[R\d]\d+")
LARGEST_LOG2 = 30.0
CASES_LOOKED_AT = 100


def import_table(table: Path, positions: Path, output: Path | str, h5ad: Path | None = None) -> None:
    """Import a ready matrix of cases by genes, either way round, as `output` and genes.parquet beside it.

    Cases are known by their TCGA barcodes, or by a column case_id. Where barcodes tell samples, normal tissue and
    controls (sample types 10 to 29) are left out, and of several samples of a case one is kept: a primary tumour (01)
    before others, then the lowest barcode, which is the rule `first` of `mgi gdc query`. Genes are known by symbol, or
    by Ensembl id where all are such; those without a position come last, on the chromosome "unplaced".

    Values are taken as they are, and what they were taken for is said and recorded:

    - "z-score": some are negative, and the genes have mean 0 and nearly all a standard deviation of 1 over the cases;
    - "counts": none is negative and all are whole numbers;
    - "log2(TPM+1)": none is negative or above 30, and 2^x - 1 adds up to a million in every case;
    - "log2": none is above 30 or below -30;
    - "TPM": those of every case add up to a million;
    - "linear": anything else, such as FPKM, RSEM, or TPM of some genes only. A linear table whose values all happen to
      be that small is taken for "log2".

    Parameters
    ----------
    table
        Parquet, CSV or TSV, by its name.
    positions
        Positions of the genes: a GTF, or a table of gene_name (or gene_id), chromosome and start.
    output
        expression.parquet.
    h5ad
        Write the table as AnnData here too.

    Raises
    ------
    MissingInputError
        If a file is not there.
    ExpressionError
        If cases or genes cannot be told, a sample or gene comes twice, no case is of a tumour, a value is missing, or
        no gene has a position.
    MissingPackageError
        If `h5ad` is asked for without the package anndata.
    """
    if h5ad is not None:
        require_anndata()
    frame = _cases_by_genes(read_frame(require_file(table, "expression table")), table)
    if any(not name.strip() for name in [*frame.index, *frame.columns]):
        raise ExpressionError(f"{table}: a case or a gene has no name; name it or leave it out")
    frame = _one_sample_per_case(frame, table)
    check_unique(list(frame.columns), "gene", table, ExpressionError)
    # What float32 cannot hold is infinite only after the cast.
    with np.errstate(over="ignore"):
        values = frame.to_numpy(np.float32, na_value=np.nan)
    incomplete = frame.columns[~np.isfinite(values).all(axis=0)]
    if len(incomplete):
        raise ExpressionError(
            f"{table}: {len(incomplete)} genes lack a value that float32 holds for some case, {incomplete[0]} "
            "the first; fill them in or leave these genes out"
        )
    genes = _placed(frame.columns, positions, table)
    if not values.any():
        raise ExpressionError(f"{table} holds nothing but zeros; give the table that was meant")
    values = values[:, genes.index]
    unit, fitted = _unit(values)
    log.info("%s: taken for %s, %d cases of %d genes", table, unit, *values.shape)
    with profile_writer(output, genes, unit, fitted) as add:
        for barcode, profile in zip(frame.index, values, strict=True):
            add(_case_of(barcode), barcode if _case_of(barcode) != barcode else None, profile)
    if h5ad is not None:
        write_h5ad(output, h5ad)


def _cases_by_genes(frame: pd.DataFrame, table: Path) -> pd.DataFrame:
    """Turn a matrix to cases by genes, whichever way round it is stored; both are then known by text."""
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
    text = [name for name in frame.columns if not pd.api.types.is_numeric_dtype(frame[name])]
    spoilt = [name for name in text if name in cases]
    if spoilt:
        numbers = pd.to_numeric(frame[spoilt[0]], errors="coerce")
        bad = frame[spoilt[0]][numbers.isna() & frame[spoilt[0]].notna()]
        said = f"holds '{bad.iloc[0]}'" if len(bad) else "is stored as text"
        raise ExpressionError(f"{table}: the column {spoilt[0]} {said}, not numbers; correct it")
    if isinstance(frame.index, pd.RangeIndex):
        if not text:
            raise ExpressionError(f"{table}: its columns are cases but no column names the genes")
        frame = frame.set_index(text[0])
    return _named(frame[cases].T)


def _are_barcodes(names: pd.Index | pd.Series) -> bool:
    return len(names) > 0 and all(BARCODE.match(str(name)) for name in names)


def _numeric(frame: pd.DataFrame, table: Path) -> pd.DataFrame:
    numeric = frame.select_dtypes("number")
    for name in frame.columns.drop(numeric.columns):
        number = pd.to_numeric(frame[name], errors="coerce").notna()
        if number.any() and pd.api.types.is_string_dtype(frame[name].dropna()):
            bad = frame[name][~number & frame[name].notna()]
            said = f"holds '{bad.iloc[0]}'" if len(bad) else "is stored as text"
            raise ExpressionError(f"{table}: the column {name} {said}, not numbers; correct it, or leave it out")
    if len(numeric.columns) < len(frame.columns):
        left_out = [str(name) for name in frame.columns if name not in numeric.columns]
        log.info("%s: %d columns are not numbers and are left out: %s", table, len(left_out), ", ".join(left_out[:5]))
    if numeric.empty:
        raise ExpressionError(f"{table} holds no numbers")
    return _named(numeric)


def _named(frame: pd.DataFrame) -> pd.DataFrame:
    rows, columns = (["" if pd.isna(name) else str(name) for name in axis] for axis in (frame.index, frame.columns))
    return frame.set_axis(rows).set_axis(columns, axis=1)


def _case_of(barcode: str) -> str:
    return barcode[CASE] if BARCODE.match(barcode) else barcode


def _sample_of(barcode: str) -> str:
    match = BARCODE.match(barcode)
    return (match["sample"] or "") if match else ""


def _one_sample_per_case(frame: pd.DataFrame, table: Path) -> pd.DataFrame:
    """Keep the tumour sample of each case that the rule says, in the order of the cases."""
    names = sorted(frame.index, key=lambda name: (_case_of(name), _sample_of(name) != PRIMARY, name))
    check_unique(names, "case", table, ExpressionError)
    tumours = [name for name in names if _sample_of(name) < NOT_TUMOUR]
    if not tumours:
        raise ExpressionError(f"{table} holds no tumour sample: all are normal tissue or controls, such as {names[0]}")
    if len(tumours) < len(names):
        log.info("%s: %d of %d samples are normal tissue or controls and are left out",
                 table, len(names) - len(tumours), len(names))  # fmt: skip
    # The first of a case is the one to keep.
    kept = list({_case_of(name): name for name in reversed(tumours)}.values())[::-1]
    if len(kept) < len(tumours):
        log.info("%s: %d samples are of cases that have another; a primary tumour, then the lowest barcode, is kept",
                 table, len(tumours) - len(kept))  # fmt: skip
    return frame.loc[kept]


def _placed(names: pd.Index, positions: Path, table: Path) -> pd.DataFrame:
    """Give the genes of a matrix in genomic order; the index says which column each is."""
    genes = pd.DataFrame({"gene_id": names, "gene_name": names, "gene_type": None})
    key = "gene_id" if all(ENSEMBL.match(name) for name in names) else "gene_name"
    places = read_places(positions, key)
    if key == "gene_id":
        genes["gene_id"] = without_version(genes["gene_id"])
        places = places.set_axis(without_version(places.index.to_series()))
        check_unique(genes["gene_id"].tolist(), "gene", table, ExpressionError)
    genes = genes.join(places, on=key)
    unplaced = genes[key][genes["start"].isna()].tolist()
    if len(unplaced) == len(genes):
        raise ExpressionError(f"no gene of {table} is in {positions}: {unplaced[0]}, for one, is no {key} there")
    if 2 * len(unplaced) > len(genes):
        raise ExpressionError(
            f"{len(unplaced)} of {len(genes)} columns of {table} have no position in {positions}: {unplaced[0]}, for "
            f"one, is no {key} there; leave out what is no gene, or give positions of these genes"
        )
    if unplaced:
        log.warning("%d genes have no position and come last: %s", len(unplaced), ", ".join(unplaced))
    genes = genes.fillna({"chromosome": UNPLACED, "start": 0}).astype({"start": np.int64})
    return in_genomic_order(genes)[GENES_SCHEMA.names]


def _unit(values: np.ndarray) -> tuple[str, str]:
    """Tell what the values seem to be, and whether their scale was fitted outside our folds."""
    largest = np.abs(values).max()
    if values.min() < 0:
        # Logarithms that were only centred have deviations of all sizes.
        low, middle, high = np.quantile(values.std(axis=0), [0.25, 0.5, 0.75])
        scaled = 0.75 < middle < 1.33 and high < 1.75 * low
        centred = np.median(np.abs(values.mean(axis=0))) < 0.3
        if centred and scaled:
            return "z-score", "outside the folds"
        return ("log2" if largest <= LARGEST_LOG2 else "linear"), "none"
    some = values[:CASES_LOOKED_AT].astype(np.float64)
    if (values == np.rint(values)).all():
        return "counts", "none"
    if largest <= LARGEST_LOG2:
        return ("log2(TPM+1)" if _are_millions(np.exp2(some) - 1) else "log2"), "none"
    return ("TPM" if _are_millions(some) else "linear"), "none"


def _are_millions(values: np.ndarray) -> bool:
    """Whether every case adds up to a million, but for the rounding of a written table."""
    return bool((np.abs(values.sum(axis=1) / 1e6 - 1) < 1e-2).all())
