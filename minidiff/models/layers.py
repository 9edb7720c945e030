"""Building blocks in ADM's layout: parameter names and shapes are those of the released checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..random import uniform_hash


def timestep_embedding(time: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoids of time (B,), cosines first, (B, dim); an odd dim ends in a zero (Dhariwal and Nichol 2021, code)."""
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=time.device)
    angles = time.float()[:, None] * torch.exp(-math.log(max_period) * steps / half)  # in ADM's order, to the last bit
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, dim % 2))


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for q (B, heads, L, d), k and v (B, heads, K, d).

    Each query has to see a key.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        mask: (B, K) bool, True for the keys that count.
        causal: The queries stand beside the last L keys, and none sees a key behind its own: the first K - L keys, of
            what was there before, are seen by all.
    """
    length, keys = q.shape[-2], k.shape[-2]
    if causal and length == keys and mask is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    mask = None if mask is None else mask[:, None, None]
    if causal:
        before = torch.ones(length, keys, dtype=torch.bool, device=q.device).tril(keys - length)
        mask = before if mask is None else mask & before
    if q.device.type == "cpu" and q.dtype is torch.bfloat16:  # the fused kernel's backward pass takes twice as long
        logits = q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)
        return (logits if mask is None else logits.masked_fill(~mask, -math.inf)).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v, mask)


def attend(
    q: Tensor,
    sources: Sequence[Sequence[Tensor]],
    heads: int,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """Attention of several heads to the keys and values of one source or more: every attention layer here is this.

    Args:
        q: Queries (B, L, C), the heads one after another in C.
        sources: (keys, values) of each, (B, K_i, C) like the queries; they are joined in this order. That of q alone is
            self-attention.
        heads: Number of heads.
        mask: (B, sum of K_i) bool, True for the keys that count.
        causal: See ``attention``.

    Returns:
        (B, L, C).
    """
    joined = (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1) for parts in zip(*sources, strict=True))
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, *joined))
    return attention(q, k, v, mask, causal).transpose(1, 2).flatten(2)


LARGE = 64**2  # pixels, above which GroupNorm adds up in parts


class GroupNorm(nn.GroupNorm):
    """Group norm, fast on a CPU in bf16 too, and exact there for large images in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        if x.dtype is torch.bfloat16:  # the kernel for channels last takes twice as long
            return super().forward(x.contiguous()).contiguous(memory_format=torch.channels_last)
        last = x.dtype is torch.float32 and x.is_contiguous(memory_format=torch.channels_last)
        return self._in_parts(x) if last and x.shape[2] * x.shape[3] > LARGE else super().forward(x)

    def _in_parts(self, x: Tensor) -> Tensor:
        """The same by sums over strips of the image: the kernel for channels last adds up whole images in float32."""
        strips = x.split(max(1, LARGE // x.shape[3]), dim=2)

        def mean(sums: list[Tensor]) -> Tensor:
            """(B, groups, 1), of sums (B, C) over each strip."""
            whole = torch.stack(sums).sum(0, dtype=torch.float64) / (x.shape[2] * x.shape[3])
            return whole.unflatten(1, (self.num_groups, -1)).mean(2, keepdim=True)

        first, second = mean([s.sum((2, 3)) for s in strips]), mean([(s * s).sum((2, 3)) for s in strips])
        weight, bias = (p.unflatten(0, (self.num_groups, -1)) for p in (self.weight, self.bias))
        scale = weight * ((second - first.square()).clamp(min=0) + self.eps).rsqrt()
        shift, scale = (t.flatten(1)[..., None, None].to(x.dtype) for t in (bias - first * scale, scale))
        return torch.addcmul(shift, x, scale)


def check_input(x: Tensor, shape: tuple[int, ...], multiple: int = 0, weight: Tensor | None = None) -> None:
    """Raise ValueError unless x is a batch of this shape, or of sides that are a multiple of a number, where one is.

    With the network's first weight, also unless x has its precision.
    """
    if weight is not None and x.dtype != weight.dtype:
        raise ValueError(f"this network computes in {weight.dtype}, got x of {x.dtype}")
    if multiple and x.ndim == 4 and x.shape[1] == shape[0]:
        if any(side % multiple for side in x.shape[2:]):
            raise ValueError(f"this network takes sides that {multiple} divides, got {tuple(x.shape)}")
        return
    if tuple(x.shape[1:]) != shape or x.ndim != 1 + len(shape):
        raise ValueError(f"this network takes (B, {', '.join(map(str, shape))}), got {tuple(x.shape)}")


class Dropout(nn.Dropout):
    """Dropout that is each sample's own where training says whose they are, see ``random.per_sample``.

    Attributes:
        salt: Tells the layers of a network apart.
    """

    salt = 0

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        if not self.training or not self.p:
            return x
        u = uniform_hash(x, self.salt)
        return super().forward(x) if u is None else x * (u >= self.p).to(x.dtype) / (1 - self.p)


def zeroed(module: nn.Module) -> nn.Module:
    """The module with its parameters set to zero, so that its branch starts as nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def pointwise(layer: nn.Conv1d | nn.Conv2d | nn.Linear, x: Tensor) -> Tensor:
    """A 1x1 convolution or a linear layer on (B, L, C), channels last: a matrix product without a transpose."""
    return F.linear(x, layer.weight.flatten(1), layer.bias)


def residual(x: Tensor, branch: Tensor, factor: float) -> Tensor:
    """factor * (x + branch)."""
    return x + branch if factor == 1 else factor * (x + branch)


class ResBlock(nn.Module):
    """Residual block that reads the time by adaptive group norm (Dhariwal and Nichol 2021, section 3).

    Args:
        channels: Input channels.
        embedding: Width of the time embedding.
        out_channels: Output channels.
        dropout: Rate before the last convolution.
        groups: Group-norm groups.
        scale_shift: Adaptive group norm; else the embedding is added.
        resample: None, "down" (average pool by 2) or "up" (nearest by 2), on both paths, before the first convolution.
        rescale: The sum of both paths is divided by sqrt 2 (Song et al. 2021b).
    """

    def __init__(
        self,
        channels: int,
        embedding: int,
        out_channels: int,
        dropout: float = 0.0,
        groups: int = 32,
        scale_shift: bool = True,
        resample: str | None = None,
        rescale: bool = False,
    ):
        super().__init__()
        self.scale_shift, self.resample, self.factor = scale_shift, resample, 0.5**0.5 if rescale else 1.0
        self.in_layers = nn.Sequential(
            GroupNorm(groups, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, out_channels * (1 + scale_shift)))
        self.out_layers = nn.Sequential(
            GroupNorm(groups, out_channels),
            nn.SiLU(),
            Dropout(dropout),
            zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2, mode="nearest") if self.resample == "up" else x

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, channels, H, W), (B, embedding) -> (B, out_channels, H', W')."""
        h = self.in_layers[2](self._resampled(self.in_layers[1](self.in_layers[0](x))))
        told = self.emb_layers(embedding)[..., None, None]
        norm, rest = self.out_layers[0], self.out_layers[1:]
        if self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            h = rest(torch.addcmul(shift, norm(h), 1 + scale))
        else:
            h = rest(norm(h + told))
        return residual(self.skip_connection(self._resampled(x)), h, self.factor)


class Reader(nn.Module):
    """A layer of a stage that reads tokens beside the pixels: called with (x, tokens, mask)."""


class AttentionBlock(Reader):
    """Self-attention over the pixels, residual, zero at the start (Dhariwal and Nichol 2021).

    The pixels may attend to tokens as well, whose keys and values stand before their own (Nichol et al. 2021, 2.2). The
    rows of ``qkv`` are q, k, v, and those of ``encoder_kv`` k, v, each with its heads in order ("new attention order");
    the order of older checkpoints is mended where weights are read, never here (``FUSED`` says which, of how many).

    Args:
        channels: Channels.
        heads: Attention heads.
        groups: Group-norm groups.
        rescale: The sum of both paths is divided by sqrt 2.
        tokens: Width of the tokens that are attended to, or None.
    """

    FUSED: ClassVar[dict[str, int]] = {"qkv": 3, "encoder_kv": 2}

    def __init__(self, channels: int, heads: int, groups: int = 32, rescale: bool = False, tokens: int | None = None):
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels do not divide into {heads} heads")
        self.heads, self.factor = heads, 0.5**0.5 if rescale else 1.0
        self.norm = GroupNorm(groups, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.encoder_kv = None if tokens is None else nn.Conv1d(tokens, 2 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor, tokens: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W); tokens (B, L, W) join the keys, of which those count where mask (B, L) is True.

        A block without an entrance for tokens ignores them.
        """
        pixels = self.norm(x).permute(0, 2, 3, 1).flatten(1, 2)
        q, *own = pointwise(self.qkv, pixels).chunk(3, dim=-1)
        if self.encoder_kv is None or tokens is None:
            sources, mask = [own], None
        else:
            sources = [pointwise(self.encoder_kv, tokens).chunk(2, dim=-1), own]
            mask = None if mask is None else F.pad(mask, (0, pixels.shape[1]), value=True)
        out = pointwise(self.proj_out, attend(q, sources, self.heads, mask))
        return residual(x, out.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2), self.factor)


class AttentionPool(nn.Module):
    """CLIP's attention pooling: a mean token attends to all pixels (Radford et al. 2021; ADM's classifier head)."""

    def __init__(self, resolution: int, channels: int, heads: int, out_features: int):
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(channels, resolution**2 + 1) / channels**0.5)
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, out_features, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out_features)."""
        return F.linear(self.features(x), self.c_proj.weight[..., 0], self.c_proj.bias)

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C), what the last linear map reads."""
        pixels = x.permute(0, 2, 3, 1).flatten(1, 2)
        tokens = torch.cat([pixels.mean(1, keepdim=True), pixels], dim=1) + self.positional_embedding.T
        q, *own = pointwise(self.qkv_proj, tokens).chunk(3, dim=-1)
        return attend(q[:, :1], [own], self.heads)[:, 0]


class Downsample(nn.Module):
    """Strided 3x3 convolution, for networks without resampling residual blocks."""

    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2)."""
        return self.op(x)


class Upsample(nn.Module):
    """Nearest neighbour by 2, then a 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Stage(nn.Sequential):
    """A sequence in which residual blocks also read the time, and attention the tokens.

    Attributes:
        checkpointing: Keep only the input for the backward pass and compute the rest again.
    """

    checkpointing = False

    def forward(self, x: Tensor, embedding: Tensor, tokens: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """(B, C, H, W), (B, embedding), (B, L, W), (B, L) -> (B, C', H', W')."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(self._run, x, embedding, tokens, mask, use_reentrant=False)
        return self._run(x, embedding, tokens, mask)

    def _run(self, x: Tensor, embedding: Tensor, tokens: Tensor | None, mask: Tensor | None) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, embedding)
            else:
                x = layer(x, tokens, mask) if isinstance(layer, Reader) else layer(x)
        return x
