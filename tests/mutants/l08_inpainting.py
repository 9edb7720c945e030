"""Planted answers of lesson 08: MUTANTS, name -> (answer, a case that it must fail, words of the diagnosis); RIGHT."""

from __future__ import annotations

import math

import numpy as np
import torch

from minidiff.process import diffuse, paste, renoise

# -- ex-08-conditional ------------------------------------------------------------------------------------------------


def _blocks(covariance, known):
    return covariance[~known][:, ~known], covariance[~known][:, known], covariance[known][:, known]


def _right_mean(u, k, value, gain):
    return u + gain @ (value - k)


def _right_covariance(own, gain, across):
    return own - gain @ across


def _conditional(mean_of=_right_mean, covariance_of=_right_covariance, invert=torch.linalg.inv):
    """conditional() with another mean, of (mean_u, mean_k, value, gain), or covariance, of (C_uu, gain, C_ku)."""

    def answer(mean, covariance, known, value):
        own, across, inner = _blocks(covariance, known)
        gain = across @ invert(inner)
        return mean_of(mean[~known], mean[known], value, gain), covariance_of(own, gain, across.T)

    return answer


def conditional_by_precision(mean, covariance, known, value):
    precision = torch.linalg.inv(covariance)
    inner = torch.linalg.inv(precision[~known][:, ~known])
    return mean[~known] - inner @ precision[~known][:, known] @ (value - mean[known]), inner


def conditional_one_by_one(mean, covariance, known, value):
    """Condition on one known entry after the other."""
    for i, v in zip(known.nonzero()[:, 0], value, strict=True):
        gain = covariance[:, i] / covariance[i, i]
        mean = mean + gain * (v - mean[i])
        covariance = covariance - torch.outer(gain, covariance[i])
    return mean[~known], covariance[~known][:, ~known]


def conditional_in_float32(mean, covariance, known, value):
    mean, covariance, value = mean.float(), covariance.float(), value.float()
    own, across, inner = _blocks(covariance, known)
    root = torch.linalg.cholesky(inner)
    half = torch.linalg.solve_triangular(root, across.T, upper=False)
    gap = torch.linalg.solve_triangular(root, (value - mean[known])[:, None], upper=False)
    return mean[~known] + (half.T @ gap)[:, 0], own - half.T @ half


def conditional_in_numpy(mean, covariance, known, value):
    u, k = np.flatnonzero(~known.numpy()), np.flatnonzero(known.numpy())
    C, m = covariance.numpy(), mean.numpy()
    gain = np.linalg.solve(C[np.ix_(k, k)], C[np.ix_(k, u)]).T
    return m[u] + gain @ (value.numpy() - m[k]), C[np.ix_(u, u)] - gain @ C[np.ix_(k, u)]


def _at_most_two(inner):
    """The inverse of a matrix of two rows, as one finds it in a formulary; of a larger one, of its diagonal."""
    return torch.linalg.inv(inner) if len(inner) == 2 else torch.diag(1 / inner.diag())


def _unknown_in_reverse(mean, covariance, known, value):
    mean, covariance = conditional_by_precision(mean, covariance, known, value)
    return mean.flip(0), covariance.flip(0, 1)


def _inverse_forgotten(mean, covariance, known, value):
    own, across, _ = _blocks(covariance, known)
    return mean[~known] + across @ (value - mean[known]), own - across @ across.T


def _inverse_forgotten_later(mean, covariance, known, value):
    law = mean, covariance, known, value
    return conditional_by_precision(*law)[0], _inverse_forgotten(*law)[1]


CONDITIONAL = {
    "form-swapped": (
        lambda mean, covariance, known, value: conditional_by_precision(mean, covariance, known, value)[::-1],
        "form",
    ),
    "form-mean-alone": (
        lambda mean, covariance, known, value: conditional_by_precision(mean, covariance, known, value)[0],
        "form",
    ),
    "form-all-entries": (lambda mean, covariance, known, value: (mean, covariance), "form"),
    "form-of-the-known": (
        lambda mean, covariance, known, value: conditional_by_precision(mean, covariance, ~known, mean[~known]),
        "form",
    ),
    "form-forgot-return": (lambda mean, covariance, known, value: None, "form"),
    "unconditional": (_conditional(lambda u, k, v, g: u, lambda own, g, a: own), "two-pixels", "mean of the unknown"),
    "known-value": (_conditional(lambda u, k, v, g: u + v.mean()), "two-pixels", "known value itself"),
    "sign": (_conditional(lambda u, k, v, g: u - g @ (v - k)), "two-pixels", "sign is wrong"),
    "unconditional-covariance": (
        _conditional(covariance_of=lambda own, g, a: own),
        "two-pixels",
        "unknown entries alone",
    ),
    "plus": (_conditional(covariance_of=lambda own, g, a: own + g @ a), "two-pixels", "subtracted"),
    "deviation": (_conditional(covariance_of=lambda own, g, a: (own - g @ a).sqrt()), "two-pixels", "deviation"),
    "explained": (_conditional(covariance_of=lambda own, g, a: g @ a), "two-pixels", "stays unknown"),
    "precision": (_conditional(covariance_of=lambda own, g, a: (own - g @ a).inverse()), "two-pixels"),
    "mean-not-subtracted": (_conditional(lambda u, k, v, g: u + g @ v), "mean-in-five-dimensions", "with their mean"),
    "mean-of-the-unknown-forgotten": (
        _conditional(lambda u, k, v, g: g @ (v - k)),
        "mean-in-five-dimensions",
        "mu_u is missing",
    ),
    "inverse-forgotten": (_inverse_forgotten, "mean-in-five-dimensions", "C_kk^-1 is missing"),
    "inverse-of-the-diagonal": (
        _conditional(invert=lambda inner: torch.diag(1 / inner.diag())),
        "mean-in-five-dimensions",
        "not of its diagonal",
    ),
    "unknown-in-reverse": (_unknown_in_reverse, "mean-in-five-dimensions"),
    "variances-alone": (
        _conditional(covariance_of=lambda own, g, a: torch.diag((own - g @ a).diag())),
        "covariance-in-five-dimensions",
        "variances alone",
    ),
    "inverse-forgotten-in-the-covariance": (
        _inverse_forgotten_later,
        "covariance-in-five-dimensions",
        "C_kk^-1 is missing",
    ),
    "two-by-two": (_conditional(invert=_at_most_two), "other-entries"),
    "raised": (_conditional(invert=lambda inner: torch.linalg.inv(inner + 1e-2 * torch.eye(len(inner)))), "two-pixels"),
}

# -- ex-08-paste ------------------------------------------------------------------------------------------------------


def paste_in_minidiff(x, level, image, mask, eps):
    return paste(x, level, image, mask.bool(), eps)


def paste_by_indices(x, level, image, mask, eps):
    out, keep = x.clone(), mask.bool().expand_as(x)
    out[keep] = diffuse(image, level, eps)[keep]
    return out


def paste_in_float32(x, level, image, mask, eps):
    alpha, sigma = torch.tensor(level.alpha), torch.tensor(level.sigma)
    return torch.where(mask > 0.5, (alpha * image.float() + sigma * eps.float()).to(x), x)


def paste_in_a_loop(x, level, image, mask, eps):
    mask = torch.broadcast_to(mask, x.shape)
    rows = zip(
        x.flatten().tolist(), image.flatten().tolist(), mask.flatten().tolist(), eps.flatten().tolist(), strict=True
    )
    out = [level.alpha * i + level.sigma * e if m else v for v, i, m, e in rows]
    return torch.tensor(out, dtype=x.dtype).view_as(x)


def _paste(known=lambda mask: mask == 1, signal=lambda level, image, eps: level.alpha * image + level.sigma * eps):
    return lambda x, level, image, mask, eps: torch.where(known(mask), signal(level, image, eps), x)


def _by_products(x, level, image, mask, eps):
    return mask * (level.alpha * image + level.sigma * eps) + (1 - mask) * x


def _nan_alone(x, level, image, mask, eps):
    return _by_products(x, level, image.nan_to_num(0.0, math.inf, -math.inf), mask, eps)


def _rounded(x, level, image, mask, eps):
    return paste_in_minidiff(x, level, image, mask, eps).float()


PASTE = {
    "mask-inverted": (_paste(lambda mask: mask == 0), "one-is-known", "where it is 0"),
    "everywhere": (_paste(lambda mask: mask >= 0), "one-is-known", "everywhere"),
    "sample-at-the-level-too": (
        lambda x, level, image, mask, eps: diffuse(torch.where(mask == 1, image, x), level, eps),
        "one-is-known",
    ),
    "rounded": (_rounded, "one-is-known"),
    "nothing": (lambda x, level, image, mask, eps: x, "at-the-level", "nothing was pasted"),
    "clean": (_paste(signal=lambda level, image, eps: image), "at-the-level", "clean ones"),
    "shrunk-but-clean": (_paste(signal=lambda level, image, eps: level.alpha * image), "at-the-level", "have no noise"),
    "no-alpha": (
        _paste(signal=lambda level, image, eps: image + level.sigma * eps),
        "at-the-level",
        "alpha is missing",
    ),
    "no-sigma": (
        _paste(signal=lambda level, image, eps: level.alpha * image + eps),
        "at-the-level",
        "sigma is missing",
    ),
    "variance": (
        _paste(signal=lambda level, image, eps: level.alpha * image + level.sigma**2 * eps),
        "at-the-level",
        "you used the variance",
    ),
    "swapped": (
        _paste(signal=lambda level, image, eps: level.sigma * image + level.alpha * eps),
        "at-the-level",
        "are swapped",
    ),
    "variance-preserving": (
        _paste(signal=lambda level, image, eps: level.alpha * image + math.sqrt(1 - level.alpha**2) * eps),
        "at-the-level",
        "does not hold here",
    ),
    "own-noise": (
        _paste(signal=lambda level, image, eps: level.alpha * image + level.sigma * torch.randn_like(eps)),
        "at-the-level",
    ),
    "by-products": (_by_products, "nothing-leaks", "0 times NaN is NaN"),
    "nan-alone": (_nan_alone, "nothing-leaks", "so is 0 times infinity"),
    "first-mask": (
        lambda x, level, image, mask, eps: paste_in_minidiff(
            x, level, image, mask[:1] if mask.ndim == 4 else mask, eps
        ),
        "mask-broadcasts",
        "first one's",
    ),
    "one-mask-for-all-channels": (
        lambda x, level, image, mask, eps: paste_in_minidiff(x, level, image, mask.flatten()[-16:].view(4, 4), eps),
        "mask-broadcasts",
    ),
}

# -- ex-08-leap -------------------------------------------------------------------------------------------------------


def _ratio(r, t):
    return t.alpha / r.alpha


def _root(r, t):
    return math.sqrt(t.sigma**2 - (t.alpha / r.alpha) ** 2 * r.sigma**2)


def _leap(scale=_ratio, noise=_root):
    return lambda x, r, t, eps: scale(r, t) * x + noise(r, t) * eps


def leap_in_minidiff(x, r, t, eps):
    return renoise(x_s=x, s=r, t=t, eps=eps)


def leap_by_snr(x, r, t, eps):
    """sigma_t sqrt(1 - snr_t / snr_r) eps, where r is not clean data."""
    kept = (t.alpha * r.sigma / (r.alpha * t.sigma)) ** 2
    return torch.lerp(torch.zeros_like(x), x, t.alpha / r.alpha) + t.sigma * (1 - kept) ** 0.5 * eps


def leap_in_float32(x, r, t, eps):
    a_r, s_r, a_t, s_t = (torch.tensor(v, dtype=torch.float32) for v in (r.alpha, r.sigma, t.alpha, t.sigma))
    scale = a_t / a_r
    return scale * x.float() + (s_t**2 - scale**2 * s_r**2).sqrt() * eps.float()


def leap_in_a_loop(x, r, t, eps):
    return torch.stack([_leap()(one, r, t, e) for one, e in zip(x, eps, strict=True)])


LEAP = {
    "as-if-clean": (_leap(lambda r, t: t.alpha, lambda r, t: t.sigma), "the-signal-shrinks", "carries alpha_r already"),
    "upside-down": (_leap(lambda r, t: r.alpha / t.alpha), "the-signal-shrinks", "upside down"),
    "not-shrunk": (_leap(lambda r, t: 1.0), "the-signal-shrinks", "has to shrink"),
    "squared": (_leap(lambda r, t: _ratio(r, t) ** 2), "the-signal-shrinks", "factor of a variance"),
    "standard-noise": (_leap(noise=lambda r, t: 1.0), "the-noise-adds-up", "has to be scaled"),
    "difference-of-deviations": (
        _leap(noise=lambda r, t: t.sigma - _ratio(r, t) * r.sigma),
        "the-noise-adds-up",
        "adds too little noise",
    ),
    "plain-difference": (_leap(noise=lambda r, t: t.sigma - r.sigma), "the-noise-adds-up", "those of x shrink"),
    "too-much": (_leap(noise=lambda r, t: t.sigma), "the-noise-adds-up", "too much"),
    "variance": (_leap(noise=lambda r, t: _root(r, t) ** 2), "the-noise-adds-up", "used the variance"),
    "not-scaled": (
        _leap(noise=lambda r, t: math.sqrt(t.sigma**2 - r.sigma**2)),
        "the-noise-adds-up",
        "alpha_t / alpha_r is missing",
    ),
    "scale-not-squared": (
        _leap(noise=lambda r, t: math.sqrt(t.sigma**2 - _ratio(r, t) * r.sigma**2)),
        "the-noise-adds-up",
        "square of alpha_t / alpha_r",
    ),
    "backwards": (_leap(noise=lambda r, t: _root(r, t) * r.sigma / t.sigma), "the-noise-adds-up", "from t to r"),
    "own-noise": (lambda x, r, t, eps: _leap()(x, r, t, eps.std() * torch.randn_like(eps)), "the-noise-adds-up"),
    "variance-preserving": (
        _leap(noise=lambda r, t: math.sqrt(1 - _ratio(r, t) ** 2)),
        "any-schedule",
        "does not hold here",
    ),
    "bounded": (lambda x, r, t, eps: leap_in_minidiff(x, r, t, eps) if t.sigma < 1 else x, "any-schedule"),
    "at-least-some-noise": (_leap(noise=lambda r, t: max(_root(r, t), 0.4)), "two-leaps-are-one"),
}

# -- ex-08-repaint ----------------------------------------------------------------------------------------------------


def _repaint(paste=None, leap=None, counts_of=lambda counts: counts, extra=0, first=True, once=False):
    """The chain from a way to paste and one to go back, with changes."""
    paste, leap = paste or paste_in_minidiff, leap or leap_in_minidiff

    def repaint(x, step, levels, image, mask, counts, noise):
        if first:
            x = paste(x, levels[0], image, mask, noise())
        for i, count in enumerate(counts_of(counts)):
            t, r = levels[i], levels[i + 1]
            for k in range(count + extra):
                x = step(leap(x, r, t, noise()) if k else x, t, r)
                x = x if once and k else paste(x, r, image, mask, noise())
        return x

    return repaint


def _repaint_in_float32(x, step, levels, image, mask, counts, noise):
    """Backwards through a list of jobs, in float32 where it is allowed."""
    x = paste_in_float32(x, levels[0], image, mask, noise())
    jobs = [(i, k) for i, count in enumerate(counts) for k in range(count)]
    while jobs:
        (i, k), *jobs = jobs
        if k > 0:
            x = leap_in_float32(x, levels[i + 1], levels[i], noise()).to(x)
        x = paste_in_float32(step(x, levels[i], levels[i + 1]), levels[i + 1], image, mask, noise())
    return x


def _repaint_by_recursion(x, step, levels, image, mask, counts, noise):
    """By keywords, one level at a time."""

    def taken(x, t, r, times):
        x = paste_by_indices(step(x=x, t=t, r=r), r, image, mask, noise())
        return (
            taken(leap_by_snr(x, r, t, noise()) if r.sigma else _leap()(x, r, t, noise()), t, r, times - 1)
            if times > 1
            else x
        )

    x = paste_by_indices(x, levels[0], image, mask, noise())
    for i in range(len(counts)):
        x = taken(x, levels[i], levels[i + 1], counts[i])
    return x


def _one_noise(x, step, levels, image, mask, counts, noise):
    eps = noise()
    return _repaint()(x, step, levels, image, mask, counts, lambda: eps)


def _at_the_level_before(x, step, levels, image, mask, counts, noise):
    """Pastes at t, where the step began."""
    x = paste_in_minidiff(x, levels[0], image, mask, noise())
    for i, count in enumerate(counts):
        for k in range(count):
            x = step(leap_in_minidiff(x, levels[i + 1], levels[i], noise()) if k else x, levels[i], levels[i + 1])
            x = paste_in_minidiff(x, levels[i], image, mask, noise())
    return x


REPAINT = {name: (_repaint(paste=answer), *rest) for name, (answer, *rest) in PASTE.items()}
REPAINT |= {f"leap-{name}": (_repaint(leap=answer), *rest) for name, (answer, *rest) in LEAP.items()}
REPAINT |= {
    "form-known-alone": (lambda x, step, levels, image, mask, counts, noise: x[mask.bool().expand_as(x)], "form"),
    "form-another-name": (lambda x, step, chain, image, mask, counts, noise: x, "form"),
    "form-forgot-return": (lambda x, step, levels, image, mask, counts, noise: None, "form"),
    "not-at-first": (_repaint(first=False), "once-each", "before the first step"),
    "one-noise": (_one_noise, "once-each"),
    "pasted-at-t": (_at_the_level_before, "at-the-level"),
    "once-too-often": (_repaint(extra=1), "one-is-known"),
    "never-again": (_repaint(counts_of=lambda counts: [1] * len(counts)), "the-signal-shrinks", "has to shrink"),
    "backwards": (_repaint(counts_of=lambda counts: counts[::-1]), "each-its-number", "wrong order"),
    "all-as-the-first": (
        _repaint(counts_of=lambda counts: counts[:1] * len(counts)),
        "each-its-number",
        "as the first",
    ),
    "pasted-the-first-time-alone": (_repaint(once=True), "each-its-number"),
}

# -- ex-08-budget -----------------------------------------------------------------------------------------------------

SPENT, RIGHT_LAW = "a-hundred-calls", "near-the-right-law"
BUDGET = {
    "form-one-number": (4, "form"),
    "form-twenty-four": ([4] * 24, "form"),
    "form-halves": ([4.5] * 25, "form"),
    "never": ([0] + [4] * 24, SPENT),
    "too-many": ([5] * 25, SPENT),
    "four-each": ([4] * 25, RIGHT_LAW, "every step 4 times"),
    "once-each": ([1] * 25, RIGHT_LAW, "every step 1 times"),
    "early": ([16] * 5 + [1] * 20, RIGHT_LAW),
    "middle": ([1] * 10 + [16] * 5 + [1] * 10, RIGHT_LAW),
    "later": ([1] * 15 + [16] * 5 + [1] * 5, RIGHT_LAW),
    "the-last-alone": ([1] * 24 + [76], RIGHT_LAW),
    "the-last-five": ([1] * 20 + [16] * 5, RIGHT_LAW),
}

# -- ex-08-posterior --------------------------------------------------------------------------------------------------


def explain_with_softmax(images, picture, mask, bandwidth):
    return torch.softmax(_visible(images - picture, mask, bandwidth), 0)


def explain_one_by_one(images, picture, mask, bandwidth):
    logs = []
    for image in images:
        pixels = zip(*(v.flatten().tolist() for v in (image, picture, mask)), strict=True)
        logs.append(-sum((a - b) ** 2 for a, b, m in pixels if m) / (2 * bandwidth * bandwidth))
    top = max(logs)
    weights = [math.exp(value - top) for value in logs]
    return torch.tensor(weights, dtype=torch.float64) / sum(weights)


def explain_in_float32(images, picture, mask, bandwidth):
    known = mask.bool()
    squares = torch.cdist(
        images[:, known].float(), picture[known].float()[None], compute_mode="donot_use_mm_for_euclid_dist"
    )
    return (-(squares[:, 0] ** 2) / (2 * bandwidth**2)).softmax(0)


def explain_in_numpy(images, picture, mask, bandwidth):
    logs = _visible(images - picture, mask, bandwidth).numpy()
    return np.exp(logs - np.logaddexp.reduce(logs))


def _visible(d, mask, h):
    return -(d * mask).square().flatten(1).sum(1) / (2 * h**2)


def _explain(exponent):
    return lambda images, picture, mask, bandwidth: exponent(images - picture, mask, bandwidth).softmax(0)


def _with_exponentials(images, picture, mask, bandwidth):
    weight = _visible(images - picture, mask, bandwidth).exp()
    return weight / weight.sum()


def _guarded(images, picture, mask, bandwidth):
    weight = _visible(images - picture, mask, bandwidth).exp()
    return weight / (weight.sum() + 1e-12)


def _nearest(images, picture, mask, bandwidth):
    return torch.nn.functional.one_hot(_visible(images - picture, mask, bandwidth).argmax(), len(images)).double()


CHANNEL = {"first": lambda m: m[:1].expand_as(m), "alone": lambda m: m * torch.eye(len(m))[0][:, None, None]}
POSTERIOR = {
    "form-pixels": (lambda images, picture, mask, bandwidth: images * mask, "form"),
    "form-nearest": (lambda images, picture, mask, bandwidth: _nearest(images, picture, mask, 1).argmax(), "form"),
    "form-column": (
        lambda images, picture, mask, bandwidth: explain_with_softmax(images, picture, mask, bandwidth)[:, None],
        "form",
    ),
    "form-forgot-return": (lambda images, picture, mask, bandwidth: None, "form"),
    "not-normalised": (
        lambda images, picture, mask, bandwidth: _visible(images - picture, mask, bandwidth).exp(),
        "bayes-on-the-visible",
        "divided by their sum",
    ),
    "logarithms": (
        lambda images, picture, mask, bandwidth: _visible(images - picture, mask, bandwidth).log_softmax(0),
        "bayes-on-the-visible",
        "logarithm of the weights",
    ),
    "hidden-half": (_explain(lambda d, m, h: _visible(d, 1 - m, h)), "bayes-on-the-visible", "hidden half"),
    "whole-picture": (_explain(lambda d, m, h: _visible(d, 1, h)), "bayes-on-the-visible", "whole pictures"),
    "no-two": (_explain(lambda d, m, h: 2 * _visible(d, m, h)), "bayes-on-the-visible", "factor 2"),
    "bandwidth-not-squared": (_explain(lambda d, m, h: h * _visible(d, m, h)), "bayes-on-the-visible", "square it"),
    "sign": (_explain(lambda d, m, h: -_visible(d, m, h)), "bayes-on-the-visible", "has a minus"),
    "nearest-only": (_nearest, "bayes-on-the-visible", "nearest picture alone"),
    "prior-alone": (_explain(lambda d, m, h: 0 * _visible(d, m, h)), "bayes-on-the-visible", "all weights are equal"),
    "mean-of-squares": (
        _explain(lambda d, m, h: _visible(d, m, h) / m.numel()),
        "bayes-on-the-visible",
        "mean over the whole picture",
    ),
    "mean-of-known-squares": (
        _explain(lambda d, m, h: _visible(d, m, h) / m.sum()),
        "bayes-on-the-visible",
        "mean over the known ones",
    ),
    "distance-not-squared": (
        _explain(lambda d, m, h: -(d * m).flatten(1).norm(dim=1) / (2 * h**2)),
        "bayes-on-the-visible",
        "not the distance",
    ),
    "absolute-values": (_explain(lambda d, m, h: -(d * m).abs().flatten(1).sum(1) / h), "bayes-on-the-visible"),
    "bandwidth-of-one": (_explain(lambda d, m, h: _visible(d, m, 1.0)), "bayes-on-the-visible"),
    "one-bandwidth": (_explain(lambda d, m, h: _visible(d, m, max(h, 1.0))), "bayes-on-the-visible"),
    "mask-of-the-first-channel": (
        _explain(lambda d, m, h: _visible(d, CHANNEL["first"](m), h)),
        "other-pictures",
        "the first one's",
    ),
    "first-channel": (
        lambda images, picture, mask, bandwidth: (
            explain_with_softmax(images, picture, mask, bandwidth)
            if mask.ndim == 3 and len(mask) == 2
            else explain_with_softmax(images[:, :1], picture[:1], mask[:1], bandwidth)
        ),
        "other-pictures",
        "you looked at the first",
    ),
    "left-half": (
        lambda images, picture, mask, bandwidth: _explain(_visible)(
            *(v[..., : v.shape[-1] // 2] for v in (images, picture)), 1.0, bandwidth
        ),
        "other-pictures",
    ),
    "exponentials": (_with_exponentials, "survives-underflow", "stay in logarithms"),
    "guarded-exponentials": (_guarded, "survives-underflow"),
}

# -- ex-08-widen ------------------------------------------------------------------------------------------------------


def _zeros(weight, extra):
    return weight.new_zeros(weight.shape[0], extra, *weight.shape[2:])


def _widen(new=_zeros, at=lambda weight, after: after):
    def answer(weight, extra, after):
        place = at(weight, after)
        return torch.cat([weight[:, :place], new(weight, extra), weight[:, place:]], dim=1)

    return answer


def widen_by_filling(weight, extra, after):
    out = torch.zeros(weight.shape[0], weight.shape[1] + extra, *weight.shape[2:], dtype=weight.dtype)
    places = [i if i < after else i + extra for i in range(weight.shape[1])]
    out[:, places] = weight
    return out


def widen_by_a_product(weight, extra, after):
    """The old channels by a matrix of zeros and ones."""
    size = weight.shape[1]
    spread = torch.eye(size, dtype=weight.dtype)
    spread = torch.cat([spread[:, :after], torch.zeros(size, extra, dtype=weight.dtype), spread[:, after:]], dim=1)
    return (weight[:, :, None] * spread[:, :, None, None]).sum(1)


def widen_by_padding(weight, extra, after):
    first, rest = weight.split([after, weight.shape[1] - after], dim=1)
    return torch.cat([torch.nn.functional.pad(first, (0, 0, 0, 0, 0, extra)), rest], dim=1)


def _float32_zeros_filled(weight, extra, after):
    out = torch.zeros(weight.shape[0], weight.shape[1] + extra, *weight.shape[2:])
    out[:, :after], out[:, after + extra :] = weight[:, :after], weight[:, after:]
    return out


WIDEN = {
    "form-half-precision": (lambda weight, extra, after: widen_by_filling(weight, extra, after).half(), "form"),
    "form-output-channels": (
        lambda weight, extra, after: widen_by_filling(weight.transpose(0, 1), extra, after).transpose(0, 1),
        "form",
    ),
    "form-new-alone": (lambda weight, extra, after: _zeros(weight, extra), "form"),
    "form-forgot-return": (lambda weight, extra, after: None, "form"),
    "at-the-end": (_widen(at=lambda weight, after: weight.shape[1]), "new-weights-are-zero", "stand at the end"),
    "at-the-front": (_widen(at=lambda weight, after: 0), "new-weights-are-zero", "stand in front"),
    "one-too-early": (_widen(at=lambda weight, after: after - 1), "new-weights-are-zero", "one channel too early"),
    "one-too-late": (_widen(at=lambda weight, after: after + 1), "new-weights-are-zero", "one channel too late"),
    "from-the-end": (_widen(at=lambda weight, after: -after), "new-weights-are-zero", "yours counts from the end"),
    "small-random": (_widen(lambda w, n: 1e-3 * torch.randn(w.shape[0], n, *w.shape[2:])), "new-weights-are-zero"),
    "tiny": (_widen(lambda w, n: _zeros(w, n) + 1e-9), "new-weights-are-zero"),
    "mean-of-the-old": (
        _widen(lambda w, n: w.mean(1, keepdim=True).expand(-1, n, -1, -1)),
        "new-weights-are-zero",
        "mean of the old weights",
    ),
    "rescaled": (
        lambda weight, extra, after: (
            widen_by_filling(weight, extra, after) * (weight.shape[1] / (weight.shape[1] + extra))
        ),
        "old-weights-are-kept",
        "nothing to make up for",
    ),
    "through-half-precision": (
        lambda weight, extra, after: widen_by_filling(weight, extra, after).half().float(),
        "old-weights-are-kept",
    ),
    "last-first": (lambda weight, extra, after: widen_by_filling(weight.flip(1), extra, after), "old-weights-are-kept"),
    "float32-zeros": (_float32_zeros_filled, "any-convolution"),
    "three-by-three": (_widen(lambda w, n: w.new_zeros(len(w), n, 3, 3)), "any-convolution"),
    "nothing-in-front": (
        lambda weight, extra, after: widen_by_filling(weight, extra, after or weight.shape[1]),
        "any-convolution",
    ),
}

# -- ex-08-loss -------------------------------------------------------------------------------------------------------


def _inpainter(
    noisy=lambda x0, mask, level, eps: diffuse(x0, level, eps),
    known=lambda x0, mask, level, eps: mask * x0,
    last=lambda mask: mask,
    mean=lambda e, mask: e.square().mean(),
    of="eps",
):
    def inpainter_loss(network, x0, mask, level, eps):
        seen = torch.cat([noisy(x0, mask, level, eps), known(x0, mask, level, eps), last(mask)], 1)
        return mean(network(seen, level) - (eps if of == "eps" else x0), mask)

    return inpainter_loss


def _inpainter_in_a_loop(network, x0, mask, level, eps):
    """Pictures one by one until the network is asked, in float32 and by keywords."""
    alpha, sigma = level.like(x0)
    rows = [
        torch.cat([a * x + s * e, torch.where(m == 1, x, 0 * x), m])
        for a, s, x, e, m in zip(alpha, sigma, x0, eps, mask, strict=True)
    ]
    out = network(x=torch.stack(rows).float(), level=level)
    return float(np.mean([(o - e).pow(2).mean().item() for o, e in zip(out, eps, strict=True)]))


def _inpainter_in_place(network, x0, mask, level, eps):
    n, channels = x0.shape[:2]
    seen = x0.new_zeros(n, 2 * channels + 1, *x0.shape[2:])
    seen[:, :channels] = diffuse(x0, level, eps)
    seen[:, channels:-1] = x0 * mask
    seen[:, -1] = mask[:, 0]
    return torch.nn.functional.mse_loss(network(seen, level), eps)


def _first_level(x0, mask, level, eps):
    alpha, sigma = level.like(x0)
    return alpha[:1] * x0 + sigma[:1] * eps


def _twice(network, x0, mask, level, eps):
    return (_inpainter()(network, x0, mask, level, eps) + _inpainter()(network, x0, mask, level, eps)) / 2


NOISY, CLEAN, LAST, ALL = "all-is-noisy", "known-without-noise", "the-mask-last", "everything-counts"
LOSS = {
    "form-of-each": (_inpainter(mean=lambda e, mask: e.square().flatten(1).mean(1)), "form"),
    "form-another-name": (lambda network, x, mask, level, eps: 0.0, "form"),
    "form-forgot-return": (lambda network, x0, mask, level, eps: None, "form"),
    "known-not-noised": (
        _inpainter(lambda x0, mask, level, eps: torch.where(mask == 1, x0, diffuse(x0, level, eps))),
        NOISY,
        "as noisy as the others",
    ),
    "clean": (_inpainter(lambda x0, mask, level, eps: x0), NOISY, "the clean picture"),
    "first-level": (_inpainter(_first_level), NOISY, "the first one's"),
    "noise-alone": (_inpainter(lambda x0, mask, level, eps: eps), NOISY, "noise alone"),
    "asked-twice": (_twice, NOISY),
    "no-mask": (_inpainter(last=lambda mask: mask[:, :0]), NOISY),
    "noisy-known": (
        _inpainter(known=lambda x0, mask, level, eps: mask * diffuse(x0, level, eps)),
        CLEAN,
        "told with noise",
    ),
    "told-all": (_inpainter(known=lambda x0, mask, level, eps: x0), CLEAN, "nothing to learn"),
    "unknown-told": (_inpainter(known=lambda x0, mask, level, eps: (1 - mask) * x0), CLEAN, "told the unknown"),
    "mask-first": (
        _inpainter(known=lambda x0, mask, level, eps: mask.expand_as(x0)),
        CLEAN,
        "the mask stands where",
    ),
    "ones-for-unknown": (_inpainter(known=lambda x0, mask, level, eps: torch.where(mask == 1, x0, 1.0)), CLEAN),
    "mask-inverted": (_inpainter(last=lambda mask: 1 - mask), LAST, "its opposite"),
    "mask-from-minus-one": (_inpainter(last=lambda mask: 2 * mask - 1), LAST),
    "unknown-alone": (
        _inpainter(mean=lambda e, mask: (e**2 * (1 - mask)).sum() / (1 - mask).expand_as(e).sum()),
        ALL,
        "only unknown pixels",
    ),
    "known-for-nothing": (_inpainter(mean=lambda e, mask: (e**2 * (1 - mask)).mean()), ALL, "count nothing"),
    "sum": (_inpainter(mean=lambda e, mask: e.square().sum()), ALL, "this is a sum"),
    "half": (_inpainter(mean=lambda e, mask: e.square().mean() / 2), ALL, "half of it"),
    "of-the-picture": (_inpainter(of="x0"), ALL, "not the picture"),
    "absolute": (_inpainter(mean=lambda e, mask: e.abs().mean()), ALL),
}

MUTANTS = {
    "ex-08-conditional": CONDITIONAL,
    "ex-08-repaint": REPAINT,
    "ex-08-budget": BUDGET,
    "ex-08-posterior": POSTERIOR,
    "ex-08-widen": WIDEN,
    "ex-08-loss": LOSS,
}

RIGHT = {
    "ex-08-conditional": {
        "precision": conditional_by_precision,
        "one-by-one": conditional_one_by_one,
        "float32": conditional_in_float32,
        "numpy": conditional_in_numpy,
    },
    "ex-08-repaint": {
        "minidiff": _repaint(),
        "loop": _repaint(paste_in_a_loop, leap_in_a_loop),
        "float32": _repaint_in_float32,
        "recursion": _repaint_by_recursion,
    },
    "ex-08-budget": {
        "greedy": [1] * 21 + [10, 17, 47, 5],
        "by-hand": torch.tensor([1] * 21 + [9, 18, 47, 5]),
        "numpy": list(np.array([1] * 21 + [11, 17, 46, 5])),
    },
    "ex-08-posterior": {
        "softmax": explain_with_softmax,
        "loop": explain_one_by_one,
        "float32": explain_in_float32,
        "numpy": explain_in_numpy,
    },
    "ex-08-widen": {
        "filling": widen_by_filling,
        "product": widen_by_a_product,
        "padding": widen_by_padding,
    },
    "ex-08-loss": {
        "cat": _inpainter(),
        "loop-float32": _inpainter_in_a_loop,
        "in-place": _inpainter_in_place,
    },
}
