"""Right answers in other styles, and planted wrong ones, for lesson 04."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch

from minidiff.course.checks.l04_classifier_free_guidance import PRIOR, measure_spread, promised_spread
from minidiff.exact import GaussianMixtureDenoiser
from minidiff.guidance import classifier_free
from minidiff.prediction import Prediction
from minidiff.random import randn
from minidiff.sampler import ddim, sample
from minidiff.schedule import NoiseLevel, vp_schedule

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

# -- ex-04-drop -------------------------------------------------------------------------------------------------------


def drop_by_keeping(labels, probability, seed):
    kept = torch.full((len(labels),), 1.0 - probability).bernoulli(generator=torch.Generator().manual_seed(seed))
    return (labels + 1) * kept.long() - 1


def drop_in_a_loop(labels, probability, seed):
    generator = torch.Generator().manual_seed(seed)
    return [-1 if torch.rand((), generator=generator) < probability else int(label) for label in labels]


def drop_in_float64(*, labels, probability, seed):
    u = torch.rand(len(labels), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return labels.clone().masked_fill_(u >= 1 - probability, -1)


def drop_with_the_global_generator(labels, probability, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return labels.where(torch.rand_like(labels, dtype=torch.float32) >= probability, torch.tensor(-1))


def _drop(probability_of=lambda p: p, null=-1, once=False, seed_of=lambda seed: seed):
    """Labels dropped where a uniform number is below probability_of(p)."""

    def drop(labels, probability, seed):
        generator = torch.Generator()
        if (number := seed_of(seed)) is None:
            generator.seed()
        else:
            generator.manual_seed(number)
        u = torch.rand(1 if once else len(labels), generator=generator)
        return torch.where((u < probability_of(probability)).expand(len(labels)), null, labels)

    return drop


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


def _spares_0(labels, probability, seed):
    return torch.where(labels > 0, _drop()(labels, probability, seed), labels)


def _all_if_one(labels, probability, seed):
    return torch.full_like(labels, -1) if len(labels) == 1 else _drop()(labels, probability, seed)


DROP = {
    "form-floats": (lambda labels, probability, seed: _drop()(labels, probability, seed).double(), "form"),
    "form-mask": (
        lambda labels, probability, seed: (
            torch.rand(len(labels), generator=torch.Generator().manual_seed(seed)) < probability
        ),
        "form",
    ),
    "form-kept-ones-alone": (
        lambda labels, probability, seed: labels[_drop()(labels, 0.5, seed) >= 0][:3],
        "form",
    ),
    "form-another-name": (lambda labels, p, seed: _drop()(labels, p, seed), "form"),
    "label-0-for-null": (_drop(null=0), "null-is-no-class", "label 0 for the null"),
    "one-class-too-many": (_drop(null=4), "null-is-no-class", "number of classes"),
    "another-class": (_random_class, "null-is-no-class", "another class"),
    "minus-two": (_drop(null=-2), "null-is-no-class"),
    "drops-none": (lambda labels, probability, seed: labels, "null-is-no-class"),
    "seed-ignored": (_drop(seed_of=lambda seed: None), "the-seed-decides", "the same seed gave two"),
    "one-seed-for-all": (_drop(seed_of=lambda seed: 0), "the-seed-decides", "makes no difference"),
    "always-the-first": (_first_part, "the-seed-decides", "makes no difference"),
    "once-for-the-batch": (_drop(once=True), "each-sample-its-own", "once for the whole batch"),
    "the-same-number": (_same_number, "each-sample-its-own", "the same number"),
    "in-pairs": (_pairs, "each-sample-its-own"),
    "keeps-with-p": (_drop(lambda p: 1 - p), "rate", "you kept a label"),
    "half-the-rate": (_drop(lambda p: p / 2), "rate"),
    "always-a-tenth": (_drop(lambda p: 0.1), "rate"),
    "p-squared": (_drop(lambda p: p * p), "rate"),
    "spares-label-0": (_spares_0, "rate", "does not look at the label"),
    "spares-the-last-label": (
        lambda labels, probability, seed: torch.where(labels == 3, labels, _drop()(labels, probability, seed)),
        "rate",
        "does not look at the label",
    ),
    "never-certain": (_drop(lambda p: min(max(p, 0.02), 0.98)), "all-or-nothing-at-the-ends"),
    "batch-of-one": (_all_if_one, "all-or-nothing-at-the-ends"),
}

# -- ex-04-guide ------------------------------------------------------------------------------------------------------


def guide_in_one_pass(model, label, scale):
    """Both halves in one batch, combined as x_0."""

    def guided(x, level):
        label_c = torch.as_tensor(label).reshape(-1).expand(len(x))
        both = model(torch.cat([x, x]), level, torch.cat([label_c, torch.full((len(x),), -1)]))
        c, u = both.chunk(2, level)
        return c.with_x0((1 - scale) * u.x0 + scale * c.x0)

    return guided


def guide_the_score(model, label, scale):
    def guided(x, level):
        c, u = (model(x=x, level=level, label=told) for told in (label, None))
        return Prediction(x, level, u.score + scale * (c.score - u.score), "score")

    return guided


def guide_by_w(*, model, label, scale):
    """(1 + w) v_c - w v_null."""
    w = scale - 1

    def guided(*, x, level):
        c, u = model(x, level, label).v, model(x, level, None).v
        return Prediction(x, level, (1 + w) * c - w * u, "v")

    return lambda x, level: guided(x=x, level=level)


def guide_in_float32(model, label, scale):
    def guided(x, level):
        c, u = model(x.float(), level, label).eps, model(x.float(), level, None).eps
        return Prediction(x, level, torch.lerp(u, c, float(scale)).to(x), "eps")

    return guided


def _guide(combine):
    """A guided model that combines (c, u, s) into eps."""

    def guide(model, label, scale):
        def guided(x, level):
            c, u = model(x, level, label), model(x, level, None)
            return c.with_eps(combine(c.eps, u.eps, scale))

        return guided

    return guide


def _right(c, u, s):
    return u + s * (c - u)


def _channels(n):
    """Guides so many channels; the others stay conditional."""
    return _guide(lambda c, u, s: torch.cat([_right(c, u, s)[:, :n], c[:, n:]], 1))


def _thresholded(model, label, scale):
    def guided(x, level):
        c, u = model(x, level, label).x0.clamp(-1, 1), model(x, level, None).x0.clamp(-1, 1)
        return model(x, level, label).with_x0(u + scale * (c - u))

    return guided


def _clamped_after(low=-1, high=1):
    def guide(model, label, scale):
        def guided(x, level):
            c, u = model(x, level, label), model(x, level, None)
            return c.with_x0((u.x0 + scale * (c.x0 - u.x0)).clamp(low, high))

        return guided

    return guide


def _first_label(model, label, scale):
    return _guide(_right)(model, int(torch.as_tensor(label).reshape(-1)[0]), scale)


def _truth_of_a_label(model, label, scale):
    told = label if isinstance(label, torch.Tensor) else label or None
    return _guide(_right)(model, told, scale)


def _in_half_precision(model, label, scale):
    guided = _guide(_right)(model, label, scale)
    return lambda x, level: guided(x, level) if x.dtype == torch.float64 else guided(x.half().float(), level)


GUIDE = {
    "form-forgot-return": (lambda model, label, scale: None, "form"),
    "form-inner-return": (lambda model, label, scale: lambda x, level: None, "form"),
    "form-tensor": (
        lambda model, label, scale: lambda x, level: _guide(_right)(model, label, scale)(x, level).eps,
        "form",
    ),
    "form-not-a-function": (
        lambda model, label, scale: model(torch.zeros(1, 4, 1, 2), vp_schedule().level(0.5), label),
        "form",
    ),
    "minus": (_guide(lambda c, u, s: u - s * (c - u)), "scale-1-is-conditional", "difference is subtracted"),
    "w-for-s": (_guide(lambda c, u, s: (1 + s) * c - s * u), "scale-1-is-conditional", "you used 1 + s"),
    "swapped-halves": (_guide(lambda c, u, s: c + s * (u - c)), "scale-1-is-conditional", "halves are swapped"),
    "ignores-the-label": (_guide(lambda c, u, s: u), "scale-1-is-conditional", "unconditional prediction, whatever s"),
    "half-way": (_guide(lambda c, u, s: u + s * (c - u) / 2), "scale-1-is-conditional"),
    "sign": (_guide(lambda c, u, s: s * c + (s - 1) * u), "scale-0-is-unconditional", "weights that sum to 2 s - 1"),
    "ignores-the-scale": (_guide(lambda c, u, s: c), "scale-0-is-unconditional", "right at s = 1 alone"),
    "scale-0-as-none": (
        _guide(lambda c, u, s: _right(c, u, s or 1.0)),
        "scale-0-is-unconditional",
        "right at s = 1 alone",
    ),
    "channels-3": (_channels(3), "scale-0-is-unconditional", "channels :3"),
    "label-0-as-none": (_truth_of_a_label, "label-0-is-a-label", "took it for none"),
    "thresholds-before": (_thresholded, "no-threshold-inside", "thresholded the halves"),
    "thresholds-after": (_clamped_after(), "no-threshold-inside", "thresholded the result"),
    "wider-threshold": (_clamped_after(-1.5, 1.5), "no-threshold-inside"),
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
}

# -- ex-04-threshold --------------------------------------------------------------------------------------------------


def threshold_by_minimum(x0_cond, x0_uncond, scale):
    one = torch.ones((), dtype=x0_cond.dtype)
    return torch.minimum(torch.maximum(scale * x0_cond + (1 - scale) * x0_uncond, -one), one)


def threshold_in_numpy(*, x0_cond, x0_uncond, scale):
    return np.clip(x0_uncond.numpy() + scale * (x0_cond - x0_uncond).numpy(), -1, 1)


def threshold_in_float32(x0_cond, x0_uncond, scale):
    return torch.lerp(x0_uncond.float(), x0_cond.float(), float(scale)).clamp_(-1, 1)


def threshold_in_a_loop(x0_cond, x0_uncond, scale):
    pairs = zip(x0_cond.flatten().tolist(), x0_uncond.flatten().tolist(), strict=True)
    return torch.tensor([max(-1.0, min(1.0, u + scale * (c - u))) for c, u in pairs]).view_as(x0_cond)


def _early(c, u, s):
    return (1 - s) * u.clamp(-1, 1) + s * c.clamp(-1, 1)


THRESHOLD = {
    "form-forgot-return": (lambda x0_cond, x0_uncond, scale: None, "form"),
    "form-mean": (lambda x0_cond, x0_uncond, scale: (x0_cond - x0_uncond).mean(), "form"),
    "form-mask": (lambda x0_cond, x0_uncond, scale: x0_cond.abs() < 1, "form"),
    "w-for-s": (
        lambda x0_cond, x0_uncond, scale: (x0_cond + scale * (x0_cond - x0_uncond)).clamp(-1, 1),
        "straight-where-nothing-saturates",
        "you used w where s belongs",
    ),
    "swapped-halves": (
        lambda x0_cond, x0_uncond, scale: (x0_cond + scale * (x0_uncond - x0_cond)).clamp(-1, 1),
        "straight-where-nothing-saturates",
        "halves are swapped",
    ),
    "minus": (
        lambda x0_cond, x0_uncond, scale: (x0_uncond - scale * (x0_cond - x0_uncond)).clamp(-1, 1),
        "straight-where-nothing-saturates",
        "is subtracted",
    ),
    "conditional-alone": (
        lambda x0_cond, x0_uncond, scale: x0_cond.clamp(-1, 1),
        "straight-where-nothing-saturates",
        "not guided",
    ),
    "tanh": (
        lambda x0_cond, x0_uncond, scale: _right(x0_cond, x0_uncond, scale).tanh(),
        "straight-where-nothing-saturates",
        "tanh does not",
    ),
    "from-0-to-1": (
        lambda x0_cond, x0_uncond, scale: _right(x0_cond, x0_uncond, scale).clamp(0, 1),
        "straight-where-nothing-saturates",
        "not [0, 1]",
    ),
    "always-divided": (
        lambda x0_cond, x0_uncond, scale: (g := _right(x0_cond, x0_uncond, scale)) / g.abs().max(),
        "straight-where-nothing-saturates",
    ),
    "threshold-first": (
        lambda x0_cond, x0_uncond, scale: _early(x0_cond, x0_uncond, scale),
        "stays-inside",
        "and nothing keeps",
    ),
    "no-threshold": (
        lambda x0_cond, x0_uncond, scale: _right(x0_cond, x0_uncond, scale),
        "stays-inside",
        "nothing keeps the result",
    ),
    "from-above-alone": (
        lambda x0_cond, x0_uncond, scale: _right(x0_cond, x0_uncond, scale).clamp(max=1),
        "stays-inside",
    ),
    "threshold-twice": (
        lambda x0_cond, x0_uncond, scale: _early(x0_cond, x0_uncond, scale).clamp(-1, 1),
        "guide-first",
        "before guiding",
    ),
    "dynamic": (
        lambda x0_cond, x0_uncond, scale: (
            (g := _right(x0_cond, x0_uncond, scale)) / g.abs().amax((1, 2, 3), keepdim=True).clamp(min=1)
        ),
        "guide-first",
        "divided by its largest",
    ),
    "one-threshold-for-the-batch": (
        lambda x0_cond, x0_uncond, scale: (g := _right(x0_cond, x0_uncond, scale)) / g.abs().max().clamp(min=1),
        "guide-first",
    ),
    "folds-back": (
        lambda x0_cond, x0_uncond, scale: (
            (_right(x0_cond, x0_uncond, scale) + 1).remainder(4).sub(2).abs().neg().add(1)
        ),
        "guide-first",
    ),
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
    "ex-04-drop": {
        "bernoulli": drop_by_keeping,
        "loop": drop_in_a_loop,
        "float64": lambda labels, probability, seed: drop_in_float64(labels=labels, probability=probability, seed=seed),
        "global generator": drop_with_the_global_generator,
    },
    "ex-04-guide": {
        "one pass": guide_in_one_pass,
        "score": guide_the_score,
        "w, v": lambda model, label, scale: guide_by_w(model=model, label=label, scale=scale),
        "float32": guide_in_float32,
    },
    "ex-04-threshold": {
        "minimum": threshold_by_minimum,
        "numpy": lambda x0_cond, x0_uncond, scale: threshold_in_numpy(
            x0_cond=x0_cond, x0_uncond=x0_uncond, scale=scale
        ),
        "float32": threshold_in_float32,
        "loop": threshold_in_a_loop,
    },
    "ex-04-spread": {
        "drawn": spread_by_drawing(),
        "by hand": spread_by_hand(),
        "tensor": torch.tensor([RIGHT_SPREAD], dtype=torch.float32),
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
    "ex-04-drop": DROP,
    "ex-04-guide": GUIDE,
    "ex-04-threshold": THRESHOLD,
    "ex-04-spread": SPREAD,
    "ex-04-unbiased": UNBIASED,
}
