"""Prediction of MRI series: masks and volumes on the series' own grid, whatever its shape and orientation."""

import json
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from mgi.config import PredictOptions
from mgi.errors import CohortError, ConfigError, MriError
from mgi.evaluate import predict as stage
from mgi.evaluate import series as files
from mgi.evaluate.predict import predict
from mgi.prepare.nifti import write_planes
from mgi.prepare.series import open_series
from mgi.train.data import Images
from tests.prepare.test_mri import brain, write_nifti

NAME = "TCGA_CS_4941_19960909"


@pytest.fixture
def model(finetuned, tmp_path):
    """A model of MRI."""
    shutil.copytree(finetuned, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"mpp": None}))
    return tmp_path / "model"


@pytest.fixture
def sees_bright(monkeypatch):
    """Let any model take what is bright in the second channel for the tumour."""

    def probabilities(model, images, profiles, place):
        for row in reversed(range(len(images))):
            yield np.array([row]), (images.load(np.array([row]))[..., 1] > 128).astype(np.float32)

    monkeypatch.setattr(stage, "predict_probabilities", probabilities)


@pytest.mark.parametrize("code", ["LPS", "RAS", "PSR", "ILA"])
def test_prediction_of_nifti_lies_on_its_own_grid(model, sees_bright, tmp_path, code):
    write_nifti(tmp_path / "scan", "BraTS20_Training_001", brain(), code=code)
    labels = nib.load(tmp_path / "scan" / "BraTS20_Training_001_seg.nii.gz")
    predict(model, tmp_path / "scan", tmp_path / "out")
    found = nib.load(tmp_path / "out" / "BraTS20_Training_001_seg.nii.gz")
    assert found.shape == labels.shape and found.header.get_data_dtype() == np.uint8
    np.testing.assert_allclose(found.affine, labels.affine, atol=1e-5)
    assert found.header.get_zooms() == pytest.approx(labels.header.get_zooms())
    mask, truth = np.asarray(found.dataobj) > 0, np.asarray(labels.dataobj) > 0
    assert (mask & truth).sum() / (mask | truth).sum() > 0.6
    np.testing.assert_allclose(np.argwhere(mask).mean(axis=0), np.argwhere(truth).mean(axis=0), atol=0.6)
    probability = nib.load(tmp_path / "out" / "BraTS20_Training_001_probability.nii.gz")
    np.testing.assert_array_equal(np.asarray(probability.dataobj) >= 0.5, mask)
    assert (tmp_path / "out" / "BraTS20_Training_001.png").exists()


def test_written_planes_are_read_back_voxel_for_voxel(tmp_path):
    write_nifti(tmp_path, "a", brain(), code="PSR")
    image = nib.load(tmp_path / "a_flair.nii.gz")
    canonical = np.asarray(nib.as_closest_canonical(image).dataobj)
    write_planes(canonical[::-1, ::-1].transpose(2, 1, 0), tmp_path / "a_flair.nii.gz", tmp_path / "b.nii.gz")
    written = nib.load(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(image.dataobj))
    assert written.header["sform_code"] == image.header["sform_code"]


@pytest.mark.parametrize("shape", [(48, 64), (64, 48)])
def test_slices_that_are_not_square_get_masks_of_their_size(model, sees_bright, tmp_path, shape):
    folder = tmp_path / NAME
    folder.mkdir()
    for number in (1, 2, 10):
        pixels = np.full((*shape, 3), 60, np.uint8)
        pixels[10:30, 20 : 20 + 2 * number] = 250
        Image.fromarray(pixels).save(folder / f"{NAME}_{number}.tif")
    predict(model, folder, tmp_path / "out")
    mask = np.asarray(Image.open(tmp_path / "out" / f"{NAME}_10_mask.tif")) > 0
    truth = np.zeros(shape, bool)
    truth[10:30, 20:40] = True
    assert mask.shape == shape and (mask & truth).sum() / (mask | truth).sum() > 0.9
    pages = tifffile.imread(tmp_path / "out" / f"{NAME}_probability.tiff")
    assert pages.shape == (3, *shape)
    np.testing.assert_array_equal(pages[2] >= 0.5, mask)


def test_slice_is_placed_where_it_was_cut():
    whole = np.random.default_rng(0).random((40, 50)).astype(np.float32)
    placed = files.place_slice(whole[5:25, 12:32], (12, 5, 20), (40, 50))
    np.testing.assert_array_equal(placed[5:25, 12:32], whole[5:25, 12:32])
    assert placed.shape == (40, 50) and placed.sum() == pytest.approx(whole[5:25, 12:32].sum(), rel=1e-5)
    # A square that reaches beyond the slice.
    beyond = files.place_slice(np.ones((20, 20), np.float32), (-4, 30, 20), (40, 50))
    assert beyond[30:, :16].all() and beyond.sum() == 160


def test_small_regions_of_a_series_are_left_out(model, sees_bright, tmp_path, caplog):
    volumes = brain(32, 32, 6)
    for key in ("t1", "t1ce", "t2", "flair"):
        volumes[key] = np.where(volumes["seg"] > 0, 503, volumes[key])
    volumes["flair"][8:12, 8:12, 1:3] = 900  # 32 voxels through two slices
    volumes["flair"][20:24, 20:24, 5] = 900  # 16 in one
    write_nifti(tmp_path / "scan", "a", volumes)
    for min_voxels, slices in ((0, [1, 2, 5]), (20, [1, 2]), (40, [])):
        with caplog.at_level("INFO", logger="mgi"):
            predict(model, tmp_path / "scan", tmp_path / str(min_voxels), options=PredictOptions(min_voxels=min_voxels))
        mask = np.asarray(nib.load(tmp_path / str(min_voxels) / "a_seg.nii.gz").dataobj)
        assert np.flatnonzero(mask.any(axis=(0, 1))).tolist() == slices
    assert "tumour in 2 of 6 slices, 32 voxels; 1 regions below 20 voxels left out" in caplog.text


def test_large_montage_is_reduced(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "MAX_SHEET_PX", 100)
    png = tmp_path / "a.png"
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(png)
    frame = pd.DataFrame({"z": range(4), "x": 0, "y": 0, "size": 64.0})
    images = Images(frame, [png.read_bytes()] * 4, [None] * 4, np.zeros(4, bool))
    sheet = files._draw_sheet(images, [[0, 0, 64]] * 4, np.zeros((4, 64, 64), bool))
    assert sheet.size[0] == 100


def test_rejects_folder_of_several_series_and_lacking_sequences(model, tmp_path):
    write_nifti(tmp_path / "two", "a", brain())
    write_nifti(tmp_path / "two", "b", brain())
    with pytest.raises(MriError, match=r"several series: .*two holds 'a', 'b'; give the folder of one"):
        open_series(tmp_path / "two", "case")
    volumes = brain()
    del volumes["t1ce"]
    write_nifti(tmp_path / "few", "a", volumes)
    with pytest.raises(MriError, match="missing sequence: no file of t1ce"):
        predict(model, tmp_path / "few", tmp_path / "out")
    predict(model, tmp_path / "few", tmp_path / "out", options=PredictOptions(channels=["t1", "flair", "t2"]))
    with pytest.raises(ConfigError, match="exists and would be overwritten"):
        predict(model, tmp_path / "few", tmp_path / "out", options=PredictOptions(channels=["t1", "flair", "t2"]))


def test_rejects_two_scans_of_one_name(model, tmp_path):
    for folder in ("one", "two"):
        write_nifti(tmp_path / folder, "a", brain())
    with pytest.raises(ConfigError, match="have one name"):
        predict(model, [tmp_path / "one", tmp_path / "two"], tmp_path / "out")


def test_case_without_profile_is_refused_or_segmented_by_its_images_alone(model, cohort, tmp_path, caplog):
    write_nifti(tmp_path / "scan", "a", brain())
    with pytest.raises(CohortError, match="has no profile of the case 'TCGA-ZZ-9999'"):
        predict(model, tmp_path / "scan", tmp_path / "out", expression=cohort.expression, case_id="TCGA-ZZ-9999")
    absent = {"expression": cohort.expression, "case_id": "TCGA-ZZ-9999"}
    predict(model, tmp_path / "scan", tmp_path / "out", **absent, options=PredictOptions(allow_missing=True))
    assert "has no profile of 'TCGA-ZZ-9999': segmented by the images alone" in caplog.text
    predict(model, tmp_path / "scan", tmp_path / "alone")
    volumes = (nib.load(tmp_path / name / "a_probability.nii.gz") for name in ("out", "alone"))
    np.testing.assert_array_equal(*(np.asarray(volume.dataobj) for volume in volumes))
