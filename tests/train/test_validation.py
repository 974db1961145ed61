"""What validation measures, selects and records."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mgi.config import PretrainOptions
from mgi.errors import CohortError
from mgi.train import finetune as fine
from mgi.train import pretrain as pre
from mgi.train.data import read_images
from mgi.train.decision import DECISIONS, SERIES_DECISIONS, Decision
from mgi.train.device import Place
from mgi.train.finetune import finetune
from mgi.train.loop import TrainingRun, learning_rate
from mgi.train.pretrain import PatientBatches
from mgi.train.profiles import NO_PROFILES, read_profiles
from mgi.train.validation import effective_rank
from tests.tables import CASES, IMAGES, TINY

CPU = Place(torch.device("cpu"))


class Rigged(torch.nn.Module):
    """An aligner whose embeddings of patients 4 and 5 are given."""

    def __init__(self, images: torch.Tensor, genes: torch.Tensor) -> None:
        super().__init__()
        self.images, self.genes = images, genes
        self.logit_scale = torch.nn.Parameter(torch.tensor(math.log(2.0)))

    def project_images(self, pictures):
        return self.images[: len(pictures)]

    def embed_genes(self, values):
        return self.genes[: len(values)]


def test_recall_is_the_share_of_images_whose_own_genes_are_nearest(cohort, monkeypatch):
    monkeypatch.setattr(pre, "MIN_VAL_PATIENTS", 2)
    options = PretrainOptions(**TINY, bags=False)
    batches = PatientBatches(
        read_images(cohort.sources, set(CASES[4:6])), read_profiles(cohort.expression), CASES[4:6], options, CPU
    )
    # Of the first patient's six images four lie with its genes, of the second's five.
    east, north = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    images = torch.stack([east] * 4 + [north] * 2 + [north] * 5 + [east])
    model = Rigged(images, torch.stack([east, north]))
    score, measured = pre._validate(model, batches, CASES[4:6])
    assert measured["val_recall"] == pytest.approx(9 / 12)
    assert measured["temperature"] == pytest.approx(0.5)
    assert measured["val_rank"] == pytest.approx(effective_rank(images))
    # By hand: logits are 2 for the nearest genes and 0 for the others.
    right, wrong = 2 - math.log(math.exp(2) + 1), -math.log(math.exp(2) + 1)
    image_to_gene = -(9 * right + 3 * wrong) / 12
    first, second = math.log(5 * math.exp(2) + 7), math.log(7 * math.exp(2) + 5)
    gene_to_image = -((4 * 2 / 6 - first) + (5 * 2 / 6 - second)) / 2
    assert measured["val_loss"] == pytest.approx((image_to_gene + gene_to_image) / 2, rel=1e-5)
    assert score == (-measured["val_loss"],)


def test_loss_of_bags_is_that_of_the_patients(cohort, monkeypatch):
    monkeypatch.setattr(pre, "MIN_VAL_PATIENTS", 2)
    images, profiles = read_images(cohort.sources, set(CASES[4:6])), read_profiles(cohort.expression)
    batches = PatientBatches(images, profiles, CASES[4:6], PretrainOptions(**TINY), CPU)
    east, north = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    model = Rigged(torch.stack([east] * 6 + [north] * 6), torch.stack([east, north]))
    model.pool_bags = lambda vectors, bag, bags: vectors[:bags]
    score, measured = pre._validate(model, batches, CASES[4:6])
    assert measured["val_loss"] == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-5)
    assert measured["val_recall"] == 1 and score == (-measured["val_loss"],)
    monkeypatch.setattr(pre, "MIN_VAL_PATIENTS", 3)
    assert pre._validate(model, batches, CASES[4:6]) == (None, measured)


@pytest.mark.parametrize(("losses", "warned"), [([1.2, 0.7], True), ([0.68, 1.2], False), ([], False)])
def test_warns_where_validation_is_never_better_than_knowing_nothing(losses, warned, caplog):
    pre._warn_of_no_learning([{"val_loss": loss} for loss in losses], 2, 2)
    assert ("0.693 without any knowledge" in caplog.text) is warned


def test_one_held_out_patient_selects_nothing(cohort):
    options = PretrainOptions(**TINY)
    batches = PatientBatches(
        read_images(cohort.sources, set(CASES[:5])), read_profiles(cohort.expression), CASES[:3], options, CPU
    )
    model = Rigged(torch.eye(2), torch.eye(2))
    assert pre._validate(model, batches, [CASES[4]])[0] is None
    assert pre._validate(model, batches, ["TCGA-ZZ-9999"])[0] is None


def test_held_out_images_are_spread_and_belong_to_their_patients(cohort, monkeypatch):
    monkeypatch.setattr(pre, "VAL_IMAGES_PER_PATIENT", 3)
    images = read_images(cohort.sources, set(CASES[4:6]))
    batches = PatientBatches(images, read_profiles(cohort.expression), CASES[4:6], PretrainOptions(**TINY), CPU)
    cases, rows, patient = batches.select_held_out([CASES[5], "TCGA-ZZ-9999", CASES[4]])
    assert cases == [CASES[5], CASES[4]] and patient.tolist() == [0, 0, 0, 1, 1, 1]
    assert images.frame.case_id[rows].tolist() == [CASES[5]] * 3 + [CASES[4]] * 3
    assert images.frame.z[rows].tolist() == [0, 2, 5] * 2


def test_effective_rank():
    assert effective_rank(torch.eye(5)) == pytest.approx(5)
    assert effective_rank(torch.ones(6, 4)) == pytest.approx(1)
    assert effective_rank(torch.zeros(3, 3)) == pytest.approx(1)
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(
        math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    )


@pytest.mark.parametrize(("series", "decision"), [(False, Decision(0.7, 0.3)), (True, Decision(0.5, 0.1, True, 2.5))])
def test_step_is_chosen_by_the_best_dice_of_any_decision_and_then_by_the_loss(series, decision, monkeypatch):
    candidates = SERIES_DECISIONS if series else DECISIONS
    monkeypatch.setattr(
        fine, "score", lambda model, val, profiles, asked, place: (
            np.array([0.9 if each == decision else 0.1 for each in asked]) if asked == candidates else None, 0.25
        ),
    )  # fmt: skip
    score, measured = fine._validate(None, SimpleNamespace(has_series=series), None, CPU)
    assert score == (0.9, -0.25)
    chosen = {"threshold": decision.threshold, "min_component": decision.min_component}
    chosen["temperature"] = decision.temperature
    assert measured == {"val_loss": 0.25, "val_dice": 0.9} | {f"val_{key}": value for key, value in chosen.items()}


@pytest.mark.parametrize(
    ("scores", "kept"),
    [([(0.2,), (0.5,), (0.4,)], 4), ([(0.5,), (0.5,), (0.4,)], 2), ([(0.5, -3), (0.5, -1), (0.5, -2)], 4),
     ([None, None, None], 6)],
)  # fmt: skip
def test_run_keeps_the_weights_of_the_highest_score(scores, kept, finetune_options, tmp_path, monkeypatch):
    clock = iter(np.arange(0, 100, 0.5))
    monkeypatch.setattr("mgi.train.loop.time.perf_counter", lambda: next(clock))

    class Counter(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

    model, states, given = Counter(), {}, iter(scores)
    options = finetune_options()
    run = TrainingRun(model, options, {}, tmp_path, [{"params": [model.weight], "lr_scale": 1.0}], 4)

    def backward(step):
        states[step] = model.weight.item()
        loss = (model.weight - 5).square().sum()
        loss.backward()
        return loss.detach()

    def validate():
        assert not model.training
        states[run.step] = model.weight.item()
        return next(given), {}

    run.train(0, backward, validate)
    assert model.weight.item() == states[kept] and not model.training
    assert len(set(states.values())) == 7
    assert [row["step"] for row in run.history] == [2, 4, 6]
    assert run.history[0]["loss"] == pytest.approx(((states[0] - 5) ** 2 + (states[1] - 5) ** 2) / 2)
    assert run.history[1]["lr"] == pytest.approx(learning_rate(3, options))
    assert [row["images_per_second"] for row in run.history] == [8, 8, 8], "four images in each half second"


def test_gradient_is_clipped_and_encoders_learn_at_their_own_rate(finetune_options, tmp_path):
    model = torch.nn.ParameterDict({"a": torch.nn.Parameter(torch.zeros(1)), "b": torch.nn.Parameter(torch.zeros(1))})
    groups = [{"params": [model["a"]], "lr_scale": 1.0}, {"params": [model["b"]], "lr_scale": 0.25}]
    options = finetune_options(steps=1, val_every=1, lr=1e-2, warmup_steps=0)
    run, norms = TrainingRun(model, options, {}, tmp_path, groups, 1), []
    run.optimiser.register_step_pre_hook(
        lambda *_: norms.append(torch.stack([value.grad for value in model.values()]).norm().item())
    )

    def backward(step):
        loss = 300 * model["a"].sum() + 400 * model["b"].sum()
        loss.backward()
        return loss.detach()

    run.train(0, backward, None)
    assert norms == [pytest.approx(1.0, rel=1e-4)]
    assert model["a"].item() == pytest.approx(-1e-2, rel=1e-3)
    assert model["b"].item() == pytest.approx(-0.25e-2, rel=1e-3)


def test_rejects_validation_patients_without_tumour(cohort, finetune_options, tmp_path, monkeypatch):
    def read(options, sources, cases):
        images = read_images(sources, set(cases), True)
        images.positive[:] = cases != CASES[4:6]
        return images

    monkeypatch.setattr(fine, "_read_labelled", read)
    with pytest.raises(CohortError, match="no validation image of fold 0 has tumour"):
        finetune(finetune_options(), cohort.sources, cohort.expression, cohort.splits, "0", None, tmp_path)


def test_rejects_training_patients_without_tumour(cohort, finetune_options, tmp_path, monkeypatch):
    def read(options, sources, cases):
        images = read_images(sources, set(cases), True)
        images.positive[:] = False
        return images

    monkeypatch.setattr(fine, "_read_labelled", read)
    with pytest.raises(CohortError, match="no training image of fold 0 has tumour"):
        finetune(finetune_options(), cohort.sources, cohort.expression, cohort.splits, "0", None, tmp_path)


@pytest.mark.parametrize(("fraction", "positives"), [(0.0, None), (0.5, 4), (1.0, 8)])
def test_batches_draw_the_share_of_images_with_tumour(fraction, positives, cohort, finetune_options):
    images = read_images(cohort.sources, set(CASES[:4]), True)
    options = finetune_options(batch_images=8, positive_fraction=fraction, augment="none")
    rows, pictures, masks, dropped, _ = fine.ImageBatches(images, NO_PROFILES, options, CPU)._draw(0)
    assert len(rows) == 8 and not len(dropped)
    assert (pictures == images.load(rows)).all() and (masks == images.load_masks(rows)).all()
    if positives is not None:
        assert images.positive[rows[:positives]].all()


def test_patients_are_dropped_whole_at_the_given_rate(cohort, finetune_options):
    images, profiles = read_images(cohort.sources, set(CASES[:4]), True), read_profiles(cohort.expression)
    seen = []

    def model(inputs, values, patient, present, gene_dropout):
        seen.append(present)
        return torch.zeros(len(inputs), *inputs.shape[2:], requires_grad=True)

    batches = fine.ImageBatches(images, profiles, finetune_options(steps=200, patient_dropout=0.25), CPU)
    unpaired = 0
    for step in range(200):
        batches.loss(model, step)
        rows, *_ = batches._draw(step)
        unpaired += CASES[3] in images.frame.case_id[rows].tolist()
    present = torch.cat(seen)
    paired = len(present) - unpaired
    assert present.float().sum().item() / paired == pytest.approx(0.75, abs=0.06)


def test_profiles_of_a_batch_belong_to_its_images(cohort, finetune_options):
    images, profiles = read_images(cohort.sources, set(CASES[:4]), True), read_profiles(cohort.expression)
    batches = fine.ImageBatches(images, profiles, finetune_options(augment="none"), CPU)
    given = []

    def model(inputs, values, patient, present, gene_dropout):
        given.append((inputs, values[patient], present[patient], gene_dropout))
        return torch.zeros(len(inputs), *inputs.shape[2:], requires_grad=True)

    batches.loss(model, 2)
    rows = batches._draw(2)[0]
    inputs, values, present, gene_dropout = given[0]
    expected, paired = profiles.of(images.frame.case_id[rows].tolist())
    assert values[paired].equal(expected[paired]) and present.equal(paired)
    np.testing.assert_allclose(inputs.permute(0, 2, 3, 1).numpy() * 255, images.load(rows), atol=1e-3)
    assert gene_dropout == pytest.approx(0.3) and len(images) == 4 * IMAGES
