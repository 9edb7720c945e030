"""Imagen: what is told of a text, what is left of it when it is dropped, upsamplers, and a small one by its recipe."""

from __future__ import annotations

import pytest
import torch
from helpers import TINY, awake, noise

from minidiff.guidance import cfg, dynamic_threshold
from minidiff.metrics.quality import bits_per_dim
from minidiff.models.embedding import LanguageConfig, LanguageDoors
from minidiff.random import sample_generators
from minidiff.recipes import load_recipe
from minidiff.sampler import interpolated
from minidiff.store import begun, load
from minidiff.systems.draw import cascade, draw

W = 6
CHANGES = [*TINY, "start=", "fresh=[]", "data.size=8", f"network.language.width={W}", "network.token_width=16",
           "network.heads=4"]  # fmt: skip
PAIR = "a red ring above a blue square"
UP = [*CHANGES, "network.image_level=true", "network.in_channels=6"]


class StandIn(torch.nn.Module):
    """A text encoder that is known: of each word its length in every number."""

    def text_states(self, texts):
        words = [text.split() for text in texts]
        states = torch.zeros(len(texts), max(map(len, words)), W)
        for i, row in enumerate(words):
            states[i, : len(row)] = torch.tensor([len(word) for word in row])[:, None] + torch.arange(W) / W
        return states, states.any(2)


def built(name="imagen", *changes, std=0.2):
    system = awake(load_recipe(name, list(changes)).build(), std, dtype=torch.float32).requires_grad_(False)
    system.part("caption").lend(lambda: StandIn())
    return system


@pytest.fixture
def base():
    return built("imagen", *CHANGES)


def batch(n=8, size=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(5) < torch.randint(1, 6, (n, 1), generator=g)
    states = torch.randn(n, 5, W, generator=g) * mask[..., None]
    return {"image": torch.rand(n, 3, size, size, generator=g) * 2 - 1, "text_states": states, "text_mask": mask}


def test_nothing_is_zeros_at_both_doors(base):
    """Saharia et al. 2022: states and what is pooled of them are zeroed, so no bias of a layer is left."""
    for null in (base.null(caption=PAIR), base.null(2)):
        assert not null.tokens.any() and not null.vector.any() and not null.tokens_mask.any()
    told = base.condition(caption=PAIR)
    assert told.tokens.any(2).all() and told.vector.any() and told.tokens_mask.all()


def test_dropping_zeroes_both_and_as_often_as_is_asked():
    system = built("imagen", *CHANGES, "system.drop=0.1")
    part, n = system.part("caption"), 4000
    states, mask = part.drop(system.network, (torch.ones(n, 3, W), torch.ones(n, 3, dtype=torch.bool)), None)
    gone = ~mask.any(1)
    assert torch.equal(gone, ~states.flatten(1).any(1)) and torch.equal(~gone, states.flatten(1).all(1))
    assert abs(float(gone.float().mean()) - 0.1) < 5 * (0.09 / n) ** 0.5  # standard errors


def test_nothing_is_what_a_network_without_text_would_see(base):
    x, level = noise(2, 3, 8, 8).float(), base.schedule.level(0.5)
    bare = base.network(x, torch.full((2,), level.time))
    torch.testing.assert_close(base(x, level, base.null(2)).value, bare)
    assert float((base(x, level, base.condition(caption=[PAIR, PAIR])).value - bare).abs().max()) > 1e-3


def test_padding_does_not_matter(base):
    """The same text beside a longer one, and alone."""
    x, level = noise(2, 3, 8, 8).float(), base.schedule.level(0.7)
    both = base(x, level, base.condition(caption=["a star", PAIR])).value
    alone = base(x[:1], level, base.condition(caption="a star")).value
    torch.testing.assert_close(both[:1], alone, rtol=1e-4, atol=1e-5)  # sums over zeros in another order


def test_what_is_pooled_by_hand():
    """One head, one token: the softmax is 1, so the vector is made of that token's value."""
    doors = awake(LanguageDoors(LanguageConfig(W, heads=1), 8, 4), 0.5)
    states, mask = noise(3, 2, W), torch.tensor([[True, False], [True, False], [True, True]])
    told = doors(states, mask)
    token = doors.norm(doors.project(states[:1, 0]))
    value = doors.key_value(token)[:, 4:]
    torch.testing.assert_close(told.vector[:1], doors.vector(value))
    torch.testing.assert_close(told.tokens[:1, 0], token)
    tokens = doors.norm(doors.project(states[2]))
    keys, values = doors.key_value(tokens).chunk(2, dim=1)
    weights = torch.softmax(keys @ doors.query(tokens.mean(0)) / 4**0.5, 0)
    torch.testing.assert_close(told.vector[2], doors.vector(weights @ values))


def test_a_loss_and_pictures(base):
    terms = base.loss(batch(), sample_generators(0, range(8)))
    assert terms["loss"].shape == (8,) and bool(terms["loss"].isfinite().all())
    way = {"levels": 4, "sampler": interpolated(0.3), "threshold": dynamic_threshold(0.9), "guide": cfg(3.0)}
    generators = lambda: sample_generators(1, range(3))
    x = draw(base, 3, caption=[PAIR, "a star", "a star"], generator=generators(), **way)
    assert x.shape == (3, 3, 8, 8) and float(x.abs().max()) <= 1
    told = base.part("caption").read([PAIR, "a star", "a star"], ())
    torch.testing.assert_close(draw(base, 3, caption=told, generator=generators(), **way), x)


@pytest.mark.parametrize("text", [True, False])
def test_an_upsampler_is_told_how_much_noise_is_in_each_small_image(text):
    system = awake(load_recipe("imagen-up32", [*UP, f"system.text={str(text).lower()}"]).build(), 0.2,
                   dtype=torch.float32)  # fmt: skip
    assert [part.key for part in system.parts] == (["caption", "low_res"] if text else ["low_res"])
    data = batch()
    terms = system.loss(data, sample_generators(0, range(8)))
    assert bool(terms["loss"].isfinite().all())
    small, sigma = system.part("low_res").observe(data, sample_generators(0, range(8)))
    assert len(sigma.unique()) == 8 and 0 <= float(sigma.min()) <= float(sigma.max()) <= 0.8
    told = {"caption": (data["text_states"], data["text_mask"])} if text else {}
    x, level = noise(8, 3, 8, 8).float(), system.schedule.level(0.5)
    levels = torch.linspace(0, 0.8, 8)
    together = system(x, level, system.condition(low_res=(small, levels), **told)).value
    for i in (0, 5):
        own = {key: tuple(v[i : i + 1] for v in value) for key, value in told.items()}
        alone = system(x[i : i + 1], level, system.condition(low_res=(small[i : i + 1], levels[i : i + 1]), **own))
        torch.testing.assert_close(together[i : i + 1], alone.value, rtol=1e-4, atol=1e-5)  # of another batch


def test_augmentation_at_level_zero_is_plain_conditioning():
    """The image that enters is the small one itself, enlarged."""
    system = built("imagen-up32", *UP)
    small = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    part = system.part("low_res")
    noised = part.noised(small, torch.zeros(2), torch.Generator().manual_seed(1))
    assert torch.equal(noised, small)
    told = system.condition(low_res=(small, 0.0), caption=PAIR, n=2)
    assert torch.equal(told.image, part.upsample(small))


def test_a_cascade_of_imagens(base):
    larger = built("imagen-up32", *UP, "network.size=16", "network.attention=[8]", "data.size=16")
    x = cascade([(base, {"levels": 2}), (larger, {"levels": 2, "aug_level": 0.2})], 2, caption=PAIR,
                generator=torch.Generator().manual_seed(0))  # fmt: skip
    assert x.shape == (2, 3, 16, 16)


def test_an_efficient_network_is_told_the_same():
    network = "{size: 8, channels: 8, channel_mult: [1, 2], blocks: [1, 2], attention: [2], heads: 2, groups: 4}"
    doors = ["network.token_width=16", f"network.language={{width: {W}}}"]
    changes = ["system.name=imagen_efficient", f"network={network}", *doors, "start=", "fresh=[]"]
    system = built("imagen", *changes)
    x, level = noise(2, 3, 8, 8).float(), system.schedule.level(0.5)
    assert float((system(x, level, system.condition(caption=[PAIR, "a star"])).value
                  - system(x, level, system.null(2)).value).abs().max()) > 1e-4  # fmt: skip


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "a caption, a list of captions or"),
        ((torch.zeros(1, 2, W + 1), torch.ones(1, 2, dtype=torch.bool)), f"states \\(B, L, {W}\\) and a mask"),
        ((torch.zeros(1, 2, W), torch.ones(1, 3, dtype=torch.bool)), "and a mask"),
        ((torch.zeros(1, 2, W), torch.ones(1, 2)), "and a mask"),
    ],
)
def test_captions_that_are_none(base, value, message):
    with pytest.raises(ValueError, match=message):
        base.condition(caption=value)


def test_a_network_without_doors_is_refused():
    with pytest.raises(ValueError, match=r"network\.language is missing"):
        load_recipe("imagen", [*CHANGES, "network.language=null"]).build()
    with pytest.raises(ValueError, match="do not divide into 5 heads"):
        load_recipe("imagen", [*CHANGES, "network.language.heads=5"]).build()
    with pytest.raises(ValueError, match="name the token_width"):
        load_recipe("imagen", [*CHANGES, "network.token_width=null"]).build()


def test_it_begins_as_glide_would_go_on_without_a_text():
    """Its U-Net is glide's; the doors for the text are new, and glide's text transformer is left behind."""
    system, glide = begun(load_recipe("imagen")), load("glide")
    ours, theirs = system.network.state_dict(), glide.network.state_dict()
    assert {k for k in theirs if k not in ours} == {k for k in theirs if k.startswith("text.")}
    assert {k for k in ours if k not in theirs} == {k for k in ours if k.startswith("language.")}
    assert all(torch.equal(ours[k], theirs[k]) for k in ours if k in theirs)
    with pytest.raises(ValueError, match=r"no part 'network\.txt' to begin anew"):
        begun(load_recipe("imagen", ["fresh=[network.text,network.language,network.txt]"]))


def test_continuous_time_has_no_table():
    """No number of levels, and no two neighbours for a learned variance to lie between."""
    with pytest.raises(ValueError, match="fixed is accepted in continuous time"):
        load_recipe("imagen", [*CHANGES, "system.variance=learned", "network.out_channels=6"]).build()
    with pytest.raises(ValueError, match="the cosine schedule is one of continuous time: it has no T, got 50"):
        load_recipe("imagen", ["schedule.T=50"])
    system = built("imagen", *CHANGES)
    with pytest.raises(ValueError, match="name the steps of the bound"):
        bits_per_dim(system, batch(2)["image"], caption=PAIR)
    assert bool(bits_per_dim(system, batch(2)["image"], steps=3, caption=PAIR).total.isfinite().all())
