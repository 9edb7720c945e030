"""Upsamplers for cascades: SR3 (Saharia et al. 2021), CDM (Ho et al. 2022), and regression to compare them with.

SR3's network reads the noise of x itself instead of a time. CDM adds noise to the small image, and says how much.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..arguments import checked, floats
from ..condition import Condition
from ..models.unet import UNet
from ..prediction import Prediction
from ..schedule import NoiseLevel
from ..training.levels import AlphaBetween, Only
from .adm import UpsamplerOptions, channels, denoiser, label
from .diffusion import Diffusion
from .parts import TOLD, LowRes
from .registry import system


@checked
@dataclass(frozen=True)
class CascadeOptions(UpsamplerOptions):
    """Options of an upsampler with noise-conditioning augmentation.

    Attributes:
        augment: Largest standard deviation of the noise added to the small image, in (0, 1].
    """

    augment: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.augment <= 1:
            raise ValueError(f"augment is a standard deviation in (0, 1], got {self.augment}")


@checked
def told_alpha_bar(level: NoiseLevel) -> NoiseLevel:
    """The same level, of which the network is told alpha-bar, which SR3 calls gamma (``eq-sr3-level``)."""
    return NoiseLevel(level.alpha, level.sigma, TOLD * level.alpha**2)


@checked
class AlphaBarTold(Diffusion):
    """A denoiser whose network reads alpha-bar in place of a time, so that it can be sampled with any schedule.

    Raises:
        ValueError: for a learned variance, which is defined between the levels of one schedule only.
    """

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        if self.variance != "fixed":
            raise ValueError(f"SR3 has a fixed variance, got {self.variance!r}")

    def forward(self, x: floats("B C H W"), level: NoiseLevel, condition: Condition | None = None) -> Prediction:
        """The prediction for x (B, C, H, W)."""
        return super().forward(x, told_alpha_bar(level), condition)


@system("sr3", network=UNet, options=UpsamplerOptions)
def sr3(network, schedule, options, data) -> AlphaBarTold:
    """Super-resolution by repeated refinement: reads a bicubically enlarged small image, and alpha-bar."""
    small = LowRes(options.factor, channels(network, options), "bicubic", rounding=torch.floor)
    parts = [*label(network, options), small]
    return denoiser(network, schedule, parts, options, data, kind=AlphaBarTold, levels=AlphaBetween())


@system("cdm", network=UNet, options=CascadeOptions)
def cdm(network, schedule, options, data) -> Diffusion:
    """Reads a label and a small image with noise in it, and how much."""
    small = LowRes(options.factor, channels(network, options), augment=options.augment, rounding=torch.floor)
    return denoiser(network, schedule, [*label(network, options), small], options, data)


@system("regression", network=UNet, options=UpsamplerOptions)
def regression(network, schedule, options, data) -> Diffusion:
    """An upsampler asked in pure noise only: least squares from the small image, and no diffusion.

    At the last level of the schedule x says nothing about the image, so the x_0 that minimises L_simple is
    E[x_0 | label, small image]. Draw it with one step.
    """
    small = LowRes(options.factor, channels(network, options), rounding=torch.floor)
    return denoiser(network, schedule, [*label(network, options), small], options, data, levels=Only(-1))
