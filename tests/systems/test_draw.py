"""The one way to sample any system: where it starts, which guide, what it keeps, gradients, cascades, many images."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch
from helpers import awake, seeded, tiny

from minidiff.denoiser import conditioned
from minidiff.guidance import (
    adm,
    auto,
    autoguidance,
    cfg,
    classifier,
    classifier_free,
    classifier_guidance,
    guidance_interval,
    interval,
    mean_shift_guidance,
    static_threshold,
)
from minidiff.guidance import clip as by_clip
from minidiff.models.unet import UNet, UNetConfig
from minidiff.process import start_std
from minidiff.random import randn, sample_generators
from minidiff.sampler import ancestral, ddim, heun, sample
from minidiff.schedule import DATA, cosine_schedule, edm_schedule, linear_schedule, respaced, vp_schedule
from minidiff.systems.diffusion import Diffusion
from minidiff.systems.draw import cascade, draw, drawn
from minidiff.systems.parts import Label, LowRes

LABELLED = ["network.classes=6", "system.drop=0.1"]
LABELS = torch.tensor([0, 3, 4])
NETWORK = UNetConfig(
    size=4, channels=8, channel_mult=(1, 1), blocks=1, attention=(2,), in_channels=2, out_channels=2, groups=4
)


def system_of(schedule, config=NETWORK, parts=(), dtype=torch.float32, std=0.2, **options) -> Diffusion:
    """A tiny system in which no branch is silent."""
    return Diffusion(awake(UNet(config), std, 0, dtype), schedule, parts, **options).eval()


@pytest.fixture(scope="module")
def model():
    return tiny("shapes8", *LABELLED)


@pytest.fixture(scope="module")
def captioned():
    return tiny("glide", "network.text.width=8", "network.text.heads=2")


@pytest.fixture(scope="module")
def judge():
    return tiny("shapes16-classifier", "network.in_channels=3", "network.out_channels=5", std=0.4, seed=1)


def started(model, n=3, seed=5):
    return randn((n, *model.shape), seeded(seed), model.dtype)


# --- where a chain starts -------------------------------------------------------------------------------------------

FIRST = {  # the deviation of the noise that a chain of ten steps starts from
    "edm": (edm_schedule(), 10, 80.0),
    "edm-small": (edm_schedule(sigma_max=3.0), 10, 3.0),
    "vp": (vp_schedule(), 10, 1.0),
    "cosine": (cosine_schedule(), 10, 1.0),
    "linear": (linear_schedule(), 10, 1.0),
    "linear-integer-stride": (linear_schedule(), "ddim10", 1.0),  # begins below the last level, at unit variance
}


class Start:
    """A sampler that only looks."""

    def __call__(self, denoiser, levels, x, generator=None):
        from minidiff.sampler import State

        yield State(x, None, levels[0])


@pytest.mark.parametrize("name", FIRST)
def test_a_chain_starts_from_the_noise_of_its_process(name):
    """Measured: sigma_max where the variance explodes, one where it is preserved."""
    schedule, levels, deviation = FIRST[name]
    system, n = system_of(schedule), 500
    x = draw(system, n, levels=levels, sampler=Start(), generator=seeded())
    count = x.numel()
    assert abs(x.std() / deviation - 1) < 4.5 / math.sqrt(2 * count) and abs(x.mean()) < 4.5 * deviation / count**0.5
    assert start_std(respaced(schedule, levels)[0]) == pytest.approx(deviation)
    torch.testing.assert_close(x, deviation * randn(x.shape, seeded()))


def test_temperature_scales_that_noise_and_no_other():
    for schedule, deviation in ((edm_schedule(), 80.0), (linear_schedule(), 1.0)):
        system = system_of(schedule)
        x = draw(system, 2, levels=10, sampler=Start(), temperature=0.9, generator=seeded())
        torch.testing.assert_close(x, 0.9 * deviation * randn(x.shape, seeded()))
        given = torch.ones(2, 2, 4, 4)
        assert torch.equal(draw(system, 2, levels=10, sampler=Start(), temperature=0.9, x_T=given), given)


def test_a_chain_that_starts_from_what_is_given(model):
    x_T, told = started(model), model.condition(label=LABELS)
    denoiser = static_threshold(conditioned(model, told))
    expected = sample(ddim(), denoiser, model.schedule.levels(4), x_T)
    assert torch.equal(draw(model, 3, x_T=x_T, levels=4, label=LABELS), expected)
    assert torch.equal(draw(model, 3, levels=4, generator=seeded(5), label=LABELS), expected)
    with pytest.raises(ValueError, match=re.escape("x_T must be (3, 3, 8, 8), got (2, 3, 8, 8)")):
        draw(model, 3, x_T=x_T[:2], levels=4, label=LABELS)
    with pytest.raises(ValueError, match=r"x_T holds .* not finite"):
        draw(model, 3, x_T=x_T * math.nan, levels=4, label=LABELS)


def test_a_chain_of_one_s_own(model):
    """From the middle down, as an image is edited."""
    chain = [model.schedule.level(t) for t in (400, 200, 50)] + [DATA]
    x = started(model)
    expected = sample(heun(), static_threshold(conditioned(model, model.null(3))), chain, x)
    assert torch.equal(draw(model, 3, x_T=x, levels=chain, sampler=heun()), expected)


def test_spellings_of_a_number_of_steps(model):
    draws = lambda levels: draw(model, 2, levels=levels, generator=seeded(), label=1)
    assert torch.equal(draws(4), draws("4")) and not torch.equal(draws("ddim4"), draws(4))
    assert torch.equal(draws("2,2"), draws(respaced(model.schedule, "2,2")))
    with pytest.raises(ValueError, match="steps must be a number"):
        draws("fast28")


# --- thresholds and samplers ----------------------------------------------------------------------------------------


def test_thresholds(model):
    """The range of the data by default; none for latents; or one's own. It comes after the guide."""
    x_T, options = 3 * started(model), {"levels": 3, "label": LABELS, "guide": cfg(9.0)}
    clamped, free = draw(model, 3, x_T=x_T, **options), draw(model, 3, x_T=x_T, threshold=None, **options)
    assert clamped.abs().max() <= 1 < free.abs().max()
    half = draw(model, 3, x_T=x_T, threshold=lambda d: static_threshold(d, -0.5, 0.5), **options)
    assert half.abs().max() <= 0.5
    guided = classifier_free(model, model.condition(label=LABELS), model.null(3), 9.0)
    assert torch.equal(free, sample(ddim(), guided, model.schedule.levels(3), x_T))


@pytest.mark.parametrize("sampler", [ancestral(), ddim(0.5), heun()])
def test_any_sampler(model, sampler):
    generator = seeded(7)
    x_T = randn((3, *model.shape), generator)
    expected = sample(
        sampler, static_threshold(conditioned(model, model.null(3))), model.schedule.levels(3), x_T, generator
    )
    assert torch.equal(draw(model, 3, levels=3, sampler=sampler, generator=seeded(7)), expected)


# --- guides ---------------------------------------------------------------------------------------------------------


def guides(model, judge, told, null):
    """From the name of a guide to the guide, and the denoiser that it stands for."""
    log_prob, known, unknown = judge.classifier(LABELS), conditioned(model, told), conditioned(model, null)
    weak = conditioned(tiny("shapes8", *LABELLED, seed=9).double(), told)
    return {
        "plain": (cfg(1.0), known),
        "cfg": (cfg(3.0), classifier_free(model, told, null, 3.0)),
        "cfg-0": (cfg(0.0), unknown),
        "classifier": (classifier(log_prob, 2.0), classifier_guidance(unknown, log_prob, 2.0)),
        "adm": (adm(log_prob, 2.0), mean_shift_guidance(static_threshold(known), log_prob, 2.0)),
        "adm-ode": (adm(log_prob, 2.0, ode=True), classifier_guidance(static_threshold(known), log_prob, 2.0)),
        "interval": (
            interval(cfg(3.0), 0.2, 2.0),
            guidance_interval(classifier_free(model, told, null, 3.0), known, 0.2, 2.0),
        ),
        "interval-of-everything": (interval(cfg(3.0), 0.0, math.inf), classifier_free(model, told, null, 3.0)),
        "auto": (auto(weak, 2.0), autoguidance(known, weak, 2.0)),
        "nested": (
            interval(interval(cfg(3.0), 0.0, 2.0), 0.2, math.inf),
            guidance_interval(classifier_free(model, told, null, 3.0), known, 0.2, 2.0),
        ),
    }


NAMES = [
    "plain",
    "cfg",
    "cfg-0",
    "classifier",
    "adm",
    "adm-ode",
    "interval",
    "interval-of-everything",
    "auto",
    "nested",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_guide_is_the_denoiser_that_it_stands_for(model, judge, name):
    model, judge = copy.deepcopy(model).double(), copy.deepcopy(judge).double()
    told, null = model.condition(label=LABELS), model.null(3)
    made = guides(model, judge, told, null)
    assert list(made) == NAMES
    guide, denoiser = made[name]
    adms = name.startswith("adm")
    sampler = ancestral() if name == "adm" else ddim()
    found = draw(
        model, 3, guide=guide, levels=5, sampler=sampler, generator=seeded(5), label=LABELS,
        **({"threshold": None} if adms else {}),
    )  # fmt: skip
    generator = seeded(5)
    x_T = randn((3, *model.shape), generator, torch.float64)
    expected = sample(
        sampler, denoiser if adms else static_threshold(denoiser), model.schedule.levels(5), x_T, generator
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    if name == "plain":
        assert torch.equal(found, expected)
    else:
        plain = draw(model, 3, levels=5, sampler=sampler, generator=seeded(5), label=LABELS)
        assert (plain - found).abs().max() > 1e-3, "the guide matters to this test"


class Brighter:
    """Stands in for a CLIP: its critic wants brighter pictures, the more letters the more."""

    def __init__(self):
        self.asked = []

    def critic(self, captions):
        self.asked.append(captions)
        wanted = torch.tensor([float(len(caption)) for caption in captions])
        return lambda x, level: wanted * x.mean((1, 2, 3))


def test_a_clip_guides_the_model_that_is_told_nothing(captioned):
    captions, critic = ["a red ring", "a disc"], Brighter()
    found = draw(captioned, 2, guide=by_clip(critic, captions, 2.0), levels=4, generator=seeded(5), caption=captions)
    assert critic.asked == [captions], "the text is embedded once"
    denoiser = classifier_guidance(conditioned(captioned, captioned.null(2)), critic.critic(captions), 2.0)
    expected = sample(ddim(), static_threshold(denoiser), captioned.schedule.levels(4), started(captioned, 2))
    torch.testing.assert_close(found, expected)
    plain = draw(captioned, 2, guide=by_clip(critic, captions, 0.0), levels=4, generator=seeded(5), caption=captions)
    assert bool((found.mean((1, 2, 3)) > plain.mean((1, 2, 3))).all()), "guidance goes up the critic, not down"


def test_a_classifier_guides_the_model_as_it_is_where_there_is_no_null(judge):
    known = tiny("shapes8", "network.classes=5", "system.drop=0")
    log_prob = judge.classifier(LABELS)
    found = draw(known, 3, guide=classifier(log_prob, 2.0), levels=3, generator=seeded(5), label=LABELS)
    denoiser = classifier_guidance(conditioned(known, known.condition(label=LABELS)), log_prob, 2.0)
    expected = sample(ddim(), static_threshold(denoiser), known.schedule.levels(3), started(known))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("guide", [cfg(3.0), cfg(0.0), interval(cfg(2.0), 0.1, 1.0)])
def test_without_a_null_there_is_no_classifier_free_guidance(guide):
    known, nothing = tiny("shapes8", "network.classes=5", "system.drop=0"), tiny("adm-lsun-cat")
    with pytest.raises(ValueError, match="knows no null condition to guide at scale"):
        draw(known, 1, guide=guide, levels=2, label=1)
    with pytest.raises(ValueError, match="knows no null condition to guide at scale"):
        draw(nothing, 1, guide=guide, levels=2)
    assert draw(known, 1, guide=cfg(1.0), levels=2, label=1).shape == (1, 3, 8, 8)


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_guides_of_no_finite_scale(scale):
    log_prob = lambda x, level: x.sum((1, 2, 3))
    for make in (
        lambda: cfg(scale),
        lambda: classifier(log_prob, scale),
        lambda: by_clip(Brighter(), [""], scale),
        lambda: adm(log_prob, scale),
        lambda: auto(lambda x, level: None, scale),
    ):
        with pytest.raises(ValueError, match="scale must be a finite number"):
            make()


# --- what it is told ------------------------------------------------------------------------------------------------


def test_what_is_told_enters_the_network_once(captioned, monkeypatch):
    calls, read = [], captioned.network.text.forward
    monkeypatch.setattr(captioned.network.text, "forward", lambda tokens: calls.append(len(tokens)) or read(tokens))
    draw(captioned, 2, guide=cfg(2.0), levels=5, caption="a red ring")
    assert calls == [2, 2], "once the caption and once the empty one, not at every step"


def test_values_one_or_as_many_as_samples(model):
    draws = lambda label: draw(model, 3, levels=2, generator=seeded(), label=label)
    assert torch.equal(draws(2), draws([2, 2, 2])) and torch.equal(draws(None), draws([-1, -1, -1]))
    with pytest.raises(ValueError, match="3 samples take 1 or 3 values of 'label', got 2"):
        draws([1, 2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n must be a whole number >= 1, got 0"),
        ({"lable": 3}, "this system is told no 'lable': did you mean 'label'?"),
        ({"caption": "a ring"}, "this system is told no 'caption': known: label"),
        ({"label": 5}, "from -1 to 4, got 5"),
        ({"levels": 1001}, "from 1 to 1000, got 1001"),
        ({"generator": [torch.Generator()]}, "1 generators for a batch of 2"),
    ],
)
def test_what_cannot_be_drawn(model, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        draw(model, **({"n": 2, "levels": 2} | options))


@pytest.mark.parametrize("sampler", [ancestral(), ddim(1.0), heun()])
def test_a_sample_does_not_depend_on_its_batch(model, sampler):
    draws = lambda which: draw(
        model, len(which), guide=cfg(2.0), levels=3, sampler=sampler, generator=sample_generators(0, which),
        label=LABELS[which],
    )  # fmt: skip
    torch.testing.assert_close(draws([0, 1, 2])[2:], draws([2]), rtol=1e-4, atol=1e-4)


# --- gradients ------------------------------------------------------------------------------------------------------


def test_gradients_are_recorded_only_where_they_are_asked_for(model):
    x_T = started(model)
    assert not draw(model, 3, x_T=x_T, levels=2, label=LABELS).requires_grad
    with torch.no_grad():
        assert not draw(model, 3, x_T=x_T.clone().requires_grad_(), levels=2, label=LABELS).requires_grad
    assert draw(model, 3, x_T=x_T.clone().requires_grad_(), levels=2, label=LABELS).requires_grad
    assert torch.is_grad_enabled()


def small_double(**options) -> Diffusion:
    """An upsampler of 2x2 pictures in float64, whose x_0 stay inside the range of the data."""
    config = UNetConfig(
        size=4, channels=8, channel_mult=(1,), blocks=1, in_channels=4, out_channels=2, groups=4, classes=3
    )
    parts = [Label(2, True, 0.1), LowRes(2, 2)]
    return system_of(cosine_schedule(4.0), config, parts, torch.float64, 0.1, predicts="v", **options)


@pytest.mark.parametrize("sampler", [ddim(), heun(), ancestral()])
def test_gradients_of_a_whole_chain_are_right(sampler):
    """Against differences of x_T and of a value, through guidance and threshold."""
    system = small_double()
    x_T, small = (0.3 * torch.randn(2, 2, s, s, generator=seeded(s), dtype=torch.float64) for s in (4, 2))
    wanted = torch.randn(2, 2, 4, 4, generator=seeded(1), dtype=torch.float64)

    def value(x_T, small):
        x = draw(
            system,
            2,
            guide=cfg(2.0),
            levels=3,
            sampler=sampler,
            x_T=x_T,
            generator=seeded(3),
            label=[0, 1],
            low_res=small,
        )
        return (x * wanted).sum()

    inputs = x_T.clone().requires_grad_(), small.clone().requires_grad_()
    found = torch.autograd.grad(value(*inputs), inputs)
    h = 1e-5
    for which, gradient in enumerate(found):
        for step in range(3):
            direction = torch.randn(inputs[which].shape, generator=seeded(step), dtype=torch.float64)
            ends = [
                value(*(t + s * h * direction if i == which else t for i, t in enumerate((x_T, small))))
                for s in (1, -1)
            ]
            difference = (ends[0] - ends[1]) / (2 * h)
            assert difference.abs() > 1e-3
            torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-5, atol=1e-7)


def test_a_system_in_double_precision_draws_in_it():
    """From noise of its own too: nothing is rounded to single on the way."""
    system = small_double()
    small = torch.zeros(2, 2, 2, 2, dtype=torch.float64)
    x = draw(system, 2, guide=cfg(2.0), levels=3, generator=seeded(), label=[0, 1], low_res=small)
    assert x.dtype == torch.float64
    x_T = torch.randn(2, 2, 4, 4, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(x, draw(system, 2, guide=cfg(2.0), levels=3, x_T=x_T, label=[0, 1], low_res=small))
    single = tiny("shapes8", *LABELLED)
    double = tiny("shapes8", *LABELLED).double()
    one, other = (draw(s, 3, levels=3, x_T=started(single).to(s.dtype), label=LABELS) for s in (single, double))
    torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-3)


# --- cascades and many images ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stages():
    base = tiny("shapes8", "network.size=4", "network.attention=[2]", *LABELLED, seed=1)
    return base, tiny("shapes8-16", *LABELLED, seed=2)


def test_a_value_that_the_base_is_not_told_reaches_the_stage_that_is(stages):
    """And what no stage is told is refused."""
    blind = tiny("adm-lsun-cat", "network.size=4", "network.attention=[2]", seed=1)
    one, other = (cascade([(blind, {"levels": 2}), (stages[1], {"levels": 2})], 2, seeded(), label=k) for k in (0, 3))
    assert not torch.equal(one, other)
    with pytest.raises(ValueError, match="told no 'lable'"):
        cascade([(stages[0], {"levels": 2}), (stages[1], {"levels": 2})], 2, seeded(), lable=0)


def test_a_stage_may_have_values_of_its_own(stages):
    base, up = stages
    options = [(base, {"levels": 2}), (up, {"levels": 2, "label": 3})]
    generator = seeded()
    small = up.part("low_res").quantize(draw(base, 2, levels=2, generator=generator, label=0))
    expected = draw(up, 2, levels=2, generator=generator, label=3, low_res=small)
    assert torch.equal(cascade(options, 2, seeded(), label=0), expected)


@pytest.mark.parametrize("truncate", [False, True])
def test_many_images_depend_on_seed_values_and_number_alone(stages, truncate):
    """Not on the batch, nor on the processes that share the work."""
    base, up = stages
    told = lambda mine: {"levels": 2}
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 1])

    def whole(batch, world):
        images = torch.full((7, 3, 8, 8), math.nan)
        for rank in range(world):
            for index, made in drawn([(base, told), (up, told)], {"label": labels}, 7, 3, batch, rank, world):
                assert len(index) <= batch and torch.equal(index % world, torch.full_like(index, rank))
                images[index] = made
        return images

    expected = whole(7, 1)
    alone = cascade([(base, {"levels": 2}), (up, {"levels": 2})], 1, sample_generators(3, [4]), label=labels[4:5])
    torch.testing.assert_close(expected[4:5], alone, rtol=1e-4, atol=1e-4)
    for batch, world in ((2, 1), (3, 2), (1, 3)):
        torch.testing.assert_close(whole(batch, world), expected, rtol=1e-4, atol=1e-4)


def test_options_of_a_batch_are_those_of_its_images(model):
    """A classifier is asked for the labels of the batch, say."""
    seen = []
    list(drawn([(model, lambda mine: seen.append(mine.tolist()) or {"levels": 1})], {"label": LABELS}, 3, batch=2))
    assert seen == [[0, 1], [2]]


@pytest.mark.parametrize(
    ("rank", "world", "batch", "message"),
    [
        (1, 1, 4, "0 <= rank < world"),
        (-1, 2, 4, "rank must be a whole number >= 0, got -1"),
        (0, 1, 0, "batch must be a whole number >= 1, got 0"),
    ],
)
def test_shares_that_are_none(model, rank, world, batch, message):
    with pytest.raises(ValueError, match=message):
        next(drawn([(model, lambda mine: {})], {"label": LABELS}, 3, 0, batch, rank, world))


def test_a_process_may_have_nothing_to_draw(model):
    assert list(drawn([(model, lambda mine: {"levels": 1})], {"label": LABELS[:1]}, 1, rank=1, world=2)) == []
