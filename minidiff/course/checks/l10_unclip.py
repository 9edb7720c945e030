"""Checks of lesson 10: what captions say beyond embeddings, kept draws, lengths and levels, priors, principal codes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from minidiff.course.comparing import expect, normal, uniform
from minidiff.course.exercises import case, exercise
from minidiff.course.forms import call, integer, number, several, taking, tensor
from minidiff.course.outcomes import Mistake
from minidiff.data.render import render
from minidiff.data.scenes import sample_scenes
from minidiff.exact import GaussianDenoiser
from minidiff.schedule import NoiseLevel, cosine_schedule
from minidiff.store import load

LESSON = "10_unclip"

# -- ex-10-left -------------------------------------------------------------------------------------------------------


def _pairs(rng: Generator, n: int = 6, m: int = 4) -> Tensor:
    """A joint table without zeros, normalised."""
    table = uniform(rng, 0.1, 1, n, m) ** 2
    return table / table.sum()


exercise(
    "ex-10-left",
    name="caption_left",
    lesson=LESSON,
    form=call(number(), lambda rng: {"joint": _pairs(rng), "codes": torch.tensor([0, 1, 1, 2, 0, 2])}),
)


def _information(joint: Tensor) -> float:
    p = joint / joint.sum()
    return float(torch.xlogy(p, p).sum() - torch.xlogy(p, p.sum(0) * p.sum(1, keepdim=True)).sum())


def _merged(joint: Tensor, codes: Tensor, mean: bool = False) -> Tensor:
    rows = [joint[codes == code].mean(0) if mean else joint[codes == code].sum(0) for code in codes.unique()]
    return torch.stack(rows)


def _left(joint: Tensor, codes: Tensor) -> float:
    """Mean divergence, over pairs, of what the picture says of the caption from what its code says."""
    p = joint.double() / joint.double().sum()
    total = 0.0
    for i, code in enumerate(codes.tolist()):
        alike = p[codes == code].sum(0)
        own, among = p[i] / p[i].sum(), alike / alike.sum()
        total += float(p[i].sum() * torch.xlogy(own, own / among.clamp(min=1e-300)).sum())
    return total


def _misread(joint: Tensor, codes: Tensor) -> dict:
    p = joint.double() / joint.double().sum()
    entropy = lambda q: float(-torch.xlogy(q, q).sum())
    coded = _merged(p, codes)
    return {
        "this is I(z; c), what the embedding says; what is left is the rest": _information(coded),
        "this is I(x; c), all that the caption says; I(z; c) is to be taken away": _information(p),
        "you averaged the rows of equal code; probabilities add": _information(p)
        - _information(_merged(p, codes, True)),
        "this is the entropy of x given z; how much of it the caption tells is asked": (
            entropy(p.sum(1)) - entropy(coded.sum(1))
        ),
        "this is in bits; nats are asked for": _left(joint, codes) / math.log(2),
        "the sign is wrong: more is known with the picture than with its embedding": -_left(joint, codes),
        "the table was not normalised: its sum is not 1": lambda: _unnormalised(joint.double(), codes),
    }


def _unnormalised(joint: Tensor, codes: Tensor) -> float:
    entropy = lambda q: float(-torch.xlogy(q, q).sum())
    information = lambda q: entropy(q.sum(0)) + entropy(q.sum(1)) - entropy(q)
    return information(joint) - information(_merged(joint, codes))


def _expect_left(answer: Callable, joint: Tensor, codes: Tensor, say: str) -> None:
    expect(answer(joint, codes), _left(joint, codes), say, _misread(joint, codes), rtol=1e-5, atol=1e-7)


@case("ex-10-left", "what-is-left")
def _(answer, rng):
    for codes in ([0, 1, 1, 2, 1, 2], [0, 0, 0, 1, 1, 1]):
        say = f"with the codes {codes} {{right}} nats are left, not {{got}}"
        _expect_left(answer, _pairs(rng), torch.tensor(codes), say)


@case("ex-10-left", "counts-and-pairs-that-never-occur")
def _(answer, rng):
    counts = torch.randint(1, 9, (5, 3), generator=rng).double()
    codes = torch.tensor([0, 1, 1, 0, 1])
    _expect_left(answer, counts, codes, "of counts {right} nats are left, not {got}")
    counts = torch.tensor([[3.0, 0, 1], [0, 2, 0], [4, 0, 0], [0, 1, 5]])
    _expect_left(answer, counts, torch.tensor([0, 0, 1, 1]), "pairs that never occur contribute nothing")


@case("ex-10-left", "everything-and-nothing-kept")
def _(answer, rng):
    joint = _pairs(rng)
    say = "an encoder that tells all pictures apart leaves nothing"
    expect(answer(joint, torch.arange(6)), 0.0, say, {"this is I(x; c)": _information(joint)}, atol=1e-7)
    _expect_left(answer, joint, torch.zeros(6, dtype=torch.long), "an encoder of one code leaves all of I(x; c)")
    twice = torch.cat([0.3 * joint, 0.7 * joint])
    say = "where the caption does not care about what is forgotten, nothing is left"
    expect(answer(twice, torch.arange(12) % 6), 0.0, say, atol=1e-7)


@case("ex-10-left", "any-codes")
def _(answer, rng):
    joint = _pairs(rng)
    for codes in ([7, -3, 7, 100, -3, 100], [7, 1, 7, 13, 1, 13]):
        _expect_left(answer, joint, torch.tensor(codes), f"codes are any integers, as {codes}")


# -- ex-10-best -------------------------------------------------------------------------------------------------------


def _items(rng: Generator, n: int = 6, ties: bool = False) -> tuple[Tensor, Tensor]:
    p = uniform(rng, 0.2, 1, n)
    merit = torch.randint(0, 3, (n,), generator=rng).double() if ties else normal(rng, n)
    return p / p.sum(), merit


exercise(
    "ex-10-best",
    name="kept",
    lesson=LESSON,
    form=call(tensor("p"), lambda rng: dict(zip(("p", "merit"), _items(rng), strict=True)) | {"n": 2}),
)


def _kept(p: Tensor, merit: Tensor, n: int) -> Tensor:
    """By all runs of n draws."""
    law = torch.zeros(len(p), dtype=torch.float64)
    for run in itertools.product(range(len(p)), repeat=n):
        first = max(run, key=lambda i: merit[i])  # max keeps the first of equal ones
        law[first] += p[list(run)].prod()
    return law


def _miskept(p: Tensor, merit: Tensor, n: int) -> dict:
    upto = (p * (merit <= merit[:, None])).sum(1)
    below = (p * (merit < merit[:, None])).sum(1)
    scaled = lambda q: q / q.sum()
    return {
        "this is the density's formula, n F^(n-1) p; items have mass, and F jumps at them": n * upto ** (n - 1) * p,
        "this is the density's formula with what lies strictly below; items have mass": n * below ** (n - 1) * p,
        "this is n F^(n-1) p, normalised afterwards; items have mass, and F jumps at them": scaled(upto ** (n - 1) * p),
        "this is the better of two, whatever n": lambda: _kept(p, merit, 2),
        "this keeps the worst": lambda: _kept(p, -merit, n),
        "this is the law of the best merit, of all items that have it together; they share it": upto**n - below**n,
        "items of one merit share by their probability, not equally": (upto**n - below**n)
        / (merit == merit[:, None]).sum(1),
        "this is a tilt by the merit itself; only its rank counts": scaled(p * merit.exp()),
        "this is the law of a single draw": p,
    }


@case("ex-10-best", "against-all-pairs")
def _(answer, rng):
    for _ in range(2):
        p, merit = _items(rng)
        say = "the law differs from what all pairs of draws give"
        expect(answer(p, merit, 2), _kept(p, merit, 2), say, _miskept(p, merit, 2), rtol=1e-5)


@case("ex-10-best", "ties")
def _(answer, rng):
    for merit in ([1.0, 0, 1, 2, 0, 1], [2.0, 2, 2, 2, 2, 2]):
        p, merit = _items(rng)[0], torch.tensor(merit).double()
        say = f"with merits {merit.tolist()} the law differs from what all pairs give"
        expect(answer(p, merit, 2), _kept(p, merit, 2), say, _miskept(p, merit, 2), rtol=1e-5)


@case("ex-10-best", "more-draws-and-one")
def _(answer, rng):
    for n in (1, 3, 4):
        for ties in (False, True):
            p, merit = _items(rng, 5, ties)
            say = f"with n = {n} the law differs from what all runs of {n} draws give"
            expect(answer(p, merit, n), _kept(p, merit, n), say, _miskept(p, merit, n), rtol=1e-5)


@case("ex-10-best", "one-sure-item")
def _(answer, rng):
    p, merit = torch.tensor([0.0, 1.0, 0.0]).double(), normal(rng, 3)
    expect(answer(p, merit, 2), p, "items that are never drawn are never kept")


# -- ex-10-scale ------------------------------------------------------------------------------------------------------


def _levels(rng: Generator) -> tuple[Tensor, Tensor]:
    sigma = uniform(rng, 0.1, 0.95, 4)
    return (1 - sigma**2).sqrt(), sigma


exercise(
    "ex-10-scale",
    name="same_level",
    lesson=LESSON,
    form=call(
        several(alpha=tensor("alpha"), sigma=tensor("sigma")),
        lambda rng: dict(zip(("alpha", "sigma"), _levels(rng), strict=True)) | {"length": 3.0},
    ),
)


def _by_angle(alpha: Tensor, sigma: Tensor, length: float) -> tuple[Tensor, Tensor]:
    angle = torch.atan2(sigma, length * alpha)
    return angle.cos(), angle.sin()


def _mislevelled(alpha: Tensor, sigma: Tensor, length: float) -> dict:
    width = (alpha**2 * length**2 + sigma**2).sqrt()
    return {
        "the length multiplies the embedding, not the noise": _by_angle(alpha, sigma, 1 / length),
        "the variance of the signal grows with the square of the length": _by_angle(alpha, sigma, length**0.5),
        "the length is squared once too often": _by_angle(alpha, sigma, length**2),
        "the level must preserve variance: divide both by the same number": (alpha * length, sigma),
        "the noise of an embedding that is divided by the length; it must still preserve variance": (
            alpha,
            sigma / length,
        ),
        "this is the factor's square: divide by its root": (alpha * length / width**2, sigma / width**2),
        "these are the squares": tuple(v**2 for v in _by_angle(alpha, sigma, length)),
        "the same level: longer embeddings have less noise, relative to them": (alpha, sigma),
        "first alpha, then sigma": _by_angle(alpha, sigma, length)[::-1],
    }


@case("ex-10-scale", "same-ratio")
def _(answer, rng):
    for length in (17.2, 0.125, uniform(rng, 2, 5)):
        given = (*_levels(rng), length)
        say = f"embeddings times {length:.4g} get another level"
        expect(tuple(answer(*given)), _by_angle(*given), say, _mislevelled(*given))


@case("ex-10-scale", "unit-length-changes-nothing")
def _(answer, rng):
    given = _levels(rng)
    expect(tuple(answer(*given, 1.0)), given, "at length 1 the level stays as it is")


@case("ex-10-scale", "both-ends")
def _(answer, rng):
    ends = torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 1.0]).double()
    expect(tuple(answer(*ends, 17.2)), ends, "clean data stay clean, and pure noise stays pure noise")


@case("ex-10-scale", "other-shapes")
def _(answer, rng):
    sigma = uniform(rng, 0.1, 0.9, 2, 3)
    given = (1 - sigma**2).sqrt(), sigma, uniform(rng, 2, 9)
    expect(tuple(answer(*given)), _by_angle(*given), "levels may have any shape, as (2, 3)", rtol=1e-5)


# -- ex-10-prior ------------------------------------------------------------------------------------------------------

WIDE, STEPS = 3, 6


@cache
def _chain(steps: int = STEPS) -> tuple[Tensor, Tensor]:
    levels = cosine_schedule().levels(steps)
    return tuple(torch.tensor([getattr(level, name) for level in levels]).double() for name in ("alpha", "sigma"))


def _predictor() -> Callable:
    """The exact denoiser of a Gaussian with a mean, by the statement's names."""
    world = GaussianDenoiser(torch.tensor([0.5, -1.0, 0.3]), torch.tensor([0.2, 0.5, 1.0]))
    return taking("z alpha sigma", lambda z, a, s: world(z, NoiseLevel(float(a), float(s), 0.0)).x0)


def _starts(rng: Generator, candidates: int = 2, batch: int = 9) -> tuple[Tensor, Tensor]:
    return normal(rng, candidates, batch, WIDE), normal(rng, batch, WIDE)


exercise(
    "ex-10-prior",
    name="draw_embeddings",
    lesson=LESSON,
    form=call(
        tensor("text"),
        lambda rng: dict(
            zip(("predict", "alphas", "sigmas", "noise", "text"), (_predictor(), *_chain(), *_starts(rng)), strict=True)
        ),
    ),
)


def _ran(noise: Tensor, steps: int = STEPS, start: float | None = None, drop: float = 0.0) -> Tensor:
    """All candidates at the end of their chains (K, B, E), each by itself, by the map of a Gaussian."""
    predict, (alphas, sigmas) = _predictor(), _chain(steps)
    out = torch.empty_like(noise)
    for k, starts in enumerate(noise):
        z = (float(sigmas[0]) if start is None else start) * starts
        for i in range(steps):
            clean = predict(z, alphas[i], sigmas[i])
            eps = (z - alphas[i] * clean) / sigmas[i]
            z = alphas[i + 1] * clean + (1 - drop) * sigmas[i + 1] * eps
        out[k] = z
    return out


def _chosen(drawn: Tensor, merit: Tensor) -> Tensor:
    return torch.stack([drawn[int(merit[:, b].argmax()), b] for b in range(drawn.shape[1])])


def _misdrawn(noise: Tensor, text: Tensor) -> dict:
    drawn = _ran(noise)
    cosine = F.cosine_similarity(drawn, text[None], dim=2)
    whole = int(cosine.mean(1).argmax())
    return {
        "you kept the larger product; the cosine is asked for": _chosen(drawn, (drawn * text).sum(2)),
        "you kept the smaller cosine": _chosen(drawn, -cosine),
        "every caption keeps its own best; you chose one candidate for the batch": drawn[whole],
        "this is the first candidate, whatever its cosine": drawn[0],
        "this is the last candidate, whatever its cosine": drawn[-1],
        "candidates are not averaged; one of them is kept": drawn.mean(0),
        "candidates were compared before their chains ran": (
            _chosen(drawn, F.cosine_similarity(noise, text[None], dim=2))
        ),
        "the kept embedding keeps its length": F.normalize(_chosen(drawn, cosine), dim=1),
        "each step was without its noise, so only the last answer counts": lambda: _best(_ran(noise, drop=1.0), text),
    }


def _best(drawn: Tensor, text: Tensor) -> Tensor:
    return _chosen(drawn, F.cosine_similarity(drawn, text[None], dim=2))


def _expect_drawn(answer: Callable, noise: Tensor, text: Tensor, say: str, steps: int = STEPS) -> None:
    wrong = _misdrawn(noise, text) if steps == STEPS else {}
    right = _best(_ran(noise, steps), text)
    expect(answer(_predictor(), *_chain(steps), noise, text), right, say, wrong, rtol=1e-5, atol=1e-6)


@case("ex-10-prior", "one-candidate")
def _(answer, rng):
    _expect_drawn(answer, *_starts(rng, 1), "one candidate for each caption: a chain that is not DDIM's")


@case("ex-10-prior", "the-better-of-two")
def _(answer, rng):
    for _ in range(3):
        _expect_drawn(answer, *_starts(rng), "of two candidates the one with the larger cosine to its text is kept")


@case("ex-10-prior", "more-candidates-other-lengths")
def _(answer, rng):
    noise, text = _starts(rng, 5)
    _expect_drawn(answer, noise, 7 * text, "with five candidates, and texts of another length")
    _expect_drawn(answer, *_starts(rng, 3, 1), "with a batch of one")
    _expect_drawn(answer, *_starts(rng, 2, 2), "with two captions and two candidates")


@case("ex-10-prior", "other-chains")
def _(answer, rng):
    for steps in (1, 15):
        _expect_drawn(answer, *_starts(rng), f"with a chain of {steps} steps", steps)
    alphas, sigmas = torch.tensor([0.6, 0.9, 1.0]).double(), torch.tensor([0.8, 0.19**0.5, 0.0]).double()
    noise, text = _starts(rng, 1)
    predict, z = _predictor(), 0.8 * noise[0]
    for i in range(2):
        clean = predict(z, alphas[i], sigmas[i])
        z = alphas[i + 1] * clean + sigmas[i + 1] * (z - alphas[i] * clean) / sigmas[i]
    say = "a chain that begins at sigma = 0.8 starts from 0.8 times the noise"
    expect(answer(predict, alphas, sigmas, noise, text), z, say, rtol=1e-5, atol=1e-6)


@case("ex-10-prior", "asked-as-often-as-there-are-steps")
def _(answer, rng):
    asked, predict = [], _predictor()

    def counting(z, alpha, sigma):
        asked.append(len(z))
        return predict(z, alpha, sigma)

    answer(taking("z alpha sigma", counting), *_chain(), *_starts(rng))
    say = f"predict was asked {len(asked)} times in {STEPS} steps; all candidates are one batch"
    assert len(asked) <= STEPS, say


# -- ex-10-codes ------------------------------------------------------------------------------------------------------

# what is found in float32: directions of variances that differ by a third, and sums of forty numbers
DIRECTION, SUM = 1e-4, 1e-5


def _embeddings(rng: Generator, n: int = 40, width: int = 5) -> Tensor:
    return (
        normal(rng, n, width) * torch.arange(1, width + 1).double() @ torch.linalg.qr(normal(rng, width, width))[0] + 2
    )


exercise(
    "ex-10-codes",
    name="principal",
    lesson=LESSON,
    form=call(
        several(
            mean=tensor(lambda given: (given["z"].shape[1],)),
            directions=tensor(lambda given: (given["z"].shape[1], given["k"])),
            lost=number(),
        ),
        lambda rng: {"z": _embeddings(rng), "k": 2},
    ),
)


def _parts(z: Tensor) -> tuple[Tensor, Tensor]:
    """Principal directions as rows, and shares of the variance, by singular values."""
    z = z.double()
    _, singular, rows = torch.linalg.svd(z - z.mean(0), full_matrices=False)
    return rows, singular.square() / singular.square().sum()


@case("ex-10-codes", "mean-and-orthonormal")
def _(answer, rng):
    z = _embeddings(rng)
    mean, directions, _ = answer(z, 3)
    expect(mean, z.mean(0), "the mean is that of the embeddings, number by number", rtol=1e-5, atol=SUM)
    say = "the directions must be orthonormal columns"
    expect(directions.T @ directions, torch.eye(3), say, atol=SUM)


@case("ex-10-codes", "the-directions")
def _(answer, rng):
    z = _embeddings(rng)
    for k in (1, 2, 4):
        _, directions, _ = answer(z, k)
        rows, _ = _parts(z)
        raw = torch.linalg.svd(z, full_matrices=False)[2]
        projection = lambda rows: rows.T @ rows
        mistakes = {
            "these are the directions of the least variance: eigh sorts in rising order": projection(rows[-k:]),
            "the mean was not taken away": projection(raw[:k]),
        }
        say = f"these are not the {k} directions of the largest variance"
        expect(directions @ directions.T, projection(rows[:k]), say, mistakes, atol=DIRECTION)
        turned = (rows[:k] @ directions).abs()
        expect(turned, torch.eye(k), "the directions must come by falling variance", atol=DIRECTION)


@case("ex-10-codes", "the-share-that-is-lost")
def _(answer, rng):
    z = _embeddings(rng)
    _, share = _parts(z)
    for k in (1, 3, 5):
        right = float(share[k:].sum())
        roots = share.sqrt()
        raw = torch.linalg.svdvals(z).square()
        mistakes = {
            "this is the share that is kept": 1 - right,
            "these are shares of deviations; variances are their squares": float(roots[k:].sum() / roots.sum()),
            "this is the variance itself, not its share": float(right * (z - z.mean(0)).square().sum() / len(z)),
            "the mean was not taken away": float(raw[k:].sum() / raw.sum()),
        }
        say = f"with {k} of 5 directions the share {{right}} is lost, not {{got}}"
        expect(answer(z, k)[2], right, say, mistakes, rtol=1e-4, atol=SUM)


@case("ex-10-codes", "other-sizes")
def _(answer, rng):
    for n, width, k in ((7, 2, 1), (30, 8, 8), (9, 1, 1)):
        z = _embeddings(rng, n, width)
        mean, directions, lost = answer(z, k)
        rows, share = _parts(z)
        say = f"wrong for {n} embeddings of {width} numbers, {k} kept"
        expect(mean, z.mean(0), say, rtol=1e-5, atol=SUM)
        expect(directions @ directions.T, rows[:k].T @ rows[:k], say, atol=DIRECTION)
        expect(lost, float(share[k:].sum()), say, rtol=1e-4, atol=SUM)


# -- ex-10-directions -------------------------------------------------------------------------------------------------

exercise("ex-10-directions", name="enough_directions", lesson=LESSON, form=integer())
KEPT = 0.99


@cache
def embeddings(n: int = 6000, seed: int = 1) -> Tensor:
    """(n, 64) embeddings of pictures of two objects by scenes-clip-strong, as in the lesson."""
    clip = load("scenes-clip-strong")
    pictures = render(sample_scenes(n, torch.Generator().manual_seed(seed), 2), 16)
    with torch.no_grad():
        return torch.cat([clip.embed_images(part) for part in pictures.split(500)]).double()


def directions(kept: float = KEPT, power: float = 1.0, centred: bool = True) -> int:
    """How many principal directions keep that share of the variance, or of another power of it."""
    z = embeddings()
    z = z - z.mean(0) if centred else z
    share = torch.linalg.svdvals(z).square() ** power
    share = share.cumsum(0) / share.sum()
    return int((share < kept).sum()) + 1


@case("ex-10-directions", "a-number-of-directions", points=0)
def _(answer):
    assert 1 <= answer <= 64, f"the embeddings have 64 directions; {answer} is no number of some of them"


@case("ex-10-directions", "keeps-99-percent", points=2)
def _(answer):
    right = directions()
    wrong = {
        "this keeps 95 %": lambda: directions(0.95),
        "this keeps 90 %": lambda: directions(0.9),
        "these keep 99 % of the deviations' sum; variances are their squares": lambda: directions(power=0.5),
        "the mean was not taken away": lambda: directions(centred=False),
        "this is how many are lost; how many are kept is asked": 64 - right,
    }
    if abs(answer - right) > 1:
        for diagnosis, found in wrong.items():
            if answer == (found() if callable(found) else found):
                raise Mistake(diagnosis)
    z = embeddings()
    share = torch.linalg.svdvals(z - z.mean(0)).square()
    kept = float(share[:answer].sum() / share.sum())
    say = (
        f"{answer} directions keep {kept:.2%}; find the smallest number that keeps {KEPT:.0%} (one more or less counts)"
    )
    assert abs(answer - right) <= 1, say
