"""unCLIP's priors: from a caption to the CLIP embedding of an image, by diffusion (Ramesh et al. 2022, section 2.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from ..arguments import Randomness, Share, checked
from ..condition import Value, column
from ..data.sets import Rows
from ..data.tokenizer import tokenizer
from ..guidance import static_threshold
from ..models.prior import DiffusionPrior
from .adm import denoiser
from .diffusion import DenoiserOptions, Diffusion
from .embeddings import CaptionAndEmbedding, CaptionStates
from .registry import system

STATISTICS = 20_000  # rows of the data that means, deviations and directions are learnt from


@checked
@dataclass(frozen=True)
class PriorOptions(DenoiserOptions):
    """Options of a diffusion prior.

    Attributes:
        clip: Name of the frozen CLIP whose embeddings these are.
        candidates: Embeddings that are drawn for each that is kept, the one with the larger z_i . z_t.
        clamp: Largest number of an embedding inside while it is sampled; null for none.
    """

    predicts: str = "x0"
    drop: Share = 0.1
    clip: str = ""
    candidates: int = 2
    clamp: float | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.candidates < 1 or (self.clamp is not None and not self.clamp > 0):
            raise ValueError(f"candidates >= 1 and clamp > 0 are accepted, got {self.candidates} and {self.clamp}")
        if self.variance != "fixed":
            raise ValueError(f"a prior has a fixed variance, got {self.variance!r}")


@checked
class EmbeddingDiffusion(Diffusion):
    """A denoiser of image embeddings, in the convention of its network's inside; handed out as the CLIP gives them."""

    subject, threshold = "embedding", None

    def prepare(self, rows: Rows) -> None:
        """Learn the conventions' statistics from the embeddings of the training data."""
        found = rows(STATISTICS)
        self.network.scale.learn(column(found, "embedding"))
        self.network.text_scale.learn(column(found, "text_embedding"))

    def subjects(self, batch: Mapping[str, Tensor], generator: Randomness = None) -> Tensor:
        """The embeddings of the batch, inside."""
        return self.network.scale.inward(column(batch, self.subject))

    def finished(self, x: Tensor) -> Tensor:
        """(B, E) inside -> (B, E) as the CLIP gives it."""
        return self.network.scale.outward(x)

    def merit(self, drawn: Tensor, values: Mapping[str, Value]) -> Tensor:
        """(B,) cosines of z_i and z_t."""
        return F.cosine_similarity(drawn, values["caption"][-1])


@system("unclip_prior", network=DiffusionPrior, options=PriorOptions)
def unclip_prior(network, schedule, options, data) -> EmbeddingDiffusion:
    """Told a caption and its CLIP embedding, draws the CLIP embedding of an image."""
    config = network.config
    if config.states is None:
        told = CaptionAndEmbedding(tokenizer(data.tokenizer), config.embedding, options.clip, options.drop)
    else:
        told = CaptionStates(config.states, config.context, options.clip, options.drop)
    made = denoiser(network, schedule, [told], options, data, kind=EmbeddingDiffusion)
    made.candidates = options.candidates
    if options.clamp is not None:
        made.threshold = partial(static_threshold, low=-options.clamp, high=options.clamp)
    return made
