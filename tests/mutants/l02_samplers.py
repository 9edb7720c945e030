"""Planted wrong answers of lesson 02: name -> (answer, the case it must fail); and second correct answers."""

from __future__ import annotations

import math
from itertools import pairwise

import torch

from minidiff.process import beta, beta_tilde, posterior_mean, transition
from minidiff.schedule import cosine_schedule


def angle(level):
    return math.atan2(level.sigma, level.alpha)


# -- ex-02-reverse-variance


def rv_beta(t, s, spread):
    return beta(t, s) + (s.alpha * beta(t, s) / t.sigma**2) ** 2 * spread


def rv_unsquared(t, s, spread):
    return beta_tilde(t, s) + s.alpha * beta(t, s) / t.sigma**2 * spread


def rv_without_spread(t, s, spread):
    return beta_tilde(t, s)


def rv_deviation(t, s, spread):
    return (beta_tilde(t, s) + (s.alpha * beta(t, s) / t.sigma**2) ** 2 * spread) ** 0.5


def rv_preserving_only(t, s, spread):
    step = 1 - (t.alpha / s.alpha) ** 2
    low = step * (1 - s.alpha**2) / (1 - t.alpha**2 or 1.0)
    return low + (s.alpha * step / t.sigma**2) ** 2 * spread


def rv_alpha_of_t(t, s, spread):
    return beta_tilde(t, s) + (t.alpha * beta(t, s) / t.sigma**2) ** 2 * spread


def rv_second(t, s, spread):
    """From x_s = a x_t + b x_0 + noise, with b read off the posterior mean at x_t = 0, x_0 = 1."""
    b = posterior_mean(torch.zeros(1, 1), torch.ones(1, 1), t, s).double().item()
    scale, noise = transition(s, t)
    return 1 / (1 / s.sigma**2 + scale**2 / noise) + b * b * spread


# -- ex-02-learned-variance


def _low(t, s, floor):
    return math.log(beta_tilde(t, s) or floor)


def lv_arithmetic(output, t, s, floor):
    f = (output + 1) / 2
    return (f * beta(t, s) + (1 - f) * math.exp(_low(t, s, floor))).log()


def lv_swapped(output, t, s, floor):
    f = (output + 1) / 2
    return (1 - f) * math.log(beta(t, s)) + f * _low(t, s, floor)


def lv_not_rescaled(output, t, s, floor):
    return output * math.log(beta(t, s)) + (1 - output) * _low(t, s, floor)


def lv_tiny_clamp(output, t, s, floor):
    f = (output + 1) / 2
    return f * math.log(beta(t, s)) + (1 - f) * math.log(max(beta_tilde(t, s), 1e-20))


def lv_second(output, t, s, floor):
    low, high = torch.tensor(_low(t, s, floor)).double(), torch.tensor(beta(t, s)).double().log()
    return torch.lerp(low.expand_as(output), high.expand_as(output), (output.double() + 1) / 2)


# -- ex-02-ddim-step


def _step(x_t, x0, t, s, direction, noise):
    return s.alpha * x0 + direction * (x_t - t.alpha * x0) / t.sigma + noise


def dd_sigma_direction(x_t, x0, t, s, eta, z):
    return _step(x_t, x0, t, s, s.sigma, eta * beta_tilde(t, s) ** 0.5 * z)


def dd_variance_as_deviation(x_t, x0, t, s, eta, z):
    w = eta * beta_tilde(t, s)
    return _step(x_t, x0, t, s, (s.sigma**2 - w**2) ** 0.5, w * z)


def dd_eta_on_variance(x_t, x0, t, s, eta, z):
    variance = eta * beta_tilde(t, s)
    return _step(x_t, x0, t, s, (s.sigma**2 - variance) ** 0.5, variance**0.5 * z)


def dd_beta_noise(x_t, x0, t, s, eta, z):
    variance = eta**2 * min(beta(t, s), s.sigma**2)
    return _step(x_t, x0, t, s, (s.sigma**2 - variance) ** 0.5, variance**0.5 * z)


def dd_eps_not_divided(x_t, x0, t, s, eta, z):
    variance = eta**2 * beta_tilde(t, s)
    return s.alpha * x0 + (s.sigma**2 - variance) ** 0.5 * (x_t - t.alpha * x0) + variance**0.5 * z


def dd_last_level_keeps_noise(x_t, x0, t, s, eta, z):
    variance = eta**2 * beta_tilde(t, s)
    floor = 0.01
    return _step(x_t, x0, t, s, (max(s.sigma, floor) ** 2 - variance) ** 0.5, variance**0.5 * z)


def dd_preserving_only(x_t, x0, t, s, eta, z):
    variance = eta**2 * beta_tilde(t, s)
    return _step(x_t, x0, t, s, max(1 - s.alpha**2 - variance, 0.0) ** 0.5, variance**0.5 * z)


def dd_second(x_t, x0, t, s, eta, z):
    """As a linear map: the coefficient of x_t, then whatever x_0 needs so that the mean comes out right."""
    w = eta * beta_tilde(t, s) ** 0.5
    a = math.sqrt(max(s.sigma**2 - w**2, 0.0)) / t.sigma
    return a * x_t + (s.alpha - a * t.alpha) * x0 + w * z


# -- ex-02-rotation


def ro_backwards(x, v, d):
    return math.cos(d) * x + math.sin(d) * v, math.cos(d) * v - math.sin(d) * x


def ro_euler(x, v, d):
    return x - d * v, v + d * x


def ro_v_kept(x, v, d):
    return math.cos(d) * x - math.sin(d) * v, v


def ro_swapped(x, v, d):
    return math.sin(d) * x - math.cos(d) * v, math.sin(d) * v + math.cos(d) * x


def ro_second(x, v, d):
    turned = (x + 1j * v) * complex(math.cos(d), math.sin(d))
    return turned.real, turned.imag


# -- ex-02-heun


def _heun(denoiser, levels, x, second="new", half=0.5, last=True):
    for t, s in pairwise(levels):
        prediction = denoiser(x, t)
        if s.sigma == 0 and last:
            return prediction.x0
        step, r_t, r_s = angle(s) - angle(t), math.hypot(t.alpha, t.sigma), math.hypot(s.alpha, s.sigma)
        slope = prediction.v / r_t
        if second == "none":
            x = r_s * (x / r_t + step * slope)
            continue
        point = x / r_t if second == "old point" else x / r_t + step * slope
        ahead = denoiser(r_s * point, t if second == "old level" else s).v / r_s
        x = r_s * (x / r_t + step * half * (slope + ahead))
    return x


def he_euler(denoiser, levels, x):
    return _heun(denoiser, levels, x, second="none")


def he_old_level(denoiser, levels, x):
    return _heun(denoiser, levels, x, second="old level")


def he_old_point(denoiser, levels, x):
    return _heun(denoiser, levels, x, second="old point")


def he_no_half(denoiser, levels, x):
    return _heun(denoiser, levels, x, half=1.0)


def he_straight_to_the_end(denoiser, levels, x):
    return _heun(denoiser, levels, x, second="none" if len(levels) == 2 else "new", last=len(levels) > 2)


def he_ratio(denoiser, levels, x):
    for t, s in pairwise(levels):
        prediction = denoiser(x, t)
        if s.sigma == 0:
            return prediction.x0
        step, eps = s.sigma / s.alpha - t.sigma / t.alpha, prediction.eps
        ahead = denoiser(s.alpha * (x / t.alpha + step * eps), s).eps
        x = s.alpha * (x / t.alpha + step * (eps + ahead) / 2)
    return x


def he_second(denoiser, levels, x):
    """The textbook's k1 and k2 in y = x / r, the last step apart."""
    slope_at = lambda y, level: (
        denoiser(y * math.hypot(level.alpha, level.sigma), level).v / math.hypot(level.alpha, level.sigma)
    )
    y = x / math.hypot(levels[0].alpha, levels[0].sigma)
    for t, s in pairwise(levels[:-1]):
        h = angle(s) - angle(t)
        k1 = slope_at(y, t)
        y = y + h / 2 * (k1 + slope_at(y + h * k1, s))
    return denoiser(y * math.hypot(levels[-2].alpha, levels[-2].sigma), levels[-2]).x0


# -- ex-02-steps: closed forms for N(0, 1/4) data, no denoiser involved


def _ddim_error(n, power=1):
    levels = cosine_schedule(40).levels(n)
    turn = lambda level: math.atan2(level.sigma, level.alpha / 2)
    return 1 - math.prod(math.cos(turn(t) - turn(s)) for t, s in pairwise(levels)) ** power


def _heun_error(n):
    levels, x = cosine_schedule(40).levels(n), 1.0
    total = lambda level: level.alpha**2 / 4 + level.sigma**2
    slope = lambda level: level.alpha * level.sigma * 0.75 / total(level)  # v / x
    for t, s in pairwise(levels):
        h = angle(s) - angle(t)
        x *= t.alpha / 4 / total(t) if s.sigma == 0 else 1 + h / 2 * (slope(t) + slope(s) * (1 + h * slope(t)))
    return abs(x / math.sqrt(0.25 / total(levels[0])) - 1)


def _first(error):
    return next(n for n in range(1, 1000) if error(n) < 0.01)


RIGHT = (_first(_ddim_error), _first(_heun_error))

MUTANTS = {
    "ex-02-reverse-variance": {
        "beta-for-beta-tilde": (rv_beta, "point-mass"),
        "coefficient-not-squared": (rv_unsquared, "standard-normal"),
        "no-spread": (rv_without_spread, "joint-gaussian"),
        "standard-deviation": (rv_deviation, "standard-normal"),
        "preserving-only": (rv_preserving_only, "variance-exploding"),
        "alpha-of-t": (rv_alpha_of_t, "joint-gaussian"),
    },
    "ex-02-learned-variance": {
        "arithmetic-mean": (lv_arithmetic, "middle"),
        "ends-swapped": (lv_swapped, "ends"),
        "not-rescaled": (lv_not_rescaled, "ends"),
        "clamp-at-1e-20": (lv_tiny_clamp, "last-step"),
    },
    "ex-02-ddim-step": {
        "sigma-direction": (dd_sigma_direction, "keeps-the-marginal"),
        "variance-as-deviation": (dd_variance_as_deviation, "eta-one-is-ancestral"),
        "eta-on-the-variance": (dd_eta_on_variance, "eta-half"),
        "beta-for-beta-tilde": (dd_beta_noise, "eta-one-is-ancestral"),
        "eps-not-divided": (dd_eps_not_divided, "eta-zero"),
        "last-level-keeps-noise": (dd_last_level_keeps_noise, "last-step"),
        "preserving-only": (dd_preserving_only, "variance-exploding"),
    },
    "ex-02-rotation": {
        "towards-the-noise": (ro_backwards, "x-follows-ddim"),
        "straight-step": (ro_euler, "keeps-the-length"),
        "v-not-turned": (ro_v_kept, "v-follows"),
        "sine-and-cosine-swapped": (ro_swapped, "x-follows-ddim"),
    },
    "ex-02-heun": {
        "euler": (he_euler, "second-order"),
        "second-slope-at-old-level": (he_old_level, "agrees-with-minidiff"),
        "second-slope-at-old-point": (he_old_point, "second-order"),
        "slopes-added": (he_no_half, "agrees-with-minidiff"),
        "straight-to-the-end": (he_straight_to_the_end, "last-step"),
        "sigma-over-alpha": (he_ratio, "pure-noise"),
    },
    "ex-02-steps": {
        "one-too-few": ((RIGHT[0] - 1, RIGHT[1] - 1), "ddim"),
        "one-too-many": ((RIGHT[0] + 1, RIGHT[1] + 1), "heun"),
        "of-the-variance": ((_first(lambda n: _ddim_error(n, power=2)), RIGHT[1]), "ddim"),
        "swapped": (RIGHT[::-1], "heun"),
    },
}

SECOND = {
    "ex-02-reverse-variance": rv_second,
    "ex-02-learned-variance": lv_second,
    "ex-02-ddim-step": dd_second,
    "ex-02-rotation": ro_second,
    "ex-02-heun": he_second,
    "ex-02-steps": RIGHT,
}
