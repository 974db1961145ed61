"""Where the right answer of a query stands among all: recall, median rank, hubness, and what chance would give."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import comb

import numpy as np

from mgi.evaluate.statistics import resample_patients, round_estimate

RANKS = (1, 5, 10)
HUBS = 2
PERMUTATIONS = 9999
# Similarities held at once: 128 MB.
MAX_SIMILARITIES = 2**25


@dataclass
class Ranking:
    """The queries of one fold and direction, and how its gallery answered them.

    Attributes
    ----------
    rank : int64 ndarray, [queries]
        Gallery entries of other cases that are at least as near as the nearest of the query's own case. A tie counts
        against the query, so a collapsed embedding recalls nothing.
    case : int64 ndarray, [queries]
        The query's case, as a number in 0..cases - 1.
    hits : int64 ndarray, [len(RANKS), cases, cases]
        Queries of each case that find another case within the first k, for each k of `RANKS`; the diagonal has those
        that find their own.
    answers : int64 ndarray, [cases]
        Queries whose nearest entry is of this case.
    entries : int64 ndarray, [cases]
        Gallery entries of each case.
    """

    rank: np.ndarray
    case: np.ndarray
    hits: np.ndarray
    answers: np.ndarray
    entries: np.ndarray


def rank_queries(
    queries: np.ndarray, gallery: np.ndarray, query_cases: np.ndarray, gallery_cases: np.ndarray
) -> Ranking:
    """Rank a gallery by cosine similarity to each query; a query whose case it lacks is left out.

    Parameters
    ----------
    queries, gallery : ndarray, [n, d] and [m, d]
        Vectors of any length: images and genes, or the other way round.
    query_cases, gallery_cases : ndarray of str, [n] and [m]
    """
    answered = np.isin(query_cases, gallery_cases)
    cases, own = np.unique(gallery_cases, return_inverse=True)
    order = np.argsort(own, kind="stable")
    case = np.searchsorted(cases, query_cases[answered])
    rank = np.empty(len(case), dtype=np.int64)
    hits = np.zeros((len(RANKS), len(cases), len(cases)), dtype=np.int64)
    answers = np.zeros(len(cases), dtype=np.int64)
    for part, ranks, nearest in _rank_cases(queries[answered], gallery[order], own[order]):
        rank[part] = ranks[np.arange(len(ranks)), case[part]]
        for index, k in enumerate(RANKS):
            np.add.at(hits[index], case[part], ranks < k)
        np.add.at(answers, nearest, 1)
    return Ranking(rank, case, hits, answers, np.bincount(own, minlength=len(cases)))


def _rank_cases(
    queries: np.ndarray, gallery: np.ndarray, own: np.ndarray
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Yield for some queries at a time the rank of every case [queries, cases] and the nearest case [queries].

    `gallery` is sorted by case, of which `own` [m] are the numbers.
    """
    queries, gallery = normalise(queries), normalise(gallery)
    starts = np.flatnonzero(np.diff(own, prepend=-1))
    at_once = max(1, MAX_SIMILARITIES // max(len(gallery), 1))
    for start in range(0, len(queries), at_once):
        part = slice(start, start + at_once)
        similarity = queries[part] @ gallery.T
        best = np.maximum.reduceat(similarity, starts, axis=1)  # [queries, cases]
        ties = np.add.reduceat(similarity == best[:, own], starts, axis=1)  # entries of the case itself among them
        ordered = np.sort(similarity, axis=1)
        as_near = np.stack([len(row) - np.searchsorted(row, low) for row, low in zip(ordered, best, strict=True)])
        yield part, as_near - ties, best.argmax(axis=1)


def measure(rankings: list[Ranking], samples: int, seed: int) -> list[dict[str, float | int | None]]:
    """Measure retrieval over the queries of all rankings, each in its own gallery, a row for each k of `RANKS`.

    Returns
    -------
    list of dict
        k; recall, with `low` and `high` of its bootstrap over the queries' patients; chance, the expected recall of a
        gallery in random order; p_value, the share of permutations of the patients of each gallery that recall as
        much; median_rank (1 is best), mrr (mean reciprocal rank), hubness (share of the queries that the two cases that
        answer most take), n_queries, and n_gallery, the mean gallery. Recall weighs queries alike.
    """
    rank = np.concatenate([ranking.rank for ranking in rankings])
    weights = np.array([len(ranking.rank) for ranking in rankings])
    hubs = sum(np.sort(ranking.answers)[-HUBS:].sum() for ranking in rankings)
    counts = np.concatenate([np.bincount(ranking.case, minlength=len(ranking.entries)) for ranking in rankings])
    drawn = resample_patients(int((counts > 0).sum()), samples, seed)
    common = {
        "median_rank": float(np.median(rank)) + 1,
        "mrr": float((1 / (rank + 1)).mean()),
        "hubness": float(hubs / weights.sum()),
        "n_queries": len(rank),
        "n_gallery": round(np.mean([ranking.entries.sum() for ranking in rankings])),
    }
    rows = []
    for index, k in enumerate(RANKS):
        hits = np.concatenate([ranking.hits[index].diagonal() for ranking in rankings])[counts > 0]
        recalls = hits[drawn].sum(axis=1) / counts[counts > 0][drawn].sum(axis=1)
        interval = round_estimate(hits.sum() / counts.sum(), recalls, len(hits))
        chance = np.average([compute_chance(ranking, k) for ranking in rankings], weights=weights)
        rows.append({
            "k": k, "recall": interval["mean"], "low": interval["low"], "high": interval["high"],
            "chance": float(chance), "p_value": _permute([ranking.hits[index] for ranking in rankings], seed), **common,
        })  # fmt: skip
    return rows


def compute_chance(ranking: Ranking, k: int) -> float:
    """Average over queries 1 - C(m - a, k) / C(m, k), the recall at random with a of m entries their own."""
    m = int(ranking.entries.sum())
    miss = np.array([comb(m - int(own), k) / comb(m, k) if k <= m else 0.0 for own in ranking.entries])
    return float(1 - miss[ranking.case].mean())


def _permute(hits: list[np.ndarray], seed: int) -> float:
    """Return the p-value of the hits on the diagonals of [cases, cases] among permutations of each one's columns."""
    random = np.random.default_rng(seed)
    permuted = np.zeros(PERMUTATIONS, dtype=np.int64)
    for matrix in hits:
        every = np.tile(np.arange(len(matrix)), (PERMUTATIONS, 1))
        permuted += matrix[np.arange(len(matrix)), random.permuted(every, axis=1)].sum(axis=1)
    observed = sum(int(matrix.diagonal().sum()) for matrix in hits)
    return float((1 + (permuted >= observed).sum()) / (1 + PERMUTATIONS))


def normalise(vectors: np.ndarray) -> np.ndarray:
    """Scale vectors [n, d] to unit length; a zero vector stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
