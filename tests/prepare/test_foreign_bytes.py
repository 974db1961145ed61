"""Every reader of this stage, given damaged files: only the project's own errors come out."""

import gzip
import io

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mgi.config import SplitOptions, TableImport
from mgi.prepare.cohort import split
from mgi.prepare.genes import find_listed_genes
from mgi.prepare.matrix import import_table
from mgi.prepare.positions import read_places
from mgi.prepare.profiles import CaseReader, read_matrix
from mgi.prepare.star import read_star
from mgi.tables import SOURCES_SCHEMA, expression_schema, read_any_table
from tests.fuzzing import check_damaged
from tests.prepare.counts import GENES, gtf_text, places, star_text

LISTED = pd.DataFrame({"gene_id": ["A"], "gene_name": ["B"]})
CASES = [f"TCGA-S1-{k:04d}" for k in range(6)]


def parquet(table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def expression() -> pa.Table:
    return pa.table([CASES, CASES, [[1.0, 2.0]] * 6], expression_schema(2, {"unit": "log2"}))


def sources() -> pa.Table:
    rows = [{"source_id": case, "case_id": case, "status": "ok", "n_images": 1, "labelled": True} for case in CASES]
    return pa.Table.from_pylist(rows, SOURCES_SCHEMA)


def matrix(suffix: str, tmp_path) -> bytes:
    frame = pd.DataFrame(np.arange(12.5, 24.5).reshape(6, 2), pd.Index(CASES, dtype=object), ["LAST", "TENTH"])
    if suffix == "h5ad":
        data = anndata.AnnData(
            frame.to_numpy(), *(pd.DataFrame(index=x.astype(object)) for x in (frame.index, frame.columns))
        )
        data.write_h5ad(tmp_path / "valid.h5ad")
        return (tmp_path / "valid.h5ad").read_bytes()
    return parquet(pa.Table.from_pandas(frame)) if suffix == "parquet" else frame.to_csv().encode()


def read_splits(path):
    folder = path.parent
    (folder / "sources.parquet").write_bytes(parquet(sources()))
    split(folder / "sources.parquet", path, folder / "splits.parquet", SplitOptions(folds=2))


def read_cases(path):
    reader = CaseReader(path)
    return [reader[case] for case in reader]


def read_sources(path):
    (path.parent / "expression.parquet").write_bytes(parquet(expression()))
    split(path, path.parent / "expression.parquet", path.parent / "splits.parquet", SplitOptions(folds=2))


def read_table(path):
    named = places().assign(gene_id=[gene[1] for gene in GENES]).rename(columns={"gene_id": "gene_name"})
    named.iloc[:4].to_csv(path.parent / "places.csv", index=False)
    import_table(path, path.parent / "places.csv", path.parent / "out.parquet", TableImport(leave_out=True))


READERS = {
    "star.tsv": (read_star, lambda _: star_text([1, 2, 3, 4, 5, 6]).encode()),
    "star.tsv.gz": (read_star, lambda _: gzip.compress(star_text([1, 2, 3, 4, 5, 6]).encode())),
    "genes.gtf": (lambda path: read_places(path, "gene_id"), lambda _: gtf_text().encode()),
    "genes.gff3": (
        lambda path: read_places(path, "gene_name"),
        lambda _: b"1\tx\tgene\t1\t9\t.\t+\t.\tID=gene:A;Name=B\n1\tx\texon\t1\t9\t.\t+\t.\tParent=gene:A\n",
    ),
    "places.csv": (lambda path: read_places(path, "gene_id"), lambda _: places().to_csv(index=False).encode()),
    "places.parquet": (lambda path: read_places(path, "gene_id"), lambda _: parquet(pa.Table.from_pandas(places()))),
    "list.txt": (lambda path: find_listed_genes(path, LISTED), lambda _: b"A\nB # one\n"),
    "matrix.csv": (read_table, lambda tmp_path: matrix("csv", tmp_path)),
    "matrix.parquet": (read_table, lambda tmp_path: matrix("parquet", tmp_path)),
    "matrix.h5ad": (read_table, lambda tmp_path: matrix("h5ad", tmp_path)),
    "profiles.parquet": (read_matrix, lambda _: parquet(expression())),
    "case.parquet": (read_cases, lambda _: parquet(expression())),
    "split.parquet": (read_splits, lambda _: parquet(expression())),
    "sources.parquet": (read_sources, lambda _: parquet(sources())),
    "any.parquet": (lambda path: read_any_table(path, "table"), lambda _: parquet(sources())),
}


@pytest.mark.parametrize("name", READERS)
def test_only_own_errors_come_out(tmp_path, name):
    read, make = READERS[name]
    check_damaged(read, make(tmp_path), tmp_path / name)
