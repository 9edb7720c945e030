"""The judging side for one hand-in at a time: runs the cases on the answers of a sandboxed process.

A process of its own, so that nothing an answer returns (a tensor that a case then multiplies to gigabytes, a list
that it walks for hours) can take the grading of the whole class down.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from minidiff.course import exercises
from minidiff.course.exercises import FAILED, NOT_ATTEMPTED, Exercise, NotAttempted, Result
from minidiff.course.grading import kernel
from minidiff.course.grading.channel import Channel, Gone, Malformed
from minidiff.course.grading.formats import HandIn, read
from minidiff.course.grading.handin import detect_lesson
from minidiff.course.grading.process import START_LIMIT_S, Nursery, Sandboxed
from minidiff.course.grading.wire import Peer, Remote

STOPPED, MISSING, ERROR = "stopped", "missing", "error"
OUTPUT_LENGTH = 20_000  # kept of what a hand-in prints
MAX_STARTS = 6  # a hand-in is started anew after an answer that ended its process
OWN_S = 60.0  # of one case, beyond what the hand-in may take: what it sent may make the case itself slow
MEMORY_MB = 8192  # of this process, above what is in use when it starts


class Running:
    """A hand-in being executed in a sandbox; every dealing with it is paid from a budget of seconds."""

    def __init__(
        self, nursery: Nursery, hand_in: HandIn, answers: list[str], time_limit_s: float, memory_limit_mb: int
    ):
        self._nursery = nursery
        self._hand_in, self._answers, self._memory = hand_in, answers, memory_limit_mb
        self._budget, self._starts, self._process = time_limit_s, 0, None
        self._hopeless: Gone | None = None
        self.layers: list[str] = []
        self.output = ""

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    @contextlib.contextmanager
    def limited(self, seconds: float):
        """Deal with the process for at most so long, within the budget."""
        begun, seconds = time.monotonic(), min(seconds, self._budget)
        self._process.channel.deadline = begun + seconds
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 0) + OWN_S)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._budget -= time.monotonic() - begun

    def ensure_started(self) -> None:
        """Start the process and execute the hand-in, unless that has been done; Gone when it does not survive."""
        if self._process is not None:
            return
        if self._hopeless is not None:
            raise self._hopeless
        if self._starts == MAX_STARTS or self._budget <= 0:
            raise Gone("has used up its time")
        self._starts += 1
        self._process = Sandboxed(self._nursery, self._memory, cpu_seconds=int(self._budget) + 5)
        self._process.channel.deadline = time.monotonic() + START_LIMIT_S
        peer = Peer(self._process.channel)
        ready, load, self.get, self.seed = (Remote(peer, i) for i in range(4))
        try:
            self.layers = ready()
        except Gone as gone:
            self.stop()
            raise RuntimeError(f"the sandbox did not start: it {gone} {self.output[-1000:]}") from gone
        try:
            with self.limited(self._budget):
                self.errors = load([[b.source, list(b.tags)] for b in self._hand_in.blocks], self._answers)
            if not isinstance(self.errors, dict):
                raise Malformed("sent a message of the wrong shape")
        except Exception as error:  # ours raises nothing
            self._hopeless = Malformed("sent an error for an answer")
            raise self._hopeless from error
        except Gone as gone:  # it does not survive being executed: no use in starting it again
            self._hopeless = Gone(self.why(gone).removeprefix("the hand-in "))
            raise self._hopeless from gone

    def stop(self) -> int | None:
        """End the process, if one is running; returns its exit code."""
        if self._process is None:
            return None
        code, output = self._process.stop()
        self.output = (self.output + output)[:OUTPUT_LENGTH]
        self._process = None
        return code

    def why(self, gone: Gone) -> str:
        """End what is left and say what happened, for the report."""
        code = self.stop()
        if str(gone) != "ended" or code is None:
            return f"the hand-in {gone}"
        return f"the hand-in ended its process ({f'exit code {code}' if code <= 128 else f'signal {code - 128}'})"


def _row(exercise: Exercise, results: list[Result], status: str | None = None, message: str = "") -> dict:
    done = {r.case: r for r in results}
    status = status or exercises.status(results)
    rest = NOT_ATTEMPTED if status == NOT_ATTEMPTED else FAILED
    cases = [done.get(c.name, Result(c.name, 0.0, c.points, rest, message)) for c in exercise.cases]
    return {
        "id": exercise.id,
        "name": exercise.name,
        "points": sum(r.points for r in cases),
        "max": exercise.points,
        "status": status,
        "message": message or ("" if status == NOT_ATTEMPTED else exercises.faults(cases)),
        "cases": [asdict(r) for r in cases],
    }


def _grade_exercise(exercise: Exercise, running: Running, case_limit_s: float, seed: int) -> dict:
    results: list[Result] = []

    @contextlib.contextmanager
    def limited():
        with running.limited(case_limit_s):
            running.seed()
            yield

    try:
        running.ensure_started()
        try:
            with running.limited(case_limit_s):
                answer = running.get(exercise.name)
        except NotAttempted:
            return _row(exercise, [], NOT_ATTEMPTED)
        except LookupError as error:
            kind, text = _error_of(running.errors, exercise.name)
            if kind == "NotAttempted":
                return _row(exercise, [], NOT_ATTEMPTED)
            return _row(exercise, [], MISSING, f"{kind}: {text}".removesuffix(": ") if kind else str(error))
        except Exception as error:
            return _row(exercise, [], FAILED, str(error))
        for result in exercises.run_cases(exercise, answer, seed, limited):
            results.append(result)
        return _row(exercise, results)
    except Gone as gone:
        return _row(exercise, results, STOPPED, running.why(gone))


def _error_of(errors: dict, name: str) -> tuple[str, str]:
    error = errors.get(name)
    if isinstance(error, list) and len(error) == 3 and all(isinstance(part, str) for part in error):
        kind, text, line = error
        return kind or "error", text + (f" ({line})" if line else "")
    return "", ""


def grade_one(
    nursery: Nursery,
    path: str,
    checks: list[str],
    time_limit_s: float,
    case_limit_s: float,
    memory_limit_mb: int,
    seed: int,
) -> dict:
    """Grade one hand-in; see :func:`minidiff.course.grading.grade_paths` for the arguments and the result."""
    begun = time.monotonic()
    for module in checks:
        exercises.load(module)
    names: dict[str, dict[str, str]] = {}
    for exercise in exercises.exercises():
        names.setdefault(exercise.lesson, {})[exercise.id] = exercise.name
    report = {"handin": path, "lesson": None, "seed": seed, "status": "graded", "message": "", "exercises": []}
    try:
        hand_in = read(Path(path))
        report["lesson"] = detect_lesson(hand_in, Path(path), names)
    except (ValueError, OSError) as error:
        return _finished(report | {"status": ERROR, "message": str(error)}, begun)
    answers = list(names[report["lesson"]].values())
    with Running(nursery, hand_in, answers, time_limit_s, memory_limit_mb) as running:
        for exercise in exercises.exercises(report["lesson"]):
            report["exercises"].append(_grade_exercise(exercise, running, case_limit_s, seed))
    return _finished(report | {"layers": running.layers, "output": running.output}, begun)


def _finished(report: dict, begun: float) -> dict:
    return {
        **{"layers": [], "output": ""},
        **report,
        "points": sum(e["points"] for e in report["exercises"]),
        "max": sum(e["max"] for e in report["exercises"]),
        "seconds": round(time.monotonic() - begun, 2),
    }


def _overran(*_) -> None:
    raise Gone("took too long")


def main(config: dict) -> None:
    """Grade what the orchestrating process asks for, until it hangs up."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that a sandbox and its folder are cleaned up
    signal.signal(signal.SIGALRM, _overran)
    kernel.die_with_parent(signal.SIGTERM)
    if sys.platform.startswith("linux"):
        status = Path("/proc/self/status").read_text()
        used = int(status.split("VmData:")[1].split()[0]) << 10
        resource.setrlimit(resource.RLIMIT_DATA, (used + (MEMORY_MB << 20),) * 2)
    nursery = Nursery(config["denied"], config["processor"])
    try:
        Peer(Channel(config["read_fd"], config["write_fd"]), partial(grade_one, nursery)).serve()
    except Gone:
        pass  # nothing more to grade
    finally:
        nursery.stop()
