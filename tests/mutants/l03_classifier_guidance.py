"""Planted wrong answers of lesson 03 (name -> (answer, a case that it must fail)), and second right answers."""

from __future__ import annotations

import math

import torch

from minidiff.course.checks.l03_classifier_guidance import measure_overshoot
from minidiff.exact import GaussianMixtureDenoiser
from minidiff.guidance import classifier_guidance
from minidiff.process import posterior_mean, transition
from minidiff.random import rand, randn
from minidiff.sampler import ddim, sample
from minidiff.schedule import DATA, vp_schedule


def _autograd(function, x):
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(function(x), x)[0]


def _of_mean(world, x, level, label):
    return _autograd(lambda y: world.classifier(label)(y, level).mean(), x)


def _of_probability(world, x, level, label):
    return _autograd(lambda y: world.classifier(label)(y, level).exp().sum(), x)


def _of_likelihood(world, x, level, label):
    return _autograd(lambda y: world.log_prob(y, level, label).sum(), x)


def _of_clean(world, x, level, label):
    return _autograd(lambda y: world.classifier(label)(y, DATA).sum(), x)


def _of_denoised(world, x, level, label):
    return _autograd(lambda y: world.classifier(label)(world(y, level).x0, DATA).sum(), x)


def _descent(world, x, level, label):
    return -_autograd(lambda y: world.classifier(label)(y, level).sum(), x)


def _by_scores(world, x, level, label):
    return world(x, level, label).score - world(x, level).score


def _guide(shift):
    """A guide that adds shift(sigma, s g) to eps."""

    def guide(denoiser, gradient, scale):
        def guided(x, level):
            prediction = denoiser(x, level)
            return prediction.with_eps(prediction.eps + shift(level.like(x)[1], scale, gradient(x, level)))

        return guided

    return guide


def _first_sigma(denoiser, gradient, scale):
    def guided(x, level):
        prediction, sigma = denoiser(x, level), float(torch.as_tensor(level.sigma).reshape(-1)[0])
        return prediction.with_eps(prediction.eps - sigma * scale * gradient(x, level))

    return guided


def _through_x0(denoiser, gradient, scale):
    def guided(x, level):
        prediction, (alpha, sigma) = denoiser(x, level), level.like(x)
        return prediction.with_x0(prediction.x0 + scale * sigma**2 / alpha * gradient(x, level))

    return guided


def _tilted_second(mean, variance, gradient, curvature, scale):
    precision = 1 / variance + scale * curvature
    return (mean * precision + scale * gradient) / precision, 1 / precision


def _ratio_by_moving_x0(t, s, variance):
    """Push x_0 by what the gradient 1 makes of it and watch the mean."""
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    moved = posterior_mean(zero, one * t.sigma**2 / t.alpha, t, s)
    return moved.item() / variance


def _accept(world, x, label, scale):
    return (world.classifier(label)(x, DATA) * (scale - 1)).exp()


def _accept_by_bayes(world, x, label, scale):
    joint = world.log_prob(x, DATA, label) + world.weights[world.labels == label].sum().log()
    return (joint - world.log_prob(x, DATA)).exp() ** (scale - 1)


def _overshoot_by_drawing():
    """Samples on both sides: DDIM on another schedule, and rejection."""
    world, generator = GaussianMixtureDenoiser(torch.tensor([[-1.0], [1.0]]), 0.25), torch.Generator().manual_seed(1)
    guided = classifier_guidance(world, world.classifier(1), 4.0)
    made = sample(ddim(), guided, vp_schedule().levels(200), randn((10000, 1), generator, torch.float64))
    drawn = world.sample(40000, generator, 1)
    wanted = drawn[rand((40000,), generator, torch.float64) < _accept(world, drawn, 1, 4.0)]
    return ((made.mean() - wanted.mean()) / wanted.std()).item()


MUTANTS = {
    "ex-03-class-gradient": {
        "mean-over-batch": (_of_mean, "each-sample-its-own"),
        "gradient-of-p": (_of_probability, "difference-of-scores"),
        "gradient-of-log-joint": (_of_likelihood, "difference-of-scores"),
        "descent": (_descent, "difference-of-scores"),
        "clean-classifier": (_of_clean, "same-noise-level"),
        "classifier-of-the-denoised": (_of_denoised, "same-noise-level"),
    },
    "ex-03-guide": {
        "plus-sign": (_guide(lambda sigma, s, g: sigma * s * g), "scale-1-is-conditional"),
        "no-sigma": (_guide(lambda sigma, s, g: -s * g), "scale-1-is-conditional"),
        "variance-as-std": (_guide(lambda sigma, s, g: -(sigma**2) * s * g), "scale-1-is-conditional"),
        "w-for-s": (_guide(lambda sigma, s, g: -sigma * (1 + s) * g), "scale-0-is-unguided"),
        "scale-squared": (_guide(lambda sigma, s, g: -sigma * s**2 * g), "linear-in-the-scale"),
        "ignores-scale": (_guide(lambda sigma, s, g: -sigma * g), "scale-0-is-unguided"),
        "first-sigma-for-all": (_first_sigma, "one-level-per-sample"),
    },
    "ex-03-tilted-step": {
        "shift-without-sigma": (lambda m, v, g, k, s: (m + s * g, v), "straight-tilt-is-the-mean-shift"),
        "std-for-variance": (
            lambda m, v, g, k, s: (m + math.sqrt(v) * s * g, v),
            "straight-tilt-is-the-mean-shift",
        ),
        "first-order-mean": (lambda m, v, g, k, s: (m + v * s * g, 1 / (1 / v + s * k)), "mean-by-brute-force"),
        "curvature-unscaled": (
            lambda m, v, g, k, s: (m + s * g / (1 / v + k), 1 / (1 / v + k)),
            "variance-by-brute-force",
        ),
        "curvature-sign": (
            lambda m, v, g, k, s: (m + s * g * v / (1 - s * k * v + 1e-9), v / (1 - s * k * v + 1e-9)),
            "mean-by-brute-force",
        ),
        "precision": (
            lambda m, v, g, k, s: (m + s * g / (1 / v + s * k), 1 / v + s * k),
            "variance-by-brute-force",
        ),
    },
    "ex-03-shift-ratio": {
        "upside-down": (lambda t, s, v: v * t.alpha / (transition(s, t)[1] * s.alpha), "one-over-root-one-minus-beta"),
        "alpha-forgotten": (lambda t, s, v: transition(s, t)[1] / v, "one-over-root-one-minus-beta"),
        "always-beta": (lambda t, s, v: s.alpha / t.alpha, "measured-on-a-mixture"),
        "alpha-bar-for-alpha": (
            lambda t, s, v: transition(s, t)[1] / v * (s.alpha / t.alpha) ** 2,
            "measured-on-a-mixture",
        ),
    },
    "ex-03-acceptance": {
        "s-powers": (lambda w, x, c, s: (w.classifier(c)(x, DATA) * s).exp(), "tilts-the-density"),
        "s-powers-at-one": (lambda w, x, c, s: (w.classifier(c)(x, DATA) * s).exp(), "scale-1-accepts-all"),
        "divides-by-p": (lambda w, x, c, s: (w.classifier(c)(x, DATA) * (1 - s)).exp(), "is-a-probability"),
        "linear-in-s": (lambda w, x, c, s: (s - 1) * w.classifier(c)(x, DATA).exp(), "is-a-probability"),
    },
    "ex-03-overshoot": {
        "gap-not-in-deviations": (measure_overshoot()[1], "in-standard-deviations"),
        "w-for-s": (measure_overshoot(5.0)[0], "in-standard-deviations"),
        "tilted-minus-guided": (-measure_overshoot()[0], "in-standard-deviations"),
        "scale-3": (measure_overshoot(3.0)[0], "in-standard-deviations"),
        "no-overshoot": (0.0, "in-standard-deviations"),
    },
}

SECOND = {
    "ex-03-class-gradient": _by_scores,
    "ex-03-guide": _through_x0,
    "ex-03-tilted-step": _tilted_second,
    "ex-03-shift-ratio": _ratio_by_moving_x0,
    "ex-03-acceptance": _accept_by_bayes,
    "ex-03-overshoot": _overshoot_by_drawing(),
}
