"""Right answers in other styles, and planted wrong ones, for lesson 03."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch

from minidiff.guidance import grad_log_prob
from minidiff.prediction import Prediction
from minidiff.process import beta, beta_tilde, posterior_mean, transition
from minidiff.random import rand, randn
from minidiff.schedule import DATA, NoiseLevel

# -- ex-03-tilted-step ------------------------------------------------------------------------------------------------


def tilted_by_completing_the_square(mean, variance, gradient, curvature, scale):
    precision = 1 / variance + scale * curvature
    return (mean * precision + scale * gradient) / precision, 1 / precision


def tilted_without_division_by_variance(mean, variance, gradient, curvature, scale):
    shrunk = variance / (1 + scale * curvature * variance)
    return torch.tensor([mean + shrunk * scale * gradient, shrunk])


def tilted_in_float32(mean, variance, gradient, curvature, scale):
    m, v, g, k, s = (np.float32(a) for a in (mean, variance, gradient, curvature, scale))
    return m + s * g / (1 / v + s * k), 1 / (1 / v + s * k)


def tilted_by_quadrature(mean, variance, gradient, curvature, scale):
    x = mean + np.linspace(-20, 20, 20001)
    log_p = gradient * (x - mean) - curvature * (x - mean) ** 2 / 2
    weight = np.exp(scale * log_p - (x - mean) ** 2 / (2 * variance))
    centre = (weight * x).sum() / weight.sum()
    return centre, (weight * (x - centre) ** 2).sum() / weight.sum()


def _precise(change):
    """A wrong answer whose variance is 1 / ``change(v, k, s)``; the mean follows."""

    def tilted(mean, variance, gradient, curvature, scale):
        precision = change(variance, curvature, scale)
        return mean + scale * gradient / precision, 1 / precision

    return tilted


def _mean(change):
    """A wrong answer: ``change(m, v, g, k, s)`` is its mean."""
    return lambda mean, variance, gradient, curvature, scale: (
        change(mean, variance, gradient, curvature, scale),
        tilted_by_completing_the_square(mean, variance, gradient, curvature, scale)[1],
    )


def _variance(change):
    """A wrong answer: ``change(v, k, s)`` is its variance."""
    return lambda mean, variance, gradient, curvature, scale: (
        tilted_by_completing_the_square(mean, variance, gradient, curvature, scale)[0],
        change(variance, curvature, scale),
    )


STRAIGHT, MEAN, VARIANCE = "straight-tilt-is-the-mean-shift", "mean-by-brute-force", "variance-by-brute-force"
TILTED_STEP = {
    "form-mean-alone": (lambda mean, variance, gradient, curvature, scale: mean, "form"),
    "form-forgot-return": (lambda mean, variance, gradient, curvature, scale: None, "form"),
    "form-vectors": (lambda mean, variance, gradient, curvature, scale: (torch.ones(2), torch.ones(2)), "form"),
    "form-other-names": (lambda mu, sigma, g, k, s: tilted_in_float32(mu, sigma, g, k, s), "form"),
    "shift-without-sigma": (_mean(lambda m, v, g, k, s: m + s * g), STRAIGHT, "left Sigma out"),
    "std-for-variance": (_mean(lambda m, v, g, k, s: m + v**0.5 * s * g), STRAIGHT, "the standard deviation"),
    "sign": (_mean(lambda m, v, g, k, s: m - s * g / (1 / v + s * k)), STRAIGHT, "sign is wrong"),
    "scale-missing": (_mean(lambda m, v, g, k, s: m + g / (1 / v + k)), STRAIGHT, "scale is missing"),
    "w-for-s": (_mean(lambda m, v, g, k, s: m + (1 + s) * g / (1 / v + (1 + s) * k)), STRAIGHT, "1 + s"),
    "divided-by-sigma": (_mean(lambda m, v, g, k, s: m + s * g / v), STRAIGHT, "you divided by Sigma"),
    "shift-alone": (_mean(lambda m, v, g, k, s: s * g / (1 / v + s * k)), STRAIGHT, "this is the shift"),
    "mean-stays": (_mean(lambda m, v, g, k, s: m), STRAIGHT, "yours stayed"),
    "other-order": (
        lambda mean, variance, gradient, curvature, scale: tilted_in_float32(
            mean, variance, gradient, curvature, scale
        )[::-1],
        STRAIGHT,
        "the order is",
    ),
    "half-the-shift": (_mean(lambda m, v, g, k, s: m + s * g * v / 2), STRAIGHT),
    "first-order-mean": (_mean(lambda m, v, g, k, s: m + v * s * g), MEAN, "mean of the straight tilt"),
    "straight-alone": (
        lambda mean, variance, gradient, curvature, scale: (mean + variance * scale * gradient, variance),
        MEAN,
        "mean of the straight tilt",
    ),
    "curvature-unscaled": (_precise(lambda v, k, s: 1 / v + k), MEAN, "multiplies the curvature too"),
    "curvature-sign": (_precise(lambda v, k, s: 1 / v - s * k), MEAN, "sign of k"),
    "half-the-curvature": (_precise(lambda v, k, s: 1 / v + s * k / 2), MEAN, "you took k / 2"),
    "twice-the-curvature": (_precise(lambda v, k, s: 1 / v + 2 * s * k), MEAN, "you took 2 k"),
    "one-for-precision": (_precise(lambda v, k, s: (1 + s * k) / v), MEAN, "you took 1 + s k"),
    "variances-added": (_precise(lambda v, k, s: 1 / (v + s * k)), MEAN, "precisions add, not variances"),
    "variance-of-the-tilt-added": (
        _precise(lambda v, k, s: 1 / (v + 1 / (s * k)) if k else 1 / v),
        MEAN,
        "variance of the tilt",
    ),
    "gradient-unscaled": (
        _mean(lambda m, v, g, k, s: m + g / (1 / v + s * k) if k else m + s * g * v),
        MEAN,
        "in front of the gradient",
    ),
    "clamp-hides-the-sign": (_precise(lambda v, k, s: 1 / v + max(k - s * k, -0.1)), MEAN),
    "precision": (_variance(lambda v, k, s: 1 / v + s * k), VARIANCE, "the precision"),
    "standard-deviation": (_variance(lambda v, k, s: (1 / v + s * k) ** -0.5), VARIANCE, "standard deviation"),
    "variance-stays": (_variance(lambda v, k, s: v), VARIANCE, "no effect"),
    "variance-unscaled": (_variance(lambda v, k, s: 1 / (1 / v + k)), VARIANCE, "multiplies the curvature too"),
    "variance-sign": (_variance(lambda v, k, s: 1 / (1 / v - s * k)), VARIANCE, "sign of k"),
    "variance-by-scale": (_variance(lambda v, k, s: v / s), VARIANCE),
    "curvature-cut-off": (_precise(lambda v, k, s: 1 / v + s * max(k, 0)), "curved-the-other-way", "cut it off"),
    "curvature-absolute": (_precise(lambda v, k, s: 1 / v + s * abs(k)), "curved-the-other-way", "absolute value"),
    "variance-never-grows": (
        _variance(lambda v, k, s: min(v, 1 / (1 / v + s * k))),
        "curved-the-other-way",
    ),
}

# -- ex-03-adm ---------------------------------------------------------------------------------------------------------


def adm_of_the_package(denoiser, gradient, scale, levels, x_T, noise):
    """minidiff's own sampler, fed the noise of each step by a generator that draws nothing else."""
    x = x_T
    for t, r, z in zip(levels[:-1], levels[1:], noise, strict=True):
        mean, sigma = posterior_mean(x, denoiser(x, t).x0, t, r), beta(t, r)
        x = mean + sigma * scale * gradient(x, t) + (sigma**0.5 * z if r.sigma else 0)
    return x


def _divides_by_alpha(denoiser, gradient, scale, levels, x_T, noise):
    """The mean as factors of x_t and eps-hat, as DDPM prints it: for any levels but pure noise."""
    x = x_T.clone()
    for i in range(len(levels) - 1):
        t, r = levels[i], levels[i + 1]
        scaled, variance = transition(r, t)
        mean = (x - variance / t.sigma * denoiser(x, t).eps) / (scaled or math.nan)
        x = mean + variance * scale * gradient(x, t) + (math.sqrt(variance) * noise[i] if r.sigma else 0)
    return x


def adm_by_coefficients(*, denoiser, gradient, scale, levels, x_T, noise):
    """The step as x_0 and eps-hat at the new level, each by its own factor."""
    x = x_T.clone()
    for i in range(len(levels) - 1):
        t, r = levels[i], levels[i + 1]
        scaled, variance = transition(r, t)
        said = denoiser(x=x, level=t)
        mean = r.alpha * said.x0 + scaled * r.sigma**2 / t.sigma * said.eps
        x = mean + variance * scale * gradient(x=x, level=t)
        if r.sigma:
            x = x + math.sqrt(variance) * noise[i]
    return x


def adm_in_float32(denoiser, gradient, scale, levels, x_T, noise):
    x = x_T.float()
    for i, (t, r) in enumerate(pairwise(levels)):
        step = np.float32(t.sigma**2 - (t.alpha / r.alpha * r.sigma) ** 2)
        pushed = denoiser(x, t).x0.float() + scale * step * t.sigma**2 / (r.alpha * step) * gradient(x, t).float()
        x = posterior_mean(x, pushed, t, r) + (float(step) ** 0.5 * noise[i].float() if r.sigma > 0 else 0)
    return x


def _adm(shift=lambda v, g, s, ratio: v * s * g, spread=math.sqrt, at="x_t", variance=beta, last=0.0, seen=None):
    """ADM's sampler with changes; ``at`` says where the gradient is taken, ``seen`` which noise a step gets."""

    def sampler(denoiser, gradient, scale, levels, x_T, noise):
        x, n = x_T, len(levels) - 1
        for i, (t, r) in enumerate(pairwise(levels)):
            mean, sigma = posterior_mean(x, denoiser(x, t).x0, t, r), variance(t, r)
            where = {"x_t": (x, t), "mean": (mean, r if r.sigma else t), "mean, t": (mean, t), "x_t, r": (x, r)}[at]
            g = gradient(*where) if where[1].sigma else gradient(x, t)
            x = mean + shift(sigma, g, scale, r.alpha / t.alpha)
            x = x + spread(sigma) * noise[seen(i, n) if seen else i] * (1.0 if r.sigma else last)
        return x

    return sampler


def _kept(level):
    if level.alpha in (0.0, 1.0):
        return level
    return NoiseLevel(level.alpha, math.sqrt(1 - level.alpha**2), level.time)


def _preserving_only(denoiser, gradient, scale, levels, x_T, noise):
    return _adm()(denoiser, gradient, scale, [_kept(level) for level in levels], x_T, noise)


def _of_alphas(t, r):
    """Wrong where the variance is not preserved."""
    return 1 - (t.alpha / r.alpha) ** 2


ONE, LAST, WHOLE = "one-step", "the-last-step-is-a-mean", "whole-chain"
ADM = {
    "form-forgot-return": (lambda denoiser, gradient, scale, levels, x_T, noise: None, "form"),
    "form-all-steps": (
        lambda denoiser, gradient, scale, levels, x_T, noise: torch.stack([x_T for _ in levels]),
        "form",
    ),
    "form-prediction": (lambda denoiser, gradient, scale, levels, x_T, noise: denoiser(x_T, levels[0]), "form"),
    "no-sigma": (_adm(lambda v, g, s, a: s * g), ONE, "you left Sigma out"),
    "deviation": (_adm(lambda v, g, s, a: v**0.5 * s * g), ONE, "the standard deviation where the variance"),
    "sign": (_adm(lambda v, g, s, a: -v * s * g), ONE, "the sign is wrong"),
    "no-scale": (_adm(lambda v, g, s, a: v * g), ONE, "scale is missing"),
    "w-for-s": (_adm(lambda v, g, s, a: v * (1 + s) * g), ONE, "you used 1 + s"),
    "not-guided": (_adm(lambda v, g, s, a: 0 * g), ONE, "nothing is guided"),
    "score-shift": (_adm(lambda v, g, s, a: a * v * s * g), ONE, "this is the score shift"),
    "beta-tilde": (_adm(variance=beta_tilde), ONE, "you took beta-tilde"),
    "variance-of-noise": (_adm(spread=lambda v: v), ONE, "you multiplied by the variance"),
    "no-noise": (_adm(spread=lambda v: 0.0), ONE, "the noise is missing"),
    "at-the-mean": (_adm(at="mean"), ONE, "the paper's line"),
    "at-the-mean-level-t": (_adm(at="mean, t"), ONE, "you took the gradient at the mean"),
    "at-level-r": (_adm(at="x_t, r"), ONE, "you asked about level r"),
    "half-the-noise": (_adm(spread=lambda v: v**0.5 / 2), ONE),
    "all-the-noise": (_adm(variance=lambda t, r: t.sigma**2), ONE),
    "noise-at-the-end": (_adm(last=1.0), LAST, "without noise"),
    "end-not-shifted": (
        lambda denoiser, gradient, scale, levels, x_T, noise: _adm()(
            denoiser,
            lambda x, t: gradient(x, t) * (t is not levels[-2] or levels[-1].sigma > 0),
            scale,
            levels,
            x_T,
            noise,
        ),
        LAST,
        "is shifted, too",
    ),
    "a-little-noise-at-the-end": (_adm(last=0.1), LAST),
    "noise-from-the-end": (_adm(seen=lambda i, n: n - 1 - i), WHOLE, "from the end"),
    "one-noise": (_adm(seen=lambda i, n: 0), WHOLE, "the first for all"),
    "two-steps-at-most": (
        lambda denoiser, gradient, scale, levels, x_T, noise: _adm()(
            denoiser, gradient, scale, levels if len(levels) < 4 else [*levels[:2], levels[-1]], x_T, noise
        ),
        WHOLE,
    ),
    "preserving-only": (_preserving_only, "any-levels", "does not hold here"),
    "divides-by-alpha": (_divides_by_alpha, "any-levels"),
    "variance-of-alphas": (_adm(variance=lambda t, r: max(_of_alphas(t, r), 1e-9)), "any-levels"),
}

# -- ex-03-acceptance --------------------------------------------------------------------------------------------------


def accept_by_powers(world, x, label, scale):
    return world.classifier(label)(x, DATA).exp() ** (scale - 1)


def accept_by_bayes(world, x, label, scale):
    joint = world.log_prob(x, DATA, label) + world.weights[world.labels == label].sum().log()
    return (joint - world.log_prob(x, DATA)).exp() ** (scale - 1)


def accept_one_by_one(world, x, label, scale):
    return [math.exp((scale - 1) * world.classifier(label)(one[None], DATA).item()) for one in x]


def accept_in_float32(world, x, label, scale):
    return ((scale - 1) * world.log_prob_label(x, DATA)[:, label].float()).exp()


def _accept(change):
    """A wrong answer: ``change`` of (log p(c | x), s)."""
    return lambda world, x, label, scale: change(world.classifier(label)(x, DATA), scale)


def accept_after_a_logarithm(world, x, label, scale):
    return ((scale - 1) * world.classifier(label)(x, DATA).exp().log()).exp()


def accept_the_tilted_density(world, x, label, scale):
    return (world.log_prob(x, DATA) + scale * world.classifier(label)(x, DATA)).exp()


def accept_squeezed(world, x, label, scale):
    return accept_by_powers(world, x, label, scale).squeeze()


TILTS = "tilts-the-density"
ACCEPTANCE = {
    "form-forgot-return": (lambda world, x, label, scale: None, "form"),
    "form-one-number": (_accept(lambda log_p, s: ((s - 1) * log_p).exp().mean()), "form"),
    "form-column": (_accept(lambda log_p, s: ((s - 1) * log_p).exp()[:, None]), "form"),
    "form-which": (_accept(lambda log_p, s: log_p > -0.5), "form"),
    "s-powers": (_accept(lambda log_p, s: (s * log_p).exp()), TILTS, "already holds one power"),
    "divides-by-p": (_accept(lambda log_p, s: ((1 - s) * log_p).exp()), TILTS, "cannot exceed one"),
    "one-more": (_accept(lambda log_p, s: ((s + 1) * log_p).exp()), TILTS, "you paid one more"),
    "no-scale": (_accept(lambda log_p, s: log_p.exp()), TILTS, "scale is missing"),
    "linear-in-s": (_accept(lambda log_p, s: (s - 1) * log_p.exp()), TILTS, "you multiplied by it"),
    "logarithm": (_accept(lambda log_p, s: (s - 1) * log_p), TILTS, "the logarithm"),
    "thrown-away": (_accept(lambda log_p, s: 1 - ((s - 1) * log_p).exp()), TILTS, "throwing a point away"),
    "over-the-largest": (_accept(lambda log_p, s: ((s - 1) * (log_p - log_p.max())).exp()), TILTS, "over the largest"),
    "softmax": (_accept(lambda log_p, s: ((s - 1) * log_p).softmax(0)), TILTS, "sum to one"),
    "tilted-density": (accept_the_tilted_density, TILTS, "divided by p(x | c)"),
    "all": (_accept(lambda log_p, s: 0 * log_p + 1), TILTS, "all points are kept"),
    "half": (_accept(lambda log_p, s: ((s - 1) * log_p).exp() / 2), TILTS),
    "a-power-of-half": (_accept(lambda log_p, s: ((s - 1) * (log_p - 1)).exp()), TILTS),
    "squeezed": (accept_squeezed, "any-batch"),
    "coarse-in-float32": (
        lambda world, x, label, scale: (
            accept_by_powers(world, x, label, scale) if x.dtype == torch.float64 else torch.ones(len(x)) / 2
        ),
        "any-batch",
    ),
    "logarithm-of-p": (accept_after_a_logarithm, "unlikely-points", "minus infinity is nan"),
    "at-least-a-little": (
        _accept(lambda log_p, s: ((s - 1) * log_p).exp().clamp(min=1e-6)),
        "unlikely-points",
    ),
    "never-quite-one": (_accept(lambda log_p, s: (max(s - 1, 1e-3) * log_p).exp()), "unlikely-points"),
}

# -- ex-03-land --------------------------------------------------------------------------------------------------------


def _ode(score, gradient, scale_of, levels, x):
    """DDIM with guided scores; the scale may depend on the level."""
    for t, r in pairwise(levels):
        slope = score(x, t) + scale_of(t) * gradient(x, t)
        x = r.alpha * (x + t.sigma**2 * slope) / t.alpha - r.sigma * t.sigma * slope
    return x


def _walk(score, gradient, scale, x, generator, n=75, rate=0.06, noise=1.0):
    """Langevin's walk at t = 0."""
    for _ in range(n):
        z = randn(x.shape, generator, x.dtype)
        x = x + rate * (score(x, DATA) + scale * gradient(x, DATA)) + noise * math.sqrt(2 * rate) * z
    return x


def land_from_the_class(score, gradient, scale, levels, x_T, seed):
    x = _ode(score, gradient, lambda level: 1.0, levels, x_T)
    return _walk(score, gradient, scale, x, torch.Generator().manual_seed(seed))


def land_from_the_guided_chain(*, score, gradient, scale, levels, x_T, seed):
    generator = torch.Generator().manual_seed(seed)
    x = _ode(score, gradient, lambda level: 1.0 if level.sigma > level.alpha else scale, levels, x_T)
    return _walk(score, gradient, scale, x, generator, 75, 0.06).float()


def land_by_weights(score, gradient, scale, levels, x_T, seed):
    """Metropolis: log p(x) + s log p(c|x) is the integral of its gradient along each short step."""
    generator = torch.Generator().manual_seed(seed)
    x = _ode(score, gradient, lambda level: 1.0, levels, x_T)
    slope = lambda y: score(y, DATA) + scale * gradient(y, DATA)
    here, rate = slope(x), 0.12
    for _ in range(78):
        y = x + rate * here + math.sqrt(2 * rate) * randn(x.shape, generator, x.dtype)
        there = slope(y)
        gain = ((here + there) / 2 * (y - x)).sum(1)  # log density of y over that of x, by the trapezium
        back, forth = ((a - b - rate * g).square().sum(1) for a, b, g in ((x, y, there), (y, x, here)))
        kept = rand((len(x),), generator, x.dtype).log() < gain + (forth - back) / (4 * rate)
        x, here = torch.where(kept[:, None], y, x), torch.where(kept[:, None], there, here)
    return x


def _guided_chain(scale_of):
    return lambda score, gradient, scale, levels, x_T, seed: _ode(
        score, gradient, lambda level: scale_of(level, scale), levels, x_T
    )


def _then_walk(**change):
    """From the class, a walk with changes; ``to`` says which scale it is given."""
    to = change.pop("to", lambda scale: scale)
    seed_of = change.pop("seed_of", lambda seed: seed)

    def land(score, gradient, scale, levels, x_T, seed):
        generator = torch.Generator()
        number = seed_of(seed)
        generator.seed() if number is None else generator.manual_seed(number)
        x = _ode(score, gradient, lambda level: 1.0, levels, x_T)
        return _walk(score, gradient, to(scale), x, generator, **change)

    return land


NEARER, LANDS = "nearer-than-the-guided-chain", "lands"
LAND = {
    "form-one-number": (lambda score, gradient, scale, levels, x_T, seed: x_T.mean(), "form"),
    "form-forgot-return": (lambda score, gradient, scale, levels, x_T, seed: None, "form"),
    "form-other-names": (
        lambda score, pull, s, levels, x_T, seed: land_from_the_class(score, pull, s, levels, x_T, seed),
        "form",
    ),
    "many-calls": (_then_walk(n=400), "in-the-budget"),
    "not-seeded": (_then_walk(seed_of=lambda seed: None), "the-seed-decides", "the same seed gave two"),
    "guided-chain": (_guided_chain(lambda level, s: s), NEARER),
    "the-class": (_guided_chain(lambda level, s: 1.0), NEARER),
    "not-guided": (_guided_chain(lambda level, s: 0.0), NEARER),
    "ascent": (_then_walk(noise=0.0), NEARER),
    "walk-to-the-class": (_then_walk(to=lambda scale: 1.0), NEARER),
    "walk-of-no-data": (
        lambda score, gradient, scale, levels, x_T, seed: _walk(
            score, gradient, scale, x_T, torch.Generator().manual_seed(seed), noise=2.4
        ),
        NEARER,
    ),
    "gentler": (_guided_chain(lambda level, s: 1 + (s - 1) / 8), LANDS),
    "in-an-interval": (_guided_chain(lambda level, s: 1.0 if level.sigma > level.alpha else s), LANDS),
    "short-walk": (_then_walk(n=8), LANDS),
    "one-power-more": (_then_walk(to=lambda scale: scale + 1), LANDS),
    "too-little-noise": (_then_walk(noise=0.8), LANDS),
    "bell": (
        lambda score, gradient, scale, levels, x_T, seed: (
            (x := land_from_the_class(score, gradient, scale, levels, x_T, seed)).mean() + x.std() * x_T
        ),
        "two-humps",
    ),
}

# -- ex-03-guide -------------------------------------------------------------------------------------------------------


def _autograd(function, x):
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        return torch.autograd.grad(function(x), x)[0]


def _right_gradient(classifier, label, x, level):
    return _autograd(lambda y: classifier.classifier(label)(y, level).sum(), x)


def guide_through_x0(denoiser, classifier, label, scale):
    """By the package's gradient, on x_0."""

    def guided(x, level):
        asked, (alpha, sigma) = denoiser(x=x, level=level), level.like(x)
        pull = grad_log_prob(classifier.classifier(label), x, level)
        return asked.with_x0(asked.x0 + scale * sigma**2 / alpha * pull)

    return guided


def guide_the_score(*, denoiser, classifier, label, scale):
    """By ``backward``, on the score."""

    @torch.enable_grad()
    def pull(x, level):
        x = x.clone().requires_grad_(True)
        log_p = classifier.classifier(label)(x=x, level=level)
        log_p.backward(torch.ones_like(log_p))
        return x.grad

    def guided(x, level):
        asked = denoiser(x, level)
        return asked.replace(value=asked.score + scale * pull(x, level), kind="score")

    return lambda x, level: guided(x=x, level=level)


def guide_in_float32(denoiser, classifier, label, scale):
    def guided(x, level):
        asked, sigma = denoiser(x.float(), level), level.like(x.float())[1]
        return asked.with_eps(asked.eps - scale * sigma * grad_log_prob(classifier.classifier(label), x.float(), level))

    return guided


def guide_one_by_one(denoiser, classifier, label, scale):
    """A gradient for each sample by itself, at its own level."""

    def guided(x, level):
        asked, eps = denoiser(x, level), []
        each = lambda value: torch.as_tensor(value).expand(len(x)).tolist()
        parts = zip(x, asked.eps, each(level.alpha), each(level.sigma), each(label), strict=True)
        for one, said, alpha, sigma, wanted in parts:
            of_one = classifier.classifier(wanted)
            at = NoiseLevel(alpha, sigma, 0)
            eps.append(said - scale * sigma * _autograd(lambda y, c=of_one, at=at: c(y, at)[0], one[None])[0])
        return asked.with_eps(torch.stack(eps))

    return guided


def guide_by_scores(denoiser, classifier, label, scale):
    """No derivative at all: where the classifier is an exact world, its two scores differ by the gradient."""

    def guided(x, level):
        asked = denoiser(x, level)
        return asked.with_eps((1 - scale) * asked.eps + scale * classifier(x, level, label).eps)

    return guided


def _guide(
    shift=lambda sigma, s, g: -sigma * s * g, sigma_of=lambda level, x: level.like(x)[1], gradient=_right_gradient
):
    """A guide that adds shift(sigma, s, g) to eps."""

    def guide(denoiser, classifier, label, scale):
        def guided(x, level):
            prediction = denoiser(x, level)
            g = gradient(classifier, label, x, level)
            return prediction.with_eps(prediction.eps + shift(sigma_of(level, x), scale, g))

        return guided

    return guide


_right_guide = _guide()


def _by(log_p):
    """A guide that differentiates ``log_p(classifier, label, y, level)``, summed, instead."""
    return _guide(
        gradient=lambda classifier, label, x, level: _autograd(lambda y: log_p(classifier, label, y, level), x)
    )


def _pulled(change):
    """A guide whose gradient is ``change`` of the right one."""
    return _guide(gradient=lambda *asked: change(_right_gradient(*asked)))


def _without_enable(classifier, label, x, level):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(classifier.classifier(label)(x, level).sum(), x)[0]


def _nothing_under_no_grad(classifier, label, x, level):
    return _right_gradient(classifier, label, x, level) if torch.is_grad_enabled() else torch.zeros_like(x)


def _first_three(classifier, label, x, level):
    label = label if isinstance(label, int) else label[:3]
    at = level if isinstance(level.sigma, float) else NoiseLevel(level.alpha[:3], level.sigma[:3], level.time[:3])
    return torch.cat([_right_gradient(classifier, label, x[:3], at), torch.zeros_like(x[3:])])


def _first_label(classifier, label, x, level):
    return _right_gradient(classifier, int(torch.as_tensor(label).reshape(-1)[0]), x, level)


def _of_p(floor):
    return lambda classifier, label, y, level: (classifier.classifier(label)(y, level).exp() + floor).log().sum()


def _on_x0(amount):
    """A guide that adds amount(sigma) times the gradient to x_0."""

    def guide(denoiser, classifier, label, scale):
        def guided(x, level):
            asked = denoiser(x, level)
            pull = _right_gradient(classifier, label, x, level)
            return asked.with_x0(asked.x0 + amount(level.like(x)[1]) * scale * pull)

        return guided

    return guide


def _anew(denoiser, classifier, label, scale):
    def guided(x, level):
        right = _right_guide(denoiser, classifier, label, scale)(x, level)
        return Prediction(x, level, right.eps, "eps")

    return guided


def _of_eps(change):
    """A guide whose eps is change(eps, sigma g, s)."""

    def guide(denoiser, classifier, label, scale):
        def guided(x, level):
            asked = denoiser(x, level)
            shift = level.like(x)[1] * _right_gradient(classifier, label, x, level)
            return asked.with_eps(change(asked.eps, shift, scale))

        return guided

    return guide


def _forgets_x(denoiser, classifier, label, scale):
    def guided(x, level):
        right = _right_guide(denoiser, classifier, label, scale)(x, level)
        return right.replace(x=torch.zeros_like(x), value=right.eps, kind="eps")

    return guided


def _other_fraction(denoiser, classifier, label, scale):
    return lambda x, level: _right_guide(denoiser, classifier, label, scale)(x, level).replace(fraction=0 * x)


def _alpha(level, x):
    return level.like(x)[0]


_first = lambda level, x: float(torch.as_tensor(level.sigma).reshape(-1)[0])
_mean_sigma = lambda level, x: float(torch.as_tensor(level.sigma).mean())
_last_axis = lambda level, x: level.sigma
_at_most_one = lambda level, x: torch.as_tensor(level.like(x)[1]).clamp(max=1)
_of_alpha = lambda level, x: (1 - torch.as_tensor(level.like(x)[0]) ** 2).clamp(min=0).sqrt()
minus = lambda sigma, s, g: -sigma * s * g
BAYES, OWN = "scale-1-is-conditional", "each-sample-its-own"
GUIDE = {
    "form-forgot-return": (lambda denoiser, classifier, label, scale: lambda x, level: None, "form"),
    "form-forgot-to-return-guided": (lambda denoiser, classifier, label, scale: None, "form"),
    "form-eps": (
        lambda denoiser, classifier, label, scale: (
            lambda x, level: _right_guide(denoiser, classifier, label, scale)(x, level).eps
        ),
        "form",
    ),
    "form-called-at-once": (lambda denoiser, classifier, label, scale: torch.zeros(3, 2), "form"),
    "plus-sign": (_guide(lambda sigma, s, g: sigma * s * g), BAYES, "is subtracted"),
    "no-sigma": (_guide(lambda sigma, s, g: -s * g), BAYES, "comes with a factor sigma"),
    "added-without-sigma": (_guide(lambda sigma, s, g: s * g), BAYES, "you added the gradient itself"),
    "variance-as-std": (_guide(lambda sigma, s, g: -(sigma**2) * s * g), BAYES, "you used the variance"),
    "alpha-for-sigma": (_guide(minus, _alpha), BAYES, "you took alpha"),
    "shift-of-x0-for-eps": (
        _guide(minus, lambda level, x: level.like(x)[1] ** 2 / level.like(x)[0]),
        BAYES,
        "belongs to the shift of x_0",
    ),
    "w-for-s": (_guide(lambda sigma, s, g: -sigma * (1 + s) * g), BAYES, "you used 1 + s"),
    "w-from-s": (_guide(lambda sigma, s, g: -sigma * (s - 1) * g), BAYES, "nothing is guided"),
    "in-its-place": (_of_eps(lambda eps, shift, s: -s * shift), BAYES, "you put it in its place"),
    "shift-of-eps-for-x0": (_on_x0(lambda sigma: -sigma), BAYES, "shift of eps given to x_0"),
    "shift-of-score-for-x0": (_on_x0(lambda sigma: 1.0), BAYES, "shift of the score given to x_0"),
    "gradient-of-p": (
        _by(lambda classifier, label, y, level: classifier.classifier(label)(y, level).exp().sum()),
        BAYES,
        "not its logarithm",
    ),
    "clean-classifier": (
        _by(lambda classifier, label, y, level: classifier.classifier(label)(y, DATA).sum()),
        BAYES,
        "told how noisy",
    ),
    "classifier-of-the-denoised": (
        _by(lambda classifier, label, y, level: classifier.classifier(label)(classifier(y, level).x0, DATA).sum()),
        BAYES,
        "opinion about its mean",
    ),
    "gradient-of-log-joint": (
        _by(lambda classifier, label, y, level: classifier.log_prob(y, level, label).sum()),
        BAYES,
    ),
    "another-class": (
        _guide(gradient=lambda classifier, label, x, level: _right_gradient(classifier, (label + 1) % 3, x, level)),
        BAYES,
    ),
    "label-zero-is-none": (
        _guide(
            gradient=lambda classifier, label, x, level: _right_gradient(classifier, label, x, level) * (label != 0)
        ),
        BAYES,
        "nothing is guided",
    ),
    "normalised": (_pulled(lambda g: g / g.norm(dim=-1, keepdim=True)), BAYES),
    "half": (_guide(lambda sigma, s, g: -sigma * s * g / 2), BAYES),
    "ignores-scale": (_guide(lambda sigma, s, g: -sigma * g), "any-scale", "no effect"),
    "scale-squared": (_guide(lambda sigma, s, g: -sigma * s**2 * g), "any-scale", "you squared the scale"),
    "root-of-scale": (_guide(lambda sigma, s, g: -sigma * s**0.5 * g), "any-scale", "the root of the scale"),
    "scales-the-whole": (_of_eps(lambda eps, shift, s: s * (eps - shift)), "any-scale", "multiplied the whole"),
    "scales-the-denoiser": (_of_eps(lambda eps, shift, s: s * eps - shift), "any-scale", "not what the denoiser says"),
    "scale-cut-off": (_guide(lambda sigma, s, g: -sigma * min(s, 1.5) * g), "any-scale"),
    "mean-over-batch": (
        _by(lambda classifier, label, y, level: classifier.classifier(label)(y, level).mean()),
        OWN,
        "averaged log p",
    ),
    "sum-of-all": (_pulled(lambda g: g.sum(0).expand_as(g)), OWN, "their sum"),
    "mean-of-all": (_pulled(lambda g: g.mean(0).expand_as(g)), OWN, "their mean"),
    "first-for-all": (_pulled(lambda g: g[:1].expand_as(g)), OWN, "first one's"),
    "three-at-most": (_guide(gradient=_first_three), OWN),
    "first-label-for-all": (_guide(gradient=_first_label), "a-label-for-each-sample", "the first one's for all"),
    "one-label-alone": (
        _guide(
            gradient=lambda classifier, label, x, level: _right_gradient(
                classifier, int(torch.as_tensor(label).reshape(-1)[-1]), x, level
            )
        ),
        "a-label-for-each-sample",
    ),
    "no-enable-grad": (_guide(gradient=_without_enable), "under-no-grad", "torch.enable_grad()"),
    "nothing-under-no-grad": (_guide(gradient=_nothing_under_no_grad), "under-no-grad"),
    "through-p": (_by(_of_p(0.0)), "unlikely-class", "never go through p"),
    "log-p-cut-off": (_by(_of_p(1e-30)), "unlikely-class", "is not cut off"),
    "gradient-cut-off": (_pulled(lambda g: g.clamp(-100, 100)), "unlikely-class"),
    "first-sigma-for-all": (_guide(minus, _first), "one-level-per-sample", "the first for all"),
    "mean-sigma-for-all": (_guide(minus, _mean_sigma), "one-level-per-sample", "their mean"),
    "along-the-last-axis": (_guide(minus, _last_axis), "one-level-per-sample", "along the last axis"),
    "scalar-levels-alone": (_guide(minus, lambda level, x: float(level.sigma)), "one-level-per-sample"),
    "sigma-of-alpha": (_guide(minus, _of_alpha), "variance-exploding", "does not hold here"),
    "sigma-at-most-one": (_guide(minus, _at_most_one), "variance-exploding"),
    "prediction-anew": (_anew, "keeps-the-rest", "learned variance is lost"),
    "x-forgotten": (_forgets_x, "keeps-the-rest"),
    "another-fraction": (_other_fraction, "keeps-the-rest"),
}

RIGHT = {
    "ex-03-tilted-step": {
        "completing-the-square": tilted_by_completing_the_square,
        "tensor": tilted_without_division_by_variance,
        "float32": tilted_in_float32,
        "quadrature": tilted_by_quadrature,
    },
    "ex-03-adm": {
        "minidiff": adm_of_the_package,
        "coefficients, by keywords": lambda denoiser, gradient, scale, levels, x_T, noise: adm_by_coefficients(
            denoiser=denoiser, gradient=gradient, scale=scale, levels=levels, x_T=x_T, noise=noise
        ),
        "through x_0, float32": adm_in_float32,
    },
    "ex-03-acceptance": {
        "bayes": accept_by_bayes,
        "powers": accept_by_powers,
        "one-by-one": accept_one_by_one,
        "float32": accept_in_float32,
    },
    "ex-03-land": {
        "from the class": land_from_the_class,
        "from a guided chain, float32": lambda score, gradient, scale, levels, x_T, seed: land_from_the_guided_chain(
            score=score, gradient=gradient, scale=scale, levels=levels, x_T=x_T, seed=seed
        ),
        "metropolis": land_by_weights,
    },
    "ex-03-guide": {
        "through-x0": guide_through_x0,
        "score": lambda denoiser, classifier, label, scale: guide_the_score(
            denoiser=denoiser, classifier=classifier, label=label, scale=scale
        ),
        "float32": guide_in_float32,
        "one-by-one": guide_one_by_one,
        "scores": guide_by_scores,
    },
}

MUTANTS = {
    "ex-03-tilted-step": TILTED_STEP,
    "ex-03-adm": ADM,
    "ex-03-acceptance": ACCEPTANCE,
    "ex-03-land": LAND,
    "ex-03-guide": GUIDE,
}
