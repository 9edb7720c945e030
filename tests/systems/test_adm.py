"""ADM's sampling commands written out from its tables, unlabelled models, upsamplers and the cascade."""

import re
from itertools import pairwise

import pytest
import torch
from helpers import tiny

from minidiff.guidance import classifier_free
from minidiff.prediction import Prediction
from minidiff.process import beta_tilde_floor, reverse_log_variance
from minidiff.random import sample_generators
from minidiff.sampler import ancestral, ddim
from minidiff.schedule import linear_schedule
from minidiff.systems.cascade import cascade
from minidiff.systems.diffusion import respaced
from minidiff.systems.upsampler import Small, eight_bit


@pytest.fixture(scope="module")
def model():
    return tiny("adm-imagenet128", "network.classes=5", "network.dropout=0.1")


@pytest.fixture(scope="module")
def classifier():
    return tiny("adm-classifier-128", "network.out_channels=5", std=0.4, seed=1)


# --- respacing ------------------------------------------------------------------------------------------------------


def times_of(steps, T=1000):
    return [level.time for level in respaced(linear_schedule(T), steps)][-2::-1]


@pytest.mark.parametrize("count", [10, 50, 100, 250, 1000])
def test_a_number_is_an_evenly_rounded_fractional_stride(count):
    """First and last time kept, the position advanced by (T - 1) / (n - 1) and rounded."""
    place, expected = 0.0, []
    for _ in range(count):
        expected.append(round(place))
        place += 999 / (count - 1)
    assert times_of(str(count)) == times_of(count) == expected
    assert expected[0] == 0 and expected[-1] == 999


def test_ddim_has_the_integer_stride_from_zero():
    assert times_of("ddim25") == list(range(0, 1000, 40))
    assert times_of("ddim250") == list(range(0, 1000, 4))
    with pytest.raises(ValueError, match="no integer stride"):
        times_of("ddim300")


def test_sections_are_spaced_each_by_itself():
    """The schedule that the paper's sweep found for LSUN, data end first."""
    times = times_of("90,60,60,20,20")
    assert len(times) == 250 and times == sorted(set(times))
    assert [sum(t // 200 == i for t in times) for i in range(5)] == [90, 60, 60, 20, 20]
    assert all({200 * i, 200 * i + 199} <= set(times) for i in range(5))


@pytest.mark.parametrize("steps", ["", "ddim", "fast28", "10;20", "ddim10,10", "-5", "2.5", "1001", "0", 0, 1001, True])
def test_other_spellings_are_refused(steps):
    with pytest.raises(ValueError):
        respaced(linear_schedule(), steps)


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
    vector = model.condition(labels)
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
    labels, guide = torch.tensor([0, 3, 4]), classifier if scale else None
    found = model.sample(
        labels, scale or 1.0, steps, classifier=guide, generator=torch.Generator().manual_seed(3), rule="adm"
    )
    with torch.no_grad(), torch.enable_grad():
        expected = adm(
            model, times_of(steps), labels, guide, scale or 1.0, torch.Generator().manual_seed(3), "d" in steps
        )
    torch.testing.assert_close(found.double(), expected.detach(), rtol=2e-4, atol=2e-4)
    if guide:
        plain = model.sample(labels, 1.0, steps, generator=torch.Generator().manual_seed(3), rule="adm")
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
    """So its samples can leave [-1, 1]; the score rule clamps last."""
    labels = torch.tensor([0, 3, 4])
    options = {"scale": 40.0, "steps": "ddim5", "classifier": classifier}
    draw = lambda rule: model.sample(labels, generator=torch.Generator().manual_seed(3), rule=rule, **options)
    assert draw("score").abs().max() <= 1 < draw("adm").abs().max()


def test_the_score_rule_guides_the_null_where_there_is_one(classifier):
    """And the model that knows the label where there is none."""
    labels, seeded = torch.tensor([0, 3, 4]), lambda: torch.Generator().manual_seed(3)
    both = tiny("adm-imagenet128", "network.classes=6", "label_dropout=0.1")
    asked = []
    for system in (both, tiny("adm-imagenet128", "network.classes=5")):
        told = []
        handle = system.network.register_forward_pre_hook(lambda m, inputs, told=told: told.append(inputs[2].vector))
        system.sample(labels, 2.0, 2, classifier=classifier, generator=seeded())
        handle.remove()
        asked.append((told[0], system))
    (null, first), (known, second) = asked
    torch.testing.assert_close(null, first.network.label_emb.weight[5].expand(3, -1))
    torch.testing.assert_close(known, second.network.label_emb(labels))


def test_classifier_free_sampling_is_unchanged_by_telling_the_network_once(model):
    system = tiny("adm-imagenet128", "network.classes=6", "label_dropout=0.1")
    labels, x, level = torch.tensor([0, 3, 4]), torch.randn(3, *system.shape), system.schedule.level(700)
    direct = classifier_free(system, labels, system.null(3), 3.0)(x, level)
    once = classifier_free(system._denoise, system.condition(labels), system.condition(system.null(3)), 3.0)(x, level)
    assert torch.equal(direct.value, once.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "adn"}, "rule must be one of score, adm, got 'adn'"),
        ({"rule": "adm", "scale": 2.0}, "needs a classifier to guide at scale 2"),
        ({"rule": "adm", "sampler": ddim()}, "brings its own sampler"),
        ({"scale": 2.0}, "knows no null condition to guide at scale 2"),
        ({"steps": "fast28"}, "steps must be a number"),
        ({"labels": torch.tensor([-1])}, r"from 0 to 4"),
        ({"labels": torch.tensor([5])}, r"from 0 to 4"),
    ],
)
def test_what_a_labelled_model_cannot_draw(model, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        model.sample(**({"labels": torch.tensor([1]), "steps": 2} | options))


# --- without labels -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unlabelled():
    return tiny("adm-lsun-cat")


def test_an_unlabelled_model_has_no_embedding_and_trains_on_any_labels(unlabelled):
    assert unlabelled.n_classes == 0 and not hasattr(unlabelled.network, "label_emb")
    images, seeded = torch.rand(4, 3, 8, 8) * 2 - 1, lambda: torch.Generator().manual_seed(1)
    loss = unlabelled.loss(images, torch.tensor([0, 3, 1, -1]), seeded())
    assert torch.equal(loss["loss"], unlabelled.loss(images, unlabelled.null(4), seeded())["loss"])
    with pytest.raises(ValueError, match="from -1 to -1"):
        unlabelled(images, unlabelled.schedule.level(3), torch.tensor([0, 1, 2, 3]))


@pytest.mark.parametrize("rule", ["score", "adm"])
def test_an_unlabelled_model_is_guided_by_a_classifier(unlabelled, classifier, rule):
    """As ADM's unconditional 256x256 model at scale 10."""
    draw = lambda labels, scale: unlabelled.sample(
        labels, scale, "4", classifier=classifier, generator=torch.Generator().manual_seed(0), rule=rule
    )
    a, b = torch.tensor([0, 0]), torch.tensor([4, 4])
    assert torch.equal(draw(a, 0.0), draw(b, 0.0))
    assert (draw(a, 10.0) - draw(b, 10.0)).abs().max() > 1e-3
    plain = unlabelled.sample(unlabelled.null(2), 1.0, "4", generator=torch.Generator().manual_seed(0), rule=rule)
    torch.testing.assert_close(draw(a, 0.0), plain)


# --- upsamplers -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def upsampler():
    return tiny("adm-upsampler-64-256", "network.classes=5", seed=2)


def test_the_small_image_of_training_is_the_area_average(upsampler):
    images = torch.rand(2, 3, 8, 8)
    expected = images.unflatten(3, (2, 4)).unflatten(2, (2, 4)).mean((3, 5))
    torch.testing.assert_close(upsampler.reduced(images), expected)


def test_the_loss_of_an_upsampler_is_that_of_every_system_given_both(upsampler):
    images, labels = torch.rand(4, 3, 8, 8) * 2 - 1, torch.tensor([0, 1, 2, 4])
    loss = upsampler.loss(images, labels, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    t, eps = torch.randint(1000, (4,), generator=generator), torch.randn(images.shape, generator=generator)
    level = upsampler.schedule.level(t)
    alpha, sigma = level.like(images)
    given = Small(labels, upsampler.reduced(images))
    prediction = upsampler(alpha * images + sigma * eps, level, given)
    torch.testing.assert_close(loss["simple"], ((prediction.eps - eps) ** 2).mean((1, 2, 3)))
    torch.testing.assert_close(loss["loss"], loss["simple"] + loss["vlb"])
    assert loss["loss"].shape == (4,)


def test_an_upsampler_needs_its_small_image(upsampler):
    assert upsampler.shape == (3, 8, 8) and upsampler.small_shape == (3, 2, 2)
    with pytest.raises(ValueError, match=r"enlarges \(B, 3, 2, 2\), got \(1, 3, 4, 4\)"):
        upsampler.sample(torch.tensor([1]), torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="needs 6 input channels, got 3"):
        tiny("adm-upsampler-64-256", "network.classes=5", "network.in_channels=3")
    with pytest.raises(ValueError, match="size 6 must be divisible by the factor, got 4"):
        tiny("adm-upsampler-64-256", "network.classes=5", "network.size=6")


def test_eight_bits_round_down():
    values = torch.linspace(-1.2, 1.2, 999)
    stored = ((values + 1) * 127.5).clamp(0, 255).to(torch.uint8)
    assert torch.equal(eight_bit(values), stored.float() / 127.5 - 1)
    assert len(eight_bit(values).unique()) == 256 and torch.equal(
        eight_bit(torch.tensor([-1.0, 1.0])), torch.tensor([-1.0, 1])
    )


def test_the_cascade_enlarges_what_the_base_drew_and_does_not_depend_on_the_batch(upsampler):
    base = tiny(
        "adm-imagenet64", "network.size=2", "network.channel_mult=[1]", "network.attention=[2]", "network.classes=5"
    )
    labels, stages = torch.tensor([0, 3, 4]), [(base, {"steps": "3", "rule": "adm"}), (upsampler, {"steps": "ddim2"})]
    images = cascade(stages, labels, sample_generators(0, range(3)))
    assert images.shape == (3, 3, 8, 8)
    alone = cascade(stages, labels[2:], sample_generators(0, [2]))
    torch.testing.assert_close(images[2:], alone, rtol=1e-4, atol=1e-4)
    generators = sample_generators(0, range(3))
    small = base.sample(labels, steps="3", rule="adm", generator=generators)
    stored = ((small + 1) * 127.5).clamp(0, 255).to(torch.uint8).float() / 127.5 - 1
    torch.testing.assert_close(images, upsampler.sample(labels, stored, steps="ddim2", generator=generators))
    with pytest.raises(ValueError, match=r"one stage draws \(3, 8, 8\), the next enlarges \(3, 2, 2\)"):
        cascade([(tiny("adm-imagenet64", "network.classes=5"), {}), (upsampler, {})], labels)


def test_upsamplers_take_other_samplers_and_guidance(upsampler, classifier):
    labels, small = torch.tensor([0, 3]), torch.rand(2, 3, 2, 2)
    draw = lambda **options: upsampler.sample(labels, small, generator=torch.Generator().manual_seed(0), **options)
    assert draw(steps=3, sampler=ancestral("learned")).abs().max() <= 1.5
    assert not torch.equal(draw(steps="3", rule="adm"), draw(steps="3", rule="adm", classifier=classifier, scale=9.0))
