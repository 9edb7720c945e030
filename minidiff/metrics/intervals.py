"""Intervals around statistics of images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import Count, Finite, Inside, checked, floats, numbers


class Interval(NamedTuple):
    """A measured value and the ends of its interval; unpacks and slices as a tuple."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


@checked
def bootstrap(
    statistic: Callable[..., float],
    *samples: Tensor,
    strata: Sequence[Tensor | None] | None = None,
    generator: torch.Generator | None = None,
    draws: Count = 400,
    level: Inside = 0.95,
    debias: bool = False,
) -> Interval:
    """``statistic(*samples)`` with an interval, by drawing half of every sample without replacement.

    Resampling with replacement repeats images, and a repeated image is its own nearest neighbour, a kernel's diagonal,
    a lost dimension: it moves KID, FID and precision whatever the data. A half without replacement repeats none, and
    a mean over n/2 of n values scatters about the mean over n with variance (2/n - 1/n) s^2 = s^2/n, exactly as the
    mean over n scatters about the truth (Politis and Romano 1994; Shao and Wu 1989, delete-half jackknife).
    So with T* the statistic of halves, T - (T* - E T*) are the values that the expectation of T could well have.

    The interval covers that expectation: the statistic *at this number of images*, which is what a published "FID" is.
    A bias b/n is 2b/n in the halves, so 2T - E T* has none to that order; ``debias`` moves value and interval there.
    Where the statistic has no linear part (a distance of equal distributions) the interval is up to sqrt 3 too wide.

    **Images drawn by class are not independent draws**: with 50 of each class, the classes' shares do not fluctuate,
    though they do in a random half, and between classes lies most of what features vary in. Name the classes in
    ``strata`` and every half keeps the shares.

    To compare two models, pass both and the reference to one statistic, the difference: they share the reference's
    noise. A sample that is to count as known and fixed belongs in the statistic's closure.

    Args:
        statistic: From as many tensors as there are samples to a number.
        samples: Tensors whose first axis counts images; each is halved by itself. To keep several tensors of the same
            images together, pass their indices as one sample.
        strata: For each sample the (N,) classes that its images were drawn by, or None.
        generator: For the halves.
        draws: Number of halves.
        level: Probability that the interval covers.
        debias: Remove the bias of order 1/n.

    Raises:
        ValueError: for a sample of fewer than 4, draws < 20, a level outside (0, 1), or strata that do not fit.
    """
    value = float(statistic(*samples))
    scattered = halves(statistic, *samples, strata=strata, generator=generator, draws=draws)
    return around(2 * value - float(scattered.mean()) if debias else value, scattered, level)


@checked
def halves(
    statistic: Callable[..., float], *samples: Tensor, strata=None, generator=None, draws: Count = 400
) -> Tensor:
    """(draws,) float64 values of a statistic of random halves of its samples; see ``bootstrap``."""
    sizes = [len(s) for s in samples]
    if not sizes or min(sizes) < 4:
        raise ValueError(f"an interval needs samples of at least 4, got {sizes}")
    if draws < 20:
        raise ValueError(f"need draws >= 20, got {draws}")
    strata = [None] * len(samples) if strata is None else strata
    strata = [torch.zeros(n) if s is None else s.cpu() for n, s in zip(sizes, strata, strict=True)]
    if [len(s) for s in strata] != sizes:
        raise ValueError(f"need one stratum an image, got {[len(s) for s in strata]} for samples of {sizes}")

    def half(sample: Tensor, stratum: Tensor) -> Tensor:
        return sample[subset(stratum, len(sample) // 2, generator).to(sample.device)]

    values = [float(statistic(*map(half, samples, strata))) for _ in range(draws)]
    return torch.tensor(values, dtype=torch.float64)


@checked
def subset(strata: numbers("N"), count: int, generator: torch.Generator | None = None) -> Tensor:
    """(count,) random indices without repetition into strata (N,), of each stratum its share, up to one.

    Raises:
        ValueError: for a count below 1 or above N.
    """
    n = len(strata)
    if not 1 <= count <= n:
        raise ValueError(f"cannot take {count} of {n} images")
    device = generator.device if generator is not None else "cpu"
    order = torch.randperm(n, generator=generator, device=device).cpu()
    order = order[strata[order].argsort(stable=True)]
    start = torch.randint(n, (1,), generator=generator, device=device).cpu()
    return order[(torch.arange(count) * n + start) // count]


@checked
def around(value: Finite, scattered: floats("draws"), level: Inside = 0.95) -> Interval:
    """The interval of a value whose statistic takes the ``scattered`` (draws,) values on halves; see ``bootstrap``."""
    if not len(scattered) or not bool(scattered.isfinite().all()):
        raise ValueError(f"need finite values of halves, got {len(scattered)} values")
    scattered = scattered.double()
    tails = torch.tensor([(1 + level) / 2, (1 - level) / 2], dtype=torch.float64)
    low, high = (value - (scattered - scattered.mean()).quantile(tails)).tolist()
    return Interval(value, low, high)


@checked
def proportion(successes: numbers("N"), level: Inside = 0.95) -> Interval:
    """The mean of (N,) outcomes with Wilson's interval (1927), which has a width at 0 and 1 as well.

    Outcomes are zeros and ones, or shares of several: these vary less, and the interval is wider than it need be.

    Raises:
        ValueError: for an empty sample, outcomes outside [0, 1], or a level outside (0, 1).
    """
    n = len(successes)
    if not (n and bool(((successes >= 0) & (successes <= 1)).all())):
        raise ValueError(f"at least one outcome is needed, and all from 0 to 1; got {n} outcomes")
    p, z = float(successes.double().mean()), math.sqrt(2) * float(torch.erfinv(torch.tensor(level).double()))
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    width = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return Interval(p, max(0.0, min(p, centre - width)), min(1.0, max(p, centre + width)))


@checked
def share_difference(first: numbers("N"), second: numbers("M"), level: Inside = 0.95, paired: bool = True) -> Interval:
    """The mean of zeros and ones less that of others; the interval has a width where all agree and stays in [-1, 1].

    Wald's interval after one more of each kind was added: to the pairs one that favours either (Bonett and Price 2012),
    to samples drawn apart a success and a failure each (Agresti and Caffo 2000).

    Args:
        first: (N,).
        second: (M,); with ``paired`` M = N and entry i belongs to entry i of the first.
        level: Probability that the interval covers.
        paired: Whether the two were measured on the same subjects.

    Raises:
        ValueError: for an empty sample, anything but zeros and ones, unequal lengths of pairs, or a level outside
            (0, 1).
    """
    n, m = len(first), len(second)
    _require_outcomes(first, second)
    if min(n, m) == 0 or (paired and n != m):
        raise ValueError(f"need outcomes, as many of both where paired, got {n} and {m}")
    one, two = first.double(), second.double()
    p, q = float(one.mean()), float(two.mean())
    if paired:
        ahead, behind = (float(((x - y) > 0).sum() + 1) / (n + 2) for x, y in ((one, two), (two, one)))
        centre, variance = ahead - behind, (ahead + behind - (ahead - behind) ** 2) / (n + 2)
    else:
        (a, k), (b, l) = (((float(x.sum()) + 1) / (len(x) + 2), len(x) + 2) for x in (one, two))
        centre, variance = a - b, a * (1 - a) / k + b * (1 - b) / l
    half = math.sqrt(2) * float(torch.erfinv(torch.tensor(level).double())) * math.sqrt(variance)
    return Interval(p - q, max(-1.0, min(p - q, centre - half)), min(1.0, max(p - q, centre + half)))


def _require_outcomes(*samples: Tensor) -> None:
    for outcomes in samples:
        if not bool(((outcomes == 0) | (outcomes == 1)).all()):
            raise ValueError("outcomes are zeros and ones (or False and True), and nothing else")
