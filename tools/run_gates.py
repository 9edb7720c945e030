"""Every gate of the project, one after the other; `make test` runs them all, `make test GATES="style unit"` some.

A gate that fails does not stop the next. At the end stand how long each gate and each lesson took, the slowest tests,
and last how many gates passed and how many failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tools import cache, run_lessons

Commands = tuple[tuple[str, ...], ...]
PARALLEL = ("-n", "2")
LESSONS = "lessons"
SLOWEST = 10
DRAW = int(time.time())  # which committed model is measured again; MINIDIFF_DRAW in the environment says another
EXERCISES = "tests/course/test_exercises.py"
ALARMS = ("tests/gates/test_alarms.py", "tests/gates/test_planted.py")
OTHER_GATES = ("tests/gates", "tests/lessons", "tests/book", EXERCISES)


@dataclass(frozen=True)
class Gate:
    """A name to call it by, what it makes sure of, and the commands that must all succeed."""

    name: str
    ensures: str
    commands: Commands


def python(*words: str) -> Commands:
    return ((sys.executable, *words),)


def pytest(*words: str) -> Commands:
    return python("-m", "pytest", *words)


GATES = (
    Gate(
        "lint",
        "code has one style",
        python("-m", "ruff", "check", ".") + python("-m", "ruff", "format", "--check", "."),
    ),
    Gate(
        "unit",
        "the package and the tools do what they say",
        pytest(*PARALLEL, "--dist", "loadfile", "tests", *(f"--ignore={path}" for path in OTHER_GATES)),
    ),
    Gate(
        "notebooks",
        "student notebooks are what the lessons make",
        python("tools/notebooks.py", "--check"),
    ),
    Gate(
        "sources",
        "equations are claimed, numbers measured, sources and links real, exercises complete",
        pytest(*PARALLEL, "tests/gates", *(f"--ignore={path}" for path in ALARMS)),
    ),
    Gate(
        "exercises",
        "right answers pass, planted wrong ones fail, every case catches one",
        pytest(*PARALLEL, EXERCISES),
    ),
    Gate(LESSONS, "lessons run with their solutions", python("-m", "tools.run_lessons")),
    Gate(
        "students",
        "student notebooks run to their end without the book's packages",
        pytest(*PARALLEL, "tests/lessons"),
    ),
    Gate("book", "the book renders without a warning", python("-m", "tools.book")),
    Gate("alarms", "planted faults are caught", pytest(*PARALLEL, *ALARMS)),
    Gate("pages", "the pages work offline in a browser", pytest("tests/book")),
)


@dataclass(frozen=True)
class Result:
    """Whether a gate holds, the seconds it took, and the seconds of each of its tests."""

    gate: Gate
    held: bool
    seconds: float
    tests: tuple[tuple[float, str], ...]


def run(gate: Gate) -> Result:
    print(f"\n=== {gate.name}: {gate.ensures}", flush=True)
    began = time.monotonic()
    environment = cache.environment() | {"MINIDIFF_STRICT": "1"}
    environment.setdefault("MINIDIFF_DRAW", str(DRAW))
    environment.pop("MPLBACKEND", None)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "tests.xml")
        held = all(
            subprocess.run(_reporting(command, report), cwd=cache.ROOT, env=environment, check=False).returncode == 0
            for command in gate.commands
        )
        return Result(gate, held, time.monotonic() - began, tuple(durations(report)))


def _reporting(command: tuple[str, ...], report: Path) -> tuple[str, ...]:
    return (*command, f"--junitxml={report}") if command[1:3] == ("-m", "pytest") else command


def durations(report: Path) -> Iterator[tuple[float, str]]:
    """Seconds and name of every test in pytest's report; of none when there is no report."""
    if report.exists():
        for test in ElementTree.parse(report).iter("testcase"):
            yield float(test.get("time", 0)), f"{test.get('classname', '').replace('.', '/')}.py::{test.get('name')}"


def summary(results: list[Result]) -> Iterator[str]:
    """What stands at the end, line by line."""
    for result in results:
        held = "ok  " if result.held else "FAIL"
        yield f"{held}  {result.seconds:6.0f} s  {result.gate.name:10}  {result.gate.ensures}"
    yield f"{'':4}  {sum(result.seconds for result in results):6.0f} s  in all"
    if any(result.gate.name == LESSONS for result in results):
        yield "\nThe lessons, when they ran:"
        yield from (f"{'':4}  {seconds:6.0f} s  {name}" for name, seconds in run_lessons.times().items())
    tests = [(seconds, name, result.gate.name) for result in results for seconds, name in result.tests]
    if tests:
        yield "\nThe slowest tests:"
        for seconds, name, gate in sorted(tests, reverse=True)[:SLOWEST]:
            yield f"{'':4}  {seconds:6.1f} s  {gate:10}  {name}"
    failed = sum(not result.held for result in results)
    yield f"\n{len(results) - failed} passed, {failed} failed"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", metavar="GATE", help=f"one of {', '.join(g.name for g in GATES)}; all when none"
    )
    names = parser.parse_args().names
    if unknown := set(names) - {g.name for g in GATES}:
        parser.error(f"no gate {', '.join(sorted(unknown))}; the gates are {', '.join(g.name for g in GATES)}")
    print(f"MINIDIFF_DRAW={os.environ.get('MINIDIFF_DRAW', DRAW)} measures the same model again")
    results = [run(gate) for gate in GATES if not names or gate.name in names]
    print("", *summary(results), sep="\n")
    return 0 if all(result.held for result in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
