"""Variants compared patient by patient."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
import pyarrow as pa

from mgi.errors import CohortError
from mgi.evaluate.statistics import (
    DECIMALS,
    adjust_holm,
    detectable_difference,
    estimate_mean,
    p_value_of_sign_flips,
    resample_patients,
    round_estimate,
)
from mgi.tables import read_table, write_csv, write_table

COLUMNS = (
    "variant", "n_patients", "dice", "low", "high", "difference", "difference_low", "difference_high", "p_value",
    "p_holm", "primary", "detectable", "n_paired",
)  # fmt: skip

PAIR_COLUMNS = ["first", "second", "n_paired", "difference", "low", "high", "p_value", "p_holm"]
SEED_COLUMNS = ["variant", "seeds", "n_patients", "dice", "sd", "low", "high"]
PROJECT_COLUMNS = ["project", "variant", "n_patients", "dice", "low", "high"]


def compare(
    folder: Path,
    variants: list[str],
    output: Path,
    reference: str = "mgi",
    bootstrap_samples: int = 2000,
    seed: int = 0,
    splits: Path | None = None,
    replicates: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> None:
    """Compare variants patient by patient.

    Reads {folder}/{variant}/per_patient.parquet and per_image.parquet, as `summarise` wrote them, and writes into
    `output` the same two tables with a first column `variant`, and comparison.csv: for each variant its mean Dice with
    a 95% interval, and the mean difference `reference` - variant over the patients that both have, with the interval
    of the paired bootstrap and the two-sided p-value of the sign-flip permutation test of that mean. One set of
    resamples serves all variants. The reference's own row has no difference, and with fewer than 6 patients there are
    neither intervals nor p-values.

    The first variant that is neither the reference nor a repetition is the primary contrast (`primary`), whose p-value
    stands for itself; `p_holm` holds the others' p-values adjusted for one another (Holm, 1979). `detectable` is the
    smallest mean difference that a paired t-test of these patients would detect with 80% power at the 5% level.

    pairs.csv holds the mean difference first - second of every two of the other variants, repetitions left out, such as
    of shuffled genes and none: controls that differ are not neutral. Its `p_holm` is adjusted over these pairs.

    With `splits`, splits.parquet, projects.csv holds the mean Dice of each variant over the patients of each project.
    `replicates` names variants that others repeat with another seed; seeds.csv holds of each the mean and the standard
    deviation over the seeds of the mean Dice, with an interval that resamples the seeds and then the patients.

    Raises
    ------
    CohortError
        If `reference` is not among `variants`, or shares no patient with one of them.
    MissingInputError
        If a variant was not summarised.
    """
    if reference not in variants:
        raise CohortError(f"the reference '{reference}' is not among the variants compared: {', '.join(variants)}")
    tables = {name: _read_tables(Path(folder), variants, name) for name in ("per_patient", "per_image")}
    patients = tables["per_patient"].select(["variant", "case_id", "dice"]).to_pandas()
    scores = patients.pivot(index="case_id", columns="variant", values="dice").sort_index()[list(variants)]
    resamples = resample_patients(len(scores), bootstrap_samples, seed)
    rows = pd.DataFrame([_compare_variant(scores, variant, reference, resamples, seed) for variant in variants])
    repeated = [name for names in replicates.values() for name in names]
    tested = ~rows["variant"].isin([reference, *repeated])
    rows["primary"] = rows.index == rows.index[tested][0] if tested.any() else False
    rows["p_holm"] = adjust_holm(rows["p_value"].where(tested & ~rows["primary"]).to_numpy(float))

    output = Path(output)
    for name, table in tables.items():
        write_table(table, output / f"{name}.parquet")
    write_csv(rows[list(COLUMNS)], output / "comparison.csv", f"%.{DECIMALS}f")
    others = rows["variant"][tested].tolist()
    write_csv(_compare_pairs(scores[others], resamples, seed), output / "pairs.csv", f"%.{DECIMALS}f")
    runs = {first: [first, *others] for first, others in replicates.items()}
    seeds = [_summarise_seeds(first, scores[names], resamples, seed) for first, names in runs.items()]
    write_csv(pd.DataFrame(seeds, columns=SEED_COLUMNS), output / "seeds.csv", f"%.{DECIMALS}f")
    if splits is not None:
        by_project = _compare_projects(scores, splits, bootstrap_samples, seed)
        write_csv(by_project, output / "projects.csv", f"%.{DECIMALS}f")


def _compare_pairs(scores: pd.DataFrame, resamples: np.ndarray, seed: int) -> pd.DataFrame:
    """Return a row for every two variants that share a patient, the later one first."""
    rows = []
    for second, first in combinations(scores.columns, 2):
        difference = (scores[first] - scores[second]).to_numpy()
        paired = estimate_mean(difference, resamples)
        if paired["n"]:
            p_value = p_value_of_sign_flips(difference[~np.isnan(difference)], seed)
            cells = (first, second, paired["n"], paired["mean"], paired["low"], paired["high"], p_value)
            rows.append(dict(zip(PAIR_COLUMNS, cells, strict=False)))
    table = pd.DataFrame(rows, columns=PAIR_COLUMNS)
    table["p_holm"] = adjust_holm(table["p_value"].to_numpy(float))
    return table


def _summarise_seeds(variant: str, scores: pd.DataFrame, resamples: np.ndarray, seed: int) -> dict[str, object]:
    """Return one row of seeds.csv from the Dice [cases, seeds] of the patients that every seed was tested on."""
    dice = scores.dropna().to_numpy()
    means = dice.mean(axis=0)
    resamples = resample_patients(len(dice), len(resamples), seed)
    drawn = resample_patients(dice.shape[1], len(resamples), seed + 1)
    # Rows are draws: the patients' mean Dice in each seed of the draw.
    by_seed = dice[resamples].mean(axis=1)
    mean = round_estimate(means.mean(), np.take_along_axis(by_seed, drawn, axis=1).mean(axis=1), len(dice))
    return {
        "variant": variant,
        "seeds": dice.shape[1],
        "n_patients": len(dice),
        "dice": mean["mean"],
        "sd": means.std(ddof=1),
        "low": mean["low"],
        "high": mean["high"],
    }


def _compare_projects(scores: pd.DataFrame, splits: Path, bootstrap_samples: int, seed: int) -> pd.DataFrame:
    """Return the mean Dice of each variant by project, with its interval; patients of no project are one more."""
    listed = read_table(splits, "splits", ["case_id", "project"]).to_pandas().drop_duplicates("case_id")
    projects = listed.set_index("case_id")["project"].reindex(scores.index).fillna("")
    rows = []
    for project, own in scores.groupby(projects):
        resamples = resample_patients(len(own), bootstrap_samples, seed)
        for variant in scores.columns:
            dice = estimate_mean(own[variant].to_numpy(), resamples)
            cells = (project, variant, dice["n"], dice["mean"], dice["low"], dice["high"])
            rows.append(dict(zip(PROJECT_COLUMNS, cells, strict=True)))
    return pd.DataFrame(rows, columns=PROJECT_COLUMNS)


def _read_tables(folder: Path, variants: list[str], name: str) -> pa.Table:
    """Read one table of every variant into one, with a first column `variant`."""
    parts = []
    for variant in variants:
        part = read_table(folder / variant / f"{name}.parquet", f"the metrics of variant '{variant}'")
        parts.append(part.add_column(0, "variant", pa.array([variant] * len(part), pa.string())))
    return pa.concat_tables(parts)


def _compare_variant(
    scores: pd.DataFrame, variant: str, reference: str, resamples: np.ndarray, seed: int
) -> dict[str, object]:
    """Return one row of comparison.csv from the Dice [cases, variants], NaN where a variant lacks a case."""
    own = estimate_mean(scores[variant].to_numpy(), resamples)
    row: dict[str, object] = {
        "variant": variant,
        "n_patients": own["n"],
        "dice": own["mean"],
        "low": own["low"],
        "high": own["high"],
    }
    if variant == reference:
        empty = dict.fromkeys(("difference", "difference_low", "difference_high", "p_value", "detectable"))
        return row | empty | {"n_paired": own["n"]}
    difference = (scores[reference] - scores[variant]).to_numpy()
    paired = estimate_mean(difference, resamples)
    if not paired["n"]:
        raise CohortError(f"the variants '{reference}' and '{variant}' were tested on no common patient")
    both = difference[~np.isnan(difference)]
    return row | {
        "difference": paired["mean"],
        "difference_low": paired["low"],
        "difference_high": paired["high"],
        "p_value": p_value_of_sign_flips(both, seed),
        "detectable": detectable_difference(both),
        "n_paired": paired["n"],
    }
