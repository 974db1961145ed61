"""Ignored pixels of a mask: left out of the loss and of validation."""

import numpy as np
import pytest
import torch

import mgi.train.validation as validation
from mgi.codecs import encode_mask
from mgi.train.data import read_images
from mgi.train.decision import Decision
from mgi.train.device import Place
from mgi.train.finetune import ImageBatches
from mgi.train.profiles import NO_PROFILES
from mgi.train.validation import score
from tests.tables import CASES, PX

CPU = Place(torch.device("cpu"))


@pytest.fixture
def images(cohort):
    """Images whose left half is tumour and whose lowest quarter is ignored."""
    images = read_images(cohort.sources, set(CASES[:2]), labelled=True)
    mask, ignore = np.zeros((PX, PX), bool), np.zeros((PX, PX), bool)
    mask[:, : PX // 2], ignore[PX * 3 // 4 :] = True, True
    images.masks[:] = [encode_mask(mask, ignore)] * len(images)
    return images


def test_loss_does_not_depend_on_ignored_pixels(images, finetune_options):
    options = finetune_options(genes="none", augment="none")

    def loss(logits):
        return ImageBatches(images, NO_PROFILES, options, CPU).loss(lambda *inputs: logits, 0)

    logits = torch.randn(options.batch_images, PX, PX)
    other, counted = logits.clone(), logits.clone()
    other[:, PX * 3 // 4 :] = 100.0
    counted[:, 0] = 100.0
    assert loss(logits) == loss(other) != loss(counted)


def test_validation_does_not_count_ignored_pixels(images, monkeypatch):
    probability = np.full((len(images), PX, PX), 0.1, np.float32)
    probability[:, :, : PX // 2] = 0.9
    probability[:, PX * 3 // 4 :] = 0.9
    monkeypatch.setattr(
        validation, "predict_probabilities", lambda *inputs: iter([(np.arange(len(images)), probability)])
    )
    dice, loss = score(None, images, NO_PROFILES, (Decision(),), CPU)
    assert dice[0] == 1 and loss == pytest.approx(-np.log(0.9), rel=1e-5)


def test_probability_at_the_threshold_is_tumour(images, monkeypatch):
    probability = np.full((len(images), PX, PX), 0.25, np.float32)
    probability[:, :, : PX // 2] = 0.5
    monkeypatch.setattr(
        validation, "predict_probabilities", lambda *inputs: iter([(np.arange(len(images)), probability)])
    )
    assert score(None, images, NO_PROFILES, (Decision(0.5), Decision(0.25)), CPU)[0].tolist() == pytest.approx(
        [1, 2 / 3]
    )
