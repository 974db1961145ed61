"""Precomputed features of patches in the place of images."""

from torch import Tensor, nn


class FeatureEncoder(nn.Module):
    """Features of another encoder, each patch's normalised; the projection that follows is the linear map.

    Parameters
    ----------
    width : int
        Values of a patch.

    Attributes
    ----------
    dim : int
        Width of the vectors that it returns.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dim = width
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor) -> Tensor:
        """Normalise features [batch, width] to [batch, dim]."""
        normalised: Tensor = self.norm(features)
        return normalised
