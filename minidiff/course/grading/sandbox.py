"""The process that runs a hand-in: how it is shut in, and what it may touch.

The file is also that process's script: ``python sandbox.py CONFIG`` isolates itself with the standard library
alone, before it imports torch or minidiff, and only then becomes the worker. A supervisor stays outside the
isolated part, waits for it, and kills whatever is left of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

FOLDER_MB = 64  # what a hand-in may write
SYSTEM = (  # what Python, torch and matplotlib read besides themselves
    *("/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share", "/usr/local/share", "/lib", "/lib64"),
    *("/System", "/Library", "/opt/homebrew", "/etc/ld.so.cache", "/etc/localtime", "/etc/fonts"),
    *("/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system", "/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"),
)


def except_below(root: str, denied: Iterable[str]) -> tuple[list[str], list[str]]:
    """``root`` as paths that may be read and folders that may only be listed, such that nothing denied is readable."""
    root, denied = os.path.realpath(root), [os.path.realpath(d) for d in denied]
    if any(_within(root, d) for d in denied):
        return [], []
    if not any(_within(d, root) for d in denied):
        return [root], []
    read, listed = [], [root]
    for child in sorted(os.listdir(root)):
        more_read, more_listed = except_below(os.path.join(root, child), denied)
        read += more_read
        listed += more_listed
    return read, listed


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def limit_resources(memory_mb: int, cpu_seconds: int, status_fd: int | None = None) -> str:
    """Bound memory (above what is in use now), CPU time, file sizes, open files; no core dumps.

    Args:
        status_fd: ``/proc/self/status``, opened before Landlock closed it; without it memory is not bounded.
    """
    limits = {"CPU": cpu_seconds, "FSIZE": FOLDER_MB << 20, "NOFILE": 256, "CORE": 0}
    if status_fd is not None:
        with open(status_fd) as file:
            status = dict(line.split(":", 1) for line in file)
        size = lambda key: int(status[key].split()[0]) << 10
        limits |= {"AS": size("VmSize") + (memory_mb << 20), "DATA": size("VmData") + (memory_mb << 20)}
    if not sys.platform.startswith("linux"):
        limits["NPROC"] = 64  # on Linux seccomp forbids processes; this one would count the user's other processes too
    done = []
    for name, value in limits.items():
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
            done.append(name)
    return f"limits ({', '.join(done)})"


# Audit events (https://docs.python.org/3/library/audit_events.html) that no answer needs
_REFUSED = (
    *("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.kill"),
    *("os.killpg", "pty.spawn", "socket.", "os.chmod", "os.chown", "os.setxattr", "os.removexattr", "os.utime"),
    *("ftplib.", "smtplib.", "http.client.", "urllib.Request", "webbrowser.", "syslog.", "signal.pthread_kill"),
)
_WRITES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree")


def add_audit_hook(readable: Iterable[str], writable: Iterable[str]) -> str:
    """Refuse the same things in Python, with a message that says what was refused.

    C code and ctypes do not pass here: this layer explains, and it is the last one where the kernel offers none.
    """
    writable = tuple(os.path.realpath(path) for path in writable)
    readable = (*(os.path.realpath(path) for path in readable), *writable)
    events = tuple(_REFUSED)

    def allowed(path: object, folders: tuple[str, ...]) -> bool:
        if isinstance(path, int):
            return True  # a file that is open already
        real = os.path.realpath(os.fsdecode(path))
        return any(_within(real, folder) for folder in folders)

    def hook(event: str, args: tuple) -> None:
        if event == "open":
            path, _, flags = args
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
            if path is not None and not allowed(path, writable if writes else readable):
                raise PermissionError(f"a hand-in may not {'write' if writes else 'read'} {path!r:.200}")
        elif event.startswith(events):
            raise PermissionError(f"a hand-in may not use {event}")
        elif event in _WRITES:
            for path in args[: 2 if event in ("os.rename", "os.link", "os.symlink") else 1]:
                if not allowed(path, writable):
                    raise PermissionError(f"a hand-in may not change {path!r:.200}")

    sys.addaudithook(hook)
    return "audit hook"


def _supervise(worker: int) -> int:
    """Wait for the worker, then kill all that it left behind; SIGTERM ends it at once."""

    known = {worker}  # all there is to go by where there is no /proc

    def kill_children(*_) -> None:
        children = Path(f"/proc/self/task/{os.getpid()}/children")
        for pid in map(int, children.read_text().split()) if children.exists() else set(known):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    signal.signal(signal.SIGTERM, kill_children)
    code = 1
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            return code
        if pid == worker:
            code = os.waitstatus_to_exitcode(status)
        known.discard(pid)
        kill_children()  # orphans come here one generation at a time


def main() -> None:
    """Isolate, fork, and become supervisor and worker."""
    import kernel  # beside this script; the package would import torch

    config = json.loads(sys.argv[1])
    kernel.die_with_parent()
    kernel.adopt_orphans()
    layers = ["own process group", kernel.namespaces()]
    pid = os.fork()
    if pid:
        for fd in (config["read_fd"], config["write_fd"], 0, 1, 2):
            os.close(fd)  # the worker alone holds the pipes, so that its end is seen at once
        code = _supervise(pid)
        os._exit(code if code >= 0 else 128 - code)
    kernel.die_with_parent()
    os.umask(0o077)
    if layers[1] and "mount" in layers[1]:  # never in a mount namespace that others share
        layers.append(kernel.private_folder(config["folder"], FOLDER_MB))
    os.chdir(config["folder"])
    if os.path.exists("/proc/self/status"):
        config["status_fd"] = os.open("/proc/self/status", os.O_RDONLY)
    layers.append(kernel.no_new_privileges())
    writable = [config["folder"], "/dev/null"]
    layers.append(kernel.landlock(config["readable"], writable, config["listable"]))
    layers.append(kernel.seccomp())
    sys.path[:] = config["path"]
    sys.modules.pop("kernel")
    from minidiff.course.grading import worker

    worker.main(config, [layer for layer in layers if layer], writable)


if __name__ == "__main__":
    main()
