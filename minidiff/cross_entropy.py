"""The cross entropy CE(q || p) of a latent by score matching: weightings, where to draw times, what stands beside it.

For a variance-preserving process and any s, with a denoiser's eps-hat and z_t = alpha_t z_0 + sigma_t eps
(``eq-cross-entropy``; Vahdat et al. 2021, theorem 1),

    CE(q(z_s) || p(z_s)) = int_s^1 w(t)/2 E|eps - eps-hat(z_t, t)|^2 dt + D/2 log(2 pi e sigma_s^2) + E KL_1,

with w = g^2 / sigma^2 and KL_1 = KL(q(z_1 | z_0) || N(0, I)), which is nearly nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .arguments import Count, Natural, NonNegative, Positive, Randomness, checked, floats
from .denoiser import Denoiser
from .process import diffuse
from .random import rand, randn
from .schedule import ContinuousSchedule, GeometricSchedule, NoiseLevel, VPSchedule

Weighting = Literal["ll", "un", "re"]
Proposal = Literal["uniform", "ll_iw", "un_iw", "re_iw"]
Preserving = VPSchedule | GeometricSchedule
HALVINGS = 50  # of an interval of times no longer than one, until it is as short as float64 can tell


@checked
def rate(schedule: ContinuousSchedule, t: floats("B")) -> Tensor:
    """(B,) float64 g^2 / sigma^2 at times t, which is the fall of the log signal-to-noise ratio per time (``eq-rate``).

    Raises:
        ValueError: at a time at which a level is clean data, or pure noise.
    """
    with torch.enable_grad():
        t = t.detach().double().requires_grad_()
        (slope,) = torch.autograd.grad(schedule.log_snr(t).sum(), t)
    if not bool(slope.isfinite().all()):
        raise ValueError(f"the log signal-to-noise ratio is not finite somewhere between t = {t.min()} and {t.max()}")
    return -slope


@checked
def weight(schedule: ContinuousSchedule, t: floats("B"), weighting: Weighting = "ll") -> Tensor:
    """(B,) float64 the weight w(t) (``eq-weightings``; Vahdat et al. 2021, table 1).

    Args:
        schedule: Variance preserving.
        t: Times.
        weighting: "ll" g^2 / sigma^2, that of the likelihood; "un" 1, which asks for pictures; "re" g^2, which
            leans least on nearly clean latents.
    """
    if weighting == "un":
        return torch.ones_like(t, dtype=torch.float64)
    sigma = schedule.level(t).sigma
    return rate(schedule, t) * (sigma**2 if weighting == "re" else 1)


@checked
@dataclass(frozen=True)
class Times:
    """Where an estimate of the integral over t looks (``eq-proposals``).

    Attributes:
        schedule: Variance preserving.
        start: The time s at which the integral begins.
        proposal: "uniform" in t; "ll_iw" uniform in log sigma^2; "re_iw" uniform in sigma^2; "un_iw" with a density
            proportional to alpha^2. Each of the last three has no variance over t under the weighting that it is named
            after, where q is N(0, I) and eps-hat is right.

    Raises:
        ValueError: for a start at which a level is clean data.
    """

    schedule: Preserving
    start: NonNegative
    proposal: Proposal = "uniform"

    def __post_init__(self):
        if not 0 <= self.start < 1 or not self.schedule.level(self.start).sigma > 0:
            raise ValueError(f"an integral begins at a time in [0, 1) with noise at it, got {self.start}")

    def cumulative(self, t: Tensor) -> Tensor:
        """A function of t that is uniformly distributed."""
        if self.proposal == "uniform":
            return t
        if self.proposal == "un_iw":
            return _signal(self.schedule, t)
        variance = self.schedule.alpha_sigma(t)[1] ** 2
        return variance.log() if self.proposal == "ll_iw" else variance

    def density(self, t: floats("B")) -> Tensor:
        """(B,) float64 the density at times t of [start, 1]."""
        t = t.double()
        alpha, sigma = self.schedule.alpha_sigma(t)
        slope = {
            "uniform": lambda: torch.ones_like(t),
            "un_iw": lambda: alpha**2,
            "ll_iw": lambda: alpha**2 * rate(self.schedule, t),
            "re_iw": lambda: alpha**2 * sigma**2 * rate(self.schedule, t),
        }[self.proposal]()
        low, high = self._ends(t.device)
        return slope / (high - low)

    def at(self, share: floats("B")) -> Tensor:
        """(B,) float64 times below which these shares of the law lie: by bisection."""
        low, high = self._ends(share.device)
        wanted = torch.lerp(low, high, share.double())
        below = torch.full_like(wanted, self.start)
        width = 1.0 - self.start
        for _ in range(HALVINGS):
            width /= 2
            below = torch.where(self.cumulative(below + width) < wanted, below + width, below)
        return below + width / 2

    def draw(self, n: Natural, generator: Randomness = None, device=None) -> tuple[Tensor, Tensor]:
        """n times and their densities, (n,) float64 each."""
        t = self.at(rand((n,), generator, torch.float64, device))
        return t, self.density(t)

    def _ends(self, device) -> tuple[Tensor, Tensor]:
        ends = torch.tensor([self.start, 1.0], dtype=torch.float64, device=device)
        return tuple(self.cumulative(ends))


def _signal(schedule: Preserving, t: Tensor) -> Tensor:
    """The integral of alpha^2 from 0 to t."""
    if isinstance(schedule, GeometricSchedule):
        variance = schedule.alpha_sigma(t)[1] ** 2
        return t - (variance - schedule.low) / math.log(schedule.high / schedule.low)
    low, slope = schedule.beta_min, schedule.beta_max - schedule.beta_min
    if slope == 0:
        return -torch.expm1(-low * t) / low
    width, middle = math.sqrt(2 / slope), low / slope  # alpha^2 is a Gaussian in t
    scale = math.exp(low**2 / (2 * slope)) * width * math.sqrt(math.pi) / 2
    return scale * (torch.erf((t + middle) / width) - math.erf(middle / width))


@checked
def entropy_at(dim: Count, sigma: Positive) -> float:
    """D/2 log(2 pi e sigma^2) nats: the entropy of the noise that is in a latent already (``eq-cross-entropy``)."""
    return dim / 2 * math.log(2 * math.pi * math.e * sigma**2)


@checked
def end_kl(schedule: ContinuousSchedule, z: floats("B N *S")) -> Tensor:
    """(B,) KL(q(z_1 | z_0) || N(0, I)) in nats."""
    alpha, sigma = schedule.level(1.0).like(z)
    return (alpha * z).square().flatten(1).sum(1) / 2 + z[0].numel() / 2 * (sigma**2 - 1 - math.log(sigma**2))


@checked
def cross_entropy(
    denoiser: Denoiser,
    z: floats("B N *S"),
    times: Times,
    passes: Count = 1,
    generator: Randomness = None,
) -> Tensor:
    """(B,) an unbiased estimate in nats of each sample's share of CE(q(z_s) || p(z_s)) (``eq-cross-entropy``).

    N(0, I) is a control variate: its own cross entropy is a closed form, ``excess`` is added to it.

    Args:
        denoiser: The prior.
        z: (B, ...) draws of q(z_0).
        times: Schedule, s, and where to look.
        passes: Times and noises that are drawn for each sample.
        generator: For both.
    """
    alpha, sigma = times.schedule.level(times.start).like(z)
    squares = (alpha**2 * z.double().square() + sigma**2).flatten(1).sum(1)
    normal = (squares + z[0].numel() * math.log(2 * math.pi)) / 2
    return normal + excess(denoiser, z, times, passes, generator)


@checked
def excess(
    denoiser: Denoiser,
    z: floats("B N *S"),
    times: Times,
    passes: Count = 1,
    generator: Randomness = None,
) -> Tensor:
    """(B,) an unbiased estimate of the cross entropy with a prior less that with N(0, I), in nats (``eq-excess``).

    Both predictions see the same noise: the nearer the prior is to the Normal, the less the estimate scatters. The
    arguments are those of ``cross_entropy``.
    """
    total = torch.zeros(len(z), dtype=torch.float64, device=z.device)
    for _ in range(passes):
        t, density = times.draw(len(z), generator, z.device)
        level, eps = times.schedule.level(t), randn(z.shape, generator, z.dtype, z.device)
        z_t = diffuse(z, level, eps)
        gap, own = (
            (guess - eps).square().flatten(1).sum(1) for guess in (denoiser(z_t, level).eps, level.like(z)[1] * z_t)
        )
        total = total + weight(times.schedule, t) / density * (gap - own).double() / 2
    return total / passes


@checked
def ode_log_prob(
    denoiser: Denoiser,
    z: floats("B N *S"),
    schedule: ContinuousSchedule,
    start: NonNegative,
    steps: Count = 32,
    probes: Count | None = 1,
    generator: Randomness = None,
) -> Tensor:
    """(B,) log p(z_s) in nats of the probability-flow ODE that a prior stands for (``eq-flow-likelihood``).

    With the log signal-to-noise ratio as time, dz = -sigma/2 (eps - sigma z) d log SNR, by the classical method of
    Runge and Kutta; nothing is divided by what gets small.

    Args:
        denoiser: The prior, differentiable.
        z: (B, ...) latents at the level of time s.
        schedule: Variance preserving.
        start: s.
        steps: Of the method, equal in log SNR; each asks the denoiser four times.
        probes: Vectors of signs that estimate the divergence (Hutchinson 1990), drawn once for all steps; None for the
            divergence itself, which takes as many gradients as there are dimensions.
        generator: For the probes.

    Raises:
        ValueError: for a start at which a level is clean data.
    """
    ends = schedule.log_snr(torch.tensor([start, 1.0], dtype=torch.float64))
    if not bool(ends.isfinite().all()):
        raise ValueError(f"a flow begins at a time with noise at it, got {start}")
    grid = torch.linspace(*ends.tolist(), 2 * steps + 1, dtype=torch.float64)
    levels = [schedule.level(t) for t in _times(schedule, grid, start).tolist()]
    shape = (len(z), *z.shape[1:])
    signs = [rand(shape, generator, z.dtype, z.device).sub(0.5).sign() for _ in range(probes or 0)]
    basis = [unit.reshape(z.shape[1:]).expand(shape) for unit in torch.eye(z[0].numel(), dtype=z.dtype).to(z.device)]

    def slope(z: Tensor, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        """dz and the divergence, per log SNR."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            flow = -level.sigma / 2 * (denoiser(z, level).eps - level.sigma * z)
            vectors = signs if probes else basis
            pulled = [torch.autograd.grad(flow, z, v, retain_graph=True)[0] for v in vectors]
        traces = [(v * g).flatten(1).sum(1) for v, g in zip(vectors, pulled, strict=True)]
        return flow.detach(), torch.stack(traces).sum(0) / (probes or 1)

    z, change = z.detach(), torch.zeros(len(z), dtype=z.dtype, device=z.device)
    for i in range(steps):
        h = (grid[2 * i + 2] - grid[2 * i]).item()
        first, middle, last = levels[2 * i : 2 * i + 3]
        k1, d1 = slope(z, first)
        k2, d2 = slope(z + h / 2 * k1, middle)
        k3, d3 = slope(z + h / 2 * k2, middle)
        k4, d4 = slope(z + h * k3, last)
        z, change = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), change + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
    normal = z.square().flatten(1).sum(1) / 2 + z[0].numel() / 2 * math.log(2 * math.pi)
    return change - normal


def _times(schedule: ContinuousSchedule, log_snr: Tensor, start: float) -> Tensor:
    """Times of [start, 1] with these log signal-to-noise ratios."""
    below, width = torch.full_like(log_snr, start), 1.0 - start
    for _ in range(HALVINGS):
        width /= 2
        below = torch.where(schedule.log_snr(below + width) > log_snr, below + width, below)
    return (below + width / 2).clamp(max=1.0)
