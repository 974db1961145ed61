"""Files of patch features as TRIDENT and CLAM write them."""

from pathlib import Path

import h5py
import numpy as np

WIDTH = 16


def write_features(
    path: Path, features: np.ndarray | None = None, coords: np.ndarray | None = None, patches: int = 6, seed: int = 0
) -> Path:
    """Write a slide's features, drawn at random where not given, and coordinates in steps of 512 pixels."""
    if features is None:
        features = np.random.default_rng(seed).normal(size=(patches, WIDTH)).astype(np.float32)
    if coords is None:
        coords = 512 * np.stack([np.arange(patches), np.arange(patches) // 3], axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=features)
        file.create_dataset("coords", data=coords).attrs["patch_size_level0"] = 512
    return path
