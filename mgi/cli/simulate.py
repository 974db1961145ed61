"""Commands that make and serve the simulated cohort."""

from pathlib import Path
from typing import Annotated

import typer

from mgi.cli.common import Options, app, flag
from mgi.config import SimulateOptions, load_options


@app.command(epilog="Example: mgi simulate sim --cases 48 --seed 0")
def simulate(
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    options: Options = "{}",
    cases: Annotated[int | None, flag(SimulateOptions, "cases")] = None,
    seed: Annotated[int | None, flag(SimulateOptions, "seed")] = None,
    genes: Annotated[int | None, flag(SimulateOptions, "genes")] = None,
    slide_px: Annotated[int | None, flag(SimulateOptions, "slide_px")] = None,
    tumour_by: Annotated[str | None, flag(SimulateOptions, "tumour_by")] = None,
    switch_sd: Annotated[float | None, flag(SimulateOptions, "switch_sd")] = None,
    switch_genes: Annotated[int | None, flag(SimulateOptions, "switch_genes")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
) -> None:
    """Make a small cohort in the GDC's own formats, with planted coupling of genes and images."""
    from mgi.simulate.cohort import simulate_cohort

    chosen = load_options(
        SimulateOptions, options, cases=cases, seed=seed, genes=genes, slide_px=slide_px, tumour_by=tumour_by,
        switch_sd=switch_sd, switch_genes=switch_genes,
    )  # fmt: skip
    simulate_cohort(out, **chosen.model_dump(), workers=workers)


@app.command(epilog="Example: mgi serve sim --port 8080")
def serve(
    folder: Annotated[Path, typer.Argument(help="A folder made by `mgi simulate`.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on loopback; 0 takes a free one.")] = 0,
) -> None:
    """Serve such a folder through the GDC's API paths, on loopback, until interrupted."""
    from mgi.simulate.serve import serve_until_interrupted

    serve_until_interrupted(folder, port)
