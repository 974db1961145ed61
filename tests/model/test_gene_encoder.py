"""The gene encoder: tokens, order, standardisation."""

import torch

from mgi.model.gene_encoder import GeneEncoder, MambaBlock


def encoder(**options) -> GeneEncoder:
    torch.manual_seed(0)
    return GeneEncoder(**({"n_genes": 23, "dim": 16, "depth": 2, "stride": 5} | options))


def test_stride_folds_neighbours_and_pads_the_last_token():
    tokens, pooled = encoder()(torch.randn(3, 23))
    assert tokens.shape == (3, 5, 16)
    assert torch.equal(pooled, tokens.mean(dim=1))


def test_a_token_is_the_sum_of_embeddings_plus_values_along_directions():
    model = encoder(stride=4)
    values = torch.randn(2, 23)
    token = model._tokens(values)[1, 2]
    genes = slice(8, 12)
    expected = model.embedding[genes].sum(0) + (values[1, genes, None] * model.direction[genes]).sum(0)
    torch.testing.assert_close(token, expected)


def test_forward_block_sees_only_earlier_genes_and_bidirectional_sees_all():
    values = torch.randn(1, 23)
    changed = values.clone()
    changed[0, 20] += 3
    for bidirectional in (False, True):
        model = encoder(bidirectional=bidirectional).eval()
        first = model(values)[0][0, 0] - model(changed)[0][0, 0]
        assert bool(first.abs().max() > 1e-7) is bidirectional


def test_order_of_genes_matters():
    model = encoder(stride=1).eval()
    values = torch.randn(1, 23)
    assert not torch.allclose(model(values)[1], model(values.flip(1))[1], atol=1e-4)


def test_standardisation_takes_training_mean_and_deviation_and_silences_constant_genes():
    model = encoder()
    train = torch.randn(10, 23) * 3 + 7
    train[:, 4] = 2.0
    model.fit_standardisation(train)
    torch.testing.assert_close(model.mean, train.mean(0))
    torch.testing.assert_close(model.scale[0], train[:, 0].std(correction=0))
    moved = train.clone()
    moved[:, 4] = 100.0
    torch.testing.assert_close(model(train)[1], model(moved)[1])


def test_full_gene_dropout_leaves_the_mean_patient():
    model = encoder()
    a = model(torch.randn(1, 23), gene_dropout=0.999999)[1]
    torch.testing.assert_close(a, model(torch.zeros(1, 23))[1])


def test_parameter_names_are_those_of_mamba_ssm():
    names = {name for name, _ in MambaBlock(16).named_parameters()}
    assert names == {
        "A_log", "D", "in_proj.weight", "conv1d.weight", "conv1d.bias", "x_proj.weight", "dt_proj.weight",
        "dt_proj.bias", "out_proj.weight",
    }  # fmt: skip
