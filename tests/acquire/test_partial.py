"""Downloads that are resumed, verified and given up: the `.part` of a file and the servers that fill it."""

import fcntl
import functools
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from email.utils import formatdate
from pathlib import Path

import pandas as pd
import pytest

from mgi.acquire import partial as parts
from mgi.acquire import retry, sources, web
from mgi.acquire.manifest import read_manifest
from mgi.errors import ConfigError, FetchError
from tests.cohorts import fetch

from .servers import CONTENT, FILE_ID, contents, md5_of, pin, pin_one, rest_of, says, scripted, serving


def test_partial_file_is_resumed_where_it_stopped(one_file, tmp_path, part):
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
def test_unusable_partial_file_is_replaced(one_file, tmp_path, left, no_waiting, part):
    part.write_bytes(left)

    def honest(handler):
        start = int((handler.headers.get("Range") or "bytes=0-")[6:-1])
        code = 206 if handler.headers.get("Range") else 200
        says(code, CONTENT[start:], Content_Range=f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")(handler)

    with scripted([honest]) as (url, _):
        fetch(one_file, tmp_path / "got", url, 1)
    assert (part.parent / "counts.tsv").read_bytes() == CONTENT


def test_server_that_ignores_range_starts_the_file_again(one_file, tmp_path, part):
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
    ("code", "word"), [(404, "superseded"), (403, "controlled-access"), (401, "controlled-access")]
)
def test_final_refusal_is_not_repeated(one_file, tmp_path, code, word, no_waiting):
    with scripted([says(code)]) as (url, seen), pytest.raises(FetchError, match=word):
        fetch(one_file, tmp_path / "got", url, 1)
    assert len(seen) == 1


def test_lasting_trouble_ends(one_file, tmp_path, no_waiting):
    with scripted([says(500)]) as (url, seen), pytest.raises(FetchError, match="500"):
        fetch(one_file, tmp_path / "got", url, 1)
    assert len(seen) == retry.MAX_TRIES


def test_file_of_unknown_size_is_verified_by_md5(tmp_path):
    manifest = pin_one(tmp_path / "one.parquet", size=None)
    with scripted([says(200, CONTENT)]) as (url, _):
        fetch(manifest, tmp_path / "got", url, 1, receipt=tmp_path / "receipt.tsv")
    assert pd.read_csv(tmp_path / "receipt.tsv", sep="\t")["size"].tolist() == [len(CONTENT)]


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
        listens = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
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


def test_progress_resets_the_count_of_failures(one_file, tmp_path, no_waiting):
    pieces = 3 * retry.MAX_TRIES
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
    monkeypatch.setattr(sources, "CHUNK", 1 << 12)
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


def test_full_disk_is_reported_before_anything_is_fetched(tmp_path):
    manifest = pin_one(tmp_path / "one.parquet", size=10**13)
    with (
        scripted([says(200, CONTENT)]) as (url, seen),
        pytest.raises(FetchError, match=r"10000\.0 GB are to be fetched .* GB free"),
    ):
        fetch(manifest, tmp_path / "got", url, 1)
    assert seen == []


def test_server_that_is_down_is_asked_once_for_what_is_left(tmp_path, no_waiting):
    files = contents(60, 1, 9)
    with scripted([says(500)]) as (url, seen), pytest.raises(FetchError, match="60 of 60"):
        fetch(pin(tmp_path / "m.parquet", files), tmp_path / "got", url, 1)
    assert len(seen) == 8 * retry.MAX_TRIES + 52


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
    monkeypatch.setattr(retry, "OUTAGE_AFTER_SECONDS", 0.0)
    monkeypatch.setattr(retry, "OUTAGE_SECONDS", 60.0)
    files = contents(2, 1, 9)
    good = serving(files)
    with scripted([good, *[says(code)] * (2 * retry.MAX_TRIES), good]) as (url, _):
        if saved:
            fetch(pin(tmp_path / "m.parquet", files), tmp_path / "got", url, 1)
        else:
            with pytest.raises(FetchError, match="1 of 2"):
                fetch(pin(tmp_path / "m.parquet", files), tmp_path / "got", url, 1)


def test_server_that_sends_a_byte_now_and_then_has_stalled(one_file, tmp_path, no_waiting, monkeypatch):
    monkeypatch.setattr(parts, "STALL_SECONDS", 0.2)

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


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second file system")
def test_partial_files_on_another_file_system_are_refused_before_anything_is_fetched(one_file, tmp_path):
    with scripted([says(200, CONTENT)]) as (url, seen), pytest.raises(ConfigError, match="different file systems"):
        fetch(one_file, tmp_path / "got", url, 1, partial=Path("/dev/shm/mgi-partial"))
    assert seen == []


def test_bytes_are_on_the_disk_before_the_file_has_its_name(one_file, tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(parts.os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))
    monkeypatch.setattr(parts.os, "replace", lambda *paths: synced.append("named"))
    with scripted([says(200, CONTENT)]) as (url, _), suppress(FileNotFoundError):
        fetch(one_file, tmp_path / "got", url, 1)
    assert synced[:2] == [len(CONTENT), "named"]


def test_partial_folder_survives_a_failed_run(tmp_path, no_waiting):
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
    monkeypatch.setattr(parts, "LOCK_POLL_SECONDS", 0.02)
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


def test_partial_file_of_unknown_size_is_resumed(tmp_path, part):
    manifest = pin_one(tmp_path / "one.parquet", size=None)
    part.write_bytes(CONTENT[:1000])
    with scripted([rest_of(1000)]) as (url, seen):
        fetch(manifest, tmp_path / "got", url, 1)
    assert seen == ["bytes=1000-"]
    part.with_name("counts.tsv").rename(part)
    with scripted([says(416, Content_Range=f"bytes */{len(CONTENT)}")]) as (url, seen):
        fetch(manifest, tmp_path / "got", url, 1)
    assert seen == [f"bytes={len(CONTENT)}-"]


def test_whole_partial_file_needs_no_request(one_file, tmp_path, part):
    part.write_bytes(CONTENT)
    with scripted([says(500)]) as (url, seen):
        fetch(one_file, tmp_path / "got", url, 1)
    assert seen == []
    assert [path.name for path in part.parent.iterdir()] == ["counts.tsv"]


@pytest.mark.parametrize("trick", ["link", "dangling link", "hard link", "pipe", "folder"])
def test_part_that_is_no_plain_file_of_ours_is_refused(one_file, tmp_path, part, trick):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    if trick == "link":
        part.symlink_to(victim)
    elif trick == "dangling link":
        part.symlink_to(tmp_path / "absent")
    elif trick == "hard link":
        os.link(victim, part)
    elif trick == "pipe":
        os.mkfifo(part)
    else:
        part.mkdir()
    with scripted([says(200, CONTENT)]) as (url, seen), pytest.raises(FetchError, match="remove it"):
        fetch(one_file, tmp_path / "got", url, 1)
    assert seen == []
    assert victim.read_text() == "precious"
    assert not (tmp_path / "absent").exists()


def test_part_of_another_user_is_refused(one_file, tmp_path, part, monkeypatch):
    part.write_bytes(CONTENT[:100])
    monkeypatch.setattr(parts.os, "getuid", lambda: os.stat(part).st_uid + 1)
    with scripted([says(200, CONTENT)]) as (url, seen), pytest.raises(FetchError, match="another user's: remove it"):
        fetch(one_file, tmp_path / "got", url, 1)
    assert seen == []
    assert part.read_bytes() == CONTENT[:100]


def test_nobody_else_can_open_a_part_to_lock_it(one_file, tmp_path, part):
    part.write_bytes(CONTENT[:100])
    part.chmod(0o666)
    modes = []

    def answer(handler):
        modes.append(stat.S_IMODE(part.stat().st_mode))
        rest_of(100)(handler)

    with scripted([answer]) as (url, _):
        fetch(one_file, tmp_path / "got", url, 1)
    assert modes == [0o600]


@pytest.mark.parametrize(("has_token", "mode"), [(False, 0o640), (True, 0o600)])
def test_files_fetched_with_a_token_are_their_owners_alone(one_file, tmp_path, token, has_token, mode):
    umask = os.umask(0o027)
    try:
        with scripted([says(200, CONTENT)]) as (url, _):
            fetch(one_file, tmp_path / "got", url, 1, token_file=token if has_token else None)
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "got" / FILE_ID / "counts.tsv").stat().st_mode) == mode


def test_lock_held_by_a_process_that_adds_nothing_is_waited_for_a_bounded_time(one_file, tmp_path, part, monkeypatch):
    monkeypatch.setattr(parts, "LOCK_POLL_SECONDS", 0.02)
    monkeypatch.setattr(parts, "MAX_LOCK_SECONDS", 0.2)
    with open(part, "wb") as held, scripted([says(200, CONTENT)]) as (url, seen):
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(FetchError, match=r"another process has held .*counts\.tsv\.part"):
            fetch(one_file, tmp_path / "got", url, 1)
    assert seen == []


def test_file_of_unknown_size_is_bounded(tmp_path, no_waiting, monkeypatch):
    monkeypatch.setattr(parts, "MAX_UNSIZED_BYTES", 5000)
    monkeypatch.setattr(sources, "CHUNK", 1 << 10)

    def endless(handler):
        handler.send_response(200)
        handler.end_headers()
        with suppress(OSError):
            for _ in range(2000):
                handler.wfile.write(CONTENT)

    manifest = pin_one(tmp_path / "one.parquet", size=None)
    with scripted([endless]) as (url, seen), pytest.raises(FetchError, match="its size is not known"):
        fetch(manifest, tmp_path / "got", url, 1)
    assert len(seen) == 1
    assert (tmp_path / "got" / FILE_ID / "counts.tsv.part").stat().st_size <= 5000


def test_file_of_unknown_size_does_not_fill_the_disk(tmp_path, no_waiting, monkeypatch):
    monkeypatch.setattr(parts, "FREE_CHECK_BYTES", 1000)
    monkeypatch.setattr(parts.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=10**8))
    manifest = pin_one(tmp_path / "one.parquet", size=None)
    with scripted([says(200, CONTENT)]) as (url, _), pytest.raises(FetchError, match=r"the disk has 0\.1 GB free"):
        fetch(manifest, tmp_path / "got", url, 1)


def test_stated_length_beyond_the_limit_is_refused_before_it_is_read(tmp_path, no_waiting):
    manifest = pin_one(tmp_path / "one.parquet", size=None)
    with (
        scripted([says(200, b"x", stated=10**15)]) as (url, _),
        pytest.raises(FetchError, match=r"offers 10{15} bytes"),
    ):
        fetch(manifest, tmp_path / "got", url, 1)
    assert (tmp_path / "got" / FILE_ID / "counts.tsv.part").stat().st_size == 0


def test_part_left_beside_a_complete_file_is_removed(one_file, tmp_path, part):
    part.write_bytes(CONTENT[:100])
    part.with_name("counts.tsv").write_bytes(CONTENT)
    with scripted([says(500)]) as (url, seen):
        fetch(one_file, tmp_path / "got", url, 1)
    assert seen == []
    assert [path.name for path in part.parent.iterdir()] == ["counts.tsv"]
