"""One process, or several under torchrun, each with its share of the images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor

from ..arguments import Count, Natural, checked


@checked
@dataclass(frozen=True)
class Processes:
    """This process among its peers.

    Attributes:
        rank: Number of this process; the first one reports.
        world: Number of processes.
        device: Where this process computes.
    """

    rank: Natural
    world: Count
    device: torch.device

    def share(self, n: int) -> range:
        """The indices of n images that are this process's."""
        return range(self.rank, n, self.world)

    def gathered(self, parts: Iterable[tuple[Tensor, ...]]) -> tuple[Tensor, ...] | None:
        """Rows of all processes in the order of their index, the first tensor of a part, which is left out.

        Every process takes part; the first gets the result, () where nobody has a row, the others None.
        """
        mine = tuple(torch.cat(column).cpu() for column in zip(*parts, strict=True))
        if self.world == 1:
            everyone = [mine]
        else:
            everyone = [None] * self.world if self.rank == 0 else None
            torch.distributed.gather_object(mine, everyone)
            if everyone is None:
                return None
        everyone = [rows for rows in everyone if rows]
        if not everyone:
            return ()
        index, *columns = (torch.cat(column) for column in zip(*everyone, strict=True))
        order = index.argsort()
        return tuple(column[order] for column in columns)


@contextmanager
def processes(cpu: bool = False) -> Iterator[Processes]:
    """The processes that torchrun started, or this one alone; results travel over the CPU."""
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    device = torch.device("cpu")
    if torch.cuda.is_available() and not cpu:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if world > 1:
        torch.distributed.init_process_group("gloo", timeout=timedelta(days=1))
    try:
        yield Processes(rank, world, device)
    finally:
        if world > 1:
            torch.distributed.destroy_process_group()
