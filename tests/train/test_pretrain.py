"""Contrastive pre-training: whose images and genes a batch holds, and what the encoders are standardised by."""

import numpy as np
import pytest
import torch

import mgi
from mgi.config import PretrainOptions
from mgi.model.texture import measure_texture
from mgi.train import pretrain as pre
from mgi.train.data import read_images, read_roles
from mgi.train.device import Place
from mgi.train.pretrain import PatientBatches, pretrain
from mgi.train.profiles import read_profiles
from tests.tables import CASES, TINY, UNPAIRED

CPU = Place(torch.device("cpu"))
PLAIN = TINY | {"augment": "none", "gene_dropout": 0.0, "embed_dim": 8, "batch_patients": 3, "images_per_patient": 4}


@pytest.fixture
def batches(cohort):
    """Batches of six patients without augmentation, of whom one has no image."""
    images, profiles = read_images(cohort.sources, set(CASES[:3] + CASES[4:6])), read_profiles(cohort.expression)
    return PatientBatches(images, profiles, [*CASES[:3], *CASES[4:7]], PretrainOptions(**PLAIN), CPU)


def find_rows(batches: PatientBatches, pictures: np.ndarray) -> list[int]:
    """Return the row of the table that each picture is."""
    every = batches.images.load(np.arange(len(batches.images)))
    return [int(np.flatnonzero((every == picture).all(axis=(1, 2, 3)))[0]) for picture in pictures]


def test_batch_has_images_of_its_patients_in_order(batches):
    drawn = set()
    for step in range(20):
        cases, pictures = batches._draw(step)
        rows = find_rows(batches, pictures)
        assert len(set(cases)) == 3 and len(pictures) == 12
        assert batches.images.frame.case_id[rows].tolist() == [case for case in cases for _ in range(4)]
        drawn |= set(zip(cases, rows, strict=False))
    assert {case for case, _ in drawn} == {*CASES[:3], *CASES[4:6]} and len(drawn) > 15


def test_a_batch_depends_on_its_step_and_seed_alone(batches, cohort):
    again = PatientBatches(
        batches.images, batches.profiles, [*CASES[:3], *CASES[4:7]], PretrainOptions(**PLAIN), CPU
    )._draw(3)
    assert batches._draw(3)[0] == again[0] and (batches._draw(3)[1] == again[1]).all()
    assert any(batches._draw(step)[0] != again[0] for step in range(4, 8))
    other = PatientBatches(
        batches.images, batches.profiles, [*CASES[:3], *CASES[4:7]], PretrainOptions(**PLAIN, seed=1), CPU
    )
    assert any(other._draw(step)[0] != batches._draw(step)[0] for step in range(4))


def test_loss_pairs_each_image_with_the_genes_of_its_patient(batches, pretrained):
    model = mgi.load(pretrained)
    loss = batches.backward(model, 0)
    cases, pictures = batches._draw(0)
    owners = batches.images.frame.case_id[find_rows(batches, pictures)].tolist()
    inputs = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255
    values = torch.stack([batches.profiles.of([case])[0][0] for case in cases])
    expected = model(inputs, values, torch.tensor([cases.index(owner) for owner in owners]))
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-6)


def test_genes_are_standardised_by_the_paired_training_patients(pretrained, cohort, pretrain_options, tmp_path):
    values = read_profiles(cohort.expression).of([case for case in CASES[:4] if case != UNPAIRED])[0]
    encoder = mgi.load(pretrained).gene_encoder
    torch.testing.assert_close(encoder.mean, values.mean(dim=0))
    torch.testing.assert_close(encoder.scale, values.std(dim=0, correction=0))
    options = pretrain_options.model_copy(update={"steps": 1, "sd_prior": 50.0})
    pretrain(options, cohort.sources, cohort.expression, cohort.splits, "0", tmp_path)
    shrunk = mgi.load(tmp_path).gene_encoder.scale
    assert shrunk.std() < 0.5 * encoder.scale.std()


def test_shuffled_pairs_give_every_patient_the_genes_of_another_of_its_role(
    cohort, pretrain_options, tmp_path, monkeypatch
):
    seen = []
    monkeypatch.setattr(
        pre,
        "PatientBatches",
        lambda images, profiles, *rest: seen.append(profiles) or PatientBatches(images, profiles, *rest),
    )
    for genes in ("matched", "shuffled"):
        options = pretrain_options.model_copy(update={"genes": genes, "steps": 1})
        pretrain(options, cohort.sources, cohort.expression, cohort.splits, "0", tmp_path / genes)
    matched, shuffled = (profiles.row for profiles in seen)
    roles = read_roles(cohort.splits, "0")
    for role in ("train", "val"):
        cases = [case for case in roles[role] if case in matched]
        assert {shuffled[case] for case in cases} == {matched[case] for case in cases}
        assert all(shuffled[case] != matched[case] for case in cases)
    torch.testing.assert_close(
        mgi.load(tmp_path / "shuffled").gene_encoder.mean, mgi.load(tmp_path / "matched").gene_encoder.mean
    )


def test_too_few_validation_patients_keep_the_last_step_and_are_named(
    cohort, pretrain_options, tmp_path, caplog, monkeypatch
):
    kept = {}
    for least in (2, 3):
        monkeypatch.setattr(pre, "MIN_VAL_PATIENTS", least)
        score = (-1.0,) if least == 2 else None
        monkeypatch.setattr(pre, "_validate", lambda *_, score=score: (score, {}))
        pretrain(pretrain_options, cohort.sources, cohort.expression, cohort.splits, "0", tmp_path / str(least))
        kept[least] = mgi.load(tmp_path / str(least)).image_projection.weight
        assert ("2 paired validation patients: fewer than 3" in caplog.text) is (least == 3)
    assert not torch.equal(kept[2], kept[3])


def test_texture_is_whitened_over_the_paired_training_patients(cohort, pretrain_options, tmp_path):
    encoder = pretrain_options.image_encoder.model_copy(update={"texture": True})
    options = pretrain_options.model_copy(update={"steps": 1, "image_encoder": encoder})
    pretrain(options, cohort.sources, cohort.expression, cohort.splits, "0", tmp_path)
    images = read_images(cohort.sources, {case for case in CASES[:4] if case != UNPAIRED})
    statistics = measure_texture(torch.from_numpy(images.load(np.arange(18))).permute(0, 3, 1, 2) / 255)
    torch.testing.assert_close(mgi.load(tmp_path).image_encoder.texture_mean, statistics.mean(0), rtol=1e-4, atol=1e-5)


def test_model_describes_what_it_was_trained_on(pretrained):
    description = mgi.load(pretrained).description
    assert (description.kind, description.fold, description.image_px) == ("aligner", "0", 32)
    assert description.unit == "log2(TPM+1)" and description.mpp == pytest.approx(0.37)
    assert description.genes[0] == "ENSG00000000000" and len(description.genes) == len(description.gene_names) == 40


def test_fold_without_validation_patients_keeps_the_last_step_and_records_the_temperature(
    cohort, pretrain_options, tmp_path
):
    pretrain(pretrain_options, cohort.sources, cohort.expression, cohort.splits, "all", tmp_path)
    header, *rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert header == "step,loss,lr,images_per_second,temperature"
    assert len(rows) == 3 and float(rows[0].split(",")[4]) == pytest.approx(0.07, rel=0.05)
