"""Every table between the stages: its schema, its reader and its writer."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mgi.delimited import PARSER_ERRORS, check_columns, read_delimited
from mgi.errors import MGIError, MissingInputError
from mgi.files import atomic_write, require_file
from mgi.names import escape, quote

MANIFEST_SCHEMA = pa.schema(
    [
        ("file_id", pa.string()),
        ("file_name", pa.string()),
        ("md5", pa.string()),
        ("size", pa.int64()),
        ("data_type", pa.string()),
        ("case_id", pa.string()),
        ("sample_type", pa.string()),
        ("aliquot", pa.string()),
        ("project", pa.string()),
    ]
)
# Where an image lies: of a tile x and y in pixels of level 0, of a slice z; size is its edge in the same pixels.
_PLACE = [
    ("case_id", pa.string()),
    ("source_id", pa.string()),
    ("x", pa.int32()),
    ("y", pa.int32()),
    ("z", pa.int32()),
    ("size", pa.float64()),
    ("mpp", pa.float32()),
]
_PLACE_SCHEMA = pa.schema(_PLACE)
IMAGES_SCHEMA = pa.schema([*_PLACE, ("tissue_fraction", pa.float32()), ("image", pa.binary()), ("mask", pa.binary())])
# The features of an image are a fixed-size list; `feature_table` states their number.
FEATURES_SCHEMA = pa.schema([*_PLACE, pa.field("features", pa.list_(pa.float32()), nullable=False)])
# A reason reads "kind: detail", so that the cohort flow can count by kind.
SOURCES_SCHEMA = pa.schema(
    [
        ("source_id", pa.string()),
        ("case_id", pa.string()),
        ("project", pa.string()),
        ("site", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("n_images", pa.int32()),
        ("labelled", pa.bool_()),
        ("has_tumour", pa.bool_()),
        # Pixels of level 0.
        ("tumour_px", pa.int64()),
        # JSON objects: {class: objects} of the annotation, {reason: tiles or slices} of what was left out.
        ("classes", pa.string()),
        ("dropped", pa.string()),
        # Pixels of the tiles: those of level 0 times the square of tile_px / edge.
        ("untiled_tumour_px", pa.int64()),
        ("mpp", pa.float32()),
        ("mpp_from", pa.string()),
        # Of MRI: the distance of slices.
        ("slice_mm", pa.float32()),
        ("table", pa.string()),
    ]
)
SPLITS_SCHEMA = pa.schema(
    [
        ("case_id", pa.string()),
        ("fold", pa.int32()),
        ("role", pa.string()),
        ("project", pa.string()),
        ("site", pa.string()),
        # The class that folds share out alike: that of `split.stratify_column`, and of the project where there are
        # several; "all" without them.
        ("stratum", pa.string()),
        ("paired", pa.bool_()),
        ("labelled", pa.bool_()),
    ]
)
GENES_SCHEMA = pa.schema(
    [
        ("gene_id", pa.string()),
        ("gene_name", pa.string()),
        ("gene_type", pa.string()),
        ("chromosome", pa.string()),
        ("start", pa.int64()),
    ]
)
# The values of a case are a fixed-size list, one per row of genes.parquet; `expression_schema` states their number.
EXPRESSION_SCHEMA = pa.schema(
    [
        ("case_id", pa.string()),
        ("aliquot", pa.string()),
        pa.field("values", pa.list_(pa.field("item", pa.float32(), nullable=False)), nullable=False),
    ]
)
PREDICTIONS_SCHEMA = pa.schema([*_PLACE, ("fold", pa.int32()), ("prediction", pa.binary()), ("reference", pa.binary())])
PARQUET_MAGIC = b"PAR1"
# More values than any cohort has; a Parquet file of a few bytes can claim any number of rows.
MAX_CELLS = 1 << 29
# A dictionary of one long text stands for any number of rows in a few bytes.
SMALL_TEXT_BYTES, MAX_TEXT_EXPANSION = 256 << 20, 1000
DICTIONARY_ENCODINGS = {"RLE_DICTIONARY", "PLAIN_DICTIONARY"}
ROWS_PER_GROUP = 64
TCGA_NAME = re.compile(r"TCGA-\w{2}-\w{4}")
SUFFIXES = re.compile(r"(\.ome)?\.[^.]*$", re.IGNORECASE)
UUID_TAIL = re.compile(r"\.[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", re.IGNORECASE)
# A spreadsheet takes a cell that begins so for a formula.
FORMULA = re.compile(r"^(?:[=+@＝＋＠\t\r]|[-－](?![\d.]*$))")  # noqa: RUF001


def expression_schema(genes: int, metadata: dict[str, str] | None = None) -> pa.Schema:
    """Return `EXPRESSION_SCHEMA` for profiles of so many genes."""
    values = EXPRESSION_SCHEMA.field("values")
    sized = values.with_type(pa.list_(values.type.value_field, genes))
    return EXPRESSION_SCHEMA.set(EXPRESSION_SCHEMA.get_field_index("values"), sized).with_metadata(metadata)


def write_table(table: pa.Table | pd.DataFrame, path: Path | str, row_group_size: int | None = None) -> None:
    """Write a table to Parquet (zstd), aside and renamed; equal tables give equal bytes."""
    if isinstance(table, pd.DataFrame):
        table = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(None)
    with atomic_write(path) as aside:
        pq.write_table(table, aside, compression="zstd", row_group_size=row_group_size)


def write_tsv(table: pd.DataFrame, path: Path | str, delimiter: str = "\t", float_format: str | None = None) -> None:
    """Write a table to TSV, aside and renamed; text that a spreadsheet would run as a formula gets an apostrophe."""
    plain = table.map(lambda cell: _make_plain(cell) if isinstance(cell, str) else cell)
    with atomic_write(path) as aside:
        plain.to_csv(aside, sep=delimiter, index=False, lineterminator="\n", float_format=float_format)


def _make_plain(cell: str) -> str:
    """Return text on one line that a spreadsheet shows as it is."""
    line = escape(re.sub(r"[\r\n]+", " ", cell))
    return f"'{line}" if FORMULA.match(cell) else line


def write_csv(table: pd.DataFrame, path: Path | str, float_format: str | None = None) -> None:
    """Write a table to CSV as `write_tsv` does."""
    write_tsv(table, path, ",", float_format)


def open_table(
    path: Path | str, what: str, columns: list[str] | None = None, error: type[MGIError] = MissingInputError
) -> pq.ParquetFile:
    """Open a Parquet table that must hold `columns`, to be read in parts; raises as `read_table` does."""
    path = require_file(path, what)
    try:
        file = pq.ParquetFile(path)
        present = file.schema_arrow.names
        cells = file.metadata.num_rows * len(columns or present)
    except PARSER_ERRORS as cause:
        raise error(f"{what} {path} is not a Parquet file: {quote(' '.join(str(cause).split()), 200)}") from cause
    if cells > MAX_CELLS:
        raise error(f"{what} {path} claims {cells} values; the limit is {MAX_CELLS}")
    check_columns(present, columns or (), f"{what} {path}", error)
    return file


def read_table(
    path: Path | str,
    what: str,
    columns: list[str] | None = None,
    error: type[MGIError] = MissingInputError,
    filters: list[tuple] | None = None,
) -> pa.Table:
    """Read `columns` of a Parquet table, which it must hold, and of its rows those that pass `filters`.

    Raises
    ------
    MissingInputError
        If the file is not there.
    MGIError
        `error`, if it is no Parquet file, is damaged, claims too many values, or lacks a column or has a duplicate.
    """
    with open_table(path, what, columns, error) as file:
        try:
            _check_text(
                file,
                columns,
                f"{what} {path}",
                max(SMALL_TEXT_BYTES, MAX_TEXT_EXPANSION * Path(path).stat().st_size),
                error,
            )
            table = pq.read_table(path, columns=columns, filters=filters)
            table.validate(full=True)
            return table
        except PARSER_ERRORS as cause:
            raise error(f"{what} {path} cannot be read: {quote(' '.join(str(cause).split()), 200)}") from cause


def _check_text(file: pq.ParquetFile, columns: list[str] | None, where: str, limit: int, error: type[MGIError]) -> None:
    """Raise `error` where the text and bytes of dictionary-encoded columns come to more than `limit` bytes."""
    groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    encoded = {
        name
        for chunk in chunks
        # The column itself, and the column that holds a nested one.
        for name in (chunk.path_in_schema, chunk.path_in_schema.split(".")[0])
        if chunk.physical_type == "BYTE_ARRAY" and not DICTIONARY_ENCODINGS.isdisjoint(chunk.encodings)
    }
    names = [name for name in columns or file.schema_arrow.names if name in encoded]
    total = 0
    for batch in file.iter_batches(1024, columns=names) if names else ():
        total += batch.nbytes
        if total > limit:
            raise error(f"{where} holds more than {limit / 2**20:.0f} MB of text, far more than its size suggests")


def read_any_table(
    path: Path | str, what: str, columns: Sequence[str] = (), error: type[MGIError] = MissingInputError
) -> pd.DataFrame:
    """Read a table that a user gives, Parquet or delimited text, with every cell as text and null cells as None.

    Whole numbers of a Parquet table become their digits, true and false `True` and `False`. The rest as
    `read_delimited`; a column of `columns` that holds lists or bytes, or of case ids that holds decimal numbers, is
    refused.
    """
    path = require_file(path, what)
    if not is_parquet(path):
        return read_delimited(path, what, columns, error)
    frame = read_parquet_frame(path, what, error)
    check_columns(frame.columns, columns, f"{what} {path}", error)
    for name in columns:
        kinds = {type(cell).__name__ for cell in frame[name] if isinstance(cell, list | dict | bytes | np.ndarray)}
        if kinds or (name == "case_id" and pd.api.types.is_float_dtype(frame[name])):
            found = f"values of type {min(kinds)}" if kinds else "decimal numbers"
            raise error(f"{what} {path} has {found} in its column {name}: write it as text")
    return pd.DataFrame({name: cells_as_text(frame[name]) for name in frame.columns}, dtype=object)


def read_csv(
    path: Path | str, what: str, columns: Sequence[str] = (), error: type[MGIError] = MissingInputError
) -> pd.DataFrame:
    """Read a CSV table of results: columns of numbers and of True and False as such, others as text, NaN if empty.

    Raises as `read_delimited` does.
    """
    frame = read_delimited(path, what, columns, error, ",")
    for name in frame.columns:
        cells = frame[name]
        numbers = pd.to_numeric(cells, errors="coerce")
        if len(cells) and cells.isin(["True", "False"]).all():
            frame[name] = cells == "True"
        else:
            frame[name] = numbers if numbers.notna().eq(cells.notna()).all() else cells.fillna(np.nan)
    return frame


def is_parquet(path: Path | str) -> bool:
    """Return whether a file begins as Parquet does, or is named so."""
    try:
        with open(path, "rb") as handle:
            return handle.read(len(PARQUET_MAGIC)) == PARQUET_MAGIC or Path(path).suffix.lower() == ".parquet"
    except OSError:
        return False


def read_parquet_frame(path: Path | str, what: str, error: type[MGIError] = MissingInputError) -> pd.DataFrame:
    """Read a whole Parquet table as pandas wrote it, its index as the first column where it is no row number."""
    table = read_table(path, what, error=error)
    try:
        frame = table.to_pandas()
    except PARSER_ERRORS as cause:
        raise error(f"{what} {path} cannot be read: {quote(' '.join(str(cause).split()), 200)}") from cause
    if isinstance(frame.index, pd.MultiIndex):
        raise error(f"{what} {path} has an index of several levels; give it one")
    if not isinstance(frame.index, pd.RangeIndex):
        name = frame.index.name if frame.index.name not in (None, *frame.columns) else ""
        frame = pd.concat([pd.DataFrame({name: frame.index}), frame.reset_index(drop=True)], axis=1)
    return frame.set_axis([str(name).strip() for name in frame.columns], axis=1)


def cells_as_text(cells: pd.Series) -> list[str | None]:
    """Return the cells of a column as trimmed text, None where there is none."""
    return [None if pd.api.types.is_scalar(cell) and pd.isna(cell) else str(cell).strip() or None for cell in cells]


def source_of(path: Path | str) -> str:
    """Return the source_id of a slide: its file name without the suffix and without the UUID that the GDC adds.

    A TCGA barcode holds no dot, so of a name that starts with one it is the part before the first dot.
    """
    name = Path(path).name
    if TCGA_NAME.match(name):
        return name.split(".")[0]
    stem = SUFFIXES.sub("", name)
    return UUID_TAIL.sub("", stem) or stem


@contextmanager
def image_table(
    path: Path | str, stain: str | None = None, slides: str | None = None
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield a function that adds a row of `IMAGES_SCHEMA` to the table `path`, which appears when the block ends.

    Its metadata state the `stain` normalisation of the images, where there is one, and where rows have no image the
    `slides` that it is read from: see `mgi.prepare.store.state_slides`.

    Rows must come sorted by (case_id, source_id, z, y, x). At most one row group of 64 is held in memory; encoded
    images are stored as they are, since they do not compress further.
    """
    codecs = {name: "NONE" if name in ("image", "mask") else "ZSTD" for name in IMAGES_SCHEMA.names}
    plain = [name for name in IMAGES_SCHEMA.names if name not in ("image", "mask")]
    pending: list[dict[str, Any]] = []
    stated = {key: value for key, value in (("stain", stain), ("slides", slides)) if value is not None}
    schema = IMAGES_SCHEMA.with_metadata(stated) if stated else IMAGES_SCHEMA
    with (
        atomic_write(path) as aside,
        pq.ParquetWriter(aside, schema, compression=codecs, use_dictionary=plain) as writer,
    ):

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(pending, schema))
            pending.clear()

        def add(row: dict[str, Any]) -> None:
            pending.append(row)
            if len(pending) == ROWS_PER_GROUP:
                flush()

        yield add
        if pending:
            flush()


@contextmanager
def feature_table(path: Path | str, width: int) -> Iterator[Callable[[pd.DataFrame, np.ndarray], None]]:
    """Yield a function that adds a slide's patches to the table `path`, which appears when the block ends.

    The function takes the places of the patches, columns of `FEATURES_SCHEMA`, and their features, float32
    [patches, width]. Each slide is a row group, so that a reader needs no more than one in memory.
    """
    values = pa.list_(pa.field("item", pa.float32(), nullable=False), width)
    number = FEATURES_SCHEMA.get_field_index("features")
    schema = FEATURES_SCHEMA.set(number, pa.field("features", values, nullable=False))
    with (
        atomic_write(path) as aside,
        pq.ParquetWriter(aside, schema, compression="NONE", use_dictionary=["case_id", "source_id"]) as writer,
    ):

        def add(places: pd.DataFrame, features: np.ndarray) -> None:
            columns = [pa.array(places[field.name], field.type, from_pandas=True) for field in _PLACE_SCHEMA]
            columns.append(pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), type=values))
            writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=max(len(places), 1))

        yield add


def write_sources(rows: list[dict[str, Any]], path: Path | str) -> None:
    """Write what became of each slide or series, sorted by case and source."""
    rows = sorted(rows, key=lambda row: (row["case_id"], row["source_id"]))
    write_table(pa.Table.from_pylist(rows, SOURCES_SCHEMA), path)
