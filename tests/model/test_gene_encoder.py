"""The gene encoder: standardisation, tokens, order, kinds, pooling, dropped genes."""

import pytest
import torch
import torch.nn.functional as F

from mgi.model.gene_encoder import Attention, GeneEncoder

KINDS = ["mamba", "transformer", "mlp", "linear"]
GENES = 23


def encoder(**options) -> GeneEncoder:
    torch.manual_seed(0)
    return GeneEncoder(**({"n_genes": GENES, "dim": 16, "depth": 2, "stride": 5} | options))


def profiles(count: int = 3, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, GENES, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("kind", "tokens"), [("mamba", 5), ("transformer", 5), ("mlp", 1), ("linear", 1)])
def test_every_kind_returns_tokens_and_their_mean(kind, tokens):
    found, pooled = encoder(kind=kind)(profiles())
    assert found.shape == (3, tokens, 16)
    assert torch.equal(pooled, found.mean(dim=1))


@pytest.mark.parametrize("kind", KINDS)
def test_every_gene_and_every_parameter_matters(kind):
    model = encoder(kind=kind, bidirectional=True)
    values = profiles().requires_grad_()
    tokens, pooled = model(values)
    weights = torch.linspace(-1, 1, tokens.numel()).view(tokens.shape)
    ((tokens * weights).sum() + (pooled * weights[:, 0]).sum()).backward()
    assert (values.grad.abs().amax(dim=0) > 0).all()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_patients_do_not_see_each_other(kind):
    model, values = encoder(kind=kind), profiles()
    torch.testing.assert_close(model(values)[0][1:2], model(values[1:2])[0])


def test_token_is_the_sum_of_embeddings_plus_values_along_directions():
    model, values = encoder(stride=4), profiles(2)
    token = model._make_tokens(values, None)[1, 2]
    genes = slice(8, 12)
    expected = model.embedding[genes].sum(0) + (values[1, genes, None] * model.direction[genes]).sum(0)
    torch.testing.assert_close(token, expected)


def test_last_token_has_the_remaining_genes():
    model, values = encoder(stride=5), profiles(1)
    expected = model.embedding[20:].sum(0) + (values[0, 20:, None] * model.direction[20:]).sum(0)
    torch.testing.assert_close(model._make_tokens(values, None)[0, 4], expected)


def test_variance_of_a_token_does_not_depend_on_the_stride():
    torch.manual_seed(0)
    for stride in (1, 25):
        model = GeneEncoder(500, 64, 1, stride=stride)
        tokens = model._make_tokens(torch.randn(8, 500), None)
        assert tokens.std().item() == pytest.approx(1.0, rel=0.05)


def test_blocks_are_prenormed_residuals_in_turn():
    model, values = encoder(kind="mamba", bidirectional=True), profiles()
    x = model._make_tokens(values, None)
    for norm, block, back in zip(model.norms, model.blocks, model.reverse_blocks, strict=True):
        normed = norm(x)
        x = x + block(normed) + back(normed.flip(1)).flip(1)
    torch.testing.assert_close(model(values)[0], model.norm(x))
    assert len(model.blocks) == 2


def test_transformer_equals_pytorchs_own_layer():
    model, values = encoder(kind="transformer", depth=1, dim=64), profiles()
    peer = torch.nn.TransformerEncoderLayer(64, 2, 256, 0.0, "gelu", batch_first=True, norm_first=True)
    attention, feed_forward = model.blocks
    peer.self_attn.in_proj_weight.data = attention.query_key_value.weight.data
    peer.self_attn.in_proj_bias.data = attention.query_key_value.bias.data
    peer.self_attn.out_proj.load_state_dict(attention.output.state_dict())
    peer.linear1.load_state_dict(feed_forward[0].state_dict())
    peer.linear2.load_state_dict(feed_forward[2].state_dict())
    expected = model.norm(peer(model._make_tokens(values, None)))
    torch.testing.assert_close(model(values)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dim", "heads"), [(8, 1), (32, 1), (64, 2), (100, 1), (128, 4)])
def test_heads_divide_the_width(dim, heads):
    assert Attention(dim).heads == heads


def test_mlp_and_linear_equal_their_matrices():
    values = profiles()
    model = encoder(kind="linear")
    (layer,) = model.network
    torch.testing.assert_close(model(values)[0][:, 0], values @ layer.weight.T + layer.bias)
    model = encoder(kind="mlp", depth=2)
    a, _, b, _, c = model.network
    assert (a.out_features, b.out_features, c.out_features) == (64, 64, 16)
    torch.testing.assert_close(model(values)[0][:, 0], model.norm(c(F.gelu(b(F.gelu(a(values)))))))


def test_mamba_sees_only_earlier_genes_and_other_kinds_and_both_directions_all():
    values = profiles(1)
    changed = values.clone()
    changed[0, 20] += 3
    for options, expected in (({}, False), ({"bidirectional": True}, True), ({"kind": "transformer"}, True)):
        model = encoder(**options)
        difference = model(values)[0][0, 0] - model(changed)[0][0, 0]
        assert bool(difference.abs().max() > 1e-7) is expected


def test_genomic_order_is_that_of_the_table():
    model, values = encoder(stride=1), profiles(1)
    assert not torch.allclose(model(values)[1], model(values.flip(1))[1], atol=1e-4)


def test_fixed_shuffle_is_one_permutation_saved_with_the_model():
    model, values = encoder(order="shuffled-fixed", stride=4), profiles()
    assert torch.equal(model.permutation.sort().values, torch.arange(GENES))
    assert not torch.equal(model.permutation, torch.arange(GENES))
    torch.manual_seed(9)
    other = GeneEncoder(GENES, 16, 2, stride=4, order="shuffled-fixed")
    assert torch.equal(other.permutation, model.permutation) and "permutation" in model.state_dict()
    genes = model.permutation[4:8]
    expected = model.embedding[genes].sum(0) + (values[1, genes, None] * model.direction[genes]).sum(0)
    torch.testing.assert_close(model._make_tokens(values, None)[1, 1], expected)


def test_random_order_is_drawn_in_training_only():
    model, values = encoder(order="random"), profiles()
    assert not torch.allclose(model(values)[1], model(values)[1], atol=1e-4)
    model.eval()
    torch.testing.assert_close(model(values)[1], encoder().eval()(values)[1])
    model.train()
    torch.manual_seed(3)
    first = model(values)[1]
    torch.manual_seed(3)
    assert torch.equal(model(values)[1], first)


def test_standardisation_takes_training_mean_and_deviation_and_silences_constant_genes():
    model = encoder()
    train = profiles(10) * 3 + 7
    train[:, 4] = 2.0
    model.fit_standardisation(train)
    standardised = model._standardise(train)
    assert standardised.mean(0).abs().max() < 1e-5
    torch.testing.assert_close(standardised[:, 0].square().mean(), torch.tensor(1.0))
    moved = train.clone()
    moved[:, 4] = 100.0
    torch.testing.assert_close(model(train)[1], model(moved)[1])


def test_prior_draws_deviations_to_their_median_and_leaves_constant_genes():
    model, train = encoder(), profiles(10) * torch.linspace(0.5, 3, GENES)
    train[:, 4] = 2.0
    model.fit_standardisation(train, prior=5)
    deviation = train.std(0, correction=0)
    median = deviation[deviation > 0].median()
    expected = ((10 * deviation**2 + 5 * median**2) / 15).sqrt()
    expected[4] = torch.inf
    torch.testing.assert_close(model.scale, expected)


def test_outliers_are_clipped_at_five_deviations():
    model, values = encoder(), torch.zeros(1, GENES)
    far, farther = values.clone(), values.clone()
    far[0, 3], farther[0, 3] = 5.0, 500.0
    assert torch.equal(model(far)[1], model(farther)[1])
    near = values.clone()
    near[0, 3] = 4.9
    assert not torch.equal(model(far)[1], model(near)[1])
    assert torch.equal(model._standardise(-farther), -model._standardise(farther))


def test_full_gene_dropout_leaves_the_mean_patient():
    model = encoder()
    a = model(profiles(1), gene_dropout=0.999999)[1]
    torch.testing.assert_close(a, model(torch.zeros(1, GENES))[1])


def test_dropped_genes_scale_the_others_up():
    values, _ = encoder()._drop(torch.ones(200, GENES), 0.75)
    assert set(values.unique().tolist()) == {0.0, 4.0}
    assert values.mean().item() == pytest.approx(1.0, rel=0.1)


def test_without_dropout_nothing_is_dropped_in_training():
    for dropped_genes in ("mean", "mask"):
        model, values = encoder(dropped_genes=dropped_genes).train(), profiles()
        assert torch.equal(model(values)[0], model(values)[0])


@pytest.mark.parametrize("order", ["genome", "shuffled-fixed"])
def test_masked_genes_become_the_learnt_vector_and_others_keep_their_values(order):
    model, values = encoder(dropped_genes="mask", stride=4, order=order), profiles()
    torch.nn.init.normal_(model.mask)
    kept, dropped = model._drop(values, 0.5)
    assert 0.3 < dropped.mean() < 0.7
    assert torch.equal(kept, torch.where(dropped.bool(), 0.0, values))
    genes = torch.arange(GENES) if order == "genome" else model.permutation
    expected = model.embedding[genes[20:]].sum(0) + sum(
        model.mask if dropped[1, gene] else values[1, gene] * model.direction[gene] for gene in genes[20:]
    )
    torch.testing.assert_close(model._make_tokens(kept, dropped)[1, 5], expected)


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_masked_genes_of_a_whole_profile_become_a_learnt_value_of_each(kind):
    model = encoder(dropped_genes="mask", kind=kind)
    torch.nn.init.normal_(model.mask)
    torch.testing.assert_close(model(profiles(), gene_dropout=0.999999)[1], model(model.mask.expand(3, -1))[1])


def test_attention_pooling_starts_at_the_mean_and_follows_its_scores():
    model, values = encoder(pooling="attention"), profiles()
    tokens, pooled = model(values)
    torch.testing.assert_close(pooled, tokens.mean(dim=1))
    torch.nn.init.normal_(model.score.weight)
    tokens, pooled = model(values)
    weights = (tokens @ model.score.weight[0]).softmax(dim=1)
    torch.testing.assert_close(pooled, torch.einsum("bt,btd->bd", weights, tokens))


@pytest.mark.parametrize("kind", KINDS)
def test_components_are_added_to_every_token_and_what_the_pooled_vector_starts_from(kind):
    model, values = encoder(kind=kind, components=4), profiles()
    model.fit_standardisation(profiles(10))
    plain = encoder(kind=kind)
    plain.load_state_dict({name: model.state_dict()[name] for name in plain.state_dict()})
    tokens, pooled = model(values)
    whitened = model._standardise(values) @ model.loadings.T
    linear = whitened @ model.component_map.weight.T
    torch.testing.assert_close(tokens, plain(values)[0] + (whitened @ model.token_map.weight.T)[:, None])
    torch.testing.assert_close(pooled, linear)
    torch.nn.init.constant_(model.gate, 0.5)
    torch.testing.assert_close(model(values)[1], linear + 0.5 * plain(values)[1])


def test_components_are_whitened_and_in_the_order_of_their_strength():
    model, train = encoder(components=12), profiles(10) * torch.linspace(0.5, 3, GENES)
    model.fit_standardisation(train)
    standardised = model._standardise(train)
    components = standardised @ model.loadings.T
    torch.testing.assert_close(components[:, :9].T @ components[:, :9] / 10, torch.eye(9), rtol=1e-3, atol=1e-3)
    assert not model.loadings[9:].any(), "ten profiles have nine components"
    explained = (standardised @ F.normalize(model.loadings[:9], dim=1).T).square().sum(0)
    torch.testing.assert_close(explained, torch.linalg.svdvals(standardised)[:9].square(), rtol=1e-3, atol=1e-3)


def test_components_are_frozen_and_saved():
    model = encoder(components=4)
    assert "loadings" in model.state_dict() and "loadings" not in dict(model.named_parameters())


def test_embedding_is_kept_from_weight_decay():
    assert encoder().embedding._no_weight_decay and not hasattr(encoder().direction, "_no_weight_decay")
