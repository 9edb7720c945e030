"""Checks of lesson 03: a classifier's gradient, the guided denoiser, tilted steps and tilted densities."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Generator, Tensor

from minidiff.course.comparing import (
    PRESERVING,
    close,
    expect,
    exploding_pair,
    general_pair,
    normal,
    preserved,
    preserving_pair,
    uniform,
)
from minidiff.course.exercises import case, exercise
from minidiff.course.forms import call, number, prediction, several, taking, tensor
from minidiff.course.outcomes import Mistake
from minidiff.exact import GaussianMixtureDenoiser
from minidiff.guidance import classifier_guidance, grad_log_prob
from minidiff.prediction import Prediction
from minidiff.process import beta, beta_tilde, diffuse, posterior_mean
from minidiff.sampler import ancestral, heun, sample
from minidiff.schedule import DATA, NoiseLevel, cosine_schedule, linear_schedule

LESSON = "03_classifier_guidance"


def _world(rng: Generator, *shape: int, variance: float = 0.1) -> GaussianMixtureDenoiser:
    """Five unequal blobs of three classes, which overlap."""
    variance = variance * uniform(rng, 0.7, 1.3, 5)
    return GaussianMixtureDenoiser(0.8 * normal(rng, 5, *shape), variance, uniform(rng, 0.5, 1.5, 5), [0, 1, 1, 2, 0])


def _far_world(rng: Generator) -> tuple[GaussianMixtureDenoiser, Tensor]:
    """Three small blobs far apart, and points of the first two: exp(log p(2 | x)) is zero there."""
    means = torch.tensor([[-4.0, 0.0], [4.0, 0.0], [0.0, 4.0]], dtype=torch.float64) + 0.1 * normal(rng, 3, 2)
    return GaussianMixtureDenoiser(means, 0.005), means[:2] + 0.05 * normal(rng, 2, 2)


def _noisy(rng: Generator, world: GaussianMixtureDenoiser, level: NoiseLevel, n: int) -> Tensor:
    x0 = world.sample(n, rng)
    return diffuse(x0, level, normal(rng, *x0.shape))


def _levels(rng: Generator) -> list[NoiseLevel]:
    """A low, a middle and a high noise level."""
    return [cosine_schedule().level(uniform(rng, t, t + 0.1)) for t in (0.2, 0.45, 0.7)]


def _gradient(world: GaussianMixtureDenoiser, x: Tensor, level: NoiseLevel, label: int) -> Tensor:
    """grad log p(label | x_t) by Bayes' rule: the difference of two scores."""
    return world(x, level, label).score - world(x, level).score


# -- ex-03-tilted-step ------------------------------------------------------------------------------------------------

exercise(
    "ex-03-tilted-step",
    name="tilted_step",
    lesson=LESSON,
    form=call(several(mean=number(), variance=number()), lambda rng: _tilt(rng)),
)


def _tilt(rng: Generator) -> dict[str, float]:
    names = {"mean": (0.5, 1), "variance": (0.2, 0.5), "gradient": (1, 2), "curvature": (0.8, 1.5), "scale": (1.5, 3)}
    return {name: uniform(rng, *bounds) for name, bounds in names.items()}


def _brute_force(mean: float, variance: float, gradient: float, curvature: float, scale: float) -> tuple[float, float]:
    """Mean and variance of N(mean, variance) times exp(s (g d - k d^2 / 2)), d = x - mean, on a grid."""
    d = torch.linspace(-20, 20, 40001, dtype=torch.float64)
    weight = (scale * (gradient * d - curvature * d**2 / 2) - d**2 / (2 * variance)).softmax(0)
    centre = (weight * d).sum()
    return (mean + centre).item(), (weight * (d - centre) ** 2).sum().item()


def _wrong_variances(v: float, k: float, s: float) -> dict[str, float]:
    """Diagnosis -> what that mistake makes of the variance of the tilted step."""
    return {
        "the power s multiplies the curvature too": 1 / (1 / v + k),
        "a curvature above zero narrows the density: the sign of k is wrong": 1 / (1 / v - s * k),
        "the coefficient of d^2 is minus half the precision: you took k / 2": 1 / (1 / v + s * k / 2),
        "the coefficient of d^2 is minus half the precision: you took 2 k": 1 / (1 / v + 2 * s * k),
        "the precision is 1 / Sigma + s k; you took 1 + s k": v / (1 + s * k),
        "precisions add, not variances": v + s * k,
        "precisions add, not variances; 1 / (s k) is the variance of the tilt": v + 1 / (s * k),
    }


@case("ex-03-tilted-step", "straight-tilt-is-the-mean-shift")
def _(answer, rng):
    m, v, g, _, s = _tilt(rng).values()
    wrong = {
        "you left Sigma out: a shift by the bare gradient does not even vanish as the step does": m + s * g,
        "you used the standard deviation where the variance belongs": m + math.sqrt(v) * s * g,
        "the mean moves to where the class is more likely: the sign is wrong": m - v * s * g,
        "the scale is missing": m + v * g,
        "you used 1 + s where s belongs": m + v * (1 + s) * g,
        "the shift is Sigma times s g; you divided by Sigma": m + s * g / v,
        "this is the shift; the mean itself was asked for": v * s * g,
        "the tilt moves the mean; yours stayed": m,
        "the order is (mean, variance)": v,
    }
    say = "without curvature the mean must move by Sigma s g, to {right}, not {got}"
    expect(answer(m, v, g, 0.0, s)[0], m + v * s * g, say, wrong)


@case("ex-03-tilted-step", "mean-by-brute-force")
def _(answer, rng):
    for sign in (1, -1):
        m, v, g, k, s = (tilt := _tilt(rng) | {"gradient": sign * uniform(rng, 1, 2)}).values()
        wrong = {text: m + s * g * variance for text, variance in _wrong_variances(v, k, s).items()} | {
            "this is the mean of the straight tilt; curvature also shortens the shift": m + v * s * g,
            "the scale is missing in front of the gradient": m + g / (1 / v + s * k),
        }
        say = f"for g = {g:.3g}, k = {k:.3g}, s = {s:.3g} a sum over a fine grid gives the mean {{right}}, not {{got}}"
        expect(answer(*tilt.values())[0], _brute_force(*tilt.values())[0], say, wrong)


@case("ex-03-tilted-step", "variance-by-brute-force")
def _(answer, rng):
    tilt = _tilt(rng)
    _, v, _, k, s = tilt.values()
    wrong = _wrong_variances(v, k, s) | {
        "the curvature has no effect: it adds s k to the precision": v,
        "you returned the precision, one over the variance": 1 / v + s * k,
        "this is the standard deviation; the variance was asked for": (1 / v + s * k) ** -0.5,
    }
    say = f"for k = {k:.3g}, s = {s:.3g} a sum over a fine grid gives the variance {{right}}, not {{got}}"
    expect(answer(*tilt.values())[1], _brute_force(*tilt.values())[1], say, wrong)


@case("ex-03-tilted-step", "curved-the-other-way")
def _(answer, rng):
    tilt = _tilt(rng)
    m, v, g, _, s = tilt.values()
    k = tilt["curvature"] = -uniform(rng, 0.3, 0.6) / (v * s)
    turned = 1 / (1 / v - s * k)
    wrong = {
        "k may be negative (a density that the tilt widens); you cut it off at zero": (m + v * s * g, v),
        "k may be negative (a density that the tilt widens); you took its absolute value": (m + turned * s * g, turned),
    }
    say = f"wrong for a negative curvature, k = {k:.3g} at Sigma = {v:.3g}, s = {s:.3g}"
    expect(answer(*tilt.values()), _brute_force(*tilt.values()), say, wrong)


# -- ex-03-shift-ratio ------------------------------------------------------------------------------------------------

exercise(
    "ex-03-shift-ratio",
    name="shift_ratio",
    lesson=LESSON,
    form=call(
        number(),
        lambda rng: dict(zip(("noisier", "cleaner"), preserving_pair(rng), strict=True)) | {"variance": 0.3},
    ),
)


@case("ex-03-shift-ratio", "one-over-root-one-minus-beta")
def _(answer, rng):
    times = torch.randint(300, 1000, (2,), generator=rng).tolist()
    for t, r in (preserving_pair(rng), *((linear_schedule().level(u), linear_schedule().level(u - 1)) for u in times)):
        ratio, b = r.alpha / t.alpha, beta(t, r)
        wrong = {
            "this is the ratio the other way round: mean shift over score shift": 1 / ratio,
            "alpha_r / alpha_t is missing": 1.0,
            "alpha is the square root of alpha-bar: you squared alpha_r / alpha_t": ratio**2,
            "beta is the variance of the step from r to t; you took sigma_t^2, all the noise": ratio * t.sigma**2 / b,
            "sigma_r^2 is scaled by (alpha_t / alpha_r)^2 before it is subtracted": (
                ratio * (t.sigma**2 - r.sigma**2) / b
            ),
            "variances are subtracted, not deviations": ratio * (t.sigma - r.sigma / ratio) ** 2 / b,
            "this is the distance that the mean moves; the ratio was asked for": ratio * b,
        }
        say = "with Sigma = beta the ratio is alpha_r / alpha_t = 1 / sqrt(1 - beta) = {right}, not {got}"
        expect(answer(t, r, b), ratio, say, wrong)


@case("ex-03-shift-ratio", "measured-on-a-mixture")
def _(answer, rng):
    for share in (None, uniform(rng, 0.3, 0.6), uniform(rng, 1.5, 2.5)):
        world, (t, r) = _world(rng, 2), preserving_pair(rng)
        variance = share * beta(t, r) if share else beta_tilde(t, r)
        x = _noisy(rng, world, t, 6)
        moved = posterior_mean(x, world(x, t, 1).x0, t, r) - posterior_mean(x, world(x, t).x0, t, r)
        shift = variance * _gradient(world, x, t, 1)
        right, by_beta = (moved * shift).sum() / (shift * shift).sum(), r.alpha / t.alpha
        wrong = {
            "Sigma is what is given; you took beta": by_beta,
            "the ratio is divided by Sigma; it is missing": by_beta * beta(t, r),
            "the ratio is divided by Sigma; you multiplied": by_beta * beta(t, r) * variance,
            "Sigma is a variance already; you took its root": by_beta * beta(t, r) / math.sqrt(variance),
            "Sigma is a variance already; you squared it": by_beta * beta(t, r) / variance**2,
            "the shift of the mean is by beta, not by beta-tilde": by_beta * beta_tilde(t, r) / variance,
        }
        name = f"Sigma = {variance:.3g}" if share else "Sigma = beta-tilde"
        expect(answer(t, r, variance), right.item(), f"on a mixture with {name} it is {{right}}, not {{got}}", wrong)


@case("ex-03-shift-ratio", "any-levels")
def _(answer, rng):
    step_only = "beta is sigma_t^2 - (alpha_t / alpha_r)^2 sigma_r^2; 1 - (alpha_t / alpha_r)^2 holds only where "
    last = [(level, DATA) for level in (preserving_pair(rng)[1], exploding_pair(rng)[1])]
    for t, r in (general_pair(rng), exploding_pair(rng), *last):
        ratio, variance = r.alpha / t.alpha, uniform(rng, 0.2, 0.8)
        wrong = {step_only + "the variance is preserved": (ratio - 1 / ratio) / variance}
        if t.alpha < 1 and r.sigma:
            wrong[PRESERVING] = ratio * beta(preserved(t), preserved(r)) / variance
        shown = f"alpha = {t.alpha:.3g} and {r.alpha:.3g}, sigma = {t.sigma:.3g} and {r.sigma:.3g}"
        say = f"at {shown} it is {{right}}, not {{got}}"
        expect(answer(t, r, variance), ratio * beta(t, r) / variance, say, wrong)


# -- ex-03-acceptance -------------------------------------------------------------------------------------------------

exercise(
    "ex-03-acceptance",
    name="acceptance",
    lesson=LESSON,
    form=call(
        tensor(lambda given: (len(given["x"]),)),
        lambda rng: {"world": _world(rng, 2), "x": normal(rng, 4, 2), "label": 1, "scale": 2.5},
    ),
)


@case("ex-03-acceptance", "tilts-the-density")
def _(answer, rng):
    for label in (1, 0):
        world, s = _world(rng, 2, variance=0.4), uniform(rng, 2.2, 3.5)
        x = world.sample(8, rng, label)
        log_p = world.classifier(label)(x, DATA)
        p, right = log_p.exp(), ((s - 1) * log_p).exp()
        wrong = {
            "p(x | c) already holds one power of p(c | x), so only s - 1 of them are left to pay": p**s,
            "a probability of acceptance cannot exceed one: the exponent's sign is wrong": p ** (1 - s),
            "one power is paid already; you paid one more": p ** (s + 1),
            "the scale is missing: this is p(c | x)": p,
            "s - 1 is an exponent; you multiplied by it": (s - 1) * p,
            "this is the logarithm of the probability": (s - 1) * log_p,
            "this is the probability of throwing a point away": 1 - right,
            "this depends on the batch: a point's probability is its own, not one over the largest": right
            / right.max(),
            "these are weights that sum to one over the batch; a point has a probability of its own": right
            / right.sum(),
            "this is p(x) p(c | x)^s; it must be divided by p(x | c)": (world.log_prob(x, DATA) + s * log_p).exp(),
            "all points are kept, so these are still draws of p(x | c)": torch.ones_like(p),
        }
        got, say = answer(world, x, label, s), "p(x | c) times this must be proportional to p(x) p(c | x)^s"
        if close(got / got[0], right / right[0]) and not close(got, right):
            say = "proportional to what it should be, but not the largest that works in every world"
        expect(got, right, say, wrong)


@case("ex-03-acceptance", "any-batch")
def _(answer, rng):
    for label, n, shape, dtype in ((0, 1, (2,), torch.float64), (2, 3, (2, 1, 2), torch.float32)):
        world, s = _world(rng, *shape, variance=0.4), uniform(rng, 2, 3)
        x = world.sample(n, rng, label).to(dtype)
        right = ((s - 1) * world.classifier(label)(x.double(), DATA)).exp()
        say = f"wrong for label {label} and x of shape {tuple(x.shape)}, {str(dtype)[6:]}"
        expect(answer(world, x, label, s), right, say)


@case("ex-03-acceptance", "unlikely-points")
def _(answer, rng):
    world, x = _far_world(rng)
    nothing = torch.full((2,), math.nan, dtype=torch.float64)
    wrong = {"0 times minus infinity is nan: use log p(c | x) as the classifier gives it, not the log of p": nothing}
    say = "at s = 1 the tilted density is p(x | c) itself: all points are kept, also the least likely"
    expect(answer(world, x, 2, 1.0), torch.ones(2), say, wrong)
    expect(answer(world, x, 2, 3.0), torch.zeros(2), "where p(c | x) vanishes hardly anything is kept at s = 3")


# -- ex-03-overshoot --------------------------------------------------------------------------------------------------

exercise("ex-03-overshoot", name="overshoot", lesson=LESSON, form=number())
# Ten thousand guided draws and forty thousand tilted ones leave it uncertain by 0.010; the nearest mistake differs by
# 0.067. So the tolerance is four times the one and well below the other; a mistake is named within half of it.
WITHIN = 0.04


def _line() -> GaussianMixtureDenoiser:
    """N(-1, 1) and N(1, 1), two classes."""
    return GaussianMixtureDenoiser(torch.tensor([[-1.0], [1.0]]), 1.0)


@cache
def guided_moments(scale: float, name: str = "heun") -> tuple[float, float]:
    """Mean and standard deviation of guided samples; the chain starts from quantiles, so nothing is drawn by Heun."""
    world, levels = _line(), cosine_schedule().levels(100)
    n, sampler = (301, heun()) if name == "heun" else (3001, ancestral())
    start = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None]
    guided = classifier_guidance(world, world.classifier(1), scale)
    out = sample(sampler, guided, levels, levels[0].sigma * start, Generator().manual_seed(0))
    return out.mean().item(), out.std().item()


@cache
def tilted_moments(scale: float) -> tuple[float, float]:
    """Mean and standard deviation of p(x) p(1 | x)^s, summed over a grid."""
    grid = torch.linspace(-9, 9, 6001, dtype=torch.float64)[:, None]
    weight = (_line().log_prob(grid, DATA) + scale * _line().classifier(1)(grid, DATA)).softmax(0)
    mean = (weight * grid[:, 0]).sum()
    return mean.item(), (weight * (grid[:, 0] - mean) ** 2).sum().sqrt().item()


def overshoot_of(guided: float = 4.0, tilted: float = 4.0, name: str = "heun") -> float:
    """Guided mean minus tilted mean in deviations of the tilted density, each at its scale."""
    mean, deviation = tilted_moments(tilted)
    return (guided_moments(guided, name)[0] - mean) / deviation


@case("ex-03-overshoot", "in-standard-deviations")
def _(answer):
    right, (mean, deviation), (centre, spread) = overshoot_of(), guided_moments(4.0), tilted_moments(4.0)
    wrong = {
        "this is the gap of the means itself; divide it by the tilted density's standard deviation": mean - centre,
        "this is in deviations of the guided samples; the tilted density's were asked for": (mean - centre) / deviation,
        "this is the distance from p(x | 1); that from p(x) p(1 | x)^4 was asked for": mean - 1,
        "this is the distance from the mean of p(x | 1); p(x) p(1 | x)^4 has another": (mean - 1) / spread,
        "the sign is wrong: guided minus tilted was asked for": -right,
        "p(x | 1) already holds one power of p(1 | x): you tilted by s = 5": overshoot_of(tilted=5.0),
        "you tilted by s = 3; guidance had s = 4": overshoot_of(tilted=3.0),
        "you guided by s = 5 and tilted by s = 4": lambda: overshoot_of(guided=5.0),
        "this is what s = 5 does: you used 1 + s where s belongs": lambda: overshoot_of(5.0, 5.0),
        "this is what s = 3 does: you used s - 1 where s belongs": lambda: overshoot_of(3.0, 3.0),
        "these samples are not guided": lambda: overshoot_of(guided=0.0),
        "these samples are guided by s = 1": lambda: overshoot_of(guided=1.0),
        "this is what the ancestral sampler gives; Heun's method or DDIM was asked for": lambda: overshoot_of(
            name="ancestral"
        ),
    }
    say = "{got} is not what a chain of 100 steps gives; more samples?"
    if not abs(answer - right) <= WITHIN:  # nan is not
        expect(answer, right, say, wrong, rtol=0, atol=WITHIN / 2)


# -- ex-03-class-gradient ---------------------------------------------------------------------------------------------

exercise(
    "ex-03-class-gradient",
    name="class_gradient",
    lesson=LESSON,
    form=call(
        tensor("x"),
        lambda rng: {"world": _world(rng, 2), "x": normal(rng, 3, 2), "level": _levels(rng)[1], "label": 1},
    ),
)


@case("ex-03-class-gradient", "difference-of-scores")
def _(answer, rng):
    world = _world(rng, 2)
    for label, level in enumerate(_levels(rng)):
        x = _noisy(rng, world, level, 4)
        right, sigma, of_label = _gradient(world, x, level, label), level.sigma, world.classifier(label)
        wrong = {
            "this is the gradient of log p(x_t | c); the classifier's own part leaves log p(x_t) out": (
                world(x, level, label).score
            ),
            "this is the gradient of log p(x_t), which does not know the class": world(x, level).score,
            "you differentiated p(c | x_t), not its logarithm": of_label(x, level).exp()[:, None] * right,
            "the sign is wrong: the gradient points to where the class is more likely": -right,
            "this is the shift of eps; the gradient itself was asked for": -sigma * right,
            "the gradient was asked for, without a factor sigma": sigma * right,
            "you asked about clean pictures; the classifier must be told how noisy x_t is": (
                grad_log_prob(lambda y, _, of_label=of_label: of_label(y, DATA), x, level)
            ),
            "p_t(c | x_t) is the mean opinion about what x_t hides, not the opinion about its mean x_0-hat": (
                grad_log_prob(lambda y, at, of_label=of_label: of_label(world(y, at).x0, DATA), x, level)
            ),
            "nothing depends on x here: this is zero": 0 * x,
        }
        got = torch.cat([answer(world, one[None], level, label) for one in x])
        expect(got, right, f"label {label}: the gradient must equal score(x_t | c) - score(x_t), by Bayes' rule", wrong)


@case("ex-03-class-gradient", "each-sample-its-own")
def _(answer, rng):
    for shape, dtype in (((2,), torch.float64), ((2, 1, 2), torch.float32)):
        world, level = _world(rng, *shape), _levels(rng)[1]
        x = _noisy(rng, world, level, 5)
        right = _gradient(world, x, level, 2)
        wrong = {
            "you averaged log p over the batch before differentiating, so guidance fades as the batch grows": right / 5,
            "each sample has its own gradient; this is their sum": right.sum(0).expand_as(x),
            "each sample has its own gradient; this is their mean": right.mean(0).expand_as(x),
            "each sample has its own gradient; this is the first one's": right[0].expand_as(x),
        }
        say = f"a sample's gradient must not depend on its batch; x has shape {tuple(x.shape)}, {str(dtype)[6:]}"
        expect(answer(world, x.to(dtype), level, 2), right, say, wrong)


@case("ex-03-class-gradient", "under-no-grad")
def _(answer, rng):
    world, level = _world(rng, 2), _levels(rng)[1]
    x = _noisy(rng, world, level, 3)
    try:
        with torch.no_grad():
            got = answer(world, x, level, 0)
    except RuntimeError as error:
        raise Mistake("it fails under torch.no_grad(), where samplers call it: use torch.enable_grad()") from error
    expect(got, _gradient(world, x, level, 0), "under torch.no_grad() it gives something else")


@case("ex-03-class-gradient", "unlikely-class")
def _(answer, rng):
    (world, x), level = _far_world(rng), NoiseLevel(1.0, 0.05, 0)
    wrong = {
        "p(c | x_t) is zero in floating point here; differentiate log p, never go through p": x * math.nan,
        "log p is not cut off: where a class is unlikely its gradient is needed most": 0 * x,
    }
    say = "wrong where the class is very unlikely"
    expect(answer(world, x, level, 2), _gradient(world, x, level, 2), say, wrong)


# -- ex-03-guide ------------------------------------------------------------------------------------------------------


def _asked(world: GaussianMixtureDenoiser, label: int = 1) -> dict:
    """A denoiser that also predicts its variance, and the gradient of a class."""
    denoiser = lambda x, level: world(x, level).replace(fraction=x.sigmoid())
    gradient = lambda x, level: _gradient(world, x, level, label)
    return {"denoiser": taking("x level", denoiser), "gradient": taking("x level", gradient)}


def _guided(answer, world: GaussianMixtureDenoiser, scale: float, x: Tensor, level: NoiseLevel) -> Prediction:
    return answer(*_asked(world).values(), scale)(x, level)


exercise(
    "ex-03-guide",
    name="guide",
    lesson=LESSON,
    form=call(
        call(prediction("x"), lambda rng: {"x": normal(rng, 3, 2), "level": _levels(rng)[1]}),
        lambda rng: _asked(_world(rng, 2)) | {"scale": 2.0},
    ),
)


@case("ex-03-guide", "scale-1-is-conditional")
def _(answer, rng):
    world = _world(rng, 2)
    for level in _levels(rng):
        x = _noisy(rng, world, level, 4)
        asked, gradient, (alpha, sigma) = world(x, level), _gradient(world, x, level, 1), (level.alpha, level.sigma)
        eps = asked.eps
        wrong = {
            "the sign is wrong: eps is -sigma times the score, so the gradient is subtracted": eps + sigma * gradient,
            "you subtracted the gradient itself; eps = -sigma score, so it comes with a factor sigma": eps - gradient,
            "you added the gradient itself; eps = -sigma score, so sigma times it is subtracted": eps + gradient,
            "you used the variance where the standard deviation belongs": eps - sigma**2 * gradient,
            "you took alpha for sigma": eps - alpha * gradient,
            "sigma^2 / alpha belongs to the shift of x_0; eps is shifted by -sigma": eps - sigma**2 / alpha * gradient,
            "you used 1 + s where s belongs: at s = 1 the gradient counts once": eps - 2 * sigma * gradient,
            "at s = 1 the gradient counts, once; here nothing is guided": eps,
            "the gradient is added to what the denoiser says; you put it in its place": -sigma * gradient,
            "this is the shift of eps given to x_0": asked.with_x0(asked.x0 - sigma * gradient).eps,
            "this is the shift of the score given to x_0": asked.with_x0(asked.x0 + gradient).eps,
        }
        say = "at s = 1 the guided denoiser must be the conditional one"
        expect(_guided(answer, world, 1.0, x, level).eps, world(x, level, 1).eps, say, wrong)


@case("ex-03-guide", "any-scale")
def _(answer, rng):
    for scale in (uniform(rng, 2, 4), 0.0):
        world, level = _world(rng, 2), _levels(rng)[1]
        x = _noisy(rng, world, level, 4)
        eps, conditional = world(x, level).eps, world(x, level, 1).eps
        along = lambda s, eps=eps, conditional=conditional: eps + s * (conditional - eps)
        wrong = {
            "the scale has no effect": along(1),
            "you squared the scale": along(scale**2),
            "you took the root of the scale": along(math.sqrt(scale)),
            "the scale multiplies the gradient, not what the denoiser says": scale * eps + along(1) - eps,
            "the scale multiplies the gradient alone; you multiplied the whole": scale * along(1),
        }
        say = f"s = {scale:.2f} must shift eps {scale:.2f} times as far as s = 1"
        expect(_guided(answer, world, scale, x, level).eps, along(scale), say, wrong)


@case("ex-03-guide", "one-level-per-sample")
def _(answer, rng):
    level = cosine_schedule().level(torch.cat([uniform(rng, t, t + 0.1, 1) for t in (0.2, 0.45, 0.7)]))
    for dtype in (torch.float64, torch.float32):
        world = _world(rng, 2, 1, 3)
        x = _noisy(rng, world, level, 3)
        eps, gradient = world(x, level).eps, _gradient(world, x, level, 1)
        own = "each sample has a sigma of its own (`level.like(x)` shapes it); you took "
        wrong = {
            own + "the first for all": eps - level.sigma[0] * gradient,
            own + "their mean": eps - level.sigma.mean() * gradient,
            own + "them along the last axis": eps - level.sigma * gradient,
        }
        say = f"a level may hold one sigma per sample; x is {str(dtype)[6:]}"
        expect(_guided(answer, world, 1.0, x.to(dtype), level).eps, world(x, level, 1).eps, say, wrong)


@case("ex-03-guide", "variance-exploding")
def _(answer, rng):
    for level in (general_pair(rng)[0], *exploding_pair(rng)):
        world, scale = _world(rng, 2), uniform(rng, 1, 3)
        x = _noisy(rng, world, level, 4)
        eps, gradient = world(x, level).eps, _gradient(world, x, level, 1)
        wrong = {PRESERVING: eps - scale * preserved(level).sigma * gradient}
        say = f"wrong at alpha = {level.alpha:.3f}, sigma = {level.sigma:.3f}"
        expect(_guided(answer, world, scale, x, level).eps, eps - scale * level.sigma * gradient, say, wrong)


@case("ex-03-guide", "keeps-the-rest")
def _(answer, rng):
    world, level = _world(rng, 2), _levels(rng)[1]
    x = _noisy(rng, world, level, 4)
    got = _guided(answer, world, 1.0, x, level)
    expect(got.x0, world(x, level, 1).x0, "eps is right, x_0 is not: x_t and its level must stay in the prediction")
    if got.fraction is None:
        raise Mistake("the learned variance is lost; a prediction changed by with_eps keeps what else it holds")
    expect(got.fraction, x.sigmoid(), "the learned variance must stay as the denoiser predicted it")
