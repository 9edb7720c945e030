"""Reading networks as denoisers, and conditions of a doubled batch."""

from __future__ import annotations

import math

import pytest
import torch

from minidiff.denoiser import Condition, as_denoiser, concatenate, conditioned
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


def test_learned_range_splits_at_the_channels_of_x():
    """-1 ... 1 of the second half is 0 ... 1 of the way from beta-tilde to beta; four channels, not three."""
    x = torch.randn(2, 4, 2, 2)
    prediction = as_denoiser(doubled, variance="learned_range")(x, LEVEL)
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


def test_concatenate_joins_open_doors_and_leaves_closed_ones():
    a = Condition(vector=torch.zeros(2, 3), image=torch.ones(2, 1, 4, 4))
    b = Condition(vector=torch.ones(1, 3), image=torch.zeros(1, 1, 4, 4))
    both = concatenate(a, b)
    assert both.vector.tolist() == [[0] * 3, [0] * 3, [1] * 3] and both.image.shape == (3, 1, 4, 4)
    assert both.tokens is None and both.tokens_mask is None
    assert concatenate(None, None) is None
    assert concatenate(torch.tensor([1]), torch.tensor([2, 3])).tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (None, torch.zeros(1)),
        (torch.zeros(1), None),
        (Condition(vector=torch.zeros(1, 2)), Condition(image=torch.zeros(1, 2))),
        (Condition(), torch.zeros(1)),
    ],
)
def test_conditions_that_do_not_match(first, second):
    """A door that only one half opens would otherwise be dropped, or leak into the other half."""
    with pytest.raises(ValueError, match="same form, got"):
        concatenate(first, second)


@pytest.mark.parametrize(("variance", "accepted", "given"), [("fixed", 3, 6), ("learned_range", 6, 3), ("fixed", 3, 1)])
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
    with pytest.raises(ValueError, match="'fixed' or 'learned_range', got 'learned'"):
        as_denoiser(doubled, variance="learned")
