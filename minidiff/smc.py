"""Sequential Monte Carlo along the reverse chain: guidance with the weights that a guided sampler forgets.

The target is q(x_t)^(1-s) q(x_t | c)^s at every level, which at the data is the tilted density p(x) p(c | x)^s. Guided
ancestral sampling proposes; each particle carries the ratio of what should have happened to what was proposed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .arguments import Count, Finite, Positive, Randomness, Share, checked, floats, numbers, require_broadcast
from .denoiser import Denoiser
from .prediction import require_finite
from .process import as_known, beta_tilde_floor, posterior_mean, renoise, reverse_log_variance, transition
from .random import rand, randn
from .schedule import NoiseLevel

LogDensity = Callable[[Tensor, NoiseLevel], Tensor]


@checked
@dataclass(frozen=True)
class Particles:
    """Weighted samples after a step.

    Attributes:
        x: (P * K, *shape), P populations of K particles, one population after the other.
        log_weight: (P, K), normalised: the weights of a population sum to one.
        level: The level of x.
    """

    x: Tensor
    log_weight: Tensor
    level: NoiseLevel

    @property
    def effective(self) -> Tensor:
        """(P,) effective number of particles, one over the sum of squared weights; from 1 to K."""
        return (-(2 * self.log_weight).logsumexp(1)).exp()

    def pick(self, generator: Randomness = None) -> Tensor:
        """(P, *shape): one particle of each population, drawn by its weight."""
        u = rand((len(self.log_weight), 1), generator, torch.float64, self.x.device)
        chosen = _inverse(self.log_weight, u)[:, 0]
        return self.x.unflatten(0, self.log_weight.shape)[torch.arange(len(chosen)), chosen]


def _inverse(log_weight: Tensor, u: Tensor) -> Tensor:
    """Indices (P, n) at which the cumulative weights (P, K) first exceed u (P, n) in [0, 1)."""
    cumulative = log_weight.double().softmax(1).cumsum(1)
    return torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True).clamp(max=log_weight.shape[1] - 1)


@checked
def systematic_resample(log_weight: floats(), generator: Randomness = None) -> Tensor:
    """(P, K) indices of survivors: particle i of weight w_i is copied floor(K w_i) or one more times, K w_i on average.

    One uniform number u per population; the thresholds are (u + i) / K (``eq-systematic``).

    Args:
        log_weight: (P, K) log weights, not necessarily normalised.
        generator: Random numbers.

    Raises:
        ValueError: when the weights are not a table, hold NaN, or a population has no weight at all.
    """
    if log_weight.ndim != 2:
        raise ValueError(f"log weights must have the shape (populations, particles), got {tuple(log_weight.shape)}")
    if bool(log_weight.isnan().any()) or not bool(log_weight.amax(1).isfinite().all()):
        raise ValueError("every population needs finite log weights for some of its particles")
    populations, count = log_weight.shape
    u = rand((populations, 1), generator, torch.float64, log_weight.device)
    return _inverse(log_weight, (u + torch.arange(count, device=log_weight.device)) / count)


@checked
def path_log_weight(
    conditional_mean: floats("B *S"), unconditional_mean: floats("B *S"), variance: Positive | floats(), scale: Finite
) -> Tensor:
    """(B,) s (s - 1) |mu_c - mu_u|^2 / (2 Sigma) (``eq-path-weight``).

    The normaliser of N(mu_u, Sigma)^(1-s) N(mu_c, Sigma)^s, and the step's part of the Feynman-Kac corrector of
    Skreta et al. 2025: 1/2 s (s - 1) g^2 |score_c - score_u|^2 dt as steps shrink.

    Args:
        conditional_mean: (B, ...) reverse mean with the condition.
        unconditional_mean: (B, ...) reverse mean without.
        variance: Reverse variance, a number or of a shape that broadcasts.
        scale: s.
    """
    require_broadcast(conditional_mean, variance)
    square = (conditional_mean - unconditional_mean) ** 2 / variance
    return scale * (scale - 1) / 2 * square.flatten(1).sum(1)


@checked
def corrected(
    conditional: Denoiser,
    unconditional: Denoiser,
    scale: Finite,
    levels: Sequence[NoiseLevel],
    x_T: floats("B *S"),
    generator: Randomness = None,
    *,
    particles: Count | None = None,
    variance: str = "beta",
    log_density: LogDensity | None = None,
    threshold: Share = 0.5,
) -> Iterator[Particles]:
    """Guided ancestral sampling with weights and resampling; the weighted particles tend to p(x) p(c | x)^s.

    Without ``log_density`` the weights need nothing but the two denoisers and are right in the limit of small steps
    (``eq-path-weight``). With it they are right for any number of steps (``eq-smc-weight``; Del Moral et al. 2006).

    Args:
        conditional: Denoiser of q(x_t | c).
        unconditional: Denoiser of q(x_t).
        scale: s.
        levels: At least two scalar levels, from noise to data.
        x_T: (P * K, *shape), drawn from N(0, sigma_T^2 I).
        generator: One generator.
        particles: K, the particles of a population; populations do not compete. The whole batch when left out.
        variance: Reverse variance, "beta" or "beta_tilde".
        log_density: ``(x, level) -> (B,)`` log of q(x_t)^(1-s) q(x_t | c)^s up to a constant for each level.
        threshold: Populations whose effective number falls below this share of K are resampled.

    Yields:
        The particles after each step, the data last.

    Raises:
        ValueError: for an x_T that is not finite or does not hold whole populations, a chain without a step, an unknown
            variance, or a threshold outside [0, 1].
    """
    count = _particles(levels, x_T, particles, variance, threshold)
    floor, x = beta_tilde_floor(levels), x_T
    log_weight = torch.full((len(x) // count, count), -math.log(count), dtype=torch.float64, device=x.device)
    for t, r in pairwise(levels):
        with torch.no_grad():
            cond, uncond = conditional(x, t), unconditional(x, t)
        mean_c, mean_u = (posterior_mean(x, prediction.x0, t, r) for prediction in (cond, uncond))
        mean, spread = mean_u + scale * (mean_c - mean_u), math.exp(reverse_log_variance(None, t, r, variance, floor))
        noise = randn(x.shape, generator, x.dtype, x.device) if r.sigma > 0 or log_density else torch.zeros_like(x)
        after = mean + math.sqrt(spread) * noise
        if log_density is None:
            step = path_log_weight(mean_c, mean_u, spread, scale)
        else:
            keep, forward = transition(r, t)
            back = ((x - keep * after) ** 2 / forward).flatten(1).sum(1)
            step = log_density(after, r) - log_density(x, t) + ((noise**2).flatten(1).sum(1) - back) / 2
        moved = _reweighted(after, log_weight, step, r, threshold, generator)
        x, log_weight = moved.x, moved.log_weight
        yield moved


@checked
def filtered_replacement(
    denoiser: Denoiser,
    image: floats("P/1 *S"),
    mask: numbers("P/1 *S/1"),
    levels: Sequence[NoiseLevel],
    x_T: floats("B *S"),
    generator: Randomness = None,
    *,
    particles: Count | None = None,
    variance: str = "beta",
    threshold: Share = 0.5,
) -> Iterator[Particles]:
    """The replacement method with the weights that it forgets; the weighted particles tend to p(unknown | known).

    SMCDiff (Trippe et al. 2023, algorithm 1): one noised path of the known pixels is drawn forwards for each
    population; a particle's weight is how likely its reverse step was to meet that path (``eq-replacement-weight``).
    Exact in the limit of small steps and many particles, each population for its own path.

    Args:
        denoiser: Denoiser of all pixels, that knows nothing of masks.
        image: (P or 1, *shape), one for each population; its values where the mask is 0 do not matter.
        mask: (P or 1, ...) that broadcasts to the image, 1 where a pixel is known, 0 elsewhere.
        levels: At least two scalar levels, from noise to data.
        x_T: (P * K, *shape), drawn from N(0, sigma_T^2 I).
        generator: One generator.
        particles, variance, threshold: As for ``corrected``.

    Yields:
        The particles after each step, the data last.

    Raises:
        ValueError: as ``corrected``, and when the mask holds anything but 0 and 1.
    """
    count = _particles(levels, x_T, particles, variance, threshold)
    populations, floor = len(x_T) // count, beta_tilde_floor(levels)
    if {len(image), len(mask)} - {1, populations}:
        raise ValueError(f"{populations} populations take 1 or {populations} images and masks")
    each = lambda part: part.expand(populations, *x_T.shape[1:]).repeat_interleave(count, 0)
    known = each(as_known(mask))
    path = [image.to(x_T).expand(populations, *x_T.shape[1:])]
    for r, t in pairwise(levels[::-1]):
        path.append(renoise(path[-1], r, t, randn(path[0].shape, generator, x_T.dtype, x_T.device)))
    x = torch.where(known, each(path.pop()), x_T)
    log_weight = torch.full((populations, count), -math.log(count), dtype=torch.float64, device=x.device)
    for t, r in pairwise(levels):
        with torch.no_grad():
            mean = posterior_mean(x, denoiser(x, t).x0, t, r)
        spread, there = math.exp(reverse_log_variance(None, t, r, variance, floor)), each(path.pop())
        missed = torch.where(known, there - mean, 0.0).flatten(1).square().sum(1)
        noise = randn(x.shape, generator, x.dtype, x.device) if r.sigma > 0 else torch.zeros_like(x)
        after = torch.where(known, there, mean + math.sqrt(spread) * noise)
        moved = _reweighted(after, log_weight, -missed / (2 * spread), r, threshold, generator)
        x, log_weight = moved.x, moved.log_weight
        yield moved


def _particles(
    levels: Sequence[NoiseLevel], x_T: Tensor, particles: Count | None, variance: str, threshold: Share
) -> int:
    """The particles of a population; raises ValueError for arguments that no chain of particles can have."""
    require_finite(x_T, "x_T")
    count = len(x_T) if particles is None else particles
    if count < 1 or not len(x_T) or len(x_T) % count:
        raise ValueError(f"a batch of {len(x_T)} does not hold whole populations of {count} particles")
    if len(levels) < 2 or variance not in ("beta", "beta_tilde"):
        raise ValueError(
            f"needs two levels or more, variance 'beta' or 'beta_tilde'; got {len(levels)} levels and {variance!r}"
        )
    return count


def _reweighted(
    x: Tensor, log_weight: Tensor, step: Tensor, level: NoiseLevel, threshold: Share, generator
) -> Particles:
    """Particles with the weights of one more step (B,) multiplied in, resampled where they have become poor."""
    log_weight = (log_weight + step.double().reshape(log_weight.shape)).log_softmax(1)
    moved = Particles(x, log_weight, level)
    poor = moved.effective < threshold * log_weight.shape[1]
    return _resampled(moved, poor, generator) if level.sigma > 0 and bool(poor.any()) else moved


def _resampled(particles: Particles, poor: Tensor, generator) -> Particles:
    """The populations marked in ``poor`` (P,) resampled to even weights, the others as they are."""
    log_weight = particles.log_weight
    populations, count = log_weight.shape
    stay = torch.arange(count, device=poor.device).expand(populations, count)
    chosen = torch.where(poor[:, None], systematic_resample(log_weight, generator), stay)
    first = count * torch.arange(populations, device=poor.device)[:, None]
    even = torch.full_like(log_weight, -math.log(count))
    x = particles.x[(first + chosen).flatten()]
    return Particles(x, torch.where(poor[:, None], even, log_weight), particles.level)
