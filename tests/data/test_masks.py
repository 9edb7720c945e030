"""Masks: 1 is known, 0 is painted; drawn per sample, of every kind, as often as said."""

import math

import torch

from minidiff.data.masks import KINDS, random_masks
from minidiff.random import sample_generators


def test_masks_are_zeros_and_ones_and_depend_on_their_own_generator_alone():
    masks = random_masks(20, 16, sample_generators(3, range(20)))
    assert masks.shape == (20, 1, 16, 16) and masks.dtype == torch.float32
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(masks[7:9], random_masks(2, 16, sample_generators(3, [7, 8])))


def test_every_mask_erases_something_and_nothing_known_is_as_frequent_as_said():
    n = 4000
    masks = random_masks(n, 16, torch.Generator().manual_seed(0)).flatten(1)
    assert (masks.mean(1) < 1).all(), "a mask without a hole teaches nothing"
    share, p = (masks.sum(1) == 0).float().mean().item(), KINDS["everything"]
    assert abs(share - p) < 4.5 * math.sqrt(p * (1 - p) / n)
    assert sum(KINDS.values()) == 1


def test_all_kinds_occur():
    masks = random_masks(2000, 16, torch.Generator().manual_seed(1))[:, 0].bool()
    holes = ~masks
    box = lambda part: part.any(2).sum(1) * part.any(1).sum(1) == part.sum((1, 2))  # fills the rectangle around it
    side = box(masks) & box(holes) & masks.any((1, 2))
    inside = box(masks) & ~box(holes) & masks.any((1, 2))  # a known rectangle
    hole = box(holes) & ~box(masks)
    strokes = ~box(masks) & ~box(holes)
    for name, kind, share in (("side", side, 0.15), ("surroundings", inside, 0.05), ("rectangle", hole, 0.2)):
        assert kind.float().mean() > share / 2, name
    assert strokes.float().mean() > 0.15


def test_a_mask_looks_the_same_at_every_size():
    small, large = (random_masks(200, size, sample_generators(0, range(200))) for size in (16, 64))
    reduced = torch.nn.functional.avg_pool2d(large, 4)
    assert (small - reduced).abs().mean() < 0.04
