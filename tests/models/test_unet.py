"""ADM's U-Net: published parameter counts and names, zero starts, and each block against its formula written out."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_timestep_embedding
from helpers import awake, noise
from torch import nn

from minidiff.condition import Condition
from minidiff.denoiser import as_denoiser
from minidiff.models.layers import AttentionBlock, GroupNorm, ResBlock, attend, attention, timestep_embedding
from minidiff.models.unet import UNet, UNetConfig
from minidiff.schedule import linear_schedule

TINY = UNetConfig(
    size=8, channels=16, channel_mult=(1, 2), blocks=1, attention=(4,), in_channels=2, out_channels=4,
    head_channels=8, classes=5, groups=8,
)  # fmt: skip

FOUR, FIVE, SIX = (1, 2, 3, 4), (1, 1, 2, 3, 4), (1, 1, 2, 2, 4, 4)
COMMON = {"out_channels": 6, "attention": (32, 16, 8), "head_channels": 64}
ADM = {  # millions of parameters, as counted on the public code
    "64": (295.90, {"size": 64, "channels": 192, "channel_mult": FOUR, "blocks": 3, "classes": 1000}),
    "128": (421.53, {"size": 128, "channels": 256, "channel_mult": FIVE, "head_channels": None, "classes": 1000}),
    "256": (553.84, {"size": 256, "channels": 256, "channel_mult": SIX, "classes": 1000}),
    "256-uncond": (552.81, {"size": 256, "channels": 256, "channel_mult": SIX}),
    "512": (559.00, {"size": 512, "channels": 256, "channel_mult": (0.5, *SIX), "classes": 1000}),
    "64-256": (311.80, {"size": 256, "channels": 192, "channel_mult": SIX, "in_channels": 6, "head_channels": None,
                        "classes": 1000}),
    "128-512": (308.84, {"size": 512, "channels": 192, "channel_mult": SIX, "in_channels": 6, "attention": (32, 16),
                         "classes": 1000}),
}  # fmt: skip


# --- published layout -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", list(ADM))
def test_parameter_counts_of_the_published_networks(preset):
    millions, changes = ADM[preset]
    with torch.device("meta"):
        network = UNet(UNetConfig(**(COMMON | changes)))
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


def test_names_and_shapes_are_those_of_released_checkpoints():
    network = UNet(TINY)
    shapes = {name: tuple(p.shape) for name, p in network.state_dict().items()}
    expected = {
        "time_embed.0.weight": (64, 16),
        "time_embed.2.weight": (64, 64),
        "label_emb.weight": (5, 64),
        "input_blocks.0.0.weight": (16, 2, 3, 3),
        "input_blocks.1.0.in_layers.0.weight": (16,),
        "input_blocks.1.0.in_layers.2.weight": (16, 16, 3, 3),
        "input_blocks.1.0.emb_layers.1.weight": (32, 64),  # scale and shift
        "input_blocks.1.0.out_layers.0.weight": (16,),
        "input_blocks.1.0.out_layers.3.weight": (16, 16, 3, 3),
        "input_blocks.2.0.in_layers.2.weight": (16, 16, 3, 3),  # the downsampling block
        "input_blocks.3.0.skip_connection.weight": (32, 16, 1, 1),
        "input_blocks.3.1.norm.weight": (32,),
        "input_blocks.3.1.qkv.weight": (96, 32, 1),
        "input_blocks.3.1.proj_out.weight": (32, 32, 1),
        "middle_block.0.in_layers.2.weight": (32, 32, 3, 3),
        "middle_block.1.qkv.bias": (96,),
        "middle_block.2.out_layers.3.bias": (32,),
        "output_blocks.0.0.in_layers.2.weight": (32, 64, 3, 3),
        "output_blocks.1.0.in_layers.2.weight": (32, 48, 3, 3),
        "output_blocks.1.1.qkv.weight": (96, 32, 1),
        "output_blocks.1.2.in_layers.2.weight": (32, 32, 3, 3),  # the upsampling block
        "output_blocks.2.0.in_layers.2.weight": (16, 48, 3, 3),
        "output_blocks.3.0.in_layers.2.weight": (16, 32, 3, 3),
        "out.0.weight": (16,),
        "out.2.weight": (4, 16, 3, 3),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    grammar = re.compile(
        r"(time_embed\.[02]|label_emb|input_blocks\.0\.0|out\.[02]"
        r"|((input|output)_blocks\.\d+|middle_block)\.\d+\."
        r"(in_layers\.[02]|emb_layers\.1|out_layers\.[03]|skip_connection|norm|qkv|proj_out))\.(weight|bias)"
    )
    assert [name for name in shapes if not grammar.fullmatch(name)] == []


def test_convolutional_resampling_has_its_own_names():
    names = UNet(UNetConfig(**(vars(TINY) | {"resample_blocks": False, "scale_shift": False}))).state_dict()
    assert names["input_blocks.2.0.op.weight"].shape == (16, 16, 3, 3)
    assert names["output_blocks.1.2.conv.weight"].shape == (32, 32, 3, 3)
    assert names["input_blocks.1.0.emb_layers.1.weight"].shape == (16, 64)


def test_group_norms_are_as_published():
    with torch.device("meta"):
        network = UNet(UNetConfig(**(COMMON | ADM["64"][1])))
    norms = [m for m in network.modules() if isinstance(m, nn.GroupNorm)]
    assert norms and {(m.num_groups, m.eps) for m in norms} == {(32, 1e-5)}


def test_zero_initialised_layers():
    """Second convolutions, attention outputs and the last layer; nothing else but biases of norms."""
    zero = {name for name, p in UNet(TINY).named_parameters() if not p.any()}
    ends = (".out_layers.3.weight", ".out_layers.3.bias", ".proj_out.weight", ".proj_out.bias")
    for name, parameter in UNet(TINY).named_parameters():
        if name.endswith(ends) or name in ("out.2.weight", "out.2.bias"):
            assert name in zero
        elif parameter.ndim > 1:
            assert name not in zero


def test_a_fresh_network_returns_zero_and_fresh_blocks_their_input():
    x, time = torch.randn(2, 2, 8, 8), torch.tensor([3, 900])
    assert not UNet(TINY)(x, time).any()
    h = torch.randn(2, 16, 4, 4)
    assert torch.equal(ResBlock(16, 8, 16, groups=8)(h, torch.randn(2, 8)), h)
    assert torch.equal(AttentionBlock(16, 2, groups=8)(h), h)


# --- blocks against their formulas ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [2, 7, 32])
def test_timestep_embedding_is_cosines_then_sines(dim):
    time, half = torch.tensor([0, 1, 17, 999]), dim // 2
    embedding = timestep_embedding(time, dim).double()
    assert embedding.shape == (4, dim)
    for row, t in zip(embedding, time.tolist(), strict=True):
        angles = torch.tensor([t * 10_000 ** (-i / half) for i in range(half)], dtype=torch.float64)
        expected = torch.cat([angles.cos(), angles.sin(), torch.zeros(dim % 2)])
        torch.testing.assert_close(row, expected, rtol=0, atol=2e-4)


def test_timestep_embedding_against_diffusers():
    time = torch.tensor([0, 5, 250, 999])
    theirs = get_timestep_embedding(time, 64, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(timestep_embedding(time, 64), theirs, rtol=0, atol=1e-4)


def test_attention_is_the_softmax_of_scaled_products():
    q, k, v = noise(2, 3, 5, 4, seed=1), noise(2, 3, 7, 4, seed=2), noise(2, 3, 7, 4, seed=3)
    expected = torch.einsum("bhqd,bhkd->bhqk", q, k).div(2.0).softmax(-1) @ v
    torch.testing.assert_close(attention(q, k, v), expected)


def attended_one_by_one(q, k, v, seen):
    """Each head of each query by itself, over the keys that it sees: seen(sample, query, key)."""
    out = torch.zeros_like(q)
    for b, h, i in itertools.product(*map(range, q.shape[:3])):
        keys = [j for j in range(k.shape[2]) if seen(b, i, j)]
        weights = torch.stack([q[b, h, i] @ k[b, h, j] / math.sqrt(q.shape[3]) for j in keys]).exp()
        out[b, h, i] = sum(w * v[b, h, j] for w, j in zip(weights, keys, strict=True)) / weights.sum()
    return out


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("keys", [5, 8])
def test_causal_attention_sees_no_later_key(keys, masked):
    """With a mask of keys or without, in both precisions; keys that were there before are seen by all queries."""
    q, k, v = noise(2, 3, 5, 4, seed=1), noise(2, 3, keys, 4, seed=2), noise(2, 3, keys, 4, seed=3)
    mask = torch.arange(keys) < torch.tensor([[keys - 3], [keys - 1]]) if masked else None
    seen = lambda b, i, j: j <= i + keys - 5 and (mask is None or bool(mask[b, j]))
    expected = attended_one_by_one(q, k, v, seen)
    torch.testing.assert_close(attention(q, k, v, mask, causal=True), expected)
    half = attention(*(t.bfloat16() for t in (q, k, v)), mask, causal=True)
    torch.testing.assert_close(half.double(), expected, atol=0.03, rtol=0.03)
    assert not torch.allclose(attention(q, k, v, mask), expected, atol=1e-3)


def test_attending_joins_sources_and_splits_heads():
    q, sources = noise(2, 3, 8), [(noise(2, n, 8, seed=n), noise(2, n, 8, seed=n + 9)) for n in (4, 1, 2)]
    mask = torch.tensor([[True, False, True, True, False, True, True], [False, True] * 3 + [True]])
    k, v = (torch.cat(parts, 1) for parts in zip(*sources, strict=True))
    split = lambda x: torch.stack([x[..., :4], x[..., 4:]], 1)
    expected = attended_one_by_one(split(q), split(k), split(v), lambda b, i, j: bool(mask[b, j]))
    torch.testing.assert_close(attend(q, sources, 2, mask), torch.cat([expected[:, 0], expected[:, 1]], -1))


def test_attention_block_is_its_formula_head_by_head():
    """Rows of qkv: all of q, then k, then v, each with its heads in order; added to the input."""
    block, x = awake(AttentionBlock(12, heads=3, groups=4)), noise(2, 12, 3, 5)
    pixels = F.group_norm(x, 4, block.norm.weight, block.norm.bias).reshape(2, 12, 15)
    qkv = torch.einsum("oc,bcl->bol", block.qkv.weight[..., 0], pixels) + block.qkv.bias[:, None]
    q, k, v = qkv[:, :12], qkv[:, 12:24], qkv[:, 24:]
    heads = []
    for head in range(3):
        rows = slice(4 * head, 4 * head + 4)
        weights = (torch.einsum("bcq,bck->bqk", q[:, rows], k[:, rows]) / 2).softmax(-1)
        heads.append(torch.einsum("bqk,bck->bcq", weights, v[:, rows]))
    out = torch.einsum("oc,bcl->bol", block.proj_out.weight[..., 0], torch.cat(heads, 1)) + block.proj_out.bias[:, None]
    torch.testing.assert_close(block(x), x + out.reshape(x.shape))


def test_attention_does_not_know_where_a_pixel_is():
    block, x, order = awake(AttentionBlock(8, heads=2, groups=4)), noise(1, 8, 3, 4), torch.randperm(12)
    moved = x.flatten(2)[..., order].reshape(x.shape)
    torch.testing.assert_close(block(moved), block(x).flatten(2)[..., order].reshape(x.shape))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (256, 128), (70, 131), (2, 9000)])
@pytest.mark.parametrize("mean", [0.0, 5.0])
def test_group_norm_keeps_its_digits_whatever_the_size(height, width, mean):
    """Against float64, with channels last on a CPU, where the kernel of torch loses some; gradients too."""
    norm, x = awake(GroupNorm(4, 16)).float(), (noise(2, 16, height, width) + mean).float()
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    found, (outer, exact) = norm(x), (noise(2, 16, height, width, seed=1), x.detach().double().requires_grad_())
    expected = F.group_norm(exact, 4, norm.weight.double(), norm.bias.double(), 1e-5)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)
    (gradient,), (exactly,) = torch.autograd.grad(found, x, outer.float()), torch.autograd.grad(expected, exact, outer)
    torch.testing.assert_close(gradient.double(), exactly, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale_shift", [True, False])
@pytest.mark.parametrize("resample", [None, "down", "up"])
@pytest.mark.parametrize("out", [8, 12])
def test_residual_block_is_its_formula(scale_shift, resample, out):
    """GN, SiLU, resample, conv; GN * (1 + scale) + shift (or the embedding added before); SiLU, conv; plus the skip."""
    block = awake(ResBlock(8, 6, out, groups=4, scale_shift=scale_shift, resample=resample))
    x, embedding = noise(2, 8, 4, 4), noise(2, 6, seed=5)
    resampled = {
        None: lambda h: h,
        "down": lambda h: h.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5)),
        "up": lambda h: h.repeat_interleave(2, 2).repeat_interleave(2, 3),
    }[resample]
    silu = lambda h: h * h.sigmoid()
    norm = lambda layer, h: F.group_norm(h, 4, layer.weight, layer.bias, 1e-5)
    conv = lambda layer, h: F.conv2d(h, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2)
    h = conv(block.in_layers[2], resampled(silu(norm(block.in_layers[0], x))))
    told = silu(embedding) @ block.emb_layers[1].weight.T + block.emb_layers[1].bias
    if scale_shift:
        scale, shift = told[:, :out, None, None], told[:, out:, None, None]
        h = norm(block.out_layers[0], h) * (1 + scale) + shift
    else:
        h = norm(block.out_layers[0], h + told[..., None, None])
    skip = resampled(x) if out == 8 else conv(block.skip_connection, resampled(x))
    torch.testing.assert_close(block(x, embedding), skip + conv(block.out_layers[3], silu(h)))


# --- the whole network ----------------------------------------------------------------------------------------------


def test_output_shape_and_the_use_of_time_and_label():
    network, x, time = awake(UNet(TINY)), noise(3, 2, 8, 8), torch.tensor([0, 500, 999])
    out = network(x, time)
    assert out.shape == (3, 4, 8, 8)
    assert (network(x, time + 1) - out).flatten(1).abs().amax(1).min() > 1e-6
    condition = Condition(vector=noise(3, 64))
    assert (network(x, time, condition) - out).flatten(1).abs().amax(1).min() > 1e-6
    torch.testing.assert_close(network(x, time, Condition(vector=torch.zeros(3, 64).double())), out)


def test_samples_of_a_batch_do_not_mix():
    network, x, time = awake(UNet(TINY)), noise(3, 2, 8, 8), torch.tensor([0, 500, 999])
    together = network(x, time, Condition(vector=noise(3, 64)))
    for i in range(3):
        row = slice(i, i + 1)
        torch.testing.assert_close(network(x[row], time[row], Condition(vector=noise(3, 64)[row])), together[row])


def test_memory_format_does_not_matter():
    network, x, time = awake(UNet(TINY)), noise(2, 2, 8, 8), torch.tensor([1, 2])
    torch.testing.assert_close(network(x.contiguous(memory_format=torch.channels_last), time), network(x, time))


def test_every_parameter_gets_a_gradient():
    """But the label embedding, which enters through the condition."""
    network = awake(UNet(TINY))
    network(noise(2, 2, 8, 8), torch.tensor([1, 700])).square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == ["label_emb.weight"]
    silent = [n for n, p in network.named_parameters() if p.grad is not None and not p.grad.any()]
    assert silent == []


def test_image_door_is_concatenated_after_x():
    network = awake(UNet(UNetConfig(**(vars(TINY) | {"in_channels": 3}))))
    x, image, time = noise(1, 2, 8, 8), noise(1, 1, 8, 8, seed=4), torch.tensor([9])
    torch.testing.assert_close(network(x, time, Condition(image=image)), network(torch.cat([x, image], 1), time))


# --- the way down and the way up ------------------------------------------------------------------------------------


@pytest.fixture
def halves():
    """A network and what its decoder takes: h, skips, embedding."""
    network, x = awake(UNet(TINY)), noise(3, 2, 8, 8)
    x, embedding, *_ = network.entering(x, torch.tensor([0, 500, 999]), Condition(vector=noise(3, 64, seed=1)))
    return network, *network.encode(x, embedding), embedding


def test_what_is_encoded_is_what_the_blocks_return():
    network, x, time = awake(UNet(TINY)), noise(3, 2, 8, 8), torch.tensor([0, 500, 999])
    outputs = []
    for block in (*network.input_blocks, network.middle_block):
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    h, skips = network.encode(x, network.embed_time(x, time))
    assert len(skips) == len(network.input_blocks) == len(network.output_blocks) == 4
    assert all(found is made for found, made in zip((*skips, h), outputs, strict=True))


def test_what_is_added_to_skips_and_middle(halves):
    """Written out: the last skip enters first; nothing added is nothing changed, to the bit."""
    network, h, skips, embedding = halves
    extra = [noise(*skip.shape, seed=i) for i, skip in enumerate([*skips, h])]
    out, by_hand = network.decode(h, list(skips), embedding, extra=extra)[0], h + extra[4]
    for i, block in zip((3, 2, 1, 0), network.output_blocks, strict=True):
        by_hand = block(torch.cat([by_hand, skips[i] + extra[i]], 1), embedding)
    assert torch.equal(out, network.out(by_hand))
    plain, zeros = network.decode(h, list(skips), embedding)[0], [torch.zeros_like(e) for e in extra]
    assert torch.equal(network.decode(h, list(skips), embedding, extra=zeros)[0], plain)
    for i in range(5):  # each of them arrives
        one = [e if i == j else z for j, (e, z) in enumerate(zip(extra, zeros, strict=True))]
        assert not torch.allclose(network.decode(h, list(skips), embedding, extra=one)[0], plain, atol=1e-4)


def test_outputs_of_blocks_are_kept(halves):
    network, h, skips, embedding = halves
    outputs = []
    for block in network.output_blocks:
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    out, kept = network.decode(h, list(skips), embedding, keep=(3, 1))
    assert sorted(kept) == [1, 3] and kept[1] is outputs[1] and kept[3] is outputs[3]
    assert kept[1].shape == (3, 32, 8, 8) and kept[3].shape == (3, 16, 8, 8)
    assert torch.equal(out, network.out(kept[3]))
    nothing = network.decode(h, skips, embedding)
    assert torch.equal(nothing[0], out) and nothing[1] == {} and skips == []


def test_what_a_decoder_cannot_take(halves):
    network, h, skips, embedding = halves
    with pytest.raises(ValueError, match=r"takes 4 skips, got 3"):
        network.decode(h, skips[1:], embedding)
    with pytest.raises(ValueError, match=r"extra must be 5 tensors, for 4 skips and the middle, got 4"):
        network.decode(h, skips, embedding, extra=skips)
    for keep in ((4,), (0, -1)):
        with pytest.raises(ValueError, match=r"output blocks from 0 to 3, got \["):
            network.decode(h, skips, embedding, keep=keep)


def test_a_network_says_what_enters_and_leaves():
    network, config = UNet(TINY), UNetConfig(**(vars(TINY) | {"in_channels": 5}))
    out = network(torch.zeros(1, *network.in_shape), torch.zeros(1))
    assert out.shape == (1, *network.out_shape) == (1, 4, 8, 8) and UNet(config).in_shape == (5, 8, 8)


def test_dropout_acts_in_training_alone():
    network, time = awake(UNet(UNetConfig(**(vars(TINY) | {"dropout": 0.5})))), torch.tensor([1])
    x = noise(1, 2, 8, 8)
    assert torch.equal(network(x, time), network(x, time))
    network.train()
    assert not torch.equal(network(x, time), network(x, time))


def test_a_network_is_a_denoiser():
    model = as_denoiser(awake(UNet(TINY)), "v", "learned")
    prediction = model(noise(2, 2, 8, 8), linear_schedule().level(torch.tensor([4, 800])))
    assert prediction.v.shape == prediction.fraction.shape == (2, 2, 8, 8)


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (1, 2, 16, 16), (1, 2, 8, 4), (2, 8, 8)])
def test_wrong_channels_or_size(shape):
    with pytest.raises(ValueError, match=r"takes \(B, 2, 8, 8\), got " + re.escape(str(shape))):
        UNet(TINY)(torch.zeros(shape), torch.zeros(1))


def test_a_door_this_network_lacks():
    with pytest.raises(ValueError, match="no door for tokens"):
        UNet(TINY)(torch.zeros(1, 2, 8, 8), torch.zeros(1), Condition(tokens=torch.zeros(1, 3, 16)))


def test_impossible_configurations():
    with pytest.raises(ValueError, match="size 6 must be divisible by 2 for each of 3 levels"):
        UNetConfig(size=6, channels=8, channel_mult=(1, 2, 4))
    with pytest.raises(ValueError, match="16 channels do not divide into 3 heads"):
        AttentionBlock(16, 3)
