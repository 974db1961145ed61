"""Tables of predictions with damaged bytes: only the project's own errors come out."""

from mgi.evaluate.segmentation import summarise
from tests.evaluate.predictions import prediction_row, square_mask, write_predictions
from tests.fuzzing import check_damaged


def test_predictions(tmp_path):
    mask = square_mask(2, 2, 4)
    rows = [prediction_row(f"P{k}", mask, mask) for k in range(3)]
    valid = write_predictions(tmp_path / "valid.parquet", rows).read_bytes()
    out = tmp_path / "summary.json"
    check_damaged(lambda path: summarise([path], out, bootstrap_samples=10), valid, tmp_path / "predictions.parquet")
