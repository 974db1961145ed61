"""The application, its groups of commands, and the options that several commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="MGI: from a TCGA cohort to a tumour-segmentation model that knows the patient's genes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def add_group(name: str, text: str) -> typer.Typer:
    """Add a group of commands to the application."""
    group = typer.Typer(help=text, no_args_is_help=True)
    app.add_typer(group, name=name)
    return group


class DeviceName(StrEnum):
    """Where a model runs."""

    CPU = "cpu"
    CUDA = "cuda"


Output = Annotated[Path, typer.Option("-o", "--output", help="Where to write.")]
Sources = Annotated[Path, typer.Option("--sources", help="sources.parquet; its image tables lie in images/ beside it.")]
TiledSources = Annotated[
    Path | None,
    typer.Option("--sources", help="sources.parquet or a status table: tumour outside of all tiles counts as missed."),
]
ExpressionTable = Annotated[
    Path, typer.Option("--expression", help="expression.parquet; genes.parquet lies beside it.")
]
Splits = Annotated[Path, typer.Option("--splits", help="splits.parquet.")]
Options = Annotated[str, typer.Option("--options", help="The variant's options: JSON text, or a YAML file.")]
Device = Annotated[
    DeviceName | None, typer.Option("--device", help="Where to compute; default: what this machine has.")
]
