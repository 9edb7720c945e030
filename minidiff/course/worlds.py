"""Worlds in which everything is known, that several lessons walk through, and a loupe for small pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..arguments import Count, Inside, Natural, called, checked, floats
from ..exact import GaussianMixtureDenoiser
from ..random import rand
from ..schedule import DATA
from ..store import load
from ..systems.draw import draw

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


@checked
def enlarged(
    pictures: floats("B 3 16 16"), captions: Sequence[str] | None = None, steps: Count = 10, seed: Natural = 0
) -> Tensor:
    """Scenes at 64 by 64 pixels, (B, 3, 64, 64), by the two enlargers of lesson 09: to be looked at, not measured.

    Args:
        pictures: In [-1, 1].
        captions: What the enlargers are told, one text for each picture; nothing when left out.
        steps: DDIM steps of either enlarger.
        seed: Of their noise.

    Raises:
        ValueError: when there are not as many captions as pictures.
    """
    if captions is not None and len(captions) != len(pictures):
        raise ValueError(f"{len(captions)} captions for {len(pictures)} pictures")
    told = {} if captions is None else {"caption": list(captions)}
    for enlarger in (load("glide-up32"), load("glide-up64")):
        small = enlarger.part("low_res").quantize(pictures)
        generator = torch.Generator().manual_seed(seed)
        pictures = draw(enlarger, len(small), levels=steps, generator=generator, low_res=small, **told)
    return pictures
