"""Commands about this machine and the configuration."""

from pathlib import Path
from typing import Annotated

import typer

from mgi.cli.common import app
from mgi.console import log


@app.command(epilog="Example: mgi doctor --config config/tcga-brca.yaml")
def doctor(
    config: Annotated[Path | None, typer.Option(help="Check what this configuration names, too.")] = None,
) -> None:
    """Show what this machine has and lacks, with the fix for each; exit with 1 if something needed is missing."""
    from mgi.doctor import examine
    from mgi.findings import FAIL

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
    write: Annotated[
        Path | None, typer.Option(help="Write config.yaml, schema.json and the README's table into this folder.")
    ] = None,
) -> None:
    """Check a configuration, the files that it names and its models; or write its reference."""
    from mgi.check import check_configuration
    from mgi.config import write_reference

    if file is None and write is None:
        raise typer.BadParameter("give a file to check, or --write")
    if file is not None:
        log.info("%s is valid: cohort %s", file, check_configuration(file).cohort)
    if write is not None:
        write_reference(write)


@app.command(epilog="Example: mgi check config/tcga-brca.yaml --receipt checked.txt")
def check(
    config: Annotated[str, typer.Argument(help="A configuration: a YAML file, or JSON text.")],
    receipt: Annotated[list[Path] | None, typer.Option(help="Write what was checked here; repeatable.")] = None,
) -> None:
    """Check before a run that this machine can build and train every variant's model."""
    from mgi.check import check_models
    from mgi.config import load_config
    from mgi.files import atomic_write

    settings = load_config(config)
    check_models(settings)
    for path in receipt or []:
        with atomic_write(path) as part:
            part.write_text(settings.model_dump_json(indent=2, exclude_none=True) + "\n")
    inputs = f"images of {settings.image_px} px" if settings.image_px else "precomputed features"
    count = len(settings.pretrain) + len(settings.finetune)
    log.info("%d models can be built for %s on %s", count, inputs, settings.device)
