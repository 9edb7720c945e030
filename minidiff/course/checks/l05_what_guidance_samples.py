"""Checks of lesson 05: a guided sampler solved by hand, forgotten weights, resampling, the tilted score, intervals."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from minidiff.course.exercises import case, exercise
from minidiff.course.outcomes import Mistake
from minidiff.denoiser import conditioned
from minidiff.exact import GaussianDenoiser, GaussianMixtureDenoiser
from minidiff.guidance import autoguidance, guidance_interval
from minidiff.prediction import Prediction
from minidiff.random import randn
from minidiff.sampler import heun, sample
from minidiff.schedule import DATA, NoiseLevel, cosine_schedule
from minidiff.smc import corrected

LESSON = "05_what_guidance_samples"


def _close(a: Tensor, b: Tensor, tolerance: float = 1e-6) -> bool:
    a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
    return a.shape == b.shape and bool(((a - b).abs() <= tolerance * (1 + b.abs())).all())


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-05-guided-variance", name="guided_variance", lesson=LESSON)


@cache
def _chain_variance(v: float, s: float, first: int, last: int, n: int = 200) -> tuple[float, float, float]:
    """Variance after a Heun chain that is guided from step ``first`` to step ``last``, and alpha at both ends."""
    levels = cosine_schedule(most=30.0).levels(n)
    told, world = GaussianDenoiser(torch.zeros(1), v), GaussianDenoiser(torch.zeros(1), 1.0)
    guided = autoguidance(told, world, s)
    x = torch.ones(1, 1, dtype=torch.float64)
    for part, denoiser in (((0, first), told), ((first, last), guided), ((last, n), told)):
        if part[0] < part[1]:
            x = sample(heun(), denoiser, levels[part[0] : part[1] + 1], x)
    return x.item() ** 2, levels[first].alpha, levels[last].alpha


@case("ex-05-guided-variance", "everywhere-is-v-to-the-s")
def _(answer):
    for v, s in ((0.4, 3.0), (0.7, 2.0), (0.1, 1.5)):
        got = float(answer(v, s, 0.0, 1.0))
        if abs(got - v / (v + s * (1 - v))) < 1e-6:
            raise Mistake("this is the variance of the tilted density, which is what guidance does not sample")
        if abs(got - (v - v ** (2 * s)) / ((2 * s - 1) * (1 - v))) < 1e-6:
            raise Mistake("this is the stochastic sampler's variance; the ODE was asked for")
        if abs(got - v ** (s / 2)) < 1e-6:
            raise Mistake("this is how much a deviation shrinks; a variance is its square")
        if abs(got - v ** (s + 1)) < 1e-6:
            raise Mistake("you used 1 + s where s belongs: s = 1 is the plain conditional model")
        assert abs(got - v**s) < 1e-6, f"guided everywhere with s = {s}, a variance of {v} becomes v^s = {v**s:.4f}"


@case("ex-05-guided-variance", "no-guidance-no-change")
def _(answer):
    for v, s, high, low in ((0.4, 1.0, 0.2, 0.9), (0.3, 5.0, 0.6, 0.6)):
        got = float(answer(v, s, high, low))
        assert abs(got - v) < 1e-6, f"s = {s} between alpha = {high} and {low} changes nothing: {v}, not {got:.4f}"


@case("ex-05-guided-variance", "measured-on-a-chain")
def _(answer):
    for v, s, first, last in ((0.4, 3.0, 60, 140), (0.2, 2.0, 20, 100), (0.6, 4.0, 120, 200)):
        right, high, low = _chain_variance(v, s, first, last)
        got = float(answer(v, s, high, low))
        if abs(got - v * ((1 - (1 - v) * low) / (1 - (1 - v) * high)) ** (s - 1)) < 2e-3 and abs(got - right) > 2e-3:
            raise Mistake("alpha is squared in V: the noisy class has the variance v alpha^2 + sigma^2")
        assert abs(got - right) < 2e-3, f"{got:.4f}, but a chain of 200 steps ends with the variance {right:.4f}"


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-05-path-weight", name="log_weight", lesson=LESSON)


def _means(shape: tuple[int, ...] = (4, 3, 2)) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(randn((3, *shape), torch.Generator().manual_seed(1), torch.float64))


@case("ex-05-path-weight", "what-the-square-leaves-over")
def _(answer):
    c, u, x = _means()
    for variance, s in ((0.3, 3.0), (1.7, -0.5)):
        energy = lambda mean: -(x - mean).square().flatten(1).sum(1) / (2 * variance)  # noqa: B023
        right = (1 - s) * energy(u) + s * energy(c) - energy(u + s * (c - u))
        got = torch.as_tensor(answer(c, u, variance, s)).double()
        if _close(got, -right):
            raise Mistake(
                "the sign is wrong: for s > 1 paths along which the models disagree are too rare, not too frequent"
            )
        if _close(got, 2 * right):
            raise Mistake("a factor 1/2 is missing: it comes from the Gaussian's exponent")
        if _close(got, right * variance):
            raise Mistake("the distance is measured in units of Sigma; divide by the variance")
        if _close(got, right * math.sqrt(variance)):
            raise Mistake("you used the standard deviation where the variance belongs")
        if _close(got, right * s / (s - 1)) or _close(got, right * (s - 1) / s):
            raise Mistake("the factor is s (s - 1): it must vanish at s = 0 and at s = 1")
        assert _close(got, right), "N(mu_u)^(1-s) N(mu_c)^s over N(guided mean) is another number"


@case("ex-05-path-weight", "nothing-at-0-and-1")
def _(answer):
    c, u, _ = _means()
    for s in (0.0, 1.0):
        got = torch.as_tensor(answer(c, u, 0.4, s)).double()
        assert _close(got, torch.zeros(4)), f"at s = {s:g} one model alone is sampled and every weight is 1"


@case("ex-05-path-weight", "one-number-per-sample")
def _(answer):
    c, u, _ = _means((5, 3, 4, 4))
    got = torch.as_tensor(answer(c, u, 0.4, 2.0)).double()
    right = (c - u).square().sum((1, 2, 3)) / 0.4
    if _close(got, right / 48):
        raise Mistake("you averaged over the pixels; log densities of independent pixels add")
    assert got.shape == (5,), f"one weight per sample, shape (5,), not {tuple(got.shape)}"
    assert _close(got, right), "the squared distance runs over all axes but the batch"


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-05-systematic", name="survivors", lesson=LESSON)
WEIGHTS = ([0.1, 0.2, 0.3, 0.4], [0.7, 0.0, 0.0, 0.2, 0.1], [0.03, 0.9, 0.07], [0.25, 0.25, 0.25, 0.25])


def _copies(answer, weights: list[float], u: float) -> list[int]:
    got = [int(i) for i in answer(weights, u)]
    assert len(got) == len(weights), f"{len(weights)} survivors are wanted, not {len(got)}"
    assert all(0 <= i < len(weights) for i in got), f"indices run from 0 to {len(weights) - 1}, got {got}"
    return [got.count(i) for i in range(len(weights))]


@case("ex-05-systematic", "by-the-definition")
def _(answer):
    for weights in WEIGHTS:
        for u in (0.05, 0.5, 0.93):
            got, K = [int(i) for i in answer(weights, u)], len(weights)
            bounds = torch.tensor(weights, dtype=torch.float64).cumsum(0)
            right = [int((bounds <= (u + j) / K).sum()) for j in range(K)]
            assert got == right, f"weights {weights}, u = {u}: {got}, but the definition gives {right}"


@case("ex-05-systematic", "within-one-of-K-times-weight")
def _(answer):
    for weights in WEIGHTS:
        for u in (0.01, 0.37, 0.99):
            copies = _copies(answer, weights, u)
            for count, weight in zip(copies, weights, strict=True):
                expected = len(weights) * weight
                assert abs(count - expected) < 1 + 1e-9, f"a particle that is due {expected:.2f} copies got {count}"


@case("ex-05-systematic", "right-on-average")
def _(answer):
    for weights in WEIGHTS[:3]:
        runs = [_copies(answer, weights, (i + 0.5) / 200) for i in range(200)]
        for i, weight in enumerate(weights):
            mean = sum(run[i] for run in runs) / 200
            assert abs(mean - len(weights) * weight) < 0.02, (
                f"averaged over u, weight {weight} must get {len(weights) * weight:.2f} copies, it gets {mean:.2f}"
            )


@case("ex-05-systematic", "survives-rounding")
def _(answer):
    weights = [0.1] * 9 + [0.1 - 1e-9]
    copies = _copies(answer, weights, 1 - 1e-10)
    assert sum(copies) == 10, "the last threshold lies above the last cumulative sum here; it still needs a survivor"


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-05-tilted-denoiser", name="tilted_x0", lesson=LESSON)


@cache
def _grid() -> tuple[GaussianMixtureDenoiser, Tensor, Tensor, Tensor]:
    """Three unequal classes on a line, on a grid: world, points, log p and log p(1|x)."""
    world = GaussianMixtureDenoiser(torch.tensor([[-1.0], [0.4], [1.1]]), torch.tensor([0.1, 0.3, 0.05]))
    points = torch.linspace(-4, 4, 801, dtype=torch.float64)
    return world, points, world.log_prob(points[:, None], DATA), world.classifier(1)(points[:, None], DATA)


def _tilted(scale: float, x: Tensor, level: NoiseLevel) -> Tensor:
    """The right answer by another route: the mixture of the weighted points."""
    _, points, log_p, log_class = _grid()
    world = GaussianMixtureDenoiser(points[:, None], 0.0, (log_p + scale * log_class).softmax(0).clamp(min=1e-300))
    return world(x[:, None], level).x0[:, 0]


def _levels() -> list[NoiseLevel]:
    return [cosine_schedule().level(t) for t in (0.3, 0.5, 0.75)]


@case("ex-05-tilted-denoiser", "scale-1-is-conditional")
def _(answer):
    world, points, log_p, log_class = _grid()
    x = torch.linspace(-2, 2, 7, dtype=torch.float64)
    for level in _levels():
        got = answer(points, log_p, log_class, 1.0, x, level.alpha, level.sigma)
        right = world(x[:, None], level, 1).x0[:, 0]
        if _close(got, world(x[:, None], level).x0[:, 0], 1e-4):
            raise Mistake("this is the unconditional denoiser; p(c | x) is not in it")
        assert _close(got, right, 1e-4), "at s = 1 the tilted density is p(x | c), and this must be its denoiser"


@case("ex-05-tilted-denoiser", "power-of-the-clean-class")
def _(answer):
    world, points, log_p, log_class = _grid()
    x = torch.linspace(-2, 2, 7, dtype=torch.float64)
    for level in _levels():
        for s in (0.0, 3.0):
            got = torch.as_tensor(answer(points, log_p, log_class, s, x, level.alpha, level.sigma))
            plain, cond = world(x[:, None], level), world(x[:, None], level, 1)
            guided = plain.with_eps(plain.eps + s * (cond.eps - plain.eps)).x0[:, 0]
            right = _tilted(s, x, level)
            if s and _close(got, guided, 1e-4):
                raise Mistake("this is the guided denoiser: you took the power after the mean over x_0, not before")
            if s and _close(got, _tilted(s + 1, x, level), 1e-4):
                raise Mistake(
                    "p(x) comes with one power of p(c | x) too many; s = 0 must give the unconditional denoiser"
                )
            assert _close(got, right, 1e-4), f"not the posterior mean under p(x) p(c|x)^{s:g}"


@case("ex-05-tilted-denoiser", "signal-is-scaled")
def _(answer):
    _, points, log_p, log_class = _grid()
    x = torch.tensor([-0.5, 0.2, 0.9], dtype=torch.float64)
    level = NoiseLevel(0.3, 0.4, 0.0)  # not variance preserving: alpha and sigma are two things
    got, right = torch.as_tensor(answer(points, log_p, log_class, 2.0, x, 0.3, 0.4)), _tilted(2.0, x, level)
    if _close(got, _tilted(2.0, x, NoiseLevel(1.0, 0.4, 0.0)), 1e-4):
        raise Mistake("alpha is missing: q(x_t | x_0) has the mean alpha x_0")
    if _close(got, _tilted(2.0, x, NoiseLevel(0.3, 0.4**0.5, 0.0)), 1e-4):
        raise Mistake("you used the standard deviation where the variance belongs")
    assert _close(got, right, 1e-4), "wrong where alpha^2 + sigma^2 is not one"


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-05-effective", name="effective_share", lesson=LESSON)


@cache
def measure_effective(scale: float = 2.0, n: int = 50, count: int = 20_000) -> tuple[float, float]:
    """Share of effective particles of the exercise's race, and the same of the last step's weights alone."""
    world = GaussianMixtureDenoiser(torch.tensor([[-0.5], [0.5]]), 0.25)
    x_T = randn((count, 1), torch.Generator().manual_seed(11), torch.float64)
    before = torch.zeros(1, count, dtype=torch.float64)
    generator = torch.Generator().manual_seed(12)
    race = corrected(conditioned(world, 1), world, scale, cosine_schedule().levels(n), x_T, generator, threshold=0.0)
    for cloud in race:
        step, before = cloud.log_weight - before, cloud.log_weight
    alone = step.softmax(1).square().sum().reciprocal().item() / count
    return cloud.effective.item() / count, alone


@case("ex-05-effective", "share-of-all")
def _(answer):
    assert isinstance(answer, int | float | Tensor), f"one number is wanted, not {type(answer).__name__}"
    got, right = float(answer), measure_effective()[0]
    if got > 1:
        raise Mistake("this is the effective number; divide it by the number of particles")
    if abs(got - measure_effective()[1]) < 0.01:
        raise Mistake(
            "these are the weights of the last step alone; a path's weight is the product over all of its steps"
        )
    if abs(got - measure_effective(1.5)[0]) < 0.02:
        raise Mistake("this is what s = 1.5 gives; here s = 2 is wanted")
    if abs(got - math.sqrt(right)) < 0.02:
        raise Mistake("the weights are squared in the sum, and the sum is not under a root")
    assert abs(got - right) < 0.03, (
        f"{got:.3f} is not what 50 steps at s = 2 give; is the scale right, and did you resample?"
    )


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-05-interval", name="in_interval", lesson=LESSON)


def _marked(value: float):
    """A denoiser whose eps is everywhere ``value``."""
    return lambda x, level: Prediction(x, level, torch.full_like(x, value), "eps")


def _asked(answer, alpha: float, sigma: float, low: float, high: float) -> float:
    """1 when the guided denoiser was asked at a level, 0 when the plain one was."""
    x = torch.zeros(2, 3, dtype=torch.float64)
    got = answer(_marked(1.0), _marked(0.0), low, high)(x, NoiseLevel(alpha, sigma, 0.0)).eps
    return float(torch.as_tensor(got).mean())


@case("ex-05-interval", "inside-and-outside")
def _(answer):
    got = [_asked(answer, 1.0, sigma, 0.2, 1.6) for sigma in (0.05, 0.5, 1.0, 5.0, 80.0)]
    if got == [1, 0, 0, 1, 1]:
        raise Mistake("guided and plain are swapped: guide inside the interval")
    assert got == [0, 1, 1, 0, 0], f"guide at sigma = 0.5 and 1 and nowhere else of 0.05, 0.5, 1, 5, 80; got {got}"


@case("ex-05-interval", "ratio-not-sigma")
def _(answer):
    levels = [(math.cos(a), math.sin(a)) for a in (0.3, 0.9, 1.2, 1.5)]
    right = [float(0.5 < sigma / alpha <= 3.0) for alpha, sigma in levels]
    got = [_asked(answer, *level, 0.5, 3.0) for level in levels]
    if got == [float(0.5 < sigma <= 3.0) for _, sigma in levels]:
        raise Mistake("you compared sigma; the published intervals are for alpha = 1, so compare sigma / alpha")
    if got == [float(0.5 < (sigma / alpha) ** 2 <= 3.0) for alpha, sigma in levels]:
        raise Mistake("you compared variances, sigma^2 / alpha^2")
    assert got == right, f"at sigma / alpha = 0.31, 1.26, 2.57, 14.1 the interval (0.5, 3] gives {right}, not {got}"


@case("ex-05-interval", "half-open")
def _(answer):
    got = _asked(answer, 1.0, 0.5, 0.5, 2.0), _asked(answer, 1.0, 2.0, 0.5, 2.0)
    assert got == (0, 1), "neighbouring intervals must not share a level: the lower end is outside, the upper inside"


@case("ex-05-interval", "asks-only-one")
def _(answer):
    calls = []

    def counted(name):
        def denoise(x, level):
            calls.append(name)
            return Prediction(x, level, 0 * x, "eps")

        return denoise

    x = torch.zeros(2, 3, dtype=torch.float64)
    for sigma, name in ((0.5, "guided"), (5.0, "plain")):
        calls.clear()
        answer(counted("guided"), counted("plain"), 0.2, 1.6)(x, NoiseLevel(1.0, sigma, 0.0))
        assert calls == [name], f"at sigma = {sigma} only the {name} denoiser is needed, but {calls} were asked"


@case("ex-05-interval", "same-as-the-package")
def _(answer):
    world = GaussianMixtureDenoiser(torch.tensor([[-1.0, 0.0], [0.8, 0.5]]), 0.2)
    guided, plain = autoguidance(conditioned(world, 1), world, 3.0), conditioned(world, 1)
    x = world.sample(5, torch.Generator().manual_seed(0))
    for level in cosine_schedule().levels(6)[1:-1]:
        got = answer(guided, plain, 0.4, 1.1)(x, level).eps
        right = guidance_interval(guided, plain, 0.4, 1.1)(x, level).eps
        assert _close(got, right), "the prediction must come back as it is"
