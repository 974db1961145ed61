"""MRI series in a folder or a zip: folders of slices, or the NIfTI files of one name, at any depth.

The case of a series is the TCGA barcode that its name begins with, else its name.
"""

import hashlib
import os
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mgi.barcodes import find_case
from mgi.console import log
from mgi.errors import CohortError, MissingInputError, MriError
from mgi.files import is_system_file
from mgi.names import check_case_ids, check_name, first_few, quote
from mgi.prepare.kaggle import Place, is_slice
from mgi.prepare.nifti import group_files
from mgi.prepare.rasters import Readable

WHERE_TO_GET_IT = (
    "get the set 'LGG MRI Segmentation' by M. Buda from Kaggle, "
    "https://www.kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation (a free account is needed), and give the zip or "
    "the folder kaggle_3m in it, or give a folder of NIfTI files, {case}/{case}_{t1,t1ce,t2,flair,seg}.nii.gz"
)
# The patient in names that tell visits apart: of BraTS since 2023, UPENN-GBM, UCSF-PDGM and BIDS.
PATIENT = re.compile(r"^(BraTS-[A-Z]+-\d+(?=-\d+$)|UPENN-GBM-\d+(?=_)|UCSF-PDGM-\d+(?=_)|sub-[^_]+(?=_ses-))", re.I)
MAX_FILES = 10**6


@dataclass(frozen=True)
class Series:
    """One MRI series.

    Attributes
    ----------
    source_id, case_id : str
    folder : Path or zipfile.Path
        Where its slices lie.
    sequences : dict of str to file
        The NIfTI files by sequence; empty where the series is a folder of slices.
    """

    source_id: str
    case_id: str
    folder: Place
    sequences: dict[str, Readable] = field(default_factory=dict)

    @property
    def is_labelled(self) -> bool:
        """Whether it has labels: of NIfTI by the files' names, and slices should have masks."""
        return not self.sequences or "seg" in self.sequences


def find_series(folder: Path | str) -> list[Series]:
    """List the series of a folder, or of a zip that holds one, by name.

    Raises
    ------
    MissingInputError
        If it is not there, is neither, or holds no series.
    CohortError
        If two series belong to one case, or are visits of one patient.
    """
    folder = Path(folder)
    if not folder.exists():
        raise MissingInputError(f"MRI folder not found: {folder}; {WHERE_TO_GET_IT}")
    slices: dict[str, list[tuple[Place, list[str]]]] = defaultdict(list)
    volumes: list[Readable] = []
    for place, names in _walk(folder):
        if numbered := [name for name in names if is_slice(name)]:
            slices[place.name].append((place, numbered))
        volumes += [place / name for name in names if name.lower().endswith((".nii", ".nii.gz"))]
    scans, unknown = group_files(volumes)
    if unknown:
        log.warning("%d NIfTI files are of no sequence that is read: %s", len(unknown), first_few(unknown))
    found = [Series(name, _case_of(name), places[0][0]) for name, places in slices.items() if _are_copies(name, places)]
    if alone := [files["seg"].name for files in scans.values() if set(files) == {"seg"}]:
        # Such as an atlas, or the parts of a brain.
        log.warning("%d files of labels have the name of no series and are left out: %s", len(alone), first_few(alone))
    found += [Series(name, _case_of(name), Path(), files) for name, files in scans.items() if set(files) != {"seg"}]
    if not found:
        raise MissingInputError(
            f"{folder} holds no patient folder such as TCGA_CS_4941_19960909 or BraTS20_Training_001; {WHERE_TO_GET_IT}"
        )
    found.sort(key=lambda series: series.source_id)
    by_case: dict[str, Series] = {}
    for series in found:
        check_name(series.source_id, "name of a series", CohortError)
        other = by_case.setdefault(series.case_id, series)
        if other is not series:
            raise CohortError(
                f"two MRI folders belong to the case {series.case_id}: {other.source_id} and {series.source_id}; "
                "keep one"
            )
    check_case_ids(by_case, f"the folder {folder}", CohortError)
    _refuse_visits(found)
    return found


def _refuse_visits(found: list[Series]) -> None:
    """Refuse several visits of a patient, which folds would take for several patients."""
    visits: dict[str, list[str]] = defaultdict(list)
    for series in found:
        match = PATIENT.match(series.source_id)
        visits[match[0] if match else series.source_id].append(series.source_id)
    several = [names for names in visits.values() if len(names) > 1]
    if several:
        raise CohortError(
            f"{len(several)} patients have several MRI series, the first {first_few(several[0])}; keep one of each "
            "patient, since folds would part them"
        )


def open_series(folder: Path, case_id: str) -> Series:
    """Return the one series of a folder of slices or of NIfTI files.

    Raises
    ------
    MriError
        If it holds the NIfTI files of several, or both kinds.
    CohortError
        If it has two NIfTI files of one sequence.
    """
    names = [path for path in sorted(folder.iterdir()) if not is_system_file(path.name)]
    scans, _ = group_files(path for path in names if path.name.lower().endswith((".nii", ".nii.gz")))
    found = [*scans, *([folder.name] if any(is_slice(path.name) for path in names) else [])]
    if len(found) > 1:
        raise MriError(f"several series: {folder} holds {first_few(found)}; give the folder of one")
    return next((Series(name, case_id, folder, files) for name, files in scans.items()),
                Series(folder.name, case_id, folder))  # fmt: skip


def open_named(folder: Path | str, name: str) -> Series:
    """Return the series of that name in a folder of series.

    Raises
    ------
    CohortError
        If it has no such series, or is a zip.
    """
    if not Path(folder).is_dir():
        raise CohortError(f"{folder} is a zip, from which no single series is read: unpack it")
    found = {series.source_id: series for series in find_series(folder)}
    if name not in found:
        raise CohortError(f"{folder} has no series '{name}'; it has {first_few(found)}")
    files = found[name].sequences
    place = Path(str(next(iter(files.values())))).parent if files else found[name].folder
    return Series(name, found[name].case_id, place, files)


def _case_of(name: str) -> str:
    return find_case(name) or name


def _are_copies(name: str, places: list[tuple[Place, list[str]]]) -> bool:
    """Check that folders of one name hold the same slices: the archive on Kaggle holds every patient twice."""
    contents = [[(file, _size_of(place / file)) for file in files] for place, files in places]
    if any(content != contents[0] for content in contents[1:]):
        raise CohortError(f"two MRI folders are both {name}: {places[0][0]} and {places[1][0]}; keep one")
    return True


def _size_of(file: Place) -> int:
    return file.root.getinfo(file.at).file_size if isinstance(file, zipfile.Path) else file.stat().st_size


def _walk(folder: Path) -> Iterator[tuple[Place, list[str]]]:
    """Yield each folder with the names of its files, those nearest to the top first."""
    if folder.is_dir():
        found = [
            (Path(place), sorted(name for name in names if not is_system_file(name)))
            for place, folders, names in os.walk(folder)
            if not folders.sort()
        ]
        yield from sorted(found, key=lambda entry: (len(entry[0].parts), entry[0]))
        return
    try:
        archive = zipfile.ZipFile(folder)
        entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, MemoryError, OverflowError) as error:
        raise MissingInputError(f"{folder} is neither a folder nor a whole zip; {WHERE_TO_GET_IT}") from error
    if len(entries) > MAX_FILES:
        raise MissingInputError(f"{folder} holds {len(entries)} entries, more than {MAX_FILES}")
    inside: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        _check_entry(entry.filename, folder)
        parent, _, name = entry.filename.rpartition("/")
        if name and not any(is_system_file(part) for part in entry.filename.split("/")):
            inside[parent].append(name)
    # Every folder is an entry of its own here; else `iterdir` would not find it.
    for parent in sorted(inside, key=lambda parent: (parent.count("/"), parent)):
        yield zipfile.Path(archive, f"{parent}/" if parent else ""), sorted(inside[parent])


def _check_entry(name: str, folder: Path) -> None:
    """Raise `MissingInputError` where an entry of a zip has no proper name, such as `/a`, `a//b` or `../a`."""
    parts = name.removesuffix("/").split("/")
    if "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise MissingInputError(f"{folder} has an entry without a proper name, {quote(name)}; pack it again")


def fingerprint(folder: Path | str, series: list[Series]) -> str:
    """Return a hash of the names, sizes and times of the files of a folder's or zip's series, which are not read."""
    top = Path(folder)
    files: list[Any] = [top]
    if top.is_dir():
        files = []
        for one in series:
            if one.sequences:
                files += sorted(one.sequences.values(), key=str)
            else:
                files += sorted(path for path in one.folder.iterdir() if path.suffix.lower() in (".tif", ".tiff"))
    content = hashlib.sha256()
    for path in files:
        state = path.stat()
        content.update(f"{path.relative_to(top)} {state.st_size} {state.st_mtime_ns}\n".encode())
    return content.hexdigest()
