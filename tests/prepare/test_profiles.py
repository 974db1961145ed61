"""The table of expression: written a case at a time, read a case at a time."""

import sys

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mgi.errors import ExpressionError, MissingInputError, MissingPackageError
from mgi.prepare.profiles import CaseReader, profile_writer, read_expression, read_matrix, write_h5ad
from mgi.tables import write_table

CASES = [f"TCGA-S1-{number:04d}" for number in range(9)]
VALUES = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)


def genes_of(count):
    names = [f"G{k}" for k in range(count)]
    frame = pd.DataFrame({"gene_id": names, "gene_name": names, "gene_type": None, "chromosome": "chr1"})
    return frame.assign(start=np.arange(count))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "expression.parquet"
    with profile_writer(path, genes_of(5), "log2", "none") as add:
        for case_id, values in zip(CASES, VALUES, strict=True):
            add(case_id, f"{case_id}-01A", values)
    return path


@pytest.fixture
def grouped(path, tmp_path):
    """The same table with four cases in a row group, as another writer might have it."""
    write_table(pq.read_table(path), tmp_path / "other" / "expression.parquet", row_group_size=4)
    return tmp_path / "other" / "expression.parquet"


@pytest.mark.parametrize("which", ["path", "grouped"])
def test_reader_returns_each_cases_values(which, request):
    reader = CaseReader(request.getfixturevalue(which))
    assert list(reader) == CASES and len(reader) == 9 and reader.genes == 5
    for row in np.random.default_rng(1).permutation(9):
        assert np.array_equal(reader[CASES[row]], VALUES[row]) and reader[CASES[row]].dtype == np.float32
    assert "TCGA-ZZ-9999" not in reader
    with pytest.raises(KeyError):
        reader["TCGA-ZZ-9999"]


@pytest.mark.parametrize("which", ["path", "grouped"])
def test_matrix_is_read_whole_or_for_some_cases_in_the_order_of_the_table(which, request):
    path = request.getfixturevalue(which)
    case_ids, values = read_matrix(path)
    assert case_ids == CASES and np.array_equal(values, VALUES) and values.dtype == np.float32
    case_ids, values = read_matrix(path, {CASES[7], CASES[2], "TCGA-ZZ-9999"})
    assert case_ids == [CASES[2], CASES[7]] and np.array_equal(values, VALUES[[2, 7]])
    case_ids, values = read_matrix(path, {"TCGA-ZZ-9999"})
    assert case_ids == [] and values.shape == (0, 5)


def test_a_case_is_a_row_group_of_plain_values(path):
    """What makes one case quick to read: neither its neighbours nor a codec are in the way."""
    metadata = pq.ParquetFile(path).metadata
    assert metadata.num_row_groups == len(CASES)
    column = metadata.row_group(0).column(2)
    assert column.compression == "UNCOMPRESSED" and "DICTIONARY" not in " ".join(column.encodings)


def test_frame_is_named_by_cases_and_genes(path):
    values, genes = read_expression(path)
    assert values.index.tolist() == CASES and values.columns.tolist() == genes.gene_id.tolist() == list(genes.gene_name)
    assert np.array_equal(values, VALUES)


def test_failed_write_leaves_no_file(tmp_path):
    with pytest.raises(KeyboardInterrupt), profile_writer(tmp_path / "e.parquet", genes_of(5), "log2") as add:
        add(CASES[0], None, VALUES[0])
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_rejects_foreign_table(path, tmp_path):
    with pytest.raises(MissingInputError, match=r"expression table not found: .*absent\.parquet"):
        CaseReader(tmp_path / "absent.parquet")
    write_table(pd.DataFrame({"case_id": CASES}), tmp_path / "short.parquet")
    with pytest.raises(ExpressionError, match="lacks the column values"):
        CaseReader(tmp_path / "short.parquet")
    write_table(pd.DataFrame({"case_id": CASES, "values": VALUES[:, 0]}), tmp_path / "flat.parquet")
    with pytest.raises(
        ExpressionError, match="its values are float, not a fixed-size list of float; make it with `mgi"
    ):
        CaseReader(tmp_path / "flat.parquet")
    table = pq.read_table(path)
    wide = table.set_column(2, "values", table["values"].cast(pa.list_(pa.float64(), VALUES.shape[1])))
    write_table(wide, tmp_path / "double.parquet")
    with pytest.raises(ExpressionError, match=r"its values are .*double.*, not a fixed-size list of float; make it"):
        CaseReader(tmp_path / "double.parquet")
    twice = pq.read_table(path)
    write_table(pa.concat_tables([twice, twice[:1]]), tmp_path / "twice.parquet")
    with pytest.raises(ExpressionError, match=r"duplicate case 'TCGA-S1-0000'; keep one"):
        read_matrix(tmp_path / "twice.parquet")


def test_rejects_table_of_other_genes(path):
    write_table(pa.Table.from_pandas(genes_of(4)), path.with_name("genes.parquet"))
    with pytest.raises(ExpressionError, match=r"has 5 genes but .* 4; they are of different cohorts"):
        read_expression(path)


def test_h5ad_equals_the_table(path, tmp_path):
    write_h5ad(path, tmp_path / "cohort.h5ad")
    found = anndata.read_h5ad(tmp_path / "cohort.h5ad")
    assert found.obs_names.tolist() == CASES and found.var_names.tolist() == [f"G{k}" for k in range(5)]
    assert np.array_equal(found.X, VALUES) and found.X.dtype == np.float32
    assert found.obs.aliquot.tolist() == [f"{case_id}-01A" for case_id in CASES]
    assert found.var.start.tolist() == [0, 1, 2, 3, 4] and found.uns["unit"] == "log2"


def test_h5ad_without_anndata_names_the_remedy(path, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "anndata", None)
    with pytest.raises(MissingPackageError, match="need the package anndata; install it with: pip install anndata"):
        write_h5ad(path, tmp_path / "cohort.h5ad")
    assert not (tmp_path / "cohort.h5ad").exists()
