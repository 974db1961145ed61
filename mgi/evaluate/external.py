"""One trained model on tables of images that it has never seen: external validation."""

from collections.abc import Iterator
from pathlib import Path

from mgi.console import log
from mgi.errors import CohortError, ImageTableError
from mgi.evaluate.segmentation import summarise
from mgi.inference import load_segmenter, move_to_device, read_profiles_for, warn_of_trained
from mgi.names import first_few
from mgi.tables import read_table
from mgi.train import checkpoint
from mgi.train.data import Images, read_image_table
from mgi.train.description import SegmenterDescription
from mgi.train.profiles import Profiles
from mgi.train.validation import write_predictions


def evaluate_tables(
    folder: Path,
    images: list[Path],
    expression: Path | None,
    output: Path,
    bootstrap_samples: int,
    device: str | None = None,
    sources: Path | None = None,
    unit: str | None = None,
    shuffle_genes: bool = False,
    seed: int = 0,
) -> None:
    """Evaluate one model on any tables of labelled images: predictions.parquet and summary.json in `output`.

    Parameters
    ----------
    folder
        Folder of a fine-tuned model, or of its variant.
    images
        Tables of images or folders of them, as results/{cohort}/images; one table is in memory at a time.
    expression, unit
        expression.parquet of the cases, and its unit where it does not say, or says wrongly.
    output
        Folder to write to.
    bootstrap_samples
        Resamples of the patients.
    device
        `cpu`, `cuda`, or None for what this machine has.
    sources
        As in `summarise`.
    shuffle_genes, seed
        Whether each case gets the profile of another one, drawn by `seed`: what a model loses so is what it uses of the
        genes.

    Raises
    ------
    CheckpointError
        If the model is not a segmenter, or was trained on genes in another choice or unit, or on images of another size
        or mpp.
    ImageTableError
        If there is no table, or none holds a labelled image.
    CohortError
        If the expression table has a profile of none of the cases, or profiles are to be shuffled and fewer than two
        are given.
    """
    model = load_segmenter(folder)
    tables = [table for path in images for table in _list_tables(path)]
    cases = {case for path in tables for case in _read_cases(path)}
    profiles = read_profiles_for(model, expression, folder, cases, unit)
    if model.gene_encoder is not None and expression is not None:
        _check_paired(cases, profiles, expression)
    if shuffle_genes:
        if len(cases & set(profiles.row)) < 2:
            raise CohortError("shuffling needs the profiles of at least two of the cases, in a table of expression")
        profiles = profiles.shuffle([sorted(cases)], seed)
    warn_of_trained(model, cases, folder)
    model, place = move_to_device(model, device)
    parts = _read_labelled(tables, model.description, folder)
    write_predictions(model, parts, profiles, 0, model.description.decision, place, output)
    summarise([output / "predictions.parquet"], output / "summary.json", bootstrap_samples, seed, sources)


def _list_tables(path: Path) -> list[Path]:
    """List the tables of images that a path names: itself, or those of a folder."""
    if not path.is_dir():
        return [path]
    tables = [table for table in sorted(path.glob("*.parquet")) if not table.name.endswith(".status.parquet")]
    if not tables:
        raise ImageTableError(f"{path} holds no table of images, *.parquet; give results/{{cohort}}/images")
    return tables


def _read_cases(table: Path) -> list[str]:
    return read_table(table, "table of images", ["case_id"], ImageTableError)["case_id"].unique().to_pylist()


def _check_paired(cases: set[str], profiles: Profiles, expression: Path) -> None:
    """Raise `CohortError` for a table with none of the cases, and warn of those that it lacks."""
    missing = sorted(case for case in cases if case not in profiles.row)
    if missing and len(missing) == len(cases):
        raise CohortError(
            f"{expression} has no profile of any of the {len(cases)} cases, such as {first_few(missing)}: correct its "
            "case_id, or leave it out to segment by the images alone"
        )
    if missing:
        log.warning("%d of %d cases have no profile in %s and are segmented by their images alone: %s",
                    len(missing), len(cases), expression, first_few(missing))  # fmt: skip


def _read_labelled(tables: list[Path], description: SegmenterDescription, folder: Path) -> Iterator[Images]:
    """Read one table after the other, of each the images with a mask."""
    found = False
    for path in tables:
        part = read_image_table(path, labelled=True)
        if len(part):
            found = True
            checkpoint.check_images(description, part, folder, path)
            yield part
    if not found:
        names = ", ".join(map(str, tables[:3]))
        raise ImageTableError(f"{names} holds no image with a mask, so there is nothing to evaluate against")
