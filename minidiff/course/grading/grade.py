"""Grading hand-ins: which files, how many at a time, and what is written about them."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from minidiff.course.grading.book import GradeBook
from minidiff.course.grading.channel import Gone
from minidiff.course.grading.files import collect
from minidiff.course.grading.process import Referee, exposed
from minidiff.course.grading.wire import Peer, Remote

GRACE_S = 600.0  # what the referee may take beyond the hand-in's own limit: starting sandboxes, running the cases
DAY_S = 86_400.0
RANGES = {"time_limit_s": DAY_S, "case_limit_s": DAY_S, "memory_limit_mb": 1 << 20, "jobs": 1024}  # above 0, at most


class _Judge:
    """A referee, started when first needed, and anew when it ended or overran."""

    def __init__(self, denied: list[str], processor: int | None):
        self._denied, self._processor = denied, processor
        self._referee: Referee | None = None

    def grade(self, path: str, time_limit_s: float, options: dict) -> dict:
        """The result for one hand-in, also when the referee fails on it."""
        if self._referee is None:
            self._referee = Referee(self._denied, self._processor)
        channel = self._referee.channel
        channel.deadline = time.monotonic() + time_limit_s + GRACE_S
        try:
            return Remote(Peer(channel), 0)(path, time_limit_s=time_limit_s, **options)
        except (Gone, Exception) as error:
            output = self._referee.output
            self.stop()
            message = f"the referee failed on this hand-in ({error}) {output.text(1)[-1000:]}"
            return {
                **{
                    "handin": path,
                    "lesson": None,
                    "seed": options["seed"],
                    "status": "error",
                    "message": message,
                    "exercises": [],
                },
                **{"points": 0.0, "max": 0.0, "layers": [], "output": "", "seconds": 0.0},
            }

    def stop(self) -> None:
        """End the referee, if one is running."""
        if self._referee is not None:
            self._referee.stop()
        self._referee = None


def grade_paths(
    paths: Iterable[str | Path],
    out_csv: str | Path | None = None,
    out_json: str | Path | None = None,
    *,
    time_limit_s: float = 120.0,
    case_limit_s: float = 20.0,
    memory_limit_mb: int = 2048,
    jobs: int = 1,
    seed: int | None = None,
    checks: Iterable[str | Path] = (),
    progress: Callable[[dict], None] | None = None,
) -> list[dict]:
    """Grade hand-ins, each in a sandboxed process; whatever one does, the others are graded.

    The files are rewritten as each hand-in is known: a grading that is interrupted or killed loses none of those.

    Args:
        paths: notebooks, .py files, folders of them.
        out_csv: one row per hand-in and exercise.
        out_json: everything: cases, sandbox layers, times, what was printed.
        time_limit_s: for a hand-in, from the moment its process is ready.
        case_limit_s: for one case, or for fetching one answer.
        memory_limit_mb: for a hand-in, above what Python and torch take.
        jobs: hand-ins graded at the same time.
        seed: of the inputs that the cases draw, the same for all hand-ins; drawn anew when left out.
        checks: checks modules besides the packaged ones.
        progress: called with each result, in the order in which they are done.

    Returns:
        One dict per hand-in: ``handin``, ``lesson``, ``seed``, ``status`` ("graded" or "error"), ``message``,
        ``points``, ``max``, ``seconds``, ``layers`` (of isolation that were active), ``output`` and ``exercises``, a
        list of dicts with ``id``, ``name``, ``points``, ``max``, ``message``, ``cases`` and ``status``: "passed",
        "partial", "failed", "not attempted", "missing" (nothing of that name) or "stopped" (it ended its process, or
        took too long).

    Warns:
        RuntimeWarning: the system lacks a layer without which a hostile hand-in is not held (macOS, old kernels).

    Raises:
        ValueError: for paths that are no hand-ins, limits outside their range, output files that cannot be written
            or that would overwrite a hand-in or each other, or on Windows.
        OSError: a file cannot be written any more, after all have been graded; the message says where it is instead.
    """
    limits = {
        "time_limit_s": time_limit_s,
        "case_limit_s": case_limit_s,
        "memory_limit_mb": memory_limit_mb,
        "jobs": jobs,
    }
    for name, value in limits.items():
        if not 0 < value <= RANGES[name]:
            raise ValueError(f"{name} must be above 0 and at most {RANGES[name]:g}, got {value!r}")
    files = collect(paths)
    book = GradeBook(out_csv, out_json, files)
    options = {
        "checks": [str(Path(module).resolve()) for module in checks],
        "seed": secrets.randbelow(1 << 31) if seed is None else int(seed),
        "case_limit_s": float(case_limit_s),
        "memory_limit_mb": int(memory_limit_mb),
    }
    results = _grade_all(files, min(int(jobs), len(files)), float(time_limit_s), options, book, progress)
    if weak := weaknesses(results):
        warnings.warn(f"weak isolation: {weak}; grade here only hand-ins that you trust", RuntimeWarning, stacklevel=2)
    book.finish(results)
    return results


def _grade_all(
    files: list[Path],
    jobs: int,
    time_limit_s: float,
    options: dict,
    book: GradeBook,
    progress: Callable[[dict], None] | None,
) -> list[dict]:
    denied = exposed([*files, *options["checks"]])
    judges = [_Judge(denied, i if jobs > 1 else None) for i in range(jobs)]
    idle: SimpleQueue[_Judge] = SimpleQueue()
    for judge in judges:
        idle.put(judge)
    known: dict[Path, dict] = {}
    lock, interrupted = threading.Lock(), threading.Event()

    def one(path: Path) -> None:
        judge = idle.get()
        try:
            result = judge.grade(str(path.resolve()), time_limit_s, options) | {"handin": str(path)}
        finally:
            idle.put(judge)
        with lock:
            if interrupted.is_set():
                return  # its referee was ended under it, which is no verdict
            known[path] = result
            with contextlib.suppress(OSError):  # the last time of writing tells
                book.write([known[file] for file in files if file in known])
            if progress is not None:
                progress(result)

    with ThreadPoolExecutor(jobs) as pool, contextlib.ExitStack() as stack:
        for judge in judges:
            stack.callback(judge.stop)
        stack.callback(interrupted.set)
        list(pool.map(one, files))
    return [known[file] for file in files]


def weaknesses(results: list[dict]) -> str:
    """What the system did not offer to shut hand-ins in with, in words; empty where all is well."""
    needed = {"Landlock": "C code can read and write files (Linux 5.13 or later has it)", "seccomp": "C code can fork"}
    seen = [" ".join(r["layers"]) for r in results if r["layers"]]
    return "; ".join(f"no {name}: {what}" for name, what in needed.items() if any(name not in s for s in seen))
