"""The map of embeddings: every patient twice, joined and coloured."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from mgi.errors import CohortError, MissingInputError
from mgi.evaluate.retrieval import write_embeddings
from mgi.report.figures import BLUE, ORANGE
from mgi.report.map import draw_map

CASES = ["A", "B", "C"]


@pytest.fixture
def fold(tmp_path: Path) -> Path:
    """Three patients in a plane of five dimensions: their genes at twice the angle of their images."""
    angles = np.array([0.2, 0.9, 1.4])
    images, genes = np.zeros((2, 3, 5))
    images[:, 0], images[:, 1] = np.cos(angles), np.sin(angles)
    genes[:, 0], genes[:, 1] = np.cos(2 * angles), np.sin(2 * angles)
    frame = pd.DataFrame({"case_id": CASES, "source_id": CASES, "x": 0, "y": 0, "z": 0})
    path = tmp_path / "mgi" / "fold3" / "embeddings.parquet"
    write_embeddings(3, [frame], images, (CASES, images), (CASES, genes), path)
    return path


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.csv"
    path.write_text("case_id,grade\nA,II\nB,III\nC,II\nD,III\n")
    return path


def test_patients_are_joined_to_their_genes_and_coloured_by_their_label(fold, labels, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(plt, "close", lambda figure: seen.append(figure))
    draw_map([fold], labels, "grade", tmp_path / "map.png")
    axes = seen[0].axes[0]
    patients, genes = (points.get_offsets().data for points in axes.collections)
    lines = [np.column_stack(line.get_data()) for line in axes.lines]
    assert np.array_equal(np.stack(lines), np.stack([patients, genes], axis=1))
    # In a plane two components keep every distance.
    assert np.linalg.norm(patients[0] - genes[0]) == pytest.approx(2 * np.sin(0.1), rel=1e-4)
    assert [to_hex(colour).upper() for colour in axes.collections[0].get_facecolors()] == [BLUE, ORANGE, BLUE]
    assert axes.get_title() == "fold 3" and "(100%)" not in axes.get_xlabel()


def test_map_is_the_same_twice(fold, labels, tmp_path):
    for name in ("one.png", "two.png"):
        draw_map([fold, fold], labels, "grade", tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_rejects_a_fold_without_pairs_and_a_table_without_the_column(fold, labels, tmp_path):
    with pytest.raises(MissingInputError, match="lacks the column site"):
        draw_map([fold], labels, "site", tmp_path / "map.png")
    alone = pd.read_parquet(fold).query("kind != 'gene'")
    alone.to_parquet(fold)
    with pytest.raises(CohortError, match="too few patients with images and genes"):
        draw_map([fold], labels, "grade", tmp_path / "map.png")
