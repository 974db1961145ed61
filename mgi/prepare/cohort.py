"""The cohort: what became of every slide, cases paired with expression, and folds by patient."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from mgi.acquire.manifest import EXPRESSION, SLIDES, read_manifest
from mgi.barcodes import Barcode
from mgi.config import SplitOptions
from mgi.console import log
from mgi.delimited import check_columns, check_unique
from mgi.errors import CohortError, ManifestError
from mgi.names import check_case_ids, first_few, quote
from mgi.prepare.annotations import check_annotations
from mgi.prepare.folds import assign_roles
from mgi.prepare.local import LocalSlide, tabulate_slides
from mgi.prepare.pairing import check_paired, describe_lacking, index_reduced, reduce_id
from mgi.tables import (
    SOURCES_SCHEMA,
    SPLITS_SCHEMA,
    read_any_table,
    read_table,
    source_of,
    write_csv,
    write_sources,
    write_table,
)

NEEDED_OF_SOURCES = ["source_id", "case_id", "status", "reason", "n_images", "labelled"]
# The class of a case whose cell is empty.
NO_CLASS = "nan"


def slide_batches(manifest: pd.DataFrame, per_job: int) -> dict[str, pd.DataFrame]:
    """Group the slides of a manifest, in its order, into batches of `per_job`, each named after its first slide.

    Returns
    -------
    dict of frames
        The manifest's rows with their source_id; the key is the name of the batch's image table.

    Raises
    ------
    ManifestError
        If two files are one slide.
    """
    slides = manifest[manifest["data_type"] == SLIDES].reset_index(drop=True)
    slides = slides.assign(source_id=[source_of(name) for name in slides["file_name"]])
    repeated = slides[slides["source_id"].duplicated(keep=False)]
    if len(repeated):
        one, other = repeated[repeated["source_id"] == repeated["source_id"].iloc[0]]["file_name"].iloc[:2]
        raise ManifestError(f"the manifest has two files of the slide {source_of(one)}: {one} and {other}; keep one")
    return group_slides(slides, per_job)


def group_slides(slides: pd.DataFrame, per_job: int) -> dict[str, pd.DataFrame]:
    """Group rows with a source_id, in their order, into batches of `per_job`, each named after its first slide."""
    starts = range(0, len(slides), per_job)
    return {slides["source_id"].iloc[start]: slides.iloc[start : start + per_job] for start in starts}


def collect_sources(
    images: Path | str,
    manifests: list[Path],
    per_job: int,
    annotations: Path | None,
    output: Path | str,
    own: list[LocalSlide] | None = None,
) -> None:
    """Collect the status tables of every batch of slides, of manifests or `own` ones, into `output`.

    Raises
    ------
    MissingInputError
        If a batch has no status table, or the annotations are not there.
    AnnotationError
        If an annotation belongs to no slide.
    ManifestError
        If two files are one slide.
    CohortError
        If a status table is not of the slides of its batch.
    """
    batches = group_slides(tabulate_slides(own), per_job) if own else {}
    for path in manifests:
        batches |= _check_disjoint(batches, slide_batches(read_manifest(path), per_job), path)
    if annotations is not None:
        check_annotations(annotations, (name for rows in batches.values() for name in rows["source_id"]))
    records = []
    for name, rows in batches.items():
        path = Path(images) / f"{name}.status.parquet"
        found = read_table(path, "status of slides", SOURCES_SCHEMA.names, CohortError).to_pylist()
        if sorted(record["source_id"] for record in found) != sorted(rows["source_id"]):
            raise CohortError(f"{path} is not of the {len(rows)} slides of its batch; delete it and tile them again")
        records += [_complete_record(record, rows) for record in found]
    lost = [record for record in records if record["status"] != "ok"]
    for record in lost:
        log.warning("%s is not used: %s: %s", record["source_id"], record["status"], record["reason"])
    log.info("%d of %d slides are used", len(records) - len(lost), len(records))
    _log_without_tumour(records)
    write_sources(records, output)


def _log_without_tumour(records: list[dict[str, Any]]) -> None:
    """Log which classes the annotations without tumour have: one may mean tumour under another name."""
    labelled = [record for record in records if record["labelled"]]
    bare = [record for record in labelled if record["has_tumour"] is False and record["classes"]]
    # Those of masks are values, of which 0 is background.
    classes = Counter(name for record in bare for name in json.loads(record["classes"]) if name != "0")
    if classes:
        said = ", ".join(f"{quote(name)} ({count} slides)" for name, count in classes.most_common(12))
        log.warning("%d of %d annotated slides have no tumour; their classes of outlines or values of masks are %s",
                    len(bare), len(labelled), said)  # fmt: skip


def split(
    sources: Path | str,
    expression: Path | str,
    output: Path | str,
    options: SplitOptions,
    manifests: list[Path] | None = None,
    flow: Path | None = None,
) -> None:
    """Pair images with expression and write every case's role in every fold; `assign_roles` says how.

    With `options.by` "site", the cases of a site stay together: the site that `options.site_table` names, else that of
    the sources, else the tissue-source site of a TCGA barcode. Several projects are spread alike, as classes are.
    Without `options.labelled`, every fold has patients with images and expression where it would have labelled ones.

    Raises
    ------
    MissingInputError
        If a table is not there.
    CohortError
        If a case id is written in two ways or duplicate in the expression table, no case is paired, the patients do
        not suffice for the folds, a table lacks cases or the column, or a case has no site to split by.
    """
    records = _read_sources(sources)
    expressed = _read_expressed_cases(expression)
    cases = _pair_cases(records, expressed, sources, expression)
    if options.site_table is not None and options.site_column is not None:
        cases["site"] = _look_up(cases.index, Path(options.site_table), options.site_column, "table of sites")
    cases["stratum"] = _find_strata(cases, options)
    cases["group"] = _find_groups(cases, options.by)
    dealt = cases if options.labelled else cases.assign(labelled=cases["paired"], tumour=cases["paired"])
    kind = "labelled" if options.labelled else "paired"
    roles = assign_roles(dealt, options.folds, options.val_fraction, options.seed, kind)
    columns = [name for name in SPLITS_SCHEMA.names if name not in ("fold", "role")]
    tables = [cases.reset_index()[columns].assign(fold=fold, role=role) for fold, role in enumerate(roles)]
    write_table(pa.Table.from_pandas(pd.concat(tables), SPLITS_SCHEMA, preserve_index=False), output)
    if flow is not None:
        pinned = [read_manifest(path) for path in manifests or []]
        write_csv(_count_flow(records, cases, expressed, pinned, options.labelled), flow)


def _check_disjoint(
    batches: dict[str, pd.DataFrame], more: dict[str, pd.DataFrame], manifest: Path
) -> dict[str, pd.DataFrame]:
    seen = {name for rows in batches.values() for name in rows["source_id"]}
    repeated = [name for rows in more.values() for name in rows["source_id"] if name in seen]
    if repeated:
        raise ManifestError(
            f"{len(repeated)} slides of {manifest} are also in another manifest: {first_few(repeated)}; keep each "
            "in one"
        )
    return more


def _complete_record(record: dict[str, Any], rows: pd.DataFrame) -> dict[str, Any]:
    """Fill in a slide's project, site and whether it has tumour, where its status does not say."""
    project = rows.set_index("source_id")["project"][record["source_id"]]
    has_tumour = record["has_tumour"]
    if has_tumour is None and record["labelled"] and record["tumour_px"] is not None:
        has_tumour = record["tumour_px"] > 0
    return record | {
        "project": record["project"] or (None if pd.isna(project) else project),
        "site": record["site"] or _find_tcga_site(record["case_id"]),
        "has_tumour": has_tumour,
    }


def _read_sources(path: Path | str) -> pd.DataFrame:
    """Read the columns of `SOURCES_SCHEMA`; those that say more than what became of a source may be missing."""
    table = read_table(path, "table of sources", error=CohortError)
    check_columns(table.column_names, NEEDED_OF_SOURCES, f"table of sources {path}", CohortError)
    records = table.to_pandas().reindex(columns=SOURCES_SCHEMA.names)
    _check_ids(records["case_id"].tolist(), f"table of sources {path}")
    return records.assign(
        n_images=records["n_images"].fillna(0), labelled=records["labelled"].fillna(False).astype(bool)
    )


def _read_expressed_cases(path: Path | str) -> list[str]:
    case_ids = read_table(path, "expression table", ["case_id"], CohortError)["case_id"].to_pylist()
    _check_ids(case_ids, f"expression table {path}")
    check_unique(case_ids, "case", path, CohortError)
    return case_ids


def _check_ids(case_ids: list[str], where: str) -> None:
    """Refuse ids of which two are one patient's, or one is no id."""
    trimmed = dict.fromkeys(case_ids) | dict(zip(case_ids, check_case_ids(case_ids, where, CohortError), strict=True))
    if len(set(trimmed.values())) < len(trimmed):
        spaced = [case_id for case_id, text in trimmed.items() if case_id != text]
        raise CohortError(
            f"{where} writes case ids in two ways, with spaces around them and without: {first_few(spaced)}"
        )


def _pair_cases(
    records: pd.DataFrame, expressed: list[str], sources: Path | str, expression: Path | str
) -> pd.DataFrame:
    """Return one row per case with an image, index case_id in order: paired, labelled, tumour, project, site."""
    usable = records[records["n_images"] > 0]
    if usable.empty:
        raise CohortError(f"no source in {sources} has an image: {_count_reasons(records) or 'the table is empty'}")
    by_case = usable.groupby("case_id", sort=True)
    labelled = by_case["labelled"].any()
    # A labelled source that does not say whether it has tumour may have some.
    tumour = usable["labelled"] & ~usable["has_tumour"].eq(False).fillna(False).astype(bool)
    cases = pd.DataFrame(
        {
            "paired": labelled.index.isin(expressed),
            "labelled": labelled.to_numpy(bool),
            "tumour": tumour.groupby(usable["case_id"]).any().to_numpy(bool),
            "project": by_case["project"].first().to_numpy(object),
            "site": by_case["site"].first().to_numpy(object),
        },
        index=labelled.index,
    )
    cases = cases.where(cases.notna(), None).astype({"paired": bool, "labelled": bool, "tumour": bool})
    cases["site"] = [site or _find_tcga_site(str(case_id)) for case_id, site in cases["site"].items()]
    check_paired(cases.index.tolist(), expressed, str(sources), str(expression))
    _log_unpaired(cases, expressed)
    return cases


def _find_tcga_site(case_id: str) -> str | None:
    barcode = Barcode.parse(case_id)
    return barcode.site if barcode else None


def _log_unpaired(cases: pd.DataFrame, expressed: list[str]) -> None:
    """Log the cases that fall out of one table or the other, and those whose ids look alike."""
    for sentence in describe_lacking(cases.index, expressed):
        log.warning("%s", sentence)
    if unused := sorted(set(expressed) - set(cases.index)):
        log.info("%d of %d cases with expression have no images: %s", len(unused), len(expressed), first_few(unused))


def _find_strata(cases: pd.DataFrame, options: SplitOptions) -> np.ndarray:
    """Return the class of each case: its project where there are several, and that of the stratifying column."""
    classes = np.full(len(cases), "all", dtype=object)
    if options.stratify_table is not None and options.stratify_column is not None:
        column = _look_up(cases.index, Path(options.stratify_table), options.stratify_column, "table to stratify by")
        classes = np.array([NO_CLASS if name is None else name for name in column], dtype=object)
        if len(set(classes)) > len(classes) / 2:
            log.warning("'%s' of %s has %d distinct values for %d cases, such as %s: hardly classes to share out",
                        options.stratify_column, options.stratify_table, len(set(classes)), len(classes),
                        first_few(classes))  # fmt: skip
    if cases["project"].nunique() > 1:
        classes = cases["project"].fillna(NO_CLASS).astype(str).to_numpy(object) + "/" + classes
    return classes


def _find_groups(cases: pd.DataFrame, by: str) -> pd.Series:
    """Return what stays together: each case, or the cases of a site."""
    if by == "patient":
        return cases.index.to_series()
    nowhere = cases.index[cases["site"].isna()].tolist()
    if nowhere:
        raise CohortError(
            f"{len(nowhere)} cases have no site to split by: {first_few(nowhere)}; sites come from TCGA barcodes, or "
            "from a table that names each case's site"
        )
    return pd.Series(check_case_ids(cases["site"], "the cohort", CohortError, "site"), cases.index)


def _look_up(case_ids: pd.Index, table: Path, column: str, what: str) -> np.ndarray:
    """Return each case's cell of a column as text, None where it is empty."""
    frame = read_any_table(table, what, ["case_id", column], CohortError).dropna(subset=["case_id"])
    classes = frame.drop_duplicates(["case_id", column]).set_index("case_id")[column]
    repeated = classes.index[classes.index.duplicated()].unique().tolist()
    if repeated:
        raise CohortError(
            f"{table} puts {len(repeated)} cases in several classes of '{column}': {first_few(repeated)}; keep one each"
        )
    missing = case_ids[~case_ids.isin(classes.index)].tolist()
    if missing:
        forms = index_reduced(classes.index)
        pairs = ((forms.get(reduce_id(case_id)), case_id) for case_id in missing)
        alike = next((f"; it has {quote(one)}, which looks like {quote(case_id)}" for one, case_id in pairs if one), "")
        raise CohortError(f"{table} lacks {len(missing)} cases that have images: {first_few(missing)}{alike}; add them")
    return classes.loc[case_ids].to_numpy(object)


def _count_flow(
    records: pd.DataFrame,
    cases: pd.DataFrame,
    expressed: list[str],
    manifests: list[pd.DataFrame],
    needs_masks: bool,
) -> pd.DataFrame:
    """Count the cases of each step, how many it lost of those it could have had, and why."""
    imaged, sourced = set(cases.index), set(records["case_id"])
    steps: list[tuple[str, int, int, str]] = []
    if manifests:
        manifest = pd.concat(manifests)
        everyone = set(manifest["case_id"].dropna())
        steps.append(("in the manifest", len(everyone), 0, ""))
        for kind, step in ((EXPRESSION, "with an expression file"), (SLIDES, "with a slide")):
            having = set(manifest.loc[manifest["data_type"] == kind, "case_id"].dropna())
            if having:
                steps.append((step, len(having), len(everyone - having), "no such file in the manifest"))
    unused = sorted(set(expressed) - imaged)
    steps.append(("in the expression table", len(expressed), len(unused), f"no usable image: {first_few(unused)}"))
    steps.append(("with an image source", len(sourced), 0, ""))
    steps.append(("with usable images", len(imaged), len(sourced - imaged), _count_reasons(records)))
    for flag, step, reason in (
        ("labelled", "with masks", "no annotation, kept for pre-training"),
        ("paired", "paired with expression", "no expression, kept for images"),
    ):
        if flag == "labelled" and not needs_masks:
            continue
        lacking = cases.index[~cases[flag]].tolist()
        steps.append((step, len(imaged) - len(lacking), len(lacking), f"{reason}: {first_few(lacking)}"))
    steps.append(("in the folds", len(imaged), 0, ""))
    table = pd.DataFrame(steps, columns=["step", "cases", "lost", "reason"])
    table.loc[(table["lost"] == 0) & (table["step"] != "with usable images"), "reason"] = ""
    return table


def _count_reasons(records: pd.DataFrame) -> str:
    """Count the sources that were not used by status and kind of reason, the part before its colon."""
    left_out = records[records["status"] != "ok"]
    kinds = left_out["status"] + ": " + left_out["reason"].fillna("unknown").str.split(":").str[0]
    return "; ".join(f"{count} {kind}" for kind, count in sorted(kinds.value_counts().items()))
