"""Which levels training looks at: the law of each policy, and weights that keep an estimate unbiased."""

import math
import re

import pytest
import torch

from minidiff.random import sample_generators
from minidiff.schedule import (
    DiscreteSchedule,
    NoiseLevel,
    clipped_cosine_schedule,
    edm_schedule,
    linear_schedule,
    vp_schedule,
)
from minidiff.training.levels import (
    SAMPLERS,
    AlphaBetween,
    Importance,
    LogNormal,
    Noisiest,
    Only,
    Tilted,
    Uniform,
    level_sampler,
)

LOSS = torch.tensor([0.1, 4.0, 1.0, 0.0, 2.0], dtype=torch.float64)
FIVE = DiscreteSchedule(torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def warmed() -> Importance:
    sampler = Importance(history=3)
    sampler.draw(FIVE, 1, seeded())
    for _ in range(3):
        sampler.update(FIVE.level(torch.arange(5)), LOSS)
    sampler.learn()
    return sampler


# --- what all of them promise ---------------------------------------------------------------------------------------

POLICIES = {
    "uniform": (Uniform(), linear_schedule()),
    "uniform-continuous": (Uniform(), vp_schedule()),
    "tilted": (Tilted(), linear_schedule()),
    "noisiest": (Noisiest(), linear_schedule()),
    "only": (Only(3), linear_schedule()),
    "alpha_between": (AlphaBetween(), linear_schedule()),
    "log_normal": (LogNormal(), edm_schedule()),
    "importance": (warmed(), FIVE),
}


@pytest.mark.parametrize("name", POLICIES)
def test_a_sample_of_a_batch_has_a_level_of_its_own_generator(name):
    sampler, schedule = POLICIES[name]
    level, weight = sampler.draw(schedule, 6, sample_generators(0, range(6)))
    alone, its = sampler.draw(schedule, 1, sample_generators(0, [4]))
    for one, many in ((alone.alpha, level.alpha), (alone.sigma, level.sigma), (alone.time, level.time), (its, weight)):
        assert many.shape == (6,) and one[0] == many[4]
    assert bool((weight > 0).all()) and weight.dtype == torch.float32
    assert set(POLICIES) - {"uniform-continuous"} == set(SAMPLERS), "every policy is looked at here"


# --- the law of each ------------------------------------------------------------------------------------------------


def test_uniform_times_are_the_levels_of_the_schedule():
    level, weight = Uniform().draw(FIVE, 20_000, seeded())
    counts = level.time.bincount(minlength=5) / 20_000
    assert (counts - 0.2).abs().max() < 4.5 * math.sqrt(0.16 / 20_000)
    torch.testing.assert_close(level.alpha**2, FIVE.alpha_bar[level.time])
    assert torch.equal(weight, torch.ones(20_000))


@pytest.mark.parametrize("power", [-0.5, 0.0, 0.5, 1.0, 3.0])
def test_tilted_times_have_the_density_that_they_say(power):
    """The share of time t is the integral of (1 + power) u^power from t / T to (t + 1) / T."""
    n, ends = 50_000, torch.arange(6).double() / 5
    expected = ends.pow(1 + power).diff()
    level, weight = Tilted(power).draw(FIVE, n, seeded())
    share = level.time.bincount(minlength=5) / n
    assert bool(((share - expected).abs() < 4.5 * (expected * (1 - expected) / n).sqrt()).all())
    assert torch.equal(weight, torch.ones(n))


def test_the_noisiest_quarter():
    schedule = DiscreteSchedule(torch.full((8,), 0.1))
    level, weights = Noisiest().draw(schedule, 400, seeded())
    times = level.time
    assert set(times.tolist()) == {6, 7} and abs(float((times == 6).float().mean()) - 0.5) < 0.1
    assert torch.equal(weights, torch.ones(400))
    three = DiscreteSchedule(torch.full((3,), 0.1))
    assert set(Noisiest().draw(three, 9, seeded())[0].time.tolist()) == {2}, "a quarter of few is one"
    assert set(Noisiest(1.0).draw(three, 99, seeded())[0].time.tolist()) == {0, 1, 2}


@pytest.mark.parametrize(("t", "expected"), [(0, 0), (4, 4), (-1, 4), (-5, 0)])
def test_only_one_time_from_either_end(t, expected):
    level, weight = Only(t).draw(FIVE, 3)
    assert level.time.tolist() == [expected] * 3 and weight.tolist() == [1, 1, 1]
    torch.testing.assert_close(level.sigma**2, (1 - FIVE.alpha_bar[expected]).expand(3))


def test_only_a_time_that_the_schedule_has():
    for t in (5, -7):
        with pytest.raises(ValueError, match=r"from -1 .* to 4"):
            Only(t).draw(FIVE, 3)


def test_alpha_bar_is_uniform_between_neighbouring_levels():
    """Each time has its own interval; they touch, and cover everything from the noisiest level to clean data."""
    schedule = linear_schedule(2000, 1e-6, 1e-2)
    level, weight = AlphaBetween().draw(schedule, 200_000, seeded())
    t = level.time
    low, high = schedule.level(t).alpha ** 2, schedule.level(t - 1).alpha ** 2
    u = (level.alpha**2 - low) / (high - low)
    assert u.min() >= 0 and u.max() <= 1
    for first in range(0, 2000, 500):  # uniform inside its interval, near the data and far from it
        chosen = u[(t >= first) & (t < first + 500)]
        assert abs(chosen.mean() - 0.5) < 0.006 and abs(chosen.var() - 1 / 12) < 0.003
    assert abs(t.double().mean() - 999.5) < 4.5 * 2000 / math.sqrt(12 * 200_000), "times are uniform"
    torch.testing.assert_close(level.alpha**2 + level.sigma**2, torch.ones(len(t), dtype=torch.float64))
    assert level.alpha.min() >= schedule.level(1999).alpha and level.alpha.max() <= 1
    assert torch.equal(weight, torch.ones(200_000))


def test_it_is_alpha_bar_that_is_uniform_and_not_its_root():
    """One time, from pure noise to clean data: alpha-bar has the mean 1/2 (SR3), alpha 2/3 and not 1/2 (WaveGrad)."""
    level, _ = AlphaBetween().draw(DiscreteSchedule(torch.tensor([1 - 1e-12], dtype=torch.float64)), 100_000, seeded())
    assert abs((level.alpha**2).mean() - 1 / 2) < 4.5 * math.sqrt(1 / 12 / 100_000)
    assert abs(level.alpha.mean() - 2 / 3) < 4.5 * math.sqrt(1 / 18 / 100_000)


@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (0.4, 0.3)])
def test_log_normal_has_the_moments_that_it_says(mean, std):
    """log sigma is normal (Karras et al. 2022, table 1), beyond the ends of the chain too."""
    n = 100_000
    level, weight = LogNormal(mean, std).draw(edm_schedule(), n, seeded())
    z = (level.sigma.log() - mean) / std
    for power, moment, deviation in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):  # variance of z^k
        assert abs(z.pow(power).mean() - moment) < 4.5 * math.sqrt(deviation / n)
    torch.testing.assert_close(level.time, level.sigma.log() / 4)
    assert torch.equal(level.alpha, torch.ones_like(level.sigma)) and torch.equal(weight, torch.ones(n))


# --- importance -----------------------------------------------------------------------------------------------------


def test_probabilities_are_the_root_mean_square_losses():
    sampler = Importance(history=2)
    sampler.draw(FIVE, 1)
    for losses in (LOSS, 3 * LOSS + 1):
        sampler.update(FIVE.level(torch.arange(5)), losses)
        sampler.learn()
    rms = ((LOSS**2 + (3 * LOSS + 1) ** 2) / 2).sqrt()
    torch.testing.assert_close(sampler.probabilities(5), 0.999 * rms / rms.sum() + 0.001 / 5)
    assert warmed().probabilities(5).min() > 0, "a time whose loss was 0 can still be drawn"


def test_uniform_until_every_time_was_seen_often_enough():
    sampler, even = Importance(history=3), torch.full((5,), 0.2, dtype=torch.float64)
    torch.testing.assert_close(sampler.probabilities(5), even)
    _, weight = sampler.draw(FIVE, 40, seeded())
    torch.testing.assert_close(weight, torch.ones(40))
    sampler.update(FIVE.level(torch.tensor([0, 0, 0, 1, 2, 3, 4])), torch.ones(7))
    sampler.learn()
    torch.testing.assert_close(sampler.probabilities(5), even)


def test_only_the_last_losses_count():
    sampler = warmed()
    for _ in range(3):
        sampler.update(FIVE.level(torch.arange(5)), torch.ones(5))
    sampler.learn()
    torch.testing.assert_close(sampler.probabilities(5), torch.full((5,), 0.2, dtype=torch.float64))


def test_nothing_is_learnt_before_a_step_is_over():
    """Its parts are drawn alike, and what they teach is that of the whole."""
    parts, whole = warmed(), warmed()
    before, losses = parts.probabilities(5), torch.arange(1.0, 6.0).double()
    for part in (slice(0, 2), slice(2, 5)):
        parts.update(FIVE.level(torch.arange(5)[part]), losses[part])
        assert torch.equal(parts.probabilities(5), before)
    whole.update(FIVE.level(torch.arange(5)), losses)
    for sampler in (parts, whole):
        sampler.learn()
        sampler.learn()  # once is enough
    assert torch.equal(parts.losses, whole.losses) and torch.equal(parts.seen, whole.seen)
    assert not torch.equal(parts.probabilities(5), before)


def test_the_weighted_loss_is_unbiased_and_less_noisy():
    estimates = {}
    for sampler in (Uniform(), warmed()):
        level, weight = sampler.draw(FIVE, 40_000, seeded())
        estimates[type(sampler)] = weight.double() * LOSS[level.time]
        error = estimates[type(sampler)].std() / 200
        assert abs(estimates[type(sampler)].mean() - LOSS.mean()) < 4 * error
    assert estimates[Importance].std() < 0.05 * estimates[Uniform].std()


def test_draws_follow_the_probabilities():
    sampler = warmed()
    counts = sampler.draw(FIVE, 20_000, seeded(1))[0].time.bincount(minlength=5) / 20_000
    assert (counts - sampler.probabilities(5)).abs().max() < 0.02


def test_state_round_trips():
    sampler, other = warmed(), Importance(history=3)
    assert other.state() == {}, "nothing is known before the first draw"
    other.load({name: tensor.clone() for name, tensor in sampler.state().items()})
    torch.testing.assert_close(other.probabilities(5), sampler.probabilities(5))
    other.load({})
    torch.testing.assert_close(other.probabilities(5), torch.full((5,), 0.2, dtype=torch.float64))


def test_policies_without_a_history_have_no_state():
    for sampler in (Uniform(), Tilted(), Noisiest(), Only(0), AlphaBetween(), LogNormal()):
        sampler.update(NoiseLevel(torch.ones(2), torch.ones(2), torch.zeros(2)), torch.ones(2))
        sampler.learn()
        assert sampler.state() == {}


# --- names and options ----------------------------------------------------------------------------------------------


def test_a_policy_by_name_or_with_options():
    assert level_sampler("uniform") == Uniform() and level_sampler({"name": "noisiest"}) == Noisiest(0.25)
    assert level_sampler({"name": "only", "t": -1}) == Only(-1)
    assert level_sampler({"name": "log_normal", "mean": 0, "std": "1e-1"}) == LogNormal(0.0, 0.1)
    assert level_sampler({"name": "importance", "history": 3}) == Importance(3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("noisy", "unknown level sampler 'noisy': did you mean 'noisiest'?"),
        ("xyz", "unknown level sampler 'xyz': known: alpha_between, importance, log_normal, noisiest, only, tilted"),
        ({"name": "noisiest", "shares": 0.5}, "unknown key level_sampler.shares: did you mean 'share'?"),
        ({"name": "uniform", "share": 0.5}, "unknown key level_sampler.share: it takes none"),
        ({"name": "importance", "losses": None}, "unknown key level_sampler.losses"),
        ({"name": "only"}, "level_sampler lacks t"),
        ({"name": "only", "t": "last"}, "level_sampler.t must be of type int, got 'last'"),
        ({"share": 0.5}, "a level sampler is a name, or a mapping with a name; got {'share': 0.5}"),
        (3, "a level sampler is a name, or a mapping with a name; got 3"),
        ({"name": "noisiest", "share": 0}, "share lies in (0, 1]; got 0"),
        ({"name": "noisiest", "share": 1.1}, "share lies in (0, 1]; got 1.1"),
        ({"name": "tilted", "power": -1}, "power > -1; got -1"),
        ({"name": "log_normal", "std": 0}, "std > 0; got 0"),
        ({"name": "importance", "history": 0}, "history >= 1; got 0"),
        ({"name": "importance", "uniform": 0}, "uniform lies in (0, 1]; got 0"),
    ],
)
def test_names_and_options_that_are_none(spec, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        level_sampler(spec)


@pytest.mark.parametrize("name", ["tilted", "noisiest", "only", "alpha_between", "importance"])
def test_a_table_of_times_is_needed_where_times_are_counted(name):
    sampler = level_sampler({"name": name, "t": 0} if name == "only" else name)
    with pytest.raises(ValueError, match="a discrete schedule"):
        sampler.draw(vp_schedule(), 3)


def test_log_normal_is_for_levels_that_explode():
    for schedule in (clipped_cosine_schedule(), vp_schedule()):
        with pytest.raises(ValueError, match="variance-exploding"):
            LogNormal().draw(schedule, 3)


@pytest.mark.parametrize("loss", [0.0, float("nan"), float("inf")])
def test_losses_that_say_nothing_leave_times_uniform(loss):
    """All zero, or not finite: the weights of the next draw are those of uniform times, which are 1."""
    schedule, sampler = clipped_cosine_schedule(10), Importance(history=1)
    sampler.draw(schedule, 1)
    sampler.update(schedule.level(torch.arange(10)), torch.full((10,), loss))
    sampler.learn()
    assert torch.equal(sampler.draw(schedule, 5)[1], torch.ones(5))


@pytest.mark.parametrize(
    "make", [lambda: Tilted(float("inf")), lambda: LogNormal(float("nan")), lambda: LogNormal(0, float("inf"))]
)
def test_numbers_of_a_level_sampler_are_finite(make):
    with pytest.raises(ValueError, match="finite"):
        make()


@pytest.mark.parametrize("spec", [{"name": ["a"]}, {"name": 3}, {"name": None}])
def test_a_level_sampler_has_a_name(spec):
    with pytest.raises(ValueError, match="a level sampler is a name"):
        level_sampler(spec)
