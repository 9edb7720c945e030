"""The classifier as a system: a distribution, the form that guidance takes, its loss and features written out."""

from __future__ import annotations

import pytest
import torch
from helpers import seeded, tiny

from minidiff.data.sets import load_set
from minidiff.recipes import load_recipe
from minidiff.schedule import DATA


@pytest.fixture(params=["digits-classifier", "digits-classifier-clean"])
def classifier(request):
    return tiny(request.param, std=0.3)


@pytest.fixture
def batch():
    return {"image": torch.rand(4, 1, 8, 8, generator=seeded()) * 2 - 1, "label": torch.tensor([0, 3, 9, 3])}


def test_it_is_a_distribution_and_the_clean_one_ignores_the_level(classifier):
    x, far = torch.randn(4, 1, 8, 8, generator=seeded()), classifier.schedule.level(900)
    log_prob = classifier.log_prob_label(x, far)
    torch.testing.assert_close(log_prob.exp().sum(1), torch.ones(4))
    assert torch.equal(classifier.classifier(2)(x, far), log_prob[:, 2])
    each = classifier.classifier(torch.tensor([0, 3, 9, 3]))(x, far)
    torch.testing.assert_close(each, log_prob[range(4), [0, 3, 9, 3]])
    assert (not torch.equal(log_prob, classifier.log_prob_label(x, DATA))) == classifier.noise_aware
    for label in (10, -1, torch.tensor([0, 10])):
        with pytest.raises(ValueError, match="from 0 to 9"):
            classifier.classifier(label)


def test_the_loss_is_the_cross_entropy_at_the_level(classifier, batch):
    level = classifier.schedule.level(torch.tensor([0, 300, 600, 999]))
    found = classifier.loss(batch, seeded(3), level)
    x, told = batch["image"], DATA
    if classifier.noise_aware:
        alpha, sigma = level.like(x)
        x, told = alpha * x + sigma * torch.randn(x.shape, generator=seeded(3)), level
    logits = classifier.network(x, torch.as_tensor(told.time).expand(4)).double()
    expected = logits.logsumexp(1) - logits[range(4), batch["label"]]
    torch.testing.assert_close(found["loss"].double(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(found["accuracy"], (logits.argmax(1) == batch["label"]).float())


def test_levels_are_drawn_when_left_out(batch):
    classifier = tiny("digits-classifier", std=0.3)
    generator = seeded(4)
    level = classifier.schedule.level(torch.randint(1000, (4,), generator=generator))
    expected = classifier.loss(batch, generator, level)["loss"]
    assert torch.equal(classifier.loss(batch, seeded(4))["loss"], expected)


def test_what_a_clean_classifier_publishes_beside_its_weights(classifier):
    heldout = load_set(load_recipe("digits-classifier").data, "heldout", 20)
    beside = classifier.published_beside(heldout)
    if classifier.noise_aware:
        assert beside == {}
    else:
        assert torch.equal(beside["features"], classifier.features(heldout["image"]))
        assert torch.equal(beside["labels"], heldout["label"])


def test_data_without_labels_are_refused(classifier, batch):
    with pytest.raises(ValueError, match="a column 'label' of data; there are: image"):
        classifier.loss({"image": batch["image"]})
