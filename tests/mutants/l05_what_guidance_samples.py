"""Right answers in other styles, and planted wrong ones, for lesson 05."""

from __future__ import annotations

import bisect
import itertools
import math
import random

import numpy as np
import torch

from minidiff.exact import GaussianMixtureDenoiser
from minidiff.guidance import guidance_interval
from minidiff.prediction import Prediction
from minidiff.schedule import NoiseLevel
from minidiff.smc import path_log_weight

# -- ex-05-guided-variance --------------------------------------------------------------------------------------------


def _v(variance, alpha):
    return 1 - (1 - variance) * alpha**2


def variance_by_integration(v, s, high, low, n=20000):
    """Midpoint rule for d log x over u = alpha^2, in three stretches."""
    exponent = 0.0
    for scale, first, last in ((1.0, 0.0, high), (s, high, low), (1.0, low, 1.0)):
        width = (last**2 - first**2) / n
        u = first**2 + width * (torch.arange(n, dtype=torch.float64) + 0.5)
        exponent -= scale * ((1 - v) / (1 - (1 - v) * u)).sum().item() * width
    return math.exp(exponent)


def variance_in_three_stretches(v, s, high, low):
    """Exponents of V: 1 outside, s inside; a numpy number."""
    return np.prod([_v(v, high) ** 1, (_v(v, low) / _v(v, high)) ** s, (v / _v(v, low)) ** 1])


def variance_in_float32(v, s, high, low):
    v, s, high, low = (torch.tensor(number, dtype=torch.float32) for number in (v, s, high, low))
    return torch.exp(torch.log(v) + (s - 1) * (torch.log(_v(v, low)) - torch.log(_v(v, high))))


def variance_by_sigma(v, s, high, low):
    """V = v alpha^2 + sigma^2."""
    of = lambda alpha: v * alpha * alpha + math.sqrt(1 - alpha * alpha) ** 2
    return torch.tensor([[v**s * (v / of(low)) ** (1 - s) * of(high) ** (1 - s)]], dtype=torch.float64)


VARIANCE = {
    "form-deviation-and-mean": (lambda v, s, high, low: (0.0, v**s), "form"),
    "form-forgot-return": (lambda v, s, high, low: None, "form"),
    "form-other-names": (lambda v, s, a, b: v**s, "form"),
    "tilted": (lambda v, s, high, low: v / (v + s * (1 - v)), "everywhere-is-v-to-the-s", "tilted density"),
    "sde": (
        lambda v, s, high, low: (v - v ** (2 * s)) / ((2 * s - 1) * (1 - v)),
        "everywhere-is-v-to-the-s",
        "stochastic sampler",
    ),
    "deviation-for-variance": (
        lambda v, s, high, low: v**0.5 * (_v(v, low) / _v(v, high)) ** ((s - 1) / 2),
        "everywhere-is-v-to-the-s",
        "a deviation shrinks",
    ),
    "w-for-s": (
        lambda v, s, high, low: v * (_v(v, low) / _v(v, high)) ** s,
        "everywhere-is-v-to-the-s",
        "you used 1 + s",
    ),
    "ends-swapped": (
        lambda v, s, high, low: v * (_v(v, high) / _v(v, low)) ** (s - 1),
        "everywhere-is-v-to-the-s",
        "ends are swapped",
    ),
    "twice-the-power": (
        lambda v, s, high, low: v * (_v(v, low) / _v(v, high)) ** (2 * s - 1),
        "everywhere-is-v-to-the-s",
        "you took 2 s",
    ),
    "forgets-outside-and-one": (
        lambda v, s, high, low: (_v(v, low) / _v(v, high)) ** (s - 1),
        "everywhere-is-v-to-the-s",
        "took s - 1 inside",
    ),
    "cut-off": (
        lambda v, s, high, low: max(v * (_v(v, low) / _v(v, high)) ** (s - 1), 1e-4),
        "everywhere-is-v-to-the-s",
    ),
    "not-guided": (lambda v, s, high, low: v, "everywhere-is-v-to-the-s"),
    "forgets-outside": (
        lambda v, s, high, low: (_v(v, low) / _v(v, high)) ** s,
        "no-guidance-no-change",
        "outside the interval the ODE still runs",
    ),
    "ignores-interval": (lambda v, s, high, low: v**s, "no-guidance-no-change", "guided everywhere"),
    "divides-by-the-interval": (
        lambda v, s, high, low: v * (_v(v, low) / _v(v, high)) ** ((s - 1) * (low - high) / (low - high)),
        "no-guidance-no-change",
    ),
    "alpha-not-squared": (
        lambda v, s, high, low: v * ((1 - (1 - v) * low) / (1 - (1 - v) * high)) ** (s - 1),
        "measured-on-a-chain",
        "alpha is squared in V",
    ),
    "share-of-alpha": (lambda v, s, high, low: v ** (1 + (s - 1) * (low - high)), "measured-on-a-chain"),
    "share-of-alpha-squared": (lambda v, s, high, low: v ** (1 + (s - 1) * (low**2 - high**2)), "measured-on-a-chain"),
}

# -- ex-05-path-weight ------------------------------------------------------------------------------------------------


def weight_by_densities(mean_c, mean_u, variance, scale):
    """A ratio of log densities, read off at an arbitrary point."""
    point = torch.zeros_like(mean_c)
    energy = lambda mean: -(point - mean).square().flatten(1).sum(1) / (2 * variance)
    return (1 - scale) * energy(mean_u) + scale * energy(mean_c) - energy(mean_u + scale * (mean_c - mean_u))


def weight_in_a_loop(mean_c, mean_u, variance, scale):
    pairs = zip(mean_c, mean_u, strict=True)
    return [float(scale * (scale - 1) * torch.dist(c, u) ** 2 / (2 * variance)) for c, u in pairs]


def weight_in_float32(mean_c, mean_u, variance, scale):
    apart = (mean_c.float() - mean_u.float()).reshape(len(mean_c), -1) / variance**0.5
    return torch.linalg.vecdot(apart, apart) * (0.5 * scale * (scale - 1))


def weight_in_minidiff(mean_c, mean_u, variance, scale):
    return path_log_weight(
        conditional_mean=mean_c, unconditional_mean=mean_u, variance=torch.tensor(variance), scale=scale
    ).numpy()


def _weight(factor, distance=lambda d: d.square().flatten(1).sum(1)):
    """log_weight with another factor, or another distance."""
    return lambda mean_c, mean_u, variance, scale: factor(scale, variance) * distance(mean_c - mean_u)


def _half(s, v):
    return s * (s - 1) / (2 * v)


FIRST_WEIGHT = "what-the-square-leaves-over"
WEIGHT = {
    "form-one-for-the-batch": (_weight(_half, lambda d: d.square().sum()), "form"),
    "form-last-axis-only": (_weight(_half, lambda d: d.square().sum(-1)), "form"),
    "form-forgot-return": (lambda mean_c, mean_u, variance, scale: None, "form"),
    "form-axes-kept": (_weight(_half, lambda d: d.square().sum((1, 2), keepdim=True)), "form"),
    "sign": (_weight(lambda s, v: -_half(s, v)), FIRST_WEIGHT, "the sign is wrong"),
    "no-half": (_weight(lambda s, v: 2 * _half(s, v)), FIRST_WEIGHT, "factor 1/2"),
    "no-variance": (_weight(lambda s, v: s * (s - 1) / 2), FIRST_WEIGHT, "divide by the variance"),
    "std-for-variance": (_weight(lambda s, v: s * (s - 1) / (2 * v**0.5)), FIRST_WEIGHT, "standard deviation"),
    "variance-squared": (_weight(lambda s, v: _half(s, v) / v), FIRST_WEIGHT, "variance twice"),
    "s-squared": (_weight(lambda s, v: s**2 / (2 * v)), FIRST_WEIGHT, "vanish at s = 1"),
    "w-squared": (_weight(lambda s, v: (s - 1) ** 2 / (2 * v)), FIRST_WEIGHT, "vanish at s = 0"),
    "s-alone": (_weight(lambda s, v: s / (2 * v)), FIRST_WEIGHT, "not s"),
    "w-alone": (_weight(lambda s, v: (s - 1) / (2 * v)), FIRST_WEIGHT, "not s - 1"),
    "w-for-s": (_weight(lambda s, v: s * (s + 1) / (2 * v)), FIRST_WEIGHT, "not s (s + 1)"),
    "mean-over-pixels": (_weight(_half, lambda d: d.square().flatten(1).mean(1)), FIRST_WEIGHT, "averaged"),
    "not-squared": (_weight(_half, lambda d: d.flatten(1).norm(dim=1)), FIRST_WEIGHT, "must be squared"),
    "square-of-the-sum": (_weight(_half, lambda d: d.flatten(1).sum(1).square()), FIRST_WEIGHT, "squared the sum"),
    "absolute-values": (_weight(_half, lambda d: d.abs().flatten(1).sum(1)), FIRST_WEIGHT),
    "weight-itself": (
        lambda mean_c, mean_u, variance, scale: weight_by_densities(mean_c, mean_u, variance, scale).exp(),
        FIRST_WEIGHT,
        "its logarithm",
    ),
    "sign-of-s-lost": (_weight(lambda s, v: abs(_half(s, v))), FIRST_WEIGHT, "the sign is wrong"),
    "never-nothing": (_weight(lambda s, v: _half(s, v) or 1e-3), "nothing-at-0-and-1"),
    "divides-by-s": (
        lambda mean_c, mean_u, variance, scale: (
            weight_by_densities(mean_c, mean_u, variance, scale) / torch.tensor(scale) * scale
        ),
        "nothing-at-0-and-1",
    ),
    "three-axes": (_weight(_half, lambda d: d.square().flatten(1)[:, :6].sum(1)), "one-number-per-sample"),
    "axes-by-number": (_weight(_half, lambda d: d.square().sum((1, 2))), "one-number-per-sample"),
    "logarithm-of-the-weight": (
        lambda mean_c, mean_u, variance, scale: weight_by_densities(mean_c, mean_u, variance, scale).exp().log(),
        "too-large-for-a-weight",
        "never take the exponential",
    ),
    "clamped": (
        lambda mean_c, mean_u, variance, scale: weight_by_densities(mean_c, mean_u, variance, scale).clamp(-700, 700),
        "too-large-for-a-weight",
    ),
}

# -- ex-05-systematic -------------------------------------------------------------------------------------------------


def survivors_by_bisection(weights, u):
    heaped = list(itertools.accumulate(weights))
    return [min(bisect.bisect_right(heaped, (u + j) / len(weights)), len(weights) - 1) for j in range(len(weights))]


def survivors_by_walking(weights, u):
    """One pass over the particles, as a tuple."""
    out, i, heaped = [], 0, weights[0]
    for j in range(len(weights)):
        while heaped <= (u + j) / len(weights) and i < len(weights) - 1:
            i += 1
            heaped += weights[i]
        out.append(i)
    return tuple(out)


def survivors_by_copies(weights, u):
    """How many thresholds lie below each cumulative sum; the last takes the rest. A tensor."""
    K = len(weights)
    below = [min(max(math.ceil(K * heaped - u), 0), K) for heaped in itertools.accumulate(weights)]
    below[-1] = K
    copies = torch.tensor(below).diff(prepend=torch.zeros(1, dtype=torch.long))
    return torch.arange(K).repeat_interleave(copies)


def survivors_in_float32(weights, u):
    heaped, K = torch.tensor(weights).cumsum(0), len(weights)
    return torch.bucketize((torch.arange(K) + u) / K, heaped, right=True).clamp(max=K - 1)


def survivors_in_numpy(*, weights, u):
    K = len(weights)
    return np.minimum(np.searchsorted(np.cumsum(weights), (u + np.arange(K)) / K, side="right"), K - 1)


def _without_clamp(weights, u):
    heaped = torch.tensor(weights, dtype=torch.float64).cumsum(0)
    return torch.searchsorted(heaped, (u + torch.arange(len(weights))) / len(weights), right=True).tolist()


def _first_that_exceeds(weights, u):
    """Finds none, where rounding leaves the sum below the last threshold."""
    heaped = list(itertools.accumulate(weights))
    return [next(i for i, h in enumerate(heaped) if h > (u + j) / len(weights)) for j in range(len(weights))]


def _multinomial(weights, u):
    return sorted(random.Random(u).choices(range(len(weights)), weights, k=len(weights)))


def _stratified(weights, u):
    """Each stratum with a number of its own."""
    own, heaped, K = random.Random(u), list(itertools.accumulate(weights)), len(weights)
    return [min(bisect.bisect_right(heaped, (own.random() + j) / K), K - 1) for j in range(K)]


def _at(thresholds):
    """Bisection with other thresholds, of (u, K, j)."""

    def chosen(weights, u):
        heaped, K = list(itertools.accumulate(weights)), len(weights)
        return [min(bisect.bisect_right(heaped, thresholds(u, K, j)), K - 1) for j in range(K)]

    return chosen


def _to_the_left(weights, u):
    heaped = list(itertools.accumulate(weights))
    return [min(bisect.bisect_left(heaped, (u + j) / len(weights)), len(weights) - 1) for j in range(len(weights))]


def _rounded(weights, u):
    """Copies by rounding K times the weight; the heaviest makes up the number."""
    copies = [round(len(weights) * w) for w in weights]
    copies[max(range(len(weights)), key=weights.__getitem__)] += len(weights) - sum(copies)
    return [i for i, n in enumerate(copies) for _ in range(n)][: len(weights)]


def _of_right(change):
    """A wrong answer: what ``change`` makes of the right survivors."""
    return lambda weights, u: change(survivors_by_bisection(weights, u))


SYSTEMATIC = {
    "form-too-few": (_of_right(lambda right: right[:-1]), "form"),
    "form-weights": (lambda weights, u: weights, "form"),
    "form-one": (_of_right(lambda right: right[0]), "form"),
    "form-in-place": (_of_right(lambda right: right.sort()), "form"),
    "multinomial": (_multinomial, "within-one-of-K-times-weight"),
    "stratified": (_stratified, "by-the-definition"),
    "rounded-copies": (_rounded, "by-the-definition"),
    "fixed-thresholds": (_at(lambda u, K, j: (0.5 + j) / K), "by-the-definition", "took 1/2 for it"),
    "u-ignored": (_at(lambda u, K, j: j / K), "by-the-definition", "took 0 for it"),
    "u-ignored-on-average": (_at(lambda u, K, j: (0.5 + j) / K), "right-on-average"),
    "best-only": (
        lambda weights, u: [max(range(len(weights)), key=weights.__getitem__)] * len(weights),
        "by-the-definition",
        "copies of the heaviest",
    ),
    "one-threshold": (_at(lambda u, K, j: u), "by-the-definition", "one threshold for all"),
    "everyone": (lambda weights, u: list(range(len(weights))), "by-the-definition", "once"),
    "the-next": (
        _of_right(lambda right: [(i + 1) % len(right) for i in right]),
        "by-the-definition",
        "is the next particle",
    ),
    "from-one": (_of_right(lambda right: [i + 1 for i in right]), "by-the-definition", "one too many"),
    "the-one-before": (_of_right(lambda right: [max(i - 1, 0) for i in right]), "by-the-definition", "particle before"),
    "counts": (
        _of_right(lambda right: [right.count(i) for i in range(len(right))]),
        "by-the-definition",
        "numbers of copies",
    ),
    "reversed": (_of_right(lambda right: right[::-1]), "by-the-definition", "reversed order"),
    "u-not-divided": (_at(lambda u, K, j: u + j / K), "by-the-definition", "did not divide u"),
    "j-from-one": (_at(lambda u, K, j: (u + j + 1) / K), "by-the-definition", "from 1 to K"),
    "to-the-left": (_to_the_left, "at-the-seams", "it is the next particle's"),
    "no-clamp": (_without_clamp, "survives-rounding", "no index may be K"),
    "none-exceeds": (_first_that_exceeds, "survives-rounding"),
    "back-to-the-first": (
        lambda weights, u: [i % len(weights) for i in _without_clamp(weights, u)],
        "survives-rounding",
    ),
}

# -- ex-05-tilted-denoiser --------------------------------------------------------------------------------------------


def tilted_in_a_loop(points, log_p, log_class, scale, x, alpha, sigma):
    """Sample by sample; the largest logarithm is subtracted by hand."""
    out = []
    for value in x.tolist():
        log_noise = torch.distributions.Normal(alpha * points, sigma).log_prob(torch.tensor(value, dtype=points.dtype))
        logs = log_p + scale * log_class + log_noise
        weight = (logs - logs.max()).exp()
        out.append(float((weight * points).sum() / weight.sum()))
    return out


def tilted_by_mixture(points, log_p, log_class, scale, x, alpha, sigma):
    weights = (log_p + scale * log_class).double().softmax(0).clamp(min=1e-300)
    world = GaussianMixtureDenoiser(points[:, None], 0.0, weights)
    return world(x[:, None], NoiseLevel(alpha, sigma, 0)).x0[:, 0]


def tilted_in_float32(points, log_p, log_class, scale, x, alpha, sigma):
    points, log_p, log_class, x = (part.float() for part in (points, log_p, log_class, x))
    logs = log_p + scale * log_class - ((x[:, None] - alpha * points) / sigma).square() / 2
    return (logs - logs.logsumexp(1, keepdim=True)).exp() @ points


def tilted_by_score(points, log_p, log_class, scale, x, alpha, sigma):
    """Tweedie: from the gradient of the log of the noised tilted density."""
    with torch.enable_grad():
        at = x.detach().clone().requires_grad_()
        log_noise = -(at[:, None] - alpha * points).square() / (2 * sigma**2)
        density = (log_p + scale * log_class + log_noise).logsumexp(1)
        (score,) = torch.autograd.grad(density.sum(), at)
    return (x + sigma**2 * score) / alpha


def _noise(points, x, alpha, sigma):
    return -((x[:, None] - alpha * points) ** 2) / (2 * sigma**2)


def _tilted(log_prior):
    """tilted_x0 with another log weight of the points, and the right noise."""

    def denoise(points, log_p, log_class, scale, x, alpha, sigma):
        return (log_prior(log_p, log_class, scale) + _noise(points, x, alpha, sigma)).softmax(1) @ points

    return denoise


def _with_noise(log_noise, weigh=lambda logits: logits.softmax(1)):
    """tilted_x0 with another log noise kernel, or weights made otherwise."""

    def denoise(points, log_p, log_class, scale, x, alpha, sigma):
        return weigh(log_p + scale * log_class + log_noise(points, x, alpha, sigma)) @ points

    return denoise


def _guided_x0(points, log_p, log_class, scale, x, alpha, sigma):
    """What guidance does: E_u + s (E_c - E_u)."""
    noise = _noise(points, x, alpha, sigma)
    plain, cond = ((w + noise).softmax(1) @ points for w in (log_p, log_p + log_class))
    return plain + scale * (cond - plain)


def _likeliest(points, log_p, log_class, scale, x, alpha, sigma):
    return points[(log_p + scale * log_class + _noise(points, x, alpha, sigma)).argmax(1)]


def _tilted_vp_only(points, log_p, log_class, scale, x, alpha, sigma):
    sigma = math.sqrt(1 - alpha**2) or sigma
    return _tilted(lambda p, c, s: p + s * c)(points, log_p, log_class, scale, x, alpha, sigma)


def _without_the_ends(points, log_p, log_class, scale, x, alpha, sigma):
    logits = log_p + scale * log_class + _noise(points, x, alpha, sigma)
    return logits[:, 1:-1].softmax(1) @ points[1:-1]


def _batch_of_one(points, log_p, log_class, scale, x, alpha, sigma):
    right = _tilted(lambda p, c, s: p + s * c)(points, log_p, log_class, scale, x, alpha, sigma)
    return right if len(x) > 1 else right * 0


def _exponentials(logits):
    raised = logits.exp()
    return raised / raised.sum(1, keepdim=True)


CLASS_1, POWER = "scale-1-is-conditional", "power-of-the-clean-class"
TILTED = {
    "form-weights": (
        lambda points, log_p, log_class, scale, x, alpha, sigma: (log_p + scale * log_class).softmax(0),
        "form",
    ),
    "form-forgot-return": (lambda points, log_p, log_class, scale, x, alpha, sigma: None, "form"),
    "form-mean-of-all": (
        lambda points, log_p, log_class, scale, x, alpha, sigma: (log_p.softmax(0) * points).sum(),
        "form",
    ),
    "forgets-the-class": (_tilted(lambda p, c, s: p), CLASS_1, "p(c | x) is not in it"),
    "forgets-the-prior": (_tilted(lambda p, c, s: s * c), CLASS_1, "p(x) is missing"),
    "one-power-too-many": (_tilted(lambda p, c, s: p + (s + 1) * c), CLASS_1, "one power too many"),
    "one-power-too-few": (_tilted(lambda p, c, s: p + (s - 1) * c), CLASS_1, "one power too few"),
    "no-alpha": (_with_noise(lambda p, x, a, s: _noise(p, x, 1.0, s)), CLASS_1, "alpha is missing"),
    "std-for-variance": (_with_noise(lambda p, x, a, s: s * _noise(p, x, a, s)), CLASS_1, "standard deviation"),
    "no-half": (_with_noise(lambda p, x, a, s: 2 * _noise(p, x, a, s)), CLASS_1, "factor 1/2"),
    "minus": (_with_noise(lambda p, x, a, s: -_noise(p, x, a, s)), CLASS_1, "has a minus"),
    "no-noise": (_with_noise(lambda p, x, a, s: 0 * _noise(p, x, a, s)), CLASS_1, "x is not in it"),
    "noise-alone": (_tilted(lambda p, c, s: 0 * p), CLASS_1, "noise alone"),
    "likeliest": (_likeliest, CLASS_1, "likeliest point"),
    "over-the-batch": (_with_noise(_noise, lambda logits: logits.softmax(0)), CLASS_1, "over the batch"),
    "scaled-answer": (
        lambda points, log_p, log_class, scale, x, alpha, sigma: (
            alpha * tilted_by_mixture(points, log_p, log_class, scale, x, alpha, sigma)
        ),
        CLASS_1,
        "x_0 is not scaled",
    ),
    "class-not-as-logarithm": (_tilted(lambda p, c, s: p + s * c.exp()), CLASS_1),
    "power-after-the-mean": (_guided_x0, POWER, "after the mean over x_0"),
    "power-of-both": (_tilted(lambda p, c, s: s * (p + c)), POWER, "raised both to s"),
    "power-one": (_tilted(lambda p, c, s: p + c), POWER),
    "at-least-one": (_tilted(lambda p, c, s: p + max(s, 1.0) * c), POWER),
    "variance-preserving-only": (_tilted_vp_only, "signal-is-scaled", "does not hold here"),
    "sigma-at-most-one": (
        _with_noise(lambda p, x, a, s: _noise(p, x, a, min(s, 1.0))),
        "signal-is-scaled",
    ),
    "without-the-ends": (_without_the_ends, "any-batch-and-grid"),
    "batch-of-one": (_batch_of_one, "any-batch-and-grid"),
    "underflow": (_with_noise(_noise, _exponentials), "hardly-any-noise", "let softmax subtract"),
    "floored-sum": (
        _with_noise(_noise, lambda logits: logits.exp() / (logits.exp().sum(1, keepdim=True) + 1e-300)),
        "hardly-any-noise",
    ),
}

# -- ex-05-promise ----------------------------------------------------------------------------------------------------


def _stretch(scale, first, last):
    return [scale if first <= i < last else 1.0 for i in range(20)]


KEPT = "as-promised"
PROMISE = {
    "form-nineteen": ([1.0] * 19, "form"),
    "form-one-number": (6.0, "form"),
    "form-function": (_stretch, "form"),
    "infinite": ([math.inf] + [1.0] * 19, "finite-scales"),
    "six": ([6.0] * 20, KEPT, "a constant scale"),
    "one": ([1.0] * 20, KEPT, "a constant scale"),
    "the-best-constant": ([1.37] * 20, KEPT, "a constant scale"),
    "early": (_stretch(2.0, 0, 8), KEPT),
    "at-the-end": (_stretch(2.0, 18, 20), KEPT),
    "too-strong": (_stretch(3.0, 12, 18), KEPT),
    "falling": ([6 - 0.25 * i for i in range(20)], KEPT),
}

# -- ex-05-interval ---------------------------------------------------------------------------------------------------


def interval_by_products(guided, plain, low, high):
    def limited(x, level):
        if low * level.alpha < level.sigma and (math.isinf(high) or level.sigma <= high * level.alpha):
            return guided(x, level)
        return plain(x, level)

    return limited


def interval_by_angles(*, guided, plain, low, high):
    """Angles are finite at pure noise."""
    low, high = math.atan(low), math.atan(high)
    return lambda x, level: (plain, guided)[low < math.atan2(level.sigma, level.alpha) <= high](level=level, x=x)


def interval_in_float32(guided, plain, low, high):
    """Ratios as float32 tensors."""

    def limited(x, level):
        ratio = torch.tensor(level.sigma, dtype=torch.float32) / torch.tensor(level.alpha, dtype=torch.float32)
        return guided(x, level) if bool((ratio > low) & (ratio <= high)) else plain(x, level)

    return limited


def _interval(inside):
    """A wrong interval; a division by zero counts as infinity."""

    def build(guided, plain, low, high):
        def limited(x, level):
            a, s = (torch.tensor(v, dtype=torch.float64) for v in (level.alpha, level.sigma))
            return (guided if inside(a, s, low, high) else plain)(x, level)

        return limited

    return build


def _divides(guided, plain, low, high):
    return lambda x, level: (guided if low < level.sigma / level.alpha <= high else plain)(x, level)


def _asks_both(guided, plain, low, high):
    def limited(x, level):
        g, p = guided(x, level), plain(x, level)
        return g if (level.alpha and low < level.sigma / level.alpha <= high) or (not level.alpha and high > 1e9) else p

    return limited


def _asks_twice(guided, plain, low, high):
    limited = interval_by_products(guided, plain, low, high)

    def twice(x, level):
        limited(x, level)
        return limited(x, level)

    return twice


def _changed(change):
    """Right, but for what it does to a prediction."""

    def build(guided, plain, low, high):
        limited = interval_by_products(guided, plain, low, high)
        return lambda x, level: change(limited(x, level))

    return build


INTERVAL = {
    "form-prediction": (lambda guided, plain, low, high: guided(torch.zeros(2, 3), NoiseLevel(1.0, 1.0, 0)), "form"),
    "form-inner-return": (lambda guided, plain, low, high: lambda x, level: None, "form"),
    "form-choice": (lambda guided, plain, low, high: lambda x, level: guided, "form"),
    "form-eps": (lambda guided, plain, low, high: lambda x, level: guided(x, level).eps, "form"),
    "swapped": (_interval(lambda a, s, low, high: not low < s / a <= high), "inside-and-outside", "swapped"),
    "variances": (
        _interval(lambda a, s, low, high: low < (s / a) ** 2 <= high),
        "inside-and-outside",
        "compared variances",
    ),
    "signal-over-noise": (
        _interval(lambda a, s, low, high: low < a / s <= high),
        "inside-and-outside",
        "signal over noise",
    ),
    "alpha": (_interval(lambda a, s, low, high: low < a <= high), "inside-and-outside", "you compared alpha"),
    "only-the-upper-end": (_interval(lambda a, s, low, high: s / a <= high), "inside-and-outside", "lower end is not"),
    "only-the-lower-end": (_interval(lambda a, s, low, high: s / a > low), "inside-and-outside", "upper end is not"),
    "everywhere": (lambda guided, plain, low, high: guided, "inside-and-outside", "guided everywhere"),
    "nowhere": (lambda guided, plain, low, high: plain, "inside-and-outside", "guided nowhere"),
    "high-end-doubled": (_interval(lambda a, s, low, high: low < s / a <= 4 * high), "inside-and-outside"),
    "sigma-alone": (_interval(lambda a, s, low, high: low < s <= high), "ratio-not-sigma", "you compared sigma;"),
    "sigma-from-alpha": (
        _interval(lambda a, s, low, high: low < (s if a == 1 else (1 - a**2).sqrt() / a) <= high),
        "ratio-not-sigma",
    ),
    "closed-below": (_interval(lambda a, s, low, high: low <= s / a <= high), "half-open", "lower end is outside: low"),
    "open-above": (_interval(lambda a, s, low, high: low < s / a < high), "half-open", "upper end is inside: sigma"),
    "other-way-round": (_interval(lambda a, s, low, high: low <= s / a < high), "half-open", "other way round"),
    "divides-by-zero": (_divides, "pure-noise-and-clean-data"),
    "never-at-pure-noise": (
        _interval(lambda a, s, low, high: bool(a) and low < s / a <= high),
        "pure-noise-and-clean-data",
    ),
    "always-at-pure-noise": (
        _interval(lambda a, s, low, high: not a or low < s / a <= high),
        "pure-noise-and-clean-data",
    ),
    "asks-both": (_asks_both, "asks-only-one", "asked both"),
    "asks-twice": (_asks_twice, "asks-only-one"),
    "clamps": (_changed(lambda p: p.with_x0(p.x0.clamp(-1, 1))), "same-as-the-package", "clamped x_0"),
    "builds-anew": (_changed(lambda p: Prediction(p.x, p.level, p.eps, "eps")), "same-as-the-package"),
    "half": (_changed(lambda p: p.with_eps(p.eps.half())), "same-as-the-package"),
}

RIGHT = {
    "ex-05-guided-variance": {
        "integration": variance_by_integration,
        "three stretches": variance_in_three_stretches,
        "float32": variance_in_float32,
        "sigma": variance_by_sigma,
    },
    "ex-05-path-weight": {
        "densities": weight_by_densities,
        "loop": weight_in_a_loop,
        "float32": weight_in_float32,
        "minidiff": weight_in_minidiff,
    },
    "ex-05-systematic": {
        "bisection": survivors_by_bisection,
        "walking": survivors_by_walking,
        "copies": survivors_by_copies,
        "float32": survivors_in_float32,
        "numpy, by keywords": lambda weights, u: survivors_in_numpy(weights=weights, u=u),
    },
    "ex-05-tilted-denoiser": {
        "loop": tilted_in_a_loop,
        "mixture": tilted_by_mixture,
        "float32": tilted_in_float32,
        "score": tilted_by_score,
    },
    "ex-05-promise": {
        "four-steps": _stretch(2.0, 14, 18),
        "half-the-steps": torch.tensor(_stretch(1.5, 10, 20)),
        "numpy": np.array(_stretch(2.0, 14, 18)),
    },
    "ex-05-interval": {
        "products": interval_by_products,
        "angles, by keywords": lambda guided, plain, low, high: interval_by_angles(
            guided=guided, plain=plain, low=low, high=high
        ),
        "float32": interval_in_float32,
        "minidiff": guidance_interval,
    },
}

MUTANTS = {
    "ex-05-guided-variance": VARIANCE,
    "ex-05-path-weight": WEIGHT,
    "ex-05-systematic": SYSTEMATIC,
    "ex-05-tilted-denoiser": TILTED,
    "ex-05-promise": PROMISE,
    "ex-05-interval": INTERVAL,
}
