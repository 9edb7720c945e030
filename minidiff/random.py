"""Random numbers with explicit generators.

A ``generator`` is None, one ``torch.Generator`` for the whole batch, or a list with one per sample. With a list,
sample i depends on its own generator alone, so a picture does not change with the size of the batch it is drawn in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Generator, Tensor

from .arguments import Count, Device, Natural, Randomness, called, checked

RealType = called("a type of real numbers such as torch.float32", torch.dtype, lambda dtype: dtype.is_floating_point)


@checked
def sample_generators(seed: int, indices: Iterable[int | str], device: Device = "cpu") -> list[Generator]:
    """One generator for each index; its stream depends on the seed and that index alone."""
    out = []
    for i in indices:
        digest = hashlib.blake2b(f"{seed}/{i}".encode(), digest_size=8).digest()
        out.append(torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1))
    return out


@checked
def require_generators(generator: Randomness, batch: Natural) -> None:
    """Raise ValueError for a list of generators that is not one per sample."""
    if isinstance(generator, list) and len(generator) != batch:
        raise ValueError(f"{len(generator)} generators for a batch of {batch}: give one per sample")


def _draw(function, shape, generator, dtype, device) -> Tensor:
    if isinstance(generator, list):
        require_generators(generator, shape[0])
        return torch.stack([_draw(function, tuple(shape[1:]), g, dtype, device) for g in generator])
    where = generator.device if generator is not None else device
    return function(tuple(shape), generator=generator, dtype=dtype, device=where).to(device)


@checked
def randn(
    shape: Sequence[Natural], generator: Randomness = None, dtype: RealType = torch.float32, device=None
) -> Tensor:
    """Standard normal numbers of the given shape; the first axis is the batch."""
    return _draw(torch.randn, shape, generator, dtype, device)


@checked
def rand(
    shape: Sequence[Natural], generator: Randomness = None, dtype: RealType = torch.float32, device=None
) -> Tensor:
    """Uniform numbers in [0, 1) of the given shape; the first axis is the batch."""
    return _draw(torch.rand, shape, generator, dtype, device)


@checked
def randint(high: Count, batch: Natural, generator: Randomness = None, device=None) -> Tensor:
    """(batch,) integers, uniform in 0 ... high-1."""
    draw = lambda shape, **kwargs: torch.randint(high, shape, **kwargs)
    return _draw(draw, (batch,), generator, torch.long, device)


_seeds: Tensor | None = None  # of the samples of this step; a global, since recomputation runs in autograd's threads


@contextmanager
def per_sample(generators: list[Generator]) -> Iterator[None]:
    """Inside, ``uniform_hash`` knows the seeds of the samples of a batch: what has no generator of its own, dropout,
    then depends on the sample alone, and not on the process or the part of a batch that it is in."""
    global _seeds
    before = _seeds
    seeds = torch.tensor([g.initial_seed() >> 1 for g in generators])
    _seeds = seeds.to(generators[0].device)
    try:
        yield
    finally:
        _seeds = before


@checked
def uniform_hash(x: Tensor, salt: int) -> Tensor | None:
    """Numbers in [0, 1) of x's shape (B, ...), each a hash of its sample's seed, its place and a salt.

    None outside ``per_sample``, or for another batch than that one's. The mixer is that of splitmix64 (Steele et al.
    2014): the same call gives the same numbers again, which recomputed activations need.
    """
    if _seeds is None or len(_seeds) != len(x):
        return None
    place = torch.arange(x[0].numel(), device=x.device) + (salt << 40)
    h = _seeds.to(x.device)[:, None] + place * -7046029254386353131  # 2^64 / golden ratio, as int64
    h = (h ^ (h >> 30 & 0x3FFFFFFFF)) * -4658895280553007687
    h = (h ^ (h >> 27 & 0x1FFFFFFFFF)) * -7723592293110705685
    return ((h ^ (h >> 31 & 0x1FFFFFFFF)) >> 40 & 0xFFFFFF).float().div_(1 << 24).reshape(x.shape)
