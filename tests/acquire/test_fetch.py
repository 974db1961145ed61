"""Downloads that end complete, or say why not, and never begin anew what is done."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from email.utils import formatdate
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from mgi import console
from mgi.acquire import fetch as stage
from mgi.acquire import web
from mgi.acquire.fetch import fetch
from mgi.acquire.manifest import EXPRESSION, read_manifest
from mgi.cli import app
from mgi.errors import ConfigError, FetchError, ManifestError, MissingInputError
from mgi.simulate.cohort import ANNOTATION_FILE_ID

from .servers import CONTENT, FILE_ID, contents, md5_of, pin, pin_one, says, scripted


def rest_of(start):
    """The answer to a request for `CONTENT` from `start` on."""
    return says(206, CONTENT[start:], Content_Range=f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")


@pytest.fixture
def one_file(tmp_path):
    """A manifest of one file, `CONTENT`."""
    return pin_one(tmp_path / "one.parquet")


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


def test_partial_file_is_resumed_where_it_stopped(one_file, tmp_path):
    part = tmp_path / "got" / FILE_ID / "counts.tsv.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT[:1000])
    with scripted([rest_of(1000)]) as (url, seen):
        fetch(one_file, tmp_path / "got", url, 1)
    assert seen == ["bytes=1000-"]
    assert (part.parent / "counts.tsv").read_bytes() == CONTENT
    assert not part.exists()


def test_resume_works_against_the_local_gdc(manifest, cohort, tmp_path):
    row = read_manifest(manifest).iloc[-1]
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
    rest = rest_of(5000)

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


def test_lasting_trouble_ends(one_file, tmp_path, no_waiting):
    with scripted([says(500)]) as (url, seen), pytest.raises(FetchError, match="500"):
        fetch(one_file, tmp_path / "got", url, 1)
    assert len(seen) == web.TRIES


def test_wrong_bytes_at_the_server_fail_that_file_and_keep_the_others(manifest, own_cohort, tmp_path, no_waiting):
    rows = read_manifest(manifest)
    bad = rows[rows.data_type == EXPRESSION].iloc[0]
    path = own_cohort / "data" / bad.file_id / bad.file_name
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(FetchError, match=rf"1 of {len(rows)} files.*{bad.file_name}.*{bad.md5}"):
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


def test_silent_server_is_given_up_and_the_file_resumed(one_file, tmp_path, no_waiting, monkeypatch):
    monkeypatch.setattr(web, "TIMEOUT_SECONDS", (1.0, 0.2))

    def stalls(handler):
        says(200, CONTENT[:5000], stated=len(CONTENT))(handler)
        time.sleep(1)

    with scripted([stalls, rest_of(5000)]) as (url, seen):
        fetch(one_file, tmp_path / "got", url, 1)
    assert seen == [None, "bytes=5000-"]


def test_interrupted_command_does_not_wait_for_a_silent_server(one_file, tmp_path):
    asked, over = threading.Event(), threading.Event()

    def falls_silent(handler):
        says(200, CONTENT[:5000], stated=len(CONTENT))(handler)
        asked.set()
        over.wait(60)

    with scripted([falls_silent]) as (url, _):
        command = [sys.executable, "-m", "mgi", "gdc", "fetch", one_file, "--output", tmp_path / "got"]
        # Where the tests run in the background, SIGINT may be ignored, and a child would ignore it too.
        listens = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        process = subprocess.Popen([*command, "--api-url", url], stderr=subprocess.PIPE, text=True, preexec_fn=listens)
        try:
            assert asked.wait(60)
            part = tmp_path / "got" / FILE_ID / "counts.tsv.part"
            while not part.is_file() or part.stat().st_size < 5000:
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            # Far less than the 90 seconds after which a silent server is given up.
            said = process.communicate(timeout=45)[1]
        finally:
            process.kill()
            over.set()
    assert process.returncode not in (0, -signal.SIGKILL)
    assert "Traceback" not in said, said
    assert part.read_bytes() == CONTENT[:5000]
    with scripted([rest_of(5000)]) as (url, seen):
        fetch(one_file, tmp_path / "got", url, 1)
    assert seen == ["bytes=5000-"]


def test_unforeseen_failure_is_told_like_any_other(one_file, tmp_path, monkeypatch):
    class Broken:
        def update(self, chunk):
            raise MemoryError("no room for the sum")

    monkeypatch.setattr(stage.hashlib, "md5", lambda **_: Broken())
    with (
        scripted([says(200, CONTENT)]) as (url, _),
        pytest.raises(FetchError, match=r"1 of 1 files .*MemoryError: no room for the sum"),
    ):
        fetch(one_file, tmp_path / "got", url, 1)
    assert pd.read_csv(tmp_path / "got.status.tsv", sep="\t").state.tolist() == ["failed"]
    monkeypatch.undo()
    kept = (tmp_path / "got" / FILE_ID / "counts.tsv.part").stat().st_size
    with scripted([rest_of(kept)]) as (url, _):
        fetch(one_file, tmp_path / "got", url, 1)
    assert (tmp_path / "got" / FILE_ID / "counts.tsv").read_bytes() == CONTENT


@pytest.mark.parametrize("style", ["seconds", "date"])
def test_retry_after_is_honoured(one_file, tmp_path, no_waiting, style):
    asked = []

    def limited(handler):
        asked.append(time.time())
        later = formatdate(time.time() + 2, usegmt=True) if style == "date" else "1"
        says(429, Retry_After=later)(handler)

    def then(handler):
        asked.append(time.time())
        says(200, CONTENT)(handler)

    with scripted([limited, then]) as (url, _):
        fetch(one_file, tmp_path / "got", url, 1)
    assert 0.9 < asked[1] - asked[0] < 3


def test_wrong_bytes_are_asked_for_four_times_from_the_start(one_file, tmp_path, no_waiting):
    with scripted([says(200, CONTENT[::-1])]) as (url, seen), pytest.raises(FetchError, match="after 4 attempts"):
        fetch(one_file, tmp_path / "got", url, 1)
    assert seen == [None] * 4
    assert [path.stat().st_size for path in tmp_path.glob("got/*/*")] == [0]


def test_progress_starts_the_count_of_failures_anew(one_file, tmp_path, no_waiting):
    pieces = 3 * web.TRIES
    step = -(-len(CONTENT) // pieces)

    def a_little(handler):
        start = int((handler.headers.get("Range") or "bytes=0-")[6:-1])
        end = min(start + step, len(CONTENT))
        span = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
        says(206 if start else 200, CONTENT[start:end], stated=len(CONTENT) - start, Content_Range=span)(handler)

    with scripted([a_little]) as (url, seen):
        fetch(one_file, tmp_path / "got", url, 1)
    assert len(seen) == pieces
    assert (tmp_path / "got" / FILE_ID / "counts.tsv").read_bytes() == CONTENT


def test_body_without_end_is_cut_off_at_the_size(one_file, tmp_path, no_waiting, monkeypatch):
    monkeypatch.setattr(stage, "CHUNK", 1 << 12)
    sent = []

    def endless(handler):
        handler.send_response(200)
        handler.end_headers()
        with suppress(OSError):
            for _ in range(20_000):
                handler.wfile.write(CONTENT)
                sent.append(len(CONTENT))

    with scripted([endless, says(200, CONTENT)]) as (url, _):
        fetch(one_file, tmp_path / "got", url, 1)
    assert sum(sent) < 100_000_000


def test_full_disk_is_told_before_anything_is_fetched(tmp_path):
    manifest = pin_one(tmp_path / "one.parquet", size=10**18)
    with (
        scripted([says(200, CONTENT)]) as (url, seen),
        pytest.raises(FetchError, match=r"1000000000\.0 GB are to be fetched .* GB free"),
    ):
        fetch(manifest, tmp_path / "got", url, 1)
    assert seen == []


def serving(files):
    """An answer to any request: the file that the path ends with, or 404."""

    def answer(handler):
        content = files.get(handler.path.split("/data/")[-1])
        says(404 if content is None else 200, content or b"")(handler)

    return answer


def test_status_tells_of_every_file_and_a_rerun_tries_only_the_rest(tmp_path, no_waiting):
    files = contents(4, 100, 200)
    gone = list(files)[2]
    manifest = pin(tmp_path / "m.parquet", files)
    receipt = tmp_path / "receipts" / "expression.tsv"
    some = {file_id: content for file_id, content in files.items() if file_id != gone}
    with scripted([serving(some)]) as (url, _), pytest.raises(FetchError, match=rf"1 of 4 files.*{gone}.*404"):
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


def test_server_that_is_down_is_asked_once_for_what_is_left(tmp_path, no_waiting):
    files = contents(60, 1, 9)
    with scripted([says(500)]) as (url, seen), pytest.raises(FetchError, match="60 of 60"):
        fetch(pin(tmp_path / "m.parquet", files), tmp_path / "got", url, 1)
    assert len(seen) == 8 * web.TRIES + 52


def test_files_that_the_server_cannot_give_do_not_keep_the_others_back(tmp_path, no_waiting):
    files = contents(30, 1, 9)
    bad = sorted(files)[:9]

    def answer(handler):
        file_id = handler.path.split("/")[-1]
        (says(500) if file_id in bad else says(200, files[file_id]))(handler)

    with scripted([answer]) as (url, _), pytest.raises(FetchError, match=r"9 of 30 .*: the server answered 500"):
        fetch(pin(tmp_path / "m.parquet", files), tmp_path / "got", url, 1)
    status = pd.read_csv(tmp_path / "got.status.tsv", sep="\t").set_index("file_id").state
    assert {file_id for file_id in files if status[file_id] == "failed"} == set(bad)


@pytest.mark.parametrize(("code", "saved"), [(503, True), (500, False)])
def test_outage_of_a_server_that_worked_is_waited_for(tmp_path, no_waiting, monkeypatch, code, saved):
    """A 500 is the file's own: it is not worth an hour."""
    monkeypatch.setattr(stage, "OUTAGE_AFTER_SECONDS", 0.0)
    monkeypatch.setattr(stage, "OUTAGE_SECONDS", 60.0)
    files = contents(2, 1, 9)
    good = serving(files)
    with scripted([good, *[says(code)] * (2 * web.TRIES), good]) as (url, _):
        if saved:
            fetch(pin(tmp_path / "m.parquet", files), tmp_path / "got", url, 1)
        else:
            with pytest.raises(FetchError, match="1 of 2"):
                fetch(pin(tmp_path / "m.parquet", files), tmp_path / "got", url, 1)


def test_server_that_sends_a_byte_now_and_then_has_stalled(one_file, tmp_path, no_waiting, monkeypatch):
    monkeypatch.setattr(stage, "STALL_SECONDS", 0.2)

    def drips(handler):
        says(200, CONTENT[:5000], stated=len(CONTENT))(handler)
        with suppress(OSError):
            for byte in CONTENT[5000:5400]:
                handler.wfile.write(bytes([byte]))
                time.sleep(0.01)

    def rest(handler):
        start = int(handler.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        assert 5000 < start < 5400
        rest_of(start)(handler)

    with scripted([drips, rest]) as (url, seen):
        fetch(one_file, tmp_path / "got", url, 1)
    assert len(seen) == 2


def test_folder_may_be_the_one_at_hand(one_file, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with scripted([says(200, CONTENT)]) as (url, _):
        fetch(one_file, Path("."), url, 1)
    assert (tmp_path / "here" / FILE_ID / "counts.tsv").read_bytes() == CONTENT
    assert (tmp_path / "here.status.tsv").is_file()


def test_rows_beyond_the_manifest_are_refused(one_file, tmp_path):
    with pytest.raises(ManifestError, match=r"one\.parquet holds no file to fetch"):
        fetch(one_file, tmp_path / "got", "http://127.0.0.1:9", 1, rows=slice(5, 9))


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second file system")
def test_partial_files_on_another_file_system_are_refused_before_anything_is_fetched(one_file, tmp_path):
    with scripted([says(200, CONTENT)]) as (url, seen), pytest.raises(ConfigError, match="different file systems"):
        fetch(one_file, tmp_path / "got", url, 1, partial=Path("/dev/shm/mgi-partial"))
    assert seen == []


@pytest.mark.parametrize("address", ["http://localhost:80a", "http://localhost:99999", "http://[::1"])
def test_address_that_is_none_is_refused(one_file, tmp_path, address):
    with pytest.raises(ConfigError, match="is no address of a server"):
        fetch(one_file, tmp_path / "got", address, 1)
    with pytest.raises(ConfigError, match="is no address of a server"):
        fetch(one_file, tmp_path / "got", "http://127.0.0.1:9", 1, mirrors=[address])


def test_mirror_that_is_down_is_left_out_after_three_files(tmp_path, no_waiting, caplog):
    files = contents(6, 1, 9)
    with scripted([says(503, Retry_After="600")]) as (mirror, asked), scripted([serving(files)]) as (url, _):
        fetch(pin(tmp_path / "m.parquet", files), tmp_path / "got", url, 1, mirrors=[mirror])
    assert len(asked) == 3 * stage.MIRROR_TRIES
    (said,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "failed for 3 files in a row and is left out: the server answered 503" in said


def test_mirror_that_lacks_a_file_between_is_asked_on(tmp_path, no_waiting):
    files = contents(6, 1, 9)
    answers = [code for code in (503, 503, 404) for _ in range(1 if code == 404 else stage.MIRROR_TRIES)]
    with scripted([says(code) for code in 2 * answers]) as (mirror, asked), scripted([serving(files)]) as (url, _):
        fetch(pin(tmp_path / "m.parquet", files), tmp_path / "got", url, 1, mirrors=[mirror])
    assert len(asked) == 2 * len(answers)


def test_bytes_are_on_the_disk_before_the_file_has_its_name(one_file, tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(stage.os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))
    monkeypatch.setattr(stage.os, "replace", lambda *paths: synced.append("named"))
    with scripted([says(200, CONTENT)]) as (url, _), suppress(FileNotFoundError):
        fetch(one_file, tmp_path / "got", url, 1)
    assert synced[:2] == [len(CONTENT), "named"]


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


def test_what_is_under_way_may_lie_elsewhere_and_survives_there(tmp_path, no_waiting):
    files = contents(2, 100, 200)
    first = next(iter(files))
    manifest, out, partial = pin(tmp_path / "m.parquet", files), tmp_path / "got", tmp_path / "partial"
    with scripted([serving({first: files[first]})]) as (url, _), pytest.raises(FetchError):
        fetch(manifest, out, url, 1, partial=partial)
    assert not out.exists()
    assert (partial / first / "counts.tsv").read_bytes() == files[first]
    with scripted([serving(files)]) as (url, seen):
        fetch(manifest, out, url, 1, partial=partial)
        assert len(seen) == 1
        fetch(manifest, out, url, 1, partial=partial)
        assert len(seen) == 1
    assert {path.parent.name: path.read_bytes() for path in out.glob("*/*")} == files
    assert list(partial.iterdir()) == []


def test_second_process_waits_and_takes_what_the_first_completed(one_file, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "LOCK_POLL_SECONDS", 0.02)
    began = threading.Event()

    def slow(handler):
        began.set()
        time.sleep(0.3)
        says(200, CONTENT)(handler)

    with scripted([slow]) as (url, seen), ThreadPoolExecutor(2) as pool:
        one = pool.submit(fetch, one_file, tmp_path / "got", url, 1)
        assert began.wait(5)
        other = pool.submit(fetch, one_file, tmp_path / "got", url, 1, status=tmp_path / "status.tsv")
        one.result(10), other.result(10)
    assert len(seen) == 1
    assert pd.read_csv(tmp_path / "status.tsv", sep="\t").state.tolist() == ["kept"]
    assert [path.name for path in (tmp_path / "got" / FILE_ID).iterdir()] == ["counts.tsv"]


@pytest.mark.parametrize("layout", [f"{FILE_ID}/counts.tsv", "counts.tsv"])
def test_mirror_folder_is_tried_first(one_file, tmp_path, layout):
    mirror = tmp_path / "mirror" / layout
    mirror.parent.mkdir(parents=True)
    mirror.write_bytes(CONTENT)
    with scripted([says(500)]) as (url, seen):
        fetch(one_file, tmp_path / "got", url, 1, mirrors=[str(tmp_path / "mirror")])
    assert seen == []
    assert (tmp_path / "got" / FILE_ID / "counts.tsv").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("pattern", "asked"),
    [
        ("{url}", f"/data/{FILE_ID}"),
        ("{url}/bucket/{{file_id}}/{{file_name}}", f"/bucket/{FILE_ID}/counts.tsv"),
        ("{url}/all/x-{{file_name}}", "/all/x-counts.tsv"),
    ],
)
def test_mirror_address_is_tried_first(one_file, tmp_path, pattern, asked):
    paths = []

    def answer(handler):
        paths.append(handler.path)
        says(200, CONTENT)(handler)

    with scripted([answer]) as (mirror, _), scripted([says(500)]) as (url, seen):
        fetch(one_file, tmp_path / "got", url, 1, mirrors=[pattern.format(url=mirror)])
    assert (paths, seen) == ([asked], [])


@pytest.mark.parametrize("trouble", [says(404), says(403), says(500), says(200, CONTENT[::-1]), says(200, b"")])
def test_gdc_stands_in_for_a_mirror_that_fails(one_file, tmp_path, trouble, no_waiting):
    with scripted([trouble]) as (mirror, tried), scripted([says(200, CONTENT)]) as (url, seen):
        fetch(one_file, tmp_path / "got", url, 1, mirrors=[mirror])
    assert 1 <= len(tried) <= stage.MIRROR_TRIES
    assert len(seen) == 1
    assert (tmp_path / "got" / FILE_ID / "counts.tsv").read_bytes() == CONTENT


def test_half_a_file_of_a_mirror_is_completed_by_the_gdc(one_file, tmp_path, no_waiting):
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "counts.tsv").write_bytes(CONTENT[:4000])
    with scripted([rest_of(4000)]) as (url, seen):
        fetch(one_file, tmp_path / "got", url, 1, mirrors=[str(tmp_path / "mirror")])
    assert seen == ["bytes=4000-"]


@pytest.mark.parametrize(
    ("mirror", "error", "said"),
    [
        ("nowhere", MissingInputError, "gdc.mirrors takes folders and"),
        ("http://host/{uuid}", ConfigError, "has {uuid}"),
        ("http://{file_id}.host", ConfigError, "names no host"),
    ],
)
def test_unusable_mirror_is_refused(one_file, tmp_path, mirror, error, said):
    with pytest.raises(error, match=said):
        fetch(one_file, tmp_path / "got", "http://127.0.0.1:9", 1, mirrors=[mirror])


@pytest.fixture
def token(tmp_path):
    path = tmp_path / "token"
    path.touch(0o600)
    path.write_text("s3cret\n")
    return path


def test_token_goes_to_the_configured_host_only(one_file, tmp_path, token, caplog, no_waiting):
    heard = {}

    def hears(name, answer):
        def then(handler):
            heard[name] = handler.headers.get("X-Auth-Token")
            answer(handler)

        return then

    with (
        caplog.at_level("DEBUG"),
        scripted([hears("mirror", says(404))]) as (mirror, _),
        scripted([hears("elsewhere", says(200, CONTENT))]) as (elsewhere, _),
    ):
        moved = says(302, Location=elsewhere.replace("127.0.0.1", "localhost") + "/bucket/file")
        with scripted([hears("gdc", moved)]) as (url, _):
            fetch(one_file, tmp_path / "got", url, 1, mirrors=[mirror], token_file=token)
    assert heard == {"mirror": None, "gdc": "s3cret", "elsewhere": None}
    assert "s3cret" not in caplog.text


def test_token_needs_encryption_beyond_this_machine(one_file, tmp_path, token):
    with pytest.raises(ConfigError, match="not encrypted; use https"):
        fetch(one_file, tmp_path / "got", "http://gdc.example", 1, token_file=token)


@pytest.mark.parametrize(
    ("content", "mode", "error", "said"),
    [
        (b"s3cret", 0o644, ConfigError, "chmod 600"),
        (b"", 0o600, ConfigError, "does not hold a GDC token"),
        (b"two\nlines", 0o600, ConfigError, "does not hold a GDC token"),
        (b"\xff\xfe", 0o600, MissingInputError, "UnicodeDecodeError"),
        (None, 0o600, MissingInputError, "GDC token not found"),
    ],
)
def test_unusable_token_is_refused_and_not_shown(one_file, tmp_path, content, mode, error, said):
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)
    with pytest.raises(error, match=said) as caught:
        fetch(one_file, tmp_path / "got", "http://127.0.0.1:9", 1, token_file=path)
    assert "s3cret" not in str(caught.value)


def test_redirects_in_a_circle_end(one_file, tmp_path):
    with scripted([says(302, Location="/again")]) as (url, seen), pytest.raises(FetchError, match="more than 5 times"):
        fetch(one_file, tmp_path / "got", url, 1)
    assert len(seen) == 6


def test_redirect_away_from_http_is_not_followed(one_file, tmp_path):
    with scripted([says(302, Location="ftp://host/file")]) as (url, _), pytest.raises(FetchError, match="to ftp"):
        fetch(one_file, tmp_path / "got", url, 1)


def test_partial_file_of_unknown_size_is_resumed(tmp_path):
    manifest = pin_one(tmp_path / "one.parquet", size=None)
    part = tmp_path / "got" / FILE_ID / "counts.tsv.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT[:1000])
    with scripted([rest_of(1000)]) as (url, seen):
        fetch(manifest, tmp_path / "got", url, 1)
    assert seen == ["bytes=1000-"]
    part.with_name("counts.tsv").rename(part)
    with scripted([says(416, Content_Range=f"bytes */{len(CONTENT)}")]) as (url, seen):
        fetch(manifest, tmp_path / "got", url, 1)
    assert seen == [f"bytes={len(CONTENT)}-"]


def test_progress_without_a_known_size_promises_nothing(caplog, monkeypatch):
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", -1.0)
    with caplog.at_level("INFO", "mgi"):
        list(console.transfer(iter([0, 2_600_000]), "fetched", 0))
    assert [message for message in caplog.messages if "fetched: 2.6 MB, " in message and "unknown" in message]
    assert not [message for message in caplog.messages if " of 0.0" in message]


def test_progress_in_a_log_tells_bytes_rate_and_time_left(caplog, monkeypatch):
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


def test_command_line_gives_every_option_to_the_fetch(one_file, tmp_path, token):
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


def test_whole_partial_file_needs_no_request(one_file, tmp_path):
    part = tmp_path / "got" / FILE_ID / "counts.tsv.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT)
    with scripted([says(500)]) as (url, seen):
        fetch(one_file, tmp_path / "got", url, 1)
    assert seen == []
    assert [path.name for path in part.parent.iterdir()] == ["counts.tsv"]
