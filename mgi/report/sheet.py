"""The contact sheet: what became of the slides of a cohort, on one picture of bounded size."""

import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from mgi.errors import ImageTableError
from mgi.files import atomic_write
from mgi.report.summary import iterate_rows, make_printable
from mgi.tables import read_table

MAX_SHOWN = 48
# Of the slides shown, as many may be ones that were left out.
MAX_LEFT_OUT = 16
COLUMNS = 6
CELL_PX, GAP_PX, TEXT_PX = 220, 16, 13
LABEL_PX = 3 * TEXT_PX
CHARACTERS = 32
REASON_LINES = 9
MAX_PREVIEW_PX = 1 << 22
INK, SOFT, FAINT, RED, PAPER = (34, 34, 34), (119, 119, 119), (221, 221, 221), (176, 64, 0), (255, 255, 255)


def draw_sheet(sources: Path, previews: Path, out: Path) -> None:
    """Draw the previews of at most 48 slides, those left out with their reasons.

    Of more slides, up to 16 that were left out and evenly spread others are shown, in the order of case and slide; the
    last line counts the rest.

    Parameters
    ----------
    sources
        sources.parquet.
    previews
        Folder of {table}/{source_id}.jpg; a slide without one is an empty box.
    out
        PNG.

    Raises
    ------
    MissingInputError
        If `sources` is missing or lacks a column.
    ImageTableError
        If a preview is damaged.
    """
    columns = ["source_id", "case_id", "status", "reason", "n_images", "table"]
    table = read_table(sources, "sources", columns).to_pandas().sort_values(["case_id", "source_id"])
    shown = choose_slides(table)
    rows = -(-len(shown) // COLUMNS)
    pitch = CELL_PX + LABEL_PX + GAP_PX
    columns_used = min(COLUMNS, max(len(shown), 2))
    size = (columns_used * (CELL_PX + GAP_PX) + GAP_PX, rows * pitch + 2 * GAP_PX + TEXT_PX)
    sheet = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT_PX)
    for place, row in enumerate(iterate_rows(shown)):
        left = GAP_PX + place % COLUMNS * (CELL_PX + GAP_PX)
        top = GAP_PX + place // COLUMNS * pitch
        draw.rectangle((left, top, left + CELL_PX, top + CELL_PX), outline=FAINT)
        picture = _read_preview(previews / str(row.table) / f"{row.source_id}.jpg")
        if picture is not None:
            sheet.paste(picture, (left + (CELL_PX - picture.width) // 2, top + (CELL_PX - picture.height) // 2))
        label = f"{row.n_images:,} tiles"
        if row.status != "ok":
            label = row.status
            _draw_reason(draw, font, (left, top), row.reason or "", over_picture=picture is not None)
        name = textwrap.shorten(make_printable(row.source_id), CHARACTERS, placeholder="...") or row.source_id
        draw.text((left, top + CELL_PX + 4), name[:CHARACTERS], INK, font)
        draw.text((left, top + CELL_PX + 6 + TEXT_PX), label, SOFT if row.status == "ok" else RED, font)
    draw.text((GAP_PX, size[1] - GAP_PX - TEXT_PX), describe_rest(table, shown), SOFT, font)
    with atomic_write(out) as aside:
        sheet.save(aside, "PNG")


def choose_slides(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of at most 48 slides: up to 16 that were left out, and evenly spread others."""
    if len(table) <= MAX_SHOWN:
        return table
    used = (table["status"] == "ok").to_numpy()
    lost, kept = np.flatnonzero(~used), np.flatnonzero(used)
    n_lost = min(len(lost), max(MAX_LEFT_OUT, MAX_SHOWN - len(kept)))
    chosen = [*_spread(lost, n_lost), *_spread(kept, min(len(kept), MAX_SHOWN - n_lost))]
    return table.iloc[np.sort(np.array(chosen, np.int64))]


def describe_rest(table: pd.DataFrame, shown: pd.DataFrame) -> str:
    """Return how many slides there are, how many were left out, and how many of each are shown."""
    lost, lost_shown = (int((rows["status"] != "ok").sum()) for rows in (table, shown))
    words = f"{len(table):,} slides"
    if len(shown) < len(table):
        words += f", {len(shown)} of them shown"
    if lost:
        words += f"; {lost:,} left out"
        if lost_shown < lost:
            words += f", {lost_shown} of them shown"
    return words


def _spread(places: np.ndarray, count: int) -> list[int]:
    return places[((np.arange(count) + 0.5) * len(places) / max(count, 1)).astype(np.int64)].tolist()


def _read_preview(path: Path) -> Image.Image | None:
    """Return a preview that fits a cell, None where there is none."""
    if not path.exists():
        return None
    try:
        with Image.open(path, formats=["JPEG"]) as picture:
            if picture.width * picture.height > MAX_PREVIEW_PX:
                raise ImageTableError(f"preview {path} has {picture.width} x {picture.height} pixels: remove it")
            small = picture.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ImageTableError(f"preview {path} is damaged: remove it, and it is made again") from error
    small.thumbnail((CELL_PX - 2, CELL_PX - 2), Image.Resampling.BOX)
    return small


def _draw_reason(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    corner: tuple[int, int],
    reason: str,
    over_picture: bool,
) -> None:
    """Write why a slide was left out into its box, over its picture on a strip of its own."""
    lines = textwrap.wrap(make_printable(reason), CHARACTERS, max_lines=REASON_LINES, placeholder=" ...")
    left, top = corner
    height = len(lines) * (TEXT_PX + 3) + 8
    if over_picture:
        draw.rectangle((left + 1, top + 1, left + CELL_PX - 1, top + height), fill=PAPER)
    for number, line in enumerate(lines):
        draw.text((left + 6, top + 5 + number * (TEXT_PX + 3)), line, RED, font)
