"""Planted wrong answers of lesson 06 (name -> (answer, a case that it must fail)), and second right answers."""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch.nn import functional as F

from minidiff.course.checks.l06_clip_as_pmi import measure_floor
from minidiff.data import captions
from minidiff.data.scenes import sample_scenes


def _shares(weights):
    """which_is_true with another weight of (joint, i, hand)."""

    def answer(joint, i, hand):
        weight = weights(torch.as_tensor(joint, dtype=torch.float64), i, torch.as_tensor(hand))
        return weight / weight.sum()

    return answer


def _ratio(joint, i, hand):
    return joint[i, hand] / joint.sum(0)[hand]


def _without_repeats(joint, i, hand):
    """Equal captions share one place."""
    unique, where = torch.unique(torch.as_tensor(hand), return_inverse=True)
    weight = _ratio(joint, i, unique)
    return (weight / weight.sum())[where]


def _first_best(joint, i, hand):
    return F.one_hot(_ratio(joint, i, torch.as_tensor(hand)).argmax(), len(hand)).double()


def _deal_by_deal(joint, i, hand):
    """Bayes' rule with plain sums: the chance of the hand when place j holds the true caption."""
    joint = torch.as_tensor(joint, dtype=torch.float64)
    prior, told = joint.sum(0) / joint.sum(), joint[i] / joint[i].sum()
    chance = [math.prod(float((told if k == j else prior)[c]) for k, c in enumerate(hand)) for j in range(len(hand))]
    return [c / sum(chance) for c in chance]


def _repair_row_by_row(critic, prior):
    rows = []
    for row in critic.tolist():
        top = max(row)
        rows.append(
            [
                f - top - math.log(sum(p * math.exp(g - top) for p, g in zip(prior.tolist(), row, strict=True)))
                for f in row
            ]
        )
    return torch.tensor(rows, dtype=torch.float64)


def _counted(formula, start=0.0):
    """count_pmi with another formula of (counts), and pairs counted from ``start``."""

    def answer(pairs, n, m):
        counts = torch.full((n, m), start, dtype=torch.float64)
        for x, c in pairs:
            counts[x, c] += 1
        return formula(counts / counts.sum())

    return answer


def _pmi(p):
    return p.log() - p.sum(1, keepdim=True).log() - p.sum(0).log()


def _by_dictionaries(pairs, n, m):
    pairs = [tuple(pair) for pair in pairs]
    both, xs, cs = Counter(pairs), Counter(x for x, _ in pairs), Counter(c for _, c in pairs)
    value = lambda x, c: math.log(both[x, c] * len(pairs) / (xs[x] * cs[c])) if both[x, c] else -math.inf
    return [[value(x, c) for c in range(m)] for x in range(n)]


def _logits(images, texts, scale):
    return scale * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T


def _loss(logits=_logits, combine=lambda by_image, by_text: (by_image.mean() + by_text.mean()) / 2):
    """clip_loss with other logits, or with another use of both directions' (B,) losses."""

    def answer(images, texts, scale):
        table = logits(images, texts, scale)
        return combine(*(-t.log_softmax(1).diagonal() for t in (table, table.T)))

    return answer


def _naive_loss(images, texts, scale):
    power = _logits(images, texts, scale).exp()
    return -((power.diagonal() / power.sum(1)).log() + (power.diagonal() / power.sum(0)).log()).mean() / 2


def _softmax_twice(images, texts, scale):
    table = _logits(images, texts, scale)
    own = torch.arange(len(table))
    return (F.cross_entropy(table.softmax(1), own) + F.cross_entropy(table.T.softmax(1), own)) / 2


def _binary(images, texts, scale):
    """The sigmoid loss instead."""
    table = _logits(images, texts, scale)
    return F.binary_cross_entropy_with_logits(table, torch.eye(len(table)).to(table))


def _pair_by_pair(images, texts, scale):
    """Loops and sums, each direction by its own."""
    length = lambda v: math.sqrt(sum(a * a for a in v))
    dot = lambda u, v: scale * sum(a * b for a, b in zip(u, v, strict=True)) / (length(u) * length(v))
    rows, columns, total = images.tolist(), texts.tolist(), 0.0
    for i in range(len(rows)):
        for others in ([dot(rows[i], v) for v in columns], [dot(u, columns[i]) for u in rows]):
            top = max(others)
            total += top + math.log(sum(math.exp(o - top) for o in others)) - others[i]
    return total / (2 * len(rows))


def _guide(shift, critic=lambda z, text: (z @ text) / z.norm(dim=1), total=torch.sum):
    """guide_by_clip with another shift of eps (from gradient, level, 1/tau, s), another critic or reduction."""

    def build(denoiser, weight, text, logit_scale, scale):
        def guided(x, level):
            with torch.enable_grad():
                z = x.detach().requires_grad_()
                gradient = torch.autograd.grad(total(critic(z @ weight.T, text)), z)[0]
            prediction = denoiser(x, level)
            return prediction.with_eps(prediction.eps + shift(gradient, level, logit_scale, scale))

        return guided

    return build


def _right_shift(gradient, level, logit_scale, scale):
    return -scale * logit_scale * level.sigma * gradient


def _whole_batch(embedding, text):
    """One length for the whole batch."""
    return (embedding @ text) / embedding.norm()


def _by_hand(denoiser, weight, text, logit_scale, scale):
    """The gradient of a cosine, with pencil and paper."""

    def guided(x, level):
        embedding = x @ weight.T
        length = embedding.norm(dim=1, keepdim=True)
        unit = embedding / length
        gradient = (text - (unit @ text)[:, None] * unit) / length @ weight
        prediction = denoiser(x, level)
        return prediction.with_x0(prediction.x0 + scale * logit_scale * level.sigma**2 / level.alpha * gradient)

    return guided


def _floor_by_sums(batches=60):
    """Without a table of PMI: p(c | x) of every pair by the grammar, normalised by hand."""
    generator, total = torch.Generator().manual_seed(33), 0.0
    for _ in range(batches):
        scenes = sample_scenes(64, generator)
        said = captions.sample_captions(scenes, generator)
        index = captions.attribute_index(scenes)
        told = torch.stack([captions.caption_given_attributes(c)[index] for c in said], 1)
        ratio = told / torch.tensor([captions.caption_probability(c) for c in said])
        for share in (ratio / ratio.sum(1, keepdim=True), told / told.sum(0)):
            total -= share.diagonal().log().mean().item() / (2 * batches)
    return total


MUTANTS = {
    "ex-06-true-pair": {
        "conditional": (_shares(lambda j, i, h: j[i, h]), "every-hand"),
        "logarithms": (_shares(lambda j, i, h: (_ratio(j, i, h) * j.sum() / j[i].sum()).log()), "every-hand"),
        "softmax-of-ratio": (
            _shares(lambda j, i, h: (_ratio(j, i, h) * j.sum() / j[i].sum()).exp()),
            "every-hand",
        ),
        "divides-by-rows": (_shares(lambda j, i, h: j[i, h] / j.sum(1)[i]), "every-hand"),
        "priors-alone": (_shares(lambda j, i, h: j.sum(0)[h]), "every-hand"),
        "repeats-once": (_without_repeats, "the-same-caption-twice"),
        "the-best-takes-all": (_first_best, "every-hand"),
        "wants-probabilities": (_shares(lambda j, i, h: j[i, h] / (j.sum(0)[h] + 1e-2)), "counts"),
    },
    "ex-06-repair": {
        "plain-log-softmax": (lambda f, p: f.log_softmax(1), "any-a-of-x"),
        "log-posterior": (lambda f, p: (f + p.log()).log_softmax(1), "any-a-of-x"),
        "mean-of-f": (lambda f, p: f - (f @ p)[:, None], "any-a-of-x"),
        "largest-is-zero": (lambda f, p: f - f.amax(1, keepdim=True), "pmi-stays-as-it-is"),
        "over-pictures": (lambda f, p: f - (f + p.log()).logsumexp(0), "each-picture-alone"),
        "overflows": (lambda f, p: f - (p * f.exp()).sum(1, keepdim=True).log(), "no-overflow"),
        "one-number-for-all": (lambda f, p: f - (f + p.log()).logsumexp(1).mean(), "any-a-of-x"),
        "as-it-is": (lambda f, p: f, "any-a-of-x"),
    },
    "ex-06-pmi-table": {
        "bits": (_counted(lambda p: _pmi(p) / math.log(2)), "by-hand"),
        "ratio": (_counted(lambda p: _pmi(p).exp()), "by-hand"),
        "weighted": (_counted(lambda p: torch.nan_to_num(p * _pmi(p))), "by-hand"),
        "given-x": (_counted(lambda p: p.log() - p.sum(1, keepdim=True).log()), "independent-is-zero"),
        "given-c": (_counted(lambda p: p.log() - p.sum(0).log()), "independent-is-zero"),
        "smoothed": (_counted(_pmi, start=1.0), "never-seen"),
        "zero-for-never": (_counted(lambda p: _pmi(p).clamp(min=-30)), "never-seen"),
        "positive-part": (_counted(lambda p: _pmi(p).clamp(min=0)), "never-seen"),
    },
    "ex-06-clip-loss": {
        "image-to-text": (_loss(combine=lambda a, b: a.mean()), "both-directions"),
        "text-to-image": (_loss(combine=lambda a, b: b.mean()), "both-directions"),
        "sum-of-both": (_loss(combine=lambda a, b: a.mean() + b.mean()), "both-directions"),
        "sum-over-batch": (_loss(combine=lambda a, b: (a.sum() + b.sum()) / 2), "both-directions"),
        "sign": (_loss(combine=lambda a, b: -(a.mean() + b.mean()) / 2), "both-directions"),
        "not-normalised": (_loss(lambda i, t, s: s * i @ t.T), "unit-vectors"),
        "one-side-normalised": (_loss(lambda i, t, s: s * F.normalize(i, dim=1) @ t.T), "unit-vectors"),
        "divides": (_loss(lambda i, t, s: _logits(i, t, 1.0) / max(s, 1e-9)), "temperature"),
        "no-temperature": (_loss(lambda i, t, s: _logits(i, t, 1.0)), "temperature"),
        "scale-is-a-logarithm": (_loss(lambda i, t, s: _logits(i, t, math.exp(min(s, 600.0)))), "temperature"),
        "overflows": (_naive_loss, "cold"),
        "softmax-twice": (_softmax_twice, "both-directions"),
        "sigmoid": (_binary, "both-directions"),
    },
    "ex-06-clip-guidance": {
        "sign": (_guide(lambda g, at, k, s: s * k * at.sigma * g), "moves-the-noise-prediction"),
        "no-sigma": (_guide(lambda g, at, k, s: -s * k * g), "moves-the-noise-prediction"),
        "variance": (_guide(lambda g, at, k, s: -s * k * at.sigma**2 * g), "moves-the-noise-prediction"),
        "no-temperature": (_guide(lambda g, at, k, s: -s * at.sigma * g), "moves-the-noise-prediction"),
        "no-scale": (_guide(lambda g, at, k, s: -k * at.sigma * g), "scale-0-changes-nothing"),
        "w-for-s": (_guide(lambda g, at, k, s: -(1 + s) * k * at.sigma * g), "scale-0-changes-nothing"),
        "mean": (_guide(_right_shift, total=torch.mean), "each-sample-its-own"),
        "not-normalised": (_guide(_right_shift, critic=lambda z, text: z @ text), "length-does-not-matter"),
        "one-length-for-all": (_guide(_right_shift, critic=_whole_batch), "each-sample-its-own"),
        "logarithm": (
            _guide(_right_shift, critic=lambda z, text: F.logsigmoid((z @ text) / z.norm(dim=1))),
            "moves-the-noise-prediction",
        ),
    },
    "ex-06-floor": {
        "zero": (0.0, "mean-of-both-directions"),
        "chance": (math.log(64), "mean-of-both-directions"),
        "sum-of-both": (2 * measure_floor(), "mean-of-both-directions"),
        "bits": (measure_floor() / math.log(2), "mean-of-both-directions"),
        "minus-log-b": (measure_floor() - math.log(64), "mean-of-both-directions"),
        "two-objects": (measure_floor(objects=2, batches=10), "mean-of-both-directions"),
        "half-the-batch": (measure_floor(batch=32, batches=30), "mean-of-both-directions"),
        "conditional-for-pmi": (measure_floor(what="conditional", batches=30), "mean-of-both-directions"),
    },
}

SECOND = {
    "ex-06-true-pair": _deal_by_deal,
    "ex-06-repair": _repair_row_by_row,
    "ex-06-pmi-table": _by_dictionaries,
    "ex-06-clip-loss": _pair_by_pair,
    "ex-06-clip-guidance": _by_hand,
    "ex-06-floor": _floor_by_sums(),
}
