"""unCLIP's autoregressive prior: an embedding as a sequence of codes (Ramesh et al. 2022, section 2.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arguments import Count, Finite, Positive, Randomness, Share, Some, checked, floats
from ..condition import column
from ..data.sets import Rows
from ..data.tokenizer import tokenizer
from ..models.prior import CodePrior
from ..random import rand
from .embeddings import CaptionAndEmbedding
from .registry import system
from .told import Told, distinct
from .unclip_prior import STATISTICS


@checked
@dataclass(frozen=True)
class CodePriorOptions:
    """Options of an autoregressive prior.

    Attributes:
        drop: Probability with which training says no text, per sample.
        clip: Name of the frozen CLIP whose embeddings these are.
    """

    drop: Share = 0.1
    clip: str = ""


@checked
class AutoregressivePrior(Told):
    """p(z_i | c) as a product over codes (``eq-code-chain``), after one of the cosine z_i . z_t: that asks for a fit.

    Args:
        network: Also holds directions and buckets, which are learnt from data before training.
        part: The caption with its embedding.
    """

    def __init__(self, network: CodePrior, part: CaptionAndEmbedding):
        super().__init__()
        self.network, self.parts = network, distinct([part])
        part.check(network, self.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """(E,)."""
        return (self.network.config.embedding,)

    def prepare(self, rows: Rows) -> None:
        """Learn principal directions, ranges and statistics from the embeddings of the training data."""
        found = rows(STATISTICS)
        z_i, z_t = column(found, "embedding"), column(found, "text_embedding")
        self.network.text_scale.learn(z_t)
        self.network.codes.learn(F.normalize(z_i, dim=1))
        self.network.cosines.learn(F.cosine_similarity(z_i, z_t)[:, None])

    def codes(self, z_i: floats("B E"), z_t: floats("B E")) -> Tensor:
        """(B, 1 + K): the code of the cosine, then those of the principal directions, of embeddings (B, E)."""
        cosine = F.cosine_similarity(z_i, z_t)[:, None]
        return torch.cat([self.network.cosines.encode(cosine), self.network.codes.encode(F.normalize(z_i, dim=1))], 1)

    def loss(self, batch: Mapping[str, Tensor], generator: Randomness = None) -> dict[str, Tensor]:
        """Cross-entropy of the codes, in nats a code.

        Returns:
            (B,) "loss", and of it "cosine", the first code's.
        """
        (part,) = self.parts
        told = part.observe(batch, generator)
        codes = self.codes(column(batch, "embedding"), told[1])
        shown = part.drop(self.network, told, generator)
        logits = self.network(codes[:, :-1], None, self.encode({part.key: shown}))
        nats = F.cross_entropy(logits.transpose(1, 2).float(), codes, reduction="none")
        return {"loss": nats.mean(1), "cosine": nats[:, 0]}

    @torch.no_grad()
    def draw(
        self,
        n: Count,
        *,
        scale: Finite = 1.0,
        top: Some = 0.5,
        temperature: Positive = 1.0,
        generator: Randomness = None,
        **values,
    ) -> Tensor:
        """Draw n embeddings (n, E), code by code.

        Args:
            n: Number of embeddings.
            scale: Guidance scale s, of logits: l_u + s (l_c - l_u), not of the cosine's.
            top: The cosine comes from this upper share of its distribution given the caption (``eq-top-share``); 1 is
                all of it. The paper takes the top half, and does not say of which distribution.
            temperature: Logits are divided by it.
            generator: One generator, or a list with one per sample.
            values: ``caption=...``.

        Raises:
            ValueError: for numbers out of range, or values that it cannot be told.
        """
        given = self.read(values, n)
        condition, null = self.encode(given), self.encode(self.nulls(given))
        codes = torch.zeros(n, 0, dtype=torch.long, device=self.device)
        for i in range(1 + self.network.config.components):
            logits = self.network(codes, None, condition)[:, -1]
            if i and scale != 1:
                without = self.network(codes, None, null)[:, -1]
                logits = without + scale * (logits - without)
            share = rand((n,), generator, torch.float64, self.device)
            drawn = _quantile((logits.double() / temperature).softmax(1), share if i else 1 - top * (1 - share))
            codes = torch.cat([codes, drawn], 1)
        return self.network.codes.decode(codes[:, 1:]).to(self.dtype)


def _quantile(p: Tensor, share: Tensor) -> Tensor:
    """(B, 1) the first code whose cumulative probability exceeds a share in [0, 1)."""
    cumulative = p.cumsum(1)
    return torch.searchsorted(cumulative, share[:, None] * cumulative[:, -1:], right=True).clamp(max=p.shape[1] - 1)


@system("unclip_ar_prior", network=CodePrior, options=CodePriorOptions, scheduled=False)
def unclip_ar_prior(network, schedule, options, data) -> AutoregressivePrior:
    """Told a caption and its CLIP embedding, draws the CLIP embedding of an image, code by code."""
    part = CaptionAndEmbedding(tokenizer(data.tokenizer), network.config.embedding, options.clip, options.drop)
    return AutoregressivePrior(network, part)
