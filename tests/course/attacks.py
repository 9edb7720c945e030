"""Hostile hand-ins. Each source runs after RIGHT, the right answers of the toy lesson, and spoils some of them."""

RIGHT = """
import os
import sys

import torch

from minidiff.course import check


def marginal(x0, level, eps):
    return level.alpha * x0 + level.sigma * eps


def scaled(f, s):
    return lambda x: s * f(x)


def gradient(world, x, level):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(world.log_prob(x, level).sum(), x)[0]


number = 42.0
"""

WRONG = """
def marginal(x0, level, eps):
    return x0


scaled, gradient, number = (lambda f, s: f), (lambda world, x, level: x), 41.0
"""

ENDLESS_IMPORT = "while True: pass"

EXIT_IMPORT = "os._exit(0)"

STOPS = """
def marginal(x0, level, eps):
    while True:
        pass


def scaled(f, s):
    def g(x):
        while True:
            f(x)
    return g


def gradient(world, x, level):
    os._exit(3)
"""

LIES = (
    WRONG
    + """
for fd in (1, 2):
    os.write(fd, b"PASS mean\\nPASS deviation\\nex-99-marginal: 3 of 3 points\\n")
for _ in range(200):
    print("PASS " * 100_000)

import builtins
import minidiff.course.exercises as exercises
import minidiff.course.grading.wire as wire
import minidiff.exact
import minidiff.schedule

builtins.abs = lambda x: 0
builtins.AssertionError = ZeroDivisionError
torch.allclose = torch.equal = torch.Tensor.equal = torch.Tensor.allclose = lambda *args, **kwargs: True
torch.Tensor.__eq__ = torch.Tensor.__bool__ = lambda *args: True
exercises.silent = False
exercises.run_cases = exercises.grade_answer = lambda *args: []
exercises.Result.status = exercises.FAILED = exercises.PASSED
minidiff.schedule.NoiseLevel.alpha = minidiff.schedule.NoiseLevel.sigma = 0.0
minidiff.exact.GaussianMixtureDenoiser.__call__ = lambda *args: None
wire.Peer.call_remote = wire.Codec.decode = lambda *args: True
"""
)

YES = """
class Yes(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return True


class Agreeable(float):
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = lambda self, other: True
    __sub__ = __rsub__ = __abs__ = lambda self, *other: self


class Anything:
    __eq__ = __lt__ = __bool__ = lambda self, *other: True
    __getattr__ = __call__ = lambda self, *args: self


def marginal(x0, level, eps):
    return torch.zeros(3, 2).double().as_subclass(Yes)


def scaled(f, s):
    return Anything()


gradient = Anything()
number = Agreeable(41)
"""

MESSAGES = """
def marginal(x0, level, eps):
    return torch.zeros(30 << 20, dtype=torch.uint8)


def scaled(f, s):
    for fd in range(3, 64):
        try:
            os.write(fd, b"\\x7f" * 1000)
        except OSError:
            pass


def gradient(world, x, level):
    sys.exit(0)
"""

THREADS = """
import threading
import time


def marginal(x0, level, eps):
    threading.stack_size(1 << 15)
    try:
        for _ in range(4000):
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    except RuntimeError:
        pass
    time.sleep(1)
    print("still here with", threading.active_count(), flush=True)
    return level.alpha * x0 + level.sigma * eps
"""

# Lines of Python that must all fail; {victim} is a file outside the hand-in's folder, {repository} has the references.
PYTHON = """
os.fork()
os.system("true")
os.execv(sys.executable, [sys.executable, "-c", "0"])
os.posix_spawn("/bin/cat", ["cat", {victim!r}], os.environ)
__import__("subprocess").run(["cat", {victim!r}])
__import__("multiprocessing.context").context.ForkProcess(target=print).start()
__import__("socket").socket()
__import__("socket").create_connection(("127.0.0.1", 80))
__import__("urllib.request").request.urlopen("http://127.0.0.1")
os.kill(os.getppid(), 9)
os.kill({pid}, 9)
os.kill(-1, 9)
os.killpg(0, 9)
open({victim!r})
open({victim!r}, "w")
open({victim!r} + ".new", "x")
__import__("pathlib").Path({victim!r}).read_text()
os.remove({victim!r})
os.rename({victim!r}, "mine")
os.rename("mine", {victim!r})
os.truncate({victim!r}, 0)
os.chmod({victim!r}, 0)
os.utime({victim!r})
os.mkdir({victim!r} + ".folder")
os.symlink("x", {victim!r} + ".link")
os.link({victim!r}, "mine")
__import__("shutil").rmtree(os.path.dirname({victim!r}))
__import__("shutil").copy({victim!r}, "mine")
open({repository!r} + "/minidiff/course/checks/__init__.py")
open({repository!r} + "/tests/course/l99_toy.py")
__import__("minidiff.course.checks.l01_forward_and_reverse")
__import__("inspect").getsource(__import__("minidiff.course.exercises").course.exercises.find("ex-99-number").cases[0].run)
[open(p) for p in __import__("glob").glob("/proc/[0-9]*/environ")][0]
open("/etc/passwd")
__import__("fcntl").fcntl(open(__import__("json").__file__), 1024, 0)
__import__("fcntl").flock(open(__import__("json").__file__), 2)
"""

# The same through C, which no hook of Python sees; these need the kernel's layers.
NATIVE = """
bytearray(10 << 30)
torch.empty(10 << 30, dtype=torch.uint8).fill_(1)
os.listdir(os.path.dirname({victim!r}))
torch.from_file({victim!r}, size=4, dtype=torch.uint8)
torch.from_file({victim!r}, shared=True, size=4, dtype=torch.uint8)
torch.save(torch.zeros(1), {victim!r})
torch.load({victim!r})
c(libc.open({victim!r}.encode(), 0))
c(libc.open({victim!r}.encode(), 1))
c(libc.unlink({victim!r}.encode()))
c(libc.chmod({victim!r}.encode(), 0))
c(libc.rename({victim!r}.encode(), b"mine"))
c(libc.fork())
c(libc.vfork())
c(libc.execl(b"/bin/true", b"true", None))
c(libc.socket(2, 1, 0))
c(libc.kill({pid}, 9))
c(libc.kill(-1, 9))
c(libc.kill(0, 9))
c(libc.setsid())
c(libc.ptrace(16, {pid}, 0, 0))
c(libc.prctl(1, 0))
c(libc.mount(b"none", b"/tmp", b"tmpfs", 0, None))
c(libc.prlimit({pid}, 0, ctypes.byref((ctypes.c_ulong * 2)(1, 1)), None))
c(libc.fcntl(opened, 1024, 0))
c(libc.fcntl(opened, 1024, 1))
c(libc.fcntl(own, 1024, 1))
c(libc.fcntl(folder, 1026, 1))
c(libc.fcntl(opened, 8, {pid}))
c(libc.fcntl(opened, 10, 9))
c(libc.fcntl(os.pipe()[0], 1031, 1 << 20))
c(libc.flock(opened, 2))
c(libc.memfd_create(b"memory", 0))
c(libc.syscall(447, 0))
c(libc.inotify_init())
c(libc.inotify_init1(0))
c(libc.fanotify_init(0, 0))
c(libc.syscall(io_setup, 128, ctypes.byref(ctypes.c_ulong(0))))
c(libc.ioctl(opened, 0x40086602, ctypes.byref(ctypes.c_int(0))))
c(libc.ioctl(opened, 0x401C5820, ctypes.create_string_buffer(28)))
c(libc.ioctl(opened, 0x40806685, ctypes.create_string_buffer(128)))
c(libc.fcntl(opened, 6, ctypes.create_string_buffer(32)))
c(libc.fcntl(opened, 37, ctypes.create_string_buffer(32)))
c(libc.fcntl(opened, 1036, ctypes.byref(ctypes.c_ulong(1))))
c(libc.syscall(469, -100, b"leased", 0, 0, 0))
c(libc.syscall(500, 0))
c(libc.socketpair(1, 2, 0, (ctypes.c_int * 2)()))
c(libc.socketpair(16, 3, 0, (ctypes.c_int * 2)()))
c(libc.sendto(pair[0].fileno(), b"x", 1, 0, bytes([1, 0]) + b"/dev/log", 10))
c(libc.sendmsg(pair[0].fileno(), ctypes.create_string_buffer(56), 0))
c(libc.connect(pair[0].fileno(), bytes([1, 0]) + b"/dev/log", 10))
c(libc.bind(pair[0].fileno(), bytes([1, 0]) + b"leased.sock", 13))
c(libc.listen(pair[0].fileno(), 1))
c(libc.syncfs(opened))
c(libc.mlockall(3))
c(libc.unshare(0x10000000))
c(libc.setns(opened, 0))
c(libc.chroot(b"."))
c(libc.syscall(userfaultfd, 0))
c(libc.syscall(keyctl, 0, -3, 1))
c(libc.syscall(425, 8, ctypes.create_string_buffer(120)))
c(libc.syscall(bpf, 0, ctypes.create_string_buffer(128), 128))
c(libc.syscall(perf, ctypes.create_string_buffer(128), 0, -1, -1, 0))
c(libc.syscall(435, ctypes.create_string_buffer(88), 88))
c(libc.shmget(0, 4096, 0o1600))
c(libc.msgget(0, 0o1600))
c(libc.semget(0, 1, 0o1600))
c(libc.setpriority(0, 0, -5))
c(libc.sched_setscheduler(0, 1, ctypes.byref(ctypes.c_int(1))))
c(libc.sched_setaffinity(0, 8, ctypes.byref(ctypes.c_ulong(1))))
c(libc.setuid(1))
c(libc.sethostname(b"x", 1))
c(libc.mknod(b"device", 0o20666, 0x103))
c(libc.open(b"/proc/self/mem", 2))
c(libc.open(b"/proc/sys/kernel/hostname", 1))
c(libc.open(b"/dev/tty", 2))
c(libc.open(b"/dev/shm/shared", 0o102, 0o600))
c(libc.mkdir(b"/proc/mine", 0o700))
c(libc.setrlimit(0, ctypes.byref((ctypes.c_ulong * 2)(1 << 30, 1 << 30))))
"""

# What no right of reading guards; these need a root of its own.
ASKING = """
os.stat({victim!r})
os.stat(os.path.dirname({victim!r}))
os.stat({repository!r} + "/tests")
os.stat("/etc/passwd")
os.access({victim!r}, os.F_OK) or 1 / 0
os.statvfs({victim!r})
os.readlink("/proc/self/cwd")
os.chdir(os.path.dirname({victim!r}))
c(libc.access({victim!r}.encode(), 0))
"""


def attempts(lines: str, **places) -> str:
    """A hand-in that tries each line inside an answer and prints how it ended, and then answers right."""
    tried = lines.format(**places).strip().splitlines()
    return f"""
import ctypes
import socket

libc = ctypes.CDLL(None, use_errno=True)
pair = socket.socketpair()
x86 = os.uname().machine == "x86_64"
io_setup, userfaultfd, keyctl, bpf, perf = (206, 323, 250, 321, 298) if x86 else (0, 282, 219, 280, 241)
opened, own, folder = os.open(os.__file__, 0), os.open("leased", os.O_CREAT), os.open(".", 0)


def c(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")


def attempt(line):
    try:
        eval(line)
    except BaseException as error:
        return "refused " + type(error).__name__
    return "DONE"


def marginal(x0, level, eps):
    for i, line in enumerate({tried!r}):
        print(i, attempt(line), flush=True)
    with open("allowed", "w") as file:
        file.write("its own folder")
    return level.alpha * x0 + level.sigma * eps
"""
