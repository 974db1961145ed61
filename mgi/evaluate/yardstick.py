"""The yardstick of an alignment: ridge regression of a few statistics of an image on components of the genes.

It has neither a ViT nor Mamba and is fitted in seconds. Pre-training that retrieves less has not earned its keep.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from mgi.errors import CohortError
from mgi.evaluate.ranks import rank_queries
from mgi.evaluate.retrieval import write_embeddings
from mgi.model.texture import measure_texture
from mgi.train.batches import to_tensor
from mgi.train.data import Images, iterate_images, read_roles, spread
from mgi.train.profiles import Profiles, read_profiles
from mgi.train.validation import BATCH

COMPONENTS = 10
# Of precomputed features: the principal components that are regressed on, and the patches of a slide that are fitted.
FEATURE_COMPONENTS = 64
FITTED_PATCHES = 256
MIN_PATIENTS = 2
MAX_Z = 5.0
PENALTIES = 10.0 ** np.arange(-3, 3.5, 0.5)


def embed_by_ridge(sources: Path, expression: Path, splits: Path, fold: int, output: Path) -> None:
    """Fit the yardstick on a fold's training patients and write its embeddings of the test patients.

    Image and patient vectors are the predicted components, gene vectors the patient's own: the first ten principal
    components of the standardised training profiles, each of unit variance. Precomputed features take the place of the
    statistics as their first 64 principal components. The table is that of `mgi embed`.

    Raises
    ------
    CohortError
        If fewer than two training patients have both images and expression.
    ImageTableError
        If no paired test patient has an image.
    """
    roles = read_roles(splits, str(fold))
    profiles = read_profiles(expression, {*roles["train"], *roles["test"]})
    train, test = ([case for case in roles[role] if case in profiles.row] for role in ("train", "test"))
    features, owners = [], []
    for images in iterate_images(sources, set(train)):
        every = np.arange(len(images))
        rows = spread(every, FITTED_PATCHES) if images.features else every
        features.append(measure_images(images, rows))
        owners.append(images.frame.case_id.to_numpy(dtype=str)[rows])
    owner = np.concatenate(owners)
    seen = [case for case in train if case in set(owner)]
    if len(seen) < MIN_PATIENTS:
        raise CohortError(
            f"fold {fold} has {len(seen)} training patients with images and expression; {MIN_PATIENTS} are needed"
        )
    components = fit_components(profiles, seen)
    targets = components(seen)
    standardise = fit_standardisation(np.concatenate(features))
    index = {case: number for number, case in enumerate(seen)}
    weights = fit_ridge(standardise(np.concatenate(features)), targets, np.array([index[case] for case in owner]))
    frames, predicted = [], []
    for images in iterate_images(sources, set(test)):
        frames.append(images.frame)
        predicted.append(standardise(measure_images(images, np.arange(len(images)))) @ weights)
    vectors = np.concatenate(predicted)
    tested = np.concatenate([frame.case_id.to_numpy(dtype=str) for frame in frames])
    cases, patient = np.unique(tested, return_inverse=True)
    sums = np.zeros((len(cases), vectors.shape[1]))
    np.add.at(sums, patient, vectors)
    write_embeddings(fold, frames, vectors, (cases.tolist(), sums), (test, components(test)), output)


def fit_components(profiles: Profiles, train: list[str]) -> Callable[[list[str]], np.ndarray]:
    """Return a function from cases to their whitened components [cases, components], fitted on those of `train`."""
    values = profiles.of(train)[0].numpy().astype(np.float64)
    mean, scale = values.mean(axis=0), values.std(axis=0)
    scale[scale <= 1e-6] = np.inf

    def standardise(values: np.ndarray) -> np.ndarray:
        return np.clip((values - mean) / scale, -MAX_Z, MAX_Z)

    _, strength, directions = np.linalg.svd(standardise(values), full_matrices=False)
    count = min(COMPONENTS, len(train) - 1, int((strength > 1e-9 * strength[0]).sum()))
    loadings = directions[:count].T * (len(train) ** 0.5 / strength[:count])
    return lambda cases: standardise(profiles.of(cases)[0].numpy().astype(np.float64)) @ loadings


def fit_ridge(x: np.ndarray, targets: np.ndarray, patient: np.ndarray) -> np.ndarray:
    """Fit the ridge regression of the patients' targets on images, every patient of the same weight.

    The penalty is that of the highest mean reciprocal rank with which images find their own patient's targets among
    all, each patient's images predicted by the regression on the others.

    Parameters
    ----------
    x : ndarray, [images, features], standardised
    targets : ndarray, [patients, components]
    patient : int ndarray, [images]

    Returns
    -------
    ndarray, [features, components]
    """
    parts = [x[patient == index] for index in range(len(targets))]
    squares = np.stack([part.T @ part / len(part) for part in parts])  # [patients, features, features]
    products = np.stack([np.outer(part.mean(axis=0), y) for part, y in zip(parts, targets, strict=True)])
    square, product, n = squares.sum(axis=0), products.sum(axis=0), len(parts)
    names = np.arange(n).astype(str)
    owners = np.repeat(names, [len(part) for part in parts])
    found = []
    for penalty in PENALTIES:
        ridge = penalty * n * np.eye(x.shape[1])
        left_out = np.linalg.solve(square - squares + ridge, product - products)  # [patients, features, components]
        predicted = np.concatenate([part @ weights for part, weights in zip(parts, left_out, strict=True)])
        found.append((1 / (rank_queries(predicted, targets, owners, names).rank + 1)).mean())
    return np.linalg.solve(square + PENALTIES[int(np.argmax(found))] * n * np.eye(x.shape[1]), product)


def fit_standardisation(x: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that standardises columns as those of x [images, columns], and turns many into components."""
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
    if x.shape[1] <= FEATURE_COMPONENTS:
        return lambda values: (values - mean) / scale
    standardised = (x - mean) / scale
    _, directions = np.linalg.eigh(standardised.T @ standardised)
    loadings = directions[:, ::-1][:, :FEATURE_COMPONENTS]
    return lambda values: (values - mean) / scale @ loadings


def measure_images(images: Images, rows: np.ndarray) -> np.ndarray:
    """Return the texture statistics of some images, or their precomputed features, float64 [rows, columns]."""
    if images.features:
        return images.load(rows).astype(np.float64)
    parts = [
        measure_texture(to_tensor(images.load(rows[start : start + BATCH]), torch.device("cpu")))
        for start in range(0, len(rows), BATCH)
    ]
    return torch.cat(parts).double().numpy()
