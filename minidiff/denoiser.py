"""Denoisers: callables ``(x_t, level) -> Prediction``. A conditional model takes a condition as third argument."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .arguments import called, checked, floats
from .prediction import Prediction, require_finite
from .schedule import NoiseLevel

Denoiser = called(
    "a denoiser of (x, level) such as conditioned(model, condition)", Callable[[Tensor, NoiseLevel], Prediction]
)
ConditionalModel = Callable[[Tensor, NoiseLevel, object], Prediction]


@checked
def conditioned(model: ConditionalModel, condition) -> Denoiser:
    """The denoiser of a conditional model with its condition filled in."""
    return lambda x, level: model(x, level, condition)


@checked
def require_reading(predicts: str, variance: str) -> None:
    """Raise ValueError unless ``predict`` knows these two."""
    if predicts not in ("eps", "v", "x0"):
        raise ValueError(f"predicts must be 'eps', 'v' or 'x0', got {predicts!r}")
    if variance not in ("fixed", "learned"):
        raise ValueError(f"variance must be 'fixed' or 'learned', got {variance!r}")


@checked
def predict(
    network: Callable[[Tensor, Tensor, object], Tensor],
    x: floats("B C *S"),
    level: NoiseLevel,
    condition=None,
    predicts: str = "eps",
    variance: str = "fixed",
) -> Prediction:
    """Ask a network, and read its output as a prediction.

    Args:
        network: Callable ``(x, time (B,), condition) -> (B, C or 2C, ...)``.
        x: (B, C, ...) at the level.
        level: Its noise level, whose time the network reads.
        condition: What else it reads.
        predicts: "eps", "v" or "x0".
        variance: "fixed", or "learned": the second C channels, in [-1, 1], place the log variance between
            log beta-tilde and log beta (Nichol and Dhariwal 2021, equation 15).

    Raises:
        ValueError: for unknown options, x that is not finite, a time where the level belongs, or an output of the wrong
            number of channels.
    """
    require_reading(predicts, variance)
    if not x.is_cuda:  # there the check would make every step wait; a sampler checks x_T
        require_finite(x, "x")
    out = network(x, level.times(x), condition).to(x.dtype)
    channels = x.shape[1]
    expected = 2 * channels if variance == "learned" else channels
    if out.shape[1] != expected:
        raise ValueError(f"a network with {variance} variance must return {expected} channels, not {out.shape[1]}")
    fraction = (out[:, channels:] + 1) / 2 if variance == "learned" else None
    return Prediction(x, level, out[:, :channels], predicts, fraction)


@checked
def as_denoiser(
    network: Callable[[Tensor, Tensor, object], Tensor], predicts: str = "eps", variance: str = "fixed"
) -> ConditionalModel:
    """A network as a conditional model; the arguments are those of ``predict``.

    Raises:
        ValueError: for unknown options.
    """
    require_reading(predicts, variance)
    return lambda x, level, condition=None: predict(network, x, level, condition, predicts, variance)
