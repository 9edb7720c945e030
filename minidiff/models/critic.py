"""Tells patches of pictures from patches of reconstructions (Isola et al. 2017; Esser et al. 2021)."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import Count, checked, floats
from .layers import GroupNorm

SLOPE = 0.2


@checked
class PatchCritic(nn.Module):
    """Convolutions whose every output says how real a patch looks.

    The paper's batch norm is a group norm here: what is said of a picture does not depend on the others of a batch.

    Args:
        in_channels: Channels of a picture.
        channels: Base width; it doubles at each halving.
        layers: Halvings.
        groups: Group-norm groups.
    """

    def __init__(self, in_channels: Count = 3, channels: Count = 32, layers: Count = 2, groups: Count = 8):
        super().__init__()
        widths = [channels * 2**i for i in range(layers + 1)]
        self.first = nn.Conv2d(in_channels, widths[0], 4, stride=2, padding=1)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 4, stride=2 if i + 1 < layers else 1, padding=1)
            for i, (a, b) in enumerate(pairwise(widths))
        )
        self.norms = nn.ModuleList(GroupNorm(groups, width) for width in widths[1:])
        self.last = nn.Conv2d(widths[-1], 1, 4, padding=1)

    def forward(self, x: floats("B C H W")) -> Tensor:
        """(B, C, H, W) -> (B, 1, h, w), large where a patch looks real."""
        h = F.leaky_relu(self.first(x.contiguous(memory_format=torch.channels_last)), SLOPE)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = F.leaky_relu(norm(conv(h)), SLOPE)
        return self.last(h)
