"""Checks of lesson 07: attention to words, embedded and dropped captions, guidance by a caption, binding, silence."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from minidiff.course.exercises import case, exercise
from minidiff.course.outcomes import Mistake
from minidiff.data.prompts import scene_sheet
from minidiff.exact import GaussianMixtureDenoiser
from minidiff.prediction import Prediction
from minidiff.process import diffuse
from minidiff.random import randn
from minidiff.schedule import NoiseLevel, cosine_schedule
from minidiff.store import load

LESSON = "07_glide"


def _close(a: Tensor, b: Tensor, tolerance: float = 1e-6) -> bool:
    a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
    return a.shape == b.shape and bool(((a - b).abs() <= tolerance * (1 + b.abs())).all())


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-07-embed", name="embed", lesson=LESSON)
EMPTY = -1


@cache
def _tables(words: int = 9, places: int = 5, width: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """The table of words (9, 4), the places (5, 4) and the padding (5, 4)."""
    generator = torch.Generator().manual_seed(1)
    return tuple(randn((n, width), generator, torch.float64) for n in (words, places, places))


CAPTIONS = torch.tensor([[3, 1, 0, EMPTY, EMPTY], [8, 8, 2, 5, 7], [0, EMPTY, EMPTY, EMPTY, EMPTY], [EMPTY] * 5])


def _embedded() -> Tensor:
    table, places, padding = _tables()
    rows = [
        [padding[i] if word == EMPTY else table[word] + places[i] for i, word in enumerate(caption)]
        for caption in CAPTIONS.tolist()
    ]
    return torch.stack([torch.stack(row) for row in rows])


def _embed(answer) -> tuple[Tensor, Tensor, Tensor]:
    """What the answer gives, what is right, and where there is a word."""
    got, right = torch.as_tensor(answer(CAPTIONS, *_tables())).double(), _embedded()
    assert got.shape == right.shape, f"one vector for each place, {tuple(right.shape)}, not {tuple(got.shape)}"
    return got, right, CAPTIONS >= 0


@case("ex-07-embed", "a-word-and-its-place")
def _(answer):
    table, _, _ = _tables()
    got, right, word = _embed(answer)
    if _close(got[word], table[CAPTIONS[word]]):
        raise Mistake("the places are missing: without them attention cannot tell the first word from the last")
    some = word & (CAPTIONS > 0)
    assert _close(got[some], right[some]), "a place with a word holds the word's row of the table plus the place's row"


@case("ex-07-embed", "word-0-is-a-word")
def _(answer):
    got, right, _ = _embed(answer)
    zero = CAPTIONS == 0
    if _close(got[zero], _tables()[2].expand(4, -1, -1)[zero]):
        raise Mistake("you took word 0 for a gap; gaps are -1, and 0 is a word like any other")
    assert _close(got[zero], right[zero]), "word 0 is not embedded as a word"


@case("ex-07-embed", "a-gap-and-its-place")
def _(answer):
    table, places, padding = _tables()
    got, right, word = _embed(answer)
    wrong = {
        "you gave gaps the place's row as well; padding is a row for each place already": padding + places,
        "you left zeros in the gaps: their keys are zero then, not their weights, and nothing was learnt for them": 0,
        "in the gaps you looked up word 0, which the caption does not say": table[0] + places,
        "an index of -1 is the last row of the table, so your gaps say the last word": table[-1] + places,
        "every gap got the same row; padding has one for each place": padding[0],
    }
    for message, rows in wrong.items():
        if _close(got[~word], torch.as_tensor(rows).expand(4, 5, 4)[~word]):
            raise Mistake(message)
    assert _close(got[~word], right[~word]), "a gap holds the padding row of its place, and nothing else"


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-07-attend", name="attend", lesson=LESSON)


def _heads(size: float = 1.0, pixels: int = 6, words: int = 3, width: int = 16) -> tuple[Tensor, ...]:
    """q, k, v (2, 6, 16) of the pixels, k and v (2, 3, 16) of the words."""
    generator = torch.Generator().manual_seed(2)
    of = lambda n: size * randn((2, n, width), generator, torch.float64)
    return of(pixels), of(pixels), of(pixels), of(words), of(words)


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


@case("ex-07-attend", "one-softmax-over-both")
def _(answer):
    q, k, v, text_k, text_v = _heads()
    got, right = torch.as_tensor(answer(q, k, v, text_k, text_v)).double(), _joint(q, k, v, text_k, text_v)
    own, told = _attention(q, k, v), _attention(q, text_k, text_v)
    for wrong, message in (
        (own + told, "you added two attentions, each with weights that sum to one; here all weights together do"),
        ((own + told) / 2, "you gave words and pixels half of the weight each; the softmax has to decide"),
        (own, "the words have no influence: they must stand among the keys and values"),
        (told, "the pixels cannot see each other: their keys and values must stay"),
    ):
        if _close(got, wrong):
            raise Mistake(message)
    assert got.shape == right.shape, f"pixels ask, words do not: {tuple(right.shape)}, not {tuple(got.shape)}"
    assert _close(got, right), "not softmax(q [text k, k]^T / sqrt d) [text v, v]"


@case("ex-07-attend", "divided-by-the-root-of-d")
def _(answer):
    parts = _heads(1.5)
    got, right = torch.as_tensor(answer(*parts)).double(), _joint(*parts)
    if _close(got, _joint(*parts, scale=1.0)):
        raise Mistake("the products of queries and keys are not divided by sqrt d")
    if _close(got, _joint(*parts, scale=1 / 16)):
        raise Mistake("you divided by d; the standard deviation of a product grows like sqrt d")
    assert _close(got, right), "wrong for keys and queries of size 1.5"


@case("ex-07-attend", "each-sample-its-own-caption")
def _(answer):
    parts = _heads()
    got = torch.as_tensor(answer(*parts)).double()
    assert _close(got, _joint(*parts)), "wrong in a batch of two"
    alone = torch.cat([torch.as_tensor(answer(*(part[i : i + 1] for part in parts))) for i in range(2)])
    assert _close(got, alone), "a sample's result must not depend on the batch it is in"


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-07-share", name="text_share", lesson=LESSON)


def _logits(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mT / math.sqrt(q.shape[-1])


@case("ex-07-share", "mixes-the-two-attentions")
def _(answer):
    for size in (0.5, 1.0, 1.6):
        q, k, v, text_k, text_v = _heads(size)
        got = torch.as_tensor(answer(q, k, text_k)).double()
        assert got.shape == q.shape[:2], f"one share for each pixel, {tuple(q.shape[:2])}, not {tuple(got.shape)}"
        own, told, both = _attention(q, k, v), _attention(q, text_k, text_v), _joint(q, k, v, text_k, text_v)
        if _close((1 - got)[..., None] * told + got[..., None] * own, both):
            raise Mistake("this is the share of the pixels; the words' is what is missing to one")
        mean = lambda logits: logits.exp().mean(2)
        by_mean = mean(_logits(q, text_k)) / (mean(_logits(q, text_k)) + mean(_logits(q, k)))
        if _close(got, by_mean):
            raise Mistake(
                "you averaged the exponentials; a partition function is their sum, so that many words weigh more"
            )
        assert _close(got[..., None] * told + (1 - got)[..., None] * own, both), (
            f"with keys of size {size}, share * (attention to words) + (1 - share) * (attention to pixels) must be the"
            " attention to both"
        )


@case("ex-07-share", "nothing-known-counts-heads")
def _(answer):
    q, k, _, text_k, _ = _heads()
    got = torch.as_tensor(answer(0 * q, k, text_k)).double()
    assert _close(got, torch.full((2, 6), 3 / 9)), "when all logits are equal, 3 words among 6 pixels get a third"


@case("ex-07-share", "no-overflow")
def _(answer):
    q, k, _, text_k, _ = _heads()
    for factor, end in ((3000.0, 1.0), (-3000.0, 0.0)):
        q_loud = torch.ones_like(q)
        got = torch.as_tensor(answer(q_loud, 0 * k, factor * torch.ones_like(text_k) / 4)).double()
        assert bool(got.isfinite().all()), "with logits of 3000 this overflows; subtract the largest, or use logsumexp"
        assert _close(got, torch.full((2, 6), end)), f"words with logits of {factor:g} get a share of {end:g}"


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-07-drop", name="drop_captions", lesson=LESSON)
DROP = 0.2


def _dropped(answer, p: float = DROP, seeds: int = 40, n: int = 128) -> tuple[Tensor, Tensor]:
    """(n, 6) captions of three to five words, and (seeds, n, 6) what the answer makes of them."""
    place, length = torch.arange(6), 3 + torch.arange(n)[:, None] % 3
    captions = torch.where(place < length, (torch.arange(n)[:, None] * 7 + place * 5) % 11, EMPTY)
    return captions, torch.stack([torch.as_tensor(answer(captions, p, seed)) for seed in range(seeds)])


@case("ex-07-drop", "whole-captions")
def _(answer):
    captions, got = _dropped(answer)
    changed = got != captions
    whole = (got == EMPTY).all(2) | (got == captions).all(2)
    if not whole.all() and bool((got[changed] == EMPTY).all()):
        raise Mistake("you dropped single words; the null condition is a caption with none")
    assert bool(whole.all()), "a caption either stays as it is or becomes the empty one, -1 in every place"


@case("ex-07-drop", "rate")
def _(answer):
    share = (_dropped(answer)[1] == EMPTY).all(2).double().mean().item()
    if abs(share - (1 - DROP)) < 0.03:
        raise Mistake("you kept a caption with the probability with which it should be dropped")
    # 5120 draws: four standard deviations are 0.022
    assert abs(share - DROP) < 0.03, f"{share:.3f} of the captions became empty, asked for were {DROP}"


@case("ex-07-drop", "each-sample-its-own")
def _(answer):
    share = (_dropped(answer)[1] == EMPTY).all(2).double().mean(1)
    if bool(((share == 0) | (share == 1)).all()):
        raise Mistake("you drew once for the whole batch, so a batch has either all captions or none")
    spread, binomial = share.std().item(), math.sqrt(DROP * (1 - DROP) / 128)
    assert 0.5 < spread / binomial < 1.6, (
        f"the share of empty captions varies between batches by {spread:.3f}; independent draws give {binomial:.3f}"
    )


@case("ex-07-drop", "empty-is-no-word")
def _(answer):
    captions, got = _dropped(answer)
    changed = got[(got != captions).any(2)]
    if len(changed) and bool((changed == 0).all()):
        raise Mistake("you wrote word 0 in every place; that is a caption, and the network would learn to draw it")
    assert len(changed) and bool((changed == EMPTY).all()), "the empty caption is -1 in every place"


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-07-guide", name="guide_caption", lesson=LESSON)
ASKED = torch.tensor([[0, 4], [1, EMPTY], [2, 0], [1, 3], [0, 0], [2, EMPTY]])


@cache
def _world() -> GaussianMixtureDenoiser:
    """Three classes of tiny pictures; here the first word of a caption says which."""
    means = torch.randn(5, 3, 1, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    variance, weights = torch.tensor([0.05, 0.1, 0.08, 0.06, 0.03]), torch.tensor([0.3, 0.25, 0.15, 0.2, 0.1])
    return GaussianMixtureDenoiser(means, variance, weights, labels=[0, 1, 1, 2, 0])


class _Model:
    """A conditional model of captions that keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Tensor] = []

    def __call__(self, x: Tensor, level: NoiseLevel, tokens: Tensor) -> Prediction:
        tokens = torch.as_tensor(tokens)
        assert tokens.shape == (len(x), 2), (
            f"{len(x)} pictures need captions of shape ({len(x)}, 2), not {tuple(tokens.shape)}"
        )
        self.asked.append(tokens)
        return _world()(x, level, tokens[:, 0])  # -1 in front is the empty caption


def _steered(answer, scale: float) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """eps of the answer, eps with and without the captions, and the batches of captions the model was asked about."""
    level, generator, model = cosine_schedule().level(0.5), torch.Generator().manual_seed(4), _Model()
    x = diffuse(_world().sample(6, generator), level, randn((6, 3, 1, 2), generator, torch.float64))
    got = answer(model, ASKED, scale)(x, level).eps
    return got, _world()(x, level, ASKED[:, 0]).eps, _world()(x, level).eps, model.asked


@case("ex-07-guide", "scale-1-is-conditional")
def _(answer):
    got, c, u, _ = _steered(answer, 1.0)
    if _close(got, u):
        raise Mistake("your halves are swapped: at s = 1 this is the model without the caption")
    if _close(got, 2 * c - u):
        raise Mistake("you used 1 + s where s belongs: at s = 1 nothing is guided")
    assert _close(got, c), "at s = 1 the guided model must be the one that knows the caption"


@case("ex-07-guide", "scale-3-extrapolates")
def _(answer):
    for scale in (0.0, 3.0):
        got, c, u, _ = _steered(answer, scale)
        assert _close(got, u + scale * (c - u)), f"at s = {scale:g}, eps must be u + s (c - u)"


@case("ex-07-guide", "null-is-the-empty-caption")
def _(answer):
    _, _, _, asked = _steered(answer, 3.0)
    others = torch.cat(asked)
    others = others[~(others[:, None] == ASKED).all(2).any(1)]
    if len(others) and bool((others == 0).all()):
        raise Mistake("your null is a caption that says word 0 in every place; the empty caption is -1")
    assert len(others) and bool((others == EMPTY).all()), "without a caption means -1 in every place"


@case("ex-07-guide", "in-one-pass")
def _(answer):
    _, _, _, asked = _steered(answer, 3.0)
    assert len(asked) == 1, f"the model was called {len(asked)} times a step; join both halves into one batch"
    assert len(asked[0]) == 12, f"one batch of both halves has 12 captions, this one {len(asked[0])}"


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-07-binding", name="bound", lesson=LESSON)


def _verdict(answer, caption: list, seen: list) -> bool:
    got = answer(caption, seen)
    assert isinstance(got, bool) or torch.as_tensor(got).dtype is torch.bool, "answer with True or False"
    return bool(got)


RING, SQUARE = ("red", "ring"), ("blue", "square")


@case("ex-07-binding", "right-colour-on-the-right-object")
def _(answer):
    assert _verdict(answer, [RING, SQUARE], [RING, SQUARE]), "a red ring and a blue square are what was asked for"
    swapped = [("blue", "ring"), ("red", "square")]
    if _verdict(answer, [RING, SQUARE], swapped):
        raise Mistake("colours and shapes are all there, on the wrong objects: compare pairs, not two lists")
    for wrong in (("red", "star"), ("pink", "ring")):
        assert not _verdict(answer, [RING, SQUARE], [wrong, SQUARE]), f"a {' '.join(wrong)} is no red ring"


@case("ex-07-binding", "in-any-order")
def _(answer):
    assert _verdict(answer, [RING, SQUARE], [SQUARE, RING]), (
        "the oracle lists objects from left to right, a caption does not"
    )
    three = [RING, SQUARE, ("green", "star")]
    assert _verdict(answer, three, [three[2], three[0], three[1]]), "three objects in another order are the same three"


@case("ex-07-binding", "as-many-objects")
def _(answer):
    assert not _verdict(answer, [RING], [RING, SQUARE]), "one thing was asked for and two are there"
    assert not _verdict(answer, [RING, SQUARE], [RING]), "one of the two is missing"
    assert not _verdict(answer, [RING], []), "nothing is there"


@case("ex-07-binding", "what-is-not-said")
def _(answer):
    assert _verdict(answer, [(None, "ring"), ("blue", None)], [SQUARE, RING]), "what a phrase leaves open fits anything"
    assert not _verdict(answer, [(None, "ring"), ("blue", None)], [RING, ("green", "square")]), "nothing blue is there"


@case("ex-07-binding", "one-object-for-each-phrase")
def _(answer):
    if _verdict(answer, [("red", None), (None, "ring")], [RING, SQUARE]):
        raise Mistake("one object served two phrases: 'a red thing and a ring' are two things")
    clever = [(None, "ring"), RING]  # the first phrase must not take the only red ring
    assert _verdict(answer, clever, [RING, ("blue", "ring")]), "try every way to match phrases and objects"


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-07-silence", name="silence", lesson=LESSON)


@cache
def measure_silence(of: str = "words and gaps") -> float:
    """Share of the middle block's attention that goes to gaps, of what goes to words and gaps, or of all."""
    system, sheet = load("glide"), scene_sheet("heldout", 32, 16)
    noise, level = randn((16, 3, 16, 16), torch.Generator().manual_seed(0)), system.schedule.level(500)
    block, seen = system.network.middle_block[1], []
    tokens = system.part("caption").tokenizer(sheet.captions[::2])
    hook = block.register_forward_hook(lambda block, given, out: seen.extend(given[:2]))
    with torch.no_grad():
        system(diffuse(sheet.pictures[0][::2], level, noise), level, system.condition(caption=tokens))
    hook.remove()
    pixels, words = seen
    q, k, _ = block.qkv(block.norm(pixels).flatten(2)).unflatten(1, (3, block.heads, -1)).unbind(1)
    told = block.encoder_kv(words.mT).unflatten(1, (2, block.heads, -1))[:, 0]
    logits = torch.einsum("bhdp,bhdl->bhpl", q, torch.cat([told, k], 3)) / math.sqrt(q.shape[2])
    weight = logits.softmax(3)[..., : words.shape[1]].sum((1, 2))  # (B, L)
    gaps = weight[tokens < 0].sum()
    return (gaps / {"words and gaps": weight.sum(), "all": logits[..., 0].numel()}[of]).item()


@case("ex-07-silence", "of-the-attention-to-text")
def _(answer):
    assert isinstance(answer, int | float | Tensor), f"one number is wanted, not {type(answer).__name__}"
    got, right = float(answer), measure_silence()
    for wrong, message in (
        (1 - right, "this is what goes to words; the gaps get the rest"),
        (
            measure_silence("all"),
            "this is the gaps' share of all attention, pixels included; divide by that of the text",
        ),
    ):
        if abs(got - wrong) < 0.005:
            raise Mistake(message)
    assert abs(got - right) < 0.01, (
        f"{got:.3f} is not what the middle block gives at t = 500; average over all pixels and heads"
    )
