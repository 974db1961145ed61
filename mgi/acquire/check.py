"""Whether the GDC still has what a manifest pins."""

from pathlib import Path
from typing import Any

import pandas as pd

from mgi.acquire.gdc import read_history, read_release, read_states
from mgi.acquire.manifest import read_manifest
from mgi.acquire.records import FileState
from mgi.acquire.web import Server
from mgi.config import GENCODE_V36_FILE_ID
from mgi.console import log
from mgi.errors import ManifestError
from mgi.names import first_few, quote
from mgi.tables import write_tsv

AVAILABLE_STATES = ("released", "live", "validated", "submitted")


def check(manifest: Path, url: str, out: Path | None = None, *, allow_http: bool = False) -> None:
    """Ask the GDC whether it still has every file that a manifest pins, as pinned.

    Parameters
    ----------
    manifest : Path
        Manifest made by `mgi.acquire.gdc.query` or from the GDC portal.
    url : str
        The http(s) address of the GDC API.
    out : Path, optional
        Table to write (TSV: file_id, file_name, state, reason), one row per file that it no longer has so; state is
        `superseded`, `withdrawn` or `changed`.
    allow_http : bool
        Whether another machine may be asked without encryption.

    Raises
    ------
    ManifestError
        If the manifest is unusable, or the GDC no longer has a file as pinned.
    FetchError
        If the GDC cannot be reached.
    """
    rows = read_manifest(manifest)
    with Server(url, allow_http=allow_http) as server:
        release = read_release(server)
        states = read_states(server, rows["file_id"].tolist())
        fates = [(row, *_find_fate(server, row, states.get(str(row.file_id)))) for row in rows.itertuples()]
    gone = [(row.file_id, row.file_name, state, reason) for row, state, reason in fates if state]
    for line in gone:
        log.warning("%s %s: %s, %s", *line)
    if out is not None:
        write_tsv(pd.DataFrame(gone, columns=["file_id", "file_name", "state", "reason"]), out)
    if gone:
        names = first_few(f"{file_id} {state}" for file_id, _, state, _ in gone)
        raise ManifestError(
            f"{len(gone)} of {len(rows)} files of {manifest} are no longer at the GDC ({release}) as pinned: {names}; "
            "keep what you have fetched of them, or query again"
        )
    log.info("all %d files of %s are at the GDC (%s) as pinned", len(rows), manifest, release)


def _find_fate(server: Server, row: Any, record: FileState | None) -> tuple[str | None, str]:
    """Return what became of a pinned file, None if nothing did, and how that is known."""
    if record is not None:
        if record.md5sum not in (None, row.md5):
            return "changed", f"its md5 is now {record.md5sum}"
        if record.state is not None and record.state not in AVAILABLE_STATES:
            return "withdrawn", f"its state is now {quote(record.state)}"
        return None, ""
    if row.file_id == GENCODE_V36_FILE_ID:
        return None, "a reference file, which /files does not list"
    versions = read_history(server, row.file_id)
    newer = [version for version in versions if version.file_change == "released" and version.uuid != row.file_id]
    if newer:
        last = newer[-1]
        return "superseded", f"by {last.uuid or 'unknown'} in data release {last.data_release or 'unknown'}"
    return "withdrawn", "the GDC lists neither it nor a successor"
