"""Tensors to picture files."""

from __future__ import annotations

import io
import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from .files import write_atomically


def grid(images: Tensor, columns: int | None = None, gap: int = 1) -> Tensor:
    """One picture (C, H', W') from a batch (B, C, H, W) in [-1, 1], white between the images."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    _, channels, height, width = images.shape
    out = torch.ones(channels, rows * (height + gap) - gap, columns * (width + gap) - gap)
    for i, image in enumerate(images.cpu()):
        y, x = (i // columns) * (height + gap), (i % columns) * (width + gap)
        out[:, y : y + height, x : x + width] = image
    return out


def save_grid(images: Tensor, path: Path, columns: int | None = None, least: int = 480) -> None:
    """Write a batch (B, 1 or 3, H, W) in [-1, 1] as a PNG grid, small images enlarged to about ``least`` pixels.

    Raises:
        ValueError: when the file's name does not end in .png, or the images have neither 1 nor 3 channels.
    """
    if path.suffix.lower() != ".png":
        raise ValueError(f"the picture is a PNG: choose a name that ends in .png, not {path.name!r}")
    if images.shape[1] not in (1, 3):
        raise ValueError(f"pictures have 1 or 3 channels, got {images.shape[1]}")
    pixels = ((grid(images, columns).clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    factor = max(1, least // max(picture.size))
    buffer = io.BytesIO()
    picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST).save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())
