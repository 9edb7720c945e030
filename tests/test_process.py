"""The forward process and its posterior, against composition, Bayes' rule on a grid, Monte-Carlo and diffusers."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler

from minidiff.exact import GaussianDenoiser
from minidiff.prediction import Prediction
from minidiff.process import (
    beta,
    beta_tilde,
    beta_tilde_floor,
    diffuse,
    posterior_mean,
    renoise,
    reverse_log_variance,
    transition,
)
from minidiff.schedule import DATA, edm_schedule, linear_schedule, vp_schedule

PAIRS = {  # (t, s), t the noisier
    "one-step": (linear_schedule().level(500), linear_schedule().level(499)),
    "long-step": (linear_schedule().level(800), linear_schedule().level(200)),
    "continuous": (vp_schedule().level(0.6), vp_schedule().level(0.2)),
    "exploding": (edm_schedule().level(0.45), edm_schedule().level(0.35)),
}


@pytest.fixture(params=list(PAIRS))
def pair(request):
    return PAIRS[request.param]


# --- forward --------------------------------------------------------------------------------------------------------


def test_diffuse_scales_signal_and_noise(level):
    x = torch.randn(4, 2, 2, 2, dtype=torch.float64)
    alpha, sigma = level.like(x)
    torch.testing.assert_close(diffuse(x, level, torch.zeros_like(x)), alpha * x)
    torch.testing.assert_close(diffuse(torch.zeros_like(x), level, x), sigma * x)


def test_variance_of_a_noised_point_is_sigma_squared(generator):
    level = linear_schedule().level(200)
    n = 40_000
    eps = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    x = diffuse(torch.full((n, 1), 0.7).double(), level, eps)
    assert abs(x.mean() - level.alpha * 0.7) < 4.5 * level.sigma / n**0.5
    assert abs(x.var() - level.sigma**2) < 4.5 * level.sigma**2 * (2 / n) ** 0.5
    assert abs(x.var() - level.sigma) > 20 * level.sigma**2 * (2 / n) ** 0.5  # the standard deviation is not it


def test_one_step_kernels_are_the_betas(discrete):
    t = torch.arange(1, discrete.T)
    scale, variance = transition(discrete.level(t - 1), discrete.level(t))
    torch.testing.assert_close(scale, (1 - discrete.betas[1:]).sqrt(), rtol=1e-9, atol=0)
    torch.testing.assert_close(variance, discrete.betas[1:], rtol=1e-7, atol=0)


def test_transition_from_data_is_the_marginal(schedule):
    t = schedule.levels(5)[1]
    assert transition(DATA, t) == (t.alpha, t.sigma**2)


def test_transitions_compose(schedule):
    """q(x_t | x_r) = integral of q(x_t | x_s) q(x_s | x_r) for every triple of a chain."""
    levels = schedule.levels(6)[::-1]
    for i, r in enumerate(levels):
        for j, s in enumerate(levels[i + 1 :], i + 1):
            for t in levels[j + 1 :]:
                (scale_1, var_1), (scale_2, var_2) = transition(r, s), transition(s, t)
                scale, variance = transition(r, t)
                assert scale == pytest.approx(scale_1 * scale_2, rel=1e-12)
                assert variance == pytest.approx(scale_2**2 * var_1 + var_2, rel=1e-9)


def test_all_one_step_kernels_compose_to_the_marginal(discrete):
    scale, variance = 1.0, 0.0
    for t in range(discrete.T):
        scale *= (1 - discrete.betas[t].item()) ** 0.5
        variance = (1 - discrete.betas[t].item()) * variance + discrete.betas[t].item()
    last = discrete.level(discrete.T - 1)
    assert scale == pytest.approx(last.alpha, rel=1e-10) and variance == pytest.approx(last.sigma**2, rel=1e-10)


def test_renoising_lands_on_the_marginal(pair):
    """Response to signal, old noise and new noise: alpha_t, and variances that sum to sigma_t^2."""
    t, s = pair
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    signal = renoise(s.alpha * one, s, t, zero)
    old, new = renoise(s.sigma * one, s, t, zero), renoise(zero, s, t, one)
    assert signal.item() == pytest.approx(t.alpha) and (old**2 + new**2).item() == pytest.approx(t.sigma**2)


def test_renoising_with_the_difference_of_deviations_loses_variance(generator):
    """Unit data, x_s -> x_t: the right kernel keeps the marginal variance at 1, sigma_t - scale sigma_s does not."""
    t, s = PAIRS["long-step"]
    n = 40_000
    x_s, eps = (torch.randn(n, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    right = renoise(x_s, s, t, eps).var()
    scale = t.alpha / s.alpha
    wrong = (scale * x_s + (t.sigma - scale * s.sigma) * eps).var()
    bound = 4.5 * (2 / n) ** 0.5
    assert abs(right - 1) < bound < abs(wrong - 1)


def test_pairs_of_per_sample_levels_equal_scalar_pairs(discrete):
    times = torch.tensor([1, 40, 999])
    t, s = discrete.level(times), discrete.level(times - 1)
    x, x0 = (torch.randn(3, 1, 2, 2, dtype=torch.float64) for _ in range(2))
    mean, noised = posterior_mean(x, x0, t, s), renoise(x, s, t, x0)
    for i, time in enumerate(times.tolist()):
        t_i, s_i, row = discrete.level(time), discrete.level(time - 1), slice(i, i + 1)
        torch.testing.assert_close(mean[row], posterior_mean(x[row], x0[row], t_i, s_i))
        torch.testing.assert_close(noised[row], renoise(x[row], s_i, t_i, x0[row]))
        assert beta(t, s)[i].item() == pytest.approx(beta(t_i, s_i))
        assert beta_tilde(t, s)[i].item() == pytest.approx(beta_tilde(t_i, s_i))


# --- posterior ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("x0", "z"), [(0.8, 0.3), (-0.5, -1.7)])
def test_posterior_is_bayes_rule_on_a_grid(pair, x0, z):
    """q(x_s | x_t, x_0) proportional to q(x_s | x_0) q(x_t | x_s), normalised on a fine grid of x_s."""
    t, s = pair
    x_t = t.alpha * x0 + t.sigma * z
    scale, variance = t.alpha / s.alpha, t.sigma**2 - (t.alpha / s.alpha) ** 2 * s.sigma**2
    x_s = s.alpha * x0 + s.sigma * torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    log_joint = -0.5 * ((x_s - s.alpha * x0) / s.sigma) ** 2 - 0.5 * (x_t - scale * x_s) ** 2 / variance
    weight = log_joint.softmax(0)
    mean = (weight * x_s).sum()
    point, start = (torch.tensor([[value]], dtype=torch.float64) for value in (x_t, x0))
    assert posterior_mean(point, start, t, s).item() == pytest.approx(mean.item(), rel=1e-8)
    assert beta_tilde(t, s) == pytest.approx((weight * (x_s - mean) ** 2).sum().item(), rel=1e-8)


def test_posterior_of_the_last_step_is_the_point_itself(schedule):
    t = schedule.levels(10)[-2]
    x_t, x0 = (torch.randn(2, 3, dtype=torch.float64) for _ in range(2))
    assert torch.equal(posterior_mean(x_t, x0, t, DATA), x0) and beta_tilde(t, DATA) == 0


def test_posterior_keeps_the_marginal(pair):
    """Drawing x_t given x_0 and then x_s given both is drawing x_s given x_0."""
    t, s = pair
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    assert posterior_mean(t.alpha * one, one, t, s).item() == pytest.approx(s.alpha)
    from_noise = posterior_mean(t.sigma * one, zero, t, s).item()
    assert from_noise**2 + beta_tilde(t, s) == pytest.approx(s.sigma**2)


@pytest.mark.parametrize(("variance", "share"), [(0.0, 0.0), (1.0, 1.0), (0.3, None)])
def test_optimal_reverse_variance_lies_between_the_bounds(variance, share):
    """Var[x_s | x_t] = beta-tilde + c^2 Var[x_0 | x_t]: beta-tilde for a point, beta for N(0, I), else between."""
    t, s = PAIRS["long-step"]
    world = GaussianDenoiser(torch.zeros(2), variance)
    c = posterior_mean(torch.zeros(1, 1).double(), torch.ones(1, 1).double(), t, s).item()
    optimal = beta_tilde(t, s) + c**2 * world.posterior_variance(torch.zeros(1, 2), t).item()
    between = (optimal - beta_tilde(t, s)) / (beta(t, s) - beta_tilde(t, s))
    assert between == pytest.approx(share, abs=1e-12) if share is not None else 0.01 < between < 0.99


# --- reverse variances ----------------------------------------------------------------------------------------------


def test_floor_of_beta_tilde_is_the_published_one():
    levels = linear_schedule().levels()
    assert math.log(beta_tilde_floor(levels)) == pytest.approx(-9.82, abs=0.005)
    assert math.log(beta(levels[-2], DATA)) == pytest.approx(-9.21, abs=0.005)
    floor = beta_tilde_floor(levels)
    assert reverse_log_variance(None, levels[-2], DATA, "beta_tilde", floor) == pytest.approx(-9.82, abs=0.005)
    assert reverse_log_variance(None, levels[-2], DATA, "beta", floor) == pytest.approx(-9.82, abs=0.005)


def test_floor_of_short_chains(schedule):
    two, one = schedule.levels(2), schedule.levels(1)
    assert beta_tilde_floor(two) == beta_tilde(two[0], two[1]) > 0
    assert beta_tilde_floor(one) == pytest.approx(one[0].sigma ** 2)


def test_floor_touches_the_last_step_alone():
    """In this chain the floor (one long step) is larger than beta-tilde of the short steps before it."""
    schedule = linear_schedule()
    levels = [schedule.level(t) for t in (999, 998, 900, 300)] + [DATA]
    floor = beta_tilde_floor(levels)
    t, s = levels[:2]
    assert floor > beta_tilde(t, s)
    assert reverse_log_variance(None, t, s, "beta_tilde", floor) == pytest.approx(math.log(beta_tilde(t, s)))
    assert reverse_log_variance(None, levels[3], DATA, "beta_tilde", floor) == pytest.approx(math.log(floor))


@pytest.mark.parametrize("n", [1000, 25])
@pytest.mark.parametrize("ours", ["beta", "beta_tilde", "learned"])
def test_each_variance_type_against_diffusers(n, ours):
    """Every variance type, numerically, respaced and not; all but the last step, where diffusers clamps."""
    schedule = linear_schedule()
    theirs = {"beta": "fixed_large", "beta_tilde": "fixed_small", "learned": "learned_range"}[ours]
    scheduler = DDPMScheduler(1000, beta_schedule="linear", variance_type=theirs)
    scheduler.alphas_cumprod = schedule.alpha_bar  # theirs is float32
    scheduler.set_timesteps(n)
    levels = schedule.levels(n, "ddim")
    floor = beta_tilde_floor(levels)
    x = torch.zeros(1, 1, 1, 3, dtype=torch.float64)
    raw = torch.tensor([[[[-1.0, 0.2, 1.0]]]], dtype=torch.float64)
    for i in (0, n // 2, n - 2):
        t, s = levels[i : i + 2]
        prediction = Prediction(x, t, x, "eps", fraction=(raw + 1) / 2)
        expected = scheduler._get_variance(t.time, predicted_variance=raw)
        log_expected = expected if ours == "learned" else expected.log()  # their learned_range is a logarithm
        actual = torch.as_tensor(reverse_log_variance(prediction, t, s, ours, floor), dtype=torch.float64)
        torch.testing.assert_close(actual, log_expected, rtol=1e-9, atol=1e-9)


def test_learned_variance_runs_from_beta_tilde_to_beta(pair):
    t, s = pair
    fraction = torch.tensor([[0.0, 0.25, 0.5, 1.0]], dtype=torch.float64)
    x = torch.zeros_like(fraction)
    variance = reverse_log_variance(Prediction(x, t, x, "x0", fraction), t, s, "learned", 1e-20).exp()[0]
    low, high = beta_tilde(t, s), beta(t, s)
    expected = [low, low**0.75 * high**0.25, (low * high) ** 0.5, high]
    torch.testing.assert_close(variance, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", ["beta", "beta_tilde", "learned"])
def test_reverse_variances_of_per_sample_levels(kind):
    """A batch that mixes a last step with others, as a training loss does."""
    schedule = linear_schedule()
    times, floor = torch.tensor([0, 1, 600]), beta_tilde_floor(schedule.levels())
    x = torch.rand(3, 1, 2, 2)
    t = schedule.level(times)
    got = reverse_log_variance(Prediction(x, t, x, "eps", x), t, schedule.previous(t), kind, floor)
    for i, time in enumerate(times.tolist()):
        one, row = schedule.level(time), x[i : i + 1]
        prediction = Prediction(row, one, row, "eps", row)
        expected = reverse_log_variance(prediction, one, schedule.previous(one), kind, floor)
        expected = torch.as_tensor(expected, dtype=torch.float32).expand(1, 1, 2, 2)
        torch.testing.assert_close(got[i : i + 1].expand(1, 1, 2, 2), expected)


def test_unknown_variance():
    levels = linear_schedule().levels(5)
    with pytest.raises(ValueError, match="'beta', 'beta_tilde' or 'learned', got 'fixed_small'"):
        reverse_log_variance(None, *levels[:2], "fixed_small", 1e-9)


def test_learned_variance_needs_a_network_that_learned_it():
    levels, x = linear_schedule().levels(5), torch.zeros(1, 2)
    for prediction in (None, Prediction(x, levels[0], x, "eps")):
        with pytest.raises(ValueError, match="that predicts its variance"):
            reverse_log_variance(prediction, *levels[:2], "learned", 1e-9)
