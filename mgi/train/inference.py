"""Segmentation of many images by one model, in batches, each patient's genes encoded with its images."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from mgi.files import write_table
from mgi.model.segmenter import Segmenter
from mgi.prepare.images import encode_mask
from mgi.train.data import PLACE, Images, Profiles, to_tensor
from mgi.train.loop import autocast

BATCH = 32


@torch.inference_mode()
def predict_probabilities(model: Segmenter, images: Images, profiles: Profiles, device: torch.device) -> np.ndarray:
    """Give the tumour probability of every pixel as float16 [images, height, width], in the order of `images`."""
    model.eval()
    results = []
    for start in range(0, len(images), BATCH):
        rows = np.arange(start, min(start + BATCH, len(images)))
        cases, patient = np.unique(images.frame.case_id.to_numpy(dtype=str)[rows], return_inverse=True)
        values, present = profiles.of(cases.tolist())
        batch = (values.to(device), torch.from_numpy(patient).to(device), present.to(device))
        with autocast(device):
            logits = model(to_tensor(images.load(rows), device), *batch)
        results.append(logits.float().sigmoid().half().cpu().numpy())
    return np.concatenate(results)


def patient_dice(predicted: np.ndarray, reference: np.ndarray, cases: np.ndarray) -> dict[str, float]:
    """Give each patient's Dice over all its pixels; 1 where reference and prediction are both empty.

    Parameters
    ----------
    predicted, reference : ndarray of bool or 0/1, [images, height, width]
    cases : ndarray of str, [images]
    """
    names, index = np.unique(cases.astype(str), return_inverse=True)
    overlap, total = (
        np.bincount(index, weights=pixels.reshape(len(cases), -1).sum(axis=1, dtype=np.int64))
        for pixels in (predicted.astype(bool) & reference.astype(bool), predicted.astype(np.uint8) + reference)
    )
    dice = np.where(total > 0, 2 * overlap / np.maximum(total, 1), 1.0)
    return dict(zip(names.tolist(), dice.tolist(), strict=True))


def write_predictions(
    model: Segmenter,
    images: Images,
    profiles: Profiles,
    fold: int,
    threshold: float,
    device: torch.device,
    folder: Path,
) -> None:
    """Segment labelled images and write predictions.parquet: place, fold, predicted and reference mask as PNG."""
    predicted = predict_probabilities(model, images, profiles, device) >= threshold
    table = pa.Table.from_pandas(images.frame[PLACE], preserve_index=False).replace_schema_metadata(None)
    columns = {
        "fold": pa.array([fold] * len(images), pa.int32()),
        "prediction": pa.array([encode_mask(mask) for mask in predicted], pa.binary()),
        "reference": pa.array(images.masks, pa.binary()),
    }
    for name, column in columns.items():
        table = table.append_column(name, column)
    write_table(table, folder / "predictions.parquet", row_group_size=256)
