"""Dataclasses from plain values, as they stand in YAML or JSON, and back; whatever does not belong is named."""

from __future__ import annotations

import dataclasses
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from .arguments import kind
from .words import nearest


def from_plain(cls: type, values: Any, where: str) -> Any:
    """Build a (nested) dataclass from a mapping.

    Args:
        cls: The dataclass. A field of type ``Any`` takes every value.
        values: The mapping.
        where: What the messages call it.

    Raises:
        ValueError: naming the first unknown key (with the nearest known one), missing key, or value of a wrong type or
            out of range.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be a mapping, got {values!r}")
    hints, fields = get_type_hints(cls, include_extras=True), {f.name: f for f in dataclasses.fields(cls) if f.init}
    for key in values:
        if key not in fields:
            raise ValueError(f"unknown key {where}.{key}: {nearest(str(key), fields) if fields else 'it takes none'}")
    unset = dataclasses.MISSING
    missing = [name for name, f in fields.items() if name not in values and f.default is f.default_factory is unset]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    return cls(**{k: _value(hints[k], v, f"{where}.{k}") for k, v in values.items()})


def to_plain(value: Any) -> Any:
    """Dataclasses as dicts and tuples as lists, all the way down."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {k: to_plain(v) for k, v in value.items()}
    return [to_plain(v) for v in value] if isinstance(value, (tuple, list)) else value


def _value(hint, value, where: str):
    if hint is Any:
        return value
    if get_origin(hint) is Annotated:
        value, range_ = _value(get_args(hint)[0], value, where), kind(hint)
        if not range_.holds(value, {}):
            raise ValueError(f"{where} must be {range_.words}, got {value!r}")
        return value
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_plain(hint, value, where)
    if isinstance(hint, UnionType) or get_origin(hint) is Union:  # with None, the only union there is
        return None if value is None else _value(next(o for o in get_args(hint) if o is not type(None)), value, where)
    if get_origin(hint) is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be a mapping, got {value!r}")
        return {str(key): _value(get_args(hint)[1], one, f"{where}.{key}") for key, one in value.items()}
    if get_origin(hint) is tuple:
        values = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_value(get_args(hint)[0], v, where) for v in values)
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-3 as a string
        except ValueError:
            pass
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where} must be of type {hint.__name__}, got {value!r}")
    return value
