"""SR3's levels, noise-conditioning augmentation, truncated chains, regression, and cascades of any length."""

import math
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import TINY, tiny

from minidiff.models.layers import timestep_embedding
from minidiff.process import diffuse
from minidiff.random import sample_generators
from minidiff.recipes import load_recipe
from minidiff.sampler import ancestral, heun
from minidiff.schedule import DATA, NoiseLevel, clipped_cosine_schedule, cosine_schedule, linear_schedule
from minidiff.systems.cascade import TOLD, NoisySmall, cascade, told_alpha, truncated
from minidiff.systems.diffusion import respaced
from minidiff.systems.upsampler import Small, eight_bit
from minidiff.systems.zoo import build

LABELLED = ["network.classes=6", "label_dropout=0.1"]


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def sr3():
    return tiny("sr3-16-128", "factor=2", "network.dropout=0.0")


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


def test_sr3_draws_alpha_uniformly_between_neighbouring_levels(sr3):
    """Each time its own interval; the intervals touch and cover everything from the noisiest level to clean data."""
    schedule = sr3.schedule
    times = torch.tensor([0, 1, 700, 1999]).repeat_interleave(4000)
    alpha = sr3.noise_level(times, seeded()).alpha.reshape(4, -1)
    for t, drawn in zip((0, 1, 700, 1999), alpha, strict=True):
        low, high = schedule.level(t).alpha, schedule.level(t - 1).alpha
        u = (drawn - low) / (high - low)
        assert u.min() >= 0 and u.max() <= 1
        assert abs(u.mean() - 0.5) < 0.03 and abs(u.var() - 1 / 12) < 0.01
    level = sr3.noise_level(times, seeded())
    torch.testing.assert_close(level.alpha**2 + level.sigma**2, torch.ones(len(times), dtype=torch.float64))


def test_a_sample_of_a_batch_has_a_level_of_its_own(sr3):
    times = torch.full((6,), 1000)
    together = sr3.noise_level(times, sample_generators(0, range(6))).alpha
    assert len(together.unique()) == 6
    assert together[4] == sr3.noise_level(times[:1], sample_generators(0, [4])).alpha


def test_the_network_of_sr3_is_told_alpha_and_nothing_else(sr3):
    """Two levels of equal alpha and sigma but another time are one level; so any schedule can be used."""
    x, given = torch.randn(2, 3, 8, 8, generator=seeded()), Small(sr3.null(2), torch.zeros(2, 3, 4, 4))
    asked = []
    handle = sr3.network.register_forward_pre_hook(lambda m, inputs: asked.append(inputs[1]))
    first = sr3(x, NoiseLevel(0.8, 0.6, 3), given)
    second = sr3(x, NoiseLevel(0.8, 0.6, 1234), given)
    handle.remove()
    assert torch.equal(first.value, second.value)
    assert [float(t[0]) for t in asked] == [pytest.approx(800.0)] * 2


@pytest.mark.parametrize(
    "levels", [linear_schedule(2000).levels(3), cosine_schedule().levels(3)], ids=["linear", "cosine"]
)
def test_sr3_samples_with_a_schedule_that_it_was_not_trained_with(sr3, levels):
    small, labels = torch.rand(2, 3, 4, 4), torch.full((2,), -1)
    told = []
    handle = sr3.network.register_forward_pre_hook(lambda m, inputs: told.append(float(inputs[1][0])))
    images = sr3.sample(labels, small, steps=levels, sampler=ancestral(), generator=seeded())
    handle.remove()
    assert images.shape == (2, 3, 8, 8)
    assert told == [pytest.approx(TOLD * level.alpha, rel=1e-6) for level in levels[:-1]]


def test_a_level_in_zero_to_one_is_all_but_invisible_until_it_is_scaled():
    """The sinusoids of a time embedding have frequencies of at most one (eq-blind): the distance of two embeddings is
    at most the distance of the numbers times the root of the sum of squared frequencies."""
    alpha = linear_schedule(2000, 1e-6, 1e-2).alpha_bar.sqrt()
    frequency = torch.exp(-math.log(10000) * torch.arange(32) / 32).double()
    bound = frequency.square().sum().sqrt()
    norm = math.sqrt(32)
    far = lambda scale: torch.cdist(*2 * [timestep_embedding(scale * alpha[::20], 64).double()]).max().item() / norm
    assert far(1.0) < bound / norm < 0.27 < 1.0 < far(TOLD)
    assert float(told_alpha(NoiseLevel(0.25, 0.97, 7)).time) == 250


def test_sr3_enlarges_bicubically(sr3):
    small = torch.rand(2, 3, 4, 4)
    expected = F.interpolate(small, (8, 8), mode="bicubic", align_corners=False)
    torch.testing.assert_close(sr3.condition(Small(sr3.null(2), small)).image, expected)
    flat = torch.full((1, 3, 8, 8), 0.3)
    torch.testing.assert_close(sr3.reduced(flat), flat[..., :4, :4])


def test_sr3_learns_from_its_own_loss(sr3):
    images, times = torch.rand(4, 3, 8, 8) * 2 - 1, torch.tensor([0, 10, 500, 1999])
    found = sr3.loss(images, sr3.null(4), seeded(), times)["loss"]
    generator = seeded()
    level = sr3.noise_level(times, generator)
    eps = torch.randn(images.shape, generator=generator)
    given = Small(sr3.null(4), sr3.reduced(images))
    expected = (sr3(diffuse(images, level, eps), level, given).eps - eps).square().mean((1, 2, 3))
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="SR3 has a fixed variance, got 'learned_range'"):
        tiny("sr3-16-128", "factor=2", "network.dropout=0.0", "variance=learned_range", "network.out_channels=6")


# --- noise-conditioning augmentation --------------------------------------------------------------------------------


def test_training_noises_each_small_image_by_a_level_of_its_own_and_tells_it(cdm):
    images, labels = torch.rand(500, 3, 8, 8) * 2 - 1, torch.zeros(500, dtype=torch.long)
    given = cdm.shown(images, labels, seeded())
    assert isinstance(given, NoisySmall) and given.sigma.shape == (500,)
    assert given.sigma.min() >= 0 and given.sigma.max() <= cdm.augment == 0.5
    assert abs(given.sigma.mean() - 0.25) < 0.02
    clean, (signal, noise) = cdm.reduced(images), ((1 - given.sigma**2).sqrt(), given.sigma)
    z = (given.image - signal[:, None, None, None] * clean) / noise[:, None, None, None]
    assert abs(z.mean()) < 0.02 and abs(z.std() - 1) < 0.02


def test_what_a_training_step_shows_does_not_depend_on_the_batch(cdm):
    images, labels = torch.rand(3, 3, 8, 8), torch.zeros(3, dtype=torch.long)
    together = cdm.shown(images, labels, sample_generators(0, range(3)))
    alone = cdm.shown(images[2:], labels[2:], sample_generators(0, [2]))
    assert torch.equal(together.image[2:], alone.image) and torch.equal(together.sigma[2:], alone.sigma)


def test_the_level_enters_through_its_own_embedding(cdm):
    given = NoisySmall(torch.tensor([0, 3]), torch.rand(2, 3, 4, 4), torch.tensor([0.1, 0.4]))
    embedding = cdm.network.image_level_embed(timestep_embedding(TOLD * given.sigma, 8))
    expected = cdm.network.label_emb(given.told) + embedding
    torch.testing.assert_close(cdm.condition(given).vector, expected)


def test_at_level_0_it_is_the_plain_upsampler(cdm):
    """The same weights without the second embedding, whose output is zero here: the same picture, bit for bit."""
    plain = build(load_recipe("shapes8-16-plain", [*TINY, *LABELLED])).eval()
    silent = build(load_recipe("shapes8-16", [*TINY, *LABELLED])).eval()
    weights = {k: v for k, v in cdm.state_dict().items() if "image_level" not in k}
    plain.load_state_dict(weights)
    silent.load_state_dict(
        weights | {k: torch.zeros_like(v) for k, v in silent.state_dict().items() if k not in weights}
    )
    labels, small = torch.tensor([0, 3]), torch.rand(2, 3, 4, 4)
    draw = lambda system, **options: system.sample(labels, small, steps=3, generator=seeded(), **options)
    assert torch.equal(draw(silent), draw(plain))
    assert torch.equal(draw(silent, level=0.0), draw(plain))
    assert not torch.equal(draw(silent, level=0.2), draw(plain))


def test_noise_is_added_once_and_not_to_images_that_carry_it(cdm):
    labels, small = torch.tensor([0, 3]), torch.rand(2, 3, 4, 4)
    seen = []
    handle = cdm.network.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[2].image))
    cdm.sample(labels, small, steps=2, level=0.3, noisy=True)
    assert torch.equal(seen[0], cdm.enlarged(small))
    seen.clear()
    cdm.sample(labels, small, steps=2, level=torch.tensor([0.0, 0.3]), generator=seeded())
    handle.remove()
    eps = torch.randn(small.shape, generator=seeded())
    expected = torch.stack([small[0], math.sqrt(1 - 0.09) * small[1] + 0.3 * eps[1]])
    torch.testing.assert_close(seen[0], cdm.enlarged(expected))
    assert all(torch.equal(image, seen[0]) for image in seen), "one draw of noise for the whole chain"


@pytest.mark.parametrize("level", [-0.1, 0.51, 1.0])
def test_a_level_that_training_did_not_show_is_refused(cdm, level):
    with pytest.raises(ValueError, match=re.escape("from 0 to 0.5, as in training")):
        cdm.sample(torch.tensor([0]), torch.rand(1, 3, 4, 4), level=level, steps=2)


def test_augmentation_needs_a_door_for_its_level():
    with pytest.raises(ValueError, match="needs image_level=True"):
        tiny("shapes8-16", *LABELLED, "network.image_level=false")
    with pytest.raises(ValueError, match=re.escape("in (0, 1], got 0.0")):
        tiny("shapes8-16", *LABELLED, "augment=0.0")


def test_a_text_upsampler_takes_captions_and_guidance(glide):
    captions, small = ["a red circle", "a blue star"], torch.rand(2, 3, 4, 4)
    draw = lambda captions, **options: glide.sample(captions, small, steps=2, generator=seeded(), level=0.4, **options)
    assert draw(captions).shape == (2, 3, 8, 8)
    assert torch.equal(draw(captions), draw(glide.tokens(captions)))
    assert not torch.equal(draw(captions), draw(captions, scale=3.0))
    loss = glide.loss(torch.rand(2, 3, 8, 8), glide.tokens(captions), seeded())
    assert loss["loss"].shape == (2,) and loss["loss"].isfinite().all()


# --- regression -----------------------------------------------------------------------------------------------------


def test_regression_is_asked_in_pure_noise_only_and_learns_by_least_squares():
    system = tiny("shapes8-16-regression", *LABELLED)
    images, labels = torch.rand(4, 3, 8, 8) * 2 - 1, torch.tensor([0, 1, 2, 4])
    level = system.noise_level(torch.tensor([0, 5, 900, 999]), seeded())
    assert torch.equal(level.time, torch.full((4,), 999)) and level.alpha.max() < 1e-4
    found = system.loss(images, labels, seeded())["loss"]
    generator = seeded()
    torch.randint(1000, (4,), generator=generator)
    x, given = torch.randn(images.shape, generator=generator), Small(labels, system.reduced(images))
    assert system.label_dropout == 0.1
    given = system.dropped(given, generator)
    expected = (system(x, level, given).x0 - images).square().mean((1, 2, 3))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    drawn = system.sample(labels, given.image, steps=1, generator=seeded(9))
    x_T = torch.randn(images.shape, generator=seeded(9))
    expected = system(x_T, system.schedule.level(999), Small(labels, given.image)).x0.clamp(-1, 1)
    torch.testing.assert_close(drawn, expected)


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
    stages = [(base, {"steps": 6, "sampler": sampler}), (cdm, {"steps": 3, "level": 0.4})]
    generator = seeded()
    chain = truncated(base.schedule, 6, 0.4)
    noisy = base.sample(labels, steps=chain, sampler=sampler, generator=generator)
    expected = cdm.sample(labels, noisy, steps=3, level=chain[-1].sigma, noisy=True, generator=generator)
    torch.testing.assert_close(cascade(stages, labels, seeded(), truncate=True), expected)
    generator = seeded()
    small = eight_bit(base.sample(labels, steps=6, sampler=sampler, generator=generator))
    expected = cdm.sample(labels, small, steps=3, level=0.4, generator=generator)
    torch.testing.assert_close(cascade(stages, labels, seeded()), expected)


def test_three_stages_each_with_its_own_options(base, cdm):
    last = tiny("shapes8-16", *LABELLED, "network.size=16", "network.attention=[8]", seed=5)
    labels = torch.tensor([0, 3])
    stages = [
        (base, {"steps": 3, "scale": 2.0}),
        (cdm, {"steps": 2, "level": 0.2}),
        (last, {"steps": "ddim4", "level": 0.1}),
    ]
    for truncate in (False, True):
        images = cascade(stages, labels, sample_generators(0, range(2)), truncate=truncate)
        assert images.shape == (2, 3, 16, 16)
        alone = cascade(stages, labels[1:], sample_generators(0, [1]), truncate=truncate)
        torch.testing.assert_close(images[1:], alone, rtol=1e-4, atol=1e-4)


def test_images_are_handed_on_as_the_next_stage_stores_them(glide, cdm):
    """ADM's scripts round down, GLIDE's to the nearest of 256 values."""
    values = torch.linspace(-1.1, 1.1, 999).expand(1, -1)
    bytes_of = lambda images: (images + 1) * 127.5
    clipped = bytes_of(values).clamp(0, 255)
    torch.testing.assert_close(bytes_of(cdm.stored(values)), clipped.floor(), rtol=0, atol=1e-3)
    torch.testing.assert_close(bytes_of(glide.stored(values)), clipped.round(), rtol=0, atol=1e-3)


def test_stages_that_do_not_fit_are_refused(base, cdm):
    with pytest.raises(ValueError, match=r"one stage draws \(3, 8, 8\), the next enlarges \(3, 4, 4\)"):
        cascade([(cdm, {}), (cdm, {})], torch.tensor([0]))
    with pytest.raises(ValueError, match="at least one stage"):
        cascade([], torch.tensor([0]))


# --- published shapes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "published"), [("sr3-16-128", 97.81), ("sr3-64-512", 155.33)])
def test_sr3_counts_what_its_public_network_counts_but_for_two_things(name, published):
    """There the time embedding enters the blocks with the base width instead of four times it, and qkv has no bias."""
    recipe = load_recipe(name)
    network = build(recipe, empty=True).network
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
        build(load_recipe(name), empty=True) for name in ("cdm-imagenet32", "cdm-imagenet32-64", "cdm-imagenet64-256")
    ]
    assert [stage.shape[1] for stage in stages] == [32, 64, 256]
    assert [stage.small_shape for stage in stages[1:]] == [stage.shape for stage in stages[:-1]]


def test_betas_belong_to_linear_schedules():
    recipe = load_recipe("sr3-16-128")
    schedule = build(recipe, empty=True).schedule
    torch.testing.assert_close(schedule.betas, torch.linspace(1e-6, 1e-2, 2000, dtype=torch.float64))
    with pytest.raises(ValueError, match="not of 'clipped_cosine'"):
        build(replace(recipe, schedule=replace(recipe.schedule, name="clipped_cosine")), empty=True)
