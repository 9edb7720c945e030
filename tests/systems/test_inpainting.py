"""Inpainters: what they see and in which order, that they start as their base, keep what is known, and resume."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import awake, seeded

from minidiff.data.masks import random_masks
from minidiff.guidance import cfg
from minidiff.random import randn, sample_generators
from minidiff.recipes import Recipe, load_recipe
from minidiff.sampler import ancestral
from minidiff.store import begun
from minidiff.systems.diffusion import Diffusion
from minidiff.systems.draw import draw
from minidiff.systems.inpainting import widened
from minidiff.systems.parts import Known
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
    data = {"name": "scenes", "tokenizer": "scenes"} if text else {"name": "shapes"}
    data |= {"size": 8, "images": 24}
    training = {"steps": steps, "batch": 4, "warmup": 0, "checkpoint_every": 2}
    options = {"name": system, "predicts": "v", "variance": "learned", "drop": 0.5}
    options |= {"factor": 2} if "upsampler" in system else {}
    values = {"name": system, "system": options, "network": network, "data": data, "training": training}
    return Recipe.from_plain(values | {"start": start})


def system_of(name: str, seed: int = 0):
    """A system with every parameter random."""
    return awake(recipe(name).build(), 0.2, seed, torch.float32).requires_grad_(False)


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
    """Random x, image and masks, and the values that the base of that system is told."""
    generator = torch.Generator().manual_seed(seed)
    x, image = randn((2, n, 3, 8, 8), generator)
    told = {"label": torch.arange(n) - 1}
    if "glide" in name:
        told = {"caption": torch.randint(0, 52, (n, 12), generator=generator)}
    if "upsampler" in name:
        told["low_res"] = randn((n, 3, 4, 4), generator)
    return x, image.clamp(-1, 1), random_masks(n, 8, generator), told


@pytest.mark.parametrize("name", list(BASES))
def test_an_inpainter_begins_as_its_base_bit_for_bit(name, base):
    theirs, path = base(name)
    ours = begun(recipe(name, path)).eval().requires_grad_(False)
    x, image, mask, told = scene(name)
    for t in (0, 500, 999):
        level = ours.schedule.level(t)
        plain = theirs(x, level, theirs.condition(**told))
        masked = ours(x, level, ours.condition(known=(image, mask), **told))
        assert torch.equal(plain.value, masked.value) and torch.equal(plain.fraction, masked.fraction)
    first = ours.network.input_blocks[0][0].weight
    assert first[:, 3:7].abs().max() == 0 and first[:, :3].abs().min() > 0
    loss = ours.requires_grad_().loss({"image": image, **told}, torch.Generator())["loss"]
    loss.sum().backward()
    assert first.grad[:, 3:7].abs().max() > 0, "the new weights learn from the first step on"


@pytest.mark.parametrize("name", list(BASES))
def test_the_network_sees_x_then_the_known_part_then_the_mask_then_the_small_image(name):
    system, (x, image, mask, told) = system_of(name), scene(name)
    seen = []
    system.network.input_blocks[0][0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    system(x, system.schedule.level(500), system.condition(known=(image, mask), **told))
    (seen,) = seen
    assert torch.equal(seen[:, :3], x) and torch.equal(seen[:, 3:6], image * mask) and torch.equal(seen[:, 6:7], mask)
    if "upsampler" in name:
        assert torch.equal(seen[:, 7:], system.part("low_res").upsample(told["low_res"]))


def test_what_is_not_known_is_not_seen():
    system, (x, image, mask, told) = system_of("inpainter"), scene("inpainter")
    other = torch.where(mask.bool(), image, 0.3)
    level = system.schedule.level(300)
    one, two = (system(x, level, system.condition(known=(seen, mask), **told)).value for seen in (image, other))
    assert torch.equal(one, two)


@pytest.mark.parametrize("name", ["inpainter", "glide_inpainter"])
def test_known_pixels_come_back_and_the_rest_is_painted(name):
    system, (_, image, mask, told) = system_of(name), scene(name)
    known = mask.bool().expand_as(image)
    ((key, value),) = told.items()
    options = {"guide": cfg(2.0), "levels": 5, "sampler": ancestral()}
    one, other = (
        draw(system, 3, generator=sample_generators(seed, range(3)), known=(image, mask), **told, **options)
        for seed in (0, 1)
    )
    assert torch.equal(one[known], image[known]) and torch.equal(other[known], image[known])
    assert (one[~known] - other[~known]).abs().max() > 0.1
    just_one = {key: value[1:2], "known": (image[1:2], mask[1:2])}
    alone = draw(system, 1, generator=sample_generators(0, [1]), **just_one, **options)
    torch.testing.assert_close(alone, one[1:2], rtol=0, atol=1e-5)


def test_captions_and_one_picture_for_all():
    system, (_, image, _, _) = system_of("glide_inpainter"), scene("glide_inpainter")
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    told = {"caption": ["a red ring", "a blue cross"], "known": (image[:1], mask)}
    drawn = draw(system, 2, levels=2, generator=torch.Generator(), **told)
    assert torch.equal(drawn[..., :4], image[:1, ..., :4].expand(2, -1, -1, -1))


def test_the_upsampler_keeps_what_is_known_of_the_large_image():
    system, (_, image, mask, told) = system_of("glide_upsampler_inpainter"), scene("glide_upsampler_inpainter")
    ask = lambda small: draw(
        system, 3, levels=3, generator=sample_generators(0, range(3)), known=(image, mask), **told | {"low_res": small}
    )
    known, drawn = mask.bool().expand_as(image), ask(told["low_res"])
    assert torch.equal(drawn[known], image[known])
    assert (ask(-told["low_res"]) - drawn).abs().max() > 1e-3, "the small image matters"


def test_captions_are_dropped_per_sample_and_pictures_are_not():
    system = system_of("glide_inpainter")
    n = 400
    tokens, image, mask = torch.zeros(n, 12).long(), torch.ones(n, 3, 8, 8), torch.ones(n, 1, 8, 8)
    caption, known = system.parts
    hidden = (caption.drop(system.network, tokens, seeded()) < 0).all(1)
    assert caption.p_drop == 0.5 and abs(hidden.float().mean() - 0.5) < 4.5 * 0.5 / n**0.5
    shown = known.drop(system.network, (image, mask), seeded())
    assert shown[0] is image and shown[1] is mask
    assert all(a is b for a, b in zip(known.null(system.network, shown), shown, strict=True)), "it has no null"


@pytest.mark.parametrize("name", ["inpainter", "glide_upsampler_inpainter"])
def test_training_shows_random_masks_of_the_pictures(name):
    system, (_, image, _, told) = system_of(name), scene(name)
    batch = {"image": image, **told}
    seen, mask = system.part("known").observe(batch, sample_generators(0, range(3)))
    assert seen is image and torch.equal(mask, random_masks(3, 8, sample_generators(0, range(3))))
    if "upsampler" in name:
        (small,) = system.part("low_res").observe(batch)
        assert torch.equal(small, torch.nn.functional.avg_pool2d(image, 2))
    losses = system.loss(batch, sample_generators(1, range(3)))["loss"]
    again = system.loss({k: v[1:] for k, v in batch.items()}, sample_generators(1, [1, 2]))["loss"]
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
        system.condition(label=[0, 1], known=(image, mask))


def test_an_inpainter_needs_four_channels_more():
    theirs, ours = recipe("class_conditional").build(), recipe("inpainter").build()
    with pytest.raises(ValueError, match="7 input channels, got 3"):
        Diffusion(theirs.network, ours.schedule, [*theirs.parts, Known()], "v", "learned")
    with pytest.raises(ValueError, match="3 input channels, got 7"):
        Diffusion(ours.network, ours.schedule, theirs.parts, "v", "learned")


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
    with pytest.raises(ValueError, match="no checkpoint, run or preset 'glid'"):
        begun(recipe("glide_inpainter", "glid"))
    with pytest.raises(ValueError, match=r"goes on from nowhere\.safetensors, which is not here"):
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
    assert Recipe.from_plain(plan.to_plain()).start == path

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
    ours, theirs = load_recipe("glide-inpaint").to_plain(), load_recipe("glide").to_plain()
    assert ours["start"] == theirs["name"]
    assert ours["network"].pop("in_channels") == theirs["network"].pop("in_channels") + 4
    assert (ours["system"].pop("name"), theirs["system"].pop("name")) == ("glide_inpainter", "glide")
    for key in ("network", "data", "schedule", "system"):
        assert ours[key] == theirs[key], key
