"""Intervals cover what they say they cover, measured on sets whose truth is known."""

import pytest
import torch

from minidiff.metrics import Interval, bootstrap, frechet_distance, kernel_distance, precision, proportion
from minidiff.metrics.intervals import around, halves, subset

D, SHIFT = 12, 0.25
STD = torch.linspace(0.5, 1.5, D).double()
TRUTH = D * SHIFT**2 + float(((1 - STD) ** 2).sum())


def gaussians(generator, n=150, m=180):
    """Two samples whose Frechet distance is TRUTH."""
    one = torch.randn(n, D, generator=generator, dtype=torch.float64)
    return one, torch.randn(m, D, generator=generator, dtype=torch.float64) * STD + SHIFT


def coverage(intervals, truth):
    return sum(i.low <= truth <= i.high for i in intervals) / len(intervals)


def test_a_mean_has_the_interval_of_theory(generator):
    x = torch.randn(400, generator=generator, dtype=torch.float64)
    found = bootstrap(torch.mean, x, generator=generator, draws=4000)
    half_width = 1.96 * float(x.std()) / 20
    assert found.value == pytest.approx(float(x.mean()))
    assert found.low == pytest.approx(found.value - half_width, abs=0.1 * half_width)
    assert found.high == pytest.approx(found.value + half_width, abs=0.1 * half_width)


def test_frechet_distance_is_covered_with_and_without_its_bias(generator):
    expected = sum(frechet_distance(*gaussians(generator)) for _ in range(600)) / 600
    plain, debiased = [], []
    for _ in range(80):
        pair = gaussians(generator)
        value, scattered = frechet_distance(*pair), halves(frechet_distance, *pair, generator=generator, draws=60)
        plain.append(around(value, scattered))
        debiased.append(around(2 * value - float(scattered.mean()), scattered))
    # 60 draws put the ends of a 95 % interval at about 93 %; the standard error of a coverage here is 3 %
    assert coverage(plain, expected) >= 0.85
    assert coverage(debiased, TRUTH) >= 0.85
    assert coverage(plain, TRUTH) < 0.6, "the plain distance is biased"
    values = torch.tensor([i.value for i in debiased])
    assert abs(float(values.mean()) - TRUTH) < 4 * float(values.std()) / len(values) ** 0.5
    again = bootstrap(frechet_distance, *pair, generator=torch.Generator().manual_seed(1), draws=20, debias=True)
    assert again.value == pytest.approx(TRUTH, abs=1) and again.low < again.value < again.high


@pytest.mark.parametrize("statistic", [frechet_distance, kernel_distance, precision])
def test_resampling_with_replacement_would_move_the_statistic(statistic, generator):
    one, two = gaussians(generator)
    repeated = [
        statistic(*(x[torch.randint(len(x), (len(x),), generator=generator)] for x in (one, two))) for _ in range(100)
    ]
    found = bootstrap(statistic, one, two, generator=generator, draws=100)
    shift = abs(sum(repeated) / 100 - statistic(one, two))
    assert shift > 0.25 * (found.high - found.low) / 2
    assert found.low < found.value < found.high


def test_images_drawn_by_class_need_strata(generator):
    classes = torch.arange(80) % 4
    centres = 5 * torch.randn(4, generator=generator, dtype=torch.float64)
    draw = lambda: centres[classes] + torch.randn(80, generator=generator, dtype=torch.float64)
    sets = [draw() for _ in range(100)]
    told = [bootstrap(torch.mean, x, strata=[classes], generator=generator, draws=80) for x in sets]
    untold = [bootstrap(torch.mean, x, generator=generator, draws=80) for x in sets]
    assert 0.87 <= coverage(told, float(centres.mean())) <= 0.99
    assert coverage(untold, float(centres.mean())) == 1
    width = lambda found: sum(i.high - i.low for i in found)
    assert width(untold) > 3 * width(told)


def test_no_difference_and_a_difference(generator):
    reference = gaussians(generator)[1]
    one, same, other = (gaussians(generator)[0] + shift for shift in (0, 0, -0.5))
    gain = lambda a, b, r: frechet_distance(a, r) - frechet_distance(b, r)
    none = bootstrap(gain, one, same, reference, generator=generator, draws=100)
    some = bootstrap(gain, one, other, reference, generator=generator, draws=100)
    assert none.low < 0 < none.high
    assert some.high < 0


def test_the_same_seed_gives_the_same_interval(generator):
    one, two = gaussians(generator)
    draw = lambda seed: bootstrap(kernel_distance, one, two, generator=torch.Generator().manual_seed(seed), draws=30)
    assert draw(1) == draw(1) != draw(2)


@pytest.mark.parametrize("n", [12, 13, 31])
def test_a_subset_keeps_shares_and_repeats_nothing(n, generator):
    strata = torch.arange(n) % 3
    for count in (1, n // 2, n):
        taken = torch.stack([subset(strata, count, generator) for _ in range(300)])
        assert all(len(row.unique()) == count for row in taken)
        shares = torch.stack([torch.bincount(strata[row], minlength=3) for row in taken])
        exact = torch.bincount(strata) * count / n
        assert bool(((shares - exact).abs() < 1 + 1e-9).all())
        share = torch.bincount(taken.flatten(), minlength=n) / 300
        assert bool(((share - count / n).abs() < 5 * (count / n * (1 - count / n) / 300) ** 0.5 + 1e-9).all())


def test_wilson():
    # Wilson's interval is where (p - q)^2 = z^2 q (1 - q) / n
    found, z2 = proportion(torch.tensor([1] * 8 + [0] * 2)), 1.959964**2
    for q in (found.low, found.high):
        assert (0.8 - q) ** 2 == pytest.approx(z2 * q * (1 - q) / 10, rel=1e-5)
    sure = proportion(torch.ones(50))
    assert sure.value == sure.high == 1 and sure.low == pytest.approx(50 / (50 + z2), rel=1e-5)


def test_wilson_of_shares_is_that_of_as_many_outcomes():
    halves = proportion(torch.tensor([0.5] * 6 + [1.0, 0.0, 1.0, 1.0]))
    assert halves == pytest.approx(proportion(torch.tensor([1] * 6 + [0] * 4)))
    with pytest.raises(ValueError, match="all from 0 to 1"):
        proportion(torch.tensor([0.5, 1.5]))


def test_an_interval_reads_as_a_tuple():
    assert Interval(1.0, 0.5, 2.0)[1:] == (0.5, 2.0)
    assert str(Interval(1.23456, 1, 2)) == "1.235 [1, 2]"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: bootstrap(torch.mean, x[:3]), "at least 4"),
        (lambda x: bootstrap(torch.mean, x, draws=5), "draws >= 20"),
        (lambda x: bootstrap(torch.mean, x, level=95), "level must be a number between 0 and 1, got 95"),
        (lambda x: bootstrap(torch.mean, x, strata=[torch.zeros(3)]), "one stratum an image"),
        (lambda x: proportion(x[:0]), "at least one"),
        (lambda x: subset(x, 0), "cannot take 0 of 9"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.arange(9.0))
