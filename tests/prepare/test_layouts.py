"""Expression matrices as tools write them: the same six cases and genes come out, whatever the layout."""

import contextlib
import gzip
import re

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mgi.config import TableImport
from mgi.errors import ExpressionError, MGIError
from mgi.prepare.matrix import import_table
from mgi.prepare.profiles import read_expression
from tests.prepare.counts import gtf_text

OWN = ["001", "1", "PAT-3", "x.4", "5_5", "60"]
BARCODES = [f"TCGA-A{k}-A10{k}-01" for k in range(1, 7)]
CASES = [name[:12] for name in BARCODES]
GENES = ["TP53", "EGFR", "C1orf112", "HLA-A", "AC114488.2"]
IDS = [f"ENSG0000000000{k}" for k in range(5)]
VALUES = np.round(np.random.default_rng(0).lognormal(4, 2, (6, 5)), 4)


@pytest.fixture
def positions(tmp_path):
    frame = pd.DataFrame({"gene_name": GENES, "gene_id": IDS, "chromosome": "1", "start": range(5)})
    frame.to_csv(tmp_path / "positions.csv", index=False)
    return tmp_path / "positions.csv"


@pytest.fixture
def read(tmp_path, positions):
    """A function that writes a table, imports it, and returns its values by case and gene."""

    def read(content, name="table.txt", places=positions, **options):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        import_table(path, places, tmp_path / "expression.parquet", TableImport(**options))
        return read_expression(tmp_path / "expression.parquet")[0]

    return read


def rows(cases, genes=GENES, corner="gene", before=(), delimiter="\t"):
    """Write a matrix of genes by cases."""
    lines = [[corner, *cases]] + [[gene, *map(str, VALUES[:, k])] for k, gene in enumerate(genes)]
    return "\n".join([*before, *(delimiter.join(line) for line in lines)]) + "\n"


def columns(cases, genes=GENES, corner="case_id", delimiter=","):
    """Write a matrix of cases by genes."""
    lines = [[corner, *genes]] + [[case, *map(str, VALUES[k])] for k, case in enumerate(cases)]
    return "\n".join(delimiter.join(line) for line in lines) + "\n"


def check(values, cases):
    assert values.index.tolist() == sorted(cases)
    assert np.allclose(values.loc[cases].to_numpy(), VALUES)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", " "])
@pytest.mark.parametrize("write", [rows, columns])
def test_own_ids_stay_as_written_either_way_round(read, write, delimiter):
    check(read(write(OWN, delimiter=delimiter)), OWN)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_text_from_a_spreadsheet_is_read(read, encoding):
    check(read(columns(OWN).replace("\n", "\r\n").encode(encoding), "table.csv"), OWN)
    check(read(gzip.compress(columns([f" {case} " for case in OWN]).encode()), "table.csv.gz"), OWN)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiter_that_excel_states_is_taken(read, delimiter):
    text = f"sep={delimiter}\n" + columns(OWN, delimiter=delimiter)
    check(read(text.replace("\n", "\r\n"), "table.csv"), OWN)


def test_normal_tissue_is_told_by_sample_barcodes_beside_those_of_patients(read, said):
    samples = [f"{name}A" for name in BARCODES[:5]] + [f"{CASES[5]}-11A"]
    lines = columns(CASES, corner="patient").splitlines()
    text = "\n".join(f"{line},{cell}" for line, cell in zip(lines, ["sample", *samples], strict=True)) + "\n"
    assert read(text).index.tolist() == CASES[:5]
    assert f"1 of 6 samples are normal tissue or controls and are left out: '{CASES[5]}-11A'" in said()


@pytest.mark.parametrize("column", ["sample_type", "Tissue Type", "_sample_type"])
def test_normal_tissue_is_told_by_a_column_beside_the_genes(read, said, column):
    kinds = ["Primary Tumor"] * 4 + ["Solid Tissue Normal", "Normal"]
    lines = columns(OWN).splitlines()
    write = lambda cells: "\n".join(f"{line},{cell}" for line, cell in zip(lines, [column, *cells], strict=True)) + "\n"  # noqa: E731
    values = read(write(kinds))
    assert values.index.tolist() == sorted(OWN[:4]) and np.allclose(values.loc[OWN[:4]], VALUES[:4])
    assert f"2 of 6 samples are normal tissue or controls by the column {column}" in said()
    with pytest.raises(ExpressionError, match="holds no tumour sample by its column"):
        read(write(["Normal"] * 6))


@pytest.mark.parametrize(
    "name",
    ["1-Mar", "01-Sept", "Mar-01", "Sep-02", "1-Mar-21", "1-Mrz", "1-mars", "1-Mär", "2.31E+13", "44621", "2021-03-01"],
)
def test_genes_that_a_spreadsheet_made_dates_are_refused(read, name):
    with pytest.raises(ExpressionError, match=f"1 of 5 genes are no genes: '{re.escape(name)}'"):
        read(rows(OWN, [*GENES[:4], name]))


def test_symbols_whose_hyphens_r_made_dots_keep_their_place(read, said):
    assert GENES[3:] == ["HLA-A", "AC114488.2"]
    assert read(columns(OWN, [*GENES[:3], "HLA.A", GENES[4]])).columns.tolist() == read(columns(OWN)).columns.tolist()
    assert "1 genes are written with dots for hyphens and read as the positions write them: 'HLA.A'" in said()
    assert "HLA.A" in read(columns(OWN, ["HLA-A", *GENES[1:3], "HLA.A", GENES[4]])).columns


def test_values_that_add_up_to_more_than_a_million_are_no_tpm(read):
    share = (VALUES / VALUES.sum(axis=1, keepdims=True)).round(6)
    for factor, reads in ((1e6, True), (6e5, True), (3e6, False)):
        lines = [["gene", *OWN], *([gene, *map(str, share[:, k] * factor)] for k, gene in enumerate(GENES))]
        logs = [lines[0], *([row[0], *(str(np.log2(float(cell) + 1)) for cell in row[1:])] for row in lines[1:])]
        for unit, table in (("tpm", lines), ("log2-tpm", logs)):
            text = "\n".join("\t".join(line) for line in table) + "\n"
            if reads:
                assert read(text, table_unit=unit).shape == (6, 5)
            else:
                with pytest.raises(ExpressionError, match=r"TPM of a case add up to 3e\+06, more than a million"):
                    read(text, table_unit=unit)


def test_transposed_table_with_case_id_corner_is_recognised_by_its_genes(read):
    check(read(rows(OWN, corner="case_id")), OWN)


@pytest.mark.parametrize(
    "change",
    [
        lambda name: name.replace("-", "."),
        lambda name: name.replace("-", "_").lower(),
        lambda name: name[:12],
        lambda name: f"{name}A-11R-A123-07",
        lambda name: f'"{name}A"',
    ],
)
@pytest.mark.parametrize("write", [rows, columns])
def test_barcodes_are_known_in_every_form(read, write, change):
    check(read(write([change(name) for name in BARCODES])), CASES)


def test_cbioportal_firehose_and_tcgabiolinks(read, said):
    lines = rows(BARCODES, corner="Hugo_Symbol").splitlines()
    text = "\n".join(
        line.replace("\t", f"\t{'Entrez_Gene_Id' if not k else 5000 + k}\t", 1) for k, line in enumerate(lines)
    )
    check(read(text + "\n"), CASES)
    assert "1 columns are no cases and are left out: 'Entrez_Gene_Id'" in said()
    firehose = rows(BARCODES, [f"{gene}|{k}" for k, gene in enumerate(GENES)], "Hybridization REF").split("\n", 1)
    check(read("\n".join([firehose[0], "gene_id" + "\tnormalized_count" * 6, firehose[1]])), CASES)
    assert "second line is left out, a header too: 'normalized_count'" in said()
    biolinks = rows([f'"{name}A-11R-A123-07"' for name in BARCODES], [f'"{name}.7"' for name in IDS], delimiter=" ")
    check(read(biolinks.removeprefix("gene ")), CASES)


def test_rejects_several_values_of_each_sample(read):
    cases = [name for name in BARCODES[:3] for _ in range(2)]
    head, body = rows(cases).split("\n", 1)
    with pytest.raises(ExpressionError, match="several values of each sample, 'raw_count', 'scaled_estimate': give"):
        read("\n".join([head, "gene_id" + "\traw_count\tscaled_estimate" * 3, body]))


def test_xena_and_recount3(read, said, tmp_path):
    probemap = pd.DataFrame({"id": [f"{name}.3" for name in IDS], "gene": GENES, "chrom": "chr1"})
    probemap.assign(chromStart=range(5), chromEnd=9, strand="+").to_csv(tmp_path / "map", sep="\t", index=False)
    tail = "".join(
        f"__{name}" + "\t7" * 6 + "\n" for name in ("no_feature", "ambiguous", "not_aligned", "too_low_aQual")
    )
    text = rows([f"{name}A" for name in BARCODES], [f"{name}.5" for name in IDS], "Ensembl_ID")
    check(read(text + tail, places=tmp_path / "map"), CASES)
    assert (
        "4 rows count reads of no gene and are left out: '__no_feature', '__ambiguous', '__not_aligned' and 1" in said()
    )
    recount = rows(OWN, [f"{name}.1" for name in IDS], "gene_id", ["##annotation=G026", "##date.generated=2020-01-01"])
    check(read(recount), OWN)


def test_gct_of_both_versions_and_cut(read):
    lines = rows(OWN, [f"{name}.1\t{gene}" for name, gene in zip(IDS, GENES, strict=True)], "Name\tDescription")
    check(read("#1.2\n5\t6\n" + lines), OWN)
    with pytest.raises(ExpressionError, match="states 5 rows of 6 samples but has 3 of 6: it is cut short"):
        read("#1.2\n5\t6\n" + "\n".join(lines.splitlines()[:4]) + "\n")
    head, body = lines.split("\n", 1)
    check(read("\n".join(["#1.3", "5\t6\t1\t2", head, "age\tna" + "\t50" * 6, "site\tna" + "\tx" * 6, body])), OWN)


def test_biomart_and_gff3_give_positions(read, tmp_path):
    biomart = pd.DataFrame({"Gene stable ID": IDS, "Gene name": GENES, "Chromosome/scaffold name": "1"})
    biomart = pd.concat([biomart.assign(**{"Gene start (bp)": range(5), "Gene end (bp)": 9})] * 2)
    biomart.to_csv(tmp_path / "mart_export.txt", index=False)
    check(read(rows(OWN, IDS), places=tmp_path / "mart_export.txt"), OWN)
    lines = ["##gff-version 3"]
    for k, (name, gene) in enumerate(zip(IDS, GENES, strict=True)):
        lines.append(f"1\tx\tgene\t{k + 1}\t{k + 9}\t.\t+\t.\tID=gene:{name};Name={gene};gene_id={name}")
        lines.append(f"1\tx\tmRNA\t{k + 1}\t{k + 9}\t.\t+\t.\tID=transcript:T{k};Parent=gene:{name}")
        lines.append(f"1\tx\texon\t{k + 1}\t{k + 9}\t.\t+\t.\tParent=transcript:T{k};Name=E{k}")
    (tmp_path / "genes.gff3").write_text("\n".join(lines) + "\n")
    check(read(columns(OWN), places=tmp_path / "genes.gff3"), OWN)


def test_table_with_positions_needs_no_others(read):
    genes = [f"{gene}\tchr1\t{k}" for k, gene in enumerate(GENES)]
    check(read(rows(BARCODES, genes, "gene\tchromosome\tstart"), places=None), CASES)
    with pytest.raises(ExpressionError, match="does not say where its genes lie: give their positions"):
        read(rows(BARCODES), places=None)


def test_h5ad_and_its_own_export(read, tmp_path, positions):
    data = anndata.AnnData(
        VALUES.astype(np.float32), *(pd.DataFrame(index=pd.Index(x, dtype=object)) for x in (OWN, GENES))
    )
    data.write_h5ad(tmp_path / "own.h5ad")
    check(read((tmp_path / "own.h5ad").read_bytes(), "again.h5ad"), OWN)
    import_table(
        tmp_path / "own.h5ad", positions, tmp_path / "e.parquet", TableImport(table_unit="tpm"), tmp_path / "e.h5ad"
    )
    check(read((tmp_path / "e.h5ad").read_bytes(), "e2.h5ad", places=None), OWN)
    for content in (b"\x89HDF\r\n\x1a\n" + bytes(200), (tmp_path / "own.h5ad").read_bytes()[:2000]):
        with pytest.raises(ExpressionError, match="no readable AnnData"):
            read(content, "cut.h5ad")


def test_columns_of_h5ad_name_patients_and_normal_tissue(read, tmp_path, said):
    obs = pd.DataFrame(index=pd.Index(list("012345"), dtype=object))
    obs = obs.assign(patient=CASES, sample=[f"S{k}" for k in range(6)], sample_type=["Primary Tumor"] * 5 + ["Normal"])
    obs = obs.astype(object)
    genes = pd.DataFrame(index=pd.Index(GENES, dtype=object))
    anndata.AnnData(VALUES.astype(np.float32), obs, genes).write_h5ad(tmp_path / "a.h5ad")
    assert read((tmp_path / "a.h5ad").read_bytes(), "b.h5ad").index.tolist() == CASES[:5]
    assert f"by the column sample_type and are left out: '{CASES[5]}'" in said()
    anndata.AnnData(VALUES.astype(np.float32), obs[["sample"]], genes).write_h5ad(tmp_path / "a.h5ad")
    assert read((tmp_path / "a.h5ad").read_bytes(), "b.h5ad").index.tolist() == list("012345")


def test_h5ad_that_reads_from_another_file_is_rejected(read, tmp_path):
    with h5py.File(tmp_path / "linked.h5ad", "w") as file:
        file["X"] = h5py.ExternalLink("secret.h5", "/X")
    with pytest.raises(ExpressionError, match="reads from other files: 'X'"):
        read((tmp_path / "linked.h5ad").read_bytes(), "linked.h5ad")


def test_ids_of_parquet_are_text_or_whole_numbers(read, tmp_path):
    frame = pd.DataFrame(VALUES, columns=GENES)
    for ids, expected in ((OWN, OWN), (pd.Categorical(OWN), OWN), (range(6), list("012345"))):
        frame.assign(case_id=ids).to_parquet(tmp_path / "ids.parquet")
        check(read((tmp_path / "ids.parquet").read_bytes(), "t.parquet"), expected)
    frame.assign(case_id=np.arange(6.0)).set_index("case_id").to_parquet(tmp_path / "ids.parquet")
    with pytest.raises(ExpressionError, match="case ids are stored as decimal numbers; store them as text"):
        read((tmp_path / "ids.parquet").read_bytes(), "t.parquet")


def test_reads_unambiguous_decimal_commas_and_thousands(read, said):
    commas = rows(OWN).replace(".", ",").replace("AC114488,2", "AC114488.2").replace("x,4", "x.4")
    check(read(commas), OWN)
    assert "commas in numbers are read as decimal commas" in said()
    lines = [["gene", *OWN]]
    lines += [[gene, *(f'"{v * 1000:,.4f}"' for v in VALUES[:, k])] for k, gene in enumerate(GENES)]
    check(read("\n".join(",".join(line) for line in lines) + "\n", "table.csv") / 1000, OWN)
    assert "read as separators of thousands" in said()
    with pytest.raises(ExpressionError, match=r"the comma of '1,234' in the column '001' could be a decimal comma or"):
        read("gene\t001\t002\nTP53\t1,234\t5\nEGFR\t2\t7\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (rows([*BARCODES[:5], "TCGA-A6-A10"]), "1 of 6 cases have no valid TCGA barcode .*: 'TCGA-A6-A10'"),
        (rows([*BARCODES[:5], "TGCA-A6-A106"]), "1 of 6 cases have no valid TCGA barcode .*: 'TGCA-A6-A106'; correct"),
        (columns([*BARCODES[:4], "A", "B"]), "2 of 6 cases have no valid TCGA barcode .*: 'A', 'B'; correct them, or"),
        (rows(OWN)[:-9], "last line does not end in a line break"),
        ("\n".join(rows(OWN).split("\n")[:-2]) + "\nAC114488.2\t5\n", "line 6 has 2 fields separated by"),
        (rows(OWN) * 2, "line 7 repeats the header"),
        (rows(["A1", "a1", *OWN[2:]]), "writes one case id in two ways, 'A1' and 'a1'"),
        (rows(["A\u20101", *OWN[1:]]), "it holds HYPHEN"),
        (rows(["001", "001", "001", "1", "1", "7"]), "duplicate case '001', '1'; keep one of each"),
        (columns(OWN, ["TP53", "age", "OS.time", "1-Mar", "EGFR"]), "genes are no genes: 'age', 'OS.time', '1-Mar'"),
        (columns(OWN).replace(str(VALUES[2, 1]), "NA"), "1 genes lack a value .*: 'EGFR'"),
        (rows(OWN).replace("EGFR", ""), "1 rows have no name of a gene: line 3; name them"),
        (columns([]), "has a header but no rows"),
    ],
)  # fmt: skip
def test_rejects_faulty_tables_by_name(read, tmp_path, content, message):
    with pytest.raises(ExpressionError, match=message):
        read(content)
    assert not (tmp_path / "expression.parquet").exists()


def test_leaves_out_unusable_rows_and_columns_by_option(read, said):
    text = columns([*BARCODES[:5], "TCGA-A6-A10"], [*GENES[:4], "age"])
    values = read(text, leave_out=True)
    assert values.index.tolist() == CASES[:5] and len(values.columns) == 4
    assert "1 cases have no valid TCGA barcode though others begin as one and are left out: 'TCGA-A6-A10'" in said()
    assert "1 genes are no genes and are left out: 'age'" in said()
    empty = columns(OWN).split("\n")
    empty = [line.rsplit(",", 1)[0] + ("," if k else ",HLA-A") for k, line in enumerate(empty) if line]
    with pytest.raises(ExpressionError, match="1 of 5 genes have no value: 'HLA-A'"):
        read("\n".join(empty).replace("HLA-A,HLA-A", "MIR1,HLA-A") + "\n")
    assert read("\n".join(empty).replace("HLA-A,HLA-A", "MIR1,HLA-A") + "\n", leave_out=True).shape == (6, 4)


@pytest.mark.parametrize(("rule", "chosen"), [("first", 0), ("mean", None), ("max-variance", 1)])
def test_rows_of_one_gene_follow_the_stated_rule(read, said, rule, chosen):
    genes = ["TP53", "TP53", "EGFR", "EGFR", "HLA-A"]
    values = read(rows(OWN, genes), duplicates=rule).loc[OWN]
    pair = VALUES[:, :2]
    order = np.argsort(pair.var(axis=0))
    expected = pair.mean(axis=1) if chosen is None else pair[:, 0 if chosen == 0 else order[1]]
    assert np.allclose(values["TP53"], expected) and values.shape == (6, 3)
    assert "2 genes have several rows or columns; of each" in said() and "'TP53', 'EGFR'" in said()


def test_ambiguous_unit_is_asked_for_and_stated_unit_checked(read):
    deviations = np.array([[1], [3], [0.2], [2], [9]])
    centred = np.random.default_rng(1).normal(0, deviations, (5, 6)).round(3)
    lines = [["gene", *OWN], *([gene, *map(str, row)] for gene, row in zip(GENES, centred, strict=True))]
    text = "\n".join("\t".join(line) for line in lines) + "\n"
    with pytest.raises(ExpressionError, match="can be of several units: state which, z-score or log2"):
        read(text)
    assert read(text, table_unit="z-score").shape == (6, 5)
    for unit, message in (("counts", "does not hold counts: a value is -"), ("tpm", "does not hold TPM: a value is -")):
        with pytest.raises(ExpressionError, match=message):
            read(text, table_unit=unit)
    with pytest.raises(ExpressionError, match="does not hold z-score: no value is negative"):
        read(rows(OWN), table_unit="z-score")


def test_counts_are_normalised_as_star_counts_are(read, tmp_path):
    (tmp_path / "genes.gtf").write_text(gtf_text())
    names, lengths = ["SECOND", "TENTH", "LAST"], np.array([40, 100, 150])
    counts = np.array([[5, 90, 7], [1, 2, 300]])
    text = "case_id,SECOND,TENTH,LAST\n" + "".join(f"P{k},{','.join(map(str, row))}\n" for k, row in enumerate(counts))
    values = read(text, places=tmp_path / "genes.gtf", normalise=True, table_unit="counts")
    rate = counts / lengths
    assert np.allclose(values, np.log2(rate / rate.sum(axis=1, keepdims=True) * 1e6 + 1), rtol=1e-6)
    assert read(text, places=tmp_path / "genes.gtf")["TENTH" if "TENTH" in names else 0].tolist() == [90, 2]
    with pytest.raises(ExpressionError, match="holds linear: only counts are normalised"):
        read(rows(OWN), normalise=True)


PIECES = st.sampled_from([
    "TP53", "EGFR", "TCGA-A1-A101-01", "001", "case_id", "1.5", "-2", "1,5", "NA", "", "\t", ",", "\n", '"', "|", "é",
    "#1.2\n2\t2\n", "__no_feature", "inf", "1e999",
])  # fmt: skip
CONTENT = st.one_of(st.lists(PIECES, max_size=30).map("".join).map(str.encode), st.binary(max_size=80))
NAMES = st.sampled_from(["t.txt", "t.parquet", "t.h5ad", "t.csv"])


@settings(
    max_examples=250, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(CONTENT, NAMES, st.booleans())
def test_only_own_errors_come_out(read, content, name, leave_out):
    with contextlib.suppress(MGIError):
        read(content, name, leave_out=leave_out)
