"""What a hand-in's process may use and touch: paths, resources, and a hook that explains refusals in Python."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Iterable
from socket import AF_UNIX

FOLDER_MB = 64  # what a hand-in may write
SYSTEM = (  # what Python, torch and matplotlib read besides themselves
    *("/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share", "/usr/local/share", "/lib", "/lib64"),
    *("/System", "/Library", "/opt/homebrew", "/etc/ld.so.cache", "/etc/localtime", "/etc/fonts"),
    *("/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system", "/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"),
)


def except_below(root: str, denied: Iterable[str]) -> tuple[list[str], list[str]]:
    """``root`` as paths that may be read and folders that may only be listed, such that nothing denied is readable."""
    root, denied = os.path.realpath(root), [os.path.realpath(d) for d in denied]
    if any(within(root, d) for d in denied):
        return [], []
    if not any(within(d, root) for d in denied):
        return [root], []
    read, listed = [], [root]
    for child in sorted(os.listdir(root)):
        more_read, more_listed = except_below(os.path.join(root, child), denied)
        read += more_read
        listed += more_listed
    return read, listed


def within(path: str, folder: str) -> bool:
    """Whether a path is a folder or lies below it; both are real paths."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def limit_resources(memory_mb: int, cpu_seconds: int, processes: bool, status_fd: int | None = None) -> str:
    """Bound memory (above what is in use now), CPU time, file sizes, open files; no core dumps.

    Args:
        processes: bound their number too, where nothing else forbids them; counts all that the user has.
        status_fd: ``/proc/self/status``, opened before Landlock closed it; without it memory is not bounded.
    """
    limits = {"CPU": cpu_seconds, "FSIZE": FOLDER_MB << 20, "NOFILE": 256, "CORE": 0}
    limits |= {"SIGPENDING": 256, "MSGQUEUE": 0, "NICE": 0, "RTPRIO": 0}  # kernel memory, and precedence
    if status_fd is not None:
        with open(status_fd) as file:
            status = dict(line.split(":", 1) for line in file)
        size = lambda key: int(status[key].split()[0]) << 10
        limits |= {"AS": size("VmSize") + (memory_mb << 20), "DATA": size("VmData") + (memory_mb << 20)}
    if processes:
        limits["NPROC"] = 64
    done = []
    for name, value in limits.items():
        with contextlib.suppress(OSError, ValueError, AttributeError):
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
            done.append(name)
    return f"limits ({', '.join(done)})"


# Audit events (https://docs.python.org/3/library/audit_events.html) that no answer needs
_REFUSED = (
    *("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.kill"),
    *("os.killpg", "pty.spawn", "socket.", "os.chmod", "os.chown", "os.setxattr", "os.removexattr", "os.utime"),
    *("ftplib.", "smtplib.", "http.client.", "urllib.Request", "webbrowser.", "syslog.", "signal.pthread_kill"),
    *("fcntl.fcntl", "fcntl.flock"),
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
        return any(within(real, folder) for folder in folders)

    def hook(event: str, args: tuple) -> None:
        if event == "open":
            path, _, flags = args
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
            if path is not None and not allowed(path, writable if writes else readable):
                raise PermissionError(f"a hand-in may not {'write' if writes else 'read'} {path!r:.200}")
        elif event == "socket.__new__" and args[1] == AF_UNIX:
            return  # a pair of them is what ``await`` wakes itself with; to connect one is refused
        elif event.startswith(events):
            raise PermissionError(f"a hand-in may not use {event}")
        elif event in _WRITES:
            for path in args[: 2 if event in ("os.rename", "os.link", "os.symlink") else 1]:
                if not allowed(path, writable):
                    raise PermissionError(f"a hand-in may not change {path!r:.200}")

    sys.addaudithook(hook)
    return "audit hook"
