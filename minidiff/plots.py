"""One look for every figure of the course.

Figures have no background of their own, and every colour, the ink included, keeps a contrast of at least
3 to 1 against both a white and a near-black page, so that one picture serves the light and the dark mode.
`tests/test_plots.py` measures that, and that the colours stay apart for readers with protanopia, deuteranopia
and tritanopia.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


from .arguments import Count, Positive, Share, checked

BLUE = "#4a8be0"
ORANGE = "#d0780a"
PURPLE = "#8a45f0"
GREEN = "#00a37a"
RED = "#d6224a"
INK = "#7a7f87"  # text, axes and references
PALETTE = (BLUE, ORANGE, PURPLE, GREEN, RED)

WIDTH = 7.2  # inches: the text column of the book
GAP = 0.05  # inches between the pictures of a grid


def use_style() -> None:
    """Set the look of all later figures; in a notebook, also draw them at twice the screen's resolution."""
    import matplotlib as mpl

    mpl.rcParams.update(
        {
            "figure.figsize": (WIDTH, 3.2),
            "figure.dpi": 100,
            "figure.facecolor": "none",
            "figure.constrained_layout.use": True,
            "savefig.facecolor": "none",
            "axes.facecolor": "none",
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "axes.titlecolor": INK,
            "axes.titlesize": 10.5,
            "axes.titleweight": "bold",
            "axes.labelsize": 10.5,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "axes.prop_cycle": mpl.cycler(color=PALETTE),
            "axes.grid": True,
            "grid.color": INK,
            "grid.alpha": 0.22,
            "grid.linewidth": 0.7,
            "xtick.color": INK,
            "ytick.color": INK,
            "xtick.labelsize": 9.5,
            "ytick.labelsize": 9.5,
            "text.color": INK,
            "font.size": 10.5,
            "mathtext.fontset": "cm",
            "lines.linewidth": 2.0,
            "lines.solid_capstyle": "round",
            "legend.frameon": False,
            "legend.fontsize": 9.5,
            "image.interpolation": "nearest",
            "image.cmap": "gray",
        }
    )
    try:
        from IPython import get_ipython
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:  # a plain script
        return
    if get_ipython() is not None:
        set_matplotlib_formats("retina")


@checked
def image_grid(
    x: torch.Tensor,
    columns: Count | None = None,
    titles: Sequence[str] | None = None,
    *,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    size: Positive | None = None,
) -> Figure:
    """Pictures side by side, row by row.

    Args:
        x: (B, C, H, W) in [-1, 1], values outside are clipped; C is 1 (grey) or 3 (colour).
        columns: Pictures in a row; all in one row up to eight, else the squarest grid.
        titles: One short text for each picture, written above it.
        row_labels: One text for each row, written on its left.
        column_labels: One text for each column, written on top.
        size: Width of one picture in inches; as large as fits the page, and at most 1.2, when not given.

    Raises:
        ValueError: x is not such a batch or not finite, or a list has the wrong length.
    """
    import matplotlib.pyplot as plt

    pixels = _pixels(x)
    count, height, width = pixels.shape[:3]
    columns, rows = _columns_and_rows(count, columns)
    for name, given, wanted in (
        ("titles", titles, count),
        ("row_labels", row_labels, rows),
        ("column_labels", column_labels, columns),
    ):
        if given is not None and len(given) != wanted:
            raise ValueError(f"{name} needs {wanted} entries for {rows} x {columns} pictures, not {len(given)}")

    left = 0.0 if row_labels is None else 0.12 + 0.085 * max(len(str(label)) for label in row_labels)
    top, head = 0.0 if column_labels is None else 0.26, 0.0 if titles is None else 0.22
    wide = min(1.2, (WIDTH - left - GAP * (columns - 1)) / columns) if size is None else size
    page = _Page(rows, columns, wide, wide * height / width, left, top, head)
    fig = plt.figure(figsize=page.size, layout="none")
    ax = fig.add_axes((0, 0, 1, 1))  # one canvas measured in inches
    ax.axis("off")
    for i, picture in enumerate(pixels):
        row, column = divmod(i, columns)
        (x0, y0), middle = page.corner(row, column), page.wide / 2
        ax.imshow(picture, extent=(x0, x0 + page.wide, y0, y0 + page.tall), aspect="auto", interpolation="nearest")
        if titles is not None:
            ax.text(x0 + middle, y0 + page.tall + 0.05, titles[i], ha="center", va="bottom", fontsize=8.5)
        if row_labels is not None and column == 0:
            ax.text(left - 0.08, y0 + page.tall / 2, row_labels[row], ha="right", va="center", fontsize=9.5)
        if column_labels is not None and row == 0:
            ax.text(x0 + middle, page.size[1] - 0.2, column_labels[column], ha="center", va="bottom", fontsize=9.5)
    ax.set_xlim(0, page.size[0])
    ax.set_ylim(0, page.size[1])
    return fig


def _pixels(x: torch.Tensor) -> np.ndarray:
    """(B, H, W, 3) in [0, 1] of pictures (B, 1 or 3, H, W) in [-1, 1], clipped."""
    x = torch.as_tensor(x).detach()
    if x.ndim != 4 or x.shape[1] not in (1, 3) or not len(x):
        raise ValueError(f"image_grid needs x of shape (B, 1 or 3, H, W) with B >= 1, not {tuple(x.shape)}")
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"image_grid needs finite pixels; {int((~torch.isfinite(x)).sum())} of {x.numel()} are not")
    return ((x.float().clamp(-1, 1) + 1) / 2).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()


def _columns_and_rows(count: int, columns: Count | None) -> tuple[int, int]:
    """The grid of so many pictures: all in one row up to eight, else the squarest, where nothing is asked."""
    if columns is None:
        columns = count if count <= 8 else int(np.ceil(np.sqrt(count)))
    if columns < 1:
        raise ValueError(f"columns must be at least 1, not {columns}")
    columns = min(columns, count)
    return columns, -(-count // columns)


@dataclass(frozen=True)
class _Page:
    """Where the pictures of a grid lie, in inches from the lower left corner.

    Attributes:
        wide, tall: Of one picture.
        left, top: Room for the labels of rows and of columns.
        head: Room for a title above each picture.
    """

    rows: int
    columns: int
    wide: float
    tall: float
    left: float
    top: float
    head: float

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the page."""
        width = self.left + self.columns * (self.wide + GAP) - GAP
        return width, self.top + self.rows * (self.tall + self.head + GAP) - GAP

    def corner(self, row: int, column: int) -> tuple[float, float]:
        """The lower left corner of a picture."""
        below = self.size[1] - self.top - row * (self.tall + self.head + GAP)
        return self.left + column * (self.wide + GAP), below - self.head - self.tall


@checked
def band(
    ax: Axes,
    x: ArrayLike,
    mean: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    *,
    label: str | None = None,
    color: str | None = None,
    marker: str = "o",
) -> None:
    """A measured curve, `mean`, over its interval from `low` to `high` as a pale band; all of shape (N,)."""
    x, mean, low, high = (np.asarray(torch.as_tensor(v).detach().cpu(), dtype=float) for v in (x, mean, low, high))
    if not (x.shape == mean.shape == low.shape == high.shape) or x.ndim != 1:
        raise ValueError(
            f"band needs four sequences of one length, not {x.shape}, {mean.shape}, {low.shape}, {high.shape}"
        )
    (line,) = ax.plot(x, mean, marker=marker, markersize=4, label=label, color=color)
    ax.fill_between(x, low, high, color=line.get_color(), alpha=0.22, linewidth=0)


@checked
def contours(
    ax: Axes,
    log_prob: Callable[[torch.Tensor], torch.Tensor],
    extent: tuple[float, float, float, float],
    *,
    color: str = BLUE,
    levels: Count = 7,
    points: Count = 120,
) -> None:
    """A density over the plane, its colour fading to nothing where it is small.

    Args:
        ax: Axes to draw on.
        log_prob: Maps points (N, 2), float64, to log densities (N,).
        extent: (left, right, bottom, top).
        color: Colour of the highest density.
        levels: Number of steps.
        points: Grid points a side.
    """
    from matplotlib.colors import LinearSegmentedColormap, to_rgba

    left, right, bottom, top = extent
    across, up = np.linspace(left, right, points), np.linspace(bottom, top, points)
    grid = torch.from_numpy(np.stack(np.meshgrid(across, up), axis=-1).reshape(-1, 2))
    with torch.no_grad():
        density = log_prob(grid).double().exp().reshape(points, points).cpu().numpy()
    fade = LinearSegmentedColormap.from_list("fade", [to_rgba(color, 0.06), to_rgba(color, 0.85)])
    ax.contourf(across, up, density, levels=density.max() * np.linspace(0.03, 1.001, levels + 1), cmap=fade)
    ax.set_xlim(left, right)
    ax.set_ylim(bottom, top)
    ax.grid(False)


@checked
def trajectories(
    ax: Axes,
    paths: torch.Tensor,
    times: Sequence[float] | None = None,
    *,
    color: str = INK,
    alpha: Share = 0.5,
) -> None:
    """Sampling paths: (S, N, 2) in the plane with their ends marked, or (S, N) against `times` (S,)."""
    paths = torch.as_tensor(paths).detach().cpu()
    if paths.ndim == 3 and paths.shape[-1] == 2:
        ax.plot(*paths.unbind(-1), color=color, alpha=alpha, linewidth=0.8)
        ax.plot(*paths[-1].unbind(-1), ".", color=ORANGE, markersize=4)
    elif paths.ndim == 2:
        ax.plot(range(len(paths)) if times is None else times, paths, color=color, alpha=alpha, linewidth=0.8)
    else:
        raise ValueError(f"trajectories needs paths of shape (S, N) or (S, N, 2), not {tuple(paths.shape)}")
