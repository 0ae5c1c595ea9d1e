"""Several processes that train one model together: each takes its part of a batch, all keep the same weights.

For CPUs, where two processes of one thread wait for each other less than two threads of one process
do on a busy machine. Started by torchrun, or by hand with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT
in the environment.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's number, from 0, and how many there are."""

    rank: int = 0
    world: int = 1

    def mine(self, items: Sequence[T]) -> Sequence[T]:
        """Every world-th of the items, beginning with this process's."""
        return items[self.rank :: self.world]

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Replaces each tensor by its sum over all processes, in one exchange."""
        if self.world == 1:
            return
        parts = list(tensors)
        flat = torch.cat([part.reshape(-1) for part in parts])
        dist.all_reduce(flat)
        for part, total in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
            part.copy_(total.view_as(part))

    def first(self, *values: float) -> list[float]:
        """The values of process 0, so that all decide alike."""
        if self.world == 1:
            return list(values)
        shared = torch.tensor(values, dtype=torch.float64)
        dist.broadcast(shared, src=0)
        return shared.tolist()


def join() -> Ranks:
    """Joins the processes that the environment announces; alone where it announces none."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Ranks()
    dist.init_process_group("gloo")
    return Ranks(dist.get_rank(), world)
