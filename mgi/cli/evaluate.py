"""Commands that evaluate trained models and run them."""

from pathlib import Path
from typing import Annotated

import typer

from mgi.cli.common import (
    BootstrapSamples,
    BootstrapSeed,
    Device,
    ExpressionTable,
    Options,
    Output,
    Sources,
    Splits,
    TiledSources,
    app,
    flag,
    require_inputs,
)
from mgi.config import Evaluate, EvaluateOptions, PredictOptions, ProbeOptions, load_options
from mgi.errors import ConfigError, MissingPackageError
from mgi.names import quote

DESCRIPTION = "config.json"


FineTuned = Annotated[
    Path,
    typer.Argument(help="Folder of a fine-tuned model, or of its variant: its `all`, or the mean of its folds."),
]


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
    h5: Annotated[
        Path | None,
        typer.Option(help="Write each slide's embeddings here too, as HDF5 that TRIDENT and CLAM read."),
    ] = None,
    h5ad: Annotated[Path | None, typer.Option(help="Write AnnData here too; needs the package anndata.")] = None,
    device: Device = None,
) -> None:
    """Embed the images and genes of a fold's test patients in the shared space."""
    require_inputs(table_of_splits=splits, table_of_sources=sources, expression_table=expression)
    require_inputs(description_of_a_model=model / DESCRIPTION)
    from mgi.evaluate.retrieval import embed as run

    run(model, sources, expression, splits, fold, output, device, h5, h5ad)


@app.command(epilog="Example: mgi yardstick --sources S --expression E --splits P --fold 0 -o embeddings.parquet")
def yardstick(
    sources: Sources,
    expression: ExpressionTable,
    splits: Splits,
    output: Output,
    fold: Annotated[int, typer.Option(min=0, help="The fold whose test patients are embedded.")] = 0,
) -> None:
    """Embed as `mgi embed` does, by ridge regression of colour and texture on components of the genes."""
    require_inputs(table_of_splits=splits, table_of_sources=sources, expression_table=expression)
    from mgi.evaluate.yardstick import embed_by_ridge

    embed_by_ridge(sources, expression, splits, fold, output)


@app.command(epilog="Example: mgi retrieve fold0/embeddings.parquet fold1/embeddings.parquet -o retrieval.csv")
def retrieve(
    embeddings: Annotated[list[Path], typer.Argument(help="embeddings.parquet of each fold.")],
    output: Output,
    splits: Annotated[Path | None, typer.Option(help="splits.parquet, for retrieval within each site.")] = None,
    options: Options = "{}",
    bootstrap_samples: BootstrapSamples = None,
    seed: BootstrapSeed = None,
) -> None:
    """Measure how often images find their own patient's genes and genes their images, beside chance."""
    chosen = load_options(EvaluateOptions, options, bootstrap_samples=bootstrap_samples, seed=seed)
    require_inputs(table_of_splits=splits)
    from mgi.evaluate.retrieval import retrieval_table

    retrieval_table(embeddings, output, chosen, splits)


@app.command(
    epilog="Example: mgi probe fold0 fold1 --sources S --expression E --splits P --labels L --columns grade -o o.csv"
)
def probe(
    models: Annotated[list[Path], typer.Argument(help="Folders of a pre-training variant's folds.")],
    sources: Sources,
    expression: ExpressionTable,
    splits: Splits,
    output: Output,
    labels: Annotated[str | None, flag(ProbeOptions, "labels")] = None,
    columns: Annotated[list[str] | None, flag(ProbeOptions, "columns")] = None,
    options: Options = "{}",
    bootstrap_samples: BootstrapSamples = None,
    seed: BootstrapSeed = None,
    device: Device = None,
) -> None:
    """Predict labels from frozen embeddings, beside permuted labels and an untrained encoder."""
    chosen = load_options(
        ProbeOptions, options, labels=labels, columns=columns or None, bootstrap_samples=bootstrap_samples, seed=seed
    )
    require_inputs(table_of_splits=splits, table_of_sources=sources, expression_table=expression)
    from mgi.evaluate.probe import probe as run

    run(models, sources, expression, splits, chosen, output, device)


@app.command(epilog="Example: mgi summarise finetune/mgi/fold*/predictions.parquet -o finetune/mgi/summary.json")
def summarise(
    predictions: Annotated[list[Path], typer.Argument(help="predictions.parquet of each fold.")],
    output: Output,
    options: Options = "{}",
    bootstrap_samples: BootstrapSamples = None,
    seed: BootstrapSeed = None,
    sources: TiledSources = None,
) -> None:
    """Pool a variant's folds into metrics with 95% intervals; per-patient and per-image tables go beside."""
    from mgi.evaluate.segmentation import summarise as run

    chosen = load_options(EvaluateOptions, options, bootstrap_samples=bootstrap_samples, seed=seed)
    run(predictions, output, chosen.bootstrap_samples, chosen.seed, sources)


@app.command(epilog="Example: mgi compare results/simulated/finetune --variant mgi --variant image-only -o evaluate")
def compare(
    folder: Annotated[Path, typer.Argument(help="The folder that holds the variants' folders.")],
    variant: Annotated[list[str], typer.Option(help="Variant; repeatable.")],
    output: Output,
    reference: Annotated[str | None, flag(Evaluate, "reference")] = None,
    options: Options = "{}",
    bootstrap_samples: BootstrapSamples = None,
    seed: BootstrapSeed = None,
    splits: Annotated[
        Path | None, typer.Option(help="splits.parquet: write projects.csv, Dice by project, too.")
    ] = None,
    replicate: Annotated[
        list[str] | None,
        typer.Option(metavar="VARIANT=OTHER", help="Of two variants that differ in seed alone; repeatable: seeds.csv."),
    ] = None,
) -> None:
    """Compare variants patient by patient: OUTPUT/per_patient.parquet, per_image.parquet and comparison.csv."""
    from mgi.evaluate.comparison import compare as run

    chosen = load_options(EvaluateOptions, options, bootstrap_samples=bootstrap_samples, seed=seed)
    compared = load_options(Evaluate, {}, variants=variant, reference=reference)
    replicates: dict[str, list[str]] = {}
    for pair in replicate or []:
        first, _, other = pair.partition("=")
        if first == other or not {first, other} <= set(compared.variants):
            raise ConfigError(f"--replicate {quote(pair)} must name two of the variants: write VARIANT=OTHER")
        replicates.setdefault(first, []).append(other)
    run(
        folder, compared.variants, output, compared.reference, chosen.bootstrap_samples, chosen.seed, splits, replicates
    )


@app.command(epilog="Example: mgi swap fold0 fold1 --sources S --expression E --splits P -o swap.csv")
def swap(
    models: Annotated[list[Path], typer.Argument(help="Folders of a fine-tuning variant's folds.")],
    sources: Sources,
    expression: ExpressionTable,
    splits: Splits,
    output: Output,
    options: Options = "{}",
    bootstrap_samples: BootstrapSamples = None,
    seed: BootstrapSeed = None,
    device: Device = None,
) -> None:
    """Segment test patients with their own genes, others' (of the same class or site, or not) and none."""
    chosen = load_options(EvaluateOptions, options, bootstrap_samples=bootstrap_samples, seed=seed)
    require_inputs(table_of_splits=splits, table_of_sources=sources, expression_table=expression)
    from mgi.evaluate.swap import swap_genes

    swap_genes(models, sources, expression, splits, output, chosen, device)


@app.command(
    epilog="Example: mgi evaluate finetune/mgi/all --images other.parquet --expression other/expression.parquet -o out"
)
def evaluate(
    model: FineTuned,
    images: Annotated[list[Path], typer.Option(help="A table of images with masks, or a folder of them; repeatable.")],
    output: Output,
    expression: Annotated[Path | None, typer.Option(help="expression.parquet of those cases.")] = None,
    unit: Annotated[
        str | None, typer.Option(help="Unit of its values, such as log2-tpm or z-score; default: what it states.")
    ] = None,
    shuffle_genes: Annotated[
        bool,
        typer.Option("--shuffle-genes", help="Give each case another one's profile: trained right, tested shuffled."),
    ] = False,
    bootstrap_samples: BootstrapSamples = None,
    seed: BootstrapSeed = None,
    device: Device = None,
    sources: TiledSources = None,
) -> None:
    """Evaluate one model on any tables of images: external validation."""
    chosen = load_options(EvaluateOptions, {}, bootstrap_samples=bootstrap_samples, seed=seed)
    require_inputs(folder_of_a_model=model, expression_table=expression, table_of_sources=sources)
    from mgi.evaluate.external import evaluate_tables

    evaluate_tables(
        model, images, expression, output, chosen.bootstrap_samples, device, sources, unit, shuffle_genes, chosen.seed
    )


@app.command(epilog="Example: mgi predict finetune/mgi slide.svs --expression E --case-id TCGA-A4-8098 -o out")
def predict(
    model: FineTuned,
    image: Annotated[list[Path], typer.Argument(help="Slides, or folders of one MRI series each: *_N.tif or NIfTI.")],
    output: Output,
    options: Options = "{}",
    expression: Annotated[Path | None, typer.Option(help="expression.parquet that holds the cases.")] = None,
    case_id: Annotated[
        list[str] | None, typer.Option(help="The case of each image in that table; once per image, in their order.")
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option(help="Name of each slide's results, in their order; default: its file's.")
    ] = None,
    default_mpp: Annotated[float | None, flag(PredictOptions, "default_mpp")] = None,
    partial_tiles: Annotated[bool | None, flag(PredictOptions, "partial_tiles", "--partial-tiles")] = None,
    min_tissue: Annotated[float | None, flag(PredictOptions, "min_tissue")] = None,
    min_area: Annotated[float | None, flag(PredictOptions, "min_area")] = None,
    min_voxels: Annotated[int | None, flag(PredictOptions, "min_voxels")] = None,
    channel: Annotated[list[str] | None, flag(PredictOptions, "channels")] = None,
    allow_missing: Annotated[bool | None, flag(PredictOptions, "allow_missing")] = None,
    device: Device = None,
) -> None:
    """Segment slides or MRI series: an overlay (PNG), masks, probabilities and, of slides, GeoJSON for QuPath.

    A slide's mask goes to OUTPUT/masks, so that OUTPUT is a folder of annotations. Nothing is overwritten; of several
    images those that are complete already are left as they are.
    """
    chosen = load_options(
        PredictOptions, options, default_mpp=default_mpp, partial_tiles=partial_tiles, min_tissue=min_tissue,
        min_area=min_area, min_voxels=min_voxels, channels=channel or None, allow_missing=allow_missing,
    )  # fmt: skip
    require_inputs(folder_of_a_model=model, expression_table=expression)
    try:
        from mgi.evaluate.predict import predict as run
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"mgi predict needs {error.name}, which this environment lacks; run: pip install --no-deps -r "
            "requirements.lock"
        ) from error

    run(
        model, image, output, expression=expression, case_id=case_id or None, names=name or None, options=chosen,
        device=device,
    )  # fmt: skip
