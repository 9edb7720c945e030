"""What a hand-in may not ask of the Linux kernel: a filter on system calls, as a seccomp program.

A list of what is denied rather than of what is allowed: torch and the C library use too much, and differently from
version to version, for the second; Landlock and the namespaces stand behind it. Where one call does many things
(``fcntl``, ``ioctl``), what it may do is listed. Calls that are newer than this list are denied.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

from minidiff.course.grading.kernel import LINUX, PR_SET_PDEATHSIG, PR_SET_SECCOMP, prctl

CLONE_THREAD = 0x00010000
UNKNOWN = 470  # the first number that no call had when this list was made

# number on x86_64, number on aarch64 (None: that call does not exist there)
_DENIED = {
    # new processes and programs
    **{"fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281)},
    # leaving the process group, by which the grader kills
    **{"setsid": (112, 157), "setpgid": (109, 154)},
    # network, also through one end of a pair; io_uring could open sockets without these calls
    **{"socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202)},
    **{"accept4": (288, 242), "sendmsg": (46, 211), "sendmmsg": (307, 269), "io_uring_setup": (425, 425)},
    # other processes
    **{"tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240)},
    **{"pidfd_send_signal": (424, 424), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438)},
    **{"ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272)},
    **{"process_madvise": (440, 440), "process_mrelease": (448, 448)},
    **{"migrate_pages": (256, 238), "move_pages": (279, 239)},
    **{"setpriority": (141, 140), "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119)},
    **{"sched_setparam": (142, 118), "sched_setattr": (314, 274), "ioprio_set": (251, 30)},
    # attributes of files, which Landlock does not guard
    **{"chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452)},
    **{"chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54)},
    **{"utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88)},
    **{"setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463)},
    **{"removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "removexattrat": (466, 466)},
    **{"file_setattr": (469, 469)},
    # memory that no limit counts, and queues of the kernel
    **{"memfd_create": (319, 279), "memfd_secret": (447, 447), "io_setup": (206, 0)},
    # the disk, for everybody
    **{"sync": (162, 81), "syncfs": (306, 267), "fadvise64": (221, 223)},
    # watching and locking files that may only be read: others use them too
    **{"inotify_init": (253, None), "inotify_init1": (294, 26), "inotify_add_watch": (254, 27)},
    **{"fanotify_init": (300, 262), "fanotify_mark": (301, 263), "name_to_handle_at": (303, 264), "flock": (73, 32)},
    # the system
    **{"mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51)},
    **{"unshare": (272, 97), "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429)},
    **{"open_tree_attr": (467, 467), "quotactl_fd": (443, 443), "kexec_file_load": (320, 294)},
    **{"fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "mount_setattr": (442, 442)},
    **{"open_by_handle_at": (304, 265), "bpf": (321, 280), "perf_event_open": (298, 241)},
    **{"userfaultfd": (323, 282), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218)},
    **{"shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180), "syslog": (103, 116)},
    **{"quotactl": (179, 60), "acct": (163, 89), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225)},
    **{"init_module": (175, 105), "finit_module": (313, 273), "kexec_load": (246, 104), "settimeofday": (164, 170)},
}
# calls whose first argument must be this very process (0 also means it, for prlimit)
_OWN_PROCESS = {"kill": (62, 129), "tgkill": (234, 131), "prlimit64": (302, 261)}
# (call, of which argument the numbers are listed) -> those allowed
_ALLOWED = {
    # descriptors, their flags, and asking for locks; no leases, locks, watches, owners, sizes of pipes, hints
    "fcntl": ((72, 25), 1, (0, 1, 2, 3, 4, 5, 9, 1027, 1030, 1032, 1034)),
    # terminals, how much is to be read, flags; no attributes of files, which need no right to write
    "ioctl": ((16, 29), 1, (0x5401, 0x802C542A, 0x540F, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),
}
_SOCKETPAIR, _SENDTO = (53, 199), (44, 206)  # a datagram socket could write to any other, such as the system's log
_ARCHITECTURES = {  # AUDIT_ARCH, column above, clone, clone3, prctl
    "x86_64": (0xC000003E, 0, 56, 435, 157),
    "aarch64": (0xC00000B7, 1, 220, 435, 167),
}

_LOAD, _MASK, _EQUAL, _AT_LEAST, _HAS_BITS, _GIVE = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_DENY, _ALLOW, _KILL = (_GIVE, 0, 0, 0x00050000 | errno.EPERM), (_GIVE, 0, 0, 0x7FFF0000), (_GIVE, 0, 0, 0x80000000)
_ABSENT = (_GIVE, 0, 0, 0x00050000 | errno.ENOSYS)  # the C library then uses an older call
Line = tuple[int, int, int, int]  # operation, lines to skip where it holds and where not, value


def _argument(i: int, high: bool = False) -> Line:
    """Load the lower (or upper) half of an argument."""
    return (_LOAD, 0, 0, 16 + 8 * i + 4 * high)


def _for_call(number: int | None, *lines: Line) -> list[Line]:
    """Lines for one call; they come to a verdict."""
    return [] if number is None else [(_EQUAL, 0, len(lines), number), *lines]


def program(machine: str, pid: int) -> list[Line]:
    """The filter for a process on x86_64 or aarch64."""
    audit_arch, column, clone, clone3, prctl_number = _ARCHITECTURES[machine]
    lines = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, audit_arch), _KILL, (_LOAD, 0, 0, 0)]
    lines += [(_AT_LEAST, 0, 1, UNKNOWN), _ABSENT]  # the x32 numbers of the same calls, too
    for numbers in _DENIED.values():
        lines += _for_call(numbers[column], _DENY)
    for name, numbers in _OWN_PROCESS.items():
        own = 0 if name == "prlimit64" else pid
        lines += _for_call(numbers[column], _argument(0), (_EQUAL, 2, 0, pid), (_EQUAL, 1, 0, own), _DENY, _ALLOW)
    for numbers, argument, values in _ALLOWED.values():
        tests = [(_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
        lines += _for_call(numbers[column], _argument(argument), *tests, _DENY, _ALLOW)
    stream, unnamed = 1, 0
    pair = (_argument(1), (_MASK, 0, 0, 15), (_EQUAL, 0, 1, stream), _ALLOW, _DENY)
    lines += _for_call(_SOCKETPAIR[column], *pair)
    nameless = (_argument(4), (_EQUAL, 0, 3, unnamed), _argument(4, high=True), (_EQUAL, 0, 1, unnamed), _ALLOW, _DENY)
    lines += _for_call(_SENDTO[column], *nameless)
    lines += _for_call(clone, _argument(0), (_HAS_BITS, 0, 1, CLONE_THREAD), _ALLOW, _DENY)
    lines += _for_call(clone3, _ABSENT)
    lines += _for_call(prctl_number, _argument(0), (_EQUAL, 1, 0, PR_SET_PDEATHSIG), _ALLOW, _DENY)
    return [*lines, _ALLOW]


def seccomp() -> str | None:
    """No new processes or programs, sockets, signals to others, leases, changes of owners; threads are allowed."""
    if not LINUX or platform.machine() not in _ARCHITECTURES:
        return None
    lines = program(platform.machine(), os.getpid())
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
    filter_ = struct.pack("HL", len(lines), ctypes.addressof(code))  # native alignment, as in the C struct
    return "seccomp" if prctl(PR_SET_SECCOMP, 2, filter_, 0, 0) == 0 else None
