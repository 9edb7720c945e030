"""What grading runs of a notebook: enough for the answer to be what it is in the notebook, and no more than that."""

from __future__ import annotations

import pytest

from minidiff.course import NotAttempted
from minidiff.course.grading.formats import Block
from minidiff.course.grading.handin import execute

SLOW = "for x in range(3):\n    ran.append(x)\n    y = x"  # a cell that samples or draws: only its side effect shows


def answer_of(before: list[str], answer: str, after: list[str]) -> tuple[object, list]:
    """The answer as grading finds it, and what the cells it ran left in ``ran``."""
    cells = [Block(source) for source in ["ran = []", *before]]
    found, errors = execute([*cells, Block(answer, ("exercise",)), *map(Block, after)], ["answer"])
    assert errors == {}
    return found["answer"], found.get("ran", [])


def whole(cells: list[str]) -> object:
    """The answer when every cell runs."""
    names: dict = {}
    exec("\n".join(["ran = []", *cells]), names)
    return names["answer"]


@pytest.mark.parametrize(
    "before, answer, after",
    [
        ([SLOW], "x = 5\nanswer = x + 1", [SLOW]),
        ([SLOW], "import math as x\nanswer = x.pi", []),
        ([SLOW], "total = 0\nfor x in (1, 2):\n    y = x\n    total += y\nanswer = total", [SLOW]),
        ([SLOW], "x, y = 1, 2\nanswer = [x * k for k in range(y)]", [SLOW]),
        ([SLOW], "def x():\n    return 4\nanswer = x()", []),
    ],
)
def test_names_of_its_own_run_no_other_cell(before, answer, after):
    found, ran = answer_of(before, answer, after)
    assert found == whole([*before, answer, *after]) and ran == []


@pytest.mark.parametrize(
    "before, answer, after",
    [
        (["x = 2"], "answer = x", ["x = 3"]),
        (["x = 2", "x = x + 1"], "y = x\nx = 7\nanswer = y + x", []),
        (["x = 2"], "if x > 1:\n    x = 5\nanswer = x", []),
        (["x = 2"], "for _ in range(0):\n    x = 5\nanswer = x", []),
        (["x = 2"], "while False:\n    x = 5\nanswer = x", []),
        (["x = [2]"], "x += [3]\nanswer = x", []),
        (["x = [2]"], "x[0], y = 4, 5\nanswer = x", []),
        ([], "x = [1]\nanswer = x", ["x.append(2)"]),
        ([], "x = [1]\nanswer = [x]", ["for k in range(2):\n    x.insert(0, k)"]),
        (["last = 0"], "for k in range(3):\n    before = last\n    last = k\nanswer = before", []),
        (["x = 2"], "y = x\nx = 3\nanswer = x * y", ["x = 9"]),
    ],
)
def test_what_the_answer_needs_has_run(before, answer, after):
    assert answer_of(before, answer, after)[0] == whole([*before, answer, *after])


@pytest.mark.parametrize(
    "answer",
    ["x = 1\ndef answer():\n    return x", "x = 1\nanswer = lambda: x", "x = 1\nanswer = lambda: sum(x for _ in 'ab')"],
)
def test_a_function_looks_its_names_up_when_it_is_called(answer):
    found, _ = answer_of([], answer, ["x = 3"])
    assert found() == whole([answer, "x = 3"])()


def test_what_is_looked_up_later_may_be_bound_later():
    answer, after = "x = 1\nanswer = (x for _ in range(2))", ["x = 3"]
    assert list(answer_of([], answer, after)[0]) == list(whole([answer, *after])) == [3, 3]


STUBS = [
    "answer = ...",
    "def answer(x):\n    raise NotAttempted",
    'def answer(x):\n    """What it is."""\n    raise course.NotAttempted()',
]


@pytest.mark.parametrize("stub", STUBS)
@pytest.mark.parametrize(
    "given", ["answer = 42", "def answer(x):\n    return 42 if x < 1 else answer(x - 1)", "answer = lambda x: 42"]
)
def test_a_stub_below_an_answer_does_not_undo_it(stub, given):
    """Who adds a cell above the one that was given leaves the stub where it is."""
    for order in ([given, stub], [stub, given]):
        cells = [Block(source, ("exercise",)) for source in order]
        found, errors = execute(
            [Block("from minidiff import course\nfrom minidiff.course import NotAttempted"), *cells], ["answer"]
        )
        answer = found["answer"]
        assert errors == {} and (answer(0) if callable(answer) else answer) == 42


@pytest.mark.parametrize("other", ["answer = abs(answer)", "answer.name = 1", "print(answer)", "other = answer"])
def test_a_stub_alone_stays(other):
    found, _ = execute([Block("from minidiff.course import NotAttempted"), Block(STUBS[1]), Block(other)], ["answer"])
    with pytest.raises(NotAttempted):
        found["answer"](0)
