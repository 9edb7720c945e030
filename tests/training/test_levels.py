"""Importance-sampled times: the estimate stays unbiased, and the variance falls to that of the best proposal."""

import pytest
import torch

from minidiff.random import sample_generators
from minidiff.training.times import ImportanceTimes, NoisiestTimes, UniformTimes

LOSS = torch.tensor([0.1, 4.0, 1.0, 0.0, 2.0], dtype=torch.float64)


def warmed() -> ImportanceTimes:
    times = ImportanceTimes(5, history=3)
    for _ in range(3):
        times.update(torch.arange(5), LOSS)
    return times


def test_probabilities_are_the_root_mean_square_losses():
    p = warmed().probabilities
    torch.testing.assert_close(p, 0.999 * LOSS / LOSS.sum() + 0.001 / 5)
    assert p.min() > 0, "a time whose loss was 0 can still be drawn"


def test_uniform_until_every_time_was_seen_often_enough():
    times = ImportanceTimes(5, history=3)
    times.update(torch.tensor([0, 0, 0, 1, 2, 3, 4]), torch.ones(7))
    torch.testing.assert_close(times.probabilities, torch.full((5,), 0.2, dtype=torch.float64))


def test_only_the_last_losses_count():
    times = warmed()
    for _ in range(3):
        times.update(torch.arange(5), torch.ones(5))
    torch.testing.assert_close(times.probabilities, torch.full((5,), 0.2, dtype=torch.float64))


def test_the_weighted_loss_is_unbiased_and_less_noisy():
    estimates = {}
    for times in (UniformTimes(5), warmed()):
        t, weight = times.draw(40_000, torch.Generator().manual_seed(0))
        estimates[type(times)] = weight.double() * LOSS[t]
        error = estimates[type(times)].std() / 200
        assert abs(estimates[type(times)].mean() - LOSS.mean()) < 4 * error
    assert estimates[ImportanceTimes].std() < 0.05 * estimates[UniformTimes].std()


def test_draws_follow_the_probabilities_and_each_sample_its_own_generator():
    times = warmed()
    counts = times.draw(20_000, torch.Generator().manual_seed(1))[0].bincount(minlength=5) / 20_000
    assert (counts - times.probabilities).abs().max() < 0.02
    many, _ = times.draw(6, sample_generators(0, range(6)))
    one, _ = times.draw(1, sample_generators(0, [4]))
    assert many[4] == one[0]


def test_state_round_trips():
    times, other = warmed(), ImportanceTimes(5, history=3)
    other.load(times.state())
    torch.testing.assert_close(other.probabilities, times.probabilities)
    with pytest.raises(KeyError):
        other.load({})


def test_the_noisiest_quarter():
    times, weights = NoisiestTimes(8).draw(400, torch.Generator().manual_seed(0))
    assert set(times.tolist()) == {6, 7} and abs(float((times == 6).float().mean()) - 0.5) < 0.1
    assert torch.equal(weights, torch.ones(400))
    assert set(NoisiestTimes(3).draw(9, torch.Generator())[0].tolist()) == {2}, "a quarter of few is one"
