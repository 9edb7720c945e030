"""Imagen's Efficient U-Net (Saharia et al. 2022, appendix B.1): most of it where the image is small."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import Count, Natural, Positive, Share, checked
from ..condition import Condition
from .embedding import LanguageConfig, LanguageDoors
from .layers import (
    AttentionBlock,
    GroupNorm,
    Reader,
    ResBlock,
    Stage,
    attend,
    check_input,
    pointwise,
    zeroed,
)
from .unet import Encoder, check_tokens, time_embedding

JOINS = ("concatenate", "add")


@checked
@dataclass(frozen=True)
class EfficientUNetConfig:
    """Shape of an Efficient U-Net; every choice of the paper can be taken back by itself.

    Attributes:
        size: Image height and width in pixels.
        channels: Base width.
        channel_mult: Width of each level, as a multiple of ``channels``.
        blocks: Residual blocks of each level, on the way down and again on the way up; more where the image is small.
        strides: By how much each level makes the image smaller, 1 or 2; 2 for all when left out.
        early: Levels make the image smaller before their blocks and larger after them; else the other way round.
        skip_scale: What the skip connections are multiplied by; the paper's is 1 / sqrt 2.
        join: How a skip connection joins the way up, "concatenate" or "add".
        middle: Residual blocks between the ways; the paper has none.
        skip_convolution: Every residual block has a 1x1 convolution on its skip path; else those that change the width.
        attention: Resolutions at which pixels attend to pixels and tokens, after the blocks of a level.
        cross: Resolutions at which pixels attend to tokens alone.
        in_channels: Channels that enter (those of x plus those of the image door).
        out_channels: Channels that leave.
        heads: Attention heads.
        dropout: Dropout rate.
        groups: Group-norm groups.
        token_width: Width of the tokens that are attended to, or None.
        image_level: A second time embedding, for the noise level of what comes through the image door.
        language: Doors for the states of a frozen text encoder, or None.

    Raises:
        ValueError: for levels that do not go together, or a size that does not divide.
    """

    size: Count
    channels: Count
    channel_mult: tuple[Positive, ...]
    blocks: tuple[Count, ...]
    strides: tuple[Count, ...] | None = None
    early: bool = True
    skip_scale: Positive = 0.5**0.5
    join: str = "concatenate"
    middle: Natural = 0
    skip_convolution: bool = True
    attention: tuple[Count, ...] = ()
    cross: tuple[Count, ...] = ()
    in_channels: Count = 3
    out_channels: Count = 3
    heads: Count = 8
    dropout: Share = 0.0
    groups: Count = 32
    token_width: Count | None = None
    image_level: bool = False
    language: LanguageConfig | None = None

    def __post_init__(self):
        lengths = {len(self.channel_mult), len(self.blocks), len(self.all_strides)}
        if lengths != {len(self.blocks)} or not self.blocks:
            raise ValueError(f"channel_mult, blocks and strides name each level once, got lengths {sorted(lengths)}")
        if not set(self.all_strides) <= {1, 2} or self.size % math.prod(self.all_strides):
            raise ValueError(f"strides are 1 or 2 and divide the size {self.size}, got {list(self.all_strides)}")
        if self.join not in JOINS:
            raise ValueError(f"join must be one of {', '.join(JOINS)}, got {self.join!r}")
        if never := sorted({*self.attention, *self.cross} - set(self.resolutions)):
            raise ValueError(f"attention at {never} pixels would never act: the levels have {list(self.resolutions)}")
        if (self.cross or self.language) and self.token_width is None:
            raise ValueError("tokens are attended to: name their token_width")

    @property
    def all_strides(self) -> tuple[int, ...]:
        """The stride of each level."""
        return (2,) * len(self.channel_mult) if self.strides is None else self.strides

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Side of the image at the blocks of each level."""
        taken = [math.prod(self.all_strides[: i + self.early]) for i in range(len(self.blocks))]
        return tuple(self.size // stride for stride in taken)

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of each level."""
        return tuple(int(mult * self.channels) for mult in self.channel_mult)

    @property
    def in_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what enters: x, and after it the channels of the image door."""
        return self.in_channels, self.size, self.size

    @property
    def tokens(self) -> int | None:
        """Width of the tokens that attention reads, or None."""
        return self.token_width

    @property
    def any_size(self) -> bool:
        """Whether images of every size are taken: there are convolutions only, or attention to tokens."""
        return not self.attention

    def res_block(self, channels: int, out_channels: int) -> ResBlock:
        """A residual block of this network."""
        block = ResBlock(channels, 4 * self.channels, out_channels, self.dropout, self.groups)
        if self.skip_convolution:
            block.skip_connection = nn.Conv2d(channels, out_channels, 1)
        return block


class CrossAttention(Reader):
    """Pixels attend to tokens alone, and to nothing, a key of zeros with a value of zeros; residual, zero at the start.

    The key of zeros is what a text that has no token leaves.

    Args:
        channels: Channels.
        heads: Attention heads.
        tokens: Width of the tokens.
        groups: Group-norm groups.
    """

    def __init__(self, channels: int, heads: int, tokens: int, groups: int = 32):
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels do not divide into {heads} heads")
        self.heads = heads
        self.norm = GroupNorm(groups, channels)
        self.query = nn.Conv1d(channels, channels, 1)
        self.key_value = nn.Conv1d(tokens, 2 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor, tokens: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), having read the tokens (B, L, W) that count where mask (B, L) is True."""
        if tokens is None:
            return x
        pixels = self.norm(x).permute(0, 2, 3, 1).flatten(1, 2)
        k, v = (F.pad(part, (0, 0, 0, 1)) for part in pointwise(self.key_value, tokens).chunk(2, dim=-1))
        mask = None if mask is None else F.pad(mask, (0, 1), value=True)
        read = pointwise(self.proj_out, attend(pointwise(self.query, pixels), [(k, v)], self.heads, mask))
        return x + read.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


class Enlarge(nn.Module):
    """Nearest neighbour by the stride, then a 3x3 convolution that may change the width."""

    def __init__(self, channels: int, out_channels: int, stride: int):
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, out_channels, stride H, stride W)."""
        larger = F.interpolate(x, scale_factor=self.stride, mode="nearest") if self.stride > 1 else x
        return self.conv(larger)


@checked
class EfficientUNet(Encoder):
    """Imagen's Efficient U-Net: one skip connection a level, from the end of its way down to the start of its way up.

    Raises:
        ValueError: in ``forward``, for the wrong channels or size, or a condition whose door this network lacks.
    """

    def __init__(self, config: EfficientUNetConfig):
        super().__init__()
        self.config = config
        self.time_embed = time_embedding(config.channels)
        if config.language is not None:
            self.language = LanguageDoors(config.language, 4 * config.channels, config.tokens)
        if config.image_level:
            self.image_level_embed = time_embedding(config.channels)
        widths, strides = config.widths, config.all_strides
        before, after = (config.channels, *widths[:-1]), (*widths[1:], widths[-1])
        self.entry = nn.Conv2d(config.in_channels, config.channels, 3, padding=1)
        entering = widths if config.early else before  # what the blocks of a level are given on the way down
        self.down = nn.ModuleList(self._level(i, entering[i]) for i in range(len(widths)))
        self.middle = Stage(*(config.res_block(widths[-1], widths[-1]) for _ in range(config.middle)))
        joined = [2 * width if config.join == "concatenate" else width for width in widths]
        self.up = nn.ModuleList(self._level(i, joined[i]) for i in range(len(widths)))
        smaller = zip(before if config.early else widths, widths, strides, strict=True)
        larger = zip(widths if config.early else after, before if config.early else widths, strides, strict=True)
        self.smaller = nn.ModuleList(nn.Conv2d(c, out, 3, stride, padding=1) for c, out, stride in smaller)
        self.larger = nn.ModuleList(Enlarge(*one) for one in larger)
        last = config.channels if config.early else widths[0]
        self.out = nn.Sequential(
            GroupNorm(config.groups, last), nn.SiLU(), zeroed(nn.Conv2d(last, config.out_channels, 3, padding=1))
        )

    def _level(self, i: int, channels: int) -> Stage:
        """The blocks of a level, and its attention."""
        config = self.config
        width, resolution = config.widths[i], config.resolutions[i]
        layers = [config.res_block(channels, width)]
        layers += [config.res_block(width, width) for _ in range(config.blocks[i] - 1)]
        if resolution in config.attention:
            layers.append(AttentionBlock(width, config.heads, config.groups, tokens=config.tokens))
        if resolution in config.cross:
            layers.append(CrossAttention(width, config.heads, config.tokens, config.groups))
        return Stage(*layers)

    def forward(self, x: Tensor, time: Tensor, condition: Condition | None = None) -> Tensor:
        """(B, C, H, W), (B,) -> (B, out_channels, H, W).

        Args:
            x: Noisy images.
            time: Network times of their levels.
            condition: As ``models.unet.UNet`` takes it.
        """
        x, *given = self.entering(x, time, condition)
        h, skips = self.encode(x, *given)
        return self.decode(h, skips, *given)

    def encode(
        self, x: Tensor, embedding: Tensor, tokens: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The way down and through the middle; arguments and errors are those of ``models.unet.Encoder.encode``.

        Returns:
            What leaves the middle, and what each level leaves for the way up.
        """
        check_tokens(tokens, self.config)
        multiple = self.config.any_size and math.prod(self.config.all_strides)
        check_input(x, self.in_shape, multiple, self.entry.weight)
        h, skips, early = self.entry(x.contiguous(memory_format=self.memory_format)), [], self.config.early
        for blocks, smaller in zip(self.down, self.smaller, strict=True):
            h = blocks(smaller(h) if early else h, embedding, tokens, mask)
            skips.append(h)
            h = h if early else smaller(h)
        return self.middle(h, embedding, tokens, mask), skips

    def decode(
        self,
        h: Tensor,
        skips: list[Tensor],
        embedding: Tensor,
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The way up, from what ``encode`` returned; the list of skips is emptied, so that none is kept too long."""
        early, scale = self.config.early, self.config.skip_scale
        for blocks, larger in zip(reversed(self.up), reversed(self.larger), strict=True):
            h, skip = h if early else larger(h), scale * skips.pop()
            h = torch.cat([h, skip], dim=1) if self.config.join == "concatenate" else h + skip
            h = blocks(h, embedding, tokens, mask)
            h = larger(h) if early else h
        return self.out(h)
