"""The contact sheet of a cohort's slides."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mgi.errors import ImageTableError
from mgi.report import sheet
from mgi.report.sheet import choose_slides, describe_rest, draw_sheet

BLUE = (0, 60, 200)


def slides(used, lost=0):
    """Sources of which the last ones were left out."""
    return pd.DataFrame(
        {
            "source_id": [f"S{k:04d}" for k in range(used + lost)],
            "case_id": [f"C{k:04d}" for k in range(used + lost)],
            "status": ["ok"] * used + ["skipped"] * lost,
            "reason": [None] * used + ["no mpp: its metadata state no microns per pixel"] * lost,
            "n_images": 3,
            "table": "t",
        }
    )


def draw(tmp_path, table):
    table.to_parquet(tmp_path / "sources.parquet")
    draw_sheet(tmp_path / "sources.parquet", tmp_path, tmp_path / "sheet.png")
    return np.asarray(Image.open(tmp_path / "sheet.png"))


def test_sheet_shows_previews_and_the_reasons_of_others(tmp_path):
    (tmp_path / "t").mkdir()
    Image.new("RGB", (400, 800), BLUE).save(tmp_path / "t" / "S0000.jpg")
    drawn = draw(tmp_path, slides(1, 1))
    boxes = [drawn[sheet.GAP_PX :, left:][: sheet.CELL_PX, : sheet.CELL_PX] for left in (16, 16 + 236)]
    blue, red = ((np.abs(box.astype(int) - colour).max(axis=-1) < 30).mean() for box, colour in
                 zip(boxes, (BLUE, sheet.RED), strict=True))  # fmt: skip
    assert 0.4 < blue < 0.52, "half of the box is as wide as the preview"
    assert 0.005 < red < 0.2, "the reason is written into the other"


def test_many_slides_are_spread_over_a_sheet_of_bounded_size(tmp_path):
    table = slides(500, 40)
    shown = choose_slides(table)
    assert len(shown) == 48 and (shown["status"] == "ok").sum() == 32
    used = shown.loc[shown["status"] == "ok"].index.to_numpy()
    assert np.diff(used).max() <= 16 and used.min() < 16 and used.max() >= 484
    assert describe_rest(table, shown) == "540 slides, 48 of them shown; 40 left out, 16 of them shown"
    assert draw(tmp_path, table).shape[0] < 2300


@pytest.mark.parametrize(
    ("used", "lost", "counts"), [(3, 2, (3, 2)), (60, 3, (45, 3)), (10, 90, (10, 38)), (0, 60, (0, 48)), (0, 0, (0, 0))]
)
def test_every_place_is_used(tmp_path, used, lost, counts):
    shown = choose_slides(slides(used, lost))
    assert ((shown["status"] == "ok").sum(), (shown["status"] != "ok").sum()) == counts


def test_damaged_preview_is_named(tmp_path):
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "S0000.jpg").write_text("no picture")
    with pytest.raises(ImageTableError, match=r"S0000\.jpg is damaged"):
        draw(tmp_path, slides(1))
