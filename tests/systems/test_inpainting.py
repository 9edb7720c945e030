"""Inpainters: what they see and in which order, that they start as their base, keep what is known, and resume."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import awake

from minidiff.data.masks import random_masks
from minidiff.random import randn, sample_generators
from minidiff.recipes import Recipe, from_dict, load_recipe
from minidiff.sampler import ancestral
from minidiff.systems.class_conditional import ClassConditional
from minidiff.systems.inpainting import GlideUpsamplerInpainter, Inpainter, Masked, widened
from minidiff.systems.upsampler import Small
from minidiff.systems.zoo import begun, build
from minidiff.training.checkpoint import export_weights, load_checkpoint
from minidiff.training.loop import train

TEXT = {"vocabulary": 52, "context": 12, "width": 8, "layers": 1, "heads": 2}
SYSTEMS = {
    "class_conditional": (3, None),
    "inpainter": (7, None),
    "glide": (3, TEXT),
    "glide_inpainter": (7, TEXT),
    "glide_upsampler": (6, TEXT),
    "glide_upsampler_inpainter": (10, TEXT),
}
BASES = {"inpainter": "class_conditional", "glide_inpainter": "glide", "glide_upsampler_inpainter": "glide_upsampler"}


def recipe(system: str, start: str = "", steps: int = 4) -> Recipe:
    channels, text = SYSTEMS[system]
    network = {
        "size": 8,
        "channels": 8,
        "channel_mult": [1, 2],
        "blocks": 1,
        "attention": [4],
        "in_channels": channels,
        "out_channels": 6,
        "heads": 2,
        "groups": 4,
    }
    network |= {"text": text} if text else {"classes": 9}
    data = {"name": "scenes", "images": 24, "tokenizer": "scenes"} if text else {"name": "shapes", "images": 24}
    training = {"steps": steps, "batch": 4, "warmup": 0, "checkpoint_every": 2}
    values = {"name": system, "system": system, "network": network, "data": data, "training": training}
    more = {"predicts": "v", "variance": "learned_range", "label_dropout": 0.5, "factor": 2, "start": start}
    return from_dict(Recipe, values | more)


def system_of(name: str, seed: int = 0):
    """A system with every parameter random."""
    return awake(build(recipe(name)), 0.2, seed, torch.float32).requires_grad_(False)


@pytest.fixture
def base(tmp_path):
    """From the name of an inpainter to its base, and the path of the base's published weights (float16)."""

    def made(name):
        system, path = system_of(BASES[name]), tmp_path / "base.safetensors"
        system.load_state_dict({k: v.half().float() for k, v in system.state_dict().items()})
        export_weights(system.state_dict(), path, {"name": "base"})
        return system, str(path)

    return made


def scene(name, n=3, seed=0):
    """Random x, image and masks, and what the base of that system is given."""
    generator = torch.Generator().manual_seed(seed)
    x, image = randn((2, n, 3, 8, 8), generator)
    told = torch.arange(n) - 1
    if "glide" in name:
        told = torch.randint(0, 52, (n, 12), generator=generator)
    if "upsampler" in name:
        told = Small(told, randn((n, 3, 4, 4), generator))
    return x, image.clamp(-1, 1), random_masks(n, 8, generator), told


@pytest.mark.parametrize("name", list(BASES))
def test_an_inpainter_begins_as_its_base_bit_for_bit(name, base):
    theirs, path = base(name)
    ours = begun(recipe(name, path)).eval().requires_grad_(False)
    x, image, mask, told = scene(name)
    for t in (0, 500, 999):
        level = ours.schedule.level(t)
        plain, masked = theirs(x, level, told), ours(x, level, Masked(told, image, mask))
        assert torch.equal(plain.value, masked.value) and torch.equal(plain.fraction, masked.fraction)
    first = ours.network.input_blocks[0][0].weight
    assert first[:, 3:7].abs().max() == 0 and first[:, :3].abs().min() > 0
    loss = ours.requires_grad_().loss(image, told.told if "upsampler" in name else told, torch.Generator())["loss"]
    loss.sum().backward()
    assert first.grad[:, 3:7].abs().max() > 0, "the new weights learn from the first step on"


@pytest.mark.parametrize("name", list(BASES))
def test_the_network_sees_x_then_the_known_part_then_the_mask_then_the_small_image(name):
    system, (x, image, mask, told) = system_of(name), scene(name)
    seen = []
    system.network.input_blocks[0][0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    system(x, system.schedule.level(500), Masked(told, image, mask))
    (seen,) = seen
    assert torch.equal(seen[:, :3], x) and torch.equal(seen[:, 3:6], image * mask) and torch.equal(seen[:, 6:7], mask)
    if "upsampler" in name:
        assert torch.equal(seen[:, 7:], system.enlarged(told.image))


def test_what_is_not_known_is_not_seen():
    system, (x, image, mask, told) = system_of("inpainter"), scene("inpainter")
    other = torch.where(mask.bool(), image, 0.3)
    level = system.schedule.level(300)
    assert torch.equal(
        system(x, level, Masked(told, image, mask)).value, system(x, level, Masked(told, other, mask)).value
    )


@pytest.mark.parametrize("name", ["inpainter", "glide_inpainter"])
def test_known_pixels_come_back_and_the_rest_is_painted(name):
    system, (_, image, mask, told) = system_of(name), scene(name)
    known = mask.bool().expand_as(image)
    one = system.sample(told, image, mask, 2.0, 5, sampler=ancestral(), generator=sample_generators(0, range(3)))
    other = system.sample(told, image, mask, 2.0, 5, sampler=ancestral(), generator=sample_generators(1, range(3)))
    assert torch.equal(one[known], image[known]) and torch.equal(other[known], image[known])
    assert (one[~known] - other[~known]).abs().max() > 0.1
    just_one = (part[1:2] for part in (told, image, mask))
    alone = system.sample(*just_one, 2.0, 5, sampler=ancestral(), generator=sample_generators(0, [1]))
    torch.testing.assert_close(alone, one[1:2], rtol=0, atol=1e-5)


def test_captions_and_one_picture_for_all():
    system, (_, image, _, _) = system_of("glide_inpainter"), scene("glide_inpainter")
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    drawn = system.sample(["a red ring", "a blue cross"], image[:1], mask, steps=2, generator=torch.Generator())
    assert torch.equal(drawn[..., :4], image[:1, ..., :4].expand(2, -1, -1, -1))
    with pytest.raises(ValueError, match="own sampler"):
        system.sample(
            ["a red ring"], image[:1], mask, steps="2", rule="adm", log_prob=lambda x, level: x.sum((1, 2, 3))
        )


def test_the_upsampler_keeps_what_is_known_of_the_large_image():
    system, (_, image, mask, told) = system_of("glide_upsampler_inpainter"), scene("glide_upsampler_inpainter")
    assert isinstance(system, GlideUpsamplerInpainter)
    draw = lambda small: system.sample(told.told, small, image, mask, steps=3, generator=sample_generators(0, range(3)))
    known, drawn = mask.bool().expand_as(image), draw(told.image)
    assert torch.equal(drawn[known], image[known])
    assert (draw(-told.image) - drawn).abs().max() > 1e-3, "the small image matters"


def test_captions_are_dropped_per_sample_and_pictures_are_not():
    system = system_of("glide_inpainter")
    n = 400
    told, image, mask = torch.zeros(n, 12).long(), torch.ones(n, 3, 8, 8), torch.ones(n, 1, 8, 8)
    shown = system.dropped(Masked(told, image, mask), torch.Generator().manual_seed(0))
    hidden = (shown.told < 0).all(1)
    assert abs(hidden.float().mean() - 0.5) < 4.5 * 0.5 / n**0.5
    assert shown.image is image and shown.mask is mask


@pytest.mark.parametrize("name", ["inpainter", "glide_upsampler_inpainter"])
def test_training_shows_random_masks_of_the_pictures(name):
    system, (_, image, _, told) = system_of(name), scene(name)
    told = told.told if "upsampler" in name else told
    given = system.shown(image, told, sample_generators(0, range(3)))
    assert given.image is image and torch.equal(given.mask, random_masks(3, 8, sample_generators(0, range(3))))
    if "upsampler" in name:
        assert torch.equal(given.told.image, system.reduced(image)) and given.told.told is told
    losses = system.loss(image, told, sample_generators(1, range(3)))["loss"]
    again = system.loss(image[1:], told[1:], sample_generators(1, [1, 2]))["loss"]
    torch.testing.assert_close(losses[1:], again, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8), "masks"),
        (torch.zeros(2, 3, 16, 16), torch.zeros(2, 1, 16, 16), "images"),
        (torch.zeros(2, 3, 8, 8), torch.full((2, 1, 8, 8), 0.5), "mask holds"),
    ],
)
def test_what_an_inpainter_refuses(image, mask, message):
    system = system_of("inpainter")
    with pytest.raises(ValueError, match=message):
        system(torch.zeros(2, 3, 8, 8), system.schedule.level(3), Masked(torch.tensor([0, 1]), image, mask))


def test_an_inpainter_needs_four_channels_more():
    network, schedule = build(recipe("class_conditional")).network, build(recipe("inpainter")).schedule
    with pytest.raises(ValueError, match="7 input channels"):
        Inpainter(network, schedule, "v", "learned_range", 8)
    assert isinstance(ClassConditional(network, schedule, "v", "learned_range", 8), ClassConditional)


# --- the start of a recipe ------------------------------------------------------------------------------------------


def test_widened_keeps_the_old_and_adds_zeros_behind_x():
    weight = torch.randn(4, 6, 3, 3)
    out = widened(weight, 10, 3)
    assert torch.equal(out[:, :3], weight[:, :3]) and torch.equal(out[:, 7:], weight[:, 3:])
    assert out[:, 3:7].abs().max() == 0 and out.shape == (4, 10, 3, 3)
    assert torch.equal(widened(weight, 6, 3), weight)
    with pytest.raises(ValueError, match="cannot widen"):
        widened(weight, 5, 3)


def test_a_start_that_does_not_fit_is_refused(base):
    _, path = base("inpainter")
    with pytest.raises(ValueError, match="does not fit"):
        begun(recipe("glide_inpainter", path))
    with pytest.raises(ValueError, match="no checkpoint 'glid'"):
        begun(recipe("glide_inpainter", "glid"))
    with pytest.raises(ValueError, match="no checkpoint at"):
        begun(recipe("glide_inpainter", "nowhere.safetensors"))


def test_a_part_that_begins_anew_may_have_another_layout(base):
    theirs, path = base("glide_inpainter")
    deeper = recipe("glide", path)
    shallow = replace(deeper, network=replace(deeper.network, text=replace(deeper.network.text, layers=0)))
    with pytest.raises(ValueError, match="does not fit"):
        begun(shallow)
    mine = begun(replace(shallow, fresh=("network.text",))).state_dict()
    assert not any("resblocks" in name for name in mine)
    for name, value in theirs.state_dict().items():
        assert name.startswith("network.text.") or torch.equal(mine[name], value), name


def test_fine_tuning_begins_at_its_start_and_resumes_without_it(base, tmp_path):
    """Training from a start, interrupted, ends with the same weights; the start is in the recipe."""
    theirs, path = base("inpainter")
    plan = recipe("inpainter", path)
    assert from_dict(Recipe, plan.to_dict()).start == path

    def stopped(folder, after):
        seen = []

        def made(given):
            system = begun(given)
            step = system.loss

            def loss(*arguments):
                seen.append(1)
                if len(seen) > after:
                    raise KeyboardInterrupt
                return step(*arguments)

            system.loss = loss
            return system

        with pytest.raises(KeyboardInterrupt):
            train(plan, made, folder, cpu=True, quiet=True)

    train(plan, begun, tmp_path / "whole", cpu=True, quiet=True)
    stopped(tmp_path / "parts", 3)
    train(plan, begun, tmp_path / "parts", cpu=True, quiet=True)
    whole, parts = (load_checkpoint(tmp_path / name / "last.safetensors")[0] for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[k], parts[k]) for k in whole)
    moved = whole["model.network.time_embed.0.weight"] - theirs.network.time_embed[0].weight
    assert 0 < moved.abs().max() < 0.1, "four steps from the base, not from a new network"


def test_the_recipe_of_the_small_inpainter_is_that_of_its_base_with_four_channels_more():
    ours, theirs = load_recipe("glide-inpaint").to_dict(), load_recipe("glide").to_dict()
    assert ours["start"] == theirs["name"]
    assert ours["network"].pop("in_channels") == theirs["network"].pop("in_channels") + 4
    for key in ("network", "data", "schedule", "predicts", "variance", "label_dropout"):
        assert ours[key] == theirs[key], key
