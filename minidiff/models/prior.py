"""Causal transformers that write embeddings: the priors of unCLIP (Ramesh et al. 2022, section 2.2)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import Bins, Count, Natural, NonNegative, checked
from ..condition import Condition
from .embedding import Convention, EmbeddingScale, check_embedding
from .layers import check_input, timestep_embedding
from .transformer import Transformer


@checked
@dataclass(frozen=True)
class PriorConfig:
    """Shape of a prior.

    Attributes:
        embedding: Width of the embeddings, of images and of texts.
        width: Width of the transformer.
        layers: Blocks.
        heads: Attention heads.
        context: Places of a text.
        vocabulary: Number of tokens, for a network that reads them itself.
        states: Width of the states of a frozen network that read the text; one of the two is given.
        text_layers: Blocks of an encoder of its own, between the tokens and the transformer.
        text_width: Width of that encoder; that of the transformer when left out.
        text_heads: Its attention heads; those of the transformer when left out.
        convention: Of image embeddings inside.
        text_convention: Of text embeddings inside.
        embedding_std: Standard deviation, at the start, of what tokens and places embed to, see ``TextConfig``.

    Raises:
        ValueError: for neither or both of vocabulary and states, or a width that does not divide into heads.
    """

    embedding: Count
    width: Count
    layers: Count
    heads: Count
    context: Count
    vocabulary: Count | None = None
    states: Count | None = None
    text_layers: Natural = 0
    text_width: Count | None = None
    text_heads: Count | None = None
    convention: Convention = field(default_factory=Convention)
    text_convention: Convention = field(default_factory=Convention)
    embedding_std: NonNegative = 0.5

    def __post_init__(self):
        if (self.vocabulary is None) == (self.states is None):
            raise ValueError("a prior reads tokens of a vocabulary, or the states of a frozen network: name one")
        for width, heads in ((self.width, self.heads), self.encoder):
            if width % heads:
                raise ValueError(f"width {width} does not divide into {heads} heads")

    @property
    def encoder(self) -> tuple[int, int]:
        """Width and heads of the text encoder."""
        return self.text_width or self.width, self.text_heads or self.heads

    @property
    def in_channels(self) -> int:
        """Numbers of x."""
        return self.embedding

    @property
    def in_shape(self) -> tuple[int, ...]:
        """(E,) of x."""
        return (self.embedding,)

    @property
    def text_places(self) -> int:
        """Places of the text: one more where a token of its own begins it."""
        return self.context + (self.vocabulary is not None)


@checked
class TextReader(nn.Module):
    """The beginning of a prior's sequence: the encoded text, then its CLIP embedding.

    A network that reads tokens itself begins a text with a learned token, so that also an empty one has a place.

    Args:
        config: Shape.
        more: Places that follow those of the text and its embedding.
    """

    def __init__(self, config: PriorConfig, more: Count):
        super().__init__()
        self.config, width = config, config.width
        std = config.embedding_std
        if config.states is not None:
            self.text_enc_proj = nn.Linear(config.states, width)
        else:
            inner, heads = config.encoder
            self.token_embedding = nn.Embedding(config.vocabulary + 1, inner)
            nn.init.normal_(self.token_embedding.weight, std=std)
            if config.text_layers:
                self.text_positions = nn.Parameter(std * torch.randn(1, config.text_places, inner))
                self.text_encoder = Transformer(inner, config.text_layers, heads, causal=True)
                self.text_ln = nn.LayerNorm(inner)
            if config.text_layers or inner != width:
                self.text_enc_proj = nn.Linear(inner, width)
        self.text_scale = EmbeddingScale(config.embedding, config.text_convention)
        self.text_emb_proj = nn.Linear(config.embedding, width)
        self.positional_embedding = nn.Parameter(std * torch.randn(1, config.text_places + 1 + more, width))
        self.transformer = Transformer(width, config.layers, config.heads, causal=True)
        self.final_ln = nn.LayerNorm(width)

    def read_tokens(self, tokens: Tensor, z_t: Tensor) -> Condition:
        """A text as tokens (B, L), -1 for none, and its CLIP embedding (B, E), zeros for none.

        Raises:
            ValueError: for another length or width, or a token that the vocabulary lacks.
        """
        context, vocabulary = self.config.context, self.config.vocabulary
        if tokens.ndim != 2 or tokens.shape[1] != context:
            raise ValueError(f"this network reads captions of shape (B, {context}), got {tuple(tokens.shape)}")
        if tokens.device.type == "cpu" and bool(((tokens < -1) | (tokens >= vocabulary)).any()):
            raise ValueError(f"tokens must be from -1 (none) to {vocabulary - 1}, got up to {int(tokens.max())}")
        tokens = F.pad(tokens, (1, 0), value=vocabulary)
        mask, x = tokens >= 0, self.token_embedding(tokens.clamp(min=0))
        if self.config.text_layers:
            x = self.text_ln(self.text_encoder(x + self.text_positions, mask))
        return self._told(self.text_enc_proj(x) if hasattr(self, "text_enc_proj") else x, mask, z_t)

    def read_states(self, states: Tensor, mask: Tensor, z_t: Tensor) -> Condition:
        """A text as states (B, L, W) of a frozen network, (B, L) bool which count, and its CLIP embedding (B, E)."""
        return self._told(self.text_enc_proj(states), mask, z_t)

    def _told(self, encoded: Tensor, mask: Tensor, z_t: Tensor) -> Condition:
        check_embedding(z_t, self.config.embedding)
        token = self.text_emb_proj(self.text_scale.inward(z_t))[:, None]
        return Condition(tokens=torch.cat([encoded, token], 1), tokens_mask=F.pad(mask, (0, 1), value=True))

    def nothing(self, n: Count) -> Condition:
        """What is told of no text, n times; of states, blank ones that count."""
        of = self.text_emb_proj.weight
        z_t = of.new_zeros(n, self.config.embedding)
        if self.config.states is None:
            return self.read_tokens(torch.full((n, self.config.context), -1, device=of.device), z_t)
        states = of.new_zeros(n, self.config.context, self.config.states)
        return self.read_states(states, torch.ones(states.shape[:2], dtype=torch.bool, device=of.device), z_t)

    def run(self, condition: Condition, after: Tensor) -> Tensor:
        """The transformer's output (B, M, W) at the places ``after`` (B, M, W), which follow those of the condition."""
        x = torch.cat([condition.tokens, after], dim=1)
        mask = F.pad(condition.tokens_mask, (0, after.shape[1]), value=True)
        x = self.transformer(x + self.positional_embedding[:, : x.shape[1]], mask)
        return self.final_ln(x[:, -after.shape[1] :])


@checked
class DiffusionPrior(TextReader):
    """The noised image embedding to the clean one; places: encoded text, text embedding, time, noised embedding, query.

    Names are Karlo's, whose rows of attention have the legacy order. The mask is causal, so the query, which is last,
    sees all, and padded places of the text are seen by none.

    Raises:
        ValueError: in ``forward``, for x of another shape.
    """

    def __init__(self, config: PriorConfig):
        super().__init__(config, 3)
        width = config.width
        self.scale = EmbeddingScale(config.embedding, config.convention)
        self.time_embed = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.clip_img_proj, self.out_proj = nn.Linear(config.embedding, width), nn.Linear(width, config.embedding)
        self.prd_emb = nn.Parameter(config.embedding_std * torch.randn(1, 1, width))

    @property
    def out_shape(self) -> tuple[int, ...]:
        """(E,) of what leaves."""
        return self.config.in_shape

    def forward(self, x: Tensor, time: Tensor, condition: Condition | None = None) -> Tensor:
        """(B, E) noised, (B,) times -> (B, E).

        Args:
            x: Noised image embeddings, in the convention of the inside.
            time: Network times of their levels.
            condition: From ``read_tokens`` or ``read_states``; no text when left out.
        """
        check_input(x, self.config.in_shape)
        condition = self.nothing(len(x)) if condition is None else condition
        time = self.time_embed(timestep_embedding(time, self.config.width).to(x.dtype))
        after = [time[:, None], self.clip_img_proj(x)[:, None], self.prd_emb.expand(len(x), -1, -1)]
        return self.out_proj(self.run(condition, torch.cat(after, 1))[:, -1])


@checked
@dataclass(frozen=True)
class CodePriorConfig(PriorConfig):
    """Shape of an autoregressive prior.

    Attributes:
        components: Principal directions that are kept.
        buckets: Values that each of them can take, and that the cosine z_i . z_t can take.
    """

    components: Count = 16
    buckets: Bins = 64

    def __post_init__(self):
        super().__post_init__()
        if self.components > self.embedding:
            raise ValueError(f"1 to {self.embedding} components are accepted, got {self.components}")

    @property
    def in_shape(self) -> tuple[int, ...]:
        """(components,) codes enter: that of the cosine, and all but the last."""
        return (self.components,)


@checked
class Buckets(nn.Module):
    """Numbers as one of equally wide buckets between the least and the greatest of the training data.

    Args:
        size: Numbers of one item.
        buckets: Buckets of each.
    """

    def __init__(self, size: Count, buckets: Bins):
        super().__init__()
        self.buckets = buckets
        self.register_buffer("low", -torch.ones(size))
        self.register_buffer("high", torch.ones(size))

    @torch.no_grad()
    def learn(self, x: Tensor) -> None:
        """Take the range from (N, size); once."""
        if bool((self.high - self.low != 2).any()):
            return
        self.low.copy_(x.amin(0))
        self.high.copy_(x.amax(0))

    def encode(self, x: Tensor) -> Tensor:
        """(B, size) -> (B, size) numbers of buckets; what lies outside goes to the last ones."""
        share = (x - self.low) / (self.high - self.low).clamp(min=1e-12)
        return (share * self.buckets).floor().long().clamp(0, self.buckets - 1)

    def decode(self, codes: Tensor) -> Tensor:
        """(B, size) numbers of buckets -> (B, size), their middles."""
        return self.low + (codes + 0.5) / self.buckets * (self.high - self.low)


@checked
class PrincipalCodes(nn.Module):
    """Embeddings as codes: principal directions (``eq-pca-loss``), by falling eigenvalue, each number in a bucket.

    Ramesh et al. 2022, section 2.2: 319 of 1,024 directions, 1,024 buckets. How the buckets lie is not said there.

    Args:
        width: E.
        components: Directions that are kept.
        buckets: Buckets of each.
    """

    def __init__(self, width: Count, components: Count, buckets: Bins):
        super().__init__()
        self.components = components
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("basis", torch.eye(width)[:, :components].clone())
        self.of = Buckets(components, buckets)

    @torch.no_grad()
    def learn(self, z: Tensor) -> None:
        """Take directions and ranges from embeddings (N, E); once."""
        if bool((self.mean != 0).any()):
            return
        z = z.double()
        centred = z - z.mean(0)
        _, directions = torch.linalg.eigh(centred.T @ centred)  # in rising order
        kept = directions.flip(1)[:, : self.components]
        kept = kept * torch.where(kept.gather(0, kept.abs().argmax(0)[None]) < 0, -1.0, 1.0)  # a sign that is decided
        self.mean.copy_(z.mean(0))
        self.basis.copy_(kept)
        self.of.learn(centred @ kept)

    def encode(self, z: Tensor) -> Tensor:
        """(B, E) -> (B, components) codes."""
        return self.of.encode((z - self.mean) @ self.basis)

    def decode(self, codes: Tensor) -> Tensor:
        """(B, components) codes -> (B, E)."""
        return self.mean + self.of.decode(codes) @ self.basis.T


@checked
class CodePrior(TextReader):
    """The next code of an image embedding, after the text, its embedding, the cosine of both, and the codes before.

    Args:
        config: Shape.
    """

    def __init__(self, config: CodePriorConfig):
        super().__init__(config, config.components)
        self.codes = PrincipalCodes(config.embedding, config.components, config.buckets)
        self.cosines = Buckets(1, config.buckets)
        self.code_embedding = nn.Embedding(2 * config.buckets, config.width)  # the first half is of cosines
        nn.init.normal_(self.code_embedding.weight, std=config.embedding_std)
        self.out_proj = nn.Linear(config.width, 2 * config.buckets)

    def forward(self, codes: Tensor, time: Tensor | None = None, condition: Condition | None = None) -> Tensor:
        """Logits of what follows: of the cosine, then of each code.

        Args:
            codes: (B, M), the cosine's and then those of the directions, as many as are known; M may be 0.
            time: Not looked at.
            condition: From ``read_tokens`` or ``read_states``; no text when left out.

        Returns:
            (B, M + 1, buckets).
        """
        condition = self.nothing(len(codes)) if condition is None else condition
        buckets = self.config.buckets
        codes = codes.long() + buckets * (torch.arange(codes.shape[1], device=codes.device) > 0)
        told, last = condition.tokens, condition.tokens[:, -1:]  # the first logits are read at the text embedding
        before = Condition(tokens=told[:, :-1], tokens_mask=condition.tokens_mask[:, :-1])
        out = self.out_proj(self.run(before, torch.cat([last, self.code_embedding(codes)], 1)))
        return torch.cat([out[:, :1, :buckets], out[:, 1:, buckets:]], dim=1)
