"""Every gate of the project; `make test` runs them all, `make test GATES="lint unit"` some.

Gates that do not keep two cores busy run two at a time, and what such a gate says is printed when it ends. A gate that
fails stops no other. At the end stand how long each gate and each lesson took, the slowest tests, and last how many
gates passed and how many failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tools import cache, run_lessons

Commands = tuple[tuple[str, ...], ...]
PARALLEL = ("-n", "2")
LONG_FIRST = ("--dist", "loadfile", "--no-loadscope-reorder")  # in the order of tests/conftest.py
TOGETHER = 2  # gates at a time
LESSONS = "lessons"
SLOWEST = 10
DRAW = int(time.time())  # which committed model is measured again; MINIDIFF_DRAW in the environment says another
EXERCISES = "tests/course/test_exercises.py"
ALARMS = ("tests/gates/test_alarms.py", "tests/gates/test_planted.py")
OTHER_GATES = ("tests/gates", "tests/lessons", "tests/book", EXERCISES)


@dataclass(frozen=True)
class Gate:
    """A name to call it by, what it makes sure of, and the commands that must all succeed.

    Attributes:
        alone: it keeps all cores busy by itself, so none runs beside it.
        after: gates that make what it reads; it begins when they have ended, if they run at all.
    """

    name: str
    ensures: str
    commands: Commands
    alone: bool = False
    after: tuple[str, ...] = ()


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
        "unit",
        "the package and the tools do what they say",
        pytest(*PARALLEL, *LONG_FIRST, "tests", *(f"--ignore={path}" for path in OTHER_GATES)),
        alone=True,
    ),
    Gate(LESSONS, "lessons run with their solutions", python("-m", "tools.run_lessons"), alone=True),
    Gate("book", "the book renders without a warning", python("-m", "tools.book"), after=(LESSONS,)),
    Gate("pages", "the pages work offline in a browser", pytest("tests/book"), after=("book",)),
    Gate(
        "exercises",
        "right answers pass, planted wrong ones fail, every case catches one",
        pytest(*PARALLEL, EXERCISES),
    ),
    Gate(
        "students",
        "student notebooks run to their end without the book's packages",
        pytest(*PARALLEL, "tests/lessons"),
        after=(LESSONS,),
    ),
    Gate("alarms", "planted faults are caught", pytest(*PARALLEL, *ALARMS)),
)


@dataclass(frozen=True)
class Result:
    """Whether a gate holds, when it began and ended, the seconds of each of its tests, and what it said if kept."""

    gate: Gate
    held: bool
    began: float
    ended: float
    tests: tuple[tuple[float, str], ...]
    said: str = ""

    @property
    def seconds(self) -> float:
        return self.ended - self.began


def run_all(gates: Iterable[Gate]) -> list[Result]:
    """The results, in the order of the gates; each that runs beside others speaks when it ends, at once and whole."""
    waiting, running, results = list(gates), {}, {}
    order = [gate.name for gate in waiting]
    live = lambda gate: gate.alone or len(order) == 1
    environment = cache.environment() | {"MINIDIFF_STRICT": "1"}
    environment.setdefault("MINIDIFF_DRAW", str(DRAW))
    environment.pop("MPLBACKEND", None)
    with ThreadPoolExecutor(TOGETHER) as pool:
        while waiting or running:
            while (gate := _next(waiting, list(running.values()))) is not None:
                waiting.remove(gate)
                print(heading(gate) if live(gate) else f"... {gate.name} begins", flush=True)
                running[pool.submit(run, gate, environment, not live(gate))] = gate
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                gate = running.pop(done)
                results[gate.name] = done.result()
                if not live(gate):
                    print(heading(gate), done.result().said, sep="\n", end="", flush=True)
    return [results[name] for name in order]


def _next(waiting: list[Gate], running: list[Gate]) -> Gate | None:
    """The first gate that may begin beside those that run: a lone one waits for the cores, and nobody overtakes it."""
    unfinished = {gate.name for gate in waiting + running}
    ready = next((gate for gate in waiting if not unfinished & set(gate.after)), None)
    if ready is None or len(running) >= TOGETHER or any(gate.alone for gate in running):
        return None
    return ready if not (ready.alone and running) else None


def heading(gate: Gate) -> str:
    return f"\n=== {gate.name}: {gate.ensures}"


def run(gate: Gate, environment: dict[str, str], keep: bool) -> Result:
    """Run the commands of a gate up to the first that fails; ``keep`` what they say, rather than let them say it."""
    began, said = time.monotonic(), []
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} if keep else {}
    with tempfile.TemporaryDirectory() as folder:
        report, held = Path(folder, "tests.xml"), True
        for command in gate.commands:
            words = _reporting(command, report)
            done = subprocess.run(words, cwd=cache.ROOT, env=environment, check=False, text=True, **streams)
            said.append(done.stdout or "")
            if not (held := done.returncode == 0):
                break
        return Result(gate, held, began, time.monotonic(), tuple(durations(report)), "".join(said))


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
    whole = max(result.ended for result in results) - min(result.began for result in results)
    yield f"{'':4}  {whole:6.0f} s  in all"
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
    results = run_all(gate for gate in GATES if not names or gate.name in names)
    print("", *summary(results), sep="\n")
    return 0 if all(result.held for result in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
