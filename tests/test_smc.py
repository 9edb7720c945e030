"""Sequential Monte Carlo: weights against independent formulas, resampling by its definition, and what comes out."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch.distributions import Normal

from minidiff.denoiser import conditioned
from minidiff.exact import GaussianDenoiser, GaussianMixtureDenoiser
from minidiff.process import beta, posterior_mean
from minidiff.random import randn
from minidiff.sampler import ancestral, sample
from minidiff.schedule import DATA, cosine_schedule
from minidiff.smc import Particles, corrected, path_log_weight, systematic_resample

LEVELS = cosine_schedule().levels(10)
LINE = GaussianMixtureDenoiser(torch.tensor([[-0.5], [0.5]]), 0.25)
TOLD = conditioned(LINE, 1)


def tilted(scale):
    """Mean and second moment of p(x) p(1 | x)^s, summed over a grid."""
    grid = torch.linspace(-5, 5, 4001, dtype=torch.float64)[:, None]
    weight = (LINE.log_prob(grid, DATA) + scale * LINE.classifier(1)(grid, DATA)).softmax(0)
    return (weight * grid[:, 0]).sum(), (weight * grid[:, 0] ** 2).sum()


def log_density(scale):
    return lambda x, level: (1 - scale) * LINE.log_prob(x, level) + scale * LINE.log_prob(x, level, 1)


def start(n, seed=0):
    return LEVELS[0].sigma * randn((n, 1), torch.Generator().manual_seed(seed), torch.float64)


# --- resampling -----------------------------------------------------------------------------------------------------


def test_copies_are_the_expected_number_up_to_one():
    weight = torch.rand(50, 30, dtype=torch.float64) ** 3
    chosen = systematic_resample(weight.log(), torch.Generator().manual_seed(0))
    copies = torch.nn.functional.one_hot(chosen, 30).sum(1)
    expected = 30 * weight / weight.sum(1, keepdim=True)
    assert ((copies - expected).abs() < 1).all()
    assert (chosen.diff(dim=1) >= 0).all() and chosen.shape == (50, 30)


def test_copies_are_right_on_average():
    """Over many populations: u is one uniform number each, so the mean is K w within its standard error."""
    weight = torch.tensor([0.05, 0.5, 0.2, 0.25], dtype=torch.float64)
    chosen = systematic_resample(weight.log().expand(20000, 4), torch.Generator().manual_seed(1))
    copies = torch.nn.functional.one_hot(chosen, 4).double().mean((0, 1))
    assert (copies - weight).abs().max() < 4 * 0.5 / 4 / math.sqrt(20000)


def test_equal_weights_keep_everybody_and_no_weight_nobody():
    even = systematic_resample(torch.zeros(3, 7), torch.Generator().manual_seed(2))
    assert torch.equal(even, torch.arange(7).expand(3, 7))
    lonely = torch.tensor([[-math.inf, 0.0, -math.inf], [5.0, -math.inf, -math.inf]])
    assert systematic_resample(lonely).tolist() == [[1, 1, 1], [0, 0, 0]]


def test_shift_of_log_weights_and_seed():
    log_weight = torch.randn(4, 9)
    draw = lambda w, seed: systematic_resample(w, torch.Generator().manual_seed(seed))
    assert torch.equal(draw(log_weight, 3), draw(log_weight + 700, 3))
    assert not torch.equal(draw(log_weight, 3), draw(log_weight, 4))


def test_effective_number_and_pick():
    log_weight = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.0, 1.0, 0.0, 0.0]]).log()
    x = torch.arange(16.0).reshape(8, 2)
    cloud = Particles(x, log_weight, DATA)
    torch.testing.assert_close(cloud.effective, torch.tensor([4.0, 1.0]))
    for seed in range(20):
        first, second = cloud.pick(torch.Generator().manual_seed(seed))
        assert first.tolist() in x[:4].tolist() and second.tolist() == x[5].tolist()


# --- weights --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 1.0, 3.0])
def test_path_weight_is_what_completing_the_square_leaves_over(scale):
    """log N(x; u)^(1-s) N(x; c)^s - log N(x; u + s (c - u)), the same for every x."""
    generator = torch.Generator().manual_seed(4)
    c, u, x = randn((3, 5, 2, 2), generator, torch.float64)
    density = lambda mean: Normal(mean, 0.3**0.5).log_prob(x).flatten(1).sum(1)
    expected = (1 - scale) * density(u) + scale * density(c) - density(u + scale * (c - u))
    torch.testing.assert_close(path_log_weight(c, u, 0.3, scale), expected)


def test_path_weight_tends_to_the_corrector_of_the_sde():
    """1/2 s (s - 1) g^2 |score_c - score_u|^2 dt, with g^2 dt = beta."""
    x, errors = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None], []
    for step in (0.02, 0.002):
        t, r = cosine_schedule().level(0.5), cosine_schedule().level(0.5 - step)
        means = [posterior_mean(x, d(x, t).x0, t, r) for d in (TOLD, LINE)]
        rate = 3.0 * beta(t, r) * (TOLD(x, t).score - LINE(x, t).score).square()[:, 0]
        errors.append((path_log_weight(*means, beta(t, r), 3.0) / rate - 1).abs().max().item())
    assert errors[1] < errors[0] / 8 < 0.02


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_without_a_tilt_there_is_nothing_to_correct(scale):
    """Even weights, and the moves are those of the ancestral sampler of the one model that is asked for."""
    x = start(40)
    *_, last = corrected(TOLD, LINE, scale, LEVELS, x, torch.Generator().manual_seed(5))
    plain = sample(ancestral("beta"), TOLD if scale else LINE, LEVELS, x, torch.Generator().manual_seed(5))
    torch.testing.assert_close(last.log_weight.exp(), torch.full((1, 40), 1 / 40, dtype=torch.float64))
    torch.testing.assert_close(last.x, plain)


def test_every_step_is_yielded_with_normalised_weights():
    steps = list(corrected(TOLD, LINE, 3.0, LEVELS, start(60), torch.Generator().manual_seed(6), particles=20))
    assert [p.level for p in steps] == LEVELS[1:]
    for p in steps:
        torch.testing.assert_close(p.log_weight.exp().sum(1), torch.ones(3, dtype=torch.float64))
        assert p.x.shape == (60, 1) and p.log_weight.shape == (3, 20)


def test_populations_are_resampled_apart():
    """A particle's descendants stay in its population: mark two populations by a coordinate that nothing moves."""
    mark = torch.tensor([-9.0, 9.0], dtype=torch.float64).repeat_interleave(50)[:, None]
    world = lambda label: lambda x, level: TOLD(x[:, :1], level) if label else LINE(x[:, :1], level)

    def widened(label):
        def denoise(x, level):
            prediction = world(label)(x, level)
            return prediction.replace(x=x, value=torch.cat([prediction.x0, 100 * mark], 1), kind="x0")

        return denoise

    x = torch.cat([start(100), mark], 1)
    *_, last = corrected(widened(1), widened(0), 6.0, LEVELS, x, torch.Generator().manual_seed(7), particles=50)
    assert (last.x[:50, 1] < 0).all() and (last.x[50:, 1] > 0).all()


@pytest.mark.parametrize("scale", [2.0, 3.0])
def test_weighted_particles_follow_the_tilted_density_at_ten_steps(scale):
    """With densities the weights are right for any number of steps; without weights the mean is elsewhere."""
    populations, count = 30, 500
    x = start(populations * count, 8)
    *_, last = corrected(
        TOLD,
        LINE,
        scale,
        LEVELS,
        x,
        torch.Generator().manual_seed(9),
        particles=count,
        log_density=log_density(scale),
    )
    weight, points = last.log_weight.exp(), last.x.reshape(populations, count)
    for power, exact in zip((1, 2), tilted(scale), strict=True):
        estimate = (weight * points**power).sum(1)
        error = estimate.std() / populations**0.5
        assert abs(estimate.mean() - exact) < 4 * error < 0.1
    unweighted = sample(ancestral("beta"), guided(scale), LEVELS, x, torch.Generator().manual_seed(9))
    assert unweighted.mean() - tilted(scale)[0] > 0.05


def guided(scale):
    return lambda x, level: LINE(x, level).with_eps(
        LINE(x, level).eps + scale * (TOLD(x, level).eps - LINE(x, level).eps)
    )


@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
def test_path_weights_are_right_to_first_order_on_gaussians(variance):
    """Everything is Gaussian, so the weighted chain can be followed by mean and variance: no particles, no noise."""
    plain, told, scale = GaussianDenoiser(torch.zeros(1), 1.0), GaussianDenoiser(torch.tensor([0.9]), 0.4), 3.0
    precision = 1 - scale + scale / 0.4
    probe, errors = torch.tensor([[0.0], [1.0]], dtype=torch.float64), []
    for n in (100, 400):
        mean, var, levels = 0.0, 1.0, cosine_schedule().levels(n)
        for t, r in pairwise(levels):
            c, u = (posterior_mean(probe, d(probe, t).x0, t, r) for d in (told, plain))
            spread = beta(t, r) * (r.sigma**2 / t.sigma**2 if variance == "beta_tilde" else 1.0)
            curve = path_log_weight(torch.cat([c, c[1:] * 2 - c[:1]]), torch.cat([u, u[1:] * 2 - u[:1]]), 1.0, scale)
            second = (curve[2] - 2 * curve[1] + curve[0]).item()  # at x = 0, 1, 2: the weight is a parabola in x
            first = (curve[1] - curve[0]).item() - second / 2
            size = spread if spread > 0 else math.inf
            after = 1 / var - second / size
            mean, var = (mean / var + first / size) / after, 1 / after
            g = u + scale * (c - u)
            slope = (g[1] - g[0]).item()
            mean, var = g[0].item() + slope * mean, slope**2 * var + (spread if r.sigma else 0.0)
        errors.append(abs(mean - scale * 0.9 / 0.4 / precision) + abs(var - 1 / precision))
    assert errors[1] < errors[0] / 3 < 0.02


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log_weight", "message"),
    [
        (torch.zeros(5), r"shape \(populations, particles\), got \(5,\)"),
        (torch.tensor([[0.0, math.nan]]), "finite log weights"),
        (torch.full((2, 3), -math.inf), "finite log weights"),
        (torch.tensor([[math.inf, 0.0]]), "finite log weights"),
    ],
)
def test_weights_that_choose_nobody(log_weight, message):
    with pytest.raises(ValueError, match=message):
        systematic_resample(log_weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"particles": 7}, "a batch of 20 does not hold whole populations of 7"),
        ({"particles": 0}, "particles must be a whole number >= 1 or None, got 0"),
        ({"variance": "learned"}, "'learned'"),
        ({"threshold": 1.5}, "threshold must be a number from 0 to 1, got 1.5"),
        ({"levels": LEVELS[:1]}, "1 levels"),
        ({"x_T": torch.full((20, 1), math.nan)}, "x_T holds 20 values that are not finite"),
    ],
)
def test_bad_input(changes, message):
    given = {"levels": LEVELS, "x_T": start(20)} | changes
    with pytest.raises(ValueError, match=message):
        next(corrected(TOLD, LINE, 2.0, given.pop("levels"), given.pop("x_T"), **given))
