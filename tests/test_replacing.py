"""Known pixels: pasted at a level, imposed on x_0, resampled and weighted; against closed forms and by construction."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import seeded

from minidiff.exact import EmpiricalDenoiser, GaussianDenoiser, GaussianMixtureDenoiser
from minidiff.guidance import replace_known
from minidiff.process import as_known, beta, diffuse, paste, posterior_mean, transition
from minidiff.random import randn, sample_generators
from minidiff.sampler import ancestral, ddim, heun, replacing, sample, walk
from minidiff.schedule import DATA, NoiseLevel, cosine_schedule
from minidiff.smc import filtered_replacement

RHO = 0.9
PAIR = GaussianDenoiser(torch.zeros(2), torch.tensor([[1.0, RHO], [RHO, 1.0]]))
IMAGE, MASK = torch.tensor([[math.nan, 1.0]]).double().nan_to_num(7.0), torch.tensor([[0, 1]])
LEVELS = cosine_schedule().levels(20)


def start(n, seed=0):
    return randn((n, 2), seeded(seed), torch.float64)


# --- pasting --------------------------------------------------------------------------------------------------------


def test_what_is_pasted_has_the_law_of_the_forward_process_at_that_level():
    level, n = NoiseLevel(0.5, 0.7, 0.0), 40_000  # not variance preserving: alpha and sigma are two things
    x = torch.full((n, 2), 3.0, dtype=torch.float64)
    out = paste(x, level, IMAGE, as_known(MASK), randn((n, 2), seeded(), torch.float64))
    assert torch.equal(out[:, 0], x[:, 0])
    assert abs(out[:, 1].mean().item() - 0.5) < 4.5 * 0.7 / n**0.5
    assert abs(out[:, 1].var().item() / 0.49 - 1) < 4.5 * (2 / n) ** 0.5


@pytest.mark.parametrize("mask", [torch.tensor([[0.5, 1.0]]), torch.tensor([[2, 0]]), torch.tensor([[math.nan, 0.0]])])
def test_a_mask_is_zeros_and_ones(mask):
    for use in (as_known, lambda m: replace_known(PAIR, IMAGE, m), lambda m: replacing(ddim(), IMAGE, m)):
        with pytest.raises(ValueError, match="mask"):
            use(mask)


@pytest.mark.parametrize("sampler", [ancestral("beta"), ancestral(), ddim(), ddim(0.5), heun()])
def test_known_pixels_are_at_the_level_of_the_sample_after_every_step(sampler):
    n = 4000
    for state in replacing(sampler, IMAGE, MASK)(PAIR, LEVELS[:8], start(n), seeded(1)):
        known, level = state.x[:, 1], state.level
        assert abs(known.mean().item() - level.alpha) < 4.5 * level.sigma / n**0.5
        assert abs(known.var().item() / level.sigma**2 - 1) < 4.5 * (2 / n) ** 0.5
    assert torch.equal(sample(replacing(sampler, IMAGE, MASK), PAIR, LEVELS, start(5), seeded(1))[:, 1], torch.ones(5))


def test_with_nothing_known_the_sampler_is_the_inner_one_and_with_all_known_nothing_is_sampled():
    x, none, every = start(6), torch.zeros(1, 2), torch.ones(1, 2)
    assert torch.equal(
        sample(replacing(heun(), IMAGE, none), PAIR, LEVELS, x, seeded()), sample(heun(), PAIR, LEVELS, x)
    )
    assert torch.equal(sample(replacing(heun(), IMAGE, every), PAIR, LEVELS, x, seeded()), IMAGE.expand(6, 2))


def test_a_sample_does_not_depend_on_its_batch():
    run = lambda indices: sample(
        replacing(ancestral(), IMAGE, MASK, 2, 3), PAIR, LEVELS, start(4)[indices], sample_generators(0, indices)
    )
    torch.testing.assert_close(run([0, 1, 2, 3])[2:], run([2, 3]), rtol=0, atol=1e-12)


# --- the law of a pasted chain, followed without drawing ------------------------------------------------------------


def followed(levels, resamplings=1, jump=1):
    """Gain on the known pixel and variance of the unknown one: means and covariances of a linear chain."""
    paths = pairwise(walk(len(levels) - 1, resamplings, jump))
    gain, spread = np.array([0.0, levels[0].alpha]), np.diag([1.0, levels[0].sigma ** 2])
    for i, j in paths:
        t, r = levels[i], levels[j]
        if j < i:
            keep, noise = transition(t, r)
            gain, spread = keep * gain, keep**2 * spread + noise * np.eye(2)
        else:
            map_ = posterior_mean(torch.eye(2).double(), PAIR(torch.eye(2).double(), t).x0, t, r).numpy().T
            gain, spread = map_ @ gain, map_ @ spread @ map_.T + (beta(t, r) if r.sigma else 0) * np.eye(2)
            gain, spread = np.array([gain[0], r.alpha]), np.diag([spread[0, 0], r.sigma**2])
    return gain[0], spread[0, 0]


def test_the_limit_of_small_steps_is_the_closed_form():
    gain, variance = (1 - math.sqrt(1 - RHO**2)) / RHO, (1 - RHO**2) * math.atanh(RHO) / RHO
    off = []
    for n in (100, 200):
        found = followed(cosine_schedule(most=30.0).levels(n))
        off.append((abs(found[0] - gain), abs(found[1] - variance)))
    for few, many in zip(*off, strict=True):
        assert many < 0.01 and math.log2(few / many) == pytest.approx(1, abs=0.1)
    assert abs(gain - RHO) > 0.2 and variance > 1.5 * (1 - RHO**2), "which is not the conditional"


@pytest.mark.parametrize(("resamplings", "jump"), [(1, 1), (3, 1), (2, 4)])
def test_samples_have_the_followed_mean_and_variance(resamplings, jump):
    n, levels = 20_000, LEVELS[:12]
    gain, variance = followed(levels, resamplings, jump)
    chain = replacing(ancestral("beta"), IMAGE, MASK, resamplings, jump)
    x = sample(chain, PAIR, levels, start(n), seeded(1))[:, 0]
    assert abs(x.mean().item() - gain) < 4.5 * (variance / n) ** 0.5
    assert abs(x.var().item() / variance - 1) < 4.5 * (2 / n) ** 0.5


def test_more_resamplings_come_closer_to_the_conditional():
    levels = cosine_schedule().levels(50)
    missed = [RHO - followed(levels, n)[0] for n in (1, 2, 5, 20)]
    assert missed == sorted(missed, reverse=True) and 0 < missed[-1] < 0.1 * missed[0]


# --- the walk -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 7, 25])
@pytest.mark.parametrize("resamplings", [1, 2, 5])
@pytest.mark.parametrize("jump", [1, 3, 10])
def test_the_walk(n, resamplings, jump):
    path = walk(n, resamplings, jump)
    assert path[0] == 0 and path[-1] == n and path.count(n) == 1
    steps = [b - a for a, b in pairwise(path)]
    assert set(steps) <= {1, -jump}
    stretches = (n - 1) // jump
    assert steps.count(-jump) == stretches * (resamplings - 1)
    taken = [path[i] for i, step in enumerate(steps) if step == 1]
    for i in range(n - 1):
        once = i < n - 1 - stretches * jump
        assert taken.count(i) == (1 if once else resamplings)


def test_the_walk_by_hand_and_its_refusals():
    assert walk(6, 2, 2) == [0, 1, 2, 3, 1, 2, 3, 4, 5, 3, 4, 5, 6]
    for arguments in ((0,), (5, 0), (5, 1, 0), (5, 1.5), (True, "2")):
        with pytest.raises(ValueError, match=r"^walk: (n|resamplings|jump) must be a whole number >= 1, got"):
            walk(*arguments)


# --- imposed on x_0 -------------------------------------------------------------------------------------------------


def test_imposing_changes_x0_where_known_and_nothing_elsewhere():
    x, level = start(5), LEVELS[7]
    plain, imposed = PAIR(x, level), replace_known(PAIR, IMAGE, MASK)(x, level)
    assert torch.equal(imposed.x0[:, 0], plain.x0[:, 0]) and torch.equal(imposed.x0[:, 1], torch.ones(5).double())
    torch.testing.assert_close(diffuse(imposed.x0, level, imposed.eps), x)


def test_imposing_noises_the_known_pixels_along_one_path():
    """Ancestral steps with beta-tilde draw k_r from q(k_r | k_t, k_0): variances sigma^2, covariance of q."""
    n, levels = 20_000, LEVELS[:6]
    x = start(n) * levels[0].sigma + levels[0].alpha * IMAGE
    states = list(ancestral("beta_tilde")(replace_known(PAIR, IMAGE, MASK), levels, x, seeded(1)))
    (t, before), (r, after) = ((s.level, s.x[:, 1] - s.level.alpha) for s in states[-2:])
    assert abs(after.var().item() / r.sigma**2 - 1) < 4.5 * (2 / n) ** 0.5
    assert abs((before * after).mean().item() - t.alpha / r.alpha * r.sigma**2) < 4.5 * 2**0.5 / n**0.5


@pytest.mark.parametrize("sampler", [ancestral(), ddim(), heun()])
def test_imposed_pixels_come_out_as_they_are(sampler):
    x = sample(sampler, replace_known(PAIR, IMAGE, MASK), LEVELS, start(5), seeded())
    torch.testing.assert_close(x[:, 1], torch.ones(5).double(), rtol=0, atol=1e-12)


# --- the exact conditional ------------------------------------------------------------------------------------------


def test_the_gaussian_world_given_some_entries_is_the_conditional():
    generator = seeded(3)
    root = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    covariance, mean = root @ root.T, torch.randn(5, generator=generator, dtype=torch.float64)
    image, mask = torch.randn(5, generator=generator).double(), torch.tensor([1, 0, 1, 0, 0])
    found = GaussianDenoiser(mean, covariance).given(image, mask)
    precision = torch.linalg.inv(covariance)  # by the other route: rows of the precision matrix
    free, held = mask == 0, mask == 1
    inner = torch.linalg.inv(precision[free][:, free])
    torch.testing.assert_close(found.covariance, inner)
    torch.testing.assert_close(found.mean, mean[free] - inner @ precision[free][:, held] @ (image[held] - mean[held]))


def test_the_mixture_given_some_entries_has_the_ratio_of_densities():
    world = GaussianMixtureDenoiser(
        randn((6, 4), seeded(1)), torch.rand(6, generator=seeded(2)) + 0.2, torch.rand(6, generator=seeded(4)) + 0.1
    )
    image, mask = randn((4,), seeded(5), torch.float64), torch.tensor([0, 1, 0, 1])
    points = randn((7, 2), seeded(6), torch.float64)
    full = image.repeat(7, 1)
    full[:, mask == 0] = points
    joint, conditional = world.log_prob(full, DATA), world.given(image, mask).log_prob(points, DATA)
    ratio = joint - conditional  # log density of the known entries: one number
    assert (ratio - ratio[0]).abs().max() < 1e-9
    known = GaussianMixtureDenoiser(world.means[:, mask == 1], world.variance, world.weights)
    assert (ratio[0] - known.log_prob(image[None, mask == 1], DATA)[0]).abs() < 1e-9


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (torch.zeros(3), torch.zeros(2), "shape"),
        (torch.zeros(2), torch.ones(2), "nothing left"),
        (torch.zeros(2), torch.tensor([0.5, 0]), "mask"),
    ],
)
def test_what_cannot_be_given(image, mask, message):
    for world in (PAIR, EmpiricalDenoiser(torch.eye(2), bandwidth=0.1)):
        with pytest.raises(ValueError, match=message):
            world.given(image, mask)


def test_points_without_bandwidth_cannot_be_compared_with_what_is_known():
    with pytest.raises(ValueError, match="bandwidth"):
        EmpiricalDenoiser(torch.eye(2)).given(torch.zeros(2), torch.tensor([0, 1]))


# --- weights --------------------------------------------------------------------------------------------------------


def last(particles, populations=200, seed=0, **options):
    x = start(populations * particles, seed)
    *_, cloud = filtered_replacement(
        PAIR, IMAGE, MASK, cosine_schedule().levels(40), x, seeded(seed + 1), particles=particles, **options
    )
    return cloud


def test_weighted_particles_tend_to_the_conditional_and_one_particle_is_the_replacement_method():
    one, many = last(1, 4000), last(100, 100)
    weight, values = many.log_weight.exp(), many.x[:, 0].reshape(100, 100)
    mean = (weight * values).sum(1).mean().item()
    variance = (weight * values.square()).sum(1).mean().item() - mean**2
    assert mean == pytest.approx(RHO, abs=0.04) and variance == pytest.approx(1 - RHO**2, abs=0.04)
    assert one.x[:, 0].mean().item() < 0.68 and one.x[:, 0].var().item() > 0.28
    assert torch.equal(many.x[:, 1], torch.ones(10_000).double())


def test_populations_have_their_own_pictures():
    image = torch.tensor([[0.0, -1.5], [0.0, 1.5]]).double().repeat(50, 1)
    x = start(100 * 30)
    *_, cloud = filtered_replacement(PAIR, image, MASK, LEVELS, x, seeded(), particles=30)
    picked = cloud.pick(seeded(2))
    assert torch.equal(picked[:, 1], image[:, 1])
    assert picked[::2, 0].mean() < -0.9 and picked[1::2, 0].mean() > 0.9


def test_filtered_replacement_refuses_what_corrected_refuses():
    x = start(12)
    for options in ({"particles": 5}, {"variance": "learned"}, {"threshold": 2.0}):
        with pytest.raises(ValueError):
            next(filtered_replacement(PAIR, IMAGE, MASK, LEVELS, x, seeded(), **options))
    with pytest.raises(ValueError, match="mask"):
        next(filtered_replacement(PAIR, IMAGE, torch.tensor([[0.3, 1]]), LEVELS, x, seeded()))
