"""The application, its groups of commands, and the options that several commands share."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from mgi.config.section import Section

S = TypeVar("S", bound="Section")

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


def override_options(section: "type[S]", text: str, **given: object) -> "S":
    """Return a section of the configuration read from `--options`, with the options that were given by themselves."""
    from mgi.config import load_options

    options = load_options(section, text).model_dump(exclude_none=True)
    given = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
    return load_options(
        section, json.dumps(options | {name: value for name, value in given.items() if value is not None})
    )
