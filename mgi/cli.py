"""The `mgi` command: what every rule of the workflow calls, and what a user calls by hand.

Each command only reads its arguments and calls one function of its stage; heavy libraries are imported inside it, so
that `mgi --help` answers at once. Exit codes: 0 done, 1 a user error told in one sentence, 2 wrong usage.
"""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mgi.console import log, set_up_logging
from mgi.errors import MGIError, MissingPackageError

app = typer.Typer(
    help="MGI: from a TCGA cohort to a tumour-segmentation model that knows the patient's genes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _group(name: str, text: str) -> typer.Typer:
    group = typer.Typer(help=text, no_args_is_help=True)
    app.add_typer(group, name=name)
    return group


gdc_app = _group("gdc", "Query and fetch files of the Genomic Data Commons.")
idc_app = _group("idc", "Fetch slides from the Imaging Data Commons.")
mri_app = _group("mri", "Import magnetic-resonance images.")
expression_app = _group("expression", "Build the table of gene expression.")
slide_app = _group("slide", "Cut whole-slide images into tiles.")
report_app = _group("report", "Draw the figures of the report.")


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


@app.command(epilog="Example: mgi simulate sim --cases 48 --seed 0")
def simulate(
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    cases: Annotated[int, typer.Option(min=2, help="Patients.")] = 48,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    genes: Annotated[int, typer.Option(min=1000, max=60660, help="Genes in each STAR table.")] = 2000,
    slide_px: Annotated[int, typer.Option(min=512, max=16384, help="Edge of a slide at level 0, pixels.")] = 2048,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
) -> None:
    """Make a small cohort in the GDC's own formats, with planted coupling of genes and images."""
    from mgi.simulate.cohort import simulate_cohort

    simulate_cohort(out, cases=cases, seed=seed, genes=genes, slide_px=slide_px, workers=workers)


@app.command(epilog="Example: mgi serve sim --port 8080")
def serve(
    folder: Annotated[Path, typer.Argument(help="A folder made by `mgi simulate`.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on loopback; 0 takes a free one.")] = 0,
) -> None:
    """Serve such a folder through the GDC's API paths, on loopback, until interrupted."""
    from mgi.simulate.serve import serve_until_interrupted

    serve_until_interrupted(folder, port)


@gdc_app.command("query", epilog="Example: mgi gdc query --config config/tcga-brca.yaml -o manifest.parquet")
def gdc_query(
    output: Output,
    config: Annotated[Path | None, typer.Option(help="Take projects, API and what is needed from here.")] = None,
    project: Annotated[list[str] | None, typer.Option(help="GDC project; repeatable.")] = None,
    api_url: Annotated[str | None, typer.Option(help="The GDC API, or local:DIR.")] = None,
    data_type: Annotated[
        list[str] | None, typer.Option(help="`expression` or `slides`; repeatable; default both.")
    ] = None,
    annotation_file_id: Annotated[str | None, typer.Option(help="GDC file id of the gene annotation to pin.")] = None,
    slides: Annotated[
        list[str] | None, typer.Option(help="`diagnostic` or `frozen`; repeatable; default diagnostic.")
    ] = None,
    sample_type: Annotated[
        list[str] | None, typer.Option(help="Only this, such as 'Primary Tumor'; repeatable, in order of preference.")
    ] = None,
    aliquots: Annotated[
        str | None, typer.Option(help="STAR counts kept of each case: `first`, `best` or `all`; default first.")
    ] = None,
    slides_per_case: Annotated[
        str | None, typer.Option(help="Slides kept of each case: `all`, `first` or `best`; default all.")
    ] = None,
    exclude: Annotated[Path | None, typer.Option(help="Table of files to leave out: file_id, reason.")] = None,
) -> None:
    """List a cohort's files, with size and md5, into a manifest that pins it."""
    from mgi.acquire import gdc
    from mgi.config import load_config

    if config is not None:
        settings = load_config(config)
        if settings.gdc is None:
            raise typer.BadParameter(f"{config} has no section 'gdc'")
        project = project or settings.gdc.projects
        api_url = api_url or settings.gdc.api_url
        wanted = {"expression": settings.expression.table is None, "slides": settings.slides is not None}
        data_type = data_type or [name for name, needed in wanted.items() if needed]
        if settings.expression.table is None and settings.expression.positions is None:
            annotation_file_id = annotation_file_id or settings.expression.annotation_file_id
        slides = slides or settings.gdc.slides
        sample_type = sample_type or settings.gdc.sample_types
        aliquots = aliquots or settings.gdc.aliquots
        slides_per_case = slides_per_case or settings.gdc.slides_per_case
        exclude = exclude or (Path(settings.gdc.exclude) if settings.gdc.exclude else None)
    if not project:
        raise typer.BadParameter("give --project or --config")
    gdc.query(
        project, output, api_url or gdc.GDC_API, data_type or ["expression", "slides"], annotation_file_id,
        slides=slides, sample_types=sample_type, aliquots=aliquots or "first", slides_per_case=slides_per_case or "all",
        exclude=exclude,
    )  # fmt: skip


@gdc_app.command("check", epilog="Example: mgi gdc check resources/gdc/TCGA-BRCA/manifest.parquet -o gone.tsv")
def gdc_check(
    manifest: Annotated[Path, typer.Argument(help="manifest.parquet.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write a table of what is gone here.")] = None,
    api_url: Annotated[str, typer.Option(help="The GDC API, or local:DIR.")] = "https://api.gdc.cancer.gov",
) -> None:
    """Ask whether the GDC still has every file as pinned: what was superseded, withdrawn or changed since."""
    from mgi.acquire import gdc

    gdc.check(manifest, api_url, output)


@gdc_app.command("fetch", epilog="Example: mgi gdc fetch manifest.parquet -o slides --data-type slides --workers 4")
def gdc_fetch(
    manifest: Annotated[Path, typer.Argument(help="manifest.parquet, or a manifest of the GDC portal (.tsv, .txt).")],
    output: Output,
    api_url: Annotated[str, typer.Option(help="The GDC API, or local:DIR.")] = "https://api.gdc.cancer.gov",
    workers: Annotated[int, typer.Option(min=1, max=32, help="Downloads at once.")] = 4,
    data_type: Annotated[str | None, typer.Option(help="Only `expression`, `slides` or `annotation`.")] = None,
    file_id: Annotated[list[str] | None, typer.Option(help="Only this file; repeatable.")] = None,
    rows: Annotated[
        str, typer.Option(help="Only rows START:STOP of what is selected, counted from 0.", metavar="START:STOP")
    ] = ":",
    mirror: Annotated[
        list[str] | None, typer.Option(help="Folder or address tried before the GDC; repeatable, in order.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File of the GDC token, readable by its owner only; sent to --api-url only.")
    ] = None,
    partial: Annotated[
        Path | None, typer.Option(help="Let files grow here, and move them when all are complete.")
    ] = None,
    receipt: Annotated[Path | None, typer.Option(help="Write a table of the files here, last.")] = None,
    status: Annotated[
        Path | None,
        typer.Option(help="Write what became of each file here, in any case; default beside the receipt or OUTPUT."),
    ] = None,
) -> None:
    """Fetch a manifest's files to OUTPUT/{file_id}/{file_name}, md5-verified, keeping what is already there."""
    from mgi.acquire.fetch import fetch

    bounds = rows.split(":")
    if len(bounds) != 2 or not all(bound.isdigit() or not bound for bound in bounds):
        raise typer.BadParameter(f"--rows is '{rows}'; give START:STOP, such as 0:500")
    fetch(
        manifest, output, api_url, workers, data_type=data_type, file_ids=file_id,
        rows=slice(*(int(bound) if bound else None for bound in bounds)), mirrors=mirror, token_file=token_file,
        partial=partial, receipt=receipt, status=status,
    )  # fmt: skip


@idc_app.command("fetch", epilog="Example: mgi idc fetch manifest.parquet -o slides --receipt slides.tsv")
def idc_fetch(
    manifest: Annotated[Path, typer.Argument(help="manifest.parquet, or a manifest of the GDC portal (.tsv, .txt).")],
    output: Output,
    file_id: Annotated[list[str] | None, typer.Option(help="Only this slide; repeatable.")] = None,
    partial: Annotated[Path | None, typer.Option(help="Let slides grow here, and move complete ones.")] = None,
    receipt: Annotated[Path | None, typer.Option(help="Write a table of the slides here, last.")] = None,
) -> None:
    """Fetch a manifest's TCGA slides as DICOM to OUTPUT/{file_id}; needs the library `idc-index`."""
    from mgi.acquire.idc import fetch_slides

    fetch_slides(manifest, output, file_ids=file_id, partial=partial, receipt=receipt)


@mri_app.command("import", epilog="Example: mgi mri import kaggle_3m -o images/mri.parquet --sources sources.parquet")
def mri_import(
    folder: Annotated[Path, typer.Argument(help="The kaggle_3m folder, or Kaggle's zip of it.")],
    output: Output,
    sources: Annotated[Path | None, typer.Option(help="Write the table of series here.")] = None,
    image_px: Annotated[int, typer.Option(min=32, help="Edge of a slice after resampling, pixels.")] = 128,
) -> None:
    """Import MRI slices and tumour masks, each patient's intensities normalised."""
    from mgi.prepare.mri import import_mri

    import_mri(folder, output, sources, image_px)


@expression_app.command(
    "build",
    epilog="Example: mgi expression build DIR --manifest manifest.parquet --annotation genes.gtf.gz "
    "-o expression.parquet",
)
def expression_build(
    folders: Annotated[list[Path], typer.Argument(help="Folder of {file_id}/{file_name}; one per manifest.")],
    manifest: Annotated[list[Path], typer.Option(help="manifest.parquet; repeatable, in the order of the folders.")],
    annotation: Annotated[
        Path, typer.Option(help="GTF, or a table of gene_id, chromosome, start and length (bases of the exon union).")
    ],
    output: Output,
    gene_type: Annotated[
        list[str] | None, typer.Option(help="Gene type to keep, or `all`; repeatable; default protein_coding.")
    ] = None,
    genes: Annotated[
        Path | None, typer.Option(help="File of the genes to keep instead: ids or symbols, one a line.")
    ] = None,
    unit: Annotated[
        str,
        typer.Option(help="`log2-tpm` over the kept genes, `counts`, or `log2-fpkm-uq`, upper-quartile normalised."),
    ] = "log2-tpm",
    workers: Annotated[int, typer.Option(min=1, help="Tables read at once; the result is the same.")] = 2,
    h5ad: Annotated[Path | None, typer.Option(help="Write AnnData here too; needs the package anndata.")] = None,
) -> None:
    """Build expression.parquet and genes.parquet from STAR counts."""
    from mgi.prepare import expression

    if genes is not None and gene_type:
        raise typer.BadParameter("give --gene-type or --genes: a list says by itself which genes are kept")
    gene_types = gene_type or [expression.CODING]
    expression.build(
        folders, manifest, annotation, output, gene_types=[] if gene_types == ["all"] else gene_types, genes=genes,
        unit=unit, workers=workers, h5ad=h5ad,
    )  # fmt: skip


@expression_app.command(
    "import", epilog="Example: mgi expression import zscores.parquet --positions genes.tsv -o expression.parquet"
)
def expression_import(
    table: Annotated[Path, typer.Argument(help="Cases by genes, either way round; Parquet, CSV or TSV.")],
    output: Output,
    positions: Annotated[
        Path, typer.Option(help="GTF, or a table (Parquet, CSV, TSV) of gene_name or gene_id, chromosome and start.")
    ],
    h5ad: Annotated[Path | None, typer.Option(help="Write AnnData here too; needs the package anndata.")] = None,
) -> None:
    """Import a ready expression matrix as it is: one tumour sample per case, genes in genomic order."""
    from mgi.prepare import matrix

    matrix.import_table(table, positions, output, h5ad)


@slide_app.command(
    "tile",
    epilog="Example: mgi slide tile slide.svs --case-id TCGA-A4-8098 --mpp 0.5 --tile-px 256 -o tiles.parquet",
)
def slide_tile(
    slides: Annotated[list[Path], typer.Argument(help="Slides.")],
    case_id: Annotated[list[str], typer.Option(help="Case barcode; once per slide, in their order.")],
    output: Output,
    mpp: Annotated[float, typer.Option(min=0.01, help="Microns per pixel of a tile.")] = 0.5,
    tile_px: Annotated[int, typer.Option(min=32, help="Edge of a tile, pixels.")] = 256,
    default_mpp: Annotated[float | None, typer.Option(min=0.01, help="Level-0 mpp of slides that state none.")] = None,
    min_tissue: Annotated[float, typer.Option(min=0, max=1, help="Least tissue fraction of a tile.")] = 0.5,
    annotations: Annotated[Path | None, typer.Option(help="Folder of annotations, or the slide's own file.")] = None,
    status: Annotated[Path | None, typer.Option(help="Record a bad slide here and go on.")] = None,
) -> None:
    """Find the tissue and cut it into tiles of one physical size, with masks from annotations."""
    from mgi.prepare import slides as stage

    stage.tile_slides(
        slides, case_id, output, mpp=mpp, tile_px=tile_px, default_mpp=default_mpp, min_tissue=min_tissue,
        annotations=annotations, status=status,
    )  # fmt: skip


@slide_app.command("preview", epilog="Example: mgi slide preview slide.svs -o overlay.png")
def slide_preview(
    slide: Annotated[Path, typer.Argument(help="A slide.")],
    output: Output,
    mpp: Annotated[float, typer.Option(min=0.01, help="Microns per pixel of a tile.")] = 0.5,
    tile_px: Annotated[int, typer.Option(min=32, help="Edge of a tile, pixels.")] = 256,
    default_mpp: Annotated[float | None, typer.Option(min=0.01, help="Level-0 mpp of slides that state none.")] = None,
    min_tissue: Annotated[float, typer.Option(min=0, max=1, help="Least tissue fraction of a tile.")] = 0.5,
) -> None:
    """Draw the tissue outline and the tile grid over a slide's thumbnail."""
    from mgi.prepare import slides as stage

    stage.preview(slide, output, mpp=mpp, tile_px=tile_px, default_mpp=default_mpp, min_tissue=min_tissue)


@app.command(epilog="Example: mgi sources results/brca/images --manifest manifest.parquet -o sources.parquet")
def sources(
    images: Annotated[Path, typer.Argument(help="Folder of image tables and their status tables.")],
    manifest: Annotated[list[Path], typer.Option(help="manifest.parquet; repeatable.")],
    output: Output,
    per_job: Annotated[int, typer.Option(min=1, help="Slides in one image table.")] = 1,
    annotations: Annotated[Path | None, typer.Option(help="Folder of annotations, checked against the slides.")] = None,
) -> None:
    """Collect what became of every slide of a manifest into sources.parquet."""
    from mgi.prepare import cohort

    cohort.collect_sources(images, manifest, per_job, annotations, output)


@app.command(
    epilog="Example: mgi split --sources sources.parquet --expression expression.parquet --folds 5 -o splits.parquet"
)
def split(
    sources: Sources,
    expression: ExpressionTable,
    output: Output,
    folds: Annotated[int, typer.Option(min=2, help="Folds.")] = 5,
    val_fraction: Annotated[float, typer.Option(min=0, max=1, help="Share of the rest that goes to val.")] = 0.15,
    by: Annotated[str, typer.Option(help="`patient`, or `site` to keep sites within a fold.")] = "patient",
    stratify_table: Annotated[Path | None, typer.Option(help="Table with case_id and the column below.")] = None,
    stratify_column: Annotated[str | None, typer.Option(help="Column whose classes every fold holds alike.")] = None,
    manifest: Annotated[list[Path] | None, typer.Option(help="manifest.parquet for the flow; repeatable.")] = None,
    flow: Annotated[Path | None, typer.Option(help="Write how many cases each step kept, and why not.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the shuffle.")] = 0,
) -> None:
    """Pair expression with images and split the cases into folds, by patient."""
    from mgi.prepare import cohort

    cohort.split(
        sources, expression, output, folds=folds, val_fraction=val_fraction, by=by, stratify_table=stratify_table,
        stratify_column=stratify_column, manifests=manifest or [], flow=flow, seed=seed,
    )  # fmt: skip


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
    from mgi.config import PretrainOptions, load_options
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
    from mgi.config import FinetuneOptions, load_options
    from mgi.train.finetune import finetune as run

    run(load_options(FinetuneOptions, options), sources, expression, splits, fold, pretrained, output)


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
            f"mgi predict needs {problem.name}, which this environment lacks; run: pip install -r requirements.lock"
        ) from None

    run(
        model, image, output, expression=expression, case_id=case_id, default_mpp=default_mpp, min_tissue=min_tissue,
        device=device,
    )  # fmt: skip


@report_app.command("flow", epilog="Example: mgi report flow cohort_flow.csv -o flow.png")
def report_flow(flow: Annotated[Path, typer.Argument(help="cohort_flow.csv.")], output: Output) -> None:
    """Draw how many cases each step kept."""
    from mgi.report.figures import draw_flow

    draw_flow(flow, output)


@report_app.command("losses", epilog="Example: mgi report losses finetune/*/fold*/metrics.csv -o losses.png")
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


@report_app.command("table", epilog="Example: mgi report table results/simulated")
def report_table(results: Annotated[Path, typer.Argument(help="results/{cohort}.")]) -> None:
    """Print the metrics, the paired differences and the retrieval of a finished run."""
    from mgi.report.summary import print_summary

    print_summary(results)


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


def main() -> None:
    """Run the command; tell a user error in one sentence and exit with 1."""
    set_up_logging()
    try:
        app()
    except MGIError as problem:
        log.error("error: %s", problem)
        sys.exit(1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as problem:
        log.error("error: the system refuses: %s", problem)
        sys.exit(1)
