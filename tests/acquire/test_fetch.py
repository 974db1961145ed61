"""Jobs that fetch a manifest: every file complete, or why not, and nothing done twice."""

import hashlib
import re
import time
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from mgi import console
from mgi.acquire import partial as parts
from mgi.acquire.manifest import EXPRESSION, read_manifest
from mgi.cli import app
from mgi.errors import ConfigError, FetchError, ManifestError
from mgi.simulate.cohort import ANNOTATION_FILE_ID
from tests.cohorts import fetch

from .servers import CONTENT, FILE_ID, contents, md5_of, pin, pin_one, rest_of, says, scripted, serving


def test_round_trip_brings_every_file_whole_and_a_receipt(manifest, cohort, tmp_path):
    fetch(manifest, tmp_path / "got", f"local:{cohort}", 3, receipt=tmp_path / "receipt.tsv")
    rows = read_manifest(manifest)
    assert len(list(tmp_path.glob("got/*/*"))) == len(rows)
    for row in rows.itertuples():
        assert md5_of(tmp_path / "got" / row.file_id / row.file_name) == row.md5
    receipt = pd.read_csv(tmp_path / "receipt.tsv", sep="\t")
    assert list(receipt.columns) == ["file_id", "file_name", "size", "md5", "state"]
    assert receipt.file_id.tolist() == rows.file_id.tolist()
    assert receipt["size"].tolist() == rows["size"].tolist()


def test_only_the_asked_for_files_are_fetched(manifest, cohort, tmp_path):
    rows = read_manifest(manifest)
    fetch(manifest, tmp_path / "annotation", f"local:{cohort}", 1, data_type="annotation")
    assert [path.name for path in tmp_path.glob("annotation/*")] == [ANNOTATION_FILE_ID]
    two = rows.file_id[1:3].tolist()
    fetch(manifest, tmp_path / "two", f"local:{cohort}", 1, file_ids=two)
    assert sorted(path.name for path in tmp_path.glob("two/*")) == sorted(two)
    with pytest.raises(ManifestError, match=FILE_ID):
        fetch(manifest, tmp_path / "none", f"local:{cohort}", 1, file_ids=[FILE_ID])
    with pytest.raises(ConfigError, match="films"):
        fetch(manifest, tmp_path / "none", f"local:{cohort}", 1, data_type="films")


def test_wrong_bytes_at_the_server_fail_that_file_and_keep_the_others(manifest, own_cohort, tmp_path, no_waiting):
    rows = read_manifest(manifest)
    bad = rows[rows.data_type == EXPRESSION].iloc[0]
    path = own_cohort / "data" / bad.file_id / bad.file_name
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(FetchError, match=rf"1 of {len(rows)} files.*{bad.md5}.*{bad.file_name}"):
        fetch(manifest, tmp_path / "got", f"local:{own_cohort}", 2, receipt=tmp_path / "receipt.tsv")
    assert not (tmp_path / "receipt.tsv").exists()
    kept = {path.parent.name for path in tmp_path.glob("got/*/*") if not path.name.endswith(".part")}
    assert kept == set(rows.file_id) - {bad.file_id}


def test_complete_files_are_kept_and_damaged_ones_fetched_again(manifest, cohort, tmp_path):
    fetch(manifest, tmp_path / "got", f"local:{cohort}", 2)
    rows = read_manifest(manifest)
    paths = {row.file_id: tmp_path / "got" / row.file_id / row.file_name for row in rows.itertuples()}
    before = {file_id: path.stat().st_mtime_ns for file_id, path in paths.items()}
    damaged = rows.file_id[3]
    paths[damaged].write_bytes(paths[damaged].read_bytes()[::-1])
    fetch(manifest, tmp_path / "got", f"local:{cohort}", 2)
    assert md5_of(paths[damaged]) == rows.md5[3]
    untouched = {file_id for file_id, path in paths.items() if path.stat().st_mtime_ns == before[file_id]}
    assert untouched == set(paths) - {damaged}


@pytest.mark.parametrize(
    "name", ["../../..\\counts.tsv", "/etc/passwd", "..", "", "a/b.tsv", "x$(touch PWNED).svs", "-rf"]
)
def test_file_name_that_is_more_than_a_name_is_refused(tmp_path, name):
    manifest = pin_one(tmp_path / "one.parquet", file_name=name)
    with scripted([says(200, CONTENT)]) as (url, seen), pytest.raises(ManifestError, match="'file_name'"):
        fetch(manifest, tmp_path / "deep" / "got", url, 1)
    assert seen == []
    assert not (tmp_path / "deep").exists()


def test_unexpected_failure_is_reported_like_any_other(one_file, tmp_path, monkeypatch):
    class Broken:
        def update(self, chunk):
            raise MemoryError("no room for the sum")

    monkeypatch.setattr(parts.hashlib, "md5", lambda **_: Broken())
    with (
        scripted([says(200, CONTENT)]) as (url, _),
        pytest.raises(FetchError, match=r"1 of 1 files .*MemoryError: 'no room for the sum'"),
    ):
        fetch(one_file, tmp_path / "got", url, 1)
    assert pd.read_csv(tmp_path / "got.status.tsv", sep="\t").state.tolist() == ["failed"]
    monkeypatch.undo()
    kept = (tmp_path / "got" / FILE_ID / "counts.tsv.part").stat().st_size
    with scripted([rest_of(kept)]) as (url, _):
        fetch(one_file, tmp_path / "got", url, 1)
    assert (tmp_path / "got" / FILE_ID / "counts.tsv").read_bytes() == CONTENT


def test_status_lists_every_file_and_a_rerun_tries_only_the_rest(tmp_path, no_waiting):
    files = contents(4, 100, 200)
    gone = list(files)[2]
    manifest = pin(tmp_path / "m.parquet", files)
    receipt = tmp_path / "receipts" / "expression.tsv"
    some = {file_id: content for file_id, content in files.items() if file_id != gone}
    with scripted([serving(some)]) as (url, _), pytest.raises(FetchError, match=rf"1 of 4 files.*404.*{gone}"):
        fetch(manifest, tmp_path / "got", url, 2, receipt=receipt)
    status = pd.read_csv(receipt.with_name("expression.status.tsv"), sep="\t", index_col="file_id")
    assert status.columns.tolist() == ["file_name", "state", "attempts", "seconds", "reason"]
    assert status.state.to_dict() == dict.fromkeys(files, "fetched") | {gone: "failed"}
    assert "withdrawn or superseded" in status.reason[gone]
    assert not receipt.exists()
    with scripted([serving(files)]) as (url, seen):
        fetch(manifest, tmp_path / "got", url, 2, receipt=receipt)
    assert len(seen) == 1
    status = pd.read_csv(receipt.with_name("expression.status.tsv"), sep="\t", index_col="file_id")
    assert status.state.to_dict() == dict.fromkeys(files, "kept") | {gone: "fetched"}
    assert receipt.exists()


def test_every_file_has_its_line_in_the_log(tmp_path, caplog):
    files = contents(3, 100, 200)
    with caplog.at_level("INFO", "mgi"), scripted([serving(files)]) as (url, _):
        fetch(pin(tmp_path / "m.parquet", files), tmp_path / "got", url, 2)
    for file_id in files:
        assert len([line for line in caplog.messages if line.startswith("fetched counts.tsv") and file_id in line]) == 1


def test_current_folder_can_be_the_output(one_file, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with scripted([says(200, CONTENT)]) as (url, _):
        fetch(one_file, Path("."), url, 1)
    assert (tmp_path / "here" / FILE_ID / "counts.tsv").read_bytes() == CONTENT
    assert (tmp_path / "here.status.tsv").is_file()


def test_rows_beyond_the_manifest_are_refused(one_file, tmp_path):
    with pytest.raises(ManifestError, match=r"one\.parquet holds no file to fetch"):
        fetch(one_file, tmp_path / "got", "http://127.0.0.1:9", 1, rows=slice(5, 9))


def test_rows_divide_the_files_among_jobs(tmp_path):
    files = contents(5, 100, 200)
    manifest = pin(tmp_path / "m.parquet", files)
    with scripted([serving(files)]) as (url, _):
        for start in (0, 2, 4):
            fetch(manifest, tmp_path / str(start), url, 1, rows=slice(start, start + 2))
    got = [sorted(path.name for path in (tmp_path / str(start)).iterdir()) for start in (0, 2, 4)]
    assert got == [list(files)[:2], list(files)[2:4], list(files)[4:]]


def test_portal_manifest_can_be_fetched(tmp_path):
    row = (FILE_ID, "counts.tsv", hashlib.md5(CONTENT).hexdigest(), str(len(CONTENT)))
    (tmp_path / "gdc_manifest.txt").write_text("id\tfilename\tmd5\tsize\n" + "\t".join(row) + "\n")
    with scripted([says(200, CONTENT)]) as (url, _):
        fetch(tmp_path / "gdc_manifest.txt", tmp_path / "got", url, 1)
    assert (tmp_path / "got" / FILE_ID / "counts.tsv").read_bytes() == CONTENT


def test_progress_without_a_known_size_promises_nothing(caplog, monkeypatch):
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", -1.0)
    with caplog.at_level("INFO", "mgi"):
        list(console.transfer(iter([0, 2_600_000]), "fetched", 0))
    assert [message for message in caplog.messages if "fetched: 2.6 MB, " in message and "unknown" in message]
    assert not [message for message in caplog.messages if " of 0.0" in message]


def test_progress_in_a_log_has_bytes_rate_and_time_left(caplog, monkeypatch):
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.01)

    def polls():
        for done in (0, 30_000_000, 60_000_000):
            time.sleep(0.02)
            yield done

    with caplog.at_level("INFO", "mgi"):
        assert list(console.transfer(polls(), "fetched", 90_000_000)) == [0, 30_000_000, 60_000_000]
    assert re.match(r"fetched: 60\.0 of 90\.0 MB, \d+\.\d MB/s, 0 min left", caplog.messages[-1])


@pytest.mark.parametrize("rows", ["5", "a:b", "-1:2", "1:2:3"])
def test_rows_that_are_no_range_are_wrong_usage(one_file, tmp_path, rows):
    done = CliRunner().invoke(app, ["gdc", "fetch", str(one_file), "-o", str(tmp_path), f"--rows={rows}"])
    assert done.exit_code == 2
    assert "START:STOP" in done.output


def test_command_line_passes_every_option_to_the_fetch(one_file, tmp_path, token):
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "counts.tsv").write_bytes(CONTENT)
    options = {
        "--api-url": "http://127.0.0.1:9", "--mirror": tmp_path / "mirror", "--token-file": token, "--rows": "0:1",
        "--partial": tmp_path / "partial", "--status": tmp_path / "s.tsv", "--receipt": tmp_path / "r.tsv",
    }  # fmt: skip
    given = [f"{name}={value}" for name, value in options.items()]
    done = CliRunner().invoke(app, ["gdc", "fetch", str(one_file), "-o", str(tmp_path / "got"), *given])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "got" / FILE_ID / "counts.tsv").read_bytes() == CONTENT
    assert (tmp_path / "s.tsv").exists() and (tmp_path / "r.tsv").exists()
