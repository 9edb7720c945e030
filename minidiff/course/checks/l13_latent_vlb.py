"""Checks of lesson 13: three terms, a cross entropy, a mixed prediction, the scatter of a draw, two weightings, where
to look."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from minidiff.course.comparing import expect, normal, uniform
from minidiff.course.exercises import case, exercise
from minidiff.course.forms import call, number, several, taking, tensor
from minidiff.course.outcomes import Mistake
from minidiff.exact import GaussianMixtureDenoiser
from minidiff.schedule import NoiseLevel

LESSON = "13_latent_vlb"

# -- ex-13-terms ------------------------------------------------------------------------------------------------------

Terms = tuple[Tensor, Tensor, Tensor]


def _encoded(rng: Generator, B: int = 4, N: int = 5, D: int = 3) -> dict:
    return {
        "x": normal(rng, B, N),
        "W": normal(rng, N, D),
        "noise": uniform(rng, 0.2, 0.6),
        "mean": normal(rng, B, D),
        "variance": uniform(rng, 0.1, 0.5, B, D),
    }


each = lambda name: tensor(lambda given: given[name].shape[:1])
exercise(
    "ex-13-terms",
    name="three_terms",
    lesson=LESSON,
    form=call(several(reconstruction=each("x"), negative_entropy=each("x"), cross_entropy=each("x")), _encoded),
)


def _terms(x, W, noise, mean, variance, *, spread=1.0, constant=1.0, sign=1.0, scale=None, of=None) -> Terms:
    """The three terms, or what a slip makes of them."""
    scale = noise if scale is None else scale
    far = (x - mean @ W.T).square().sum(1) + spread * (variance @ W.square().sum(0))
    reconstruction = far / (2 * scale) + x.shape[1] / 2 * constant * math.log(2 * math.pi * scale)
    deviations = variance if of is None else of
    negative = -sign * (deviations.log() + math.log(2 * math.pi * math.e)).sum(1) / 2
    cross = (mean.square() + spread * variance + constant * math.log(2 * math.pi)).sum(1) / 2
    return reconstruction, negative, cross


def _term(answer: Callable, rng: Generator, which: int, mistakes: Callable[[dict], dict[str, Tensor]], **sizes) -> None:
    given = _encoded(rng, **sizes)
    name = ("reconstruction", "negative entropy", "cross entropy")[which]
    wrong = mistakes(given)
    expect(answer(**given)[which], _terms(**given)[which], f"the {name} is wrong", wrong)


@case("ex-13-terms", "negative-entropy")
def _(answer, rng):
    mistakes = lambda given: {
        "this is the entropy; the bound has its negative": _terms(**given, sign=-1.0)[1],
        "variance is a variance: its logarithm enters with one half, as it is": _terms(
            **given, of=given["variance"] ** 2
        )[1],
        "you took the root of the variance, and its logarithm with one half again": _terms(
            **given, of=given["variance"].sqrt()
        )[1],
        "the entropy of a Gaussian has 2 pi e in it, not 2 pi": _terms(**given)[1] + given["mean"].shape[1] / 2,
    }
    _term(answer, rng, 1, mistakes)


@case("ex-13-terms", "reconstruction", assumes=())
def _(answer, rng):
    mistakes = lambda given: {
        "the spread of z is missing: this is the reconstruction of the mean": _terms(**given, spread=0.0)[0],
        "noise is the variance of the decoder, not its deviation": _terms(**given, scale=given["noise"] ** 2)[0],
        "the constant with 2 pi is missing": _terms(**given, constant=0.0)[0],
    }
    _term(answer, rng, 0, mistakes)
    _term(answer, rng, 0, mistakes, B=1, N=2, D=4)


@case("ex-13-terms", "cross-entropy", assumes=())
def _(answer, rng):
    mistakes = lambda given: {
        "the spread of z is missing: this is -log p of the mean": _terms(**given, spread=0.0)[2],
        "the constant with 2 pi is missing": _terms(**given, constant=0.0)[2],
        "this is the divergence from the prior: the entropy is in it already": sum(_terms(**given)[1:]),
    }
    _term(answer, rng, 2, mistakes)


# -- ex-13-cross ------------------------------------------------------------------------------------------------------


def _half(z_t: Tensor, variance: Tensor) -> Tensor:
    """Some prior that looks at both of its arguments, each sample by itself."""
    return (0.6 + 0.2 * variance[:, None]) * torch.tanh(z_t) + 0.1


def _levels(rng: Generator, B: int = 5, D: int = 3) -> dict:
    low, high = uniform(rng, 0.002, 0.01), uniform(rng, 0.95, 0.99)
    share = uniform(rng, 0.1, 0.9, B)
    return {
        "predict": taking("z_t variance", _half),
        "z_0": normal(rng, B, D),
        "eps": normal(rng, B, D),
        "variance": (math.log(low) + share * math.log(high / low)).exp(),
        "low": low,
        "high": high,
    }


exercise("ex-13-cross", name="cross_terms", lesson=LESSON, form=call(each("z_0"), _levels))


def _cross(
    z_0, eps, variance, low, high, *, alpha=None, reduce=None, power=1.0, half=0.5, beside=1.0, at=None, **_
) -> Tensor:
    """The estimate, or what a slip makes of it."""
    column = variance[:, None]
    alpha = (1 - column).sqrt() if alpha is None else alpha(column)
    z_t = alpha * z_0 + column.sqrt() * eps
    gap = (reduce or (lambda square: square.sum(1)))((eps - _half(z_t, variance)).square())
    constant = z_0.shape[1] / 2 * math.log(2 * math.pi * math.e * (low if at is None else at))
    return half * math.log(high / low) / (1 - variance) ** power * gap + beside * constant


def _expect_cross(answer: Callable, given: dict) -> None:
    low = given["low"]
    mistakes = {
        "the square is missing: the entropy of Gaussian noise has log sigma^2, not log sigma": _cross(
            **given, at=low**0.5
        ),
        "the constant is missing": _cross(**given, beside=0.0),
        "the constant belongs to the first level, low, not to high": _cross(**given, at=given["high"]),
        "this is the mean over the numbers of a latent; the cross entropy is a sum": _cross(
            **given, reduce=lambda square: square.mean(1)
        ),
        "1 / (1 - variance) is missing: log variance is not minus the log signal-to-noise ratio": _cross(
            **given, power=0.0
        ),
        "1 - variance belongs into the denominator": _cross(**given, power=-1.0),
        "the half is missing": _cross(**given, half=1.0),
        "alpha is the root of 1 - sigma^2": _cross(**given, alpha=lambda v: 1 - v),
        "alpha is not 1 - sigma": _cross(**given, alpha=lambda v: 1 - v.sqrt()),
        "nothing was divided by the density: the length of the interval of log variance is missing": _cross(
            **given, half=0.5 / math.log(given["high"] / low)
        ),
    }
    expect(answer(**given), _cross(**given), "not the estimate of this level", mistakes)


@case("ex-13-cross", "one-level-a-sample")
def _(answer, rng):
    _expect_cross(answer, _levels(rng))
    _expect_cross(answer, _levels(rng, B=1, D=6))


# -- ex-13-mixed ------------------------------------------------------------------------------------------------------


def _mixing(rng: Generator, B: int = 4, D: int = 3) -> dict:
    return {
        "z_t": normal(rng, B, D),
        "sigma": uniform(rng, 0.2, 0.9, B),
        "network": normal(rng, B, D),
        "logit": normal(rng, D) - 1,
    }


exercise("ex-13-mixed", name="mixed", lesson=LESSON, form=call(tensor("z_t"), _mixing))


def _blend(z_t, sigma, network, logit, *, share=torch.sigmoid, simple=None) -> Tensor:
    a = share(logit)
    return (1 - a) * (sigma[:, None] * z_t if simple is None else simple) + a * network


def _expect_mixed(answer: Callable, given: dict) -> None:
    z_t, sigma = given["z_t"], given["sigma"]
    mistakes = {
        "a and 1 - a are exchanged": _blend(**given, share=lambda logit: (-logit).sigmoid()),
        "the logit is no share yet: its sigmoid is": _blend(**given, share=lambda logit: logit),
        "the Normal prior's prediction is sigma z_t, not z_t": _blend(**given, simple=z_t),
        "z_t is not divided by sigma: the prediction of the noise is sigma z_t": _blend(
            **given, simple=z_t / sigma[:, None]
        ),
        "alpha is not asked for: the covariance of z_t and eps is sigma": _blend(
            **given, simple=(1 - sigma**2).sqrt()[:, None] * z_t
        ),
    }
    expect(answer(**given), _blend(**given), "not the mixture of both", mistakes)


@case("ex-13-mixed", "each-number-its-share")
def _(answer, rng):
    _expect_mixed(answer, _mixing(rng))
    _expect_mixed(answer, _mixing(rng, B=3, D=3))
    _expect_mixed(answer, _mixing(rng, B=1, D=5))


@case("ex-13-mixed", "extreme-logits")
def _(answer, rng):
    given = _mixing(rng) | {"logit": torch.tensor([-800.0, 0.0, 800.0], dtype=torch.float64)}
    _expect_mixed(answer, given)


# -- ex-13-scatter ----------------------------------------------------------------------------------------------------


def _cells(rng: Generator, M: int = 6) -> dict:
    return {"gain": uniform(rng, 0.2, 3.0, M), "density": uniform(rng, 0.3, 2.0, M), "dims": 5}


exercise("ex-13-scatter", name="scatter", lesson=LESSON, form=call(number(), _cells))


def _scatter(gain: Tensor, density: Tensor, dims: int, *, normalise=True, chi=None, less=1.0, inverse=False) -> float:
    density = density / density.mean() if normalise else density
    second = (gain.square() * density if inverse else gain.square() / density).mean() / gain.mean() ** 2
    return ((1 + 2 / dims if chi is None else chi) * second - less).item()


def _expect_scatter(answer: Callable, given: dict) -> None:
    dims = given["dims"]
    mistakes = {
        "the density does not integrate to one yet": _scatter(**given, normalise=False),
        "the scatter of the chi-square is missing": _scatter(**given, chi=1.0),
        "this is the second moment over the squared mean; the variance has one less": _scatter(**given, less=0.0),
        "the second moment is divided by the density, not multiplied": _scatter(**given, inverse=True),
        "the square of a chi-square has the mean D^2 + 2 D: 2 / D, not 2": _scatter(**given, chi=3.0),
        "the scatter of the chi-square was added, but it multiplies": _scatter(**given, chi=1.0) + 2 / dims,
    }
    say = "variance over squared mean is {got} where it must be {right}"
    expect(answer(**given), _scatter(**given), say, mistakes)


@case("ex-13-scatter", "any-proposal")
def _(answer, rng):
    _expect_scatter(answer, _cells(rng))
    _expect_scatter(answer, _cells(rng, M=3) | {"dims": 1})
    gain = uniform(rng, 0.2, 3.0, 7)
    _expect_scatter(answer, {"gain": gain, "density": 5 * gain, "dims": 16})


# -- ex-13-route ------------------------------------------------------------------------------------------------------


def _weighted(rng: Generator, B: int = 4, D: int = 3) -> dict:
    alpha = uniform(rng, 0.3, 0.9, B)
    return {
        "theta": normal(rng, D),
        "z_0": normal(rng, B, D),
        "eps": normal(rng, B, D),
        "alpha": alpha,
        "sigma": (1 - alpha**2).sqrt(),
        "w_q": uniform(rng, 1.0, 4.0, B),
        "w_p": uniform(rng, 0.2, 0.8, B),
    }


exercise(
    "ex-13-route",
    name="routed_gradients",
    lesson=LESSON,
    form=call(several(grad_z_0=tensor("z_0"), grad_theta=tensor("theta")), _weighted),
)


def _routed(theta, z_0, eps, alpha, sigma, w_q, w_p, *, chain=True, mean=True, half=1.0) -> tuple[Tensor, Tensor]:
    """Both gradients, or what a slip makes of them."""
    z_t = alpha[:, None] * z_0 + sigma[:, None] * eps
    error, count = theta * z_t - eps, len(z_0) if mean else 1
    inner = alpha[:, None] if chain else 1.0
    grad_z_0 = half * w_q[:, None] * inner * theta * error / count
    return grad_z_0, half * (w_p[:, None] * error * z_t).sum(0) / count


def _expect_routed(answer: Callable, given: dict, what: int) -> None:
    one = lambda name: given | {"w_q": given[name], "w_p": given[name]}
    mistakes = {
        "this is the gradient at z_t: alpha, of the way from z_0, is missing": _routed(**given, chain=False)[what],
        "the loss of the batch is the mean of its samples, not the sum": _routed(**given, mean=False)[what],
        "the half of the loss is missing": _routed(**given, half=2.0)[what],
        "this has the other's weight": _routed(**one(("w_p", "w_q")[what]))[what],
        "the sign is wrong": -_routed(**given)[what],
        "this is zero: the latent was detached": torch.zeros_like(_routed(**given)[what]),
    }
    name = ("z_0", "theta")[what]
    expect(answer(**given)[what], _routed(**given)[what], f"the gradient with respect to {name} is wrong", mistakes)


@case("ex-13-route", "encoder")
def _(answer, rng):
    _expect_routed(answer, _weighted(rng), 0)
    _expect_routed(answer, _weighted(rng, B=1, D=5), 0)


@case("ex-13-route", "prior", assumes=())
def _(answer, rng):
    _expect_routed(answer, _weighted(rng), 1)
    _expect_routed(answer, _weighted(rng, B=1, D=5), 1)


@case("ex-13-route", "a-weight-of-zero")
def _(answer, rng):
    given = _weighted(rng)
    given["w_p"][1] = 0.0
    got = answer(**given)
    if not all(part.isfinite().all() for part in got):
        raise Mistake("where the prior's weight is 0 the ratio of the weights is not finite")
    expect(got[0], _routed(**given)[0], "the encoder's gradient must not depend on the prior's weight")
    expect(got[1], _routed(**given)[1], "the gradient with respect to theta is wrong")


# -- ex-13-where ------------------------------------------------------------------------------------------------------

BINS, LOW, HIGH, LIMIT, CLUMP = 12, 0.002, 0.99996, 7.2, 0.02
FINE = 20  # levels in a bin

exercise("ex-13-where", name="looks", lesson=LESSON, form=tensor((BINS,), "float"))


def clumps() -> GaussianMixtureDenoiser:
    """Latents of one number in three narrow clumps."""
    return GaussianMixtureDenoiser(
        torch.tensor([[-1.0], [0.2], [1.0]], dtype=torch.float64), CLUMP**2, torch.tensor([0.3, 0.3, 0.4])
    )


def moments() -> tuple[Tensor, Tensor]:
    """(BINS,) mean and mean square of the integrand of the cross entropy, in each bin of log variance.

    The integrand per bin's width is (1 - sigma^2)^-1 |eps - eps-hat|^2 / 2 with the right eps-hat, times the length of
    the interval of log variance; its moments over z_t are integrals on a grid.
    """
    world, step = clumps(), 14 / 2000
    line = torch.linspace(-7, 7, 2001, dtype=torch.float64)[:, None]
    ends = torch.linspace(math.log(LOW), math.log(HIGH), BINS * FINE + 1, dtype=torch.float64)
    means, squares = [], []
    for log_variance in ((ends[1:] + ends[:-1]) / 2).tolist():
        variance = math.exp(log_variance)
        level = NoiseLevel(math.sqrt(1 - variance), math.sqrt(variance), 0)
        second, fourth = _error_moments(world, line, level)
        p, factor = world.log_prob(line, level).exp() * step, math.log(HIGH / LOW) / (1 - variance) / 2
        means.append(factor * (p * second).sum().item())
        squares.append(factor**2 * (p * fourth).sum().item())
    return tuple(torch.tensor(values, dtype=torch.float64).reshape(BINS, FINE).mean(1) for values in (means, squares))


def _error_moments(world: GaussianMixtureDenoiser, line: Tensor, level: NoiseLevel) -> tuple[Tensor, Tensor]:
    """E (eps - eps-hat)^2 and its fourth power given z_t, for each point of the line."""
    alpha, sigma = level.alpha, level.sigma
    total = alpha**2 * world.variance + sigma**2
    away = (line - alpha * world.means.T).square()
    share = (world.weights.log() - away / (2 * total)).softmax(1)
    x0 = world.means.T + alpha * world.variance / total * (line - alpha * world.means.T)
    mean = (line - alpha * x0) / sigma
    spread = alpha**2 * world.variance / total
    apart = mean - (share * mean).sum(1, keepdim=True)
    second = (share * (spread + apart**2)).sum(1)
    return second, (share * (3 * spread**2 + 6 * spread * apart**2 + apart**4)).sum(1)


def relative_variance(masses: Tensor) -> float:
    """Variance over squared mean of one draw, where bins are drawn with these masses."""
    mean, square = moments()
    density = masses / masses.sum() * BINS
    return ((square / density).mean() / mean.mean() ** 2 - 1).item()


@case("ex-13-where", "masses", points=0.0)
def _(answer):
    if not bool((answer > 0).all()):
        raise Mistake("every bin must be drawn now and then: its mass is positive")
    assert bool(answer.isfinite().all()), "masses are finite"


@case("ex-13-where", "scatters-little")
def _(answer):
    found = relative_variance(answer)
    if found < LIMIT:
        return
    square = moments()[1]
    for wrong, diagnosis in (
        (torch.ones(BINS), "all bins alike is log variance uniform, the best for Normal latents; these are none"),
        (square, "the best masses go with the root of the mean square, not with the mean square"),
    ):
        # looks that learners printed and typed again, with three digits, are still the same mistake
        if torch.allclose(answer / answer.sum(), (wrong / wrong.sum()).to(answer), rtol=1e-3):
            raise Mistake(diagnosis)
    raise AssertionError(f"variance over squared mean is {found:.2f}; below {LIMIT} was asked for")
