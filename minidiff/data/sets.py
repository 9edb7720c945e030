"""Every data set behind one name: items are dicts of tensors, "image" with "label", or with "caption" (its tokens)."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from ..arguments import Count, Natural, checked
from ..files import digest
from ..random import sample_generators
from ..words import nearest
from .embeddings import Embeddings
from .images import ImageFolder, Images, torchvision_set
from .recipe import DataRecipe
from .states import TextStates, filled
from .tokenizer import Tokenizer, tokenizer

log = logging.getLogger(__name__)
Rows = Callable[[int], dict[str, Tensor]]  # columns of so many rows, spread evenly over a data set
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
        found: Items are (image, label), or (image, caption), and what else is named.
        second: What the second is called.
        convert: From the second to a tensor.
        more: What follows is called; "text_states" among it is filled to one length, with "text_mask".
        length: That length, in tokens.
        grey: Whether colours are averaged.
    """

    grey = False

    def __init__(
        self,
        found: Dataset,
        second: str = "label",
        convert: Callable = torch.as_tensor,
        more: Sequence[str] = (),
        length: Natural = 0,
    ):
        self.found, self.second, self.convert, self.more, self.length = found, second, convert, tuple(more), length
        self.shard_sizes: Sequence[int] | None = getattr(found, "shard_sizes", None)

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return self._row(*self.found[i])

    def own(self, i: int) -> dict[str, Tensor] | None:
        """Item i itself; None where it cannot be decoded, which training fills with the next good one."""
        item = self.found.own(i) if isinstance(self.found, Images) else self.found[i]
        return None if item is None else self._row(*item)

    def _row(self, image: Tensor, second, *more: Tensor) -> dict[str, Tensor]:
        image = image.mean(0, keepdim=True) if self.grey else image
        row = {"image": image, self.second: self.convert(second), **dict(zip(self.more, more, strict=True))}
        return row | (filled(row["text_states"], self.length) if "text_states" in row else {})

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
    found = SETS[name](recipe, split)
    found = _joined(found, recipe, split) if isinstance(found, Columns) else found
    return _in_grey(found) if recipe.grey else found


def _in_grey(found: Dataset) -> Dataset:
    if isinstance(found, Columns):
        return Columns(**found.columns | {"image": found.columns["image"].mean(1, keepdim=True)})
    found.grey = True
    return found


@checked
def require_images(found: Dataset, shape: tuple[int, ...]) -> None:
    """Refuse images of another shape than a system learns, before any step is taken.

    Raises:
        ValueError: naming both shapes, and the option that brings them together.
    """
    image = found[0].get("image")
    if image is None or tuple(image.shape) == tuple(shape):
        return
    hint = "; data.grey=true averages their colours" if (len(image), shape[0]) == (3, 1) else ""
    hint = hint or ("; data.size says how large they are read" if len(image) == shape[0] else "")
    raise ValueError(f"the images are {tuple(image.shape)}, and the network takes {tuple(shape)}{hint}")


def _joined(found: Columns, recipe: DataRecipe, split: str) -> Columns:
    """A data set in memory with the embeddings that were computed of it."""
    for name in recipe.embeddings:
        place = embeddings_place(recipe, name, split)
        try:
            stored = Embeddings(place)
        except ValueError as error:
            raise ValueError(f"{error}: `minidiff data embed-for RECIPE` computes what data.{name} names") from None
        made_of, is_of = stored.samples.index.get("plan", {}).get("source"), identity(recipe, split)
        if made_of != is_of:
            raise ValueError(f"the embeddings in {place} are of other data ({made_of}, not {is_of})")
        found.columns[name] = stored.tensor()
    if recipe.text_states:
        found.columns |= stored_states(recipe).columns(captions_of(found, recipe))
    return found


@checked
def stored_states(recipe: DataRecipe) -> TextStates:
    """What the text encoder of a recipe said of its captions.

    Raises:
        ValueError: when it is not there, or was said by another encoder.
    """
    place = states_place(recipe)
    try:
        return TextStates(place, recipe.language)
    except FileNotFoundError:
        raise ValueError(f"no {place}: `minidiff data embed-for RECIPE` computes what data.text_states names") from None


@checked
def states_place(recipe: DataRecipe) -> str:
    """File of the states of a recipe's captions.

    Raises:
        ValueError: for a recipe that names no encoder or no folder.
    """
    if not (recipe.language and recipe.text_states):
        raise ValueError(
            "text states are those of an encoder, and lie in a folder: name both, data.language and data.text_states"
        )
    return f"{recipe.text_states}/{re.sub('[^A-Za-z0-9._-]+', '-', recipe.language)}.safetensors"


def shard_states_place(recipe: DataRecipe, split: str) -> str:
    """Folder of the states of a recipe's captions, where the data lie in shards."""
    return f"{recipe.text_states}/{recipe.part(split)}".rstrip("/")


def captions_of(found: Dataset, recipe: DataRecipe) -> list[str]:
    """The captions of a data set in memory, as texts."""
    if not isinstance(found, Columns) or "caption" not in found.columns:
        raise ValueError(f"text states are computed for data in memory with captions, not {recipe.name!r}")
    return _tokenizer(recipe).decode(found.columns["caption"])


def all_captions(recipe: DataRecipe) -> list[str]:
    """Every text that is a caption of a recipe's data, for training or for the card, once."""
    captions = [text for split in SPLITS for text in captions_of(SETS[recipe.name](recipe, split), recipe)]
    return list(dict.fromkeys(captions))


@checked
def embeddings_place(recipe: DataRecipe, name: str, split: str) -> str:
    """Folder of a column of embeddings."""
    return f"{recipe.embeddings[name]}/{recipe.part(split)}".rstrip("/")


@checked
def identity(recipe: DataRecipe, split: str) -> str:
    """A digest of everything that decides what the rows of a data set in memory are."""
    facts = (recipe.name, recipe.size, _count(recipe, split), recipe.seed, recipe.reading, recipe.explicit)
    return digest([*map(str, facts), split, *recipe.hands, *(["plain"] if recipe.plain else [])])


@checked
class Described(Dataset):
    """A data set in memory as pictures with captions: item i is (image, text).

    Attributes:
        fingerprint: Says what the data are.
    """

    def __init__(self, recipe: DataRecipe, split: str):
        found = SETS[recipe.name](recipe, split)
        self.columns, self._reader, self.fingerprint = found.columns, _tokenizer(recipe), identity(recipe, split)

    def __len__(self) -> int:
        return len(self.columns["image"])

    def __getitem__(self, i: int) -> tuple[Tensor, str]:
        return self.columns["image"][i], self._reader.decode(self.columns["caption"][i : i + 1])[0]


@checked
def described(recipe: DataRecipe, split: str) -> Dataset:
    """The pictures and captions of a recipe, for a frozen network to embed.

    Raises:
        ValueError: for data that come without captions.
    """
    if recipe.name == "shards":
        from .shards import Shards

        return Shards(f"{_path(recipe)}/{recipe.part(split)}".rstrip("/"), recipe.size)
    if recipe.name not in ("scenes", "scenes-pairs", "emoji"):
        raise ValueError(f"embeddings are computed for captioned data: scenes, emoji or shards, not {recipe.name!r}")
    return Described(recipe, split)


@checked
def load_set(recipe: DataRecipe, split: str = "train", count: Count | None = None) -> dict[str, Tensor]:
    """Columns of a data set in memory: all rows, or ``count`` spread evenly over the set; broken ones are left out.

    Raises:
        ValueError: as ``load_dataset``, or when no image can be decoded.
    """
    return rows(load_dataset(recipe, split), f"{recipe.name} {split}", count)


@checked
def rows(found: Dataset, name: str, count: Count | None = None) -> dict[str, Tensor]:
    """Columns of a data set in memory, see ``load_set``; messages call it by the name."""
    n = len(found)
    every = count is None or count >= n
    if isinstance(found, Columns):
        return found[:] if every else found[[i * n // count for i in range(count)]]
    items = [found.own(i) for i in (range(n) if every else [i * n // count for i in range(count)])]
    good = [item for item in items if item is not None]
    if not good:
        raise ValueError(f"none of the {len(items)} images of {name} can be decoded")
    return default_collate(good)


@checked
def second(columns: Mapping[str, Any]) -> Tensor:
    """What is said of the images of a batch: its labels, or the tokens of its captions."""
    return columns["label" if "label" in columns else "caption"]


@checked
def require_classes(found: Dataset, n_classes: Count) -> None:
    """Refuse labels that a system with so many classes cannot be told, before any step is taken.

    Raises:
        ValueError: for labels out of range, or data without any.
    """
    labels = labels_of(found)
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


def labels_of(found: Dataset) -> Tensor | None:
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
def fixed_classes(recipe: DataRecipe) -> tuple[str, ...]:
    """Names of the classes of a data set that has the same wherever it lies; () of others."""
    from .cifar import CLASSES
    from .scenes import SHAPES

    return {"digits": tuple("0123456789"), "shapes": tuple(SHAPES), "cifar10": CLASSES}.get(recipe.name, ())


def classes_of(recipe: DataRecipe) -> tuple[str, ...]:
    """Names of the classes of a data set, in the order of their numbers; () where they are not known or not at hand."""
    if recipe.name.partition(":")[0] not in ("folder", "shards", "torchvision"):
        return fixed_classes(recipe)
    try:
        return class_names(load_dataset(recipe))
    except ValueError:
        return ()


def require_names(found: Sequence[str], known: Sequence[str], whose: str, who: str) -> None:
    """Refuse classes that are not called as a network learnt them: their numbers would stand for others.

    Args:
        found: Names of the classes, in the order of their numbers; () where they are not known.
        known: Those that the network learnt.
        whose: What the classes are of.
        who: The network.

    Raises:
        ValueError: naming the first class that differs.
    """
    if not found or not known or tuple(found) == tuple(known):
        return
    called = lambda names, i: repr(names[i]) if i < len(names) else "none"
    i = next(i for i in range(max(len(found), len(known))) if called(found, i) != called(known, i))
    raise ValueError(f"class {i} of {whose} is {called(found, i)}, and {who} learnt it as {called(known, i)}")


def _digits(recipe: DataRecipe, split: str) -> Dataset:
    from .digits import digits

    return _labelled(recipe, *digits(split))


def _shapes(recipe: DataRecipe, split: str) -> Dataset:
    from .shapes import shapes

    return _labelled(recipe, *shapes(_count(recipe, split), recipe.size, _generator(recipe, split)))


def _scenes(recipe: DataRecipe, split: str) -> Dataset:
    from .captioned import captioned_pairs, captioned_scenes

    how = (_count(recipe, split), recipe.size, _generator(recipe, split), "seen", recipe.reading)
    if recipe.name == "scenes-pairs":
        found = captioned_pairs(*how, recipe.plain)
    else:
        found = captioned_scenes(*how, recipe.explicit, recipe.plain)
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
        beside = [embeddings_place(recipe, name, split) for name in recipe.embeddings]
        more = [*recipe.embeddings, *(["text_states"] if recipe.text_states else [])]
        beside += [shard_states_place(recipe, split)] if recipe.text_states else []
        targets = ["txt", *(f"{name}.npy" for name in more)]
        where = place(recipe.part(split))
        found = Shards(where, recipe.size, mirror, targets, beside, read=partial(_tokens, reader))
        if reader.closed:
            _refuse_captions(found, reader)
        return Items(found, "caption", more=more, length=recipe.states_length)
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
    return Items(torchvision_set(name, _path(recipe), recipe.part(split), recipe.size))


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
