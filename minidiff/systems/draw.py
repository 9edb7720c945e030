"""Draw many images from a system: in batches, over several processes, image i always the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ..random import sample_generators
from .cascade import cascade


def draw(
    system: nn.Module,
    told: Tensor,
    seed: int = 0,
    batch: int = 64,
    rank: int = 0,
    world: int = 1,
    stages: Sequence[tuple[nn.Module, dict]] = (),
    **options,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One image of each that is told; image i depends on the seed, what is told and i alone, not on batch or processes.

    Args:
        system: A system with ``sample(told, ..., generator)``.
        told: (N,) labels, or (N, L) tokens of captions.
        seed: Seed.
        batch: Images at a time.
        rank: This process.
        world: Number of processes; each draws every ``world``-th image.
        stages: Upsamplers that are told the same and enlarge the images in turn, each with further options.
        options: What else ``system.sample`` takes: scale, steps, sampler, classifier.

    Yields:
        (b,) indices and (b, C, H, W) images on the CPU, until this process has drawn its share.

    Raises:
        ValueError: unless 0 <= rank < world, or when batch is no positive number, or a stage does not fit.
    """
    if not 0 <= rank < world or batch < 1:
        raise ValueError(f"need 0 <= rank < world and batch >= 1, got rank {rank}, world {world}, batch {batch}")
    device = next(system.parameters()).device
    for mine in torch.arange(rank, len(told), world).split(batch):
        generators, shown = sample_generators(seed, mine.tolist(), device.type), told[mine].to(device)
        if stages:
            images = cascade([(system, options), *stages], shown, generator=generators)
        else:
            images = system.sample(shown, generator=generators, **options)
        yield mine, images.cpu()
