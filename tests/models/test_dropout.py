"""Dropout that is each sample's own: its law, and what it does not depend on."""

from __future__ import annotations

import torch
from scipy import stats

from minidiff.models.layers import Dropout
from minidiff.random import per_sample, sample_generators, uniform_hash


def dropout(p: float = 0.3, salt: int = 0) -> Dropout:
    layer = Dropout(p)
    layer.salt = salt
    return layer.train()


def test_numbers_are_uniform_and_independent_of_each_other():
    x = torch.zeros(64, 16, 8, 8)
    with per_sample(sample_generators(0, range(64))):
        u, other = (uniform_hash(x, salt).flatten(1).double() for salt in (0, 1))
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3
    neighbours = [(u[:, 1:], u[:, :-1]), (u[1:], u[:-1]), (u, other)]
    for a, b in neighbours:
        assert stats.pearsonr(a.flatten().numpy(), b.flatten().numpy()).pvalue > 1e-3


def test_a_share_is_zeroed_and_the_rest_keeps_the_mean():
    x = torch.ones(32, 4, 16, 16)
    with per_sample(sample_generators(1, range(32))):
        y = dropout()(x)
    rate = float((y == 0).double().mean())
    assert abs(rate - 0.3) < 4 * (0.3 * 0.7 / x.numel()) ** 0.5
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / 0.7))


def test_a_sample_has_its_mask_whatever_batch_it_is_in():
    x, layer, generators = torch.randn(6, 3, 4, 4), dropout(), sample_generators(2, range(6))
    with per_sample(generators):
        whole = layer(x)
        assert torch.equal(whole, layer(x)), "recomputed activations have the same mask"
        assert not torch.equal(whole, dropout(salt=1)(x)), "another layer has another"
    with per_sample(generators[2:5]):
        assert torch.equal(layer(x[2:5]), whole[2:5])


def test_elsewhere_it_is_torchs_and_silent_in_evaluation():
    x, layer = torch.randn(6, 3), dropout()
    torch.manual_seed(3)
    ours = layer(x)
    torch.manual_seed(3)
    assert torch.equal(ours, torch.nn.functional.dropout(x, 0.3, True))
    assert torch.equal(layer.eval()(x), x)
    with per_sample(sample_generators(0, range(2))):
        assert uniform_hash(x, 0) is None, "two seeds are not those of six samples"
