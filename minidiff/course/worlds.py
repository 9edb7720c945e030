"""Worlds in which everything is known, that several lessons walk through."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..arguments import Count, Inside, Natural, called, checked
from ..exact import GaussianMixtureDenoiser
from ..random import rand
from ..schedule import DATA

# of p(c|x); draws of p(x|c) are kept with probability p(c|x)^(s - 1)
Tilt = called("a finite number >= 1", float, lambda s: 1 <= s < math.inf)


@checked
def pinwheel(share: tuple[Inside, ...] = (1 / 3, 1 / 3, 1 / 3)) -> GaussianMixtureDenoiser:
    """Three classes in the plane, each a curved arm of six Gaussians.

    Args:
        share: How frequent each class is.
    """
    arms, blobs, twist = len(share), 6, 1.9
    radius = torch.linspace(0.25, 1.5, blobs, dtype=torch.float64)
    angle = torch.arange(arms, dtype=torch.float64)[:, None] * 2 * math.pi / arms + twist * (radius - 0.25)
    means = torch.stack([radius * angle.cos(), radius * angle.sin()], -1).reshape(-1, 2)
    variance = (0.10 + 0.06 * radius).square().repeat(arms)
    weights = torch.tensor(share, dtype=torch.float64).repeat_interleave(blobs)
    return GaussianMixtureDenoiser(means, variance, weights, torch.arange(arms).repeat_interleave(blobs))


@checked
def tilted_samples(world: GaussianMixtureDenoiser, label: Natural, scale: Tilt, n: Count, seed: Natural) -> Tensor:
    """n exact draws (n, d) of p(x) p(c|x)^s up to its constant, for s >= 1, by rejection from p(x|c).

    Args:
        world: A mixture with labels.
        label: The class c.
        scale: s.
        n: How many.
        seed: Of the draws.

    Raises:
        ValueError: for s < 1, where p(c|x)^(s - 1) is no probability of keeping a draw.
    """
    generator, kept = torch.Generator().manual_seed(seed), []
    while sum(map(len, kept)) < n:
        x = world.sample(2 * n, generator, label)
        keep = ((scale - 1) * world.classifier(label)(x, DATA)).exp()
        kept.append(x[rand((len(x),), generator, torch.float64) < keep])
    return torch.cat(kept)[:n]
