"""Commands that query, import and fetch files."""

from pathlib import Path
from typing import Annotated

import typer

from mgi.cli.common import Options, Output, add_group, flag
from mgi.config import FetchOptions, ImportOptions, QueryOptions, Server, load_config, load_options, read_mapping
from mgi.errors import ConfigError

gdc_app = add_group("gdc", "Query and fetch files of the Genomic Data Commons.")
idc_app = add_group("idc", "Fetch slides from the Imaging Data Commons.")


@gdc_app.command("query", epilog="Example: mgi gdc query --config config/tcga-brca.yaml -o manifest.parquet")
def gdc_query(
    output: Output,
    config: Annotated[Path | None, typer.Option(help="Take what this configuration needs.")] = None,
    options: Options = "{}",
    project: Annotated[list[str] | None, flag(QueryOptions, "projects")] = None,
    api_url: Annotated[str | None, flag(QueryOptions, "api_url")] = None,
    allow_http: Annotated[bool | None, flag(QueryOptions, "allow_http")] = None,
    data_type: Annotated[list[str] | None, flag(QueryOptions, "data_types")] = None,
    annotation_file_id: Annotated[str | None, flag(QueryOptions, "annotation_file_id")] = None,
    slides: Annotated[list[str] | None, flag(QueryOptions, "slides")] = None,
    sample_type: Annotated[list[str] | None, flag(QueryOptions, "sample_types")] = None,
    aliquots: Annotated[str | None, flag(QueryOptions, "aliquots")] = None,
    slides_per_case: Annotated[str | None, flag(QueryOptions, "slides_per_case")] = None,
    exclude: Annotated[str | None, flag(QueryOptions, "exclude")] = None,
) -> None:
    """List a cohort's files, with size and md5, into a manifest that pins it."""
    from mgi.acquire import gdc
    from mgi.simulate.serve import endpoint

    given = read_mapping(options, "options")
    if config is not None:
        settings = load_config(config)
        if settings.gdc is None:
            raise ConfigError(f"{config} has no section 'gdc': add it, or give --project")
        given = settings.query_options(*settings.gdc.projects) | given
    if not project and "projects" not in given:
        raise typer.BadParameter("give --project, --options or --config")
    chosen = load_options(
        QueryOptions, given, projects=project, api_url=api_url, allow_http=allow_http, data_types=data_type,
        annotation_file_id=annotation_file_id, slides=slides, sample_types=sample_type, aliquots=aliquots,
        slides_per_case=slides_per_case, exclude=exclude,
    )  # fmt: skip
    with endpoint(chosen.api_url) as url:
        gdc.query(chosen, output, url)


@gdc_app.command(
    "import", epilog="Example: mgi gdc import gdc_manifest.txt --sample-sheet gdc_sample_sheet.tsv -o manifest.parquet"
)
def gdc_import(
    manifest: Annotated[Path, typer.Argument(help="A manifest of the GDC portal (.txt, .tsv).")],
    output: Output,
    sample_sheet: Annotated[
        Path | None,
        typer.Option(help="The portal's sample sheet of the same files: it states project, case and sample of each."),
    ] = None,
    options: Options = "{}",
    slides: Annotated[list[str] | None, flag(ImportOptions, "slides")] = None,
    sample_type: Annotated[list[str] | None, flag(ImportOptions, "sample_types")] = None,
    aliquots: Annotated[str | None, flag(ImportOptions, "aliquots")] = None,
    slides_per_case: Annotated[str | None, flag(ImportOptions, "slides_per_case")] = None,
) -> None:
    """Make a manifest that pins a cohort of one that the GDC portal gives, without a network."""
    from mgi.acquire.portal import import_manifest

    chosen = load_options(
        ImportOptions, options, slides=slides, sample_types=sample_type, aliquots=aliquots,
        slides_per_case=slides_per_case,
    )  # fmt: skip
    import_manifest(manifest, sample_sheet, output, chosen)


@gdc_app.command("check", epilog="Example: mgi gdc check resources/gdc/TCGA-BRCA/manifest.parquet -o gone.tsv")
def gdc_check(
    manifest: Annotated[Path, typer.Argument(help="manifest.parquet.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write a table of what is gone here.")] = None,
    api_url: Annotated[str | None, flag(Server, "api_url")] = None,
    allow_http: Annotated[bool | None, flag(Server, "allow_http")] = None,
) -> None:
    """Ask whether the GDC still has every file as pinned: what was superseded, withdrawn or changed since."""
    from mgi.acquire.check import check
    from mgi.simulate.serve import endpoint

    server = load_options(Server, {}, api_url=api_url, allow_http=allow_http)
    with endpoint(server.api_url) as url:
        check(manifest, url, output, allow_http=server.allow_http)


@gdc_app.command("fetch", epilog="Example: mgi gdc fetch manifest.parquet -o slides --data-type slides --workers 4")
def gdc_fetch(
    manifest: Annotated[Path, typer.Argument(help="manifest.parquet, or a manifest of the GDC portal (.tsv, .txt).")],
    output: Output,
    options: Options = "{}",
    api_url: Annotated[str | None, flag(FetchOptions, "api_url")] = None,
    allow_http: Annotated[bool | None, flag(FetchOptions, "allow_http")] = None,
    workers: Annotated[int | None, flag(FetchOptions, "workers")] = None,
    data_type: Annotated[str | None, typer.Option(help="Only `expression`, `slides` or `annotation`.")] = None,
    file_id: Annotated[list[str] | None, typer.Option(help="Only this file; repeatable.")] = None,
    rows: Annotated[
        str, typer.Option(help="Only rows START:STOP of what is selected, counted from 0.", metavar="START:STOP")
    ] = ":",
    mirror: Annotated[list[str] | None, flag(FetchOptions, "mirrors")] = None,
    token_file: Annotated[str | None, flag(FetchOptions, "token_file")] = None,
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
    from mgi.simulate.serve import endpoint

    bounds = rows.split(":")
    if len(bounds) != 2 or not all(bound.isdigit() or not bound for bound in bounds):
        raise typer.BadParameter(f"--rows is '{rows}'; give START:STOP, such as 0:500")
    chosen = load_options(
        FetchOptions, options, api_url=api_url, allow_http=allow_http, workers=workers, mirrors=mirror,
        token_file=token_file,
    )  # fmt: skip
    with endpoint(chosen.api_url) as url:
        fetch(
            manifest, output, url, chosen, data_type=data_type, file_ids=file_id,
            rows=slice(*(int(bound) if bound else None for bound in bounds)), partial=partial, receipt=receipt,
            status=status,
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
