"""Reading networks as denoisers."""

from __future__ import annotations

import math

import pytest
import torch

from minidiff.denoiser import as_denoiser, conditioned
from minidiff.schedule import edm_schedule, linear_schedule

LEVEL = linear_schedule().level(300)


def doubled(x, time, condition):
    """A network with learned variance: the mean half is x, the variance half runs from -1 to 1."""
    return torch.cat([x, torch.linspace(-1, 1, x.numel()).reshape(x.shape)], dim=1)


@pytest.mark.parametrize("predicts", ["eps", "v", "x0"])
def test_output_is_read_as_what_it_predicts(predicts):
    x = torch.randn(2, 3, 4, 4)
    prediction = as_denoiser(lambda x, time, condition: x.sin(), predicts)(x, LEVEL)
    assert torch.equal(getattr(prediction, predicts), x.sin()) and prediction.kind == predicts
    assert prediction.x is x and prediction.level is LEVEL and prediction.fraction is None


def test_a_learned_variance_splits_at_the_channels_of_x():
    """-1 ... 1 of the second half is 0 ... 1 of the way from beta-tilde to beta; four channels, not three."""
    x = torch.randn(2, 4, 2, 2)
    prediction = as_denoiser(doubled, variance="learned")(x, LEVEL)
    assert torch.equal(prediction.eps, x)
    torch.testing.assert_close(prediction.fraction, torch.linspace(0, 1, x.numel()).reshape(x.shape))


def test_network_is_told_one_time_per_sample_and_the_condition():
    told = {}

    def network(x, time, condition):
        told.update(time=time, condition=condition)
        return x

    denoiser = conditioned(as_denoiser(network), "a caption")
    denoiser(torch.zeros(3, 1, 2, 2), LEVEL)
    assert told["time"].tolist() == [300, 300, 300] and told["condition"] == "a caption"
    denoiser(torch.zeros(2, 1, 2, 2), linear_schedule().level(torch.tensor([5, 7])))
    assert told["time"].tolist() == [5, 7]
    denoiser(torch.zeros(2, 1, 2, 2), edm_schedule().level(1.0))
    torch.testing.assert_close(told["time"], torch.full((2,), math.log(80) / 4), rtol=1e-5, atol=0)


def test_half_precision_networks_answer_in_the_precision_of_x():
    x = torch.randn(1, 2, 2, 2)
    prediction = as_denoiser(lambda x, time, condition: x.bfloat16(), "v")(x, LEVEL)
    assert prediction.v.dtype == prediction.x0.dtype == torch.float32


@pytest.mark.parametrize(("variance", "accepted", "given"), [("fixed", 3, 6), ("learned", 6, 3), ("fixed", 3, 1)])
def test_output_with_the_wrong_channels(variance, accepted, given):
    model = as_denoiser(lambda x, time, condition: torch.zeros(2, given, 4, 4), variance=variance)
    with pytest.raises(ValueError, match=f"{variance} variance must return {accepted} channels, not {given}"):
        model(torch.zeros(2, 3, 4, 4), LEVEL)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_x_that_is_not_finite(bad):
    x = torch.zeros(1, 1, 2, 2)
    x[0, 0, 1, 1] = bad
    with pytest.raises(ValueError, match="x holds 1 values that are not finite"):
        as_denoiser(lambda x, time, condition: x)(x, LEVEL)


def test_unknown_options():
    with pytest.raises(ValueError, match="'eps', 'v' or 'x0', got 'noise'"):
        as_denoiser(doubled, predicts="noise")
    with pytest.raises(ValueError, match="'fixed' or 'learned', got 'learned_range'"):
        as_denoiser(doubled, variance="learned_range")
