"""Coordinates of tiles for other extractors: read as CLAM and TRIDENT do, they give the pixels of the tiles."""

import h5py
import numpy as np
import openslide
import pyarrow.parquet as pq
import pytest

from mgi.codecs import decode_image
from mgi.config import TileOptions
from mgi.prepare import slides
from mgi.prepare.slides import tile_slides
from tests.prepare.conftest import tissue_picture, write_slide

UUID = "0e8f5a2c-1b7d-4c3a-9f6e-2d4b8a1c7e90"


def tile(paths, tmp_path, **options):
    """Tile slides and return their tiles, and the folder of coordinates."""
    chosen = TileOptions(**{"mpp": 0.5, "tile_px": 64} | options)
    arguments = ([path.name[:12] for path in paths], tmp_path / "t.parquet", chosen, tmp_path / "s.parquet")
    tile_slides(paths, *arguments, coordinates=tmp_path / "made")
    return pq.read_table(tmp_path / "t.parquet").to_pandas(), tmp_path / "made"


@pytest.mark.parametrize(("mpp", "level"), [(0.5, 0), (1.0, 1)])
def test_clam_reads_the_pixels_of_the_tiles(tmp_path, mpp, level):
    path = write_slide(tmp_path / f"TCGA-S1-0001-01Z-00-DX1.{UUID}.svs", tissue_picture(2048, 1024), 0.5)
    tiles, made = tile([path], tmp_path, mpp=mpp)
    # CLAM and TRIDENT look for the name of the slide's file.
    with h5py.File(made / f"TCGA-S1-0001-01Z-00-DX1.{UUID}_patches.h5") as file:
        coords, attributes = file["coords"][:], dict(file["coords"].attrs)
    assert coords.tolist() == tiles[["x", "y"]].to_numpy().tolist() and coords.dtype == np.int64
    assert attributes["patch_size_level0"] == 64 * mpp / 0.5 and attributes["overlap"] == 0
    assert (attributes["level0_width"], attributes["level0_height"]) == (2048, 1024)
    assert (attributes["level0_magnification"], attributes["target_magnification"]) == (20, 10 / mpp)
    with openslide.OpenSlide(path) as slide:
        assert slide.level_downsamples[level] == mpp / 0.5 and attributes["patch_level"] == level
        size = (attributes["patch_size"],) * 2
        for row, corner in list(zip(tiles.itertuples(), coords, strict=True))[::17]:
            read = np.asarray(slide.read_region(corner, attributes["patch_level"], size).convert("RGB")).astype(float)
            assert np.abs(read - decode_image(row.image)).mean() < 4


def test_tiles_out_of_focus_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(slides, "find_blurred", lambda sharpness, *_: np.indices(sharpness.shape).sum(axis=0) % 3 == 0)
    path = write_slide(tmp_path / "TCGA-S1-0001.svs", tissue_picture(1024, 1024), 0.5)
    tiles, made = tile([path], tmp_path)
    with h5py.File(made / "TCGA-S1-0001_patches.h5") as file:
        assert file["coords"][:].tolist() == tiles[["x", "y"]].to_numpy().tolist()
    assert 0 < len(tiles) < 12 * 12


def test_resolution_without_a_level_and_slide_without_tiles(tmp_path):
    path = write_slide(tmp_path / "TCGA-S1-0001.svs", tissue_picture(1024, 1024), 0.4)
    blank = write_slide(tmp_path / "TCGA-S1-0002.svs", np.full((512, 512, 3), 242, np.uint8), 0.5)
    tiles, made = tile([path, blank], tmp_path)
    assert [file.name for file in made.iterdir()] == ["TCGA-S1-0001_patches.h5"] and len(tiles)
    with h5py.File(made / "TCGA-S1-0001_patches.h5") as file:
        attributes = dict(file["coords"].attrs)
    assert "patch_level" not in attributes and attributes["patch_size_level0"] == 80
    trident = attributes["level0_magnification"] / attributes["target_magnification"]
    assert round(attributes["patch_size"] * trident) == 80
