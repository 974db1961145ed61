"""The check of every variant before a run: what cannot be built is refused with its key."""

import copy
import time
from pathlib import Path

import pytest
import yaml

from mgi.config import load_config
from mgi.errors import ConfigError
from mgi.train import device
from mgi.train.preflight import check_models
from tests.conftest import ROOT

SMALL = {
    "cohort": "c",
    "expression": {"table": "t.parquet", "positions": "p.tsv"},
    "mri": {"folder": "k", "image_px": 64},
    "pretrain": {
        "a": {
            "gene_encoder": {"dim": 16, "depth": 1},
            "embed_dim": 8,
            "image_encoder": {"options": {"patch_size": 16, "depth": 2, "embed_dim": 32, "num_heads": 2}},
        }
    },
    "finetune": {"m": {"encoders": "a", "channels": [8, 16]}, "n": {"base": "m", "genes": "none", "vit": False}},
    "evaluate": {"variants": ["m"], "reference": "m"},
}


def changed(key: str, value: object) -> dict:
    raw = copy.deepcopy(SMALL)
    *path, last = key.split("/")
    section = raw
    for part in path:
        section = section.setdefault(part, {})
    section[last] = value
    return raw


@pytest.mark.parametrize("name", ["config.yaml", "tcga-lgg-mri.yaml", "tcga-brca.yaml"])
def test_accepts_the_shipped_configurations_in_seconds(name, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(device, "missing_kernel", lambda: None)
    config = load_config(ROOT / "config" / name)
    start = time.monotonic()
    check_models(config)
    assert time.monotonic() - start < 20


IMAGE = "pretrain/a/image_encoder"
REFUSED = {
    "tile": ("mri/image_px", 100, r"'pretrain\.a\.image_encoder\.options\.patch_size' is 16.*'mri\.image_px', 100"),
    "unknown": (f"{IMAGE}/name", "vit_tinny_patch16_224", r"'pretrain\.a\.image_encoder\.name'.*did you mean vit_tiny"),
    "hub": (f"{IMAGE}/name", "hf-hub:timm/vit_tiny_patch16_224", r"image_encoder\.name' cannot be 'hf-hub:"),
    "folder": (f"{IMAGE}/name", "local-dir:/tmp", r"image_encoder\.name' cannot be 'local-dir:/tmp'"),
    "tag": (f"{IMAGE}/name", "vit_tiny_patch16_224.no_such_tag", r"'pretrain\.a\.image_encoder'"),
    "CNN": (f"{IMAGE}/name", "resnet18", r"'pretrain\.a\.image_encoder'.*resnet18"),
    "heads": (f"{IMAGE}/options/num_heads", 3, r"image_encoder\.options\.embed_dim' is 32, which 3 heads"),
    "heads of the name": (f"{IMAGE}/options", {"patch_size": 16, "embed_dim": 100}, r"'pretrain\.a\.image_encoder'"),
    "text": (f"{IMAGE}/options/init_values", "1e-5", r"options\.init_values' cannot be '1e-5'.*write 1\.0e-5"),
    "text for integer": (f"{IMAGE}/options/depth", "2", r"options\.depth' cannot be '2'"),
    "number for bool": (f"{IMAGE}/options/qkv_bias", 1, r"options\.qkv_bias' cannot be 1"),
    "infinite": (f"{IMAGE}/options/mlp_ratio", float("inf"), r"options\.mlp_ratio' cannot be"),
    "one block": (f"{IMAGE}/options/depth", 1, r"options\.depth' cannot be 1"),
    "endless": (f"{IMAGE}/options/depth", 10**9, r"options\.depth' cannot be"),
    "no patch": (f"{IMAGE}/options/patch_size", 0, r"options\.patch_size' cannot be 0"),
    "path": (f"{IMAGE}/options/checkpoint_path", "/x", r"image_encoder\.options\.checkpoint_path': valid keys are"),
    "channels": (f"{IMAGE}/options/in_chans", 4, r"options\.in_chans': "),
    "mistyped": (
        f"{IMAGE}/options/embed_dims",
        32,
        r"embed_dims': did you mean 'embed_dim'",
    ),
    "no class token": (f"{IMAGE}/options/class_token", False, r"'pretrain\.a\.image_encoder'.*class token"),
    "size": (f"{IMAGE}/options/img_size", 224, r"'pretrain\.a\.image_encoder'.*img_size"),
    "weights of another shape": (f"{IMAGE}/weights", True, r"image_encoder\.weights' is true.*change the shape"),
    "halvings": ("finetune/m/channels", [8] * 8, r"'finetune\.m\.channels' has 8 widths.*'mri\.image_px' is 64"),
    "seed": ("seed", 20261125004408, r"'seed'"),
    "device": ("device", "cuda", r"'device' is cuda, but torch sees no CUDA device"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_rejects_what_cannot_be_built_naming_the_key(case, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    key, value, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message) as caught:
        check_models(load_config(changed(key, value)))
    assert "\n" not in str(caught.value) and str(caught.value).startswith("configuration: ")


def test_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_models(load_config(SMALL))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["late_tile_px100", "init_values", "seed_20261125004408"])
def test_rejects_cases_seen(name, data_dir):
    path = Path(data_dir).parent / "cases" / "workflow" / f"{name}.yaml"
    if not path.exists():
        pytest.skip(f"{path} not found")
    with pytest.raises(ConfigError):
        check_models(load_config(yaml.safe_load(path.read_text())))
