"""The autoencoders of latent diffusion (Rombach et al. 2022); parameter names are those of the released checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import Bins, Count, NonNegative, Randomness, Share, checked, floats
from ..random import randn
from .layers import Dropout, GroupNorm, Upsample, attend, check_input

NORM_EPS = 1e-6  # of every group norm here; that of the U-Nets is 1e-5
LOG_VARIANCE = (-30.0, 20.0)  # the encoder's log variance is kept in this range
CERTAIN = -6.0  # where it starts: in noise of variance one an untrained encoder is not heard


@checked
@dataclass(frozen=True)
class AutoencoderConfig:
    """Shape of an autoencoder; its latent has fold 2^(levels - 1) times fewer pixels along each side.

    Attributes:
        size: Image height and width in pixels.
        channels: Base width.
        channel_mult: Width of each level, as a multiple of ``channels``.
        blocks: Residual blocks per level of the encoder; the decoder has one more.
        attention: Resolutions, in pixels, at which attention acts, beside that of the middle.
        in_channels: Channels of the image.
        latent_channels: Channels of the latent z.
        width: Channels that the encoder hands to the latent and the decoder takes from it; those of z when left out.
        codes: Number of vectors in a codebook to which the latent is rounded (VQ), or None for a Gaussian (KL).
        groups: Group-norm groups.
        dropout: Dropout rate.
        fold: Side of the squares of pixels that enter, and leave, as the channels of one pixel: a cheap first halving
            for small pictures. 1 in what is published.
        middle_attention: Attention in the middle.

    Raises:
        ValueError: for a number below one, or a size that does not halve at each level.
    """

    size: Count
    channels: Count = 128
    channel_mult: tuple[Count, ...] = (1, 2, 4, 4)
    blocks: Count = 2
    attention: tuple[Count, ...] = ()
    in_channels: Count = 3
    latent_channels: Count = 4
    width: Count | None = None
    codes: Bins | None = None
    groups: Count = 32
    dropout: Share = 0.0
    fold: Count = 1
    middle_attention: bool = True

    def __post_init__(self):
        if not self.channel_mult or self.size % self.factor:
            folded = f", and by fold {self.fold}" if self.fold > 1 else ""
            raise ValueError(
                f"size {self.size} must be divisible by 2 for each of {len(self.channel_mult)} levels{folded}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is a rate in [0, 1), got {self.dropout}")

    @property
    def factor(self) -> int:
        """How many times fewer pixels the latent has along each side."""
        return self.fold * 2 ** (len(self.channel_mult) - 1)

    @property
    def folded(self) -> int:
        """Channels of a square of pixels."""
        return self.in_channels * self.fold**2

    @property
    def in_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the image."""
        return self.in_channels, self.size, self.size

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the latent."""
        return self.latent_channels, self.size // self.factor, self.size // self.factor


@checked
@dataclass(frozen=True)
class DiagonalGaussian:
    """A normal law with independent entries: the encoder's q(z | x).

    Attributes:
        mean: (B, C, H, W).
        log_variance: (B, C, H, W).
    """

    mean: Tensor
    log_variance: Tensor

    @property
    def std(self) -> Tensor:
        """(B, C, H, W) standard deviations."""
        return (self.log_variance / 2).exp()

    @property
    def mode(self) -> Tensor:
        """The likeliest z, which is the mean."""
        return self.mean

    def sample(self, generator: Randomness = None) -> Tensor:
        """One z for each entry of the batch; ``generator`` as ``random.randn`` takes it."""
        return self.mean + self.std * randn(self.mean.shape, generator, self.mean.dtype, self.mean.device)

    def kl(self) -> Tensor:
        """(B,) KL(q || N(0, I)) in nats (Kingma and Welling 2014, appendix B)."""
        terms = self.mean.square() + self.log_variance.exp() - 1 - self.log_variance
        return terms.flatten(1).sum(1) / 2

    def entropy(self) -> Tensor:
        """(B,) differential entropy in nats."""
        return (self.log_variance + math.log(2 * math.pi * math.e)).flatten(1).sum(1) / 2

    def log_prob(self, z: floats("B *S")) -> Tensor:
        """(B,) log density of z (B, C, H, W) in nats."""
        terms = (z - self.mean).square() / self.log_variance.exp() + self.log_variance + math.log(2 * math.pi)
        return -terms.flatten(1).sum(1) / 2


@checked
def gaussian(moments: floats("B C *S")) -> DiagonalGaussian:
    """The law whose moments an encoder gives, (B, 2c, h, w): means, then log variances, which are kept in a range."""
    mean, log_variance = moments.chunk(2, dim=1)
    return DiagonalGaussian(mean, log_variance.clamp(*LOG_VARIANCE))


class _ResBlock(nn.Module):
    def __init__(self, channels: int, out_channels: int, groups: int, dropout: float):
        super().__init__()
        self.norm1, self.norm2 = (GroupNorm(groups, c, eps=NORM_EPS) for c in (channels, out_channels))
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.dropout = Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = None if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class _Attention(nn.Module):
    """One head; maps are 1x1 convolutions."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps=NORM_EPS)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2).mT for conv in (self.q, self.k, self.v))
        return x + self.proj_out(attend(q, [(k, v)], heads=1).mT.reshape(x.shape))


class _Downsample(nn.Module):
    """A 3x3 convolution with stride 2 that is padded on the right and below only."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class _Level(nn.Module):
    """Residual blocks at one resolution, each before attention where there is any, and what leads to the next."""

    def __init__(self, config: AutoencoderConfig, widths: list[int], attends: bool, **resample: nn.Module):
        super().__init__()
        self.block = nn.ModuleList(_ResBlock(a, b, config.groups, config.dropout) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(_Attention(b, config.groups) for b in widths[1:] if attends)
        self.resample = next(iter(resample), None)
        if self.resample:
            self.add_module(self.resample, resample[self.resample])

    def forward(self, h: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            h = block(h)
            h = self.attn[i](h) if self.attn else h
        return getattr(self, self.resample)(h) if self.resample else h


class _Middle(nn.Module):
    def __init__(self, config: AutoencoderConfig, channels: int):
        super().__init__()
        self.block_1 = _ResBlock(channels, channels, config.groups, config.dropout)
        self.attn_1 = _Attention(channels, config.groups) if config.middle_attention else nn.Identity()
        self.block_2 = _ResBlock(channels, channels, config.groups, config.dropout)

    def forward(self, h: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(h)))


class Encoder(nn.Module):
    """(B, C, H, W) image -> (B, ``out_channels``, h, w)."""

    def __init__(self, config: AutoencoderConfig, out_channels: int):
        super().__init__()
        self.fold = config.fold
        width, size = config.channels, config.size // config.fold
        self.conv_in = nn.Conv2d(config.folded, width, 3, padding=1)
        self.down = nn.ModuleList()
        for i, mult in enumerate(config.channel_mult):
            widths = [width] + [mult * config.channels] * config.blocks
            width = widths[-1]
            more = {"downsample": _Downsample(width)} if i < len(config.channel_mult) - 1 else {}
            self.down.append(_Level(config, widths, size in config.attention, **more))
            size = size // 2 if more else size
        self.mid = _Middle(config, width)
        self.norm_out = GroupNorm(config.groups, width, eps=NORM_EPS)
        self.conv_out = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(F.pixel_unshuffle(x, self.fold).contiguous(memory_format=torch.channels_last))
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """(B, C, h, w) -> (B, C, H, W) image; its levels are counted from the finest, which runs last."""

    def __init__(self, config: AutoencoderConfig, in_channels: int):
        super().__init__()
        self.fold = config.fold
        width, size = config.channel_mult[-1] * config.channels, config.latent_shape[1]
        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)
        self.mid = _Middle(config, width)
        levels = []
        for i, mult in reversed(list(enumerate(config.channel_mult))):
            widths = [width] + [mult * config.channels] * (config.blocks + 1)
            width = widths[-1]
            more = {"upsample": Upsample(width)} if i else {}
            levels.append(_Level(config, widths, size in config.attention, **more))
            size = 2 * size if more else size
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = GroupNorm(config.groups, width, eps=NORM_EPS)
        self.conv_out = nn.Conv2d(width, config.folded, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z.contiguous(memory_format=torch.channels_last)))
        for level in reversed(self.up):
            h = level(h)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(h))), self.fold)


class Autoencoder(nn.Module):
    """What both kinds have in common: an encoder and a decoder, each with a 1x1 convolution at the latent's side.

    Args:
        config: Its shape.
        moments: How many numbers the encoder gives for each number of a latent.
    """

    def __init__(self, config: AutoencoderConfig, moments: int):
        super().__init__()
        self.config = config
        width = config.width or config.latent_channels
        self.encoder, self.decoder = Encoder(config, moments * width), Decoder(config, width)
        self.quant_conv = nn.Conv2d(moments * width, moments * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, width, 1)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) there and back by their likeliest latents; the time is not looked at."""
        law = self.law(moments := self.moments(x))
        return self.decode(moments if law is None else law.mode)

    def moments(self, x: Tensor) -> Tensor:
        """What the encoder says of images (B, C, H, W) in [-1, 1], (B, moments c, h, w): of q(z | x), or the latents.

        Raises:
            ValueError: for images of another shape.
        """
        check_input(x, self.config.in_shape)
        return self.quant_conv(self.encoder(x))

    def law(self, moments: Tensor) -> DiagonalGaussian | None:
        """q(z | x) of what the encoder said; None where it gives latents themselves."""
        return None

    def decode(self, z: Tensor) -> Tensor:
        """Images (B, C, H, W) of latents (B, c, h, w); an autoencoder with a codebook rounds them first.

        Raises:
            ValueError: for latents of another shape.
        """
        check_input(z, self.config.latent_shape)
        return self.render(self._rounded(z))

    def render(self, z: Tensor) -> Tensor:
        """Images of latents that are taken as they are, (B, c, h, w) of any height and width."""
        return self.decoder(self.post_quant_conv(z))

    def _rounded(self, z: Tensor) -> Tensor:
        return z


@checked
class AutoencoderKL(Autoencoder):
    """Images to the law q(z | x) of a latent, and latents to images.

    Args:
        config: Its shape, without a codebook.

    Raises:
        ValueError: for a config with a codebook.
    """

    def __init__(self, config: AutoencoderConfig):
        if config.codes is not None:
            raise ValueError(f"an autoencoder with {config.codes} codes is an AutoencoderVQ")
        super().__init__(config, moments=2)
        nn.init.constant_(self.quant_conv.bias[config.latent_channels :], CERTAIN)

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """q(z | x) of images (B, C, H, W) in [-1, 1].

        Raises:
            ValueError: for images of another shape.
        """
        return self.law(self.moments(x))

    def law(self, moments: Tensor) -> DiagonalGaussian:
        """q(z | x) of what the encoder said."""
        return gaussian(moments)


@dataclass(frozen=True)
class Quantized:
    """What rounding a latent to a codebook gives.

    Attributes:
        z: (B, C, h, w) the nearest codes; gradients pass to what was rounded as if nothing had happened.
        codes: (B, h, w) their numbers.
        loss: (B,) mean squared distance of codes to latents, plus ``commitment`` times that of latents to codes
            (van den Oord et al. 2017, equation 3); the terms differ in where their gradient goes.
    """

    z: Tensor
    codes: Tensor
    loss: Tensor


@checked
class Codebook(nn.Module):
    """Rounds each pixel of a latent to the nearest of some vectors (van den Oord et al. 2017).

    Args:
        codes: Number of vectors.
        channels: Their length.
        commitment: Weight beta of the latent's own way to its code.
    """

    def __init__(self, codes: Bins, channels: Count, commitment: NonNegative = 0.25):
        super().__init__()
        self.commitment = commitment
        self.embedding = nn.Embedding(codes, channels)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)

    def forward(self, z: Tensor) -> Quantized:
        """Latents (B, C, h, w), rounded."""
        pixels = z.permute(0, 2, 3, 1)
        codes = torch.cdist(pixels.flatten(0, 2), self.embedding.weight).argmin(1).reshape(pixels.shape[:3])
        nearest = self.embedding(codes).permute(0, 3, 1, 2)
        apart = lambda a, b: (a - b).square().flatten(1).mean(1)
        loss = apart(nearest, z.detach()) + self.commitment * apart(nearest.detach(), z)
        return Quantized(z + (nearest - z).detach(), codes, loss)


@checked
class AutoencoderVQ(Autoencoder):
    """Images to latents that the decoder rounds to a codebook.

    Args:
        config: Its shape, with a codebook.

    Raises:
        ValueError: for a config without a codebook.
    """

    def __init__(self, config: AutoencoderConfig):
        if config.codes is None:
            raise ValueError("an AutoencoderVQ needs codes, the size of its codebook")
        super().__init__(config, moments=1)
        self.quantize = Codebook(config.codes, config.latent_channels)

    def encode(self, x: Tensor) -> Tensor:
        """Latents (B, c, h, w), not rounded yet, of images (B, C, H, W) in [-1, 1].

        Raises:
            ValueError: for images of another shape.
        """
        return self.moments(x)

    def _rounded(self, z: Tensor) -> Tensor:
        return self.quantize(z).z


@checked
def autoencoder(config: AutoencoderConfig) -> Autoencoder:
    """The autoencoder of a shape: with a codebook where it has codes."""
    return AutoencoderKL(config) if config.codes is None else AutoencoderVQ(config)
