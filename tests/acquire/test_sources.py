"""Mirrors, redirects and the token: where files come from, and who is asked."""

import subprocess
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest

from mgi.acquire import fetch as stage
from mgi.acquire import sources, web
from mgi.config import FetchOptions
from mgi.errors import ConfigError, FetchError, MissingInputError
from tests.cohorts import fetch

from .servers import CONTENT, FILE_ID, contents, pin, rest_of, says, scripted, serving


@pytest.mark.parametrize("address", ["http://localhost:80a", "http://localhost:99999", "http://[::1"])
def test_rejects_invalid_address(one_file, tmp_path, address):
    with pytest.raises(ConfigError, match="is no address of a server"):
        fetch(one_file, tmp_path / "got", address, 1)
    with pytest.raises(ConfigError, match="is no address of a server"):
        fetch(one_file, tmp_path / "got", "http://127.0.0.1:9", 1, mirrors=[address])


def test_mirror_that_is_down_is_left_out_after_three_files(tmp_path, no_waiting, caplog):
    files = contents(6, 1, 9)
    with scripted([says(503, Retry_After="600")]) as (mirror, asked), scripted([serving(files)]) as (url, _):
        fetch(pin(tmp_path / "m.parquet", files), tmp_path / "got", url, 1, mirrors=[mirror])
    assert len(asked) == 3 * sources.MIRROR_TRIES
    (said,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "failed for 3 files in a row and is left out: the server answered 503" in said


def test_mirror_that_lacks_a_file_is_still_asked(tmp_path, no_waiting):
    files = contents(6, 1, 9)
    answers = [code for code in (503, 503, 404) for _ in range(1 if code == 404 else sources.MIRROR_TRIES)]
    with scripted([says(code) for code in 2 * answers]) as (mirror, asked), scripted([serving(files)]) as (url, _):
        fetch(pin(tmp_path / "m.parquet", files), tmp_path / "got", url, 1, mirrors=[mirror])
    assert len(asked) == 2 * len(answers)


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
    assert 1 <= len(tried) <= sources.MIRROR_TRIES
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
        ("nowhere", MissingInputError, "a mirror is a folder or an"),
        ("http://host/{uuid}", ConfigError, "has {uuid}"),
        ("http://{file_id}.host", ConfigError, "names no host"),
    ],
)
def test_unusable_mirror_is_refused(one_file, tmp_path, mirror, error, said):
    with pytest.raises(error, match=said):
        fetch(one_file, tmp_path / "got", "http://127.0.0.1:9", 1, mirrors=[mirror])


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
    options = FetchOptions(token_file=str(token), allow_http=True)
    with pytest.raises(ConfigError, match="not encrypted; use https"):
        stage.fetch(one_file, tmp_path / "got", "http://gdc.example", options)


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
    with scripted([says(302, Location="ftp://host/file")]) as (url, _), pytest.raises(FetchError, match="to 'ftp'"):
        fetch(one_file, tmp_path / "got", url, 1)


@pytest.mark.parametrize(
    "address",
    ["https://me:s3cret@mirror.example", "http://s3cret@127.0.0.1:1", "https://me:s3cret@mirror.example/{file_name}",
     "https://me:s3cret@[::1/x", "https://me:s3cret@mirror.example:99999/"],
)  # fmt: skip
def test_password_in_an_address_is_refused_and_not_repeated(one_file, tmp_path, address, caplog):
    caplog.set_level("DEBUG")
    for options in ({"api_url": address}, {"api_url": "http://127.0.0.1:9", "mirrors": [address]}):
        with pytest.raises(ConfigError, match="password") as caught:
            fetch(one_file, tmp_path / "got", options.pop("api_url"), 1, **options)
        # The causes, too, which --verbose shows.
        assert "s3cret" not in "".join(traceback.format_exception(caught.value))
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize("address", ["http://mirror.example", "http://10.0.0.1/x", "http://localhost.example"])
def test_unencrypted_addresses_of_other_machines_need_a_word(one_file, tmp_path, address):
    for options in ({"api_url": address}, {"api_url": "http://127.0.0.1:9", "mirrors": [address]}):
        with pytest.raises(ConfigError, match=r"is not encrypted.*allow_http"):
            fetch(one_file, tmp_path / "got", options.pop("api_url"), 1, **options)
    with web.Server(address, allow_http=True) as server:
        assert str(server) == address


PAGE = b"<!doctype html><title>Maintenance</title>" + b" " * 2000


@pytest.mark.parametrize(
    "page",
    [says(200, PAGE, Content_Type="text/html; charset=utf-8"), says(200, PAGE), says(200, b"Not found"),
     says(200, CONTENT + b"x"), says(200, CONTENT, Content_Type="text/html")],
    ids=["typed page", "page", "text", "longer", "type only"],
)  # fmt: skip
def test_mirror_that_answers_with_something_else_costs_no_bytes(one_file, tmp_path, no_waiting, page, part):
    part.write_bytes(CONTENT[:4000])
    with scripted([page]) as (mirror, tried), scripted([rest_of(4000)]) as (url, seen):
        fetch(one_file, tmp_path / "got", url, 1, mirrors=[mirror])
    assert len(tried) == sources.MIRROR_TRIES
    # What was there is continued, not begun again.
    assert seen == ["bytes=4000-"]


def test_page_of_the_size_of_the_file_is_recognised_by_its_beginning(one_file, tmp_path, no_waiting):
    page = b"<html>" + b" " * (len(CONTENT) - 6)
    with scripted([says(200, page)]) as (url, _), pytest.raises(FetchError, match="a web page arrived instead"):
        fetch(one_file, tmp_path / "got", url, 1)


def test_each_thread_has_a_session_of_its_own():
    with web.Server("http://127.0.0.1:9") as server, ThreadPoolExecutor(4) as pool:
        together = threading.Barrier(4)
        sessions = list(pool.map(lambda _: (together.wait(5), server._session(), server._session())[1:], range(4)))
    assert all(one is other for one, other in sessions)
    assert len({id(one) for one, _ in sessions}) == 4


def test_failures_of_one_kind_are_listed_together(tmp_path, no_waiting):
    files = contents(6, 5, 9)
    ids = list(files)

    def answer(handler):
        number = ids.index(handler.path.split("/")[-1])
        says(404 if number < 4 else 403, b"")(handler)

    with scripted([answer]) as (url, _), pytest.raises(FetchError, match="6 of 6 files") as caught:
        fetch(pin(tmp_path / "m.parquet", files), tmp_path / "got", url, 1)
    assert str(caught.value).count("does not have it") == 1
    assert str(caught.value).count("access denied") == 1
    assert "and 1 more" in str(caught.value)


@pytest.mark.parametrize("given", ["--api-url={}", "--mirror={}", '--options={{"mirrors": ["{}"]}}'])
def test_command_line_does_not_repeat_a_password_even_with_causes(one_file, tmp_path, given):
    option = given.format("https://me:s3cret@mirror.example")
    command = [sys.executable, "-m", "mgi", "--verbose", "gdc", "fetch", one_file, "-o", tmp_path / "got", option]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "password" in done.stderr
    assert "s3cret" not in done.stdout + done.stderr
