"""Expression from STAR counts, and ready tables."""

import gzip

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from mgi.acquire.gdc import EXPRESSION
from mgi.errors import ExpressionError, MissingInputError
from mgi.prepare.expression import build, exon_union_lengths, import_table, read_expression, read_gtf, read_matrix
from tests.prepare.conftest import write_manifest

# gene_id, name, type, chromosome, exons; neither in genomic order nor by name.
GENES = [
    ("ENSG00000000003.15", "LAST", "protein_coding", "chrX", [(500, 599), (550, 649)]),
    ("ENSG00000000005.6", "TENTH", "protein_coding", "chr10", [(100, 199)]),
    ("ENSG00000000419.13", "SECOND", "protein_coding", "chr2", [(10, 19), (30, 49), (15, 34)]),
    ("ENSG00000000457.14", "NOISE", "lncRNA", "chr2", [(1, 1000)]),
    ("ENSG00000182378.15", "PAR", "protein_coding", "chrX", [(5, 104)]),
    ("ENSG00000182378.15_PAR_Y", "PAR", "protein_coding", "chrY", [(5, 104)]),
]
LENGTHS = {"LAST": 150, "TENTH": 100, "SECOND": 40, "NOISE": 1000, "PAR": 100}


def star_text(counts, genes=GENES):
    header = "gene_id gene_name gene_type unstranded stranded_first stranded_second tpm_unstranded fpkm_unstranded"
    lines = ["# gene-model: GENCODE v36", "\t".join([*header.split(), "fpkm_uq_unstranded"])]
    lines += [f"{name}\t\t\t9\t9\t9\t\t\t" for name in ("N_unmapped", "N_multimapping", "N_noFeature", "N_ambiguous")]
    lines += [f"{g[0]}\t{g[1]}\t{g[2]}\t{n}\t0\t0\t0.0\t0.0\t0.0" for g, n in zip(genes, counts, strict=True)]
    return "\n".join(lines) + "\n"


def gtf_text(genes=GENES):
    lines = ["##description: a test", "##format: gtf"]
    for gene_id, name, kind, chromosome, exons in genes:
        tags = f'gene_id "{gene_id}"; gene_type "{kind}"; gene_name "{name}";'
        start, end = min(exon[0] for exon in exons), max(exon[1] for exon in exons)
        lines += [f"{chromosome}\tHAVANA\t{kind}\t{start}\t{end}\t.\t+\t.\t{tags}" for kind in ("gene", "transcript")]
        lines += [f"{chromosome}\tHAVANA\texon\t{a}\t{b}\t.\t+\t.\t{tags} exon_number 1;" for a, b in exons]
    return "\n".join(lines) + "\n"


class Cohort:
    """STAR tables, their manifest and annotation in a folder."""

    def __init__(self, folder, counts):
        self.folder, self.output = folder, folder / "out" / "expression.parquet"
        self.gtf = folder / "genes.gtf.gz"
        self.gtf.write_bytes(gzip.compress(gtf_text().encode()))
        self.rows = []
        for case_id, values in counts.items():
            file_id = f"00000000-0000-4000-8000-{len(self.rows):012d}"
            row = {"file_id": file_id, "file_name": f"{case_id}.tsv", "data_type": EXPRESSION, "case_id": case_id}
            self.rows.append(row | {"aliquot": f"{case_id}-01A-11R-1"})
            self.path(case_id).parent.mkdir()
            self.path(case_id).write_text(star_text(values))

    def path(self, case_id):
        row = next(row for row in self.rows if row["case_id"] == case_id)
        return self.folder / row["file_id"] / row["file_name"]

    def build(self, gene_types=("protein_coding",)):
        manifest = write_manifest(self.folder / "manifest.parquet", self.rows)
        build([self.folder], [manifest], self.gtf, self.output, gene_types=list(gene_types))
        return read_expression(self.output)


@pytest.fixture
def cohort(tmp_path):
    return Cohort(tmp_path, {"TCGA-S1-0002": [10, 0, 5, 900, 7, 1], "TCGA-S1-0001": [1, 2, 3, 4, 5, 6]})


def test_genes_are_in_genomic_order_and_par_y_apart(cohort):
    values, genes = cohort.build()
    assert genes.gene_name.tolist() == ["SECOND", "TENTH", "PAR", "LAST", "PAR"]
    assert genes.gene_id.tolist()[2::2] == ["ENSG00000182378", "ENSG00000182378_PAR_Y"]
    assert genes.start.tolist() == [10, 100, 5, 500, 5] and genes.chromosome.tolist()[2:] == ["chrX", "chrX", "chrY"]
    assert values.index.tolist() == ["TCGA-S1-0001", "TCGA-S1-0002"]
    assert values.columns.tolist() == genes.gene_id.tolist() and set(values.dtypes) == {np.dtype(np.float32)}
    schema = pq.read_schema(cohort.output)
    assert schema.metadata == {b"unit": b"log2(TPM+1)", b"scale_fitted": b"none"}
    assert pq.read_table(cohort.output)["aliquot"].to_pylist()[0] == "TCGA-S1-0001-01A-11R-1"


def test_tpm_is_recomputed_over_the_kept_genes(cohort):
    values, _ = cohort.build()
    rate = np.array([5 / 40, 0 / 100, 7 / 100, 10 / 150, 1 / 100])
    assert np.allclose(values.loc["TCGA-S1-0002"], np.log2(rate / rate.sum() * 1e6 + 1), rtol=1e-6)
    everything, genes = cohort.build(gene_types=[])
    assert "NOISE" in set(genes.gene_name) and len(genes) == 6
    assert np.allclose((2 ** everything.astype(float) - 1).sum(axis=1), 1e6, rtol=1e-5)


def test_exons_that_overlap_count_once():
    rng = np.random.default_rng(0)
    gene_ids = pd.Series(rng.choice(list("abcde"), 300))
    starts = rng.integers(1, 3000, 300)
    ends = starts + rng.integers(0, 80, 300)
    expected = {}
    for gene, start, end in zip(gene_ids, starts, ends, strict=True):
        expected.setdefault(gene, set()).update(range(start, end + 1))
    assert exon_union_lengths(gene_ids, starts, ends).to_dict() == {k: len(v) for k, v in expected.items()}


def test_gtf_gives_places_and_lengths(cohort):
    genes = read_gtf(cohort.gtf)
    assert genes.length.tolist() == [LENGTHS[gene[1]] for gene in GENES]
    with pytest.raises(MissingInputError, match="gene annotation"):
        read_gtf(cohort.folder / "absent.gtf")
    (cohort.folder / "foreign.gtf").write_text("a\tb\nc\td\n")
    with pytest.raises(ExpressionError, match=r"foreign\.gtf is no GTF"):
        read_gtf(cohort.folder / "foreign.gtf")


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8, 0.97])
def test_table_cut_anywhere_is_named(cohort, share):
    path = cohort.path("TCGA-S1-0002")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ExpressionError, match=r"TCGA-S1-0002\.tsv"):
        cohort.build()
    assert not cohort.output.exists()


@pytest.mark.parametrize("case_id", ["TCGA-S1-0001", "TCGA-S1-0002"])
def test_table_cut_at_the_end_of_a_line_is_named(cohort, case_id):
    path = cohort.path(case_id)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))
    with pytest.raises(ExpressionError, match=rf"{case_id}\.tsv lists 4 (genes but .* 6|of the annotation's 6)"):
        cohort.build()


def test_foreign_tables_are_refused(cohort):
    path = cohort.path("TCGA-S1-0002")
    good = path.read_text()
    for bad, message in [
        ("gene,count\nA,1\n", "no STAR table"),
        (good.replace("\t900\t", "\t9.5\t"), "no STAR table"),
        (good.replace("\t900\t", "\t-9\t"), "negative count"),
        (good.replace("N_ambiguous", "N_strange"), "not the counters"),
        (good.replace("ENSG00000000457.14", "ENSG00000000999.1"), "has the gene ENSG00000000999.1 in line 10"),
        (star_text([0, 0, 0, 9, 0, 0]), "counts no read"),
    ]:
        path.write_text(bad)
        with pytest.raises(ExpressionError, match=message):
            cohort.build()
    path.unlink()
    with pytest.raises(MissingInputError, match="STAR table not found"):
        cohort.build()


def test_gzipped_tables_are_read_and_cut_ones_named(cohort):
    expected, _ = cohort.build()
    path = cohort.path("TCGA-S1-0002")
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert cohort.build()[0].equals(expected)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ExpressionError, match="cut short or damaged"):
        cohort.build()


def test_annotation_must_be_that_of_the_counts(cohort):
    cohort.gtf.write_bytes(gzip.compress(gtf_text(GENES[1:]).encode()))
    with pytest.raises(ExpressionError, match=r"1 genes of .* are not in the annotation, ENSG00000000003"):
        cohort.build()


def test_unknown_gene_type_lists_the_known(cohort):
    with pytest.raises(ExpressionError, match="'coding'; the types are lncRNA, protein_coding"):
        cohort.build(gene_types=["coding"])


def test_case_with_two_tables_is_named(cohort):
    cohort.rows[1]["case_id"] = "TCGA-S1-0002"
    with pytest.raises(ExpressionError, match="TCGA-S1-0002 has two STAR tables"):
        cohort.build()


def test_build_is_reproducible_to_the_byte(cohort):
    cohort.build()
    first = [cohort.output.with_name(name).read_bytes() for name in ("expression.parquet", "genes.parquet")]
    cohort.build()
    assert [cohort.output.with_name(name).read_bytes() for name in ("expression.parquet", "genes.parquet")] == first


def test_real_star_table_gives_its_own_tpm_back(data_dir, tmp_path):
    """With every gene kept, and lengths implied by count / tpm, the GDC's own TPM must come out."""
    source = next((data_dir / "gdc").glob("*star_gene_counts.tsv.gz"))
    table = pd.read_csv(source, sep="\t", skiprows=[0, 2, 3, 4, 5])
    told = table.tpm_unstranded.to_numpy()
    # Four decimals of TPM fix a length well enough where the TPM is not small; the others count nothing.
    table["counts"] = np.where(told > 1, table.unstranded, 0)
    ratio = np.divide(table.unstranded, told, out=np.ones(len(table)), where=told > 1)
    lengths = np.maximum(np.rint(ratio * 1e6 / np.median(ratio[told > 1])), 1).astype(int)
    rows = [
        (gene_id, name, kind, f"chr{1 + k % 22}", [(1000 + k, 999 + k + length)])
        for k, (gene_id, name, kind, length) in enumerate(
            zip(table.gene_id, table.gene_name, table.gene_type, lengths, strict=True)
        )
    ]
    cohort = Cohort(tmp_path, {})
    cohort.gtf.write_bytes(gzip.compress(gtf_text(rows).encode(), 1))
    cohort.rows = [{"file_name": source.name, "data_type": EXPRESSION, "case_id": "TCGA-S1-0001"}]
    path = tmp_path / "00000000-0000-4000-8000-000000000000" / source.name
    path.parent.mkdir()
    path.write_bytes(source.read_bytes())
    values, genes = cohort.build(gene_types=[])
    assert values.shape == (1, 60660) and genes.gene_id.is_unique and genes.gene_id.str.endswith("_PAR_Y").sum() > 40
    stripped = table.gene_id.str.replace(r"\.\d+", "", regex=True)
    ours = 2 ** values.iloc[0].astype(float)[stripped].to_numpy() - 1
    large = told > 1
    total = (table.unstranded / lengths).sum() / (table.unstranded / lengths)[large].sum()
    scale = told[large].sum() / 1e6
    assert np.abs(ours[large] * total * scale / told[large] - 1).max() < 1e-4


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
def test_either_orientation_gives_the_same_table(tmp_path, positions, way):
    frame = matrix()
    import_table(stored(frame, tmp_path, way), positions, tmp_path / "out" / "expression.parquet")
    values, genes = read_expression(tmp_path / "out" / "expression.parquet")
    assert genes.gene_name.tolist() == ["G2", "G10", "GX", "UNKNOWN"]
    assert genes.chromosome.tolist() == ["chr2", "chr10", "chrX", "unplaced"]
    assert values.index.tolist() == sorted(frame.index)
    assert np.allclose(values.loc[frame.index].to_numpy(), frame.to_numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "unit", "fitted"),
    [
        (lambda frame: frame, b"z-score", b"outside the folds"),
        (lambda frame: frame.abs() * 5, b"log2", b"none"),
        (lambda frame: frame.abs() * 5000, b"linear", b"none"),
        (lambda frame: frame + 8 - 9 * (frame < -1), b"log2", b"none"),
    ],
)
def test_what_the_values_were_taken_for_is_recorded(tmp_path, positions, change, unit, fitted):
    path = stored(change(matrix(cases=60, genes=4)), tmp_path, "parquet")
    import_table(path, positions, tmp_path / "expression.parquet")
    assert pq.read_schema(tmp_path / "expression.parquet").metadata == {b"unit": unit, b"scale_fitted": fitted}


def test_bad_tables_are_refused(tmp_path, positions):
    frame = matrix()
    holed = frame.copy()
    holed.iloc[0, 1] = np.nan
    aliquots = frame.set_axis([f"TCGA-S1-0001-0{k}A-11R" for k in range(1, 7)])
    for bad, message in [
        (aliquots, "the case TCGA-S1-0001 comes twice"),
        (holed, "G10 the first; fill them in"),
        (frame.set_axis(list("abcdef")), "TCGA barcodes"),
        (frame.astype(str), "holds no numbers"),
    ]:
        path = stored(bad, tmp_path, "parquet")
        with pytest.raises(ExpressionError, match=message):
            import_table(path, positions, tmp_path / "expression.parquet")
    (tmp_path / "t.parquet").write_text("no table")
    with pytest.raises(ExpressionError, match="not a readable"):
        import_table(tmp_path / "t.parquet", positions, tmp_path / "expression.parquet")
    assert not (tmp_path / "expression.parquet").exists()


def test_matrix_that_disagrees_with_its_genes_is_refused(tmp_path, positions):
    import_table(stored(matrix(), tmp_path, "parquet"), positions, tmp_path / "expression.parquet")
    case_ids, values = read_matrix(tmp_path / "expression.parquet")
    assert values.dtype == np.float32 and values.shape == (len(case_ids), 4)
    other = tmp_path / "other" / "expression.parquet"
    import_table(stored(matrix(genes=3), tmp_path, "parquet"), positions, other)
    (tmp_path / "genes.parquet").write_bytes(other.with_name("genes.parquet").read_bytes())
    with pytest.raises(ExpressionError, match=r"has 4 genes but .* 3"):
        read_expression(tmp_path / "expression.parquet")


def test_real_tables_are_imported_whole(data_dir, tmp_path):
    genes = data_dir / "genes" / "gene_positions_gencode_v27_hg38.tsv.gz"
    import_table(data_dir / "tcga-lgg" / "expression_zscore.parquet", genes, tmp_path / "expression.parquet")
    case_ids, values = read_matrix(tmp_path / "expression.parquet")
    assert values.shape == (548, 1544) and case_ids == sorted(case_ids)
    assert pq.read_schema(tmp_path / "expression.parquet").metadata[b"unit"] == b"z-score"
    raw = pd.read_parquet(data_dir / "tcga-lgg" / "expression_zscore.parquet")
    assert np.array_equal(read_expression(tmp_path / "expression.parquet")[0][raw.columns].loc[raw.index], raw)
    import_table(data_dir / "tcga-lgg" / "expression_log2rsem.parquet", genes, tmp_path / "expression.parquet")
    assert read_matrix(tmp_path / "expression.parquet")[1].shape == (93, 20501)
    assert pq.read_schema(tmp_path / "expression.parquet").metadata[b"unit"] == b"log2"
