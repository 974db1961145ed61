"""Slides of the user's own: listed by a table or a folder, and what the user states of them."""

from pathlib import Path

from mgi.errors import SlideError
from mgi.names import quote
from mgi.tables import read_any_table, source_of


def read_mpp_table(path: Path | str) -> dict[str, float]:
    """Read the microns per pixel of level 0 that the user states, by source_id.

    Parameters
    ----------
    path : Path
        CSV, TSV or Parquet of `slide`, a file name or its source_id, and `mpp`.

    Raises
    ------
    MissingInputError
        If it is not there.
    SlideError
        If it is no such table, or states two values for a slide, or one that is not a positive number.
    """
    table = read_any_table(path, "table of mpp", ["slide", "mpp"], SlideError)
    stated: dict[str, float] = {}
    for slide, text in zip(table["slide"], table["mpp"], strict=True):
        if slide is None:
            raise SlideError(f"{path} states an mpp without a slide; name it")
        value = _parse_mpp(text, slide, path)
        for source_id in {source_of(slide), slide}:
            if stated.setdefault(source_id, value) != value:
                raise SlideError(f"{path} states two mpp for the slide {quote(slide)}; keep one")
    return stated


def _parse_mpp(text: str | None, slide: str, path: Path | str) -> float:
    try:
        value = float(text or "nan")
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise SlideError(f"{path} states {quote(text)} as mpp of {quote(slide)}; give microns per pixel, such as 0.25")
    return value
