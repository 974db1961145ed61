"""Contrastive alignment of images and genes: two encoders, two projections and a symmetric InfoNCE.

Sources: van den Oord et al., 2018, arXiv 1807.03748 (InfoNCE); Radford et al., 2021, arXiv 2103.00020 (symmetric form
with a learned temperature).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


class Aligner(nn.Module):
    """A gene encoder and an image encoder with projections into one space.

    Parameters
    ----------
    gene_encoder : GeneEncoder
    image_encoder : ImageEncoder
    embed_dim : int
        Width of the shared space.
    """

    # What config.json says of a model that was read from a folder.
    description: Any

    def __init__(self, gene_encoder: GeneEncoder, image_encoder: ImageEncoder, embed_dim: int) -> None:
        super().__init__()
        self.gene_encoder = gene_encoder
        self.image_encoder = image_encoder
        self.gene_projection = nn.Linear(gene_encoder.dim, embed_dim, bias=False)
        self.image_projection = nn.Linear(image_encoder.dim, embed_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def embed_images(self, images: Tensor) -> Tensor:
        """Embed images [batch, 3, height, width] in 0..1 as unit vectors [batch, embed_dim]."""
        return F.normalize(self.image_projection(self.image_encoder(images)), dim=-1)

    def embed_genes(self, values: Tensor, gene_dropout: float = 0.0) -> Tensor:
        """Embed raw profiles [batch, genes] as unit vectors [batch, embed_dim]."""
        return F.normalize(self.gene_projection(self.gene_encoder(values, gene_dropout)[1]), dim=-1)

    def forward(self, images: Tensor, values: Tensor, patient: Tensor, gene_dropout: float = 0.0) -> Tensor:
        """Return the loss of images [images, 3, h, w] and the profiles [patients, genes] of their patients [images]."""
        images, genes = self.embed_images(images), self.embed_genes(values, gene_dropout)
        return symmetric_info_nce(images, genes, patient, self.logit_scale.exp())

    @torch.no_grad()
    def limit_logit_scale(self) -> None:
        """Clamp the inverse temperature to 100 after a step; a clamp in the loss would stop its gradient."""
        self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
