"""Expression built from STAR counts: genes, units, one table whatever the number of workers."""

import subprocess
import sys
import time

import anndata
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from mgi.errors import ExpressionError, MissingInputError
from mgi.prepare import expression
from mgi.prepare.positions import read_gtf
from mgi.prepare.profiles import read_expression
from mgi.prepare.units import compute_fpkm_uq, compute_tpm
from mgi.simulate.cohort import simulate_cohort
from tests.prepare.counts import GENES, Cohort, gtf_text, places, star_text


@pytest.fixture
def cohort(tmp_path):
    return Cohort(tmp_path, {"TCGA-S1-0002": [10, 0, 5, 900, 7, 1], "TCGA-S1-0001": [1, 2, 3, 4, 5, 6]})


def linear(values):
    """Undo log2(x + 1), as float64."""
    return np.exp2(values.to_numpy(np.float64)) - 1


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


def test_keeps_par_y_genes_of_an_old_release_apart(tmp_path):
    genes = [*GENES[:5], ("ENSGR0000182378.10", *GENES[5][1:])]
    _, table = Cohort(tmp_path, {"TCGA-S1-0001": [1] * 6}, genes, "GENCODE v22").build()
    assert table.gene_id.tolist()[2::2] == ["ENSG00000182378", "ENSGR0000182378"]


def test_rejects_ids_that_collide_without_versions(tmp_path):
    genes = [*GENES[:5], ("ENSG00000182378.16", *GENES[5][1:])]
    with pytest.raises(ExpressionError, match="duplicate gene 'ENSG00000182378'"):
        Cohort(tmp_path, {"TCGA-S1-0001": [1] * 6}, genes).build()


def test_tpm_is_recomputed_over_the_kept_genes(cohort):
    values, _ = cohort.build()
    rate = np.array([5 / 40, 0 / 100, 7 / 100, 10 / 150, 1 / 100])
    assert np.allclose(values.loc["TCGA-S1-0002"], np.log2(rate / rate.sum() * 1e6 + 1), rtol=1e-6)
    everything, genes = cohort.build(gene_types=[])
    assert "NOISE" in set(genes.gene_name) and len(genes) == 6
    assert np.allclose(linear(everything).sum(axis=1), 1e6, rtol=1e-5)


def test_counts_are_unchanged(cohort):
    values, genes = cohort.build(gene_types=[], unit="counts")
    assert genes.gene_name.tolist() == ["NOISE", "SECOND", "TENTH", "PAR", "LAST", "PAR"]
    assert values.loc["TCGA-S1-0002"].tolist() == [900, 5, 0, 7, 10, 1]
    assert pq.read_schema(cohort.output).metadata[b"unit"] == b"counts"


def test_upper_quartile_uses_all_expressed_autosomal_coding_genes(tmp_path):
    """TENTH, SECOND and two more are autosomal and coding; one of them is not expressed."""
    more = [(f"ENSG0000000{k}.1", f"MORE{k}", "protein_coding", "chr3", [(1, 50)]) for k in (1000, 2000)]
    cohort = Cohort(tmp_path, {"TCGA-S1-0001": [10, 8, 5, 900, 7, 1, 0, 4]}, [*GENES, *more])
    (tmp_path / "list.txt").write_text("LAST\nNOISE\n")
    values, genes = cohort.build(genes=tmp_path / "list.txt", unit="log2-fpkm-uq")
    quartile = np.quantile([8, 5, 4], 0.75)
    expected = np.array([900, 10]) * 1e9 / (np.array([1000, 150]) * quartile * 4)
    assert genes.gene_name.tolist() == ["NOISE", "LAST"]
    assert np.allclose(linear(values), expected, rtol=1e-5)
    assert pq.read_schema(cohort.output).metadata[b"unit"] == b"log2(FPKM-UQ+1)"


def test_gene_list_replaces_gene_types(cohort):
    (cohort.folder / "list.txt").write_text("NOISE\nENSG00000000003\nPAR\n")
    values, genes = cohort.build(genes=cohort.folder / "list.txt")
    assert genes.gene_name.tolist() == ["NOISE", "PAR", "LAST", "PAR"]
    assert np.allclose(linear(values).sum(axis=1), 1e6, rtol=1e-5)
    (cohort.folder / "list.txt").write_text("NOISY\n")
    with pytest.raises(ExpressionError, match=r"list\.txt names 1 genes that the STAR tables do not have: 'NOISY';"):
        cohort.build(genes=cohort.folder / "list.txt")


@pytest.mark.parametrize("versions", [True, False])
@pytest.mark.parametrize("suffix", ["tsv", "parquet"])
def test_position_table_equals_gtf(cohort, suffix, versions):
    cohort.build()
    expected = cohort.written()
    frame = places().assign(chromosome=lambda frame: frame.chromosome.str.removeprefix("chr"))
    if not versions:
        frame["gene_id"] = frame.gene_id.str.replace(r"\.\d+", "", regex=True)
    # More than is needed does no harm, and genes that are not kept need no place.
    frame = pd.concat(
        [frame[frame.gene_id.str.split(".").str[0] != "ENSG00000000457"], frame[:1].assign(gene_id="MORE")]
    )
    cohort.annotation = cohort.folder / f"places.{suffix}"
    frame.to_parquet(cohort.annotation) if suffix == "parquet" else frame.to_csv(cohort.annotation, sep="\t")
    cohort.build()
    assert cohort.written() == expected


def test_positions_without_lengths_allow_counts_only(cohort):
    cohort.annotation = cohort.folder / "places.csv"
    places(lengths=False).to_csv(cohort.annotation, index=False)
    values, _ = cohort.build(unit="counts")
    assert values.loc["TCGA-S1-0001"].tolist() == [3, 2, 5, 1, 6]
    for unit, name in (("log2-tpm", r"log2\(TPM\+1\)"), ("log2-fpkm-uq", r"log2\(FPKM-UQ\+1\)")):
        with pytest.raises(ExpressionError, match=rf"places\.csv lacks the column length, .*, which {name} needs; add"):
            cohort.build(unit=unit)
    places().replace({"length": {40: None}}).to_csv(cohort.annotation, index=False)
    with pytest.raises(ExpressionError, match=r"places\.csv has no length for 1 genes: 'ENSG00000000419\.13'"):
        cohort.build()


@pytest.mark.parametrize("case_id", ["TCGA-S1-0001", "TCGA-S1-0002"])
def test_rejects_table_cut_at_the_end_of_a_line(cohort, case_id):
    path = cohort.path(case_id)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))
    with pytest.raises(ExpressionError, match=rf"{case_id}\.tsv lists 4 (genes but .* 6|of the annotation's 6)"):
        cohort.build()
    assert not cohort.output.exists()


def test_rejects_table_shorter_than_in_its_manifest(tmp_path):
    cohort = Cohort(tmp_path, {"TCGA-S1-0001": [1] * 6})
    path = cohort.path("TCGA-S1-0001")
    cohort.annotation = tmp_path / "places.csv"
    places().to_csv(cohort.annotation, index=False)
    cohort.rows[0]["size"] = path.stat().st_size
    assert cohort.build()[0].shape == (1, 5)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))
    with pytest.raises(ExpressionError, match=r"0001\.tsv has \d+ bytes but the manifest says \d+; fetch it again"):
        cohort.build()


def test_rejects_table_of_another_gene_model(cohort):
    cohort.path("TCGA-S1-0002").write_text(star_text([1] * 6, model="GENCODE v22"))
    with pytest.raises(ExpressionError, match=r"0002\.tsv counts the genes of GENCODE v22, but .*0001\.tsv those of"):
        cohort.build()


def test_rejects_table_without_reads_unless_counts_are_kept(cohort):
    cohort.path("TCGA-S1-0002").write_text(star_text([0, 0, 0, 9, 0, 0]))
    with pytest.raises(ExpressionError, match=r"0002\.tsv counts no read in any kept gene"):
        cohort.build()
    with pytest.raises(ExpressionError, match=r"0002\.tsv counts no read in any autosomal protein-coding gene"):
        cohort.build(unit="log2-fpkm-uq")
    assert cohort.build(unit="counts")[0].loc["TCGA-S1-0002"].sum() == 0


def test_missing_table_is_named(cohort):
    cohort.path("TCGA-S1-0002").unlink()
    with pytest.raises(MissingInputError, match=r"STAR table not found: .*0002\.tsv"):
        cohort.build()


def test_rejects_annotation_of_other_genes(cohort):
    cohort.annotation = cohort.folder / "other.gtf"
    cohort.annotation.write_text(gtf_text(GENES[1:]))
    with pytest.raises(ExpressionError, match=r"1 genes of .* are not in the annotation .*, ENSG00000000003\.15 the"):
        cohort.build()
    # Of another release: the ids are the same but for their versions.
    cohort.annotation.write_text(gtf_text().replace("ENSG00000000003.15", "ENSG00000000003.14"))
    with pytest.raises(ExpressionError, match=r"1 genes of .* are not in the annotation .*, ENSG00000000003\.15 the"):
        cohort.build()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gene_types": ["coding"]}, "no gene is of the type 'coding'; the types are lncRNA, protein_coding"),
    ],
)
def test_rejects_unknown_gene_type(cohort, options, message):
    with pytest.raises(ExpressionError, match=message):
        cohort.build(**options)


def test_rejects_case_with_two_tables(cohort):
    cohort.rows[1]["case_id"] = "TCGA-S1-0002"
    with pytest.raises(ExpressionError, match="TCGA-S1-0002 has two STAR tables"):
        cohort.build()


def many(folder):
    random = np.random.default_rng(0)
    return Cohort(folder, {f"TCGA-S1-{k:04d}": random.integers(1, 99, 6).tolist() for k in range(40)})


def test_bytes_do_not_depend_on_the_number_of_workers(tmp_path, monkeypatch):
    cohort = many(tmp_path)
    read = expression.read_star

    def dawdling(path, like=None):
        time.sleep(hash(path.name) % 5 / 1000)
        return read(path, like)

    monkeypatch.setattr(expression, "read_star", dawdling)
    cohort.build(workers=1)
    first = cohort.written()
    for workers in (1, 2, 7):
        cohort.build(workers=workers)
        assert cohort.written() == first


def test_first_bad_table_is_named_with_any_number_of_workers(tmp_path):
    cohort = many(tmp_path)
    for number in (11, 12, 13):
        cohort.path(f"TCGA-S1-{number:04d}").write_text("bad")
    for workers in (1, 2, 7):
        with pytest.raises(ExpressionError, match=r"TCGA-S1-0011\.tsv is no STAR table"):
            cohort.build(workers=workers)


def test_readers_wait_for_a_slow_writer(tmp_path, monkeypatch):
    """What bounds the memory: readers wait for a writer that is slow."""
    cohort, read, added, ahead = many(tmp_path), expression.read_star, [], []
    writer = expression.profile_writer

    def counted(path, like=None):
        ahead.append(len(started) - len(added))
        started.append(path)
        return read(path, like)

    class SlowWriter:
        def __init__(self, *options):
            self.inner = writer(*options)

        def __enter__(self):
            add = self.inner.__enter__()

            def slow(*row):
                time.sleep(0.005)
                add(*row)
                added.append(row[0])

            return slow

        def __exit__(self, *problem):
            return self.inner.__exit__(*problem)

    started = []
    monkeypatch.setattr(expression, "read_star", counted)
    monkeypatch.setattr(expression, "profile_writer", SlowWriter)
    cohort.build(workers=2)
    # The first table is read once more, before the others.
    assert len(started) == 41 and max(ahead) <= 6


def test_h5ad_is_written_on_request(cohort):
    values, _ = cohort.build(h5ad=cohort.folder / "cohort.h5ad")
    found = anndata.read_h5ad(cohort.folder / "cohort.h5ad")
    assert np.array_equal(found.X, values) and found.obs_names.tolist() == values.index.tolist()
    assert found.uns["unit"] == "log2(TPM+1)" and found.obs.aliquot.iloc[0] == "TCGA-S1-0001-01A-11R-1"


def mgi(cohort, *arguments):
    cohort.build()
    files = (cohort.folder, "--manifest", cohort.folder / "manifest.parquet", "--annotation", cohort.annotation)
    command = [sys.executable, "-m", "mgi", "expression", "build", *files, "-o", cohort.output, *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


def test_command_keeps_coding_genes_by_default(cohort):
    for arguments, count in (((), 5), (("--gene-type", "all"), 6), (("--gene-type", "lncRNA"), 1)):
        assert mgi(cohort, *arguments).returncode == 0
        assert len(read_expression(cohort.output)[1]) == count
    (cohort.folder / "list.txt").write_text("LAST\n")
    done = mgi(cohort, "--genes", cohort.folder / "list.txt", "--unit", "counts", "--workers", "3")
    assert "2 cases, 1 of 6 genes of GENCODE v36 as counts in" in done.stderr
    assert read_expression(cohort.output)[0].to_numpy().tolist() == [[1], [10]]


def test_command_rejects_gene_list_with_gene_types(cohort):
    done = mgi(cohort, "--genes", "list.txt", "--gene-type", "lncRNA")
    assert done.returncode == 2 and "give --gene-type or --genes" in done.stderr.replace("\n", " ")
    done = mgi(cohort, "--unit", "fpkm")
    assert done.returncode == 1 and "'unit' cannot be 'fpkm'" in done.stderr and "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def real(data_dir):
    """The real STAR table, and lengths implied by it.

    Lengths follow from the counts and the two FPKM columns, whose denominators are known: the protein-coding counts,
    and the upper quartile (391) of the 19,029 autosomal protein-coding genes of GENCODE v36. Four decimals leave most
    lengths one whole number of bases (`certain`); among the candidates of the others `tpm_unstranded` chooses.
    """
    path = next((data_dir / "gdc").glob("*star_gene_counts.tsv.gz"))
    table = pd.read_csv(path, sep="\t", skiprows=[0, 2, 3, 4, 5])
    counts = table.unstranded.to_numpy()
    columns = {"fpkm_unstranded": counts[table.gene_type == "protein_coding"].sum(), "fpkm_uq_unstranded": 391 * 19029}
    low, high = _bounds(table, columns)
    certain = (np.ceil(low) == np.floor(high)) | (counts == 0)
    rate = counts / np.where(certain, np.ceil(low), (low + high) / 2)
    narrower = _bounds(table, columns | {"tpm_unstranded": rate.sum() * 1000})
    table["length"] = np.where(certain, np.ceil(low), np.rint(sum(narrower) / 2)).astype(int)
    table["certain"] = certain
    return path, table


def _bounds(table, columns):
    """The lengths, as an interval, that would round to each value of some columns; 1 where nothing is counted."""
    low, high = np.ones(len(table)), np.full(len(table), 1e6)
    counted = table.unstranded.to_numpy() > 0
    for name, total in columns.items():
        scaled, told = table.unstranded[counted] * 1e9 / total, table.loc[counted, name]
        low[counted] = np.maximum(low[counted], scaled / (told + 5.1e-5))
        high[counted] = np.minimum(high[counted], scaled / np.maximum(told - 5.1e-5, 1e-9))
    return low, high


@pytest.fixture
def real_cohort(real, data_dir, tmp_path):
    """That table as a cohort, with a table of positions: chromosomes as GENCODE v27 has them by symbol."""
    path, table = real
    known = pd.read_csv(data_dir / "genes" / "gene_positions_gencode_v27_hg38.tsv.gz", sep="\t")
    known = known.drop_duplicates("gene_name").set_index("gene_name").chromosome
    chromosome = table.gene_name.map(known)
    # 778 coding genes have another symbol there; as many of them are off the autosomes as the table itself implies.
    coding = (table.gene_type == "protein_coding").to_numpy()
    unknown = np.flatnonzero(coding & chromosome.isna())
    chromosome = chromosome.fillna("chr1")
    silent = unknown[table.unstranded.to_numpy()[unknown] == 0]
    surplus = int((coding & ~chromosome.isin(["chrX", "chrY", "chrM"])).sum()) - 19029
    chromosome.iloc[silent[:surplus]] = "chrX"
    cohort = Cohort(tmp_path, {})
    cohort.add("TCGA-S1-0001", path.read_bytes(), "tsv.gz")
    cohort.annotation = tmp_path / "places.parquet"
    frame = table[["gene_id", "length"]].assign(chromosome=chromosome, start=np.arange(len(table)))
    frame.to_parquet(cohort.annotation)
    return cohort


def close(ours, told):
    """To 1e-4, of the value where it is above 1: a column has four decimals."""
    return np.abs(ours - told) <= 1e-4 * np.maximum(told, 1)


@pytest.mark.parametrize(("unit", "column"), [("log2-tpm", "tpm_unstranded"), ("log2-fpkm-uq", "fpkm_uq_unstranded")])
def test_real_table_reproduces_its_own_columns(real, real_cohort, unit, column):
    """With every gene kept, what we compute from the real table's counts is what the GDC computed."""
    _, table = real
    values, genes = real_cohort.build(gene_types=[], unit=unit)
    assert values.shape == (1, 60660) and genes.gene_id.is_unique and genes.gene_id.str.endswith("_PAR_Y").sum() > 40
    row = values.iloc[0][table.gene_id.str.replace(r"\.\d+", "", regex=True)]
    agree = close(linear(row), table[column].to_numpy())
    assert table.certain.sum() > 56_000 and agree[table.certain].all()
    assert agree.all()


def test_real_counts_are_exact(real, real_cohort):
    _, table = real
    values, _ = real_cohort.build(gene_types=[], unit="counts")
    row = values.iloc[0][table.gene_id.str.replace(r"\.\d+", "", regex=True)]
    assert np.array_equal(row.to_numpy(), table.unstranded)


def test_simulated_tables_reproduce_their_own_columns(tmp_path):
    simulate_cohort(tmp_path / "sim", cases=2, seed=3, genes=1000, slide_px=512, workers=1)
    annotation = read_gtf(next((tmp_path / "sim/data").glob("*/*.gtf.gz")))
    cohort = Cohort(tmp_path, {})
    paths = sorted((tmp_path / "sim/data").glob("*/*star_gene_counts.tsv"))
    for number, path in enumerate(paths):
        cohort.add(f"TCGA-S1-{number:04d}", path.read_bytes())
    cohort.annotation = next((tmp_path / "sim/data").glob("*/*.gtf.gz"))
    for unit, column in (("log2-tpm", "tpm_unstranded"), ("log2-fpkm-uq", "fpkm_uq_unstranded")):
        values, genes = cohort.build(gene_types=[], unit=unit)
        assert len(genes) == len(annotation) == 1000
        for row, path in zip(linear(values), paths, strict=True):
            told = pd.read_csv(path, sep="\t", comment="#", skiprows=[2, 3, 4, 5]).set_index("gene_id")[column]
            told.index = told.index.str.replace(r"\.\d+", "", regex=True)
            assert close(row, told[values.columns].to_numpy()).all()


def test_units_follow_their_definitions():
    counts, lengths = np.array([0, 10, 30, 60]), np.array([100.0, 100.0, 300.0, 200.0])
    assert np.allclose(compute_tpm(counts, lengths), np.array([0, 0.1, 0.1, 0.3]) / 0.5 * 1e6)
    # The 0.75 quantile of 10, 30 and 60 is 45; there are four genes.
    assert np.allclose(compute_fpkm_uq(counts, lengths, counts), counts / lengths * 1e9 / (45 * 4))


def test_manifest_without_cases_is_refused_with_its_remedy(tmp_path):
    cohort = Cohort(tmp_path, {"TCGA-S1-0001": [1] * 6, "TCGA-S1-0002": [1] * 6})
    cohort.rows = [row | {"case_id": None} for row in cohort.rows]
    with pytest.raises(ExpressionError, match=r"no case for 2 STAR tables: 'TCGA-S1-0001\.tsv', .* `mgi gdc query`"):
        cohort.build()
