"""Files with changed bytes, for the readers of other people's files."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mgi.errors import MGIError


def check_damaged(read: Callable[[Path], object], valid: bytes, path: Path, examples: int = 60) -> None:
    """Read a valid file and damaged copies of it: other bytes, cut short, something appended.

    Only the project's own errors, of one printable sentence, may come out.
    """
    path.write_bytes(valid)
    read(path)

    @settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        derandomize=True,
    )
    @given(
        st.lists(st.tuples(st.integers(0, len(valid) - 1), st.integers(0, 255)), max_size=8),
        st.integers(0, len(valid)),
        st.binary(max_size=12),
    )
    def check(changes: list[tuple[int, int]], cut: int, tail: bytes) -> None:
        content = bytearray(valid)
        for place, byte in changes:
            content[place] = byte
        path.write_bytes(bytes(content[:cut]) + tail if tail else bytes(content))
        with contextlib.suppress(MGIError):
            read(path)

    check()
