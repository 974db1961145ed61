"""What expression values are: normalised counts, and the unit of a ready table, recognised or checked."""

import numpy as np

from mgi.errors import ExpressionError

# What STAR counts can become, and what the table then says of itself.
STAR_UNITS = {"log2-tpm": "log2(TPM+1)", "counts": "counts", "log2-fpkm-uq": "log2(FPKM-UQ+1)"}
# What a ready table can be.
UNITS = STAR_UNITS | {"z-score": "z-score", "log2": "log2", "tpm": "TPM", "linear": "linear"}
MAX_LOG2 = 30.0
# Logarithms lie around their median; the mean of linear values is several times theirs.
MAX_LOG2_MEAN = 1.5
SUM_TOLERANCE = 1e-2
MAX_TPM_SUM = 1e6 * (1 + SUM_TOLERANCE)
CASES_LOOKED_AT = 100


def compute_tpm(counts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return transcripts per million, float64 [genes]: counts per base of exons, scaled to a sum of a million.

    Wagner et al., 2012, doi 10.1007/s12064-012-0162-3.
    """
    rate = counts / lengths
    return rate * (1e6 / rate.sum())


def compute_fpkm_uq(counts: np.ndarray, lengths: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return upper-quartile normalised FPKM as the GDC defines it, float64 [genes].

    count * 1e9 / (length * Q * G): Q is the 0.75 quantile of the counts above 0 among the protein-coding genes of
    chromosomes 1 to 22, G the number of these genes, expressed or not. Which genes are kept does not change it.

    Parameters
    ----------
    counts, lengths
        [genes]: unstranded counts, and bases of the exon union.
    reference
        Counts of all autosomal protein-coding genes of the table.
    """
    return counts * 1e9 / (lengths * np.quantile(reference[reference > 0], 0.75) * len(reference))


def find_fitting_units(values: np.ndarray) -> list[str]:
    """Return the units, keys of `UNITS`, that values, float32 [cases, genes], can be of; one where there is no doubt.

    - z-score: some values are negative, and the genes have mean 0 and nearly all a standard deviation of 1, or the
      values lie around 0 and reach further than logarithms do;
    - counts: all are whole numbers, none negative, some above 30;
    - log2-tpm: none is negative or above 30, and 2^x - 1 adds up to a million in every case;
    - log2: none is above 30 and they lie around their median; some may be negative where most are well above 0;
    - tpm: those of every case add up to a million;
    - linear: none is negative, and some are above 30 and not whole.

    Z-scores against a reference group and centred logarithms look alike, as do logarithms and small linear values.
    """
    largest = np.abs(values).max()
    if values.min() < 0:
        if _is_standardised(values):
            return ["z-score"]
        centred = np.median(values.mean(axis=0, dtype=np.float64)) < values.std(dtype=np.float64) / 2
        if centred:
            return ["z-score", "log2"] if largest <= MAX_LOG2 else ["z-score"]
        return ["log2"] if largest <= MAX_LOG2 else ["linear"]
    some = values[:CASES_LOOKED_AT].astype(np.float64)
    if _sum_to_millions(some):
        return ["tpm"]
    if largest > MAX_LOG2:
        return ["counts"] if is_whole(values) else ["linear"]
    if _sum_to_millions(np.exp2(some) - 1):
        return ["log2-tpm"]
    if is_whole(values):
        return ["counts", "log2", "linear"]
    positive = some[some > 0]
    around_median = positive.mean() <= MAX_LOG2_MEAN * np.median(positive)
    return ["log2"] if around_median else ["log2", "linear"]


def check_unit(values: np.ndarray, unit: str, where: object) -> None:
    """Raise `ExpressionError` if the values, float32 [cases, genes], cannot be of the unit that the user states."""
    if unit not in UNITS:
        raise ExpressionError(f"unknown unit '{unit}'; valid are {', '.join(UNITS)}")
    lowest, largest = values.min(), values.max()
    wrong = None
    if unit == "z-score":
        wrong = "no value is negative" if lowest >= 0 else None
    elif unit not in ("log2", "linear") and lowest < 0:
        wrong = f"a value is {lowest:g}"
    elif unit.startswith("log2") and largest > MAX_LOG2:
        wrong = f"a value is {largest:g}"
    elif unit == "counts" and not is_whole(values):
        wrong = f"a value is {values[values != np.rint(values)][0]:g}"
    elif unit in ("tpm", "log2-tpm"):
        # Of some of the genes it is less.
        cases = (profile.astype(np.float64) for profile in values)
        most = max((case if unit == "tpm" else np.exp2(case) - 1).sum() for case in cases)
        wrong = f"the TPM of a case add up to {most:.3g}, more than a million" if most > MAX_TPM_SUM else None
    if wrong:
        raise ExpressionError(f"{where} does not hold {UNITS[unit]}: {wrong}")


def is_whole(values: np.ndarray) -> bool:
    """Return whether all values are whole numbers."""
    return bool((values == np.rint(values)).all())


def _is_standardised(values: np.ndarray) -> bool:
    """Return whether the genes have mean 0 and a deviation of 1; merely centred logarithms deviate by all sizes."""
    low, middle, high = np.quantile(values.std(axis=0), [0.25, 0.5, 0.75])
    scaled = 0.75 < middle < 1.33 and high < 1.75 * low
    return bool(scaled and np.median(np.abs(values.mean(axis=0))) < 0.3)


def _sum_to_millions(values: np.ndarray) -> bool:
    """Return whether every case adds up to a million, but for the rounding of a written table."""
    return bool((np.abs(values.sum(axis=1) / 1e6 - 1) < SUM_TOLERANCE).all())
