"""Tensors to picture files, and pictures that are to be edited to tensors."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .arguments import Count, Natural, checked, floats
from .data.images import UNREADABLE, eight_bits, to_tensor
from .files import write_atomically
from .pixels import to_uint8


@checked
def grid(images: floats("B C H W"), columns: Count | None = None, gap: Natural = 1) -> Tensor:
    """One picture (C, H', W') from a batch (B, C, H, W) in [-1, 1], white between the images.

    Raises:
        ValueError: for an empty batch.
    """
    if not len(images):
        raise ValueError("a grid needs at least one picture")
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    _, channels, height, width = images.shape
    out = torch.ones(channels, rows * (height + gap) - gap, columns * (width + gap) - gap)
    for i, image in enumerate(images.cpu()):
        y, x = (i // columns) * (height + gap), (i % columns) * (width + gap)
        out[:, y : y + height, x : x + width] = image
    return out


@checked
def save_grid(images: floats("B C H W"), path: Path, columns: Count | None = None, least: Count = 480) -> None:
    """Write a batch (B, 1 or 3, H, W) in [-1, 1] as a PNG grid, small images enlarged to about ``least`` pixels.

    Raises:
        ValueError: when the file's name does not end in .png, or the images have neither 1 nor 3 channels.
    """
    if path.suffix.lower() != ".png":
        raise ValueError(f"the picture is a PNG: choose a name that ends in .png, not {path.name!r}")
    if images.shape[1] not in (1, 3):
        raise ValueError(f"pictures have 1 or 3 channels, got {images.shape[1]}")
    pixels = to_uint8(grid(images, columns)).permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    factor = max(1, least // max(picture.size))
    buffer = io.BytesIO()
    picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST).save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())


@checked
def read_picture(path: str | Path, size: Count) -> Tensor:
    """A picture file as (3, size, size) in [-1, 1], cropped to a square.

    Raises:
        ValueError: for a file that is no picture.
    """
    return to_tensor(_opened(path), size)


@checked
def read_edit(path: str | Path, size: Count, mask: str | Path | None = None) -> tuple[Tensor, Tensor]:
    """A picture that an inpainter is to change: what is known of it, and where.

    Args:
        path: The picture; it is cropped to a square. Where it is transparent it is to be painted.
        size: Side of the square in pixels.
        mask: A second picture that says so instead: white is kept, black is painted; or 1 and 0, in 8 or 16 bits. It
            is cropped like the first.

    Returns:
        (1, 3, size, size) in [-1, 1] and the mask (1, 1, size, size): 1 where a pixel is known, which it is only if all
        that the file shows of it is kept.

    Raises:
        ValueError: for a file that is no picture, or when nothing is left to paint; for a mask that is not black and
            keeps nothing all the same.
    """
    picture = _opened(path).convert("RGBA")
    if mask is not None:
        kept = _opened(mask, _kept)
        if kept.size != picture.size:
            raise ValueError(f"{mask} has {kept.size} pixels, {path} has {picture.size}; equal sizes are accepted")
        picture.putalpha(kept)
    # a pixel is the mean of the pixels below it, weighted by their opacity: what is to be painted does not tint it
    fitted = ImageOps.fit(picture, (size, size), Image.Resampling.BOX)
    known = torch.from_numpy(np.array(fitted.getchannel("A")) == 255)[None, None]
    if known.all():
        how = "transparent" if mask is None else "black in the mask"
        raise ValueError(f"nothing of {path} is left to paint; make a part of it {how}")
    if mask is not None and not known.any() and (brightest := kept.getextrema()[1]):
        raise ValueError(
            f"{mask} keeps nothing of {path}: white, 255, is kept, in areas as large as a pixel of {size}x{size}; the "
            f"brightest of it is {brightest}"
        )
    return to_tensor(fitted.convert("RGB"))[None], known.float()


def _opened(path: str | Path, read: Callable[[Image.Image], Image.Image] = eight_bits) -> Image.Image:
    try:
        with Image.open(path) as picture:
            return read(picture)
    except UNREADABLE as error:
        raise ValueError(f"{path} is no picture that can be read ({error})") from None


def _kept(mask: Image.Image) -> Image.Image:
    """A mask in 8 bits, 255 where all is kept; one that holds 0 and 1, or 0 to 255, in 16 bits means the same."""
    brightest = mask.getextrema()[1]
    scale = 65535 // brightest if mask.mode.startswith("I") and brightest in (1, 255) else 1
    grey = eight_bits(mask.point(lambda value: value * scale) if scale > 1 else mask).convert("L")
    return grey.point(lambda value: 255 * value) if grey.getextrema()[1] == 1 else grey
