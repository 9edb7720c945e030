"""Samplers: generators that walk a chain of levels from noise to data, one yielded ``State`` a step.

``sample(ddim(), denoiser, schedule.levels(50), x_T)`` runs one to its end. All first-order samplers are one loop
(``_first_order``) with another step rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .arguments import Count, Randomness, Share, called, checked, described, floats, numbers
from .denoiser import Denoiser
from .prediction import Prediction, require_finite
from .process import as_known, beta_tilde, beta_tilde_floor, paste, posterior_mean, renoise, reverse_log_variance
from .random import randn
from .schedule import NoiseLevel


@dataclass(frozen=True)
class State:
    """Where a sampler is after a step.

    Attributes:
        x: The batch at ``level``.
        prediction: What the denoiser said at the level before.
        level: The level of x.
    """

    x: Tensor
    prediction: Prediction | None
    level: NoiseLevel


Sampler = called(
    "a sampler such as ddim() or ancestral('learned')",
    Callable[[Denoiser, Sequence[NoiseLevel], Tensor, Randomness], Iterator[State]],
)


@checked
def sample(
    sampler: Sampler,
    denoiser: Denoiser,
    levels: Sequence[NoiseLevel],
    x_T: floats("B *S"),
    generator: Randomness = None,
    gradients: bool = False,
) -> Tensor:
    """Run a sampler to its end and return the last x.

    Args:
        sampler: ``ancestral(...)``, ``ddim(...)`` or ``heun()``.
        denoiser: ``(x_t, level) -> Prediction``.
        levels: At least two scalar levels, from noise to data.
        x_T: Batch at ``levels[0]``, usually ``sigma_T`` times standard normal noise.
        generator: One ``torch.Generator``, or a list with one per sample (then a sample does not depend on its batch).
        gradients: Record gradients of x with respect to x_T and what the denoiser depends on.

    Raises:
        ValueError: for a chain that does not fall, or x_T that is not finite.
    """
    with torch.set_grad_enabled(gradients):
        for state in sampler(denoiser, levels, x_T, generator):
            pass
    return state.x


@checked
def watched(sampler: Sampler, watch: Callable[[], object]) -> Sampler:
    """The same sampler, which calls ``watch`` after every step: to show how far it is."""

    def run(denoiser: Denoiser, levels: Sequence[NoiseLevel], x: Tensor, generator=None) -> Iterator[State]:
        for state in sampler(denoiser, levels, x, generator):
            watch()
            yield state

    return run


@checked
def ask(denoiser: Denoiser, x: floats("B *S"), level: NoiseLevel) -> Prediction:
    """What a denoiser predicts.

    Raises:
        ValueError: for one that answers with anything else, a bare tensor say.
    """
    prediction = denoiser(x, level)
    if not isinstance(prediction, Prediction):
        raise ValueError(
            f"a denoiser answers with a Prediction, got {described(prediction)}; of a tensor it is "
            "Prediction(x, level, tensor, 'eps'), or 'x0' or 'v'"
        )
    return prediction


def _check(levels: Sequence[NoiseLevel], x: Tensor) -> None:
    require_finite(x, "x_T")
    if len(levels) < 2:
        raise ValueError(f"a chain needs at least two levels, got {len(levels)}")
    angles = [math.atan2(level.sigma, level.alpha) for level in levels]  # finite at pure noise, alpha = 0
    if any(not t > s for t, s in pairwise(angles)):
        raise ValueError("levels must run from noise to data: sigma/alpha has to fall at every step")


def _first_order(step: Callable) -> Sampler:
    """A sampler from a rule ``(prediction, t, s, floor) -> (mean, standard deviation or None)``."""

    def run(denoiser: Denoiser, levels: Sequence[NoiseLevel], x: Tensor, generator=None) -> Iterator[State]:
        _check(levels, x)
        floor = beta_tilde_floor(levels)
        for t, s in pairwise(levels):
            prediction = ask(denoiser, x, t)
            x, std = step(prediction, t, s, floor)
            if std is not None and s.sigma > 0:
                x = x + std * randn(x.shape, generator, x.dtype, x.device)
            yield State(x, prediction, s)

    return run


@checked
def ancestral(variance: str = "beta_tilde") -> Sampler:
    """Draw x_s from N(posterior mean, Sigma) (``eq-ancestral``; Ho et al. 2020, algorithm 2).

    Args:
        variance: Sigma: "beta_tilde", "beta", or "learned" (Nichol and Dhariwal 2021, equation 15).

    Raises:
        ValueError: for an unknown variance.
    """
    if variance not in ("beta_tilde", "beta", "learned"):
        raise ValueError(f"variance must be 'beta_tilde', 'beta' or 'learned', got {variance!r}")

    def step(prediction: Prediction, t: NoiseLevel, s: NoiseLevel, floor: float):
        mean = posterior_mean(prediction.x, prediction.x0, t, s)
        log_variance = reverse_log_variance(prediction, t, s, variance, floor)
        std = torch.exp(0.5 * torch.as_tensor(log_variance, dtype=mean.dtype, device=mean.device))
        if prediction.tilt is not None:
            mean = mean + std**2 * prediction.tilt
        return mean, std

    return _first_order(step)


@checked
def interpolated(gamma: Share) -> Sampler:
    """The same with a variance between the two bounds, beta-tilde^(1 - gamma) beta^gamma (Saharia et al. 2022, 2.4).

    In the logarithm that is as far between them as a learned variance whose fraction is gamma everywhere. The paper
    leaves gamma to be chosen: more of it adds more noise in each step.

    Args:
        gamma: 0 is ``ancestral("beta_tilde")``, 1 ``ancestral("beta")``.

    Raises:
        ValueError: when gamma lies outside [0, 1].
    """

    def step(prediction: Prediction, t: NoiseLevel, s: NoiseLevel, floor: float):
        low, high = (reverse_log_variance(None, t, s, kind, floor) for kind in ("beta_tilde", "beta"))
        std = math.exp(0.5 * ((1 - gamma) * low + gamma * high))
        mean = posterior_mean(prediction.x, prediction.x0, t, s)
        return mean if prediction.tilt is None else mean + std**2 * prediction.tilt, std

    return _first_order(step)


@checked
def ddim(eta: float = 0.0) -> Sampler:
    """x_s = alpha_s x_0 + sqrt(sigma_s^2 - w^2) eps + w z with w^2 = eta^2 beta-tilde (``eq-ddim``; Song et al. 2021a,
    equation 12). eta = 0 is deterministic, eta = 1 is ``ancestral("beta_tilde")``.

    Raises:
        ValueError: when eta lies outside [0, 1], or the denoiser carries a mean shift (which has no Sigma here).
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")

    def step(prediction: Prediction, t: NoiseLevel, s: NoiseLevel, floor: float):
        refuse_tilt(prediction, "ddim")
        variance = eta**2 * beta_tilde(t, s)
        # max: at pure noise beta-tilde can exceed sigma_s^2 in the last digit
        mean = s.alpha * prediction.x0 + max(s.sigma**2 - variance, 0.0) ** 0.5 * prediction.eps
        return mean, variance**0.5 if eta else None

    return _first_order(step)


@checked
def heun() -> Sampler:
    """Heun's second-order method on the probability-flow ODE (``eq-pf-ode``; Karras et al. 2022, algorithm 1).

    With the angle phi = atan2(sigma, alpha) the ODE reads d(x / r)/d phi = v / r, r^2 = alpha^2 + sigma^2. The angle
    stays finite at pure noise, where EDM's own variable sigma / alpha does not. Two denoiser calls a step, one in the
    last, which returns x_0.

    Raises:
        ValueError: when the denoiser carries a mean shift.
    """

    def run(denoiser: Denoiser, levels: Sequence[NoiseLevel], x: Tensor, generator=None) -> Iterator[State]:
        _check(levels, x)
        for t, s in pairwise(levels):
            prediction = ask(denoiser, x, t)
            refuse_tilt(prediction, "heun")
            if s.sigma == 0:
                x = s.alpha * prediction.x0
            else:
                r_t, r_s = math.hypot(t.alpha, t.sigma), math.hypot(s.alpha, s.sigma)
                step = math.atan2(s.sigma, s.alpha) - math.atan2(t.sigma, t.alpha)
                slope = prediction.v / r_t
                ahead = denoiser(r_s * (x / r_t + step * slope), s).v / r_s
                x = r_s * (x / r_t + step * (slope + ahead) / 2)
            yield State(x, prediction, s)

    return run


def refuse_tilt(prediction: Prediction, name: str) -> None:
    """Raise ValueError for a mean shift where there is no reverse variance to scale it."""
    if prediction.tilt is not None:
        raise ValueError(
            f"{name} has no reverse variance to shift a mean by: sample with ancestral('learned'), or 'beta' where "
            "none is learned; or guide the score instead, by classifier_guidance or adm(..., ode=True)"
        )


@checked
def replacing(
    sampler: Sampler, image: floats("B/1 *S"), mask: numbers("B/1 *S/1"), resamplings: Count = 1, jump: Count = 1
) -> Sampler:
    """The replacement method: known pixels, noised to the level of the sample, are pasted in after every step.

    Song et al. 2021b, appendix I.2 (``eq-paste``). With more resamplings this is RePaint (Lugmayr et al. 2022): after
    ``jump`` steps the sample is noised again and the steps repeated (``eq-transition``), so that painted and known
    pixels can come to terms. See ``walk`` for the way through the levels; each step is one call of the sampler.

    Args:
        sampler: Any sampler; it is run one step at a time.
        image: (B or 1, C, H, W); its values where the mask is 0 do not matter.
        mask: (B or 1, 1 or C, H, W), **1 where a pixel is known** and kept, 0 where it is to be painted.
        resamplings: How often each stretch of steps is taken; 1 is plain replacement, RePaint takes 10.
        jump: Length of a stretch in steps; RePaint takes 10.

    Raises:
        ValueError: when the mask holds anything but 0 and 1, or resamplings or jump are no positive integers.
    """
    known = as_known(mask)
    walk(1, resamplings, jump)

    def run(denoiser: Denoiser, levels: Sequence[NoiseLevel], x: Tensor, generator=None) -> Iterator[State]:
        _check(levels, x)
        noise = lambda: randn(x.shape, generator, x.dtype, x.device)
        x = paste(x, levels[0], image, known, noise())
        for i, j in pairwise(walk(len(levels) - 1, resamplings, jump)):
            if j < i:
                x = renoise(x, levels[i], levels[j], noise())
            else:
                (state,) = sampler(denoiser, levels[i : j + 1], x, generator)
                x = paste(state.x, state.level, image, known, noise())
                yield State(x, state.prediction, state.level)

    return run


@checked
def walk(n: Count, resamplings: Count = 1, jump: Count = 1) -> list[int]:
    """Where RePaint goes in a chain of n steps: 0 is pure noise, n the data (Lugmayr et al. 2022, algorithm 1, 4.2).

    Each stretch of ``jump`` steps is taken ``resamplings`` times, with a leap back to its beginning in between. The
    stretches end at n - 1: the step to the data, which has no noise left to take back, is taken once.

    Raises:
        ValueError: when an argument is no positive integer.
    """
    start = (n - 1) % jump
    path = list(range(start + 1))
    for first in range(start, n - 1, jump):
        once = list(range(first + 1, first + jump + 1))
        path += once + (resamplings - 1) * [first, *once]
    return [*path, n]
