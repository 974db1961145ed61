"""The table that ends a run: metrics, paired differences, retrieval beside chance, and where the report is."""

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mgi.files import require_file

LOG_WIDTH = 120


def print_summary(results: Path | str) -> None:
    """Print to standard output what a finished run found: coloured on a terminal, plain text elsewhere.

    Parameters
    ----------
    results
        results/{cohort}: evaluate/comparison.csv is required; cohort_flow.csv, evaluate/retrieval.csv,
        expression.parquet and report.html are told of where they are.

    Raises
    ------
    MissingInputError
        If comparison.csv is not there.
    """
    results = Path(results)
    console = Console()
    if not console.is_terminal:
        console = Console(width=LOG_WIDTH)
    comparison = pd.read_csv(require_file(results / "evaluate" / "comparison.csv", "the comparison of variants"))
    console.print(_metrics(comparison))
    retrieval = results / "evaluate" / "retrieval.csv"
    if retrieval.exists():
        console.print(_retrieval(pd.read_csv(retrieval)))
    flow = results / "cohort_flow.csv"
    if flow.exists():
        for line in _lost(pd.read_csv(flow)):
            console.print(Text(line), soft_wrap=True)
    if _scaled_outside(results / "expression.parquet"):
        console.print(
            "Note: the expression values were scaled outside the folds (z-scores of the whole cohort, test patients"
            " included), so they carry a little of the test patients into training."
        )
    report = results / "report.html"
    if report.exists():
        console.print(Text(f"Report: {report}"), soft_wrap=True)


def _metrics(comparison: pd.DataFrame) -> Table:
    reference = comparison.loc[comparison["difference"].isna(), "variant"].iloc[0]
    table = Table(title="Dice by patient, mean and 95% interval", title_justify="left")
    table.add_column("variant", no_wrap=True)
    for heading in ("patients", "Dice", "95% interval", f"{reference} minus variant", "95% interval", "p"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in comparison.itertuples():
        cells = [row.variant, str(row.n_patients), f"{row.dice:.3f}", f"[{row.low:.3f}, {row.high:.3f}]"]
        if row.variant != reference:
            interval = f"[{row.difference_low:+.3f}, {row.difference_high:+.3f}]"
            p_value = "" if pd.isna(row.p_value) else "<0.001" if row.p_value < 0.001 else f"{row.p_value:.3f}"
            cells += [f"{row.difference:+.3f}", interval, p_value]
        table.add_row(*map(Text, cells))
    return table


def _retrieval(retrieval: pd.DataFrame) -> Table:
    pooled = retrieval[(retrieval["fold"].astype(str) == "all") & (retrieval["k"] == 1)]
    table = Table(title="Retrieval among a fold's test patients, recall@1", title_justify="left")
    table.add_column("pre-training", no_wrap=True)
    table.add_column("direction", no_wrap=True)
    for heading in ("recall@1", "chance", "times chance", "queries", "gallery"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in pooled.itertuples():
        numbers = [f"{row.recall:.3f}", f"{row.chance:.3f}", f"{row.recall / row.chance:.1f}"]
        table.add_row(Text(row.variant), row.direction, *numbers, str(row.n_queries), str(row.n_gallery))
    return table


def _lost(flow: pd.DataFrame) -> list[str]:
    """Say at which steps of the cohort flow cases fell out, and why."""
    lossy = flow[flow["lost"] > 0]
    return [f"Cases {row.step}: {row.cases}; {row.lost} left out: {row.reason}" for row in lossy.itertuples()]


def _scaled_outside(expression: Path) -> bool:
    if not expression.exists():
        return False
    return (pq.read_schema(expression).metadata or {}).get(b"scale_fitted") == b"outside the folds"
