"""Segmentation fine-tuning on a fold, with or without genes, and prediction of its test patients."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mgi import __version__
from mgi.config import FinetuneOptions, PretrainOptions
from mgi.console import log
from mgi.errors import CheckpointError, CohortError, MissingInputError
from mgi.model.alignment import Aligner
from mgi.model.backbone import ImageNetPath
from mgi.model.segmenter import Segmenter, dice_cross_entropy
from mgi.names import first_few
from mgi.train import checkpoint
from mgi.train.batches import Ahead, Augmentation, Warp, to_tensor
from mgi.train.data import Images, iterate_images, read_case_labels, read_images, read_roles
from mgi.train.decision import DECISIONS, SERIES_DECISIONS, Decision, choose_decision
from mgi.train.description import SegmenterDescription, read_description
from mgi.train.device import Place, prepare_torch
from mgi.train.distributed import Ranks, join_ranks
from mgi.train.loop import Score, TrainingRun, parameter_groups
from mgi.train.profiles import NO_PROFILES, Profiles, read_profiles
from mgi.train.resume import code_hash
from mgi.train.validation import score, write_predictions

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
    folds: Sequence[Path] = (),
) -> None:
    """Train a `Segmenter` and write model.safetensors, config.json, metrics.csv and, for a fold, predictions.parquet.

    The validation patients choose the step and the decision; the test patients are read once, at the end. The fold
    `all` trains on every patient for the fixed number of steps, with the median decision of the models in `folds`, or
    else the threshold 0.5. A variant without genes reads no `expression`. Encoders that the options do not state are
    those of `pretrained`. Processes started by torchrun share each batch, and the first of them writes.

    Raises
    ------
    MissingInputError
        If a table is not there, or a variant with genes is given no `expression`.
    CohortError
        If the fold's training or validation patients have no tumour, or fewer than two training patients have a profile
        to standardise genes by.
    CheckpointError
        If `pretrained` was made for other genes, images or encoders.
    TrainingError
        If the loss or its gradient is not finite.
    TrainingInterruptedError
        At SIGTERM, once the state is saved.
    """
    ranks, place = join_ranks(prepare_torch(options, options.device, options.genes != "none"))
    if options.network != "mgi" and ranks.world > 1:
        raise CohortError(
            f"'{options.network}' normalises over a batch, and {ranks.world} processes would do it each for its share: "
            "train it by one process"
        )
    torch.manual_seed(options.replicate_seed)
    roles = read_roles(splits, fold)
    source = None if pretrained is None else _load_aligner(pretrained)
    if source is not None:
        options = _take_encoders(options, source.description.options)
    profiles = _read_profiles(options, expression, splits, roles, source, pretrained)
    train, val = _read_labelled(options, sources, roles["train"]), None
    if not train.positive.any():
        raise CohortError(f"no training image of fold {fold} has tumour: check the annotations")
    if roles["val"]:
        val = _read_labelled(options, sources, roles["val"])
        if not val.positive.any():
            raise CohortError(
                f"no validation image of fold {fold} has tumour, so they cannot choose a step or a threshold: use "
                "other folds, more validation patients, or folds stratified by tumour"
            )
    decision = Decision.median(_read_decision(folder) for folder in folds) if folds else Decision()
    description = SegmenterDescription(
        mgi=__version__,
        code=code_hash(),
        options=options,
        fold=fold,
        cases=sorted(roles["train"] + roles["val"]),
        image_px=train.image_px,
        mpp=train.mpp,
        stain=train.stain,
        genes=profiles.genes,
        gene_names=profiles.names,
        unit=profiles.unit,
        **decision._asdict(),
    )
    _check_edges(description)
    model = _build_model(description, profiles, roles["train"], source, pretrained)
    model = model.to(memory_format=torch.channels_last).to(place.device)  # type: ignore[call-overload]
    identity = {
        "configuration": description.model_dump(mode="json", exclude={"code", "mgi"}),
        "device or precision": f"{place.device.type} {place.dtype} {ranks.world}",
        "set of patients": roles,
        "set of images": [part.digest() for part in (train, val) if part is not None],
        "set of profiles": profiles.digest(roles["train"] + roles["val"]),
        "pre-training": _digest(pretrained),
    }
    groups = parameter_groups(model, options)
    run = TrainingRun(model, options, identity, output, groups, options.batch_images, ranks)
    batches = ImageBatches(train, profiles, options, place, ranks)
    log.info("fine-tuning on %d patients, %d images", train.frame.case_id.nunique(), len(train))
    validate = None if val is None else partial(_validate, model, val, profiles, place)
    run.train(options.replicate_seed, partial(batches.backward, model), validate)
    if ranks.first:
        if val is not None:
            decision = _decide(model, val, profiles, options, place)
            description = description.model_copy(update=decision._asdict())
        if roles["test"]:
            test = iterate_images(sources, set(roles["test"]), labelled=True)
            write_predictions(model, test, profiles, int(fold), description.decision, place, output)
        checkpoint.save(model, description, output)
    run.finish()


class ImageBatches:
    """Batches of labelled images, patients drawn evenly; a batch depends on seed and step alone."""

    def __init__(
        self,
        images: Images,
        profiles: Profiles,
        options: FinetuneOptions,
        place: Place,
        ranks: Ranks | None = None,
    ) -> None:
        self.images, self.profiles, self.options, self.place = images, profiles, options, place
        self.ranks = ranks or Ranks()
        if options.batch_images < self.ranks.world:
            raise CohortError(
                f"a batch of {options.batch_images} images cannot be shared by {self.ranks.world} processes: start "
                "fewer, or use larger batches"
            )
        self.case_ids = images.frame.case_id.to_numpy(dtype=str)
        self.pools = [
            [np.flatnonzero((self.case_ids == case) & keep) for case in np.unique(self.case_ids[keep])]
            for keep in (images.positive, np.ones(len(images), dtype=bool))
        ]
        self._pool = ThreadPoolExecutor(options.threads)
        self._ahead = Ahead(self._draw, options.steps)

    def backward(self, model: Segmenter, step: int) -> Tensor:
        """Compute the gradient of one step's loss, through this process's share of the batch, and return the loss."""
        loss = self.loss(model, step)
        loss.backward()
        return loss.detach()

    def loss(self, model: Segmenter, step: int) -> Tensor:
        """Return the loss of one step's batch."""
        rows, pictures, masks, dropped, warp = self._ahead(step)
        cases, patient = np.unique(self.case_ids[rows], return_inverse=True)
        values, present = self.profiles.of(cases.tolist())
        present &= torch.from_numpy(~np.isin(cases, dropped))
        device = self.place.device
        inputs, labels = warp.apply(to_tensor(pictures, device), torch.from_numpy(masks).to(device))
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        with self.place.autocast():
            logits = model(
                inputs,
                values.to(device),
                torch.from_numpy(patient).to(device),
                present.to(device),
                self.options.gene_dropout,
            )
        count = self.options.batch_images
        logits, labels = self.ranks.gather(logits.float(), count), self.ranks.gather(labels, count)
        target, counted = (labels == 1).float(), labels != IGNORED
        if counted.all():
            return dice_cross_entropy(logits, target)
        # The loss of no pixel at all is 0, not the mean of nothing.
        return dice_cross_entropy(logits[counted], target[counted]) if counted.any() else 0 * logits.sum()

    def _draw(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Warp]:
        """Draw rows, decode and augment their images and masks, and draw the patients without a profile, and warps.

        All processes draw the same, and each returns its share.
        """
        options = self.options
        random = np.random.default_rng([options.replicate_seed, step])
        positives = round(options.positive_fraction * options.batch_images)
        counts = (positives, options.batch_images - positives)
        drawn = [self._draw_rows(pool, count, random) for pool, count in zip(self.pools, counts, strict=True)]
        rows = np.concatenate(drawn)
        augmentation = Augmentation.draw(len(rows), options, random)
        cases = np.unique(self.case_ids[rows])
        dropped = cases[random.random(len(cases)) < options.patient_dropout]
        warp = Warp.draw(len(rows), options, random)
        own = self.ranks.share(len(rows))
        images = self.images.load_stacks(rows[own], options.neighbours, self._pool)
        masks = self.images.load_masks(rows[own], self._pool)
        masks[self.images.load_ignore(rows[own], self._pool)] = IGNORED
        augmentation = augmentation.share(own)
        return rows[own], augmentation.apply(images), augmentation.move(masks), dropped, warp.share(own)

    @staticmethod
    def _draw_rows(pool: list[np.ndarray], count: int, random: np.random.Generator) -> np.ndarray:
        cases = random.integers(0, len(pool), count)
        return np.array([random.choice(pool[case]) for case in cases], dtype=np.int64)


def _read_profiles(
    options: FinetuneOptions,
    expression: Path | None,
    splits: Path,
    roles: dict[str, list[str]],
    source: Aligner | None,
    pretrained: Path | None,
) -> Profiles:
    """Read the profiles that the variant trains on, over the genes of the pre-trained model."""
    if options.genes == "none":
        return NO_PROFILES
    if expression is None:
        raise MissingInputError(f"training with {options.genes} genes needs an expression table, and none is given")
    profiles = read_profiles(expression, {case for cases in roles.values() for case in cases})
    if source is not None and pretrained is not None:
        checkpoint.check_unit(source.description, profiles.unit, pretrained)
        genes, names = source.description.genes, source.description.gene_names
        profiles = profiles.match(genes, names, source.gene_encoder.mean, options.max_missing_genes, pretrained)
    if options.genes == "site":
        return profiles.average_by_site(roles["train"], read_case_labels(splits, "site"))
    if options.genes in ("shuffled", "shuffled-within-site"):
        groups = list(roles.values())
        if options.genes == "shuffled-within-site":
            groups = profiles.group_by_site(groups, read_case_labels(splits, "site"))
        return profiles.shuffle(groups, options.replicate_seed, read_case_labels(splits, "stratum"))
    return profiles.randomise(roles["train"], options.seed) if options.genes == "noise" else profiles


def _read_labelled(options: FinetuneOptions, sources: Path, cases: list[str]) -> Images:
    """Read the images with a mask of some cases."""
    return read_images(sources, set(cases), True, options.images_per_source)


def _build_model(
    description: SegmenterDescription,
    profiles: Profiles,
    train: list[str],
    source: Aligner | None,
    pretrained: Path | None,
) -> Segmenter:
    """Build the segmenter with the encoders it starts from, their standardisation included."""
    options = description.options
    model = checkpoint.build_segmenter(description, options.image_encoder.weights and source is None)
    if options.backbone is not None:
        assert isinstance(model.path, ImageNetPath)  # a published network has no backbone
        model.path.load_published_weights()
    if source is not None and pretrained is not None:
        _copy_encoders(model, description, source, pretrained)
    elif model.gene_encoder is not None:
        values, present = profiles.of(train)
        if present.sum() < 2:
            raise CohortError(
                f"fold {description.fold} has {present.sum()} training patients with expression, and standardising the "
                "genes needs two or more: pair more cases, use fewer folds, or train without genes"
            )
        model.gene_encoder.fit_standardisation(values[present], options.sd_prior)
    return model


def _validate(model: Segmenter, val: Images, profiles: Profiles, place: Place) -> tuple[Score, dict[str, float]]:
    """Return what selects the step, and what is recorded.

    Steps are compared by the patient-mean Dice of the validation patients at the step's best decision; of equal ones
    the lower loss counts.
    """
    decisions = _decisions_on(val)
    dice, loss = score(model, val, profiles, decisions, place)
    best = float(dice.max())
    chosen = choose_decision(decisions, dice)
    measured = {f"val_{name}": getattr(chosen, name) for name in ("threshold", "min_component", "temperature")}
    return (best, -loss), {"val_loss": loss, "val_dice": best, **measured}


def _decisions_on(val: Images) -> tuple[Decision, ...]:
    """Return what the validation patients may choose from: series of slices have thresholds of their own."""
    return SERIES_DECISIONS if val.has_series else DECISIONS


def _decide(model: Segmenter, val: Images, profiles: Profiles, options: FinetuneOptions, place: Place) -> Decision:
    """Choose the decision on the validation patients, and leave the genes out where they are better off without.

    Only where patients without a profile were trained on, so that the model knows what to do without.
    """
    decisions = _decisions_on(val)
    dice, _ = score(model, val, profiles, decisions, place)
    if model.gene_encoder is None or not options.patient_dropout:
        return choose_decision(decisions, dice)
    model.uses_genes = False
    without, _ = score(model, val, profiles, decisions, place)
    model.uses_genes = bool(without.max() <= dice.max())
    if model.uses_genes:
        return choose_decision(decisions, dice)
    log.warning(
        "the Dice of the validation patients is %.3f with their genes and %.3f without: the model leaves the genes out",
        dice.max(), without.max(),
    )  # fmt: skip
    return choose_decision(decisions, without)._replace(uses_genes=False)


def _check_edges(description: SegmenterDescription) -> None:
    of_mgi = description.options.network == "mgi"
    halvings = checkpoint.count_halvings(description.options)
    if description.image_px % 2**halvings:
        raise CohortError(
            f"images of {description.image_px} px cannot be halved {halvings} times: use images of a multiple of "
            f"{2**halvings} px" + (", or fewer widths of the convolutional path" if of_mgi else "")
        )


def _read_decision(folder: Path) -> Decision:
    description = read_description(folder / checkpoint.DESCRIPTION)
    if not isinstance(description, SegmenterDescription):
        raise CheckpointError(f"{folder} holds pre-trained encoders, not the fine-tuned model of a fold")
    return description.decision


def _load_aligner(folder: Path) -> Aligner:
    source = checkpoint.load(folder)
    if not isinstance(source, Aligner):
        raise CheckpointError(f"{folder} holds a fine-tuned model, not pre-trained encoders")
    return source


def _take_encoders(options: FinetuneOptions, source: PretrainOptions) -> FinetuneOptions:
    """Return the options with the encoders of the pre-trained model, where they do not state their own."""
    stated = options.model_fields_set
    taken = {name: getattr(source, name) for name in ("gene_encoder", "image_encoder") if name not in stated}
    return options.model_copy(update=taken)


def _copy_encoders(model: Segmenter, description: SegmenterDescription, source: Aligner, folder: Path) -> None:
    """Copy the encoders of a pre-trained model that this segmenter has, the genes' standardisation included."""
    checkpoint.check_images(source.description, description, folder, "the training set")
    for name in ("gene_encoder", "image_encoder"):
        target, values = getattr(model, name), getattr(source, name).state_dict()
        if target is None:
            continue
        expected = {key: value.shape for key, value in target.state_dict().items()}
        differing = sorted(key for key in expected.keys() | values.keys() if key not in expected or key not in values
                           or expected[key] != values[key].shape)  # fmt: skip
        if differing:
            raise CheckpointError(f"the encoders in {folder} are of another shape: {first_few(differing)} differ")
        target.load_state_dict(values)


def _digest(folder: Path | None) -> str | None:
    """Content hash of pre-trained weights."""
    return None if folder is None else hashlib.sha256((folder / checkpoint.WEIGHTS).read_bytes()).hexdigest()
