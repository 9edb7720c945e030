"""Draw many images from a system: in batches, over several processes, image i always the same."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..random import sample_generators


def draw(
    system: nn.Module, labels: Tensor, seed: int = 0, batch: int = 64, rank: int = 0, world: int = 1, **options
) -> Iterator[tuple[Tensor, Tensor]]:
    """One image per label; image i depends on the seed, its label and i alone, not on batch or number of processes.

    Args:
        system: A system with ``sample(labels, ..., generator)``.
        labels: (N,) one label per image.
        seed: Seed.
        batch: Images at a time.
        rank: This process.
        world: Number of processes; each draws every ``world``-th image.
        options: What else ``system.sample`` takes: scale, steps, sampler, classifier.

    Yields:
        (b,) indices and (b, C, H, W) images on the CPU, until this process has drawn its share.

    Raises:
        ValueError: unless 0 <= rank < world, or when batch is no positive number.
    """
    if not 0 <= rank < world or batch < 1:
        raise ValueError(f"need 0 <= rank < world and batch >= 1, got rank {rank}, world {world}, batch {batch}")
    device = next(system.parameters()).device
    for mine in torch.arange(rank, len(labels), world).split(batch):
        generators = sample_generators(seed, mine.tolist(), device.type)
        yield mine, system.sample(labels[mine].to(device), generator=generators, **options).cpu()
