"""Gene expression of a cohort from the GDC's STAR counts, one file per case."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from mgi.acquire.manifest import EXPRESSION, read_manifest
from mgi.config import StarCounts
from mgi.console import log, progress
from mgi.delimited import check_unique
from mgi.errors import ExpressionError
from mgi.names import check_case_ids, first_few
from mgi.prepare.genes import AUTOSOMES, find_listed_genes, sort_by_position, without_version
from mgi.prepare.positions import is_gtf, read_places
from mgi.prepare.profiles import profile_writer, require_anndata, write_h5ad
from mgi.prepare.star import StarTable, read_star
from mgi.prepare.units import STAR_UNITS, compute_fpkm_uq, compute_tpm
from mgi.tables import GENES_SCHEMA

CODING = "protein_coding"

T = TypeVar("T")
R = TypeVar("R")


def build(
    folders: list[Path],
    manifests: list[Path],
    annotation: Path,
    output: Path | str,
    options: StarCounts,
    workers: int = 1,
    h5ad: Path | None = None,
) -> None:
    """Build expression.parquet, and genes.parquet beside it, from the STAR counts of manifests.

    Tables are read `workers` at a time and written in the order of the cases, so memory does not grow with the cohort,
    and the bytes written do not depend on `workers`.

    Parameters
    ----------
    folders, manifests
        A folder of {file_id}/{file_name} per manifest.
    annotation
        Positions and exon-union lengths of the genes: a GTF or GFF3, or a table of gene_id, chromosome, start and
        length.
    output
        expression.parquet.
    options
        `gene_types`: GENCODE gene types to keep; an empty list keeps all. `genes`: a list of the genes to keep, by id
        or symbol, one a line; then `gene_types` does not count. `unit`: "log2-tpm" is log2(TPM + 1), TPM as
        `compute_tpm` gives it over the kept genes; "counts" unstranded counts, which float32 holds exactly up to
        16,777,216; "log2-fpkm-uq" log2(FPKM-UQ + 1), FPKM-UQ as `compute_fpkm_uq` gives it.
    workers
        Threads.
    h5ad
        Write the table as AnnData here too.

    Raises
    ------
    MissingInputError
        If a file is not there.
    ExpressionError
        If a table is truncated, foreign or unlike the first, a case is duplicate, a gene is unknown or has no
        position, or no gene is kept.
    MissingPackageError
        If `h5ad` is asked for without the package anndata.
    """
    if h5ad is not None:
        require_anndata()
    files = _list_files(folders, manifests)
    first = files[0].read()
    choice = _choose_genes(first, annotation, options)

    def read_profile(file: _File) -> np.ndarray:
        return choice.normalise(file.read(like=first).counts, file.path)

    unit = STAR_UNITS[options.unit]
    with profile_writer(output, choice.genes, unit) as add:
        profiles = _map_in_order(read_profile, files, workers)
        for file, values in zip(files, progress(profiles, "STAR tables", len(files)), strict=True):
            add(file.case_id, file.aliquot, values)
    log.info(
        "%d cases, %d of %d genes of %s as %s in %s",
        len(files), len(choice.genes), first.genes.num_rows, first.model, unit, output,
    )  # fmt: skip
    if h5ad is not None:
        write_h5ad(output, h5ad)


@dataclass(frozen=True)
class _File:
    case_id: str
    aliquot: str | None
    path: Path
    size: int | None

    def read(self, like: StarTable | None = None) -> StarTable:
        """Read the table, which must be as long as the manifest says."""
        table = read_star(self.path, like)
        there = self.path.stat().st_size
        if self.size not in (None, there):
            raise ExpressionError(f"{self.path} has {there} bytes but the manifest says {self.size}; fetch it again")
        return table


@dataclass(frozen=True)
class _Choice:
    """The kept genes in genomic order, and how the counts of a STAR table become their values.

    Attributes
    ----------
    genes : frame
        The columns of `GENES_SCHEMA`.
    rows : int ndarray, [kept]
        Their rows in a STAR table.
    lengths : float64 ndarray, [kept]
        Bases of their exons; NaN where the unit needs none.
    reference : int ndarray
        The rows of all autosomal protein-coding genes.
    unit : str
        A key of `STAR_UNITS`.
    """

    genes: pd.DataFrame
    rows: np.ndarray
    lengths: np.ndarray
    reference: np.ndarray
    unit: str

    def normalise(self, counts: np.ndarray, path: Path) -> np.ndarray:
        """Turn the counts of a table into values, float32 [kept]."""
        kept = counts[self.rows]
        if self.unit == "counts":
            return kept.astype(np.float32)
        reference = kept if self.unit == "log2-tpm" else counts[self.reference]
        if not reference.any():
            which = "kept" if self.unit == "log2-tpm" else "autosomal protein-coding"
            raise ExpressionError(f"{path} counts no read in any {which} gene; leave the file out of the manifest")
        if self.unit == "log2-tpm":
            linear = compute_tpm(kept, self.lengths)
        else:
            linear = compute_fpkm_uq(kept, self.lengths, reference)
        return np.log2(linear + 1).astype(np.float32)


def _list_files(folders: list[Path], manifests: list[Path]) -> list[_File]:
    """List the STAR tables of manifests by case."""
    if len(folders) != len(manifests):
        raise ExpressionError(f"{len(folders)} folders but {len(manifests)} manifests; give one folder per manifest")
    files = []
    for folder, manifest in zip(folders, manifests, strict=True):
        rows = read_manifest(manifest)
        rows = rows[rows["data_type"] == EXPRESSION].astype(object).where(lambda cells: cells.notna(), None)
        for row in rows.to_dict("records"):
            path = Path(folder, row["file_id"], row["file_name"])
            files.append(_File(row["case_id"], row["aliquot"], path, row["size"] and int(row["size"])))
    if not files:
        raise ExpressionError(f"{', '.join(map(str, manifests))}: no row of the data type '{EXPRESSION}'")
    caseless = [file.path.name for file in files if file.case_id is None]
    if caseless:
        raise ExpressionError(
            f"the manifests name no case for {len(caseless)} STAR tables: {first_few(caseless)}; make them with "
            "`mgi gdc query`, which asks the GDC for the cases"
        )
    where = ", ".join(map(str, manifests))
    case_ids = check_case_ids((file.case_id for file in files), where, ExpressionError)
    files = [replace(file, case_id=case_id) for file, case_id in zip(files, case_ids, strict=True)]
    files.sort(key=lambda file: file.case_id)
    for one, other in pairwise(files):
        if one.case_id == other.case_id:
            raise ExpressionError(
                f"the case {one.case_id} has two STAR tables: {one.path.name} and {other.path.name}; "
                "keep one in the manifest"
            )
    return files


def _choose_genes(first: StarTable, annotation: Path, options: StarCounts) -> _Choice:
    """Choose the genes to keep among those of a STAR table, and find their places and lengths."""
    genes = first.genes.to_pandas()
    listed = options.genes
    kept = _find_types(genes, options.gene_types) if listed is None else find_listed_genes(listed, genes)
    coding = genes["gene_type"] == CODING
    needed = kept | (coding if options.unit == "log2-fpkm-uq" else False)
    genes = _join_places(first, genes, needed, annotation, options.unit)
    reference = np.flatnonzero(coding & genes["chromosome"].isin(AUTOSOMES))
    genes = genes[kept].assign(gene_id=without_version(genes["gene_id"][kept]))
    check_unique(genes["gene_id"].tolist(), "gene", first.path, ExpressionError)
    genes = sort_by_position(genes.astype({"start": np.int64}))
    rows, lengths = genes.index.to_numpy(), genes["length"].to_numpy()
    return _Choice(genes[GENES_SCHEMA.names], rows, lengths, reference, options.unit)


def _find_types(genes: pd.DataFrame, gene_types: list[str]) -> np.ndarray:
    """Return which genes are of some types, bool [genes]."""
    present = sorted(genes["gene_type"].unique())
    unknown = [name for name in gene_types if name not in present]
    if unknown:
        raise ExpressionError(f"no gene is of the type {first_few(unknown)}; the types are {', '.join(present)}")
    return (genes["gene_type"].isin(gene_types) if gene_types else genes["gene_type"].notna()).to_numpy()


def read_star_places(annotation: Path | str, unit: str) -> pd.DataFrame:
    """Read where the genes of STAR counts lie, and their lengths, as `mgi.prepare.positions.read_places` does.

    Lengths that `unit`, one of `StarCounts`, does not need may be missing, and are then NaN.

    Raises
    ------
    MissingInputError, ExpressionError
        As `read_places` does, or if lengths are needed and missing.
    """
    places = read_places(annotation, "gene_id")
    if "length" not in places.columns:
        if unit != "counts":
            raise ExpressionError(
                f"{annotation} lacks the column length, the bases of each gene's exons, which {STAR_UNITS[unit]} "
                "needs; add it, give a GTF, or ask for counts"
            )
        places = places.assign(length=np.nan)
    return places


def _join_places(
    first: StarTable, genes: pd.DataFrame, needed: np.ndarray, annotation: Path, unit: str
) -> pd.DataFrame:
    """Join chromosome, start and length; every gene that is needed must have them."""
    places = read_star_places(annotation, unit)
    if is_gtf(annotation) and len(genes) < len(places):
        raise ExpressionError(
            f"{first.path} lists {len(genes)} of the annotation's {len(places)} genes: it is cut short, or the GTF is "
            "not the one that the counts were made with"
        )
    # A table of positions may know the genes without their versions; a GTF of another release must not pass for ours.
    versioned = places.index.isin(genes["gene_id"]).any()
    ids = genes["gene_id"] if versioned else without_version(genes["gene_id"])
    genes = genes.assign(key=ids).join(places, on="key")
    unknown = genes["gene_id"][needed & genes["start"].isna()]
    if len(unknown):
        raise ExpressionError(
            f"{len(unknown)} genes of {first.path} are not in the annotation {annotation}, {unknown.iloc[0]} the "
            "first; give the one that the counts were made with"
        )
    lacking = genes["gene_id"][needed & genes["length"].isna()]
    if len(lacking) and unit != "counts":
        raise ExpressionError(
            f"{annotation} has no length for {len(lacking)} genes: {first_few(lacking)}; add it, or ask for counts"
        )
    return genes


def _map_in_order(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """Map in threads, yielding the results in the order of the items; no more than a few are ahead of the reader."""
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque = deque()
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
