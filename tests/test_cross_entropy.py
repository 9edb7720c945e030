"""The cross entropy by score matching: laws of times, weights, and estimates beside closed forms."""

import math
import re

import pytest
import torch

from minidiff.cross_entropy import Times, cross_entropy, end_kl, entropy_at, excess, ode_log_prob, rate, weight
from minidiff.exact import GaussianDenoiser
from minidiff.schedule import geometric_schedule, vp_schedule

VP, GEOMETRIC = vp_schedule(), geometric_schedule()
PROPOSALS = ("uniform", "ll_iw", "un_iw", "re_iw")
SPREAD = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian(mean=0.0, covariance=SPREAD):
    return GaussianDenoiser(torch.full((2,), mean, dtype=torch.float64), covariance)


def test_the_rate_is_beta_over_variance():
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    beta = 0.1 + 19.9 * t
    torch.testing.assert_close(rate(VP, t), beta / VP.level(t).sigma ** 2)
    torch.testing.assert_close(weight(VP, t, "re"), beta)
    assert bool((weight(VP, t, "un") == 1).all())
    growth = math.log(GEOMETRIC.high / GEOMETRIC.low)
    torch.testing.assert_close(rate(GEOMETRIC, t) * GEOMETRIC.level(t).alpha ** 2, torch.full_like(t, growth))


@pytest.mark.parametrize("proposal", PROPOSALS)
@pytest.mark.parametrize(("schedule", "start"), [(VP, 0.01), (GEOMETRIC, 0.0), (vp_schedule(3.0, 3.0), 0.1)])
def test_densities_are_those_of_the_times(schedule, start, proposal):
    """Between shares u and v of the law lies an integral of v - u of the density."""
    times, nodes = Times(schedule, start, proposal), torch.linspace(0, 1, 4001, dtype=torch.float64)
    ends = times.at(torch.tensor([0.1, 0.3, 0.7, 0.9], dtype=torch.float64))
    for low, high, share in zip(ends[:-1], ends[1:], (0.2, 0.4, 0.2), strict=True):
        t = low + (high - low) * nodes
        assert torch.trapezoid(times.density(t), t).item() == pytest.approx(share, rel=1e-4)
    everything = times.at(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
    assert everything == pytest.approx([start, 1.0], abs=1e-9)


@pytest.mark.parametrize("proposal", PROPOSALS)
def test_estimates_are_those_of_gaussians(proposal):
    """q and p from one family: the cross entropy is a closed form."""
    p, n = gaussian(-0.2, 1.3 * SPREAD), 4000
    z, times = gaussian(0.4).sample(n, seeded(1)), Times(VP, 0.05, proposal)
    level = VP.level(0.05)
    noised = level.alpha * z + level.sigma * torch.randn(z.shape, generator=seeded(2), dtype=z.dtype)
    covariance = level.alpha**2 * 1.3 * SPREAD + level.sigma**2 * torch.eye(2, dtype=torch.float64)
    law = torch.distributions.MultivariateNormal(torch.full((2,), -0.2 * level.alpha, dtype=torch.float64), covariance)
    truth = -law.log_prob(noised)
    found = cross_entropy(p, z, times, 4, seeded(3))
    error = (found - truth).std() / math.sqrt(n)
    assert abs((found - truth).mean()) < 5 * error < 0.3


def test_a_normal_prior_exceeds_itself_by_nothing():
    normal = GaussianDenoiser(torch.zeros(2), 1.0)
    z = torch.randn(50, 2, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(excess(normal, z, Times(VP, 0.01), 2, seeded()), torch.zeros(50, dtype=torch.float64))
    level = VP.level(0.01)
    expected = (level.alpha**2 * z.square().sum(1) + 2 * level.sigma**2 + 2 * math.log(2 * math.pi)) / 2
    torch.testing.assert_close(cross_entropy(normal, z, Times(VP, 0.01), 1, seeded()), expected)


def test_the_flow_knows_the_density_of_a_gaussian():
    """Also by signs in place of the divergence, on average."""
    world, long = gaussian(), geometric_schedule(1e-2, 1 - 1e-9)
    z = torch.randn(6, 2, generator=seeded(), dtype=torch.float64)
    level = long.level(0.0)
    truth = torch.distributions.MultivariateNormal(
        torch.zeros(2, dtype=torch.float64), level.alpha**2 * SPREAD + level.sigma**2 * torch.eye(2)
    ).log_prob(z)
    torch.testing.assert_close(ode_log_prob(world, z, long, 0.0, 60, None), truth, atol=1e-4, rtol=0)
    probed = ode_log_prob(world, z[:1].expand(400, -1), long, 0.0, 30, 1, seeded())
    assert abs(probed.mean() - truth[0]) < 5 * probed.std() / 20


def test_entropy_and_end():
    assert entropy_at(3, 0.2) == pytest.approx(3 * torch.distributions.Normal(0.0, 0.2).entropy().item())
    z, last = torch.ones(1, 2, dtype=torch.float64), VP.level(1.0)
    one = torch.distributions.kl_divergence(
        torch.distributions.Normal(torch.tensor(last.alpha, dtype=torch.float64), torch.tensor(last.sigma)),
        torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0)),
    )
    assert end_kl(VP, z).item() == pytest.approx(2 * one.item(), abs=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Times(VP, 0.0), "an integral begins at a time in [0, 1) with noise at it, got 0.0"),
        (lambda: Times(VP, 1.0), "an integral begins at a time in [0, 1)"),
        (lambda: rate(VP, torch.zeros(1)), "the log signal-to-noise ratio is not finite"),
        (lambda: ode_log_prob(gaussian(), torch.zeros(1, 2).double(), VP, 0.0), "a flow begins at a time with noise"),
        (lambda: geometric_schedule(0.5, 0.5), "low < high is accepted, got 0.5 and 0.5"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
