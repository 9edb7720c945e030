"""Noise schedules: they answer questions about noise levels and hold no other state.

A level is x_t = alpha x_0 + sigma eps (equation eq-marginal of lesson 01). Time runs from noise to data, and every
chain of levels ends at ``DATA``, so consecutive pairs always telescope, whatever the number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from numbers import Integral
from typing import ClassVar

import torch
from torch import Tensor

from .arguments import (
    WHOLE,
    Count,
    Finite,
    Inside,
    Natural,
    NonNegative,
    Positive,
    Randomness,
    checked,
    floats,
    numbers,
)
from .random import rand, randint


def broadcast(value: float | Tensor, x: Tensor) -> float | Tensor:
    """Shape a scalar or a (B,) tensor so that it multiplies x of shape (B, ...), in x's dtype and device.

    Raises:
        ValueError: for another number of entries than x has samples.
    """
    if not isinstance(value, Tensor) or value.ndim == 0:
        return float(value)
    if value.ndim != 1 or len(value) not in (1, len(x)):
        raise ValueError(f"the noise level has {len(value)} entries, x has a batch of {len(x)}")
    return value.to(x).reshape(-1, *[1] * (x.ndim - 1))


@checked
@dataclass(frozen=True)
class NoiseLevel:
    """One noise level, x_t = alpha x_0 + sigma eps: floats, or (B,) tensors with one entry per sample.

    Attributes:
        alpha: Signal scale.
        sigma: Noise standard deviation.
        time: What the network reads (the original index of a discrete schedule; -1 is clean data).

    Raises:
        ValueError: for what is negative or NaN; of tensors on a GPU nothing is read, which would make every step wait.
    """

    accepted: ClassVar[str] = "a NoiseLevel, which of a time is schedule.level(t)"

    alpha: NonNegative | floats("B") | floats("")
    sigma: NonNegative | floats("B") | floats("")
    time: Finite | numbers("B") | numbers("")

    def __post_init__(self):
        for name in ("alpha", "sigma"):
            value = getattr(self, name)
            if isinstance(value, Tensor) and value.device.type == "cpu" and not bool((value >= 0).all()):
                raise ValueError(f"NoiseLevel: {name} must not be negative or NaN, got {value}")

    def like(self, x: Tensor) -> tuple[float | Tensor, float | Tensor]:
        """Alpha and sigma shaped to multiply x of shape (B, ...).

        Raises:
            ValueError: when the level has one entry per sample and x another batch size.
        """
        return broadcast(self.alpha, x), broadcast(self.sigma, x)

    def times(self, x: Tensor) -> Tensor:
        """(B,) what the network is told of each sample of x (B, ...).

        Raises:
            ValueError: when the level has one entry per sample and x another batch size.
        """
        time = torch.as_tensor(self.time, device=x.device)
        if time.ndim and len(time) not in (1, len(x)):
            raise ValueError(f"the noise level has {len(time)} entries, x has a batch of {len(x)}")
        return time.expand(len(x))

    @property
    def log_snr(self) -> float | Tensor:
        """log(alpha^2 / sigma^2); infinite for clean data (Kingma et al. 2021, section 3.1)."""
        alpha, sigma = (torch.as_tensor(v, dtype=torch.float64) for v in (self.alpha, self.sigma))
        value = 2 * (alpha.log() - sigma.log())
        return value if value.ndim else value.item()

    @property
    def snr(self) -> float | Tensor:
        """alpha^2 / sigma^2."""
        log_snr = self.log_snr
        return log_snr.exp() if isinstance(log_snr, Tensor) else math.exp(log_snr)

    def repeat(self, times: Count) -> NoiseLevel:
        """The level of a batch that repeats itself ``times`` times; a scalar level serves any batch."""
        if not isinstance(self.alpha, Tensor) or not self.alpha.ndim:
            return self
        return NoiseLevel(self.alpha.repeat(times), self.sigma.repeat(times), self.time.repeat(times))


DATA = NoiseLevel(1.0, 0.0, -1)


def _steps_in_range(n: int, most: float) -> None:
    if not isinstance(n, Integral) or isinstance(n, bool) or not 1 <= n <= most:
        raise ValueError(f"the number of steps must be an integer from 1 to {most}, got {n!r}")


@checked
class DiscreteSchedule:
    """A table of T noise levels given by betas, alpha_bar_t = prod (1 - beta) (Ho et al. 2020, section 2).

    Args:
        betas: (T,) variances of the one-step kernels, each in (0, 1). The last may be 1: nothing is left of the image
            then, see ``zero_terminal_snr``.
    """

    def __init__(self, betas: floats() | Sequence[float]):
        betas = torch.as_tensor(betas, dtype=torch.float64)
        if betas.ndim != 1 or not len(betas) or not bool(((betas > 0) & (betas <= 1)).all()) or (betas[:-1] == 1).any():
            raise ValueError(
                f"betas must be a vector of numbers inside (0, 1), the last perhaps 1, got shape {tuple(betas.shape)}"
            )
        self.betas = betas

    @cached_property
    def alpha_bar(self) -> Tensor:
        """(T,) float64, the product of (1 - beta) up to and including t."""
        return (1 - self.betas).cumprod(0)

    @property
    def T(self) -> int:
        """Number of noise levels."""
        return len(self.betas)

    def level(self, t: int | Tensor) -> NoiseLevel:
        """The level of time t, an integer or a (B,) tensor of integers in -1 ... T-1, where -1 is clean data.

        Raises:
            ValueError: when t is not an integer inside the schedule.
        """
        given = torch.as_tensor(t)
        times = given.long()  # in unsigned types -1 would be the largest number
        if given.dtype not in WHOLE or bool(((times < -1) | (times >= self.T)).any()):
            raise ValueError(f"t must be an integer from -1 (clean data) to {self.T - 1}, got {t}")
        if times.ndim == 0 and times == -1:
            return DATA
        alpha_bar = torch.where(times < 0, 1.0, self.alpha_bar.to(times.device)[times.clamp(min=0)])
        alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        return NoiseLevel(alpha, sigma, times) if times.ndim else NoiseLevel(alpha.item(), sigma.item(), int(times))

    def previous(self, level: NoiseLevel) -> NoiseLevel:
        """The level one step closer to the data."""
        return self.level(level.time - 1)

    def random_level(self, batch: Natural, generator: Randomness = None, device=None) -> NoiseLevel:
        """One level per sample, t uniform."""
        return self.level(randint(self.T, batch, generator, device))

    def log_snr(self, t: int | Tensor) -> float | Tensor:
        """log(alpha^2 / sigma^2) at time t."""
        return self.level(t).log_snr

    def levels(self, n: int | None = None, spacing: str | Sequence[int] = "even") -> list[NoiseLevel]:
        """n + 1 levels from noise to data; each keeps the time that the network was trained with.

        Args:
            n: Number of steps, 1 ... T (all of them when left out).
            spacing: "even" (first and last time kept, rounded fractional stride), "ddim" (integer stride from 0, as
                in Song et al. 2021a), "fast27" (GLIDE's upsampler: sections of 10, 10, 3, 2, 2 steps, but from T - 3
                instead of T - 1) or a list with the number of steps of each equal section, data end first (Nichol and
                Dhariwal 2021, section 4).

        Raises:
            ValueError: when n is outside 1 ... T, or no such spacing exists.
        """
        if not isinstance(spacing, str) or spacing == "fast27":
            times = _fast27(self.T) if spacing == "fast27" else _sections(self.T, list(spacing))
            if n is not None and n != len(times):
                raise ValueError(f"n is {n}, but the spacing {spacing!r} has {len(times)} steps")
        else:
            n = self.T if n is None else n
            _steps_in_range(n, self.T)
            if spacing == "even":
                times = [self.T - 1] if n == 1 else _even(self.T, n)
            elif spacing == "ddim":
                times = _integer_stride(self.T, n)
            else:
                raise ValueError(f"spacing must be 'even', 'ddim', 'fast27' or a list of sections, got {spacing!r}")
        chain = self.level(torch.tensor(times[::-1]))
        columns = (column.tolist() for column in (chain.alpha, chain.sigma, chain.time))
        return [NoiseLevel(*row) for row in zip(*columns, strict=True)] + [DATA]


@checked
def respaced(
    schedule: DiscreteSchedule | ContinuousSchedule, steps: int | str | Sequence[NoiseLevel]
) -> Sequence[NoiseLevel]:
    """The chain of levels that a number of steps, or ADM's spelling of one, stands for.

    Args:
        schedule: The schedule that the network was trained with.
        steps: 250 or "250" evenly, "ddim25" with an integer stride from 0, "90,60,60,20,20": the steps of each equal
            section, data end first; "fast27", those of GLIDE's upsampler; or a chain of one's own, from noise to data.

    Raises:
        ValueError: for anything else, or a number of steps that the schedule cannot give.
    """
    if not isinstance(steps, str):
        return steps if isinstance(steps, Sequence) else schedule.levels(steps)
    if not isinstance(schedule, DiscreteSchedule) and not steps.isdecimal():
        raise ValueError(f"steps of a continuous schedule are a number, got {steps!r}")
    return schedule.levels(**read_steps(steps))


def read_steps(steps: str) -> dict:
    """The arguments of ``DiscreteSchedule.levels`` that ADM's spelling of a number of steps stands for.

    Raises:
        ValueError: for anything else.
    """
    if steps == "fast27":
        return {"spacing": steps}
    text = steps.removeprefix("ddim")
    if not all(count.isdecimal() for count in text.split(",")) or (text != steps and "," in text):
        accepted = "a number, '250', 'ddim25', 'fast27' or sections such as '90,60,60,20,20'"
        raise ValueError(f"steps must be {accepted}, got {steps!r}")
    if text != steps:
        return {"n": int(text), "spacing": "ddim"}
    counts = [int(count) for count in text.split(",")]
    return {"spacing": counts} if "," in text else {"n": counts[0]}


def _even(size: int, n: int) -> list[int]:
    stride = (size - 1) / (n - 1) if n > 1 else 1
    return [round(t) for t in accumulate([0.0] + [stride] * (n - 1))]  # added up as in ADM: halves round alike


def _integer_stride(T: int, n: int) -> list[int]:
    for stride in range(1, max(T, 2)):  # a stride of T would take one step, from the cleanest time
        if len(range(0, T, stride)) == n:
            return list(range(0, T, stride))
    raise ValueError(f"no integer stride divides {T} times into {n} steps; use spacing='even'")


def _fast27(T: int) -> list[int]:
    return [*_sections(T, [10, 10, 3, 2, 2])[:-1], T - 3]


def _sections(T: int, counts: list[int]) -> list[int]:
    if not counts or any(not isinstance(c, Integral) or c < 1 for c in counts) or len(counts) > T:
        raise ValueError(f"sections must be positive integers, at most {T} of them, got {counts}")
    times, start = [], 0
    for i, count in enumerate(counts):
        size = T // len(counts) + (i < T % len(counts))
        if count > size:
            raise ValueError(f"a section of {size} times cannot hold {count} steps")
        times += [start + t for t in _even(size, count)]
        start += size
    return times


def _check_length(T: int) -> None:
    if not isinstance(T, Integral) or T < 1:
        raise ValueError(f"T must be a positive integer, got {T!r}")


@checked
def linear_schedule(T: Count = 1000, start: Inside | None = None, end: Inside | None = None) -> DiscreteSchedule:
    """Betas linear from start to end (Ho et al. 2020).

    When left out they are 1e-4 and 0.02 for T = 1000, scaled by 1000 / T otherwise, as in ADM.

    Raises:
        ValueError: for betas outside (0, 1), which the scaled ones reach when T is small.
    """
    _check_length(T)
    start, end = 1e-4 * 1000 / T if start is None else start, 0.02 * 1000 / T if end is None else end
    return DiscreteSchedule(torch.linspace(start, end, T, dtype=torch.float64))


@checked
def sqrt_linear_schedule(T: Count = 1000, start: Inside = 0.00085, end: Inside = 0.012) -> DiscreteSchedule:
    """Betas whose square roots are linear (latent diffusion's "linear"; Stable Diffusion's values by default)."""
    _check_length(T)
    return DiscreteSchedule(torch.linspace(start**0.5, end**0.5, T, dtype=torch.float64) ** 2)


@checked
def zero_terminal_snr(schedule: DiscreteSchedule) -> DiscreteSchedule:
    """The schedule moved so that nothing is left of the image at its last level (Lin et al. 2024, algorithm 1).

    alpha is moved on a line that keeps its first value and brings its last to zero. What predicts eps says nothing of
    x_0 there: a network for it predicts v or x0. Chains have to begin at that level.

    Raises:
        ValueError: for a schedule of one level.
    """
    if schedule.T < 2:
        raise ValueError("a schedule of one level has no first and last value to keep and to move")
    alpha = schedule.alpha_bar.sqrt()
    alpha_bar = ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])).square()
    before = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    return DiscreteSchedule(1 - alpha_bar / before)


@checked
def clipped_cosine_schedule(T: Count = 1000, offset: NonNegative = 0.008, most: Inside = 0.999) -> DiscreteSchedule:
    """alpha_bar = cos^2, with betas clipped at ``most`` (Nichol and Dhariwal 2021, equation 17)."""
    _check_length(T)
    t = torch.linspace(0, 1, T + 1, dtype=torch.float64)
    alpha_bar = torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2
    return DiscreteSchedule((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=most))


@checked
class ContinuousSchedule:
    """Noise levels for every t in [0, 1], from data to noise."""

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and sigma at float64 t."""
        raise NotImplementedError

    def network_time(self, t: Tensor, sigma: Tensor) -> Tensor:
        """What the network reads: 1000 t, so that continuous and discrete times have one scale."""
        return 1000 * t

    def times(self, n: Count) -> list[float]:
        """The n times at which a chain of n steps asks the network."""
        return [1 - i / n for i in range(n)]

    def level(self, t: float | Tensor) -> NoiseLevel:
        """The level of time t, a number or a (B,) tensor in [0, 1].

        Raises:
            ValueError: when t lies outside [0, 1].
        """
        times = torch.as_tensor(t, dtype=torch.float64)
        if not bool(((times >= 0) & (times <= 1)).all()):
            raise ValueError(f"t must lie in [0, 1], got {t}")
        alpha, sigma = self.alpha_sigma(times)
        time = self.network_time(times, sigma)
        return NoiseLevel(alpha, sigma, time) if times.ndim else NoiseLevel(alpha.item(), sigma.item(), time.item())

    def log_snr(self, t: float | Tensor) -> float | Tensor:
        """log(alpha^2 / sigma^2) at time t."""
        return self.level(t).log_snr

    def levels(self, n: int) -> list[NoiseLevel]:
        """n + 1 levels from noise to data.

        Raises:
            ValueError: when n < 1.
        """
        _steps_in_range(n, math.inf)
        return [self.level(t) for t in self.times(n)] + [DATA]

    def random_level(self, batch: Natural, generator: Randomness = None, device=None) -> NoiseLevel:
        """One level per sample, t uniform."""
        return self.level(rand((batch,), generator, dtype=torch.float64, device=device))


@checked
@dataclass(frozen=True)
class VPSchedule(ContinuousSchedule):
    """Variance preserving: d log alpha = -beta(t)/2 dt with beta linear in t (Song et al. 2021b, equation 33)."""

    beta_min: NonNegative = 0.1
    beta_max: Positive = 20.0

    def __post_init__(self):
        if self.beta_min > self.beta_max:
            raise ValueError(f"beta_min <= beta_max is accepted, got {self.beta_min} and {self.beta_max}")

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and sigma, alpha^2 + sigma^2 = 1."""
        log_alpha = -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min
        return log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()


@checked
@dataclass(frozen=True)
class GeometricSchedule(ContinuousSchedule):
    """Variance preserving, log sigma^2 linear in t from ``low`` to ``high`` (Vahdat et al. 2021, section 3.4)."""

    low: Inside = 3e-5
    high: Inside = 0.999

    def __post_init__(self):
        if not self.low < self.high:
            raise ValueError(f"low < high is accepted, got {self.low} and {self.high}")

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and sigma, alpha^2 + sigma^2 = 1."""
        log_variance = math.log(self.low) + t * math.log(self.high / self.low)
        return (-torch.expm1(log_variance)).sqrt(), (log_variance / 2).exp()


@checked
@dataclass(frozen=True)
class CosineSchedule(ContinuousSchedule):
    """alpha = cos, sigma = sin of an angle linear in t, log-SNR truncated to +-``most`` (Salimans and Ho 2022)."""

    most: Positive = 15.0

    def __post_init__(self):
        if self.most > 1000:
            raise ValueError(f"a log-SNR of at most 1000 is accepted, got {self.most}")

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and sigma, alpha^2 + sigma^2 = 1."""
        first, last = math.atan(math.exp(-0.5 * self.most)), math.atan(math.exp(0.5 * self.most))
        angle = first + t * (last - first)
        return angle.cos(), angle.sin()


@checked
@dataclass(frozen=True)
class EDMSchedule(ContinuousSchedule):
    """Variance exploding, alpha = 1, sigma^(1/rho) linear in t (Karras et al. 2022, equation 5)."""

    sigma_min: Positive = 0.002
    sigma_max: Positive = 80.0
    rho: Positive = 7.0

    def __post_init__(self):
        if not self.sigma_min < self.sigma_max:
            raise ValueError(f"sigma_min < sigma_max is accepted, got {self.sigma_min} and {self.sigma_max}")

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha = 1 and sigma."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return torch.ones_like(t), (low + t * (high - low)) ** self.rho

    def network_time(self, t: Tensor, sigma: Tensor) -> Tensor:
        """c_noise = log(sigma) / 4 (Karras et al. 2022, table 1)."""
        return sigma.log() / 4

    def times(self, n: Count) -> list[float]:
        """The last network call is at sigma_min."""
        return [1 - i / max(n - 1, 1) for i in range(n)]


@checked
def vp_schedule(beta_min: NonNegative = 0.1, beta_max: Positive = 20.0) -> VPSchedule:
    """The continuous variance-preserving schedule."""
    return VPSchedule(beta_min, beta_max)


@checked
def geometric_schedule(low: Inside = 3e-5, high: Inside = 0.999) -> GeometricSchedule:
    """The continuous variance-preserving schedule whose log sigma^2 is linear in t."""
    return GeometricSchedule(low, high)


@checked
def cosine_schedule(most: Positive = 15.0) -> CosineSchedule:
    """The continuous cosine schedule, log-SNR from ``most`` to -``most``."""
    return CosineSchedule(most)


@checked
def edm_schedule(sigma_min: Positive = 0.002, sigma_max: Positive = 80.0, rho: Positive = 7.0) -> EDMSchedule:
    """The variance-exploding schedule of EDM."""
    return EDMSchedule(sigma_min, sigma_max, rho)
