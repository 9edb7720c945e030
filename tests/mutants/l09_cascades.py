"""Planted answers of lesson 09: MUTANTS, name -> (answer, a case that it must fail, words of the diagnosis); RIGHT."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional as F

from minidiff.process import diffuse

# -- ex-09-posterior --------------------------------------------------------------------------------------------------


def _eye(n):
    return torch.eye(n, dtype=torch.float64)


def _posterior(noise=lambda v: v, unknown=lambda C, explained: C - explained, prior=lambda C: C, mean=lambda m, y: m):
    def answer(C, A, y, variance):
        C = prior(C)
        gain = C @ A.T @ torch.linalg.inv(A @ C @ A.T + noise(variance) * torch.eye(len(A), dtype=C.dtype))
        return mean(y @ gain.T, y), unknown(C, gain @ A @ C)

    return answer


def posterior_by_numbers(C, A, y, variance):
    """Condition on one number after the other (Kalman), observation by observation."""
    means = []
    for row in y:
        mean, covariance = torch.zeros(len(C), dtype=C.dtype), C.clone()
        for a, value in zip(A, row, strict=True):
            gain = covariance @ a / (a @ covariance @ a + variance + 1e-30)
            mean = mean + gain * (value - a @ mean)
            covariance = covariance - torch.outer(gain, a @ covariance)
        means.append(mean)
    return torch.stack(means), covariance


def posterior_in_float32(C, A, y, variance):
    C, A, y = C.float(), A.float(), y.float()
    S = A @ C @ A.T + variance * torch.eye(len(A))
    across = C @ A.T
    return torch.linalg.solve(S, y.T).T @ across.T, C - across @ torch.linalg.solve(S, across.T)


def posterior_in_numpy(C, A, y, variance):
    C, A, y = (v.numpy() for v in (C, A, y))
    gain = np.linalg.solve(A @ C @ A.T + variance * np.eye(len(A)), A @ C).T
    rest = np.eye(len(C)) - gain @ A
    return (gain @ y.T).T, rest @ C @ rest.T + variance * gain @ gain.T


def posterior_of_pairs(C, A, y, variance):
    """As a block of the joint Gaussian of (x, y)."""
    joint = torch.cat([torch.cat([C, C @ A.T], 1), torch.cat([A @ C, A @ C @ A.T + variance * _eye(len(A)).to(C)], 1)])
    across, own = joint[: len(C), len(C) :], joint[len(C) :, len(C) :]
    factor = torch.linalg.cholesky(own)
    gain = torch.cholesky_solve(across.T, factor).T
    return torch.einsum("ij,bj->bi", gain, y), C - gain @ across.T


def _pseudo_inverse(C, A, y, variance):
    """Least squares: the smallest x that reproduces y, whatever the prior."""
    inverse = torch.linalg.pinv(A)
    return y @ inverse.T, C - inverse @ A @ C


def _scaled_to_one(C, A, y, variance):
    size = A.norm()
    return _posterior()(C, A / size, y / size, variance / size**2)


def _squeezed(C, A, y, variance):
    mean, covariance = _posterior()(C, A, y, variance)
    return mean.squeeze(), covariance


def _mean_of_the_rows(C, A, y, variance):
    """Fewer observations than numbers in x: taken for columns."""
    mean, covariance = _posterior()(C, A, y, variance)
    return (mean, covariance) if len(y) > 2 else (mean.flip(0), covariance)


POSTERIOR = {
    "form-first-observation": (
        lambda C, A, y, variance: tuple(v[0] for v in _posterior()(C, A, y, variance)),
        "form",
    ),
    "form-columns": (lambda C, A, y, variance: (y @ A, A @ C @ A.T), "form"),
    "form-transposed": (_posterior(mean=lambda m, y: m.T), "form"),
    "form-mean-alone": (lambda C, A, y, variance: _posterior()(C, A, y, variance)[0], "form"),
    "form-one-tensor": (lambda C, A, y, variance: C, "form"),
    "form-forgot-return": (lambda C, A, y, variance: None, "form"),
    "no-noise": (_posterior(noise=lambda v: 0.0), "adds-precisions", "the noise is missing"),
    "std-for-variance": (_posterior(noise=lambda v: v**0.5), "adds-precisions", "took its root"),
    "variance-squared": (_posterior(noise=lambda v: v**2), "adds-precisions", "squared it"),
    "no-prior": (_posterior(prior=lambda C: _eye(len(C))), "adds-precisions", "C is not the identity"),
    "least-squares": (_pseudo_inverse, "adds-precisions", "the smallest x that gives y"),
    "not-divided": (
        lambda C, A, y, variance: (y @ A @ C, _posterior()(C, A, y, variance)[1]),
        "adds-precisions",
        "S^-1 is missing",
    ),
    "sign": (_posterior(mean=lambda m, y: -m), "adds-precisions", "sign of the mean"),
    "covariance-of-the-means": (
        _posterior(unknown=lambda C, explained: explained),
        "adds-precisions",
        "covariance of the posterior means",
    ),
    "prior-covariance": (_posterior(unknown=lambda C, explained: C), "adds-precisions", "the prior's covariance"),
    "adds-what-is-explained": (
        _posterior(unknown=lambda C, explained: C + explained),
        "adds-precisions",
        "second term is subtracted",
    ),
    "precision": (_posterior(unknown=lambda C, explained: (C - explained).inverse()), "adds-precisions", "precision"),
    "variances-alone": (_posterior(unknown=lambda C, explained: (C - explained).diag().diag()), "adds-precisions"),
    "mean-from-nowhere": (_posterior(mean=lambda m, y: m + y.mean()), "adds-precisions"),
    "always-some-noise": (_posterior(noise=lambda v: max(v, 0.05)), "reproduces-what-it-was-told"),
    "scaled-to-one": (_scaled_to_one, "no-information"),
    "squeezed": (_squeezed, "other-sizes"),
    "turned-round": (_mean_of_the_rows, "other-sizes"),
}

# -- ex-09-sr3 --------------------------------------------------------------------------------------------------------


def levels_in_a_loop(alpha_bar, t, u):
    table = [1.0, *alpha_bar.tolist()]
    pairs = zip(t.tolist(), u.tolist(), strict=True)
    return torch.tensor([(1 - v) * table[i + 1] + v * table[i] for i, v in pairs], dtype=torch.float64)


def levels_by_where(alpha_bar, t, u):
    cleaner = torch.where(t == 0, torch.ones_like(u), alpha_bar[t - 1])
    return alpha_bar[t] * (1 - u) + cleaner * u


def levels_in_float32(alpha_bar, t, u):
    table = torch.nn.functional.pad(alpha_bar.float(), (1, 0), value=1.0)
    return torch.lerp(table[1:].gather(0, t), table[:-1].gather(0, t), u.float())


def levels_in_numpy(alpha_bar, t, u):
    table = np.concatenate([[1.0], alpha_bar.numpy()])
    return np.interp(t.numpy() + 1 - u.numpy(), np.arange(len(table)), table)


def _levels(step=-1, start=1.0, before=lambda v: v, after=lambda v: v):
    """draw_alpha_bar with another neighbour or value before time 0, or linear in another quantity."""

    def answer(alpha_bar, t, u):
        table = torch.cat([alpha_bar.new_tensor([start]), alpha_bar])
        noisy, clean = table[t + 1], table[(t + 1 + step).clamp(max=len(table) - 1)]
        return after(torch.lerp(before(noisy), before(clean), u))

    return answer


def _wraps(alpha_bar, t, u):
    return torch.lerp(alpha_bar[t], alpha_bar[t - 1], u)


def _stops(alpha_bar, t, u):
    return torch.lerp(alpha_bar[t], alpha_bar[(t - 1).clamp(min=0)], u)


def _one_step_late(alpha_bar, t, u):
    return _stops(alpha_bar, (t - 1).clamp(min=0), u)


def _all_at_time_0(alpha_bar, t, u):
    """One sample at time 0 decides for all."""
    cleaner = torch.ones_like(u) if (t == 0).any() else alpha_bar[t - 1]
    return torch.lerp(alpha_bar[t], cleaner, u)


def _own_numbers(alpha_bar, t, u):
    return _levels()(alpha_bar, t, torch.rand_like(u))


LEVELS = {
    "alpha": (_levels(before=torch.sqrt), "from-one-level-to-the-next", "this is alpha"),
    "noisier-neighbour": (_levels(step=1), "from-one-level-to-the-next", "went to the noisier one"),
    "u-turned-round": (
        lambda alpha_bar, t, u: _levels()(alpha_bar, t, 1 - u),
        "from-one-level-to-the-next",
        "u = 0 is time t itself",
    ),
    "without-u": (
        lambda alpha_bar, t, u: _levels()(alpha_bar, t, 0 * u),
        "from-one-level-to-the-next",
        "u has no say",
    ),
    "one-step-late": (_one_step_late, "from-one-level-to-the-next", "begins at time t - 1"),
    "variance-of-the-noise": (
        _levels(before=lambda v: 1 - v),
        "from-one-level-to-the-next",
        "variance of the noise",
    ),
    "own-numbers": (_own_numbers, "from-one-level-to-the-next"),
    "uniform-alpha": (
        _levels(before=torch.sqrt, after=torch.square),
        "uniform-in-alpha-bar",
        "WaveGrad's rule",
    ),
    "uniform-logarithm": (_levels(before=torch.log, after=torch.exp), "uniform-in-alpha-bar", "logarithm"),
    "uniform-sigma": (
        _levels(before=lambda v: (1 - v).sqrt(), after=lambda s: 1 - s**2),
        "uniform-in-alpha-bar",
        "moved sigma linearly",
    ),
    "one-or-the-other": (lambda alpha_bar, t, u: _levels()(alpha_bar, t, u.round()), "uniform-in-alpha-bar"),
    "one-u-for-the-batch": (
        lambda alpha_bar, t, u: _levels()(alpha_bar, t, u[:1].expand(len(u))),
        "one-for-each-sample",
        "its own u; you took the first",
    ),
    "mean-u": (
        lambda alpha_bar, t, u: _levels()(alpha_bar, t, u.mean().expand(len(u))),
        "one-for-each-sample",
        "took their mean",
    ),
    "one-time-for-the-batch": (
        lambda alpha_bar, t, u: _levels()(alpha_bar, t if t.min() != 1 or len(t) < 4 else t[:1].expand(len(t)), u),
        "one-for-each-sample",
        "its own time",
    ),
    "wraps-around": (_wraps, "time-0-reaches-the-data", "index -1"),
    "stops-at-time-0": (_stops, "time-0-reaches-the-data", "has a cleaner neighbour"),
    "zero-before-time-0": (_levels(start=0.0), "time-0-reaches-the-data", "alpha-bar = 1, not 0"),
    "time-0-for-all": (_all_at_time_0, "time-0-reaches-the-data"),
    "cut-off": (lambda alpha_bar, t, u: _levels()(alpha_bar, t, u).clamp(min=0.01), "other-tables"),
}


def _sr3(
    levels, x=lambda a, own, x0, eps: a.sqrt() * x0 + (1 - a).sqrt() * eps, mean=lambda e: e.square().mean(), of=None
):
    """SR3's loss with levels as ``levels`` draws them, and with changes."""

    def sr3_loss(network, x0, y, alpha_bar, t, u, eps):
        level = torch.as_tensor(levels(alpha_bar, t, u))
        a, own = level.reshape(-1, 1, 1, 1).to(x0), alpha_bar[t].reshape(-1, 1, 1, 1).to(x0)
        return mean(network(x(a, own, x0, eps), y, level) - (x0 if of else eps))

    return sr3_loss


def _sr3_in_a_loop(network, x0, y, alpha_bar, t, u, eps):
    """In float32, by keywords, a picture at a time until the network is asked."""
    level = levels_in_a_loop(alpha_bar, t, u).float()
    rows = [a**0.5 * one.float() + (1 - a) ** 0.5 * e.float() for a, one, e in zip(level, x0, eps, strict=True)]
    error = network(x=torch.stack(rows), y=y.float(), alpha_bar=level) - eps
    return np.mean([e.square().mean().item() for e in error])


def _noise_beside(network, x0, y, alpha_bar, t, u, eps):
    a = _levels()(alpha_bar, t, u).reshape(-1, 1, 1, 1).to(x0)
    noised = lambda v: a.sqrt() * v + (1 - a).sqrt() * eps
    return (network(noised(x0), noised(y), a.flatten()) - eps).square().mean()


def _asked_twice(network, x0, y, alpha_bar, t, u, eps):
    return (
        _sr3(_levels())(network, x0, y, alpha_bar, t, u, eps) / 2
        + _sr3(_levels())(network, x0, y, alpha_bar, t, u, eps) / 2
    )


NOISED, SQUARES = "noised-to-that-level", "a-mean-of-squares"
SR3 = {name: (_sr3(answer), *rest) for name, (answer, *rest) in LEVELS.items()} | {
    "form-of-each": (_sr3(_levels(), mean=lambda e: e.square().flatten(1).mean(1)), "form"),
    "form-another-name": (lambda network, x0, y, table, t, u, eps: 0.0, "form"),
    "form-forgot-return": (lambda network, x0, y, alpha_bar, t, u, eps: None, "form"),
    "asked-twice": (_asked_twice, "from-one-level-to-the-next"),
    "of-the-table": (
        _sr3(_levels(), lambda a, own, x0, eps: own.sqrt() * x0 + (1 - own).sqrt() * eps),
        NOISED,
        "level of the table",
    ),
    "no-roots": (_sr3(_levels(), lambda a, own, x0, eps: a * x0 + (1 - a) * eps), NOISED, "alpha is the root"),
    "variance-for-sigma": (
        _sr3(_levels(), lambda a, own, x0, eps: a.sqrt() * x0 + (1 - a) * eps),
        NOISED,
        "sigma is the root",
    ),
    "swapped": (_sr3(_levels(), lambda a, own, x0, eps: (1 - a).sqrt() * x0 + a.sqrt() * eps), NOISED, "are swapped"),
    "bar-for-alpha": (
        _sr3(_levels(), lambda a, own, x0, eps: a * x0 + (1 - a**2).sqrt() * eps),
        NOISED,
        "alpha is the root",
    ),
    "noise-beside": (_noise_beside, NOISED),
    "sum": (_sr3(_levels(), mean=lambda e: e.square().sum()), SQUARES, "this is a sum"),
    "absolute": (_sr3(_levels(), mean=lambda e: e.abs().mean()), SQUARES, "p = 1"),
    "half": (_sr3(_levels(), mean=lambda e: e.square().mean() / 2), SQUARES, "half of it"),
    "of-the-picture": (_sr3(_levels(), of="x0"), SQUARES, "not the picture"),
    "root": (_sr3(_levels(), mean=lambda e: e.square().mean().sqrt()), SQUARES),
}

# -- ex-09-see --------------------------------------------------------------------------------------------------------


def see_by_angle(alpha):
    return 2000 * torch.arccos(alpha.clamp(0, 1)) / math.pi


def see_in_float32(alpha):
    return alpha.float() * 999 + 1


def see_one_by_one(alpha):
    return [1000 * (1 - a) for a in alpha.tolist()]


def see_in_numpy(alpha):
    return 500 + 700 * np.sinh(alpha.double().numpy())


SEE = {
    "form-one-number": (lambda alpha: 1000.0, "form"),
    "form-column": (lambda alpha: 1000 * alpha[:, None], "form"),
    "form-integers": (lambda alpha: (1000 * alpha).long(), "form"),
    "form-forgot-return": (lambda alpha: None, "form"),
    "log-snr": (lambda alpha: torch.log(alpha**2 / (1 - alpha**2)), "finite-at-both-ends", "infinite at the ends"),
    "noise-to-signal": (lambda alpha: (1 / alpha**2 - 1).sqrt(), "finite-at-both-ends"),
    "constant": (lambda alpha: 0 * alpha, "finite-at-both-ends"),
    "as-it-is": (lambda alpha: alpha, "neighbours-are-told-apart", "hardly move it"),
    "doubled": (lambda alpha: 2 * alpha, "neighbours-are-told-apart"),
    "alpha-bar": (lambda alpha: 1000 * alpha**2, "neighbours-are-told-apart"),
    "whole-turns": (lambda alpha: torch.round(alpha) * 1000, "neighbours-are-told-apart"),
    "clamped-log-snr": (
        lambda alpha: 50 * torch.log(alpha**2 / (1 - alpha**2)).clamp(-4, 4),
        "neighbours-are-told-apart",
    ),
    "turns-back": (lambda alpha: 1000 * (alpha - 0.4).abs(), "no-two-levels-alike"),
    "comes-again": (lambda alpha: (1000 * alpha) % 502.5, "no-two-levels-alike"),
    "rounded": (lambda alpha: (1000 * alpha).round(), "no-two-levels-alike"),
    "relative-to-the-largest": (lambda alpha: 1000 * alpha / alpha.max(), "each-by-itself"),
    "places": (lambda alpha: 1000 * alpha + alpha.argsort().argsort(), "each-by-itself"),
}

# -- ex-09-redraw -----------------------------------------------------------------------------------------------------


def _left(rho, of_shift=1, of_excess=2):
    def answer(variance, shift, excess, sigma):
        r = rho(variance, sigma)
        return shift * r**of_shift, excess * r**of_excess

    return answer


def _reliability(variance, sigma):
    alpha2 = 1 - sigma**2
    return alpha2 * variance / (alpha2 * variance + sigma**2)


def left_by_snr(variance, shift, excess, sigma):
    if sigma == 1:
        return 0.0, 0.0
    snr = (1 - sigma**2) / sigma**2 * variance if sigma else math.inf
    rho = 1.0 if snr == math.inf else snr / (1 + snr)
    return rho * shift, rho * rho * excess


def left_in_float32(variance, shift, excess, sigma):
    variance, shift, excess, sigma = (torch.tensor(v, dtype=torch.float32) for v in (variance, shift, excess, sigma))
    rho = _reliability(variance, sigma)
    return torch.stack([rho * shift, rho**2 * excess])


def left_by_two_gaussians(variance, shift, excess, sigma):
    """The law of z under the base, then the posterior of y given z as an affine map with noise."""
    alpha = math.sqrt((1 - sigma) * (1 + sigma))
    noisy = alpha**2 * variance + sigma**2
    slope = alpha * variance / noisy
    law = slope**2 * (alpha**2 * (variance + excess) + sigma**2) + variance * sigma**2 / noisy
    return slope * alpha * shift, law - variance


def left_in_numpy(variance, shift, excess, sigma):
    rho = 1 - np.float64(sigma) ** 2 / (sigma**2 + variance - sigma**2 * variance)
    return np.array([rho * shift, rho**2 * excess])


def _by_deviations(variance, shift, excess, sigma):
    """Right, but for a base with too little variance."""
    rho = _reliability(variance, sigma)
    return rho * shift, (rho * math.sqrt(max(excess, 0.0))) ** 2


def _whole_variance(variance, shift, excess, sigma):
    rho = _reliability(variance, sigma)
    return rho * shift, variance + rho**2 * excess


def _shrunk_variance(variance, shift, excess, sigma):
    rho = _reliability(variance, sigma)
    return rho * shift, rho**2 * (variance + excess) - variance


FOLLOWED = "followed-through-both-steps"
REDRAW = {
    "form-shift-alone": (lambda variance, shift, excess, sigma: shift, "form"),
    "form-three": (lambda variance, shift, excess, sigma: (shift, excess, sigma), "form"),
    "form-pairs": (lambda variance, shift, excess, sigma: (torch.zeros(2), torch.zeros(2)), "form"),
    "form-forgot-return": (lambda variance, shift, excess, sigma: None, "form"),
    "rho-for-both": (_left(_reliability, 1, 1), FOLLOWED, "shrinks by rho^2"),
    "rho-squared-for-both": (_left(_reliability, 2, 2), FOLLOWED, "not by its square"),
    "root-for-the-shift": (_left(_reliability, 0.5, 2), FOLLOWED, "not by its root"),
    "no-alpha": (_left(lambda v, s: v / (v + s**2)), FOLLOWED, "alpha is missing"),
    "alpha-once": (_left(lambda v, s: _reliability(v, s) / math.sqrt(1 - s**2 + 1e-30)), FOLLOWED, "alpha comes twice"),
    "sigma-not-squared": (_left(lambda v, s: (1 - s**2) * v / ((1 - s**2) * v + s)), FOLLOWED, "has its square"),
    "only-noised": (_left(lambda v, s: math.sqrt(1 - s**2)), FOLLOWED, "before anything is redrawn"),
    "what-is-lost": (_left(lambda v, s: 1 - _reliability(v, s)), FOLLOWED, "what is lost"),
    "same-everywhere": (_left(lambda v, s: 1 - s**2), FOLLOWED, "depends on the direction"),
    "whole-variance": (_whole_variance, FOLLOWED, "this is the whole variance"),
    "nothing-drawn": (_shrunk_variance, FOLLOWED, "has its variance, too"),
    "unchanged": (lambda variance, shift, excess, sigma: (shift, excess), FOLLOWED),
    "floor": (_left(lambda v, s: _reliability(max(v, 0.01), s)), "fine-and-coarse"),
    "ceiling": (_left(lambda v, s: _reliability(min(v, 4.0), s)), "fine-and-coarse"),
    "by-deviations": (_by_deviations, "too-little-variance"),
    "divides-by-sigma": (_left(lambda v, s: 1 / (1 + 1 / ((1 / s**2 - 1) * v))), "nothing-and-everything"),
    "never-all": (_left(lambda v, s: _reliability(v, min(s, 0.95))), "nothing-and-everything"),
}

# -- ex-09-augment ----------------------------------------------------------------------------------------------------


def augment_in_a_loop(pixels, sigma, eps):
    pairs = zip(pixels, sigma.tolist(), eps, strict=True)
    return torch.stack([math.sqrt(1 - s * s) * (p.float() * 2 / 255 - 1) + s * e for p, s, e in pairs])


def augment_in_float32(pixels, sigma, eps):
    y = pixels.float().div(255).mul(2).sub(1)
    return (
        torch.einsum("b,bchw->bchw", (1 - sigma.float() ** 2).sqrt(), y) + sigma.float().view(-1, 1, 1, 1) * eps.float()
    )


def augment_by_angle(pixels, sigma, eps):
    angle = torch.arcsin(sigma.double())[:, None, None, None]
    return angle.cos() * (pixels - 127.5) / 127.5 + angle.sin() * eps


def augment_in_numpy(pixels, sigma, eps):
    s = sigma.numpy()[:, None, None, None]
    return np.sqrt(1 - s * s) * (pixels.numpy() / 127.5 - 1) + s * eps.numpy()


def _of_each(values):
    return values.reshape(-1, 1, 1, 1)


def _augment(
    scale=lambda p: p.double() / 127.5 - 1,
    alpha=lambda s: (1 - s**2).sqrt(),
    level=lambda s: s,
    noise=lambda s: s,
    place=_of_each,
):
    def answer(pixels, sigma, eps):
        s = place(level(sigma))
        return alpha(s) * scale(pixels) + noise(s) * eps

    return answer


def _noise_first(pixels, sigma, eps):
    s = _of_each(sigma)
    return ((1 - s**2).sqrt() * pixels.float() + s * eps) / 127.5 - 1


def _noise_in_the_unit_interval(pixels, sigma, eps):
    s = _of_each(sigma)
    return ((1 - s**2).sqrt() * pixels / 255 + s * eps) * 2 - 1


def _along(view):
    """Levels along another axis, for pictures of as many channels, rows and columns as there are levels."""
    return lambda pixels, sigma, eps: _augment(place=view if len(set(pixels.shape)) == 1 else _of_each)(
        pixels, sigma, eps
    )


def _clipped(pixels, sigma, eps):
    """Right, but for a level of exactly 1."""
    return _augment(level=lambda s: s.clamp(max=0.99))(pixels, sigma, eps)


def _three_channels(pixels, sigma, eps):
    """Levels for three channels' pictures; grey ones share the largest."""
    return _augment(level=lambda s: s if pixels.shape[1] > 1 else s.max().expand_as(s))(pixels, sigma, eps)


TOLD = "noise-after-scaling"
AUGMENT = {
    "raw-pixels": (_augment(scale=lambda p: p.double()), "level-0-is-the-picture", "these are bytes"),
    "unit-interval": (_augment(scale=lambda p: p / 255), "level-0-is-the-picture", "these are in [0, 1]"),
    "half": (_augment(scale=lambda p: p / 255 - 0.5), "level-0-is-the-picture", "[-1/2, 1/2]"),
    "by-128": (_augment(scale=lambda p: p / 128 - 1), "level-0-is-the-picture", "not by 128"),
    "overflow": (_augment(scale=lambda p: p * 2 / 255 - 1), "level-0-is-the-picture", "bytes overflow"),
    "noise-before-scaling": (_noise_first, TOLD, "127.5 times too weak"),
    "noise-in-the-unit-interval": (_noise_in_the_unit_interval, TOLD, "twice as strong"),
    "sigma-as-variance": (_augment(noise=lambda s: s.sqrt()), TOLD, "you took its root"),
    "variance-for-sigma": (_augment(noise=lambda s: s**2), TOLD, "you took its square"),
    "swapped": (
        _augment(
            alpha=lambda s: torch.where(s > 0, s, 1.0), noise=lambda s: torch.where(s > 0, (1 - s**2).sqrt(), 0.0)
        ),
        TOLD,
        "are swapped",
    ),
    "no-noise": (_augment(noise=lambda s: 0 * s), TOLD, "no noise in it"),
    "noise-not-scaled": (_augment(noise=lambda s: (s > 0).double()), TOLD, "multiplied by sigma"),
    "own-noise": (lambda pixels, sigma, eps: _augment()(pixels, sigma, torch.randn_like(eps)), TOLD),
    "no-alpha": (_augment(alpha=lambda s: 1.0), "variance-preserving", "alpha = sqrt(1 - sigma^2) is missing"),
    "one-minus-sigma": (_augment(alpha=lambda s: 1 - s), "variance-preserving", "not 1 - sigma"),
    "alpha-squared": (_augment(alpha=lambda s: 1 - s**2), "variance-preserving", "the root of 1 - sigma^2"),
    "root-of-one-minus-sigma": (
        _augment(alpha=lambda s: (1 - s).sqrt()),
        "variance-preserving",
        "not sqrt(1 - sigma)",
    ),
    "clips-pixels": (
        lambda pixels, sigma, eps: _augment(scale=lambda p: (p / 127.5 - 1) * (1 - 0.1 * sigma.max()))(
            pixels, sigma, eps
        ),
        "variance-preserving",
    ),
    "first-level-for-all": (_augment(level=lambda s: s[:1].expand(len(s))), "a-level-for-each-sample", "first one's"),
    "last-level-for-all": (_augment(level=lambda s: s[-1:].expand(len(s))), "a-level-for-each-sample", "last one's"),
    "mean-level": (_augment(level=lambda s: s.mean().expand(len(s))), "a-level-for-each-sample", "their mean"),
    "largest-level": (_augment(level=lambda s: s.max().expand(len(s))), "a-level-for-each-sample", "the largest"),
    "along-the-last-axis": (_along(lambda s: s), "a-level-for-each-sample", "along the last"),
    "along-the-channels": (_along(lambda s: s[:, None, None]), "a-level-for-each-sample", "along the channels"),
    "grey-pictures": (_three_channels, "other-pictures"),
    "never-noise-alone": (_clipped, "other-pictures"),
}


def _augmented(
    augment=None,
    small=F.avg_pool2d,
    x=lambda x0, level, eps, sigma: diffuse(x0, level, eps),
    mean=lambda e: e.square().mean(),
    told=lambda level, sigma: (level, sigma),
):
    """The loss of an enlarger whose condition ``augment`` (pixels, sigma, eps) noises, with changes."""

    def augmented_loss(network, pixels, factor, sigma, noise, level, eps):
        z = (augment or _augment())(pixels if factor == 1 else small(pixels.double(), factor), sigma, noise)
        told_level, told_sigma = told(level, sigma)
        return mean(network(x(pixels / 127.5 - 1, level, eps, sigma), told_level, z, told_sigma) - eps)

    return augmented_loss


def _augmented_in_a_loop(network, pixels, factor, sigma, noise, level, eps):
    """In float32, by keywords; squares of pixels by reshaping."""
    x0 = pixels.float() / 255 * 2 - 1
    y = x0.unflatten(3, (-1, factor)).mean(4).unflatten(2, (-1, factor)).mean(3)
    z = torch.stack([(1 - s**2) ** 0.5 * a + s * n for s, a, n in zip(sigma.float(), y, noise.float(), strict=True)])
    alpha, dev = level.like(x0)
    error = network(x=alpha * x0 + dev * eps, level=level, z=z, sigma=sigma) - eps
    return float(np.mean([e.pow(2).mean().item() for e in error]))


def _interpolated(network, pixels, factor, sigma, noise, level, eps):
    """Averages by interpolation over areas."""
    x0 = pixels.double() / 127.5 - 1
    y = F.interpolate(x0, scale_factor=1 / factor, mode="area")
    s = sigma[:, None, None, None]
    z = (1 - s * s).sqrt() * y + s * noise
    return F.mse_loss(network(diffuse(x0, level, eps), level, z, sigma), eps)


def _of_the_picture(network, pixels, factor, sigma, noise, level, eps):
    x0 = pixels / 127.5 - 1
    z = _augment()(F.avg_pool2d(pixels.double(), factor), sigma, noise)
    return (network(diffuse(x0, level, eps), level, z, sigma) - x0).square().mean()


SMALL, TWO = "small-by-averages", "two-noises-two-levels"
AUGMENTED = {name: (_augmented(answer), *rest) for name, (answer, *rest) in AUGMENT.items()} | {
    "form-of-each": (_augmented(mean=lambda e: e.square().flatten(1).mean(1)), "form"),
    "form-another-name": (lambda network, pixels, scale, sigma, noise, level, eps: 0.0, "form"),
    "form-forgot-return": (lambda network, pixels, factor, sigma, noise, level, eps: None, "form"),
    "one-pixel": (_augmented(small=lambda p, factor: p[..., ::factor, ::factor]), SMALL, "one pixel of each square"),
    "largest": (_augmented(small=F.max_pool2d), SMALL, "the largest"),
    "last-pixel": (_augmented(small=lambda p, factor: p[..., factor - 1 :: factor, factor - 1 :: factor]), SMALL),
    "condition's-level": (
        _augmented(x=lambda x0, level, eps, s: (1 - _of_each(s) ** 2).sqrt() * x0 + _of_each(s) * eps),
        TWO,
        "a level of its own",
    ),
    "large-bytes": (
        _augmented(x=lambda x0, level, eps, s: diffuse((x0 + 1) * 127.5, level, eps)),
        TWO,
        "bytes as well",
    ),
    "clean": (_augmented(x=lambda x0, level, eps, s: x0), TWO, "is noised, too"),
    "own-noise": (_augmented(x=lambda x0, level, eps, s: diffuse(x0, level, eps.flip(0))), TWO),
    "told-another-sigma": (_augmented(told=lambda level, sigma: (level, sigma**2)), TWO),
    "sum": (_augmented(mean=lambda e: e.square().sum()), SQUARES, "this is a sum"),
    "half": (_augmented(mean=lambda e: e.square().mean() / 2), SQUARES, "half of it"),
    "of-the-picture": (_of_the_picture, SQUARES, "the noise of the large picture"),
    "absolute": (_augmented(mean=lambda e: e.abs().mean()), SQUARES),
}

# -- ex-09-plan -------------------------------------------------------------------------------------------------------

NEAR = "near-the-digits"
PLAN = {
    "form-two": ((4, 0.2), "form"),
    "form-half-steps": ((4.5, 0.2, 13), "form"),
    "too-dear": ((20, 0.2, 14), "within-the-budget"),
    "no-base": ((0, 0.2, 14), "within-the-budget"),
    "sigma-of-two": ((4, 2.0, 14), "within-the-budget"),
    "enlarger-alone": ((4, 0.7, 14), "the-base-has-a-say"),
    "a-little-too-much": ((4, 0.25, 14), "the-base-has-a-say"),
    "no-doubt": ((12, 0.0, 12), NEAR, "without noise"),
    "by-halves": ((30, 0.0, 7), NEAR, "without noise"),
    "little-doubt": ((8, 0.1, 13), NEAR),
    "a-careful-base": ((20, 0.2, 10), NEAR),
}

MUTANTS = {
    "ex-09-posterior": POSTERIOR,
    "ex-09-sr3": SR3,
    "ex-09-see": SEE,
    "ex-09-augment": AUGMENTED,
    "ex-09-redraw": REDRAW,
    "ex-09-plan": PLAN,
}

RIGHT = {
    "ex-09-posterior": {
        "gain": _posterior(),
        "numbers": posterior_by_numbers,
        "float32": posterior_in_float32,
        "numpy": posterior_in_numpy,
        "joint": posterior_of_pairs,
    },
    "ex-09-sr3": {
        "loop-float32": _sr3_in_a_loop,
        "where": _sr3(levels_by_where),
        "gather": _sr3(levels_in_float32),
        "numpy": _sr3(levels_in_numpy),
    },
    "ex-09-see": {
        "angle": see_by_angle,
        "float32": see_in_float32,
        "loop": see_one_by_one,
        "numpy": see_in_numpy,
    },
    "ex-09-augment": {
        "loop-float32": _augmented_in_a_loop,
        "interpolated": _interpolated,
        "angle": _augmented(augment_by_angle),
        "numpy": _augmented(augment_in_numpy),
    },
    "ex-09-redraw": {
        "snr": left_by_snr,
        "float32": left_in_float32,
        "two-gaussians": left_by_two_gaussians,
        "numpy": left_in_numpy,
    },
    "ex-09-plan": {
        "four-steps": (4, 0.2, 14),
        "eight-steps": [8, 0.2, 13],
        "tensor": torch.tensor([4.0, 0.205, 14.0]),
    },
}
