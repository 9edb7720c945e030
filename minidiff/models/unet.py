"""ADM's U-Net (Dhariwal and Nichol 2021), with GLIDE's text (Nichol et al. 2021); the classifier shares its encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..arguments import Count, Positive, Share, checked
from ..condition import Condition
from .embedding import DoorsConfig, EmbeddingDoors, LanguageConfig, LanguageDoors
from .layers import (
    AttentionBlock,
    Downsample,
    GroupNorm,
    ResBlock,
    Stage,
    Upsample,
    check_input,
    timestep_embedding,
    zeroed,
)
from .text import TextConfig, TextTransformer


@checked
@dataclass(frozen=True)
class UNetConfig:
    """Shape of a U-Net; one preset of the paper is one of these.

    Attributes:
        size: Image height and width in pixels.
        channels: Base width.
        channel_mult: Width of each level, as a multiple of ``channels``.
        blocks: Residual blocks per level.
        attention: Resolutions, in pixels, at which attention acts.
        in_channels: Channels that enter (those of x plus those of the image door).
        out_channels: Channels that leave.
        heads: Attention heads, used when ``head_channels`` is None.
        head_channels: Width of a head.
        classes: Rows of the label embedding (one of them the null, where there is one), or None.
        dropout: Dropout rate.
        groups: Group-norm groups.
        scale_shift: Adaptive group norm.
        resample_blocks: Residual blocks do the up- and downsampling (BigGAN), else convolutions.
        rescale: Residual sums are divided by sqrt 2.
        text: Shape of the text transformer that reads captions, or None.
        token_width: Width of the tokens that attention reads beside the pixels, wherever they come from; that of the
            text transformer when left out, and where there is none, or its text is pooled, attention reads none.
        image_level: A second time embedding, for the noise level of what comes through the image door.
        embedding: Doors for the embeddings of a frozen CLIP, or None; their tokens have the width ``tokens``.
        language: Doors for the states of a frozen text encoder, or None; its tokens have the width ``tokens``.
        middle_attention: Attention in the middle too. Without any, images of every size that halves often enough fit.
    """

    size: Count
    channels: Count
    channel_mult: tuple[Positive, ...]
    blocks: Count = 2
    attention: tuple[Count, ...] = ()
    in_channels: Count = 3
    out_channels: Count = 3
    heads: Count = 4
    head_channels: Count | None = None
    classes: Count | None = None
    dropout: Share = 0.0
    groups: Count = 32
    scale_shift: bool = True
    resample_blocks: bool = True
    rescale: bool = False
    text: TextConfig | None = None
    image_level: bool = False
    token_width: Count | None = None
    embedding: DoorsConfig | None = None
    middle_attention: bool = True
    language: LanguageConfig | None = None

    def __post_init__(self):
        deepest = 2 ** (len(self.channel_mult) - 1)
        if not self.channel_mult or self.size % deepest:
            raise ValueError(f"size {self.size} must be divisible by 2 for each of {len(self.channel_mult)} levels")
        sizes = [self.size >> i for i in range(len(self.channel_mult))]
        if never := sorted(set(self.attention) - set(sizes)):
            raise ValueError(f"attention at {never} pixels would never act: the levels have {sizes}")
        if not all(1 <= mult * self.channels < 1e6 for mult in self.channel_mult):
            raise ValueError(f"channel_mult times channels is a width, 1 to a million; got {list(self.channel_mult)}")
        if self.head_channels is not None and self.heads != type(self).heads:
            raise ValueError(f"{self.heads} heads, and heads of {self.head_channels} channels: name one of the two")
        if self.text is not None and not self.text.pooled and self.token_width not in (None, self.text.width):
            raise ValueError(
                f"token_width {self.token_width} is not the width {self.text.width} of the text transformer, whose "
                "tokens are attended to; leave it out, or let the text be pooled"
            )
        if self.embedding is not None and self.tokens is None:
            raise ValueError("the tokens of an embedding are attended to: name their token_width")
        if self.language is not None and self.tokens is None:
            raise ValueError("the states of a text encoder are attended to: name the token_width they are brought to")

    @property
    def in_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what enters: x, and after it the channels of the image door."""
        return self.in_channels, self.size, self.size

    @property
    def tokens(self) -> int | None:
        """Width of the tokens that attention reads, or None."""
        if self.token_width is None and self.text is not None and not self.text.pooled:
            return self.text.width
        return self.token_width

    @property
    def any_size(self) -> bool:
        """Whether images of every size are taken: there are convolutions only."""
        return not self.attention and not self.middle_attention

    def res_block(self, channels: int, out_channels: int, resample: str | None = None) -> ResBlock:
        """A residual block of this network."""
        return ResBlock(
            channels,
            4 * self.channels,
            out_channels,
            self.dropout,
            self.groups,
            self.scale_shift,
            resample,
            self.rescale,
        )

    def head_count(self, channels: int) -> int:
        """Number of attention heads at a width."""
        return self.heads if self.head_channels is None else channels // self.head_channels

    def attention_block(self, channels: int) -> AttentionBlock:
        """An attention block of this network."""
        return AttentionBlock(channels, self.head_count(channels), self.groups, self.rescale, self.tokens)

    def resampler(self, channels: int, direction: str) -> nn.Module:
        """What ends a level: a resampling residual block, or a convolution."""
        if self.resample_blocks:
            return self.res_block(channels, channels, direction)
        return Downsample(channels) if direction == "down" else Upsample(channels)


def time_embedding(channels: int) -> nn.Sequential:
    """The two-layer perceptron on the sinusoids of time."""
    return nn.Sequential(nn.Linear(channels, 4 * channels), nn.SiLU(), nn.Linear(4 * channels, 4 * channels))


def encoder(config: UNetConfig) -> tuple[nn.ModuleList, Stage, list[int]]:
    """Input blocks, middle block and the width of each skip connection."""
    width = int(config.channel_mult[0] * config.channels)
    blocks, skips = nn.ModuleList([Stage(nn.Conv2d(config.in_channels, width, 3, padding=1))]), [width]
    resolution = config.size
    for level, mult in enumerate(config.channel_mult):
        for _ in range(config.blocks):
            layers = [config.res_block(width, int(mult * config.channels))]
            width = int(mult * config.channels)
            if resolution in config.attention:
                layers.append(config.attention_block(width))
            blocks.append(Stage(*layers))
            skips.append(width)
        if level < len(config.channel_mult) - 1:
            blocks.append(Stage(config.resampler(width, "down")))
            skips.append(width)
            resolution //= 2
    attention = [config.attention_block(width)] if config.middle_attention else []
    middle = Stage(config.res_block(width, width), *attention, config.res_block(width, width))
    return blocks, middle, skips


def decoder(config: UNetConfig, skips: list[int]) -> nn.ModuleList:
    """Output blocks; each takes one skip connection, last one first."""
    blocks, width, resolution = nn.ModuleList(), skips[-1], config.size // 2 ** (len(config.channel_mult) - 1)
    skips = list(skips)
    for level, mult in reversed(list(enumerate(config.channel_mult))):
        for i in range(config.blocks + 1):
            layers = [config.res_block(width + skips.pop(), int(mult * config.channels))]
            width = int(mult * config.channels)
            if resolution in config.attention:
                layers.append(config.attention_block(width))
            if level and i == config.blocks:
                layers.append(config.resampler(width, "up"))
                resolution *= 2
            blocks.append(Stage(*layers))
    return blocks


class Encoder(nn.Module):
    """What a U-Net and a classifier have in common: the time, and the way down to the middle.

    Attributes:
        memory_format: Layout of the activations; convolutions are fastest with channels last.
    """

    memory_format = torch.channels_last
    config: UNetConfig
    time_embed: nn.Module
    input_blocks: nn.ModuleList
    middle_block: Stage

    @property
    def in_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what enters: x, and after it the channels of the image door."""
        return self.config.in_shape

    def halved(self, x: Tensor) -> Tensor:
        """x in the precision of a network whose weights are halves; what samples keeps its own."""
        own = self.time_embed[0].weight.dtype
        return x.to(own) if own.itemsize < x.dtype.itemsize == 4 else x

    def embed_time(self, x: Tensor, time: Tensor) -> Tensor:
        """Network times (B,) of x -> (B, 4 channels)."""
        return self.time_embed(timestep_embedding(time, self.config.channels).to(self.time_embed[0].weight.dtype))

    def embed_image_level(self, time: Tensor) -> Tensor:
        """Network times (B,) of the noise in the image door -> (B, 4 channels), to be added to the vector."""
        weight = self.image_level_embed[0].weight
        return self.image_level_embed(timestep_embedding(time, self.config.channels).to(weight.dtype))

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what leaves."""
        return self.config.out_channels, self.config.size, self.config.size

    def entering(
        self, x: Tensor, time: Tensor, condition: Condition | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """What ``forward`` is given, as ``encode`` and, but for x, ``decode`` take it: x, embedding, tokens, mask."""
        condition = condition or Condition()
        if condition.image is not None:
            x = torch.cat([x, condition.image], dim=1)
        x = self.halved(x)
        embedding = self.embed_time(x, time)
        if condition.vector is not None:
            embedding = embedding + condition.vector
        return x, embedding, condition.tokens, condition.tokens_mask

    def encode(
        self, x: Tensor, embedding: Tensor, tokens: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The way down and through the middle.

        Args:
            x: (B, in_channels, H, W), of the network's size; without attention of any.
            embedding: (B, 4 channels), of the time and what joins it.
            tokens: (B, L, W), attended to.
            mask: (B, L) bool, True for the tokens that count.

        Returns:
            What leaves the middle, and what each input block adds to the skip connections, in their order.

        Raises:
            ValueError: for the wrong channels or size, or tokens of another width than are attended to.
        """
        check_tokens(tokens, self.config)
        multiple = self.config.any_size and 2 ** (len(self.config.channel_mult) - 1)
        check_input(x, self.in_shape, multiple, self.input_blocks[0][0].weight)
        h, skips = x.contiguous(memory_format=self.memory_format), []
        for block in self.input_blocks:
            h = block(h, embedding, tokens, mask)
            skips.append(h)
        return self.middle_block(h, embedding, tokens, mask), skips


@checked
class UNet(Encoder):
    """ADM's U-Net.

    Raises:
        ValueError: in ``forward``, for the wrong channels or size, or a condition whose door this network lacks.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        self.time_embed = time_embedding(config.channels)
        if config.classes is not None:
            self.label_emb = nn.Embedding(config.classes, 4 * config.channels)
        if config.text is not None:
            self.text = TextTransformer(config.text, 4 * config.channels)
        if config.embedding is not None:
            self.embedding = EmbeddingDoors(config.embedding, 4 * config.channels, config.tokens)
        if config.language is not None:
            self.language = LanguageDoors(config.language, 4 * config.channels, config.tokens)
        if config.image_level:
            self.image_level_embed = time_embedding(config.channels)
        self.input_blocks, self.middle_block, skips = encoder(config)
        self.output_blocks = decoder(config, skips)
        width = int(config.channel_mult[0] * config.channels)
        self.out = nn.Sequential(
            GroupNorm(config.groups, width),
            nn.SiLU(),
            zeroed(nn.Conv2d(width, config.out_channels, 3, padding=1)),
        )

    def forward(self, x: Tensor, time: Tensor, condition: Condition | None = None) -> Tensor:
        """(B, C, H, W), (B,) -> (B, out_channels, H, W).

        Args:
            x: Noisy images.
            time: Network times of their levels.
            condition: ``vector`` (B, 4 channels) joins the time embedding, ``tokens`` (B, L, W) the keys and values of
                attention, ``image`` (B, C', H, W) the channels.
        """
        x, *given = self.entering(x, time, condition)
        h, skips = self.encode(x, *given)
        return self.decode(h, skips, *given)[0]

    def read_states(self, states: Tensor, mask: Tensor, z: Tensor) -> Condition:
        """A text that a frozen CLIP has read, see ``EmbeddingDoors.text``."""
        return self.embedding.text(states, mask, z)

    def decode(
        self,
        h: Tensor,
        skips: list[Tensor],
        embedding: Tensor,
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
        extra: Sequence[Tensor] | None = None,
        keep: Sequence[int] = (),
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """The way up.

        Args:
            h: What leaves the middle, from ``encode``.
            skips: The skip connections, from ``encode``. The list is emptied, so that none is kept longer than it is
                needed; to decode twice, pass a copy.
            embedding: As in ``encode``.
            tokens: As in ``encode``.
            mask: As in ``encode``.
            extra: What is added to each of the skips, and last to h, of their shapes (Zhang et al. 2023).
            keep: Output blocks, counted from 0 at the middle, whose outputs are wanted (Baranchuk et al. 2022).

        Returns:
            (B, out_channels, H, W), and the outputs that are kept, by block.

        Raises:
            ValueError: for another number of skips or of extras, or a block that is not there.
        """
        blocks = len(self.output_blocks)
        if len(skips) != blocks:
            raise ValueError(f"this decoder takes {blocks} skips, got {len(skips)}; what decodes empties the list")
        if extra is not None and len(extra) != blocks + 1:
            raise ValueError(f"extra must be {blocks + 1} tensors, for {blocks} skips and the middle, got {len(extra)}")
        if not set(keep) <= set(range(blocks)):
            raise ValueError(f"keep must name output blocks from 0 to {blocks - 1}, got {sorted(keep)}")
        h, kept = h if extra is None else h + extra[-1], {}
        for i, block in enumerate(self.output_blocks):
            skip = skips.pop()
            if extra is not None:
                skip = skip + extra[len(skips)]
            h = block(torch.cat([h, skip], dim=1), embedding, tokens, mask)
            if i in keep:
                kept[i] = h
        return self.out(h), kept


@checked
def check_tokens(tokens: Tensor | None, config) -> None:
    """Raise ValueError for tokens of another width than the network attends to, or where it attends to none."""
    if tokens is None:
        return
    if config.tokens is None:
        raise ValueError("this network has no door for tokens; it takes a vector and an image")
    if tokens.ndim != 3 or tokens.shape[2] != config.tokens:
        raise ValueError(f"this network attends to tokens (B, L, {config.tokens}), got {tuple(tokens.shape)}")
