"""Ready matrices: either orientation, any unit, one tumour sample per case."""

import anndata
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from mgi.config import TableImport
from mgi.errors import ExpressionError
from mgi.prepare import matrix as stage
from mgi.prepare.profiles import read_expression, read_matrix
from tests.prepare.counts import gtf_text


def import_table(table, positions, output, h5ad=None, **options):
    stage.import_table(table, positions, output, TableImport(**options), h5ad)


def matrix(cases=6, genes=4, seed=0):
    names = [f"TCGA-S1-{k:04d}" for k in range(cases)][::-1]
    values = np.random.default_rng(seed).normal(size=(cases, genes)).astype(np.float32)
    return pd.DataFrame(values, names, ["G2", "G10", "GX", "UNKNOWN"][:genes])


@pytest.fixture
def positions(tmp_path):
    frame = pd.DataFrame({"gene_name": ["GX", "G10", "G2", "G2"], "chromosome": ["chrX", "chr10", "chrY", "chr2"]})
    frame.assign(start=[5, 7, 2, 9], end=99).to_csv(tmp_path / "positions.tsv.gz", sep="\t", index=False)
    return tmp_path / "positions.tsv.gz"


def stored(frame, folder, way):
    if way == "parquet":
        frame.to_parquet(folder / "t.parquet")
        return folder / "t.parquet"
    if way == "csv":
        frame.to_csv(folder / "t.csv")
        return folder / "t.csv"
    if way == "transposed":
        frame.T.to_csv(folder / "t.tsv.gz", sep="\t", index_label="symbol")
        return folder / "t.tsv.gz"
    frame.rename_axis("case_id").reset_index().assign(cohort="LGG").to_parquet(folder / "t.parquet")
    return folder / "t.parquet"


@pytest.mark.parametrize("way", ["parquet", "csv", "transposed", "case_id"])
def test_both_orientations_make_the_same_table(tmp_path, positions, way):
    frame = matrix()
    import_table(stored(frame, tmp_path, way), positions, tmp_path / "out" / "expression.parquet")
    values, genes = read_expression(tmp_path / "out" / "expression.parquet")
    assert genes.gene_name.tolist() == ["G2", "G10", "GX", "UNKNOWN"]
    assert genes.chromosome.tolist() == ["chr2", "chr10", "chrX", "unplaced"]
    assert values.index.tolist() == sorted(frame.index)
    assert np.allclose(values.loc[frame.index].to_numpy(), frame.to_numpy(), atol=1e-6)


def millions(frame):
    linear = np.exp2(frame * 3)
    return linear.div(linear.sum(axis=1), axis=0) * 1e6


@pytest.mark.parametrize(
    ("change", "unit", "fitted"),
    [
        (lambda frame: frame, "z-score", "outside the folds"),
        (lambda frame: frame.abs() * 5, "log2", "none"),
        (lambda frame: frame.abs() * 500 - 0.001, "linear", "none"),
        (lambda frame: frame + 8 - 9 * (frame < -1), "log2", "none"),
        (lambda frame: np.log2(millions(frame) + 1), "log2(TPM+1)", "none"),
        (millions, "TPM", "none"),
        (lambda frame: millions(frame).round(2), "TPM", "none"),
        (lambda frame: frame.abs() * 5000, "linear", "none"),
        (lambda frame: (frame.abs() * 5000).round(), "counts", "none"),
        (lambda frame: (frame.abs() * 5000).round().astype(int), "counts", "none"),
    ],
)
def test_unit_is_logged_and_recorded(tmp_path, positions, said, change, unit, fitted):
    path = stored(change(matrix(cases=60, genes=4)), tmp_path, "parquet")
    import_table(path, positions, tmp_path / "expression.parquet")
    metadata = pq.read_schema(tmp_path / "expression.parquet").metadata
    assert metadata == {b"unit": unit.encode(), b"scale_fitted": fitted.encode()}
    assert f"t.parquet: taken for {unit}, 60 cases of 4 genes" in said()


def samples(*barcodes):
    values = np.arange(1, 2 * len(barcodes) + 1, dtype=np.float32).reshape(-1, 2) * 20.5
    return pd.DataFrame(values, list(barcodes), ["G2", "G10"])


@pytest.mark.parametrize("way", ["parquet", "transposed", "case_id"])
def test_normal_tissue_and_controls_are_left_out_and_logged(tmp_path, positions, said, way):
    frame = samples("TCGA-S1-0002-11A", "TCGA-S1-0002-01A", "TCGA-S1-0001-06A", "TCGA-S1-0003-11A", "TCGA-S1-0004-20A")
    import_table(stored(frame, tmp_path, way), positions, tmp_path / "expression.parquet")
    values, _ = read_expression(tmp_path / "expression.parquet")
    assert values.index.tolist() == ["TCGA-S1-0001", "TCGA-S1-0002"]
    assert values["G2"].tolist() == [frame["G2"].iloc[2], frame["G2"].iloc[1]]
    aliquots = pq.read_table(tmp_path / "expression.parquet")["aliquot"].to_pylist()
    assert aliquots == ["TCGA-S1-0001-06A", "TCGA-S1-0002-01A"]
    assert "3 of 5 samples are normal tissue or controls and are left out" in said()


def test_keeps_primary_tumour_then_lowest_barcode_of_a_case(tmp_path, positions, said):
    frame = samples(
        "TCGA-S1-0001-02A-11R", "TCGA-S1-0001-01B-11R", "TCGA-S1-0001-01A-21R", "TCGA-S1-0001-01A-11R",
        "TCGA-S1-0002-06B", "TCGA-S1-0002-06A", "TCGA-S1-0003",
    )  # fmt: skip
    import_table(stored(frame, tmp_path, "csv"), positions, tmp_path / "expression.parquet")
    aliquots = pq.read_table(tmp_path / "expression.parquet")["aliquot"].to_pylist()
    assert aliquots == ["TCGA-S1-0001-01A-11R", "TCGA-S1-0002-06A", None]
    values, _ = read_expression(tmp_path / "expression.parquet")
    assert values["G2"].tolist() == frame["G2"].iloc[[3, 5, 6]].tolist()
    assert "4 samples are of cases that have another; a primary tumour, then the lowest barcode, is kept" in said()


def test_rejects_table_of_normal_tissue(tmp_path, positions):
    path = stored(samples("TCGA-S1-0001-11A", "TCGA-S1-0002-11A"), tmp_path, "csv")
    with pytest.raises(ExpressionError, match=r"t\.csv holds no tumour sample: .*, such as TCGA-S1-0001-11A"):
        import_table(path, positions, tmp_path / "expression.parquet")


def test_genes_are_ordered_by_ensembl_id(tmp_path):
    frame = samples("TCGA-S1-0001", "TCGA-S1-0002").set_axis(["ENSG00000000003.15", "ENSG00000000005.6"], axis=1)
    places = pd.DataFrame({"gene_id": ["ENSG00000000003.14", "ENSG00000000005"], "chromosome": ["X", "7"]})
    places.assign(start=9).to_csv(tmp_path / "places.csv", index=False)
    import_table(stored(frame, tmp_path, "csv"), tmp_path / "places.csv", tmp_path / "expression.parquet")
    _, genes = read_expression(tmp_path / "expression.parquet")
    assert genes.gene_id.tolist() == ["ENSG00000000005", "ENSG00000000003"]
    assert genes.gene_name.tolist() == ["ENSG00000000005.6", "ENSG00000000003.15"]


def test_reads_positions_from_gtf(tmp_path):
    (tmp_path / "genes.gtf").write_text(gtf_text())
    frame = samples("TCGA-S1-0001", "TCGA-S1-0002").set_axis(["LAST", "SECOND"], axis=1)
    import_table(stored(frame, tmp_path, "csv"), tmp_path / "genes.gtf", tmp_path / "expression.parquet")
    assert read_expression(tmp_path / "expression.parquet")[1].start.tolist() == [10, 500]


def test_h5ad_is_written_on_request(tmp_path, positions):
    import_table(stored(matrix(), tmp_path, "csv"), positions, tmp_path / "e.parquet", tmp_path / "e.h5ad")
    assert np.array_equal(anndata.read_h5ad(tmp_path / "e.h5ad").X, read_matrix(tmp_path / "e.parquet")[1])


def named(rows, columns):
    return pd.DataFrame(np.arange(1.0, 5.0).reshape(2, 2), rows, columns)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (
            named(["TCGA-S1-0001", None], ["G2", "G10"]).rename_axis("case_id").reset_index(),
            "1 rows have no name of a case: row 2",
        ),
        (named(["TCGA-S1-0001", "TCGA-S1-0002"], ["G2", " "]), "1 genes have no name"),
        (
            named(["G2", None], ["TCGA-S1-0001", "TCGA-S1-0002"]).rename_axis("symbol").reset_index(),
            "no name of a gene: row 2",
        ),
        (named(["TCGA-S1-0001", "TCGA-S1-0002"], ["G2", "G10"]) * 1e39, "2 genes lack a value that float32 holds"),
        (named(["TCGA-S1-0001", "TCGA-S1-0002"], ["G2", "G10"]) * 0, "nothing but zeros"),
        (
            samples("TCGA-S1-0001", "TCGA-S1-0002").assign(age=9, survival=8, weight=7),
            "3 of 5 genes are no genes: 'age', 'survival', 'weight'; correct them, or have",
        ),
        (
            samples("TCGA-S1-0001", "TCGA-S1-0002").astype({"G2": "Float64"}).replace({"G2": {20.5: pd.NA}}),
            "1 genes lack a value .*: 'G2'; fill",
        ),
    ],
)
def test_rejects_nameless_overflowing_and_empty_tables(tmp_path, positions, bad, said):
    bad.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ExpressionError, match=said):
        import_table(tmp_path / "t.parquet", positions, tmp_path / "expression.parquet")


def test_rejects_bad_tables(tmp_path, positions):
    frame = matrix()
    holed = frame.copy()
    holed.iloc[0, 1] = np.nan
    endless = frame.copy()
    endless.iloc[0, 2] = np.inf
    for bad, message in [
        (frame.set_axis(["TCGA-S1-0001-01A"] * 6), "duplicate case 'TCGA-S1-0001-01A'; keep one"),
        (holed, "1 genes lack a value that float32 holds for some case: 'G10'; fill them in"),
        (endless, "'GX'; fill them in"),
        (frame.set_axis(["A", "B", "C", "D"], axis=1), "no gene of .* is in .*: A, for one, is no gene_name there"),
        (frame.assign(**{c: "text" for c in frame}), "holds no numbers"),
    ]:
        path = stored(bad, tmp_path, "parquet")
        with pytest.raises(ExpressionError, match=message):
            import_table(path, positions, tmp_path / "expression.parquet")
    path = stored(frame.T.astype(object).replace({frame.iloc[1, 2]: "high"}).T, tmp_path, "transposed")
    with pytest.raises(ExpressionError, match=r"the column TCGA-S1-0004 holds 'high', not numbers; correct it"):
        import_table(path, positions, tmp_path / "expression.parquet")
    path = stored(frame.astype(object).replace({frame.iloc[1, 2]: "12,5"}), tmp_path, "csv")
    with pytest.raises(ExpressionError, match=r"the comma of '12,5' in the column 'GX' could be"):
        import_table(path, positions, tmp_path / "expression.parquet")
    (tmp_path / "t.parquet").write_text("no table")
    with pytest.raises(ExpressionError, match="not a Parquet file"):
        import_table(tmp_path / "t.parquet", positions, tmp_path / "expression.parquet")
    assert not (tmp_path / "expression.parquet").exists()


@pytest.mark.parametrize(
    ("name", "shape", "unit", "unplaced"),
    [
        ("tcga-lgg/expression_zscore", (548, 1544), b"z-score", 2),
        ("tcga-lgg/expression_log2rsem", (93, 20501), b"log2", 2627),
        ("tcga-pancancer/expression_zscore", (5219, 1526), b"z-score", 2),
    ],
)
def test_imports_real_table(data_dir, tmp_path, name, shape, unit, unplaced):
    table, positions = data_dir / f"{name}.parquet", data_dir / "genes" / "gene_positions_gencode_v27_hg38.tsv.gz"
    import_table(table, positions, tmp_path / "expression.parquet")
    values, genes = read_expression(tmp_path / "expression.parquet")
    assert values.shape == shape and values.index.is_monotonic_increasing
    assert pq.read_schema(tmp_path / "expression.parquet").metadata[b"unit"] == unit
    assert (genes.chromosome == "unplaced").sum() == unplaced and genes.chromosome.iloc[0] == "chr1"
    raw = pd.read_parquet(table).select_dtypes("number")
    raw = raw if raw.shape == shape else raw.T
    assert np.array_equal(values[raw.columns].loc[raw.index], raw)
