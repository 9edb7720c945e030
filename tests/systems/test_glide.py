"""GLIDE as a system: captions in, nulls and dropout, guidance by captions or by a CLIP, its upsampler and recipes."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from minidiff.data.captioned import captioned_scenes
from minidiff.data.captions import VOCABULARY
from minidiff.data.tokenizer import tokenizer
from minidiff.denoiser import conditioned
from minidiff.guidance import adm, cfg, classifier_guidance, clip, mean_shift_guidance, static_threshold
from minidiff.models.text import TextConfig
from minidiff.models.unet import UNet, UNetConfig
from minidiff.random import randn, sample_generators
from minidiff.recipes import load_recipe
from minidiff.sampler import ancestral, ddim, sample
from minidiff.schedule import clipped_cosine_schedule
from minidiff.systems.diffusion import Diffusion
from minidiff.systems.draw import draw
from minidiff.systems.parts import Caption, LowRes

CAPTIONS = ["a red ring above a blue square", "a small star", "an orange heart and a disc", "a tiny teal cross"]
TEXT = TextConfig(vocabulary=len(VOCABULARY), context=12, width=16, layers=1, heads=2)


def network(**changes):
    """A U-Net for 8x8 pictures in which no branch is silent."""
    shape = {"size": 8, "channels": 8, "channel_mult": (1, 2), "blocks": 1, "attention": (4,), "groups": 4}
    torch.manual_seed(0)
    made = UNet(UNetConfig(**shape, head_channels=8, **({"text": TEXT} | changes)))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=(parameter.shape[1:].numel() or 1) ** -0.5)
    return made.eval()


def glide(*more, dropout=0.2, **changes):
    parts = [Caption(tokenizer("scenes"), dropout), *more]
    return Diffusion(network(**changes), clipped_cosine_schedule(), parts)


def read(captions):
    """(B, 12) tokens."""
    return tokenizer("scenes")(list(captions))


@pytest.fixture
def system():
    return glide()


@pytest.fixture
def x():
    return randn((4, 3, 8, 8), torch.Generator().manual_seed(1))


# --- captions -------------------------------------------------------------------------------------------------------


def test_captions_are_words_of_the_vocabulary(system):
    tokens = system.part("caption").read(CAPTIONS, system.shape)
    assert tokens.shape == (4, 12) and tokens.dtype == torch.long
    for row, caption in zip(tokens.tolist(), CAPTIONS, strict=True):
        words = caption.split()
        assert [VOCABULARY[t] for t in row[: len(words)]] == words and set(row[len(words) :]) <= {-1}


def test_the_null_is_the_empty_caption(system, x):
    level = system.schedule.level(400)
    assert bool((system.part("caption").nothing(system.network, 4) == -1).all()) and system.has_null
    asked = lambda captions: system(x, level, system.condition(4, caption=captions)).value
    for nothing in ([""] * 4, "", torch.full((4, 12), -1), None):
        assert torch.equal(system(x, level).value, asked(nothing))
    assert not torch.allclose(system(x, level).value, asked(CAPTIONS), atol=1e-3)


def test_one_caption_serves_a_batch(system, x):
    level, tokens = system.schedule.level(400), read(CAPTIONS[:1])
    one, four = (system.condition(4, caption=told) for told in (CAPTIONS[0], tokens.repeat(4, 1)))
    torch.testing.assert_close(system(x, level, one).value, system(x, level, four).value)


def test_a_prediction_does_not_depend_on_its_batch(system, x):
    level = system.schedule.level(400)
    together = system(x, level, system.condition(caption=CAPTIONS)).value
    for i in range(4):
        alone = system(x[i : i + 1], level, system.condition(caption=CAPTIONS[i])).value
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)


def test_tokens_of_another_vocabulary_are_refused(system):
    with pytest.raises(ValueError, match="no word 'ringg' here: did you mean 'ring'"):
        system.condition(caption=["a red ringg"])
    with pytest.raises(ValueError, match=rf"from -1 \(none\) to {len(VOCABULARY) - 1}, got up to 400"):
        system.condition(caption=torch.full((2, 12), 400))
    with pytest.raises(ValueError, match=r"of shape \(B, 12\), got \(2, 77\)"):
        system.condition(caption=tokenizer("clip")(CAPTIONS[:2]))
    with pytest.raises(ValueError, match="text is missing"):
        glide(text=None)


# --- training -------------------------------------------------------------------------------------------------------


def test_captions_are_dropped_whole_and_one_by_one(system):
    tokens, part = read(CAPTIONS).repeat(5000, 1), system.part("caption")
    shown = part.drop(system.network, tokens, torch.Generator().manual_seed(0))
    empty, kept = (shown == -1).all(1), (shown == tokens).all(1)
    assert bool((empty | kept).all()), "a caption is shown as it is or not at all"
    rate, n = empty.double().mean().item(), len(tokens)
    assert abs(rate - 0.2) < 4 * math.sqrt(0.2 * 0.8 / n)
    alternations = (empty[1:] != empty[:-1]).double().mean().item()
    assert abs(alternations - 2 * 0.2 * 0.8) < 0.02, "dropped captions do not come in runs"
    assert torch.equal(shown, part.drop(system.network, tokens, torch.Generator().manual_seed(0)))


def test_the_loss_drops_captions(x):
    images, tokens = x.clamp(-1, 1), read(CAPTIONS)
    measure = lambda p, told: glide(dropout=p).loss({"image": images, "caption": told}, sample_generators(3, range(4)))[
        "loss"
    ]
    losses = {p: measure(p, tokens) for p in (0.0, 0.5, 1.0)}
    nothing = measure(0.0, torch.full_like(tokens, -1))
    torch.testing.assert_close(losses[1.0], nothing)
    assert bool((losses[0.0] != nothing).all()), "a caption changes the loss"
    for some, told, untold in zip(losses[0.5], losses[0.0], nothing, strict=True):
        assert torch.isclose(some, told) or torch.isclose(some, untold), "there is no half caption"


def test_training_data_fit_the_system(system):
    data = captioned_scenes(3, 8, torch.Generator().manual_seed(2))
    batch = {"image": data.images, "caption": read(data.captions)}
    loss = system.loss(batch, torch.Generator().manual_seed(3))["loss"]
    assert loss.shape == (3,) and bool(loss.isfinite().all())


# --- guidance -------------------------------------------------------------------------------------------------------


def noise_of(system, n=4):
    """The x_T that ``draw`` starts from."""
    return randn((n, *system.shape), torch.Generator().manual_seed(5))


def test_at_scale_one_not_a_bit_is_guided(system):
    plain = static_threshold(conditioned(system, system.condition(caption=CAPTIONS)))
    expected = sample(ddim(), plain, system.schedule.levels(4), noise_of(system))
    drawn = draw(system, 4, guide=cfg(1.0), levels=4, generator=torch.Generator().manual_seed(5), caption=CAPTIONS)
    assert torch.equal(drawn, expected)


@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_guidance_extrapolates_from_the_empty_caption(system, scale):
    def by_hand(x, level):
        c, u = (system(x, level, system.condition(caption=told)) for told in (CAPTIONS, torch.full((len(x), 12), -1)))
        return c.with_eps((1 - scale) * u.eps + scale * c.eps)

    expected = sample(ddim(), static_threshold(by_hand), system.schedule.levels(4), noise_of(system))
    drawn = draw(system, 4, guide=cfg(scale), levels=4, generator=torch.Generator().manual_seed(5), caption=CAPTIONS)
    torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-4)
    assert drawn.abs().max() <= 1


def test_captions_and_their_tokens_draw_the_same(system):
    options = {"guide": cfg(2.0), "levels": 3}
    drawn = [
        draw(system, 4, generator=torch.Generator().manual_seed(5), caption=told, **options)
        for told in (CAPTIONS, tuple(CAPTIONS), read(CAPTIONS))
    ]
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])


def test_a_picture_does_not_depend_on_its_batch(system):
    options = {"guide": cfg(2.0), "levels": 3}
    many = draw(system, 4, generator=sample_generators(0, range(4)), caption=CAPTIONS, **options)
    one = draw(system, 1, generator=sample_generators(0, [2]), caption=CAPTIONS[2], **options)
    torch.testing.assert_close(many[2:3], one, rtol=1e-4, atol=1e-4)


class Brighter:
    """Stands in for a CLIP: its critic wants brighter pictures, the more words the more."""

    def __init__(self):
        self.asked = []

    def critic(self, captions):
        self.asked.append(captions)
        wanted = (read(captions) >= 0).sum(1).float()
        return lambda x, level: wanted * x.mean((1, 2, 3))


@pytest.mark.parametrize("told, rule, steps", [(False, "score", 4), (True, "adm", "ddim4"), (True, "adm", 4)])
def test_a_clip_guides_the_model_that_its_rule_says(system, told, rule, steps):
    """By "score" the empty caption's score is shifted; GLIDE's scripts shift the mean of the caption's own."""
    critics, generator, ode = Brighter(), torch.Generator().manual_seed(5), steps == "ddim4"
    base = conditioned(system, system.condition(4, caption=CAPTIONS if told else None))
    critic = critics.critic(CAPTIONS)
    options = {"threshold": None, "sampler": ddim() if ode else ancestral("beta")} if rule == "adm" else {}
    guided = lambda scale: adm(critic, scale, ode) if rule == "adm" else clip(critics, CAPTIONS, scale)
    drawn = draw(system, 4, guide=guided(2.0), levels=steps, generator=generator, caption=CAPTIONS, **options)
    assert critics.asked == [CAPTIONS] * (1 + (rule == "score")), "the text is embedded once"

    generator, levels = torch.Generator().manual_seed(5), system.schedule.levels(4, "ddim" if ode else "even")
    if rule == "score":
        denoiser, sampler = static_threshold(classifier_guidance(base, critic, 2.0)), ddim()
    elif ode:
        denoiser, sampler = classifier_guidance(static_threshold(base), critic, 2.0), ddim()
    else:
        denoiser, sampler = mean_shift_guidance(static_threshold(base), critic, 2.0), ancestral("beta")
    x_T = randn((4, *system.shape), generator)
    torch.testing.assert_close(drawn, sample(sampler, denoiser, levels, x_T, generator))
    generator = torch.Generator().manual_seed(5)
    plain = draw(system, 4, guide=guided(0.0), levels=steps, generator=generator, caption=CAPTIONS, **options)
    assert bool((drawn.mean((1, 2, 3)) > plain.mean((1, 2, 3))).all()), "guidance goes up the critic, not down"


def test_a_clip_with_words_of_its_own_is_told_the_captions(system):
    """Whatever its words, it reads the captions itself: the tokens of the model are not its own."""

    class Letters(Brighter):
        def critic(self, captions):
            self.asked.append(captions)
            wanted = torch.tensor([float(len(caption)) for caption in captions])
            return lambda x, level: wanted * x.mean((1, 2, 3))

    one, other = Letters(), Brighter()
    again = lambda: torch.Generator().manual_seed(5)
    drawn = [
        draw(system, 4, guide=clip(critic, CAPTIONS, 2.0), levels=3, generator=again(), caption=told)
        for critic, told in ((one, CAPTIONS), (one, read(CAPTIONS)), (other, CAPTIONS))
    ]
    assert one.asked == [CAPTIONS] * 2 and torch.equal(*drawn[:2]) and not torch.equal(*drawn[1:])


def test_a_critic_must_answer_for_every_picture(system):
    class Scalar(Brighter):
        def critic(self, captions):
            return lambda x, level: x.sum()

    with pytest.raises(ValueError, match=r"must return shape \(4,\)"):
        draw(system, 4, guide=clip(Scalar(), CAPTIONS, 2.0), levels=2, caption=CAPTIONS)


# --- upsampler ------------------------------------------------------------------------------------------------------


def test_an_upsampler_sees_caption_and_picture(x):
    system = glide(LowRes(4), in_channels=6)
    small = randn((4, 3, 2, 2), torch.Generator().manual_seed(6))
    tokens, level = read(CAPTIONS), system.schedule.level(400)
    asked = lambda tokens, small: system(x, level, system.condition(caption=tokens, low_res=small)).value
    out = asked(tokens, small)
    assert not torch.allclose(out, asked(tokens.flip(0), small), atol=1e-3)
    assert not torch.allclose(out, asked(tokens, small.flip(0)), atol=1e-3)
    by_hand = system.network(
        torch.cat([x, torch.nn.functional.interpolate(small, (8, 8), mode="bilinear")], 1),
        torch.full((4,), 400),
        system.part("caption").encode(system.network, tokens),
    )
    torch.testing.assert_close(out, by_hand)
    with pytest.raises(ValueError, match=r"enlarges \(B, 3, 2, 2\), got \(4, 3, 4, 4\)"):
        asked(tokens, x[..., ::2, ::2])


def test_guiding_an_upsampler_hides_the_caption_and_keeps_the_picture(x):
    system = glide(LowRes(4), in_channels=6)
    small = randn((4, 3, 2, 2), torch.Generator().manual_seed(6))

    def by_hand(x, level):
        c, u = (system(x, level, system.condition(caption=told, low_res=small)) for told in (CAPTIONS, [""] * 4))
        return c.with_eps(u.eps + 2.0 * (c.eps - u.eps))

    expected = sample(ddim(), static_threshold(by_hand), system.schedule.levels(3), noise_of(system))
    options = {"guide": cfg(2.0), "levels": 3, "generator": torch.Generator().manual_seed(5)}
    drawn = draw(system, 4, caption=CAPTIONS, low_res=small, **options)
    torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-4)


# --- recipes --------------------------------------------------------------------------------------------------------


def test_the_small_recipes_differ_in_how_the_caption_enters_where_embeddings_start_and_what_captions_say():
    narrow, longer, wide, order, relation, last = load_recipe("glide").stages("runs/glide")
    pooled, either = load_recipe("glide-pooled"), load_recipe("glide-either")
    assert narrow.training == pooled.training and narrow.data == longer.data == wide.data == last.data == pooled.data
    assert not narrow.network.text.pooled and pooled.network.text.pooled and longer.network == narrow.network
    texts = [dataclasses.asdict(recipe.network.text) for recipe in (narrow, pooled, wide)]
    assert texts[0] | {"pooled": True} == texts[1] and texts[0] | {"embedding_std": 0.5} == texts[2]
    assert wide.fresh == ("network.text",) and wide.network == order.network == relation.network == last.network
    assert (order.data.reading, relation.data.reading, either.data.reading) == (1, 0.75, 0.5)
    assert either.start == order.start == "runs/glide/wide/model.safetensors" and either.network == order.network
    assert either.training.steps == order.training.steps + relation.training.steps
    assert {recipe.options.level_sampler for recipe in (order, relation, either)} == {"noisiest"}
    assert narrow.system == pooled.system == "glide"
