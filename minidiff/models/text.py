"""GLIDE's text transformer: one vector for the time embedding, one token for each word for the attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..arguments import Count, Natural, NonNegative, checked
from .transformer import Transformer


@checked
@dataclass(frozen=True)
class TextConfig:
    """Shape of a text transformer.

    Attributes:
        vocabulary: Number of tokens.
        context: Length of a caption, in tokens.
        width: Width.
        layers: Residual blocks.
        heads: Attention heads.
        pooled: Only the vector enters the U-Net; nothing is attended to.
        embedding_std: Standard deviation, at the start, of what tokens, places and padding embed to. Each block adds
            much the same to every place; beside that the .02 with which CLIP starts its words drowns, the places become
            alike, and a caption stays a bag of words for long (lesson 07).
    """

    vocabulary: Count
    context: Count
    width: Count
    layers: Natural
    heads: Count
    pooled: bool = False
    embedding_std: NonNegative = 0.5

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads")


class TextTransformer(nn.Module):
    """Captions into a vector and a sequence (Nichol et al. 2021, section 4.1; names as in the released checkpoints).

    A place without a token (-1) holds a learned padding embedding of that place. Nothing is masked: padding is attended
    to, and the vector comes from the last place, which is padding for all but the longest captions.

    Args:
        config: Shape.
        out_features: Width of the vector, that of the time embedding.
    """

    def __init__(self, config: TextConfig, out_features: int):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.positional_embedding = nn.Parameter(config.embedding_std * torch.randn(config.context, config.width))
        self.padding_embedding = nn.Parameter(config.embedding_std * torch.randn(config.context, config.width))
        self.transformer = Transformer(config.width, config.layers, config.heads)
        self.final_ln = nn.LayerNorm(config.width)
        self.transformer_proj = nn.Linear(config.width, out_features)
        nn.init.normal_(self.token_embedding.weight, std=config.embedding_std)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) tokens, -1 for none -> (B, out_features) vector, (B, L, W) sequence.

        Raises:
            ValueError: for another length, or a token that the vocabulary lacks.
        """
        context, vocabulary = self.config.context, self.config.vocabulary
        if tokens.ndim != 2 or tokens.shape[1] != context:
            raise ValueError(f"this network reads captions of shape (B, {context}), got {tuple(tokens.shape)}")
        if tokens.device.type == "cpu" and bool(((tokens < -1) | (tokens >= vocabulary)).any()):
            raise ValueError(f"tokens must be from -1 (none) to {vocabulary - 1}, got up to {int(tokens.max())}")
        x = self.token_embedding(tokens.clamp(min=0)) + self.positional_embedding
        x = torch.where((tokens >= 0)[..., None], x, self.padding_embedding)
        sequence = self.final_ln(self.transformer(x))
        return self.transformer_proj(sequence[:, -1]), sequence
