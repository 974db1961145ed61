"""Whether masked-expression pre-training of the gene encoder on many patients helps what few patients are probed for.

A Mamba encoder, a token per gene, learns to tell genes that are set to their mean from the others (as BERT does words:
Devlin et al., 2019) on every patient of a table but those that have labels. Its pooled vectors of the labelled patients
are then probed by ridge regression in five folds, beside those of the same encoder before training, and the
standardised genes themselves.

    python benchmarks/masked_expression.py pancancer.parquet labels.csv --column grade --column methylation_cluster
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgi.evaluate.probe import fit_and_predict, score
from mgi.evaluate.statistics import resample_patients, round_estimate
from mgi.model.gene_encoder import GeneEncoder

DIM, DEPTH, STATE_DIM = 32, 2, 8
BATCH, LEARNING_RATE, MASKED = 32, 2e-3, 0.3
FOLDS, RESAMPLES = 5, 2000


def read_profiles(path: Path) -> pd.DataFrame:
    """Read cases by genes; columns that are not numbers, and genes with a missing value, are left out."""
    return pd.read_parquet(path).select_dtypes("number").dropna(axis=1).astype(np.float32)


def masked_error(encoder: GeneEncoder, head: nn.Module, values: Tensor, dropped: Tensor) -> Tensor:
    """Return the mean squared error of the masked genes, in standard deviations."""
    tokens, _ = encoder(torch.where(dropped, encoder.mean, values))
    return F.mse_loss(head(tokens).squeeze(-1)[dropped], standardise(encoder, values)[dropped])


def standardise(encoder: GeneEncoder, values: Tensor) -> Tensor:
    """Return profiles in the standard deviations of the training patients."""
    return (values - encoder.mean) / encoder.scale


def train(encoder: GeneEncoder, values: Tensor, held_out: Tensor, steps: int) -> None:
    """Train on `values` [cases, genes], and print the error on cases that it does not see."""
    head = nn.Linear(DIM, 1)
    optimiser = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
    random = torch.Generator().manual_seed(0)
    fixed = torch.rand(held_out.shape, generator=random) < MASKED
    for step in range(1, steps + 1):
        rows = torch.randint(0, len(values), (BATCH,), generator=random)
        loss = masked_error(encoder, head, values[rows], torch.rand(BATCH, values.shape[1], generator=random) < MASKED)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0 or step == steps:
            with torch.no_grad():
                error = masked_error(encoder, head, held_out, fixed).item()
            print(f"step {step}: error {loss.item():.3f}, on the labelled patients {error:.3f}", flush=True)


def probe(vectors: np.ndarray, labels: pd.Series) -> str:
    """Return the AUROC of a ridge probe over five folds, with its interval over patients."""
    known = labels.notna().to_numpy()
    x, y = vectors[known], pd.get_dummies(labels[known].astype(str)).to_numpy(float)
    fold = np.random.default_rng(0).permutation(len(x)) % FOLDS
    predicted = np.empty_like(y)
    for test in range(FOLDS):
        predicted[fold == test] = fit_and_predict(x[fold != test], y[fold != test], x[fold == test])
    drawn = np.array([score(y[rows], predicted[rows], "auroc") for rows in resample_patients(len(y), RESAMPLES, 0)])
    estimate = round_estimate(score(y, predicted, "auroc"), drawn[~np.isnan(drawn)], len(y))
    return f"{estimate['mean']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}] of {len(y)}"


def main() -> None:
    """Train, probe and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("expression", type=Path, help="Parquet, cases by genes, the case as its index")
    parser.add_argument("labels", type=Path, help="CSV with case_id and classes")
    parser.add_argument("--column", action="append", required=True, help="a class to probe; repeatable")
    parser.add_argument("--steps", type=int, default=600)
    chosen = parser.parse_args()
    profiles = read_profiles(chosen.expression)
    labels = pd.read_csv(chosen.labels, dtype=str).set_index("case_id")
    labels = labels.loc[labels.index.isin(profiles.index)]
    others = torch.from_numpy(profiles.loc[~profiles.index.isin(labels.index)].to_numpy(copy=True))
    own = torch.from_numpy(profiles.loc[labels.index].to_numpy(copy=True))
    print(f"{len(others)} patients to train on, {len(own)} with labels, {own.shape[1]} genes")

    torch.manual_seed(0)
    encoder = GeneEncoder(own.shape[1], DIM, DEPTH, state_dim=STATE_DIM)
    encoder.fit_standardisation(others)
    vectors = {"genes": standardise(encoder, own).numpy()}
    print(f"error of the mean: {standardise(encoder, others).square().mean():.3f}, on the labelled patients "
          f"{standardise(encoder, own).square().mean():.3f}")  # fmt: skip
    with torch.no_grad():
        vectors["untrained"] = encoder(own)[1].numpy()
    train(encoder, others, own, chosen.steps)
    with torch.no_grad():
        vectors["masked expression"] = encoder(own)[1].numpy()
    rows = {name: {column: probe(one, labels[column]) for column in chosen.column} for name, one in vectors.items()}
    print(pd.DataFrame(rows).T.to_string())


if __name__ == "__main__":
    main()
