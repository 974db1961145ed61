"""Commands that draw and print the report."""

from pathlib import Path
from typing import Annotated

import typer

from mgi.cli.common import Output, Sources, add_group

report_app = add_group("report", "Draw and write the report.")


@report_app.command("flow", epilog="Example: mgi report flow cohort_flow.csv -o flow.png")
def report_flow(flow: Annotated[Path, typer.Argument(help="cohort_flow.csv.")], output: Output) -> None:
    """Draw how many cases each step kept."""
    from mgi.report.figures import draw_flow

    draw_flow(flow, output)


@report_app.command("losses", epilog="Example: mgi report losses finetune/mgi/fold*/metrics.csv -o losses.png")
def report_losses(
    metrics: Annotated[list[Path], typer.Argument(help="metrics.csv of training runs.")], output: Output
) -> None:
    """Draw loss and validation curves."""
    from mgi.report.figures import draw_losses

    draw_losses(metrics, output)


@report_app.command("comparison", epilog="Example: mgi report comparison evaluate -o comparison.png")
def report_comparison(
    evaluated: Annotated[Path, typer.Argument(help="Folder written by `mgi compare`.")], output: Output
) -> None:
    """Draw every variant's Dice by patient with its interval."""
    from mgi.report.figures import draw_comparison

    draw_comparison(evaluated, output)


@report_app.command(
    "overlays", epilog="Example: mgi report overlays finetune/mgi --sources sources.parquet -o overlays.png"
)
def report_overlays(
    variant: Annotated[Path, typer.Argument(help="A variant's folder, with summary and fold*/predictions.parquet.")],
    sources: Sources,
    output: Output,
) -> None:
    """Draw reference and prediction for the best, median and worst patient."""
    from mgi.report.figures import draw_overlays

    draw_overlays(variant, sources, output)


@report_app.command("map", epilog="Example: mgi report map fold*/embeddings.parquet --labels splits.parquet -o map.png")
def report_map(
    embeddings: Annotated[list[Path], typer.Argument(help="embeddings.parquet of each fold.")],
    labels: Annotated[Path, typer.Option(help="A table with case_id and the label that colours.")],
    output: Output,
    column: Annotated[str, typer.Option(help="The column of the label.")] = "site",
) -> None:
    """Draw the embeddings of every test patient's images and genes, joined by a line."""
    from mgi.report.map import draw_map

    draw_map(embeddings, labels, column, output)


@report_app.command("slides", epilog="Example: mgi report slides sources.parquet --previews previews -o slides.png")
def report_slides(
    sources: Annotated[Path, typer.Argument(help="sources.parquet.")],
    previews: Annotated[Path, typer.Option(help="Folder of the previews of every table of images.")],
    output: Output,
) -> None:
    """Draw the contact sheet of the slides, those left out with their reasons."""
    from mgi.report.sheet import draw_sheet

    draw_sheet(sources, previews, output)


@report_app.command("page", epilog="Example: mgi report page results/simulated -o results/simulated/report/index.html")
def report_page(results: Annotated[Path, typer.Argument(help="results/{cohort}.")], output: Output) -> None:
    """Write the report of a finished run as one self-contained HTML page."""
    from mgi.report.page import write_page

    write_page(results, output)


@report_app.command("table", epilog="Example: mgi report table results/simulated")
def report_table(results: Annotated[Path, typer.Argument(help="results/{cohort}.")]) -> None:
    """Print the metrics, the paired differences and the retrieval of a finished run."""
    from mgi.report.summary import print_summary

    print_summary(results)
