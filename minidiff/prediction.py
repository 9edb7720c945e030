"""What a denoiser believes at one noise level: one stored parametrisation, read as any of the four."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from .arguments import Count, checked, floats
from .schedule import NoiseLevel

KINDS = ("x0", "eps", "v", "score")


@checked
@dataclass(frozen=True)
class Prediction:
    """A belief about x_0 given x_t = alpha x_0 + sigma eps.

    The four parametrisations are related by ``eq-parametrisations`` of lesson 01:
    eps = (x_t - alpha x_0) / sigma, score = -eps / sigma (Tweedie), v = alpha eps - sigma x_0 (Salimans and Ho 2022).

    Attributes:
        x: The noisy batch x_t, (B, ...).
        level: Its noise level.
        value: The stored quantity, shaped as x.
        kind: Which of "x0", "eps", "v", "score" is stored.
        fraction: Learned variance: log variance between log beta-tilde (0) and log beta (1), shaped as x, or None.
        tilt: s * grad log p(c | x_t) to be added to the mean times the variance (ADM's guidance), or None.

    Raises:
        ValueError: for an unknown kind, a time where the level belongs, or shapes of x and value that differ.
    """

    x: floats("B *S")
    level: NoiseLevel
    value: floats("B *S")
    kind: str
    fraction: floats("B *S") | None = None
    tilt: floats("B *S") | None = None

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"a prediction is one of {', '.join(KINDS)}; got {self.kind!r}")

    @property
    def x0(self) -> Tensor:
        """The posterior mean E[x_0 | x_t] that this prediction stands for."""
        alpha, sigma = self.level.like(self.x)
        if self.kind == "x0":
            return self.value
        if self.kind == "eps":
            return (self.x - sigma * self.value) / alpha
        if self.kind == "v":
            return (alpha * self.x - sigma * self.value) / (alpha**2 + sigma**2)
        return (self.x + sigma**2 * self.value) / alpha

    @property
    def eps(self) -> Tensor:
        """The noise, E[eps | x_t]."""
        alpha, sigma = self.level.like(self.x)
        if self.kind == "eps":
            return self.value
        if self.kind == "v":
            return (sigma * self.x + alpha * self.value) / (alpha**2 + sigma**2)
        if self.kind == "score":
            return -sigma * self.value
        return (self.x - alpha * self.value) / sigma

    @property
    def v(self) -> Tensor:
        """alpha eps - sigma x_0."""
        alpha, sigma = self.level.like(self.x)
        return self.value if self.kind == "v" else alpha * self.eps - sigma * self.x0

    @property
    def score(self) -> Tensor:
        """grad log q(x_t)."""
        return self.value if self.kind == "score" else -self.eps / self.level.like(self.x)[1]

    def replace(self, **changes) -> Prediction:
        """A copy with some attributes changed."""
        return dataclasses.replace(self, **changes)

    def with_x0(self, x0: floats()) -> Prediction:
        """The same belief with another x_0; eps, v and score follow."""
        return self.replace(value=x0, kind="x0")

    def with_eps(self, eps: floats()) -> Prediction:
        """The same belief with another eps; x_0, v and score follow."""
        return self.replace(value=eps, kind="eps")

    def chunk(self, parts: Count, level: NoiseLevel) -> list[Prediction]:
        """Split a batch that holds ``parts`` equal batches of the given level."""
        fields = ("x", "value", "fraction", "tilt")
        split = {f: getattr(self, f).chunk(parts) if getattr(self, f) is not None else [None] * parts for f in fields}
        return [self.replace(level=level, **{f: split[f][i] for f in fields}) for i in range(parts)]


@checked
def require_finite(x: Tensor, name: str) -> None:
    """Raise ValueError when x holds NaN or infinity."""
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"{name} holds {int((~torch.isfinite(x)).sum())} values that are not finite")
