"""Diffusion autoencoders (Preechakul et al. 2022): a code of the picture, learned along with the network that it tells.

What reads the code off a clean picture and what denoises given the code have one loss, that of denoising. The code is
no embedding by CLIP: no caption had a say in it, and it is asked to hold whatever helps to draw this picture again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..arguments import Count, Randomness, checked, floats
from ..condition import Condition, Part, Question, Value, column
from ..models.classifier import Classifier
from ..models.unet import UNet, UNetConfig
from ..pictures import read_picture
from .adm import denoiser
from .diffusion import DenoiserOptions, Diffusion
from .registry import system


@checked
@dataclass(frozen=True)
class AutoencoderConfig(UNetConfig):
    """Shape of a U-Net that is told a code, and of what reads the code: the way down of such a U-Net.

    Attributes:
        code: E, how many numbers a code has.
        reader_channels: Base width of what reads it; the denoiser's own when left out.
    """

    code: Count = 64
    reader_channels: Count | None = None

    @property
    def reader(self) -> UNetConfig:
        """Shape of what reads a code: the way down of a U-Net, whose outputs are the code."""
        width = self.reader_channels or self.channels
        return replace(self, channels=width, in_channels=self.out_channels, out_channels=self.code)


@checked
class CodedUNet(UNet):
    """A U-Net with an encoder of clean pictures beside it; the code joins the time embedding.

    In the paper the code scales what the time has scaled and shifted, group norm by group norm; here both are added
    before they become scale and shift, as labels are.
    """

    def __init__(self, config: AutoencoderConfig):
        super().__init__(config)
        self.reader = Classifier(config.reader)
        self.told = nn.Linear(config.code, 4 * config.channels)

    def code(self, pictures: floats("B C H W")) -> Tensor:
        """Clean pictures (B, C, H, W) in [-1, 1] -> (B, E); gradients flow."""
        return self.reader(pictures, torch.zeros(len(pictures), device=pictures.device))


@checked
class Code(Part):
    """The code of a picture, through the vector door; in training the picture itself, which the network encodes.

    Args:
        width: E.
    """

    key, vector = "embedding", True
    questions = (Question("like", "file", "Picture whose code is drawn: variations of it."),)

    def __init__(self, width: Count):
        self.width = width

    def check(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        """The network reads and is told a code of that width."""
        if getattr(network.config, "code", None) != self.width:
            raise ValueError(f"a code of {self.width} numbers needs an autoencoder with such a code")

    def read(self, value, shape: tuple[int, ...]) -> Tensor:
        """Codes (B, E), or pictures (B, C, H, W) in [-1, 1] of the system's size.

        Raises:
            ValueError: for anything else.
        """
        floats = isinstance(value, Tensor) and value.is_floating_point()
        if not floats or tuple(value.shape[1:]) not in (shape, (self.width,)):
            given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            pictures = f"pictures (B, {', '.join(map(str, shape))}) in [-1, 1]"
            raise ValueError(f"codes (B, {self.width}) or {pictures} are accepted, got {given}")
        return value

    def observe(self, batch: Mapping[str, Tensor], generator: Randomness = None) -> Tensor:
        """The column "image"."""
        return column(batch, "image")

    def encode(self, network: nn.Module, value: Tensor) -> Condition:
        """A vector; a picture is encoded first."""
        return Condition(vector=network.told(network.code(value) if value.ndim == 4 else value))

    def answer(self, given: Mapping[str, object], n: int, shape: tuple[int, ...]) -> tuple[Tensor, None]:
        """The picture that was named."""
        if not given.get("like"):
            raise ValueError("a diffusion autoencoder draws what a picture's code says: name one, --like picture.png")
        return read_picture(given["like"], shape[-1])[None], None


@checked
class DiffusionAutoencoder(Diffusion):
    """A denoiser that is told a code of the picture, and makes the code itself."""

    def read(self, values: Mapping[str, object], n: Count | None = None) -> dict[str, Value]:
        """As every system reads, but a picture becomes its code at once: it is encoded once, not at every step."""
        read = super().read(values, n)
        if read["embedding"].ndim == 4:
            read["embedding"] = self.embed(read["embedding"])
        return read

    @torch.no_grad()
    def embed(self, pictures: floats("B C H W")) -> Tensor:
        """z (B, E) of clean pictures (B, C, H, W)."""
        return self.network.code(pictures.to(self.device, self.dtype))


@system("diffae", network=CodedUNet, options=DenoiserOptions)
def diffae(network, schedule, options, data) -> DiffusionAutoencoder:
    """Reads the picture that it is to draw."""
    return denoiser(network, schedule, [Code(network.config.code)], options, data, kind=DiffusionAutoencoder)
