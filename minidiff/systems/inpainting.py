"""Inpainting: systems that are also given part of the picture, and a mask that says which (Nichol et al. 2022, 2.4).

Masks are 1 where a pixel is known and kept, 0 where it is to be painted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..data.masks import random_masks
from ..denoiser import Condition
from ..guidance import replace_known
from ..prediction import Prediction
from ..process import as_known
from ..sampler import Sampler, ddim
from ..schedule import NoiseLevel
from .class_conditional import ClassConditional
from .diffusion import Diffusion
from .glide import Glide, GlideUpsampler
from .upsampler import Small


@dataclass(frozen=True)
class Masked:
    """What an inpainter is given.

    Attributes:
        told: What the system that is mixed into is given: (B,) labels, (B, L) tokens, or ``Small`` for an upsampler.
        image: (B, C, H, W) in [-1, 1]; its values where the mask is 0 are not seen.
        mask: (B, 1, H, W), 1 where a pixel is known and kept, 0 where it is to be painted.
    """

    told: Tensor | Small
    image: Tensor
    mask: Tensor


class Inpainting(Diffusion):
    """A denoiser that also sees the known part of the image: mixed into a system that says what it is told.

    Called as a conditional model, ``system(x, level, Masked(told, image, mask))``. The network takes the channels of
    x, then image * mask, then the mask, then what else comes through the image door: GLIDE's order.
    """

    @property
    def image_channels(self) -> int:
        """Channels that enter the network through the image door, beside those of x."""
        return self.shape[0] + 1 + super().image_channels

    def condition(self, given: Masked) -> Condition:
        """What is told through its own doors, the known part and the mask through the image door.

        Raises:
            ValueError: for what cannot be told, images or masks of another shape, or a mask of anything but 0 and 1.
        """
        beside, (_, *area) = super().condition(given.told), self.shape
        if tuple(given.image.shape[1:]) != self.shape or tuple(given.mask.shape[1:]) != (1, *area):
            raise ValueError(
                f"this inpainter takes images (B, {', '.join(map(str, self.shape))}) and masks (B, 1, {area[0]}, "
                f"{area[1]}), got {tuple(given.image.shape)} and {tuple(given.mask.shape)}"
            )
        mask = as_known(given.mask).to(given.image.dtype)
        shown = [given.image * mask, mask] + ([] if beside.image is None else [beside.image])
        return replace(beside, image=torch.cat(shown, dim=1))

    def forward(self, x: Tensor, level: NoiseLevel, given: Masked) -> Prediction:
        """The prediction for x (B, C, H, W)."""
        return Diffusion.forward(self, x, level, given)

    def dropped(self, given: Masked, generator=None) -> Masked:
        """What is told is dropped as its system drops it; image and mask stay."""
        return replace(given, told=super().dropped(given.told, generator))

    def shown(self, images: Tensor, told, generator=None) -> Masked:
        """What a training step is given: what the system mixed into is given, and the images behind random masks."""
        given = super().shown(images, told, generator)
        return Masked(given, images, random_masks(len(images), self.shape[-1], generator, images.device))

    def editing(self, n: int, image: Tensor, mask: Tensor, sampler: Sampler | None) -> tuple[Callable, Sampler]:
        """From what n samples are told to what they are given, and the sampler (``ddim()`` when left out) that imposes
        the known pixels on x_0."""
        image, mask = (part.to(self.device).expand(n, -1, -1, -1) for part in (image, mask))
        chain = sampler or ddim()
        imposing = lambda denoiser, *rest: chain(replace_known(denoiser, image, mask), *rest)
        return lambda told: Masked(told, image, mask), imposing

    def sample(
        self,
        told: Tensor | Sequence[str],
        image: Tensor,
        mask: Tensor,
        *arguments,
        sampler: Sampler | None = None,
        **options,
    ) -> Tensor:
        """Paint what is not known; the known pixels come back as they are (``eq-impose``).

        Args:
            told: (B, ...) what to draw.
            image: (B or 1, C, H, W) in [-1, 1]; its values where the mask is 0 do not matter.
            mask: (B or 1, 1, H, W), 1 where a pixel is known and kept, 0 where it is to be painted.
            arguments, sampler, options: Those of the system mixed into. The rule "adm" brings its own sampler,
                which imposes nothing, and is refused.

        Returns:
            (B, C, H, W).

        Raises:
            ValueError: for what cannot be told or seen, or scale or steps out of range.
        """
        given, sampler = self.editing(len(told), image, mask, sampler)
        return super().sample(told, *arguments, sampler=sampler, given=given, **options)


class Inpainter(Inpainting, ClassConditional):
    """Given a label, the known part of an image, and the mask."""


class GlideInpainter(Inpainting, Glide):
    """GLIDE's: given a caption, the known part of an image, and the mask (Nichol et al. 2022, section 2.4)."""


class GlideUpsamplerInpainter(Inpainting, GlideUpsampler):
    """GLIDE's upsampler for edited images: all of the small image, the known part of the large one, and the mask.

    The network's channels are x, image * mask, mask, and the enlarged small image, in the order of the released model.
    Called as a conditional model, ``system(x, level, Masked(Small(tokens, small), image, mask))``.
    """

    def sample(
        self,
        told: Tensor | Sequence[str],
        small: Tensor,
        image: Tensor,
        mask: Tensor,
        *arguments,
        sampler: Sampler | None = None,
        **options,
    ) -> Tensor:
        """Enlarge small images (B, C, H / factor, W / factor), keeping what is known of the large ones.

        Args:
            told: Captions, or their tokens (B, L).
            small: The edited images, from the base inpainter.
            image, mask: As for ``Inpainting.sample``, in the large size.
            arguments, sampler, options: Those of ``Glide.sample``.

        Returns:
            (B, C, H, W).
        """
        given, sampler = self.editing(len(told), image, mask, sampler)
        small = small.to(self.device)
        enlarging = lambda shown: given(Small(shown, small))
        return Glide.sample(self, told, *arguments, sampler=sampler, given=enlarging, **options)


def widened(weight: Tensor, channels: int, after: int) -> Tensor:
    """Weights of a first convolution for more input channels, **the new ones zero**: the network starts as it was.

    Args:
        weight: (out, in, h, w).
        channels: Number of input channels from now on.
        after: The new channels come after this many old ones (those of x).

    Returns:
        (out, channels, h, w).

    Raises:
        ValueError: when channels is less than there are.
    """
    missing = channels - weight.shape[1]
    if missing < 0 or not 0 <= after <= weight.shape[1]:
        raise ValueError(f"cannot widen {weight.shape[1]} input channels to {channels} after {after}")
    new = weight.new_zeros(len(weight), missing, *weight.shape[2:])
    return torch.cat([weight[:, :after], new, weight[:, after:]], dim=1)
