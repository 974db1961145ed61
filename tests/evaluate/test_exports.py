"""HDF5 of patches as other tools read it."""

import h5py
import numpy as np
import pandas as pd
import pytest

from mgi.evaluate.exports import write_slides
from mgi.prepare.hdf5 import describe_patches, open_patches


def cut_as_trident(attributes) -> int:
    """Return the pixels of level 0 that TRIDENT's patcher reads for a patch."""
    source, target = 10 / attributes["level0_magnification"], 10 / attributes["target_magnification"]
    return round(int(attributes["patch_size"]) * target / source)


def test_slide_is_read_as_by_the_dataset_of_clam_and_by_trident(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(7, 12)).astype(np.float32)
    frame = pd.DataFrame({"source_id": list("ABABABA"), "x": 10 * np.arange(7), "y": 3, "size": 512.0, "mpp": 0.5})
    write_slides(tmp_path, frame.astype({"mpp": np.float32}), vectors, 256)
    with h5py.File(tmp_path / "A.h5") as file:
        features, coords = file["features"][:], file["coords"][:]
        attributes = dict(file["coords"].attrs)
        assert file["features"].attrs["name"] == "A"
    np.testing.assert_array_equal(features, vectors[::2])
    assert features.dtype == np.float32 and coords.dtype == np.int64
    assert coords.tolist() == [[0, 3], [20, 3], [40, 3], [60, 3]]
    assert attributes == {
        "name": "A", "overlap": 0, "patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40.0,
        "target_magnification": 20.0,
    }  # fmt: skip
    assert cut_as_trident(attributes) == 512
    with open_patches(tmp_path / "B.h5") as found:
        assert (found.patches, found.width, found.size) == (3, 12, 512.0)


@pytest.mark.parametrize(
    ("mpp0", "mpp", "tile_px"), [(0.2527, 0.5, 256), (0.499, 0.5, 224), (0.25, 1.0, 512), (0.5, 0.5, 64)]
)
def test_trident_cuts_the_pixels_that_a_tile_covers(mpp0, mpp, tile_px):
    size = tile_px * mpp / mpp0
    attributes = describe_patches("A", tile_px, size, mpp)
    assert cut_as_trident(attributes) == attributes["patch_size_level0"] == round(size)
    assert attributes["level0_magnification"] == pytest.approx(10 / mpp0)


def test_level_is_stated_only_where_clam_would_read_the_same_pixels():
    downsamples = (1.0, 4.0001, 16.0)
    assert describe_patches("A", 256, 256.0, 0.5, (10, 20), downsamples)["patch_level"] == 0
    assert describe_patches("A", 256, 16 * 256.0, 8.0, (10, 20), downsamples)["patch_level"] == 2
    for size in (512.0, 1024.0):
        assert "patch_level" not in describe_patches("A", 256, size, 1.0, (10, 20), downsamples)
    assert describe_patches("A", None, None, None, (10, 20)) == {
        "name": "A", "overlap": 0, "level0_width": 10, "level0_height": 20,
    }  # fmt: skip
