"""Commands that evaluate trained models and run them."""

from pathlib import Path
from typing import Annotated

import typer

from mgi.cli.common import Device, ExpressionTable, Output, Sources, Splits, TiledSources, app
from mgi.errors import MissingPackageError


@app.command(
    epilog="Example: mgi embed pretrain/mgi/fold0 --sources S --expression E --splits P --fold 0 -o embeddings.parquet"
)
def embed(
    model: Annotated[Path, typer.Argument(help="Folder of a pre-trained model.")],
    sources: Sources,
    expression: ExpressionTable,
    splits: Splits,
    output: Output,
    fold: Annotated[int, typer.Option(min=0, help="The fold whose test patients are embedded.")] = 0,
    device: Device = None,
) -> None:
    """Embed the images and genes of a fold's test patients in the shared space."""
    from mgi.evaluate.retrieval import embed as run

    run(model, sources, expression, splits, fold, output, device)


@app.command(epilog="Example: mgi retrieve fold0/embeddings.parquet fold1/embeddings.parquet -o retrieval.csv")
def retrieve(
    embeddings: Annotated[list[Path], typer.Argument(help="embeddings.parquet of each fold.")], output: Output
) -> None:
    """Measure how often an image finds its own patient's genes, beside chance."""
    from mgi.evaluate.retrieval import retrieval_table

    retrieval_table(embeddings, output)


@app.command(epilog="Example: mgi summarise finetune/mgi/fold*/predictions.parquet -o finetune/mgi/summary.json")
def summarise(
    predictions: Annotated[list[Path], typer.Argument(help="predictions.parquet of each fold.")],
    output: Output,
    bootstrap_samples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples of the patients.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    sources: TiledSources = None,
) -> None:
    """Pool a variant's folds into metrics with 95% intervals; per-patient and per-image tables go beside."""
    from mgi.evaluate.segmentation import summarise as run

    run(predictions, output, bootstrap_samples, seed, sources)


@app.command(epilog="Example: mgi compare results/simulated/finetune --variant mgi --variant image-only -o evaluate")
def compare(
    folder: Annotated[Path, typer.Argument(help="The folder that holds the variants' folders.")],
    variant: Annotated[list[str], typer.Option(help="Variant; repeatable.")],
    output: Output,
    reference: Annotated[str, typer.Option(help="The variant to compare with.")] = "mgi",
    bootstrap_samples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples of the patients.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
) -> None:
    """Compare variants patient by patient: OUTPUT/per_patient.parquet, per_image.parquet and comparison.csv."""
    from mgi.evaluate.segmentation import compare as run

    run(folder, variant, output, reference, bootstrap_samples, seed)


@app.command(
    epilog="Example: mgi evaluate finetune/mgi/all --images other.parquet --expression other/expression.parquet -o out"
)
def evaluate(
    model: Annotated[Path, typer.Argument(help="Folder of a fine-tuned model.")],
    images: Annotated[list[Path], typer.Option(help="A table of images with masks, or a folder of them; repeatable.")],
    output: Output,
    expression: Annotated[Path | None, typer.Option(help="expression.parquet of those cases.")] = None,
    bootstrap_samples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples of the patients.")] = 2000,
    device: Device = None,
    sources: TiledSources = None,
) -> None:
    """Evaluate one model on any tables of images: external validation."""
    from mgi.evaluate.external import evaluate_tables

    evaluate_tables(model, images, expression, output, bootstrap_samples, device, sources)


@app.command(epilog="Example: mgi predict finetune/mgi/all slide.svs --expression E --case-id TCGA-A4-8098 -o out")
def predict(
    model: Annotated[Path, typer.Argument(help="Folder of a fine-tuned model.")],
    image: Annotated[Path, typer.Argument(help="A slide, or the folder of one MRI series (*_N.tif).")],
    output: Output,
    expression: Annotated[Path | None, typer.Option(help="expression.parquet that holds the case.")] = None,
    case_id: Annotated[str | None, typer.Option(help="The case of the image, in that table.")] = None,
    default_mpp: Annotated[
        float | None, typer.Option(min=0.01, help="Level-0 mpp of a slide that states none.")
    ] = None,
    min_tissue: Annotated[float, typer.Option(min=0, max=1, help="Least tissue fraction of a tile.")] = 0.5,
    device: Device = None,
) -> None:
    """Segment one slide or MRI series: an overlay (PNG), masks and, of a slide, GeoJSON for QuPath.

    A slide's mask goes to OUTPUT/masks, so that OUTPUT is a folder of annotations. Nothing is overwritten.
    """
    try:
        from mgi.evaluate.predict import predict as run
    except ModuleNotFoundError as problem:
        raise MissingPackageError(
            f"mgi predict needs {problem.name}, which this environment lacks; run: pip install --no-deps -r "
            "requirements.lock"
        ) from None

    run(
        model, image, output, expression=expression, case_id=case_id, default_mpp=default_mpp, min_tissue=min_tissue,
        device=device,
    )  # fmt: skip
