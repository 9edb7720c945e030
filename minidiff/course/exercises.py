"""Exercises: a registry of named checks, used by the notebook, by the tests of the course and by ``minidiff grade``.

A checks module (``minidiff/course/checks/l01_forward_and_reverse.py``) declares exercises and their cases::

    exercise("ex-01-marginal", name="marginal", lesson="01_forward_and_reverse", form=call(tensor("x0"), sample))

    @case("ex-01-marginal", "mean-is-alpha-x0")
    def _(answer, rng):
        x0 = normal(rng, 3, 2)
        expect(answer(x0, level, 0 * x0), level.alpha * x0, "without noise only alpha x_0 is left")

The first case of every exercise is "form" (:mod:`minidiff.course.forms`), worth nothing. Cases run in order; those that
assume one that failed are not run. A case sees the answer through its form and through
:mod:`minidiff.course.grading.wire`: it passes and gets plain values (numbers, strings, tensors, lists, tuples, dicts,
noise levels, predictions, exact denoisers, functions), and never differentiates through it.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minidiff.course.outcomes import Mistake, NotAttempted

if TYPE_CHECKING:
    from torch import Generator

    from minidiff.course.forms import Form

PASSED, PARTIAL, FAILED, NOT_ATTEMPTED, NOT_RUN = "passed", "partial", "failed", "not attempted", "not run"
SEED = 0  # of the inputs that check() draws
FORM = "form"  # the name of every exercise's first case

silent = False  # True in the process that runs a hand-in: its own check() calls neither run nor count


@dataclass(frozen=True)
class Case:
    """One named check; ``run(answer, rng)`` raises AssertionError when the answer is wrong."""

    name: str
    run: Callable[[Any, Generator], None]
    points: float
    assumes: tuple[str, ...] = ()  # the cases without which this one says nothing


@dataclass(frozen=True)
class Exercise:
    """An exercise: id, the name of the object that answers it, the lesson (file stem), its cases, the answer's form."""

    id: str
    name: str
    lesson: str
    cases: list[Case] = field(default_factory=list)
    form: Form | None = None

    @property
    def points(self) -> float:
        """What a right answer earns."""
        return sum(c.points for c in self.cases)


@dataclass(frozen=True)
class Result:
    """Outcome of one case: PASSED, FAILED, NOT_ATTEMPTED or NOT_RUN, with a message for the learner."""

    case: str
    points: float
    max: float
    status: str
    message: str = ""


_exercises: dict[str, Exercise] = {}
_loaded: set[str] = set()


def exercise(id: str, *, name: str, lesson: str, form: Form | None = None) -> Exercise:
    """Declare an exercise.

    Args:
        id: unique in the course, e.g. ``"ex-01-marginal"``.
        name: the object that answers it, unique in the lesson, e.g. ``"marginal"``.
        lesson: file stem of the lesson, e.g. ``"01_forward_and_reverse"``.
        form: what the answer must be, before its values are judged; anything but None when left out.

    Raises:
        ValueError: the id is taken, or the name within the lesson.
    """
    from minidiff.course.forms import anything

    for other in _exercises.values():
        if other.id == id or (other.lesson, other.name) == (lesson, name):
            raise ValueError(f"exercise {id} ({name}, lesson {lesson}): {other.id} ({other.name}) is declared already")
    form = form or anything()
    _exercises[id] = Exercise(id, name, lesson, [Case(FORM, form.probe, 0.0)], form)
    return _exercises[id]


def case(
    id: str, name: str, points: float = 1.0, assumes: Iterable[str] | None = None
) -> Callable[[Callable], Callable]:
    """Decorator that adds a case to a declared exercise: a function of the answer, and of a generator if it draws.

    Args:
        id: the exercise.
        name: unique in the exercise.
        points: what it is worth; nothing where an answer without thought passes it.
        assumes: the cases before it without which it says nothing: where one of them fails, this one is not run. By
            default all that are declared before it. The form is always assumed.

    Raises:
        ValueError: the exercise is not declared, has a case of that name, or has none that is assumed.
    """

    def add(run: Callable) -> Callable:
        cases = _known(id, _exercises).cases
        before = [c.name for c in cases]
        if name in before:
            raise ValueError(f"exercise {id} has a case {name!r} already")
        needed = tuple(before if assumes is None else (FORM, *assumes))
        if not set(needed) <= set(before):
            raise ValueError(f"case {name!r} of {id} assumes {needed}, but before it are {before}")
        draws = len(inspect.signature(run).parameters) > 1
        cases.append(Case(name, run if draws else lambda answer, rng: run(answer), points, needed))
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


def run_cases(
    exercise: Exercise, answer: Any, seed: int = SEED, limited: Callable[[], AbstractContextManager] = nullcontext
) -> Iterator[Result]:
    """Run the cases in order on an answer that came through the wire; never raises for a wrong answer.

    Args:
        exercise: what it answers.
        answer: the answer.
        seed: of the inputs that cases draw, and of torch's own generator.
        limited: a context in which to run each case.
    """
    stopped: dict[str, str] = {}  # case -> the failed one for which it, or what it assumes, did not come to an end
    said: dict[str, str] = {}
    for case in exercise.cases:
        first = next((stopped[name] for name in case.assumes if name in stopped), None)
        if first is not None:
            stopped[case.name] = first
            yield Result(case.name, 0.0, case.points, NOT_RUN, f"{first} comes first")
            continue
        with limited():
            status, message = _outcome(exercise, case, answer, seed)
        if status != PASSED:
            stopped[case.name] = case.name
            message = f"the same as in {said[message]}" if message in said else message
            said.setdefault(message, case.name)
        yield Result(case.name, case.points if status == PASSED else 0.0, case.points, status, message)


def _outcome(exercise: Exercise, case: Case, answer: Any, seed: int) -> tuple[str, str]:
    """Status and message of one case; its random numbers depend on the seed and its name alone."""
    import torch

    from minidiff.course.forms import ANSWER
    from minidiff.random import sample_generators

    (rng,) = sample_generators(seed, [f"{exercise.id}/{case.name}"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.initial_seed())
        try:
            case.run(exercise.form.see(answer, {}, ANSWER), rng)
        except NotAttempted:
            return NOT_ATTEMPTED, "not attempted yet"
        except Exception as error:  # a bug of the answer is a wrong answer, not a crash of the notebook
            return FAILED, _explained(error)
    return PASSED, ""


def _explained(error: Exception) -> str:
    """What went wrong: the judgement of a case, or the answer's own exception and its line."""
    line = getattr(error, "own_line", None)  # the wire notes it where an exception is the answer's
    if line is None and isinstance(error, AssertionError):
        return ("mistake recognised: " if isinstance(error, Mistake) else "") + (str(error) or "not what it should be")
    kind = "" if type(error).__name__ == "AnswerError" else f"{type(error).__name__}: "  # its text begins with the kind
    return f"{kind}{error}" + (f" ({line})" if line else "")


def grade_answer(id: str, answer: Any, seed: int = SEED) -> list[Result]:
    """Run every case of an exercise on an answer in this process; ``...`` counts as not attempted.

    Raises:
        ValueError: there is no such exercise.
    """
    from minidiff.course.grading.wire import loopback

    exercise = find(id)
    all_cases = lambda status, text: [Result(c.name, 0.0, c.points, status, text) for c in exercise.cases]
    if answer is ...:
        return all_cases(NOT_ATTEMPTED, "not attempted yet")
    try:
        seen = loopback(answer)
    except TypeError as error:
        return all_cases(FAILED, str(error))
    return list(run_cases(exercise, seen, seed))


def status(results: Iterable[Result]) -> str:
    """PASSED, PARTIAL, FAILED or NOT_ATTEMPTED, from the cases of one exercise; one worth nothing makes no part."""
    results = list(results)
    seen = {r.status for r in results}
    if seen == {PASSED}:
        return PASSED
    if any(r.points for r in results):
        return PARTIAL
    return NOT_ATTEMPTED if NOT_ATTEMPTED in seen else FAILED


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
            mark = {PASSED: "PASS", NOT_RUN: "----"}.get(r.status, "FAIL")
            print(f"{mark} {r.case}" + {PASSED: "", NOT_RUN: f": not run, {r.message}"}.get(r.status, f": {r.message}"))
        print(f"{id}: {sum(r.points for r in results):g} of {sum(r.max for r in results):g} points")
    if os.environ.get("MINIDIFF_STRICT") == "1" and verdict != PASSED:
        raise AssertionError(f"{id}: {faults(results)}")


def faults(results: Iterable[Result]) -> str:
    """What the cases say that ran and did not pass, in one line."""
    return "; ".join(f"{r.case}: {r.message}" for r in results if r.status not in (PASSED, NOT_RUN))
