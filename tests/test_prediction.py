"""Predictions: one belief, four spellings, in variance-preserving and variance-exploding processes."""

from __future__ import annotations

import pytest
import torch

from minidiff.exact import GaussianDenoiser
from minidiff.prediction import KINDS, Prediction
from minidiff.process import diffuse
from minidiff.schedule import NoiseLevel, linear_schedule


def truth(level, dtype=torch.float64):
    """A batch x_t with the four quantities written down from their definitions."""
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(4, 2, 3, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    alpha, sigma = level.like(x0)
    values = {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0, "score": -eps / sigma}
    return (alpha * x0 + sigma * eps).to(dtype), {kind: value.to(dtype) for kind, value in values.items()}


@pytest.mark.parametrize("stored", KINDS)
def test_every_spelling_reads_as_every_other(level, stored):
    """Reading x_0 off eps at alpha = 5e-5 (or eps off x_0 at small sigma) loses as many digits, no more."""
    x, values = truth(level)
    prediction = Prediction(x, level, values[stored], stored)
    for kind in KINDS:
        torch.testing.assert_close(getattr(prediction, kind), values[kind], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("stored", KINDS)
def test_the_stored_spelling_is_returned_untouched(level, stored):
    x, values = truth(level)
    assert getattr(Prediction(x, level, values[stored], stored), stored) is values[stored]


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
def test_conversions_round_trip(level, first, second):
    x, values = truth(level)
    there = getattr(Prediction(x, level, values[first], first), second)
    back = getattr(Prediction(x, level, there, second), first)
    torch.testing.assert_close(back, values[first], rtol=1e-9, atol=1e-9)


def test_x_is_rebuilt_from_x0_and_eps(level):
    x, values = truth(level)
    for kind in KINDS:
        prediction = Prediction(x, level, values[kind], kind)
        torch.testing.assert_close(diffuse(prediction.x0, level, prediction.eps), x, rtol=1e-9, atol=1e-9)


def test_score_is_the_gradient_of_the_log_density_given_x0():
    level = linear_schedule().level(300)
    x, values = truth(level)
    x.requires_grad_()
    log_density = torch.distributions.Normal(level.alpha * values["x0"], level.sigma).log_prob(x).sum()
    (gradient,) = torch.autograd.grad(log_density, x)
    torch.testing.assert_close(Prediction(x, level, values["x0"], "x0").score, gradient)


def test_v_is_the_velocity_along_the_angle():
    """With alpha = cos, sigma = sin, v is d x_t / d angle at fixed x_0 and eps."""
    x0, eps, angle = torch.tensor([[0.7, -1.1]]), torch.tensor([[-0.2, 0.9]]), torch.tensor(0.8)
    x, slope = torch.autograd.functional.jvp(lambda a: a.cos() * x0 + a.sin() * eps, angle, torch.ones(()))
    level = NoiseLevel(angle.cos().item(), angle.sin().item(), 0)
    torch.testing.assert_close(Prediction(x, level, x0, "x0").v, slope)


def test_a_change_of_x0_or_eps_carries_the_rest_along(level):
    x, values = truth(level)
    extras = {"fraction": torch.rand_like(x), "tilt": torch.rand_like(x)}
    wrong = Prediction(x, level, torch.zeros_like(x), "v", **extras)
    for changed in (wrong.with_x0(values["x0"]), wrong.with_eps(values["eps"])):
        for kind in KINDS:
            torch.testing.assert_close(getattr(changed, kind), values[kind], rtol=1e-9, atol=1e-9)
        assert changed.fraction is extras["fraction"] and changed.tilt is extras["tilt"]


@pytest.mark.parametrize("stored", KINDS)
def test_single_precision_stays_single(level, stored):
    x, values = truth(level, torch.float32)
    prediction = Prediction(x, level, values[stored], stored)
    assert all(getattr(prediction, kind).dtype == torch.float32 for kind in KINDS)


def test_chunk_splits_a_doubled_batch():
    level = linear_schedule().level(torch.tensor([10, 20]))
    x = torch.randn(4, 1, 2, 2)
    parts = Prediction(x, level.repeat(2), 2 * x, "eps", fraction=3 * x).chunk(2, level)
    for part, rows in zip(parts, x.chunk(2), strict=True):
        assert part.level is level and part.tilt is None
        torch.testing.assert_close(part.eps, 2 * rows)
        torch.testing.assert_close(part.fraction, 3 * rows)
        torch.testing.assert_close(part.x, rows)


def test_posterior_mean_of_unit_gaussian_data_is_alpha_x():
    """E[x_0 | x_t] = alpha x_t for N(0, I) data in a VP process; hence eps = sigma x_t, v = 0, score = -x_t."""
    level = linear_schedule().level(500)
    x = torch.randn(5, 3, dtype=torch.float64)
    prediction = GaussianDenoiser(torch.zeros(3), 1.0)(x, level)
    expected = {"x0": level.alpha * x, "eps": level.sigma * x, "v": torch.zeros_like(x), "score": -x}
    for kind, value in expected.items():
        torch.testing.assert_close(getattr(prediction, kind), value, atol=1e-12, rtol=0)


def test_unknown_kind():
    with pytest.raises(ValueError, match="one of x0, eps, v, score; got 'epsilon'"):
        Prediction(torch.zeros(1, 2), linear_schedule().level(3), torch.zeros(1, 2), "epsilon")


def test_shapes_that_differ():
    with pytest.raises(
        ValueError, match=r"value must be .* where B = 1, \*S = \(3, 2, 2\), got a tensor \(1, 6, 2, 2\)"
    ):
        Prediction(torch.zeros(1, 3, 2, 2), linear_schedule().level(3), torch.zeros(1, 6, 2, 2), "eps")
