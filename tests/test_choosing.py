"""Laws of choosing, against every possible run of draws, and against closed forms of continuous ones."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from minidiff.choosing import best_of, top_share


def law(n=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    p = torch.rand(n, generator=g, dtype=torch.float64)
    return p / p.sum(), torch.randint(0, 4, (n,), generator=g).double()  # with ties


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_the_best_of_n_against_all_runs(n, seed):
    p, merit = law(seed=seed)
    expected = torch.zeros(7, dtype=torch.float64)
    for run in itertools.product(range(7), repeat=n):
        best = [i for i in run if merit[i] == merit[list(run)].max()]
        for i in best:
            expected[i] += p[list(run)].prod() / len(best)
    torch.testing.assert_close(best_of(p, merit, n), expected)
    torch.testing.assert_close(best_of(10 * p, 3 * merit - 1, n), expected)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.31, 0.01])
def test_the_upper_share_against_many_equal_items(share):
    """Items are cut into many small ones without a tie between them, of which the upper ones are kept."""
    p, merit = torch.tensor([3.0, 2.0, 5.0, 1.0]), torch.tensor([1.0, 0.0, 2.0, 2.0])
    law = top_share(p, merit, share)
    # by hand: mass 6 / 11 at merit 2, 3 / 11 at 1, 2 / 11 at 0
    left, expected = share, torch.zeros(4, dtype=torch.float64)
    for value in (2.0, 1.0, 0.0):
        mass = p[merit == value].sum().item() / 11
        taken = min(left, mass)
        expected[merit == value] = (p[merit == value].double() / 11) * taken / mass
        left -= taken
    torch.testing.assert_close(law, expected / share)
    assert float(law.sum()) == pytest.approx(1)


def test_how_far_they_lead_away_without_ties():
    """log n - (n - 1) / n nats and log 1 / share, whatever the law."""
    for seed in range(2):
        g = torch.Generator().manual_seed(seed)
        p = torch.rand(200_000, generator=g, dtype=torch.float64) + 0.01
        p, merit = p / p.sum(), torch.randn(200_000, generator=g)
        away = lambda q, p=p: float(torch.xlogy(q, q / p).sum())
        for n in (2, 5):
            assert away(best_of(p, merit, n)) == pytest.approx(math.log(n) - (n - 1) / n, abs=1e-4)
        assert away(top_share(p, merit, 0.25)) == pytest.approx(math.log(4), abs=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: best_of(torch.ones(3), torch.ones(2)), r"merit must be a tensor \(N\) of numbers where N = 3"),
        (lambda: best_of(-torch.ones(3), torch.ones(3)), "not negative"),
        (lambda: best_of(torch.zeros(3), torch.ones(3)), "not negative"),
        (lambda: best_of(torch.ones(3), torch.ones(3), 0), "n must be a whole number >= 1, got 0"),
        (lambda: best_of(torch.ones(2), torch.tensor([1.0, math.nan])), "finite"),
        (lambda: top_share(torch.ones(3), torch.ones(3), 0.0), r"in \(0, 1\], got 0.0"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
