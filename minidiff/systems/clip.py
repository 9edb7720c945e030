"""CLIP as a system: the contrastive loss on clean or noised images, and the critic that guides."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..guidance import LogProb
from ..models.clip import CLIPConfig, NoisedCLIP, Towers
from ..models.open_clip import OpenCLIP, ReleasedCLIP, load_open_clip
from ..pmi import info_nce
from ..process import diffuse
from ..random import randint, randn
from ..schedule import DATA, DiscreteSchedule, NoiseLevel
from ..training.parallel import gathered

Captions = str | Sequence[str] | Tensor


def clip_network(config: CLIPConfig) -> Towers:
    """The network of a shape: GLIDE's where it has levels, else towers of open_clip."""
    return NoisedCLIP(config) if config.levels else OpenCLIP(config)


class CLIP(nn.Module):
    """Two towers whose inner product, times exp(logit_scale), estimates log p(x_t, c) / (p(x_t) p(c)) + const.

    Whether it is noise-aware is the network's: a noised one is trained on x_t and asked at the level of x_t (Nichol et
    al. 2022, section 4.4), any other on clean images, and takes whatever it is shown for one.

    Args:
        network: The towers.
        schedule: Noise levels that the network is trained at, those of the model it is to guide; None for a network
            that is not trained here.
        tokenizer: Captions (a list of B) to what the text tower reads.
        directions: Of the loss, see ``pmi.info_nce``.
    """

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
    def noisy(self) -> bool:
        """Whether the image tower is told the noise level."""
        return self.network.noisy

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        config = self.network.config
        return config.in_channels, config.size, config.size

    @property
    def logit_scale(self) -> Tensor:
        """log 1/tau, a number."""
        return self.network.scale.log()

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return next(self.parameters()).device

    def tokens(self, captions: Captions) -> Tensor:
        """(B, L) tokens of a caption or of B captions; tokens stay as they are.

        Raises:
            ValueError: for what the tokenizer refuses.
        """
        if isinstance(captions, Tensor):
            return captions.to(self.device)
        return self.tokenizer([captions] if isinstance(captions, str) else list(captions)).to(self.device)

    def _time(self, x: Tensor, level: NoiseLevel) -> Tensor:
        return torch.as_tensor(level.time, device=x.device).expand(len(x))

    def embed_images(self, x: Tensor, level: NoiseLevel = DATA) -> Tensor:
        """(B, C, H, W) at a level -> (B, E) of length 1; gradients flow."""
        return F.normalize(self.network.image(x, self._time(x, level)).float(), dim=1)

    def embed_texts(self, captions: Captions) -> Tensor:
        """A caption, B captions or their tokens (B, L) -> (B, E) of length 1; gradients flow."""
        return F.normalize(self.network.text(self.tokens(captions)).float(), dim=1)

    @torch.no_grad()
    def similarity(self, x: Tensor, captions: Captions, level: NoiseLevel = DATA) -> Tensor:
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

        def log_ratio(x: Tensor, level: NoiseLevel) -> Tensor:
            if len(scaled) not in (1, len(x)):
                raise ValueError(
                    f"{len(scaled)} captions for {len(x)} images; one for all, or one for each is accepted"
                )
            return (self.embed_images(x, level) * scaled).sum(1)

        return log_ratio

    def loss(self, images: Tensor, tokens: Tensor, generator=None, times: Tensor | None = None) -> dict[str, Tensor]:
        """(B,) contrastive loss at ``times`` (B,), drawn uniformly when left out; also whether the caption was found.

        The negatives of a pair are the other pairs of this call; in training mode, of this call in all processes, each
        of which computes its own rows and columns of the critic (Radford et al. 2021, section 2.5). So the loss says
        little without the number of pairs; nothing learned is its log. Captions that occur twice in a batch stay, and
        count as found: with independent draws the loss keeps its minimiser. A batch without duplicates would shift it
        from text to image, where the other pictures are then no draws from p(x).

        Returns:
            "loss" and "accuracy", image to text.
        """
        level = DATA
        if self.noisy:
            times = randint(self.schedule.T, len(images), generator, images.device) if times is None else times
            level = self.schedule.level(times)
            images = diffuse(images, level, randn(images.shape, generator, images.dtype, images.device))
        z_i, z_t = self.embed_images(images, level), self.embed_texts(tokens)
        share = (z_i, z_t, tokens)
        all_i, all_t, texts = map(gathered, share) if self.training else share  # this process's own come first
        rows, columns = self.network.critic(z_i, all_t), self.network.critic(all_i, z_t)
        found = (texts[rows.argmax(1)] == tokens).all(1)
        return {"loss": info_nce(rows, self.directions, columns), "accuracy": found.float()}


def load_clip(name: str, device: str = "cpu") -> CLIP:
    """A CLIP by name, ready to use.

    Those of open_clip have never seen noise. They take images in [-1, 1] of any size, and bring them to their own.

    Args:
        name: A committed checkpoint, "scenes-clip-noisy"; a preset and the folder of its released files,
            "glide-clip=/path"; or a model of open_clip, "ViT-B-32:TAG", "ViT-B-32:/path/weights.safetensors" or
            "local-dir:/path", see ``models.open_clip.load_open_clip``.
        device: Where it computes.

    Raises:
        ValueError: for an unknown name, a checkpoint that is no CLIP, or weights that are not there.
    """
    preset, _, released = name.partition("=")
    if released:
        from ..pretrained import load as load_preset

        system = load_preset(preset, released).to(device)
    elif ":" in name:
        model, tokenizer = load_open_clip(name, device)
        system = CLIP(ReleasedCLIP(model), None, tokenizer).eval().requires_grad_(False)
    else:
        from .zoo import load

        system = load(name, device)
    if not isinstance(system, CLIP):
        raise ValueError(f"{name} is a {type(system).__name__}; a CLIP is accepted")
    return system
