"""Diffusion autoencoders: what reads the code, what is told it, and both halves of a picture."""

from __future__ import annotations

import pytest
import torch
from helpers import awake, noise, seeded

from minidiff.inversion import heun_inversion
from minidiff.recipes import load_recipe
from minidiff.sampler import heun
from minidiff.systems.bipartite import Bipartite
from minidiff.systems.diffae import Code
from minidiff.systems.draw import draw

E = 5
SMALL = ["network.size=8", "network.channels=8", "network.blocks=1", "network.groups=4", "network.channel_mult=[1,2]",
         "network.attention=[4]", "network.head_channels=8", f"network.code={E}", "network.reader_channels=8",
         "data.size=8"]  # fmt: skip


@pytest.fixture
def system():
    return awake(load_recipe("diffae", SMALL).build(), 0.3, dtype=torch.float32).eval()


@pytest.fixture
def pictures():
    return torch.rand(4, 3, 8, 8, generator=seeded(1)) * 2 - 1


def test_a_code_is_what_the_reader_says_of_a_clean_picture(system, pictures):
    codes = system.embed(pictures)
    one_by_one = [system.network.reader(x[None], torch.zeros(1)) for x in pictures]
    torch.testing.assert_close(codes, torch.cat(one_by_one))
    assert codes.shape == (4, E) and not codes.requires_grad


def test_the_vector_is_a_linear_map_of_the_code(system, pictures):
    told, codes = system.network.told, system.embed(pictures)
    by_hand = codes @ told.weight.T + told.bias
    condition = system.condition(embedding=codes)
    torch.testing.assert_close(condition.vector, by_hand)
    assert condition.tokens is None and condition.image is None


def test_the_loss_of_denoising_teaches_the_reader(system, pictures):
    system.train().requires_grad_(True)
    system.loss({"image": pictures}, seeded(2))["loss"].mean().backward()
    for part in (system.network.reader, system.network.told):
        assert all(p.grad is not None for p in part.parameters())
        assert max(p.grad.abs().max() for p in part.parameters()) > 0


def test_the_loss_depends_on_the_picture_that_is_read(system, pictures):
    level = system.schedule.level(500)
    as_it_is = system.loss({"image": pictures}, seeded(3), level)["loss"]
    system.network.told.weight.data.zero_()
    assert (as_it_is - system.loss({"image": pictures}, seeded(3), level)["loss"]).abs().min() > 0


def test_a_picture_is_drawn_from_as_from_its_code(system, pictures):
    x_T = noise(*pictures.shape, seed=4).float()
    how = {"levels": 4, "x_T": x_T}
    torch.testing.assert_close(
        draw(system, 4, embedding=pictures, **how), draw(system, 4, embedding=system.embed(pictures), **how)
    )


def test_both_halves_give_the_picture_back(system, pictures):
    both = Bipartite(system, 12, method=heun_inversion(), sampler=heun())
    x_T, z = both.encode(pictures)
    off = lambda x: (x - pictures).square().mean().sqrt()
    assert off(both.decode(x_T, z)) < 0.01 < 0.1 < off(both.decode(x_T.roll(1, 0), z))


def test_a_caption_is_refused(system, pictures):
    with pytest.raises(ValueError, match="told no 'caption'"):
        Bipartite(system, 4).encode(pictures, caption="a red ring")


@pytest.mark.parametrize("value", [torch.zeros(2, E + 1), torch.zeros(2, 3, 4, 4), torch.zeros(2, E).long(), "a ring"])
def test_what_is_neither_code_nor_picture_is_refused(system, value):
    with pytest.raises(ValueError, match=rf"codes \(B, {E}\) or pictures \(B, 3, 8, 8\)"):
        system.read({"embedding": value})


def test_a_code_must_be_that_of_the_network(system):
    with pytest.raises(ValueError, match="code of 7 numbers"):
        Code(7).check(system.network, system.shape)


def test_without_a_picture_there_is_nothing_to_draw(system):
    with pytest.raises(ValueError, match="name one, --like"):
        system.part("embedding").answer({}, 2, system.shape)
