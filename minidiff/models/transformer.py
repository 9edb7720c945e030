"""A stack of pre-norm transformer blocks; parameter names are those of GLIDE's released checkpoints."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from .layers import attend


class _SelfAttention(nn.Module):
    """Rows of ``c_qkv`` are q, k, v, each with its heads in order."""

    FUSED: ClassVar[dict[str, int]] = {"c_qkv": 3}

    def __init__(self, width: int, heads: int, head_width: int | None = None, bias: bool = True):
        super().__init__()
        self.heads, inner = heads, heads * head_width if head_width else width
        self.c_qkv = nn.Linear(width, 3 * inner, bias=bias)
        self.c_proj = nn.Linear(inner, width)

    def forward(self, x: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """(B, L, W) -> (B, L, W)."""
        q, *own = self.c_qkv(x).chunk(3, dim=-1)
        return self.c_proj(attend(q, [own], self.heads, mask, causal))


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), an approximation of the GELU that OpenAI's CLIP was trained with."""
    return x * (1.702 * x).sigmoid()


class _Perceptron(nn.Module):
    def __init__(self, width: int, quick: bool):
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)
        self.gelu = quick_gelu if quick else nn.functional.gelu

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, W) -> (B, L, W)."""
        return self.c_proj(self.gelu(self.c_fc(x)))


class _Block(nn.Module):
    def __init__(self, width: int, quick: bool, **attention):
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(width), _SelfAttention(width, **attention)
        self.ln_2, self.mlp = nn.LayerNorm(width), _Perceptron(width, quick)

    def forward(self, x: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """(B, L, W) -> (B, L, W)."""
        x = x + self.attn(self.ln_1(x), mask, causal)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """Blocks one after another; no norm follows the last.

    Args:
        width: Width.
        layers: Residual blocks.
        heads: Attention heads.
        causal: No place sees a later one.
        quick: The GELU is that of OpenAI's CLIP, see ``quick_gelu``.
        head_width: Width of a head; ``width / heads`` when left out.
        bias: Queries, keys and values have biases.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        causal: bool = False,
        quick: bool = False,
        head_width: int | None = None,
        bias: bool = True,
    ):
        super().__init__()
        self.causal, attention = causal, {"heads": heads, "head_width": head_width, "bias": bias}
        self.resblocks = nn.ModuleList(_Block(width, quick, **attention) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, L, W) -> (B, L, W); ``mask`` (B, L) bool is True for the places that are seen."""
        for block in self.resblocks:
            x = block(x, mask, self.causal)
        return x
