"""Training images, in an order that depends on the seed and the step alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ..random import sample_generators
from ..recipes import DataRecipe, nearest

if TYPE_CHECKING:
    from ..data.shards import Shards
    from ..data.tokenizer import Tokenizer


def _digits(recipe: DataRecipe, split: str, size: int) -> Dataset:
    from ..data.digits import digits

    return TensorDataset(*digits(split))


def _shapes(recipe: DataRecipe, split: str, size: int) -> Dataset:
    from ..data.shapes import shapes

    index = {"train": 0, "heldout": 1}[split]
    count = recipe.images if split == "train" else 2000
    return TensorDataset(*shapes(count, size, sample_generators(recipe.seed, [index])[0]))


def _scenes(recipe: DataRecipe, split: str, size: int) -> Dataset:
    from ..data.captioned import captioned_pairs, captioned_scenes

    index = {"train": 0, "heldout": 1}[split]
    count = recipe.images if split == "train" else 2000
    draw = captioned_scenes if recipe.name == "scenes" else partial(captioned_pairs, reading=recipe.reading)
    found = draw(count, size, sample_generators(recipe.seed, [index])[0], "seen")
    return TensorDataset(found.images, _tokenizer(recipe)(found.captions))


def _emoji(recipe: DataRecipe, split: str, size: int) -> Dataset:
    from ..data.emoji import Emoji

    found = Emoji(recipe.path, size, split)
    images = torch.stack([found[i][0] for i in range(len(found))])
    return TensorDataset(images, _tokenizer(recipe)(list(found.captions.values())))


def _cifar10(recipe: DataRecipe, split: str, size: int) -> Dataset:
    from ..data.cifar import cifar10

    return TensorDataset(*cifar10(split, size, recipe.path, recipe.mirror and split == "train"))


def _folder(recipe: DataRecipe, split: str, size: int) -> Dataset:
    from ..data.images import ImageFolder

    return ImageFolder(_path(recipe), size, _part(recipe, split), recipe.mirror and split == "train")


def _shards(recipe: DataRecipe, split: str, size: int) -> Dataset:
    from ..data.shards import Shards

    part = _part(recipe, split)
    where, mirror = f"{_path(recipe)}/{part}" if part else _path(recipe), recipe.mirror and split == "train"
    if recipe.tokenizer:
        return Tokenized(Shards(where, size, mirror, "txt"), _tokenizer(recipe))
    return Shards(where, size, mirror)


def _torchvision(recipe: DataRecipe, split: str, size: int) -> Dataset:
    from ..data.images import torchvision_set

    return torchvision_set(recipe.name.partition(":")[2], _path(recipe), _part(recipe, split), size)


SETS = {
    "digits": _digits,
    "shapes": _shapes,
    "scenes": _scenes,
    "scenes-pairs": _scenes,
    "emoji": _emoji,
    "cifar10": _cifar10,
    "folder": _folder,
    "shards": _shards,
    "torchvision": _torchvision,
}


def _path(recipe: DataRecipe) -> str:
    if recipe.path is None:
        raise ValueError(f"data {recipe.name!r} lie somewhere on disk: name the place with data.path=...")
    return recipe.path


def _tokenizer(recipe: DataRecipe):
    from ..data.tokenizer import tokenizer

    if not recipe.tokenizer:
        raise ValueError(f"data {recipe.name!r} come with captions: name who reads them with data.tokenizer=...")
    return tokenizer(recipe.tokenizer)


def _part(recipe: DataRecipe, split: str) -> str:
    return {"train": recipe.train, "heldout": recipe.heldout}[split]


def load_dataset(recipe: DataRecipe, size: int, split: str = "train") -> Dataset:
    """A map-style data set whose items are an image (C, size, size) in [-1, 1] and a label, or the tokens of a caption.

    Args:
        recipe: Which images; "torchvision:NAME" names a set of torchvision.
        size: Side in pixels.
        split: "train" or "heldout".

    Raises:
        ValueError: for an unknown set or split, or data that are not there.
    """
    name = recipe.name.partition(":")[0]
    if name not in SETS:
        raise ValueError(f"unknown data {recipe.name!r}: {nearest(recipe.name, SETS)}")
    if split not in ("train", "heldout"):
        raise ValueError(f"split must be 'train' or 'heldout', got {split!r}")
    return SETS[name](recipe, split, size)


def load_set(recipe: DataRecipe, size: int, split: str = "train", count: int | None = None) -> tuple[Tensor, Tensor]:
    """Images (N, C, size, size) in [-1, 1] and labels (N,) in memory: all, or ``count`` spread evenly over the set.

    Raises:
        ValueError: as ``load_dataset``.
    """
    found = load_dataset(recipe, size, split)
    n = len(found)
    if isinstance(found, TensorDataset) and (count is None or count >= n):
        return found.tensors
    chosen = range(n) if count is None or count >= n else [i * n // count for i in range(count)]
    images, labels = zip(*[found[i] for i in chosen], strict=True)
    return torch.stack(images), torch.stack([torch.as_tensor(label) for label in labels])


class Tokenized(Dataset):
    """Pictures with captions as a network takes them: items are (image (3, H, W), tokens (L,)).

    Args:
        found: Items are (image, caption), in files of ``shard_sizes``.
        tokenizer: Reads the captions.
    """

    def __init__(self, found: Shards, tokenizer: Tokenizer):
        self.found, self.tokenizer, self.shard_sizes = found, tokenizer, found.shard_sizes

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        image, caption = self.found[i]
        return image, self.tokenizer([caption])[0]

    @property
    def broken(self) -> list[str]:
        """Names of the samples that could not be decoded so far."""
        return self.found.broken


class Order:
    """Endless shuffled indices: epoch e is a permutation drawn from (seed, e), and any step can be asked for.

    Args:
        n: Number of images.
        batch: Images per step.
        seed: Seed.
        shards: Sizes of consecutive runs of images that lie in one file. The files are shuffled, and the images of
            ``window`` files at a time, so that reading stays local.
        window: Files that are mixed.
    """

    def __init__(self, n: int, batch: int, seed: int, shards: Sequence[int] | None = None, window: int = 16):
        if n < 1:
            raise ValueError("there are no images to train on")
        self.n, self.batch, self.seed, self.shards, self.window = n, batch, seed, shards, window
        self._epoch, self._permutation = -1, None

    def _permuted(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            generator = sample_generators(self.seed, [epoch])[0]
            if self.shards is None:
                permutation = torch.randperm(self.n, generator=generator)
            else:
                files = torch.arange(self.n).split(list(self.shards))
                shuffled = [files[i] for i in torch.randperm(len(files), generator=generator).tolist()]
                mixed = [torch.cat(shuffled[i : i + self.window]) for i in range(0, len(shuffled), self.window)]
                permutation = torch.cat([m[torch.randperm(len(m), generator=generator)] for m in mixed])
            self._epoch, self._permutation = epoch, permutation
        return self._permutation

    def __getitem__(self, step: int) -> Tensor:
        """(batch,) indices of a step."""
        start, parts, missing = step * self.batch, [], self.batch
        while missing:
            epoch, offset = divmod(start + self.batch - missing, self.n)
            parts.append(self._permuted(epoch)[offset : offset + missing])
            missing -= len(parts[-1])
        return torch.cat(parts)


class _Slices:
    """The index lists of one process, from a step on; what a DataLoader calls a batch sampler."""

    def __init__(self, order: Order, steps: range, share: slice):
        self.order, self.steps, self.share = order, steps, share

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            yield self.order[step][self.share].tolist()


def batches(found: Dataset, order: Order, steps: range, share: slice, workers: int = 0) -> Iterator:
    """(images, labels) of one process's share of each step; a run may begin at any step, inside an epoch too."""
    if isinstance(found, TensorDataset):
        return (tuple(t[order[step][share]] for t in found.tensors) for step in steps)
    pinned = torch.cuda.is_available()
    return iter(DataLoader(found, batch_sampler=_Slices(order, steps, share), num_workers=workers, pin_memory=pinned))
