"""Folds by patient or by site: every kind of case spread alike, every fold with patients to train, choose and test."""

import numpy as np
import pandas as pd

from mgi.console import log
from mgi.errors import CohortError
from mgi.names import first_few

ROLES = ("train", "val", "test")


def assign_roles(
    cases: pd.DataFrame, folds: int, val_fraction: float, seed: int, kind: str = "labelled"
) -> list[np.ndarray]:
    """Return each case's role in each fold.

    Each case is tested once. Folds, and val within the rest, are alike in the stratifying classes, in paired and in
    labelled cases, in labelled cases with tumour where not all have it, and in size. Groups stay together in both. In
    every fold train and val have a labelled patient with tumour, and test a labelled patient, wherever some deal of the
    groups allows it.

    Parameters
    ----------
    cases : DataFrame
        A case per row: stratum (str), group (what stays together), labelled, paired and tumour (bool).
    folds, val_fraction, seed
        As in the configuration.
    kind : str
        What the column `labelled` means, for messages.

    Returns
    -------
    list of str arrays, [cases]
        "train", "val" or "test", one array per fold.

    Raises
    ------
    CohortError
        If no deal of the groups gives every fold what it needs.
    """
    useful = (cases["labelled"] & cases["tumour"]).to_numpy()
    labelled = cases["labelled"].to_numpy()
    check_enough(cases, useful, folds, kind)
    shares = np.full(folds, 1 / folds)
    test_fold = _deal(cases, shares, np.random.default_rng(seed))
    groups = cases["group"].to_numpy()
    if not all(_serves_as_test(groups, labelled, useful, test_fold == fold) for fold in range(folds)):
        most = len(set(groups[useful])) - 2
        test_fold = _deal(cases, shares, np.random.default_rng(seed), labelled, useful, most)
    roles = [_assign_fold(cases, useful, test_fold == fold, val_fraction, (seed, fold)) for fold in range(folds)]
    bare = [fold for fold in range(folds) if not (useful & (test_fold == fold)).any()]
    if bare:
        log.warning("no test patient has tumour in %d folds: %s", len(bare), first_few(bare))
    return roles


def _serves_as_test(groups: np.ndarray, labelled: np.ndarray, useful: np.ndarray, test: np.ndarray) -> bool:
    """Return whether a fold tests a labelled patient and leaves two groups with tumour, to train and to choose on."""
    return bool((labelled & test).any() and len(set(groups[useful & ~test])) >= 2)


def check_enough(cases: pd.DataFrame, useful: np.ndarray, folds: int, kind: str = "labelled") -> None:
    """Check that some deal can give every fold a test, a val and a training patient.

    Parameters
    ----------
    cases : DataFrame
        A case per row: group (what stays together) and labelled (bool).
    useful : bool array [cases]
        Which are labelled and have tumour.
    folds : int
    kind : str
        What the column `labelled` means, for the message.

    Raises
    ------
    CohortError
        If none can.
    """
    by_patient = cases["group"].is_unique
    labelled = cases["group"][cases["labelled"]].nunique()
    with_tumour = cases["group"][useful].nunique()
    # Two groups must be left outside of every test fold, so one fold cannot test all but one.
    least = 4 if folds == 2 else 3
    more = "label more" if kind == "labelled" else "add patients with both images and expression"
    remedy = f"{more}, or ask for fewer folds" if by_patient else "ask for fewer folds, or split by patient"
    if labelled < max(folds, least):
        if by_patient:
            found, unit = f"{labelled} {kind} patients are", "patient"
        else:
            found, unit = f"the {kind} patients come from {labelled} sites,", "site"
        raise CohortError(
            f"{found} too few for {folds} folds{'' if by_patient else ' by site'} with a test, a val and a training "
            f"{unit} each: {max(folds, least)} are needed; {remedy}"
        )
    if with_tumour < least:
        unit = "labelled patients have" if by_patient else "sites have labelled patients with"
        raise CohortError(
            f"{with_tumour} {unit} tumour: too few for {folds} folds that train and choose on patients with tumour, "
            f"{least} are needed; {remedy}"
        )


def check_enough_paired(paired: int, labelled_alone: int, folds: int) -> None:
    """Check that some deal can give every fold two training patients with expression.

    Parameters
    ----------
    paired, labelled_alone : int
        Patients with images and expression, and patients that are labelled and have no expression, who may be a fold's
        val patient.
    folds : int

    Raises
    ------
    CohortError
        If none can.
    """
    # Folds whose val patient is a paired one: where nobody else is labelled, or the only other one is tested.
    strict = {0: folds, 1: 1}.get(labelled_alone, 0)
    least = next(
        count for count in range(2, 4 * folds)
        if strict * max(0, count - 3) + (folds - strict) * (count - 2) >= count
    )  # fmt: skip
    if paired < least:
        raise CohortError(
            f"{paired} patients with both images and expression are too few for {folds} folds that each learn from "
            f"two of them or more: {least} are needed; add some, or compare variants without genes and pre-training"
        )


def _assign_fold(
    cases: pd.DataFrame, useful: np.ndarray, test: np.ndarray, val_fraction: float, seed: tuple[int, int]
) -> np.ndarray:
    """Return each case's role in one fold; val is dealt from what is not tested."""
    rest, useful_rest = cases[~test], useful[~test]
    share = max(val_fraction, 1 / max(rest["labelled"].sum(), 1))
    shares = np.array([1 - share, share])
    in_val = _deal(rest, shares, np.random.default_rng(seed)) == 1
    if not (useful_rest & in_val).any() or not (useful_rest & ~in_val).any():
        in_val = _deal(rest, shares, np.random.default_rng(seed), useful_rest) == 1
    roles = np.full(len(cases), "train", dtype=object)
    roles[test] = "test"
    roles[np.flatnonzero(~test)[in_val]] = "val"
    return roles


def _deal(
    cases: pd.DataFrame,
    shares: np.ndarray,
    rng: np.random.Generator,
    spread: np.ndarray | None = None,
    scarce: np.ndarray | None = None,
    most: int = 0,
) -> np.ndarray:
    """Deal cases, whole groups at a time, to parts of the given shares so that all kinds of case are spread alike.

    Groups come largest first, then class by class in random order; each goes where it lessens most the chi-square
    distance of all counts (of cases, labelled cases, paired cases, classes, and their combinations) from their targets.

    Parameters
    ----------
    cases
        As in `assign_roles`.
    shares : float array, [parts]
        The share of each part; they add up to 1.
    rng
        Decides among groups of one size and kind.
    spread : bool array, [cases], optional
        Every part gets a group with such a case.
    scarce : bool array, [cases], optional
        No part gets more than `most` groups with such a case.

    Returns
    -------
    int array, [cases]
        The part of each case.
    """
    kinds, members = _count_kinds(cases)
    groups = pd.DataFrame({"group": cases["group"], "kind": kinds}).reset_index(drop=True)
    summary = groups.groupby("group", sort=True).agg(size=("kind", "size"), kind=("kind", "min"))
    summary["tie"] = rng.permutation(len(summary))
    summary = summary.sort_values(["size", "kind", "tie"], ascending=[False, True, True])
    target = shares[:, None] * members.sum(axis=0)
    missing = target.copy()
    part = np.empty(len(cases), np.int64)
    rows_of = groups.groupby("group").indices
    limits = _Limits(len(shares), summary.index, rows_of, spread, scarce, most)
    for name in summary.index:
        rows = np.asarray(rows_of[name])
        adds = members[rows].sum(axis=0)
        gain = np.round(((missing - adds / 2) / target) @ adds, 9)
        part[rows] = best = int(np.argmax(np.where(limits.allow(rows), gain, -np.inf)))
        limits.note(rows, best)
        missing[best] -= adds
    return part


def _count_kinds(cases: pd.DataFrame) -> tuple[pd.Series, np.ndarray]:
    """Return the kind of each case as text, and what it counts for, float [cases, features]."""
    kinds = cases["stratum"] + "/" + cases["labelled"].astype(str) + "/" + cases["paired"].astype(str)
    flags = ["labelled", "paired"]
    if not cases["tumour"][cases["labelled"]].all():
        kinds = kinds + "/" + cases["tumour"].astype(str)
        flags.append("tumour")
    features = [np.ones((len(cases), 1)), cases[flags].to_numpy(float)]
    features += [pd.get_dummies(column).to_numpy(float) for column in (cases["stratum"], kinds)]
    members = np.concatenate(features, axis=1)
    return kinds, members[:, members.any(axis=0)]


class _Limits:
    """Which parts may still get a group, so that each has one of `spread` and none more than `most` of `scarce`."""

    def __init__(
        self,
        parts: int,
        names: pd.Index,
        rows_of: dict,
        spread: np.ndarray | None,
        scarce: np.ndarray | None,
        most: int,
    ) -> None:
        self.spread, self.scarce, self.most = spread, scarce, most
        self.lacks = np.ones(parts, bool)
        self.scarce_groups = np.zeros(parts, int)
        self.left = 0 if spread is None else sum(bool(spread[rows_of[name]].any()) for name in names)

    def allow(self, rows: np.ndarray) -> np.ndarray:
        """Return which parts may get the group of these rows, bool [parts]."""
        allowed = np.ones(len(self.lacks), bool)
        if self.spread is not None and self.spread[rows].any() and self.lacks.sum() >= self.left:
            allowed &= self.lacks
        if self.scarce is not None and self.scarce[rows].any():
            allowed &= self.scarce_groups < self.most
        return allowed

    def note(self, rows: np.ndarray, part: int) -> None:
        """Record that a part got the group of these rows."""
        if self.spread is not None and self.spread[rows].any():
            self.left -= 1
            self.lacks[part] = False
        if self.scarce is not None and self.scarce[rows].any():
            self.scarce_groups[part] += 1
