"""What a trained model makes of genes: its test patients segmented with their own profile, others' and none."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from mgi.config import EvaluateOptions
from mgi.console import log, progress
from mgi.errors import CheckpointError, CohortError
from mgi.evaluate.masks import dice
from mgi.evaluate.segmentation import count_untiled
from mgi.evaluate.statistics import DECIMALS, estimate_mean, p_value_of_sign_flips, resample_patients
from mgi.inference import load_segmenter, move_to_device, read_profiles_for
from mgi.model.ensemble import Ensemble
from mgi.model.segmenter import Segmenter
from mgi.tables import write_csv
from mgi.train.data import iterate_images, read_case_labels, read_roles
from mgi.train.device import Place
from mgi.train.profiles import Profiles
from mgi.train.validation import count_pixels

OWN, NONE = "own", "none"
# Other patients whose profile each patient is given, for each kind of them.
DONORS = 3
COLUMNS = [
    "profile", "n_patients", "dice", "low", "high", "difference", "difference_low", "difference_high", "p_value",
    "donors",
]  # fmt: skip


def swap_genes(
    folders: list[Path],
    sources: Path,
    expression: Path,
    splits: Path,
    output: Path,
    options: EvaluateOptions,
    device: str | None = None,
) -> None:
    """Segment the test patients of each fold's model with other profiles than their own, and write a table.

    Profiles: `own`; `none`; `other`, of another test patient of the fold; `same-class` and `other-class`, of one of the
    same class of the splits or of another, where they have several; `same-site` and `other-site` alike. Of each kind up
    to three patients are drawn, and a patient's Dice is the mean over them. Only patients with a profile of their own
    take part.

    Columns: profile, n_patients (for whom there is such a profile), dice, low, high, difference (`own` minus this, over
    these patients), difference_low, difference_high, p_value (two-sided, sign flips), donors (drawn for a patient, the
    mean). Intervals are 95%, by the paired bootstrap over patients, and none below 6 patients.

    Parameters
    ----------
    folders
        Folders of one variant's fine-tuned models, each of another fold.
    sources, expression, splits
        Tables of the cohort.
    output
        CSV to write.
    options
        Resamples, and the seed of these and of the draws.
    device
        `cpu`, `cuda`, or None for what this machine has.

    Raises
    ------
    CheckpointError
        If a model is none of a fold, or was trained without genes.
    CohortError
        If a fold has fewer than two labelled test patients with a profile.
    """
    strata, sites = read_case_labels(splits, "stratum"), read_case_labels(splits, "site")
    rows = []
    for folder in folders:
        model = load_segmenter(folder)
        if isinstance(model, Ensemble):
            raise CheckpointError(
                f"{folder} is a variant's folder: give those of its folds, such as {folder / 'fold0'}"
            )
        if model.gene_encoder is None:
            raise CheckpointError(f"the model in {folder} was trained without genes: there are none to swap")
        test = read_roles(splits, model.description.fold)["test"]
        if not test:
            raise CheckpointError(f"the model in {folder} was trained on every patient: give those of folds")
        profiles = read_profiles_for(model, expression, folder, set(test))
        model, place = move_to_device(model, device)
        rows += _measure_fold(model, folder, sources, profiles, test, (strata, sites), options.seed, place)
    table = pd.DataFrame(rows, columns=["case_id", "profile", "dice", "donors"])
    if table.duplicated(["case_id", "profile"]).any():
        raise CheckpointError("two of the models were tested on the same patients: give one of each fold")
    write_csv(_compare(table, options), output, f"%.{DECIMALS}f")


def _measure_fold(
    model: Segmenter,
    folder: Path,
    sources: Path,
    profiles: Profiles,
    test: list[str],
    classifications: tuple[Mapping[str, str], Mapping[str, str]],
    seed: int,
    place: Place,
) -> list[tuple[str, str, float, int]]:
    """Return case, profile, mean Dice and number of donors for each kind of profile that a case can be given."""
    labelled = {case for part in iterate_images(sources, set(test), labelled=True) for case in part.frame.case_id}
    cases = sorted(case for case in test if case in profiles.row and case in labelled)
    if len(cases) < 2:
        raise CohortError(
            f"fold {model.description.fold} has {len(cases)} labelled test patients with a profile; swapping needs two"
        )
    log.info("%s: %d test patients with a profile", folder, len(cases))
    drawn = {case: draw_donors(case, cases, *classifications, seed) for case in cases}
    # What each case is given, one after the other; every profile once, however many kinds of donors it stands for.
    given = {
        case: list(dict.fromkeys(donor for own in kinds.values() for donor in own)) for case, kinds in drawn.items()
    }
    scores: dict[tuple[str, str | None], float] = {}
    for turn in progress(range(max(map(len, given.values()))), "profiles of each patient"):
        donors = {case: donors[turn] for case, donors in given.items() if turn < len(donors)}
        row = {case: profiles.row[donor] for case, donor in donors.items() if donor is not None}
        measured = _measure_dice(model, sources, set(donors), replace(profiles, row=row), place)
        scores |= {(case, donors[case]): value for case, value in measured.items()}
    return [
        (case, kind, float(np.mean([scores[case, donor] for donor in own])), len(own))
        for case, kinds in drawn.items()
        for kind, own in kinds.items()
    ]


def draw_donors(
    case: str, cases: list[str], strata: Mapping[str, str], sites: Mapping[str, str], seed: int
) -> dict[str, list[str | None]]:
    """Return for each kind of profile the cases whose profile `case` is given, None for no profile.

    Parameters
    ----------
    case : str
    cases : list of str
        Those that take part.
    strata, sites : mapping of str to str
        The class and the site of each case that has one; of a single class or site there are no kinds.
    seed : int
    """
    # By the case too, so that cases do not all draw the same others.
    random = np.random.default_rng([seed, *case.encode()])
    others = [other for other in random.permutation(cases).tolist() if other != case]
    kinds: dict[str, list[str | None]] = {OWN: [case], NONE: [None], "other": list(others[:DONORS])}
    for name, labels in (("class", strata), ("site", sites)):
        if case not in labels or len({labels[one] for one in cases if one in labels}) < 2:
            continue
        same = [other for other in others if labels.get(other) == labels[case]]
        different = [other for other in others if other in labels and labels[other] != labels[case]]
        kinds |= {f"same-{name}": list(same[:DONORS]), f"other-{name}": list(different[:DONORS])}
    return {kind: donors for kind, donors in kinds.items() if donors}


def _measure_dice(
    model: Segmenter, sources: Path, cases: set[str], profiles: Profiles, place: Place
) -> dict[str, float]:
    """Return the Dice of each case over all of its images, as `summarise` has it."""
    counts, frames = [], []
    for images in iterate_images(sources, cases, labelled=True):
        counts.append(count_pixels(model, images, profiles, (model.description.decision,), place)[0][:, 0])
        frames.append(images.frame[["case_id", "source_id"]])
    frame = pd.concat(frames, ignore_index=True)
    overlap, total = np.concatenate(counts, axis=1)
    # All that is wrong, false positives and false negatives.
    sums = frame.assign(tp=overlap, wrong=total - 2 * overlap).groupby("case_id")[["tp", "wrong"]].sum()
    found = dice(sums["tp"], sums["wrong"], count_untiled(frame, sources)[sums.index])
    return dict(zip(sums.index.tolist(), found.tolist(), strict=True))


def _compare(table: pd.DataFrame, options: EvaluateOptions) -> pd.DataFrame:
    """Return a row for each kind of profile, in the order in which they are first found."""
    scores = table.pivot(index="case_id", columns="profile", values="dice").sort_index()
    donors = table.groupby("profile")["donors"].mean()
    resamples = resample_patients(len(scores), options.bootstrap_samples, options.seed)
    rows = []
    for kind in table["profile"].unique():
        own = estimate_mean(scores[kind].to_numpy(), resamples)
        row = {"profile": kind, "n_patients": own["n"], "dice": own["mean"], "low": own["low"], "high": own["high"]}
        if kind != OWN:
            difference = (scores[OWN] - scores[kind]).to_numpy()
            paired = estimate_mean(difference, resamples)
            row |= {
                "difference": paired["mean"],
                "difference_low": paired["low"],
                "difference_high": paired["high"],
                "p_value": p_value_of_sign_flips(difference[~np.isnan(difference)], options.seed),
                "donors": donors[kind],
            }
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)
