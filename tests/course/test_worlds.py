"""The worlds of the lessons, against sums over a grid."""

from __future__ import annotations

import pytest
import torch

from minidiff.course.worlds import pinwheel, tilted_samples
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
