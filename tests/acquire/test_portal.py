"""Manifests and sample sheets of the GDC portal, and folders that the GDC's own client filled."""

import hashlib
import os
import shutil

import pandas as pd
import pytest
from typer.testing import CliRunner

from mgi.acquire.manifest import ANNOTATION, EXPRESSION, SLIDES, read_manifest
from mgi.acquire.portal import import_manifest, read_sample_sheet
from mgi.cli import app
from mgi.config import ImportOptions
from mgi.errors import ManifestError, MissingInputError
from tests.cohorts import fetch

from .listings import file_id_of
from .servers import CONTENT, FILE_ID, pin_one, rest_of, says, scripted

STAR = "rna_seq.augmented_star_gene_counts.tsv"
SHEET = ("File ID", "File Name", "Data Category", "Data Type", "Project ID", "Case ID", "Sample ID", "Sample Type")
SAMPLES = [(f"TCGA-S1-{number:04d}", f"TCGA-S1-{number:04d}-01A", "Primary Tumor") for number in range(4)]
NEW_SHEET = (*SHEET[:-1], "Tissue Type", "Tumor Descriptor", "Specimen Type", "Preservation Method")


def write_tsv(path, header, rows):
    path.write_text("\n".join("\t".join(row) for row in [header, *rows]) + "\n")
    return path


@pytest.fixture
def portal(tmp_path):
    """A function: import STAR tables of samples, given as (case, sample, type...), and other files; return the rows."""

    def run(samples, others=(), header=SHEET, **options):
        names = [f"{number}.{STAR}" for number in range(len(samples))]
        files = [*names, *others]
        manifest = write_tsv(
            tmp_path / "gdc_manifest.txt", ("id", "filename", "md5", "size", "state"),
            [(file_id_of(k), name, f"{k:032x}", "7", "released") for k, name in enumerate(files)],
        )  # fmt: skip
        sheet = write_tsv(
            tmp_path / "gdc_sample_sheet.tsv", header,
            [(file_id_of(k), names[k], "T", EXPRESSION, "P-1", *sample) for k, sample in enumerate(samples)],
        )  # fmt: skip
        import_manifest(manifest, sheet if samples else None, tmp_path / "m.parquet", ImportOptions(**options))
        return read_manifest(tmp_path / "m.parquet")

    return run


def test_manifest_is_made_of_manifest_and_sheet(portal):
    slide = "TCGA-AA-0001-01Z-00-DX1.X.svs"
    rows = portal(
        [("TCGA-AA-0001", "TCGA-AA-0001-01A", "Primary Tumor"), ("HCM-1", "HCM-1-01A", "Metastatic")],
        [slide, "own.gtf.gz"],
    )
    assert rows.data_type.tolist() == [ANNOTATION, EXPRESSION, EXPRESSION, SLIDES]
    assert rows.case_id.tolist() == [None, "HCM-1", "TCGA-AA-0001", "TCGA-AA-0001"]
    assert rows.aliquot.tolist()[1:] == ["HCM-1-01A", "TCGA-AA-0001-01A", slide.split(".")[0]]
    assert rows.sample_type.tolist()[1:] == ["Metastatic", "Primary Tumor", "Primary Tumor"]
    assert rows.project.tolist() == [None, "P-1", "P-1", None]


def test_annotation_of_star_counts_is_pinned_where_none_is_listed(portal):
    rows = portal([("A", "A-1", "Primary Tumor")])
    assert rows[rows.data_type == ANNOTATION].file_name.tolist() == ["gencode.v36.annotation.gtf.gz"]


def test_slides_need_no_sheet(portal):
    rows = portal([], ["TCGA-AA-0001-01Z-00-DX1.X.svs", "TCGA-AA-0001-01A-01-TS1.X.svs"])
    assert rows.case_id.tolist() == ["TCGA-AA-0001"] * 2


def test_normal_tissue_ffpe_and_further_files_of_a_case_are_left_out(portal, caplog):
    header, tumour = NEW_SHEET, ("Tumor", "Primary", "Solid Tissue")
    samples = [
        ("A", "A-2", *tumour, "Frozen"),
        ("A", "A-1", *tumour, "Frozen"),
        ("B", "B-1", *tumour, "FFPE"),
        ("C", "C-1", "Normal", "Not Applicable", "Solid Tissue", "Frozen"),
        ("D", "D-1", "Tumor", "Primary", "3D Organoid", "Frozen"),
    ]
    with caplog.at_level("INFO", "mgi"):
        rows = portal(samples, ["clinical.xml"], header)
    assert rows[rows.data_type == EXPRESSION].aliquot.tolist() == ["A-1"]
    assert rows[rows.data_type == EXPRESSION].sample_type.tolist() == ["Primary Tumor"]
    for said in ("RNA of FFPE samples", "normal tissue", "of each case the first", "neither STAR counts nor slides"):
        assert said in caplog.text
    assert portal(samples, (), header, aliquots="all").aliquot.tolist()[1:] == ["A-2", "A-1"]


def test_files_of_several_cases_or_of_none_are_named_together(portal):
    samples = [("A, B", "A-1, B-1", "Primary Tumor"), ("C, D", "C-1", "Primary Tumor")]
    with pytest.raises(ManifestError, match=r"2 files .* belongs to 2 cases"):
        portal(samples)
    with pytest.raises(ManifestError, match=r"its case is not known .*give the sample sheet"):
        portal([], ["x.svs", f"y.{STAR}"])
    with pytest.raises(ManifestError, match=rf"1 files .* its case is not known .'y.{STAR}'.; give the sample sheet"):
        portal(SAMPLES[:1], [f"y.{STAR}"])


def test_annotation_that_is_added_is_not_counted_as_a_file_of_the_manifest(portal, caplog):
    with caplog.at_level("INFO", logger="mgi"):
        assert len(portal(SAMPLES[:1])) == 2
    assert "1 of 1 files of" in caplog.text


def test_several_samples_of_one_case_are_one_case(portal):
    rows = portal([("A, A", "A-1, A-2", "Primary Tumor, Metastatic")])
    assert rows.case_id.tolist()[1:] == ["A"]


def test_lists_without_spaces_are_lists(portal):
    (row,) = portal([("C3L-1,C3L-1", "C3L-1-02,C3L-1-01", "Primary Tumor,Primary Tumor")])[1:].to_dict("records")
    assert (row["case_id"], row["aliquot"], row["sample_type"]) == ("C3L-1", "C3L-1-01", "Primary Tumor")
    with pytest.raises(ManifestError, match="it belongs to 2 cases"):
        portal([("C3L-1,C3L-2", "C3L-1-01,C3L-2-01", "Primary Tumor,Primary Tumor")])


def test_sample_of_another_case_is_refused(portal):
    with pytest.raises(ManifestError, match="is not of its case 'TCGA-AA-0002'"):
        portal([("TCGA-AA-0002", "TCGA-AA-0001-01A", "Primary Tumor")])


def test_case_ids_in_two_ways_are_refused(portal):
    with pytest.raises(ManifestError, match="in two ways"):
        portal([("Case-1", "a", "Primary Tumor"), ("case-1", "b", "Primary Tumor")])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (("x", "f", "T", "T", "P", "A", "A-1", "Tumor"), "not a UUID"),
        ((FILE_ID, "f", "T", "T", "$(id)", "A", "A-1", "Tumor"), "'project'"),
        ((FILE_ID, "f", "T", "T", "P", "A\u2010B", "A-1", "Tumor"), "HYPHEN"),
        ((FILE_ID, "f", "T", "T", "P", "A", "A-1", "Tu\u200bmor"), "ZERO WIDTH SPACE"),
        ((FILE_ID, "f", "T", "T", "", "A", "A-1", "Tumor"), "lacks 'project'"),
    ],
)
def test_unusable_row_of_a_sheet_is_named(tmp_path, row, said):
    with pytest.raises(ManifestError, match=f"1 rows cannot be used: .*{said}"):
        read_sample_sheet(write_tsv(tmp_path / "s.tsv", SHEET, [row]))


def test_sheet_that_repeats_a_file_or_lacks_a_column_is_refused(tmp_path):
    row = (FILE_ID, "f", "T", "T", "P", "A", "A-1", "Tumor")
    with pytest.raises(ManifestError, match="duplicate file"):
        read_sample_sheet(write_tsv(tmp_path / "s.tsv", SHEET, [row, row]))
    with pytest.raises(ManifestError, match="lacks the column Sample Type or Tissue Type"):
        read_sample_sheet(write_tsv(tmp_path / "s.tsv", SHEET[:-1], [row[:-1]]))
    with pytest.raises(MissingInputError, match="absent"):
        read_sample_sheet(tmp_path / "absent.tsv")


def test_real_sample_sheet_is_read(data_dir):
    rows = read_sample_sheet(data_dir / "gdc" / "gdc_sample_sheet_tcga_lusc.tsv.gz")
    frame = pd.read_csv(data_dir / "gdc" / "gdc_sample_sheet_tcga_lusc.tsv.gz", sep="\t")
    assert len(rows) == len(frame)
    assert {row.cases[0] for row in rows.values()} == set(frame["Case ID"])


def test_command_takes_manifest_and_sheet(portal, tmp_path):
    portal([("A", "A-1", "Primary Tumor"), ("A", "A-2", "Primary Tumor")])
    given = [
        tmp_path / "gdc_manifest.txt",
        "--sample-sheet",
        tmp_path / "gdc_sample_sheet.tsv",
        "-o",
        tmp_path / "n.parquet",
    ]
    done = CliRunner().invoke(app, ["gdc", "import", *map(str, given), "--aliquots", "all"])
    assert done.exit_code == 0, done.output
    assert len(read_manifest(tmp_path / "n.parquet")) == 3


@pytest.fixture
def client_folder(tmp_path):
    """A folder as the GDC's own client leaves it, with the file whole."""
    folder = tmp_path / "client" / FILE_ID
    (folder / "logs").mkdir(parents=True)
    (folder / "logs" / "counts.tsv.parcel").write_text("x")
    (folder / "annotations.txt").write_text("x")
    (folder / "counts.tsv").write_bytes(CONTENT)
    return folder


def test_folder_of_the_client_is_used_in_place(one_file, tmp_path, client_folder):
    before = os.stat(client_folder / "counts.tsv")
    with scripted([says(500)]) as (url, seen):
        fetch(one_file, tmp_path / "client", url, 1)
    assert seen == []
    assert os.stat(client_folder / "counts.tsv").st_ino == before.st_ino


def test_folder_of_the_client_as_a_mirror_is_linked(one_file, tmp_path, client_folder):
    with scripted([says(500)]) as (url, seen):
        fetch(one_file, tmp_path / "got", url, 1, mirrors=[str(tmp_path / "client")], partial=tmp_path / "partial")
    assert seen == []
    got = tmp_path / "got" / FILE_ID / "counts.tsv"
    assert os.path.samefile(got, client_folder / "counts.tsv")
    assert [path.name for path in got.parent.iterdir()] == ["counts.tsv"]


def test_file_is_copied_where_it_cannot_be_linked(one_file, tmp_path, client_folder, monkeypatch):
    def refuse(*_):
        raise OSError("another file system")

    monkeypatch.setattr(os, "link", refuse)
    with scripted([says(500)]) as (url, seen):
        fetch(one_file, tmp_path / "got", url, 1, mirrors=[str(tmp_path / "client")])
    assert seen == []
    assert (tmp_path / "got" / FILE_ID / "counts.tsv").read_bytes() == CONTENT
    assert os.stat(client_folder / "counts.tsv").st_nlink == 1


def test_wrong_copy_is_neither_linked_nor_harmed(one_file, tmp_path, client_folder, no_waiting):
    (client_folder / "counts.tsv").write_bytes(CONTENT[::-1])
    with scripted([says(200, CONTENT)]) as (url, _):
        fetch(one_file, tmp_path / "got", url, 1, mirrors=[str(tmp_path / "client")])
    assert (tmp_path / "got" / FILE_ID / "counts.tsv").read_bytes() == CONTENT
    assert (client_folder / "counts.tsv").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("where", ["in place", "mirror"])
def test_partial_file_of_the_client_is_continued(one_file, tmp_path, client_folder, where):
    (client_folder / "counts.tsv").unlink()
    (client_folder / "counts.tsv.partial").write_bytes(CONTENT[:4000])
    out = tmp_path / ("client" if where == "in place" else "got")
    if where == "in place":
        # What an earlier attempt of ours left, shorter than what the client has.
        (client_folder / "counts.tsv.part").touch()
    with scripted([rest_of(4000)]) as (url, seen):
        fetch(one_file, out, url, 1, mirrors=[] if where == "in place" else [str(tmp_path / "client")])
    assert seen == ["bytes=4000-"]
    assert (out / FILE_ID / "counts.tsv").read_bytes() == CONTENT
    assert not (out / FILE_ID / "counts.tsv.partial").exists()


def test_partial_file_with_holes_is_fetched_again(one_file, tmp_path, client_folder, no_waiting):
    (client_folder / "counts.tsv").unlink()
    (client_folder / "counts.tsv.partial").write_bytes(bytes(len(CONTENT)))
    with scripted([says(200, CONTENT)]) as (url, seen):
        fetch(one_file, tmp_path / "client", url, 1)
    assert seen == [None]
    assert hashlib.md5((client_folder / "counts.tsv").read_bytes()).digest() == hashlib.md5(CONTENT).digest()


def test_whole_folder_of_the_portal_case(tmp_path, cohort):
    """The simulated cohort, as the portal and the client would give it."""
    manifest = write_tsv(
        tmp_path / "m.txt", ("id", "filename", "md5", "size", "state"),
        [row.split("\t") for row in (cohort / "manifest.tsv").read_text().splitlines()[1:]],
    )  # fmt: skip
    rows = read_manifest(manifest)
    sheet = write_tsv(
        tmp_path / "s.tsv", SHEET,
        [
            (row.file_id, row.file_name, "T", EXPRESSION, "TCGA-SIM", *SAMPLES[number])
            for number, row in enumerate(rows[rows.data_type == EXPRESSION].itertuples())
        ],
    )  # fmt: skip
    import_manifest(manifest, sheet, tmp_path / "m.parquet", ImportOptions())
    shutil.copytree(cohort / "data", tmp_path / "client")
    with scripted([says(500)]) as (url, seen):
        fetch(tmp_path / "m.parquet", tmp_path / "client", url, 2)
    assert seen == []
    assert len(read_manifest(tmp_path / "m.parquet")) == len(rows)


def test_changed_manifest_names_missing_files(tmp_path):
    with pytest.raises(ManifestError, match="is not delimited text but a Parquet table"):
        import_manifest(pin_one(tmp_path / "m.parquet"), None, tmp_path / "n.parquet", ImportOptions())
