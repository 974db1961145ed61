"""Files between the stages: written aside, then renamed, so that a name always means a complete file."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mgi.errors import MGIError, MissingInputError


@contextmanager
def written_aside(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on failure.

    The content is flushed to the disk before the rename, so a crash leaves either the old file or the new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield aside
        with open(aside, "rb+") as handle:
            os.fsync(handle.fileno())
        # Some libraries write for the user alone, whatever the umask.
        os.chmod(aside, 0o666 & ~_umask())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _umask() -> int:
    """Read the umask, which the system gives only for another."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def existing(path: Path | str, what: str) -> Path:
    """Return `path` as a `Path`, or raise `MissingInputError` naming `what` was looked for."""
    path = Path(path)
    if not path.exists():
        raise MissingInputError(f"{what} not found: {path}")
    return path


def write_table(table: pa.Table | pd.DataFrame, path: Path | str, row_group_size: int | None = None) -> None:
    """Write a table to Parquet (zstd), aside and renamed; equal tables give equal bytes."""
    if isinstance(table, pd.DataFrame):
        table = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(None)
    with written_aside(path) as aside:
        pq.write_table(table, aside, compression="zstd", row_group_size=row_group_size)


def write_tsv(table: pd.DataFrame, path: Path | str) -> None:
    """Write a table to TSV, aside and renamed."""
    with written_aside(path) as aside:
        table.to_csv(aside, sep="\t", index=False, lineterminator="\n")


def open_table(
    path: Path | str, what: str, columns: list[str] | None = None, error: type[MGIError] = MissingInputError
) -> pq.ParquetFile:
    """Open a Parquet table that must hold `columns`, to be read in parts; raises as `read_table` does."""
    path = existing(path, what)
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
