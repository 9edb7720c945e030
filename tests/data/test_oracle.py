from __future__ import annotations

import time

import pytest
import torch
from helpers import seeded
from torch.nn.functional import avg_pool2d, interpolate

from minidiff.data.captions import judge, sample_captions
from minidiff.data.oracle import accuracy, compare, read
from minidiff.data.scenes import BACKGROUNDS, Object, Scene, Scenes, sample_scenes
from minidiff.data.shapes import render


@pytest.mark.parametrize(
    "objects, size, least",
    [(1, 64, 0.995), (2, 64, 0.995), (1, 32, 0.995), (2, 32, 0.995), (1, 16, 0.99), (2, 16, 0.94)],
)
def test_fresh_renders_are_read(objects, size, least):
    n = 400
    result = accuracy(n, size, seeded(50), objects)
    assert all(total == n for _, total in result.values())
    assert result["all"][0] >= least * n, result
    assert ("relation" in result) == (objects == 2)


@pytest.mark.parametrize("objects", [1, 2])
def test_imperfect_pictures_are_read(objects):
    scenes = sample_scenes(150, seeded(1), objects)
    clean = render(scenes, 64)
    damaged = {
        "noise": clean + 0.1 * torch.randn(clean.shape, generator=seeded(2)),
        "blur": interpolate(avg_pool2d(clean, 2), scale_factor=2, mode="bilinear"),
        "faded": 0.85 * clean,
        "tinted": clean + torch.tensor([0.06, 0.0, -0.06])[:, None, None],
    }
    sharp = read(clean).confidence[:, :objects].mean()
    for name, images in damaged.items():
        seen = read(images)
        right = compare(seen.scenes, scenes)
        for key in ("shape", "color", "count"):
            assert right[key].float().mean() > 0.98, (name, key)
        assert seen.confidence[:, :objects].mean() < sharp, name


@pytest.mark.parametrize("size", [16, 32, 64])
def test_nothing_is_seen_where_nothing_is(size):
    empty = read(render(Scenes.of([Scene((), b) for b in BACKGROUNDS]), size))
    assert empty.count.sum() == 0 and empty.confidence.sum() == 0
    assert empty.scenes.background.tolist() == list(range(len(BACKGROUNDS)))
    assert read(torch.randn(20, 3, size, size, generator=seeded())).count.sum() == 0
    assert read(torch.zeros(1, 3, size, size)).count.sum() == 0


def test_two_objects_come_in_reading_order_and_captions_are_judged():
    scenes = sample_scenes(100, seeded(3), 2)
    seen = read(render(scenes, 64)).scenes
    assert set(seen.relation.tolist()) == {0, 2}
    verdict = judge(sample_captions(scenes, seeded(4)), seen)
    assert all(v.all() for v in verdict.values())


def test_a_reading_does_not_depend_on_the_batch():
    images = render(sample_scenes(10, seeded(), 2), 32)
    whole, parts = read(images), [read(images[i : i + 1]) for i in range(10)]
    torch.testing.assert_close(whole.scenes.radius, torch.cat([p.scenes.radius for p in parts]))
    assert torch.equal(whole.scenes.shape, torch.cat([p.scenes.shape for p in parts]))


def test_the_number_of_objects_can_be_given():
    images = render(sample_scenes(20, seeded(), 2), 64)
    assert read(images, objects=1).count.max() == 1 and (read(images, objects=2).count == 2).all()


def test_compare_sees_each_kind_of_error():
    a, b = Object("ring", "red", "small", 0.3, 0.5, 0.13), Object("star", "blue", "large", 0.7, 0.5, 0.2)
    true = Scenes.of([Scene((a, b))])
    right = compare(Scenes.of([Scene((b, a))]), true)
    assert all(v.all() for v in right.values())
    moved = Object("ring", "red", "small", 0.7, 0.9, 0.13)
    wrong = {
        "shape": Object("heart", "red", "small", 0.3, 0.5, 0.13),
        "color": Object("ring", "pink", "small", 0.3, 0.5, 0.13),
        "size": Object("ring", "red", "large", 0.3, 0.5, 0.13),
        "position": Object("ring", "red", "small", 0.3, 0.6, 0.13),
    }
    for key, other in wrong.items():
        verdict = compare(Scenes.of([Scene((other, b))]), true)
        assert {k for k, v in verdict.items() if not v.item()} == {key, "all"}
    assert not compare(Scenes.of([Scene((moved, b))]), true)["relation"].item()
    assert not compare(Scenes.of([Scene((a, b), "night")]), true)["background"].item()
    gap = Scenes.of([Scene((a, b))])
    gap.shape[0, 1] = -1
    assert not compare(gap, true)["count"].item()


def test_hundreds_of_readings_a_second():
    images = render(sample_scenes(128, seeded(), 2), 64)
    start = time.perf_counter()
    read(images)
    assert 128 / (time.perf_counter() - start) > 60  # a loaded machine; several hundred on an idle core


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: read(torch.zeros(3, 64, 64)), "images must be a tensor"),
        (lambda: read(torch.zeros(1, 1, 64, 64)), "N, 3, S, S"),
        (lambda: read(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)), "of real numbers, got"),
        (lambda: read([[1.0]]), "list"),
        (lambda: read(torch.zeros(1, 3, 64, 32)), "square"),
        (lambda: read(torch.zeros(1, 3, 4, 4)), "S >= 8"),
        (lambda: read(torch.zeros(0, 3, 64, 64)), "N >= 1"),
        (lambda: read(torch.full((1, 3, 64, 64), float("nan"))), "not finite"),
        (lambda: read(torch.zeros(1, 3, 64, 64), objects=3), "objects = 3"),
        (lambda: compare(sample_scenes(1, seeded()), sample_scenes(2, seeded())), "1 readings"),
        (lambda: accuracy(0, 64, seeded()), "n must be a whole number >= 1, got 0"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
