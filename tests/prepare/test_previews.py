"""Pictures of whole slides: tissue, tiles and annotation."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mgi.config import TileOptions
from mgi.errors import AnnotationError, SlideError
from mgi.prepare import previews, survey
from mgi.prepare.slides import tile_slides
from mgi.prepare.survey import preview
from tests.prepare.conftest import tissue_picture, write_slide

CASE = "TCGA-S1-0001"
# Of a slide of 1,024 pixels; the tissue spans 128 to 896.
TUMOUR = (300, 250, 700, 600)


@pytest.fixture
def slide(tmp_path):
    left, top, right, bottom = TUMOUR
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    (tmp_path / f"{CASE}.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    return write_slide(tmp_path / f"{CASE}.svs", tissue_picture(1024, 768), 0.5)


def options(tmp_path, **given):
    return TileOptions(**{"mpp": 0.5, "tile_px": 64, "annotations": str(tmp_path), **given})


def find_box(picture, colour, tolerance=0):
    """Return left, top, right and bottom of what has a colour."""
    rows, columns = np.nonzero((np.abs(picture.astype(int) - colour) <= tolerance).all(axis=-1))
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def test_preview_outlines_tissue_tumour_and_tiles(slide, tmp_path):
    preview(slide, tmp_path / "p.png", options(tmp_path))
    drawn = np.asarray(Image.open(tmp_path / "p.png").convert("RGB"))
    assert drawn.shape == (768, 1024, 3)
    assert np.abs(find_box(drawn, previews.TISSUE_LINE) - [128, 96, 896, 672]).max() < 20
    assert np.abs(find_box(drawn, previews.TUMOUR_LINE) - TUMOUR).max() <= 1
    assert np.abs(find_box(drawn, previews.KEPT) - [128, 64, 896, 704]).max() <= 3


@pytest.mark.parametrize("px", [1024, 128])
def test_tiling_writes_a_preview_of_each_slide_that_opens(slide, tmp_path, monkeypatch, px):
    """Of 128 pixels it is the thumbnail that was read for the tissue, of 1,024 one of its own."""
    monkeypatch.setattr(survey, "SMALL_PREVIEW_PX", px)
    blank = write_slide(tmp_path / "TCGA-S1-0002.svs", np.full((512, 512, 3), 242, np.uint8), 0.5)
    (tmp_path / "TCGA-S1-0003.svs").write_text("no slide")
    paths = [slide, blank, tmp_path / "TCGA-S1-0003.svs"]
    made = tmp_path / "made"
    given = (options(tmp_path, tile_px=128), tmp_path / "s.parquet")
    tile_slides(paths, [path.stem for path in paths], tmp_path / "t.parquet", *given, previews=made)
    assert sorted(path.name for path in made.iterdir()) == [f"{CASE}.jpg", "TCGA-S1-0002.jpg"]
    drawn = np.asarray(Image.open(made / f"{CASE}.jpg"))
    assert drawn.shape == (px * 3 // 4, px, 3)
    assert np.abs(find_box(drawn, previews.TUMOUR_LINE, 30) * 1024 / px - TUMOUR).max() <= 1024 / px
    assert pq.read_table(tmp_path / "s.parquet")["status"].to_pylist() == ["ok", "skipped", "failed"]


def test_small_tiles_are_tinted(slide, tmp_path, monkeypatch):
    monkeypatch.setattr(previews, "MIN_OUTLINED_PX", 100)
    preview(slide, tmp_path / "p.png", options(tmp_path))
    drawn = np.asarray(Image.open(tmp_path / "p.png"))
    green = (1 - previews.TINT) * np.array([214, 140, 190]) + previews.TINT * np.array(previews.KEPT)
    assert np.abs(drawn[640, 200] - green).max() < 3


def test_preview_of_what_cannot_be_used_is_refused(slide, tmp_path):
    (tmp_path / "bad.svs").write_text("no slide")
    with pytest.raises(SlideError, match=r"bad\.svs"):
        preview(tmp_path / "bad.svs", tmp_path / "p.png", options(tmp_path))
    (tmp_path / f"{CASE}.geojson").write_text("{")
    with pytest.raises(AnnotationError, match=CASE):
        preview(slide, tmp_path / "p.png", options(tmp_path))
