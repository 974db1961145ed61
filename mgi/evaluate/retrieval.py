"""Retrieval across modalities: how often images find their own patient's genes, beside chance and a yardstick."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch

from mgi.config import EvaluateOptions
from mgi.errors import CheckpointError, CohortError, MissingInputError
from mgi.evaluate.exports import refuse_slices, write_anndata, write_slides
from mgi.evaluate.ranks import Ranking, measure, normalise, rank_queries
from mgi.model.alignment import Aligner
from mgi.names import quote
from mgi.prepare.profiles import require_anndata
from mgi.tables import read_table, write_csv, write_table
from mgi.train import checkpoint
from mgi.train.data import iterate_images, read_case_labels, read_roles
from mgi.train.device import prepare_torch
from mgi.train.profiles import read_profiles
from mgi.train.validation import embed_genes, pool_bags, project_images

SCHEMA = pa.schema(
    [("case_id", pa.string()), ("fold", pa.int32()), ("kind", pa.string()), ("vector", pa.list_(pa.float32()))]
)
DIRECTIONS = (("image", "gene"), ("patient", "gene"), ("gene", "image"), ("gene", "patient"))


def embed(
    folder: Path,
    sources: Path,
    expression: Path,
    splits: Path,
    fold: int,
    output: Path,
    device: str | None = None,
    h5: Path | None = None,
    h5ad: Path | None = None,
) -> None:
    """Embed the images and the genes of a fold's paired test patients in the space of a pre-trained model.

    The table is that of `write_embeddings`. `device` is `cpu`, `cuda`, or None for what this machine has. The images'
    embeddings are also written to the folder `h5`, a file per slide as `write_slides` says, and the table as AnnData.

    Raises
    ------
    ImageTableError
        If no paired test patient has an image, or `h5` is asked for slices of MRI.
    MissingPackageError
        If `h5ad` is asked for without the package anndata.
    CheckpointError
        If `folder` holds no pre-trained model, or one for genes in another choice or unit, or for other images.
    """
    if h5ad is not None:
        require_anndata()
    model = checkpoint.load(folder)
    if not isinstance(model, Aligner):
        raise CheckpointError(f"{folder} holds a fine-tuned model; embeddings come from a pre-trained one")
    tested = read_roles(splits, str(fold))["test"]
    profiles = read_profiles(expression, set(tested))
    description = model.description
    checkpoint.check_unit(description, profiles.unit, folder)
    profiles = profiles.match(
        description.genes,
        description.gene_names,
        model.gene_encoder.mean,
        description.options.max_missing_genes,
        folder,
    )
    place = prepare_torch(description.options, device, genes=True)
    model = model.to(place.device)
    cases = [case for case in tested if case in profiles.row]
    frames, vectors = [], []
    for images in iterate_images(sources, set(cases)):
        checkpoint.check_images_or_features(description, images, folder, sources)
        if h5 is not None:
            refuse_slices(images.frame)
        frames.append(images.frame)
        vectors.append(project_images(model, images, np.arange(len(images)), place))
    projected = torch.cat(vectors)
    seen, patient = np.unique(pd.concat(frames).case_id.to_numpy(dtype=str), return_inverse=True)
    bags = pool_bags(model, projected, torch.from_numpy(patient), len(seen)).numpy()
    genes = embed_genes(model, profiles, cases, place).numpy()
    write_embeddings(fold, frames, projected.numpy(), (seen.tolist(), bags), (cases, genes), output)
    if h5 is not None:
        write_slides(h5, pd.concat(frames), normalise(projected.numpy()), description.image_px)
    if h5ad is not None:
        write_anndata(read_table(output, "embeddings").to_pandas(), h5ad)


def write_embeddings(
    fold: int,
    frames: list[pd.DataFrame],
    images: np.ndarray,
    patients: tuple[list[str], np.ndarray],
    genes: tuple[list[str], np.ndarray],
    output: Path,
) -> None:
    """Write embeddings of a fold, scaled to unit length.

    One row per image, one per patient's images together and one per patient's genes: case_id, fold, kind (`image`,
    `patient` or `gene`), source_id, x, y, z (null but for images) and vector, a fixed-size list of float32.

    Parameters
    ----------
    fold : int
    frames : list of DataFrame
        case_id, source_id, x, y and z of the images.
    images : ndarray, [images, dim]
    patients, genes : tuple of list of str and ndarray
        Cases, and their vectors [cases, dim].
    output : Path
    """
    kinds = [
        pd.DataFrame({"case_id": cases, "kind": kind}) for kind, (cases, _) in (("patient", patients), ("gene", genes))
    ]
    frame = pd.concat([*(part.assign(kind="image") for part in frames), *kinds])
    stacked = normalise(np.concatenate([images, patients[1], genes[1]])).astype(np.float32)
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


def retrieval_table(
    embeddings: list[Path], output: Path, options: EvaluateOptions | None = None, splits: Path | None = None
) -> None:
    """Measure retrieval in the shared space of every fold and write it as CSV.

    Rows: for each variant its folds and `all`, four directions and each k of `RANKS`. Directions: `image-to-gene`, each
    image among the genes of the fold's patients; `patient-to-gene`, a patient's images together among them;
    `gene-to-image`, each patient's genes among the images; `gene-to-patient`, among the patients. Columns: variant,
    fold, gallery, direction and those of `measure`. `all` pools the queries of the folds, each in its own gallery. The
    gallery is `all` or, where the splits name sites, `site`: the entries of the query's own tissue-source site, of
    sites with two patients or more. Its chance is what knowing the site alone recalls.

    Parameters
    ----------
    embeddings
        .../{variant}/fold{k}/embeddings.parquet; each table is one space, and the folder above the fold's names the
        variant.
    output : Path
    options : EvaluateOptions or None
        Bootstrap samples and the seed of bootstrap and permutations.
    splits : Path or None
        splits.parquet, for the sites.

    Raises
    ------
    CohortError
        If no case has both images and genes.
    MissingInputError
        If a table is missing, lacks a column or holds no embeddings.
    """
    options, site = options or EvaluateOptions(), {} if splits is None else read_case_labels(splits, "site")
    found: dict[tuple[str, str], list[tuple[str, dict[str, list[Ranking]]]]] = {}
    for path in map(Path, embeddings):
        table = _read_embeddings(path)
        for fold, vectors in table.groupby("fold"):
            parts = {"all": [vectors], "site": [part for _, part in vectors.groupby(vectors.case_id.map(site))]}
            for gallery, tables in parts.items():
                rankings = _rank_directions(tables, least=2 if gallery == "site" else 1)
                if rankings:
                    found.setdefault((path.absolute().parts[-3], gallery), []).append((str(fold), rankings))
    if not found:
        raise CohortError(f"no case has both images and genes in {', '.join(map(str, embeddings))}")
    rows: list[dict[str, object]] = []
    for (variant, gallery), folds in found.items():
        groups = [(fold, [rankings]) for fold, rankings in folds]
        groups.append(("all", [rankings for _, rankings in folds]))
        for fold, every in groups:
            for direction in every[0]:
                pooled = [ranking for one in every for ranking in one[direction]]
                where = {"variant": variant, "fold": fold, "gallery": gallery, "direction": direction}
                rows += [{**where, **row} for row in measure(pooled, options.bootstrap_samples, options.seed)]
    write_csv(pd.DataFrame(rows), output, "%.6g")


def _read_embeddings(path: Path) -> pd.DataFrame:
    """Read a table of `write_embeddings`; raise `MissingInputError` where it is none."""
    table = read_table(path, "embeddings", list(SCHEMA.names)).select(SCHEMA.names)
    try:
        table = table.cast(SCHEMA).combine_chunks()
    except (pa.ArrowException, OverflowError) as error:
        raise MissingInputError(f"{path} holds no embeddings: {quote(str(error), 200)}") from error
    lengths = pc.unique(pc.list_value_length(table["vector"])).to_pylist()
    values = pc.list_flatten(table["vector"])
    wrong = None
    if empty := [name for name in table.column_names if table[name].null_count]:
        wrong = f"the column {empty[0]} lacks a value"
    elif len(table) and (len(lengths) > 1 or not lengths[0]):
        wrong = "its vectors differ in length or have none"
    elif values.null_count or not np.isfinite(values.to_numpy()).all():
        wrong = "a vector lacks a finite number"
    if wrong:
        raise MissingInputError(f"{path} holds no embeddings: {wrong}")
    return table.to_pandas()


def _rank_directions(tables: list[pd.DataFrame], least: int) -> dict[str, list[Ranking]]:
    """Rank the gallery of every direction in each table with `least` patients who have images and genes."""
    found: dict[str, list[Ranking]] = {}
    for table in tables:
        spaces = {kind: _read_vectors(table[table["kind"] == kind]) for kind in ("image", "patient", "gene")}
        if len(np.intersect1d(spaces["gene"][1], spaces["image"][1])) < least:
            continue
        for query, answer in DIRECTIONS:
            (queries, query_cases), (gallery, gallery_cases) = spaces[query], spaces[answer]
            ranking = rank_queries(queries, gallery, query_cases, gallery_cases)
            found.setdefault(f"{query}-to-{answer}", []).append(ranking)
    return found


def _read_vectors(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors [n, d] float32 and case identifiers [n]."""
    vectors = np.stack(rows["vector"].to_list()).astype(np.float32) if len(rows) else np.zeros((0, 1), np.float32)
    return vectors, rows["case_id"].to_numpy(dtype=str)
