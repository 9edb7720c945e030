"""Checks of lesson 02: samplers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minidiff.course.exercises import case, exercise
from minidiff.course.outcomes import Mistake
from minidiff.exact import GaussianDenoiser, GaussianMixtureDenoiser
from minidiff.process import beta, beta_tilde, posterior_mean, transition
from minidiff.sampler import ddim, heun, sample
from minidiff.schedule import DATA, NoiseLevel, cosine_schedule, vp_schedule

LESSON = "02_samplers"
VP = vp_schedule()
PAIRS = [(VP.level(0.9), VP.level(0.6)), (VP.level(0.5), VP.level(0.2)), (VP.level(0.2), VP.level(0.05))]
EXPLODING = (NoiseLevel(1.0, 3.0, 2), NoiseLevel(1.0, 0.7, 1))
FINE = cosine_schedule(40)


def _close(a, b, tolerance: float = 1e-6) -> bool:
    a, b = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    return a.shape == b.shape and bool(torch.allclose(a, b, rtol=tolerance, atol=tolerance * 1e-3))


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- ex-02-reverse-variance -------------------------------------------------------------------------------------------

exercise("ex-02-reverse-variance", name="reverse_variance", lesson=LESSON)


def _gaussian_reverse_variance(v: float, t: NoiseLevel, s: NoiseLevel) -> float:
    """Var[x_s | x_t] for N(0, v) data, from the joint Gaussian of (x_s, x_t): x_0 does not appear."""
    scale, noise = transition(s, t)
    at_s = s.alpha**2 * v + s.sigma**2
    return at_s - (scale * at_s) ** 2 / (scale**2 * at_s + noise)


def _spread(v: float, t: NoiseLevel) -> float:
    """Var[x_0 | x_t] for N(0, v) data."""
    return v * t.sigma**2 / (t.alpha**2 * v + t.sigma**2)


@case("ex-02-reverse-variance", "point-mass")
def _(answer):
    for t, s in PAIRS:
        got = float(answer(t, s, 0.0))
        if _close(got, beta(t, s)):
            raise Mistake("the first term is the variance of q(x_s|x_t,x_0), beta-tilde, not beta")
        assert _close(got, beta_tilde(t, s)), "when x_0 is certain only the variance of q(x_s|x_t,x_0) is left"


@case("ex-02-reverse-variance", "standard-normal")
def _(answer):
    for t, s in PAIRS:
        got = float(answer(t, s, t.sigma**2))
        if _close(got, beta(t, s) ** 0.5):
            raise Mistake("this is the standard deviation; the variance was asked for")
        if _close(got, beta_tilde(t, s) + s.alpha * beta(t, s)):
            raise Mistake("the spread of x_0 is a variance: its coefficient has to be squared")
        assert _close(got, beta(t, s)), "for N(0, I) data Var[x_0|x_t] = sigma_t^2 and the answer is beta"


@case("ex-02-reverse-variance", "joint-gaussian")
def _(answer):
    for t, s in PAIRS:
        wanted = _gaussian_reverse_variance(0.3, t, s)
        got = float(answer(t, s, _spread(0.3, t)))
        assert _close(got, wanted), f"for N(0, 0.3) data the joint Gaussian gives {wanted:.6f}, not {got:.6f}"


@case("ex-02-reverse-variance", "variance-exploding")
def _(answer):
    t, s = EXPLODING
    wanted = _gaussian_reverse_variance(0.3, t, s)
    assert _close(float(answer(t, s, _spread(0.3, t))), wanted), (
        "wrong where alpha = 1: do not use sigma^2 = 1 - alpha^2"
    )


# -- ex-02-learned-variance -------------------------------------------------------------------------------------------

exercise("ex-02-learned-variance", name="learned_log_variance", lesson=LESSON)
FLOOR = 1e-5


def _log_variance(answer, output: float, t: NoiseLevel, s: NoiseLevel) -> float:
    got = answer(torch.full((2, 1, 2, 2), output, dtype=torch.float64), t, s, FLOOR)
    assert isinstance(got, Tensor) and got.shape == (2, 1, 2, 2), (
        "return one log variance for each number of the output"
    )
    return got.flatten()[0].item()


@case("ex-02-learned-variance", "ends")
def _(answer):
    t, s = PAIRS[1]
    low, high = math.log(beta_tilde(t, s)), math.log(beta(t, s))
    got = _log_variance(answer, -1.0, t, s), _log_variance(answer, 1.0, t, s)
    if _close(got, (high, low)):
        raise Mistake("the ends are swapped: 1 stands for beta")
    if _close(got, (2 * low - high, high)):
        raise Mistake("the output lies in [-1, 1]: rescale it to a fraction in [0, 1] first")
    assert _close(got, (low, high)), "an output of -1 stands for log beta-tilde, an output of 1 for log beta"


@case("ex-02-learned-variance", "middle")
def _(answer):
    t, s = PAIRS[1]
    got, low, high = _log_variance(answer, 0.0, t, s), beta_tilde(t, s), beta(t, s)
    if _close(got, math.log((low + high) / 2)):
        raise Mistake("you interpolated the variances; their logarithms are interpolated")
    assert _close(got, math.log(low * high) / 2), "an output of 0 stands for the geometric mean of the two variances"


@case("ex-02-learned-variance", "last-step")
def _(answer):
    t = PAIRS[2][1]
    got = _log_variance(answer, -1.0, t, DATA)
    assert math.isfinite(got), "beta-tilde is zero in the last step; the floor stands for it"
    assert _close(got, math.log(FLOOR)), "in the last step the floor stands for beta-tilde"


# -- ex-02-ddim-step --------------------------------------------------------------------------------------------------

exercise("ex-02-ddim-step", name="ddim_step", lesson=LESSON)


def _ddim_case(answer, t: NoiseLevel, s: NoiseLevel, eta: float, z: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """What the answer returns, x_0 and eps, with a constant z."""
    x0, eps = _normal(3, 1, 2, 2), _normal(3, 1, 2, 2, seed=1)
    x_t = t.alpha * x0 + t.sigma * eps
    got = answer(x_t, x0, t, s, eta, torch.full_like(x0, z))
    assert isinstance(got, Tensor) and got.shape == x0.shape, "return a tensor shaped as x_t"
    return got, x0, eps


@case("ex-02-ddim-step", "eta-zero")
def _(answer):
    for t, s in PAIRS:
        got, x0, eps = _ddim_case(answer, t, s, 0.0, z=1.0)
        assert _close(got, s.alpha * x0 + s.sigma * eps), "at eta = 0: the same x_0 and eps, remixed at the level s"


@case("ex-02-ddim-step", "keeps-the-marginal")
def _(answer):
    for t, s in PAIRS:
        for eta in (0.5, 1.0):
            quiet, x0, eps = _ddim_case(answer, t, s, eta)
            loud = _ddim_case(answer, t, s, eta, z=1.0)[0]
            noise, direction = (loud - quiet).flatten()[0].item(), ((quiet - s.alpha * x0) / eps).flatten()[0].item()
            if _close(direction, s.sigma) and noise:
                raise Mistake("with noise added, eps is multiplied by sqrt(sigma_s^2 - w^2), not by sigma_s")
            total = direction**2 + noise**2
            assert _close(total, s.sigma**2), (
                f"eta = {eta}: the variance at s is {total:.5f}, it must be {s.sigma**2:.5f}"
            )


@case("ex-02-ddim-step", "eta-one-is-ancestral")
def _(answer):
    for t, s in PAIRS:
        quiet, x0, eps = _ddim_case(answer, t, s, 1.0)
        noise = (_ddim_case(answer, t, s, 1.0, z=1.0)[0] - quiet).flatten()[0].item()
        if _close(noise, beta_tilde(t, s)):
            raise Mistake("z is multiplied by a standard deviation; you used the variance")
        assert _close(noise, beta_tilde(t, s) ** 0.5), "at eta = 1 the noise has variance beta-tilde"
        mean = posterior_mean(t.alpha * x0 + t.sigma * eps, x0, t, s)
        assert _close(quiet, mean), "at eta = 1 the mean is that of q(x_s|x_t,x_0)"


@case("ex-02-ddim-step", "eta-half")
def _(answer):
    t, s = PAIRS[1]
    noise = (_ddim_case(answer, t, s, 0.5, z=1.0)[0] - _ddim_case(answer, t, s, 0.5)[0]).flatten()[0].item()
    if _close(noise, (0.5 * beta_tilde(t, s)) ** 0.5):
        raise Mistake("eta scales the standard deviation: w = eta sqrt(beta-tilde)")
    assert _close(noise, 0.5 * beta_tilde(t, s) ** 0.5), "z is multiplied by eta sqrt(beta-tilde)"


@case("ex-02-ddim-step", "last-step")
def _(answer):
    for eta in (0.0, 1.0):
        got, x0, _ = _ddim_case(answer, PAIRS[2][1], DATA, eta, z=1.0)
        assert _close(got, x0), "a step to clean data returns x_0 itself, whatever eta"


@case("ex-02-ddim-step", "variance-exploding")
def _(answer):
    got, x0, eps = _ddim_case(answer, *EXPLODING, 0.0)
    assert _close(got, x0 + EXPLODING[1].sigma * eps), "wrong where alpha = 1: do not use sigma^2 = 1 - alpha^2"


# -- ex-02-rotation ---------------------------------------------------------------------------------------------------

exercise("ex-02-rotation", name="rotation", lesson=LESSON)


def _rotated(answer, start: float, angle: float):
    """The answer's pair, and the right one, when x_0 and eps are kept."""
    x0, eps = _normal(3, 1, 2, 2), _normal(3, 1, 2, 2, seed=1)
    at = lambda phi: (math.cos(phi) * x0 + math.sin(phi) * eps, math.cos(phi) * eps - math.sin(phi) * x0)
    out = answer(*at(start), angle)
    assert isinstance(out, (tuple, list)) and len(out) == 2, "return the pair (x_s, v_s)"
    assert all(isinstance(o, Tensor) and o.shape == x0.shape for o in out), "return two tensors shaped as x_t"
    return out, at(start - angle), at(start + angle)


@case("ex-02-rotation", "x-follows-ddim")
def _(answer):
    for start, angle in ((1.2, 0.3), (1.5, 1.5), (0.4, 0.1)):
        got, wanted, backwards = _rotated(answer, start, angle)
        if _close(got[0], backwards[0]):
            raise Mistake("this turns towards the noise; sampling decreases the angle")
        assert _close(got[0], wanted[0]), f"from angle {start} by {angle}: x_s must be alpha_s x_0 + sigma_s eps"


@case("ex-02-rotation", "v-follows")
def _(answer):
    for start, angle in ((1.2, 0.3), (1.5, 1.5), (0.4, 0.1)):
        got, wanted, _ = _rotated(answer, start, angle)
        assert _close(got[1], wanted[1]), f"from angle {start} by {angle}: v_s must be alpha_s eps - sigma_s x_0"


@case("ex-02-rotation", "keeps-the-length")
def _(answer):
    x, v = _normal(3, 1, 2, 2, seed=2), _normal(3, 1, 2, 2, seed=3)
    out = answer(x, v, 0.7)
    assert isinstance(out, (tuple, list)) and len(out) == 2, "return the pair (x_s, v_s)"
    assert _close(out[0] ** 2 + out[1] ** 2, x**2 + v**2), "a rotation keeps x^2 + v^2; a straight step lengthens it"


# -- ex-02-heun -------------------------------------------------------------------------------------------------------

exercise("ex-02-heun", name="heun_sample", lesson=LESSON)
VARIANCE = 0.25
GAUSSIAN = GaussianDenoiser(torch.zeros(1, dtype=torch.float64), VARIANCE)


def _deviation_error(run, levels: list[NoiseLevel]) -> float:
    """Relative error of the standard deviation that a deterministic sampler gives to N(0, 1/4) data."""
    out = run(GAUSSIAN, levels, torch.ones(1, 1, dtype=torch.float64))
    assert isinstance(out, Tensor) and out.shape == (1, 1), "return a tensor shaped as x_T"
    start = levels[0].alpha ** 2 * VARIANCE + levels[0].sigma ** 2
    return abs(out.item() / math.sqrt(VARIANCE / start) - 1)


@case("ex-02-heun", "second-order")
def _(answer):
    errors = [_deviation_error(answer, FINE.levels(n)[1:]) for n in (40, 80)]
    assert all(map(math.isfinite, errors)) and errors[1] > 0, f"errors at 40 and 80 steps: {errors}"
    order = math.log2(errors[0] / errors[1])
    if 0.8 < order < 1.2:
        raise Mistake(
            "twice the steps only halve the error: the second slope is not the one at the new point and level"
        )
    assert 1.8 < order < 2.2, f"twice the steps must divide the error by about four; here by {2**order:.2f}"


@case("ex-02-heun", "pure-noise")
def _(answer):
    angles = [math.pi / 2 * (1 - i / 40) for i in range(40)]
    levels = [NoiseLevel(math.cos(a) if i else 0.0, math.sin(a), i) for i, a in enumerate(angles)] + [DATA]
    try:
        error = _deviation_error(answer, levels)
    except ZeroDivisionError:
        error = math.inf
    if not error < 1:
        raise Mistake("sigma / alpha is infinite at pure noise: step in the angle")
    assert error < 0.01, f"40 steps from alpha = 0 leave an error of {error:.3f}; Heun leaves less than 0.01"


@case("ex-02-heun", "last-step")
def _(answer):
    x, level = _normal(5, 1, seed=4), FINE.level(0.3)
    got, wanted = answer(GAUSSIAN, [level, DATA], x), GAUSSIAN(x, level).x0
    assert _close(got, wanted), "the step to clean data returns x_0; there is no second slope there"


@case("ex-02-heun", "agrees-with-minidiff")
def _(answer):
    means = torch.tensor([[-0.9], [0.8]], dtype=torch.float64)
    world, x = GaussianMixtureDenoiser(means, 0.05), _normal(7, 1, seed=5)
    levels = FINE.levels(12)
    assert _close(answer(world, levels, x), sample(heun(), world, levels, x)), "differs on a mixture of two Gaussians"


# -- ex-02-steps ------------------------------------------------------------------------------------------------------

exercise("ex-02-steps", name="steps_needed", lesson=LESSON)


def _fewest(answer, index: int, sampler) -> None:
    assert isinstance(answer, (tuple, list)) and len(answer) == 2, "the answer is a pair of integers (ddim, heun)"
    n = answer[index]
    assert isinstance(n, int) and not isinstance(n, bool) and 2 <= n <= 1000, (
        "each number of steps is an integer from 2"
    )
    run = lambda *arguments: sample(sampler, *arguments)
    error, before = _deviation_error(run, FINE.levels(n)), _deviation_error(run, FINE.levels(n - 1))
    assert error < 0.01, f"{n} steps leave an error of {error:.5f}, not below 0.01"
    assert before >= 0.01, f"{n - 1} steps would do: they leave {before:.5f}"


@case("ex-02-steps", "ddim")
def _(answer):
    _fewest(answer, 0, ddim())


@case("ex-02-steps", "heun")
def _(answer):
    _fewest(answer, 1, heun())
