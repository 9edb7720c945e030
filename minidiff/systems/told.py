"""What is told to a system: the values of its parts, read, made nothing, and encoded for its network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add

from torch import Tensor, nn

from ..arguments import Count, checked
from ..condition import Borrower, Condition, Part, Value, each, length
from ..training.trainable import Trainable
from ..words import nearest


def distinct(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts of a system.

    Raises:
        ValueError: for two of the same key.
    """
    keys = [part.key for part in parts]
    if len(set(keys)) < len(keys):
        raise ValueError(f"every part has a key of its own, got {', '.join(keys)}")
    return tuple(parts)


@checked
class Told(Trainable):
    """A system that is told something: whatever it draws.

    Attributes:
        network: Encodes the parts.
        parts: What it is told, in the order of channels and tokens.
        shape: Of one sample of what it draws.
    """

    network: nn.Module
    parts: tuple[Part, ...]
    shape: tuple[int, ...]

    @property
    def borrowers(self) -> tuple[Borrower, ...]:
        """The parts, some of which read what a person gives by a frozen network."""
        return self.parts

    @property
    def has_null(self) -> bool:
        """Whether any part can be nothing."""
        return any(part.nullable for part in self.parts)

    @property
    def drawn_shape(self) -> tuple[int, ...]:
        """Of one sample as it is handed out."""
        return self.shape

    def part(self, key: str) -> Part | None:
        """The part of that name, if there is one."""
        return next((part for part in self.parts if part.key == key), None)

    def read(self, values: Mapping[str, object], n: Count | None = None) -> dict[str, Value]:
        """What a person gave for the parts as their values, with n entries each.

        Args:
            values: By the key of a part. What is left out, or None, is nothing, where there is a null.
            n: Number of samples; the largest number of entries when left out.

        Raises:
            ValueError: for an unknown key (the nearest is named), a missing value, or one that a part refuses.
        """
        keys = [part.key for part in self.parts]
        for key in values:
            if key not in keys:
                raise ValueError(
                    f"this system is told no {key!r}: {nearest(key, keys) if keys else 'it is told nothing'}"
                )
        given = {
            part.key: each(self._here, part.read(values[part.key], self.shape))
            for part in self.parts
            if values.get(part.key) is not None
        }
        n = max(map(length, given.values()), default=1) if n is None else n
        for part in self.parts:
            if part.key not in given:
                if not part.nullable:
                    raise ValueError(f"this system is told its {part.key!r}, which has no null: name it")
                given[part.key] = each(self._here, part.nothing(self.network, n))
        return {part.key: self._repeated(part.key, given[part.key], n) for part in self.parts}

    def _here(self, value: Tensor) -> Tensor:
        """On the device of the network; numbers that are not counted also in its precision."""
        return value.to(self.device, self.dtype if value.is_floating_point() else value.dtype)

    @staticmethod
    def _repeated(key: str, value: Value, n: int) -> Value:
        entries = {len(t) for t in ((value,) if isinstance(value, Tensor) else value)}
        if not entries <= {1, n}:
            raise ValueError(f"{n} samples take 1 or {n} values of {key!r}, got {', '.join(map(str, sorted(entries)))}")
        return each(lambda t: t.expand(n, *t.shape[1:]), value)

    def encode(self, values: Mapping[str, Value]) -> Condition:
        """The sum of the parts, as it enters the network."""
        return reduce(add, (part.encode(self.network, values[part.key]) for part in self.parts), Condition())

    def nulls(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """Each value replaced by its null, where there is one."""
        return {part.key: part.null(self.network, values[part.key]) for part in self.parts}

    def condition(self, n: Count | None = None, **values) -> Condition:
        """What is to be drawn, as it enters the network: ``condition(label=[3, 7])``, ``condition(caption="a ring")``.

        Args:
            n: Number of samples; the largest number of entries when left out.
            values: By the key of a part; a nullable one that is left out is nothing.

        Raises:
            ValueError: for an unknown key, a missing value, or one that a part refuses.
        """
        return self.encode(self.read(values, n))

    def null(self, n: Count | None = None, **values) -> Condition:
        """The same with nothing in place of what can be nothing.

        Args:
            n: Number of samples; the largest number of entries when left out.
            values: Of the parts that cannot be nothing; others do not matter.
        """
        return self.encode(self.nulls(self.read(values, n)))
