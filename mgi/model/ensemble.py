"""Several segmenters as one: the mean of their probabilities."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mgi.model.segmenter import Segmenter


class Ensemble(Segmenter):
    """Segmenters of one architecture, such as those of a cohort's folds, whose probabilities are averaged.

    Parameters
    ----------
    members : sequence of Segmenter
        One or more; a member whose `uses_genes` is false segments everybody as a patient without a profile.
    """

    def __init__(self, members: Sequence[Segmenter]) -> None:
        nn.Module.__init__(self)
        self.networks, self.members = nn.ModuleList(members), list(members)
        first = members[0]
        self.neighbours, self.image_encoder, self.gene_encoder = first.neighbours, None, first.gene_encoder
        self.uses_genes = any(member.uses_genes for member in members)

    def encode_genes(self, values: Tensor, gene_dropout: float = 0.0) -> Tensor | None:
        """Encode raw profiles [patients, genes] as every member's tokens, [patients, members * tokens, gene dim]."""
        tokens = [member.encode_genes(values, gene_dropout) for member in self.members]
        return torch.cat([one for one in tokens if one is not None], dim=1) if tokens[0] is not None else None

    def predict(self, images: Tensor, genes: Tensor | None, patient: Tensor, present: Tensor) -> Tensor:
        """Return the mean tumour probability of every pixel; arguments and result as of `Segmenter.predict`."""
        count = len(self.members)
        tokens = [None] * count if genes is None else genes.chunk(count, dim=1)
        parts = zip(self.members, tokens, strict=True)
        return torch.stack([
            member.predict(images, own, patient, present & member.uses_genes) for member, own in parts
        ]).mean(dim=0)  # fmt: skip
