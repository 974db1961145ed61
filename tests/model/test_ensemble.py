"""Several segmenters as one."""

import torch

from mgi.model.ensemble import Ensemble
from tests.model.test_segmenter import batch, segmenter


def test_ensemble_is_the_mean_of_its_members_each_with_its_own_genes():
    members, (images, values, patient, present) = [segmenter(), segmenter()], batch()
    with torch.no_grad():
        for parameter in members[1].parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
        members[1].uses_genes = False
        ensemble = Ensemble(members)
        found = ensemble.predict(images, ensemble.encode_genes(values), patient, present)
        absent = torch.zeros_like(present)
        own = members[0].predict(images, members[0].encode_genes(values), patient, present)
        other = members[1].predict(images, members[1].encode_genes(values), patient, absent)
    torch.testing.assert_close(found, (own + other) / 2)
    assert (own - other).abs().max() > 0.01 and ensemble.uses_genes


def test_ensemble_without_genes_has_none_to_encode():
    members, (images, values, patient, present) = [segmenter(genes=False), segmenter(genes=False)], batch()
    ensemble = Ensemble(members)
    assert ensemble.encode_genes(values) is None
    with torch.no_grad():
        members[1].head.bias.add_(1.0)
        found = ensemble.predict(images, None, patient, present)
        own = [member.predict(images, None, patient, present) for member in members]
        torch.testing.assert_close(found, sum(own) / 2)
    assert (own[0] - own[1]).abs().max() > 0.1
