"""Calls that were once silently wrong, or ended in a traceback: each gives the right number or one sentence."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import seeded, tiny

from minidiff import guidance, sampler
from minidiff.condition import Condition
from minidiff.exact import GaussianDenoiser, GaussianMixtureDenoiser
from minidiff.inversion import ddim_inversion, heun_inversion
from minidiff.likelihood import discretized_gaussian_log_likelihood, mean_flat, prior_kl, vlb_terms
from minidiff.process import diffuse, reverse_log_variance
from minidiff.random import randn
from minidiff.recipes import load_recipe
from minidiff.schedule import DATA, DiscreteSchedule, linear_schedule, respaced
from minidiff.store import load, weights_path
from minidiff.systems.draw import draw

WORLD = GaussianMixtureDenoiser(torch.tensor([[-1.0], [1.0]], dtype=torch.float64), 0.1)
LEARNED = ["system.variance=learned", "network.out_channels=6"]
VALUES = {
    "digits": {"label": 3},
    "glide": {"caption": "a red ring"},
    "shapes8-16": {"label": 1, "low_res": (torch.zeros(1, 3, 8, 8), 0.2)},
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize(("dtype", "most"), [(torch.float16, 0.02), (torch.bfloat16, 0.15), (torch.float64, 1e-3)])
def test_a_system_in_another_precision_draws_the_same(name, dtype, most):
    """Of a network in halves the sampler stays in single precision; three steps differ by their rounding alone."""
    options = {"levels": 3, **VALUES[name]}
    expected = draw(load(name), 2, generator=seeded(), **options)
    x_T = randn(expected.shape, seeded())
    wide = x_T.to(torch.promote_types(dtype, torch.float32))
    found = draw(load(name).to(dtype), 2, x_T=wide, **options)
    assert found.dtype == wide.dtype and (found - expected).abs().mean() < most


def test_a_classifier_in_halves_guides():
    judge, x = load("digits-classifier"), randn((2, 1, 8, 8), seeded())
    level = linear_schedule().level(200)
    expected = guidance.grad_log_prob(judge.classifier(3), x, level)
    found = guidance.grad_log_prob(load("digits-classifier").half().classifier(3), x, level)
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize(("name", "key"), [("digits", "label"), ("glide", "caption")])
def test_an_empty_condition_is_not_the_null(name, key):
    model = load(name)
    x = torch.zeros(1, *model.shape)
    with pytest.raises(ValueError, match=rf"lacks the {key} that the system reads: take model\.condition\({key}="):
        model(x, model.schedule.level(3), Condition())
    model(x, model.schedule.level(3), model.null(1))


@pytest.mark.parametrize("time", [3, torch.tensor([3])])
@pytest.mark.parametrize(
    "ask",
    [
        lambda x, t: load("digits")(x, t, load("digits").null(1)),
        lambda x, t: load("digits-classifier").log_prob_label(x, t),
        lambda x, t: load("scenes-clip-noisy").embed_images(torch.zeros(1, 3, 16, 16), t),
        lambda x, t: diffuse(x, t, x),
        lambda x, t: WORLD(x[0, 0, :1, :1], t),
        lambda x, t: WORLD.log_prob(x[0, 0, :1, :1], t),
    ],
    ids=["network", "classifier", "clip", "process", "exact", "density"],
)
def test_a_time_is_no_level(ask, time):
    with pytest.raises(ValueError, match=re.escape("a NoiseLevel, which of a time is schedule.level(t)")):
        ask(torch.zeros(1, 1, 8, 8), time)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guide": 3.0}, "a guide such as cfg(3.0) or adm(log_prob, 1.0), a function of (model, condition, null)"),
        ({"guide": "cfg"}, "got 'cfg'"),
        ({"guide": guidance.cfg}, "got the function cfg"),
        ({"sampler": "ddim"}, "a sampler such as ddim() or ancestral('learned')"),
        ({"sampler": sampler.ddim}, "got the function ddim"),
        ({"threshold": 0.5}, "a threshold such as static_threshold, a function of (denoiser) or one of 'own' or None"),
        ({"generator": 3}, "None, a torch.Generator or a list with one per sample, got 3"),
    ],
)
def test_what_is_no_guide_sampler_or_threshold(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        draw(load("digits"), 1, levels=2, **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: guidance.cfg("3"), "must be a finite number, got '3'"),
        (lambda: guidance.cfg(None), "must be a finite number, got None"),
        (
            lambda: guidance.classifier(load("digits-classifier"), 1.0),
            "or critic(captions) of a CLIP, got a NoisyClassifier",
        ),
        (lambda: guidance.adm(7, 1.0), "log_prob must be a function of (x, level) such as classifier(label)"),
        (lambda: guidance.clip(load("digits"), "a ring", 1.0), "a Diffusion has no critic"),
        (lambda: guidance.clip_guidance(load("digits"), "a ring", 1.0), "a Diffusion has no critic"),
        (lambda: guidance.auto(2.0, 2.0), "weak must be a denoiser of (x, level)"),
        (lambda: guidance.interval(2.0, 0, 1), "a guide such as cfg(3.0)"),
    ],
)
def test_what_does_not_guide(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_a_shifted_mean_needs_a_variance_and_says_which_sampler_has_one():
    guide = guidance.adm(load("digits-classifier").classifier(3), 1.0)
    with pytest.raises(ValueError, match=re.escape("sample with ancestral('learned')")):
        draw(load("digits"), 1, levels=2, guide=guide, threshold=None)


@pytest.mark.parametrize("sampler", ["alpha_between", "log_normal"])
def test_a_learned_variance_needs_the_levels_of_the_schedule(sampler):
    fixed = ["system.variance=fixed", "network.out_channels=1", f"system.level_sampler={sampler}"]
    assert not load_recipe("digits", fixed).build().level_sampler.on_schedule
    with pytest.raises(ValueError, match="a learned variance lies between two levels of the schedule"):
        load_recipe("digits", [*LEARNED[:1], "network.out_channels=2", f"system.level_sampler={sampler}"]).build()


def test_the_bound_takes_the_variance_that_the_denoiser_predicts():
    model = tiny("shapes8", *LEARNED, "network.classes=null", "system.drop=0")
    denoiser = lambda x, level: model(x, level, Condition())
    x0, levels = torch.zeros(2, *model.shape), model.schedule.levels(3)
    terms = lambda *variance: vlb_terms(denoiser, x0, levels, seeded(), *variance).total
    assert torch.equal(terms(), terms("learned")) and not torch.allclose(terms(), terms("beta_tilde"))
    plain = lambda *variance: vlb_terms(WORLD, x0.double()[:, 0, 0, :1], levels, seeded(), *variance).total
    assert torch.equal(plain(), plain("beta_tilde"))


def test_the_bound_of_the_start_keeps_the_digits_of_float64():
    """KL(N(a x, s^2) || N(0, 1)) in closed form, where s^2 rounds in single precision."""
    level, x0 = linear_schedule().level(500), torch.linspace(-1, 1, 7, dtype=torch.float64)[:, None]
    a, s = level.alpha, level.sigma
    expected = 0.5 * ((a * x0) ** 2 + s**2 - 1 - math.log(s**2)) / math.log(2)
    torch.testing.assert_close(prior_kl(x0, level), mean_flat(expected), rtol=1e-12, atol=1e-14)


def test_beta_in_the_last_step_is_the_variance_of_the_step_before():
    """Ho et al.'s released code: the fixed large variance is beta but for the last step, which has beta-tilde of the
    one before."""
    betas = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64)
    levels, bar = DiscreteSchedule(betas).levels(), (1 - betas).cumprod(0)
    floor = (betas[1] * (1 - bar[0]) / (1 - bar[1])).item()
    expected = [betas[2].item(), betas[1].item(), floor]
    found = [math.exp(reverse_log_variance(None, t, s, "beta", floor)) for t, s in pairwise(levels)]
    assert found == pytest.approx(expected, rel=1e-12)
    times = torch.tensor([2, 1, 0])
    schedule = DiscreteSchedule(betas)
    each = reverse_log_variance(None, schedule.level(times), schedule.level(times - 1), "beta", floor)
    assert each.exp().tolist() == pytest.approx(expected, rel=1e-12)


def test_a_number_of_steps_is_the_same_in_letters():
    schedule = linear_schedule()
    for n in (1, 2, 250):
        assert [level.time for level in respaced(schedule, str(n))] == [level.time for level in respaced(schedule, n)]


@pytest.mark.parametrize("steps", ["ddim1", "250,", ",", "ddim"])
def test_what_is_no_number_of_steps(steps):
    """One integer stride over all times would be one step from the cleanest of them; OpenAI's code refuses it too."""
    with pytest.raises(ValueError, match=r"no integer stride|steps must be a number"):
        respaced(linear_schedule(), steps)
    assert respaced(linear_schedule(), "ddim2")[-1] == DATA


def test_the_decoder_of_grey_values_is_a_distribution():
    """Over the bins the masses add up to one, whatever the precision of the mean."""
    x = torch.linspace(-1, 1, 17, dtype=torch.float64)
    mass = discretized_gaussian_log_likelihood(x, torch.full_like(x, 0.3), math.log(0.04), 17).exp().sum()
    assert mass.item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("answer", [torch.zeros(2, 1), None, 3.0])
@pytest.mark.parametrize(
    "run",
    [
        lambda denoiser, levels, x: sampler.sample(sampler.ddim(), denoiser, levels, x),
        lambda denoiser, levels, x: sampler.sample(sampler.ancestral(), denoiser, levels, x),
        lambda denoiser, levels, x: sampler.sample(sampler.heun(), denoiser, levels, x),
        lambda denoiser, levels, x: list(ddim_inversion()(denoiser, levels[::-1], x)),
        lambda denoiser, levels, x: list(heun_inversion()(denoiser, levels[::-1], x)),
    ],
    ids=["ddim", "ancestral", "heun", "inversion", "heun inversion"],
)
def test_a_bare_tensor_is_no_prediction(run, answer):
    levels = linear_schedule(100).levels(4)
    with pytest.raises(ValueError, match=r"answers with a Prediction, got .*Prediction\(x, level, tensor, 'eps'\)"):
        run(lambda x, level: answer, levels, torch.zeros(2, 1))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_labels_and_times_of_every_whole_type(dtype):
    """Compared with -1, every number of an unsigned type is smaller."""
    schedule, x = linear_schedule(100), torch.zeros(2, 1)
    found = WORLD(x, schedule.level(50), torch.tensor([0, 1], dtype=dtype)).x0
    assert torch.equal(found, WORLD(x, schedule.level(50), torch.tensor([0, 1])).x0)
    assert schedule.level(torch.tensor([5, 99], dtype=dtype)).alpha.tolist() == [
        schedule.level(t).alpha for t in (5, 99)
    ]
    assert WORLD.classifier(torch.tensor([0, 1], dtype=dtype))(x, schedule.level(50)).shape == (2,)


def test_what_is_no_whole_number_is_no_label_and_no_time():
    for labels in (torch.tensor([0.5, 1.2]), torch.tensor([True, False])):
        with pytest.raises(ValueError, match="labels must be a tensor of whole numbers"):
            GaussianMixtureDenoiser(torch.zeros(2, 2), 0.1, labels=labels)
    with pytest.raises(ValueError, match="t must be an integer"):
        linear_schedule(100).level(torch.tensor([True]))


def test_a_classifier_names_the_batch_that_its_labels_do_not_fit():
    with pytest.raises(ValueError, match="2 labels for a batch of 3: give one, or one per sample"):
        WORLD.classifier(torch.tensor([0, 1]))(torch.zeros(3, 1), linear_schedule(100).level(50))


def test_whole_numbers_of_numpy_and_paths_are_accepted():
    hundred = linear_schedule(np.int64(100))
    assert hundred.T == 100
    assert hundred.levels(np.int32(5)) == linear_schedule(100).levels(5)
    folder = weights_path("digits").parent
    assert torch.equal(next(load(folder).parameters()), next(load(str(folder)).parameters()))


@pytest.mark.parametrize("told", [(1, -1), (torch.tensor([1, 1, 1]), -1), (1, torch.tensor([-1, -1, -1]))])
def test_a_closed_form_denoiser_is_guided_by_a_label_and_minus_one(told):
    x, level = torch.tensor([[-1.0], [0.2], [1.0]]), linear_schedule(100).level(50)
    expected = WORLD(x, level).eps + 2 * (WORLD(x, level, 1).eps - WORLD(x, level).eps)
    found = guidance.classifier_free(WORLD, *told, scale=2)(x, level).eps
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GaussianMixtureDenoiser(torch.zeros(2, 2), 0.1, labels=[0, 10**12]), "more than 1000000"),
        (lambda: GaussianMixtureDenoiser(torch.zeros(2, 0), 0.1), "at least one number"),
        (
            lambda: GaussianMixtureDenoiser(torch.zeros(2, 2), 0.1, torch.full((2,), 1e308, dtype=torch.float64)),
            "sum of",
        ),
        (lambda: GaussianDenoiser(torch.zeros(0), 1.0), "at least one number"),
        (lambda: randn((2, 2), None, torch.int64), "dtype must be a type of real numbers"),
        (lambda: randn((2, 2), None, "float32"), "dtype must be a type of real numbers"),
        (lambda: load("a" * 5000), "a name of 5000 characters"),
    ],
)
def test_what_would_hang_or_overflow_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
