"""A map of the space that images and genes share: every test patient twice, the two joined by a line."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from mgi.errors import CohortError
from mgi.report.figures import BLUE, FAINT, FOLD_COLOURS, GREEN, ORANGE, PURPLE, RED, SKY, SOFT, draw_figure
from mgi.tables import read_any_table, read_table

COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
MAX_FOLDS = len(FOLD_COLOURS)
MARKS = {"patient": "o", "gene": "^"}
NAMES = {"patient": "images of a patient", "gene": "its genes"}


def draw_map(embeddings: list[Path], labels: Path, column: str, out: Path) -> None:
    """Draw the patients' embeddings of each fold on their first two principal components, coloured by a label.

    Parameters
    ----------
    embeddings
        embeddings.parquet of the folds, each a space of its own and so a panel; the first `MAX_FOLDS` are drawn.
    labels, column
        A table with case_id, and the column that colours: its most frequent values, the others grey.
    out
        PNG or SVG.

    Raises
    ------
    CohortError
        If a fold has fewer than two patients.
    """
    table = read_any_table(labels, "table of labels", ["case_id", column]).drop_duplicates("case_id")
    label = table.set_index("case_id")[column].fillna("not stated").to_dict()
    folds = [_read_patients(path) for path in embeddings[:MAX_FOLDS]]
    shown = Counter(label.get(case, "not stated") for fold in folds for case in fold.case_id)
    colours = dict(zip([name for name, _ in shown.most_common(len(COLOURS))], COLOURS, strict=False))
    columns = min(3, len(folds))
    rows = -(-len(folds) // columns)
    with draw_figure(out, 4.2 * columns, 4.0 * rows + 0.6) as figure:
        panels = figure.subplots(rows, columns, squeeze=False)
        for axes, fold, path in zip(panels.flat, folds, embeddings, strict=False):
            _draw_fold(axes, fold, [colours.get(label.get(case, "not stated"), SOFT) for case in fold.case_id])
            axes.set_title(path.parent.name.replace("fold", "fold "))
        for axes in panels.flat[len(folds) :]:
            axes.set_visible(False)
        handles = [Line2D([], [], marker=MARKS[kind], color=SOFT, ls="", label=NAMES[kind]) for kind in MARKS]
        handles += [Line2D([], [], marker="s", color=colour, ls="", label=name) for name, colour in colours.items()]
        if len(shown) > len(colours):
            handles.append(Line2D([], [], marker="s", color=SOFT, ls="", label=f"{len(shown) - len(colours)} others"))
        figure.legend(handles=handles, loc="outside lower center", ncols=4, title=f"colour: {column}")


def _read_patients(path: Path) -> pd.DataFrame:
    """Read the vectors of a fold's patients and of their genes: case_id, kind and vector."""
    frame = read_table(path, "table of embeddings", ["case_id", "kind", "vector"]).to_pandas()
    paired = frame[frame.kind.isin(MARKS)].groupby("case_id").filter(lambda rows: set(rows.kind) == set(MARKS))
    if len(paired) < 2 * len(MARKS):
        raise CohortError(f"{path} has too few patients with images and genes to draw a map of")
    return paired


def _draw_fold(axes: Axes, fold: pd.DataFrame, colours: list[str]) -> None:
    vectors = np.stack(fold.vector.to_list()).astype(np.float64)
    left, strength, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    # The sign of a component is arbitrary; this one does not depend on the library.
    signs = np.where(np.abs(left).argmax(axis=0) == left.argmax(axis=0), 1, -1)
    places = pd.DataFrame((left * signs * strength)[:, :2], columns=["x", "y"])
    places = places.assign(case_id=fold.case_id.to_numpy(), kind=fold.kind.to_numpy(), colour=colours)
    for _, pair in places.groupby("case_id"):
        axes.plot(pair.x, pair.y, color=FAINT, lw=0.8, zorder=1)
    for kind, marker in MARKS.items():
        own = places[places.kind == kind]
        axes.scatter(own.x, own.y, c=own.colour.tolist(), marker=marker, s=28, zorder=2)
    share = strength**2 / np.square(strength).sum()
    axes.set(xlabel=f"component 1 ({share[0]:.0%})", ylabel=f"component 2 ({share[1]:.0%})", xticks=[], yticks=[])
