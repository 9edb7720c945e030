"""Checks of lesson 11: a pair of steps there and back, an encoder, the great circle, a text diff, where to step."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
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
from minidiff.course.forms import call, listed, number, several, tensor
from minidiff.course.outcomes import Mistake
from minidiff.exact import GaussianMixtureDenoiser
from minidiff.inversion import encode, round_trip_factor, slerp, text_diff
from minidiff.sampler import ddim, sample
from minidiff.schedule import DATA, NoiseLevel

LESSON = "11_bipartite"

# -- ex-11-pair -------------------------------------------------------------------------------------------------------

exercise(
    "ex-11-pair",
    name="pair_factor",
    lesson=LESSON,
    form=call(
        number(),
        lambda rng: dict(zip(("t", "r"), preserving_pair(rng), strict=True)) | {"variance": uniform(rng, 0.3, 0.6)},
    ),
)


def _by_angles(t: NoiseLevel, r: NoiseLevel, variance: float) -> float:
    angle = lambda level: math.atan2(level.sigma, level.alpha * math.sqrt(variance))
    return math.cos(angle(t) - angle(r)) ** 2


def _misjudged_pair(t: NoiseLevel, r: NoiseLevel, variance: float) -> dict[str, float]:
    """Diagnosis -> what that mistake makes of the factor."""
    right = _by_angles(t, r, variance)
    up = math.sqrt(right) * math.hypot(t.alpha * math.sqrt(variance), t.sigma)
    up /= math.hypot(r.alpha * math.sqrt(variance), r.sigma)
    return {
        "this is one way; there and back the cosine comes twice": math.sqrt(right),
        "this is the way up alone, which also stretches; the way down undoes that": up,
        "the vector has the standard deviation sqrt(v) in it; you took the variance": _by_angles(t, r, variance**2),
        "v is missing: this is the factor of data of variance one": _by_angles(t, r, 1.0),
        "this is what is lost; the factor is one minus it": 1 - right,
        "this is the sine": math.sqrt(1 - right),
        "two steps up and two down were not asked for": right**2,
        "v belongs to alpha, not to sigma": _by_angles(t, r, 1 / variance),
    }


def _expect_pair(answer: Callable, pair: Pair, variance: float, more: dict | None = None) -> None:
    t, r = pair
    say = f"wrong for v = {variance:.2f}, t ({t.alpha:.2f}, {t.sigma:.2f}), r ({r.alpha:.2f}, {r.sigma:.2f}): "
    say += "{got} instead of {right}"
    expect(answer(t, r, variance), _by_angles(t, r, variance), say, _misjudged_pair(t, r, variance) | (more or {}))


@case("ex-11-pair", "variance-preserving")
def _(answer, rng):
    for variance in (uniform(rng, 0.1, 0.4), uniform(rng, 2, 4), 1.0):
        _expect_pair(answer, preserving_pair(rng), variance)


@case("ex-11-pair", "any-levels")
def _(answer, rng):
    for pair in (general_pair(rng), exploding_pair(rng)):
        variance = uniform(rng, 0.2, 0.6)
        kept = [preserved(level) if level.alpha < 1 else level for level in pair]
        _expect_pair(answer, pair, variance, {PRESERVING: _by_angles(*kept, variance)})


@case("ex-11-pair", "ends-of-a-chain")
def _(answer, rng):
    t, r = preserving_pair(rng)
    for pair in ((NoiseLevel(0.0, 1.0, 1), r), (t, DATA), (NoiseLevel(0.0, 1.0, 1), DATA)):
        try:
            _expect_pair(answer, pair, uniform(rng, 0.2, 0.6))
        except ZeroDivisionError as error:
            raise Mistake("you divided by alpha or sigma, which is 0 at an end of the chain") from error


# -- ex-11-encode -----------------------------------------------------------------------------------------------------

Rule = Callable[[Callable, Tensor, NoiseLevel, NoiseLevel], Tensor]


def _world(rng: Generator) -> GaussianMixtureDenoiser:
    return GaussianMixtureDenoiser(normal(rng, 3, 2, 1, 2), uniform(rng, 0.1, 0.3))


def _chain(rng: Generator, n: int, radius: float = 1.0, last: NoiseLevel | None = None) -> list[NoiseLevel]:
    """n levels from near noise to near data, and ``last``."""
    angles = [1.35 - 1.1 * i / max(n - 1, 1) + uniform(rng, -0.2, 0.2) / n for i in range(n)]
    levels = [NoiseLevel(radius * math.cos(a), radius * math.sin(a), 10 * (n - i)) for i, a in enumerate(angles)]
    return levels + ([last] if last else [])


def _asked(denoiser, x: Tensor, level: NoiseLevel) -> tuple[Tensor, Tensor]:
    """x_0 and eps as the denoiser says, or as they are at clean data."""
    if level.sigma == 0:
        return x, torch.zeros_like(x)
    prediction = denoiser(x, level)
    return prediction.x0, prediction.eps


def _up(denoiser, x: Tensor, r: NoiseLevel, t: NoiseLevel) -> Tensor:
    x0, eps = _asked(denoiser, x, r)
    return t.alpha * x0 + t.sigma * eps


def _at_target(denoiser, x: Tensor, r: NoiseLevel, t: NoiseLevel) -> Tensor:
    eps = denoiser(x, t).eps
    return t.alpha / r.alpha * (x - r.sigma * eps) + t.sigma * eps


def _no_coefficient(denoiser, x: Tensor, r: NoiseLevel, t: NoiseLevel) -> Tensor:
    eps = _asked(denoiser, x, r)[1]
    return t.alpha * (x - r.sigma * eps) + t.sigma * eps


def _target_alone(denoiser, x: Tensor, r: NoiseLevel, t: NoiseLevel) -> Tensor:
    prediction = denoiser(x, t)
    return t.alpha * prediction.x0 + t.sigma * prediction.eps


def _clipped(denoiser, x: Tensor, r: NoiseLevel, t: NoiseLevel) -> Tensor:
    x0, eps = _asked(denoiser, x, r)
    return t.alpha * x0.clamp(-1, 1) + t.sigma * eps


def _swapped(denoiser, x: Tensor, r: NoiseLevel, t: NoiseLevel) -> Tensor:
    x0, eps = _asked(denoiser, x, r)
    return t.sigma * x0 + t.alpha * eps


def _preserving(denoiser, x: Tensor, r: NoiseLevel, t: NoiseLevel) -> Tensor:
    x0, eps = _asked(denoiser, x, r)
    return t.alpha * x0 + math.sqrt(1 - t.alpha**2) * eps


RULES = {
    "ask the denoiser at the level that the step comes from": _at_target,
    "x was taken for a sample of the level above: ask, and read x_0 and eps, at r": _target_alone,
    "x_0 is (x - sigma eps) / alpha: the division by alpha is missing": _no_coefficient,
    "you clipped x_0; that cannot be undone on the way back": _clipped,
    "alpha_t belongs to x_0, sigma_t to eps": _swapped,
}


def _along(rule: Rule, denoiser, rising: list[NoiseLevel], x: Tensor) -> Tensor:
    for r, t in pairwise(rising):
        x = rule(denoiser, x, r, t)
    return x


exercise(
    "ex-11-encode",
    name="encode_chain",
    lesson=LESSON,
    form=call(
        tensor("x_0"),
        lambda rng: {"denoiser": _world(rng), "levels": _chain(rng, 3), "x_0": normal(rng, 2, 2, 1, 2)},
    ),
)


def _slips(world, levels: list[NoiseLevel], x: Tensor) -> dict[str, Tensor | Callable]:
    slips = {text: lambda rule=rule: _along(rule, world, levels[::-1], x) for text, rule in RULES.items()}
    return slips | {
        "`levels` falls from noise to data; walk it upwards": lambda: sample(ddim(), world, levels, x),
        "this is x as it came": x,
        "the last step, to the noisiest level, is missing": lambda: _along(_up, world, levels[:0:-1], x),
        "the first step is missing": lambda: _along(_up, world, levels[-2::-1], x),
    }


@case("ex-11-encode", "one-step")
def _(answer, rng):
    for batch in (3, 1):
        world, levels, x = _world(rng), _chain(rng, 2), 2 * normal(rng, batch, 2, 1, 2)
        say = "two levels: not alpha_t x_0 + sigma_t eps as the denoiser believes at the cleaner one"
        expect(answer(world, levels, x), encode(world, levels, x), say, _slips(world, levels, x))


@case("ex-11-encode", "clean-data")
def _(answer, rng):
    world, levels, x = _world(rng), _chain(rng, 1, last=DATA), normal(rng, 2, 2, 1, 2)
    got = answer(world, levels, x)
    if not got.isfinite().all():
        raise Mistake("at clean data sigma = 0: do not ask there; x_0 is x, and eps is 0")
    wrong = {
        "at clean data eps is 0; you asked at the level above": _target_alone(world, x, DATA, levels[0]),
        "at clean data eps is 0; you asked for eps at the level above": _at_target(world, x, DATA, levels[0]),
        "the step from clean data is x_t = alpha_t x; you left x as it was": x,
    }
    expect(got, levels[0].alpha * x, "from clean data one step leads to alpha_t x", wrong)


@case("ex-11-encode", "whole-chain")
def _(answer, rng):
    for n, dtype in ((6, torch.float64), (4, torch.float32)):
        world, levels, x = _world(rng), _chain(rng, n, last=DATA), 2 * normal(rng, 3, 2, 1, 2).to(dtype)
        right = encode(world, levels, x.double())
        expect(
            answer(world, levels, x), right, f"wrong after {n} steps, x in {str(dtype)[6:]}", _slips(world, levels, x)
        )


@case("ex-11-encode", "other-chains")
def _(answer, rng):
    exploding = [NoiseLevel(1.0, sigma, i) for i, sigma in enumerate((uniform(rng, 2, 3), 0.8, 0.3))] + [DATA]
    pure = [NoiseLevel(0.0, 1.0, 0), *_chain(rng, 2)]
    for levels in (_chain(rng, 4, 0.8), exploding, pure):
        world, x = _world(rng), normal(rng, 2, 2, 1, 2)
        wrong = _slips(world, levels, x) | {PRESERVING: _along(_preserving, world, levels[::-1], x)}
        pairs = ", ".join(f"({level.alpha:.2f}, {level.sigma:.2f})" for level in levels)
        expect(answer(world, levels, x), encode(world, levels, x), f"wrong for the levels {pairs}", wrong)


# -- ex-11-slerp ------------------------------------------------------------------------------------------------------

exercise(
    "ex-11-slerp",
    name="great_circle",
    lesson=LESSON,
    form=call(tensor("a"), lambda rng: {"a": normal(rng, 2, 3, 2, 2), "b": normal(rng, 2, 3, 2, 2), "theta": 0.3}),
)


def _raw(a: Tensor, b: Tensor, theta: float) -> Tensor:
    """The sines on the vectors as they are, lengths and all."""
    omega = F.cosine_similarity(a.flatten(1), b.flatten(1), dim=1).acos().reshape(-1, *[1] * (a.ndim - 1))
    return (((1 - theta) * omega).sin() * a + (theta * omega).sin() * b) / omega.sin()


def _misturned(a: Tensor, b: Tensor, theta: float) -> dict[str, Tensor | Callable]:
    """Diagnosis -> what that mistake makes of the point between."""
    whole = lambda x: x.flatten(1).norm(dim=1).reshape(-1, *[1] * (a.ndim - 1))
    right, mean = slerp(a, b, theta), torch.lerp(whole(a), whole(b), theta)
    line = torch.lerp(a, b, theta)
    rows = lambda x: x.reshape(-1, x.shape[-1])
    batch = lambda x: x.reshape(1, -1)
    return {
        "this is the straight line": line,
        "this is the straight line between directions, brought to length: its speed is not constant": (
            lambda: torch.lerp(a / whole(a), b / whole(b), theta) * mean
        ),
        "this has length one; the length goes from |a| to |b|": right / whole(right),
        "this keeps the length of a": right / whole(right) * whole(a),
        "the sines are for directions; lengths are interpolated by themselves": _raw(a, b, theta),
        "theta = 0 is a; you went from b to a": slerp(b, a, theta),
        "a picture is one vector; you turned each row by itself": lambda: slerp(rows(a), rows(b), theta).reshape(
            a.shape
        ),
        "each picture has its own angle; you took the batch for one vector": (
            lambda: slerp(batch(a), batch(b), theta).reshape(a.shape)
        ),
        "this is a turn by theta times a right angle; omega is the angle between a and b": (
            math.cos(theta * math.pi / 2) * a / whole(a) + math.sin(theta * math.pi / 2) * b / whole(b)
        )
        * mean,
    }


@case("ex-11-slerp", "between")
def _(answer, rng):
    for shape in ((3, 2, 2, 3), (1, 5)):
        a, b, theta = normal(rng, *shape), 2 * normal(rng, *shape), uniform(rng, 0.2, 0.4)
        say = f"wrong for pictures of shape {shape}, theta = {theta:.2f}"
        expect(answer(a, b, theta), slerp(a, b, theta), say, _misturned(a, b, theta))


@case("ex-11-slerp", "ends")
def _(answer, rng):
    a, b = normal(rng, 2, 3, 2, 2), normal(rng, 2, 3, 2, 2)
    for theta, end, name in ((0.0, a, "a"), (1.0, b, "b")):
        expect(answer(a, b, theta), end, f"theta = {theta:g} must give {name}", _misturned(a, b, theta))


@case("ex-11-slerp", "parallel")
def _(answer, rng):
    a, theta = normal(rng, 4, 2, 3), uniform(rng, 0.2, 0.8)
    apart = normal(rng, 1, 2, 3)
    for b in (a.clone(), 2 * a, torch.cat([a[:3], apart])):  # of a batch some may be parallel
        got = answer(a, b, theta)
        if not got.isfinite().all():
            raise Mistake("where a and b are parallel sin(omega) is 0, or a cosine is rounded to above 1")
        expect(got, slerp(a, b, theta), "parallel pictures stay on their ray, the others turn")


@case("ex-11-slerp", "in-float32")
def _(answer, rng):
    a, b, theta = normal(rng, 2, 3, 4, 4).float(), normal(rng, 2, 3, 4, 4).float(), uniform(rng, 0.5, 0.8)
    expect(answer(a, b, theta), slerp(a.double(), b.double(), theta), "wrong in float32", _misturned(a, b, theta))


# -- ex-11-turn -------------------------------------------------------------------------------------------------------

exercise(
    "ex-11-turn",
    name="turned",
    lesson=LESSON,
    form=call(
        several(z_theta=tensor("z"), tip=tensor(lambda given: (len(given["z"]),))),
        lambda rng: dict(zip(("z", "after", "before"), _texts(rng), strict=True)) | {"theta": 0.3},
    ),
)


def _texts(rng: Generator, batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of pictures, and of two texts, the second of which fits."""
    after, before = F.normalize(normal(rng, batch, 6), dim=1), F.normalize(normal(rng, batch, 6), dim=1)
    return uniform(rng, 2, 3) * (before + 0.5 * normal(rng, batch, 6)), 1.5 * after, 0.7 * before


def _tip(z: Tensor, direction: Tensor) -> Tensor:
    return 1 - math.pi / (2 * F.cosine_similarity(z, direction, dim=1).acos())


@case("ex-11-turn", "turns-to-the-difference")
def _(answer, rng):
    for batch in (3, 1):
        (z, after, before), theta = _texts(rng, batch), uniform(rng, 0.2, 0.4)
        length = z.norm(dim=1, keepdim=True)
        right = text_diff(z, after, before, theta)
        unit = lambda x: F.normalize(x, dim=1)
        wrong = {
            "the length of z is to be kept; yours goes to that of the difference": slerp(z, after - before, theta),
            "the length of z is to be kept; yours goes to one": slerp(z, unit(after - before), theta),
            "this has length one; z has another": unit(right),
            "turn towards the difference of the texts, not towards the text": slerp(z, unit(after) * length, theta),
            "the difference is after minus before": text_diff(z, before, after, theta),
            "this adds the difference; slerp turns": z + theta * (after - before),
            "the difference of the embeddings as they are is asked for; you normalised the texts first": (
                lambda unit=unit, z=z, after=after, before=before, theta=theta: text_diff(
                    z, unit(after), unit(before), theta
                )
            ),
            "this is z as it was": z,
        }
        expect(answer(z, after, before, theta)[0], right, f"z turned by theta = {theta:.2f} is wrong", wrong)


@case("ex-11-turn", "where-it-tips")
def _(answer, rng):
    for batch in (4, 1):
        z, after, before = _texts(rng, batch)
        right, omega = _tip(z, after - before), F.cosine_similarity(z, after - before, dim=1).acos()
        wrong = {
            "omega is the angle between z and the difference, not between the texts": _tip(after, before),
            "omega is the angle between z and the difference, not between z and a text": _tip(z, after),
            "the difference is after minus before": _tip(z, before - after),
            "this is omega": omega,
            "this is in degrees": 1 - 90 / omega,
            "this is the share that is left": 1 - right,
            "a right angle is pi/2": 1 - math.pi / omega,
        }
        expect(answer(z, after, before, uniform(rng, 0.1, 0.5))[1], right, "where it tips is wrong", wrong)


# -- ex-11-chain ------------------------------------------------------------------------------------------------------

STEPS, LIMIT, VARIANCES = 20, 0.20, (0.01, 0.1, 1.0, 10.0)

exercise("ex-11-chain", name="noise_angles", lesson=LESSON, form=listed(number(), STEPS - 1))


def losses(angles: list[float]) -> list[float]:
    """One minus the round-trip factor of each variance, for a chain through these noise angles."""
    levels = [NoiseLevel(math.cos(a), math.sin(a), a) for a in angles]
    chain = [NoiseLevel(0.0, 1.0, math.pi / 2), *levels, DATA]
    return [1 - round_trip_factor(chain, v) for v in VARIANCES]


@case("ex-11-chain", "a-chain", points=0.0)
def _(answer):
    if all(s < t for s, t in pairwise(answer)):
        raise Mistake("the angles fall, from noise to data; yours rise")
    if max(answer) > math.pi / 2 and max(answer) <= 90:
        raise Mistake("the angles are in radians: pure noise is at pi/2")
    inside = [math.pi / 2, *answer, 0.0]
    assert all(t > s for t, s in pairwise(inside)), "the angles must fall, and lie between pi/2 and 0"


@case("ex-11-chain", "loses-little")
def _(answer):
    lost = losses(answer)
    worst = max(lost)
    if worst < LIMIT:
        return
    at = VARIANCES[lost.index(worst)]
    even = [math.pi / 2 * (1 - i / STEPS) for i in range(1, STEPS)]
    if max(abs(a - b) for a, b in zip(answer, even, strict=True)) < 1e-6:
        raise Mistake("these angles are even: what is even for variance one is not for the others")
    raise AssertionError(f"the largest loss is {worst:.1%}, for the variance {at:g}; below {LIMIT:.0%} was asked for")
