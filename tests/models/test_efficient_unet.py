"""Imagen's Efficient U-Net: what the printed networks count to, where each block acts, and every choice taken back."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from helpers import awake, noise

from minidiff.condition import Condition
from minidiff.models.efficient_unet import CrossAttention, EfficientUNet, EfficientUNetConfig
from minidiff.models.embedding import LanguageConfig
from minidiff.models.layers import ResBlock
from minidiff.recipes import load_recipe

SMALL = {"size": 16, "channels": 8, "channel_mult": (1, 2, 4), "blocks": (1, 2, 3), "heads": 2, "groups": 4}


def built(**changes):
    return awake(EfficientUNet(EfficientUNetConfig(**SMALL | changes)), 0.2).requires_grad_(False)


def res_block(c, out, embedding):
    """Two 3x3 convolutions, a 1x1 convolution beside them, two norms, the time as scale and shift."""
    convolutions = 9 * c * out + out + 9 * out * out + out + c * out + out
    return convolutions + 2 * c + 2 * out + 2 * out * (embedding + 1)


@pytest.mark.parametrize("join", ["concatenate", "add"])
def test_the_network_as_it_is_printed(join):
    """Widths 128, 256, 512, 1024; 2, 4, 8, 8 blocks; strides of 2 before them: counted by hand."""
    widths, blocks, before, e = (128, 256, 512, 1024), (2, 4, 8, 8), (128, 128, 256, 512), 512
    first = {"concatenate": 2, "add": 1}[join]
    down = sum(n * res_block(w, w, e) for n, w in zip(blocks, widths, strict=True))
    up = sum((n - 1) * res_block(w, w, e) + res_block(first * w, w, e) for n, w in zip(blocks, widths, strict=True))
    smaller = sum(9 * c * w + w for c, w in zip(before, widths, strict=True))
    larger = sum(9 * w * c + c for c, w in zip(before, widths, strict=True))
    time = 128 * e + e + e * e + e
    ends = (9 * 3 * 128 + 128) + (2 * 128 + 9 * 128 * 3 + 3)
    config = EfficientUNetConfig(size=256, channels=128, channel_mult=(1, 2, 4, 8), blocks=blocks, join=join)
    with torch.device("meta"):
        network = EfficientUNet(config)
    assert sum(p.numel() for p in network.parameters()) == down + up + smaller + larger + time + ends


def test_the_printed_upsamplers_are_both_less_than_half_a_billion():
    """The paper's rounded figures are 600 and 400 million."""
    count = lambda name: sum(p.numel() for p in load_recipe(name).build(empty=True).parameters())
    first, second = count("imagen-paper-up256"), count("imagen-paper-up1024")
    attention = 1024 * 3 * 1024 + 3 * 1024  # self-attention has queries, keys and values of the pixels
    cross = 1024 * 1024 + 1024  # what attends to tokens alone has queries
    assert first - second == 2 * (attention - cross) and 0.47e9 < second < first < 0.48e9
    assert 2.0e9 < count("imagen-paper-base") < 2.2e9


@pytest.mark.parametrize("early", [True, False])
def test_blocks_act_after_the_image_was_made_smaller_or_before(early):
    network, seen = built(early=early), []
    for module in network.modules():
        if isinstance(module, ResBlock):
            module.register_forward_hook(lambda m, given, out: seen.append(given[0].shape[-1]))
    network(noise(1, 3, 16, 16), torch.zeros(1))
    sides = (8, 4, 2) if early else (16, 8, 4)
    down = [side for side, n in zip(sides, SMALL["blocks"], strict=True) for _ in range(n)]
    assert seen == down + down[::-1] and network.config.resolutions == sides


@pytest.mark.parametrize(
    ("early", "join", "middle", "strides"),
    list(product([True, False], ["concatenate", "add"], [0, 1], [None, (1, 2, 2)])),
)
def test_every_choice_can_be_taken_back(early, join, middle, strides):
    network = built(early=early, join=join, middle=middle, strides=strides)
    x, t = noise(2, 3, 16, 16), torch.tensor([1.0, 900.0])
    out = network(x, t)
    assert out.shape == x.shape and bool(out.isfinite().all())
    torch.testing.assert_close(out[1:], network(x[1:], t[1:]))


def test_skip_connections_are_scaled():
    """At a scale of 0 what comes from the way down no longer matters, but through the bottom."""
    x, t = noise(1, 3, 16, 16), torch.zeros(1)
    plain, scaled = built(skip_scale=1.0, join="add"), built(join="add")
    scaled.load_state_dict(plain.state_dict())
    given = plain.entering(x, t)[1:]
    h, skips = plain.encode(x, *given)
    expected = plain.decode(h, [0.5**0.5 * skip for skip in skips], *given)
    torch.testing.assert_close(scaled(x, t), expected)


def test_tokens_enter_where_they_are_attended_to():
    language = LanguageConfig(5, heads=2)
    network = built(attention=(4,), cross=(8,), token_width=12, language=language)
    x, t, states = noise(2, 3, 16, 16), torch.zeros(2), noise(2, 3, 5)
    told = network.language(states, torch.ones(2, 3, dtype=torch.bool))
    assert float((network(x, t, told) - network(x, t)).abs().max()) > 1e-3
    nothing = network.language(torch.zeros(2, 3, 5).double(), torch.zeros(2, 3, dtype=torch.bool))
    out = network(x, t, nothing)
    assert bool(out.isfinite().all()), "a text without a token leaves a key to attend to"


def test_pixels_attend_to_tokens_and_to_nothing():
    """One pixel, one head: a softmax over the tokens' logits and a zero, by hand."""
    layer = awake(CrossAttention(4, 1, 6, groups=2), 0.5)
    x, tokens, mask = noise(1, 4, 1, 1), noise(1, 2, 6, seed=1), torch.tensor([[True, False]])
    pixel = layer.norm(x).flatten(1)
    query = pixel @ layer.query.weight[..., 0].T + layer.query.bias
    key, value = (tokens[:, 0] @ layer.key_value.weight[..., 0].T + layer.key_value.bias).chunk(2, dim=1)
    weight = torch.sigmoid((query * key).sum() / 4**0.5)
    expected = x.flatten(1) + weight * value @ layer.proj_out.weight[..., 0].T + layer.proj_out.bias
    torch.testing.assert_close(layer(x, tokens, mask).flatten(1), expected)
    assert torch.equal(layer(x), x)


def test_without_attention_among_pixels_every_size_is_taken():
    network = built(cross=(2,), token_width=12)
    for side in (8, 24):
        assert network(noise(1, 3, side, side), torch.zeros(1)).shape[-1] == side
    with pytest.raises(ValueError, match="sides that 8 divides"):
        network(noise(1, 3, 12, 12), torch.zeros(1))
    with pytest.raises(ValueError, match="attends to tokens"):
        network(noise(1, 3, 16, 16), torch.zeros(1), Condition(tokens=noise(1, 2, 5)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": (1, 2)}, "name each level once, got lengths"),
        ({"strides": (2, 3, 1)}, "strides are 1 or 2"),
        ({"size": 12}, "divide the size 12"),
        ({"join": "both"}, "join must be one of concatenate, add, got 'both'"),
        ({"attention": (16,)}, "would never act"),
        ({"cross": (4,)}, "name their token_width"),
    ],
)
def test_shapes_that_are_none(changes, message):
    with pytest.raises(ValueError, match=message):
        EfficientUNetConfig(**SMALL | changes)
