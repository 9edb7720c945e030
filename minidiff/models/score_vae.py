"""A small variational autoencoder whose prior is a score network: the parts of a latent score-based model (LSGM)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import Count, Finite, Share, checked
from ..condition import Condition
from .layers import Dropout, check_input, timestep_embedding
from .vae import DiagonalGaussian

LOG_STD = (-7.0, 2.0)  # of the encoder: the logarithm stays in this range
PIXEL_LOG_STD = (-4.2, 2.0)  # of a pixel: a narrower law would gain nothing on 17 values, and lose all on a surprise


@checked
@dataclass(frozen=True)
class ScoreVAEConfig:
    """Shape of an autoencoder of flat layers, and of its prior.

    Attributes:
        size: Image height and width in pixels.
        image_channels: Channels of the image.
        latent: Numbers of the latent z.
        width: Width of all layers.
        blocks: Residual blocks of each of encoder, decoder and prior.
        mixing: Logit of the share of the network in the prior's prediction before training, for each number of z; None
            for a network alone (Vahdat et al. 2021, section 3.2).
        dropout: Dropout rate of encoder and decoder.
    """

    size: Count
    image_channels: Count = 1
    latent: Count = 16
    width: Count = 128
    blocks: Count = 2
    mixing: Finite | None = -3.0
    dropout: Share = 0.0

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the image."""
        return self.image_channels, self.size, self.size

    @property
    def pixels(self) -> int:
        """Numbers of an image."""
        return self.image_channels * self.size**2

    @property
    def in_shape(self) -> tuple[int, ...]:
        """(D,) of what the prior reads."""
        return (self.latent,)

    @property
    def in_channels(self) -> int:
        """Numbers that the prior reads."""
        return self.latent


class _Block(nn.Module):
    """x + MLP(norm(x) + time)."""

    def __init__(self, width: int, dropout: float = 0.0):
        super().__init__()
        self.norm, self.dropout = nn.LayerNorm(width), Dropout(dropout)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor, time: Tensor | float = 0.0) -> Tensor:
        return x + self.down(self.dropout(F.silu(self.up(self.norm(x) + time))))


class _Flat(nn.Module):
    """Layers from so many numbers to so many."""

    def __init__(self, config: ScoreVAEConfig, inside: int, outside: int, dropout: float = 0.0):
        super().__init__()
        self.enter, self.leave = nn.Linear(inside, config.width), nn.Linear(config.width, outside)
        self.blocks = nn.ModuleList(_Block(config.width, dropout) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, time: Tensor | float = 0.0) -> Tensor:
        h = self.enter(x)
        for block in self.blocks:
            h = block(h, time)
        return self.leave(F.silu(self.norm(h)))


@checked
class ScoreVAE(nn.Module):
    """Encoder, decoder and prior of one model; called as the prior, ``(z_t, time) -> eps``, before mixing.

    Args:
        config: Its shape.
    """

    def __init__(self, config: ScoreVAEConfig):
        super().__init__()
        self.config, width, dim = config, config.width, config.latent
        self.encoder = _Flat(config, config.pixels, 2 * dim, config.dropout)
        self.decoder = _Flat(config, dim, 2 * config.pixels, config.dropout)
        self.prior = _Flat(config, dim, dim)
        self.time_embed = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.mixing = None if config.mixing is None else nn.Parameter(torch.full((dim,), float(config.mixing)))

    @property
    def out_shape(self) -> tuple[int, ...]:
        """(D,) of a latent."""
        return (self.config.latent,)

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """The law of a latent, of images (B, C, H, W) in [-1, 1].

        Raises:
            ValueError: for images of another shape.
        """
        check_input(x, self.config.image_shape)
        mean, log_std = self.encoder(x.flatten(1)).chunk(2, dim=1)
        return DiagonalGaussian(mean, 2 * (log_std - 1).clamp(*LOG_STD))

    def decode(self, z: Tensor) -> DiagonalGaussian:
        """The law of images, of latents (B, D).

        Raises:
            ValueError: for latents of another shape.
        """
        check_input(z, self.out_shape)
        mean, log_std = self.decoder(z).unflatten(1, (2, *self.config.image_shape)).unbind(1)
        return DiagonalGaussian(mean, 2 * (log_std - 1).clamp(*PIXEL_LOG_STD))

    def forward(self, z: Tensor, time: Tensor, condition: Condition | None = None) -> Tensor:
        """(B, D) noised latents, (B,) times of 0 to 1000 -> (B, D), what the network makes of the noise.

        Args:
            z: Latents at their levels.
            time: What is told of them.
            condition: Not looked at.
        """
        check_input(z, self.out_shape)
        return self.prior(z, self.time_embed(timestep_embedding(time, self.config.width).to(z.dtype)))
