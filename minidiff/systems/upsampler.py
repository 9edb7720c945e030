"""ADM's upsampler: a class-conditional U-Net that also sees a small version of the image, and the two-stage cascade."""

from __future__ import annotations

from dataclasses import dataclass

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
        labels: (B,) classes, -1 for the null where there is one.
        image: (B, C, H / factor, W / factor) in [-1, 1].
    """

    labels: Tensor
    image: Tensor


class Upsampler(ClassConditional):
    """A denoiser of images given a label and a small image (Dhariwal and Nichol 2021, section 2.3 and table 13).

    Called as a conditional model, ``system(x, level, Small(labels, image))``. The network takes twice the channels: x,
    then the small image, enlarged bilinearly. In training the small image is the area average of the large one, and
    carries no added noise.

    Args:
        arguments, options: Those of ``ClassConditional``.
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

    def condition(self, given: Small) -> Condition:
        """The label through the vector door, the enlarged image through the image door.

        Raises:
            ValueError: for labels out of range, or a small image of another shape.
        """
        if tuple(given.image.shape[1:]) != self.small_shape:
            expected = ", ".join(map(str, self.small_shape))
            raise ValueError(f"this upsampler enlarges (B, {expected}), got {tuple(given.image.shape)}")
        large = F.interpolate(given.image, self.shape[1:], mode="bilinear", align_corners=False)
        return Condition(vector=super().condition(given.labels).vector, image=large)

    def forward(self, x: Tensor, level: NoiseLevel, given: Small) -> Prediction:
        """The prediction for x (B, C, H, W)."""
        return Diffusion.forward(self, x, level, given)

    def reduced(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H / factor, W / factor), the mean of each square of pixels."""
        return F.interpolate(images, self.small_shape[1:], mode="area")

    def dropped(self, given: Small, generator=None) -> Small:
        """The labels dropped as ``ClassConditional`` drops them; the small image stays."""
        return Small(super().dropped(given.labels, generator), given.image)

    def loss(self, images: Tensor, labels: Tensor, generator=None, times: Tensor | None = None) -> dict[str, Tensor]:
        """``Diffusion.loss``, given the labels and the images reduced."""
        return super().loss(images, Small(labels, self.reduced(images)), generator, times)

    def sample(self, labels: Tensor, image: Tensor, *arguments, **options) -> Tensor:
        """Enlarge images (B, C, H / factor, W / factor) of the given labels; the rest as ``ClassConditional.sample``.

        Returns:
            (B, C, H, W).
        """
        image = image.to(self.device)
        return super().sample(labels, *arguments, given=lambda shown: Small(shown, image), **options)


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
