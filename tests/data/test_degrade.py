"""Degradations of small images beside scipy and Pillow."""

from __future__ import annotations

import pytest
import torch
from helpers import noise, seeded
from scipy.ndimage import gaussian_filter

from minidiff.data.degrade import DEGRADATIONS, blur, blurred, bsr, jpeg
from minidiff.random import sample_generators


def test_a_blur_is_scipys():
    x = noise(2, 3, 9, 9)
    for sigma, size in ((0.6, 3), (1.1, 7)):
        radius = size // 2
        expected = gaussian_filter(x.numpy(), sigma, axes=(2, 3), radius=radius, mode="mirror")
        torch.testing.assert_close(blurred(x, sigma, size), torch.from_numpy(expected))
    with pytest.raises(ValueError, match="an odd size"):
        blurred(x, 0.6, 4)


def test_a_constant_stays_and_a_blur_follows_the_reduction():
    x = noise(2, 3, 16, 16)
    small = torch.nn.functional.avg_pool2d(x, 4)
    torch.testing.assert_close(blur(x, 4), blurred(small, 0.6))
    torch.testing.assert_close(blur(torch.full_like(x, 0.3), 4), torch.full_like(small, 0.3))


def test_jpeg_loses_more_at_low_quality():
    x = torch.rand(3, 32, 32, generator=seeded(0)) * 2 - 1
    loss = [float((jpeg(x, quality) - x).square().mean()) for quality in (95, 75, 30)]
    assert loss[0] < loss[1] < loss[2] and jpeg(x[:1], 90).shape == (1, 32, 32)


def test_degradations_differ_from_image_to_image_and_depend_on_the_generator_alone():
    x = torch.rand(1, 3, 64, 64, generator=seeded(0)).expand(6, -1, -1, -1) * 2 - 1
    assert set(DEGRADATIONS) == {"blur", "bsr"}
    many = bsr(x, 4, sample_generators(0, range(6)))
    assert many.shape == (6, 3, 16, 16) and many.abs().max() <= 1
    assert len({tuple(one.flatten().tolist()) for one in many}) == 6
    torch.testing.assert_close(many[3:4], bsr(x[:1], 4, sample_generators(0, [3])))
    clean = torch.nn.functional.avg_pool2d(x, 4)
    assert 0.01 < (many - clean).square().mean().sqrt() < 0.3
