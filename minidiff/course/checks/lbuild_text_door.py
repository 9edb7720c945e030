"""Checks of the build page on a text door: its pieces are exact, what it draws is read by the oracle."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from minidiff.course.comparing import close, expect, exploding_pair, normal, uniform
from minidiff.course.exercises import case, exercise
from minidiff.course.forms import call, number, several, taking, tensor
from minidiff.course.outcomes import Mistake
from minidiff.data.captions import judge
from minidiff.data.oracle import read as read_pictures
from minidiff.data.render import render
from minidiff.data.scenes import COLORS, SHAPES, arranged
from minidiff.exact import GaussianMixtureDenoiser
from minidiff.schedule import NoiseLevel

LESSON = "build_text_door"


def _at(angle) -> NoiseLevel:
    """The variance-preserving level of an angle, or one for each of several."""
    angle = torch.as_tensor(angle, dtype=torch.float64)
    return NoiseLevel(angle.cos(), angle.sin(), angle) if angle.ndim else NoiseLevel(*(f(angle.item()) for f in _TRIG))


_TRIG = (math.cos, math.sin, float)

# -- ex-door-attention ------------------------------------------------------------------------------------------------


def attended(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    counts: Tensor,
    heads: int,
    *,
    scale: float | None = None,
    hidden: float = -math.inf,
    after: Tensor | None = None,
    over: int = 1,
    interleaved: bool = False,
) -> Tensor:
    """What each asks and hears, one picture and one head at a time; the keywords make of it what mistakes do.

    Args:
        q, k, v, counts, heads: As the statement has them.
        scale: What the logits are multiplied by.
        hidden: The logit of what does not count.
        after: A mask (B, L) for the weights, after the softmax.
        over: The axis of the softmax.
        interleaved: Whether a head takes every so many-th channel.
    """
    width = q.shape[2] // heads
    out = torch.zeros_like(q)
    for i in range(len(q)):
        for head in range(heads):
            own = slice(head, None, heads) if interleaved else slice(head * width, (head + 1) * width)
            logits = (scale or width**-0.5) * q[i, :, own] @ k[i, :, own].T
            weights = logits.masked_fill(~counts[i], hidden).softmax(over)
            out[i, :, own] = (weights if after is None else weights * after[i]) @ v[i, :, own]
    return out


def _asking(rng: Generator, n: int, asking: int, places: int, width: int, heads: int, hidden: bool = False) -> dict:
    q, k, v = (normal(rng, n, m, width) for m in (asking, places, places))
    counts = torch.ones(n, places, dtype=torch.bool)
    if hidden:
        counts = torch.arange(places) < torch.randperm(places, generator=rng)[torch.arange(n) % places, None] + 1
    return {"q": q, "k": k, "v": v, "counts": counts, "heads": heads}


exercise(
    "ex-door-attention",
    name="attention",
    lesson=LESSON,
    form=call(tensor("q"), lambda rng: _asking(rng, 2, 3, 4, 6, 2)),
)


@case("ex-door-attention", "one-head")
def _(answer, rng):
    given = _asking(rng, 2, 3, 4, 6, 1)
    right, width = attended(**given), 6
    wrong = {
        "the logits are divided by the root of the width of a head": attended(**given, scale=1.0),
        "the logits are divided by the width, not by its root": attended(**given, scale=1 / width),
        "the weights of one who asks add up to one; here those of one who answers do": attended(**given, over=0),
    }
    expect(answer(**given), right, "with one head it is softmax(q k^T / sqrt d) v", wrong)


@case("ex-door-attention", "several-heads")
def _(answer, rng):
    for heads, width in ((2, 6), (3, 12)):
        given = _asking(rng, 2, 3, 4, width, heads)
        wrong = {
            "the logits are divided by the root of the width of a head, not of all heads": attended(
                **given, scale=width**-0.5
            ),
            "the heads stand one after another in the last axis; yours are interleaved": attended(
                **given, interleaved=True
            ),
            "this is one head, however many were asked for": attended(**given | {"heads": 1}),
        }
        expect(answer(**given), attended(**given), f"{heads} heads of width {width // heads}", wrong)


@case("ex-door-attention", "padding-is-not-heard", points=2)
def _(answer, rng):
    given = _asking(rng, 4, 3, 5, 6, 2, hidden=True)
    counts, every = given["counts"], torch.ones_like(given["counts"])
    masked = lambda mask, **slips: attended(**given | {"counts": mask}, **slips)
    wrong = {
        "what does not count is heard all the same": masked(every),
        "what does not count is silent, but still takes its share of the weight": masked(every, after=counts),
        "a logit of zero is not silence: e^0 is one": masked(counts, hidden=0.0),
        "each picture has its own row of counts; you took the first one's for all": masked(
            counts[:1].expand_as(counts)
        ),
    }
    expect(answer(**given), attended(**given), "places that do not count must have no weight", wrong)


@case("ex-door-attention", "loud")
def _(answer, rng):
    given = _asking(rng, 1, 2, 4, 4, 2, hidden=True)
    given |= {"q": 3000 * given["q"]}
    expect(answer(**given), attended(**given), "with large logits one place gets all the weight")


# -- ex-door-read -----------------------------------------------------------------------------------------------------

READER = {"query": (1, 1), "key": (1, 1), "value": (1, 1), "out": (1, 1), "wide": (1, 4), "narrow": (4, 1)}
VOCABULARY, CONTEXT, WIDTH = 5, 4, 8


def reader(rng: Generator, words: int = VOCABULARY, context: int = CONTEXT, width: int = WIDTH) -> dict[str, Tensor]:
    """Weights of a reader, drawn."""
    sizes = {name: (a * width, b * width) for name, (a, b) in READER.items()}
    drawn = {name: normal(rng, *size) / size[0] ** 0.5 for name, size in sizes.items()}
    return drawn | {"words": normal(rng, words + 1, width), "places": normal(rng, context + 1, width)}


def _normed(x: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def understood(tokens: Tensor, w: dict[str, Tensor], heads: int, **slips) -> Tensor:
    """(B, L + 1, W): each caption by itself, cut to its words; zeros behind them. ``slips`` as mistakes make them."""
    out = torch.zeros(len(tokens), tokens.shape[1] + 1, w["words"].shape[1], dtype=w["words"].dtype)
    for i, row in enumerate(tokens):
        told = [len(w["words"]) - 1, *(t for t in row.tolist() if t >= 0)]
        if slips.get("start_last"):
            told = [*told[1:], told[0]]
        y = w["words"][told] + slips.get("placed", 1) * w["places"][: len(told)]
        norm = slips.get("norm", _normed)
        seen = norm(y)[None]
        ones = torch.ones(1, len(told), dtype=torch.bool)
        heard = attended(*(seen @ w[name] for name in ("query", "key", "value")), ones, heads)[0] @ w["out"]
        y = slips.get("kept", 1) * y + slips.get("talk", 1) * heard
        y = y + slips.get("think", 1) * F.gelu(norm(y) @ w["wide"]) @ w["narrow"]
        out[i, : len(told)] = slips.get("last", _normed)(y)
    return out


def _captions(rng: Generator, n: int = 4) -> Tensor:
    """(n, L) tokens: the first caption is empty, the second full."""
    tokens = torch.randint(VOCABULARY, (n, CONTEXT), generator=rng)
    length = torch.tensor([0, CONTEXT, *(1 + k % (CONTEXT - 1) for k in range(n - 2))])
    return tokens.masked_fill(torch.arange(CONTEXT) >= length[:, None], -1)


def _reading(rng: Generator) -> dict:
    return {"tokens": _captions(rng), "w": reader(rng), "heads": 2}


def _one_more(given: dict) -> tuple[int, int]:
    return len(given["tokens"]), given["tokens"].shape[1] + 1


exercise(
    "ex-door-read",
    name="read",
    lesson=LESSON,
    form=call(
        several(
            words=tensor(lambda given: (*_one_more(given), given["w"]["words"].shape[1])),
            counts=tensor(_one_more, "bool"),
        ),
        _reading,
    ),
)


@case("ex-door-read", "what-counts")
def _(answer, rng):
    given = _reading(rng)
    there = given["tokens"] >= 0
    right = torch.cat([torch.ones_like(there[:, :1]), there], 1)
    got = answer(**given)[1]
    wrong = {
        "the start counts too, in every caption": torch.cat([torch.zeros_like(there[:, :1]), there], 1),
        "the start stands before the words": torch.cat([there, torch.ones_like(there[:, :1])], 1),
        "everything counts here, the padding too": torch.ones_like(right),
        "this is the mask turned round: True is for what counts": ~right,
    }
    for diagnosis, other in wrong.items():
        if torch.equal(got, other):
            raise Mistake(diagnosis)
    assert torch.equal(got, right), "True is for the start and for every word, False for the padding"


def _read_right(answer, given: dict, say: str, wrong: dict[str, dict]) -> None:
    words, counts = answer(**given)
    at = lambda **slips: understood(**given, **slips)[counts]
    expect(words[counts], at(), say, {name: at(**slips) for name, slips in wrong.items()})
    assert bool(words.isfinite().all()), "behind the words something is not finite: attention would spread it"


@case("ex-door-read", "an-empty-caption")
def _(answer, rng):
    given = {"tokens": torch.full((1, CONTEXT), -1), "w": reader(rng), "heads": 2}
    _read_right(answer, given, "of an empty caption the start alone is read, and it can hear itself", {})


@case("ex-door-read", "words-at-their-places", points=3)
def _(answer, rng):
    same = lambda y: y
    wrong = {
        "the places were left out": {"placed": 0},
        "the words' norms were left out before attention and perceptron": {"norm": same},
        "the last norm was left out": {"last": same},
        "the words did not talk to each other": {"talk": 0},
        "attention is added to what was there; yours replaces it": {"kept": 0},
        "the perceptron was left out": {"think": 0},
    }
    for heads in (1, 2, 4):
        _read_right(answer, _reading(rng) | {"heads": heads}, f"with {heads} heads the words are others", wrong)


@case("ex-door-read", "another-context")
def _(answer, rng):
    given = {"tokens": torch.tensor([[1, 0, -1], [2, -1, -1]]), "w": reader(rng, 3, 3, 4), "heads": 1}
    _read_right(answer, given, "three words, a context of three, a width of four", {})


# -- ex-door-listen ---------------------------------------------------------------------------------------------------


def heard_by(
    h: Tensor,
    words: Tensor,
    counts: Tensor,
    w: dict[str, Tensor],
    heads: int,
    *,
    normed: Tensor | None = None,
    kept: Tensor | None = None,
    said: tuple[str, str] = ("key", "value"),
    turned: bool = False,
) -> Tensor:
    """What the features are once their pixels have heard the words; the keywords make of it what mistakes do.

    Args:
        h, words, counts, w, heads: As the statement has them.
        normed: What the queries are made of.
        kept: What is added to.
        said: The weights that make keys and values.
        turned: Whether what is heard is put back column by column.
    """
    b, c, height, width = h.shape
    groups = h.reshape(b, 8, -1)
    groups = groups - groups.mean(-1, keepdim=True)
    groups = groups / (groups.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    pixels = (groups.reshape(h.shape) if normed is None else normed).flatten(2).transpose(1, 2)
    out = attended(pixels @ w["query"], words @ w[said[0]], words @ w[said[1]], counts, heads) @ w["out"]
    heard = out.transpose(1, 2).reshape((b, c, width, height) if turned else h.shape)
    return (h if kept is None else kept) + (heard.transpose(2, 3) if turned else heard)


def ear(rng: Generator, channels: int, width: int) -> dict[str, Tensor]:
    """Weights of an ear, drawn."""
    sizes = {"query": channels, "key": width, "value": width, "out": channels}
    return {name: normal(rng, size, channels) / size**0.5 for name, size in sizes.items()}


def _listening(rng: Generator, n: int = 3, channels: int = 8, size: tuple[int, int] = (2, 3)) -> dict:
    counts = torch.arange(4) < torch.arange(1, n + 1)[:, None]
    given = {"h": normal(rng, n, channels, *size), "words": normal(rng, n, 4, 5), "counts": counts}
    given["h"] = given["h"] * uniform(rng, 0.5, 3, 1, channels, 1, 1) + normal(rng, 1, channels, 1, 1)
    return given | {"w": ear(rng, channels, 5), "heads": 2}


exercise("ex-door-listen", name="listen", lesson=LESSON, form=call(tensor("h"), _listening))


@case("ex-door-listen", "silent-at-first")
def _(answer, rng):
    given = _listening(rng)
    given["w"] = given["w"] | {"out": torch.zeros(8, 8, dtype=torch.float64)}
    wrong = {"what is heard is added to h; yours replaces it": torch.zeros_like(given["h"])}
    expect(answer(**given), given["h"], "while `out` is zero the features must pass as they are", wrong)


@case("ex-door-listen", "the-words-are-heard", points=3)
def _(answer, rng):
    for n, channels, size in ((3, 8, (2, 3)), (1, 16, (3, 2)), (4, 8, (2, 2))):
        given = _listening(rng, n, channels, size)
        wrong = {
            "the norm before the queries was left out": heard_by(**given, normed=given["h"]),
            "the norm is for the queries alone: what is heard is added to h itself": heard_by(
                **given, kept=F.group_norm(given["h"], 8)
            ),
            "the keys are taken for values and the values for keys": heard_by(**given, said=("value", "key")),
            "what does not count is heard all the same": heard_by(
                **given | {"counts": torch.ones_like(given["counts"])}
            ),
            "rows and columns are exchanged": heard_by(**given, turned=True),
        }
        say = f"of {n} pictures with {channels} channels, {size[0]} by {size[1]}, each pixel must hear its own words"
        expect(answer(**given), heard_by(**given), say, wrong)


# -- ex-door-loss -----------------------------------------------------------------------------------------------------


class _Shown:
    """A network that says what it always says, and writes down what it is shown."""

    def __init__(self, said: Tensor):
        self.said, self.seen = said, []

    def __call__(self, x, level, tokens):
        self.seen.append((x, level, tokens))
        return self.said.to(x)


def _step(rng: Generator, n: int = 4, drop: float = 0.2, shape: tuple = (2, 2, 2), level=None) -> tuple[dict, _Shown]:
    shown = _Shown(normal(rng, n, *shape))
    given = {
        "network": taking("x level tokens", shown),
        "x0": normal(rng, n, *shape),
        "tokens": torch.randint(5, (n, 3), generator=rng).masked_fill(torch.arange(3) >= 2, -1),
        "level": level or _at(uniform(rng, 0.4, 1.2, n)),
        "drop": drop,
        "seed": int(uniform(rng, 0, 10_000)),
    }
    return given, shown


exercise("ex-door-loss", name="loss", lesson=LESSON, form=call(number(), lambda rng: _step(rng)[0]))


def _noise(given: dict, shown: _Shown) -> Tensor:
    """The noise that must be in what the network was shown."""
    assert shown.seen, "the network was not asked"
    alpha, sigma = given["level"].like(given["x0"])
    return (shown.seen[-1][0].double() - alpha * given["x0"]) / sigma


@case("ex-door-loss", "fresh-noise")
def _(answer, rng):
    given, shown = _step(rng, 40, shape=(3, 4, 4))
    answer(**given)
    eps = _noise(given, shown)
    if close(shown.seen[-1][0], given["x0"]):
        raise Mistake("the network was shown the clean pictures")
    if close(eps[1:], eps[:1].expand_as(eps[1:]), atol=1e-3):  # x_t may be float32, and is divided by sigma
        raise Mistake("all pictures have the same noise")
    for name, found, right, off in (("mean", eps.mean(), 0.0, 1.0), ("variance", eps.square().mean(), 1.0, 2**0.5)):
        far = 5 * off / eps.numel() ** 0.5
        assert abs(found.item() - right) < far, (
            f"what is shown must be alpha x_0 + sigma eps with standard normal eps; the {name} of "
            f"(x - alpha x_0) / sigma is {found:.2f}, not {right:.0f}"
        )
    expect(shown.seen[-1][1].sigma, given["level"].sigma, "the network must be told the level of what it is shown")


@case("ex-door-loss", "mean-of-squares", points=2)
def _(answer, rng):
    for n, level in ((4, None), (1, None), (3, exploding_pair(rng)[0])):
        given, shown = _step(rng, n, level=level)
        got, eps, x0 = answer(**given), _noise(given, shown), given["x0"]
        alpha, sigma = given["level"].like(x0)
        off = lambda target, said=shown.said: (said - target).square().mean()
        v = alpha * eps - sigma * x0
        wrong = {
            "the network says v; you compared with eps": off(eps),
            "the network says v; you compared with x_0": off(x0),
            "the sign of v is turned round: it is alpha eps - sigma x_0": off(-v),
            "you added up the squares; their mean was asked for": off(v) * v.numel(),
        }
        # the noise is found from x_t, which may be float32, and is divided by sigma
        expect(got, off(v), "it is {right}, not {got}", wrong, rtol=1e-3)


def _told(answer, rng: Generator, drop: float, n: int = 1500) -> tuple[dict, Tensor]:
    given, shown = _step(rng, n, drop, (1, 1, 1))
    answer(**given)
    return given, shown.seen[-1][2]


@case("ex-door-loss", "whole-captions-are-dropped", points=2)
def _(answer, rng):
    for drop in (0.25, 0.0, 1.0):
        given, told = _told(answer, rng, drop)
        hidden, kept = (told == -1).all(1), (told == given["tokens"]).all(1)
        share, n = hidden.double().mean().item(), len(told)
        if not bool((hidden | kept).all()):
            words = (told == -1) & (given["tokens"] >= 0)
            if bool((words | (told == given["tokens"])).all()):
                raise Mistake("single words were dropped; a caption goes as a whole")
            raise AssertionError("a caption is told as it is, or it is all -1; nothing else was asked for")
        within = 5 * (max(drop * (1 - drop), 0) / n) ** 0.5 + 1e-9
        if 0 < drop < 1 and share in (0.0, 1.0):
            raise Mistake("all captions of a batch are dropped together, or none; it is drawn for each")
        if abs(share - (1 - drop)) <= within and drop != 0.5:
            raise Mistake("that share is kept; it is the share that is dropped")
        assert abs(share - drop) <= within, f"at drop = {drop} a share of {share:.3f} of the captions was dropped"


@case("ex-door-loss", "the-seed-decides")
def _(answer, rng):
    given, shown = _step(rng, 200, 0.5, (1, 2, 2))
    first, again = answer(**given), answer(**given)
    other = answer(**given | {"seed": given["seed"] + 1})
    (x, _, told), (y, _, same), (z, _, others) = shown.seen[-3:]
    if first != again or not torch.equal(x, y) or not torch.equal(told, same):
        raise Mistake("the same seed drew something else: everything that is drawn must come from the seed")
    if other == first or torch.equal(x, z):
        raise Mistake("another seed draws the very same noise")
    if torch.equal(told, others):
        raise Mistake("another seed drops the very same captions")


# -- ex-door-compose --------------------------------------------------------------------------------------------------


def _world(rng: Generator) -> GaussianMixtureDenoiser:
    """Three classes of two blobs each."""
    return GaussianMixtureDenoiser(normal(rng, 6, 1, 2, 2), 0.3, [2.0, 1, 1, 2, 1, 1], torch.arange(6) % 3)


def speaking(world: GaussianMixtureDenoiser, calls: list | None = None) -> Callable:
    """The world as a model of captions, (x, level, tokens) -> Prediction: the first token is the class."""

    def model(x, level, tokens):
        if calls is not None:
            calls.append(len(x))
        return world(x.double(), level, tokens[:, 0])

    return taking("x level tokens", model)


def _asked(rng: Generator, scales: tuple[float, ...], n: int = 5, level: NoiseLevel | None = None) -> dict:
    captions = [torch.randint(3, (n, 1), generator=rng) for _ in scales]
    level = level or _at(uniform(rng, 0.6, 1.1))
    return {
        "model": speaking(_world(rng)),
        "x": normal(rng, n, 1, 2, 2),
        "level": level,
        "captions": captions,
        "scales": list(scales),
    }


def composed(model, x, level, captions, scales) -> Tensor:
    """x_0 of the sum, one call for each caption."""
    ask = lambda tokens: model(x, level, tokens).x0
    plain = ask(torch.full((len(x), 1), -1))
    return plain + sum(s * (ask(c) - plain) for c, s in zip(captions, scales, strict=True))


exercise(
    "ex-door-compose",
    name="compose",
    lesson=LESSON,
    form=call(tensor("x"), lambda rng: _asked(rng, (2.0, 1.0))),
)


def _composes(answer, given: dict, say: str, wrong: dict[str, list[float]]) -> None:
    right = composed(**given)
    expect(answer(**given), right, say, {name: composed(**given | {"scales": s}) for name, s in wrong.items()})


@case("ex-door-compose", "one-caption")
def _(answer, rng):
    for s in (1.0, 3.0, 0.0):
        wrong = {
            "the scale is counted from the unconditional prediction: at 1 nothing is guided": [s + 1],
            "the halves are swapped": [1 - s],
            "this is s = 1, whatever is asked for": [1.0],
        }
        _composes(answer, _asked(rng, (s,)), f"one caption at s = {s:g} is classifier-free guidance", wrong)


@case("ex-door-compose", "several-captions", points=2)
def _(answer, rng):
    for scales in ((2.0, 1.5), (3.0, -1.0), (1.0, 0.5, 2.0)):
        k = len(scales)
        wrong = {
            "the directions are added up; you took their mean": [s / k for s in scales],
            "only the first caption counts here": [scales[0], *[0.0] * (k - 1)],
            "only the last caption counts here": [*[0.0] * (k - 1), scales[-1]],
            "all captions have the first one's scale here": [scales[0]] * k,
            "a scale below zero is allowed: it leads away from its caption": [abs(s) for s in scales],
        }
        _composes(answer, _asked(rng, scales), f"{k} captions: each adds its own direction", wrong)


@case("ex-door-compose", "a-level-for-each-picture")
def _(answer, rng):
    level = _at(uniform(rng, 0.4, 1.3, 5))
    _composes(answer, _asked(rng, (2.0, 1.0), level=level), "each picture has a level of its own", {})
    _composes(answer, _asked(rng, (2.0,), 3, exploding_pair(rng)[0]), "the level is a variance-exploding one", {})


@case("ex-door-compose", "in-one-call")
def _(answer, rng):
    calls: list[int] = []
    given = _asked(rng, (2.0, 1.0))
    answer(**given | {"model": speaking(_world(rng), calls)})
    assert len(calls) == 1, f"two captions took {len(calls)} calls of the model; one is enough, on a larger batch"


# -- ex-door-pictures -------------------------------------------------------------------------------------------------

TIMES, SIDE = 2, 8  # pictures of each caption; pixels
CAPTIONS = [f"a {color} {shape}" for color in COLORS for shape in SHAPES]
COLORED, SHAPED, BOTH = 0.7, 0.4, 0.3  # shares; chance has 1/8, 1/8 and 1/64
exercise("ex-door-pictures", name="my_pictures", lesson=LESSON, form=tensor((TIMES * len(CAPTIONS), 3, SIDE, SIDE)))


@cache
def real_pictures(times: int = TIMES, seed: int = 0) -> Tensor:
    """Rendered scenes of the captions, each so many times."""
    generator = torch.Generator().manual_seed(seed)
    color, shape = (torch.arange(8 * 8) // 8, torch.arange(8 * 8) % 8)
    n = times * len(CAPTIONS)
    told = [t.repeat_interleave(times)[:, None] for t in (shape, color)]
    size = torch.randint(2, (n, 1), generator=generator)
    return render(arranged(*told, size, torch.full((n,), -1), generator), SIDE)


def _verdicts(images: Tensor, captions: list[str]) -> dict[str, float]:
    found = judge(captions, read_pictures(images.float(), 1).scenes)
    return {name: hits.double().mean().item() for name, hits in found.items()}


def _apart(images: Tensor) -> float:
    """Mean distance of two pictures of one caption."""
    pairs = images.double().clamp(-1, 1).view(len(CAPTIONS), TIMES, -1)
    return (pairs[:, 0] - pairs[:, 1]).norm(dim=1).mean().item()


def _in_order() -> list[str]:
    return [caption for caption in CAPTIONS for _ in range(TIMES)]


@case("ex-door-pictures", "the-colour", points=2)
def _(answer):
    right = _verdicts(answer, _in_order())["color"]
    if right < COLORED <= _verdicts(answer, CAPTIONS * TIMES)["color"]:
        raise Mistake("your pictures go through all captions and then again; two of the first come first")
    assert right >= COLORED, f"a share of {right:.2f} has the colour that was asked for; {COLORED} is needed"


@case("ex-door-pictures", "the-shape", points=2)
def _(answer):
    right = _verdicts(answer, _in_order())["shape"]
    assert right >= SHAPED, f"a share of {right:.2f} has the shape that was asked for; {SHAPED} is needed"


@case("ex-door-pictures", "both")
def _(answer):
    right = _verdicts(answer, _in_order())["binding"]
    assert right >= BOTH, f"a share of {right:.2f} has the shape and the colour; {BOTH} is needed"


@case("ex-door-pictures", "two-and-not-one-twice")
def _(answer):
    share = _apart(answer) / _apart(real_pictures())
    assert share > 0.5, f"two pictures of a caption are {share:.2f} as far apart as real ones; 0.5 is needed"
