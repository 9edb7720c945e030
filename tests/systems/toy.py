"""A toy system: digits that are told which of their quadrants is the brightest.

The page "Adding a system" of the book goes through this file. It is found by its name, in the folder one stands in.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.condition import Condition, Part, Question, column
from minidiff.models.unet import UNet
from minidiff.systems.adm import denoiser
from minidiff.systems.diffusion import DenoiserOptions, Diffusion
from minidiff.systems.registry import system

QUADRANTS = 4


def brightest(images: Tensor) -> Tensor:
    """(B,) the brightest quadrant of images (B, C, H, W): 0 and 1 above, 2 and 3 below."""
    return F.adaptive_avg_pool2d(images.mean(1), 2).flatten(1).argmax(1)


class Quadrant(Part):
    """The brightest quadrant, through the vector door. The null is -1, and the last row of the embedding.

    Args:
        p_drop: Probability of the null in training.
    """

    key, nullable = "quadrant", True
    questions = (Question("quadrant", "integer", "Brightest quadrant (default: all four in turn).", many=True),)

    def __init__(self, p_drop: float = 0.0):
        self.p_drop = p_drop

    def check(self, network: UNet, shape: tuple[int, ...]) -> None:
        """The embedding has a row for each quadrant, and one for the null."""
        if network.config.classes != QUADRANTS + 1:
            raise ValueError(f"quadrants need network.classes = {QUADRANTS + 1}, got {network.config.classes}")

    def read(self, value, shape: tuple[int, ...]) -> Tensor:
        """A quadrant or (B,) quadrants, -1 for none.

        Raises:
            ValueError: for anything else.
        """
        quadrants = torch.as_tensor(value).reshape(-1)
        if quadrants.is_floating_point() or bool(((quadrants < -1) | (quadrants >= QUADRANTS)).any()):
            raise ValueError(f"a quadrant is a number from 0 to {QUADRANTS - 1}, or -1 for none; got {value}")
        return quadrants.long()

    def encode(self, network: UNet, value: Tensor) -> Condition:
        """Rows of the embedding."""
        return Condition(vector=network.label_emb(torch.where(value < 0, QUADRANTS, value)))

    def nothing(self, network: UNet, n: int) -> Tensor:
        """(n,) times none."""
        return torch.full((n,), -1)

    def observe(self, batch: Mapping[str, Tensor], generator=None) -> Tensor:
        """The brightest quadrants of the images that are trained on."""
        return brightest(column(batch, "image"))

    def answer(self, given: Mapping[str, object], n: int, shape: tuple[int, ...]) -> tuple[Tensor, None]:
        """The quadrants that were asked for, or all of them, in turn."""
        chosen = torch.tensor(given.get("quadrant") or range(QUADRANTS))
        return chosen[torch.arange(n) % len(chosen)], None


@system("toy", network=UNet, options=DenoiserOptions)
def toy(network, schedule, options, data) -> Diffusion:
    """A denoiser that is told the brightest quadrant."""
    return denoiser(network, schedule, [Quadrant(options.drop)], options, data)
