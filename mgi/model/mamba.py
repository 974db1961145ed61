"""The Mamba block."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgi.model.scan import selective_scan

MIN_DELTA, MAX_DELTA = 1e-3, 0.1


class MambaBlock(nn.Module):
    """One Mamba mixer, with the parameter names and initialisation of `mamba_ssm.Mamba`, so weights load both ways.

    Source: Gu and Dao, 2023, arXiv 2312.00752, section 3.4.

    Parameters
    ----------
    dim : int
        Width of a token.
    state_dim : int
        State of the scan per channel.
    conv_width : int
        Tokens seen by the causal convolution before the scan.
    expand : int
        Channels of the scan for each of `dim`.
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
        self.A_log._no_weight_decay = True  # type: ignore[attr-defined]
        self.D._no_weight_decay = True  # type: ignore[attr-defined]
        self._initialise_delta()

    def _initialise_delta(self) -> None:
        """Spread the initial time steps softplus(bias) log-uniformly, as in the paper's section 3.6."""
        nn.init.uniform_(self.dt_proj.weight, -(self.delta_rank**-0.5), self.delta_rank**-0.5)
        delta = torch.exp(torch.empty_like(self.dt_proj.bias).uniform_(math.log(MIN_DELTA), math.log(MAX_DELTA)))
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
