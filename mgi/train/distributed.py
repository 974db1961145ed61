"""Training by several processes, started by torchrun: who does which share, and what they tell each other.

Every process draws the same global batch, does its share of it, and computes the loss of the whole batch from what all
have gathered. Its gradient then flows through its own share alone, so the sum of the processes' gradients is the
gradient of the global batch: the one that a single process would compute.
"""

import atexit
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mgi.console import log
from mgi.train.device import Place


@dataclass(frozen=True)
class Ranks:
    """The place of a process among those that train together.

    Attributes
    ----------
    rank, world : int
        Its number, from 0, and how many there are.
    """

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes what all have computed."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Return the part of `count` items that this process does: contiguous, the parts in the order of the ranks."""
        return self._shares(count)[self.rank]

    def gather(self, own: Tensor, count: int, each: int = 1) -> Tensor:
        """Gather the shares of all processes, [share, ...], in order; the gradient flows through the own share.

        Parameters
        ----------
        own : Tensor, [rows, ...]
            The rows of the items that `share(count)` names.
        count : int
            Items of all processes.
        each : int
            Rows of an item.

        Returns
        -------
        Tensor, [count * each, ...]
        """
        if self.world == 1:
            return own
        sizes = [(part.stop - part.start) * each for part in self._shares(count)]
        padded = own.new_zeros((max(sizes), *own.shape[1:]))
        padded[: len(own)] = own.detach()
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        rows = [part[:size] for part, size in zip(parts, sizes, strict=True)]
        rows[self.rank] = own
        return torch.cat(rows)

    def once(self, parameter: Tensor) -> Tensor:
        """Return a parameter that all processes use alike after gathering: only the first has its gradient."""
        return parameter if self.first else parameter.detach()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the processes' gradients in place; a parameter that a process did not use counts as zero."""
        if self.world == 1:
            return
        parameters = list(parameters)
        # What no process used keeps no gradient, so that the optimiser leaves it alone.
        used = torch.tensor([parameter.grad is not None for parameter in parameters], device=parameters[0].device).int()
        dist.all_reduce(used, dist.ReduceOp.MAX)
        for parameter, anywhere in zip(parameters, used.tolist(), strict=True):
            if anywhere:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                dist.all_reduce(parameter.grad)

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set in any process."""
        if self.world == 1:
            return flag
        flags = torch.tensor(int(flag), device=device)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags.item())

    def _shares(self, count: int) -> list[slice]:
        ends = np.cumsum([len(part) for part in np.array_split(np.arange(count), self.world)]).tolist()
        return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def join_ranks(place: Place) -> tuple[Ranks, Place]:
    """Join the processes that torchrun started, if it did, and return this one's number and place."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Ranks(), place
    if place.device.type == "cuda":
        place = replace(place, device=torch.device("cuda", int(os.environ["LOCAL_RANK"])))
        torch.cuda.set_device(place.device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if place.device.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
    if dist.get_rank():
        log.setLevel(logging.WARNING)  # the first tells how it goes
    return Ranks(dist.get_rank(), dist.get_world_size()), place
