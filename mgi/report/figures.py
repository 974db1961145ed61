"""The figures of the report: cohort flow, training curves, comparison of variants, and overlays.

Colours are Okabe and Ito's (2008), told apart with any colour vision. The same input gives the same bytes: no dates or
versions are written into the files.
"""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.patheffects as effects
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from PIL import Image

from mgi.codecs import decode_mask
from mgi.errors import ImageTableError, MissingInputError
from mgi.evaluate.masks import stitch
from mgi.files import atomic_write, require_file
from mgi.report.summary import iterate_rows
from mgi.tables import read_csv, read_table
from mgi.train.data import read_image_table

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#F0E442",
)
FOLD_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED, SKY)
INK, SOFT, FAINT = "#222222", "#777777", "#DDDDDD"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    # A dollar sign in a name starts no formula.
    "text.parse_math": False,
    "svg.hashsalt": "mgi",
    "figure.dpi": 100,
    "savefig.dpi": 150,
}
NO_DATES = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
STAGES = ("pretrain", "finetune")
MEASURES = {"val_dice": "validation Dice", "val_recall": "validation recall@1"}
SMOOTHED_FROM = 60
MOSAIC_PX = 1600


@contextmanager
def draw_figure(out: Path | str, *size: float) -> Iterator[Figure]:
    """Yield a figure of `size` inches, and write it to `out`, PNG or SVG by its suffix."""
    kind = Path(out).suffix.lstrip(".").lower()
    if kind not in NO_DATES:
        raise MissingInputError(f"cannot draw {out}: end its name in .png or .svg")
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.06))
        try:
            yield figure
            with atomic_write(out) as aside:
                figure.savefig(aside, format=kind, metadata=NO_DATES[kind], facecolor="white")
        finally:
            plt.close(figure)


def draw_flow(flow: Path, out: Path) -> None:
    """Draw how many cases each step kept, and why the rest were lost.

    Parameters
    ----------
    flow
        CSV with step, cases (left after it), lost (in it), reason; several rows of a step are its several reasons.
    out
        PNG or SVG.

    Raises
    ------
    MissingInputError
        If the table is missing or lacks a column.
    """
    table = read_csv(flow, "the cohort flow", ["step", "cases", "lost", "reason"])
    steps = table.groupby("step", sort=False).agg(cases=("cases", "last"), lost=("lost", "sum")).reset_index()
    reasons = [_reasons(table[table["step"] == step]) for step in steps["step"]]
    heights = np.array([max(1.0, 0.5 * (1 + text.count("\n"))) for text in reasons])
    y = np.cumsum(heights) - heights / 2
    most = max(float((steps["cases"] + steps["lost"]).max()), 1.0)
    with draw_figure(out, 10, 0.9 + 0.52 * heights.sum()) as figure:
        axes = figure.subplots()
        axes.barh(y, steps["cases"], 0.62, color=BLUE)
        some = (steps["lost"] > 0).to_numpy()
        bars = axes.barh(y[some], steps["lost"][some], 0.62, left=steps["cases"][some])
        for bar in bars:
            bar.set(facecolor="white", edgecolor=RED, hatch="////", linewidth=0.8)
        for place, cases, lost, reason in zip(y, steps["cases"], steps["lost"], reasons, strict=True):
            inside = cases > 0.12 * most
            axes.text(
                cases - 0.015 * most if inside else cases + lost + 0.015 * most, place, f"{cases:,.0f}",
                ha="right" if inside else "left", va="center", color="white" if inside else INK, weight="bold",
            )  # fmt: skip
            axes.text(1.06 * most, place, reason, va="center", ha="left", color=RED if lost else SOFT, fontsize=9)
        axes.set_yticks(y, [textwrap.fill(str(step), 28) for step in steps["step"]])
        axes.set_ylim(heights.sum(), 0)
        axes.set_xlim(0, 1.9 * most)
        axes.set_xticks([])
        axes.spines[["bottom", "left"]].set_visible(False)
        axes.tick_params(length=0)
        axes.set_title("Cases kept at each step (blue) and lost in it (hatched)", loc="left", color=INK)


def _reasons(rows: pd.DataFrame) -> str:
    """One line for every reason by which a step lost cases."""
    lost = rows[rows["lost"] > 0]
    lines = [
        f"\N{MINUS SIGN}{row.lost:,.0f}  {'' if pd.isna(row.reason) else row.reason}" for row in iterate_rows(lost)
    ]
    return "\n".join(textwrap.fill(line, 58, subsequent_indent="      ") for line in lines)


def draw_losses(metrics: list[Path], out: Path) -> None:
    """Draw training loss, validation loss and validation measure of every run: a column per variant, a line per fold.

    Parameters
    ----------
    metrics
        .../{stage}/{variant}/fold{k}/metrics.csv with step, loss, val_loss and val_dice or val_recall; validation
        columns are empty at steps without one.
    out
        PNG or SVG.

    Raises
    ------
    MissingInputError
        If a table is missing or lacks step or loss.
    """
    runs: dict[str, dict[str, dict[str, pd.DataFrame]]] = {}
    for path in map(Path, metrics):
        table = read_csv(path, "training metrics", ["step", "loss"])
        stage, variant, fold = ("", "", "", *path.absolute().parts)[-4:-1]
        runs.setdefault(stage, {}).setdefault(variant, {})[fold.removeprefix("fold")] = table
    stages = sorted(runs, key=lambda stage: (STAGES.index(stage) if stage in STAGES else len(STAGES), stage))
    folds = sorted({fold for variants in runs.values() for tables in variants.values() for fold in tables})
    colours = {fold: FOLD_COLOURS[n % len(FOLD_COLOURS)] for n, fold in enumerate(folds)}
    columns = max(len(variants) for variants in runs.values())
    with draw_figure(out, max(2.6 * columns + 0.8, 6), 4.2 * len(stages) + 0.6) as figure:
        parts = figure.subfigures(len(stages), 1, squeeze=False)[:, 0]
        for stage, part in zip(stages, parts, strict=True):
            part.suptitle(stage, x=0.01, ha="left", weight="bold", color=INK)
            grid = part.subplots(2, columns, sharex="col", sharey="row", squeeze=False)
            for column in range(columns):
                names = list(runs[stage])
                if column >= len(names):
                    for axes in grid[:, column]:
                        axes.set_visible(False)
                    continue
                for fold, table in sorted(runs[stage][names[column]].items()):
                    _draw_run(grid[:, column], table, colours[fold])
                grid[0, column].set_title(names[column], color=INK)
                grid[1, column].set_xlabel("step")
            _label_rows(grid, runs[stage])
        _fold_legend(figure, colours)


def _draw_run(panels: np.ndarray, table: pd.DataFrame, colour: str) -> None:
    """Draw one run into its loss panel and its validation panel."""
    loss = table[["step", "loss"]].dropna()
    if len(loss) >= SMOOTHED_FROM:
        panels[0].plot(loss["step"], loss["loss"], color=colour, alpha=0.18, linewidth=0.6)
        loss = loss.assign(loss=loss["loss"].ewm(span=len(loss) / 20).mean())
    panels[0].plot(loss["step"], loss["loss"], color=colour, linewidth=1.4)
    if "val_loss" in table:
        held_out = table[["step", "val_loss"]].dropna()
        panels[0].plot(held_out["step"], held_out["val_loss"], color=colour, linewidth=1.2, linestyle=(0, (3, 1.5)))
    for measure in MEASURES:
        if measure in table:
            held_out = table[["step", measure]].dropna()
            panels[1].plot(held_out["step"], held_out[measure], color=colour, linewidth=1.4, marker="o", markersize=2.5)


def _label_rows(grid: np.ndarray, variants: dict[str, dict[str, pd.DataFrame]]) -> None:
    present = {column for tables in variants.values() for table in tables.values() for column in table}
    grid[0, 0].set_ylabel("loss")
    grid[1, 0].set_ylabel(" / ".join(words for name, words in MEASURES.items() if name in present))
    for axes in grid.ravel():
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
    for axes in grid[1]:
        axes.set_ylim(0, None)


def _fold_legend(figure: Figure, colours: dict[str, str]) -> None:
    handles = [
        Line2D([], [], color=colour, label=f"fold {fold}" if fold.isdigit() else fold)
        for fold, colour in colours.items()
    ]
    handles += [
        Line2D([], [], color=SOFT, label="training loss"),
        Line2D([], [], color=SOFT, linestyle=(0, (3, 1.5)), label="validation loss"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 8))


def draw_comparison(evaluated: Path, out: Path) -> None:
    """Draw each variant's Dice by patient, and the paired differences of the reference to the others.

    Parameters
    ----------
    evaluated
        Folder written by `mgi compare`: comparison.csv and per_patient.parquet.
    out
        PNG or SVG.

    Raises
    ------
    MissingInputError
        If one of the two is missing or lacks a column.
    """
    intervals = ["dice", "low", "high", "difference", "difference_low", "difference_high", "n_patients", "n_paired"]
    table = read_csv(Path(evaluated) / "comparison.csv", "the comparison", ["variant", *intervals]).set_index("variant")
    patients = read_table(
        Path(evaluated) / "per_patient.parquet", "metrics by patient", ["variant", "case_id", "dice"]
    ).to_pandas()
    scores = patients.pivot(index="case_id", columns="variant", values="dice")[list(table.index)]
    reference = table.index[table["difference"].isna()][0]
    with draw_figure(out, 10.5, 1.5 + 0.75 * len(table)) as figure:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.15, 1])
        for place, variant in enumerate(table.index):
            row, colour = table.loc[variant], ORANGE if variant == reference else BLUE
            _draw_patients(left, place, scores[variant], row[["dice", "low", "high"]], colour)
            if variant != reference:
                difference = row[["difference", "difference_low", "difference_high"]]
                _draw_patients(right, place, scores[reference] - scores[variant], difference, colour)
        left.set_yticks(range(len(table)), [f"{name}\nn = {n}" for name, n in table["n_patients"].items()])
        left.set_ylim(len(table) - 0.45, -0.55)
        left.set_xlim(-0.02, 1.02)
        left.set_xlabel("Dice of a patient")
        left.set_title("Patients (dots), mean and 95% interval", loc="left", color=INK)
        right.set_visible(len(table) > 1)
        right.axvline(0, color=INK, linewidth=1)
        right.set_xlabel(f"Dice of {reference} minus Dice of the variant")
        right.set_title(f"Paired difference: right of 0, {reference} is better", loc="left", color=INK)
        for axes in (left, right):
            axes.grid(axis="x", color=FAINT, linewidth=0.6)
            axes.set_axisbelow(True)
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)


def _draw_patients(axes: Axes, place: int, values: pd.Series, interval: pd.Series, colour: str) -> None:
    """Draw patients as a strip of points below the line of `place`, and their mean with its interval on it."""
    points = values.dropna().sort_values().to_numpy()
    spread = place + 0.12 + 0.22 * (np.arange(len(points)) * 0.618034 % 1.0)
    axes.scatter(points, spread, s=13, color=colour, alpha=0.5, linewidths=0)
    mean, low, high = interval.astype(float)
    line = place - 0.12
    if not np.isnan(low):
        axes.plot([low, high], [line, line], color=INK, linewidth=2.2, solid_capstyle="butt")
    axes.scatter([mean], [line], s=40, marker="D", color=colour, edgecolors=INK, linewidths=1, zorder=3)
    words = f"{mean:.3f}" if np.isnan(low) else f"{mean:.3f}  [{low:.3f}, {high:.3f}]"
    halo = [effects.withStroke(linewidth=3, foreground="white")]
    axes.annotate(
        words, (mean, line), (0, 8), textcoords="offset points", ha="center", va="bottom", fontsize=9, color=INK,
        path_effects=halo,
    )  # fmt: skip


def draw_overlays(variant: Path, sources: Path, out: Path) -> None:
    """Draw reference and prediction on the images of the best, the median and the worst patient by Dice.

    Of each patient the plane with the largest reference is shown: a slice of a series, or a slide's labelled tiles put
    together, white where no tile was cut.

    Parameters
    ----------
    variant
        Folder with per_patient.parquet and fold{k}/predictions.parquet.
    sources
        sources.parquet; its image tables lie in images/ beside it.
    out
        PNG or SVG.

    Raises
    ------
    MissingInputError
        If one of these files is missing.
    ImageTableError
        If the images of a prediction are not in their table.
    """
    columns = ["case_id", "dice", "fold"]
    patients = read_table(Path(variant) / "per_patient.parquet", "metrics by patient", columns).to_pandas()
    ranked = patients.sort_values(["dice", "case_id"], ascending=[False, True], ignore_index=True)
    ranks = {"best": 0, "median": (len(ranked) - 1) // 2, "worst": len(ranked) - 1}
    with draw_figure(out, 12, 8.6) as figure:
        grid = figure.subplots(2, 3)
        for column, (name, rank) in enumerate(ranks.items()):
            patient = ranked.loc[rank]
            rows = _plane_to_show(Path(variant) / f"fold{patient['fold']}" / "predictions.parquet", patient["case_id"])
            image, masks = _mosaic(rows, Path(sources))
            _draw_overlay(grid[:, column], image, masks)
            grid[0, column].set_title(
                f"{name}: {patient['case_id']}, Dice {patient['dice']:.3f}", color=INK, weight="bold"
            )
            plane = rows.iloc[0]
            shown = f"slice {plane['z']}" if len(rows) == 1 else f"{len(rows)} tiles"
            grid[1, column].set_xlabel(f"{plane['source_id']}, {shown}", color=SOFT, fontsize=8)
        handles = [
            Line2D([], [], color=colour, linewidth=3, label=name, path_effects=_halo())
            for name, colour in (("reference", YELLOW), ("prediction", SKY))
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=2)


def _halo() -> list[effects.AbstractPathEffect]:
    return [effects.Stroke(linewidth=3, foreground="black"), effects.Normal()]


def _plane_to_show(predictions: Path, case_id: str) -> pd.DataFrame:
    """Rows of the patient's plane whose reference covers the most pixels, else predicts the most."""
    require_file(predictions, "predictions")
    rows = pq.read_table(predictions, filters=[("case_id", "==", case_id)]).to_pandas()
    if rows.empty:
        raise ImageTableError(f"{predictions} has no row of {case_id}, which per_patient.parquet says was tested there")
    rows = rows.assign(
        reference=rows["reference"].map(decode_mask), prediction=rows["prediction"].map(decode_mask)
    ).sort_values(["source_id", "z", "y", "x"], ignore_index=True)
    areas = rows[["reference", "prediction"]].map(np.count_nonzero).groupby([rows["source_id"], rows["z"]]).sum()
    source_id, z = areas.sort_values(["reference", "prediction"], ascending=False, kind="stable").index[0]
    return rows[(rows["source_id"] == source_id) & (rows["z"] == z)]


def _mosaic(rows: pd.DataFrame, sources: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Assemble a plane: the image [H, W, 3] and its two masks [H, W], shrunk where the whole would be large."""
    source_id, z = rows["source_id"].iloc[0], int(rows["z"].iloc[0])
    table = read_table(sources, "sources", ["source_id", "table"]).to_pandas().set_index("source_id")["table"]
    if source_id not in table.index:
        raise ImageTableError(f"{sources} has no row of {source_id}, which a prediction names")
    path = require_file(sources.parent / "images" / f"{table[source_id]}.parquet", f"the image table of {source_id}")
    images = read_image_table(path, {rows["case_id"].iloc[0]})
    plane = (images.frame["source_id"] == source_id) & (images.frame["z"] == z)
    places = images.frame.loc[plane, ["x", "y"]].assign(row=np.flatnonzero(plane))
    joined = rows.merge(places, on=["x", "y"], validate="one_to_one")
    if len(joined) < len(rows):
        raise ImageTableError(f"{path} lacks {len(rows) - len(joined)} of the {len(rows)} images of {source_id}")
    x, y, size = joined["x"].to_numpy(), joined["y"].to_numpy(), float(joined["size"].iloc[0])
    across = max(np.ptp(x), np.ptp(y)) / size + 1
    edge = int(min(joined["reference"].iloc[0].shape[0], max(MOSAIC_PX // across, 8)))
    # Inverted, so that the places without a tile, which stitching leaves at 0, come out white.
    tiles = np.stack([255 - _shrink(images.load(row)[0], edge) for row in joined["row"].to_numpy()[:, None]])
    masks = {
        name: stitch(np.stack([_shrink(255 * mask, edge) >= 128 for mask in joined[name]]), x, y, size)
        for name in ("reference", "prediction")
    }
    return 255 - stitch(tiles, x, y, size), masks


def _shrink(pixels: np.ndarray, edge: int) -> np.ndarray:
    if pixels.shape[0] == edge:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((edge, edge), Image.Resampling.BOX))


def _draw_overlay(panels: np.ndarray, image: np.ndarray, masks: dict[str, np.ndarray]) -> None:
    """Draw the image alone above, and with the outlines of both masks below."""
    for axes in panels:
        axes.imshow(image, interpolation="antialiased")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    for name, colour, width in (("reference", YELLOW, 2.0), ("prediction", SKY, 1.5)):
        padded = np.pad(masks[name], 1).astype(float)
        if padded.any():
            grid = [np.arange(-1, length - 1) for length in padded.shape[::-1]]
            lines = panels[1].contour(*grid, padded, levels=[0.5], colors=[colour], linewidths=width)
            lines.set_path_effects([effects.withStroke(linewidth=width + 1.2, foreground="black")])
