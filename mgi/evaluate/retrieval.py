"""Retrieval across modalities: how often an image finds its own patient's genes, beside chance."""

from math import comb
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from mgi.errors import CheckpointError, CohortError
from mgi.model.alignment import Aligner
from mgi.tables import read_table, write_csv, write_table
from mgi.train import checkpoint
from mgi.train.data import iterate_images, read_roles
from mgi.train.device import prepare_torch
from mgi.train.profiles import read_profiles
from mgi.train.validation import embed_genes, embed_images

COLUMNS = ["case_id", "fold", "kind", "vector"]
RANKS = (1, 5)
QUERIES_AT_ONCE = 4096


def embed(
    folder: Path,
    sources: Path,
    expression: Path,
    splits: Path,
    fold: int,
    output: Path,
    device: str | None = None,
) -> None:
    """Embed the images and the genes of a fold's paired test patients in the space of a pre-trained model.

    Writes one row per image and one per patient's genes: case_id, fold, kind (`image` or `gene`), source_id, x, y, z
    (null for genes) and vector, a fixed-size list of float32 of unit length. `device` is `cpu`, `cuda`, or None for
    what this machine has.

    Raises
    ------
    ImageTableError
        If no paired test patient has an image.
    CheckpointError
        If `folder` holds no pre-trained model, or one for genes in another choice or unit, or for other images.
    """
    model = checkpoint.load(folder)
    if not isinstance(model, Aligner):
        raise CheckpointError(f"{folder} holds a fine-tuned model; embeddings come from a pre-trained one")
    tested = read_roles(splits, str(fold))["test"]
    profiles = read_profiles(expression, set(tested))
    description = model.description
    checkpoint.check_unit(description, profiles.unit, folder)
    genes, names, means = description.genes, description.gene_names, model.gene_encoder.mean
    profiles = profiles.match(genes, names, means, description.options.max_missing_genes, folder)
    place = prepare_torch(description.options, device, genes=True)
    model = model.to(place.device)
    cases = [case for case in tested if case in profiles.row]
    frames, vectors = [], []
    for images in iterate_images(sources, set(cases)):
        checkpoint.check_images(description, images.image_px, images.mpp, folder, sources)
        frames.append(images.frame.assign(kind="image"))
        vectors.append(embed_images(model, images, np.arange(len(images)), place))
    vectors.append(embed_genes(model, profiles, cases, place))
    frame = pd.concat([*frames, pd.DataFrame({"case_id": cases, "kind": "gene"})])
    stacked = torch.cat(vectors).numpy()
    table = pa.table(
        {
            "case_id": pa.array(frame.case_id, pa.string()),
            "fold": pa.array([fold] * len(frame), pa.int32()),
            "kind": pa.array(frame.kind, pa.string()),
            "source_id": pa.array(frame.source_id, pa.string(), from_pandas=True),
            **{axis: pa.array(frame[axis], pa.int32(), from_pandas=True) for axis in "xyz"},
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(stacked.ravel()), stacked.shape[1]),
        }
    )
    write_table(table, output)


def rank_queries(
    queries: np.ndarray, gallery: np.ndarray, query_cases: np.ndarray, gallery_cases: np.ndarray
) -> np.ndarray:
    """Count the entries of other cases that are at least as near to each query as the nearest of its own case.

    Nearness is cosine similarity. Queries may be images and the gallery genes, or the other way round. A query whose
    case has no entry in the gallery is left out. A tie with another case counts against the query, so a collapsed
    embedding recalls nothing: recall at k is the share of ranks below k.

    Parameters
    ----------
    queries, gallery : ndarray, [n, d] and [m, d]
        Vectors of any length.
    query_cases, gallery_cases : ndarray of str, [n] and [m]

    Returns
    -------
    int64 ndarray, [queries with an answer]
    """
    answered = np.isin(query_cases, gallery_cases)
    _, codes = np.unique(np.concatenate([query_cases[answered], gallery_cases]), return_inverse=True)
    query_codes, gallery_codes = np.split(codes, [answered.sum()])
    queries, gallery = _normalise(np.asarray(queries)[answered]), _normalise(np.asarray(gallery))
    nearer = np.empty(len(queries), dtype=np.int64)
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        chunk = slice(start, start + QUERIES_AT_ONCE)
        similarity = queries[chunk] @ gallery.T
        own = query_codes[chunk, None] == gallery_codes[None, :]
        best = np.where(own, similarity, -np.inf).max(axis=1, keepdims=True)
        nearer[chunk] = ((similarity >= best) & ~own).sum(axis=1)
    return nearer


def retrieval_table(embeddings: list[Path], output: Path) -> None:
    """Measure retrieval in the shared space of every fold and write it as CSV.

    Rows: for each pre-training variant its folds and `all`, three directions, k of 1 and 5. Directions:
    `image-to-gene`, each image among the genes of the fold's patients; `patient-to-gene`, the mean of a patient's
    normalised image vectors among them; `gene-to-image`, each patient's genes among the images. Columns: variant,
    fold, direction, k, recall, chance (the expected recall of a random order of the gallery), n_queries, n_gallery.
    `all` pools the queries of the folds, each in its own fold's gallery; its n_gallery is the mean gallery, rounded.

    Parameters
    ----------
    embeddings
        .../{variant}/fold{k}/embeddings.parquet; each table is one space, and the folder above the fold's names the
        variant.

    Raises
    ------
    CohortError
        If no case has both images and genes.
    MissingInputError
        If a table is missing or lacks a column.
    """
    rows: list[dict[str, object]] = []
    for path in map(Path, embeddings):
        table = read_table(path, "embeddings", COLUMNS).to_pandas()
        for fold, vectors in table.groupby("fold"):
            rows += [{"variant": path.absolute().parts[-3]} | row for row in _fold_rows(int(fold), vectors)]
    if not rows:
        raise CohortError(f"no case has both images and genes in {', '.join(map(str, embeddings))}")
    table = pd.DataFrame(rows)
    groups = table.groupby(["variant", "direction", "k"], sort=False)
    pooled = pd.DataFrame([dict(zip(groups.keys, key, strict=True)) | _pool(group) for key, group in groups])
    write_csv(pd.concat([table, pooled]), output, "%.6g")


def _fold_rows(fold: int, table: pd.DataFrame) -> list[dict[str, object]]:
    images, genes = table[table["kind"] == "image"], table[table["kind"] == "gene"]
    image_vectors, image_cases = _vectors(images)
    gene_vectors, gene_cases = _vectors(genes)
    if not np.isin(gene_cases, image_cases).any():
        return []
    patients, member = np.unique(image_cases, return_inverse=True)
    means = np.zeros((len(patients), image_vectors.shape[1]), dtype=np.float32)
    np.add.at(means, member, image_vectors)
    directions = {
        "image-to-gene": (image_vectors, gene_vectors, image_cases, gene_cases),
        "patient-to-gene": (means, gene_vectors, patients, gene_cases),
        "gene-to-image": (gene_vectors, image_vectors, gene_cases, image_cases),
    }
    rows = []
    for direction, (queries, gallery, query_cases, gallery_cases) in directions.items():
        rank = rank_queries(queries, gallery, query_cases, gallery_cases)
        for k in RANKS:
            rows.append({
                "fold": fold, "direction": direction, "k": k, "recall": float((rank < k).mean()),
                "chance": _chance(query_cases, gallery_cases, k), "n_queries": len(rank), "n_gallery": len(gallery),
            })  # fmt: skip
    return rows


def _vectors(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return unit vectors [n, d] float32 and case identifiers [n]."""
    vectors = np.stack(rows["vector"].to_list()).astype(np.float32) if len(rows) else np.zeros((0, 1), np.float32)
    return _normalise(vectors), rows["case_id"].to_numpy(dtype=str)


def _normalise(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, np.finfo(np.float32).tiny)


def _chance(query_cases: np.ndarray, gallery_cases: np.ndarray, k: int) -> float:
    """Average over queries 1 - C(m - a, k) / C(m, k), the recall at random with a of m entries their own."""
    cases, own = np.unique(gallery_cases, return_counts=True)
    m, entries = len(gallery_cases), dict(zip(cases, own, strict=True))
    miss = {case: comb(m - int(a), k) / comb(m, k) if k <= m else 0.0 for case, a in entries.items()}
    answered, times = np.unique(query_cases[np.isin(query_cases, gallery_cases)], return_counts=True)
    return float(np.average([1 - miss[case] for case in answered], weights=times))


def _pool(folds: pd.DataFrame) -> dict[str, object]:
    recall, chance = np.average(folds[["recall", "chance"]], weights=folds["n_queries"], axis=0)
    return {
        "fold": "all",
        "recall": float(recall),
        "chance": float(chance),
        "n_queries": int(folds["n_queries"].sum()),
        "n_gallery": round(folds["n_gallery"].mean()),
    }
