"""Training images in memory, in an order that depends on the seed and the step alone."""

from __future__ import annotations

import torch
from torch import Tensor

from ..random import sample_generators
from ..recipes import DataRecipe, nearest


def _digits(recipe: DataRecipe, split: str, size: int) -> tuple[Tensor, Tensor]:
    from ..data.digits import digits

    return digits(split)


def _shapes(recipe: DataRecipe, split: str, size: int) -> tuple[Tensor, Tensor]:
    from ..data.shapes import shapes

    index = {"train": 0, "heldout": 1}[split]
    count = recipe.images if split == "train" else 2000
    return shapes(count, size, sample_generators(recipe.seed, [index])[0])


def _cifar10(recipe: DataRecipe, split: str, size: int) -> tuple[Tensor, Tensor]:
    from ..data.cifar import cifar10

    return cifar10(split, size, recipe.path, recipe.mirror and split == "train")


SETS = {"digits": _digits, "shapes": _shapes, "cifar10": _cifar10}


def load_set(recipe: DataRecipe, size: int, split: str = "train") -> tuple[Tensor, Tensor]:
    """Images (N, C, size, size) in [-1, 1] and labels (N,).

    Raises:
        ValueError: for an unknown set.
    """
    if recipe.name not in SETS:
        raise ValueError(f"unknown data {recipe.name!r}: {nearest(recipe.name, SETS)}")
    return SETS[recipe.name](recipe, split, size)


class Order:
    """Endless shuffled indices: epoch e is a permutation drawn from (seed, e), and any step can be asked for.

    Args:
        n: Number of images.
        batch: Images per step.
        seed: Seed.
    """

    def __init__(self, n: int, batch: int, seed: int):
        self.n, self.batch, self.seed = n, batch, seed
        self._epoch, self._permutation = -1, None

    def _permuted(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            generator = sample_generators(self.seed, [epoch])[0]
            self._epoch, self._permutation = epoch, torch.randperm(self.n, generator=generator)
        return self._permutation

    def __getitem__(self, step: int) -> Tensor:
        """(batch,) indices of a step."""
        start, out = step * self.batch, []
        while len(out) < self.batch:
            epoch, offset = divmod(start + len(out), self.n)
            out += self._permuted(epoch)[offset : offset + self.batch - len(out)].tolist()
        return torch.tensor(out)
