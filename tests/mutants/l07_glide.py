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
from minidiff.process import diffuse
from minidiff.random import randn
from minidiff.schedule import NoiseLevel
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
    root = q.shape[-1] ** 0.5
    share = _partition(q @ text_k.mT / root, q @ k.mT / root)[..., None]
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


def _partition(text, pixels):
    return torch.sigmoid(text.logsumexp(2) - pixels.logsumexp(2))


def _apart(x, heads):
    """(B, n, C) -> (B heads, n, d)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2).flatten(0, 1)


def _together(x, heads):
    """(B heads, n, d) -> (B, n, C)."""
    return x.unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)


def _read(scale=None, mask_of=lambda mask: mask, apart=_apart, together=_together, share_of=lambda share: share):
    """Heads join the batch, masked words get -inf; with changes."""

    def read_words(q, k, v, text_k, text_v, mask, heads):
        d = q.shape[2] // heads
        q, k, v, text_k, text_v = (apart(part, heads) for part in (q, k, v, text_k, text_v))
        logits = q @ torch.cat([text_k, k], 1).mT * (d**-0.5 if scale is None else scale(d, heads))
        heard = torch.cat([mask_of(mask), torch.ones(len(mask), k.shape[1], dtype=torch.bool)], 1)
        logits = logits.masked_fill(~heard.repeat_interleave(heads, 0)[:, None], -math.inf)
        weights = logits.softmax(2)
        share = weights[..., : text_k.shape[1]].sum(2).unflatten(0, (-1, heads))
        return together(weights @ torch.cat([text_v, v], 1), heads), share_of(share)

    return read_words


def _read_in_a_loop(q, k, v, text_k, text_v, mask, heads):
    """A sample and a head at a time, words that are masked left out, in float32."""
    d = q.shape[2] // heads
    out, share = torch.empty(q.shape), torch.empty(len(q), heads, q.shape[1])
    for b, h in np.ndindex(len(q), heads):
        part = slice(h * d, (h + 1) * d)
        words = text_k[b, mask[b], part].float(), text_v[b, mask[b], part].float()
        keys, values = torch.cat([k[b, :, part].float(), words[0]]), torch.cat([v[b, :, part].float(), words[1]])
        weights = (q[b, :, part].float() @ keys.T / d**0.5).softmax(1)
        out[b, :, part], share[b, h] = weights @ values, weights[:, k.shape[1] :].sum(1)
    return [out, share]


def _read_by_a_gate(q, k, v, text_k, text_v, mask, heads):
    """Two attentions and a gate; a caption without a word has a gate of 0."""
    parts = [part.unflatten(2, (heads, -1)).permute(0, 2, 1, 3) for part in (q, k, v, text_k, text_v)]
    q, k, v, text_k, text_v = parts
    bias = torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, -math.inf)[:, None, None]
    text, pixels = q @ text_k.mT / q.shape[-1] ** 0.5 + bias, q @ k.mT / q.shape[-1] ** 0.5
    gate = torch.sigmoid(text.logsumexp(3) - pixels.logsumexp(3))
    told, own = (text.softmax(3) @ text_v).nan_to_num(0.0), pixels.softmax(3) @ v
    mixed = gate[..., None] * told + (1 - gate[..., None]) * own
    return mixed.permute(0, 2, 1, 3).flatten(2), gate


def _read_by_torch(q, k, v, text_k, text_v, mask, heads):
    """torch's attention; the share is what it makes of values that are 1 for words and 0 for pixels."""
    split = lambda x: x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)
    keys, values = split(torch.cat([k, text_k], 1)), split(torch.cat([v, text_v], 1))
    heard = torch.cat([torch.ones(len(mask), k.shape[1], dtype=torch.bool), mask], 1)[:, None, None]
    is_word = torch.cat([torch.zeros(k.shape[1]), torch.ones(mask.shape[1])]).to(q)
    is_word = is_word[:, None].expand(len(q), heads, -1, 1)
    out = F.scaled_dot_product_attention(split(q), keys, values, heard)
    return out.transpose(1, 2).flatten(2), F.scaled_dot_product_attention(split(q), keys, is_word, heard)[..., 0]


def _zeros_for_masked(q, k, v, text_k, text_v, mask, heads):
    return _read(mask_of=torch.ones_like)(q, k, v, mask[..., None] * text_k, mask[..., None] * text_v, mask, heads)


def _masked_afterwards(q, k, v, text_k, text_v, mask, heads):
    """Weights of masked words set to zero, and the rest left as it is."""
    out, share = _read(mask_of=torch.ones_like)(q, k, v, text_k, mask[..., None] * text_v, mask, heads)
    return out, share


def _first_mask(q, k, v, text_k, text_v, mask, heads):
    return _read()(q, k, v, text_k, text_v, mask[:1].expand_as(mask), heads)


def _strided(x, heads):
    return x.unflatten(2, (-1, heads)).permute(0, 3, 1, 2).flatten(0, 1)


def _strided_back(x, heads):
    return x.unflatten(0, (-1, heads)).permute(0, 2, 3, 1).flatten(2)


def _read_without_softmax(q, k, v, text_k, text_v, mask, heads):
    """exp without a largest logit taken off."""
    d = q.shape[2] // heads
    q, k, v, text_k, text_v = (_apart(part, heads) for part in (q, k, v, text_k, text_v))
    heard = mask.repeat_interleave(heads, 0)[:, None]
    text, pixels = (q @ text_k.mT / d**0.5).exp() * heard, (q @ k.mT / d**0.5).exp()
    total = text.sum(2, keepdim=True) + pixels.sum(2, keepdim=True)
    share = (text.sum(2, keepdim=True) / total)[..., 0].unflatten(0, (-1, heads))
    return _together((text @ text_v + pixels @ v) / total, heads), share


def _masked_by_a_number(q, k, v, text_k, text_v, mask, heads):
    """A large negative number for minus infinity, of which logits may fall short."""
    d = q.shape[2] // heads
    q, k, v, text_k, text_v = (_apart(part, heads) for part in (q, k, v, text_k, text_v))
    text = (q @ text_k.mT / d**0.5) - 3.0 * ~mask.repeat_interleave(heads, 0)[:, None]
    weights = torch.cat([text, q @ k.mT / d**0.5], 2).softmax(2)
    share = weights[..., : text.shape[2]].sum(2).unflatten(0, (-1, heads))
    return _together(weights @ torch.cat([text_v, v], 1), heads), share


def _words_alone_where_silent(q, k, v, text_k, text_v, mask, heads):
    """Hears everything where it should hear nothing."""
    every = mask | ~mask.any(1, keepdim=True)
    return _read()(q, k, v, text_k, text_v, every, heads)


def _loss(
    hidden=lambda u, p: u < p,
    null=-1,
    places=slice(None),
    of=lambda p, x0, eps: p.eps - eps,
    mean=lambda e: e.square().mean(),
    level_of=lambda level: level,
):
    """The loss of captions of which some are empty, with changes."""

    def text_loss(model, x0, tokens, level, eps, u, p_drop):
        said, level = tokens.clone(), level_of(level)
        said[hidden(u, p_drop), places] = null
        alpha, sigma = level.like(x0)
        x = alpha * x0 + sigma * eps
        return mean(of(model(x, level, said), x0, eps))

    return text_loss


def _loss_in_a_loop(model, x0, tokens, level, eps, u, p_drop):
    """Captions one by one, in float32, by keywords."""
    said = [[-1] * len(row) if coin < p_drop else row for row, coin in zip(tokens.tolist(), u.tolist(), strict=True)]
    x = torch.stack([a * one + s * e for a, s, one, e in zip(level.alpha, level.sigma, x0, eps, strict=True)])
    noise = model(x=x, level=level, tokens=torch.tensor(said)).eps.float()
    return float(np.mean([F.mse_loss(n, e.float()).item() for n, e in zip(noise, eps, strict=True)]))


def _loss_from_x0(model, x0, tokens, level, eps, u, p_drop):
    """From the estimate of the picture: the error of the noise is alpha / sigma of its."""
    keep = (u >= p_drop).long()[:, None]
    x = diffuse(x0, level, eps)
    alpha, sigma = level.like(x0)
    return (alpha / sigma * (model(x, level, tokens * keep + keep - 1).x0 - x0)).pow(2).mean()


def _loss_in_two_passes(model, x0, tokens, level, eps, u, p_drop):
    """Both captions of every picture, and the choice afterwards."""
    x = diffuse(x0, level, eps)
    told, untold = model(x, level, tokens).eps, model(x, level, torch.full_like(tokens, -1)).eps
    return (torch.where((u < p_drop).reshape(-1, 1, 1, 1), untold, told) - eps).square().mean()


def _first_level(level):
    return NoiseLevel(level.alpha[:1].expand(len(level.alpha)), level.sigma[:1].expand(len(level.sigma)), level.time)


def _compose(combine, null=-1, order=lambda captions: captions):
    """Guidance that combines (told (K, B, ...), untold, scales (K, 1, ...)) of the noises, in one pass."""

    def guide_by_all(model, captions, scales):
        captions = order(captions)
        batch = torch.cat([*captions, torch.full_like(captions[0], null)])

        def guided(x, level):
            noises = model(torch.cat([x] * (len(captions) + 1)), level, batch).eps.unflatten(0, (-1, len(x)))
            s = torch.tensor(scales, dtype=x.dtype).reshape(-1, *[1] * x.ndim)
            return Prediction(x, level, combine(noises[:-1], noises[-1], s), "eps")

        return guided

    return guide_by_all


def _compose_by_turns(model, captions, scales):
    """A pass for every sentence."""

    def guided(x, level):
        u = model(x, level, torch.full_like(captions[0], -1))
        parts = [s * (model(x, level, c).eps - u.eps) for s, c in zip(scales, captions, strict=True)]
        return u.with_eps(u.eps + sum(parts))

    return guided


def _compose_as_weights(model, captions, scales):
    """One weight for each sentence, the rest for none; null first, in x_0 and by keywords."""
    batch = torch.cat([torch.full_like(captions[:1], -1), captions]).flatten(0, 1)
    weights = torch.tensor([1 - sum(scales), *scales], dtype=torch.float64)

    def guided(x, level):
        p = model(x=torch.cat([x] * len(weights)), level=level, tokens=batch)
        return p.chunk(len(weights), level)[0].with_x0(
            torch.einsum("k,k...->...", weights, p.x0.unflatten(0, (-1, len(x))))
        )

    return guided


def _compose_picture_by_picture(model, captions, scales):
    """All sentences of a picture side by side, in scores and float32."""
    every = torch.cat([captions, torch.full_like(captions[:1], -1)]).transpose(0, 1).flatten(0, 1)

    def guided(x, level):
        scores = model(x.repeat_interleave(len(captions) + 1, 0), level, every).score.float().unflatten(0, (len(x), -1))
        score = scores[:, -1] + sum(s * (scores[:, i] - scores[:, -1]) for i, s in enumerate(scales))
        return Prediction(x, level, score.to(x.dtype), "score")

    return guided


def _added(told, u, s):
    return u + (s * (told - u)).sum(0)


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
ONE, SEVERAL, SILENT = "one-head", "heads-by-themselves", "masked-words-are-silent"
READ = {
    "form-no-share": (lambda q, k, v, text_k, text_v, mask, heads: q, "form"),
    "form-all-weights": (lambda q, k, v, text_k, text_v, mask, heads: (q, mask.double()), "form"),
    "form-another-name": (
        lambda q, k, v, text_k, text_v, words, heads: _read()(q, k, v, text_k, text_v, words, heads),
        "form",
    ),
    "not-scaled": (_read(lambda d, heads: 1.0), ONE, "not divided by sqrt d"),
    "share-of-pixels": (_read(share_of=lambda share: 1 - share), ONE, "share of the pixels"),
    "no-text": (_read(mask_of=torch.zeros_like), ONE, "no word is heard"),
    "mask-turned-round": (_read(mask_of=lambda mask: ~mask), ONE, "the other way round"),
    "half-the-share": (_read(share_of=lambda share: share / 2), ONE),
    "root-of-c": (_read(lambda d, heads: (d * heads) ** -0.5), SEVERAL, "you took C"),
    "every-other-channel": (_read(apart=_strided, together=_strided_back), SEVERAL, "takes every heads-th"),
    "one-gate": (
        _read(share_of=lambda share: share.mean(1, keepdim=True).expand_as(share)),
        SEVERAL,
        "one for all",
    ),
    "heads-mixed-up": (_read(together=_strided_back), SEVERAL),
    "no-mask": (_read(mask_of=torch.ones_like), SILENT, "masked words are heard"),
    "zeros": (_zeros_for_masked, SILENT, "e^0 = 1"),
    "masked-afterwards": (_masked_afterwards, SILENT),
    "first-mask": (_first_mask, SILENT),
    "not-quite-silent": (_masked_by_a_number, SILENT),
    "silence-is-heard": (_words_alone_where_silent, "nobody-speaks"),
    "overflows": (_read_without_softmax, "no-overflow"),
}
MEAN, LEVEL, COIN, PLACES = (
    "a-mean-of-squares",
    "each-picture-its-level",
    "each-caption-its-coin",
    "empty-in-every-place",
)
LOSS = {
    "form-of-each": (_loss(mean=lambda e: e.square().flatten(1).mean(1)), "form"),
    "form-another-name": (lambda model, x0, tokens, level, eps, coins, p_drop: 0.0, "form"),
    "of-x0": (_loss(of=lambda p, x0, eps: p.x0 - x0), MEAN, "the error of x_0"),
    "sum": (_loss(mean=lambda e: e.square().sum()), MEAN, "this is a sum"),
    "sum-over-numbers": (_loss(mean=lambda e: e.square().flatten(1).sum(1).mean()), MEAN, "summed over the numbers"),
    "half": (_loss(mean=lambda e: e.square().mean() / 2), MEAN, "half of it"),
    "absolute": (_loss(mean=lambda e: e.abs().mean()), MEAN),
    "all-dropped": (_loss(lambda u, p: u < 2), MEAN),
    "first-level": (_loss(level_of=_first_level), LEVEL, "the first one's for all"),
    "never": (_loss(lambda u, p: u < 0), COIN, "dropped nothing"),
    "one-coin": (_loss(lambda u, p: (u[:1] < p).expand(len(u))), COIN, "one coin for the whole batch"),
    "kept-with-p": (_loss(lambda u, p: (u >= p) & (p > 0)), COIN, "at least p_drop"),
    "word-0": (_loss(null=0), COIN, "word 0"),
    "all-if-any": (_loss(lambda u, p: (u < p).any().expand(len(u))), COIN, "every caption"),
    "twice-the-rate": (_loss(lambda u, p: u < 2 * p), COIN),
    "at-most": (_loss(lambda u, p: u <= p), COIN),
    "first-place-alone": (_loss(places=0), PLACES, "still says something"),
    "two-passes": (_loss_in_two_passes, PLACES),
}
ALONE, ADD, LESS, PASS = "one-sentence-is-guidance", "differences-add-up", "less-of-it", "in-one-pass"
COMPOSE = {
    "form-not-a-function": (lambda model, captions, scales: captions, "form"),
    "form-eps-alone": (lambda model, captions, scales: lambda x, level: model(x, level, captions[0]).eps, "form"),
    "w-for-s": (_compose(lambda told, u, s: u + ((1 + s) * (told - u)).sum(0)), ALONE, "1 + s"),
    "subtracted": (_compose(lambda told, u, s: u - (s * (told - u)).sum(0)), ALONE, "are subtracted"),
    "word-0-as-null": (_compose(_added, null=0), ALONE, "word 0"),
    "no-caption": (_compose(lambda told, u, s: u), ALONE, "without any caption"),
    "half-way": (_compose(lambda told, u, s: u + (s / 2 * (told - u)).sum(0)), ALONE),
    "mean": (_compose(lambda told, u, s: u + (s * (told - u)).mean(0)), ADD, "their mean"),
    "null-every-time": (_compose(lambda told, u, s: (u + s * (told - u)).sum(0)), ADD, "counts once"),
    "first-alone": (_compose(lambda told, u, s: u + s[0] * (told[0] - u)), ADD, "first sentence alone"),
    "last-alone": (_compose(lambda told, u, s: u + s[-1] * (told[-1] - u)), ADD, "last sentence alone"),
    "one-scale": (_compose(lambda told, u, s: u + s[0] * (told - u).sum(0)), ADD, "the first scale"),
    "dealt-out": (
        _compose(_added, order=lambda captions: captions.transpose(0, 1).reshape(captions.shape)),
        ADD,
        "picture by picture",
    ),
    "a-fixed-sum": (_compose(lambda told, u, s: u + (s / s.sum() * (told - u)).sum(0) * 2), ALONE),
    "two-at-most": (_compose(lambda told, u, s: u + (s * (told - u))[:2].sum(0)), ADD),
    "never-negative": (
        _compose(lambda told, u, s: u + (s.clamp(min=0) * (told - u)).sum(0)),
        LESS,
        "first sentence alone",
    ),
    "a-pass-each": (_compose_by_turns, PASS),
}
RARE = {
    "form-nineteen": ([1.0] * 19, "form"),
    "form-one-number": (3.0, "form"),
    "infinite": ([1.0] * 19 + [math.inf], "finite-scales"),
    "unguided": ([0.0] * 20, "both-at-once", "a constant scale"),
    "one": ([1.0] * 20, "both-at-once", "a constant scale"),
    "strong": ([3.0] * 20, "both-at-once", "a constant scale"),
    "the-best-constant": ([1.5] * 20, "both-at-once", "a constant scale"),
    "late": ([1.0] * 12 + [4.0] * 8, "both-at-once"),
    "in-the-middle": ([1.0] * 8 + [6.0] * 4 + [1.0] * 8, "both-at-once"),
    "falling": ([6.0 - 0.25 * i for i in range(20)], "both-at-once"),
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
    "ex-07-heads": READ,
    "ex-07-loss": LOSS,
    "ex-07-compose": COMPOSE,
    "ex-07-rare": RARE,
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
    "ex-07-heads": {
        "batch-of-heads": _read(),
        "loop-float32": _read_in_a_loop,
        "gate": _read_by_a_gate,
        "torch": _read_by_torch,
    },
    "ex-07-loss": {
        "index": _loss(),
        "loop-float32": _loss_in_a_loop,
        "from-x0": _loss_from_x0,
    },
    "ex-07-compose": {
        "one-batch": _compose(_added),
        "weights": _compose_as_weights,
        "picture-by-picture": _compose_picture_by_picture,
    },
    "ex-07-rare": {
        "two-steps": [16.0, 16.0] + [1.0] * 18,
        "three-steps": torch.tensor([12.0] * 3 + [1.0] * 17),
        "four-steps": tuple([8.0] * 4 + [1.0] * 16),
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
