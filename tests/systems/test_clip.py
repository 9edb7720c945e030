"""CLIP as a system: its loss, its critic, guidance by it, its recipes, and released models behind one interface."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import small_open_clip

from minidiff import store
from minidiff.data.sets import load_set
from minidiff.data.tokenizer import tokenizer
from minidiff.guidance import classifier_guidance, clip_guidance, mean_shift_guidance
from minidiff.models.clip import CLIPConfig, NoisedCLIP, Towers
from minidiff.models.unet import UNetConfig
from minidiff.pmi import pointwise_mutual_information, residual
from minidiff.random import randn, sample_generators
from minidiff.recipes import Recipe, load_recipe
from minidiff.schedule import DATA, clipped_cosine_schedule
from minidiff.systems.clip import CLIP
from minidiff.training import publish as publishing
from minidiff.training.loop import train
from minidiff.training.publish import heldout_metrics, publish

CAPTIONS = ["a red ring above a blue square", "a small star", "an orange heart and a disc"]
TINY = [
    "data.images=40", "network.width=16", "network.layers=1", "network.heads=2", "network.text_width=8",
    "network.text_layers=1", "network.text_heads=2", "network.embedding=6", "training.batch=16", "training.steps=3",
]  # fmt: skip


def system(name="scenes-clip-noisy", *changes) -> CLIP:
    """A small CLIP with random weights."""
    torch.manual_seed(0)
    return load_recipe(name, [*TINY, *changes]).build().eval()


@pytest.fixture(params=["scenes-clip", "scenes-clip-noisy"])
def clip(request):
    """A clean and a noised one."""
    return system(request.param)


@pytest.fixture
def x():
    return randn((3, 3, 16, 16), torch.Generator().manual_seed(1)).clamp(-1, 1)


# --- embeddings and the critic --------------------------------------------------------------------------------------


def test_embeddings_have_length_one(clip, x):
    z_i, z_t = clip.embed_images(x), clip.embed_texts(CAPTIONS)
    for z in (z_i, z_t):
        assert z.shape == (3, 6)
        torch.testing.assert_close(z.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(clip.similarity(x, CAPTIONS), z_i @ z_t.T)
    assert torch.equal(z_t, clip.embed_texts(tokenizer("scenes")(CAPTIONS)))
    torch.testing.assert_close(z_t[1:2], clip.embed_texts("a small star"))
    assert clip.shape == (3, 16, 16)


def test_the_level_is_told_to_a_noised_clip_alone(clip, x):
    levels = [clip.schedule.level(t) for t in (3, 900)]
    a, b = (clip.embed_images(x, level) for level in levels)
    assert clip.noise_aware == isinstance(clip.network, NoisedCLIP)
    assert ((a - b).abs().max() > 1e-4) == clip.noise_aware
    each = clip.embed_images(x, clip.schedule.level(torch.tensor([3, 900, 3])))
    torch.testing.assert_close(each, torch.stack([a[0], b[1], a[2]]))


def test_the_critic_is_the_scaled_inner_product(clip, x):
    level = clip.schedule.level(200)
    cosine = (clip.embed_images(x, level) * clip.embed_texts(CAPTIONS)).sum(1)
    torch.testing.assert_close(clip.critic(CAPTIONS)(x, level), clip.logit_scale.exp() * cosine)
    torch.testing.assert_close(clip.critic(clip.tokens(CAPTIONS))(x, level), clip.critic(CAPTIONS)(x, level))
    table = clip.logit_scale.exp() * clip.similarity(x, CAPTIONS, level)
    torch.testing.assert_close(clip.critic("a small star")(x, level), table[:, 1])
    torch.testing.assert_close(clip.network(x, torch.full((3,), 200), clip.tokens(CAPTIONS)), table)


def test_its_gradient_is_that_of_the_cosine_over_the_temperature(clip, x):
    level = clip.schedule.level(200)
    x = x.requires_grad_()
    cosine = F.cosine_similarity(clip.network.image(x, torch.full((3,), 200)), clip.network.text(clip.tokens(CAPTIONS)))
    by_hand = clip.logit_scale.exp() * torch.autograd.grad(cosine.sum(), x)[0]
    torch.testing.assert_close(torch.autograd.grad(clip.critic(CAPTIONS)(x, level).sum(), x)[0], by_hand)
    assert by_hand.abs().max() > 1e-3


def test_texts_are_embedded_once(clip, x, monkeypatch):
    calls = []
    read = clip.network.text
    monkeypatch.setattr(clip.network, "text", lambda tokens: calls.append(len(tokens)) or read(tokens))
    guided = clip_guidance(clip, CAPTIONS, 2.0)(lambda x, level: prediction(x, level))
    for t in (900, 500, 100):
        guided(x, clip.schedule.level(t))
    assert calls == [3]


def test_as_many_captions_as_images(clip, x):
    with pytest.raises(ValueError, match="2 captions for 3 images; one for all, or one for each is accepted"):
        clip.critic(CAPTIONS[:2])(x, DATA)
    with pytest.raises(ValueError, match="no word 'rde' here: did you mean 'red'"):
        clip.critic("a rde ring")


# --- guidance -------------------------------------------------------------------------------------------------------


def prediction(x, level):
    from minidiff.prediction import Prediction

    return Prediction(x, level, torch.zeros_like(x), "eps")


class Counted:
    """A CLIP that is right: log p(x_t, c) / (p(x_t) p(c)) of a mixture, plus what one asks for."""

    def __init__(self, mixture, more=lambda x: 0.0):
        self.mixture, self.more = mixture, more

    def critic(self, label):
        classifier = self.mixture.classifier(label)
        prior = self.mixture.weights[self.mixture.labels == label].sum().log()
        return lambda x, level: classifier(x, level) - prior + self.more(x)


@pytest.mark.parametrize("t", [0, 300, 900])
def test_guidance_by_the_true_ratio_is_the_conditional_score(mixture, t, generator):
    """To rounding, at every level; a constant does not matter, a function of x does."""
    level, x = clipped_cosine_schedule().level(t), torch.randn(6, 2, generator=generator, dtype=torch.float64)
    expected = mixture(x, level, 1).eps
    for more in (lambda x: 0.0, lambda x: 3.0):
        guided = clip_guidance(Counted(mixture, more), 1, 1.0)(mixture)
        torch.testing.assert_close(guided(x, level).eps, expected, rtol=1e-9, atol=1e-9)
    biased = clip_guidance(Counted(mixture, lambda x: x.square().sum(1)), 1, 1.0)(mixture)
    torch.testing.assert_close(biased(x, level).eps, expected - level.sigma * 2 * x, rtol=1e-9, atol=1e-9)


def test_it_is_classifier_guidance_by_the_critic(clip, x):
    level, critic = clip.schedule.level(400), clip.critic(CAPTIONS)
    guided = clip_guidance(clip, CAPTIONS, 2.5)(prediction)(x, level)
    torch.testing.assert_close(guided.eps, classifier_guidance(prediction, critic, 2.5)(x, level).eps)
    torch.testing.assert_close(
        mean_shift_guidance(prediction, critic, 2.5)(x, level).tilt, -guided.eps / level.sigma, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_the_scale_is_finite(clip, scale):
    with pytest.raises(ValueError, match="scale must be a finite number"):
        clip_guidance(clip, CAPTIONS, scale)


# --- the loss -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("directions", ["both", "image-to-text", "text-to-image"])
def test_the_loss_by_hand(directions):
    clip = system("scenes-clip-noisy", f"system.directions={directions}")
    images, times = torch.rand(3, 3, 16, 16) * 2 - 1, torch.tensor([0, 400, 900])
    tokens, generators = clip.tokens(CAPTIONS), lambda: sample_generators(0, range(3))
    found = clip.loss({"image": images, "caption": tokens}, generators(), clip.schedule.level(times))
    eps = torch.stack([torch.randn(3, 16, 16, generator=g) for g in generators()])
    alpha_bar = clip.schedule.alpha_bar[times].view(3, 1, 1, 1)
    x_t = (alpha_bar.sqrt() * images + (1 - alpha_bar).sqrt() * eps).float()
    z_i = clip.network.image(x_t, times)
    z_t = clip.network.text(tokens)
    critic = (z_i / z_i.norm(dim=1, keepdim=True)) @ (z_t / z_t.norm(dim=1, keepdim=True)).T / 0.07
    rows = torch.stack([critic[i].logsumexp(0) - critic[i, i] for i in range(3)])
    columns = torch.stack([critic[:, i].logsumexp(0) - critic[i, i] for i in range(3)])
    expected = {"both": (rows + columns) / 2, "image-to-text": rows, "text-to-image": columns}[directions]
    torch.testing.assert_close(found["loss"], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(found["accuracy"], (critic.argmax(1) == torch.arange(3)).float())


def test_a_clean_clip_is_trained_on_clean_images(x):
    clip = system("scenes-clip")
    batch = {"image": x, "caption": clip.tokens(CAPTIONS)}
    a, b = (clip.loss(batch, None, clip.schedule.level(torch.tensor(t))) for t in ([1, 2, 3], [900] * 3))
    assert torch.equal(a["loss"], b["loss"])
    assert torch.equal(a["loss"], clip.loss(batch)["loss"])


def test_levels_are_drawn_when_left_out(x):
    clip = system()
    batch = {"image": x, "caption": clip.tokens(CAPTIONS)}
    draw = lambda seed: clip.loss(batch, torch.Generator().manual_seed(seed))["loss"]
    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))
    generator = torch.Generator().manual_seed(0)
    level = clip.schedule.level(torch.randint(clip.schedule.T, (3,), generator=generator))
    assert torch.equal(clip.loss(batch, generator, level)["loss"], draw(0))


def test_equal_captions_count_as_found(x):
    clip = system("scenes-clip")
    ask = lambda captions: clip.loss({"image": x, "caption": clip.tokens(captions)})
    found = ask(["a small star"] * 3)
    assert found["accuracy"].tolist() == [1, 1, 1]
    two = ask(["a small star"] * 2 + ["a disc"])
    assert not torch.allclose(two["loss"], found["loss"])


def test_pairs_of_other_processes_are_negatives_in_training_alone(clip, x, monkeypatch):
    """Whoever evaluates has no other process to wait for."""
    tokens, times, everyone = clip.tokens(CAPTIONS), torch.tensor([3, 400, 900]), []
    loss = lambda n: clip.loss(
        {"image": x[:n], "caption": tokens[:n]}, sample_generators(0, range(n)), clip.schedule.level(times[:n])
    )["loss"]
    alone, whole = loss(1), loss(3)
    monkeypatch.setattr("minidiff.systems.clip.gathered", lambda z: everyone.append(z) or z)
    clip.train()
    assert torch.equal(loss(3), whole) and len(everyone) == 3
    monkeypatch.setattr("minidiff.systems.clip.gathered", lambda z: everyone.pop(0))
    torch.testing.assert_close(loss(1), whole[:1])
    clip.eval()
    assert torch.equal(loss(1), alone) and not torch.allclose(alone, whole[:1])


def test_compiling_reaches_the_towers_that_the_loss_calls(clip, x):
    batch, graphs = {"image": x, "caption": clip.tokens(CAPTIONS)}, []
    level = clip.schedule.level(torch.tensor([3, 400, 900]))
    loss = lambda: clip.loss(batch, sample_generators(0, range(3)), level)["loss"]
    plain = loss()
    clip.network.compile(backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    torch.testing.assert_close(loss(), plain)
    assert len(graphs) >= 2


class Tables(Towers):
    """The simplest towers: an embedding for each of four pictures, told apart by their first pixel, and four texts."""

    noise_aware = False

    def __init__(self):
        super().__init__()
        self.i, self.t = (torch.nn.Embedding(4, 5) for _ in range(2))
        self.logit_scale = torch.nn.Parameter(torch.tensor([1.0]))

    def image(self, x, time):
        return self.i(x[:, 0, 0, 0].long())

    def text(self, tokens):
        return self.t(tokens[:, 0])


@pytest.mark.parametrize("directions", ["both", "image-to-text"])
def test_training_finds_the_pointwise_mutual_information_of_its_world(directions, generator):
    """Random batches of an unequal joint. One direction leaves a function of the image open, and it stays wrong."""
    torch.manual_seed(0)
    joint = torch.tensor([[6.0, 1, 2, 1], [1, 4, 2, 1], [1, 1, 2, 2], [1, 1, 1, 5]])
    images, texts = torch.arange(4.0).view(4, 1, 1, 1), torch.arange(4)[:, None]
    clip = CLIP(Tables(), clipped_cosine_schedule(), tokenizer("scenes"), directions)
    optimizer, steps = torch.optim.Adam(clip.parameters(), 0.05), 300
    for step in range(steps):
        k = torch.multinomial(joint.flatten(), 512, replacement=True, generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - step / steps)
        optimizer.zero_grad()
        clip.loss({"image": images[k // 4], "caption": texts[k % 4]})["loss"].mean().backward()
        optimizer.step()
    true = pointwise_mutual_information(joint)
    wrong = (clip.logit_scale.exp() * clip.similarity(images, texts)).detach().double() - true
    rms = lambda table: float(table.square().mean().sqrt())
    assert rms(residual(wrong, "image" if directions == "image-to-text" else "constant")) < 0.1 * rms(true)
    assert directions == "both" or rms(residual(wrong, "constant")) > 0.2 * rms(true)


# --- recipes, training, publishing ----------------------------------------------------------------------------------


def test_shapes_are_told_apart_by_their_keys():
    assert isinstance(load_recipe("scenes-clip").network, CLIPConfig)
    assert isinstance(load_recipe("glide").network, UNetConfig)
    for name in ("scenes-clip", "glide-clip", "glide"):
        recipe = load_recipe(name)
        assert Recipe.from_plain(recipe.to_plain()) == recipe
    with pytest.raises(ValueError, match=r"unknown key recipe.network.patches: did you mean 'patch'"):
        load_recipe("scenes-clip", ["network.patches=3"])
    with pytest.raises(ValueError, match=r"unknown key recipe.network.chanels: did you mean 'channels'"):
        load_recipe("glide", ["network.chanels=3"])
    with pytest.raises(ValueError, match=r"recipe.network must be a mapping"):
        load_recipe("scenes-clip", ["network=3"])


def test_the_batch_of_a_clip_is_not_cut(tmp_path):
    """Its parts would be smaller batches, which is another loss."""
    with pytest.raises(ValueError, match="must be 1 for a clip, got 2: the parts of a batch would lose each other"):
        train(
            load_recipe("scenes-clip", [*TINY, "training.accumulate=2"]), Recipe.build, tmp_path, cpu=True, quiet=True
        )


def test_the_small_recipes_fit_the_model_they_guide():
    """Same kind of scenes, words, size and levels as ``glide``; the noised network has a row for each level."""
    base = load_recipe("glide")
    for name in ("scenes-clip", "scenes-clip-noisy"):
        recipe = load_recipe(name)
        assert dataclasses.replace(recipe.data, seed=base.data.seed) == base.data and recipe.schedule == base.schedule
        assert recipe.network.size == base.network.size
        words = tokenizer(recipe.data.tokenizer)
        assert (recipe.network.vocabulary, recipe.network.context) == (words.size + 2, words.context + 2)
        assert 4e5 < sum(p.numel() for p in recipe.build(empty=True).parameters()) < 8e5
    assert recipe.network.levels == recipe.schedule.T
    assert dataclasses.replace(recipe.network, levels=0) == load_recipe("scenes-clip").network


def test_training_and_publishing(tmp_path, monkeypatch):
    """From the loop to a checkpoint that loads by name; the card's loss is that of batches of the recipe's size."""
    recipe = load_recipe("scenes-clip-noisy", TINY)
    monkeypatch.setattr(publishing, "HELDOUT", 160)
    before = recipe.build().state_dict()
    after = train(recipe, Recipe.build, tmp_path / "run", cpu=True, quiet=True)
    assert any((after[k] - before[k]).abs().max() > 0 for k in before)
    found = publish(recipe, recipe.build(), tmp_path / "run", tmp_path / "checkpoints/scenes-clip-noisy")
    assert set(found["metrics"]) == {"heldout_loss", "heldout_accuracy"}
    monkeypatch.setattr(store, "data_folder", lambda: tmp_path)
    clip = store.load("scenes-clip-noisy", can="critic")
    assert clip.noise_aware and not any(p.requires_grad for p in clip.parameters())
    heldout = load_set(recipe.data, "heldout", 160)
    generator, losses = sample_generators(recipe.training.seed, ["heldout 0"])[0], []
    for first in range(0, 160, 16):
        losses.append(clip.loss({k: v[first : first + 16] for k, v in heldout.items()}, generator)["loss"])
    assert heldout_metrics(clip, recipe, heldout, passes=1)["heldout_loss"] == pytest.approx(
        float(torch.cat(losses).mean()), abs=1e-4
    )


# --- released models ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model of open_clip with random weights, as such models are published."""
    where = tmp_path_factory.mktemp("clip")
    model, _ = small_open_clip(where, context=16)
    return model, where


def test_a_released_clip_has_the_same_interface(folder, x):
    import open_clip

    model, where = folder
    clip = store.load(f"local-dir:{where}", can="critic")
    assert not clip.noise_aware and not clip.training and not any(p.requires_grad for p in clip.parameters())
    texts = ["a photo of a cat", "two dogs"]
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    i = model.encode_image(((x[..., :8, :8] + 1) / 2 - mean) / std, normalize=True)
    t = model.encode_text(open_clip.SimpleTokenizer(context_length=16)(texts), normalize=True)
    torch.testing.assert_close(clip.similarity(x[..., :8, :8], texts), i @ t.T)
    critic = clip.critic(texts[0])
    torch.testing.assert_close(critic(x[..., :8, :8], DATA), model.logit_scale.exp() * (i @ t.T)[:, 0])
    large = clip_guidance(clip, texts[0], 1.0)(prediction)(x, clipped_cosine_schedule().level(500))
    assert large.eps.shape == x.shape and large.eps.abs().max() > 0


def test_clips_that_are_not_there(monkeypatch, tmp_path):
    pytest.importorskip("open_clip")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, message in (
        ("ViT-B-32:openai2", "not here or cannot be read .*HF_HUB_OFFLINE is set"),
        (f"ViT-B-32:{tmp_path}/none.safetensors", "a local file is named MODEL:/path"),
        (f"local-dir:{tmp_path}", "not here or cannot be read"),
        ("ViT-B32:openai", "did you mean 'ViT-B-32'"),
        ("digits", "digits is a class_conditional, which has no critic; what has one is accepted"),
        ("scenes-clap", "no checkpoint, run or preset 'scenes-clap'"),
    ):
        with pytest.raises(ValueError, match=message):
            store.load(name, can="critic")
