"""A network read as a denoiser, and the parts of what it is told: every denoising system is one of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add
from typing import Any

from torch import Tensor, nn

from ..arguments import Bins, Count, Randomness, checked, floats
from ..condition import Condition, Part, Value, column, each, length
from ..denoiser import predict, require_reading
from ..likelihood import hybrid_vlb, mean_flat
from ..prediction import Prediction
from ..process import beta_tilde, diffuse
from ..random import randn
from ..schedule import ContinuousSchedule, DiscreteSchedule, NoiseLevel
from ..training.levels import LevelSampler, Uniform, level_sampler
from ..training.trainable import Trainable
from ..words import nearest


@checked
@dataclass(frozen=True)
class DenoiserOptions:
    """Options of a system that denoises.

    Attributes:
        predicts: "eps", "v" or "x0".
        variance: "fixed" or "learned".
        drop: Probability with which training replaces a label or caption by the null, per sample.
        level_sampler: Which levels training looks at, see ``training.levels``; the system's own when left out.

    Raises:
        ValueError: for a name that is not known, or a drop that is no probability.
    """

    predicts: str = "eps"
    variance: str = "fixed"
    drop: float = 0.0
    level_sampler: Any = None

    def __post_init__(self):
        require_reading(self.predicts, self.variance)
        if not 0 <= self.drop <= 1:
            raise ValueError(f"drop is a probability, got {self.drop}")
        if self.level_sampler is not None:
            level_sampler(self.level_sampler)

    def levels(self, default: LevelSampler | None = None) -> LevelSampler:
        """The level sampler that was named, or a default."""
        return (default or Uniform()) if self.level_sampler is None else level_sampler(self.level_sampler)


@checked
class Diffusion(Trainable):
    """A denoiser of x given the parts of a condition. Called as a conditional model, ``system(x, level, condition)``.

    Args:
        network: ``(x, time, condition) -> output``, with its shape in ``config``.
        schedule: Noise levels.
        parts: What it is told beside x, in the order of channels and tokens.
        predicts: "eps", "v" or "x0".
        variance: "fixed" or "learned".
        level_sampler: Which levels training looks at; all alike when left out.
        bins: Number of values a pixel can take, for the bound.

    Raises:
        ValueError: for a network that lacks what a part needs, or takes another number of channels than it is
            shown, or for two parts of the same key.
    """

    subject = "image"  # the column of data that x_0 is

    def __init__(
        self,
        network: nn.Module,
        schedule: DiscreteSchedule | ContinuousSchedule,
        parts: Sequence[Part] = (),
        predicts: str = "eps",
        variance: str = "fixed",
        level_sampler: LevelSampler | None = None,
        bins: Bins = 256,
    ):
        super().__init__()
        require_reading(predicts, variance)
        self.network, self.schedule, self.parts = network, schedule, tuple(parts)
        self.predicts, self.variance, self.bins = predicts, variance, bins
        self.level_sampler = level_sampler or Uniform()
        keys = [part.key for part in self.parts]
        if len(set(keys)) < len(keys):
            raise ValueError(f"every part has a key of its own, got {', '.join(keys)}")
        shown = self.shape[0] + sum(part.channels for part in self.parts)
        if network.config.in_channels != shown:
            raise ValueError(f"this system needs {shown} input channels, got {network.config.in_channels}")
        for part in self.parts:
            part.check(network, self.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of x."""
        channels, *area = self.network.out_shape
        return channels // (1 + (self.variance == "learned")), *area

    @property
    def has_null(self) -> bool:
        """Whether any part can be nothing."""
        return any(part.nullable for part in self.parts)

    def part(self, key: str) -> Part | None:
        """The part of that name, if there is one."""
        return next((part for part in self.parts if part.key == key), None)

    def read(self, values: Mapping[str, object], n: Count | None = None) -> dict[str, Value]:
        """What a person gave for the parts as their values, with n entries each.

        Args:
            values: By the key of a part. What is left out, or None, is nothing, where there is a null.
            n: Number of samples; the largest number of entries when left out.

        Raises:
            ValueError: for an unknown key (the nearest is named), a missing value, or one that a part refuses.
        """
        keys = [part.key for part in self.parts]
        for key in values:
            if key not in keys:
                raise ValueError(
                    f"this system is told no {key!r}: {nearest(key, keys) if keys else 'it is told nothing'}"
                )
        given = {
            part.key: each(self._here, part.read(values[part.key], self.shape))
            for part in self.parts
            if values.get(part.key) is not None
        }
        n = max(map(length, given.values()), default=1) if n is None else n
        for part in self.parts:
            if part.key not in given:
                if not part.nullable:
                    raise ValueError(f"this system is told its {part.key!r}, which has no null: name it")
                given[part.key] = each(self._here, part.nothing(self.network, n))
        return {part.key: self._repeated(part.key, given[part.key], n) for part in self.parts}

    def _here(self, value: Tensor) -> Tensor:
        """On the device of the network; numbers that are not counted also in its precision."""
        return value.to(self.device, self.dtype if value.is_floating_point() else value.dtype)

    @staticmethod
    def _repeated(key: str, value: Value, n: int) -> Value:
        entries = {len(t) for t in ((value,) if isinstance(value, Tensor) else value)}
        if not entries <= {1, n}:
            raise ValueError(f"{n} samples take 1 or {n} values of {key!r}, got {', '.join(map(str, sorted(entries)))}")
        return each(lambda t: t.expand(n, *t.shape[1:]), value)

    def encode(self, values: Mapping[str, Value]) -> Condition:
        """The sum of the parts, as it enters the network."""
        return reduce(add, (part.encode(self.network, values[part.key]) for part in self.parts), Condition())

    def nulls(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """Each value replaced by its null, where there is one."""
        return {part.key: part.null(self.network, values[part.key]) for part in self.parts}

    def condition(self, n: Count | None = None, **values) -> Condition:
        """What is to be drawn, as it enters the network: ``condition(label=[3, 7])``, ``condition(caption="a ring")``.

        Args:
            n: Number of samples; the largest number of entries when left out.
            values: By the key of a part; a nullable one that is left out is nothing.

        Raises:
            ValueError: for an unknown key, a missing value, or one that a part refuses.
        """
        return self.encode(self.read(values, n))

    def null(self, n: Count | None = None, **values) -> Condition:
        """The same with nothing in place of what can be nothing.

        Args:
            n: Number of samples; the largest number of entries when left out.
            values: Of the parts that cannot be nothing; others do not matter.
        """
        return self.encode(self.nulls(self.read(values, n)))

    def forward(self, x: floats("B C H W"), level: NoiseLevel, condition: Condition | None = None) -> Prediction:
        """The prediction for x (B, C, H, W); given nothing, where the condition is left out.

        Raises:
            ValueError: for what is no condition, or one that was left out where a part has no null.
        """
        condition = self.null(len(x)) if condition is None else condition
        if not isinstance(condition, Condition):
            raise ValueError(f"a model is asked with what its condition(...) returns, got {type(condition).__name__}")
        return predict(self.network, x, level, condition, self.predicts, self.variance)

    def loss(
        self, batch: Mapping[str, Tensor], generator: Randomness = None, level: NoiseLevel | None = None
    ) -> dict[str, Tensor]:
        """L_simple in the network's own parametrisation, plus T/1000 times the bound where the variance is learned.

        Nichol and Dhariwal 2021, equation 16. Each part drops its own value with its own probability, per sample.

        Args:
            batch: Columns of data by name.
            generator: One generator, or a list with one per sample.
            level: One level for each sample; drawn by the level sampler when left out, "loss" then has its weights.

        Returns:
            (B,) "loss", "simple" and, with a learned variance, "vlb".
        """
        x0, drawn, weight = column(batch, self.subject, self.shape), level is None, None
        if drawn:
            level, weight = self.level_sampler.draw(self.schedule, len(x0), generator, x0.device)
        values = {part.key: part.observe(batch, generator) for part in self.parts}
        eps = randn(x0.shape, generator, x0.dtype, x0.device)
        shown = {part.key: part.drop(self.network, values[part.key], generator) for part in self.parts}
        x_t = diffuse(x0, level, eps)
        prediction = self(x_t, level, self.encode(shown))
        simple = mean_flat((prediction.value - self._target(x_t, level, x0, eps)) ** 2)
        terms = {"loss": simple, "simple": simple}
        if self.variance == "learned":
            terms["vlb"] = hybrid_vlb(prediction, x0, level, self.schedule.previous(level), self._floor, self.bins)
            terms["loss"] = simple + terms["vlb"] * self.schedule.T / 1000
        if drawn and self.training:
            self.level_sampler.update(level, terms["loss"].detach())
        return terms if weight is None else terms | {"loss": weight * terms["loss"]}

    def _target(self, x_t: Tensor, level: NoiseLevel, x0: Tensor, eps: Tensor) -> Tensor:
        if self.predicts == "v":
            return Prediction(x_t, level, eps, "eps").v
        return eps if self.predicts == "eps" else x0

    @cached_property
    def _floor(self) -> float:
        return beta_tilde(self.schedule.level(1), self.schedule.level(0))

    def after_step(self) -> None:
        """The level sampler learns from the step."""
        self.level_sampler.learn()

    def training_state(self) -> dict[str, Tensor]:
        """What the level sampler has learnt."""
        return self.level_sampler.state()

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore ``training_state()``."""
        self.level_sampler.load(dict(state))
