"""Checks of lesson 07: attention to words, embedded and dropped captions, guidance by a caption, binding, silence."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Generator, Tensor

from minidiff.course.comparing import expect, normal, uniform
from minidiff.course.exercises import case, exercise
from minidiff.course.forms import call, number, prediction, taking, tensor, yes_or_no
from minidiff.course.outcomes import Mistake
from minidiff.data.prompts import scene_sheet
from minidiff.data.scenes import COLORS, SHAPES
from minidiff.exact import GaussianMixtureDenoiser
from minidiff.prediction import Prediction
from minidiff.process import diffuse
from minidiff.random import randn
from minidiff.schedule import NoiseLevel, cosine_schedule
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


# -- ex-07-share ------------------------------------------------------------------------------------------------------

exercise(
    "ex-07-share",
    name="text_share",
    lesson=LESSON,
    form=call(
        tensor(lambda given: tuple(given["q"].shape[:2])),
        lambda rng: {"q": normal(rng, 2, 6, 16), "k": normal(rng, 2, 6, 16), "text_k": normal(rng, 2, 3, 16)},
    ),
)


def _logits(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mT / math.sqrt(q.shape[-1])


def _share(text: Tensor, pixels: Tensor) -> Tensor:
    """Share of the words from both kinds of logits, (B, pixels, words) and (B, pixels, pixels)."""
    return torch.cat([text, pixels], -1).softmax(-1)[..., : text.shape[-1]].sum(-1)


def _misshared(q: Tensor, k: Tensor, text_k: Tensor) -> dict[str, Tensor]:
    """Diagnosis -> what that mistake makes of these heads, among those that count keys."""
    text, pixels, root = _logits(q, text_k), _logits(q, k), math.sqrt(q.shape[-1])
    share, words, places = _share(text, pixels), text.shape[-1], pixels.shape[-1]
    return {
        "this is the share by number of keys, whatever they say": torch.full_like(share, words / (words + places)),
        "the products of queries and keys are not divided by sqrt d": _share(root * text, root * pixels),
        "you divided by d; the standard deviation of a product grows like sqrt d": _share(text / root, pixels / root),
        "a pixel and a head have each their own gate; you took one for all pixels": share.mean(1, True).expand_as(
            share
        ),
    }


@case("ex-07-share", "nothing-known-counts-heads")
def _(answer, rng):
    for pixels, words in ((6, 4), (4, 7)):
        q, k, _, text_k, _ = _heads(rng, 2, pixels, words)
        of = lambda share, n=pixels: torch.full((2, n), share, dtype=torch.float64)
        wrong = {
            "this is the share of the pixels; the words' is what is missing to one": of(pixels / (words + pixels)),
            "Z is a sum over keys, neither their mean nor the largest: many words weigh more": of(0.5),
            "this is Z of the words over Z of the pixels; divide by both together": of(words / pixels),
            "the shares are those of the sums of exponentials, not of their logarithms": of(
                math.log(words) / math.log(words * pixels)
            ),
            "this is the logarithm of the ratio; the gate is its sigmoid": of(math.log(words / pixels)),
        }
        say = f"when all logits are equal, {words} words among {pixels} pixels get {words} of {words + pixels} parts"
        expect(answer(0 * q, k, text_k), of(words / (words + pixels)), say, wrong)


@case("ex-07-share", "mixes-the-two-attentions")
def _(answer, rng):
    for batch, words, width in ((2, 3, 16), (1, 8, 5)):
        q, k, _, text_k, _ = _heads(rng, batch, 6, words, width)
        got = answer(q, k, text_k)
        expect(
            got,
            _share(_logits(q, text_k), _logits(q, k)),
            "share * (attention to words) + (1 - share) * (attention to pixels) must be the attention to both",
            _misshared(q, k, text_k),
        )
    expect(answer(q.float(), k.float(), text_k.float()), got, "wrong for keys and queries in float32")


@case("ex-07-share", "no-overflow")
def _(answer, rng):
    way = torch.ones(16, dtype=torch.float64)
    for text, pixels in ((3000, 0), (-3000, 0), (0, 3000), (3000, 3000), (-3000, -3000)):
        q = torch.tensor([1.0, 1.0, -1.0])[:, None] * way.expand(2, 3, 16)
        near = lambda logit, n: logit / 4 * way + 0.05 * normal(rng, 2, n, 16)
        text_k, k = near(text, 4), near(pixels, 3)
        t, p = _logits(q, text_k), _logits(q, k)
        sums = t.exp().sum(-1), p.exp().sum(-1)
        largest = torch.maximum(t.max(), p.max())
        moved = (t - largest).exp().sum(-1), (p - largest).exp().sum(-1)
        wrong = {
            "exp gives infinity or 0 here; subtract the largest logit, or use logsumexp": sums[0] / (sums[0] + sums[1]),
            "the largest logit is to be subtracted for each pixel; you took one for all": moved[0]
            / (moved[0] + moved[1]),
        }
        say = f"wrong where words have logits near {text} and pixels near {pixels}"
        # float32 knows logits of 3000 to 4e-4
        expect(answer(q, k, text_k), _share(t, p), say, wrong, rtol=1e-2, atol=1e-3)


# -- ex-07-drop -------------------------------------------------------------------------------------------------------

exercise(
    "ex-07-drop",
    name="drop_captions",
    lesson=LESSON,
    form=call(
        tensor("tokens", exact=True),
        lambda rng: {"tokens": _captions(rng, (4, 6, 3), 6), "probability": 0.3, "seed": 5},
    ),
)
ONE = "a coin for each caption by itself"


def _dropped(answer, rng: Generator, p: float, batches: int, n: int) -> tuple[Tensor, Tensor]:
    """(n, 6) captions of three to five words, and (batches, n, 6) what the answer makes of them, a seed for each."""
    tokens = _captions(rng, torch.randint(3, 6, (n,), generator=rng).tolist(), 6)
    seeds = torch.randint(10**6, (batches,), generator=rng).tolist()
    return tokens, torch.stack([answer(tokens, p, seed) for seed in seeds])


def _hidden(got: Tensor) -> Tensor:
    return (got == EMPTY).all(-1).double()


@case("ex-07-drop", "empty-is-no-word", points=0)
def _(answer, rng):
    tokens, got = _dropped(answer, rng, uniform(rng, 0.4, 0.6), 20, 64)
    changed = got != tokens
    assert bool(changed.any()), "no caption of 1280 was dropped"
    put = got[changed]
    if bool((put == 0).all()):
        raise Mistake("you wrote word 0 in every place; that is a caption, and the network would learn to draw it")
    rows = got[changed.any(2)]
    if bool((rows[:, None] == tokens).all(2).any(1).all()):
        raise Mistake("you put another caption in place of a dropped one; the empty one is -1 in every place")
    assert bool((put == EMPTY).all()), "the empty caption is -1 in every place"


@case("ex-07-drop", "whole-captions", points=0)
def _(answer, rng):
    tokens, got = _dropped(answer, rng, uniform(rng, 0.3, 0.6), 20, 64)
    if not bool((_hidden(got).bool() | (got == tokens).all(2)).all()):
        raise Mistake("you dropped single words; the null condition is a caption with none")


@case("ex-07-drop", "the-seed-decides")
def _(answer, rng):
    tokens, p = _captions(rng, [4] * 64, 6), uniform(rng, 0.4, 0.6)
    first = answer(tokens, p, 3)
    if not torch.equal(first, answer(tokens, p, 3)):
        raise Mistake("the same seed gave two results: draw from torch.Generator().manual_seed(seed)")
    if all(torch.equal(first, answer(tokens, p, seed)) for seed in range(10, 20)):
        raise Mistake("ten other seeds drop the very same captions: the seed makes no difference")


@case("ex-07-drop", "each-sample-its-own", points=2)
def _(answer, rng):
    _, got = _dropped(answer, rng, uniform(rng, 0.2, 0.5), 300, 128)
    share = _hidden(got).mean(1)
    if set(share.tolist()) <= {0.0, 1.0}:
        raise Mistake("you drew once for the whole batch, so a batch has either all captions or none")
    if len(set(share.tolist())) == 1:
        raise Mistake("every batch loses the same number of captions; toss " + ONE)
    spread, independent = share.std().item(), math.sqrt(share.mean() * (1 - share.mean()) / got.shape[1])
    say = (
        f"the share of empty captions varies between batches by {spread:.4f}; independent draws give {independent:.4f}"
    )
    expect(spread / independent, 1.0, say, rtol=0, atol=0.2)  # five deviations of 300 batches


@case("ex-07-drop", "rate", points=2)
def _(answer, rng):
    for p in (uniform(rng, 0.15, 0.3), uniform(rng, 0.65, 0.9)):
        share = _hidden(_dropped(answer, rng, p, 20, 256)[1])
        five = lambda of, p=p: 5 * math.sqrt(p * (1 - p) / of.numel())
        kept = {"you kept a caption with the probability with which it should be dropped": 1 - p}
        say = f"{{got}} of the captions became empty; asked for were {p:.3g}"
        expect(share.mean().item(), p, say, kept, rtol=0, atol=five(share))
        for part, which in ((share[:, :128], "first"), (share[:, 128:], "last")):
            say = f"of the {which} captions of a batch {{got}} became empty; asked for were {p:.3g}"
            expect(part.mean().item(), p, say, rtol=0, atol=five(part))


@case("ex-07-drop", "never-and-always")
def _(answer, rng):
    for n, batches in ((256, 3), (1, 20)):
        tokens, none = _dropped(answer, rng, 0.0, batches, n)
        assert bool((none == tokens).all()), "with probability 0 no caption may change"
        _, every = _dropped(answer, rng, 1.0, batches, n)
        assert bool((every == EMPTY).all()), "with probability 1 every caption must become empty"


# -- ex-07-guide ------------------------------------------------------------------------------------------------------

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


exercise(
    "ex-07-guide",
    name="guide_caption",
    lesson=LESSON,
    form=call(
        call(prediction("x"), lambda rng: dict(zip(("x", "level"), _noisy(rng, _world(rng)), strict=True))),
        lambda rng: {"model": _model(_world(rng)), "tokens": _asked(rng), "scale": 2.5},
    ),
)


def _guides(answer, rng: Generator, scale: float, say: str, n: int = 6) -> None:
    world, tokens = _world(rng), _asked(rng, n)
    x, level = _noisy(rng, world, n)
    c, u, zero = (world(x, level, labels).eps for labels in (tokens[:, 0], None, 0))
    wrong = {
        "your halves are swapped": c + scale * (u - c),
        "you used 1 + s where s belongs: at s = 1 nothing is guided": c + scale * (c - u),
        "a sign is wrong: s c + (s - 1) u has weights that sum to 2 s - 1; they must sum to one": scale * c
        + (scale - 1) * u,
        "the difference is subtracted; it must be added": u - scale * (c - u),
        "your null is a caption that says word 0 in every place; the empty caption is -1": zero + scale * (c - zero),
        "this is the model with the caption, which is right at s = 1 alone": c,
        "this is the model without any caption, which is right at s = 0 alone: were the captions overwritten?": u,
    }
    if scale in (0.0, 1.0):  # where several mistakes give the same
        wrong = dict(list(wrong.items())[-2:])
    expect(answer(_model(world), tokens, scale)(x, level).eps, u + scale * (c - u), say, wrong)


@case("ex-07-guide", "scale-3-extrapolates")
def _(answer, rng):
    for scale in (3.0, uniform(rng, 1.5, 2.5), uniform(rng, 0.3, 0.7)):
        _guides(answer, rng, scale, f"at s = {scale:.3g}, eps must be u + s (c - u)")


@case("ex-07-guide", "scale-1-is-conditional")
def _(answer, rng):
    _guides(answer, rng, 1.0, "at s = 1 the guided model must be the one that knows the caption")
    _guides(answer, rng, 0.0, "at s = 0 the guided model must be the one that knows no caption")
    _guides(answer, rng, 3.0, "wrong for a batch of one", 1)


@case("ex-07-guide", "null-is-the-empty-caption")
def _(answer, rng):
    world, tokens, asked = _world(rng), _asked(rng), []
    tokens[:, 1] = torch.randint(5, (6,), generator=rng)
    answer(_model(world, asked), tokens, 3.0)(*_noisy(rng, world))
    others = torch.cat(asked)
    others = others[~(others[:, None] == tokens).all(2).any(1)]
    if len(others) and bool((others[:, 0] == EMPTY).all()) and not bool((others == EMPTY).all()):
        raise Mistake("you emptied the first place alone; the empty caption is -1 in every place")
    assert len(others) and bool((others == EMPTY).all()), "without a caption means -1 in every place"


@case("ex-07-guide", "in-one-pass")
def _(answer, rng):
    world, tokens, asked = _world(rng), _asked(rng), []
    guided = answer(_model(world, asked), tokens, 3.0)
    for _ in range(2):
        asked.clear()
        guided(*_noisy(rng, world))
        assert len(asked) == 1, f"the model was called {len(asked)} times a step; join both halves into one batch"
        assert len(asked[0]) == 12, f"one batch of both halves has 12 captions, this one {len(asked[0])}"


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
