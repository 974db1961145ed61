"""Colour and texture of an image in a few numbers."""

import torch
import torch.nn.functional as F
from torch import Tensor

QUANTILES = (0.1, 0.5, 0.9)
GREY_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SCALES = (1, 2, 4, 8)
STATISTICS = 3 * (2 + len(QUANTILES)) + len(GREY_QUANTILES) + 2 * len(SCALES)


@torch.no_grad()
def measure_texture(images: Tensor) -> Tensor:
    """Return mean, spread and quantiles of the channels, and the contrast of the grey image at four scales.

    Parameters
    ----------
    images : Tensor, [batch, 3, height, width], 0..1

    Returns
    -------
    Tensor, [batch, STATISTICS], float32
        Of each channel mean, standard deviation and quantiles; of the grey image quantiles and, averaged over blocks
        of 1, 2, 4 and 8 pixels, the mean absolute difference of neighbours and the standard deviation.
    """
    images = images.float()
    grey = images.mean(dim=1, keepdim=True)
    channels = images.flatten(2)
    found = [channels.mean(dim=2), channels.std(dim=2, correction=0)]
    found += [_find_quantiles(channels, QUANTILES), _find_quantiles(grey.flatten(2), GREY_QUANTILES)]
    for scale in SCALES:
        coarse = F.avg_pool2d(grey, min(scale, *grey.shape[2:]))
        steps = [coarse.diff(dim=dim).abs().flatten(1) for dim in (2, 3)]
        # An image of a single block has no neighbours.
        contrast = sum(step.sum(dim=1) / max(step.shape[1], 1) for step in steps)
        found.append(torch.stack([torch.as_tensor(contrast), coarse.flatten(1).std(dim=1, correction=0)], dim=1))
    return torch.cat(found, dim=1)


def _find_quantiles(values: Tensor, quantiles: tuple[float, ...]) -> Tensor:
    """Return quantiles of values [batch, channels, pixels], without interpolation, as [batch, quantiles * channels]."""
    ordered = values.sort(dim=2).values
    rows = [round(quantile * (values.shape[2] - 1)) for quantile in quantiles]
    return ordered[:, :, rows].flatten(1)
