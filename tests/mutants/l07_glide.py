"""Right answers in other styles, and planted wrong ones, for lesson 07."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import torch
from torch.nn import functional as F

from minidiff.course.checks.l07_glide import (
    forwards_or_backwards,
    greedy,
    in_order,
    literal,
    measure_silence,
    more_may_be_there,
    one_is_enough,
    shared,
    some_may_be_missing,
    two_lists,
    uncounted,
)
from minidiff.data.prompts import scene_sheet
from minidiff.prediction import Prediction
from minidiff.random import randn
from minidiff.store import load


def _embed(at_gap=None, word=lambda tokens: tokens >= 0, place=1.0):
    """Rows of the table plus places, ``at_gap(table, places, padding)`` (L, W) where there is no word."""

    def embed(tokens, table, places, padding):
        x = table[tokens.clamp(min=0)] + place * places
        gap = padding if at_gap is None else at_gap(table, places, padding)
        return torch.where(word(tokens)[..., None], x, gap)

    return embed


def _packed(tokens, table, places, padding):
    """Padding counted from the first gap, not from the first place."""
    rows = []
    for caption in tokens:
        n = int((caption >= 0).sum())
        rows.append(torch.cat([table[caption[:n]] + places[:n], padding[: len(caption) - n]]))
    return torch.stack(rows)


def _embed_by_places(tokens, table, places, padding):
    """Loops over captions and places, in float32."""
    out = torch.empty(*tokens.shape, table.shape[1])
    for b, i in np.ndindex(*tokens.shape):
        out[b, i] = padding[i] if tokens[b, i] < 0 else table[tokens[b, i]] + places[i]
    return out


def _embed_by_one_table(tokens, table, places, padding):
    """Words, then padding as further rows of one long table."""
    word, place = tokens >= 0, torch.arange(tokens.shape[1]).expand(tokens.shape)
    rows = torch.cat([table, padding])[torch.where(word, tokens, len(table) + place)]
    rows[word] += places[place[word]]
    return rows


def _squeezed(tokens, table, places, padding):
    """Loses the batch's axis where it is one."""
    return torch.where((tokens >= 0)[..., None], table[tokens.clamp(min=0)] + places, padding).squeeze(0)


def _by_one_hot(tokens, table, places, padding):
    word = F.one_hot(tokens + 1, len(table) + 1).to(table.dtype)
    gap = word[..., :1]
    return word[..., 1:] @ table + (1 - gap) * places + gap * padding


def _joint(scale=lambda d: d**-0.5, dim=-1):
    """Attention to text and pixels with a softmax along an axis."""

    def attend(q, k, v, text_k, text_v):
        keys, values = torch.cat([text_k, k], 1), torch.cat([text_v, v], 1)
        return (q @ keys.mT * scale(q.shape[-1])).softmax(dim) @ values

    return attend


def _separately(combine):
    """Two attentions, combined."""

    def attend(q, k, v, text_k, text_v):
        return combine(F.scaled_dot_product_attention(q, k, v), F.scaled_dot_product_attention(q, text_k, text_v))

    return attend


def _attend_naively(shift):
    """exp of the logits after a shift, which saves it from overflow or does not."""

    def attend(q, k, v, text_k, text_v):
        logits = q @ torch.cat([text_k, k], 1).mT / q.shape[-1] ** 0.5
        power = (logits - shift(logits)).exp()
        return power / power.sum(2, keepdim=True) @ torch.cat([text_v, v], 1)

    return attend


def _attend_linearly(q, k, v, text_k, text_v):
    return q @ torch.cat([text_k, k], 1).mT / q.shape[-1] ** 0.5 @ torch.cat([text_v, v], 1)


def _attend_by_a_gate(q, k, v, text_k, text_v):
    """Two attentions and the share of the words."""
    share = _share(_partition)(q, k, text_k)[..., None]
    own, told = F.scaled_dot_product_attention(q, k, v), F.scaled_dot_product_attention(q, text_k, text_v)
    return share * told + (1 - share) * own


def _attend_in_a_loop(q, k, v, text_k, text_v):
    """One pixel of one sample at a time, in float32."""
    out = torch.empty(q.shape)
    for b, i in np.ndindex(*q.shape[:2]):
        keys, values = torch.cat([k[b], text_k[b]]).float(), torch.cat([v[b], text_v[b]]).float()
        out[b, i] = (keys @ q[b, i].float() / q.shape[2] ** 0.5).softmax(0) @ values
    return out


def _words_ask_too(q, k, v, text_k, text_v):
    everything = torch.cat([text_k, q], 1)
    return F.scaled_dot_product_attention(everything, torch.cat([text_k, k], 1), torch.cat([text_v, v], 1))


def _keys_alone(q, k, v, text_k, text_v):
    return F.scaled_dot_product_attention(q, torch.cat([text_k, k], 1), torch.cat([v[:, : text_v.shape[1]], v], 1))


def _first_caption(q, k, v, text_k, text_v):
    return _joint()(q, k, v, text_k[:1].expand_as(text_k), text_v[:1].expand_as(text_v))


def _share(of, scale=lambda d: d**-0.5):
    """A share from the logits of the text and of the pixels."""

    def share(q, k, text_k):
        d = scale(q.shape[-1])
        return of(q @ text_k.mT * d, q @ k.mT * d)

    return share


def _sums(text, pixels):
    text, pixels = text.exp().sum(2), pixels.exp().sum(2)
    return text / (text + pixels)


def _means(text, pixels):
    text, pixels = text.exp().mean(2), pixels.exp().mean(2)
    return text / (text + pixels)


def _partition(text, pixels):
    return torch.sigmoid(text.logsumexp(2) - pixels.logsumexp(2))


def _by_softmax(q, k, text_k):
    """The weights that one softmax gives to the text."""
    weights = (q @ torch.cat([text_k, k], 1).mT / math.sqrt(q.shape[-1])).softmax(-1)
    return weights[..., : text_k.shape[1]].sum(-1)


def _share_in_a_loop(q, k, text_k):
    """One over one plus a sum of ratios, in float32, pixel by pixel."""
    out = []
    for asked, keys, words in zip(q.float(), k.float(), text_k.float(), strict=True):
        logits = asked @ torch.cat([words, keys]).T / q.shape[2] ** 0.5
        power = (logits - logits.amax(1, keepdim=True)).exp()
        out.append(1 / (1 + power[:, len(words) :].sum(1) / power[:, : len(words)].sum(1)))
    return torch.stack(out)


def _share_naively(shift):
    """exp of the logits after a shift, which saves it from overflow or does not."""

    def of(text, pixels):
        by = shift(torch.cat([text, pixels], 2))
        return _sums(text - by, pixels - by)

    return _share(of)


def _drop(probability_of=lambda p: p, null=-1, shape=lambda tokens: (len(tokens), 1)):
    """Captions hidden where a uniform number is below probability_of(p)."""

    def drop(tokens, probability, seed):
        u = torch.rand(shape(tokens), generator=torch.Generator().manual_seed(seed))
        return torch.where(u < probability_of(probability), null, tokens)

    return drop


def _first_part(tokens, probability, seed):
    return torch.where(torch.arange(len(tokens))[:, None] < probability * len(tokens), -1, tokens)


def _another_caption(tokens, probability, seed):
    u = torch.rand(len(tokens), 1, generator=torch.Generator().manual_seed(seed))
    return torch.where(u < probability, tokens.roll(1, 0), tokens)


def _without_seed(tokens, probability, seed):
    return torch.where(torch.rand(len(tokens), 1) < probability, -1, tokens)


def _one_seed(tokens, probability, seed):
    return _drop()(tokens, probability, 0)


def _a_fixed_number(tokens, probability, seed):
    """As many of every batch, drawn without replacement."""
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))
    return torch.where((order < round(probability * len(tokens)))[:, None], -1, tokens)


def _in_pairs(tokens, probability, seed):
    """Neighbours share a coin."""
    u = torch.rand(len(tokens) // 2 + 1, 1, generator=torch.Generator().manual_seed(seed))
    return torch.where(u.repeat_interleave(2, 0)[: len(tokens)] < probability, -1, tokens)


def _uneven(tokens, probability, seed):
    """Later captions of a batch are dropped more often; the mean is right."""
    u = torch.rand(len(tokens), 1, generator=torch.Generator().manual_seed(seed))
    most = min(probability, 1 - probability)
    return torch.where(u < probability + most * torch.linspace(-1, 1, len(tokens))[:, None], -1, tokens)


def _last_place_kept(tokens, probability, seed):
    dropped = _drop()(tokens, probability, seed)
    return torch.cat([tokens[:, :1], dropped[:, 1:]], 1)


def _drop_with_numpy(tokens, probability, seed):
    """The seed goes to another generator, which is as good."""
    hidden = np.random.default_rng(seed).random(len(tokens)) < probability
    return np.where(hidden[:, None], -1, tokens.numpy())


def _drop_in_a_loop(tokens, probability, seed):
    generator = torch.Generator().manual_seed(seed)
    coins = [torch.rand((), generator=generator).item() for _ in tokens]
    return [[-1] * len(row) if u < probability else row for u, row in zip(coins, tokens.tolist(), strict=True)]


def _bernoulli(tokens, probability, seed):
    hidden = torch.full((len(tokens),), float(probability)).bernoulli(generator=torch.Generator().manual_seed(seed))
    shown = tokens.clone()
    shown[hidden.bool()] = -1
    return shown


def _guide(combine, null=-1, passes=1):
    """Guidance that combines (c, u, s) of the noises, in one pass or two."""

    def guide_caption(model, tokens, scale):
        empty = torch.full_like(tokens, null)

        def guided(x, level):
            if passes == 1:
                both = model(torch.cat([x, x]), level, torch.cat([tokens, empty]))
                c, u = both.chunk(2, level)
            else:
                c, u = model(x, level, tokens), model(x, level, empty)
            return c.with_eps(combine(c.eps, u.eps, scale))

        return guided

    return guide_caption


def _overwritten(model, tokens, scale):
    """The empty captions are the same tensor as the captions."""
    empty = tokens
    empty[:] = -1
    return _guide(lambda c, u, s: u + s * (c - u))(model, tokens, scale)


def _first_place_alone(model, tokens, scale):
    """The empty caption keeps its second word."""
    empty = tokens.clone()
    empty[:, 0] = -1

    def guided(x, level):
        c, u = model(torch.cat([x, x]), level, torch.cat([tokens, empty])).chunk(2, level)
        return c.with_eps(u.eps + scale * (c.eps - u.eps))

    return guided


def _pair_by_pair(model, tokens, scale):
    """Told and untold by turns, by keywords, in scores and float32."""
    both = torch.stack([tokens, torch.full_like(tokens, -1)], 1).flatten(0, 1)

    def guided(x, level):
        p = model(x=x.repeat_interleave(2, 0), level=level, tokens=both)
        c, u = p.score[::2], p.score[1::2]
        return Prediction(x, level, (1 - scale) * u + scale * c, "score")

    return guided


def _null_first(model, tokens, scale):
    """Both halves in one batch, the null first, combined as x_0."""

    def guided(x, level):
        both = model(torch.cat([x, x]), level, torch.cat([0 * tokens - 1, tokens]))
        u, c = both.chunk(2, level)
        return c.with_x0((1 - scale) * u.x0 + scale * c.x0)

    return guided


def _fits(phrase, thing):
    return all(said is None or said == seen for said, seen in zip(phrase, thing, strict=True))


def holds_by_orders(caption, seen):
    """By the definition: some order of the things fits phrase by phrase."""
    orders = permutations(seen) if len(seen) == len(caption) else ()
    return any(all(map(_fits, caption, order)) for order in orders)


def _by_assignment(caption, seen):
    """Row by row: which things can still serve the phrases to come."""
    if not caption:
        return not seen
    rest = [list(seen[:i]) + list(seen[i + 1 :]) for i, thing in enumerate(seen) if _fits(caption[0], thing)]
    return any(_by_assignment(caption[1:], left) for left in rest)


def _by_counting(caption, seen):
    """Hall's theorem: any phrases fit at least as many things together."""
    subsets = [[k for k in range(len(caption)) if mask >> k & 1] for mask in range(1 << len(caption))]
    reach = lambda some: sum(any(_fits(caption[k], thing) for k in some) for thing in seen)
    return np.bool_(len(caption) == len(seen) and all(reach(some) >= len(some) for some in subsets))


def _silence_by_shares():
    """Pixel by pixel: what the gaps' keys alone would take of the text's partition function."""
    system, sheet = load("glide"), scene_sheet("heldout", 32, 16)
    level, kept = system.schedule.level(500), []
    tokens = system.part("caption").tokenizer(sheet.captions[::2])
    block = system.network.middle_block[1]
    hook = block.register_forward_pre_hook(lambda block, given: kept.extend(given[:2]))
    noise = randn((16, 3, 16, 16), torch.Generator().manual_seed(0))
    with torch.no_grad():
        system(level.alpha * sheet.pictures[0][::2] + level.sigma * noise, level, system.condition(caption=tokens))
    hook.remove()
    gaps = text = 0.0
    with torch.no_grad():
        for pixels, words, gap in zip(*kept, tokens < 0, strict=True):
            q, k, _ = block.qkv(block.norm(pixels[None])[0].flatten(1)).chunk(3)
            key = block.encoder_kv(words.T).chunk(2)[0]
            for one in zip(*(part.chunk(block.heads) for part in (q, k, key)), strict=True):
                logits = one[0].T @ torch.cat(one[:0:-1], 1) / one[0].shape[0] ** 0.5
                share = logits.softmax(1)[:, : len(gap)].sum(0)
                gaps, text = gaps + share[gap].sum().item(), text + share.sum().item()
    return gaps / text


SILENCE = measure_silence()
WORD, GAP = "a-word-and-its-place", "a-gap-and-its-place"
EMBED = {
    "one-caption-alone": (_squeezed, WORD),
    "form-flat": (
        lambda tokens, table, places, padding: _by_one_hot(tokens, table, places, padding).flatten(1),
        "form",
    ),
    "form-another-name": (lambda tokens, table, positions, padding: table[tokens], "form"),
    "no-places": (_embed(place=0.0), WORD, "places are missing"),
    "places-subtracted": (_embed(place=-1.0), WORD, "not subtracted"),
    "padding-for-places": (
        lambda tokens, table, places, padding: table[tokens] + padding,
        WORD,
        "padding is for places without a word",
    ),
    "padding-on-top": (
        lambda tokens, table, places, padding: table[tokens] + places + padding,
        WORD,
        "you added it as well",
    ),
    "words-from-1": (lambda tokens, table, places, padding: table[tokens - 1] + places, WORD, "count from 0"),
    "places-twice": (_embed(place=2.0), WORD),
    "word-0-is-a-gap": (_embed(word=lambda tokens: tokens > 0), "word-0-is-a-word", "took word 0 for a gap"),
    "word-0-is-word-1": (
        lambda tokens, table, places, padding: _by_one_hot(torch.where(tokens == 0, 1, tokens), table, places, padding),
        "word-0-is-a-word",
    ),
    "padding-and-place": (_embed(lambda t, p, pad: pad + p), GAP, "the place's row as well"),
    "zeros": (_embed(lambda t, p, pad: 0 * pad), GAP, "left zeros"),
    "gap-is-word-0": (_embed(lambda t, p, pad: t[0] + p), GAP, "looked up word 0"),
    "gap-is-word-0-alone": (_embed(lambda t, p, pad: t[:1].expand_as(pad)), GAP, "without its place"),
    "gap-is-the-last-word": (
        lambda tokens, table, places, padding: table[tokens] + places,
        GAP,
        "the last row of the table",
    ),
    "gap-is-its-place": (_embed(lambda t, p, pad: p), GAP, "not that of its place alone"),
    "one-padding-for-all": (_embed(lambda t, p, pad: pad[:1].expand_as(pad)), GAP, "the same row"),
    "padding-counted-from-the-gap": (_packed, GAP, "not from the first gap"),
    "half-the-padding": (_embed(lambda t, p, pad: pad / 2), GAP),
}
BOTH, ROOT, OWN = "one-softmax-over-both", "divided-by-the-root-of-d", "each-sample-its-own-caption"
ATTEND = {
    "form-words-ask-too": (_words_ask_too, "form"),
    "form-forgot-return": (lambda q, k, v, text_k, text_v: None, "form"),
    "form-another-name": (lambda q, k, v, words, text_v: _joint()(q, k, v, words, text_v), "form"),
    "added": (_separately(lambda own, told: own + told), BOTH, "you added two attentions"),
    "averaged": (_separately(lambda own, told: (own + told) / 2), BOTH, "half of the weight each"),
    "no-text": (_separately(lambda own, told: own), BOTH, "words have no influence"),
    "text-alone": (_separately(lambda own, told: told), BOTH, "cannot see each other"),
    "softmax-over-queries": (_joint(dim=1), BOTH, "sum to one over the queries"),
    "softmax-over-the-batch": (_joint(dim=0), BOTH),
    "no-softmax": (_attend_linearly, BOTH, "softmax is missing"),
    "keys-without-values": (_keys_alone, BOTH),
    "not-scaled": (_joint(lambda d: 1.0), ROOT, "are not divided by sqrt d"),
    "divided-by-d": (_joint(lambda d: 1 / d), ROOT, "you divided by d"),
    "multiplied": (_joint(lambda d: d**0.5), ROOT, "you multiplied"),
    "for-width-16": (_joint(lambda d: 0.25 if d > 1 else 1.0), ROOT),
    "first-caption-for-all": (_first_caption, OWN, "the first one's for all"),
    "values-of-the-batch": (
        lambda q, k, v, text_k, text_v: _joint()(q, k, v, text_k, text_v.mean(0, True).expand_as(text_v)),
        OWN,
    ),
    "overflows": (_attend_naively(lambda logits: 0.0), "no-overflow", "exp gives infinity"),
    "one-largest-for-all": (_attend_naively(torch.max), "no-overflow", "you took one for all"),
    "clamped": (_attend_naively(lambda logits: logits - logits.clamp(-80, 80)), "no-overflow"),
}
HEADS, MIXES = "nothing-known-counts-heads", "mixes-the-two-attentions"
SHARE = {
    "form-all-weights": (
        lambda q, k, text_k: (q @ torch.cat([text_k, k], 1).mT).softmax(-1),
        "form",
    ),
    "form-one-for-each-sample": (lambda q, k, text_k: _by_softmax(q, k, text_k).mean(1), "form"),
    "form-another-name": (lambda q, k, words: _by_softmax(q, k, words), "form"),
    "share-of-pixels": (_share(lambda t, p: 1 - _partition(t, p)), HEADS, "share of the pixels"),
    "means": (_share(_means), HEADS, "neither their mean"),
    "odds": (_share(lambda t, p: (t.logsumexp(2) - p.logsumexp(2)).exp()), HEADS, "divide by both together"),
    "of-logarithms": (
        _share(lambda t, p: t.logsumexp(2) / (t.logsumexp(2) + p.logsumexp(2))),
        HEADS,
        "not of their logarithms",
    ),
    "largest-logits": (_share(lambda t, p: torch.sigmoid(t.amax(2) - p.amax(2))), HEADS, "neither their mean"),
    "mean-logits": (_share(lambda t, p: torch.sigmoid(t.mean(2) - p.mean(2))), HEADS, "neither their mean"),
    "logarithm": (_share(lambda t, p: t.logsumexp(2) - p.logsumexp(2)), HEADS, "its sigmoid"),
    "quarter": (_share(lambda t, p: torch.full(t.shape[:2], 0.25)), HEADS),
    "counts": (
        _share(lambda t, p: torch.full(t.shape[:2], t.shape[2] / (t.shape[2] + p.shape[2]))),
        MIXES,
        "by number of keys",
    ),
    "not-scaled": (_share(_partition, lambda d: 1.0), MIXES, "not divided by sqrt d"),
    "divided-by-d": (_share(_partition, lambda d: 1 / d), MIXES, "you divided by d"),
    "one-for-all-pixels": (
        _share(lambda t, p: _partition(t, p).mean(1, keepdim=True).expand(t.shape[:2])),
        MIXES,
        "one for all pixels",
    ),
    "half-of-it": (_share(lambda t, p: _partition(t / 2, p / 2)), MIXES),
    "overflows": (_share(_sums), "no-overflow", "exp gives infinity"),
    "one-largest-for-all": (_share_naively(torch.max), "no-overflow", "you took one for all"),
    "clamped": (_share(lambda t, p: _partition(t.clamp(-700, 700), p.clamp(-700, 700))), "no-overflow"),
}
DROP = {
    "form-floats": (lambda tokens, probability, seed: _bernoulli(tokens, probability, seed).float(), "form"),
    "form-other-integers": (lambda tokens, probability, seed: _bernoulli(tokens, probability, seed).int(), "form"),
    "form-mask": (lambda tokens, probability, seed: torch.rand(len(tokens)) < probability, "form"),
    "form-only-those-kept": (lambda tokens, probability, seed: tokens[: len(tokens) // 2], "form"),
    "word-0": (
        lambda tokens, probability, seed: _drop(null=0)(tokens, probability, seed),
        "empty-is-no-word",
        "word 0",
    ),
    "another-caption": (_another_caption, "empty-is-no-word", "another caption"),
    "minus-2": (_drop(null=-2), "empty-is-no-word"),
    "never": (lambda tokens, probability, seed: tokens, "empty-is-no-word"),
    "single-words": (_drop(shape=lambda tokens: tokens.shape), "whole-captions", "single words"),
    "first-word-kept": (_last_place_kept, "whole-captions", "single words"),
    "no-seed": (_without_seed, "the-seed-decides", "two results"),
    "one-seed": (_one_seed, "the-seed-decides", "makes no difference"),
    "always-the-first": (_first_part, "the-seed-decides", "makes no difference"),
    "once-for-the-batch": (_drop(shape=lambda tokens: (1, 1)), "each-sample-its-own", "once for the whole batch"),
    "a-fixed-number": (_a_fixed_number, "each-sample-its-own", "the same number"),
    "in-pairs": (_in_pairs, "each-sample-its-own"),
    "keeps-with-p": (_drop(lambda p: 1 - p), "rate", "you kept a caption"),
    "half-the-rate": (_drop(lambda p: p / 2), "rate"),
    "one-rate": (_drop(lambda p: min(p, 0.5)), "rate"),
    "uneven": (_uneven, "rate"),
    "never-quite": (_drop(lambda p: min(max(p, 0.01), 0.99)), "never-and-always"),
}
BEYOND, CONDITIONAL, NULL, PASS = (
    *("scale-3-extrapolates", "scale-1-is-conditional", "null-is-the-empty-caption", "in-one-pass"),
)
GUIDE = {
    "form-not-a-function": (lambda model, tokens, scale: tokens, "form"),
    "form-eps-alone": (lambda model, tokens, scale: lambda x, level: model(x, level, tokens).eps, "form"),
    "form-both-halves": (
        lambda model, tokens, scale: lambda x, level: model(torch.cat([x, x]), level, torch.cat([tokens, tokens])),
        "form",
    ),
    "form-captions-of-one-half": (
        lambda model, tokens, scale: lambda x, level: model(torch.cat([x, x]), level, tokens),
        "form",
    ),
    "sign": (_guide(lambda c, u, s: s * c + (s - 1) * u), BEYOND, "a sign is wrong"),
    "subtracted": (_guide(lambda c, u, s: u - s * (c - u)), BEYOND, "is subtracted"),
    "w-for-s": (_guide(lambda c, u, s: c + s * (c - u)), BEYOND, "1 + s"),
    "swapped-halves": (_guide(lambda c, u, s: c + s * (u - c)), BEYOND, "halves are swapped"),
    "no-null": (lambda model, tokens, scale: lambda x, level: model(x, level, tokens), BEYOND, "with the caption"),
    "overwritten": (_overwritten, BEYOND, "without any caption"),
    "word-0-as-null": (_guide(lambda c, u, s: u + s * (c - u), null=0), BEYOND, "word 0 in every place"),
    "never-beyond": (_guide(lambda c, u, s: u + min(s, 1.0) * (c - u)), BEYOND, "with the caption"),
    "half-way": (_guide(lambda c, u, s: u + s / 2 * (c - u)), BEYOND),
    "zero-is-one": (_guide(lambda c, u, s: u + (s or 1.0) * (c - u)), CONDITIONAL, "right at s = 1 alone"),
    "one-is-zero": (_guide(lambda c, u, s: u + (s if s != 1 else 0.0) * (c - u)), CONDITIONAL, "without any caption"),
    "first-place-alone": (_first_place_alone, NULL, "first place alone"),
    "two-passes": (_guide(lambda c, u, s: u + s * (c - u), passes=2), PASS),
}
RIGHT_OBJECT, ANY_ORDER, AS_MANY = "right-colour-on-the-right-object", "in-any-order", "as-many-objects"
NOT_SAID, EACH_ONE = "what-is-not-said", "one-object-for-each-phrase"
BINDING = {
    "form-number-of-fits": (lambda caption, seen: 2 * len(caption), "form"),
    "form-list": (lambda caption, seen: [phrase in seen for phrase in caption], "form"),
    "form-another-name": (lambda phrases, seen: holds_by_orders(phrases, seen), "form"),
    "two-lists": (two_lists, RIGHT_OBJECT, "not two lists"),
    "one-is-enough": (one_is_enough, RIGHT_OBJECT, "content with one"),
    "always": (lambda caption, seen: len(caption) == len(seen), RIGHT_OBJECT),
    "shapes-alone": (
        lambda caption, seen: holds_by_orders([(None, s) for _, s in caption], seen),
        RIGHT_OBJECT,
    ),
    "in-order-only": (in_order, ANY_ORDER, "order of the picture"),
    "forwards-or-backwards": (forwards_or_backwards, ANY_ORDER, "forwards or backwards"),
    "more-may-be-there": (more_may_be_there, AS_MANY, "exactly that"),
    "less-may-be-there": (some_may_be_missing, AS_MANY, "the caption names more"),
    "uncounted": (uncounted, AS_MANY, "count them"),
    "literally": (literal, NOT_SAID, "None means"),
    "vague-fits-nothing": (
        lambda caption, seen: holds_by_orders(caption, seen) and (None, None) not in caption,
        NOT_SAID,
    ),
    "one-serves-two": (shared, EACH_ONE, "served two phrases"),
    "first-come": (greedy, EACH_ONE, "try every way"),
}
TEXT = "of-the-attention-to-text"
SILENCES = {
    "form-of-each-place": (torch.full((16, 12), 0.17), "form"),
    "form-text": (f"{SILENCE:.3f}", "form"),
    "words": (1 - SILENCE, TEXT, "what goes to words"),
    "of-all-attention": (measure_silence("all"), TEXT, "pixels included"),
    "mean-over-pixels": (measure_silence("pixel"), TEXT, "each pixel"),
    "mean-over-captions": (measure_silence("caption"), TEXT, "each caption"),
    "mean-over-heads": (measure_silence("head"), TEXT, "each head"),
    "clean": (measure_silence(noised=False), TEXT, "these are clean"),
    "at-300": (measure_silence(time=300), TEXT, "t = 300"),
    "at-700": (measure_silence(time=700), TEXT, "t = 700"),
    "half-a-caption-more": (SILENCE + 0.03, TEXT),
    "nothing": (0.0, TEXT),
}

MUTANTS = {
    "ex-07-embed": EMBED,
    "ex-07-attend": ATTEND,
    "ex-07-share": SHARE,
    "ex-07-drop": DROP,
    "ex-07-guide": GUIDE,
    "ex-07-binding": BINDING,
    "ex-07-silence": SILENCES,
}

RIGHT = {
    "ex-07-embed": {
        "one-hot": _by_one_hot,
        "loop-float32": _embed_by_places,
        "one-table": _embed_by_one_table,
        "where": _embed(),
    },
    "ex-07-attend": {
        "torch": lambda q, k, v, text_k, text_v: F.scaled_dot_product_attention(
            q, torch.cat([k, text_k], 1), torch.cat([v, text_v], 1)
        ),
        "gate": _attend_by_a_gate,
        "loop-float32": _attend_in_a_loop,
        "largest-subtracted": _attend_naively(lambda logits: logits.amax(2, keepdim=True)),
    },
    "ex-07-share": {
        "softmax": _by_softmax,
        "sigmoid": _share(_partition),
        "loop-float32": _share_in_a_loop,
    },
    "ex-07-drop": {
        "bernoulli": _bernoulli,
        "numpy": _drop_with_numpy,
        "loop": _drop_in_a_loop,
        "where": _drop(),
    },
    "ex-07-guide": {
        "null-first": _null_first,
        "by-turns": _pair_by_pair,
        "weights": _guide(lambda c, u, s: s * c + (1 - s) * u),
    },
    "ex-07-binding": {
        "assignment": _by_assignment,
        "orders": holds_by_orders,
        "counting": _by_counting,
    },
    "ex-07-silence": {
        "by-shares": _silence_by_shares(),
        "tensor": torch.tensor([SILENCE]),
        "numpy": np.float32(round(SILENCE, 3)),
    },
}
