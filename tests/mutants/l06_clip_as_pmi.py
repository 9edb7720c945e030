"""Right answers in other styles, and planted wrong ones, for lesson 06."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import torch
from torch.nn import functional as F

from minidiff.course.checks.l06_clip_as_pmi import measure_floor
from minidiff.data import captions
from minidiff.data.scenes import sample_scenes
from minidiff.guidance import clip_guidance
from minidiff.pmi import info_nce, pointwise_mutual_information
from minidiff.prediction import Prediction


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


def _keeps_the_dtype(joint, i, hand):
    """The posterior in the dtype of the table: whole numbers for counts."""
    weight = _ratio(joint, i, hand)
    return (weight / weight.sum()).to(joint.dtype)


def _in_float32(joint, i, hand):
    logs = joint.float().log()
    return (logs[i, hand] - joint.float().sum(0)[hand].log()).softmax(0)


def _first_best(joint, i, hand):
    return F.one_hot(_ratio(joint, i, torch.as_tensor(hand)).argmax(), len(hand)).double()


def _deal_by_deal(joint, i, hand):
    """Bayes' rule with plain sums: the chance of the hand when place j holds the true caption."""
    joint = torch.as_tensor(joint, dtype=torch.float64)
    prior, told = joint.sum(0) / joint.sum(), joint[i] / joint[i].sum()
    chance = [math.prod(float((told if k == j else prior)[c]) for k, c in enumerate(hand)) for j in range(len(hand))]
    return [c / sum(chance) for c in chance]


def _repair_by_solving(critic, prior):
    """The a(x) with which the mean of exp(PMI) is one, by Newton's method from far below."""
    shift = critic.amax(1, keepdim=True) + prior.log().amin()
    for _ in range(200):
        shift = shift + (prior * (critic - shift).exp()).sum(1, keepdim=True).log()
    return critic - shift


def _repair_in_float32(critic, prior):
    top = critic.float().amax(1, keepdim=True)
    rest = critic.float() - top
    return rest - (rest.exp() @ prior.float()).log()[:, None]


def _repair_naively(shift):
    """exp f after a shift, which saves it from overflow or does not."""

    def answer(critic, prior):
        rest = critic - shift(critic)
        return rest - (prior * rest.exp()).sum(1, keepdim=True).log()

    return answer


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


def _by_matrices(pairs, n, m):
    """Counts as a product of one-hot matrices, in numpy and float32."""
    x, c = np.array(pairs).T
    counts = np.eye(n, dtype=np.float32)[x].T @ np.eye(m, dtype=np.float32)[c]
    with np.errstate(divide="ignore"):
        return np.log(counts * len(pairs) / counts.sum(1, keepdims=True) / counts.sum(0))


def _logits(images, texts, scale):
    return scale * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T


def _loss(logits=_logits, combine=lambda by_image, by_text: (by_image.mean() + by_text.mean()) / 2):
    """clip_loss with other logits, or with another use of both directions' (B,) losses."""

    def answer(images, texts, logit_scale):
        table = logits(images, texts, logit_scale)
        return combine(*(-t.log_softmax(1).diagonal() for t in (table, table.T)))

    return answer


def _naive_loss(images, texts, logit_scale):
    power = _logits(images, texts, logit_scale).exp()
    return -((power.diagonal() / power.sum(1)).log() + (power.diagonal() / power.sum(0)).log()).mean() / 2


def _one_largest(images, texts, logit_scale):
    table = _logits(images, texts, logit_scale)
    power = (table - table.max()).exp()
    return -((power.diagonal() / power.sum(1)).log() + (power.diagonal() / power.sum(0)).log()).mean() / 2


def _squeezed(images, texts, logit_scale):
    """Loses the batch's axis where it is one."""
    table = _logits(images, texts, logit_scale).squeeze()
    return -(table.log_softmax(1).diagonal() + table.log_softmax(0).diagonal()).mean() / 2


def _softmax_twice(images, texts, logit_scale):
    table = _logits(images, texts, logit_scale)
    own = torch.arange(len(table))
    return (F.cross_entropy(table.softmax(1), own) + F.cross_entropy(table.T.softmax(1), own)) / 2


def _binary(images, texts, logit_scale):
    """The sigmoid loss instead."""
    table = _logits(images, texts, logit_scale)
    return F.binary_cross_entropy_with_logits(table, torch.eye(len(table)).to(table))


def _pair_by_pair(images, texts, logit_scale):
    """Loops and sums, each direction by its own."""
    length = lambda v: math.sqrt(sum(a * a for a in v))
    dot = lambda u, v: logit_scale * sum(a * b for a, b in zip(u, v, strict=True)) / (length(u) * length(v))
    rows, columns, total = images.tolist(), texts.tolist(), 0.0
    for i in range(len(rows)):
        for others in ([dot(rows[i], v) for v in columns], [dot(u, columns[i]) for u in rows]):
            top = max(others)
            total += top + math.log(sum(math.exp(o - top) for o in others)) - others[i]
    return total / (2 * len(rows))


def _cosine(z, text):
    return (z @ text) / z.norm(dim=1)


def _guide(shift, critic=_cosine, total=torch.sum, said=Prediction.with_eps):
    """guide_by_clip with another shift of eps (from gradient, level, 1/tau, s), critic, reduction, or way to say it."""

    def build(denoiser, weight, text, logit_scale, scale):
        def guided(x, level):
            with torch.enable_grad():
                z = x.detach().requires_grad_()
                gradient = torch.autograd.grad(total(critic(z @ weight.T, text)), z)[0]
            prediction = denoiser(x, level)
            return said(prediction, prediction.eps + shift(gradient, level, logit_scale, scale))

        return guided

    return build


def _right_shift(gradient, level, logit_scale, scale):
    return -scale * logit_scale * level.like(gradient)[1] * gradient


def _unaware_of_no_grad(denoiser, weight, text, logit_scale, scale):
    def guided(x, level):
        z = x.clone().requires_grad_()
        gradient = torch.autograd.grad(logit_scale * _cosine(z @ weight.T, text).sum(), z)[0]
        prediction = denoiser(x, level)
        return prediction.with_eps(prediction.eps - scale * level.like(x)[1] * gradient)

    return guided


def _of_the_direction(embedding, text):
    """The length as a number that does not depend on x."""
    return (embedding @ text) / embedding.norm(dim=1).detach()


def _squeezes(embedding, text):
    return (embedding.squeeze() @ text) / embedding.squeeze().norm(dim=1)


def _floored_length(embedding, text):
    return (embedding @ text) / embedding.norm(dim=1).clamp(min=0.1)


class _Tower:
    """The CLIP of the exercise, as the package takes one."""

    def __init__(self, weight, text, logit_scale):
        self.critic = lambda captions: lambda x, level: logit_scale * F.normalize(x @ weight.T, dim=1) @ text


def _by_the_package(denoiser, weight, text, logit_scale, scale):
    return clip_guidance(_Tower(weight, text, logit_scale), None, scale)(denoiser)


def _sample_by_sample(denoiser, weight, text, logit_scale, scale):
    """In float32, one gradient for each sample, through the score."""
    critic = lambda one: logit_scale * F.cosine_similarity(weight.float() @ one, text.float(), dim=0)

    def guided(x, level):
        slope = torch.stack([torch.func.grad(critic)(one.float()) for one in x])
        p = denoiser(x, level=level)
        return p.replace(value=p.score + scale * slope.to(p.score), kind="score")

    return guided


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
        alpha, sigma = level.like(x)
        return prediction.with_x0(prediction.x0 + scale * logit_scale * sigma**2 / alpha * gradient)

    return guided


def _floor_by_sums(batches=500):
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


FLOOR = measure_floor()
TRUE_PAIR = {
    "form-one-number": (lambda joint, i, hand: joint[i, hand[0]], "form"),
    "form-all-captions": (lambda joint, i, hand: (joint[i] / joint.sum(0)).softmax(0), "form"),
    "form-another-name": (lambda joint, picture, hand: _deal_by_deal(joint, picture, hand), "form"),
    "conditional": (_shares(lambda j, i, h: j[i, h]), "every-hand", "frequent anyway"),
    "divides-by-rows": (_shares(lambda j, i, h: j[i, h] / j.sum(1)[i]), "every-hand", "frequent anyway"),
    "logarithms": (
        _shares(lambda j, i, h: (_ratio(j, i, h) * j.sum() / j[i].sum()).log()),
        "every-hand",
        "not to its logarithm",
    ),
    "softmax-of-ratio": (
        _shares(lambda j, i, h: (_ratio(j, i, h) * j.sum() / j[i].sum()).exp()),
        "every-hand",
        "softmax takes an exponential",
    ),
    "softmax-of-column-shares": (_shares(lambda j, i, h: _ratio(j, i, h).exp()), "every-hand", "(of p(x | c))"),
    "softmax-of-row-shares": (_shares(lambda j, i, h: (j[i, h] / j[i].sum()).exp()), "every-hand", "(of p(c | x))"),
    "not-normalised": (
        lambda joint, i, hand: _ratio(joint, i, hand) * joint.sum() / joint[i].sum(),
        "every-hand",
        "these are the ratios",
    ),
    "given-the-caption": (_ratio, "every-hand", "p(x | c) of each"),
    "priors-alone": (_shares(lambda j, i, h: j.sum(0)[h]), "every-hand", "how frequent"),
    "upside-down": (_shares(lambda j, i, h: 1 / _ratio(j, i, h)), "every-hand", "upside down"),
    "the-best-takes-all": (_first_best, "every-hand", "does not take all"),
    "joint-squared": (_shares(lambda j, i, h: _ratio(j, i, h) ** 2), "every-hand"),
    "repeats-once": (_without_repeats, "the-same-caption-twice", "the weight of one"),
    "repeats-share": (
        lambda joint, i, hand: _without_repeats(joint, i, hand) / torch.tensor([hand.count(c) for c in hand]),
        "the-same-caption-twice",
        "divided among",
    ),
    "keeps-the-dtype": (_keeps_the_dtype, "counts"),
    "nothing-is-impossible": (_shares(lambda j, i, h: _ratio(j.clamp(min=2e-3), i, h)), "counts"),
}
REPAIR = {
    "form-one-column": (lambda critic, prior: (critic + prior.log()).logsumexp(1), "form"),
    "form-another-name": (lambda f, p_c: f, "form"),
    "log-posterior": (
        lambda critic, prior: (critic + prior.log()).log_softmax(1),
        "pmi-stays-as-it-is",
        "is log p(c | x)",
    ),
    "plain-log-softmax": (lambda critic, prior: critic.log_softmax(1), "pmi-stays-as-it-is", "alike"),
    "mean-of-f": (
        lambda critic, prior: critic - (critic @ prior)[:, None],
        "pmi-stays-as-it-is",
        "you took the mean of f",
    ),
    "plain-mean-of-f": (lambda critic, prior: critic - critic.mean(1, True), "pmi-stays-as-it-is", "the plain mean"),
    "largest-is-zero": (lambda critic, prior: critic - critic.amax(1, True), "pmi-stays-as-it-is", "is not zero"),
    "over-pictures": (
        lambda critic, prior: critic - (critic + prior.log()).logsumexp(0),
        "pmi-stays-as-it-is",
        "runs over the pictures",
    ),
    "sum-without-logarithm": (
        lambda critic, prior: critic - (critic.exp() @ prior)[:, None],
        "pmi-stays-as-it-is",
        "not the sum",
    ),
    "prior-without-logarithm": (
        lambda critic, prior: critic - (critic + prior).logsumexp(1, True),
        "pmi-stays-as-it-is",
        "not p(c)",
    ),
    "ratio": (
        lambda critic, prior: (critic - (critic + prior.log()).logsumexp(1, True)).exp(),
        "pmi-stays-as-it-is",
        "this is the ratio",
    ),
    "posterior": (lambda critic, prior: (critic + prior.log()).softmax(1), "pmi-stays-as-it-is", "this is p(c | x);"),
    "half": (lambda critic, prior: critic / 2, "pmi-stays-as-it-is"),
    "as-it-is": (lambda critic, prior: critic, "any-a-of-x", "as it came"),
    "one-number-for-all": (
        lambda critic, prior: critic - (critic + prior.log()).logsumexp(1).mean(),
        "any-a-of-x",
        "one number for the whole batch",
    ),
    "sign": (lambda critic, prior: critic + (critic + prior.log()).logsumexp(1, True), "any-a-of-x", "sign"),
    "squeezes": (
        lambda critic, prior: critic - (critic + prior.log()).squeeze().logsumexp(-1)[:, None],
        "each-picture-alone",
    ),
    "shape-guessed": (
        lambda critic, prior: critic - (critic + prior.log()).logsumexp(int(len(critic) != 4), True),
        "each-picture-alone",
    ),
    "overflows": (_repair_naively(lambda f: 0.0), "no-overflow", "infinity or 0"),
    "one-largest-for-all": (_repair_naively(lambda f: f.max()), "no-overflow", "one for the whole batch"),
    "clipped": (
        lambda critic, prior: critic - (critic.clamp(-700, 700) + prior.log()).logsumexp(1, True),
        "no-overflow",
    ),
    "smallest-subtracted": (_repair_naively(lambda f: f.amin(1, True)), "no-overflow", "infinity or 0"),
}
PMI_TABLE = {
    "form-transposed": (lambda pairs, n, m: torch.tensor(_by_dictionaries(pairs, n, m)).T, "form"),
    "form-flat": (lambda pairs, n, m: torch.tensor(_by_dictionaries(pairs, n, m)).flatten(), "form"),
    "given-x": (
        _counted(lambda p: p.log() - p.sum(1, keepdim=True).log()),
        "independent-is-zero",
        "log p(c | x)",
    ),
    "given-c": (_counted(lambda p: p.log() - p.sum(0).log()), "independent-is-zero", "log p(x | c)"),
    "joint": (_counted(torch.log), "independent-is-zero", "this is log p(x, c)"),
    "ratio": (_counted(lambda p: _pmi(p).exp()), "independent-is-zero", "this is the ratio"),
    "counts-without-n": (
        lambda pairs, n, m: torch.tensor(_by_dictionaries(pairs, n, m)) - math.log(len(pairs)),
        "independent-is-zero",
        "log N is missing",
    ),
    "smoothed": (_counted(_pmi, start=1.0), "independent-is-zero", "once more"),
    "a-little-smoothed": (_counted(_pmi, start=0.01), "independent-is-zero"),
    "bits": (_counted(lambda p: _pmi(p) / math.log(2)), "by-hand", "bits"),
    "weighted": (_counted(lambda p: torch.nan_to_num(p * _pmi(p))), "by-hand", "mutual information"),
    "sign": (_counted(lambda p: -_pmi(p)), "by-hand", "sign"),
    "positive-part": (_counted(lambda p: _pmi(p).clamp(min=0)), "by-hand", "may be negative"),
    "cut-off": (_counted(lambda p: _pmi(p).clamp(min=-30)), "never-seen"),
    "zero-for-never": (_counted(lambda p: _pmi(p).nan_to_num(neginf=0.0)), "never-seen", "not zero"),
    "nan-for-never": (_counted(lambda p: _pmi(p).nan_to_num(neginf=math.nan)), "never-seen", "not nan"),
}
CLIP_LOSS = {
    "form-of-each-pair": (_loss(combine=lambda a, b: (a + b) / 2), "form"),
    "form-forgot-return": (lambda images, texts, logit_scale: None, "form"),
    "form-another-name": (lambda images, texts, scale: _pair_by_pair(images, texts, scale), "form"),
    "image-to-text": (_loss(combine=lambda a, b: a.mean()), "both-directions", "image to text"),
    "text-to-image": (_loss(combine=lambda a, b: b.mean()), "both-directions", "text to image"),
    "sum-of-both": (_loss(combine=lambda a, b: a.mean() + b.mean()), "both-directions", "sum of both"),
    "sum-over-batch": (_loss(combine=lambda a, b: (a.sum() + b.sum()) / 2), "both-directions", "over the batch"),
    "sign": (_loss(combine=lambda a, b: -(a.mean() + b.mean()) / 2), "both-directions", "sign"),
    "bits": (_loss(combine=lambda a, b: (a.mean() + b.mean()) / math.log(4)), "both-directions", "bits"),
    "softmax-twice": (_softmax_twice, "both-directions", "taken twice"),
    "sigmoid": (_binary, "both-directions"),
    "scale-is-a-logarithm": (
        _loss(lambda i, t, s: _logits(i, t, math.exp(min(s, 600.0)))),
        "both-directions",
        "not its logarithm",
    ),
    "not-normalised": (_loss(lambda i, t, s: s * i @ t.T), "unit-vectors", "length one first"),
    "images-normalised": (_loss(lambda i, t, s: s * F.normalize(i, dim=1) @ t.T), "unit-vectors", "images alone"),
    "texts-normalised": (_loss(lambda i, t, s: s * i @ F.normalize(t, dim=1).T), "unit-vectors", "texts alone"),
    "normalised-over-the-batch": (
        _loss(lambda i, t, s: s * F.normalize(i, dim=0) @ F.normalize(t, dim=0).T),
        "both-directions",
        "normalised over the batch",
    ),
    "divides": (_loss(lambda i, t, s: _logits(i, t, 1 / max(s, 1e-9))), "temperature", "multiply by it"),
    "no-temperature": (_loss(lambda i, t, s: _logits(i, t, 1.0)), "temperature", "temperature is missing"),
    "root-of-the-scale": (_loss(lambda i, t, s: _logits(i, t, s**0.5)), "temperature"),
    "squeezes": (_squeezed, "temperature"),
    "overflows": (_naive_loss, "cold", "exp gives infinity"),
    "one-largest-for-all": (_one_largest, "cold", "for the whole table"),
    "scale-cut-off": (_loss(lambda i, t, s: _logits(i, t, min(s, 100.0))), "cold"),
}
MOVES = "moves-the-noise-prediction"
CLIP_GUIDANCE = {
    "form-not-a-function": (
        lambda denoiser, weight, text, logit_scale, scale: weight,
        "form",
    ),
    "form-eps-alone": (
        lambda denoiser, weight, text, logit_scale, scale: lambda x, level: denoiser(x, level).eps,
        "form",
    ),
    "form-inner-name": (
        lambda denoiser, weight, text, logit_scale, scale: lambda x_t, level: denoiser(x_t, level),
        "form",
    ),
    "sign": (_guide(lambda g, at, k, s: s * k * at.sigma * g), MOVES, "sign"),
    "no-sigma": (_guide(lambda g, at, k, s: -s * k * g), MOVES, "sigma is missing"),
    "variance": (_guide(lambda g, at, k, s: -s * k * at.sigma**2 * g), MOVES, "not by the variance"),
    "over-sigma": (_guide(lambda g, at, k, s: -s * k / at.sigma * g), MOVES, "you divided by sigma"),
    "no-temperature": (_guide(lambda g, at, k, s: -s * at.sigma * g), MOVES, "1/tau is missing"),
    "over-temperature": (_guide(lambda g, at, k, s: -s / k * at.sigma * g), MOVES, "multiply by it"),
    "no-scale": (_guide(lambda g, at, k, s: -k * at.sigma * g), MOVES, "guidance scale is missing"),
    "w-for-s": (_guide(lambda g, at, k, s: -(1 + s) * k * at.sigma * g), MOVES, "1 + s"),
    "mean": (_guide(_right_shift, total=torch.mean), MOVES, "mean over the batch"),
    "not-normalised": (_guide(_right_shift, critic=lambda z, text: z @ text), MOVES, "brought to length one"),
    "one-length-for-all": (_guide(_right_shift, critic=_whole_batch), MOVES, "one length for the batch"),
    "length-is-a-number": (_guide(_right_shift, critic=_of_the_direction), MOVES, "of the direction alone"),
    "not-guided": (lambda denoiser, weight, text, logit_scale, scale: denoiser, MOVES, "denoiser's own"),
    "logarithm": (_guide(_right_shift, critic=lambda z, text: F.logsigmoid(_cosine(z, text))), MOVES),
    "length-cut-off": (_guide(_right_shift, critic=_floored_length), "length-does-not-matter"),
    "scale-by-default": (_guide(lambda g, at, k, s: _right_shift(g, at, k, s or 1.0)), "scale-0-changes-nothing"),
    "squeezes": (_guide(_right_shift, critic=_squeezes), "each-sample-its-own"),
    "levels-along-the-last-axis": (
        _guide(lambda g, at, k, s: -s * k * at.sigma * g),
        "one-level-per-sample",
        "go along the last",
    ),
    "level-of-the-first": (
        _guide(lambda g, at, k, s: -s * k * torch.as_tensor(at.sigma).flatten()[0] * g),
        "one-level-per-sample",
        "the first one's for all",
    ),
    "variance-lost": (
        _guide(_right_shift, said=lambda p, eps: Prediction(p.x, p.level, eps, "eps")),
        "learned-variance",
    ),
    "variance-spoilt": (
        _guide(_right_shift, said=lambda p, eps: p.replace(value=eps, kind="eps", fraction=0 * eps)),
        "learned-variance",
    ),
    "without-enable-grad": (_unaware_of_no_grad, "inside-a-sampler"),
}
AT_THE_FLOOR = "mean-of-both-directions"
FLOORS = {
    "form-list": ([FLOOR] * 60, "form"),
    "form-function": (measure_floor, "form"),
    "zero": (0.0, AT_THE_FLOOR, "still has a loss"),
    "chance": (math.log(64), AT_THE_FLOOR, "who knows nothing"),
    "image-to-text": (measure_floor("image-to-text"), AT_THE_FLOOR, "image to text"),
    "text-to-image": (measure_floor("text-to-image"), AT_THE_FLOOR, "text to image"),
    "text-to-image-by-another": (0.90, AT_THE_FLOOR, "text to image"),
    "sum-of-both": (2 * FLOOR, AT_THE_FLOOR, "sum of both"),
    "bits": (FLOOR / math.log(2), AT_THE_FLOOR, "bits"),
    "minus-log-b": (FLOOR - math.log(64), AT_THE_FLOOR, "minus log B"),
    "sum-over-the-batch": (64 * FLOOR, AT_THE_FLOOR, "sum over a batch"),
    "two-objects": (measure_floor(objects=2), AT_THE_FLOOR, "two objects"),
    "half-the-batch": (measure_floor(batch=32), AT_THE_FLOOR, "batches of 32"),
    "twice-the-batch": (measure_floor(batch=128), AT_THE_FLOOR, "batches of 128"),
    "conditional-for-pmi": (measure_floor(given=True), AT_THE_FLOOR, "less by log p(c)"),
    "one-batch": (FLOOR - 0.1, AT_THE_FLOOR),
}


def _on_circle(pictures, captions, scale, length=1.0):
    """Embeddings by their angles in degrees."""
    turn = lambda angles: (
        length * torch.stack([f(torch.deg2rad(torch.tensor(angles))) for f in (torch.cos, torch.sin)], 1)
    )
    return turn(pictures), turn(captions), scale


BY_HAND = [-40.0, 0.0, 40.0, 180.0, 220.0, 140.0]
CHANCE = torch.randn(2, 6, 2, generator=torch.Generator().manual_seed(0))
INFORMATION = "reaches-the-information"
TWO = {
    "form-two": (_on_circle(BY_HAND, BY_HAND, 1.5)[:2], "form"),
    "form-three-numbers": ((torch.randn(6, 3), torch.randn(6, 3), 1.0), "form"),
    "form-table": (torch.ones(6, 6), "form"),
    "negative-scale": (_on_circle(BY_HAND, BY_HAND, -1.5), "a-critic"),
    "nothing": ((torch.zeros(6, 2), torch.zeros(6, 2), 1.0), "a-critic"),
    "by-chance": ((*CHANCE, 1.5), INFORMATION),
    "two-points": (_on_circle([0.0] * 3 + [180.0] * 3, [0.0] * 3 + [180.0] * 3, 1.0), INFORMATION),
    "evenly": (
        _on_circle([0.0, 120.0, 240.0, 60.0, 180.0, 300.0], [0.0, 120.0, 240.0, 60.0, 180.0, 300.0], 1.65),
        INFORMATION,
    ),
    "against-each-other": (_on_circle(BY_HAND, BY_HAND[::-1], 1.5), INFORMATION),
    "too-steep": (_on_circle(BY_HAND, BY_HAND, 10.0), INFORMATION, "another logit scale"),
    "too-flat": (_on_circle(BY_HAND, BY_HAND, 0.3), INFORMATION, "another logit scale"),
}

MUTANTS = {
    "ex-06-true-pair": TRUE_PAIR,
    "ex-06-repair": REPAIR,
    "ex-06-pmi-table": PMI_TABLE,
    "ex-06-clip-loss": CLIP_LOSS,
    "ex-06-clip-guidance": CLIP_GUIDANCE,
    "ex-06-floor": FLOORS,
    "ex-06-two": TWO,
}

RIGHT = {
    "ex-06-true-pair": {
        "deal-by-deal": _deal_by_deal,
        "float32": _in_float32,
        "package": lambda joint, i, hand: pointwise_mutual_information(joint)[i, hand].softmax(0),
        "loop": lambda joint, i, hand: [
            1 / sum((_ratio(joint, i, other) / _ratio(joint, i, own)).item() for other in hand)
            if joint[i, own] > 0
            else 0.0
            for own in hand
        ],
    },
    "ex-06-repair": {
        "row-by-row": _repair_row_by_row,
        "float32": _repair_in_float32,
        "posterior-first": lambda critic, prior: (critic + prior.log()).log_softmax(dim=1) - prior.log(),
        "solving": _repair_by_solving,
    },
    "ex-06-pmi-table": {
        "dictionaries": _by_dictionaries,
        "numpy-float32": _by_matrices,
        "package-formula": _counted(_pmi),
    },
    "ex-06-clip-loss": {
        "pair-by-pair": _pair_by_pair,
        "float32": lambda images, texts, logit_scale: _loss()(images.float(), texts.float(), logit_scale),
        "package": lambda images, texts, logit_scale: info_nce(_logits(images, texts, logit_scale)).mean().item(),
        "cross-entropy": lambda images, texts, logit_scale: sum(
            F.cross_entropy(table, torch.arange(len(images))).reshape(1) / 2
            for table in (_logits(images, texts, logit_scale), _logits(texts, images, logit_scale))
        ),
    },
    "ex-06-clip-guidance": {
        "by-hand": _by_hand,
        "autograd": _guide(_right_shift),
        "package": _by_the_package,
        "sample-by-sample": _sample_by_sample,
    },
    "ex-06-floor": {
        "sums": _floor_by_sums(),
        "tensor": torch.tensor([FLOOR + 0.015]),
        "numpy": np.float32(FLOOR - 0.015),
    },
    "ex-06-two": {
        "by-hand": _on_circle(BY_HAND, BY_HAND, 1.5),
        "long-rows": list(_on_circle(BY_HAND, BY_HAND, torch.tensor([1.5]), 20.0)),
        "trained": _on_circle(
            [164.0, -156.0, -147.0, -25.0, -34.0, 15.0], [135.0, -129.0, -125.0, -52.0, -56.0, 44.0], 1.9
        ),
    },
}
