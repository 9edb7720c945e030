"""Where the images that are judged, and those they are held against, come from."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..data.images import ImageFolder
from ..pixels import from_uint8


class ArrayImages(Dataset):
    """The images of an npz file as ADM's scripts write them; items are (image (C, H, W) in [-1, 1], label or -1).

    ``arr_0`` holds (N, H, W, C) uint8 images, ``arr_1``, where it is there, (N,) labels.

    Raises:
        ValueError: when the file holds something else.
    """

    def __init__(self, path: str | Path):
        try:
            with np.load(path, allow_pickle=False) as file:
                pixels, labels = file["arr_0"], file.get("arr_1")
        except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} holds no images under arr_0 ({error})") from None
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3):
            found = f"{pixels.dtype} {pixels.shape}"
            raise ValueError(f"{path}: arr_0 must be uint8 of shape (N, height, width, 1 or 3), got {found}")
        if labels is not None and labels.shape != pixels.shape[:1]:
            raise ValueError(f"{path}: arr_1 must hold {len(pixels)} labels, got shape {labels.shape}")
        self.pixels = pixels
        self.labels = np.full(len(pixels), -1) if labels is None else labels.astype(np.int64)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return from_uint8(torch.from_numpy(self.pixels[i]).permute(2, 0, 1)), int(self.labels[i])


def image_set(path: str | Path) -> Dataset:
    """Images of a folder, a zip archive or an npz file, at the size they have.

    Raises:
        ValueError: when there are none.
    """
    return ArrayImages(path) if Path(path).suffix == ".npz" else ImageFolder(path)


def is_image_set(path: str | Path) -> bool:
    """Whether a path can hold images: a zip archive, an npz file, or a folder that is no run and no checkpoint."""
    path = Path(path)
    model = any((path / name).exists() for name in ("last.safetensors", "card.json"))
    return path.suffix in (".npz", ".zip") or (path.is_dir() and not model)
