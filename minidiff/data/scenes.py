"""Captioned scenes: one or two coloured shapes on a soft background, described as vectors.

A scene is a handful of numbers; ``minidiff.data.render`` draws it at any resolution. Coordinates are
fractions of the frame, x to the right and y downwards; a shape of radius r lives inside the disc of radius
``REACH * r`` around its centre.

The joint distribution is simple enough to be counted (``minidiff.data.captions`` does): shape,
colour, size and background are uniform; two objects differ in shape and in colour; their relation is uniform.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..arguments import Count, Finite, Natural, NonNegative, checked, integers

SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "cross", "diamond")
COLORS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink")
SIZES = ("small", "large")
BACKGROUNDS = ("cream", "mist", "sky", "lilac", "slate", "night")
RELATIONS = ("left of", "right of", "above", "below")  # of the first object to the second
SPLITS = ("all", "seen", "heldout")

REACH = 1.1  # every unit shape fits in a disc of this radius
RADII = {
    1: (0.285, 0.395),
    2: (0.138, 0.194),
}  # nominal radius (small, large) of one object and of two
JITTER = 0.08  # a radius is its nominal value times a uniform factor in 1 +- JITTER
GAP = 0.03  # least distance between two objects' discs, and twice the least distance to the frame
TILT = 0.6  # two objects' offset across their relation is at most this fraction of the offset along it
DRAWS = 14  # uniform numbers per scene


@checked
@dataclass(frozen=True)
class Object:
    """One shape: its attributes by name, its centre (x, y) and radius as fractions of the frame."""

    shape: str
    color: str
    size: str
    x: Finite
    y: Finite
    radius: NonNegative


@dataclass(frozen=True)
class Scene:
    """One or two objects on a background; with two, ``relation`` is that of the first to the second."""

    objects: tuple[Object, ...]
    background: str = BACKGROUNDS[0]

    @property
    def relation(self) -> str | None:
        if len(self.objects) != 2:
            return None
        (a, b) = self.objects
        return RELATIONS[int(relation_of(torch.tensor([[a.x, a.y], [b.x, b.y]])))]


@checked
@dataclass(frozen=True)
class Scenes:
    """N scenes of up to K objects as tensors; all fields share the first dimension.

    Attributes:
        shape, color, size: (N, K) long, indices into ``SHAPES``, ``COLORS``, ``SIZES``; shape -1: no object.
        center: (N, K, 2) float, (x, y); radius: (N, K) float. Fractions of the frame.
        background: (N,) long, index into ``BACKGROUNDS``.
    """

    shape: Tensor
    color: Tensor
    size: Tensor
    center: Tensor
    radius: Tensor
    background: Tensor

    def __len__(self) -> int:
        return len(self.shape)

    @property
    def relation(self) -> Tensor:
        """(N,) long, index into ``RELATIONS``; -1 where there are not two objects."""
        if self.shape.shape[1] != 2:
            return torch.full((len(self),), -1)
        return relation_of(self.center).masked_fill((self.shape < 0).any(1), -1)

    def select(self, index: Tensor | slice) -> Scenes:
        """The scenes at ``index`` (anything that indexes a tensor's first dimension and keeps it)."""
        return Scenes(*(getattr(self, f.name)[index] for f in fields(self)))

    def __getitem__(self, i: int) -> Scene:
        """Scene ``i`` as a readable dataclass."""
        objects = tuple(
            Object(
                SHAPES[int(self.shape[i, k])],
                COLORS[int(self.color[i, k])],
                SIZES[int(self.size[i, k])],
                *self.center[i, k].tolist(),
                float(self.radius[i, k]),
            )
            for k in range(self.shape.shape[1])
            if self.shape[i, k] >= 0
        )
        return Scene(objects, BACKGROUNDS[int(self.background[i])])

    @classmethod
    def of(cls, scenes: Sequence[Scene]) -> Scenes:
        """The tensor form of a list of ``Scene``.

        Raises:
            ValueError: an empty list, more than two objects, an unknown name, an object outside the frame.
        """
        if not scenes:
            raise ValueError("no scenes given; at least one is needed")
        n, k = len(scenes), max(1, max(len(s.objects) for s in scenes))
        if k > 2:
            raise ValueError(f"a scene has {k} objects; one or two are accepted")
        shape, color, size = (torch.full((n, k), fill) for fill in (-1, 0, 0))
        center, radius = torch.full((n, k, 2), 0.5), torch.full((n, k), 0.1)
        for i, scene in enumerate(scenes):
            for j, o in enumerate(scene.objects):
                if not (0 < o.radius < 1 and 0 <= o.x <= 1 and 0 <= o.y <= 1):
                    raise ValueError(
                        f"object {o} lies outside the frame: x, y in [0, 1] and 0 < radius < 1 are accepted"
                    )
                shape[i, j], color[i, j] = named(o.shape, SHAPES, "shape"), named(o.color, COLORS, "color")
                size[i, j] = named(o.size, SIZES, "size")
                center[i, j], radius[i, j] = torch.tensor([o.x, o.y]), o.radius
        background = torch.tensor([named(s.background, BACKGROUNDS, "background") for s in scenes])
        return cls(shape, color, size, center, radius, background)


def named(value: str, names: Sequence[str], what: str) -> int:
    """Index of ``value`` in ``names``; ValueError with the accepted names otherwise."""
    if value not in names:
        raise ValueError(f"{what} {value!r} is not one of {', '.join(names)}")
    return names.index(value)


@checked
def relation_of(center: Tensor) -> Tensor:
    """Relation (...,) of the first to the second of two centres (..., 2, 2): the longer offset decides."""
    dx, dy = (center[..., 0, :] - center[..., 1, :]).unbind(-1)
    return torch.where(dx.abs() >= dy.abs(), (dx > 0).long(), 2 + (dy > 0).long())


@checked
def held_out(shape: integers() | int, color: integers() | int) -> Tensor:
    """Whether a (shape, colour) combination is held out: one colour per shape and one shape per colour."""
    return color == (3 * shape + 1) % len(COLORS)


def _choice(u: Tensor, n: int) -> Tensor:
    return (u * n).long().clamp_(max=n - 1)


@checked
def sample_scenes(n: Natural, generator: torch.Generator, objects: Count = 1, split: str = "all") -> Scenes:
    """Draw n scenes of one or two objects each.

    Scene i is a function of row i of ``torch.rand(n, DRAWS, generator=generator)`` and of nothing else, so it
    does not depend on n, and two calls in a row give what one call gives. With ``split="seen"`` (no object has
    a held-out combination) or ``"heldout"`` (at least one has) it is the i-th such scene among those rows.

    Raises:
        ValueError: n < 1, ``objects`` not 1 or 2, unknown split, or ``generator`` is not a torch.Generator.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n = {n!r} scenes asked for; a whole number >= 1 is accepted")
    if objects not in RADII:
        raise ValueError(f"objects = {objects!r}; 1 or 2 is accepted")
    if not isinstance(generator, torch.Generator):
        raise ValueError(f"generator is a {type(generator).__name__}; a torch.Generator is accepted")
    named(split, SPLITS, "split")
    found: list[Scenes] = []
    while sum(map(len, found)) < n:
        scenes = _scenes(torch.rand(n, DRAWS, generator=generator, device=generator.device).cpu(), objects)
        if split != "all":
            scenes = scenes.select(held_out(scenes.shape, scenes.color).any(1) == (split == "heldout"))
        found.append(scenes)
    return joined(found).select(slice(n))


@checked
def joined(parts: Sequence[Scenes]) -> Scenes:
    """Scenes one after the other; all parts hold the same number of objects."""
    return Scenes(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Scenes)))


@checked
def arranged(shape: Tensor, color: Tensor, size: Tensor, relation: Tensor, generator: torch.Generator) -> Scenes:
    """Scenes with these named attributes; all that is not named is drawn as in ``sample_scenes``.

    Args:
        shape, color, size: (N, K) long, the attributes of K = 1 or 2 objects.
        relation: (N,) long, of the first to the second; ignored for one object.
        generator: Draws radii, places and backgrounds.
    """
    s, c = len(SHAPES), len(COLORS)
    u = torch.rand(len(shape), DRAWS, generator=generator, device=generator.device).cpu()
    middle = lambda index, n: (index + 0.5) / n  # what _choice reads as this index
    u[:, 0], u[:, 2] = middle(shape[:, 0], s), middle(color[:, 0], c)
    u[:, 4 : 4 + size.shape[1]] = middle(size, len(SIZES))
    if shape.shape[1] == 2:
        u[:, 1] = middle(shape[:, 1] - (shape[:, 1] > shape[:, 0]).long(), s - 1)
        u[:, 3] = middle(color[:, 1] - (color[:, 1] > color[:, 0]).long(), c - 1)
        u[:, 12] = middle(relation, len(RELATIONS))
    return _scenes(u, shape.shape[1])


def _scenes(u: Tensor, objects: int) -> Scenes:
    """Scenes from uniform numbers (N, DRAWS)."""
    s, c = len(SHAPES), len(COLORS)
    shape = torch.stack([_choice(u[:, 0], s), _choice(u[:, 1], s - 1)], 1)
    color = torch.stack([_choice(u[:, 2], c), _choice(u[:, 3], c - 1)], 1)
    shape[:, 1] += shape[:, 1] >= shape[:, 0]  # uniform over the other shapes
    color[:, 1] += color[:, 1] >= color[:, 0]
    shape, color = shape[:, :objects], color[:, :objects]
    size = _choice(u[:, 4:6], len(SIZES))[:, :objects]
    radius = torch.tensor(RADII[objects])[size] * (1 + JITTER * (2 * u[:, 6 : 6 + objects] - 1))
    margin = REACH * radius + GAP / 2
    if objects == 1:
        center = (margin + (1 - 2 * margin) * u[:, 8:10])[:, None]
    else:
        center = _pair(radius, margin, u[:, 8:12], _choice(u[:, 12], len(RELATIONS)))
    return Scenes(shape, color, size, center, radius, _choice(u[:, 13], len(BACKGROUNDS)))


def _pair(radius: Tensor, margin: Tensor, u: Tensor, relation: Tensor) -> Tensor:
    """Centres (N, 2, 2) of two discs that touch neither each other nor the frame, in the given relation."""
    room = 1 - margin.sum(1) - REACH * radius.sum(1) - GAP
    near, far = (room[:, None] * u[:, :2]).sort(1).values.unbind(1)
    first = relation % 2 == 0  # the first object is the one to the left or on top
    low = torch.where(first, margin[:, 0], margin[:, 1]) + near
    high = low + REACH * radius.sum(1) + GAP + far - near
    along = torch.where(first[:, None], torch.stack([low, high], 1), torch.stack([high, low], 1))
    a = margin[:, 0] + (1 - 2 * margin[:, 0]) * u[:, 2]
    bottom = torch.maximum(margin[:, 1], a - TILT * (high - low))
    top = torch.minimum(1 - margin[:, 1], a + TILT * (high - low))
    across = torch.stack([a, bottom + (top - bottom) * u[:, 3]], 1)
    horizontal = (relation < 2)[:, None]
    return torch.stack([torch.where(horizontal, along, across), torch.where(horizontal, across, along)], -1)


@checked
def labels(scenes: Scenes) -> Tensor:
    """Class of each scene (N,) long: the shape of its first object, an index into ``SHAPES``."""
    return scenes.shape[:, 0]
