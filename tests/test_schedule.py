"""Schedules: known values, closed forms, respacing rules, and chains that telescope for every number of steps."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from minidiff.prediction import Prediction
from minidiff.random import sample_generators
from minidiff.sampler import ddim, sample
from minidiff.schedule import (
    DATA,
    DiscreteSchedule,
    NoiseLevel,
    clipped_cosine_schedule,
    cosine_schedule,
    edm_schedule,
    linear_schedule,
    respaced,
    sqrt_linear_schedule,
    vp_schedule,
    zero_terminal_snr,
)


def times(levels):
    """Network times of a chain, noise to data, without the data end."""
    return [level.time for level in levels[:-1]]


# --- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "last_alpha", "tolerance"),
    [(sqrt_linear_schedule, 0.0683, 5e-5), (linear_schedule, 0.0064, 5e-5), (clipped_cosine_schedule, 4.9e-5, 5e-7)],
)
def test_terminal_alpha_is_the_published_one(make, last_alpha, tolerance):
    assert make().alpha_bar[-1].sqrt().item() == pytest.approx(last_alpha, abs=tolerance)


@pytest.mark.parametrize(
    ("make", "name", "ends"),
    [
        (linear_schedule, "linear", (1e-4, 0.02)),
        (sqrt_linear_schedule, "scaled_linear", (0.00085, 0.012)),
        (clipped_cosine_schedule, "squaredcos_cap_v2", (1e-4, 0.02)),
    ],
)
def test_betas_agree_with_diffusers(make, name, ends):
    theirs = DDPMScheduler(1000, beta_start=ends[0], beta_end=ends[1], beta_schedule=name)
    torch.testing.assert_close(make().betas, theirs.betas.double(), rtol=3e-6, atol=0)
    torch.testing.assert_close(make().alpha_bar.float(), theirs.alphas_cumprod, rtol=2e-4, atol=1e-12)


def test_tables_are_float64(discrete):
    assert discrete.betas.dtype == discrete.alpha_bar.dtype == torch.float64
    assert discrete.T == len(discrete.betas) == 1000


def test_alpha_bar_is_the_running_product(discrete):
    product = 1.0
    for t in range(40):
        product *= 1 - discrete.betas[t].item()
        assert discrete.alpha_bar[t].item() == pytest.approx(product, rel=1e-13)


def test_variance_is_preserved_or_explodes(schedule):
    for level in schedule.levels(37)[:-1]:
        if schedule == edm_schedule():
            assert level.alpha == 1
        else:
            assert level.alpha**2 + level.sigma**2 == pytest.approx(1, abs=1e-14)


def test_log_snr_falls_with_time(schedule):
    grid = torch.arange(1000) if isinstance(schedule, DiscreteSchedule) else torch.linspace(0, 1, 501).double()
    log_snr = schedule.log_snr(grid)
    assert bool((log_snr[1:] < log_snr[:-1]).all())


def test_log_snr_and_snr_of_a_level():
    level = NoiseLevel(0.6, 0.8, 0)
    assert level.log_snr == pytest.approx(math.log(0.36 / 0.64)) and level.snr == pytest.approx(0.36 / 0.64)
    many = NoiseLevel(torch.tensor([0.6, 1.0]), torch.tensor([0.8, 2.0]), torch.tensor([0, 1]))
    torch.testing.assert_close(many.snr, torch.tensor([0.5625, 0.25], dtype=torch.float64), rtol=1e-6, atol=0)
    assert DATA.log_snr == math.inf and DATA.snr == math.inf


def test_vp_log_snr_closed_form():
    t = torch.linspace(0.001, 1, 50, dtype=torch.float64)
    integral = 0.1 * t + 0.5 * 19.9 * t**2  # of beta from 0 to t; alpha^2 = exp(-integral)
    torch.testing.assert_close(vp_schedule().log_snr(t), -torch.expm1(integral).log(), rtol=1e-10, atol=1e-10)


def test_discrete_linear_tends_to_continuous_vp():
    """With T steps the log of alpha differs at first order in 1/T, so the gap halves when T doubles."""
    t = torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64)
    gaps = []
    for T in (10_000, 20_000):
        level = linear_schedule(T).level((t * T).long() - 1)
        gaps.append((level.alpha.log() - vp_schedule().level(t).alpha.log()).abs())
    assert gaps[1].max() < 2e-3
    torch.testing.assert_close(gaps[0] / gaps[1], torch.full((3,), 2.0).double(), rtol=0.01, atol=0)


@pytest.mark.parametrize("most", [6.0, 15.0, 20.0])
def test_cosine_log_snr_is_truncated(most):
    schedule = cosine_schedule(most)
    assert schedule.log_snr(1.0) == pytest.approx(-most, abs=1e-6)
    assert schedule.log_snr(0.0) == pytest.approx(most, abs=1e-6)
    assert schedule.log_snr(0.5) == pytest.approx(0, abs=1e-9)
    if most == 20.0:  # barely truncated: log-SNR of the plain cosine schedule is -2 log tan(pi t / 2)
        assert schedule.log_snr(0.3) == pytest.approx(-2 * math.log(math.tan(math.pi * 0.3 / 2)), abs=1e-3)


def test_edm_levels_are_karras_sigmas():
    n, rho, low, high = 18, 7, 0.002, 80.0
    i = np.arange(n)
    expected = (high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    levels = edm_schedule().levels(n)
    np.testing.assert_allclose([level.sigma for level in levels], [*expected, 0.0], rtol=1e-12)
    np.testing.assert_allclose(times(levels), np.log(expected) / 4, rtol=1e-9)


# --- levels ---------------------------------------------------------------------------------------------------------


def test_per_sample_levels_equal_scalar_levels(schedule):
    if isinstance(schedule, DiscreteSchedule):
        t = torch.tensor([-1, 0, 17, 500, schedule.T - 1])
    else:
        t = torch.tensor([0.0, 0.013, 0.5, 1.0], dtype=torch.float64)
    many = schedule.level(t)
    for i, time in enumerate(t.tolist()):
        one = schedule.level(time)
        assert (many.alpha[i].item(), many.sigma[i].item(), many.time[i].item()) == (one.alpha, one.sigma, one.time)


def test_level_broadcasts_to_a_batch_of_pictures():
    level = linear_schedule().level(torch.tensor([5, 700]))
    alpha, sigma = level.like(torch.zeros(2, 3, 4, 4))
    assert alpha.shape == sigma.shape == (2, 1, 1, 1) and alpha.dtype == torch.float32
    with pytest.raises(ValueError, match=r"2 entries.*batch of 3"):
        level.like(torch.zeros(3, 1))


def test_repeat_doubles_per_sample_levels_only():
    level = linear_schedule().level(torch.tensor([5, 700]))
    assert level.repeat(2).time.tolist() == [5, 700, 5, 700]
    torch.testing.assert_close(level.repeat(2).sigma, torch.cat([level.sigma, level.sigma]))
    assert linear_schedule().level(5).repeat(2) == linear_schedule().level(5)


def test_previous_of_the_first_level_is_data():
    schedule = linear_schedule()
    assert schedule.previous(schedule.level(0)) == DATA
    many = schedule.previous(schedule.level(torch.tensor([0, 10])))
    assert many.time.tolist() == [-1, 9] and many.alpha[0] == 1 and many.sigma[0] == 0
    assert many.alpha[1].item() == schedule.level(9).alpha


def test_random_levels_are_one_per_sample_and_uniform(discrete, generator):
    drawn = discrete.random_level(20_000, generator)
    assert drawn.alpha.shape == drawn.time.shape == (20_000,)
    counts = torch.bincount(drawn.time // 100, minlength=10).double()
    chi_square = ((counts - 2000) ** 2 / 2000).sum()
    assert chi_square < 33.7  # 9 degrees of freedom, p = 1e-4
    torch.testing.assert_close(drawn.alpha, discrete.level(drawn.time).alpha)


def test_random_levels_of_continuous_schedules(continuous, generator):
    level = continuous.random_level(20_000, generator)
    if continuous == edm_schedule():
        torch.testing.assert_close(level.time, level.sigma.log() / 4)
        low, high = (end ** (1 / 7) for end in (0.002, 80.0))
        t = (level.sigma ** (1 / 7) - low) / (high - low)
    else:
        t = level.time / 1000
    torch.testing.assert_close(level.alpha, continuous.level(t.clamp(0, 1)).alpha)
    moments, limits = (t.mean() - 0.5, t.square().mean() - 1 / 3), (0.0092, 0.0095)  # 4.5 standard errors
    assert all(abs(m) < limit for m, limit in zip(moments, limits, strict=True))


def test_random_level_with_one_generator_per_sample(schedule):
    five = schedule.random_level(5, sample_generators(1, range(5)))
    one = schedule.random_level(1, sample_generators(1, [3]))
    assert five.time[3] == one.time[0]


# --- chains ---------------------------------------------------------------------------------------------------------


def test_chains_telescope_for_every_number_of_steps(discrete):
    """n steps, first at T-1, last to clean data, all network times distinct table entries, log-SNR rising."""
    table = discrete.alpha_bar.sqrt().tolist()
    for n in range(1, discrete.T + 1):
        levels = discrete.levels(n)
        asked = times(levels)
        assert len(levels) == n + 1 and levels[-1] == DATA
        assert asked[0] == discrete.T - 1 and (n == 1 or asked[-1] == 0)
        assert all(t > s for t, s in pairwise(asked))
        assert [level.alpha for level in levels[:-1]] == [table[t] for t in asked]
        assert all(t.alpha < s.alpha and t.sigma > s.sigma for t, s in pairwise(levels))


def test_a_chain_is_made_of_the_levels_of_its_times(discrete):
    assert discrete.levels(50) == [discrete.level(t) for t in times(discrete.levels(50))] + [DATA]
    assert times(discrete.levels()) == list(range(999, -1, -1))


def test_continuous_chains(continuous):
    for n in (1, 2, 7, 100):
        levels = continuous.levels(n)
        assert len(levels) == n + 1 and levels[-1] == DATA
        assert levels[0] == continuous.level(1.0)
        assert all(t.sigma / t.alpha > s.sigma / s.alpha for t, s in pairwise(levels))


@pytest.mark.parametrize("n", [2, 3, 9, 25, 27, 36, 250, 599, 999])
def test_even_spacing_is_the_rounded_fractional_stride(n):
    exact, found = np.linspace(0, 999, n), np.array(times(linear_schedule().levels(n))[::-1])
    assert found[0] == 0 and found[-1] == 999
    assert np.abs(found - exact).max() <= 0.5 + 1e-9, "nearest; an exact half goes where ADM's running sum goes"


@pytest.mark.parametrize("n", [2, 10, 25, 50, 100, 250, 500, 1000])
def test_ddim_spacing_is_an_integer_stride_from_zero(n):
    assert times(linear_schedule().levels(n, "ddim"))[::-1] == list(range(0, 1000, 1000 // n))


@pytest.mark.parametrize("counts", [[10, 10, 3, 2, 2], [1], [5, 64], [3, 1, 4, 1, 5, 9, 2], [1000]])
def test_section_spacing(counts):
    """Equal sections (the first ones take the remainder), each with its own evenly rounded steps."""
    expected = []
    for part, count in zip(np.array_split(np.arange(1000), len(counts)), counts, strict=True):
        expected += (part[0] + np.rint(np.linspace(0, len(part) - 1, count)).astype(int)).tolist()
    assert times(linear_schedule().levels(spacing=counts))[::-1] == expected


def test_one_section_is_even_spacing():
    assert linear_schedule().levels(spacing=[40]) == linear_schedule().levels(40)


def test_a_step_back_by_the_integer_stride_does_not_telescope():
    """diffusers steps to t - T // n whatever the list of times says: right for "leading", wrong for "linspace" if n
    does not divide T. Pairs taken from one list have no such case."""

    def telescopes(spacing, n):
        scheduler = DDIMScheduler(1000, beta_schedule="linear", timestep_spacing=spacing)
        scheduler.set_timesteps(n)
        asked = scheduler.timesteps.tolist()
        return all(t - 1000 // n == s for t, s in pairwise(asked))

    assert all(telescopes("leading", n) for n in (7, 30, 50, 300))
    assert telescopes("trailing", 50) and not telescopes("linspace", 30) and not telescopes("trailing", 300)


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [1000, -2, 5000, torch.tensor([0, 1000]), torch.tensor([0.5])])
def test_times_outside_a_discrete_schedule(t):
    with pytest.raises(ValueError, match=r"integer from -1 .* to 999, got"):
        linear_schedule().level(t)
    with pytest.raises(ValueError, match=r"t must be a whole number or a tensor of numbers, got 3\.5"):
        linear_schedule().level(3.5)


@pytest.mark.parametrize("t", [-0.01, 1.01, math.nan, torch.tensor([0.5, 2.0])])
def test_times_outside_a_continuous_schedule(continuous, t):
    with pytest.raises(ValueError, match=r"\[0, 1\], got"):
        continuous.level(t)


@pytest.mark.parametrize("n", [0, -1, 1001])
def test_steps_outside_one_to_T(discrete, n):
    with pytest.raises(ValueError, match=f"from 1 to 1000, got {n}"):
        discrete.levels(n)


@pytest.mark.parametrize("n", [2.5, True, "10"])
def test_steps_are_whole(discrete, n):
    with pytest.raises(ValueError, match=f"n must be a whole number or None, got {n!r}"):
        discrete.levels(n)


@pytest.mark.parametrize(
    ("n", "message"), [(0, "from 1 .*got 0"), (-3, "from 1 .*got -3"), (1.0, "a whole number, got 1.0")]
)
def test_steps_of_a_continuous_schedule(continuous, n, message):
    with pytest.raises(ValueError, match=message):
        continuous.levels(n)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 10, "spacing": "leading"}, "'even', 'ddim', 'fast27' or a list of sections, got 'leading'"),
        ({"n": 300, "spacing": "ddim"}, "no integer stride divides 1000 times into 300 steps"),
        ({"n": 5, "spacing": [2, 2]}, r"n is 5, but the spacing \[2, 2\] has 4 steps"),
        ({"spacing": [600, 1]}, "a section of 500 times cannot hold 600 steps"),
        ({"spacing": []}, r"positive integers.*got \[\]"),
        ({"spacing": [3, 0]}, r"positive integers.*got \[3, 0\]"),
    ],
)
def test_spacings_that_do_not_exist(arguments, message):
    with pytest.raises(ValueError, match=message):
        linear_schedule().levels(**arguments)


@pytest.mark.parametrize("T", [0, -5, 10.0])
def test_schedule_length(T):
    for make in (linear_schedule, sqrt_linear_schedule, clipped_cosine_schedule):
        with pytest.raises(ValueError, match=f"T must be a whole number >= 1, got {T}"):
            make(T)


@pytest.mark.parametrize("betas", [[1.0, 0.1], [0.1, 1.1], [0.0], [[0.1]], [], [0.1, math.nan]])
def test_betas_outside_the_open_interval(betas):
    with pytest.raises(ValueError, match=r"inside \(0, 1\)"):
        DiscreteSchedule(torch.tensor(betas))


def test_linear_schedule_too_short_to_scale():
    with pytest.raises(ValueError, match=r"inside \(0, 1\)"):
        linear_schedule(10)


# --- spellings of a chain, as in ADM's scripts -----------------------------------------------------------------------


def times_of(steps, T=1000):
    return [level.time for level in respaced(linear_schedule(T), steps)][-2::-1]


@pytest.mark.parametrize("count", [10, 50, 100, 250, 1000])
def test_a_number_is_an_evenly_rounded_fractional_stride(count):
    """First and last time kept, the position advanced by (T - 1) / (n - 1) and rounded."""
    place, expected = 0.0, []
    for _ in range(count):
        expected.append(round(place))
        place += 999 / (count - 1)
    assert times_of(str(count)) == times_of(count) == expected
    assert expected[0] == 0 and expected[-1] == 999


def test_ddim_has_the_integer_stride_from_zero():
    assert times_of("ddim25") == list(range(0, 1000, 40))
    assert times_of("ddim250") == list(range(0, 1000, 4))
    with pytest.raises(ValueError, match="no integer stride"):
        times_of("ddim300")


def test_sections_are_spaced_each_by_itself():
    """The schedule that the paper's sweep found for LSUN, data end first."""
    times = times_of("90,60,60,20,20")
    assert len(times) == 250 and times == sorted(set(times))
    assert [sum(t // 200 == i for t in times) for i in range(5)] == [90, 60, 60, 20, 20]
    assert all({200 * i, 200 * i + 199} <= set(times) for i in range(5))


@pytest.mark.parametrize("steps", ["", "ddim", "fast28", "10;20", "ddim10,10", "-5", "2.5", "1001", "0", 0, 1001, True])
def test_other_spellings_are_refused(steps):
    with pytest.raises(ValueError):
        respaced(linear_schedule(), steps)


def test_glides_fast_steps_start_below_the_last_time():
    even = lambda first, n: [round(first + i * 199 / (n - 1)) for i in range(n)]
    expected = [t for i, n in enumerate((10, 10, 3, 2, 2)) for t in even(200 * i, n)]
    assert times_of("fast27") == [*expected[:-1], 997]


def test_a_chain_of_one_s_own_stays_as_it_is():
    chain = [linear_schedule().level(700), vp_schedule().level(0.2), DATA]
    assert respaced(linear_schedule(), chain) is chain
    assert respaced(edm_schedule(), 5) == edm_schedule().levels(5), "a number serves a continuous schedule too"
    with pytest.raises(ValueError):
        respaced(edm_schedule(), 0)
    assert respaced(vp_schedule(), "5") == vp_schedule().levels(5)
    for steps in ("ddim25", "fast27", "2,3", "x"):
        with pytest.raises(ValueError, match="of a continuous schedule are a number"):
            respaced(edm_schedule(), steps)


def test_zero_terminal_snr_is_diffusers_and_leaves_nothing():
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    plain = sqrt_linear_schedule()
    ours, theirs = zero_terminal_snr(plain), rescale_zero_terminal_snr(plain.betas)
    torch.testing.assert_close(ours.betas, theirs, rtol=1e-9, atol=1e-12)
    assert ours.alpha_bar[-1] == 0 and ours.level(999).sigma == 1
    assert ours.alpha_bar[0].item() == pytest.approx(plain.alpha_bar[0].item(), rel=1e-12)
    assert bool((ours.alpha_bar.diff() < 0).all())
    with pytest.raises(ValueError, match="a schedule of one level"):
        zero_terminal_snr(DiscreteSchedule([0.1]))


def test_a_chain_from_nothing_finds_the_mean_of_a_point():
    """With v: of data that are one point, every sample is that point, also at the level where nothing is left."""
    schedule, point = zero_terminal_snr(sqrt_linear_schedule()), 0.7
    exact = lambda x, level: Prediction(
        x, level, (level.alpha * x - point * torch.ones_like(x)) / max(level.sigma, 1e-9), "v"
    )
    x = sample(ddim(), exact, schedule.levels(10), torch.randn(4, 3, dtype=torch.float64))
    torch.testing.assert_close(x, torch.full_like(x, point))
