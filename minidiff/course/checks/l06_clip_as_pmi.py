"""Checks of lesson 06: which caption is true, what one direction leaves open, counted PMI, the loss, CLIP guidance."""

from __future__ import annotations

import itertools
import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from minidiff.course.exercises import case, exercise
from minidiff.course.outcomes import Mistake
from minidiff.data import captions
from minidiff.data.scenes import sample_scenes
from minidiff.exact import GaussianMixtureDenoiser
from minidiff.guidance import clip_guidance
from minidiff.pmi import info_nce
from minidiff.random import randn
from minidiff.schedule import NoiseLevel, cosine_schedule

LESSON = "06_clip_as_pmi"


def _close(a, b, tolerance: float = 1e-6) -> bool:
    """Equal to the tolerance; infinities only where both have them."""
    a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
    return a.shape == b.shape and bool(((a == b) | ((a - b).abs() <= tolerance * (1 + b.abs()))).all())


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-06-true-pair", name="which_is_true", lesson=LESSON)
JOINT = torch.tensor([[8.0, 1.0, 3.0, 4.0], [2.0, 5.0, 3.0, 2.0], [1.0, 1.0, 9.0, 1.0]], dtype=torch.float64) / 40


def _by_bayes(joint: Tensor, i: int, hand: list[int]) -> Tensor:
    """The posterior from the probability of every deal."""
    prior, told = joint.sum(0) / joint.sum(), joint[i] / joint[i].sum()
    deals = [math.prod(float(told[c] if k == j else prior[c]) for k, c in enumerate(hand)) for j in range(len(hand))]
    return torch.tensor(deals, dtype=torch.float64) / sum(deals)


@case("ex-06-true-pair", "every-hand")
def _(answer):
    for i in range(3):
        for hand in itertools.permutations(range(4), 3):
            got, right = answer(JOINT, i, list(hand)), _by_bayes(JOINT, i, list(hand))
            told = JOINT[i, list(hand)]
            if _close(got, told / told.sum()):
                raise Mistake("this is p(c | x), normalised; a caption that is frequent anyway is no evidence")
            ratio = told / JOINT.sum(0)[list(hand)] / JOINT.sum(1)[i]
            if _close(got, ratio.softmax(0)):
                raise Mistake("softmax takes an exponential: give it the logarithms of the ratios, or divide by a sum")
            if _close(got, ratio.log() / ratio.log().sum()):
                raise Mistake("the posterior is proportional to the ratio, not to its logarithm")
            assert _close(got, right), f"hand {hand}, picture {i}: {[round(float(p), 3) for p in right]}"


@case("ex-06-true-pair", "the-same-caption-twice")
def _(answer):
    for hand in ([2, 2], [0, 2, 0, 1, 0]):
        got, right = answer(JOINT, 1, hand), _by_bayes(JOINT, 1, hand)
        assert _close(got, right), f"{hand}: every place counts, equal captions get equal shares"


@case("ex-06-true-pair", "counts")
def _(answer):
    got, right = answer(40 * JOINT, 0, [3, 1, 0]), _by_bayes(JOINT, 0, [3, 1, 0])
    assert _close(got, right), "a table of counts, whose sum is 40, gives the same posterior"


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-06-repair", name="to_pmi", lesson=LESSON)
PRIOR = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)


def _pmi(n: int = 6) -> Tensor:
    """(n, 4) PMI of as many pictures that agree with the prior on average over captions."""
    told = randn((n, 4), torch.Generator().manual_seed(3), torch.float64).softmax(1)
    return (told / PRIOR).log()


def _bumps(n: int = 6) -> Tensor:
    return 3 * randn((n, 1), torch.Generator().manual_seed(4), torch.float64)


@case("ex-06-repair", "any-a-of-x")
def _(answer):
    right = _pmi()
    for bump in (_bumps(), 10 * _bumps(), -_bumps()):
        critic = right + bump
        got = answer(critic, PRIOR)
        if _close(got, right + PRIOR.log()):
            raise Mistake("this is log p(c | x); PMI is log p(c | x) - log p(c)")
        if _close(got, critic.log_softmax(1)):
            raise Mistake("a plain log-softmax counts every caption alike; weight exp f by p(c)")
        if _close(got, critic - (critic @ PRIOR)[:, None]):
            raise Mistake("you took the mean of f; what must be one is the mean of exp(PMI)")
        if _close(got, critic - critic.amax(1, keepdim=True)):
            raise Mistake("the largest PMI of a picture is not zero")
        assert _close(got, right), "whatever was added to a row, the PMI comes back"


@case("ex-06-repair", "pmi-stays-as-it-is")
def _(answer):
    assert _close(answer(_pmi(), PRIOR), _pmi()), "a critic that is the PMI already must not change"


@case("ex-06-repair", "each-picture-alone")
def _(answer):
    critic = _pmi() + _bumps()
    got = answer(critic[:1], PRIOR)
    assert _close(got, _pmi()[:1]), "the sum runs over captions; other pictures of the batch have no say"


@case("ex-06-repair", "no-overflow")
def _(answer):
    for bump in (900.0, -900.0):
        got = torch.as_tensor(answer(_pmi() + bump, PRIOR)).double()
        assert bool(got.isfinite().all()), f"f near {bump:.0f} must not overflow or vanish; use logsumexp"
        assert _close(got, _pmi(), 1e-5), f"f near {bump:.0f}: the PMI is still the same"


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-06-pmi-table", name="count_pmi", lesson=LESSON)
COUNTS = torch.tensor([[6, 2, 0], [1, 3, 4]])


def _pairs(counts: Tensor) -> list[tuple[int, int]]:
    """Pairs with these counts, in an order without meaning."""
    pairs = [
        (x, c)
        for (x, c), k in zip(itertools.product(*map(range, counts.shape)), counts.flatten(), strict=True)
        for _ in range(int(k))
    ]
    return pairs[::2] + pairs[1::2][::-1]


def _counted(counts: Tensor) -> Tensor:
    p = counts.double() / counts.sum()
    return (p / (p.sum(1, keepdim=True) * p.sum(0))).log()


@case("ex-06-pmi-table", "by-hand")
def _(answer):
    counts = torch.tensor([[2, 1], [1, 4]])
    got, right = torch.as_tensor(answer(_pairs(counts), 2, 2)).double(), _counted(counts)
    if _close(got, right / math.log(2)):
        raise Mistake("these are bits; natural logarithms give nats")
    if _close(got, right.exp()):
        raise Mistake("this is the ratio; PMI is its logarithm")
    p = counts.double() / counts.sum()
    if _close(got, p * right):
        raise Mistake("this is each pair's share of the mutual information; leave the factor p(x, c) out")
    if _close(got, p.log() - p.sum(0).log()) or _close(got, p.log() - p.sum(1, keepdim=True).log()):
        raise Mistake("this is a conditional probability; divide by both marginals")
    assert _close(got, right), f"counts [[2, 1], [1, 4]]: log(2 x 8 / (3 x 3)) = {float(right[0, 0]):.4f} comes first"


@case("ex-06-pmi-table", "independent-is-zero")
def _(answer):
    got = answer(_pairs(torch.outer(torch.tensor([1, 2, 3]), torch.tensor([2, 1]))), 3, 2)
    assert _close(got, torch.zeros(3, 2)), "where picture and caption are independent every PMI is zero"


@case("ex-06-pmi-table", "never-seen")
def _(answer):
    got = torch.as_tensor(answer(_pairs(COUNTS), 2, 3)).double()
    assert float(got[0, 2]) == -math.inf, f"a pair that never occurs has PMI -inf, not {float(got[0, 2]):.4g}"
    assert _close(got, _counted(COUNTS)), "the other pairs are counted as before"


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-06-clip-loss", name="clip_loss", lesson=LESSON)


def _embeddings(n: int = 6, d: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    images = randn((n, d), generator, torch.float64)
    return images, images + randn((n, d), generator, torch.float64) + 0.7


def _clip_loss(images: Tensor, texts: Tensor, scale: float, way: str = "both") -> float:
    return info_nce(scale * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T, way).mean().item()


@case("ex-06-clip-loss", "both-directions")
def _(answer):
    for scale in (1.0, 8.0):
        images, texts = (F.normalize(z, dim=1) for z in _embeddings())
        got, right = float(answer(images, texts, scale)), _clip_loss(images, texts, scale)
        for way in ("image-to-text", "text-to-image"):
            if abs(got - _clip_loss(images, texts, scale, way)) < 1e-6:
                raise Mistake(f"this is one direction alone, {way}; CLIP's loss is the mean of both")
        if abs(got - 2 * right) < 1e-6:
            raise Mistake("this is the sum of both directions; the factor 1/2 is missing")
        if abs(got - right * len(images)) < 1e-6:
            raise Mistake("this is the sum over the batch; the mean is wanted")
        if abs(got + right) < 1e-6:
            raise Mistake("the sign is wrong: a loss is minus the mean log probability")
        assert abs(got - right) < 1e-6, f"1/tau = {scale:g}: {got:.5f} is not {right:.5f}"


@case("ex-06-clip-loss", "unit-vectors")
def _(answer):
    images, texts = _embeddings()
    got, right = float(answer(images, texts, 3.0)), _clip_loss(images, texts, 3.0)
    if abs(got - info_nce(3.0 * images @ texts.T).mean().item()) < 1e-6:
        raise Mistake("embeddings have to be brought to length one first")
    assert abs(got - right) < 1e-6, f"{got:.5f} is not {right:.5f} for embeddings of any length"


@case("ex-06-clip-loss", "temperature")
def _(answer):
    images, texts = (F.normalize(z, dim=1) for z in _embeddings())
    got, right = float(answer(images, texts, 20.0)), _clip_loss(images, texts, 20.0)
    if abs(got - _clip_loss(images, texts, 1 / 20)) < 1e-6:
        raise Mistake("logit_scale is 1/tau: multiply by it")
    if abs(got - _clip_loss(images, texts, 1.0)) < 1e-6:
        raise Mistake("the temperature is missing")
    if abs(got - _clip_loss(images, texts, math.exp(20.0))) < 1e-6:
        raise Mistake("logit_scale is 1/tau here, not its logarithm")
    assert abs(got - right) < 1e-6, f"1/tau = 20: {got:.5f} is not {right:.5f}"
    assert abs(float(answer(images, texts, 0.0)) - math.log(6)) < 1e-6, "with 1/tau = 0 nothing is known: log B"


@case("ex-06-clip-loss", "cold")
def _(answer):
    images, texts = (F.normalize(z, dim=1) for z in _embeddings())
    got, right = float(answer(images, texts, 5000.0)), _clip_loss(images, texts, 5000.0)
    assert math.isfinite(got), "1/tau = 5000 overflows; use log-softmax, which subtracts the largest logit"
    assert abs(got - right) < 1e-3, f"1/tau = 5000: {got:.3f} is not {right:.3f}"


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-06-clip-guidance", name="guide_by_clip", lesson=LESSON)
WORLD = GaussianMixtureDenoiser(torch.tensor([[-1.0, 0.0, 0.5], [0.8, 0.5, -0.2]]), 0.3)
WEIGHT = torch.tensor([[1.0, 0.2, -0.4], [0.1, -0.8, 0.5], [0.6, 0.3, 0.9], [-0.2, 0.4, 0.1]], dtype=torch.float64)
TEXT = F.normalize(torch.tensor([0.5, -0.3, 0.2, 0.9], dtype=torch.float64), dim=0)


class _Linear:
    """The CLIP of the exercise, as the package takes one."""

    def __init__(self, scale: float):
        self.scale = scale

    def critic(self, captions):
        return lambda x, level: self.scale * F.normalize(x @ WEIGHT.T, dim=1) @ TEXT


def _levels() -> list[NoiseLevel]:
    return [cosine_schedule().level(t) for t in (0.2, 0.5, 0.8)]


def _points() -> Tensor:
    return 1.5 * randn((5, 3), torch.Generator().manual_seed(6), torch.float64)


@case("ex-06-clip-guidance", "moves-the-noise-prediction")
def _(answer):
    x = _points()
    for level in _levels():
        plain, right = WORLD(x, level).eps, clip_guidance(_Linear(7.0), None, 2.0)(WORLD)(x, level).eps
        got = torch.as_tensor(answer(WORLD, WEIGHT, TEXT, 7.0, 2.0)(x, level).eps)
        assert got.shape == x.shape, f"the noise prediction keeps the shape {tuple(x.shape)}"
        moved, wanted = got - plain, right - plain
        if _close(moved, -wanted):
            raise Mistake("the sign is wrong: eps is -sigma times the score")
        if _close(moved * level.sigma, wanted):
            raise Mistake("the score moves by s grad f, so eps moves by sigma times that")
        if _close(moved * 7, wanted):
            raise Mistake("the temperature is part of the critic: 1/tau is missing")
        if _close(moved * 2, wanted):
            raise Mistake("the guidance scale is missing")
        if _close(moved * len(x), wanted):
            raise Mistake("you took the mean over the batch: the gradient of a sample got smaller with its neighbours")
        assert _close(got, right), "not -s sigma grad <z_i, z_t> / tau; was the embedding brought to length one?"


@case("ex-06-clip-guidance", "length-does-not-matter")
def _(answer):
    x, level = _points(), _levels()[1]
    right = clip_guidance(_Linear(7.0), None, 1.0)(WORLD)(x, level).eps
    got = answer(WORLD, 5 * WEIGHT, TEXT, 7.0, 1.0)(x, level).eps
    assert _close(got, right), "W and 5 W give the same unit vectors, hence the same guidance"


@case("ex-06-clip-guidance", "scale-0-changes-nothing")
def _(answer):
    x, level = _points(), _levels()[1]
    got = answer(WORLD, WEIGHT, TEXT, 7.0, 0.0)(x, level).eps
    assert _close(got, WORLD(x, level).eps), "with s = 0 the denoiser's own prediction must come back"


@case("ex-06-clip-guidance", "each-sample-its-own")
def _(answer):
    x, level = _points(), _levels()[1]
    guided = answer(WORLD, WEIGHT, TEXT, 7.0, 2.0)
    together, alone = guided(x, level).eps, torch.cat([torch.as_tensor(guided(row[None], level).eps) for row in x])
    assert _close(together, alone), "a sample's gradient must not depend on the rest of the batch"


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-06-floor", name="floor", lesson=LESSON)


@cache
def measure_floor(objects: int = 1, batch: int = 64, batches: int = 80, way: str = "both", what: str = "pmi") -> float:
    """Mean loss of the critic that is PMI (or "conditional": log p(c|x); "joint": log p(x, c)) of the grammar."""
    generator, losses = torch.Generator().manual_seed(21), []
    for _ in range(batches):
        scenes = sample_scenes(batch, generator, objects)
        said = captions.sample_captions(scenes, generator)
        table = captions.pmi_table(scenes, said)
        if what == "conditional":
            table = table + torch.tensor([math.log(captions.caption_probability(c)) for c in said])
        losses.append(info_nce(table, way).mean().item())
    return sum(losses) / len(losses)


@case("ex-06-floor", "mean-of-both-directions")
def _(answer):
    assert isinstance(answer, int | float | Tensor), f"one number is wanted, not {type(answer).__name__}"
    got, right = float(answer), measure_floor()
    for mistaken, message in (
        (2 * right, "this is the sum of both directions; CLIP's loss is their mean"),
        (right / math.log(2), "this is in bits; take natural logarithms"),
        (right - math.log(64), "this is the loss minus log B, the negative of a bound on the information"),
        (measure_floor(objects=2, batches=10), "these are scenes of two objects; one-object scenes are asked for"),
    ):
        if abs(got - mistaken) < 0.05 < abs(right - mistaken):
            raise Mistake(message)
    assert abs(got - right) < 0.05, f"{got:.3f} is not what the grammar gives; batches of 64, mean of both directions"
