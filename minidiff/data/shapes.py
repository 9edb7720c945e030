"""Rendered scenes as a data set; see ``minidiff.data.scenes`` and ``minidiff.data.render``."""

from __future__ import annotations

import torch
from torch import Tensor

from minidiff.data.render import render
from minidiff.data.scenes import (
    BACKGROUNDS,
    COLORS,
    RELATIONS,
    SHAPES,
    SIZES,
    Object,
    Scene,
    Scenes,
    labels,
    sample_scenes,
)

__all__ = [
    "BACKGROUNDS",
    "COLORS",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "Object",
    "Scene",
    "Scenes",
    "labels",
    "render",
    "sample_scenes",
    "shapes",
]


from ..arguments import Count, Natural, checked


@checked
def shapes(n: Natural, size: Count, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """n one-object images and their classes: (n, 3, size, size) float32 in [-1, 1], (n,) long into ``SHAPES``."""
    scenes = sample_scenes(n, generator)
    return render(scenes, size), labels(scenes)
