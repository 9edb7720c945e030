"""unCLIP: what its parts say and drop, conventions of embeddings, priors beside closed forms, crops, and cascades."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import awake, noise, seeded, small_open_clip

from minidiff.data.degrade import blurred
from minidiff.data.sets import Columns, rows
from minidiff.guidance import cfg
from minidiff.models.embedding import Convention, EmbeddingScale
from minidiff.models.prior import Buckets, CodePrior, CodePriorConfig, DiffusionPrior, PrincipalCodes, PriorConfig
from minidiff.random import sample_generators
from minidiff.recipes import load_recipe
from minidiff.sampler import ancestral
from minidiff.store import load
from minidiff.systems.clip import released_clip
from minidiff.systems.draw import cascade, draw
from minidiff.systems.embeddings import ImageEmbedding
from minidiff.systems.unclip import random_crops

E = 6
CAPTIONS = ["a red ring above a blue square", "a small star", "an orange heart and a disc", "a tiny teal cross"]
DECODER = ["start=", "fresh=[]", "network.size=8", "network.channels=8", "network.blocks=1", "network.groups=4",
           "network.channel_mult=[1,2]", "network.attention=[4]", "network.head_channels=8", "network.text.width=16",
           "network.text.layers=1", "network.text.heads=2", f"network.embedding.width={E}", "data.size=8"]  # fmt: skip
PRIOR = [f"network.embedding={E}", "network.width=16", "network.layers=2", "network.heads=2"]


class StandIn(torch.nn.Module):
    """A CLIP whose embeddings are known: of a picture the means of its halves, of a text the numbers of its words."""

    device, dtype, shape = torch.device("cpu"), torch.float32, (3, 8, 8)

    def __init__(self):
        super().__init__()
        self.network = self

    def image(self, x, time):
        return torch.cat([x[:, :, :4].mean((2, 3)), x[:, :, 4:].mean((2, 3))], 1)

    def tokens(self, captions):
        return captions

    def text(self, captions):
        if isinstance(captions, torch.Tensor):
            return torch.stack([(captions >= 0).sum(1).float()] * E, 1)
        return torch.tensor([[float(len(c.split()))] * E for c in captions])


def lent(system):
    for part in system.parts:
        if part.frozen:
            part.lend(lambda: StandIn())
    return system


def built(name, *changes, std=0.3):
    return lent(awake(load_recipe(name, changes).build(), std, dtype=torch.float32))


@pytest.fixture
def decoder():
    return built("unclip-decoder", *DECODER)


@pytest.fixture
def prior():
    return built("unclip-prior", *PRIOR)


@pytest.fixture
def coder():
    return built("unclip-ar-prior", *PRIOR, "network.components=4", "network.buckets=5")


def data(n=64, size=8, seed=0):
    """Columns as training sees them, embeddings of very unlike numbers."""
    g = seeded(seed)
    spread = torch.logspace(-1, 1, E)
    z = torch.randn(n, E, generator=g) * spread + 2
    tokens = torch.randint(0, 52, (n, 12), generator=g)
    return Columns(
        image=torch.rand(n, 3, size, size, generator=g) * 2 - 1, caption=tokens, embedding=z,
        text_embedding=torch.randn(n, E, generator=g) + 1,
    )  # fmt: skip


# --- conventions ----------------------------------------------------------------------------------------------------

CONVENTIONS = [Convention(), Convention(scale=17.2), Convention(standardise=True), Convention(False, True, 1.0),
               Convention(False), Convention(True, True, 3.0)]  # fmt: skip


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_what_goes_in_comes_out(convention):
    scale, z = EmbeddingScale(E, convention).double(), 5 * noise(200, E) + 3
    scale.learn(z)
    inside = scale.inward(z)
    expected = F.normalize(z, dim=1) if convention.normalise else z
    if convention.standardise:
        torch.testing.assert_close(inside.mean(0), torch.zeros(E).double(), atol=1e-5, rtol=0)
        torch.testing.assert_close(inside.std(0), torch.full((E,), convention.scale).double(), atol=1e-5, rtol=1e-5)
    elif convention.normalise:
        torch.testing.assert_close(inside.norm(dim=1), torch.full((200,), convention.scale).double())
    torch.testing.assert_close(scale.outward(inside), expected, atol=1e-6, rtol=1e-6)
    assert bool((scale.inward(torch.zeros(2, E).double()) == 0).all()), "nothing stays nothing"


def test_statistics_are_learnt_once():
    """What training goes on from brings its convention along."""
    scale = EmbeddingScale(E, Convention(standardise=True))
    scale.learn(noise(50, E) + 1)
    before = scale.mean.clone()
    scale.learn(noise(50, E) - 7)
    assert torch.equal(scale.mean, before)
    with pytest.raises(ValueError, match="no standard deviation in every number"):
        EmbeddingScale(E, Convention(standardise=True)).learn(torch.ones(5, E))
    with pytest.raises(ValueError, match="a finite number > 0, got 0"):
        Convention(scale=0)


def test_the_length_of_unit_vectors_decides_how_much_noise_a_level_is():
    """At sigma = alpha the noise has length sqrt(E): unit vectors drown in it, standardised ones do not."""
    z = F.normalize(noise(500, 64), dim=1)
    share = {}
    for name, convention in (("unit", Convention()), ("sqrt", Convention(scale=8.0)), ("std", Convention(True, True))):
        scale = EmbeddingScale(64, convention).double()
        scale.learn(z)
        share[name] = float(scale.inward(z).square().mean())
    assert share["unit"] == pytest.approx(1 / 64) and share["sqrt"] == pytest.approx(1)
    assert share["std"] == pytest.approx(1, abs=0.01)


# --- the decoder ----------------------------------------------------------------------------------------------------


def test_one_network_is_three(decoder):
    """h(z, c), h(z, null) and h(0, c) by hand, from the parameters that the embedding enters by."""
    x, level = noise(4, 3, 8, 8).float(), decoder.schedule.level(500)
    z, doors = noise(4, E, seed=1).float(), decoder.network.embedding
    tokens = decoder.network.text(decoder.part("caption").read(CAPTIONS, decoder.shape))
    empty = decoder.network.text(torch.full((4, 12), -1))
    inside = F.normalize(z, dim=1)  # awake() moves no buffers: mean 0, deviation 1
    null = doors.cf_param.expand(4, -1)
    for told, ours, text in (
        ({"embedding": z, "caption": CAPTIONS}, inside, tokens),
        ({"embedding": z}, inside, empty),
        ({"caption": CAPTIONS}, null, tokens),
        ({}, null, empty),
    ):
        condition = decoder.condition(4, **told)
        extra = torch.stack([doors.clip_tok_proj(ours)[:, i::4] for i in range(4)], 1)  # the layout (W, 4)
        torch.testing.assert_close(condition.vector, doors.clip_emb(ours) + text[0])
        torch.testing.assert_close(condition.tokens, torch.cat([extra, text[1]], 1))
        assert condition.tokens.shape == (4, 4 + 12, 16)
        asked = decoder(x, level, condition).value
        assert asked.shape == x.shape and bool(asked.isfinite().all())


def test_embedding_and_caption_are_dropped_independently_and_per_sample(decoder):
    n = 20_000
    values = {"embedding": torch.ones(n, E), "caption": torch.zeros(n, 12, dtype=torch.long)}
    g = seeded(3)
    gone = {p.key: p.drop(decoder.network, values[p.key], g) for p in decoder.parts}
    z, c = (gone["embedding"] == 0).all(1), (gone["caption"] == -1).all(1)
    for found, rate in ((z, 0.1), (c, 0.5), (z & c, 0.05)):
        assert abs(found.double().mean() - rate) < 4 * math.sqrt(rate * (1 - rate) / n)
    assert bool(((gone["embedding"] == 1).all(1) | z).all()), "an embedding is shown whole or not at all"


def test_a_picture_is_told_by_its_embedding(decoder):
    pictures = noise(2, 3, 8, 8, seed=4).float()
    z = torch.cat([pictures[:, :, :4].mean((2, 3)), pictures[:, :, 4:].mean((2, 3))], 1)
    options = {"levels": 3, "guide": cfg(2.0)}
    one, other = (draw(decoder, 2, embedding=told, generator=seeded(5), **options) for told in (pictures, z))
    torch.testing.assert_close(one, other)
    assert not torch.allclose(one, draw(decoder, 2, generator=seeded(5), levels=3), atol=1e-3)


def test_a_decoder_refuses(decoder):
    with pytest.raises(ValueError, match=r"embeddings \(B, 6\) or pictures \(B, 3, H, W\) are accepted, got \(2, 5\)"):
        decoder.condition(embedding=torch.zeros(2, 5))
    with pytest.raises(ValueError, match="needs doors of that width; the network has some for 6"):
        ImageEmbedding(5).check(decoder.network, decoder.shape)
    unlent = load_recipe("unclip-decoder", DECODER).build()
    with pytest.raises(ValueError, match="read by scenes-clip-strong, which this system was not lent"):
        unlent.condition(embedding=torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="name their token_width"):
        load_recipe("unclip-decoder", [*DECODER, "network.text=null"])


def test_its_statistics_come_from_the_data():
    made = load_recipe("unclip-decoder", DECODER).build()
    found = data()
    made.prepare(partial(rows, found, "test"))
    z = F.normalize(found.columns["embedding"], dim=1)
    torch.testing.assert_close(made.network.embedding.scale.mean, z.mean(0))
    torch.testing.assert_close(made.network.embedding.scale.std, z.std(0))
    loss = made.loss(found[torch.arange(4)], sample_generators(0, range(4)))["loss"]
    assert loss.shape == (4,) and bool(loss.isfinite().all())


# --- the diffusion prior --------------------------------------------------------------------------------------------


def test_the_causal_mask_and_the_padding(prior):
    """Later places and padding change nothing before; the query sees everything that counts."""
    net, level = prior.network, prior.schedule.level(500)
    x, tokens, z_t = noise(2, E).float(), torch.full((2, 12), -1), noise(2, E, seed=1).float()
    tokens[:, :4] = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    time = torch.full((2,), level.time)
    base = net(x, time, net.read_tokens(tokens, z_t))
    with torch.no_grad():  # what a padded place embeds to is seen by none: only its own row is looked up
        told = net.read_tokens(tokens, z_t)
        told.tokens[:, 5:13] += 10 * noise(2, 8, 16, seed=2).float()
        torch.testing.assert_close(net(x, time, told), base)
        told.tokens[:, 2] += noise(2, 16, seed=3).float()
        assert not torch.allclose(net(x, time, told), base, atol=1e-3)
    hidden = []
    net.transformer.register_forward_hook(lambda module, given, out: hidden.append(out))
    for shifted in (x, x + 1):
        net(shifted, time, net.read_tokens(tokens, z_t))
    torch.testing.assert_close(hidden[0][:, :15], hidden[1][:, :15])  # text, z_t, time stand before x
    assert not torch.allclose(hidden[0][:, 15:], hidden[1][:, 15:], atol=1e-3)


def test_places_of_the_prior(prior):
    """Text with its beginning, text embedding, time, noised embedding, query: 13 + 4."""
    seen = []
    prior.network.transformer.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    x, z_t = noise(1, E).float(), noise(1, E, seed=1).float()
    net = prior.network
    net(x, torch.tensor([7]), net.read_tokens(torch.full((1, 12), -1), z_t))
    places = seen[0] - net.positional_embedding
    assert places.shape == (1, 17, 16)
    torch.testing.assert_close(places[0, 0], net.token_embedding.weight[52])
    torch.testing.assert_close(places[:, 13], net.text_emb_proj(F.normalize(z_t, dim=1)))
    torch.testing.assert_close(places[:, 15], net.clip_img_proj(x))
    torch.testing.assert_close(places[:, 16:], net.prd_emb)


def test_caption_and_text_embedding_are_dropped_together(prior):
    (part,), n = prior.parts, 20_000
    tokens, z = part.drop(prior.network, (torch.zeros(n, 12, dtype=torch.long), torch.ones(n, E)), seeded(1))
    gone = (z == 0).all(1)
    assert torch.equal(gone, (tokens == -1).all(1))
    assert abs(gone.double().mean() - 0.1) < 4 * math.sqrt(0.09 / n)


def test_the_loss_is_that_of_z_itself(prior):
    """L2 of the clean embedding in the convention of the inside."""
    found = data(4)
    prior.prepare(partial(rows, data(), "test"))
    level = prior.schedule.level(torch.full((4,), 300))
    generators = sample_generators(9, range(4))
    loss = prior.loss(found.columns, generators, level)["loss"]
    z = (F.normalize(found.columns["embedding"], dim=1) - prior.network.scale.mean) / prior.network.scale.std
    generators = sample_generators(9, range(4))
    eps = torch.stack([torch.randn(E, generator=g) for g in generators])
    (part,) = prior.parts
    shown = part.drop(prior.network, part.observe(found.columns), generators)
    x_t = level.alpha[:, None].float() * z + level.sigma[:, None].float() * eps
    by_hand = prior.network(x_t, level.time, prior.network.read_tokens(*shown))
    torch.testing.assert_close(loss, (by_hand - z).square().mean(1))


def test_two_candidates_and_the_closer_one_is_kept(prior):
    one, two = sample_generators(3, range(4)), sample_generators(3, range(4))
    singles = [draw(prior, 4, caption=CAPTIONS, levels=4, candidates=1, generator=one) for _ in range(2)]
    kept = draw(prior, 4, caption=CAPTIONS, levels=4, generator=two)
    z_t = prior.read({"caption": CAPTIONS})["caption"][1]
    fits = torch.stack([F.cosine_similarity(z, z_t) for z in singles])
    torch.testing.assert_close(kept, torch.stack(singles)[fits.argmax(0), torch.arange(4)])
    assert not torch.equal(*singles)
    alone = draw(prior, 1, caption=CAPTIONS[2], levels=4, generator=sample_generators(3, [2]))
    torch.testing.assert_close(kept[2:3], alone, rtol=1e-4, atol=1e-5)


def test_embeddings_are_not_clipped_and_come_out_as_the_clip_gives_them(prior):
    prior.network.scale.mean.fill_(3.0)
    prior.network.scale.std.fill_(100.0)
    drawn = draw(prior, 4, caption=CAPTIONS, levels=4, generator=seeded(0))
    assert drawn.abs().max() > 50
    clamped = built("unclip-prior", *PRIOR, "system.clamp=0.5")
    assert draw(clamped, 4, caption=CAPTIONS, levels=4, generator=seeded(0)).abs().max() <= 0.5


def test_a_prior_learns_two_clusters_and_which_of_them_is_meant():
    """Trained for two seconds. Told, it draws from one; told nothing, from both, and not from the mean between them."""
    torch.manual_seed(0)
    conventions = [f"network.convention.{name}=false" for name in ("normalise", "standardise")]
    made = load_recipe("unclip-prior", [*PRIOR, "network.embedding=2", "system.drop=0.5", *conventions]).build()
    sign = torch.randint(0, 2, (512, 1), generator=seeded(1)) * 2.0 - 1
    z = sign * torch.ones(2) + 0.1 * torch.randn(512, 2, generator=seeded(2))
    found = Columns(caption=torch.full((512, 12), -1), embedding=z, text_embedding=sign * torch.ones(2))
    optimizer = torch.optim.AdamW(made.parameters(), 1e-2)
    for step in range(250):
        optimizer.zero_grad()
        batch = found[torch.randint(0, 512, (64,), generator=seeded(step))]
        made.loss(batch, seeded(step))["loss"].mean().backward()
        optimizer.step()
    made.eval().requires_grad_(False)
    told = (torch.full((600, 12), -1), torch.tensor([1.0, -1, 0]).repeat_interleave(200)[:, None].expand(-1, 2))
    up, down, any_of = draw(made, 600, caption=told, levels=10, candidates=1, generator=seeded(3)).chunk(3)
    assert up.mean() == pytest.approx(1, abs=0.2) and down.mean() == pytest.approx(-1, abs=0.2)
    assert 0.2 < (any_of > 0).float().mean() < 0.8 and any_of.abs().mean() > 0.75


# --- the autoregressive prior ---------------------------------------------------------------------------------------


def test_principal_directions_are_those_of_numpy():
    import numpy as np

    z = noise(300, E) * torch.tensor([3.0, 0.1, 1.0, 0.5, 2.0, 0.2]) + 4
    codes = PrincipalCodes(E, 3, 64).double()
    codes.learn(z)
    _, spread, directions = np.linalg.svd((z - z.mean(0)).numpy(), full_matrices=False)
    for i in range(3):
        assert abs(float(codes.basis[:, i] @ torch.from_numpy(directions[i]))) == pytest.approx(1, abs=1e-6)
    scores = (z - codes.mean) @ codes.basis
    variances = scores.var(0)
    assert bool((variances[:-1] >= variances[1:]).all()), "by falling eigenvalue"
    lost = (codes.decode(codes.encode(z)) - z).square().sum(1).mean()
    least = (spread[3:] ** 2).sum() / 300  # what three directions cannot hold
    widths = (codes.of.high - codes.of.low) / 64
    assert least < lost < least + widths.square().sum() / 4, "and half a bucket each at most"


def test_buckets():
    of = Buckets(1, 4)
    of.learn(torch.tensor([[0.0], [1.0]]))
    x = torch.tensor([[-3.0], [0.0], [0.24], [0.26], [0.99], [1.0], [9.0]])
    assert of.encode(x)[:, 0].tolist() == [0, 0, 0, 1, 3, 3, 3]
    torch.testing.assert_close(of.decode(torch.tensor([[0], [3]])), torch.tensor([[0.125], [0.875]]))


def test_a_code_depends_on_what_stands_before_it(coder):
    net = coder.network
    codes, told = torch.tensor([[0, 1, 2, 3]]), coder.encode(coder.read({"caption": CAPTIONS[:1]}))
    full = net(codes, None, told)
    assert full.shape == (1, 5, 5)
    for known in range(5):
        torch.testing.assert_close(net(codes[:, :known], None, told), full[:, : known + 1])
    changed = net(torch.tensor([[0, 1, 4, 3]]), None, told)
    torch.testing.assert_close(changed[:, :3], full[:, :3])
    assert not torch.allclose(changed[:, 3:], full[:, 3:], atol=1e-3)
    assert not torch.allclose(net(codes, None, coder.null(1))[:, 0], full[:, 0], atol=1e-3)


def test_the_loss_is_the_mean_surprise_of_cosine_and_codes(coder):
    found = data(4)
    coder.prepare(partial(rows, data(), "test"))
    z, z_t = found.columns["embedding"], found.columns["text_embedding"]
    codes = coder.codes(z, z_t)
    cosine = F.cosine_similarity(z, z_t)[:, None]
    assert torch.equal(codes[:, :1], coder.network.cosines.encode(cosine)) and codes.shape == (4, 5)
    quiet = load_recipe("unclip-ar-prior", [*PRIOR, "network.components=4", "network.buckets=5", "system.drop=0"])
    other = lent(quiet.build())
    other.load_state_dict(coder.state_dict())
    terms = other.eval().loss(found.columns, sample_generators(0, range(4)))
    logits = other.network(codes[:, :-1], None, other.network.read_tokens(found.columns["caption"], z_t))
    nats = -logits.log_softmax(2).gather(2, codes[..., None])[..., 0]
    torch.testing.assert_close(terms["loss"], nats.mean(1))
    torch.testing.assert_close(terms["cosine"], nats[:, 0])


class Fixed(torch.nn.Module):
    """A network whose logits are chosen: of a text, and of none."""

    def __init__(self, net, told, untold):
        super().__init__()
        self.config, self.codes, self.cosines = net.config, net.codes, net.cosines
        self.told, self.untold = told, untold
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def read_tokens(self, tokens, z_t):
        return (z_t != 0).any(1)

    def forward(self, codes, time, told):
        logits = torch.where(told[:, None], self.told, self.untold)
        return logits[:, None].expand(-1, codes.shape[1] + 1, -1)


def test_codes_are_drawn_by_guided_logits_and_the_cosine_from_its_top_half(coder):
    n, told, untold = 8000, torch.tensor([0.0, 0.5, 1.0, 0.2, -0.5]), torch.tensor([1.0, 0.5, 0.0, 0.0, 0.0])
    net = coder.network
    coder.network = Fixed(net, told, untold)
    coder.encode = lambda values: coder.network.read_tokens(*values["caption"])
    drawn = []
    coder.network.codes.decode = lambda codes: drawn.append(codes) or torch.zeros(n, E)
    seen = []
    inner = coder.network.forward
    coder.network.forward = lambda codes, time, told: seen.append(codes) or inner(codes, time, told)
    coder.draw(n, caption=CAPTIONS[0], scale=2.0, generator=seeded(0))
    frequencies = torch.stack([(drawn[0] == k).double().mean(0) for k in range(5)], 1)
    expected = (2 * told - untold).softmax(0).double()
    assert (frequencies - expected).abs().max() < 5 * 0.5 / n**0.5
    cosines = seen[-1][:, 0]
    p = told.double().softmax(0)
    top = torch.zeros(5, dtype=torch.double)
    left = 0.5
    for k in reversed(range(5)):
        top[k] = min(float(p[k]), left)
        left -= float(top[k])
    found = torch.stack([(cosines == k).double().mean() for k in range(5)])
    assert (found - top / 0.5).abs().max() < 5 * 0.5 / n**0.5


def test_an_embedding_does_not_depend_on_its_batch(coder):
    coder.prepare(partial(rows, data(), "test"))
    many = coder.draw(4, caption=CAPTIONS, scale=2.0, generator=sample_generators(0, range(4)))
    one = coder.draw(1, caption=CAPTIONS[1], scale=2.0, generator=sample_generators(0, [1]))
    torch.testing.assert_close(many[1:2], one)
    with pytest.raises(ValueError, match=r"top must be a share in \(0, 1\], got 0"):
        coder.draw(1, caption=CAPTIONS[0], top=0)


def test_shapes_of_priors_are_checked():
    with pytest.raises(ValueError, match="name one"):
        PriorConfig(E, 16, 1, 2, 12)
    with pytest.raises(ValueError, match="does not divide into 3 heads"):
        PriorConfig(E, 16, 1, 3, 12, vocabulary=5)
    with pytest.raises(ValueError, match="1 to 6 components"):
        CodePriorConfig(E, 16, 1, 2, 12, vocabulary=5, components=7)
    net = DiffusionPrior(PriorConfig(E, 16, 1, 2, 12, vocabulary=5))
    with pytest.raises(ValueError, match=r"shape \(B, 12\), got \(1, 3\)"):
        net.read_tokens(torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, E))
    with pytest.raises(ValueError, match=r"\(B, 6\), got \(1, 5\)"):
        net.read_tokens(torch.zeros(1, 12, dtype=torch.long), torch.zeros(1, 5))
    deep = CodePrior(CodePriorConfig(E, 16, 1, 2, 12, vocabulary=5, text_layers=1, text_width=8, components=2))
    assert deep(torch.zeros(3, 1, dtype=torch.long)).shape == (3, 2, 64)


# --- crops ----------------------------------------------------------------------------------------------------------

UP = ["network.size=16", "network.channels=8", "network.channel_mult=[1,2]", "network.groups=4", "data.size=16"]


def test_crops_are_parts_of_the_images():
    images = torch.arange(2 * 8 * 8, dtype=torch.float32).reshape(2, 1, 8, 8)
    crops = random_crops(images.repeat(200, 1, 1, 1), 3, seeded(0))
    assert crops.shape == (400, 1, 3, 3)
    corners = crops[:, 0, 0, 0] - images[:, 0, 0, 0].repeat(200)
    assert {(int(c) // 8, int(c) % 8) for c in corners} == {(i, j) for i in range(6) for j in range(6)}
    expected = torch.stack([corners + 8 * i + j for i in range(3) for j in range(3)], 1).reshape(-1, 3, 3)
    torch.testing.assert_close(crops[:, 0] - images[:, 0, 0, 0].repeat(200)[:, None, None], expected)


def test_an_upsampler_of_convolutions_is_trained_on_crops_and_asked_about_whole_images():
    made = built("unclip-up64", *UP)
    seen = []
    made.network.register_forward_pre_hook(lambda module, given: seen.append(given[0].shape))
    batch = {"image": torch.rand(3, 3, 16, 16, generator=seeded(0))}
    made.train().loss(batch, seeded(1))
    made.eval().loss(batch, seeded(1))
    assert seen == [(3, 3, 8, 8), (3, 3, 16, 16)]
    assert draw(made, 2, low_res=torch.zeros(2, 3, 4, 4), levels=2, generator=seeded(0)).shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match="sides that 2 divides, got"):
        made.network(torch.zeros(1, 6, 9, 9), torch.zeros(1))
    with pytest.raises(ValueError, match="crops are for a network without attention"):
        load_recipe("unclip-up64", [*UP, "network.attention=[8]", "network.head_channels=8"]).build()
    with pytest.raises(ValueError, match="degrade '', 'blur', 'bsr'"):
        load_recipe("unclip-up64", [*UP, "system.degrade=fog"])


def test_prior_decoder_and_upsampler_in_one_cascade(prior, decoder, coder):
    up = built("unclip-up64", *UP, "system.factor=2")
    for first, options in ((prior, {"levels": 2}), (coder, {"scale": 1.0})):
        stages = [(first, options), (decoder, {"levels": 2, "guide": cfg(2.0)}), (up, {"levels": 2})]
        drawn = cascade(stages, 4, sample_generators(0, range(4)), caption=CAPTIONS)
        assert drawn.shape == (4, 3, 16, 16)
    generator = sample_generators(0, range(4))
    z = draw(prior, 4, levels=2, caption=CAPTIONS, generator=generator)
    small = draw(decoder, 4, levels=2, guide=cfg(2.0), embedding=z, caption=CAPTIONS, generator=generator)
    handed = blurred(up.part("low_res").quantize(small), 0.6)  # as all small pictures of its training were
    by_hand = draw(up, 4, levels=2, low_res=handed, generator=generator)
    stages = [(prior, {"levels": 2}), (decoder, {"levels": 2, "guide": cfg(2.0)}), (up, {"levels": 2})]
    torch.testing.assert_close(cascade(stages, 4, sample_generators(0, range(4)), caption=CAPTIONS), by_hand)
    with pytest.raises(ValueError, match=r"one stage draws \(6,\), the next takes \(3, 8, 8\)"):
        cascade([(prior, {}), (up, {})], 1, caption=CAPTIONS[:1])


# --- a released CLIP ------------------------------------------------------------------------------------------------


def test_states_of_a_released_clip(tmp_path):
    """Its embedding is the state at the end of the text, projected; what follows the end does not count."""
    small_open_clip(tmp_path, 77)
    clip = released_clip(f"local-dir:{tmp_path}")
    states, counts, z = clip.text_states(["a ring", ""])
    assert states.shape == (2, 77, 16) and counts.sum(1).tolist() == [4, 2]  # start, two words, end; start, end
    at_end = states[torch.arange(2), counts.sum(1) - 1]
    torch.testing.assert_close(at_end @ clip.network.model.text_projection, z, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="a noised CLIP does not show the states"):
        load("scenes-clip-noisy").text_states(["a ring"])


def test_karlos_systems_read_captions_by_the_frozen_clip(tmp_path):
    """Of tiny size: the null is the empty text, and both networks are told the same states."""
    small_open_clip(tmp_path, 77)
    clip = released_clip(f"local-dir:{tmp_path}")
    changes = ["network.embedding=12", "network.states=16", "network.width=16", "network.layers=1", "network.heads=2"]
    prior = awake(load_recipe("karlo-prior", changes).build(), 0.3, dtype=torch.float32)
    prior.parts[0].lend(lambda: clip)
    level, x = prior.schedule.level(500), noise(2, 12).float()
    nothing = prior(x, level, prior.null(2, caption=CAPTIONS[:2])).value
    torch.testing.assert_close(nothing, prior(x, level, prior.condition(2, caption=["", ""])).value)
    assert not torch.allclose(nothing, prior(x, level, prior.condition(caption=CAPTIONS[:2])).value, atol=1e-4)
    drawn = draw(prior, 2, caption=CAPTIONS[:2], guide=cfg(4.0), levels="25", sampler=ancestral(), generator=seeded(0))
    assert drawn.shape == (2, 12) and bool(drawn.isfinite().all())
