"""The U-Net of latent diffusion, whose attention is a transformer (Rombach et al. 2022); names are those released."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import Count, checked
from .layers import GroupNorm, Reader, attend, pointwise, zeroed
from .unet import UNet, UNetConfig


@checked
@dataclass(frozen=True)
class LatentUNetConfig(UNetConfig):
    """Shape of a U-Net whose attention is ``SpatialTransformer``; its tokens have the width ``token_width``.

    Attributes:
        depth: Transformer blocks at each place where there is attention.
        matrices: The maps into and out of the transformers are published as matrices (Stable Diffusion 2), not as 1x1
            convolutions (Stable Diffusion 1); they compute the same.
        transformers: Attention is a transformer; else ADM's block, as in the models that are told nothing.
        class_tokens: A class enters as a token that is attended to, of the width ``token_width``, and does not join the
            time.

    Raises:
        ValueError: as for ``UNetConfig``, for no block, or class tokens without classes or width.
    """

    heads: Count = 8
    scale_shift: bool = False
    resample_blocks: bool = False
    depth: Count = 1
    matrices: bool = False
    transformers: bool = True
    class_tokens: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.class_tokens and (self.classes is None or self.token_width is None):
            raise ValueError("class_tokens need classes and their token_width")

    def attention_block(self, channels: int) -> Reader:
        """A transformer over the pixels, or ADM's block."""
        if not self.transformers:
            return super().attention_block(channels)
        heads = self.head_count(channels)
        return SpatialTransformer(channels, heads, self.depth, self.tokens, self.groups, self.matrices, self.dropout)


@checked
class LatentUNet(UNet):
    """The U-Net of latent diffusion.

    Raises:
        ValueError: in ``forward``, for the wrong channels or size, or a condition whose door this network lacks.
    """

    def __init__(self, config: LatentUNetConfig):
        super().__init__(config)
        if config.class_tokens:
            self.label_emb = nn.Embedding(config.classes, config.token_width)


class _Attention(nn.Module):
    """Attention of ``x`` to ``read``, which is x itself, or tokens."""

    def __init__(self, channels: int, heads: int, read: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k, self.to_v = (nn.Linear(read, channels, bias=False) for _ in range(2))
        self.to_out = nn.Sequential(nn.Linear(channels, channels), nn.Dropout(dropout))

    def forward(self, x: Tensor, read: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, L, C), (B, K, W), (B, K) -> (B, L, C)."""
        return self.to_out(attend(self.to_q(x), [(self.to_k(read), self.to_v(read))], self.heads, mask))


class _GEGLU(nn.Module):
    """A linear map, gated by the GELU of another (Shazeer 2020)."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.proj = nn.Linear(channels, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class _FeedForward(nn.Module):
    def __init__(self, channels: int, dropout: float):
        super().__init__()
        self.net = nn.Sequential(_GEGLU(channels, 4 * channels), nn.Dropout(dropout), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class _Block(nn.Module):
    """Self-attention, attention to tokens (to the pixels again where there are none), and a perceptron."""

    def __init__(self, channels: int, heads: int, tokens: int | None, dropout: float):
        super().__init__()
        self.attn1 = _Attention(channels, heads, channels, dropout)
        self.ff = _FeedForward(channels, dropout)
        self.attn2 = _Attention(channels, heads, channels if tokens is None else tokens, dropout)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.reads = tokens is not None

    def forward(self, x: Tensor, tokens: Tensor | None, mask: Tensor | None) -> Tensor:
        h = self.norm1(x)
        x = x + self.attn1(h, h)
        h = self.norm2(x)
        x = x + (self.attn2(h, tokens, mask) if self.reads else self.attn2(h, h))
        return x + self.ff(self.norm3(x))


class SpatialTransformer(Reader):
    """Pixels as a sequence through transformer blocks, residual, zero at the start (Rombach et al. 2022, appendix E).

    Args:
        channels: Channels.
        heads: Attention heads.
        depth: Blocks.
        tokens: Width of the tokens that are attended to, or None.
        groups: Group-norm groups.
        matrices: The maps in and out are linear layers, not 1x1 convolutions.
        dropout: Dropout rate.

    Raises:
        ValueError: for channels that do not divide into heads; in ``forward``, when tokens are missing.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        depth: int = 1,
        tokens: int | None = None,
        groups: int = 32,
        matrices: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels do not divide into {heads} heads")
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        through = (lambda: nn.Linear(channels, channels)) if matrices else (lambda: nn.Conv2d(channels, channels, 1))
        self.proj_in = through()
        self.transformer_blocks = nn.ModuleList(_Block(channels, heads, tokens, dropout) for _ in range(depth))
        self.proj_out = zeroed(through())
        self.reads = tokens is not None

    def forward(self, x: Tensor, tokens: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """(B, C, H, W), (B, L, W), (B, L) -> (B, C, H, W)."""
        if self.reads and tokens is None:
            raise ValueError("this transformer attends to tokens, and none were given")
        h = pointwise(self.proj_in, self.norm(x).permute(0, 2, 3, 1).flatten(1, 2))
        for block in self.transformer_blocks:
            h = block(h, tokens, mask)
        return x + pointwise(self.proj_out, h).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
