"""Tables between the stages: schemas, readers and writers, and the import of MRI into the table of images."""

import struct
import zlib

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mgi import tables
from mgi.codecs import decode_ignore, decode_image, decode_mask, encode_jpeg, encode_mask, encode_png
from mgi.config import MriOptions
from mgi.errors import ImageTableError, MissingInputError, MriError
from mgi.prepare.mri import MEDIAN, import_mri
from mgi.tables import (
    EXPRESSION_SCHEMA,
    IMAGES_SCHEMA,
    expression_schema,
    read_any_table,
    read_csv,
    source_of,
    write_csv,
    write_tsv,
)

NAMES = ["TCGA_CS_4941_19960909", "TCGA_DU_0001_19990101"]


@pytest.fixture
def folder(tmp_path):
    """Two series of 70 slices, a bright disc in dark but not black air, its left half tumour."""
    rows, columns = np.mgrid[:64, :64]
    disc = (rows - 32) ** 2 + (columns - 32) ** 2 < 24**2
    rng = np.random.default_rng(0)
    for name in NAMES:
        (tmp_path / "in" / name).mkdir(parents=True)
        for number in range(1, 71):
            noise = rng.integers(0, 5, (64, 64, 3))
            head = np.stack([rng.integers(low, low + 40, (64, 64)) for low in (40, 60, 100)], axis=-1)
            pixels = np.where(disc[..., None], head, noise).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "in" / name / f"{name}_{number}.tif")
            mask = np.where(disc & (columns < 32), np.uint8(255), np.uint8(0))
            Image.fromarray(mask).save(tmp_path / "in" / name / f"{name}_{number}_mask.tif")
    return tmp_path / "in"


def imported(folder, size=32):
    output, sources = folder.parent / "out" / "mri.parquet", folder.parent / "out" / "sources.parquet"
    import_mri(folder, output, sources, MriOptions(image_px=size))
    return output, pq.read_table(sources).to_pylist()


def test_codecs_return_what_they_were_given():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (24, 16, 3), dtype=np.uint8)
    mask = rng.integers(0, 2, (24, 16), dtype=np.uint8)
    assert np.array_equal(decode_image(encode_png(pixels)), pixels)
    assert np.array_equal(decode_mask(encode_mask(mask)), mask)
    smooth = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None] * 4, (64, 64, 3)).copy()
    assert np.abs(decode_image(encode_jpeg(smooth)).astype(int) - smooth).max() < 8


def test_ignored_pixels_are_neither_tumour_nor_background():
    mask, ignore = np.array([[1, 1, 0, 0]]), np.array([[0, 1, 1, 0]])
    encoded = encode_mask(mask, ignore)
    assert decode_mask(encoded).tolist() == [[1, 0, 0, 0]]
    assert decode_ignore(encoded).tolist() == [[False, True, True, False]]


def png_header(width, height):
    """A PNG that claims a size and holds no pixel."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize("encoded", [b"", b"%!PS-Adobe-3.0 EPSF-3.0", png_header(10**6, 10**6), png_header(9000, 9000)])
def test_foreign_bytes_in_a_table_are_refused(encoded):
    for decode in (decode_image, decode_mask, decode_ignore):
        with pytest.raises(ImageTableError, match="unreadable image in a table"):
            decode(encoded)


@pytest.mark.parametrize(
    ("name", "source_id"),
    [
        ("TCGA-A4-8098-01Z-00-DX1.9936E591-5577-56C1-9057-00BD6AB95F64.svs", "TCGA-A4-8098-01Z-00-DX1"),
        ("S21.1234.A.tif", "S21.1234.A"),
        ("C3L-00001-21.svs", "C3L-00001-21"),
        ("HCM-BROD-0002.9936e591-5577-56c1-9057-00bd6ab95f64.svs", "HCM-BROD-0002"),
        ("field.ome.tiff", "field"),
        ("slide", "slide"),
    ],
)
def test_source_is_named_after_its_file(name, source_id):
    assert source_of(f"folder.with.dots/{name}") == source_id


def test_every_slice_is_a_row_in_order(folder):
    output, sources = imported(folder)
    table = pq.read_table(output)
    assert table.schema.equals(IMAGES_SCHEMA)
    assert table["case_id"].to_pylist() == ["TCGA-CS-4941"] * 70 + ["TCGA-DU-0001"] * 70
    assert table["z"].to_pylist() == [*range(1, 71)] * 2
    assert table["mpp"].null_count == 140 and set(table["size"].to_pylist()) == {64}
    assert pq.ParquetFile(output).metadata.row_group(0).num_rows == 64
    assert [(row["status"], row["n_images"], row["labelled"], row["table"]) for row in sources] == [
        ("ok", 70, True, "mri")
    ] * 2


def test_intensities_and_masks_keep_their_place(folder):
    output, _ = imported(folder)
    row = pq.read_table(output).slice(3, 1).to_pylist()[0]
    image, mask = decode_image(row["image"]), decode_mask(row["mask"])
    assert image.shape == (32, 32, 3) and mask.shape == (32, 32)
    assert image[:2].max() == 0
    inside = image[8:24, 8:24].reshape(-1, 3)
    assert np.abs(np.median(inside, axis=0) - MEDIAN).max() < 12
    assert abs(row["tissue_fraction"] - np.pi * 24**2 / 64**2) < 0.01
    assert abs(mask.mean() - np.pi * 24**2 / 2 / 64**2) < 0.01 and mask[:, 16:].sum() == 0


def test_normalisation_ignores_the_gain_of_the_scanner(folder):
    image = decode_image(pq.read_table(imported(folder)[0])["image"][0].as_py()).astype(int)
    for path in folder.glob("*/*[0-9].tif"):
        Image.fromarray(np.asarray(Image.open(path)) // 2).save(path)
    dimmer = decode_image(pq.read_table(imported(folder)[0])["image"][0].as_py()).astype(int)
    assert np.abs(image - dimmer).mean() < 4


def test_bad_series_is_skipped_with_its_reason_and_others_go_on(folder):
    (folder / NAMES[0] / f"{NAMES[0]}_7_mask.tif").unlink()
    output, sources = imported(folder)
    assert [row["status"] for row in sources] == ["skipped", "ok"]
    assert sources[0]["reason"] == f"missing mask: {NAMES[0]}_7_mask.tif" and sources[0]["n_images"] == 0
    assert set(pq.read_table(output)["case_id"].to_pylist()) == {"TCGA-DU-0001"}


def test_bad_series_is_an_error_where_nothing_would_record_it(folder):
    (folder / NAMES[0] / f"{NAMES[0]}_7_mask.tif").unlink()
    with pytest.raises(MriError, match="--sources"):
        import_mri(folder, folder.parent / "mri.parquet", None, MriOptions(image_px=32))
    assert not (folder.parent / "mri.parquet").exists()


def test_import_is_reproducible_to_the_byte(folder):
    first = imported(folder)[0].read_bytes()
    assert imported(folder)[0].read_bytes() == first


def test_expression_schema_is_of_one_number_of_genes():
    schema = expression_schema(3, {"unit": "counts"})
    assert schema.names == EXPRESSION_SCHEMA.names and schema.metadata == {b"unit": b"counts"}
    assert schema.field("values").type.list_size == 3 and not schema.field("values").type.value_field.nullable


def test_cells_of_any_table_are_text(tmp_path):
    frame = pd.DataFrame({"case_id": ["001", " 1 ", None], "n": [1, 2, 3], "yes": [True, False, True]})
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_csv(tmp_path / "t.csv", index=False)
    expected = {"case_id": ["001", "1", None], "n": ["1", "2", "3"], "yes": ["True", "False", "True"]}
    for name in ("t.parquet", "t.csv"):
        assert read_any_table(tmp_path / name, "table").to_dict("list") == expected
        with pytest.raises(MissingInputError, match=r"table .* lacks the column grade; it has case_id, n, yes"):
            read_any_table(tmp_path / name, "table", ["grade"])
    frame.set_index("case_id").to_parquet(tmp_path / "indexed.parquet")
    assert read_any_table(tmp_path / "indexed.parquet", "table").to_dict("list") == expected


def test_results_are_read_as_numbers_and_text(tmp_path):
    frame = pd.DataFrame({"variant": ["mgi", "=1+1"], "dice": [0.5, None], "n": [3, 4], "note": [None, "-x"]})
    write_csv(frame, tmp_path / "t.csv", "%.2f")
    assert (tmp_path / "t.csv").read_text() == "variant,dice,n,note\nmgi,0.50,3,\n'=1+1,,4,'-x\n"
    found = read_csv(tmp_path / "t.csv", "results", ["variant"])
    assert found.dice.tolist()[0] == 0.5 and found.isna().sum().tolist() == [0, 1, 0, 1] and found.n.sum() == 7


@pytest.mark.parametrize("cell", ["=HYPERLINK(1)", "+1+2", "@SUM(1)", "-1+2", "\t=1", "\r=1"])
def test_no_cell_is_a_formula(tmp_path, cell):
    write_tsv(pd.DataFrame({"name": [cell, "-1.5", "a=b"], "value": [-1.5, 2, 3]}), tmp_path / "t.tsv")
    assert pd.read_csv(tmp_path / "t.tsv", sep="\t", dtype=str).name.tolist()[0].startswith("'")
    assert pd.read_csv(tmp_path / "t.tsv", sep="\t").value.tolist() == [-1.5, 2, 3]
    assert pd.read_csv(tmp_path / "t.tsv", sep="\t", dtype=str).name.tolist()[1:] == ["-1.5", "a=b"]


def test_table_that_claims_too_many_values_is_refused_before_it_is_read(tmp_path):
    zeros = pa.DictionaryArray.from_arrays(pa.array(np.zeros(56_000_000, np.int8)), pa.array([0.0]))
    pq.write_table(pa.table({str(k): zeros for k in range(10)}), tmp_path / "bomb.parquet")
    assert (tmp_path / "bomb.parquet").stat().st_size < 5_000_000
    with pytest.raises(MissingInputError, match="claims 560000000 values; the limit is 536870912"):
        read_any_table(tmp_path / "bomb.parquet", "table")


@pytest.mark.parametrize("nested", [False, True])
def test_rejects_a_dictionary_that_stands_for_far_more_text(tmp_path, monkeypatch, nested):
    monkeypatch.setattr(tables, "SMALL_TEXT_BYTES", 1 << 20)
    monkeypatch.setattr(tables, "MAX_TEXT_EXPANSION", 10)
    texts = [["x" * 1000] if nested else "x" * 1000] * 3000
    pq.write_table(pa.table({"case_id": texts}), tmp_path / "bomb.parquet")
    with pytest.raises(MissingInputError, match="holds more than 1 MB of text, far more than its size suggests"):
        tables.read_any_table(tmp_path / "bomb.parquet", "table of labels")
    pq.write_table(pa.table({"case_id": texts[:900]}), tmp_path / "small.parquet")
    assert len(tables.read_any_table(tmp_path / "small.parquet", "table of labels")) == 900


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ([["A"], ["B"]], "values of type ndarray in its column case_id: write it as text"),
        ([b"A", b"B"], "values of type bytes"),
        ([1.0, None], "decimal numbers in its column case_id"),
        ([{"id": "A"}, None], "values of type dict"),
    ],
)
def test_rejects_case_ids_that_are_no_text(tmp_path, cells, reason):
    pq.write_table(pa.table({"case_id": cells, "age": [1.5, 2.0]}), tmp_path / "labels.parquet")
    with pytest.raises(MissingInputError, match=reason):
        read_any_table(tmp_path / "labels.parquet", "table of labels", ["case_id", "age"])


@pytest.mark.parametrize(("cell", "written"), [("＝1+1", "'＝1+1"), ("a\x1b[2Jb", r"a\x1b[2Jb"), ("-0.5", "-0.5")])  # noqa: RUF001
def test_cells_of_text_tables_hold_no_formula_and_no_control_character(tmp_path, cell, written):
    write_tsv(pd.DataFrame({"name": [cell]}), tmp_path / "out.tsv")
    assert (tmp_path / "out.tsv").read_text().splitlines() == ["name", written]
