"""The oracle: reads a scene's attributes back from a picture, by analysis and synthesis, without a network.

1. Background: the empty frame that explains the most pixels. 2. Colours: the one or two paints which, mixed with it,
explain the rest. 3. Each object's mask, and from its area and centroid the centre and radius it would have as each
of the shapes. 4. Shape: the rendered hypothesis that overlaps the mask best.

Every decision is a sum over pixels of a bounded penalty, so noise, blur and slightly wrong colours in a generated
picture lower the confidence before they change the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from minidiff.data.render import LIGHT, PAINT, SHADE, SHADOW, backdrop, coverage, grid, render
from minidiff.data.scenes import BACKGROUNDS, COLORS, RADII, REACH, SHAPES, Scenes, sample_scenes

from ..arguments import Count, NonNegative, checked, floats

CLIP = 0.15  # a pixel further than this (RGB in [0, 1]) from every explanation is equally unexplained
LEAST_AREA = 0.004  # share of the frame that a further colour must explain to count as an object
LEAST_SHARE = 0.25  # a pixel with less paint than this may be background and noise
LEAST_RADIUS = 0.6 * RADII[2][0]  # anything smaller is a speck
LEAST_CONFIDENCE = 0.5  # below it there is no object
PAIRS = torch.tensor(list(combinations(range(len(COLORS)), 2)))
TINTS = torch.stack([PAINT + 0.6 * LIGHT * (1 - PAINT), PAINT, PAINT * (1 - 0.6 * SHADE)])  # (3, 8, 3)


@checked
@dataclass(frozen=True)
class Reading:
    """What the oracle sees in N pictures.

    Attributes:
        scenes: attributes read, K = 2; shape -1 where there is no (such) object. The object that lies to the left of,
            or above, the other comes first, so ``scenes.relation`` is one of "left of", "above", or -1.
        confidence: (N, 2) float in [0, 1], overlap of each object with its rendering times the share of its pixels
            that its colour explains; 0 where there is none.
    """

    scenes: Scenes
    confidence: Tensor

    @property
    def count(self) -> Tensor:
        """(N,) long, objects seen."""
        return (self.scenes.shape >= 0).sum(1)


def _unit_moments() -> tuple[Tensor, Tensor]:
    """Area (8,) and centroid (8, 2) of the unit shapes."""
    k = len(SHAPES)
    cover = coverage(torch.arange(k), torch.full((k, 2), 0.5), torch.full((k,), 0.4), 256)
    area, centroid = _moments(cover)
    return area / 0.4**2, (centroid - 0.5) / 0.4


def _moments(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Area (M,) in frames and centroid (M, 2) in frame units of masks (M, S, S)."""
    x, y = grid(mask.shape[-1])
    total = mask.sum((1, 2)).clamp(min=1e-6)
    centroid = torch.stack([(mask * x).sum((1, 2)), (mask * y).sum((1, 2))], 1) / total[:, None]
    return total / mask[0].numel(), centroid


AREA, CENTROID = _unit_moments()


@checked
def read(images: floats("B C H W"), objects: Count | None = None, chunk: Count = 64) -> Reading:
    """Read pictures (N, 3, S, S) in [-1, 1]; values outside are clamped. ``objects`` is how many to look for, if known.

    Raises:
        ValueError: wrong shape, S < 8, a value that is not finite, ``objects`` not None, 1 or 2.
    """
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        given = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images: {given} given; a float tensor (N, 3, S, S) is accepted")
    if images.shape[2] != images.shape[3] or images.shape[2] < 8 or not len(images):
        raise ValueError(f"images of shape {tuple(images.shape)} given; N >= 1 square ones of S >= 8 are accepted")
    if not images.isfinite().all():
        raise ValueError("images hold values that are not finite; values in [-1, 1] are accepted")
    if objects not in (None, *RADII):
        raise ValueError(f"objects = {objects!r}; None, 1 or 2 is accepted")
    parts = [_read(part, objects) for part in ((images.float().clamp(-1, 1) + 1) / 2).split(chunk)]
    scenes = Scenes(*(torch.cat(p) for p in zip(*(vars(s).values() for s, _ in parts), strict=True)))
    return Reading(scenes, torch.cat([c for _, c in parts]))


def _read(image: Tensor, objects: int | None) -> tuple[Scenes, Tensor]:
    background, empty = _background(image)
    color = _colors(image, empty, objects)
    masks = _masks(image, empty, color)
    shape, center, radius, match = _shapes(masks)
    confidence = match * _explained(image, empty, color, masks)
    present = (color >= 0) & (confidence >= LEAST_CONFIDENCE) & (radius >= LEAST_RADIUS)
    shape = shape.masked_fill(~present, -1)
    count = present.sum(1).clamp(min=1)
    between = torch.tensor([(a * b) ** 0.5 for a, b in RADII.values()])[count - 1]
    size = (radius > between[:, None]).long()
    scenes = Scenes(shape, color.clamp(min=0), size, center, radius, background)
    return _ordered(scenes, confidence * present)


def _background(image: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) the background whose empty frame is nearest, pixels far off counting alike, and that frame.

    The frame is (N, 3, S, S) and moved by the mean difference to the pixels near it: a picture that is a little too
    light or too warm all over has no object everywhere.
    """
    frames = backdrop(torch.arange(len(BACKGROUNDS)), image.shape[-1])
    off = (image[:, None] - frames).pow(2).sum(2).clamp(max=CLIP**2)
    background = off.sum((2, 3)).argmin(1)
    empty = frames[background]
    near = ((image - empty).pow(2).sum(1, keepdim=True) < CLIP**2).float()
    shift = ((image - empty) * near).sum((2, 3)) / near.sum((2, 3)).clamp(min=1)
    return background, empty + shift[..., None, None]


def _mix(image: Tensor, empty: Tensor, paint: Tensor) -> tuple[Tensor, Tensor]:
    """Best share of paint in each pixel, in [0, 1], and what it leaves unexplained (squared distance).

    All of shape (..., 3, S, S), broadcast against each other; the results lack the colour dimension.
    """
    toward, offset = paint - empty, image - empty
    share = ((offset * toward).sum(-3) / toward.pow(2).sum(-3).clamp(min=1e-4)).clamp(0, 1)
    return share, (offset - share.unsqueeze(-3) * toward).pow(2).sum(-3)


def _colors(image: Tensor, empty: Tensor, objects: int | None) -> Tensor:
    """(N, 2) long, the colours present; -1 where there is no (second) one."""
    while image.shape[-1] > 32 and image.shape[-1] % 2 == 0:
        image, empty = avg_pool2d(image, 2), avg_pool2d(empty, 2)
    shadow = (1 - (image * empty).sum(1) / empty.pow(2).sum(1)).clamp(0, SHADOW)
    rest = (image - empty * (1 - shadow[:, None])).pow(2).sum(1).clamp(max=CLIP**2)
    left = rest[:, None]  # (N, 8, S, S) unexplained by background and one colour
    for tint in TINTS:
        share, mixed = _mix(image[:, None], empty[:, None], tint[:, :, None, None])
        left = torch.where((share > LEAST_SHARE) & (mixed < left), mixed, left)
    unit = CLIP**2 * rest[0].numel()
    none, one = rest.sum((1, 2)) / unit, left.sum((2, 3)) / unit
    two = torch.stack([torch.minimum(left[:, a], left[:, b]).sum((1, 2)) for a, b in PAIRS.tolist()], 1) / unit
    first = one.argmin(1)
    pair = PAIRS[two.argmin(1)]
    is_two = one.amin(1) - two.amin(1) > LEAST_AREA if objects is None else torch.full_like(first, objects == 2).bool()
    is_any = none - one.amin(1) > LEAST_AREA
    single = torch.stack([first, torch.full_like(first, -1)], 1)
    return torch.where(is_two[:, None], pair, single).masked_fill(~is_any[:, None], -1)


def _masks(image: Tensor, empty: Tensor, color: Tensor) -> Tensor:
    """(N, 2, S, S) in [0, 1], the pixels of each object; zeros where there is none.

    A pixel near the background is a mixture with either paint; the line that separates the two objects' discs
    (their power line) decides whose it is.
    """
    paint = PAINT[color.clamp(min=0)][..., None, None]
    share, left = _mix(image[:, None], empty[:, None], paint)
    share = _contrast(share)
    other = left.flip(1).masked_fill((color.flip(1) < 0)[..., None, None], 9.0)
    certain = share * (left < other) * (share > 0.5)
    certain = certain * torch.sigmoid((other - left) / (0.3 * CLIP) ** 2)
    area, center = (m.unflatten(0, color.shape) for m in _moments(certain.flatten(0, 1)))
    x, y = grid(image.shape[-1])
    power = (x - center[..., 0, None, None]) ** 2 + (y - center[..., 1, None, None]) ** 2
    power = power - (REACH**2 * area / AREA.mean())[..., None, None]
    other = power.flip(1).masked_fill((color.flip(1) < 0)[..., None, None], 9.0)
    return share * (power < other) * (color >= 0)[..., None, None]


def _explained(image: Tensor, empty: Tensor, color: Tensor, masks: Tensor) -> Tensor:
    """(N, 2) in [0, 1], how well each colour, lighter or darker by shading, explains the pixels of its mask."""
    tints = TINTS[:, color.clamp(min=0)][..., None, None]
    left = torch.stack([_mix(image[:, None], empty[:, None], tint)[1] for tint in tints]).amin(0)
    explained = 1 - left.clamp(max=CLIP**2) / CLIP**2
    return (explained * masks).sum((2, 3)) / masks.sum((2, 3)).clamp(min=1e-6)


def _contrast(share: Tensor) -> Tensor:
    """Pushes shares towards 0 and 1, so that shadows and shading do not count; keeps areas, as it is symmetric."""
    return ((share - LEAST_SHARE) / (1 - 2 * LEAST_SHARE)).clamp(0, 1)


def _shapes(masks: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Shape (N, 2), centre (N, 2, 2), radius (N, 2) and overlap in [0, 1] (N, 2) of the best rendered hypothesis."""
    n, size, k = len(masks), masks.shape[-1], len(SHAPES)
    mask = masks.flatten(0, 1)
    area, centroid = _moments(mask)
    radius = (area[:, None] / AREA).sqrt()  # (2N, 8): one hypothesis per shape
    center = centroid[:, None] - radius[..., None] * CENTROID
    shape = torch.arange(k).repeat(len(mask))
    drawn = _contrast(coverage(shape, center.reshape(-1, 2), radius.flatten(), size)).unflatten(0, (-1, k))
    both = torch.minimum(drawn, mask[:, None]).sum((2, 3))
    either = torch.maximum(drawn, mask[:, None]).sum((2, 3)).clamp(min=1e-6)
    match, best = (both / either).max(1)
    row = torch.arange(len(mask))
    return best.view(n, 2), center[row, best].view(n, 2, 2), radius[row, best].view(n, 2), match.view(n, 2)


def _ordered(scenes: Scenes, confidence: Tensor) -> tuple[Scenes, Tensor]:
    """Objects before gaps; of two, the one to the left of or above the other first."""
    swap = torch.where((scenes.shape >= 0).all(1), scenes.relation % 2 == 1, scenes.shape[:, 0] < 0)
    order = torch.where(swap[:, None], torch.tensor([1, 0]), torch.tensor([0, 1]))

    def take(t: Tensor) -> Tensor:
        return t.gather(1, order.view(*order.shape, *[1] * (t.ndim - 2)).expand_as(t))

    fields = (scenes.shape, scenes.color, scenes.size, scenes.center, scenes.radius)
    return Scenes(*map(take, fields), scenes.background), take(confidence)


@checked
def compare(seen: Scenes, true: Scenes, within: NonNegative = 0.02) -> dict[str, Tensor]:
    """Which attributes of N scenes were read right, as (N,) bool each; an attribute of two objects needs both.

    The objects are matched in the order that makes more of them right. Keys: count, shape, color, size, position
    (centres within ``within`` of the frame), relation (two objects only), background, and all of these together.
    """
    if len(seen) != len(true):
        raise ValueError(f"{len(seen)} readings compared with {len(true)} scenes; as many are accepted")
    k = true.shape.shape[1]
    trials = []
    for order in ([0, 1], [1, 0])[:k]:
        there = (seen.shape[:, order] >= 0)[:, :k]
        trial = {name: (getattr(seen, name)[:, order][:, :k] == getattr(true, name)) & there for name in _ATTRIBUTES}
        trial["position"] = ((seen.center[:, order][:, :k] - true.center).norm(dim=-1) <= within) & there
        if k == 2:
            relation = torch.where(seen.relation >= 0, seen.relation ^ (order[0] == 1), -1)
            trial["relation"] = (relation == true.relation)[:, None]
        trials.append(trial)
    better = torch.stack([sum(v.sum(1) for v in t.values()) for t in trials]).argmax(0)
    result = {"count": (seen.shape >= 0).sum(1) == (true.shape >= 0).sum(1)}
    for name in trials[0]:
        right = torch.stack([t[name].all(1) for t in trials])
        result[name] = right.gather(0, better[None])[0]
    result["background"] = seen.background == true.background
    return result | {"all": torch.stack(list(result.values())).all(0)}


_ATTRIBUTES = ("shape", "color", "size")


@checked
def accuracy(n: Count, size: Count, generator: torch.Generator, objects: Count = 1) -> dict[str, tuple[int, int]]:
    """The oracle's own accuracy: (right, asked) for each key of ``compare``, on n fresh renders of that size."""
    true = sample_scenes(n, generator, objects)
    right = compare(read(render(true, size)).scenes, true)
    return {name: (int(hits.sum()), n) for name, hits in right.items()}
