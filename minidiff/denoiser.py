"""Denoisers: callables ``(x_t, level) -> Prediction``. A conditional model takes a condition as third argument."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .prediction import Prediction, require_finite
from .schedule import NoiseLevel

Denoiser = Callable[[Tensor, NoiseLevel], Prediction]
ConditionalModel = Callable[[Tensor, NoiseLevel, object], Prediction]


@dataclass(frozen=True)
class Condition:
    """The three doors into a network.

    Attributes:
        vector: (B, E), added to the time embedding.
        tokens: (B, L, W), attended to.
        tokens_mask: (B, L) bool, True where a token counts.
        image: (B, C, H, W), concatenated to the channels.
    """

    vector: Tensor | None = None
    tokens: Tensor | None = None
    tokens_mask: Tensor | None = None
    image: Tensor | None = None


def concatenate(*conditions):
    """One condition for the batch made of the given batches: tensors are joined along the first axis.

    Raises:
        ValueError: when one condition uses a door that another leaves closed.
    """
    first = conditions[0]
    if all(c is None for c in conditions):
        return None
    if any(type(c) is not type(first) for c in conditions):
        given = ", ".join(type(c).__name__ for c in conditions)
        raise ValueError(f"conditions of one batch must have the same form, got {given}")
    if isinstance(first, Tensor):
        return torch.cat(conditions)
    names = [f.name for f in dataclasses.fields(first)]
    return type(first)(**{n: concatenate(*[getattr(c, n) for c in conditions]) for n in names})


def conditioned(model: ConditionalModel, condition) -> Denoiser:
    """The denoiser of a conditional model with its condition filled in."""
    return lambda x, level: model(x, level, condition)


def as_denoiser(network, predicts: str = "eps", variance: str = "fixed") -> ConditionalModel:
    """Read the output of a network as a prediction.

    Args:
        network: Callable ``(x, time (B,), condition) -> (B, C or 2C, H, W)``.
        predicts: "eps", "v" or "x0".
        variance: "fixed", or "learned_range": the second C channels, in [-1, 1], place the log variance between
            log beta-tilde and log beta (Nichol and Dhariwal 2021, equation 15).

    Raises:
        ValueError: for unknown options, x that is not finite, or an output of the wrong number of channels.
    """
    if predicts not in ("eps", "v", "x0"):
        raise ValueError(f"predicts must be 'eps', 'v' or 'x0', got {predicts!r}")
    if variance not in ("fixed", "learned_range"):
        raise ValueError(f"variance must be 'fixed' or 'learned_range', got {variance!r}")

    def denoiser(x: Tensor, level: NoiseLevel, condition=None) -> Prediction:
        if not x.is_cuda:  # there the check would make every step wait; a sampler checks x_T
            require_finite(x, "x")
        time = torch.as_tensor(level.time, device=x.device).expand(len(x))
        out = network(x, time, condition).to(x.dtype)
        channels = x.shape[1]
        expected = 2 * channels if variance == "learned_range" else channels
        if out.shape[1] != expected:
            raise ValueError(f"a network with {variance} variance must return {expected} channels, not {out.shape[1]}")
        fraction = (out[:, channels:] + 1) / 2 if variance == "learned_range" else None
        return Prediction(x, level, out[:, :channels], predicts, fraction)

    return denoiser
