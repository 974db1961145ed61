"""What frozen embeddings tell: linear probes of labels, beside permuted labels and an untrained encoder."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize
from scipy.stats import rankdata

from mgi.config import ProbeOptions
from mgi.console import log
from mgi.errors import CheckpointError, CohortError
from mgi.evaluate.statistics import resample_patients, round_estimate
from mgi.model.alignment import Aligner
from mgi.model.image_encoder import ImageEncoder
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
SURVIVAL = "survival"
COX_PENALTY = 0.1


@dataclass
class Target:
    """A label of the patients.

    Attributes
    ----------
    metric : {"r2", "auroc", "c_index"}
        How its prediction is measured: a quantity, classes or survival.
    values : DataFrame, float64, index case_id
        What is regressed, without the cases that have none: the quantity; 1 and 0 for each class; time and event.
    """

    metric: str
    values: pd.DataFrame


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
    patient's images pooled; `gene`), target, metric (`r2` of a quantity, `auroc` of classes, averaged over them,
    `c_index` of survival, by Cox regression), shots (`all`, or the patients of each class that were fitted, drawn anew
    `options.resamples` times), value, low and high (bootstrap over patients; of shots the 2.5% and 97.5% of the draws),
    permuted (the mean for shuffled labels), n_patients.

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
            for name, target in targets.items():
                labelled = np.isin(cases, target.values.index)
                fit, test = labelled & fitted, labelled & ~fitted
                known = (target.values.loc[cases[rows]].to_numpy() for rows in (fit, test))
                found.setdefault((encoder, side, name), []).append((vectors[fit], vectors[test], *known))
    rows = [
        {"encoder": encoder, "side": side, "target": name} | row
        for (encoder, side, name), folds in found.items()
        for row in _probe_target(folds, targets[name].metric, options)
    ]
    write_csv(pd.DataFrame(rows), output, "%.6g")


def _read_targets(options: ProbeOptions, splits: Path, cases: set[str]) -> dict[str, Target]:
    """Read the labels of `cases`, and their sites where there are several."""
    targets = {}
    if options.labels is not None:
        columns = [*options.columns, *options.survival]
        frame = read_any_table(Path(options.labels), "table of labels", ["case_id", *columns], CohortError)
        frame = frame.loc[frame["case_id"].isin(cases), ["case_id", *columns]].drop_duplicates().set_index("case_id")
        if frame.empty:
            raise CohortError(
                f"{options.labels} has none of the {len(cases)} patients, such as {first_few(sorted(cases))}"
            )
        if repeated := frame.index[frame.index.duplicated()].unique().tolist():
            raise CohortError(
                f"{options.labels} has rows of other labels for {len(repeated)} patients: {first_few(repeated)}; keep "
                "one each"
            )
        if lacking := sorted(cases - set(frame.index)):
            log.warning("%s lacks %d of %d patients: %s", options.labels, len(lacking), len(cases), first_few(lacking))
        targets = {column: _read_target(column, frame[column].dropna()) for column in options.columns}
        if options.survival:
            targets[SURVIVAL] = _read_survival(frame[options.survival].dropna())
    site = read_table(splits, "table of splits", ["case_id", SITE]).to_pandas().dropna().drop_duplicates("case_id")
    site = site[site.case_id.isin(cases)].set_index("case_id")[SITE]
    if site.nunique() > 1:
        targets.setdefault(SITE, Target("auroc", pd.get_dummies(site.astype(str), dtype=np.float64)))
    return targets


def _read_target(name: str, values: pd.Series) -> Target:
    numbers = pd.to_numeric(values, errors="coerce")
    if numbers.nunique() > MAX_CLASSES:
        if other := sorted(set(values[numbers.isna()])):
            raise CohortError(
                f"column '{name}' of the labels holds {first_few(other)} beside numbers; leave these cells empty"
            )
        return Target("r2", numbers.astype(np.float64).to_frame())
    if values.nunique() > max(MAX_CLASSES, len(values) / 2):
        raise CohortError(
            f"column '{name}' of the labels has {values.nunique()} distinct values for {len(values)} patients, such as "
            f"{first_few(values)}: they are no classes; write a quantity with a decimal point and no unit"
        )
    if values.nunique() < 2:
        raise CohortError(f"column '{name}' of the labels has {values.nunique()} distinct values; a probe needs two")
    return Target("auroc", pd.get_dummies(values.astype(str), dtype=np.float64))


def _read_survival(columns: pd.DataFrame) -> Target:
    numbers = columns.apply(pd.to_numeric, errors="coerce").astype(np.float64)
    time, event = numbers.columns
    wrong = numbers[numbers[time].isna() | ~numbers[event].isin([0, 1])]
    if len(wrong):
        raise CohortError(
            f"survival needs a number in '{time}' and 0 or 1 in '{event}'; of {first_few(wrong.index.tolist())} it has "
            "something else"
        )
    return Target("c_index", numbers)


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
    checkpoint.check_images_or_features(description, images, folder, sources)
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
    encoder = untrained.image_encoder
    if isinstance(encoder, ImageEncoder) and encoder.texture_map is not None:
        rows = np.flatnonzero(images.frame.case_id.isin(train))
        parts = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
        pictures = (to_tensor(images.load(part), torch.device("cpu")) for part in parts)
        encoder.fit_texture(torch.cat([measure_texture(part) for part in pictures]))
    return untrained


def _probe_target(folds: list[tuple[np.ndarray, ...]], metric: str, options: ProbeOptions) -> list[dict[str, object]]:
    """Return the rows of one target: all patients of the folds fitted, and a few of each class."""
    random = np.random.default_rng(options.seed)
    fit = fit_cox if metric == "c_index" else fit_and_predict
    truth = np.concatenate([known for *_, known in folds])

    def predict(chosen: list[np.ndarray], labelled_as: list[np.ndarray]) -> np.ndarray:
        parts = zip(folds, chosen, labelled_as, strict=True)
        return np.concatenate([fit(x[rows], y[given], test) for (x, test, y, _), rows, given in parts])

    every = [np.arange(len(x)) for x, *_ in folds]
    scores = predict(every, every)
    resamples = resample_patients(len(truth), options.bootstrap_samples, options.seed)
    drawn = np.array([score(truth[rows], scores[rows], metric) for rows in resamples])
    estimate = round_estimate(score(truth, scores, metric), drawn[~np.isnan(drawn)], len(truth))
    shuffled = [predict(every, [random.permutation(rows) for rows in every]) for _ in range(PERMUTATIONS)]
    permuted = float(np.nanmean([score(truth, one, metric) for one in shuffled]))
    rows: list[dict[str, object]] = [{
        "metric": metric, "shots": "all", "value": estimate["mean"], "low": estimate["low"], "high": estimate["high"],
        "permuted": permuted, "n_patients": len(truth),
    }]  # fmt: skip
    for shots in SHOTS if metric == "auroc" else ():
        if any((y.sum(axis=0) < shots).any() for _, _, y, _ in folds):
            continue
        values = []
        for _ in range(options.resamples):
            few = [
                np.concatenate([random.choice(np.flatnonzero(one), shots, False) for one in y.T])
                for _, _, y, _ in folds
            ]
            values.append(score(truth, predict(few, few), metric))
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


def fit_cox(x: np.ndarray, y: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Fit Cox's log hazards to time and event, y [n, 2], on standardised x [n, dim]; return those of test [m, 1].

    Breslow's partial likelihood (1974), averaged over the events, with a ridge penalty of 0.1.
    """
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale = np.where(scale > 1e-9, scale, np.inf)
    standardised, (time, event) = (x - mean) / scale, y.T
    at_risk = time[None, :] >= time[event == 1, None]  # [events, n]
    seen = standardised[event == 1]

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        hazard = standardised @ weights
        top = hazard.max(initial=0.0)
        share = at_risk * np.exp(hazard - top)  # [events, n]
        total = share.sum(axis=1, keepdims=True)
        value = (np.log(total[:, 0]) + top - seen @ weights).mean() + COX_PENALTY * weights @ weights / 2
        return float(value), ((share / total) @ standardised - seen).mean(axis=0) + COX_PENALTY * weights

    weights = minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B").x if len(seen) else np.zeros(x.shape[1])
    return ((test - mean) / scale @ weights)[:, None]


def score(truth: np.ndarray, predicted: np.ndarray, metric: str) -> float:
    """Return R² of a quantity [n, 1], the mean AUROC of classes [n, classes] or Harrell's C-index of survival [n, 2].

    NaN where it is not defined: without variance, without a class that some patients have and others lack, or without
    two patients of whom one is known to live longer.
    """
    if metric == "r2":
        variance = ((truth - truth.mean()) ** 2).sum()
        return float(1 - ((truth - predicted) ** 2).sum() / variance) if variance > 0 else float("nan")
    if metric == "c_index":
        (time, event), hazard = truth.T, predicted[:, 0]
        earlier = (time[:, None] < time[None, :]) & (event[:, None] == 1)
        order = np.sign(hazard[:, None] - hazard[None, :])[earlier]
        return float((order.mean() + 1) / 2) if len(order) else float("nan")
    positive = truth.sum(axis=0)
    defined = (positive > 0) & (positive < len(truth))
    if not defined.any():
        return float("nan")
    ranks = rankdata(predicted[:, defined], axis=0)
    wins = (ranks * truth[:, defined]).sum(axis=0) - positive[defined] * (positive[defined] + 1) / 2
    return float((wins / (positive[defined] * (len(truth) - positive[defined]))).mean())
