"""LSGM: encoder, decoder and a prior by diffusion, trained as one model on one bound (Vahdat et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from ..arguments import Bins, Count, Randomness, Share, checked, floats
from ..condition import Condition, column
from ..cross_entropy import Proposal, Times, Weighting, end_kl, entropy_at, excess, ode_log_prob, weight
from ..likelihood import discretized_gaussian_log_likelihood
from ..models.score_vae import ScoreVAE
from ..models.vae import DiagonalGaussian
from ..pixels import quantize
from ..prediction import Prediction
from ..process import diffuse
from ..random import randn
from ..schedule import NoiseLevel, geometric_schedule, vp_schedule
from .diffusion import Diffusion
from .registry import system

STAGES = ("vae", "prior", "joint")
SDES = {"vp": vp_schedule, "geometric": geometric_schedule}


@checked
@dataclass(frozen=True)
class LSGMOptions:
    """Options of a latent score-based model.

    Attributes:
        trains: "vae", encoder and decoder with the prior N(0, I), which is stage 0; "prior", the prior alone; "joint",
            all three.
        sde: "vp", beta linear from .1 to 20, or "geometric", log sigma^2 linear.
        time_eps: Time of the least noise: the latent of the model is q(z_0 | x) with as much noise as there is then.
        weighting: Of the prior's own loss, see ``cross_entropy.weight``; the encoder's is always that of the bound.
        proposal: Where times are drawn, see ``cross_entropy.Times``; the same times serve both.

    Raises:
        ValueError: for a name that is not known.
    """

    trains: str = "joint"
    sde: str = "vp"
    time_eps: Share = 0.01
    weighting: str = "ll"
    proposal: str = "ll_iw"

    def __post_init__(self):
        known = {"trains": STAGES, "sde": SDES, "weighting": get_args(Weighting), "proposal": get_args(Proposal)}
        for name, names in known.items():
            if getattr(self, name) not in names:
                raise ValueError(f"{name} is one of {', '.join(names)}, got {getattr(self, name)!r}")


@checked
@dataclass(frozen=True)
class Bound:
    """The three terms of the variational bound of each image, in nats (``eq-three-terms``).

    Attributes:
        reconstruction: (B,) -log p(x | z).
        negative_entropy: (B,) E log q(z | x).
        cross_entropy: (B,) -E log p(z).
        dims: Numbers of an image.
    """

    reconstruction: floats("B")
    negative_entropy: floats("B")
    cross_entropy: floats("B")
    dims: Count

    @property
    def total(self) -> Tensor:
        """(B,) at least -log p(x), on average over draws."""
        return self.reconstruction + self.negative_entropy + self.cross_entropy

    @property
    def bits(self) -> Tensor:
        """(B,) the same in bits per dimension."""
        return self.total / (self.dims * math.log(2))


@checked
class LSGM(Diffusion):
    """The prior is the denoiser; what it draws is a latent, which the decoder makes an image of.

    Args:
        network: Encoder, decoder and prior.
        options: See there.
        bins: Values that a pixel can take.
    """

    threshold = None

    def __init__(self, network: ScoreVAE, options: LSGMOptions, bins: Bins = 256):
        super().__init__(network, SDES[options.sde](), bins=bins)
        self.options = options
        self.times = Times(self.schedule, options.time_eps, options.proposal)
        frozen = {"vae": (network.prior, network.time_embed), "prior": (network.encoder, network.decoder), "joint": ()}
        for part in frozen[options.trains]:
            part.requires_grad_(False)
        if options.trains == "vae" and network.mixing is not None:
            network.mixing.requires_grad_(False)

    def forward(self, x: floats("B D"), level: NoiseLevel, condition: Condition | None = None) -> Prediction:
        """The prior's prediction for latents (B, D): N(0, I)'s own, mixed with the network's (``eq-mixed``)."""
        own = super().forward(x, level, condition)
        sigma = level.like(x)[1]
        if self.options.trains == "vae":
            return own.with_eps(sigma * x)
        if self.network.mixing is None:
            return own
        return own.with_eps(torch.lerp(sigma * x, own.value, self.network.mixing.sigmoid()))

    def chain(self, n: Count) -> list[NoiseLevel]:
        """n + 1 levels from noise to the model's own latent, which has noise in it, equal steps in time."""
        times = torch.linspace(1, self.options.time_eps, n + 1, dtype=torch.float64)
        return [self.schedule.level(t) for t in times.tolist()]

    def encode_images(self, x: floats("B C H W")) -> tuple[DiagonalGaussian, DiagonalGaussian]:
        """q(z_0 | x), and q(z | x) of the model's latent z, which has the least noise in it."""
        clean = self.network.encode(x)
        alpha, sigma = self.schedule.level(self.options.time_eps).like(clean.mean)
        return clean, DiagonalGaussian(alpha * clean.mean, (alpha**2 * clean.log_variance.exp() + sigma**2).log())

    def log_prob_given(self, x: floats("B C H W"), z: floats("B D")) -> Tensor:
        """(B,) log p(x | z) in nats, of pixels that take one of ``bins`` values."""
        law = self.network.decode(z)
        return discretized_gaussian_log_likelihood(x, law.mean, law.log_variance, self.bins).flatten(1).sum(1)

    def subjects(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Latents z_0, the means."""
        return self.network.encode(quantize(column(batch, "image", self.network.config.image_shape), self.bins)).mean

    def finished(self, x: Tensor) -> Tensor:
        """(B, D) latents -> (B, C, H, W), the means of the decoder."""
        return self.network.decode(x).mean.clamp(-1, 1)

    def loss(
        self, batch: Mapping[str, Tensor], generator: Randomness = None, level: NoiseLevel | None = None
    ) -> dict[str, Tensor]:
        """The bound (``eq-three-terms``), its gradients routed (``eq-routing``).

        The prior's parameters get the gradient of their own weighting, the encoder that of the bound: one backward
        pass, in which the gradient that leaves the prior by z_t is multiplied by the ratio of the weights.

        Args:
            batch: Columns of data by name.
            generator: One generator, or a list with one per sample.
            level: Not accepted: times are drawn.

        Returns:
            (B,) "loss", and in nats "bound", "reconstruction", "negative_entropy", "cross_entropy".
        """
        if level is not None:
            raise ValueError("the times of this loss are drawn by its proposal; no level is accepted")
        x = quantize(column(batch, "image", self.network.config.image_shape), self.bins)
        clean, law = self.encode_images(x)
        z_0 = clean.sample(generator)
        alpha, sigma = self.schedule.level(self.options.time_eps).like(z_0)
        z = alpha * z_0 + sigma * randn(z_0.shape, generator, z_0.dtype, z_0.device)
        reconstruction, negative = -self.log_prob_given(x, z), -law.entropy()
        if self.options.trains == "vae":
            cross = law.kl() + law.entropy()
            loss = reconstruction + negative + cross
        else:
            cross, routed = self._cross_entropy(z_0 if self.options.trains == "joint" else z_0.detach(), generator)
            loss = routed if self.options.trains == "prior" else reconstruction + negative + routed
        return {
            "loss": loss,
            "bound": reconstruction + negative + cross,
            "reconstruction": reconstruction,
            "negative_entropy": negative,
            "cross_entropy": cross,
        }

    def _cross_entropy(self, z: Tensor, generator: Randomness) -> tuple[Tensor, Tensor]:
        """(B,) one-draw estimates of the cross entropy, and of what has the gradients of training."""
        t, density = self.times.draw(len(z), generator, z.device)
        of = lambda name: (weight(self.schedule, t, name) / density / 2).to(z)
        bound, own = of("ll"), of(self.options.weighting)
        level, eps = self.schedule.level(t), randn(z.shape, generator, z.dtype, z.device)
        z_t = diffuse(z, level, eps)
        ratio = (bound / own)[:, None]
        routed = z_t.detach() + ratio * (z_t - z_t.detach())
        gap = (self(routed, level).eps - eps).square().sum(1)
        end = end_kl(self.schedule, z)
        beside = entropy_at(z.shape[1], self.schedule.level(self.options.time_eps).sigma) + end
        return (bound * gap + beside).detach(), own * gap + end

    @torch.no_grad()
    def bound(self, x: floats("B C H W"), passes: Count = 8, generator: Randomness = None) -> Bound:
        """The bound of images, its cross entropy that with N(0, I) and what score matching says of the rest.

        Args:
            x: (B, C, H, W) in [-1, 1].
            passes: Latents, times and noises that are drawn for each image.
            generator: For all of them.
        """
        clean, law = self.encode_images(x)
        reconstruction = torch.stack([-self.log_prob_given(x, law.sample(generator)) for _ in range(passes)]).mean(0)
        cross = law.kl() + law.entropy()
        if self.options.trains != "vae":
            more = [excess(self, clean.sample(generator), self.times, 1, generator) for _ in range(passes)]
            cross = cross + torch.stack(more).mean(0).to(x)
        return Bound(reconstruction, -law.entropy(), cross, x[0].numel())

    @torch.no_grad()
    def log_weights(
        self, x: floats("B C H W"), draws: Count = 1, steps: Count = 32, generator: Randomness = None
    ) -> Tensor:
        """(draws, B) log p(x, z) / q(z | x) in nats, log p(z) by the flow (``eq-importance-bound``).

        The mean over draws is at most log p(x) on average, and so is logsumexp - log(draws), which is larger.

        Args:
            x: (B, C, H, W) in [-1, 1].
            draws: Latents for each image.
            steps: Of the flow's solver.
            generator: For latents and probes.
        """
        law = self.encode_images(x)[1]
        rows = []
        for _ in range(draws):
            z = law.sample(generator)
            rows.append(self.log_prob_given(x, z) + self.log_prior(z, steps, generator) - law.log_prob(z))
        return torch.stack(rows)

    def log_prior(self, z: floats("B D"), steps: Count = 32, generator: Randomness = None) -> Tensor:
        """(B,) log p(z) in nats of the model's latents, by the probability-flow ODE."""
        if self.options.trains == "vae":
            return -(z.square().sum(1) + z.shape[1] * math.log(2 * math.pi)) / 2
        return ode_log_prob(self, z, self.schedule, self.options.time_eps, steps, 1, generator)


@system("lsgm", network=ScoreVAE, options=LSGMOptions, scheduled=False)
def lsgm(network, schedule, options, data) -> LSGM:
    """Draws a latent, and an image of it."""
    return LSGM(network, options, data.bins)
