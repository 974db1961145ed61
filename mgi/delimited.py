"""The one reader of delimited text: encoding, delimiter and header found or checked, every cell as text.

Whatever a user or a server gives as CSV or TSV comes in here. Nothing is turned into a number, so that `001` stays
`001`; limits are checked before the table is parsed.
"""

import codecs
import csv
import gzip
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv

from mgi.errors import MGIError, MissingInputError
from mgi.files import require_file
from mgi.names import first_few, quote

MAX_TABLE_BYTES = 8 << 30
# Text of numbers shrinks to a tenth at best; what expands further is no table, unless it is small.
MAX_EXPANSION = 100
SMALL_TABLE_BYTES = 64 << 20
MAX_COLUMNS = 200_000
DELIMITERS = {"\t": "a tab", ",": "a comma", ";": "a semicolon", "|": "a bar", " ": "a space"}
MISSING = ["", "NA", "N/A", "#N/A", "NaN", "nan", "-nan", "NULL", "null", "None"]

_SAMPLE_BYTES = 16 << 20
_SAMPLE_LINES = 20
_STATED = re.compile(rb'"?sep=([\t,;| ])"?\r?\n', re.IGNORECASE)
_BLOCK_BYTES = (1 << 20, 1 << 30)
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_FOREIGN = {
    b"PAR1": "a Parquet table",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"PK\x03\x04": "a zip archive or an Excel workbook; save it as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; save it as CSV",
    b"%PDF": "a PDF",
    b"BZh": "compressed with bzip2; unpack it",
    b"\xfd7zXZ": "compressed with xz; unpack it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it",
    b"<": "a web page or XML",
    b"{": "JSON",
}
# What the readers of pyarrow and pandas raise for bytes that are no table.
PARSER_ERRORS = (
    pa.ArrowException, OSError, ValueError, KeyError, TypeError, MemoryError, OverflowError, RecursionError,
)  # fmt: skip


@dataclass(frozen=True)
class TextTable:
    """A delimited table, every cell text.

    Attributes
    ----------
    path : Path
    names : list of str
        The column names, trimmed; the first may be empty, and names may occur more than once.
    columns : list of pyarrow.ChunkedArray
        The cells as strings, null where empty or marked as missing.
    first_line : int
        The line of the file, counted from 1, that holds the first row.
    delimiter : str
    """

    path: Path
    names: list[str]
    columns: list[pa.ChunkedArray]
    first_line: int
    delimiter: str


def read_delimited(
    path: Path | str,
    what: str,
    columns: Sequence[str] = (),
    error: type[MGIError] = MissingInputError,
    delimiter: str | None = None,
    whole_lines: bool = False,
) -> pd.DataFrame:
    """Read a delimited table, plain or gzipped, with every cell as trimmed text.

    Parameters
    ----------
    path
        The file.
    what
        What it is, for messages: "sample sheet".
    columns
        Columns that it must have.
    error
        What to raise.
    delimiter
        The delimiter; None takes that of a first line `sep=;`, as Excel writes, or finds it among tab, comma,
        semicolon, bar and space.
    whole_lines
        Refuse a last line without a line break, which may be cut short.

    Returns
    -------
    frame of str
        None where a cell is empty or marked as missing (NA, NaN, null, ...).

    Raises
    ------
    MissingInputError
        If it is not there.
    MGIError
        `error`, if it is no such table, exceeds a limit, is cut short, lacks a column or has a duplicate.
    """
    path = require_file(path, what)
    table = parse_delimited(read_content(path, what, error), path, what, error, delimiter, whole_lines=whole_lines)
    check_columns(table.names, columns, f"{what} {path}", error)
    cells = [pc.utf8_trim_whitespace(column).to_pylist() for column in table.columns]
    return pd.DataFrame(dict(zip(table.names, cells, strict=True)), dtype=object)


def check_columns(
    names: Iterable[str], needed: Iterable[str], where: str, error: type[MGIError] = MissingInputError
) -> None:
    """Raise `error` if a column is missing or duplicate."""
    names = list(names)
    missing = sorted(set(needed) - set(names))
    if missing:
        raise error(f"{where} lacks the column {', '.join(missing)}; it has {_listed(names)}")
    check_unique(names, "column", where, error)


def check_unique(names: Iterable[str], what: str, where: object, error: type[MGIError]) -> None:
    """Raise `error` if a name occurs more than once, saying how many do and the first three."""
    seen: set[str] = set()
    repeated: dict[str, None] = {}
    for name in names:
        if name in seen:
            repeated[name] = None
        seen.add(name)
    if repeated:
        raise error(f"{where}: duplicate {what} {first_few(repeated)}; keep one of each")


def read_content(path: Path, what: str, error: type[MGIError], max_bytes: int = MAX_TABLE_BYTES) -> bytes:
    """Read a file, gunzipped where it is gzipped, no further than the limits on size and expansion.

    Raises
    ------
    MGIError
        `error`, if it cannot be read, is damaged, or exceeds a limit.
    """
    try:
        if not path.is_file():
            raise error(f"{what} {path} is not a file")
        size = path.stat().st_size
        if size > max_bytes:
            raise error(f"{what} {path} has {size} bytes; the limit is {max_bytes}")
        with open(path, "rb") as handle:
            if handle.read(2) != b"\x1f\x8b":
                handle.seek(0)
                return handle.read(max_bytes)
            handle.seek(0)
            limit = unpacked_limit(size, max_bytes)
            with gzip.GzipFile(fileobj=handle) as stream:
                content = stream.read(limit + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as cause:
        raise error(f"{what} {path} is cut short or damaged: {cause}; get it again") from cause
    except (OSError, MemoryError) as cause:
        raise error(f"{what} {path} cannot be read: {getattr(cause, 'strerror', None) or 'out of memory'}") from cause
    if len(content) > limit:
        raise error(f"{what} {path} unpacks to more than {limit} bytes, so it is no table")
    return content


def unpacked_limit(size: int, max_bytes: int = MAX_TABLE_BYTES) -> int:
    """Return how many bytes a gzipped table of `size` bytes may unpack to."""
    return min(max_bytes, max(SMALL_TABLE_BYTES, MAX_EXPANSION * size))


def parse_delimited(
    content: bytes,
    path: Path,
    what: str,
    error: type[MGIError],
    delimiter: str | None = None,
    skip_lines: int = 0,
    whole_lines: bool = False,
) -> TextTable:
    """Parse the bytes of a delimited table; `skip_lines` come before its header. The rest as `read_delimited`."""
    where = f"{what} {path}"
    content = _as_utf8(content, where, error)
    if whole_lines and content.strip() and not content.endswith((b"\n", b"\r")):
        raise error(
            f"{where}: the last line does not end in a line break, so it may be cut short; get the file again, or end "
            "the line if it is complete"
        )
    if content.count(b'"') % 2:
        raise error(f"{where} holds a quotation mark that is never closed; it may be cut short")
    # Excel states its delimiter in a line of its own.
    if not skip_lines and (told := _STATED.match(content)):
        delimiter, skip_lines = delimiter or told[1].decode(), 1
    lines, start = _sample(content, skip_lines, where, error)
    delimiter = delimiter or _find_delimiter(lines[start:], path)
    lines, skipped = _without_comments(lines, start, delimiter)
    if max(line.count(delimiter) for line in lines[:2]) >= MAX_COLUMNS:
        raise error(f"{where} has more than {MAX_COLUMNS} columns")
    try:
        header, *rows = csv.reader(lines[:2], delimiter=delimiter)
    except (csv.Error, ValueError) as cause:
        raise error(f"{where}: its header cannot be read: {cause}") from cause
    names = [name.strip() for name in header]
    if rows and len(rows[0]) == len(names) + 1:
        # R writes row names without a header of their own.
        names = ["", *names]
    first_line = skip_lines + skipped + 2
    columns = _parse_cells(content, len(names), delimiter, first_line, where, error)
    _refuse_second_header(names, columns, first_line, where, error)
    return TextTable(path, names, columns, first_line, delimiter)


def _as_utf8(content: bytes, where: str, error: type[MGIError]) -> bytes:
    """Return text as UTF-8 without a byte-order mark; without a mark it must be UTF-8."""
    mark = next((mark for mark in _MARKS if content.startswith(mark)), b"")
    foreign = next((name for magic, name in _FOREIGN.items() if content[:512].lstrip().startswith(magic)), None)
    if foreign is not None:
        raise error(f"{where} is not delimited text but {foreign}")
    encoding = _MARKS.get(mark, "utf-8")
    try:
        text = content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as cause:
        line = content.count(b"\n", 0, cause.start) + 1
        raise error(
            f"{where} is not {encoding.upper()} text: byte 0x{content[len(mark) + cause.start]:02x} in line {line}; "
            "save it as UTF-8"
        ) from cause
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise error(f"{where} holds a NUL character in line {line}: it is binary, or UTF-16 without a byte-order mark")
    return content[len(mark) :] if encoding == "utf-8" else text.encode()


def _sample(content: bytes, skip_lines: int, where: str, error: type[MGIError]) -> tuple[list[str], int]:
    """Return the first lines, and how many of them are blank or begin with `#` before the header."""
    window = content[:_SAMPLE_BYTES]
    text = window.decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    lines = text[skip_lines:]
    start = next((k for k, line in enumerate(lines) if line.strip() and not line.startswith("#")), None)
    if start is None:
        raise error(f"{where} holds nothing but comments" if any(map(str.strip, lines)) else f"{where} is empty")
    sample = lines[: start + _SAMPLE_LINES]
    # The window may end within a line.
    return (sample[:-1] if len(sample) == len(lines) > start + 1 else sample), start


def _find_delimiter(lines: list[str], path: Path) -> str:
    """Find the delimiter that cuts every line into the same number of fields, or else the most fields of the header."""
    body = [line for line in lines if line.strip()]
    widths = {delimiter: [_width(line, delimiter) for line in body] for delimiter in DELIMITERS}
    # The header may lack the name of the first column.
    regular = [d for d, n in widths.items() if min(n) > 1 and len(set(n[1:])) <= 1 and n[-1] - n[0] in (0, 1)]
    suffix = {".csv": ",", ".tsv": "\t"}.get(next((s for s in reversed(path.suffixes) if s != ".gz"), "").lower())
    if regular:
        if len(regular) > 1 and " " in regular:
            regular.remove(" ")
        return suffix if suffix in regular else max(regular, key=lambda delimiter: widths[delimiter][0])
    best = max(DELIMITERS, key=lambda delimiter: (delimiter != " ") * widths[delimiter][0])
    return best if widths[best][0] > 1 else suffix or "\t"


def _width(line: str, delimiter: str) -> int:
    if '"' not in line:
        return line.count(delimiter) + 1
    try:
        return len(next(csv.reader([line], delimiter=delimiter)))
    except (csv.Error, ValueError, StopIteration):
        return 0


def _without_comments(lines: list[str], start: int, delimiter: str) -> tuple[list[str], int]:
    """Drop what comes before the header; a single `#` line as wide as the next is the header itself."""
    above = [line for line in lines[:start] if line.strip()]
    if (
        start
        and lines[start - 1 : start] == above
        and _width(above[0], delimiter) == _width(lines[start], delimiter) > 1
    ):
        return [above[0].removeprefix("#"), *lines[start:]], start - 1
    return lines[start:], start


def _parse_cells(
    content: bytes, width: int, delimiter: str, first_line: int, where: str, error: type[MGIError]
) -> list[pa.ChunkedArray]:
    """Parse what follows the header into columns of strings, each line of exactly `width` fields."""
    odd: list[pcsv.InvalidRow] = []

    def note(row: pcsv.InvalidRow) -> str:
        odd.append(row)
        return "error"

    names = [str(index) for index in range(width)]
    block = min(max(len(content), _BLOCK_BYTES[0]), _BLOCK_BYTES[1])
    try:
        table = pcsv.read_csv(
            pa.py_buffer(content),
            # One thread, so that a bad line has its number.
            pcsv.ReadOptions(column_names=names, skip_rows=first_line - 1, block_size=block, use_threads=False),
            pcsv.ParseOptions(delimiter=delimiter, newlines_in_values=b'"' in content, invalid_row_handler=note),
            pcsv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), null_values=MISSING, strings_can_be_null=True
            ),
        )
    except PARSER_ERRORS as cause:
        if odd:
            row = odd[0]
            line = f"line {row.number}" if row.number else f"the line {quote(row.text, 40)}"
            raise error(
                f"{where}: {line} has {row.actual_columns} fields separated by {DELIMITERS.get(delimiter, delimiter)}, "
                f"the header {row.expected_columns}; it may be cut short"
            ) from cause
        if "Empty CSV file" in str(cause):
            raise error(f"{where} has a header but no rows") from cause
        raise error(f"{where} is not a delimited table: {quote(' '.join(str(cause).split()), 200)}") from cause
    return table.columns


def _refuse_second_header(
    names: list[str], columns: list[pa.ChunkedArray], first_line: int, where: str, error: type[MGIError]
) -> None:
    """Refuse a table in which the header is repeated, as where files were concatenated."""
    if not names[0]:
        return
    for row in pc.indices_nonzero(pc.fill_null(pc.equal(pc.utf8_trim_whitespace(columns[0]), names[0]), False)):
        cells = [str(column[row.as_py()].as_py() or "").strip() for column in columns]
        if cells == names:
            raise error(
                f"{where}: line {first_line + row.as_py()} repeats the header: several tables were joined into one file"
            )


def _listed(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
