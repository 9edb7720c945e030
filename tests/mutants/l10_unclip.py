"""Planted answers of lesson 10: MUTANTS, name -> (answer, a case that it must fail, words of the diagnosis); RIGHT."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F

from minidiff.course.checks.l10_unclip import directions

# -- ex-10-left -------------------------------------------------------------------------------------------------------


def _information(p):
    entropy = lambda q: -torch.xlogy(q, q).sum()
    return (entropy(p.sum(0)) + entropy(p.sum(1)) - entropy(p)).item()


def _merge(p, codes, how=torch.sum):
    return torch.stack([how(p[codes == code], 0) for code in codes.unique()])


def _left(total=_information, coded=_information, how=torch.sum, norm=True, unit=1.0):
    def answer(joint, codes):
        p = joint.double() / (joint.double().sum() if norm else 1)
        return unit * (total(p) - coded(_merge(p, codes, how)))

    return answer


def left_by_divergence(joint, codes):
    """Row by row: how much more the picture says than all pictures of its code together."""
    p, total = joint / joint.sum(), 0.0
    for i in range(len(p)):
        alike = p[codes == codes[i]].sum(0)
        for c in range(p.shape[1]):
            if p[i, c] > 0:
                total += (p[i, c] * math.log(p[i, c] / p[i].sum() / (alike[c] / alike.sum()))).item()
    return total


def left_in_float32(joint, codes):
    p = (joint / joint.sum()).float()
    alike = (codes[:, None] == codes).float() @ p
    inner = torch.xlogy(p, p / p.sum(1, keepdim=True)) - torch.xlogy(p, alike / alike.sum(1, keepdim=True))
    return inner.sum()


def left_in_numpy(joint, codes):
    p, codes = joint.double().numpy(), codes.numpy()
    p, total = p / p.sum(), 0.0
    for code in np.unique(codes):
        part = p[codes == code]
        mass = part.sum()
        outer = part.sum(1, keepdims=True) * part.sum(0, keepdims=True) / mass
        seen = part > 0
        total += (part[seen] * np.log(part[seen] / outer[seen])).sum()
    return float(total)


def _log_of_zero(joint, codes):
    p = joint / joint.sum()
    information = lambda q: (q * (q.log() - q.sum(0).log() - q.sum(1, keepdim=True).log())).sum().item()
    return information(p) - information(_merge(p, codes))


def _codes_as_places(joint, codes):
    p = joint.double() / joint.double().sum()
    coded = torch.zeros(len(p), p.shape[1], dtype=torch.float64).index_add(0, codes % len(p), p)
    return _information(p) - _information(coded[coded.sum(1) > 0])


def _neighbours_alone(joint, codes):
    """Merges only rows of equal code that stand side by side."""
    return _left()(joint, torch.unique_consecutive(codes, return_inverse=True)[1])


def _codes_entropy(joint, codes):
    entropy = lambda q: -torch.xlogy(q, q).sum().item()
    p = joint.double() / joint.double().sum()
    return entropy(p.sum(1)) - entropy(_merge(p, codes).sum(1))


LEFT = "what-is-left"
NATS = {
    "form-forgot-return": (lambda joint, codes: None, "form"),
    "form-table": (lambda joint, codes: joint, "form"),
    "form-arguments": (lambda joint: 0.0, "form"),
    "what-the-embedding-says": (_left(total=lambda p: 0.0, unit=-1), LEFT, "what the embedding says"),
    "all-that-is-said": (_left(coded=lambda p: 0.0), LEFT, "all that the caption says"),
    "rows-averaged": (_left(how=torch.mean, coded=lambda q: _information(q / q.sum())), LEFT, "probabilities add"),
    "bits": (_left(unit=1 / math.log(2)), LEFT, "in bits"),
    "wrong-sign": (_left(unit=-1), LEFT, "the sign is wrong"),
    "entropy-of-the-picture": (_codes_entropy, LEFT, "entropy of x given z"),
    "half": (_left(unit=0.5), LEFT),
    "not-normalised": (_left(norm=False), "counts-and-pairs-that-never-occur", "not normalised"),
    "log-of-zero": (_log_of_zero, "counts-and-pairs-that-never-occur"),
    "at-least-something": (lambda joint, codes: max(_left()(joint, codes), 1e-4), "everything-and-nothing-kept"),
    "codes-as-places": (_codes_as_places, "any-codes", "all that the caption says"),
    "neighbours-alone": (_neighbours_alone, LEFT),
}

# -- ex-10-best -------------------------------------------------------------------------------------------------------


def _sums(p, merit):
    return (p * (merit <= merit[:, None])).sum(1), (p * (merit < merit[:, None])).sum(1)


def _kept(rule):
    def answer(p, merit, n):
        return rule(p, merit, n, *_sums(p, merit))

    return answer


_right = _kept(lambda p, m, n, upto, below: p * (upto**n - below**n) / (upto - below).clamp(min=1e-300))


def kept_by_runs(p, merit, n):
    law = torch.zeros(len(p), dtype=torch.float64)
    for run in itertools.product(range(len(p)), repeat=n):
        top = max(merit[i].item() for i in run)
        best = [i for i in run if merit[i] == top]
        for i in best:
            law[i] += math.prod(p[j].item() for j in run) / len(best)
    return law


def kept_by_sorting(p, merit, n):
    """Groups of equal merit from the worst to the best."""
    law, below = torch.zeros_like(p), 0.0
    for value in sorted(set(merit.tolist())):
        group = merit == value
        mass = p[group].sum().item()
        if mass > 0:
            law[group] = p[group] / mass * ((below + mass) ** n - below**n)
        below += mass
    return law


def kept_in_numpy(p, merit, n):
    p, merit = p.numpy(), merit.numpy()
    values, place = np.unique(merit, return_inverse=True)
    mass = np.bincount(place, p, len(values))
    upto = mass.cumsum()
    chance = upto**n - (upto - mass) ** n
    return np.where(mass[place] > 0, p * (chance / np.maximum(mass, 1e-300))[place], 0.0)


def kept_in_float32(p, merit, n):
    upto, below = _sums(p.double(), merit)
    chance = sum(upto**k * below ** (n - 1 - k) for k in range(n))  # (u^n - b^n) / (u - b)
    return (p * chance).float()


def _scaled(q):
    return q / q.sum()


def _ties_to_the_last(p, merit, n):
    order = merit + 1e-9 * torch.arange(len(p), dtype=torch.float64)
    return _right(p, order, n)


PAIRS, TIES, MORE = "against-all-pairs", "ties", "more-draws-and-one"
KEPT = {
    "form-number": (lambda p, merit, n: 0.5, "form"),
    "form-forgot-return": (lambda p, merit, n: None, "form"),
    "form-index": (lambda p, merit, n: merit.argmax(), "form"),
    "density": (_kept(lambda p, m, n, u, b: n * u ** (n - 1) * p), PAIRS, "items have mass"),
    "density-below": (_kept(lambda p, m, n, u, b: n * b ** (n - 1) * p), PAIRS, "lies strictly below"),
    "density-scaled": (_kept(lambda p, m, n, u, b: _scaled(u ** (n - 1) * p)), PAIRS, "normalised afterwards"),
    "the-worst": (lambda p, merit, n: _right(p, -merit, n), PAIRS, "keeps the worst"),
    "one-draw": (lambda p, merit, n: p, PAIRS, "a single draw"),
    "tilt": (lambda p, merit, n: _scaled(p * merit.exp()), PAIRS, "only its rank counts"),
    "ranks-unweighted": (lambda p, merit, n: _scaled(p * (merit <= merit[:, None]).sum(1) ** (n - 1)), PAIRS),
    "the-best-for-sure": (lambda p, merit, n: F.one_hot(merit.argmax(), len(p)).double(), PAIRS),
    "together": (_kept(lambda p, m, n, u, b: u**n - b**n), TIES, "all items that have it together"),
    "shared-equally": (
        _kept(lambda p, m, n, u, b: (u**n - b**n) / (m == m[:, None]).sum(1)),
        TIES,
        "share by their probability",
    ),
    "ties-to-the-last": (_ties_to_the_last, TIES),
    "always-two": (lambda p, merit, n: _right(p, merit, 2), MORE, "whatever n"),
    "three-at-most": (lambda p, merit, n: _right(p, merit, min(n, 3)), MORE),
    "nan-for-nothing": (_kept(lambda p, m, n, u, b: p * (u**n - b**n) / (u - b)), "one-sure-item"),
}

# -- ex-10-scale ------------------------------------------------------------------------------------------------------


def _level(rule):
    def answer(alpha, sigma, length):
        width = (alpha**2 * length**2 + sigma**2).sqrt()
        return rule(alpha, sigma, length, width)

    return answer


_scaled_right = _level(lambda a, s, k, w: (a * k / w, s / w))


def scale_by_angle(alpha, sigma, length):
    angle = torch.atan2(sigma, alpha * length)
    return torch.cos(angle), torch.sin(angle)


def scale_by_variance(alpha, sigma, length):
    clean = 1 / (1 + (sigma / (alpha * length)) ** 2)
    return clean.sqrt(), (1 - clean).sqrt()


def scale_in_a_loop(alpha, sigma, length):
    pairs = [(a * length, s) for a, s in zip(alpha.flatten().tolist(), sigma.flatten().tolist(), strict=True)]
    first = torch.tensor([a / math.hypot(a, s) for a, s in pairs], dtype=torch.float64).reshape(alpha.shape)
    return first, torch.tensor([s / math.hypot(a, s) for a, s in pairs], dtype=torch.float64).reshape(alpha.shape)


def scale_in_float32(alpha, sigma, length):
    alpha, sigma = alpha.float(), sigma.float()
    return _scaled_right(alpha, sigma, length)


def _by_log_snr(alpha, sigma, length):
    """Right inside; the ends are infinite."""
    shifted = 2 * (alpha.log() - sigma.log()) + 2 * math.log(length)
    return torch.exp(shifted / 2) / (1 + shifted.exp()).sqrt(), 1 / (1 + shifted.exp()).sqrt()


RATIO = "same-ratio"


def _changed(change):
    return lambda alpha, sigma, length: _scaled_right(*change(alpha, sigma, length))


def _first_row(alpha, sigma, length):
    """Right for a row of levels; of several all become as the first."""
    pair = _scaled_right(alpha, sigma, length)
    return pair if alpha.ndim == 1 else tuple(v[:1].expand_as(v) for v in pair)


SCALE = {
    "form-one": (lambda alpha, sigma, length: alpha, "form"),
    "form-three": (lambda alpha, sigma, length: (alpha, sigma, length), "form"),
    "form-forgot-return": (lambda alpha, sigma, length: None, "form"),
    "noise-scaled": (_changed(lambda a, s, k: (a, s, 1 / k)), RATIO, "not the noise"),
    "root": (_changed(lambda a, s, k: (a, s, k**0.5)), RATIO, "square of the length"),
    "squared": (_changed(lambda a, s, k: (a, s, k**2)), RATIO, "once too often"),
    "not-preserved": (_level(lambda a, s, k, w: (a * k, s)), RATIO, "must preserve variance"),
    "noise-divided": (_level(lambda a, s, k, w: (a, s / k)), RATIO, "divided by the length"),
    "variance-not-root": (_level(lambda a, s, k, w: (a * k / w**2, s / w**2)), RATIO, "divide by its root"),
    "squares": (_level(lambda a, s, k, w: ((a * k / w) ** 2, (s / w) ** 2)), RATIO, "these are the squares"),
    "unchanged": (_level(lambda a, s, k, w: (a, s)), RATIO, "less noise"),
    "swapped": (_level(lambda a, s, k, w: (s / w, a * k / w)), RATIO, "first alpha"),
    "length-plus-one": (_changed(lambda a, s, k: (a, s, 2.0 if k == 1 else k)), "unit-length-changes-nothing"),
    "ratio-of-nothing": (_by_log_snr, "both-ends"),
    "floor": (_changed(lambda a, s, k: (a, s.clamp(min=1e-3), k)), "both-ends"),
    "one-row-alone": (_first_row, "other-shapes"),
}

# -- ex-10-prior ------------------------------------------------------------------------------------------------------


def _drawn(step=None, choose=None, start=None, before=False):
    """A prior's sampler with one thing changed."""

    def answer(predict, alphas, sigmas, noise, text):
        z = (sigmas[0] if start is None else start) * noise.flatten(0, 1)
        for i in range(len(alphas) - 1):
            clean = predict(z, alphas[i], sigmas[i])
            eps = (z - alphas[i] * clean) / sigmas[i]
            z = (
                alphas[i + 1] * clean + sigmas[i + 1] * eps
                if step is None
                else step(clean, eps, z, i, alphas, sigmas, noise)
            )
        z = z.reshape(noise.shape)
        if choose is not None:
            return choose(z, text, noise)
        best = F.cosine_similarity(noise if before else z, text[None], dim=2).argmax(0)
        return z[best, torch.arange(len(text))]

    return answer


def prior_one_by_one(predict, alphas, sigmas, noise, text):
    """Each candidate in a loop, the best kept by where."""
    best = score = None
    for start in noise:
        z = sigmas[0] * start
        for i in range(len(alphas) - 1):
            clean = predict(z, alphas[i], sigmas[i])
            z = z * (sigmas[i + 1] / sigmas[i]) + (alphas[i + 1] - alphas[i] * sigmas[i + 1] / sigmas[i]) * clean
        cosine = (z * text).sum(1) / (z.norm(dim=1) * text.norm(dim=1))
        if best is None:
            best, score = z, cosine
        else:
            best, score = torch.where((cosine > score)[:, None], z, best), torch.maximum(cosine, score)
    return best


def prior_in_one_batch(predict, alphas, sigmas, noise, text):
    k, b, e = noise.shape
    z = (noise * sigmas[0]).reshape(k * b, e)
    for i in range(len(alphas) - 1):
        clean = predict(z=z, alpha=alphas[i].item(), sigma=sigmas[i].item())
        z = z * (sigmas[i + 1] / sigmas[i]) + (alphas[i + 1] - alphas[i] * sigmas[i + 1] / sigmas[i]) * clean
    z = z.reshape(k, b, e)
    cosine = torch.einsum("kbe,be->kb", F.normalize(z, dim=2), F.normalize(text, dim=1))
    return torch.stack([z[cosine[:, j].argmax(), j] for j in range(b)])


def prior_by_gather(predict, alphas, sigmas, noise, text):
    z = _drawn(choose=lambda z, text, noise: z)(predict, alphas, sigmas, noise, text)
    best = (F.normalize(z, dim=2) * text).sum(2).argmax(0)
    return z.gather(0, best[None, :, None].expand(1, -1, z.shape[2]))[0]


def _cosine(z, text):
    return F.cosine_similarity(z, text[None], dim=2)


def _pick(z, merit):
    return z[merit.argmax(0), torch.arange(z.shape[1])]


def _asked_twice(predict, alphas, sigmas, noise, text):
    predict(noise.flatten(0, 1), alphas[0], sigmas[0])
    return prior_in_one_batch(predict, alphas, sigmas, noise, text)


def _half_of_two(z, text, noise):
    """Of the first two candidates."""
    return _pick(z[:2], _cosine(z[:2], text))


TWO, FIVE, CHAINS = "the-better-of-two", "more-candidates-other-lengths", "other-chains"
PRIOR = {
    "form-forgot-return": (lambda predict, alphas, sigmas, noise, text: None, "form"),
    "form-all-candidates": (_drawn(choose=lambda z, text, noise: z), "form"),
    "form-numbers": (_drawn(choose=lambda z, text, noise: _cosine(z, text).argmax(0)), "form"),
    "not-the-noise": (
        _drawn(step=lambda clean, eps, z, i, a, s, noise: a[i + 1] * clean),
        "one-candidate",
        "without its noise",
    ),
    "new-level-old-noise": (
        _drawn(step=lambda clean, eps, z, i, a, s, noise: a[i + 1] * clean + s[i] * eps * (i + 2 < len(a))),
        "one-candidate",
    ),
    "fixed-noise": (
        _drawn(step=lambda clean, eps, z, i, a, s, noise: a[i + 1] * clean + s[i + 1] * noise.flatten(0, 1)),
        "one-candidate",
    ),
    "no-alpha": (
        _drawn(step=lambda clean, eps, z, i, a, s, noise: clean + s[i + 1] * eps),
        "one-candidate",
    ),
    "product": (_drawn(choose=lambda z, text, noise: _pick(z, (z * text).sum(2))), TWO, "the larger product"),
    "smaller": (_drawn(choose=lambda z, text, noise: _pick(z, -_cosine(z, text))), TWO, "smaller cosine"),
    "one-for-all": (
        _drawn(choose=lambda z, text, noise: z[int(_cosine(z, text).mean(1).argmax())]),
        TWO,
        "one candidate for the batch",
    ),
    "first": (_drawn(choose=lambda z, text, noise: z[0]), TWO, "the first candidate"),
    "last": (_drawn(choose=lambda z, text, noise: z[-1]), TWO, "the last candidate"),
    "mean": (_drawn(choose=lambda z, text, noise: z.mean(0)), TWO, "not averaged"),
    "before": (_drawn(before=True), TWO, "before their chains ran"),
    "unit-length": (
        _drawn(choose=lambda z, text, noise: F.normalize(_pick(z, _cosine(z, text)), dim=1)),
        "one-candidate",
        "keeps its length",
    ),
    "of-two-only": (_drawn(choose=_half_of_two), FIVE),
    "starts-at-one": (_drawn(start=1.0), CHAINS),
    "each-by-itself": (prior_one_by_one, "asked-as-often-as-there-are-steps"),
    "asked-twice": (_asked_twice, "asked-as-often-as-there-are-steps"),
}

# -- ex-10-codes ------------------------------------------------------------------------------------------------------


def _principal(mean=lambda z: z.mean(0), order=lambda v: v.flip(1), share=None, columns=lambda v: v):
    def answer(z, k):
        centre = mean(z)
        values, vectors = torch.linalg.eigh((z - centre).T @ (z - centre))
        lost = values.flip(0)[k:].sum() / values.sum() if share is None else share(values.flip(0), k, len(z))
        return z.mean(0), columns(order(vectors)[:, :k]), float(lost)

    return answer


def principal_by_svd(z, k):
    mean = z.mean(0)
    _, singular, rows = torch.linalg.svd(z - mean, full_matrices=False)
    return mean, rows[:k].T, (1 - singular[:k].square().sum() / singular.square().sum()).item()


def principal_in_numpy(z, k):
    z = z.numpy()
    mean = z.mean(0)
    covariance = np.atleast_2d(np.cov(z.T))
    values, vectors = np.linalg.eigh(covariance)
    order = np.argsort(values)[::-1]
    return mean, vectors[:, order[:k]].copy(), values[order[k:]].sum() / values.sum()


def principal_by_what_is_missing(z, k):
    mean = z.mean(0)
    centred = z - mean
    basis = torch.linalg.eigh(centred.T.cov().reshape(z.shape[1], -1))[1].flip(1)[:, :k]
    missing = (centred - centred @ basis @ basis.T).square().sum() / centred.square().sum()
    return mean, basis, missing


def principal_in_float32(z, k):
    mean, basis, lost = principal_by_svd(z.float(), k)
    return mean, basis, torch.tensor(lost)


DIRECTIONS, SHARE = "the-directions", "the-share-that-is-lost"
CODES = {
    "form-two": (lambda z, k: (z.mean(0), 0.0), "form"),
    "form-rows": (lambda z, k: (z.mean(0), principal_by_svd(z, k)[1].T, 0.0), "form"),
    "form-forgot-return": (lambda z, k: None, "form"),
    "mean-of-all": (lambda z, k: (z.mean() + 0 * z[0], *principal_by_svd(z, k)[1:]), "mean-and-orthonormal"),
    "scaled": (_principal(columns=lambda v: 2 * v), "mean-and-orthonormal"),
    "rising": (_principal(order=lambda v: v), DIRECTIONS, "rising order"),
    "not-centred": (_principal(mean=lambda z: torch.zeros_like(z[0])), DIRECTIONS, "mean was not taken away"),
    "turned": (
        lambda z, k: (z.mean(0), principal_by_svd(z, k)[1].flip(1), principal_by_svd(z, k)[2]),
        DIRECTIONS,
    ),
    "numbers-not-directions": (
        lambda z, k: (
            z.mean(0),
            torch.eye(z.shape[1], dtype=z.dtype)[:, z.var(0).topk(k).indices],
            principal_by_svd(z, k)[2],
        ),
        DIRECTIONS,
    ),
    "kept": (_principal(share=lambda v, k, n: v[:k].sum() / v.sum()), SHARE, "share that is kept"),
    "deviations": (
        _principal(share=lambda v, k, n: v[k:].clamp(min=0).sqrt().sum() / v.clamp(min=0).sqrt().sum()),
        SHARE,
        "shares of deviations",
    ),
    "not-a-share": (_principal(share=lambda v, k, n: v[k:].sum() / n), SHARE, "not its share"),
    "share-not-centred": (
        lambda z, k: (
            *principal_by_svd(z, k)[:2],
            (torch.linalg.svdvals(z)[k:].square().sum() / torch.linalg.svdvals(z).square().sum()).item(),
        ),
        SHARE,
        "mean was not taken away",
    ),
    "one-too-many": (_principal(share=lambda v, k, n: v[k + 1 :].sum() / v.sum()), SHARE),
    "at-most-five": (
        lambda z, k: principal_by_svd(z, k) if z.shape[1] <= 5 else (z.mean(0), principal_by_svd(z, k)[1], 0.5),
        "other-sizes",
    ),
}

# -- ex-10-directions -------------------------------------------------------------------------------------------------

ENOUGH = directions()
KEPT99 = "keeps-99-percent"
NUMBER = {
    "form-text": (str(ENOUGH), "form"),
    "form-fraction": (ENOUGH + 0.5, "form"),
    "form-function": (directions, "form"),
    "none": (0, "a-number-of-directions"),
    "too-many": (65, "a-number-of-directions"),
    "95": (directions(0.95), KEPT99, "this keeps 95 %"),
    "90": (directions(0.9), KEPT99, "this keeps 90 %"),
    "deviations": (directions(power=0.5), KEPT99, "variances are their squares"),
    "not-centred": (directions(centred=False), KEPT99, "mean was not taken away"),
    "lost": (64 - ENOUGH, KEPT99, "how many are lost"),
    "all": (64, KEPT99),
    "99.9": (directions(0.999), KEPT99),
}

MUTANTS = {
    "ex-10-left": NATS,
    "ex-10-best": KEPT,
    "ex-10-scale": SCALE,
    "ex-10-prior": PRIOR,
    "ex-10-codes": CODES,
    "ex-10-directions": NUMBER,
}

RIGHT = {
    "ex-10-left": {
        "entropies": _left(),
        "divergence": left_by_divergence,
        "float32": left_in_float32,
        "numpy": left_in_numpy,
    },
    "ex-10-best": {
        "sums": _right,
        "runs": kept_by_runs,
        "sorted": kept_by_sorting,
        "numpy": kept_in_numpy,
        "float32": kept_in_float32,
    },
    "ex-10-scale": {
        "width": _scaled_right,
        "angle": scale_by_angle,
        "variance": scale_by_variance,
        "loop": scale_in_a_loop,
        "float32": scale_in_float32,
    },
    "ex-10-prior": {"batch": prior_in_one_batch, "plain": _drawn(), "gather": prior_by_gather},
    "ex-10-codes": {
        "svd": principal_by_svd,
        "numpy": principal_in_numpy,
        "missing": principal_by_what_is_missing,
        "float32": principal_in_float32,
    },
    "ex-10-directions": {
        "integer": ENOUGH,
        "float": float(ENOUGH),
        "tensor": torch.tensor([ENOUGH]),
        "numpy": np.int64(ENOUGH + 1),
    },
}
