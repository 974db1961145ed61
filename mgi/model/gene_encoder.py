"""Genes as a sequence: one token per gene (or per few neighbours) in genomic order, through Mamba blocks."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgi.model.scan import selective_scan

LARGEST_Z = 5.0


class MambaBlock(nn.Module):
    """One Mamba mixer, with the parameter names and initialisation of `mamba_ssm.Mamba`, so weights load both ways.

    Source: Gu and Dao, 2023, arXiv 2312.00752, section 3.4.

    Parameters
    ----------
    dim : int
        Width of a token.
    state_dim : int
        State of the scan per channel.
    """

    def __init__(self, dim: int, state_dim: int = 16, conv_width: int = 4, expand: int = 2) -> None:
        super().__init__()
        inner = expand * dim
        self.state_dim = state_dim
        self.delta_rank = math.ceil(dim / 16)
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, conv_width, groups=inner, padding=conv_width - 1)
        self.x_proj = nn.Linear(inner, self.delta_rank + 2 * state_dim, bias=False)
        self.dt_proj = nn.Linear(self.delta_rank, inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1, state_dim + 1, dtype=torch.float32)).repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, dim, bias=False)
        self.A_log._no_weight_decay = True
        self.D._no_weight_decay = True
        self._initialise_delta()

    def _initialise_delta(self, smallest: float = 1e-3, largest: float = 0.1) -> None:
        """Spread the initial time steps softplus(bias) log-uniformly, as in the paper's section 3.6."""
        nn.init.uniform_(self.dt_proj.weight, -(self.delta_rank**-0.5), self.delta_rank**-0.5)
        delta = torch.exp(torch.empty_like(self.dt_proj.bias).uniform_(math.log(smallest), math.log(largest)))
        with torch.no_grad():
            self.dt_proj.bias.copy_(delta + torch.log(-torch.expm1(-delta)))

    def forward(self, tokens: Tensor) -> Tensor:
        """Mix tokens [batch, length, dim] along the sequence; each sees itself and those before it."""
        length = tokens.shape[1]
        x, z = self.in_proj(tokens).transpose(1, 2).chunk(2, dim=1)  # [batch, inner, length] each
        x = F.silu(self.conv1d(x)[..., :length])
        delta, B, C = self.x_proj(x.transpose(1, 2)).split((self.delta_rank, self.state_dim, self.state_dim), dim=-1)
        delta = F.linear(delta, self.dt_proj.weight).transpose(1, 2)  # [batch, inner, length]; bias inside the scan
        B, C = B.transpose(1, 2), C.transpose(1, 2)  # [batch, state, length]
        A = -torch.exp(self.A_log.float())
        y = selective_scan(x, delta, A, B, C, self.D.float(), z, self.dt_proj.bias.float())
        return self.out_proj(y.transpose(1, 2))


class GeneEncoder(nn.Module):
    """Encode expression profiles as gene tokens and their mean.

    A gene's token is its own embedding plus its standardised value along a direction of its own; `stride` adjacent
    genes are summed into one token. The standardisation (`mean`, `scale`) is part of the model.

    Parameters
    ----------
    n_genes : int
        Genes of a profile, in genomic order.
    dim, depth, state_dim : int
        Width of a token, Mamba blocks, state of the scan.
    stride : int
        Neighbouring genes in one token.
    bidirectional : bool
        Add a second mixer to each block that reads the genome backwards.
    """

    def __init__(
        self, n_genes: int, dim: int, depth: int, stride: int = 1, state_dim: int = 16, bidirectional: bool = False
    ) -> None:
        super().__init__()
        self.n_genes, self.dim, self.stride = n_genes, dim, stride
        self.register_buffer("mean", torch.zeros(n_genes))
        self.register_buffer("scale", torch.ones(n_genes))
        self.embedding = nn.Parameter(torch.randn(n_genes, dim) * 0.02)
        self.direction = nn.Parameter(torch.randn(n_genes, dim) / math.sqrt(stride))
        self.embedding._no_weight_decay = True
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(depth))
        self.blocks = nn.ModuleList(MambaBlock(dim, state_dim) for _ in range(depth))
        self.reverse_blocks = nn.ModuleList(MambaBlock(dim, state_dim) for _ in range(depth if bidirectional else 0))
        self.norm = nn.LayerNorm(dim)

    def fit_standardisation(self, values: Tensor) -> None:
        """Take mean and standard deviation per gene from training profiles [cases, genes]; constant genes become 0."""
        scale = values.std(dim=0, correction=0)
        self.mean.copy_(values.mean(dim=0))
        self.scale.copy_(torch.where(scale > 1e-6, scale, torch.inf))

    def forward(self, values: Tensor, gene_dropout: float = 0.0) -> tuple[Tensor, Tensor]:
        """Encode raw profiles.

        Parameters
        ----------
        values : Tensor, [batch, genes], in the unit of the training table
        gene_dropout : float
            Share of genes set to the training mean, the others scaled up in return.

        Returns
        -------
        tokens : Tensor, [batch, ceil(genes / stride), dim]
        pooled : Tensor, [batch, dim]
        """
        standardised = ((values - self.mean) / self.scale).clamp(-LARGEST_Z, LARGEST_Z)
        x = self._tokens(F.dropout(standardised, gene_dropout, training=gene_dropout > 0))
        for index, (norm, block) in enumerate(zip(self.norms, self.blocks, strict=True)):
            normed = norm(x)
            mixed = block(normed)
            if self.reverse_blocks:
                mixed = mixed + self.reverse_blocks[index](normed.flip(1)).flip(1)
            x = x + mixed
        tokens = self.norm(x)
        return tokens, tokens.mean(dim=1)

    def _tokens(self, values: Tensor) -> Tensor:
        """Sum each run of `stride` genes into one token: [batch, genes] to [batch, tokens, dim]."""
        missing = -self.n_genes % self.stride
        values = F.pad(values, (0, missing)).unflatten(1, (-1, self.stride))  # [batch, tokens, stride]
        embedding = F.pad(self.embedding, (0, 0, 0, missing)).unflatten(0, (-1, self.stride))
        direction = F.pad(self.direction, (0, 0, 0, missing)).unflatten(0, (-1, self.stride))  # [tokens, stride, dim]
        return embedding.sum(dim=1) + torch.einsum("bts,tsd->btd", values, direction)
