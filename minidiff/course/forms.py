"""The form of an answer: what kind of thing it is, which every exercise says in the same words before judging a value.

An exercise declares a form; what the form lets through reaches the cases as plain values (a number asked for is a
``float``, also when the answer was a tensor of one element; a tensor of floats is float64)::

    exercise(
        "ex-01-posterior", name="posterior", lesson=LESSON,
        form=call(several(mean=tensor("x_t"), variance=number()),
                  lambda rng: {"x_t": normal(rng, 2, 3), "x0": normal(rng, 2, 3), "t": NOISY, "s": CLEAN}),
    )

The sample's keys are the names of the statement's signature, in its order. The case "form" calls the answer with them
by name, the other cases call it in that order, and every call of every case is held to the form.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Generator, Tensor

from minidiff.course.grading.wire import Remote
from minidiff.prediction import Prediction
from minidiff.schedule import NoiseLevel

ANSWER, RETURNED = "the answer", "what your function returns"
Given = dict[str, Any]  # the arguments of the call that gave a value
Sized = str | tuple[int, ...] | Callable[[Given], tuple[int, ...]]


class Form:
    """A kind of answer; this one lets everything through but nothing at all."""

    def see(self, value: Any, given: Given, what: str) -> Any:
        """The value as the cases see it.

        Args:
            value: the answer, or what a call of it returned.
            given: the arguments of that call.
            what: what to call the value in a message.

        Raises:
            AssertionError: it has not the form; the message says what it is and what it should be.
        """
        _is_something(value, what, "something")
        return _Watched(value) if isinstance(value, Remote) else value

    def probe(self, seen: Any, rng: Generator) -> None:
        """Try a value that ``see`` gave: call it on sample arguments, if it is a function."""

    def constant(self, value: float, given: Given) -> Any:
        """An answer of this form without a thought in it: everywhere one value."""
        return value


class _Watched:
    """A function whose signature nobody declared: what it returns must at least be something."""

    def __init__(self, function: Callable):
        self._function = function

    def __call__(self, *args, **kwargs):
        return Form().see(self._function(*args, **kwargs), {}, RETURNED)

    def __bool__(self):
        raise TypeError("a function where a value was expected")  # else ``assert answer(x)`` would hold


class _Number(Form):
    def __init__(self, integer: bool):
        self._wanted = "an integer" if integer else "a number"
        self._integer = integer

    def see(self, value, given, what):
        _is_something(value, what, self._wanted)
        if isinstance(value, Tensor):
            assert value.numel() == 1, f"{what} must be {self._wanted}; it is {_kind(value)}"
            value = value.item()
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        assert plain, f"{what} must be {self._wanted}; it is {_kind(value)}"
        if not self._integer:
            return float(value)
        assert float(value).is_integer(), f"{what} must be an integer; it is {value}"
        return int(value)

    def constant(self, value, given):
        return int(value) if self._integer else value


class _Choice(Form):
    def see(self, value, given, what):
        _is_something(value, what, "True or False")
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        assert isinstance(value, int | float) and value in (0, 1), f"{what} must be True or False; it is {_kind(value)}"
        return bool(value)

    def constant(self, value, given):
        return bool(value)


class _Array(Form):
    def __init__(self, size: Sized, kind: str | None, exact: bool | str):
        self._size, self._kind, self._exact = size, kind, exact

    def see(self, value, given, what):
        _is_something(value, what, "a tensor")
        value = _as_tensor(value)
        assert isinstance(value, Tensor), f"{what} must be a tensor; it is {_kind(value)}"
        found, (size, kind, dtype, note) = tuple(value.shape), self._wanted(given)
        assert found == size, f"{what} has shape {found}; it must be {size}{note}"
        assert _sort(value.dtype) == kind, f"{what} has dtype {_named(value.dtype)}; it must hold {_PLURAL[kind]}"
        if self._exact:
            assert value.dtype == dtype, f"{what} has dtype {_named(value.dtype)}; it must be {_named(dtype)}"
            return value
        return value.double() if kind == "float" else value.long() if kind == "integer" else value

    def constant(self, value, given):
        size, kind, dtype, _ = self._wanted(given)
        kinds = {"float": torch.float64, "integer": torch.int64, "bool": torch.bool}
        return torch.full(size, value, dtype=dtype if self._exact else kinds[kind])

    def _wanted(self, given: Given) -> tuple[tuple[int, ...], str, torch.dtype | None, str]:
        """Shape, kind, dtype, and a remark on the shape."""
        if isinstance(self._size, str):
            like = given[self._size]
            return tuple(like.shape), self._kind or _sort(like.dtype), like.dtype, f", the shape of {self._size}"
        dtype = given[self._exact].dtype if isinstance(self._exact, str) else None
        kind = self._kind or (_sort(dtype) if dtype else "float")
        return tuple(self._size(given) if callable(self._size) else self._size), kind, dtype, ""


class _Several(Form):
    def __init__(self, parts: dict[str, Form]):
        self._parts = parts

    def see(self, value, given, what):
        wanted = f"{len(self._parts)} things, ({', '.join(self._parts)})"
        _is_something(value, what, wanted)
        if isinstance(value, Tensor) and value.ndim:
            value = list(value)
        assert isinstance(value, tuple | list), f"{what} must be {wanted}; it is {_kind(value)}"
        assert len(value) == len(self._parts), f"{what} must be {wanted}; there are {len(value)}"
        return tuple(part.see(v, given, name) for (name, part), v in zip(self._parts.items(), value, strict=True))

    def probe(self, seen, rng):
        for part, value in zip(self._parts.values(), seen, strict=True):
            part.probe(value, rng)

    def constant(self, value, given):
        return tuple(part.constant(value, given) for part in self._parts.values())


class _Listed(Form):
    def __init__(self, of: Form, count: int | Callable[[Given], int]):
        self._of, self._count = of, count

    def see(self, value, given, what):
        count = self._count(given) if callable(self._count) else self._count
        _is_something(value, what, f"a list of {count}")
        if isinstance(value, Tensor) and value.ndim:
            value = list(value)
        assert isinstance(value, tuple | list), f"{what} must be a list of {count}; it is {_kind(value)}"
        assert len(value) == count, f"{what} must have {count} entries; it has {len(value)}"
        return [self._of.see(v, given, f"entry {i} of {what}") for i, v in enumerate(value)]

    def constant(self, value, given):
        count = self._count(given) if callable(self._count) else self._count
        return [self._of.constant(value, given) for _ in range(count)]


class _Predicted(Form):
    def __init__(self, size: str):
        self._size = size

    def see(self, value, given, what):
        _is_something(value, what, "a Prediction")
        assert isinstance(value, Prediction), f"{what} must be a Prediction; it is {_kind(value)}"
        found, wanted = tuple(value.x.shape), tuple(given[self._size].shape)
        assert found == wanted, f"{what} is for an x of shape {found}; {self._size} has {wanted}"
        return value

    def constant(self, value, given):
        level = next(v for v in given.values() if isinstance(v, NoiseLevel))
        return Prediction(given[self._size], level, torch.full_like(given[self._size], value), "eps")


class _Call(Form):
    def __init__(self, gives: Form, sample: Callable[[Generator], Given]):
        self._gives, self._sample = gives, sample

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(self._sample(Generator()))

    def see(self, value, given, what):
        _is_something(value, what, "a function")
        assert callable(value), f"{what} must be a function; it is {_kind(value)}"
        returned = RETURNED if what == ANSWER else "what the function that yours returns gives"

        def seen(*args, **kwargs):
            named = dict(zip(self._names, args, strict=False)) | kwargs
            return self._gives.see(value(*args, **kwargs), named, returned)

        return seen

    def constant(self, value, given):
        return lambda *args, **kwargs: self._gives.constant(
            value, given | dict(zip(self._names, args, strict=False)) | kwargs
        )

    def probe(self, seen, rng):
        given = self._sample(rng)
        try:
            result = seen(**given)
        except TypeError as error:
            if getattr(error, "own_line", None) != "":  # it came from inside, not from the way it was called
                raise
            call = f"({', '.join(given)})"
            raise AssertionError(f"it must take the arguments {call}, also by these names: {error}") from error
        self._gives.probe(result, rng)


def anything() -> Form:
    """Whatever is not None; so are the values that a function returns."""
    return Form()


def number() -> Form:
    """One number: int, float, a tensor of one element; a float to the cases."""
    return _Number(False)


def integer() -> Form:
    """One number without a fraction (700, 700.0, ``torch.tensor(700)``); an int to the cases."""
    return _Number(True)


def yes_or_no() -> Form:
    """True or False, also as a tensor of one element; a bool to the cases."""
    return _Choice()


def tensor(size: Sized, kind: str | None = None, *, exact: bool | str = False) -> Form:
    """A tensor, or a list of numbers that could be one; float64, int64 or bool to the cases.

    Args:
        size: name of the argument whose shape it has, or the shape, or a function of the arguments that gives it.
        kind: "float", "integer" or "bool"; by default that of the argument named, else "float".
        exact: the very dtype of the argument named, and the cases see it; where ``size`` names none, the name.
    """
    return _Array(size, kind, exact)


def several(**parts: Form) -> Form:
    """A tuple or list with these parts; a tuple to the cases."""
    return _Several(parts)


def listed(of: Form, count: int | Callable[[Given], int]) -> Form:
    """A list, a tuple or a tensor's rows, so many of a kind; a list to the cases."""
    return _Listed(of, count)


def prediction(size: str) -> Form:
    """A Prediction for an x that has the shape of the argument named."""
    return _Predicted(size)


def call(gives: Form, sample: Callable[[Generator], Given]) -> Form:
    """A function.

    Args:
        gives: the form of what it returns; another ``call`` where that is a function again.
        sample: arguments to try it with, drawn from a generator, by the names and in the order of the statement.
    """
    return _Call(gives, sample)


def taking(names: str, function: Callable) -> Callable:
    """A function to hand to an answer, which may call it in order or by the statement's names ("x level")."""
    parameters = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in names.split()]
    signature = inspect.Signature(parameters)
    return lambda *args, **kwargs: function(*signature.bind(*args, **kwargs).args)


_PLURAL = {"float": "floating-point numbers", "integer": "integers", "bool": "True and False", "complex": "complex"}


def _sort(dtype: torch.dtype) -> str:
    if dtype.is_floating_point:
        return "float"
    return "bool" if dtype == torch.bool else "complex" if dtype.is_complex else "integer"


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _as_tensor(value: Any) -> Any:
    """Numbers, and lists of what can be stacked, as a tensor; anything else as it is."""
    if isinstance(value, bool | int | float):
        return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
    if isinstance(value, tuple | list) and value:
        parts = [_as_tensor(v) for v in value]
        if all(isinstance(v, Tensor) and v.shape == getattr(parts[0], "shape", None) for v in parts):
            return torch.stack(parts)
    return value


def _is_something(value: Any, what: str, wanted: str) -> None:
    assert value is not None, f"{what} is None: " + (
        "is a `return` missing?" if what.startswith("what ") else f"it must be {wanted}"
    )


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, tuple | list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    return "a function: call it, and keep what it returns" if callable(value) else f"of type {type(value).__name__}"
