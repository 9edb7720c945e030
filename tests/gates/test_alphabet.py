"""The gates over letters and algorithm boxes, and for each a fault that it finds."""

from __future__ import annotations

import pytest

from tools import boxes, letters
from tools.lessons import read

HEAD = "| letter | meaning |\n|---|---|\n"
COMMON = HEAD + "| $x$, $x_t$ | a picture |\n| $e$ | the number |\n"
LESSON = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
---

# A lesson

| letter | meaning |
|---|---|
| $s$ | scale |
| $\\gamma$ | density |

$$
\\gamma_t(x_t) = e^{s x} , \\qquad \\frac{dx}{ds} = \\text{anything at all}
$$
"""


@pytest.fixture
def course(tmp_path):
    """One lesson and the page of notation, to spoil."""
    (tmp_path / "lessons").mkdir()
    (tmp_path / "book").mkdir()
    (tmp_path / "book/notation.md").write_text(COMMON)
    (tmp_path / "lessons/01_first.md").write_text(LESSON)
    return tmp_path


def spoilt(course, old, new):
    path = course / "lessons/01_first.md"
    assert old in LESSON
    path.write_text(LESSON.replace(old, new))
    return "\n".join(letters.problems(course))


def test_every_letter_of_the_lessons_has_one_meaning():
    assert letters.problems() == []


def test_the_algorithms_are_in_order():
    assert boxes.problems() == []


def test_a_lesson_in_order_is_left_alone(course):
    assert letters.problems(course) == []


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("| $s$ | scale |", "| $s$ | scale |\n| $s_t$ | a level |", "s has a meaning already"),
        ("| $s$ | scale |", "| $s$ | scale |\n| $\\hat x$ | a point |", "x has a meaning already"),
        ("e^{s x}", "e^{s x} + b", "b stands in an equation and not in the table"),
        ("e^{s x}", "\\mathcal{L}", "\\mathcal{L} stands in an equation"),
        ("| $s$ | scale |", "| $s$ | scale |\n| $k$ | nothing |", "k has a row and is not used"),
        ("| letter | meaning |", "| sign | meaning |", "the lesson needs a table of its letters"),
    ],
)
def test_a_fault_in_an_alphabet_is_found(course, old, new, message):
    assert message in spoilt(course, old, new)


def test_a_letter_with_an_index_is_used_and_no_derivative(course):
    path = course / "lessons/01_first.md"
    path.write_text(
        LESSON.replace("| $s$ | scale |", "| $s$ | scale |\n| $d$ | an error |") + "\nIt is off by $d_c$.\n"
    )
    assert letters.problems(course) == []


def test_a_lesson_that_has_its_table_waits_no_longer(course, monkeypatch):
    monkeypatch.setattr(letters, "WAITING", {"first"})
    assert "take it out of WAITING" in "\n".join(letters.problems(course))


@pytest.mark.parametrize(
    "tex, found",
    [
        (r"\hat x_0 + \alpha_t x'", {"x", r"\alpha"}),
        (r"\operatorname{Var}[x] \mathbf{I} \Normal(0, I)", {"x", r"\mathbf{I}", "I"}),
        (r"\frac{d}{dx} \frac{dy}{dt}, b / d", {"x", "y", "t", "b", "d"}),
        (r"d_c x - d_\varnothing, \int v_d d x_t", {"d", "x", "v"}),
        (r"\epsilon_\text{weak} + p(x \mid c)", {r"\epsilon", "p", "x", "c"}),
    ],
)
def test_letters_of_a_formula(tex, found):
    assert letters.letters(tex) == found


GOOD = """:::{admonition} Algorithm 1.1: `ddim`
:class: algorithm

1. Step.

In minidiff {py:func}`minidiff.sampler.ddim`.
:::"""


@pytest.mark.parametrize(
    "text, message",
    [
        (GOOD, ""),
        (GOOD.replace("1.1", "1.2"), "this is algorithm 1.1"),
        (GOOD.replace("1.1", "2.1"), "this is algorithm 1.1"),
        (GOOD.replace(":class: algorithm\n", ""), "go together"),
        (GOOD.replace("`ddim`", "DDIM"), "go together"),
        (GOOD.replace("sampler.ddim", "sampler.heun"), "is named 'ddim'"),
        (GOOD.replace("In minidiff {py:func}`minidiff.sampler.ddim`.", ""), "links nothing"),
    ],
)
def test_a_fault_in_a_box_is_found(course, text, message):
    path = course / "lessons/01_first.md"
    path.write_text(f"{LESSON}\n{text}\n")
    found = "\n".join(boxes.boxes(read(path)))
    assert message in found if message else not found
