"""Prompt sheets: captions to draw, and real pictures of them; held-out ones, so that composition is asked for.

A sheet of scenes has one caption in two of a single object and the others of two. All of them name the shape and the
colour of every object by words that fit only one (not "warm", not "shape", none left out), so a caption of the held-out
sheet cannot be said of any scene of training, and one of the seen sheet can: they differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..arguments import Count, checked
from ..random import sample_generators
from .captioned import explicit_scenes
from .captions import attributes_given_caption
from .emoji import Emoji
from .recipe import DataRecipe
from .render import render
from .scenes import Scenes, arranged
from .sets import load_dataset
from .tokenizer import tokenizer

COUNT = 500
SHEETS = {"heldout": "heldout", "seen": "train"}  # sheet -> part of a data set


@checked
@dataclass(frozen=True)
class Sheet:
    """Captions, and real pictures of them.

    Attributes:
        name: "heldout", "seen", or "all".
        captions: N captions.
        pictures: Each (N, 3, S, S) in [-1, 1], the caption's picture; then others of the same captions, where there are
            any.
        grammar: Whether the captions are of scenes, which the oracle reads.
    """

    name: str
    captions: list[str]
    pictures: list[Tensor]
    grammar: bool


@checked
def scenes_of(captions: Sequence[str], copies: Count, generator: torch.Generator, split: str = "all") -> list[Scenes]:
    """``copies`` times a scene for each caption, from p(scene | caption).

    Args:
        captions: All of one object, or all of two.
        copies: Number of scenes of each caption.
        generator: Decides everything.
        split: As ``sample_scenes`` takes it.

    Raises:
        ValueError: for a text that the grammar cannot say of a scene of the split.
    """
    tables = [attributes_given_caption(caption, split) for caption in captions]
    chosen = [torch.multinomial(t.flatten(), copies, replacement=True, generator=generator) for t in tables]
    scenes = []
    for row in torch.stack(chosen, 1):
        place = [torch.from_numpy(index) for index in np.unravel_index(row.numpy(), tables[0].shape)]
        shape, color, size = (torch.stack(place[first : len(place) // 3 * 3 : 3], 1) for first in range(3))
        scenes.append(arranged(shape, color, size, place[-1], generator))
    return scenes


@checked
def scene_sheet(split: str, count: Count, size: Count, others: Count = 3, seed: int = 0) -> Sheet:
    """A sheet of scenes.

    Args:
        split: "heldout" or "seen", as ``sample_scenes`` takes it.
        count: Number of captions.
        size: Side of the pictures.
        others: Further pictures of each caption, from p(scene | caption).
        seed: Decides everything, with the numbers above.

    Raises:
        ValueError: for a count below 2, or as ``sample_scenes`` and ``render``.
    """
    if count < 2:
        raise ValueError(f"a sheet needs at least 2 captions, one for each number of objects; got {count}")
    captions, pictures = [""] * count, torch.empty(1 + others, count, 3, size, size)
    for objects in (1, 2):
        places = range(objects - 1, count, 2)
        generator = sample_generators(seed, [f"prompts {split} {objects}"])[0]
        scenes, said = explicit_scenes(len(places), objects, split, generator)
        for place, caption in zip(places, said, strict=True):
            captions[place] = caption
        for row, drawn in zip(pictures, [scenes, *scenes_of(said, others, generator, split)], strict=True):
            row[places.start :: 2] = render(drawn, size)
    return Sheet(split, captions, list(pictures), True)


@checked
def sheets(data: DataRecipe, size: Count, count: Count | None = None, seed: int = 0) -> list[Sheet]:
    """The held-out sheet and the seen one of a captioned data set, with as many captions.

    Of scenes as ``scene_sheet`` makes them; else captions of the two parts of the set, with their pictures. A set that
    has no parts gives one sheet, "all".

    Args:
        data: The data set.
        size: Side of the pictures.
        count: Number of captions; ``COUNT`` when left out, or as many as both parts have.
        seed: Chooses.

    Raises:
        ValueError: for a data set without captions, or with fewer than count in one of its parts.
    """
    if data.name in ("scenes", "scenes-pairs"):
        return [scene_sheet(name, count or COUNT, size, seed=seed) for name in SHEETS]
    if not data.tokenizer:
        raise ValueError(f"data {data.name!r} have no captions")
    names = SHEETS if data.train != data.heldout else {"all": "train"}
    parts = {name: _part(replace(data, size=size), part) for name, part in names.items()}
    most = min(len(set(part.texts)) if isinstance(part, Emoji) else len(part) for part in parts.values())
    if most < (count or 1):
        raise ValueError(f"{data.name} has {most} captions in one of its parts, not {count}")
    return [_some(name, part, min(count or COUNT, most), data.tokenizer, seed) for name, part in parts.items()]


def _part(data: DataRecipe, part: str) -> Dataset:
    """Of emoji the pictures under their plain names, which training sees under two."""
    return Emoji(data.path, data.size, part, data.hands) if data.name == "emoji" else load_dataset(data, part)


def _good(name: str, found: Dataset, order: list[int], count: int) -> list:
    """The first items, in an order, that can be decoded.

    Raises:
        ValueError: when there are fewer than ``count``.
    """
    own = getattr(found, "own", found.__getitem__)
    items = list(islice((item for i in order if (item := own(i)) is not None), count))
    if len(items) < count:
        raise ValueError(f"{len(items)} pictures of {name} can be read, not {count}: ask for fewer captions")
    return items


def _some(name: str, found: Dataset, count: int, reader: str, seed: int) -> Sheet:
    generator = sample_generators(seed, [f"prompts {name}"])[0]
    order = torch.randperm(len(found), generator=generator).tolist()
    if isinstance(found, Emoji):  # each name once, drawn by either hand
        first = {found.texts[i]: i for i in reversed(order)}
        order = [i for i in order if first[found.texts[i]] == i]
        images, captions = zip(*_good(name, found, order, count), strict=True)
    else:
        items = _good(name, found, order, count)
        images = [item["image"] for item in items]
        captions = tokenizer(reader).decode(torch.stack([item["caption"] for item in items]))
    return Sheet(name, list(captions), [torch.stack(list(images))], False)
