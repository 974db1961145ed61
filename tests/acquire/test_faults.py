"""A thousand downloads from a server that does everything wrong at once, and one that is killed again and again."""

import multiprocessing
import os
import random
import signal
import time

import pandas as pd
import pytest

from mgi.acquire import retry, web
from tests.cohorts import fetch

from .servers import FaultyGDC, contents, pin

WORKERS = 8
ALL_FAULTS = {
    "drop": 0.08, "stall": 0.02, "short": 0.06, "wrong": 0.02, "limit": 0.005, "burst": 0.005, "redirect": 0.05,
}  # fmt: skip


@pytest.fixture
def impatient(monkeypatch):
    """Short pauses and short silences, for servers whose troubles pass quickly."""
    monkeypatch.setattr(retry, "BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(web, "TIMEOUT_SECONDS", (1.0, 0.4))


@pytest.mark.parametrize("seed", [1, 2])
def test_a_thousand_files_arrive_under_all_faults_at_once(tmp_path, impatient, seed):
    files = contents(1000, 200, 8000, seed)
    manifest = pin(tmp_path / "manifest.parquet", files)
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text("secret")
    with FaultyGDC(files, ALL_FAULTS, restart_after=400, seed=seed) as gdc:
        fetch(manifest, tmp_path / "deep/got", gdc.url, WORKERS, token_file=token, status=tmp_path / "status.tsv")
        assert set(gdc.met) == set(ALL_FAULTS)
    arrived = {path.relative_to(tmp_path).parts: path.read_bytes() for path in tmp_path.rglob("counts.tsv*")}
    assert arrived == {("deep", "got", file_id, "counts.tsv"): content for file_id, content in files.items()}
    size = sum(map(len, files.values()))
    assert gdc.sent <= 1.05 * size + gdc.corrupted, (gdc.sent / size, gdc.corrupted / size)
    assert gdc.too_early == 0
    assert {token for is_other, token in gdc.tokens if is_other} == {None}
    assert {token for is_other, token in gdc.tokens if not is_other} == {"secret"}
    status = pd.read_csv(tmp_path / "status.tsv", sep="\t")
    assert status.file_id.tolist() == list(files)
    assert set(status.state) == {"fetched"}
    assert status.attempts.max() > 2


def held(folder):
    """Bytes of every finished file and of every partial one."""
    finished = {path.parent.name for path in folder.glob("*/counts.tsv")}
    parts = {path.parent.name: path.stat().st_size for path in folder.glob("*/counts.tsv.part")}
    return finished, parts


def test_killed_at_twenty_moments_it_resumes_and_fetches_no_finished_file_again(tmp_path):
    files = contents(60, 50_000, 250_000)
    manifest, out = pin(tmp_path / "manifest.parquet", files), tmp_path / "got"
    size = sum(map(len, files.values()))
    draw = random.Random(3)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mgi.acquire.fetch"])
    resumed = kills = 0
    with FaultyGDC(files, pause=0.001) as gdc:
        while True:
            finished, parts = held(out)
            before, limit = len(gdc.requests), gdc.sent + draw.randint(1, 2 * size // 25)
            process = context.Process(target=fetch, args=(manifest, out, gdc.url, 4))
            process.start()
            while kills < 20 and process.is_alive() and gdc.sent < limit:
                time.sleep(0.001)
            if kills < 20:
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
            process.join(30)
            for file_id, start in gdc.requests[before:]:
                assert file_id not in finished
                assert start == parts.get(file_id, 0)
                resumed += start > 0
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL
    assert kills == 20
    assert resumed >= 20
    assert {path.parent.name: path.read_bytes() for path in out.glob("*/*")} == files
