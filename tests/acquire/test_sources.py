"""Mirrors, redirects and the token: where files come from, and who is asked."""

import pytest

from mgi.acquire import fetch as stage
from mgi.acquire import sources
from mgi.config import FetchOptions
from mgi.errors import ConfigError, FetchError, MissingInputError
from tests.cohorts import fetch

from .servers import CONTENT, FILE_ID, contents, pin, rest_of, says, scripted, serving


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
    assert len(asked) == 3 * sources.MIRROR_TRIES
    (said,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "failed for 3 files in a row and is left out: the server answered 503" in said


def test_mirror_that_lacks_a_file_between_is_asked_on(tmp_path, no_waiting):
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
