"""GLIDE: a U-Net that reads captions, its upsampler, and guidance by a CLIP (Nichol et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..data.tokenizer import Tokenizer
from ..denoiser import Condition
from ..guidance import LogProb
from ..models.unet import UNet
from ..prediction import Prediction
from ..random import rand
from ..schedule import DiscreteSchedule, NoiseLevel
from .diffusion import Diffusion
from .upsampler import Enlarging, eight_bit


class Glide(Diffusion):
    """A denoiser of captioned images. Called as a conditional model, ``system(x, level, tokens)``.

    What the text transformer makes of the last place goes to the vector door, what it makes of all places to the keys
    and values of attention. The null is the empty caption.

    Args:
        network: A U-Net with a text transformer.
        schedule: Discrete noise levels.
        predicts: "eps", "v" or "x0".
        variance: "fixed" or "learned_range".
        tokenizer: Reads captions.
        label_dropout: Probability that a caption is replaced by the empty one in training, drawn per sample; GLIDE's
            fine-tuning for classifier-free guidance drops 20 percent.
        bins: Number of values a pixel can take, for the bound.

    Raises:
        ValueError: for a network that reads no text, or was not made for this tokenizer.
    """

    def __init__(
        self,
        network: UNet,
        schedule: DiscreteSchedule,
        predicts: str,
        variance: str,
        tokenizer: Tokenizer,
        label_dropout: float = 0.0,
        bins: int = 256,
    ):
        super().__init__(network, schedule, predicts, variance, bins)
        text = network.config.text
        if text is None:
            raise ValueError("a text-to-image system needs a network with a text transformer; network.text is missing")
        if (text.vocabulary, text.context) != (tokenizer.size, tokenizer.context):
            raise ValueError(
                f"the network reads {text.context} of {text.vocabulary} tokens, but the tokenizer {tokenizer.name!r} "
                f"writes {tokenizer.context} of {tokenizer.size}"
            )
        self.tokenizer, self.label_dropout = tokenizer, label_dropout

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """(B, L) tokens of B captions.

        Raises:
            ValueError: for what the tokenizer refuses.
        """
        return self.tokenizer(captions).to(self.device)

    def null(self, n: int) -> Tensor:
        """(n, L) tokens of empty captions."""
        return self.tokens([""] * n)

    def condition(self, tokens: Tensor) -> Condition:
        """Tokens (B, L), -1 for none, through the vector door and the tokens door.

        Raises:
            ValueError: for another length or unknown tokens.
        """
        vector, sequence = self.network.text(tokens)
        return Condition(vector=vector, tokens=None if self.network.config.text.pooled else sequence)

    def forward(self, x: Tensor, level: NoiseLevel, tokens: Tensor | None = None) -> Prediction:
        """The prediction for x (B, C, H, W) given tokens (B or 1, L); the empty caption when they are left out."""
        tokens = self.null(len(x)) if tokens is None else tokens
        return super().forward(x, level, tokens.expand(len(x), -1))

    def dropped(self, tokens: Tensor, generator=None) -> Tensor:
        """Tokens with each caption replaced by the empty one with probability ``label_dropout``, sample by sample."""
        hidden = rand(tokens.shape[:1], generator, device=tokens.device) < self.label_dropout
        return torch.where(hidden[:, None], -1, tokens)

    def sample(
        self,
        captions: Tensor | Sequence[str],
        *arguments,
        clip=None,
        log_prob: LogProb | None = None,
        **options,
    ) -> Tensor:
        """Draw images of captions, x_0 kept inside [-1, 1].

        Args:
            captions: B captions, or their tokens (B, L).
            arguments, log_prob, options: Those of ``Diffusion.sample``.
            clip: A CLIP that guides instead of classifier-free guidance; it reads the same captions. By the rule
                "score" it guides the model that was told nothing, by the rule "adm" the one that knows the caption, as
                GLIDE's scripts do.

        Returns:
            (B, C, H, W).

        Raises:
            ValueError: for captions, scale or steps out of range.
        """
        tokens = captions if isinstance(captions, Tensor) else self.tokens(captions)
        if clip is not None:
            shared = clip.tokenizer is self.tokenizer
            log_prob = clip.critic(tokens if shared else self.tokenizer.decode(tokens))
        return super().sample(tokens, *arguments, log_prob=log_prob, **options)


class GlideUpsampler(Enlarging, Glide):
    """GLIDE's upsampler: given a caption and a small image."""

    @staticmethod
    def stored(image: Tensor) -> Tensor:
        """The small image as a cascade hands it over: in eight bits, rounded to the nearest."""
        return eight_bit(image, torch.round)
