"""A trained model on many images: embedding and segmentation in batches, each patient's genes encoded once."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from mgi.codecs import encode_mask
from mgi.files import atomic_write
from mgi.model.alignment import Aligner
from mgi.model.segmenter import Segmenter
from mgi.tables import PREDICTIONS_SCHEMA
from mgi.train.batches import to_tensor
from mgi.train.data import Images
from mgi.train.decision import Decision, apply_each
from mgi.train.device import Place
from mgi.train.profiles import Profiles

BATCH = 32

Batches = Iterator[tuple[np.ndarray, np.ndarray]]


def to_inputs(loaded: np.ndarray, device: torch.device) -> Tensor:
    """Turn what `Images.load` returns into what an aligner reads.

    Returns
    -------
    Tensor, float32
        Pixels in 0..1 [batch, 3, height, width], or features [batch, width].
    """
    return torch.from_numpy(loaded).to(device) if loaded.ndim == 2 else to_tensor(loaded, device)


@torch.inference_mode()
def project_images(model: Aligner, images: Images, rows: np.ndarray, place: Place) -> Tensor:
    """Project some rows of `images`, a batch at a time, to float32 [rows, embed_dim] on the CPU.

    Scaled to unit length they are the images' embeddings; `pool_bags` makes a patient's embedding of them.
    """
    vectors = []
    for start in range(0, len(rows), BATCH):
        inputs = to_inputs(images.load(rows[start : start + BATCH]), place.device)
        with place.autocast():
            vectors.append(model.project_images(inputs).float().cpu())
    return torch.cat(vectors)


@torch.inference_mode()
def pool_bags(model: Aligner, vectors: Tensor, patient: Tensor, patients: int) -> Tensor:
    """Pool projected images to a unit vector for each patient, float32 [patients, embed_dim] on the CPU.

    Parameters
    ----------
    model : Aligner
    vectors : Tensor, [images, embed_dim]
    patient : Tensor, [images], int64
        The patient of each image; every patient has one.
    patients : int
    """
    device = model.logit_scale.device
    pooled = []
    for index in range(patients):
        # One by one: a weight for each image and patient would not fit for many slides.
        own = vectors[patient == index].to(device)
        pooled.append(model.pool_bags(own, torch.zeros(len(own), dtype=torch.int64, device=device), 1).cpu())
    return torch.cat(pooled)


@torch.inference_mode()
def embed_genes(model: Aligner, profiles: Profiles, cases: list[str], place: Place) -> Tensor:
    """Embed the profiles of `cases`, a batch at a time, as unit vectors float32 [cases, embed_dim] on the CPU."""
    vectors = []
    for start in range(0, len(cases), BATCH):
        values, _ = profiles.of(cases[start : start + BATCH])
        with place.autocast():
            vectors.append(model.embed_genes(values.to(place.device)).float().cpu())
    return torch.cat(vectors)


def effective_rank(vectors: Tensor) -> float:
    """Return the exponential of the entropy of the normalised singular values, from 1 to the rank of [rows, dim].

    Source: Garrido et al., "RankMe", 2023, arXiv 2210.02885.
    """
    values = torch.linalg.svdvals(vectors.double())
    share = values / values.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return torch.special.entr(share).sum().exp().item()


@torch.inference_mode()
def predict_probabilities(model: Segmenter, images: Images, profiles: Profiles, place: Place) -> Batches:
    """Segment images a batch at a time, patient by patient, each patient's genes encoded once.

    Yields
    ------
    rows : int ndarray, [batch]
        Rows of `images`, those of a series side by side and in the order of its slices.
    probability : float32 ndarray, [batch, height, width]
        Tumour probability of their pixels.
    """
    model.eval()
    case_ids, source_ids = (images.frame[name].to_numpy(dtype=str) for name in ("case_id", "source_id"))
    order = np.lexsort((images.frame.z.to_numpy(), source_ids, case_ids))
    tokens: dict[str, Tensor | None] = {}
    for start in range(0, len(images), BATCH):
        rows = order[start : start + BATCH]
        cases, patient = np.unique(case_ids[rows], return_inverse=True)
        values, present = profiles.of(cases.tolist())
        present &= model.uses_genes
        inputs = to_tensor(images.load_stacks(rows, model.neighbours), place.device).contiguous(
            memory_format=torch.channels_last
        )
        with place.autocast():
            # The patient of the last batch may go on in this one; those before it are done with.
            tokens = {
                case: tokens[case] if case in tokens else model.encode_genes(values[index, None].to(place.device))
                for index, case in enumerate(cases)
            }
            encoded = [token for token in tokens.values() if token is not None]
            genes = torch.cat(encoded) if encoded else None
            probability = model.predict(
                inputs, genes, torch.from_numpy(patient).to(place.device), present.to(place.device)
            )
        yield rows, probability.cpu().numpy()


def _join_series(images: Images, batches: Batches) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
    """Yield the batches of `predict_probabilities` with each series in one piece, and whether it is one."""
    source_ids = images.frame.source_id.to_numpy(dtype=str)
    slices = images.frame.groupby("source_id").z.agg(["nunique", "size"])
    sizes = slices["size"][slices["nunique"] > 1].to_dict()
    held: list[tuple[np.ndarray, np.ndarray]] = []
    for rows, probability in batches:
        names = source_ids[rows]
        for name in dict.fromkeys(names.tolist()):
            part = rows[names == name], probability[names == name]
            if name not in sizes:
                yield *part, False
                continue
            held.append(part)
            if sum(len(row) for row, _ in held) == sizes[name]:
                yield np.concatenate([row for row, _ in held]), np.concatenate([own for _, own in held]), True
                held = []


def score(
    model: Segmenter, images: Images, profiles: Profiles, decisions: tuple[Decision, ...], place: Place
) -> tuple[np.ndarray, float]:
    """Return the patient-mean Dice of each decision and the mean cross-entropy per pixel.

    A patient's Dice is taken over all its pixels; it is 1 where reference and prediction are both empty.
    """
    counts, cross_entropy = count_pixels(model, images, profiles, decisions, place)
    per_patient = pd.DataFrame(counts.reshape(-1, len(images)).T).groupby(images.frame.case_id.to_numpy()).sum()
    overlap, total = np.split(per_patient.to_numpy(), 2, axis=1)  # [patients, decisions] each
    dice = np.where(total > 0, 2 * overlap / np.maximum(total, 1), 1.0)
    return dice.mean(axis=0), cross_entropy


def count_pixels(
    model: Segmenter, images: Images, profiles: Profiles, decisions: tuple[Decision, ...], place: Place
) -> tuple[np.ndarray, float]:
    """Segment labelled images by each decision.

    Returns
    -------
    counts : int64 ndarray, [2, decisions, images]
        Pixels of both prediction and reference; pixels of the one plus those of the other.
    cross_entropy : float
        Mean over the images of the mean per pixel, nats.
    """
    counts = np.zeros((2, len(decisions), len(images)), dtype=np.int64)
    cross_entropy = 0.0
    for rows, probability, is_series in _join_series(images, predict_probabilities(model, images, profiles, place)):
        reference, counted = images.load_masks(rows).astype(bool), ~images.load_ignore(rows)
        clipped = probability.clip(1e-4, 1 - 1e-4)
        pixels = np.where(reference, np.log(clipped), np.log1p(-clipped))
        if counted.all():
            cross_entropy -= pixels.mean(axis=(1, 2)).sum()
        else:
            cross_entropy -= ((pixels * counted).sum(axis=(1, 2)) / np.maximum(counted.sum(axis=(1, 2)), 1)).sum()
        before = None
        for index, mask in enumerate(apply_each(decisions, probability, is_series)):
            if mask is not before:
                predicted = mask & counted
                overlap = (predicted & reference).sum(axis=(1, 2))
                total = predicted.sum(axis=(1, 2)) + reference.sum(axis=(1, 2))
            counts[:, index, rows] = overlap, total
            before = mask
    return counts, float(cross_entropy / len(images))


def write_predictions(
    model: Segmenter,
    parts: Iterable[Images],
    profiles: Profiles,
    fold: int,
    decision: Decision,
    place: Place,
    folder: Path,
) -> None:
    """Segment labelled images, part by part, and write predictions.parquet: place, fold, prediction and reference."""
    with atomic_write(folder / "predictions.parquet") as aside, pq.ParquetWriter(aside, PREDICTIONS_SCHEMA) as writer:
        for images in parts:
            masks: list[bytes] = [b""] * len(images)
            batches = predict_probabilities(model, images, profiles, place)
            for rows, probability, is_series in _join_series(images, batches):
                for row, mask in zip(rows, decision.apply(probability, is_series), strict=True):
                    masks[row] = encode_mask(mask)
            references = np.array(images.masks, dtype=object)
            frame = images.frame.assign(fold=fold, prediction=masks, reference=references)
            writer.write_table(pa.Table.from_pandas(frame, PREDICTIONS_SCHEMA, preserve_index=False))
