"""What the Linux kernel can take away from a process, through ctypes: namespaces, Landlock, capabilities.

Every function that puts a layer in place returns its name, or None where this kernel does not offer or permit it; the
report of a grading lists the layers. The filter on system calls is in ``seccomp``.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

LINUX = sys.platform.startswith("linux")
_libc = ctypes.CDLL(None, use_errno=True) if LINUX else None

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 22, 36, 38
NEWNS, NEWUSER, NEWIPC, NEWPID, NEWNET = 0x00020000, 0x10000000, 0x08000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 2, 4, 4096, 16384, 1 << 18, 2


def prctl(option: int, *values: int | bytes) -> int:
    """The system call; its result."""
    return _libc.prctl(option, *(ctypes.c_ulong(v) if isinstance(v, int) else v for v in values))


def die_with_parent(signal: int = 9) -> None:
    """Ask for a signal when the process that started this one ends."""
    if LINUX:
        prctl(PR_SET_PDEATHSIG, signal)


def adopt_orphans() -> None:
    """Become the parent of grandchildren whose own parent ends, so that none can hide as a daemon."""
    if LINUX:
        prctl(PR_SET_CHILD_SUBREAPER, 1)


@cache
def _may_have_users() -> bool:
    """Whether a user namespace can be had and used: some systems grant one and then deny all that it is for."""
    pid = os.fork()
    if pid == 0:
        os._exit(0 if _leave_for(NEWUSER | NEWNS) else 1)
    return os.waitpid(pid, 0)[1] == 0


def _leave_for(new: int) -> bool:
    """New namespaces, among them one of users, in which this user is itself."""
    uid, gid = os.getuid(), os.getgid()  # as they are before
    if _libc.unshare(new) != 0:
        return False
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    except OSError:
        return False
    return True


def namespaces() -> str | None:
    """Own user, network, process, IPC and mount namespaces; children of this process live in them."""
    if not LINUX:
        return None
    inner = NEWNET | NEWPID | NEWIPC | NEWNS
    if _may_have_users() and _leave_for(NEWUSER | inner):
        return "namespaces (user, network, process, ipc, mount)"
    # root where user namespaces are switched off; mounts of ours must not reach the others
    if _libc.unshare(inner) == 0 and _libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) == 0:
        return "namespaces (network, process, ipc, mount)"
    return None


def private_folder(path: str, megabytes: int) -> str | None:
    """Mount a small memory file system over a folder, seen by this mount namespace alone: disk use is bounded."""
    options = f"size={megabytes}m,mode=700,nr_inodes=4096".encode()
    if LINUX and _libc.mount(b"tmpfs", path.encode(), b"tmpfs", MS_NOSUID | MS_NODEV, options) == 0:
        return f"private folder of {megabytes} MB"
    return None


def private_root(folder: str, paths: Iterable[str], links: Iterable[str], made: Iterable[str]) -> str | None:
    """Make a private folder the root: of all files of the system, a process sees (and can ask about) what is named.

    Args:
        folder: a private folder, empty.
        paths: real paths, of which none lies in another; seen where they are.
        links: paths that may be links, made again where nothing else is.
        made: folders made anew.
    """
    for path in paths:
        inside = Path(folder + path)
        inside.parent.mkdir(parents=True, exist_ok=True)
        inside.mkdir() if os.path.isdir(path) else inside.touch()
        if _libc.mount(path.encode(), str(inside).encode(), None, MS_BIND | MS_REC, None) != 0:
            _libc.umount2(folder.encode(), MNT_DETACH)  # else what is below could be written through the folder
            return None
    for path in links:
        inside = Path(folder + path)
        if os.path.realpath(path) != path and not os.path.lexists(inside):
            inside.parent.mkdir(parents=True, exist_ok=True)
            inside.symlink_to(os.path.realpath(path))
    for path in made:
        os.makedirs(folder + path, exist_ok=True)
    os.chroot(folder)  # there is no way back without capabilities
    os.chdir("/")
    return "private root"


def own_mounts() -> bool:
    """Have a mount namespace apart from the parent's, which goes on seeing what it saw."""
    return LINUX and _libc.unshare(NEWNS) == 0


def no_new_privileges() -> str | None:
    """No set-uid program can give rights back, and the capabilities of root (or of a user namespace) are dropped."""
    if not LINUX or prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return None
    header = struct.pack("Ii", 0x20080522, 0)
    return "no capabilities" if _libc.capset(header, bytes(24)) == 0 else None


def landlock(readable: Iterable[str], writable: Iterable[str], listable: Iterable[str]) -> str | None:
    """Only the given paths (and what is below them) can be read, written or listed; no TCP; no signals outwards.

    Call after :func:`no_new_privileges`. Truncation, links and special files are covered where the kernel's version is.
    """
    create, add, restrict = 444, 445, 446  # the same on every architecture
    abi = _libc.syscall(create, None, 0, 1) if LINUX else -1
    if abi < 1:
        return None
    files = (1 << (13 + (abi >= 2) + (abi >= 3) + (abi >= 5))) - 1  # every right of that version
    network = 3 if abi >= 4 else 0  # bind, connect
    scoped = 3 if abi >= 6 else 0  # abstract sockets, signals
    attributes = struct.pack("QQQ", files, network, scoped)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    ruleset = _libc.syscall(create, attributes, len(attributes), 0)
    if ruleset < 0:
        return None
    read_file, read_folder, on_file = 1 << 2, 1 << 3, 1 << 1 | 1 << 2 | 1 << 14
    for rights, paths in ((read_file | read_folder, readable), (files & ~1, writable), (read_folder, listable)):
        for path in paths:
            try:
                fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue  # a path that does not exist needs no rule
            is_folder = stat.S_ISDIR(os.fstat(fd).st_mode)
            rule = struct.pack("=Qi", rights & files & (~0 if is_folder else on_file), fd)
            failed = _libc.syscall(add, ruleset, 1, rule, 0)
            os.close(fd)
            if failed:
                os.close(ruleset)
                return None
    failed = _libc.syscall(restrict, ruleset, 0)
    os.close(ruleset)
    return None if failed else f"Landlock (version {abi})"
