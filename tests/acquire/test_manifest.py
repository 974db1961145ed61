"""Manifests: read, and refused with everything that is wrong with them."""

import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mgi.acquire.manifest import EXPRESSION, QUERY_KEY, SLIDES, read_manifest, refuse_other_choice
from mgi.barcodes import Barcode
from mgi.errors import ManifestError, MissingInputError
from mgi.tables import MANIFEST_SCHEMA, write_table

from .servers import CONTENT, FILE_ID, pin_one


def portal(path, rows, header="id\tfilename\tmd5\tsize"):
    path.write_text("\n".join([header, *("\t".join(row) for row in rows)]) + "\n")
    return path


def test_repeated_file_is_refused(manifest, tmp_path):
    table = pq.read_table(manifest)
    write_table(pa.concat_tables([table, table.slice(2, 1)]), tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match=table["file_id"][2].as_py()):
        read_manifest(tmp_path / "m.parquet")


def test_missing_file_or_column_is_named(manifest, tmp_path):
    with pytest.raises(MissingInputError, match="absent"):
        read_manifest(tmp_path / "absent.parquet")
    write_table(pq.read_table(manifest).drop_columns("md5"), tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match="md5"):
        read_manifest(tmp_path / "m.parquet")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"file_id": "../../etc"}, "'file_id' '../../etc' is not a UUID"),
        ({"file_id": None}, "lacks 'file_id'"),
        ({"md5": None}, "lacks 'md5'"),
        ({"md5": "A1"}, "'md5' 'A1' is not 32 hexadecimal digits"),
        ({"file_name": "a/.."}, "'file_name' is 'a/..'"),
        ({"file_name": "x$(touch PWNED).svs"}, "'file_name'"),
        ({"file_name": "x`id`.svs"}, "'file_name'"),
        ({"file_name": "x;id.svs"}, "'file_name'"),
        ({"file_name": "x y.svs"}, "'file_name'"),
        ({"file_name": "{wildcards}.svs"}, "'file_name'"),
        ({"file_name": "-rf.svs"}, "'file_name'"),
        ({"file_name": "x" * 300}, "'file_name'"),
        ({"size": -1}, "'size' '-1' is no number of bytes"),
        ({"size": 2**62}, "is no number of bytes"),
        ({"project": "../../x"}, "'project'"),
        ({"case_id": "TCGA\u2010AA\u20100001"}, "HYPHEN"),
        ({"case_id": "a\x00b"}, "'case_id'"),
        ({"aliquot": "a\nb"}, "'aliquot'"),
        ({"sample_type": "\u202ePrimary"}, "'sample_type'"),
        ({"aliquot": "TCGA-AA-0001-01A", "case_id": "TCGA-AA-0002"}, "is not of its case 'TCGA-AA-0002'"),
        ({"aliquot": "TCGA-AA-0001-01A", "case_id": "tcga-aa-0001"}, "is not of its case"),
        ({"aliquot": "TCGA-AA-0001-01A", "case_id": None}, "is not of its case"),
    ],
)
def test_unusable_row_is_named(tmp_path, changes, said):
    with pytest.raises(ManifestError, match=said):
        read_manifest(pin_one(tmp_path / "m.parquet", **changes))


def test_surrounding_space_of_labels_is_dropped(tmp_path):
    assert read_manifest(pin_one(tmp_path / "m.parquet", case_id=" A-1 ")).case_id.tolist() == ["A-1"]


def test_case_ids_that_differ_in_letters_only_are_refused(tmp_path):
    rows = [
        dict.fromkeys(MANIFEST_SCHEMA.names)
        | {"file_id": f"{number:08d}{FILE_ID[8:]}", "file_name": "x", "md5": "0" * 32, "case_id": case_id}
        for number, case_id in enumerate(["Case-1", "case-1"])
    ]
    write_table(pa.Table.from_pylist(rows, MANIFEST_SCHEMA), tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match="in two ways, 'Case-1' and 'case-1'"):
        read_manifest(tmp_path / "m.parquet")


def test_many_unusable_rows_are_named_together(tmp_path):
    rows = [
        dict.fromkeys(MANIFEST_SCHEMA.names)
        | {"file_id": f"{number:08d}{FILE_ID[8:]}", "file_name": "x" if number else "x y", "md5": "0" * 31}
        for number in range(5)
    ]
    write_table(pa.Table.from_pylist(rows, MANIFEST_SCHEMA), tmp_path / "m.parquet")
    with pytest.raises(
        ManifestError, match=r"5 of 5 rows .*not 32 hexadecimal digits \('00000001.* and 1 more\); .*'x y'"
    ):
        read_manifest(tmp_path / "m.parquet")


def test_columns_of_another_type_are_refused(tmp_path):
    for name, values in {"file_id": [7], "size": ["many"], "case_id": [[1]]}.items():
        table = pq.read_table(pin_one(tmp_path / "m.parquet"))
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
        write_table(table, tmp_path / "m.parquet")
        with pytest.raises(ManifestError, match=f"the column {name} is of another type"):
            read_manifest(tmp_path / "m.parquet")


def test_manifest_written_by_pandas_is_read(tmp_path):
    frame = read_manifest(pin_one(tmp_path / "m.parquet"))
    frame.astype({"size": float}).to_parquet(tmp_path / "pandas.parquet")
    pd.testing.assert_frame_equal(read_manifest(tmp_path / "pandas.parquet"), frame)
    frame.assign(size=None).to_parquet(tmp_path / "pandas.parquet")
    assert read_manifest(tmp_path / "pandas.parquet")["size"].isna().all()


def test_text_repeated_without_end_is_refused_before_it_is_repeated(tmp_path):
    table = pa.table({name: pa.nulls(100_000, pa.string()) for name in MANIFEST_SCHEMA.names if name != "size"})
    long = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), pa.array(["x" * (1 << 20)]))
    table = table.set_column(0, "file_id", long).append_column("size", pa.nulls(100_000, pa.int64()))
    pq.write_table(table, tmp_path / "m.parquet", compression="zstd")
    assert (tmp_path / "m.parquet").stat().st_size < 1 << 20
    with pytest.raises(ManifestError, match="a text in the column file_id is too long"):
        read_manifest(tmp_path / "m.parquet")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\xff" * 100 + b"PAR1", b"<html>"])
def test_file_that_is_no_manifest_is_refused(tmp_path, content):
    (tmp_path / "m.parquet").write_bytes(content)
    with pytest.raises(ManifestError, match=r"m\.parquet"):
        read_manifest(tmp_path / "m.parquet")


@pytest.mark.parametrize("stated", [b"{", b"[]", b"7", b"\xff\xfe", b"[" * 100_000, b"9" * 5000])
def test_choice_that_is_no_json_is_refused(tmp_path, stated):
    table = pq.read_table(pin_one(tmp_path / "m.parquet")).replace_schema_metadata({QUERY_KEY: stated})
    write_table(table, tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match="states in its metadata what is not a choice"):
        refuse_other_choice(tmp_path / "m.parquet", slides=["diagnostic"])


def test_choice_of_another_type_is_another_choice(tmp_path):
    stated = json.dumps({"slides": {"a\x1b": 1}}).encode()
    table = pq.read_table(pin_one(tmp_path / "m.parquet")).replace_schema_metadata({QUERY_KEY: stated})
    write_table(table, tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match=r"pinned with gdc\.slides"):
        refuse_other_choice(tmp_path / "m.parquet", slides=["diagnostic"])


@pytest.mark.parametrize("size", ["12.5", "1e30", "many", "-3", "9" * 5000, str(2**70)])
def test_rejects_portal_manifest_with_invalid_size(tmp_path, size):
    path = portal(tmp_path / "m.txt", [(FILE_ID, "a.svs", "0" * 32, size)])
    with pytest.raises(ManifestError, match=r"'size' .* is no number of bytes"):
        read_manifest(path)


def test_portal_manifest_names_kind_case_and_sample_by_the_name(tmp_path):
    names = [
        "TCGA-AA-0001-11A-01-TS1.X.svs",
        "u.rna_seq.augmented_star_gene_counts.tsv",
        "g.gtf.gz",
        "C3L-00001-21.svs",
    ]
    rows = [(f"{number:08d}{FILE_ID[8:]}", name, "0" * 32, "7") for number, name in enumerate(names)]
    read = read_manifest(portal(tmp_path / "m.txt", rows)).set_index("file_name")
    assert read.data_type[names].tolist() == [SLIDES, EXPRESSION, "Gene Annotation", SLIDES]
    assert read.loc[names[0], ["case_id", "sample_type", "aliquot"]].tolist() == [
        "TCGA-AA-0001", "Solid Tissue Normal", "TCGA-AA-0001-11A-01-TS1",
    ]  # fmt: skip
    assert read.loc[names[1:], ["case_id", "sample_type", "aliquot", "project"]].isna().all(axis=None)
    assert read["size"].tolist() == [7] * 4


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html>\n<html></html>\n", "a web page"),
        (b"", "is empty"),
        (f"id\tfilename\tmd5\tsize\n{FILE_ID}\tx\n".encode(), "fields"),
        (f"id,filename,md5,size\n{FILE_ID},x,{'0' * 32},7\n".encode(), "lacks the column"),
        ((f"id\tfilename\tmd5\tsize\n{FILE_ID}\tx\t{'0' * 32}\t7\n" * 2).encode(), "line 3 repeats the header"),
        ("id\tfilename\tmd5\tsize\nM\u00fcller".encode("latin1"), "UTF-8"),
        (b"\x1f\x8b\x08\x00", "cut short or damaged"),
    ],
)
def test_file_that_is_no_portal_manifest_is_refused_saying_what_it_is(tmp_path, content, said):
    (tmp_path / "m.txt").write_bytes(content)
    with pytest.raises(ManifestError, match=said):
        read_manifest(tmp_path / "m.txt")


def test_every_slide_of_tcga_maps_to_its_case(data_dir):
    rows = read_manifest(data_dir / "gdc" / "manifest_all_tcga_svs.tsv.gz")
    assert len(rows) == 30075
    assert (rows.data_type == SLIDES).all()
    assert rows.case_id.str.fullmatch(r"TCGA-\w\w-\w{4}").all()
    assert (rows.file_name.str[:12] == rows.case_id).all()
    assert rows.sample_type.notna().all()
    section = rows.aliquot.map(lambda barcode: Barcode.parse(barcode).section)
    # Counted on the barcodes by other means: the sixth field of each, without its number.
    assert section.value_counts().to_dict() == rows.aliquot.str.split("-").str[5].str[:2].value_counts().to_dict()
    assert section.value_counts().to_dict() == {"DX": 11766, "TS": 12801, "BS": 5390, "MS": 118}
    assert (rows.sample_type == "Solid Tissue Normal").sum() == 2789


def test_other_real_tables_of_the_gdc(data_dir):
    legacy = read_manifest(data_dir / "gdc" / "files_tcga_lgg_htseq_era.tsv.gz")
    assert len(legacy) == 5307
    assert set(legacy.project) == {"TCGA-LGG"}
    with pytest.raises(ManifestError, match="lacks the column filename, id, md5, size; it has File ID"):
        read_manifest(data_dir / "gdc" / "gdc_sample_sheet_tcga_lusc.tsv.gz")


def test_manifest_is_read_as_it_was_written(tmp_path):
    read = read_manifest(pin_one(tmp_path / "m.parquet", file_id=FILE_ID.upper(), case_id="\u00c5-1"))
    assert read.iloc[0].tolist()[:4] == [FILE_ID, "counts.tsv", read.md5[0], len(CONTENT)]
    assert read.case_id.tolist() == ["\u00c5-1"]
