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
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from pathlib import Path

from minidiff.course.grading import kernel, sandbox, seccomp, worker
from minidiff.course.grading.sandbox import FOLDER_MB

PRELOADED = ("matplotlib.pyplot",)  # slow to import, and used by the setup cell of every lesson
MAX_THREADS = 64  # of a hand-in; no limit of the kernel binds root
MAX_FILES = 4096  # likewise, in the folder of a hand-in
OWN_FOLDERS = ("HOME", "TMPDIR", "MPLCONFIGDIR", "XDG_CACHE_HOME")  # variables that name the hand-in's folder
OWN = "/content"  # that folder, where it can be made to be called so
# where hand-ins like to write; private to each of them
SCRATCH = ("tmp", "home", "root", "Users", "mnt", "media", "data", "datasets", "workspace", "workspaces", "kaggle")
SCRATCH += ("project", "projects", "notebooks", "scratch", "results", "output", "outputs", "models", "checkpoints")


def main(config: dict) -> None:
    """Serve the referee: start a process (its pipes come along), or end one and tell its exit code."""
    kernel.die_with_parent()
    sys.argv = [""]  # it names paths of this machine
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
        code = _supervise(pid, config["folder"])
    except BaseException:
        traceback.print_exc()
    os._exit(code if code >= 0 else 128 - code)


def _supervise(worker_pid: int, folder: str) -> int:
    """Wait for the worker, then kill all that it left behind; SIGTERM, too many threads or files end it at once.

    Where the worker has a private folder, ``folder`` stays empty; else this is what bounds the disk it uses.
    """
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
            if _threads(worker_pid) > MAX_THREADS or _overfull(folder):
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


def _overfull(folder: str) -> bool:
    """Whether there are more files below a folder than a hand-in may have, or larger ones."""
    files, size, folders = 0, 0, [folder]
    while folders and files <= MAX_FILES and size <= FOLDER_MB << 20:
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                files += 1
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
    return files > MAX_FILES or size > FOLDER_MB << 20


def _shut_in(folder: str, paths: list[str]) -> tuple[list[str | None], list[str]]:
    """A private folder as the only root there is, as far as the system goes along; layers, and what may be written."""
    if not kernel.own_mounts() or not (layer := kernel.private_folder(folder, FOLDER_MB)):
        return [], [folder]
    seen = _outermost(paths)
    made = [OWN, *(f"/{name}" for name in SCRATCH if not any(sandbox.within(path, f"/{name}") for path in seen))]
    top = [f"/{name}" for name in os.listdir("/")]
    links = [*top, sys.prefix, sys.base_prefix]
    if root := kernel.private_root(folder, seen, links, made):
        return [layer, root], made
    return [kernel.private_folder(folder, FOLDER_MB)], [folder]


def _outermost(paths: Iterable[str]) -> list[str]:
    """Those paths that lie in no other."""
    found: list[str] = []
    for path in sorted(set(paths)):
        if not (found and sandbox.within(path, found[-1])):
            found.append(path)
    return found


def _become_worker(config: dict, namespaces: str | None) -> None:
    """Never returns. A forked process has one thread, so what the kernel takes away here holds for all of it."""
    code = 1
    try:
        kernel.die_with_parent()
        os.umask(0o077)
        if os.path.exists("/proc/self/status"):
            config["status_fd"] = os.open("/proc/self/status", os.O_RDONLY)
        if config["processor"] is not None and hasattr(os, "sched_setaffinity"):
            processors = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, [processors[config["processor"] % len(processors)]])
        layers, writable = ["own process group", namespaces], [config["folder"]]
        if namespaces:
            more, writable = _shut_in(config["folder"], [*config["readable"], *config["listable"]])
            layers += more
        os.chdir(writable[0])
        os.environ.update(dict.fromkeys(OWN_FOLDERS, writable[0]))
        tempfile.tempdir = None  # another process's
        layers.append(kernel.no_new_privileges())
        writable.append("/dev/null")
        layers.append(kernel.landlock(config["readable"], writable, config["listable"]))
        layers.append(seccomp.seccomp())
        worker.main(config, [layer for layer in layers if layer], writable)
        code = 0
    except BaseException:
        traceback.print_exc()
    os._exit(code)  # no exit handler of the hand-in, nor of this process's ancestors
