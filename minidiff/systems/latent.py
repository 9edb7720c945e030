"""Latent diffusion, Stable Diffusion (Rombach et al. 2022): a U-Net of transformers on the latents of an autoencoder.

What is told enters by cross-attention: a caption, by a text transformer of the network's own or by a frozen tower, or a
class; or it stands beside x: what is known of a picture, or a small version of it. All channels are guided.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import Count, Randomness, Share, checked, floats
from ..condition import Condition, Part, column
from ..data.masks import random_masks
from ..data.tokenizer import Tokenizer, tokenizer
from ..models.latent_unet import LatentUNet
from .adm import denoiser, label
from .diffusion import DenoiserOptions, Diffusion
from .glide import caption
from .latents import Latents
from .parts import Caption, Known, Label, LowRes
from .registry import system

BESIDE = ("", "known", "known_first", "low_res")


@checked
@dataclass(frozen=True)
class LatentOptions(DenoiserOptions):
    """Options of latent diffusion.

    Attributes:
        text: Name of the frozen text tower whose states the U-Net reads; with none it reads captions by a transformer
            of its own, where it has one.
        beside: What stands beside x: "known", a mask and what is known of the picture, as in Stable Diffusion;
            "known_first", the same in the order of the older inpainting model; "low_res", a small picture of the
            latent's size; "" for nothing.

    Raises:
        ValueError: without an autoencoder, or for something else beside x.
    """

    text: str = ""
    beside: str = ""

    def __post_init__(self):
        super().__post_init__()
        if not self.autoencoder:
            raise ValueError("latent diffusion is in the latents of an autoencoder: name it, autoencoder=NAME")
        if self.beside not in BESIDE:
            raise ValueError(f"{' or '.join(map(repr, BESIDE))} may stand beside x, got {self.beside!r}")


@checked
class LabelToken(Label):
    """A class as the one token that is attended to, as in the released class-conditional model. The null is -1."""

    vector = False

    def encode(self, network: nn.Module, value: Tensor) -> Condition:
        """Rows of the label embedding, each a sequence of one."""
        return Condition(tokens=network.label_emb(torch.where(value < 0, self.n_classes, value))[:, None])


@checked
class TextStates(Caption):
    """A caption as what a frozen text tower says of every place; the null is what it says of the empty caption.

    Its value is (B, L, W). Nothing is masked: the places after the end of a caption are attended to as well.

    Args:
        tokenizer: Reads captions.
        width: W.
        tower: Name of the frozen tower; ``states(tokens)`` gives what it says.
        p_drop: Probability of the empty caption in training.
    """

    vector = False

    def __init__(self, tokenizer: Tokenizer, width: Count, tower: str, p_drop: Share = 0.0):
        super().__init__(tokenizer, p_drop)
        self.width, self.frozen = width, tower

    def check(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        """The network attends to tokens of that width."""
        if network.config.tokens != self.width:
            raise ValueError(f"states of width {self.width} are attended to, got token_width {network.config.tokens}")

    def read(self, value, shape: tuple[int, ...]) -> Tensor:
        """A caption, B captions, their tokens (B, L), or states (B, L, W).

        Raises:
            ValueError: for anything else, or what the tokenizer refuses.
        """
        if isinstance(value, Tensor) and value.is_floating_point():
            if value.ndim != 3 or value.shape[2] != self.width:
                raise ValueError(f"states must be (B, L, {self.width}), got {tuple(value.shape)}")
            return value
        return self._states(super().read(value, shape))

    def observe(self, batch: Mapping[str, Tensor], generator: Randomness = None) -> Tensor:
        """The states of the captions of a batch."""
        return self._states(column(batch, self.key))

    def encode(self, network: nn.Module, value: Tensor) -> Condition:
        """As they are, through the tokens door."""
        return Condition(tokens=value)

    def nothing(self, network: nn.Module, n: Count) -> Tensor:
        """(n, L, W) states of the empty caption."""
        empty = self._states(super().nothing(network, 1))
        return empty.expand(n, *empty.shape[1:])

    @torch.no_grad()
    def _states(self, tokens: Tensor) -> Tensor:
        return self.lent.states(tokens.to(self.lent.device))


@checked
class KnownLatent(Known):
    """What is known of a picture beside its latent: where it has to be painted, and the latent of the rest.

    A person gives pictures (B, C, H, W) and masks (B, 1, H, W), **1 where a pixel is known**. The value is what the
    network takes, in this order: a mask of the latent's size, (B, 1, h, w), **1 where it is to be painted**, and the
    latent (B, c, h, w) of the picture that is grey there. The older model takes the latent first, its mask is -1 or 1.

    Args:
        latents: The way to latents.
        channels: Channels of a latent.
        first: Whether the latent comes first, before a mask of -1 and 1.
    """

    beside_latents = True

    def __init__(self, latents: Latents, channels: Count, first: bool = False):
        super().__init__(channels)
        self.latents, self.first = latents, first

    def read(self, value, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        """Pictures and masks of the autoencoder's size.

        Raises:
            ValueError: for another shape, a mask of anything but 0 and 1, or known values that are not finite.
        """
        return self._shown(*super().read(value, self.latents.shape), shape)

    def observe(self, batch: Mapping[str, Tensor], generator: Randomness = None) -> tuple[Tensor, Tensor]:
        """The pictures of a batch behind random masks."""
        images = column(batch, "image")
        masks = random_masks(len(images), images.shape[-1], generator, images.device)
        return self._shown(images * masks, masks, None)

    def encode(self, network: nn.Module, value: tuple[Tensor, Tensor]) -> Condition:
        """Mask, then latent; or the other way round."""
        mask, z = value
        return Condition(image=torch.cat([z, 2 * mask - 1] if self.first else [mask, z], dim=1))

    def impose(self, denoiser, value: tuple[Tensor, Tensor]):
        """Nothing is imposed: what is known of a latent depends on all pixels."""
        return denoiser

    def answer(self, given: Mapping[str, object], n: int, shape: tuple[int, ...]):
        """The picture that is edited, and what is kept of it."""
        return super().answer(given, n, self.latents.shape)

    @torch.no_grad()
    def _shown(self, images: Tensor, masks: Tensor, shape: tuple[int, int, int] | None) -> tuple[Tensor, Tensor]:
        z = self.latents.inward(images)
        painted = 1 - F.interpolate(masks, z.shape[2:], mode="nearest")
        return painted.to(z), z


@checked
class LowResBeside(LowRes):
    """A small picture of the latent's own size beside it, as in the released super-resolution model.

    Args:
        size: Side of a latent.
        channels: Channels of a picture.
    """

    beside_latents = True

    def __init__(self, size: Count, channels: Count = 3):
        super().__init__(1, channels)
        self.size = size

    def small_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(C, h, w) of the small picture for x of a shape."""
        return self.channels, *shape[1:]

    def downsample(self, images: floats("B C H W")) -> Tensor:
        """(B, C, H, W) -> (B, C, h, w), by the area average."""
        return F.interpolate(images, (self.size, self.size), mode="area")


@system("latent", network=LatentUNet, options=LatentOptions)
def latent(network, schedule, options, data) -> Diffusion:
    """Reads a caption, a class or nothing, and perhaps what stands beside x."""
    config, latents = network.config, options.latents()
    parts: list[Part] = []
    if options.text:
        parts.append(TextStates(tokenizer(data.tokenizer), config.tokens, options.text, options.drop))
    elif config.text is not None:
        parts.append(caption(options, data))
    elif config.class_tokens:
        nullable = options.drop > 0
        parts.append(LabelToken(config.classes - nullable, nullable, options.drop))
    else:
        parts += label(network, options)
    if options.beside.startswith("known"):
        parts.append(KnownLatent(latents, config.out_channels, options.beside == "known_first"))
    elif options.beside == "low_res":
        parts.append(LowResBeside(config.size))
    return denoiser(network, schedule, parts, options, data, latents=latents)
