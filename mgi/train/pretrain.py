"""Contrastive pre-training of the gene encoder and the image encoder on a fold's paired training patients."""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mgi import __version__
from mgi.config import PretrainOptions
from mgi.console import log
from mgi.errors import CohortError
from mgi.model.alignment import Aligner, symmetric_info_nce
from mgi.model.image_encoder import ImageEncoder
from mgi.model.texture import measure_texture
from mgi.train import checkpoint
from mgi.train.batches import Ahead, Augmentation, to_tensor
from mgi.train.data import Images, read_case_labels, read_images, read_roles, spread
from mgi.train.description import AlignerDescription
from mgi.train.device import Place, prepare_torch
from mgi.train.distributed import Ranks, join_ranks
from mgi.train.gradients import backward_in_parts
from mgi.train.loop import Score, TrainingRun, parameter_groups
from mgi.train.profiles import Profiles, read_profiles
from mgi.train.resume import code_hash
from mgi.train.validation import BATCH, effective_rank, embed_genes, pool_bags, project_images, to_inputs

VAL_IMAGES_PER_PATIENT = 16
# A recall or loss over fewer patients is mostly chance.
MIN_VAL_PATIENTS = 10
TEXTURE_IMAGES = 1024


def pretrain(options: PretrainOptions, sources: Path, expression: Path, splits: Path, fold: str, output: Path) -> None:
    """Train an `Aligner` and write model.safetensors, config.json and metrics.csv to `output`.

    The validation patients choose the step; where fewer than ten of them are paired, the last step is kept. Processes
    started by torchrun share each batch, and the first of them writes.

    Raises
    ------
    CohortError
        If fewer than two training patients have both images and expression.
    TrainingError
        If the loss or its gradient is not finite.
    TrainingInterruptedError
        At SIGTERM, once the state is saved.
    """
    ranks, place = join_ranks(prepare_torch(options, options.device, genes=True))
    roles = read_roles(splits, fold)
    profiles = read_profiles(expression, {case for cases in roles.values() for case in cases})
    paired = {role: [case for case in cases if case in profiles.row] for role, cases in roles.items()}
    if len(paired["train"]) < 2:
        raise CohortError(
            f"fold {fold} has {len(paired['train'])} training patients with both images and expression; "
            "contrastive pre-training needs two or more: add paired cases or use fewer folds"
        )
    if options.genes == "shuffled":
        profiles = profiles.shuffle(list(paired.values()), options.seed, read_case_labels(splits, "stratum"))
    images = read_images(sources, set(paired["train"] + paired["val"]), images_per_source=options.images_per_source)
    description = AlignerDescription(
        mgi=__version__,
        code=code_hash(),
        options=options,
        fold=fold,
        image_px=images.image_px if images.features is None else None,
        features=images.features,
        mpp=images.mpp,
        stain=images.stain,
        genes=profiles.genes,
        gene_names=profiles.names,
        unit=profiles.unit,
    )
    model = checkpoint.build_aligner(description, options.image_encoder.weights)
    model.gene_encoder.fit_standardisation(profiles.of(paired["train"])[0], options.sd_prior)
    model = model.to(place.device)
    batches = PatientBatches(images, profiles, paired["train"], options, place, ranks)
    if isinstance(model.image_encoder, ImageEncoder) and model.image_encoder.texture_map is not None:
        model.image_encoder.fit_texture(batches.measure_texture())
    held_out, rows, _ = batches.select_held_out(paired["val"])
    log.info("pre-training on %d patients, %d images", len(batches.patients), len(images))
    if options.batch_patients > len(batches.patients):
        log.info("every batch holds all of them, fewer than the %d patients asked for", options.batch_patients)
    if 0 < len(held_out) < MIN_VAL_PATIENTS:
        log.warning(
            "fold %s has %d paired validation patients: fewer than %d are too few to choose a step by, so the last "
            "step is kept", fold, len(held_out), MIN_VAL_PATIENTS,
        )  # fmt: skip
    identity = {
        "configuration": description.model_dump(mode="json", exclude={"code", "mgi"}),
        "device or precision": f"{place.device.type} {place.dtype} {ranks.world}",
        "set of patients": paired,
        "set of images": images.digest(),
        "set of profiles": profiles.digest(paired["train"] + paired["val"]),
    }
    size = batches.patients_per_step * options.images_per_patient
    run = TrainingRun(model, options, identity, output, parameter_groups(model, options), size, ranks)
    run.optimiser.register_step_post_hook(lambda *_: model.limit_logit_scale())
    run.train(options.seed, partial(batches.backward, model), partial(_validate, model, batches, paired["val"]))
    _warn_of_no_learning(run.history, len(held_out), len(held_out) if options.bags else len(rows))
    if ranks.first:
        checkpoint.save(model, description, output)
    run.finish()


class PatientBatches:
    """Batches of patients, each with some of its images; a batch depends on seed and step alone.

    Attributes
    ----------
    patients : list of str
        Those that have an image.
    patients_per_step : int
        Patients in a batch of all processes.
    """

    def __init__(
        self,
        images: Images,
        profiles: Profiles,
        patients: list[str],
        options: PretrainOptions,
        place: Place,
        ranks: Ranks | None = None,
    ) -> None:
        self.images, self.profiles, self.options, self.place = images, profiles, options, place
        self.ranks = ranks or Ranks()
        rows = images.frame.groupby("case_id").indices
        self.rows = {case: np.sort(rows[case]) for case in rows}
        self.patients = [case for case in patients if case in self.rows]
        self.patients_per_step = min(options.batch_patients, len(self.patients))
        if self.patients_per_step < self.ranks.world:
            raise CohortError(
                f"a batch of {self.patients_per_step} patients cannot be shared by {self.ranks.world} processes: start "
                "fewer, or use larger batches"
            )
        self._pool = ThreadPoolExecutor(options.threads)
        self._ahead = Ahead(self._draw, options.steps)

    def backward(self, model: Aligner, step: int) -> Tensor:
        """Compute the gradient of one step's loss, through this process's share of the batch, and return the loss."""
        cases, pictures = self._ahead(step)
        count, each = self.patients_per_step, self.options.images_per_patient
        own = torch.arange(len(cases), device=self.place.device).repeat_interleave(each)
        per_patient = 1 if self.options.bags else each
        patient = torch.arange(count, device=self.place.device).repeat_interleave(per_patient)
        values, _ = self.profiles.of(cases)
        inputs = to_inputs(pictures, self.place.device)
        parts = self.options.micro_batch or len(inputs)

        def project_pictures(part: Tensor) -> Tensor:
            with self.place.autocast():
                return model.project_images(part)

        def embed_profiles(part: Tensor) -> Tensor:
            with self.place.autocast():
                return model.embed_genes(part, self.options.gene_dropout)

        def loss_of(images: Tensor, genes: Tensor) -> Tensor:
            # A patient is one process's, so bags are pooled before they are gathered.
            vectors, _ = model.contrast(images, own, len(cases))
            vectors, genes = self.ranks.gather(vectors, count, per_patient), self.ranks.gather(genes, count)
            return symmetric_info_nce(vectors, genes, patient, self.ranks.once(model.logit_scale).exp())

        groups = [
            [partial(project_pictures, part) for part in inputs.split(parts)],
            [partial(embed_profiles, part) for part in values.to(self.place.device).split(parts)],
        ]
        return backward_in_parts(groups, loss_of, self.place.device)

    def _draw(self, step: int) -> tuple[list[str], np.ndarray]:
        """Draw patients and some images of each: uint8 [patients * images_per_patient, height, width, 3].

        Features are float32 [patients * images_per_patient, width], and not augmented. All processes draw the same, and
        each returns its share.
        """
        options = self.options
        random = np.random.default_rng([options.seed, step])
        drawn = random.permutation(len(self.patients))[: self.patients_per_step]
        cases = [self.patients[index] for index in drawn]
        rows = np.concatenate([random.choice(self.rows[case], options.images_per_patient) for case in cases])
        augmentation = Augmentation.draw(len(rows), options, random)
        own = self.ranks.share(len(cases))
        part = slice(own.start * options.images_per_patient, own.stop * options.images_per_patient)
        loaded = self.images.load(rows[part], self._pool)
        return cases[own], loaded if self.images.features else augmentation.share(part).apply(loaded)

    def measure_texture(self) -> Tensor:
        """Return the texture statistics of evenly spread images of the patients, [images, STATISTICS] on the CPU."""
        rows = spread(np.concatenate([self.rows[case] for case in self.patients]), TEXTURE_IMAGES)
        return torch.cat([
            measure_texture(to_tensor(self.images.load(part, self._pool), torch.device("cpu")))
            for part in np.array_split(rows, -(-len(rows) // BATCH))
        ])  # fmt: skip

    def select_held_out(self, patients: list[str]) -> tuple[list[str], np.ndarray, Tensor]:
        """Return other patients that have images, evenly spread images of theirs, and which belongs to which."""
        cases = [case for case in patients if case in self.rows]
        chosen = [spread(self.rows[case], VAL_IMAGES_PER_PATIENT) for case in cases]
        counts = torch.tensor([len(rows) for rows in chosen], dtype=torch.int64)
        patient = torch.repeat_interleave(torch.arange(len(cases)), counts)
        return cases, np.concatenate([np.empty(0, np.int64), *chosen]), patient


@torch.inference_mode()
def _validate(model: Aligner, batches: PatientBatches, patients: list[str]) -> tuple[Score, dict[str, float]]:
    """Return what selects the step, the negated contrastive loss over held-out patients, and what is recorded.

    `val_recall` is how often an image finds its patient's genes first, `val_rank` the effective rank of the images'
    embeddings: it falls towards 1 where they collapse. Fewer than ten patients select nothing; with fewer than two
    there is nothing to contrast.
    """
    measured = {"temperature": (-model.logit_scale).exp().item()}
    cases, rows, patient = batches.select_held_out(patients)
    if len(cases) < 2:
        return None, measured
    projected = project_images(model, batches.images, rows, batches.place)
    images, owner = F.normalize(projected, dim=-1), patient
    contrasted = images
    genes = embed_genes(model, batches.profiles, cases, batches.place)
    if batches.options.bags:
        contrasted, owner = pool_bags(model, projected, patient, len(cases)), torch.arange(len(cases))
    loss = symmetric_info_nce(contrasted, genes, owner, model.logit_scale.exp().cpu()).item()
    nearest = (images @ genes.T).argmax(dim=1)
    recall = (nearest == patient).float().mean().item()
    measured |= {"val_loss": loss, "val_recall": recall, "val_rank": effective_rank(images)}
    return ((-loss,) if len(cases) >= MIN_VAL_PATIENTS else None), measured


def _warn_of_no_learning(history: list[dict[str, float]], patients: int, vectors: int) -> None:
    """Warn where no validation loss is below that of embeddings which know nothing."""
    uninformed = (math.log(max(patients, 1)) + math.log(max(vectors, 1))) / 2
    losses = [row["val_loss"] for row in history if "val_loss" in row]
    if losses and min(losses) >= uninformed:
        log.warning(
            "the validation loss of pre-training is %.3f at best and %.3f without any knowledge: these encoders have "
            "learnt nothing that holds for other patients", min(losses), uninformed,
        )  # fmt: skip
