"""Batches of images on their way to the device: drawn ahead, decoded by several threads, augmented."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, NamedTuple, Self, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mgi.config.train import FinetuneOptions, Optimisation

T = TypeVar("T")
STEPS_AHEAD = 2

# Optical density of haematoxylin, eosin and diaminobenzidine in red, green and blue (Ruifrok and Johnston, 2001).
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]], dtype=np.float32)
# Natural logarithm, of each level of intensity; level 0 counts as 1.
DENSITIES = -np.log(np.arange(256, dtype=np.float32).clip(min=1) / 255)


class Ahead(Generic[T]):
    """Draw the batches of the next steps in a thread while that of this step is worked on.

    Since a batch depends on its step alone, it is the same as if it were drawn when asked for.

    Parameters
    ----------
    draw : callable
        The batch of a step: decoding and augmentation, no computation on a device.
    steps : int
        Steps of the run; after the last, nothing is drawn and the thread ends.
    """

    def __init__(self, draw: Callable[[int], T], steps: int) -> None:
        self._draw, self._steps = draw, steps
        self._thread = ThreadPoolExecutor(1)
        self._drawn: dict[int, Future[T]] = {}

    def __call__(self, step: int) -> T:
        """Return the batch of `step`; what its drawing raised is raised here."""
        batch = self._drawn.get(step) or self._thread.submit(self._draw, step)
        coming = range(step + 1, min(step + 1 + STEPS_AHEAD, self._steps))
        self._drawn = {later: self._drawn.get(later) or self._thread.submit(self._draw, later) for later in coming}
        if not coming:
            self._thread.shutdown(wait=False)
        return batch.result()


def to_tensor(images: np.ndarray, device: torch.device) -> Tensor:
    """Turn uint8 [batch, height, width, 3] into float32 [batch, 3, height, width] in 0..1."""
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255


class Augmentation(NamedTuple):
    """What is done to each image of a batch.

    Attributes
    ----------
    turns : int ndarray, [batch]
        Quarter turns.
    flips : bool ndarray, [batch]
        Whether it is flipped left to right, after the turn.
    gains : float ndarray, [batch, 3]
        Factor of each channel's intensity.
    factors, offsets : float32 ndarray, [batch, 3]
        What each stain's amount is multiplied by, and what is added to it, in optical density (Tellez et al., 2019,
        arXiv 1902.06543).
    shown : int ndarray, [batch, 3]
        The channel that each channel shows.
    """

    turns: np.ndarray
    flips: np.ndarray
    gains: np.ndarray
    factors: np.ndarray
    offsets: np.ndarray
    shown: np.ndarray

    @classmethod
    def draw(cls, count: int, options: Optimisation, random: np.random.Generator) -> Self:
        """Draw the augmentation of `count` images."""
        how, jitter, stain = options.augment, options.intensity_jitter, options.stain_jitter
        turns = random.integers(0, 4, count) * (how == "dihedral")
        flips = (random.random(count) < 0.5) & (how != "none")
        gains = 1 + jitter * random.uniform(-1, 1, (count, 3))
        # Random numbers that are not used are not drawn: the others stay as they are.
        drawn = random.uniform(-1, 1, (2, count, 3)) if stain else np.zeros((2, count, 3))
        factors, offsets = stain * drawn.astype(np.float32)
        shown = np.tile(np.arange(3), (count, 1))
        if options.channel_swap:
            swapped = np.flatnonzero(random.random(count) < options.channel_swap)
            shown[swapped, random.integers(0, 3, len(swapped))] = random.integers(0, 3, len(swapped))
        return cls(turns, flips, gains, 1 + factors, offsets, shown)

    def share(self, part: slice) -> Self:
        """Return the augmentation of some images of the batch."""
        return type(self)(*(values[part] for values in self))

    def move(self, stack: np.ndarray) -> np.ndarray:
        """Return images or masks, uint8 [batch, height, width, ...], turned and flipped."""
        moved = np.empty_like(stack)
        for index, (turn, flip) in enumerate(zip(self.turns, self.flips, strict=True)):
            picture = np.rot90(stack[index], turn)
            moved[index] = picture[:, ::-1] if flip else picture
        return moved

    def apply(self, images: np.ndarray) -> np.ndarray:
        """Return images, uint8 [batch, height, width, 3 planes], turned, flipped and of changed intensities."""
        images = self.move(images)
        for image, factor, offset in zip(images, self.factors, self.offsets, strict=True):
            if offset.any():
                image[:] = restain(image, factor, offset)
        for image, gain, shown in zip(images, self.gains, self.shown, strict=True):
            planes = image.shape[2] // len(gain)
            if (shown != np.arange(3)).any():
                image[:] = image[..., np.concatenate([3 * plane + shown for plane in range(planes)])]
            if (gain != 1).any():
                image[:] = np.clip(image * np.tile(gain, planes), 0, 255).astype(np.uint8)
        return images


def restain(image: np.ndarray, factor: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Return an image, uint8 [height, width, 3], with other amounts of its stains.

    Parameters
    ----------
    image : uint8 ndarray, [height, width, 3]
    factor, offset : float32 ndarray, [3]
        What the amount of each of `STAINS` is multiplied by, and what is then added, in optical density.
    """
    mixing = np.linalg.inv(STAINS) @ (factor[:, None] * STAINS)
    density = DENSITIES[image] @ mixing + offset @ STAINS
    return np.rint(255 * np.exp(-density.clip(min=0))).astype(np.uint8)


class Warp(NamedTuple):
    """A rotation, a zoom, changes of contrast and noise of each image of a batch.

    Attributes
    ----------
    angles : float ndarray, [batch]
        Radians, about the centre.
    zooms : float ndarray, [batch]
        Factor by which the image is enlarged.
    gammas : float ndarray, [batch, 3]
        Exponent of each channel's intensities.
    deviations : float ndarray, [batch]
        Standard deviation of the noise.
    seeds : int64 ndarray, [batch]
        Seed of the noise.
    """

    angles: np.ndarray
    zooms: np.ndarray
    gammas: np.ndarray
    deviations: np.ndarray
    seeds: np.ndarray

    @classmethod
    def draw(cls, count: int, options: FinetuneOptions, random: np.random.Generator) -> Self:
        """Draw the warps of `count` images."""
        angles = np.deg2rad(options.rotation) * random.uniform(-1, 1, count)
        zooms = (1 + options.zoom) ** random.uniform(-1, 1, count)
        gammas = (1 + options.gamma) ** random.uniform(-1, 1, (count, 3))
        deviations = options.noise * random.random(count)
        return cls(angles, zooms, gammas, deviations, random.integers(0, 2**63, count))

    def share(self, part: slice) -> Self:
        """Return the warps of some images of the batch."""
        return type(self)(*(values[part] for values in self))

    def apply(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Warp images, float32 [batch, 3 planes, height, width] in 0..1, and masks, [batch, height, width].

        What comes from outside of an image is 0; noise may leave the range.
        """
        if (self.angles != 0).any() or (self.zooms != 1).any():
            sine, cosine = np.sin(self.angles) / self.zooms, np.cos(self.angles) / self.zooms
            zero = np.zeros_like(sine)
            matrices = np.stack([cosine, -sine, zero, sine, cosine, zero], axis=1).reshape(-1, 2, 3)
            places = torch.from_numpy(matrices).to(images)
            grid = F.affine_grid(places, list(images.shape), align_corners=False)
            images = F.grid_sample(images, grid, mode="bilinear", align_corners=False)
            moved = F.grid_sample(masks[:, None].to(images), grid, mode="nearest", align_corners=False)
            masks = moved[:, 0].to(masks.dtype)
        if (self.gammas != 1).any():
            exponents = torch.from_numpy(self.gammas).to(images)
            images = images ** exponents.repeat(1, images.shape[1] // exponents.shape[1])[:, :, None, None]
        if (self.deviations != 0).any():
            noise = np.stack(
                [
                    deviation * np.random.default_rng(seed).standard_normal(images.shape[1:], np.float32)
                    for deviation, seed in zip(self.deviations.astype(np.float32), self.seeds, strict=True)
                ]
            )
            images = images + torch.from_numpy(noise).to(images)
        return images, masks
