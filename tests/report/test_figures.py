"""The figures: that each is drawn from its tables, the same twice, and shows what it should."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mgi.codecs import encode_jpeg, encode_mask
from mgi.errors import ImageTableError, MissingInputError
from mgi.evaluate.comparison import compare
from mgi.evaluate.segmentation import summarise
from mgi.report import figures
from mgi.report.figures import draw_comparison, draw_flow, draw_losses, draw_overlays
from mgi.tables import image_table, write_sources, write_table

VARIANTS = ["image-only", "mgi"]
SHIFTS = {"image-only": 4, "mgi": 1}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven patients, each with a slide of 2 x 3 tiles of which one was not cut, in two folds and two variants."""
    folder = tmp_path_factory.mktemp("results")
    rng = np.random.default_rng(0)
    rows: dict[tuple[str, int], list[dict[str, object]]] = {(v, f): [] for v in VARIANTS for f in (0, 1)}
    sources = []
    for n in range(7):
        case, slide = f"TCGA-{n}", f"TCGA-{n}-DX1"
        sources.append({"source_id": slide, "case_id": case, "status": "ok", "labelled": True, "table": slide})
        left, width = rng.integers(8, 20), 20 + 3 * n
        with image_table(folder / "images" / f"{slide}.parquet") as add:
            for y, x in [(0, 0), (0, 32), (32, 0), (32, 32), (32, 64)]:
                place = {"x": 2 * x + 7, "y": 2 * y + 9, "z": 0, "size": 64, "mpp": 0.5}
                key = {"case_id": case, "source_id": slide} | {k: np.int32(v) for k, v in place.items() if k != "mpp"}
                add(
                    key | {"mpp": 0.5, "tissue_fraction": 1.0, "image": encode_jpeg(np.full((32, 32, 3), 90, np.uint8))}
                )
                for variant in VARIANTS:
                    reference, prediction = np.zeros((2, 64, 96), bool)
                    reference[20:50, left : left + width] = True
                    prediction[20:50, left + (n + 1) * SHIFTS[variant] : left + width] = True
                    part = np.s_[y : y + 32, x : x + 32]
                    masks = {"prediction": encode_mask(prediction[part]), "reference": encode_mask(reference[part])}
                    rows[variant, n % 2].append(key | {"mpp": np.float32(0.5), "fold": np.int32(n % 2)} | masks)
    write_sources(sources, folder / "sources.parquet")
    for (variant, fold), table in rows.items():
        write_table(pd.DataFrame(table), folder / "finetune" / variant / f"fold{fold}" / "predictions.parquet")
    for variant in VARIANTS:
        predictions = sorted((folder / "finetune" / variant).glob("fold*/predictions.parquet"))
        summarise(predictions, folder / "finetune" / variant / "summary.json", 100)
    compare(folder / "finetune", VARIANTS, folder / "evaluate", "mgi", 100)
    return folder


@pytest.fixture
def flow(tmp_path: Path) -> Path:
    steps = [
        ("found", 60, 0, None),
        ("usable", 58, 2, "no mpp"),
        ("usable", 55, 3, "not a slide"),
        ("paired", 55, 0, ""),
    ]
    pd.DataFrame(steps, columns=["step", "cases", "lost", "reason"]).to_csv(tmp_path / "flow.csv", index=False)
    return tmp_path / "flow.csv"


@pytest.fixture
def metrics(tmp_path: Path) -> list[Path]:
    paths = []
    for stage, variant, measure in (("finetune", "image-only", "val_dice"), ("pretrain", "mgi", "val_recall")):
        for fold in ("fold0", "all"):
            path = tmp_path / stage / variant / fold / "metrics.csv"
            path.parent.mkdir(parents=True)
            step = np.arange(1, 81)
            held_out = np.where(step % 20 == 0, 0.5, np.nan)
            columns = {"step": step, "loss": 1 / step, "val_loss": held_out, measure: held_out, "lr": 1e-3}
            pd.DataFrame(columns).to_csv(path, index=False)
            paths.append(path)
    return paths


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words of each figure at the moment it is written."""
    words: list[str] = []
    close = plt.close

    def read_and_close(figure: plt.Figure) -> None:
        words.extend(text.get_text() for text in figure.findobj(plt.Text) if text.get_text())
        close(figure)

    monkeypatch.setattr(figures.plt, "close", read_and_close)
    return words


def test_flow_shows_every_step_and_every_reason(flow: Path, tmp_path: Path, drawn: list[str]) -> None:
    draw_flow(flow, tmp_path / "flow.png")
    with Image.open(tmp_path / "flow.png") as drawing:
        assert drawing.size[0] > 500
    assert {"found", "usable", "paired", "60", "55"} <= set(drawn)
    assert any("2  no mpp\n\N{MINUS SIGN}3  not a slide" in words for words in drawn)


def test_losses_show_stages_variants_and_folds(metrics: list[Path], tmp_path: Path, drawn: list[str]) -> None:
    draw_losses(metrics, tmp_path / "losses.png")
    assert {"pretrain", "finetune", "image-only", "mgi", "fold 0", "all"} <= set(drawn)
    assert {"validation Dice", "validation recall@1", "validation loss"} <= set(drawn)


def test_linked_folder_keeps_its_own_name(metrics: list[Path], tmp_path: Path, drawn: list[str]) -> None:
    elsewhere = tmp_path / "elsewhere"
    metrics[0].parent.rename(elsewhere)
    metrics[0].parent.symlink_to(elsewhere)
    draw_losses(metrics, tmp_path / "losses.png")
    assert "elsewhere" not in drawn
    assert tmp_path.name not in drawn


def test_comparison_prints_the_numbers_of_the_table(results: Path, tmp_path: Path, drawn: list[str]) -> None:
    draw_comparison(results / "evaluate", tmp_path / "comparison.png")
    table = pd.read_csv(results / "evaluate" / "comparison.csv").set_index("variant")
    for mean, low, high in (
        table.loc["mgi", ["dice", "low", "high"]],
        table.loc["image-only", ["difference", "difference_low", "difference_high"]],
    ):
        assert f"{mean:.3f}  [{low:.3f}, {high:.3f}]" in drawn


def test_comparison_of_few_patients_has_means_without_intervals(
    results: Path, tmp_path: Path, drawn: list[str]
) -> None:
    table = pd.read_csv(results / "evaluate" / "comparison.csv").set_index("variant")
    mean = table.loc["mgi", "dice"]
    table[["low", "high", "difference_low", "difference_high", "p_value"]] = np.nan
    table.to_csv(tmp_path / "comparison.csv")
    (tmp_path / "per_patient.parquet").write_bytes((results / "evaluate" / "per_patient.parquet").read_bytes())
    draw_comparison(tmp_path, tmp_path / "comparison.png")
    assert f"{mean:.3f}" in drawn and not any("nan" in words for words in drawn)


def test_dollar_signs_in_names_are_no_formula(tmp_path: Path, drawn: list[str]) -> None:
    steps = [("$\\frac{1$", 60, 0, None), ("usable", 58, 2, "cost $2 and $\\undefined$")]
    pd.DataFrame(steps, columns=["step", "cases", "lost", "reason"]).to_csv(tmp_path / "flow.csv", index=False)
    draw_flow(tmp_path / "flow.csv", tmp_path / "flow.png")
    assert (tmp_path / "flow.png").exists() and "$\\frac{1$" in drawn


def test_overlays_are_of_the_best_median_and_worst_patient(results: Path, tmp_path: Path, drawn: list[str]) -> None:
    draw_overlays(results / "finetune" / "image-only", results / "sources.parquet", tmp_path / "overlays.png")
    scores = pd.read_parquet(results / "finetune" / "image-only" / "per_patient.parquet").set_index("case_id")["dice"]
    for name, case in (("best", scores.idxmax()), ("worst", scores.idxmin())):
        assert f"{name}: {case}, Dice {scores[case]:.3f}" in drawn
    middle = scores[scores == scores.median()].index[0]
    assert f"median: {middle}, Dice {scores[middle]:.3f}" in drawn


def test_mosaic_places_masks_by_their_tiles_and_leaves_the_rest_white(results: Path) -> None:
    rows = figures._plane_to_show(results / "finetune" / "mgi" / "fold0" / "predictions.parquet", "TCGA-2")
    image, masks = figures._mosaic(rows, results / "sources.parquet")
    assert image.shape == (64, 96, 3)
    assert (image[:32, 64:] == 255).all() and (image[32:] < 120).all()
    columns = np.flatnonzero(masks["reference"].any(axis=0))
    assert (masks["reference"].any(axis=1).nonzero()[0][[0, -1]] == [20, 49]).all()
    assert columns[-1] - columns[0] == 25


def test_large_mosaics_are_shrunk(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "MOSAIC_PX", 48)
    rows = figures._plane_to_show(results / "finetune" / "mgi" / "fold0" / "predictions.parquet", "TCGA-2")
    image, masks = figures._mosaic(rows, results / "sources.parquet")
    assert image.shape == (32, 48, 3) and masks["reference"].shape == (32, 48)


def test_plane_with_the_largest_reference_is_shown(tmp_path: Path) -> None:
    rows = []
    for z in (3, 4, 5):
        mask = np.zeros((16, 16), bool)
        mask[: {3: 2, 4: 9, 5: 4}[z]] = True
        place = {"case_id": "A", "source_id": "A-mri", "x": 0, "y": 0, "z": z, "size": 16}
        rows.append(place | {"prediction": encode_mask(~mask), "reference": encode_mask(mask)})
    write_table(pd.DataFrame(rows), tmp_path / "predictions.parquet")
    assert figures._plane_to_show(tmp_path / "predictions.parquet", "A")["z"].to_list() == [4]


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_figures_are_the_same_twice(results: Path, flow: Path, metrics: list[Path], tmp_path: Path, kind: str) -> None:
    for name in ("a", "b"):
        draw_flow(flow, tmp_path / name / f"flow.{kind}")
        draw_losses(metrics, tmp_path / name / f"losses.{kind}")
        draw_comparison(results / "evaluate", tmp_path / name / f"comparison.{kind}")
        draw_overlays(results / "finetune" / "mgi", results / "sources.parquet", tmp_path / name / f"overlays.{kind}")
    files = sorted((tmp_path / "a").iterdir())
    assert len(files) == 4
    for file in files:
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
        assert b"Matplotlib v" not in file.read_bytes() and b"dc:date" not in file.read_bytes()


def test_missing_and_foreign_inputs_are_errors(results: Path, tmp_path: Path, flow: Path) -> None:
    with pytest.raises(MissingInputError, match="cohort flow not found"):
        draw_flow(tmp_path / "none.csv", tmp_path / "flow.png")
    flow.write_text("a,b\n1,2\n")
    with pytest.raises(MissingInputError, match="lacks the column loss, step"):
        draw_losses([flow], tmp_path / "losses.png")
    with pytest.raises(MissingInputError, match=r"end its name in \.png or \.svg"):
        draw_comparison(results / "evaluate", tmp_path / "comparison.pdf")
    write_sources([], tmp_path / "sources.parquet")
    with pytest.raises(ImageTableError, match="no row of TCGA-"):
        draw_overlays(results / "finetune" / "mgi", tmp_path / "sources.parquet", tmp_path / "o.png")
    assert not list(tmp_path.glob("*.png"))
