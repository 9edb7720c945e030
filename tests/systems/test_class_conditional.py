"""The class-conditional system and the noisy classifier: conditions, nulls and losses against formulas written out."""

import math

import pytest
import torch

from minidiff.random import sample_generators
from minidiff.recipes import load_recipe
from minidiff.schedule import DATA
from minidiff.systems.zoo import build

TINY = ["network.channels=8", "network.groups=4", "network.head_channels=8", "network.dropout=0"]


@pytest.fixture
def system():
    torch.manual_seed(0)
    system = build(load_recipe("digits", TINY)).eval()
    for parameter in system.parameters():  # zero-initialised layers would hide what a condition does
        torch.nn.init.normal_(parameter, std=0.1)
    return system


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 17, (6, 1, 8, 8), generator=generator) / 8.0 - 1
    return images, torch.tensor([0, 1, 2, 3, 4, 9])


def test_a_null_label_is_the_extra_row(system, batch):
    x, level = batch[0], system.schedule.level(500)
    null, label = system(x, level), system(x, level, torch.full((6,), 3))
    assert torch.equal(null.value, system(x, level, torch.full((6,), -1)).value)
    assert not torch.allclose(null.value, label.value)
    mixed = system(x, level, torch.tensor([3, -1, 3, -1, 3, -1])).value
    torch.testing.assert_close(mixed[::2], label.value[::2])
    torch.testing.assert_close(mixed[1::2], null.value[1::2])


@pytest.mark.parametrize("labels", [torch.tensor([10] * 6), torch.tensor([-2] * 6), torch.zeros(6, 2).long()])
def test_labels_out_of_range_are_refused(system, batch, labels):
    with pytest.raises(ValueError, match="from -1 to 9"):
        system.condition(labels)


def test_without_a_null_row_the_null_is_refused():
    system = build(load_recipe("digits", [*TINY, "label_dropout=0", "network.classes=10"]))
    with pytest.raises(ValueError, match="from 0 to 9"):
        system.condition(torch.tensor([-1]))


def test_label_dropout_is_drawn_per_sample(system):
    labels = torch.arange(10).repeat(2000)
    dropped = system.dropped(labels, torch.Generator().manual_seed(0)) == -1
    rate, n = dropped.double().mean().item(), len(labels)
    assert abs(rate - 0.15) < 4 * math.sqrt(0.15 * 0.85 / n)
    runs = (dropped[1:] != dropped[:-1]).double().mean().item()
    assert abs(runs - 2 * 0.15 * 0.85) < 0.02, "dropped labels do not come in runs"


def test_simple_loss_is_the_squared_error_in_v(system, batch):
    images, labels = batch
    loss = system.loss(images, labels, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    t = torch.randint(1000, (6,), generator=generator)
    eps = torch.randn(images.shape, generator=generator)
    dropped = torch.rand(6, generator=generator) < 0.15
    alpha_bar = system.schedule.alpha_bar[t].float().reshape(-1, 1, 1, 1)
    x_t = alpha_bar.sqrt() * images + (1 - alpha_bar).sqrt() * eps
    v = alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * images
    out = system.network(x_t, t, system.condition(torch.where(dropped, -1, labels)))
    torch.testing.assert_close(loss["simple"], ((out[:, :1] - v) ** 2).mean((1, 2, 3)))
    torch.testing.assert_close(loss["loss"], loss["simple"] + loss["vlb"])


def test_sampling_is_independent_of_the_batch(system):
    many = system.sample(torch.arange(5), scale=2.0, steps=3, generator=sample_generators(0, range(5)))
    one = system.sample(torch.tensor([3]), scale=2.0, steps=3, generator=sample_generators(0, [3]))
    torch.testing.assert_close(many[3:4], one, rtol=1e-4, atol=1e-4)
    assert many.abs().max() <= 1


def test_wrong_images_are_refused(system):
    with pytest.raises(ValueError, match=r"takes \(B, 1, 8, 8\), got \(2, 3, 8, 8\)"):
        system(torch.zeros(2, 3, 8, 8), system.schedule.level(3))
    with pytest.raises(ValueError, match="not finite"):
        system(torch.full((2, 1, 8, 8), math.nan), system.schedule.level(3))


def test_the_classifier_is_a_distribution_and_the_clean_one_ignores_the_level():
    x, far = torch.randn(4, 1, 8, 8), build(load_recipe("digits-classifier", TINY)).schedule.level(900)
    for name, differs in (("digits-classifier", True), ("digits-classifier-clean", False)):
        torch.manual_seed(0)
        classifier = build(load_recipe(name, TINY)).eval()
        for parameter in classifier.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        log_prob = classifier.log_prob_label(x, far)
        torch.testing.assert_close(log_prob.exp().sum(1), torch.ones(4))
        assert torch.equal(classifier.classifier(2)(x, far), log_prob[:, 2])
        assert (not torch.equal(log_prob, classifier.log_prob_label(x, DATA))) == differs
        with pytest.raises(ValueError, match="from 0 to 9"):
            classifier.classifier(10)
