"""Load a trained model, put it on a device, and find the profiles it reads."""

from pathlib import Path

import torch

from mgi.console import log
from mgi.errors import CheckpointError
from mgi.model.segmenter import Segmenter
from mgi.prepare.units import UNITS, check_unit
from mgi.train import checkpoint
from mgi.train.device import Place, prepare_torch
from mgi.train.profiles import NO_PROFILES, Profiles, read_profiles


def find_model(folder: Path) -> Path:
    """Return the folder of the model that a folder holds or, of a variant's, its `all`, or its only fold.

    Raises
    ------
    CheckpointError
        If a variant has several folds and no `all`.
    """
    folder = Path(folder)
    if (folder / checkpoint.DESCRIPTION).exists() or not folder.is_dir():
        return folder
    found = sorted(path.parent for path in folder.glob(f"*/{checkpoint.WEIGHTS}"))
    chosen = next((path for path in found if path.name == "all"), found[0] if len(found) == 1 else None)
    if chosen is None and found:
        raise CheckpointError(
            f"{folder} holds {len(found)} models, of single folds: name one, such as {found[0]}, or train `all`"
        )
    if chosen is None:
        return folder
    log.info("the model in %s is used", chosen)
    return chosen


def load_segmenter(folder: Path) -> Segmenter:
    """Load a fine-tuned model from its folder or its variant's, or raise `CheckpointError`."""
    folder = find_model(folder)
    model = checkpoint.load(folder)
    if not isinstance(model, Segmenter):
        raise CheckpointError(f"{folder} holds a pre-trained model; give a fine-tuned one")
    return model


def move_to_device(model: Segmenter, device: str | None) -> tuple[Segmenter, Place]:
    """Move a model to `device`, or to what this machine has, and return both; raises as `prepare_torch` does."""
    place = prepare_torch(model.description.options, device, model.gene_encoder is not None)
    return model.to(place.device, memory_format=torch.channels_last), place  # type: ignore[call-overload]


def read_profiles_for(
    model: Segmenter, expression: Path | None, folder: Path, cases: set[str], unit: str | None = None
) -> Profiles:
    """Read the cases' profiles over the genes of a model; without a table every case counts as having none.

    `unit` is a key of `mgi.prepare.units.UNITS` and states what the values are, whatever the table says. Where neither
    says, they are taken for the model's, if they can be.

    Raises
    ------
    CheckpointError
        If the table lacks more of the model's genes than it allows, or is in another unit.
    ExpressionError
        If the values cannot be of the unit that is stated or assumed.
    """
    if model.gene_encoder is None:
        if expression is not None:
            log.warning("the model in %s was trained without genes: the expression table is not used", folder)
        return NO_PROFILES
    description = model.description
    if not description.uses_genes:
        log.warning("the model in %s leaves genes out, without which its validation patients were better off", folder)
    genes, names = description.genes, description.gene_names
    if expression is None:
        log.warning("no expression table: the model in %s sees the images alone", folder)
        return Profiles(torch.zeros(1, len(genes)), {}, genes, names)
    profiles = read_profiles(expression, cases)
    checkpoint.check_unit(description, _settle_unit(profiles, expression, description.unit, unit), folder)
    means = model.gene_encoder.mean
    return profiles.match(genes, names, means, description.options.max_missing_genes, folder)


def _settle_unit(profiles: Profiles, expression: Path, expected: str | None, stated: str | None) -> str | None:
    """Return the unit of a table: as stated, as it says, or the model's where the values can be that."""
    if stated is not None:
        check_unit(profiles.values.numpy(), stated, expression)
        return UNITS[stated]
    if profiles.unit is None and len(profiles.values):
        assumed = next((key for key, name in UNITS.items() if name == expected), None)
        if assumed is not None:
            check_unit(profiles.values.numpy(), assumed, expression)
            log.warning("%s does not state its unit: taken for %s, as the model's", expression, expected)
    return profiles.unit
