"""Cached gradients: a batch encoded in parts has the gradient of the whole batch."""

import pytest
import torch

import mgi
from mgi.train import pretrain as pre
from mgi.train.batches import to_tensor
from mgi.train.data import read_images
from mgi.train.device import Place
from mgi.train.gradients import backward_in_parts
from mgi.train.pretrain import PatientBatches
from mgi.train.profiles import read_profiles
from tests.tables import CASES

CPU = Place(torch.device("cpu"))


@pytest.mark.parametrize("bags", [True, False])
@pytest.mark.parametrize("size", [1, 2, 4, 5, 100])
def test_micro_batches_have_the_gradient_of_the_whole_batch(
    size, bags, cohort, pretrained, pretrain_options, monkeypatch
):
    images, profiles = read_images(cohort.sources, set(CASES)), read_profiles(cohort.expression)
    # Encoded in float64: in float32 parts and whole are rounded differently.
    monkeypatch.setattr(pre, "to_tensor", lambda *given: to_tensor(*given).double())

    def gradient(micro_batch):
        options = pretrain_options.model_copy(update={"micro_batch": micro_batch, "gene_dropout": 0.0, "bags": bags})
        model = mgi.load(pretrained).double()
        if bags:
            torch.nn.init.constant_(model.bag_pooling.float().score.weight, 1.0)
        else:
            model.bag_pooling = None
        loss = PatientBatches(images, profiles, CASES[:3], options, CPU).backward(model, 1)
        return loss, {name: value.grad for name, value in model.named_parameters() if value.grad is not None}

    whole, parts = gradient(None), gradient(size)
    torch.testing.assert_close(parts[0], whole[0], rtol=1e-5, atol=1e-6)
    assert parts[1].keys() == whole[1].keys() and "logit_scale" in whole[1]
    for name in whole[1]:
        torch.testing.assert_close(parts[1][name], whole[1][name], rtol=1e-5, atol=1e-5)


def test_parts_draw_the_same_random_numbers_twice():
    weight = torch.randn(4, 3, requires_grad=True)
    inputs = torch.randn(6, 4)
    drawn = []

    def encode(part):
        mask = (torch.rand(len(part), 3) < 0.5).float()
        drawn.append(mask)
        return (part @ weight) * mask

    torch.manual_seed(1)
    loss = backward_in_parts(
        [[lambda part=part: encode(part) for part in inputs.split(2)]], lambda rows: rows.sum() ** 2, CPU.device
    )
    assert len(drawn) == 6 and all(first.equal(second) for first, second in zip(drawn[:3], drawn[3:], strict=True))
    expected = ((inputs @ weight) * torch.cat(drawn[:3])).sum() ** 2
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(weight.grad, torch.autograd.grad(expected, weight)[0])
