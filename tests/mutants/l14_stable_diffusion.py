"""Planted answers of lesson 14: MUTANTS, name -> (answer, a case that it must fail, words of the diagnosis); RIGHT."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from minidiff.course.checks.l14_stable_diffusion import DRAWN, NUMBERS
from minidiff.data.digits import digits
from minidiff.exact import GaussianDenoiser
from minidiff.prediction import Prediction
from minidiff.sampler import ddim, sample
from minidiff.schedule import cosine_schedule

# -- ex-14-stage ------------------------------------------------------------------------------------------------------


def _stage(half=0.5, level=1.0, silent=True, sharp=None):
    """Rate and errors, or what a slip makes of them."""

    def first_stage(variances, weight):
        lost = torch.full_like(variances, level * weight)
        lost = torch.minimum(lost, variances) if silent else lost
        dear = 2 * variances * (1 - (1 - lost / variances).sqrt()) if sharp is None else sharp(variances, lost)
        return half * torch.log(variances / lost), lost, dear

    return first_stage


def stage_one_by_one(variances, weight):
    rate, blurred, sharp = [], [], []
    for v in variances.tolist():
        sent = v > weight
        rate.append(0.5 * math.log(v / weight) if sent else 0.0)
        blurred.append(weight if sent else v)
        sharp.append(blurred[-1] + (v**0.5 - max(v - blurred[-1], 0) ** 0.5) ** 2)
    return rate, blurred, sharp


def stage_in_numpy(variances, weight):
    v = variances.numpy()
    kept = np.clip(v - weight, 0, None)
    return torch.tensor(np.log(v / (v - kept)) / 2), torch.tensor(v - kept), torch.tensor(2 * v - 2 * np.sqrt(v * kept))


def stage_in_float32(variances, weight):
    return _stage()(variances=variances.float(), weight=weight)


STAGE = {
    "form-forgot-return": (lambda variances, weight: None, "form"),
    "form-two": (lambda *given, **named: _stage()(*given, **named)[:2], "form"),
    "no-silence": (_stage(silent=False), "blurred", "nothing is sent"),
    "twice-the-weight": (_stage(level=2.0), "blurred", "not twice it"),
    "half-the-weight": (_stage(level=0.5), "blurred", "not half of it"),
    "maximum": (
        lambda variances, weight: (variances.clamp(min=weight),) * 3,
        "blurred",
        "the larger of the two",
    ),
    "kept": (
        lambda variances, weight: ((variances - weight).clamp(min=0),) * 3,
        "blurred",
        "what is kept",
    ),
    "whole-logarithm": (_stage(half=1.0), "rate", "half is missing"),
    "bits": (_stage(half=0.5 / math.log(2)), "rate", "bits"),
    "negative-rates": (
        lambda variances, weight: ((variances / weight).log() / 2, *_stage()(variances, weight)[1:]),
        "rate",
        "never negative",
    ),
    "upside-down": (_stage(half=-0.5), "rate", "upside down"),
    "a-draw": (_stage(sharp=lambda v, lost: 2 * lost), "sharp", "a draw"),
    "the-mean": (_stage(sharp=lambda v, lost: lost), "sharp", "error of the mean"),
    "no-root": (_stage(sharp=lambda v, lost: 2 * lost - lost**2 / v), "sharp", "root"),
}

# -- ex-14-level ------------------------------------------------------------------------------------------------------


def _level(power=1.0, normalise=True, length=None):
    def unit_level(alpha, sigma, deviation):
        signal = alpha * deviation**power
        total = (signal.square() + sigma.square()).sqrt() if length is None else length(alpha, deviation)
        return (signal / total, sigma / total) if normalise else (signal, sigma)

    return unit_level


def level_by_log_snr(alpha, sigma, deviation):
    shifted = 2 * (alpha.log() - sigma.log()) + 2 * math.log(deviation)
    return shifted.sigmoid().sqrt(), (-shifted).sigmoid().sqrt()


def level_by_angle(alpha, sigma, deviation):
    angle = torch.atan2(sigma, alpha * deviation)
    return angle.cos(), angle.sin()


def level_in_float32(alpha, sigma, deviation):
    return _level()(alpha=alpha.float(), sigma=sigma.float(), deviation=deviation)


LEVEL = {
    "form-forgot-return": (lambda alpha, sigma, deviation: None, "form"),
    "form-alpha-alone": (lambda *given, **named: _level()(*given, **named)[0], "form"),
    "upside-down": (_level(power=-1.0), "large-latents", "upside down"),
    "root": (_level(power=0.5), "large-latents", "not its root"),
    "square": (_level(power=2.0), "large-latents", "not by its square"),
    "not-divided": (_level(normalise=False), "large-latents", "not of unit variance"),
    "preserving-only": (
        _level(length=lambda alpha, deviation: (1 + alpha**2 * (deviation**2 - 1)).sqrt()),
        "variance-exploding",
        "need not be one",
    ),
    "large-only": (
        lambda alpha, sigma, deviation: _level()(alpha, sigma, max(deviation, 1.0)),
        "small-latents",
    ),
}

# -- ex-14-grey -------------------------------------------------------------------------------------------------------


def _grey(start=None, spread=None, step=None, last=lambda m, v: (m, v)):
    """The chain's mean and variance, or what a slip makes of them."""

    def begun_in_noise(mean, variance, levels):
        total = lambda level: level.alpha**2 * variance + level.sigma**2
        m = 0.0 if start is None else start(levels[0], mean)
        v = 1.0 if spread is None else spread(total(levels[0]))
        for t, s in pairwise(levels):
            c = (s.alpha * t.alpha * variance + s.sigma * t.sigma) / total(t)
            added = 0.0
            if step is not None:
                c, added = step(t, s, total)
            m, v = s.alpha * mean + c * (m - t.alpha * mean), c * c * v + added
        return last(m, v)

    return begun_in_noise


def _ancestral(t, s, total):
    c = t.alpha / s.alpha * total(s) / total(t)
    return c, total(s) - c * c * total(t)


def _in_the_limit(which):
    def begun_in_noise(mean, variance, levels):
        total = levels[0].alpha ** 2 * variance + levels[0].sigma ** 2
        right = _grey()(mean, variance, levels)
        limits = mean * (1 - levels[0].alpha * math.sqrt(variance / total)), variance / total
        return (limits[0], right[1]) if which == 0 else (right[0], limits[1])

    return begun_in_noise


def _by_noise(mean, variance, levels):
    """The estimate of x_0 by way of the noise: divides by alpha."""
    ends = []
    for x in (0.0, 1.0):
        for t, s in pairwise(levels):
            eps = t.sigma * (x - t.alpha * mean) / (t.alpha**2 * variance + t.sigma**2)
            x0 = torch.tensor(x - t.sigma * eps, dtype=torch.float64) / t.alpha
            x = s.alpha * x0.item() + s.sigma * eps
        ends.append(x)
    return ends[0], (ends[1] - ends[0]) ** 2


def _divides(mean, variance, levels):
    return _by_noise(mean, variance, levels) if 1 / levels[0].alpha else None


def grey_by_sampling(mean, variance, levels):
    """The sampler is affine: two points tell all."""
    world = GaussianDenoiser(torch.tensor([mean]), variance)
    zero, one = sample(ddim(), world, levels, torch.tensor([[0.0], [1.0]], dtype=torch.float64))[:, 0]
    return zero, (one - zero).square()


def grey_by_angles(mean, variance, levels):
    angles = [math.atan2(level.sigma, level.alpha * math.sqrt(variance)) for level in levels]
    first, left = levels[0], math.prod(math.cos(t - s) for t, s in pairwise(angles))
    length = math.sqrt(first.alpha**2 * variance + first.sigma**2)
    return mean * (1 - math.cos(angles[0]) * left), variance * (left / length) ** 2


def _one_step(mean, variance, levels):
    return _grey()(mean, variance, [levels[0], levels[-1]])


GREY = {
    "form-forgot-return": (lambda mean, variance, levels: None, "form"),
    "form-mean-alone": (lambda mean, variance, levels: mean, "form"),
    "no-bias": (_grey(start=lambda t, mean: t.alpha * mean), "mean", "begins at zero"),
    "many-steps-mean": (_in_the_limit(0), "mean", "limit"),
    "ancestral": (_grey(step=_ancestral), "mean", "ancestral"),
    "one-step": (_one_step, "mean", "one step"),
    "variance-of-the-data": (_grey(spread=lambda total: total), "variance", "with variance 1"),
    "many-steps-variance": (_in_the_limit(1), "variance", "limit"),
    "deviation": (_grey(last=lambda m, v: (m, v**0.5)), "variance", "standard deviation"),
    "short-chains-only": (
        lambda mean, variance, levels: _grey()(mean, variance, levels[:9] + levels[-1:]),
        "stable-diffusion",
    ),
    "divides-by-alpha": (_by_noise, "nothing-left-at-the-start", "divided"),
    "divides-at-once": (_divides, "nothing-left-at-the-start", "divided"),
}

# -- ex-14-squeeze ----------------------------------------------------------------------------------------------------


def _principal(scale=True, centre=True, trained=None, forget=False, blind=False):
    """Principal components with one scale, or what a slip makes of them."""

    def squeeze(images, numbers):
        mean = images.mean(0) if centre else torch.zeros(images.shape[1])
        seen = images if trained is None else trained(images)
        rows = torch.linalg.svd(seen - mean, full_matrices=False)[2][:numbers]
        k = 1 / ((images - mean) @ rows.T).std() if scale else 1.0
        decode = lambda z: z / (1.0 if forget else k) @ rows + mean
        return lambda x: k * (x - mean) @ rows.T, (lambda z: mean.expand(len(z), -1)) if blind else decode

    return squeeze


def squeeze_by_covariance(images, numbers):
    images = images.double()
    mean = images.mean(0)
    values, vectors = torch.linalg.eigh((images - mean).T @ (images - mean))
    basis = vectors[:, values.argsort(descending=True)[:numbers]]
    k = 1 / ((images - mean) @ basis).std()
    return lambda x: k * (x.double() - mean) @ basis, lambda z: z.double() @ basis.T / k + mean


def squeeze_in_numpy(images, numbers):
    x = images.numpy()
    mean, (_, _, rows) = x.mean(0), np.linalg.svd(x - x.mean(0), full_matrices=False)
    rows = rows[:numbers]
    k = 1 / ((x - mean) @ rows.T).std()
    return lambda x: torch.tensor((x.numpy() - mean) @ rows.T * k), lambda z: torch.tensor(z.numpy() / k @ rows + mean)


def squeeze_turned(images, numbers):
    """Principal components in another basis: latents are the encoder's own affair."""
    encode, decode = _principal()(images=images, numbers=numbers)
    turn = torch.linalg.qr(torch.randn(numbers, numbers, generator=torch.Generator().manual_seed(0))).Q
    return lambda x: encode(x) @ turn, lambda z: decode(z @ turn.T)


SQUEEZE = {
    "form-forgot-return": (lambda images, numbers: None, "form"),
    "form-encoder-alone": (lambda *given, **named: _principal()(*given, **named)[0], "form"),
    "scale-not-undone": (_principal(forget=True), "unseen-digits"),
    "mean-picture": (_principal(blind=True), "unseen-digits", "mean picture"),
    "first-pixels": (
        lambda images, numbers: (
            lambda x: x[:, :numbers],
            lambda z: torch.cat([z, z.new_zeros(len(z), images.shape[1] - numbers)], 1),
        ),
        "unseen-digits",
    ),
    "no-scale": (_principal(scale=False), "unit-latents"),
    "not-centred": (
        lambda images, numbers: _principal(centre=images.mean() < 2)(images, numbers),
        "other-data",
    ),
}

# -- ex-14-drawn ------------------------------------------------------------------------------------------------------


def _latents():
    encode, decode = _principal()(digits("train")[0].flatten(1), NUMBERS)
    return encode(digits("train")[0].flatten(1)), lambda z: decode(z).reshape(-1, 1, 8, 8)


@cache
def by_diffusion():
    """A perceptron that predicts v of sixteen numbers, and DDIM."""
    torch.manual_seed(1)
    z, decode = _latents()
    steps, schedule = 1500, cosine_schedule(8)
    net = nn.Sequential(
        nn.Linear(NUMBERS + 8, 256),
        nn.SiLU(),
        nn.Linear(256, 256),
        nn.SiLU(),
        nn.Linear(256, 256),
        nn.SiLU(),
        nn.Linear(256, NUMBERS),
    )
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)

    def denoise(x, level):
        angle = torch.atan2(torch.as_tensor(level.sigma).float(), torch.as_tensor(level.alpha).float()).expand(len(x))
        waves = angle[:, None] * torch.arange(1, 5)
        return Prediction(x, level, net(torch.cat([x, waves.sin(), waves.cos()], 1)), "v")

    for i in range(steps):
        x0 = z[torch.randint(len(z), (256,))]
        eps, level = torch.randn_like(x0), schedule.random_level(256)
        alpha, sigma = level.like(x0)
        loss = (denoise(alpha * x0 + sigma * eps, level).v - (alpha * eps - sigma * x0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - i / steps)
    with torch.no_grad():
        return decode(sample(ddim(), denoise, schedule.levels(50), torch.randn(DRAWN, NUMBERS)))


def by_neighbours(share=0.5):
    """Half-way, in latents, between a digit and its nearest neighbour."""
    z, decode = _latents()
    apart = torch.cdist(z[:DRAWN], z).scatter(1, torch.arange(DRAWN)[:, None], math.inf)
    return decode(torch.lerp(z[:DRAWN], z[apart.argmin(1)], share))


def from_a_normal(fitted=False):
    z, decode = _latents()
    noise = torch.randn(DRAWN, NUMBERS, generator=torch.Generator().manual_seed(2))
    return decode(noise @ torch.linalg.cholesky(z.T.cov()).T + z.mean(0) if fitted else noise)


PICTURES = {
    "form-flat": (digits("heldout")[0][:DRAWN].flatten(1), "form"),
    "form-too-few": (digits("heldout")[0][: DRAWN - 1], "form"),
    "training-digits": (digits("train")[0][:DRAWN], "new", "training digits"),
    "noise": (torch.randn(DRAWN, 1, 8, 8, generator=torch.Generator().manual_seed(3)), "like-real-ones"),
    "normal-latents": (from_a_normal(), "like-real-ones"),
    "fitted-normal-latents": (from_a_normal(fitted=True), "like-real-ones"),
}

RIGHT = {
    "ex-14-stage": {"one-by-one": stage_one_by_one, "numpy": stage_in_numpy, "float32": stage_in_float32},
    "ex-14-level": {"log-snr": level_by_log_snr, "angle": level_by_angle, "float32": level_in_float32},
    "ex-14-grey": {"sampling": grey_by_sampling, "angles": grey_by_angles, "loop": _grey()},
    "ex-14-squeeze": {"covariance": squeeze_by_covariance, "numpy": squeeze_in_numpy, "turned": squeeze_turned},
    "ex-14-drawn": {
        "diffusion": by_diffusion(),
        "float64": by_diffusion().double(),
        "neighbours": by_neighbours(),
    },
}

MUTANTS = {
    "ex-14-stage": STAGE,
    "ex-14-level": LEVEL,
    "ex-14-grey": GREY,
    "ex-14-squeeze": SQUEEZE,
    "ex-14-drawn": PICTURES,
}
