"""Arguments as signatures promise them: another type or shape, a number out of range or NaN is refused at the door.

A promise is the annotation itself, so it is written once: ``scale: Finite``, ``n: Count``, ``features: floats("N d")``.
A plain ``float`` may be NaN, for a function that says itself what it accepts. Nothing here reads the numbers of a
tensor, which would make a device wait.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import chain, repeat, zip_longest
from numbers import Integral, Real
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import torch
from torch import Generator, Tensor

Checked = TypeVar("Checked", bound=Callable)
Sizes = dict[str, Any]  # of the axes that the arguments of one call have named so far


@dataclass(frozen=True)
class Kind:
    """A kind of values.

    Attributes:
        words: What it is called in messages.
        holds: Whether a value is of it, beside the sizes of what stands before it in the call.
    """

    words: str
    holds: Callable[[Any, Sizes], bool]

    def __repr__(self) -> str:
        return self.words


def checked(thing: Checked) -> Checked:
    """A function, or a class with its public methods, that refuses arguments which its signature does not promise.

    The refusal is a ``ValueError`` that says what was given and what is accepted. Defaults are taken as they are.
    """
    if not isinstance(thing, type):
        return _checked(thing, ())
    for name, member in list(vars(thing).items()):
        if name in ("__init__", "__call__", "__add__") or not name.startswith("_"):
            if isinstance(member, (staticmethod, classmethod)):
                setattr(thing, name, type(member)(_checked(member.__func__, thing.__mro__)))
            elif inspect.isfunction(member):
                setattr(thing, name, _checked(member, thing.__mro__))
    return thing


def _checked(function: Callable, owners: Sequence[type]) -> Callable:
    parameters = list(inspect.signature(function).parameters.values())
    places = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    rest = [p.name for p in parameters if p.kind is p.VAR_POSITIONAL]
    if all(p.annotation is p.empty for p in parameters):
        return function
    kinds: dict[str, Kind] = {}

    @wraps(function)
    def call(*args, **kwargs):
        if torch.compiler.is_compiling():  # a graph holds no checks: it would break at each of them
            return function(*args, **kwargs)
        if not kinds:  # at the first call: annotations may name what stands further down
            kinds.update(_kinds(function, parameters, owners))
        sizes: Sizes = {}
        names = chain(places, repeat(rest[0])) if rest else places
        for name, value in chain(zip(names, args), kwargs.items()):  # noqa: B905, Python refuses too many or too few
            expected = kinds.get(name, ANYTHING)
            if expected is not ANYTHING and not expected.holds(value, sizes):
                raise _refused(function, name, expected, value, sizes)
        return function(*args, **kwargs)

    return call


def _kinds(function: Callable, parameters: Iterable[inspect.Parameter], owners: Sequence[type]) -> dict[str, Kind]:
    """What each parameter promises; an inherited field speaks the language of the module that it comes from."""
    names = {k: v for owner in reversed(owners) for k, v in vars(sys.modules[owner.__module__]).items()}
    names |= inspect.unwrap(function).__globals__
    return {p.name: ANYTHING if p.kind is p.VAR_KEYWORD else kind(_promise(p.annotation, names)) for p in parameters}


def _promise(annotation: Any, names: dict) -> Any:
    """An annotation that may be a string; one that only type checkers can read promises nothing."""
    try:
        return eval(annotation, names) if isinstance(annotation, str) else annotation
    except NameError:
        return Any


def _refused(function: Callable, name: str, expected: Kind, value: Any, sizes: Sizes) -> ValueError:
    where = function.__qualname__.rpartition(".<locals>.")[2].removesuffix(".__init__")
    axes = re.findall(r"\*?\w+", expected.words)
    known = ", ".join(f"{axis} = {sizes[axis]}" for axis in axes if axis in sizes)
    beside = f" where {known}" if known else ""
    return ValueError(f"{where}: {name} must be {expected.words}{beside}, got {described(value)}")


def described(value: Any) -> str:
    """A value in a message: numbers and words themselves, shortened; of anything else what it is."""
    if isinstance(value, Tensor):
        where = "" if value.device.type == "cpu" else f" on {value.device}"
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}{where}"
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:57]}..."
    if isinstance(value, (list, tuple)) and len(value) <= 4:
        items = ", ".join(_a(type(v).__name__) if isinstance(v, (list, tuple)) else described(v) for v in value)
        return f"[{items}]" if isinstance(value, list) else f"({items})"
    if isinstance(value, Mapping) and 0 < len(value) <= 4:
        return "{" + ", ".join(f"{name}: {described(held)}" for name, held in value.items()) + "}"
    if isinstance(value, (type, types.FunctionType)):
        return f"the {'class' if isinstance(value, type) else 'function'} {value.__name__}"
    return _a(type(value).__name__)


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'AEIOUaeiou' else 'a'} {noun}"


def _simple(words: str, holds: Callable[[Any], bool]) -> Kind:
    return Kind(words, lambda value, sizes: holds(value))


def _is_whole(value) -> bool:
    return isinstance(value, Integral) and _is_number(value)


def _is_real(value) -> bool:
    if isinstance(value, int):  # larger ones do not fit into what tensors compute with
        return not isinstance(value, bool) and -(1 << 63) <= value < 1 << 63
    return isinstance(value, Real)


def _is_number(value) -> bool:
    return _is_real(value) and value == value  # NaN is not itself


Count = Annotated[int, _simple("a whole number >= 1", lambda v: _is_whole(v) and v >= 1)]
Natural = Annotated[int, _simple("a whole number >= 0", lambda v: _is_whole(v) and v >= 0)]
Finite = Annotated[float, _simple("a finite number", lambda v: _is_number(v) and -math.inf < v < math.inf)]
Positive = Annotated[float, _simple("a finite number > 0", lambda v: _is_number(v) and 0 < v < math.inf)]
NonNegative = Annotated[float, _simple("a finite number >= 0", lambda v: _is_number(v) and 0 <= v < math.inf)]
Share = Annotated[float, _simple("a number from 0 to 1", lambda v: _is_number(v) and 0 <= v <= 1)]
Some = Annotated[float, _simple("a share in (0, 1]", lambda v: _is_number(v) and 0 < v <= 1)]
Bins = Annotated[int, _simple("a whole number >= 2", lambda v: _is_whole(v) and v >= 2)]
Device = Annotated[str, _simple("a device that is here, 'cpu' say", lambda v: is_device(v))]
Inside = Annotated[float, _simple("a number between 0 and 1", lambda v: _is_number(v) and 0 < v < 1)]
WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def is_device(value) -> bool:
    """Whether tensors can be on a device, and computed with."""
    try:
        return value is not None and torch.empty(0, device=value).device.type != "meta"
    except (RuntimeError, AssertionError, TypeError):  # no such device, not in this build, no device
        return False


def called(words: str, hint: Any, also: Callable[[Any], bool] = lambda value: True) -> Any:
    """An annotation with words of its own for messages, and perhaps something more that it promises."""
    held = kind(hint)
    return Annotated[hint, Kind(words, lambda value, sizes: held.holds(value, sizes) and also(value))]


def floats(shape: str = "*") -> Any:
    """The annotation of a tensor of real numbers whose axes are named: "N d", "B *S" (S all others), "B/1 3 H W".

    Arguments of one call that name the same axis have the same size there; "B/1" and the axes of "*S/1" may also be 1.
    """
    return Annotated[Tensor, _tensor("real numbers", lambda value: value.is_floating_point(), shape)]


def integers(shape: str = "*") -> Any:
    """The same of whole numbers."""
    return Annotated[Tensor, _tensor("whole numbers", lambda value: value.dtype in WHOLE, shape)]


def flags(shape: str = "*") -> Any:
    """The same of True and False."""
    return Annotated[Tensor, _tensor("True and False", lambda value: value.dtype is torch.bool, shape)]


def numbers(shape: str = "*") -> Any:
    """The same of whole or real numbers, or of yes and no."""
    return Annotated[Tensor, _tensor("numbers", lambda value: not value.is_complex(), shape)]


def _tensor(of: str, dtype: Callable[[Tensor], bool], shape: str) -> Kind:
    axes = [(name.partition("/")[0], "/" in name) for name in shape.split()]
    words = f"a tensor ({', '.join(shape.split())}) of {of}".replace("/", " or ")

    def holds(value, sizes: Sizes) -> bool:
        if not isinstance(value, Tensor) or not dtype(value):
            return False
        return shape == "*" or _fits(tuple(value.shape), axes, sizes)

    return Kind(f"a tensor of {of}" if shape == "*" else words, holds)


def _fits(given: tuple[int, ...], axes: list[tuple[str, bool]], sizes: Sizes) -> bool:
    """Whether a shape has these axes, each a name and whether it may be 1; their sizes are noted."""
    count = len(axes)
    if axes and axes[-1][0][0] == "*":
        count -= 1
        if len(given) < count or not _fits_rest(given[count:], *axes[-1], sizes):
            return False
    elif len(given) != count:
        return False
    for (name, one), size in zip(axes, given):  # noqa: B905, the rest was looked at
        if name[0] == "*" or (one and size == 1):
            continue
        if size != (int(name) if name.isdecimal() else sizes.setdefault(name, size)):
            return False
    return True


def _fits_rest(given: tuple[int, ...], name: str, one: bool, sizes: Sizes) -> bool:
    if not one:
        return sizes.setdefault(name, given) == given
    rest = sizes.get(name, given)
    return len(given) == len(rest) and all(size in (1, own) for size, own in zip(given, rest, strict=True))


ANYTHING = _simple("anything", lambda value: True)
NONE = _simple("None", lambda value: value is None)
PLAIN = {
    Any: ANYTHING,
    object: ANYTHING,
    inspect.Parameter.empty: ANYTHING,
    None: NONE,
    type(None): NONE,
    bool: _simple("True or False", lambda value: isinstance(value, bool)),
    int: _simple("a whole number", _is_whole),
    float: _simple("a number", _is_real),
    str: _simple("a text", lambda value: isinstance(value, str)),
    Tensor: _tensor("numbers", lambda value: not value.is_complex(), "*"),
}


def kind(hint: Any) -> Kind:
    """The values that an annotation promises; those that it says nothing checkable of are anything."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return next((extra for extra in inner[1:] if isinstance(extra, Kind)), None) or kind(inner[0])
    if origin is None and hint in PLAIN:
        return PLAIN[hint]
    if origin in (Union, types.UnionType):
        return _either([kind(option) for option in inner])
    if origin is Literal:
        return _simple(f"one of {', '.join(map(repr, inner))}", lambda value: isinstance(value, str) and value in inner)
    if origin is Callable or hint is Callable:
        return _function(len(inner[0]) if inner and isinstance(inner[0], list) else None)
    if isinstance(origin, type):
        return _collection(origin, inner)
    return _instance(hint) if isinstance(hint, type) else ANYTHING


def _function(count: int | None) -> Kind:
    words = "a function" if count is None else f"a function of {count} argument{'s' * (count != 1)}"
    return _simple(words, lambda v: callable(v) and not isinstance(v, type) and (count is None or _takes(v, count)))


def _takes(function: Callable, count: int) -> bool:
    """Whether a function in Python takes so many arguments; of other callables nothing is said."""
    bound = hasattr(function, "__self__")
    function = getattr(function, "__wrapped__", function)
    code = getattr(function, "__code__", None)
    if code is None or bound or code.co_flags & inspect.CO_VARARGS:
        return True
    return code.co_argcount - len(function.__defaults__ or ()) <= count <= code.co_argcount


def _either(options: list[Kind]) -> Kind:
    words = " or ".join(dict.fromkeys(option.words for option in options))

    def holds(value, sizes: Sizes) -> bool:
        for option in options:  # noqa: SIM110, a loop is faster, and this runs in every step of a sampler
            if option.holds(value, sizes):
                return True
        return False

    return ANYTHING if ANYTHING in options else Kind(words, holds)


def _collection(origin: type, inner: tuple) -> Kind:
    """Mappings and sequences with what they hold; of iterators nothing is taken to look at it."""
    if issubclass(origin, Mapping):
        held = kind(inner[1])
        words = "a mapping" if held is ANYTHING else f"a mapping to {held.words}"
        return Kind(words, lambda v, sizes: isinstance(v, Mapping) and all(held.holds(one, {}) for one in v.values()))
    if issubclass(origin, tuple) and Ellipsis not in inner:
        return _row([kind(one) for one in inner])
    if issubclass(origin, Sequence) or origin in (Iterable, Collection):
        return _sequence(
            kind(inner[0]), origin if issubclass(origin, list) or not issubclass(origin, Sequence) else Sequence
        )
    return _instance(origin)


def _row(kinds: list[Kind]) -> Kind:
    def holds(value, sizes: Sizes) -> bool:
        if not isinstance(value, (tuple, list)) or len(value) != len(kinds):
            return False
        return all(one.holds(v, sizes) for one, v in zip(kinds, value, strict=True))

    return Kind(f"({', '.join(one.words for one in kinds)})", holds)


def _sequence(held: Kind, cls: type) -> Kind:
    def holds(value, sizes: Sizes) -> bool:
        if not isinstance(value, cls) or isinstance(value, (str, bytes, Tensor, Mapping)):
            return False
        once = held is ANYTHING or not isinstance(value, Sequence)  # an iterator can be read but once
        return once or all(held.holds(one, {}) for one in value)

    return Kind("a sequence" if held is ANYTHING else f"a sequence, each {held.words}", holds)


def _instance(cls: type) -> Kind:
    """Objects of a class; of a compiled network it counts what was compiled."""
    if getattr(cls, "_is_protocol", False):
        return ANYTHING
    holds = lambda value: isinstance(value, cls) or isinstance(getattr(value, "_orig_mod", None), cls)
    return _simple(getattr(cls, "accepted", _a(cls.__name__)), holds)


Randomness = called("None, a torch.Generator or a list with one per sample", None | Generator | list[Generator])


def require_broadcast(*values: float | Tensor) -> None:
    """Raise ValueError unless the shapes of tensors go together, numbers beside them left out."""
    shapes = [tuple(value.shape) for value in values if isinstance(value, Tensor)]
    for sizes in zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1):
        if len(set(sizes) - {1}) > 1:
            raise ValueError(f"shapes that broadcast are accepted, got {' and '.join(map(str, shapes))}")
