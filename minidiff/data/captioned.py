"""Rendered scenes with captions: what a text-to-image model learns from here."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..arguments import Count, Natural, Share, checked
from .captions import explicit as is_explicit
from .captions import plain_captions, sample_captions
from .render import render
from .scenes import Scenes, joined, sample_scenes

ONE_OBJECT = 0.25  # share of the scenes that hold a single object


@checked
@dataclass(frozen=True)
class Captioned:
    """N pictures and what is said of them.

    Attributes:
        images: (N, 3, S, S) float32 in [-1, 1].
        captions: N captions of the grammar.
        objects: (N,) long, 1 or 2: how many objects each picture holds.
    """

    images: Tensor
    captions: list[str]
    objects: Tensor


@checked
def captioned_scenes(
    n: Natural,
    size: Count,
    generator: torch.Generator,
    split: str = "all",
    reading: Share = 0.5,
    explicit: Share = 0.0,
    plain: bool = False,
) -> Captioned:
    """n scenes, one in four with one object and the others with two, each with a caption drawn from the grammar.

    Args:
        n: Number of scenes.
        size: Side in pixels.
        generator: Decides everything.
        split: "all", "seen" or "heldout" combinations of shape and colour, as ``sample_scenes`` takes it.
        reading: Probability that the left or the upper object is named first.
        explicit: Share of the scenes whose caption leaves no shape and no colour open (``explicit_scenes``).
        plain: Captions call everything by its own name (``captions.plain_captions``), in place of the grammar's.

    Raises:
        ValueError: for a share outside [0, 1], one of explicit captions among plain ones, or as ``sample_scenes`` and
            ``render`` do.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n = {n!r} scenes asked for; a whole number >= 1 is accepted")
    if not 0 <= explicit <= 1:
        raise ValueError(f"explicit is a share of the scenes, from 0 to 1; got {explicit}")
    if plain and explicit:
        raise ValueError(f"plain captions are all explicit: explicit = 0 is accepted beside plain, got {explicit}")
    say = plain_captions if plain else sample_captions
    objects = 2 - (torch.rand(n, generator=generator) < ONE_OBJECT).long()
    images, captions = torch.empty(n, 3, size, size), [""] * n
    for count in (1, 2):
        places = (objects == count).nonzero()[:, 0]
        open_ones, full = places.split([len(places) - round(explicit * len(places)), round(explicit * len(places))])
        if len(open_ones):
            scenes = sample_scenes(len(open_ones), generator, count, split)
            _fill(images, captions, open_ones, scenes, say(scenes, generator, reading))
        if len(full):
            _fill(images, captions, full, *explicit_scenes(len(full), count, split, generator, reading))
    return Captioned(images, captions, objects)


def _fill(images: Tensor, captions: list[str], places: Tensor, scenes: Scenes, said: list[str]) -> None:
    images[places] = render(scenes, images.shape[-1])
    for i, caption in zip(places.tolist(), said, strict=True):
        captions[i] = caption


@checked
def captioned_pairs(
    n: Natural,
    size: Count,
    generator: torch.Generator,
    split: str = "all",
    reading: Share = 0.5,
    plain: bool = False,
) -> Captioned:
    """n scenes of two objects, each with a caption that leaves no shape and no colour open (``explicit_scenes``).

    Args:
        n: Number of scenes.
        size: Side in pixels.
        generator: Decides everything.
        split: As for ``captioned_scenes``.
        reading: Probability that the left or the upper object is named first.
        plain: As for ``captioned_scenes``.

    Raises:
        ValueError: as ``sample_scenes`` and ``render`` do.
    """
    if plain:
        scenes = sample_scenes(n, generator, 2, split)
        captions = plain_captions(scenes, generator, reading)
    else:
        scenes, captions = explicit_scenes(n, 2, split, generator, reading)
    return Captioned(render(scenes, size), captions, torch.full((n,), 2))


@checked
def explicit_scenes(
    n: Natural, objects: Count, split: str, generator: torch.Generator, reading: Share = 0.5
) -> tuple[Scenes, list[str]]:
    """The first n scenes with an ``explicit`` caption, and these captions.

    Raises:
        ValueError: as ``sample_scenes`` does.
    """
    scenes, captions = [], []
    while len(captions) < n:
        drawn = sample_scenes(n, generator, objects, split)
        said = sample_captions(drawn, generator, reading)
        chosen = [i for i, caption in enumerate(said) if is_explicit(caption)]
        scenes.append(drawn.select(torch.tensor(chosen, dtype=torch.long)))
        captions += [said[i] for i in chosen]
    return joined(scenes).select(slice(n)), captions[:n]
