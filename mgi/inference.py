"""Load a trained model, put it on a device, and find the profiles it reads."""

from collections.abc import Iterable
from pathlib import Path

import torch

from mgi.console import log
from mgi.errors import CheckpointError
from mgi.model.ensemble import Ensemble
from mgi.model.segmenter import Segmenter
from mgi.names import first_few
from mgi.prepare.units import UNITS, check_unit
from mgi.train import checkpoint
from mgi.train.decision import Decision
from mgi.train.device import Place, prepare_torch
from mgi.train.profiles import NO_PROFILES, Profiles, read_profiles

# What the folds of one variant have in common.
SHARED = ("options", "image_px", "mpp", "stain", "genes", "unit")


def find_models(folder: Path) -> list[Path]:
    """Return the folder of the model that a folder holds or, of a variant's, its `all`, or else all of its folds."""
    folder = Path(folder)
    if (folder / checkpoint.DESCRIPTION).exists() or not folder.is_dir():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f"*/{checkpoint.WEIGHTS}"))
    chosen = [path for path in found if path.name == "all"] or found
    if len(chosen) > 1:
        log.warning(
            "the model of every patient, %s, is not trained: the mean of the %d models beside it is used, %s",
            folder / "all", len(chosen), ", ".join(path.name for path in chosen),
        )  # fmt: skip
    elif chosen:
        log.info("the model in %s is used", chosen[0])
    return chosen or [folder]


def load_segmenter(folder: Path) -> Segmenter:
    """Load a fine-tuned model from its folder or its variant's; of several folds the `Ensemble`.

    An ensemble takes the median of its members' decisions, and its patients are those of all of them.

    Raises
    ------
    CheckpointError
        If it is not a fine-tuned model, or the folds' models differ in more than the patients they saw.
    """
    folders = find_models(folder)
    members = [_load_member(path) for path in folders]
    first = members[0].description
    if len(members) == 1:
        return members[0]
    for path, member in zip(folders, members, strict=True):
        differing = [name for name in SHARED if getattr(member.description, name) != getattr(first, name)]
        if differing:
            raise CheckpointError(
                f"the models in {folders[0]} and {path.name} differ in {first_few(differing)}, so their mean has no "
                "meaning; name one of them"
            )
    ensemble = Ensemble(members)
    decision = Decision.median(member.description.decision for member in members)
    decision = decision._replace(uses_genes=ensemble.uses_genes)
    cases = sorted({case for member in members for case in member.description.cases})
    ensemble.description = first.model_copy(update={"cases": cases, **decision._asdict()})
    return ensemble.eval()


def _load_member(folder: Path) -> Segmenter:
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
        log.warning("the model in %s does not use genes: its validation Dice was higher without them", folder)
    genes, names = description.genes, description.gene_names
    if expression is None:
        log.warning("no expression table: the model in %s sees the images alone", folder)
        return Profiles(torch.zeros(1, len(genes)), {}, genes, names)
    profiles = read_profiles(expression, cases)
    checkpoint.check_unit(description, _settle_unit(profiles, expression, description.unit, unit), folder)
    encoders = [one.gene_encoder for one in model.members] if isinstance(model, Ensemble) else [model.gene_encoder]
    means = torch.stack([encoder.mean for encoder in encoders if encoder is not None]).mean(dim=0)
    return profiles.match(genes, names, means, description.options.max_missing_genes, folder)


def warn_of_trained(model: Segmenter, cases: Iterable[str], folder: Path) -> None:
    """Warn of cases that a model was trained on."""
    trained = sorted(set(cases) & set(model.description.cases))
    if trained:
        log.warning("the model in %s was trained on %s: how well it does there says nothing of new patients",
                    folder, first_few(trained))  # fmt: skip


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
