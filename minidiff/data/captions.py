"""Captions of scenes, from a grammar whose probabilities are tables: p(c), p(x | c) and PMI are counted exactly.

A caption names each object by a size word, a colour word and a noun, each drawn from the table of its attribute, and
two objects are joined by a relation phrase. A word may be left out (""), may be a synonym, or may fit several values
("warm", "shape", "beside", "and"): so captions tell more or less about the scene, and PMI takes many values.

Here x are a scene's named attributes, (shape, colour, size) of each object and the relation of the first to the
second; position within the relation and background are never mentioned. One-object and two-object scenes are two
separate worlds. With two objects either may be named first, with equal probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from minidiff.data.scenes import COLORS, RELATIONS, SHAPES, SIZES, SPLITS, Scenes, held_out, named

from ..arguments import Count, Share, checked

SIZE_WORDS = {
    "small": {"": 1 / 2, "small": 1 / 4, "tiny": 1 / 8, "little": 1 / 8},
    "large": {"": 1 / 2, "large": 1 / 4, "big": 1 / 8, "huge": 1 / 8},
}
_SYNONYMS = {
    "red": ("crimson", "warm"),
    "orange": ("tangerine", "warm"),
    "yellow": ("golden", "warm"),
    "green": ("emerald", "cool"),
    "teal": ("turquoise", "cool"),
    "blue": ("azure", "cool"),
    "purple": ("violet", "cool"),
    "pink": ("rose", "warm"),
}
COLOR_WORDS = {
    color: {"": 1 / 8, color: 1 / 2, synonym: 1 / 4, family: 1 / 8} for color, (synonym, family) in _SYNONYMS.items()
}
NOUNS = {
    shape: {shape: 5 / 8, synonym: 1 / 4, "shape": 1 / 16, "object": 1 / 16}
    if synonym
    else {shape: 7 / 8, "shape": 1 / 16, "object": 1 / 16}
    for shape, synonym in zip(SHAPES, ("disc", "box", "", "", "", "hoop", "plus", "rhombus"), strict=True)
}
RELATION_WORDS = {
    "left of": {"left of": 3 / 8, "to the left of": 1 / 4, "beside": 1 / 8, "and": 1 / 4},
    "right of": {"right of": 3 / 8, "to the right of": 1 / 4, "beside": 1 / 8, "and": 1 / 4},
    "above": {"above": 1 / 2, "over": 1 / 4, "and": 1 / 4},
    "below": {"below": 1 / 2, "under": 1 / 4, "and": 1 / 4},
}


class _Table:
    """Words of one attribute and their probabilities ``p`` (values, words) float64."""

    def __init__(self, values: Sequence[str], table: dict[str, dict[str, float]]) -> None:
        self.words = tuple(dict.fromkeys(word for value in values for word in table[value]))
        self.index = {word: i for i, word in enumerate(self.words)}
        self.p = torch.tensor([[table[v].get(w, 0.0) for w in self.words] for v in values], dtype=torch.float64)


_SIZE, _COLOR = _Table(SIZES, SIZE_WORDS), _Table(COLORS, COLOR_WORDS)
_NOUN, _RELATION = _Table(SHAPES, NOUNS), _Table(RELATIONS, RELATION_WORDS)

VOCABULARY = tuple(
    sorted({"a", "an"} | {w for t in (_SIZE, _COLOR, _NOUN, _RELATION) for p in t.words for w in p.split()})
)
MAX_WORDS = 12  # of the longest caption


@dataclass(frozen=True)
class Phrase:
    """What a caption says of one object; "" where it leaves the size or the colour out."""

    size: str
    color: str
    noun: str

    def __str__(self) -> str:
        words = " ".join(w for w in (self.size, self.color, self.noun) if w)
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


@dataclass(frozen=True)
class Caption:
    """One or two phrases, and the words that relate the first to the second."""

    phrases: tuple[Phrase, ...]
    relation: str = ""

    def __str__(self) -> str:
        return f" {self.relation} ".join(map(str, self.phrases))


@checked
def parse(text: str) -> Caption:
    """The caption that a text is, case and spaces aside.

    Raises:
        ValueError: a text that the grammar cannot say, with the word at fault.
    """
    if not isinstance(text, str):
        raise ValueError(f"caption is a {type(text).__name__}; a text is accepted")
    words = text.lower().split()
    first, rest = _phrase(words, text)
    if not rest:
        return Caption((first,))
    for relation in sorted(_RELATION.words, key=len, reverse=True):
        head = relation.split()
        if rest[: len(head)] == head:
            second, rest = _phrase(rest[len(head) :], text)
            if rest:
                raise ValueError(f"caption {text!r} goes on after its second object: {' '.join(rest)!r}")
            return Caption((first, second), relation)
    raise ValueError(f"caption {text!r}: {' '.join(rest)!r} does not start with one of {', '.join(_RELATION.words)}")


def _phrase(words: list[str], text: str) -> tuple[Phrase, list[str]]:
    """The phrase that the words begin with, and the words after it."""
    if not words or words[0] not in ("a", "an"):
        raise ValueError(f"caption {text!r}: 'a' or 'an' expected where it says {' '.join(words)!r}")
    said, words = [], words[1:]
    for table in (_SIZE, _COLOR):
        said.append(words[0] if words and words[0] in table.index else "")
        words = words[len(said[-1]) > 0 :]
    if not words or words[0] not in _NOUN.index:
        raise ValueError(
            f"caption {text!r}: a noun ({', '.join(_NOUN.words)}) expected where it says {' '.join(words)!r}"
        )
    return Phrase(*said, words[0]), words[1:]


def _only(word: str, table: dict[str, dict[str, float]]) -> bool:
    """Whether the word fits a single value."""
    return sum(word in words for words in table.values()) == 1


@checked
def explicit(caption: str) -> bool:
    """Whether a caption of a scene tells the shape and the colour of every object."""
    return all(_only(phrase.noun, NOUNS) and _only(phrase.color, COLOR_WORDS) for phrase in parse(caption).phrases)


@checked
def relates(caption: str) -> bool:
    """Whether a caption of a scene tells anything about where its two objects stand."""
    said = parse(caption).relation
    return said != "" and sum(said in words for words in RELATION_WORDS.values()) < len(RELATIONS)


@checked
def sample_captions(scenes: Scenes, generator: torch.Generator, reading: Share = 0.5) -> list[str]:
    """A caption for each scene; caption i depends on row i of ``torch.rand(N, 8, generator=generator)`` alone.

    Args:
        scenes: Scenes with one object each, or with two each.
        generator: Decides everything.
        reading: Probability that two objects are named in reading order, the left or the upper one first.

    Raises:
        ValueError: a scene that lacks an object, ``reading`` is no probability, or ``generator`` is not a
            torch.Generator.
    """
    if not isinstance(generator, torch.Generator):
        raise ValueError(f"generator is a {type(generator).__name__}; a torch.Generator is accepted")
    if not 0 <= reading <= 1:
        raise ValueError(f"reading = {reading!r}; a probability is accepted")
    _complete(scenes)
    u = torch.rand(len(scenes), 8, generator=generator)
    k = scenes.shape.shape[1]

    def pick(table: _Table, value: Tensor, column: int) -> list[str]:
        word = (u[:, column, None] >= table.p[value].cumsum(1)[:, :-1]).sum(1)
        return [table.words[i] for i in word.tolist()]

    swap = (u[:, 0] < torch.where(scenes.relation % 2 == 1, reading, 1 - reading)) & (k == 2)
    phrases = []
    for position in range(k):
        row = torch.arange(len(scenes))
        slot = torch.where(swap, k - 1 - position, position)
        columns = [(_SIZE, scenes.size), (_COLOR, scenes.color), (_NOUN, scenes.shape)]
        said = [pick(t, values[row, slot], 1 + 3 * position + j) for j, (t, values) in enumerate(columns)]
        phrases.append([Phrase(*words) for words in zip(*said, strict=True)])
    if k == 1:
        return [str(Caption((p,))) for p in phrases[0]]
    joined = pick(_RELATION, scenes.relation ^ swap.long(), 7)
    return [str(Caption((a, b), r)) for a, b, r in zip(*phrases, joined, strict=True)]


@checked
def plain_captions(scenes: Scenes, generator: torch.Generator, reading: Share = 0.5) -> list[str]:
    """A caption for each scene that names shape, colour and relation by their own names, and nothing else.

    "a red circle left of a blue square": no synonym and no word of many meanings, so what such captions teach about
    "crimson", "disc" or "to the left of" is nothing. Caption i depends on number i of ``torch.rand(N)`` alone.

    Args:
        scenes: Scenes with one object each, or with two each.
        generator: Decides which of two objects is named first.
        reading: Probability that the left or the upper one is.

    Raises:
        ValueError: a scene that lacks an object.
    """
    _complete(scenes)
    u, relations = torch.rand(len(scenes), generator=generator), scenes.relation.tolist()
    captions = []
    for i, relation in enumerate(relations):
        phrases = [
            Phrase("", COLORS[color], SHAPES[shape])
            for color, shape in zip(scenes.color[i].tolist(), scenes.shape[i].tolist(), strict=True)
        ]
        if relation < 0:
            captions.append(str(Caption((phrases[0],))))
            continue
        swap = (relation % 2 == 0) != bool(u[i] < reading)  # the second is the left or upper one where it is odd
        said = RELATIONS[relation ^ swap]
        captions.append(str(Caption(tuple(phrases[::-1] if swap else phrases), said)))
    return captions


def _complete(scenes: Scenes) -> None:
    if (scenes.shape < 0).any():
        raise ValueError("a scene lacks an object; scenes with one object each, or with two each, are accepted")


def _objects(caption: str | Caption) -> tuple[Caption, int]:
    caption = parse(caption) if isinstance(caption, str) else caption
    return caption, len(caption.phrases)


def _said(phrase: Phrase) -> Tensor:
    """(8, 8, 2) p(phrase | shape, colour, size)."""
    noun, color = _NOUN.p[:, _NOUN.index[phrase.noun]], _COLOR.p[:, _COLOR.index[phrase.color]]
    return noun[:, None, None] * color[:, None] * _SIZE.p[:, _SIZE.index[phrase.size]]


@checked
@lru_cache
def attribute_prior(objects: Count, split: str = "all") -> Tensor:
    """p(x) as a table: (8, 8, 2) over (shape, colour, size), or (8, 8, 2, 8, 8, 2, 4) with the relation last.

    ``split`` is that of ``sample_scenes``. Read-only: the table is shared.
    """
    if objects not in (1, 2):
        raise ValueError(f"objects = {objects!r}; 1 or 2 is accepted")
    named(split, SPLITS, "split")
    s, c, z = len(SHAPES), len(COLORS), len(SIZES)
    shape, color = torch.arange(s)[:, None, None], torch.arange(c)[:, None]
    unseen = held_out(shape, color).expand(s, c, z)
    if objects == 1:
        allowed = torch.ones(s, c, z, dtype=torch.bool)
    else:
        one, two = (s, c, z, 1, 1, 1), (1, 1, 1, s, c, z)
        shape, color = shape.expand(s, c, z), color.expand(s, c, z)
        allowed = (shape.reshape(one) != shape.reshape(two)) & (color.reshape(one) != color.reshape(two))
        unseen = unseen.reshape(one) | unseen.reshape(two)
    if split != "all":
        allowed = allowed & (unseen == (split == "heldout"))
    if objects == 2:
        allowed = allowed[..., None].expand(*allowed.shape, len(RELATIONS))
    return allowed.double() / allowed.sum()


@checked
def caption_given_attributes(caption: str | Caption) -> Tensor:
    """p(c | x), a table of the shape of ``attribute_prior`` for as many objects as the caption names."""
    caption, objects = _objects(caption)
    if objects == 1:
        return _said(caption.phrases[0])
    first, second = map(_said, caption.phrases)
    joined = _RELATION.p[:, _RELATION.index[caption.relation]]
    inverse = joined[torch.arange(len(RELATIONS)) ^ 1]
    in_order = first[..., None, None, None] * second
    swapped = second[..., None, None, None] * first
    return (in_order[..., None] * joined + swapped[..., None] * inverse) / 2


@checked
def caption_probability(caption: str | Caption, split: str = "all") -> float:
    """p(c) = sum over x of p(x) p(c | x), among the captions of scenes with as many objects."""
    caption, objects = _objects(caption)
    return float((attribute_prior(objects, split) * caption_given_attributes(caption)).sum())


@checked
def attributes_given_caption(caption: str | Caption, split: str = "all") -> Tensor:
    """p(x | c), a table of the shape of ``attribute_prior``'s.

    Raises:
        ValueError: no scene of the split can have this caption.
    """
    caption, objects = _objects(caption)
    joint = attribute_prior(objects, split) * caption_given_attributes(caption)
    if not joint.sum() > 0:
        raise ValueError(f"caption {str(caption)!r} fits no scene of the split {split!r}")
    return joint / joint.sum()


@checked
def pmi(caption: str | Caption, split: str = "all") -> Tensor:
    """log p(x, c) / (p(x) p(c)) in nats as a table over x; -inf where the caption cannot be said of x."""
    return (caption_given_attributes(caption) / caption_probability(caption, split)).log()


@checked
def pmi_table(scenes: Scenes, captions: Sequence[str | Caption], split: str = "all") -> Tensor:
    """Pointwise mutual information (N scenes, M captions) in nats, float64: what an ideal CLIP's inner products are.

    Raises:
        ValueError: a caption that names another number of objects than the scenes have.
    """
    _complete(scenes)
    index = attribute_index(scenes)
    columns = []
    for caption in captions:
        caption, objects = _objects(caption)
        if objects != scenes.shape.shape[1]:
            raise ValueError(f"caption {str(caption)!r} names {objects} objects; {scenes.shape.shape[1]} are accepted")
        columns.append(pmi(caption, split)[index])
    return torch.stack(columns, 1)


@checked
def attribute_index(scenes: Scenes) -> tuple[Tensor, ...]:
    """Where each scene's attributes stand in the tables: ``table[attribute_index(scenes)]`` is (N,)."""
    index = [t[:, j] for j in range(scenes.shape.shape[1]) for t in (scenes.shape, scenes.color, scenes.size)]
    return tuple(index + [scenes.relation] * (scenes.shape.shape[1] == 2))


@checked
def judge(captions: Sequence[str | Caption], scenes: Scenes) -> dict[str, Tensor]:
    """How far each scene fits its caption: (N,) bool each; made for scenes that the oracle has read (K = 2).

    Keys: ``count`` (as many objects as phrases), ``shape`` and ``color`` (some matching of objects to phrases has all
    of these right), ``binding`` (one matching has both right: the right colour on the right object), ``relation`` (a
    binding whose relation is right too; same as binding for one object), ``all`` (sizes as well: ``all`` holds where
    the grammar could have said the caption of the scene). With another number of objects nothing fits.
    """
    if len(captions) != len(scenes):
        raise ValueError(f"{len(captions)} captions for {len(scenes)} scenes; one for each is accepted")
    verdicts = [_judge(_objects(c)[0], scenes.select(slice(i, i + 1))) for i, c in enumerate(captions)]
    keys = ("count", "shape", "color", "binding", "relation", "all")
    return {key: torch.tensor([v[j] for v in verdicts], dtype=torch.bool) for j, key in enumerate(keys)}


def _judge(caption: Caption, scene: Scenes) -> tuple[bool, ...]:
    there = (scene.shape[0] >= 0).nonzero()[:, 0].tolist()
    if len(there) != len(caption.phrases):
        return (False,) * 6
    fits = []  # (shape, color, size, relation) of every matching
    for order in (there, there[::-1])[: len(there)]:
        pairs = list(zip(caption.phrases, order, strict=True))
        shape = all(_NOUN.p[scene.shape[0, j], _NOUN.index[p.noun]] > 0 for p, j in pairs)
        color = all(_COLOR.p[scene.color[0, j], _COLOR.index[p.color]] > 0 for p, j in pairs)
        size = all(_SIZE.p[scene.size[0, j], _SIZE.index[p.size]] > 0 for p, j in pairs)
        relation = True
        if len(there) == 2:
            value = int(scene.relation[0]) ^ (order[0] != there[0])
            relation = bool(_RELATION.p[value, _RELATION.index[caption.relation]] > 0)
        fits.append((shape, color, size, relation))
    return (
        True,
        any(f[0] for f in fits),
        any(f[1] for f in fits),
        any(f[0] and f[1] for f in fits),
        any(f[0] and f[1] and f[3] for f in fits),
        any(all(f) for f in fits),
    )
