"""The segmenter: its forward pass written out, what the gate and the presence of genes mean, and its loss."""

import math

import pytest
import torch
import torch.nn.functional as F

from mgi.model.backbone import convolutions
from mgi.model.gene_encoder import GeneEncoder
from mgi.model.image_encoder import ImageEncoder
from mgi.model.segmenter import GeneAttention, Segmenter, dice_cross_entropy

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


def perturb(module: torch.nn.Module) -> None:
    """Move every parameter, so that none that starts at 0 or 1 can be left out unnoticed."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))


def attend(module: GeneAttention, tokens: torch.Tensor, genes: torch.Tensor) -> torch.Tensor:
    """Compute the fusion of one image, its patient's genes present, head by head."""
    dim, width = tokens.shape[1], tokens.shape[1] // module.heads
    query = module.query(F.layer_norm(tokens, (dim,), module.image_norm.weight, module.image_norm.bias))
    key_value = module.key_value(genes)
    attended = []
    for head in range(module.heads):
        part = slice(head * width, (head + 1) * width)
        key, value = key_value[:, part], key_value[:, dim:][:, part]
        attended.append((query[:, part] @ key.T / math.sqrt(width)).softmax(dim=-1) @ value)
    scale_shift = module.output(module.attended_norm(torch.cat(attended, dim=-1)))
    tokens = tokens + module.gate * (scale_shift[:, :dim] * tokens + scale_shift[:, dim:])
    return tokens + module.mlp(module.mlp_norm(tokens))


def test_gene_attention_equals_its_definition():
    torch.manual_seed(0)
    module = GeneAttention(24, 16)
    perturb(module)
    tokens, genes = torch.randn(2, 5, 24), torch.randn(2, 7, 16)
    found = module(tokens, genes, torch.tensor([True, False]))
    torch.testing.assert_close(found[0], attend(module, tokens[0], genes[0]))
    fused = tokens[1] + module.gate * (module.absent[:24] * tokens[1] + module.absent[24:])
    torch.testing.assert_close(found[1], fused + module.mlp(module.mlp_norm(fused)))


def test_genes_enter_at_full_strength():
    torch.manual_seed(0)
    module = GeneAttention(64, 16)
    assert module.heads == 4 and torch.equal(module.gate.data, torch.ones(64))
    assert module.output.weight.std().item() == pytest.approx(1 / 8, rel=0.05)


@pytest.mark.parametrize(("width", "groups"), [(24, 8), (12, 4), (6, 2), (5, 1)])
def test_convolutions_are_normed_in_groups_that_divide_the_width(width, groups):
    layers = convolutions(3, width)
    assert [type(layer).__name__ for layer in layers] == 2 * ["Conv2d", "GroupNorm", "ReLU"]
    assert layers[1].num_groups == layers[4].num_groups == groups
    assert layers[0].in_channels == 3 and layers[3].in_channels == width and layers[0].bias is None


@pytest.mark.parametrize("vit", [True, False])
@pytest.mark.parametrize("genes", [True, False])
def test_logits_equal_the_network_written_out(vit, genes):
    model, (images, values, patient, present) = segmenter(vit, genes), batch()
    perturb(model)
    full = F.relu(model.path.stem(2 * images - 1))
    half = model.path.down[0](F.avg_pool2d(full, 2))
    x = model.path.down[1](F.avg_pool2d(half, 2))
    if vit:
        context = model.from_vit(model.image_encoder.feature_map(images))
        x = x + F.interpolate(context, size=(8, 8), mode="bilinear", align_corners=False)
    if genes:
        tokens = model.gene_encoder(values)[0][patient]
        fused = [attend(model.fusion, image.flatten(1).T, own) for image, own in zip(x, tokens, strict=True)]
        x = torch.stack([image.T.unflatten(1, (8, 8)) for image in fused])
    coarse = F.interpolate(model.coarse_head(x), size=(32, 32), mode="bilinear", align_corners=False)
    x = model.up[0](half + model.reduce[0](x).repeat_interleave(2, 2).repeat_interleave(2, 3))
    x = model.up[1](full + model.reduce[1](x).repeat_interleave(2, 2).repeat_interleave(2, 3))
    expected = (model.head(x) + coarse)[:, 0]
    found = model(images, values, patient, present)
    assert found.shape == (3, 32, 32)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_genes_encoded_once_serve_every_image_of_a_patient():
    model, (images, values, patient, present) = segmenter(), batch()
    tokens = model.encode_genes(values)
    assert torch.equal(model.segment(images, tokens, patient, present), model(images, values, patient, present))
    assert segmenter(genes=False).encode_genes(values) is None


def test_gene_dropout_reaches_the_encoder():
    model, (images, values, patient, present) = segmenter(), batch()
    dropped = model(images, values, patient, present, gene_dropout=0.999999)
    torch.testing.assert_close(dropped, model(images, torch.zeros_like(values), patient, present))


def test_genes_change_the_mask_of_their_own_patient_only():
    model, (images, values, patient, present) = segmenter(), batch()
    changed = values.clone()
    changed[1] += 1
    difference = (model(images, values, patient, present) - model(images, changed, patient, present)).abs()
    assert difference[0].max() == 0
    assert difference[1:].amax(dim=(1, 2)).min() > 0


def test_values_of_a_missing_profile_have_no_effect():
    model, (images, values, patient, _) = segmenter(), batch()
    absent = torch.tensor([False, False])
    assert torch.equal(model(images, values, patient, absent), model(images, values + 5, patient, absent))


def test_closed_gate_ignores_the_genes_until_they_help():
    open_model, (images, values, patient, present) = segmenter(), batch()
    model = Segmenter([8, 16, 24], open_model.image_encoder, open_model.gene_encoder, gene_gate=0.0)
    dice_cross_entropy(model(images, values, patient, present), torch.ones(3, 32, 32)).backward()
    assert model.fusion.gate.grad.abs().min() > 0
    torch.testing.assert_close(
        model(images, values, patient, present), model(images, values + 5, patient, present), rtol=0, atol=1e-6
    )


def test_learns_in_a_few_steps_that_genes_decide_which_texture_is_tumour():
    """Vertical stripes on one half, horizontal ones on the other; twelve genes decide which are the tumour.

    The product of texture and genes is flat at the start: without a short path from the fusion to the logits the loss
    is still above 0.5 here.
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
        drawn = torch.randint(0, 24, (12,))
        vertical, horizontal = (
            (torch.sin(torch.pi / 2 * at + 6 * torch.rand(12, 1, 1)) > 0).float() for at in (x, x.T)
        )
        half = (x < 16) ^ torch.randint(0, 2, (12, 1, 1)).bool()
        images = (0.25 + 0.5 * torch.where(half, vertical, horizontal)).unsqueeze(1).expand(-1, 3, -1, -1)
        target = (half ^ bits[drawn].bool()[:, None, None]).float()
        loss = dice_cross_entropy(model(images, values[drawn], torch.arange(12), present), target)
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


def test_loss_equals_dice_plus_cross_entropy_by_hand():
    logits = torch.tensor([[[0.0, 0.0], [0.0, 0.0]]])
    target = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    dice = (2 * 0.5 + 1) / (2.0 + 1.0 + 1)
    assert dice_cross_entropy(logits, target).item() == pytest.approx(1 - dice + 0.6931472, rel=1e-5)


def test_loss_of_a_certain_and_right_prediction_is_zero_also_without_tumour():
    for target in (torch.zeros(1, 4, 4), torch.ones(1, 4, 4)):
        assert dice_cross_entropy(200 * target - 100, target).item() == pytest.approx(0, abs=1e-6)


def test_dice_is_pooled_over_the_batch():
    logits = torch.tensor([[[100.0]], [[-100.0]]])
    target = torch.tensor([[[1.0]], [[1.0]]])
    assert dice_cross_entropy(logits, target).item() == pytest.approx(1 - (2 + 1) / (1 + 2 + 1) + 50, rel=1e-5)


def test_null_profile_starts_as_nothing_and_stands_in_for_missing_genes_only():
    fusion = GeneAttention(8, 12)
    tokens, genes, present = torch.randn(2, 5, 8), torch.randn(2, 3, 12), torch.tensor([True, False])
    plain = tokens + fusion.mlp(fusion.mlp_norm(tokens))
    torch.testing.assert_close(fusion(tokens, genes, present)[1], plain[1])
    fusion(tokens, genes, torch.tensor([True, True])).sum().backward()
    assert not fusion.absent.grad.any()
    fusion(tokens, genes, present).square().sum().backward()
    assert fusion.absent.grad.all()
    with torch.no_grad():
        before = fusion(tokens, genes, present)
        fusion.absent.normal_()
        after = fusion(tokens, genes, present)
    assert after[0].equal(before[0]) and not after[1].equal(before[1])


def test_prediction_is_the_mean_over_an_image_and_its_mirror_image():
    model, (images, values, patient, present) = segmenter(), batch()
    genes = model.encode_genes(values)
    plain = model.segment(images, genes, patient, present).sigmoid()
    mirrored = model.segment(images.flip(3), genes, patient, present).sigmoid().flip(2)
    assert torch.equal(model.predict(images, genes, patient, present), plain)
    model.average_flips = True
    assert torch.allclose(model.predict(images, genes, patient, present), (plain + mirrored) / 2)
    assert not torch.allclose(plain, mirrored)


def test_neighbours_are_seen_by_the_convolutions_and_not_by_the_vit():
    torch.manual_seed(0)
    vit = ImageEncoder("vit_tiny_patch16_224", 32, TINY_VIT)
    model = Segmenter([8, 16, 24], vit, neighbours=1).eval()
    seen: list[torch.Tensor] = []
    vit.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    vit.feature_map, own = lambda images: seen.append(images) or own(images), vit.feature_map
    images = torch.rand(2, 9, 32, 32)
    rest = (None, torch.zeros(2, dtype=torch.int64), torch.ones(1, dtype=torch.bool))
    first = model.segment(images, *rest)
    changed = images.clone()
    changed[:, 3:] = 0
    assert not torch.allclose(model.segment(changed, *rest), first)
    assert all(torch.equal(given, images[:, :3]) for given in seen) and seen
