"""LSGM: three terms, gradients that go where they belong, what each stage trains, pictures drawn."""

from __future__ import annotations

import math
import re

import pytest
import torch

from minidiff.cross_entropy import weight
from minidiff.models.score_vae import ScoreVAE, ScoreVAEConfig
from minidiff.process import diffuse
from minidiff.random import randn
from minidiff.recipes import load_recipe
from minidiff.systems.draw import draw
from minidiff.systems.lsgm import LSGM, LSGMOptions

CONFIG = ScoreVAEConfig(size=4, latent=3, width=8, blocks=1)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def built(trains="joint", config=CONFIG, **options) -> LSGM:
    """A small system in float64 none of whose parts is silent."""
    torch.manual_seed(0)
    system = LSGM(ScoreVAE(config), LSGMOptions(trains, **options), 17).double()
    for parameter in system.parameters():
        parameter.data.add_(0.2 * torch.randn(parameter.shape, dtype=torch.float64))
    return system


def pictures(n=5):
    return (torch.randint(17, (n, 1, 4, 4), generator=seeded(1)) / 8 - 1).double()


def test_the_terms_add_up():
    for trains in ("vae", "joint"):
        terms = built(trains).loss({"image": pictures()}, seeded())
        total = terms["reconstruction"] + terms["negative_entropy"] + terms["cross_entropy"]
        torch.testing.assert_close(terms["bound"], total)
        assert all(value.shape == (5,) for value in terms.values())


def test_stage_0_is_the_bound_of_a_variational_autoencoder():
    system, x = built("vae"), pictures()
    _, law = system.encode_images(x)
    terms = system.loss({"image": x}, seeded())
    torch.testing.assert_close(terms["negative_entropy"] + terms["cross_entropy"], law.kl())
    torch.testing.assert_close(terms["loss"], terms["bound"])


@pytest.mark.parametrize("weighting", ["ll", "un", "re"])
def test_one_backward_pass_serves_two_weightings(weighting):
    """Beside two passes, written out: the bound's weight for the encoder, the prior's own for the prior."""
    system, x = built(weighting=weighting, proposal="un_iw"), pictures()
    loss = system.loss({"image": x}, seeded(3))["loss"].mean()
    names = [name for name, _ in system.named_parameters()]
    routed = dict(zip(names, torch.autograd.grad(loss, list(system.parameters())), strict=True))

    def plain(name: str) -> dict[str, torch.Tensor]:
        g = seeded(3)
        clean, law = system.encode_images(x)
        z_0 = clean.sample(g)
        alpha, sigma = system.schedule.level(system.options.time_eps).like(z_0)
        z = alpha * z_0 + sigma * randn(z_0.shape, g, z_0.dtype)
        t, density = system.times.draw(len(x), g)
        level, eps = system.schedule.level(t), randn(z_0.shape, g, z_0.dtype)
        gap = (system(diffuse(z_0, level, eps), level).eps - eps).square().sum(1)
        end = system.schedule.level(1.0)
        last = (end.alpha * z_0).square().sum(1) / 2
        loss = (
            -system.log_prob_given(x, z) - law.entropy() + weight(system.schedule, t, name) / density / 2 * gap + last
        )
        return dict(zip(names, torch.autograd.grad(loss.mean(), list(system.parameters())), strict=True))

    bound, own = plain("ll"), plain(weighting)
    for name in names:
        of_prior = name.startswith(("network.prior", "network.time_embed", "network.mixing"))
        torch.testing.assert_close(routed[name], (own if of_prior else bound)[name], msg=name)


@pytest.mark.parametrize(
    ("trains", "still"), [("vae", ("prior", "time_embed", "mixing")), ("prior", ("encoder", "decoder")), ("joint", ())]
)
def test_each_stage_trains_its_own(trains, still):
    system = built(trains)
    system.loss({"image": pictures()}, seeded())["loss"].mean().backward()
    for name, parameter in system.network.named_parameters():
        assert (parameter.grad is None) == name.startswith(still), name


def test_a_mixed_score_that_keeps_its_share_is_the_normal_prior():
    """Then the bound of score matching is that of stage 0, whatever the network says."""
    joint, vae, x = built("joint"), built("vae"), pictures()
    vae.load_state_dict(joint.state_dict())
    joint.network.mixing.data.fill_(-100.0)
    torch.testing.assert_close(joint.bound(x, 3, seeded()).total, vae.bound(x, 3, seeded()).total)
    alone = built("joint", ScoreVAEConfig(size=4, latent=3, width=8, blocks=1, mixing=None))
    assert alone.network.mixing is None and bool(alone.bound(x, 1, seeded()).total.isfinite().all())
    assert alone.bound(x, 1, seeded()).bits.shape == (5,)


def test_weights_of_many_draws_are_the_tighter():
    system, x = built("joint"), pictures()
    weights = system.log_weights(x, 16, 8, seeded())
    assert weights.shape == (16, 5)
    assert bool((weights.logsumexp(0) - math.log(16) >= weights.mean(0)).all())


def test_it_draws_pictures():
    system = load_recipe("lsgm-shapes-joint", ["start=", "network.width=8", "network.latent=3"]).build()
    levels = system.chain(4)
    assert levels[-1].sigma > 0 and len(levels) == 5
    for chain in (levels, 4):
        drawn = draw(system, 3, levels=chain, generator=seeded())
        assert drawn.shape == (3, 1, 8, 8) and bool((drawn.abs() <= 1).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trains": "all"}, "trains is one of vae, prior, joint, got 'all'"),
        ({"weighting": "iw"}, "weighting is one of ll, un, re, got 'iw'"),
        ({"sde": "ve"}, "sde is one of vp, geometric, got 've'"),
        ({"proposal": "best"}, "proposal is one of uniform, ll_iw, un_iw, re_iw, got 'best'"),
    ],
)
def test_names_that_are_none(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        LSGMOptions(**options)


def test_a_level_is_not_accepted():
    system = built()
    with pytest.raises(ValueError, match="drawn by its proposal"):
        system.loss({"image": pictures()}, seeded(), system.schedule.level(0.5))
