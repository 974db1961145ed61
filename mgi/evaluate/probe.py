"""What frozen embeddings tell: linear probes of labels, beside permuted labels and an untrained encoder."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata

from mgi.config import ProbeOptions
from mgi.errors import CheckpointError, CohortError
from mgi.evaluate.statistics import resample_patients, round_estimate
from mgi.model.alignment import Aligner
from mgi.model.texture import measure_texture
from mgi.names import first_few
from mgi.tables import read_any_table, read_table, write_csv
from mgi.train import checkpoint
from mgi.train.batches import to_tensor
from mgi.train.data import Images, read_images, read_roles
from mgi.train.device import Place, prepare_torch
from mgi.train.profiles import Profiles, read_profiles
from mgi.train.validation import BATCH, embed_genes, pool_bags, project_images

SIDES = ("image", "gene")
SHOTS = (1, 5, 10)
PERMUTATIONS = 20
PENALTIES = 10.0 ** np.arange(-3, 2.5, 0.5)
# A column of numbers with more distinct values than this is a quantity; fewer, and other text, are classes.
MAX_CLASSES = 10
SITE = "site"


@dataclass
class Target:
    """A label of the patients.

    Attributes
    ----------
    name : str
    values : Series, index case_id
        Without the cases that have none: float64 for a quantity, text for classes.
    """

    name: str
    values: pd.Series

    @property
    def is_number(self) -> bool:
        """Whether it is a quantity."""
        return self.values.dtype.kind == "f"

    def encode(self, cases: list[str]) -> np.ndarray:
        """Return what is regressed: the quantity [cases, 1], or 1 and 0 for each class [cases, classes]."""
        values = self.values.loc[cases].to_numpy()
        return values[:, None] if self.is_number else (values[:, None] == self.classes).astype(np.float64)

    @property
    def classes(self) -> np.ndarray:
        """The classes in order."""
        return np.unique(self.values.to_numpy(dtype=str))


def probe(
    folders: list[Path],
    sources: Path,
    expression: Path,
    splits: Path,
    options: ProbeOptions,
    output: Path,
    device: str | None = None,
) -> None:
    """Probe the embeddings of a pre-training variant's folds and write the result as CSV.

    In each fold a ridge regression on the frozen embeddings of the training and validation patients predicts the label
    of the test patients; their predictions are pooled over the folds. Its penalty is that of the smallest leave-one-out
    error. The tissue-source site is probed too where the splits name several.

    Columns: encoder (`trained`, or `random`: the same network before training, standardised alike), side (`image`: a
    patient's images pooled; `gene`), target, metric (`r2` of a quantity, `auroc` of classes, averaged over them), shots
    (`all`, or the patients of each class that were fitted, drawn anew `options.resamples` times), value, low and high
    (bootstrap over patients; of shots the 2.5% and 97.5% of the draws), permuted (the mean for shuffled labels),
    n_patients.

    Raises
    ------
    CheckpointError
        If a folder holds no pre-trained model of a fold, or one for other genes or images.
    CohortError
        If the labels lack a column or every patient.
    """
    found: dict[tuple[str, str, str], list[tuple[np.ndarray, ...]]] = {}
    targets: dict[str, Target] = {}
    for folder in folders:
        model = checkpoint.load(folder)
        if not isinstance(model, Aligner) or model.description.fold == "all":
            raise CheckpointError(f"{folder} does not hold a pre-trained model of one fold")
        roles = read_roles(splits, model.description.fold)
        targets = targets or _read_targets(options, splits, {case for cases in roles.values() for case in cases})
        place = prepare_torch(model.description.options, device, genes=True)
        for encoder, side, cases, vectors in _embed_patients(model, folder, sources, expression, roles, options, place):
            fitted = np.isin(cases, roles["train"] + roles["val"])
            for target in targets.values():
                labelled = np.isin(cases, target.values.index)
                fit, test = labelled & fitted, labelled & ~fitted
                known = target.encode(cases[fit].tolist()), target.encode(cases[test].tolist())
                found.setdefault((encoder, side, target.name), []).append(
                    (vectors[fit], known[0], vectors[test], known[1])
                )
    rows = [
        {"encoder": encoder, "side": side, "target": name} | row
        for (encoder, side, name), folds in found.items()
        for row in _probe_target(folds, targets[name].is_number, options)
    ]
    write_csv(pd.DataFrame(rows), output, "%.6g")


def _read_targets(options: ProbeOptions, splits: Path, cases: set[str]) -> dict[str, Target]:
    """Read the labels of `cases`, and their sites where there are several."""
    targets = {}
    if options.labels is not None:
        frame = read_any_table(Path(options.labels), "table of labels", ["case_id", *options.columns], CohortError)
        frame = frame.dropna(subset=["case_id"]).drop_duplicates("case_id").set_index("case_id")
        frame = frame[frame.index.isin(cases)]
        if frame.empty:
            raise CohortError(
                f"{options.labels} has none of the {len(cases)} patients, such as {first_few(sorted(cases))}"
            )
        targets = {column: _read_target(column, frame[column].dropna()) for column in options.columns}
    site = read_table(splits, "table of splits", ["case_id", SITE]).to_pandas().dropna().drop_duplicates("case_id")
    site = site[site.case_id.isin(cases)]
    if site[SITE].nunique() > 1:
        targets.setdefault(SITE, Target(SITE, site.set_index("case_id")[SITE].astype(str)))
    return targets


def _read_target(name: str, values: pd.Series) -> Target:
    numbers = pd.to_numeric(values, errors="coerce")
    if numbers.notna().all() and numbers.nunique() > MAX_CLASSES:
        return Target(name, numbers.astype(np.float64))
    if values.nunique() < 2:
        raise CohortError(f"column '{name}' of the labels has {values.nunique()} distinct values; a probe needs two")
    return Target(name, values.astype(str))


def _embed_patients(
    model: Aligner,
    folder: Path,
    sources: Path,
    expression: Path,
    roles: dict[str, list[str]],
    options: ProbeOptions,
    place: Place,
) -> list[tuple[str, str, np.ndarray, np.ndarray]]:
    """Return encoder, side, cases and vectors [cases, dim] of a fold's paired patients, trained and untrained."""
    description = model.description
    profiles = read_profiles(expression, {case for cases in roles.values() for case in cases})
    checkpoint.check_unit(description, profiles.unit, folder)
    limit = description.options.max_missing_genes
    genes, means = (description.genes, description.gene_names), model.gene_encoder.mean
    profiles = profiles.match(*genes, means, limit, folder)
    images = read_images(sources, set(profiles.row), images_per_source=options.images_per_source)
    checkpoint.check_images(description, images.image_px, images.mpp, folder, sources)
    cases, patient = np.unique(images.frame.case_id.to_numpy(dtype=str), return_inverse=True)
    found = []
    for encoder in ("trained", "random"):
        if encoder == "random":
            model = _build_untrained(model, images, profiles, roles["train"], options.seed)
        model = model.eval().to(place.device)
        projected = project_images(model, images, np.arange(len(images)), place)
        bags = pool_bags(model, projected, torch.from_numpy(patient), len(cases))
        vectors = (bags, embed_genes(model, profiles, cases.tolist(), place))
        found += [(encoder, side, cases, one.double().numpy()) for side, one in zip(SIDES, vectors, strict=True)]
    return found


def _build_untrained(model: Aligner, images: Images, profiles: Profiles, train: list[str], seed: int) -> Aligner:
    """Return the network of a model before training: random weights, standardised on the training patients."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        untrained = checkpoint.build_aligner(model.description)
    values, present = profiles.of(train)
    untrained.gene_encoder.fit_standardisation(values[present], model.description.options.sd_prior)
    if model.description.options.image_encoder.texture:
        rows = np.flatnonzero(images.frame.case_id.isin(train))
        parts = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
        pictures = (to_tensor(images.load(part), torch.device("cpu")) for part in parts)
        untrained.image_encoder.fit_texture(torch.cat([measure_texture(part) for part in pictures]))
    return untrained


def _probe_target(
    folds: list[tuple[np.ndarray, ...]], is_number: bool, options: ProbeOptions
) -> list[dict[str, object]]:
    """Return the rows of one target: all patients of the folds fitted, and a few of each class."""
    random = np.random.default_rng(options.seed)
    metric, truth = "r2" if is_number else "auroc", np.concatenate([known for *_, known in folds])

    def measure_all(permuted: bool) -> np.ndarray:
        predicted = [
            fit_and_predict(x, y[random.permutation(len(y))] if permuted else y, test) for x, y, test, _ in folds
        ]
        return np.concatenate(predicted)

    scores = measure_all(permuted=False)
    drawn = [
        score(truth[rows], scores[rows], is_number)
        for rows in resample_patients(len(truth), options.bootstrap_samples, options.seed)
    ]
    estimate = round_estimate(score(truth, scores, is_number), np.array(drawn)[~np.isnan(drawn)], len(truth))
    permuted = np.nanmean([score(truth, measure_all(permuted=True), is_number) for _ in range(PERMUTATIONS)])
    rows: list[dict[str, object]] = [{
        "metric": metric, "shots": "all", "value": estimate["mean"], "low": estimate["low"], "high": estimate["high"],
        "permuted": float(permuted), "n_patients": len(truth),
    }]  # fmt: skip
    for shots in SHOTS if not is_number else ():
        if any((y.sum(axis=0) < shots).any() for _, y, *_ in folds):
            continue
        values = []
        for _ in range(options.resamples):
            chosen = [
                np.concatenate([random.choice(np.flatnonzero(column), shots, False) for column in y.T])
                for _, y, *_ in folds
            ]
            few = [fit_and_predict(x[rows], y[rows], test) for (x, y, test, _), rows in zip(folds, chosen, strict=True)]
            values.append(score(truth, np.concatenate(few), is_number))
        low, high = np.nanquantile(values, [0.025, 0.975])
        rows.append({
            "metric": metric, "shots": str(shots), "value": float(np.nanmean(values)), "low": float(low),
            "high": float(high), "permuted": None, "n_patients": len(truth),
        })  # fmt: skip
    return rows


def fit_and_predict(x: np.ndarray, y: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Regress y [n, targets] on standardised x [n, dim] by ridge, and predict for `test` [m, dim]: [m, targets].

    The penalty, for all targets, is that of the smallest leave-one-out error, in closed form.
    """
    mean, scale, middle = x.mean(axis=0), x.std(axis=0), y.mean(axis=0)
    scale = np.where(scale > 1e-9, scale, np.inf)
    left, strength, right = np.linalg.svd((x - mean) / scale, full_matrices=False)
    errors = []
    for penalty in PENALTIES:
        shrunk = strength**2 / (strength**2 + penalty * len(x))
        residual = y - middle - left @ (shrunk[:, None] * (left.T @ (y - middle)))
        leverage = (left**2 * shrunk).sum(axis=1) + 1 / len(x)
        errors.append(((residual / (1 - leverage).clip(1e-9)[:, None]) ** 2).sum())
    penalty = PENALTIES[int(np.argmin(errors))]
    weights = right.T @ ((strength / (strength**2 + penalty * len(x)))[:, None] * (left.T @ (y - middle)))
    return (test - mean) / scale @ weights + middle


def score(truth: np.ndarray, predicted: np.ndarray, is_number: bool) -> float:
    """Return R² of a quantity [n, 1], or the AUROC of classes [n, classes], each against the others, on average.

    NaN where it is not defined: without variance, or without a class that some patients have and others lack.
    """
    if is_number:
        variance = ((truth - truth.mean()) ** 2).sum()
        return float(1 - ((truth - predicted) ** 2).sum() / variance) if variance > 0 else float("nan")
    positive = truth.sum(axis=0)
    defined = (positive > 0) & (positive < len(truth))
    if not defined.any():
        return float("nan")
    ranks = rankdata(predicted[:, defined], axis=0)
    wins = (ranks * truth[:, defined]).sum(axis=0) - positive[defined] * (positive[defined] + 1) / 2
    return float((wins / (positive[defined] * (len(truth) - positive[defined]))).mean())
