"""Downloads that end complete, or say why not, and never begin anew what is done."""

import pandas as pd
import pytest

from mgi.acquire import gdc, web
from mgi.acquire.fetch import fetch
from mgi.acquire.simulate import ANNOTATION_FILE_ID
from mgi.errors import ConfigError, FetchError, ManifestError

from .servers import CONTENT, FILE_ID, md5_of, pin_one, says, scripted


@pytest.fixture
def one_file(tmp_path):
    """A manifest of one file, `CONTENT`."""
    return pin_one(tmp_path / "one.parquet")


def test_round_trip_brings_every_file_whole_and_a_receipt(manifest, cohort, tmp_path):
    fetch(manifest, tmp_path / "got", f"local:{cohort}", 3, receipt=tmp_path / "receipt.tsv")
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
    fetch(manifest, tmp_path / "annotation", f"local:{cohort}", 1, data_type="annotation")
    assert [path.name for path in tmp_path.glob("annotation/*")] == [ANNOTATION_FILE_ID]
    two = rows.file_id[1:3].tolist()
    fetch(manifest, tmp_path / "two", f"local:{cohort}", 1, file_ids=two)
    assert sorted(path.name for path in tmp_path.glob("two/*")) == sorted(two)
    with pytest.raises(ManifestError, match=FILE_ID):
        fetch(manifest, tmp_path / "none", f"local:{cohort}", 1, file_ids=[FILE_ID])
    with pytest.raises(ConfigError, match="films"):
        fetch(manifest, tmp_path / "none", f"local:{cohort}", 1, data_type="films")


def test_partial_file_is_resumed_where_it_stopped(one_file, tmp_path):
    part = tmp_path / "got" / FILE_ID / "counts.tsv.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT[:1000])
    rest = says(206, CONTENT[1000:], Content_Range=f"bytes 1000-{len(CONTENT) - 1}/{len(CONTENT)}")
    with scripted([rest]) as (url, seen):
        fetch(one_file, tmp_path / "got", url, 1)
    assert seen == ["bytes=1000-"]
    assert (part.parent / "counts.tsv").read_bytes() == CONTENT
    assert not part.exists()


def test_resume_works_against_the_local_gdc(manifest, cohort, tmp_path):
    row = gdc.read_manifest(manifest).iloc[-1]
    part = tmp_path / "got" / row.file_id / f"{row.file_name}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes((cohort / "data" / row.file_id / row.file_name).read_bytes()[:777])
    fetch(manifest, tmp_path / "got", f"local:{cohort}", 2)
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
        fetch(one_file, tmp_path / "got", url, 1)
    assert (part.parent / "counts.tsv").read_bytes() == CONTENT


def test_server_that_ignores_range_starts_the_file_again(one_file, tmp_path):
    part = tmp_path / "got" / FILE_ID / "counts.tsv.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT[:1000])
    with scripted([says(200, CONTENT)]) as (url, seen):
        fetch(one_file, tmp_path / "got", url, 1)
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
        fetch(one_file, tmp_path / "got", url, 1)
    assert len(seen) == 2
    assert (tmp_path / "got" / FILE_ID / "counts.tsv").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("code", "word"), [(404, "superseded"), (403, "controlled access"), (401, "controlled access")]
)
def test_final_refusal_is_not_repeated(one_file, tmp_path, code, word, no_waiting):
    with scripted([says(code)]) as (url, seen), pytest.raises(FetchError, match=word):
        fetch(one_file, tmp_path / "got", url, 1)
    assert len(seen) == 1


def test_lasting_trouble_ends_after_four_attempts(one_file, tmp_path, no_waiting):
    with scripted([says(500)]) as (url, seen), pytest.raises(FetchError, match="500"):
        fetch(one_file, tmp_path / "got", url, 1)
    assert len(seen) == web.TRIES


def test_wrong_bytes_at_the_server_fail_that_file_and_keep_the_others(manifest, own_cohort, tmp_path, no_waiting):
    rows = gdc.read_manifest(manifest)
    bad = rows[rows.data_type == gdc.EXPRESSION].iloc[0]
    path = own_cohort / "data" / bad.file_id / bad.file_name
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(FetchError, match=rf"1 of {len(rows)} files.*{bad.file_name}.*{bad.md5}"):
        fetch(manifest, tmp_path / "got", f"local:{own_cohort}", 2, receipt=tmp_path / "receipt.tsv")
    assert not (tmp_path / "receipt.tsv").exists()
    kept = {path.parent.name for path in tmp_path.glob("got/*/*") if not path.name.endswith(".part")}
    assert kept == set(rows.file_id) - {bad.file_id}


def test_complete_files_are_kept_and_damaged_ones_fetched_again(manifest, cohort, tmp_path):
    fetch(manifest, tmp_path / "got", f"local:{cohort}", 2)
    rows = gdc.read_manifest(manifest)
    paths = {row.file_id: tmp_path / "got" / row.file_id / row.file_name for row in rows.itertuples()}
    before = {file_id: path.stat().st_mtime_ns for file_id, path in paths.items()}
    damaged = rows.file_id[3]
    paths[damaged].write_bytes(paths[damaged].read_bytes()[::-1])
    fetch(manifest, tmp_path / "got", f"local:{cohort}", 2)
    assert md5_of(paths[damaged]) == rows.md5[3]
    untouched = {file_id for file_id, path in paths.items() if path.stat().st_mtime_ns == before[file_id]}
    assert untouched == set(paths) - {damaged}


def test_file_of_unknown_size_is_verified_by_md5(tmp_path):
    manifest = pin_one(tmp_path / "one.parquet", size=None)
    with scripted([says(200, CONTENT)]) as (url, _):
        fetch(manifest, tmp_path / "got", url, 1, receipt=tmp_path / "receipt.tsv")
    assert pd.read_csv(tmp_path / "receipt.tsv", sep="\t")["size"].tolist() == [len(CONTENT)]


def test_file_name_cannot_leave_the_folder(tmp_path):
    manifest = pin_one(tmp_path / "one.parquet", file_name="../../..\\counts.tsv")
    with scripted([says(200, CONTENT)]) as (url, _):
        fetch(manifest, tmp_path / "deep" / "got", url, 1)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("counts.tsv")] == [
        f"deep/got/{FILE_ID}/counts.tsv"
    ]
