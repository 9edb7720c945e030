"""Planted answers of lesson 11: MUTANTS, name -> (answer, a case that it must fail, words of the diagnosis); RIGHT."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F

from minidiff.inversion import encode, slerp, text_diff
from minidiff.sampler import ddim, sample

# -- ex-11-pair -------------------------------------------------------------------------------------------------------


def _pair(change=lambda cosine: cosine**2, deviation=math.sqrt, sigma=lambda level: level.sigma):
    """The factor, or what a slip makes of it: a function of the cosine, of the variance, of a level."""

    def pair_factor(t, r, variance):
        a, b = (np.array([level.alpha * deviation(variance), sigma(level)]) for level in (t, r))
        return change(a @ b / math.sqrt((a @ a) * (b @ b)))

    return pair_factor


def pair_by_slope(t, r, variance):
    """cos^2 = 1 / (1 + tan^2) of the difference of two angles."""
    a, b = (
        t.alpha * r.alpha * variance + t.sigma * r.sigma,
        math.sqrt(variance) * (t.sigma * r.alpha - t.alpha * r.sigma),
    )
    return a**2 / (a**2 + b**2)


def pair_in_float32(t, r, variance):
    values = [torch.tensor([level.alpha * variance**0.5, level.sigma], dtype=torch.float32) for level in (t, r)]
    return F.cosine_similarity(*values, dim=0) ** 2


def up_alone(t, r, variance):
    return (t.alpha * r.alpha * variance + t.sigma * r.sigma) / (r.alpha**2 * variance + r.sigma**2)


def pair_by_ratios(t, r, variance):
    angle = lambda level: math.atan(level.sigma / (level.alpha * math.sqrt(variance)))
    return math.cos(angle(t) - angle(r)) ** 2


PAIR = {
    "form-forgot-return": (lambda t, r, variance: None, "form"),
    "form-another-name": (lambda t, r, v: pair_by_slope(t, r, v), "form"),
    "one-way": (_pair(lambda cosine: cosine), "variance-preserving", "there and back"),
    "up-alone": (up_alone, "variance-preserving", "the way up alone"),
    "variance-in-the-vector": (_pair(deviation=lambda v: v), "variance-preserving", "standard deviation"),
    "no-variance": (_pair(deviation=lambda v: 1.0), "variance-preserving", "v is missing"),
    "what-is-lost": (lambda t, r, variance: 1 - pair_by_slope(t, r, variance), "variance-preserving", "what is lost"),
    "sine": (_pair(lambda cosine: math.sqrt(1 - cosine**2)), "variance-preserving", "the sine"),
    "fourth-power": (_pair(lambda cosine: cosine**4), "variance-preserving", "two steps"),
    "inverse": (_pair(deviation=lambda v: v**-0.5), "variance-preserving", "not to sigma"),
    "preserving-only": (
        _pair(sigma=lambda level: math.sqrt(max(1 - level.alpha**2, 0)) or level.sigma),
        "any-levels",
        "does not hold here",
    ),
    "divides-by-alpha": (pair_by_ratios, "ends-of-a-chain", "divided by alpha"),
    "constant": (lambda t, r, variance: 0.9, "variance-preserving"),
}

# -- ex-11-encode -----------------------------------------------------------------------------------------------------


def encode_by_eps(denoiser, levels, x_0):
    """From eps alone: y = x / alpha moves by the change of sigma / alpha; pure noise has no y."""
    x = x_0
    for r, t in pairwise(reversed(levels)):
        eps = denoiser(x, r).eps if r.sigma > 0 else 0 * x
        x = t.alpha * (x - r.sigma * eps) / r.alpha + t.sigma * eps
    return x


def encode_in_minidiff(denoiser, levels, x_0):
    return encode(denoiser, levels, x_0)


def encode_in_float32(denoiser, levels, x_0):
    return encode(denoiser, levels, x_0.float())


def encode_one_by_one(denoiser, levels, x_0):
    rows = []
    for i in range(len(x_0)):
        x = x_0[i : i + 1]
        for j in range(len(levels) - 1, 0, -1):
            r, t = levels[j], levels[j - 1]
            if r.sigma == 0:
                x0, eps = x, torch.zeros_like(x)
            else:
                prediction = denoiser(x, r)
                x0, eps = prediction.x0, prediction.eps
            x = t.alpha * x0 + t.sigma * eps
        rows.append(x)
    return torch.cat(rows)


def _walk(step, rising=lambda levels: levels[::-1], first=lambda x, t: t.alpha * x):
    """A wrong answer: another step (denoiser, x, r, t), another order, or another step from clean data."""

    def encode_chain(denoiser, levels, x_0):
        x = x_0
        for r, t in pairwise(rising(levels)):
            x = first(x, t) if r.sigma == 0 else step(denoiser, x, r, t)
        return x

    return encode_chain


def _mixed(prediction, t):
    return t.alpha * prediction.x0 + t.sigma * prediction.eps


def _right(denoiser, x, r, t):
    return _mixed(denoiser(x, r), t)


def _at_target(denoiser, x, r, t):
    eps = denoiser(x, t).eps
    return t.alpha / r.alpha * (x - r.sigma * eps) + t.sigma * eps


def _no_coefficient(denoiser, x, r, t):
    eps = denoiser(x, r).eps
    return t.alpha * (x - r.sigma * eps) + t.sigma * eps


def _clipped(denoiser, x, r, t):
    prediction = denoiser(x, r)
    return t.alpha * prediction.x0.clamp(-1, 1) + t.sigma * prediction.eps


def _swapped(denoiser, x, r, t):
    prediction = denoiser(x, r)
    return t.sigma * prediction.x0 + t.alpha * prediction.eps


def _preserving(denoiser, x, r, t):
    prediction = denoiser(x, r)
    return t.alpha * prediction.x0 + math.sqrt(max(1 - t.alpha**2, 0)) * prediction.eps


def asks_at_data(denoiser, levels, x_0):
    x = x_0
    for r, t in pairwise(levels[::-1]):
        x = _right(denoiser, x, r, t)
    return x


def asks_above_at_data(denoiser, levels, x_0):
    x = x_0
    for r, t in pairwise(levels[::-1]):
        x = _mixed(denoiser(x, t if r.sigma == 0 else r), t)
    return x


ENCODE = {
    "form-forgot-return": (lambda denoiser, levels, x_0: None, "form"),
    "form-one-picture": (lambda denoiser, levels, x_0: encode(denoiser, levels, x_0)[:1], "form"),
    "downwards": (lambda denoiser, levels, x_0: sample(ddim(), denoiser, levels, x_0), "one-step", "upwards"),
    "at-the-target": (_walk(_at_target), "one-step", "that the step comes from"),
    "target-alone": (_walk(lambda d, x, r, t: _mixed(d(x, t), t)), "one-step", "level above"),
    "no-coefficient": (_walk(_no_coefficient), "one-step", "division by alpha"),
    "clipped": (_walk(_clipped), "one-step", "cannot be undone"),
    "swapped": (_walk(_swapped), "one-step", "sigma_t to eps"),
    "nothing": (lambda denoiser, levels, x_0: x_0, "one-step", "as it came"),
    "asks-at-data": (asks_at_data, "clean-data", "do not ask there"),
    "asks-above": (asks_above_at_data, "clean-data", "eps is 0"),
    "skips-data": (_walk(_right, first=lambda x, t: x), "clean-data", "alpha_t x"),
    "stops-early": (
        _walk(_right, rising=lambda levels: levels[:0:-1] if len(levels) > 3 else levels[::-1]),
        "whole-chain",
        "noisiest level",
    ),
    "one-step-for-all": (
        lambda denoiser, levels, x_0: encode(denoiser, [levels[0], levels[-1]], x_0),
        "whole-chain",
    ),
    "preserving-only": (_walk(_preserving), "other-chains", "does not hold here"),
}

# -- ex-11-slerp ------------------------------------------------------------------------------------------------------


def slerp_in_minidiff(a, b, theta):
    return slerp(a, b, theta)


def _lengths(a, b):
    return (x.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1)) for x in (a, b))


def slerp_by_turning(a, b, theta):
    """Along a and what of b is across it; one picture at a time."""
    rows = []
    for x, y in zip(a.double(), b.double(), strict=True):
        u, v = x / x.norm(), y / y.norm()
        across = v - (u * v).sum() * u
        size = across.norm()
        angle = torch.atan2(size, (u * v).sum()) * theta
        across = across / size if size > 1e-9 else torch.zeros_like(u)
        rows.append(((1 - theta) * x.norm() + theta * y.norm()) * (angle.cos() * u + angle.sin() * across))
    return torch.stack(rows).to(a.dtype)


def slerp_in_numpy(a, b, theta):
    shape, a, b = a.shape, a.double().flatten(1).numpy(), b.double().flatten(1).numpy()
    out = []
    for x, y in zip(a, b, strict=True):
        long, other = np.linalg.norm(x), np.linalg.norm(y)
        omega = np.arctan2(np.linalg.norm(x / long - y / other), np.linalg.norm(x / long + y / other)) * 2
        weights = (1 - theta, theta)
        if omega > 1e-6:
            weights = [math.sin(w * omega) / math.sin(omega) for w in weights]
        out.append(((1 - theta) * long + theta * other) * (weights[0] * x / long + weights[1] * y / other))
    return torch.from_numpy(np.stack(out)).reshape(shape)


def _raw(a, b, theta):
    omega = F.cosine_similarity(a.flatten(1), b.flatten(1), dim=1).clamp(-1, 1).acos()
    omega = omega.reshape(-1, *[1] * (a.ndim - 1))
    return (((1 - theta) * omega).sin() * a + (theta * omega).sin() * b) / omega.sin()


def _unit(a, b, theta):
    long, other = _lengths(a, b)
    return _raw(a / long, b / other, theta)


def without_guard(a, b, theta):
    long, other = _lengths(a, b)
    return _unit(a, b, theta) * torch.lerp(long, other, theta)


def straight_then_long(a, b, theta):
    long, other = _lengths(a, b)
    between = torch.lerp(a / long, b / other, theta)
    return between / next(_lengths(between, between)) * torch.lerp(long, other, theta)


def line_of_directions(a, b, theta):
    long, other = _lengths(a, b)
    return torch.lerp(a / long, b / other, theta) * torch.lerp(long, other, theta)


def row_by_row(a, b, theta):
    return slerp(a.reshape(-1, a.shape[-1]), b.reshape(-1, a.shape[-1]), theta).reshape(a.shape)


def right_angle(a, b, theta):
    long, other = _lengths(a, b)
    turned = math.cos(theta * math.pi / 2) * a / long + math.sin(theta * math.pi / 2) * b / other
    return turned * torch.lerp(long, other, theta)


def guard_for_the_batch(a, b, theta):
    """The straight line for all, where one pair of the batch is parallel."""
    cosine = F.cosine_similarity(a.flatten(1), b.flatten(1), dim=1)
    return torch.lerp(a, b, theta) if (cosine > 1 - 1e-9).any() else slerp(a, b, theta)


SLERP = {
    "form-forgot-return": (lambda a, b, theta: None, "form"),
    "form-flat": (lambda a, b, theta: slerp(a, b, theta).flatten(1), "form"),
    "straight": (lambda a, b, theta: torch.lerp(a, b, theta), "between", "straight line"),
    "raw": (_raw, "between", "interpolated by themselves"),
    "unit": (_unit, "between", "length one"),
    "line-of-directions": (line_of_directions, "between", "speed is not constant"),
    "straight-then-long": (straight_then_long, "between"),
    "keeps-a": (lambda a, b, theta: _unit(a, b, theta) * next(_lengths(a, b)), "between", "length of a"),
    "backwards": (lambda a, b, theta: slerp(b, a, theta), "between", "from b to a"),
    "rows": (row_by_row, "between", "one vector"),
    "batch": (
        lambda a, b, theta: slerp(a.reshape(1, -1), b.reshape(1, -1), theta).reshape(a.shape),
        "between",
        "its own angle",
    ),
    "right-angle": (right_angle, "between", "omega is the angle"),
    "a-at-the-end": (
        lambda a, b, theta: a if theta == 1 else slerp(a, b, theta),
        "ends",
        "from b to a",
    ),
    "no-guard": (without_guard, "parallel", "sin(omega) is 0"),
    "guard-for-the-batch": (guard_for_the_batch, "parallel"),
    "half-precision": (
        lambda a, b, theta: slerp(a.half() if a.dtype == torch.float32 else a, b.to(a.dtype), theta),
        "in-float32",
    ),
}

# -- ex-11-turn -------------------------------------------------------------------------------------------------------


def _tips(z, direction):
    return 1 - math.pi / (2 * F.cosine_similarity(z, direction, dim=1).acos())


def turned_in_minidiff(z, after, before, theta):
    return text_diff(z, after, before, theta), _tips(z, after - before)


def turned_in_float32(z, after, before, theta):
    z, after, before = z.float(), after.float(), before.float()
    return text_diff(z, after, before, theta), _tips(z, after - before)


def turned_one_by_one(z, after, before, theta):
    rows, tips = [], []
    for picture, d in zip(z, after - before, strict=True):
        d = d / d.norm()
        omega = torch.acos(picture @ d / picture.norm()).item()
        first, second = math.sin((1 - theta) * omega), math.sin(theta * omega)
        rows.append((first * picture + second * picture.norm() * d) / math.sin(omega))
        tips.append((omega - math.pi / 2) / omega)
    return torch.stack(rows), torch.tensor(tips)


def _turned(to=lambda z, after, before, theta: text_diff(z, after, before, theta), tip=None):
    """A wrong answer: another embedding, or another share."""
    tip = tip or (lambda z, after, before: _tips(z, after - before))
    return lambda z, after, before, theta: (to(z, after, before, theta), tip(z, after, before))


def _unit_of(x):
    return F.normalize(x, dim=1)


def _omega(z, after, before):
    return F.cosine_similarity(z, after - before, dim=1).acos()


DIFFERENCE = "turns-to-the-difference"
TURN = {
    "form-forgot-return": (lambda z, after, before, theta: None, "form"),
    "form-one-thing": (text_diff, "form"),
    "not-normalised": (_turned(lambda z, a, b, theta: slerp(z, a - b, theta)), DIFFERENCE, "that of the difference"),
    "unit-target": (_turned(lambda z, a, b, theta: slerp(z, _unit_of(a - b), theta)), DIFFERENCE, "goes to one"),
    "unit": (_turned(lambda z, a, b, theta: _unit_of(text_diff(z, a, b, theta))), DIFFERENCE, "has length one"),
    "to-the-text": (
        _turned(lambda z, a, b, theta: slerp(z, _unit_of(a) * z.norm(dim=1, keepdim=True), theta)),
        DIFFERENCE,
        "not towards the text",
    ),
    "backwards": (_turned(lambda z, a, b, theta: text_diff(z, b, a, theta)), DIFFERENCE, "after minus before"),
    "adds": (_turned(lambda z, a, b, theta: z + theta * (a - b)), DIFFERENCE, "slerp turns"),
    "normalises-texts": (
        _turned(lambda z, a, b, theta: text_diff(z, _unit_of(a), _unit_of(b), theta)),
        DIFFERENCE,
        "normalised the texts first",
    ),
    "nothing": (_turned(lambda z, a, b, theta: z), DIFFERENCE, "as it was"),
    "one-length": (
        _turned(lambda z, a, b, theta: slerp(z, _unit_of(a - b) * z.norm(dim=1).mean(), theta)),
        DIFFERENCE,
    ),
    "between-texts": (_turned(tip=lambda z, a, b: _tips(a, b)), "where-it-tips", "not between the texts"),
    "to-a-text": (_turned(tip=lambda z, a, b: _tips(z, a)), "where-it-tips", "between z and a text"),
    "tips-backwards": (_turned(tip=lambda z, a, b: _tips(z, b - a)), "where-it-tips", "after minus before"),
    "omega": (_turned(tip=_omega), "where-it-tips", "this is omega"),
    "degrees": (_turned(tip=lambda z, a, b: 1 - 90 / _omega(z, a, b)), "where-it-tips", "degrees"),
    "left": (_turned(tip=lambda z, a, b: 1 - _tips(z, a - b)), "where-it-tips", "share that is left"),
    "straight-angle": (_turned(tip=lambda z, a, b: 1 - math.pi / _omega(z, a, b)), "where-it-tips", "right angle"),
    "a-little-early": (_turned(tip=lambda z, a, b: 0.9 * _tips(z, a - b)), "where-it-tips"),
}

# -- ex-11-chain ------------------------------------------------------------------------------------------------------

GRID = np.linspace(0, math.pi / 2, 20_001)
PLACES = math.pi / 2 * (1 - np.arange(1, 20) / 20)


def _seen_by(variance):
    return np.arctan2(np.sin(GRID), np.cos(GRID) * math.sqrt(variance))


def _even_in(growing):
    return np.interp(PLACES, growing * math.pi / 2 / growing[-1], GRID)


def by_squared_speeds():
    """Even in an arc whose squared speed is the sum of those of the four variances."""
    squares = sum(v / (v * np.cos(GRID) ** 2 + np.sin(GRID) ** 2) ** 2 for v in (0.01, 0.1, 1.0, 10.0))
    return _even_in(np.concatenate([[0], np.cumsum(np.sqrt(squares)[1:])]))


EXTREMES, EVEN = _even_in(_seen_by(0.01) + _seen_by(10.0)), PLACES

CHAIN = {
    "form-a-number": (0.5, "form"),
    "form-with-the-ends": ([math.pi / 2, *EXTREMES.tolist(), 0.0], "form"),
    "rising": (EXTREMES[::-1].tolist(), "a-chain", "yours rise"),
    "degrees": (np.degrees(EXTREMES).tolist(), "a-chain", "radians"),
    "twice": ([EXTREMES[0], *EXTREMES[:-1].tolist()], "a-chain"),
    "even": (EVEN.tolist(), "loses-little", "these angles are even"),
    "for-the-finest": (_even_in(_seen_by(0.01)).tolist(), "loses-little"),
    "for-the-coarsest": (_even_in(_seen_by(10.0)).tolist(), "loses-little"),
    "all-four-alike": (_even_in(sum(_seen_by(v) for v in (0.01, 0.1, 1.0, 10.0))).tolist(), "loses-little"),
}

RIGHT = {
    "ex-11-pair": {"vectors": _pair(), "slope": pair_by_slope, "float32": pair_in_float32},
    "ex-11-encode": {
        "eps": encode_by_eps,
        "minidiff": encode_in_minidiff,
        "float32": encode_in_float32,
        "one-by-one": encode_one_by_one,
    },
    "ex-11-slerp": {"minidiff": slerp_in_minidiff, "turning": slerp_by_turning, "numpy": slerp_in_numpy},
    "ex-11-turn": {"minidiff": turned_in_minidiff, "float32": turned_in_float32, "one-by-one": turned_one_by_one},
    "ex-11-chain": {
        "list": EXTREMES.tolist(),
        "tensor": torch.tensor(EXTREMES, dtype=torch.float32),
        "squared-speeds": by_squared_speeds(),
    },
}

MUTANTS = {
    "ex-11-pair": PAIR,
    "ex-11-encode": ENCODE,
    "ex-11-slerp": SLERP,
    "ex-11-turn": TURN,
    "ex-11-chain": CHAIN,
}
