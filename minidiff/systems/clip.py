"""CLIP as a system: the contrastive loss on clean or noised images, and the critic that guides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arguments import Device, Randomness, checked, floats
from ..condition import column
from ..data.tokenizer import tokenizer
from ..guidance import LogProb
from ..models.clip import CLIPConfig, NoisedCLIP, Towers
from ..models.open_clip import OpenCLIP, ReleasedCLIP, load_open_clip
from ..pmi import DIRECTIONS, info_nce
from ..process import diffuse
from ..random import randn
from ..schedule import DATA, DiscreteSchedule, NoiseLevel
from ..training.levels import Uniform
from ..training.parallel import gathered
from ..training.trainable import Trainable
from .registry import system

Captions = str | Sequence[str] | Tensor


@checked
def clip_network(config: CLIPConfig) -> Towers:
    """The network of a shape: GLIDE's where it has levels, else towers of open_clip."""
    return NoisedCLIP(config) if config.levels else OpenCLIP(config)


@checked
@dataclass(frozen=True)
class CLIPOptions:
    """Options of a CLIP.

    Attributes:
        directions: Of its loss: "both", "image-to-text" or "text-to-image".
    """

    directions: str = "both"

    def __post_init__(self):
        if self.directions not in DIRECTIONS:
            raise ValueError(f"directions must be one of {', '.join(DIRECTIONS)}, got {self.directions!r}")


@checked
class CLIP(Trainable):
    """Two towers whose inner product, times exp(logit_scale), estimates log p(x_t, c) / (p(x_t) p(c)) + const.

    Whether it is noise-aware is the network's: a noised one is trained on x_t and asked at the level of x_t (Nichol et
    al. 2021, section 4.4), any other on clean images, and takes every image for a clean one.

    Args:
        network: The towers.
        schedule: Noise levels that the network is trained at, those of the model it is to guide; None for a network
            that is not trained here.
        tokenizer: Captions (a list of B) to what the text tower reads.
        directions: Of the loss, see ``pmi.info_nce``.
    """

    whole_batch = True  # the other pairs are the negatives of a pair

    def __init__(
        self,
        network: Towers,
        schedule: DiscreteSchedule | None,
        tokenizer: Callable[[list[str]], Tensor],
        directions: str = "both",
    ):
        super().__init__()
        self.network, self.schedule, self.tokenizer, self.directions = network, schedule, tokenizer, directions

    @property
    def noise_aware(self) -> bool:
        """Whether the image tower reads the noise level."""
        return self.network.noise_aware

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        config = self.network.config
        return config.in_channels, config.size, config.size

    @property
    def logit_scale(self) -> Tensor:
        """log 1/tau, a number."""
        return self.network.scale.log()

    def tokens(self, captions: Captions) -> Tensor:
        """(B, L) tokens of a caption or of B captions; tokens stay as they are.

        Raises:
            ValueError: for what the tokenizer refuses.
        """
        if isinstance(captions, Tensor):
            return captions.to(self.device)
        return self.tokenizer([captions] if isinstance(captions, str) else list(captions)).to(self.device)

    def embed_images(self, x: floats("B C H W"), level: NoiseLevel = DATA) -> Tensor:
        """(B, C, H, W) at a level -> (B, E) of length 1; gradients flow."""
        return F.normalize(self.network.image(x.to(self.dtype), level.times(x)).float(), dim=1)

    def embed_texts(self, captions: Captions) -> Tensor:
        """A caption, B captions or their tokens (B, L) -> (B, E) of length 1; gradients flow."""
        return F.normalize(self.network.text(self.tokens(captions)).float(), dim=1)

    def text_states(self, captions: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """What the text tower says of every place: (B, L, W) states, (B, L) which count, and the embedding (B, E).

        The embedding is as long as the tower makes it. A place counts up to the end of the text, its end included.

        Raises:
            ValueError: for a network that shows no states.
        """
        if not hasattr(self.network, "states"):
            raise ValueError("a noised CLIP does not show the states of its text tower; a clean one does")
        tokens = self.tokens(captions)
        return self.network.states(tokens), self.network.counted(tokens), self.network.text(tokens)

    @torch.no_grad()
    def similarity(self, x: floats("B C H W"), captions: Captions, level: NoiseLevel = DATA) -> Tensor:
        """(N, M) cosines of N images and M captions; times exp(logit_scale) they are the critic of every pair."""
        return self.embed_images(x, level) @ self.embed_texts(captions).T

    def critic(self, captions: Captions) -> LogProb:
        """``(x, level) -> (B,)`` exp(logit_scale) <z_i, z_t>, the form that guidance takes (``eq-clip-critic``).

        The texts are embedded here, once. Up to a constant this estimates log p(c | x_t), so its gradient is the
        classifier's.

        Args:
            captions: One caption for all images, one for each, or their tokens.

        Raises:
            ValueError: in the call, when there are neither one nor as many captions as images.
        """
        with torch.no_grad():
            scaled = self.network.scale * self.embed_texts(captions)

        @checked
        def log_ratio(x: floats("B C H W"), level: NoiseLevel) -> Tensor:
            if len(scaled) not in (1, len(x)):
                raise ValueError(
                    f"{len(scaled)} captions for {len(x)} images; one for all, or one for each is accepted"
                )
            return (self.embed_images(x, level) * scaled).sum(1)

        return log_ratio

    def loss(
        self, batch: Mapping[str, Tensor], generator: Randomness = None, level: NoiseLevel | None = None
    ) -> dict[str, Tensor]:
        """(B,) contrastive loss at the level, drawn uniformly when left out; also whether the caption was found.

        The negatives of a pair are the other pairs of this call; in training mode, of this call in all processes, each
        of which computes its own rows and columns of the critic (Radford et al. 2021, section 2.5). So the loss says
        little without the number of pairs; nothing learned is its log. Captions that occur twice in a batch stay, and
        count as found: with independent draws the loss keeps its minimiser. A batch without duplicates would shift it
        from text to image, where the other pictures are then no draws from p(x).

        Returns:
            "loss" and "accuracy", image to text.
        """
        images, tokens = column(batch, "image"), column(batch, "caption")
        if not self.noise_aware:
            level = DATA
        else:
            if level is None:
                level, _ = Uniform().draw(self.schedule, len(images), generator, images.device)
            images = diffuse(images, level, randn(images.shape, generator, images.dtype, images.device))
        z_i, z_t = self.embed_images(images, level), self.embed_texts(tokens)
        share = (z_i, z_t, tokens)
        all_i, all_t, texts = map(gathered, share) if self.training else share  # this process's own come first
        rows, columns = self.network.critic(z_i, all_t), self.network.critic(all_i, z_t)
        found = (texts[rows.argmax(1)] == tokens).all(1)
        return {"loss": info_nce(rows, self.directions, columns), "accuracy": found.float()}


@checked
def released_clip(name: str, device: Device = "cpu") -> CLIP:
    """A CLIP of open_clip. It has never seen noise, takes images in [-1, 1] of any size, and brings them to its own.

    Args:
        name: See ``models.open_clip.load_open_clip``.
        device: Where it computes.

    Raises:
        ValueError: for an unknown model, or weights that are not there.
    """
    model, tokenizer = load_open_clip(name, device)
    return CLIP(ReleasedCLIP(model), None, tokenizer)


@system("clip", network=clip_network, options=CLIPOptions)
def clip(network, schedule, options, data) -> CLIP:
    """A CLIP with the tokenizer of the data."""
    return CLIP(network, schedule, tokenizer(data.tokenizer), options.directions)
