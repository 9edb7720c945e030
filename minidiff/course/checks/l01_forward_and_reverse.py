"""Checks of lesson 01: forward and reverse."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import torch
from torch import Generator, Tensor

from minidiff.course.comparing import (
    PRESERVING,
    expect,
    exploding_pair,
    general_pair,
    normal,
    preserved,
    preserving_pair,
    uniform,
)
from minidiff.course.exercises import case, exercise
from minidiff.course.forms import call, integer, listed, number, several, tensor
from minidiff.course.outcomes import Mistake
from minidiff.exact import EmpiricalDenoiser, GaussianMixtureDenoiser
from minidiff.process import diffuse
from minidiff.schedule import DATA, NoiseLevel, clipped_cosine_schedule, linear_schedule, vp_schedule

LESSON = "01_forward_and_reverse"


def _pictures(rng: Generator, *names: str) -> dict[str, Tensor]:
    return {name: normal(rng, 2, 3, 2, 2) for name in names}


# -- ex-01-compose ----------------------------------------------------------------------------------------------------

exercise(
    "ex-01-compose",
    name="compose",
    lesson=LESSON,
    form=call(several(alpha=tensor("betas"), sigma=tensor("betas")), lambda rng: {"betas": uniform(rng, 0.1, 0.5, 4)}),
)
OFF_BY_ONE = "off by one: the entry of a step includes that step; clean data is not in the table"


@case("ex-01-compose", "one-step")
def _(answer, rng):
    b = uniform(rng, 0.2, 0.4, 1)
    alpha, sigma = answer(b)
    wrong_alpha = {
        "1 - beta is alpha^2; alpha is its square root": 1 - b,
        "alpha and sigma are swapped": b.sqrt(),
        OFF_BY_ONE: torch.ones(1),
    }
    wrong_sigma = {
        "beta is a variance; sigma is its square root": b,
        "sigma^2 = 1 - alpha^2; you took 1 - alpha": 1 - (1 - b).sqrt(),
        "alpha^2 is 1 - beta; you took sigma^2 = 1 - alpha^2 with 1 - beta for alpha": (1 - (1 - b) ** 2).sqrt(),
    }
    expect(alpha, (1 - b).sqrt(), "after one step alpha = sqrt(1 - beta)", wrong_alpha)
    expect(sigma, b.sqrt(), "after one step sigma = sqrt(beta)", wrong_sigma)


@case("ex-01-compose", "two-steps")
def _(answer, rng):
    b = uniform(rng, 0.1, 0.4, 2)
    kept, left = (1 - b).cumprod(0), b[0] * (1 - b[1]) + b[1]
    alpha, sigma = answer(b)
    wrong_alpha = {
        "this is what each step keeps by itself; up to step t the scales multiply": (1 - b).sqrt(),
        "betas do not add: what two steps keep is (1 - beta_1)(1 - beta_2)": (1 - b.cumsum(0)).sqrt(),
        "this treats all steps up to t as if they had the beta of step t": ((1 - b) ** torch.tensor([1, 2])).sqrt(),
        "exp of minus the sum of betas holds for infinitely small steps only": (-b.cumsum(0) / 2).exp(),
        "the running product begins at the wrong end": (1 - b).flip(0).cumprod(0).flip(0).sqrt(),
        OFF_BY_ONE: torch.tensor([1.0, kept[0].sqrt()]),
    }
    wrong_sigma = {
        "the second step shrinks the noise of the first: variances are (1 - beta) v + beta": b.cumsum(0).sqrt(),
        "this is the noise of each step by itself": b.sqrt(),
        "variances add, not deviations": torch.stack([b[0].sqrt(), (b[0] * (1 - b[1])).sqrt() + b[1].sqrt()]),
    }
    expect(
        alpha, kept.sqrt(), "signal scales multiply: sqrt(1 - beta_1), then sqrt((1 - beta_1)(1 - beta_2))", wrong_alpha
    )
    expect(sigma, torch.stack([b[0], left]).sqrt(), "variances: beta_1, then (1 - beta_2) beta_1 + beta_2", wrong_sigma)


@case("ex-01-compose", "whole-schedule")
def _(answer, rng):
    for betas in (linear_schedule().betas, uniform(rng, 1e-4, 0.01, 1500), linear_schedule().betas.float()):
        alpha, sigma = answer(betas)
        kept = torch.exp(torch.log1p(-betas.double()).cumsum(0))
        table = f"a table of {len(betas)} betas, {str(betas.dtype)[6:]}: "
        expect(alpha, kept.sqrt(), table + "alpha must be the square root of the product of (1 - beta)")
        expect(sigma, (1 - kept).sqrt(), table + "alpha^2 + sigma^2 must stay 1")


# -- ex-01-posterior --------------------------------------------------------------------------------------------------

exercise(
    "ex-01-posterior",
    name="posterior",
    lesson=LESSON,
    form=call(
        several(mean=tensor("x_t"), variance=number()),
        lambda rng: _pictures(rng, "x_t", "x0") | dict(zip("ts", preserving_pair(rng), strict=True)),
    ),
)


def _bayes(x_t: Tensor, x0: Tensor, t: NoiseLevel, s: NoiseLevel, b: float | None = None) -> tuple[Tensor, float]:
    """Mean and variance of q(x_s | x_t, x_0) by adding precisions; b: variance of the forward step, if not beta."""
    a = t.alpha / s.alpha
    b = _forward(t, s) if b is None else b
    variance = 1 / (a**2 / b + 1 / s.sigma**2)
    return variance * (a / b * x_t + s.alpha / s.sigma**2 * x0), variance


def _forward(t: NoiseLevel, s: NoiseLevel) -> float:
    """Variance of q(x_t | x_s)."""
    return t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2


SUBTRACTED = "variances are subtracted, not deviations: beta = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2"


@case("ex-01-posterior", "mean")
def _(answer, rng):
    (x_t, x0), (t, s) = _pictures(rng, "x_t", "x0").values(), preserving_pair(rng)
    a, b, right = t.alpha / s.alpha, _forward(t, s), _bayes(x_t, x0, t, s)[0]
    wrong = {
        "the coefficients of x_t and x_0 are swapped": _bayes(x0, x_t, t, s)[0],
        "this is the mean of q(x_s|x_0), which has not seen x_t": s.alpha * x0,
        "this is the mean of q(x_t|x_s) run backwards, which has not seen x_0": x_t / a,
        "this keeps the noise that x_t shows (alpha_s x_0 + sigma_s eps); the posterior does not": (
            s.alpha * x0 + s.sigma * (x_t - t.alpha * x0) / t.sigma
        ),
        "one step back from t to s scales by alpha_t / alpha_s, not by alpha_t": (
            (t.alpha * s.sigma**2 * x_t + s.alpha * b * x0) / t.sigma**2
        ),
        "x_0 enters by alpha_s beta / sigma_t^2; alpha_s is missing": (a * s.sigma**2 * x_t + b * x0) / t.sigma**2,
        "the terms are divided by sigma_t^2; you divided by sigma_t": right * t.sigma,
        "the terms must still be divided by sigma_t^2": right * t.sigma**2,
        SUBTRACTED: _bayes(x_t, x0, t, s, (t.sigma - a * s.sigma) ** 2)[0],
    }
    expect(answer(x_t, x0, t, s)[0], right, "not the mean that Bayes' rule gives for q(x_s|x_t,x_0)", wrong)


@case("ex-01-posterior", "variance")
def _(answer, rng):
    (x_t, x0), (t, s) = _pictures(rng, "x_t", "x0").values(), preserving_pair(rng)
    right, b = _bayes(x_t, x0, t, s)[1], _forward(t, s)
    wrong = {
        "this is the standard deviation; the variance was asked for": math.sqrt(right),
        "this is beta, the variance of the forward step; knowing x_0 shrinks it by sigma_s^2 / sigma_t^2": b,
        "this is the variance of q(x_s|x_0), which has not seen x_t": s.sigma**2,
        "the step is shrunk by the ratio of variances sigma_s^2 / sigma_t^2, not of deviations": b * s.sigma / t.sigma,
        "the ratio is upside down: sigma_s^2 / sigma_t^2 shrinks": b * (t.sigma / s.sigma) ** 2,
        "this is one over the variance, the precision": 1 / right,
        "this is the variance of q(x_t|x_s) seen from x_s, beta alpha_s^2 / alpha_t^2": b * (s.alpha / t.alpha) ** 2,
    }
    say = "Bayes' rule gives the variance {right}, not {got}"
    expect(answer(x_t, x0, t, s)[1], right, say, wrong)


@case("ex-01-posterior", "far-apart")
def _(answer, rng):
    noisy, clean = vp_schedule().level(uniform(rng, 0.97, 1.0)), vp_schedule().level(uniform(rng, 0.003, 0.006))
    middle = vp_schedule().level(0.5)
    for t, s in ((noisy, middle), (middle, clean), (noisy, clean)):
        x_t, x0 = _pictures(rng, "x_t", "x0").values()
        say = f"from sigma = {t.sigma:.3f} to sigma = {s.sigma:.3f}: not what Bayes' rule gives"
        expect(answer(x_t, x0, t, s), _bayes(x_t, x0, t, s), say)


@case("ex-01-posterior", "variance-exploding")
def _(answer, rng):
    for t, s in (general_pair(rng), exploding_pair(rng)):
        x_t, x0 = _pictures(rng, "x_t", "x0").values()
        wrong = {PRESERVING: _bayes(x_t, x0, preserved(t), preserved(s))} if t.alpha < 1 else {}
        say = f"wrong for levels with alpha = {t.alpha:.3g} and {s.alpha:.3g}, sigma = {t.sigma:.3g} and {s.sigma:.3g}"
        expect(answer(x_t, x0, t, s), _bayes(x_t, x0, t, s), say, wrong)


@case("ex-01-posterior", "last-step")
def _(answer, rng):
    for t in (preserving_pair(rng)[1], exploding_pair(rng)[1]):
        x_t, x0 = _pictures(rng, "x_t", "x0").values()
        expect(
            answer(x_t, x0, t, DATA),
            (x0, 0.0),
            "at clean data the posterior is x_0 itself, without variance",
            atol=1e-6,
        )


# -- ex-01-convert ----------------------------------------------------------------------------------------------------

exercise(
    "ex-01-convert",
    name="convert",
    lesson=LESSON,
    form=call(
        tensor("x"),
        lambda rng: {**_noised(rng, _middle(rng))[1], "source": "x0", "target": "eps"},
    ),
)
KINDS = ("x0", "eps", "v", "score")


def _middle(rng: Generator) -> NoiseLevel:
    return vp_schedule().level(uniform(rng, 0.3, 0.5))


def _noised(rng: Generator, level: NoiseLevel) -> tuple[dict[str, Tensor], dict]:
    """What can be said of three noisy pictures, by kind, and the first arguments of ``convert``."""
    x0, eps = normal(rng, 3, 2, 3, 3), normal(rng, 3, 2, 3, 3)
    alpha, sigma = level.like(x0)
    kinds = {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0, "score": -eps / sigma}
    return kinds, {"x": diffuse(x0, level, eps), "level": level, "value": x0}


def _through(x: Tensor, level: tuple, value: Tensor, source: str, target: str) -> Tensor:
    """A conversion by solving x = alpha x0 + sigma eps and value = p x0 + q eps; level: (alpha, sigma)."""
    alpha, sigma = level
    row = {"x0": (1.0, 0.0), "eps": (0.0, 1.0), "v": (-sigma, alpha), "score": (0.0, -1 / sigma)}
    (p, q), (u, w) = row[source], row[target]
    determinant = alpha * q - sigma * p
    return (u * (q * x - sigma * value) + w * (alpha * value - p * x)) / determinant


def _slips(x: Tensor, level: NoiseLevel, kinds: dict[str, Tensor], source: str, target: str) -> dict[str, Tensor]:
    """Diagnosis -> what that mistake makes of a conversion."""
    (alpha, sigma), (x0, eps, v, score) = level.like(x), (kinds[k] for k in KINDS)
    way, value = f"{source} to {target}: ", kinds[source]
    slips = {
        "the sign is wrong": -kinds[target],
        "this is the value as it came": value,
        "alpha and sigma are swapped": _through(x, (sigma, alpha), value, source, target),
    }
    by_target = {
        "score": {
            "the score is -eps / sigma: its length depends on the noise level": -eps,
            "the score is -eps / sigma; you divided by sigma^2": -eps / sigma**2,
        },
        "v": {
            "alpha and sigma are swapped in v = alpha eps - sigma x_0": sigma * eps - alpha * x0,
            "v = alpha eps - sigma x_0 has a minus": alpha * eps + sigma * x0,
        },
    }
    by_pair = {
        ("eps", "x0"): {
            "(x - sigma eps) must still be divided by alpha": x - sigma * eps,
            "x - eps: eps is multiplied by sigma": (x - eps) / alpha,
            "eps is multiplied by sigma, not by the variance": (x - sigma**2 * eps) / alpha,
            "alpha x_0 = x - sigma eps has a minus": (x + sigma * eps) / alpha,
        },
        ("x0", "eps"): {
            "(x - alpha x_0) must still be divided by sigma": x - alpha * x0,
            "(x - alpha x_0) is divided by sigma, not by the variance": (x - alpha * x0) / sigma**2,
            "x_0 is multiplied by alpha": (x - x0) / sigma,
        },
        ("score", "eps"): {
            "eps = -sigma score; you left sigma out": -score,
            "eps = -sigma score; you multiplied by the variance": -(sigma**2) * score,
        },
        ("score", "x0"): {
            "alpha x_0 = x + sigma^2 score; you multiplied the score by sigma": (x + sigma * score) / alpha,
            "alpha x_0 = x + sigma^2 score: the score points to the data": (x - sigma**2 * score) / alpha,
        },
        ("v", "x0"): {
            "alpha x - sigma v: the sign of v is wrong": (alpha * x + sigma * v) / (alpha**2 + sigma**2),
            "alpha x - sigma v = (alpha^2 + sigma^2) x_0: the sum is 1 for variance-preserving levels only": (
                alpha * x - sigma * v
            ),
        },
        ("v", "eps"): {
            "sigma x + alpha v = (alpha^2 + sigma^2) eps: the sum is 1 for variance-preserving levels only": (
                sigma * x + alpha * v
            )
        },
    }
    return {
        way + text: wrong
        for text, wrong in (slips | by_target.get(target, {}) | by_pair.get((source, target), {})).items()
    }


def _converts(answer, rng: Generator, level: NoiseLevel, ways, also=None) -> None:
    kinds, given = _noised(rng, level)
    x = given["x"]
    for source, target in ways:
        wrong = _slips(x, level, kinds, source, target) if source != target else {}
        say = f"{source} to {target} is wrong at alpha = {_shown(level.alpha)}, sigma = {_shown(level.sigma)}"
        more = also(kinds[source], x, source, target) if also else {}
        expect(answer(x, level, kinds[source], source, target), kinds[target], say, wrong | more)


def _shown(value: float | Tensor) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str([round(v, 3) for v in value.tolist()])


@case("ex-01-convert", "x0-and-eps")
def _(answer, rng):
    _converts(answer, rng, _middle(rng), [("x0", "eps"), ("eps", "x0")])


@case("ex-01-convert", "score")
def _(answer, rng):
    ways = [("eps", "score"), ("score", "eps"), ("x0", "score"), ("score", "x0")]
    _converts(answer, rng, _middle(rng), ways)


@case("ex-01-convert", "v")
def _(answer, rng):
    ways = [way for other in ("x0", "eps", "score") for way in ((other, "v"), ("v", other))]
    _converts(answer, rng, _middle(rng), ways)


@case("ex-01-convert", "variance-exploding")
def _(answer, rng):
    for level in (general_pair(rng)[0], exploding_pair(rng)[0], exploding_pair(rng)[1]):
        _converts(answer, rng, level, [(source, target) for source in KINDS for target in KINDS])


@case("ex-01-convert", "one-level-per-sample")
def _(answer, rng):
    level = linear_schedule().level(torch.randperm(600, generator=rng)[:3] + 100)
    first = level.alpha[0], level.sigma[0]

    def misplaced(value, x, source, target):
        return {
            "each sample has its own level; you took the first one's for all": _through(
                x, first, value, source, target
            ),
            "the levels go along the first axis (`level.like(x)`); yours go along the last": _through(
                x, (level.alpha, level.sigma), value, source, target
            ),
        }

    _converts(answer, rng, level, [("x0", "eps"), ("eps", "v"), ("v", "x0"), ("score", "v")], misplaced)


@case("ex-01-convert", "in-float32")
def _(answer, rng):
    level = linear_schedule().level(torch.randint(100, 600, (3,), generator=rng))
    kinds, given = _noised(rng, level)
    for source, target in (("v", "x0"), ("eps", "score")):
        got = answer(given["x"].float(), level, kinds[source].float(), source, target)
        expect(got, kinds[target], f"{source} to {target} is wrong for pictures in float32")


# -- ex-01-ideal ------------------------------------------------------------------------------------------------------

exercise(
    "ex-01-ideal",
    name="ideal_denoiser",
    lesson=LESSON,
    form=call(
        tensor("x"),
        lambda rng: {"x": normal(rng, 3, 2, 3, 4), "level": _middle(rng), "images": normal(rng, 5, 2, 3, 4)},
    ),
)


def _logits(x: Tensor, level: NoiseLevel, images: Tensor) -> Tensor:
    """(B, N) logarithm of each picture's weight."""
    return -(x[:, None] - level.alpha * images).square().flatten(2).sum(2) / (2 * level.sigma**2)


def _blend(weights: Tensor, images: Tensor) -> Tensor:
    return (weights @ images.flatten(1)).unflatten(1, images.shape[1:])


def _misweighed(x: Tensor, level: NoiseLevel, images: Tensor) -> dict[str, Tensor]:
    """Diagnosis -> what that mistake makes of E[x_0 | x_t]."""
    right, (_, c, h, w) = _logits(x, level, images), images.shape
    blend = lambda logits: _blend(logits.softmax(1), images)
    squares, double = (x[:, None] - level.alpha * images).square(), 2 * level.sigma**2
    wrong = {
        "a factor 1/2 is missing in the exponent of the Gaussian": blend(2 * right),
        "the exponent is divided by sigma^2, not by sigma": blend(right * level.sigma),
        "compare x_t with alpha times the images, not with the images": blend(
            _logits(x, NoiseLevel(1.0, level.sigma, 0), images)
        ),
        "the exponent has a minus: near pictures weigh more": blend(-right),
        "this is the nearest picture; the mean of all, each with its weight, was asked for": images[right.argmax(1)],
        "this is the plain mean of the pictures, whatever x_t": images.mean(0).expand_as(x),
        "the weights of one x_t must sum to one over the pictures; yours sum to one over the batch": _blend(
            right.softmax(0), images
        ),
        "the weights must be divided by their sum": _blend(right.exp(), images),
        "this is alpha times the mean; x_0 is not scaled": level.alpha * blend(right),
        "the exponent holds the squared distance, not the distance": blend(
            -(-2 * level.sigma**2 * right).sqrt() / (2 * level.sigma**2)
        ),
    }
    if c * h * w > 1:
        wrong["squared distances add over channels and pixels; you took their mean"] = blend(right / (c * h * w))
        each = (-squares / double).softmax(1)
        wrong["a picture has one weight; you gave each of its pixels one"] = (each * images).sum(1)
    if c > 1:
        wrong["all channels count; you looked at the first"] = blend(_logits(x[:, :1], level, images[:, :1]))
    return wrong


@case("ex-01-ideal", "two-points")
def _(answer, rng):
    x, level = normal(rng, 9, 1, 1, 1), _middle(rng)
    images = torch.tensor([-1.0, 1.0], dtype=torch.float64)[:, None, None, None]
    right = torch.tanh(level.alpha * x / level.sigma**2)
    say = "for data at -1 and +1 the answer is tanh(alpha x / sigma^2)"
    expect(answer(x, level, images), right, say, _misweighed(x, level, images))


@case("ex-01-ideal", "many-pixels")
def _(answer, rng):
    level = vp_schedule().level(uniform(rng, 0.5, 0.6))
    for b, n, shape in ((5, 12, (3, 3, 4)), (1, 7, (1, 4, 4)), (3, 1, (2, 2, 2))):
        images = normal(rng, n, *shape) / 2
        x = diffuse(images[torch.randint(n, (b,), generator=rng)], level, normal(rng, b, *shape))
        say = f"wrong for x of shape {tuple(x.shape)} and images of shape {tuple(images.shape)}"
        right = EmpiricalDenoiser(images)(x, level).x0
        expect(answer(x, level, images), right, say, _misweighed(x, level, images) if n > 1 else {})
    got = answer(x.float(), level, images.float())
    expect(got, right, "wrong for pictures in float32")


@case("ex-01-ideal", "variance-exploding")
def _(answer, rng):
    for level in (general_pair(rng)[1], exploding_pair(rng)[1], exploding_pair(rng)[0]):
        images = normal(rng, 8, 2, 2, 2)
        x = diffuse(images[:4], level, normal(rng, 4, 2, 2, 2))
        wrong = {}
        if level.alpha < 1:
            wrong[PRESERVING] = _blend(_logits(x, preserved(level), images).softmax(1), images)
        right = EmpiricalDenoiser(images)(x, level).x0
        expect(answer(x, level, images), right, f"wrong at alpha = {level.alpha:.3f}, sigma = {level.sigma:.3f}", wrong)


@case("ex-01-ideal", "far-from-the-data")
def _(answer, rng):
    level, images = NoiseLevel(1.0, uniform(rng, 0.005, 0.02), 0), normal(rng, 20, 1, 8, 8)
    x = images[:5] + torch.tensor([0.5, 0.5, 0.5, 0.4, 0.2])[:, None, None, None] * normal(rng, 5, 1, 8, 8)
    logits = _logits(x, level, images)
    plain = lambda shifted: _blend(shifted.exp() / shifted.exp().sum(1, keepdim=True), images)
    underflow = "exp gives 0 or infinity where every image is far: subtract the largest exponent first (softmax does)"
    one = "the largest exponent is to be subtracted for each x_t; you took one for the whole batch"
    wrong = {underflow: plain(logits), one: plain(logits - logits.max())}
    if torch.equal(*(v.isnan() for v in wrong.values())):
        wrong.pop(one)
    expect(answer(x, level, images), images[:5], "with hardly any noise the answer is the nearest image", wrong)


# -- ex-01-weight -----------------------------------------------------------------------------------------------------

exercise(
    "ex-01-weight",
    name="vlb_weight",
    lesson=LESSON,
    form=call(number(), lambda rng: dict(zip("ts", preserving_pair(rng), strict=True))),
)


@case("ex-01-weight", "snr-ratio")
def _(answer, rng):
    for t, s in (preserving_pair(rng), preserving_pair(rng)):
        ratio, root = s.snr / t.snr, math.sqrt(s.snr / t.snr)
        wrong = {
            "the factor 1/2 of the Gaussian KL is missing": ratio - 1,
            "this is the weight of |x_0 - x0_hat|^2; the weight of |eps - eps_hat|^2 was asked for": (s.snr - t.snr)
            / 2,
            "the variance of the reverse step is beta-tilde here, not beta": (1 - 1 / ratio) / 2,
            "t and s are swapped; the sign tells": (1 / ratio - 1) / 2,
            "1 has to be subtracted from the ratio": ratio / 2,
            "the signal-to-noise ratio is alpha^2 / sigma^2; you took alpha / sigma": (root - 1) / 2,
            "1 is the weight of L_simple, not of the bound": 1.0,
            "the ratio itself is what counts, not its logarithm": math.log(ratio) / 2,
        }
        say = "for these levels KL(q(x_s|x_t,x_0) || p(x_s|x_t)) is {right} |eps - eps_hat|^2, not {got}"
        expect(answer(t, s), (ratio - 1) / 2, say, wrong)


@case("ex-01-weight", "neighbours")
def _(answer, rng):
    for time in torch.randint(1, 1000, (3,), generator=rng).tolist():
        t, s = linear_schedule().level(time), linear_schedule().level(time - 1)
        say = f"from time {time} to {time - 1} of the linear schedule it is {{right}}, not {{got}}"
        # float32 loses digits in a ratio near 1
        expect(answer(t, s), (s.snr / t.snr - 1) / 2, say, rtol=1e-3)


@case("ex-01-weight", "variance-exploding")
def _(answer, rng):
    for t, s in (general_pair(rng), exploding_pair(rng)):
        wrong = {PRESERVING: (preserved(s).snr / preserved(t).snr - 1) / 2} if t.alpha < 1 else {}
        levels = f"alpha = {t.alpha:.3f}, {s.alpha:.3f} and sigma = {t.sigma:.3f}, {s.sigma:.3f}"
        say = f"at {levels} it is {{right}}, not {{got}}"
        expect(answer(t, s), (s.snr / t.snr - 1) / 2, say, wrong)


# -- ex-01-commit -----------------------------------------------------------------------------------------------------

exercise("ex-01-commit", name="commitment_time", lesson=LESSON, form=integer())
# The share that is right falls by 0.08 from one time to the next around the answer; five draws for each of 300 digits
# leave it uncertain by 0.011. So no draw gives another time, and the times of all mistakes below differ from it.
TIMES, SHARE, DRAWS = range(0, 1000, 50), 0.7, 5


@cache
def commitment(kept=None, added=None, schedule=clipped_cosine_schedule, share: float = SHARE) -> int:
    """First time, in steps of 50, at which fewer than a share of noised held-out digits are classified right.

    Args:
        kept: what a mistake multiplies a digit by, a function of (alpha, sigma).
        added: what it multiplies the noise by.
        schedule: makes the schedule.
        share: the share.
    """
    from minidiff.data.digits import digits

    world = EmpiricalDenoiser(*digits("train"), bandwidth=0.25)
    images, labels = (v[:300].repeat(DRAWS, *[1] * (v.ndim - 1)) for v in digits("heldout"))
    images, eps = images.double(), normal(Generator().manual_seed(11), *images.shape)

    def too_few(time: int) -> bool:
        level = schedule().level(time)
        alpha, sigma = level.alpha, level.sigma
        x = (kept(alpha, sigma) if kept else alpha) * images + (added(alpha, sigma) if added else sigma) * eps
        return bool((world.log_prob_label(x, level).argmax(1) == labels).double().mean() < share)

    return TIMES[bisect(TIMES, False, key=too_few)]  # the share falls with time


SQUARED_ALPHA, SQUARED_SIGMA = (lambda alpha, sigma: alpha**2), (lambda alpha, sigma: sigma**2)


@case("ex-01-commit", "a-time", points=0)
def _(answer):
    if answer == TIMES.index(commitment()):
        raise Mistake("this is the place in the list of times; the time itself was asked for")
    assert answer in TIMES, "the answer is one of the times 0, 50, ..., 950"


@case("ex-01-commit", "measured", points=2)
def _(answer):
    right = commitment()
    end = "time runs from data (0) to noise (999); this is counted from the other end"
    wrong = {
        end: 1000 - right,
        end + ", 950": 950 - right,
        "this is the last time at which the share is still reached; the first at which it is not was asked for": right
        - 50,
        "this is where fewer than half are right; 70 % was asked for": lambda: commitment(share=0.5),
        "this is where fewer than 30 % are right; 70 % was asked for": lambda: commitment(share=0.3),
        "at that time nearly all digits are classified right": 0,
        "you noised with alpha-bar for alpha; alpha is its square root": lambda: commitment(SQUARED_ALPHA),
        "you noised with the variance for the standard deviation": lambda: commitment(None, SQUARED_SIGMA),
        "you noised with alpha^2 and sigma^2 for alpha and sigma": lambda: commitment(SQUARED_ALPHA, SQUARED_SIGMA),
        "this is the answer for the linear schedule": lambda: commitment(schedule=linear_schedule),
    }
    expect(answer, right, "not what is measured with five draws of the noise for each of the 300 digits", wrong)


# -- ex-01-levels ------------------------------------------------------------------------------------------------------

INNER, ENDS = 11, (-12.0, 9.0)
HALF_WAY, SPENT = 1.2, 0.55  # nats beyond the entropy: equal pieces give 2.53, the best levels 0.49
exercise("ex-01-levels", name="log_snrs", lesson=LESSON, form=listed(number(), INNER))


@cache
def _pixel() -> GaussianMixtureDenoiser:
    """The lesson's pixel of five grey values."""
    weights = torch.tensor([0.1, 0.3, 0.05, 0.35, 0.2], dtype=torch.float64)
    return GaussianMixtureDenoiser(torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None], 0.0, weights)


def _least_error(log_snr: Tensor) -> Tensor:
    """E |x_0 - E[x_0 | x_t]|^2 at each level, by the rectangle rule over x_t."""
    x, n = torch.linspace(-5, 5, 1501, dtype=torch.float64), len(log_snr)
    each = log_snr.repeat_interleave(len(x))
    level, x = NoiseLevel(each.sigmoid().sqrt(), (-each).sigmoid().sqrt(), 0 * each), x.repeat(n)[:, None]
    density = _pixel().log_prob(x, level).exp().view(n, -1)
    return (density * _pixel().posterior_variance(x, level).view(n, -1)).sum(1) / density.sum(1)


def excess(inner: Sequence[float]) -> float:
    """Nats by which the bound of a chain, each step priced at its noisier end, exceeds the entropy of the pixel."""
    levels = torch.tensor([ENDS[0], *inner, ENDS[1]], dtype=torch.float64)
    error = _least_error(levels)
    weights = _pixel().weights
    bound = (0.5 * levels.exp().diff() * error[:-1]).sum()
    return (bound + (weights * weights.log()).sum()).item()


@case("ex-01-levels", "a-chain", points=0)
def _(answer):
    chain = [ENDS[0], *answer, ENDS[1]]
    if all(a > b for a, b in pairwise(answer)) and len(set(answer)) == INNER:
        raise Mistake("these numbers fall; from noise to data the log-SNR rises")
    rises = all(a < b for a, b in pairwise(chain))
    assert rises, f"eleven rising numbers between {ENDS[0]:g} and {ENDS[1]:g} are wanted"


@case("ex-01-levels", "half-way")
def _(answer):
    found = excess(answer)
    assert found < HALF_WAY, f"this chain exceeds the entropy by {found:.2f} nats; equal pieces by 2.53"


@case("ex-01-levels", "well-spent", points=2)
def _(answer):
    found = excess(answer)
    assert found < SPENT, f"this chain exceeds the entropy by {found:.3f} nats; {SPENT} is wanted"
