"""Precomputed features of patches, a file per slide, imported into one table in place of images."""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mgi.console import log, progress
from mgi.errors import SlideError
from mgi.names import first_few
from mgi.prepare.hdf5 import copy_features, read_header
from mgi.prepare.isolation import IsolationError, run_isolated
from mgi.prepare.local import LocalSlide, list_local_slides
from mgi.tables import feature_table, write_sources

SUFFIXES = (".h5", ".hdf5")


def list_features(table_or_folder: Path | str, case_pattern: str | None = None) -> list[LocalSlide]:
    """List the files of features in a table or folder, by case and slide; raises as `list_local_slides` does."""
    return list_local_slides(table_or_folder, case_pattern, SUFFIXES)


def import_features(
    table_or_folder: Path | str, output: Path | str, sources: Path | str, case_pattern: str | None = None
) -> None:
    """Write the features of every slide into one table, and what became of each file into `sources`.

    Each file is read in a process of its own. One that cannot be used is recorded there with its reason, and the others
    go on; so is a file whose features are not as wide as those of most. Patches whose features are not finite, or all
    zero, are left out and counted.

    Parameters
    ----------
    table_or_folder, case_pattern
        As of `list_local_slides`.
    output : Path
        The table: see `feature_table`.
    sources : Path
        The table of slides.

    Raises
    ------
    MissingInputError
        If the table, the folder or a file of the table is not there.
    SlideError
        If there is no file, two are of one slide, none can be used, or as many are of one width as of another.
    """
    output = Path(output)
    slides = list_features(table_or_folder, case_pattern)
    width, reasons = inspect_features(slides)
    records = []
    with feature_table(output, width) as add:
        for slide in progress(slides, "slides"):
            record: dict[str, Any] = {"source_id": slide.source_id, "case_id": slide.case_id, "site": slide.site}
            record |= {"table": output.stem, "status": "skipped", "n_images": 0, "labelled": False}
            with tempfile.NamedTemporaryFile(dir=output.parent) as copy:
                try:
                    coords, size, dropped = _copy(slide, reasons.get(slide.source_id), copy.name)
                except (SlideError, IsolationError) as error:
                    log.warning("%s left out: %s", slide.path.name, error)
                    records.append(record | {"reason": str(error)})
                    continue
                places = pd.DataFrame({"x": coords[:, 0], "y": coords[:, 1]})
                places = places.assign(case_id=slide.case_id, source_id=slide.source_id, z=0, size=size, mpp=None)
                add(places, np.memmap(copy.name, np.float32, "r", shape=(len(coords), width)))
            for why, count in dropped.items():
                log.warning("%s: %d of its patches are left out: %s", slide.path.name, count, why)
            records.append(record | {"status": "ok", "n_images": len(coords), "dropped": json.dumps(dropped)})
    write_sources(records, sources)
    used = [record for record in records if record["status"] == "ok"]
    log.info("%d patches of %d of %d slides", sum(record["n_images"] for record in used), len(used), len(records))


def inspect_features(slides: list[LocalSlide]) -> tuple[int, dict[str, str]]:
    """Read the header of every file: the width of most features, and why a slide cannot be used, by source_id.

    Raises
    ------
    SlideError
        If no file can be used, or as many are of one width as of another.
    """
    found = _read_headers(slides)
    reasons = {name: header for name, header in found.items() if isinstance(header, str)}
    widths = Counter(header[1] for header in found.values() if not isinstance(header, str))
    if not widths:
        first = slides[0]
        raise SlideError(f"none of {len(slides)} files of features can be used: {first.path}: {found[first.source_id]}")
    (width, most), *others = widths.most_common()
    if others and others[0][1] == most:
        named = {value: [n for n, h in found.items() if h[1] == value] for value in (width, others[0][0])}
        listed = " and ".join(f"{value} values in {first_few(names)}" for value, names in named.items())
        raise SlideError(f"features of several encoders: {listed}; keep those of one")
    for name, header in found.items():
        if not isinstance(header, str) and header[1] != width:
            reasons[name] = f"another encoder: features of {header[1]} values, and of most slides {width}"
    return width, reasons


def describe_unusable(slides: list[LocalSlide], reasons: Mapping[str, str]) -> list[str]:
    """Return a sentence for each kind of reason, as `inspect_features` found it, and for what is stated in vain."""
    stated = [slide.source_id for slide in slides if slide.mpp or slide.annotation]
    unused = f"{len(stated)} slides state an mpp or an annotation, which features do not use: {first_few(stated)}"
    kinds: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        kinds.setdefault(reason.split(":")[0], []).append(name)
    return [unused] * bool(stated) + [
        f"{len(names)} of {len(slides)} files of features will be left out, {first_few(names)}: {reasons[names[0]]}"
        for names in kinds.values()
    ]


def fingerprint_features(slides: list[LocalSlide]) -> str:
    """Return a hash of whose the files are, and of their sizes and times; they are not read."""
    content = hashlib.sha256()
    for slide in slides:
        state = slide.path.stat() if slide.path.exists() else None
        row: list[object] = [slide.case_id, slide.source_id, slide.site, str(slide.path)]
        row += [state.st_size, state.st_mtime_ns] if state else []
        content.update(f"{row}\n".encode())
    return content.hexdigest()


def _copy(slide: LocalSlide, reason: str | None, copy: str) -> tuple[np.ndarray, float | None, dict[str, int]]:
    """Copy a slide's features as `copy_features` does, unless there is a reason not to."""
    if reason is not None:
        raise SlideError(reason)
    copied: tuple[np.ndarray, float | None, dict[str, int]] = run_isolated(copy_features, slide.path, copy)
    return copied


def _read_headers(slides: list[LocalSlide]) -> dict[str, tuple[int, int] | str]:
    """Return patches and width of each file, or the reason why it cannot be used, by source_id.

    All are opened in one process; where it dies, each in its own.
    """
    try:
        found: dict[str, tuple[int, int] | str] = run_isolated(_read_each, slides)
        return found
    except IsolationError as error:
        if len(slides) == 1:
            return {slides[0].source_id: f"unreadable: {error}"}
        headers: dict[str, tuple[int, int] | str] = {}
        for slide in slides:
            headers |= _read_headers([slide])
        return headers


def _read_each(beat: Callable[[], None], slides: list[LocalSlide]) -> dict[str, tuple[int, int] | str]:
    found: dict[str, tuple[int, int] | str] = {}
    for slide in slides:
        try:
            found[slide.source_id] = read_header(slide.path)
        except SlideError as error:
            found[slide.source_id] = str(error)
        beat()
    return found
