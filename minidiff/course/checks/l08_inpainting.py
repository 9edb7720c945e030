"""Checks of lesson 08: Gaussian conditionals, RePaint, where to go back, posterior weights, an inpainter's start."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import torch
from torch import Generator, Tensor

from minidiff.course.comparing import (
    PRESERVING,
    Pair,
    expect,
    exploding_pair,
    general_pair,
    normal,
    preserved,
    preserving_pair,
    uniform,
)
from minidiff.course.exercises import case, exercise
from minidiff.course.forms import call, integer, listed, number, several, taking, tensor
from minidiff.course.outcomes import Mistake
from minidiff.exact import EmpiricalDenoiser, GaussianDenoiser
from minidiff.process import beta, diffuse, posterior_mean, transition
from minidiff.schedule import DATA, NoiseLevel, cosine_schedule, vp_schedule

LESSON = "08_inpainting"

# -- ex-08-conditional ------------------------------------------------------------------------------------------------

Law = tuple[Tensor, Tensor, Tensor, Tensor]  # mean, covariance, which entries are known, their values


def _law(rng: Generator, *known: int) -> Law:
    """A correlated Gaussian with as many entries as ``known`` has, which is 1 where an entry is known."""
    root = normal(rng, len(known), len(known))
    covariance = root @ root.T / len(known) + 0.3 * torch.eye(len(known))
    return normal(rng, len(known)), covariance, torch.tensor(known).bool(), 1 + normal(rng, sum(known))


def _unknown(given: dict) -> int:
    return int((~given["known"]).sum())


exercise(
    "ex-08-conditional",
    name="conditional",
    lesson=LESSON,
    form=call(
        several(
            mean=tensor(lambda given: (_unknown(given),)),
            covariance=tensor(lambda given: (_unknown(given), _unknown(given))),
        ),
        lambda rng: dict(zip(("mean", "covariance", "known", "value"), _law(rng, 0, 1, 0, 0, 1), strict=True)),
    ),
)


def _by_precision(mean: Tensor, covariance: Tensor, known: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    precision = torch.linalg.inv(covariance)
    inner = torch.linalg.inv(precision[~known][:, ~known])
    return mean[~known] - inner @ precision[~known][:, known] @ (value - mean[known]), inner


def _misjudged(mean: Tensor, covariance: Tensor, known: Tensor, value: Tensor) -> tuple[dict, dict]:
    """Diagnosis -> what that mistake makes of the mean, and of the covariance."""
    own, across, inner = covariance[~known][:, ~known], covariance[~known][:, known], covariance[known][:, known]
    gain, apart = across @ inner.inverse(), value - mean[known]
    right = own - gain @ across.T
    means = {
        "this is the mean of the unknown entries alone; what is known moves it": mean[~known],
        "compare the known values with their mean: C_uk C_kk^-1 (k - mu_k)": mean[~known] + gain @ value,
        "C_kk^-1 is missing: the gain is C_uk C_kk^-1": mean[~known] + across @ apart,
        "known entries are correlated: C_kk^-1 is the inverse of the matrix, not of its diagonal": (
            mean[~known] + across / inner.diag() @ apart
        ),
        "mu_u is missing: the correction is added to it": gain @ apart,
        "the sign is wrong: where k is above its mean, a positive correlation raises the rest": (
            mean[~known] - gain @ apart
        ),
    }
    covariances = {
        "this is the covariance of the unknown entries alone; knowing the others lowers it": own,
        "knowing something makes the rest more certain: the second term is subtracted": own + gain @ across.T,
        "C_kk^-1 is missing: what is subtracted is C_uk C_kk^-1 C_ku": own - across @ across.T,
        "this is what the known entries explain; C_uu minus it stays unknown": gain @ across.T,
        "this is the precision; its inverse is the covariance": right.inverse(),
        "the unknown entries stay correlated; you kept the variances alone": right.diag().diag(),
        "known entries are correlated: C_kk^-1 is the inverse of the matrix, not of its diagonal": (
            own - across / inner.diag() @ across.T
        ),
    }
    return means, covariances


@case("ex-08-conditional", "two-pixels")
def _(answer, rng):
    for sign in (1, -1):
        rho, k = sign * uniform(rng, 0.4, 0.9), uniform(rng, 1, 2, 1)
        pair, known = torch.tensor([[1.0, rho], [rho, 1.0]]).double(), torch.tensor([False, True])
        law = torch.zeros(2).double(), pair, known, k
        means, covariances = _misjudged(*law)
        mean, covariance = answer(*law)
        named = {text: means[text] for text in list(means)[:1]} | {
            "the sign is wrong: where k is above its mean, a positive correlation raises the rest": -rho * k,
            "this is the known value itself; the unknown pixel follows it by the factor rho": k,
        }
        expect(mean, rho * k, "for two pixels of variance 1 the mean must be rho k", named)
        named = dict(list(covariances.items())[:2]) | {
            "this is the standard deviation; the variance was asked for": torch.tensor([[1 - rho**2]]).sqrt(),
            "this is what the known entries explain; C_uu minus it stays unknown": torch.tensor([[rho**2]]),
        }
        say = "for two pixels of variance 1 the variance must be 1 - rho^2"
        expect(covariance, torch.tensor([[1 - rho**2]]), say, named)


@case("ex-08-conditional", "mean-in-five-dimensions")
def _(answer, rng):
    law = _law(rng, 1, 0, 1, 0, 0)
    say = "not mu_u + C_uk C_kk^-1 (k - mu_k), where entries 0 and 2 of five are known"
    expect(answer(*law)[0], _by_precision(*law)[0], say, _misjudged(*law)[0])


@case("ex-08-conditional", "covariance-in-five-dimensions")
def _(answer, rng):
    law = _law(rng, 1, 0, 1, 0, 0)
    say = "not C_uu - C_uk C_kk^-1 C_ku, where entries 0 and 2 of five are known"
    expect(answer(*law)[1], _by_precision(*law)[1], say, _misjudged(*law)[1])


@case("ex-08-conditional", "other-entries")
def _(answer, rng):
    for known in ((0, 0, 1, 0), (1, 1, 0, 1, 1, 1), (0, 1, 1, 1, 0, 0, 1)):
        law = _law(rng, *known)
        say = f"wrong where `known` is {[bool(k) for k in known]}"
        expect(answer(*law), _by_precision(*law), say)
    law = _law(rng, 0, 1, 1, 0)
    got = answer(*(v.float() if v.is_floating_point() else v for v in law))
    expect(got, _by_precision(*law), "wrong for numbers in float32")


# -- ex-08-repaint ----------------------------------------------------------------------------------------------------


def _pictures(rng: Generator, batch: int = 3, shape: tuple[int, ...] = (1, 1, 4, 4)) -> dict[str, Tensor]:
    """A sample, an image, a mask that knows about half of it, and noise."""
    mask = torch.rand(shape, generator=rng, dtype=torch.float64).flatten()
    mask = (mask < mask.median()).double().view(shape)
    return {k: normal(rng, batch, 2, 4, 4) for k in ("x", "image", "eps")} | {"mask": mask}


def _pasting(rng: Generator, level: NoiseLevel, **kind) -> dict:
    p = _pictures(rng, **kind)
    return {"x": p["x"], "level": level, "image": p["image"], "mask": p["mask"], "eps": p["eps"]}


def _pasted(given: dict, known: Tensor | None = None) -> Tensor:
    """The right answer; known: what to paste, if not the image at the level."""
    level = given["level"]
    known = level.alpha * given["image"] + level.sigma * given["eps"] if known is None else known
    return torch.where(given["mask"] == 1, known, given["x"])


Step = Callable[[Tensor, NoiseLevel, NoiseLevel], Tensor]


def _stay(x: Tensor, t: NoiseLevel, r: NoiseLevel) -> Tensor:
    """A sampler that does nothing, so that what is done between its steps can be seen."""
    return x


def _painting(rng: Generator) -> dict:
    """A chain of three levels, to call an answer with."""
    given, levels = _pasting(rng, DATA), [*preserving_pair(rng), DATA]
    world = {"x": given["x"], "step": taking("x t r", _stay), "levels": levels, "image": given["image"]}
    return world | {"mask": given["mask"], "counts": [1, 2], "noise": lambda: given["eps"]}


exercise("ex-08-repaint", name="repaint", lesson=LESSON, form=call(tensor("x"), _painting))


def _pastes(answer: Callable) -> Callable[..., Tensor]:
    """What an answer pastes into a sample: the end of a chain of one step that changes nothing."""

    def pasted(x, level, image, mask, eps):
        before = NoiseLevel(0.5, 4.0, 9)
        return answer(x, taking("x t r", _stay), [before, level], image, mask, [1], lambda: eps)

    return pasted


def _leaps(answer: Callable) -> Callable[..., Tensor]:
    """How an answer goes back: the end of a step that is taken twice and changes nothing, where nothing is known."""

    def leapt(x, r, t, eps):
        nothing = torch.zeros(1, 1, *x.shape[2:], dtype=x.dtype)
        return answer(x, taking("x t r", _stay), [t, r], torch.zeros_like(x), nothing, [2], lambda: eps)

    return leapt


@case("ex-08-repaint", "one-is-known", points=0)
def _(answer, rng):
    pasted = _pastes(answer)
    given = _pasting(rng, general_pair(rng)[0])
    got, x, known = pasted(*given.values()), given["x"], given["mask"] == 1
    wrong = {
        "the mask is 1 where a pixel is known; you pasted where it is 0": torch.where(known, x, got),
        "you pasted everywhere; where the mask is 0 the sample stays": _pasted(given | {"mask": torch.ones(())}),
    }
    expect(got, torch.where(known, got, x), "where the mask is 0 the sample must stay as it is", wrong)
    unknown = ~known.expand_as(x)
    assert torch.equal(got[unknown], x[unknown]), "where the mask is 0 the sample must stay as it is, to the last bit"


@case("ex-08-repaint", "at-the-level", points=2)
def _(answer, rng):
    pasted = _pastes(answer)
    levels = general_pair(rng)[1], preserving_pair(rng)[0], exploding_pair(rng)[0], DATA
    for level in levels:
        given = _pasting(rng, level)
        alpha, sigma, image, eps = level.alpha, level.sigma, given["image"], given["eps"]
        wrong = {
            "nothing was pasted: this is the sample": given["x"],
            "the denoiser expects noisy pixels at this level; you pasted clean ones": _pasted(given, image),
            "the denoiser expects noisy pixels at this level; yours have shrunk, but have no noise": (
                _pasted(given, alpha * image)
            ),
            "alpha is missing: the signal has shrunk at this level": _pasted(given, image + sigma * eps),
            "sigma is missing: it is the standard deviation of the noise": _pasted(given, alpha * image + eps),
            "sigma is the standard deviation; you used the variance": _pasted(given, alpha * image + sigma**2 * eps),
            "alpha and sigma are swapped": _pasted(given, sigma * image + alpha * eps),
        }
        if alpha < 1:
            wrong[PRESERVING] = _pasted(given | {"level": preserved(level)})
        say = f"known pixels must be alpha image + sigma eps; they are not at alpha = {alpha:.3g}, sigma = {sigma:.3g}"
        expect(pasted(*given.values()), _pasted(given), say, wrong)


@case("ex-08-repaint", "nothing-leaks")
def _(answer, rng):
    pasted = _pastes(answer)
    for nothing in (math.nan, math.inf):
        given = _pasting(rng, general_pair(rng)[0])
        right, mask, level = _pasted(given), given["mask"], given["level"]
        image = torch.where(mask == 1, given["image"], nothing)
        given |= {"image": image}
        sums = mask * (level.alpha * image + level.sigma * given["eps"]) + (1 - mask) * given["x"]
        wrong = {"0 times NaN is NaN, and so is 0 times infinity: choose, do not multiply by the mask": sums}
        say = f"what the image holds where nothing is known, here {nothing}, must not matter"
        expect(pasted(*given.values()), right, say, wrong)


@case("ex-08-repaint", "mask-broadcasts")
def _(answer, rng):
    pasted = _pastes(answer)
    for batch, shape in ((3, (4, 4)), (3, (3, 1, 4, 4)), (3, (2, 4, 4)), (1, (1, 2, 4, 4)), (2, (2, 2, 4, 4))):
        given = _pasting(rng, general_pair(rng)[0], batch=batch, shape=shape)
        wrong = {}
        if shape[0] == batch > 1 and len(shape) == 4:
            wrong["each picture has its own mask; you took the first one's"] = _pasted(
                given | {"mask": given["mask"][:1]}
            )
        say = f"wrong for x of shape {tuple(given['x'].shape)} and a mask of shape {shape}"
        expect(pasted(*given.values()), _pasted(given), say, wrong)
    given = _pasting(rng, general_pair(rng)[0])
    single = {k: v.float() if isinstance(v, Tensor) else v for k, v in given.items()} | {"mask": given["mask"].long()}
    expect(pasted(*single.values()), _pasted(given), "wrong for pictures in float32 and a mask of integers")


# -- ex-08-repaint, a leap --------------------------------------------------------------------------------------------


def _up(pair: Pair) -> Pair:
    """The cleaner level first."""
    return pair[::-1]


def _leaping(rng: Generator, pair: Pair) -> dict:
    return {"x": normal(rng, 2, 3, 2, 2), "r": pair[0], "t": pair[1], "eps": normal(rng, 2, 3, 2, 2)}


def _root(r: NoiseLevel, t: NoiseLevel) -> float:
    """Standard deviation of the noise that a leap adds."""
    return math.sqrt(transition(r, t)[1])


@case("ex-08-repaint", "the-signal-shrinks")
def _(answer, rng):
    leapt = _leaps(answer)
    x, r, t, eps = _leaping(rng, _up(preserving_pair(rng))).values()
    wrong = {
        "x is no clean picture: it carries alpha_r already, so its factor is alpha_t / alpha_r": t.alpha * x,
        "upside down: the factor is alpha_t / alpha_r, less than one": r.alpha / t.alpha * x,
        "the signal has to shrink, too: from alpha_r to alpha_t": x,
        "this is the factor of a variance; x has the factor alpha_t / alpha_r": (t.alpha / r.alpha) ** 2 * x,
    }
    say = "without noise the sample is multiplied by alpha_t / alpha_r"
    expect(leapt(x, r, t, 0 * eps), t.alpha / r.alpha * x, say, wrong)


@case("ex-08-repaint", "the-noise-adds-up")
def _(answer, rng):
    leapt = _leaps(answer)
    x, r, t, eps = _leaping(rng, _up(preserving_pair(rng))).values()
    scale = t.alpha / r.alpha
    wrong = {
        "variances subtract, standard deviations do not; this adds too little noise": t.sigma - scale * r.sigma,
        "variances subtract, standard deviations do not, and those of x shrink with it": t.sigma - r.sigma,
        "x is noisy already; sigma_t on top of it is too much": t.sigma,
        "you used the variance where the standard deviation belongs": _root(r, t) ** 2,
        "the noise of x shrinks with it: alpha_t / alpha_r is missing": math.sqrt(t.sigma**2 - r.sigma**2),
        "a variance shrinks by the square of alpha_t / alpha_r": math.sqrt(t.sigma**2 - scale * r.sigma**2),
        "this is the noise of a draw backwards, from t to r": _root(r, t) * r.sigma / t.sigma,
        "the noise has to be scaled: eps is standard normal": 1.0,
    }
    say = "the variance of the noise must become sigma_t^2, of which (alpha_t / alpha_r)^2 sigma_r^2 is there already"
    expect(leapt(0 * x, r, t, eps), _root(r, t) * eps, say, {text: v * eps for text, v in wrong.items()})


@case("ex-08-repaint", "any-schedule")
def _(answer, rng):
    leapt = _leaps(answer)
    for r, t in (_up(general_pair(rng)), _up(exploding_pair(rng)), (DATA, general_pair(rng)[0])):
        x, _, _, eps = _leaping(rng, (r, t)).values()
        scale = t.alpha / r.alpha
        wrong = {PRESERVING: scale * x + math.sqrt(1 - scale**2) * eps}
        levels = f"alpha = {r.alpha:.3g} to {t.alpha:.3g} and from sigma = {r.sigma:.3g} to {t.sigma:.3g}"
        expect(leapt(x, r, t, eps), scale * x + _root(r, t) * eps, f"wrong from {levels}", wrong)


@case("ex-08-repaint", "two-leaps-are-one")
def _(answer, rng):
    leapt = _leaps(answer)
    low = vp_schedule().level(uniform(rng, 0.2, 0.3))
    for high in (vp_schedule().level(0.9), vp_schedule().level(0.335)):
        middle = vp_schedule().level(uniform(rng, 0.325, 0.33))
        x, again = normal(rng, 1, 2, 4, 4), normal(rng, 1, 2, 4, 4)
        eps = normal(rng, 1, 2, 4, 4)
        scale = high.alpha / middle.alpha
        together = (scale * _root(low, middle) * eps + _root(middle, high) * again) / _root(low, high)
        twice = leapt(leapt(x, low, middle, eps), middle, high, again)
        once = high.alpha / low.alpha * x + _root(low, high) * together
        say = f"two leaps must do what one does (sigma from {low.sigma:.3f} by {middle.sigma:.3f} to {high.sigma:.3f})"
        expect(twice, once, say)


# -- ex-08-repaint: the whole chain -----------------------------------------------------------------------------------


def _chain(rng: Generator, n: int) -> list[NoiseLevel]:
    """n + 1 levels from noise to data, which preserve no variance."""
    alphas = uniform(rng, 0.6, 0.9, n).cumprod(0).flip(0).tolist()
    return [NoiseLevel(a, uniform(rng, 0.9, 1.1) * 2.0 * (n - i) / n, n - i) for i, a in enumerate(alphas)] + [DATA]


def _watched(seen: list) -> Step:
    """A step that keeps what it was asked."""

    def step(x, t, r):
        seen.append((x, t.alpha, r.alpha))
        return 0.6 * x + 0.3 * x.flip(-1) + 0.1  # pixels hear of each other

    return taking("x t r", step)


def _in_turn(rng: Generator, *shape: int) -> Callable[[], Tensor]:
    return lambda: normal(rng, *shape)


def _walked(x, step, levels, image, mask, counts, noise, first: bool = True) -> Tensor:
    """The algorithm, or that of a mistake: without a paste into the noise that the chain begins with."""
    paste = lambda x, level: torch.where(mask == 1, level.alpha * image + level.sigma * noise(), x)
    x = paste(x, levels[0]) if first else x
    for (t, r), count in zip(pairwise(levels), counts, strict=True):
        for k in range(count):
            if k:
                scale, added = transition(r, t)
                x = scale * x + math.sqrt(added) * noise()
            x = paste(step(x, t, r), r)
    return x


def _paints(answer: Callable, rng: Generator, counts: list[int], say: str) -> None:
    given, levels = _pasting(rng, DATA), _chain(rng, len(counts))
    seed = int(torch.randint(10**6, (1,), generator=rng))
    coins = lambda: _in_turn(Generator().manual_seed(seed), *given["x"].shape)
    args = (levels, given["image"], given["mask"], counts)
    seen: list = []
    got = answer(given["x"], _watched(seen), *args, coins())
    run = lambda counts=counts, **kind: _walked(given["x"], _watched([]), *args[:3], counts, coins(), **kind)
    asked = [(t, r) for _, t, r in seen]
    path = [(t.alpha, r.alpha) for (t, r), count in zip(pairwise(levels), counts, strict=True) for _ in range(count)]
    wrong = {
        "the noise that the chain begins with has known pixels, too: paste before the first step": lambda: run(
            first=False
        ),
        "the numbers of steps are in the wrong order: counts[0] belongs to the noisiest": lambda: run(counts[::-1]),
        "every step is repeated as often as the first": lambda: run(counts[:1] * len(counts)),
    }
    expect(got, run(), say, wrong)
    assert asked == path, f"the steps of counts = {counts} were not taken in their order"


@case("ex-08-repaint", "once-each")
def _(answer, rng):
    for n in (1, 3):
        _paints(answer, rng, [1] * n, f"wrong for {n} steps without repetition")


@case("ex-08-repaint", "each-its-number")
def _(answer, rng):
    for counts in ([1, 3, 2], [4, 1], [2, 2, 1, 3]):
        _paints(answer, rng, counts, f"wrong where steps are taken {counts} times")


# -- ex-08-budget -----------------------------------------------------------------------------------------------------

exercise("ex-08-budget", name="counts_of_steps", lesson=LESSON, form=listed(integer(), 25))
CALLS, RHO, NATS = 100, 0.9, 0.002  # four times each: 0.0185 nats; the best found: 0.0008


@cache
def _moves(n: int = 25) -> list[tuple[Tensor, float, tuple[float, float], NoiseLevel]]:
    """Of every step the matrix, the variance it adds, the leap back (factor, variance), and where it ends."""
    levels, probes = cosine_schedule(most=30.0).levels(n), torch.eye(2, dtype=torch.float64)
    world = GaussianDenoiser(torch.zeros(2), torch.tensor([[1.0, RHO], [RHO, 1.0]]))
    step = lambda t, r: posterior_mean(probes, world(probes, t).x0, t, r).T
    return [(step(t, r), beta(t, r) if r.sigma else 0.0, transition(r, t), r) for t, r in pairwise(levels)]


def divergence_after(counts: list[int]) -> float:
    """Nats between what pasting leaves of the unknown pixel and the right law, mean over known ones."""
    eye = torch.eye(2, dtype=torch.float64)
    mean, spread = torch.zeros(2, dtype=torch.float64), eye
    for (matrix, added, (scale, more), r), count in zip(_moves(), counts, strict=True):
        for k in range(count):
            if k:
                mean, spread = scale * mean, scale**2 * spread + more * eye
            mean, spread = matrix @ mean, matrix @ spread @ matrix.T + added * eye
            mean = torch.stack([mean[0], torch.tensor(r.alpha).double()])
            spread = torch.diag(torch.stack([spread[0, 0], torch.tensor(r.sigma**2).double()]))
    ratio = spread[0, 0] / (1 - RHO**2)
    return 0.5 * (ratio - 1 - ratio.log() + (mean[0] - RHO) ** 2 / (1 - RHO**2)).item()


@case("ex-08-budget", "a-hundred-calls", points=0)
def _(answer):
    assert min(answer) >= 1, "every step is taken at least once"
    assert sum(answer) <= CALLS, f"these are {sum(answer)} calls; there are {CALLS}"


@case("ex-08-budget", "near-the-right-law", points=3)
def _(answer):
    nats = divergence_after(answer)
    if max(answer) == min(answer):
        raise Mistake(f"every step {answer[0]} times: {nats:.4f} nats; some steps are worth more than others")
    assert nats <= NATS, f"{nats:.4f} nats from the right law; {NATS} are allowed"


# -- ex-08-posterior --------------------------------------------------------------------------------------------------


def _halves(rng: Generator, count: int = 30) -> dict[str, Tensor]:
    """Pictures, another one, and a mask that knows its left half."""
    mask = torch.zeros(2, 4, 4, dtype=torch.float64)
    mask[..., :2] = 1.0
    return {"images": normal(rng, count, 2, 4, 4), "picture": normal(rng, 2, 4, 4), "mask": mask}


exercise(
    "ex-08-posterior",
    name="explain",
    lesson=LESSON,
    form=call(tensor(lambda given: (len(given["images"]),)), lambda rng: _halves(rng) | {"bandwidth": 2.0}),
)


def _exponents(images: Tensor, picture: Tensor, mask: Tensor, h: float) -> Tensor:
    return -((images - picture) * mask).square().flatten(1).sum(1) / (2 * h**2)


def _misexplained(images: Tensor, picture: Tensor, mask: Tensor, h: float) -> dict[str, Tensor]:
    """Diagnosis -> what that mistake makes of the weights."""
    right, size = _exponents(images, picture, mask, h), images[0].numel()
    share = size / int(mask.sum())
    return {
        "the weights must be divided by their sum": right.exp(),
        "this is the logarithm of the weights": right.log_softmax(0),
        "you compared the hidden half; the mask is 1 where a pixel is known": (
            _exponents(images, picture, 1 - mask, h).softmax(0)
        ),
        "you compared whole pictures; the hidden half of this one is not known": (
            _exponents(images, picture, torch.ones_like(mask), h).softmax(0)
        ),
        "a factor 2 is missing: the Gaussian's exponent is -d^2 / (2 h^2)": (2 * right).softmax(0),
        "the bandwidth is a standard deviation; square it": (h * right).softmax(0),
        "the exponent has a minus: near pictures weigh more": (-right).softmax(0),
        "squared distances add over the pixels; you took their mean over the whole picture": (right / size).softmax(0),
        "squared distances add over the pixels; you took their mean over the known ones": (
            (right / size * share).softmax(0)
        ),
        "the exponent holds the squared distance, not the distance": (
            (-(-2 * h**2 * right).sqrt() / (2 * h**2)).softmax(0)
        ),
        "this is the nearest picture alone; all have a weight": (
            torch.nn.functional.one_hot(right.argmax(), len(images)).double()
        ),
        "all weights are equal; near pictures weigh more": torch.ones(len(images)) / len(images),
    }


def _explains(answer, say: str, images: Tensor, picture: Tensor, mask: Tensor, h: float) -> None:
    right = EmpiricalDenoiser(images, bandwidth=h).given(picture, mask).weights
    expect(answer(images, picture, mask, h), right, say, _misexplained(images, picture, mask, h))


@case("ex-08-posterior", "bayes-on-the-visible")
def _(answer, rng):
    for h in (uniform(rng, 1.8, 2.2), uniform(rng, 0.7, 0.8)):
        _explains(answer, f"not the posterior weights for a bandwidth of {h:.3f}", *_halves(rng).values(), h)


@case("ex-08-posterior", "other-pictures")
def _(answer, rng):
    for count, shape in ((1, (1, 2, 2)), (5, (3, 3, 5)), (40, (1, 8, 8))):
        images, picture = normal(rng, count, *shape), normal(rng, *shape)
        mask = torch.rand(shape, generator=rng, dtype=torch.float64)
        mask = (mask <= mask.median()).double()
        say = f"wrong for images of shape {tuple(images.shape)} and a mask that differs between channels and pixels"
        right = EmpiricalDenoiser(images, bandwidth=1.5).given(picture, mask).weights
        first = _exponents(images[:, :1], picture[:1], mask[:1], 1.5).softmax(0)
        same = _exponents(images, picture, mask[:1], 1.5).softmax(0)
        wrong = {
            "all channels count; you looked at the first": first,
            "every channel has a mask of its own; you took the first one's": same,
        }
        expect(answer(images, picture, mask, 1.5), right, say, wrong if shape[0] > 1 else {})
    given = _halves(rng)
    right = _exponents(*given.values(), 2.0).softmax(0)
    expect(answer(*(v.float() for v in given.values()), 2.0), right, "wrong for pictures in float32")


@case("ex-08-posterior", "survives-underflow")
def _(answer, rng):
    images, picture, mask = _halves(rng).values()
    picture = picture + 8
    exponents = _exponents(images, picture, mask, 0.4)
    plain = exponents.exp() / exponents.exp().sum()
    wrong = {"nothing explains this picture well, and exp(-3000) is zero: stay in logarithms (softmax does)": plain}
    say = "also among bad explanations one is best, and the weights add up to 1"
    # float32 knows exponents of 3000 to 3e-4
    expect(answer(images, picture, mask, 0.4), exponents.softmax(0), say, wrong, rtol=1e-2)


# -- ex-08-widen ------------------------------------------------------------------------------------------------------


def _weights(rng: Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return normal(rng, *shape).to(dtype)


def _widened(weight: Tensor, extra: int, after: int) -> Tensor:
    zeros = torch.zeros(len(weight), extra, *weight.shape[2:], dtype=weight.dtype)
    return torch.cat([weight[:, :after], zeros, weight[:, after:]], dim=1)


exercise(
    "ex-08-widen",
    name="widen",
    lesson=LESSON,
    form=call(
        tensor(
            lambda given: (len(given["weight"]), given["weight"].shape[1] + given["extra"], *given["weight"].shape[2:]),
            exact="weight",
        ),
        lambda rng: {"weight": _weights(rng, 4, 6, 3, 3), "extra": 4, "after": 3},
    ),
)


def _miswidened(weight: Tensor, extra: int, after: int) -> dict[str, Tensor]:
    """Diagnosis -> what that mistake makes of the weights."""
    filled = _widened(weight, extra, after)
    filled[:, after : after + extra] = weight.mean(1, keepdim=True)
    return {
        "the zeros stand at the end; the new channels come behind the first `after` ones": (
            _widened(weight, extra, weight.shape[1])
        ),
        "the zeros stand in front; the new channels come behind the first `after` ones": _widened(weight, extra, 0),
        "the zeros stand one channel too early": _widened(weight, extra, after - 1),
        "the zeros stand one channel too late": _widened(weight, extra, after + 1),
        "`after` counts from the front; yours counts from the end": _widened(weight, extra, weight.shape[1] - after),
        "with the mean of the old weights, what the new channels hold changes the result": filled,
        "the old weights must stay; the new ones add nothing, so there is nothing to make up for": (
            _widened(weight, extra, after) * (weight.shape[1] / (weight.shape[1] + extra))
        ),
    }


@case("ex-08-widen", "new-weights-are-zero", points=0)
def _(answer, rng):
    for extra in (4, 1):
        weight = _weights(rng, 4, 6, 3, 3)
        got = answer(weight, extra, 2)
        new = torch.zeros(6 + extra, dtype=torch.bool)
        new[2 : 2 + extra] = True
        say = f"channels 2 to {1 + extra} are new: their weights must be exactly zero, else what they hold has a say"
        expect(got, got.masked_fill(new[:, None, None], 0.0), say, _miswidened(weight, extra, 2))
        assert not got[:, new].any(), say


@case("ex-08-widen", "old-weights-are-kept", points=2)
def _(answer, rng):
    for after in (2, 4):
        weight = _weights(rng, 5, 6, 3, 3)
        say = "the old channels must keep their weights, bit for bit, in their order"
        got, right = answer(weight, 2, after), _widened(weight, 2, after)
        expect(got, right, say, _miswidened(weight, 2, after))
        assert torch.equal(got, right), say


@case("ex-08-widen", "any-convolution")
def _(answer, rng):
    kinds = ((3, 4, 1, 1), 2, 1), ((2, 3, 3, 5), 1, 2), ((4, 6, 3, 3), 4, 0), ((4, 3, 3, 3), 3, 3)
    for shape, extra, after in kinds:
        for dtype in (torch.float32, torch.float64):
            weight = _weights(rng, *shape, dtype=dtype)
            say = f"wrong for weights of shape {shape} with {extra} more channels behind the first {after}"
            expect(answer(weight, extra, after), _widened(weight, extra, after), say, rtol=0, atol=0)


# -- ex-08-loss -------------------------------------------------------------------------------------------------------


def _masked_batch(rng: Generator, n: int = 3, channels: int = 2) -> dict:
    mask = (torch.rand(n, 1, 4, 4, generator=rng) < 0.5).double()
    mask[:, :, 0, 0], mask[:, :, 0, 1] = 1.0, 0.0
    level = cosine_schedule().level(uniform(rng, 0.2, 0.8, n))
    x0, eps = (1 + normal(rng, n, channels, 4, 4) for _ in range(2))
    return {"x0": x0, "mask": mask, "level": level, "eps": eps}


def _reader(channels: int, seen: list) -> Callable[..., Tensor]:
    """A network that keeps what it sees, and answers with some of it."""

    def network(x, level):
        seen.append((x, level))
        return 0.5 * x[:, :channels] + 0.2

    return taking("x level", network)


exercise(
    "ex-08-loss",
    name="inpainter_loss",
    lesson=LESSON,
    form=call(number(), lambda rng: {"network": _reader(2, [])} | _masked_batch(rng)),
)


def _reads(answer: Callable, given: dict) -> tuple[Tensor, NoiseLevel, float]:
    """What the network sees, its level, and the loss."""
    seen: list = []
    channels = given["x0"].shape[1]
    loss = answer(_reader(channels, seen), **given)
    assert len(seen) == 1, f"the network was asked {len(seen)} times; one pass for the whole batch"
    (x, level), wanted = seen[0], (len(given["x0"]), 2 * channels + 1, *given["x0"].shape[2:])
    assert tuple(x.shape) == wanted, f"the network reads {wanted}: noisy, known, mask; yours shows it {tuple(x.shape)}"
    return x, level, loss


@case("ex-08-loss", "all-is-noisy")
def _(answer, rng):
    for channels in (2, 1):
        given = _masked_batch(rng, channels=channels)
        x0, mask, level, eps = given.values()
        x, told, _ = _reads(answer, given)
        noised = diffuse(x0, level, eps)
        first = NoiseLevel(level.alpha[:1].expand(3), level.sigma[:1].expand(3), level.time)
        wrong = {
            "the known pixels of x_t are as noisy as the others; they are told beside it": torch.where(
                mask == 1, x0, noised
            ),
            "this is the clean picture; x_t comes first": x0,
            "every picture has its own level; you took the first one's": diffuse(x0, first, eps),
            "this is the noise alone": eps,
        }
        expect(x[:, :channels], noised, "the first channels are x_t, noised to the level everywhere", wrong)
        expect(torch.as_tensor(told.alpha), level.alpha, "the network is told the level")


@case("ex-08-loss", "known-without-noise")
def _(answer, rng):
    for channels in (2, 1):
        given = _masked_batch(rng, channels=channels)
        x0, mask, level, eps = given.values()
        known = _reads(answer, given)[0][:, channels : 2 * channels]
        wrong = {
            "the known pixels are told with noise; they are clean": mask * diffuse(x0, level, eps),
            "the whole picture is told: a network that sees it has nothing to learn": x0,
            "1 is known; you told the unknown pixels": (1 - mask) * x0,
            "the mask stands where the known pixels belong": mask.expand_as(x0),
        }
        expect(known, mask * x0, "after x_t come the known pixels, and zeros elsewhere", wrong)


@case("ex-08-loss", "the-mask-last")
def _(answer, rng):
    given = _masked_batch(rng)
    mask = _reads(answer, given)[0][:, -1:]
    expect(mask, given["mask"], "the last channel is the mask", {"1 is known; this is its opposite": 1 - given["mask"]})


@case("ex-08-loss", "everything-counts")
def _(answer, rng):
    for n in (3, 1):
        given = _masked_batch(rng, n)
        x, _, loss = _reads(answer, given)
        error = 0.5 * x[:, :2] + 0.2 - given["eps"]
        unknown = (1 - given["mask"]).expand_as(error)
        wrong = {
            "only unknown pixels count in yours; nothing is left out of the loss": (error**2 * unknown).sum()
            / unknown.sum(),
            "known pixels count nothing in yours; nothing is left out of the loss": (error**2 * unknown).mean(),
            "this is a sum; the mean is asked for": error.square().sum(),
            "this is half of it": error.square().mean() / 2,
            "the network answers with the noise, not the picture": (0.5 * x[:, :2] + 0.2 - given["x0"]).square().mean(),
        }
        expect(loss, error.square().mean(), "not the mean of (eps - eps-hat)^2", wrong)
