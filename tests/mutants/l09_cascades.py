"""Planted wrong answers of lesson 09 (name -> (answer, a case that it must fail)), and second right answers."""

from __future__ import annotations

import math

import torch

from minidiff.course.checks.l09_cascades import enough, error_left


def _eye(n):
    return torch.eye(n, dtype=torch.float64)


def _posterior(noise=lambda v: v, unknown=lambda C, explained: C - explained):
    def answer(C, A, y, variance):
        gain = C @ A.T @ torch.linalg.inv(A @ C @ A.T + noise(variance) * _eye(len(A)))
        return y @ gain.T, unknown(C, gain @ A @ C)

    return answer


def _pseudo_inverse(C, A, y, variance):
    """Least squares: the smallest x that reproduces y, whatever the prior."""
    inverse = torch.linalg.pinv(A)
    return y @ inverse.T, C - inverse @ A @ C


def _unbatched(C, A, y, variance):
    mean, covariance = _posterior()(C, A, y, variance)
    return mean[0], covariance


def _one_by_one(C, A, y, variance):
    """Condition on one number after the other (Kalman), observation by observation."""
    means = []
    for row in y:
        mean, covariance = torch.zeros(len(C), dtype=torch.float64), C.clone()
        for a, value in zip(A, row, strict=True):
            gain = covariance @ a / (a @ covariance @ a + variance + 1e-300)
            mean = mean + gain * (value - a @ mean)
            covariance = covariance - torch.outer(gain, a @ covariance)
        means.append(mean)
    return torch.stack(means), covariance


def _levels(root=True, step=-1, start=1.0):
    """draw_alpha with another interpolation, neighbour or value before time 0."""

    def answer(table, t, u):
        table = torch.cat([torch.tensor([start], dtype=torch.float64), table])
        noisy, clean = table[t + 1], table[(t + 1 + step).clamp(max=len(table) - 1)]
        if root:
            return torch.lerp(noisy.sqrt(), clean.sqrt(), u)
        return torch.lerp(noisy, clean, u).sqrt()

    return answer


def _wraps(table, t, u):
    alpha = table.sqrt()
    return torch.lerp(alpha[t], alpha[t - 1], u)


def _levels_one_by_one(table, t, u):
    alpha = [1.0, *table.sqrt().tolist()]
    pairs = zip(t.tolist(), u.tolist(), strict=True)
    return torch.tensor([(1 - v) * alpha[i + 1] + v * alpha[i] for i, v in pairs], dtype=torch.float64)


def _augment(scale=lambda p: p / 127.5 - 1, alpha=lambda s: (1 - s**2).sqrt(), level=lambda s: s, noise=lambda s: s):
    def answer(pixels, sigma, eps):
        s = level(sigma).reshape(-1, 1, 1, 1)
        return alpha(s) * scale(pixels.float()) + noise(s) * eps

    return answer


def _noise_first(pixels, sigma, eps):
    s = sigma.reshape(-1, 1, 1, 1)
    return ((1 - s**2).sqrt() * pixels.float() + s * eps) / 127.5 - 1


def _noise_in_the_unit_interval(pixels, sigma, eps):
    s = sigma.reshape(-1, 1, 1, 1)
    return ((1 - s**2).sqrt() * pixels / 255 + s * eps) * 2 - 1


def _augment_by_loop(pixels, sigma, eps):
    pairs = zip(pixels, sigma.tolist(), eps, strict=True)
    return torch.stack([math.sqrt(1 - s * s) * (p.float() * 2 / 255 - 1) + s * e for p, s, e in pairs])


def _left(rho, shift=1, excess=2):
    def answer(variance, d, k, sigma):
        r = rho(variance, sigma)
        return d * r**shift, k * r**excess

    return answer


def _reliability(variance, sigma):
    alpha2 = 1 - sigma**2
    return alpha2 * variance / (alpha2 * variance + sigma**2)


def _left_by_snr(variance, shift, excess, sigma):
    if sigma == 1:
        return 0.0, 0.0
    snr = (1 - sigma**2) / sigma**2 * variance if sigma else math.inf
    rho = 1.0 if snr == math.inf else snr / (1 + snr)
    return rho * shift, rho * rho * excess


def _enough_by_grid():
    target = 0.1 * error_left(0.0)
    return next(i / 5000 for i in range(5001) if error_left(i / 5000) <= target)


MUTANTS = {
    "ex-09-posterior": {
        "no-noise": (_posterior(noise=lambda v: 0.0), "adds-precisions"),
        "std-for-variance": (_posterior(noise=lambda v: v**0.5), "adds-precisions"),
        "variance-squared": (_posterior(noise=lambda v: v**2), "adds-precisions"),
        "covariance-of-the-means": (_posterior(unknown=lambda C, explained: explained), "adds-precisions"),
        "prior-covariance": (_posterior(unknown=lambda C, explained: C), "reproduces-what-it-was-told"),
        "always-some-noise": (_posterior(noise=lambda v: v + 1e-2), "reproduces-what-it-was-told"),
        "least-squares": (_pseudo_inverse, "adds-precisions"),
        "first-observation-only": (_unbatched, "adds-precisions"),
        "adds-what-is-explained": (_posterior(unknown=lambda C, explained: C + explained), "adds-precisions"),
        "mean-from-nowhere": (
            lambda C, A, y, v: (_posterior()(C, A, y, v)[0] + y.mean(), _posterior()(C, A, y, v)[1]),
            "no-information",
        ),
    },
    "ex-09-levels": {
        "alpha-bar": (lambda table, t, u: _levels()(table**2, t, u), "from-one-level-to-the-next"),
        "noisier-neighbour": (_levels(step=1), "from-one-level-to-the-next"),
        "u-turned-round": (lambda table, t, u: _levels()(table, t, 1 - u), "from-one-level-to-the-next"),
        "wraps-around": (_wraps, "time-0-reaches-the-data"),
        "stops-at-time-0": (
            lambda table, t, u: torch.lerp(*(table.sqrt()[i] for i in (t, (t - 1).clamp(min=0))), u),
            "time-0-reaches-the-data",
        ),
        "uniform-alpha-bar": (_levels(root=False), "uniform-in-alpha"),
        "one-for-the-batch": (lambda table, t, u: _levels()(table, t, u[:1].expand(len(u))), "one-for-each-sample"),
        "one-time": (lambda table, t, u: _levels()(table, t[:1].expand(len(t)), u), "one-for-each-sample"),
    },
    "ex-09-see": {
        "as-it-is": (lambda alpha: alpha, "neighbours-are-told-apart"),
        "times-ten": (lambda alpha: 2 * alpha, "neighbours-are-told-apart"),
        "log-snr": (lambda alpha: torch.log(alpha**2 / (1 - alpha**2)), "finite-at-both-ends"),
        "whole-turns": (lambda alpha: torch.round(alpha) * 1000, "no-two-levels-alike"),
        "turns-back": (lambda alpha: 1000 * (2 * alpha - 1).abs(), "no-two-levels-alike"),
        "constant": (lambda alpha: 0 * alpha, "finite-at-both-ends"),
    },
    "ex-09-augment": {
        "noise-before-scaling": (_noise_first, "noise-after-scaling"),
        "noise-in-the-unit-interval": (_noise_in_the_unit_interval, "noise-after-scaling"),
        "unit-interval": (_augment(scale=lambda p: p / 255), "level-0-is-the-picture"),
        "raw-pixels": (_augment(scale=lambda p: p), "level-0-is-the-picture"),
        "no-alpha": (_augment(alpha=lambda s: 1.0), "variance-preserving"),
        "one-minus-sigma": (_augment(alpha=lambda s: 1 - s), "variance-preserving"),
        "sigma-as-variance": (_augment(noise=lambda s: s.sqrt()), "noise-after-scaling"),
        "first-level-for-all": (_augment(level=lambda s: s[:1].expand(len(s))), "a-level-for-each-sample"),
        "mean-level": (_augment(level=lambda s: s.mean().expand(len(s))), "a-level-for-each-sample"),
    },
    "ex-09-redraw": {
        "rho-for-both": (_left(_reliability, 1, 1), "followed-through-both-steps"),
        "rho-squared-for-both": (_left(_reliability, 2, 2), "followed-through-both-steps"),
        "no-alpha": (_left(lambda v, s: v / (v + s**2)), "nothing-and-everything"),
        "alpha-once": (
            _left(lambda v, s: math.sqrt(1 - s**2) * v / ((1 - s**2) * v + s**2)),
            "followed-through-both-steps",
        ),
        "only-noised": (lambda v, d, k, s: (math.sqrt(1 - s**2) * d, (1 - s**2) * k), "fine-before-coarse"),
        "what-is-lost": (_left(lambda v, s: 1 - _reliability(v, s)), "nothing-and-everything"),
        "same-everywhere": (_left(lambda v, s: 1 - s**2), "fine-before-coarse"),
    },
    "ex-09-enough": {
        "a-tenth-taken": (enough(0.9), "a-tenth-is-left"),
        "rho-once": (enough(power=1), "a-tenth-is-left"),
        "variance": (enough() ** 2, "a-tenth-is-left"),
        "alpha": (math.sqrt(1 - enough() ** 2), "a-tenth-is-left"),
        "half": (enough(0.5), "a-tenth-is-left"),
        "all-of-it": (1.0, "a-tenth-is-left"),
    },
}

SECOND = {
    "ex-09-posterior": _one_by_one,
    "ex-09-levels": _levels_one_by_one,
    "ex-09-see": lambda alpha: 2000 * torch.arccos(alpha.clamp(0, 1)) / math.pi,
    "ex-09-augment": _augment_by_loop,
    "ex-09-redraw": _left_by_snr,
    "ex-09-enough": _enough_by_grid(),
}
