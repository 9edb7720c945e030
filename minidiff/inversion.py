"""DDIM inversion: chains that rise from data to noise, so that a picture becomes the x_T that draws it; and slerp.

A chain of levels falls, from noise to data, wherever it is written in this package; what encodes walks it the other
way. The network is asked at the level that a step comes from. (Some libraries ask it at the level that a step goes to,
with x of the level before; both are of first order.) At clean data, where nothing was learnt, there is nothing to ask:
x_0 is x itself, and E[eps | x_0] = -sigma grad log q = 0 for every density.

Guidance goes in as it does for sampling: encode with the denoiser that a guide makes. With s > 1 the way back does not
undo the way there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .arguments import Finite, Positive, Share, checked, floats
from .denoiser import Denoiser
from .prediction import Prediction, require_finite
from .process import beta_tilde
from .sampler import Sampler, State, ask, refuse_tilt, sample
from .schedule import NoiseLevel

SMALL = 1e-9  # length of the part of one unit vector across another, below which rounding decides where it points


@checked
def encode(
    denoiser: Denoiser,
    levels: Sequence[NoiseLevel],
    x_0: floats("B *S"),
    method: Sampler | None = None,
    gradients: bool = False,
) -> Tensor:
    """x_T of a batch: the probability-flow ODE from data to noise (Song et al. 2021a, 4.3; Ramesh et al. 2022, 3).

    ``sample(ddim(), denoiser, levels, encode(denoiser, levels, x_0))`` gives x_0 back, up to the error of the steps. It
    is large where a sampler clips x_0 and this does not, so both should be asked without a threshold.

    Args:
        denoiser: ``(x_t, level) -> Prediction``.
        levels: The chain that decodes, from noise to data; it may begin below pure noise, and end above clean data if
            x_0 has that much noise in it.
        x_0: Batch at ``levels[-1]``.
        method: ``ddim_inversion()``, which it is when left out, or ``heun_inversion()``.
        gradients: Record gradients with respect to x_0 and what the denoiser depends on.

    Returns:
        The batch at ``levels[0]``.

    Raises:
        ValueError: for a chain that does not fall, x_0 that is not finite, or a denoiser that carries a mean shift.
    """
    return sample(method or ddim_inversion(), denoiser, levels[::-1], x_0, gradients=gradients)


@checked
def ddim_inversion() -> Sampler:
    """x_t = alpha_t x_0 + sigma_t eps, both as the denoiser believes at s < t: DDIM's step, taken upwards.

    ``eq-encode``; Song et al. 2021a, equation 13, which is Euler's method; first order. It walks a chain that rises.
    """

    def run(denoiser: Denoiser, levels: Sequence[NoiseLevel], x: Tensor, generator=None) -> Iterator[State]:
        _check(levels, x)
        for s, t in pairwise(levels):
            prediction = _asked(denoiser, x, s)
            x = t.alpha * prediction.x0 + t.sigma * prediction.eps
            yield State(x, prediction, t)

    return run


@checked
def heun_inversion() -> Sampler:
    """Heun's second-order method upwards; with phi = atan2(sigma, alpha) the ODE reads d(x / r)/d phi = v / r.

    See ``sampler.heun``, which comes down; what both get wrong cancels to leading order, so that there and back is of
    third order where neither end is clean data. It walks a chain that rises, two denoiser calls a step.
    """

    def run(denoiser: Denoiser, levels: Sequence[NoiseLevel], x: Tensor, generator=None) -> Iterator[State]:
        _check(levels, x)
        for s, t in pairwise(levels):
            prediction = _asked(denoiser, x, s)
            r_s, r_t = math.hypot(s.alpha, s.sigma), math.hypot(t.alpha, t.sigma)
            step = math.atan2(t.sigma, t.alpha) - math.atan2(s.sigma, s.alpha)
            slope = prediction.v / r_s
            ahead = _asked(denoiser, r_t * (x / r_s + step * slope), t).v / r_t
            x = r_t * (x / r_s + step * (slope + ahead) / 2)
            yield State(x, prediction, t)

    return run


def _asked(denoiser: Denoiser, x: Tensor, level: NoiseLevel) -> Prediction:
    """What the denoiser says, or what is known without one at clean data."""
    prediction = Prediction(x, level, torch.zeros_like(x), "eps") if level.sigma == 0 else ask(denoiser, x, level)
    refuse_tilt(prediction, "an inversion")
    return prediction


def _check(levels: Sequence[NoiseLevel], x: Tensor) -> None:
    require_finite(x, "x_0")
    if len(levels) < 2:
        raise ValueError(f"a chain needs at least two levels, got {len(levels)}")
    angles = [math.atan2(level.sigma, level.alpha) for level in levels]
    if any(not s < t for s, t in pairwise(angles)):
        raise ValueError("what encodes takes the chain that decodes: sigma/alpha has to fall at every step")


@checked
def round_trip_factor(levels: Sequence[NoiseLevel], variance: Positive) -> float:
    """What x_0 is multiplied by when data N(0, variance I) are encoded and decoded by DDIM with the ideal denoiser.

    Every pair of neighbours gives cos^2 of the angle between (alpha_s sqrt(v), sigma_s) and (alpha_t sqrt(v), sigma_t)
    (``eq-round-trip``): never 1, and the product tends to 1 like one over the number of steps.

    Args:
        levels: The chain.
        variance: v > 0.

    Raises:
        ValueError: when the variance is not positive.
    """
    return math.prod(math.cos(t - s) ** 2 for t, s in pairwise(_angles(levels, variance)))


@checked
def variation_correlation(levels: Sequence[NoiseLevel], variance: Positive, eta: Share) -> float:
    """Correlation of a picture with its variation: encoded by DDIM, decoded by DDIM with fresh noise (``eq-kept``).

    For data N(0, variance I) and the ideal denoiser, where every step is linear. With more and more steps it tends to
    c^(eta^2), c the correlation of x_0 and x_T: at eta = 1 what the noise has left of the picture is what comes back.

    Args:
        levels: The chain that decodes.
        variance: v > 0.
        eta: Share of fresh noise, see ``sampler.ddim``.

    Raises:
        ValueError: when the variance is not positive, or eta lies outside [0, 1].
    """
    angles = _angles(levels, variance)
    gain = math.prod(math.cos(t - s) for t, s in pairwise(angles))  # of x_0 in x_T, both over their deviations
    spread = gain**2
    for (t, s), (at, to) in zip(pairwise(levels), pairwise(angles), strict=True):
        fresh = eta**2 * beta_tilde(t, s)
        r_s = math.hypot(s.alpha * math.sqrt(variance), s.sigma)
        kept = math.cos(at) * math.cos(to) + math.sin(at) * math.sqrt(max(s.sigma**2 - fresh, 0.0)) / r_s
        gain, spread = kept * gain, kept**2 * spread + fresh / r_s**2
    return gain / math.sqrt(spread)


def _angles(levels: Sequence[NoiseLevel], variance: float) -> list[float]:
    """Of (alpha sqrt(v), sigma): how much of x_t is noise where the data have the variance v."""
    return [math.atan2(level.sigma, level.alpha * math.sqrt(variance)) for level in levels]


@checked
def slerp(a: floats("A *S"), b: floats("B *S"), theta: Finite | floats()) -> Tensor:
    """From a (theta = 0) to b (theta = 1): the direction along the great circle at constant speed, the norm linearly.

    ``eq-slerp``; Shoemake 1985, in any number of dimensions. A sample is one vector, whatever its shape. Between
    independent standard normal vectors the direction stays uniform and the mean norm theirs (its spread is smaller),
    while a straight line is shorter halfway by sqrt 2. Of two opposite vectors, between which all great circles pass,
    it takes one that depends on a alone; of parallel ones the direction stays.

    Args:
        a: (B, ...), or (1, ...) for all.
        b: Likewise.
        theta: A number or (B,); outside [0, 1] it goes on along the circle.

    Returns:
        (B, ...) in the type of a, B the largest of the three.

    Raises:
        ValueError: for samples of different shapes or in numbers that do not fit, or a vector without a direction.
    """
    for value, name in ((a, "a"), (b, "b")):
        require_finite(value, name)
    theta = torch.as_tensor(theta, dtype=torch.float64, device=a.device).reshape(-1)
    require_finite(theta, "theta")
    sizes = {len(a), len(b), len(theta)} - {1}
    if len(sizes) > 1:
        raise ValueError(f"one sample for all or as many of each are accepted, got {len(a)}, {len(b)}, {len(theta)}")
    u, v = (end.double().flatten(1) for end in (a, b))
    lengths = [end.norm(dim=1, keepdim=True) for end in (u, v)]
    if any(bool((length == 0).any()) for length in lengths):
        raise ValueError("a vector of zeros has no direction to start from or to go to")
    u, v = (end / length for end, length in zip((u, v), lengths, strict=True))
    n = max(len(u), len(v), len(theta))
    u, v, theta = u.expand(n, -1), v.expand(n, -1), theta[:, None].expand(n, 1)
    across = _across(u, v)
    angle = torch.atan2((v * across).sum(1, keepdim=True), (u * v).sum(1, keepdim=True)) * theta
    length = torch.lerp(*(length.expand(n, 1) for length in lengths), theta)
    return (length * (angle.cos() * u + angle.sin() * across)).reshape(n, *a.shape[1:]).to(a.dtype)


def _across(u: Tensor, v: Tensor) -> Tensor:
    """(B, D) unit vectors at right angles to u, in the plane of u and v where they span one."""
    across = v - (u * v).sum(1, keepdim=True) * u
    axis = torch.zeros_like(u).scatter(1, u.abs().argmin(1, keepdim=True), 1.0)  # what u is least along
    across = torch.where(across.norm(dim=1, keepdim=True) > SMALL, across, axis)
    across = across - (u * across).sum(1, keepdim=True) * u  # once more: rounding of the first time, or the axis
    return across / across.norm(dim=1, keepdim=True)


@checked
def text_diff(z: floats("B E"), after: floats("A/1 E"), before: floats("A/1 E"), theta: Finite | floats()) -> Tensor:
    """An embedding of a picture turned by what changes between two texts (``eq-text-diff``; Ramesh et al. 2022, 3.3).

    z_d = (z_after - z_before) / |z_after - z_before|, then slerp(z, z_d, theta), with the norm of z. They take theta up
    to .25 to .5, with x_T kept. The difference of embeddings is normalised *before* the slerp, so that theta is a share
    of the angle to it, however far apart the texts are.

    Args:
        z: (B, E) embeddings of pictures.
        after: (B or 1, E), of the text to go to.
        before: (B or 1, E), of the text that describes the picture, or of an empty one.
        theta: A number or (B,).

    Raises:
        ValueError: when both texts have one embedding, or as ``slerp``.
    """
    difference = after.double() - before.double()
    length = difference.norm(dim=1, keepdim=True)
    if bool((length == 0).any()):
        raise ValueError("both texts have the same embedding: there is no difference to go along")
    norm = z.double().flatten(1).norm(dim=1)
    n = max(len(z), len(difference))
    target = (difference / length).expand(n, -1) * norm[:, None]
    return slerp(z, target.to(z.device), theta)
