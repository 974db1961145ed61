"""The segmenter: a convolutional path at high resolution, ViT features, and image tokens that attend to gene tokens."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgi.model.backbone import ConvolutionalPath, ImageNetPath, convolutions
from mgi.model.gene_encoder import GeneEncoder
from mgi.model.image_encoder import ImageEncoder


def dice_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the sum of soft Dice loss and binary cross-entropy.

    The Dice is pooled over the batch, since an image without tumour has no Dice of its own (Milletari et al., 2016,
    arXiv 1606.04797, for the soft form).

    Parameters
    ----------
    logits, target : Tensor, of one shape; target is 0 or 1

    Returns
    -------
    Tensor, scalar
    """
    probability = logits.sigmoid()
    overlap = (probability * target).sum()
    dice = (2 * overlap + 1) / (probability.sum() + target.sum() + 1)
    return 1 - dice + F.binary_cross_entropy_with_logits(logits, target)


class GeneAttention(nn.Module):
    """Image tokens attend to the patient's gene tokens; a gate per channel lets the model ignore the genes.

    What a token attends to scales and shifts it (FiLM: Perez et al., 2017, arXiv 1709.07871): genes that decide what a
    texture means are a product of the two, which a sum alone learns slowly.

    Parameters
    ----------
    dim, gene_dim : int
        Widths of image and gene tokens.
    heads : int
        Attention heads.
    gate : float
        The gate at first; at 0 nothing that is attended to has an effect, until the gate has learnt that it helps
        (ReZero: Bachlechner et al., 2020, arXiv 2003.04887).
    """

    def __init__(self, dim: int, gene_dim: int, heads: int = 4, gate: float = 1.0) -> None:
        super().__init__()
        self.heads = heads
        self.image_norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(gene_dim, 2 * dim)
        self.attended_norm = nn.LayerNorm(dim)
        self.output = nn.Linear(dim, 2 * dim)
        # At full strength: with small initial weights genes are learnt late or not at all on simulated cohorts.
        nn.init.normal_(self.output.weight, std=dim**-0.5)
        self.gate = nn.Parameter(torch.full((dim,), gate))
        # The null profile: starts as nothing, learnt from patients without expression or whose profile is dropped.
        self.absent = nn.Parameter(torch.zeros(2 * dim))
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, tokens: Tensor, genes: Tensor, present: Tensor) -> Tensor:
        """Fuse image tokens with gene tokens.

        Parameters
        ----------
        tokens : Tensor, [images, pixels, dim]
        genes : Tensor, [images, gene tokens, gene_dim]
        present : Tensor, [images], bool
            Whether the image's patient has expression; without it a learnt scale and shift stand in.

        Returns
        -------
        Tensor, [images, pixels, dim]
        """
        query = self.query(self.image_norm(tokens)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.key_value(genes).unflatten(-1, (2 * self.heads, -1)).transpose(1, 2).chunk(2, dim=1)
        attended = F.scaled_dot_product_attention(query, key, value)  # [images, heads, pixels, dim / heads]
        # Normed, since an average over many gene tokens is small beside an image token.
        modulation = self.output(self.attended_norm(attended.transpose(1, 2).flatten(2)))
        absent = self.absent.to(modulation.dtype)
        scale, shift = torch.where(present[:, None, None], modulation, absent).chunk(2, dim=-1)
        tokens = tokens + self.gate * (scale * tokens + shift)
        return tokens + self.mlp(self.mlp_norm(tokens))


class Segmenter(nn.Module):
    """Segment tumours from an image and, where given, the patient's genes.

    The logits are the sum of coarse ones, read from the deepest tokens right after the fusion, and fine ones, read at
    full resolution (score maps summed over resolutions: Long et al., 2015, arXiv 1411.4038).

    Parameters
    ----------
    channels : list of int
        Widths of the convolutional path: one thin level at full resolution, then one for each halving.
    image_encoder : ImageEncoder or None
        Without it the convolutional path is alone.
    gene_encoder : GeneEncoder or None
        Without it the images are alone.
    neighbours : int
        Neighbouring slices on either side that the convolutional path sees beside each slice.
    average_flips : bool
        Whether `predict` averages an image and its mirror image.
    gene_gate : float
        The gate of `GeneAttention` at first.
    backbone : bool
        Whether the convolutional path is an `ImageNetPath`.
    """

    # What config.json says of a model that was read from a folder.
    description: Any
    # Whether profiles are used in prediction; otherwise everybody is segmented as a patient without one.
    uses_genes = True

    def __init__(
        self,
        channels: list[int],
        image_encoder: ImageEncoder | None = None,
        gene_encoder: GeneEncoder | None = None,
        neighbours: int = 0,
        average_flips: bool = False,
        gene_gate: float = 1.0,
        backbone: bool = False,
    ) -> None:
        super().__init__()
        self.neighbours, self.average_flips = neighbours, average_flips
        self.image_encoder = image_encoder
        self.gene_encoder = gene_encoder
        first, deepest = channels[0], channels[-1]
        inputs = 3 * (1 + 2 * neighbours)
        self.path = ImageNetPath(inputs, channels) if backbone else ConvolutionalPath(inputs, channels)
        if image_encoder is not None:
            self.from_vit = nn.Conv2d(image_encoder.map_dim, deepest, 1)
            if backbone:
                # What few patients taught a ViT would disturb published features: it starts without effect.
                for parameter in self.from_vit.parameters():
                    nn.init.zeros_(parameter)
        if gene_encoder is not None:
            self.fusion = GeneAttention(deepest, gene_encoder.dim, gate=gene_gate)
        steps = list(zip(channels[:0:-1], channels[-2::-1], strict=True))
        self.reduce = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in steps)
        self.up = nn.ModuleList(convolutions(b, b) for _, b in steps)
        # The product of texture and genes, both unknown at first, is often not learnt through the decoder alone; these
        # logits are a short path from the fusion to the loss.
        self.coarse_head = nn.Conv2d(deepest, 1, 1)
        self.head = nn.Conv2d(first, 1, 1)

    def encode_genes(self, values: Tensor, gene_dropout: float = 0.0) -> Tensor | None:
        """Encode raw profiles [patients, genes] as tokens [patients, tokens, gene dim]; None without a gene encoder."""
        return None if self.gene_encoder is None else self.gene_encoder(values, gene_dropout)[0]

    def forward(
        self, images: Tensor, values: Tensor, patient: Tensor, present: Tensor, gene_dropout: float = 0.0
    ) -> Tensor:
        """Encode the genes and segment: see `segment`, with `values` [patients, genes] for raw profiles."""
        return self.segment(images, self.encode_genes(values, gene_dropout), patient, present)

    def predict(self, images: Tensor, genes: Tensor | None, patient: Tensor, present: Tensor) -> Tensor:
        """Return the tumour probability of every pixel, float32 [images, height, width]; arguments as of `segment`."""
        probability = self.segment(images, genes, patient, present).float().sigmoid()
        if not self.average_flips:
            return probability
        mirrored = self.segment(images.flip(-1), genes, patient, present).float().sigmoid().flip(-1)
        return (probability + mirrored) / 2

    def segment(self, images: Tensor, genes: Tensor | None, patient: Tensor, present: Tensor) -> Tensor:
        """Return the logits of every pixel.

        Parameters
        ----------
        images : Tensor, [images, 3 (1 + 2 neighbours), height, width], 0..1
            The slice itself comes first; the edges are divisible by 2 to the number of halvings.
        genes : Tensor, [patients, tokens, gene dim], or None
            Output of `encode_genes` for the patients of the batch.
        patient : Tensor, [images], int64
            The row of `genes` that belongs to each image.
        present : Tensor, [patients], bool
            Whether that row is a real profile.

        Returns
        -------
        Tensor, [images, height, width]
        """
        *skips, x = self.path(2 * images - 1)
        if self.image_encoder is not None:
            context = self.from_vit(self.image_encoder.feature_map(images[:, :3]))
            x = x + F.interpolate(context, size=x.shape[-2:], mode="bilinear", align_corners=False)
        if genes is not None:
            tokens = self.fusion(x.flatten(2).transpose(1, 2), genes[patient], present[patient])
            x = tokens.transpose(1, 2).unflatten(2, x.shape[-2:])
        coarse = F.interpolate(self.coarse_head(x), size=images.shape[-2:], mode="bilinear", align_corners=False)
        for reduce, block in zip(self.reduce, self.up, strict=True):
            # Reducing before the upsampling and adding the skip costs half of a concatenation.
            x = block(skips.pop() + F.interpolate(reduce(x), scale_factor=2.0, mode="nearest"))
        return (self.head(x) + coarse).squeeze(1)
