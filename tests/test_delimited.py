"""The reader of delimited text: encodings, delimiters, limits; every cell stays text."""

import contextlib
import gzip
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mgi import delimited
from mgi.delimited import check_unique, read_delimited
from mgi.errors import MGIError, MissingInputError

TABLE = "case_id,grade (WHO)\n001,2\n1, 3 \nGröße,NA\n"
CELLS = {"case_id": ["001", "1", "Größe"], "grade (WHO)": ["2", "3", None]}


@pytest.fixture
def read(tmp_path):
    """A function that writes bytes and reads them as a table of columns."""

    def read(content, name="table.csv", **options):
        (tmp_path / name).write_bytes(content)
        return read_delimited(tmp_path / name, "clinical table", **options).to_dict("list")

    return read


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_cells_are_text_in_any_marked_encoding(read, encoding):
    assert read(TABLE.encode(encoding)) == CELLS


@pytest.mark.parametrize("delimiter", ["\t", ";", "|", ","])
@pytest.mark.parametrize("ending", ["\r\n", "\r", "\n"])
def test_finds_delimiter_whatever_the_name(read, delimiter, ending):
    text = TABLE.replace(",", delimiter).replace("\n", ending)
    assert read(text.encode(), "table.csv") == read(text.encode(), "table.txt") == CELLS


@pytest.mark.parametrize(
    ("content", "cells"),
    [
        (b'"a" "b"\n"r1" 1 2\n"r2" 3 4\n', {"": ["r1", "r2"], "a": ["1", "3"], "b": ["2", "4"]}),
        (b"a;b\n1,5;2,5\n3;4\n", {"a": ["1,5", "3"], "b": ["2,5", "4"]}),
        (b"# made by hand\n\na\tb, c\n1\t2, 3\n", {"a": ["1"], "b, c": ["2, 3"]}),
        (b"#id\tgene\nENSG1\tTP53\n", {"id": ["ENSG1"], "gene": ["TP53"]}),
        (b"#Patient\tSex\n#STRING\tSTRING\nPATIENT_ID\tSEX\n001\tF\n", {"PATIENT_ID": ["001"], "SEX": ["F"]}),
        (b'a,b\n"x, ""y""",2\n', {"a": ['x, "y"'], "b": ["2"]}),
        (b"case_id\n001\n\n", {"case_id": ["001"]}),
        (gzip.compress(b"a,b\n1,2\n", mtime=0), {"a": ["1"], "b": ["2"]}),
    ],
)
def test_reads_tables_as_tools_write_them(read, content, cells):
    assert read(content, "table.txt") == cells


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"#a\n#b\n", "nothing but comments"),
        (b"a,b\n\xff,2\n", "not UTF-8 text: byte 0xff in line 2"),
        (b"a\0,\0b\0", "NUL character in line 1"),
        (b"a,b\n1,2\n3,4\n5\n", "line 4 has 1 fields separated by a comma, the header 2; it may be cut short"),
        (b"a,b\n1,2\na,b\n3,4\n", "line 3 repeats the header"),
        (b'a,b\n1,"2\n', "quotation mark that is never closed"),
        (b"a,a,b,b,c\n1,2,3,4,5\n", "duplicate column 'a', 'b'; keep one of each"),
        (b"PK\x03\x04", "Excel workbook; save it as CSV"),
        (b"<html>\n", "not delimited text but a web page"),
        (gzip.compress(b"a,b\n1,2\n", mtime=0)[:-9], "cut short or damaged"),
    ],
)
def test_rejects_what_is_no_table(read, content, message):
    with pytest.raises(MissingInputError, match=message):
        read(content)


def test_missing_columns_are_listed_beside_those_there(read):
    with pytest.raises(MGIError, match=r"clinical table .*table\.csv lacks the column age, sex; it has case_id, grade"):
        read(TABLE.encode(), columns=["sex", "case_id", "age"])


def test_rejects_unfinished_last_line_on_request(read):
    assert read(b"a,b\n1,2") == {"a": ["1"], "b": ["2"]}
    with pytest.raises(MGIError, match="last line does not end in a line break"):
        read(b"a,b\n1,2", whole_lines=True)


def test_limits_hold_before_anything_is_parsed(read, monkeypatch):
    with pytest.raises(MGIError, match="more than 200000 columns"):
        read(b",".join(b"%d" % k for k in range(200_002)) + b"\n")
    monkeypatch.setattr(delimited, "SMALL_TABLE_BYTES", 1000)
    with pytest.raises(MGIError, match="unpacks to more than"):
        read(gzip.compress(b"a,b\n" + b"0,0\n" * 1_000_000))
    monkeypatch.setattr(delimited, "MAX_TABLE_BYTES", 10)
    with pytest.raises(MGIError, match="is not a file"):
        read_delimited("/dev/null", "table")


def test_duplicates_are_counted_and_the_first_three_named():
    names = ["a", "b", "a", "c", "d", "e", "b", "c", "d", "e"]
    with pytest.raises(MGIError, match=r"^here: duplicate case 'a', 'b', 'c' and 2 more; keep one of each$"):
        check_unique(names, "case", "here", MGIError)
    check_unique(["a", "A", "001", "1"], "case", "here", MGIError)


FRAGMENTS = st.sampled_from(
    [b"a", b"001", b",", b"\t", b";", b'"', b"\n", b"\r\n", b"#", b"\0", b"\xff\xfe", b"\x1f\x8b", b" "]
)


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.one_of(st.binary(max_size=60), st.lists(FRAGMENTS, max_size=40).map(b"".join)), st.booleans())
def test_only_own_errors_come_out(tmp_path, content, packed):
    (tmp_path / "table").write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\3" + zlib.compress(content)[2:] if packed else content)
    with contextlib.suppress(MGIError):
        read_delimited(tmp_path / "table", "table")
