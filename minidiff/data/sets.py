"""Every data set behind one name: items are dicts of tensors, "image" with "label", or with "caption" (its tokens)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from ..arguments import Count, checked
from ..random import sample_generators
from ..words import nearest
from .images import ImageFolder, Images, torchvision_set
from .recipe import DataRecipe
from .tokenizer import Tokenizer, tokenizer

log = logging.getLogger(__name__)
SPLITS = ("train", "heldout")
HELDOUT = 2000  # images of a held-out set that is rendered


class Columns(Dataset):
    """A data set in memory.

    Attributes:
        columns: Tensors by name, with one row per item.
    """

    def __init__(self, **columns: Tensor):
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, i) -> dict[str, Tensor]:
        """The row of an integer, or the rows of many."""
        return {name: column[i] for name, column in self.columns.items()}


@checked
class Items(Dataset):
    """A data set that is read on demand, its items turned into dicts.

    Attributes:
        found: Items are (image, label), or (image, caption).
        second: What the second is called.
        convert: From the second to a tensor.
    """

    def __init__(self, found: Dataset, second: str = "label", convert: Callable = torch.as_tensor):
        self.found, self.second, self.convert = found, second, convert
        self.shard_sizes: Sequence[int] | None = getattr(found, "shard_sizes", None)

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return self._row(*self.found[i])

    def own(self, i: int) -> dict[str, Tensor] | None:
        """Item i itself; None where it cannot be decoded, which training fills with the next good one."""
        item = self.found.own(i) if isinstance(self.found, Images) else self.found[i]
        return None if item is None else self._row(*item)

    def _row(self, image: Tensor, second) -> dict[str, Tensor]:
        return {"image": image, self.second: self.convert(second)}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers; () where none are known."""
        return class_names(self.found)

    @property
    def broken(self) -> list[str]:
        """Names of the items that could not be decoded so far."""
        return getattr(self.found, "broken", [])


@checked
def load_dataset(recipe: DataRecipe, split: str = "train") -> Dataset:
    """A map-style data set whose items are dicts of tensors: "image" (C, size, size) in [-1, 1], and what is said.

    Args:
        recipe: Which data.
        split: "train" or "heldout".

    Raises:
        ValueError: for an unknown set or split, or data that are not there.
    """
    name = recipe.name.partition(":")[0]
    if name not in SETS:
        raise ValueError(f"unknown data {recipe.name!r}: {nearest(recipe.name, SETS)}")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    return SETS[name](recipe, split)


@checked
def load_set(recipe: DataRecipe, split: str = "train", count: Count | None = None) -> dict[str, Tensor]:
    """Columns of a data set in memory: all rows, or ``count`` spread evenly over the set; broken ones are left out.

    Raises:
        ValueError: as ``load_dataset``, or when no image can be decoded.
    """
    found = load_dataset(recipe, split)
    n = len(found)
    every = count is None or count >= n
    if isinstance(found, Columns):
        return found.columns if every else found[[i * n // count for i in range(count)]]
    items = [found.own(i) for i in (range(n) if every else [i * n // count for i in range(count)])]
    good = [item for item in items if item is not None]
    if not good:
        raise ValueError(f"none of the {len(items)} images of {recipe.name} {split} can be decoded")
    return default_collate(good)


@checked
def second(columns: Mapping[str, Any]) -> Tensor:
    """What is said of the images of a batch: its labels, or the tokens of its captions."""
    return columns["label" if "label" in columns else "caption"]


@checked
def require_classes(found: Dataset, n_classes: int) -> None:
    """Refuse labels that a system with so many classes cannot be told, before any step is taken.

    Raises:
        ValueError: for labels out of range, or data without any.
    """
    labels = _labels(found)
    if labels is None:
        return
    if bool((labels < 0).all()):
        raise ValueError(
            f"the data have no labels, and the system is told {n_classes} classes: shards need a cls member for each "
            "image (minidiff data pack makes some of class folders)"
        )
    if int(labels.max()) >= n_classes:
        names = found.classes if isinstance(found, Items) else ()
        called = f" ({', '.join(names[:10])}{', ...' if len(names) > 10 else ''})" if names else ""
        raise ValueError(f"the data have classes 0 to {int(labels.max())}{called}, and the system has {n_classes}")


def _labels(found: Dataset) -> Tensor | None:
    """All labels of a data set, where they are known without decoding its images."""
    if isinstance(found, Columns):
        return found.columns.get("label")
    if found.second != "label":
        return None
    images = found.found
    held = images.labels if isinstance(images, Images) else getattr(images, "targets", getattr(images, "labels", None))
    return None if held is None else torch.as_tensor(held)


@checked
def class_names(found: Dataset) -> tuple[str, ...]:
    """What the labels of a data set stand for; () where that is not known."""
    if isinstance(found, Images) and not getattr(found, "named", True):
        return ()
    names = getattr(found, "classes", ())
    return tuple(name if isinstance(name, str) else ", ".join(name) for name in names)


@checked
def classes_of(recipe: DataRecipe) -> tuple[str, ...]:
    """Names of the classes of a data set, in the order of their numbers; () where they are not known or not at hand."""
    from .cifar import CLASSES
    from .scenes import SHAPES

    known = {"digits": tuple("0123456789"), "shapes": tuple(SHAPES), "cifar10": CLASSES}
    if recipe.name in known or recipe.name.partition(":")[0] not in ("folder", "shards", "torchvision"):
        return known.get(recipe.name, ())
    try:
        return load_dataset(recipe).classes
    except ValueError:
        return ()


def _digits(recipe: DataRecipe, split: str) -> Dataset:
    from .digits import digits

    return _labelled(recipe, *digits(split))


def _shapes(recipe: DataRecipe, split: str) -> Dataset:
    from .shapes import shapes

    return _labelled(recipe, *shapes(_count(recipe, split), recipe.size, _generator(recipe, split)))


def _scenes(recipe: DataRecipe, split: str) -> Dataset:
    from .captioned import captioned_pairs, captioned_scenes

    how = (_count(recipe, split), recipe.size, _generator(recipe, split), "seen", recipe.reading)
    found = captioned_pairs(*how) if recipe.name == "scenes-pairs" else captioned_scenes(*how, recipe.explicit)
    return Columns(image=found.images, caption=_tokenizer(recipe)(found.captions))


def _emoji(recipe: DataRecipe, split: str) -> Dataset:
    """Every picture under its name; of several hands also under its name with the hand that drew it."""
    from .emoji import Emoji

    found = Emoji(recipe.path, recipe.size, split, recipe.hands)
    images = torch.stack([found[i][0] for i in range(len(found))])
    said = [found.texts, found.spoken] if len(recipe.hands) > 1 else [found.texts]
    captions = [text for texts in said for text in texts]
    return Columns(image=images.repeat(len(said), 1, 1, 1), caption=_tokenizer(recipe)(captions))


def _cifar10(recipe: DataRecipe, split: str) -> Dataset:
    from .cifar import cifar10

    return _labelled(recipe, *cifar10(split, recipe.size, recipe.path, recipe.mirror and split == "train"))


def _folder(recipe: DataRecipe, split: str) -> Dataset:
    """Classes are numbered as in training, whatever the held-out folder holds."""
    if split == "train":
        return Items(ImageFolder(_path(recipe), recipe.size, recipe.train, recipe.mirror))
    try:
        table = ImageFolder(_path(recipe), within=recipe.train).classes
    except ValueError as error:
        raise ValueError(f"held-out classes are numbered as those of training, but {error}") from None
    return Items(ImageFolder(_path(recipe), recipe.size, recipe.heldout, classes=table))


def _shards(recipe: DataRecipe, split: str) -> Dataset:
    """Classes are numbered as in training, where the shards know their names."""
    from .shards import Shards

    place = lambda part: f"{_path(recipe)}/{part}" if part else _path(recipe)
    if recipe.tokenizer:
        reader, mirror = _tokenizer(recipe), recipe.mirror and split == "train"
        reader([""])  # a tokenizer without its files would refuse every caption
        found = Shards(place(_part(recipe, split)), recipe.size, mirror, "txt", read=partial(_tokens, reader))
        if reader.closed:
            _refuse_captions(found, reader)
        return Items(found, "caption")
    if split == "train":
        return Items(Shards(place(recipe.train), recipe.size, recipe.mirror))
    found = Shards(place(recipe.heldout), recipe.size)
    if found.named and recipe.heldout != recipe.train:
        train = Shards(place(recipe.train))
        if train.named and train.classes != found.classes:
            found = Shards(place(recipe.heldout), recipe.size, table=train.classes)
    return Items(found)


def _tokens(reader: Tokenizer, caption: str) -> Tensor:
    return reader([caption])[0]


def _refuse_captions(found: Images, reader: Tokenizer) -> None:
    """Leave out what a vocabulary does not cover, before training starts, and say how much that is."""
    wrong = found.check_targets()
    few = ", ".join(f"{name} ({why})" for name, why in list(wrong.items())[:3])
    said = f"{len(wrong)} of {len(found.labels)} captions in {found.path} are not read by {reader.name}: {few}"
    if len(wrong) == len(found.labels):
        raise ValueError(said)
    if wrong:
        log.warning("%s; their images are skipped", said)


def _torchvision(recipe: DataRecipe, split: str) -> Dataset:
    name = recipe.name.partition(":")[2]
    return Items(torchvision_set(name, _path(recipe), _part(recipe, split), recipe.size))


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


def _labelled(recipe: DataRecipe, images: Tensor, labels: Tensor) -> Columns:
    if images.shape[-1] != recipe.size:
        raise ValueError(f"{recipe.name} are {images.shape[-1]} pixels wide, and data.size is {recipe.size}")
    return Columns(image=images, label=labels)


def _count(recipe: DataRecipe, split: str) -> int:
    return recipe.images if split == "train" else HELDOUT


def _generator(recipe: DataRecipe, split: str) -> torch.Generator:
    return sample_generators(recipe.seed, [SPLITS.index(split)])[0]


def _path(recipe: DataRecipe) -> str:
    if recipe.path is None:
        raise ValueError(f"data {recipe.name!r} lie somewhere on disk: name the place with data.path=...")
    return recipe.path


def _tokenizer(recipe: DataRecipe):
    if not recipe.tokenizer:
        raise ValueError(f"data {recipe.name!r} come with captions: name who reads them with data.tokenizer=...")
    return tokenizer(recipe.tokenizer)


def _part(recipe: DataRecipe, split: str) -> str:
    return {"train": recipe.train, "heldout": recipe.heldout}[split]
