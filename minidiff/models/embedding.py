"""What frozen networks say on its way into networks and out again: embeddings of a CLIP, states of a text encoder."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import Count, Positive, checked, flags, floats, numbers
from ..condition import Condition
from .layers import attend


@checked
@dataclass(frozen=True)
class Convention:
    """How long an embedding is in a network (``eq-embedding-scale``): scale * (z - mean) / std, of z or of z / |z|.

    A diffusion of embeddings starts from noise of standard deviation 1, so their numbers should have one as well. Unit
    vectors of width E have 1 / sqrt(E): sqrt(E) is the scale that mends it where their mean is zero (lucidrains'
    DALLE2-pytorch), 17.2 the one of Ramesh et al. 2022 (table 3's section) for E = 1024, mean and deviation of each
    number do it exactly (Karlo). Between systems an embedding has the length that its CLIP gave it.

    Attributes:
        normalise: Divide by the length first.
        standardise: Subtract the mean and divide by the standard deviation of the training data, number by number.
        scale: Multiply by this at the end.

    Raises:
        ValueError: for a scale that is not positive.
    """

    normalise: bool = True
    standardise: bool = False
    scale: Positive = 1.0


@checked
class EmbeddingScale(nn.Module):
    """A convention with its statistics, which are buffers: they are learnt from data before training, not by it.

    Args:
        width: E.
        convention: See ``Convention``.
    """

    def __init__(self, width: Count, convention: Convention):
        super().__init__()
        self.convention = convention
        if convention.standardise:
            self.register_buffer("mean", torch.zeros(width))
            self.register_buffer("std", torch.ones(width))

    def _based(self, z: Tensor) -> Tensor:
        return F.normalize(z, dim=-1) if self.convention.normalise else z

    @torch.no_grad()
    def learn(self, z: floats("N E")) -> None:
        """Take mean and standard deviation from embeddings (N, E), where the convention has some; once.

        Raises:
            ValueError: for fewer than two, or a number that is the same in all of them.
        """
        if not self.convention.standardise or bool((self.mean != 0).any()):
            return
        z = self._based(z.double())
        if len(z) < 2 or not bool((z.std(0) > 0).all()):
            raise ValueError(f"{len(z)} embeddings have no standard deviation in every number")
        self.mean.copy_(z.mean(0))
        self.std.copy_(z.std(0))

    def inward(self, z: Tensor) -> Tensor:
        """(B, E) as CLIP gives it -> as networks see it; **the zero vector, which stands for nothing, stays zero**."""
        inside = self._based(z)
        if self.convention.standardise:
            inside = (inside - self.mean) / self.std
        return torch.where(is_nothing(z), 0.0, self.convention.scale * inside)

    def outward(self, z: Tensor) -> Tensor:
        """The way back; lengths that were divided out do not come back."""
        outside = z / self.convention.scale
        return outside * self.std + self.mean if self.convention.standardise else outside


@checked
def is_nothing(z: numbers()) -> Tensor:
    """(..., E) -> (..., 1) bool: whether an embedding is the zero vector."""
    return (z == 0).all(-1, keepdim=True)


@checked
@dataclass(frozen=True)
class DoorsConfig:
    """How embeddings of a frozen CLIP enter a U-Net.

    Attributes:
        width: Of the image embedding.
        tokens: Number of tokens that it becomes, beside a vector.
        convention: Of the image embedding inside.
        text: Texts are read by the frozen CLIP too: its states and its text embedding, both of this width, come in.
        text_convention: Of the text embedding inside.
    """

    width: Count
    tokens: Count = 4
    convention: Convention = field(default_factory=Convention)
    text: bool = False
    text_convention: Convention = field(default_factory=Convention)


@checked
class EmbeddingDoors(nn.Module):
    """The image embedding, added to the time embedding and as tokens (Ramesh et al. 2022, section 2.1).

    Names and layout are Karlo's: ``clip_tok_proj`` writes width by width what the tokens hold, and ``cf_param`` stands
    for no embedding. It begins as zero, as in the paper, and is learned.

    Args:
        config: See ``DoorsConfig``.
        features: Width of the time embedding.
        token_width: Width of what is attended to.
    """

    def __init__(self, config: DoorsConfig, features: Count, token_width: Count):
        super().__init__()
        self.config = config
        self.scale = EmbeddingScale(config.width, config.convention)
        self.cf_param = nn.Parameter(torch.zeros(config.width))
        self.clip_emb = nn.Linear(config.width, features)
        self.clip_tok_proj = nn.Linear(config.width, token_width * config.tokens)
        if config.text:
            self.text_scale = EmbeddingScale(config.width, config.text_convention)
            self.text_feat_proj = nn.Linear(config.width, features)
            self.text_seq_proj = nn.Sequential(nn.Linear(config.width, token_width), nn.LayerNorm(token_width))

    def image(self, z: Tensor) -> Condition:
        """(B, E) image embeddings as CLIP gives them, zeros for none, through the vector door and the tokens door.

        Raises:
            ValueError: for another width.
        """
        check_embedding(z, self.config.width)
        inside = torch.where(is_nothing(z), self.cf_param, self.scale.inward(z))
        tokens = self.clip_tok_proj(inside).unflatten(1, (-1, self.config.tokens)).mT
        return Condition(vector=self.clip_emb(inside), tokens=tokens)

    def text(self, states: Tensor, mask: Tensor, z: Tensor) -> Condition:
        """What the frozen CLIP makes of a text: (B, L, E) states, (B, L) bool which count, and its embedding (B, E)."""
        check_embedding(z, self.config.width)
        vector = self.text_feat_proj(self.text_scale.inward(z))
        return Condition(vector=vector, tokens=self.text_seq_proj(states), tokens_mask=mask)


@checked
def check_embedding(z: floats(), width: Count) -> None:
    """Raise ValueError unless z is (B, width)."""
    if z.ndim != 2 or z.shape[1] != width:
        raise ValueError(f"embeddings here are (B, {width}), got {tuple(z.shape)}")


@checked
@dataclass(frozen=True)
class LanguageConfig:
    """How the states of a frozen text encoder enter a U-Net.

    Attributes:
        width: Of the states.
        heads: Of the attention that pools them.
        pooled: What is pooled joins the time embedding; else the states are attended to and nothing else is told.
    """

    width: Count
    heads: Count = 4
    pooled: bool = True


@checked
class LanguageDoors(nn.Module):
    """The states of a text, projected and normalised as tokens, and pooled by attention into the time embedding.

    Saharia et al. 2022, appendices B.1 and D.3.1. The query of the pool is the mean of the tokens, its keys and values
    are the tokens. **A text that has no token is nothing**: its tokens are zeros that do not count, its vector is zero.

    Args:
        config: See ``LanguageConfig``.
        features: Width of the time embedding.
        token_width: Width of what is attended to.

    Raises:
        ValueError: for a token width that does not divide into the heads; in the call, for states of another width.
    """

    def __init__(self, config: LanguageConfig, features: Count, token_width: Count):
        super().__init__()
        if token_width % config.heads:
            raise ValueError(f"tokens of width {token_width} do not divide into {config.heads} heads that pool them")
        self.config = config
        self.project = nn.Linear(config.width, token_width)
        self.norm = nn.LayerNorm(token_width)
        if config.pooled:
            self.query = nn.Linear(token_width, token_width)
            self.key_value = nn.Linear(token_width, 2 * token_width)
            self.vector = nn.Sequential(
                nn.LayerNorm(token_width), nn.Linear(token_width, features), nn.SiLU(), nn.Linear(features, features)
            )

    def forward(self, states: floats("B L W"), mask: flags("B L")) -> Condition:
        """States (B, L, W) of which those count where mask (B, L) is True, by the tokens door and the vector door."""
        if states.shape[2] != self.config.width:
            raise ValueError(f"states here are (B, L, {self.config.width}), got {tuple(states.shape)}")
        there = mask[..., None]
        tokens = torch.where(there, self.norm(self.project(states.to(self.project.weight.dtype))), 0.0)
        if not self.config.pooled:
            return Condition(tokens=tokens, tokens_mask=mask)
        said = mask.any(1, keepdim=True)
        mean = tokens.sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp(min=1)
        source = self.key_value(tokens).chunk(2, dim=-1)
        pooled = attend(self.query(mean), [source], self.config.heads, mask | ~said)[:, 0]  # none of nothing is no row
        return Condition(vector=torch.where(said, self.vector(pooled), 0.0), tokens=tokens, tokens_mask=mask)
