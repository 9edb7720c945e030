"""Sheets of prompts: held-out captions cannot be said of training, pictures show what captions say."""

from __future__ import annotations

import pytest
import torch
from helpers import seeded

from minidiff.data.captions import (
    attribute_index,
    attributes_given_caption,
    caption_probability,
    explicit,
    judge,
    parse,
    relates,
)
from minidiff.data.oracle import read
from minidiff.data.prompts import scene_sheet, scenes_of, sheets
from minidiff.data.recipe import DataRecipe
from minidiff.data.scenes import REACH, arranged, held_out, joined, relation_of, sample_scenes


@pytest.fixture(scope="module")
def found():
    return {name: scene_sheet(name, 60, 16) for name in ("heldout", "seen")}


@pytest.mark.parametrize(("name", "never"), [("heldout", "seen"), ("seen", "heldout")])
def test_no_caption_of_a_sheet_fits_a_scene_of_the_other(found, name, never):
    for caption in found[name].captions:
        assert caption_probability(caption, never) == 0 < caption_probability(caption, name), caption


def test_half_of_the_captions_have_one_object(found):
    for sheet in found.values():
        assert [len(parse(caption).phrases) for caption in sheet.captions] == [1, 2] * 30


@pytest.mark.parametrize("name", ["heldout", "seen"])
def test_every_picture_shows_its_caption(found, name):
    sheet = found[name]
    assert len(sheet.pictures) == 4 and sheet.grammar and sheet.name == name
    for images in sheet.pictures:
        assert images.shape == (60, 3, 16, 16)
        assert judge(sheet.captions, read(images).scenes)["all"].float().mean() > 0.9
    assert not torch.equal(sheet.pictures[1], sheet.pictures[2])


def test_a_sheet_is_that_of_its_seed(found):
    again, other = scene_sheet("seen", 60, 16), scene_sheet("seen", 60, 16, seed=1)
    assert again.captions == found["seen"].captions != other.captions
    assert all(map(torch.equal, again.pictures, found["seen"].pictures))
    with pytest.raises(ValueError, match="at least 2 captions"):
        scene_sheet("seen", 1, 16)


@pytest.mark.parametrize(
    ("caption", "told"),
    [("a red ring", True), ("a crimson hoop", True), ("a warm ring", False), ("a red shape", False), ("a ring", False)],
)
def test_explicit_captions(caption, told):
    assert explicit(caption) is told and explicit(f"{caption} above a blue star") is told


def test_captions_that_relate():
    said = [relates(f"a red ring {words} a blue star") for words in ("and", "beside", "over", "to the left of")]
    assert said == [False, True, True, True] and not relates("a red ring")


@pytest.mark.parametrize("caption", ["a warm ring", "a small object beside a cool shape"])
def test_scenes_are_drawn_from_p_of_the_scene_given_the_caption(caption):
    """Frequencies of the attributes against their exact table, by a chi-square statistic with its own spread."""
    n, table = 4000, attributes_given_caption(caption)
    index = attribute_index(joined(scenes_of([caption] * 10, n // 10, seeded())))
    for axis, values in enumerate(table.shape):
        expected = n * table.sum([k for k in range(table.ndim) if k != axis])
        counts = torch.bincount(index[axis], minlength=values).double()
        assert bool((counts[expected == 0] == 0).all())
        possible = expected > 0
        freedom = int(possible.sum()) - 1
        chi = float(((counts - expected)[possible] ** 2 / expected[possible]).sum())
        assert chi < freedom + 5 * (2 * max(freedom, 1)) ** 0.5


@pytest.mark.parametrize("objects", [1, 2])
def test_scenes_have_the_attributes_asked_for(objects):
    wanted = sample_scenes(300, seeded(1), objects)
    made = arranged(wanted.shape, wanted.color, wanted.size, wanted.relation, seeded(2))
    for name in ("shape", "color", "size", "relation"):
        assert torch.equal(getattr(made, name), getattr(wanted, name)), name
    assert not torch.equal(made.center, wanted.center)
    reach = REACH * made.radius[..., None]
    assert bool((made.center - reach > -1e-6).all() and (made.center + reach < 1 + 1e-6).all())
    if objects == 2:
        assert torch.equal(relation_of(made.center), wanted.relation)


def test_combinations_of_the_held_out_sheet():
    drawn = scenes_of(["a teal square", "a red circle"], 5, seeded())
    assert [held_out(s.shape, s.color)[:, 0].tolist() for s in drawn] == [[True, False]] * 5


@pytest.mark.parametrize("name", ["scenes", "scenes-pairs"])
def test_sheets_of_both_parts(name):
    held, seen = sheets(DataRecipe(name, 16), 16, 6)
    assert (held.name, seen.name) == ("heldout", "seen") and held.grammar and seen.grammar
    assert len(held.captions) == len(seen.captions) == 6
    with pytest.raises(ValueError, match="'digits' have no captions"):
        sheets(DataRecipe("digits", 8), 8)
