"""Files are written under a temporary name and renamed; errors of tables name what is missing."""

import errno
import os
import subprocess
import sys

import pandas as pd
import pytest

from mgi import files
from mgi.errors import CohortError, MissingInputError, OutputError, describe_memory_error, describe_os_error
from mgi.files import atomic_write
from mgi.tables import read_table, write_table


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as part:
        part.write_text("half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_name_appears_only_when_the_content_is_complete(tmp_path):
    path = tmp_path / "deep" / "table.csv"
    with atomic_write(path) as part:
        part.write_text("new")
        assert not path.exists() and part.parent == path.parent
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_written_files_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "model") as part:
            part.touch(mode=0o600)
        assert (tmp_path / "model").stat().st_mode & 0o777 == 0o640
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def leave_part(folder, name, machine, process):
    part = folder / f".{name}.{machine}-{process}-0123abcd.part"
    part.write_text("half")
    return part


def dead_process():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_leftover_of_a_killed_process_is_removed_by_the_next_run(tmp_path):
    code = "import os, sys; from mgi.files import atomic_write\n"
    code += "with atomic_write(sys.argv[1]) as part:\n    part.write_text('half'); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, tmp_path / "table.csv"])
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
    with atomic_write(tmp_path / "table.csv") as part:
        part.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


def test_only_abandoned_leftovers_of_the_same_file_are_removed(tmp_path):
    here = files._identify_machine()
    parent = leave_part(tmp_path, "table.csv", here, os.getppid())
    elsewhere = leave_part(tmp_path, "table.csv", "00000000", 1)
    other = leave_part(tmp_path, "table.csv.other", here, dead_process())
    (tmp_path / ".table.csv.mine.part").write_text("a user's")
    old = leave_part(tmp_path, "table.csv", "11111111", 1)
    os.utime(old, (0, 0))
    with atomic_write(tmp_path / "table.csv") as part:
        part.write_text("new")
    assert parent.exists() and elsewhere.exists() and other.exists() and not old.exists()
    assert (tmp_path / ".table.csv.mine.part").exists()


@pytest.mark.parametrize("call", ["chmod", "fsync"])
def test_file_systems_without_permissions_or_flushing_are_written_to(call, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EOPNOTSUPP if call == "fsync" else errno.EPERM, "not supported")

    monkeypatch.setattr(os, call, refuse)
    with atomic_write(tmp_path / "table.csv") as part:
        part.write_text("new")
    assert (tmp_path / "table.csv").read_text() == "new"


def test_full_disk_is_not_taken_for_a_file_system_that_cannot_flush(tmp_path, monkeypatch):
    def fill(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fill)
    (tmp_path / "table.csv").write_text("old")
    with pytest.raises(OSError, match="No space"), atomic_write(tmp_path / "table.csv") as part:
        part.write_text("new")
    assert (tmp_path / "table.csv").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_folders_and_devices_are_not_replaced(tmp_path):
    for path, reason in ((tmp_path, "is a folder"), (os.devnull, "is no regular file")):
        with pytest.raises(OutputError, match=reason), atomic_write(path):
            pass


def test_longest_file_name_is_written(tmp_path):
    path = tmp_path / ("x" * 251 + ".csv")
    with atomic_write(path) as part:
        part.write_text("new")
    assert path.read_text() == "new"


def test_errors_of_the_system_are_sentences(tmp_path):
    with pytest.raises(OSError) as caught:
        (tmp_path / "gone").read_text()
    assert describe_os_error(caught.value) == f"cannot open {tmp_path / 'gone'}: no such file or directory"
    full = OSError(errno.EEXIST, "File exists", "out")
    assert describe_os_error(full) == "cannot write out: file exists"
    assert describe_os_error(OSError("odd\nnews")) == "cannot open a file: odd news"


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


def test_memory_that_runs_out_is_said_of_what_ran_out():
    gpu = type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert "not enough memory of the GPU; lower batch_images" in str(describe_memory_error(gpu))
    cpu = RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried")
    assert str(describe_memory_error(cpu)) == str(describe_memory_error(MemoryError())) and "machine with more" in str(
        describe_memory_error(cpu)
    )
    assert describe_memory_error(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
