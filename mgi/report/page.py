"""The report: one page that holds the answer, the tables and the figures of a finished run."""

import base64
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from mgi.errors import MissingInputError
from mgi.files import atomic_write
from mgi.report.summary import (
    explain_comparison,
    format_interval,
    format_p_value,
    is_scaled_outside_folds,
    iterate_rows,
    select_pooled,
)
from mgi.tables import read_csv

MAX_PNG_BYTES = 1 << 20
MISSING = "\N{EN DASH}"
FIGURES = ("comparison", "overlays", "map", "flow", "slides", "losses")
METRICS = {
    "dice": ("Dice by patient", 3),
    "pooled_dice": ("pooled Dice", 3),
    "positive_image_dice": ("Dice, images with tumour", 3),
    "iou": ("IoU", 3),
    "hd95": ("HD95", 1),
    "lesion_recall": ("lesions found", 3),
    "false_lesions": ("false lesions", 1),
    "volume_error": ("volume error", 3),
    "empty_false_positive_rate": ("empty images marked", 3),
}
SEGMENTATION_NOTES = (
    "Dice is taken per patient, over the whole volume or all slides, and averaged over patients, folds pooled; a "
    "patient without tumour and without prediction has 1. Intervals are 95% bootstrap intervals over patients.",
    "HD95 is the mean over a patient's planes with tumour; a plane on which nothing is predicted counts with the "
    "diagonal of the image.",
    "A gain that survives shuffled genes is not a gain from genes.",
)
FOLDS_NOTE = (
    "Patients are split into folds by patient. Step and decision are chosen on validation patients; each test patient "
    "is read once, by a model that never saw it."
)


@dataclass
class Table:
    """A table of the page; `marked` tables show the reference's row in bold, `text` are left-aligned columns."""

    headings: list[str]
    rows: list[list[str]]
    caption: str = ""
    marked: bool = False
    text: set[int] = field(default_factory=set)


def write_page(results: Path | str, output: Path | str) -> None:
    """Write the report of a finished run as one self-contained HTML file.

    Every name and text is escaped, and the page allows itself no script and nothing from outside.

    Parameters
    ----------
    results
        results/{cohort}: evaluate/comparison.csv is required, or, of pre-training alone, evaluate/retrieval.csv;
        finetune/{variant}/summary.json, cohort_flow.csv, expression.parquet and report/*.png are used where they exist.
    output
        The HTML file.

    Raises
    ------
    MissingInputError
        If both are missing, or lack a column.
    """
    results = Path(results)
    evaluated = results / "evaluate"
    segments = (evaluated / "comparison.csv").exists() or not (evaluated / "retrieval.csv").exists()
    shown = _show_segmentation(results) if segments else _show_pretraining(evaluated / "retrieval.csv")
    notes = [*shown.pop("notes"), FOLDS_NOTE]
    if is_scaled_outside_folds(results / "expression.parquet"):
        notes.append(
            "Expression was scaled outside the folds, test patients included: a mild leak of the inputs' scale, though "
            "of no label."
        )
    environment = Environment(
        loader=PackageLoader("mgi.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("page.html").render(
        cohort=results.absolute().name,
        **shown,
        retrieval=_retrieval_table(evaluated / "retrieval.csv"),
        flow=_flow_table(results / "cohort_flow.csv"),
        figures={name: _embed(results / "report" / f"{name}.png") for name in FIGURES},
        notes=notes,
    )
    with atomic_write(output) as aside:
        aside.write_text(page, encoding="utf-8")


def _show_segmentation(results: Path) -> dict[str, Any]:
    """Return what the page says of the variants that were compared."""
    path = results / "evaluate" / "comparison.csv"
    comparison = read_csv(path, "the comparison of variants")
    if "difference" not in comparison or comparison.empty or not comparison["difference"].isna().any():
        raise MissingInputError(f"{path} is not written by mgi compare")
    reference = comparison.loc[comparison["difference"].isna(), "variant"].iloc[0]
    summaries = {
        variant: json.loads(path.read_text())
        for variant in comparison["variant"]
        if (path := results / "finetune" / variant / "summary.json").exists()
    }
    notes = list(SEGMENTATION_NOTES)
    if note := summaries.get(reference, {}).get("note"):
        notes.insert(0, f"{note[0].upper()}{note[1:]}.")
    return {
        "reference": reference,
        "answer": _answer(comparison, reference),
        "cards": _cards(comparison, reference, summaries.get(reference, {})),
        "comparison": _comparison_table(comparison, reference),
        "metrics": _metrics_table(summaries),
        "projects": _projects_table(results / "evaluate" / "projects.csv"),
        "pairs": _pairs_table(results / "evaluate" / "pairs.csv"),
        "seeds": _seeds_table(results / "evaluate" / "seeds.csv"),
        "notes": notes,
    }


def _show_pretraining(path: Path) -> dict[str, Any]:
    """Return what the page says where nothing is segmented: how often a patient's images find its genes."""
    pooled = select_pooled(read_csv(path, "the retrieval", ["fold", "gallery", "k", "direction"]))
    found = pooled[pooled["direction"] == "patient-to-gene"]
    if found.empty:
        raise MissingInputError(f"{path} is not written by mgi retrieve")
    row = next(iterate_rows(found))
    interval = format_interval(row.low, row.high)
    share = f"{row.recall:.3f} {interval}".rstrip()
    answer = (
        f"By {row.variant}, a patient's images find its genes first in {share} of {row.n_queries} test patients; by "
        f"chance, in {row.chance:.3f}."
    )
    cards = [
        (f"{row.recall:.3f}", f"recall@1, patient to gene, {row.variant}"),
        (f"{row.chance:.3f}", "of it by chance"),
        (f"{row.n_queries}", "test patients"),
    ]
    none = {"comparison": None, "metrics": None, "pairs": None, "projects": None, "seeds": None}
    return {"reference": row.variant, "answer": answer, "cards": cards, "notes": [], **none}


def _embed(path: Path) -> str:
    """Return a figure as a data address: the PNG, or where that is large, as those of tissue are, a JPEG of it."""
    if not path.exists():
        return ""
    kind, encoded = "png", path.read_bytes()
    if len(encoded) > MAX_PNG_BYTES:
        buffer = io.BytesIO()
        with Image.open(path, formats=["PNG"]) as picture:
            picture.convert("RGB").save(buffer, "JPEG", quality=88)
        kind, encoded = "jpeg", buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"


def _answer(comparison: pd.DataFrame, reference: str) -> str:
    """Return the result in one or two sentences."""
    table = comparison.set_index("variant")
    row: Any = table.loc[reference]
    interval = format_interval(float(row["low"]), float(row["high"]))
    sentences = [
        f"{reference} reaches a mean Dice of {row['dice']:.3f} {interval}".rstrip()
        + f" over {row['n_patients']:.0f} patients that it was not trained on."
    ]
    # None where the reference is compared with its repetitions alone.
    for _, primary in table[table["primary"].astype(bool)].iterrows():
        sentences.append(_judge(reference, primary))
    return " ".join(sentences)


def _judge(reference: str, row: pd.Series) -> str:
    """Return what the primary contrast says, and no more."""
    difference, low, high = (float(row[name]) for name in ("difference", "difference_low", "difference_high"))
    interval = format_interval(low, high, "+")
    if pd.isna(low):
        return f"The difference from {row.name} is {difference:+.3f}, of too few patients to tell it from chance."
    words = "higher" if difference > 0 else "lower"
    if low <= 0 <= high:
        return f"That is not distinguishable from {row.name}: the difference is {difference:+.3f} {interval}."
    return f"That is {abs(difference):.3f} {words} than {row.name} {interval}."


def _cards(comparison: pd.DataFrame, reference: str, summary: dict[str, Any]) -> list[tuple[str, str]]:
    row = comparison.set_index("variant").loc[reference]
    cards = [(f"{row['dice']:.3f}", f"Dice by patient, {reference}"), (f"{row['n_patients']:.0f}", "test patients")]
    for other in iterate_rows(comparison[comparison["difference"].notna()].head(2)):
        cards.insert(-1, (f"{other.difference:+.3f}", f"{reference} minus {other.variant}"))
    share = summary.get("untiled_tumour_share")
    if share:
        cards.append((f"{share:.1%}", "of the tumour in no tile, counted as missed"))
    return cards


def _comparison_table(comparison: pd.DataFrame, reference: str) -> Table:
    headings = [
        "variant", "patients", "Dice", "95% interval", f"{reference} minus variant", "95% interval", "p", "detectable"
    ]  # fmt: skip
    rows = []
    for row in iterate_rows(comparison):
        cells = [row.variant, f"{row.n_patients}", f"{row.dice:.3f}", format_interval(row.low, row.high)]
        if row.variant != reference:
            cells += [
                f"{row.difference:+.3f}",
                format_interval(row.difference_low, row.difference_high, "+"),
                format_p_value(row.p_value if row.primary else row.p_holm),
                "" if pd.isna(row.detectable) else f"{row.detectable:.3f}",
            ]
        rows.append(cells + [""] * (len(headings) - len(cells)))
    return Table(headings, rows, " ".join(explain_comparison(comparison)), marked=True)


def _metrics_table(summaries: dict[str, dict[str, Any]]) -> Table | None:
    """Return the mean of every metric, a row per metric and a column per variant."""
    if not summaries:
        return None
    rows = []
    for name, (words, decimals) in METRICS.items():
        forms = [summary.get(name) or {} for summary in summaries.values()]
        unit = next((f", {form['unit']}" for form in forms if "unit" in form), "")
        cells = [MISSING if form.get("mean") is None else f"{form['mean']:.{decimals}f}" for form in forms]
        if set(cells) != {MISSING}:
            rows.append([f"{words}{unit}", *cells])
    return Table(["mean over patients", *summaries], rows, _count_missed(summaries))


def _projects_table(path: Path) -> Table | None:
    """Return the Dice by project, a row per variant; None of a single project."""
    if not path.exists():
        return None
    table = read_csv(path, "the metrics by project", ["project", "variant", "n_patients", "dice", "low", "high"])
    if table["project"].nunique(dropna=False) < 2:
        return None
    rows: dict[str, list[str]] = {}
    headings = ["Dice by project"]
    for row in iterate_rows(table):
        project = "no project" if pd.isna(row.project) else str(row.project)
        headings += [] if project in headings else [project]
        dice = f"{row.dice:.3f} {format_interval(row.low, row.high)}".rstrip()
        cell = MISSING if pd.isna(row.dice) else f"{dice} of {row.n_patients:.0f}"
        rows.setdefault(str(row.variant), []).append(cell)
    caption = "Mean over the test patients of each project, with its 95% interval and their number."
    return Table(headings, [[variant, *cells] for variant, cells in rows.items()], caption, marked=True)


def _pairs_table(path: Path) -> Table | None:
    """Return the differences of the variants other than the reference; None where there are fewer than two."""
    if not path.exists():
        return None
    columns = ["first", "second", "n_paired", "difference", "low", "high", "p_holm"]
    table = read_csv(path, "the differences of other variants", columns)
    rows = [
        [f"{row.first} minus {row.second}", f"{row.n_paired:.0f}", f"{row.difference:+.3f}",
         format_interval(row.low, row.high, "+"), format_p_value(row.p_holm)]
        for row in iterate_rows(table)
    ]  # fmt: skip
    headings = ["other differences", "patients", "Dice", "95% interval", "p"]
    caption = (
        "Two controls that both lack the patient's own genes should not differ. p is adjusted for these rows (Holm)."
    )
    return Table(headings, rows, caption) if rows else None


def _seeds_table(path: Path) -> Table | None:
    """Return the spread over seeds, a row per repeated variant; None where there is none."""
    if not path.exists():
        return None
    table = read_csv(path, "the spread over seeds", ["variant", "seeds", "n_patients", "dice", "sd", "low", "high"])
    headings = ["Over seeds", "seeds", "mean Dice", "SD over seeds"]
    rows = [
        [str(row.variant), f"{row.seeds:.0f}", f"{row.dice:.3f} {format_interval(row.low, row.high)}".rstrip(),
         f"{row.sd:.4f}"]
        for row in iterate_rows(table)
    ]  # fmt: skip
    caption = "The same variant trained with several seeds; the interval resamples the seeds and then the patients."
    return Table(headings, rows, caption, marked=True) if rows else None


def _count_missed(summaries: dict[str, dict[str, Any]]) -> str:
    missed = [
        f"{form['missed_planes']} of {form['tumour_planes']} by {variant}"
        for variant, summary in summaries.items()
        if (form := summary.get("hd95") or {}).get("missed_planes")
    ]
    return f"Planes with tumour on which nothing was predicted: {', '.join(missed)}." if missed else ""


def _retrieval_table(path: Path) -> Table | None:
    if not path.exists():
        return None
    pooled = select_pooled(read_csv(path, "the retrieval"))
    rows = [
        [row.variant, row.direction, f"{row.recall:.3f}", format_interval(row.low, row.high),
         f"{row.chance:.3f}", format_p_value(row.p_value), f"{row.median_rank:g}", f"{row.hubness:.2f}",
         f"{row.n_queries:,}", f"{row.n_gallery:,}"]
        for row in iterate_rows(pooled)
    ]  # fmt: skip
    headings = ["pre-training", "direction", "recall@1", "95% interval", "chance", "p", "median rank", "hubness",
                "queries", "gallery"]  # fmt: skip
    caption = (
        "How often images find their own patient's genes first among those of the test patients of their fold, and "
        "genes their images. Hubness: the share of queries that the two most frequent answers take. ridge-yardstick: "
        "ridge regression of colour and texture statistics, or of precomputed features, on ten principal components of "
        "the genes."
    )
    return Table(headings, rows, caption, text={1})


def _flow_table(path: Path) -> Table | None:
    if not path.exists():
        return None
    cells = [
        [
            str(row.step),
            f"{row.cases:,}",
            f"{row.lost:,}" if row.lost else "",
            "" if pd.isna(row.reason) else str(row.reason),
        ]
        for row in iterate_rows(read_csv(path, "the cohort flow"))
    ]
    return Table(["step", "cases", "lost", "reason"], cells, text={3})
