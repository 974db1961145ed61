"""Encode expression profiles: tokens of genes through Mamba or a Transformer, or the whole profile through an MLP."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgi.model.mamba import MambaBlock

Kind = Literal["mamba", "transformer", "mlp", "linear"]
Order = Literal["genome", "random", "shuffled-fixed"]

MAX_Z = 5.0
HEAD_DIM = 32
ORDER_SEED = 0


class Attention(nn.Module):
    """Multi-head self-attention, with PyTorch's flash kernel where the device has one.

    Source: Vaswani et al., 2017, arXiv 1706.03762.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heads = math.gcd(dim, max(1, dim // HEAD_DIM))
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Mix tokens [batch, length, dim]; each sees all."""
        parts = self.query_key_value(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*parts.unbind())  # [batch, heads, length, dim / heads]
        return self.output(mixed.transpose(1, 2).flatten(2))


class GeneEncoder(nn.Module):
    """Encode expression profiles as tokens and one pooled vector.

    A gene's token is its own embedding plus its standardised value along a direction of its own; `stride` adjacent
    genes are summed into one token. The standardisation (`mean`, `scale`) is part of the model.

    Parameters
    ----------
    n_genes : int
        Genes of a profile, in genomic order.
    dim, depth : int
        Width of a token; blocks of a Mamba or Transformer, hidden layers of an MLP.
    stride : int
        Neighbouring genes in one token.
    state_dim : int
        State of Mamba's scan, per channel.
    bidirectional : bool
        Add a second mixer to each Mamba block that reads the genome backwards.
    kind : {"mamba", "transformer", "mlp", "linear"}
        What encodes: the first two a sequence of tokens; an MLP (GELU, `4 dim` wide) and a linear map the whole
        profile, to a single token.
    order : {"genome", "random", "shuffled-fixed"}
        Sequence of the genes before they are folded into tokens: as given; drawn anew in each training step and as
        given in evaluation; one permutation for good, part of the model. An ablation of whether genomic order matters.
        A Transformer without folding, an MLP and a linear map are blind to it.
    pooling : {"mean", "attention"}
        Pooled vector: the mean over tokens, or one weighted by a learnt score, which starts as the mean.
    dropped_genes : {"mean", "mask"}
        What gene dropout does with a gene: set it to the training mean, the others scaled up in return; or replace its
        value by a learnt vector, the others as they are.
    components : int
        Principal components of the training profiles, whitened and frozen. A linear map of them is added to every
        token, so that whatever attends to any of thousands finds it. The pooled vector starts as another such map: what
        the tokens pool to is added through a gate that starts closed, since few patients do not tell thousands of genes
        apart. Two maps, since alignment forgets the genes that do not show in images. 0 for none.
    """

    mean: Tensor
    scale: Tensor
    permutation: Tensor
    loadings: Tensor

    def __init__(
        self,
        n_genes: int,
        dim: int,
        depth: int,
        stride: int = 1,
        state_dim: int = 16,
        bidirectional: bool = False,
        kind: Kind = "mamba",
        order: Order = "genome",
        pooling: Literal["mean", "attention"] = "mean",
        dropped_genes: Literal["mean", "mask"] = "mean",
        components: int = 0,
    ) -> None:
        super().__init__()
        self.n_genes, self.dim, self.stride, self.order = n_genes, dim, stride, order
        self.register_buffer("mean", torch.zeros(n_genes))
        self.register_buffer("scale", torch.ones(n_genes))
        self.reads_tokens = kind in ("mamba", "transformer")
        if self.reads_tokens:
            self.embedding = nn.Parameter(torch.randn(n_genes, dim) * 0.02)
            self.direction = nn.Parameter(torch.randn(n_genes, dim) / math.sqrt(stride))
            self.embedding._no_weight_decay = True  # type: ignore[attr-defined]
            blocks = _mamba_blocks(dim, depth, state_dim) if kind == "mamba" else _transformer_blocks(dim, depth)
            self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in blocks)
            self.blocks = nn.ModuleList(blocks)
            backwards = depth if bidirectional and kind == "mamba" else 0
            self.reverse_blocks = nn.ModuleList(_mamba_blocks(dim, backwards, state_dim))
        else:
            self.network = _mlp(n_genes, dim, depth if kind == "mlp" else 0)
        self.norm = nn.Identity() if kind == "linear" else nn.LayerNorm(dim)
        if order == "shuffled-fixed":
            shuffled = torch.randperm(n_genes, generator=torch.Generator().manual_seed(ORDER_SEED), device="cpu")
            self.register_buffer("permutation", shuffled)
        self.mask = (
            nn.Parameter(torch.zeros(dim if self.reads_tokens else n_genes)) if dropped_genes == "mask" else None
        )
        self.score = nn.Linear(dim, 1) if pooling == "attention" else None
        if self.score is not None:
            nn.init.zeros_(self.score.weight)
        self.component_map = nn.Linear(components, dim, bias=False) if components else None
        if self.component_map is not None:
            self.token_map = nn.Linear(components, dim, bias=False)
            for linear in (self.component_map, self.token_map):
                nn.init.orthogonal_(linear.weight)
            self.register_buffer("loadings", torch.zeros(components, n_genes))
            self.gate = nn.Parameter(torch.zeros(dim))

    @torch.no_grad()
    def fit_standardisation(self, values: Tensor, prior: float = 0.0) -> None:
        """Fit mean and standard deviation per gene to training profiles [cases, genes]; constant genes become 0.

        The components are those of these profiles, each scaled to unit variance; of n cases there are at most n - 1,
        and those beyond are 0.

        Parameters
        ----------
        values : Tensor, [cases, genes]
        prior : float
            Weight, in cases, of the median standard deviation of the genes that vary against each gene's own: few cases
            measure it badly, and a gene that happens to vary little among them would blow up elsewhere.
        """
        scale = values.std(dim=0, correction=0)
        varying = scale > 1e-6
        if prior and varying.any():
            pooled = scale[varying].median()
            shrunk = ((len(values) * scale**2 + prior * pooled**2) / (len(values) + prior)).sqrt()
            scale = torch.where(varying, shrunk, scale)
        self.mean.copy_(values.mean(dim=0))
        self.scale.copy_(torch.where(scale > 1e-6, scale, torch.inf))
        if self.component_map is not None:
            _, strength, directions = torch.linalg.svd(self._standardise(values), full_matrices=False)
            count = min(len(self.loadings), len(values) - 1, self.n_genes)
            whitened = directions[:count] * (len(values) ** 0.5 / strength[:count].clamp(min=1e-6))[:, None]
            self.loadings.zero_()[:count] = whitened.to(self.loadings)

    def forward(self, values: Tensor, gene_dropout: float = 0.0) -> tuple[Tensor, Tensor]:
        """Encode raw profiles.

        Parameters
        ----------
        values : Tensor, [batch, genes], in the unit of the training table
        gene_dropout : float
            Share of genes dropped.

        Returns
        -------
        tokens : Tensor, [batch, tokens, dim]; ceil(genes / stride) of them, or one
        pooled : Tensor, [batch, dim]
        """
        values, dropped = self._drop(self._standardise(values), gene_dropout)
        if self.reads_tokens:
            tokens = self._mix(self._make_tokens(values, dropped))
        else:
            filled = values if dropped is None or self.mask is None else values + dropped * self.mask
            tokens = self.norm(self.network(filled)).unsqueeze(1)
        pooled = tokens.mean(dim=1) if self.score is None else _weighted_mean(tokens, self.score(tokens))
        if self.component_map is None:
            return tokens, pooled
        whitened = F.linear(values, self.loadings)
        return tokens + self.token_map(whitened).unsqueeze(1), self.component_map(whitened) + self.gate * pooled

    def _standardise(self, values: Tensor) -> Tensor:
        return ((values - self.mean) / self.scale).clamp(-MAX_Z, MAX_Z)

    def _drop(self, values: Tensor, gene_dropout: float) -> tuple[Tensor, Tensor | None]:
        """Drop genes from standardised values; return these and, where a learnt mask stands in, which are dropped."""
        if self.mask is None or gene_dropout == 0:
            return F.dropout(values, gene_dropout, training=gene_dropout > 0), None
        dropped = torch.rand_like(values) < gene_dropout
        return values.masked_fill(dropped, 0.0), dropped.to(values.dtype)

    def _make_tokens(self, values: Tensor, dropped: Tensor | None) -> Tensor:
        """Sum each run of `stride` genes into one token: [batch, genes] to [batch, tokens, dim]."""
        embedding: Tensor = self.embedding
        direction: Tensor = self.direction
        order = self._draw_order()
        if order is not None:
            order = order.to(values.device)
            values, embedding, direction = values[:, order], embedding[order], direction[order]
        missing = -self.n_genes % self.stride
        values = F.pad(values, (0, missing)).unflatten(1, (-1, self.stride))  # [batch, tokens, stride]
        embedding = F.pad(embedding, (0, 0, 0, missing)).unflatten(0, (-1, self.stride))
        direction = F.pad(direction, (0, 0, 0, missing)).unflatten(0, (-1, self.stride))  # [tokens, stride, dim]
        tokens = embedding.sum(dim=1) + torch.einsum("bts,tsd->btd", values, direction)
        if dropped is None or self.mask is None:
            return tokens
        dropped = dropped if order is None else dropped[:, order]
        count = F.pad(dropped, (0, missing)).unflatten(1, (-1, self.stride)).sum(dim=-1, keepdim=True)
        return tokens + count * self.mask

    def _draw_order(self) -> Tensor | None:
        """Return the permutation of the genes, or None for genomic order."""
        if self.order == "shuffled-fixed":
            return self.permutation
        # On the CPU's generator whatever the device, so that a step draws the same everywhere.
        return torch.randperm(self.n_genes, device="cpu") if self.order == "random" and self.training else None

    def _mix(self, x: Tensor) -> Tensor:
        for index, (norm, block) in enumerate(zip(self.norms, self.blocks, strict=True)):
            normed = norm(x)
            mixed = block(normed)
            if self.reverse_blocks:
                mixed = mixed + self.reverse_blocks[index](normed.flip(1)).flip(1)
            x = x + mixed
        return self.norm(x)


def _mamba_blocks(dim: int, depth: int, state_dim: int) -> list[nn.Module]:
    return [MambaBlock(dim, state_dim) for _ in range(depth)]


def _transformer_blocks(dim: int, depth: int) -> list[nn.Module]:
    """Return attention and feed-forward layers in turn, each to be normed before and added to what it reads."""
    return [
        layer
        for _ in range(depth)
        for layer in (Attention(dim), nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)))
    ]


def _mlp(n_genes: int, dim: int, depth: int) -> nn.Sequential:
    """Return a linear map after `depth` hidden layers."""
    widths = [n_genes] + [4 * dim] * depth
    hidden = [layer for width in widths[:-1] for layer in (nn.Linear(width, 4 * dim), nn.GELU())]
    return nn.Sequential(*hidden, nn.Linear(widths[-1], dim))


def _weighted_mean(tokens: Tensor, scores: Tensor) -> Tensor:
    """Average tokens [batch, tokens, dim] by the softmax of their scores [batch, tokens, 1]."""
    return (scores.softmax(dim=1) * tokens).sum(dim=1)
