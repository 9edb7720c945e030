"""The exercises on trial: right answers must pass, planted wrong ones must fail, and every case must catch one.

Right answers are the lesson's own (executed as the grader executes a hand-in) and those of ``tests/mutants/`` in other
styles, ``RIGHT``: exercise id -> style -> answer. Wrong ones are ``MUTANTS`` there, exercise id -> name ->
``(answer, case)`` or ``(answer, case, words of the diagnosis)``, and a few that need no thought.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from minidiff.course.exercises import (
    FAILED,
    FORM,
    PASSED,
    SEED,
    Exercise,
    NotAttempted,
    exercises,
    grade_answer,
)
from minidiff.course.grading.formats import Block
from minidiff.course.grading.handin import execute
from tools.lessons import ROOT, Lesson


def _stub(*args, **kwargs):
    raise NotAttempted


NAMED = "mistake recognised: "  # how the message of a diagnosis begins
TRIVIAL = {
    "None": None,
    "0.0": 0.0,
    "a function that returns None": lambda *args, **kwargs: None,
    "a function that returns 0.0": lambda *args, **kwargs: 0.0,
    "a function that returns its first argument": lambda *args, **kwargs: next(iter(args), None),
    "the student notebook's stub": _stub,
}


def _returns(value: Any) -> Callable:
    return lambda *args, **kwargs: value


def _argument(i: int) -> Callable:
    return lambda *args, **kwargs: dict(enumerate([*args, *kwargs.values()])).get(i)


def _like_a_tensor(change: Callable) -> Callable:
    """What ``change`` makes of the first tensor that is given."""
    return lambda *args, **kwargs: next(
        (change(v) for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)), 0.0
    )


def _raises(*args, **kwargs):
    raise ValueError("always")


_VALUES = (True, False, 1.0, -1.0, 0.5, 2, 100, math.nan, math.inf, "", [], (), {}, torch.empty(0), torch.zeros(1))
LAZY = {f"{value!r}": value for value in _VALUES}
LAZY |= {f"a function that returns {value!r}": _returns(value) for value in _VALUES}
LAZY |= {f"a function that returns argument {i}": _argument(i) for i in range(1, 5)}
LAZY |= {
    "zeros like a tensor": _like_a_tensor(torch.zeros_like),
    "ones like a tensor": _like_a_tensor(torch.ones_like),
    "a tensor's negative": _like_a_tensor(lambda x: x if x.dtype == torch.bool else -x),
    "twice a tensor": _like_a_tensor(lambda x: 2 * x),
    "a tensor's mean": _like_a_tensor(lambda x: x.double().mean()),
    "a function that raises": _raises,
    "a function of a function that returns its argument": _returns(_argument(0)),
    "a function of a function that raises": _returns(_raises),
    "a function of zeros": _returns(_like_a_tensor(torch.zeros_like)),
}
FILLS = (0.0, 1.0, -1.0, 0.5, 2.0, math.nan)


def reference_answers(lesson: Lesson) -> dict[str, Any]:
    """The lesson's own answers by exercise id; its setup and answer cells run, nothing else but what these need.

    Raises:
        ValueError: an answer cell defines nothing of the name that its tag gives.
    """
    answers = {c.tag("ex"): c.tag("name") for c in lesson.code if "exercise" in c.tags}
    blocks = [Block(c.source, tuple(c.tags)) for c in lesson.code]
    namespace, errors = execute(blocks, answers.values())
    for id, name in answers.items():
        if name not in namespace:
            raise ValueError(f"{lesson.path}: {id} has no answer {name!r}: {errors.get(name, 'not defined')}")
    return {id: namespace[name] for id, name in answers.items()}


@cache
def planted(lesson: str, root: Path = ROOT) -> ModuleType:
    """The module of planted answers of a lesson (its file stem): ``MUTANTS`` and ``RIGHT``, both by exercise id."""
    path = root / f"tests/mutants/l{lesson}.py"
    spec = importlib.util.spec_from_file_location(f"mutants_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def right_answers(exercise: Exercise) -> dict[str, Any]:
    """Style -> a right answer in it."""
    return planted(exercise.lesson).RIGHT[exercise.id]


def failed_cases(id: str, answer: Any, seed: int = SEED) -> dict[str, str]:
    """Name -> message of the cases that an answer does not pass."""
    return {r.case: r.message for r in grade_answer(id, answer, seed) if r.status != PASSED}


def survivors(exercise: Exercise, mutants: Mapping[str, tuple], seeds: Iterable[int] = (SEED,)) -> Iterator[str]:
    """What is wrong with the planted wrong answers of an exercise, or with the cases that should catch them."""
    caught: set[str] = set()
    for seed in seeds:
        for name, (answer, expected, *diagnosis) in mutants.items():
            failed = {r.case: r.message for r in grade_answer(exercise.id, answer, seed) if r.status == FAILED}
            caught |= set(failed)
            which = f"{exercise.id}, seed {seed}: the planted {name!r} must fail the case {expected!r}"
            if expected not in failed:
                yield which + " but " + (f"fails {', '.join(sorted(failed))}" if failed else "passes them all")
            elif diagnosis and not (failed[expected].startswith(NAMED) and diagnosis[0] in failed[expected]):
                yield f"{which} as {diagnosis[0]!r} but the message is {failed[expected]!r}"
            elif not diagnosis and failed[expected].startswith(NAMED):
                yield f"{which} without a diagnosis but the message is {failed[expected]!r}"
    for case in exercise.cases:
        if case.name not in caught | {FORM}:  # what has no form is tried by ``too_easy``
            yield f"{exercise.id}: no planted wrong answer fails the case {case.name!r}"


def without_thought(exercise: Exercise) -> Iterator[tuple[str, Any]]:
    """Name and value of answers that cost no thought: constants, arguments, and constants of the right form."""
    yield from (TRIVIAL | LAZY).items()
    for value in FILLS:
        with contextlib.suppress(ValueError, OverflowError, StopIteration):  # no integer is nan
            yield f"{value} in the right form", exercise.form.constant(value, {})


def too_easy(exercise: Exercise) -> Iterator[str]:
    """Answers without thought that earn points, cases that the stub passes, and nothing that has the form."""
    for name, answer in without_thought(exercise):
        results = list(grade_answer(exercise.id, answer))
        passed = [r.case for r in results if r.status == PASSED]
        nothing = name in ("None", "a function that returns None")
        earned = any(r.points for r in results)
        if earned or len(passed) == len(results) or (passed and (answer is _stub or nothing)):
            yield f"{exercise.id}: {name} passes {', '.join(passed) or 'as there is no case'}"


def frozen(answer: Callable) -> Callable:
    """An answer that keeps what its first call gave, as one does that caches without looking at its arguments."""
    kept = []

    def again(*args, **kwargs):
        if not kept:
            kept.append(answer(*args, **kwargs))
        return kept[0]

    return again


def exercise_report() -> list[dict]:
    """One row per exercise for the status page: id, lesson, and how many of its planted wrong answers are caught."""
    rows = []
    for exercise in exercises():
        mutants = getattr(planted(exercise.lesson), "MUTANTS", {}).get(exercise.id, {})
        killed = sum(expected in failed_cases(exercise.id, answer) for answer, expected, *_ in mutants.values())
        row = {"id": exercise.id, "lesson": exercise.lesson, "cases": len(exercise.cases)}
        rows.append(row | {"mutants": len(mutants), "killed": killed})
    return rows
