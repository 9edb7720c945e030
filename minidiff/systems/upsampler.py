"""Upsamplers: systems that also see a small version of the image; ADM's, and its two-stage cascade."""

from __future__ import annotations

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
    """

    def __init__(self, *arguments, factor: int = 4, **options):
        super().__init__(*arguments, **options)
        config = self.network.config
        channels, size = self.shape[0], config.size
        if config.in_channels != 2 * channels:
            raise ValueError(f"an upsampler needs {2 * channels} input channels, got {config.in_channels}")
        if factor < 1 or size % factor:
            raise ValueError(f"size {size} must be divisible by the factor, got {factor}")
        self.factor = factor

    @property
    def small_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the image that is enlarged."""
        channels, height, width = self.shape
        return channels, height // self.factor, width // self.factor

    def enlarged(self, image: Tensor) -> Tensor:
        """The small image (B, C, H / factor, W / factor) in the size of the large one, bilinearly.

        Raises:
            ValueError: for another shape.
        """
        if tuple(image.shape[1:]) != self.small_shape:
            expected = ", ".join(map(str, self.small_shape))
            raise ValueError(f"this upsampler enlarges (B, {expected}), got {tuple(image.shape)}")
        return F.interpolate(image, self.shape[1:], mode="bilinear", align_corners=False)

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

    def loss(self, images: Tensor, told: Tensor, generator=None, times: Tensor | None = None) -> dict[str, Tensor]:
        """``Diffusion.loss``, given what is told and the images reduced."""
        return super().loss(images, Small(told, self.reduced(images)), generator, times)

    def sample(self, told: Tensor, image: Tensor, *arguments, **options) -> Tensor:
        """Enlarge images (B, C, H / factor, W / factor) of what is told; the rest as in the system mixed into.

        Returns:
            (B, C, H, W).
        """
        image = image.to(self.device)
        return super().sample(told, *arguments, given=lambda shown: Small(shown, image), **options)


class Upsampler(Enlarging, ClassConditional):
    """ADM's: given a label and a small image (Dhariwal and Nichol 2021, section 2.3 and table 13)."""


def eight_bit(images: Tensor) -> Tensor:
    """What is left of images in [-1, 1] after ADM stored them: 256 values, rounded down."""
    return torch.floor((images + 1) * 127.5).clamp(0, 255) / 127.5 - 1


def cascade(
    base: ClassConditional,
    upsampler: Upsampler,
    labels: Tensor,
    generator=None,
    first: dict | None = None,
    second: dict | None = None,
) -> Tensor:
    """Draw small images and enlarge them, by way of eight bits as in ADM's scripts (Dhariwal and Nichol 2021, 4.4).

    Args:
        base: Draws the small images.
        upsampler: Enlarges them.
        labels: (B,) classes.
        generator: One generator, or a list with one per image; it serves both stages.
        first: Further arguments of ``base.sample``: scale, steps, classifier, rule.
        second: Further arguments of ``upsampler.sample``.

    Returns:
        (B, C, H, W) in the size of the upsampler.

    Raises:
        ValueError: when the upsampler does not take what the base draws.
    """
    if base.shape != upsampler.small_shape:
        raise ValueError(f"the base draws {base.shape}, the upsampler enlarges {upsampler.small_shape}")
    small = base.sample(labels, generator=generator, **(first or {}))
    return upsampler.sample(labels, eight_bit(small), generator=generator, **(second or {}))
