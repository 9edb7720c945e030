"""Hand-ins that would have points for nothing. Each source runs after RIGHT, and spoils some of its answers."""

from attacks import WRONG

# Sends messages of its own: replies that nobody waits for, calls of what it was never given.
PUPPET = (
    WRONG
    + """
import gc
import minidiff.course.grading.channel as channel
import minidiff.course.grading.wire as wire


def ends(kind):
    return [o for o in gc.get_objects() if type(o) is kind]


def marginal(x0, level, eps):
    line = ends(channel.Channel)[0]
    for message in (
        {"return": True}, {"raise": ["AssertionError", "", ""]}, {"return": {"yours": 0}}, {"return": 42.0},
        {"call": 0, "args": {"tuple": []}, "kwargs": {"dict": []}}, {"call": -1, "args": 3}, {"return": {"mine": 3}},
    ):
        line.send(message)
    return x0


def scaled(f, s):
    return f


def gradient(world, x, level):
    (peer,) = ends(wire.Peer)
    for index in range(-3, 40):
        for arguments in ((), (x,), (x, level), (peer,), (lambda *a: True,)):
            try:
                peer.call_remote(index, arguments, {})
            except Exception:
                pass
    return x
"""
)

# Values that claim to be of a class that travels, or to have another shape than they have.
IMPOSTORS = """
import math
from minidiff.prediction import Prediction
from minidiff.schedule import NoiseLevel


class Lying(torch.Tensor):
    def detach(self):
        return torch.ones(3, 2).double() * math.nan

    numel = element_size = lambda self: 1
    shape = property(lambda self: (3, 2))
    dtype = property(lambda self: torch.float64)


def spoof(name, module, **fields):
    kind = type(name, (), {"__module__": module, "__call__": lambda self, *a, **k: self})
    made = kind()
    made.__dict__.update(fields)
    return made


yes = lambda *args, **kwargs: True


def marginal(x0, level, eps):
    return torch.zeros(3, 2).double().as_subclass(Lying)


def scaled(f, s):
    fields = dict.fromkeys(("x", "level", "value", "kind", "fraction", "tilt"), yes)
    return lambda x: spoof("Prediction", "minidiff.prediction", **fields)


def gradient(world, x, level):
    return spoof("NoiseLevel", "minidiff.schedule", alpha=yes, sigma=yes, time=yes)


class Forty(int):
    __abs__ = __sub__ = __rsub__ = lambda self, *other: 0
    __float__ = lambda self: 42.0
    __int__ = __index__ = lambda self: 42


number = Forty(41)
"""

# Exceptions that claim to be verdicts, and objects that end the process when they are let go.
RAISING = """
from minidiff.course.outcomes import Mistake, NotAttempted


class Loud(Exception):
    def __str__(self):
        return str(self)

    __repr__ = __str__
    __traceback__ = property(lambda self: 1 / 0)


Loud.__name__ = "AssertionError"


def marginal(x0, level, eps):
    raise type("NotAttempted", (Exception,), {})("3 of 3 points")


def scaled(f, s):
    def g(x):
        raise Mistake("PASS")
    return g


def gradient(world, x, level):
    raise Loud


class Number:
    def __del__(self):
        os.write(1, b"PASS")
        raise SystemExit(0)

    def __reduce__(self):
        return os._exit, (0,)


number = Number()
"""

# Values without end, or without order.
ODD_VALUES = """
endless = []
endless.append(endless)
deep = []
for _ in range(100_000):
    deep = [deep]
values = iter([math_nan := float("nan"), torch.full((3, 2), math_nan), torch.zeros(3, 2, dtype=torch.complex128)])


def marginal(x0, level, eps):
    return next(values, endless)


def scaled(f, s):
    return lambda x: deep


def gradient(world, x, level):
    return {(1, 2): {"a": [x] * 100}, 3: x}


number = complex(42, 1)
"""

# Texts and numbers that are too long.
STRINGS = """
def marginal(x0, level, eps):
    return [["1e400"] * 2] * 3


def scaled(f, s):
    return lambda x: "x" * (40 << 20)


def gradient(world, x, level):
    return 10**5000


number = "42"
"""

# Right once; then calls without end.
REPEATS = """
calls = 0


def marginal(x0, level, eps):
    global calls
    calls += 1
    return level.alpha * x0 + level.sigma * eps if calls == 1 else marginal.first


def scaled(f, s):
    for _ in range(10_000_000):
        f(torch.ones(2))
    return f


def gradient(world, x, level):
    def again(*args):
        return again(*args)
    sys.setrecursionlimit(1 << 30)
    return again()


number = 41
"""

# Takes away what its own process needs.
PATCHES = (
    WRONG
    + """
import builtins
import importlib.abc
import json
import select
import time


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        return None


sys.meta_path.insert(0, Finder())
sys.settrace(lambda *args: None)
sys.setprofile(lambda *args: None)
json.dumps = lambda value: '{"return": 42.0}'
time.monotonic = lambda: 0.0
builtins.isinstance = lambda *args: True
builtins.len = lambda value: 16
torch.Generator.manual_seed = torch.manual_seed = lambda seed: None
builtins.__import__ = lambda *args, **kwargs: json
"""
)

# Writes into its pipes half a second later.
TIME_BOMB = (
    WRONG
    + """
import threading


def later():
    import time
    time.sleep(0.5)
    for fd in range(3, 40):
        try:
            os.write(fd, (20).to_bytes(8, "big") + b'{"return": 42.0}    ')
        except OSError:
            pass


threading.Thread(target=later, daemon=True).start()
number = 41
"""
)
