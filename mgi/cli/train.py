"""Commands that train."""

from pathlib import Path
from typing import Annotated

import typer

from mgi.cli.common import ExpressionTable, Options, Output, Sources, Splits, app
from mgi.config import FinetuneOptions, PretrainOptions, load_config, load_options
from mgi.console import log
from mgi.files import atomic_write


@app.command(epilog="Example: mgi check --options config/config.yaml")
def check(
    options: Annotated[str, typer.Option(help="A configuration: JSON text, or a YAML file.")],
    receipt: Annotated[list[Path] | None, typer.Option(help="Write what was checked here; repeatable.")] = None,
) -> None:
    """Check that the device is there and that every variant's model can be built at the images' size."""
    from mgi.train.preflight import check_models

    config = load_config(options)
    check_models(config)
    for path in receipt or []:
        with atomic_write(path) as aside:
            aside.write_text(config.model_dump_json(indent=2, exclude_none=True) + "\n")
    log.info("%d models can be built and run on %s", len(config.pretrain) + len(config.finetune), config.device)


@app.command(epilog="Example: mgi pretrain --sources S --expression E --splits P --fold 0 --options mgi.yaml -o fold0")
def pretrain(
    sources: Sources,
    expression: ExpressionTable,
    splits: Splits,
    output: Output,
    options: Options = "{}",
    fold: Annotated[str, typer.Option(help="The fold whose training patients are used, or `all`.")] = "0",
) -> None:
    """Align the gene encoder and the image encoder on a fold's paired training patients."""
    from mgi.train.pretrain import pretrain as run

    run(load_options(PretrainOptions, options), sources, expression, splits, fold, output)


@app.command(epilog="Example: mgi finetune --sources S --expression E --splits P --fold 0 --pretrained DIR -o fold0")
def finetune(
    sources: Sources,
    splits: Splits,
    output: Output,
    expression: Annotated[
        Path | None, typer.Option(help="expression.parquet; a variant with `genes: none` needs none.")
    ] = None,
    options: Options = "{}",
    fold: Annotated[str, typer.Option(help="The fold, or `all` for the model of every patient.")] = "0",
    pretrained: Annotated[Path | None, typer.Option(help="Folder of the pre-trained encoders.")] = None,
) -> None:
    """Fine-tune the segmenter on a fold and predict its test patients."""
    from mgi.train.finetune import finetune as run

    run(load_options(FinetuneOptions, options), sources, expression, splits, fold, pretrained, output)
