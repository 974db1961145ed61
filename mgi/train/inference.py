"""Segmentation of many images by one model, in batches, each patient's genes encoded with its images."""

import numpy as np
import torch

from mgi.model.segmenter import Segmenter
from mgi.train.data import Images, Profiles, to_tensor
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
