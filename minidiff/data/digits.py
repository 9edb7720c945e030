"""The 1,797 real handwritten digits that scikit-learn ships: the default real data set, no download.

Each image is 8x8 with 17 grey values (Alpaydin and Kaynak 1998; UCI "Optical Recognition of Handwritten Digits").
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from ..arguments import checked

BINS = 17
SPLITS = ("train", "heldout", "all")


@cache
def _load() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    raw = load_digits()
    images = torch.tensor(raw.images / 8 - 1, dtype=torch.float32)[:, None]
    labels = torch.tensor(raw.target, dtype=torch.long)
    parts = train_test_split(np.arange(len(labels)), test_size=0.25, random_state=0, stratify=raw.target)
    train, heldout = (torch.from_numpy(np.sort(p)) for p in parts)
    return images, labels, train, heldout


@checked
def digits(split: str = "train") -> tuple[Tensor, Tensor]:
    """Digits of one split; the split is fixed, and every class has the same share in both parts.

    Args:
        split: "train" (three quarters), "heldout" (the rest) or "all".

    Returns:
        Images (N, 1, 8, 8) float32, 17 equally spaced values in [-1, 1], and labels (N,) 0 ... 9.

    Raises:
        ValueError: for another split.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    images, labels, train, heldout = _load()
    chosen = {"train": train, "heldout": heldout, "all": torch.arange(len(labels))}[split]
    return images[chosen], labels[chosen]
