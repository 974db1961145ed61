"""Contrastive pre-training of the gene encoder and the image encoder on a fold's paired training patients."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mgi.config import PretrainOptions
from mgi.console import log
from mgi.errors import CohortError
from mgi.model.alignment import Aligner, symmetric_info_nce
from mgi.train import checkpoint
from mgi.train.data import Ahead, Images, Profiles, augment, read_images, read_profiles, read_roles, spread, to_tensor
from mgi.train.loop import TrainingRun, autocast, parameter_groups, prepare_torch
from mgi.train.validation import embed_genes, embed_images

VAL_IMAGES_PER_PATIENT = 16


def pretrain(options: PretrainOptions, sources: Path, expression: Path, splits: Path, fold: str, output: Path) -> None:
    """Train an `Aligner` and write model.safetensors, config.json and metrics.csv to `output`.

    The validation patients choose the step; where fewer than two of them are paired, the last step is kept.

    Raises
    ------
    CohortError
        If fewer than two training patients have both images and expression.
    TrainingError
        If the loss or its gradient is not finite.
    """
    device = prepare_torch(options.threads, options.device, options.seed, genes=True)
    roles = read_roles(splits, fold)
    profiles = read_profiles(expression, {case for cases in roles.values() for case in cases})
    paired = {role: [case for case in cases if case in profiles.row] for role, cases in roles.items()}
    if len(paired["train"]) < 2:
        raise CohortError(
            f"fold {fold} has {len(paired['train'])} training patients with both images and expression; "
            "contrastive pre-training needs two or more: lower split.folds or add paired cases"
        )
    images = read_images(sources, set(paired["train"] + paired["val"]), images_per_source=options.images_per_source)
    config = {
        "kind": "aligner",
        "options": options.model_dump(exclude={"base", "device"}),
        "fold": fold,
        "image_px": images.image_px,
        "mpp": images.mpp,
        "genes": profiles.genes,
        "unit": profiles.unit,
    }
    model = checkpoint.build_aligner(config, options.image_encoder.weights)
    model.gene_encoder.fit_standardisation(profiles.of(paired["train"])[0])
    model = model.to(device)
    batches = PatientBatches(images, profiles, paired["train"], options, device)
    log.info("pre-training on %d patients, %d images", len(paired["train"]), len(images))
    data = {"images": images.digest(), "profiles": profiles.digest(paired["train"] + paired["val"])}
    identity = {"config": config, "device": options.device, "patients": paired} | data
    run = TrainingRun(model, options, identity, output, parameter_groups(model, options))
    run.optimiser.register_step_post_hook(lambda *_: model.limit_logit_scale())
    validate = None
    if len(paired["val"]) > 1:
        validate = partial(_validate, model, batches, paired["val"], device)
    run.train(options.seed, partial(batches.loss, model), validate)
    checkpoint.save(model, config, output)
    run.finish()


class PatientBatches:
    """Batches of patients, each with some of its images; a batch depends on seed and step alone."""

    def __init__(
        self, images: Images, profiles: Profiles, patients: list[str], options: PretrainOptions, device: torch.device
    ) -> None:
        self.images, self.profiles, self.options, self.device = images, profiles, options, device
        rows = images.frame.groupby("case_id").indices
        self.rows = {case: np.sort(rows[case]) for case in rows}
        self.patients = [case for case in patients if case in self.rows]
        self._ahead = Ahead(self._draw, options.steps)

    def loss(self, model: Aligner, step: int) -> Tensor:
        """Give the loss of one step's batch."""
        cases, pictures = self._ahead(step)
        patient = torch.arange(len(cases), device=self.device).repeat_interleave(self.options.images_per_patient)
        values, _ = self.profiles.of(cases)
        inputs = to_tensor(pictures, self.device)
        with autocast(self.device):
            return model(inputs, values.to(self.device), patient, self.options.gene_dropout)

    def _draw(self, step: int) -> tuple[list[str], np.ndarray]:
        """Draw patients and so many images of each: uint8 [patients * images_per_patient, height, width, 3]."""
        options = self.options
        random = np.random.default_rng([options.seed, step])
        size = min(options.batch_patients, len(self.patients))
        cases = [self.patients[index] for index in random.permutation(len(self.patients))[:size]]
        rows = np.concatenate([random.choice(self.rows[case], options.images_per_patient) for case in cases])
        pictures, _ = augment(self.images.load(rows), None, options.augment, options.intensity_jitter, random)
        return cases, pictures

    def held_out(self, patients: list[str]) -> tuple[list[str], np.ndarray, Tensor]:
        """Give other patients that have images, evenly spread images of theirs, and which belongs to which."""
        cases = [case for case in patients if case in self.rows]
        chosen = [spread(self.rows[case], VAL_IMAGES_PER_PATIENT) for case in cases]
        patient = torch.repeat_interleave(torch.arange(len(cases)), torch.tensor([len(rows) for rows in chosen]))
        return cases, np.concatenate(chosen), patient


@torch.inference_mode()
def _validate(
    model: Aligner, batches: PatientBatches, patients: list[str], device: torch.device
) -> tuple[float, dict[str, float]]:
    """Give what selects the step, the negated contrastive loss over held-out patients, and what is recorded.

    `val_recall` is how often an image finds its patient's genes first.
    """
    cases, rows, patient = batches.held_out(patients)
    images = embed_images(model, batches.images, rows, device)
    genes = embed_genes(model, batches.profiles, cases, device)
    loss = symmetric_info_nce(images, genes, patient, model.logit_scale.exp().cpu()).item()
    nearest = (images @ genes.T).argmax(dim=1)
    return -loss, {"val_loss": loss, "val_recall": (nearest == patient).float().mean().item()}
