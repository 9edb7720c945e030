"""Checks of lesson 07: embedded words, heads that hear them, a loss with dropped captions, sentences, binding."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Generator, Tensor

from minidiff.course.comparing import close, expect, normal, uniform
from minidiff.course.exercises import case, exercise
from minidiff.course.forms import call, listed, number, prediction, several, taking, tensor, yes_or_no
from minidiff.course.outcomes import Mistake
from minidiff.data.prompts import scene_sheet
from minidiff.data.scenes import COLORS, SHAPES
from minidiff.exact import GaussianMixtureDenoiser
from minidiff.prediction import Prediction
from minidiff.process import diffuse
from minidiff.random import randn
from minidiff.sampler import ddim, sample
from minidiff.schedule import DATA, NoiseLevel, cosine_schedule
from minidiff.store import load

LESSON = "07_glide"
EMPTY = -1


def _captions(rng: Generator, lengths: Sequence[int], places: int, words: int = 9, least: int = 0) -> Tensor:
    """Captions (B, places) of words from ``least`` to ``words`` - 1, with gaps behind them."""
    tokens = torch.randint(least, words, (len(lengths), places), generator=rng)
    return torch.where(torch.arange(places) < torch.tensor(lengths)[:, None], tokens, EMPTY)


# -- ex-07-embed ------------------------------------------------------------------------------------------------------


def _tables(rng: Generator, places: int = 5, words: int = 9, width: int = 4) -> dict[str, Tensor]:
    """The table of words and those of places and of padding."""
    return {
        "table": normal(rng, words, width),
        "places": normal(rng, places, width),
        "padding": normal(rng, places, width),
    }


exercise(
    "ex-07-embed",
    name="embed",
    lesson=LESSON,
    form=call(
        tensor(lambda given: (*given["tokens"].shape, given["table"].shape[1])),
        lambda rng: {"tokens": _captions(rng, (5, 3, 0), 5)} | _tables(rng),
    ),
)


def _embedded(tokens: Tensor, table: Tensor, places: Tensor, padding: Tensor) -> Tensor:
    """Word by word."""
    rows = [
        [padding[i] if word == EMPTY else table[word] + places[i] for i, word in enumerate(caption)]
        for caption in tokens.tolist()
    ]
    return torch.stack([torch.stack(row) for row in rows])


def _in_gaps(tokens: Tensor, table: Tensor, places: Tensor, padding: Tensor) -> dict[str, Tensor]:
    """Diagnosis -> the rows that this mistake puts into the gaps, (L, W) or (B, L, W)."""
    since = (torch.arange(tokens.shape[1]) - (tokens >= 0).sum(1, keepdim=True)).clamp(min=0)
    return {
        "you gave gaps the place's row as well; padding is a row for each place already": padding + places,
        "you left zeros in the gaps: their keys are zero then, not their weights, and nothing was learnt for them": (
            0 * padding
        ),
        "in the gaps you looked up word 0, which the caption does not say": table[0] + places,
        "in the gaps you looked up word 0, which the caption does not say, without its place": table[0] + 0 * padding,
        "an index of -1 is the last row of the table, so your gaps say the last word": table[-1] + places,
        "a gap has a padding row, and not that of its place alone": places,
        "every gap got the same row; padding has one for each place": padding[0] + 0 * padding,
        "padding is counted from the first place, as words are, not from the first gap": padding[since],
    }


@case("ex-07-embed", "a-word-and-its-place")
def _(answer, rng):
    for lengths, places in (((5, 5, 5), 5), ((7,), 7)):
        tokens, given = _captions(rng, lengths, places, least=1), _tables(rng, places)
        table, rows, padding = given.values()
        wrong = {
            "the places are missing: without them attention cannot tell the first word from the last": table[tokens],
            "a place's row is added, not subtracted": table[tokens] - rows,
            "padding is for places without a word": table[tokens] + padding,
            "padding is for places without a word; here you added it as well": table[tokens] + rows + padding,
            "tokens count from 0: word 1 is the second row of the table": table[tokens - 1] + rows,
        }
        say = "a place with a word holds the word's row of the table plus the place's row"
        expect(answer(tokens, **given), _embedded(tokens, **given), say, wrong)


@case("ex-07-embed", "word-0-is-a-word")
def _(answer, rng):
    tokens, given = _captions(rng, (5, 5, 5), 5, least=1), _tables(rng)
    tokens[0, 2] = tokens[1, 0] = tokens[2, 4] = 0
    gap = torch.where(tokens == 0, EMPTY, tokens)
    wrong = {"you took word 0 for a gap; gaps are -1, and 0 is a word like any other": _embedded(gap, **given)}
    expect(answer(tokens, **given), _embedded(tokens, **given), "word 0 is not embedded as a word", wrong)


@case("ex-07-embed", "a-gap-and-its-place", assumes=["a-word-and-its-place"])
def _(answer, rng):
    for lengths in ((3, 1, 4, 0), (2,), (0,)):
        tokens, given = _captions(rng, lengths, 5, least=1), _tables(rng)
        right, word = _embedded(tokens, **given), (tokens >= 0)[..., None]
        wrong = {message: torch.where(word, right, rows) for message, rows in _in_gaps(tokens, **given).items()}
        say = "a gap holds the padding row of its place, and nothing else"
        expect(answer(tokens, **given), right, say, wrong)


# -- ex-07-attend -----------------------------------------------------------------------------------------------------


def _heads(rng: Generator, batch: int = 2, pixels: int = 6, words: int = 3, width: int = 16) -> tuple[Tensor, ...]:
    """q, k, v (batch, pixels, width) of the pixels, k and v (batch, words, width) of the words."""
    return tuple(normal(rng, batch, n, width) for n in (pixels, pixels, pixels, words, words))


exercise(
    "ex-07-attend",
    name="attend",
    lesson=LESSON,
    form=call(tensor("q"), lambda rng: dict(zip(("q", "k", "v", "text_k", "text_v"), _heads(rng), strict=True))),
)


def _attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """One query at a time, by the definition."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    rows = []
    for asked, keys, values in zip(q, k, v, strict=True):
        weights = torch.stack([torch.stack([(one * key).sum() * scale for key in keys]) for one in asked])
        weights = weights - weights.amax(1, keepdim=True)
        rows.append((weights.exp() / weights.exp().sum(1, keepdim=True)) @ values)
    return torch.stack(rows)


def _joint(q: Tensor, k: Tensor, v: Tensor, text_k: Tensor, text_v: Tensor, scale: float | None = None) -> Tensor:
    return _attention(q, torch.cat([text_k, k], 1), torch.cat([text_v, v], 1), scale)


def _disjoint(q: Tensor, k: Tensor, v: Tensor, text_k: Tensor, text_v: Tensor) -> dict[str, Tensor]:
    """Diagnosis -> what that mistake makes of these heads."""
    own, told, d = _attention(q, k, v), _attention(q, text_k, text_v), q.shape[-1]
    logits = q @ torch.cat([text_k, k], 1).mT / math.sqrt(d)
    values = torch.cat([text_v, v], 1)
    return {
        "you added two attentions, each with weights that sum to one; here all weights together do": own + told,
        "you gave words and pixels half of the weight each; the softmax has to decide": (own + told) / 2,
        "the words have no influence: they must stand among the keys and values": own,
        "the pixels cannot see each other: their keys and values must stay": told,
        "the weights of a query sum to one over the keys; yours sum to one over the queries": logits.softmax(1)
        @ values,
        "the weights must sum to one: the softmax is missing": logits @ values,
        "the products of queries and keys are not divided by sqrt d": _joint(q, k, v, text_k, text_v, 1.0),
        "you divided by d; the standard deviation of a product grows like sqrt d": _joint(
            q, k, v, text_k, text_v, 1 / d
        ),
        "you multiplied by sqrt d; divide by it": _joint(q, k, v, text_k, text_v, d**0.5),
        "d is the width of a query, not the number of keys": _joint(q, k, v, text_k, text_v, logits.shape[-1] ** -0.5),
    }


@case("ex-07-attend", "one-softmax-over-both")
def _(answer, rng):
    for words in (3, 8):  # of width 1, where sqrt d is 1
        parts = _heads(rng, 1, 6, words, 1)
        say = f"not softmax(q [text k, k]^T / sqrt d) [text v, v] for 6 pixels, {words} words and d = 1"
        expect(answer(*parts), _joint(*parts), say, _disjoint(*parts))


@case("ex-07-attend", "divided-by-the-root-of-d")
def _(answer, rng):
    for width in (16, 5):
        parts = _heads(rng, 1, 6, 3, width)
        expect(answer(*parts), _joint(*parts), f"right for d = 1, and wrong for d = {width}", _disjoint(*parts))


@case("ex-07-attend", "each-sample-its-own-caption")
def _(answer, rng):
    q, k, v, text_k, text_v = parts = _heads(rng, 3)
    first = _joint(q, k, v, text_k[:1].expand_as(text_k), text_v[:1].expand_as(text_v))
    wrong = {"each sample has its own caption; you took the first one's for all": first}
    expect(answer(*parts), _joint(*parts), "right for one sample, and wrong in a batch of three", wrong)
    expect(answer(*(part.float() for part in parts)), _joint(*parts), "wrong for keys and queries in float32")


@case("ex-07-attend", "no-overflow")
def _(answer, rng):
    q, k, v, text_k, text_v = _heads(rng)
    way = normal(rng, 16)
    way = 100 * way / way.norm()
    ask = torch.tensor([1.0, -1.0]).repeat(3)[:, None] * way  # half of the pixels have all logits near 2500, half -2500
    parts = (ask + 0.1 * q, way + 0.1 * k, v, way + 0.1 * text_k, text_v)
    logits = parts[0] @ torch.cat([parts[3], parts[1]], 1).mT / 4
    plain = lambda shifted: shifted.exp() / shifted.exp().sum(2, keepdim=True) @ torch.cat([text_v, v], 1)
    wrong = {
        "exp gives infinity or 0 for logits of 2500: subtract the largest (softmax does)": plain(logits),
        "the largest logit is to be subtracted for each pixel; you took one for all": plain(logits - logits.max()),
    }
    # float32 knows logits of 2500 to 3e-4
    expect(answer(*parts), _joint(*parts), "wrong for logits near 2500 and -2500", wrong, rtol=1e-2, atol=1e-2)


# -- ex-07-heads ------------------------------------------------------------------------------------------------------

Read = tuple[Tensor, Tensor]  # what pixels receive (B, pixels, C), and the share of the words (B, heads, pixels)


def _spoken(rng: Generator, batch: int, words: int) -> Tensor:
    """(batch, words) True for words that may be heard: some and not all in every sample."""
    count = torch.randint(1, words, (batch, 1), generator=rng)
    order = torch.rand(batch, words, generator=rng).argsort(1)
    return order < count


def _wide(rng: Generator, heads: int, batch: int = 2, words: int = 4, width: int = 3) -> dict[str, Tensor]:
    """Heads side by side, and a mask of words."""
    parts = dict(zip(("q", "k", "v", "text_k", "text_v"), _heads(rng, batch, 6, words, heads * width), strict=True))
    return parts | {"mask": _spoken(rng, batch, words), "heads": heads}


exercise(
    "ex-07-heads",
    name="read_words",
    lesson=LESSON,
    form=call(
        several(
            received=tensor("q"), share=tensor(lambda given: (len(given["q"]), given["heads"], given["q"].shape[1]))
        ),
        lambda rng: _wide(rng, 2),
    ),
)


def _apart(x: Tensor, heads: int) -> Tensor:
    """(B, n, C) -> (B, heads, n, d), the first d channels for the first head."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def _read(logits: Callable[[Tensor, Tensor], Tensor], q, k, v, text_k, text_v, mask, heads) -> Read:
    """Attention with logits of one's own, (B, heads, n, d) twice to (B, heads, n, m); masked words get -inf."""
    q, k, v, text_k, text_v = (_apart(part, heads) for part in (q, k, v, text_k, text_v))
    told = logits(q, text_k).masked_fill(~mask[:, None, None], -math.inf)
    weights = torch.cat([told, logits(q, k)], 3).softmax(3)
    received = weights @ torch.cat([text_v, v], 2)
    return received.transpose(1, 2).flatten(2), weights[..., : told.shape[3]].sum(3)


def _by_root(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mT / math.sqrt(q.shape[-1])


def _interleaved(x: Tensor, heads: int) -> Tensor:
    """Channels regrouped, as if each head owned every heads-th one."""
    return x.unflatten(2, (-1, heads)).transpose(2, 3).flatten(2)


def _misread(q, k, v, text_k, text_v, mask, heads) -> dict[str, Read]:
    """Diagnosis -> what that mistake makes of both results."""
    parts, width = (q, k, v, text_k, text_v), q.shape[2]
    everybody = torch.ones_like(mask)
    strided = _read(_by_root, *(_interleaved(part, heads) for part in parts), mask, heads)
    received, share = _read(_by_root, *parts, mask, heads)
    silent = mask[..., None] * text_k, mask[..., None] * text_v
    wrong = {
        "sqrt d is that of one head, d = C / heads; you took C": _read(
            lambda q, k: q @ k.mT / math.sqrt(width), *parts, mask, heads
        ),
        "the products of queries and keys are not divided by sqrt d": _read(lambda q, k: q @ k.mT, *parts, mask, heads),
        "the first d channels are the first head's; yours takes every heads-th one": (
            strided[0].unflatten(2, (heads, -1)).transpose(2, 3).flatten(2),
            strided[1],
        ),
        "masked words are heard": _read(_by_root, *parts, everybody, heads),
        "zeros in a masked place are not silent: e^0 = 1 still takes its share": _read(
            _by_root, q, k, v, *silent, everybody, heads
        ),
        "no word is heard at all": _read(_by_root, *parts, ~everybody, heads),
        "the mask is the other way round: True may be heard": _read(_by_root, *parts, ~mask, heads),
        "this is the share of the pixels; the words' is what is missing to one": (received, 1 - share),
        "each head has its own gate; you took one for all": (received, share.mean(1, True).expand_as(share)),
    }
    return wrong


def _reads(answer, say: str, given: dict, mistakes: bool = True, **tolerance) -> None:
    right, got = _read(_by_root, **given), answer(**given)
    wrong = _misread(**given) if mistakes else {}
    # a mistake in one of the two results is named by that one
    for i, part in enumerate((f"what pixels receive, {say}", f"the share of the words, {say}")):
        names = {name: values[i] for name, values in wrong.items() if not close(values[i], right[i])}
        expect(got[i], right[i], part, names, **tolerance)


@case("ex-07-heads", "one-head")
def _(answer, rng):
    for batch, words in ((2, 4), (1, 7)):
        given = _wide(rng, 1, batch, words)
        given["mask"] = torch.ones_like(given["mask"])
        _reads(answer, "is wrong already for one head and no mask", given)


@case("ex-07-heads", "heads-by-themselves")
def _(answer, rng):
    for heads in (2, 3):
        given = _wide(rng, heads)
        given["mask"] = torch.ones_like(given["mask"])
        _reads(answer, f"is right for one head, and wrong for {heads}", given)


@case("ex-07-heads", "masked-words-are-silent")
def _(answer, rng):
    for batch in (3, 1):
        given = _wide(rng, 2, batch, 5)
        _reads(answer, "is wrong where words are masked", given)
    less = {name: part.float() if name in ("q", "k", "v", "text_k", "text_v") else part for name, part in given.items()}
    _reads(lambda **given: answer(**less), "is wrong in float32", given, mistakes=False)


@case("ex-07-heads", "nobody-speaks")
def _(answer, rng):
    given = _wide(rng, 2, 2)
    given["mask"][0] = False
    _reads(answer, "is wrong where a caption has no word at all, and its pixels hear each other alone", given, False)


@case("ex-07-heads", "no-overflow", assumes=["one-head"])
def _(answer, rng):
    way = torch.ones(3, dtype=torch.float64) / math.sqrt(3)
    for text, pixels in ((3000.0, 0.0), (-3000.0, 0.0), (0.0, 3000.0), (-3000.0, -3000.0)):
        given = _wide(rng, 1, 1)
        near = lambda logit, n: logit * way + 0.05 * normal(rng, 1, n, 3)
        given |= {"q": math.sqrt(3) * way.expand(1, 6, 3), "k": near(pixels, 6), "text_k": near(text, 4)}
        given["mask"] = torch.ones_like(given["mask"])
        say = f"is wrong where words have logits near {text:g} and pixels near {pixels:g}: what does exp give there?"
        _reads(answer, say, given, False, rtol=1e-2, atol=1e-3)  # float32 knows logits of 3000 to 4e-4


# -- worlds of captions -----------------------------------------------------------------------------------------------

PICTURE = (3, 1, 2)


def _world(rng: Generator) -> GaussianMixtureDenoiser:
    """Three classes of tiny pictures; here the first word of a caption says which."""
    variance, weights = torch.tensor([0.05, 0.1, 0.08, 0.06, 0.03]), torch.tensor([0.3, 0.25, 0.15, 0.2, 0.1])
    return GaussianMixtureDenoiser(normal(rng, 5, *PICTURE), variance, weights, labels=[0, 1, 1, 2, 0])


def _model(world: GaussianMixtureDenoiser, asked: list[Tensor] | None = None) -> Callable[..., Prediction]:
    """A conditional model of captions of two places; ``asked`` collects those that it is asked about."""

    def model(x: Tensor, level: NoiseLevel, tokens: Tensor) -> Prediction:
        tokens = torch.as_tensor(tokens)
        if tokens.shape != (len(x), 2):
            raise ValueError(f"{len(x)} pictures need captions of shape ({len(x)}, 2), not {tuple(tokens.shape)}")
        if asked is not None:
            asked.append(tokens)
        return world(x, level, tokens[:, 0])  # -1 in front is the empty caption

    return taking("x level tokens", model)


def _asked(rng: Generator, n: int = 6) -> Tensor:
    """Captions, the first words of which are 0, 1 and 2; the second may be missing."""
    tokens = torch.stack([torch.arange(n) % 3, torch.randint(-1, 5, (n,), generator=rng)], 1)
    return tokens[torch.randperm(n, generator=rng)]


def _noisy(rng: Generator, world: GaussianMixtureDenoiser, n: int = 6) -> tuple[Tensor, NoiseLevel]:
    level = cosine_schedule().level(uniform(rng, 0.4, 0.7))
    return diffuse(world.sample(n, rng), level, normal(rng, n, *PICTURE)), level


# -- ex-07-loss -------------------------------------------------------------------------------------------------------


def _lesson_of(rng: Generator, world: GaussianMixtureDenoiser, n: int = 6) -> dict:
    """A batch, a level of its own for each picture, and the coins."""
    level = cosine_schedule().level(uniform(rng, 0.2, 0.8, n))
    return {
        "x0": world.sample(n, rng),
        "tokens": _asked(rng, n),
        "level": level,
        "eps": normal(rng, n, *PICTURE),
        "u": uniform(rng, 0, 1, n),
        "p_drop": 0.4,
    }


def _loss_sample(rng: Generator) -> dict:
    world = _world(rng)
    return {"model": _model(world)} | _lesson_of(rng, world)


exercise("ex-07-loss", name="text_loss", lesson=LESSON, form=call(number(), _loss_sample))


def _errors(world, x0, tokens, level, eps, told=None) -> Tensor:
    """(B, ...) errors of the noise, told the labels ``told``, by default those of the captions."""
    x = diffuse(x0, level, eps)
    return world(x, level, tokens[:, 0] if told is None else told).eps - eps


def _loses(answer, rng: Generator, say: str, names: Sequence[str], n: int = 6, **changed) -> None:
    world = _world(rng)
    given = _lesson_of(rng, world, n) | changed
    u, p_drop, (x0, tokens, level, eps) = (
        given["u"],
        given["p_drop"],
        (given[k] for k in ("x0", "tokens", "level", "eps")),
    )
    labels, hidden = tokens[:, 0], u < p_drop
    hide = lambda where, null=EMPTY: torch.where(where, null, labels)
    square = lambda told, x0=x0, level=level: _errors(world, x0, tokens, level, eps, told).square().mean().item()
    first = NoiseLevel(level.alpha[:1].expand(n), level.sigma[:1].expand(n), level.time)
    estimate = lambda told: (world(diffuse(x0, level, eps), level, told).x0 - x0).square().mean().item()
    wrong = {
        "kept": {"you dropped nothing: where u < p_drop the caption is the empty one": lambda: square(labels)},
        "all": {
            "one coin for the whole batch; each caption has its own": lambda: square(hide(hidden[:1].expand(n))),
            "you dropped a caption where u is at least p_drop": lambda: square(hide(~hidden)),
            "your empty caption says word 0; it is -1 in every place": lambda: square(hide(hidden, 0)),
            "you dropped every caption": lambda: square(hide(hidden | True)),
        },
        "value": {
            "this is the error of x_0; the loss is that of the noise": lambda: estimate(hide(hidden)),
            "this is a sum; the loss is a mean over pictures and numbers": lambda: square(hide(hidden)) * eps.numel(),
            "this is summed over the numbers of a picture; take their mean, too": lambda: (
                square(hide(hidden)) * eps[0].numel()
            ),
            "this is half of it": lambda: square(hide(hidden)) / 2,
        },
        "level": {
            "the pictures have levels of their own, and you took the first one's for all": lambda: square(
                hide(hidden), level=first
            ),
        },
    }
    right = square(hide(hidden))
    mistakes = {message: value for name in names for message, value in wrong[name].items()}
    expect(answer(_model(world), **given), right, say, mistakes)


@case("ex-07-loss", "a-mean-of-squares")
def _(answer, rng):
    one = cosine_schedule().level(torch.full((6,), 0.35, dtype=torch.float64))
    _loses(answer, rng, "wrong already where no caption is dropped", ["value"], p_drop=0.0, level=one)


@case("ex-07-loss", "each-picture-its-level")
def _(answer, rng):
    _loses(answer, rng, "right for one level, and wrong for several", ["level"], p_drop=0.0)


@case("ex-07-loss", "each-caption-its-coin")
def _(answer, rng):
    for coins in ((0.1, 0.9, 0.3, 0.5, 0.7, 0.2), (0.9, 0.1, 0.8, 0.3, 0.1, 0.6)):
        u = torch.tensor(coins, dtype=torch.float64)
        _loses(
            answer, rng, "wrong where some captions are dropped", ["kept", "all"], u=u, p_drop=uniform(rng, 0.35, 0.45)
        )
    _loses(answer, rng, "wrong where all are dropped", ["kept"], p_drop=1.0)
    edge = torch.tensor([0.5, 0.25, 0.5, 0.75, 0.5, 0.0], dtype=torch.float64)
    _loses(answer, rng, "wrong where u is p_drop itself: below it is asked for", ["kept"], u=edge, p_drop=0.5)
    _loses(answer, rng, "wrong for a batch of one", ["kept"], 1, p_drop=1.0)


@case("ex-07-loss", "empty-in-every-place", assumes=["a-mean-of-squares"])
def _(answer, rng):
    world, asked = _world(rng), []
    given = _lesson_of(rng, world) | {"u": torch.tensor([0.1, 0.9, 0.3, 0.5, 0.7, 0.2]), "p_drop": 0.4}
    given["tokens"][:, 1] = torch.randint(5, (6,), generator=rng)
    answer(_model(world, asked), **given)
    assert len(asked) == 1, f"the model was asked {len(asked)} times; one batch, one pass"
    hidden = given["u"] < 0.4
    if not bool((asked[0][hidden] == EMPTY).all()):
        raise Mistake("an empty caption is -1 in every place, and the second place of yours still says something")
    assert torch.equal(asked[0][~hidden], given["tokens"][~hidden]), "captions that are kept stay as they are"


# -- ex-07-compose ----------------------------------------------------------------------------------------------------


def _compose_sample(rng: Generator) -> dict:
    return {"model": _model(_world(rng)), "captions": torch.stack([_asked(rng), _asked(rng)]), "scales": [2.5, 1.5]}


exercise(
    "ex-07-compose",
    name="guide_by_all",
    lesson=LESSON,
    form=call(
        call(prediction("x"), lambda rng: dict(zip(("x", "level"), _noisy(rng, _world(rng)), strict=True))),
        _compose_sample,
    ),
)


def _composes(answer, rng: Generator, scales: Sequence[float], say: str, n: int = 6) -> None:
    world, captions = _world(rng), torch.stack([_asked(rng, n) for _ in scales])
    x, level = _noisy(rng, world, n)
    told, u = [world(x, level, tokens[:, 0]).eps for tokens in captions], world(x, level).eps
    zero = world(x, level, 0).eps
    pairs = list(zip(scales, told, strict=True))
    right = u + sum(s * (c - u) for s, c in pairs)
    by_turns = captions.transpose(0, 1).reshape(len(scales), n, 2)  # rows mistaken for sentences
    mixed = [world(x, level, tokens[:, 0]).eps for tokens in by_turns]
    wrong = {
        "the differences are to be added; this is their mean": u + sum(s * (c - u) for s, c in pairs) / len(scales),
        "what is told no caption counts once; you counted it with every sentence": right + (len(scales) - 1) * u,
        "the differences are subtracted; they must be added": u - sum(s * (c - u) for s, c in pairs),
        "you used 1 + s where s belongs: at s = 1 a sentence alone is not guided": right + sum(c - u for c in told),
        "your null says word 0 in every place; the empty caption is -1": zero + sum(s * (c - zero) for s, c in pairs),
        "this is the first sentence alone": u + scales[0] * (told[0] - u),
        "this is the last sentence alone": u + scales[-1] * (told[-1] - u),
        "every sentence was weighed with the first scale": u + scales[0] * sum(c - u for c in told),
        "this is the model without any caption": u,
        "captions[k] are the k-th sentences of all pictures; yours were dealt out picture by picture": u
        + sum(s * (c - u) for s, c in zip(scales, mixed, strict=True)),
    }
    expect(answer(_model(world), captions, list(scales))(x, level).eps, right, say, wrong)


@case("ex-07-compose", "one-sentence-is-guidance")
def _(answer, rng):
    for scale in (uniform(rng, 2, 4), uniform(rng, 0.3, 0.7)):
        _composes(answer, rng, [scale], f"wrong already for one sentence at s = {scale:.3g}")


@case("ex-07-compose", "differences-add-up")
def _(answer, rng):
    _composes(answer, rng, [uniform(rng, 2, 3), uniform(rng, 1, 1.5)], "right for one sentence, and wrong for two")
    _composes(answer, rng, [1.5, 2.5, 0.7], "right for two sentences, and wrong for three")
    _composes(answer, rng, [2.5, 0.8], "wrong for a batch of one", 1)


@case("ex-07-compose", "less-of-it")
def _(answer, rng):
    _composes(answer, rng, [3.0, -1.0], "a negative scale leads away from a sentence, and works as any other")
    _composes(answer, rng, [0.0, 2.0], "a sentence with scale 0 has no say")


@case("ex-07-compose", "in-one-pass")
def _(answer, rng):
    world, captions, asked = _world(rng), torch.stack([_asked(rng), _asked(rng)]), []
    captions[..., 1] = torch.randint(5, (2, 6), generator=rng)
    guided = answer(_model(world, asked), captions, [3.0, 2.0])
    for _ in range(2):
        asked.clear()
        guided(*_noisy(rng, world))
        assert len(asked) == 1, f"the model was called {len(asked)} times a step; join all into one batch"
        assert len(asked[0]) == 18, (
            f"two sentences and none make 18 captions of 6 pictures; this batch has {len(asked[0])}"
        )
    null = asked[0][asked[0][:, 0] == EMPTY]
    assert len(null) == 6 and bool((null == EMPTY).all()), "the empty caption is -1 in every place"


# -- ex-07-rare -------------------------------------------------------------------------------------------------------

RARE_STEPS, FAR = 20, 0.05  # the best constant scale is 0.2 away, pushing early alone 0.01
SCENES = torch.tensor([[a, b] for a in (-1.0, 0.0, 1.0) for b in (-1.0, 0.0, 1.0)], dtype=torch.float64)
OFTEN = torch.tensor([1.0, 3, 9, 3, 9, 9, 9, 9, 1], dtype=torch.float64)
SCENE_VARIANCE = 0.02
BY_COLOR = GaussianMixtureDenoiser(SCENES, SCENE_VARIANCE, OFTEN, labels=[0, 0, 0, 1, 1, 1, 2, 2, 2])
BY_SHAPE = GaussianMixtureDenoiser(SCENES, SCENE_VARIANCE, OFTEN, labels=[0, 1, 2] * 3)
exercise("ex-07-rare", name="strengths", lesson=LESSON, form=listed(number(), RARE_STEPS))


@cache
def astray(strengths: tuple[float, ...], count: int = 1000, seed: int = 7) -> float:
    """Nats for each number by which draws that two sentences guide differ from what both describe (as Gaussians)."""
    angles = [math.pi / 2 * (1 - i / RARE_STEPS) for i in range(1, RARE_STEPS)]
    chain = [NoiseLevel(0.0, 1.0, 0.0)]
    chain += [NoiseLevel(math.cos(a), math.sin(a), float(i + 1)) for i, a in enumerate(angles)]

    def guided(x, level):
        u, color, shape = BY_COLOR(x, level).x0, BY_COLOR(x, level, 2).x0, BY_SHAPE(x, level, 2).x0
        return Prediction(x, level, u + strengths[int(level.time)] * (color - u + shape - u), "x0")

    noise = randn((count, 2), torch.Generator().manual_seed(seed), torch.float64)
    end = sample(ddim(), guided, [*chain, DATA], noise)
    off, spread = end.mean(0) - SCENES[-1], end.var(0) / SCENE_VARIANCE
    return (0.5 * (off.square() / SCENE_VARIANCE + spread - 1 - spread.log())).mean().item()


@case("ex-07-rare", "finite-scales", points=0)
def _(answer):
    assert all(math.isfinite(s) and abs(s) <= 1000 for s in answer), "scales are finite, and no larger than 1000"


@case("ex-07-rare", "both-at-once", points=3)
def _(answer):
    found = astray(tuple(answer))
    if max(answer) - min(answer) < 1e-9 and not found <= FAR:
        raise Mistake(f"a constant scale: {found:.3f} nats; every step may have its own")
    assert found <= FAR, f"the draws are {found:.3f} nats for each number from what both describe; {FAR} are allowed"


# -- ex-07-binding ----------------------------------------------------------------------------------------------------

Thing = tuple[str | None, str | None]  # colour and shape, None where a phrase does not say
Question = tuple[list[Thing], list[Thing]]  # a caption, and what is seen
exercise(
    "ex-07-binding",
    name="bound",
    lesson=LESSON,
    form=call(yes_or_no(), lambda rng: {"caption": [("red", "ring")], "seen": [("red", "ring")]}),
)


def _fits(phrase: Thing, thing: Thing) -> bool:
    return all(said in (None, found) for said, found in zip(phrase, thing, strict=True))


def holds(caption: list[Thing], seen: list[Thing]) -> bool:
    """Whether the first phrase has a thing of its own, and the other phrases have the others."""
    if not caption or not seen:
        return caption == seen
    rest = (seen[:i] + seen[i + 1 :] for i, thing in enumerate(seen) if _fits(caption[0], thing))
    return any(holds(caption[1:], left) for left in rest)


def two_lists(caption: list[Thing], seen: list[Thing]) -> bool:
    """A mistake: colours compared with colours, shapes with shapes."""
    said = lambda things, i: [thing[i] for thing in things if thing[i]]
    return len(caption) == len(seen) and all(set(said(caption, i)) <= set(said(seen, i)) for i in (0, 1))


def in_order(caption: list[Thing], seen: list[Thing]) -> bool:
    """A mistake: phrase by phrase, in the order of the picture."""
    return len(caption) == len(seen) and all(map(_fits, caption, seen))


def forwards_or_backwards(caption: list[Thing], seen: list[Thing]) -> bool:
    """A mistake: as above, or from the other end."""
    return in_order(caption, seen) or in_order(caption, seen[::-1])


def more_may_be_there(caption: list[Thing], seen: list[Thing]) -> bool:
    """A mistake: things that the caption does not name are overlooked."""
    return any(all(map(_fits, caption, some)) for some in itertools.permutations(seen, len(caption)))


def some_may_be_missing(caption: list[Thing], seen: list[Thing]) -> bool:
    """A mistake: each thing has a phrase, but not each phrase a thing."""
    return any(all(map(_fits, some, seen)) for some in itertools.permutations(caption, len(seen)))


def uncounted(caption: list[Thing], seen: list[Thing]) -> bool:
    """A mistake: every phrase fits a thing and every thing a phrase, however many there are."""
    return all(any(_fits(phrase, thing) for thing in seen) for phrase in caption) and all(
        any(_fits(phrase, thing) for phrase in caption) for thing in seen
    )


def shared(caption: list[Thing], seen: list[Thing]) -> bool:
    """A mistake: one thing may serve two phrases."""
    return len(caption) == len(seen) and all(any(_fits(phrase, thing) for thing in seen) for phrase in caption)


def greedy(caption: list[Thing], seen: list[Thing]) -> bool:
    """A mistake: every phrase takes the first thing that fits it."""
    left = list(seen)
    for phrase in caption:
        found = next((thing for thing in left if _fits(phrase, thing)), None)
        if found is None:
            return False
        left.remove(found)
    return not left


def literal(caption: list[Thing], seen: list[Thing]) -> bool:
    """A mistake: None is compared like a word."""
    return sorted(map(str, caption)) == sorted(map(str, seen))


def one_is_enough(caption: list[Thing], seen: list[Thing]) -> bool:
    """A mistake: any phrase that fits any thing will do."""
    return len(caption) == len(seen) and any(_fits(phrase, thing) for phrase in caption for thing in seen)


MISTAKEN = {
    two_lists: "colours and shapes are all there, on the wrong objects: compare pairs, not two lists",
    in_order: "a caption need not name things in the order of the picture",
    forwards_or_backwards: "a caption may name things in any order, not only forwards or backwards",
    more_may_be_there: "the picture shows more than the caption names; it must hold exactly that",
    some_may_be_missing: "the caption names more than the picture shows; it must hold exactly that",
    uncounted: "two equal things are two: count them",
    shared: "one object served two phrases: 'a red thing and a ring' are two things",
    greedy: "a phrase took the only thing that another one could have: try every way to match them",
    literal: "None means that the phrase does not say, and fits anything",
    one_is_enough: "every phrase needs its thing; you were content with one",
}


def _things(rng: Generator, n: int = 3) -> list[Thing]:
    """Things of which no two share a colour or a shape."""
    pick = lambda names: [names[i] for i in torch.randperm(len(names), generator=rng)[:n].tolist()]
    return list(zip(pick(COLORS), pick(SHAPES), strict=True))


def _judges(answer, mistakes: Sequence[Callable], *questions: Question) -> None:
    """Compare verdicts; a mistake is named where it gives all of the same."""
    verdicts = lambda judge: [bool(judge(*question)) for question in questions]
    got, right = verdicts(answer), verdicts(holds)
    if got == right:
        return
    caption, seen = questions[[g != r for g, r in zip(got, right, strict=True)].index(True)]
    say = f"{_said(caption)}: the picture {'holds' if holds(caption, seen) else 'does not hold'} just that, with "
    wrong = {MISTAKEN[mistaken]: verdicts(mistaken) for mistaken in mistakes}
    expect(got, right, say + f"{_said(seen) or 'nothing'} in it", wrong)


def _said(things: list[Thing]) -> str:
    return " and ".join(f"a {color + ' ' if color else ''}{shape or 'thing'}" for color, shape in things)


@case("ex-07-binding", "right-colour-on-the-right-object")
def _(answer, rng):
    a, b, c = _things(rng)
    swapped = [(b[0], a[1]), (a[0], b[1])]
    _judges(
        answer,
        (two_lists, one_is_enough),
        ([a, b], [a, b]),
        ([a, b], swapped[::-1]),
        ([a, b], [(a[0], c[1]), b]),
        ([a, b], [a, (c[0], b[1])]),
    )


@case("ex-07-binding", "in-any-order")
def _(answer, rng):
    a, b, c = _things(rng)
    orders = [list(order) for order in itertools.permutations([a, b, c])]
    _judges(
        answer,
        (in_order, forwards_or_backwards),
        ([a, b], [b, a]),
        *(([a, b, c], order) for order in orders),
        ([a, b, c], [b, c, (c[0], a[1])]),
    )


@case("ex-07-binding", "as-many-objects")
def _(answer, rng):
    a, b, c = _things(rng)
    _judges(
        answer,
        (more_may_be_there, some_may_be_missing, uncounted),
        ([a], [a]),
        ([a], [a, b]),
        ([a, b], [a]),
        ([a, b], [b]),
        ([a], []),
        ([a, b], [a, b, c]),
        ([a], [a, a]),
        ([a, a], [a]),
        ([a, a], [a, a]),
    )


@case("ex-07-binding", "what-is-not-said")
def _(answer, rng):
    a, b, c = _things(rng)
    vague = [(None, a[1]), (b[0], None)]
    _judges(
        answer,
        (literal,),
        (vague, [b, a]),
        (vague, [a, b]),
        (vague, [a, c]),
        (vague, [c, b]),
        ([(None, None)], [a]),
        ([(None, None), a], [b, a]),
        ([(None, None), a], [b, c]),
    )


@case("ex-07-binding", "one-object-for-each-phrase")
def _(answer, rng):
    a, b, c = _things(rng)
    other = (b[0], a[1])  # a's shape in another colour
    _judges(
        answer,
        (shared, greedy),
        ([(a[0], None), (None, a[1])], [a, b]),  # both phrases fit a alone
        ([(None, a[1]), a], [a, other]),  # the first must not take the only a
        ([(None, a[1]), a], [other, a]),
        ([(None, None), (None, a[1]), a], [a, other, c]),
        ([a, a], [a, b]),
    )


# -- ex-07-silence ----------------------------------------------------------------------------------------------------

exercise("ex-07-silence", name="silence", lesson=LESSON, form=number())
WITHIN = 0.001  # nothing is drawn; the mistakes below are 0.0035 away and more


@cache
def measure_silence(of: str = "sums", time: int = 500, noised: bool = True) -> float:
    """Share of gaps in the attention that the middle block pays to text.

    Args:
        of: "sums" of weights over pictures, heads and pixels; what a mistake takes: the mean of shares of each "pixel",
            "caption" or "head", or the share of "all" attention.
        time: of the noise level.
        noised: show noisy pictures.
    """
    system, sheet = load("glide"), scene_sheet("heldout", 32, 16)
    noise, level = randn((16, 3, 16, 16), Generator().manual_seed(0)), system.schedule.level(time)
    block, seen, x = system.network.middle_block[1], [], sheet.pictures[0][::2]
    tokens = system.part("caption").tokenizer(sheet.captions[::2])
    hook = block.register_forward_hook(lambda block, given, out: seen.extend(given[:2]))
    with torch.no_grad():
        system(diffuse(x, level, noise) if noised else x, level, system.condition(caption=tokens))
        hook.remove()
        pixels, words = seen
        q, k, _ = block.qkv(block.norm(pixels).flatten(2)).unflatten(1, (3, block.heads, -1)).unbind(1)
        told = block.encoder_kv(words.mT).unflatten(1, (2, block.heads, -1))[:, 0]
        logits = torch.einsum("bhdp,bhdl->bhpl", q, torch.cat([told, k], 3)) / math.sqrt(q.shape[2])
    text = logits.softmax(3)[..., : words.shape[1]]
    gaps = text * (tokens < 0)[:, None, None]
    if of == "all":
        return (gaps.sum() / logits[..., 0].numel()).item()
    axes = {"sums": (0, 1, 2, 3), "caption": (1, 2, 3), "head": (0, 2, 3), "pixel": (3,)}[of]
    return (gaps.sum(axes) / text.sum(axes)).mean().item()


@case("ex-07-silence", "of-the-attention-to-text")
def _(answer):
    right = measure_silence()
    first = "add up the weights first, and divide then: this is the mean of the shares of each {}"
    wrong = {
        "this is what goes to words; the gaps get the rest": 1 - right,
        "this is the gaps' share of all attention, pixels included; divide by that of the text": measure_silence("all"),
        first.format("pixel, however little it listens"): measure_silence("pixel"),
        first.format("caption"): measure_silence("caption"),
        first.format("head"): measure_silence("head"),
        "the pictures are noisy ones of t = 500; these are clean": lambda: measure_silence(noised=False),
        "this is the share at t = 300; take t = 500": lambda: measure_silence(time=300),
        "this is the share at t = 700; take t = 500": lambda: measure_silence(time=700),
    }
    say = "not what the middle block gives at t = 500: weights to gaps over weights to text, each summed over all"
    expect(answer, right, say, wrong, rtol=0, atol=WITHIN)
