"""Planted wrong answers of lesson 07 (name -> (answer, a case that it must fail)), and second right answers."""

from __future__ import annotations

import math
from itertools import permutations

import torch
from torch.nn import functional as F

from minidiff.course.checks.l07_glide import measure_silence
from minidiff.data.prompts import scene_sheet
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


def _null_first(model, tokens, scale):
    """Both halves in one batch, the null first, combined as x_0."""

    def guided(x, level):
        both = model(torch.cat([x, x]), level, torch.cat([0 * tokens - 1, tokens]))
        u, c = both.chunk(2, level)
        return c.with_x0((1 - scale) * u.x0 + scale * c.x0)

    return guided


def _fits(phrase, thing):
    return all(said is None or said == seen for said, seen in zip(phrase, thing, strict=True))


def _bound(caption, seen):
    """By the definition: some order of the things fits phrase by phrase."""
    orders = permutations(seen) if len(seen) == len(caption) else ()
    return any(all(map(_fits, caption, order)) for order in orders)


def _two_lists(caption, seen):
    parts = lambda things, i: sorted(str(thing[i]) for thing in things if thing[i])
    left = [len(parts(caption, i)) < len(caption) or parts(caption, i) == parts(seen, i) for i in (0, 1)]
    return len(caption) == len(seen) and all(left)


def _in_order(caption, seen):
    return len(caption) == len(seen) and all(map(_fits, caption, seen))


def _both_directions(caption, seen):
    return _in_order(caption, seen) or _in_order(caption, seen[::-1])


def _counts_less(caption, seen):
    return any(all(map(_fits, caption, order)) for order in permutations(seen, len(caption)))


def _shared(caption, seen):
    return len(caption) == len(seen) and all(any(_fits(phrase, thing) for thing in seen) for phrase in caption)


def _greedy(caption, seen):
    left = list(seen)
    for phrase in caption:
        found = next((thing for thing in left if _fits(phrase, thing)), None)
        if found is None:
            return False
        left.remove(found)
    return not left


def _literal(caption, seen):
    return sorted(map(str, caption)) == sorted(map(str, seen))


def _one_is_enough(caption, seen):
    return len(caption) == len(seen) and any(any(_fits(phrase, thing) for thing in seen) for phrase in caption)


def _by_assignment(caption, seen):
    """Row by row: which things can still serve the phrases to come."""
    if not caption:
        return not seen
    rest = [list(seen[:i]) + list(seen[i + 1 :]) for i, thing in enumerate(seen) if _fits(caption[0], thing)]
    return any(_by_assignment(caption[1:], left) for left in rest)


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


MUTANTS = {
    "ex-07-embed": {
        "padding-and-place": (_embed(lambda t, p, pad: pad + p), "a-gap-and-its-place"),
        "zeros": (_embed(lambda t, p, pad: 0 * pad), "a-gap-and-its-place"),
        "gap-is-word-0": (_embed(lambda t, p, pad: t[0] + p), "a-gap-and-its-place"),
        "gap-is-the-last-word": (lambda tokens, t, p, pad: t[tokens] + p, "a-gap-and-its-place"),
        "one-padding-for-all": (_embed(lambda t, p, pad: pad[:1].expand_as(pad)), "a-gap-and-its-place"),
        "padding-counted-from-the-gap": (_packed, "a-gap-and-its-place"),
        "word-0-is-a-gap": (_embed(word=lambda tokens: tokens > 0), "word-0-is-a-word"),
        "no-places": (_embed(place=0.0), "a-word-and-its-place"),
        "places-subtracted": (_embed(place=-1.0), "a-word-and-its-place"),
    },
    "ex-07-attend": {
        "added": (_separately(lambda own, told: own + told), "one-softmax-over-both"),
        "averaged": (_separately(lambda own, told: (own + told) / 2), "one-softmax-over-both"),
        "no-text": (_separately(lambda own, told: own), "one-softmax-over-both"),
        "text-alone": (_separately(lambda own, told: told), "one-softmax-over-both"),
        "words-ask-too": (_words_ask_too, "one-softmax-over-both"),
        "keys-without-values": (_keys_alone, "one-softmax-over-both"),
        "not-scaled": (_joint(lambda d: 1.0), "divided-by-the-root-of-d"),
        "divided-by-d": (_joint(lambda d: 1 / d), "divided-by-the-root-of-d"),
        "softmax-over-queries": (_joint(dim=1), "one-softmax-over-both"),
        "first-caption-for-all": (_first_caption, "each-sample-its-own-caption"),
    },
    "ex-07-share": {
        "share-of-pixels": (_share(lambda t, p: 1 - _partition(t, p)), "mixes-the-two-attentions"),
        "means": (_share(_means), "nothing-known-counts-heads"),
        "means-again": (_share(_means), "mixes-the-two-attentions"),
        "overflows": (_share(_sums), "no-overflow"),
        "not-scaled": (_share(_partition, lambda d: 1.0), "mixes-the-two-attentions"),
        "half": (_share(lambda t, p: torch.full(t.shape[:2], 0.5)), "nothing-known-counts-heads"),
        "counts": (
            _share(lambda t, p: torch.full(t.shape[:2], t.shape[2] / (t.shape[2] + p.shape[2]))),
            "mixes-the-two-attentions",
        ),
        "largest-logits": (_share(lambda t, p: torch.sigmoid(t.amax(2) - p.amax(2))), "mixes-the-two-attentions"),
        "one-for-all-pixels": (
            _share(lambda t, p: _partition(t, p).mean(1, keepdim=True).expand(t.shape[:2])),
            "mixes-the-two-attentions",
        ),
    },
    "ex-07-drop": {
        "single-words": (_drop(shape=lambda tokens: tokens.shape), "whole-captions"),
        "keeps-with-p": (_drop(lambda p: 1 - p), "rate"),
        "half-the-rate": (_drop(lambda p: p / 2), "rate"),
        "once-for-the-batch": (_drop(shape=lambda tokens: (1, 1)), "each-sample-its-own"),
        "always-the-first": (_first_part, "each-sample-its-own"),
        "word-0": (_drop(null=0), "empty-is-no-word"),
        "another-caption": (_another_caption, "empty-is-no-word"),
    },
    "ex-07-guide": {
        "sign": (_guide(lambda c, u, s: s * c + (s - 1) * u), "scale-3-extrapolates"),
        "w-for-s": (_guide(lambda c, u, s: c + s * (c - u)), "scale-1-is-conditional"),
        "swapped-halves": (_guide(lambda c, u, s: c + s * (u - c)), "scale-1-is-conditional"),
        "never-beyond": (_guide(lambda c, u, s: u + min(s, 1.0) * (c - u)), "scale-3-extrapolates"),
        "word-0-as-null": (_guide(lambda c, u, s: u + s * (c - u), null=0), "null-is-the-empty-caption"),
        "two-passes": (_guide(lambda c, u, s: u + s * (c - u), passes=2), "in-one-pass"),
        "no-null": (lambda model, tokens, s: lambda x, level: model(x, level, tokens), "null-is-the-empty-caption"),
    },
    "ex-07-binding": {
        "two-lists": (_two_lists, "right-colour-on-the-right-object"),
        "in-order-only": (_in_order, "in-any-order"),
        "forwards-or-backwards": (_both_directions, "in-any-order"),
        "more-may-be-there": (_counts_less, "as-many-objects"),
        "one-serves-two": (_shared, "one-object-for-each-phrase"),
        "first-come": (_greedy, "one-object-for-each-phrase"),
        "literally": (_literal, "what-is-not-said"),
        "one-is-enough": (_one_is_enough, "right-colour-on-the-right-object"),
    },
    "ex-07-silence": {
        "words": (1 - measure_silence(), "of-the-attention-to-text"),
        "of-all-attention": (measure_silence("all"), "of-the-attention-to-text"),
        "half-a-caption-more": (measure_silence() + 0.03, "of-the-attention-to-text"),
        "nothing": (0.0, "of-the-attention-to-text"),
    },
}

SECOND = {
    "ex-07-embed": _by_one_hot,
    "ex-07-attend": lambda q, k, v, text_k, text_v: F.scaled_dot_product_attention(
        q, torch.cat([k, text_k], 1), torch.cat([v, text_v], 1)
    ),
    "ex-07-share": _by_softmax,
    "ex-07-drop": _bernoulli,
    "ex-07-guide": _null_first,
    "ex-07-binding": _by_assignment,
    "ex-07-silence": _silence_by_shares(),
}
