"""What is refused before a run: the same words in every command."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from mgi import check, doctor
from mgi.cli import app
from mgi.config import load_config
from mgi.errors import ConfigError, MissingPackageError

from .conftest import ROOT

DEMO = ROOT / "config" / "config.yaml"


def write(folder: Path, **changes: object) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(DEMO.read_text()) | changes))
    return path


SLIDES = yaml.safe_load(DEMO.read_text())["slides"]
REFUSED = {
    "tile": ({"slides": SLIDES | {"tile_px": 100}}, "does not divide 'slides.tile_px', 100"),
    "seed": ({"seed": 20261125004408}, "'seed' cannot be 20261125004408"),
    "device": ({"device": "cuda"}, "torch sees no CUDA device"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_every_command_refuses_in_the_same_words(case, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    changes, words = REFUSED[case]
    path = write(tmp_path, **changes)
    for arguments in (["config", str(path)], ["check", str(path)]):
        result = CliRunner().invoke(app, arguments)
        assert isinstance(result.exception, ConfigError) and words in str(result.exception)
    assert any(found.state == doctor.FAIL and words in found.found for found in doctor.examine(path))


def test_check_takes_json_and_writes_receipts_last(tmp_path):
    receipts = [tmp_path / "a" / "checked.json", tmp_path / "b" / "checked.json"]
    options = [f"--receipt={path}" for path in receipts]
    text = json.dumps(yaml.safe_load(DEMO.read_text()))
    result = CliRunner().invoke(app, ["check", text, *options])
    assert result.exit_code == 0, result.output
    assert load_config(receipts[0]) == load_config(receipts[1].read_text()) == load_config(DEMO)
    bad = CliRunner().invoke(app, ["check", text.replace('"depth": 3', '"depth": 0'), f"--receipt={tmp_path / 'c'}"])
    assert bad.exit_code == 1 and not (tmp_path / "c").exists()


def test_configuration_is_checked_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "mgi.train.preflight", None)
    assert check.check_configuration(DEMO).cohort == "simulated"
    with pytest.raises(MissingPackageError, match="not installed"):
        check.check_models(load_config(DEMO))


def test_missing_given_file_is_refused(tmp_path):
    path = write(tmp_path, split={"stratify_table": str(tmp_path / "gone.csv"), "stratify_column": "grade (WHO)"})
    with pytest.raises(ConfigError, match=r"'split\.stratify_table' is .*gone\.csv, which does not exist"):
        check.check_configuration(path)
