"""The local GDC: the API paths, filters, pages and byte ranges that a client relies on."""

import gzip
import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest
import requests

from mgi.errors import ConfigError, ManifestError, MissingInputError
from mgi.simulate import api, serve


@pytest.fixture(scope="module")
def url(cohort):
    with serve.endpoint(f"local:{cohort}") as address:
        yield address


@pytest.fixture(scope="module")
def records(cohort):
    return json.loads((cohort / "files.json").read_text())


def equals(field, value):
    return {"op": "=", "content": {"field": field, "value": value}}


def hits(url, filters, **query):
    answer = requests.post(f"{url}/files", json={"filters": filters, "size": 1000, **query})
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]["hits"]


def test_status_has_the_data_release(url):
    assert requests.get(f"{url}/status").json() == {
        "data_release": "Simulated 1.0", "status": "OK", "tag": "1.0", "version": 1,
    }  # fmt: skip


def test_nested_fields_filter_and_come_back_nested(url, records):
    filters = {
        "op": "and",
        "content": [
            equals("cases.project.project_id", "TCGA-SIM"),
            equals("data_type", "Gene Expression Quantification"),
            {"op": "in", "content": {"field": "analysis.workflow_type", "value": ["STAR - Counts", "other"]}},
        ],
    }
    fields = "file_name,cases.submitter_id,cases.samples.portions.analytes.aliquots.submitter_id"
    found = hits(url, filters, fields=fields)
    assert len(found) == 4
    for hit in found:
        assert set(hit) == {"id", "file_name", "cases"}
        case = hit["cases"][0]
        assert set(case) == {"submitter_id", "samples"}
        aliquot = case["samples"][0]["portions"][0]["analytes"][0]["aliquots"][0]
        assert aliquot["submitter_id"].startswith(case["submitter_id"])


def test_or_not_equal_and_exclude(url, records):
    kinds = {record["file_id"]: record["data_type"] for record in records}
    slides = {file_id for file_id, kind in kinds.items() if kind == "Slide Image"}
    either = {"op": "or", "content": [equals("data_type", "Slide Image"), equals("data_type", "Gene Annotation")]}
    assert len(hits(url, either)) == len(slides) + 1
    other = hits(url, {"op": "!=", "content": {"field": "data_type", "value": "Slide Image"}})
    assert {hit["id"] for hit in other} == set(kinds) - slides
    excluded = hits(url, {"op": "exclude", "content": {"field": "data_type", "value": ["Slide Image"]}})
    assert excluded == other


def test_get_takes_filters_in_the_address(url, records):
    one = records[1]["file_id"]
    query = {"filters": json.dumps(equals("file_id", one)), "fields": "md5sum,file_size", "expand": "cases"}
    data = requests.get(f"{url}/files", params=query).json()["data"]
    assert data["hits"] == [{"id": one, "md5sum": records[1]["md5sum"], "file_size": records[1]["file_size"]}]


def test_pages_follow_each_other_and_are_counted(url, records):
    seen = []
    for start in range(0, len(records), 3):
        query = {"from": start, "size": 3, "sort": "file_id:desc", "fields": "file_id"}
        data = requests.post(f"{url}/files", json=query).json()["data"]
        assert data["pagination"]["total"] == len(records)
        assert data["pagination"]["pages"] == -(-len(records) // 3)
        assert data["pagination"]["page"] == start // 3 + 1
        assert data["pagination"]["count"] == len(data["hits"])
        seen += [hit["file_id"] for hit in data["hits"]]
    assert seen == sorted((record["file_id"] for record in records), reverse=True)


@pytest.mark.parametrize(
    "body",
    [
        {"filters": {"op": "like"}},
        {"filters": "{"},
        {"size": "many"},
        {"from": -1},
        {"format": "tsv"},
        ["a list"],
        {"fields": {"a": 1}},
        {"filters": {"op": "=", "content": {"field": []}}},
        {"from": "9" * 5000},
    ],
)
def test_query_that_cannot_be_read_gets_400_and_a_message(url, body):
    answer = requests.post(f"{url}/files", json=body)
    assert answer.status_code == 400
    assert answer.json()["message"]


@pytest.mark.parametrize("path", ["/nowhere", "/data/no-such-file", "/data/..%2f..%2fstatus.json"])
def test_unknown_path_or_file_gets_404_in_json(url, path):
    answer = requests.get(url + path)
    assert answer.status_code == 404
    assert answer.json()["code"] == 404


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [("bytes=100-", 100, None), ("bytes=5-9", 5, 10), ("bytes=-7", -7, None), ("bytes=3-99999999", 3, None)],
)
def test_range_answers_206_with_those_bytes(url, cohort, records, header, start, end):
    record = records[-1]
    content = (cohort / "data" / record["file_id"] / record["file_name"]).read_bytes()
    answer = requests.get(f"{url}/data/{record['file_id']}", headers={"Range": header})
    assert answer.status_code == 206
    assert answer.content == content[start:end]
    first = len(content) + start if start < 0 else start
    last = first + len(answer.content) - 1
    assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{len(content)}"


def test_range_beyond_the_end_gets_416_with_the_size(url, records):
    record = records[-1]
    answer = requests.get(f"{url}/data/{record['file_id']}", headers={"Range": f"bytes={record['file_size']}-"})
    assert answer.status_code == 416
    assert answer.headers["Content-Range"] == f"bytes */{record['file_size']}"


def test_whole_file_comes_as_an_attachment_with_its_name(url, cohort, records):
    record = records[0]
    answer = requests.get(f"{url}/data/{record['file_id']}", headers={"Range": "nonsense"})
    assert answer.status_code == 200
    assert answer.headers["Content-Disposition"] == f"attachment; filename={record['file_name']}"
    assert answer.content == (cohort / "data" / record["file_id"] / record["file_name"]).read_bytes()


@pytest.mark.parametrize("address", ["https://api.gdc.cancer.gov", "ftp://somewhere"])
def test_other_addresses_pass_unchanged(address):
    with serve.endpoint(address) as url:
        assert url == address


@pytest.mark.parametrize(
    ("name", "content", "error", "said"),
    [
        ("files.json", "{}", ManifestError, "holds no list of records"),
        ("files.json", "[" * 100_000, ManifestError, "is not JSON"),
        ("files.json", "[7]", ManifestError, "a record that is no object: '7'"),
        ("files.json", '[{"file_id": "../..", "file_name": "x"}]', ManifestError, "invalid file id"),
        ("files.json", '[{"file_id": "x", "file_name": "../../../etc/passwd"}]', ManifestError, "invalid file name"),
        ("status.json", "[]", ManifestError, "holds no status"),
        ("status.json", None, MissingInputError, "status.json is missing"),
    ],
)
def test_rejects_invalid_records(own_cohort, name, content, error, said):
    (own_cohort / name).unlink()
    if content is not None:
        (own_cohort / name).write_text(content)
    with pytest.raises(error, match=said):
        serve.make_server(own_cohort, 0)


@pytest.mark.parametrize("trick", ["file", "folder", "data", "pipe"])
def test_files_outside_of_the_folder_are_not_served(own_cohort, tmp_path, records, trick):
    record = records[-1]
    folder = own_cohort / "data" / record["file_id"]
    path = folder / record["file_name"]
    secret = tmp_path / "secret" / record["file_id"] / record["file_name"]
    secret.parent.mkdir(parents=True)
    secret.write_text("secret")
    if trick in ("file", "pipe"):
        path.unlink()
        path.symlink_to(secret) if trick == "file" else os.mkfifo(path)
    elif trick == "folder":
        shutil.rmtree(folder)
        folder.symlink_to(secret.parent)
    else:
        shutil.rmtree(own_cohort / "data")
        (own_cohort / "data").symlink_to(tmp_path / "secret")
    with serve.endpoint(f"local:{own_cohort}") as url:
        answer = requests.get(f"{url}/data/{record['file_id']}", timeout=5)
    assert answer.status_code == 404
    assert "secret" not in answer.text


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("127.0.0.1:1", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil", 421),
        ("", 421),
        ("localhost:99999999", 421),
    ],
)
def test_requests_for_other_hosts_are_refused(url, method, host, code):
    answer = requests.request(method, f"{url}/files", headers={"Host": host}, data="{}", timeout=5)
    assert answer.status_code == code


def test_request_with_two_hosts_is_refused(url):
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 5) as client:
        client.sendall(b"GET /status HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 421")


@pytest.mark.parametrize("length", ["99999999999", "-1", "x", str(2 << 20)])
def test_bodies_without_a_reasonable_length_are_not_read(url, length):
    port = int(url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), 5) as client:
        client.sendall(f"POST /files HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode())
        assert client.recv(100).startswith(b"HTTP/1.1 413")


def test_folder_without_a_complete_cohort_is_refused(tmp_path, own_cohort):
    with pytest.raises(MissingInputError, match="mgi simulate"):
        serve.make_server(tmp_path / "absent", 0)
    (own_cohort / "manifest.tsv").unlink()
    with pytest.raises(MissingInputError, match="complete"):
        serve.make_server(own_cohort, 0)


def test_reports_port_in_use(cohort):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=str(port)):
            serve.make_server(cohort, port)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_serve_prints_its_address_and_stops_at_a_signal_in_the_background(cohort, stop):
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); from mgi.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", str(cohort)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            address = process.stdout.readline().strip()
            assert requests.get(f"{address}/status", timeout=10).json()["status"] == "OK"
            process.send_signal(stop)
            assert process.wait(timeout=10) == 0
        finally:
            process.kill()


def test_filters_of_a_real_client_pick_from_real_records(data_dir):
    with gzip.open(data_dir / "gdc" / "files_tcga_brca_2019.json.gz", "rt") as handle:
        real = json.load(handle)
    payload = json.loads((data_dir / "gdc" / "files_query_payload.json").read_text())
    for number, record in enumerate(real):
        record.setdefault("file_id", str(number))
    answer = api.list_files(real, payload | {"format": "JSON", "fields": "file_name,data_category"})
    expected = [
        record
        for record in real
        if record["data_category"] == "Transcriptome Profiling"
        and "TCGA-BRCA" in [case["project"]["project_id"] for case in record["cases"]]
    ]
    assert 0 < len(expected) < len(real)
    assert [hit["file_name"] for hit in answer["data"]["hits"]] == [record["file_name"] for record in expected]
