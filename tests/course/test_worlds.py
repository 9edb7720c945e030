"""The worlds of the lessons, against sums over a grid."""

from __future__ import annotations

import pytest
import torch

from minidiff.course.worlds import enlarged, pinwheel, tilted_samples
from minidiff.data.captioned import captioned_scenes
from minidiff.schedule import DATA

AXIS = torch.linspace(-3, 3, 241, dtype=torch.float64)
GRID = torch.cartesian_prod(AXIS, AXIS)


@pytest.mark.parametrize("share", [(1 / 3, 1 / 3, 1 / 3), (0.5, 0.3, 0.2)])
def test_classes_are_as_frequent_as_they_should_be(share):
    world = pinwheel(share)
    density = world.log_prob(GRID, DATA).exp()
    found = [(density * world.classifier(c)(GRID, DATA).exp()).sum() / density.sum() for c in range(len(share))]
    assert torch.stack(found).tolist() == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_tilted_samples_have_the_moments_of_the_tilted_density(scale):
    world, n = pinwheel(), 20_000
    weight = (world.log_prob(GRID, DATA) + scale * world.classifier(1)(GRID, DATA)).softmax(0)
    mean = weight @ GRID
    spread = weight @ (GRID - mean).square()
    drawn = tilted_samples(world, 1, scale, n, seed=3)
    assert ((drawn.mean(0) - mean).abs() < 5 * (spread / n).sqrt()).all()
    assert torch.allclose(drawn.var(0), spread, rtol=0.1)


def test_less_than_the_class_cannot_be_had_by_rejection():
    with pytest.raises(ValueError, match="scale must be a finite number >= 1, got 0"):
        tilted_samples(pinwheel(), 0, 0.5, 10, seed=0)


def test_an_enlarged_scene_is_the_scene():
    scenes = captioned_scenes(4, 16, torch.Generator().manual_seed(0), "seen")
    large = enlarged(scenes.images, scenes.captions, steps=3)
    assert large.shape == (4, 3, 64, 64)
    again = torch.nn.functional.avg_pool2d(large, 4)
    others = (again - scenes.images.roll(1, 0)).square().mean()
    assert (again - scenes.images).square().mean() < others / 10


def test_every_picture_that_is_enlarged_has_its_caption():
    with pytest.raises(ValueError, match="1 captions for 2 pictures"):
        enlarged(torch.zeros(2, 3, 16, 16), ["a red ring"])
