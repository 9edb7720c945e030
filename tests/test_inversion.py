"""Inversion beside closed forms: Gaussian data, orders of convergence, own samples; slerp beside its definition."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from helpers import noise, seeded

from minidiff.exact import GaussianDenoiser
from minidiff.guidance import classifier_free
from minidiff.inversion import (
    ddim_inversion,
    encode,
    heun_inversion,
    round_trip_factor,
    slerp,
    text_diff,
    variation_correlation,
)
from minidiff.prediction import Prediction
from minidiff.sampler import ddim, heun, sample
from minidiff.schedule import DATA, NoiseLevel, clipped_cosine_schedule, edm_schedule, linear_schedule


def angles(n: int, end: float = 0.0, start: float = 1.5) -> list[NoiseLevel]:
    """A chain of n steps, uniform in the angle phi, from noise to data."""
    phis = [start + (end - start) * i / n for i in range(n + 1)]
    return [NoiseLevel(math.cos(phi), math.sin(phi), phi) if phi else DATA for phi in phis]


def slope(errors: dict[int, float]) -> float:
    """Order of convergence between the last two numbers of steps."""
    (n, first), (m, second) = list(errors.items())[-2:]
    return math.log(first / second) / math.log(m / n)


# --- Gaussian data --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", [0.04, 1.0, 3.0])
@pytest.mark.parametrize("schedule", [linear_schedule(), clipped_cosine_schedule(), edm_schedule()])
@pytest.mark.parametrize("steps", [1, 3, 20])
def test_the_round_trip_of_gaussian_data_has_its_closed_form(variance, schedule, steps):
    """Vectors (alpha sqrt(v), sigma), and no angle computed: cos^2 = (a . b)^2 / (|a|^2 |b|^2)."""
    levels, x = schedule.levels(steps), noise(16, 3)
    world = GaussianDenoiser(torch.zeros(3), variance)
    factor = 1.0
    for t, s in pairwise(levels):
        a, b = (torch.tensor([lv.alpha * variance**0.5, lv.sigma], dtype=torch.float64) for lv in (t, s))
        factor *= float((a @ b) ** 2 / (a @ a) / (b @ b))
    back = sample(ddim(), world, levels, encode(world, levels, x))
    torch.testing.assert_close(back, factor * x, rtol=1e-8, atol=1e-12)
    assert round_trip_factor(levels, variance) == pytest.approx(factor, rel=1e-8)
    assert factor < 1


def test_encoded_gaussian_data_are_noise():
    """As steps grow, x_T = x_0 / sqrt(v) times sqrt(alpha^2 v + sigma^2): the map that keeps ranks."""
    variance, levels, x = 0.25, angles(4000), noise(50, 2)
    world = GaussianDenoiser(torch.zeros(2), variance)
    expected = x / variance**0.5 * math.sqrt(levels[0].alpha ** 2 * variance + levels[0].sigma ** 2)
    torch.testing.assert_close(encode(world, levels, x), expected, rtol=2e-3, atol=0)


def test_the_factor_tends_to_one_like_one_over_steps():
    gaps = {n: 1 - round_trip_factor(angles(n), 0.3) for n in (200, 400, 800)}
    assert abs(slope(gaps) - 1) < 0.02
    with pytest.raises(ValueError, match="> 0, got 0"):
        round_trip_factor(angles(3), 0)


# --- variations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", [0.05, 1.0, 4.0])
@pytest.mark.parametrize("schedule", [linear_schedule(), clipped_cosine_schedule(), edm_schedule()])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_the_correlation_of_variations_is_that_of_what_is_drawn(variance, schedule, eta):
    """20,000 numbers encoded and decoded with fresh noise, within five standard errors of a correlation."""
    n, levels = 20_000, schedule.levels(12)
    world, x = GaussianDenoiser(torch.zeros(1), variance), variance**0.5 * noise(n, 1, seed=7)
    drawn = sample(ddim(eta), world, levels, encode(world, levels, x), seeded(8))
    found = torch.corrcoef(torch.cat([x, drawn], 1).T)[0, 1].item()
    expected = variation_correlation(levels, variance, eta)
    assert abs(found - expected) < 5 * (1 - expected**2) / n**0.5 + 1e-12


def test_variations_keep_a_power_of_what_the_noise_has_left():
    for eta in (0.3, 0.7, 1.0):
        levels, variance = angles(4000), 0.5
        left = levels[0].alpha * variance**0.5 / math.hypot(levels[0].alpha * variance**0.5, levels[0].sigma)
        assert variation_correlation(levels, variance, eta) == pytest.approx(left ** (eta**2), rel=2e-3)
    with pytest.raises(ValueError, match="eta must be a number from 0 to 1"):
        variation_correlation(angles(3), 1.0, 1.2)
    with pytest.raises(ValueError, match="> 0, got -1"):
        variation_correlation(angles(3), -1, 0.5)


# --- orders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "way_back", "order"), [(ddim_inversion, ddim, 1), (heun_inversion, heun, 2)])
@pytest.mark.parametrize("end", [0.0, 0.05])
def test_orders_of_the_way_there_and_of_the_round_trip(mixture, method, way_back, order, end):
    """On a mixture, against 4096 steps of Heun; a chain to clean data, and one that stops above.

    Heun's leading error is odd in the step, so it cancels on the way back, but for the step to clean data.
    """
    x = mixture.sample(64, seeded(1))
    x = x if end == 0 else angles(1, end)[-1].alpha * x + angles(1, end)[-1].sigma * noise(64, 2, seed=2)
    exact = encode(mixture, angles(4096, end), x, heun_inversion())
    there, trip = {}, {}
    for n in (64, 128, 256, 512):
        x_T = encode(mixture, angles(n, end), x, method())
        there[n] = (x_T - exact).square().mean().sqrt().item()
        trip[n] = (sample(way_back(), mixture, angles(n, end), x_T) - x).square().mean().sqrt().item()
    assert abs(slope(there) - order) < 0.15, there
    assert abs(slope(trip) - (3 if order == 2 and end else order)) < 0.25, trip


def test_its_own_samples_come_from_the_noise_that_is_found(mixture):
    levels, x_T = angles(2000), noise(100, 2, seed=4)
    x = sample(heun(), mixture, levels, x_T)
    found = encode(mixture, levels, x, heun_inversion())
    torch.testing.assert_close(found, x_T * 1.0, rtol=0, atol=0.05)


def test_guidance_in_one_direction_breaks_the_round_trip(mixture):
    """Guided on both ways it is the round trip of another flow; guided on the way back only it is none."""
    levels, x = angles(400), mixture.sample(200, seeded(5), label=1)
    label, none = torch.ones(200, dtype=torch.long), torch.full((200,), -1)
    plain = lambda x, level: mixture(x, level, label)
    guided = classifier_free(lambda x, level, c: mixture(x, level, c), label, none, 3.0)
    error = lambda there, back: (sample(ddim(), back, levels, encode(there, levels, x)) - x).square().mean().sqrt()
    assert error(plain, plain) < 0.02
    assert error(guided, guided) < 0.1
    assert error(plain, guided) > 5 * error(plain, plain)


# --- what is refused ------------------------------------------------------------------------------------------------


def test_refusals(gaussian):
    x = noise(2, 3)
    with pytest.raises(ValueError, match="has to fall at every step"):
        encode(gaussian, angles(4)[::-1], x)
    with pytest.raises(ValueError, match="x_0 holds 1 values that are not finite"):
        encode(gaussian, angles(4), torch.where(torch.arange(6).reshape(2, 3) == 0, torch.nan, x))
    with pytest.raises(ValueError, match="at least two levels"):
        encode(gaussian, angles(4)[:1], x)
    tilted = lambda x, level: Prediction(x, level, x, "x0", tilt=x)
    for method in (ddim_inversion(), heun_inversion()):
        with pytest.raises(ValueError, match="no reverse variance"):
            encode(tilted, angles(4), x, method)


def test_nothing_is_asked_at_clean_data(gaussian):
    asked = []

    def denoiser(x, level):
        asked.append(level.sigma)
        return gaussian(x, level)

    for method, calls in ((ddim_inversion(), 3), (heun_inversion(), 7)):
        asked.clear()
        encode(denoiser, angles(4), noise(2, 3), method)
        assert min(asked) > 0 and len(asked) == calls


def test_gradients_are_recorded_where_asked_for(gaussian):
    x = noise(2, 3).requires_grad_()
    assert not encode(gaussian, angles(4), x).requires_grad
    world = GaussianDenoiser(torch.zeros(3), 0.5)
    (slope_of,) = torch.autograd.grad(encode(world, angles(4), x, gradients=True).sum(), x)
    step = torch.ones_like(x)
    torch.testing.assert_close(slope_of, encode(world, angles(4), step))  # a linear map


# --- slerp ----------------------------------------------------------------------------------------------------------


def test_slerp_turns_in_the_plane():
    """In two dimensions it is a rotation by a share of the angle."""
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[math.cos(2.0), math.sin(2.0)]])
    for theta in (0.0, 0.3, 1.0, 1.2):
        expected = torch.tensor([[math.cos(2 * theta), math.sin(2 * theta)]])
        torch.testing.assert_close(slerp(a, b, theta), expected)


def test_slerp_keeps_the_norm_that_a_line_loses():
    a, b = noise(50, 3, 8, 8), noise(50, 3, 8, 8, seed=1)
    norm = lambda x: x.flatten(1).norm(dim=1)
    middle = slerp(a, b, 0.5)
    assert middle.shape == a.shape and middle.dtype == a.dtype
    torch.testing.assert_close(norm(middle), (norm(a) + norm(b)) / 2)
    assert bool((norm((a + b) / 2) < 0.8 * norm(middle)).all())
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    one = torch.stack([slerp(a[i : i + 1], b[i : i + 1], 0.3)[0] for i in range(50)])
    torch.testing.assert_close(slerp(a, b, 0.3), one)


def test_speed_is_constant():
    a, b = noise(1, 20), noise(1, 20, seed=1)
    path = torch.nn.functional.normalize(slerp(a, b, torch.linspace(0, 1, 11)), dim=1)
    turned = (path[1:] * path[:-1]).sum(1).clamp(-1, 1).arccos()
    torch.testing.assert_close(turned, turned.mean().expand(10))
    whole = torch.nn.functional.cosine_similarity(a, b).arccos()
    torch.testing.assert_close(turned.sum(), whole[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opposite_and_parallel_vectors(dtype):
    a = noise(6, 5, seed=3).to(dtype)
    path = torch.stack([slerp(a, -a, theta) for theta in (0.0, 0.25, 0.5, 1.0)])
    torch.testing.assert_close(path.norm(dim=2), a.norm(dim=1).expand(4, 6))
    torch.testing.assert_close(path[3], -a, rtol=1e-5, atol=1e-6)
    across = (path[2] * a).sum(1) / a.norm(dim=1) ** 2
    assert across.abs().max() < 1e-5, "halfway it stands at right angles"
    for factor in (1.0, 2.0, 1 + 1e-9):
        torch.testing.assert_close(slerp(a, factor * a, 0.5), (1 + factor) / 2 * a)
    nearly = slerp(a, -a + 1e-7 * noise(6, 5, seed=4).to(dtype), 0.5)
    torch.testing.assert_close(nearly.norm(dim=1), a.norm(dim=1), rtol=1e-5, atol=0)


def test_slerped_noise_is_standard_normal():
    """Means, variances and correlations of 20,000 vectors of 64 numbers, all within five standard errors."""
    n, d = 20_000, 64
    x = slerp(noise(n, d, seed=5), noise(n, d, seed=6), 0.37)
    covariance = x.T @ x / n
    off = covariance - torch.diag(covariance.diag())
    assert x.mean(0).abs().max() < 5 / n**0.5 and off.abs().max() < 5 / n**0.5
    assert (covariance.diag() - 1).abs().max() < 5 * (2 / n) ** 0.5
    line = 0.63 * noise(n, d, seed=5) + 0.37 * noise(n, d, seed=6)
    assert (line.var(0) - 1).abs().min() > 0.4, "the straight line is not"


def test_slerp_refuses():
    a = noise(3, 4)
    with pytest.raises(ValueError, match=r"b must be a tensor .*got a tensor .3, 5."):
        slerp(a, noise(3, 5), 0.5)
    with pytest.raises(ValueError, match="zeros has no direction"):
        slerp(a, torch.zeros(3, 4), 0.5)
    with pytest.raises(ValueError, match="got 3, 3, 2"):
        slerp(a, a, torch.tensor([0.1, 0.2]))


# --- text diffs -----------------------------------------------------------------------------------------------------


def test_a_text_diff_by_hand():
    z, after, before = 2.5 * noise(4, 6), noise(1, 6, seed=1), noise(1, 6, seed=2)
    direction = torch.nn.functional.normalize(after - before, dim=1)
    for theta in (0.0, 0.25, 0.5):
        unit = slerp(torch.nn.functional.normalize(z, dim=1), direction, theta)
        torch.testing.assert_close(text_diff(z, after, before, theta), unit * z.norm(dim=1, keepdim=True))
    far = text_diff(z, before + 100 * (after - before), before, 0.3)
    torch.testing.assert_close(far, text_diff(z, after, before, 0.3)), "how far apart the texts are does not matter"
    several = text_diff(z[:1], after, before, torch.tensor([0.0, 0.2, 0.4]))
    assert several.shape == (3, 6)
    with pytest.raises(ValueError, match="same embedding"):
        text_diff(z, after, after, 0.3)
