"""Planted wrong answers of lesson 08 (name -> (answer, a case that it must fail)), and second right answers."""

from __future__ import annotations

import math

import torch

from minidiff.course.checks.l08_inpainting import measure_enough
from minidiff.process import diffuse, renoise


def _blocks(covariance, known):
    return covariance[~known][:, ~known], covariance[~known][:, known], covariance[known][:, known]


def _conditional(mean_of, covariance_of):
    """conditional() with another mean, of (mean_u, mean_k, value, gain), or covariance, of (C_uu, gain, C_ku)."""

    def answer(mean, covariance, known, value):
        own, across, inner = _blocks(covariance, known)
        gain = across @ torch.linalg.inv(inner)
        return mean_of(mean[~known], mean[known], value, gain), covariance_of(own, gain, across.T)

    return answer


def _right_mean(u, k, value, gain):
    return u + gain @ (value - k)


def _right_covariance(own, gain, across):
    return own - gain @ across


def _conditional_by_precision(mean, covariance, known, value):
    precision = torch.linalg.inv(covariance)
    inner = torch.linalg.inv(precision[~known][:, ~known])
    return mean[~known] - inner @ precision[~known][:, known] @ (value - mean[known]), inner


def _paste(known, signal=lambda level, image, eps: level.alpha * image + level.sigma * eps):
    return lambda x, level, image, mask, eps: torch.where(known(mask), signal(level, image, eps), x)


def _one(mask):
    return mask == 1


def _paste_by_indices(x, level, image, mask, eps):
    out, keep = x.clone(), mask.bool().expand_as(x)
    out[keep] = diffuse(image, level, eps)[keep]
    return out


def _leap(scale, noise):
    return lambda x, r, t, eps: scale(r, t) * x + noise(r, t) * eps


def _ratio(r, t):
    return t.alpha / r.alpha


def _root(r, t):
    return math.sqrt(t.sigma**2 - (t.alpha / r.alpha) ** 2 * r.sigma**2)


def _explain(exponent):
    return lambda images, picture, mask, h: exponent(images - picture, mask, h).softmax(0)


def _visible(d, mask, h):
    return -(d * mask).square().flatten(1).sum(1) / (2 * h**2)


def _with_exponentials(images, picture, mask, h):
    weight = _visible(images - picture, mask, h).exp()
    return weight / weight.sum()


def _one_by_one(images, picture, mask, h):
    logs = []
    for image in images:
        known = [
            (a - b) ** 2 for a, b, m in zip(*(v.flatten().tolist() for v in (image, picture, mask)), strict=True) if m
        ]
        logs.append(-sum(known) / (2 * h * h))
    top = max(logs)
    weights = [math.exp(value - top) for value in logs]
    return torch.tensor(weights, dtype=torch.float64) / sum(weights)


def _widen(new, at=lambda weight, after: after):
    def answer(weight, extra, after):
        place = at(weight, after)
        return torch.cat([weight[:, :place], new(weight, extra), weight[:, place:]], dim=1)

    return answer


def _zeros(weight, extra):
    return weight.new_zeros(weight.shape[0], extra, *weight.shape[2:])


def _widen_by_filling(weight, extra, after):
    out = torch.zeros(weight.shape[0], weight.shape[1] + extra, *weight.shape[2:], dtype=weight.dtype)
    places = [i if i < after else i + extra for i in range(weight.shape[1])]
    out[:, places] = weight
    return out


MUTANTS = {
    "ex-08-conditional": {
        "mean-not-subtracted": (
            _conditional(lambda u, k, v, g: u + g @ v, _right_covariance),
            "mean-is-subtracted",
        ),
        "marginal": (
            _conditional(lambda u, k, v, g: u, lambda own, g, a: own),
            "two-pixels",
        ),
        "plus": (_conditional(_right_mean, lambda own, g, a: own + g @ a), "covariance-in-five-dimensions"),
        "inverse-forgotten": (
            lambda mean, c, known, value: (
                mean[~known] + c[~known][:, known] @ (value - mean[known]),
                c[~known][:, ~known] - c[~known][:, known] @ c[known][:, ~known],
            ),
            "covariance-in-five-dimensions",
        ),
        "swapped": (
            lambda mean, c, known, value: _conditional_by_precision(mean, c, known, value)[::-1],
            "two-pixels",
        ),
        "diagonal": (
            _conditional(_right_mean, lambda own, g, a: torch.diag((own - g @ a).diag())),
            "covariance-in-five-dimensions",
        ),
    },
    "ex-08-paste": {
        "mask-inverted": (_paste(lambda mask: mask == 0), "one-is-known"),
        "everywhere": (_paste(lambda mask: mask >= 0), "one-is-known"),
        "clean": (_paste(_one, lambda level, image, eps: image + 0 * eps), "at-the-level"),
        "shrunk-but-clean": (_paste(_one, lambda level, image, eps: level.alpha * image), "at-the-level"),
        "no-alpha": (_paste(_one, lambda level, image, eps: image + level.sigma * eps), "at-the-level"),
        "variance": (
            _paste(_one, lambda level, image, eps: level.alpha * image + level.sigma**2 * eps),
            "at-the-level",
        ),
        "variance-preserving": (
            _paste(_one, lambda level, image, eps: level.alpha * image + math.sqrt(1 - level.alpha**2) * eps),
            "at-the-level",
        ),
        "by-products": (
            lambda x, level, image, mask, eps: mask * (level.alpha * image + level.sigma * eps) + (1 - mask) * x,
            "nothing-leaks",
        ),
    },
    "ex-08-leap": {
        "difference-of-deviations": (_leap(_ratio, lambda r, t: t.sigma - _ratio(r, t) * r.sigma), "the-noise-adds-up"),
        "as-if-clean": (_leap(lambda r, t: t.alpha, lambda r, t: t.sigma), "the-signal-shrinks"),
        "too-much": (_leap(_ratio, lambda r, t: t.sigma), "two-leaps-are-one"),
        "variance": (_leap(_ratio, lambda r, t: _root(r, t) ** 2), "the-noise-adds-up"),
        "upside-down": (_leap(lambda r, t: r.alpha / t.alpha, _root), "the-signal-shrinks"),
        "scale-not-squared": (
            _leap(_ratio, lambda r, t: math.sqrt(t.sigma**2 - _ratio(r, t) * r.sigma**2)),
            "the-noise-adds-up",
        ),
    },
    "ex-08-resamplings": {
        "leaps-counted": (measure_enough() - 1, "reaches-95-percent"),
        "one-more": (measure_enough() + 1, "reaches-95-percent"),
        "rho-0.9": (measure_enough(0.9), "reaches-95-percent"),
        "ninety-percent": (measure_enough(0.6, 25, 0.9), "reaches-95-percent"),
        "share": (0.95, "a-count"),
        "none": (1, "reaches-95-percent"),
    },
    "ex-08-posterior": {
        "hidden-half": (_explain(lambda d, m, h: _visible(d, 1 - m, h)), "bayes-on-the-visible"),
        "whole-picture": (_explain(lambda d, m, h: _visible(d, 1, h)), "bayes-on-the-visible"),
        "no-two": (_explain(lambda d, m, h: 2 * _visible(d, m, h)), "bayes-on-the-visible"),
        "bandwidth-not-squared": (_explain(lambda d, m, h: h * _visible(d, m, h)), "bayes-on-the-visible"),
        "not-normalised": (
            lambda images, picture, mask, h: _visible(images - picture, mask, h).exp(),
            "sums-to-one",
        ),
        "exponentials": (_with_exponentials, "survives-underflow"),
        "nearest-only": (
            lambda images, picture, mask, h: torch.nn.functional.one_hot(
                _visible(images - picture, mask, h).argmax(), len(images)
            ).double(),
            "bayes-on-the-visible",
        ),
        "mean-not-sum": (
            _explain(lambda d, m, h: -(d * m).square().flatten(1).mean(1) / (2 * h**2)),
            "bayes-on-the-visible",
        ),
    },
    "ex-08-widen": {
        "at-the-end": (_widen(_zeros, lambda weight, after: weight.shape[1]), "computes-what-it-did"),
        "at-the-front": (_widen(_zeros, lambda weight, after: 0), "computes-what-it-did"),
        "small-random": (
            _widen(lambda w, n: 1e-3 * torch.randn(w.shape[0], n, *w.shape[2:])),
            "new-weights-are-zero",
        ),
        "mean-of-the-old": (
            _widen(lambda w, n: w.mean(1, keepdim=True).expand(-1, n, -1, -1)),
            "new-weights-are-zero",
        ),
        "half-precision": (
            lambda w, extra, after: _widen_by_filling(w, extra, after).half(),
            "old-weights-are-kept",
        ),
        "rescaled": (
            lambda w, extra, after: _widen_by_filling(w, extra, after) * (w.shape[1] / (w.shape[1] + extra)),
            "old-weights-are-kept",
        ),
    },
}

SECOND = {
    "ex-08-conditional": _conditional_by_precision,
    "ex-08-paste": _paste_by_indices,
    "ex-08-leap": lambda x, r, t, eps: renoise(x, r, t, eps),
    "ex-08-resamplings": measure_enough(),
    "ex-08-posterior": _one_by_one,
    "ex-08-widen": _widen_by_filling,
}
