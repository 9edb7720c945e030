"""The colours are legible on both pages and apart for all readers; the drawings show what they are given."""

from __future__ import annotations

import itertools

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import colors

from minidiff import plots

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PAGES = {"white": "#ffffff", "dark": "#121212"}  # the backgrounds of the book's two modes
# Machado, Oliveira, Fernandes (2009): full deficiency, on linear RGB.
SIGHT = {
    "full": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.fixture(autouse=True)
def close_figures():
    with plt.rc_context():
        yield
    plt.close("all")


def linear(color: str) -> np.ndarray:
    c = np.array(colors.to_rgb(color))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """WCAG 2 contrast ratio."""
    low, high = sorted(linear(c) @ [0.2126, 0.7152, 0.0722] for c in (one, other))
    return (high + 0.05) / (low + 0.05)


def lab(rgb: np.ndarray) -> np.ndarray:
    xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]] @ np.clip(rgb, 0, 1)
    f = xyz / [0.9505, 1, 1.089]
    f = np.where(f > 0.008856, np.cbrt(f), 7.787 * f + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def apart(one: str, other: str, sight: str) -> float:
    """Colour difference CIE76 as seen with a deficiency."""
    a, b = (lab(np.asarray(SIGHT[sight]) @ linear(c)) for c in (one, other))
    return float(np.linalg.norm(a - b))


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("color", [*plots.PALETTE, plots.INK])
def test_colours_are_legible_on_both_pages(color, page):
    assert contrast(color, PAGES[page]) >= 3.0


def test_the_contrast_that_matplotlib_starts_with_is_not_enough():
    assert contrast("yellow", PAGES["white"]) < 3.0 and contrast("black", PAGES["dark"]) < 3.0


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_stay_apart(sight):
    closest = min(itertools.combinations((*plots.PALETTE, plots.INK), 2), key=lambda pair: apart(*pair, sight))
    assert apart(*closest, sight) >= 12.0, closest


def test_red_and_green_of_matplotlib_do_not():
    assert apart("tab:green", "tab:red", "deuteranopia") < 12.0


def test_figures_have_no_background():
    plots.use_style()
    fig, ax = plt.subplots()
    assert fig.get_facecolor()[3] == 0 and ax.get_facecolor()[3] == 0


def test_image_grid_shows_the_pixels_it_was_given(tmp_path):
    x = torch.tensor([[-1.0, 1.0], [0.0, 5.0]]).expand(3, 1, 2, 2)
    fig = plots.image_grid(x, columns=2, size=0.5)
    fig.savefig(tmp_path / "grid.png", dpi=100)
    drawn = plt.imread(tmp_path / "grid.png")[:50, :50]
    corners = [drawn[12, 12, 0], drawn[12, 37, 0], drawn[37, 12, 0], drawn[37, 37, 0]]
    assert np.allclose(corners, [0, 1, 0.5, 1], atol=0.01), "black, white, grey and clipped white, in squares"
    assert len(np.unique(drawn[5:20, 5:20, :3])) == 1, "pixels are not blurred"


def test_image_grid_places_pictures_row_by_row():
    fig = plots.image_grid(torch.zeros(5, 3, 4, 4), columns=3)
    lefts_and_bottoms = [image.get_extent()[::2] for image in fig.axes[0].images]
    lefts, bottoms = zip(*lefts_and_bottoms, strict=True)
    assert lefts[0] == lefts[3] < lefts[1] == lefts[4] < lefts[2]
    assert bottoms[0] == bottoms[2] > bottoms[3] == bottoms[4]


@pytest.mark.parametrize("count, columns", [(8, 8), (9, 3), (100, 10)])
def test_image_grid_chooses_its_columns(count, columns):
    fig = plots.image_grid(torch.zeros(count, 1, 2, 2))
    assert len({round(image.get_extent()[0], 6) for image in fig.axes[0].images}) == columns


def test_image_grid_writes_titles_and_labels():
    fig = plots.image_grid(
        torch.zeros(4, 1, 8, 8),
        2,
        titles=list("abcd"),
        row_labels=["exact", "learned"],
        column_labels=["s = 1", "s = 3"],
    )
    assert {t.get_text() for t in fig.axes[0].texts} == {*"abcd", "exact", "learned", "s = 1", "s = 3"}


@pytest.mark.parametrize(
    "x, options, message",
    [
        (torch.zeros(3, 8, 8), {}, r"\(3, 8, 8\)"),
        (torch.zeros(1, 2, 8, 8), {}, r"1 or 3"),
        (torch.zeros(0, 1, 8, 8), {}, r"B >= 1"),
        (torch.tensor([[[[0.0, float("nan")]]]]), {}, r"1 of 2 are not"),
        (torch.zeros(2, 1, 8, 8), {"titles": ["one"]}, r"titles needs 2 entries .* not 1"),
        (torch.zeros(2, 1, 8, 8), {"columns": 0}, r"columns must be a whole number >= 1"),
    ],
)
def test_image_grid_says_what_is_wrong(x, options, message):
    with pytest.raises(ValueError, match=message):
        plots.image_grid(x, **options)


def test_band_spans_the_interval():
    _, ax = plt.subplots()
    plots.band(ax, [1, 2, 3], torch.tensor([1.0, 2, 3]), [0, 1, 2], [2, 3, 5], label="error")
    (area,) = ax.collections
    assert area.get_paths()[0].vertices[:, 1].min() == 0 and area.get_paths()[0].vertices[:, 1].max() == 5
    assert ax.lines[0].get_label() == "error"
    with pytest.raises(ValueError, match="one length"):
        plots.band(ax, [1, 2], [1, 2], [0], [2, 3])


def test_contours_are_where_the_density_is():
    _, ax = plt.subplots()
    plots.contours(ax, lambda z: -8 * (z - torch.tensor([1.0, -1.0])).square().sum(-1), (-3, 3, -3, 3))
    drawn = np.concatenate([path.vertices for path in ax.collections[0].get_paths()])
    assert np.allclose(drawn.mean(0), [1, -1], atol=0.1) and np.abs(drawn - [1, -1]).max() < 1


def test_trajectories_in_the_plane_and_in_time():
    _, (plane, time) = plt.subplots(1, 2)
    plots.trajectories(plane, torch.zeros(5, 7, 2))
    plots.trajectories(time, torch.zeros(5, 7), range(5))
    assert len(plane.lines) == 8 and len(time.lines) == 7, "seven paths, and in the plane their ends"
    with pytest.raises(ValueError, match=r"not \(5, 7, 3\)"):
        plots.trajectories(plane, torch.zeros(5, 7, 3))
