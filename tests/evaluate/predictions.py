"""Tables of predictions, as fine-tuning writes them."""

from pathlib import Path

import numpy as np
import pandas as pd

from mgi.codecs import encode_mask
from mgi.tables import write_table


def random_mask(rng: np.random.Generator, shape: tuple[int, int] = (24, 20), share: float = 0.3) -> np.ndarray:
    return rng.random(shape) < share


def square_mask(top: int, left: int, edge: int, px: int = 10) -> np.ndarray:
    mask = np.zeros((px, px), bool)
    mask[top : top + edge, left : left + edge] = True
    return mask


def prediction_row(case: str, prediction: np.ndarray, reference: np.ndarray, **given: object) -> dict[str, object]:
    row = {"case_id": case, "source_id": f"{case}-01", "x": 0, "y": 0, "z": 0, "size": len(reference), "mpp": None}
    return row | {"fold": 0} | given | {"prediction": encode_mask(prediction), "reference": encode_mask(reference)}


def write_predictions(path: Path, rows: list[dict[str, object]]) -> Path:
    write_table(pd.DataFrame(rows).astype({"mpp": "float32"}), path)
    return path
