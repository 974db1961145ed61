"""Texture statistics against NumPy, and what they tell apart."""

import numpy as np
import pytest
import torch

from mgi.model.texture import GREY_QUANTILES, QUANTILES, SCALES, STATISTICS, measure_texture


def measure_with_numpy(image: np.ndarray) -> list[float]:
    """Measure one image [3, height, width] as the docstring says."""
    grey = image.mean(0)
    found = [*image.mean((1, 2)), *image.std((1, 2))]
    for channels, quantiles in ((image, QUANTILES), (grey[None], GREY_QUANTILES)):
        found += [np.quantile(channel, q, method="nearest") for channel in channels for q in quantiles]
    for scale in SCALES:
        height, width = (edge // scale for edge in grey.shape)
        coarse = [
            [grey[y * scale : (y + 1) * scale, x * scale : (x + 1) * scale].mean() for x in range(width)]
            for y in range(height)
        ]
        steps = np.abs(np.diff(coarse, axis=0)).mean() + np.abs(np.diff(coarse, axis=1)).mean()
        found += [steps, np.std(coarse)]
    return found


@pytest.mark.parametrize("shape", [(64, 64), (40, 24)])
def test_statistics_equal_those_of_numpy(shape):
    images = torch.rand(3, 3, *shape, generator=torch.Generator().manual_seed(1)) ** 2
    found = measure_texture(images)
    assert found.shape == (3, STATISTICS) and found.dtype == torch.float32
    expected = [measure_with_numpy(image.double().numpy()) for image in images]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (32, 32)])
def test_blank_and_tiny_images_have_finite_statistics(shape):
    found = measure_texture(torch.full((1, 3, *shape), 0.5))
    assert found.isfinite().all() and set(found.round(decimals=5).unique().tolist()) == {0.0, 0.5}


def test_statistics_do_not_change_under_flips_and_quarter_turns():
    image = torch.rand(1, 3, 32, 32)
    for moved in (image.flip(3), image.rot90(1, (2, 3))):
        torch.testing.assert_close(measure_texture(moved), measure_texture(image), rtol=1e-4, atol=1e-5)
