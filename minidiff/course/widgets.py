"""Sliders: `frames` over pictures made in advance (needs no server), `live` over a function that runs."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.display import HTML
    from matplotlib.figure import Figure

DPI = 160  # of the stored pictures: two stored pixels for each of the 80 a page shows to the inch

_SCRIPT = """(() => {
  const box = document.getElementById(%(id)s), frames = %(frames)s;
  const range = box.querySelector("input"), out = box.querySelector("output"), img = box.querySelector("img");
  range.addEventListener("input", () => {
    const f = frames[range.value];
    img.src = f.src; img.alt = f.alt; out.textContent = f.label;
    range.setAttribute("aria-valuetext", f.label);
  });
})();"""


def frames(
    draw: Callable[[Any], Figure],
    values: Sequence[Any],
    *,
    name: str,
    alt: str | Callable[[Any], str],
    start: int = 0,
) -> HTML:
    """A slider over pictures drawn now, one for each value; needs no running Python afterwards.

    Args:
        draw: Maps a value to a figure. All figures have one size, so that the page does not jump.
        values: The positions of the slider, from left to right.
        name: What the slider moves, as the reader sees it ("guidance scale s").
        alt: What the picture shows, for those who cannot see it: a function of the value, or a text in which
            `{value}` stands for it.
        start: Index of the position shown first; negative counts from the end.

    Returns:
        The slider, shown when it is the last expression of a cell. Equal arguments give equal bytes.

    Raises:
        ValueError: No values, an empty alt text, `start` out of range, `draw` returns something other than a
            figure, or figures of several sizes.
    """
    from IPython.display import HTML

    values = list(values)
    if not values:
        raise ValueError("frames needs at least one value")
    if not -len(values) <= start < len(values):
        raise ValueError(f"start must be an index into the {len(values)} values, not {start}")
    pictures = [_png(draw, value) for value in values]
    sizes = {_size(p) for p in pictures}
    if len(sizes) > 1:
        raise ValueError(f"all frames must have one size in pixels, not {sorted(sizes)}")
    store = [
        {
            "src": "data:image/png;base64," + base64.b64encode(p).decode(),
            "alt": _alt(alt, v),
            "label": _label(v),
        }
        for p, v in zip(pictures, values, strict=True)
    ]
    return HTML(_slider(name, store, start % len(values), *sizes.pop()))


def _slider(name: str, store: list[dict[str, str]], start: int, width: int, height: int) -> str:
    """The slider over stored pictures and the script that moves it; a picture is shown at half its pixels."""
    ident = "frames-" + hashlib.sha256((name + json.dumps(store)).encode()).hexdigest()[:12]
    first = {key: html.escape(text) for key, text in store[start].items()}
    script = _SCRIPT % {"id": json.dumps(ident), "frames": json.dumps(store).replace("</", "<\\/")}
    return (
        f'<figure class="frame-slider" id="{ident}" style="margin: 1em 0">'
        f'<div style="display: flex; gap: .75em; align-items: center; flex-wrap: wrap">'
        f'<label for="{ident}-range">{html.escape(name)}</label>'
        f'<input type="range" id="{ident}-range" min="0" max="{len(store) - 1}" step="1" value="{start}" '
        f'autocomplete="off" aria-valuetext="{first["label"]}" '
        f'style="flex: 1 1 12em; max-width: 24em">'
        f'<output for="{ident}-range" style="min-width: 4em; font-variant-numeric: tabular-nums">'
        f"{first['label']}</output></div>"
        f'<img src="{first["src"]}" alt="{first["alt"]}" '
        f'width="{width // 2}" height="{height // 2}" style="max-width: 100%; height: auto"></figure>'
        f"<script>{script}</script>"
    )


def live(draw: Callable[..., Any], **controls: Any) -> None:
    """Sliders that run `draw` again when they are let go; needs a running kernel and ipywidgets.

    Args:
        draw: Called with one keyword for each control. A figure it returns is shown and closed.
        controls: As for `ipywidgets.interact`: (low, high, step), a list of choices, a bool, or a widget.
    """
    try:
        import ipywidgets
    except ImportError:
        print(
            "This cell needs ipywidgets, which is not installed here: pip install ipywidgets, then restart the kernel."
        )
        return

    def show(**values: Any) -> None:
        import matplotlib.pyplot as plt
        from IPython.display import display
        from matplotlib.figure import Figure

        drawn = draw(**values)
        if drawn is not None:
            display(drawn)
        if isinstance(drawn, Figure):
            plt.close(drawn)

    panel = ipywidgets.interactive(show, **controls)
    for control in panel.children:
        if hasattr(control, "continuous_update"):
            control.continuous_update = False  # one run for each move, not one for each pixel of it
    from IPython.display import display

    display(panel)


def _png(draw: Callable[[Any], Figure], value: Any) -> bytes:
    import matplotlib.pyplot as plt
    from matplotlib.figure import Figure

    figure = draw(value)
    if not isinstance(figure, Figure):
        raise ValueError(f"draw({value!r}) must return a matplotlib Figure, not {type(figure).__name__}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()


def _size(png: bytes) -> tuple[int, int]:
    return struct.unpack(">II", png[16:24])


def _label(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _alt(alt: str | Callable[[Any], str], value: Any) -> str:
    text = alt(value) if callable(alt) else alt.replace("{value}", _label(value))
    if not text.strip():
        raise ValueError(f"frames needs an alt text for every value; the one for {value!r} is empty")
    return text
