"""The table that ends a run: metrics, paired differences, retrieval beside chance, and the path of the report."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mgi.evaluate.statistics import MIN_PATIENTS
from mgi.tables import read_csv

LOG_WIDTH = 120


def print_summary(results: Path | str) -> None:
    """Print the results of a finished run to standard output: coloured on a terminal, plain text elsewhere.

    Parameters
    ----------
    results
        results/{cohort}: evaluate/comparison.csv is required, or, of pre-training alone, evaluate/retrieval.csv;
        cohort_flow.csv, expression.parquet and report/index.html are used where they exist.

    Raises
    ------
    MissingInputError
        If both are missing.
    """
    results = Path(results)
    console = Console()
    if not console.is_terminal:
        console = Console(width=LOG_WIDTH)
    comparison, retrieval = (results / "evaluate" / f"{name}.csv" for name in ("comparison", "retrieval"))
    if comparison.exists() or not retrieval.exists():
        console.print(_metrics(read_csv(comparison, "the comparison of variants")))
    if retrieval.exists():
        console.print(_retrieval(read_csv(retrieval, "the retrieval")))
    flow = results / "cohort_flow.csv"
    if flow.exists():
        for line in _lost(read_csv(flow, "the cohort flow")):
            console.print(Text(make_printable(line)), soft_wrap=True)
    if is_scaled_outside_folds(results / "expression.parquet"):
        console.print(
            "Note: the expression values were scaled outside the folds (z-scores of the whole cohort, test patients"
            " included), so they carry a little of the test patients into training."
        )
    page = results / "report" / "index.html"
    if page.exists():
        console.print(Text(f"Report: {page}"), soft_wrap=True)


def _metrics(comparison: pd.DataFrame) -> Table:
    reference = comparison.loc[comparison["difference"].isna(), "variant"].iloc[0]
    table = Table(title="Dice by patient, mean and 95% interval", title_justify="left", caption_justify="left")
    table.add_column("variant", no_wrap=True)
    for heading in (
        "patients",
        "Dice",
        "95% interval",
        f"{reference} minus variant",
        "95% interval",
        "p",
        "detectable",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in iterate_rows(comparison):
        cells = [row.variant, str(row.n_patients), f"{row.dice:.3f}", format_interval(row.low, row.high)]
        if row.variant != reference:
            interval = format_interval(row.difference_low, row.difference_high, "+")
            p_value = row.p_value if row.primary else row.p_holm
            detectable = "" if pd.isna(row.detectable) else f"{row.detectable:.3f}"
            cells += [f"{row.difference:+.3f}", interval, format_p_value(p_value), detectable]
        table.add_row(*map(Text, cells))
    table.caption = Text(" ".join(explain_comparison(comparison)))
    return table


def iterate_rows(table: pd.DataFrame) -> Iterator[Any]:
    """Yield the rows of a table, with their columns as attributes."""
    return table.itertuples(index=False)


def format_interval(low: float, high: float, sign: str = "") -> str:
    """Write an interval to three decimals; empty where there is none."""
    return "" if pd.isna(low) else f"[{low:{sign}.3f}, {high:{sign}.3f}]"


def format_p_value(p_value: float) -> str:
    """Write a p-value to three decimals; empty where there is none."""
    return "" if pd.isna(p_value) else "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def explain_comparison(comparison: pd.DataFrame) -> list[str]:
    """Return the sentences that a table of comparison.csv needs to be read."""
    reference = comparison.loc[comparison["difference"].isna(), "variant"].iloc[0]
    others = comparison[comparison["variant"] != reference]
    if others.empty:
        return []
    if others["difference_low"].isna().any():
        return [f"Fewer than {MIN_PATIENTS} patients: no interval and no p-value."]
    primary = others.loc[others["primary"].astype(bool), "variant"]
    sentences = [f"Primary contrast: {reference} minus {variant}." for variant in primary]
    if others["p_holm"].notna().any():
        sentences.append("The other p-values are adjusted by Holm's method.")
    return [*sentences, "Detectable: the smallest difference that so many patients show with 80% power."]


def select_pooled(retrieval: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of retrieval.csv over all folds, each in its whole gallery, at k = 1."""
    whole = (retrieval["fold"].astype(str) == "all") & (retrieval["gallery"] == "all")
    return retrieval[whole & (retrieval["k"] == 1)]


def _retrieval(retrieval: pd.DataFrame) -> Table:
    pooled = select_pooled(retrieval)
    table = Table(title="Retrieval among a fold's test patients, recall@1", title_justify="left")
    table.add_column("pre-training", no_wrap=True)
    table.add_column("direction", no_wrap=True)
    for heading in ("recall@1", "95% interval", "chance", "median rank", "gallery"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in iterate_rows(pooled):
        interval = format_interval(row.low, row.high)
        numbers = [f"{row.recall:.3f}", interval, f"{row.chance:.3f}", f"{row.median_rank:g}", str(row.n_gallery)]
        table.add_row(Text(row.variant), row.direction, *numbers)
    return table


def make_printable(text: str) -> str:
    """Escape control and invisible characters, which could act on a terminal."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def _lost(flow: pd.DataFrame) -> list[str]:
    """Return a line for each step of the cohort flow that lost cases, with the reason."""
    lossy = flow[flow["lost"] > 0]
    return [f"Cases {row.step}: {row.cases}; {row.lost} left out: {row.reason}" for row in iterate_rows(lossy)]


def is_scaled_outside_folds(expression: Path) -> bool:
    """Return whether expression.parquet says that its z-scores were fitted over all patients; False without it."""
    if not expression.exists():
        return False
    return (pq.read_schema(expression).metadata or {}).get(b"scale_fitted") == b"outside the folds"
