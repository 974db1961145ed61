"""The application, its groups of commands, and the options that several commands share."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from mgi.config import EvaluateOptions, Section, TileOptions
from mgi.console import set_up_logging
from mgi.files import require_file

app = typer.Typer(
    help="MGI: from a TCGA cohort to a tumour-segmentation model that knows the patient's genes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _print_version(asked: bool) -> None:
    if asked:
        import mgi

        print(f"mgi {mgi.__version__}")
        raise typer.Exit


@app.callback()
def set_up(
    verbose: Annotated[bool, typer.Option("--verbose", help="Show debug messages and the causes of errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Read the options that stand before a command."""
    if verbose:
        set_up_logging(verbose=True)


def add_group(name: str, text: str) -> typer.Typer:
    """Add a group of commands to the application."""
    group = typer.Typer(help=text, no_args_is_help=True)
    app.add_typer(group, name=name)
    return group


def flag(section: type[Section], key: str, *names: str) -> Any:
    """Return the option of a command that sets one key of its options; help and default come from the key."""
    field = section.model_fields[key]
    text = str(field.description)
    default = field.get_default()
    shown = "" if field.is_required() or default is None or default == [] else f"; default: {json.dumps(default)}"
    return typer.Option(*names, help=f"{text[0].upper()}{text[1:]}{shown}.", show_default=False)


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
Options = Annotated[
    str,
    typer.Option(
        "--options",
        help="Options as JSON text, or a YAML file; the other options of this command replace its values.",
        show_default=False,
    ),
]
Mpp = Annotated[float | None, flag(TileOptions, "mpp")]
TilePx = Annotated[int | None, flag(TileOptions, "tile_px")]
DefaultMpp = Annotated[float | None, flag(TileOptions, "default_mpp")]
MinTissue = Annotated[float | None, flag(TileOptions, "min_tissue")]
BootstrapSamples = Annotated[int | None, flag(EvaluateOptions, "bootstrap_samples")]
BootstrapSeed = Annotated[int | None, flag(EvaluateOptions, "seed")]
Device = Annotated[
    DeviceName | None, typer.Option("--device", help="Where to compute; default: what this machine has.")
]


def require_inputs(**paths: Path | None) -> None:
    """Check that the inputs of a command are there before it imports heavy libraries.

    Parameters
    ----------
    **paths
        Files, named by what they are, with `_` for a space.

    Raises
    ------
    MissingInputError
        For the first that is missing.
    """
    for what, path in paths.items():
        if path is not None:
            require_file(path, what.replace("_", " "))
