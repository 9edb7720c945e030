"""Right answers in other styles, and planted wrong ones, for lesson 04."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import numpy as np
import torch

from minidiff.course.checks.l04_classifier_free_guidance import PRIOR, guided_error, measure_spread, promised_spread
from minidiff.exact import GaussianMixtureDenoiser
from minidiff.guidance import classifier_free, static_threshold
from minidiff.prediction import Prediction
from minidiff.process import diffuse
from minidiff.random import randn
from minidiff.sampler import ddim, sample
from minidiff.schedule import NoiseLevel, cosine_schedule, vp_schedule

# -- ex-04-average ----------------------------------------------------------------------------------------------------


def average_in_a_loop(scores, log_probs):
    rows = [sum(p.exp() * s for p, s in zip(*pair, strict=True)) for pair in zip(log_probs, scores, strict=True)]
    return torch.stack(rows)


def average_by_softmax(scores, log_probs):
    """The logarithms of probabilities are their own logits."""
    return (torch.softmax(log_probs, -1)[:, None] @ scores)[:, 0]


def average_in_float32(scores, log_probs):
    return torch.einsum("bk,bkd->bd", log_probs.float().exp(), scores.float())


def average_in_numpy(*, scores, log_probs):
    return np.einsum("bk,bkd->bd", np.exp(log_probs.numpy()), scores.numpy())


def _average(weigh):
    """Scores averaged with weights made from log p(c | x_t)."""
    return lambda scores, log_probs: (weigh(log_probs)[..., None] * scores).sum(1)


def _from_the_smallest(log):
    """Softmax that subtracts the smallest logarithm: its exponentials overflow."""
    raised = (log - log.min(1, keepdim=True)[0]).exp()
    return raised / raised.sum(1, keepdim=True)


def _single(scores, log_probs):
    """Wrong for a batch of one: the batch axis is lost on the way."""
    return (log_probs.exp()[..., None] * scores).squeeze().sum(-2)


AVERAGE = {
    "form-forgot-return": (lambda scores, log_probs: None, "form"),
    "form-over-the-batch": (lambda scores, log_probs: (log_probs.exp()[..., None] * scores).sum(0), "form"),
    "form-weights": (lambda scores, log_probs: log_probs.exp(), "form"),
    "form-axis-kept": (
        lambda scores, log_probs: (log_probs.exp()[..., None] * scores).sum(1, keepdim=True),
        "form",
    ),
    "equal-weights": (
        _average(lambda log: torch.full_like(log, 1 / log.shape[1])),
        "is-the-score-of-the-mixture",
        "the same weight",
    ),
    "log-weights": (_average(lambda log: log), "is-the-score-of-the-mixture", "with log p"),
    "prior-weights": (
        lambda scores, log_probs: torch.einsum(
            "bkd,k->bd", scores, PRIOR if log_probs.shape[1] == 3 else log_probs[0].exp()
        ),
        "is-the-score-of-the-mixture",
        "the prior p(c)",
    ),
    "weights-of-the-batch": (
        _average(lambda log: log.exp().mean(0).expand_as(log)),
        "is-the-score-of-the-mixture",
        "averaged them over the batch",
    ),
    "softmax-over-the-batch": (_average(lambda log: log.softmax(0)), "is-the-score-of-the-mixture", "over the classes"),
    "softmax-of-probabilities": (_average(lambda log: log.exp().softmax(1)), "is-the-score-of-the-mixture", "softmax"),
    "divided-by-the-classes": (
        _average(lambda log: log.exp() / log.shape[1]),
        "is-the-score-of-the-mixture",
        "divided by the number",
    ),
    "likeliest-class-only": (
        lambda scores, log_probs: scores[torch.arange(len(scores)), log_probs.argmax(1)],
        "is-the-score-of-the-mixture",
        "the likeliest class",
    ),
    "sum-of-scores": (lambda scores, log_probs: scores.sum(1), "is-the-score-of-the-mixture", "weights are missing"),
    "squared-weights": (_average(lambda log: (2 * log).softmax(1)), "is-the-score-of-the-mixture"),
    "overflow": (_average(_from_the_smallest), "sure-of-one-class"),
    "no-weight-is-no-number": (_average(lambda log: log.exp() * log / log), "sure-of-one-class"),
    "three-classes": (lambda scores, log_probs: _average(torch.exp)(scores[:, :3], log_probs[:, :3]), "other-shapes"),
    "batch-of-one": (_single, "other-shapes"),
}

# -- ex-04-scale ------------------------------------------------------------------------------------------------------

COUNTED = {"ho-salimans", "dreamfusion", "added", "classifier-on-conditional"}


def scale_by_table(rule, value):
    table = dict.fromkeys(("glide", "imagen", "classifier-on-unconditional"), (0, 1)) | dict.fromkeys(COUNTED, (1, 1))
    offset, slope = table[rule]
    return offset + slope * value


def scale_by_two_points(rule, value):
    """Weight of eps_c in the rule as printed, at (eps_c, eps_null) = (1, 0); the gradient gives 1 - 0."""
    weight = {
        "ho-salimans": lambda w: (1 + w) * 1.0 - w * 0.0,
        "dreamfusion": lambda w: (1 + w) * 1.0 - w * 0.0,
        "added": lambda w: 1.0 + w * (1.0 - 0.0),
        "glide": lambda w: 0.0 + w * (1.0 - 0.0),
        "imagen": lambda w: w * 1.0 + (1 - w) * 0.0,
        "classifier-on-unconditional": lambda w: 0.0 + w * (1.0 - 0.0),
        "classifier-on-conditional": lambda w: 1.0 + w * (1.0 - 0.0),
    }[rule]
    at_0, at_1 = weight(0.0), weight(1.0)
    return at_0 + value * (at_1 - at_0)


def scale_as_a_tensor(rule, value):
    return torch.tensor([value], dtype=torch.float32) + torch.tensor(rule in COUNTED)


def _scale(plus):
    """value + 1 for the rules in ``plus``."""
    return lambda rule, value: value + (rule in plus)


def _scale_but(changed):
    """Right, but for some rules."""
    return lambda rule, value: changed[rule](value) if rule in changed else scale_by_table(rule, value)


SCALE = {
    "form-forgot-a-rule": (lambda rule, value: value + 1 if rule in COUNTED else None, "form"),
    "form-text": (lambda rule, value: str(value), "form"),
    "form-both": (lambda rule, value: (value, value + 1), "form"),
    "w-for-s": (_scale(set()), "counted-from-the-conditional", "used w where s = 1 + w"),
    "minus-one": (lambda rule, value: value - (rule in COUNTED), "counted-from-the-conditional", "took w - 1"),
    "dreamfusion-as-glide": (
        _scale(COUNTED - {"dreamfusion"}),
        "counted-from-the-conditional",
        "dreamfusion: you used",
    ),
    "added-as-glide": (_scale(COUNTED - {"added"}), "counted-from-the-conditional", "added: you used"),
    "twice": (_scale_but({"added": lambda w: 2 + w}), "counted-from-the-conditional"),
    "at-most-fifty": (lambda rule, value: min(scale_by_table(rule, value), 50), "counted-from-the-conditional"),
    "plus-one-everywhere": (_scale(COUNTED | {"glide", "imagen"}), "counted-from-the-null", "unconditional at 0"),
    "imagen-counted-backwards": (
        _scale_but({"imagen": lambda w: 1 - w}),
        "counted-from-the-null",
        "you took that of eps_null",
    ),
    "imagen-plus-one": (_scale(COUNTED | {"imagen"}), "counted-from-the-null", "imagen: this rule is unconditional"),
    "classifier-always-s": (
        _scale(COUNTED - {"classifier-on-conditional"}),
        "with-a-classifier",
        "conditional: you used w",
    ),
    "classifier-always-w": (
        _scale(COUNTED | {"classifier-on-unconditional"}),
        "with-a-classifier",
        "unconditional: this rule",
    ),
    "classifier-sign": (
        _scale_but({"classifier-on-conditional": lambda w: 1 - w, "classifier-on-unconditional": lambda w: -w}),
        "with-a-classifier",
        "the sign is wrong",
    ),
}

# -- ex-04-loss --------------------------------------------------------------------------------------------------------


def loss_by_bernoulli(model, x0, labels, level, probability, seed):
    generator = torch.Generator().manual_seed(seed)
    kept = torch.full((len(labels),), 1.0 - probability).bernoulli(generator=generator).long()
    eps = torch.randn(x0.shape, generator=generator).to(x0)
    alpha, sigma = level.like(x0)
    said = model(x=alpha * x0 + sigma * eps, level=level, label=(labels + 1) * kept - 1).eps
    return torch.nn.functional.mse_loss(said, eps)


def loss_in_a_loop(*, model, x0, labels, level, probability, seed):
    """A coin and noise for one picture after the other."""
    generator = torch.Generator().manual_seed(seed)
    eps = torch.stack([torch.randn(one.shape, generator=generator, dtype=torch.float64) for one in x0])
    told = [-1 if torch.rand((), generator=generator) < probability else int(label) for label in labels]
    said = model(diffuse(x0, level, eps), level, torch.tensor(told)).eps
    return float(sum((a - b).square().mean() for a, b in zip(said, eps, strict=True)) / len(x0))


def loss_in_float32(model, x0, labels, level, probability, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        told = labels.where(torch.rand(len(labels)) >= probability, torch.tensor(-1))
        eps = torch.randn_like(x0.float())
    (alpha, sigma), x = level.like(eps), x0.float()
    return (model(alpha * x + sigma * eps, level, told).eps.float() - eps).pow(2).mean()


def _hide(probability_of=lambda p: p, null=-1, once=False, seed_of=lambda seed: seed):
    """Labels hidden where a uniform number is below probability_of(p)."""

    def hide(labels, probability, seed):
        generator = torch.Generator()
        if (number := seed_of(seed)) is None:
            generator.seed()
        else:
            generator.manual_seed(number)
        u = torch.rand(1 if once else len(labels), generator=generator)
        return torch.where((u < probability_of(probability)).expand(len(labels)), null, labels)

    return hide


def _first_part(labels, probability, seed):
    return torch.where(torch.arange(len(labels)) < probability * len(labels), -1, labels)


def _same_number(labels, probability, seed):
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return torch.where(order < round(probability * len(labels)), -1, labels)


def _pairs(labels, probability, seed):
    """Two neighbours share a coin."""
    u = torch.rand((len(labels) + 1) // 2, generator=torch.Generator().manual_seed(seed))
    return torch.where(u.repeat_interleave(2)[: len(labels)] < probability, -1, labels)


def _random_class(labels, probability, seed):
    generator = torch.Generator().manual_seed(seed)
    u, other = torch.rand(len(labels), generator=generator), torch.randint(4, (len(labels),), generator=generator)
    return torch.where(u < probability, other, labels)


def _spares(label):
    return lambda labels, probability, seed: torch.where(labels == label, label, _hide()(labels, probability, seed))


def _all_if_one(labels, probability, seed):
    return torch.full_like(labels, -1) if len(labels) == 1 else _hide()(labels, probability, seed)


def _like(level, x):
    return level.like(x)


_hidden = _hide()


def _loss(
    hide=_hidden,
    mix=lambda a, s, x, eps: a * x + s * eps,
    off=lambda said, eps, x0, x: (said - eps).square().mean(),
    noise=torch.randn,
    noise_seed=lambda seed: seed + 1,
    parts=_like,
    told=lambda level: level,
):
    """A loss that hides with ``hide``, mixes picture and noise with ``mix``, and measures with ``off``."""

    def loss(model, x0, labels, level, probability, seed):
        generator = torch.Generator().manual_seed(noise_seed(seed))
        eps = noise(x0.shape, generator=generator, dtype=x0.dtype)
        alpha, sigma = parts(level, x0)
        x = mix(alpha, sigma, x0, eps)
        said = model(x, told(level), hide(labels, probability, seed)).eps
        return off(said, eps, x0, x)

    return loss


def _coin_from(pick):
    """The coin of a label is a number of its picture or its noise; ``pick`` takes (x0, eps, other noise)."""

    def loss(model, x0, labels, level, probability, seed):
        generator = torch.Generator().manual_seed(seed)
        eps, other = (torch.randn(x0.shape, generator=generator, dtype=x0.dtype) for _ in range(2))
        u = torch.special.ndtr(pick(x0, eps, other).flatten(1)[:, 0])
        said = model(diffuse(x0, level, eps), level, torch.where(u < probability, -1, labels)).eps
        return (said - eps).square().mean()

    return loss


def _one_seed_twice(model, x0, labels, level, probability, seed):
    """Coins and noise from two generators of one seed, which draw the same numbers."""
    start = lambda: torch.Generator().manual_seed(seed)
    coins = torch.rand(len(labels), generator=start(), dtype=x0.dtype)
    eps = torch.randn(x0.shape, generator=start(), dtype=x0.dtype)
    said = model(diffuse(x0, level, eps), level, torch.where(coins < probability, -1, labels)).eps
    return (said - eps).square().mean()


def _two_passes(model, x0, labels, level, probability, seed):
    """Asks for both and chooses."""
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed), dtype=x0.dtype)
    x, hidden = diffuse(x0, level, eps), _hide()(labels, probability, seed) == -1
    pick = hidden.view(-1, *[1] * (x0.ndim - 1))
    said = torch.where(pick, model(x, level, -torch.ones_like(labels)).eps, model(x, level, labels).eps)
    return (said - eps).square().mean()


_first_level = lambda level, x: (torch.as_tensor(v).reshape(-1)[0] for v in level.like(x))
_of_alpha = lambda level, x: (level.like(x)[0], (1 - torch.as_tensor(level.like(x)[0]) ** 2).clamp(min=0).sqrt())
_mean = lambda change: _loss(off=lambda said, eps, x0, x: change(said, eps))
NULL, SEED, OWN, ENDS = "null-is-no-class", "the-seed-decides", "each-sample-its-own", "all-or-nothing-at-the-ends"
SHOWN, SEES, MEAN = "shown-the-noisy-picture", "the-coin-sees-nothing", "mean-of-squares"
LOSS = {
    "form-each-picture": (_loss(off=lambda said, eps, x0, x: (said - eps).square().mean((1, 2, 3))), "form"),
    "form-forgot-return": (lambda model, x0, labels, level, probability, seed: None, "form"),
    "form-another-name": (lambda model, x0, labels, level, p, seed: _loss()(model, x0, labels, level, p, seed), "form"),
    "label-0-for-null": (_loss(_hide(null=0)), NULL, "label 0 for the null"),
    "one-class-too-many": (_loss(_hide(null=4)), NULL, "number of classes"),
    "another-class": (_loss(_random_class), NULL, "another class"),
    "minus-two": (_loss(_hide(null=-2)), NULL),
    "hides-none": (_loss(lambda labels, probability, seed: labels), NULL),
    "two-passes": (_two_passes, NULL),
    "float-labels": (_loss(lambda labels, probability, seed: _hidden(labels, probability, seed).double()), NULL),
    "seed-ignored": (_loss(_hide(seed_of=lambda seed: None)), SEED, "gave other hidden labels"),
    "one-seed-for-all": (_loss(_hide(seed_of=lambda seed: 0)), SEED, "the very same hidden labels"),
    "always-the-first": (_loss(_first_part), SEED, "the very same hidden labels"),
    "one-noise": (_loss(noise_seed=lambda seed: 0), SEED, "the very same noise"),
    "noise-not-seeded": (_loss(noise_seed=lambda seed: int(torch.randint(10**6, ()))), SEED, "gave other noise"),
    "once-for-the-batch": (_loss(_hide(once=True)), OWN, "once for the whole batch"),
    "the-same-number": (_loss(_same_number), OWN, "the same number"),
    "in-pairs": (_loss(_pairs), OWN),
    "keeps-with-p": (_loss(_hide(lambda p: 1 - p)), "rate", "you kept a label"),
    "half-the-rate": (_loss(_hide(lambda p: p / 2)), "rate"),
    "always-a-tenth": (_loss(_hide(lambda p: 0.1)), "rate"),
    "spares-label-0": (_loss(_spares(0)), "rate", "does not look at the label"),
    "spares-the-last-label": (_loss(_spares(3)), "rate", "does not look at the label"),
    "never-certain": (_loss(_hide(lambda p: min(max(p, 0.02), 0.98))), ENDS),
    "batch-of-one": (_loss(_all_if_one), ENDS),
    "clean": (_loss(mix=lambda a, s, x, eps: x), SEED, "the very same noise"),
    "noise-alone": (_loss(mix=lambda a, s, x, eps: eps), SHOWN, "without a picture in it"),
    "noise-in-full": (_loss(mix=lambda a, s, x, eps: a * x + eps), SHOWN, "added in full"),
    "not-fainter": (_loss(mix=lambda a, s, x, eps: x + s * eps), SHOWN, "not made fainter"),
    "swapped": (_loss(mix=lambda a, s, x, eps: s * x + a * eps), SHOWN, "are swapped"),
    "variances": (_loss(mix=lambda a, s, x, eps: a**2 * x + s**2 * eps), SHOWN, "variances for standard deviations"),
    "variance-of-noise": (_loss(mix=lambda a, s, x, eps: a * x + s**2 * eps), SHOWN, "the noise has the variance"),
    "minus": (_loss(mix=lambda a, s, x, eps: s * eps - a * x), SHOWN),
    "uniform": (_loss(noise=torch.rand), SHOWN, "uniform numbers"),
    "coin-from-the-noise": (_coin_from(lambda x0, eps, other: eps), SEES),
    "coin-from-the-picture": (_coin_from(lambda x0, eps, other: 0.28 * x0 + 0.96 * other), SEES),
    "one-seed-twice": (_one_seed_twice, SEES),
    "another-level-told": (_loss(told=lambda level: vp_schedule().level(0.9)), SHOWN),
    "compared-with-x0": (_loss(off=lambda said, eps, x0, x: (said - x0).square().mean()), MEAN, "with x_0"),
    "compared-with-x-t": (_loss(off=lambda said, eps, x0, x: (said - x).square().mean()), MEAN, "with x_t"),
    "sum": (_mean(lambda said, eps: (said - eps).square().sum()), MEAN, "added up the squares"),
    "sum-of-a-picture": (
        _mean(lambda said, eps: (said - eps).square().flatten(1).sum(1).mean()),
        MEAN,
        "pixels of a picture",
    ),
    "root": (_mean(lambda said, eps: (said - eps).square().mean().sqrt()), MEAN, "the root of the mean"),
    "absolute": (_mean(lambda said, eps: (said - eps).abs().mean()), MEAN, "absolute values"),
    "half": (_mean(lambda said, eps: (said - eps).square().mean() / 2), MEAN, "half of it"),
    "square-of-the-mean": (_mean(lambda said, eps: (said - eps).mean().square()), MEAN),
    "first-level-for-all": (_loss(parts=_first_level), "a-level-for-each-picture"),
    "sigma-of-alpha": (_loss(parts=_of_alpha), "a-level-for-each-picture"),
}

# -- ex-04-guide -------------------------------------------------------------------------------------------------------


def _both(model, x, level, label):
    """(conditional, null) predictions in one pass; the null for the second."""
    told = torch.as_tensor(label).reshape(-1).expand(len(x))
    both = model(torch.cat([x, x]), level.repeat(2), torch.cat([told, torch.full((len(x),), -1)]))
    return both.chunk(2, level)


def guide_x0(model, label, scale, bound):
    """Both halves combined as x_0."""

    def guided(x, level):
        if scale == 1:
            c = model(x, level, label)
            x0 = c.x0
        else:
            c, u = _both(model, x, level, label)
            x0 = (1 - scale) * u.x0 + scale * c.x0
        return c.with_x0(x0 if bound is None else torch.clip(x0, -bound, bound))

    return guided


def guide_null_first(*, model, label, scale, bound):
    """(null, conditional), by w: (1 + w) v_c - w v_null; the bound by minimum and maximum."""
    w = scale - 1

    def guided(*, x, level):
        labels = torch.as_tensor(label).expand(len(x))
        if w == 0:
            c = model(x=x, level=level, label=labels)
            guided_v = c.v
        else:
            both = model(
                x=torch.cat([x, x]), level=level.repeat(2), label=torch.cat([-torch.ones_like(labels), labels])
            )
            u, c = both.chunk(2, level)
            guided_v = (1 + w) * c.v - w * u.v
        out = Prediction(x, level, guided_v, "v", fraction=c.fraction)
        if bound is None:
            return out
        return out.with_x0(out.x0.minimum(torch.tensor(bound)).maximum(torch.tensor(-bound)))

    return lambda x, level: guided(x=x, level=level)


def guide_in_float32(model, label, scale, bound):
    def guided(x, level):
        x = x.float()
        if scale == 1.0:
            c = model(x, level, label)
            out = c
        else:
            c, u = _both(model, x, level, label)
            out = c.with_eps(torch.lerp(u.eps.float(), c.eps.float(), float(scale)))
        return out if bound is None else static_threshold(lambda x, level: out, -bound, bound)(x, level)

    return guided


def _right(c, u, s):
    return u + s * (c - u)


def _guide(combine=_right, after=None, halves=_both, of="c"):
    """A guided model that combines (c, u, s) into eps; ``after(prediction, bound)`` keeps x_0 inside."""

    def guide(model, label, scale, bound):
        def guided(x, level):
            if scale == 1 and combine is _right and halves is _both:
                c = u = model(x, level, label)
            else:
                c, u = halves(model, x, level, label)
            out = (c if of == "c" else u).with_eps(combine(c.eps, u.eps, scale))
            if bound is None:
                return out
            return (after or (lambda p, b: p.with_x0(p.x0.clamp(-b, b))))(out, bound)

        return guided

    return guide


def _channels(n):
    """Guides so many channels; the others stay conditional."""
    return _guide(lambda c, u, s: torch.cat([_right(c, u, s)[:, :n], c[:, n:]], 1))


def _early(model, label, scale, bound, late=False, always=False):
    """Thresholds the halves; ``late``: the result, too; ``always``: at 1 where no bound is given."""

    def guided(x, level):
        c, u = _both(model, x, level, label)
        b = 1.0 if bound is None and always else bound
        if b is None:
            return c.with_eps(_right(c.eps, u.eps, scale))
        x0 = _right(c.x0.clamp(-b, b), u.x0.clamp(-b, b), scale)
        return c.with_x0(x0.clamp(-b, b) if late else x0)

    return guided


def _always(limit):
    """Thresholds at a limit of its own."""
    return lambda model, label, scale, bound: _guide()(model, label, scale, limit)


def _first_label(model, label, scale, bound):
    return _guide()(model, int(torch.as_tensor(label).reshape(-1)[0]), scale, bound)


def _truth_of_a_label(model, label, scale, bound):
    told = label if isinstance(label, torch.Tensor) else label or -1
    return _guide()(model, told, scale, bound)


def _in_half_precision(model, label, scale, bound):
    guided = _guide()(model, label, scale, bound)
    return lambda x, level: guided(x, level).replace(
        value=guided(x, level).eps.half().to(x) if x.dtype == torch.float32 else guided(x, level).eps, kind="eps"
    )


def _two_passes(model, label, scale, bound):
    halves = lambda model, x, level, label: (model(x, level, label), model(x, level, None))
    return _guide(halves=halves)(model, label, scale, bound)


def _one_level(model, x, level, label):
    """Takes the first level for all."""
    first = NoiseLevel(*(float(torch.as_tensor(v).reshape(-1)[0]) for v in (level.alpha, level.sigma, level.time)))
    return _both(model, x, first, label)


def _always_both(model, label, scale, bound):
    return _guide(lambda c, u, s: u + s * (c - u))(model, label, scale, bound)


BOUND = "guide-first-then-bound"
GUIDE = {
    "form-forgot-return": (lambda model, label, scale, bound: lambda x, level: None, "form"),
    "form-eps": (
        lambda model, label, scale, bound: lambda x, level: _guide()(model, label, scale, bound)(x, level).eps,
        "form",
    ),
    "form-not-a-function": (
        lambda model, label, scale, bound: model(torch.zeros(1, 4, 1, 2), vp_schedule().level(0.5), label),
        "form",
    ),
    "minus": (_guide(lambda c, u, s: u - s * (c - u)), "scale-1-is-conditional", "difference is subtracted"),
    "w-for-s": (_guide(lambda c, u, s: (1 + s) * c - s * u), "scale-1-is-conditional", "you used 1 + s"),
    "swapped-halves": (_guide(lambda c, u, s: c + s * (u - c)), "scale-1-is-conditional", "halves are swapped"),
    "ignores-the-label": (_guide(lambda c, u, s: u), "scale-1-is-conditional", "unconditional prediction, whatever s"),
    "half-way": (_guide(lambda c, u, s: u + s * (c - u) / 2), "scale-1-is-conditional"),
    "thresholds-after": (_always(1.0), "scale-1-is-conditional", "thresholded the result"),
    "thresholds-before": (
        lambda model, label, scale, bound: _early(model, label, scale, bound, always=True),
        "scale-1-is-conditional",
        "thresholded the halves",
    ),
    "wider-threshold": (_always(1.2), "scale-1-is-conditional"),
    "sign": (_guide(lambda c, u, s: s * c + (s - 1) * u), "scale-0-is-unconditional", "weights that sum to 2 s - 1"),
    "ignores-the-scale": (_guide(lambda c, u, s: c), "scale-0-is-unconditional", "right at s = 1 alone"),
    "scale-0-as-none": (
        _guide(lambda c, u, s: _right(c, u, s or 1.0)),
        "scale-0-is-unconditional",
        "right at s = 1 alone",
    ),
    "channels-3": (_channels(3), "scale-0-is-unconditional", "channels :3"),
    "label-0-as-none": (_truth_of_a_label, "label-0-is-a-label", "took it for none"),
    "never-beyond-conditional": (
        _guide(lambda c, u, s: u + min(s, 1.0) * (c - u)),
        "scale-4-extrapolates",
        "right at s = 1 alone",
    ),
    "at-most-ten": (_guide(lambda c, u, s: u + min(s, 9.0) * (c - u)), "scale-4-extrapolates"),
    "never-short-of-conditional": (
        _guide(lambda c, u, s: u + (max(s, 1.0) if s else 0.0) * (c - u)),
        "scale-4-extrapolates",
        "right at s = 1 alone",
    ),
    "channels-4": (_channels(4), "any-number-of-channels"),
    "half-precision": (_in_half_precision, "any-number-of-channels"),
    "first-label-for-all": (_first_label, "a-label-for-each-sample", "the first one's for all"),
    "first-level-for-all": (_guide(halves=_one_level), "a-level-for-each-sample"),
    "no-bound": (_guide(after=lambda p, b: p), BOUND, "nothing keeps x_0 inside"),
    "bound-before": (
        lambda model, label, scale, bound: _early(model, label, scale, bound, late=True),
        BOUND,
        "before guiding, which changes",
    ),
    "bound-before-alone": (_early, BOUND, "and nothing keeps the result"),
    "bound-of-one": (_guide(after=lambda p, b: p.with_x0(p.x0.clamp(-1, 1))), BOUND, "you took 1"),
    "from-zero": (_guide(after=lambda p, b: p.with_x0(p.x0.clamp(0, b))), BOUND, "not [0, bound]"),
    "tanh": (_guide(after=lambda p, b: p.with_x0(b * (p.x0 / b).tanh())), BOUND, "tanh does not"),
    "noise-clamped": (_guide(after=lambda p, b: p.with_eps(p.eps.clamp(-b, b))), BOUND, "you clamped the noise"),
    "from-above-alone": (_guide(after=lambda p, b: p.with_x0(p.x0.clamp(max=b))), BOUND),
    "divided-by-the-largest": (
        _guide(after=lambda p, b: p.with_x0(p.x0 * b / p.x0.abs().amax((1, 2, 3), keepdim=True).clamp(min=b))),
        BOUND,
    ),
    "prediction-anew": (
        lambda model, label, scale, bound: (
            lambda x, level: Prediction(x, level, _guide()(model, label, scale, bound)(x, level).eps, "eps")
        ),
        "keeps-the-learned-variance",
        "variance is lost",
    ),
    "variance-of-the-null": (_guide(of="u"), "keeps-the-learned-variance", "of the null half"),
    "two-passes": (_two_passes, "one-pass"),
    "both-at-1": (_always_both, "one-pass"),
}

# -- ex-04-spread -----------------------------------------------------------------------------------------------------


def spread_by_drawing():
    """Samples: DDIM on another schedule."""
    world = GaussianMixtureDenoiser(torch.tensor([[-1.0], [1.0]]), 0.25)
    x_T = randn((20000, 1), torch.Generator().manual_seed(1), torch.float64)
    guided = classifier_free(world, torch.ones(20000).long(), torch.full((20000,), -1), 3.0)
    return (sample(ddim(), guided, vp_schedule().levels(300), x_T).std() / 0.5).item()


def spread_by_hand(count=4001, n=400):
    """Quantiles of the noise, Euler steps of dx/dphi by the angle phi, the scores written out."""
    phi = torch.linspace(math.pi / 2 - 1e-3, 0, n + 1, dtype=torch.float64)
    x = torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)
    for a, b in pairwise(phi):
        mid = (a + b) / 2
        x = x + (b - a) * _slope(x + (b - a) / 2 * _slope(x, a), mid)
    return np.float64(x.std() / 0.5)


def _slope(x, phi, s=3.0):
    v, m = 0.25 * phi.cos() ** 2 + phi.sin() ** 2, phi.cos()
    plain = ((m * x / v).tanh() * m - x) / v
    return -phi.tan() * (x + plain + s * ((m - x) / v - plain))


RIGHT_SPREAD = measure_spread()
SPREAD = {
    "form-samples": (torch.zeros(20), "form"),
    "form-text": (str(RIGHT_SPREAD), "form"),
    "form-function": (measure_spread, "form"),
    "w-for-s": (measure_spread(2.0), "in-units-of-the-class", "this is what s = 2 does"),
    "w-of-w": (measure_spread(4.0), "in-units-of-the-class", "this is what s = 4 does"),
    "variances": (RIGHT_SPREAD**2, "in-units-of-the-class", "ratio of variances"),
    "not-divided": (RIGHT_SPREAD / 2, "in-units-of-the-class", "divide it by that of the class"),
    "divided-by-the-variance": (2 * RIGHT_SPREAD, "in-units-of-the-class", "by the variance"),
    "divided-by-both": (RIGHT_SPREAD / 5**0.5, "in-units-of-the-class", "both classes together"),
    "no-loss": (1.0, "in-units-of-the-class", "not guided"),
    "upside-down": (1 / RIGHT_SPREAD, "in-units-of-the-class", "upside down"),
    "what-was-lost": (1 - RIGHT_SPREAD, "in-units-of-the-class", "what was lost"),
    "stochastic": (0.867, "in-units-of-the-class", "stochastic"),
    "stochastic-beta-tilde": (measure_spread(3.0, "beta_tilde"), "in-units-of-the-class", "beta-tilde"),
    "tilted": (promised_spread(), "in-units-of-the-class", "does not sample"),
    "too-few-steps": (0.66, "in-units-of-the-class"),
}

# -- ex-04-share -------------------------------------------------------------------------------------------------------


def share_by_search(scale):
    """The expected error of a table, on a grid."""
    return min((k / 50 for k in range(1, 50)), key=lambda share: guided_error(share, scale))


def share_by_lagrange(scale):
    """s^2 V_c / (1 - r) + (s - 1)^2 V_null / r is smallest at r : 1 - r = (s - 1) sqrt(V_null) : s sqrt(V_c)."""
    odds = 1.28 * (scale - 1) / scale
    return torch.tensor([odds / (1 + odds)], dtype=torch.float32)


@cache
def _errors_of_tables(tables=6, n=2**14, cells=24):
    """Mean squared errors of the two kinds of row, from tables that are drawn."""
    world = GaussianMixtureDenoiser(torch.tensor([[-1.2], [0.2], [1.1]]), 0.04, [0.4, 0.3, 0.3], [0, 1, 1])
    level, generator = cosine_schedule().level(0.5), torch.Generator().manual_seed(0)
    edges = torch.linspace(-1.6, 1.6, cells + 1, dtype=torch.float64)
    middle = ((edges[1:] + edges[:-1]) / 2)[:, None]
    found = torch.zeros(2)
    for _ in range(tables):
        for kind, labels in enumerate(((0, 1), (None,))):
            for label in labels:
                p = {0: 0.4, 1: 0.6, None: 1.0}[label]
                x0 = world.sample(round(n * p), generator, label)
                x = diffuse(x0, level, randn(x0.shape, generator, torch.float64))[:, 0]
                cell = torch.bucketize(x, edges) - 1
                inside = (cell >= 0) & (cell < cells)
                total, count = (torch.bincount(cell[inside], w, cells) for w in (x0[inside, 0], None))
                error = (total / count.clamp(min=1) - world(middle, level, label).x0[:, 0]).square()
                for asked in (0, 1) if label is None else (label,):
                    weight = world.log_prob(middle, level, asked).exp()
                    found[kind] += {0: 0.4, 1: 0.6}[asked] * ((weight * error).sum() / weight.sum()).item()
    return found / tables


def share_by_drawing(scale):
    told, plain = _errors_of_tables().tolist()
    grid = np.linspace(0.02, 0.98, 97)
    return float(grid[np.argmin(scale**2 * told / (1 - grid) + (scale - 1) ** 2 * plain / grid)])


SHARE = {
    "form-text": (lambda scale: "a tenth", "form"),
    "form-forgot-return": (lambda scale: None, "form"),
    "form-many": (lambda scale: [0.1, 0.2], "form"),
    "as-published": (lambda scale: 0.1, "gentle"),
    "all": (lambda scale: 1.0, "gentle"),
    "minus-one-over-s": (lambda scale: 1 - 1 / scale**3, "gentle"),
    "half-of-it": (lambda scale: share_by_search(scale) / 2, "gentle"),
    "gentle-for-all": (lambda scale: min(share_by_search(scale), 0.3), "loud"),
    "as-much-as-the-step": (lambda scale: share_by_search(scale) if scale < 2 else 1 - 1 / scale, "loud"),
}

# -- ex-04-unbiased ---------------------------------------------------------------------------------------------------


def _estimate(
    model,
    x0,
    label,
    log_prior,
    draws,
    seed,
    *,
    low=-10.0,
    high=12.0,
    factor=0.5,
    sign=1,
    prior=True,
    dtype=torch.float64,
):
    generator, x0 = torch.Generator().manual_seed(seed), x0.to(dtype).repeat_interleave(draws, 0)
    lam = low + (high - low) * torch.rand(len(x0), generator=generator, dtype=dtype)
    alpha, sigma = torch.sigmoid(lam).sqrt(), torch.sigmoid(-lam).sqrt()
    eps = torch.randn(x0.shape, generator=generator, dtype=dtype)
    x, level = alpha[:, None] * x0 + sigma[:, None] * eps, NoiseLevel(alpha, sigma, lam)
    plain, told = model(x, level, None).eps, model(x, level, label).eps
    gain = ((eps - plain) ** 2).sum(1) - ((eps - told) ** 2).sum(1)
    return log_prior * prior + sign * factor * (high - low) * gain.view(-1, draws).mean(1)


def posterior_in_float32(model, x0, label, log_prior, draws, seed):
    return _estimate(model, x0, label, log_prior, draws, seed, dtype=torch.float32)


def posterior_in_a_loop(model, x0, label, log_prior, draws, seed):
    """Stratified: a level from each stretch of the interval, one noise for the whole batch of a draw."""
    generator, total, low, high = torch.Generator().manual_seed(seed), 0.0, -9.0, 11.0
    for k in range(draws):
        u = (k + torch.rand((), generator=generator, dtype=torch.float64).item()) / draws
        lam = low + (high - low) * u
        level = NoiseLevel(1 / math.sqrt(1 + math.exp(-lam)), 1 / math.sqrt(1 + math.exp(lam)), lam)
        eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
        x = level.alpha * x0 + level.sigma * eps
        told, plain = (model(x=x, level=level, label=asked).eps for asked in (label, None))
        total = total + ((eps - plain).square() - (eps - told).square()).sum(1)
    return log_prior + (high - low) / 2 * total / draws


def posterior_by_importance(model, x0, label, log_prior, draws, seed):
    """Levels from a logistic density of lambda, each weighed by its inverse; errors of x_0 times the SNR."""
    generator, x0 = torch.Generator().manual_seed(seed), x0.repeat_interleave(draws, 0)
    u = torch.rand(len(x0), generator=generator, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
    lam = 1 + 2.5 * (u.log() - (-u).log1p())
    density = u * (1 - u) / 2.5
    level = NoiseLevel(torch.sigmoid(lam).sqrt(), torch.sigmoid(-lam).sqrt(), lam)
    x = level.alpha[:, None] * x0 + level.sigma[:, None] * torch.randn(x0.shape, generator=generator).double()
    off = lambda asked: (model(x, level, asked).x0 - x0).square().sum(1) * lam.exp()
    return log_prior + ((off(None) - off(label)) / density / 2).view(-1, draws).mean(1)


def _posterior(**slips):
    return lambda model, x0, label, log_prior, draws, seed: _estimate(model, x0, label, log_prior, draws, seed, **slips)


def _normalised(model, x0, label, log_prior, draws, seed):
    """Divides by the sum over both classes: right with many draws, biased with few."""
    other = math.log(-math.expm1(log_prior))
    mine = _estimate(model, x0, label, log_prior, draws, seed)
    theirs = _estimate(model, x0, 1 - label, other, draws, seed)
    return mine - torch.logaddexp(mine, theirs)


def _one_seed(model, x0, label, log_prior, draws, seed):
    return _estimate(model, x0, label, log_prior, draws, 0)


def _no_seed(model, x0, label, log_prior, draws, seed):
    return _estimate(model, x0, label, log_prior, draws, int(torch.randint(10**6, ())))


ON_AVERAGE = "right-on-average"
UNBIASED = {
    "form-one-number": (
        lambda model, x0, label, log_prior, draws, seed: _estimate(model, x0, label, log_prior, draws, seed).mean(),
        "form",
    ),
    "form-forgot-return": (lambda model, x0, label, log_prior, draws, seed: None, "form"),
    "no-seed": (_no_seed, "the-seed-decides", "the same seed"),
    "one-seed": (_one_seed, "the-seed-decides"),
    "a-hundred-draws": (
        lambda model, x0, label, log_prior, draws, seed: _estimate(model, x0, label, log_prior, 100, seed),
        "as-many-noisy-copies",
    ),
    "both-classes": (_normalised, "as-many-noisy-copies"),
    "half-forgotten": (_posterior(factor=1.0), ON_AVERAGE, "counts half"),
    "prior-forgotten": (_posterior(prior=False), ON_AVERAGE, "the prior"),
    "sign": (_posterior(sign=-1), ON_AVERAGE, "the sign"),
    "mean-of-the-interval": (_posterior(factor=0.5 / 22), ON_AVERAGE),
    "half-of-the-interval": (_posterior(low=1.0), ON_AVERAGE),
    "log-of-a-mean": (
        lambda model, x0, label, log_prior, draws, seed: (
            -torch.nn.functional.softplus(-_estimate(model, x0, label, log_prior, draws, seed))
        ),
        ON_AVERAGE,
    ),
}

RIGHT = {
    "ex-04-average": {
        "loop": average_in_a_loop,
        "softmax": average_by_softmax,
        "float32": average_in_float32,
        "numpy, by keywords": lambda scores, log_probs: average_in_numpy(scores=scores, log_probs=log_probs),
    },
    "ex-04-scale": {
        "table": scale_by_table,
        "two points": scale_by_two_points,
        "tensor": scale_as_a_tensor,
    },
    "ex-04-loss": {
        "bernoulli": loss_by_bernoulli,
        "loop, by keywords": lambda model, x0, labels, level, probability, seed: loss_in_a_loop(
            model=model, x0=x0, labels=labels, level=level, probability=probability, seed=seed
        ),
        "float32, global generator": loss_in_float32,
    },
    "ex-04-guide": {
        "x_0": guide_x0,
        "null first, v": lambda model, label, scale, bound: guide_null_first(
            model=model, label=label, scale=scale, bound=bound
        ),
        "float32": guide_in_float32,
    },
    "ex-04-spread": {
        "drawn": spread_by_drawing(),
        "by hand": spread_by_hand(),
        "tensor": torch.tensor([RIGHT_SPREAD], dtype=torch.float32),
    },
    "ex-04-share": {
        "search": share_by_search,
        "lagrange": share_by_lagrange,
        "drawn": share_by_drawing,
    },
    "ex-04-unbiased": {
        "float32": posterior_in_float32,
        "loop": posterior_in_a_loop,
        "importance": posterior_by_importance,
    },
}

MUTANTS = {
    "ex-04-average": AVERAGE,
    "ex-04-scale": SCALE,
    "ex-04-loss": LOSS,
    "ex-04-guide": GUIDE,
    "ex-04-spread": SPREAD,
    "ex-04-share": SHARE,
    "ex-04-unbiased": UNBIASED,
}
