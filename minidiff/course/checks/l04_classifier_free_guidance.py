"""Checks of lesson 04: spellings of the scale, the guided model, dropped labels, and what guidance does to a spread."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from minidiff.course.exercises import case, exercise
from minidiff.course.outcomes import Mistake
from minidiff.exact import GaussianMixtureDenoiser
from minidiff.guidance import classifier_free, grad_log_prob
from minidiff.process import diffuse
from minidiff.random import randn
from minidiff.sampler import heun, sample
from minidiff.schedule import NoiseLevel, cosine_schedule

LESSON = "04_classifier_free_guidance"


@cache
def _world() -> GaussianMixtureDenoiser:
    """Five unequal blobs of three classes, tiny pictures of four channels."""
    means = torch.randn(5, 4, 1, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    variance, weights = torch.tensor([0.05, 0.1, 0.08, 0.06, 0.03]), torch.tensor([0.3, 0.25, 0.15, 0.2, 0.1])
    return GaussianMixtureDenoiser(means, variance, weights, labels=[0, 1, 1, 2, 0])


def _noisy(level: NoiseLevel, n: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return diffuse(_world().sample(n, generator), level, randn((n, 4, 1, 2), generator, torch.float64))


def _levels() -> list[NoiseLevel]:
    return [cosine_schedule().level(t) for t in (0.3, 0.6, 0.8)]


def _close(a: Tensor, b: Tensor, tolerance: float = 1e-6) -> bool:
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    return a.shape == b.shape and bool(((a - b).abs() <= tolerance * (1 + b.abs())).all())


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-04-average", name="unconditional_score", lesson=LESSON)


def _parts(n: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """The scores of all classes (n, K, D), log p(c | x_t) (n, K), and the unconditional score (n, D)."""
    level = _levels()[1]
    x = _noisy(level, n)
    scores = torch.stack([_world()(x, level, c).score.flatten(1) for c in range(3)], 1)
    return scores, _world().log_prob_label(x, level), _world()(x, level).score.flatten(1)


@case("ex-04-average", "is-the-score-of-the-mixture")
def _(answer):
    scores, log_probs, right = _parts()
    got = torch.as_tensor(answer(scores, log_probs))
    assert got.shape == right.shape, f"one score for each sample, {tuple(right.shape)}, not {tuple(got.shape)}"
    if _close(got, scores.mean(1)):
        raise Mistake("you gave every class the same weight; x_t has an opinion about its class")
    if _close(got, torch.einsum("bkd,k->bd", scores, torch.tensor([0.4, 0.4, 0.2]).double()), 1e-4):
        raise Mistake("you used the prior p(c) where the posterior p(c | x_t) belongs")
    if _close(got, (log_probs[..., None] * scores).sum(1)):
        raise Mistake("you weighed with log p(c | x_t); the weights are probabilities")
    assert _close(got, right), "this is not the score of q(x_t)"


@case("ex-04-average", "sure-of-one-class")
def _(answer):
    scores = _parts()[0]
    sure = torch.full(scores.shape[:2], -60.0, dtype=torch.float64)
    sure[:, 1] = 0.0
    got = answer(scores, sure)
    assert _close(got, scores[:, 1]), "where one class is certain, the unconditional score is that class's score"


@case("ex-04-average", "each-sample-its-own-weights")
def _(answer):
    scores, log_probs, right = _parts()
    got = torch.cat([torch.as_tensor(answer(scores[i : i + 1], log_probs[i : i + 1])) for i in range(len(scores))])
    assert _close(got, right), "wrong for a batch of one"
    assert _close(answer(scores, log_probs), got), "a sample's score must not depend on the batch it is in"


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-04-scale", name="to_scale", lesson=LESSON)
FROM_CONDITIONAL = ("ho-salimans", "dreamfusion", "added")
FROM_NULL = ("glide", "imagen")


def _as_spelled(rule: str, value: float, x: Tensor, level: NoiseLevel) -> Tensor:
    """The guided noise for class 1, word for word as the rule is printed."""
    c, u = _world()(x, level, 1).eps, _world()(x, level).eps
    pull = level.sigma * grad_log_prob(_world().classifier(1), x, level)
    return {
        "ho-salimans": (1 + value) * c - value * u,
        "dreamfusion": (1 + value) * c - value * u,
        "added": c + value * (c - u),
        "glide": u + value * (c - u),
        "imagen": value * c + (1 - value) * u,
        "classifier-on-unconditional": u - value * pull,
        "classifier-on-conditional": c - value * pull,
    }[rule]


def _compare(answer, rule: str) -> None:
    level = _levels()[1]
    x = _noisy(level)
    c, u = _world()(x, level, 1).eps, _world()(x, level).eps
    for value in (0.0, 0.5, 3.0):
        got, wanted = float(answer(rule, value)), _as_spelled(rule, value, x, level)
        if rule in (*FROM_CONDITIONAL, "classifier-on-conditional") and abs(got - value) < 1e-9:
            raise Mistake(f"{rule}: you used w where s = 1 + w belongs; this rule is already conditional at 0")
        assert _close(u + got * (c - u), wanted), f"{rule} with {value} is not our rule with s = {got:g}"


@case("ex-04-scale", "counted-from-the-conditional")
def _(answer):
    for rule in FROM_CONDITIONAL:
        _compare(answer, rule)


@case("ex-04-scale", "counted-from-the-null")
def _(answer):
    for rule in FROM_NULL:
        _compare(answer, rule)


@case("ex-04-scale", "with-a-classifier")
def _(answer):
    for rule in ("classifier-on-unconditional", "classifier-on-conditional"):
        _compare(answer, rule)


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-04-drop", name="drop_labels", lesson=LESSON)
DROP = 0.2


def _dropped(answer, p: float = DROP, seeds: int = 40, n: int = 128) -> tuple[Tensor, Tensor]:
    """(n,) labels and (seeds, n) what the answer makes of them."""
    labels = torch.arange(n) % 4
    return labels, torch.stack([torch.as_tensor(answer(labels, p, seed)) for seed in range(seeds)])


@case("ex-04-drop", "rate")
def _(answer):
    labels, got = _dropped(answer)
    changed = (got != labels).double().mean().item()
    if abs(changed - (1 - DROP)) < 0.03:
        raise Mistake("you kept a label with the probability with which it should be dropped")
    null = (got == -1).double().mean().item()
    # 5120 draws: four standard deviations are 0.022
    assert abs(null - DROP) < 0.03, f"{null:.3f} of the labels became the null -1, asked for were {DROP}"


@case("ex-04-drop", "each-sample-its-own")
def _(answer):
    _, got = _dropped(answer)
    share = (got == -1).double().mean(1)
    if bool(((share == 0) | (share == 1)).all()):
        raise Mistake("you drew once for the whole batch, so a batch has either all labels or none")
    spread, binomial = share.std().item(), math.sqrt(DROP * (1 - DROP) / got.shape[1])
    assert 0.5 < spread / binomial < 1.6, (
        f"the share of nulls varies between batches by {spread:.3f}; independent draws give {binomial:.3f}"
    )


@case("ex-04-drop", "null-is-no-class")
def _(answer):
    labels, got = _dropped(answer)
    changed = got[got != labels]
    if len(changed) and bool((changed == 0).all()):
        raise Mistake("you wrote label 0 for the null: the network would learn that nothing asked for means class 0")
    assert len(changed) and bool((changed == -1).all()), "a label is either kept as it is or becomes -1"


@case("ex-04-drop", "all-or-nothing-at-the-ends")
def _(answer):
    labels, none = _dropped(answer, 0.0, 3)
    _, every = _dropped(answer, 1.0, 3)
    assert bool((none == labels).all()), "with probability 0 no label may change"
    assert bool((every == -1).all()), "with probability 1 every label must become -1"


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-04-guide", name="guide_free", lesson=LESSON)


def _halves(level: NoiseLevel) -> tuple[Tensor, Tensor, Tensor]:
    x = _noisy(level)
    return x, _world()(x, level, 1).eps, _world()(x, level).eps


@case("ex-04-guide", "scale-1-is-conditional")
def _(answer):
    for level in _levels():
        x, c, u = _halves(level)
        got = answer(_world(), 1, 1.0)(x, level).eps
        if _close(got, u):
            raise Mistake("your halves are swapped: at s = 1 this is the unconditional model")
        if _close(got, 2 * c - u):
            raise Mistake("you used 1 + s where s belongs: at s = 1 nothing is guided")
        assert _close(got, c), "at s = 1 the guided model must be the conditional one"


@case("ex-04-guide", "scale-0-is-unconditional")
def _(answer):
    for level in _levels():
        x, c, u = _halves(level)
        got = answer(_world(), 1, 0.0)(x, level).eps
        if _close(got, -u):
            raise Mistake("a sign is wrong: s c + (s - 1) u has weights that sum to 2 s - 1; they must sum to one")
        if _close(got, c):
            raise Mistake("this rule is conditional at s = 0; ours is unconditional there")
        assert _close(got, u), "at s = 0 the condition must not matter"


@case("ex-04-guide", "scale-4-extrapolates")
def _(answer):
    for level in _levels():
        x, c, u = _halves(level)
        got = answer(_world(), 1, 4.0)(x, level).eps
        if _close(got[:, :3], (u + 4 * (c - u))[:, :3]) and _close(got[:, 3:], c[:, 3:]):
            raise Mistake("you guided the channels :3 and left the others conditional; a picture may have four")
        assert _close(got, u + 4 * (c - u)), "at s = 4 the step from u to c must be taken four times"


@case("ex-04-guide", "no-threshold-inside")
def _(answer):
    level = _levels()[1]
    big = 3 * _noisy(level)
    right = (lambda a, b: b + 2 * (a - b))(_world()(big, level, 1).x0, _world()(big, level).x0)
    got = answer(_world(), 1, 2.0)(big, level).x0
    assert _close(got, right), (
        "leave x_0 outside [-1, 1] as it is: thresholding comes after guiding, in its own function"
    )


@case("ex-04-guide", "a-label-for-each-sample")
def _(answer):
    level, labels = _levels()[1], torch.tensor([0, 1, 2, 2, 1, 0])
    x = _noisy(level)
    c, u = _world()(x, level, labels).eps, _world()(x, level).eps
    got = answer(_world(), labels, 2.5)(x, level).eps
    assert _close(got, u + 2.5 * (c - u)), "the labels of a batch may differ"


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-04-threshold", name="guided_x0", lesson=LESSON)


def _pictures() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(6)
    return 1.3 * randn((3, 2, 4, 4), generator, torch.float64), 1.3 * randn((3, 2, 4, 4), generator, torch.float64)


@case("ex-04-threshold", "straight-where-nothing-saturates")
def _(answer):
    c, u = (0.1 * picture for picture in _pictures())
    got = torch.as_tensor(answer(c, u, 2.0))
    if _close(got, c + 2 * (c - u)):
        raise Mistake("you used w where s belongs: 2 is the scale s, counted from the unconditional estimate")
    if _close(got, c + 2 * (u - c)):
        raise Mistake("your halves are swapped")
    assert _close(got, u + 2 * (c - u)), "inside [-1, 1] the threshold must do nothing"


@case("ex-04-threshold", "stays-inside")
def _(answer):
    got = torch.as_tensor(answer(*_pictures(), 6.0))
    assert bool((got.abs() <= 1 + 1e-9).all()), "after guiding, the estimate must lie inside [-1, 1]"


@case("ex-04-threshold", "guide-first")
def _(answer):
    c, u = _pictures()
    got = torch.as_tensor(answer(c, u, 2.0))
    early = (lambda a, b: b + 2 * (a - b))(c.clamp(-1, 1), u.clamp(-1, 1))
    if _close(got, early) or _close(got, early.clamp(-1, 1)):
        raise Mistake("you thresholded the halves before guiding, which changes their difference")
    assert _close(got, (u + 2 * (c - u)).clamp(-1, 1)), "guide the estimates as they are, then clamp the result"


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-04-spread", name="spread", lesson=LESSON)


@cache
def measure_spread(scale: float = 3.0) -> float:
    """Standard deviation of guided samples over that of the class: two classes N(-1, 1/4) and N(1, 1/4).

    Nothing is drawn: the chain starts from the quantiles of the noise.
    """
    world = GaussianMixtureDenoiser(torch.tensor([[-1.0], [1.0]]), 0.25)
    levels = cosine_schedule().levels(100)
    start = torch.special.ndtri((torch.arange(2001, dtype=torch.float64) + 0.5) / 2001)[:, None]
    guided = classifier_free(world, torch.ones(len(start)).long(), torch.full((len(start),), -1), scale)
    return (sample(heun(), guided, levels, levels[0].sigma * start).std() / 0.5).item()


@case("ex-04-spread", "in-units-of-the-class")
def _(answer):
    assert isinstance(answer, int | float | Tensor), f"one number is wanted, not {type(answer).__name__}"
    got, right = float(answer), measure_spread()
    if abs(got - measure_spread(2.0)) < 0.02:
        raise Mistake("this is what s = 2 does: you used w where s = 1 + w belongs")
    if abs(got - right**2) < 0.02:
        raise Mistake("this is the ratio of variances; standard deviations were asked for")
    if abs(got - right / 2) < 0.02:
        raise Mistake("this is the standard deviation itself; divide it by that of the class")
    assert abs(got - right) < 0.02, (
        f"{got:.3f} is not what a chain of 100 steps gives; more samples, or another sampler?"
    )
