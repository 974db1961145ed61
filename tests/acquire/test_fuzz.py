"""Foreign bytes of every kind: whatever they hold, only errors that a user can act on come out."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mgi.acquire import gdc
from mgi.acquire.check import check
from mgi.acquire.manifest import EXPRESSION, QUERY_KEY, SLIDES, read_exclusions, read_manifest, refuse_other_choice
from mgi.acquire.portal import import_manifest, read_sample_sheet
from mgi.config import ImportOptions, QueryOptions
from mgi.errors import MGIError
from mgi.simulate import api
from mgi.tables import MANIFEST_SCHEMA, write_table

from .listings import file_id_of, record
from .servers import FILE_ID, pin_one, says, scripted

BOUNDED = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
TEXT = st.text(max_size=20) | st.sampled_from(
    [
        "",
        " ",
        "$(touch x)",
        "../..",
        "a\x00b",
        "\x1b[2J",
        "TCGA-AA-0001-01A",
        FILE_ID,
        "0" * 32,
        "=1+1",
        "\u202e",
        "\ud800",
    ]
)
SCALAR = st.none() | st.booleans() | st.integers() | st.integers(2**60, 2**80) | st.floats() | TEXT
JSON = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=12
)
TABLES = [
    ("id\tfilename\tmd5\tsize", f"{FILE_ID}\tTCGA-AA-0001-01Z-00-DX1.X.svs\t{'0' * 32}\t7"),
    ("file_id\treason", f"{FILE_ID}\tblurred"),
    (
        "File ID\tProject ID\tCase ID\tSample ID\tSample Type",
        f"{FILE_ID}\tTCGA-AA\tTCGA-AA-0001\tTCGA-AA-0001-01A\tPrimary Tumor",
    ),
]


@st.composite
def mutated(draw, records):
    """A record in which a value somewhere is another, or missing."""
    value = json.loads(json.dumps(draw(st.sampled_from(records))))
    node = value
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return value
        key = draw(st.sampled_from(keys))
        if isinstance(node[key], dict | list) and draw(st.booleans()):
            node = node[key]
            continue
        if isinstance(node, dict) and draw(st.integers(0, 4)) == 0:
            del node[key]
        else:
            node[key] = draw(JSON)
        return value


RECORDS = [record(1, "TCGA-AA-0001-01A-11R-A000-07"), record(2, "HCM-1-01A", case_id="HCM-1", tissue_type="Tumor")]
SLIDE_RECORDS = [record(3, "TCGA-AA-0001-01Z-00-DX1")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@BOUNDED
@given(
    hits=st.lists(mutated(RECORDS) | mutated(SLIDE_RECORDS) | JSON, max_size=3),
    kind=st.sampled_from([EXPRESSION, SLIDES]),
)
def test_records_of_the_gdc(hits, kind):
    try:
        gdc.select_files(
            gdc._candidates(hits, kind, "TCGA-AA"), kind, "the project", QueryOptions(projects=["TCGA-AA"])
        )
    except MGIError as error:
        assert str(error).isprintable()


@BOUNDED
@given(answer=JSON | mutated([{"data": {"hits": [], "pagination": {"total": 0}}}, {"data_release": "R"}]))
def test_answers_of_the_gdc(folder, answer):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gdc.Server, "ask", lambda self, method, path, body=None, **_: answer)
        for run in (
            lambda: gdc.query(
                QueryOptions(projects=["P"], annotation_file_id=FILE_ID), folder / "q.parquet", "http://127.0.0.1:9"
            ),
            lambda: check(pin_one(folder / "one.parquet"), "http://127.0.0.1:9"),
        ):
            try:
                run()
            except MGIError as error:
                assert str(error).isprintable()


@settings(BOUNDED, max_examples=25)
@given(
    body=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()),
    code=st.sampled_from([200, 400, 401, 403, 407]),
)
def test_bodies_of_answers(body, code):
    with scripted([says(code, body)]) as (url, _), gdc.Server(url) as server:
        try:
            server.ask("GET", "/status", retry=False)
        except MGIError as error:
            assert str(error).isprintable()


@st.composite
def tables(draw):
    """The bytes of a table, with cells changed, cut or overwritten."""
    header, row = draw(st.sampled_from(TABLES))
    cells = row.split("\t")
    cells[draw(st.integers(0, len(cells) - 1))] = draw(TEXT)
    content = f"{header}\n{row}\n{chr(9).join(cells)}\n".encode(errors="surrogatepass")
    at = draw(st.integers(0, len(content)))
    change = draw(st.sampled_from(["none", "cut", "insert", "replace"]))
    if change == "cut":
        return content[:at]
    if change == "insert":
        return content[:at] + draw(st.binary(max_size=8)) + content[at:]
    return draw(st.binary(max_size=64)) if change == "replace" else content


@BOUNDED
@given(content=tables())
def test_tables_of_the_portal_and_the_user(folder, content):
    path = folder / "table.txt"
    path.write_bytes(content)
    for read in (
        read_manifest,
        read_exclusions,
        read_sample_sheet,
        lambda path: import_manifest(path, path, folder / "imported.parquet", ImportOptions()),
    ):
        try:
            read(path)
        except MGIError as error:
            assert str(error).isprintable()


@BOUNDED
@given(data=st.data())
def test_parquet_manifests(folder, data):
    path = pin_one(folder / "m.parquet")
    table = pq.read_table(path)
    name = data.draw(st.sampled_from(MANIFEST_SCHEMA.names))
    value = data.draw(JSON)
    stated = data.draw(st.binary(max_size=20) | JSON.map(lambda value: json.dumps(value).encode()))
    try:
        table = table.set_column(table.schema.get_field_index(name), name, pa.array([value]))
        write_table(table.replace_schema_metadata({QUERY_KEY: stated}), path)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        # No value of a table.
        return
    _read_manifest(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    _read_manifest(path)


def _read_manifest(path: Path) -> None:
    for read in (read_manifest, lambda path: refuse_other_choice(path, slides=["diagnostic"])):
        try:
            read(path)
        except MGIError as error:
            assert str(error).isprintable()


@BOUNDED
@given(query=st.dictionaries(st.sampled_from(["filters", "fields", "from", "size", "sort", "format"]), JSON))
def test_queries_of_the_local_gdc(query):
    try:
        api.list_files([*RECORDS, record(4, "x", file_name=file_id_of(4))], query)
    except api.BadRequestError as error:
        assert str(error)
