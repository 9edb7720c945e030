"""Dataclasses from plain values and back, and the words of their messages."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import pytest

from minidiff.settings import from_plain, to_plain
from minidiff.words import nearest


@dataclass(frozen=True)
class Inner:
    rate: float
    sizes: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Outer:
    name: str
    steps: int = 3
    fast: bool = False
    inner: Inner = Inner(0.5)
    maybe: float | None = None
    other: Inner | None = None
    anything: Any = None
    own: int = field(default=7, init=False)


@dataclass(frozen=True)
class Empty:
    pass


def test_values_become_fields_of_their_types():
    made = from_plain(
        Outer,
        {
            "name": "x",
            "inner": {"rate": 1, "sizes": [3]},
            "maybe": "1e-3",
            "other": {"rate": "2"},
            "anything": {"a": [1]},
        },
        "thing",
    )
    assert made == Outer("x", inner=Inner(1.0, (3,)), maybe=0.001, other=Inner(2.0), anything={"a": [1]})
    assert isinstance(made.inner.rate, float) and isinstance(made.inner.sizes, tuple)
    assert from_plain(Outer, {"name": "x", "inner": Inner(0.1), "maybe": None}, "thing").inner == Inner(0.1)
    assert from_plain(Inner, {"rate": 0, "sizes": 5}, "thing").sizes == (5,), "one number is a list of one"


def test_plain_values_round_trip():
    made = Outer("x", 4, True, Inner(0.25, (3, 4)), 0.5, Inner(1.0), {"a": (1, 2)})
    plain = to_plain(made)
    assert plain["inner"] == {"rate": 0.25, "sizes": [3, 4]} and plain["anything"] == {"a": [1, 2]}
    again = from_plain(Outer, {k: v for k, v in plain.items() if k != "own"}, "thing")
    assert again.inner == made.inner and again.other == made.other and again.anything == {"a": [1, 2]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "x", "stepps": 3}, "unknown key thing.stepps: did you mean 'steps'?"),
        ({"name": "x", "zzz": 3}, "unknown key thing.zzz: known: anything, fast, inner, maybe, name, other, steps"),
        ({"name": "x", "own": 3}, "unknown key thing.own"),
        ({"name": "x", 3: 4}, "unknown key thing.3"),
        ({"name": "x", "inner": {"rate": 1, "size": 2}}, "unknown key thing.inner.size: did you mean 'sizes'?"),
        ({"name": "x", "inner": {}}, "thing.inner lacks rate"),
        ({}, "thing lacks name"),
        ([1], "thing must be a mapping, got [1]"),
        ({"name": "x", "inner": 3}, "thing.inner must be a mapping, got 3"),
        ({"name": 3}, "thing.name must be of type str, got 3"),
        ({"name": "x", "steps": 2.0}, "thing.steps must be of type int, got 2.0"),
        ({"name": "x", "steps": True}, "thing.steps must be of type int, got True"),
        ({"name": "x", "fast": 1}, "thing.fast must be of type bool, got 1"),
        ({"name": "x", "maybe": "fast"}, "thing.maybe must be of type float, got 'fast'"),
        ({"name": "x", "maybe": True}, "thing.maybe must be of type float, got True"),
        ({"name": "x", "inner": {"rate": 1, "sizes": [1, "a"]}}, "thing.inner.sizes must be of type int, got 'a'"),
    ],
)
def test_what_does_not_belong_is_named(values, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        from_plain(Outer, values, "thing")


def test_a_dataclass_without_fields_takes_nothing():
    assert from_plain(Empty, {}, "thing") == Empty()
    with pytest.raises(ValueError, match=re.escape("unknown key thing.x: it takes none")):
        from_plain(Empty, {"x": 1}, "thing")


def test_the_nearest_word_or_all_of_them():
    assert nearest("digit", ["shapes", "digits", "glide"]) == "did you mean 'digits'?"
    assert nearest("xyz", {"b": 1, "a": 2}) == "known: a, b"
    assert nearest("digits", (word for word in ("digit", "digits"))) == "did you mean 'digits'?"
