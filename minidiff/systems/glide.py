"""GLIDE: a U-Net that reads captions, and its upsamplers (Nichol et al. 2021)."""

from __future__ import annotations

from ..data.tokenizer import tokenizer
from ..models.unet import UNet
from .adm import UpsamplerOptions, channels, denoiser
from .cascade import CascadeOptions
from .diffusion import DenoiserOptions, Diffusion
from .parts import Caption, LowRes
from .registry import system


def caption(options: DenoiserOptions, data, asked: bool = True) -> Caption:
    """The caption, read by the tokenizer of the data."""
    return Caption(tokenizer(data.tokenizer), options.drop, asked)


@system("glide", network=UNet, options=DenoiserOptions)
def glide(network, schedule, options, data) -> Diffusion:
    """Reads a caption."""
    return denoiser(network, schedule, [caption(options, data)], options, data)


@system("glide_upsampler", network=UNet, options=UpsamplerOptions)
def glide_upsampler(network, schedule, options, data) -> Diffusion:
    """Reads a caption and a small image."""
    small = LowRes(options.factor, channels(network, options))
    return denoiser(network, schedule, [caption(options, data), small], options, data)


@system("glide_cdm", network=UNet, options=CascadeOptions)
def glide_cdm(network, schedule, options, data) -> Diffusion:
    """Reads a caption and a small image with noise in it, and how much."""
    small = LowRes(options.factor, channels(network, options), augment=options.augment)
    return denoiser(network, schedule, [caption(options, data), small], options, data)
