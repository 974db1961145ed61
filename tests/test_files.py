"""Files are written aside and renamed; tables that lack something say so."""

import os

import pandas as pd
import pytest

from mgi.errors import CohortError, MissingInputError
from mgi.files import atomic_write
from mgi.tables import read_table, write_table


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as aside:
        aside.write_text("half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_name_appears_only_when_the_content_is_complete(tmp_path):
    path = tmp_path / "deep" / "table.csv"
    with atomic_write(path) as aside:
        aside.write_text("new")
        assert not path.exists() and aside.parent == path.parent
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_what_is_written_can_be_read_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "model") as aside:
            aside.touch(mode=0o600)
        assert (tmp_path / "model").stat().st_mode & 0o777 == 0o640
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_equal_tables_give_equal_bytes(tmp_path):
    frame = pd.DataFrame({"case_id": ["b", "a"], "value": [1.5, 2.5]})
    for name in ("one", "two"):
        write_table(frame.copy(), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_reading_names_the_missing_file_the_foreign_file_and_the_missing_column(tmp_path):
    with pytest.raises(MissingInputError, match=r"table of genes not found: .*genes\.parquet"):
        read_table(tmp_path / "genes.parquet", "table of genes")
    (tmp_path / "foreign").write_text("not parquet")
    with pytest.raises(CohortError, match="is not a Parquet file"):
        read_table(tmp_path / "foreign", "table of genes", error=CohortError)
    write_table(pd.DataFrame({"a": [1]}), tmp_path / "table")
    with pytest.raises(CohortError, match="lacks the column b; it has a"):
        read_table(tmp_path / "table", "table of genes", ["a", "b"], CohortError)
