"""What passes between the process that runs an answer and the process that judges it.

Values become JSON (tensors in base64) and callables references, in both directions. Nothing is ever unpickled: the
worst a malformed message can do is to raise Malformed here, which ends the conversation.
"""

from __future__ import annotations

import base64
import builtins
import contextlib
import importlib
import linecache
import math
import os
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minidiff.course.grading.channel import Channel, Gone, Malformed
from minidiff.course.outcomes import NotAttempted

MAX_TENSOR_BYTES = 8 << 20  # larger than any that a case needs; far below what a message may have
MAX_DEPTH = 40
MAX_BITS = 10_000  # of an integer; JSON's reader refuses some 14,000
MAX_TEXT = 2000  # characters of an exception that are passed on

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    )
}

# Exceptions that a case may expect (``except ValueError``); all others arrive as AnswerError.
BUILTIN = (
    *("ArithmeticError", "AssertionError", "AttributeError", "IndexError", "KeyError", "LookupError", "MemoryError"),
    *("NameError", "NotImplementedError", "OverflowError", "RecursionError", "RuntimeError", "TypeError"),
    *("ValueError", "ZeroDivisionError"),
)
EXCEPTIONS = {name: getattr(builtins, name) for name in BUILTIN} | {"NotAttempted": NotAttempted}

# Where code lies that is no learner's: Python, its packages, this one.
_FOLDERS = [
    *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    *(str(Path(module.__file__).parent) for module in (torch, np)),
    str(Path(__file__).parents[2]),
]
LIBRARIES = tuple(folder + os.sep for path in _FOLDERS for folder in {path, os.path.realpath(path)})

# class name -> (module, {constructor argument: attribute}). Only these are ever rebuilt.
CLASSES: dict[str, tuple[str, dict[str, str]]] = {}


def register(name: str, module: str, **attributes: str) -> None:
    """Let instances of ``module.name`` travel: each constructor argument is read from the attribute given for it."""
    CLASSES[name] = (module, attributes)


register("NoiseLevel", "minidiff.schedule", alpha="alpha", sigma="sigma", time="time")
register("DiscreteSchedule", "minidiff.schedule", betas="betas")
register("Prediction", "minidiff.prediction", **{k: k for k in ("x", "level", "value", "kind", "fraction", "tilt")})
register("GaussianDenoiser", "minidiff.exact", mean="mean", covariance="covariance")
register("GaussianMixtureDenoiser", "minidiff.exact", **{k: k for k in ("means", "variance", "weights", "labels")})
register("EmpiricalDenoiser", "minidiff.exact", images="means", labels="labels", bandwidth="bandwidth")


class AnswerError(Exception):
    """The answer raised an exception of a kind that has no counterpart here."""


class Remote:
    """A callable that lives on the other side."""

    def __init__(self, codec: Codec, index: int):
        self._codec, self._index = codec, index

    def __call__(self, *args, **kwargs):
        return self._codec.call_remote(self._index, args, kwargs)

    def __bool__(self):
        raise TypeError("a function where a value was expected")  # else ``assert answer(x)`` would hold


class Codec:
    """Values to JSON and back; knows which of our callables the other side may call."""

    def __init__(self, *shared: Callable):
        self.shared = list(shared)

    def call_remote(self, index: int, args: tuple, kwargs: dict) -> Any:
        """Call what the other side shared under ``index``."""
        raise NotImplementedError

    def encode(self, value: Any, depth: int = 0) -> Any:
        """Raises TypeError for a value that cannot travel."""
        if depth > MAX_DEPTH:
            raise TypeError(f"nested deeper than {MAX_DEPTH} levels")
        inner = lambda items: [self.encode(item, depth + 1) for item in items]
        if value is None or isinstance(value, (bool, str)):
            return value if value is None or isinstance(value, bool) else str(value)
        if isinstance(value, np.generic):
            return self.encode(value.item(), depth + 1)
        if isinstance(value, int) and int(value).bit_length() > MAX_BITS:
            raise TypeError("an integer of so many digits cannot be passed")
        if isinstance(value, (int, float)):
            return int(value) if isinstance(value, int) else float(value)
        if isinstance(value, list):
            return inner(value)
        if isinstance(value, tuple):
            return {"tuple": inner(value)}
        if isinstance(value, dict):
            return {"dict": [inner(item) for item in value.items()]}
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(np.ascontiguousarray(value))
        if isinstance(value, torch.Tensor):
            return {"tensor": _encode_tensor(value)}
        if isinstance(value, torch.Generator):
            return {"generator": _encode_tensor(value.get_state())}
        name = type(value).__name__
        if name in CLASSES and type(value).__module__ == CLASSES[name][0]:
            fields = {k: self.encode(getattr(value, a), depth + 1) for k, a in CLASSES[name][1].items()}
            return {"object": [name, fields]}
        if isinstance(value, Remote) and value._codec is self:
            return {"yours": value._index}
        if callable(value):
            self.shared.append(value)
            return {"mine": len(self.shared) - 1}
        raise TypeError(
            f"a {name} cannot be passed between an answer and its checks; use numbers, strings, lists, "
            f"tuples, dicts, tensors, functions, {', '.join(CLASSES)}"
        )

    def decode(self, data: Any) -> Any:
        """Raises Malformed for anything that ``encode`` does not produce."""
        try:
            return self._decode(data, 0)
        except Exception as error:  # whatever a constructor makes of hostile fields
            raise Malformed(f"sent a value that cannot be read ({type(error).__name__}: {error})") from error

    def _decode(self, data: Any, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError("nested too deeply")
        if data is None or isinstance(data, (bool, int, float, str)):
            return data
        inner = lambda items: [self._decode(item, depth + 1) for item in items]
        if isinstance(data, list):
            return inner(data)
        ((kind, body),) = data.items()
        if kind == "tuple":
            return tuple(inner(body))
        if kind == "dict":
            return {key: item for key, item in map(inner, body)}
        if kind == "tensor":
            return _decode_tensor(*body)
        if kind == "generator":
            generator = torch.Generator()
            generator.set_state(_decode_tensor(*body))
            return generator
        if kind == "object":
            name, fields = body
            module, attributes = CLASSES[name]
            if set(fields) != set(attributes):
                raise ValueError(f"wrong fields for {name}")
            arguments = {key: self._decode(item, depth + 1) for key, item in fields.items()}
            return getattr(importlib.import_module(module), name)(**arguments)
        if kind == "yours" and _is_index(body) and body < len(self.shared):
            return self.shared[body]
        if kind == "mine" and _is_index(body):
            return Remote(self, body)
        raise ValueError(f"unknown kind {kind!r:.40}")


def _is_index(value: Any) -> bool:
    return type(value) is int and value >= 0


def _encode_tensor(tensor: torch.Tensor) -> list:
    with torch._C.DisableTorchFunctionSubclass():  # a subclass travels as the plain tensor it holds
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in DTYPES or tensor.layout != torch.strided or tensor.is_meta:
            raise TypeError(f"a tensor of {tensor.dtype} ({tensor.layout}, {tensor.device}) cannot be passed")
        if tensor.numel() * tensor.element_size() > MAX_TENSOR_BYTES:
            raise TypeError(f"a tensor of shape {tuple(tensor.shape)} is too large (at most {MAX_TENSOR_BYTES} bytes)")
        plain = tensor.detach().cpu().contiguous()
        data = plain.resolve_conj().resolve_neg().reshape(-1).view(torch.uint8).numpy().tobytes()
        return [dtype, list(plain.shape), base64.b64encode(data).decode()]


def _decode_tensor(name: str, shape: list, text: str) -> torch.Tensor:
    dtype, data = DTYPES[name], bytearray(base64.b64decode(text, validate=True))
    if not all(_is_index(n) and n < 1 << 31 for n in shape) or len(shape) > 16:
        raise ValueError("not a shape")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{len(data)} bytes do not fill a {name} tensor of shape {shape}")
    if not data:
        return torch.empty(shape, dtype=dtype)
    raw = torch.frombuffer(data, dtype=torch.uint8)
    return (raw != 0 if dtype is torch.bool else raw.view(dtype)).reshape(shape)


class Peer(Codec):
    """One end of a conversation in which either side may call what the other shared, also while being called."""

    def __init__(self, channel: Channel, *shared: Callable, caught: type[BaseException] = Exception):
        super().__init__(*shared)
        self.channel, self._caught = channel, caught  # what is told to the other side rather than raised here

    def call_remote(self, index: int, args: tuple, kwargs: dict) -> Any:
        """Raises what the other side raised (as far as EXCEPTIONS go), or Gone."""
        message = {"call": index, "args": self.encode(args), "kwargs": self.encode(kwargs)}
        self.channel.send(message | {"grad": torch.is_grad_enabled()})  # a call under no_grad is one there, too
        while True:
            message = self.channel.receive()
            if not isinstance(message, dict):
                raise Malformed("sent a message of the wrong shape")
            if "return" in message:
                return self.decode(message["return"])
            if "raise" in message:
                raise _rebuild_exception(message["raise"])
            self.answer(message)

    def answer(self, message: Any) -> None:
        """Serve one call of the other side."""
        try:
            function = self.shared[message["call"]]
            args, kwargs = self.decode(message["args"]), self.decode(message["kwargs"])
        except (TypeError, KeyError, IndexError) as error:
            raise Malformed("sent a call of the wrong shape") from error
        try:
            with torch.set_grad_enabled(message.get("grad") is not False):
                reply = {"return": self.encode(function(*args, **kwargs))}
        except Gone:
            raise
        except self._caught as error:
            reply = {"raise": describe(error)}
        self.channel.send(reply)

    def serve(self) -> None:
        """Answer calls until the other side has ended."""
        while True:
            self.answer(self.channel.receive())


def describe(error: BaseException) -> list[str]:
    """An exception as [type, text, line of the learner's own]; survives a hostile ``__str__``."""
    kind = next((c.__name__ for c in type(error).__mro__ if c.__name__ in EXCEPTIONS), "")
    try:
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    except BaseException:
        text = "(no message)"
    own = type(error).__name__
    return [kind, (text if own == kind else f"{own}: {text}")[:MAX_TEXT], own_line(error)[:MAX_TEXT]]


def own_line(error: BaseException) -> str:
    """The deepest line of a learner's own code that an exception came through: ``line 3: return x / 0``, or ""."""
    try:
        found, trace = None, error.__traceback__
        while trace is not None:
            name = trace.tb_frame.f_code.co_filename
            if not name.startswith(("<frozen", *LIBRARIES)):
                found = (name, trace.tb_lineno)
            trace = trace.tb_next
        return "" if found is None else f"line {found[1]}: {linecache.getline(*found).strip()}".removesuffix(": ")
    except BaseException:  # of a hostile exception
        return ""


def _rebuild_exception(data: Any) -> BaseException:
    if not (isinstance(data, list) and len(data) == 3 and all(isinstance(part, str) for part in data)):
        return Malformed("sent an exception of the wrong shape")
    kind, text, line = (part[:MAX_TEXT] for part in data)
    error = EXCEPTIONS.get(kind, AnswerError)(text)
    error.own_line = line
    return error


class _Loop(Codec):
    """One end of a conversation inside one process."""

    other: _Loop

    def call_remote(self, index: int, args: tuple, kwargs: dict) -> Any:
        given, options = self.other.decode(self.encode(args)), self.other.decode(self.encode(kwargs))
        try:
            return self.decode(self.other.encode(self.other.shared[index](*given, **options)))
        except Exception as error:
            with contextlib.suppress(Exception):
                error.own_line = own_line(error)
            raise


def loopback(answer: Any) -> Any:
    """The answer as the grader would see it: arguments and results are copied through the codec, in this process.

    So a check in a notebook and the same check in the grader see the same thing: plain values, no autograd graph, no
    shared memory, no overloaded operators.
    """
    here, there = _Loop(), _Loop()
    here.other, there.other = there, here
    return here.decode(there.encode(answer))
