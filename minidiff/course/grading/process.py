"""Starting and ending the two kinds of process that grading uses: the referee and the sandboxed worker."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

import minidiff
from minidiff.course.grading import sandbox
from minidiff.course.grading.channel import Channel

PACKAGE = Path(minidiff.__file__).resolve().parent
ROOT = PACKAGE.parent  # the repository, or site-packages
IN_REPOSITORY = (ROOT / "pyproject.toml").exists()
REFERENCES = ("lessons", "tests", "tools", "notebooks", "book", "build", "_build", ".git")  # in the repository
OUTPUT_BYTES = 20_000  # kept of what a process prints


def import_path() -> list[str]:
    """``sys.path`` without the current folder: hand-ins may lie there, and one may be called ``torch.py``."""
    here = os.path.realpath(os.getcwd())
    entries = [os.path.realpath(entry) for entry in sys.path if entry]
    return [entry for entry in dict.fromkeys(entries) if entry not in (here, str(ROOT))] + [str(ROOT)]


def policy() -> tuple[list[str], list[str]]:
    """What a hand-in may read and what it may only list: Python, its packages and minidiff, never a reference answer.

    A list of what is allowed: solutions, other hand-ins and the grader's home need no naming.
    """
    denied = [PACKAGE / "course/checks", *(ROOT / name for name in REFERENCES if IN_REPOSITORY)]
    entries = [entry for entry in import_path() if not (IN_REPOSITORY and entry == str(ROOT))]
    library = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    prefixes = [
        f"{p}/{name}" for p in {sys.prefix, sys.base_prefix} for name in ("lib", "lib64", "share", "pyvenv.cfg")
    ]
    own = [str(PACKAGE), str(ROOT / "data") if IN_REPOSITORY else "", os.environ.get("MINIDIFF_DATA", "")]
    readable, listable = [], []
    for entry in dict.fromkeys([*entries, *library, *prefixes, *own, *sandbox.SYSTEM]):
        if entry and os.path.exists(entry):
            read, listed = sandbox.except_below(entry, denied)
            readable += read
            listable += listed
    return list(dict.fromkeys(readable)), list(dict.fromkeys(listable))


class Process:
    """A Python process at the other end of a channel, in a session of its own, its prints kept up to a limit."""

    def __init__(self, command: list[str], config: dict, folder: str, environment: dict[str, str]):
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        config = config | {"read_fd": theirs_in, "write_fd": theirs_out, "path": import_path()}
        self._process = subprocess.Popen(
            [sys.executable, *command, json.dumps(config)],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.channel = Channel(ours_in, ours_out)
        self._output = bytearray()
        self._reader = threading.Thread(target=self._drain, daemon=True)
        self._reader.start()

    def _drain(self) -> None:
        with contextlib.suppress(ValueError, OSError):  # closed by stop()
            while part := os.read(self._process.stdout.fileno(), 1 << 16):
                self._output += part[: OUTPUT_BYTES - len(self._output)]

    @property
    def output(self) -> str:
        """The beginning of what it printed."""
        return bytes(self._output).decode(errors="replace")

    def stop(self) -> int:
        """End it and all it started; returns its exit code (negative: the number of the signal)."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.2)  # it may be ending by itself: keep its own exit code
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.terminate()  # the supervisor then kills every descendant
            self._process.wait(3)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        code = self._process.wait()
        self._reader.join(1)
        self.channel.close()
        self._process.stdout.close()
        return code if code <= 128 else 128 - code
