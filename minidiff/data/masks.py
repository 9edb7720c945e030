"""Masks for inpainting: **1 where a pixel is known and kept, 0 where it is to be painted** (GLIDE's convention).

Others call 1 what is to be painted; ask before you mix them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..arguments import Count, Natural, Randomness, checked
from ..random import rand

# What is erased, and how often. GLIDE erases "random regions" and does not say which (Nichol et al. 2021, section 4.3).
KINDS = {"rectangle": 0.35, "strokes": 0.25, "side": 0.15, "surroundings": 0.1, "everything": 0.15}
JOINTS = 4  # of a stroke


@checked
def random_masks(n: Natural, size: Count, generator: Randomness = None, device=None) -> Tensor:
    """(n, 1, size, size) masks of zeros and ones to train an inpainter with, each drawn by itself.

    Erased is, with the probabilities of ``KINDS``: a rectangle with sides of a quarter to three quarters of the image;
    a brush stroke of three segments; everything to one side of a line; everything around a rectangle; or everything,
    so that the model goes on painting from nothing.

    Args:
        n: Number of masks.
        size: Height and width in pixels.
        generator: One generator, or a list with one per mask.
        device: Where the masks go.
    """
    u = rand((n, 1 + 4 + 2 + 2 * JOINTS + 1), generator, device=device)
    at = (torch.arange(size, device=u.device) + 0.5) / size
    x, y = at.expand(n, size, size), at[:, None].expand(n, size, size)
    which, box, side, joints, width = u.split([1, 4, 2, 2 * JOINTS, 1], dim=1)
    rectangle = _near(x, box[:, 0], box[:, 1]) & _near(y, box[:, 2], box[:, 3])
    erased = {
        "rectangle": rectangle,
        "strokes": _stroke(x, y, joints.unflatten(1, (JOINTS, 2)), 0.06 + 0.1 * width[:, 0]),
        "side": _side(x, y, *side.unbind(1)),
        "surroundings": ~rectangle,
        "everything": torch.ones_like(rectangle),
    }
    shares = torch.tensor(list(KINDS.values()), device=u.device).cumsum(0)
    kind = torch.searchsorted(shares, which[:, 0].contiguous(), right=True).clamp(max=len(KINDS) - 1)
    holes = torch.stack([erased[name] for name in KINDS])[kind, torch.arange(n, device=u.device)]
    return (~holes).float()[:, None]


def _near(x: Tensor, centre: Tensor, extent: Tensor) -> Tensor:
    return (x - centre[:, None, None]).abs() < (0.125 + 0.25 * extent)[:, None, None]


def _side(x: Tensor, y: Tensor, which: Tensor, where: Tensor) -> Tensor:
    """Left, right, top or bottom of a line between a quarter and three quarters of the image."""
    cut = (0.25 + 0.5 * where)[:, None, None]
    four = torch.stack([x < cut, x > cut, y < cut, y > cut])
    return four[(4 * which).long().clamp(max=3), torch.arange(len(x), device=x.device)]


def _stroke(x: Tensor, y: Tensor, joints: Tensor, radius: Tensor) -> Tensor:
    """Within ``radius`` (n,) of a polygonal line through joints (n, JOINTS, 2)."""
    pixel = torch.stack([x, y], -1)[:, None]  # (n, 1, S, S, 2)
    start, end = (part[:, :, None, None] for part in (joints[:, :-1], joints[:, 1:]))
    along = end - start
    share = ((pixel - start) * along).sum(-1) / along.square().sum(-1).clamp(min=1e-12)
    distance = (pixel - start - share.clamp(0, 1)[..., None] * along).norm(dim=-1)
    return distance.amin(1) < radius[:, None, None]
