"""The cohort: what became of every slide, cases paired with expression, and folds by patient."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from mgi.acquire.manifest import EXPRESSION, SLIDES, read_manifest
from mgi.console import log
from mgi.delimited import check_unique
from mgi.errors import CohortError, ManifestError
from mgi.files import atomic_write, require_file
from mgi.prepare.annotations import check_annotations
from mgi.tables import SOURCES_SCHEMA, SPLITS_SCHEMA, read_table, source_of, write_sources, write_table

SITE = slice(5, 7)


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
    twice = slides[slides["source_id"].duplicated(keep=False)]
    if len(twice):
        one, other = twice[twice["source_id"] == twice["source_id"].iloc[0]]["file_name"].iloc[:2]
        raise ManifestError(f"the manifest has two files of the slide {source_of(one)}: {one} and {other}; keep one")
    starts = range(0, len(slides), per_job)
    return {slides["source_id"][start]: slides.iloc[start : start + per_job] for start in starts}


def collect_sources(
    images: Path | str, manifests: list[Path], per_job: int, annotations: Path | None, output: Path | str
) -> None:
    """Collect the status tables of every batch of the manifests' slides into `output`.

    Raises
    ------
    MissingInputError
        If a batch has no status table, or the annotations are not there.
    AnnotationError
        If an annotation belongs to no slide of the manifests.
    ManifestError
        If two files are one slide.
    CohortError
        If a status table is not of the slides of its batch.
    """
    batches: dict[str, pd.DataFrame] = {}
    for path in manifests:
        batches |= _disjoint(batches, slide_batches(read_manifest(path), per_job), path)
    if annotations is not None:
        check_annotations(annotations, (name for rows in batches.values() for name in rows["source_id"]))
    records = []
    for name, rows in batches.items():
        path = Path(images) / f"{name}.status.parquet"
        found = read_table(path, "status of slides", SOURCES_SCHEMA.names, CohortError).to_pylist()
        if sorted(record["source_id"] for record in found) != sorted(rows["source_id"]):
            raise CohortError(f"{path} is not of the {len(rows)} slides of its batch; delete it and tile them again")
        records += found
    lost = [record for record in records if record["status"] != "ok"]
    for record in lost:
        log.warning("%s is not used: %s: %s", record["source_id"], record["status"], record["reason"])
    log.info("%d of %d slides are used", len(records) - len(lost), len(records))
    write_sources(records, output)


def split(
    sources: Path | str,
    expression: Path | str,
    output: Path | str,
    *,
    folds: int,
    val_fraction: float,
    by: str = "patient",
    stratify_table: Path | None = None,
    stratify_column: str | None = None,
    manifests: list[Path] | None = None,
    flow: Path | None = None,
    seed: int = 0,
) -> None:
    """Pair images with expression and write every case's role in every fold.

    Each case is tested once. Folds, and val within the rest, are alike in the stratifying classes, in paired and in
    labelled cases, and in size. With `by` "site", the cases of a tissue-source site stay together in both.

    Raises
    ------
    MissingInputError
        If a table is not there.
    CohortError
        If a case comes twice in the expression table, no case is paired, the labelled cases do not suffice for the
        folds, the stratifying table lacks cases or the column, or `by` is unknown.
    """
    if by not in ("patient", "site"):
        raise CohortError(f"cases are split by 'patient' or by 'site', not by '{by}'")
    records = read_table(sources, "table of sources", SOURCES_SCHEMA.names, CohortError).to_pandas()
    expressed = _expressed_cases(expression)
    cases = _cases_with_images(records, expressed, sources, expression)
    cases["stratum"] = _strata(cases.index, stratify_table, stratify_column)
    cases["group"] = cases["site"] if by == "site" else cases.index
    _check_enough(cases, folds)
    test_fold = _dealt(cases, np.full(folds, 1 / folds), np.random.default_rng(seed))
    roles = [_roles(cases, test_fold, fold, val_fraction, seed) for fold in range(folds)]
    columns = [name for name in SPLITS_SCHEMA.names if name not in ("fold", "role")]
    tables = [cases.reset_index()[columns].assign(fold=fold, role=role) for fold, role in enumerate(roles)]
    write_table(pa.Table.from_pandas(pd.concat(tables), SPLITS_SCHEMA, preserve_index=False), output)
    if flow is not None:
        steps = _flow(records, cases, expressed, [read_manifest(path) for path in manifests or []])
        with atomic_write(flow) as aside:
            steps.to_csv(aside, index=False)


def _disjoint(
    batches: dict[str, pd.DataFrame], more: dict[str, pd.DataFrame], manifest: Path
) -> dict[str, pd.DataFrame]:
    seen = {name for rows in batches.values() for name in rows["source_id"]}
    twice = [name for rows in more.values() for name in rows["source_id"] if name in seen]
    if twice:
        raise ManifestError(f"the slide {twice[0]} of {manifest} is also in another manifest; keep it in one")
    return more


def _expressed_cases(expression: Path | str) -> list[str]:
    case_ids = read_table(expression, "expression table", ["case_id"], CohortError)["case_id"].to_pylist()
    check_unique(case_ids, "case", expression, CohortError)
    return case_ids


def _cases_with_images(
    records: pd.DataFrame, expressed: list[str], sources: Path | str, expression: Path | str
) -> pd.DataFrame:
    """Make one row per case with an image, index case_id in order: paired, labelled, site."""
    usable = records[records["n_images"] > 0]
    if usable.empty:
        raise CohortError(f"no source in {sources} has an image: {_reasons(records) or 'the table is empty'}")
    labelled = usable.groupby("case_id")["labelled"].any().sort_index()
    paired = labelled.index.isin(expressed)
    if not paired.any():
        raise CohortError(
            f"no case has both images and expression: {sources} has cases such as {labelled.index[0]}, {expression} "
            f"such as {expressed[0] if expressed else '(none)'}; both must use 12-character barcodes of one cohort"
        )
    site = [case_id[SITE] for case_id in labelled.index]
    project = usable.groupby("case_id")["project"].first().sort_index().to_numpy(object)
    columns = {"paired": paired, "labelled": labelled.to_numpy(bool), "project": project, "site": site}
    return pd.DataFrame(columns, index=labelled.index)


def _strata(case_ids: pd.Index, table: Path | None, column: str | None) -> np.ndarray:
    """Look up the class of each case in the stratifying column, as text; without a table, one class for all."""
    if table is None or column is None:
        return np.full(len(case_ids), "all", dtype=object)
    table = require_file(table, "table to stratify by")
    try:
        frame = pd.read_parquet(table) if table.suffix == ".parquet" else pd.read_csv(table)
    except ValueError as problem:
        raise CohortError(f"{table} is not a Parquet or CSV table: {problem}") from None
    for name in ("case_id", column):
        if name not in frame.columns:
            raise CohortError(f"{table} lacks the column '{name}'; it has {', '.join(map(str, frame.columns))}")
    classes = frame.drop_duplicates(["case_id", column]).set_index("case_id")[column]
    twice = classes.index[classes.index.duplicated()]
    if len(twice):
        raise CohortError(f"{table} puts the case {twice[0]} in two classes of '{column}'; keep one")
    missing = case_ids[~case_ids.isin(classes.index)]
    if len(missing):
        raise CohortError(f"{table} lacks {len(missing)} cases that have images, such as {missing[0]}; add them")
    return classes.loc[case_ids].astype(str).to_numpy(object)


def _check_enough(cases: pd.DataFrame, folds: int) -> None:
    labelled = cases[cases["labelled"]]
    if len(labelled) < max(folds, 3):
        raise CohortError(
            f"{len(labelled)} labelled patients are too few for {folds} folds with a test, a val and a training "
            f"patient each; label more, or lower split.folds (at least 3 patients, and one per fold)"
        )
    groups = labelled["group"].nunique()
    if groups < max(folds, 3):
        raise CohortError(
            f"the labelled patients come from {groups} sites, too few for {folds} folds by site; "
            "lower split.folds or split by patient"
        )


def _dealt(cases: pd.DataFrame, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Deal cases, whole groups at a time, to parts of the given shares so that all kinds of case are spread alike.

    Groups come largest first, then class by class in random order; each goes where it lessens most the chi-square
    distance of all counts (of cases, labelled cases, paired cases, classes, and their combinations) from their targets.

    Returns
    -------
    int array [cases]
        The part of each case.
    """
    kinds = cases["stratum"] + "/" + cases["labelled"].astype(str) + "/" + cases["paired"].astype(str)
    features = [np.ones((len(cases), 1)), cases[["labelled", "paired"]].to_numpy(float)]
    features += [pd.get_dummies(column).to_numpy(float) for column in (cases["stratum"], kinds)]
    members = np.concatenate(features, axis=1)
    groups = pd.DataFrame({"group": cases["group"], "kind": kinds}).reset_index(drop=True)
    summary = groups.groupby("group", sort=True).agg(size=("kind", "size"), kind=("kind", "min"))
    summary["tie"] = rng.permutation(len(summary))
    summary = summary.sort_values(["size", "kind", "tie"], ascending=[False, True, True])
    members = members[:, members.any(axis=0)]
    target = shares[:, None] * members.sum(axis=0)
    missing = target.copy()
    part = np.empty(len(cases), np.int64)
    for name in summary.index:
        chosen = np.flatnonzero(groups["group"] == name)
        adds = members[chosen].sum(axis=0)
        gain = ((missing - adds / 2) / target) @ adds
        part[chosen] = best = int(np.argmax(np.round(gain, 9)))
        missing[best] -= adds
    return part


def _roles(cases: pd.DataFrame, test_fold: np.ndarray, fold: int, val_fraction: float, seed: int) -> np.ndarray:
    """Give each case its role in one fold; val is dealt from what is not tested, at least one labelled case."""
    test = test_fold == fold
    rest = cases[~test]
    share = max(val_fraction, 1 / max(rest["labelled"].sum(), 1))
    in_val = _dealt(rest, np.array([1 - share, share]), np.random.default_rng([seed, fold])) == 1
    roles = np.full(len(cases), "train", dtype=object)
    roles[test] = "test"
    roles[np.flatnonzero(~test)[in_val]] = "val"
    for role in ("train", "val", "test"):
        if not (cases["labelled"] & (roles == role)).any():
            raise CohortError(
                f"fold {fold} has no labelled patient for {role}; lower split.folds, change split.val_fraction "
                f"({val_fraction:g}) or split by patient"
            )
    return roles


def _flow(
    records: pd.DataFrame, cases: pd.DataFrame, expressed: list[str], manifests: list[pd.DataFrame]
) -> pd.DataFrame:
    """Tell how many cases each step has, how many it lost of those it could have had, and why."""
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
    steps.append(("in the expression table", len(expressed), len(set(expressed) - imaged), "no usable image"))
    steps.append(("with an image source", len(sourced), 0, ""))
    steps.append(("with usable images", len(imaged), len(sourced - imaged), _reasons(records)))
    unlabelled = int((~cases["labelled"]).sum())
    steps.append(("with masks", len(imaged) - unlabelled, unlabelled, "no annotation: kept for pre-training"))
    unpaired = int((~cases["paired"]).sum())
    steps.append(("paired with expression", len(imaged) - unpaired, unpaired, "no expression: kept for images"))
    steps.append(("in the folds", len(imaged), 0, ""))
    table = pd.DataFrame(steps, columns=["step", "cases", "lost", "reason"])
    table.loc[(table["lost"] == 0) & (table["step"] != "with usable images"), "reason"] = ""
    return table


def _reasons(records: pd.DataFrame) -> str:
    """Count the sources that were not used by status and kind of reason, the part before its colon."""
    left_out = records[records["status"] != "ok"]
    kinds = left_out["status"] + ": " + left_out["reason"].fillna("unknown").str.split(":").str[0]
    return "; ".join(f"{count} {kind}" for kind, count in sorted(kinds.value_counts().items()))
