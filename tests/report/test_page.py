"""The report page: the answer in words, every table, nothing from outside and no live markup."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mgi.errors import MissingInputError
from mgi.report import page
from mgi.report.page import write_page

EVIL = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'


class Reader(HTMLParser):
    """Collect tags, attributes and the text of a page, and check that tags are balanced."""

    VOID = frozenset(("meta", "img", "br"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def write_results(folder: Path, variants: dict[str, float] | None = None, n: int = 48) -> Path:
    variants = variants or {"image-only": 0.6, "mgi": 0.9, "shuffled": 0.58}
    reference = list(variants)[1]
    rows = []
    for variant, dice in variants.items():
        gain = variants[reference] - dice
        row = {"variant": variant, "n_patients": n, "dice": dice, "low": dice - 0.02, "high": dice + 0.02}
        row |= {"difference": gain, "difference_low": gain - 0.05, "difference_high": gain + 0.05, "p_value": 0.0002}
        row |= {"p_holm": 0.041, "primary": variant == next(iter(variants)), "detectable": 0.031, "n_paired": n}
        if variant == reference:
            empty = ("difference", "difference_low", "difference_high", "p_value", "p_holm", "detectable")
            row |= dict.fromkeys(empty, np.nan)
        rows.append(row)
        summary = {name: {"mean": dice, "low": None, "high": None, "n": n} for name in ("dice", "iou")}
        summary["hd95"] = {"mean": 41.25, "n": n, "unit": "microns", "missed_planes": 3, "tumour_planes": 60}
        summary["lesion_recall"] = {"mean": None, "n": 0}
        path = folder / "finetune" / variant / "summary.json"
        if "/" not in variant:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(summary | {"untiled_tumour_share": 0.024}))
    (folder / "evaluate").mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(folder / "evaluate" / "comparison.csv", index=False)
    return folder


def read_page(folder: Path) -> tuple[Reader, str]:
    write_page(folder, folder / "report" / "index.html")
    reader = Reader((folder / "report" / "index.html").read_text())
    return reader, " ".join(" ".join(reader.words).split())


def test_page_opens_with_the_answer(tmp_path: Path) -> None:
    _, words = read_page(write_results(tmp_path / "brca"))
    answer = "mgi reaches a mean Dice of 0.900 [0.880, 0.920] over 48 patients that it was not trained on."
    assert f"{answer} That is 0.300 higher than image-only [+0.250, +0.350]." in words
    assert words.index("brca") < words.index(answer) < words.index("Segmentation")
    assert "2.4% of the tumour in no tile" in words and "HD95, microns 41.2" in words
    assert "<0.001 0.031" in words and "0.041 0.031" in words
    assert "nothing was predicted: 3 of 60 by image-only" in words
    assert "lesions found" not in words and "nan" not in words.lower()


def test_page_claims_no_more_than_the_interval(tmp_path: Path) -> None:
    _, words = read_page(write_results(tmp_path, {"image-only": 0.88, "mgi": 0.9}))
    assert "That is not distinguishable from image-only: the difference is +0.020 [-0.030, +0.070]." in words
    _, words = read_page(write_results(tmp_path, {"image-only": 0.99, "mgi": 0.9}))
    assert "That is 0.090 lower than image-only [-0.140, -0.040]." in words


def test_page_of_repetitions_alone_states_no_contrast(tmp_path: Path) -> None:
    folder = write_results(tmp_path, {"mgi-seed-1": 0.8, "mgi": 0.9})
    path = folder / "evaluate" / "comparison.csv"
    pd.read_csv(path).assign(primary=False).to_csv(path, index=False)
    said = read_page(folder)[1]
    assert "mgi reaches a mean Dice of 0.900" in said and "than mgi-seed-1" not in said


def test_page_of_few_patients_has_no_interval(tmp_path: Path) -> None:
    folder = write_results(tmp_path, n=5)
    path = folder / "evaluate" / "comparison.csv"
    table = pd.read_csv(path)
    table[["low", "high", "difference_low", "difference_high", "p_value", "p_holm", "detectable"]] = np.nan
    table.to_csv(path, index=False)
    _, words = read_page(folder)
    assert "The difference from image-only is +0.300, of too few patients to tell it from chance." in words
    assert "nan" not in words.lower() and "Fewer than 6 patients" in words


def test_names_are_text_and_no_markup(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "<b>cohort", {EVIL: 0.6, "mgi": 0.9})
    flow = {"step": [EVIL], "cases": [3], "lost": [1], "reason": [EVIL]}
    pd.DataFrame(flow).to_csv(folder / "cohort_flow.csv", index=False)
    reader, words = read_page(folder)
    assert not {"script", "b"} & set(reader.tags) - {"b"} and "img" not in reader.tags
    assert not any(name.startswith("on") for name, _ in reader.attributes)
    assert words.count("<script>alert(1)</script>") >= 3 and "<b>cohort" in words


def test_page_is_self_contained_and_the_same_every_time(tmp_path: Path) -> None:
    folder = write_results(tmp_path)
    (folder / "report").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (700, 700, 3), dtype=np.uint8)
    for name in page.FIGURES:
        pixels = noise if name == "overlays" else noise[:10, :10]
        Image.fromarray(pixels).save(folder / "report" / f"{name}.png")
    pd.DataFrame({"step": ["with masks"], "cases": [6], "lost": [2], "reason": ["cut"]}).to_csv(
        folder / "cohort_flow.csv", index=False
    )
    reader, _ = read_page(folder)
    text = (folder / "report" / "index.html").read_text()
    sources = [value for name, value in reader.attributes if name in ("src", "href")]
    assert [source.split(";")[0] for source in sources] == [
        "data:image/png", "data:image/jpeg", "data:image/png", "data:image/png", "data:image/png"
    ]  # fmt: skip
    assert not re.search(r"https?://|url\(|@import", text)
    assert any("default-src 'none'" in (value or "") for _, value in reader.attributes)
    write_page(folder, folder / "again.html")
    assert (folder / "again.html").read_text() == text


def test_page_shows_retrieval_and_lost_cases(tmp_path: Path) -> None:
    folder = write_results(tmp_path)
    rows = [("0", 1, 0.2), ("all", 1, 0.25), ("all", 5, 0.7)]
    table = pd.DataFrame(rows, columns=["fold", "k", "recall"])
    table = table.assign(variant="mgi", direction="image-to-gene", chance=0.05, n_queries=9000, n_gallery=24)
    table = table.assign(gallery="all", low=0.1, high=0.4, p_value=0.012, median_rank=3.5, mrr=0.4, hubness=0.25)
    table.to_csv(folder / "evaluate" / "retrieval.csv", index=False)
    flow = {"step": ["found", "with masks"], "cases": [8, 6], "lost": [0, 2], "reason": ["", "cut"]}
    pd.DataFrame(flow).to_csv(folder / "cohort_flow.csv", index=False)
    _, words = read_page(folder)
    assert "mgi image-to-gene 0.250 [0.100, 0.400] 0.050 0.012 3.5 0.25 9,000 24" in words
    assert "with masks 6 2 cut" in words


def test_page_of_pretraining_alone_opens_with_its_retrieval(tmp_path: Path) -> None:
    (tmp_path / "evaluate").mkdir()
    rows = [
        ("mgi", "image-to-gene", 0.2),
        ("mgi", "patient-to-gene", 0.25),
        ("ridge-yardstick", "patient-to-gene", 0.1),
    ]
    table = pd.DataFrame(rows, columns=["variant", "direction", "recall"])
    table = table.assign(fold="all", gallery="all", k=1, chance=0.05, n_queries=60, n_gallery=24)
    table = table.assign(low=0.125, high=0.4, p_value=0.012, median_rank=3.5, mrr=0.4, hubness=0.25)
    table.to_csv(tmp_path / "evaluate/retrieval.csv", index=False)
    _, words = read_page(tmp_path)
    assert "a patient's images find its genes first in 0.250 [0.125, 0.400] of 60 test patients; by chance" in words
    assert "ridge-yardstick patient-to-gene 0.100" in words and "Segmentation" not in words
    (tmp_path / "evaluate/retrieval.csv").write_text("fold,gallery,k,direction\n")
    with pytest.raises(MissingInputError, match="is not written by mgi retrieve"):
        write_page(tmp_path, tmp_path / "index.html")


@pytest.mark.parametrize("text", [None, "", "a,b\n1,2\n", "variant,difference\nmgi,0.1\n"])
def test_page_without_a_comparison_is_an_error(tmp_path: Path, text: str | None) -> None:
    (tmp_path / "evaluate").mkdir()
    if text is not None:
        (tmp_path / "evaluate" / "comparison.csv").write_text(text)
    with pytest.raises(MissingInputError, match=r"comparison"):
        write_page(tmp_path, tmp_path / "index.html")
    assert not (tmp_path / "index.html").exists()


def test_spread_over_seeds_is_shown_where_a_variant_was_repeated(tmp_path: Path) -> None:
    folder = write_results(tmp_path)
    table = pd.DataFrame(
        {
            "variant": ["mgi"],
            "seeds": [3],
            "n_patients": [9],
            "dice": [0.7],
            "sd": [0.0125],
            "low": [0.6],
            "high": [0.8],
        }
    )
    table.to_csv(folder / "evaluate" / "seeds.csv", index=False)
    _, words = read_page(folder)
    assert "Over seeds" in words and "0.0125" in words
    table[:0].to_csv(folder / "evaluate" / "seeds.csv", index=False)
    assert "Over seeds" not in read_page(folder)[1]


def test_differences_of_other_variants_are_shown_where_there_are_two(tmp_path: Path) -> None:
    folder = write_results(tmp_path)
    cells = {
        "n_paired": [9],
        "difference": [-0.0125],
        "low": [-0.04],
        "high": [0.02],
        "p_value": [0.3],
        "p_holm": [0.5],
    }
    table = pd.DataFrame({"first": ["shuffled"], "second": ["image-only"], **cells})
    table.to_csv(folder / "evaluate" / "pairs.csv", index=False)
    _, words = read_page(folder)
    assert "shuffled minus image-only" in words and "-0.013" in words
    table[:0].to_csv(folder / "evaluate" / "pairs.csv", index=False)
    assert "other differences" not in read_page(folder)[1]


def test_dice_by_project_is_shown_where_there_are_several(tmp_path: Path) -> None:
    folder = write_results(tmp_path)
    table = pd.DataFrame(
        {"project": ["TCGA-GBM", "TCGA-LGG"], "variant": "mgi", "n_patients": [4, 9], "dice": [0.5125, 0.7],
         "low": [None, 0.6], "high": [None, 0.8]}
    )  # fmt: skip
    table.to_csv(folder / "evaluate" / "projects.csv", index=False)
    _, words = read_page(folder)
    assert "TCGA-GBM" in words and "0.512 of 4" in words and "of 9" in words
    table[:1].to_csv(folder / "evaluate" / "projects.csv", index=False)
    assert "TCGA-GBM" not in read_page(folder)[1]
