"""Checks of lesson 14: what a first stage keeps, unit latents, a chain begun in noise, latents of digits, digits."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import torch
from torch import Generator, Tensor

from minidiff.course.comparing import expect, normal, uniform
from minidiff.course.exercises import case, exercise
from minidiff.course.forms import anything, call, number, several, tensor
from minidiff.course.outcomes import Mistake
from minidiff.data.digits import digits
from minidiff.metrics import frechet_distance
from minidiff.metrics.embedders import embedder
from minidiff.schedule import DATA, NoiseLevel, sqrt_linear_schedule, zero_terminal_snr

LESSON = "14_stable_diffusion"

# -- ex-14-stage ------------------------------------------------------------------------------------------------------

Kept = tuple[Tensor, Tensor, Tensor]


def _directions(rng: Generator, low: float = 0.2, high: float = 3.0, N: int = 6) -> dict:
    """Variances on both sides of a weight of 1, none near it."""
    above = uniform(rng, 1.5, high, N - N // 2)
    return {"variances": torch.cat([above, uniform(rng, low, 0.8, N // 2)]), "weight": 1.0}


each = tensor(lambda given: given["variances"].shape)
exercise(
    "ex-14-stage",
    name="first_stage",
    lesson=LESSON,
    form=call(several(rate=each, blurred=each, sharp=each), _directions),
)


def _kept(variances: Tensor, weight: float, *, half: float = 0.5, level: float = 1.0, silent: bool = True) -> Kept:
    """Rate, and the errors of both decoders, or what a slip makes of them."""
    least = torch.full_like(variances, level * weight)
    blurred = torch.minimum(least, variances) if silent else least
    return half * (variances / blurred).log(), blurred, 2 * (variances - (variances * (variances - blurred)).sqrt())


def _expect_kept(answer: Callable, given: dict, which: int, mistakes: dict[str, Tensor]) -> None:
    name = ("rate", "error of the blurred decoder", "error of the sharp decoder")[which]
    expect(answer(**given)[which], _kept(**given)[which], f"the {name} is wrong", mistakes)


@case("ex-14-stage", "blurred")
def _(answer, rng):
    for given in (_directions(rng), _directions(rng, N=3) | {"weight": 1.2}):
        variances, weight = given["variances"], given["weight"]
        mistakes = {
            "where the variance is below the weight nothing is sent, and all of it is lost": _kept(
                **given, silent=False
            )[1],
            "the weight itself is the level, not twice it": _kept(**given, level=2.0)[1],
            "the weight itself is the level, not half of it": _kept(**given, level=0.5)[1],
            "the larger of the two is what is kept, not lost": variances.clamp(min=weight),
            "this is what is kept of the variance": variances - _kept(**given)[1],
        }
        _expect_kept(answer, given, 1, mistakes)


@case("ex-14-stage", "rate")
def _(answer, rng):
    given = _directions(rng)
    mistakes = {
        "the half is missing": _kept(**given, half=1.0)[0],
        "nats, by the natural logarithm; these are bits": _kept(**given, half=0.5 / math.log(2))[0],
        "a rate is never negative: a direction below the weight is not sent at all": _kept(**given, silent=False)[0],
        "the ratio is upside down": _kept(**given, half=-0.5)[0],
    }
    _expect_kept(answer, given, 0, mistakes)


@case("ex-14-stage", "sharp", assumes=("form", "blurred"))
def _(answer, rng):
    for given in (_directions(rng), _directions(rng, N=2)):
        variances = given["variances"]
        blurred = _kept(**given)[1]
        mistakes = {
            "this is the error of a draw, twice that of the mean; a sharp decoder can do better": 2 * blurred,
            "this is the error of the mean, whose pictures vary too little": blurred,
            "the root is missing": 2 * blurred - blurred.square() / variances,
        }
        _expect_kept(answer, given, 2, mistakes)


# -- ex-14-level ------------------------------------------------------------------------------------------------------


def _deviating(rng: Generator, B: int = 4) -> dict:
    alpha = uniform(rng, 0.3, 0.9, B)
    return {"alpha": alpha, "sigma": (1 - alpha**2).sqrt(), "deviation": uniform(rng, 2.0, 6.0)}


exercise(
    "ex-14-level",
    name="unit_level",
    lesson=LESSON,
    form=call(several(alpha=tensor("alpha"), sigma=tensor("alpha")), _deviating),
)


def _unit(alpha: Tensor, sigma: Tensor, deviation: float, power: float = 1.0) -> tuple[Tensor, Tensor]:
    signal = alpha * deviation**power
    length = (signal**2 + sigma**2).sqrt()
    return signal / length, sigma / length


def _expect_level(answer: Callable, given: dict) -> None:
    alpha, sigma, deviation = given.values()
    mistakes = {
        "the deviation is upside down: large latents drown later, not sooner": _unit(**given, power=-1.0),
        "log alpha^2 grows by 2 log of the deviation: alpha itself by the deviation, not its root": _unit(
            **given, power=0.5
        ),
        "alpha is multiplied by the deviation, not by its square": _unit(**given, power=2.0),
        "the new level is not of unit variance yet: divide by the deviation of x_t": (alpha * deviation, sigma),
        "alpha^2 + sigma^2 need not be one here: divide by the deviation of x_t": (
            alpha * deviation / (1 + alpha**2 * (deviation**2 - 1)).sqrt(),
            sigma / (1 + alpha**2 * (deviation**2 - 1)).sqrt(),
        ),
    }
    expect(answer(**given), _unit(**given), "not the level that unit latents would see", mistakes)


@case("ex-14-level", "large-latents")
def _(answer, rng):
    _expect_level(answer, _deviating(rng))
    _expect_level(answer, _deviating(rng, B=1))


@case("ex-14-level", "small-latents")
def _(answer, rng):
    _expect_level(answer, _deviating(rng) | {"deviation": uniform(rng, 0.1, 0.4)})


@case("ex-14-level", "variance-exploding")
def _(answer, rng):
    _expect_level(
        answer, _deviating(rng) | {"alpha": torch.ones(4, dtype=torch.float64), "sigma": uniform(rng, 2, 9, 4)}
    )


# -- ex-14-grey -------------------------------------------------------------------------------------------------------


def _chain(rng: Generator, n: int = 4) -> list[NoiseLevel]:
    """A variance-preserving chain of n steps that begins with some signal left."""
    first = uniform(rng, 0.2, 0.4)
    angles = [math.acos(first) * (1 - i / n) for i in range(n)]
    return [*(NoiseLevel(math.cos(a), math.sin(a), a) for a in angles), DATA]


def _pixel(rng: Generator, n: int = 4) -> dict:
    return {"mean": uniform(rng, 0.5, 0.9), "variance": uniform(rng, 0.4, 0.8), "levels": _chain(rng, n)}


exercise(
    "ex-14-grey",
    name="begun_in_noise",
    lesson=LESSON,
    form=call(several(mean=number(), variance=number()), _pixel),
)


def _spread(level: NoiseLevel, variance: float) -> float:
    return level.alpha**2 * variance + level.sigma**2


def _walked(
    mean: float, variance: float, levels: list[NoiseLevel], *, start: tuple[float, float] | None = None, noisy=False
) -> tuple[float, float]:
    """Mean and variance at the end of a chain with the right answers, from N(0, 1) or another start."""
    m, v = (0.0, 1.0) if start is None else start
    for t, s in pairwise(levels):
        total = _spread(t, variance)
        scale = (s.alpha * t.alpha * variance + (0 if noisy else s.sigma * t.sigma)) / total
        added = 0.0
        if noisy:  # ancestral: the conditional law of x_s
            scale = t.alpha / s.alpha * _spread(s, variance) / total
            added = _spread(s, variance) - scale**2 * total
        m, v = s.alpha * mean + scale * (m - t.alpha * mean), scale**2 * v + added
    return m, v


def _expect_walk(answer: Callable, given: dict, which: int) -> None:
    mean, variance, levels = given.values()
    first, total = levels[0], _spread(levels[0], variance)
    share = first.alpha * math.sqrt(variance / total)
    spread = _walked(0.0, variance, [first, DATA])[1]
    mistakes = (
        {
            "the chain begins at zero, not at alpha_T times the mean": mean,
            "this is the limit of very many steps; the chain has a few": mean * (1 - share),
            "these are ancestral steps: DDIM adds no noise, and turns what it finds": _walked(**given, noisy=True)[0],
            "this is one step from the first level to clean data": _walked(mean, variance, [first, DATA])[0],
        },
        {
            "the chain begins with variance 1, not with that of noisy data": _walked(**given, start=(0.0, total))[1],
            "this is the limit of very many steps; the chain has a few": variance / total,
            "this is the standard deviation; the variance was asked for": math.sqrt(_walked(**given)[1]),
            "these are ancestral steps: DDIM adds no noise": _walked(**given, noisy=True)[1],
            "this is one step from the first level to clean data": spread,
        },
    )[which]
    say = f"the {('mean', 'variance')[which]} of what comes out is {{right}}, not {{got}}"
    expect(answer(**given)[which], _walked(**given)[which], say, mistakes)


@case("ex-14-grey", "mean")
def _(answer, rng):
    _expect_walk(answer, _pixel(rng), 0)
    _expect_walk(answer, _pixel(rng, n=7) | {"mean": -0.6}, 0)


@case("ex-14-grey", "variance", assumes=("form",))
def _(answer, rng):
    _expect_walk(answer, _pixel(rng), 1)
    _expect_walk(answer, _pixel(rng, n=7) | {"variance": 4.0}, 1)


@case("ex-14-grey", "stable-diffusion")
def _(answer, rng):
    given = {"mean": 0.8, "variance": uniform(rng, 40, 90), "levels": sqrt_linear_schedule().levels(10)}
    for which in range(2):
        _expect_walk(answer, given, which)


@case("ex-14-grey", "nothing-left-at-the-start")
def _(answer, rng):
    given = _pixel(rng) | {"levels": zero_terminal_snr(sqrt_linear_schedule()).levels(5)}
    try:
        got = answer(**given)
    except ZeroDivisionError as error:
        raise Mistake("alpha is 0 at the first level of this chain: nothing may be divided by it") from error
    if not all(map(math.isfinite, got)):
        raise Mistake("alpha is 0 at the first level of this chain: nothing may be divided by it")
    expect(got[0], given["mean"], "where nothing is left of the picture, the mean must come out right")
    expect(got[1], _walked(**given)[1], "the variance of what comes out is {right}, not {got}")


# -- ex-14-squeeze ----------------------------------------------------------------------------------------------------

NEAR, UNIT = 1.05, 0.02  # of the best linear autoencoder's error; of a standard deviation of one


def _flat(split: str) -> Tensor:
    return digits(split)[0].flatten(1)


exercise(
    "ex-14-squeeze",
    name="squeeze",
    lesson=LESSON,
    form=call(
        several(
            encode=call(anything(), lambda rng: {"x": normal(rng, 3, 6).float()}),
            decode=call(anything(), lambda rng: {"z": normal(rng, 3, 2).float()}),
        ),
        lambda rng: {"images": normal(rng, 50, 6).float(), "numbers": 2},
    ),
)


def best_linear(images: Tensor, shown: Tensor, numbers: int) -> float:
    """Mean squared error on ``shown`` of the linear autoencoder that is best on ``images``."""
    mean = images.double().mean(0)
    rows = torch.linalg.svd(images.double() - mean, full_matrices=False).Vh[:numbers]
    centred = shown.double() - mean
    return (centred - centred @ rows.T @ rows).square().mean().item()


def _latents(encode: Callable, images: Tensor, numbers: int) -> Tensor:
    return tensor((len(images), numbers)).see(encode(images), {}, "what your encode returns")


def _off(pair: tuple[Callable, Callable], images: Tensor, numbers: int) -> float:
    """Mean squared error of pictures after the way there and back."""
    encode, decode = pair
    back = decode(_latents(encode, images, numbers).float())
    back = tensor(tuple(images.shape)).see(back, {}, "what your decode returns")
    return (back - images.double()).square().mean().item()


@case("ex-14-squeeze", "unseen-digits", points=2)
def _(answer):
    images, unseen = _flat("train"), _flat("heldout")
    for numbers in (4, 16):
        off, most = _off(answer(images, numbers), unseen, numbers), NEAR * best_linear(images, unseen, numbers)
        blind = (unseen - images.mean(0)).square().mean().item()
        if abs(off - blind) < 1e-3 * blind:
            raise Mistake("these are all the mean picture: nothing of a picture arrives in its latent")
        say = f"with {numbers} numbers, unseen digits are off by {off:.4f} after the way there and back"
        assert off <= most, f"{say}; {most:.4f} is allowed"


@case("ex-14-squeeze", "unit-latents")
def _(answer):
    images = _flat("train")
    for numbers in (4, 16):
        deviation = _latents(answer(images, numbers)[0], images, numbers).std().item()
        say = f"all numbers of the training latents together must have a standard deviation of 1, not {deviation:.3f}"
        assert abs(deviation - 1) < UNIT, say


@case("ex-14-squeeze", "other-data", assumes=("form",))
def _(answer, rng):
    """Pictures far from the middle, that need no more than three numbers."""
    images = (5 + normal(rng, 300, 3) @ normal(rng, 3, 12)).float()
    shown, whole = images[:200], images[200:]
    off = _off(answer(shown, 3), whole, 3) / (whole - shown.mean(0)).square().mean().item()
    # nothing need be lost here: 0.05 leaves room for a network, and none for one that forgets the mean
    assert off < 0.05, (
        f"pictures of three numbers lose {off:.2f} of their variance in a latent of three; 0.05 is allowed"
    )


# -- ex-14-drawn ------------------------------------------------------------------------------------------------------

DRAWN, FEATURES, NUMBERS = 400, "digits-classifier-clean", 16
WITHIN = 0.5  # of the distance of Normal latents; the reference is at 0.15, unseen digits at 0.02

exercise("ex-14-drawn", name="drawn", lesson=LESSON, form=tensor((DRAWN, 1, 8, 8), "float"))


def _features(images: Tensor) -> Tensor:
    with torch.no_grad():
        return embedder(FEATURES).images(images.float())


@cache
def _known() -> Tensor:
    return _features(digits("train")[0])


@cache
def from_normal_latents() -> float:
    """Frechet distance, from the training digits, of digits whose linear latents are drawn from a Normal."""
    images = _flat("train").double()
    mean = images.mean(0)
    _, deviations, rows = torch.linalg.svd(images - mean, full_matrices=False)
    noise = torch.randn(DRAWN, NUMBERS, generator=Generator().manual_seed(0), dtype=torch.float64)
    drawn = noise * deviations[:NUMBERS] / len(images) ** 0.5 @ rows[:NUMBERS] + mean
    return frechet_distance(_features(drawn.reshape(-1, 1, 8, 8)), _known())


def _nearest(images: Tensor) -> float:
    return torch.cdist(images.flatten(1).float(), _flat("train")).amin(1).mean().item()


@case("ex-14-drawn", "new", points=0)
def _(answer):
    share = _nearest(answer) / _nearest(digits("heldout")[0])
    # copies come back from eight bits: near a training digit, not at it
    if share < 0.02:
        raise Mistake("these are the training digits")
    assert share > 0.5, f"your digits are {share:.2f} as far from the training digits as unseen ones; 0.5 is needed"


@case("ex-14-drawn", "like-real-ones", points=3)
def _(answer):
    distance, most = frechet_distance(_features(answer), _known()), WITHIN * from_normal_latents()
    assert distance <= most, f"their Frechet distance from the training digits is {distance:.2f}; {most:.2f} is allowed"
