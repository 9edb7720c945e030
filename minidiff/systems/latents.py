"""Diffusion in a space that was learnt: x is the latent of a frozen autoencoder (Rombach et al. 2022, section 3.2).

Whatever denoises can do so in latents: ``autoencoder: NAME`` among its options. Training then reads latents that were
computed before (``minidiff data embed-for``), or encodes pictures as it goes; what is drawn is decoded.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..arguments import Count, Positive, Randomness, checked, floats
from ..condition import Borrower, column
from ..data.sets import Rows
from ..models.vae import gaussian

MEASURED_ON = 2000  # rows of the data that the scale is measured on
AT_ONCE = 2**20  # pixels that are encoded or decoded at once


@checked
class Latents(nn.Module, Borrower):
    """The way from pictures to x and back: the latents of a frozen autoencoder, times one number.

    A schedule is made for data of unit variance; the number brings latents there (Rombach et al. 2022, appendix G).

    Args:
        autoencoder: Name of the autoencoder.
        scale: The number, .18215 in Stable Diffusion; one over the standard deviation of the data's latents, measured
            before the first step, when left out.

    Attributes:
        scale: The number, as a tensor; 0 while it is not known.
    """

    key = "latent"

    def __init__(self, autoencoder: str, scale: Positive | None = None):
        super().__init__()
        self.frozen = autoencoder
        self.register_buffer("scale", torch.tensor(scale or 0.0), persistent=scale is None)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a picture."""
        return self.lent.shape

    def observe(self, batch: Mapping[str, Tensor], channels: Count, generator: Randomness = None) -> Tensor:
        """x_0 (B, channels, h, w) of a training step, drawn from q(z | picture): of the column "latent", or of "image".

        Raises:
            ValueError: for data with neither, or while the scale is not known.
        """
        moments = batch["latent"] if "latent" in batch else self._moments(column(batch, "image"))
        return self._known() * _drawn(moments, channels, generator)

    def inward(self, images: floats("B C H W")) -> Tensor:
        """x_0 (B, c, h, w) of pictures (B, C, H, W) in [-1, 1], the likeliest."""
        images = images.to(self.lent.device)
        return self._known() * torch.cat([self.lent.encode(part) for part in images.split(_at_once(images))])

    def outward(self, x: floats("B C H W")) -> Tensor:
        """Pictures (B, C, H, W) of x_0 (B, c, h, w); gradients flow."""
        parts = (x / self._known()).split(max(1, AT_ONCE // (self.shape[1] * self.shape[2])))
        return torch.cat([self.lent.decode(part) for part in parts])

    @torch.no_grad()
    def learn(self, rows: Rows, channels: Count) -> None:
        """Measure the scale on training data, where none was given and none is known yet.

        Raises:
            ValueError: for latents that are all the same.
        """
        if self.scale != 0:
            return
        found = rows(MEASURED_ON)
        n = len(next(iter(found.values())))
        few = {name: found[name][:: max(1, n // MEASURED_ON)] for name in ("latent", "image") if name in found}
        moments = few["latent"] if "latent" in few else self._moments(column(few, "image"))
        deviation = _drawn(moments, channels, torch.Generator(moments.device).manual_seed(0)).std()
        if not deviation > 0:
            raise ValueError("these latents are all the same: they have no standard deviation")
        self.scale.fill_(1 / deviation)

    @torch.no_grad()
    def _moments(self, images: Tensor) -> Tensor:
        images = images.to(self.lent.device)
        return torch.cat([self.lent.moments(part) for part in images.split(_at_once(images))])

    def _known(self) -> Tensor:
        if self.scale == 0:
            raise ValueError(
                "the scale of these latents is not known yet: training measures it, or a recipe gives latent_scale"
            )
        return self.scale


def _drawn(moments: Tensor, channels: int, generator: Randomness) -> Tensor:
    """Latents of what an encoder said: themselves, or draws from the law whose moments these are."""
    return moments if moments.shape[1] == channels else gaussian(moments).sample(generator)


def _at_once(images: Tensor) -> int:
    return max(1, AT_ONCE // (images.shape[2] * images.shape[3]))
