"""Fixtures of the preparing stage: small slides that OpenSlide opens as Aperio, manifests, and what was logged."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import pyvips

from mgi.console import log
from mgi.tables import MANIFEST_SCHEMA, write_table


@pytest.fixture
def said(monkeypatch):
    """What was logged, as one text."""
    lines = []
    for level in ("info", "warning"):
        monkeypatch.setattr(log, level, lambda line, *values: lines.append(line % values))
    return lambda: "\n".join(lines)


def write_slide(path: Path, pixels: np.ndarray, mpp: float | None) -> Path:
    """Write uint8 pixels [H, W, 3] as a pyramidal JPEG SVS."""
    path.parent.mkdir(parents=True, exist_ok=True)
    said = "" if mpp is None else f"|AppMag = 20|MPP = {mpp}"
    image = pyvips.Image.new_from_memory(pixels.tobytes(), pixels.shape[1], pixels.shape[0], 3, "uchar").copy()
    image.set_type(pyvips.GValue.gstr_type, "image-description", f"Aperio Image Library v11{said}")
    image.tiffsave(str(path), tile=True, tile_width=256, tile_height=256, pyramid=True, compression="jpeg", Q=95)
    return path


def tissue_picture(width: int, height: int) -> np.ndarray:
    """Draw a pink block with a purple stripe, one eighth from every side, on near-white glass."""
    pixels = np.full((height, width, 3), 242, np.uint8)
    block = pixels[height // 8 : -height // 8, width // 8 : -width // 8]
    block[:] = (214, 140, 190)
    block[:, block.shape[1] // 2 :] = (120, 80, 160)
    return pixels


def write_manifest(path: Path, rows: list[dict]) -> Path:
    """Write a manifest; columns that a row lacks are null."""
    defaults = dict.fromkeys(MANIFEST_SCHEMA.names) | {"md5": "0" * 32, "size": 1, "project": "TCGA-SIM"}
    full = [defaults | {"file_id": f"00000000-0000-4000-8000-{k:012d}"} | row for k, row in enumerate(rows)]
    write_table(pa.Table.from_pandas(pd.DataFrame(full), MANIFEST_SCHEMA, preserve_index=False), path)
    return path
