"""Checks of lesson 09: conditioning, levels told and drawn, the noised condition, what is left of a base's error."""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.course.exercises import case, exercise
from minidiff.course.outcomes import Mistake
from minidiff.data.digits import digits
from minidiff.models.layers import timestep_embedding
from minidiff.random import randn
from minidiff.schedule import linear_schedule

LESSON = "09_cascades"


def _close(a, b, tolerance: float = 1e-6) -> bool:
    a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
    return a.shape == b.shape and bool(((a - b).abs() <= tolerance * (1 + b.abs())).all())


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return randn(shape, torch.Generator().manual_seed(seed), torch.float64)


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-09-posterior", name="posterior", lesson=LESSON)


@cache
def _linear_world() -> tuple[Tensor, Tensor, Tensor]:
    """A covariance of six numbers, a map to two, and five observations."""
    root = _normal(6, 6)
    return root @ root.T / 6 + 0.1 * torch.eye(6).double(), _normal(2, 6, seed=1), _normal(5, 2, seed=2)


def _by_precision(C: Tensor, A: Tensor, y: Tensor, variance: float) -> tuple[Tensor, Tensor]:
    """The same posterior, found by adding precisions."""
    covariance = torch.linalg.inv(torch.linalg.inv(C) + A.T @ A / variance)
    return y @ A @ covariance.T / variance, covariance


def _answered(answer, C, A, y, variance) -> tuple[Tensor, Tensor]:
    mean, covariance = answer(C, A, y, variance)
    mean, covariance = torch.as_tensor(mean).double(), torch.as_tensor(covariance).double()
    assert mean.shape == (len(y), len(C)), f"one mean per observation, ({len(y)}, {len(C)}), not {tuple(mean.shape)}"
    assert covariance.shape == C.shape, f"one covariance for all, {tuple(C.shape)}, not {tuple(covariance.shape)}"
    return mean, covariance


@case("ex-09-posterior", "adds-precisions")
def _(answer):
    C, A, y = _linear_world()
    for variance in (0.3, 2.0):
        mean, covariance = _answered(answer, C, A, y, variance)
        right = _by_precision(C, A, y, variance)
        if _close(mean, _by_precision(C, A, y, variance**2)[0]) or _close(
            mean, _by_precision(C, A, y, variance**0.5)[0]
        ):
            raise Mistake("`variance` is the noise variance: it is added to A C A^T as it is")
        if _close(covariance, C - right[1]):
            raise Mistake("this is the covariance of the posterior means; C minus it is what stays unknown")
        assert _close(mean, right[0]), "the mean differs from the one found by adding precisions"
        assert _close(covariance, right[1]), "the covariance differs from the one found by adding precisions"


@case("ex-09-posterior", "reproduces-what-it-was-told")
def _(answer):
    C, A, y = _linear_world()
    mean, covariance = _answered(answer, C, A, y, 0.0)
    assert _close(mean @ A.T, y), "without noise, reducing the posterior mean must give back y"
    assert _close(A @ covariance @ A.T, torch.zeros(2, 2)), "without noise nothing is unknown about A x"


@case("ex-09-posterior", "no-information")
def _(answer):
    C, A, y = _linear_world()
    mean, covariance = _answered(answer, C, 0 * A, y, 1.0)
    assert _close(mean, torch.zeros(5, 6)) and _close(covariance, C), "with A = 0 the posterior is the prior N(0, C)"


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-09-levels", name="draw_alpha", lesson=LESSON)


def _table(T: int = 50) -> Tensor:
    return linear_schedule(T).alpha_bar


@case("ex-09-levels", "from-one-level-to-the-next")
def _(answer):
    table, t = _table(), torch.tensor([1, 7, 30, 49])
    for u, shift in ((0.0, 0), (1.0, 1)):
        got = torch.as_tensor(answer(table, t, torch.full((4,), u).double())).double()
        right = table[t - shift].sqrt()
        if _close(got, table[t - shift]):
            raise Mistake("the table holds alpha-bar; alpha is its root")
        if u == 1 and _close(got, table[(t + 1).clamp(max=49)].sqrt()):
            raise Mistake("t - 1 is the cleaner neighbour; you went to the noisier one")
        if _close(got, table[t - 1 + shift].sqrt()) and not _close(got, right):
            raise Mistake("u = 0 is time t itself, u = 1 the cleaner neighbour")
        assert _close(got, right), f"u = {u:g} must give alpha of time t - {shift}"


@case("ex-09-levels", "time-0-reaches-the-data")
def _(answer):
    table, t = _table(), torch.tensor([0, 0, 0])
    got = torch.as_tensor(answer(table, t, torch.tensor([0.0, 0.5, 1.0]).double())).double()
    first = table[0].sqrt().item()
    if _close(got[2], table[-1].sqrt()):
        raise Mistake("index -1 is the last entry of the table, pure noise; before time 0 comes clean data, alpha = 1")
    assert _close(got, torch.tensor([first, (1 + first) / 2, 1.0])), "before time 0 comes clean data, alpha = 1"


@case("ex-09-levels", "uniform-in-alpha")
def _(answer):
    table, t = torch.tensor([0.81, 0.09]).double(), torch.tensor([1, 1, 1])
    got = torch.as_tensor(answer(table, t, torch.tensor([0.25, 0.5, 0.75]).double())).double()
    if _close(got, torch.tensor([0.27, 0.45, 0.63]).double().sqrt()):
        raise Mistake("you drew alpha-bar uniformly; here its root, alpha, is uniform")
    assert _close(got, torch.tensor([0.45, 0.6, 0.75])), "u must move alpha linearly, from 0.3 to 0.9 here"


@case("ex-09-levels", "one-for-each-sample")
def _(answer):
    table, t, u = _table(), torch.tensor([3, 3, 20]), torch.tensor([0.1, 0.9, 0.4]).double()
    got = torch.as_tensor(answer(table, t, u)).double()
    alpha = table.sqrt()
    assert got.shape == (3,), f"one alpha per sample, shape (3,), not {tuple(got.shape)}"
    assert _close(got, alpha[t] + u * (alpha[t - 1] - alpha[t])), "every sample has its own time and its own u"


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-09-see", name="what_to_tell", lesson=LESSON)


def _seen(answer, alpha: Tensor) -> Tensor:
    """Embeddings (N, 64), divided by their norm."""
    told = torch.as_tensor(answer(alpha)).reshape(-1)
    assert len(told) == len(alpha), f"one number for each level, {len(alpha)} of them, not {len(told)}"
    assert bool(told.isfinite().all()), "clean data (alpha = 1) and pure noise (alpha = 0) need finite numbers, too"
    return timestep_embedding(told, 64).double() / math.sqrt(32)


@case("ex-09-see", "finite-at-both-ends")
def _(answer):
    ends = _seen(answer, torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert (ends[0] - ends[1]).norm() > 0.5, "clean data and pure noise look alike to this network"


@case("ex-09-see", "neighbours-are-told-apart")
def _(answer):
    alpha = torch.linspace(0, 1, 101, dtype=torch.float64)
    seen = _seen(answer, alpha)
    steps = (seen[1:] - seen[:-1]).norm(dim=1)
    if steps.max() < 0.02:
        raise Mistake(
            f"levels 0.01 apart have embeddings {steps.max():.4f} apart (in units of their norm): the fastest sinusoid "
            "has frequency one, so numbers between 0 and 1 hardly move it"
        )
    assert steps.min() > 0.05, f"two levels 0.01 apart have embeddings only {steps.min():.4f} apart"


@case("ex-09-see", "no-two-levels-alike")
def _(answer):
    alpha = torch.linspace(0, 1, 401, dtype=torch.float64)
    seen = _seen(answer, alpha)
    apart = torch.cdist(seen, seen) + 9 * torch.eye(len(alpha)).double()
    i, j = divmod(int(apart.argmin()), len(alpha))
    assert apart.min() > 1e-3, f"alpha = {alpha[i]:.4f} and {alpha[j]:.4f} get the same embedding"
    far = (alpha[:, None] - alpha).abs() > 0.25
    assert apart[far].min() > 0.05, "levels far apart must not look alike"


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-09-augment", name="augment", lesson=LESSON)


@cache
def _pixels() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (3, 3, 4, 4), generator=generator, dtype=torch.uint8)
    return pixels, torch.tensor([0.0, 0.3, 0.8]), torch.randn(3, 3, 4, 4, generator=generator)


def _right(pixels: Tensor, sigma: Tensor, eps: Tensor) -> Tensor:
    y, s = pixels.double() / 127.5 - 1, sigma.double().reshape(-1, 1, 1, 1)
    return (1 - s**2).sqrt() * y + s * eps.double()


@case("ex-09-augment", "level-0-is-the-picture")
def _(answer):
    pixels, _, eps = _pixels()
    got = torch.as_tensor(answer(pixels, torch.zeros(3), eps))
    if _close(got, pixels.float(), 1e-4) or _close(got, pixels / 255, 1e-4):
        raise Mistake("the network sees pixels in [-1, 1]")
    assert _close(got, pixels / 127.5 - 1, 1e-4), "at level 0 nothing but the scaling to [-1, 1] may happen"


@case("ex-09-augment", "noise-after-scaling")
def _(answer):
    pixels, _, eps = _pixels()
    sigma = torch.full((3,), 0.5)
    got, right = torch.as_tensor(answer(pixels, sigma, eps)).double(), _right(pixels, sigma, eps)
    slope = (answer(pixels, sigma, eps + 1) - answer(pixels, sigma, eps)).double().mean().item()
    if abs(slope - 0.5 / 127.5) < 1e-4:
        raise Mistake("you added the noise before scaling to [-1, 1]: there it is 127.5 times too weak to be seen")
    if abs(slope - 1.0) < 1e-4:
        raise Mistake("you added the noise to pixels in [0, 1]: after scaling to [-1, 1] it is twice as strong as told")
    assert abs(slope - 0.5) < 1e-4, f"noise of standard deviation 0.5 was asked for, it has {slope:.4f}"
    assert got.shape == right.shape, f"the shape changed to {tuple(got.shape)}"


@case("ex-09-augment", "variance-preserving")
def _(answer):
    pixels, _, eps = _pixels()
    for sigma in (0.3, 0.9):
        level = torch.full((3,), sigma)
        got, right = torch.as_tensor(answer(pixels, level, eps)), _right(pixels, level, eps)
        if _close(got, _right(pixels, torch.zeros(3), eps) + sigma * eps, 1e-4):
            raise Mistake("the picture keeps its full strength: alpha = sqrt(1 - sigma^2) is missing")
        if _close(got, (1 - sigma) * _right(pixels, torch.zeros(3), eps) + sigma * eps, 1e-4):
            raise Mistake("alpha is sqrt(1 - sigma^2), not 1 - sigma")
        assert _close(got, right, 1e-4), f"not sqrt(1 - sigma^2) y + sigma eps at sigma = {sigma}"


@case("ex-09-augment", "a-level-for-each-sample")
def _(answer):
    pixels, sigma, eps = _pixels()
    got, right = torch.as_tensor(answer(pixels, sigma, eps)), _right(pixels, sigma, eps)
    for one in (sigma[0], sigma[-1], sigma.mean()):
        if _close(got, _right(pixels, one.expand(3), eps), 1e-4):
            raise Mistake("the whole batch got one level; every sample has its own")
    assert _close(got, right, 1e-4), "sigma holds one level for each picture of the batch"


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-09-redraw", name="left_over", lesson=LESSON)


def _redrawn(variance: float, shift: float, excess: float, sigma: float) -> tuple[float, float]:
    """Noise the base's Gaussian, take the true posterior of N(0, variance), add its variance: by regression lines."""
    alpha = math.sqrt(1 - sigma**2)
    noisy = alpha**2 * variance + sigma**2  # variance of z under the data
    slope = alpha * variance / noisy  # E[y | z] = slope z
    unknown = variance - slope * alpha * variance
    mean = slope * alpha * shift
    total = slope**2 * (alpha**2 * (variance + excess) + sigma**2) + unknown
    return mean, total - variance


@case("ex-09-redraw", "followed-through-both-steps")
def _(answer):
    for variance, shift, excess, sigma in ((0.5, 0.3, 0.2, 0.4), (0.02, 0.1, 0.05, 0.2), (2.0, -0.5, -0.7, 0.8)):
        got, right = tuple(map(float, answer(variance, shift, excess, sigma))), _redrawn(variance, shift, excess, sigma)
        alpha2 = 1 - sigma**2
        rho = alpha2 * variance / (alpha2 * variance + sigma**2)
        if _close(got[0], rho * shift) and _close(got[1], rho * excess):
            raise Mistake("a variance scales with the square: the excess shrinks by rho^2")
        if _close(got[0], rho**2 * shift):
            raise Mistake("the shift shrinks by rho, not by its square")
        if _close(got[0], shift * math.sqrt(alpha2) * variance / (alpha2 * variance + sigma**2)):
            raise Mistake("alpha comes twice: once when the noise is added, once in the way back")
        flat = variance / (variance + sigma**2)
        if _close(got[0], flat * shift):
            raise Mistake("alpha is missing: the condition is sqrt(1 - sigma^2) y + sigma eps")
        assert _close(got[0], right[0]), f"a shift of {shift} becomes {right[0]:.5f}, not {got[0]:.5f}"
        assert _close(got[1], right[1]), f"an excess of {excess} becomes {right[1]:.5f}, not {got[1]:.5f}"


@case("ex-09-redraw", "nothing-and-everything")
def _(answer):
    shift, excess = map(float, answer(0.5, 0.3, 0.2, 0.0))
    assert _close((shift, excess), (0.3, 0.2)), "at level 0 the base's errors come through unchanged"
    shift, excess = map(float, answer(0.5, 0.3, 0.2, 1.0))
    assert _close((shift, excess), (0.0, 0.0)), "at level 1 nothing of the base is left, its errors neither"


@case("ex-09-redraw", "fine-before-coarse")
def _(answer):
    fine, coarse = (float(answer(v, 1.0, 0.0, 0.3)[0]) for v in (0.01, 1.0))
    assert fine < 0.15 < 0.85 < coarse, (
        f"at sigma = 0.3 a direction of variance 0.01 keeps {fine:.2f} of a shift and one of variance 1 keeps "
        f"{coarse:.2f}; fine directions must be redrawn first"
    )


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-09-enough", name="enough_noise", lesson=LESSON)


@cache
def spectrum() -> Tensor:
    """(16,) variances of the small digits, direction by direction, as in the lesson."""
    x = digits("all")[0].double()
    small = F.avg_pool2d(x, 2).flatten(1)
    return torch.linalg.eigvalsh(small.T.cov() + 0.01 / 4 * torch.eye(16).double())


def error_left(sigma: float, power: int = 2, excess: float = 0.02) -> float:
    """KL divergence in nats after redrawing at a level, for a base with too much variance in every direction."""
    variance, alpha2 = spectrum(), 1 - sigma**2
    rho = alpha2 * variance / (alpha2 * variance + sigma**2)
    r = rho**power * excess / variance
    return float(0.5 * (r - torch.log1p(r)).sum())


def enough(share: float = 0.1, power: int = 2, excess: float = 0.02) -> float:
    """The smallest sigma that leaves this share of the error, by bisection."""
    low, high, target = 0.0, 1.0, share * error_left(0.0, power, excess)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if error_left(middle, power, excess) > target else (low, middle)
    return high


@case("ex-09-enough", "a-tenth-is-left")
def _(answer):
    assert isinstance(answer, int | float | Tensor), f"one number is wanted, not {type(answer).__name__}"
    got, right = float(answer), enough()
    if abs(got - enough(0.9)) < 0.002:
        raise Mistake("this takes a tenth away; a tenth is to be left")
    if abs(got - enough(power=1)) < 0.002:
        raise Mistake("an excess of variance shrinks by rho^2, not by rho")
    if abs(got - right**2) < 0.002:
        raise Mistake("this is sigma^2; sigma is asked for")
    if abs(got - math.sqrt(1 - right**2)) < 0.002:
        raise Mistake("this is alpha; sigma is asked for")
    assert abs(got - right) < 0.002, f"at sigma = {got:.4f} the share that is left is not a tenth"
