"""The gradient of a loss over a whole batch that is encoded in parts, so that a part's activations fit in memory.

Source: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021, arXiv 2101.06983
(GradCache).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def backward_in_parts(
    groups: Sequence[Sequence[Callable[[], Tensor]]], loss_of: Callable[..., Tensor], device: torch.device
) -> Tensor:
    """Compute the gradient of a loss over encodings that are made part by part, and return the loss.

    Each part is encoded twice: once without a graph, for the gradient of the loss with respect to the encodings, and
    once with it, to send that gradient on to the parameters. Both draw the same random numbers. Where every group is
    one part, it is encoded once.

    Parameters
    ----------
    groups : sequence of sequences of callables
        Of each group (images, genes) the parts, each a callable that encodes it to [part, dim].
    loss_of : callable
        The loss of the groups' encodings, each [rows of all its parts, dim].
    device : torch.device
        Where the encoders draw random numbers, besides the CPU.
    """
    if all(len(parts) == 1 for parts in groups):
        loss = loss_of(*(parts[0]() for parts in groups))
        loss.backward()
        return loss.detach()
    states, encoded = [], []
    with torch.no_grad():
        for parts in groups:
            rows = []
            for encode in parts:
                states.append(_random_state(device))
                rows.append(encode())
            encoded.append(rows)
    leaves = [torch.cat(rows).requires_grad_() for rows in encoded]
    loss = loss_of(*leaves)
    loss.backward()
    replay = iter(states)
    for parts, rows, leaf in zip(groups, encoded, leaves, strict=True):
        assert leaf.grad is not None
        gradients = leaf.grad.split([len(part) for part in rows])
        for encode, gradient in zip(parts, gradients, strict=True):
            _set_random_state(next(replay), device)
            encode().backward(gradient)
    return loss.detach()


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
