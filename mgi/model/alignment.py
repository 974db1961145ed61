"""Contrastive alignment of images and genes: two encoders, two projections and a symmetric InfoNCE.

Sources: van den Oord et al., 2018, arXiv 1807.03748 (InfoNCE); Radford et al., 2021, arXiv 2103.00020 (symmetric form
with a learned temperature); Ilse et al., 2018, arXiv 1802.04712 (bags).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgi.model.feature_encoder import FeatureEncoder
from mgi.model.gene_encoder import GeneEncoder
from mgi.model.image_encoder import ImageEncoder

MAX_LOGIT_SCALE = math.log(100.0)


def symmetric_info_nce(images: Tensor, genes: Tensor, patient: Tensor, logit_scale: Tensor) -> Tensor:
    """Return the contrastive loss of images and the genes of their patients; a patient's images are all positives.

    Image to gene is the cross-entropy over the patients; gene to image the mean log-probability over that patient's
    images, averaged over patients.

    Parameters
    ----------
    images : Tensor, [images, dim], unit length
    genes : Tensor, [patients, dim], unit length, one row per patient
    patient : Tensor, [images], int64
        The row of `genes` that belongs to each image; every patient has an image.
    logit_scale : Tensor, scalar
        Inverse temperature.

    Returns
    -------
    Tensor, scalar
    """
    # In bfloat16, as autocast would have it, logits of up to 100 come in steps of a half.
    with torch.autocast(images.device.type, enabled=False):
        logits = logit_scale.float() * images.float() @ genes.float().T  # [images, patients]
    image_to_gene = F.cross_entropy(logits, patient)
    own = F.one_hot(patient, genes.shape[0]).to(logits.dtype)  # [images, patients]
    log_probability = logits.log_softmax(dim=0)  # over the images, for each patient
    gene_to_image = -((log_probability * own).sum(dim=0) / own.sum(dim=0)).mean()
    return (image_to_gene + gene_to_image) / 2


class BagPooling(nn.Module):
    """Gated attention over the images of a bag; it starts as their mean.

    Source: Ilse et al., 2018, arXiv 1802.04712, equation 9.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.content = nn.Linear(dim, dim)
        self.gate = nn.Linear(dim, dim)
        self.score = nn.Linear(dim, 1, bias=False)
        nn.init.zeros_(self.score.weight)

    def forward(self, vectors: Tensor, bag: Tensor, bags: int) -> Tensor:
        """Pool vectors [images, dim] of the bags [images], int64 in 0..bags - 1, to [bags, dim] in float32."""
        with torch.autocast(vectors.device.type, enabled=False):
            vectors = vectors.float()
            scores = self.score(self.content(vectors).tanh() * self.gate(vectors).sigmoid())  # [images, 1]
            own = bag[:, None] == torch.arange(bags, device=bag.device)  # [images, bags]
            weights = scores.masked_fill(~own, -torch.inf).softmax(dim=0)
            return weights.T @ vectors


class Aligner(nn.Module):
    """A gene encoder and an image encoder with projections into one space.

    Parameters
    ----------
    gene_encoder : GeneEncoder
    image_encoder : ImageEncoder or FeatureEncoder
        Of pixels, or of precomputed features.
    embed_dim : int
        Width of the shared space.
    bags : bool
        Pool the images of a patient by attention; without it they are averaged as unit vectors.
    """

    # What config.json says of a model that was read from a folder.
    description: Any

    def __init__(
        self,
        gene_encoder: GeneEncoder,
        image_encoder: ImageEncoder | FeatureEncoder,
        embed_dim: int,
        bags: bool = True,
    ) -> None:
        super().__init__()
        self.gene_encoder = gene_encoder
        self.image_encoder = image_encoder
        self.gene_projection = nn.Linear(gene_encoder.dim, embed_dim, bias=False)
        self.image_projection = nn.Linear(image_encoder.dim, embed_dim, bias=False)
        self.bag_pooling = BagPooling(embed_dim) if bags else None
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def project_images(self, images: Tensor) -> Tensor:
        """Map images [batch, 3, height, width] in 0..1, or features [batch, width], to vectors [batch, embed_dim].

        `pool_bags` takes them.
        """
        return self.image_projection(self.image_encoder(images))

    def pool_bags(self, vectors: Tensor, bag: Tensor, bags: int) -> Tensor:
        """Pool projected images [images, embed_dim] of the bags [images] to unit vectors [bags, embed_dim]."""
        if self.bag_pooling is None:
            vectors = F.normalize(vectors.float(), dim=-1)
            pooled = vectors.new_zeros(bags, vectors.shape[1]).index_add(0, bag, vectors)
        else:
            pooled = self.bag_pooling(vectors, bag, bags)
        return F.normalize(pooled, dim=-1)

    def embed_images(self, images: Tensor) -> Tensor:
        """Embed what `project_images` maps as unit vectors [batch, embed_dim]."""
        return F.normalize(self.project_images(images), dim=-1)

    def embed_genes(self, values: Tensor, gene_dropout: float = 0.0) -> Tensor:
        """Embed raw profiles [batch, genes] as unit vectors [batch, embed_dim]."""
        return F.normalize(self.gene_projection(self.gene_encoder(values, gene_dropout)[1]), dim=-1)

    def contrast(self, vectors: Tensor, patient: Tensor, patients: int) -> tuple[Tensor, Tensor]:
        """Return what is contrasted with the genes, and whose it is: bags, or the images one by one.

        Parameters
        ----------
        vectors : Tensor, [images, embed_dim]
            Projected images.
        patient : Tensor, [images], int64
            Their patients, numbered from 0.
        patients : int

        Returns
        -------
        Tensor, [patients or images, embed_dim], unit length
        Tensor, [patients or images], int64
        """
        if self.bag_pooling is None:
            return F.normalize(vectors.float(), dim=-1), patient
        return self.pool_bags(vectors, patient, patients), torch.arange(patients, device=patient.device)

    def forward(self, images: Tensor, values: Tensor, patient: Tensor, gene_dropout: float = 0.0) -> Tensor:
        """Return the loss of images [images, 3, h, w] and the profiles [patients, genes] of their patients [images]."""
        genes = self.embed_genes(values, gene_dropout)
        vectors, owner = self.contrast(self.project_images(images), patient, len(genes))
        return symmetric_info_nce(vectors, genes, owner, self.logit_scale.exp())

    @torch.no_grad()
    def limit_logit_scale(self) -> None:
        """Clamp the inverse temperature to 100 after a step; a clamp in the loss would stop its gradient."""
        self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
