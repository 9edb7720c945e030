"""CIFAR-10 (Krizhevsky 2009) in memory, at any size: real pictures for a small model."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ..arguments import Count, checked
from .images import ImageFolder, torchvision_set

PARTS = {"train": "train", "heldout": "test"}
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@checked
def cifar10(split: str, size: Count = 32, path: str | os.PathLike | None = None, mirror: bool = False):
    """Images (N, 3, size, size) float32 in [-1, 1], bicubic and antialiased, and labels (N,) into ``CLASSES``.

    Args:
        split: "train" (50,000) or "heldout" (the 10,000 test images).
        size: Side in pixels.
        path: Folder with ``cifar10.zip`` (class folders below ``train/`` and ``test/``) or torchvision's copy; the
            environment variable ``MINIDIFF_DATA`` when left out.
        mirror: A second half of the set holds every image flipped left to right.

    Raises:
        ValueError: for another split, or when the data are not there.
    """
    if split not in PARTS:
        raise ValueError(f"split must be one of {', '.join(PARTS)}; got {split!r}")
    folder = path or os.environ.get("MINIDIFF_DATA")
    if not folder:
        raise ValueError("CIFAR-10 is not part of the package: name its folder in data.path or MINIDIFF_DATA")
    images, labels = _read(str(folder), split, size)
    if mirror:
        images, labels = torch.cat([images, images.flip(3)]), torch.cat([labels, labels])
    return images, labels


@cache
def _read(folder: str, split: str, size: int) -> tuple[Tensor, Tensor]:
    archive = Path(folder) / "cifar10.zip"
    if archive.exists():
        found = ImageFolder(archive, size, within=PARTS[split])
        if found.classes != CLASSES:
            raise ValueError(f"{archive} holds the classes {', '.join(found.classes)}, not those of CIFAR-10")
    else:
        found = torchvision_set("CIFAR10", folder, PARTS[split], size)
    items = [found[i] for i in range(len(found))]
    return torch.stack([image for image, _ in items]), torch.tensor([label for _, label in items])
