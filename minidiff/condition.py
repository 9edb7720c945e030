"""What a network reads beside x: a condition is a sum of parts, each of which enters by its own doors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .arguments import NonNegative, Randomness, checked, described, flags, floats
from .random import rand

Value = Tensor | tuple[Tensor, ...]  # of a part: tensors with one entry per sample


@checked
@dataclass(frozen=True)
class Condition:
    """The three doors into a network. Conditions add: vectors are summed, tokens and image channels concatenated.

    Attributes:
        vector: (B, E), added to the time embedding.
        tokens: (B, L, W), attended to.
        tokens_mask: (B, L) bool, True where a token counts.
        image: (B, C, H, W), concatenated to the channels.
    """

    vector: floats("B E") | None = None
    tokens: floats() | None = None
    tokens_mask: flags("B L") | None = None
    image: floats("B C *S") | None = None

    def __add__(self, other: Condition) -> Condition:
        """The condition of both; tokens without a mask all count."""
        masks = (self.tokens_mask, other.tokens_mask)
        if self.tokens is not None and other.tokens is not None and any(mask is not None for mask in masks):
            masks = tuple(_mask(mask, c.tokens) for mask, c in zip(masks, (self, other), strict=True))
        return Condition(
            _joined(torch.add, self.vector, other.vector),
            _joined(_along(1), self.tokens, other.tokens),
            _joined(_along(1), *masks),
            _joined(_along(1), self.image, other.image),
        )


def _mask(mask: Tensor | None, tokens: Tensor) -> Tensor:
    return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask


def _along(axis: int) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda a, b: torch.cat([a, b], dim=axis)


def _joined(join: Callable[[Tensor, Tensor], Tensor], a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return join(a, b) if a is not None and b is not None else b if a is None else a


@checked
def concatenate(*conditions):
    """One condition for the batch made of the given batches: tensors are joined along the first axis.

    Raises:
        ValueError: when one condition uses a door that another leaves closed.
    """
    first = conditions[0]
    if all(c is None for c in conditions):
        return None
    if any(type(c) is not type(first) for c in conditions):
        given = ", ".join(type(c).__name__ for c in conditions)
        raise ValueError(f"conditions of one batch must have the same form, got {given}")
    if isinstance(first, Tensor):
        return torch.cat(conditions)
    names = [f.name for f in dataclasses.fields(first)]
    return type(first)(**{n: concatenate(*[getattr(c, n) for c in conditions]) for n in names})


@checked
def each(function: Callable[..., Tensor], *values: Value) -> Value:
    """A function of tensors, applied to every tensor of the values of a part."""
    if isinstance(values[0], Tensor):
        return function(*values)
    return tuple(function(*tensors) for tensors in zip(*values, strict=True))


@checked
@dataclass(frozen=True)
class Question:
    """What a person is asked to have a part's value.

    Attributes:
        name: Of the option: "label" is asked for by ``--label``.
        kind: "integer", "number", "text", or "file".
        help: What to answer, in one line.
        many: Several answers are taken, which the samples get in turn.
        first: The answers may stand without the option's name after that of the system, as captions do.
    """

    name: str
    kind: str
    help: str
    many: bool = False
    first: bool = False


@checked
class Borrower:
    """What uses a frozen network that a recipe names, and that is no part of what is trained.

    Attributes:
        key: What the network is for.
        frozen: Name of the network; "" where none is used.
    """

    key: str
    frozen: str = ""
    _borrowed: Callable[[], nn.Module] | None = None

    def lend(self, borrowed: Callable[[], nn.Module]) -> None:
        """Let it use a frozen network, which is asked for when it is first needed."""
        self._borrowed = borrowed

    @property
    def has(self) -> bool:
        """Whether it was lent something."""
        return self._borrowed is not None

    @property
    def lent(self) -> nn.Module:
        """The frozen network.

        Raises:
            ValueError: when there is none yet.
        """
        if self._borrowed is None:
            raise ValueError(
                f"the {self.key} is read by {self.frozen or 'a frozen network'}, which this system was not lent; one "
                "that minidiff.load gives has it, any other takes it by part.lend(lambda: network)"
            )
        return self._borrowed()


@checked
class Part(Borrower):
    """One named input of a system. A part holds no parameters: they are the network's, whose names it does not change.

    Its *value* is a tensor, or a tuple of tensors, with one entry per sample. The order of a system's parts is the
    order of channels and tokens.

    Attributes:
        key: Its name: ``system.condition(label=...)``.
        channels: Channels that enter through the image door.
        vector: Whether something enters through the vector door.
        nullable: Whether there is a value that stands for nothing.
        p_drop: Probability with which training replaces a value by that one, drawn per sample.
        questions: What to ask a person who is to give a value.
        judge: Whether samples are judged by the "class" or the "caption" that this part gave them; "" for neither.
        frozen: Name of the frozen network that makes its value of what a person gives; "" where none does.
        handed: Whether its value is what another system draws, in a cascade.
        beside_latents: Whether what enters by the image door has the size of a latent, and x has to be one.
    """

    key: str
    channels: int = 0
    vector: bool = False
    nullable: bool = False
    p_drop: float = 0.0
    questions: tuple[Question, ...] = ()
    judge: str = ""
    handed: bool = False
    beside_latents: bool = False

    def takes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of what is handed to the part, for x of a shape."""
        raise NotImplementedError

    def hand(self, drawn: Tensor, level: NonNegative, left: NonNegative, generator) -> Value:
        """What another system drew, as the value of this part.

        Args:
            drawn: (B, ...) as it was drawn.
            level: Of the noise that is to be in it.
            left: Of the noise that is in it, where the chain stopped early; else 0.
            generator: One generator, or a list with one per sample.
        """
        raise NotImplementedError

    def check(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        """Whether a network for x of this shape has what the part needs.

        Raises:
            ValueError: when it has not.
        """

    def read(self, value, shape: tuple[int, ...]) -> Value:
        """What a person gave as the value of a part, for x of this shape.

        Raises:
            ValueError: for what cannot be a value.
        """
        return value

    def encode(self, network: nn.Module, value: Value) -> Condition:
        """The value, as it enters the network."""
        raise NotImplementedError

    def nothing(self, network: nn.Module, n: int) -> Value:
        """What stands for nothing, n times; only a nullable part has it."""
        raise NotImplementedError

    def null(self, network: nn.Module, value: Value) -> Value:
        """What stands for nothing in place of a value; the value itself where there is no null."""
        if not self.nullable:
            return value
        return each(lambda nothing, given: nothing.to(given.device), self.nothing(network, length(value)), value)

    def observe(self, batch: Mapping[str, Tensor], generator: Randomness = None) -> Value:
        """The value of a training step, from a batch of data.

        Args:
            batch: Columns of data by name.
            generator: One generator, or a list with one per sample.

        Raises:
            ValueError: when the data lack what it takes.
        """
        return column(batch, self.key)

    def drop(self, network: nn.Module, value: Value, generator: Randomness = None) -> Value:
        """The value with classifier-free dropout applied: replaced by the null with probability ``p_drop``, per sample.

        Ho and Salimans 2022, algorithm 1.
        """
        if not self.p_drop:
            return value
        first = value if isinstance(value, Tensor) else value[0]
        hidden = rand((len(first),), generator, device=first.device) < self.p_drop
        hide = lambda null, given: torch.where(hidden.reshape(-1, *[1] * (given.ndim - 1)), null, given)
        return each(hide, self.null(network, value), value)

    def impose(self, denoiser, value: Value):
        """A denoiser that keeps to what is known of x_0 from the value; by default the denoiser."""
        return denoiser

    def answer(self, given: Mapping[str, object], n: int, shape: tuple[int, ...]):
        """The values of n samples of this shape from the answers to ``questions``, where there are some.

        Returns:
            What ``read`` takes, and the (n,) number of the class or caption of each sample, or None.

        Raises:
            ValueError: when an answer is missing or wrong.
        """
        raise ValueError(f"a {self.key.replace('_', ' ')} cannot be asked for here")


@checked
def length(value: Value) -> int:
    """Number of samples that a value is for; a tensor with one entry serves as many as the others."""
    return max(map(len, (value,) if isinstance(value, Tensor) else value))


@checked
def column(batch: Mapping[str, Any], name: str, shape: tuple[int, ...] | None = None) -> Tensor:
    """A column of a batch of data; with a shape one of real numbers (B, *shape), which has others beside it.

    Raises:
        ValueError: when it is not there, or of another kind or length than the others.
    """
    if name not in batch:
        raise ValueError(f"training needs a column {name!r} of data; there are: {', '.join(sorted(batch))}")
    found = batch[name]
    if shape is None:
        return found
    if tuple(found.shape[1:]) != shape or not found.is_floating_point() or not len(found):
        raise ValueError(
            f"{name} must be a batch (B, {', '.join(map(str, shape))}) of real numbers, got {described(found)}"
        )
    lengths = {key: len(values) if getattr(values, "ndim", 1) else 0 for key, values in batch.items()}
    if len(set(lengths.values())) > 1:
        given = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise ValueError(f"columns of a batch have one entry for each sample, got {given}")
    return found
