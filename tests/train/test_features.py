"""Pre-training, embeddings, probes and the yardstick on precomputed features in place of images."""

from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

import mgi
from mgi.config import PretrainOptions, ProbeOptions
from mgi.errors import CheckpointError, ImageTableError
from mgi.evaluate.probe import probe
from mgi.evaluate.retrieval import embed
from mgi.evaluate.yardstick import FEATURE_COMPONENTS, embed_by_ridge, fit_standardisation
from mgi.prepare.features import import_features
from mgi.train.data import read_image_table, read_images
from mgi.train.device import Place
from mgi.train.finetune import finetune
from mgi.train.pretrain import PatientBatches, pretrain
from mgi.train.profiles import read_profiles
from tests.prepare.features import WIDTH, write_features
from tests.tables import CASES, TINY, UNPAIRED

OPTIONS = PretrainOptions(
    **{key: value for key, value in TINY.items() if key != "image_encoder"},
    embed_dim=8, batch_patients=3, images_per_patient=2, gene_dropout=0.0,
)  # fmt: skip
PATCHES = 6


@pytest.fixture(scope="module")
def featured(cohort, tmp_path_factory) -> SimpleNamespace:
    """The cohort's expression and splits with features in place of images, and a model pre-trained on them."""
    folder = tmp_path_factory.mktemp("featured")
    for number, case in enumerate(CASES):
        write_features(folder / f"h5/{case}-S.h5", patches=PATCHES, seed=number)
    import_features(folder / "h5", folder / "images/features.parquet", folder / "sources.parquet")
    pretrain(OPTIONS, folder / "sources.parquet", cohort.expression, cohort.splits, "0", folder / "model")
    return SimpleNamespace(folder=folder, sources=folder / "sources.parquet", model=folder / "model")


def test_model_states_the_width_of_its_features(featured):
    model = mgi.load(featured.model)
    assert model.description.features == WIDTH and model.description.image_px is None
    features = torch.randn(3, WIDTH)
    expected = torch.nn.functional.layer_norm(features, (WIDTH,)) @ model.image_projection.weight.T
    # The norm has been trained for a few steps only.
    torch.testing.assert_close(model.project_images(features), expected, rtol=0.1, atol=0.05)


def test_loss_is_that_of_the_features_of_its_patients_without_augmentation(featured, cohort):
    model = mgi.load(featured.model)
    images, profiles = read_images(featured.sources, set(CASES[:3])), read_profiles(cohort.expression)
    batches = PatientBatches(images, profiles, CASES[:3], OPTIONS, Place(torch.device("cpu")))
    cases, loaded = batches._draw(0)
    every = images.load(np.arange(len(images)))
    rows = [int(np.flatnonzero((every == features).all(axis=1))[0]) for features in loaded]
    owners = images.frame.case_id[rows].tolist()
    assert owners == [case for case in cases for _ in range(2)]
    expected = model(torch.from_numpy(loaded), profiles.of(cases)[0], torch.tensor([cases.index(o) for o in owners]))
    torch.testing.assert_close(batches.backward(model, 0), expected.detach(), rtol=1e-5, atol=1e-6)


def test_embeddings_are_those_of_the_paired_test_patients(featured, cohort):
    out = featured.folder / "embeddings.parquet"
    embed(featured.model, featured.sources, cohort.expression, cohort.splits, 0, out, "cpu")
    table = pd.read_parquet(out)
    assert table.groupby("kind").size().to_dict() == {"gene": 2, "image": 2 * PATCHES, "patient": 2}
    model, images = mgi.load(featured.model), read_images(featured.sources, set(CASES[6:]))
    with torch.inference_mode():
        expected = model.embed_images(torch.from_numpy(images.load(np.arange(len(images))))).numpy()
    rows = table[table.kind == "image"]
    np.testing.assert_allclose(np.stack(rows.vector), expected, rtol=1e-4, atol=1e-6)
    assert rows.x.tolist() == images.frame.x.tolist() and rows.source_id.tolist() == images.frame.source_id.tolist()


def test_embeddings_as_hdf5_are_features_again(featured, cohort, tmp_path):
    tables = (featured.sources, cohort.expression, cohort.splits, 0, tmp_path / "e.parquet", "cpu")
    embed(featured.model, *tables, tmp_path / "h5", tmp_path / "e.h5ad")
    import_features(tmp_path / "h5", tmp_path / "images/features.parquet", tmp_path / "sources.parquet")
    again = read_images(tmp_path / "sources.parquet", set(CASES[6:]))
    table = pd.read_parquet(tmp_path / "e.parquet")
    rows = table[table.kind == "image"]
    np.testing.assert_array_equal(again.load(np.arange(len(again))), np.stack(rows.vector))
    assert again.frame.x.tolist() == rows.x.tolist() and set(again.frame["size"]) == {512.0}
    assert again.frame.source_id.tolist() == rows.source_id.tolist()
    stored = anndata.read_h5ad(tmp_path / "e.h5ad")
    np.testing.assert_array_equal(stored.X, np.stack(table.vector))
    assert stored.obs.kind.tolist() == table.kind.tolist() and stored.obs.case_id.tolist() == table.case_id.tolist()
    assert stored.obs.source_id.iloc[-1] == "" and np.isnan(stored.obs.x.iloc[-1])


def test_slices_of_mri_are_not_written_as_patches(pretrained, cohort, tmp_path):
    with pytest.raises(ImageTableError, match="HDF5 of patches is for slides, and these images are slices of series"):
        embed(pretrained, cohort.sources, cohort.expression, cohort.splits, 0, tmp_path / "e.parquet", "cpu", tmp_path)


def test_probe_has_a_trained_and_an_untrained_encoder(featured, cohort):
    labels = featured.folder / "labels.csv"
    pd.DataFrame({"case_id": CASES, "grade": ["low", "high"] * 4}).to_csv(labels, index=False)
    options = ProbeOptions(labels=str(labels), columns=["grade"], bootstrap_samples=100, resamples=2)
    out = featured.folder / "probe.csv"
    splits = featured.folder / "splits.parquet"
    pd.read_parquet(cohort.splits).assign(site=None).astype({"site": object}).to_parquet(splits)
    probe([featured.model], featured.sources, cohort.expression, splits, options, out, "cpu")
    table = pd.read_csv(out)
    assert set(zip(table.encoder, table.side, strict=True)) == {
        (encoder, side) for encoder in ("trained", "random") for side in ("image", "gene")
    }


def test_yardstick_regresses_on_the_features(featured, cohort):
    out = featured.folder / "ridge.parquet"
    embed_by_ridge(featured.sources, cohort.expression, cohort.splits, 0, out)
    table = pd.read_parquet(out)
    assert table.groupby("kind").size().to_dict() == {"gene": 2, "image": 2 * PATCHES, "patient": 2}


def test_wide_features_are_regressed_on_as_their_first_components():
    random = np.random.default_rng(0)
    x = random.normal(size=(300, 5)) @ random.normal(size=(5, 100)) + 0.01 * random.normal(size=(300, 100))
    found = fit_standardisation(x)(x)
    standardised = (x - x.mean(axis=0)) / x.std(axis=0)
    _, strength, directions = np.linalg.svd(standardised, full_matrices=False)
    assert found.shape == (300, FEATURE_COMPONENTS)
    np.testing.assert_allclose(np.abs(found[:, :5]), np.abs(standardised @ directions[:5].T), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(found, axis=0), strength[:FEATURE_COMPONENTS], rtol=1e-3)


def test_features_of_another_encoder_and_images_are_refused(featured, cohort, pretrained, finetune_options, tmp_path):
    for case in CASES:
        write_features(tmp_path / f"h5/{case}-S.h5", np.ones((PATCHES, 8), np.float32))
    import_features(tmp_path / "h5", tmp_path / "images/features.parquet", tmp_path / "sources.parquet")
    tables = (cohort.expression, cohort.splits, 0, tmp_path / "e.parquet", "cpu")
    for model, sources, said in (
        (
            featured.model,
            tmp_path / "sources.parquet",
            "features of 8 values and the model in .* features of 16 values",
        ),
        (featured.model, cohort.sources, "holds images and the model in .* was trained on precomputed features"),
        (pretrained, featured.sources, "features of 16 values and the model in .* was trained on images"),
    ):
        with pytest.raises(CheckpointError, match=said):
            embed(model, sources, *tables)
    with pytest.raises(CheckpointError, match="was trained on precomputed features"):
        options = finetune_options(image_encoder=TINY["image_encoder"])
        finetune(options, cohort.sources, cohort.expression, cohort.splits, "0", featured.model, tmp_path / "out")


def test_features_cannot_be_segmented(featured):
    with pytest.raises(ImageTableError, match="no usable image for these cases"):
        read_images(featured.sources, set(CASES), labelled=True)
    with pytest.raises(ImageTableError, match="lacks"):
        read_image_table(featured.folder / "images/features.parquet")


def test_unpaired_patient_is_not_trained_on(featured, caplog, cohort, tmp_path):
    caplog.set_level("INFO")
    pretrain(OPTIONS, featured.sources, cohort.expression, cohort.splits, "0", tmp_path)
    assert UNPAIRED in CASES[:4] and "pre-training on 3 patients" in caplog.text
