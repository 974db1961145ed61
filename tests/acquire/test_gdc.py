"""The GDC client: manifests that pin a cohort, and downloads that end complete or say why not."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pyarrow.parquet as pq
import pytest

from mgi.acquire import gdc
from mgi.acquire.simulate import ANNOTATION_FILE_ID, PROJECT
from mgi.errors import ConfigError, FetchError, ManifestError, MissingInputError
from mgi.files import write_table

BOTH = ["expression", "slides"]


@pytest.fixture(scope="module")
def manifest(cohort, tmp_path_factory):
    path = tmp_path_factory.mktemp("pinned") / "manifest.parquet"
    gdc.query([PROJECT], path, f"local:{cohort}", BOTH, ANNOTATION_FILE_ID)
    return path


def md5_of(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def edit_records(folder, change):
    path = folder / "files.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def star_records(records):
    return [record for record in records if record["data_type"] == gdc.EXPRESSION]


@contextmanager
def scripted(answers):
    """A server that gives each request the next of `answers`: a function of the handler; the last one repeats."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.headers.get("Range"))
            answers[min(len(seen), len(answers)) - 1](self)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        server.server_close()


def says(code, body=b"", stated=None, **headers):
    """An answer with `body`, whose Content-Length may be stated wrongly."""

    def answer(handler):
        handler.send_response(code)
        handler.send_header("Content-Length", str(len(body) if stated is None else stated))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


CONTENT = bytes(range(256)) * 40
FILE_ID = "11111111-2222-4333-8444-555555555555"


@pytest.fixture
def one_file(tmp_path):
    """A manifest of one file, `CONTENT`."""
    return pin_one(tmp_path / "one.parquet")


def pin_one(path, **changes):
    row = dict.fromkeys(gdc.SCHEMA.names) | {
        "file_id": FILE_ID, "file_name": "counts.tsv", "md5": hashlib.md5(CONTENT).hexdigest(),
        "size": len(CONTENT), "data_type": gdc.EXPRESSION,
    } | changes  # fmt: skip
    write_table(gdc.pa.Table.from_pylist([row], gdc.SCHEMA), path)
    return path


def test_manifest_has_the_contracted_columns_order_and_release(manifest, cohort):
    schema = pq.read_schema(manifest)
    assert schema.names == [
        "file_id", "file_name", "md5", "size", "data_type", "case_id", "sample_type", "aliquot", "project",
    ]  # fmt: skip
    assert schema.metadata[b"gdc_data_release"] == b"Simulated 1.0"
    rows = gdc.read_manifest(manifest)
    assert rows.data_type.value_counts().to_dict() == {
        gdc.EXPRESSION: 4, gdc.SLIDES: len(list(cohort.glob("data/*/*.svs"))), gdc.ANNOTATION: 1,
    }  # fmt: skip
    assert rows.data_type.tolist() == sorted(rows.data_type)
    for _, kind in rows.groupby("data_type"):
        keys = kind[["case_id", "file_name", "file_id"]].fillna("").apply(tuple, axis=1).tolist()
        assert keys == sorted(keys)
    expression = rows[rows.data_type == gdc.EXPRESSION]
    assert (expression.aliquot == expression.case_id + "-01A-11R-A000-07").all()
    slides = rows[rows.data_type == gdc.SLIDES]
    assert (slides.aliquot == slides.file_name.str.split(".").str[0]).all()
    assert rows[rows.data_type == gdc.ANNOTATION][["case_id", "aliquot", "project"]].isna().all(axis=None)


def test_paging_gives_the_same_manifest(manifest, cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(gdc, "PAGE", 3)
    gdc.query([PROJECT], tmp_path / "paged.parquet", f"local:{cohort}", BOTH, ANNOTATION_FILE_ID)
    assert (tmp_path / "paged.parquet").read_bytes() == manifest.read_bytes()


def test_round_trip_brings_every_file_whole_and_a_receipt(manifest, cohort, tmp_path):
    gdc.fetch(manifest, tmp_path / "got", f"local:{cohort}", 3, receipt=tmp_path / "receipt.tsv")
    rows = gdc.read_manifest(manifest)
    assert len(list(tmp_path.glob("got/*/*"))) == len(rows)
    for row in rows.itertuples():
        assert md5_of(tmp_path / "got" / row.file_id / row.file_name) == row.md5
    receipt = pd.read_csv(tmp_path / "receipt.tsv", sep="\t")
    assert list(receipt.columns) == ["file_id", "file_name", "size", "md5", "state"]
    assert receipt.file_id.tolist() == rows.file_id.tolist()
    assert receipt["size"].tolist() == rows["size"].tolist()


def test_only_the_asked_for_files_are_fetched(manifest, cohort, tmp_path):
    rows = gdc.read_manifest(manifest)
    gdc.fetch(manifest, tmp_path / "annotation", f"local:{cohort}", 1, data_type="annotation")
    assert [path.name for path in tmp_path.glob("annotation/*")] == [ANNOTATION_FILE_ID]
    two = rows.file_id[1:3].tolist()
    gdc.fetch(manifest, tmp_path / "two", f"local:{cohort}", 1, file_ids=two)
    assert sorted(path.name for path in tmp_path.glob("two/*")) == sorted(two)
    with pytest.raises(ManifestError, match=FILE_ID):
        gdc.fetch(manifest, tmp_path / "none", f"local:{cohort}", 1, file_ids=[FILE_ID])
    with pytest.raises(ConfigError, match="films"):
        gdc.fetch(manifest, tmp_path / "none", f"local:{cohort}", 1, data_type="films")


def test_project_without_files_is_named(cohort, tmp_path):
    with pytest.raises(ManifestError, match=r"Slide Image.*TCGA-NONE"):
        gdc.query(["TCGA-NONE"], tmp_path / "m.parquet", f"local:{cohort}", ["slides"], None)
    assert not (tmp_path / "m.parquet").exists()


def test_unknown_annotation_is_refused_but_gencode_v36_is_known(cohort, tmp_path):
    with pytest.raises(ManifestError, match=FILE_ID):
        gdc.query([PROJECT], tmp_path / "m.parquet", f"local:{cohort}", BOTH, FILE_ID)
    gdc.query([PROJECT], tmp_path / "m.parquet", f"local:{cohort}", BOTH, gdc.GENCODE_V36_FILE_ID)
    row = gdc.read_manifest(tmp_path / "m.parquet").set_index("data_type").loc[gdc.ANNOTATION]
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
    chosen = gdc.read_manifest(tmp_path / "m.parquet").set_index("case_id").file_id
    case = [record["cases"][0]["submitter_id"] for record in records]
    assert chosen[case[0]] == records[0]["file_id"]
    assert chosen[case[1]] == FILE_ID[:-1] + "2"
    assert case[2] not in chosen
    assert len(chosen) == 3


def test_frozen_slides_are_left_out(own_cohort, tmp_path):
    def change(records):
        slide = next(record for record in records if record["data_type"] == gdc.SLIDES)
        frozen = json.loads(json.dumps(slide).replace("-01Z-00-DX", "-01A-01-TS")) | {"file_id": FILE_ID}
        return [*records, frozen]

    edit_records(own_cohort, change)
    gdc.query([PROJECT], tmp_path / "m.parquet", f"local:{own_cohort}", ["slides"], None)
    assert gdc.read_manifest(tmp_path / "m.parquet").aliquot.str.contains("-DX").all()


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
        gdc.read_manifest(tmp_path / "m.parquet")


def test_unusable_manifests_are_refused(manifest, tmp_path):
    with pytest.raises(MissingInputError, match="absent"):
        gdc.read_manifest(tmp_path / "absent.parquet")
    write_table(pq.read_table(manifest).drop_columns("md5"), tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match="md5"):
        gdc.read_manifest(tmp_path / "m.parquet")
    for changes in ({"file_id": "../../etc"}, {"md5": None}, {"file_name": "a/.."}):
        with pytest.raises(ManifestError):
            gdc.read_manifest(pin_one(tmp_path / "m.parquet", **changes))


def test_partial_file_is_resumed_where_it_stopped(one_file, tmp_path):
    part = tmp_path / "got" / FILE_ID / "counts.tsv.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT[:1000])
    rest = says(206, CONTENT[1000:], Content_Range=f"bytes 1000-{len(CONTENT) - 1}/{len(CONTENT)}")
    with scripted([rest]) as (url, seen):
        gdc.fetch(one_file, tmp_path / "got", url, 1)
    assert seen == ["bytes=1000-"]
    assert (part.parent / "counts.tsv").read_bytes() == CONTENT
    assert not part.exists()


def test_resume_works_against_the_local_gdc(manifest, cohort, tmp_path):
    row = gdc.read_manifest(manifest).iloc[-1]
    part = tmp_path / "got" / row.file_id / f"{row.file_name}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes((cohort / "data" / row.file_id / row.file_name).read_bytes()[:777])
    gdc.fetch(manifest, tmp_path / "got", f"local:{cohort}", 2)
    assert md5_of(part.with_name(row.file_name)) == row.md5


@pytest.mark.parametrize("left", [CONTENT + b"more", b"x" * 500, b"x" * len(CONTENT)])
def test_unusable_partial_file_is_replaced(one_file, tmp_path, left, no_waiting):
    part = tmp_path / "got" / FILE_ID / "counts.tsv.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(left)

    def honest(handler):
        start = int((handler.headers.get("Range") or "bytes=0-")[6:-1])
        code = 206 if handler.headers.get("Range") else 200
        says(code, CONTENT[start:], Content_Range=f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")(handler)

    with scripted([honest]) as (url, _):
        gdc.fetch(one_file, tmp_path / "got", url, 1)
    assert (part.parent / "counts.tsv").read_bytes() == CONTENT


def test_server_that_ignores_range_starts_the_file_again(one_file, tmp_path):
    part = tmp_path / "got" / FILE_ID / "counts.tsv.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT[:1000])
    with scripted([says(200, CONTENT)]) as (url, seen):
        gdc.fetch(one_file, tmp_path / "got", url, 1)
    assert len(seen) == 1
    assert (part.parent / "counts.tsv").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "trouble",
    [
        says(503),
        says(429),
        says(416),
        says(200, CONTENT[:5000]),
        says(200, CONTENT[:5000], stated=len(CONTENT)),
        says(200, CONTENT[::-1]),
        says(206, CONTENT[1:], Content_Range="bytes 1-2/3"),
        lambda handler: handler.connection.close(),
    ],
    ids=["503", "429", "416", "short", "cut", "other bytes", "other range", "closed"],
)
def test_passing_trouble_is_survived(one_file, tmp_path, trouble, no_waiting):
    rest = says(206, CONTENT[5000:], Content_Range=f"bytes 5000-{len(CONTENT) - 1}/{len(CONTENT)}")

    def recovered(handler):
        (rest if handler.headers.get("Range") == "bytes=5000-" else says(200, CONTENT))(handler)

    with scripted([trouble, recovered]) as (url, seen):
        gdc.fetch(one_file, tmp_path / "got", url, 1)
    assert len(seen) == 2
    assert (tmp_path / "got" / FILE_ID / "counts.tsv").read_bytes() == CONTENT


@pytest.mark.parametrize(("code", "word"), [(404, "superseded"), (403, "open-access"), (401, "open-access")])
def test_final_refusal_is_not_repeated(one_file, tmp_path, code, word, no_waiting):
    with scripted([says(code)]) as (url, seen), pytest.raises(FetchError, match=word):
        gdc.fetch(one_file, tmp_path / "got", url, 1)
    assert len(seen) == 1


def test_lasting_trouble_ends_after_four_attempts(one_file, tmp_path, no_waiting):
    with scripted([says(500)]) as (url, seen), pytest.raises(FetchError, match="500"):
        gdc.fetch(one_file, tmp_path / "got", url, 1)
    assert len(seen) == gdc.TRIES == 4


def test_wrong_bytes_at_the_server_fail_that_file_and_keep_the_others(manifest, own_cohort, tmp_path, no_waiting):
    rows = gdc.read_manifest(manifest)
    bad = rows[rows.data_type == gdc.EXPRESSION].iloc[0]
    path = own_cohort / "data" / bad.file_id / bad.file_name
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(FetchError, match=rf"1 of {len(rows)} files.*{bad.file_name}.*{bad.md5}"):
        gdc.fetch(manifest, tmp_path / "got", f"local:{own_cohort}", 2, receipt=tmp_path / "receipt.tsv")
    assert not (tmp_path / "receipt.tsv").exists()
    kept = {path.parent.name for path in tmp_path.glob("got/*/*") if not path.name.endswith(".part")}
    assert kept == set(rows.file_id) - {bad.file_id}


def test_complete_files_are_kept_and_damaged_ones_fetched_again(manifest, cohort, tmp_path):
    gdc.fetch(manifest, tmp_path / "got", f"local:{cohort}", 2)
    rows = gdc.read_manifest(manifest)
    paths = {row.file_id: tmp_path / "got" / row.file_id / row.file_name for row in rows.itertuples()}
    before = {file_id: path.stat().st_mtime_ns for file_id, path in paths.items()}
    damaged = rows.file_id[3]
    paths[damaged].write_bytes(paths[damaged].read_bytes()[::-1])
    gdc.fetch(manifest, tmp_path / "got", f"local:{cohort}", 2)
    assert md5_of(paths[damaged]) == rows.md5[3]
    untouched = {file_id for file_id, path in paths.items() if path.stat().st_mtime_ns == before[file_id]}
    assert untouched == set(paths) - {damaged}


def test_file_of_unknown_size_is_verified_by_md5(tmp_path):
    manifest = pin_one(tmp_path / "one.parquet", size=None)
    with scripted([says(200, CONTENT)]) as (url, _):
        gdc.fetch(manifest, tmp_path / "got", url, 1, receipt=tmp_path / "receipt.tsv")
    assert pd.read_csv(tmp_path / "receipt.tsv", sep="\t")["size"].tolist() == [len(CONTENT)]


def test_file_name_cannot_leave_the_folder(tmp_path):
    manifest = pin_one(tmp_path / "one.parquet", file_name="../../..\\counts.tsv")
    with scripted([says(200, CONTENT)]) as (url, _):
        gdc.fetch(manifest, tmp_path / "deep" / "got", url, 1)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("counts.tsv")] == [
        f"deep/got/{FILE_ID}/counts.tsv"
    ]


def test_unreachable_server_is_told_in_one_sentence(tmp_path, no_waiting):
    with pytest.raises(FetchError, match=r"http://127\.0\.0\.1:9/status.*network"):
        gdc.query([PROJECT], tmp_path / "m.parquet", "http://127.0.0.1:9", BOTH, None)


def test_address_that_is_no_gdc_is_told(tmp_path, no_waiting):
    with scripted([says(200, b"<html>")]) as (url, _), pytest.raises(FetchError, match=r"gdc\.api_url"):
        gdc.query([PROJECT], tmp_path / "m.parquet", url, BOTH, None)
