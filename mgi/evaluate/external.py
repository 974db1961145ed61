"""One trained model on a table of images that it has never seen: external validation."""

from pathlib import Path

import torch

from mgi.console import log
from mgi.errors import CheckpointError, ImageTableError
from mgi.evaluate.segmentation import summarise
from mgi.model.segmenter import Segmenter
from mgi.train import checkpoint
from mgi.train.data import NO_PROFILES, Profiles, read_image_table, read_profiles
from mgi.train.inference import write_predictions
from mgi.train.loop import prepare_torch


def evaluate_table(
    folder: Path,
    images: Path,
    expression: Path | None,
    output: Path,
    bootstrap_samples: int,
    device: str | None = None,
    sources: Path | None = None,
) -> None:
    """Evaluate one model on any table of labelled images: predictions.parquet and summary.json in `output`.

    `device` is `cpu`, `cuda`, or None for what this machine has; `sources` is as in `summarise`.

    Raises
    ------
    CheckpointError
        If the model is not a segmenter, or was trained on genes in another choice or unit, or on images of another size
        or mpp.
    ImageTableError
        If the table holds no labelled image.
    """
    model = load_segmenter(folder)
    config = model.config
    table = read_image_table(images, labelled=True)
    profiles = profiles_for(model, expression, folder, set(table.frame.case_id))
    if not len(table):
        raise ImageTableError(f"{images} holds no image with a mask, so there is nothing to evaluate against")
    checkpoint.check_images(config, table.image_px, table.mpp, folder, images)
    model, device = placed(model, device)
    write_predictions(model, [table], profiles, 0, config["threshold"], device, output)
    summarise([output / "predictions.parquet"], output / "summary.json", bootstrap_samples, sources=sources)


def load_segmenter(folder: Path) -> Segmenter:
    """Load a fine-tuned model, or raise `CheckpointError`."""
    model = checkpoint.load(folder)
    if not isinstance(model, Segmenter):
        raise CheckpointError(f"{folder} holds a pre-trained model; give a fine-tuned one")
    return model


def placed(model: Segmenter, device: str | None) -> tuple[Segmenter, torch.device]:
    """Put a model on `device`, or on what this machine has, and give both; raises as `prepare_torch` does."""
    options = model.config["options"]
    place = prepare_torch(options["threads"], device, options["seed"], model.gene_encoder is not None)
    return model.to(place, memory_format=torch.channels_last), place


def profiles_for(model: Segmenter, expression: Path | None, folder: Path, cases: set[str]) -> Profiles:
    """Read the cases' profiles for a model with genes; without a table every case counts as having none."""
    if model.gene_encoder is None:
        if expression is not None:
            log.warning("the model in %s was trained without genes: --expression is not used", folder)
        return NO_PROFILES
    genes = model.config["genes"]
    if expression is None:
        log.warning("no --expression: the model in %s sees the images alone", folder)
        return Profiles(torch.zeros(1, len(genes)), {}, genes)
    profiles = read_profiles(expression, cases)
    checkpoint.check_expression(model.config, profiles, folder)
    return profiles
