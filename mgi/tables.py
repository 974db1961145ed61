"""Every table between the stages: its schema, its reader and its writer."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mgi.errors import MGIError, MissingInputError
from mgi.files import atomic_write, require_file

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
IMAGES_SCHEMA = pa.schema(
    [
        ("case_id", pa.string()),
        ("source_id", pa.string()),
        ("x", pa.int32()),
        ("y", pa.int32()),
        ("z", pa.int32()),
        ("size", pa.float64()),
        ("mpp", pa.float32()),
        ("tissue_fraction", pa.float32()),
        ("image", pa.binary()),
        ("mask", pa.binary()),
    ]
)
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
        ("table", pa.string()),
    ]
)
SPLITS_SCHEMA = pa.schema(
    [
        ("case_id", pa.string()),
        ("fold", pa.int32()),
        ("role", pa.string()),
        ("site", pa.string()),
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
PREDICTIONS_SCHEMA = pa.schema(
    [
        ("case_id", pa.string()),
        ("source_id", pa.string()),
        ("x", pa.int32()),
        ("y", pa.int32()),
        ("z", pa.int32()),
        ("size", pa.float64()),
        ("mpp", pa.float32()),
        ("fold", pa.int32()),
        ("prediction", pa.binary()),
        ("reference", pa.binary()),
    ]
)
ROWS_PER_GROUP = 64
TCGA_NAME = re.compile(r"TCGA-\w{2}-\w{4}")
SUFFIXES = re.compile(r"(\.ome)?\.[^.]*$", re.IGNORECASE)
UUID_TAIL = re.compile(r"\.[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", re.IGNORECASE)


def write_table(table: pa.Table | pd.DataFrame, path: Path | str, row_group_size: int | None = None) -> None:
    """Write a table to Parquet (zstd), aside and renamed; equal tables give equal bytes."""
    if isinstance(table, pd.DataFrame):
        table = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(None)
    with atomic_write(path) as aside:
        pq.write_table(table, aside, compression="zstd", row_group_size=row_group_size)


def write_tsv(table: pd.DataFrame, path: Path | str) -> None:
    """Write a table to TSV, aside and renamed."""
    with atomic_write(path) as aside:
        table.to_csv(aside, sep="\t", index=False, lineterminator="\n")


def open_table(
    path: Path | str, what: str, columns: list[str] | None = None, error: type[MGIError] = MissingInputError
) -> pq.ParquetFile:
    """Open a Parquet table that must hold `columns`, to be read in parts; raises as `read_table` does."""
    path = require_file(path, what)
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as problem:
        raise error(f"{what} {path} is not a Parquet file: {problem}") from None
    present = file.schema_arrow.names
    missing = sorted(set(columns or ()) - set(present))
    if missing:
        raise error(f"{what} {path} lacks the column {', '.join(missing)}; it has {', '.join(present)}")
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
        `error`, if it is no Parquet file or lacks one of `columns`.
    """
    with open_table(path, what, columns, error):
        return pq.read_table(path, columns=columns, filters=filters)


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
def image_table(path: Path | str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield a function that adds a row of `IMAGES_SCHEMA` to the table `path`, which appears when the block ends.

    Rows must come sorted by (case_id, source_id, z, y, x). At most one row group of 64 is held in memory; encoded
    images are stored as they are, since they do not compress further.
    """
    codecs = {name: "NONE" if name in ("image", "mask") else "ZSTD" for name in IMAGES_SCHEMA.names}
    plain = [name for name in IMAGES_SCHEMA.names if name not in ("image", "mask")]
    pending: list[dict[str, Any]] = []
    with (
        atomic_write(path) as aside,
        pq.ParquetWriter(aside, IMAGES_SCHEMA, compression=codecs, use_dictionary=plain) as writer,
    ):

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(pending, IMAGES_SCHEMA))
            pending.clear()

        def add(row: dict[str, Any]) -> None:
            pending.append(row)
            if len(pending) == ROWS_PER_GROUP:
                flush()

        yield add
        if pending:
            flush()


def write_sources(rows: list[dict[str, Any]], path: Path | str) -> None:
    """Write what became of each slide or series, sorted by case and source."""
    rows = sorted(rows, key=lambda row: (row["case_id"], row["source_id"]))
    write_table(pa.Table.from_pylist(rows, SOURCES_SCHEMA), path)
