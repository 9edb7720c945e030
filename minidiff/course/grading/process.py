"""Starting and ending processes: Python with a channel (the referee), and hand-ins through a nursery."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

import minidiff
from minidiff.course.grading import sandbox
from minidiff.course.grading.channel import Channel

PACKAGE = Path(minidiff.__file__).resolve().parent
ROOT = PACKAGE.parent  # the repository, or site-packages
IN_REPOSITORY = (ROOT / "pyproject.toml").exists()
REFERENCES = ("lessons", "tests", "tools", "notebooks", "book", "build", "_build", ".git")  # in the repository
_LIBS, _SHARED = ("lib", "lib64"), ("share", "pyvenv.cfg")  # of an installation of Python
KEPT_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
OUTPUT_BYTES = 20_000  # kept of what a process prints
START_LIMIT_S = 180.0  # importing torch on a busy machine


def libraries() -> list[str]:
    """The entries of ``sys.path`` that installers write to; any other may be a checkout, or where hand-ins lie."""
    named = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    named |= {str(Path(module.__file__).parents[1]) for module in (np, torch)}  # wherever else packages were put
    named = {os.path.realpath(path) for path in named}
    entries = dict.fromkeys(os.path.realpath(entry) for entry in sys.path if entry)
    return [e for e in entries if e in named or _is_standard(e) or Path(e).name in ("site-packages", "dist-packages")]


def _is_standard(entry: str) -> bool:
    standard = {os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}
    return entry in standard | {f"{folder}/lib-dynload" for folder in standard}


def import_path() -> list[str]:
    """``sys.path`` of our processes: Python's own modules, this very minidiff, installed packages; nothing else.

    Another minidiff on the path would bring other checks; the current folder may hold a hand-in called ``torch.py``.
    """
    found = libraries()
    standard = [entry for entry in found if _is_standard(entry)]
    return list(dict.fromkeys([*standard, str(ROOT), *found]))


def references(path: Iterable[str]) -> list[str]:
    """Where the copies of minidiff that lie on a path keep what no hand-in may see: checks and solutions."""
    places = [
        Path(entry or ".").resolve() / inside for entry in path for inside in ("minidiff/course/checks", "lessons")
    ]
    return [str(place) for place in dict.fromkeys(places) if place.exists()]


def policy(denied: Iterable[str | Path] = ()) -> tuple[list[str], list[str]]:
    """What a hand-in may read and what it may only list: Python, its packages and minidiff, never a reference answer.

    A list of what is allowed: other hand-ins and the grader's home need no naming.

    Args:
        denied: what must not be readable although it lies in a folder that is.
    """
    roots = [Path(prefix, lib) for prefix in (sys.prefix, sys.base_prefix, "/usr", "/usr/local") for lib in _LIBS]
    elsewhere = [str(packages) for root in roots for packages in root.glob("python*/*-packages")]
    denied = [*denied, PACKAGE / "course/checks", *references([*sys.path, *elsewhere])]
    denied += [ROOT / name for name in REFERENCES if IN_REPOSITORY]
    prefixes = [f"{prefix}/{name}" for prefix in (sys.prefix, sys.base_prefix) for name in (*_LIBS, *_SHARED)]
    own = [str(PACKAGE), str(ROOT / "data") if IN_REPOSITORY else "", os.environ.get("MINIDIFF_DATA", "")]
    readable, listable = [], []
    for entry in dict.fromkeys([*libraries(), *prefixes, *own, *sandbox.SYSTEM]):
        if entry and os.path.exists(entry):
            read, listed = sandbox.except_below(entry, denied)
            readable += read
            listable += listed
    return list(dict.fromkeys(readable)), list(dict.fromkeys(listable))


def exposed(paths: Iterable[str | Path]) -> list[str]:
    """Those of some paths that a hand-in could read, were they not denied."""
    readable, _ = policy()
    return [real for real in map(os.path.realpath, paths) if any(sandbox.within(real, folder) for folder in readable)]


def scrubbed_environment(folder: str) -> dict[str, str]:
    """Nothing of the grader's environment but library paths: it may hold tokens."""
    own = {name: folder for name in ("HOME", "TMPDIR", "MPLCONFIGDIR", "XDG_CACHE_HOME")}
    one_thread = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
    fixed = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    fixed |= {"MPLBACKEND": "agg", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    if "MINIDIFF_DATA" in os.environ:
        fixed["MINIDIFF_DATA"] = os.path.realpath(os.environ["MINIDIFF_DATA"])  # where a hand-in sees it
    return {**own, **one_thread, **fixed, **{k: os.environ[k] for k in KEPT_VARIABLES if k in os.environ}}


class _Output:
    """Reads what a process prints until it ends, so that it never has to wait, and keeps the beginning."""

    def __init__(self, fd: int):
        self._kept = bytearray()
        self._thread = threading.Thread(target=self._drain, args=(fd,), daemon=True)
        self._thread.start()

    def _drain(self, fd: int) -> None:
        while part := os.read(fd, 1 << 16):
            self._kept += part[: OUTPUT_BYTES - len(self._kept)]
        os.close(fd)

    def text(self, wait: float = 0.0) -> str:
        """What was printed, after waiting so many seconds at most for the end of it."""
        self._thread.join(wait)
        return bytes(self._kept).decode(errors="replace")


def _pipes() -> tuple[Channel, tuple[int, int]]:
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    return Channel(ours_in, ours_out), (theirs_in, theirs_out)


class Python:
    """``main(config)`` of a module of this package in a fresh interpreter and session."""

    def __init__(self, module: str, config: dict, environment: dict[str, str], fds: tuple[int, ...]):
        code = (
            "import json, sys; config = json.loads(sys.argv[1]); sys.path[:] = config['path']; "
            f"from minidiff.course.grading.{module} import main; main(config)"
        )
        self._process = subprocess.Popen(
            # -s and an explicit path: nothing from the user's or the current folder is imported
            [sys.executable, "-s", "-u", "-c", code, json.dumps(config | {"path": import_path()})],
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=environment,
            start_new_session=True,
        )
        for fd in fds:
            os.close(fd)
        self.output = _Output(os.dup(self._process.stdout.fileno()))
        self._process.stdout.close()

    def stop(self) -> int:
        """Ask it to end, insist after three seconds; returns its exit code (negative: the number of the signal)."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(3)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.wait()


class Referee(Python):
    """A referee process, and the channel to it."""

    def __init__(self, denied: Iterable[str] = (), processor: int | None = None):
        """A referee whose hand-ins run on one processor, if it is given: so they cannot starve those of another.

        Args:
            denied: see :func:`policy`; the copies of minidiff on this process's path are added.
            processor: number, counted round among those there are.
        """
        self.channel, (read_fd, write_fd) = _pipes()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {"OMP_NUM_THREADS": "1"}
        config = {"read_fd": read_fd, "write_fd": write_fd, "denied": [*denied, *references(sys.path)]}
        config["processor"] = processor
        super().__init__("referee", config, environment, (read_fd, write_fd))

    def stop(self) -> int:
        """As for any process; the channel is closed first, on which an idle referee ends by itself."""
        self.channel.close()
        return super().stop()


class Nursery(Python):
    """A nursery process; raises OSError where it does not answer."""

    def __init__(self, denied: Iterable[str], processor: int | None = None):
        self._folder = tempfile.TemporaryDirectory(prefix="minidiff-grade-")
        self._control, theirs = socket.socketpair()
        self._control.settimeout(START_LIMIT_S)
        readable, listable = policy(denied)
        config = {"control_fd": theirs.fileno(), "readable": readable, "listable": listable}
        config["processor"] = processor
        super().__init__("nursery", config, scrubbed_environment(self._folder.name), (theirs.detach(),))

    def ask(self, request: dict, fds: tuple[int, ...] = ()) -> int:
        """Send a request and wait for the number that answers it."""
        socket.send_fds(self._control, [json.dumps(request).encode()], fds)
        reply = self._control.recv(64)
        if not reply:
            raise ConnectionError(f"the nursery has ended: {self.output.text(1)[-1000:]}")
        return json.loads(reply)

    def stop(self) -> int:
        """As for any process; its folder is removed."""
        self._control.close()
        code = super().stop()
        self._folder.cleanup()
        return code


class Sandboxed:
    """A worker process for one hand-in, in a folder of its own, and the channel to it."""

    def __init__(self, nursery: Nursery, memory_mb: int, cpu_seconds: int):
        self._nursery = nursery
        self._folder = tempfile.TemporaryDirectory(prefix="minidiff-grade-")
        self.channel, theirs = _pipes()
        printed, prints = os.pipe()
        folder = os.path.realpath(self._folder.name)
        request = {"folder": folder, "memory_mb": memory_mb, "cpu_seconds": cpu_seconds}
        self._pid = nursery.ask(request, (*theirs, prints))
        for fd in (*theirs, prints):
            os.close(fd)
        self._output = _Output(printed)

    def stop(self) -> tuple[int, str]:
        """End it and all it started; returns its exit code (above 128: 128 + the signal) and what it printed."""
        self.channel.close()
        code = self._nursery.ask({"end": self._pid})
        self._folder.cleanup()
        return code, self._output.text(1)
