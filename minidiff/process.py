"""The forward process and its posterior, as functions of noise levels and of pairs of levels.

A pair is written (t, s): t the noisier level, s the cleaner. Nothing is read from a table, so respacing, continuous
time and variance-exploding processes need no case of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .arguments import NonNegative, checked, flags, floats, numbers, require_broadcast
from .prediction import Prediction
from .schedule import NoiseLevel, broadcast


@checked
def diffuse(x0: floats("*S"), level: NoiseLevel, eps: floats("*S")) -> Tensor:
    """x_t = alpha x_0 + sigma eps (``eq-marginal``; Ho et al. 2020, equation 4).

    Raises:
        ValueError: for a time where a level belongs.
    """
    alpha, sigma = level.like(x0)
    return alpha * x0 + sigma * eps


@checked
def start_std(level: NoiseLevel) -> float:
    """Standard deviation of the noise that a chain starts from at a scalar level.

    Where noise is added to data of scale 1 (variance exploding) it is sigma (Karras et al. 2022); where the variance is
    preserved it is 1, also where a chain starts below the last level (Dhariwal and Nichol 2021).

    Raises:
        ValueError: for a level with one entry per sample.
    """
    if isinstance(level.alpha, Tensor) and level.alpha.ndim:
        raise ValueError(f"a chain starts at one level for all samples, got {len(level.alpha)} of them")
    return level.sigma if level.alpha == 1 else math.hypot(level.alpha, level.sigma)


@checked
def transition(s: NoiseLevel, t: NoiseLevel) -> tuple[float | Tensor, float | Tensor]:
    """Scale and variance of q(x_t | x_s): alpha_t/alpha_s and sigma_t^2 - scale^2 sigma_s^2 (``eq-transition``).

    Raises:
        ValueError: for levels of two batch sizes.
    """
    counts = {len(level.alpha) for level in (s, t) if isinstance(level.alpha, Tensor) and level.alpha.ndim}
    if len(counts - {1}) > 1:
        raise ValueError(f"a pair of levels has one batch size, got {' and '.join(map(str, sorted(counts)))}")
    scale = t.alpha / s.alpha
    return scale, t.sigma**2 - scale**2 * s.sigma**2


@checked
def renoise(x_s: floats("*S"), s: NoiseLevel, t: NoiseLevel, eps: floats("*S")) -> Tensor:
    """A draw of q(x_t | x_s) made with the standard normal eps."""
    scale, variance = transition(s, t)
    return broadcast(scale, x_s) * x_s + broadcast(variance**0.5, x_s) * eps


@checked
def as_known(mask: numbers()) -> Tensor:
    """A mask as booleans, True where a pixel is known (1) and kept, False where it is to be painted (0).

    Raises:
        ValueError: when the mask holds anything but 0 and 1.
    """
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("a mask holds 1 where a pixel is known and 0 where it is to be painted, and nothing else")
    return mask.bool()


@checked
def paste(x: floats("B *S"), level: NoiseLevel, image: floats("B/1 *S"), known: flags(), eps: floats("B *S")) -> Tensor:
    """x_t with its known pixels drawn from q(x_t | image), at the level of x_t itself (``eq-paste``).

    Args:
        x: (B, C, H, W) at the level.
        level: The level of x, not the one before.
        image: (B or 1, C, H, W), clean; its values where nothing is known do not matter.
        known: Booleans that broadcast to x, see ``as_known``.
        eps: Standard normal noise, shaped as x.
    """
    require_broadcast(known, x)
    return torch.where(known, diffuse(image.to(x).expand_as(x), level, eps), x)


@checked
def beta(t: NoiseLevel, s: NoiseLevel) -> float | Tensor:
    """Variance of q(x_t | x_s): the largest sensible reverse variance, right for N(0, I) (``eq-variance-bounds``)."""
    return transition(s, t)[1]


@checked
def beta_tilde(t: NoiseLevel, s: NoiseLevel) -> float | Tensor:
    """Variance of q(x_s | x_t, x_0): the smallest, right for one point (``eq-posterior``; Ho et al. 2020, eq. 7)."""
    return beta(t, s) * s.sigma**2 / t.sigma**2


@checked
def posterior_mean(x_t: floats("*S"), x0: floats("*S/1"), t: NoiseLevel, s: NoiseLevel) -> Tensor:
    """Mean of q(x_s | x_t, x_0) (``eq-posterior``; Ho et al. 2020, equation 7)."""
    scale, variance = transition(s, t)
    from_x_t = scale * s.sigma**2 / t.sigma**2
    from_x0 = s.alpha * variance / t.sigma**2
    return broadcast(from_x_t, x_t) * x_t + broadcast(from_x0, x_t) * x0


@checked
def beta_tilde_floor(levels: Sequence[NoiseLevel]) -> float:
    """What stands for beta-tilde in the last step of a chain, where it is zero: its value one step earlier.

    ADM's ``posterior_log_variance_clipped``; a chain of one step has no earlier one and uses beta.

    Raises:
        ValueError: for a chain without a step.
    """
    if len(levels) < 2:
        raise ValueError(f"a chain needs at least two levels, got {len(levels)}")
    return beta_tilde(levels[-3], levels[-2]) if len(levels) > 2 else beta(levels[-2], levels[-1])


@checked
def reverse_log_variance(
    prediction: Prediction | None, t: NoiseLevel, s: NoiseLevel, kind: str, floor: NonNegative
) -> float | Tensor:
    """Log variance of p(x_s | x_t): a float, or a tensor that broadcasts to x.

    Args:
        prediction: Needed for kind "learned": its fraction f gives f log beta + (1 - f) log beta-tilde
            (``eq-learned-variance``; Nichol and Dhariwal 2021, equation 15).
        t: The noisier level.
        s: The cleaner level.
        kind: "beta", "beta_tilde" or "learned". The two fixed ones take the floor in the last step, as in the released
            code of Ho et al. 2020; the learned one has beta for its upper end there as well.
        floor: What stands for beta-tilde where it is zero (s is clean data), see ``beta_tilde_floor``.

    Raises:
        ValueError: for an unknown kind, or "learned" with a prediction that has no fraction.
    """

    def log(value):
        return value.log() if isinstance(value, Tensor) else math.log(value)

    low, high = beta_tilde(t, s), beta(t, s)
    # the floor is for the last step alone: in a chain of uneven steps it can exceed beta-tilde elsewhere
    floored = lambda value: torch.where(low > 0, value, floor) if isinstance(low, Tensor) else value if low else floor
    if kind == "beta":
        return _shaped(log(floored(high)), prediction)
    low, high = log(floored(low)), log(high)
    if kind == "beta_tilde":
        return _shaped(low, prediction)
    if kind != "learned":
        raise ValueError(f"variance must be 'beta', 'beta_tilde' or 'learned', got {kind!r}")
    if prediction is None or prediction.fraction is None:
        raise ValueError("variance='learned' needs a denoiser that predicts its variance")
    return torch.lerp(*_pair(low, high, prediction.fraction), prediction.fraction)


def _shaped(value: float | Tensor, prediction: Prediction | None) -> float | Tensor:
    return value if prediction is None else broadcast(value, prediction.x)


def _pair(low, high, like: Tensor) -> tuple[Tensor, Tensor]:
    return tuple(torch.as_tensor(broadcast(v, like), dtype=like.dtype, device=like.device) for v in (low, high))
