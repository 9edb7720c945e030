"""The variational bound, term by term, in bits per dimension."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .arguments import Bins, Finite, NonNegative, Randomness, checked, floats, require_broadcast
from .denoiser import Denoiser
from .prediction import Prediction
from .process import beta_tilde_floor, diffuse, posterior_mean, reverse_log_variance
from .random import randn
from .schedule import NoiseLevel


@checked
def mean_flat(x: floats("B N *S")) -> Tensor:
    """Mean over all axes but the first."""
    return x.flatten(1).mean(1)


@checked
def gaussian_kl(
    mean1: float | floats(), log_variance1: float | floats(), mean2: float | floats(), log_variance2: float | floats()
) -> Tensor:
    """KL(N1 || N2) of scalar Gaussians, elementwise, in nats (``eq-gaussian-kl``). Arguments broadcast."""
    arguments = (mean1, log_variance1, mean2, log_variance2)
    require_broadcast(*arguments)
    m1, v1, m2, v2 = (a if isinstance(a, Tensor) else torch.tensor(a, dtype=torch.float64) for a in arguments)
    return 0.5 * (v2 - v1 + torch.exp(v1 - v2) - 1 + (m1 - m2) ** 2 * torch.exp(-v2))


@checked
def discretized_gaussian_log_likelihood(
    x: floats(), mean: floats(), log_variance: Finite | floats(), bins: Bins = 256
) -> Tensor:
    """log of the Gaussian's mass on the bin around x, in nats, elementwise (``eq-decoder``; Ho et al. 2020, eq. 13).

    The values of x are ``bins`` equally spaced numbers from -1 to 1; the outermost bins reach to infinity.
    """
    require_broadcast(x, mean, log_variance)
    std = torch.exp(0.5 * torch.as_tensor(log_variance, dtype=mean.dtype, device=mean.device))
    half = 1 / (bins - 1)
    upper, lower = (x + half - mean) / std, (x - half - mean) / std
    infinity = torch.full_like(upper, math.inf)
    upper = torch.where(x > 1 - half, infinity, upper)
    lower = torch.where(x < -1 + half, -infinity, lower)
    # symmetric in the sign: work in the lower tail, where the normal distribution function keeps its digits
    swap = lower > 0
    upper, lower = torch.where(swap, -lower, upper), torch.where(swap, -upper, lower)
    log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    gap = (log_lower - log_upper).clamp(max=-1e-12)
    return log_upper + torch.log(-torch.expm1(gap))


@checked
@dataclass(frozen=True)
class VLB:
    """The variational bound of each sample, in bits per dimension.

    Attributes:
        prior: (B,) KL(q(x_T | x_0) || N(0, I)).
        steps: (n-1, B) KL of each reverse step but the last, from noise to data.
        decoder: (B,) -log p(x_0 | x_1).
    """

    prior: Tensor
    steps: Tensor
    decoder: Tensor

    @property
    def total(self) -> Tensor:
        """(B,) the bound."""
        return self.prior + self.steps.sum(0) + self.decoder


@checked
def prior_kl(x0: floats("B N *S"), level: NoiseLevel) -> Tensor:
    """(B,) KL(q(x_T | x_0) || p(x_T)) in bits/dim, p(x_T) = N(0, (alpha^2 + sigma^2) I) (``eq-vlb``)."""
    alpha, sigma = level.like(x0)
    variance = torch.as_tensor(alpha**2 + sigma**2, dtype=x0.dtype, device=x0.device)
    noise = torch.as_tensor(sigma**2, dtype=x0.dtype, device=x0.device)
    kl = gaussian_kl(alpha * x0, noise.log(), torch.zeros_like(x0), variance.log())
    return mean_flat(kl) / math.log(2)


@checked
def step_kl(
    prediction: Prediction, x0: floats("B N *S"), t: NoiseLevel, s: NoiseLevel, variance: str, floor: NonNegative
) -> Tensor:
    """(B,) KL(q(x_s | x_t, x_0) || p(x_s | x_t)) in bits/dim (``eq-vlb``; Ho et al. 2020, equation 5)."""
    x_t = prediction.x
    true_log_variance = reverse_log_variance(prediction, t, s, "beta_tilde", floor)
    kl = gaussian_kl(
        posterior_mean(x_t, x0, t, s),
        torch.as_tensor(true_log_variance, dtype=x0.dtype, device=x0.device),
        posterior_mean(x_t, prediction.x0, t, s),
        torch.as_tensor(reverse_log_variance(prediction, t, s, variance, floor), dtype=x0.dtype, device=x0.device),
    )
    return mean_flat(kl.expand_as(x0)) / math.log(2)


@checked
def decoder_nll(
    prediction: Prediction,
    x0: floats("B N *S"),
    t: NoiseLevel,
    s: NoiseLevel,
    variance: str,
    floor: NonNegative,
    bins: Bins = 256,
) -> Tensor:
    """(B,) -log p(x_0 | x_t) of the last step in bits/dim (``eq-decoder``)."""
    log_variance = reverse_log_variance(prediction, t, s, variance, floor)
    mean = posterior_mean(prediction.x, prediction.x0, t, s)
    return -mean_flat(discretized_gaussian_log_likelihood(x0, mean, log_variance, bins)) / math.log(2)


@checked
@torch.no_grad()
def vlb_terms(
    denoiser: Denoiser,
    x0: floats("B N *S"),
    levels: Sequence[NoiseLevel],
    generator: Randomness = None,
    variance: str | None = None,
    bins: Bins = 256,
) -> VLB:
    """A one-draw-per-step estimate of the variational bound (``eq-vlb``).

    Args:
        denoiser: Unclipped denoiser; the bound is only a bound for what the sampler would use.
        x0: (B, ...) clean data, its values among ``bins`` equally spaced numbers from -1 to 1.
        levels: From noise to data.
        generator: For the noise.
        variance: "beta_tilde", "beta" or "learned"; when left out, "learned" of a denoiser that predicts its variance,
            and "beta_tilde" of any other.
        bins: Number of values a pixel can take (256 for 8-bit images).

    Raises:
        ValueError: when x0 lies outside [-1, 1], or levels has fewer than two entries or does not end in clean data.
    """
    if len(levels) < 2:
        raise ValueError(f"a chain needs at least two levels, got {len(levels)}")
    if levels[-1].sigma != 0:
        raise ValueError(f"the chain must end in clean data, this one ends at sigma = {levels[-1].sigma}")
    if not bool((x0.abs() <= 1).all()):
        raise ValueError(f"x0 must lie in [-1, 1], got values from {x0.min():.4g} to {x0.max():.4g}")
    floor, steps = beta_tilde_floor(levels), []
    for t, s in pairwise(levels):
        x_t = diffuse(x0, t, randn(x0.shape, generator, x0.dtype, x0.device))
        prediction = denoiser(x_t, t)
        kind = variance or ("beta_tilde" if prediction.fraction is None else "learned")
        if s.sigma > 0:
            steps.append(step_kl(prediction, x0, t, s, kind, floor))
    decoder = decoder_nll(prediction, x0, t, s, kind, floor, bins)
    stacked = torch.stack(steps) if steps else x0.new_zeros(0, len(x0))
    return VLB(prior_kl(x0, levels[0]), stacked, decoder)


@checked
def hybrid_vlb(
    prediction: Prediction, x0: floats("B N *S"), t: NoiseLevel, s: NoiseLevel, floor: NonNegative, bins: Bins = 256
) -> Tensor:
    """(B,) the bound's term of each sample's own step, the mean detached so that it trains the variance alone.

    Nichol and Dhariwal 2021, equation 16 (L_hybrid): KL, or the decoder's term where s is clean data.
    """
    frozen = prediction.with_x0(prediction.x0.detach())
    # beta-tilde is floored in both, so the KL of a last step is finite; it is replaced by the decoder's term
    kl = step_kl(frozen, x0, t, s, "learned", floor)
    nll = decoder_nll(frozen, x0, t, s, "learned", floor, bins)
    return torch.where(torch.as_tensor(s.sigma, device=kl.device) == 0, nll, kl)
