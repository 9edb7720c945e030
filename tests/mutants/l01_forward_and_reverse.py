"""Planted wrong answers and second right ones for lesson 01."""

from __future__ import annotations

import torch

from minidiff.course.checks.l01_forward_and_reverse import measure_commitment
from minidiff.exact import EmpiricalDenoiser
from minidiff.prediction import Prediction
from minidiff.process import beta, beta_tilde, posterior_mean
from minidiff.schedule import linear_schedule


def compose_by_recursion(betas):
    alphas, sigmas, alpha, variance = [], [], 1.0, 0.0
    for b in betas.tolist():
        alpha, variance = alpha * (1 - b) ** 0.5, (1 - b) * variance + b
        alphas.append(alpha)
        sigmas.append(variance**0.5)
    return torch.tensor(alphas, dtype=torch.float64), torch.tensor(sigmas, dtype=torch.float64)


def compose_variance_as_std(betas):
    alpha, sigma = compose_by_recursion(betas)
    return alpha, sigma**2


def compose_adds_variances(betas):
    return (1 - betas).cumprod(0).sqrt(), betas.cumsum(0).sqrt()


def compose_off_by_one(betas):
    alpha, sigma = compose_by_recursion(betas)
    return torch.cat([torch.ones(1), alpha[:-1]]), torch.cat([torch.zeros(1), sigma[:-1]])


def compose_constant_beta(betas):
    """Takes the beta of the step as if all steps before had the same."""
    steps = torch.arange(1, len(betas) + 1)
    alpha_bar = (1 - betas) ** steps
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


def compose_cut_off(betas):
    """Right for short tables only: keeps alpha_bar away from zero."""
    alpha_bar = (1 - betas).cumprod(0).clamp(min=0.1)
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


def posterior_by_precisions(x_t, x0, t, s):
    """Precisions add; written without the combined formula of the lesson."""
    if s.sigma == 0:
        return x0, 0.0
    scale = t.alpha / s.alpha
    b = t.sigma**2 - scale**2 * s.sigma**2
    variance = 1 / (scale**2 / b + 1 / s.sigma**2)
    return variance * (scale * x_t / b + s.alpha * x0 / s.sigma**2), variance


def posterior_vp_only(x_t, x0, t, s):
    scale = t.alpha / s.alpha
    b = 1 - scale**2
    total, clean = 1 - t.alpha**2, 1 - s.alpha**2
    total = total if total > 0 else 1.0
    return scale * clean / total * x_t + s.alpha * b / total * x0, b * clean / total


def posterior_floored(x_t, x0, t, s):
    return posterior_mean(x_t, x0, t, s), max(beta_tilde(t, s), 1e-2)


def convert_in_minidiff(x, level, value, source, target):
    return getattr(Prediction(x, level, value, source), target)


def _convert(to_x0, from_x0):
    def convert(x, level, value, source, target):
        alpha, sigma = level.like(x)
        if source == target:
            return value
        return from_x0[target](x, alpha, sigma, to_x0[source](x, alpha, sigma, value))

    return convert


TO_X0 = {
    "x0": lambda x, a, s, v: v,
    "eps": lambda x, a, s, v: (x - s * v) / a,
    "v": lambda x, a, s, v: (a * x - s * v) / (a**2 + s**2),
    "score": lambda x, a, s, v: (x + s**2 * v) / a,
}
FROM_X0 = {
    "x0": lambda x, a, s, x0: x0,
    "eps": lambda x, a, s, x0: (x - a * x0) / s,
    "v": lambda x, a, s, x0: a * (x - a * x0) / s - s * x0,
    "score": lambda x, a, s, x0: (a * x0 - x) / s**2,
}


def convert_scalar_level_only(x, level, value, source, target):
    alpha, sigma = (torch.as_tensor(v).flatten()[0].item() for v in (level.alpha, level.sigma))
    return FROM_X0[target](x, alpha, sigma, TO_X0[source](x, alpha, sigma, value))


def _ideal(exponent_factor=0.5, scale_images=True, mean=False, stable=True):
    def ideal(x, level, images):
        alpha, sigma = level.alpha, level.sigma
        difference = (x[:, None] - (alpha if scale_images else 1.0) * images).flatten(2).square()
        distance = difference.mean(2) if mean else difference.sum(2)
        logits = -exponent_factor * distance / sigma**2
        weight = logits.softmax(1) if stable else logits.exp() / logits.exp().sum(1, keepdim=True)
        return (weight @ images.flatten(1)).reshape(x.shape)

    return ideal


def weight_from_kl(t, s):
    """From the means: their distance is alpha_s beta sigma_t / (sigma_t^2 alpha_t) times the error in eps."""
    shift = s.alpha * beta(t, s) / (t.sigma * t.alpha)
    return shift**2 / (2 * beta_tilde(t, s))


def weight_vp_only(t, s):
    return (s.alpha**2 / (1 - s.alpha**2 + 1e-12)) / (t.alpha**2 / (1 - t.alpha**2 + 1e-12)) / 2 - 0.5


COMMITMENT = measure_commitment()

SECOND = {
    "ex-01-compose": compose_by_recursion,
    "ex-01-posterior": posterior_by_precisions,
    "ex-01-convert": convert_in_minidiff,
    "ex-01-ideal": lambda x, level, images: EmpiricalDenoiser(images)(x, level).x0,
    "ex-01-weight": weight_from_kl,
    "ex-01-commit": COMMITMENT,
}

MUTANTS = {
    "ex-01-compose": {
        "variance-as-std": (compose_variance_as_std, "one-step"),
        "alpha-without-root": (lambda b: ((1 - b).cumprod(0), (1 - (1 - b).cumprod(0)).sqrt()), "one-step"),
        "variances-just-add": (compose_adds_variances, "two-steps"),
        "off-by-one": (compose_off_by_one, "two-steps"),
        "constant-beta": (compose_constant_beta, "two-steps"),
        "product-cut-off": (compose_cut_off, "whole-schedule"),
    },
    "ex-01-posterior": {
        "swapped": (lambda x_t, x0, t, s: (posterior_mean(x0, x_t, t, s), beta_tilde(t, s)), "mean"),
        "noises-x0-again": (lambda x_t, x0, t, s: (s.alpha * x0, beta_tilde(t, s)), "mean"),
        "beta-for-beta-tilde": (lambda x_t, x0, t, s: (posterior_mean(x_t, x0, t, s), beta(t, s)), "variance"),
        "standard-deviation": (
            lambda x_t, x0, t, s: (posterior_mean(x_t, x0, t, s), beta_tilde(t, s) ** 0.5),
            "variance",
        ),
        "variance-preserving-only": (posterior_vp_only, "variance-exploding"),
        "floored-variance": (posterior_floored, "last-step"),
    },
    "ex-01-convert": {
        "clips-x0": (
            _convert(TO_X0 | {"eps": lambda x, a, s, v: ((x - s * v) / a).clamp(-1, 1)}, FROM_X0),
            "x0-and-eps",
        ),
        "score-is-minus-eps": (_convert(TO_X0, FROM_X0 | {"score": lambda x, a, s, x0: (a * x0 - x) / s}), "score"),
        "score-sign": (_convert(TO_X0, FROM_X0 | {"score": lambda x, a, s, x0: (x - a * x0) / s**2}), "score"),
        "v-sign": (
            _convert(TO_X0, FROM_X0 | {"v": lambda x, a, s, x0: s * x0 - a * (x - a * x0) / s}),
            "v",
        ),
        "v-swapped": (
            _convert(TO_X0, FROM_X0 | {"v": lambda x, a, s, x0: s * (x - a * x0) / s - a * x0}),
            "v",
        ),
        "variance-preserving-only": (
            _convert(TO_X0 | {"v": lambda x, a, s, v: a * x - s * v}, FROM_X0),
            "variance-exploding",
        ),
        "first-level-for-all": (convert_scalar_level_only, "one-level-per-sample"),
    },
    "ex-01-ideal": {
        "no-half": (_ideal(exponent_factor=1.0), "two-points"),
        "images-not-scaled": (_ideal(scale_images=False), "two-points"),
        "mean-over-pixels": (_ideal(mean=True), "many-pixels"),
        "underflow": (_ideal(stable=False), "far-from-the-data"),
        "nearest-image": (
            lambda x, level, images: images[(x[:, None] - level.alpha * images).flatten(2).square().sum(2).argmin(1)],
            "two-points",
        ),
    },
    "ex-01-weight": {
        "no-half": (lambda t, s: s.snr / t.snr - 1, "snr-ratio"),
        "of-x0": (lambda t, s: (s.snr - t.snr) / 2, "snr-ratio"),
        "with-beta": (lambda t, s: (1 - t.snr / s.snr) / 2, "snr-ratio"),
        "simple": (lambda t, s: 1.0, "snr-ratio"),
        "variance-preserving-only": (weight_vp_only, "variance-exploding"),
    },
    "ex-01-commit": {
        "from-the-other-end": (1000 - COMMITMENT, "measured"),
        "as-a-fraction": (COMMITMENT / 1000, "a-time"),
        "between-the-times": (COMMITMENT + 7, "a-time"),
        "another-schedule": (measure_commitment(schedule=linear_schedule()), "measured"),
        "alpha-bar-for-alpha": (
            measure_commitment(lambda x0, level, eps: level.alpha**2 * x0 + level.sigma * eps),
            "measured",
        ),
    },
}
