"""The gates over what lessons, pages, cases, tests and cards say; their planted faults are in test_planted.py."""

from __future__ import annotations

import functools

import pytest

from tools import claimed, lessons, measured, prose

read = functools.cache(lessons.read_all)


@pytest.mark.parametrize(
    "gate",
    [measured.unmeasured, claimed.criteria, claimed.sources, prose.typed, prose.idle_alt_text],
    ids=lambda gate: gate.__name__,
)
def test_the_words_and_numbers_of_the_lessons(gate):
    assert [problem for lesson in read() for problem in gate(lesson)] == []


def test_the_reasons_of_criteria_are_of_claims():
    assert list(claimed.unused_criteria(read())) == []


def test_pictures_of_pages_say_what_is_to_be_seen():
    pages = [lessons.ROOT / "README.md", *(lessons.ROOT / "book").rglob("*.md")]
    assert [problem for page in pages for problem in prose.idle_pictures(page)] == []
