"""ADM's sampling commands written out from its tables, unlabelled models, upsamplers and the cascade."""

from itertools import pairwise

import pytest
import torch
from helpers import seeded, tiny

from minidiff.guidance import adm as adm_guide
from minidiff.guidance import cfg
from minidiff.guidance import classifier as by_classifier
from minidiff.pixels import quantize
from minidiff.prediction import Prediction
from minidiff.process import beta_tilde_floor, reverse_log_variance
from minidiff.random import sample_generators
from minidiff.sampler import ancestral, ddim
from minidiff.schedule import linear_schedule, respaced
from minidiff.systems.draw import cascade, draw


@pytest.fixture(scope="module")
def model():
    return tiny("adm-imagenet128", "network.classes=5", "network.dropout=0.1")


@pytest.fixture(scope="module")
def classifier():
    return tiny("adm-classifier-128", "network.out_channels=5", std=0.4, seed=1)


def times_of(steps, T=1000):
    return [level.time for level in respaced(linear_schedule(T), steps)][-2::-1]


# --- the chain ------------------------------------------------------------------------------------------------------


def tables(times):
    """What ADM computes once for a respaced process, from betas alone."""
    full = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    alpha_bar = full[times]
    before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    betas = 1 - alpha_bar / before
    variance = betas * (1 - before) / (1 - alpha_bar)
    clipped = torch.cat([variance[1:2], variance[1:]]).log()
    from_x0 = betas * before.sqrt() / (1 - alpha_bar)
    from_x = (1 - before) * (1 - betas).sqrt() / (1 - alpha_bar)
    return alpha_bar, before, betas, clipped, from_x0, from_x


def gradient(classifier, x, t, labels):
    x = x.detach().requires_grad_()
    logits = classifier.network(x, torch.full((len(x),), t))
    chosen = logits.log_softmax(1)[torch.arange(len(x)), labels]
    return torch.autograd.grad(chosen.sum(), x)[0].double()


def adm(model, times, labels, classifier, scale, generator, deterministic):
    """p_sample_loop and ddim_sample_loop with clip_denoised, as described, in float64 around the network."""
    alpha_bar, before, betas, clipped, from_x0, from_x = tables(times)
    x = torch.randn(len(labels), *model.shape, generator=generator).double()
    vector = model.condition(label=labels)
    for i in reversed(range(len(times))):
        t = times[i]
        out = model.network(x.float(), torch.full((len(x),), t), vector).double()
        eps, v = out[:, :3], out[:, 3:]
        x0 = ((x - (1 - alpha_bar[i]).sqrt() * eps) / alpha_bar[i].sqrt()).clamp(-1, 1)
        push = gradient(classifier, x.float(), t, labels) if classifier else 0.0
        if deterministic:
            eps = (x - alpha_bar[i].sqrt() * x0) / (1 - alpha_bar[i]).sqrt()
            eps = eps - (1 - alpha_bar[i]).sqrt() * scale * push
            x0 = (x - (1 - alpha_bar[i]).sqrt() * eps) / alpha_bar[i].sqrt()
            x = before[i].sqrt() * x0 + (1 - before[i]).sqrt() * eps
        else:
            log_variance = (v + 1) / 2 * betas[i].log() + (1 - (v + 1) / 2) * clipped[i]
            x = from_x0[i] * x0 + from_x[i] * x + log_variance.exp() * scale * push
            if i:
                x = x + (log_variance / 2).exp() * torch.randn(x.shape, generator=generator).double()
    return x


@pytest.mark.parametrize("steps", ["10", "ddim10"])
@pytest.mark.parametrize("scale", [None, 30.0])
def test_adm_samples_as_its_scripts_do(model, classifier, steps, scale):
    labels, guide, ode = torch.tensor([0, 3, 4]), classifier if scale else None, "ddim" in steps
    ruled = adm_guide(classifier.classifier(labels), scale, ode=ode) if guide else cfg(1.0)
    options = {"levels": steps, "sampler": ddim() if ode else ancestral("learned"), "label": labels}
    found = draw(model, 3, guide=ruled, generator=seeded(3), **options, **({"threshold": None} if guide else {}))
    with torch.no_grad(), torch.enable_grad():
        expected = adm(model, times_of(steps), labels, guide, scale or 1.0, seeded(3), ode)
    torch.testing.assert_close(found.double(), expected.detach(), rtol=2e-4, atol=2e-4)
    if guide:
        plain = draw(model, 3, generator=seeded(3), **options)
        assert (plain - found).abs().max() > 0.05, "the classifier matters to this test"


@pytest.mark.parametrize("steps", ["10", "250", "ddim25", "90,60,60,20,20"])
def test_the_learned_variance_of_every_step_is_that_of_the_respaced_betas(steps):
    """Between log beta-tilde, floored at t = 0 by its value one step earlier, and log beta."""
    levels, fraction = respaced(linear_schedule(), steps), torch.tensor([[0.0], [0.3], [1.0]]).double()
    _, _, betas, clipped, _, _ = tables(times_of(steps))
    floor = beta_tilde_floor(levels)
    for i, (s, t) in enumerate(pairwise(levels[::-1])):
        prediction = Prediction(torch.zeros_like(fraction), t, torch.zeros_like(fraction), "eps", fraction)
        expected = fraction * betas[i].log() + (1 - fraction) * clipped[i]
        torch.testing.assert_close(reverse_log_variance(prediction, t, s, "learned", floor), expected)


def test_adm_guides_the_model_that_knows_the_label_and_clamps_before(model, classifier):
    """So its samples can leave [-1, 1]; ours clamps last."""
    labels = torch.tensor([0, 3, 4])
    options, log_prob = {"levels": "ddim5", "label": labels}, classifier.classifier(labels)
    theirs = draw(model, 3, guide=adm_guide(log_prob, 40.0, ode=True), threshold=None, generator=seeded(3), **options)
    ours = draw(model, 3, guide=by_classifier(log_prob, 40.0), generator=seeded(3), **options)
    assert ours.abs().max() <= 1 < theirs.abs().max()


def test_the_score_shift_guides_the_null_where_there_is_one(classifier):
    """And the model that knows the label where there is none."""
    labels = torch.tensor([0, 3, 4])
    both = tiny("adm-imagenet128", "network.classes=6", "system.drop=0.1")
    asked = []
    for system in (both, tiny("adm-imagenet128", "network.classes=5")):
        told = []
        handle = system.network.register_forward_pre_hook(lambda m, inputs, told=told: told.append(inputs[2].vector))
        draw(system, 3, guide=by_classifier(classifier.classifier(labels), 2.0), levels=2, label=labels)
        handle.remove()
        asked.append((told[0], system))
    (null, first), (known, second) = asked
    torch.testing.assert_close(null, first.network.label_emb.weight[5].expand(3, -1))
    torch.testing.assert_close(known, second.network.label_emb(labels))


# --- without labels -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unlabelled():
    return tiny("adm-lsun-cat")


def test_an_unlabelled_model_has_no_embedding(unlabelled):
    assert unlabelled.parts == () and not hasattr(unlabelled.network, "label_emb")
    images, level = torch.rand(4, 3, 8, 8) * 2 - 1, unlabelled.schedule.level(3)
    out = unlabelled.network(images, torch.full((4,), 3), unlabelled.condition())
    assert torch.equal(unlabelled(images, level).eps, out[:, :3])


@pytest.mark.parametrize("rule", ["score", "adm"])
def test_an_unlabelled_model_is_guided_by_a_classifier(unlabelled, classifier, rule):
    """As ADM's unconditional 256x256 model at scale 10."""
    options = {"score": {}, "adm": {"threshold": None, "sampler": ancestral("learned")}}[rule]
    guide = {"score": by_classifier, "adm": adm_guide}[rule]
    ask = lambda labels, scale: draw(
        unlabelled, 2, guide=guide(classifier.classifier(labels), scale), levels="4", generator=seeded(0), **options
    )
    a, b = torch.tensor([0, 0]), torch.tensor([4, 4])
    assert torch.equal(ask(a, 0.0), ask(b, 0.0))
    assert (ask(a, 10.0) - ask(b, 10.0)).abs().max() > 1e-3
    plain = draw(unlabelled, 2, levels="4", sampler=options.get("sampler"), generator=seeded(0))
    torch.testing.assert_close(ask(a, 0.0), plain)


# --- upsamplers -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def upsampler():
    return tiny("adm-upsampler-64-256", "network.classes=5", seed=2)


def test_the_small_image_of_training_is_the_area_average(upsampler):
    images = torch.rand(2, 3, 8, 8)
    expected = images.unflatten(3, (2, 4)).unflatten(2, (2, 4)).mean((3, 5))
    torch.testing.assert_close(upsampler.part("low_res").downsample(images), expected)


def test_the_loss_of_an_upsampler_is_that_of_every_system_given_both(upsampler):
    images, labels = torch.rand(4, 3, 8, 8) * 2 - 1, torch.tensor([0, 1, 2, 4])
    loss = upsampler.loss({"image": images, "label": labels}, seeded(5))
    generator = seeded(5)
    t, eps = torch.randint(1000, (4,), generator=generator), torch.randn(images.shape, generator=generator)
    level = upsampler.schedule.level(t)
    alpha, sigma = level.like(images)
    told = upsampler.condition(label=labels, low_res=upsampler.part("low_res").downsample(images))
    prediction = upsampler(alpha * images + sigma * eps, level, told)
    torch.testing.assert_close(loss["simple"], ((prediction.eps - eps) ** 2).mean((1, 2, 3)))
    torch.testing.assert_close(loss["loss"], loss["simple"] + loss["vlb"])
    assert loss["loss"].shape == (4,)


def test_an_upsampler_needs_its_small_image(upsampler):
    assert upsampler.shape == (3, 8, 8) and upsampler.part("low_res").small_shape(upsampler.shape) == (3, 2, 2)
    with pytest.raises(ValueError, match=r"enlarges \(B, 3, 2, 2\), got \(1, 3, 4, 4\)"):
        draw(upsampler, 1, label=1, low_res=torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="needs 6 input channels, got 3"):
        tiny("adm-upsampler-64-256", "network.classes=5", "network.in_channels=3")
    with pytest.raises(ValueError, match="size 6 must be divisible by the factor, got 4"):
        tiny("adm-upsampler-64-256", "network.classes=5", "network.size=6", "network.attention=[3]")


def test_eight_bits_round_down(upsampler):
    values = torch.linspace(-1.2, 1.2, 999)
    stored = ((values + 1) * 127.5).clamp(0, 255).to(torch.uint8)
    found = upsampler.part("low_res").quantize(values)
    assert torch.equal(found, stored.float() / 127.5 - 1) and torch.equal(found, quantize(values, rounding=torch.floor))
    assert len(found.unique()) == 256 and found[0] == -1 and found[-1] == 1


def test_the_cascade_enlarges_what_the_base_drew_and_does_not_depend_on_the_batch(upsampler):
    base = tiny(
        "adm-imagenet64", "network.size=2", "network.channel_mult=[1]", "network.attention=[2]", "network.classes=5"
    )
    labels, learned = torch.tensor([0, 3, 4]), {"levels": "3", "sampler": ancestral("learned")}
    stages = [(base, learned), (upsampler, {"levels": "ddim2"})]
    images = cascade(stages, 3, sample_generators(0, range(3)), label=labels)
    assert images.shape == (3, 3, 8, 8)
    alone = cascade(stages, 1, sample_generators(0, [2]), label=labels[2:])
    torch.testing.assert_close(images[2:], alone, rtol=1e-4, atol=1e-4)
    generators = sample_generators(0, range(3))
    small = draw(base, 3, generator=generators, label=labels, **learned)
    stored = ((small + 1) * 127.5).clamp(0, 255).to(torch.uint8).float() / 127.5 - 1
    expected = draw(upsampler, 3, levels="ddim2", generator=generators, label=labels, low_res=stored)
    torch.testing.assert_close(images, expected)
    with pytest.raises(ValueError, match=r"one stage draws \(3, 8, 8\), the next takes \(3, 2, 2\)"):
        cascade([(tiny("adm-imagenet64", "network.classes=5"), {}), (upsampler, {})], 3, label=labels)


def test_upsamplers_take_other_samplers_and_guidance(upsampler, classifier):
    labels, small = torch.tensor([0, 3]), torch.rand(2, 3, 2, 2)
    ask = lambda **options: draw(
        upsampler,
        2,
        levels="3",
        sampler=ancestral("learned"),
        generator=seeded(0),
        label=labels,
        low_res=small,
        **options,
    )
    assert ask().abs().max() <= 1.5
    guided = ask(guide=adm_guide(classifier.classifier(labels), 9.0), threshold=None)
    assert not torch.equal(ask(threshold=None), guided)
