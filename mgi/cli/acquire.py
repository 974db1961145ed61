"""Commands that query and fetch files."""

from pathlib import Path
from typing import Annotated

import typer

from mgi.cli.common import Output, add_group

gdc_app = add_group("gdc", "Query and fetch files of the Genomic Data Commons.")
idc_app = add_group("idc", "Fetch slides from the Imaging Data Commons.")


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
