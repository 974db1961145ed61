"""Model folders from strangers: config.json is validated, and the weights must be those it describes."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import mgi
from mgi.errors import CheckpointError
from mgi.train import checkpoint
from mgi.train.description import MAX_DESCRIPTION_BYTES


@pytest.fixture
def folder(finetuned, tmp_path):
    """A copy of a fine-tuned model."""
    return shutil.copytree(finetuned, tmp_path / "model")


def change(folder, path: str, value: object) -> None:
    """Set the value at a path such as `options/seed` of config.json."""
    config = json.loads((folder / "config.json").read_text())
    *parents, last = path.split("/")
    section = config
    for name in parents:
        section = section[name]
    if value is None:
        del section[last]
    else:
        section[last] = value
    (folder / "config.json").write_text(json.dumps(config))


TEXTS = {
    "list": "[]",
    "number": "3",
    "null": "null",
    "empty": "",
    "cut": '{"kind": "segmenter", "options": {',
    "deep": '{"kind":' + "[" * 100_000,
    "digits": '{"kind": ' + "9" * 5_000 + "}",
    "no kind": "{}",
    "kind": '{"kind": "classifier"}',
    "latin1": b'{"kind": "\xe9"}',
    "nan": '{"kind": "segmenter", "threshold": NaN}',
}


@pytest.mark.parametrize("case", TEXTS)
def test_rejects_text_that_describes_no_model(case, folder):
    text = TEXTS[case]
    (folder / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError, match=r"config\.json does not describe a model: ") as caught:
        mgi.load(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def test_rejects_widths_that_the_backbone_has_not_naming_the_key(folder):
    for key, value in {"genes": "none", "vit": False, "pretrained": False, "channels": 7 * [8]}.items():
        change(folder, f"options/{key}", value)
    change(folder, "options/backbone", "efficientnet-lite0")
    with pytest.raises(CheckpointError, match=r"'options\.channels' are 7 widths, and 'efficientnet-lite0' has maps"):
        mgi.load(folder)


def test_rejects_images_that_its_network_cannot_halve(folder):
    config = json.loads((folder / "config.json").read_text())
    change(folder, "options/channels", [4, 8, 16, 16, 16, 16, 16, 16])
    with pytest.raises(CheckpointError, match=rf"images of {config['image_px']} px cannot be halved 7 times"):
        mgi.load(folder)


VALUES = {
    "seed of 31 digits": ("options/seed", 10**30, "seed"),
    "negative seed": ("options/seed", -1, "seed"),
    "missing options": ("options", None, "options"),
    "missing genes": ("genes", None, "genes"),
    "missing threshold": ("threshold", None, "threshold"),
    "genes of numbers": ("genes", [1, 2], "genes"),
    "gene twice": ("genes", ["A", "A"], "genes"),
    "names of another number": ("gene_names", ["A"], "gene_names"),
    "size as text": ("image_px", "large", "image_px"),
    "no size": ("image_px", 0, "image_px"),
    "huge size": ("image_px", 10**9, "image_px"),
    "negative mpp": ("mpp", -1, "mpp"),
    "threshold beyond 1": ("threshold", 1.5, "threshold"),
    "threads": ("options/threads", 10**9, "threads"),
    "unknown key": ("weights_url", "http://example.org", "weights_url"),
    "unknown option": ("options/pickle", "x", "pickle"),
    "hub": ("options/image_encoder/name", "hf-hub:someone/model", "name"),
    "local folder": ("options/image_encoder/name", "local-dir:/tmp", "name"),
    "unknown ViT": ("options/image_encoder/name", "vit_of_mine", "name"),
    "checkpoint_path": ("options/image_encoder/options/checkpoint_path", "/etc/passwd", "checkpoint_path"),
    "pretrained_cfg": ("options/image_encoder/options/pretrained_cfg", {"url": "http://x"}, "pretrained_cfg"),
    "cache_dir": ("options/image_encoder/options/cache_dir", "/tmp/x", "cache_dir"),
    "endless ViT": ("options/image_encoder/options/depth", 10**9, "depth"),
    "endless genes": ("options/gene_encoder/depth", 10**9, "depth"),
    "wide genes": ("options/gene_encoder/dim", 10**9, "dim"),
    "fold that is a path": ("fold", "../x", "fold"),
    "stride": ("options/gene_encoder/stride", 10**12, "stride"),
    "wide channels": ("options/channels", [8, 10**12], "channels"),
    "many channels": ("options/channels", [8] * 40, "channels"),
}


@pytest.mark.parametrize("case", VALUES)
def test_rejects_invalid_value_naming_its_key(case, folder):
    path, value, name = VALUES[case]
    change(folder, path, value)
    with pytest.raises(CheckpointError, match=name) as caught:
        mgi.load(folder)
    assert "\n" not in str(caught.value) and "{here}" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("options/gene_encoder/dim", 16_384),
        ("options/image_encoder/options/embed_dim", 96),
        ("options/channels", [8, 8, 16, 16]),
        ("options/channels", [8, 16_000]),
        ("options/genes", "none"),
        ("options/vit", False),
        ("genes", [f"G{number}" for number in range(41)]),
    ],
)
def test_rejects_weights_of_another_model_before_building_it(path, value, folder, monkeypatch):
    change(folder, path, value)
    change(folder, "gene_names", [])
    built, build = [], checkpoint.build
    monkeypatch.setattr(checkpoint, "build", lambda described: built.append(1) or build(described))
    with pytest.raises(CheckpointError, match=r"does not hold the model that config\.json beside it describes"):
        mgi.load(folder)
    assert len(built) == 1, "on the meta device only"


def test_rejects_large_description(folder):
    with open(folder / "config.json", "ab") as handle:
        handle.truncate(MAX_DESCRIPTION_BYTES + 1)
    with pytest.raises(CheckpointError, match="64 MB, too large"):
        mgi.load(folder)


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"not weights", b"\xff" * 8 + b"{}"])
def test_rejects_file_without_weights(content, folder):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="holds no model that this version can load"):
        mgi.load(folder)


def test_rejects_weights_with_an_unexpected_or_missing_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"extra": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="'extra'"):
        mgi.load(folder)
    save_file({name: tensor for name, tensor in tensors.items() if name != "head.bias"}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"'head\.bias'"):
        mgi.load(folder)


def test_loading_keeps_the_weights_the_description_and_the_callers_random_numbers(folder):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model = mgi.load(folder)
    assert torch.rand(3).equal(expected)
    state = model.state_dict()
    assert all(tensor.equal(state[name]) for name, tensor in load_file(folder / "model.safetensors").items())
    config = json.loads((folder / "config.json").read_text())
    assert (model.description.kind, model.description.threshold) == ("segmenter", config["threshold"])
    assert config["code"] and config["mgi"] == mgi.__version__ and config["genes"] == config["gene_names"]
    assert not model.training


def test_full_disk_while_a_model_is_written_is_one_sentence(pretrained, tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def fail(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    model = mgi.load(pretrained)
    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(CheckpointError, match=r"cannot write .*model\.safetensors: .*No space left on device"):
        checkpoint.save(model, model.description, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
