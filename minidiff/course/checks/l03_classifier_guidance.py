"""Checks of lesson 03: tilted steps and densities, the guided denoiser, ADM's sampler, and one that lands."""

from __future__ import annotations

import math
from itertools import pairwise

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
from minidiff.guidance import grad_log_prob
from minidiff.prediction import Prediction
from minidiff.process import beta_tilde, diffuse
from minidiff.schedule import DATA, NoiseLevel, cosine_schedule

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


# -- ex-03-adm ---------------------------------------------------------------------------------------------------------

STEPS = 4


def _steps(rng: Generator) -> list[NoiseLevel]:
    """A chain of levels from noise to data that is not even in time."""
    times = 0.9 - 0.75 * (torch.rand(STEPS - 1, generator=rng, dtype=torch.float64).cumsum(0) / STEPS)
    return [cosine_schedule().level(t) for t in (0.9, *times.tolist())] + [DATA]


def _chain_of(rng: Generator, levels: list[NoiseLevel], *shape: int, n: int = 3) -> dict:
    world = _world(rng, *shape)
    given = {"denoiser": taking("x level", world), "gradient": taking("x level", _of_class(world)), "scale": 2.5}
    x_T = levels[0].alpha * world.sample(n, rng) + levels[0].sigma * normal(rng, n, *shape)
    return given | {"levels": levels, "x_T": x_T, "noise": normal(rng, len(levels) - 1, n, *shape)}


def _of_class(world: GaussianMixtureDenoiser, label: int = 1):
    return lambda x, level: _gradient(world, x, level, label)


exercise(
    "ex-03-adm",
    name="adm_sample",
    lesson=LESSON,
    form=call(tensor("x_T"), lambda rng: _chain_of(rng, _steps(rng), 2)),
)


def _moments(given: dict, x: Tensor, t: NoiseLevel, r: NoiseLevel) -> tuple[Tensor, float]:
    """Mean and variance beta of the unguided step, from the product of q(x_r | x_0) and q(x_t | x_r)."""
    x0, scale = given["denoiser"](x, t).x0, t.alpha / r.alpha
    variance = t.sigma**2 - scale**2 * r.sigma**2
    if not r.sigma:
        return r.alpha * x0, variance
    precision = 1 / r.sigma**2 + scale**2 / variance
    return (r.alpha * x0 / r.sigma**2 + scale * x / variance) / precision, variance


def _adm(given: dict, shift=lambda v, g, s: v * s * g, spread=math.sqrt, last=0.0, fresh=True) -> Tensor:
    """The chain, with changes: how the mean is shifted, what multiplies the noise, how much of it at the end."""
    x, (*_, end) = given["x_T"], given["levels"]
    for (t, r), z in zip(pairwise(given["levels"]), given["noise"], strict=True):
        mean, variance = _moments(given, x, t, r)
        x = mean + shift(variance, given["gradient"](x, t), given["scale"])
        x = x + fresh * spread(variance) * z * (last if r is end and not r.sigma else 1.0)
    return x


@case("ex-03-adm", "one-step", points=2)
def _(answer, rng):
    for pair in (preserving_pair(rng), [cosine_schedule().level(t) for t in (uniform(rng, 0.7, 0.8), 0.5)]):
        t, r = pair
        given = _chain_of(rng, list(pair), 2)
        x, s, gradient, (z,) = given["x_T"], given["scale"], given["gradient"], given["noise"]
        (mean, variance), ratio = _moments(given, x, t, r), r.alpha / t.alpha
        g, tilde = gradient(x, t), beta_tilde(t, r)
        noise = variance**0.5 * z
        wrong = {
            "you left Sigma out: a shift by the bare gradient does not even vanish as the step does": mean
            + s * g
            + noise,
            "you used the standard deviation where the variance belongs in the shift": mean
            + variance**0.5 * s * g
            + noise,
            "the mean moves to where the class is more likely: the sign is wrong": mean - variance * s * g + noise,
            "the scale is missing": mean + variance * g + noise,
            "you used 1 + s where s belongs": mean + variance * (1 + s) * g + noise,
            "nothing is guided": mean + noise,
            "this is the score shift, which moves the mean by alpha_r / alpha_t more": mean
            + ratio * variance * s * g
            + noise,
            "Sigma is beta here, in the shift and in the noise; you took beta-tilde": mean
            + tilde * s * g
            + tilde**0.5 * z,
            "Sigma is beta here; the shift has beta-tilde": mean + tilde * s * g + noise,
            "Sigma is beta here; the noise has beta-tilde": mean + variance * s * g + tilde**0.5 * z,
            "noise has the standard deviation sqrt(Sigma); you multiplied by the variance": mean
            + variance * s * g
            + variance * z,
            "the noise is missing": mean + variance * s * g,
            "you took the gradient at the mean, and at level r: that is the paper's line; x_t and t are asked for": mean
            + variance * s * gradient(mean, r)
            + noise,
            "you took the gradient at the mean; x_t is asked for": mean + variance * s * gradient(mean, t) + noise,
            "you asked about level r; x_t belongs to level t": mean + variance * s * gradient(x, r) + noise,
            "x_0-hat takes the mean's place": given["denoiser"](x, t).x0 + variance * s * g + noise,
        }
        say = "one step, which does not end at clean data, must give mu + Sigma s g + sqrt(Sigma) z"
        expect(answer(**given), mean + variance * s * g + noise, say, wrong)


@case("ex-03-adm", "the-last-step-is-a-mean")
def _(answer, rng):
    given = _chain_of(rng, [_levels(rng)[0], DATA], 2)
    wrong = {
        "where the step ends at clean data the mean itself is wanted, without noise": _adm(given, last=1.0),
        "in the last step the mean is shifted, too": _moments(given, given["x_T"], *given["levels"])[0],
    }
    expect(answer(**given), _adm(given), "wrong for the step that ends at clean data", wrong)


@case("ex-03-adm", "whole-chain")
def _(answer, rng):
    for shape, n in (((2,), 3), ((2, 1, 2), 1)):
        given = _chain_of(rng, _steps(rng), *shape, n=n)
        backwards = given | {"noise": given["noise"].flip(0)}
        first = given | {"noise": given["noise"][:1].expand_as(given["noise"])}
        wrong = {
            "step i takes noise[i]; you took them from the end": lambda b=backwards: _adm(b),
            "each step has noise of its own; you took the first for all": lambda f=first: _adm(f),
        }
        say = f"a chain of {STEPS} steps on x of shape {(n, *shape)} ends elsewhere"
        expect(answer(**given), _adm(given), say, wrong)


@case("ex-03-adm", "any-levels")
def _(answer, rng):
    for t, r in (general_pair(rng), exploding_pair(rng), (NoiseLevel(0.0, 1.0, 1), preserving_pair(rng)[0])):
        given = _chain_of(rng, [t, r, DATA], 2)
        kept = given | {"levels": [preserved(t), preserved(r), DATA]}
        wrong = {PRESERVING: lambda k=kept: _adm(k)} if 0 < t.alpha < 1 else {}
        shown = f"alpha = {t.alpha:.3g} and {r.alpha:.3g}, sigma = {t.sigma:.3g} and {r.sigma:.3g}"
        expect(answer(**given), _adm(given), f"wrong at {shown}", wrong)


# -- ex-03-acceptance --------------------------------------------------------------------------------------------------

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


# -- ex-03-land --------------------------------------------------------------------------------------------------------

POINTS, CALLS = 600, 120
# Of a deviation: the guided chain is 0.8 to 1.2 away, Langevin's walk 0.03 to 0.08; a bell of the right mean and width
# 0.12 to 0.15 from the two humps.
NEARER, LANDED, OF_HUMPS = 0.45, 0.12, 0.1


def _two_bells(rng: Generator) -> GaussianMixtureDenoiser:
    """Two classes on the line that overlap, one bell each."""
    centre = uniform(rng, 0.8, 1.2)
    return GaussianMixtureDenoiser(torch.tensor([[-centre], [centre]]), uniform(rng, 0.8, 1.2))


def _two_humps(rng: Generator) -> GaussianMixtureDenoiser:
    """The second class has two humps, of which the tilt prefers the outer one."""
    means = torch.tensor([[-1.2], [0.2], [uniform(rng, 1.8, 1.85)]])
    return GaussianMixtureDenoiser(means, 0.3, [2.0, 1.0, 1.0], [0, 1, 1])


def _landing(rng: Generator, world: GaussianMixtureDenoiser, n: int = POINTS) -> dict:
    """Arguments: the exact score and gradient, a chain of forty steps, and noise to start from."""
    score = lambda x, level: grad_log_prob(world.log_prob, x, level)
    gradient = lambda x, level: grad_log_prob(world.classifier(1), x, level)
    given = {"score": taking("x level", score), "gradient": taking("x level", gradient), "scale": uniform(rng, 3, 5)}
    return given | {"levels": cosine_schedule().levels(40), "x_T": normal(rng, n, 1), "seed": 7}


exercise(
    "ex-03-land",
    name="land",
    lesson=LESSON,
    form=call(tensor("x_T"), lambda rng: _landing(rng, _two_bells(rng), 5)),
)


def off_target(x: Tensor, world: GaussianMixtureDenoiser, scale: float) -> float:
    """How far points have to be moved to lie as p(x) p(1 | x)^s does, on average, in its standard deviations."""
    grid = torch.linspace(-9, 9, 9001, dtype=torch.float64)[:, None]
    weight = (world.log_prob(grid, DATA) + scale * world.classifier(1)(grid, DATA)).softmax(0)
    share = (torch.arange(len(x), dtype=torch.float64) + 0.5) / len(x)
    wanted = grid[torch.searchsorted(weight.cumsum(0), share).clamp(max=9000), 0]
    mean = weight @ grid[:, 0]
    return ((x.flatten().sort()[0] - wanted).abs().mean() / (weight @ (grid[:, 0] - mean).square()).sqrt()).item()


@case("ex-03-land", "in-the-budget", points=0)
def _(answer, rng):
    given, calls = _landing(rng, _two_bells(rng), 5), {"score": 0, "gradient": 0}

    def counted(name):
        def function(x, level):
            calls[name] += 1
            return given[name](x, level)

        return taking("x level", function)

    answer(**given | {name: counted(name) for name in calls})
    for name, count in calls.items():
        assert count <= CALLS, f"`{name}` was asked {count} times; at most {CALLS} are allowed"


@case("ex-03-land", "the-seed-decides", points=0)
def _(answer, rng):
    given = _landing(rng, _two_bells(rng), 5)
    if not torch.equal(answer(**given), answer(**given)):
        raise Mistake("the same seed gave two results: draw from torch.Generator().manual_seed(seed)")


def _lands(answer, rng: Generator, world: GaussianMixtureDenoiser, within: float) -> None:
    given = _landing(rng, world)
    off = off_target(answer(**given), world, given["scale"])
    say = f"at s = {given['scale']:.2f} the points are {off:.2f} standard deviations off on average; {within} is wanted"
    assert off <= within, say


@case("ex-03-land", "nearer-than-the-guided-chain")
def _(answer, rng):
    _lands(answer, rng, _two_bells(rng), NEARER)


@case("ex-03-land", "lands", points=2)
def _(answer, rng):
    _lands(answer, rng, _two_bells(rng), LANDED)


@case("ex-03-land", "two-humps")
def _(answer, rng):
    _lands(answer, rng, _two_humps(rng), OF_HUMPS)


# -- ex-03-guide -------------------------------------------------------------------------------------------------------


def _asked(world: GaussianMixtureDenoiser, label=1) -> dict:
    """A denoiser that also predicts its variance, a classifier, and a class."""
    denoiser = lambda x, level: world(x, level).replace(fraction=x.sigmoid())
    return {"denoiser": taking("x level", denoiser), "classifier": world, "label": label}


def _guided(answer, world: GaussianMixtureDenoiser, scale: float, x: Tensor, level: NoiseLevel, label=1) -> Prediction:
    return answer(*_asked(world, label).values(), scale)(x, level)


exercise(
    "ex-03-guide",
    name="guide",
    lesson=LESSON,
    form=call(
        call(prediction("x"), lambda rng: {"x": normal(rng, 3, 2), "level": _levels(rng)[1]}),
        lambda rng: _asked(_world(rng, 2)) | {"scale": 2.0},
    ),
)


def _misled(world: GaussianMixtureDenoiser, x: Tensor, level: NoiseLevel, label: int) -> dict[str, Tensor]:
    """Diagnosis -> the noise at s = 1 that this mistake predicts."""
    asked, gradient, (alpha, sigma) = world(x, level), _gradient(world, x, level, label), (level.alpha, level.sigma)
    eps, of_label = asked.eps, world.classifier(label)
    by = lambda log_p: eps - sigma * grad_log_prob(log_p, x, level)
    return {
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
        "you differentiated p(c | x_t), not its logarithm": eps - sigma * of_label(x, level).exp()[:, None] * gradient,
        "you asked about clean pictures; the classifier must be told how noisy x_t is": by(
            lambda y, _: of_label(y, DATA)
        ),
        "p_t(c | x_t) is the mean opinion about what x_t hides, not the opinion about its mean x_0-hat": by(
            lambda y, at: of_label(world(y, at).x0, DATA)
        ),
    }


@case("ex-03-guide", "scale-1-is-conditional", points=2)
def _(answer, rng):
    world = _world(rng, 2)
    for label, level in enumerate(_levels(rng)):
        x = _noisy(rng, world, level, 4)
        got = torch.cat([_guided(answer, world, 1.0, one[None], level, label).eps for one in x])
        say = f"label {label}: at s = 1 the guided denoiser must be the conditional one"
        expect(got, world(x, level, label).eps, say, _misled(world, x, level, label))


@case("ex-03-guide", "any-scale")
def _(answer, rng):
    for scale in (uniform(rng, 2, 4), 0.0):
        world, level = _world(rng, 2), _levels(rng)[1]
        x = _noisy(rng, world, level, 1)
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


@case("ex-03-guide", "each-sample-its-own")
def _(answer, rng):
    for shape, dtype in (((2,), torch.float64), ((2, 1, 2), torch.float32)):
        world, level = _world(rng, *shape), _levels(rng)[1]
        x = _noisy(rng, world, level, 5)
        eps, own = world(x, level).eps, _gradient(world, x, level, 2)
        by = lambda gradient, eps=eps, sigma=level.sigma: eps - sigma * gradient
        wrong = {
            "you averaged log p over the batch before differentiating, so guidance fades as the batch grows": by(
                own / 5
            ),
            "each sample has its own gradient; this is their sum": by(own.sum(0).expand_as(x)),
            "each sample has its own gradient; this is their mean": by(own.mean(0).expand_as(x)),
            "each sample has its own gradient; this is the first one's": by(own[0].expand_as(x)),
        }
        say = f"what is said of a sample must not depend on its batch; x has shape {tuple(x.shape)}, {str(dtype)[6:]}"
        expect(_guided(answer, world, 1.0, x.to(dtype), level, 2).eps, by(own), say, wrong)


@case("ex-03-guide", "a-label-for-each-sample")
def _(answer, rng):
    labels, world, level = torch.tensor([0, 2, 1, 0])[torch.randperm(4, generator=rng)], _world(rng, 2), _levels(rng)[1]
    x = _noisy(rng, world, level, 4)
    wrong = {"each sample has its own label; you took the first one's for all": world(x, level, int(labels[0])).eps}
    say = "the labels of a batch may differ"
    expect(_guided(answer, world, 1.0, x, level, labels).eps, world(x, level, labels).eps, say, wrong)


@case("ex-03-guide", "under-no-grad")
def _(answer, rng):
    world, level = _world(rng, 2), _levels(rng)[1]
    x = _noisy(rng, world, level, 3)
    try:
        with torch.no_grad():
            got = _guided(answer, world, 1.0, x, level, 0).eps
    except RuntimeError as error:
        raise Mistake("it fails under torch.no_grad(), where samplers call it: use torch.enable_grad()") from error
    expect(got, world(x, level, 0).eps, "under torch.no_grad() it gives something else")


@case("ex-03-guide", "unlikely-class")
def _(answer, rng):
    (world, x), level = _far_world(rng), NoiseLevel(math.sqrt(1 - 0.05**2), 0.05, 0)
    wrong = {
        "p(c | x_t) is zero in floating point here; differentiate log p, never go through p": x * math.nan,
        "log p is not cut off: where a class is unlikely its gradient is needed most": world(x, level).eps,
    }
    say = "wrong where the class is very unlikely"
    expect(_guided(answer, world, 1.0, x, level, 2).eps, world(x, level, 2).eps, say, wrong)


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
