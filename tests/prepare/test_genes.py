"""Genes: places and lengths from a GTF or a table, genomic order, lists."""

import gzip

import numpy as np
import pandas as pd
import pytest

from mgi.errors import ExpressionError, MissingInputError
from mgi.prepare.genes import find_listed_genes
from mgi.prepare.positions import exon_union_lengths, read_gtf, read_places
from tests.prepare.counts import GENES, LENGTHS, gtf_text, places


@pytest.fixture
def gtf(tmp_path):
    path = tmp_path / "genes.gtf.gz"
    path.write_bytes(gzip.compress(gtf_text().encode()))
    return path


def test_exons_that_overlap_count_once():
    rng = np.random.default_rng(0)
    gene_ids = pd.Series(rng.choice(list("abcde"), 300))
    starts = rng.integers(1, 3000, 300)
    ends = starts + rng.integers(0, 80, 300)
    expected = {}
    for gene, start, end in zip(gene_ids, starts, ends, strict=True):
        expected.setdefault(gene, set()).update(range(start, end + 1))
    assert exon_union_lengths(gene_ids, starts, ends).to_dict() == {k: len(v) for k, v in expected.items()}


def test_reads_places_and_lengths_from_gtf(gtf, tmp_path):
    genes = read_gtf(gtf)
    assert genes.length.tolist() == [LENGTHS[gene[1]] for gene in GENES]
    assert genes.gene_name.tolist() == [gene[1] for gene in GENES]
    assert genes.chromosome.tolist() == [gene[3] for gene in GENES]
    with pytest.raises(MissingInputError, match=r"gene annotation not found: .*absent\.gtf"):
        read_gtf(tmp_path / "absent.gtf")
    (tmp_path / "foreign.gtf").write_text("a\tb\nc\td\n")
    with pytest.raises(ExpressionError, match=r"foreign\.gtf is no GTF"):
        read_gtf(tmp_path / "foreign.gtf")


def test_rejects_gtf_cut_before_a_genes_exons(tmp_path):
    text = gtf_text()
    path = tmp_path / "cut.gtf"
    path.write_text(text[: text.rindex("\n", 0, text.rindex("exon") - 1) + 1])
    with pytest.raises(ExpressionError, match=r"1 genes have no exon, ENSG00000182378\.15_PAR_Y the first"):
        read_gtf(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("##description: nothing follows\n", "is no GTF or GFF3, or is cut short: "),
        ("", "is no GTF or GFF3, or is cut short: "),
        (
            gtf_text().replace('exon\t10\t19\t.\t+\t.\tgene_id "', 'exon\t10\t19\t.\t+\t.\tid "'),
            "an exon has no gene_id",
        ),
        (gtf_text().replace('gene_id "ENSG00000000005.6"', ""), "has no gene_id; give the annotation as GENCODE"),
    ],
)
def test_rejects_incomplete_gtf(tmp_path, text, message):
    (tmp_path / "bad.gtf").write_text(text)
    with pytest.raises(ExpressionError, match=rf"bad\.gtf.* {message}"):
        read_gtf(tmp_path / "bad.gtf")


def test_gtf_and_table_agree(gtf, tmp_path):
    places().to_csv(tmp_path / "places.tsv", sep="\t", index=False)
    from_gtf, from_table = (read_places(path, "gene_id") for path in (gtf, tmp_path / "places.tsv"))
    pd.testing.assert_frame_equal(from_gtf, from_table, check_dtype=False, check_index_type=False)
    assert from_table.index.tolist() == [GENES[k][0] for k in (3, 2, 1, 4, 0, 5)]
    assert read_places(gtf, "gene_name").loc["PAR", "chromosome"] == "chrX"


@pytest.mark.parametrize("suffix", ["tsv", "csv.gz", "parquet"])
@pytest.mark.parametrize(
    "chromosomes",
    [
        ["1", "2", "10", "X", "Y", "MT", None],
        ["chr1", "Chr2", "chr10", "chrX", "chrY", "chrM", None],
        [1, 2, 10, 21, 22, 22, None],
        [1, 2, 10, 21, 22, 22, 22],
    ],
)
def test_chromosomes_are_known_with_and_without_chr(tmp_path, chromosomes, suffix):
    names = ["A", "B", "C", "D", "E", "F", "G"]
    frame = pd.DataFrame({"gene_name": names, "chromosome": chromosomes, "start": range(7)}).iloc[::-1]
    path = tmp_path / f"places.{suffix}"
    if suffix == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, sep="," if "csv" in suffix else "\t", index=False)
    found = read_places(path, "gene_name")
    assert found.index.tolist() == names
    assert found.chromosome.tolist()[:3] == ["chr1", "chr2", "chr10"]
    assert found.chromosome.iloc[5] in ("chrM", "chr22") and found.chromosome.iloc[6] in ("unplaced", "chr22")


def test_scaffolds_keep_their_names_and_come_after_the_chromosomes(tmp_path):
    frame = pd.DataFrame({"gene_name": list("abc"), "chromosome": ["KI270728.1", "MT", "3"], "start": [1, 2, 3]})
    frame.to_csv(tmp_path / "places.csv", index=False)
    assert read_places(tmp_path / "places.csv", "gene_name").chromosome.tolist() == ["chr3", "chrM", "KI270728.1"]


def test_symbol_takes_its_first_place_and_duplicate_id_is_rejected(tmp_path):
    frame = pd.DataFrame({"gene_name": ["G", "G"], "chromosome": ["Y", "2"], "start": [2, 9]})
    frame.to_csv(tmp_path / "places.csv", index=False)
    assert read_places(tmp_path / "places.csv", "gene_name").loc["G"].tolist() == ["chr2", 9]
    frame.rename(columns={"gene_name": "gene_id"}).to_csv(tmp_path / "places.csv", index=False)
    with pytest.raises(ExpressionError, match=r"places\.csv: duplicate gene 'G'; keep one"):
        read_places(tmp_path / "places.csv", "gene_id")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.drop(columns="start"), "lacks the column start; it has gene_id, chromosome, length"),
        (lambda frame: frame.rename(columns={"gene_id": "key"}), "lacks the column gene_id; it has key, chromosome"),
        (lambda frame: frame.replace({"start": {10: None}}), "no start for the gene ENSG00000000419.13; give one"),
        (
            lambda frame: frame.astype({"start": str}).replace({"start": {"10": "1,0"}}),
            "start of .*419.13 is '1,0', not",
        ),
        (lambda frame: frame.replace({"start": {10: np.inf}}), "start of 'ENSG00000000419.13' is not finite"),
        (lambda frame: frame.replace({"length": {40: 0}}), "length of ENSG00000000419.13 is 0, not above 0"),
    ],
)
def test_rejects_bad_table_of_positions(tmp_path, change, message):
    path = tmp_path / "places.tsv"
    change(places()).to_csv(path, sep="\t", index=False)
    with pytest.raises(ExpressionError, match=message):
        read_places(path, "gene_id")


NAMES = pd.DataFrame({"gene_id": [gene[0] for gene in GENES], "gene_name": [gene[1] for gene in GENES]})


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("LAST\nSECOND\n", [0, 2]),
        ("ENSG00000000003\nENSG00000000419.7  # of another release\n\n", [0, 2]),
        ("# the pseudoautosomal\nPAR", [4, 5]),
        ("ENSG00000182378_PAR_Y", [5]),
        ("ENSG00000182378.15", [4]),
        ("\ufeffLAST\nSECOND\n", [0, 2]),
        ("TENTH\nTENTH\nENSG00000000005", [1]),
    ],
)
def test_list_names_genes_by_id_or_symbol(tmp_path, text, kept):
    (tmp_path / "genes.txt").write_text(text)
    assert np.flatnonzero(find_listed_genes(tmp_path / "genes.txt", NAMES)).tolist() == kept


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"LAST\nLASST\nFRIST\n",
            r"genes\.txt names 2 genes that .* do not have: 'LASST', 'FRIST'; correct",
        ),
        (b"# nothing\n\n", r"genes\.txt names no gene; write gene ids or symbols in it"),
        (b"\xff\xfe\x00", r"genes\.txt is no list of genes, a text file of one a line"),
    ],
)
def test_rejects_bad_gene_list(tmp_path, content, message):
    (tmp_path / "genes.txt").write_bytes(content)
    with pytest.raises(ExpressionError, match=message):
        find_listed_genes(tmp_path / "genes.txt", NAMES)


def test_missing_list_is_named(tmp_path):
    with pytest.raises(MissingInputError, match=r"list of genes not found: .*genes\.txt"):
        find_listed_genes(tmp_path / "genes.txt", NAMES)


def test_rejects_gtf_that_unpacks_to_far_more_than_text_does(gtf, monkeypatch):
    monkeypatch.setattr("mgi.delimited.SMALL_TABLE_BYTES", 1 << 16)
    gtf.write_bytes(gzip.compress(gtf_text().encode() + b"\t" * (1 << 20)))
    with pytest.raises(ExpressionError, match=r"it unpacks to more than \d+ bytes"):
        read_gtf(gtf)
