"""Which noise levels training looks at: a policy, drawn from once per sample.

``draw(schedule, n, generator)`` gives the levels of n samples and the weight of each one's loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..arguments import Finite, Natural, Randomness, checked, floats
from ..random import rand, randint, randn
from ..schedule import ContinuousSchedule, DiscreteSchedule, EDMSchedule, NoiseLevel
from ..settings import from_plain
from ..words import nearest
from .parallel import everyones

Drawn = tuple[NoiseLevel, Tensor]


@checked
@dataclass
class LevelSampler:
    """Which levels training looks at; this one knows no history.

    Attributes:
        on_schedule: Whether every level that it draws is one of a discrete schedule, as a learned variance needs.
    """

    on_schedule: ClassVar[bool] = True

    def draw(self, schedule, n: Natural, generator: Randomness = None, device=None) -> Drawn:
        """Levels of n samples, one each, and the (n,) weights of their losses.

        Args:
            schedule: A discrete or continuous schedule.
            n: Number of samples.
            generator: One generator, or a list with one per sample.
            device: Where the levels are used.

        Raises:
            ValueError: for a schedule of another kind.
        """
        raise NotImplementedError

    def update(self, level: NoiseLevel, losses: Tensor) -> None:
        """Note the unweighted (n,) losses at the levels that were drawn, of a part of a step."""

    def learn(self) -> None:
        """Learn from what was noted: at the end of a step, so that all its parts are drawn alike."""

    def state(self) -> dict[str, Tensor]:
        """What the next draw depends on."""
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore ``state()``."""


@checked
@dataclass
class Uniform(LevelSampler):
    """Every time of the schedule alike."""

    def draw(
        self, schedule: DiscreteSchedule | ContinuousSchedule, n: Natural, generator: Randomness = None, device=None
    ) -> Drawn:
        """Levels uniform in time, weights 1."""
        return schedule.random_level(n, generator, device), torch.ones(n, device=device)


@checked
@dataclass
class Tilted(LevelSampler):
    """Noisy times of a discrete schedule more often: the density of t / T is (1 + power) (t / T)^power.

    For what is decided at noisy times, such as where things stand in a picture.

    Attributes:
        power: 0 is uniform.
    """

    power: float = 1.0

    def __post_init__(self):
        _require(-1 < self.power < math.inf, "a finite power > -1", self.power)

    def draw(self, schedule, n: Natural, generator: Randomness = None, device=None) -> Drawn:
        """Levels by that density, weights 1."""
        _require_times(schedule)
        u = rand((n,), generator, torch.float64, device) ** (1 / (1 + self.power))
        return schedule.level((schedule.T * u).long().clamp(max=schedule.T - 1)), torch.ones(n, device=device)


@checked
@dataclass
class Noisiest(LevelSampler):
    """The noisiest times of a discrete schedule, all alike; the loss is that of these times alone.

    Balaji et al. 2022 (section 4) train experts on such intervals.

    Attributes:
        share: Of the times.
    """

    share: float = 0.25

    def __post_init__(self):
        _require(0 < self.share <= 1, "share lies in (0, 1]", self.share)

    def draw(self, schedule, n: Natural, generator: Randomness = None, device=None) -> Drawn:
        """Levels uniform among the noisiest, weights 1."""
        _require_times(schedule)
        count = max(1, int(self.share * schedule.T))
        return schedule.level(schedule.T - 1 - randint(count, n, generator, device)), torch.ones(n, device=device)


@checked
@dataclass
class Only(LevelSampler):
    """One time, that of a regression for instance.

    Attributes:
        t: The time; counted from the end where it is negative.
    """

    t: int

    def draw(self, schedule, n: Natural, generator: Randomness = None, device=None) -> Drawn:
        """The same level n times, weights 1."""
        _require_times(schedule)
        t = self.t + schedule.T if self.t < 0 else self.t
        return schedule.level(torch.full((n,), t, device=device)), torch.ones(n, device=device)


@checked
@dataclass
class AlphaBetween(LevelSampler):
    """Alpha-bar uniform between those of a uniform time and the one before (``eq-sr3-level``).

    So the network knows all levels, and can be sampled with any schedule (Saharia et al. 2021, section 2.4). Chen et
    al. 2021 (WaveGrad) draw the root of alpha-bar uniformly instead.
    """

    on_schedule: ClassVar[bool] = False

    def draw(self, schedule, n: Natural, generator: Randomness = None, device=None) -> Drawn:
        """Levels between those of a discrete schedule, weights 1."""
        _require_times(schedule)
        times = randint(schedule.T, n, generator, device)
        noisy, clean = schedule.level(times).alpha ** 2, schedule.level(times - 1).alpha ** 2
        alpha_bar = torch.lerp(noisy, clean, rand((n,), generator, torch.float64, device))
        return NoiseLevel(alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), times), torch.ones(n, device=device)


@checked
@dataclass
class LogNormal(LevelSampler):
    """log sigma normal, for a variance-exploding schedule (Karras et al. 2022, table 1).

    Attributes:
        mean: Of log sigma.
        std: Of log sigma.
    """

    on_schedule: ClassVar[bool] = False
    mean: Finite = -1.2
    std: float = 1.2

    def __post_init__(self):
        _require(math.isfinite(self.mean), "a finite mean", self.mean)
        _require(0 < self.std < math.inf, "a finite std > 0", self.std)

    def draw(self, schedule, n: Natural, generator: Randomness = None, device=None) -> Drawn:
        """Levels with alpha = 1, weights 1."""
        _require(isinstance(schedule, EDMSchedule), "log sigma is normal on a variance-exploding schedule", schedule)
        sigma = (randn((n,), generator, dtype=torch.float64, device=device) * self.std + self.mean).exp()
        time = schedule.network_time(sigma, sigma)
        return NoiseLevel(torch.ones_like(sigma), sigma, time), torch.ones(n, device=device)


@checked
@dataclass
class Importance(LevelSampler):
    """p_t proportional to sqrt(E[L_t^2]), weight 1 / (T p_t) (Nichol and Dhariwal 2021, equation 18).

    The expectation is that of the last ``history`` losses seen at each time of a discrete schedule; until every time
    has been seen that often, or when all losses are zero, times are uniform. Losses that are not finite are forgotten.

    Attributes:
        history: Losses remembered per time.
        uniform: Share of uniform times mixed in, so that no time dies out.
    """

    history: int = 10
    uniform: float = 0.001
    losses: Tensor | None = field(default=None, init=False, repr=False)
    seen: Tensor | None = field(default=None, init=False, repr=False)
    noted: list[tuple[Tensor, Tensor]] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self):
        _require(self.history >= 1, "history >= 1", self.history)
        _require(0 < self.uniform <= 1, "uniform lies in (0, 1]", self.uniform)

    def probabilities(self, T: int) -> Tensor:
        """(T,) float64."""
        if self.seen is None or bool((self.seen < self.history).any()):
            return torch.full((T,), 1 / T, dtype=torch.float64)
        p = self.losses.square().mean(1).sqrt()
        if not bool(p.sum() > 0):
            return torch.full((T,), 1 / T, dtype=torch.float64)
        return (1 - self.uniform) * p / p.sum() + self.uniform / T

    def draw(self, schedule, n: Natural, generator: Randomness = None, device=None) -> Drawn:
        """Levels by importance, and the weights that make the loss unbiased."""
        _require_times(schedule)
        T = schedule.T
        if self.seen is None:
            self.losses = torch.zeros(T, self.history, dtype=torch.float64)
            self.seen = torch.zeros(T, dtype=torch.long)
        p = self.probabilities(T)
        u = rand((n,), generator, torch.float64, device).cpu()
        times = torch.searchsorted(p.cumsum(0), u).clamp(max=T - 1)  # the sum may end just below 1
        return schedule.level(times.to(device)), (1 / (T * p[times])).float().to(device)

    def update(self, level: NoiseLevel, losses: floats("n")) -> None:
        """Note the losses of this part and process."""
        self.noted.append((level.time, losses))

    def learn(self) -> None:
        """Remember the losses of all parts and processes, in the same order in each process."""
        if not self.noted:
            return
        times, losses = (everyones(torch.cat(column)) for column in zip(*self.noted, strict=True))
        self.noted.clear()
        finite = losses.isfinite()
        for t, loss in zip(times[finite].tolist(), losses[finite].double().tolist(), strict=True):
            self.losses[t, self.seen[t] % self.history] = loss
            self.seen[t] += 1

    def state(self) -> dict[str, Tensor]:
        """The losses that were remembered."""
        return {} if self.seen is None else {"losses": self.losses, "seen": self.seen}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore ``state()``."""
        losses, seen = state.get("losses"), state.get("seen")
        if losses is not None:
            shapes = tuple(losses.shape[1:]), None if seen is None else tuple(seen.shape)
            _require(shapes == ((self.history,), losses.shape[:1]), f"{self.history} losses of each time", shapes)
        self.losses, self.seen = losses, seen


SAMPLERS = {
    "uniform": Uniform,
    "importance": Importance,
    "tilted": Tilted,
    "noisiest": Noisiest,
    "only": Only,
    "alpha_between": AlphaBetween,
    "log_normal": LogNormal,
}


@checked
def level_sampler(spec: Any) -> LevelSampler:
    """A level sampler as a recipe names it: "importance", or {name: only, t: -1}.

    Raises:
        ValueError: for an unknown name or option, naming the nearest.
    """
    values = {"name": spec} if isinstance(spec, str) else spec
    if not isinstance(values, dict) or not isinstance(values.get("name"), str):
        raise ValueError(f"a level sampler is a name, or a mapping with a name; got {spec!r}")
    options = {k: v for k, v in values.items() if k != "name"}
    if values["name"] not in SAMPLERS:
        raise ValueError(f"unknown level sampler {values['name']!r}: {nearest(values['name'], SAMPLERS)}")
    return from_plain(SAMPLERS[values["name"]], options, "level_sampler")


def _require_times(schedule) -> None:
    _require(isinstance(schedule, DiscreteSchedule), "times are counted on a discrete schedule", schedule)


def _require(holds: bool, accepted: str, given) -> None:
    if not holds:
        raise ValueError(f"{accepted}; got {given}")
