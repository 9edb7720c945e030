"""Numbers in [-1, 1] and the values that files hold."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .arguments import Bins, checked, floats, integers


@checked
def to_uint8(images: floats(), rounding: Callable[[Tensor], Tensor] = torch.round) -> Tensor:
    """Images in [-1, 1] as 0 ... 255; what lies outside is clamped.

    Args:
        images: Of any shape.
        rounding: ``torch.floor`` as in ADM's scripts, or to the nearest as in GLIDE's.

    Raises:
        ValueError: for NaN, which no file can hold.
    """
    if bool(images.isnan().any()):
        raise ValueError(f"{int(images.isnan().sum())} of {images.numel()} values of the images are NaN")
    return rounding((images + 1) * 127.5).clamp(0, 255).to(torch.uint8)


@checked
def from_uint8(pixels: integers()) -> Tensor:
    """0 ... 255 as float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


@checked
def quantize(images: floats(), bins: Bins = 256, rounding: Callable[[Tensor], Tensor] = torch.round) -> Tensor:
    """Images in [-1, 1] rounded to the ``bins`` equally spaced values from -1 to 1 that a file can hold."""
    steps = (bins - 1) / 2
    return rounding((images + 1) * steps).clamp(0, bins - 1) / steps - 1
