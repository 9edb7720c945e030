"""The text towers that latent diffusion attends to: that of a CLIP alone (Radford et al. 2021), which Stable Diffusion
reads, and the transformer over BERT's word pieces that the model before it had (Rombach et al. 2022).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import Count, Natural, checked
from .transformer import Transformer

END = 49407  # the last token of CLIP's vocabulary


@checked
@dataclass(frozen=True)
class TextTowerConfig:
    """Shape of a text tower; the default is that of ViT-L/14, which Stable Diffusion 1 reads.

    Attributes:
        vocabulary: Number of tokens.
        context: Places, start and end included.
        width: Width.
        layers: Residual blocks that are run.
        heads: Attention heads.
        quick: The GELU is that of OpenAI's CLIP.
        padding: The token of the places after the end: the end again (Stable Diffusion 1), or 0 (2). They are attended
            to, so this is not free to choose.
        start, end: The tokens that stand around a text; the last two of the vocabulary when left out, as in CLIP.
        causal: No place sees a later one.
        head_width: Width of a head; ``width / heads`` when left out.
        bias: Queries, keys and values have biases.

    Raises:
        ValueError: for a width that does not divide into heads, a context without room for a word, or a token that the
            vocabulary lacks.
    """

    vocabulary: Count = END + 1
    context: Count = 77
    width: Count = 768
    layers: Natural = 12
    heads: Count = 12
    quick: bool = True
    padding: Natural = END
    start: Natural | None = None
    end: Natural | None = None
    causal: bool = True
    head_width: Count | None = None
    bias: bool = True

    def __post_init__(self):
        if self.head_width is None and self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads")
        if self.context < 3:
            raise ValueError(f"context >= 3 is accepted, for start, a word and end; got {self.context}")
        for name in ("padding", "start", "end"):
            if (token := getattr(self, name)) is not None and token >= self.vocabulary:
                raise ValueError(f"{name} < vocabulary is accepted, got {token} of {self.vocabulary}")

    @property
    def around(self) -> tuple[int, int]:
        """The tokens before and after a text."""
        start = self.vocabulary - 2 if self.start is None else self.start
        return start, self.vocabulary - 1 if self.end is None else self.end


@checked
class TextTower(nn.Module):
    """Tokens to the states of all places, after the last norm."""

    def __init__(self, config: TextTowerConfig):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(config.context, config.width))
        shape = {"head_width": config.head_width, "bias": config.bias}
        self.transformer = Transformer(
            config.width, config.layers, config.heads, causal=config.causal, quick=config.quick, **shape
        )
        self.ln_final = nn.LayerNorm(config.width)

    def framed(self, tokens: Tensor) -> Tensor:
        """(B, L) tokens, -1 from where a text ends -> (B, context): start, tokens, end, padding; longer ones are cut.

        Raises:
            ValueError: for what is no (B, L) of whole numbers, or a token that the vocabulary lacks.
        """
        size, room = self.config.vocabulary, self.config.context - 2
        if tokens.ndim != 2 or tokens.is_floating_point():
            raise ValueError(f"tokens must be (B, L) integers, got {tokens.dtype} of shape {tuple(tokens.shape)}")
        if tokens.device.type == "cpu" and bool(((tokens < -1) | (tokens >= size)).any()):
            raise ValueError(f"tokens must be from -1 (none) to {size - 1}, got up to {int(tokens.max())}")
        tokens = F.pad(tokens[:, :room], (1, max(0, room - tokens.shape[1]) + 1), value=-1)
        start, end = self.config.around
        tokens[:, 0] = start
        places = torch.arange(self.config.context, device=tokens.device)
        length = (tokens >= 0).sum(1, keepdim=True)
        return torch.where(places < length, tokens, torch.where(places == length, end, self.config.padding))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L) tokens, -1 from where a text ends -> (B, context, W)."""
        x = self.token_embedding(self.framed(tokens)) + self.positional_embedding
        return self.ln_final(self.transformer(x))
