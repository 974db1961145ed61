"""Segmentation metrics per image and per patient, with bootstrap intervals over patients.

The headline is the Dice of a patient over the whole volume or all slides, averaged over patients, folds pooled. Where
reference and prediction are both empty, Dice and IoU are 1, for an image as for a patient. Tumour that was annotated
where no tile was kept is missed: its pixels count as false negatives of the patient.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.ndimage import binary_erosion
from scipy.spatial import KDTree
from scipy.stats import permutation_test

from mgi.codecs import decode_ignore, decode_mask
from mgi.console import progress
from mgi.errors import CohortError, ImageTableError
from mgi.files import atomic_write
from mgi.tables import SOURCES_SCHEMA, read_table, write_table

PREDICTION_COLUMNS = ["case_id", "source_id", "x", "y", "z", "size", "mpp", "fold", "prediction", "reference"]
PLANE = ["case_id", "source_id", "z"]
PATIENT_METRICS = ("dice", "positive_image_dice", "all_image_dice", "iou", "hd95", "empty_false_positive_rate")
CONFIDENCE = 0.95
DECIMALS = 6
SIGN_FLIPS = 9999


def confusion(prediction: np.ndarray, reference: np.ndarray) -> tuple[int, int, int]:
    """Count true-positive, false-positive and false-negative pixels of two boolean masks of equal shape."""
    both = int(np.count_nonzero(prediction & reference))
    return both, int(np.count_nonzero(prediction)) - both, int(np.count_nonzero(reference)) - both


def dice(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> np.ndarray:
    """Dice coefficient 2 TP / (2 TP + FP + FN) of pixel counts of any shape; 1 where all three are 0."""
    return _ratio(2 * np.asarray(tp), 2 * np.asarray(tp) + fp + fn)


def iou(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> np.ndarray:
    """Intersection over union TP / (TP + FP + FN) of pixel counts of any shape; 1 where all three are 0."""
    return _ratio(np.asarray(tp), np.asarray(tp) + fp + fn)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.ones(np.shape(whole)), where=np.asarray(whole) > 0)


def hd95(prediction: np.ndarray, reference: np.ndarray) -> float:
    """95th percentile of the symmetric surface distances of two boolean masks [H, W], in pixels.

    The surface of a mask is its pixels with a 4-neighbour outside it; beyond the border counts as outside. The
    distances of each surface's pixels to the other surface are pooled before the percentile is taken, as in MedPy.
    NaN where either mask is empty. A k-d tree over the surfaces, for a distance map of a whole slide fills the memory.
    """
    if not (prediction.any() and reference.any()):
        return float("nan")
    ours, theirs = _surface(prediction), _surface(reference)
    there, _ = KDTree(theirs).query(ours)
    back, _ = KDTree(ours).query(theirs)
    return float(np.percentile(np.concatenate([there, back]), 95))


def _surface(mask: np.ndarray) -> np.ndarray:
    """Coordinates [n, 2] of the pixels of `mask` that touch its outside."""
    return np.argwhere(mask & ~binary_erosion(mask))


def stitch(tiles: np.ndarray, x: np.ndarray, y: np.ndarray, size: float) -> np.ndarray:
    """Put the tiles of one plane together; where no tile was cut there is 0.

    Parameters
    ----------
    tiles
        Masks or images [n, P, P] or [n, P, P, channels].
    x, y
        Top-left corners [n] in level-0 pixels: nodes of a grid of `size`, each rounded on its own to a whole pixel.
    size
        Exact edge of a tile in level-0 pixels, fractions included: rounded, it would add up over a wide slide.

    Raises
    ------
    ImageTableError
        If two tiles fall on one place of the grid.
    """
    column = np.rint((x - x.min()) / size).astype(int)
    row = np.rint((y - y.min()) / size).astype(int)
    columns, edge = int(column.max()) + 1, tiles.shape[1]
    places, first = np.unique(row * columns + column, return_index=True)
    if len(places) < len(tiles):
        twice = int(np.setdiff1d(np.arange(len(tiles)), first)[0])
        raise ImageTableError(
            f"the tile at x={x[twice]}, y={y[twice]} overlaps another of its slide; cut tiles of {size:g} level-0"
            " pixels side by side, each once"
        )
    plane = np.zeros((int(row.max()) + 1, edge, columns, edge, *tiles.shape[3:]), dtype=tiles.dtype)
    plane[row, :, column] = tiles
    return plane.reshape(plane.shape[0] * edge, columns * edge, *tiles.shape[3:])


def summarise(
    predictions: list[Path], output: Path, bootstrap_samples: int = 2000, seed: int = 0, sources: Path | None = None
) -> None:
    """Pool a variant's folds into metrics with 95% intervals.

    Writes `output` (JSON) and, beside it, per_image.parquet and per_patient.parquet. Every metric of the JSON has the
    form {"mean", "low", "high", "n"}: the mean over the n patients for whom it is defined and the percentile
    bootstrap interval over patients (Efron and Tibshirani, 1993, chapter 13); `pooled_dice` is the Dice of all
    patients' pixels counted together. `hd95` adds its unit: microns where every image states its mpp, else pixels of
    the stored image. `untiled_tumour_share` is the share of the annotated tumour that lies in no tile; the Dice and IoU
    of a patient count it as missed, the metrics by image and HD95 do not know of it. Null without `sources`.

    Parameters
    ----------
    predictions
        predictions.parquet of each fold.
    bootstrap_samples
        Resamples of the patients.
    seed
        Seed of the resampling; variants with the same patients are resampled alike.
    sources
        sources.parquet, or the status table of `mgi slide tile`: what tumour of the slides is in no tile.

    Raises
    ------
    CohortError
        If a case was tested in two folds, or no labelled image was.
    ImageTableError
        If a table lacks a column or a slide, a prediction has another shape than its reference, or tiles overlap.
    """
    per_image, planes, unit = _measure(predictions)
    per_patient = _patients(per_image, planes, _untiled(per_image, sources))
    resamples = _resamples(len(per_patient), bootstrap_samples, seed)
    metrics = {name: _interval(per_patient[name].to_numpy(), resamples) for name in PATIENT_METRICS}
    metrics["hd95"]["unit"] = unit
    report = {
        "dice": metrics["dice"],
        "n_patients": len(per_patient),
        "n_images": len(per_image),
        "positive_image_dice": metrics["positive_image_dice"],
        "all_image_dice": metrics["all_image_dice"],
        "pooled_dice": _pooled_dice(per_patient, resamples),
        "iou": metrics["iou"],
        "hd95": metrics["hd95"],
        "empty_false_positive_rate": metrics["empty_false_positive_rate"],
        "untiled_tumour_share": None if sources is None else _untiled_share(per_patient),
    }
    output = Path(output)
    write_table(per_image, output.parent / "per_image.parquet")
    write_table(per_patient, output.parent / "per_patient.parquet")
    with atomic_write(output) as aside:
        aside.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")


def compare(
    folder: Path,
    variants: list[str],
    output: Path,
    reference: str = "mgi",
    bootstrap_samples: int = 2000,
    seed: int = 0,
) -> None:
    """Compare variants patient by patient.

    Reads {folder}/{variant}/per_patient.parquet and per_image.parquet, as `summarise` wrote them, and writes into
    `output` the same two tables with a first column `variant`, and comparison.csv: for each variant its mean Dice with
    a 95% interval, and the mean difference `reference` - variant over the patients that both have, with the interval
    of the paired bootstrap and the two-sided p-value of the sign-flip permutation test of that mean (exact where all
    2^n flips are fewer than 9,999 draws). One set of resamples serves all variants. The reference's own row has no
    difference.

    Raises
    ------
    CohortError
        If `reference` is not among `variants`, or shares no patient with one of them.
    MissingInputError
        If a variant was not summarised.
    """
    if reference not in variants:
        raise CohortError(f"the reference '{reference}' is not among the variants compared: {', '.join(variants)}")
    tables = {}
    for name in ("per_patient", "per_image"):
        parts = [
            read_table(Path(folder) / variant / f"{name}.parquet", f"the metrics of variant '{variant}'")
            for variant in variants
        ]
        labelled = [
            part.add_column(0, "variant", pa.array([variant] * len(part), pa.string()))
            for variant, part in zip(variants, parts, strict=True)
        ]
        tables[name] = pa.concat_tables(labelled)
    patients = tables["per_patient"].select(["variant", "case_id", "dice"]).to_pandas()
    scores = patients.pivot(index="case_id", columns="variant", values="dice").sort_index()[list(variants)]
    resamples = _resamples(len(scores), bootstrap_samples, seed)
    rows = [_compared(scores, variant, reference, resamples, seed) for variant in variants]

    output = Path(output)
    for name, table in tables.items():
        write_table(table, output / f"{name}.parquet")
    with atomic_write(output / "comparison.csv") as aside:
        pd.DataFrame(rows).to_csv(aside, index=False, float_format=f"%.{DECIMALS}f")


def _compared(
    scores: pd.DataFrame, variant: str, reference: str, resamples: np.ndarray, seed: int
) -> dict[str, str | int | float | None]:
    """One row of comparison.csv from the Dice [cases, variants], NaN where a variant lacks a case."""
    own = _interval(scores[variant].to_numpy(), resamples)
    row = {"variant": variant, "n_patients": own["n"], "dice": own["mean"], "low": own["low"], "high": own["high"]}
    if variant == reference:
        empty = dict.fromkeys(("difference", "difference_low", "difference_high", "p_value"))
        return row | empty | {"n_paired": own["n"]}
    difference = (scores[reference] - scores[variant]).to_numpy()
    paired = _interval(difference, resamples)
    if not paired["n"]:
        raise CohortError(f"the variants '{reference}' and '{variant}' were tested on no common patient")
    return row | {
        "difference": paired["mean"],
        "difference_low": paired["low"],
        "difference_high": paired["high"],
        "p_value": _sign_flip(difference[~np.isnan(difference)], seed),
        "n_paired": paired["n"],
    }


def _sign_flip(difference: np.ndarray, seed: int) -> float:
    """Two-sided p-value of the mean of `difference` [n] under random signs; NaN for fewer than two patients."""
    if len(difference) < 2:
        return float("nan")
    test = permutation_test(
        (difference,),
        lambda values, axis: values.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=SIGN_FLIPS,
        batch=1000,
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def _measure(predictions: list[Path]) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Metrics of every image, HD95 of every plane, and the unit of HD95; one fold's masks are in memory at a time."""
    keys = _keys(predictions)
    in_microns = bool(keys["mpp"].notna().all())
    images, planes = [], []
    for rows in progress(_planes(predictions), "planes measured", total=keys.groupby(PLANE).ngroups):
        measured, plane = _measure_plane(rows, float(rows["mpp"].iloc[0]) if in_microns else 1.0)
        images.append(measured)
        planes.append(plane)
    per_image = pd.concat(images).sort_values([*PLANE, "y", "x"], ignore_index=True)
    return per_image, pd.DataFrame(planes), "microns" if in_microns else "pixels"


def _keys(predictions: list[Path]) -> pd.DataFrame:
    """Cases, planes and mpp of all folds, once it is sure that no case was tested twice."""
    tables = []
    for number, path in enumerate(predictions):
        table = read_table(path, "predictions", PREDICTION_COLUMNS, ImageTableError).select([*PLANE, "fold", "mpp"])
        tables.append(table.to_pandas().assign(file=number))
    keys = pd.concat(tables, ignore_index=True)
    if keys.empty:
        raise CohortError(f"no labelled test image in {', '.join(map(str, predictions))}: nothing to evaluate")
    tested = keys[["case_id", "fold", "file"]].drop_duplicates()
    twice = tested[tested.duplicated("case_id", keep=False)].sort_values("case_id", kind="stable").head(2)
    if len(twice):
        where = " and ".join(f"{predictions[row.file]} (fold {row.fold})" for row in twice.itertuples())
        raise CohortError(
            f"case {twice['case_id'].iloc[0]} is tested in {where}; pool folds of one split, each table once"
        )
    return keys


def _planes(predictions: list[Path]) -> Iterator[pd.DataFrame]:
    """Yield the rows of each plane: a slide's tiles, or one slice of a series."""
    for path in predictions:
        table = read_table(path, "predictions", PREDICTION_COLUMNS, ImageTableError).to_pandas()
        for _, rows in table.sort_values([*PLANE, "y", "x"]).groupby(PLANE):
            yield rows


def _measure_plane(rows: pd.DataFrame, scale: float) -> tuple[pd.DataFrame, dict[str, str | float]]:
    """Metrics of a plane's images, and HD95 of the images put together; `scale` is the edge of a stored pixel."""
    prediction, reference = _masks(rows, "prediction"), _masks(rows, "reference")
    if prediction.shape != reference.shape:
        raise ImageTableError(
            f"predictions of {rows['source_id'].iloc[0]} have {prediction.shape[1:]} pixels,"
            f" but their references {reference.shape[1:]}"
        )
    # What the annotation leaves open counts nowhere.
    prediction &= ~np.stack([decode_ignore(encoded) for encoded in rows["reference"]])
    counts = np.array([confusion(ours, theirs) for ours, theirs in zip(prediction, reference, strict=True)])
    tp, fp, fn = counts.T
    distances = [scale * hd95(ours, theirs) for ours, theirs in zip(prediction, reference, strict=True)]
    measured = rows[["case_id", "source_id", "x", "y", "z", "size", "mpp", "fold"]].assign(
        tp=tp,
        fp=fp,
        fn=fn,
        dice=dice(tp, fp, fn),
        iou=iou(tp, fp, fn),
        reference_empty=tp + fn == 0,
        prediction_empty=tp + fp == 0,
        hd95=np.array(distances),
    )
    whole = distances[0]
    if len(rows) > 1:
        x, y, size = rows["x"].to_numpy(), rows["y"].to_numpy(), float(rows["size"].iloc[0])
        whole = scale * hd95(stitch(prediction, x, y, size), stitch(reference, x, y, size))
    return measured, {"case_id": rows["case_id"].iloc[0], "hd95": whole}


def _masks(rows: pd.DataFrame, column: str) -> np.ndarray:
    """Decode the masks of a plane, bool [n, H, W]."""
    masks = [decode_mask(encoded) > 0 for encoded in rows[column]]
    if len({mask.shape for mask in masks}) > 1:
        raise ImageTableError(
            f"the {column} masks of {rows['source_id'].iloc[0]} differ in size; one plane has one size"
        )
    return np.stack(masks)


def _untiled(per_image: pd.DataFrame, sources: Path | None) -> pd.Series:
    """Annotated pixels of each case that lie in no tile, int64; index case_id."""
    tested = per_image[["case_id", "source_id"]].drop_duplicates()
    if sources is None:
        return pd.Series(0, tested["case_id"].unique())
    table = read_table(sources, "table of sources", SOURCES_SCHEMA.names, ImageTableError).to_pandas()
    strangers = tested[~tested["source_id"].isin(table["source_id"])]
    if len(strangers):
        raise ImageTableError(f"{sources} does not tell of {strangers['source_id'].iloc[0]}; give that of these images")
    pixels = tested.merge(table[["source_id", "untiled_tumour_px"]].fillna(0), on="source_id")
    return pixels.groupby("case_id")["untiled_tumour_px"].sum().astype(np.int64)


def _untiled_share(per_patient: pd.DataFrame) -> float:
    tumour = int(per_patient["tp"].sum() + per_patient["fn"].sum())
    return round(float(per_patient["untiled_tumour_px"].sum() / max(tumour, 1)), DECIMALS)


def _patients(per_image: pd.DataFrame, planes: pd.DataFrame, untiled: pd.Series) -> pd.DataFrame:
    """Metrics of every patient, over the whole volume or all slides; NaN where a metric is not defined."""
    positive = ~per_image["reference_empty"]
    images = per_image.assign(
        positive_dice=per_image["dice"].where(positive),
        false_positive=(~per_image["prediction_empty"]).astype(float).where(~positive),
        positive=positive,
    )
    table = images.groupby("case_id").agg(
        fold=("fold", "first"),
        n_images=("dice", "size"),
        n_positive_images=("positive", "sum"),
        tp=("tp", "sum"),
        fp=("fp", "sum"),
        fn=("fn", "sum"),
        positive_image_dice=("positive_dice", "mean"),
        all_image_dice=("dice", "mean"),
        empty_false_positive_rate=("false_positive", "mean"),
    )
    table = table.assign(untiled_tumour_px=untiled, fn=table["fn"] + untiled)
    distances = planes.groupby("case_id")["hd95"]
    counts = table["tp"], table["fp"], table["fn"]
    table = table.assign(dice=dice(*counts), iou=iou(*counts), hd95=distances.mean(), n_hd95_planes=distances.count())
    return table.reset_index()


def _resamples(patients: int, samples: int, seed: int) -> np.ndarray:
    """Draw patients with replacement: indices [samples, patients]."""
    return np.random.default_rng(seed).integers(patients, size=(samples, patients))


def _interval(values: np.ndarray, resamples: np.ndarray) -> dict[str, float | int | None]:
    """Mean of `values` [patients] with its percentile interval; patients with NaN are left out of every mean."""
    defined = ~np.isnan(values)
    drawn, filled = defined[resamples].sum(axis=1), np.where(defined, values, 0.0)
    means = filled[resamples].sum(axis=1)[drawn > 0] / drawn[drawn > 0]
    return _form(filled.sum() / max(defined.sum(), 1), means, int(defined.sum()))


def _pooled_dice(per_patient: pd.DataFrame, resamples: np.ndarray) -> dict[str, float | int | None]:
    """Dice of all patients' pixels counted together, with its interval over patients."""
    counts = per_patient[["tp", "fp", "fn"]].to_numpy()
    drawn = counts[resamples].sum(axis=1)
    return _form(float(dice(*counts.sum(axis=0))), dice(*drawn.T), len(per_patient))


def _form(mean: float, drawn: np.ndarray, n: int) -> dict[str, float | int | None]:
    """Give a metric its form: JSON's null where no patient defines it."""
    if n == 0:
        return {"mean": None, "low": None, "high": None, "n": 0}
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return {
        "mean": round(float(mean), DECIMALS),
        "low": round(float(low), DECIMALS),
        "high": round(float(high), DECIMALS),
        "n": n,
    }
