"""Planted wrong answers of lesson 05 (name -> (answer, a case that it must fail)), and second right answers."""

from __future__ import annotations

import bisect
import itertools
import math
import random

import torch

from minidiff.course.checks.l05_what_guidance_samples import measure_effective
from minidiff.denoiser import conditioned
from minidiff.exact import GaussianMixtureDenoiser
from minidiff.guidance import guidance_interval
from minidiff.process import posterior_mean
from minidiff.random import randn
from minidiff.sampler import ancestral
from minidiff.schedule import NoiseLevel, cosine_schedule


def _v(variance, alpha):
    return 1 - (1 - variance) * alpha**2


def _by_integration(v, s, high, low, n=20000):
    """Midpoint rule for d log x over u = alpha^2, in three stretches."""
    exponent = 0.0
    for scale, first, last in ((1.0, 0.0, high), (s, high, low), (1.0, low, 1.0)):
        width = (last**2 - first**2) / n
        u = first**2 + width * (torch.arange(n, dtype=torch.float64) + 0.5)
        exponent -= scale * ((1 - v) / (1 - (1 - v) * u)).sum().item() * width
    return math.exp(exponent)


def _weight_by_densities(c, u, variance, s):
    """The weight as a ratio of log densities, read off at an arbitrary point."""
    point = torch.zeros_like(c)
    energy = lambda mean: -(point - mean).square().flatten(1).sum(1) / (2 * variance)
    return (1 - s) * energy(u) + s * energy(c) - energy(u + s * (c - u))


def _weight(factor):
    """log_weight with another factor of the summed squared distance."""
    return lambda c, u, variance, s: factor(s, variance) * (c - u).square().flatten(1).sum(1)


def _systematic_by_bisection(weights, u):
    heaped = list(itertools.accumulate(weights))
    return [min(bisect.bisect_right(heaped, (u + j) / len(weights)), len(weights) - 1) for j in range(len(weights))]


def _without_clamp(weights, u):
    heaped = torch.tensor(weights, dtype=torch.float64).cumsum(0)
    return torch.searchsorted(heaped, (u + torch.arange(len(weights))) / len(weights), right=True).tolist()


def _one_off(weights, u):
    return [(i + 1) % len(weights) for i in _systematic_by_bisection(weights, u)]


def _multinomial(weights, u):
    return sorted(random.Random(u).choices(range(len(weights)), weights, k=len(weights)))


def _deterministic(weights, u):
    return _systematic_by_bisection(weights, 0.5)


def _best_only(weights, u):
    return [max(range(len(weights)), key=weights.__getitem__)] * len(weights)


def _scaled_start(weights, u):
    """(u + j / K) without dividing u: thresholds beyond one pile up on the last."""
    heaped = list(itertools.accumulate(weights))
    return [min(bisect.bisect_right(heaped, u + j / len(weights)), len(weights) - 1) for j in range(len(weights))]


def _tilted(log_prior):
    """tilted_x0 with another log weight of the points, and the right noise."""

    def denoise(points, log_p, log_class, scale, x, alpha, sigma):
        noise = -((x[:, None] - alpha * points) ** 2) / (2 * sigma**2)
        return (log_prior(log_p, log_class, scale) + noise).softmax(1) @ points

    return denoise


def _with_noise(log_noise):
    """tilted_x0 with another log noise kernel."""

    def denoise(points, log_p, log_class, scale, x, alpha, sigma):
        return (log_p + scale * log_class + log_noise(x[:, None], points, alpha, sigma)).softmax(1) @ points

    return denoise


def _guided_x0(points, log_p, log_class, scale, x, alpha, sigma):
    """What guidance does: E_u + s (E_c - E_u)."""
    noise = -((x[:, None] - alpha * points) ** 2) / (2 * sigma**2)
    plain, cond = ((w + noise).softmax(1) @ points for w in (log_p, log_p + log_class))
    return plain + scale * (cond - plain)


def _tilted_by_sums(points, log_p, log_class, scale, x, alpha, sigma):
    """Plain sums, sample by sample, without logarithms."""
    out = []
    for value in x.tolist():
        weight = (log_p + scale * log_class).exp() * torch.distributions.Normal(alpha * points, sigma).log_prob(
            torch.tensor(value, dtype=torch.float64)
        ).exp()
        out.append(float((weight * points).sum() / weight.sum()))
    return torch.tensor(out, dtype=torch.float64)


def _interval(inside):
    def build(guided, plain, low, high):
        return lambda x, level: (guided if inside(level, low, high) else plain)(x, level)

    return build


def _asks_both(guided, plain, low, high):
    def limited(x, level):
        g, p = guided(x, level), plain(x, level)
        return g if low < level.sigma / level.alpha <= high else p

    return limited


def _blends(guided, plain, low, high):
    def limited(x, level):
        inside = low < level.sigma / level.alpha <= high
        prediction = guided(x, level) if inside else plain(x, level)
        return prediction.with_x0(prediction.x0.clamp(-1, 1)) if inside else prediction

    return limited


def _effective_by_hand(count=20_000):
    """The race without the package's Monte Carlo: the ancestral sampler's path, and the weights of its steps."""
    world, levels = GaussianMixtureDenoiser(torch.tensor([[-0.5], [0.5]]), 0.25), cosine_schedule().levels(50)
    told, total = conditioned(world, 1), torch.zeros(count, dtype=torch.float64)
    guided = lambda x, at: world(x, at).with_eps(world(x, at).eps + 2 * (told(x, at).eps - world(x, at).eps))
    x_T = randn((count, 1), torch.Generator().manual_seed(5), torch.float64)
    for t, state in zip(levels, ancestral("beta")(guided, levels, x_T, torch.Generator().manual_seed(6)), strict=False):
        x, r = state.prediction.x, state.level
        c, u = (posterior_mean(x, d(x, t).x0, t, r) for d in (told, world))
        total += (c - u)[:, 0] ** 2 / (t.sigma**2 - (t.alpha / r.alpha) ** 2 * r.sigma**2)
    weight = total.softmax(0)
    return (1 / weight.square().sum() / count).item()


MUTANTS = {
    "ex-05-guided-variance": {
        "tilted": (lambda v, s, h, c: v / (v + s * (1 - v)), "everywhere-is-v-to-the-s"),
        "sde": (
            lambda v, s, h, c: (v - v ** (2 * s)) / ((2 * s - 1) * (1 - v)),
            "everywhere-is-v-to-the-s",
        ),
        "deviation-for-variance": (
            lambda v, s, h, c: v**0.5 * (_v(v, c) / _v(v, h)) ** ((s - 1) / 2),
            "everywhere-is-v-to-the-s",
        ),
        "w-for-s": (lambda v, s, h, c: v * (_v(v, c) / _v(v, h)) ** s, "no-guidance-no-change"),
        "forgets-outside": (lambda v, s, h, c: (_v(v, c) / _v(v, h)) ** s, "measured-on-a-chain"),
        "alpha-not-squared": (
            lambda v, s, h, c: v * ((1 - (1 - v) * c) / (1 - (1 - v) * h)) ** (s - 1),
            "measured-on-a-chain",
        ),
        "ends-swapped": (lambda v, s, h, c: v * (_v(v, h) / _v(v, c)) ** (s - 1), "measured-on-a-chain"),
        "ignores-interval": (lambda v, s, h, c: v**s, "measured-on-a-chain"),
    },
    "ex-05-path-weight": {
        "sign": (_weight(lambda s, v: -s * (s - 1) / (2 * v)), "what-the-square-leaves-over"),
        "no-half": (_weight(lambda s, v: s * (s - 1) / v), "what-the-square-leaves-over"),
        "no-variance": (_weight(lambda s, v: s * (s - 1) / 2), "what-the-square-leaves-over"),
        "std-for-variance": (_weight(lambda s, v: s * (s - 1) / (2 * v**0.5)), "what-the-square-leaves-over"),
        "s-squared": (_weight(lambda s, v: s**2 / (2 * v)), "nothing-at-0-and-1"),
        "w-squared": (_weight(lambda s, v: (s - 1) ** 2 / (2 * v)), "nothing-at-0-and-1"),
        "mean-over-pixels": (
            lambda c, u, v, s: s * (s - 1) / (2 * v) * (c - u).square().flatten(1).mean(1),
            "one-number-per-sample",
        ),
        "last-axis-only": (
            lambda c, u, v, s: s * (s - 1) / (2 * v) * (c - u).square().sum(-1),
            "one-number-per-sample",
        ),
    },
    "ex-05-systematic": {
        "multinomial": (_multinomial, "within-one-of-K-times-weight"),
        "fixed-thresholds": (_deterministic, "right-on-average"),
        "best-only": (_best_only, "within-one-of-K-times-weight"),
        "one-off": (_one_off, "by-the-definition"),
        "u-not-divided": (_scaled_start, "right-on-average"),
        "no-clamp": (_without_clamp, "survives-rounding"),
    },
    "ex-05-tilted-denoiser": {
        "power-after-the-mean": (_guided_x0, "power-of-the-clean-class"),
        "one-power-too-many": (_tilted(lambda p, c, s: p + (s + 1) * c), "power-of-the-clean-class"),
        "forgets-the-class": (_tilted(lambda p, c, s: p), "scale-1-is-conditional"),
        "forgets-the-prior": (_tilted(lambda p, c, s: s * c), "scale-1-is-conditional"),
        "power-of-both": (_tilted(lambda p, c, s: s * (p + c)), "power-of-the-clean-class"),
        "no-alpha": (_with_noise(lambda x, p, a, s: -((x - p) ** 2) / (2 * s**2)), "signal-is-scaled"),
        "std-for-variance": (_with_noise(lambda x, p, a, s: -((x - a * p) ** 2) / (2 * s)), "signal-is-scaled"),
    },
    "ex-05-effective": {
        "number-not-share": (20_000 * measure_effective()[0], "share-of-all"),
        "last-step-only": (measure_effective()[1], "share-of-all"),
        "scale-1.5": (measure_effective(1.5)[0], "share-of-all"),
        "w-for-s": (measure_effective(3.0)[0], "share-of-all"),
        "root": (math.sqrt(measure_effective()[0]), "share-of-all"),
        "all-of-them": (1.0, "share-of-all"),
    },
    "ex-05-interval": {
        "swapped": (_interval(lambda at, a, b: not a < at.sigma / at.alpha <= b), "inside-and-outside"),
        "sigma-alone": (_interval(lambda at, a, b: a < at.sigma <= b), "ratio-not-sigma"),
        "variances": (_interval(lambda at, a, b: a < (at.sigma / at.alpha) ** 2 <= b), "ratio-not-sigma"),
        "signal-over-noise": (_interval(lambda at, a, b: a < at.alpha / at.sigma <= b), "ratio-not-sigma"),
        "closed-below": (_interval(lambda at, a, b: a <= at.sigma / at.alpha <= b), "half-open"),
        "open-above": (_interval(lambda at, a, b: a < at.sigma / at.alpha < b), "half-open"),
        "only-the-upper-end": (_interval(lambda at, a, b: at.sigma / at.alpha <= b), "inside-and-outside"),
        "asks-both": (_asks_both, "asks-only-one"),
        "clamps": (_blends, "same-as-the-package"),
    },
}

SECOND = {
    "ex-05-guided-variance": _by_integration,
    "ex-05-path-weight": _weight_by_densities,
    "ex-05-systematic": _systematic_by_bisection,
    "ex-05-tilted-denoiser": _tilted_by_sums,
    "ex-05-effective": _effective_by_hand(),
    "ex-05-interval": lambda g, p, low, high: (
        lambda x, at: guidance_interval(g, p, low, high)(x, NoiseLevel(float(at.alpha), float(at.sigma), 0.0))
    ),
}
