"""Commands that make and serve the simulated cohort."""

from pathlib import Path
from typing import Annotated

import typer

from mgi.cli.common import app


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
