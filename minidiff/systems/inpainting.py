"""Inpainting: systems that also see part of the picture, and a mask that says which (Nichol et al. 2021, section 4.3).

Masks are 1 where a pixel is known and kept, 0 where it is to be painted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..arguments import Count, Natural, checked, floats
from ..models.unet import UNet
from .adm import UpsamplerOptions, channels, denoiser, label
from .diffusion import DenoiserOptions, Diffusion
from .glide import caption
from .parts import Known, LowRes
from .registry import system


@system("inpainter", network=UNet, options=DenoiserOptions)
def inpainter(network, schedule, options, data) -> Diffusion:
    """Reads a label, the known part of an image, and the mask."""
    parts = [*label(network, options), Known(channels(network, options))]
    return denoiser(network, schedule, parts, options, data)


@system("glide_inpainter", network=UNet, options=DenoiserOptions)
def glide_inpainter(network, schedule, options, data) -> Diffusion:
    """Reads a caption, the known part of an image, and the mask."""
    parts = [caption(options, data), Known(channels(network, options))]
    return denoiser(network, schedule, parts, options, data)


@system("glide_upsampler_inpainter", network=UNet, options=UpsamplerOptions)
def glide_upsampler_inpainter(network, schedule, options, data) -> Diffusion:
    """Reads a caption, the known part of a large image, the mask, and all of the small one, as the released model."""
    planes = channels(network, options)
    parts = [caption(options, data), Known(planes), LowRes(options.factor, planes)]
    return denoiser(network, schedule, parts, options, data)


@checked
def widened(weight: floats("out in h w"), channels: Count, after: Natural) -> Tensor:
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
