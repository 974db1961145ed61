"""Retrieval recall against a plain loop, and chance against simulation."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mgi.errors import CohortError, MissingInputError
from mgi.evaluate.ranks import RANKS, Ranking, compute_chance, measure, rank_queries
from mgi.evaluate.retrieval import retrieval_table, write_embeddings
from mgi.tables import write_table


def shared_space(
    rng: np.random.Generator, patients: int = 12, images: int = 6, noise: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    genes = rng.normal(size=(patients, 16)).astype(np.float32)
    names = np.array([f"C{n:02d}" for n in range(patients)])
    owner = np.repeat(np.arange(patients), images)
    vectors = genes[owner] + noise * rng.normal(size=(len(owner), 16)).astype(np.float32)
    return vectors * rng.uniform(0.1, 9, (len(owner), 1)), genes, names[owner], names


def write_space(path: Path, fold: int, space: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]) -> Path:
    """Write images and genes, and for each patient the mean of its images' unit vectors."""
    images, genes, image_cases, gene_cases = space
    unit = images / np.linalg.norm(images, axis=1, keepdims=True)
    cases = sorted(set(image_cases))
    bags = np.stack([unit[image_cases == case].mean(0) for case in cases])
    frame = pd.DataFrame({"case_id": image_cases, "source_id": "S", "x": 0, "y": 0, "z": np.arange(len(images))})
    write_embeddings(fold, [frame], images, (cases, bags), (gene_cases.tolist(), genes), path)
    return path


def recall_at_k(*space, k=1) -> float:
    return float((rank_queries(*space).rank < k).mean())


def plain_recall(queries, gallery, query_cases, gallery_cases, k: int) -> float:
    hits = []
    for query, case in zip(queries, query_cases, strict=True):
        if case not in gallery_cases:
            continue
        cosine = [float(query @ item / np.linalg.norm(query) / np.linalg.norm(item)) for item in gallery]
        nearest = sorted(range(len(gallery)), key=lambda n: -cosine[n])[:k]
        hits.append(any(gallery_cases[n] == case for n in nearest))
    return float(np.mean(hits))


@pytest.mark.parametrize("k", [1, 3, 5])
def test_recall_equals_a_loop_in_both_directions(k: int) -> None:
    images, genes, image_cases, gene_cases = shared_space(np.random.default_rng(k))
    forward, back = (images, genes, image_cases, gene_cases), (genes, images, gene_cases, image_cases)
    for direction in (forward, back):
        recall = recall_at_k(*direction, k=k)
        assert 0 < recall == pytest.approx(plain_recall(*direction, k))


def test_perfect_embedding_recalls_all_and_a_collapsed_one_nothing() -> None:
    images, genes, image_cases, gene_cases = shared_space(np.random.default_rng(0), noise=0.0)
    assert recall_at_k(images, genes, image_cases, gene_cases) == 1
    assert recall_at_k(np.ones_like(images), np.ones_like(genes), image_cases, gene_cases) == 0


def test_queries_without_an_answer_are_left_out() -> None:
    images, genes, image_cases, gene_cases = shared_space(np.random.default_rng(0), noise=0.0)
    assert recall_at_k(images, genes[:5], image_cases, gene_cases[:5]) == 1
    assert len(rank_queries(images, genes, np.full(len(images), "nobody"), gene_cases).rank) == 0


def rank_labels(query_cases, gallery_cases) -> Ranking:
    rng = np.random.default_rng(0)
    queries, gallery = rng.normal(size=(len(query_cases), 4)), rng.normal(size=(len(gallery_cases), 4))
    return rank_queries(queries, gallery, query_cases, gallery_cases)


@pytest.mark.parametrize("k", [1, 5])
def test_chance_equals_the_recall_of_random_vectors(k: int) -> None:
    rng = np.random.default_rng(8)
    sizes = rng.integers(1, 9, 10)
    cases = np.array([f"C{n}" for n in range(10)])
    images = np.repeat(cases, sizes)
    simulated = np.mean(
        [
            recall_at_k(rng.normal(size=(10, 64)), rng.normal(size=(len(images), 64)), cases, images, k=k)
            for _ in range(400)
        ]
    )
    assert compute_chance(rank_labels(cases, images), k) == pytest.approx(simulated, abs=0.02)
    assert compute_chance(rank_labels(images, cases), k) == pytest.approx(k / 10)


def test_chance_weighs_patients_by_their_queries() -> None:
    cases = np.array(["A"] * 9 + ["B"])
    assert compute_chance(rank_labels(cases, cases), 1) == pytest.approx(0.9 * 0.9 + 0.1 * 0.1)
    assert compute_chance(rank_labels(np.array(["A", "B"]), cases), 20) == 1


def test_ranks_of_all_cases_equal_a_loop_also_with_ties() -> None:
    rng = np.random.default_rng(3)
    queries, gallery = np.eye(3)[rng.integers(0, 3, 30)], np.eye(3)[rng.integers(0, 3, 17)]
    names = np.array([f"C{n}" for n in range(6)])
    query_cases, gallery_cases = rng.permutation(np.resize(names, 30)), rng.permutation(np.resize(names, 17))
    ranking = rank_queries(queries, gallery, query_cases, gallery_cases)
    hits = np.zeros((len(RANKS), 6, 6), dtype=int)
    for query, case, rank in zip(queries, query_cases, ranking.rank, strict=True):
        cosine = gallery @ query
        for other, name in enumerate(names):
            best = cosine[gallery_cases == name].max()
            found = int(((cosine >= best) & (gallery_cases != name)).sum())
            hits[:, list(names).index(case), other] += found < np.array(RANKS)
            assert name != case or found == rank
    np.testing.assert_array_equal(ranking.hits, hits)


def test_ranks_do_not_depend_on_how_many_queries_are_ranked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    space = shared_space(np.random.default_rng(5))
    whole = rank_queries(*space)
    monkeypatch.setattr("mgi.evaluate.ranks.MAX_SIMILARITIES", 30)
    parts = rank_queries(*space)
    for name in ("rank", "case", "hits", "answers", "entries"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


def test_measures_of_a_worked_case() -> None:
    east, north, west = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.1]
    queries, gallery = np.array([east, east, north, east]), np.array([east, north, west])
    ranking = rank_queries(queries, gallery, np.array(["A", "B", "B", "C"]), np.array(["A", "B", "C"]))
    assert ranking.rank.tolist() == [0, 1, 0, 2] and ranking.answers.tolist() == [3, 1, 0]
    first = measure([ranking], 100, 0)[0]
    assert first["recall"] == 0.5 and first["median_rank"] == 1.5
    assert first["mrr"] == pytest.approx((1 + 1 / 2 + 1 + 1 / 3) / 4)
    assert first["hubness"] == 1 and first["chance"] == pytest.approx(1 / 3)
    assert (first["n_queries"], first["n_gallery"], first["low"]) == (4, 3, None), "no interval of three patients"


def test_p_value_is_the_share_of_permutations_that_recall_as_much() -> None:
    east, north, south = [1.0, 0.0], [0.0, 1.0], [0.0, -1.0]
    gallery, names = np.array([east, north, south]), np.array(["A", "B", "C"])
    # Of the six permutations one recalls all three, three recall one.
    assert measure([rank_queries(gallery, gallery, names, names)], 100, 0)[0]["p_value"] == pytest.approx(
        1 / 6, abs=0.02
    )
    one = rank_queries(gallery, np.array([east, south, north]), names, names)
    assert measure([one], 100, 0)[0]["p_value"] == pytest.approx(4 / 6, abs=0.02)
    images, genes, image_cases, gene_cases = shared_space(np.random.default_rng(6), noise=0.5)
    assert measure([rank_queries(images, genes, image_cases, gene_cases)], 100, 0)[0]["p_value"] == 1e-4
    collapsed = rank_queries(np.ones_like(images), np.ones_like(genes), image_cases, gene_cases)
    assert measure([collapsed], 100, 0)[0]["p_value"] == 1


def test_interval_resamples_patients_and_not_their_images() -> None:
    rng = np.random.default_rng(2)
    names = np.array([f"C{n:02d}" for n in range(12)])
    # Half of the patients are recalled by all of their images, the others by none.
    genes = np.eye(12)
    images = np.repeat(np.where(np.arange(12)[:, None] < 6, genes, genes[(np.arange(12) + 1) % 12]), 100, axis=0)
    first = measure([rank_queries(images, genes, np.repeat(names, 100), names)], 4000, 0)[0]
    drawn = rng.binomial(12, 0.5, 20_000) / 12
    assert first["recall"] == 0.5
    assert (first["low"], first["high"]) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.09)


def test_table_pools_folds_by_their_queries(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    spaces = [shared_space(rng, patients=6, images=4), shared_space(rng, patients=12, images=9, noise=3.0)]
    paths = [
        write_space(tmp_path / "mgi" / f"fold{fold}" / "embeddings.parquet", fold, space)
        for fold, space in enumerate(spaces)
    ]
    retrieval_table(paths, tmp_path / "retrieval.csv")
    table = pd.read_csv(tmp_path / "retrieval.csv").set_index(["fold", "direction", "k"])
    assert len(table) == 3 * 4 * 3 and set(table["variant"]) == {"mgi"}
    first, second, pooled = (table.loc[(fold, "image-to-gene", 1)] for fold in ("0", "1", "all"))
    assert (first["n_queries"], second["n_queries"], pooled["n_queries"]) == (24, 108, 132)
    assert (first["chance"], second["chance"]) == pytest.approx((1 / 6, 1 / 12), abs=1e-5)
    assert second["recall"] == pytest.approx(recall_at_k(*spaces[1]), abs=1e-5)
    assert pooled["recall"] == pytest.approx((24 * first["recall"] + 108 * second["recall"]) / 132, abs=1e-5)
    assert pooled["n_gallery"] == 9


def test_gallery_of_a_site_holds_its_own_patients(tmp_path: Path) -> None:
    images, genes, image_cases, gene_cases = shared_space(np.random.default_rng(4), patients=9, noise=2.0)
    sites = dict(zip(gene_cases, ["A"] * 4 + ["B"] * 3 + ["C", None], strict=True))
    pd.DataFrame({"case_id": list(sites), "site": list(sites.values())}).to_parquet(tmp_path / "splits.parquet")
    path = write_space(tmp_path / "mgi/fold0/e.parquet", 0, (images, genes, image_cases, gene_cases))
    retrieval_table([path], tmp_path / "retrieval.csv", splits=tmp_path / "splits.parquet")
    table = pd.read_csv(tmp_path / "retrieval.csv").query("fold == 'all' and k == 1 and direction == 'image-to-gene'")
    table = table.set_index("gallery")
    hits = []
    for site in "AB":
        own, members = ([sites[case] == site for case in cases] for cases in (image_cases, gene_cases))
        hits += (rank_queries(images[own], genes[members], image_cases[own], gene_cases[members]).rank < 1).tolist()
    assert table.loc["site", "recall"] == pytest.approx(np.mean(hits), abs=1e-5)
    assert table.loc["site", "n_queries"] == 42 and table.loc["all", "n_queries"] == 54
    assert table.loc["site", "chance"] == pytest.approx((4 * 0.25 + 3 / 3) / 7, abs=1e-5)


def test_variants_with_the_same_folds_keep_their_own_spaces(tmp_path: Path) -> None:
    spaces = {"good": shared_space(np.random.default_rng(1), noise=0.0), "poor": shared_space(np.random.default_rng(2))}
    spaces["poor"] = (-spaces["poor"][0], *spaces["poor"][1:])
    paths = [write_space(tmp_path / name / "fold0" / "e.parquet", 0, space) for name, space in spaces.items()]
    retrieval_table(paths, tmp_path / "retrieval.csv")
    table = pd.read_csv(tmp_path / "retrieval.csv").query("fold == 'all' and k == 1 and direction == 'image-to-gene'")
    recall = table.set_index("variant")["recall"]
    assert recall["good"] == 1 and recall["poor"] < 0.2


def test_linked_folder_keeps_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "elsewhere/run7").mkdir(parents=True)
    write_space(tmp_path / "elsewhere/run7/embeddings.parquet", 0, shared_space(np.random.default_rng(7)))
    (tmp_path / "pretrain/mgi").mkdir(parents=True)
    (tmp_path / "pretrain/mgi/fold0").symlink_to(tmp_path / "elsewhere/run7")
    retrieval_table([tmp_path / "pretrain/mgi/fold0/embeddings.parquet"], tmp_path / "retrieval.csv")
    assert set(pd.read_csv(tmp_path / "retrieval.csv").variant) == {"mgi"}


def test_mean_of_a_patients_images_beats_single_images(tmp_path: Path) -> None:
    path = write_space(tmp_path / "e.parquet", 0, shared_space(np.random.default_rng(1), 40, 20, noise=2.5))
    retrieval_table([path], tmp_path / "retrieval.csv")
    table = pd.read_csv(tmp_path / "retrieval.csv").query("fold == 'all' and k == 1").set_index("direction")["recall"]
    assert table["patient-to-gene"] > table["image-to-gene"] + 0.1
    assert table["gene-to-patient"] > table["image-to-gene"] + 0.1


def test_fold_without_a_pair_is_refused(tmp_path: Path) -> None:
    images, genes, image_cases, _ = shared_space(np.random.default_rng(0))
    others = np.array([f"other{n}" for n in range(len(genes))])
    path = write_space(tmp_path / "e.parquet", 0, (images, genes, image_cases, others))
    with pytest.raises(CohortError, match="no case has both"):
        retrieval_table([path], tmp_path / "retrieval.csv")


def test_foreign_table_is_refused_by_its_columns(tmp_path: Path) -> None:
    write_table(pd.DataFrame({"case_id": ["A"]}), tmp_path / "e.parquet")
    with pytest.raises(MissingInputError, match="lacks the column"):
        retrieval_table([tmp_path / "e.parquet"], tmp_path / "retrieval.csv")


def test_linked_fold_folder_keeps_the_variants_own_name(tmp_path: Path) -> None:
    space = shared_space(np.random.default_rng(0), 6, 2)
    write_space(tmp_path / "elsewhere" / "store" / "x" / "embeddings.parquet", 0, space)
    (tmp_path / "mgi").mkdir()
    (tmp_path / "mgi" / "fold0").symlink_to(tmp_path / "elsewhere" / "store" / "x")
    retrieval_table([tmp_path / "mgi" / "fold0" / "embeddings.parquet"], tmp_path / "retrieval.csv")
    assert set(pd.read_csv(tmp_path / "retrieval.csv")["variant"]) == {"mgi"}
