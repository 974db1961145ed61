"""Commands that prepare expression, images and folds."""

from pathlib import Path
from typing import Annotated

import typer

from mgi.cli.common import ExpressionTable, Output, Sources, add_group, app, override_options

mri_app = add_group("mri", "Import magnetic-resonance images.")
expression_app = add_group("expression", "Build the table of gene expression.")
slide_app = add_group("slide", "Cut whole-slide images into tiles.")


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


ExpressionOptions = Annotated[
    str,
    typer.Option("--options", help="The options of `expression`: JSON text, or a YAML file; those below come after."),
]
H5ad = Annotated[Path | None, typer.Option(help="Write AnnData here too; needs the package anndata.")]


@expression_app.command(
    "build",
    epilog="Example: mgi expression build DIR --manifest manifest.parquet --annotation genes.gtf.gz "
    "-o expression.parquet",
)
def expression_build(
    folders: Annotated[list[Path], typer.Argument(help="Folder of {file_id}/{file_name}; one per manifest.")],
    manifest: Annotated[list[Path], typer.Option(help="manifest.parquet; repeatable, in the order of the folders.")],
    annotation: Annotated[
        Path,
        typer.Option(
            help="GTF or GFF3, or a table of gene_id, chromosome, start and length (bases of the exon union)."
        ),
    ],
    output: Output,
    options: ExpressionOptions = "{}",
    gene_type: Annotated[
        list[str] | None, typer.Option(help="Gene type to keep, or `all`; repeatable; default protein_coding.")
    ] = None,
    genes: Annotated[
        Path | None, typer.Option(help="File of the genes to keep instead: ids or symbols, one a line.")
    ] = None,
    unit: Annotated[
        str | None,
        typer.Option(
            help="`log2-tpm` over the kept genes (default), `counts`, or `log2-fpkm-uq`, upper-quartile normalised."
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Tables read at once; the result is the same.")] = 2,
    h5ad: H5ad = None,
) -> None:
    """Build expression.parquet and genes.parquet from STAR counts."""
    from mgi.config import Expression
    from mgi.prepare.expression import build

    if genes is not None and gene_type:
        raise typer.BadParameter("give --gene-type or --genes: a list says by itself which genes are kept")
    gene_types = [] if gene_type == ["all"] else gene_type
    section = override_options(Expression, options, gene_types=gene_types, genes=genes, unit=unit)
    build(folders, manifest, annotation, output, section, workers, h5ad)


@expression_app.command(
    "import", epilog="Example: mgi expression import zscores.parquet --positions genes.tsv -o expression.parquet"
)
def expression_import(
    table: Annotated[
        Path,
        typer.Argument(
            help="Cases by genes, either way round: delimited text (own, cBioPortal, Xena, Firehose, TCGAbiolinks, "
            "recount3), GCT, Parquet or h5ad."
        ),
    ],
    output: Output,
    positions: Annotated[
        Path | None,
        typer.Option(
            help="GTF, GFF3, or a table (own, BioMart, Xena probemap) of gene_name or gene_id, chromosome and start; "
            "not needed where the matrix has these columns itself."
        ),
    ] = None,
    options: ExpressionOptions = "{}",
    unit: Annotated[
        str | None,
        typer.Option(
            help="What the values are: `log2-tpm`, `log2-fpkm-uq`, `log2`, `z-score`, `counts`, `tpm` or `linear`; "
            "default: recognised where only one fits."
        ),
    ] = None,
    normalise: Annotated[
        bool | None, typer.Option("--normalise", help="Turn counts into log2(TPM+1), as STAR counts are.")
    ] = None,
    duplicates: Annotated[
        str | None,
        typer.Option(help="Of several rows of one gene use the `first` (default), their `mean`, or `max-variance`."),
    ] = None,
    leave_out: Annotated[
        bool | None,
        typer.Option("--leave-out", help="Leave out, by name in the log, rows and columns that cannot be used."),
    ] = None,
    h5ad: H5ad = None,
) -> None:
    """Import a ready expression matrix: one tumour sample per case, genes in genomic order, values as they are."""
    from mgi.config import Expression
    from mgi.prepare.matrix import import_table

    section = override_options(
        Expression, options, table_unit=unit, normalise=normalise, duplicates=duplicates, leave_out=leave_out
    )
    import_table(table, positions, output, section, h5ad)


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
