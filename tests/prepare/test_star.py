"""STAR tables of the GDC: read as they are, refused where they are not."""

import gzip

import numpy as np
import pytest

from mgi.errors import ExpressionError, MissingInputError
from mgi.prepare.star import read_star
from tests.prepare.counts import GENES, star_text

COUNTS = [10, 0, 5, 900, 7, 1]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "one.tsv"
    path.write_text(star_text(COUNTS))
    return path


@pytest.fixture
def other(tmp_path):
    """Another table of the cohort, to be compared with."""
    path = tmp_path / "other.tsv"
    path.write_text(star_text([1, 2, 3, 4, 5, 6]))
    return read_star(path)


def test_counts_follow_the_counters_and_name_their_genes(path):
    table = read_star(path)
    assert table.counts.tolist() == COUNTS and table.counts.dtype == np.int64
    assert table.genes["gene_id"].to_pylist() == [gene[0] for gene in GENES]
    assert table.genes["gene_name"].to_pylist() == [gene[1] for gene in GENES]
    assert table.genes["gene_type"].to_pylist() == [gene[2] for gene in GENES]
    assert table.model == "GENCODE v36"


def test_table_of_another_release_is_read(path):
    """GENCODE before v25 wrote ENSGR for the genes of chrY that chrX has too, and fewer columns do no harm."""
    text = star_text(COUNTS, model="GENCODE v22").replace("ENSG00000182378.15_PAR_Y", "ENSGR0000182378.10")
    path.write_text("".join(line if line[0] == "#" else "\t".join(line.split("\t")[:6]) + "\n" for line in lines(text)))
    table = read_star(path)
    assert table.model == "GENCODE v22" and table.counts.tolist() == COUNTS
    assert table.genes["gene_id"][-1].as_py() == "ENSGR0000182378.10"


def lines(text):
    return text.splitlines(keepends=True)


def test_reads_gzipped_table_and_rejects_a_cut_one(path, other):
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert read_star(path).counts.tolist() == read_star(path, like=other).counts.tolist() == COUNTS
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ExpressionError, match=r"one\.tsv is cut short or damaged: .*; get it again"):
        read_star(path)


@pytest.mark.parametrize("share", [0, 0.02, 0.1, 0.3, 0.5, 0.8, 0.97])
def test_rejects_table_cut_anywhere(path, share):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ExpressionError, match=r"one\.tsv"):
        read_star(path)


@pytest.mark.parametrize("missing", [1, 2])
def test_rejects_table_cut_within_its_last_value(path, missing):
    path.write_bytes(path.read_bytes()[:-missing])
    with pytest.raises(ExpressionError, match=r"one\.tsv is cut short: its last line is incomplete; fetch it again"):
        read_star(path)


@pytest.mark.parametrize("kept", range(1, 12))
def test_rejects_table_cut_at_the_end_of_a_line(path, other, kept):
    path.write_text("".join(lines(path.read_text())[:kept]))
    with pytest.raises(ExpressionError, match=r"one\.tsv"):
        read_star(path, like=other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "gene,count\nA,1\n", "no STAR table of the GDC: its first line is not '# gene-model: ...'"),
        (lambda text: text.replace("unstranded", "counts", 1), "line 2 lacks the column unstranded; it has gene_id, "),
        (lambda text: text.replace("\t900\t", "\t9.5\t"), "invalid value '9.5'; fetch it again"),
        (lambda text: text.replace("\t900\t", "\tmany\t"), "invalid value 'many'"),
        (lambda text: text.replace("\t900\t", "\t-9\t"), "holds the negative count -9 of ENSG00000000457.14"),
        (lambda text: text.replace("\t900\t", "\t\t"), "holds a missing count of ENSG00000000457.14"),
        (lambda text: text.replace("\t900\t", "\tNaN\t"), "holds a missing count of ENSG00000000457.14"),
        (lambda text: text.replace("\t900\t", "\t900\t1\t"), "cut short or damaged: .*Expected 9 columns, got 10"),
        (lambda text: text.replace("ENSG00000000419.13", "ENSG00000000005.6"), "duplicate gene 'ENSG00000000005.6'"),
        (lambda text: text.replace("ENSG00000000419.13", ""), "line 9 names no gene; fetch it again"),
        (lambda text: text.replace("\tstranded_first", "\tunstranded"), "no STAR table: duplicate column 'unstranded'"),
        (lambda text: text.replace("N_ambiguous", "N_strange"), "lines 3 to 6 are not the counters N_unmapped, "),
        (lambda text: "".join(lines(text)[:2] + lines(text)[6:]), "lines 3 to 6 are not the counters"),
    ],
)
def test_rejects_foreign_table_with_the_reason(path, change, message):
    path.write_text(change(path.read_text()))
    with pytest.raises(ExpressionError, match=message) as refused:
        read_star(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda text: text.replace("ENSG00000000457.14", "ENSG00000000999.1"),
            r"one\.tsv has the gene ENSG00000000999\.1 in line 10, where .*other\.tsv has ENSG00000000457\.14",
        ),
        (
            lambda text: text.replace("v36", "v22"),
            r"one\.tsv counts the genes of GENCODE v22, but .*other\.tsv those of GENCODE v36",
        ),
        (lambda text: "".join(lines(text)[:-1]), r"one\.tsv lists 5 genes but .*other\.tsv 6: the shorter is cut"),
        (lambda text: text + lines(text)[-1], r"one\.tsv lists 7 genes but .*other\.tsv 6"),
        (
            lambda text: "".join([*lines(text)[:-2], lines(text)[-1], lines(text)[-2]]),
            r"has the gene ENSG00000182378\.15_PAR_Y in line 11, where",
        ),
    ],
)
def test_rejects_table_unlike_another(path, other, change, message):
    path.write_text(change(path.read_text()))
    with pytest.raises(ExpressionError, match=message):
        read_star(path, like=other)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda text: gzip.compress(text + bytes(200 << 20)), "unpacks to more than 67108864 bytes"),
        (lambda text: b"# gene-model: X\n" + b"\t".join(b"%d" % k for k in range(100)) + b"\n", "it has 100 columns"),
        (lambda text: text + b"\n" * 1_000_001, "columns and 1000013 lines, the limits are 64 and 1000000"),
    ],
)
def test_limits_hold_before_anything_is_parsed(path, content, message):
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(ExpressionError, match=message):
        read_star(path)


def test_missing_table_is_named(tmp_path):
    with pytest.raises(MissingInputError, match=r"STAR table not found: .*absent\.tsv"):
        read_star(tmp_path / "absent.tsv")


def test_reads_real_table(data_dir):
    table = read_star(next((data_dir / "gdc").glob("*star_gene_counts.tsv.gz")))
    assert table.model == "GENCODE v36" and len(table.counts) == table.genes.num_rows == 60660
    assert table.genes["gene_id"][0].as_py() == "ENSG00000000003.15" and table.counts[0] == 1715
