"""Checks of lesson 12: what a reader lets through, overshoot, percentiles, a sampler, what text is worth, scales."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from minidiff.course.comparing import expect, normal, uniform
from minidiff.course.exercises import case, exercise
from minidiff.course.forms import call, listed, number, taking, tensor
from minidiff.course.outcomes import Mistake
from minidiff.exact import GaussianDenoiser, GaussianMixtureDenoiser
from minidiff.prediction import Prediction
from minidiff.random import randn
from minidiff.sampler import ddim, sample
from minidiff.schedule import DATA, NoiseLevel

LESSON = "12_imagen"

# -- ex-12-ceiling ----------------------------------------------------------------------------------------------------

CAPTIONS = ["a red ring", "ring a red", "a blue ring", "red a ring", "a blue star", "star a blue", "one ring"]
SHUFFLED = lambda caption: sorted(caption.split())  # a list: it can be compared, and has no hash


def _weights(rng: Generator) -> Tensor:
    return uniform(rng, 0.5, 3, len(CAPTIONS))


exercise(
    "ex-12-ceiling",
    name="ceiling",
    lesson=LESSON,
    form=call(
        number(),
        lambda rng: {"captions": CAPTIONS, "weights": _weights(rng), "see": taking("caption", SHUFFLED)},
    ),
)


def _groups(captions: list[str], weights: Tensor, see: Callable) -> list[list[float]]:
    """The weights of the captions that a reader sees alike."""
    seen: list[tuple[object, list[float]]] = []
    for caption, weight in zip(captions, weights.tolist(), strict=True):
        h = see(caption)
        same = next((group for other, group in seen if other == h), None)
        if same is None:
            seen.append((h, same := []))
        same.append(weight)
    return [group for _, group in seen]


def _expect_ceiling(answer: Callable, captions: list[str], weights: Tensor, see: Callable, say: str) -> None:
    groups, total = _groups(captions, weights, see), float(weights.sum())
    right = sum(max(group) for group in groups) / total
    wrong = {
        "the weights need not add up to one: divide by their sum": right * total,
        "this is the number of groups over that of captions; weights differ": len(groups) / len(captions),
        "the best paints the most frequent caption of a group, not the rarest": sum(map(min, groups)) / total,
        "the best does not paint a group's captions in turn, but the most frequent one always": (
            sum(sum(group) / len(group) for group in groups) / total
        ),
        "painting in proportion to the weights is not the best": (
            sum(sum(w * w for w in group) / sum(group) for group in groups) / total
        ),
        "this is one group's share; every group has a best caption": max(map(max, groups)) / total,
        "this is the share that is lost": 1 - right,
        "only captions that nobody else is taken for were counted": (
            sum(group[0] for group in groups if len(group) == 1) / total
        ),
    }
    expect(answer(captions, weights, taking("caption", see)), right, say, wrong)


@case("ex-12-ceiling", "words-without-order")
def _(answer, rng):
    for _ in range(2):
        say = "who sees the words without their order can be right for {right} of the weight, not {got}"
        _expect_ceiling(answer, CAPTIONS, _weights(rng), SHUFFLED, say)


@case("ex-12-ceiling", "sees-everything-and-nothing")
def _(answer, rng):
    _expect_ceiling(answer, CAPTIONS, _weights(rng), lambda c: c, "who sees the whole caption can always be right")
    _expect_ceiling(answer, CAPTIONS, _weights(rng), lambda c: 0, "who sees nothing paints the most frequent caption")


@case("ex-12-ceiling", "other-readers")
def _(answer, rng):
    last = lambda caption: {"last": caption.split()[-1]}
    _expect_ceiling(answer, CAPTIONS, _weights(rng), last, "a reader may give anything that can be compared")
    length = lambda caption: len(caption) / 3
    _expect_ceiling(answer, CAPTIONS[::-1], 10 * _weights(rng), length, "a reader may give numbers")


# -- ex-12-overshoot --------------------------------------------------------------------------------------------------


def _means(rng: Generator, batch: int = 3, channels: int = 2) -> dict:
    shape = (batch, channels, 2, 4)
    return {
        "own": uniform(rng, -1, 1, *shape),
        "others": uniform(rng, -1, 1, *shape),
        "doubt": uniform(rng, 0.1, 0.6, batch),
        "s": uniform(rng, 3, 9),
    }


exercise("ex-12-overshoot", name="guided_estimate", lesson=LESSON, form=call(tensor("own"), _means))


def _expect_guided(answer: Callable, given: dict, say: str) -> None:
    own, others, s = given["own"], given["others"], given["s"]
    doubt = given["doubt"].reshape(-1, 1, 1, 1)
    untold = (1 - doubt) * own + doubt * others
    right = untold + s * (own - untold)
    wrong = {
        "s - 1 times the doubt, not s times": own + s * doubt * (own - others),
        "guidance goes away from the others, not towards them": own + (s - 1) * doubt * (others - own),
        "this is guided with the others as if one were sure of them: the doubt is missing": own
        + (s - 1) * (own - others),
        "1 - doubt is how sure one is": own + (s - 1) * (1 - doubt) * (own - others),
        "this is the estimate without the condition": untold,
        "this is what guidance adds; the estimate begins with m_c": (s - 1) * doubt * (own - others),
        "you started from the others' mean": others + (s - 1) * doubt * (own - others),
        "nothing is clipped here": right.clamp(-1, 1),
        "you started from the estimate without the condition, with s - 1": untold + (s - 1) * (own - untold),
    }
    expect(answer(own, others, given["doubt"], s), right, say, wrong if s > 1 else {})


@case("ex-12-overshoot", "beyond-the-mean")
def _(answer, rng):
    for _ in range(2):
        _expect_guided(answer, _means(rng), "not m_c + (s - 1)(1 - pi_c)(m_c - m_not_c)")


@case("ex-12-overshoot", "one-number-for-each-picture")
def _(answer, rng):
    given = _means(rng, 4, 4)
    _expect_guided(
        answer, given, "the doubt is one number for each picture of the batch, here of four with four channels"
    )
    _expect_guided(answer, _means(rng, 1, 3), "a batch of one, three channels")


@case("ex-12-overshoot", "plain-and-unconditional")
def _(answer, rng):
    for s, name in ((1.0, "s = 1 is m_c itself"), (0.0, "s = 0 is the estimate without the condition")):
        _expect_guided(answer, _means(rng) | {"s": s}, name)


# -- ex-12-dynamic ----------------------------------------------------------------------------------------------------

exercise(
    "ex-12-dynamic",
    name="dynamic",
    lesson=LESSON,
    form=call(tensor("x0", exact=True), lambda rng: {"x0": 2 * normal(rng, 2, 3, 4, 5), "p": 0.9}),
)


def _tau(x: Tensor, p: float, least: float = 1.0) -> Tensor:
    """(B, ...) the threshold of each picture, from sorted lists."""
    out = []
    for picture in x.double().abs().flatten(1):
        values = sorted(picture.tolist())
        place = p * (len(values) - 1)
        low = min(math.floor(place + 1e-12), len(values) - 1)
        high = min(low + 1, len(values) - 1)
        out.append(max(least, values[low] + (place - low) * (values[high] - values[low])))
    return torch.tensor(out, dtype=torch.float64).reshape(-1, *[1] * (x.ndim - 1))


def _thresholded(x: Tensor, tau: Tensor | float) -> Tensor:
    return (x / tau).clamp(-1, 1)


def _misclipped(x: Tensor, p: float) -> dict[str, Tensor | Callable]:
    x = x.double()
    flat = x.flatten(1)
    signed = flat.quantile(p, dim=1).clamp(min=1).reshape(-1, *[1] * (x.ndim - 1))
    rows = {}
    if x.ndim == 4:
        per_channel = x.abs().flatten(2).quantile(p, dim=2).clamp(min=1)[:, :, None, None]
        rows = {
            "one threshold for all channels of a picture; you took one for each": _thresholded(x, per_channel),
            "one threshold for all pixels of a picture; you took one for each row": (
                lambda: _thresholded(x, x.abs().quantile(p, dim=3, keepdim=True).clamp(min=1))
            ),
        }
    tau = _tau(x, p)
    return rows | {
        "this is static clipping": x.clamp(-1, 1),
        "you clipped, and did not divide": torch.maximum(torch.minimum(x, tau), -tau),
        "you divided, and did not clip": x / tau,
        "the threshold is at least one: without that, dark pictures are brightened": _thresholded(x, _tau(x, p, 0.0)),
        "take the quantile of absolute values": _thresholded(x, signed),
        "each picture has its own threshold; you took one for the batch": (
            _thresholded(x, x.abs().flatten().quantile(p).clamp(min=1))
        ),
        "this scales by the largest value": _thresholded(x, x.abs().flatten(1).amax(1).clamp(min=1).reshape(tau.shape)),
        "you clipped to [-1, 1] after a division by more, so that twice": _thresholded(x, tau).clamp(-1, 1) / tau,
        "the quantile lies between two values: interpolate": lambda: _thresholded(x, _nearest(x, p)),
    }


def _nearest(x: Tensor, p: float) -> Tensor:
    found = x.abs().flatten(1).quantile(p, dim=1, interpolation="lower").clamp(min=1)
    return found.reshape(-1, *[1] * (x.ndim - 1))


def _expect_dynamic(answer: Callable, x: Tensor, p: float, say: str, rtol: float = 1e-4) -> None:
    expect(answer(x, p), _thresholded(x.double(), _tau(x, p)), say, _misclipped(x, p), rtol=rtol)


@case("ex-12-dynamic", "strong-pictures")
def _(answer, rng):
    for p in (0.9, 0.8):
        x = 3 * normal(rng, 3, 3, 3, 9) * torch.tensor([1.0, 2, 4])[:, None, None, None]
        _expect_dynamic(answer, x, p, f"wrong for p = {p}, pictures far out of range")


@case("ex-12-dynamic", "mild-pictures")
def _(answer, rng):
    x = uniform(rng, -0.6, 0.6, 2, 3, 3, 9)
    x[0, 0, 0, 0], x[1, 2, 1, 1] = 2.5, -3.0
    _expect_dynamic(answer, x, 0.9, "where the quantile is below one, this is static clipping")
    mixed = torch.cat([x[:1], 4 * x[1:]])
    _expect_dynamic(answer, mixed, 0.9, "of one batch some pictures may be in range and others not")


@case("ex-12-dynamic", "interpolated-quantile")
def _(answer, rng):
    x = 2 + 2 * uniform(rng, 0, 1, 2, 1, 2, 2)
    for p in (0.5, 0.85, 1.0):
        _expect_dynamic(answer, x, p, f"four numbers a picture, p = {p}: the quantile lies at place 3p of 0 to 3")


@case("ex-12-dynamic", "any-shape")
def _(answer, rng):
    for shape in ((1, 3, 6, 2), (4, 7), (2, 1, 3, 3, 3)):
        _expect_dynamic(answer, 3 * normal(rng, *shape), 0.75, f"pictures of shape {shape[1:]}, a batch of {shape[0]}")


@case("ex-12-dynamic", "half-precision")
def _(answer, rng):
    x = (3 * normal(rng, 2, 3, 4, 4)).half()
    _expect_dynamic(answer, x, 0.9, "wrong in half precision", rtol=4e-3)
    _expect_dynamic(answer, (3 * normal(rng, 2, 3, 4, 4)).float(), 0.9, "wrong in float32")


# -- ex-12-draw -------------------------------------------------------------------------------------------------------


def _predict() -> Callable:
    """Two noises of Gaussian worlds of three numbers, with a condition and without."""
    told = GaussianDenoiser(torch.tensor([0.8, -0.5, 0.3]), torch.tensor([0.1, 0.3, 0.2]))
    untold = GaussianDenoiser(torch.tensor([0.1, 0.2, -0.1]), torch.tensor([0.8, 0.9, 0.6]))

    def predict(x, alpha, sigma):
        level = NoiseLevel(float(alpha), float(sigma), 0.0)
        return told(x, level).eps, untold(x, level).eps

    return taking("x alpha sigma", predict)


def _levels(n: int = 5, radius: float = 1.0) -> tuple[Tensor, Tensor]:
    angles = [1.4 * (1 - i / n) for i in range(n)]
    alphas = torch.tensor([radius * math.cos(a) for a in angles] + [1.0], dtype=torch.float64)
    return alphas, torch.tensor([radius * math.sin(a) for a in angles] + [0.0], dtype=torch.float64)


CLIP = lambda x0: x0.clamp(-1, 1)
PLAIN = lambda x0: x0


def _draw_given(rng: Generator) -> dict:
    names = ("predict", "alphas", "sigmas", "noise", "s", "threshold")
    return dict(zip(names, (_predict(), *_levels(), normal(rng, 4, 3), 3.0, taking("x0", CLIP)), strict=True))


exercise("ex-12-draw", name="draw_guided", lesson=LESSON, form=call(tensor("noise"), _draw_given))


def _walk(levels, noise, s, threshold, *, keep_eps=False, each=False, before=False, start=None, last=True) -> Tensor:
    """The chain, or what a mistake makes of it."""
    predict, (alphas, sigmas) = _predict(), levels
    x = (float(sigmas[0]) if start is None else start) * noise
    for i in range(len(alphas) - 1):
        a, b = float(alphas[i]), float(sigmas[i])
        told, untold = predict(x, a, b)
        estimate = lambda eps, x=x, a=a, b=b: (x - b * eps) / a
        eps = untold + s * (told - untold)
        if each:
            x0 = threshold(estimate(untold)) + s * (threshold(estimate(told)) - threshold(estimate(untold)))
        elif before:
            x0 = estimate(eps)
        else:
            x0 = threshold(estimate(eps))
        left = eps if keep_eps else (x - a * x0) / b
        x = float(alphas[i + 1]) * x0 + float(sigmas[i + 1]) * left
    return threshold(x) if before and last else x


def _misguided(levels, noise, s, threshold) -> dict[str, Callable]:
    return {
        "after the threshold the noise is another one: (x - alpha x_0) / sigma": (
            lambda: _walk(levels, noise, s, threshold, keep_eps=True)
        ),
        "threshold the guided estimate, not the two before they are mixed": (
            lambda: _walk(levels, noise, s, threshold, each=True)
        ),
        "the threshold belongs into every step; you used it at the end alone": (
            lambda: _walk(levels, noise, s, threshold, before=True)
        ),
        "no threshold was used": lambda: _walk(levels, noise, s, PLAIN),
        "told + s (told - untold) is the scale s + 1": lambda: _walk(levels, noise, s + 1, threshold),
        "this is not guided": lambda: _walk(levels, noise, 1.0, threshold),
        "this goes away from the condition": lambda: _walk(levels, noise, 1 - s, threshold),
        "the chain starts at the first sigma times the noise": lambda: _walk(levels, noise, s, threshold, start=1.0),
        "you clamped to [-1, 1]; `threshold` says what is done to the estimate": lambda: _walk(levels, noise, s, CLIP),
    }


def _expect_drawn(answer: Callable, levels, noise: Tensor, s: float, threshold: Callable, say: str) -> None:
    right = _walk(levels, noise, s, threshold)
    got = answer(_predict(), *levels, noise, s, taking("x0", threshold))
    expect(got, right, say, _misguided(levels, noise, s, threshold))


@case("ex-12-draw", "one-step")
def _(answer, rng):
    _expect_drawn(answer, _levels(1), normal(rng, 4, 3), 3.0, PLAIN, "one step, nothing clipped: the guided estimate")


@case("ex-12-draw", "guided-and-clipped")
def _(answer, rng):
    for s in (3.0, 8.0):
        _expect_drawn(answer, _levels(), normal(rng, 5, 3), s, CLIP, f"five steps at s = {s:g}, clipped to [-1, 1]")


@case("ex-12-draw", "other-thresholds")
def _(answer, rng):
    halved = lambda x0: x0 / (1 + x0.abs())
    _expect_drawn(answer, _levels(), normal(rng, 3, 3), 5.0, halved, "a threshold may be any function")
    _expect_drawn(answer, _levels(), normal(rng, 3, 3), 0.5, PLAIN, "nothing clipped, s = 0.5")


@case("ex-12-draw", "other-levels")
def _(answer, rng):
    for levels in (_levels(3, 0.8), _levels(7)):
        say = f"levels with alpha^2 + sigma^2 = {float(levels[0][0] ** 2 + levels[1][0] ** 2):.2f}"
        _expect_drawn(answer, levels, normal(rng, 2, 3), 4.0, CLIP, say)


@case("ex-12-draw", "asked-as-often-as-there-are-steps")
def _(answer, rng):
    asked, predict, levels = [], _predict(), _levels(6)

    def counting(x, alpha, sigma):
        asked.append(len(x))
        return predict(x, alpha, sigma)

    answer(taking("x alpha sigma", counting), *levels, normal(rng, 2, 3), 3.0, taking("x0", CLIP))
    assert len(asked) <= 6, f"predict was asked {len(asked)} times in 6 steps"


# -- ex-12-worth ------------------------------------------------------------------------------------------------------


def _tables(rng: Generator, n: int = 5, m: int = 3, k: int = 4) -> tuple[Tensor, Tensor]:
    joint = uniform(rng, 0.1, 1, n, m) ** 2
    channel = uniform(rng, 0.05, 1, n, k) ** 2
    return joint / joint.sum(), channel / channel.sum(1, keepdim=True)


exercise(
    "ex-12-worth",
    name="worth_of_text",
    lesson=LESSON,
    form=call(number(), lambda rng: dict(zip(("joint", "channel"), _tables(rng), strict=True))),
)


def _information(p: Tensor) -> float:
    p = p / p.sum()
    return float(torch.xlogy(p, p).sum() - torch.xlogy(p, p.sum(0) * p.sum(1, keepdim=True)).sum())


def _worth(joint: Tensor, channel: Tensor) -> float:
    """Mean over z of the mutual information of x and c, given z."""
    p, total = joint.double() / joint.double().sum(), 0.0
    for column in channel.double().T:
        at_z = p * column[:, None]
        mass = float(at_z.sum())
        total += mass * _information(at_z) if mass > 0 else 0.0
    return total


def _expect_worth(answer: Callable, joint: Tensor, channel: Tensor, say: str) -> None:
    right = _worth(joint, channel)
    p, c = joint.double() / joint.double().sum(), channel.double()
    seen = p.sum(1, keepdim=True) * c
    wrong = {
        "this is I(x; c), all that the caption says": _information(p),
        "this is I(z; c), what the small picture says of the caption": _information(c.T @ p),
        "this is I(x; z); the information of the caption is asked for": _information(seen),
        "take I(z; c) away from I(x; c), not I(x; z)": _information(p) - _information(seen),
        "this is in bits; nats are asked for": right / math.log(2),
        "the sign is wrong: information is not negative": -right,
        "the table of z and c sums over x: channel.T @ joint": lambda: _information(p) - _information(seen.T @ p),
    }
    expect(answer(joint, channel), right, say, wrong, rtol=1e-5, atol=1e-7)


@case("ex-12-worth", "what-is-left-to-the-text")
def _(answer, rng):
    for _ in range(2):
        _expect_worth(answer, *_tables(rng), "the caption is worth {right} nats, not {got}")


@case("ex-12-worth", "blind-and-sharp")
def _(answer, rng):
    joint, _ = _tables(rng)
    blind = torch.full((5, 4), 0.25, dtype=torch.float64)
    _expect_worth(answer, joint, blind, "where z tells nothing the caption is worth all of I(x; c)")
    sharp = torch.eye(5, dtype=torch.float64)
    expect(answer(joint, sharp), 0.0, "where z tells x the caption is worth nothing", {
        "this is I(x; c), all that the caption says": _information(joint),
    }, atol=1e-7)  # fmt: skip


@case("ex-12-worth", "counts-and-zeros")
def _(answer, rng):
    counts = torch.tensor([[3.0, 0, 1], [0, 2, 0], [4, 0, 0], [0, 1, 5]])
    channel = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.25, 0.75]])
    _expect_worth(answer, counts, channel, "of counts, with zeros in both tables: {right} nats, not {got}")
    never = torch.cat([channel, torch.zeros(4, 1)], 1)
    _expect_worth(answer, counts, never, "a z that never occurs contributes nothing")


# -- ex-12-scales -----------------------------------------------------------------------------------------------------

STEPS, AT_MOST, AT_LEAST, RANGE = 20, 0.20, 0.90, 1.3
CORNERS = torch.tensor([[a, b] for a in (-1.0, 1.0) for b in (-1.0, -1 / 3, 1 / 3, 1.0)], dtype=torch.float64)
OVERLAPPING = GaussianMixtureDenoiser(CORNERS, 0.01, labels=[0, 0, 0, 1, 0, 1, 1, 1])

exercise("ex-12-scales", name="scales", lesson=LESSON, form=listed(number(), STEPS))


def followed(scales: list[float], count: int = 3000, seed: int = 12) -> tuple[float, float]:
    """Share of numbers of guided estimates that are far out of range, and of chains that end at the last corner."""
    angles = [math.pi / 2 * (1 - i / STEPS) for i in range(1, STEPS)]
    chain = [
        NoiseLevel(0.0, 1.0, 0.0),
        *(NoiseLevel(math.cos(a), math.sin(a), float(i + 1)) for i, a in enumerate(angles)),
    ]
    out = []

    def guided(x, level):
        told, untold = OVERLAPPING(x, level, 1).x0, OVERLAPPING(x, level).x0
        x0 = untold + scales[int(level.time)] * (told - untold)
        out.append((x0.abs() > RANGE).double().mean().item())
        return Prediction(x, level, x0, "x0")

    noise = randn((count, 2), torch.Generator().manual_seed(seed), torch.float64)
    end = sample(ddim(), guided, [*chain, DATA], noise)
    near = torch.cdist(end, CORNERS).argmin(1)
    return sum(out) / len(out), (near == len(CORNERS) - 1).double().mean().item()


@case("ex-12-scales", "scales-of-at-least-one", points=0)
def _(answer):
    assert all(math.isfinite(s) for s in answer), "scales are finite numbers"
    low = min(answer)
    assert low >= 1, f"the scales are at least 1; the smallest here is {low:g}"


@case("ex-12-scales", "strong", points=1)
def _(answer):
    _, reached = followed(answer)
    if max(answer) == 1:
        raise Mistake("this is not guided at all")
    say = f"{reached:.0%} of the chains end nearest to (1, 1); {AT_LEAST:.0%} are asked for"
    assert reached >= AT_LEAST, say


@case("ex-12-scales", "in-range", points=2)
def _(answer):
    outside, _ = followed(answer)
    if max(answer) - min(answer) < 1e-9:
        raise Mistake(f"a constant scale: {outside:.0%} of the numbers are outside; steps may have scales of their own")
    say = f"{outside:.0%} of the numbers of the estimates are beyond {RANGE:g}; {AT_MOST:.0%} are allowed"
    assert outside <= AT_MOST, say
