"""A denoising system: values in, nulls, one loss for all of them written out, copies, options, the schedule."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch
from helpers import TINY, awake, seeded, tiny

from minidiff.denoiser import as_denoiser
from minidiff.guidance import classifier_free
from minidiff.likelihood import hybrid_vlb
from minidiff.models.unet import UNet, UNetConfig
from minidiff.prediction import Prediction
from minidiff.random import randn, sample_generators
from minidiff.recipes import load_recipe
from minidiff.schedule import DATA, DiscreteSchedule, NoiseLevel, edm_schedule
from minidiff.systems.diffusion import Diffusion
from minidiff.systems.parts import Label
from minidiff.training.levels import LevelSampler, LogNormal, Only, Uniform

LABELLED, TEXT = ["network.classes=6", "system.drop=0.1"], ["network.text.width=8", "network.text.heads=2"]
CAPTIONS = ["a red ring", "a small star", "an orange heart and a disc"]


def same(a, b) -> bool:
    """Whether two conditions are equal."""
    return all(
        one is other is None or torch.equal(one, other)
        for one, other in zip(vars(a).values(), vars(b).values(), strict=True)
    )


@pytest.fixture(scope="module")
def digits():
    return tiny("digits", "network.dropout=0", std=0.1)


@pytest.fixture(scope="module")
def upsampler():
    return tiny("shapes8-16", *LABELLED, seed=2)


@pytest.fixture
def batch():
    images = torch.randint(0, 17, (6, 1, 8, 8), generator=seeded(1)) / 8.0 - 1
    return {"image": images, "label": torch.tensor([0, 1, 2, 3, 4, 9])}


# --- what is told ---------------------------------------------------------------------------------------------------


def test_a_null_label_is_the_same_as_none(digits, batch):
    x, level = batch["image"], digits.schedule.level(500)
    null, label = digits(x, level), digits(x, level, digits.condition(label=3, n=6))
    for condition in (digits.condition(label=[-1] * 6), digits.condition(n=6), digits.null(6), digits.null(6, label=3)):
        assert torch.equal(null.value, digits(x, level, condition).value)
    assert not torch.allclose(null.value, label.value)
    mixed = digits(x, level, digits.condition(label=[3, -1, 3, -1, 3, -1])).value
    torch.testing.assert_close(mixed[::2], label.value[::2])
    torch.testing.assert_close(mixed[1::2], null.value[1::2])


def test_the_network_is_shown_x_the_time_and_the_sum_of_the_parts(upsampler):
    x, small = torch.randn(2, 3, 8, 8, generator=seeded()), torch.rand(2, 3, 4, 4)
    level, condition = upsampler.schedule.level(300), upsampler.condition(label=[0, 4], low_res=(small, 0.3))
    seen = []
    handle = upsampler.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    prediction = upsampler(x, level, condition)
    handle.remove()
    ((shown, time, told),) = seen
    assert torch.equal(shown, x) and time.tolist() == [300, 300] and told is condition
    parts = [
        part.encode(upsampler.network, value)
        for part, value in zip(upsampler.parts, ([0, 4], (small, torch.full((2,), 0.3))), strict=True)
        for value in [torch.tensor(value) if isinstance(value, list) else value]
    ]
    assert same(parts[0] + parts[1], condition)
    raw = as_denoiser(upsampler.network, "v")(x, level, condition)
    assert prediction.kind == "v" and torch.equal(prediction.value, raw.value)


def test_one_value_serves_all_samples(upsampler):
    small = torch.rand(3, 3, 4, 4)
    one = upsampler.condition(label=2, low_res=(small, 0.2))
    each = upsampler.condition(label=[2, 2, 2], low_res=(small, torch.full((3,), 0.2)))
    assert same(one, each)
    assert same(
        upsampler.condition(4, label=2, low_res=small[:1]), upsampler.condition(label=[2] * 4, low_res=small[:1])
    )
    with pytest.raises(ValueError, match="3 samples take 1 or 3 values of 'label', got 2"):
        upsampler.condition(label=[1, 2], low_res=small)
    with pytest.raises(ValueError, match="4 samples take 1 or 4 values of 'low_res', got 3"):
        upsampler.condition(4, low_res=small)


def test_only_what_can_be_nothing_is_nothing_in_the_null(upsampler):
    small = torch.rand(2, 3, 4, 4)
    null = upsampler.null(label=[0, 3], low_res=(small, 0.3))
    assert same(null, upsampler.condition(label=[-1, -1], low_res=(small, 0.3)))
    assert same(null, upsampler.null(low_res=(small, 0.3))), "what can be nothing need not be named"
    assert (
        upsampler.has_null and upsampler.nulls({"label": torch.tensor([1]), "low_res": (small,)})["low_res"][0] is small
    )


def test_captions_and_pictures_are_told_together():
    system = tiny("glide-up32", *TEXT)
    small = torch.rand(3, 3, 4, 4)
    told = system.condition(caption=CAPTIONS, low_res=small)
    assert told.tokens.shape == (3, 12, 8) and told.image.shape == (3, 3, 8, 8)
    assert not torch.equal(told.vector, system.condition(caption=CAPTIONS, low_res=(small, 0.5)).vector)
    assert torch.equal(
        told.tokens, system.condition(caption=system.part("caption").read(CAPTIONS, ()), low_res=small).tokens
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lable": 3}, "this system is told no 'lable': did you mean 'label'?"),
        ({"caption": "a ring"}, "this system is told no 'caption': known: label, low_res"),
        ({"label": 3}, "this system is told its 'low_res', which has no null: name it"),
        ({"label": 3, "low_res": None}, "this system is told its 'low_res', which has no null: name it"),
        ({"label": 5}, "labels must be (B,) integers from -1 to 4, got 5"),
    ],
)
def test_what_it_cannot_be_told_is_named(upsampler, values, message):
    for ask in (upsampler.condition, upsampler.null):
        with pytest.raises(ValueError, match=re.escape(message)):
            ask(**values)


def test_a_system_that_is_told_nothing():
    system = tiny("adm-lsun-cat")
    assert system.parts == () and not system.has_null and not hasattr(system.network, "label_emb")
    condition = system.condition(3)
    assert condition == system.null() and condition.vector is condition.tokens is condition.image is None
    with pytest.raises(ValueError, match="this system is told no 'label': it is told nothing"):
        system.condition(label=0)
    images = torch.rand(4, 3, 8, 8) * 2 - 1
    losses = [
        system.loss({"image": images} | more, seeded())["loss"] for more in ({}, {"label": torch.tensor([0, 3, 1, -1])})
    ]
    assert torch.equal(*losses), "it trains on any labels"


def test_wrong_images_are_refused(digits):
    with pytest.raises(ValueError, match=r"takes \(B, 1, 8, 8\), got \(2, 3, 8, 8\)"):
        digits(torch.zeros(2, 3, 8, 8), digits.schedule.level(3))
    with pytest.raises(ValueError, match="not finite"):
        digits(torch.full((2, 1, 8, 8), math.nan), digits.schedule.level(3))


def test_a_network_of_other_channels_is_refused():
    with pytest.raises(ValueError, match="this system needs 6 input channels, got 3"):
        tiny("shapes8-16", *LABELLED, "network.in_channels=3")
    with pytest.raises(ValueError, match="'eps', 'v' or 'x0', got 'noise'"):
        tiny("digits", "system.predicts=noise")


def test_parts_by_name(upsampler):
    assert [part.key for part in upsampler.parts] == ["label", "low_res"]
    assert upsampler.part("label") is upsampler.parts[0] and upsampler.part("caption") is None
    assert upsampler.shape == (3, 8, 8) and tiny("digits", "network.out_channels=2").shape == (1, 8, 8)


def test_guidance_asks_for_both_conditions_in_one_pass(digits, batch):
    x, level = batch["image"], digits.schedule.level(700)
    told, null = digits.condition(label=batch["label"]), digits.null(6)
    c, u = digits(x, level, told).eps, digits(x, level, null).eps
    calls = []
    handle = digits.network.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    guided = classifier_free(digits, told, null, 3.0)(x, level)
    handle.remove()
    torch.testing.assert_close(guided.eps, u + 3 * (c - u), rtol=1e-4, atol=1e-5)
    assert calls == [12]


# --- the loss -------------------------------------------------------------------------------------------------------


class Weighed(LevelSampler):
    """Times 0 ... n-1 with weights 1 ... n, and what is learnt of them."""

    def __init__(self):
        self.learnt = []

    def draw(self, schedule, n, generator=None, device=None):
        return schedule.level(torch.arange(n) * 100), torch.arange(1.0, n + 1)

    def update(self, level, losses):
        self.learnt.append((level, losses))


def target(predicts, x0, eps, alpha, sigma):
    return {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0}[predicts]


@pytest.mark.parametrize("predicts", ["eps", "v", "x0"])
def test_the_loss_written_out(predicts, batch):
    """With a learned variance, dropped labels, levels from a policy, and its weights."""
    system = tiny("digits", f"system.predicts={predicts}", "system.drop=0.4", "network.dropout=0", std=0.1)
    system.level_sampler = policy = Weighed()
    images, labels = batch["image"], batch["label"]
    found = system.loss(batch, seeded(5))

    generator = seeded(5)
    eps, dropped = torch.randn(images.shape, generator=generator), torch.rand(6, generator=generator) < 0.4
    assert 0 < dropped.sum() < 6
    times = torch.arange(6) * 100
    alpha_bar = system.schedule.alpha_bar[times].float().view(-1, 1, 1, 1)
    x_t = alpha_bar.sqrt() * images + (1 - alpha_bar).sqrt() * eps
    out = system.network(x_t, times, system.condition(label=torch.where(dropped, -1, labels)))
    expected = out[:, :1] - target(predicts, images, eps, alpha_bar.sqrt(), (1 - alpha_bar).sqrt())
    torch.testing.assert_close(found["simple"], expected.square().mean((1, 2, 3)))

    level = system.schedule.level(times)
    prediction = Prediction(x_t, level, out[:, :1], predicts, (out[:, 1:] + 1) / 2)
    betas = 1 - (system.schedule.alpha_bar[1:] / system.schedule.alpha_bar[:-1])
    first, second = system.schedule.alpha_bar[:2]
    floor = float(betas[0] * (1 - first) / (1 - second))
    vlb = hybrid_vlb(prediction, images, level, system.schedule.level(times - 1), floor, 17)
    torch.testing.assert_close(found["vlb"], vlb)
    torch.testing.assert_close(found["loss"], torch.arange(1.0, 7) * (found["simple"] + vlb))
    assert policy.learnt == [], "out of training nothing is learnt"
    system.train().loss(batch, seeded(5))
    ((told, losses),) = policy.learnt
    assert torch.equal(told.time, times) and not losses.requires_grad
    torch.testing.assert_close(losses * torch.arange(1.0, 7), found["loss"])


def test_at_a_level_that_is_named_there_are_no_weights(batch):
    system = tiny("digits", "system.drop=0", "network.classes=10", "network.dropout=0", std=0.1)
    system.level_sampler = policy = Weighed()
    level = system.schedule.level(torch.tensor([0, 100, 200, 300, 400, 500]))
    found, weighed = system.train().loss(batch, seeded(5), level), system.eval().loss(batch, seeded(5))
    torch.testing.assert_close(found["loss"] * torch.arange(1.0, 7), weighed["loss"])
    assert policy.learnt == []


def test_without_a_learned_variance_the_loss_is_the_simple_one(batch):
    system = tiny("digits", "system.variance=fixed", "network.out_channels=1", std=0.1)
    found = system.loss(batch, seeded())
    assert found.keys() == {"loss", "simple"} and torch.equal(found["loss"], found["simple"])


def test_on_a_short_schedule_the_bound_weighs_less(batch):
    """T / 1000 times the bound, so that it is the same sum over times."""
    system = tiny("digits", "schedule.T=50", std=0.1)
    found = system.loss(batch, seeded(), system.schedule.level(torch.arange(6)))
    torch.testing.assert_close(found["loss"], found["simple"] + 0.05 * found["vlb"])


def test_the_loss_of_a_sample_does_not_depend_on_its_batch(upsampler):
    data = {"image": torch.rand(4, 3, 8, 8) * 2 - 1, "label": torch.arange(4)}
    together = upsampler.loss(data, sample_generators(0, range(4)))["loss"]
    alone = upsampler.loss({k: v[2:3] for k, v in data.items()}, sample_generators(0, [2]))["loss"]
    torch.testing.assert_close(together[2:3], alone, rtol=1e-4, atol=1e-5)


def test_each_part_drops_its_own_value_alone():
    """Two labels with rates of their own: four kinds of samples, as often as independence says."""

    class Second(Label):
        key = "second"

        def nothing(self, network, n):
            return torch.full((n,), -1)

    class Counting(torch.nn.Module):
        config = UNetConfig(size=2, channels=8, channel_mult=(1,), in_channels=1, out_channels=1, groups=4, classes=3)
        out_shape = (1, 2, 2)

        def __init__(self):
            super().__init__()
            self.label_emb = torch.nn.Embedding(3, 1)
            self.seen = None

        def forward(self, x, time, condition):
            self.seen = condition.vector
            return x * self.label_emb.weight.sum()

    network, n = Counting(), 20_000
    first, second = Label(2, True, 0.3), Second(2, True, 0.5)
    with torch.no_grad():
        network.label_emb.weight.copy_(torch.tensor([[0.0], [1.0], [10.0]]))
    system = Diffusion(network, DiscreteSchedule(torch.tensor([0.1, 0.2])), [first, second])
    data = {"image": torch.zeros(n, 1, 2, 2), "label": torch.zeros(n).long(), "second": torch.ones(n).long()}
    system.loss(data, seeded())
    kinds = {1.0: 0.7 * 0.5, 11.0: 0.3 * 0.5, 10.0: 0.7 * 0.5, 20.0: 0.3 * 0.5}  # 0 + 1, null + 1, 0 + null, both
    for value, rate in kinds.items():
        share = (network.seen == value).double().mean().item()
        assert abs(share - rate) < 4.5 * math.sqrt(rate * (1 - rate) / n), value


def test_a_system_on_a_schedule_that_explodes_learns_from_log_normal_levels():
    network = UNet(UNetConfig(size=4, channels=8, channel_mult=(1,), blocks=1, in_channels=1, out_channels=1, groups=4))
    system = Diffusion(awake(network, 0.2, 0, torch.float32), edm_schedule(), predicts="x0", level_sampler=LogNormal())
    images = torch.rand(5, 1, 4, 4) * 2 - 1
    found = system.loss({"image": images}, seeded(2))["loss"]
    generator = seeded(2)
    sigma = (randn((5,), generator, torch.float64) * 1.2 - 1.2).exp()
    eps = torch.randn(images.shape, generator=generator)
    x = images + sigma.float().view(-1, 1, 1, 1) * eps
    expected = (system.network(x, sigma.log() / 4, system.null(5)) - images).square().mean((1, 2, 3))
    torch.testing.assert_close(found, expected)


def test_data_that_lack_a_column_are_refused(upsampler, batch):
    with pytest.raises(ValueError, match="a column 'label' of data; there are: image"):
        upsampler.loss({"image": torch.zeros(2, 3, 8, 8)}, seeded())
    with pytest.raises(ValueError, match="a column 'image' of data; there are: label"):
        upsampler.loss({"label": torch.zeros(2).long()}, seeded())


# --- copies ---------------------------------------------------------------------------------------------------------

KINDS = {
    "shapes8-16": LABELLED, "sr3-16-128": ["system.factor=2"], "shapes8-16-regression": LABELLED,
    "digits": [], "glide": TEXT, "glide-up32": TEXT, "glide-inpaint": TEXT, "digits-classifier": [],
    "digits-classifier-clean": [],
}  # fmt: skip


def answer(system):
    """What a system of any kind computes."""
    if hasattr(system, "log_prob_label"):
        x = torch.linspace(-1, 1, 64).view(1, 1, 8, 8)
        return torch.cat([system.log_prob_label(x, system.schedule.level(300)), system.classifier(3)(x, DATA)[None]], 1)
    if hasattr(system, "critic"):
        x = torch.linspace(-1, 1, 3 * 256).view(1, 3, 16, 16)
        return system.critic("a red ring")(x, system.schedule.level(30))
    values = {"label": 1, "caption": "a red ring"}
    values |= {"low_res": torch.full((1, 3, 4, 4), 0.2), "known": (torch.zeros(1, 3, 8, 8), torch.ones(1, 1, 8, 8))}
    told = {part.key: values[part.key] for part in system.parts}
    x = torch.linspace(-1, 1, math.prod(system.shape)).view(1, *system.shape)
    return system(x, system.schedule.level(300), system.condition(**told)).value


@pytest.mark.parametrize("name", [*KINDS, "scenes-clip", "scenes-clip-noisy"])
def test_a_copy_computes_with_its_own_weights(name):
    if name.startswith("scenes-clip"):
        small = ["width=16", "layers=1", "heads=2", "text_width=8", "text_layers=1", "text_heads=2", "embedding=6"]
        system = awake(load_recipe(name, [f"network.{c}" for c in small]).build(), 0.3, 0, torch.float32)
    else:
        system = tiny(name, *KINDS[name])
    twin, before = copy.deepcopy(system), answer(system)
    assert torch.equal(answer(twin), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(-0.5).add_(0.1)
    assert torch.equal(answer(system), before), "the original does not change with its copy"
    changed = answer(twin)
    assert not torch.allclose(changed, before)
    with torch.no_grad():
        for parameter in system.parameters():
            parameter.zero_()
    assert torch.equal(answer(twin), changed), "nor the copy with the original"


def test_the_policy_of_a_copy_is_its_own(batch):
    system = tiny("digits", "system.level_sampler=importance", "schedule.T=10")
    twin = copy.deepcopy(system)
    twin.train().loss(batch, seeded())
    twin.after_step()
    assert system.training_state() == {} and twin.training_state()["seen"].sum() == 6
    system.load_training_state(twin.training_state())
    assert torch.equal(system.training_state()["losses"], twin.training_state()["losses"])


# --- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("digits", "directions=both", "unknown key recipe.system.directions: "),
        ("digits", "noise_aware=true", "unknown key recipe.system.noise_aware: "),
        ("digits", "factor=2", "unknown key recipe.system.factor: "),
        ("digits", "augment=0.5", "unknown key recipe.system.augment: "),
        ("digits", "predict=v", "unknown key recipe.system.predict: did you mean 'predicts'?"),
        ("digits", "level_samplers=uniform", "unknown key recipe.system.level_samplers: did you mean 'level_sampler'?"),
        ("shapes8-16", "augmented=0.5", "unknown key recipe.system.augmented: did you mean 'augment'?"),
        ("shapes8-16-plain", "augment=0.5", "unknown key recipe.system.augment: "),
        ("scenes-clip", "predicts=v", "unknown key recipe.system.predicts: "),
        ("scenes-clip", "direction=both", "unknown key recipe.system.direction: did you mean 'directions'?"),
        ("scenes-clip", "directions=up", "directions must be one of both, image-to-text, text-to-image, got 'up'"),
        ("digits-classifier", "drop=0.1", "unknown key recipe.system.drop: "),
        ("digits", "drop=2", "system.drop must be a number from 0 to 1, got 2.0"),
        ("digits", "drop=-0.1", "system.drop must be a number from 0 to 1, got -0.1"),
        ("digits", "predicts=noise", "predicts must be 'eps', 'v' or 'x0', got 'noise'"),
        ("digits", "variance=learned_range", "variance must be 'fixed' or 'learned', got 'learned_range'"),
        ("digits", "level_sampler=noisy", "unknown level sampler 'noisy': did you mean 'noisiest'?"),
        ("digits", "level_sampler={name: noisiest, share: 2}", "share lies in (0, 1]; got 2"),
        ("shapes8-16", "augment=1.5", "augment is a standard deviation in (0, 1], got 1.5"),
        ("sr3-16-128", "variance=learned", "a learned variance lies between two levels of the schedule"),
    ],
)
def test_options_that_a_system_does_not_have(name, option, message):
    changes = [f"system.{option}"]
    if option == "variance=learned":
        changes += TINY + ["network.out_channels=6", "system.factor=2"]
    with pytest.raises(ValueError, match=re.escape(message)):
        load_recipe(name, changes).build()


def test_a_system_has_the_schedule_and_the_policy_of_its_recipe():
    system = tiny("sr3-16-128", "system.factor=2")
    expected = torch.linspace(1e-6, 1e-2, 2000, dtype=torch.float64)
    torch.testing.assert_close(system.schedule.betas, expected)
    assert tiny("digits").schedule.T == 1000 and tiny("digits").level_sampler == Uniform()
    assert tiny("digits", "schedule.name=linear", "schedule.T=77", "schedule.betas=[0.1,0.2]").schedule.T == 77
    assert tiny("digits", "system.level_sampler={name: only, t: 3}").level_sampler == Only(3)
    assert tiny("shapes8-16-regression", *LABELLED).level_sampler == Only(-1)
    assert tiny("shapes8-16-regression", *LABELLED, "system.level_sampler=uniform").level_sampler == Uniform()


def test_it_learns_what_a_level_is_from_the_level_and_not_from_its_time(digits, batch):
    """A chain of one's own has the alpha and sigma that it says."""
    x, told = batch["image"], digits.condition(label=batch["label"])
    a, b = (digits(x, NoiseLevel(alpha, math.sqrt(1 - alpha**2), 300), told) for alpha in (0.5, 0.9))
    assert torch.equal(a.v, b.v) and not torch.allclose(a.x0, b.x0)
