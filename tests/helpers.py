"""Random numbers, random networks and tiny systems that several test modules build; fixtures stand in conftest.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from minidiff.recipes import load_recipe

TINY = ["network.size=8", "network.channels=8", "network.channel_mult=[1,2]", "network.blocks=1", "network.groups=4",
        "network.attention=[4]", "network.head_channels=8", "network.heads=4"]  # fmt: skip


def seeded(seed: int = 0) -> torch.Generator:
    """A fresh generator at each call."""
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal numbers of a shape, in float64."""
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def awake(module: nn.Module, std: float = 0.3, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The module in evaluation mode with every parameter random, so that no branch is silent."""
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
    return module.to(dtype).eval()


def tiny(name: str, *changes: str, std: float = 0.15, seed: int = 0) -> nn.Module:
    """A tiny system of a recipe, every parameter random."""
    return awake(load_recipe(name, [*TINY, *changes]).build(), std, seed, torch.float32)


def small_open_clip(folder: Path, context: int) -> tuple[nn.Module, dict]:
    """A small model of open_clip with random weights, put into a folder as published, and how it scales pictures."""
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    vision = {"image_size": 8, "layers": 1, "width": 16, "head_width": 8, "patch_size": 4}
    text = {"context_length": context, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": text}
    model = open_clip.CLIP(**config).eval()
    normal = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": normal}))
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return model, normal
