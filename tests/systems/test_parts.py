"""What a system is told, part by part: what each reads and refuses, by which doors it enters, what training shows."""

from __future__ import annotations

import math
import re

import pytest
import torch
import torch.nn.functional as F
from helpers import TINY, awake, seeded, tiny

from minidiff.data.masks import random_masks
from minidiff.data.tokenizer import tokenizer
from minidiff.models.layers import timestep_embedding
from minidiff.random import sample_generators
from minidiff.recipes import load_recipe
from minidiff.schedule import clipped_cosine_schedule
from minidiff.systems.diffusion import Diffusion
from minidiff.systems.parts import TOLD, Caption, Known, Label, LowRes

SHAPE = (3, 8, 8)
UNTEXTED, TEXT = ["network.classes=6", "system.drop=0.1"], ["network.text.width=8", "network.text.heads=2"]


@pytest.fixture(scope="module")
def labelled():
    return tiny("shapes8", *UNTEXTED)


@pytest.fixture(scope="module")
def captioned():
    return tiny("glide", *TEXT)


# --- labels ---------------------------------------------------------------------------------------------------------


def test_labels_however_they_are_written():
    part = Label(5, nullable=True, p_drop=0.1)
    for value in (3, torch.tensor(3), [3], (3,), torch.tensor([3], dtype=torch.int32)):
        read = part.read(value, SHAPE)
        assert read.dtype == torch.long and read.tolist() == [3]
    assert part.read([0, 4, -1], SHAPE).tolist() == [0, 4, -1]


@pytest.mark.parametrize("value", [5, -2, [0, 5], 1.0, [[1, 2]], torch.tensor([0.0])])
def test_labels_out_of_range(value):
    with pytest.raises(ValueError, match=re.escape("labels must be (B,) integers from -1 to 4, got ")):
        Label(5, nullable=True).read(value, SHAPE)


def test_a_null_label_is_the_last_row_of_the_embedding(labelled):
    part, network = labelled.part("label"), labelled.network
    assert part.n_classes == 5 and part.nullable and part.p_drop == 0.1
    encoded = part.encode(network, torch.tensor([2, -1]))
    assert torch.equal(encoded.vector, network.label_emb.weight[[2, 5]])
    assert encoded.tokens is encoded.image is None
    assert part.nothing(network, 3).tolist() == [-1, -1, -1]


def test_without_a_row_for_it_there_is_no_null():
    with pytest.raises(ValueError, match="from 0 to 4, got -1"):
        Label(5).read(-1, SHAPE)
    with pytest.raises(ValueError, match=r"dropped with probability 0.1, but the embedding has no row for the null"):
        Label(5, p_drop=0.1)
    value = torch.tensor([3, 1])
    assert Label(5).null(torch.nn.Module(), value) is value


@pytest.mark.parametrize(("classes", "part"), [(6, Label(6, True)), (6, Label(5)), (None, Label(5))])
def test_the_embedding_has_a_row_for_each_class_and_the_null(classes, part):
    network = tiny("shapes8", f"network.classes={'null' if classes is None else classes}", "system.drop=0").network
    with pytest.raises(ValueError, match=f"{part.n_classes} classes need network.classes = .*, got {classes}"):
        Diffusion(network, clipped_cosine_schedule(), [part])


def test_labels_are_answered_in_turn():
    part = Label(3)
    values, numbers = part.answer({"label": [2, 0]}, 5, SHAPE)
    assert values.tolist() == numbers.tolist() == [2, 0, 2, 0, 2]
    assert part.answer({}, 4, SHAPE)[0].tolist() == [0, 1, 2, 0], "all of them where none is asked for"


# --- captions -------------------------------------------------------------------------------------------------------


def test_captions_however_they_are_written():
    part = Caption(tokenizer("scenes"))
    tokens = tokenizer("scenes")(["a red ring", "a small star"])
    assert torch.equal(part.read("a red ring", SHAPE), tokens[:1])
    assert torch.equal(part.read(["a red ring", "a small star"], SHAPE), tokens)
    assert torch.equal(part.read(("a red ring", "a small star"), SHAPE), tokens)
    assert part.read(tokens, SHAPE) is tokens
    with pytest.raises(ValueError, match="no word 'rde' here"):
        part.read("a rde ring", SHAPE)


def test_a_caption_enters_as_a_vector_and_as_tokens(captioned):
    part = captioned.part("caption")
    tokens = part.read(["a red ring", ""], SHAPE)
    encoded = part.encode(captioned.network, tokens)
    vector, sequence = captioned.network.text(tokens)
    assert torch.equal(encoded.vector, vector) and torch.equal(encoded.tokens, sequence) and encoded.image is None
    assert torch.equal(part.nothing(captioned.network, 1), tokens[1:]), "the null is the empty caption"
    pooled = tiny("glide-pooled", *TEXT)
    assert pooled.part("caption").encode(pooled.network, tokens).tokens is None


def test_a_caption_needs_a_network_that_reads_it(captioned, labelled):
    with pytest.raises(ValueError, match="needs a network with a text transformer"):
        Diffusion(labelled.network, clipped_cosine_schedule(), [Caption(tokenizer("scenes"))])
    with pytest.raises(ValueError, match=r"reads 12 of \d+ tokens, but the tokenizer 'clip' writes 77 of 49408"):
        Diffusion(captioned.network, clipped_cosine_schedule(), [Caption(tokenizer("clip"))])


def test_captions_are_answered_in_turn():
    part = Caption(tokenizer("scenes"))
    values, numbers = part.answer({"caption": ["a star", "a disc"]}, 3, SHAPE)
    assert torch.equal(values, tokenizer("scenes")(["a star", "a disc", "a star"])) and numbers.tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match="draws captions"):
        part.answer({"caption": []}, 3, SHAPE)


# --- small images ---------------------------------------------------------------------------------------------------


def weights_of(name, x):
    """The kernel of an interpolation at distances x, in pixels of the small image: a hat, or Keys' cubic (a = -3/4)."""
    x = x.abs()
    if name == "bilinear":
        return (1 - x).clamp(min=0)
    near = 1.25 * x**3 - 2.25 * x**2 + 1
    far = -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("factor", [2, 4])
def test_enlarging_is_interpolation_between_the_centres_of_pixels(mode, factor):
    """Pixel i of the large image lies at (i + 1/2) / factor - 1/2 of the small one, whose edges repeat."""
    small = torch.rand(2, 3, 5, 4, generator=seeded(), dtype=torch.float64)
    out = small
    for axis in (2, 3):
        n = small.shape[axis]
        place = (torch.arange(factor * n, dtype=torch.float64) + 0.5) / factor - 0.5
        matrix = torch.zeros(factor * n, n, dtype=torch.float64)
        for j in range(-3, n + 3):
            matrix[:, min(max(j, 0), n - 1)] += weights_of(mode, place - j)
        out = torch.einsum("ij,bcj...->bci...", matrix, out.movedim(axis, 2)).movedim(2, axis)
    torch.testing.assert_close(LowRes(factor, mode=mode).upsample(small), out, rtol=0, atol=1e-12)


@pytest.mark.parametrize("factor", [2, 4])
def test_reducing_averages(factor):
    """The area average; bicubically, the cubic (a = -1/2) stretched over the large pixels and normalised."""
    images = torch.rand(2, 3, 8, 8, generator=seeded(), dtype=torch.float64)
    blocks = images.unflatten(3, (8 // factor, factor)).unflatten(2, (8 // factor, factor)).mean((3, 5))
    torch.testing.assert_close(LowRes(factor).downsample(images), blocks)
    x = (torch.arange(8.0).double() + 0.5)[None] / factor - 0.5 - torch.arange(8 // factor)[:, None]
    x = x.abs()
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weight = torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))
    weight = weight / weight.sum(1, keepdim=True)
    expected = torch.einsum("ik,jl,bckl->bcij", weight, weight, images)
    torch.testing.assert_close(LowRes(factor, mode="bicubic").downsample(images), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"factor": 0}, "factor must be a whole number >= 1, got 0"),
        ({"factor": 2, "mode": "nearest"}, "is accepted, got 'nearest'"),
        ({"factor": 2, "augment": 1.1}, "augment must be a number from 0 to 1, got 1.1"),
        ({"factor": 2, "augment": -0.1}, "augment must be a number from 0 to 1, got -0.1"),
    ],
)
def test_small_images_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        LowRes(**arguments)


def test_what_is_enlarged_has_the_right_shape():
    part = LowRes(2)
    assert part.small_shape((3, 8, 6)) == (3, 4, 3)
    image = torch.zeros(2, 3, 4, 4)
    for value in (image, (image,), [image]):
        (read,) = part.read(value, SHAPE)
        assert read is image
    with pytest.raises(ValueError, match=re.escape("enlarges (B, 3, 4, 4), got (2, 3, 8, 8)")):
        part.read(torch.zeros(2, 3, 8, 8), SHAPE)
    with pytest.raises(ValueError, match="without noise in the small image: it is told no level"):
        part.read((image, 0.1), SHAPE)


def test_the_level_of_the_noise_is_told_one_for_all_or_one_for_each():
    part, image = LowRes(2, augment=0.5), torch.zeros(3, 3, 4, 4)
    level = lambda value: part.read(value, SHAPE)[1].tolist()
    assert level(image) == level((image,)) == [0, 0, 0], "no noise where none is said"
    assert level((image, 0.5)) == level((image, torch.tensor(0.5))) == [0.5] * 3
    assert level((image, torch.tensor([0.0, 0.25, 0.5]))) == [0, 0.25, 0.5]


@pytest.mark.parametrize("sigma", [-0.1, 0.51, 1.0, math.nan, torch.tensor([0.1, 0.2, 0.6])])
def test_a_level_that_training_did_not_show_is_refused(sigma):
    with pytest.raises(ValueError, match=re.escape("from 0 to 0.5, as in training")):
        LowRes(2, augment=0.5).read((torch.zeros(3, 3, 4, 4), sigma), SHAPE)


def test_as_many_levels_as_small_images_or_one():
    system = tiny("shapes8-16", *UNTEXTED)
    image, levels = torch.zeros(1, 3, 4, 4), torch.tensor([0.1, 0.2, 0.3])
    condition = system.condition(low_res=(image, levels), label=0)
    assert condition.vector.shape[0] == condition.image.shape[0] == 3, "one picture at three levels"
    with pytest.raises(ValueError, match="3 samples take 1 or 3 values of 'low_res', got 2, 3"):
        system.condition(low_res=(image.expand(3, -1, -1, -1), levels[:2]), label=0)


def test_noise_in_a_small_image_keeps_its_variance():
    """z = sqrt(1 - sigma^2) y + sigma eps, sigma of each sample its own."""
    y, sigma = torch.randn(2, 3, 4, 4, generator=seeded(1)), torch.tensor([0.3, 1.0])
    eps = torch.randn(2, 3, 4, 4, generator=seeded(2))
    z = LowRes.noised(y, sigma, seeded(2))
    torch.testing.assert_close(z[0], math.sqrt(1 - 0.09) * y[0] + 0.3 * eps[0])
    torch.testing.assert_close(z[1], eps[1])
    assert torch.equal(LowRes.noised(y, torch.zeros(2), seeded(2)), y)


def test_training_noises_each_small_image_by_a_level_of_its_own_and_tells_it():
    part, images = LowRes(2, augment=0.5), torch.rand(500, 3, 8, 8, generator=seeded()) * 2 - 1
    z, sigma = part.observe({"image": images}, seeded(3))
    assert sigma.shape == (500,) and sigma.min() >= 0 and sigma.max() <= 0.5 and abs(sigma.mean() - 0.25) < 0.02
    assert abs(sigma.var() - 0.25 / 12) < 0.003, "uniform from 0 to augment"
    clean, (signal, noise) = part.downsample(images), ((1 - sigma**2).sqrt(), sigma)
    eps = (z - signal[:, None, None, None] * clean) / noise[:, None, None, None]
    assert abs(eps.mean()) < 0.02 and abs(eps.std() - 1) < 0.02
    (plain,) = LowRes(2).observe({"image": images})
    assert torch.equal(plain, clean)


def test_what_a_training_step_shows_does_not_depend_on_the_batch():
    part, images = LowRes(2, augment=0.5), torch.rand(3, 3, 8, 8)
    together = part.observe({"image": images}, sample_generators(0, range(3)))
    alone = part.observe({"image": images[2:]}, sample_generators(0, [2]))
    assert all(torch.equal(many[2:], one) for many, one in zip(together, alone, strict=True))


def test_the_level_enters_through_its_own_embedding():
    system = tiny("shapes8-16", *UNTEXTED, seed=2)
    small, sigma = torch.rand(2, 3, 4, 4), torch.tensor([0.1, 0.4])
    embedding = system.network.image_level_embed(timestep_embedding(TOLD * sigma, 8))
    condition = system.condition(label=[0, 3], low_res=(small, sigma))
    torch.testing.assert_close(condition.vector, system.network.label_emb(torch.tensor([0, 3])) + embedding)
    torch.testing.assert_close(condition.image, F.interpolate(small, (8, 8), mode="bilinear"))


def test_a_level_that_is_told_needs_a_door_and_a_door_needs_a_level():
    with pytest.raises(ValueError, match="the network needs image_level=True"):
        tiny("shapes8-16", *UNTEXTED, "network.image_level=false")
    with pytest.raises(ValueError, match="the network has image_level=True, but augment is 0"):
        tiny("shapes8-16-plain", *UNTEXTED, "network.image_level=true")
    with pytest.raises(ValueError, match=re.escape("in (0, 1], got 0.0")):
        tiny("shapes8-16", *UNTEXTED, "system.augment=0.0")
    with pytest.raises(ValueError, match="size 8 must be divisible by the factor, got 3"):
        tiny("shapes8-16-plain", *UNTEXTED, "system.factor=3")


# --- known pixels ---------------------------------------------------------------------------------------------------


def known_scene(n=3):
    return torch.rand(n, 3, 8, 8, generator=seeded()) * 2 - 1, random_masks(n, 8, seeded(1))


def test_what_is_known_then_the_mask():
    part, (image, mask) = Known(), known_scene()
    assert part.channels == 4 and Known(1).channels == 2
    seen = part.encode(torch.nn.Module(), part.read((image, mask), SHAPE)).image
    assert torch.equal(seen[:, :3], image * mask) and torch.equal(seen[:, 3:], mask)
    hidden = torch.where(mask.bool(), image, 0.7)
    assert torch.equal(part.encode(torch.nn.Module(), (hidden, mask)).image, seen), "what is not known is not seen"
    as_booleans = part.read((image, mask.bool()), SHAPE)[1]
    assert torch.equal(as_booleans, mask) and as_booleans.dtype == image.dtype


@pytest.mark.parametrize(
    "mask", [torch.full((2, 1, 8, 8), 0.5), torch.full((2, 1, 8, 8), -1.0), torch.full((2, 1, 8, 8), 255)]
)
def test_a_mask_is_zeros_and_ones(mask):
    with pytest.raises(ValueError, match="a mask holds 1 where a pixel is known and 0"):
        Known().read((torch.zeros(2, 3, 8, 8), mask), SHAPE)


@pytest.mark.parametrize(
    ("image", "mask"), [((2, 3, 8, 8), (2, 3, 8, 8)), ((2, 3, 4, 4), (2, 1, 4, 4)), ((2, 1, 8, 8), (2, 1, 8, 8))]
)
def test_pictures_and_masks_of_another_shape(image, mask):
    message = f"takes images (B, 3, 8, 8) and masks (B, 1, 8, 8), got {image} and {mask}"
    with pytest.raises(ValueError, match=re.escape(message)):
        Known().read((torch.zeros(image), torch.zeros(mask)), SHAPE)


def test_training_hides_parts_at_random_per_sample():
    part, (image, _) = Known(), known_scene()
    seen, mask = part.observe({"image": image}, sample_generators(0, range(3)))
    assert seen is image and torch.equal(mask, random_masks(3, 8, sample_generators(0, range(3))))
    _, alone = part.observe({"image": image[1:2]}, sample_generators(0, [1]))
    assert torch.equal(mask[1:2], alone)


def test_known_pixels_are_imposed():
    from minidiff.prediction import Prediction

    part, (image, mask) = Known(), known_scene()
    level, x = clipped_cosine_schedule().level(400), torch.randn(3, 3, 8, 8, generator=seeded(5))
    free = lambda x, level: Prediction(x, level, torch.full_like(x, 0.25), "x0")
    imposed = part.impose(free, (image, mask))(x, level)
    torch.testing.assert_close(imposed.x0, torch.where(mask.bool(), image, 0.25))
    torch.testing.assert_close(level.alpha * imposed.x0 + level.sigma * imposed.eps, x)


def test_a_picture_that_is_read_from_files(tmp_path):
    from minidiff.pictures import save_grid

    save_grid(torch.rand(1, 3, 16, 16), tmp_path / "x.png", least=16)
    small, none = LowRes(2).answer({"image": tmp_path / "x.png"}, 1, SHAPE)
    assert small.shape == (1, 3, 4, 4) and none is None
    with pytest.raises(ValueError, match="name a small picture with --image"):
        LowRes(2).answer({}, 1, SHAPE)
    with pytest.raises(ValueError, match="name it with --edit"):
        Known().answer({}, 1, SHAPE)


def test_parts_hold_no_parameters():
    """So a network's names do not depend on them."""
    for name, changes in (("shapes8-16", UNTEXTED), ("glide-inpaint", TEXT)):
        system = awake(load_recipe(name, [*TINY, *changes]).build(), 0.1, 0, torch.float32)
        assert {key.split(".")[0] for key in system.state_dict()} == {"network"}
