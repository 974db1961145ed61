"""The GDC client: manifests that pin a cohort."""

import gzip
import json

import pandas as pd
import pyarrow.parquet as pq
import pytest

from mgi.acquire import gdc
from mgi.acquire.manifest import ANNOTATION, EXPRESSION, SLIDES, read_manifest, refuse_other_choice
from mgi.barcodes import BARCODE
from mgi.errors import ConfigError, FetchError, ManifestError, MissingInputError
from mgi.simulate import serve
from mgi.simulate.cohort import ANNOTATION_FILE_ID, PROJECT
from mgi.tables import write_table

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


def test_paging_gives_the_same_manifest(manifest, cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(gdc, "PAGE", 3)
    gdc.query([PROJECT], tmp_path / "paged.parquet", f"local:{cohort}", BOTH, ANNOTATION_FILE_ID)
    assert (tmp_path / "paged.parquet").read_bytes() == manifest.read_bytes()


def test_project_without_files_is_named(cohort, tmp_path):
    with pytest.raises(ManifestError, match=r"Slide Image.*TCGA-NONE"):
        gdc.query(["TCGA-NONE"], tmp_path / "m.parquet", f"local:{cohort}", ["slides"], None)
    assert not (tmp_path / "m.parquet").exists()


def test_unknown_annotation_is_refused_but_gencode_v36_is_known(cohort, tmp_path):
    with pytest.raises(ManifestError, match=FILE_ID):
        gdc.query([PROJECT], tmp_path / "m.parquet", f"local:{cohort}", BOTH, FILE_ID)
    gdc.query([PROJECT], tmp_path / "m.parquet", f"local:{cohort}", BOTH, gdc.GENCODE_V36_FILE_ID)
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
    gdc.query([PROJECT], tmp_path / "m.parquet", f"local:{own_cohort}", ["expression"], None)
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
    gdc.query([PROJECT], tmp_path / "m.parquet", f"local:{own_cohort}", ["slides"], None)
    assert read_manifest(tmp_path / "m.parquet").aliquot.str.contains("-DX").all()


def test_record_without_md5_is_named(own_cohort, tmp_path):
    def change(records):
        for record in records:
            record.pop("md5sum")
        return records

    edit_records(own_cohort, change)
    with pytest.raises(ManifestError, match="lacks 'md5sum'"):
        gdc.query([PROJECT], tmp_path / "m.parquet", f"local:{own_cohort}", ["slides"], None)


def test_manifest_that_repeats_a_file_is_refused(manifest, tmp_path):
    table = pq.read_table(manifest)
    doubled = gdc.pa.concat_tables([table, table.slice(2, 1)])
    write_table(doubled, tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match=table["file_id"][2].as_py()):
        read_manifest(tmp_path / "m.parquet")


def test_unusable_manifests_are_refused(manifest, tmp_path):
    with pytest.raises(MissingInputError, match="absent"):
        read_manifest(tmp_path / "absent.parquet")
    write_table(pq.read_table(manifest).drop_columns("md5"), tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match="md5"):
        read_manifest(tmp_path / "m.parquet")
    for changes in ({"file_id": "../../etc"}, {"md5": None}, {"md5": "A1"}, {"file_name": "a/.."}):
        with pytest.raises(ManifestError):
            read_manifest(pin_one(tmp_path / "m.parquet", **changes))


def test_unreachable_server_is_told_in_one_sentence(tmp_path, no_waiting):
    with pytest.raises(FetchError, match=r"http://127\.0\.0\.1:9/status.*network"):
        gdc.query([PROJECT], tmp_path / "m.parquet", "http://127.0.0.1:9", BOTH, None)


def test_address_that_is_no_gdc_is_told(tmp_path, no_waiting):
    with scripted([says(200, b"<html>")]) as (url, _), pytest.raises(FetchError, match=r"gdc\.api_url"):
        gdc.query([PROJECT], tmp_path / "m.parquet", url, BOTH, None)


def record(number, barcode, *, project=PROJECT, sample_type=None, size=100):
    """A record of `/files` for a slide or a STAR table, told apart by its barcode."""
    file_id = f"{number:08d}-2222-4333-8444-555555555555"
    is_slide = barcode.split("-")[-1][:2] in ("DX", "TS", "BS", "MS")
    entity = {"submitter_id": barcode}
    portion = {"slides": [entity]} if is_slide else {"analytes": [{"aliquots": [entity]}]}
    strategy = "Diagnostic Slide" if "-DX" in barcode else "Tissue Slide"
    return {
        "file_id": file_id, "file_name": f"{barcode}.{file_id}.{'svs' if is_slide else 'tsv'}", "file_size": size,
        "md5sum": f"{number:032x}", "access": "open", "data_type": SLIDES if is_slide else EXPRESSION,
        "experimental_strategy": strategy if is_slide else "RNA-Seq", "analysis": {"workflow_type": "STAR - Counts"},
        "cases": [{
            "submitter_id": barcode[:12], "project": {"project_id": project},
            "samples": [{"sample_type": sample_type or "unknown", "portions": [portion]}],
        }],
    }  # fmt: skip


@pytest.fixture
def listing(cohort, tmp_path):
    """A function: the barcodes that a query keeps of records that it makes the GDC list."""

    def listed(records, kind, projects=(PROJECT,), **options):
        folder = tmp_path / "listing"
        folder.mkdir(exist_ok=True)
        (folder / "manifest.tsv").touch()
        (folder / "status.json").write_text((cohort / "status.json").read_text())
        (folder / "files.json").write_text(json.dumps(records))
        gdc.query(list(projects), tmp_path / "m.parquet", f"local:{folder}", [kind], None, **options)
        return read_manifest(tmp_path / "m.parquet").aliquot.tolist()

    return listed


ALIQUOTS = [
    "TCGA-AA-0001-01A-21R-A000-07", "TCGA-AA-0001-01A-11R-A000-07", "TCGA-AA-0001-01B-11H-A000-07",
    "TCGA-AA-0001-01A-11T-B000-07", "TCGA-AA-0001-02A-11R-A000-07", "TCGA-AA-0001-11A-11R-A000-07",
]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, ["TCGA-AA-0001-01A-11R-A000-07"]),
        ({"aliquots": "best"}, ["TCGA-AA-0001-01B-11H-A000-07"]),
        ({"aliquots": "all"}, sorted(ALIQUOTS[:5])),
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
        record(1, "C3L-00001-21-TS", sample_type="Primary Tumor"),
        record(2, "C3L-00002-21-TS", sample_type="Solid Tissue Normal"),
    ]
    assert listing(records, "slides", slides=["frozen"]) == ["C3L-00001-21-TS"]


def test_several_projects_make_one_manifest(listing, tmp_path):
    records = [
        record(1, "TCGA-AA-0001-01Z-00-DX1", project="TCGA-COAD"),
        record(2, "TCGA-AG-0001-01Z-00-DX1", project="TCGA-READ"),
    ]
    assert len(listing(records, "slides", projects=["TCGA-COAD", "TCGA-READ"])) == 2
    assert read_manifest(tmp_path / "m.parquet").project.tolist() == ["TCGA-COAD", "TCGA-READ"]


@pytest.mark.parametrize(
    ("options", "said"),
    [({"aliquots": "last"}, "rule 'last'"), ({"slides": ["thick"]}, "'thick' is unknown; give one of diagnostic")],
)
def test_unknown_rule_lists_the_known_ones(listing, options, said):
    with pytest.raises(ConfigError, match=said):
        listing([], "slides", **options)


def test_excluded_files_are_left_out_and_reported(listing, tmp_path, caplog):
    records = [record(number, barcode) for number, (barcode, _) in enumerate(SECTIONS[:2])]
    table = tmp_path / "exclude.tsv"
    table.write_text(f"file_id\treason\n{records[1]['file_id']}\tpen marks\n{FILE_ID}\tblurred\n")
    with caplog.at_level("INFO", "mgi"):
        assert listing(records, "slides", exclude=table) == [SECTIONS[0][0]]
    assert f"excluded {records[1]['file_id']}: pen marks" in caplog.text
    assert f"excluded {FILE_ID} is not among the files of the query" in caplog.text


def test_file_that_cannot_be_read_can_be_excluded_whatever_the_case_of_its_id(listing, tmp_path):
    records = [record(number, barcode) for number, (barcode, _) in enumerate(SECTIONS[:2])]
    records[1] = records[1] | {"file_id": f"abcdef01{FILE_ID[8:]}", "cases": records[1]["cases"] * 2}
    with pytest.raises(ManifestError, match=r"belongs to 2 cases; .*: exclude it \(gdc\.exclude\)"):
        listing(records, "slides")
    table = tmp_path / "exclude.tsv"
    table.write_text(f"file_id\treason\n{records[1]['file_id'].upper()}\ttwo cases\n")
    assert listing(records, "slides", exclude=table) == [SECTIONS[0][0]]


def test_only_open_files_of_star_counts_are_listed(listing):
    records = [record(number, f"TCGA-AA-000{number}-01A-01R-1234-07") for number in range(3)]
    records[1]["access"] = "controlled"
    records[2]["analysis"] = {"workflow_type": "HTSeq - Counts"}
    assert listing(records, "expression") == ["TCGA-AA-0000-01A-01R-1234-07"]


def test_controls_and_cell_lines_are_no_tumour(listing):
    records = [
        record(1, "TCGA-AA-0001-01A-01R-1234-07"),
        record(2, "TCGA-AA-0002-20A-01R-1234-07", sample_type="Control Analyte"),
        record(3, "TCGA-AA-0003-40A-01R-1234-07", sample_type="Cell Lines"),
    ]
    assert listing(records, "expression") == ["TCGA-AA-0001-01A-01R-1234-07"]
    assert listing(records, "expression", sample_types=["Cell Lines"]) == ["TCGA-AA-0003-40A-01R-1234-07"]


@pytest.mark.parametrize(("field", "lacks"), [("md5sum", "md5"), ("file_size", "size")])
def test_record_that_lacks_a_value_is_named(listing, field, lacks):
    with pytest.raises(ManifestError, match=rf"the GDC's record of file 00000001-.* lacks '{lacks}'; exclude it"):
        listing([record(1, SECTIONS[0][0]) | {field: None}], "slides")


@pytest.mark.parametrize(
    ("status", "files", "said"),
    [
        ([], {}, r"/status answers no status: \[\]; is it the GDC's API"),
        ({}, {"warnings": {}}, r"/files answers no list of files: {'warnings': {}}"),
        ({}, {"data": None}, r"/files answers no list of files"),
        ({}, {"data": {"hits": []}}, r"/files answers no list of files"),
    ],
)
def test_answers_of_another_form_are_told(tmp_path, monkeypatch, status, files, said):
    answers = {"/status": status, "/files": files}
    monkeypatch.setattr(gdc, "json_of", lambda server, method, path, body=None: answers[path])
    with pytest.raises(FetchError, match=said):
        gdc.query([PROJECT], tmp_path / "m.parquet", "http://127.0.0.1:9", ["slides"], None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id\treason\n", "lacks the column file_id"),
        (f"file_id\treason\n{FILE_ID}\t\n", "line 2"),
        ("file_id\treason\nslide 7\tblurred\n", "line 2"),
        ("", "cannot be read"),
    ],
)
def test_unusable_exclusion_table_is_refused(listing, tmp_path, text, said):
    table = tmp_path / "exclude.tsv"
    table.write_text(text)
    with pytest.raises(ManifestError, match=said):
        listing([], "slides", exclude=table)
    with pytest.raises(MissingInputError, match="absent"):
        listing([], "slides", exclude=tmp_path / "absent.tsv")


def test_listing_that_ends_early_is_an_error(tmp_path, monkeypatch):
    page = {"data": {"hits": [], "pagination": {"total": 7}}}
    monkeypatch.setattr(gdc, "json_of", lambda server, method, path, body=None: page)
    with pytest.raises(FetchError, match="0 of 7 files"):
        gdc.query([PROJECT], tmp_path / "m.parquet", "http://127.0.0.1:9", ["slides"], None)


def test_check_finds_what_the_gdc_no_longer_has(manifest, own_cohort, tmp_path):
    gdc.check(manifest, f"local:{own_cohort}")
    rows = read_manifest(manifest)

    def change(records):
        records = [record for record in records if record["file_id"] != rows.file_id[2]]
        next(record for record in records if record["file_id"] == rows.file_id[3])["md5sum"] = "0" * 32
        return records

    edit_records(own_cohort, change)
    with pytest.raises(ManifestError, match=rf"2 of {len(rows)} files.*{rows.file_id[2]}.*withdrawn"):
        gdc.check(manifest, f"local:{own_cohort}", tmp_path / "gone.tsv")
    gone = pd.read_csv(tmp_path / "gone.tsv", sep="\t")
    assert gone.file_id.tolist() == rows.file_id[2:4].tolist()
    assert gone.state.tolist() == ["withdrawn", "changed"]


def test_check_names_the_successor(tmp_path, monkeypatch):
    answers = {
        "/status": {"data_release": "Data Release 99"},
        "/files": {"data": {"hits": [], "pagination": {"total": 0}}},
        f"/history/{FILE_ID}": [
            {"uuid": FILE_ID, "file_change": "superseded", "data_release": "12.0"},
            {"uuid": "the-new-one", "file_change": "released", "data_release": "32.0"},
        ],
    }
    monkeypatch.setattr(gdc, "json_of", lambda server, method, path, body=None: answers[path])
    with pytest.raises(ManifestError, match="superseded"):
        gdc.check(pin_one(tmp_path / "one.parquet"), "http://127.0.0.1:9", tmp_path / "gone.tsv")
    assert pd.read_csv(tmp_path / "gone.tsv", sep="\t").reason.tolist() == ["by the-new-one in data release 32.0"]


@pytest.mark.parametrize(("code", "error"), [(500, FetchError), (403, FetchError), (404, ManifestError)])
def test_check_calls_a_file_withdrawn_only_where_the_gdc_says_that_it_has_none(tmp_path, no_waiting, code, error):
    def answer(handler):
        if "/history/" in handler.path:
            return says(code)(handler)
        empty = {"data": {"hits": [], "pagination": {"total": 0}}}
        return says(200, json.dumps(empty if handler.path == "/files" else {"data_release": "R"}).encode())(handler)

    with scripted([answer]) as (url, _), pytest.raises(error, match="withdrawn" if code == 404 else f"history.*{code}"):
        gdc.check(pin_one(tmp_path / "one.parquet"), url, tmp_path / "gone.tsv")
    assert (tmp_path / "gone.tsv").exists() == (code == 404)


@pytest.mark.parametrize("size", ["12.5", "1e30", "many"])
def test_portal_manifest_with_an_odd_size_is_refused(tmp_path, size):
    (tmp_path / "m.txt").write_text(f"id\tfilename\tmd5\tsize\n{FILE_ID}\ta.svs\t{'0' * 32}\t{size}\n")
    with pytest.raises(ManifestError, match=rf"the size '{size}' is no number of bytes"):
        read_manifest(tmp_path / "m.txt")


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


def test_every_slide_of_tcga_maps_to_its_case(data_dir):
    rows = read_manifest(data_dir / "gdc" / "manifest_all_tcga_svs.tsv.gz")
    assert len(rows) == 30075
    assert (rows.data_type == SLIDES).all()
    assert rows.case_id.str.fullmatch(r"TCGA-\w\w-\w{4}").all()
    assert (rows.file_name.str[:12] == rows.case_id).all()
    assert rows.sample_type.notna().all()
    section = rows.aliquot.map(lambda barcode: BARCODE.match(barcode)["section"])
    # Counted on the barcodes by other means: the sixth field of each, without its number.
    assert section.value_counts().to_dict() == rows.aliquot.str.split("-").str[5].str[:2].value_counts().to_dict()
    assert section.value_counts().to_dict() == {"DX": 11766, "TS": 12801, "BS": 5390, "MS": 118}
    diagnostic = rows.aliquot.map(gdc._is_diagnostic)
    assert (diagnostic.sum(), (~diagnostic).sum()) == (11766, 18309)
    assert (rows.sample_type == "Solid Tissue Normal").sum() == 2789


def test_other_real_tables_of_the_gdc(data_dir):
    legacy = read_manifest(data_dir / "gdc" / "files_tcga_lgg_htseq_era.tsv.gz")
    assert len(legacy) == 5307
    assert set(legacy.project) == {"TCGA-LGG"}
    with pytest.raises(ManifestError, match="lacks the column id, filename, md5, size; it has File ID"):
        read_manifest(data_dir / "gdc" / "gdc_sample_sheet_tcga_lusc.tsv.gz")


def test_real_answer_is_paged_through_and_what_it_lacks_is_named(data_dir, monkeypatch):
    with gzip.open(data_dir / "gdc" / "files_tcga_brca_2019.json.gz", "rt") as handle:
        real = json.load(handle)
    for number, entry in enumerate(real):
        entry["file_id"] = f"{number:08d}"
    monkeypatch.setattr(gdc, "json_of", lambda server, method, path, body: serve.list_files(real, body))
    filters = {"op": "in", "content": {"field": "cases.project.project_id", "value": ["TCGA-BRCA"]}}
    listed = gdc._listed(None, filters, "file_id,file_name,file_size,cases.case_id")
    assert [entry["file_name"] for entry in listed] == [entry["file_name"] for entry in real]
    assert sum(entry["file_size"] for entry in listed) == sum(entry["file_size"] for entry in real)
    with pytest.raises(ManifestError, match="file 00000000 lacks"):
        gdc._row(listed[0], EXPRESSION, "TCGA-BRCA")
