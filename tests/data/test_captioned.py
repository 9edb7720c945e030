"""Captioned scenes: as many objects as said, and captions that the oracle finds true."""

from __future__ import annotations

import pytest
import torch

from minidiff.data.captioned import ONE_OBJECT, captioned_pairs, captioned_scenes
from minidiff.data.captions import explicit, judge, parse
from minidiff.data.oracle import read
from minidiff.data.scenes import held_out


def test_the_oracle_finds_the_captions_true():
    found = captioned_scenes(400, 32, torch.Generator().manual_seed(0))
    scenes = read(found.images).scenes
    assert judge(found.captions, scenes)["all"].float().mean() > 0.97
    assert judge(found.captions[1:] + found.captions[:1], scenes)["all"].float().mean() < 0.1
    assert bool(((scenes.shape >= 0).sum(1) == found.objects).float().mean() > 0.98)


def test_one_in_four_holds_one_object():
    objects = captioned_scenes(4000, 4, torch.Generator().manual_seed(1)).objects
    assert set(objects.tolist()) == {1, 2}
    assert abs((objects == 1).float().mean() - ONE_OBJECT) < 4 * (ONE_OBJECT * (1 - ONE_OBJECT) / 4000) ** 0.5


@pytest.mark.parametrize("split, expected", [("seen", False), ("heldout", True)])
def test_splits(split, expected):
    found = captioned_scenes(200, 64, torch.Generator().manual_seed(2), split)
    scenes = read(found.images).scenes
    unseen = (held_out(scenes.shape, scenes.color) & (scenes.shape >= 0)).any(1)
    assert (unseen == expected).float().mean() > 0.98


def test_the_generator_decides():
    first, again = (captioned_scenes(20, 8, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.images, again.images) and first.captions == again.captions


@pytest.mark.parametrize("n", [0, 1.5, True])
def test_bad_counts(n):
    with pytest.raises(ValueError, match="whole number"):
        captioned_scenes(n, 8, torch.Generator())


@pytest.mark.parametrize("reading", [0.0, 0.5, 0.75, 1.0])
def test_pairs_are_named_in_reading_order_as_often_as_said(reading):
    found = captioned_pairs(1000, 16, torch.Generator().manual_seed(4), "seen", reading)
    assert all(map(explicit, found.captions)) and set(found.objects.tolist()) == {2}
    scenes = read(found.images).scenes
    assert judge(found.captions, scenes)["all"].float().mean() > 0.97
    words = [parse(caption).relation for caption in found.captions]
    first = [said in ("left of", "to the left of", "above", "over") for said in words]
    second = [said in ("right of", "to the right of", "below", "under") for said in words]
    told = sum(first) + sum(second)
    assert abs(sum(first) / told - reading) < 4 * (reading * (1 - reading) / told) ** 0.5 + 1e-9
