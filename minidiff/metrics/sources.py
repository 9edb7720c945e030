"""Where the images that are judged, and those they are held against, come from."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..data.images import ImageFolder
from ..recipes import Recipe, from_dict, nearest
from ..systems.zoo import build, card, checkpoints, load, weights_path
from ..training.checkpoint import averaged, load_checkpoint


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
        pixels = torch.from_numpy(self.pixels[i]).permute(2, 0, 1).float()
        return pixels.div(127.5).sub(1), int(self.labels[i])


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


def load_system(
    name: str, device: torch.device | str = "cpu", released: str | None = None
) -> tuple[nn.Module, Recipe, Path]:
    """A committed checkpoint by name, another or the averaged weights of a run by its folder, or a released preset.

    Args:
        name: Which.
        device: Where it goes.
        released: File of a preset's weights.

    Returns:
        The system in evaluation mode, its recipe, and the file its weights came from.

    Raises:
        ValueError: for an unknown name, or a run without readable weights.
    """
    if released is not None:
        from ..pretrained import load as load_preset
        from ..pretrained import presets

        return load_preset(name, released).to(device), presets()[name].recipe, Path(released)
    last = Path(name) / "last.safetensors"
    if last.is_file():
        tensors, meta = load_checkpoint(last)
        recipe = from_dict(Recipe, meta["recipe"])
        system = build(recipe)
        try:
            system.load_state_dict(averaged(tensors, recipe.training.ema[0]))
        except RuntimeError:
            raise ValueError(f"{last} does not hold the averaged weights of its recipe") from None
        return system.to(device).eval().requires_grad_(False), recipe, last
    try:
        path = weights_path(name)
    except ValueError:
        raise ValueError(f"{name!r} is no checkpoint, run or set of images: {nearest(name, checkpoints())}") from None
    return load(name, str(device)), from_dict(Recipe, card(name)["recipe"]), path


def load_classifier(text: str, device: torch.device | str = "cpu") -> nn.Module:
    """A classifier that guides, by its name; a preset as NAME=FILE.

    Raises:
        ValueError: when it cannot be loaded, or is no classifier.
    """
    name, _, released = text.partition("=")
    system = load_system(name, device, released or None)[0]
    if not hasattr(system, "classifier"):
        raise ValueError(f"{name} is no classifier")
    return system


def as_stored(images: Tensor, bins: int) -> Tensor:
    """Images rounded to the ``bins`` equally spaced values from -1 to 1 that a file can hold, as real ones are."""
    return ((images.clamp(-1, 1) + 1) / 2 * (bins - 1)).round() / (bins - 1) * 2 - 1
