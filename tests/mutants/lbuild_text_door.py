"""Right answers in other styles, and planted wrong ones, for the build page on a text door."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from minidiff.course.checks.lbuild_text_door import (
    CAPTIONS,
    TIMES,
    attended,
    composed,
    heard_by,
    real_pictures,
    understood,
)
from minidiff.process import diffuse
from minidiff.schedule import NoiseLevel

# -- ex-door-attention ------------------------------------------------------------------------------------------------


def attention_fused(q, k, v, counts, heads):
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, counts[:, None, None]).transpose(1, 2).flatten(2)


def attention_by_einsum(q, k, v, counts, heads):
    q, k, v = (t.reshape(*t.shape[:2], heads, -1) for t in (q, k, v))
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    weights = logits.where(counts[:, None, None], torch.tensor(-1e30, dtype=q.dtype)).softmax(3)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v).reshape(*q.shape[:2], -1)


def attention_cut_short(q, k, v, counts, heads):
    """Every picture by itself, its keys cut to those that count."""
    out = []
    for i in range(len(q)):
        parts = [t.chunk(heads, 1) for t in (q[i], k[i][counts[i]], v[i][counts[i]])]
        out.append(torch.cat([(a @ b.T / a.shape[1] ** 0.5).softmax(1) @ c for a, b, c in zip(*parts, strict=True)], 1))
    return torch.stack(out)


def attention_in_float32(q, k, v, counts, heads):
    return attention_by_einsum(q=q.float(), k=k.float(), v=v.float(), counts=counts, heads=heads)


def _attention(mask=lambda counts: counts, many=lambda heads: heads, **slips):
    return lambda q, k, v, counts, heads: attended(
        q, k, v, mask(counts), many(heads), **{name: slip(q, counts, heads) for name, slip in slips.items()}
    )


def _every(counts):
    return torch.ones_like(counts)


def _first(counts):
    return counts[:1].expand_as(counts)


def _unsafe(q, k, v, counts, heads):
    """Exponentials as they are."""
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    weights = (q @ k.mT / q.shape[-1] ** 0.5).exp() * counts[:, None, None]
    return (weights / weights.sum(-1, keepdim=True) @ v).transpose(1, 2).flatten(2)


def _turned(q, k, v, counts, heads):
    """Hides what counts where something does not."""
    return attention_by_einsum(q, k, v, torch.where(counts.all(1, keepdim=True), counts, ~counts), heads)


ONE, SEVERAL, PADDING = "one-head", "several-heads", "padding-is-not-heard"
ATTENTION = {
    "form-forgot-return": (lambda q, k, v, counts, heads: None, "form"),
    "form-heads-left-apart": (lambda q, k, v, counts, heads: q.unflatten(2, (heads, -1)), "form"),
    "no-scale": (_attention(scale=lambda q, counts, heads: 1.0), ONE, "divided by the root"),
    "width-for-root": (_attention(scale=lambda q, counts, heads: heads / q.shape[2]), ONE, "not by its root"),
    "over-the-queries": (_attention(over=lambda q, counts, heads: 0), ONE, "of one who asks"),
    "values-alone": (lambda q, k, v, counts, heads: v.mean(1, keepdim=True).expand_as(q), ONE),
    "scale-of-all-heads": (
        _attention(scale=lambda q, counts, heads: q.shape[2] ** -0.5),
        SEVERAL,
        "not of all heads",
    ),
    "interleaved": (_attention(interleaved=lambda q, counts, heads: True), SEVERAL, "interleaved"),
    "one-head": (_attention(many=lambda heads: 1), SEVERAL, "this is one head"),
    "two-heads": (_attention(many=lambda heads: min(heads, 2)), SEVERAL),
    "all-count": (_attention(_every), PADDING, "heard all the same"),
    "silent-but-weighty": (_attention(_every, after=lambda q, counts, heads: counts), PADDING, "its share"),
    "logit-zero": (_attention(hidden=lambda q, counts, heads: 0.0), PADDING, "a logit of zero"),
    "first-mask": (_attention(_first), PADDING, "the first one's"),
    "turned": (_turned, PADDING),
    "unsafe": (_unsafe, "loud"),
}

# -- ex-door-read -----------------------------------------------------------------------------------------------------


def read_in_one_pass(tokens, w, heads):
    tokens = F.pad(tokens, (1, 0), value=len(w["words"]) - 1)
    counts = tokens >= 0
    norm = lambda y: F.layer_norm(y, y.shape[-1:])
    y = F.embedding(tokens.clamp(min=0), w["words"]) + w["places"]
    seen = norm(y)
    y = y + attention_fused(*(seen @ w[name] for name in ("query", "key", "value")), counts, heads) @ w["out"]
    return norm(y + F.gelu(norm(y) @ w["wide"]) @ w["narrow"]), counts


def read_in_float32(tokens, w, heads):
    words, counts = read_in_one_pass(tokens=tokens, w={name: x.float() for name, x in w.items()}, heads=heads)
    return [words, counts]


def read_one_by_one(tokens, w, heads):
    """Every caption by itself, cut to its words."""
    start = torch.zeros(len(tokens), 1).bool()
    return understood(tokens, w, heads), ~torch.cat([start, tokens < 0], 1)


def _read(mask=lambda counts: counts, **slips):
    def read(tokens, w, heads):
        return understood(tokens, w, heads, **slips), mask(read_in_one_pass(tokens, w, heads)[1])

    return read


def _start_not_counted(counts):
    return torch.cat([counts[:, :1] & False, counts[:, 1:]], 1)


def _start_behind(counts):
    return torch.cat([counts[:, 1:], counts[:, :1]], 1)


def _hears_padding(tokens, w, heads):
    """Everything talks, and what is told of the padding is true."""
    full = torch.where(tokens < 0, 0, tokens)
    return read_in_one_pass(full, w, heads)[0], read_in_one_pass(tokens, w, heads)[1]


def _start_last(tokens, w, heads):
    return understood(tokens, w, heads, start_last=True), read_in_one_pass(tokens, w, heads)[1]


def _broken_padding(tokens, w, heads):
    words, counts = read_in_one_pass(tokens, w, heads)
    return words.masked_fill(~counts[..., None], math.nan), counts


def _one_head(tokens, w, heads):
    return read_in_one_pass(tokens, w, 1 if tokens.shape[1] == 4 and len(tokens) > 1 else heads)


def _context_of_four(tokens, w, heads):
    words, counts = read_in_one_pass(tokens, w, heads)
    return (words if tokens.shape[1] == 4 else words.flip(1)), counts


COUNTS, EMPTY, PLACES = "what-counts", "an-empty-caption", "words-at-their-places"


def _same(y):
    return y


def _unless_empty(slip):
    """A slip that shows only where there are words."""
    return lambda tokens, w, heads: (slip if bool((tokens >= 0).any()) else read_in_one_pass)(tokens, w, heads)


READ = {
    "form-no-mask": (lambda tokens, w, heads: read_in_one_pass(tokens, w, heads)[0], "form"),
    "form-no-start": (lambda tokens, w, heads: tuple(x[:, 1:] for x in read_in_one_pass(tokens, w, heads)), "form"),
    "form-forgot-return": (lambda tokens, w, heads: None, "form"),
    "start-does-not-count": (_read(_start_not_counted), COUNTS, "the start counts too"),
    "start-behind": (_read(_start_behind), COUNTS, "before the words"),
    "all-count": (_read(torch.ones_like), COUNTS, "everything counts"),
    "mask-turned": (_read(torch.logical_not), COUNTS, "turned round"),
    "nothing-of-nothing": (
        lambda tokens, w, heads: (0 * read_in_one_pass(tokens, w, heads)[0], read_in_one_pass(tokens, w, heads)[1]),
        EMPTY,
    ),
    "not-finite": (_broken_padding, EMPTY),
    "no-places": (_unless_empty(_read(placed=0)), PLACES, "the places"),
    "no-norms": (_unless_empty(_read(norm=_same)), PLACES, "norms were left out"),
    "no-last-norm": (_unless_empty(_read(last=_same)), PLACES, "last norm"),
    "no-talk": (_unless_empty(_read(talk=0)), PLACES, "did not talk"),
    "not-added": (_unless_empty(_read(kept=0)), PLACES, "yours replaces it"),
    "no-perceptron": (_unless_empty(_read(think=0)), PLACES, "perceptron"),
    "start-last": (_start_last, PLACES),
    "hears-the-padding": (_unless_empty(_hears_padding), PLACES),
    "one-head": (_one_head, PLACES),
    "context-of-four": (_context_of_four, "another-context"),
}

# -- ex-door-listen ---------------------------------------------------------------------------------------------------


def listen_by_rows(h, words, counts, w, heads):
    pixels = F.group_norm(h, 8).permute(0, 2, 3, 1).flatten(1, 2)
    parts = pixels @ w["query"], words @ w["key"], words @ w["value"]
    heard = attention_fused(*parts, counts, heads) @ w["out"]
    return h + heard.unflatten(1, h.shape[2:]).permute(0, 3, 1, 2)


def listen_by_einsum(h, words, counts, w, heads):
    """The last matrix on the channels where they stand."""
    pixels = torch.einsum("bcp,cd->bpd", F.group_norm(h, 8).flatten(2), w["query"])
    out = attention_by_einsum(pixels, words @ w["key"], words @ w["value"], counts, heads)
    return h + torch.einsum("bpc,cd->bdp", out, w["out"]).view(h.shape)


def listen_in_float32(h, words, counts, w, heads):
    w = {name: x.float() for name, x in w.items()}
    return listen_by_rows(h=h.float(), words=words.float(), counts=counts, w=w, heads=heads)


def _listen(mask=lambda counts: counts, **slips):
    return lambda h, words, counts, w, heads: heard_by(
        h, words, mask(counts), w, heads, **{name: slip(h) for name, slip in slips.items()}
    )


def _first_words(h, words, counts, w, heads):
    return heard_by(h, words[:1].expand_as(words), counts, w, heads)


def _summary(h, words, counts, w, heads):
    """Every pixel is told the same: what the mean pixel hears."""
    heard = heard_by(h, words, counts, w, heads) - h
    return h + heard.mean((2, 3), keepdim=True)


SILENT, HEARD = "silent-at-first", "the-words-are-heard"
LISTEN = {
    "form-forgot-return": (lambda h, words, counts, w, heads: None, "form"),
    "form-pixels-in-a-row": (lambda h, words, counts, w, heads: h.flatten(2).mT, "form"),
    "replaced": (lambda h, words, counts, w, heads: heard_by(h, words, counts, w, heads) - h, SILENT, "replaces it"),
    "twice": (lambda h, words, counts, w, heads: heard_by(h, words, counts, w, heads) + h, SILENT),
    "deaf": (lambda h, words, counts, w, heads: h, HEARD),
    "not-normed": (_listen(normed=lambda h: h), HEARD, "norm before the queries"),
    "normed-for-good": (
        lambda h, words, counts, w, heads: heard_by(
            h, words, counts, w, heads, kept=h if not w["out"].any() else F.group_norm(h, 8)
        ),
        HEARD,
        "for the queries alone",
    ),
    "keys-for-values": (_listen(said=lambda h: ("value", "key")), HEARD, "the keys are taken for values"),
    "padding-heard": (_listen(_every), HEARD, "heard all the same"),
    "columns": (_listen(turned=lambda h: True), HEARD, "rows and columns"),
    "first-words": (_first_words, HEARD),
    "one-summary": (_summary, HEARD),
    "first-mask": (_listen(_first), HEARD),
}

# -- ex-door-loss -----------------------------------------------------------------------------------------------------


def fit(
    network,
    x0,
    tokens,
    level,
    drop,
    seed,
    *,
    see=lambda a, s, x0, eps: a * x0 + s * eps,
    target=lambda a, s, x0, eps: a * eps - s * x0,
    worth=lambda off: off.square().mean(),
    noise=lambda x0, generator: torch.randn(x0.shape, generator=generator),
    hide=lambda tokens, drop, u: torch.where(u[:, :1] < drop, -1, tokens),
    seeds=lambda seed: (seed, seed),
    tell=lambda level: level,
):
    """The loss, or what a slip makes of it."""
    first, second = (torch.Generator().manual_seed(s) for s in seeds(seed))
    told = hide(tokens, drop, torch.rand(tokens.shape, generator=first))
    parts = (*level.like(x0), x0, noise(x0, second))
    return worth(network(see(*parts), tell(level), told) - target(*parts))


def loss_by_process(network, x0, tokens, level, drop, seed):
    generator = torch.Generator().manual_seed(seed)
    eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    keep = torch.bernoulli(torch.full((len(x0),), 1.0 - drop), generator=generator).bool()
    alpha, sigma = level.like(x0)
    said = network(diffuse(x0, level, eps), level, torch.where(keep[:, None], tokens, torch.full_like(tokens, -1)))
    return F.mse_loss(said, alpha * eps - sigma * x0)


def loss_in_a_loop(network, x0, tokens, level, drop, seed):
    torch.manual_seed(seed)
    eps, told = torch.randn_like(x0), tokens.clone()
    for row in told:
        if torch.rand(()) < drop:
            row[:] = -1
    alpha, sigma = level.like(x0)
    return (network(alpha * x0 + sigma * eps, level, told) - alpha * eps + sigma * x0).pow(2).mean().item()


def loss_by_keywords(network, x0, tokens, level, drop, seed):
    return fit(network=network, x0=x0.float(), tokens=tokens, level=level, drop=drop, seed=seed)


def _fit(**slips):
    return lambda network, x0, tokens, level, drop, seed: fit(network, x0, tokens, level, drop, seed, **slips)


def _in_order(tokens, drop, u):
    """The first captions of every batch."""
    return torch.where(torch.arange(len(tokens))[:, None] < round(drop * len(tokens)), -1, tokens)


def _unseeded(network, x0, tokens, level, drop, seed):
    return fit(network, x0, tokens, level, drop, int(torch.randint(10**6, ())))


FRESH, SQUARES, WHOLE, SEED = "fresh-noise", "mean-of-squares", "whole-captions-are-dropped", "the-seed-decides"
LOSS = {
    "form-not-reduced": (_fit(worth=lambda off: off.square()), "form"),
    "form-forgot-return": (lambda network, x0, tokens, level, drop, seed: None, "form"),
    "clean": (_fit(see=lambda a, s, x0, eps: x0), FRESH, "the clean pictures"),
    "one-noise-for-all": (
        _fit(noise=lambda x0, generator: torch.randn(x0[:1].shape, generator=generator).expand(x0.shape)),
        FRESH,
        "the same noise",
    ),
    "never-asked": (lambda network, x0, tokens, level, drop, seed: 1.0, FRESH),
    "uniform-noise": (_fit(noise=lambda x0, generator: torch.rand(x0.shape, generator=generator)), FRESH),
    "noise-in-full": (_fit(see=lambda a, s, x0, eps: a * x0 + eps), FRESH),
    "wrong-level": (_fit(tell=lambda level: NoiseLevel(level.sigma, level.alpha, 0)), FRESH),
    "eps": (_fit(target=lambda a, s, x0, eps: eps), SQUARES, "compared with eps"),
    "x0": (_fit(target=lambda a, s, x0, eps: x0), SQUARES, "compared with x_0"),
    "sign": (_fit(target=lambda a, s, x0, eps: s * x0 - a * eps), SQUARES, "turned round"),
    "sum": (_fit(worth=lambda off: off.square().sum()), SQUARES, "added up the squares"),
    "root": (_fit(worth=lambda off: off.square().mean().sqrt()), SQUARES),
    "word-by-word": (_fit(hide=lambda tokens, drop, u: torch.where(u < drop, -1, tokens)), WHOLE, "single words"),
    "all-or-none": (
        _fit(hide=lambda tokens, drop, u: torch.where(u[:1, :1] < drop, -1, tokens)),
        WHOLE,
        "all captions of a batch",
    ),
    "kept": (_fit(hide=lambda tokens, drop, u: torch.where(u[:, :1] > drop, -1, tokens)), WHOLE, "that is dropped"),
    "never": (
        _fit(hide=lambda tokens, drop, u: torch.where(u[:, :1] > 2, -1, tokens)),
        WHOLE,
        "all captions of a batch",
    ),
    "half-as-often": (_fit(hide=lambda tokens, drop, u: torch.where(u[:, :1] < drop / 2, -1, tokens)), WHOLE),
    "token-zero": (_fit(hide=lambda tokens, drop, u: torch.where(u[:, :1] < drop, 0, tokens)), WHOLE),
    "in-order": (_fit(hide=_in_order), SEED, "the very same captions"),
    "unseeded": (_unseeded, SEED, "the same seed"),
    "one-seed": (_fit(seeds=lambda seed: (0, 0)), SEED, "the very same noise"),
}

# -- ex-door-compose --------------------------------------------------------------------------------------------------


def _many(level: NoiseLevel, x, times: int) -> NoiseLevel:
    parts = (torch.as_tensor(part, dtype=x.dtype) for part in (level.alpha, level.sigma, level.time))
    return NoiseLevel(*(part.repeat(times) if part.ndim else part for part in parts))


def _ask_all(model, x, level, captions):
    every = [torch.full((len(x), captions[0].shape[1] if captions else 1), -1), *captions]
    return model(x.repeat(len(every), 1, 1, 1), _many(level, x, len(every)), torch.cat(every))


def compose_by_weights(model, x, level, captions, scales):
    """As one weighted sum, whose weights add up to one."""
    weights = torch.tensor([1 - sum(scales), *scales], dtype=x.dtype)
    return torch.einsum("k,k...->...", weights, _ask_all(model, x, level, captions).x0.unflatten(0, (-1, len(x))))


def compose_in_noise(model, x, level, captions, scales):
    """The sum of what is said of the noise; x_0 from it."""
    plain, *told = _ask_all(model, x, level, captions).eps.chunk(1 + len(captions))
    guided = plain + sum(scale * (eps - plain) for scale, eps in zip(scales, told, strict=True))
    alpha, sigma = level.like(x)
    return (x - sigma * guided) / alpha


def compose_in_float32(model, x, level, captions, scales):
    return compose_by_weights(model=model, x=x, level=level, captions=captions, scales=scales).float()


def _compose(change):
    """The right thing with other scales, in one call for one caption as for several."""
    return lambda model, x, level, captions, scales: compose_by_weights(model, x, level, captions, change(scales))


def _without_null(model, x, level, captions, scales):
    _, *told = _ask_all(model, x, level, captions).x0.chunk(1 + len(captions))
    return sum(s * x0 for s, x0 in zip(scales, told, strict=True))


def _one_after_another(model, x, level, captions, scales):
    """Guides what is guided already."""
    plain, *told = _ask_all(model, x, level, captions).x0.chunk(1 + len(captions))
    for s, x0 in zip(scales, told, strict=True):
        plain = plain + s * (x0 - plain)
    return plain


def _first_level(model, x, level, captions, scales):
    alpha, sigma, time = (torch.as_tensor(part).reshape(-1)[0] for part in (level.alpha, level.sigma, level.time))
    return compose_by_weights(model, x, NoiseLevel(alpha, sigma, time), captions, scales)


def _preserving(model, x, level, captions, scales):
    root = (torch.as_tensor(level.alpha) ** 2 + torch.as_tensor(level.sigma) ** 2) ** 0.5
    return compose_by_weights(
        model, x, NoiseLevel(level.alpha / root, level.sigma / root, level.time), captions, scales
    )


ALONE, TOGETHER = "one-caption", "several-captions"
COMPOSE = {
    "form-forgot-return": (lambda model, x, level, captions, scales: None, "form"),
    "form-whole-batch": (
        lambda model, x, level, captions, scales: _ask_all(model, x, level, captions).x0,
        "form",
    ),
    "w-for-s": (_compose(lambda s: [a + 1 for a in s]), ALONE, "nothing is guided"),
    "halves-swapped": (_compose(lambda s: [1 - a for a in s]), ALONE, "swapped"),
    "not-guided": (_compose(lambda s: [1.0 for a in s]), ALONE, "this is s = 1"),
    "no-null": (_without_null, ALONE),
    "mean": (_compose(lambda s: [a / len(s) for a in s]), TOGETHER, "their mean"),
    "first": (_compose(lambda s: [s[0], *[0.0] * (len(s) - 1)]), TOGETHER, "only the first"),
    "last": (_compose(lambda s: [*[0.0] * (len(s) - 1), s[-1]]), TOGETHER, "only the last"),
    "one-scale": (_compose(lambda s: [s[0]] * len(s)), TOGETHER, "the first one's scale"),
    "never-against": (_compose(lambda s: [abs(a) for a in s]), TOGETHER, "leads away"),
    "one-after-another": (_one_after_another, TOGETHER),
    "first-level": (_first_level, "a-level-for-each-picture"),
    "preserving": (_preserving, "a-level-for-each-picture"),
    "many-calls": (composed, "in-one-call"),
}

# -- ex-door-pictures -------------------------------------------------------------------------------------------------

REAL = real_pictures()


def _turned_round(images):
    return images.unflatten(0, (len(CAPTIONS), TIMES)).transpose(0, 1).flatten(0, 1)


def _other_shapes(images):
    """Each caption has the pictures of the next shape in its colour."""
    return images.unflatten(0, (8, 8, TIMES)).roll(1, 1).flatten(0, 2)


def _half_right(images):
    """One in four has the next colour, and as many as may the next shape."""
    colored = images.unflatten(0, (8, 8, TIMES)).roll(1, 0).flatten(0, 2)
    out, place = images.clone(), torch.arange(len(images)) % 16
    for of, wrong in ((colored, place < 4), (_other_shapes(images), (place >= 4) & (place < 12))):
        out[wrong] = of[wrong]
    return out


def _noise(scale):
    return scale * torch.randn(REAL.shape, generator=torch.Generator().manual_seed(0))


PICTURES = {
    "form-too-few": (REAL[:64], "form"),
    "form-function": (lambda: REAL, "form"),
    "turned": (_turned_round(REAL), "the-colour", "two of the first come first"),
    "noise": (_noise(1.0), "the-colour"),
    "grey": (REAL.mean(1, keepdim=True).expand_as(REAL), "the-colour"),
    "next-color": (REAL.roll(8 * TIMES, 0), "the-colour"),
    "next-shape": (_other_shapes(REAL), "the-shape"),
    "either-is-right": (_half_right(REAL), "both"),
    "one-twice": (REAL[::TIMES].repeat_interleave(TIMES, 0), "two-and-not-one-twice"),
}

RIGHT = {
    "ex-door-attention": {
        "fused": attention_fused,
        "einsum": attention_by_einsum,
        "cut short": attention_cut_short,
        "float32": attention_in_float32,
    },
    "ex-door-read": {"one pass": read_in_one_pass, "float32": read_in_float32, "one by one": read_one_by_one},
    "ex-door-listen": {"rows": listen_by_rows, "einsum": listen_by_einsum, "float32": listen_in_float32},
    "ex-door-loss": {"process": loss_by_process, "loop": loss_in_a_loop, "by keywords": loss_by_keywords},
    "ex-door-compose": {
        "weights": compose_by_weights,
        "noise": compose_in_noise,
        "float32": compose_in_float32,
    },
    "ex-door-pictures": {
        "real": REAL,
        "others": real_pictures(seed=1).double(),
        "with noise": list(REAL + _noise(0.05)),
    },
}

MUTANTS = {
    "ex-door-attention": ATTENTION,
    "ex-door-read": READ,
    "ex-door-listen": LISTEN,
    "ex-door-loss": LOSS,
    "ex-door-compose": COMPOSE,
    "ex-door-pictures": PICTURES,
}
