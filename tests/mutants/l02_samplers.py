"""Right answers in other styles, and planted wrong ones, for lesson 02."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch

from minidiff.prediction import Prediction
from minidiff.process import beta, beta_tilde, posterior_mean, reverse_log_variance, transition
from minidiff.sampler import ddim, heun, sample
from minidiff.schedule import DATA, NoiseLevel, cosine_schedule

# -- ex-02-reverse-variance -------------------------------------------------------------------------------------------


def variance_by_the_mean(t, s, x0_variance):
    """From x_s = a x_t + b x_0 + noise, with b read off the posterior mean at x_t = 0, x_0 = 1."""
    b = posterior_mean(torch.zeros(1, 1), torch.ones(1, 1), t, s).double().item()
    scale, noise = transition(s, t)
    return 1 / (1 / s.sigma**2 + scale**2 / noise) + b * b * x0_variance


def variance_in_float32(t, s, x0_variance):
    a_t, s_t, a_s, s_s = (torch.tensor(v, dtype=torch.float32) for v in (t.alpha, t.sigma, s.alpha, s.sigma))
    step = s_t**2 - (a_t / a_s * s_s) ** 2
    return step * s_s**2 / s_t**2 + (a_s * step / s_t**2) ** 2 * x0_variance


def variance_by_noise(t, s, x0_variance):
    """x_s = alpha_s x_0 + kept (x_t - alpha_t x_0) / sigma_t + fresh noise, where kept^2 + fresh^2 = sigma_s^2."""
    kept = t.alpha / s.alpha * s.sigma**2 / t.sigma
    return np.float64(s.sigma**2 - kept**2 + (s.alpha - kept * t.alpha / t.sigma) ** 2 * x0_variance)


def _variance(change):
    """A wrong answer: ``change`` of (t, s, beta-tilde, the coefficient of x_0, Var[x_0 | x_t])."""
    return lambda t, s, x0_variance: change(t, s, beta_tilde(t, s), s.alpha * beta(t, s) / t.sigma**2, x0_variance)


def variance_preserving_only(t, s, x0_variance):
    t, s = (NoiseLevel(v.alpha, math.sqrt(1 - v.alpha**2) or 1.0, v.time) for v in (t, s))
    return variance_by_the_mean(t, s, x0_variance)


def variance_with_step_of_alphas(t, s, x0_variance):
    step = 1 - (t.alpha / s.alpha) ** 2
    return step * s.sigma**2 / t.sigma**2 + (s.alpha * step / t.sigma**2) ** 2 * x0_variance


def variance_half_preserving(t, s, x0_variance):
    step = 1 - (t.alpha / s.alpha) ** 2
    return step * (1 - s.alpha**2) / (1 - t.alpha**2 or 1.0) + (s.alpha * step / t.sigma**2) ** 2 * x0_variance


REVERSE_VARIANCE = {
    "form-forgot-return": (lambda t, s, x0_variance: None, "form"),
    "form-vector": (lambda t, s, x0_variance: torch.ones(3), "form"),
    "form-another-name": (lambda t, s, spread: variance_by_noise(t, s, spread), "form"),
    "beta-for-beta-tilde": (
        _variance(lambda t, s, low, c, spread: beta(t, s) + c**2 * spread),
        "point-mass",
        "beta-tilde, not beta",
    ),
    "standard-deviation": (
        _variance(lambda t, s, low, c, spread: (low + c**2 * spread) ** 0.5),
        "point-mass",
        "standard deviation",
    ),
    "variance-at-s": (_variance(lambda t, s, low, c, spread: s.sigma**2 + c**2 * spread), "point-mass", "not seen x_t"),
    "ratio-of-deviations": (
        _variance(lambda t, s, low, c, spread: beta(t, s) * s.sigma / t.sigma + c**2 * spread),
        "point-mass",
        "ratio of variances",
    ),
    "multiplies-both": (
        _variance(lambda t, s, low, c, spread: (low + c**2) * spread),
        "point-mass",
        "second term alone",
    ),
    "second-term-alone": (_variance(lambda t, s, low, c, spread: c**2 * spread), "point-mass", "still has"),
    "twice": (_variance(lambda t, s, low, c, spread: 2 * (low + c**2 * spread)), "point-mass"),
    "coefficient-not-squared": (
        _variance(lambda t, s, low, c, spread: low + c * spread),
        "joint-gaussian",
        "has to be squared",
    ),
    "no-spread": (_variance(lambda t, s, low, c, spread: low), "joint-gaussian", "beta-tilde alone"),
    "always-beta": (
        _variance(lambda t, s, low, c, spread: beta(t, s) if spread else low),
        "joint-gaussian",
        "whatever the data",
    ),
    "alpha-missing": (
        _variance(lambda t, s, low, c, spread: low + (c / s.alpha) ** 2 * spread),
        "joint-gaussian",
        "alpha_s is missing",
    ),
    "alpha-of-t": (
        _variance(lambda t, s, low, c, spread: low + (c * t.alpha / s.alpha) ** 2 * spread),
        "joint-gaussian",
        "you took alpha_t",
    ),
    "divided-by-sigma": (
        _variance(lambda t, s, low, c, spread: low + (c * t.sigma) ** 2 * spread),
        "joint-gaussian",
        "divided by sigma_t",
    ),
    "beta-tilde-in-the-coefficient": (
        _variance(lambda t, s, low, c, spread: low + (s.alpha * low / t.sigma**2) ** 2 * spread),
        "joint-gaussian",
        "you took beta-tilde",
    ),
    "coefficient-of-x-t": (
        _variance(lambda t, s, low, c, spread: low + (t.alpha * s.sigma**2 / s.alpha / t.sigma**2) ** 2 * spread),
        "joint-gaussian",
        "coefficient of x_t",
    ),
    "not-carried": (_variance(lambda t, s, low, c, spread: low + spread), "joint-gaussian", "carried over"),
    "subtracted": (_variance(lambda t, s, low, c, spread: low - c**2 * spread), "joint-gaussian", "is added"),
    "spread-squared": (
        _variance(lambda t, s, low, c, spread: low + (c * spread) ** 2),
        "joint-gaussian",
        "you squared it",
    ),
    "spread-as-deviation": (
        _variance(lambda t, s, low, c, spread: low + c**2 * spread**0.5),
        "joint-gaussian",
        "you took its root",
    ),
    "half-the-spread": (_variance(lambda t, s, low, c, spread: low + c**2 * spread / 2), "joint-gaussian"),
    "preserving-only": (variance_preserving_only, "variance-exploding", "does not hold here"),
    "step-of-alphas": (variance_with_step_of_alphas, "variance-exploding", "1 - (alpha_t / alpha_s)^2 needs"),
    "half-preserving": (variance_half_preserving, "variance-exploding", "taken from the levels"),
    "sigma-at-most-one": (
        lambda t, s, x0_variance: variance_by_the_mean(NoiseLevel(t.alpha, min(t.sigma, 1.0), 0), s, x0_variance),
        "variance-exploding",
    ),
}

# -- ex-02-learned-variance -------------------------------------------------------------------------------------------


def log_variance_by_lerp(output, t, s, floor):
    low, high = torch.tensor(beta_tilde(t, s) or floor).double().log(), torch.tensor(beta(t, s)).double().log()
    return torch.lerp(low.expand_as(output), high.expand_as(output), (output.double() + 1) / 2)


def log_variance_in_minidiff(output, t, s, floor):
    belief = Prediction(output, t, output, "x0", fraction=output / 2 + 0.5)
    return reverse_log_variance(belief, t, s, "learned", floor)


def log_variance_by_powers(output, t, s, floor):
    """high^f low^(1 - f), in float32."""
    f = (output.float() + 1) / 2
    return torch.log(beta(t, s) ** f * (beta_tilde(t, s) if s.sigma > 0 else floor) ** (1 - f))


def log_variance_in_a_loop(output, t, s, floor):
    low, high = math.log(beta_tilde(t, s) or floor), math.log(beta(t, s))
    values = [(high + low) / 2 + o * (high - low) / 2 for o in output.flatten().tolist()]
    return torch.tensor(values, dtype=output.dtype).reshape(output.shape)


def _log_variance(fraction=lambda output: (output + 1) / 2, ends=None, after=lambda value: value):
    """A wrong answer: another fraction, other ends (low, high, floor), or a change of the result."""
    ends = ends or (lambda low, high, floor: (low or floor, high))

    def log_variance(output, t, s, floor):
        low, high = ends(beta_tilde(t, s), beta(t, s), floor)
        f = fraction(output)
        return after(f * math.log(high) + (1 - f) * math.log(low))

    return log_variance


def _one(pick):
    """The fraction of one number for all, but for outputs that lie at the ends."""
    return lambda output: ((output if output.abs().min() == 1 else pick(output).expand(output.shape)) + 1) / 2


def _interpolated(power):
    def log_variance(output, t, s, floor):
        f, low = (output + 1) / 2, beta_tilde(t, s) or floor
        return (f * beta(t, s) ** power + (1 - f) * low**power).log() / power

    return log_variance


def log_variance_preserving_only(output, t, s, floor):
    t, s = (NoiseLevel(v.alpha, math.sqrt(1 - v.alpha**2) or v.sigma, v.time) for v in (t, s))
    return log_variance_by_lerp(output, t, s, floor)


def log_variance_with_step_of_alphas(output, t, s, floor):
    step = 1 - (t.alpha / s.alpha) ** 2 or beta(t, s)
    f = (output + 1) / 2
    return f * math.log(step) + (1 - f) * math.log(step * s.sigma**2 / t.sigma**2 or floor)


def log_variance_floor_as_logarithm(output, t, s, floor):
    f, low = (output + 1) / 2, beta_tilde(t, s)
    return f * math.log(beta(t, s)) + (1 - f) * (math.log(low) if low else floor)


def log_variance_minus_infinity(output, t, s, floor):
    f = (output + 1) / 2
    return f * math.log(beta(t, s)) + (1 - f) * torch.tensor(beta_tilde(t, s), dtype=torch.float64).log()


LEARNED_VARIANCE = {
    "form-forgot-return": (lambda output, t, s, floor: None, "form"),
    "form-one-number": (lambda output, t, s, floor: math.log(beta(t, s)), "form"),
    "ends-swapped": (_log_variance(lambda o: (1 - o) / 2), "ends", "swapped"),
    "not-rescaled": (_log_variance(lambda o: o), "ends", "rescale it"),
    "not-halved": (_log_variance(lambda o: o + 1), "ends", "must still be halved"),
    "sigmoid": (_log_variance(lambda o: o.sigmoid()), "ends", "no sigmoid"),
    "variance": (_log_variance(after=torch.exp), "ends", "its logarithm"),
    "of-the-deviation": (_log_variance(after=lambda v: v / 2), "ends", "standard deviation"),
    "squared": (_log_variance(after=lambda v: 2 * v), "ends", "variances already"),
    "to-base-two": (_log_variance(after=lambda v: v / math.log(2)), "ends"),
    "arithmetic-mean": (_interpolated(1), "between", "interpolated the variances"),
    "of-deviations": (_interpolated(0.5), "between", "interpolated the standard deviations"),
    "cut-at-zero": (_log_variance(lambda o: o.clamp(0, 1)), "between", "cut the output off"),
    "rounded": (_log_variance(lambda o: ((o + 1) / 2).round()), "between", "you rounded"),
    "one-for-the-batch": (_log_variance(_one(torch.mean)), "between", "their mean"),
    "the-first-for-all": (_log_variance(_one(lambda o: o.flatten()[0])), "between", "the first for all"),
    "one-for-each-picture": (
        _log_variance(lambda o: (o.mean(tuple(range(1, o.ndim)), keepdim=True).expand(o.shape) + 1) / 2),
        "between",
        "one for each sample",
    ),
    "squared-fraction": (_log_variance(lambda o: ((o + 1) / 2) ** 2), "between"),
    "preserving-only": (log_variance_preserving_only, "variance-exploding", "does not hold here"),
    "step-of-alphas": (log_variance_with_step_of_alphas, "variance-exploding", "needs alpha^2 + sigma^2 = 1"),
    "cut-off-at-one": (_log_variance(after=lambda v: v.clamp(max=0)), "variance-exploding"),
    "floor-elsewhere": (
        _log_variance(ends=lambda low, high, floor: (max(low, floor), high)),
        "floor-is-for-zero",
        "only smaller",
    ),
    "floor-added": (
        _log_variance(ends=lambda low, high, floor: (low + floor, high)),
        "floor-is-for-zero",
        "not added",
    ),
    "floor-for-the-result": (
        lambda output, t, s, floor: log_variance_by_lerp(output, t, s, floor).clamp(min=math.log(floor)),
        "floor-is-for-zero",
    ),
    "clamp-at-1e-20": (
        _log_variance(ends=lambda low, high, floor: (max(low, 1e-20), high)),
        "last-step",
        "another small number",
    ),
    "minus-infinity": (log_variance_minus_infinity, "last-step", "its logarithm infinite"),
    "logarithm-of-zero": (_log_variance(ends=lambda low, high, floor: (low, high)), "last-step"),
    "floor-alone": (
        lambda output, t, s, floor: (
            log_variance_by_lerp(output, t, s, floor) if s.sigma else torch.full_like(output, math.log(floor))
        ),
        "last-step",
        "the output still counts",
    ),
    "floor-as-logarithm": (log_variance_floor_as_logarithm, "last-step", "took it for a logarithm"),
}

# -- ex-02-ddim --------------------------------------------------------------------------------------------------------


def step_as_a_linear_map(x_t, x0, t, s, eta, z):
    """The coefficient of x_t, then whatever x_0 needs so that the mean comes out right."""
    w = eta * beta_tilde(t, s) ** 0.5
    a = math.sqrt(max(s.sigma**2 - w**2, 0.0)) / t.sigma
    return a * x_t + (s.alpha - a * t.alpha) * x0 + w * z


def step_in_float32(x_t, x0, t, s, eta, z):
    w = eta * torch.tensor(beta_tilde(t, s), dtype=torch.float32).sqrt()
    eps = (x_t.float() - t.alpha * x0.float()) / t.sigma
    return s.alpha * x0.float() + (s.sigma**2 - w**2).clamp(min=0).sqrt() * eps + w * z.float()


def step_in_minidiff(x_t, x0, t, s, eta, z):
    """The sampler's own quiet step, and z."""
    belief = lambda x, level: Prediction(x, level, x0.to(x), "x0")
    quiet = sample(ddim(0.0), belief, [t, s], x_t)
    eps, w = (x_t - t.alpha * x0) / t.sigma, eta * beta_tilde(t, s) ** 0.5
    return quiet - (s.sigma - max(s.sigma**2 - w**2, 0.0) ** 0.5) * eps + w * z


def step_in_a_loop(x_t, x0, t, s, eta, z):
    args = (v.flatten().tolist() for v in (x_t, x0, z))
    out = [step_as_a_linear_map(a, b, t, s, eta, c) for a, b, c in zip(*args, strict=True)]
    return torch.tensor(out, dtype=x_t.dtype).reshape(x_t.shape)


def _step(direction=None, noise=None, eps=None, kept=None):
    """A wrong answer: parts of alpha_s x_0 + sqrt(sigma_s^2 - w^2) eps + w z replaced; low is beta-tilde."""
    direction = direction or (lambda t, s, eta, low: _root(s.sigma**2 - eta**2 * low))
    noise = noise or (lambda t, s, eta, low: eta * low**0.5)
    eps = eps or (lambda x_t, x0, t, s: (x_t - t.alpha * x0) / t.sigma)
    kept = kept or (lambda t, s: s.alpha)

    def step(x_t, x0, t, s, eta, z):
        low = beta_tilde(t, s)
        return kept(t, s) * x0 + direction(t, s, eta, low) * eps(x_t, x0, t, s) + noise(t, s, eta, low) * z

    return step


def _root(value):
    return torch.tensor(value, dtype=torch.float64).sqrt().item()  # nan, not an error, where it is negative


def step_z_for_eps(x_t, x0, t, s, eta, z):
    return s.alpha * x0 + s.sigma * z


def step_mixed(x_t, x0, t, s, eta, z):
    quiet, loud = (step_as_a_linear_map(x_t, x0, t, s, e, z) for e in (0.0, 1.0))
    return quiet + eta * (loud - quiet)


def step_preserving_only(x_t, x0, t, s, eta, z):
    t, s = (NoiseLevel(v.alpha, math.sqrt(1 - v.alpha**2) if 0 < v.alpha < 1 else v.sigma, v.time) for v in (t, s))
    return step_as_a_linear_map(x_t, x0, t, s, eta, z)


def step_of_alphas(x_t, x0, t, s, eta, z):
    low = (1 - (t.alpha / s.alpha) ** 2) * s.sigma**2 / t.sigma**2
    return _step(lambda t, s, eta, _: _root(s.sigma**2 - eta**2 * low), lambda *_: eta * low**0.5)(
        x_t, x0, t, s, eta, z
    )


def step_by_alpha(x_t, x0, t, s, eta, z):
    """Divides by alpha_t."""
    w = eta * beta_tilde(t, s) ** 0.5
    eps = (x_t / t.alpha - x0) * t.alpha / t.sigma
    return s.alpha * x0 + max(s.sigma**2 - w**2, 0.0) ** 0.5 * eps + w * z


def step_coarse(x_t, x0, t, s, eta, z):
    out = step_as_a_linear_map(x_t, x0, t, s, eta, z)
    return out if x_t.dtype == torch.float64 else out.round(decimals=2)


def _walk(step, seen=lambda i, n: i, held=False, move=True, at=lambda t, s: t):
    """A sampler by a rule for one step: ``seen``, the noise of step i; ``held``, the first belief for all; ``at``,
    where it asks."""

    def sampler(denoiser, levels, x_T, eta, noise):
        x, first, n = x_T, None, len(levels) - 1
        for i, (t, s) in enumerate(pairwise(levels)):
            x0 = denoiser(x, at(t, s)).x0
            first = x0 if first is None else first
            new = step(x, first if held else x0, t, s, eta, noise[seen(i, n)])
            x = new if move else x
        return new

    return sampler


def _asks_twice(denoiser, levels, x_T, eta, noise):
    """Right, but for a second look at the noise of each step."""
    twice = lambda x, level: (denoiser(x, level), denoiser(x, level))[0]
    return _walk(step_as_a_linear_map)(twice, levels, x_T, eta, noise)


def ddim_by_eps(*, denoiser, levels, x_T, eta, noise):
    """What the denoiser says of the noise, not of the picture."""
    x = x_T
    for z, t, s in zip(noise, levels[:-1], levels[1:], strict=True):
        said = denoiser(x=x, level=t)
        w = eta * beta_tilde(t, s) ** 0.5
        x = s.alpha * said.x0 + max(s.sigma**2 - w**2, 0.0) ** 0.5 * said.eps + w * z
    return x


RIGHT_STEP = _walk(step_as_a_linear_map)
DDIM = {
    "form-forgot-return": (lambda denoiser, levels, x_T, eta, noise: None, "form"),
    "form-flat": (lambda denoiser, levels, x_T, eta, noise: x_T.flatten(1), "form"),
    "form-all-steps": (lambda denoiser, levels, x_T, eta, noise: [x_T for _ in levels], "form"),
    "form-order": (lambda denoiser, levels, x_T, noise: x_T, "form"),
    "eps-not-divided": (_walk(_step(eps=lambda x_t, x0, t, s: x_t - t.alpha * x0)), "eta-zero", "did not divide"),
    "eps-by-variance": (
        _walk(_step(eps=lambda x_t, x0, t, s: (x_t - t.alpha * x0) / t.sigma**2)),
        "eta-zero",
        "variance",
    ),
    "eps-without-alpha": (
        _walk(_step(eps=lambda x_t, x0, t, s: (x_t - x0) / t.sigma)),
        "eta-zero",
        "alpha_t is missing",
    ),
    "eps-with-alpha-s": (
        _walk(_step(eps=lambda x_t, x0, t, s: (x_t - s.alpha * x0) / t.sigma)),
        "eta-zero",
        "took alpha_s",
    ),
    "eps-sign": (_walk(_step(eps=lambda x_t, x0, t, s: (t.alpha * x0 - x_t) / t.sigma)), "eta-zero", "sign of eps"),
    "x0-not-scaled": (_walk(_step(kept=lambda t, s: 1.0)), "eta-zero", "alpha_s is missing"),
    "x0-by-alpha-t": (_walk(_step(kept=lambda t, s: t.alpha)), "eta-zero", "you took alpha_t"),
    "sigma-t": (_walk(_step(lambda t, s, eta, low: _root(t.sigma**2 - eta**2 * low))), "eta-zero", "you took sigma_t"),
    "variance-for-sigma": (
        _walk(_step(lambda t, s, eta, low: s.sigma**2 - eta**2 * low)),
        "eta-zero",
        "used the variance",
    ),
    "as-it-came": (_walk(lambda x_t, x0, t, s, eta, z: x_t), "eta-zero", "as it came"),
    "new-noise": (_walk(step_z_for_eps), "eta-zero", "in place of the old"),
    "always-ancestral": (
        _walk(lambda x_t, x0, t, s, eta, z: step_as_a_linear_map(x_t, x0, t, s, 1.0, z)),
        "eta-zero",
        "the step of eta = 1",
    ),
    "z-without-eta": (_walk(_step(noise=lambda t, s, eta, low: low**0.5)), "eta-zero", "missing in front of z"),
    "half-the-noise": (_walk(_step(lambda t, s, eta, low: s.sigma / 2)), "eta-zero"),
    "sigma-direction": (_walk(_step(lambda t, s, eta, low: s.sigma)), "eta-one-is-ancestral", "not by sigma_s"),
    "sigma-direction-and-variance": (
        _walk(_step(lambda t, s, eta, low: s.sigma, lambda t, s, eta, low: eta * low)),
        "eta-one-is-ancestral",
        "both",
    ),
    "variance-as-deviation": (
        _walk(_step(lambda t, s, eta, low: _root(s.sigma**2 - (eta * low) ** 2), lambda t, s, eta, low: eta * low)),
        "eta-one-is-ancestral",
        "squared it again",
    ),
    "variance-before-z": (
        _walk(_step(noise=lambda t, s, eta, low: eta * low)),
        "eta-one-is-ancestral",
        "used the variance",
    ),
    "beta-for-beta-tilde": (
        _walk(
            _step(
                lambda t, s, eta, _: _root(s.sigma**2 - eta**2 * beta(t, s)),
                lambda t, s, eta, _: eta * beta(t, s) ** 0.5,
            )
        ),
        "eta-one-is-ancestral",
        "not beta",
    ),
    "beta-cut-off": (
        _walk(
            _step(
                lambda t, s, eta, _: _root(s.sigma**2 - eta**2 * min(beta(t, s), s.sigma**2)),
                lambda t, s, eta, _: eta * min(beta(t, s), s.sigma**2) ** 0.5,
            )
        ),
        "eta-one-is-ancestral",
        "not beta (and",
    ),
    "root-cut-off": (
        _walk(
            _step(
                lambda t, s, eta, _: _root(max(s.sigma**2 - eta**2 * beta(t, s), 0.0)),
                lambda t, s, eta, _: eta * beta(t, s) ** 0.5,
            )
        ),
        "eta-one-is-ancestral",
        "cutting the root off",
    ),
    "deviations-subtracted": (
        _walk(_step(lambda t, s, eta, low: s.sigma - eta * low**0.5)),
        "eta-one-is-ancestral",
        "not sigma_s - w",
    ),
    "variances-added": (
        _walk(_step(lambda t, s, eta, low: _root(s.sigma**2 + eta**2 * low))),
        "eta-one-is-ancestral",
        "has a minus",
    ),
    "root-forgotten": (
        _walk(_step(lambda t, s, eta, low: s.sigma**2 - eta**2 * low if eta else s.sigma)),
        "eta-one-is-ancestral",
        "root is missing",
    ),
    "z-forgotten": (_walk(_step(noise=lambda t, s, eta, low: 0.0)), "eta-one-is-ancestral", "z is missing"),
    "eta-ignored": (
        _walk(lambda x_t, x0, t, s, eta, z: step_as_a_linear_map(x_t, x0, t, s, 0.0, z)),
        "eta-one-is-ancestral",
        "has no effect",
    ),
    "z-subtracted": (_walk(_step(noise=lambda t, s, eta, low: -eta * low**0.5)), "eta-one-is-ancestral"),
    "eta-on-the-variance": (
        _walk(_step(lambda t, s, eta, low: _root(s.sigma**2 - eta * low), lambda t, s, eta, low: (eta * low) ** 0.5)),
        "eta-between",
        "scales the standard deviation",
    ),
    "eta-missing-in-the-root": (
        _walk(_step(lambda t, s, eta, low: _root(s.sigma**2 - low) if eta else s.sigma)),
        "eta-between",
        "eta is missing in the root",
    ),
    "eta-not-squared-in-the-root": (
        _walk(_step(lambda t, s, eta, low: _root(s.sigma**2 - eta * low))),
        "eta-between",
        "must be squared in the root",
    ),
    "any-eta-is-one": (
        _walk(lambda x_t, x0, t, s, eta, z: step_as_a_linear_map(x_t, x0, t, s, math.ceil(eta), z)),
        "eta-between",
        "the step of eta = 1",
    ),
    "eta-one-alone": (
        _walk(lambda x_t, x0, t, s, eta, z: step_as_a_linear_map(x_t, x0, t, s, math.floor(eta), z)),
        "eta-between",
        "the step of eta = 0",
    ),
    "steps-mixed": (_walk(step_mixed), "eta-between", "you mixed the steps"),
    "eta-squared": (_walk(lambda x_t, x0, t, s, eta, z: step_as_a_linear_map(x_t, x0, t, s, eta**2, z)), "eta-between"),
    "last-level-keeps-noise": (
        _walk(_step(lambda t, s, eta, low: _root(max(s.sigma, 0.01) ** 2 - eta**2 * low))),
        "last-step",
    ),
    "preserving-root": (
        _walk(_step(lambda t, s, eta, low: _root(max(1 - s.alpha**2 - eta**2 * low, 0.0)))),
        "any-levels",
        "does not hold here",
    ),
    "preserving-only": (_walk(step_preserving_only), "any-levels", "wherever it stands"),
    "step-of-alphas": (_walk(step_of_alphas), "any-levels", "needs alpha^2 + sigma^2 = 1"),
    "divides-by-alpha": (_walk(step_by_alpha), "any-levels"),
    "coarse-in-float32": (_walk(step_coarse), "in-float32"),
    "noise-from-the-end": (_walk(step_as_a_linear_map, lambda i, n: n - 1 - i), "whole-chain", "from the end"),
    "one-noise": (_walk(step_as_a_linear_map, lambda i, n: 0), "whole-chain", "the first for all"),
    "belief-held": (_walk(step_as_a_linear_map, held=True), "whole-chain", "ask the denoiser again"),
    "never-moves": (_walk(step_as_a_linear_map, move=False), "whole-chain"),
    "asks-twice": (_asks_twice, "asks-once-a-step"),
}

# -- ex-02-rotation ---------------------------------------------------------------------------------------------------


def rotation_of_complex_numbers(x_t, v, angle):
    turned = (x_t + 1j * v) * complex(math.cos(angle), math.sin(angle))
    return turned.real, turned.imag


def rotation_by_a_matrix(x_t, v, angle):
    c, s = np.cos(angle), np.sin(angle)
    out = np.einsum("ij,j...->i...", np.array([[c, -s], [s, c]]), np.stack([x_t.numpy(), v.numpy()]))
    return out[0], out[1]


def rotation_in_float32(x_t, v, angle):
    turn = torch.tensor(angle, dtype=torch.float32)
    x_t, v = x_t.float(), v.float()
    return [turn.cos() * x_t - turn.sin() * v, turn.sin() * x_t + turn.cos() * v]


def rotation_through_x0(x_t, v, angle, start=1.0):
    """Any starting angle will do."""
    x0, eps = math.cos(start) * x_t - math.sin(start) * v, math.sin(start) * x_t + math.cos(start) * v
    c, s = math.cos(start - angle), math.sin(start - angle)
    return c * x0 + s * eps, c * eps - s * x0


def _turn(x=None, v=None):
    """A wrong answer: one of the two, a function of (x_t, v, cos, sin, angle), replaced."""
    x = x or (lambda x, v, c, s, d: c * x - s * v)
    v_ = v or (lambda x, v, c, s, d: s * x + c * v)

    def rotation(x_t, v, angle):
        given = x_t, v, math.cos(angle), math.sin(angle), angle
        return x(*given), v_(*given)

    return rotation


ROTATION = {
    "form-x-alone": (lambda x_t, v, angle: math.cos(angle) * x_t - math.sin(angle) * v, "form"),
    "form-forgot-return": (lambda x_t, v, angle: None, "form"),
    "form-three": (lambda x_t, v, angle: (x_t, v, angle), "form"),
    "form-flat": (lambda x_t, v, angle: (x_t.flatten(), v.flatten()), "form"),
    "towards-the-noise": (
        _turn(lambda x, v, c, s, d: c * x + s * v, lambda x, v, c, s, d: c * v - s * x),
        "x-follows-ddim",
        "towards the noise",
    ),
    "straight-step": (
        _turn(lambda x, v, c, s, d: x - d * v, lambda x, v, c, s, d: v + d * x),
        "x-follows-ddim",
        "straight step",
    ),
    "sine-and-cosine-swapped": (
        _turn(lambda x, v, c, s, d: s * x - c * v, lambda x, v, c, s, d: s * v + c * x),
        "x-follows-ddim",
        "are swapped",
    ),
    "sign": (_turn(lambda x, v, c, s, d: s * v - c * x), "x-follows-ddim", "sign is wrong"),
    "pair-in-the-other-order": (
        lambda x_t, v, angle: rotation_through_x0(x_t, v, angle)[::-1],
        "x-follows-ddim",
        "x_s comes first",
    ),
    "no-cosine": (_turn(lambda x, v, c, s, d: x - s * v), "x-follows-ddim", "multiplied by the cosine"),
    "angle-for-sine": (_turn(lambda x, v, c, s, d: c * x - d * v), "x-follows-ddim", "not by the angle"),
    "degrees": (
        lambda x_t, v, angle: rotation_through_x0(x_t, v, math.radians(angle)),
        "x-follows-ddim",
        "in radians",
    ),
    "second-order": (_turn(lambda x, v, c, s, d: (1 - d * d / 2) * x - d * v), "x-follows-ddim"),
    "v-not-turned": (_turn(v=lambda x, v, c, s, d: v), "v-follows", "the v of x_t"),
    "v-towards-the-noise": (_turn(v=lambda x, v, c, s, d: c * v - s * x), "v-follows", "towards the noise"),
    "v-sign": (_turn(v=lambda x, v, c, s, d: -s * x - c * v), "v-follows", "sign is wrong"),
    "v-swapped": (_turn(v=lambda x, v, c, s, d: c * x + s * v), "v-follows", "are swapped"),
    "v-with-the-new-x": (
        _turn(v=lambda x, v, c, s, d: s * (c * x - s * v) + c * v),
        "v-follows",
        "with the new x_s",
    ),
    "v-straight": (_turn(v=lambda x, v, c, s, d: v + d * x), "v-follows", "straight step"),
    "v-without-cosine": (_turn(v=lambda x, v, c, s, d: v + s * x), "v-follows", "by the cosine"),
    "x-twice": (_turn(v=lambda x, v, c, s, d: c * x - s * v), "v-follows", "once more"),
    "v-renormalised": (
        _turn(v=lambda x, v, c, s, d: (s * x + c * v) * v.norm() / (s * x + c * v).norm()),
        "v-follows",
    ),
    "coarse-in-float32": (
        lambda x_t, v, angle: [
            p if x_t.dtype == torch.float64 else p.round(decimals=2) for p in rotation_through_x0(x_t, v, angle)
        ],
        "in-float32",
    ),
}

# -- ex-02-heun -------------------------------------------------------------------------------------------------------


def angle(level):
    return math.atan2(level.sigma, level.alpha)


def radius(level):
    return math.hypot(level.alpha, level.sigma)


def _heun(second="new", weights=(0.5, 0.5), last=True, sign=1, kind="v", arc=angle, r=radius, of_slope=None):
    """Heun's method, or a wrong answer: another second slope, other weights, no last step of its own, ..."""
    of_slope = of_slope or r

    def run(denoiser, levels, x_T):
        x = x_T
        for t, s in pairwise(levels):
            prediction = denoiser(x, t)
            if s.sigma == 0 and last:
                return prediction.x0
            step = sign * (arc(s) - arc(t))
            slope = getattr(prediction, kind) / of_slope(t)
            if not weights[1]:
                x = r(s) * (x / r(t) + step * slope)
                continue
            point = x / r(t) if second == "old point" else x / r(t) + step * slope
            ahead = getattr(denoiser(r(s) * point, t if second == "old level" else s), kind) / of_slope(s)
            x = r(s) * (x / r(t) + step * (weights[0] * slope + weights[1] * ahead))
        return x

    return run


def heun_k1_k2(denoiser, levels, x_T):
    """The textbook's k1 and k2 in y = x / r, the last step apart; the denoiser called by keywords."""
    slope_at = lambda y, level: denoiser(x=y * radius(level), level=level).v / radius(level)
    y = x_T / radius(levels[0])
    for t, s in pairwise(levels[:-1]):
        h = angle(s) - angle(t)
        k1 = slope_at(y, t)
        y = y + h / 2 * (k1 + slope_at(y + h * k1, s))
    return denoiser(x=y * radius(levels[-2]), level=levels[-2]).x0


def heun_in_float32(denoiser, levels, x_T):
    return _heun()(denoiser, levels, x_T.float())


def heun_one_by_one(denoiser, levels, x_T):
    return torch.cat([sample(heun(), denoiser, levels, one[None]) for one in x_T])


def heun_by_hand(denoiser, levels, x_T):
    """v from x_0 alone, where sigma is not zero; the trial point first, then a correction by half the difference."""

    def slope(x, level):
        x0 = denoiser(x, level).x0
        return (level.alpha * (x - level.alpha * x0) / level.sigma - level.sigma * x0) / radius(level)

    x = x_T
    for t, s in pairwise(levels[:-1]):
        turn, first = angle(t) - angle(s), slope(x, t)
        trial = radius(s) * (x / radius(t) - turn * first)
        x = trial - radius(s) * turn * (slope(trial, s) - first) / 2
    return denoiser(x, levels[-2]).x0


def heun_in_the_ratio(denoiser, levels, x_T):
    x = x_T
    for t, s in pairwise(levels):
        prediction = denoiser(x, t)
        if s.sigma == 0:
            return prediction.x0
        step, eps = s.sigma / s.alpha - t.sigma / t.alpha, prediction.eps
        ahead = denoiser(s.alpha * (x / t.alpha + step * eps), s).eps
        x = s.alpha * (x / t.alpha + step * (eps + ahead) / 2)
    return x


def heun_straight_to_the_end(denoiser, levels, x_T):
    """Euler in the last step."""
    x = _heun()(denoiser, [*levels[:-2], NoiseLevel(1.0, 0.0, 0)], x_T) if len(levels) > 3 else x_T
    return _heun(weights=(1, 0), last=False)(denoiser, levels[-2:], x)


def heun_returns_early(denoiser, levels, x_T):
    t, s = levels[:2]
    if len(levels) == 2:
        return denoiser(x_T, t).x0
    slope = denoiser(x_T, t).v
    trial = x_T + (angle(s) - angle(t)) * slope
    return x_T + (angle(s) - angle(t)) / 2 * (slope + denoiser(trial, s).v)


def heun_first_step_alone(denoiser, levels, x_T):
    return _heun()(denoiser, [*levels[:2], DATA] if len(levels) > 2 else levels, x_T)


def heun_from_x_T(denoiser, levels, x_T):
    """Nothing is carried from step to step, from the third on."""
    if len(levels) <= 3:
        return _heun()(denoiser, levels, x_T)
    return denoiser(x_T, levels[-2]).x0


def heun_then_euler(denoiser, levels, x_T):
    """Two slopes in the first step alone."""
    x = x_T
    for i, (t, s) in enumerate(pairwise(levels[:-1])):
        x = _heun(weights=(1, 0) if i else (0.5, 0.5), last=False)(denoiser, [t, s], x)
    return denoiser(x, levels[-2]).x0


by_one, by_acos = (lambda level: 1.0), (lambda level: math.acos(min(level.alpha, 1.0)))
by_ratio = lambda level: math.atan(level.sigma / level.alpha)
HEUN = {
    "form-forgot-return": (lambda denoiser, levels, x_T: None, "form"),
    "form-prediction": (lambda denoiser, levels, x_T: denoiser(x_T, levels[0]), "form"),
    "form-all-states": (lambda denoiser, levels, x_T: [x_T for _ in levels], "form"),
    "form-another-name": (lambda denoiser, levels, x: _heun()(denoiser, levels, x), "form"),
    "as-it-came": (lambda denoiser, levels, x_T: x_T, "last-step", "as it came"),
    "straight-to-the-end": (heun_straight_to_the_end, "last-step", "along the slope"),
    "second-slope-at-clean-data": (_heun(last=False), "last-step", "no second slope"),
    "zero": (lambda denoiser, levels, x_T: 0 * x_T, "last-step"),
    "euler": (_heun(weights=(1, 0)), "first-step", "Euler's method"),
    "ddim": (lambda denoiser, levels, x_T: sample(ddim(), denoiser, levels, x_T), "first-step", "DDIM step"),
    "second-slope-at-old-level": (_heun(second="old level"), "first-step", "you asked at t"),
    "second-slope-at-old-point": (_heun(second="old point"), "first-step", "at the old one"),
    "slopes-added": (_heun(weights=(1, 1)), "first-step", "you added them"),
    "second-slope-alone": (_heun(weights=(0, 1)), "first-step", "second alone"),
    "on-from-the-trial-point": (_heun(weights=(1.5, 0.5)), "first-step", "went on from the trial point"),
    "half-a-step-on": (_heun(weights=(1, 0.5)), "first-step", "half the second"),
    "towards-the-noise": (_heun(sign=-1), "first-step", "back towards the noise"),
    "slope-eps": (_heun(kind="eps"), "first-step", "you took eps"),
    "sigma-over-alpha": (heun_in_the_ratio, "first-step", "in sigma / alpha"),
    "returns-early": (heun_returns_early, "first-step", "after the first step"),
    "x0-of-x-T": (lambda denoiser, levels, x_T: denoiser(x_T, levels[0]).x0, "first-step", "steps in between"),
    "two-thirds": (_heun(weights=(1 / 3, 2 / 3)), "first-step"),
    "first-step-alone": (heun_first_step_alone, "whole-chain", "the first and the last step alone"),
    "from-x-T": (heun_from_x_T, "whole-chain", "yours begin at x_T"),
    "then-euler": (heun_then_euler, "whole-chain"),
    "r-left-out": (_heun(r=by_one), "variance-exploding", "you left it out"),
    "slope-not-divided": (_heun(of_slope=by_one), "variance-exploding", "did not divide v"),
    "x-not-divided": (_heun(r=by_one, of_slope=radius), "variance-exploding", "x is divided by r"),
    "arc-cosine": (_heun(arc=by_acos), "variance-exploding", "acos(alpha) needs"),
    "arc-cosine-without-r": (_heun(arc=by_acos, r=by_one), "variance-exploding", "and so does r = 1"),
    "arc-sine": (_heun(arc=lambda level: math.asin(min(level.sigma, 1.0))), "variance-exploding"),
    "angle-of-the-ratio": (_heun(arc=by_ratio), "pure-noise", "divided by alpha"),
    "small-number-for-alpha": (
        _heun(arc=lambda level: math.atan(level.sigma / max(level.alpha, 0.01))),
        "pure-noise",
    ),
}

# -- ex-02-steps: closed forms for N(0, 1/4) data, no denoiser involved -----------------------------------------------


def _ddim_error(n, power=1):
    levels = cosine_schedule(40).levels(n)
    turn = lambda level: math.atan2(level.sigma, level.alpha / 2)
    return 1 - math.prod(math.cos(turn(t) - turn(s)) for t, s in pairwise(levels)) ** power


def _heun_error(n, power=1):
    levels, x = cosine_schedule(40).levels(n), 1.0
    total = lambda level: level.alpha**2 / 4 + level.sigma**2
    slope = lambda level: level.alpha * level.sigma * 0.75 / total(level)  # v / x
    for t, s in pairwise(levels):
        h = angle(s) - angle(t)
        x *= t.alpha / 4 / total(t) if s.sigma == 0 else 1 + h / 2 * (slope(t) + slope(s) * (1 + h * slope(t)))
    return abs((x / math.sqrt(0.25 / total(levels[0]))) ** power - 1)


def _first(error, limit=0.01, power=1):
    return next(n for n in range(2, 1000) if error(n, power) < limit)


N_DDIM, N_HEUN = _first(_ddim_error), _first(_heun_error)
STEPS = {
    "form-one-number": (N_DDIM, "form"),
    "form-three": ((N_DDIM, N_HEUN, 0), "form"),
    "form-fractions": ((N_DDIM + 0.5, N_HEUN + 0.5), "form"),
    "form-errors": ((0.0099, 0.0095), "form"),
    "one-too-few": ((N_DDIM - 1, N_HEUN - 1), "ddim"),
    "one-too-few-of-heun": ((N_DDIM, N_HEUN - 1), "heun"),
    "counts-levels": ((N_DDIM + 1, N_HEUN + 1), "ddim", "counted the levels"),
    "counts-levels-of-heun": ((N_DDIM, N_HEUN + 1), "heun", "counted the levels"),
    "of-the-variance": ((_first(_ddim_error, power=2), N_HEUN), "ddim", "for the variance"),
    "of-the-variance-of-heun": ((N_DDIM, _first(_heun_error, power=2)), "heun", "for the variance"),
    "swapped": ((N_HEUN, N_DDIM), "ddim", "the order is"),
    "swapped-too": ((N_HEUN, N_DDIM), "heun", "the order is"),
    "ten-per-cent": ((_first(_ddim_error, 0.1), N_HEUN), "ddim", "below 10%"),
    "calls": ((N_DDIM, 2 * N_HEUN - 1), "heun", "counted calls"),
    "many": ((500, N_HEUN), "ddim"),
    "none": ((0, N_HEUN), "ddim"),
}

# -- ex-02-third ------------------------------------------------------------------------------------------------------


def _runge_kutta(stages, weights, places, sign=1):
    """An explicit method by its table, in the angle."""

    def solve(denoiser, levels, x_T):
        x = x_T
        for t, s in pairwise(levels):
            start = math.atan2(t.sigma, t.alpha)
            step, slopes = sign * (math.atan2(s.sigma, s.alpha) - start), []
            for row, place in zip(stages, places, strict=True):
                angle = start + place * step
                point = x + step * sum(a * k for a, k in zip(row, slopes, strict=True))
                slopes.append(denoiser(point, NoiseLevel(math.cos(angle), math.sin(angle), 0)).v)
            x = x + step * sum(b * k for b, k in zip(weights, slopes, strict=True))
        return x

    return solve


heun_of_two = _runge_kutta([[], [1]], [1 / 2, 1 / 2], [0, 1])
strongly_stable = _runge_kutta([[], [1], [1 / 4, 1 / 4]], [1 / 6, 1 / 6, 2 / 3], [0, 1, 1 / 2])
of_fourth_order = _runge_kutta([[], [1 / 2], [0, 1 / 2], [0, 0, 1]], [1 / 6, 1 / 3, 1 / 3, 1 / 6], [0, 1 / 2, 1 / 2, 1])


def third_by_memory(denoiser, levels, x_T):
    """Adams and Bashforth's method of equal steps, after two of fourth order."""
    x, slopes = x_T, []
    for t, s in pairwise(levels):
        slopes.append(denoiser(x, t).v)
        step = math.atan2(s.sigma, s.alpha) - math.atan2(t.sigma, t.alpha)
        if len(slopes) < 3:
            x = of_fourth_order(denoiser, [t, s], x)
        else:
            x = x + step / 12 * (23 * slopes[-1] - 16 * slopes[-2] + 5 * slopes[-3])
    return x


def third_in_numpy_angles(denoiser, levels, x_T):
    """Ralston's method, its angles in numpy."""
    angles = np.arctan2([level.sigma for level in levels], [level.alpha for level in levels])
    chain = [NoiseLevel(float(np.cos(a)), float(np.sin(a)), 0) for a in angles]
    table = [[], [1 / 2], [0, 3 / 4]], [2 / 9, 1 / 3, 4 / 9], [0, 1 / 2, 3 / 4]
    return _runge_kutta(*table)(denoiser=denoiser, levels=chain, x_T=x_T)


def _many_small_steps(denoiser, levels, x_T):
    """Fourth order, by steps of half the length."""
    angles = [math.atan2(level.sigma, level.alpha) for level in levels]
    finer = [a + (b - a) * share for a, b in pairwise(angles) for share in (0, 1 / 2)] + angles[-1:]
    return of_fourth_order(denoiser, [NoiseLevel(math.cos(a), math.sin(a), 0) for a in finer], x_T)


THIRD = {
    "form-forgot-return": (lambda denoiser, levels, x_T: None, "form"),
    "form-all-steps": (lambda denoiser, levels, x_T: torch.stack([x_T, x_T]), "form"),
    "stays": (lambda denoiser, levels, x_T: x_T, "arrives"),
    "back-to-noise": (_runge_kutta([[]], [1], [0], sign=-1), "arrives"),
    "clean": (
        lambda denoiser, levels, x_T: denoiser(of_fourth_order(denoiser, levels, x_T), levels[-1]).x0,
        "arrives",
        "this is x_0",
    ),
    "euler": (_runge_kutta([[]], [1], [0]), "of-third-order"),
    "heun": (heun_of_two, "of-third-order"),
    "midpoint": (_runge_kutta([[], [1 / 2]], [0, 1], [0, 1 / 2]), "of-third-order"),
    "third-stage-from-the-second": (
        _runge_kutta([[], [1 / 2], [0, 1]], [1 / 6, 2 / 3, 1 / 6], [0, 1 / 2, 1]),
        "of-third-order",
    ),
    "weights-of-heun": (_runge_kutta([[], [1 / 2], [-1, 2]], [1 / 4, 1 / 2, 1 / 4], [0, 1 / 2, 1]), "of-third-order"),
    "eight-calls": (_many_small_steps, "at-most-four-calls-a-step"),
}

RIGHT = {
    "ex-02-reverse-variance": {
        "by-the-mean": variance_by_the_mean,
        "by-noise": variance_by_noise,
        "float32": variance_in_float32,
    },
    "ex-02-learned-variance": {
        "lerp": log_variance_by_lerp,
        "minidiff": log_variance_in_minidiff,
        "powers-in-float32": log_variance_by_powers,
        "loop": log_variance_in_a_loop,
    },
    "ex-02-ddim": {
        "linear map": RIGHT_STEP,
        "minidiff": _walk(step_in_minidiff),
        "float32": _walk(step_in_float32),
        "loop": _walk(step_in_a_loop),
        "eps, by keywords": lambda denoiser, levels, x_T, eta, noise: ddim_by_eps(
            denoiser=denoiser, levels=levels, x_T=x_T, eta=eta, noise=noise
        ),
    },
    "ex-02-rotation": {
        "complex": rotation_of_complex_numbers,
        "matrix-in-numpy": rotation_by_a_matrix,
        "float32": rotation_in_float32,
        "through-x0": rotation_through_x0,
    },
    "ex-02-heun": {
        "k1-k2": heun_k1_k2,
        "by-hand": heun_by_hand,
        "float32": heun_in_float32,
        "one-by-one": heun_one_by_one,
    },
    "ex-02-steps": {
        "tuple": (N_DDIM, N_HEUN),
        "list-of-floats": [float(N_DDIM), float(N_HEUN)],
        "tensor": torch.tensor([N_DDIM, N_HEUN]),
        "numpy": np.array([N_DDIM, N_HEUN]),
    },
    "ex-02-third": {
        "strongly stable": strongly_stable,
        "fourth order": of_fourth_order,
        "memory": third_by_memory,
        "Ralston, numpy": third_in_numpy_angles,
    },
}

MUTANTS = {
    "ex-02-reverse-variance": REVERSE_VARIANCE,
    "ex-02-learned-variance": LEARNED_VARIANCE,
    "ex-02-ddim": DDIM,
    "ex-02-rotation": ROTATION,
    "ex-02-heun": HEUN,
    "ex-02-steps": STEPS,
    "ex-02-third": THIRD,
}
