"""Slides of the user's own: tables and folders that list them, and what they state."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from mgi.config import TileOptions
from mgi.errors import MissingInputError, SlideError
from mgi.prepare.local import list_local_slides, read_mpp_table
from mgi.prepare.slides import tile_slides
from tests.acquire import dicom


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in ("S21.1234.A.tif", "S21.1234.B.tif", "TCGA-A4-8098-01Z-00-DX1.svs", "notes.txt", "._S21.1234.A.tif"):
        (folder / name).touch()
    return folder


def listed(*given):
    return [(slide.case_id, slide.source_id) for slide in list_local_slides(*given)]


def test_folder_is_listed_by_name(folder):
    assert listed(folder) == [
        ("S21.1234.A", "S21.1234.A"),
        ("S21.1234.B", "S21.1234.B"),
        ("TCGA-A4-8098", "TCGA-A4-8098-01Z-00-DX1"),
    ]


def test_pattern_extracts_the_case(folder):
    (folder / "TCGA-A4-8098-01Z-00-DX1.svs").unlink()
    assert [case for case, _ in listed(folder, r"(S\d+\.\d+)\.")] == ["S21.1234"] * 2
    assert [case for case, _ in listed(folder, r"S\d+")] == ["S21"] * 2
    with pytest.raises(SlideError, match=r"does not match 2 of 2 slides in .*: 'S21\.1234\.A\.tif'"):
        listed(folder, "X")
    with pytest.raises(SlideError, match="no regular expression"):
        listed(folder, "(")


def test_barcodes_in_names_are_read_however_written_and_to_their_end(tmp_path):
    names = ("tcga-a4-8098-01z-00-dx1.svs", "TCGA_A4_8099_1.svs", "TCGA-A4-80981.svs", "TCGA-A4-80982.svs")
    for name in names:
        (tmp_path / name).touch()
    assert listed(tmp_path) == [
        ("TCGA-A4-8098", "tcga-a4-8098-01z-00-dx1"),
        ("TCGA-A4-80981", "TCGA-A4-80981"),
        ("TCGA-A4-80982", "TCGA-A4-80982"),
        ("TCGA-A4-8099", "TCGA_A4_8099_1"),
    ]


def test_slides_of_normal_tissue_are_left_out_of_a_folder_and_named(folder, caplog):
    (folder / "TCGA-A4-8098-11A-01-TS1.svs").touch()
    assert ("TCGA-A4-8098", "TCGA-A4-8098-11A-01-TS1") not in listed(folder)
    assert "1 slides in" in caplog.text and "normal tissue and left out: 'TCGA-A4-8098-11A-01-TS1.svs'" in caplog.text


def test_pattern_that_cuts_a_number_is_named(tmp_path, caplog):
    for name in ("P1_A.svs", "P10_A.svs", "P11_A.svs"):
        (tmp_path / name).touch()
    assert [case for case, _ in listed(tmp_path, r"(P\d+)_")] == ["P1", "P10", "P11"] and not caplog.text
    assert [case for case, _ in listed(tmp_path, r"(P\d)")] == ["P1"] * 3
    assert "ends within a number: 1 cases have several, such as 'P1', of the numbers '1', '10', '11'" in caplog.text


def test_table_states_what_is_known(folder):
    table = folder / "slides.csv"
    (folder / "a.geojson").touch()
    table.write_text(
        "case_id,slide,mpp,annotation,site\n 001 ,S21.1234.A.tif,0.25,a.geojson,Ulm\n1,S21.1234.B.tif,,,\n"
    )
    one, other = list_local_slides(table)
    assert (one.case_id, one.mpp, one.annotation, one.site) == ("001", 0.25, folder / "a.geojson", "Ulm")
    assert (other.case_id, other.mpp, other.annotation, other.site) == ("1", None, None, None)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (
            "case_id,slide\n1,absent.svs\n2,gone.svs",
            MissingInputError,
            "2 files .* not there: 'absent.svs', 'gone.svs'",
        ),
        ("case_id\n1\n", SlideError, "slide"),
        ("case_id,slide\n,S21.1234.A.tif\n", SlideError, "1 lines: '2'"),
        ("case_id,slide,mpp\n1,S21.1234.A.tif,fine\n", SlideError, "'fine' as mpp"),
        ("case_id,slide\n1,S21.1234.A.tif\n2,S21.1234.A.tif\n", SlideError, "two slides"),
        ("case_id,slide,sites\n1,S21.1234.A.tif,x\n", SlideError, "column 'sites': write it site"),
        ("case_id,slide,site\n1,S21.1234.A.tif,x\n1,S21.1234.B.tif,y\n", SlideError, "two sites for 1 cases"),
        ("case_id,slide,mpp_x\n1,S21.1234.A.tif,0.5\n", SlideError, "column 'mpp_x': write it mpp"),
        ("case_id,slide,mpp\n1,S21.1234.A.tif,40\n", SlideError, "'40' as mpp"),
        ("case_id,slide,mpp\n1,S21.1234.A.tif,0.00025\n", SlideError, "'0.00025' as mpp"),
        (
            "case_id,slide\nTCGA-A4-8099,TCGA-A4-8098-01Z-00-DX1.svs\n",
            SlideError,
            "gives the slide TCGA-A4-8098-01Z-00-DX1 to the case TCGA-A4-8099: correct either",
        ),
        (
            "case_id,slide\nTCGA-A4-8098-01Z,S21.1234.A.tif\nTCGA-A4-8098,S21.1234.B.tif\n",
            SlideError,
            "1 case ids are barcodes of samples, 'TCGA-A4-8098-01Z': give the patient's, such as TCGA-A4-8098",
        ),
        ("case_id,slide\na,S21.1234.A.tif\nA,S21.1234.B.tif\n", SlideError, "in two ways"),
    ],
)
def test_rejects_invalid_table(folder, text, error, message):
    (folder / "slides.csv").write_text(text)
    with pytest.raises(error, match=message):
        list_local_slides(folder / "slides.csv")


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        (("x.geojson", "x.geojson"), "x.geojson, the annotation of the slide S21.1234.A, to S21.1234.B"),
        (("S21.1234.B.geojson", ""), "S21.1234.B.geojson, the annotation of the slide S21.1234.B, to S21.1234.A"),
        (("", "S21.1234.A_mask.png"), "S21.1234.A_mask.png, the annotation of the slide S21.1234.A, to S21.1234.B"),
    ],
)
def test_annotation_of_another_slide_is_refused(folder, annotations, message):
    for name in filter(None, annotations):
        (folder / name).touch()
    rows = [f"{k},S21.1234.{k}.tif,{name}\n" for k, name in zip("AB", annotations, strict=True)]
    (folder / "slides.csv").write_text("case_id,slide,annotation\n" + "".join(rows))
    with pytest.raises(SlideError, match=message.replace(".", r"\.")):
        list_local_slides(folder / "slides.csv")


def test_rows_of_nothing_that_a_spreadsheet_leaves_are_passed_over(folder):
    (folder / "slides.csv").write_text("case_id;slide;site\nA;S21.1234.A.tif;x\n;;\nB;S21.1234.B.tif;y\n;;\n;;\n")
    assert [case for case, _ in listed(folder / "slides.csv")] == ["A", "B"]
    (folder / "mpp.csv").write_text("slide;mpp\nS21.1234.A.tif;0.25\n;\n")
    assert read_mpp_table(folder / "mpp.csv")["S21.1234.A"] == 0.25


def test_slides_whose_names_differ_in_case_alone_are_refused(tmp_path):
    for name in ("a/Slide1.svs", "b/slide1.svs"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    with pytest.raises(SlideError, match=r"both .lide1 in upper or lower case: .*a/Slide1.svs and .*b/slide1.svs"):
        list_local_slides(tmp_path, "([^/]+)/")


def test_pictures_named_after_a_slide_are_no_slides(tmp_path, caplog):
    for name in ("S1.svs", "S1_thumbnail.png", "S1.label.jpg", "S1-2.tif", "S10_a.png", "S2.png"):
        (tmp_path / name).touch()
    assert [source for _, source in listed(tmp_path, r"(S\d+)")] == ["S1", "S1-2", "S10_a", "S2"]
    assert "2 files in" in caplog.text and "are not read: 'S1.label.jpg', 'S1_thumbnail.png'" in caplog.text


def test_folder_without_slides_is_refused(tmp_path):
    with pytest.raises(SlideError, match="holds no slide"):
        list_local_slides(tmp_path)


def test_table_of_mpp_is_read_by_file_or_slide(tmp_path):
    (tmp_path / "mpp.csv").write_text("slide,mpp\nS21.1234.A.tif,0.25\nTCGA-A4-8098-01Z-00-DX1,0.5\n")
    stated = read_mpp_table(tmp_path / "mpp.csv")
    assert stated["S21.1234.A"] == 0.25 and stated["TCGA-A4-8098-01Z-00-DX1"] == 0.5
    (tmp_path / "mpp.csv").write_text("slide,mpp\na.svs,0.25\na.svs,0.5\n")
    with pytest.raises(SlideError, match="two mpp"):
        read_mpp_table(tmp_path / "mpp.csv")
    (tmp_path / "mpp.csv").write_text("slide,mpp\na.svs,-1\n")
    with pytest.raises(SlideError, match="'-1' as mpp"):
        read_mpp_table(tmp_path / "mpp.csv")


def test_folders_within_the_folder_are_read(folder):
    for name in ("P1/S1.svs", "P2/S2.png", "P2/S2_mask.png", "P3/one.mrxs", "P3/one/Slide.dat", "P3/one/x.tif"):
        (folder / "deep" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "deep" / name).touch()
    assert listed(folder / "deep", "([^/]+)/") == [("P1", "S1"), ("P2", "S2"), ("P3", "one")]


def test_names_that_cannot_be_used_are_counted(folder):
    for name in ("Case 1.svs", "Fall-ß.svs"):
        (folder / name).touch()
    with pytest.raises(SlideError, match=r"2 slides in .* have names that .*: 'Case 1\.svs', 'Fall-ß\.svs'"):
        list_local_slides(folder)


def test_folder_of_dicom_files_is_one_slide(folder):
    series = folder / "dicom" / "S3.1"
    series.mkdir(parents=True)
    for name, size in (("1.2.3.dcm", 5), ("1.2.4.dcm", 9)):
        (series / name).write_bytes(b"0" * size)
    (slide,) = list_local_slides(folder / "dicom")
    assert (slide.case_id, slide.source_id, slide.path) == ("S3.1", "S3.1", series / "1.2.4.dcm")
    (folder / "slides.csv").write_text("case_id,slide\n7,dicom/S3.1\n")
    assert list_local_slides(folder / "slides.csv") == [replace(slide, case_id="7")]
    with pytest.raises(SlideError, match="2 DICOM files"):
        list_local_slides(series)


def test_folder_of_dicom_files_is_tiled_by_its_name(tmp_path):
    folder = tmp_path / "slides" / "S3.1"
    folder.mkdir(parents=True)
    dicom.write_slide(folder / "1.2.3.dcm", np.full((128, 192, 3), (200, 110, 175), np.uint8), "any", "1.2.826.1")
    (slide,) = list_local_slides(tmp_path / "slides")
    options = TileOptions(mpp=0.5, tile_px=64)
    # Case ids are trimmed, wherever they are given.
    tile_slides([slide.path], [f" {slide.case_id} "], tmp_path / "t.parquet", options, names=[slide.source_id])
    tiles = pq.read_table(tmp_path / "t.parquet", columns=["case_id", "source_id"]).to_pylist()
    assert tiles == [{"case_id": "S3.1", "source_id": "S3.1"}] * 6
