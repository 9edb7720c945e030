"""Imagen: a frozen language model, a U-Net that reads its states, and upsamplers (Saharia et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..arguments import Count, Randomness, Share, checked
from ..condition import Condition, Part, Value, column
from ..models.efficient_unet import EfficientUNet
from ..models.unet import UNet
from .adm import channels, denoiser
from .cascade import CascadeOptions
from .diffusion import DenoiserOptions, Diffusion
from .parts import CAPTION, LowRes, in_turn
from .registry import system


@checked
class LanguageTokens(Part):
    """A caption as the states of a frozen text encoder, one for each token (Saharia et al. 2022, section 2.1).

    Its value is (states (B, L, W), (B, L) which count). The null is zeros of which none counts; the network makes zeros
    of it for tokens and for the vector that is pooled of them.

    Args:
        width: W.
        encoder: Name of the text encoder.
        p_drop: Probability of the null in training; .1 in the paper.
    """

    key, judge, nullable, vector, questions = "caption", "caption", True, True, CAPTION

    def __init__(self, width: Count, encoder: str = "", p_drop: Share = 0.0):
        self.width, self.frozen, self.p_drop = width, encoder, p_drop

    def check(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        """The network has doors for states of that width."""
        doors = network.config.language
        if doors is None or doors.width != self.width:
            has = "none" if doors is None else f"some for {doors.width}"
            raise ValueError(f"states of width {self.width} need doors of that width; the network has {has}")
        self.vector = doors.pooled

    def read(self, value, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Captions, which the frozen encoder reads, or (states, mask).

        Raises:
            ValueError: for anything else, or states of another width.
        """
        if isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(v, Tensor) for v in value):
            return self._fitting(*value)
        captions = [value] if isinstance(value, str) else value
        if not isinstance(captions, (list, tuple)) or not all(isinstance(caption, str) for caption in captions):
            raise ValueError(
                f"a caption, a list of captions or (states, mask) are accepted, got {type(value).__name__}"
            )
        with torch.no_grad():
            return self._fitting(*self.lent.text_states(list(captions))[:2])

    def _fitting(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        whole = states.ndim == 3 and states.shape[:2] == mask.shape and mask.dtype is torch.bool
        if not whole or states.shape[2] != self.width:
            given = f"{tuple(states.shape)} and {tuple(mask.shape)} of {mask.dtype}"
            raise ValueError(
                f"states (B, L, {self.width}) and a mask (B, L) of True and False are accepted, got {given}"
            )
        return states, mask

    def observe(self, batch: Mapping[str, Tensor], generator: Randomness = None) -> tuple[Tensor, Tensor]:
        """The columns "text_states" and "text_mask"."""
        return column(batch, "text_states"), column(batch, "text_mask")

    def encode(self, network: nn.Module, value: tuple[Tensor, Tensor]) -> Condition:
        """Tokens, and a vector pooled of them."""
        return network.language(*value)

    def nothing(self, network: nn.Module, n: Count) -> tuple[Tensor, Tensor]:
        """(n, 1, W) zeros that do not count."""
        return torch.zeros(n, 1, self.width), torch.zeros(n, 1, dtype=torch.bool)

    def null(self, network: nn.Module, value: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """As many zeros as the value has numbers, so that both make one batch."""
        return torch.zeros_like(value[0]), torch.zeros_like(value[1])

    def answer(self, given: Mapping[str, object], n: int, shape: tuple[int, ...]) -> tuple[Value, Tensor]:
        """The captions in turn."""
        captions, number = in_turn(given, n)
        return tuple(part[number] for part in self.read(captions, shape)), number


@checked
def tokens(network: nn.Module, options: DenoiserOptions, data) -> LanguageTokens:
    """The caption, as the encoder of the data reads it.

    Raises:
        ValueError: for a network without doors for it.
    """
    if network.config.language is None:
        raise ValueError("the states of a text encoder are told: network.language is missing")
    return LanguageTokens(network.config.language.width, data.language, options.drop)


@system("imagen", network=UNet, options=DenoiserOptions)
def imagen(network, schedule, options, data) -> Diffusion:
    """Reads what a frozen text encoder makes of a caption."""
    return denoiser(network, schedule, [tokens(network, options, data)], options, data)


@checked
@dataclass(frozen=True)
class ImagenUpsamplerOptions(CascadeOptions):
    """Options of an upsampler of Imagen.

    Attributes:
        text: Whether it reads the caption as well.
    """

    text: bool = True


@system("imagen_upsampler", network=UNet, options=ImagenUpsamplerOptions)
def imagen_upsampler(network, schedule, options, data) -> Diffusion:
    """Reads a small image with noise in it, how much, and what a frozen text encoder makes of a caption."""
    small = LowRes(options.factor, channels(network, options), augment=options.augment)
    read = [tokens(network, options, data)] if options.text else []
    return denoiser(network, schedule, [*read, small], options, data)


@system("imagen_efficient", network=EfficientUNet, options=DenoiserOptions)
def imagen_efficient(network, schedule, options, data) -> Diffusion:
    """The same as ``imagen``, by an Efficient U-Net."""
    return imagen(network, schedule, options, data)


@system("imagen_efficient_upsampler", network=EfficientUNet, options=ImagenUpsamplerOptions)
def imagen_efficient_upsampler(network, schedule, options, data) -> Diffusion:
    """The same as ``imagen_upsampler``, by an Efficient U-Net, as in the paper."""
    return imagen_upsampler(network, schedule, options, data)
