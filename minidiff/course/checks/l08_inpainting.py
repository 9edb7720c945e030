"""Checks of lesson 08: Gaussian conditionals, pasting, leaping back, resamplings, posterior weights, widening."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.course.exercises import case, exercise
from minidiff.course.outcomes import Mistake
from minidiff.exact import EmpiricalDenoiser, GaussianDenoiser
from minidiff.process import posterior_mean, transition
from minidiff.random import randn
from minidiff.sampler import walk
from minidiff.schedule import NoiseLevel, cosine_schedule

LESSON = "08_inpainting"


def _close(a, b, tolerance: float = 1e-6) -> bool:
    a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
    return a.shape == b.shape and bool(((a - b).abs() <= tolerance * (1 + b.abs())).all())


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-08-conditional", name="conditional", lesson=LESSON)


def _gaussian() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, covariance, which entries are known, and their values: five dimensions, known and unknown interleaved."""
    generator = torch.Generator().manual_seed(1)
    root, mean = randn((5, 5), generator, torch.float64), randn((5,), generator, torch.float64)
    known = torch.tensor([True, False, True, False, False])
    return mean, root @ root.T, known, randn((2,), generator, torch.float64)


def _by_precision(mean: Tensor, covariance: Tensor, known: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    precision = torch.linalg.inv(covariance)
    inner = torch.linalg.inv(precision[~known][:, ~known])
    return mean[~known] - inner @ precision[~known][:, known] @ (value - mean[known]), inner


@case("ex-08-conditional", "two-pixels")
def _(answer):
    for rho in (0.6, -0.9):
        pair, known = torch.tensor([[1.0, rho], [rho, 1.0]]).double(), torch.tensor([False, True])
        mean, covariance = answer(torch.zeros(2).double(), pair, known, torch.tensor([1.5]).double())
        mean, covariance = torch.as_tensor(mean).reshape(-1), torch.as_tensor(covariance).reshape(-1)
        if _close(covariance, [1.0]):
            raise Mistake("this is the variance of the unknown pixel alone; knowing the other one lowers it")
        assert _close(mean, [1.5 * rho]), f"the mean must be rho k = {1.5 * rho:.2f}, not {mean.tolist()}"
        assert _close(covariance, [1 - rho**2]), f"the variance must be 1 - rho^2, not {covariance.tolist()}"


@case("ex-08-conditional", "mean-is-subtracted")
def _(answer):
    mean, covariance, known, value = _gaussian()
    got, right = answer(mean, covariance, known, value)[0], _by_precision(mean, covariance, known, value)[0]
    gain = covariance[~known][:, known] @ covariance[known][:, known].inverse()
    if _close(got, right + gain @ mean[known]):
        raise Mistake("compare the known values with their mean: C_uk C_kk^-1 (k - mu_k)")
    assert _close(got, right), f"the conditional mean is {right.tolist()}, not {torch.as_tensor(got).tolist()}"


@case("ex-08-conditional", "covariance-in-five-dimensions")
def _(answer):
    mean, covariance, known, value = _gaussian()
    got, right = answer(mean, covariance, known, value)[1], _by_precision(mean, covariance, known, value)[1]
    assert torch.as_tensor(got).shape == (3, 3), "three entries are unknown: the covariance is (3, 3)"
    if _close(got, 2 * covariance[~known][:, ~known] - right):
        raise Mistake("knowing something makes the rest more certain: the second term is subtracted")
    assert _close(got, right), "not C_uu - C_uk C_kk^-1 C_ku"


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-08-paste", name="pasted_in", lesson=LESSON)
LEVEL = NoiseLevel(0.3, 0.8, 500)  # not variance preserving: alpha and sigma are two things


def _pictures() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, image, eps = randn((3, 2, 3, 4, 4), torch.Generator().manual_seed(2), torch.float64)
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    mask[..., :2] = 1.0
    return x, image, mask, eps


@case("ex-08-paste", "one-is-known")
def _(answer):
    x, image, mask, eps = _pictures()
    got = torch.as_tensor(answer(x, LEVEL, image, mask, eps)).double()
    assert got.shape == x.shape, f"a sample of shape {tuple(x.shape)} is wanted, not {tuple(got.shape)}"
    if _close(got[..., :2], x[..., :2]):
        raise Mistake("the mask is 1 where a pixel is known; you pasted where it is 0")
    assert torch.equal(got[..., 2:], x[..., 2:]), "where the mask is 0 the sample stays as it is, to the last bit"


@case("ex-08-paste", "at-the-level")
def _(answer):
    x, image, mask, eps = _pictures()
    got = torch.as_tensor(answer(x, LEVEL, image, mask, eps)).double()[..., :2]
    right = (LEVEL.alpha * image + LEVEL.sigma * eps)[..., :2]
    if _close(got, image[..., :2]) or _close(got, (LEVEL.alpha * image)[..., :2]):
        raise Mistake("the denoiser expects noisy pixels at this level; you pasted clean ones")
    if _close(got, (image + LEVEL.sigma * eps)[..., :2]):
        raise Mistake("alpha is missing: the signal has shrunk at this level")
    if _close(got, (LEVEL.alpha * image + LEVEL.sigma**2 * eps)[..., :2]):
        raise Mistake("sigma is the standard deviation; you used the variance")
    if _close(got, (LEVEL.alpha * image + math.sqrt(1 - LEVEL.alpha**2) * eps)[..., :2]):
        raise Mistake("this level is not variance preserving; use its own sigma")
    assert _close(got, right), "known pixels must be alpha image + sigma eps"


@case("ex-08-paste", "nothing-leaks")
def _(answer):
    x, image, mask, eps = _pictures()
    hole = torch.where(mask == 1, image, torch.full_like(image, math.nan))
    got = torch.as_tensor(answer(x, LEVEL, hole, mask, eps))
    assert bool(got.isfinite().all()), "what the image holds where nothing is known (here NaN) must not matter"


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-08-leap", name="leap_back", lesson=LESSON)


def _leap(answer, r: NoiseLevel, t: NoiseLevel) -> tuple[float, float]:
    """Factor of x and of eps."""
    one, none = torch.ones(2, 3, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64)
    scale, noise = (torch.as_tensor(answer(*inputs)) for inputs in ((one, r, t, none), (none, r, t, one)))
    assert scale.shape == noise.shape == (2, 3), "a sample of the same shape is wanted"
    return scale.mean().item(), noise.mean().item()


def _leaps() -> list[tuple[NoiseLevel, NoiseLevel]]:
    schedule = cosine_schedule()
    other = NoiseLevel(1.0, 0.5, 0.0), NoiseLevel(1.0, 1.3, 0.0)  # variance exploding
    return [(schedule.level(0.4), schedule.level(0.5)), (schedule.level(0.1), schedule.level(0.7)), other]


@case("ex-08-leap", "the-signal-shrinks")
def _(answer):
    for r, t in _leaps():
        scale, _ = _leap(answer, r, t)
        if abs(scale - t.alpha) < 1e-6 and abs(r.alpha - 1) > 1e-3:
            raise Mistake("x is no clean picture: it carries alpha_r already, so its factor is alpha_t / alpha_r")
        if abs(scale - r.alpha / t.alpha) < 1e-6 and abs(r.alpha - t.alpha) > 1e-3:
            raise Mistake("upside down: the factor is alpha_t / alpha_r, less than one")
        assert abs(scale - t.alpha / r.alpha) < 1e-6, (
            f"the factor of x must be {t.alpha / r.alpha:.4f}, not {scale:.4f}"
        )


@case("ex-08-leap", "the-noise-adds-up")
def _(answer):
    for r, t in _leaps():
        scale, noise = _leap(answer, r, t)
        right = math.sqrt(transition(r, t)[1])
        if abs(noise - (t.sigma - t.alpha / r.alpha * r.sigma)) < 1e-6:
            raise Mistake("variances subtract, standard deviations do not; this adds too little noise")
        if abs(noise - t.sigma) < 1e-6:
            raise Mistake("x is noisy already; sigma_t on top of it is too much")
        if abs(noise - right**2) < 1e-6:
            raise Mistake("you used the variance where the standard deviation belongs")
        after = (scale * r.sigma) ** 2 + noise**2
        assert abs(noise - right) < 1e-6, f"the noise variance becomes {after:.4f}, but level t has {t.sigma**2:.4f}"


@case("ex-08-leap", "two-leaps-are-one")
def _(answer):
    low, middle, high = (cosine_schedule().level(at) for at in (0.2, 0.45, 0.8))
    (a, b), (c, d), (whole, total) = _leap(answer, low, middle), _leap(answer, middle, high), _leap(answer, low, high)
    assert abs(a * c - whole) < 1e-6, "leaping in two parts must shrink the signal as leaping at once does"
    assert abs((c * b) ** 2 + d**2 - total**2) < 1e-6, "leaping in two parts must add as much noise as leaping at once"


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-08-resamplings", name="enough", lesson=LESSON)


@cache
def measure_gain(rho: float, n: int, resamplings: int, late: bool = False) -> float:
    """Mean of the unknown of two pixels when the other one is 1 and pasted in: the chain's means, step by step."""
    levels, probes = cosine_schedule(most=30.0).levels(n), torch.eye(2, dtype=torch.float64)
    world = GaussianDenoiser(torch.zeros(2), torch.tensor([[1.0, rho], [rho, 1.0]]))
    moves = [posterior_mean(probes, world(probes, t).x0, t, r).T for t, r in pairwise(levels)]
    mean = torch.zeros(2, dtype=torch.float64)
    for i, j in pairwise(walk(n, resamplings)):
        if j < i:
            mean = mean * transition(levels[i], levels[j])[0]
        else:
            mean = moves[i] @ mean
            mean[1] = levels[i if late else j].alpha
    return mean[0].item()


@cache
def measure_enough(rho: float = 0.6, n: int = 25, share: float = 0.95, late: bool = False) -> int:
    """The smallest number of resamplings whose mean reaches that share of the right one."""
    return next(k for k in range(1, 200) if measure_gain(rho, n, k, late) >= share * rho)


@case("ex-08-resamplings", "a-count")
def _(answer):
    assert isinstance(answer, int | float | Tensor), f"one number is wanted, not {type(answer).__name__}"
    assert float(answer) == int(float(answer)) and float(answer) >= 1, f"a whole number of resamplings, not {answer}"


@case("ex-08-resamplings", "reaches-95-percent")
def _(answer):
    got, right = int(float(answer)), measure_enough()
    if got == right - 1:
        raise Mistake("one too few, or you counted the leaps; a stretch that is taken twice has one leap")
    if got == measure_enough(0.9):
        raise Mistake("this is the answer for rho = 0.9")
    if got == measure_enough(0.6, 25, 0.9):
        raise Mistake("this reaches 90 % of the right mean")
    assert got >= right, f"with {got} the mean is {measure_gain(0.6, 25, got) / 0.6:.1%} of the right one"
    assert got == right, f"a smaller number than {got} is enough"


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-08-posterior", name="explain", lesson=LESSON)


def _halves() -> tuple[Tensor, Tensor, Tensor]:
    """Thirty pictures, another one, and a mask that knows its left half."""
    generator = torch.Generator().manual_seed(3)
    images, picture = randn((30, 2, 4, 4), generator, torch.float64), randn((2, 4, 4), generator, torch.float64)
    mask = torch.zeros(2, 4, 4, dtype=torch.float64)
    mask[..., :2] = 1.0
    return images, picture, mask


def _weights(images: Tensor, picture: Tensor, known: Tensor, h: float) -> Tensor:
    return (-(images - picture)[:, known].square().sum(1) / (2 * h**2)).softmax(0)


@case("ex-08-posterior", "bayes-on-the-visible")
def _(answer):
    images, picture, mask = _halves()
    for h in (0.7, 1.5):
        got = torch.as_tensor(answer(images, picture, mask, h)).double()
        right = EmpiricalDenoiser(images, bandwidth=h).given(picture, mask).weights
        if _close(got, _weights(images, picture, mask == 0, h)):
            raise Mistake("you compared the hidden half; the mask is 1 where a pixel is known")
        if _close(got, _weights(images, picture, mask >= 0, h)):
            raise Mistake("you compared whole pictures; the lower half of this one is not known")
        if _close(got, _weights(images, picture, mask == 1, h / math.sqrt(2))):
            raise Mistake("a factor 2 is missing: the Gaussian's exponent is -d^2 / (2 h^2)")
        if _close(got, _weights(images, picture, mask == 1, math.sqrt(h))):
            raise Mistake("the bandwidth is a standard deviation; square it")
        assert got.shape == (30,), f"one weight for each of 30 images, not {tuple(got.shape)}"
        assert _close(got, right), f"not the posterior weights for a bandwidth of {h}"


@case("ex-08-posterior", "sums-to-one")
def _(answer):
    images, picture, mask = _halves()
    total = float(torch.as_tensor(answer(images, picture, mask, 0.9)).sum())
    assert abs(total - 1) < 1e-6, f"the weights add up to {total:.4g}, not 1"


@case("ex-08-posterior", "survives-underflow")
def _(answer):
    images, picture, mask = _halves()
    got = torch.as_tensor(answer(images, 100 * picture, mask, 0.1)).double()
    assert bool(got.isfinite().all()), "nothing explains this picture well, and exp(-1e6) is zero: stay in logarithms"
    assert abs(float(got.sum()) - 1) < 1e-6, "also among bad explanations one is best, and the weights add up to 1"


# ----------------------------------------------------------------------------------------------------------------------
exercise("ex-08-widen", name="widen", lesson=LESSON)


def _widened(answer, extra: int, after: int) -> tuple[Tensor, Tensor]:
    weight = randn((4, 6, 3, 3), torch.Generator().manual_seed(4))
    got = torch.as_tensor(answer(weight, extra, after))
    expected = (4, 6 + extra, 3, 3)
    assert tuple(got.shape) == expected, f"weights of shape {expected} are wanted, not {tuple(got.shape)}"
    return weight, got


@case("ex-08-widen", "computes-what-it-did")
def _(answer):
    for after in (6, 3):
        weight, got = _widened(answer, 4, after)
        x, new = randn((2, 6, 5, 5), torch.Generator().manual_seed(5)), torch.full((2, 4, 5, 5), 7.0)
        seen = torch.cat([x[:, :after], new, x[:, after:]], dim=1)
        at_end = torch.cat([x, new], dim=1)
        before, now = F.conv2d(x, weight), F.conv2d(seen, got.to(weight))
        if after == 3 and _close(F.conv2d(at_end, got.to(weight)), before, 1e-4) and not _close(now, before, 1e-4):
            raise Mistake("the zeros stand at the end; the new channels come after the first three")
        assert _close(now, before, 1e-4), "whatever the new channels hold, the result must be that of the old weights"


@case("ex-08-widen", "new-weights-are-zero")
def _(answer):
    for extra in (4, 1):
        _, got = _widened(answer, extra, 3)
        largest = got[:, 3 : 3 + extra].abs().max().item()
        assert largest == 0, f"the new weights must be exactly zero, not up to {largest:.2g}"


@case("ex-08-widen", "old-weights-are-kept")
def _(answer):
    weight, got = _widened(answer, 2, 4)
    assert torch.equal(got[:, :4].to(weight), weight[:, :4]), "the first four channels keep their weights, bit for bit"
    assert torch.equal(got[:, 6:].to(weight), weight[:, 4:]), "the last two channels keep their weights, bit for bit"
    assert got.dtype == weight.dtype, f"weights of {weight.dtype} stay {weight.dtype}, not {got.dtype}"
