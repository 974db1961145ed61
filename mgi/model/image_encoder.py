"""Images through any Vision Transformer of timm, with intermediate features for a decoder."""

from typing import Any

import torch
from torch import Tensor, nn

from mgi.errors import ConfigError

try:
    import torchvision  # noqa: F401
except RuntimeError:
    # Beside another build of torch its library does not load, and its import fails for two operators without a schema;
    # where the library loads it defines them itself. The object must outlive the import.
    _SCHEMAS = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        _SCHEMAS.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import timm


class ImageEncoder(nn.Module):
    """A timm ViT that gives a pooled vector and a map of features.

    Parameters
    ----------
    name : str
        Any timm ViT, such as `vit_small_patch16_224`.
    image_px : int
        Edge of the images, pixels.
    options : dict
        Keyword arguments of `timm.create_model`, such as `patch_size` or `depth`.
    weights : bool
        Start from timm's published weights.

    Raises
    ------
    ConfigError
        If timm does not know the name, the model cannot be built for this image size, or its patches do not fill it.
    """

    def __init__(self, name: str, image_px: int, options: dict[str, Any] | None = None, weights: bool = False) -> None:
        super().__init__()
        settings = {"img_size": image_px} | (options or {})
        try:
            self.vit = timm.create_model(name, pretrained=weights, num_classes=0, **settings)
            patch, depth = max(self.vit.patch_embed.patch_size), len(self.vit.blocks)
            _ = self.vit.forward_intermediates
        except (RuntimeError, AssertionError, TypeError, AttributeError, ValueError) as problem:
            raise ConfigError(
                f"image_encoder: timm cannot make '{name}' as a ViT for {image_px} px images with {settings}: {problem}"
            ) from None
        except OSError as problem:
            raise ConfigError(
                f"image_encoder: the weights of '{name}' cannot be had: {str(problem).splitlines()[0]}; let `python -c "
                f"\"import timm; timm.create_model('{name}', pretrained=True)\"` fetch them where there is a network "
                "and the same home folder, or set 'weights: false'"
            ) from None
        if image_px % patch:
            raise ConfigError(
                f"image_encoder: images of {image_px} px do not divide into patches of {patch} px, and '{name}' would "
                f"cut their edges off: make slides.tile_px or mri.image_px a multiple of {patch}, or set 'patch_size'"
            )
        if settings["img_size"] != image_px and not settings.get("dynamic_img_size"):
            raise ConfigError(
                f"image_encoder: 'img_size' is {settings['img_size']}, but the images have {image_px} px: leave it out"
            )
        self.layers = sorted({depth // 2, depth - 1})
        self.dim = self.vit.num_features
        self.map_dim = self.dim * len(self.layers)
        config = self.vit.default_cfg
        self.register_buffer("mean", torch.tensor(config["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Pool images [batch, 3, height, width] in 0..1 to [batch, dim]."""
        return self.vit((images - self.mean) / self.std)

    def feature_map(self, images: Tensor) -> Tensor:
        """Give the chosen layers' tokens as a map [batch, map_dim, height / patch, width / patch]."""
        maps = self.vit.forward_intermediates(
            (images - self.mean) / self.std, indices=self.layers, norm=True, output_fmt="NCHW", intermediates_only=True
        )
        return torch.cat(maps, dim=1)
