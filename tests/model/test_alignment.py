"""The contrastive loss against its definition in plain Python."""

import math

import pytest
import torch
import torch.nn.functional as F

from mgi.model.alignment import Aligner, BagPooling, symmetric_info_nce
from mgi.model.gene_encoder import GeneEncoder
from mgi.model.image_encoder import ImageEncoder
from tests.model.test_segmenter import TINY_VIT


def definition(images, genes, patient, scale):
    """Compute the loss as its docstring defines it, one logarithm at a time, in float64."""
    similarity = [[scale * sum(a * b for a, b in zip(i, g, strict=True)) for g in genes] for i in images]
    to_gene = [
        -math.log(math.exp(row[p]) / sum(map(math.exp, row))) for row, p in zip(similarity, patient, strict=True)
    ]
    to_image = []
    for p in range(len(genes)):
        total = sum(math.exp(row[p]) for row in similarity)
        own = [math.log(math.exp(row[p]) / total) for row, q in zip(similarity, patient, strict=True) if q == p]
        to_image.append(-sum(own) / len(own))
    return (sum(to_gene) / len(to_gene) + sum(to_image) / len(to_image)) / 2


@pytest.mark.parametrize("patient", [[0, 1, 2], [0, 0, 1, 2, 2, 2], [2, 1, 0, 0]])
def test_loss_equals_its_definition_with_several_images_of_a_patient(patient):
    torch.manual_seed(1)
    images = F.normalize(torch.randn(len(patient), 5), dim=-1)
    genes = F.normalize(torch.randn(3, 5), dim=-1)
    loss = symmetric_info_nce(images, genes, torch.tensor(patient), torch.tensor(7.0))
    expected = definition(images.double().tolist(), genes.double().tolist(), patient, 7.0)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_loss_is_computed_in_float32_under_autocast():
    torch.manual_seed(2)
    images, genes = (F.normalize(torch.randn(count, 64), dim=-1) for count in (12, 6))
    patient = torch.arange(6).repeat_interleave(2)
    expected = symmetric_info_nce(images, genes, patient, torch.tensor(90.0))
    with torch.autocast("cpu", torch.bfloat16):
        loss = symmetric_info_nce(images, genes, patient, torch.tensor(90.0))
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.fixture
def aligner() -> Aligner:
    torch.manual_seed(3)
    return make_aligner()


def make_aligner(bags: bool = True) -> Aligner:
    genes, images = GeneEncoder(20, 16, 1, stride=5), ImageEncoder("vit_tiny_patch16_224", 32, TINY_VIT)
    return Aligner(genes, images, 8, bags).eval()


BATCH = (torch.rand(4, 3, 32, 32), torch.randn(2, 20), torch.tensor([0, 0, 1, 1]))


def test_temperature_starts_at_that_of_clip(aligner):
    assert aligner.logit_scale.exp().item() == pytest.approx(1 / 0.07)


def test_embeddings_are_projected_pooled_vectors_of_unit_length(aligner):
    images, values, _ = BATCH
    vectors = aligner.image_encoder(images) @ aligner.image_projection.weight.T
    torch.testing.assert_close(aligner.embed_images(images), vectors / vectors.norm(dim=-1, keepdim=True))
    vectors = aligner.gene_encoder(values)[1] @ aligner.gene_projection.weight.T
    torch.testing.assert_close(aligner.embed_genes(values), vectors / vectors.norm(dim=-1, keepdim=True))
    assert aligner.gene_projection.bias is None and aligner.image_projection.bias is None


@pytest.mark.parametrize("bags", [True, False])
def test_forward_is_the_loss_of_bags_or_images_at_the_learnt_temperature(bags):
    torch.manual_seed(3)
    model, (images, values, patient) = make_aligner(bags), BATCH
    torch.nn.init.constant_(model.logit_scale, 1.0)
    vectors, owner = model.embed_images(images), patient
    if bags:
        torch.nn.init.normal_(model.bag_pooling.score.weight)
        vectors, owner = model.pool_bags(model.project_images(images), patient, 2), torch.arange(2)
    expected = symmetric_info_nce(vectors, model.embed_genes(values), owner, torch.tensor(math.e))
    torch.testing.assert_close(model(images, values, patient), expected)


def test_bag_pooling_equals_gated_attention_within_each_bag():
    torch.manual_seed(4)
    pooling, vectors, bag = BagPooling(6), torch.randn(7, 6), torch.tensor([1, 0, 1, 2, 0, 1, 2])
    torch.testing.assert_close(
        pooling(vectors, bag, 3), torch.stack([vectors[bag == index].mean(0) for index in range(3)])
    )
    torch.nn.init.normal_(pooling.score.weight)
    expected = []
    for index in range(3):
        own = vectors[bag == index]
        content = (own @ pooling.content.weight.T + pooling.content.bias).tanh()
        gate = (own @ pooling.gate.weight.T + pooling.gate.bias).sigmoid()
        scores = [math.exp((pooling.score.weight[0] @ row).item()) for row in content * gate]
        expected.append(sum(score * row for score, row in zip(scores, own, strict=True)) / sum(scores))
    torch.testing.assert_close(pooling(vectors, bag, 3), torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_bags_without_attention_average_unit_vectors():
    vectors = torch.tensor([[3.0, 0.0], [0.0, 100.0], [0.0, -5.0]])
    model = make_aligner(bags=False)
    pooled = model.pool_bags(vectors, torch.tensor([0, 0, 1]), 2)
    torch.testing.assert_close(pooled, torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, -1.0]]))


def test_gene_dropout_reaches_the_encoder(aligner):
    images, values, patient = BATCH
    expected = aligner(images, torch.zeros_like(values), patient)
    torch.testing.assert_close(aligner(images, values, patient, gene_dropout=0.999999), expected)


def test_logit_scale_above_its_limit_is_clamped_and_still_learns(aligner):
    torch.nn.init.constant_(aligner.logit_scale, 6.0)
    aligner(*BATCH).backward()
    assert aligner.logit_scale.grad.abs() > 0
    aligner.limit_logit_scale()
    assert aligner.logit_scale.item() == pytest.approx(math.log(100))


def test_logit_scale_below_its_limit_is_kept(aligner):
    torch.nn.init.constant_(aligner.logit_scale, -2.0)
    aligner.limit_logit_scale()
    assert aligner.logit_scale.item() == -2.0


def test_matched_pairs_lose_less_than_mismatched_ones():
    vectors = torch.eye(4)
    patient = torch.arange(4)
    scale = torch.tensor(10.0)
    matched = symmetric_info_nce(vectors, vectors, patient, scale)
    assert matched < symmetric_info_nce(vectors, vectors.roll(1, 0), patient, scale)
