"""Slides of the user's own: listed by a table or a folder, and what the user states of them."""

import re
from dataclasses import dataclass
from pathlib import Path

from mgi.console import log
from mgi.errors import SlideError
from mgi.files import is_system_file, require_file
from mgi.names import check_case_ids, check_name, check_text, first_few, quote
from mgi.tables import read_any_table, source_of

SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".scn", ".mrxs", ".bif", ".vms", ".vmu", ".svslide", ".dcm")


def read_mpp_table(path: Path | str) -> dict[str, float]:
    """Read the microns per pixel of level 0 that the user states, by source_id.

    Parameters
    ----------
    path : Path
        CSV, TSV or Parquet of `slide`, a file name or its source_id, and `mpp`.

    Raises
    ------
    MissingInputError
        If it is not there.
    SlideError
        If it is no such table, or states two values for a slide, or one that is not a positive number.
    """
    table = read_any_table(path, "table of mpp", ["slide", "mpp"], SlideError)
    stated: dict[str, float] = {}
    for slide, text in zip(table["slide"], table["mpp"], strict=True):
        if slide is None:
            raise SlideError(f"{path} states an mpp without a slide; name it")
        value = _parse_mpp(text, slide, path)
        for source_id in {source_of(slide), slide}:
            if stated.setdefault(source_id, value) != value:
                raise SlideError(f"{path} states two mpp for the slide {quote(slide)}; keep one")
    return stated


@dataclass(frozen=True)
class LocalSlide:
    """A slide of the user's own, and what the user states of it."""

    case_id: str
    source_id: str
    path: Path
    mpp: float | None = None
    annotation: Path | None = None
    site: str | None = None


def list_local_slides(table_or_folder: Path | str, case_pattern: str | None = None) -> list[LocalSlide]:
    """List the user's own slides, by case and source.

    Parameters
    ----------
    table_or_folder : Path
        A table (CSV, TSV or Parquet) of `case_id` and `slide`, and optionally `mpp`, `annotation` and `site`; relative
        paths are taken from its folder. Or a folder of slides.
    case_pattern : str, optional
        For a folder: a regular expression that matches at the start of a slide's name; the case id is its first group,
        or the whole match. None: the TCGA barcode of 12 characters, else the whole name.

    Raises
    ------
    MissingInputError
        If the table, the folder or a slide is not there.
    SlideError
        If the pattern does not match a name, two slides have one name, or the table lacks a column or a cell.
    """
    place = Path(table_or_folder)
    found = _list_folder(place, case_pattern) if place.is_dir() else _list_table(place)
    if not found:
        raise SlideError(f"{place} holds no slide; {' '.join(SUFFIXES)} are read")
    check_case_ids((slide.case_id for slide in found), str(place), SlideError)
    seen: dict[str, Path] = {}
    for slide in found:
        check_name(slide.source_id, "name of a slide", SlideError)
        if slide.source_id in seen:
            raise SlideError(
                f"two slides are both {slide.source_id}: {seen[slide.source_id]} and {slide.path}; keep one"
            )
        seen[slide.source_id] = slide.path
    return sorted(found, key=lambda slide: (slide.case_id, slide.source_id))


def _list_folder(folder: Path, case_pattern: str | None) -> list[LocalSlide]:
    try:
        pattern = re.compile(case_pattern or r"TCGA-\w{2}-\w{4}|.+")
    except re.error as error:
        raise SlideError(f"the pattern of case ids {quote(case_pattern)} is no regular expression: {error}") from error
    found, unused = [], []
    for path in sorted(folder.iterdir()):
        if is_system_file(path.name) or path.is_dir():
            continue
        if path.suffix.lower() not in SUFFIXES:
            unused.append(path.name)
            continue
        source_id = source_of(path)
        match = pattern.match(source_id)
        if match is None:
            raise SlideError(f"the pattern of case ids {quote(case_pattern)} does not match the slide {path.name}")
        case_id = match[1] if pattern.groups else match[0]
        found.append(LocalSlide(check_text(case_id, "case id", SlideError), source_id, path))
    if unused:
        log.warning("%d files in %s are not slides: %s", len(unused), folder, first_few(unused))
    return found


def _list_table(table: Path) -> list[LocalSlide]:
    frame = read_any_table(table, "table of slides", ["case_id", "slide"], SlideError)
    found = []
    for line, row in enumerate(frame.to_dict("records"), 2):
        if not row["case_id"] or not row["slide"]:
            raise SlideError(f"{table} lacks a case_id or a slide in line {line}")
        slide = require_file(table.parent / row["slide"], f"slide of line {line} of {table}")
        annotation = row.get("annotation")
        if annotation:
            annotation = require_file(table.parent / annotation, f"annotation of line {line} of {table}")
        mpp = _parse_mpp(row["mpp"], row["slide"], table) if row.get("mpp") else None
        case_id = check_text(row["case_id"], f"case id in {table}", SlideError)
        found.append(LocalSlide(case_id, source_of(slide), slide, mpp, annotation or None, row.get("site")))
    return found


def _parse_mpp(text: str | None, slide: str, path: Path | str) -> float:
    try:
        value = float(text or "nan")
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise SlideError(f"{path} states {quote(text)} as mpp of {quote(slide)}; give microns per pixel, such as 0.25")
    return value
