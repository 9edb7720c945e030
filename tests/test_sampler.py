"""Samplers: exact steps, measured orders, closed-form variances, and diffusers' schedulers where those are right."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from minidiff.denoiser import as_denoiser
from minidiff.exact import GaussianDenoiser, GaussianMixtureDenoiser
from minidiff.guidance import mean_shift_guidance
from minidiff.prediction import Prediction
from minidiff.process import beta, beta_tilde, posterior_mean
from minidiff.random import randn, sample_generators
from minidiff.sampler import State, ancestral, ddim, heun, interpolated, sample
from minidiff.schedule import DATA, NoiseLevel, cosine_schedule, edm_schedule, linear_schedule, vp_schedule

SAMPLERS = {
    "ancestral": ancestral(),
    "ancestral-beta": ancestral("beta"),
    "ddim": ddim(),
    "ddim-1": ddim(1.0),
    "heun": heun(),
}


def seeded(seed=7):
    return torch.Generator().manual_seed(seed)


def noise(n, *shape, seed=11):
    return torch.randn(n, *shape, generator=seeded(seed), dtype=torch.float64)


def start(levels, *shape, seed=11):
    """Draws of N(0, alpha^2 + sigma^2) at the noisy end."""
    return math.hypot(levels[0].alpha, levels[0].sigma) * noise(*shape, seed=seed)


# --- DDIM -----------------------------------------------------------------------------------------------------------


def test_last_ddim_step_returns_x0_exactly(mixture, schedule):
    levels = schedule.levels(7)
    state = list(ddim()(mixture, levels, start(levels, 5, 2)))[-1]
    assert state.level == DATA and torch.equal(state.x, state.prediction.x0)


def test_one_ddim_step_is_the_formula(mixture):
    t, s = linear_schedule().levels(25)[10:12]
    x = noise(4, 2)
    prediction = mixture(x, t)
    for eta in (0.0, 0.5, 1.0):
        w = eta * beta_tilde(t, s) ** 0.5
        expected = s.alpha * prediction.x0 + (s.sigma**2 - w**2) ** 0.5 * prediction.eps + w * noise(4, 2, seed=3)
        got = next(ddim(eta)(mixture, [t, s], x, seeded(3))).x
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_ddim_step_with_the_true_x0_keeps_the_marginal(schedule, eta):
    """Response to old noise and to new noise are orthogonal and sum to sigma_s^2; to the signal, alpha_s."""
    t, s = schedule.levels(9)[3:5]
    knows = lambda x0: lambda x, level: Prediction(x, level, x0.expand_as(x), "x0")
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    step = lambda x0, x: next(ddim(eta)(knows(x0), [t, s], x, seeded())).x.item()
    z = torch.randn(1, 1, generator=seeded(), dtype=torch.float64).item()
    new = step(zero, zero) / z
    old = step(zero, t.sigma * one) - new * z
    signal = step(one, t.alpha * one) - new * z
    assert signal == pytest.approx(s.alpha, rel=1e-9)
    assert old**2 + new**2 == pytest.approx(s.sigma**2, rel=1e-9)
    assert new == pytest.approx(eta * beta_tilde(t, s) ** 0.5, rel=1e-7)


def test_eta_one_is_ancestral_step_by_step(mixture, schedule):
    levels = schedule.levels(20)
    x_T = start(levels, 6, 2)
    first = ancestral("beta_tilde")(mixture, levels, x_T, seeded())
    for a, b in zip(first, ddim(1.0)(mixture, levels, x_T, seeded()), strict=True):
        torch.testing.assert_close(a.x, b.x, rtol=1e-8, atol=1e-8)


def test_eta_one_is_ancestral_in_a_chain_of_uneven_steps(mixture):
    """Short steps, then long ones: the floor for the last step must not reach the others."""
    schedule = linear_schedule()
    levels = [schedule.level(t) for t in (999, 998, 997, 900, 300)] + [DATA]
    x_T = noise(6, 2)
    one, other = (sample(s, mixture, levels, x_T, seeded()) for s in (ancestral(), ddim(1.0)))
    torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_ddim_from_pure_noise():
    """alpha = 0 up to rounding, where beta-tilde can exceed sigma_s^2 in its last digit: stays real and finite."""
    denoiser = lambda x, level: Prediction(x, level, 0.3 * x, "x0")
    s, x, exceeded = linear_schedule().level(500), noise(2, 2), 0
    for sigma in torch.linspace(0.5, 3, 100, dtype=torch.float64).tolist():
        t = NoiseLevel(1e-12, sigma, 0)
        exceeded += beta_tilde(t, s) > s.sigma**2
        end = next(ddim(1.0)(denoiser, [t, s], x, seeded())).x
        assert not end.is_complex() and bool(torch.isfinite(end).all())
    assert exceeded  # the case did occur


@pytest.mark.parametrize("steps", [1, 3, 10, 50])
def test_variance_of_gaussian_data_after_ddim_is_a_product_of_cosines(schedule, steps):
    """With u = (alpha sqrt(v), sigma) each step multiplies x / |u| by cos of the angle between u_t and u_s."""
    v, levels = 0.3, schedule.levels(steps)
    angles = [math.atan2(level.sigma, level.alpha * v**0.5) for level in levels]
    product = math.prod(math.cos(t - s) for t, s in pairwise(angles))
    # exact draws at the noisy end, so the standard deviation of the result is that of a unit draw scaled
    u_T = math.hypot(levels[0].alpha * v**0.5, levels[0].sigma)
    x = sample(ddim(), GaussianDenoiser(torch.zeros(1), v), levels, torch.full((1, 1), u_T, dtype=torch.float64))
    assert x.item() == pytest.approx(v**0.5 * product, rel=1e-9) and product < 1


@pytest.mark.parametrize(("spacing", "n"), [("leading", 50), ("trailing", 50), ("leading", 7)])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim_against_diffusers(spacing, n, eta):
    """Whole trajectories with the same noise, where diffusers' steps telescope."""
    schedule = linear_schedule()
    scheduler = DDIMScheduler(
        1000, beta_schedule="linear", clip_sample=False, set_alpha_to_one=True, timestep_spacing=spacing
    )
    scheduler.alphas_cumprod = schedule.alpha_bar  # theirs is float32
    scheduler.set_timesteps(n)
    levels = [schedule.level(t) for t in scheduler.timesteps.tolist()] + [DATA]
    eps = lambda x, t: torch.tanh(x) + 0.1 * torch.sin(x * t / 100)
    model = as_denoiser(lambda x, time, condition: eps(x, time.reshape(-1, 1, 1, 1)))
    x, generator = noise(2, 1, 3, 3), seeded()
    states = list(ddim(eta)(model, levels, x, seeded()))
    for t, state in zip(scheduler.timesteps.tolist(), states, strict=True):
        drawn = None if t == levels[-2].time else torch.randn(x.shape, generator=generator, dtype=torch.float64)
        # the last step has beta-tilde = 0, so its noise does not matter
        x = scheduler.step(eps(x, t), t, x, eta=eta, variance_noise=x if drawn is None else drawn).prev_sample
        torch.testing.assert_close(state.x, x, rtol=1e-6, atol=1e-6)


def test_a_last_step_to_the_first_table_entry_leaves_noise():
    """``set_alpha_to_one=False`` takes alpha_bar_0 for the data end: the result keeps sigma_0 eps."""
    schedule = linear_schedule()
    scheduler = DDIMScheduler(1000, beta_schedule="linear", clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(50)
    x, eps, t = noise(2, 1, 2, 2), noise(2, 1, 2, 2, seed=1), schedule.level(0)
    theirs = scheduler.step(eps, 0, x).prev_sample
    ours = next(ddim()(lambda x, level: Prediction(x, level, eps, "eps"), [t, DATA], x)).x
    torch.testing.assert_close(theirs, t.alpha * ours + t.sigma * eps, rtol=1e-5, atol=1e-5)
    assert (theirs - ours).abs().max() > 0.5 * t.sigma


# --- ancestral ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"), [("beta_tilde", "fixed_small"), ("beta", "fixed_large"), ("learned", "learned_range")]
)
@pytest.mark.parametrize("n", [1000, 20])
def test_ancestral_against_diffusers(ours, theirs, n):
    """The same network, noise and times give the same trajectory for every variance type."""
    schedule = linear_schedule()
    scheduler = DDPMScheduler(1000, beta_schedule="linear", clip_sample=False, variance_type=theirs)
    scheduler.alphas_cumprod = schedule.alpha_bar
    scheduler.set_timesteps(n)
    levels = schedule.levels(n, "ddim")[-21:]

    def network(x, time, condition=None):
        eps = torch.tanh(x) + 0.1 * torch.sin(x * torch.as_tensor(time).reshape(-1, 1, 1, 1) / 100)
        return torch.cat([eps, torch.sin(3 * x)], dim=1) if ours == "learned" else eps

    model = as_denoiser(network, variance="learned" if ours == "learned" else "fixed")
    x, generator = noise(2, 1, 3, 3), seeded()
    for state in ancestral(ours)(model, levels, x, seeded()):
        t = int(state.prediction.level.time)
        x = scheduler.step(network(x, t), t, x, generator=generator).prev_sample
        torch.testing.assert_close(state.x, x, rtol=1e-6, atol=1e-6)


def gaussian_with_optimal_variance(v, levels):
    """The denoiser of N(0, v I) data that also knows the best fraction between beta-tilde and beta."""
    world, after = GaussianDenoiser(torch.zeros(1), v), dict(pairwise(levels[:-1]))

    def denoiser(x, t):
        prediction = world(x, t)
        s = after.get(t, DATA)
        low, high = beta_tilde(t, s), beta(t, s)
        c = posterior_mean(torch.zeros(1, 1).double(), torch.ones(1, 1).double(), t, s).item()
        best = low + c**2 * world.posterior_variance(x, t)[0].item()
        share = math.log(best / low) / math.log(high / low) if low else 1.0
        return prediction.replace(fraction=torch.full_like(x, share))

    return denoiser


@pytest.mark.parametrize(
    ("variance", "v", "exact"),
    [("beta", 1.0, True), ("beta_tilde", 1.0, False), ("learned", 0.3, True), ("beta", 0.3, False)],
)
def test_ancestral_variance_after_few_steps(variance, v, exact):
    """Right for N(0, I) with beta, and for N(0, v I) with the best learned variance, even in 6 steps to sigma > 0."""
    n, levels = 40_000, cosine_schedule().levels(6)
    x_T = math.hypot(levels[0].alpha * v**0.5, levels[0].sigma) * noise(n, 1)
    x = sample(ancestral(variance), gaussian_with_optimal_variance(v, levels), levels[:-1], x_T, seeded())
    expected = levels[-2].alpha ** 2 * v + levels[-2].sigma ** 2
    off_by = abs(x.var().item() / expected - 1) / (2 / n) ** 0.5
    assert off_by < 4.5 if exact else off_by > 9


def test_ancestral_sampling_of_a_point_ends_at_the_point(schedule):
    levels, point = schedule.levels(12), torch.tensor([0.4, -0.7], dtype=torch.float64)
    denoiser = lambda x, level: Prediction(x, level, point.expand_as(x), "x0")
    for variance in ("beta", "beta_tilde"):
        states = list(ancestral(variance)(denoiser, levels, start(levels, 4000, 2), seeded()))
        assert torch.equal(states[-1].x, point.expand(4000, 2))
        t = states[-2].level
        spread = (states[-2].x - t.alpha * point).square().mean().item() / t.sigma**2
        if variance == "beta_tilde":  # the marginal of a point at every level
            assert abs(spread - 1) < 4.5 * (2 / 8000) ** 0.5
        else:
            assert spread > 1.1


def test_ancestral_samples_a_mixture(line):
    """Kolmogorov-Smirnov against the exact distribution function after 300 steps."""
    n, levels = 4000, cosine_schedule().levels(300)
    x = sample(ancestral(), line, levels, noise(n, 1), seeded())[:, 0].sort().values
    parts = torch.distributions.Normal(line.means[:, 0], line.variance.sqrt())
    gap = (parts.cdf(x[:, None]) @ line.weights - (torch.arange(n) + 0.5) / n).abs().max()
    assert gap < 2.2 / n**0.5


# --- orders of convergence ------------------------------------------------------------------------------------------

SCHEDULES = {"vp": vp_schedule(), "cosine": cosine_schedule(), "edm": edm_schedule()}


def error(sampler, world, exact, schedule, n, x):
    """Root mean square error at t = 0.2 after n even steps in t from t = 0.9, where every schedule is smooth."""
    levels = [schedule.level(0.9 - 0.7 * i / n) for i in range(n + 1)]
    return (sample(sampler, world, levels, x * exact[0]) - x * exact[1]).square().mean().sqrt().item()


@pytest.mark.parametrize("name", list(SCHEDULES))
@pytest.mark.parametrize(("sampler", "order"), [(ddim(), 1), (heun(), 2)])
def test_order_on_gaussian_data(name, sampler, order):
    """The flow of N(0, v) data is a rescaling by the standard deviation of x_t: a closed form to measure against."""
    schedule, v = SCHEDULES[name], 0.3
    exact = [math.hypot(level.alpha * v**0.5, level.sigma) for level in map(schedule.level, (0.9, 0.2))]
    world = GaussianDenoiser(torch.zeros(1), v)
    few, many = (error(sampler, world, exact, schedule, n, noise(8, 1)) for n in (100, 200))
    assert math.log2(few / many) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("name", list(SCHEDULES))
@pytest.mark.parametrize(("sampler", "order"), [(ddim(), 1), (heun(), 2)])
def test_order_on_a_mixture(name, sampler, order):
    """A nonlinear flow: Richardson's ratio of successive differences, no reference needed."""
    world = GaussianMixtureDenoiser(torch.tensor([[-1.0], [0.4]]), torch.tensor([0.3, 0.5]))
    schedule = SCHEDULES[name]
    x = noise(40, 1) * math.hypot(schedule.level(0.9).alpha, schedule.level(0.9).sigma)
    chain = lambda n: [schedule.level(0.9 - 0.7 * i / n) for i in range(n + 1)]
    ends = [sample(sampler, world, chain(n), x) for n in (80, 160, 320)]
    first, second = ((a - b).square().mean().sqrt() for a, b in pairwise(ends))
    assert math.log2(first / second) == pytest.approx(order, abs=0.15)


def test_wrong_direction_term_is_not_even_first_order(mixture):
    """sigma_s in place of sqrt(sigma_s^2 - w^2), with noise: too much variance, whatever the number of steps."""
    n, levels, world = 20_000, cosine_schedule().levels(40), GaussianDenoiser(torch.zeros(1), 1.0)

    def wrong(denoiser, levels, x, generator):
        for t, s in pairwise(levels):
            p = denoiser(x, t)
            x = s.alpha * p.x0 + s.sigma * p.eps + beta_tilde(t, s) ** 0.5 * randn(x.shape, generator, x.dtype)
            yield State(x, p, s)

    bound = 0.1
    right = sample(ddim(1.0), world, levels[:-1], noise(n, 1), seeded()).var().item()
    assert abs(right - 1) < bound < abs(sample(wrong, world, levels[:-1], noise(n, 1), seeded()).var().item() - 1)


@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_heun_on_shipped_chains_beats_ddim(schedule, n, mixture):
    """From noise to the data end, which is one call to the denoiser."""
    levels = schedule.levels(n)
    x_T = start(levels, 50, 2)
    calls = []
    counted = lambda x, level: (calls.append(level), mixture(x, level))[1]
    x = sample(heun(), counted, levels, x_T)
    assert len(calls) == 2 * n - 1 and bool(torch.isfinite(x).all())
    if n == 20:
        exact = sample(heun(), mixture, schedule.levels(400), x_T)
        error = lambda x: (x - exact).abs().median()
        assert error(x) < error(sample(ddim(), mixture, levels, x_T)) / 2


def test_heun_and_ddim_start_at_pure_noise(mixture):
    """sigma / alpha is infinite at alpha = 0; the angle is not. (The posterior mean there is the mean.)"""
    angles = torch.linspace(math.pi / 2, 0, 30, dtype=torch.float64).tolist()
    levels = [NoiseLevel(0.0, 1.0, 0)] + [NoiseLevel(math.cos(a), math.sin(a), 0) for a in angles[1:-1]] + [DATA]
    for sampler in (heun(), ddim(), ancestral()):
        x = sample(sampler, mixture, levels, noise(10, 2), seeded())
        assert bool(torch.isfinite(x).all()) and x.abs().max() < 4


# --- what a sampler is ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_states_follow_the_chain(name, mixture):
    levels, x_T = linear_schedule().levels(6), noise(3, 2)
    states = list(SAMPLERS[name](mixture, levels, x_T, seeded()))
    assert [state.level for state in states] == levels[1:]
    assert [state.prediction.level for state in states] == levels[:-1]
    assert torch.equal(states[0].prediction.x, x_T)
    assert all(torch.equal(b.prediction.x, a.x) for a, b in pairwise(states))
    assert torch.equal(states[-1].x, sample(SAMPLERS[name], mixture, levels, x_T, seeded()))


def test_network_is_told_the_original_times():
    asked = []

    def network(x, time, condition):
        asked.append(time.tolist())
        return x

    sample(ddim(), as_denoiser(network), linear_schedule().levels(4), torch.randn(2, 1, 2, 2))
    assert asked == [[999, 999], [666, 666], [333, 333], [0, 0]]


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_a_sample_does_not_depend_on_its_batch(name, mixture):
    """One generator per sample, for the start and the walk."""
    levels = cosine_schedule().levels(8)

    def draw(indices):
        x_T = randn((len(indices), 2), sample_generators(0, indices), torch.float64)
        return sample(SAMPLERS[name], mixture, levels, x_T, sample_generators(1, indices))

    together = draw([0, 1, 2, 3, 4])
    torch.testing.assert_close(draw([3]), together[3:4], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(draw([4, 0]), together[[4, 0]], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_no_gradient_is_recorded(name):
    """Unless one walks the generator oneself."""
    scale = torch.tensor(0.5, requires_grad=True)
    denoiser = lambda x, level: Prediction(x, level, scale * x, "x0")
    levels, x_T = linear_schedule().levels(3), torch.randn(2, 2, requires_grad=True)
    assert not sample(SAMPLERS[name], denoiser, levels, x_T, seeded()).requires_grad
    assert list(SAMPLERS[name](denoiser, levels, x_T, seeded()))[-1].x.requires_grad


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_single_precision_stays_single_and_close(name, schedule):
    levels = schedule.levels(5)
    x_T = start(levels, 3, 2, 2, 1).float()
    single = lambda x, level: Prediction(x, level, x.tanh(), "x0")
    x = sample(SAMPLERS[name], single, levels, x_T, sample_generators(0, range(3)))
    assert x.dtype == torch.float32 and bool(torch.isfinite(x).all())


def test_x_T_is_not_changed_in_place(mixture):
    x_T = noise(3, 2)
    before = x_T.clone()
    for sampler in SAMPLERS.values():
        sample(sampler, mixture, linear_schedule().levels(3), x_T, seeded())
    assert torch.equal(x_T, before)


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_chains_that_do_not_fall(name, mixture):
    levels = linear_schedule().levels(4)
    for chain in (levels[::-1], [levels[0], levels[0]], [levels[0], levels[2], levels[1]]):
        with pytest.raises(ValueError, match="levels must run from noise to data"):
            sample(SAMPLERS[name], mixture, chain, noise(2, 2))
    for chain in ([], levels[:1]):
        with pytest.raises(ValueError, match=f"at least two levels, got {len(chain)}"):
            sample(SAMPLERS[name], mixture, chain, noise(2, 2))


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_x_T_that_is_not_finite(name, mixture):
    x_T = noise(2, 2)
    x_T[0, 1], x_T[1, 0] = math.nan, math.inf
    with pytest.raises(ValueError, match="x_T holds 2 values that are not finite"):
        sample(SAMPLERS[name], mixture, linear_schedule().levels(4), x_T)


@pytest.mark.parametrize("eta", [-0.1, 1.5, math.nan])
def test_eta_outside_zero_to_one(eta):
    with pytest.raises(ValueError, match=rf"eta must lie in \[0, 1\], got {eta}"):
        ddim(eta)


def test_unknown_variance():
    with pytest.raises(ValueError, match="'beta_tilde', 'beta' or 'learned', got 'small'"):
        ancestral("small")


def test_learned_variance_that_was_not_learned(mixture):
    with pytest.raises(ValueError, match="that predicts its variance"):
        sample(ancestral("learned"), mixture, linear_schedule().levels(4), noise(2, 2))


@pytest.mark.parametrize(("sampler", "name"), [(ddim(), "ddim"), (heun(), "heun")])
def test_a_mean_shift_has_no_sigma_in_a_deterministic_sampler(mixture, sampler, name):
    guided = mean_shift_guidance(mixture, mixture.classifier(1), 1.0)
    with pytest.raises(ValueError, match=f"{name} has no reverse variance.*classifier_guidance"):
        sample(sampler, guided, linear_schedule().levels(4), noise(2, 2))


def test_wrong_number_of_generators(mixture):
    with pytest.raises(ValueError, match="3 generators for a batch of 2"):
        sample(ancestral(), mixture, linear_schedule().levels(4), noise(2, 2), sample_generators(0, range(3)))


# --- a variance between the bounds ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("gamma", "kind"), [(0.0, "beta_tilde"), (1.0, "beta")])
def test_the_ends_of_the_interpolation_are_ancestral(mixture, gamma, kind):
    levels = linear_schedule().levels(12)
    x_T = start(levels, 5, 2)
    one, other = (sample(s, mixture, levels, x_T, seeded()) for s in (interpolated(gamma), ancestral(kind)))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("gamma", [0.25, 0.5])
def test_one_step_has_the_geometric_mean_of_the_bounds(mixture, gamma):
    t, s = linear_schedule().levels(25)[10:12]
    x = noise(4, 2)
    std = beta_tilde(t, s) ** ((1 - gamma) / 2) * beta(t, s) ** (gamma / 2)
    expected = posterior_mean(x, mixture(x, t).x0, t, s) + std * noise(4, 2, seed=3)
    torch.testing.assert_close(next(interpolated(gamma)(mixture, [t, s], x, seeded(3))).x, expected)


def test_interpolated_shifts_a_mean_by_its_own_variance(mixture):
    t, s = linear_schedule().levels(25)[10:12]
    tilted = mean_shift_guidance(mixture, lambda x, level: 3 * x.sum(1), 1.0)
    x = noise(4, 2)
    plain, moved = (next(interpolated(0.5)(d, [t, s], x, seeded(3))).x for d in (mixture, tilted))
    torch.testing.assert_close(moved - plain, torch.full((4, 2), 3 * (beta_tilde(t, s) * beta(t, s)) ** 0.5).double())


def test_the_last_step_of_interpolated_adds_no_noise(mixture):
    levels = linear_schedule().levels(6)
    state = list(interpolated(0.5)(mixture, levels, start(levels, 5, 2), seeded()))[-1]
    torch.testing.assert_close(state.x, state.prediction.x0)


@pytest.mark.parametrize("gamma", [-0.1, 1.1, math.nan, "half"])
def test_gammas_that_are_none(gamma):
    with pytest.raises(ValueError, match="gamma must be a number from 0 to 1"):
        interpolated(gamma)
