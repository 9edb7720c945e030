"""Planted answers of lesson 12: MUTANTS, name -> (answer, a case that it must fail, words of the diagnosis); RIGHT."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import torch

from minidiff.guidance import dynamic_threshold
from minidiff.prediction import Prediction
from minidiff.sampler import ddim, sample
from minidiff.schedule import NoiseLevel

# -- ex-12-ceiling ----------------------------------------------------------------------------------------------------


def _grouped(captions, weights, see):
    seen = []
    for caption, weight in zip(captions, weights.tolist(), strict=True):
        h = see(caption)
        for other, group in seen:
            if other == h:
                group.append(weight)
                break
        else:
            seen.append((h, [weight]))
    return [group for _, group in seen]


def _ceiling(best, divide=True):
    def ceiling(captions, weights, see):
        total = float(weights.sum()) if divide else 1.0
        return sum(best(group) for group in _grouped(captions, weights, see)) / total

    return ceiling


def ceiling_by_matrix(captions, weights, see):
    """A caption counts if no other of its group is heavier, nor as heavy and before it."""
    views = [see(caption) for caption in captions]
    same = torch.tensor([[a == b for b in views] for a in views])
    heavier = (weights > weights[:, None]) | (
        (weights == weights[:, None]) & torch.ones(len(views), len(views)).tril(-1).bool()
    )
    return weights[~(same & heavier).any(1)].sum() / weights.sum()


def ceiling_by_falling_weight(captions, weights, see):
    taken, total = [], 0.0
    for i in np.argsort(-weights.numpy()):
        h = see(captions[i])
        if h not in taken:
            taken.append(h)
            total += weights[i].item()
    return total / weights.sum().item()


def ceiling_in_float32(captions, weights, see):
    w, views = weights.float() / weights.float().sum(), [repr(see(caption)) for caption in captions]
    return sum(max(w[i] for i, v in enumerate(views) if v == view) for view in set(views))


def by_hash(captions, weights, see):
    groups = {}
    for caption, weight in zip(captions, weights.tolist(), strict=True):
        h = see(caption)
        groups[h] = max(groups.get(h, 0.0), weight)
    return sum(groups.values()) / weights.sum().item()


WORDS = "words-without-order"
CEILING = {
    "form-forgot-return": (lambda captions, weights, see: None, "form"),
    "form-another-name": (lambda captions, weights, reader: 0.5, "form"),
    "not-divided": (_ceiling(max, divide=False), WORDS, "divide by their sum"),
    "rarest": (_ceiling(min), WORDS, "not the rarest"),
    "in-turn": (_ceiling(lambda g: sum(g) / len(g)), WORDS, "always"),
    "in-proportion": (_ceiling(lambda g: sum(w * w for w in g) / sum(g)), WORDS, "proportion"),
    "counts": (lambda captions, weights, see: len(_grouped(captions, weights, see)) / len(captions), WORDS, "differ"),
    "one-group": (
        lambda captions, weights, see: max(map(max, _grouped(captions, weights, see))) / weights.sum(),
        WORDS,
        "every group",
    ),
    "what-is-lost": (
        lambda captions, weights, see: 1 - _ceiling(max)(captions, weights, see),
        WORDS,
        "the share that is lost",
    ),
    "alone": (_ceiling(lambda g: g[0] if len(g) == 1 else 0.0), WORDS, "nobody else"),
    "everything": (lambda captions, weights, see: 1.0, WORDS),
    "by-hash": (by_hash, "form"),
    "by-hash-of-lists": (
        lambda captions, weights, see: by_hash(
            captions, weights, lambda caption: tuple(h) if isinstance(h := see(caption), list) else h
        ),
        "other-readers",
    ),
    "first-of-each": (_ceiling(lambda g: g[0]), WORDS),
    "own-bag": (
        lambda captions, weights, see: _ceiling(max)(captions, weights, lambda c: Counter(c.split())),
        "sees-everything-and-nothing",
    ),
}

# -- ex-12-overshoot --------------------------------------------------------------------------------------------------


def _shaped(doubt):
    return doubt.reshape(-1, 1, 1, 1)


def _guided(rule):
    return lambda own, others, doubt, s: rule(own, others, _shaped(doubt), s)


def by_mixing(own, others, doubt, s):
    """The two predictions first, then classifier-free guidance."""
    untold = torch.lerp(own, others, _shaped(doubt))
    return (1 - s) * untold + s * own


def by_einsum(own, others, doubt, s):
    return own + torch.einsum("bchw,b->bchw", own - others, (s - 1) * doubt)


def picture_by_picture(own, others, doubt, s):
    return torch.stack([a + (s - 1) * d * (a - b) for a, b, d in zip(own, others, doubt.tolist(), strict=True)])


def guided_in_float32(own, others, doubt, s):
    return by_mixing(own.float(), others.float(), doubt.float(), s)


BEYOND = "beyond-the-mean"
OVERSHOOT = {
    "form-forgot-return": (lambda own, others, doubt, s: None, "form"),
    "form-one-number": (lambda own, others, doubt, s: s, "form"),
    "s": (_guided(lambda a, b, d, s: a + s * d * (a - b)), BEYOND, "not s times"),
    "towards": (_guided(lambda a, b, d, s: a + (s - 1) * d * (b - a)), BEYOND, "away from the others"),
    "no-doubt": (_guided(lambda a, b, d, s: a + (s - 1) * (a - b)), BEYOND, "doubt is missing"),
    "sure": (_guided(lambda a, b, d, s: a + (s - 1) * (1 - d) * (a - b)), BEYOND, "how sure one is"),
    "untold": (_guided(lambda a, b, d, s: (1 - d) * a + d * b), BEYOND, "without the condition"),
    "added": (_guided(lambda a, b, d, s: (s - 1) * d * (a - b)), BEYOND, "begins with m_c"),
    "from-others": (_guided(lambda a, b, d, s: b + (s - 1) * d * (a - b)), BEYOND, "others' mean"),
    "clipped": (_guided(lambda a, b, d, s: (a + (s - 1) * d * (a - b)).clamp(-1, 1)), BEYOND, "nothing is clipped"),
    "from-untold": (
        _guided(lambda a, b, d, s: (1 - d) * a + d * b + (s - 1) * d * (a - b)),
        BEYOND,
        "with s - 1",
    ),
    "along-the-width": (
        lambda own, others, doubt, s: (
            own + (s - 1) * doubt * (own - others) if len(doubt) == own.shape[-1] else by_mixing(own, others, doubt, s)
        ),
        "one-number-for-each-picture",
    ),
    "along-the-channels": (
        lambda own, others, doubt, s: (
            own + (s - 1) * doubt.reshape(1, -1, 1, 1) * (own - others)
            if len(doubt) == own.shape[1]
            else by_mixing(own, others, doubt, s)
        ),
        "one-number-for-each-picture",
    ),
    "mean-doubt": (lambda own, others, doubt, s: own + (s - 1) * doubt.mean() * (own - others), BEYOND),
    "at-least-plain": (
        lambda own, others, doubt, s: by_mixing(own, others, doubt, max(s, 1.0)),
        "plain-and-unconditional",
    ),
}

# -- ex-12-dynamic ----------------------------------------------------------------------------------------------------


def dynamic_in_minidiff(x0, p):
    level = NoiseLevel(0.6, 0.8, 0.0)
    return dynamic_threshold(p)(lambda x, level: Prediction(x, level, x0, "x0"))(torch.zeros_like(x0), level).x0


def dynamic_by_quantile(x0, p):
    x = x0.double()
    tau = x.abs().flatten(1).quantile(p, dim=1).clamp(min=1).reshape(-1, *[1] * (x.ndim - 1))
    return (x / tau).clamp(-1, 1).to(x0.dtype)


def dynamic_in_numpy(x0, p):
    x = x0.double().numpy()
    out = []
    for picture in x:
        tau = max(1.0, np.quantile(np.abs(picture), p))
        out.append(np.clip(picture, -tau, tau) / tau)
    return torch.from_numpy(np.stack(out)).to(x0.dtype)


def dynamic_by_kth_values(x0, p):
    x = x0.float() if x0.dtype == torch.float16 else x0
    a = x.abs().flatten(1)
    place = p * (a.shape[1] - 1)
    low = math.floor(place)
    first = a.kthvalue(low + 1, dim=1).values
    second = a.kthvalue(min(low + 2, a.shape[1]), dim=1).values
    tau = (first + (place - low) * (second - first)).clamp(min=1).reshape(-1, *[1] * (x.ndim - 1))
    return (torch.minimum(torch.maximum(x, -tau), tau) / tau).to(x0.dtype)


def _dynamic(tau, finish=lambda x, tau: (x / tau).clamp(-1, 1)):
    """A wrong answer: another threshold (x, p), or another use of it."""

    def dynamic(x0, p):
        x = x0.float() if x0.dtype == torch.float16 else x0
        found = tau(x, p)
        return finish(x, found.reshape(found.shape + (1,) * (x.ndim - found.ndim))).to(x0.dtype)

    return dynamic


def _quantile(x, p):
    return x.abs().flatten(1).quantile(p, dim=1)


STRONG = "strong-pictures"
DYNAMIC = {
    "form-forgot-return": (lambda x0, p: None, "form"),
    "form-threshold": (lambda x0, p: _quantile(x0, p), "form"),
    "form-always-float": (
        lambda x0, p: dynamic_by_quantile(x0.double(), p).float(),
        "form",
    ),
    "static": (lambda x0, p: x0.clamp(-1, 1), STRONG, "static clipping"),
    "not-divided": (
        _dynamic(lambda x, p: _quantile(x, p).clamp(min=1), lambda x, tau: torch.maximum(torch.minimum(x, tau), -tau)),
        STRONG,
        "did not divide",
    ),
    "not-clipped": (_dynamic(lambda x, p: _quantile(x, p).clamp(min=1), lambda x, tau: x / tau), STRONG, "not clip"),
    "no-least": (_dynamic(_quantile), "mild-pictures", "at least one"),
    "signed": (_dynamic(lambda x, p: x.flatten(1).quantile(p, dim=1).clamp(min=1)), STRONG, "absolute values"),
    "batch": (
        _dynamic(lambda x, p: x.abs().flatten().quantile(p).clamp(min=1).expand(len(x))),
        STRONG,
        "for the batch",
    ),
    "channels": (
        _dynamic(lambda x, p: x.abs().flatten(2).quantile(p, dim=2).clamp(min=1) if x.ndim > 2 else _quantile(x, p)),
        STRONG,
        "one for each",
    ),
    "largest": (_dynamic(lambda x, p: x.abs().flatten(1).amax(1).clamp(min=1)), STRONG, "largest value"),
    "divided-twice": (
        _dynamic(lambda x, p: _quantile(x, p).clamp(min=1), lambda x, tau: (x / tau).clamp(-1, 1) / tau),
        STRONG,
        "twice",
    ),
    "not-interpolated": (
        _dynamic(lambda x, p: x.abs().flatten(1).quantile(p, dim=1, interpolation="lower").clamp(min=1)),
        "interpolated-quantile",
        "interpolate",
    ),
    "places-from-one": (
        _dynamic(
            lambda x, p: x.abs().flatten(1).sort(1).values[:, min(int(p * x[0].numel()), x[0].numel() - 1)].clamp(min=1)
        ),
        "interpolated-quantile",
    ),
    "four-dimensions": (
        lambda x0, p: x0.new_zeros(x0.shape) if x0.ndim != 4 else dynamic_by_quantile(x0, p),
        "any-shape",
    ),
    "half-refused": (
        lambda x0, p: (
            x0 / x0.abs().flatten(1).quantile(p, dim=1).clamp(min=1).reshape(-1, *[1] * (x0.ndim - 1))
        ).clamp(-1, 1),
        "half-precision",
    ),
    "all-or-nothing": (
        lambda x0, p: dynamic_by_quantile(x0, p) if (_quantile(x0.float(), p) > 1).all() else x0.clamp(-1, 1),
        "mild-pictures",
        "static clipping",
    ),
}

# -- ex-12-draw -------------------------------------------------------------------------------------------------------


def drawn_by_ddim(predict, alphas, sigmas, noise, s, threshold):
    """The package's sampler with a denoiser of one's own."""

    def denoiser(x, level):
        told, untold = predict(x, level.alpha, level.sigma)
        x0 = Prediction(x, level, (1 - s) * untold + s * told, "eps").x0
        return Prediction(x, level, threshold(x0), "x0")

    chain = [NoiseLevel(a, b, float(i)) for i, (a, b) in enumerate(zip(alphas.tolist(), sigmas.tolist(), strict=True))]
    return sample(ddim(), denoiser, chain, chain[0].sigma * noise)


def drawn_by_ratio(predict, alphas, sigmas, noise, s, threshold):
    """x_r = k x_t + (alpha_r - alpha_t k) x_0 with k = sigma_r / sigma_t."""
    x = sigmas[0] * noise
    for i in range(len(alphas) - 1):
        told, untold = predict(x, alphas[i], sigmas[i])
        x0 = threshold((x - sigmas[i] * (untold + s * (told - untold))) / alphas[i])
        k = sigmas[i + 1] / sigmas[i]
        x = k * x + (alphas[i + 1] - alphas[i] * k) * x0
    return x


def drawn_by_estimates(predict, alphas, sigmas, noise, s, threshold):
    """The two estimates are guided, in place of the noises."""
    x = noise * sigmas[0]
    for (a, b), (c, d) in pairwise(zip(alphas.tolist(), sigmas.tolist(), strict=True)):
        told, untold = ((x - b * eps) / a for eps in predict(x, a, b))
        clean = threshold(s * told + (1 - s) * untold)
        x = c * clean + d * (x - a * clean) / b
    return x


def drawn_in_float32(predict, alphas, sigmas, noise, s, threshold):
    return drawn_by_ratio(predict, alphas.float(), sigmas.float(), noise.float(), s, threshold)


def _draw(step, start=lambda sigmas: sigmas[0], end=lambda x, threshold: x):
    """A wrong answer: another step (x, told, untold, a, b, c, d, s, threshold) -> x, another start or end."""

    def draw_guided(predict, alphas, sigmas, noise, s, threshold):
        x = start(sigmas) * noise
        for (a, b), (c, d) in pairwise(zip(alphas.tolist(), sigmas.tolist(), strict=True)):
            x = step(x, *predict(x, a, b), a, b, c, d, s, threshold)
        return end(x, threshold)

    return draw_guided


def _step(scale=lambda s: s, clip=lambda x0, threshold: threshold(x0), keep=False):
    def step(x, told, untold, a, b, c, d, s, threshold):
        eps = untold + scale(s) * (told - untold)
        x0 = clip((x - b * eps) / a, threshold)
        return c * x0 + d * (eps if keep else (x - a * x0) / b)

    return step


def _each(x, told, untold, a, b, c, d, s, threshold):
    first, second = (threshold((x - b * eps) / a) for eps in (told, untold))
    x0 = second + s * (first - second)
    return c * x0 + d * (x - a * x0) / b


def _preserving(x, told, untold, a, b, c, d, s, threshold):
    eps = untold + s * (told - untold)
    b = math.sqrt(1 - a * a)
    x0 = threshold((x - b * eps) / a)
    return c * x0 + (math.sqrt(max(0.0, 1 - c * c))) * (x - a * x0) / b


def asks_twice(predict, alphas, sigmas, noise, s, threshold):
    twice = lambda x, alpha, sigma: (predict(x, alpha, sigma)[0], predict(x, alpha, sigma)[1])
    return drawn_by_ratio(twice, alphas, sigmas, noise, s, threshold)


GUIDED = "guided-and-clipped"
DRAW = {
    "form-forgot-return": (lambda predict, alphas, sigmas, noise, s, threshold: None, "form"),
    "form-one-picture": (lambda predict, alphas, sigmas, noise, s, threshold: noise[:1], "form"),
    "keeps-eps": (_draw(_step(keep=True)), GUIDED, "the noise is another one"),
    "each": (_draw(_each), GUIDED, "before they are mixed"),
    "at-the-end": (
        _draw(_step(clip=lambda x0, threshold: x0), end=lambda x, threshold: threshold(x)),
        GUIDED,
        "at the end alone",
    ),
    "no-threshold": (_draw(_step(clip=lambda x0, threshold: x0)), GUIDED, "no threshold"),
    "s-plus-one": (_draw(_step(lambda s: s + 1)), "one-step", "scale s + 1"),
    "not-guided": (_draw(_step(lambda s: 1.0)), "one-step", "not guided"),
    "away": (_draw(_step(lambda s: 1 - s)), "one-step", "away from the condition"),
    "start": (_draw(_step(), start=lambda sigmas: 1.0), "one-step", "first sigma"),
    "clamps": (_draw(_step(clip=lambda x0, threshold: x0.clamp(-1, 1))), "one-step", "you clamped"),
    "preserving": (_draw(_preserving), "other-levels"),
    "asks-twice": (asks_twice, "asked-as-often-as-there-are-steps"),
    "at-least-one": (_draw(_step(lambda s: max(s, 1.0))), "other-thresholds", "not guided"),
    "skips-the-last": (
        lambda predict, alphas, sigmas, noise, s, threshold: (
            drawn_by_ratio(predict, alphas[:-1], sigmas[:-1], noise, s, threshold)
            if len(alphas) > 2
            else drawn_by_ratio(predict, alphas, sigmas, noise, s, threshold)
        ),
        GUIDED,
    ),
}

# -- ex-12-worth ------------------------------------------------------------------------------------------------------


def _information(p):
    entropy = lambda q: -torch.xlogy(q, q).sum()
    return (entropy(p.sum(0)) + entropy(p.sum(1)) - entropy(p)).item()


def _normalised(joint):
    return joint.double() / joint.double().sum()


def _worth(rule):
    return lambda joint, channel: rule(_normalised(joint), channel.double())


_right_worth = _worth(lambda p, c: _information(p) - _information(c.T @ p))


def worth_by_divergence(joint, channel):
    """Triples (x, c, z), one by one."""
    three = _normalised(joint)[:, :, None] * channel.double()[:, None, :]
    at_z, total = three.sum((0, 1)), 0.0
    x_z, c_z = three.sum(1), three.sum(0)
    for x, c, z in (three > 0).nonzero().tolist():
        total += (three[x, c, z] * (three[x, c, z] * at_z[z] / (x_z[x, z] * c_z[c, z])).log()).item()
    return total


def worth_by_entropies(joint, channel):
    """H(c | z) - H(c | x)."""
    p = _normalised(joint)
    z_c = channel.double().T @ p
    given = lambda q: (-torch.xlogy(q, q / q.sum(1, keepdim=True).clamp(min=1e-300))).sum()
    return given(z_c) - given(p)


def worth_in_numpy(joint, channel):
    p = joint.double().numpy() / joint.double().numpy().sum()
    q = channel.double().numpy().T @ p

    def information(t):
        outer = t.sum(1, keepdims=True) * t.sum(0, keepdims=True)
        return float((t[t > 0] * np.log(t[t > 0] / outer[t > 0])).sum())

    return information(p) - information(q)


def worth_in_float32(joint, channel):
    p = joint.float() / joint.float().sum()
    entropy = lambda q: -torch.xlogy(q, q).sum()
    information = lambda q: entropy(q.sum(0)) + entropy(q.sum(1)) - entropy(q)
    return information(p) - information(channel.float().T @ p)


def _log_of_zero(joint, channel):
    p = _normalised(joint)
    information = lambda q: (q * (q.log() - q.sum(0).log() - q.sum(1, keepdim=True).log())).sum().item()
    return information(p) - information(channel.double().T @ p)


def _counts_as_they_are(joint, channel):
    p = joint.double()
    return _information(p) - _information(channel.double().T @ p)


LEFT = "what-is-left-to-the-text"
WORTH = {
    "form-forgot-return": (lambda joint, channel: None, "form"),
    "form-table": (lambda joint, channel: joint, "form"),
    "all": (_worth(lambda p, c: _information(p)), LEFT, "all that the caption says"),
    "small-picture": (_worth(lambda p, c: _information(c.T @ p)), LEFT, "what the small picture says"),
    "of-x-and-z": (_worth(lambda p, c: _information(p.sum(1, keepdim=True) * c)), LEFT, "this is I(x; z)"),
    "less-x-and-z": (
        _worth(lambda p, c: _information(p) - _information(p.sum(1, keepdim=True) * c)),
        LEFT,
        "not I(x; z)",
    ),
    "bits": (_worth(lambda p, c: (_information(p) - _information(c.T @ p)) / math.log(2)), LEFT, "in bits"),
    "negative": (_worth(lambda p, c: _information(c.T @ p) - _information(p)), LEFT, "sign is wrong"),
    "weighted-twice": (
        _worth(lambda p, c: _information(p) - _information((q := (p.sum(1, keepdim=True) * c).T @ p) / q.sum())),
        LEFT,
        "channel.T @ joint",
    ),
    "half": (lambda joint, channel: _right_worth(joint, channel) / 2, LEFT),
    "log-of-zero": (_log_of_zero, "counts-and-zeros"),
    "not-normalised": (_counts_as_they_are, "counts-and-zeros"),
    "at-least-something": (lambda joint, channel: max(_right_worth(joint, channel), 1e-3), "blind-and-sharp"),
}

# -- ex-12-scales -----------------------------------------------------------------------------------------------------


def window(first, count, s):
    return [1.0] * first + [s] * count + [1.0] * (20 - first - count)


SCALES = {
    "form-a-number": (8.0, "form"),
    "form-ten": ([8.0] * 10, "form"),
    "below-one": ([0.0] * 10 + [20.0] * 10, "scales-of-at-least-one"),
    "not-guided": ([1.0] * 20, "strong", "not guided at all"),
    "constant": ([8.0] * 20, "in-range", "a constant scale"),
    "constant-six": ([6.0] * 20, "in-range", "a constant scale"),
    "too-weak": (window(8, 12, 8.0), "strong"),
    "too-late": (window(12, 8, 20.0), "strong"),
    "too-long": (window(0, 12, 8.0), "in-range"),
    "falling": ([20.0 - i for i in range(20)], "in-range"),
}

RIGHT = {
    "ex-12-ceiling": {
        "groups": _ceiling(max),
        "matrix": ceiling_by_matrix,
        "falling": ceiling_by_falling_weight,
        "float32": ceiling_in_float32,
    },
    "ex-12-overshoot": {
        "mixing": by_mixing,
        "einsum": by_einsum,
        "one-by-one": picture_by_picture,
        "float32": guided_in_float32,
    },
    "ex-12-dynamic": {
        "minidiff": dynamic_in_minidiff,
        "quantile": dynamic_by_quantile,
        "numpy": dynamic_in_numpy,
        "kthvalue": dynamic_by_kth_values,
    },
    "ex-12-draw": {
        "ddim": drawn_by_ddim,
        "ratio": drawn_by_ratio,
        "estimates": drawn_by_estimates,
        "float32": drawn_in_float32,
    },
    "ex-12-worth": {
        "divergence": worth_by_divergence,
        "entropies": worth_by_entropies,
        "numpy": worth_in_numpy,
        "float32": worth_in_float32,
    },
    "ex-12-scales": {
        "middle": window(8, 4, 20.0),
        "early": torch.tensor(window(0, 3, 20.0)),
        "later-and-stronger": tuple(window(8, 12, 20.0)),
    },
}

MUTANTS = {
    "ex-12-ceiling": CEILING,
    "ex-12-overshoot": OVERSHOOT,
    "ex-12-dynamic": DYNAMIC,
    "ex-12-draw": DRAW,
    "ex-12-worth": WORTH,
    "ex-12-scales": SCALES,
}
