"""The image encoder beside torchvision builds that belong to torch's, and beside those that do not."""

import subprocess
import sys

import pytest
import torch

from mgi.errors import ConfigError
from mgi.model.image_encoder import ImageEncoder, import_timm
from mgi.model.texture import measure_texture

TINY_VIT = {"patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 2}


def encoder(**options) -> ImageEncoder:
    torch.manual_seed(0)
    return ImageEncoder("vit_tiny_patch16_224", 32, TINY_VIT | options).eval()


# What a build of torchvision that belongs to torch's does when its library is loaded: it defines its own operators.
MATCHING = """
import torch
operators = torch.library.Library("torchvision", "FRAGMENT")
def load_library(path):
    if path.endswith("_C.so") and not hasattr(load_library, "done"):
        load_library.done = True
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in ("roi_align", "ps_roi_align", "roi_pool", "ps_roi_pool", "deform_conv2d"):
            operators.define(f"{name}(Tensor x) -> Tensor")
            operators.define(f"_{name}_backward(Tensor x) -> Tensor")
        operators.define("qroi_align(Tensor x) -> Tensor")
        operators.define("_cuda_version() -> int")
        operators.impl("_cuda_version", lambda: -1, "CompositeExplicitAutograd")
torch.ops.load_library = load_library
"""
FOREIGN = """
import torch
def load_library(path):
    raise OSError("libcudart.so.13: cannot open shared object file: No such file or directory")
torch.ops.load_library = load_library
"""
USED = """
from mgi.model.image_encoder import import_timm
import_timm()
import torchvision.extension
print(torchvision.extension._has_ops())
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(("torchvision", "has_operators"), [(MATCHING, True), (FOREIGN, False)])
def test_any_build_of_torchvision_is_imported_and_a_matching_one_keeps_its_operators(torchvision, has_operators):
    assert run(torchvision + USED) == str(has_operators)


def test_importing_the_model_imports_no_library_that_registers_or_compiles():
    names = "mgi.model.alignment, mgi.model.image_encoder, mgi.model.segmenter"
    heavy = "{'timm', 'torchvision', 'numba', 'triton'}"
    assert run(f"import sys, {names}; print({heavy} & set(sys.modules))") == "set()"


def test_pixels_are_standardised_as_the_published_weights_expect():
    model, images = encoder(), torch.rand(2, 3, 32, 32)
    mean, std = torch.tensor([0.5, 0.5, 0.5]), torch.tensor([0.5, 0.5, 0.5])
    assert model.vit.default_cfg["mean"] == (0.5, 0.5, 0.5) == model.vit.default_cfg["std"]
    standardised = (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(model(images), model.vit(standardised))


def test_feature_map_is_the_middle_and_last_layers_normed_tokens_in_their_places():
    model, images = encoder(depth=4), torch.rand(2, 3, 32, 32)
    assert model.layers == [2, 3] and model.map_dim == 2 * model.dim == 48
    maps = model.feature_map(images)
    assert maps.shape == (2, 48, 4, 4)
    outputs = []
    for block in model.vit.blocks:
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model.vit.forward_features((images - 0.5) / 0.5)
    expected = [model.vit.norm(outputs[layer])[:, 1:].transpose(1, 2).unflatten(2, (4, 4)) for layer in (2, 3)]
    torch.testing.assert_close(maps, torch.cat(expected, dim=1))


def test_texture_is_whitened_and_the_vit_enters_through_a_gate_that_starts_closed():
    torch.manual_seed(0)
    model = ImageEncoder("vit_tiny_patch16_224", 32, TINY_VIT, texture=True).eval()
    images = torch.rand(60, 3, 1, 1) * torch.rand(60, 3, 32, 32) ** torch.linspace(0.2, 3, 60).view(-1, 1, 1, 1)
    statistics = measure_texture(images)
    model.fit_texture(statistics)
    texture = (statistics - statistics.mean(0)) @ model.texture_whitening
    spread = texture.var(0, correction=0)
    assert (spread.diff() > -1e-4).all() and 0.97 < spread[-1] <= 1 and spread.max() < 1.001
    covariance = texture.T @ texture / 60
    torch.testing.assert_close(covariance, spread.diag(), atol=1e-3, rtol=0)
    linear = texture @ model.texture_map.weight.T
    torch.testing.assert_close(model(images), linear, rtol=1e-4, atol=1e-4)
    torch.nn.init.constant_(model.gate, 2.0)
    torch.testing.assert_close(model(images), linear + 2 * model.vit((images - 0.5) / 0.5), rtol=1e-4, atol=1e-4)
    assert model.dim == model.map_dim == 24 and "texture_whitening" in model.state_dict()


def test_one_layer_is_its_own_middle():
    assert encoder(depth=1).layers == [0] and encoder(depth=1).map_dim == 24


def test_weights_that_cannot_be_downloaded_are_an_error_with_the_command_that_fetches_them(monkeypatch):
    def fail(*arguments, **options):
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(import_timm(), "create_model", fail)
    with pytest.raises(ConfigError, match=r"weights of 'vit_tiny_patch16_224': no route to host; .*create_model\('vit"):
        ImageEncoder("vit_tiny_patch16_224", 32, weights=True)


def test_unknown_vit_is_rejected_in_one_sentence():
    with pytest.raises(ConfigError, match="cannot build 'vit_nonsense' as a ViT for images of 64 px"):
        ImageEncoder("vit_nonsense", 64)


def test_images_that_patches_do_not_divide_are_rejected():
    with pytest.raises(ConfigError, match=r"patches of 8 px do not divide images of 36 px, and 'vit_tiny_patch16_224'"):
        ImageEncoder("vit_tiny_patch16_224", 36, TINY_VIT)


def test_vit_for_images_of_another_size_is_rejected():
    with pytest.raises(ConfigError, match=r"'img_size' is 64, but the images have 32 px"):
        encoder(img_size=64)
    assert encoder(img_size=64, dynamic_img_size=True).feature_map(torch.zeros(1, 3, 32, 32)).shape == (1, 24, 4, 4)


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "xcit_nano_12_p8_224"])
def test_models_other_than_plain_vits_are_rejected(name):
    with pytest.raises(ConfigError, match=f"cannot build '{name}' as a ViT"):
        ImageEncoder(name, 64)
