"""The contest of guidance schedules: what stands for real photographs, and who is ahead of whom."""

from __future__ import annotations

import pytest
import torch

from minidiff.course import contest
from minidiff.metrics import frechet_distance


def test_points_have_the_mean_and_the_covariance():
    features = torch.randn(300, 5, dtype=torch.float64) @ torch.randn(5, 5, dtype=torch.float64) + 3
    found = contest.points(features.mean(0), features.T.cov())
    torch.testing.assert_close(found.mean(0), features.mean(0))
    torch.testing.assert_close(found.T.cov(), features.T.cov())
    assert frechet_distance(features, found) < 1e-6


def test_who_is_nearer_leads():
    features = contest._real().float().repeat(2, 1)[: 10 * contest.BLOCKS]
    moved = features + 0.5
    assert contest.lead(features, moved).low > 0 > contest.lead(moved, features).high
    assert contest.lead(features, features).value == 0
    assert contest.distance(features).value < contest.distance(moved).value


def test_a_scale_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="each finite"):
        contest.raced(lambda level: float("nan"), 0)


def test_the_rivals_are_what_a_constant_scale_draws():
    """Up to the rounding of another processor, which a chain can make larger."""
    again, stored = (
        contest.raced(lambda level: contest.BEST, contest.PRACTICE),
        contest.rival(contest.BEST, contest.PRACTICE),
    )
    assert (again - stored).norm() < 0.02 * (stored - stored.mean(0)).norm()
    assert abs(contest.distance(again).value - contest.distance(stored).value) < 0.1


def test_other_rivals_are_not_stored():
    with pytest.raises(ValueError, match=r"s = 1\.5, noise 11, .* are accepted, got s = 3, noise 7"):
        contest.rival(3.0, contest.PRACTICE)
