"""Whether the GDC still has what a manifest pins."""

import json

import pandas as pd
import pytest

from mgi.acquire import gdc
from mgi.acquire.manifest import read_manifest
from mgi.errors import FetchError, ManifestError
from tests.cohorts import check

from .servers import FILE_ID, pin_one, says, scripted

NEW_ID = "99999999-2222-4333-8444-555555555555"


def test_finds_what_the_gdc_no_longer_has(manifest, own_cohort, tmp_path):
    check(manifest, f"local:{own_cohort}")
    rows = read_manifest(manifest)
    path = own_cohort / "files.json"
    records = [record for record in json.loads(path.read_text()) if record["file_id"] != rows.file_id[2]]
    next(record for record in records if record["file_id"] == rows.file_id[3])["md5sum"] = "0" * 32
    path.write_text(json.dumps(records))
    with pytest.raises(ManifestError, match=rf"2 of {len(rows)} files.*{rows.file_id[2]} withdrawn"):
        check(manifest, f"local:{own_cohort}", tmp_path / "gone.tsv")
    gone = pd.read_csv(tmp_path / "gone.tsv", sep="\t")
    assert gone.file_id.tolist() == rows.file_id[2:4].tolist()
    assert gone.state.tolist() == ["withdrawn", "changed"]


@pytest.fixture
def answering(monkeypatch):
    """A function: let the GDC answer so about the file, and give it this history."""

    def answer(hits, history):
        answers = {
            "/status": {"data_release": "Data Release 99"},
            "/files": {"data": {"hits": hits, "pagination": {"total": len(hits)}}},
            f"/history/{FILE_ID}": history,
        }
        monkeypatch.setattr(gdc.Server, "ask", lambda self, method, path, body=None, **_: answers[path])

    return answer


def test_names_the_successor(tmp_path, answering):
    answering(
        [],
        [
            {"uuid": FILE_ID, "file_change": "superseded", "data_release": "12.0"},
            {"uuid": NEW_ID, "file_change": "released", "data_release": "32.0"},
        ],
    )
    with pytest.raises(ManifestError, match="superseded"):
        check(pin_one(tmp_path / "one.parquet"), "http://127.0.0.1:9", tmp_path / "gone.tsv")
    assert pd.read_csv(tmp_path / "gone.tsv", sep="\t").reason.tolist() == [f"by {NEW_ID} in data release 32.0"]


@pytest.mark.parametrize("history", [{}, [7], [{"uuid": 7}], [{"uuid": "a\nb"}], None])
def test_reports_invalid_history(tmp_path, answering, history):
    answering([], history)
    with pytest.raises(FetchError, match=rf"/history/{FILE_ID} answers no list of versions"):
        check(pin_one(tmp_path / "one.parquet"), "http://127.0.0.1:9")


@pytest.mark.parametrize(
    "hit", [7, {}, {"file_id": FILE_ID, "md5sum": "zz"}, {"file_id": FILE_ID, "state": "live\x1b[2J"}]
)
def test_reports_invalid_record(tmp_path, answering, hit):
    answering([hit], [])
    with pytest.raises(ManifestError, match="1 of 1 records of the GDC cannot be used") as caught:
        check(pin_one(tmp_path / "one.parquet"), "http://127.0.0.1:9")
    assert "\x1b" not in str(caught.value)


def test_state_that_is_not_available_is_a_withdrawal(tmp_path, answering):
    answering([{"file_id": FILE_ID, "state": "=SUM(A1)"}], [])
    with pytest.raises(ManifestError, match="withdrawn"):
        check(pin_one(tmp_path / "one.parquet"), "http://127.0.0.1:9", tmp_path / "gone.tsv")
    assert not any(cell.startswith(("=", "+", "-", "@")) for cell in (tmp_path / "gone.tsv").read_text().split("\t"))


@pytest.mark.parametrize(("code", "error"), [(500, FetchError), (403, FetchError), (404, ManifestError)])
def test_file_is_withdrawn_only_where_the_gdc_lists_none(tmp_path, no_waiting, code, error):
    def answer(handler):
        if "/history/" in handler.path:
            return says(code)(handler)
        empty = {"data": {"hits": [], "pagination": {"total": 0}}}
        return says(200, json.dumps(empty if handler.path == "/files" else {"data_release": "R"}).encode())(handler)

    with scripted([answer]) as (url, _), pytest.raises(error, match="withdrawn" if code == 404 else f"history.*{code}"):
        check(pin_one(tmp_path / "one.parquet"), url, tmp_path / "gone.tsv")
    assert (tmp_path / "gone.tsv").exists() == (code == 404)
