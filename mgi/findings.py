"""What the doctor finds in a cohort's own images and pinned files: opened, and neither imported nor fetched."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mgi.check import MANIFEST
from mgi.config import Config, Slides
from mgi.errors import MGIError
from mgi.files import is_system_file
from mgi.names import first_few

if TYPE_CHECKING:
    from mgi.plan import Plan

TUMOUR_KEYS = "slides.tumour_classes or slides.mask_values"
PASS, WARN, FAIL = "PASS", "WARN", "FAIL"


@dataclass(frozen=True)
class Finding:
    """One thing looked at: PASS, WARN (something optional is missing) or FAIL, what was found, and the fix if any."""

    state: str
    subject: str
    found: str
    fix: str = ""


def examine_slides(config: Config, plan: "Plan") -> Iterator[Finding]:
    """Count the user's own slides, and open each and its annotation to see whether it will be tiled."""
    slides, own = config.slides, plan.own_slides
    if slides is not None and not own and config.simulate is None:
        yield from _examine_mirrored(config, slides, plan)
    if slides is None or not own:
        return
    from mgi.prepare.annotations import NAMED_SO
    from mgi.prepare.slides import inspect_slides

    cases = len({slide.case_id for slide in own})
    yield Finding(PASS, "slides", f"{len(own)} slides of {cases} cases; {len(plan.annotations)} have an annotation")
    bare = [slide.source_id for slide in own if slide.source_id not in plan.annotations]
    if bare and plan.annotations:
        found = f"{len(bare)} of {len(own)} have no annotation, pre-training alone uses them: {first_few(bare)}"
        if others := _list_others(slides.annotations, set(plan.annotations.values())):
            found += f"; {len(others)} files in {slides.annotations} are named after no slide: {first_few(others)}"
        yield Finding(WARN, "slides", found, NAMED_SO)
    inspected = inspect_slides(own, slides, plan.annotations)
    yield from _describe_inspected(len(own), "slides", TUMOUR_KEYS, *inspected)
    yield from _check_labelled(plan, "slides", *inspected)


def _examine_mirrored(config: Config, slides: Slides, plan: "Plan") -> Iterator[Finding]:
    """Open the slides of the GDC that a folder has whole already, where the cohort is pinned."""
    import pandas as pd

    from mgi.acquire.sources import Folder
    from mgi.prepare.local import LocalSlide
    from mgi.prepare.slides import inspect_slides

    if config.gdc is None or len(plan.pinned) < len(plan.projects):
        return
    folders = [Folder(Path(address)) for address in config.gdc.mirrors if Path(address).is_dir()]
    found: dict[str, LocalSlide] = {}
    for row in (row for batch in plan.batches.values() for row in batch.rows.to_dict("records")):
        name, size = row["file_name"], None if pd.isna(row["size"]) else int(row["size"])
        folder = next((one for one in folders if one.has_whole(row["file_id"], name, size)), None)
        if folder is not None and (path := folder.find(row["file_id"], name)) is not None:
            found[row["source_id"]] = LocalSlide(row["case_id"], row["source_id"], path)
    if found:
        count = len(found.keys() & plan.annotations)
        yield Finding(PASS, "slides", f"{len(found)} pinned slides are in a folder; {count} have an annotation")
        inspected = inspect_slides(list(found.values()), slides, plan.annotations)
        yield from _describe_inspected(len(found), "slides", TUMOUR_KEYS, *inspected)


def _list_others(folder: str | None, used: set[Path]) -> list[str]:
    """Return the names of the files in a folder of annotations that are no slide's."""
    if folder is None:
        return []
    return sorted(path.name for path in Path(folder).iterdir() if path not in used and not is_system_file(path.name))


def examine_series(config: Config, plan: "Plan") -> Iterator[Finding]:
    """Look at the files of every MRI series to see whether it will be imported."""
    if config.mri is None:
        return
    from mgi.prepare.mri import inspect_series

    inspected = inspect_series(plan.series, config.mri)
    yield from _describe_inspected(len(plan.series), "mri.folder", "mri.labels", *inspected)
    yield from _check_labelled(plan, "mri.folder", *inspected)


def _describe_inspected(
    count: int, subject: str, key: str, unusable: dict[str, str], without_tumour: dict[str, str]
) -> Iterator[Finding]:
    """Describe images that will be left out or have no tumour; `key` says in the configuration what tumour is."""
    for reason, names in sorted(_group_by_kind(unusable).items()):
        state = FAIL if len(unusable) == count else WARN
        yield Finding(state, subject, f"{len(names)} of {count} will be left out, {first_few(names)}: {reason}")
    if without_tumour:
        names = list(without_tumour)
        seen = without_tumour[names[0]] or "nothing"
        found = f"{len(names)} of {count} are annotated without tumour, {first_few(names)}: the first has {seen}"
        yield Finding(WARN, subject, found, f"correct {key} if that is not so")


def _check_labelled(
    plan: "Plan", subject: str, unusable: dict[str, str], without_tumour: dict[str, str]
) -> Iterator[Finding]:
    """Refuse own images of which too few are left for the folds, where some will not be used or have no tumour."""
    if without_tumour or 0 < len(unusable) < len(plan.imaged):
        try:
            plan.check_labelled(unusable, without_tumour)
        except MGIError as error:
            yield Finding(FAIL, subject, str(error))


def examine_features(config: Config, plan: "Plan") -> Iterator[Finding]:
    """Count the files of features, and read the header of each to see whether it will be imported."""
    if config.features is None:
        return
    from mgi.prepare.features import describe_unusable

    cases = len({slide.case_id for slide in plan.own_slides})
    yield Finding(PASS, "features", f"{len(plan.own_slides)} files of features, of {cases} cases")
    try:
        yield from (
            Finding(WARN, "features", sentence) for sentence in describe_unusable(plan.own_slides, plan.unusable)
        )
    except MGIError as error:
        yield Finding(FAIL, "features", str(error))


def _group_by_kind(reasons: dict[str, str]) -> dict[str, list[str]]:
    """Group slides whose reasons are of one kind, the part before the colon, under the first's reason."""
    kinds: dict[str, str] = {}
    groups: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        groups.setdefault(kinds.setdefault(reason.split(":")[0], reason), []).append(name)
    return groups


def examine_pinned(config: Config) -> tuple[int | None, list[Finding]]:
    """Count the pinned files that the configuration reads, and those that each mirror on this machine has whole.

    Returns the number that no such mirror has, None where a project is not pinned, and the findings.
    """
    import pandas as pd

    from mgi.acquire.manifest import ANNOTATION, KINDS, read_manifest
    from mgi.acquire.sources import Folder

    assert config.gdc is not None
    findings, tables = [], []
    for project in config.gdc.projects:
        path = Path(MANIFEST.format(project=project))
        if not path.exists():
            findings.append(Finding(PASS, "gdc.projects", f"{project} is not pinned yet: the first run pins it"))
            continue
        try:
            tables.append(read_manifest(path))
        except MGIError as error:
            findings.append(Finding(FAIL, "gdc.projects", str(error)))
            continue
        cases = tables[-1]["case_id"].nunique()
        findings.append(Finding(PASS, "gdc.projects", f"{path} pins {len(tables[-1])} files of {cases} cases"))
    options = config.query_options()
    kinds = {KINDS[name] for name in options["data_types"]}
    if "annotation_file_id" in options:
        kinds.add(ANNOTATION)
    rows = [row for table in tables for row in table.to_dict("records") if row["data_type"] in kinds]
    files = {(row["file_id"], row["file_name"]): None if pd.isna(row["size"]) else int(row["size"]) for row in rows}
    lacking = set(files)
    for address in config.gdc.mirrors:
        if "://" in address:
            continue
        if not Path(address).is_dir():
            findings.append(Finding(FAIL, "gdc.mirrors", f"{address} does not exist", "create it or correct the key"))
        elif files:
            there = {file for file, size in files.items() if Folder(Path(address)).has_whole(*file, size)}
            lacking -= there
            state = PASS if there else WARN
            findings.append(Finding(state, "gdc.mirrors", f"{address} has {len(there)} of {len(files)} pinned files"))
    if 0 < len(lacking) < len(files):
        names = first_few(sorted(name for _, name in lacking))
        found = f"{len(lacking)} of {len(files)} pinned files are in no folder, or in part, and are fetched: {names}"
        findings.append(Finding(WARN, "gdc.mirrors", found))
    return (len(lacking) if len(tables) == len(config.gdc.projects) else None), findings
