"""The layouts of a ready expression matrix, read into one form: names as text, values as numbers.

Delimited text (cBioPortal, Xena, Firehose, TCGAbiolinks, recount3, own tables), GCT 1.2 and 1.3, Parquet and AnnData.
Nothing is decided here about which side the cases are on.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mgi.barcodes import find_case
from mgi.console import log
from mgi.delimited import parse_delimited, read_content
from mgi.errors import ExpressionError
from mgi.files import require_file
from mgi.names import first_few, quote
from mgi.prepare.positions import normalise_column_name
from mgi.prepare.profiles import require_anndata
from mgi.tables import MAX_CELLS, cells_as_text, is_parquet, read_parquet_frame

if TYPE_CHECKING:
    import h5py

WHAT = "expression table"
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
GCT_VERSIONS = {b"#1.2": 2, b"#1.3": 4}
CASE_COLUMNS = [
    "case_id", "case", "patient_id", "patient", "bcr_patient_barcode", "submitter_id", "sample_id", "sample", "barcode",
]  # fmt: skip
# Columns beside the genes that tell tumour from normal tissue, as the GDC and Xena name them.
SAMPLE_COLUMNS = ("sample_type", "tissue_type", "specimen_type")
NO_NUMBER = re.compile(r"[^\d.,eE+\-\s]")
# A comma is certainly decimal in the first, certainly between thousands in the second, and could be either in 1,234.
DECIMAL_COMMA = r"^[+-]?(\d{1,3}(\.\d{3})+,\d+|0,\d+|\d+,(\d{1,2}|\d{4,})|\d{4,},\d+)([eE][+-]?\d+)?$"
THOUSANDS_COMMA = r"^[+-]?\d{1,3}((,\d{3})+\.\d+|(,\d{3}){2,})$"
POINT_NUMBER = r"^[+-]?\d+\.\d+([eE][+-]?\d+)?$"
COMMA_NUMBER = r"^[+-]?\d[\d.]*(,\d+)+(\.\d+)?([eE][+-]?\d+)?$"


@dataclass
class RawMatrix:
    """A matrix before it is known which side the cases are on.

    Attributes
    ----------
    path : Path
    names : list of str
        The names of all columns; the first may be empty.
    text : dict of int to list
        The cells as text, None where there is none: of the first column, of `CASE_COLUMNS`, and of every column that is
        not numbers.
    numeric : list of int
        The columns that hold numbers only.
    values : float32 ndarray, [rows, numeric]
        NaN where a cell is empty.
    first_line : int or None
        The line of the file that holds the first row; None where the file has no lines.
    not_numbers : dict of int to str
        Of a column of numbers spoilt by other text, the first such cell.
    places : DataFrame or None
        What the file says of the genes' positions.
    unit : str or None
        What the file says that its values are.
    """

    path: Path
    names: list[str]
    text: dict[int, list[str | None]]
    numeric: list[int]
    values: np.ndarray
    first_line: int | None = None
    not_numbers: dict[int, str] = field(default_factory=dict)
    places: pd.DataFrame | None = None
    unit: str | None = None

    def locate(self, row: int) -> str:
        """Return where a row is, for a message."""
        return f"row {row + 1}" if self.first_line is None else f"line {row + self.first_line}"


def read_raw_matrix(path: Path | str) -> RawMatrix:
    """Read a matrix of any of the layouts, recognised by its content.

    Raises
    ------
    MissingInputError
        If it is not there.
    ExpressionError
        If it is no such table, is cut short or exceeds a limit.
    MissingPackageError
        If it is AnnData and the package anndata is not installed.
    """
    path = require_file(path, WHAT)
    if is_parquet(path):
        return _from_frame(read_parquet_frame(path, WHAT, ExpressionError), path)
    content = read_content(path, WHAT, ExpressionError)
    if content.startswith(HDF5_MAGIC) or path.suffix.lower() == ".h5ad":
        return _read_h5ad(path)
    first_line = content[:64].split(b"\n", 1)[0].strip()
    if first_line in GCT_VERSIONS:
        return _read_gct(content, path, GCT_VERSIONS[first_line])
    table = parse_delimited(content, path, WHAT, ExpressionError, whole_lines=True)
    return _from_text(path, table.names, table.columns, table.first_line)


def _read_gct(content: bytes, path: Path, sizes: int) -> RawMatrix:
    """Read GCT: a version, a line of sizes, a header; in 1.3 then rows and columns of metadata, which are left out."""
    told = [*content.split(b"\n", 2), b""][1].split()
    if len(told) != sizes or not all(size.isdigit() and len(size) < 10 for size in told):
        raise ExpressionError(f"{WHAT} {path}: line 2 of a GCT file states its sizes, not {quote(told[:4])}")
    rows, cases, *metadata = map(int, told)
    row_metadata, header_rows = metadata or (1, 0)
    table = parse_delimited(content, path, WHAT, ExpressionError, "\t", skip_lines=2, whole_lines=True)
    found = (len(table.columns[0]) - header_rows, len(table.names) - 1 - row_metadata)
    if found != (rows, cases):
        raise ExpressionError(
            f"{WHAT} {path} states {rows} rows of {cases} samples but has {found[0]} of {found[1]}: it is cut short"
        )
    if header_rows:
        log.info("%s: %d rows of metadata are left out", path, header_rows)
    columns = [column.slice(header_rows) for column in table.columns]
    return _from_text(path, table.names, columns, table.first_line + header_rows, range(1 + row_metadata))


def _from_text(
    path: Path, names: list[str], columns: list[pa.ChunkedArray], first_line: int, metadata: Sequence[int] = (0,)
) -> RawMatrix:
    """Turn columns of text to numbers where they are; those of `metadata` are kept as text as well."""
    kept = [k for k, name in enumerate(names) if name or columns[k].null_count < len(columns[k])]
    names, columns = [names[k] for k in kept], [columns[k] for k in kept]
    if len(columns) > 1 and _is_second_header(columns):
        columns, first_line = _drop_second_header(path, names, columns), first_line + 1
    columns = _plain_decimals([pc.utf8_trim_whitespace(column) for column in columns], names, path)
    values = np.empty((len(columns[0]), len(columns)), np.float32)
    numeric: list[int] = []
    text: dict[int, list[str | None]] = {}
    not_numbers: dict[int, str] = {}
    for index, column in enumerate(columns):
        numbers = _parse_column(column)
        if numbers is not None:
            with np.errstate(over="ignore"):
                values[:, len(numeric)] = numbers
            numeric.append(index)
        elif index and (bad := _first_bad(column)) is not None:
            not_numbers[index] = bad
        if numbers is None or index in metadata or normalise_column_name(names[index]) in CASE_COLUMNS:
            text[index] = [cell or None for cell in column.to_pylist()]
    return RawMatrix(path, names, text, numeric, values[:, : len(numeric)], first_line, not_numbers)


def _is_second_header(columns: list[pa.ChunkedArray]) -> bool:
    """Return whether the first row is a second header, as Firehose writes: no number where the next row has them."""
    if len(columns[0]) < 2:
        return False
    first, second = ([column[row].as_py() for column in columns[1:]] for row in (0, 1))
    numbers = [cell is not None and not NO_NUMBER.search(cell) for cell in second]
    is_text = [bool(cell) and bool(NO_NUMBER.search(cell)) for cell in first]
    # Columns of text have text in both.
    return sum(numbers) > 0 and all(text for text, number in zip(is_text, numbers, strict=True) if number)


def _drop_second_header(path: Path, names: list[str], columns: list[pa.ChunkedArray]) -> list[pa.ChunkedArray]:
    said = Counter(str(column[0]) for column in columns[1:])
    if len(said) > 1 and len(set(names)) < len(names):
        raise ExpressionError(
            f"{WHAT} {path} holds several values of each sample, {first_few(said)}: give a table of one of them"
        )
    log.info("%s: its second line is left out, a header too: %s", path, first_few(said))
    return [column.slice(1) for column in columns]


def _plain_decimals(columns: list[pa.ChunkedArray], names: list[str], path: Path) -> list[pa.ChunkedArray]:
    """Rewrite numbers with decimal commas, or commas between thousands, where the table leaves no doubt which."""
    commas = [k for k, column in enumerate(columns) if k and _any_match(column, COMMA_NUMBER)]
    if not commas:
        return columns
    decimal, thousands = (
        any(_any_match(columns[k], pattern) for k in commas) for pattern in (DECIMAL_COMMA, THOUSANDS_COMMA)
    )
    points = any(_any_match(column, POINT_NUMBER) for column in columns[1:])
    thousands |= points and not decimal
    if decimal == thousands or (decimal and points):
        example = next(cell for cell in columns[commas[0]].to_pylist() if cell and re.match(COMMA_NUMBER, cell))
        raise ExpressionError(
            f"{WHAT} {path}: the comma of {quote(example)} in the column {quote(names[commas[0]])} could be a decimal "
            "comma or a separator of thousands; write numbers with a decimal point and no separators"
        )
    log.info("%s: commas in numbers are read as %s", path, "decimal commas" if decimal else "separators of thousands")
    for k in commas:
        plain = pc.replace_substring(columns[k], "." if decimal else ",", "")
        columns[k] = pc.replace_substring(plain, ",", ".")
    return columns


def _any_match(column: pa.ChunkedArray, pattern: str) -> bool:
    return bool(pc.any(pc.match_substring_regex(column, pattern)).as_py())


def _parse_column(column: pa.ChunkedArray) -> np.ndarray | None:
    """Return a column as float64, NaN where it is empty, or None if a cell is no number."""
    try:
        return pc.cast(pc.if_else(pc.equal(column, ""), None, column), pa.float64()).to_numpy()
    except pa.ArrowInvalid:
        return None


def _first_bad(column: pa.ChunkedArray) -> str | None:
    """Return the first cell that is no number of a column in which others are."""
    number = pc.match_substring_regex(column, r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")
    if not pc.any(number).as_py():
        return None
    bad = column.filter(pc.invert(number))
    return next((cell for cell in bad.to_pylist() if cell), None)


def _from_frame(frame: pd.DataFrame, path: Path) -> RawMatrix:
    """Turn the frame of a Parquet table into a raw matrix; whole columns of numbers stored as text are read."""
    names = list(frame.columns)
    values = np.empty((len(frame), len(names)), np.float32)
    numeric: list[int] = []
    text: dict[int, list[str | None]] = {}
    not_numbers: dict[int, str] = {}
    for index in range(len(names)):
        cells = frame.iloc[:, index]
        kind = cells.dtype
        is_id = index == 0 or normalise_column_name(names[index]) in CASE_COLUMNS
        if pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind):
            with np.errstate(over="ignore"):
                values[:, len(numeric)] = cells.to_numpy(np.float64, na_value=np.nan)
            numeric.append(index)
            if is_id:
                if pd.api.types.is_float_dtype(kind) and names[index] in ("", "case_id"):
                    raise ExpressionError(f"{WHAT} {path}: case ids are stored as decimal numbers; store them as text")
                text[index] = cells_as_text(cells)
            continue
        text[index] = cells_as_text(cells)
        column = pa.chunked_array([pa.array(text[index], pa.string())])
        numbers = _parse_column(column) if column.null_count < len(column) else None
        if numbers is not None:
            values[:, len(numeric)] = numbers
            numeric.append(index)
        elif index and (bad := _first_bad(column)) is not None:
            not_numbers[index] = bad
    return RawMatrix(path, names, text, numeric, values[:, : len(numeric)], None, not_numbers)


def _read_h5ad(path: Path) -> RawMatrix:
    """Read AnnData: X, the names of both axes, cases and kinds of tissue of `obs`, and positions of `var`."""
    require_anndata()
    import h5py
    from anndata.io import read_elem

    try:
        with h5py.File(path) as file:
            outside = list(_find_outside_data(file))
            if outside:
                raise ExpressionError(f"{WHAT} {path} reads from other files: {first_few(outside)}")
            data = file["X"]
            shape = tuple(data.shape if isinstance(data, h5py.Dataset) else data.attrs["shape"])
            if len(shape) != 2 or int(shape[0]) * int(shape[1]) > MAX_CELLS:
                raise ExpressionError(f"{WHAT} {path}: X has the shape {shape}; the limit is {MAX_CELLS} values")
            obs, var, values = read_elem(file["obs"]), read_elem(file["var"]), read_elem(data)
            unit = file["uns/unit"][()] if "uns/unit" in file else None
    # HDF5 and anndata raise almost anything for a damaged file.
    except Exception as error:
        if isinstance(error, ExpressionError):
            raise
        raise ExpressionError(f"{WHAT} {path} is no readable AnnData (h5ad): {error}") from error
    values = np.asarray(values.toarray() if hasattr(values, "toarray") else values, np.float32)
    if values.shape != (len(obs), len(var)):
        raise ExpressionError(f"{WHAT} {path}: X is {values.shape}, obs and var are {len(obs)} and {len(var)}")
    text = {0: cells_as_text(obs.index.to_series())}
    names = ["", *(str(name).strip() for name in var.index)]
    numeric = list(range(1, len(names)))
    for name in obs:
        kind = normalise_column_name(name)
        cells = cells_as_text(obs[name]) if kind in (*CASE_COLUMNS, *SAMPLE_COLUMNS) else []
        # The index names the cases, unless a column has their barcodes.
        if kind in ("case_id", *SAMPLE_COLUMNS) or any(cell and find_case(cell) for cell in cells):
            text[len(names)] = cells
            names.append(str(name))
    places = var.rename_axis("gene").reset_index().astype(object) if {"chromosome", "start"} <= set(var) else None
    return RawMatrix(path, names, text, numeric, values, places=places, unit=_unit_text(unit))


def _find_outside_data(group: "h5py.Group") -> Iterator[str]:
    """Yield the names of parts that lie in other files, as HDF5 links, external storage and virtual datasets can."""
    import h5py

    for name in group:
        if isinstance(group.get(name, getlink=True), h5py.ExternalLink):
            yield name
            continue
        part = group.get(name)
        if isinstance(part, h5py.Group):
            yield from _find_outside_data(part)
        elif isinstance(part, h5py.Dataset) and (part.external or part.is_virtual):
            yield name


def _unit_text(unit: object) -> str | None:
    return unit.decode(errors="replace") if isinstance(unit, bytes) else unit if isinstance(unit, str) else None
