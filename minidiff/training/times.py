"""Which times a training step looks at: all alike, those whose loss matters most, or only the noisiest."""

from __future__ import annotations

import torch
from torch import Tensor

from ..random import rand, randint


class UniformTimes:
    """Every time with the same probability and weight 1.

    Args:
        T: Number of times.
    """

    def __init__(self, T: int):
        self.T = T

    def draw(self, batch: int, generator=None, device=None) -> tuple[Tensor, Tensor]:
        """(batch,) times and the (batch,) weights that make the loss unbiased."""
        return randint(self.T, batch, generator, device), torch.ones(batch, device=device)

    def update(self, times: Tensor, losses: Tensor) -> None:
        """Uniform times learn nothing from the losses."""

    def state(self) -> dict[str, Tensor]:
        """Nothing to remember."""
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        """Nothing to restore."""


class NoisiestTimes(UniformTimes):
    """The noisiest quarter of the times, all alike.

    The loss is that of these times alone. Balaji et al. 2022 (section 4) train experts on such intervals.
    """

    def draw(self, batch: int, generator=None, device=None) -> tuple[Tensor, Tensor]:
        """(batch,) times and weights 1."""
        times = self.T - 1 - randint(max(1, self.T // 4), batch, generator, device)
        return times, torch.ones(batch, device=device)


class ImportanceTimes:
    """p_t proportional to sqrt(E[L_t^2]), weight 1 / (T p_t) (Nichol and Dhariwal 2021, equation 18).

    The expectation is that of the last ``history`` losses seen at each time; until every time has been seen that often,
    times are uniform.

    Args:
        T: Number of times.
        history: Losses remembered per time.
        uniform: Share of uniform times mixed in, so that no time dies out.
    """

    def __init__(self, T: int, history: int = 10, uniform: float = 0.001):
        self.T, self.uniform = T, uniform
        self.losses = torch.zeros(T, history, dtype=torch.float64)
        self.seen = torch.zeros(T, dtype=torch.long)

    @property
    def probabilities(self) -> Tensor:
        """(T,) float64."""
        if bool((self.seen < self.losses.shape[1]).any()):
            return torch.full((self.T,), 1 / self.T, dtype=torch.float64)
        p = self.losses.square().mean(1).sqrt()
        return (1 - self.uniform) * p / p.sum() + self.uniform / self.T

    def draw(self, batch: int, generator=None, device=None) -> tuple[Tensor, Tensor]:
        """(batch,) times and the (batch,) weights that make the loss unbiased."""
        p = self.probabilities
        u = rand((batch,), generator, torch.float64, device).cpu()
        times = torch.searchsorted(p.cumsum(0), u).clamp(max=self.T - 1)  # the sum may end just below 1
        return times.to(device), (1 / (self.T * p[times])).float().to(device)

    def update(self, times: Tensor, losses: Tensor) -> None:
        """Remember the (B,) losses seen at (B,) times, of all processes in the same order."""
        for t, loss in zip(times.tolist(), losses.double().tolist(), strict=True):
            self.losses[t, self.seen[t] % self.losses.shape[1]] = loss
            self.seen[t] += 1

    def state(self) -> dict[str, Tensor]:
        """What the next step depends on."""
        return {"losses": self.losses, "seen": self.seen}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore ``state()``."""
        self.losses, self.seen = state["losses"], state["seen"]


TIMES = {"uniform": UniformTimes, "importance": ImportanceTimes, "noisiest": NoisiestTimes}
