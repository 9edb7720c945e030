"""Checks of lesson 09: a posterior, SR3's loss, levels told, a noised condition, what is left of errors, a plan."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from minidiff.course.comparing import close, expect, normal, uniform
from minidiff.course.exercises import case, exercise
from minidiff.course.forms import call, integer, number, several, taking, tensor
from minidiff.course.outcomes import Mistake
from minidiff.data.digits import digits
from minidiff.models.layers import timestep_embedding
from minidiff.process import diffuse
from minidiff.schedule import NoiseLevel, cosine_schedule, linear_schedule

LESSON = "09_cascades"

# -- ex-09-posterior --------------------------------------------------------------------------------------------------

World = tuple[Tensor, Tensor, Tensor]


def _linear_world(rng: Generator, large: int = 6, small: int = 2, batch: int = 5) -> World:
    """A covariance of some numbers, a well-conditioned map to fewer, and observations."""
    root = normal(rng, large, large)
    A = (torch.eye(small) + 0.2 * normal(rng, small, small)) @ torch.linalg.qr(normal(rng, large, small))[0].T
    return root @ root.T / large + 0.1 * torch.eye(large), A, normal(rng, batch, small)


exercise(
    "ex-09-posterior",
    name="posterior",
    lesson=LESSON,
    form=call(
        several(mean=tensor(lambda given: (len(given["y"]), len(given["C"]))), covariance=tensor("C")),
        lambda rng: dict(zip("CAy", _linear_world(rng), strict=True)) | {"variance": 0.5},
    ),
)


def _by_precision(C: Tensor, A: Tensor, y: Tensor, variance: float) -> tuple[Tensor, Tensor]:
    """The posterior, found by adding precisions."""
    covariance = torch.linalg.inv(torch.linalg.inv(C) + A.T @ A / variance)
    return y @ A @ covariance.T / variance, covariance


def _limit(C: Tensor, A: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The posterior without noise."""
    gain = C @ A.T @ torch.linalg.inv(A @ C @ A.T)
    return y @ gain.T, C - gain @ A @ C


def _misjudged(C: Tensor, A: Tensor, y: Tensor, variance: float) -> tuple[dict, dict]:
    """Diagnosis -> what that mistake makes of the mean, and of the covariance."""
    mean, covariance = _by_precision(C, A, y, variance)
    apart = "`variance` is the noise variance: it is added to A C A^T as it is; you "
    wrong = {
        apart + "squared it": _by_precision(C, A, y, variance**2),
        apart + "took its root": _by_precision(C, A, y, variance**0.5),
        "the noise is missing: its variance is added to A C A^T": _limit(C, A, y),
        "the prior is missing: C is not the identity": _by_precision(torch.eye(len(C)).double(), A, y, variance),
    }
    means = {text: both[0] for text, both in wrong.items()} | {
        "this is the smallest x that gives y; the prior C has a say": y @ torch.linalg.pinv(A).T,
        "S^-1 is missing: the gain is C A^T S^-1": y @ A @ C,
        "the sign of the mean is wrong": -mean,
    }
    covariances = {text: both[1] for text, both in wrong.items()} | {
        "this is the covariance of the posterior means; C minus it is what stays unknown": C - covariance,
        "this is the prior's covariance; y takes a part of it away": C,
        "an observation makes x more certain: the second term is subtracted": 2 * C - covariance,
        "this is the precision; its inverse is the covariance": covariance.inverse(),
    }
    return means, covariances


@case("ex-09-posterior", "adds-precisions")
def _(answer, rng):
    for variance in (uniform(rng, 0.2, 0.4), uniform(rng, 1.5, 2.5)):
        world = _linear_world(rng)
        (mean, covariance), right = answer(*world, variance), _by_precision(*world, variance)
        means, covariances = _misjudged(*world, variance)
        expect(mean, right[0], "the mean differs from the one found by adding precisions", means)
        expect(covariance, right[1], "the covariance differs from the one found by adding precisions", covariances)


@case("ex-09-posterior", "reproduces-what-it-was-told")
def _(answer, rng):
    C, A, y = _linear_world(rng)
    mean, covariance = answer(C, A, y, 0.0)
    least = {"this is the smallest x that gives y; the prior C has a say": y @ torch.linalg.pinv(A).T}
    expect(mean @ A.T, y, "without noise, reducing the posterior mean must give back y")
    expect(mean, _limit(C, A, y)[0], "without noise the mean is y C A^T (A C A^T)^-1, by rows", least)
    say = "without noise nothing is unknown about A x: A times the covariance times A^T must be 0"
    # the inverse in float32
    expect(A @ covariance @ A.T, torch.zeros(2, 2), say, atol=1e-5)


@case("ex-09-posterior", "no-information")
def _(answer, rng):
    C, A, y = _linear_world(rng)
    right = torch.zeros(5, 6), C
    expect(answer(C, 0 * A, y, 1.0), right, "with A = 0 the posterior is the prior N(0, C)", atol=1e-6)


@case("ex-09-posterior", "other-sizes")
def _(answer, rng):
    for large, small, batch in ((4, 1, 3), (5, 3, 1), (3, 3, 2), (1, 1, 1)):
        world = _linear_world(rng, large, small, batch)
        say = f"wrong for {batch} observations of {small} numbers, made from {large}"
        expect(answer(*world, 0.5), _by_precision(*world, 0.5), say)
    world = _linear_world(rng)
    expect(answer(*(v.float() for v in world), 0.5), _by_precision(*world, 0.5), "wrong for numbers in float32")


# -- ex-09-sr3 --------------------------------------------------------------------------------------------------------


def _table(rng: Generator) -> Tensor:
    """A table of eight levels that lie far apart."""
    return uniform(rng, 0.4, 0.8, 8).cumprod(0)


Network = Callable[..., Tensor]


def _watched(names: str, seen: list) -> Network:
    """A network that keeps what it was shown, and answers with a mixture of what is as large as its first argument."""

    def network(*given):
        seen.append(given)
        same = [v for v in given if isinstance(v, Tensor) and v.shape == given[0].shape]
        return 0.5 * sum(same) + 0.1

    return taking(names, network)


def _once(seen: list) -> tuple:
    assert len(seen) == 1, f"the network was asked {len(seen)} times; one pass for the whole batch"
    return seen[0]


def _sr3_batch(rng: Generator, n: int = 3) -> dict[str, Tensor]:
    return {name: normal(rng, n, 2, 3, 3) for name in ("x0", "y", "eps")}


def _sr3_sample(rng: Generator) -> dict:
    x0, y, eps = _sr3_batch(rng).values()
    given = {"network": _watched("x y alpha_bar", []), "x0": x0, "y": y, "alpha_bar": _table(rng)}
    return given | {"t": torch.tensor([1, 5, 3]), "u": uniform(rng, 0, 1, 3), "eps": eps}


exercise("ex-09-sr3", name="sr3_loss", lesson=LESSON, form=call(number(), _sr3_sample))


def _asked(answer: Callable, rng: Generator, table: Tensor, t: Tensor, u: Tensor) -> tuple[dict, tuple, float]:
    """The batch, what the network was shown of it, and the loss."""
    batch, seen = _sr3_batch(rng, len(t)), []
    network = _watched("x y alpha_bar", seen)
    loss = answer(network, batch["x0"], batch["y"], table, t, u, batch["eps"])
    x, y, told = (torch.as_tensor(v) for v in _once(seen))
    assert told.shape == (len(t),), f"the network is told one number for each picture, not {tuple(told.shape)}"
    return batch, (x, y, told), loss


def _told(answer: Callable, rng: Generator) -> Callable[..., Tensor]:
    """What the network is told, of the table, the times and the uniform numbers."""
    return lambda table, t, u: _asked(answer, rng, table, t, u)[1][2]


def _drawn(table: Tensor, t: Tensor, u: Tensor) -> Tensor:
    padded = torch.cat([torch.ones(1), table.double()])
    return torch.lerp(padded[t + 1], padded[t], u)


@case("ex-09-sr3", "from-one-level-to-the-next")
def _(answer, rng):
    told = _told(answer, rng)
    table, t = _table(rng), torch.tensor([1, 6, 3])
    cleaner, noisier = (table[t + shift] for shift in (-1, 1))
    here, ends = table[t], (torch.zeros(3).double(), torch.ones(3).double())
    wrong = {
        "this is alpha; asked for is alpha-bar, as it stands in the table": (here.sqrt(), cleaner.sqrt()),
        "u = 0 is time t itself, u = 1 the cleaner neighbour": (cleaner, here),
        "t - 1 is the cleaner neighbour; you went to the noisier one": (here, noisier),
        "u has no say: it moves alpha-bar from time t to t - 1": (here, here),
        "this begins at time t - 1; u = 0 is time t itself": (cleaner, table[(t - 2).clamp(min=0)]),
        "this is the variance of the noise; alpha-bar is one less it": (1 - here, 1 - cleaner),
    }
    got = tuple(told(table, t, u) for u in ends)
    expect(got, (here, cleaner), "u = 0 must give alpha-bar of time t, and u = 1 that of time t - 1", wrong)


@case("ex-09-sr3", "uniform-in-alpha-bar")
def _(answer, rng):
    told = _told(answer, rng)
    table = _table(rng)
    for time in (2, 5):
        t, u = torch.tensor([time] * 3), uniform(rng, 0.3, 0.7, 1).expand(3)
        low, high, v = table[time], table[time - 1], u[0]
        wrong = {
            "you drew alpha uniformly, which is WaveGrad's rule; here its square, alpha-bar, is uniform": (
                torch.lerp(low.sqrt(), high.sqrt(), v) ** 2
            ),
            "you moved the logarithm linearly; alpha-bar itself must be": low ** (1 - v) * high**v,
            "you moved sigma linearly; alpha-bar must be": (
                1 - torch.lerp((1 - low).sqrt(), (1 - high).sqrt(), v) ** 2
            ),
        }
        say = f"u = {v:.3f} must move alpha-bar linearly, here from {low:.3f} to {high:.3f}"
        expect(told(table, t, u), _drawn(table, t, u), say, {text: w.expand(3) for text, w in wrong.items()})


@case("ex-09-sr3", "one-for-each-sample")
def _(answer, rng):
    told = _told(answer, rng)
    table, t, u = _table(rng), torch.tensor([3, 6, 1, 3]), uniform(rng, 0.1, 0.9, 4)
    wrong = {
        "every sample has its own u; you took the first one's": _drawn(table, t, u[:1].expand(4)),
        "every sample has its own u; you took their mean": _drawn(table, t, u.mean().expand(4)),
        "every sample has its own time; you took the first one's": _drawn(table, t[:1].expand(4), u),
    }
    expect(told(table, t, u), _drawn(table, t, u), "every sample has its own time and its own u", wrong)


@case("ex-09-sr3", "time-0-reaches-the-data")
def _(answer, rng):
    told = _told(answer, rng)
    table = _table(rng)
    lerp = torch.lerp
    for t in (torch.tensor([0, 0, 0]), torch.tensor([2, 0, 5])):
        u, zero = uniform(rng, 0.1, 0.9, 3), t == 0
        wrong = {
            "index -1 is the last entry of the table, pure noise; before time 0 comes clean data, alpha-bar = 1": (
                lerp(table[t], table[t - 1], u)
            ),
            "time 0 has a cleaner neighbour, too: clean data, alpha-bar = 1": (
                lerp(table[t], table[(t - 1).clamp(min=0)], u)
            ),
            "before time 0 comes clean data, alpha-bar = 1, not 0": (
                lerp(table[t], table[t - 1].masked_fill(zero, 0.0), u)
            ),
        }
        say = f"for times {t.tolist()}: before time 0 comes clean data, alpha-bar = 1"
        expect(told(table, t, u), _drawn(table, t, u), say, wrong)


@case("ex-09-sr3", "other-tables")
def _(answer, rng):
    told = _told(answer, rng)
    for table in (linear_schedule().alpha_bar, uniform(rng, 0.2, 0.8, 1), linear_schedule(50).alpha_bar.float()):
        t = torch.randint(len(table), (9,), generator=rng)
        t[0], u = len(table) - 1, uniform(rng, 0, 1, 9)
        say = f"wrong for a table of {len(table)} levels, {str(table.dtype)[6:]}"
        expect(told(table, t, u.to(table)), _drawn(table, t, u), say)
        expect(told(table, t[:1], u[:1].to(table)), _drawn(table, t[:1], u[:1]), say + " and a batch of one")


@case("ex-09-sr3", "noised-to-that-level")
def _(answer, rng):
    for times in ((1, 6, 3), (0,)):
        table, t = _table(rng), torch.tensor(times)
        u = uniform(rng, 0.3, 0.7, len(times))
        batch, (x, y, _), _ = _asked(answer, rng, table, t, u)
        a = _drawn(table, t, u).reshape(-1, 1, 1, 1)
        noised = lambda alpha, sigma, batch=batch: alpha * batch["x0"] + sigma * batch["eps"]
        own = table[t].reshape(-1, 1, 1, 1)
        wrong = {
            "x_t has the level of the table, and the network is told the drawn one": noised(
                own.sqrt(), (1 - own).sqrt()
            ),
            "alpha is the root of alpha-bar, and sigma that of 1 - alpha-bar": noised(a, 1 - a),
            "sigma is the root of 1 - alpha-bar": noised(a.sqrt(), 1 - a),
            "alpha and sigma are swapped": noised((1 - a).sqrt(), a.sqrt()),
            "alpha is the root of alpha-bar": noised(a, (1 - a**2).sqrt()),
        }
        expect(x, noised(a.sqrt(), (1 - a).sqrt()), "x_t is not x_0 noised to the drawn level", wrong)
        expect(y, batch["y"], "the small picture stands beside x_t as it is; no noise was asked for here")


@case("ex-09-sr3", "a-mean-of-squares")
def _(answer, rng):
    table, t, u = _table(rng), torch.tensor([1, 6, 3]), uniform(rng, 0.3, 0.7, 3)
    batch, (x, y, _), loss = _asked(answer, rng, table, t, u)
    error = 0.5 * (x + y) + 0.1 - batch["eps"]
    wrong = {
        "this is a sum; the mean over pictures and numbers is asked for": error.square().sum(),
        "this is the absolute error, p = 1; squares are asked for": error.abs().mean(),
        "this is half of it": error.square().mean() / 2,
        "the network's answer is the noise, not the picture": (0.5 * (x + y) + 0.1 - batch["x0"]).square().mean(),
    }
    expect(loss, error.square().mean(), "not the mean of (eps - eps-hat)^2", wrong)


# -- ex-09-see --------------------------------------------------------------------------------------------------------

exercise(
    "ex-09-see",
    name="what_to_tell",
    lesson=LESSON,
    form=call(tensor("alpha"), lambda rng: {"alpha": uniform(rng, 0.1, 0.9, 5)}),
)
UNIT = math.sqrt(32)  # the norm of every embedding


def _seen(answer: Callable, alpha: Tensor) -> Tensor:
    """Embeddings (N, 64), divided by their norm."""
    return timestep_embedding(answer(alpha), 64).double() / UNIT


@case("ex-09-see", "finite-at-both-ends", points=0)
def _(answer):
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    told = answer(ends)
    if close(told, torch.tensor([-math.inf, math.inf])):
        raise Mistake("log alpha^2 / sigma^2 is infinite at the ends")
    assert told.isfinite().all(), "clean data (alpha = 1) and pure noise (alpha = 0) need finite numbers, too"
    seen = _seen(answer, ends)
    assert (seen[0] - seen[1]).norm() > 0.05, "clean data and pure noise look alike to this network"


@case("ex-09-see", "neighbours-are-told-apart", points=2)
def _(answer):
    alpha = torch.linspace(0, 1, 101, dtype=torch.float64)
    seen = _seen(answer, alpha)
    steps = (seen[1:] - seen[:-1]).norm(dim=1)
    if close(answer(alpha), alpha):
        raise Mistake(
            f"levels 0.01 apart have embeddings {steps.max():.4f} apart (in units of their norm): the fastest sinusoid "
            "has frequency one, so numbers between 0 and 1 hardly move it"
        )
    i = int(steps.argmin())
    say = f"alpha = {alpha[i]:.2f} and {alpha[i + 1]:.2f} have embeddings only {steps[i]:.4f} apart, in their norm"
    assert steps[i] > 0.05, say


@case("ex-09-see", "no-two-levels-alike")
def _(answer, rng):
    alpha = torch.linspace(0, 1, 401, dtype=torch.float64)
    seen = _seen(answer, alpha)
    apart = torch.cdist(seen, seen) + 9 * torch.eye(len(alpha)).double()
    far = (alpha[:, None] - alpha).abs() > 0.25
    for least, alike in ((1e-3, apart), (0.05, apart.masked_fill(~far, 9.0))):
        i, j = divmod(int(alike.argmin()), len(alpha))
        assert alike[i, j] > least, f"alpha = {alpha[i]:.4f} and {alpha[j]:.4f} get nearly the same embedding"
    alpha = uniform(rng, 0, 0.999, 300)
    seen = _seen(answer, torch.cat([alpha, alpha + 3e-4]))
    near = (seen[:300] - seen[300:]).norm(dim=1)
    i = int(near.argmin())
    say = f"alpha = {alpha[i]:.4f} and {alpha[i] + 3e-4:.4f} get nearly the same embedding: levels are no integers"
    assert near[i] > 1e-3, say


@case("ex-09-see", "each-by-itself")
def _(answer, rng):
    alpha = uniform(rng, 0.1, 0.9, 6)
    say = "what a level is told as must not depend on the others of its batch"
    expect(torch.cat([answer(alpha[i : i + 1]) for i in range(6)]), answer(alpha), say)
    expect(answer(alpha.float()), answer(alpha), "levels in float32 must be told as those in float64 are")


# -- ex-09-redraw -----------------------------------------------------------------------------------------------------

exercise(
    "ex-09-redraw",
    name="left_over",
    lesson=LESSON,
    form=call(
        several(shift=number(), excess=number()),
        lambda rng: {"variance": uniform(rng, 0.3, 0.6), "shift": 0.3, "excess": 0.2, "sigma": uniform(rng, 0.4, 0.6)},
    ),
)


def _redrawn(variance: float, shift: float, excess: float, sigma: float) -> tuple[float, float]:
    """Noise the base's Gaussian, take the true posterior of N(0, variance), add its variance: by regression lines."""
    alpha = math.sqrt(1 - sigma**2)
    noisy = alpha**2 * variance + sigma**2  # variance of z under the data
    slope = alpha * variance / noisy  # E[y | z] = slope z
    unknown = variance - slope * alpha * variance
    mean = slope * alpha * shift
    total = slope**2 * (alpha**2 * (variance + excess) + sigma**2) + unknown
    return mean, total - variance


def _misfollowed(variance: float, shift: float, excess: float, sigma: float) -> tuple[dict, dict]:
    """Diagnosis -> what that mistake makes of the shift, and of the excess."""
    alpha2 = 1 - sigma**2
    noisy = alpha2 * variance + sigma**2
    rho = alpha2 * variance / noisy
    reliabilities = {
        "alpha comes twice: once when the noise is added, once in the way back": math.sqrt(alpha2) * variance / noisy,
        "alpha is missing: the condition is sqrt(1 - sigma^2) y + sigma eps": variance / (variance + sigma**2),
        "sigma is the standard deviation of the noise; the reliability has its square": (
            alpha2 * variance / (alpha2 * variance + sigma)
        ),
        "this is what is lost, 1 - rho; what is left was asked for": 1 - rho,
        "this is the condition, before anything is redrawn": math.sqrt(alpha2),
        "rho depends on the direction: fine ones, of small variance, are redrawn first": alpha2,
    }
    shifts = {text: r * shift for text, r in reliabilities.items()} | {
        "the shift shrinks by rho, not by its square": rho**2 * shift,
        "the shift shrinks by rho, not by its root": rho**0.5 * shift,
    }
    excesses = {text: r**2 * excess for text, r in reliabilities.items()} | {
        "a variance scales with the square: the excess shrinks by rho^2": rho * excess,
        "this is the whole variance; the excess over `variance` was asked for": variance + rho**2 * excess,
        "a fresh draw from the posterior has its variance, too": rho**2 * (variance + excess) - variance,
    }
    return shifts, excesses


def _follows(answer: Callable, *given: float) -> None:
    (shift, excess), right, wrong = answer(*given), _redrawn(*given), _misfollowed(*given)
    variance, _, _, sigma = given
    say = f"{{right}}, not {{got}}, in a direction of variance {variance:.4g} with sigma = {sigma:.4g}"
    expect(shift, right[0], f"a shift of {given[1]:.4g} becomes {say}", wrong[0])
    expect(excess, right[1], f"an excess of {given[2]:.4g} becomes {say}", wrong[1])


@case("ex-09-redraw", "followed-through-both-steps")
def _(answer, rng):
    for _ in range(3):
        _follows(answer, uniform(rng, 0.3, 0.8), uniform(rng, 0.2, 0.6), uniform(rng, 0.1, 0.3), uniform(rng, 0.3, 0.7))


@case("ex-09-redraw", "fine-and-coarse")
def _(answer, rng):
    for variance in (0.003, 0.03, 3.0, 30.0):
        _follows(answer, variance, uniform(rng, 0.2, 0.6), uniform(rng, 0.1, 0.3), uniform(rng, 0.2, 0.4))


@case("ex-09-redraw", "too-little-variance")
def _(answer, rng):
    for _ in range(2):
        variance = uniform(rng, 0.5, 2)
        _follows(answer, variance, -uniform(rng, 0.2, 0.6), -uniform(rng, 0.3, 0.9) * variance, uniform(rng, 0.3, 0.8))


@case("ex-09-redraw", "nothing-and-everything")
def _(answer, rng):
    given = uniform(rng, 0.3, 0.8), uniform(rng, 0.2, 0.6), uniform(rng, 0.1, 0.3)
    expect(answer(*given, 0.0), given[1:], "at level 0 the base's errors come through unchanged")
    say = "at level 1 nothing of the base is left, its errors neither"
    expect(answer(*given, 1.0), (0.0, 0.0), say, atol=1e-6)


# -- ex-09-augment ----------------------------------------------------------------------------------------------------


def _bytes(rng: Generator, *shape: int) -> Tensor:
    return torch.randint(256, shape, generator=rng).to(torch.uint8)


def _pixels(rng: Generator, *shape: int) -> dict[str, Tensor]:
    """Pictures, one level for each, and noise; three pictures of three channels, three by three pixels."""
    shape = shape or (3, 3, 3, 3)
    return {"pixels": _bytes(rng, *shape), "sigma": uniform(rng, 0.2, 0.9, shape[0]), "eps": normal(rng, *shape)}


def _augmented_sample(rng: Generator) -> dict:
    pixels, sigma, eps = _pixels(rng, 3, 2, 4, 6).values()
    given = {"network": _watched("x level z sigma", []), "pixels": pixels, "factor": 2, "sigma": sigma}
    return given | {"noise": normal(rng, 3, 2, 2, 3), "level": _levels_of(rng, 3), "eps": eps}


def _levels_of(rng: Generator, n: int) -> NoiseLevel:
    return cosine_schedule().level(uniform(rng, 0.2, 0.8, n))


exercise("ex-09-augment", name="augmented_loss", lesson=LESSON, form=call(number(), _augmented_sample))


def _loss_of(answer: Callable, rng: Generator, pixels, factor, sigma, noise) -> tuple[tuple, NoiseLevel, Tensor, float]:
    """What the network was shown, the level and the noise of the large pictures, and the loss."""
    seen, level, eps = [], _levels_of(rng, len(pixels)), normal(rng, *pixels.shape)
    loss = answer(_watched("x level z sigma", seen), pixels, factor, sigma, noise, level, eps)
    return _once(seen), level, eps, loss


def _condition(answer: Callable, rng: Generator) -> Callable[..., Tensor]:
    """The condition that the network sees of pictures that are their own small ones."""

    def condition(pixels, sigma, eps):
        z = torch.as_tensor(_loss_of(answer, rng, pixels, 1, sigma, eps)[0][2])
        found, wanted = tuple(z.shape), tuple(pixels.shape)
        assert found == wanted, f"with factor 1 the condition has the shape of the pictures, {wanted}; yours {found}"
        return z

    return condition


def _scaled(pixels: Tensor) -> Tensor:
    return pixels.double() / 127.5 - 1


def _augmented(pixels: Tensor, sigma: Tensor, eps: Tensor) -> Tensor:
    s = sigma.double().reshape(-1, 1, 1, 1)
    return (1 - s**2).sqrt() * _scaled(pixels) + s * eps.double()


@case("ex-09-augment", "level-0-is-the-picture")
def _(answer, rng):
    seen = _condition(answer, rng)
    pixels, _, eps = _pixels(rng).values()
    pixels.flatten()[:2] = torch.tensor([0, 255])
    wrong = {
        "the network sees pixels in [-1, 1]; these are bytes": pixels.double(),
        "the network sees pixels in [-1, 1]; these are in [0, 1]": pixels.double() / 255,
        "the network sees pixels in [-1, 1]; these are in [-1/2, 1/2]": pixels.double() / 255 - 0.5,
        "255 is white, 1: bytes are divided by 127.5, not by 128": pixels.double() / 128 - 1,
        "bytes overflow: 2 * 200 is 144 among them; make them floating-point numbers first": (pixels * 2) / 255 - 1,
    }
    say = "at level 0 nothing but the scaling to [-1, 1] may happen"
    expect(seen(pixels, torch.zeros(3).double(), eps), _scaled(pixels), say, wrong)


@case("ex-09-augment", "noise-after-scaling")
def _(answer, rng):
    seen = _condition(answer, rng)
    pixels, _, eps = _pixels(rng).values()
    level = uniform(rng, 0.4, 0.6)
    sigma = torch.full((3,), level).double()
    noise = seen(pixels, sigma, 2 * eps) - seen(pixels, sigma, eps)
    wrong = {
        "you added the noise before scaling to [-1, 1]: there it is 127.5 times too weak": level / 127.5,
        "you added the noise to pixels in [0, 1]: after scaling to [-1, 1] it is twice as strong as told": 2 * level,
        "sigma is the standard deviation of the noise; you took its root": level**0.5,
        "sigma is the standard deviation of the noise; you took its square": level**2,
        "the noise must be multiplied by sigma": 1.0,
        "there is no noise in it": 0.0,
        "alpha and sigma are swapped": math.sqrt(1 - level**2),
    }
    say = f"one more eps must add {level:.3f} eps at sigma = {level:.3f}"
    expect(noise, level * eps, say, {text: v * eps for text, v in wrong.items()}, atol=1e-6)


@case("ex-09-augment", "variance-preserving")
def _(answer, rng):
    seen = _condition(answer, rng)
    for level in (uniform(rng, 0.3, 0.4), uniform(rng, 0.8, 0.9)):
        pixels, _, eps = _pixels(rng).values()
        y, sigma = _scaled(pixels), torch.full((3,), level).double()
        wrong = {
            "the picture keeps its full strength: alpha = sqrt(1 - sigma^2) is missing": y + level * eps,
            "alpha is sqrt(1 - sigma^2), not 1 - sigma": (1 - level) * y + level * eps,
            "alpha is the root of 1 - sigma^2": (1 - level**2) * y + level * eps,
            "alpha is sqrt(1 - sigma^2), not sqrt(1 - sigma)": math.sqrt(1 - level) * y + level * eps,
        }
        say = f"not sqrt(1 - sigma^2) y + sigma eps at sigma = {level:.3f}"
        expect(seen(pixels, sigma, eps), _augmented(pixels, sigma, eps), say, wrong)


@case("ex-09-augment", "a-level-for-each-sample")
def _(answer, rng):
    seen = _condition(answer, rng)
    pixels, _, eps = _pixels(rng).values()
    sigma = torch.tensor([0.4, 0.8, 0.1]) + uniform(rng, 0, 0.1, 3)
    batch = {
        "the first one's": sigma[0],
        "the last one's": sigma[-1],
        "their mean": sigma.mean(),
        "the largest": sigma.max(),
    }
    wrong = {
        f"every picture has its own level; the whole batch got {which}": _augmented(pixels, one.expand(3), eps)
        for which, one in batch.items()
    }
    along = lambda s: (1 - s**2).sqrt() * _scaled(pixels) + s * eps
    wrong["levels go along the first axis, `sigma.reshape(-1, 1, 1, 1)`; yours go along the last"] = along(sigma)
    wrong["levels go along the first axis; yours go along the channels"] = along(sigma[:, None, None])
    say = "sigma holds one level for each picture of the batch"
    expect(seen(pixels, sigma, eps), _augmented(pixels, sigma, eps), say, wrong)


@case("ex-09-augment", "other-pictures")
def _(answer, rng):
    seen = _condition(answer, rng)
    for shape in ((1, 3, 4, 4), (2, 1, 3, 5), (4, 2, 1, 1)):
        pixels, sigma, eps = _pixels(rng, *shape).values()
        say = f"wrong for pictures of shape {shape}"
        expect(seen(pixels, sigma, eps), _augmented(pixels, sigma, eps), say)
        expect(seen(pixels, sigma.float(), eps.float()), _augmented(pixels, sigma, eps), say + ", noise in float32")
    pixels, _, eps = _pixels(rng).values()
    ends = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    say = "at level 1 nothing but the noise is left, and at level 0 nothing but the picture"
    expect(seen(pixels, ends, eps), _augmented(pixels, ends, eps), say)


@case("ex-09-augment", "small-by-averages")
def _(answer, rng):
    for factor, shape in ((2, (2, 3, 4, 6)), (4, (1, 1, 4, 8))):
        pixels, sigma, _ = _pixels(rng, *shape).values()
        noise = normal(rng, shape[0], shape[1], shape[2] // factor, shape[3] // factor)
        (_, _, z, _), *_ = _loss_of(answer, rng, pixels, factor, sigma, noise)
        s, y = sigma.reshape(-1, 1, 1, 1), _scaled(pixels)
        of = lambda small, s=s, noise=noise: (1 - s**2).sqrt() * small + s * noise
        wrong = {
            "you took one pixel of each square; the small picture is their average": of(y[..., ::factor, ::factor]),
            "this is a sum over the squares; the small picture is the average": of(F.avg_pool2d(y, factor) * factor**2),
            "this is the largest of each square; take the average": of(F.max_pool2d(y, factor)),
        }
        expect(z, of(F.avg_pool2d(y, factor)), f"each {factor} by {factor} square becomes its average", wrong)


@case("ex-09-augment", "two-noises-two-levels")
def _(answer, rng):
    pixels, sigma, _ = _pixels(rng, 3, 2, 4, 4).values()
    (x, told, _, told_sigma), level, eps, _ = _loss_of(answer, rng, pixels, 2, sigma, normal(rng, 3, 2, 2, 2))
    y, s = _scaled(pixels), sigma.reshape(-1, 1, 1, 1)
    wrong = {
        "the large picture has a level of its own, and you took the condition's": (1 - s**2).sqrt() * y + s * eps,
        "the large pictures are bytes as well: to [-1, 1] with them": diffuse(pixels.double(), level, eps),
        "the large picture is noised, too": y,
    }
    expect(x, diffuse(y, level, eps), "x_t must be the large picture at `level`, with `eps`", wrong)
    assert isinstance(told, NoiseLevel), f"the second argument of the network is the level of x_t, not {type(told)}"
    expect(torch.as_tensor(told.alpha), level.alpha, "the network is told the level of the large pictures")
    expect(torch.as_tensor(told_sigma).flatten(), sigma, "the network is told sigma, the noise in the condition")


@case("ex-09-augment", "a-mean-of-squares")
def _(answer, rng):
    pixels, sigma, _ = _pixels(rng, 3, 2, 4, 4).values()
    (x, *_), _, eps, loss = _loss_of(answer, rng, pixels, 2, sigma, normal(rng, 3, 2, 2, 2))
    error = 0.5 * x + 0.1 - eps
    wrong = {
        "this is a sum; the mean over pictures and numbers is asked for": error.square().sum(),
        "the network answers with the noise of the large picture": (0.5 * x + 0.1 - _scaled(pixels)).square().mean(),
        "this is half of it": error.square().mean() / 2,
    }
    expect(loss, error.square().mean(), "not the mean of (eps - eps-hat)^2", wrong)


# -- ex-09-plan -------------------------------------------------------------------------------------------------------

exercise(
    "ex-09-plan",
    name="plan_of_sixty",
    lesson=LESSON,
    form=several(base_steps=integer(), sigma=number(), enlarger_steps=integer()),
)
BUDGET, PRICE = 60, 4  # operations; one step of the enlarger costs four of the base
KEEP, NATS = 0.8, 4.2  # without noise at best 4.99 nats, with sigma = 0.2 at best 4.07


@cache
def _digit_world() -> tuple[Tensor, Tensor]:
    """Covariance (64, 64) of the digits and the map (16, 64) to small ones, as in the lesson."""
    eye = torch.eye(64).double()
    small = F.avg_pool2d(eye.reshape(64, 1, 8, 8), 2).flatten(1).T
    return digits("all")[0].double().flatten(1).T.cov() + 0.01 * eye, small


def _ddim(covariance: Tensor, steps: int) -> Tensor:
    """Covariance at the end of a DDIM chain for N(0, covariance), even in the noise angle."""
    value, vector = torch.linalg.eigh((covariance + covariance.T) / 2)
    value, factor = value.clamp(min=0), torch.ones_like(value)
    for i in range(steps):
        t, r = (math.pi / 2 * (1 - k / steps) for k in (i, i + 1))
        alpha, sigma = (math.cos(t), math.sin(t)) if i else (0.0, 1.0)
        after = (math.cos(r), math.sin(r)) if i + 1 < steps else (1.0, 0.0)
        factor = factor * (alpha * after[0] * value + sigma * after[1]) / (alpha**2 * value + sigma**2)
    return (vector * factor**2) @ vector.T


def followed(base_steps: int, sigma: float, enlarger_steps: int) -> tuple[float, float]:
    """Nats between what a cascade draws and the digits, and the share of a small picture that is kept on the way."""
    C, A = _digit_world()
    V, alpha = A @ C @ A.T, math.sqrt(1 - sigma**2)
    gain = torch.linalg.solve(alpha**2 * V + sigma**2 * torch.eye(16).double(), alpha * A @ C).T
    seen = alpha**2 * _ddim(V, base_steps) + sigma**2 * torch.eye(16).double()
    drawn = gain @ seen @ gain.T + _ddim(C - alpha * gain @ A @ C, enlarger_steps)
    ratio = torch.linalg.solve(C, drawn)
    nats = 0.5 * (ratio.trace() - 64 - torch.linalg.slogdet(ratio)[1])
    return nats.item(), ((alpha * A @ gain @ V).trace() / V.trace()).item()


@case("ex-09-plan", "within-the-budget", points=0)
def _(answer):
    base, sigma, enlarger = answer
    assert base >= 1 and enlarger >= 1 and 0 <= sigma <= 1, "a step or more each, and a sigma between 0 and 1"
    spent = base + PRICE * enlarger
    assert spent <= BUDGET, f"{base} + {PRICE} * {enlarger} = {spent} operations; there are {BUDGET}"


@case("ex-09-plan", "the-base-has-a-say", points=0)
def _(answer):
    kept = followed(*answer)[1]
    assert kept >= KEEP, (
        f"{kept:.0%} of the base's picture is kept at sigma = {answer[1]:.3g}; {KEEP:.0%} are asked for"
    )


@case("ex-09-plan", "near-the-digits", points=3)
def _(answer):
    nats = followed(*answer)[0]
    if answer[1] == 0:
        raise Mistake(f"{nats:.2f} nats without noise; a base in a hurry makes errors, and doubt draws over them")
    assert nats <= NATS, f"what the cascade draws is {nats:.2f} nats from the digits; {NATS} are allowed"
