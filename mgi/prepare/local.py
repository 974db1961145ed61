"""Slides of the user's own: listed by a table or a folder, and what the user states of them."""

import difflib
import os
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mgi.barcodes import Barcode, find_case, is_tumour, standardise_barcode
from mgi.console import log
from mgi.errors import MissingInputError, SlideError
from mgi.files import is_system_file
from mgi.names import check_case_ids, check_text, first_few, is_name, quote
from mgi.tables import read_any_table, source_of

DICOM = ".dcm"
WHOLE_SLIDES = (".svs", ".ndpi", ".scn", ".mrxs", ".bif", ".vms", ".vmu", ".svslide", DICOM)
PLAIN_PICTURES = (".png", ".jpg", ".jpeg")
PICTURES = (".tif", ".tiff", *PLAIN_PICTURES)
SUFFIXES = WHOLE_SLIDES + PICTURES
MASK_ENDING = "_mask"
# Beside a slide of this name, a folder of the same name holds its pixels.
WITH_FOLDER = (".mrxs", ".vms", ".vmu")
MAX_FILES = 1_000_000
COLUMNS = ("case_id", "slide", "mpp", "annotation", "site")
# Below the names of the columns.
FIRST_LINE = 2
# Of level 0: what is beyond is a magnification, or in nanometres or millimetres.
MIN_MPP, MAX_MPP = 0.01, 16.0


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
        If it is no such table, or states two values for a slide, or one that is not 0.01 to 16.
    """
    table = _read_mpp(path)
    stated: dict[str, float] = {}
    for slide, text in zip(table["slide"], table["mpp"], strict=True):
        if slide is None:
            raise SlideError(f"{path} states an mpp without a slide; name it")
        value = _parse_mpp(text, slide, path)
        for source_id in {source_of(slide), slide}:
            if stated.setdefault(source_id, value) != value:
                raise SlideError(f"{path} states two mpp for the slide {quote(slide)}; keep one")
    return stated


def _read_mpp(path: Path | str) -> pd.DataFrame:
    # A spreadsheet leaves rows of nothing at the end.
    return read_any_table(path, "table of mpp", ["slide", "mpp"], SlideError).dropna(how="all")


def describe_stray_mpp(path: Path | str, source_ids: Collection[str]) -> list[str]:
    """Return a sentence on the slides in a table of mpp that are none of the cohort's, if there are any.

    Raises
    ------
    MissingInputError
        If it is not there.
    SlideError
        If it is no such table, or none of its slides is of the cohort.
    """
    slides, known = [slide for slide in _read_mpp(path)["slide"] if slide], set(source_ids)
    stray = [slide for slide in slides if not {slide, source_of(slide)} & known]
    if not stray:
        return []
    if len(stray) == len(slides):
        raise SlideError(
            f"{path} states the mpp of {first_few(slides)}, and the cohort has no such slide, but "
            f"{first_few(sorted(known))}; name slides as their files are named"
        )
    return [f"{len(stray)} of {len(slides)} slides in {path} are not of the cohort: {first_few(stray)}"]


@dataclass(frozen=True)
class LocalSlide:
    """A slide of the user's own, and what the user states of it."""

    case_id: str
    source_id: str
    path: Path
    mpp: float | None = None
    annotation: Path | None = None
    site: str | None = None


def list_local_slides(
    table_or_folder: Path | str, case_pattern: str | None = None, suffixes: tuple[str, ...] = SUFFIXES
) -> list[LocalSlide]:
    """List the user's own slides, by case and source.

    Parameters
    ----------
    table_or_folder : Path
        A table (CSV, TSV or Parquet) of `case_id` and `slide`, and optionally `mpp`, `annotation` and `site`; relative
        paths are taken from its folder. Or a folder of slides, folders within it included.
    case_pattern : str, optional
        For a folder: a regular expression that matches at the start of a slide's path within the folder, its suffix
        aside; the case id is its first group, or the whole match. None: the TCGA barcode that the slide's name begins
        with, else its whole name. Slides whose barcode says that they are of normal tissue are left out.
    suffixes : tuple of str
        Of the files in a folder that are read.

    Raises
    ------
    MissingInputError
        If the table, the folder or a slide or annotation of the table is not there.
    SlideError
        If the pattern is no regular expression or does not match a name, two slides have one name, a name cannot be
        part of a path, a case id is a sample's barcode or not that of the slide's own barcode, an annotation is
        another slide's, or the table lacks a column or a cell, or states two sites of a case.
    """
    place = Path(table_or_folder)
    found = _list_folder(place, case_pattern, suffixes) if place.is_dir() else _list_table(place)
    if not found:
        raise SlideError(f"{place} holds no slide; {' '.join(suffixes)} are read")
    check_case_ids((slide.case_id for slide in found), str(place), SlideError)
    _check_sources(found, place)
    _check_barcodes(found, place)
    _check_annotations(found, place)
    _check_sites(found, place)
    return sorted(found, key=lambda slide: (slide.case_id, slide.source_id))


def tabulate_slides(slides: list[LocalSlide]) -> pd.DataFrame:
    """Return slides as a frame, a row each, in their order; what is not stated is None."""
    rows = [{**vars(slide), "project": None} for slide in slides]
    return pd.DataFrame(rows, dtype=object)


def _check_sources(slides: list[LocalSlide], place: Path) -> None:
    """Refuse duplicate slides, and names that cannot become part of a path."""
    odd = [slide.path.name for slide in slides if not is_name(slide.source_id)]
    if odd:
        raise SlideError(
            f"{len(odd)} slides in {place} have names that cannot be those of files made of them: {first_few(odd)}; "
            "rename them with ASCII letters, digits, '.', '_' and '-', starting with a letter or digit"
        )
    # Some file systems take names that differ in upper and lower case for one.
    counts = Counter(slide.source_id.casefold() for slide in slides)
    repeated = [source_id for source_id, count in counts.items() if count > 1]
    if repeated:
        one, other = [slide for slide in slides if slide.source_id.casefold() == repeated[0]][:2]
        alike = "" if one.source_id == other.source_id else " in upper or lower case"
        raise SlideError(
            f"{place} has {len(repeated)} names for two slides each, {first_few(repeated)}: two slides are both "
            f"{one.source_id}{alike}: {one.path} and {other.path}; keep one, or rename one"
        )


def _check_barcodes(slides: list[LocalSlide], place: Path) -> None:
    """Refuse case ids that are barcodes of samples, and slides whose own barcode is another patient's."""
    samples = [slide.case_id for slide in slides if (barcode := Barcode.parse(slide.case_id)) and barcode.sample]
    if samples:
        raise SlideError(
            f"{place}: {len(samples)} case ids are barcodes of samples, {first_few(samples)}: give the patient's, such "
            f"as {find_case(samples[0])}"
        )
    for slide in slides:
        stated, named = find_case(slide.case_id), find_case(slide.source_id)
        if stated and named and stated != named:
            raise SlideError(f"{place} gives the slide {slide.source_id} to the case {slide.case_id}: correct either")


def _check_annotations(slides: list[LocalSlide], place: Path) -> None:
    """Refuse an annotation that is stated for two slides, or is named after another slide than its own."""
    owners: dict[Path, str] = {}
    known = {slide.source_id for slide in slides}
    for slide in slides:
        if slide.annotation is None:
            continue
        other = owners.setdefault(slide.annotation, slide.source_id)
        named = source_of(slide.annotation).removesuffix(MASK_ENDING)
        if other == slide.source_id and named in known - {slide.source_id}:
            other = named
        if other != slide.source_id:
            raise SlideError(
                f"{place} gives {slide.annotation.name}, the annotation of the slide {other}, to {slide.source_id} as "
                "well or instead: correct it"
            )


def _check_sites(slides: list[LocalSlide], place: Path) -> None:
    """Refuse cases whose slides are stated to be of several sites."""
    sites: dict[str, set[str]] = {}
    for slide in slides:
        sites.setdefault(slide.case_id, set()).update([slide.site] if slide.site else [])
    several = sorted(case_id for case_id, names in sites.items() if len(names) > 1)
    if several:
        raise SlideError(f"{place} states two sites for {len(several)} cases: {first_few(several)}; keep one each")


def _list_folder(folder: Path, case_pattern: str | None, suffixes: tuple[str, ...]) -> list[LocalSlide]:
    try:
        pattern = re.compile(case_pattern or r"(?:.*/)?([^/]+)")
    except re.error as error:
        raise SlideError(f"the pattern of case ids {quote(case_pattern)} is no regular expression: {error}") from error
    paths, unused = _find_slides(folder, suffixes)
    paths, derived = _without_derived(paths)
    unused += [path.name for path in derived]
    found, unmatched, normal = [], [], []
    numbers: dict[str, set[str]] = {}
    for path in paths:
        # A folder of DICOM files has no suffix to leave out.
        source_id = path.parent.name if _is_dicom_folder(path, folder) else source_of(path)
        place = (path.parent if _is_dicom_folder(path, folder) else path).relative_to(folder)
        name = (place.parent / source_id).as_posix()
        match = pattern.match(name)
        case_id = match[pattern.groups] if match else None
        if match is None or not case_id:
            unmatched.append(place.as_posix())
        elif is_tumour(standardise_barcode(source_id)) is False:
            normal.append(place.as_posix())
        else:
            if case_pattern is None:
                case_id = find_case(source_id) or case_id
            numbers.setdefault(case_id, set()).add(_number_at(name, match.end(pattern.groups)))
            found.append(LocalSlide(check_text(case_id, "case id", SlideError), source_id, path))
    if unmatched:
        raise SlideError(
            f"the pattern of case ids {quote(case_pattern)} does not match {len(unmatched)} of {len(paths)} slides in "
            f"{folder}: {first_few(unmatched)}; it is matched at the start of these paths, their suffix aside"
        )
    if normal:
        log.warning("%d slides in %s are of normal tissue and left out: %s", len(normal), folder, first_few(normal))
    cut = {case_id: sorted(whole) for case_id, whole in numbers.items() if len(whole) > 1}
    if cut:
        log.warning(
            "the pattern of case ids %s ends within a number: %d cases have several, such as %s, of the numbers %s; if "
            "these are several patients, correct it",
            quote(case_pattern), len(cut), quote(min(cut)), first_few(cut[min(cut)]),
        )  # fmt: skip
    if unused:
        log.warning("%d files in %s are not read: %s", len(unused), folder, first_few(unused))
    return found


def _number_at(name: str, end: int) -> str:
    """Return the whole number within which, or behind which, a place of a name lies; empty where there is none."""
    before, after = re.search(r"\d*$", name[:end]), re.match(r"\d*", name[end:])
    return before[0] + after[0] if before and before[0] and after else ""


def _is_dicom_folder(path: Path, folder: Path) -> bool:
    return path.suffix.lower() == DICOM and path.parent != folder


def _find_slides(folder: Path, suffixes: tuple[str, ...]) -> tuple[list[Path], list[str]]:
    """Return the slides in a folder and in those within it, and the names of the other files.

    A folder of DICOM files is one slide: the largest of them, which is of full resolution, opens it.
    """
    slides: list[Path] = []
    unused: list[str] = []
    seen = 0
    for inner, folders, files in os.walk(folder):
        names = sorted(name for name in files if not is_system_file(name))
        seen += len(names)
        if seen > MAX_FILES:
            raise SlideError(f"{folder} holds more than {MAX_FILES} files; name the folder of the slides alone")
        pixels_of_others = {Path(name).stem for name in names if name.lower().endswith(WITH_FOLDER)}
        folders[:] = sorted(name for name in folders if name not in pixels_of_others and not is_system_file(name))
        dicom = [Path(inner, name) for name in names if DICOM in suffixes and name.lower().endswith(DICOM)]
        if len(dicom) > 1 and Path(inner) == folder:
            raise SlideError(f"{folder} holds {len(dicom)} DICOM files: put those of a slide into a folder of its own")
        if dicom:
            slides.append(max(dicom, key=lambda path: path.stat().st_size))
        for name in names:
            if name.lower().endswith(suffixes) and not Path(name).stem.endswith(MASK_ENDING):
                slides += [] if name.lower().endswith(DICOM) else [Path(inner, name)]
            else:
                unused.append(name)
    return slides, unused


def _without_derived(paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """Tell slides from pictures that are named after one, such as `{slide}_thumbnail.png`; return both."""
    names = {(path.parent, source_of(path)) for path in paths if path.suffix.lower() not in PLAIN_PICTURES}

    def is_derived(path: Path) -> bool:
        if path.suffix.lower() not in PLAIN_PICTURES:
            return False
        cuts = (match.start() for match in re.finditer(r"[^A-Za-z0-9]", path.stem))
        return any((path.parent, path.stem[:cut]) in names for cut in cuts)

    return [path for path in paths if not is_derived(path)], [path for path in paths if is_derived(path)]


def _list_table(table: Path) -> list[LocalSlide]:
    frame = read_any_table(table, "table of slides", ["case_id", "slide"], SlideError)
    _refuse_unknown_columns(frame, table)
    rows = frame.where(frame.notna(), None).to_dict("records")
    numbered = {line: row for line, row in enumerate(rows, FIRST_LINE) if any(row.values())}
    lacking = [str(line) for line, row in numbered.items() if not row["case_id"] or not row["slide"]]
    if lacking:
        raise SlideError(f"{table} lacks a case_id or a slide in {len(lacking)} lines: {first_few(lacking)}")
    found, missing = [], []
    for row in numbered.values():
        files = {name: table.parent / row[name] for name in ("slide", "annotation") if row.get(name)}
        missing += [row[name] for name, path in files.items() if not path.exists()]
        mpp = _parse_mpp(row["mpp"], row["slide"], table) if row.get("mpp") else None
        case_id = check_text(row["case_id"], f"case id in {table}", SlideError)
        site = check_text(row["site"], f"site in {table}", SlideError) if row.get("site") else None
        path = files["slide"]
        if path.is_dir():
            path = _open_dicom_folder(path, table)
        source_id = files["slide"].name if path != files["slide"] else source_of(path)
        found.append(LocalSlide(case_id, source_id, path, mpp, files.get("annotation"), site))
    if missing:
        raise MissingInputError(
            f"{len(missing)} files that {table} names are not there: {first_few(missing)}; paths are taken from the "
            "folder of the table"
        )
    return found


def _refuse_unknown_columns(frame: pd.DataFrame, table: Path) -> None:
    """Refuse a column that is probably one of ours, mistyped: its values would be lost without a word."""
    for name in frame.columns:
        lower = name.lower()
        near = ["mpp"] if lower.startswith("mpp") else difflib.get_close_matches(lower, COLUMNS, n=1, cutoff=0.8)
        if name not in COLUMNS and near and near[0] not in frame.columns:
            raise SlideError(f"{table} has a column {quote(name)}: write it {near[0]}, or give it another name")


def _open_dicom_folder(folder: Path, table: Path) -> Path:
    """Return the DICOM file of a slide's folder that opens it."""
    files = [path for path in folder.iterdir() if path.suffix.lower() == DICOM]
    if not files:
        raise SlideError(f"{table} names the folder {quote(folder.name)} as a slide, which holds no DICOM file")
    return max(files, key=lambda path: path.stat().st_size)


def _parse_mpp(text: str | None, slide: str, path: Path | str) -> float:
    try:
        value = float(text or "nan")
    except ValueError:
        value = float("nan")
    if not MIN_MPP <= value <= MAX_MPP:
        raise SlideError(f"{path} states {quote(text)} as mpp of {quote(slide)}; give microns per pixel, such as 0.25")
    return value
