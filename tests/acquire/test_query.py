"""Queries of the GDC: manifests that pin a cohort."""

import gzip
import json

import pandas as pd
import pyarrow.parquet as pq
import pytest

from mgi.acquire import gdc
from mgi.acquire.manifest import ANNOTATION, EXPRESSION, SLIDES, read_manifest, refuse_other_choice
from mgi.errors import FetchError, ManifestError, MissingInputError
from mgi.simulate import api
from mgi.simulate.cohort import ANNOTATION_FILE_ID, PROJECT
from tests.cohorts import query

from .listings import file_id_of, record
from .servers import FILE_ID, pin_one, says, scripted

BOTH = ["expression", "slides"]


def edit_records(folder, change):
    path = folder / "files.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def star_records(records):
    return [record for record in records if record["data_type"] == EXPRESSION]


def test_manifest_has_the_contracted_columns_order_and_release(manifest, cohort):
    schema = pq.read_schema(manifest)
    assert schema.names == [
        "file_id", "file_name", "md5", "size", "data_type", "case_id", "sample_type", "aliquot", "project",
    ]  # fmt: skip
    assert schema.metadata[b"gdc_data_release"] == b"Simulated 1.0"
    rows = read_manifest(manifest)
    assert rows.data_type.value_counts().to_dict() == {
        EXPRESSION: 4, SLIDES: len(list(cohort.glob("data/*/*.svs"))), ANNOTATION: 1,
    }  # fmt: skip
    assert rows.data_type.tolist() == sorted(rows.data_type)
    for _, kind in rows.groupby("data_type"):
        keys = kind[["case_id", "file_name", "file_id"]].fillna("").apply(tuple, axis=1).tolist()
        assert keys == sorted(keys)
    expression = rows[rows.data_type == EXPRESSION]
    assert (expression.aliquot == expression.case_id + "-01A-11R-A000-07").all()
    slides = rows[rows.data_type == SLIDES]
    assert (slides.aliquot == slides.file_name.str.split(".").str[0]).all()
    assert rows[rows.data_type == ANNOTATION][["case_id", "aliquot", "project"]].isna().all(axis=None)


def test_paging_returns_the_same_manifest(manifest, cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(gdc, "PAGE", 3)
    query([PROJECT], tmp_path / "paged.parquet", f"local:{cohort}", BOTH, ANNOTATION_FILE_ID)
    assert (tmp_path / "paged.parquet").read_bytes() == manifest.read_bytes()


def test_project_without_files_is_named(cohort, tmp_path):
    with pytest.raises(ManifestError, match=r"Slide Image.*TCGA-NONE"):
        query(["TCGA-NONE"], tmp_path / "m.parquet", f"local:{cohort}", ["slides"])
    assert not (tmp_path / "m.parquet").exists()


def test_unknown_annotation_is_refused_but_gencode_v36_is_known(cohort, tmp_path):
    with pytest.raises(ManifestError, match=FILE_ID):
        query([PROJECT], tmp_path / "m.parquet", f"local:{cohort}", BOTH, FILE_ID)
    query([PROJECT], tmp_path / "m.parquet", f"local:{cohort}", BOTH, gdc.GENCODE_V36_FILE_ID)
    row = read_manifest(tmp_path / "m.parquet").set_index("data_type").loc[ANNOTATION]
    assert row.file_name == "gencode.v36.annotation.gtf.gz"
    assert row.md5 == "c03931958d4572148650d62eb6dec41a"
    assert pd.isna(row["size"])


def with_sample(record, file_id, sample_type, aliquot):
    """Another expression file of the same case."""
    copy = json.loads(json.dumps(record)) | {"file_id": file_id, "id": file_id}
    sample = copy["cases"][0]["samples"][0]
    sample["sample_type"] = sample_type
    sample["portions"][0]["analytes"][0]["aliquots"][0]["submitter_id"] = aliquot
    return copy


def test_one_expression_file_per_case_primary_tumour_then_lowest_aliquot(own_cohort, tmp_path):
    def change(records):
        first, second, third = star_records(records)[:3]
        case = [record["cases"][0]["submitter_id"] for record in (first, second, third)]
        metastatic = with_sample(first, FILE_ID[:-1] + "1", "Metastatic", f"{case[0]}-06A-11R-A000-07")
        earlier = with_sample(second, FILE_ID[:-1] + "2", "Primary Tumor", f"{case[1]}-01A-01R-A000-07")
        records.remove(third)
        normal = with_sample(third, FILE_ID[:-1] + "3", "Solid Tissue Normal", f"{case[2]}-11A-11R-A000-07")
        return [metastatic, earlier, normal, *records]

    records = star_records(json.loads((own_cohort / "files.json").read_text()))
    edit_records(own_cohort, change)
    query([PROJECT], tmp_path / "m.parquet", f"local:{own_cohort}", ["expression"])
    chosen = read_manifest(tmp_path / "m.parquet").set_index("case_id").file_id
    case = [record["cases"][0]["submitter_id"] for record in records]
    assert chosen[case[0]] == records[0]["file_id"]
    assert chosen[case[1]] == FILE_ID[:-1] + "2"
    assert case[2] not in chosen
    assert len(chosen) == 3


def test_frozen_slides_are_left_out(own_cohort, tmp_path):
    def change(records):
        slide = next(record for record in records if record["data_type"] == SLIDES)
        frozen = json.loads(json.dumps(slide).replace("-01Z-00-DX", "-01A-01-TS")) | {"file_id": FILE_ID}
        return [*records, frozen]

    edit_records(own_cohort, change)
    query([PROJECT], tmp_path / "m.parquet", f"local:{own_cohort}", ["slides"])
    assert read_manifest(tmp_path / "m.parquet").aliquot.str.contains("-DX").all()


def test_unreachable_server_is_reported_in_one_sentence(tmp_path, no_waiting):
    with pytest.raises(FetchError, match=r"http://127\.0\.0\.1:9/status.*network"):
        query([PROJECT], tmp_path / "m.parquet", "http://127.0.0.1:9", BOTH)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<html><title>Sign\x1b[2J in</title>", r"a web page, 'Sign\\x1b\[2J in'"),
        (b"hello", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"9" * 5000, "no JSON"),
        (b'{"data_release": ["R"]}', "answers no status"),
        (b"[]", "answers no status"),
    ],
    ids=["page", "text", "deep", "digits", "wrong type", "list"],
)
def test_rejects_address_of_another_server(tmp_path, no_waiting, body, said):
    with scripted([says(200, body)]) as (url, _), pytest.raises(FetchError, match=said):
        query([PROJECT], tmp_path / "m.parquet", url, BOTH)


ALIQUOTS = [
    "TCGA-AA-0001-01A-21R-A000-07", "TCGA-AA-0001-01A-11R-A000-07", "TCGA-AA-0001-01B-11H-A000-07",
    "TCGA-AA-0001-01A-11T-B000-07", "TCGA-AA-0001-02A-11R-A000-07", "TCGA-AA-0001-11A-11R-A000-07",
]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, ["TCGA-AA-0001-01A-11R-A000-07"]),
        ({"aliquots": "best"}, ["TCGA-AA-0001-01B-11H-A000-07"]),
        ({"aliquots": "all"}, ALIQUOTS[:5]),
        ({"sample_types": ["Recurrent Tumor", "Primary Tumor"]}, ["TCGA-AA-0001-02A-11R-A000-07"]),
        ({"sample_types": ["Solid Tissue Normal"]}, ["TCGA-AA-0001-11A-11R-A000-07"]),
    ],
)
def test_one_aliquot_of_a_case_by_a_stated_rule(listing, options, kept):
    records = [record(number, barcode) for number, barcode in enumerate(ALIQUOTS)]
    assert listing(records, "expression", **options) == kept
    assert listing(records[::-1], "expression", **options) == kept


def test_best_aliquot_of_one_analyte_is_the_highest_portion_and_plate(listing):
    records = [record(number, barcode) for number, barcode in enumerate(ALIQUOTS[:2])]
    assert listing(records, "expression", aliquots="best") == ["TCGA-AA-0001-01A-21R-A000-07"]


SECTIONS = [
    ("TCGA-AA-0001-01Z-00-DX2", 300), ("TCGA-AA-0001-01Z-00-DX1", 200), ("TCGA-AA-0001-01A-01-TS1", 900),
    ("TCGA-AA-0001-11A-01-BS1", 900), ("TCGA-AA-0001-11Z-00-DX1", 900), ("TCGA-AA-0001-06A-01-MSA", 800),
]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [1, 0]),
        ({"slides": ["frozen"]}, [2, 5]),
        ({"slides": ["diagnostic", "frozen"]}, [2, 1, 0, 5]),
        ({"slides_per_case": "first"}, [1]),
        ({"slides_per_case": "best"}, [0]),
        ({"slides": ["diagnostic", "frozen"], "slides_per_case": "best"}, [0]),
        ({"slides": ["frozen"], "slides_per_case": "best"}, [2]),
        ({"slides": ["frozen"], "sample_types": ["Metastatic"]}, [5]),
    ],
)
def test_slides_of_a_case_by_kind_and_a_stated_rule(listing, options, kept):
    records = [record(number, barcode, size=size) for number, (barcode, size) in enumerate(SECTIONS)]
    assert listing(records, "slides", **options) == [SECTIONS[k][0] for k in kept]


def test_sample_type_is_the_gdcs_where_the_barcode_has_none(listing):
    records = [
        record(1, "C3L-00001-21-TS", sample_type="Primary Tumor", case_id="C3L-00001"),
        record(2, "C3L-00002-21-TS", sample_type="Solid Tissue Normal", case_id="C3L-00002"),
    ]
    assert listing(records, "slides", slides=["frozen"]) == ["C3L-00001-21-TS"]


@pytest.mark.parametrize(
    "cases",
    [
        ["TARGET-30-PANAAA", "TARGET-30-PANBBB", "TARGET-30-PARCCC"],
        ["HCM-BROD-0001-C71", "HCM-BROD-0001-C72"],
        ["C3L-00001", "C3N-00001"],
        ["MMRF_1016", "MMRF_1017"],
        ["HTMCP-03-06-02001", "HTMCP-03-06-02002"],
    ],
)
def test_other_projects_keep_the_gdcs_own_case_ids(listing, tmp_path, cases):
    records = [
        record(number, f"{case}-01A-01R", case_id=case, sample_type="Primary Tumor")
        for number, case in enumerate(cases)
    ]
    assert listing(records, "expression") == [f"{case}-01A-01R" for case in cases]
    assert read_manifest(tmp_path / "m.parquet").case_id.tolist() == cases


@pytest.mark.parametrize(
    "said",
    [
        {"is_ffpe": True},
        {"is_ffpe": "true"},
        {"preservation_method": "FFPE"},
        {"preservation_method": "Formalin fixed-buffered"},
        {"sample_type": "FFPE Scrolls"},
    ],
)
@pytest.mark.parametrize("rule", ["first", "best", "all"])
def test_rna_of_ffpe_samples_is_left_out_by_the_record(listing, caplog, said, rule):
    frozen = "TCGA-AA-0001-01A-11R-1774-07"
    records = [
        record(1, frozen, sample_type="Primary Tumor", is_ffpe=False, preservation_method="Frozen"),
        # The letters of its barcode are those of any frozen aliquot.
        record(2, "TCGA-AA-0001-01A-01H-A278-07", **{"sample_type": "Primary Tumor"} | said),
    ]
    with caplog.at_level("INFO", "mgi"):
        assert listing(records, "expression", aliquots=rule) == [frozen]
    assert f"1 of 2 files left out, RNA of FFPE samples: '{records[1]['file_name']}'" in caplog.text


def test_other_samples_of_the_case_do_not_count(listing):
    one = record(1, "TCGA-AA-0001-01A-11R-1774-07", is_ffpe=False)
    one["cases"][0]["samples"].append({"sample_type": "Solid Tissue Normal", "is_ffpe": True, "portions": []})
    assert listing([one], "expression") == ["TCGA-AA-0001-01A-11R-1774-07"]


def test_ffpe_is_what_diagnostic_slides_are(listing):
    slide = record(1, SECTIONS[0][0], is_ffpe=True, preservation_method="FFPE")
    assert listing([slide], "slides") == [SECTIONS[0][0]]


@pytest.mark.parametrize(
    "said",
    [
        {"sample_type": "Next Generation Cancer Model"},
        {"sample_type": "Cell Lines"},
        {"sample_type": "Primary Xenograft Tissue"},
        {"sample_type": "Control Analyte"},
        {"sample_type": "Blood Derived Normal"},
        {"sample_type": None, "tissue_type": "Normal"},
        {"sample_type": "Primary Tumor", "tissue_type": "Peritumoral"},
        {"sample_type": "Primary Tumor", "specimen_type": "3D Organoid"},
        {"sample_type": "Primary Tumor", "specimen_type": "Cell Line"},
    ],
)
def test_normal_tissue_cell_lines_and_models_are_left_out_by_the_record(listing, said):
    keep = "HCM-BROD-0001-C71-01A"
    records = [
        record(1, keep, case_id="HCM-BROD-0001-C71", sample_type="Primary Tumor", tissue_type="Tumor"),
        record(2, "HCM-BROD-0002-C71-85A", case_id="HCM-BROD-0002-C71", **said),
    ]
    assert listing(records, "expression") == [keep]


def test_type_of_a_sample_without_one_is_made_of_tissue_and_descriptor(listing, tmp_path):
    new = {"tissue_type": "Tumor", "tumor_descriptor": "Metastatic"}
    listing([record(1, "HCM-BROD-0001-C71-06A", case_id="HCM-BROD-0001-C71", **new)], "expression")
    assert read_manifest(tmp_path / "m.parquet").sample_type.tolist() == ["Metastatic"]


def test_reports_project_of_ffpe_samples_only(listing):
    with pytest.raises(ManifestError, match="none to use: 1 left out, RNA of FFPE samples"):
        listing([record(1, ALIQUOTS[0], is_ffpe=True)], "expression")


def test_controls_and_cell_lines_are_no_tumour(listing):
    records = [
        record(1, "TCGA-AA-0001-01A-01R-1234-07"),
        record(2, "TCGA-AA-0002-20A-01R-1234-07", sample_type="Control Analyte"),
        record(3, "TCGA-AA-0003-40A-01R-1234-07", sample_type="Cell Lines"),
    ]
    assert listing(records, "expression") == ["TCGA-AA-0001-01A-01R-1234-07"]
    assert listing(records, "expression", sample_types=["Cell Lines"]) == ["TCGA-AA-0003-40A-01R-1234-07"]


def test_several_projects_make_one_manifest(listing, tmp_path):
    records = [
        record(1, "TCGA-AA-0001-01Z-00-DX1", project="TCGA-COAD"),
        record(2, "TCGA-AG-0001-01Z-00-DX1", project="TCGA-READ"),
    ]
    assert len(listing(records, "slides", projects=["TCGA-COAD", "TCGA-READ"])) == 2
    assert read_manifest(tmp_path / "m.parquet").project.tolist() == ["TCGA-COAD", "TCGA-READ"]


def test_excluded_files_are_left_out_and_reported(listing, tmp_path, caplog):
    records = [record(number, barcode) for number, (barcode, _) in enumerate(SECTIONS[:2])]
    table = tmp_path / "exclude.tsv"
    table.write_text(f"file_id\treason\n{records[1]['file_id']}\tpen marks\n{FILE_ID}\tblurred\n")
    with caplog.at_level("INFO", "mgi"):
        assert listing(records, "slides", exclude=str(table)) == [SECTIONS[0][0]]
    assert f"excluded {records[1]['file_id']}: pen marks" in caplog.text
    assert f"excluded {FILE_ID} is not among the files of the query" in caplog.text


def test_file_that_cannot_be_read_can_be_excluded_whatever_the_case_of_its_id(listing, tmp_path):
    records = [record(number, barcode) for number, (barcode, _) in enumerate(SECTIONS[:2])]
    records[1] = records[1] | {"file_id": f"abcdef01{FILE_ID[8:]}", "cases": records[1]["cases"] * 2}
    with pytest.raises(ManifestError, match=r"belongs to 2 cases.*exclude these files"):
        listing(records, "slides")
    table = tmp_path / "exclude.tsv"
    table.write_text(f"file_id\treason\n{records[1]['file_id'].upper()}\ttwo cases\n")
    assert listing(records, "slides", exclude=str(table)) == [SECTIONS[0][0]]


def test_all_unusable_records_are_named_at_once(listing):
    records = [record(number, f"TCGA-AA-000{number}-01A-01R-1234-07") for number in range(6)]
    for number in (1, 3, 4):
        records[number]["cases"] *= 2
    records[5]["md5sum"] = None
    with pytest.raises(ManifestError, match=r"4 of 6 records") as caught:
        listing(records, "expression")
    for number in (1, 3, 4, 5):
        assert file_id_of(number) in str(caught.value)
    assert "it lacks 'md5'" in str(caught.value)


def test_only_open_files_of_star_counts_are_listed(listing):
    records = [record(number, f"TCGA-AA-000{number}-01A-01R-1234-07") for number in range(3)]
    records[1]["access"] = "controlled"
    records[2]["analysis"] = {"workflow_type": "HTSeq - Counts"}
    assert listing(records, "expression") == ["TCGA-AA-0000-01A-01R-1234-07"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"md5sum": None}, "lacks 'md5'"),
        ({"file_size": None}, "lacks 'size'"),
        ({"file_size": 2**70}, "'size' '1180591620717411303424' is no number of bytes"),
        ({"file_size": "100"}, "'size' '100' is no number of bytes"),
        ({"file_size": -1}, "'size' '-1' is no number of bytes"),
        ({"file_size": 1.5}, "'size' '1.5' is no number of bytes"),
        ({"md5sum": "0" * 31}, "is not 32 hexadecimal digits"),
        ({"file_name": "TCGA-AA-0001-01Z-00-DX1$(touch PWNED).svs"}, r"\$\(touch PWNED\).*use ASCII letters"),
        ({"file_name": "../x.svs"}, r"'\.\./x\.svs': use ASCII"),
        ({"file_name": "a\nb.svs"}, r"'a\\nb\.svs': use ASCII"),
        ({"file_name": ["x.svs"]}, "'file_name' is no string"),
        ({"cases": {"submitter_id": "x"}}, "'cases' is no list"),
        ({"cases": [{"submitter_id": 7}]}, "'submitter_id'"),
        ({"cases": []}, "belongs to 0 cases"),
        ({"data_type": "Slides"}, "which was not asked for"),
    ],
)
def test_unusable_record_is_named(tmp_path, monkeypatch, change, said):
    hit = record(1, SECTIONS[0][0]) | change
    answers = {"/status": {}, "/files": {"data": {"hits": [hit], "pagination": {"total": 1}}}}
    monkeypatch.setattr(gdc.Server, "ask", lambda self, method, path, body=None, **_: answers[path])
    with pytest.raises(ManifestError, match=said) as caught:
        query([PROJECT], tmp_path / "m.parquet", "http://127.0.0.1:9", ["slides"])
    assert file_id_of(1) in str(caught.value)


@pytest.mark.parametrize("file_id", [None, 7, "../../etc", "x" * 100, ["a"]])
def test_record_without_a_usable_id_is_refused(tmp_path, monkeypatch, file_id):
    hit = record(1, SECTIONS[0][0]) | {"file_id": file_id}
    answers = {"/status": {}, "/files": {"data": {"hits": [hit, 7, None], "pagination": {"total": 3}}}}
    monkeypatch.setattr(gdc.Server, "ask", lambda self, method, path, body=None, **_: answers[path])
    with pytest.raises(ManifestError, match="3 of 3 records"):
        query([PROJECT], tmp_path / "m.parquet", "http://127.0.0.1:9", ["slides"])


def test_case_ids_that_differ_in_letters_only_are_refused(listing):
    records = [
        record(1, "a-01", case_id="MMRF_1016a", sample_type="Primary Tumor"),
        record(2, "b-01", case_id="MMRF_1016A", sample_type="Primary Tumor"),
    ]
    with pytest.raises(ManifestError, match="in two ways, 'MMRF_1016a' and 'MMRF_1016A'"):
        listing(records, "expression")


def test_barcode_of_another_case_is_refused(listing):
    with pytest.raises(ManifestError, match="is of another case than 'TCGA-AA-0002'"):
        listing([record(1, ALIQUOTS[0], case_id="TCGA-AA-0002")], "expression")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"warnings": {}}, r"/files answers no list of files: '\{\\?'warnings"),
        ({"data": None}, "answers no list of files"),
        ({"data": {"hits": []}}, "answers no list of files"),
        ({"data": {"hits": {}, "pagination": {"total": 1}}}, "answers no list of files"),
        ({"data": {"hits": [], "pagination": {"total": "1"}}}, "answers no list of files"),
        ({"data": {"hits": [], "pagination": {"total": -1}}}, "answers no list of files"),
        ({"data": {"hits": [], "pagination": {"total": 10**15}}}, "lists 1000000000000000 files"),
        ({"data": {"hits": [], "pagination": {"total": 7}}}, "0 of 7 files"),
    ],
)
def test_rejects_answers_of_another_form(tmp_path, monkeypatch, files, said):
    answers = {"/status": {}, "/files": files}
    monkeypatch.setattr(gdc.Server, "ask", lambda self, method, path, body=None, **_: answers[path])
    with pytest.raises(FetchError, match=said):
        query([PROJECT], tmp_path / "m.parquet", "http://127.0.0.1:9", ["slides"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id\treason\nx\ty\n", "lacks the column file_id"),
        (f"file_id\treason\n{FILE_ID}\t\n", "lacks 'reason' .'row 1'"),
        (f"file_id\treason\n{FILE_ID}\tblurred\nslide 7\tblurred\n", "'slide 7' is not a UUID .'row 2'"),
        (f"file_id\treason\n{FILE_ID}\tbl\x07urred\n", "U.0007"),
        ("", "is empty"),
    ],
)
def test_unusable_exclusion_table_is_refused(listing, tmp_path, text, said):
    table = tmp_path / "exclude.tsv"
    table.write_text(text)
    with pytest.raises(ManifestError, match=said):
        listing([], "slides", exclude=str(table))
    with pytest.raises(MissingInputError, match="absent"):
        listing([], "slides", exclude=str(tmp_path / "absent.tsv"))


def test_manifest_pinned_by_another_choice_is_refused(listing, tmp_path):
    listing([record(1, SECTIONS[0][0])], "slides", slides=["frozen", "diagnostic"])
    choice = {"slides": ["diagnostic", "frozen"], "sample_types": [], "aliquots": "first", "slides_per_case": "all"}
    refuse_other_choice(tmp_path / "m.parquet", **choice)
    for name, value in (("slides", ["frozen"]), ("sample_types", ["Metastatic"]), ("slides_per_case", "best")):
        with pytest.raises(
            ManifestError, match=rf"pinned with gdc\.{name} .* but the configuration says .*{value[-1]}"
        ):
            refuse_other_choice(tmp_path / "m.parquet", **choice | {name: value})
    refuse_other_choice(pin_one(tmp_path / "one.parquet"), **choice)


def test_real_answer_is_paged_through_and_what_it_lacks_is_named(data_dir, monkeypatch):
    with gzip.open(data_dir / "gdc" / "files_tcga_brca_2019.json.gz", "rt") as handle:
        real = json.load(handle)
    for number, entry in enumerate(real):
        entry["file_id"] = file_id_of(number)
    monkeypatch.setattr(gdc.Server, "ask", lambda self, method, path, body, **_: api.list_files(real, body))
    filters = {"op": "in", "content": {"field": "cases.project.project_id", "value": ["TCGA-BRCA"]}}
    server = gdc.Server("http://127.0.0.1:9")
    listed = gdc.list_files(server, filters, "file_id,file_name,file_size,cases.case_id")
    assert [entry["file_name"] for entry in listed] == [entry["file_name"] for entry in real]
    assert sum(entry["file_size"] for entry in listed) == sum(entry["file_size"] for entry in real)
    with pytest.raises(ManifestError, match=f"{len(real)} of {len(real)} records .* lacks 'md5' .*{file_id_of(0)}"):
        gdc._candidates(listed, EXPRESSION, "TCGA-BRCA")
