"""Commands that train."""

from pathlib import Path
from typing import Annotated

import typer

from mgi.cli.common import ExpressionTable, Options, Output, Sources, Splits, app, require_inputs
from mgi.config import FinetuneOptions, PretrainOptions, load_options


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
    chosen = load_options(PretrainOptions, options)
    require_inputs(table_of_splits=splits, table_of_sources=sources, expression_table=expression)
    from mgi.train.pretrain import pretrain as run

    run(chosen, sources, expression, splits, fold, output)


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
    folds: Annotated[
        list[Path] | None,
        typer.Option(
            "--decide-as", help="For `all`: the model of a fold, of whose decisions the median is taken; repeatable."
        ),
    ] = None,
) -> None:
    """Fine-tune the segmenter on a fold and predict its test patients."""
    chosen = load_options(FinetuneOptions, options)
    require_inputs(
        table_of_splits=splits, table_of_sources=sources, expression_table=expression, pretrained_encoders=pretrained
    )
    from mgi.train.finetune import finetune as run

    run(chosen, sources, expression, splits, fold, pretrained, output, folds or [])


@app.command(
    epilog="Example: mgi launch --processes 4 finetune --sources S --splits P --fold 0 -o fold0",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
)
def launch(
    context: typer.Context,
    processes: Annotated[int, typer.Option(min=1, help="Processes on each machine: one for each GPU.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Machines, on each of which srun calls this command.")] = 1,
) -> None:
    """Run `pretrain` or `finetune` in several processes that share each batch (torchrun)."""
    if context.args[:1] not in (["pretrain"], ["finetune"]):
        raise typer.BadParameter("name what to run: mgi launch --processes 4 pretrain ...", param_hint="command")
    from mgi.train.launch import launch as run

    raise typer.Exit(run(processes, nodes, context.args))
