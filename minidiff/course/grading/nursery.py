"""The process that hand-ins' processes are forked from: torch is imported once, not once per hand-in.

It never runs a line of a hand-in and never loads a check. For each hand-in it forks a supervisor, which forks the
worker: the worker shuts itself in and executes the hand-in; the supervisor stays outside and kills what it leaves.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import time
import traceback
from pathlib import Path

from minidiff.course.grading import kernel, worker
from minidiff.course.grading.sandbox import FOLDER_MB

PRELOADED = ("matplotlib.pyplot",)  # slow to import, and used by the setup cell of every lesson
MAX_THREADS = 64  # of a hand-in; no limit of the kernel binds root
OWN_FOLDERS = ("HOME", "TMPDIR", "MPLCONFIGDIR", "XDG_CACHE_HOME")  # variables that name the hand-in's folder


def main(config: dict) -> None:
    """Serve the referee: start a process (its pipes come along), or end one and tell its exit code."""
    kernel.die_with_parent()
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    control = socket.socket(fileno=config["control_fd"])
    while True:
        data, fds, *_ = socket.recv_fds(control, 1 << 12, 3)
        if not data:
            return
        request = json.loads(data)
        if "end" in request:
            reply = _end(request["end"])
        else:
            reply = os.fork()
            if reply == 0:
                control.close()
                _become_supervisor(config | request, *fds)
            for fd in fds:
                os.close(fd)
        control.sendall(json.dumps(reply).encode())


def _end(pid: int) -> int:
    """End a supervisor and all below it; its exit code is the worker's (128 + n for signal n)."""
    for patience, send in ((0.3, None), (3.0, os.kill), (60.0, os.killpg)):
        if send is not None:
            with contextlib.suppress(ProcessLookupError):  # it is not reaped yet: the id cannot be another's
                send(pid, signal.SIGTERM if send is os.kill else signal.SIGKILL)
        limit = time.monotonic() + patience
        while time.monotonic() < limit:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
            time.sleep(0.005)
    return 128 + signal.SIGKILL


def _become_supervisor(config: dict, read_fd: int, write_fd: int, output_fd: int) -> None:
    """Never returns."""
    code = 1
    try:
        os.setsid()
        os.dup2(output_fd, 1)
        os.dup2(output_fd, 2)
        kernel.die_with_parent()
        kernel.adopt_orphans()
        namespaces = kernel.namespaces()
        pid = os.fork()
        if pid == 0:
            os.close(output_fd)
            _become_worker(config | {"read_fd": read_fd, "write_fd": write_fd}, namespaces)
        for fd in (read_fd, write_fd, output_fd, 1, 2):
            os.close(fd)  # the worker alone holds the pipes, so that its end is seen at once
        code = _supervise(pid)
    except BaseException:
        traceback.print_exc()
    os._exit(code if code >= 0 else 128 - code)


def _supervise(worker_pid: int) -> int:
    """Wait for the worker, then kill all that it left behind; SIGTERM, or too many threads, ends it at once."""
    known = {worker_pid}  # all there is to go by where there is no /proc

    def kill_children(*_) -> None:
        children = Path(f"/proc/self/task/{os.getpid()}/children")
        for pid in map(int, children.read_text().split()) if children.exists() else set(known):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    signal.signal(signal.SIGTERM, kill_children)
    code = 1
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            if _threads(worker_pid) > MAX_THREADS:
                kill_children()
            time.sleep(0.02)
            continue
        if pid == worker_pid:
            code = os.waitstatus_to_exitcode(status)
        known.discard(pid)
        kill_children()  # orphans come here one generation at a time


def _threads(pid: int) -> int:
    """How many threads a process has; 0 where there is no /proc."""
    try:
        return int(Path(f"/proc/{pid}/status").read_text().split("Threads:")[1].split()[0])
    except (OSError, IndexError):
        return 0


def _become_worker(config: dict, namespaces: str | None) -> None:
    """Never returns. A forked process has one thread, so what the kernel takes away here holds for all of it."""
    code = 1
    try:
        folder = config["folder"]
        kernel.die_with_parent()
        os.umask(0o077)
        layers = ["own process group", namespaces]
        if namespaces and "mount" in namespaces:  # never in a mount namespace that others share
            layers.append(kernel.private_folder(folder, FOLDER_MB))
        os.chdir(folder)
        os.environ.update(dict.fromkeys(OWN_FOLDERS, folder))
        if os.path.exists("/proc/self/status"):
            config["status_fd"] = os.open("/proc/self/status", os.O_RDONLY)
        layers.append(kernel.no_new_privileges())
        writable = [folder, "/dev/null"]
        layers.append(kernel.landlock(config["readable"], writable, config["listable"]))
        layers.append(kernel.seccomp())
        worker.main(config, [layer for layer in layers if layer], writable)
        code = 0
    except BaseException:
        traceback.print_exc()
    os._exit(code)  # no exit handler of the hand-in, nor of this process's ancestors
