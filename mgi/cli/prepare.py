"""Commands that prepare expression, images and folds."""

from pathlib import Path
from typing import Annotated

import typer

from mgi.cli.common import (
    DefaultMpp,
    ExpressionTable,
    MinTissue,
    Mpp,
    Options,
    Output,
    Sources,
    TilePx,
    add_group,
    app,
    flag,
)
from mgi.config import (
    Features,
    MriOptions,
    Slides,
    SplitOptions,
    StarCounts,
    TableImport,
    TileJob,
    TileOptions,
    load_options,
)

mri_app = add_group("mri", "Import magnetic-resonance images.")
expression_app = add_group("expression", "Build the table of gene expression.")
features_app = add_group("features", "Import precomputed features of patches.")
slide_app = add_group("slide", "Cut whole-slide images into tiles.")

Annotations = Annotated[Path | None, typer.Option(help="Folder of annotations, or the slide's own file.")]


@mri_app.command("import", epilog="Example: mgi mri import kaggle_3m -o images/mri.parquet --sources sources.parquet")
def mri_import(
    folder: Annotated[Path, typer.Argument(help="Folder or zip of series: NIfTI as in BraTS, or kaggle_3m.")],
    output: Output,
    sources: Annotated[Path | None, typer.Option(help="Write the table of series here.")] = None,
    options: Options = "{}",
    image_px: Annotated[int | None, flag(MriOptions, "image_px")] = None,
) -> None:
    """Import MRI slices and tumour masks, each patient's intensities normalised."""
    from mgi.prepare.mri import import_mri

    import_mri(folder, output, sources, load_options(MriOptions, options, image_px=image_px))


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
        typer.Option(help="GTF, GFF3, or a table of gene_id, chromosome, start and length (bases of the exon union)."),
    ],
    output: Output,
    options: Options = "{}",
    gene_type: Annotated[list[str] | None, flag(StarCounts, "gene_types")] = None,
    genes: Annotated[str | None, flag(StarCounts, "genes")] = None,
    unit: Annotated[str | None, flag(StarCounts, "unit")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Tables read at once; the result is the same.")] = 2,
    h5ad: Annotated[Path | None, typer.Option(help="Write AnnData here too; needs the package anndata.")] = None,
) -> None:
    """Build expression.parquet and genes.parquet from STAR counts."""
    from mgi.prepare.expression import build

    if genes is not None and gene_type:
        raise typer.BadParameter("give --gene-type or --genes: a list says by itself which genes are kept")
    gene_types = [] if gene_type == ["all"] else gene_type or None
    chosen = load_options(StarCounts, options, gene_types=gene_types, genes=genes, unit=unit)
    build(folders, manifest, annotation, output, chosen, workers, h5ad)


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
            "not needed where the matrix has these itself."
        ),
    ] = None,
    options: Options = "{}",
    unit: Annotated[str | None, flag(TableImport, "table_unit")] = None,
    normalise: Annotated[bool | None, flag(TableImport, "normalise", "--normalise")] = None,
    duplicates: Annotated[str | None, flag(TableImport, "duplicates")] = None,
    leave_out: Annotated[bool | None, flag(TableImport, "leave_out", "--leave-out")] = None,
    h5ad: Annotated[Path | None, typer.Option(help="Write AnnData here too; needs the package anndata.")] = None,
) -> None:
    """Import a ready expression matrix: one tumour sample per case, genes in genomic order, values as they are."""
    from mgi.prepare.matrix import import_table

    chosen = load_options(
        TableImport, options, table_unit=unit, normalise=normalise, duplicates=duplicates, leave_out=leave_out
    )
    import_table(table, positions, output, chosen, h5ad)


@features_app.command(
    "import", epilog="Example: mgi features import features_uni_v2 -o images/features.parquet --sources sources.parquet"
)
def features_import(
    files: Annotated[Path, typer.Argument(help="Folder of HDF5 files of TRIDENT or CLAM, or a table that names them.")],
    output: Output,
    sources: Annotated[Path, typer.Option(help="Write the table of slides here.")],
    case_pattern: Annotated[str | None, flag(Features, "case_pattern")] = None,
) -> None:
    """Import patch features, a file per slide, in place of images."""
    from mgi.prepare.features import import_features

    import_features(files, output, sources, case_pattern)


@slide_app.command(
    "tile",
    epilog="Example: mgi slide tile slide.svs --case-id TCGA-A4-8098 --mpp 0.5 --tile-px 256 -o tiles.parquet",
)
def slide_tile(
    slides: Annotated[list[Path], typer.Argument(help="Slides.")],
    case_id: Annotated[list[str], typer.Option(help="Case barcode; once per slide, in their order.")],
    output: Output,
    options: Options = "{}",
    mpp: Mpp = None,
    tile_px: TilePx = None,
    default_mpp: DefaultMpp = None,
    min_tissue: MinTissue = None,
    annotations: Annotations = None,
    partial_tiles: Annotated[bool | None, flag(TileOptions, "partial_tiles", "--partial-tiles")] = None,
    store: Annotated[str | None, flag(TileOptions, "store")] = None,
    name: Annotated[
        list[str] | None, typer.Option(help="Name of each slide, in their order; default: that of its file.")
    ] = None,
    status: Annotated[Path | None, typer.Option(help="Record a bad slide here and go on.")] = None,
    previews: Annotated[
        Path | None, typer.Option(help="Write a picture of each slide here: tissue, tiles and annotation.")
    ] = None,
    coordinates: Annotated[
        Path | None,
        typer.Option(help="Write the coordinates of each slide's tiles here, as HDF5 for TRIDENT and CLAM."),
    ] = None,
) -> None:
    """Find the tissue and cut it into tiles of one physical size, with masks from annotations."""
    from mgi.prepare.slides import tile_slides

    chosen = load_options(
        TileJob, options, mpp=mpp, tile_px=tile_px, default_mpp=default_mpp, min_tissue=min_tissue,
        partial_tiles=partial_tiles, store=store, annotations=None if annotations is None else str(annotations),
    )  # fmt: skip
    tile_slides(
        slides, case_id, output, chosen, status, names=name, stated=chosen.stated, previews=previews,
        coordinates=coordinates,
    )  # fmt: skip


@slide_app.command("preview", epilog="Example: mgi slide preview slide.svs -o overlay.png")
def slide_preview(
    slide: Annotated[Path, typer.Argument(help="A slide.")],
    output: Output,
    mpp: Mpp = None,
    tile_px: TilePx = None,
    default_mpp: DefaultMpp = None,
    min_tissue: MinTissue = None,
    annotations: Annotations = None,
    options: Options = "{}",
) -> None:
    """Draw the tissue, the tiles that would be kept and the annotation over a slide's thumbnail."""
    from mgi.prepare.survey import preview

    chosen = load_options(
        TileOptions, options, mpp=mpp, tile_px=tile_px, default_mpp=default_mpp, min_tissue=min_tissue,
        annotations=None if annotations is None else str(annotations),
    )  # fmt: skip
    preview(slide, output, chosen)


@app.command(epilog="Example: mgi sources results/brca/images --manifest manifest.parquet -o sources.parquet")
def sources(
    images: Annotated[Path, typer.Argument(help="Folder of image tables and their status tables.")],
    output: Output,
    manifest: Annotated[list[Path] | None, typer.Option(help="manifest.parquet; repeatable.")] = None,
    slides: Annotated[Path | None, typer.Option(help="Table or folder of own slides, instead of a manifest.")] = None,
    case_pattern: Annotated[str | None, flag(Slides, "case_pattern")] = None,
    per_job: Annotated[int | None, flag(Slides, "per_job")] = None,
    annotations: Annotated[Path | None, typer.Option(help="Folder of annotations, checked against the slides.")] = None,
) -> None:
    """Collect what became of every slide into sources.parquet."""
    from mgi.prepare import cohort
    from mgi.prepare.local import list_local_slides

    if (slides is None) == (not manifest):
        raise typer.BadParameter("give --manifest, or --slides for own slides")
    chosen = load_options(Slides, {}, per_job=per_job)
    own = None if slides is None else list_local_slides(slides, case_pattern)
    cohort.collect_sources(images, manifest or [], chosen.per_job, annotations, output, own)


@app.command(
    epilog="Example: mgi split --sources sources.parquet --expression expression.parquet --folds 5 -o splits.parquet"
)
def split(
    sources: Sources,
    expression: ExpressionTable,
    output: Output,
    options: Options = "{}",
    folds: Annotated[int | None, flag(SplitOptions, "folds")] = None,
    val_fraction: Annotated[float | None, flag(SplitOptions, "val_fraction")] = None,
    by: Annotated[str | None, flag(SplitOptions, "by")] = None,
    stratify_table: Annotated[str | None, flag(SplitOptions, "stratify_table")] = None,
    stratify_column: Annotated[str | None, flag(SplitOptions, "stratify_column")] = None,
    site_table: Annotated[str | None, flag(SplitOptions, "site_table")] = None,
    site_column: Annotated[str | None, flag(SplitOptions, "site_column")] = None,
    seed: Annotated[int | None, flag(SplitOptions, "seed")] = None,
    labelled: Annotated[bool | None, flag(SplitOptions, "labelled", "--labelled/--unlabelled")] = None,
    manifest: Annotated[list[Path] | None, typer.Option(help="manifest.parquet for the flow; repeatable.")] = None,
    flow: Annotated[
        Path | None, typer.Option(help="Write the cases that each step kept, and why it lost others.")
    ] = None,
) -> None:
    """Pair expression with images and split the cases into folds, by patient."""
    from mgi.prepare import cohort

    chosen = load_options(
        SplitOptions, options, folds=folds, val_fraction=val_fraction, by=by, stratify_table=stratify_table,
        stratify_column=stratify_column, site_table=site_table, site_column=site_column, seed=seed,
        labelled=labelled,
    )  # fmt: skip
    cohort.split(sources, expression, output, chosen, manifests=manifest or [], flow=flow)
