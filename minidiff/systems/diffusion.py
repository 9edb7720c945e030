"""A network read as a denoiser, and the parts of its condition: every denoising system is one of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from ..arguments import Bins, Positive, Randomness, Share, checked, floats
from ..condition import Borrower, Condition, Part, Value, column
from ..data.sets import Rows
from ..denoiser import predict, require_reading
from ..guidance import static_threshold
from ..likelihood import hybrid_vlb, mean_flat
from ..prediction import Prediction
from ..process import beta_tilde, diffuse
from ..random import randn
from ..schedule import ContinuousSchedule, DiscreteSchedule, NoiseLevel
from ..training.levels import LevelSampler, Uniform, level_sampler
from .latents import Latents
from .told import Told, distinct


@checked
@dataclass(frozen=True)
class DenoiserOptions:
    """Options of a system that denoises.

    Attributes:
        predicts: "eps", "v" or "x0".
        variance: "fixed" or "learned".
        drop: Probability with which training replaces a label or caption by the null, per sample.
        level_sampler: Which levels training looks at, see ``training.levels``; the system's own when left out.
        autoencoder: Name of the frozen autoencoder whose latents x is, see ``systems.latents``; of none when left out.
        latent_scale: What latents are multiplied with; measured on the data when left out.

    Raises:
        ValueError: for a name that is not known, or a drop that is no probability.
    """

    predicts: str = "eps"
    variance: str = "fixed"
    drop: Share = 0.0
    level_sampler: Any = None
    autoencoder: str = ""
    latent_scale: Positive | None = None

    def __post_init__(self):
        require_reading(self.predicts, self.variance)
        if not 0 <= self.drop <= 1:
            raise ValueError(f"drop is a probability, got {self.drop}")
        if self.level_sampler is not None:
            level_sampler(self.level_sampler)
        if self.latent_scale is not None and not self.autoencoder:
            raise ValueError("latent_scale is of the latents of an autoencoder: name it, autoencoder=NAME")

    def levels(self, default: LevelSampler | None = None) -> LevelSampler:
        """The level sampler that was named, or a default."""
        return (default or Uniform()) if self.level_sampler is None else level_sampler(self.level_sampler)

    def latents(self) -> Latents | None:
        """The way from pictures to latents and back, where x is a latent."""
        return Latents(self.autoencoder, self.latent_scale) if self.autoencoder else None


@checked
class Diffusion(Told):
    """A denoiser of x given the parts of a condition. Called as a conditional model, ``system(x, level, condition)``.

    Args:
        network: ``(x, time, condition) -> output``, with its shape in ``config``.
        schedule: Noise levels.
        parts: What it reads beside x, in the order of channels and tokens.
        predicts: "eps", "v" or "x0".
        variance: "fixed" or "learned".
        level_sampler: Which levels training looks at; all alike when left out.
        bins: Number of values a pixel can take, for the bound.
        latents: The way from pictures to x and back, where x is a latent.

    Attributes:
        threshold: What keeps x_0 in the range of the data when samples are drawn; None for nothing.
        candidates: Samples that are drawn for each that is kept.

    Raises:
        ValueError: for a network that lacks what a part needs, or takes another number of channels than
            enters, or for two parts of the same key.
    """

    subject = "image"  # the column of data that x_0 is
    threshold = staticmethod(static_threshold)
    candidates = 1

    def __init__(
        self,
        network: nn.Module,
        schedule: DiscreteSchedule | ContinuousSchedule,
        parts: Sequence[Part] = (),
        predicts: str = "eps",
        variance: str = "fixed",
        level_sampler: LevelSampler | None = None,
        bins: Bins = 256,
        latents: Latents | None = None,
    ):
        super().__init__()
        require_reading(predicts, variance)
        if variance == "learned" and level_sampler is not None and not level_sampler.on_schedule:
            raise ValueError(
                f"a learned variance lies between two levels of the schedule, and {type(level_sampler).__name__} draws "
                "levels beside them: choose variance=fixed, or another level_sampler"
            )
        if variance == "learned" and isinstance(schedule, ContinuousSchedule):
            raise ValueError(
                "a learned variance lies between two levels of a table: fixed is accepted in continuous time"
            )
        if predicts == "eps" and isinstance(schedule, DiscreteSchedule) and schedule.alpha_bar[-1] == 0:
            raise ValueError("nothing is left of the image at the last level, where eps says nothing: predicts=v or x0")
        self.network, self.schedule, self.parts = network, schedule, distinct(parts)
        self.predicts, self.variance, self.bins = predicts, variance, bins
        self.level_sampler = level_sampler or Uniform()
        shown = self.shape[0] + sum(part.channels for part in self.parts)
        if network.config.in_channels != shown:
            raise ValueError(f"this system needs {shown} input channels, got {network.config.in_channels}")
        for part in self.parts:
            part.check(network, self.shape)
        self.latents = latents
        if latents is not None:
            self._require_latents()
            self.threshold = None  # a latent has no range

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of x."""
        channels, *area = self.network.out_shape
        return channels // (1 + (self.variance == "learned")), *area

    def _require_latents(self) -> None:
        """What stands beside x has the size of x, and only pictures have latents."""
        if self.subject != "image" or len(self.shape) != 3:
            raise ValueError(f"an autoencoder is for pictures, and this system draws {self.subject}s")
        if shown := [part.key for part in self.parts if part.channels and not part.beside_latents]:
            raise ValueError(
                f"the {' and '.join(shown)} of this system stands beside pictures, and x is a latent: the system "
                "latent has what stands beside latents"
            )

    @property
    def drawn_shape(self) -> tuple[int, ...]:
        """(C, H, W) of what is handed out: of pictures, where x is a latent."""
        return self.shape if self.latents is None else self.latents.shape

    @property
    def borrowers(self) -> tuple[Borrower, ...]:
        """The parts, and the latents, that use frozen networks."""
        return self.parts if self.latents is None else (*self.parts, self.latents)

    def prepare(self, rows: Rows) -> None:
        """Measure the scale of latents."""
        if self.latents is not None:
            self.latents.learn(rows, self.shape[0])

    def forward(self, x: floats("B *S"), level: NoiseLevel, condition: Condition | None = None) -> Prediction:
        """The prediction for x (B, C, H, W); given nothing, where the condition is left out.

        Raises:
            ValueError: for what is no condition, or one that was left out where a part has no null.
        """
        condition = self.null(len(x)) if condition is None else condition
        if not isinstance(condition, Condition):
            raise ValueError(f"a model is asked with what its condition(...) returns, got {type(condition).__name__}")
        if condition.vector is None and (lacking := [part.key for part in self.parts if part.vector]):
            raise ValueError(
                f"this condition lacks the {' and '.join(lacking)} that the system reads: take "
                f"model.condition({lacking[0]}=...), or model.null(n) for nothing"
            )
        return predict(self.network, x, level, condition, self.predicts, self.variance)

    def subjects(self, batch: Mapping[str, Tensor], generator: Randomness = None) -> Tensor:
        """x_0 of a training step."""
        if self.latents is not None:
            return self.latents.observe(batch, self.shape[0], generator)
        return column(batch, self.subject, self.shape)

    def begun(self, drawn: Tensor) -> Tensor:
        """x_0 of what is handed out, (B, *drawn_shape) -> (B, *shape): pictures, encoded where x is a latent."""
        return drawn if self.latents is None else self.latents.inward(drawn)

    def finished(self, x: Tensor) -> Tensor:
        """What was sampled as it is handed out: (B, *shape) -> (B, *drawn_shape)."""
        return x if self.latents is None else self.latents.outward(x)

    def merit(self, drawn: Tensor, values: Mapping[str, Value]) -> Tensor:
        """(B,) how good samples are for what was told, where several candidates are drawn.

        Raises:
            ValueError: for a system that cannot say.
        """
        raise ValueError("this system does not judge what it draws: one candidate is accepted")

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
        x0, drawn, weight = self.subjects(batch, generator), level is None, None
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
