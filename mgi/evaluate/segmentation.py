"""Segmentation metrics per image and per patient, with bootstrap intervals over patients.

The headline is the Dice of a patient over the whole volume or all slides, averaged over patients, folds pooled. Where
reference and prediction are both empty, Dice and IoU are 1, for an image as for a patient. Tumour that was annotated
where no tile was kept is missed: its pixels count as false negatives of the patient. No average improves when more
tumour is missed: which patients and planes enter it is decided by the reference alone.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mgi.codecs import decode_ignore, decode_mask
from mgi.console import progress
from mgi.errors import CohortError, ImageTableError
from mgi.evaluate.masks import confusion, count_lesions, dice, hd95, iou, stitch
from mgi.evaluate.statistics import (
    DECIMALS,
    MIN_PATIENTS,
    Estimate,
    estimate_mean,
    resample_patients,
    round_estimate,
)
from mgi.files import atomic_write
from mgi.names import first_few
from mgi.tables import PREDICTIONS_SCHEMA, read_table, write_table

SOURCE = ["case_id", "source_id"]
PATIENT_METRICS = (
    "dice", "positive_image_dice", "all_image_dice", "iou", "hd95", "empty_false_positive_rate", "lesion_recall",
    "false_lesions", "volume_error",
)  # fmt: skip


def summarise(
    predictions: list[Path], output: Path, bootstrap_samples: int = 2000, seed: int = 0, sources: Path | None = None
) -> None:
    """Pool a variant's folds into metrics with 95% intervals.

    Writes `output` (JSON) and, beside it, per_image.parquet and per_patient.parquet. Every metric of the JSON has the
    form {"mean", "low", "high", "n"}: the mean over the n patients for whom it is defined and the percentile
    bootstrap interval over patients, null below 6 patients, as `note` then says.

    - `pooled_dice` is the Dice of all patients' pixels counted together.
    - `hd95` is the mean over a patient's planes with tumour, a plane without any prediction counting with the diagonal
      of the image; `missed_planes` of `tumour_planes` are such. Its unit is microns where every image states its mpp,
      else pixels of the stored image.
    - `lesion_recall` is the share of a patient's lesions found, `false_lesions` the number predicted where there is
      none; in a series lesions are parts of the volume. `volume_error` is |predicted - true| / true of the volume or
      area.
    - `untiled_tumour_share` is the share of the annotated tumour that lies in no tile. Dice, IoU and volume error of a
      patient count it as missed; the metrics by image, by lesion and HD95 do not see it. Null without `sources`.

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
    per_image, planes, lesions, unit = _measure(predictions)
    per_patient = _measure_patients(per_image, planes, lesions, count_untiled(per_image[SOURCE], sources))
    resamples = resample_patients(len(per_patient), bootstrap_samples, seed)
    metrics = {name: estimate_mean(per_patient[name].to_numpy(float), resamples) for name in PATIENT_METRICS}
    report: dict[str, Any] = {
        "dice": metrics["dice"],
        "n_patients": len(per_patient),
        "n_images": len(per_image),
        "positive_image_dice": metrics["positive_image_dice"],
        "all_image_dice": metrics["all_image_dice"],
        "pooled_dice": _pool_dice(per_patient, resamples),
        "iou": metrics["iou"],
        "hd95": metrics["hd95"]
        | {
            "unit": unit,
            "missed_planes": int(per_patient["n_missed_planes"].sum()),
            "tumour_planes": int(per_patient["n_hd95_planes"].sum()),
        },
        "empty_false_positive_rate": metrics["empty_false_positive_rate"],
        "lesion_recall": metrics["lesion_recall"],
        "false_lesions": metrics["false_lesions"],
        "volume_error": metrics["volume_error"],
        "untiled_tumour_share": None if sources is None else _untiled_share(per_patient),
    }
    if len(per_patient) < MIN_PATIENTS:
        report["note"] = f"{len(per_patient)} patients are too few for an interval: at least {MIN_PATIENTS} are needed"
    output = Path(output)
    write_table(per_image, output.parent / "per_image.parquet")
    write_table(per_patient, output.parent / "per_patient.parquet")
    with atomic_write(output) as aside:
        aside.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")


def _measure(predictions: list[Path]) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, str]:
    """Return metrics of every image, plane and source, and the unit of HD95; one fold's masks are in memory at a time.

    A plane is one slice of a series, or a slide's tiles put together.
    """
    keys = _read_keys(predictions)
    in_microns = bool(keys["mpp"].notna().all())
    images, planes, lesions = [], [], []
    for rows in progress(_read_sources(predictions), "sources measured", total=keys.groupby(SOURCE).ngroups):
        scale = float(rows["mpp"].iloc[0]) if in_microns else 1.0
        case, volumes = rows["case_id"].iloc[0], []
        for _, plane in rows.groupby("z"):
            measured, distance, masks = _measure_plane(plane, scale)
            images.append(measured)
            planes.append({"case_id": case, "hd95": distance, "missed": masks[1].any() and not masks[0].any()})
            volumes.append((int(plane["z"].iloc[0]), *masks))
        lesions.append({"case_id": case} | _count_lesions_of(volumes))
    per_image = pd.concat(images).sort_values([*SOURCE, "z", "y", "x"], ignore_index=True)
    return per_image, pd.DataFrame(planes), pd.DataFrame(lesions), "microns" if in_microns else "pixels"


def _read_keys(predictions: list[Path]) -> pd.DataFrame:
    """Read cases, sources and mpp of all folds, and check that no case was tested twice."""
    tables = []
    for number, path in enumerate(predictions):
        table = read_table(path, "predictions", PREDICTIONS_SCHEMA.names, ImageTableError).select(
            [*SOURCE, "fold", "mpp"]
        )
        tables.append(table.to_pandas().assign(file=number))
    keys = pd.concat(tables, ignore_index=True)
    if keys.empty:
        raise CohortError(f"no labelled test image in {', '.join(map(str, predictions))}: nothing to evaluate")
    tested = keys[["case_id", "fold", "file"]].drop_duplicates()
    repeated = tested[tested.duplicated("case_id", keep=False)].sort_values("case_id", kind="stable")
    if len(repeated):
        where = " and ".join(f"{predictions[row.file]} (fold {row.fold})" for row in repeated.head(2).itertuples())
        cases = repeated["case_id"].unique()
        raise CohortError(
            f"case {cases[0]} is tested in {where}, as are {len(cases) - 1} more cases in two places; pool the folds of"
            " one split, each table once"
        )
    return keys


def _read_sources(predictions: list[Path]) -> Iterator[pd.DataFrame]:
    """Yield the rows of each slide or series, sorted by plane."""
    for path in predictions:
        table = read_table(path, "predictions", PREDICTIONS_SCHEMA.names, ImageTableError).to_pandas()
        for _, rows in table.sort_values([*SOURCE, "z", "y", "x"]).groupby(SOURCE):
            yield rows


def _measure_plane(rows: pd.DataFrame, scale: float) -> tuple[pd.DataFrame, float, tuple[np.ndarray, np.ndarray]]:
    """Return the metrics of a plane's images, its HD95 and its two masks; `scale` is the edge of a stored pixel."""
    prediction, reference = _decode_masks(rows, "prediction"), _decode_masks(rows, "reference")
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
    if len(rows) == 1:
        return measured, distances[0], (prediction[0], reference[0])
    x, y, size = rows["x"].to_numpy(), rows["y"].to_numpy(), float(rows["size"].iloc[0])
    whole = stitch(prediction, x, y, size), stitch(reference, x, y, size)
    return measured, scale * hd95(*whole), whole


def _decode_masks(rows: pd.DataFrame, column: str) -> np.ndarray:
    """Decode the masks of a plane, bool [n, H, W]."""
    masks = [decode_mask(encoded) > 0 for encoded in rows[column]]
    if len({mask.shape for mask in masks}) > 1:
        raise ImageTableError(
            f"the {column} masks of {rows['source_id'].iloc[0]} differ in size; one plane has one size"
        )
    return np.stack(masks)


def _count_lesions_of(planes: list[tuple[int, np.ndarray, np.ndarray]]) -> dict[str, int]:
    """Count the lesions of a source from its planes (z, prediction, reference), of which neighbours have z and z + 1.

    Planes that are not neighbours, or differ in shape, hold no part of one lesion.
    """
    total = np.zeros(3, int)
    stack: list[tuple[int, np.ndarray, np.ndarray]] = []
    for plane in [*planes, None]:
        joined = plane and stack and plane[0] == stack[-1][0] + 1 and plane[1].shape == stack[-1][1].shape
        if stack and not joined:
            total += count_lesions(*(np.stack([masks[index] for masks in stack]) for index in (1, 2)))
            stack = []
        if plane:
            stack.append(plane)
    return dict(zip(("n_lesions", "n_lesions_found", "n_false_lesions"), total.tolist(), strict=True))


def count_untiled(images: pd.DataFrame, sources: Path | None) -> pd.Series:
    """Return the annotated pixels of each case that lie in no tile, int64, index case_id; 0 without `sources`.

    `images` has case_id and source_id, a row or more for each source.
    """
    tested = images[SOURCE].drop_duplicates()
    if sources is None:
        return pd.Series(0, tested["case_id"].unique())
    columns = ["source_id", "case_id", "untiled_tumour_px"]
    table = read_table(sources, "table of sources", columns, ImageTableError).select(columns).to_pandas()
    unknown = tested.loc[~tested["source_id"].isin(table["source_id"]), "source_id"]
    if len(unknown):
        raise ImageTableError(f"{sources} has no row of {first_few(unknown)}; give the table of these images")
    # Those of slides without any tile too.
    pixels = table.fillna({"untiled_tumour_px": 0}).groupby("case_id")["untiled_tumour_px"].sum()
    return pixels.reindex(tested["case_id"].unique(), fill_value=0).astype(np.int64)


def _untiled_share(per_patient: pd.DataFrame) -> float:
    tumour = int(per_patient["tp"].sum() + per_patient["fn"].sum())
    return round(float(per_patient["untiled_tumour_px"].sum() / max(tumour, 1)), DECIMALS)


def _measure_patients(
    per_image: pd.DataFrame, planes: pd.DataFrame, lesions: pd.DataFrame, untiled: pd.Series
) -> pd.DataFrame:
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
    tp, fp, fn = table["tp"], table["fp"], table["fn"]
    by_patient = planes.groupby("case_id")
    table = table.assign(
        dice=dice(tp, fp, fn),
        iou=iou(tp, fp, fn),
        volume_error=(fp - fn).abs() / (tp + fn).where(tp + fn > 0),
        hd95=by_patient["hd95"].mean(),
        n_hd95_planes=by_patient["hd95"].count(),
        n_missed_planes=by_patient["missed"].sum(),
    ).join(lesions.groupby("case_id").sum())
    table = table.assign(
        lesion_recall=table["n_lesions_found"] / table["n_lesions"].where(table["n_lesions"] > 0),
        false_lesions=table["n_false_lesions"].astype(float),
    )
    return table.drop(columns="n_false_lesions").reset_index()


def _pool_dice(per_patient: pd.DataFrame, resamples: np.ndarray) -> Estimate:
    """Return the Dice of all patients' pixels counted together, with its interval over patients."""
    counts = per_patient[["tp", "fp", "fn"]].to_numpy()
    drawn = counts[resamples].sum(axis=1)
    return round_estimate(float(dice(*counts.sum(axis=0))), dice(*drawn.T), len(per_patient))
