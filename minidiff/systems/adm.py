"""ADM (Dhariwal and Nichol 2021): a U-Net with a label, with a null for it (classifier-free guidance), or without."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ..arguments import Count, checked
from ..condition import Part
from ..models.unet import UNet
from .diffusion import DenoiserOptions, Diffusion
from .parts import Label, LowRes
from .registry import system


@checked
@dataclass(frozen=True)
class UpsamplerOptions(DenoiserOptions):
    """Options of a system that enlarges.

    Attributes:
        factor: Height of the image over that of the small one.
    """

    factor: Count = 4


@checked
def label(network: UNet, options: DenoiserOptions) -> list[Part]:
    """The label, where the network has an embedding of some; its last row is the null where labels are dropped."""
    rows, nullable = network.config.classes, options.drop > 0
    return [] if rows is None else [Label(rows - nullable, nullable, options.drop)]


@checked
def channels(network: nn.Module, options: DenoiserOptions) -> int:
    """Channels of the images that a network draws."""
    return network.config.out_channels // (1 + (options.variance == "learned"))


@checked
def denoiser(network, schedule, parts, options: DenoiserOptions, data, kind=None, levels=None) -> Diffusion:
    """A system of the options that all of them share; ``kind`` is a subclass of Diffusion, where it is one."""
    return (kind or Diffusion)(
        network, schedule, parts, options.predicts, options.variance, options.levels(levels), data.bins
    )


@system("class_conditional", network=UNet, options=DenoiserOptions)
def class_conditional(network, schedule, options, data) -> Diffusion:
    """Reads a label."""
    return denoiser(network, schedule, label(network, options), options, data)


@system("upsampler", network=UNet, options=UpsamplerOptions)
def upsampler(network, schedule, options, data) -> Diffusion:
    """Reads a label and a small image, which a cascade hands on rounded down (section 2.3, table 13)."""
    small = LowRes(options.factor, channels(network, options), rounding=torch.floor)
    return denoiser(network, schedule, [*label(network, options), small], options, data)
