"""Checks of lesson 05: a guided sampler solved by hand, forgotten weights, resampling, the tilted score, intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache

import torch
from torch import Generator, Tensor

from minidiff.course.comparing import close, expect, normal, uniform
from minidiff.course.exercises import case, exercise
from minidiff.course.forms import call, integer, listed, number, prediction, taking, tensor
from minidiff.course.outcomes import Mistake
from minidiff.denoiser import Denoiser, conditioned
from minidiff.exact import GaussianDenoiser, GaussianMixtureDenoiser
from minidiff.guidance import autoguidance, guidance_interval
from minidiff.prediction import Prediction
from minidiff.sampler import heun, sample
from minidiff.schedule import DATA, NoiseLevel, cosine_schedule

LESSON = "05_what_guidance_samples"

# -- ex-05-guided-variance --------------------------------------------------------------------------------------------

exercise(
    "ex-05-guided-variance",
    name="guided_variance",
    lesson=LESSON,
    form=call(number(), lambda rng: {"v": uniform(rng, 0.2, 0.6), "s": 3.0, "high": 0.2, "low": 0.9}),
)


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


def _other_variances(v: float, s: float, high: float, low: float) -> dict[str, float]:
    """Diagnosis -> what that mistake gives for a variance."""
    noisy, clean = (1 - (1 - v) * alpha**2 for alpha in (high, low))
    ratio = clean / noisy
    return {
        "you used 1 + s where s belongs: s = 1 is the plain conditional model": v * ratio**s,
        "this is how much a deviation shrinks; a variance is its square": math.sqrt(v * ratio ** (s - 1)),
        "this is v^s: guided everywhere, not in the interval alone": v**s,
        "outside the interval the ODE still runs, with s = 1": ratio**s,
        "outside the interval the ODE runs with s = 1; you left that out, and took s - 1 inside": ratio ** (s - 1),
        "the ends are swapped: V falls from noise to data, and so does the variance": v * ratio ** (1 - s),
        "alpha is squared in V: the noisy class has the variance v alpha^2 + sigma^2": v
        * ((1 - (1 - v) * low) / (1 - (1 - v) * high)) ** (s - 1),
        "deviations shrink by the power s / 2, variances by s; you took 2 s": v * ratio ** (2 * s - 1),
    }


@case("ex-05-guided-variance", "everywhere-is-v-to-the-s")
def _(answer, rng):
    for v, s in ((uniform(rng, 0.3, 0.5), uniform(rng, 2.5, 3.5)), (0.1, 1.5), (0.7, 6), (0.001, 2.0)):
        wrong = _other_variances(v, s, 0.0, 1.0) | {
            "this is the variance of the tilted density, which is what guidance does not sample": v / (v + s * (1 - v)),
            "this is the stochastic sampler's variance; the ODE was asked for": (v - v ** (2 * s))
            / ((2 * s - 1) * (1 - v)),
        }
        say = f"guided everywhere with s = {s:.3g}, a variance of {v:.3g} becomes v^s = {{right}}, not {{got}}"
        expect(answer(v, s, 0.0, 1.0), v**s, say, wrong)


@case("ex-05-guided-variance", "no-guidance-no-change")
def _(answer, rng):
    v, at = uniform(rng, 0.3, 0.5), uniform(rng, 0.4, 0.7)
    for s, high, low in ((5.0, at, at), (1.0, 0.2, 0.9), (4.0, 1.0, 1.0)):
        say = f"s = {s:g} between alpha = {high:.3g} and {low:.3g} changes nothing: {{right}}, not {{got}}"
        expect(answer(v, s, high, low), v, say, _other_variances(v, s, high, low))


@case("ex-05-guided-variance", "measured-on-a-chain")
def _(answer, rng):
    step = lambda low, high: torch.randint(low, high, (1,), generator=rng).item()
    for first, last in ((step(50, 70), step(130, 150)), (0, step(90, 130)), (step(90, 120), 200)):
        v, s = uniform(rng, 0.2, 0.5), uniform(rng, 2, 4)
        right, high, low = _chain_variance(v, s, first, last)
        say = f"a chain of 200 steps, guided from alpha = {high:.3f} to {low:.3f}, ends with {{right}}, not {{got}}"
        # what the steps of the chain leave
        expect(answer(v, s, high, low), right, say, _other_variances(v, s, high, low), rtol=2e-3)


# -- ex-05-path-weight ------------------------------------------------------------------------------------------------


def _means(rng: Generator, *shape: int) -> dict[str, Tensor]:
    return {"mean_c": normal(rng, *shape), "mean_u": normal(rng, *shape)}


exercise(
    "ex-05-path-weight",
    name="log_weight",
    lesson=LESSON,
    form=call(
        tensor(lambda given: (len(given["mean_c"]),)),
        lambda rng: {**_means(rng, 4, 3, 2), "variance": 0.4, "scale": 2.0},
    ),
)


@case("ex-05-path-weight", "what-the-square-leaves-over")
def _(answer, rng):
    for variance, s in ((uniform(rng, 0.2, 0.5), uniform(rng, 3, 4)), (1.7, -0.5), (0.6, uniform(rng, 0.3, 0.7))):
        c, u = _means(rng, 4, 3, 2).values()
        x = normal(rng, 4, 3, 2)
        energy = lambda mean: -(x - mean).square().flatten(1).sum(1) / (2 * variance)  # noqa: B023
        right = (1 - s) * energy(u) + s * energy(c) - energy(u + s * (c - u))
        distance = (c - u).square().sum((1, 2))
        wrong = {
            "the sign is wrong: at s > 1 paths along which the models disagree come too rarely, not too often": -right,
            "a factor 1/2 is missing: it comes from the Gaussian's exponent": 2 * right,
            "the distance is measured in units of Sigma; divide by the variance": right * variance,
            "you used the standard deviation where the variance belongs": right * math.sqrt(variance),
            "you divided by the variance twice": right / variance,
            "the factor is s (s - 1): it must vanish at s = 1, and s^2 does not": s**2 * distance / (2 * variance),
            "the factor is s (s - 1): it must vanish at s = 0, and (s - 1)^2 does not": (s - 1) ** 2
            * distance
            / (2 * variance),
            "the factor is s (s - 1), not s": s * distance / (2 * variance),
            "the factor is s (s - 1), not s - 1": (s - 1) * distance / (2 * variance),
            "the factor is s (s - 1), not s (s + 1)": s * (s + 1) * distance / (2 * variance),
            "you averaged over the pixels; log densities of independent pixels add": right / 6,
            "the distance must be squared": s * (s - 1) * distance.sqrt() / (2 * variance),
            "squares are summed; you squared the sum": s * (s - 1) * (c - u).sum((1, 2)).square() / (2 * variance),
            "this is the weight; its logarithm was asked for": right.exp(),
        }
        say = f"N(mu_u)^(1-s) N(mu_c)^s over N(guided mean) is another number at s = {s:.3g}, variance {variance:.3g}"
        expect(answer(c, u, variance, s), right, say, wrong)


@case("ex-05-path-weight", "nothing-at-0-and-1")
def _(answer, rng):
    for s in (0.0, 1.0):
        got = answer(*_means(rng, 4, 3, 2).values(), 0.4, s)
        expect(got, torch.zeros(4), f"at s = {s:g} one model alone is sampled and every weight is 1")


@case("ex-05-path-weight", "one-number-per-sample")
def _(answer, rng):
    for shape in ((5, 3, 4, 4), (1, 6), (3, 1), (2, 2, 1, 2, 2)):
        c, u = _means(rng, *shape).values()
        right = (c - u).square().flatten(1).sum(1) / 0.4
        expect(answer(c, u, 0.4, 2.0), right, f"wrong for means of shape {shape}: sum over all axes but the batch")
    expect(answer(c.float(), u.float(), 0.4, 2.0), right, "wrong for means in float32")


@case("ex-05-path-weight", "too-large-for-a-weight")
def _(answer, rng):
    for s in (4.0, 0.5):
        c, u = _means(rng, 3, 2, 4, 4).values()
        right = s * (s - 1) * (c - u).square().flatten(1).sum(1) / (2 * 1e-4)
        over = {"the weight itself is zero or infinite here: never take the exponential": torch.sign(right) * math.inf}
        expect(answer(c, u, 1e-4, s), right, f"wrong for the small variance 0.0001 at s = {s:g}", over)


# -- ex-05-systematic -------------------------------------------------------------------------------------------------

exercise(
    "ex-05-systematic",
    name="survivors",
    lesson=LESSON,
    form=call(
        listed(integer(), lambda given: len(given["weights"])), lambda rng: {"weights": [0.1, 0.2, 0.3, 0.4], "u": 0.5}
    ),
)


def _chosen(weights: list[float], thresholds: Iterable[float]) -> list[int]:
    """For each threshold the number of cumulative weights that do not exceed it."""
    heaped = torch.tensor(weights, dtype=torch.float64).cumsum(0)
    return [min(int((heaped <= threshold).sum()), len(weights) - 1) for threshold in thresholds]


def _misdrawn(weights: list[float], u: float) -> dict[str, list[int]]:
    """Diagnosis -> the survivors that this mistake gives."""
    K = len(weights)
    right = _chosen(weights, [(u + j) / K for j in range(K)])
    return {
        "the thresholds are (u + j) / K; you did not divide u": _chosen(weights, [u + j / K for j in range(K)]),
        "u is given; you took 0 for it": _chosen(weights, [j / K for j in range(K)]),
        "u is given; you took 1/2 for it": _chosen(weights, [(j + 0.5) / K for j in range(K)]),
        "j runs from 0 to K - 1; yours runs from 1 to K": _chosen(weights, [(u + j + 1) / K for j in range(K)]),
        "one threshold for all survivors": _chosen(weights, [u] * K),
        "indices begin at 0; these are one too many": [i + 1 for i in right],
        "off by one: each survivor is the next particle": [(i + 1) % K for i in right],
        "off by one: each survivor is the particle before": [max(i - 1, 0) for i in right],
        "these are all copies of the heaviest particle": [max(range(K), key=weights.__getitem__)] * K,
        "these are the numbers of copies; indices were asked for": [right.count(i) for i in range(K)],
        "the survivors are in reversed order": right[::-1],
        "every particle survives once: the weights are not used": list(range(K)),
    }


def _race(rng: Generator, K: int) -> tuple[list[float], float]:
    """Weights and a u for which no threshold lies near a cumulative sum."""
    while True:
        weights, u = (1.5 * normal(rng, K)).softmax(0), uniform(rng, 0.1, 0.9)
        thresholds = (u + torch.arange(K)) / K
        if (weights.cumsum(0)[:-1, None] - thresholds).abs().min() > 1e-3 / K:
            return weights.tolist(), u


def _copies(answer, weights: list[float], u: float) -> list[int]:
    got = answer(weights, u)
    assert all(0 <= i < len(weights) for i in got), f"indices run from 0 to {len(weights) - 1}, got {got}"
    return [got.count(i) for i in range(len(weights))]


def _shown(weights: list[float]) -> str:
    return str([round(w, 3) for w in weights])


@case("ex-05-systematic", "by-the-definition")
def _(answer, rng):
    given = [*(_race(rng, K) for K in (5, 8, 20, 3)), ([0.7, 0.0, 0.0, 0.2, 0.1], 0.37), ([1.0], 0.2)]
    right = [_chosen(weights, [(u + j) / len(weights) for j in range(len(weights))]) for weights, u in given]
    got = [answer(*pair) for pair in given]
    wrong = [_misdrawn(*pair) for pair in given]  # short lists may be equal by chance: a mistake is one in all races
    mistakes = {text: [one[text] for one in wrong] for text in wrong[0]}
    first = next((i for i, pair in enumerate(zip(got, right, strict=True)) if pair[0] != pair[1]), 0)
    weights, u = given[first]
    say = f"weights {_shown(weights)}, u = {u:.3g}: the definition gives {right[first]}, not {got[first]}"
    expect(got, right, say, mistakes)


@case("ex-05-systematic", "at-the-seams")
def _(answer):
    """Binary fractions: no rounding."""
    seam = "W_1 + ... + W_(i-1) <= threshold < W_1 + ... + W_i: on a seam it is the next particle's"
    for weights, before in (([0.25] * 4, [0, 0, 1, 2]), ([0.0, 0.5, 0.0, 0.5], [0, 1, 1, 3])):
        right, got = _chosen(weights, [j / 4 for j in range(4)]), answer(weights, 0.0)
        expect(got, right, f"weights {weights}, u = 0: the definition gives {right}, not {got}", {seam: before})


@case("ex-05-systematic", "within-one-of-K-times-weight", assumes=())
def _(answer, rng):
    for K in (4, 60):
        weights, _ = _race(rng, 4) if K == 4 else ((1.5 * normal(rng, K)).softmax(0).tolist(), 0)
        for u in (0.01, 0.37, 0.99):
            for count, weight in zip(_copies(answer, weights, u), weights, strict=True):
                due = f"a particle that is due {K * weight:.2f} copies of {K} got {count}"
                assert abs(count - K * weight) < 1 + 1e-3, due


@case("ex-05-systematic", "right-on-average", assumes=())
def _(answer, rng):
    for K in (3, 6):
        weights, _ = _race(rng, K)
        runs = [_copies(answer, weights, (i + 0.5) / 100) for i in range(100)]
        for i, weight in enumerate(weights):
            say = f"averaged over u, weight {weight:.3f} of {K} must get {{right}} copies; it gets {{got}}"
            # a hundred values of u know the average to 0.01
            expect(sum(run[i] for run in runs) / 100, K * weight, say, rtol=0, atol=0.02)


@case("ex-05-systematic", "survives-rounding", assumes=("by-the-definition",))
def _(answer):
    for weights in ([0.1] * 9 + [0.1 - 1e-7], [0.5, 0.5 - 1e-7]):
        K, got = len(weights), answer(weights, 1 - 1e-9)
        if got[-1] == K:
            raise Mistake("the last threshold lies above the last cumulative sum here, and no index may be K")
        assert min(got) >= 0 and got[-1] == K - 1, (
            f"the last threshold, just below 1, belongs to {K - 1}, not {got[-1]}"
        )


# -- ex-05-tilted-denoiser --------------------------------------------------------------------------------------------


def _grid(rng: Generator) -> tuple[GaussianMixtureDenoiser, Tensor, Tensor, Tensor]:
    """Three unequal classes on a line, on a grid: world, points, log p and log p(1|x)."""
    means = torch.tensor([[-1.0], [0.4], [1.1]], dtype=torch.float64) + uniform(rng, -0.1, 0.1, 3, 1)
    world = GaussianMixtureDenoiser(means, torch.tensor([0.1, 0.3, 0.05]))
    points = torch.linspace(-4, 4, 801, dtype=torch.float64)
    return world, points, world.log_prob(points[:, None], DATA), world.classifier(1)(points[:, None], DATA)


def _gridded(rng: Generator) -> dict:
    _, points, log_p, log_class = _grid(rng)
    given = {"points": points, "log_p": log_p, "log_class": log_class, "scale": 2.0}
    return given | {"x": uniform(rng, -2, 2, 7), "alpha": 0.8, "sigma": 0.6}


exercise("ex-05-tilted-denoiser", name="tilted_x0", lesson=LESSON, form=call(tensor("x"), _gridded))


def _posterior(points: Tensor, log_weight: Tensor, x: Tensor, level: NoiseLevel) -> Tensor:
    """E[x_0 | x_t] of weighted points: a mixture of Gaussians without width."""
    weights = log_weight.softmax(0).clamp(min=1e-300)
    return GaussianMixtureDenoiser(points[:, None], 0.0, weights)(x[:, None], level).x0[:, 0]


def _mistilted(points: Tensor, log_p: Tensor, log_class: Tensor, s: float, x: Tensor, level: NoiseLevel) -> dict:
    """Diagnosis -> the E[x_0 | x_t] that this mistake gives."""
    alpha, sigma, tilted = level.alpha, level.sigma, log_p + s * log_class
    of = lambda log_weight, level=level: _posterior(points, log_weight, x, level)
    noise = -(x[:, None] - alpha * points).square() / (2 * sigma**2)
    plain = of(log_p)
    return {
        "this is the unconditional denoiser; p(c | x) is not in it": plain,
        "p(c | x) comes with one power too many: s = 0 must give the unconditional denoiser": of(tilted + log_class),
        "p(c | x) comes with one power too few: s = 1 must give the conditional denoiser": of(tilted - log_class),
        "this is the guided denoiser: you took the power after the mean over x_0, not before": plain
        + s * (of(log_p + log_class) - plain),
        "p(x) comes with the power 1; you raised both to s": of(s * (log_p + log_class)),
        "p(x) is missing": of(s * log_class),
        "alpha is missing: q(x_t | x_0) has the mean alpha x_0": of(tilted, NoiseLevel(1.0, sigma, 0)),
        "you used the standard deviation where the variance belongs": of(tilted, NoiseLevel(alpha, sigma**0.5, 0)),
        "a factor 1/2 is missing in the exponent of the noise": of(tilted, NoiseLevel(alpha, sigma / 2**0.5, 0)),
        "this is the mean of the tilted density; x is not in it": (tilted.softmax(0) @ points).expand_as(x),
        "p(x) is not in the weights: these are those of the noise alone": noise.softmax(1) @ points,
        "this is the likeliest point; the mean was asked for": points[(tilted + noise).argmax(1)],
        "the weights of one x must sum to one over the points; yours do over the batch": (tilted + noise).softmax(0)
        @ points,
        "the exponent of the noise has a minus": (tilted - noise).softmax(1) @ points,
        "this is alpha times the mean; x_0 is not scaled": alpha * of(tilted),
    }


def _denoises(
    answer, given: tuple[Tensor, Tensor, Tensor], s: float, x: Tensor, level: NoiseLevel, say: str, also=None
):
    right = _posterior(given[0], given[1] + s * given[2], x, level)
    wrong = _mistilted(*given, s, x, level) | (also or {})
    expect(answer(*given, s, x, level.alpha, level.sigma), right, say, wrong)


def _levels(rng: Generator) -> list[NoiseLevel]:
    return [cosine_schedule().level(uniform(rng, *pair)) for pair in ((0.25, 0.35), (0.45, 0.55), (0.7, 0.8))]


@case("ex-05-tilted-denoiser", "scale-1-is-conditional")
def _(answer, rng):
    world, *given = _grid(rng)
    for level in _levels(rng):
        x = uniform(rng, -2, 2, 7)
        right = world(x[:, None], level, 1).x0[:, 0]
        say = "at s = 1 the tilted density is p(x | c), and this must be its denoiser"
        wrong = _mistilted(*given, 1.0, x, level)
        expect(answer(*given, 1.0, x, level.alpha, level.sigma), right, say, wrong)


@case("ex-05-tilted-denoiser", "power-of-the-clean-class")
def _(answer, rng):
    _, *given = _grid(rng)
    for level in _levels(rng):
        for s in (uniform(rng, 2.5, 3.5), uniform(rng, 0.4, 0.6), 0.0):
            x = uniform(rng, -2, 2, 7)
            _denoises(answer, given, s, x, level, f"not the posterior mean under p(x) p(c|x)^{s:.3g}")


@case("ex-05-tilted-denoiser", "signal-is-scaled")
def _(answer, rng):
    _, *given = _grid(rng)
    for alpha, sigma in ((uniform(rng, 0.3, 0.4), 0.4), (1.0, uniform(rng, 0.6, 0.8)), (1.0, uniform(rng, 2, 3))):
        x, level = uniform(rng, -1.5, 1.5, 3), NoiseLevel(alpha, sigma, 0)
        kept = {}
        if alpha < 1:
            say = "sigma^2 = 1 - alpha^2 does not hold here: take sigma as it is given"
            kept[say] = _posterior(given[0], given[1] + 2 * given[2], x, NoiseLevel(alpha, math.sqrt(1 - alpha**2), 0))
        _denoises(answer, given, 2.0, x, level, f"wrong at alpha = {alpha:.3g}, sigma = {sigma:.3g}", kept)


@case("ex-05-tilted-denoiser", "any-batch-and-grid")
def _(answer, rng):
    for count, b in ((9, 9), (30, 1), (2, 5)):
        given = (uniform(rng, -2, 2, count), normal(rng, count).log_softmax(0), -normal(rng, count).abs())
        x, level = uniform(rng, -1, 1, b), NoiseLevel(0.8, 0.6, 0)
        _denoises(answer, given, 2.0, x, level, f"wrong for {count} points and {b} x")
    right = _posterior(given[0], given[1] + 2 * given[2], x, level)
    got = answer(*(part.float() for part in given), 2.0, x.float(), 0.8, 0.6)
    expect(got, right, "wrong for a grid in float32")


@case("ex-05-tilted-denoiser", "hardly-any-noise")
def _(answer, rng):
    points = torch.linspace(-2, 2, 9, dtype=torch.float64)
    given = (points, normal(rng, 9).log_softmax(0), -normal(rng, 9).abs())
    nearest = torch.tensor([1, 4, 8, 0])
    x = points[nearest] + torch.tensor([1, 1, 1, -1]) * uniform(rng, 0.15, 0.2, 4)
    weights = lambda logits: logits / logits.sum(1, keepdim=True)
    logits = given[1] + 3 * given[2] - (x[:, None] - points).square() / (2 * 0.004**2)
    underflow = "exp gives 0 where every point is far: add up logarithms, and let softmax subtract the largest"
    right = points[nearest]
    expect(
        answer(*given, 3.0, x, 1.0, 0.004),
        right,
        "with hardly any noise it is the nearest point",
        {underflow: weights(logits.exp()) @ points},
    )


# -- ex-05-promise ----------------------------------------------------------------------------------------------------

STEPS, CLASS_MEAN, CLASS_VARIANCE, PROMISED = 20, 1.0, 0.05, 6.0
NEAR = 0.005  # nats; the best constant scale leaves 0.052, the best stretch with one other scale 0.0009
exercise("ex-05-promise", name="scales_of_steps", lesson=LESSON, form=listed(number(), STEPS))


def ended(scales: Sequence[float]) -> tuple[float, float]:
    """Mean and variance at the end of a guided DDIM chain between N(0, 1) and the class."""
    mean, variance, m, v = 0.0, 1.0, CLASS_MEAN, CLASS_VARIANCE
    for i, s in enumerate(scales):
        t, r = (math.pi / 2 * (1 - k / STEPS) for k in (i, i + 1))
        alpha, sigma = math.cos(t), math.sin(t)
        noisy = v * alpha**2 + sigma**2  # variance of the class at this level
        score = s / noisy + (1 - s)  # x has this factor in eps / sigma, and m alpha s / noisy is taken off
        x0, eps = alpha * (s * v / noisy + 1 - s), sigma * score
        offset = s * m / noisy
        slope = math.cos(r) * x0 + math.sin(r) * eps
        mean = slope * mean + math.cos(r) * sigma**2 * offset - math.sin(r) * sigma * alpha * offset
        variance = slope**2 * variance
    return mean, variance


def broken(scales: Sequence[float], s: float = PROMISED) -> float:
    """Nats between the end of the chain and the tilted density."""
    total = CLASS_VARIANCE + s * (1 - CLASS_VARIANCE)
    (mean, variance), wanted = ended(scales), CLASS_VARIANCE / total
    ratio = variance / wanted
    if ratio <= 0:
        return math.inf
    return 0.5 * (ratio - 1 - math.log(ratio) + (mean - s * CLASS_MEAN / total) ** 2 / wanted)


@case("ex-05-promise", "finite-scales", points=0)
def _(answer):
    assert all(math.isfinite(s) and abs(s) <= 1000 for s in answer), "scales are finite, and no larger than 1000"


@case("ex-05-promise", "as-promised", points=3)
def _(answer):
    found = broken(answer)
    if max(answer) - min(answer) < 1e-9:
        raise Mistake(f"a constant scale: {found:.3f} nats; every step may have its own")
    assert found <= NEAR, f"the chain ends {found:.4g} nats from the promise; {NEAR} are allowed"


# -- ex-05-interval ---------------------------------------------------------------------------------------------------


MARK = 1e-3  # so small that x_0 lies inside [-1, 1]


def _marked(value: float) -> Denoiser:
    """A denoiser whose eps is everywhere ``value * MARK``."""
    return taking("x level", lambda x, level: Prediction(x, level, torch.full_like(x, value * MARK), "eps"))


def _at(rng: Generator) -> dict:
    return {"x": normal(rng, 2, 3), "level": cosine_schedule().level(uniform(rng, 0.4, 0.6))}


exercise(
    "ex-05-interval",
    name="in_interval",
    lesson=LESSON,
    form=call(
        call(prediction("x"), _at), lambda rng: {"guided": _marked(1.0), "plain": _marked(0.0), "low": 0.2, "high": 1.6}
    ),
)
Pairs = list[tuple[float, float]]  # alpha and sigma


def _guided_at(answer, levels: Pairs, low: float, high: float) -> list[float]:
    """For each level 1 when the guided denoiser was asked, 0 when the plain one was."""
    x, limited = torch.zeros(2, 3, dtype=torch.float64), answer(_marked(1.0), _marked(0.0), low, high)
    return [round(limited(x, NoiseLevel(*pair, 0.0)).eps.mean().item() / MARK, 2) for pair in levels]


def _misplaced(levels: Pairs, low: float, high: float) -> dict[str, list[float]]:
    """Diagnosis -> where that mistake guides."""
    inside: dict[str, Callable[[float, float], bool]] = {
        "guided and plain are swapped: guide inside the interval": lambda a, s: not low < s / a <= high,
        "you compared sigma; the published intervals are for alpha = 1, so compare sigma / alpha": lambda a, s: (
            low < s <= high
        ),
        "you compared variances, sigma^2 / alpha^2": lambda a, s: low < (s / a) ** 2 <= high,
        "you compared alpha / sigma, signal over noise; it is sigma / alpha": lambda a, s: low < a / s <= high,
        "you compared alpha": lambda a, s: low < a <= high,
        "the lower end is not used": lambda a, s: s / a <= high,
        "the upper end is not used": lambda a, s: low < s / a,
        "you guided everywhere": lambda a, s: True,
        "you guided nowhere": lambda a, s: False,
    }
    return {text: [float(rule(*pair)) for pair in levels] for text, rule in inside.items()}


@case("ex-05-interval", "inside-and-outside")
def _(answer, rng):
    low, high = uniform(rng, 0.2, 0.4), uniform(rng, 1.5, 2)
    levels = [(1.0, sigma) for sigma in (low / 8, 1.3 * low, 0.9, 0.9 * high, 3 * high, 80.0)]
    say = f"at alpha = 1 and sigma = {[round(s, 3) for _, s in levels]}, guide at the second to fourth"
    got = _guided_at(answer, levels, low, high)
    expect(got, [0.0, 1.0, 1.0, 1.0, 0.0, 0.0], f"{say}; yours: {got}", _misplaced(levels, low, high))


@case("ex-05-interval", "ratio-not-sigma")
def _(answer, rng):
    low, high = uniform(rng, 0.45, 0.55), uniform(rng, 2.7, 3.1)
    ratios = (0.1, 0.3, 0.6, 0.8, 1.2, 1.6, 2.1, 2.6, 3.5, 10.0)
    levels = [(1 / math.hypot(1, r), r / math.hypot(1, r)) for r in ratios]
    levels += [(0.2 * a, 0.2 * s) for a, s in levels[2:4]]  # neither variance-preserving nor variance-exploding
    right = [float(low < s / a <= high) for a, s in levels]
    got = _guided_at(answer, levels, low, high)
    say = f"at sigma / alpha = {ratios + ratios[2:4]} the interval ({low:.3f}, {high:.3f}] gives {right}, not {got}"
    expect(got, right, say, _misplaced(levels, low, high))


@case("ex-05-interval", "half-open")
def _(answer):
    for alpha in (1.0, 0.5):
        got = _guided_at(answer, [(alpha, 0.5 * alpha), (alpha, 2.0 * alpha)], 0.5, 2.0)
        wrong = {
            "the lower end is outside: low < sigma / alpha": [1.0, 1.0],
            "the upper end is inside: sigma / alpha <= high": [0.0, 0.0],
            "the lower end is outside and the upper inside; yours are the other way round": [1.0, 0.0],
        }
        say = "neighbouring intervals must not share a level: the lower end is outside, the upper inside"
        expect(got, [0.0, 1.0], say, wrong)


@case("ex-05-interval", "same-as-the-package", assumes=("inside-and-outside", "ratio-not-sigma"))
def _(answer, rng):
    world = GaussianMixtureDenoiser(torch.tensor([[-1.0, 0.0], [0.8, 0.5]], dtype=torch.float64) * 2, 0.2)
    told, x = conditioned(world, 1), world.sample(5, rng)
    fraction = uniform(rng, 0, 1, 5, 2)
    learned = lambda denoiser: taking("x level", lambda x, level: denoiser(x, level).replace(fraction=fraction))
    guided, plain = learned(autoguidance(told, world, 3.0)), learned(told)
    limited, packaged = (build(guided, plain, 0.4, 1.1) for build in (answer, guidance_interval))
    for level in cosine_schedule().levels(6)[1:-1]:
        got, right = limited(x, level), packaged(x, level)
        clamped = {"you clamped x_0; the prediction must come back as it is": right.x0.clamp(-1, 1)}
        expect(got.x0, right.x0, "the prediction must come back as it is", clamped)
        lost = "the prediction must come back as it is, its learned variance (.fraction) too"
        assert got.fraction is not None and close(got.fraction, right.fraction), lost


@case("ex-05-interval", "pure-noise-and-clean-data", assumes=("inside-and-outside", "ratio-not-sigma"))
def _(answer):
    ends = [(0.0, 1.0), (1.0, 0.0)]
    for low, high, right in ((0.2, 1.6, [0.0, 0.0]), (0.2, math.inf, [1.0, 0.0]), (0.0, 1.6, [0.0, 0.0])):
        got = _guided_at(answer, ends, low, high)
        expect(got, right, f"at alpha = 0 and at sigma = 0 the interval ({low}, {high}] gives {right}, not {got}")


@case("ex-05-interval", "asks-only-one", assumes=("inside-and-outside",))
def _(answer):
    asked: list[str] = []

    def counted(name: str) -> Denoiser:
        def denoise(x, level):
            asked.append(name)
            return Prediction(x, level, 0 * x, "eps")

        return taking("x level", denoise)

    x = torch.zeros(2, 3, dtype=torch.float64)
    for sigma, name in ((0.5, "guided"), (5.0, "plain"), (0.05, "plain")):
        asked.clear()
        answer(counted("guided"), counted("plain"), 0.2, 1.6)(x, NoiseLevel(1.0, sigma, 0.0))
        if sorted(asked) == ["guided", "plain"]:
            raise Mistake("you asked both denoisers; half of the gain is the saved pass")
        assert asked == [name], f"at sigma = {sigma} the {name} denoiser is to be asked, once; you asked {asked}"
