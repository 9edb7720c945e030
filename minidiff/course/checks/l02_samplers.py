"""Checks of lesson 02: samplers."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import torch
from torch import Generator, Tensor

from minidiff.course.comparing import (
    PRESERVING,
    Pair,
    expect,
    exploding_pair,
    general_pair,
    normal,
    preserved,
    preserving_pair,
    uniform,
)
from minidiff.course.exercises import case, exercise
from minidiff.course.forms import call, integer, number, several, taking, tensor
from minidiff.course.outcomes import Mistake
from minidiff.denoiser import Denoiser
from minidiff.exact import GaussianDenoiser, GaussianMixtureDenoiser
from minidiff.prediction import Prediction
from minidiff.process import beta, beta_tilde, posterior_mean, transition
from minidiff.sampler import ddim, heun, sample
from minidiff.schedule import DATA, NoiseLevel, cosine_schedule

LESSON = "02_samplers"
STEP_ONLY = "beta is sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2; 1 - (alpha_t / alpha_s)^2 needs alpha^2 + sigma^2 = 1"


def _levels_shown(t: NoiseLevel, s: NoiseLevel) -> str:
    return f"alpha = {t.alpha:.3g} and {s.alpha:.3g}, sigma = {t.sigma:.3g} and {s.sigma:.3g}"


# -- ex-02-reverse-variance -------------------------------------------------------------------------------------------

exercise(
    "ex-02-reverse-variance",
    name="reverse_variance",
    lesson=LESSON,
    form=call(
        number(),
        lambda rng: dict(zip("ts", preserving_pair(rng), strict=True)) | {"x0_variance": uniform(rng, 0.1, 0.5)},
    ),
)


def _joint_variance(v: float, t: NoiseLevel, s: NoiseLevel) -> float:
    """Var[x_s | x_t] for N(0, v) data, from the joint Gaussian of (x_s, x_t): x_0 does not appear."""
    scale, noise = transition(s, t)
    at_s = s.alpha**2 * v + s.sigma**2
    return at_s - (scale * at_s) ** 2 / (scale**2 * at_s + noise)


def _spread(v: float, t: NoiseLevel) -> float:
    """Var[x_0 | x_t] for N(0, v) data."""
    return v * t.sigma**2 / (t.alpha**2 * v + t.sigma**2)


@case("ex-02-reverse-variance", "point-mass")
def _(answer, rng):
    t, s = preserving_pair(rng)
    low, high = beta_tilde(t, s), beta(t, s)
    wrong = {
        "the first term is the variance of q(x_s|x_t,x_0), beta-tilde, not beta": high,
        "this is the standard deviation; the variance was asked for": math.sqrt(low),
        "this is the variance of q(x_s|x_0), which has not seen x_t": s.sigma**2,
        "beta-tilde is beta times a ratio of variances, sigma_s^2 / sigma_t^2": high * s.sigma / t.sigma,
        "with x_0 known x_s still has the variance beta-tilde; x0_variance is a factor of the second term alone": 0.0,
    }
    say = "when x_0 is certain only the variance of q(x_s|x_t,x_0) is left, {right}, not {got}"
    expect(answer(t, s, 0.0), low, say, wrong)


@case("ex-02-reverse-variance", "joint-gaussian")
def _(answer, rng):
    for v in (uniform(rng, 0.2, 0.5), 1.0):
        t, s = preserving_pair(rng)
        low, high, spread, right = beta_tilde(t, s), beta(t, s), _spread(v, t), _joint_variance(v, t, s)
        carried = s.alpha * high / t.sigma**2
        wrong = {
            "the spread of x_0 is a variance: its coefficient has to be squared": low + carried * spread,
            "this is beta-tilde alone; the doubt about x_0 has to be added": low,
            "this is beta whatever the data; it is right for N(0, I) alone": high,
            "this is the standard deviation; the variance was asked for": math.sqrt(right),
            "x_0 enters the mean by alpha_s beta / sigma_t^2; alpha_s is missing": (
                low + (carried / s.alpha) ** 2 * spread
            ),
            "x_0 enters the mean by alpha_s beta / sigma_t^2; you took alpha_t": (
                low + (carried * t.alpha / s.alpha) ** 2 * spread
            ),
            "x_0 enters the mean by alpha_s beta / sigma_t^2; you divided by sigma_t": (
                low + (carried * t.sigma) ** 2 * spread
            ),
            "x_0 enters the mean by alpha_s beta / sigma_t^2; you took beta-tilde": (
                low + (s.alpha * low / t.sigma**2) ** 2 * spread
            ),
            "this is the coefficient of x_t; that of x_0 belongs here": (
                low + (t.alpha / s.alpha * s.sigma**2 / t.sigma**2) ** 2 * spread
            ),
            "the doubt about x_0 is carried over by the coefficient of x_0 in the mean": low + spread,
            "the doubt about x_0 is added": low - carried**2 * spread,
            "x0_variance is a variance already; you squared it": low + (carried * spread) ** 2,
            "x0_variance is a variance already; you took its root": low + carried**2 * math.sqrt(spread),
        }
        say = f"for N(0, {v:.2g}) data the joint Gaussian of (x_s, x_t) gives {{right}}, not {{got}}"
        expect(answer(t, s, spread), right, say, wrong)


@case("ex-02-reverse-variance", "variance-exploding")
def _(answer, rng):
    for t, s in (general_pair(rng), exploding_pair(rng)):
        v = uniform(rng, 0.2, 0.6)
        spread, step = _spread(v, t), 1 - (t.alpha / s.alpha) ** 2
        total = lambda low, high, t, s, spread=spread: low + (s.alpha * high / t.sigma**2) ** 2 * spread
        wrong = {STEP_ONLY: total(step * s.sigma**2 / t.sigma**2, step, t, s)}
        if t.alpha < 1:
            kept = preserved(t), preserved(s)
            wrong[PRESERVING] = total(beta_tilde(*kept), beta(*kept), *kept)
            half = step * kept[1].sigma ** 2 / kept[0].sigma ** 2
            wrong["beta-tilde is beta sigma_s^2 / sigma_t^2, the sigmas taken from the levels"] = total(
                half, step, t, s
            )
        say = f"at {_levels_shown(t, s)} the joint Gaussian gives {{right}}, not {{got}}"
        expect(answer(t, s, spread), _joint_variance(v, t, s), say, wrong)


# -- ex-02-learned-variance -------------------------------------------------------------------------------------------

FLOOR = 1e-5
exercise(
    "ex-02-learned-variance",
    name="learned_log_variance",
    lesson=LESSON,
    form=call(
        tensor("output"),
        lambda rng: {
            "output": uniform(rng, -1, 1, 2, 3, 2, 2),
            **dict(zip("ts", preserving_pair(rng), strict=True)),
            "floor": FLOOR,
        },
    ),
)


def _between(f: Tensor, low: float, high: float) -> Tensor:
    """The log variance at a fraction f of the way from log low to log high."""
    return f * math.log(high) + (1 - f) * math.log(low)


@case("ex-02-learned-variance", "ends")
def _(answer, rng):
    t, s = preserving_pair(rng)
    low, high = beta_tilde(t, s), beta(t, s)
    output = torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)[torch.randperm(3, generator=rng)].reshape(3, 1, 1, 1)
    right = _between((output + 1) / 2, low, high)
    wrong = {
        "the ends are swapped: 1 stands for beta": _between((1 - output) / 2, low, high),
        "the output lies in [-1, 1]: rescale it to a fraction in [0, 1] first": _between(output, low, high),
        "the output spans two; output + 1 must still be halved": _between(output + 1, low, high),
        "the output lies in [-1, 1] already; it needs no sigmoid": _between(output.sigmoid(), low, high),
        "this is the variance; its logarithm was asked for": right.exp(),
        "this is the logarithm of the standard deviation; that of the variance was asked for": right / 2,
        "beta and beta-tilde are variances already; you squared them": 2 * right,
    }
    say = "an output of -1 stands for log beta-tilde, an output of 1 for log beta"
    expect(answer(output, t, s, FLOOR), right, say, wrong)


@case("ex-02-learned-variance", "between")
def _(answer, rng):
    for shape in ((4, 3, 2, 2), (1, 1, 3, 3), (5,)):
        t, s = preserving_pair(rng)
        low, high, output = beta_tilde(t, s), beta(t, s), uniform(rng, -0.9, 0.9, *shape)
        f = (output + 1) / 2
        each = f.reshape(len(f), -1).mean(1)
        same = "each number of the output has a fraction of its own; you took "
        wrong = {
            "you interpolated the variances; their logarithms are interpolated": (f * high + (1 - f) * low).log(),
            "you interpolated the standard deviations; the logarithms of the variances are interpolated": (
                2 * (f * math.sqrt(high) + (1 - f) * math.sqrt(low)).log()
            ),
            "you cut the output off at zero; rescale it to [0, 1]": _between(output.clamp(min=0), low, high),
            "you rounded: all that lies between the ends is allowed": _between(f.round(), low, high),
            same + "their mean": _between(f.mean().expand(shape), low, high),
            same + "the first for all": _between(f.flatten()[0].expand(shape), low, high),
            same + "one for each sample": _between(each.reshape(-1, *[1] * (f.ndim - 1)).expand(shape), low, high),
        }
        say = f"an output of shape {shape}: a fraction f of the way from log beta-tilde to log beta"
        expect(answer(output, t, s, FLOOR), _between(f, low, high), say, wrong)
    expect(answer(output.float(), t, s, FLOOR), _between(f, low, high), "wrong for an output in float32")


@case("ex-02-learned-variance", "variance-exploding")
def _(answer, rng):
    for t, s in (general_pair(rng), exploding_pair(rng)):
        output = uniform(rng, -1, 1, 2, 1, 2, 2)
        f = (output + 1) / 2
        wrong = {}
        if t.alpha < 1:
            step, kept = 1 - (t.alpha / s.alpha) ** 2, (preserved(t), preserved(s))
            wrong[PRESERVING] = _between(f, beta_tilde(*kept), beta(*kept))
            wrong[STEP_ONLY] = _between(f, step * s.sigma**2 / t.sigma**2, step)
        say = f"wrong at {_levels_shown(t, s)}"
        expect(answer(output, t, s, FLOOR), _between(f, beta_tilde(t, s), beta(t, s)), say, wrong)


@case("ex-02-learned-variance", "floor-is-for-zero")
def _(answer, rng):
    t, s = preserving_pair(rng)
    low, high, output = beta_tilde(t, s), beta(t, s), uniform(rng, -1, 0.5, 2, 1, 2, 2)
    f, floor = (output + 1) / 2, uniform(rng, 1.5, 2) * low
    wrong = {
        "the floor stands for beta-tilde where that is zero; here it is not, only smaller": _between(f, floor, high),
        "the floor is not added to beta-tilde; it stands for it where that is zero": _between(f, low + floor, high),
    }
    say = "in a step whose beta-tilde is not zero the floor plays no part"
    expect(answer(output, t, s, floor), _between(f, low, high), say, wrong)


@case("ex-02-learned-variance", "last-step")
def _(answer, rng):
    for t in (preserving_pair(rng)[1], exploding_pair(rng)[1]):
        output, floor = uniform(rng, -1, 0.9, 2, 1, 2, 2), uniform(rng, 1e-5, 1e-3)
        f = (output + 1) / 2
        wrong = {
            "beta-tilde is zero in the last step, its logarithm infinite; the floor stands for it": (
                torch.full_like(f, -math.inf)
            ),
            "in the last step the floor stands for beta-tilde; the output still counts": _between(0 * f, floor, 1.0),
            "the floor is a variance; you took it for a logarithm": f * math.log(t.sigma**2) + (1 - f) * floor,
            "you put another small number for beta-tilde than the floor": _between(f, 1e-20, t.sigma**2),
        }
        say = "in the last step the floor stands for beta-tilde, and beta is sigma_t^2"
        expect(answer(output, t, DATA, floor), _between(f, floor, t.sigma**2), say, wrong)


# -- ex-02-ddim --------------------------------------------------------------------------------------------------------


def _given(rng: Generator, pair: Pair, eta: float, *shape: int) -> dict:
    """What one step sees."""
    (t, s), x0, eps = pair, normal(rng, *shape), normal(rng, *shape)
    return {"x_t": t.alpha * x0 + t.sigma * eps, "x0": x0, "t": t, "s": s, "eta": eta, "z": normal(rng, *shape)}


def _ddim_chain(rng: Generator, steps: int, *shape: int) -> dict:
    """Arguments of a whole chain, on a mixture."""
    world = GaussianMixtureDenoiser(normal(rng, 3, *shape[1:]), 0.2)
    levels = [cosine_schedule().level(0.9 - 0.75 * i / steps) for i in range(steps)] + [DATA]
    noise = normal(rng, steps, *shape)
    return {"denoiser": world, "levels": levels, "x_T": normal(rng, *shape), "eta": 0.6, "noise": noise}


exercise(
    "ex-02-ddim",
    name="ddim_sample",
    lesson=LESSON,
    form=call(tensor("x_T"), lambda rng: _ddim_chain(rng, 3, 2, 3, 2, 2)),
)


def _stepped(answer, x_t: Tensor, x0: Tensor, t: NoiseLevel, s: NoiseLevel, eta: float, z: Tensor) -> Tensor:
    """What an answer makes of a chain of one step, whose denoiser says x0."""
    says = taking("x level", lambda x, level: Prediction(x, level, x0.to(x), "x0"))
    return answer(says, [t, s], x_t, eta, z[None])


def _remixed(given: dict, direction: float, noise: float) -> Tensor:
    """alpha_s x_0 + direction eps + noise z; a negative square root gives nan."""
    t, s, x0 = given["t"], given["s"], given["x0"]
    return s.alpha * x0 + direction * (given["x_t"] - t.alpha * x0) / t.sigma + noise * given["z"]


def _root(value: float) -> float:
    return math.sqrt(value) if value >= 0 else math.nan


def _right_step(given: dict, eta: float | None = None) -> Tensor:
    """eq-ddim, perhaps with another eta than the one given."""
    eta = given["eta"] if eta is None else eta
    variance = eta**2 * beta_tilde(given["t"], given["s"])
    return _remixed(given, _root(max(given["s"].sigma ** 2 - variance, 0.0)), _root(variance))


@case("ex-02-ddim", "eta-zero")
def _(answer, rng):
    given = _given(rng, preserving_pair(rng), 0.0, 3, 2, 2, 2)
    x_t, x0, t, s, _, z = given.values()
    eps = (x_t - t.alpha * x0) / t.sigma
    wrong = {
        "eps is (x_t - alpha_t x_0) / sigma_t; you did not divide by sigma_t": s.alpha * x0 + s.sigma * t.sigma * eps,
        "eps is (x_t - alpha_t x_0) / sigma_t; you divided by the variance": s.alpha * x0 + s.sigma * eps / t.sigma,
        "eps is (x_t - alpha_t x_0) / sigma_t; alpha_t is missing": s.alpha * x0 + s.sigma * (x_t - x0) / t.sigma,
        "eps is (x_t - alpha_t x_0) / sigma_t; you took alpha_s": (
            s.alpha * x0 + s.sigma * (x_t - s.alpha * x0) / t.sigma
        ),
        "the sign of eps is wrong": s.alpha * x0 - s.sigma * eps,
        "x_0 comes back at the level s: alpha_s is missing": x0 + s.sigma * eps,
        "x_0 comes back at the level s; you took alpha_t": t.alpha * x0 + s.sigma * eps,
        "eps comes back at the level s; you took sigma_t": s.alpha * x0 + t.sigma * eps,
        "eps is multiplied by a standard deviation; you used the variance": s.alpha * x0 + s.sigma**2 * eps,
        "this is x_t as it came": x_t,
        "this has fresh noise in place of the old: at eta = 0 there is no z": s.alpha * x0 + s.sigma * z,
        "eta is missing: this is the step of eta = 1": _right_step(given, 1.0),
        "eta is missing in front of z": _remixed(given, s.sigma, _root(beta_tilde(t, s))),
    }
    say = "at eta = 0: the same x_0 and eps, remixed at the level s"
    expect(_stepped(answer, **given), _right_step(given), say, wrong)


@case("ex-02-ddim", "eta-one-is-ancestral")
def _(answer, rng):
    given = _given(rng, preserving_pair(rng), 1.0, 3, 2, 2, 2)
    x_t, x0, t, s, _, z = given.values()
    low, high, total = beta_tilde(t, s), beta(t, s), s.sigma**2
    scaled = "z is multiplied by a standard deviation; you used the variance"
    other = "w^2 is beta-tilde, not beta"
    wrong = {
        "with noise added, eps is multiplied by sqrt(sigma_s^2 - w^2), not by sigma_s": _remixed(
            given, s.sigma, _root(low)
        ),
        "both: " + scaled + ", and eps is multiplied by sqrt(sigma_s^2 - w^2), not by sigma_s": (
            _remixed(given, s.sigma, low)
        ),
        scaled: _remixed(given, _root(total - low), low),
        scaled + ", and squared it again in the root": _remixed(given, _root(total - low**2), low),
        other: _remixed(given, _root(total - high), _root(high)),
        other + " (and cutting it off at sigma_s^2 does not help)": _remixed(given, 0.0, s.sigma),
        other + " (and cutting the root off at zero does not help)": _remixed(given, 0.0, _root(high)),
        "variances are subtracted: sqrt(sigma_s^2 - w^2), not sigma_s - w": _remixed(
            given, s.sigma - _root(low), _root(low)
        ),
        "what z adds is taken from eps: sqrt(sigma_s^2 - w^2) has a minus": _remixed(
            given, _root(total + low), _root(low)
        ),
        "the root is missing: eps is multiplied by sqrt(sigma_s^2 - w^2)": _remixed(given, total - low, _root(low)),
        "z is missing": _remixed(given, _root(total - low), 0.0),
        "eta has no effect: this is the step of eta = 0": _right_step(given, 0.0),
    }
    say = "at eta = 1 this must be a draw of q(x_s|x_t,x_0): its mean, and z times the root of beta-tilde"
    expect(_stepped(answer, **given), posterior_mean(x_t, x0, t, s) + low**0.5 * z, say, wrong)


@case("ex-02-ddim", "eta-between")
def _(answer, rng):
    for eta in (uniform(rng, 0.3, 0.45), uniform(rng, 0.55, 0.7)):
        given = _given(rng, preserving_pair(rng), eta, 3, 2, 2, 2)
        low, total = beta_tilde(given["t"], given["s"]), given["s"].sigma ** 2
        wrong = {
            "eta scales the standard deviation: w = eta sqrt(beta-tilde)": _remixed(
                given, _root(total - eta * low), _root(eta * low)
            ),
            "the w in the root is the w in front of z; eta is missing in the root": _remixed(
                given, _root(total - low), eta * _root(low)
            ),
            "the w in the root is the w in front of z; eta must be squared in the root": _remixed(
                given, _root(total - eta * low), eta * _root(low)
            ),
            "this is the step of eta = 1": _right_step(given, 1.0),
            "this is the step of eta = 0": _right_step(given, 0.0),
            "eta scales w; you mixed the steps of eta = 0 and eta = 1": (
                (1 - eta) * _right_step(given, 0.0) + eta * _right_step(given, 1.0)
            ),
        }
        say = f"eta = {eta:.2f}: with w = eta sqrt(beta-tilde) the variance of x_s given x_0 stays sigma_s^2"
        expect(_stepped(answer, **given), _right_step(given), say, wrong)


@case("ex-02-ddim", "last-step")
def _(answer, rng):
    for t in (preserving_pair(rng)[1], exploding_pair(rng)[1]):
        for eta in (0.0, 0.5, 1.0):
            given = _given(rng, (t, DATA), eta, 2, 1, 2, 2)
            say = "a step to clean data returns x_0 itself, whatever eta"
            expect(_stepped(answer, **given), given["x0"], say, atol=1e-6)


@case("ex-02-ddim", "any-levels")
def _(answer, rng):
    pure = NoiseLevel(0.0, 1.0, 1), preserving_pair(rng)[0]
    for t, s in (general_pair(rng), exploding_pair(rng), pure):
        for eta in (0.0, uniform(rng, 0.4, 0.8)):
            given, variance = _given(rng, (t, s), eta, 2, 2, 2, 2), eta**2 * beta_tilde(t, s)
            wrong = {PRESERVING: _remixed(given, _root(max(1 - s.alpha**2 - variance, 0.0)), _root(variance))}
            if 0 < t.alpha < 1:
                kept = given | {"t": preserved(t), "s": preserved(s)}
                wrong[PRESERVING + ", wherever it stands"] = _right_step(kept)
            if t.alpha:
                low = eta**2 * (1 - (t.alpha / s.alpha) ** 2) * s.sigma**2 / t.sigma**2
                wrong[STEP_ONLY] = _remixed(given, _root(s.sigma**2 - low), _root(low))
            say = f"wrong at eta = {eta:.2f}, {_levels_shown(t, s)}"
            expect(_stepped(answer, **given), _right_step(given), say, wrong)


@case("ex-02-ddim", "in-float32")
def _(answer, rng):
    given = _given(rng, preserving_pair(rng), 0.8, 1, 3, 2, 2)
    given = {k: v.float() if isinstance(v, Tensor) else v for k, v in given.items()}
    expect(_stepped(answer, **given), _right_step(given), "wrong for one picture in float32")


def _walked(given: dict, noise: Tensor | None = None, held: bool = False) -> Tensor:
    """The chain, step by step; ``held``: every step believes what the first was told."""
    x, first, noise = given["x_T"], None, given["noise"] if noise is None else noise
    for (t, s), z in zip(pairwise(given["levels"]), noise, strict=True):
        x0 = given["denoiser"](x, t).x0
        first = x0 if first is None else first
        step = {"x_t": x, "x0": first if held else x0, "t": t, "s": s, "eta": given["eta"], "z": z}
        x = _right_step(step)
    return x


@case("ex-02-ddim", "whole-chain", points=2)
def _(answer, rng):
    for steps, shape in ((4, (3, 1, 2, 2)), (7, (1, 2, 1, 2))):
        given = _ddim_chain(rng, steps, *shape)
        noise = given["noise"]
        wrong = {
            "step i takes noise[i]; you took them from the end": lambda g=given, z=noise: _walked(g, z.flip(0)),
            "each step has noise of its own; you took the first for all": lambda g=given, z=noise: _walked(
                g, z[:1].expand_as(z)
            ),
            "ask the denoiser again at every step: its answer changes with x_t": lambda g=given: _walked(g, held=True),
        }
        say = f"a chain of {steps} steps on x of shape {shape} ends elsewhere"
        expect(answer(*given.values()), _walked(given), say, wrong)


@case("ex-02-ddim", "asks-once-a-step")
def _(answer, rng):
    given, asked = _ddim_chain(rng, 5, 2, 1, 2, 2), []

    def denoiser(x, level):
        asked.append(level.sigma)
        return given["denoiser"](x, level)

    answer(*(given | {"denoiser": taking("x level", denoiser)}).values())
    sigmas = [level.sigma for level in given["levels"][:-1]]
    assert len(asked) == len(sigmas), f"5 steps ask the denoiser 5 times, not {len(asked)}"
    expect(torch.tensor(asked), torch.tensor(sigmas), "a step asks at the noisier of its two levels")


# -- ex-02-rotation ---------------------------------------------------------------------------------------------------

exercise(
    "ex-02-rotation",
    name="rotation",
    lesson=LESSON,
    form=call(
        several(x_s=tensor("x_t"), v_s=tensor("x_t")),
        lambda rng: {"x_t": normal(rng, 2, 3, 2, 2), "v": normal(rng, 2, 3, 2, 2), "angle": 0.5},
    ),
)


def _turns(rng: Generator) -> list[tuple[float, float]]:
    """Angles to start at, and to turn by: from noise, all the way to the data, a short step."""
    return [
        (uniform(rng, 1.2, 1.5), uniform(rng, 0.4, 1.0)),
        (math.pi / 2, math.pi / 2),
        (0.5, uniform(rng, 0.05, 0.2)),
    ]


def _at(angle: float, x0: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """(x, v) of this x_0 and eps at an angle."""
    cos, sin = math.cos(angle), math.sin(angle)
    return cos * x0 + sin * eps, cos * eps - sin * x0


@case("ex-02-rotation", "x-follows-ddim")
def _(answer, rng):
    for start, angle in _turns(rng):
        x0, eps = normal(rng, 3, 2, 2, 2), normal(rng, 3, 2, 2, 2)
        (x, v), cos, sin = _at(start, x0, eps), math.cos(angle), math.sin(angle)
        wrong = {
            "this turns towards the noise; sampling decreases the angle": cos * x + sin * v,
            "this is a straight step along v; a rotation keeps x^2 + v^2": x - angle * v,
            "cosine and sine are swapped": sin * x - cos * v,
            "the sign is wrong": sin * v - cos * x,
            "this is v_s; x_s comes first": sin * x + cos * v,
            "x_t is multiplied by the cosine": x - sin * v,
            "v is multiplied by the sine of the angle, not by the angle": cos * x - angle * v,
            "this is the clean picture; the step ends at the angle phi_s": x0,
            "the angle is in radians": math.cos(math.radians(angle)) * x - math.sin(math.radians(angle)) * v,
        }
        say = f"from the angle {start:.2f} by {angle:.2f}: x_s must be alpha_s x_0 + sigma_s eps"
        expect(answer(x, v, angle)[0], _at(start - angle, x0, eps)[0], say, wrong)


@case("ex-02-rotation", "v-follows")
def _(answer, rng):
    for start, angle in _turns(rng):
        x0, eps = normal(rng, 3, 2, 2, 2), normal(rng, 3, 2, 2, 2)
        (x, v), cos, sin = _at(start, x0, eps), math.cos(angle), math.sin(angle)
        x_s = _at(start - angle, x0, eps)[0]
        wrong = {
            "v turns too; you returned the v of x_t": v,
            "this turns v towards the noise": cos * v - sin * x,
            "the sign is wrong": -sin * x - cos * v,
            "cosine and sine are swapped": cos * x + sin * v,
            "this turns v with the new x_s; the old x_t belongs here": sin * x_s + cos * v,
            "this is a straight step along x; a rotation keeps x^2 + v^2": v + angle * x,
            "v is multiplied by the cosine": v + sin * x,
            "this is x_s once more": x_s,
            "this is eps; v_s = alpha_s eps - sigma_s x_0 was asked for": eps,
        }
        say = f"from the angle {start:.2f} by {angle:.2f}: v_s must be alpha_s eps - sigma_s x_0"
        expect(answer(x, v, angle)[1], _at(start - angle, x0, eps)[1], say, wrong)


@case("ex-02-rotation", "in-float32")
def _(answer, rng):
    x0, eps, angle = normal(rng, 1, 5).float(), normal(rng, 1, 5).float(), uniform(rng, 0.2, 0.8)
    expect(answer(*_at(1.1, x0, eps), angle), _at(1.1 - angle, x0, eps), "wrong for a batch of one, in float32")


# -- ex-02-heun -------------------------------------------------------------------------------------------------------

Rule = Callable[[Denoiser, Tensor, NoiseLevel, NoiseLevel], Tensor]


def _world(rng: Generator) -> GaussianMixtureDenoiser:
    """Three blobs of pictures of two channels."""
    return GaussianMixtureDenoiser(normal(rng, 3, 2, 1, 2), uniform(rng, 0.05, 0.2))


def _chain(rng: Generator, n: int, radius: Callable[[float], float] = lambda u: 1.0) -> list[NoiseLevel]:
    """n levels from angle 1.3 to 0.3, then DATA; the radius is a function of how far a level is along the chain."""
    shares = torch.linspace(0, 1, n).tolist()
    angles = [(1.3 - u) + uniform(rng, -0.3, 0.3) / n for u in shares]
    scaled = [(radius(u), a) for u, a in zip(shares, angles, strict=True)]
    return [NoiseLevel(r * math.cos(a), r * math.sin(a), i) for i, (r, a) in enumerate(scaled)] + [DATA]


def _radius(level: NoiseLevel) -> float:
    return math.hypot(level.alpha, level.sigma)


def _angle(level: NoiseLevel) -> float:
    return math.atan2(level.sigma, level.alpha)


def _rule(
    weights=(0.5, 0.5), *, trial=True, ahead=True, sign=1, angle=_angle, radius=_radius, of_slope=None, kind="v"
) -> Rule:
    """Heun's step, or what a slip makes of it.

    Args:
        weights: of the two slopes.
        trial: the second slope is asked for at the trial point, not at x.
        ahead: it is asked for at the level s, not at t.
        sign: of the step.
        angle: of a level.
        radius: of a level.
        of_slope: what the slopes are divided by, if not the radius.
        kind: what of the prediction is the slope.
    """

    def step(denoiser: Denoiser, x: Tensor, t: NoiseLevel, s: NoiseLevel) -> Tensor:
        length, divisor = sign * (angle(s) - angle(t)), of_slope or radius
        y, first = x / radius(t), getattr(denoiser(x, t), kind) / divisor(t)
        if not weights[1]:
            return radius(s) * (y + length * weights[0] * first)
        point = y + length * first if trial else y
        second = getattr(denoiser(radius(s) * point, s if ahead else t), kind) / divisor(s)
        return radius(s) * (y + length * (weights[0] * first + weights[1] * second))

    return step


def _in_the_ratio(denoiser: Denoiser, x: Tensor, t: NoiseLevel, s: NoiseLevel) -> Tensor:
    """Heun's step for d(x / alpha) / d(sigma / alpha) = eps."""
    length, first = s.sigma / s.alpha - t.sigma / t.alpha, denoiser(x, t).eps
    second = denoiser(s.alpha * (x / t.alpha + length * first), s).eps
    return s.alpha * (x / t.alpha + length * (first + second) / 2)


def _along(rule: Rule, denoiser: Denoiser, levels: list[NoiseLevel], x: Tensor) -> Tensor:
    """A whole chain by a rule; the step to DATA returns x_0."""
    for t, s in pairwise(levels[:-1]):
        x = rule(denoiser, x, t, s)
    return denoiser(x, levels[-2]).x0


exercise(
    "ex-02-heun",
    name="heun_sample",
    lesson=LESSON,
    form=call(
        tensor("x_T"),
        lambda rng: {"denoiser": _world(rng), "levels": _chain(rng, 3), "x_T": normal(rng, 2, 2, 1, 2)},
    ),
)


@case("ex-02-heun", "last-step")
def _(answer, rng):
    world, x, (_, level, _) = _world(rng), normal(rng, 3, 2, 1, 2), _chain(rng, 2)
    levels = [level, DATA]
    wrong = {
        "this is x as it came: the step to clean data is missing": x,
        "the step to clean data returns x_0; you stepped along the slope": _rule((1, 0))(world, x, *levels),
    }
    got, say = answer(world, levels, x), "the step to clean data returns what the denoiser says of x_0"
    if not got.isfinite().all():
        raise Mistake("at clean data sigma = 0 and there is no second slope: the last step returns x_0")
    expect(got, world(x, level).x0, say, wrong)


@case("ex-02-heun", "first-step")
def _(answer, rng):
    world, levels, x = _world(rng), _chain(rng, 2), normal(rng, 1, 2, 1, 2)
    redone = "the step is redone from where it began, with the mean of the two slopes; "
    slips = {
        "this is Euler's method in the angle: ask again at the trial point": _rule((1, 0)),
        "the second slope is asked for at the new level s; you asked at t": _rule(ahead=False),
        "the second slope is asked for at the trial point; you asked at the old one": _rule(trial=False),
        redone + "you added them": _rule((1, 1)),
        redone + "you took the second alone": _rule((0, 1)),
        redone + "you went on from the trial point with half the second": _rule((1, 0.5)),
        redone + "you went on from the trial point": _rule((1.5, 0.5)),
        "a step is the new angle minus the old one; yours goes back towards the noise": _rule(sign=-1),
        "the slope is v; you took eps": _rule(kind="eps"),
        "this is Heun's method in sigma / alpha; take the step in the angle": _in_the_ratio,
    }
    wrong = {text: _along(rule, world, levels, x) for text, rule in slips.items()}
    wrong |= {
        "this is a DDIM step; Heun's method asks the denoiser twice": sample(ddim(), world, levels, x),
        "this is x after the first step; the last one, to clean data, is missing": _rule()(world, x, *levels[:2]),
        "this is what the denoiser says of x_T; the steps in between are missing": world(x, levels[0]).x0,
    }
    say = "two levels and clean data: not one step of Heun's method in the angle, and then x_0"
    expect(answer(world, levels, x), sample(heun(), world, levels, x), say, wrong)


@case("ex-02-heun", "whole-chain")
def _(answer, rng):
    for n, dtype in ((8, torch.float64), (5, torch.float32)):
        world, levels, x = _world(rng), _chain(rng, n), normal(rng, 3, 2, 1, 2).to(dtype)
        wrong = {
            "this has the first and the last step alone": sample(heun(), world, [*levels[:2], DATA], x),
            "each step begins where the one before ended; yours begin at x_T": world(x, levels[-2]).x0,
        }
        say = f"wrong after {n} steps, x in {str(dtype)[6:]}"
        expect(answer(world, levels, x), sample(heun(), world, levels, x.double()), say, wrong)


@case("ex-02-heun", "variance-exploding")
def _(answer, rng):
    one = lambda level: 1.0
    slips = {
        "r = sqrt(alpha^2 + sigma^2) is not 1 here; you left it out": _rule(radius=one),
        "the slope is v / r; you did not divide v": _rule(of_slope=one),
        "x is divided by r before a step and multiplied by the new r after it": _rule(radius=one, of_slope=_radius),
    }
    arc = "the angle is atan2(sigma, alpha); acos(alpha) needs alpha^2 + sigma^2 = 1"
    bent = lambda level: math.acos(min(level.alpha, 1.0))
    slips |= {arc: _rule(angle=bent), arc + ", and so does r = 1": _rule(angle=bent, radius=one)}
    exploding = [NoiseLevel(1.0, sigma, i) for i, sigma in enumerate((uniform(rng, 2, 3), 0.8, 0.3))] + [DATA]
    for levels in (exploding, _chain(rng, 4, lambda u: 2.5 - u)):
        world, x = _world(rng), levels[0].sigma * normal(rng, 2, 2, 1, 2)
        wrong = {text: _along(rule, world, levels, x) for text, rule in slips.items()}
        pairs = ", ".join(f"({level.alpha:.2f}, {level.sigma:.2f})" for level in levels)
        expect(answer(world, levels, x), sample(heun(), world, levels, x), f"wrong for the levels {pairs}", wrong)


@case("ex-02-heun", "pure-noise")
def _(answer, rng):
    world, x = _world(rng), normal(rng, 2, 2, 1, 2)
    levels = [NoiseLevel(0.0, 1.0, 0), *_chain(rng, 4)]
    try:
        got = answer(world, levels, x)
    except ZeroDivisionError as error:
        raise Mistake("you divided by alpha, which is 0 at pure noise: the angle is atan2(sigma, alpha)") from error
    expect(got, sample(heun(), world, levels, x), "wrong for a chain that begins at alpha = 0")


# -- ex-02-steps ------------------------------------------------------------------------------------------------------

exercise("ex-02-steps", name="steps_needed", lesson=LESSON, form=several(n_ddim=integer(), n_heun=integer()))
QUARTER, LIMIT, MOST = 0.25, 0.01, 1000
SAMPLERS = {"ddim": ddim, "heun": heun}


@cache
def deviation_error(sampler: str, n: int, power: int = 1) -> float:
    """Relative error of the standard deviation (or of a power of it) that n steps give to N(0, 1/4) data."""
    levels, world = cosine_schedule(40).levels(n), GaussianDenoiser(torch.zeros(1), QUARTER)
    out = sample(SAMPLERS[sampler](), world, levels, torch.ones(1, 1, dtype=torch.float64)).item()
    start = levels[0].alpha ** 2 * QUARTER + levels[0].sigma ** 2
    return abs((out / math.sqrt(QUARTER / start)) ** power - 1)


def fewest(sampler: str, limit: float = LIMIT, power: int = 1) -> int:
    """The smallest number of steps, from 2, with an error below the limit; the error falls with the steps."""
    counts = range(2, 500)
    return counts[bisect(counts, False, key=lambda n: deviation_error(sampler, n, power) < limit)]


def _fewest(n: int, sampler: str, other: str) -> None:
    assert 2 <= n <= MOST, f"{n} steps with {sampler}: the answer lies between 2 and {MOST}"
    if deviation_error(sampler, n) < LIMIT <= deviation_error(sampler, n - 1):
        return
    for limit in (0.1, 0.05):
        if n == fewest(sampler, limit):
            raise Mistake(f"this is where the error falls below {limit:.0%}; 1 % was asked for")
    if n == fewest(sampler, power=2):
        raise Mistake("this is for the variance; the standard deviation was asked for")
    if n == fewest(other):
        raise Mistake(f"this is the number for {other}(); the order is (ddim, heun)")
    if sampler == "heun" and n in (2 * fewest("heun"), 2 * fewest("heun") - 1):
        raise Mistake("you counted calls of the denoiser; the steps were asked for")
    if n == fewest(sampler) + 1:
        raise Mistake(f"you counted the levels: n steps have n + 1 of them; {n - 1} steps would do")
    error, before = deviation_error(sampler, n), deviation_error(sampler, n - 1)
    assert error < LIMIT, f"{n} steps with {sampler}() leave an error of {error:.3%}, which is not below 1 %"
    assert before >= LIMIT, f"{n - 1} steps with {sampler}() would do: they leave {before:.3%}"


@case("ex-02-steps", "ddim")
def _(answer):
    _fewest(answer[0], "ddim", "heun")


@case("ex-02-steps", "heun", assumes=())
def _(answer):
    _fewest(answer[1], "heun", "ddim")


# -- ex-02-third ------------------------------------------------------------------------------------------------------

MOST_A_STEP, LEAST_ORDER = 4, 2.6  # second-order methods measure 2.1 at most here, third-order ones 2.9 at least


def _evenly(n: int) -> list[NoiseLevel]:
    """n steps of equal angle, variance-preserving, which end where there still is noise."""
    return [_turned(1.4 - 0.8 * k / n) for k in range(n + 1)]


def _turned(angle: float) -> NoiseLevel:
    return NoiseLevel(math.cos(angle), math.sin(angle), angle)


def _smooth_world(rng: Generator) -> GaussianMixtureDenoiser:
    return GaussianMixtureDenoiser(normal(rng, 3, 2, 1, 2), 0.3)


def _classical(denoiser: Denoiser, levels: list[NoiseLevel], x: Tensor) -> Tensor:
    """The classical fourth-order method: the truth to which chains of a few steps are held."""
    for t, s in pairwise(levels):
        start, h = _angle(t), _angle(s) - _angle(t)
        one = denoiser(x, t).v
        two = denoiser(x + h / 2 * one, _turned(start + h / 2)).v
        three = denoiser(x + h / 2 * two, _turned(start + h / 2)).v
        four = denoiser(x + h * three, s).v
        x = x + h / 6 * (one + 2 * two + 2 * three + four)
    return x


exercise(
    "ex-02-third",
    name="third_order",
    lesson=LESSON,
    form=call(
        tensor("x_T"),
        lambda rng: {"denoiser": _smooth_world(rng), "levels": _evenly(3), "x_T": normal(rng, 2, 2, 1, 2)},
    ),
)


def _errors(answer, rng: Generator, counts: tuple[int, ...]) -> list[float]:
    """Root mean square error of chains of so many steps."""
    world, x = _smooth_world(rng), normal(rng, 6, 2, 1, 2)
    end = _classical(world, _evenly(200), x)
    return [(answer(world, _evenly(n), x) - end).square().mean().sqrt().item() for n in counts]


@case("ex-02-third", "arrives")
def _(answer, rng):
    world, x = _smooth_world(rng), normal(rng, 6, 2, 1, 2)
    end, got = _classical(world, _evenly(200), x), answer(world, _evenly(24), x)
    off = (got - end).square().mean().sqrt().item()
    if off > 0.05 > (got - world(end, _evenly(1)[-1]).x0).square().mean().sqrt().item():
        raise Mistake("this is x_0; the chain ends at a level with noise, and x at that level was asked for")
    # 24 steps of any method err, far above rounding
    assert off < 0.05, f"24 steps end {off:.2g} from where the flow ends; even Euler's method comes nearer"


@case("ex-02-third", "of-third-order", points=3)
def _(answer, rng):
    few, more, most = _errors(answer, rng, (12, 24, 48))
    orders = [math.log2(max(a, 1e-13) / max(b, 1e-13)) for a, b in ((few, more), (more, most))]
    assert min(orders) > LEAST_ORDER or most < 1e-9, (
        f"twice as many steps divide your error by two to the {orders[0]:.2f} and {orders[1]:.2f}; third order is three"
    )


@case("ex-02-third", "at-most-four-calls-a-step")
def _(answer, rng):
    world, calls = _smooth_world(rng), []

    def counted(x, level):
        calls.append(level)
        return world(x, level)

    answer(taking("x level", counted), _evenly(12), normal(rng, 2, 2, 1, 2))
    most = 12 * MOST_A_STEP
    assert len(calls) <= most, f"twelve steps took {len(calls)} calls of the denoiser; at most {most} are allowed"
