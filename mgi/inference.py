"""Load a trained model, place it on a device, and find the profiles it reads."""

from pathlib import Path

import torch

from mgi.console import log
from mgi.errors import CheckpointError
from mgi.model.segmenter import Segmenter
from mgi.train import checkpoint
from mgi.train.data import NO_PROFILES, Profiles, read_profiles
from mgi.train.loop import prepare_torch


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
