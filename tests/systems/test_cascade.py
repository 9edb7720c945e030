"""SR3's levels, noise-conditioning augmentation, truncated chains, regression, and cascades of any length."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import TINY, seeded, tiny

from minidiff.guidance import cfg
from minidiff.models.layers import timestep_embedding
from minidiff.pixels import quantize
from minidiff.process import diffuse
from minidiff.random import sample_generators
from minidiff.recipes import load_recipe
from minidiff.sampler import ancestral, heun
from minidiff.schedule import DATA, NoiseLevel, clipped_cosine_schedule, cosine_schedule, linear_schedule, respaced
from minidiff.systems.cascade import told_alpha_bar
from minidiff.systems.draw import cascade, draw, truncated
from minidiff.systems.parts import TOLD
from minidiff.training.levels import AlphaBetween, Only

LABELLED = ["network.classes=6", "system.drop=0.1"]


@pytest.fixture(scope="module")
def sr3():
    return tiny("sr3-16-128", "system.factor=2", "network.dropout=0.0")


@pytest.fixture(scope="module")
def base():
    return tiny("shapes8", "network.size=4", "network.attention=[2]", *LABELLED, seed=1)


@pytest.fixture(scope="module")
def cdm():
    return tiny("shapes8-16", *LABELLED, seed=2)


@pytest.fixture(scope="module")
def glide():
    return tiny("glide-up32", "network.text.width=8", "network.text.heads=2", seed=4)


# --- SR3 ------------------------------------------------------------------------------------------------------------


def test_the_network_of_sr3_is_told_alpha_bar_and_nothing_else(sr3):
    """Two levels of equal alpha and sigma but another time are one level; so any schedule can be used."""
    x, told = torch.randn(2, 3, 8, 8, generator=seeded()), sr3.condition(low_res=torch.zeros(2, 3, 4, 4))
    asked = []
    handle = sr3.network.register_forward_pre_hook(lambda m, inputs: asked.append(inputs[1]))
    first = sr3(x, NoiseLevel(0.8, 0.6, 3), told)
    second = sr3(x, NoiseLevel(0.8, 0.6, 1234), told)
    handle.remove()
    assert torch.equal(first.value, second.value)
    assert [float(t[0]) for t in asked] == [pytest.approx(640.0)] * 2


@pytest.mark.parametrize(
    "levels", [linear_schedule(2000).levels(3), cosine_schedule().levels(3)], ids=["linear", "cosine"]
)
def test_sr3_samples_with_a_schedule_that_it_was_not_trained_with(sr3, levels):
    small, told = torch.rand(2, 3, 4, 4), []
    handle = sr3.network.register_forward_pre_hook(lambda m, inputs: told.append(float(inputs[1][0])))
    images = draw(sr3, 2, levels=levels, sampler=ancestral(), generator=seeded(), low_res=small)
    handle.remove()
    assert images.shape == (2, 3, 8, 8)
    assert told == [pytest.approx(TOLD * level.alpha**2, rel=1e-6) for level in levels[:-1]]


def test_a_level_in_zero_to_one_is_all_but_invisible_until_it_is_scaled():
    """The sinusoids of a time embedding have frequencies of at most one (eq-blind): the distance of two embeddings is
    at most the distance of the numbers times the root of the sum of squared frequencies."""
    alpha_bar = linear_schedule(2000, 1e-6, 1e-2).alpha_bar
    frequency = torch.exp(-math.log(10000) * torch.arange(32) / 32).double()
    bound = frequency.square().sum().sqrt()
    norm = math.sqrt(32)
    far = lambda scale: torch.cdist(*2 * [timestep_embedding(scale * alpha_bar[::20], 64).double()]).max().item() / norm
    assert far(1.0) < bound / norm < 0.27 < 1.0 < far(TOLD)
    assert float(told_alpha_bar(NoiseLevel(0.5, 0.75**0.5, 7)).time) == 250


def test_sr3_enlarges_bicubically(sr3):
    small = torch.rand(2, 3, 4, 4)
    expected = F.interpolate(small, (8, 8), mode="bicubic", align_corners=False)
    torch.testing.assert_close(sr3.condition(low_res=small).image, expected)
    flat, part = torch.full((1, 3, 8, 8), 0.3), sr3.part("low_res")
    torch.testing.assert_close(part.downsample(flat), flat[..., :4, :4])
    assert part.mode == "bicubic" and part.augment == 0


def test_sr3_learns_from_its_own_loss(sr3):
    images = torch.rand(4, 3, 8, 8) * 2 - 1
    found = sr3.loss({"image": images}, seeded())["loss"]
    generator = seeded()
    level, _ = AlphaBetween().draw(sr3.schedule, 4, generator)
    assert sr3.level_sampler == AlphaBetween()
    eps = torch.randn(images.shape, generator=generator)
    told = sr3.condition(low_res=sr3.part("low_res").downsample(images))
    out = sr3.network(diffuse(images, level, eps), TOLD * level.alpha.float() ** 2, told)
    expected = (out - eps).square().mean((1, 2, 3))
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="SR3 has a fixed variance, got 'learned'"):
        learned = ["system.variance=learned", "system.level_sampler=uniform", "network.out_channels=6"]
        tiny("sr3-16-128", "system.factor=2", *learned)


# --- noise-conditioning augmentation --------------------------------------------------------------------------------


def test_at_level_0_it_is_the_plain_upsampler(cdm):
    """The same weights without the second embedding, whose output is zero here: the same picture, bit for bit."""
    plain, silent = (
        load_recipe(name, [*TINY, *LABELLED]).build().eval() for name in ("shapes8-16-plain", "shapes8-16")
    )
    weights = {k: v for k, v in cdm.state_dict().items() if "image_level" not in k}
    plain.load_state_dict(weights)
    silent.load_state_dict(
        weights | {k: torch.zeros_like(v) for k, v in silent.state_dict().items() if k not in weights}
    )
    labels, small = torch.tensor([0, 3]), torch.rand(2, 3, 4, 4)
    ask = lambda system, low_res: draw(system, 2, levels=3, generator=seeded(), label=labels, low_res=low_res)
    assert torch.equal(ask(silent, small), ask(plain, small))
    assert torch.equal(ask(silent, (small, 0.0)), ask(plain, small))
    noisy = silent.part("low_res").noised(small, torch.full((2,), 0.2), seeded())
    assert not torch.equal(ask(silent, (noisy, 0.2)), ask(plain, small))


def test_noise_is_added_once_and_not_to_images_that_carry_it(cdm, base):
    """The noise of the small image is drawn before the chain, and told to the network beside it."""
    part, seen = cdm.part("low_res"), []
    handle = cdm.network.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[2].image))
    small = torch.rand(2, 3, 4, 4)
    draw(cdm, 2, levels=2, label=[0, 3], low_res=(small, 0.3))
    assert torch.equal(seen[0], part.upsample(small)), "what is told with a level carries its noise already"
    seen.clear()
    generator = seeded()
    stages = [(base, {"levels": 2}), (cdm, {"levels": 2, "aug_level": 0.3})]
    cascade(stages, 2, seeded(), label=[0, 3])
    handle.remove()
    drawn = part.quantize(draw(base, 2, levels=2, generator=generator, label=[0, 3]))
    expected = math.sqrt(1 - 0.09) * drawn + 0.3 * torch.randn(drawn.shape, generator=generator)
    torch.testing.assert_close(seen[0], part.upsample(expected))
    assert all(torch.equal(image, seen[0]) for image in seen), "one draw of noise for the whole chain"


def test_an_aug_level_that_training_did_not_show_is_refused(base, cdm):
    shown = "from 0 to 0.5, as in training"
    for level, message in ((0.51, shown), (1.0, shown), (-0.1, "level must be a finite number >= 0, got -0.1")):
        with pytest.raises(ValueError, match=message):
            cascade([(base, {"levels": 2}), (cdm, {"levels": 2, "aug_level": level})], 1, seeded(), label=0)


def test_a_text_upsampler_takes_captions_and_guidance(glide):
    captions, small, part = ["a red circle", "a blue star"], torch.rand(2, 3, 4, 4), glide.part("low_res")
    noisy = part.noised(small, torch.full((2,), 0.4), seeded()), 0.4
    ask = lambda captions, scale=1.0: draw(
        glide, 2, guide=cfg(scale), levels=2, generator=seeded(), caption=captions, low_res=noisy
    )
    assert ask(captions).shape == (2, 3, 8, 8)
    tokens = glide.part("caption").read(captions, glide.shape)
    assert torch.equal(ask(captions), ask(tokens))
    assert not torch.equal(ask(captions), ask(captions, 3.0))
    loss = glide.loss({"image": torch.rand(2, 3, 8, 8), "caption": tokens}, seeded())
    assert loss["loss"].shape == (2,) and loss["loss"].isfinite().all()


# --- regression -----------------------------------------------------------------------------------------------------


def test_regression_is_asked_in_pure_noise_only_and_learns_by_least_squares():
    system = tiny("shapes8-16-regression", *LABELLED)
    images, labels = torch.rand(4, 3, 8, 8) * 2 - 1, torch.tensor([0, 1, 2, 4])
    level, _ = system.level_sampler.draw(system.schedule, 4)
    assert system.level_sampler == Only(-1) and system.part("label").p_drop == 0.1
    assert torch.equal(level.time, torch.full((4,), 999)) and level.alpha.max() < 1e-4
    found = system.loss({"image": images, "label": labels}, seeded())["loss"]
    generator, small = seeded(), system.part("low_res").downsample(images)
    x = torch.randn(images.shape, generator=generator)
    shown = torch.where(torch.rand(4, generator=generator) < 0.1, -1, labels)
    expected = (system(x, level, system.condition(label=shown, low_res=small)).x0 - images).square().mean((1, 2, 3))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    drawn = draw(system, 4, levels=1, generator=seeded(9), label=labels, low_res=small)
    x_T, told = torch.randn(images.shape, generator=seeded(9)), system.condition(label=labels, low_res=small)
    torch.testing.assert_close(drawn, system(x_T, system.schedule.level(999), told).x0.clamp(-1, 1))


# --- cascades -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [5, "10", "ddim25", 1000])
@pytest.mark.parametrize("sigma", [0.05, 0.3, 0.8])
def test_a_truncated_chain_is_the_chain_down_to_the_level_asked_for(steps, sigma):
    schedule = clipped_cosine_schedule()
    chain, whole = truncated(schedule, steps, sigma), respaced(schedule, steps)
    assert abs(chain[-1].sigma - sigma) < 2e-3
    assert chain[:-1] == [level for level in whole if level.sigma > chain[-1].sigma]
    assert DATA not in chain


def test_a_chain_cut_above_its_first_level_is_refused():
    with pytest.raises(ValueError, match="no step left"):
        truncated(linear_schedule(), 10, 1.0)


@pytest.mark.parametrize("sampler", [None, ancestral(), heun()])
def test_a_truncated_cascade_hands_the_base_s_own_noisy_image_on(base, cdm, sampler):
    labels = torch.tensor([0, 3, 4])
    stages = [(base, {"levels": 6, "sampler": sampler}), (cdm, {"levels": 3, "aug_level": 0.4})]
    generator, part = seeded(), cdm.part("low_res")
    chain = truncated(base.schedule, 6, 0.4)
    noisy = draw(base, 3, levels=chain, sampler=sampler, generator=generator, label=labels)
    told = {"label": labels, "low_res": (noisy, chain[-1].sigma)}
    expected = draw(cdm, 3, levels=3, generator=generator, **told)
    torch.testing.assert_close(cascade(stages, 3, seeded(), truncate=True, label=labels), expected)
    generator = seeded()
    small = quantize(draw(base, 3, levels=6, sampler=sampler, generator=generator, label=labels), rounding=torch.floor)
    told["low_res"] = part.noised(small, torch.full((3,), 0.4), generator), 0.4
    expected = draw(cdm, 3, levels=3, generator=generator, **told)
    torch.testing.assert_close(cascade(stages, 3, seeded(), label=labels), expected)


def test_three_stages_each_with_its_own_options(base, cdm):
    last = tiny("shapes8-16", *LABELLED, "network.size=16", "network.attention=[8]", seed=5)
    labels = torch.tensor([0, 3])
    stages = [
        (base, {"levels": 3, "guide": cfg(2.0)}),
        (cdm, {"levels": 2, "aug_level": 0.2}),
        (last, {"levels": "ddim4", "aug_level": 0.1}),
    ]
    for truncate in (False, True):
        images = cascade(stages, 2, sample_generators(0, range(2)), truncate, label=labels)
        assert images.shape == (2, 3, 16, 16)
        alone = cascade(stages, 1, sample_generators(0, [1]), truncate, label=labels[1:])
        torch.testing.assert_close(images[1:], alone, rtol=1e-4, atol=1e-4)


def test_images_are_handed_on_as_the_next_stage_stores_them(glide, cdm):
    """ADM's scripts round down, GLIDE's to the nearest of 256 values."""
    values = torch.linspace(-1.1, 1.1, 999).expand(1, -1)
    bytes_of = lambda images: (images + 1) * 127.5
    clipped = bytes_of(values).clamp(0, 255)
    torch.testing.assert_close(bytes_of(cdm.part("low_res").quantize(values)), clipped.floor(), rtol=0, atol=1e-3)
    torch.testing.assert_close(bytes_of(glide.part("low_res").quantize(values)), clipped.round(), rtol=0, atol=1e-3)


def test_stages_that_do_not_fit_are_refused(base, cdm):
    with pytest.raises(ValueError, match=r"one stage draws \(3, 8, 8\), the next takes \(3, 4, 4\)"):
        cascade([(cdm, {}), (cdm, {})], 1, label=0)
    with pytest.raises(ValueError, match=r"one stage draws \(3, 8, 8\), the next takes nothing"):
        cascade([(cdm, {}), (base, {})], 1, label=0)
    with pytest.raises(ValueError, match="at least one stage"):
        cascade([], 1)


# --- published shapes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "published"), [("sr3-16-128", 97.81), ("sr3-64-512", 155.33)])
def test_sr3_counts_what_its_public_network_counts_but_for_two_things(name, published):
    """There the time embedding enters the blocks with the base width instead of four times it, and qkv has no bias."""
    recipe = load_recipe(name)
    network = recipe.build(empty=True).network
    count = sum(p.numel() for p in network.parameters())
    width = recipe.network.channels
    for module, parameter in network.named_parameters():
        if module.endswith("qkv.bias"):
            count -= parameter.numel()
        if "emb_layers.1.weight" in module:
            count -= parameter.numel() * 3 // 4
    count -= sum(p.numel() for p in network.time_embed.parameters())
    count += width * 4 * width + 4 * width + 4 * width * width + width
    assert round(count / 1e6, 2) == published


def test_the_recipes_of_the_imagenet_cascade_fit_together():
    stages = [
        load_recipe(name).build(empty=True) for name in ("cdm-imagenet32", "cdm-imagenet32-64", "cdm-imagenet64-256")
    ]
    assert [stage.shape[1] for stage in stages] == [32, 64, 256]
    small = [stage.part("low_res").small_shape(stage.shape) for stage in stages[1:]]
    assert small == [stage.shape for stage in stages[:-1]]


def test_betas_belong_to_linear_schedules():
    recipe = load_recipe("sr3-16-128")
    schedule = recipe.build(empty=True).schedule
    torch.testing.assert_close(schedule.betas, torch.linspace(1e-6, 1e-2, 2000, dtype=torch.float64))
    with pytest.raises(ValueError, match="not of 'clipped_cosine'"):
        replace(recipe.schedule, name="clipped_cosine")
