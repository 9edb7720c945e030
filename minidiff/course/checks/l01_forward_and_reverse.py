"""Checks of lesson 01: forward and reverse."""

from __future__ import annotations

import math

import torch

from minidiff.course.exercises import Mistake, case, exercise
from minidiff.exact import EmpiricalDenoiser
from minidiff.process import diffuse
from minidiff.schedule import DATA, NoiseLevel, clipped_cosine_schedule, linear_schedule, vp_schedule

LESSON = "01_forward_and_reverse"
exercise("ex-01-compose", name="compose", lesson=LESSON)
exercise("ex-01-posterior", name="posterior", lesson=LESSON)
exercise("ex-01-convert", name="convert", lesson=LESSON)
exercise("ex-01-ideal", name="ideal_denoiser", lesson=LESSON)
exercise("ex-01-weight", name="vlb_weight", lesson=LESSON)
exercise("ex-01-commit", name="commitment_time", lesson=LESSON)

VP = vp_schedule()
NOISY, MIDDLE, CLEAN = VP.level(0.9), VP.level(0.5), VP.level(0.2)
EXPLODING_NOISY, EXPLODING_CLEAN = NoiseLevel(1.0, 3.0, 2), NoiseLevel(1.0, 0.7, 1)


def _close(a, b, tolerance: float = 1e-6) -> bool:
    a, b = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    return a.shape == b.shape and bool(torch.allclose(a, b, rtol=tolerance, atol=tolerance))


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- ex-01-compose ----------------------------------------------------------------------------------------------------


def _pair(answer, betas) -> tuple[torch.Tensor, torch.Tensor]:
    out = answer(torch.as_tensor(betas, dtype=torch.float64))
    assert isinstance(out, (tuple, list)) and len(out) == 2, "return the pair (alpha, sigma)"
    alpha, sigma = (torch.as_tensor(v, dtype=torch.float64) for v in out)
    assert alpha.shape == sigma.shape == (len(betas),), (
        f"alpha and sigma need one entry per beta, shape ({len(betas)},)"
    )
    return alpha, sigma


@case("ex-01-compose", "one-step")
def _(answer):
    alpha, sigma = _pair(answer, [0.36])
    if _close(sigma, [0.36]) or _close(alpha, [0.64]):
        raise Mistake("beta is a variance: after one step alpha = sqrt(1 - beta) and sigma = sqrt(beta)")
    assert _close(alpha, [0.8]) and _close(sigma, [0.6]), "one step with beta = 0.36 has alpha 0.8 and sigma 0.6"


@case("ex-01-compose", "two-steps")
def _(answer):
    alpha, sigma = _pair(answer, [0.19, 0.36])
    if _close(sigma[1], math.sqrt(0.55)):
        raise Mistake("the noise of the first step is itself shrunk by the second: variances are (1 - beta) v + beta")
    if _close(alpha, [1.0, 0.9]):
        raise Mistake("off by one: alpha[t] includes the step t itself; clean data is not in the table")
    assert _close(alpha, [0.9, 0.72]), "signal scales multiply: 0.9, then 0.9 * 0.8"
    assert _close(sigma.square(), [0.19, 0.4816]), "variances: 0.19, then 0.64 * 0.19 + 0.36"


@case("ex-01-compose", "whole-schedule")
def _(answer):
    schedule = linear_schedule()
    alpha, sigma = _pair(answer, schedule.betas)
    assert _close(alpha.square() + sigma.square(), torch.ones(schedule.T)), "the total variance must stay 1"
    assert _close(alpha, schedule.alpha_bar.sqrt()), "alpha must be the square root of the product of (1 - beta)"


# -- ex-01-posterior --------------------------------------------------------------------------------------------------


def _brute_posterior(x_t: float, x0: float, t: NoiseLevel, s: NoiseLevel) -> tuple[float, float]:
    """Mean and variance of q(x_s | x_t, x_0) from Bayes' rule on a grid."""
    grid = torch.linspace(-12, 12, 24001, dtype=torch.float64)
    scale = t.alpha / s.alpha
    variance = t.sigma**2 - scale**2 * s.sigma**2
    weight = torch.softmax(
        -((x_t - scale * grid) ** 2) / (2 * variance) - (grid - s.alpha * x0) ** 2 / (2 * s.sigma**2), 0
    )
    mean = (weight * grid).sum()
    return mean.item(), (weight * (grid - mean) ** 2).sum().item()


def _posterior(answer, x_t: float, x0: float, t: NoiseLevel, s: NoiseLevel) -> tuple[float, float]:
    tensor = lambda v: torch.full((1, 2), v, dtype=torch.float64)
    out = answer(tensor(x_t), tensor(x0), t, s)
    assert isinstance(out, (tuple, list)) and len(out) == 2, "return the pair (mean, variance)"
    mean = torch.as_tensor(out[0])
    assert mean.shape == (1, 2), "the mean has the shape of x_t"
    return mean.flatten()[0].item(), torch.as_tensor(out[1]).flatten()[0].item()


@case("ex-01-posterior", "mean")
def _(answer):
    for x_t, x0 in ((0.7, -0.4), (0.0, 1.0), (1.5, 0.0)):
        mean = _posterior(answer, x_t, x0, NOISY, CLEAN)[0]
        swapped = _brute_posterior(x0, x_t, NOISY, CLEAN)[0]
        if _close(mean, swapped, 1e-5) and x_t != x0:
            raise Mistake("the coefficients of x_t and x_0 are swapped")
        wanted = _brute_posterior(x_t, x0, NOISY, CLEAN)[0]
        assert _close(mean, wanted, 1e-5), (
            f"for x_t={x_t}, x_0={x0} Bayes' rule on a grid gives mean {wanted:.5f}, not {mean:.5f}"
        )


@case("ex-01-posterior", "variance")
def _(answer):
    variance, wanted = _posterior(answer, 0.7, -0.4, NOISY, CLEAN)[1], _brute_posterior(0.7, -0.4, NOISY, CLEAN)[1]
    if _close(variance, math.sqrt(wanted), 1e-5):
        raise Mistake("this is the standard deviation; the variance was asked for")
    if _close(variance, NOISY.sigma**2 - (NOISY.alpha / CLEAN.alpha) ** 2 * CLEAN.sigma**2, 1e-5):
        raise Mistake("this is beta, the variance of the forward step; knowing x_0 shrinks it by sigma_s^2 / sigma_t^2")
    assert _close(variance, wanted, 1e-5), f"Bayes' rule on a grid gives variance {wanted:.5f}, not {variance:.5f}"


@case("ex-01-posterior", "variance-exploding")
def _(answer):
    got = _posterior(answer, 2.0, -0.4, EXPLODING_NOISY, EXPLODING_CLEAN)
    wanted = _brute_posterior(2.0, -0.4, EXPLODING_NOISY, EXPLODING_CLEAN)
    assert _close(got, wanted, 1e-5), "wrong where alpha = 1 and sigma grows: do not use sigma^2 = 1 - alpha^2"


@case("ex-01-posterior", "last-step")
def _(answer):
    assert _close(_posterior(answer, 0.7, -0.4, CLEAN, DATA), (-0.4, 0.0)), "at clean data the posterior is x_0 itself"


# -- ex-01-convert ----------------------------------------------------------------------------------------------------


def _four(level: NoiseLevel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    x0, eps = _normal(3, 1, 2, 2), _normal(3, 1, 2, 2, seed=1)
    alpha, sigma = level.like(x0)
    return diffuse(x0, level, eps), {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0, "score": -eps / sigma}


def _converts(answer, level: NoiseLevel, source: str, target: str) -> None:
    x, values = _four(level)
    got = answer(x, level, values[source], source, target)
    assert isinstance(got, torch.Tensor) and got.shape == x.shape, f"{source} to {target}: return a tensor shaped as x"
    if _close(got, -values[target]):
        raise Mistake(f"{source} to {target}: the sign is wrong")
    assert _close(got, values[target]), f"{source} to {target} is wrong at alpha={level.alpha}, sigma={level.sigma}"


@case("ex-01-convert", "x0-and-eps")
def _(answer):
    _converts(answer, MIDDLE, "x0", "eps")
    _converts(answer, MIDDLE, "eps", "x0")


@case("ex-01-convert", "score")
def _(answer):
    x, values = _four(MIDDLE)
    got = answer(x, MIDDLE, values["eps"], "eps", "score")
    if isinstance(got, torch.Tensor) and _close(got, -values["eps"]):
        raise Mistake("the score is -eps / sigma: its length depends on the noise level")
    for other in ("x0", "eps"):
        _converts(answer, MIDDLE, other, "score")
        _converts(answer, MIDDLE, "score", other)


@case("ex-01-convert", "v")
def _(answer):
    for other in ("x0", "eps", "score"):
        _converts(answer, MIDDLE, other, "v")
        _converts(answer, MIDDLE, "v", other)


@case("ex-01-convert", "variance-exploding")
def _(answer):
    for source in ("x0", "eps", "v", "score"):
        for target in ("x0", "eps", "v", "score"):
            _converts(answer, EXPLODING_NOISY, source, target)


@case("ex-01-convert", "one-level-per-sample")
def _(answer):
    level = linear_schedule().level(torch.tensor([100, 500, 900]))
    _converts(answer, level, "v", "x0")


# -- ex-01-ideal ------------------------------------------------------------------------------------------------------


def _ideal(answer, x, level, images) -> torch.Tensor:
    got = answer(x, level, images)
    assert isinstance(got, torch.Tensor) and got.shape == x.shape, "return a tensor shaped as x"
    return got


@case("ex-01-ideal", "two-points")
def _(answer):
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None, None, None]
    images = torch.tensor([-1.0, 1.0], dtype=torch.float64)[:, None, None, None]
    got = _ideal(answer, x, MIDDLE, images)
    slope = MIDDLE.alpha / MIDDLE.sigma**2
    if _close(got, torch.tanh(2 * slope * x)):
        raise Mistake("a factor 1/2 is missing in the exponent of the Gaussian")
    if _close(got, torch.tanh(slope / MIDDLE.alpha * x)):
        raise Mistake("compare x_t with alpha times the images, not with the images")
    assert _close(got, torch.tanh(slope * x)), "for data at -1 and +1 the answer is tanh(alpha x / sigma^2)"


@case("ex-01-ideal", "many-pixels")
def _(answer):
    images = _normal(20, 1, 4, 4)
    x = diffuse(images[:5], MIDDLE, _normal(5, 1, 4, 4, seed=2))
    wanted = EmpiricalDenoiser(images)(x, MIDDLE).x0
    assert _close(_ideal(answer, x, MIDDLE, images), wanted), (
        "wrong for 16 pixels: squared distances add over the pixels"
    )


@case("ex-01-ideal", "far-from-the-data")
def _(answer):
    images = _normal(20, 1, 8, 8)
    got = _ideal(answer, images[:5] + 0.3, NoiseLevel(1.0, 0.01, 0), images)
    if not bool(torch.isfinite(got).all()):
        raise Mistake("exp underflows when every image is far away: subtract the largest exponent first (softmax does)")
    assert _close(got, images[:5]), "with hardly any noise the answer is the nearest image"


# -- ex-01-weight -----------------------------------------------------------------------------------------------------


@case("ex-01-weight", "snr-ratio")
def _(answer):
    got, ratio = float(answer(NOISY, CLEAN)), CLEAN.snr / NOISY.snr
    for wrong, mistake in (
        (ratio - 1, "the factor 1/2 of the Gaussian KL is missing"),
        (
            (CLEAN.snr - NOISY.snr) / 2,
            "this is the weight of |x_0 - x0_hat|^2; the weight of |eps - eps_hat|^2 was asked for",
        ),
        ((1 - 1 / ratio) / 2, "the variance of the reverse step is beta-tilde here, not beta"),
    ):
        if _close(got, wrong):
            raise Mistake(mistake)
    assert _close(got, (ratio - 1) / 2), "compare KL(q(x_s|x_t,x_0) || p(x_s|x_t)) with w |eps - eps_hat|^2"


@case("ex-01-weight", "variance-exploding")
def _(answer):
    got = float(answer(EXPLODING_NOISY, EXPLODING_CLEAN))
    assert _close(got, ((3.0 / 0.7) ** 2 - 1) / 2), "wrong where alpha = 1: write it with signal-to-noise ratios"


# -- ex-01-commit -----------------------------------------------------------------------------------------------------


def measure_commitment(noise=diffuse, schedule=None) -> int:
    """First time, in steps of 50, at which fewer than half of 300 noised held-out digits are classified right.

    Args:
        noise: How to noise ``(x0, level, eps)``.
        schedule: The clipped cosine schedule when left out.
    """
    from minidiff.data.digits import digits

    world = EmpiricalDenoiser(*digits("train"), bandwidth=0.25)
    images, labels = digits("heldout")
    images, labels = images[:300].double(), labels[:300]
    schedule, eps = schedule or clipped_cosine_schedule(), _normal(*images.shape, seed=11)
    for time in range(0, 1000, 50):
        level = schedule.level(time)
        guess = world.log_prob_label(noise(images, level, eps), level).argmax(1)
        if (guess == labels).double().mean() < 0.5:
            return time
    return 1000


@case("ex-01-commit", "a-time")
def _(answer):
    assert isinstance(answer, int) and not isinstance(answer, bool), "the answer is one integer, a time of the schedule"
    assert 0 <= answer < 1000 and answer % 50 == 0, "the answer is one of the times 0, 50, ..., 950"


@case("ex-01-commit", "measured")
def _(answer):
    wanted = measure_commitment()
    if abs(answer - (1000 - wanted)) <= 50 < abs(answer - wanted):
        raise Mistake("time runs from data (0) to noise (999); this looks counted from the other end")
    assert abs(answer - wanted) <= 50, "another draw of the noise disagrees by more than one step of 50"
