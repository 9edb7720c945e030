"""Where the images that are judged, and those they are held against, come from."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..arguments import Count, checked
from ..data.images import ImageFolder
from ..pixels import from_uint8


@checked
class ArrayImages(Dataset):
    """The images of an npz file as ADM's scripts write them; items are (image (C, H, W) in [-1, 1], label or -1).

    ``arr_0`` holds (N, H, W, C) uint8 images, ``arr_1``, where it is there, (N,) labels: whole numbers from 0, below
    ``n_classes`` where that is given; -1 for none.

    Raises:
        ValueError: when the file holds something else, or labels out of range.
    """

    def __init__(self, path: str | Path, n_classes: Count | None = None):
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
        if labels is not None:
            _require_classes(path, labels, n_classes)
        self.pixels = pixels
        self.labels = np.full(len(pixels), -1) if labels is None else labels.astype(np.int64)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return from_uint8(torch.from_numpy(self.pixels[i]).permute(2, 0, 1)), int(self.labels[i])


def _require_classes(path: str | Path, labels: np.ndarray, n_classes: int | None) -> None:
    if labels.dtype.kind not in "iu":
        raise ValueError(f"{path}: labels are whole numbers, got {labels.dtype}")
    wrong = labels[(labels < -1) | (labels >= (n_classes or np.inf))]
    if len(wrong):
        most = f"from 0 to {n_classes - 1}" if n_classes else "0 or more"
        raise ValueError(f"{path}: {len(wrong)} labels are no classes, {wrong[0]} say; {most} are, and -1 is none")


@checked
def image_set(path: str | Path, classes: Sequence[str] = ()) -> Dataset:
    """Images of a folder, a zip archive or an npz file, at the size they have.

    Args:
        path: Where they lie.
        classes: What the network that judges them calls its classes. Folders of these names get these numbers; of other
            names, their own.

    Raises:
        ValueError: when there are none, or an npz file has labels that are no classes.
    """
    path = Path(path).expanduser()
    if path.suffix == ".npz":
        return ArrayImages(path, len(classes) or None)
    found = ImageFolder(path)
    return ImageFolder(path, classes=classes) if set(found.classes) <= set(classes) else found


@checked
def is_image_set(path: str | Path) -> bool:
    """Whether a path can hold images: a zip archive, an npz file, or a folder that is no run and no checkpoint."""
    path = Path(path).expanduser()
    model = any((path / name).exists() for name in ("last.safetensors", "card.json"))
    return path.suffix in (".npz", ".zip") or (path.is_dir() and not model)
