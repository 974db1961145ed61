"""Images through any Vision Transformer of timm, with intermediate features for a decoder."""

from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from mgi.errors import ConfigError
from mgi.model.texture import STATISTICS, measure_texture


@cache
def import_timm() -> ModuleType:
    """Import timm, and torchvision before it, also where torchvision is a build for another torch.

    Such a build fails to load its library, and its import then fails for two operators without a schema. They are
    declared here; `torchvision.ops` stays unusable.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        # A library object that is collected takes its operators along, hence the attribute.
        import_timm.operators = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[attr-defined]
        for operator in ("nms", "qnms"):
            import_timm.operators.define(  # type: ignore[attr-defined]
                f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
    import timm

    return timm


# Share of a statistic's variance below which a component of theirs is noise and is not scaled up.
MIN_VARIANCE = 0.01


class ImageEncoder(nn.Module):
    """A timm ViT with a pooled vector and a map of features.

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
    texture : bool
        Start the pooled vector as a linear map of colour and texture statistics, whitened over training images; the
        ViT's is added through a gate that starts closed, since few patients do not teach a ViT what texture is.

    Attributes
    ----------
    dim, map_dim : int
        Width of the pooled vector, and of the feature map.

    Raises
    ------
    ConfigError
        If timm does not know the name, cannot build the model for this image size or download its weights, or if
        patches do not fill the images.
    """

    mean: Tensor
    std: Tensor
    texture_mean: Tensor
    texture_whitening: Tensor

    def __init__(
        self,
        name: str,
        image_px: int,
        options: dict[str, Any] | None = None,
        weights: bool = False,
        texture: bool = False,
    ) -> None:
        super().__init__()
        settings = {"img_size": image_px} | (options or {})
        timm = import_timm()
        try:
            self.vit = timm.create_model(name, pretrained=weights, num_classes=0, **settings)
            patch, depth = max(self.vit.patch_embed.patch_size), len(self.vit.blocks)
            _ = self.vit.forward_intermediates
        except (RuntimeError, AssertionError, TypeError, AttributeError, ValueError) as error:
            raise ConfigError(
                f"timm cannot build '{name}' as a ViT for images of {image_px} px with {settings}: {error}"
            ) from error
        except OSError as error:
            fetch = f"import timm; timm.create_model('{name}', pretrained=True)"
            raise ConfigError(
                f"could not download the weights of '{name}': {str(error).splitlines()[0]}; start from random "
                f'weights, or run `python -c "{fetch}"` where there is a network, with the same home folder'
            ) from error
        if image_px % patch:
            raise ConfigError(
                f"patches of {patch} px do not divide images of {image_px} px, and '{name}' would crop them: use "
                f"images of a multiple of {patch} px, or another patch size"
            )
        if settings["img_size"] != image_px and not settings.get("dynamic_img_size"):
            raise ConfigError(f"'img_size' is {settings['img_size']}, but the images have {image_px} px: leave it out")
        self.layers = sorted({depth // 2, depth - 1})
        self.dim: int = self.vit.num_features
        self.map_dim = self.dim * len(self.layers)
        config = self.vit.default_cfg
        self.register_buffer("mean", torch.tensor(config["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(1, 3, 1, 1), persistent=False)
        self.texture_map = nn.Linear(STATISTICS, self.dim, bias=False) if texture else None
        if texture:
            self.register_buffer("texture_mean", torch.zeros(STATISTICS))
            self.register_buffer("texture_whitening", torch.eye(STATISTICS))
            self.gate = nn.Parameter(torch.zeros(self.dim))

    def forward(self, images: Tensor) -> Tensor:
        """Pool images [batch, 3, height, width] in 0..1 to [batch, dim]."""
        pooled = self.vit((images - self.mean) / self.std)
        if self.texture_map is None:
            return pooled
        texture = (measure_texture(images) - self.texture_mean) @ self.texture_whitening
        return self.texture_map(texture) + self.gate * pooled

    @torch.no_grad()
    def fit_texture(self, statistics: Tensor) -> None:
        """Fit the whitening of the texture statistics [images, STATISTICS] of training images."""
        scale = statistics.std(dim=0, correction=0).clamp(min=1e-6)
        self.texture_mean.copy_(statistics.mean(dim=0))
        standardised = ((statistics - self.texture_mean.to(statistics)) / scale).double()
        variance, directions = torch.linalg.eigh(standardised.T @ standardised / len(statistics))
        whitening = directions / (variance.clamp(min=0) + MIN_VARIANCE).sqrt()
        self.texture_whitening.copy_(whitening / scale[:, None])

    def feature_map(self, images: Tensor) -> Tensor:
        """Return the middle and last layers' tokens as a map [batch, map_dim, height / patch, width / patch]."""
        maps = self.vit.forward_intermediates(
            (images - self.mean) / self.std, indices=self.layers, norm=True, output_fmt="NCHW", intermediates_only=True
        )
        return torch.cat(maps, dim=1)
