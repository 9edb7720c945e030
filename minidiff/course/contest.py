"""A contest of guidance schedules: small photographs from few levels, all from one noise, by a committed network."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..arguments import Count, Natural, Positive, checked, floats
from ..guidance import static_threshold
from ..metrics import bootstrap, frechet_distance
from ..metrics.embedders import embedder
from ..metrics.intervals import Interval
from ..prediction import Prediction
from ..random import randn
from ..sampler import ddim, sample
from ..schedule import NoiseLevel
from ..store import data_folder, load

MODEL, JUDGE, MOMENTS = "cifar16", "cifar16-classifier-clean", "photographs.safetensors"
STEPS, BLOCKS = 6, 20  # levels of a chain; blocks of ten photographs, one of each class
PRACTICE, GRADING = 7, 11  # seeds of the noise
BEST, NEXT = 1.5, 2.0  # the scales of the card that come nearest to real photographs


@checked
def levels() -> list[NoiseLevel]:
    """The levels at which a schedule is asked for its scale, from noise to data."""
    return load(MODEL).schedule.levels(STEPS)[:-1]


@checked
def raced(schedule: Callable[[NoiseLevel], float], seed: Natural) -> Tensor:
    """Features (N, d) of N photographs that are guided with a scale for each level, by DDIM.

    Args:
        schedule: From a level to the scale, counted from the unconditional prediction.
        seed: Of the noise; schedules are compared at the same one.

    Raises:
        ValueError: for a scale that is not finite.
    """
    scales = tuple(float(schedule(level)) for level in levels())
    if not all(map(math.isfinite, scales)):
        raise ValueError(f"a scale for every level is accepted, each finite, got {list(scales)}")
    return _features(scales, seed)


@checked
def rival(scale: Positive, seed: Natural) -> Tensor:
    """What ``raced`` made of a constant scale when ``tools/photographs.py`` was run, so that nobody waits for it.

    Raises:
        ValueError: for another scale than ``BEST`` and ``NEXT``, or another noise than ``PRACTICE`` and ``GRADING``.
    """
    stored, name = load_file(data_folder() / MOMENTS), f"s = {scale:g}, noise {seed}"
    if name not in stored:
        raise ValueError(f"{', '.join(sorted(n for n in stored if '=' in n))} are accepted, got {name}")
    return stored[name]


@cache
def _features(scales: tuple[float, ...], seed: int) -> Tensor:
    model, label = load(MODEL), torch.arange(10).repeat(BLOCKS)
    told, null = model.condition(label=label), model.null(len(label))
    at = {level.time: scale for level, scale in zip(levels(), scales, strict=True)}

    def guided(x: Tensor, level: NoiseLevel) -> Prediction:
        found, scale = model(x, level, told), at[level.time]
        if scale == 1:
            return found
        plain = model(x, level, null)
        return found.with_x0(plain.x0 + scale * (found.x0 - plain.x0))

    noise = randn((len(label), *model.shape), torch.Generator().manual_seed(seed))
    with torch.no_grad():
        drawn = sample(ddim(), static_threshold(guided), [*levels(), model.schedule.levels(STEPS)[-1]], noise)
    return embedder(JUDGE).images(drawn)


@checked
def points(mean: floats("D"), covariance: floats("D D")) -> Tensor:
    """(2 D, D) points that have this mean and, as samples, this covariance: two on each of its axes."""
    values, vectors = torch.linalg.eigh(covariance.double())
    d = len(mean)
    axes = vectors * ((2 * d - 1) / 2 * values.clamp(min=0)).sqrt()
    return mean.double() + torch.cat([axes.T, -axes.T])


@cache
def _real() -> Tensor:
    moments = load_file(data_folder() / MOMENTS)
    return points(moments["mean"], moments["covariance"])


@checked
def distance(features: floats("N D")) -> Interval:
    """Fréchet distance of what was raced from the unseen photographs of CIFAR-10, with its interval over blocks."""
    return _over_blocks(lambda rows: frechet_distance(features[rows], _real()))


@checked
def lead(features: floats("N D"), others: floats("N D")) -> Interval:
    """How much nearer to real photographs the first are than the second, from the same noise; with its interval."""
    apart = lambda rows: frechet_distance(others[rows], _real()) - frechet_distance(features[rows], _real())
    return _over_blocks(apart)


def _over_blocks(statistic: Callable[[Tensor], float], draws: Count = 200) -> Interval:
    rows = lambda blocks: (10 * blocks[:, None] + torch.arange(10)).flatten()
    generator = torch.Generator().manual_seed(0)
    return bootstrap(lambda i: statistic(rows(i)), torch.arange(BLOCKS), generator=generator, draws=draws)
