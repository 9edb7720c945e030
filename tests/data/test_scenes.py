from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from helpers import seeded

from minidiff.data.scenes import (
    BACKGROUNDS,
    COLORS,
    REACH,
    RELATIONS,
    SHAPES,
    SIZES,
    TILT,
    Object,
    Scene,
    Scenes,
    held_out,
    labels,
    relation_of,
    sample_scenes,
)


def same(a: Scenes, b: Scenes) -> bool:
    return all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(Scenes))


@pytest.mark.parametrize("objects", [1, 2])
@pytest.mark.parametrize("split", ["all", "seen", "heldout"])
def test_scene_i_does_not_depend_on_how_many_are_drawn(objects, split):
    many = sample_scenes(70, seeded(), objects, split)
    assert same(many.select(slice(0, 9)), sample_scenes(9, seeded(), objects, split))
    assert not same(many.select(slice(0, 9)), sample_scenes(9, seeded(1), objects, split))


def test_two_calls_in_a_row_give_what_one_call_gives():
    generator = seeded()
    first, second = sample_scenes(5, generator, 2), sample_scenes(6, generator, 2)
    whole = sample_scenes(11, seeded(), 2)
    assert same(whole.select(slice(0, 5)), first) and same(whole.select(slice(5, 11)), second)


def test_objects_touch_neither_each_other_nor_the_frame():
    for objects in (1, 2):
        scenes = sample_scenes(4000, seeded(), objects)
        reach = (REACH * scenes.radius)[..., None]
        assert (scenes.center - reach).min() > 0 and (scenes.center + reach).max() < 1
    distance = (scenes.center[:, 0] - scenes.center[:, 1]).norm(dim=1)
    assert (distance - REACH * scenes.radius.sum(1)).min() > 0


def test_attributes_are_uniform_and_objects_differ():
    n = 20000
    scenes = sample_scenes(n, seeded(), 2)
    pairs = scenes.shape[:, 0] * 8 + scenes.shape[:, 1]
    for values, cells in (
        (pairs, 56),
        (scenes.color[:, 0] * 8 + scenes.color[:, 1], 56),
        (scenes.size[:, 0] * 2 + scenes.size[:, 1], 4),
        (scenes.relation, len(RELATIONS)),
        (scenes.background, len(BACKGROUNDS)),
    ):
        counts = values.bincount()
        counts = counts[counts > 0]
        assert len(counts) == cells
        spread = (n / cells * (1 - 1 / cells)) ** 0.5
        assert (counts - n / cells).abs().max() < 4.5 * spread
    assert (scenes.shape[:, 0] != scenes.shape[:, 1]).all() and (scenes.color[:, 0] != scenes.color[:, 1]).all()


def test_relations_are_clear():
    scenes = sample_scenes(4000, seeded(), 2)
    across, along = (scenes.center[:, 0] - scenes.center[:, 1]).abs().sort(1).values.unbind(1)
    assert (across / along).max() <= TILT + 1e-5
    places = {"left of": (0.2, 0.5), "right of": (0.8, 0.5), "above": (0.5, 0.2), "below": (0.5, 0.8)}
    for name, place in places.items():
        assert RELATIONS[relation_of(torch.tensor([place, (0.5, 0.5)]))] == name


def test_sizes_do_not_overlap():
    for objects in (1, 2):
        scenes = sample_scenes(4000, seeded(), objects)
        assert scenes.radius[scenes.size == 0].max() * 1.1 < scenes.radius[scenes.size == 1].min()


def test_held_out_combinations_cover_every_shape_and_colour_once():
    table = held_out(torch.arange(8)[:, None], torch.arange(8))
    assert table.sum(0).tolist() == [1] * 8 and table.sum(1).tolist() == [1] * 8
    for objects in (1, 2):
        seen, heldout = (sample_scenes(500, seeded(), objects, split) for split in ("seen", "heldout"))
        assert not held_out(seen.shape, seen.color).any()
        assert held_out(heldout.shape, heldout.color).any(1).all()
        assert len(seen) == len(heldout) == 500


def test_there_and_back_through_readable_scenes():
    scenes = sample_scenes(20, seeded(), 2)
    assert same(Scenes.of([scenes[i] for i in range(20)]), scenes)
    assert [scenes[i].relation for i in range(20)] == [RELATIONS[r] for r in scenes.relation]
    mixed = Scenes.of([Scene(()), Scene((Object("ring", "red", "small", 0.5, 0.5, 0.2),))])
    assert mixed.shape.tolist() == [[-1], [SHAPES.index("ring")]] and mixed.relation.tolist() == [-1, -1]
    assert mixed[0] == Scene(())


def test_labels_are_the_shape_of_the_first_object():
    scenes = sample_scenes(20, seeded(), 2)
    assert [SHAPES[i] for i in labels(scenes)] == [scenes[i].objects[0].shape for i in range(20)]


GOOD = {"shape": "ring", "color": "red", "size": "small", "x": 0.5, "y": 0.5, "radius": 0.2}


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: sample_scenes(0, seeded()), "n = 0"),
        (lambda: sample_scenes(2.0, seeded()), "n must be a whole number >= 0, got 2.0"),
        (lambda: sample_scenes(2, seeded(), 3), "objects = 3"),
        (lambda: sample_scenes(2, seeded(), 1, "test"), "all, seen, heldout"),
        (lambda: sample_scenes(2, 7), "generator must be a Generator, got 7"),
        (lambda: Scenes.of([]), "no scenes"),
        (lambda: Scenes.of([Scene((Object(**GOOD),) * 3)]), "3 objects"),
        (lambda: Scenes.of([Scene((Object(**GOOD | {"shape": "blob"}),))]), "blob.*circle"),
        (lambda: Scenes.of([Scene((Object(**GOOD | {"color": "mauve"}),))]), "mauve.*" + COLORS[0]),
        (lambda: Scenes.of([Scene((Object(**GOOD | {"size": "vast"}),))]), "vast.*" + SIZES[0]),
        (lambda: Scenes.of([Scene((Object(**GOOD | {"x": float("nan")}),))]), "x must be a finite number, got nan"),
        (lambda: Scenes.of([Scene((Object(**GOOD | {"radius": 0.0}),))]), "outside the frame"),
        (lambda: Scenes.of([Scene((Object(**GOOD),), "beach")]), "beach.*cream"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
