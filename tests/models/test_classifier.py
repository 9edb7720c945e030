"""ADM's noisy classifier: published parameter counts and names, and its pooling written out."""

from __future__ import annotations

import re

import pytest
import torch
from helpers import awake, noise

from minidiff.models.classifier import Classifier
from minidiff.models.layers import AttentionPool
from minidiff.models.unet import UNet, UNetConfig

TINY = UNetConfig(
    size=8, channels=16, channel_mult=(1, 2), blocks=1, attention=(4,), in_channels=2, out_channels=5,
    head_channels=8, groups=8,
)  # fmt: skip
SIX = (1, 1, 2, 2, 4, 4)
PUBLISHED = {  # millions of parameters, as counted on the public code
    64: (65.44, {"blocks": 4, "channel_mult": (1, 2, 3, 4)}),
    128: (42.57, {"channel_mult": (1, 1, 2, 3, 4)}),
    256: (54.10, {"channel_mult": SIX}),
    512: (54.45, {"channel_mult": (0.5, *SIX)}),
}


@pytest.mark.parametrize("size", list(PUBLISHED))
def test_parameter_counts_of_the_published_classifiers(size):
    millions, changes = PUBLISHED[size]
    with torch.device("meta"):
        config = UNetConfig(
            size=size, channels=128, attention=(32, 16, 8), head_channels=64, out_channels=1000, **changes
        )
        network = Classifier(config)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


def test_names_and_shapes_are_those_of_released_checkpoints():
    shapes = {name: tuple(p.shape) for name, p in Classifier(TINY).state_dict().items()}
    expected = {
        "time_embed.0.weight": (64, 16),
        "input_blocks.0.0.weight": (16, 2, 3, 3),
        "middle_block.1.qkv.weight": (96, 32, 1),
        "out.0.weight": (32,),
        "out.2.positional_embedding": (32, 17),
        "out.2.qkv_proj.weight": (96, 32, 1),
        "out.2.c_proj.weight": (5, 32, 1),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    assert {name.split(".")[0] for name in shapes} == {"time_embed", "input_blocks", "middle_block", "out"}


def test_a_classifier_is_the_encoder_of_a_u_net():
    unet, classifier, x, time = UNet(TINY), awake(Classifier(TINY)), noise(2, 2, 8, 8), torch.tensor([3, 800])
    shared = {name: value for name, value in classifier.state_dict().items() if not name.startswith("out.")}
    unet.double().load_state_dict(shared, strict=False)
    h, _ = unet.encode(x, unet.embed_time(x, time))
    assert torch.equal(classifier(x, time), classifier.out(h)) and classifier.in_shape == unet.in_shape == (2, 8, 8)


def test_attention_pool_is_its_formula():
    """A mean token in front, positions added, its query alone attends to all; then a projection."""
    pool, x = awake(AttentionPool(2, 8, 2, 3)), noise(2, 8, 2, 2)
    pixels = x.reshape(2, 8, 4)
    tokens = torch.cat([pixels.mean(-1, keepdim=True), pixels], -1) + pool.positional_embedding
    qkv = torch.einsum("oc,bcl->bol", pool.qkv_proj.weight[..., 0], tokens) + pool.qkv_proj.bias[:, None]
    q, k, v = qkv.chunk(3, 1)
    heads = []
    for rows in (slice(0, 4), slice(4, 8)):
        weight = (torch.einsum("bc,bck->bk", q[:, rows, 0], k[:, rows]) / 2).softmax(-1)
        heads.append(torch.einsum("bk,bck->bc", weight, v[:, rows]))
    expected = torch.cat(heads, 1) @ pool.c_proj.weight[..., 0].T + pool.c_proj.bias
    torch.testing.assert_close(pool(x), expected)


def test_logits_depend_on_picture_and_time_of_each_sample_alone():
    network, x, time = awake(Classifier(TINY)), noise(3, 2, 8, 8), torch.tensor([-1, 10, 900])
    together = network(x, time)
    assert together.shape == (3, 5)
    assert (network(x, time + 50) - together).abs().amax(1).min() > 1e-6
    for i in range(3):
        torch.testing.assert_close(network(x[i : i + 1], time[i : i + 1]), together[i : i + 1])


def test_the_gradient_reaches_every_pixel():
    network, x = awake(Classifier(TINY)), noise(1, 2, 8, 8).requires_grad_()
    network(x, torch.tensor([5])).log_softmax(1)[0, 3].backward()
    assert bool((x.grad != 0).all())


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (1, 2, 4, 4), (2, 8, 8)])
def test_wrong_channels_or_size(shape):
    with pytest.raises(ValueError, match=r"takes \(B, 2, 8, 8\), got " + re.escape(str(shape))):
        Classifier(TINY)(torch.zeros(shape), torch.zeros(1))
