"""Commands about this machine and the configuration."""

from pathlib import Path
from typing import Annotated

import typer

from mgi.cli.common import app
from mgi.console import log


@app.command(epilog="Example: mgi doctor --config config/tcga-brca.yaml")
def doctor(
    config: Annotated[Path | None, typer.Option(help="Examine what this configuration names, too.")] = None,
) -> None:
    """Tell what is missing on this machine, and the fix for each; exit with 1 if anything needed is."""
    from mgi.doctor import FAIL, examine

    failed = 0
    for finding in examine(config):
        fix = f"; {finding.fix}" if finding.fix else ""
        print(f"{finding.state}  {finding.subject:<20}  {finding.found}{fix}", flush=True)
        failed += finding.state == FAIL
    if failed:
        raise typer.Exit(1)


@app.command("config", epilog="Example: mgi config config/config.yaml, or mgi config --write config")
def config_command(
    file: Annotated[Path | None, typer.Argument(help="A configuration to check.")] = None,
    write: Annotated[Path | None, typer.Option(help="Write schema.json and the README's table here.")] = None,
) -> None:
    """Check a configuration, or write its schema and reference."""
    from mgi.config import load_config, write_reference

    if file is None and write is None:
        raise typer.BadParameter("give a file to check, or --write")
    if file is not None:
        log.info("%s is valid: cohort %s", file, load_config(file).cohort)
    if write is not None:
        write_reference(write)
