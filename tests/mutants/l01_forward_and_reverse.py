"""Right answers in other styles, and planted wrong ones, for lesson 01."""

from __future__ import annotations

import math

import numpy as np
import torch

from minidiff.course.checks.l01_forward_and_reverse import SQUARED_ALPHA, SQUARED_SIGMA, commitment, excess
from minidiff.exact import EmpiricalDenoiser
from minidiff.prediction import Prediction
from minidiff.process import beta, beta_tilde, posterior_mean
from minidiff.schedule import linear_schedule

# -- ex-01-compose ----------------------------------------------------------------------------------------------------


def compose_in_a_loop(betas):
    alphas, sigmas, alpha, variance = [], [], 1.0, 0.0
    for b in betas.tolist():
        alpha, variance = alpha * (1 - b) ** 0.5, (1 - b) * variance + b
        alphas.append(alpha)
        sigmas.append(variance**0.5)
    return alphas, sigmas


def compose_in_float32(betas):
    kept = (1 - betas.float()).cumprod(0)
    return kept.sqrt(), (1 - kept).sqrt()


def compose_by_logarithms(betas):
    logs = torch.log1p(-betas).cumsum(0)
    return (logs / 2).exp(), (-torch.expm1(logs)).sqrt()


def compose_in_numpy(betas):
    kept = np.cumprod(1 - betas.numpy())
    return np.sqrt(kept), np.sqrt(1 - kept)


def _tables(change):
    """A wrong answer: what ``change`` makes of the betas, the right alpha and the right sigma."""

    def compose(betas):
        alpha, sigma = (torch.tensor(v) for v in compose_in_a_loop(betas.double()))
        return change(betas, alpha, sigma)

    return compose


def _shifted(betas, alpha, sigma):
    return torch.cat([torch.ones(1), alpha[:-1]]), torch.cat([torch.zeros(1), sigma[:-1]])


def _constant(betas, alpha, sigma):
    kept = (1 - betas) ** torch.arange(1, len(betas) + 1)
    return kept.sqrt(), (1 - kept).sqrt()


def _cut_off(betas, alpha, sigma):
    kept = alpha.square().clamp(min=0.1)
    return kept.sqrt(), (1 - kept).sqrt()


def _deviations(betas, alpha, sigma):
    total = torch.zeros(())
    out = []
    for b in betas:
        total = (1 - b).sqrt() * total + b.sqrt()
        out.append(total)
    return alpha, torch.stack(out)


COMPOSE = {
    "form-one-tensor": (lambda betas: (1 - betas).cumprod(0).sqrt(), "form"),
    "form-last-step-alone": (lambda betas: ((1 - betas).prod().sqrt(), (1 - (1 - betas).prod()).sqrt()), "form"),
    "form-another-name": (lambda b: compose_in_a_loop(b), "form"),
    "variance-for-sigma": (_tables(lambda b, alpha, sigma: (alpha, sigma**2)), "one-step", "beta is a variance"),
    "alpha-without-root": (_tables(lambda b, alpha, sigma: (alpha**2, sigma)), "one-step", "square root"),
    "one-minus-alpha": (_tables(lambda b, alpha, sigma: (alpha, 1 - alpha)), "one-step", "you took 1 - alpha"),
    "alpha-squared-twice": (
        _tables(lambda b, alpha, sigma: (alpha, (1 - alpha**4).sqrt())),
        "one-step",
        "with 1 - beta",
    ),
    "swapped": (_tables(lambda b, alpha, sigma: (sigma, alpha)), "one-step", "swapped"),
    "off-by-one": (_tables(_shifted), "one-step", "off by one"),
    "half-the-noise": (_tables(lambda b, alpha, sigma: (alpha, sigma / 2)), "one-step"),
    "each-step-by-itself": (_tables(lambda b, alpha, sigma: ((1 - b).sqrt(), b.sqrt())), "two-steps", "by itself"),
    "sigma-of-each-step": (_tables(lambda b, alpha, sigma: (alpha, b.sqrt())), "two-steps", "noise of each step"),
    "betas-add": (_tables(lambda b, alpha, sigma: ((1 - b.cumsum(0)).sqrt(), b.cumsum(0).sqrt())), "two-steps", "add"),
    "variances-just-add": (
        _tables(lambda b, alpha, sigma: (alpha, b.cumsum(0).sqrt())),
        "two-steps",
        "shrinks the noise",
    ),
    "deviations-add": (_tables(_deviations), "two-steps", "not deviations"),
    "constant-beta": (_tables(_constant), "two-steps", "as if they had the beta of step t"),
    "from-the-wrong-end": (
        lambda betas: tuple(v.flip(0) for v in compose_in_float32(betas.flip(0))),
        "two-steps",
        "wrong end",
    ),
    "clipped-logarithm": (_tables(lambda b, alpha, sigma: (alpha, sigma.clamp(max=0.7))), "whole-schedule"),
    "product-cut-off": (_tables(_cut_off), "whole-schedule"),
    "for-a-thousand": (
        _tables(lambda b, alpha, sigma: (alpha[:1000].repeat(2)[: len(b)], sigma[:1000].repeat(2)[: len(b)])),
        "whole-schedule",
    ),
}

# -- ex-01-posterior --------------------------------------------------------------------------------------------------


def posterior_by_precisions(x_t, x0, t, s):
    """Precisions add; written without the combined formula of the lesson."""
    if s.sigma == 0:
        return x0, 0.0
    scale = t.alpha / s.alpha
    b = t.sigma**2 - scale**2 * s.sigma**2
    variance = 1 / (scale**2 / b + 1 / s.sigma**2)
    return variance * (scale * x_t / b + s.alpha * x0 / s.sigma**2), variance


def posterior_by_noise(x_t, x0, t, s):
    """The mean as x_0 with a part of the noise that x_t shows; the variance as a tensor."""
    kept = t.alpha / s.alpha * s.sigma**2 / t.sigma
    eps = (x_t - t.alpha * x0) / t.sigma
    return s.alpha * x0 + kept * eps, torch.tensor([s.sigma**2 - kept**2])


def posterior_in_float32(x_t, x0, t, s):
    a_t, s_t, a_s, s_s = (torch.tensor(v, dtype=torch.float32) for v in (t.alpha, t.sigma, s.alpha, s.sigma))
    b = s_t**2 - (a_t / a_s * s_s) ** 2
    return (a_t / a_s * s_s**2 * x_t.float() + a_s * b * x0.float()) / s_t**2, b * s_s**2 / s_t**2


def posterior_in_a_loop(x_t, x0, t, s):
    mean = [posterior_mean(one, clean, t, s) for one, clean in zip(x_t.flatten(), x0.flatten(), strict=True)]
    return torch.stack(mean).reshape(x_t.shape), np.float64(beta_tilde(t, s))


def _mean(change):
    """A wrong answer: ``change`` of (x_t, x0, t, s, a, b) is its mean."""
    scaled = lambda t, s: (t.alpha / s.alpha, t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2)
    return lambda x_t, x0, t, s: (change(x_t, x0, t, s, *scaled(t, s)), beta_tilde(t, s))


def _variance(change):
    return lambda x_t, x0, t, s: (posterior_mean(x_t, x0, t, s), change(t, s))


def posterior_vp_only(x_t, x0, t, s):
    scale = t.alpha / s.alpha
    b = 1 - scale**2
    total, clean = 1 - t.alpha**2, 1 - s.alpha**2
    total = total if total > 0 else 1.0
    return scale * clean / total * x_t + s.alpha * b / total * x0, b * clean / total


def posterior_subtracts_deviations(x_t, x0, t, s):
    scale = t.alpha / s.alpha
    b = (t.sigma - scale * s.sigma) ** 2
    variance = 1 / (scale**2 / b + 1 / s.sigma**2)
    return variance * (scale * x_t / b + s.alpha * x0 / s.sigma**2), variance


def _clamped(x_t, x0, t, s):
    a, b = t.alpha / s.alpha, max(t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2, 1e-3)
    total = a**2 * s.sigma**2 + b
    return (a * s.sigma**2 * x_t + s.alpha * b * x0) / total, b * s.sigma**2 / total


POSTERIOR = {
    "form-mean-alone": (posterior_mean, "form"),
    "form-forgot-return": (lambda x_t, x0, t, s: (posterior_mean(x_t, x0, t, s), None), "form"),
    "form-one-number": (lambda x_t, x0, t, s: (posterior_mean(x_t, x0, t, s).mean(), beta_tilde(t, s)), "form"),
    "form-variance-of-each": (
        lambda x_t, x0, t, s: (posterior_mean(x_t, x0, t, s), x_t * 0 + beta_tilde(t, s)),
        "form",
    ),
    "swapped": (lambda x_t, x0, t, s: (posterior_mean(x0, x_t, t, s), beta_tilde(t, s)), "mean", "swapped"),
    "noises-x0-again": (_mean(lambda x_t, x0, t, s, a, b: s.alpha * x0), "mean", "has not seen x_t"),
    "only-undoes": (_mean(lambda x_t, x0, t, s, a, b: x_t / a), "mean", "has not seen x_0"),
    "ddim": (
        _mean(lambda x_t, x0, t, s, a, b: s.alpha * x0 + s.sigma * (x_t - t.alpha * x0) / t.sigma),
        "mean",
        "keeps the noise",
    ),
    "alpha-t-for-the-ratio": (
        _mean(lambda x_t, x0, t, s, a, b: (t.alpha * s.sigma**2 * x_t + s.alpha * b * x0) / t.sigma**2),
        "mean",
        "not by alpha_t",
    ),
    "alpha-s-missing": (
        _mean(lambda x_t, x0, t, s, a, b: (a * s.sigma**2 * x_t + b * x0) / t.sigma**2),
        "mean",
        "alpha_s is missing",
    ),
    "divided-by-sigma": (
        _mean(lambda x_t, x0, t, s, a, b: posterior_mean(x_t, x0, t, s) * t.sigma),
        "mean",
        "by sigma_t",
    ),
    "not-divided": (
        _mean(lambda x_t, x0, t, s, a, b: posterior_mean(x_t, x0, t, s) * t.sigma**2),
        "mean",
        "must still",
    ),
    "deviations-subtracted": (posterior_subtracts_deviations, "mean", "not deviations"),
    "minus": (
        _mean(lambda x_t, x0, t, s, a, b: (a * s.sigma**2 * x_t - s.alpha * b * x0) / t.sigma**2),
        "mean",
    ),
    "beta-for-beta-tilde": (_variance(beta), "variance", "this is beta"),
    "standard-deviation": (_variance(lambda t, s: beta_tilde(t, s) ** 0.5), "variance", "standard deviation"),
    "variance-at-s": (_variance(lambda t, s: s.sigma**2), "variance", "has not seen x_t"),
    "ratio-of-deviations": (_variance(lambda t, s: beta(t, s) * s.sigma / t.sigma), "variance", "not of deviations"),
    "ratio-upside-down": (
        _variance(lambda t, s: beta(t, s) * t.sigma**2 / (s.sigma**2 or 1)),
        "variance",
        "upside down",
    ),
    "precision": (_variance(lambda t, s: 1 / (beta_tilde(t, s) or 1)), "variance", "precision"),
    "seen-from-x-s": (_variance(lambda t, s: beta(t, s) * (s.alpha / t.alpha) ** 2), "variance", "seen from x_s"),
    "twice": (_variance(lambda t, s: 2 * beta_tilde(t, s)), "variance"),
    "variance-cut-off": (_variance(lambda t, s: max(beta_tilde(t, s), 1e-3) if s.sigma else 0.0), "far-apart"),
    "variance-preserving-only": (posterior_vp_only, "variance-exploding", "does not hold here"),
    "floored-variance": (_variance(lambda t, s: max(beta_tilde(t, s), 1e-4)), "last-step"),
    "marginal-precision-subtracted": (
        lambda x_t, x0, t, s: (posterior_mean(x_t, x0, t, s), 1 / (1 / beta(t, s) - 1 / t.sigma**2 + 1 / s.sigma**2)),
        "variance",
    ),
    "divides-by-zero-at-clean-data": (
        lambda x_t, x0, t, s: (
            posterior_mean(x_t, x0, t, s),
            1 / ((t.alpha / s.alpha) ** 2 / beta(t, s) + 1 / s.sigma**2),
        ),
        "last-step",
    ),
}

# -- ex-01-convert ----------------------------------------------------------------------------------------------------


def convert_in_minidiff(x, level, value, source, target):
    return getattr(Prediction(x, level, value, source), target)


def convert_by_solving(x, level, value, source, target):
    """Solves the two equations x = alpha x0 + sigma eps and value = p x0 + q eps for each sample."""
    out = torch.empty_like(x)
    for i in range(len(x)):
        alpha, sigma = (float(v[i]) if getattr(v, "ndim", 0) else float(v) for v in (level.alpha, level.sigma))
        rows = {"x0": [1.0, 0.0], "eps": [0.0, 1.0], "v": [-sigma, alpha], "score": [0.0, -1 / sigma]}
        system = torch.tensor([[alpha, sigma], rows[source]], dtype=x.dtype)
        known = torch.linalg.solve(system, torch.stack([x[i].flatten(), value[i].flatten()]))
        out[i] = (torch.tensor([rows[target]], dtype=x.dtype) @ known).reshape(x[i].shape)
    return out


def convert_in_float32(x, level, value, source, target):
    return convert_in_minidiff(x.float(), level, value.float(), source, target)


def convert_through_eps(*, x, level, value, source, target):
    """By keywords, through the noise."""
    alpha, sigma = level.like(x)
    if source == "x0":
        eps = (x - alpha * value) / sigma
    elif source == "v":
        eps = (sigma * x + alpha * value) / (alpha * alpha + sigma * sigma)
    else:
        eps = value if source == "eps" else value * -sigma
    if target == "eps":
        return eps
    x0 = (x - sigma * eps) / alpha
    return x0 if target == "x0" else -eps / sigma if target == "score" else alpha * eps - sigma * x0


def convert_positional(x, level, value, source, target):
    return convert_through_eps(x=x, level=level, value=value, source=source, target=target)


def _convert(to_x0=None, from_x0=None, level_of=lambda level, x: level.like(x)):
    """A wrong answer: some ways to x0, or from it, replaced."""
    to_x0, from_x0 = TO_X0 | (to_x0 or {}), FROM_X0 | (from_x0 or {})

    def convert(x, level, value, source, target):
        alpha, sigma = level_of(level, x)
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
_of_first = lambda level, x: tuple(torch.as_tensor(v).flatten()[0].item() for v in (level.alpha, level.sigma))
_last_axis = lambda level, x: (level.alpha, level.sigma)


def convert_keeps_same(x, level, value, source, target):
    """Right, but for a conversion of a kind into itself."""
    return convert_in_minidiff(x, level, value, source, target) if source != target else 0 * value


def convert_in_float64_only(x, level, value, source, target):
    out = convert_in_minidiff(x, level, value, source, target)
    return out if x.dtype == torch.float64 else out.round(decimals=2)


CONVERT = {
    "form-forgot-a-way": (lambda x, level, value, source, target: None, "form"),
    "form-one-number": (lambda x, level, value, source, target: value.mean(), "form"),
    "form-prediction": (lambda x, level, value, source, target: Prediction(x, level, value, source), "form"),
    "as-it-came": (lambda x, level, value, source, target: value, "x0-and-eps", "as it came"),
    "eps-not-divided": (_convert(from_x0={"eps": lambda x, a, s, x0: x - a * x0}), "x0-and-eps", "divided by sigma"),
    "eps-by-variance": (_convert(from_x0={"eps": lambda x, a, s, x0: (x - a * x0) / s**2}), "x0-and-eps", "variance"),
    "eps-without-alpha": (_convert(from_x0={"eps": lambda x, a, s, x0: (x - x0) / s}), "x0-and-eps", "by alpha"),
    "eps-sign": (_convert(from_x0={"eps": lambda x, a, s, x0: (a * x0 - x) / s}), "x0-and-eps", "sign is wrong"),
    "x0-not-divided": (_convert({"eps": lambda x, a, s, v: x - s * v}), "x0-and-eps", "divided by alpha"),
    "x0-without-sigma": (_convert({"eps": lambda x, a, s, v: (x - v) / a}), "x0-and-eps", "multiplied by sigma"),
    "x0-by-variance": (_convert({"eps": lambda x, a, s, v: (x - s**2 * v) / a}), "x0-and-eps", "not by the variance"),
    "x0-plus": (_convert({"eps": lambda x, a, s, v: (x + s * v) / a}), "x0-and-eps", "has a minus"),
    "clips-x0": (_convert({"eps": lambda x, a, s, v: ((x - s * v) / a).clamp(-1, 1)}), "x0-and-eps"),
    "alpha-and-sigma-swapped": (_convert(level_of=lambda level, x: level.like(x)[::-1]), "x0-and-eps", "are swapped"),
    "score-is-minus-eps": (_convert(from_x0={"score": lambda x, a, s, x0: (a * x0 - x) / s}), "score", "length"),
    "score-by-variance": (_convert(from_x0={"score": lambda x, a, s, x0: (a * x0 - x) / s**3}), "score", "sigma^2"),
    "score-sign": (_convert(from_x0={"score": lambda x, a, s, x0: (x - a * x0) / s**2}), "score", "sign is wrong"),
    "from-score-by-sigma": (_convert({"score": lambda x, a, s, v: (x + s * v) / a}), "score", "left sigma out"),
    "from-score-sign": (_convert({"score": lambda x, a, s, v: (x - s**2 * v) / a}), "score", "sign is wrong"),
    "v-sign": (_convert(from_x0={"v": lambda x, a, s, x0: s * x0 - a * (x - a * x0) / s}), "v", "sign is wrong"),
    "v-plus": (_convert(from_x0={"v": lambda x, a, s, x0: s * x0 + a * (x - a * x0) / s}), "v", "has a minus"),
    "v-swapped": (_convert(from_x0={"v": lambda x, a, s, x0: (x - a * x0) - a * x0}), "v", "swapped in v"),
    "from-v-sign": (
        _convert({"v": lambda x, a, s, v: (a * x + s * v) / (a**2 + s**2)}),
        "v",
        "sign of v",
    ),
    "variance-preserving-only": (
        _convert({"v": lambda x, a, s, v: a * x - s * v}),
        "variance-exploding",
        "variance-preserving levels only",
    ),
    "same-kind": (convert_keeps_same, "variance-exploding"),
    "first-level-for-all": (_convert(level_of=_of_first), "one-level-per-sample", "own level"),
    "level-along-the-last-axis": (_convert(level_of=_last_axis), "one-level-per-sample", "along the last"),
    "coarse-in-float32": (convert_in_float64_only, "in-float32"),
}

# -- ex-01-ideal ------------------------------------------------------------------------------------------------------


def ideal_in_a_loop(x, level, images):
    out = []
    for one in x:
        squares = torch.stack([(one - level.alpha * image).pow(2).sum() for image in images])
        logits = -squares / (2 * level.sigma**2)
        weights = (logits - logits.max()).exp()
        out.append(sum(w * image for w, image in zip(weights / weights.sum(), images, strict=True)))
    return torch.stack(out)


def ideal_by_products(x, level, images):
    """|x - alpha y|^2 without |x|^2, which is the same for all pictures."""
    flat, means = x.flatten(1), level.alpha * images.flatten(1)
    logits = (flat @ means.T - means.square().sum(1) / 2) / level.sigma**2
    return (torch.exp(logits - logits.logsumexp(1, keepdim=True)) @ images.flatten(1)).view_as(x)


def ideal_in_float32(x, level, images):
    squares = torch.cdist(x.flatten(1).float(), level.alpha * images.flatten(1).float()).square()
    return torch.einsum("bn,nchw->bchw", torch.softmax(-squares / (2 * level.sigma**2), -1), images.float())


def _ideal(change=lambda logits, level: logits, scale=True, weigh=lambda logits: logits.softmax(1), seen=slice(None)):
    """A wrong answer: logits changed, images not scaled, weights made otherwise, or only some channels looked at."""

    def ideal(x, level, images):
        means = (level.alpha if scale else 1.0) * images
        squares = (x[:, None] - means)[:, :, seen].flatten(2).square().sum(2)
        weights = weigh(change(-squares / (2 * level.sigma**2), level))
        return (weights @ images.flatten(1)).reshape(x.shape)

    return ideal


def _pixelwise(x, level, images):
    weights = (-(x[:, None] - level.alpha * images).square() / (2 * level.sigma**2)).softmax(1)
    return (weights * images).sum(1)


def _mean_of_squares(x, level, images):
    squares = (x[:, None] - level.alpha * images).square().flatten(2).mean(2)
    return ((-squares / (2 * level.sigma**2)).softmax(1) @ images.flatten(1)).reshape(x.shape)


def _squeezed(x, level, images):
    """Wrong for a batch of one: the batch axis is lost on the way."""
    squares = (x[:, None] - level.alpha * images).square().flatten(2).sum(2).squeeze()
    weights = (-squares / (2 * level.sigma**2)).softmax(-1)
    return torch.einsum("bn,nchw->bchw", weights, images)


def _vp_only(x, level, images):
    squares = (x[:, None] - level.alpha * images).square().flatten(2).sum(2)
    return ((-squares / (2 * (1 - level.alpha**2) + 1e-12)).softmax(1) @ images.flatten(1)).reshape(x.shape)


def _nearest(x, level, images):
    return images[(x[:, None] - level.alpha * images).flatten(2).square().sum(2).argmin(1)]


def _unstable(shift=lambda logits: 0.0, eps=0.0):
    def weigh(logits):
        raised = (logits - shift(logits)).exp()
        return raised / (raised.sum(1, keepdim=True) + eps)

    return _ideal(weigh=weigh)


IDEAL = {
    "form-forgot-return": (lambda x, level, images: None, "form"),
    "form-flat": (lambda x, level, images: _nearest(x, level, images).flatten(1), "form"),
    "form-weights": (lambda x, level, images: torch.ones(len(x), len(images)) / len(images), "form"),
    "no-half": (_ideal(lambda logits, level: 2 * logits), "two-points", "factor 1/2"),
    "sigma-for-variance": (_ideal(lambda logits, level: logits * level.sigma), "two-points", "not by sigma"),
    "sign": (_ideal(lambda logits, level: -logits), "two-points", "has a minus"),
    "distance-not-squared": (
        _ideal(lambda logits, level: -(-2 * level.sigma**2 * logits).sqrt() / (2 * level.sigma**2)),
        "two-points",
        "squared distance, not the distance",
    ),
    "images-not-scaled": (_ideal(scale=False), "two-points", "alpha times the images"),
    "nearest-image": (_nearest, "two-points", "nearest picture"),
    "plain-mean": (lambda x, level, images: images.mean(0).expand_as(x), "two-points", "plain mean"),
    "softmax-over-the-batch": (_ideal(weigh=lambda logits: logits.softmax(0)), "two-points", "over the batch"),
    "weights-not-normalised": (_ideal(weigh=lambda logits: logits.exp()), "two-points", "divided by their sum"),
    "scaled-answer": (
        lambda x, level, images: level.alpha * _ideal()(x, level, images),
        "two-points",
        "x_0 is not scaled",
    ),
    "prior-weighs-too": (_ideal(lambda logits, level: logits + torch.arange(logits.shape[1])), "two-points"),
    "mean-over-pixels": (_mean_of_squares, "many-pixels", "you took their mean"),
    "first-channel": (_ideal(seen=slice(0, 1)), "many-pixels", "you looked at the first"),
    "weights-for-each-pixel": (_pixelwise, "many-pixels", "each of its pixels"),
    "last-channel": (_ideal(seen=slice(-1, None)), "many-pixels"),
    "batch-of-one": (_squeezed, "many-pixels"),
    "variance-preserving-only": (_vp_only, "variance-exploding", "does not hold here"),
    "small-sigma-only": (_ideal(lambda logits, level: logits * max(level.sigma, 1.0) ** 2), "variance-exploding"),
    "underflow": (_unstable(), "far-from-the-data", "gives 0 or infinity"),
    "one-maximum-for-the-batch": (_unstable(lambda logits: logits.max()), "far-from-the-data", "whole batch"),
    "overflow": (_unstable(lambda logits: logits.min(1, keepdim=True)[0]), "far-from-the-data", "0 or infinity"),
    "nothing-for-no-weight": (_unstable(eps=1e-30), "far-from-the-data"),
}

# -- ex-01-weight -----------------------------------------------------------------------------------------------------


def weight_from_kl(t, s):
    """From the means: their distance is alpha_s beta sigma_t / (sigma_t^2 alpha_t) times the error in eps."""
    shift = s.alpha * beta(t, s) / (t.sigma * t.alpha)
    return shift**2 / (2 * beta_tilde(t, s))


def weight_by_logarithms(t, s):
    return math.expm1(s.log_snr - t.log_snr) / 2


def weight_in_float32(t, s):
    a_t, s_t, a_s, s_s = (torch.tensor(v, dtype=torch.float32) for v in (t.alpha, t.sigma, s.alpha, s.sigma))
    return ((a_s * s_t / (a_t * s_s)) ** 2 - 1) / 2


def weight_in_numpy(t, s):
    return np.float32(weight_from_kl(t, s))


def weight_vp_only(t, s):
    return (s.alpha**2 / (1 - s.alpha**2 + 1e-12)) / (t.alpha**2 / (1 - t.alpha**2 + 1e-12)) / 2 - 0.5


WEIGHT = {
    "form-tensor": (lambda t, s: torch.ones(2), "form"),
    "form-function": (lambda t, s: lambda eps: 0.5, "form"),
    "form-forgot-return": (lambda t, s: None, "form"),
    "no-half": (lambda t, s: s.snr / t.snr - 1, "snr-ratio", "factor 1/2"),
    "of-x0": (lambda t, s: (s.snr - t.snr) / 2, "snr-ratio", "x0_hat"),
    "with-beta": (lambda t, s: (1 - t.snr / s.snr) / 2, "snr-ratio", "not beta"),
    "swapped": (lambda t, s: (t.snr / s.snr - 1) / 2, "snr-ratio", "swapped"),
    "without-one": (lambda t, s: s.snr / t.snr / 2, "snr-ratio", "subtracted"),
    "ratio-of-roots": (lambda t, s: ((s.snr / t.snr) ** 0.5 - 1) / 2, "snr-ratio", "you took alpha / sigma"),
    "logarithm": (lambda t, s: (s.log_snr - t.log_snr) / 2, "snr-ratio", "not its logarithm"),
    "simple": (lambda t, s: 1.0, "snr-ratio", "L_simple"),
    "shift-alone": (lambda t, s: (s.alpha * beta(t, s) / (t.sigma * t.alpha)) ** 2, "snr-ratio"),
    "cut-off": (lambda t, s: max(weight_from_kl(t, s), 0.05), "neighbours"),
    "variance-preserving-only": (weight_vp_only, "variance-exploding", "does not hold here"),
    "bounded": (lambda t, s: weight_from_kl(t, s) if t.sigma <= 1 else 1.0, "variance-exploding"),
}

# -- ex-01-commit -----------------------------------------------------------------------------------------------------

COMMITMENT = commitment()
COMMIT = {
    "form-fraction": (COMMITMENT / 1000, "form"),
    "form-function": (commitment, "form"),
    "form-all-times": (torch.arange(0, 1000, 50), "form"),
    "form-text": (str(COMMITMENT), "form"),
    "place-in-the-list": (COMMITMENT // 50, "a-time", "place in the list"),
    "between-the-times": (COMMITMENT + 7, "a-time"),
    "from-the-other-end": (1000 - COMMITMENT, "measured", "other end"),
    "last-time-before": (COMMITMENT - 50, "measured", "the first at which"),
    "half": (commitment(share=0.5), "measured", "fewer than half"),
    "thirty-per-cent": (commitment(share=0.3), "measured", "fewer than 30 %"),
    "linear-schedule": (commitment(schedule=linear_schedule), "measured", "linear schedule"),
    "alpha-bar-for-alpha": (commitment(SQUARED_ALPHA), "measured", "alpha-bar for alpha"),
    "variance-for-deviation": (commitment(None, SQUARED_SIGMA), "measured", "variance for the standard deviation"),
    "at-once": (0, "measured", "nearly all"),
    "never": (950, "measured"),
}

# -- ex-01-levels ------------------------------------------------------------------------------------------------------

GOOD = [0.1, 1.0, 1.6, 2.15, 2.65, 3.1, 3.55, 4.0, 4.45, 4.95, 5.75]
EQUAL = [-12 + 21 * k / 12 for k in range(1, 12)]


def levels_by_descent():
    """Each level in turn to the best of three places, with ever smaller steps, from levels spread over the middle."""
    levels, step = [-1.0 + 0.65 * k for k in range(11)], 0.4
    found = excess(levels)
    while step > 0.1:
        before = found
        for k in range(11):
            for move in (-step, step):
                tried = [*levels[:k], levels[k] + move, *levels[k + 1 :]]
                if (now := excess(tried)) < found:
                    levels, found = tried, now
        step = step / 2 if found == before else step
    return levels


LEVELS = {
    "form-ten": (GOOD[1:], "form"),
    "form-with-the-ends": ([-12.0, *GOOD, 9.0], "form"),
    "form-function": (levels_by_descent, "form"),
    "form-text": ([str(value) for value in GOOD], "form"),
    "falling": (GOOD[::-1], "a-chain", "the log-SNR rises"),
    "beyond-the-ends": ([-13.0, *GOOD[1:]], "a-chain"),
    "one-twice": ([*GOOD[:10], GOOD[9]], "a-chain"),
    "equal-pieces": (EQUAL, "half-way"),
    "the-middle-alone": ([0.45 * k for k in range(11)], "half-way"),
    "even-angles": ([-2 * math.log(math.tan(1.5683 - 0.1298 * k)) for k in range(1, 12)], "half-way"),
    "spread-over-the-middle": ([-3 + 0.9 * k for k in range(11)], "well-spent"),
    "shifted": ([value + 0.5 for value in GOOD], "well-spent"),
    "rounded": ([0, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.25, 4.5, 5], "half-way"),
}

RIGHT = {
    "ex-01-compose": {
        "loop": compose_in_a_loop,
        "float32": compose_in_float32,
        "logarithms": compose_by_logarithms,
        "numpy": compose_in_numpy,
    },
    "ex-01-posterior": {
        "precisions": posterior_by_precisions,
        "noise": posterior_by_noise,
        "float32": posterior_in_float32,
        "loop": posterior_in_a_loop,
    },
    "ex-01-convert": {
        "minidiff": convert_in_minidiff,
        "solving": convert_by_solving,
        "float32": convert_in_float32,
        "keywords": convert_positional,
    },
    "ex-01-ideal": {
        "minidiff": lambda x, level, images: EmpiricalDenoiser(images)(x, level).x0,
        "loop": ideal_in_a_loop,
        "products": ideal_by_products,
        "float32": ideal_in_float32,
    },
    "ex-01-weight": {
        "from-the-divergence": weight_from_kl,
        "logarithms": weight_by_logarithms,
        "float32": weight_in_float32,
        "numpy": weight_in_numpy,
    },
    "ex-01-commit": {
        "integer": COMMITMENT,
        "tensor": torch.tensor([COMMITMENT]),
        "numpy": np.int64(COMMITMENT),
        "float": float(COMMITMENT),
    },
    "ex-01-levels": {
        "a list": GOOD,
        "tensor, float32": torch.tensor(GOOD),
        "numpy": np.array(GOOD) + 0.01,
        "descent": levels_by_descent(),
    },
}

MUTANTS = {
    "ex-01-compose": COMPOSE,
    "ex-01-posterior": POSTERIOR,
    "ex-01-convert": CONVERT,
    "ex-01-ideal": IDEAL,
    "ex-01-weight": WEIGHT,
    "ex-01-commit": COMMIT,
    "ex-01-levels": LEVELS,
}
