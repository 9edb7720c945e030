"""Upsamplers: systems that also see a small version of the image; ADM's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..denoiser import Condition
from ..prediction import Prediction
from ..schedule import NoiseLevel
from .class_conditional import ClassConditional
from .diffusion import Diffusion


@dataclass(frozen=True)
class Small:
    """What an upsampler is given.

    Attributes:
        told: (B,) labels, or (B, L) tokens of captions.
        image: (B, C, H / factor, W / factor) in [-1, 1].
    """

    told: Tensor
    image: Tensor


class Enlarging(Diffusion):
    """A denoiser that also sees a small version of the image: mixed into a system that says what it is told.

    Called as a conditional model, ``system(x, level, Small(told, image))``. The network takes twice the channels: x,
    then the small image, enlarged bilinearly. In training the small image is the area average of the large one, and
    carries no added noise.

    Args:
        arguments, options: Those of the system that this is mixed into.
        factor: Height of the large image over that of the small one.

    Attributes:
        mode: How the small image is enlarged.
    """

    mode = "bilinear"

    def __init__(self, *arguments, factor: int = 4, **options):
        super().__init__(*arguments, **options)
        size = self.shape[1]
        if factor < 1 or size % factor:
            raise ValueError(f"size {size} must be divisible by the factor, got {factor}")
        self.factor = factor

    @property
    def image_channels(self) -> int:
        """Channels that enter the network through the image door, beside those of x."""
        return super().image_channels + self.shape[0]

    @property
    def small_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the image that is enlarged."""
        channels, height, width = self.shape
        return channels, height // self.factor, width // self.factor

    def enlarged(self, image: Tensor) -> Tensor:
        """The small image (B, C, H / factor, W / factor) in the size of the large one.

        Raises:
            ValueError: for another shape.
        """
        if tuple(image.shape[1:]) != self.small_shape:
            expected = ", ".join(map(str, self.small_shape))
            raise ValueError(f"this upsampler enlarges (B, {expected}), got {tuple(image.shape)}")
        return F.interpolate(image, self.shape[1:], mode=self.mode, align_corners=False)

    def condition(self, given: Small) -> Condition:
        """What is told through its own doors, the enlarged image through the image door.

        Raises:
            ValueError: for what cannot be told, or a small image of another shape.
        """
        return replace(super().condition(given.told), image=self.enlarged(given.image))

    def forward(self, x: Tensor, level: NoiseLevel, given: Small) -> Prediction:
        """The prediction for x (B, C, H, W)."""
        return Diffusion.forward(self, x, level, given)

    def reduced(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H / factor, W / factor), the mean of each square of pixels."""
        return F.interpolate(images, self.small_shape[1:], mode="area")

    def dropped(self, given: Small, generator=None) -> Small:
        """What is told is dropped as its system drops it; the small image stays."""
        return replace(given, told=super().dropped(given.told, generator))

    def shown(self, images: Tensor, told: Tensor, generator=None) -> Small:
        """What a training step is given: what is told, and the images reduced."""
        return Small(told, self.reduced(images))

    @staticmethod
    def stored(image: Tensor) -> Tensor:
        """The small image as a cascade hands it over: in eight bits, rounded down."""
        return eight_bit(image)

    def sample(self, told: Tensor, image: Tensor, *arguments, given: Callable = Small, **options) -> Tensor:
        """Enlarge images (B, C, H / factor, W / factor) of what is told; the rest as in the system mixed into.

        Args:
            told: What to draw.
            image: The small images.
            arguments, options: Those of the system mixed into.
            given: From what is told and the small images to what this system is given.

        Returns:
            (B, C, H, W).
        """
        image = image.to(self.device)
        return super().sample(told, *arguments, given=lambda shown: given(shown, image), **options)


class Upsampler(Enlarging, ClassConditional):
    """ADM's: given a label and a small image (Dhariwal and Nichol 2021, section 2.3 and table 13)."""


def eight_bit(images: Tensor, rounding: Callable[[Tensor], Tensor] = torch.floor) -> Tensor:
    """What is left of images in [-1, 1] after they were stored: 256 values, rounded down as in ADM's scripts."""
    return rounding((images + 1) * 127.5).clamp(0, 255) / 127.5 - 1
