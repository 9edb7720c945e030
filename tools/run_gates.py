"""Every gate of the project, one after the other; `make test` runs them all, `make test GATES="style unit"` some.

A gate that fails does not stop the next. The last line says how many passed and how many failed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass

from tools import cache

Commands = tuple[tuple[str, ...], ...]
PARALLEL = ("-n", "2")
EXERCISES = "tests/course/test_exercises.py"
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
        "equations are claimed, figures have alt text, every exercise is complete",
        pytest(*PARALLEL, "tests/gates", "--ignore=tests/gates/test_alarms.py"),
    ),
    Gate(
        "exercises",
        "right answers pass, planted wrong ones fail, every case catches one",
        pytest(*PARALLEL, EXERCISES),
    ),
    Gate("lessons", "lessons run with their solutions", pytest(*PARALLEL, "tests/lessons", "-k", "nbval")),
    Gate(
        "students",
        "student notebooks run to their end without the book's packages",
        pytest(*PARALLEL, "tests/lessons", "-k", "not nbval"),
    ),
    Gate("book", "the book renders without a warning", python("-m", "tools.book")),
    Gate("alarms", "planted faults are caught", pytest(*PARALLEL, "tests/gates/test_alarms.py")),
    Gate("pages", "the pages work offline in a browser", pytest("tests/book")),
)


def run(gate: Gate) -> tuple[bool, float]:
    """Whether the gate holds, and the seconds it took."""
    print(f"\n=== {gate.name}: {gate.ensures}", flush=True)
    began = time.monotonic()
    environment = cache.environment() | {"MINIDIFF_STRICT": "1"}
    environment.pop("MPLBACKEND", None)
    held = all(
        subprocess.run(command, cwd=cache.ROOT, env=environment, check=False).returncode == 0
        for command in gate.commands
    )
    return held, time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", metavar="GATE", help=f"one of {', '.join(g.name for g in GATES)}; all when none"
    )
    names = parser.parse_args().names
    if unknown := set(names) - {g.name for g in GATES}:
        parser.error(f"no gate {', '.join(sorted(unknown))}; the gates are {', '.join(g.name for g in GATES)}")
    results = [(gate, *run(gate)) for gate in GATES if not names or gate.name in names]
    print()
    for gate, held, seconds in results:
        print(f"{'ok  ' if held else 'FAIL'}  {seconds:6.0f} s  {gate.name:10}  {gate.ensures}")
    failed = sum(not held for _, held, _ in results)
    print(f"{'':4}  {sum(seconds for *_, seconds in results):6.0f} s  in all")
    print(f"{len(results) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
