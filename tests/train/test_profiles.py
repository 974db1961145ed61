"""Profiles over the genes of a model, and those of the negative controls."""

import logging

import numpy as np
import pytest
import torch

from mgi.errors import CheckpointError
from mgi.model.gene_encoder import GeneEncoder
from mgi.train.profiles import Profiles

GENES = ["ENSG00000000001.5", "ENSG00000000002.1", "ENSG00000000003.9_PAR_Y", "ENSG00000000003.9", "ENSG00000000005"]
NAMES = ["TP53", "IDH1", "SHOX", "SHOX", "EGFR"]
MEANS = torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0])


def profiles(genes, names, values=None):
    values = torch.arange(2.0 * len(genes)).view(2, -1) if values is None else values
    return Profiles(values, {"a": 0, "b": 1}, genes, names)


def test_takes_genes_by_id_without_version_or_by_symbol_whatever_the_order():
    table = profiles(
        ["X", "ENSG00000000002", "ENSG00000000001.5", "ENSG00000000003_PAR_Y", "ENSG00000000003.12"],
        ["EGFR", "another", "TP53", "SHOX", "SHOX"],
    )
    matched = table.match(GENES, NAMES, MEANS, 0.0, "model")
    assert matched.values.tolist() == [[2, 1, 3, 4, 0], [7, 6, 8, 9, 5]]
    assert (matched.genes, matched.names, matched.row) == (GENES, NAMES, table.row)


def test_missing_genes_are_at_their_training_mean_and_counted(caplog):
    table = profiles(GENES[:4], NAMES[:4])
    with caplog.at_level(logging.WARNING, logger="mgi"):
        matched = table.match(GENES, NAMES, MEANS, 0.2, "model")
    assert matched.values.tolist() == [[0, 1, 2, 3, 50], [4, 5, 6, 7, 50]]
    assert "lacks 1 of the 5 genes of the model in model" in caplog.text and GENES[4] in caplog.text


def test_rejects_table_that_lacks_more_than_the_configured_share():
    with pytest.raises(CheckpointError, match=r"lacks 2 of the 5 genes of the model in model .*more than 20%"):
        profiles(GENES[:3], NAMES[:3]).match(GENES, NAMES, MEANS, 0.2, "model")
    profiles(GENES[:3], NAMES[:3]).match(GENES, NAMES, MEANS, 0.4, "model")


def test_duplicate_symbol_or_id_finds_no_gene():
    table = profiles(["A", "B", "C", "C"], ["TP53", "TP53", "IDH1", "none"])
    matched = table.match(["M", "N", "C"], ["TP53", "IDH1", "x"], MEANS[:3], 1.0, "model")
    assert matched.values[0].tolist() == [10, 2, 30]


def test_same_genes_are_taken_as_they_are():
    table = profiles(GENES, NAMES)
    assert table.match(list(GENES), NAMES, MEANS, 0.0, "model") is table


def test_noise_has_the_training_moments_and_is_nobodys():
    random = np.random.default_rng(0)
    values = torch.from_numpy(random.normal([0, 5, -3], [1, 2, 0], (400, 3)).astype(np.float32))
    cases = [f"c{index}" for index in range(400)]
    table = Profiles(values, {case: row for row, case in enumerate(cases)}, ["x", "y", "z"])
    noise = table.randomise(cases[:300], 3)
    torch.testing.assert_close(noise.values.mean(dim=0), values[:300].mean(dim=0), atol=0.3, rtol=0)
    torch.testing.assert_close(noise.values.std(dim=0), values[:300].std(dim=0), atol=0.2, rtol=0)
    correlation = np.corrcoef(noise.values[:, 1], values[:, 1])[0, 1]
    assert abs(correlation) < 0.15
    assert noise.values.equal(table.randomise(cases[:300], 3).values)
    assert not noise.values.equal(table.randomise(cases[:300], 4).values)
    some = Profiles(values[5:7], {"c5": 0, "c6": 1}, table.genes)
    moments = values[5:7].mean(dim=0), values[5:7].std(dim=0, correction=0)
    drawn = [(part.of(["c6"])[0][0, :2] - m[0][:2]) / m[1][:2] for part, m in (
        (some.randomise(["c5", "c6"], 3), moments),
        (noise, (values[:300].mean(dim=0), values[:300].std(dim=0, correction=0))),
    )]  # fmt: skip
    torch.testing.assert_close(drawn[0], drawn[1], atol=1e-4, rtol=1e-4), "whoever else was read"


def test_mean_of_the_site_tells_the_site_alone():
    values = torch.arange(16, dtype=torch.float32).reshape(8, 2)
    table = Profiles(values, {case: row for row, case in enumerate("abcdefgh")}, ["x", "y"])
    sites = {"a": "S", "b": "S", "c": "T", "d": "S", "e": "T", "g": "U", "h": "U", "z": "S"}
    means = table.average_by_site(["a", "b", "c", "g", "h", "z"], sites).of(list("abcdefz"))
    site, overall = values[:2].mean(dim=0), values[[0, 1, 2, 6, 7]].mean(dim=0)
    # c is its site's only training patient: the mean of it alone would be its own profile. Nothing is known of f's.
    expected = torch.stack([site, site, overall, site, overall, overall, torch.zeros(2)])
    assert means[0].equal(expected) and means[1].tolist() == [True] * 6 + [False]


def test_standard_deviations_of_few_patients_are_shrunk_towards_the_median():
    values = torch.tensor([[0.0, 0.0, 0.0, 7.0], [2.0, 0.02, 4.0, 7.0]])
    encoder = GeneEncoder(4, 8, 1)
    encoder.fit_standardisation(values)
    torch.testing.assert_close(encoder.scale, torch.tensor([1.0, 0.01, 2.0, torch.inf]))
    encoder.fit_standardisation(values, prior=6.0)
    expected = [((2 * own**2 + 6 * 1.0) / 8) ** 0.5 for own in (1.0, 0.01, 2.0)]
    torch.testing.assert_close(encoder.scale, torch.tensor([*expected, torch.inf]))
