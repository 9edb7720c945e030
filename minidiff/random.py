"""Random numbers with explicit generators.

A ``generator`` is None, one ``torch.Generator`` for the whole batch, or a list with one per sample. With a list,
sample i depends on its own generator alone, so a picture does not change with the size of the batch it is drawn in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Generator, Tensor


def sample_generators(seed: int, indices: Iterable[int], device: str = "cpu") -> list[Generator]:
    """One generator for each index; its stream depends on the seed and that index alone."""
    out = []
    for i in indices:
        digest = hashlib.blake2b(f"{seed}/{i}".encode(), digest_size=8).digest()
        out.append(torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1))
    return out


def _draw(function, shape, generator, dtype, device) -> Tensor:
    if isinstance(generator, list):
        if len(generator) != shape[0]:
            raise ValueError(f"{len(generator)} generators for a batch of {shape[0]}: give one per sample")
        return torch.stack([_draw(function, tuple(shape[1:]), g, dtype, device) for g in generator])
    where = generator.device if generator is not None else device
    return function(tuple(shape), generator=generator, dtype=dtype, device=where).to(device)


def randn(shape, generator=None, dtype=torch.float32, device=None) -> Tensor:
    """Standard normal numbers of the given shape; the first axis is the batch."""
    return _draw(torch.randn, shape, generator, dtype, device)


def rand(shape, generator=None, dtype=torch.float32, device=None) -> Tensor:
    """Uniform numbers in [0, 1) of the given shape; the first axis is the batch."""
    return _draw(torch.rand, shape, generator, dtype, device)


def randint(high: int, batch: int, generator=None, device=None) -> Tensor:
    """(batch,) integers, uniform in 0 ... high-1."""
    draw = lambda shape, **kwargs: torch.randint(high, shape, **kwargs)
    return _draw(draw, (batch,), generator, torch.long, device)
