"""The renderer against an independent one: outlines traced as polygons, filled by counting sub-pixels."""

from __future__ import annotations

import time
from math import cos, pi, sin

import pytest
import torch
from matplotlib.path import Path

from minidiff.data.render import PAINT, backdrop, coverage, distance, grid, render
from minidiff.data.scenes import BACKGROUNDS, COLORS, REACH, SHAPES, Object, Scene, Scenes, sample_scenes
from minidiff.data.shapes import shapes


def star(points: int, outer: float, inner: float) -> list[tuple[float, float]]:
    turn = [(outer if i % 2 == 0 else inner, pi * i / points) for i in range(2 * points)]
    return [(r * sin(a), -r * cos(a)) for r, a in turn]


def box(x: float, y: float) -> list[tuple[float, float]]:
    return [(-x, -y), (x, -y), (x, y), (-x, y)]


# name -> (polygons whose union it is before rounding, rounding, shift down)
POLYGONS = {
    "square": ([box(0.65, 0.65)], 0.12, 0),
    "triangle": ([star(3, 0.90, 0.45)], 0.12, 0.14),
    "star": ([star(5, 0.96, 0.46)], 0.09, 0.05),
    "cross": ([box(0.86, 0.23), box(0.23, 0.86)], 0.10, 0),
    "diamond": ([[(0.67, 0), (0, 0.96), (-0.67, 0), (0, -0.96)]], 0.10, 0),
}


def inside(name: str, points: torch.Tensor) -> torch.Tensor:
    """Which of (M, 2) points in units of the radius lie inside the shape, from its outline alone."""
    if name == "circle":
        return points.norm(dim=1) < 0.88
    if name == "ring":
        return (points.norm(dim=1) - 0.71).abs() < 0.22
    if name == "heart":  # a square on its corner and a disc on each upper side, all grown by 0.08
        corner, side = 0.54 * 2**0.5, 0.54
        points = points - torch.tensor([0, 0.13])
        lobes = [(points - torch.tensor([x, -corner / 2])).norm(dim=1) < side + 0.08 for x in (-corner / 2, corner / 2)]
        return near([(corner, 0), (0, corner), (-corner, 0), (0, -corner)], points, 0.08) | lobes[0] | lobes[1]
    polygons, rounding, shift = POLYGONS[name]
    points = points - torch.tensor([0.0, shift])
    return torch.stack([near(p, points, rounding) for p in polygons]).any(0)


def near(corners: list[tuple[float, float]], points: torch.Tensor, rounding: float) -> torch.Tensor:
    """Points inside a polygon, or within ``rounding`` of one of its edges."""
    hit = torch.from_numpy(Path(corners).contains_points(points.numpy()))
    corners = torch.tensor(corners, dtype=points.dtype)
    for a, b in zip(corners, corners.roll(-1, 0), strict=True):
        t = ((points - a) @ (b - a) / (b - a).square().sum()).clamp(0, 1)
        hit |= (points - a - t[:, None] * (b - a)).norm(dim=1) < rounding
    return hit


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("size", [16, 48])
def test_coverage_is_that_of_a_supersampled_outline(name, size):
    center, radius, fine = torch.tensor([[0.47, 0.53]]), torch.tensor([0.38]), 8
    y, x = torch.meshgrid(*[(torch.arange(size * fine) + 0.5) / (size * fine)] * 2, indexing="ij")
    points = (torch.stack([x, y], -1).reshape(-1, 2) - center) / radius
    counted = inside(name, points).float().view(size, fine, size, fine).mean((1, 3))
    drawn = coverage(torch.tensor([SHAPES.index(name)]), center, radius, size)[0]
    off = (drawn - counted).abs()
    assert off.max() < 0.3 and off.mean() < 0.24 / size
    assert abs(float(drawn.sum() / counted.sum()) - 1) < 0.02


def test_distances_have_slope_one_away_from_ridges():
    x, y = grid(400)
    shape = torch.arange(len(SHAPES))
    d = distance(shape, (x - 0.5).expand(8, 1, 400) / 0.4, (y - 0.5).expand(8, 400, 1) / 0.4)
    slope = torch.stack(torch.gradient(d, spacing=1 / 160, dim=(1, 2))).norm(dim=0)
    band = (d.abs() < 0.05)[:, 2:-2, 2:-2]
    assert ((slope[:, 2:-2, 2:-2] - 1).abs()[band] < 0.02).float().mean() > 0.95


def test_every_shape_stays_within_reach():
    x, y = grid(400)
    drawn = coverage(torch.arange(8), torch.full((8, 2), 0.5), torch.full((8,), 0.4), 400)
    far = torch.hypot(x - 0.5, y - 0.5) / 0.4
    assert (far * (drawn > 0.5)).max() <= REACH
    assert (far * (drawn > 0.5)).amax((1, 2)).min() > 0.8  # and fills it


def test_a_picture_has_its_colours():
    scene = Scene(
        (Object("square", "blue", "large", 0.25, 0.25, 0.2), Object("circle", "red", "large", 0.75, 0.75, 0.2))
    )
    image = (render(Scenes.of([scene]), 64)[0] + 1) / 2
    for at, name in ((16, "blue"), (48, "red")):
        assert (image[:, at, at] - PAINT[COLORS.index(name)]).abs().max() < 0.02
    torch.testing.assert_close(image[:, 1, -1], backdrop(torch.tensor([0]), 64)[0, :, 1, -1])


def test_resolutions_agree():
    scenes = sample_scenes(30, torch.Generator().manual_seed(0), 2)
    small = torch.nn.functional.avg_pool2d(render(scenes, 128), 4)
    assert (small - render(scenes, 32)).abs().mean() < 0.004


def test_pictures_do_not_depend_on_the_batch():
    scenes = sample_scenes(9, torch.Generator().manual_seed(0), 2)
    whole = render(scenes, 32)
    assert whole.shape == (9, 3, 32, 32) and whole.dtype == torch.float32 and whole.abs().max() <= 1
    assert torch.equal(whole, torch.cat([render(scenes.select(slice(i, i + 1)), 32) for i in range(9)]))
    assert torch.equal(whole, render(scenes, 32, chunk=2))


def test_colours_and_backgrounds_are_far_apart():
    distance = torch.cdist(PAINT, PAINT) + 9 * torch.eye(8)
    assert distance.min() > 0.25
    middle = backdrop(torch.arange(len(BACKGROUNDS)), 8)[:, :, 4, 4]
    assert torch.cdist(PAINT, middle).min() > 0.25


def test_shapes_are_labelled_pictures():
    images, labels = shapes(40, 16, torch.Generator().manual_seed(3))
    assert images.shape == (40, 3, 16, 16) and labels.shape == (40,) and set(labels.tolist()) <= set(range(8))
    assert torch.equal(shapes(10, 16, torch.Generator().manual_seed(3))[0], images[:10])


def test_hundreds_of_pictures_a_second():
    scenes = sample_scenes(128, torch.Generator().manual_seed(0), 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.perf_counter()
    render(scenes, 64)
    took = time.perf_counter() - start
    torch.set_num_threads(threads)
    assert 128 / took > 200


@pytest.mark.parametrize("size", [3, 0, -1, 16.0, True, None])
def test_bad_size_is_refused(size):
    with pytest.raises(ValueError, match="size"):
        render(sample_scenes(1, torch.Generator()), size)
