"""The gates over what lessons, pages, cases, tests and cards say; their planted faults are in test_planted.py."""

from __future__ import annotations

import functools

import pytest

from minidiff.course import comparing
from tools import claimed, equations, lessons, measured, prose, run_gates, tested

read = functools.cache(lambda: [*lessons.read_all(), *lessons.appendices()])


@pytest.mark.parametrize(
    "gate",
    [
        measured.unmeasured,
        claimed.criteria,
        claimed.sources,
        prose.typed,
        prose.hidden_in_formulas,
        prose.idle_alt_text,
    ],
    ids=lambda gate: gate.__name__,
)
def test_the_words_and_numbers_of_the_lessons(gate):
    assert [problem for lesson in read() for problem in gate(lesson)] == []


def test_the_reasons_of_criteria_are_of_claims():
    assert list(claimed.unused_criteria(read())) == []


def test_pictures_of_pages_say_what_is_to_be_seen():
    pages = [lessons.ROOT / "README.md", *(lessons.ROOT / "book").rglob("*.md")]
    assert [problem for page in pages for problem in prose.idle_pictures(page)] == []


def test_cases_are_as_tight_as_float32_allows():
    assert comparing.RTOL <= tested.RTOL
    modules = (lessons.ROOT / "minidiff/course/checks").glob("*.py")
    assert [problem for path in modules for problem in tested.loose(path)] == []


@pytest.mark.parametrize("gate", [tested.empty, tested.skipped], ids=lambda gate: gate.__name__)
def test_the_tests(gate):
    assert [problem for path in (lessons.ROOT / "tests").rglob("*.py") for problem in gate(path)] == []


def test_every_gate_is_run():
    assert list(tested.missing_gates(run_gates.GATES)) == []


def test_labels_in_docstrings_are_of_their_functions():
    assert list(equations.mislabelled(lessons.read_all())) == []
