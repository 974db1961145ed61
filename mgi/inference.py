"""Load a trained model, put it on a device, and find the profiles it reads."""

from pathlib import Path

import torch

from mgi.console import log
from mgi.errors import CheckpointError
from mgi.model.segmenter import Segmenter
from mgi.train import checkpoint
from mgi.train.device import Place, prepare_torch
from mgi.train.profiles import NO_PROFILES, Profiles, read_profiles


def load_segmenter(folder: Path) -> Segmenter:
    """Load a fine-tuned model, or raise `CheckpointError`."""
    model = checkpoint.load(folder)
    if not isinstance(model, Segmenter):
        raise CheckpointError(f"{folder} holds a pre-trained model; give a fine-tuned one")
    return model


def move_to_device(model: Segmenter, device: str | None) -> tuple[Segmenter, Place]:
    """Move a model to `device`, or to what this machine has, and return both; raises as `prepare_torch` does."""
    place = prepare_torch(model.description.options, device, model.gene_encoder is not None)
    return model.to(place.device, memory_format=torch.channels_last), place


def read_profiles_for(model: Segmenter, expression: Path | None, folder: Path, cases: set[str]) -> Profiles:
    """Read the cases' profiles over the genes of a model; without a table every case counts as having none.

    Raises
    ------
    CheckpointError
        If the table lacks more of the model's genes than it allows, or is in another unit.
    """
    if model.gene_encoder is None:
        if expression is not None:
            log.warning("the model in %s was trained without genes: the expression table is not used", folder)
        return NO_PROFILES
    description = model.description
    genes, names = description.genes, description.gene_names
    if expression is None:
        log.warning("no expression table: the model in %s sees the images alone", folder)
        return Profiles(torch.zeros(1, len(genes)), {}, genes, names)
    profiles = read_profiles(expression, cases)
    checkpoint.check_unit(description, profiles.unit, folder)
    means = model.gene_encoder.mean
    return profiles.match(genes, names, means, description.options.max_missing_genes, folder)
