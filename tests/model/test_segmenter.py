"""The segmenter: shapes, what the gate and the presence of genes mean, and its loss."""

import pytest
import torch

from mgi.model.gene_encoder import GeneEncoder
from mgi.model.image_encoder import ImageEncoder
from mgi.model.segmenter import Segmenter, dice_cross_entropy

TINY_VIT = {"patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2}


def segmenter(vit: bool = True, genes: bool = True) -> Segmenter:
    torch.manual_seed(0)
    images = ImageEncoder("vit_tiny_patch16_224", 32, TINY_VIT) if vit else None
    encoder = GeneEncoder(30, 16, 1, stride=5) if genes else None
    return Segmenter([8, 16, 24], images, encoder).eval()


def batch(count: int = 3) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    patient = torch.tensor([0, 1, 1])[:count]
    return torch.rand(count, 3, 32, 32), torch.randn(2, 30), patient, torch.tensor([True, True])


@pytest.mark.parametrize("vit", [True, False])
@pytest.mark.parametrize("genes", [True, False])
def test_every_variant_gives_one_logit_per_pixel(vit, genes):
    assert segmenter(vit, genes)(*batch()).shape == (3, 32, 32)


def test_genes_change_the_mask_of_their_own_patient_only():
    model, (images, values, patient, present) = segmenter(), batch()
    changed = values.clone()
    changed[1] += 1
    difference = (model(images, values, patient, present) - model(images, changed, patient, present)).abs()
    assert difference[0].max() == 0
    assert difference[1:].amax(dim=(1, 2)).min() > 0


def test_without_a_profile_the_values_have_no_effect():
    model, (images, values, patient, _) = segmenter(), batch()
    absent = torch.tensor([False, False])
    assert torch.equal(model(images, values, patient, absent), model(images, values + 5, patient, absent))


def test_a_closed_gate_ignores_the_genes():
    model, (images, values, patient, present) = segmenter(), batch()
    torch.nn.init.zeros_(model.fusion.gate)
    torch.testing.assert_close(
        model(images, values, patient, present), model(images, values + 5, patient, present), rtol=0, atol=1e-6
    )


def test_that_genes_decide_which_texture_is_tumour_is_learnt_in_a_few_steps():
    """Upright stripes on one half, level ones on the other; twelve genes tell which are the tumour.

    The product of texture and genes is flat at the start: without a short way from the fusion to the logits the loss is
    still above 0.5 here.
    """
    torch.manual_seed(0)
    vit = ImageEncoder("vit_tiny_patch16_224", 32, {"patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 2})
    model = Segmenter([8, 16, 24], vit, GeneEncoder(60, 16, 1, stride=6, state_dim=4))
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.98))
    bits = torch.arange(24) % 2
    values = torch.randn(24, 60)
    values[:, :12] += torch.where(bits[:, None] == 0, -1.5, 1.5)
    x = torch.arange(32).expand(32, 32)
    present = torch.ones(12, dtype=torch.bool)
    losses = []
    for _ in range(40):
        chosen = torch.randint(0, 24, (12,))
        upright, level = ((torch.sin(torch.pi / 2 * at + 6 * torch.rand(12, 1, 1)) > 0).float() for at in (x, x.T))
        half = (x < 16) ^ torch.randint(0, 2, (12, 1, 1)).bool()
        images = (0.25 + 0.5 * torch.where(half, upright, level)).unsqueeze(1).expand(-1, 3, -1, -1)
        target = (half ^ bits[chosen].bool()[:, None, None]).float()
        loss = dice_cross_entropy(model(images, values[chosen], torch.arange(12), present), target)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 < 0.5 < losses[0]


def test_gradient_reaches_genes_and_vit_at_the_start():
    model = segmenter().train()
    dice_cross_entropy(model(*batch()), torch.ones(3, 32, 32)).backward()
    assert model.gene_encoder.direction.grad.abs().sum() > 0
    assert model.image_encoder.vit.patch_embed.proj.weight.grad.abs().sum() > 0


def test_loss_equals_dice_and_cross_entropy_worked_by_hand():
    logits = torch.tensor([[[0.0, 0.0], [0.0, 0.0]]])
    target = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    dice = (2 * 0.5 + 1) / (2.0 + 1.0 + 1)
    assert dice_cross_entropy(logits, target).item() == pytest.approx(1 - dice + 0.6931472, rel=1e-5)
