"""Checks of lesson 03: a classifier's gradient, the guided denoiser, tilted steps and tilted densities."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from minidiff.course.exercises import case, exercise
from minidiff.course.outcomes import Mistake
from minidiff.exact import GaussianMixtureDenoiser
from minidiff.guidance import classifier_guidance, grad_log_prob
from minidiff.process import beta, beta_tilde, diffuse, posterior_mean
from minidiff.random import randn
from minidiff.sampler import heun, sample
from minidiff.schedule import DATA, NoiseLevel, cosine_schedule, linear_schedule

LESSON = "03_classifier_guidance"


@cache
def _world() -> GaussianMixtureDenoiser:
    """Five unequal blobs of three classes in the plane."""
    means = torch.tensor([[-1.0, 0.2], [0.4, 1.0], [0.9, -0.6], [-0.3, -1.1], [0.1, 0.1]], dtype=torch.float64)
    variance, weights = torch.tensor([0.05, 0.1, 0.08, 0.06, 0.03]), torch.tensor([0.3, 0.2, 0.2, 0.2, 0.1])
    return GaussianMixtureDenoiser(means, variance, weights, labels=[0, 1, 1, 2, 0])


def _noisy(level: NoiseLevel, n: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return diffuse(_world().sample(n, generator), level, randn((n, 2), generator, torch.float64))


def _levels() -> list[NoiseLevel]:
    return [cosine_schedule().level(t) for t in (0.25, 0.5, 0.8)]


def _gradient(x: Tensor, level: NoiseLevel, label: int) -> Tensor:
    """The right answer by another route: the difference of two scores."""
    return _world()(x, level, label).score - _world()(x, level).score


def _close(a: Tensor, b: Tensor, tolerance: float = 1e-6) -> bool:
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    return a.shape == b.shape and bool(((a - b).abs() <= tolerance * (1 + b.abs())).all())


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-03-class-gradient", name="class_gradient", lesson=LESSON)


@case("ex-03-class-gradient", "difference-of-scores")
def _(answer):
    for level in _levels():
        x = _noisy(level, 1)
        got, right = answer(_world(), x, level, 1), _gradient(x, level, 1)
        probability = _world().classifier(1)(x, level).exp()
        if _close(got, _world()(x, level, 1).score):
            raise Mistake("this is the gradient of log p(x_t | c); the classifier's own part leaves log p(x_t) out")
        if _close(got, probability * right) and not _close(probability * right, right):
            raise Mistake("you differentiated p(c | x_t), not its logarithm")
        if _close(got, -right):
            raise Mistake("the sign is wrong: the gradient points to where the class is more likely")
        assert _close(got, right), "the gradient must equal score(x_t | c) - score(x_t), by Bayes' rule"


@case("ex-03-class-gradient", "same-noise-level")
def _(answer):
    level = _levels()[2]
    x = _noisy(level)
    got = [answer(_world(), x[i : i + 1], level, 0) for i in range(len(x))]
    clean = grad_log_prob(lambda y, _: _world().classifier(0)(y, DATA), x, level)
    if all(_close(g, c[None]) for g, c in zip(got, clean, strict=True)):
        raise Mistake("you asked about clean pictures; the classifier must be told how noisy x_t is")
    right = _gradient(x, level, 0)
    assert all(_close(g, r[None]) for g, r in zip(got, right, strict=True)), "wrong at a high noise level"


@case("ex-03-class-gradient", "each-sample-its-own")
def _(answer):
    level = _levels()[1]
    x = _noisy(level)
    got, right = torch.as_tensor(answer(_world(), x, level, 2)), _gradient(x, level, 2)
    assert got.shape == x.shape, f"the gradient must have the shape of x, {tuple(x.shape)}, not {tuple(got.shape)}"
    if _close(got, right / len(x)):
        raise Mistake("you averaged log p over the batch before differentiating, so guidance fades as the batch grows")
    assert _close(got, right), "a sample's gradient must not depend on the batch it is in"


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-03-guide", name="guide", lesson=LESSON)


def _guided(answer, scale: float, level: NoiseLevel, x: Tensor) -> Tensor:
    return answer(_world(), lambda y, at: _gradient(y, at, 1), scale)(x, level).eps


@case("ex-03-guide", "scale-0-is-unguided")
def _(answer):
    level = _levels()[1]
    x = _noisy(level)
    got = _guided(answer, 0.0, level, x)
    if _close(got, _world()(x, level, 1).eps):
        raise Mistake("you used 1 + s where s belongs: at s = 0 nothing may change")
    assert _close(got, _world()(x, level).eps), "at s = 0 the denoiser must come back as it was"


@case("ex-03-guide", "scale-1-is-conditional")
def _(answer):
    for level in _levels():
        x = _noisy(level)
        got, eps, gradient = _guided(answer, 1.0, level, x), _world()(x, level).eps, _gradient(x, level, 1)
        if _close(got, eps + level.sigma * gradient):
            raise Mistake("the sign is wrong: eps is -sigma times the score, so the gradient is subtracted")
        if _close(got, eps - gradient):
            raise Mistake("you subtracted the gradient itself; eps = -sigma score, so it comes with a factor sigma")
        if _close(got, eps - level.sigma**2 * gradient):
            raise Mistake("you used the variance where the standard deviation belongs")
        assert _close(got, _world()(x, level, 1).eps), "at s = 1 the guided denoiser must be the conditional one"


@case("ex-03-guide", "linear-in-the-scale")
def _(answer):
    level = _levels()[1]
    x = _noisy(level)
    uncond, cond = _world()(x, level).eps, _world()(x, level, 1).eps
    assert _close(_guided(answer, 3.0, level, x), uncond + 3 * (cond - uncond)), (
        "s = 3 must shift eps three times as far as s = 1"
    )


@case("ex-03-guide", "one-level-per-sample")
def _(answer):
    level = cosine_schedule().level(torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64))
    x = _noisy(level, 3)
    got = _guided(answer, 1.0, level, x)
    assert _close(got, _world()(x, level, 1).eps), (
        "a level may hold one sigma per sample; level.like(x) gives alpha and sigma in a shape that multiplies x"
    )


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-03-tilted-step", name="tilted_step", lesson=LESSON)
TILTS = [(0.3, 0.04, 1.2, 0.0, 1.0), (-1.0, 0.5, 0.7, 0.9, 1.0), (0.2, 0.3, -1.5, 0.6, 4.0), (0.0, 0.1, 2.0, 5.0, 2.0)]


def _brute_force(mean: float, variance: float, gradient: float, curvature: float, scale: float) -> tuple[float, float]:
    """Mean and variance of N(mean, variance) times exp(s (g d - k d^2 / 2)), d = x - mean, on a grid."""
    d = torch.linspace(-14, 14, 40001, dtype=torch.float64)
    weight = (scale * (gradient * d - curvature * d**2 / 2) - d**2 / (2 * variance)).softmax(0)
    centre = (weight * d).sum()
    return (mean + centre).item(), (weight * (d - centre) ** 2).sum().item()


@case("ex-03-tilted-step", "straight-tilt-is-the-mean-shift")
def _(answer):
    mean, variance, gradient, _, scale = TILTS[2]
    got = float(answer(mean, variance, gradient, 0.0, scale)[0])
    if abs(got - (mean + scale * gradient)) < 1e-6:
        raise Mistake("you left Sigma out: a shift by the bare gradient does not even vanish as the step does")
    if abs(got - (mean + math.sqrt(variance) * scale * gradient)) < 1e-6:
        raise Mistake("you used the standard deviation where the variance belongs")
    assert abs(got - (mean + variance * scale * gradient)) < 1e-6, "without curvature the mean must move by Sigma s g"


@case("ex-03-tilted-step", "mean-by-brute-force")
def _(answer):
    for tilt in TILTS:
        got, right = float(answer(*tilt)[0]), _brute_force(*tilt)[0]
        if tilt[3] and abs(got - (tilt[0] + tilt[1] * tilt[4] * tilt[2])) < 1e-6:
            raise Mistake("this is the mean of the straight tilt; curvature also shortens the shift")
        assert abs(got - right) < 1e-5, f"mean {got:.5f} for {tilt}; summing over a fine grid gives {right:.5f}"


@case("ex-03-tilted-step", "variance-by-brute-force")
def _(answer):
    for tilt in TILTS:
        got, right = float(answer(*tilt)[1]), _brute_force(*tilt)[1]
        if abs(got - (1 / tilt[1] + tilt[3])) < 1e-6 or abs(got - (1 / tilt[1] + tilt[4] * tilt[3])) < 1e-6:
            raise Mistake("you returned the precision, one over the variance")
        assert abs(got - right) < 1e-5, f"variance {got:.5f} for {tilt}; summing over a fine grid gives {right:.5f}"


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-03-shift-ratio", name="shift_ratio", lesson=LESSON)


@case("ex-03-shift-ratio", "one-over-root-one-minus-beta")
def _(answer):
    schedule = linear_schedule()
    for time in (5, 400, 999):
        t, s = schedule.level(time), schedule.level(time - 1)
        got, right = float(answer(t, s, beta(t, s))), 1 / math.sqrt(1 - schedule.betas[time])
        if abs(got * right - 1) < 1e-9:
            raise Mistake("this is the ratio the other way round: mean shift over score shift")
        assert abs(got - right) < 1e-9, "with Sigma = beta in one step of the table the ratio is 1 / sqrt(1 - beta_t)"


@case("ex-03-shift-ratio", "measured-on-a-mixture")
def _(answer):
    levels = linear_schedule().levels(25)
    for i in (0, 8, 20):
        t, s = levels[i], levels[i + 1]
        x, variance = _noisy(t), beta_tilde(t, s)
        moved = posterior_mean(x, _world()(x, t, 1).x0, t, s) - posterior_mean(x, _world()(x, t).x0, t, s)
        right = (moved / (variance * _gradient(x, t, 1))).mean().item()
        got = float(answer(t, s, variance))
        assert abs(got - right) < 1e-6 * right, f"{got:.4f}, but on a mixture with Sigma = beta-tilde it is {right:.4f}"


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-03-acceptance", name="acceptance", lesson=LESSON)


def _weights(answer, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Clean points, what the answer accepts them with, and their log p(c | x)."""
    x = _world().sample(12, torch.Generator().manual_seed(5))
    return x, torch.as_tensor(answer(_world(), x, 1, scale)), _world().classifier(1)(x, DATA)


@case("ex-03-acceptance", "tilts-the-density")
def _(answer):
    for scale in (2.0, 3.5):
        x, got, log_p = _weights(answer, scale)
        assert got.shape == (12,), f"one probability per point, shape (12,), not {tuple(got.shape)}"
        if _close(got, (scale * log_p).exp()):
            raise Mistake("p(x | c) already holds one power of p(c | x), so only s - 1 of them are left to pay")
        made = got.double().log() + _world().log_prob(x, DATA, 1)
        wanted = _world().log_prob(x, DATA) + scale * log_p
        off = (made - wanted) - (made - wanted)[0]
        assert bool((off.abs() < 1e-6).all()), "p(x | c) times this is not proportional to p(x) p(c | x)^s"


@case("ex-03-acceptance", "is-a-probability")
def _(answer):
    for scale in (1.0, 4.0):
        got = _weights(answer, scale)[1]
        assert bool(((got >= 0) & (got <= 1)).all()), "a probability of acceptance must lie between 0 and 1"


@case("ex-03-acceptance", "scale-1-accepts-all")
def _(answer):
    got = _weights(answer, 1.0)[1]
    assert _close(got, torch.ones(12, dtype=torch.float64)), "at s = 1 the tilted density is p(x | c) itself"


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-03-overshoot", name="overshoot", lesson=LESSON)


@cache
def measure_overshoot(scale: float = 4.0) -> tuple[float, float]:
    """Guided mean minus tilted mean of the exercise's world: in the tilted density's deviations, and as it is.

    Nothing is drawn: the chain starts from the quantiles of the noise, and the tilted density is summed over a grid.
    """
    world = GaussianMixtureDenoiser(torch.tensor([[-1.0], [1.0]]), 0.25)
    levels = cosine_schedule().levels(100)
    start = torch.special.ndtri((torch.arange(501, dtype=torch.float64) + 0.5) / 501)[:, None]
    guided = sample(heun(), classifier_guidance(world, world.classifier(1), scale), levels, levels[0].sigma * start)
    grid = torch.linspace(-6, 6, 4001, dtype=torch.float64)[:, None]
    weight = (world.log_prob(grid, DATA) + scale * world.classifier(1)(grid, DATA)).softmax(0)
    mean = (weight * grid[:, 0]).sum()
    deviation = (weight * (grid[:, 0] - mean) ** 2).sum().sqrt()
    gap = (guided.mean() - mean).item()
    return gap / deviation.item(), gap


@case("ex-03-overshoot", "in-standard-deviations")
def _(answer):
    assert isinstance(answer, int | float | Tensor), f"one number is wanted, not {type(answer).__name__}"
    got, (right, gap) = float(answer), measure_overshoot()
    if abs(got - gap) < 0.06:
        raise Mistake("this is the gap of the means itself; divide it by the tilted density's standard deviation")
    if abs(got - measure_overshoot(5.0)[0]) < 0.06:
        raise Mistake("this is what s = 5 does: you used 1 + s where s belongs")
    if abs(got + right) < 0.06:
        raise Mistake("the sign is wrong: guided minus tilted was asked for")
    assert abs(got - right) < 0.06, (
        f"{got:.3f} is not what a chain of 100 steps gives; more samples, or another sampler?"
    )
