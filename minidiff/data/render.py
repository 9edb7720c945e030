"""Anti-aliased pictures of scenes at any resolution, by signed distance fields.

Each shape is a signed distance d(x, y) in units of its radius r, negative inside. A pixel of width w is
covered by the fraction clamp(1/2 - d r / w, 0, 1): exact for a straight edge along a pixel side, near for others.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from minidiff.data.scenes import BACKGROUNDS, COLORS, Scenes

from ..arguments import Count, checked

PALETTE = {
    "red": "#e0262f",
    "orange": "#fb8216",
    "yellow": "#ffd21f",
    "green": "#36a852",
    "teal": "#1fc4be",
    "blue": "#2d6ff4",
    "purple": "#9340d9",
    "pink": "#fb7ab8",
}
BACKDROPS = {  # colour at the top and at the bottom of the frame
    "cream": ("#fbf5e6", "#fbf5e6"),
    "mist": ("#f4f6f8", "#d3dbe3"),
    "sky": ("#cfe6f8", "#f3f9fd"),
    "lilac": ("#ede6f7", "#ddd0ee"),
    "slate": ("#4a5568", "#333c4d"),
    "night": ("#161b33", "#161b33"),
}
LIGHT, SHADE = 0.16, 0.14  # a shape is mixed with this much white at its upper left, black at its lower right
SHADOW = 0.20  # depth of the soft shadow under a shape
SHADOW_SHIFT, SHADOW_BLUR = (0.10, 0.20), 0.55  # its offset and half-width of its edge, in radii


@checked
def hex_colors(values: list[str]) -> Tensor:
    """(N, 3) float in [0, 1] of N "#rrggbb" strings."""
    return torch.tensor([[int(v[i : i + 2], 16) / 255 for i in (1, 3, 5)] for v in values])


PAINT = hex_colors([PALETTE[c] for c in COLORS])  # (8, 3)
BACKDROP = torch.stack([hex_colors(list(BACKDROPS[b])) for b in BACKGROUNDS])  # (6, 2, 3): top, bottom


def _circle(x: Tensor, y: Tensor, radius: float) -> Tensor:
    return torch.sqrt(x * x + y * y) - radius


def _box(x: Tensor, y: Tensor, half: float) -> Tensor:
    x, y = x.abs() - half, y.abs() - half
    return torch.sqrt(x.clamp(min=0) ** 2 + y.clamp(min=0) ** 2) + torch.maximum(x, y).clamp(max=0)


def _segment(x: Tensor, y: Tensor, a: tuple[float, float], b: tuple[float, float]) -> Tensor:
    """Distance to the segment from a to b, negative on the side of the origin."""
    ex, ey = b[0] - a[0], b[1] - a[1]
    length2 = ex * ex + ey * ey
    x, y = x - a[0], y - a[1]
    t = ((x * ex + y * ey) / length2).clamp(0, 1)
    distance = torch.sqrt((x - t * ex) ** 2 + (y - t * ey) ** 2)
    side = (x * ey - y * ex) * (a[0] * b[1] - a[1] * b[0])
    return torch.where(side > 0, distance, -distance)


def _star(x: Tensor, y: Tensor, points: int, outer: float, inner: float) -> Tensor:
    """Regular star with a point at the top; ``inner = outer cos(pi / points)`` makes it a regular polygon."""
    half = torch.pi / points
    angle = (torch.atan2(x, -y).abs() + half) % (2 * half) - half  # fold onto half of one point, by symmetry
    r, angle = torch.sqrt(x * x + y * y), angle.abs()
    corner = (inner * torch.cos(torch.tensor(half)).item(), inner * torch.sin(torch.tensor(half)).item())
    return _segment(r * torch.cos(angle), r * torch.sin(angle), (outer, 0.0), corner)


def _heart(x: Tensor, y: Tensor, half: float) -> Tensor:
    """A square standing on its corner, with a half disc on each of its two upper sides."""
    x, h = x.abs(), half * 2**0.5  # h: half the diagonal
    square = _box((x + y) / 2**0.5, (y - x) / 2**0.5, half)
    return torch.minimum(square, _circle(x - h / 2, y + h / 2, half))


def _ring(x: Tensor, y: Tensor, middle: float, half: float) -> Tensor:
    return _circle(x, y, middle).abs() - half


def _cross(x: Tensor, y: Tensor, length: float, half: float) -> Tensor:
    x, y = x.abs(), y.abs()
    x, y = torch.maximum(x, y), torch.minimum(x, y)
    beyond, above = x - length, y - half
    outside = torch.sqrt(beyond.clamp(min=0) ** 2 + above.clamp(min=0) ** 2)
    inside = torch.minimum(-beyond, torch.sqrt((half - x).clamp(min=0) ** 2 + above**2))
    return torch.where((beyond < 0) & (above < 0), -inside, outside)


def _diamond(x: Tensor, y: Tensor, width: float, height: float) -> Tensor:
    return _segment(x.abs(), y.abs(), (width, 0.0), (0.0, height))


def _outline(distance, shift: float = 0.0, rounding: float = 0.0):
    """A distance field moved down by ``shift``, its corners rounded by growing it by ``rounding``."""
    return lambda x, y: distance(x, y - shift) - rounding


FIELDS = (  # signed distances of the unit shapes, in the order of SHAPES; all fit in a disc of radius REACH
    partial(_circle, radius=0.88),
    _outline(partial(_box, half=0.65), rounding=0.12),
    _outline(partial(_star, points=3, outer=0.90, inner=0.45), shift=0.14, rounding=0.12),
    _outline(partial(_star, points=5, outer=0.96, inner=0.46), shift=0.05, rounding=0.09),
    _outline(partial(_heart, half=0.54), shift=0.13, rounding=0.08),
    partial(_ring, middle=0.71, half=0.22),
    _outline(partial(_cross, length=0.86, half=0.23), rounding=0.10),
    _outline(partial(_diamond, width=0.67, height=0.96), rounding=0.10),
)


@checked
def grid(size: Count) -> tuple[Tensor, Tensor]:
    """Pixel centres of a size x size image, as x (1, size) and y (size, 1) in frame units."""
    at = (torch.arange(size) + 0.5) / size
    return at[None, :], at[:, None]


@checked
def distance(shape: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance, in radii, of M shapes (M,) at M grids: x (M, 1, W), y (M, H, 1) -> (M, H, W)."""
    out = torch.full((len(shape), y.shape[1], x.shape[2]), 9.0)
    for k, field in enumerate(FIELDS):
        rows = (shape == k).nonzero()[:, 0]
        if len(rows):
            out[rows] = field(*torch.broadcast_tensors(x[rows], y[rows]))
    return out


@checked
def coverage(shape: Tensor, center: Tensor, radius: Tensor, size: Count) -> Tensor:
    """Share of each pixel that each of M shapes covers, (M, size, size) in [0, 1]; none where shape is -1."""
    x, y = grid(size)
    r = radius[:, None, None]
    d = distance(shape, (x - center[:, 0, None, None]) / r, (y - center[:, 1, None, None]) / r)
    return (0.5 - d * r * size).clamp_(0, 1)


@checked
def backdrop(background: Tensor, size: Count) -> Tensor:
    """Empty frames (N, 3, size, size) in [0, 1] of backgrounds (N,) long."""
    top, bottom = BACKDROP[background].unbind(1)
    t = grid(size)[1]
    return (top[:, :, None, None] * (1 - t) + bottom[:, :, None, None] * t).expand(-1, -1, size, size)


@checked
def render(scenes: Scenes, size: Count, chunk: Count = 64) -> Tensor:
    """Pictures of the scenes, (N, 3, size, size) float32 in [-1, 1], red first. ``chunk`` bounds the memory.

    Raises:
        ValueError: ``size`` is not a whole number >= 4.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 4:
        raise ValueError(f"size = {size!r} pixels asked for; a whole number >= 4 is accepted")
    images = torch.empty(len(scenes), 3, size, size)
    for i in range(0, len(scenes), chunk):
        images[i : i + chunk] = _render(scenes.select(slice(i, i + chunk)), size)
    return images.mul_(2).sub_(1)


def _render(scenes: Scenes, size: int) -> Tensor:
    """(N, 3, size, size) in [0, 1]: backdrop, then all shadows, then all shapes."""
    n, k = scenes.shape.shape
    shape, radius = scenes.shape.flatten(), scenes.radius.flatten()
    x, y = grid(size)
    r = radius[:, None, None]
    center = scenes.center.reshape(-1, 2)
    x, y = (x - center[:, 0, None, None]) / r, (y - center[:, 1, None, None]) / r
    covered = (0.5 - distance(shape, x, y) * r * size).clamp_(0, 1)
    shadow = distance(shape, x - SHADOW_SHIFT[0], y - SHADOW_SHIFT[1])
    shadow = SHADOW * (0.5 - shadow / (2 * SHADOW_BLUR)).clamp_(0, 1) ** 2
    lit = (-(x + y) / 2).clamp_(-1, 1)  # 1 at the upper left of the shape, -1 at its lower right
    paint = PAINT[scenes.color.flatten()][:, :, None, None]
    lit = lit[:, None]
    paint = paint + torch.where(lit > 0, LIGHT * lit * (1 - paint), SHADE * lit * paint)
    covered, shadow = covered.view(n, k, 1, size, size), shadow.view(n, k, 1, size, size)
    paint = paint.view(n, k, 3, size, size)
    image = backdrop(scenes.background, size) * (1 - shadow).prod(1)
    for j in range(k):
        image = image + covered[:, j] * (paint[:, j] - image)
    return image
