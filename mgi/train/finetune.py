"""Segmentation fine-tuning on a fold, with or without genes, and prediction of its test patients."""

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgi.config import FinetuneOptions
from mgi.console import log
from mgi.errors import CheckpointError, CohortError, MissingInputError
from mgi.model.alignment import Aligner
from mgi.model.segmenter import Segmenter, dice_cross_entropy
from mgi.train import checkpoint
from mgi.train.data import (
    NO_PROFILES,
    Ahead,
    Images,
    Profiles,
    augment,
    iterate_images,
    read_images,
    read_profiles,
    read_roles,
    to_tensor,
)
from mgi.train.loop import TrainingRun, autocast, parameter_groups, prepare_torch
from mgi.train.validation import score, write_predictions

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
# In a batch's masks, beside 0 and 1: neither tumour nor background.
IGNORED = 2


def finetune(
    options: FinetuneOptions,
    sources: Path,
    expression: Path | None,
    splits: Path,
    fold: str,
    pretrained: Path | None,
    output: Path,
) -> None:
    """Train a `Segmenter` and write model.safetensors, config.json, metrics.csv and, for a fold, predictions.parquet.

    The validation patients choose the step and the threshold; the test patients are read once, at the end. The fold
    `all` trains on every patient for the fixed number of steps with the threshold 0.5. A variant without genes reads no
    `expression`.

    Raises
    ------
    MissingInputError
        If a table is not there, or a variant with genes is given no `expression`.
    CohortError
        If the fold has no training image with tumour, or fewer than two training patients to standardise genes by.
    CheckpointError
        If `pretrained` was made for other genes, images or encoders.
    TrainingError
        If the loss or its gradient is not finite.
    """
    device = prepare_torch(options.threads, options.device, options.seed, options.genes != "none")
    roles = read_roles(splits, fold)
    profiles = _profiles(options, expression, roles)
    train, val = (_labelled(options, sources, roles[role]) for role in ("train", "val"))
    if not train.positive.any():
        raise CohortError(f"no training image of fold {fold} holds tumour: check the annotations")
    config = {
        "kind": "segmenter",
        "options": options.model_dump(exclude={"base", "device"}),
        "fold": fold,
        "image_px": train.image_px,
        "mpp": train.mpp,
        "genes": profiles.genes,
        "unit": profiles.unit,
        "threshold": 0.5,
    }
    _check_edges(config)
    model = _model(options, config, profiles, roles["train"], pretrained)
    model = model.to(device, memory_format=torch.channels_last)
    identity = {
        "config": config,
        "device": options.device,
        "patients": roles,
        "images": [part.digest() for part in (train, val) if part is not None],
        "profiles": profiles.digest(roles["train"] + roles["val"]),
        "pretrained": _digest(pretrained),
    }
    run = TrainingRun(model, options, identity, output, parameter_groups(model, options, options.encoder_lr_scale))
    batches = ImageBatches(train, profiles, options, device)
    log.info("fine-tuning on %d patients, %d images", train.frame.case_id.nunique(), len(train))
    validate = None if val is None else partial(_validate, model, val, profiles, device)
    run.train(options.seed, partial(batches.loss, model), validate)
    if val is not None:
        dice, _ = score(model, val, profiles, THRESHOLDS, device)
        config["threshold"] = THRESHOLDS[int(np.argmax(dice))]
    if roles["test"]:
        test = iterate_images(sources, set(roles["test"]), labelled=True)
        write_predictions(model, test, profiles, int(fold), config["threshold"], device, output)
    checkpoint.save(model, config, output)
    run.finish()


class ImageBatches:
    """Batches of labelled images, patients drawn evenly; a batch depends on seed and step alone."""

    def __init__(self, images: Images, profiles: Profiles, options: FinetuneOptions, device: torch.device) -> None:
        self.images, self.profiles, self.options, self.device = images, profiles, options, device
        self.pools = [
            [np.flatnonzero(chosen) for chosen in _by_case(images, keep)]
            for keep in (images.positive, np.ones(len(images), dtype=bool))
        ]
        self._ahead = Ahead(self._draw, options.steps)

    def loss(self, model: Segmenter, step: int) -> Tensor:
        """Give the loss of one step's batch."""
        rows, pictures, masks = self._ahead(step)
        cases, patient = np.unique(self.images.frame.case_id.to_numpy(dtype=str)[rows], return_inverse=True)
        values, present = self.profiles.of(cases.tolist())
        inputs = to_tensor(pictures, self.device).contiguous(memory_format=torch.channels_last)
        target = torch.from_numpy(masks == 1).to(self.device).float()
        counted = torch.from_numpy(masks != IGNORED).to(self.device)
        with autocast(self.device):
            logits = model(
                inputs,
                values.to(self.device),
                torch.from_numpy(patient).to(self.device),
                present.to(self.device),
                self.options.gene_dropout,
            )
        if counted.all():
            return dice_cross_entropy(logits.float(), target)
        # The loss of no pixel at all is 0, not the mean of nothing.
        return dice_cross_entropy(logits.float()[counted], target[counted]) if counted.any() else 0 * logits.sum()

    def _draw(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw rows, and decode and augment their images and masks."""
        options = self.options
        random = np.random.default_rng([options.seed, step])
        positives = round(options.positive_fraction * options.batch_images)
        counts = (positives, options.batch_images - positives)
        rows = [self._draw_rows(pool, count, random) for pool, count in zip(self.pools, counts, strict=True)]
        rows = np.concatenate(rows)
        images, masks = self.images.load(rows), self.images.load_masks(rows)
        masks[self.images.load_ignore(rows)] = IGNORED
        return rows, *augment(images, masks, options.augment, options.intensity_jitter, random)

    @staticmethod
    def _draw_rows(pool: list[np.ndarray], count: int, random: np.random.Generator) -> np.ndarray:
        cases = random.integers(0, len(pool), count)
        return np.array([random.choice(pool[case]) for case in cases], dtype=np.int64)


def _by_case(images: Images, keep: np.ndarray) -> list[np.ndarray]:
    cases = images.frame.case_id.to_numpy(dtype=str)
    return [(cases == case) & keep for case in np.unique(cases[keep])]


def _profiles(options: FinetuneOptions, expression: Path | None, roles: dict[str, list[str]]) -> Profiles:
    """Read the profiles as the variant wants them: none, matched, or shuffled within each role."""
    if options.genes == "none":
        return NO_PROFILES
    if expression is None:
        raise MissingInputError(f"'genes' is {options.genes}, which needs the expression table: give --expression")
    profiles = read_profiles(expression, {case for cases in roles.values() for case in cases})
    return profiles.deranged(list(roles.values()), options.seed) if options.genes == "shuffled" else profiles


def _labelled(options: FinetuneOptions, sources: Path, cases: list[str]) -> Images | None:
    """Read the images with a mask of the cases of a role; None where it has no case."""
    return read_images(sources, set(cases), True, options.images_per_source) if cases else None


def _model(
    options: FinetuneOptions, config: dict[str, Any], profiles: Profiles, train: list[str], pretrained: Path | None
) -> Segmenter:
    """Build the segmenter with the encoders it starts from, their standardisation included."""
    model = checkpoint.build_segmenter(config, options.image_encoder.weights and pretrained is None)
    if pretrained is not None:
        _load_encoders(model, config, profiles, pretrained)
    elif model.gene_encoder is not None:
        values, present = profiles.of(train)
        if present.sum() < 2:
            raise CohortError(
                f"fold {config['fold']} has {present.sum()} training patients with expression, and standardising the "
                "genes needs two or more: pair more cases, lower split.folds, or set 'genes: none'"
            )
        model.gene_encoder.fit_standardisation(values[present])
    return model


def _validate(
    model: Segmenter, val: Images, profiles: Profiles, device: torch.device
) -> tuple[float, dict[str, float]]:
    """Give what selects the step, the patient-mean Dice of the validation patients, and what is recorded."""
    (dice,), loss = score(model, val, profiles, (0.5,), device)
    return float(dice), {"val_loss": loss, "val_dice": float(dice)}


def _check_edges(config: dict[str, Any]) -> None:
    halvings = len(config["options"]["channels"]) - 1
    if config["image_px"] % 2**halvings:
        raise CohortError(
            f"images of {config['image_px']} px cannot be halved {halvings} times: "
            f"make slides.tile_px or mri.image_px a multiple of {2**halvings}, or shorten 'channels'"
        )


def _load_encoders(model: Segmenter, config: dict[str, Any], profiles: Profiles, folder: Path) -> None:
    """Copy the encoders of a pre-trained model that this segmenter has, its standardisation included."""
    source = checkpoint.load(folder)
    if not isinstance(source, Aligner):
        raise CheckpointError(f"{folder} holds a fine-tuned model, not pre-trained encoders")
    checkpoint.check_images(source.config, config["image_px"], config["mpp"], folder, "the training set")
    if model.gene_encoder is not None:
        checkpoint.check_expression(source.config, profiles, folder)
    try:
        for name in ("gene_encoder", "image_encoder"):
            target = getattr(model, name)
            if target is not None:
                target.load_state_dict(getattr(source, name).state_dict())
    except RuntimeError as problem:
        reason = str(problem).splitlines()[-1].strip()
        raise CheckpointError(f"the encoders in {folder} are of another shape: {reason}") from None


def _digest(folder: Path | None) -> str | None:
    """Tell one set of pre-trained weights from another."""
    return None if folder is None else hashlib.sha256((folder / checkpoint.WEIGHTS).read_bytes()).hexdigest()
