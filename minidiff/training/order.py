"""Training data, in an order that depends on the seed and the step alone."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..arguments import Count, Natural, checked
from ..data.sets import Columns
from ..data.workers import loaded
from ..random import sample_generators


@checked
class Order:
    """Endless shuffled indices: epoch e is a permutation drawn from (seed, e), and any step can be asked for.

    Args:
        n: Number of images.
        batch: Images per step.
        seed: Seed.
        shards: Sizes of consecutive runs of images that lie in one file. The files are shuffled, and the images of
            ``window`` files at a time, so that reading stays local.
        window: Files that are mixed.
    """

    def __init__(self, n: Count, batch: Count, seed: int, shards: Sequence[int] | None = None, window: Count = 16):
        if n < 1:
            raise ValueError("there are no images to train on")
        self.n, self.batch, self.seed, self.shards, self.window = n, batch, seed, shards, window
        self._epoch, self._permutation = -1, None

    def _permuted(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            generator = sample_generators(self.seed, [epoch])[0]
            if self.shards is None:
                permutation = torch.randperm(self.n, generator=generator)
            else:
                files = torch.arange(self.n).split(list(self.shards))
                shuffled = [files[i] for i in torch.randperm(len(files), generator=generator).tolist()]
                mixed = [torch.cat(shuffled[i : i + self.window]) for i in range(0, len(shuffled), self.window)]
                permutation = torch.cat([m[torch.randperm(len(m), generator=generator)] for m in mixed])
            self._epoch, self._permutation = epoch, permutation
        return self._permutation

    def __getitem__(self, step: int) -> Tensor:
        """(batch,) indices of a step."""
        start, parts, missing = step * self.batch, [], self.batch
        while missing:
            epoch, offset = divmod(start + self.batch - missing, self.n)
            parts.append(self._permuted(epoch)[offset : offset + missing])
            missing -= len(parts[-1])
        return torch.cat(parts)


class _Slices:
    """The index lists of one process, from a step on; what a DataLoader calls a batch sampler."""

    def __init__(self, order: Order, steps: range, share: slice):
        self.order, self.steps, self.share = order, steps, share

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            yield self.order[step][self.share].tolist()


@checked
def batches(
    found: Dataset, order: Order, steps: range, share: slice, workers: Natural = 0
) -> Iterator[dict[str, Tensor]]:
    """Columns of one process's share of each step; a run may begin at any step, inside an epoch too.

    Raises:
        ValueError: when workers find too little shared memory.
    """
    if isinstance(found, Columns):
        return (found[order[step][share]] for step in steps)
    pinned = torch.cuda.is_available()
    slices = _Slices(order, steps, share)
    ahead = DataLoader(found, batch_sampler=slices, num_workers=workers, pin_memory=pinned, worker_init_fn=_go_on)
    return loaded(ahead)


def _go_on(worker: int) -> None:
    """Ctrl-C is for the training process, which still needs the images of its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
