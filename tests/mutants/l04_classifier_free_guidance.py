"""Planted wrong answers of lesson 04 (name -> (answer, a case that it must fail)), and second right answers."""

from __future__ import annotations

import torch

from minidiff.course.checks.l04_classifier_free_guidance import measure_spread
from minidiff.exact import GaussianMixtureDenoiser
from minidiff.guidance import classifier_free
from minidiff.random import randn
from minidiff.sampler import ddim, sample
from minidiff.schedule import vp_schedule


def _average(weigh):
    """Scores averaged with weights made from log p(c | x_t)."""
    return lambda scores, log_probs: (weigh(log_probs)[..., None] * scores).sum(1)


def _batch_weights(log_probs):
    return log_probs.exp().mean(0, keepdim=True).expand_as(log_probs)


def _sharpest(scores, log_probs):
    return scores[torch.arange(len(scores)), log_probs.argmax(1)]


def _loop(scores, log_probs):
    rows = [sum(p.exp() * s for p, s in zip(*pair, strict=True)) for pair in zip(log_probs, scores, strict=True)]
    return torch.stack(rows)


COUNTED = {"ho-salimans", "dreamfusion", "added", "classifier-on-conditional"}


def _scale(plus):
    """value + 1 for the rules in ``plus``."""
    return lambda rule, value: value + (rule in plus)


def _by_table(rule, value):
    table = dict.fromkeys(("glide", "imagen", "classifier-on-unconditional"), (0, 1)) | dict.fromkeys(COUNTED, (1, 1))
    offset, slope = table[rule]
    return offset + slope * value


def _drop(probability_of, null=-1, once=False):
    """Labels dropped where a uniform number is below probability_of(p)."""

    def drop(labels, probability, seed):
        u = torch.rand(1 if once else len(labels), generator=torch.Generator().manual_seed(seed))
        return torch.where((u < probability_of(probability)).expand(len(labels)), null, labels)

    return drop


def _first_part(labels, probability, seed):
    return torch.where(torch.arange(len(labels)) < probability * len(labels), -1, labels)


def _random_class(labels, probability, seed):
    generator = torch.Generator().manual_seed(seed)
    u, other = torch.rand(len(labels), generator=generator), torch.randint(4, (len(labels),), generator=generator)
    return torch.where(u < probability, other, labels)


def _bernoulli(labels, probability, seed):
    kept = torch.full((len(labels),), 1.0 - probability).bernoulli(generator=torch.Generator().manual_seed(seed))
    return (labels + 1) * kept.long() - 1


def _guide(combine):
    """A guided model that combines (c, u, s) into eps."""

    def guide(model, label, scale):
        def guided(x, level):
            c, u = model(x, level, label), model(x, level, None)
            return c.with_eps(combine(c.eps, u.eps, scale))

        return guided

    return guide


def _three_channels(c, u, s):
    return torch.cat([(u + s * (c - u))[:, :3], c[:, 3:]], 1)


def _thresholded(model, label, scale):
    def guided(x, level):
        c, u = model(x, level, label).x0.clamp(-1, 1), model(x, level, None).x0.clamp(-1, 1)
        return model(x, level, label).with_x0(u + scale * (c - u))

    return guided


def _clamped_after(model, label, scale):
    def guided(x, level):
        c, u = model(x, level, label), model(x, level, None)
        return c.with_x0((u.x0 + scale * (c.x0 - u.x0)).clamp(-1, 1))

    return guided


def _first_label(model, label, scale):
    first = label if isinstance(label, int) else int(torch.as_tensor(label).reshape(-1)[0])
    return _guide(lambda c, u, s: u + s * (c - u))(model, first, scale)


def _in_one_pass(model, label, scale):
    """Both halves in one batch, combined as x_0."""

    def guided(x, level):
        label_c = torch.as_tensor(label).reshape(-1).expand(len(x))
        both = model(torch.cat([x, x]), level, torch.cat([label_c, torch.full((len(x),), -1)]))
        c, u = both.chunk(2, level)
        return c.with_x0((1 - scale) * u.x0 + scale * c.x0)

    return guided


def _spread_by_drawing():
    """Samples: DDIM on another schedule."""
    world = GaussianMixtureDenoiser(torch.tensor([[-1.0], [1.0]]), 0.25)
    x_T = randn((20000, 1), torch.Generator().manual_seed(1), torch.float64)
    guided = classifier_free(world, torch.ones(20000).long(), torch.full((20000,), -1), 3.0)
    return (sample(ddim(), guided, vp_schedule().levels(300), x_T).std() / 0.5).item()


MUTANTS = {
    "ex-04-average": {
        "equal-weights": (_average(lambda log: torch.full_like(log, 1 / log.shape[1])), "is-the-score-of-the-mixture"),
        "equal-weights-though-sure": (
            _average(lambda log: torch.full_like(log, 1 / log.shape[1])),
            "sure-of-one-class",
        ),
        "log-weights": (_average(lambda log: log), "is-the-score-of-the-mixture"),
        "prior-weights": (
            lambda scores, log: torch.einsum("bkd,k->bd", scores, torch.tensor([0.4, 0.4, 0.2]).double()),
            "is-the-score-of-the-mixture",
        ),
        "weights-of-the-batch": (_average(_batch_weights), "each-sample-its-own-weights"),
        "likeliest-class-only": (_sharpest, "is-the-score-of-the-mixture"),
        "sum-of-scores": (lambda scores, log: scores.sum(1), "sure-of-one-class"),
    },
    "ex-04-scale": {
        "w-for-s": (_scale(set()), "counted-from-the-conditional"),
        "plus-one-everywhere": (_scale(COUNTED | {"glide", "imagen"}), "counted-from-the-null"),
        "minus-one": (lambda rule, value: value - (rule in COUNTED), "counted-from-the-conditional"),
        "dreamfusion-as-glide": (_scale(COUNTED - {"dreamfusion"}), "counted-from-the-conditional"),
        "classifier-always-s": (_scale(COUNTED - {"classifier-on-conditional"}), "with-a-classifier"),
        "classifier-always-w": (_scale(COUNTED | {"classifier-on-unconditional"}), "with-a-classifier"),
        "imagen-counted-backwards": (
            lambda rule, value: 1 - value if rule == "imagen" else _by_table(rule, value),
            "counted-from-the-null",
        ),
    },
    "ex-04-drop": {
        "keeps-with-p": (_drop(lambda p: 1 - p), "rate"),
        "once-for-the-batch": (_drop(lambda p: p, once=True), "each-sample-its-own"),
        "label-0-for-null": (_drop(lambda p: p, null=0), "null-is-no-class"),
        "another-class": (_random_class, "null-is-no-class"),
        "one-class-too-many": (_drop(lambda p: p, null=4), "null-is-no-class"),
        "always-the-first": (_first_part, "each-sample-its-own"),
        "half-the-rate": (_drop(lambda p: p / 2), "all-or-nothing-at-the-ends"),
        "always-a-tenth": (_drop(lambda p: 0.1), "all-or-nothing-at-the-ends"),
    },
    "ex-04-guide": {
        "sign": (_guide(lambda c, u, s: s * c + (s - 1) * u), "scale-0-is-unconditional"),
        "minus": (_guide(lambda c, u, s: u - s * (c - u)), "scale-1-is-conditional"),
        "w-for-s": (_guide(lambda c, u, s: (1 + s) * c - s * u), "scale-1-is-conditional"),
        "swapped-halves": (_guide(lambda c, u, s: c + s * (u - c)), "scale-1-is-conditional"),
        "channels-3": (_guide(_three_channels), "scale-4-extrapolates"),
        "never-beyond-conditional": (_guide(lambda c, u, s: u + min(s, 1.0) * (c - u)), "scale-4-extrapolates"),
        "ignores-the-scale": (_guide(lambda c, u, s: c), "scale-0-is-unconditional"),
        "thresholds-before": (_thresholded, "no-threshold-inside"),
        "thresholds-after": (_clamped_after, "no-threshold-inside"),
        "first-label-for-all": (_first_label, "a-label-for-each-sample"),
    },
    "ex-04-threshold": {
        "threshold-first": (
            lambda c, u, s: (1 - s) * u.clamp(-1, 1) + s * c.clamp(-1, 1),
            "stays-inside",
        ),
        "threshold-twice": (
            lambda c, u, s: ((1 - s) * u.clamp(-1, 1) + s * c.clamp(-1, 1)).clamp(-1, 1),
            "guide-first",
        ),
        "no-threshold": (lambda c, u, s: u + s * (c - u), "stays-inside"),
        "w-for-s": (lambda c, u, s: (c + s * (c - u)).clamp(-1, 1), "straight-where-nothing-saturates"),
        "swapped-halves": (lambda c, u, s: (c + s * (u - c)).clamp(-1, 1), "straight-where-nothing-saturates"),
        "tanh": (lambda c, u, s: (u + s * (c - u)).tanh(), "straight-where-nothing-saturates"),
    },
    "ex-04-spread": {
        "w-for-s": (measure_spread(2.0), "in-units-of-the-class"),
        "w-of-w": (measure_spread(4.0), "in-units-of-the-class"),
        "variances": (measure_spread() ** 2, "in-units-of-the-class"),
        "not-divided": (measure_spread() / 2, "in-units-of-the-class"),
        "no-loss": (1.0, "in-units-of-the-class"),
        "upside-down": (1 / measure_spread(), "in-units-of-the-class"),
    },
}

SECOND = {
    "ex-04-average": _loop,
    "ex-04-scale": _by_table,
    "ex-04-drop": _bernoulli,
    "ex-04-guide": _in_one_pass,
    "ex-04-threshold": lambda c, u, s: torch.minimum(
        torch.maximum(s * c + (1 - s) * u, -torch.ones(())), torch.ones(())
    ),
    "ex-04-spread": _spread_by_drawing(),
}
