"""Exercises: a registry of named checks, used by the notebook, by the tests of the course and by ``minidiff grade``.

A checks module (``minidiff/course/checks/l01_forward_and_reverse.py``) declares exercises and their cases::

    exercise("ex-01-marginal", name="marginal", lesson="01_forward_and_reverse")

    @case("ex-01-marginal", "mean-is-alpha-x0")
    def _(answer):
        assert torch.equal(answer(x0, level, zeros), level.alpha * x0), "without noise only alpha x_0 is left"

A case sees the answer through :mod:`minidiff.course.grading.wire`: it passes and gets plain values (numbers,
strings, tensors, lists, tuples, dicts, noise levels, predictions, exact denoisers, functions), and never
differentiates through it.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PASSED, PARTIAL, FAILED, NOT_ATTEMPTED = "passed", "partial", "failed", "not attempted"
SEED = 0

silent = False  # True in the process that runs a hand-in: its own check() calls neither run nor count


class Mistake(AssertionError):
    """A wrong answer that the case recognises; the message names what was done ("you used w for s = 1 + w")."""


@dataclass(frozen=True)
class Case:
    """One named check; ``run(answer)`` raises AssertionError when the answer is wrong."""

    name: str
    run: Callable[[Any], None]
    points: float


@dataclass(frozen=True)
class Exercise:
    """An exercise: id, the name of the object that answers it, the lesson (file stem) it belongs to, and its cases."""

    id: str
    name: str
    lesson: str
    cases: list[Case] = field(default_factory=list)

    @property
    def points(self) -> float:
        """What a right answer earns."""
        return sum(c.points for c in self.cases)


@dataclass(frozen=True)
class Result:
    """Outcome of one case: PASSED, FAILED or NOT_ATTEMPTED, with a message for the learner."""

    case: str
    points: float
    max: float
    status: str
    message: str = ""


_exercises: dict[str, Exercise] = {}
_loaded: set[str] = set()


def exercise(id: str, *, name: str, lesson: str) -> Exercise:
    """Declare an exercise.

    Args:
        id: unique in the course, e.g. ``"ex-01-marginal"``.
        name: the object that answers it, unique in the lesson, e.g. ``"marginal"``.
        lesson: file stem of the lesson, e.g. ``"01_forward_and_reverse"``.

    Raises:
        ValueError: the id is taken, or the name within the lesson.
    """
    for other in _exercises.values():
        if other.id == id or (other.lesson, other.name) == (lesson, name):
            raise ValueError(f"exercise {id} ({name}, lesson {lesson}): {other.id} ({other.name}) is declared already")
    _exercises[id] = Exercise(id, name, lesson)
    return _exercises[id]


def case(id: str, name: str, points: float = 1.0) -> Callable[[Callable], Callable]:
    """Decorator that adds a case to a declared exercise.

    Raises:
        ValueError: the exercise is not declared, or has a case of that name.
    """

    def add(run: Callable[[Any], None]) -> Callable[[Any], None]:
        cases = _known(id, _exercises).cases
        if any(c.name == name for c in cases):
            raise ValueError(f"exercise {id} has a case {name!r} already")
        cases.append(Case(name, run, points))
        return run

    return add


def load(path: str | Path) -> None:
    """Load a checks module that is not part of the package (once)."""
    path = Path(path).resolve()
    if str(path) in _loaded:
        return
    spec = importlib.util.spec_from_file_location(f"minidiff_checks_{path.stem}", path)
    if spec is None or not path.is_file():
        raise ValueError(f"no checks module at {path}")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    _loaded.add(str(path))


def exercises(lesson: str | None = None) -> list[Exercise]:
    """All exercises, or those of one lesson, as declared; loads the packaged checks at the first call."""
    if "minidiff.course.checks" not in _loaded:
        package = importlib.import_module("minidiff.course.checks")
        for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__)):
            importlib.import_module(f"{package.__name__}.{module}")
        _loaded.add(package.__name__)
    return [e for e in _exercises.values() if lesson is None or e.lesson == lesson]


def find(id: str) -> Exercise:
    """The exercise of that id.

    Raises:
        ValueError: there is none; the nearest id is suggested.
    """
    return _known(id, {e.id: e for e in exercises()})


def _known(id: str, known: dict[str, Exercise]) -> Exercise:
    if id not in known:
        near = difflib.get_close_matches(str(id), known, 1, 0)
        raise ValueError(f"there is no exercise {id!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return known[id]


def run_case(case: Case, answer: Any) -> Result:
    """Run one case on an answer that already is what the case should see; never raises for a wrong answer."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        try:
            case.run(answer)
        except NotImplementedError:
            return Result(case.name, 0.0, case.points, NOT_ATTEMPTED, "not attempted yet")
        except Mistake as error:
            return Result(case.name, 0.0, case.points, FAILED, f"mistake recognised: {error}")
        except AssertionError as error:
            return Result(case.name, 0.0, case.points, FAILED, str(error) or "not what it should be")
        except Exception as error:  # a bug of the answer is a wrong answer, not a crash of the notebook
            return Result(case.name, 0.0, case.points, FAILED, f"{type(error).__name__}: {error}")
    return Result(case.name, case.points, case.points, PASSED)


def grade_answer(id: str, answer: Any) -> list[Result]:
    """Run every case of an exercise on an answer in this process; ``...`` counts as not attempted.

    Raises:
        ValueError: there is no such exercise.
    """
    from minidiff.course.grading.wire import loopback

    cases = find(id).cases
    if answer is ...:
        return [Result(c.name, 0.0, c.points, NOT_ATTEMPTED, "not attempted yet") for c in cases]
    try:
        seen = loopback(answer)
    except TypeError as error:
        return [Result(c.name, 0.0, c.points, FAILED, str(error)) for c in cases]
    return [run_case(c, seen) for c in cases]


def status(results: Iterable[Result]) -> str:
    """PASSED, PARTIAL, FAILED or NOT_ATTEMPTED, from the cases of one exercise."""
    seen = {r.status for r in results}
    if seen == {PASSED}:
        return PASSED
    return PARTIAL if PASSED in seen else NOT_ATTEMPTED if NOT_ATTEMPTED in seen else FAILED


def check(id: str, answer: Any) -> None:
    """Print the verdict on an answer, case by case.

    With ``MINIDIFF_STRICT=1`` in the environment (the tests of the course, nbgrader) a wrong answer raises
    AssertionError.

    Raises:
        ValueError: there is no such exercise.
    """
    if silent:
        return
    results = grade_answer(id, answer)
    verdict = status(results)
    if verdict == NOT_ATTEMPTED:
        print(f"{id}: not attempted")
    else:
        for r in results:
            print(f"PASS {r.case}" if r.status == PASSED else f"FAIL {r.case}: {r.message}")
        print(f"{id}: {sum(r.points for r in results):g} of {sum(r.max for r in results):g} points")
    if os.environ.get("MINIDIFF_STRICT") == "1" and verdict != PASSED:
        raise AssertionError(f"{id}: " + "; ".join(f"{r.case}: {r.message}" for r in results if r.status != PASSED))
