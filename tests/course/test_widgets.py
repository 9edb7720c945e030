"""Sliders: the same bytes each time, readable without eyes and without a mouse, honest about bad input."""

from __future__ import annotations

import builtins
import json
import re
from html.parser import HTMLParser

import matplotlib
import pytest

from minidiff.course.widgets import frames, live

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def draw(value):
    fig, ax = plt.subplots(figsize=(2, 1))
    ax.axhline(value)
    return fig


def slider(values=(1.0, 2.5, 4.0), **options):
    return frames(draw, values, **{"name": "scale s", "alt": "A line at {value}"} | options).data


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: dict[str, dict] = {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found[tag] = dict(attrs)


def stored(text: str) -> list[dict]:
    return json.loads(re.search(r"frames = (\[.*?\]);\n", text).group(1))


def test_equal_arguments_give_equal_bytes_and_others_another_id():
    assert slider() == slider()
    ids = {Tags(text).found["figure"]["id"] for text in (slider(), slider(name="steps"), slider(values=(1.0, 2.5)))}
    assert len(ids) == 3


def test_every_value_has_its_picture_label_and_alt_text():
    kept = stored(slider())
    assert [frame["label"] for frame in kept] == ["1", "2.5", "4"]
    assert [frame["alt"] for frame in kept] == ["A line at 1", "A line at 2.5", "A line at 4"]
    assert len({frame["src"] for frame in kept}) == 3


def test_the_slider_starts_where_it_is_told():
    tags = Tags(slider(start=-1)).found
    assert tags["input"]["value"] == "2" and tags["input"]["aria-valuetext"] == "4"
    assert tags["img"]["alt"] == "A line at 4" and tags["img"]["src"] == stored(slider())[2]["src"]


def test_label_and_output_belong_to_the_slider():
    tags = Tags(slider()).found
    assert tags["label"]["for"] == tags["output"]["for"] == tags["input"]["id"]
    assert tags["input"]["type"] == "range", "keyboards move it"


def test_the_picture_is_shown_at_half_its_pixels():
    tags = Tags(slider()).found
    assert (tags["img"]["width"], tags["img"]["height"]) == ("160", "80")


def test_text_cannot_become_markup():
    text = slider(name='<b>"s"</b>', alt="a < b </script>")
    assert "<b>" not in text and text.count("</script>") == 1
    assert Tags(text).found["img"]["alt"] == "a < b </script>"


def test_figures_are_closed():
    slider()
    assert plt.get_fignums() == []


@pytest.mark.parametrize(
    "options, message",
    [
        ({"values": []}, "at least one value"),
        ({"start": 3}, "index into the 3 values, not 3"),
        ({"alt": " "}, "empty"),
        ({"alt": lambda value: "" if value > 2 else "low"}, "the one for 2.5 is empty"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        slider(**options)


def test_a_draw_without_a_figure_is_named():
    with pytest.raises(ValueError, match=r"draw\(7\) must return a matplotlib Figure, not int"):
        frames(lambda value: value, [7], name="s", alt="x")


def test_frames_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match="one size"):
        frames(lambda value: plt.figure(figsize=(value, 1)), [1, 2], name="s", alt="x")
    plt.close("all")


def test_live_runs_once_for_each_move(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    calls = []
    live(lambda s: calls.append(s), s=(0.0, 4.0, 0.5))
    (panel,) = shown
    control = panel.children[0]
    assert control.continuous_update is False
    panel.update()
    before = len(calls)
    control.value = 3.5
    assert calls[before:] == [3.5]


def test_live_without_ipywidgets_says_what_to_do(monkeypatch, capsys):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "ipywidgets":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    live(draw, s=(0, 1))
    assert "pip install ipywidgets" in capsys.readouterr().out
