"""What the Linux kernel can take away from a process, through ctypes: namespaces, Landlock, seccomp, capabilities.

Every function returns the name of the layer it
put in place, or None where this kernel does not offer or permit it; the report of a grading lists the layers.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import stat
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

LINUX = sys.platform.startswith("linux")
_libc = ctypes.CDLL(None, use_errno=True) if LINUX else None

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 22, 36, 38
NEWNS, NEWUSER, NEWIPC, NEWPID, NEWNET = 0x00020000, 0x10000000, 0x08000000, 0x20000000, 0x40000000
CLONE_THREAD = 0x00010000

# number on x86_64, number on aarch64 (None: that call does not exist there)
_DENIED = {
    # new processes and programs
    **{"fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281)},
    # leaving the process group, by which the grader kills
    **{"setsid": (112, 157), "setpgid": (109, 154)},
    # network; io_uring could open sockets without these calls
    **{"socket": (41, 198), "io_uring_setup": (425, 425)},
    # other processes
    **{"tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240)},
    **{"pidfd_send_signal": (424, 424), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438)},
    **{"ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272)},
    **{
        "process_madvise": (440, 440),
        "process_mrelease": (448, 448),
        "migrate_pages": (256, 238),
        "move_pages": (279, 239),
    },
    **{"setpriority": (141, 140), "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119)},
    **{"sched_setparam": (142, 118), "sched_setattr": (314, 274), "ioprio_set": (251, 30)},
    # attributes of files, which Landlock does not guard
    **{"chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452)},
    **{"chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54)},
    **{"utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88)},
    **{"setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463)},
    **{"removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "removexattrat": (466, 466)},
    # memory that no limit counts, and queues of the kernel
    **{"memfd_create": (319, 279), "memfd_secret": (447, 447), "io_setup": (206, 0)},
    # watching and locking files that may only be read: others use them too
    **{"inotify_init": (253, None), "inotify_init1": (294, 26), "inotify_add_watch": (254, 27)},
    **{"fanotify_init": (300, 262), "fanotify_mark": (301, 263), "name_to_handle_at": (303, 264), "flock": (73, 32)},
    # the system
    **{"mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51)},
    **{"unshare": (272, 97), "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429)},
    **{"fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "mount_setattr": (442, 442)},
    **{"open_by_handle_at": (304, 265), "bpf": (321, 280), "perf_event_open": (298, 241)},
    **{"userfaultfd": (323, 282), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218)},
    **{"shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180), "syslog": (103, 116)},
    **{"quotactl": (179, 60), "acct": (163, 89), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225)},
    **{"init_module": (175, 105), "finit_module": (313, 273), "kexec_load": (246, 104), "settimeofday": (164, 170)},
}
# calls whose first argument must be this very process (0 also means it, for prlimit)
_OWN_PROCESS = {"kill": (62, 129), "tgkill": (234, 131), "prlimit64": (302, 261)}
# commands of fcntl: F_SETLEASE (others wait for the holder), F_NOTIFY, F_SETOWN(_EX) and F_SETSIG, F_SETPIPE_SZ
_FCNTL, _DENIED_COMMANDS = (72, 25), (1024, 1026, 8, 15, 10, 1031)
_ARCHITECTURES = {  # AUDIT_ARCH, column above, clone, clone3, prctl
    "x86_64": (0xC000003E, 0, 56, 435, 157),
    "aarch64": (0xC00000B7, 1, 220, 435, 167),
}


def _prctl(option: int, *values: int | bytes) -> int:
    return _libc.prctl(option, *(ctypes.c_ulong(v) if isinstance(v, int) else v for v in values))


def die_with_parent(signal: int = 9) -> None:
    """Ask for a signal when the process that started this one ends."""
    if LINUX:
        _prctl(PR_SET_PDEATHSIG, signal)


def adopt_orphans() -> None:
    """Become the parent of grandchildren whose own parent ends, so that none can hide as a daemon."""
    if LINUX:
        _prctl(PR_SET_CHILD_SUBREAPER, 1)


def namespaces() -> str | None:
    """Own user, network, process, IPC and mount namespaces; children of this process live in them."""
    if not LINUX:
        return None
    uid, gid = os.getuid(), os.getgid()
    if _libc.unshare(NEWUSER | NEWNET | NEWPID | NEWIPC | NEWNS) == 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
        return "namespaces (user, network, process, ipc, mount)"
    if _libc.unshare(NEWNET | NEWPID | NEWIPC) == 0:  # root where user namespaces are switched off
        return "namespaces (network, process, ipc)"
    return None


def private_folder(path: str, megabytes: int) -> str | None:
    """Mount a small memory file system over a folder, seen by this mount namespace alone: disk use is bounded."""
    options = f"size={megabytes}m,mode=700,nr_inodes=4096".encode()
    nosuid_nodev = 2 | 4
    if LINUX and _libc.mount(b"tmpfs", path.encode(), b"tmpfs", nosuid_nodev, options) == 0:
        return f"private folder of {megabytes} MB"
    return None


def no_new_privileges() -> str | None:
    """No set-uid program can give rights back, and the capabilities of root (or of a user namespace) are dropped."""
    if not LINUX or _prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
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


def seccomp() -> str | None:
    """No new processes or programs, sockets, signals to others, leases, changes of owners; threads are allowed.

    A list of what is denied rather than of what is allowed: torch and the C library use too much, and differently from
    version to version, for the second; Landlock and the namespaces stand behind it.
    """
    machine = platform.machine()
    if not LINUX or machine not in _ARCHITECTURES:
        return None
    audit_arch, column, clone, clone3, prctl = _ARCHITECTURES[machine]
    deny, allow, kill = 0x00050000 | errno.EPERM, 0x7FFF0000, 0x80000000
    load, equal, at_least, has_bits, give = 0x20, 0x15, 0x35, 0x45, 0x06
    number, arch, argument, second = 0, 4, 16, 24  # offsets in struct seccomp_data
    program = [(load, 0, 0, arch), (equal, 1, 0, audit_arch), (give, 0, 0, kill), (load, 0, 0, number)]
    program += [(at_least, 0, 1, 0x40000000), (give, 0, 0, deny)]  # the x32 numbers of the same calls
    for calls in (_DENIED, _OWN_PROCESS):
        for numbers in calls.values():
            if numbers[column] is None:
                continue
            if calls is _DENIED:
                program += [(equal, 0, 1, numbers[column]), (give, 0, 0, deny)]
            else:
                program += [(equal, 0, 5, numbers[column]), (load, 0, 0, argument), (equal, 2, 0, os.getpid())]
                program += [(equal, 1, 0, 0 if numbers is _OWN_PROCESS["prlimit64"] else os.getpid())]
                program += [(give, 0, 0, deny), (give, 0, 0, allow)]
    commands = len(_DENIED_COMMANDS)
    program += [(equal, 0, commands + 3, _FCNTL[column]), (load, 0, 0, second)]
    program += [(equal, commands - i, 0, command) for i, command in enumerate(_DENIED_COMMANDS)]
    program += [(give, 0, 0, allow), (give, 0, 0, deny)]
    program += [(equal, 0, 4, clone), (load, 0, 0, argument), (has_bits, 1, 0, CLONE_THREAD)]
    program += [(give, 0, 0, deny), (give, 0, 0, allow)]
    program += [(equal, 0, 1, clone3), (give, 0, 0, 0x00050000 | errno.ENOSYS)]  # the C library then uses clone
    program += [(equal, 0, 4, prctl), (load, 0, 0, argument), (equal, 0, 1, PR_SET_PDEATHSIG), (give, 0, 0, deny)]
    program += [(give, 0, 0, allow), (give, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    filter_ = struct.pack("HL", len(program), ctypes.addressof(code))  # native alignment, as in the C struct
    return "seccomp" if _prctl(PR_SET_SECCOMP, 2, filter_, 0, 0) == 0 else None
