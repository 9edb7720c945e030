"""Diffusion in latents: an autoencoder that is known exactly shows what training reads and what is handed out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import awake, noise, seeded
from torch import nn

from minidiff.data.sets import Columns, rows
from minidiff.data.tokenizer import tokenizer
from minidiff.guidance import cfg
from minidiff.models.vae import LOG_VARIANCE
from minidiff.recipes import Recipe, load_recipe
from minidiff.sampler import ddim, sample
from minidiff.schedule import respaced
from minidiff.systems.draw import cascade, draw
from minidiff.systems.latent import KnownLatent, LatentOptions, TextStates
from minidiff.systems.latents import Latents

NETWORK = {
    "size": 4,
    "channels": 8,
    "channel_mult": [1, 2],
    "blocks": 1,
    "attention": [4],
    "in_channels": 12,
    "out_channels": 12,
    "heads": 2,
    "groups": 4,
}
TEXT = {"vocabulary": 52, "context": 12, "width": 8, "layers": 1, "heads": 2}


class Folded(nn.Module):
    """An autoencoder that is exact: squares of two by two pixels are twelve channels, three times as large."""

    device, shape, spread = torch.device("cpu"), (3, 8, 8), 1.0

    def moments(self, x):
        z = 3 * F.pixel_unshuffle(x, 2)
        return torch.cat([z, torch.full_like(z, 2 * torch.tensor(self.spread).log().item())], 1)

    def encode(self, x):
        return self.moments(x).chunk(2, 1)[0]

    def decode(self, z):
        return F.pixel_shuffle(z / 3, 2)


class Tower:
    """A text tower that is known: of every place its number and its token, of width eight."""

    device = torch.device("cpu")

    def states(self, tokens):
        return torch.stack([tokens.float(), torch.arange(tokens.shape[1]).expand(tokens.shape).float()] * 4, 2)


def system(network: dict | None = None, **options):
    """A latent system with random weights, which was lent an exact autoencoder and a known tower."""
    recipe = {
        "name": "toy",
        "system": {"name": "latent", "autoencoder": "folded", "latent_scale": 0.25, **options},
        "network": NETWORK | (network or {}),
        "data": {"name": "scenes", "size": 8, "images": 4, "tokenizer": "scenes"},
        "training": {"steps": 1},
        "schedule": {"T": 20},
    }
    made = awake(Recipe.from_plain(recipe).build(), 0.2, dtype=torch.float32)
    for borrower in made.borrowers:
        if borrower.frozen:
            kind = Tower if borrower.frozen == "tower" else Folded
            borrower.lend(lambda kind=kind: kind())
    return made


def pictures(n: int = 3) -> torch.Tensor:
    return noise(n, 3, 8, 8).float().tanh()


def test_pictures_become_latents_and_come_back():
    made, x = system(), pictures()
    assert (made.shape, made.drawn_shape) == ((12, 4, 4), (3, 8, 8))
    assert torch.allclose(made.begun(x), 0.25 * 3 * F.pixel_unshuffle(x, 2))
    assert torch.allclose(made.finished(made.begun(x)), x, atol=1e-6)


def test_what_is_drawn_is_the_decoded_latent():
    made = system()
    x_T = noise(2, 12, 4, 4).float()
    latent = sample(ddim(), lambda x, level: made(x, level), respaced(made.schedule, 5), x_T)
    assert torch.allclose(draw(made, 2, levels=5, x_T=x_T), made.finished(latent), atol=1e-5)
    assert draw(made, 2, levels=2, generator=seeded()).shape == (2, 3, 8, 8)


def test_a_latent_is_not_kept_in_the_range_of_pixels():
    made = system()
    assert made.threshold is None
    assert made.begun(draw(made, 4, levels=2, generator=seeded())).abs().max() > 1.5


def test_training_reads_stored_latents_as_it_reads_pictures():
    made, x = system(), pictures()
    stored = {"latent": Folded().moments(x)}
    generators = lambda: [seeded(i) for i in range(3)]
    on_the_way = made.loss({"image": x}, generators())["loss"]
    assert torch.allclose(made.loss(stored, generators())["loss"], on_the_way)


def test_latents_are_drawn_from_their_law():
    """Of a fixed picture the mean and the deviation that the moments tell, times the scale."""
    latents = Latents("folded", 0.5)
    moments = torch.cat([torch.full((4000, 1, 2, 2), 3.0), torch.full((4000, 1, 2, 2), 2 * torch.tensor(0.1).log())], 1)
    z = latents.observe({"latent": moments}, 1, seeded())
    assert abs(z.mean() - 1.5) < 5 * 0.05 / 16000**0.5
    assert abs(z.std() - 0.05) < 5 * 0.05 / 32000**0.5
    assert torch.equal(latents.observe({"latent": moments}, 2), 0.5 * moments), "of a codebook they are no moments"
    assert LOG_VARIANCE[0] < 2 * torch.tensor(0.1).log() < LOG_VARIANCE[1]


@pytest.mark.parametrize("name", ["latent", "image"])
def test_the_measured_scale_gives_unit_variance(name):
    x = pictures(50)
    Folded.spread = 1e-3
    column = Folded().moments(x) if name == "latent" else x
    made = system(latent_scale=None)
    with pytest.raises(ValueError, match="not known yet"):
        made.loss({name: column})
    made.prepare(lambda n: rows(Columns(**{name: column}), "toy", n))
    assert torch.allclose(made.subjects({name: column}, seeded()).std(), torch.tensor(1.0), atol=1e-3)
    before = made.latents.scale.clone()
    made.prepare(lambda n: {name: 7 * column})
    assert made.latents.scale == before, "what a start brought along stays"
    assert "latents.scale" in made.state_dict() and "latents.scale" not in system().state_dict()
    Folded.spread = 1.0


def test_latents_that_are_all_the_same_have_no_scale():
    made = system(latent_scale=None)
    with pytest.raises(ValueError, match="all the same"):
        made.prepare(lambda n: {"latent": torch.ones(2, 12, 4, 4)})


def test_all_channels_are_guided():
    """The fourth channel as well as the first three: released samplers differ in that (Peebles and Xie 2023, code)."""
    made = system({"text": TEXT}, drop=0.1)
    x, level = noise(1, 12, 4, 4).float(), made.schedule.level(10)
    c, n = made.condition(caption="a red ring"), made.null(1)
    with torch.no_grad():
        told, untold = made(x, level, c).eps, made(x, level, n).eps
        guided = cfg(3.0)(made, c, n)(x, level).eps
    assert torch.allclose(guided, untold + 3 * (told - untold), atol=1e-5)
    assert ((guided - told).flatten(2).abs().mean(2) > 0).all()


def test_a_class_is_one_token_and_the_last_row_its_null():
    made = system({"classes": 4, "class_tokens": True, "token_width": 6}, drop=0.1)
    table = made.network.label_emb.weight
    assert table.shape == (4, 6)
    told = made.condition(label=[2, -1])
    assert told.vector is None and torch.equal(told.tokens, table[[2, 3]][:, None])
    assert torch.equal(made.null(2).tokens, table[[3, 3]][:, None])


def test_states_of_a_tower_are_attended_to_and_the_null_is_the_empty_caption():
    made = system({"token_width": 8}, text="tower", drop=0.5)
    tokens = tokenizer("scenes")(["a red ring", ""])
    told = made.condition(caption=["a red ring", ""])
    assert torch.equal(told.tokens, Tower().states(tokens)) and told.vector is None and told.tokens_mask is None
    assert torch.equal(made.null(2).tokens, told.tokens[[1, 1]])
    part = made.part("caption")
    assert torch.equal(part.observe({"caption": tokens}), told.tokens), "training reads them from tokens"
    assert torch.equal(made.condition(caption=told.tokens).tokens, told.tokens), "and states as they are"
    dropped = part.drop(made.network, part.observe({"caption": tokens[:1].expand(2000, -1)}), seeded())
    share = (dropped == told.tokens[1]).flatten(1).all(1).float().mean()
    assert abs(share - 0.5) < 5 * 0.5 / 2000**0.5
    with pytest.raises(ValueError, match=r"states must be \(B, L, 8\)"):
        made.condition(caption=torch.zeros(1, 12, 7))
    with pytest.raises(ValueError, match="states of width 8 are attended to, got token_width 6"):
        TextStates(tokenizer("scenes"), 8, "tower").check(system({"token_width": 6}).network, (12, 4, 4))


def test_what_is_known_stands_beside_the_latent_in_the_released_order():
    """After z the mask, 1 where it is to be painted, then the latent of the picture that is grey there."""
    made = system({"in_channels": 25}, beside="known")
    x, mask = pictures(2), torch.zeros(2, 1, 8, 8)
    mask[:, :, :, :4] = 1  # the left half is known
    shown = made.condition(known=(x, mask)).image
    assert shown.shape == (2, 13, 4, 4)
    assert torch.equal(shown[:, 0, :, :2], torch.zeros(2, 4, 2)) and torch.equal(
        shown[:, 0, :, 2:], torch.ones(2, 4, 2)
    )
    assert torch.allclose(shown[:, 1:], 0.75 * F.pixel_unshuffle(x * mask, 2))
    other = torch.where(mask > 0, x, torch.nan)
    assert torch.equal(made.condition(known=(other, mask)).image, shown), "what is not known is not looked at"
    assert made.loss({"image": x}, seeded())["loss"].shape == (2,)
    assert draw(made, 2, levels=2, known=(x, mask), generator=seeded()).shape == (2, 3, 8, 8)


def test_a_small_picture_stands_beside_the_latent_and_is_handed_on():
    made = system({"in_channels": 15}, beside="low_res")
    x = pictures(2)
    small = F.avg_pool2d(x, 2)
    assert torch.equal(made.condition(low_res=small).image, small)
    assert torch.allclose(made.part("low_res").observe({"image": x})[0], small, atol=1e-6)
    few = ["network.size=4", "network.channels=8", "network.channel_mult=[1]", "network.groups=4"]
    base = load_recipe("shapes16", [*few, "network.attention=[]", "network.head_channels=8"]).build().eval()
    enlarged = cascade([(base, {"levels": 2}), (made, {"levels": 2})], 2, seeded(), label=1)
    assert enlarged.shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"autoencoder": ""}, "name it, autoencoder=NAME"),
        ({"beside": "mask"}, "may stand beside x, got 'mask'"),
        ({"latent_scale": -1.0}, "latent_scale must be a finite number > 0"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LatentOptions(**{"autoencoder": "folded"} | options)


@pytest.mark.parametrize("name", ["sr3-16-128", "glide-inpaint"])
def test_what_stands_beside_pixels_cannot_stand_beside_latents(name):
    with pytest.raises(ValueError, match="stands beside pictures, and x is a latent"):
        load_recipe(name, ["system.autoencoder=folded"]).build(empty=True)


def test_an_embedding_has_no_autoencoder():
    with pytest.raises(ValueError, match="an autoencoder is for pictures"):
        load_recipe("unclip-prior", ["system.autoencoder=folded"]).build(empty=True)


def test_a_scale_without_an_autoencoder_is_refused():
    with pytest.raises(ValueError, match="latent_scale is of the latents of an autoencoder"):
        load_recipe("digits", ["system.latent_scale=2.0"])


def test_systems_of_pixels_can_be_in_latents():
    """GLIDE's network and unCLIP's decoder take the option as latent diffusion does."""
    ours = ["start=", "system.autoencoder=folded", "system.latent_scale=1.0", "network.size=4"]
    made = load_recipe("glide", [*ours, "network.in_channels=12", "network.out_channels=12", "network.attention=[4]"])
    made = made.build()
    made.latents.lend(lambda: Folded())
    assert draw(made.eval(), 1, levels=2, caption="a red ring", generator=seeded()).shape == (1, 3, 8, 8)


def test_the_mask_of_a_latent_needs_an_autoencoder_only_when_it_is_used():
    part = KnownLatent(Latents("folded", 1.0), 12)
    with pytest.raises(ValueError, match="the latent is read by folded"):
        part.read((pictures(1), torch.ones(1, 1, 8, 8)), (12, 4, 4))


def test_eps_says_nothing_where_nothing_is_left_of_the_image():
    repaired = ["schedule.name=sqrt_linear", "schedule.zero_terminal=true"]
    with pytest.raises(ValueError, match="predicts=v or x0"):
        load_recipe("latent-scenes", [*repaired, "system.predicts=eps"]).build(empty=True)
    made = load_recipe("latent-scenes", repaired).build(empty=True)
    assert made.schedule.level(made.schedule.T - 1).alpha == 0
