"""Text into the network: the transformer against torch's own, attention to words against its formula written out."""

from __future__ import annotations

import dataclasses
import functools
import math

import pytest
import torch
from helpers import awake, noise
from torch import nn

from minidiff.condition import Condition
from minidiff.models.layers import AttentionBlock, attention
from minidiff.models.text import TextConfig, TextTransformer
from minidiff.models.transformer import Transformer
from minidiff.models.unet import UNet, UNetConfig

TEXT = TextConfig(vocabulary=11, context=6, width=24, layers=2, heads=3)
TINY = UNetConfig(
    size=8, channels=16, channel_mult=(1, 2), blocks=1, attention=(4,), head_channels=8, groups=4, text=TEXT
)  # fmt: skip


@pytest.fixture
def text():
    return awake(TextTransformer(TEXT, 64))


@pytest.fixture
def tokens():
    return torch.tensor([[3, 1, 0, -1, -1, -1], [4, 4, 10, 2, 7, 9], [-1] * 6, [0, -1, -1, -1, -1, -1]])


# --- the transformer ------------------------------------------------------------------------------------------------


def test_the_transformer_is_torchs_own(text, tokens):
    """Pre-norm encoder layers with GELU, weights copied; embedded by a loop; no mask of any kind."""
    rows = [
        [
            text.padding_embedding[i] if t < 0 else text.token_embedding.weight[t] + text.positional_embedding[i]
            for i, t in enumerate(row)
        ]
        for row in tokens.tolist()
    ]
    x = torch.stack([torch.stack(row) for row in rows])
    for block in text.transformer.resblocks:
        layer = nn.TransformerEncoderLayer(24, 3, 96, 0.0, "gelu", batch_first=True, norm_first=True).double().eval()
        names = {
            "self_attn.in_proj_": block.attn.c_qkv, "self_attn.out_proj.": block.attn.c_proj, "norm1.": block.ln_1,
            "linear1.": block.mlp.c_fc, "linear2.": block.mlp.c_proj, "norm2.": block.ln_2,
        }  # fmt: skip
        layer.load_state_dict({f"{k}{p}": getattr(m, p) for k, m in names.items() for p in ("weight", "bias")})
        x = layer(x)
    expected = nn.functional.layer_norm(x, (24,), text.final_ln.weight, text.final_ln.bias)
    vector, sequence = text(tokens)
    torch.testing.assert_close(sequence, expected)
    torch.testing.assert_close(vector, expected[:, -1] @ text.transformer_proj.weight.T + text.transformer_proj.bias)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_masked_and_causal_blocks_are_torchs_own(causal, masked):
    ours = awake(Transformer(24, 2, 3, causal))
    layer = nn.TransformerEncoderLayer(24, 3, 96, 0.0, "gelu", batch_first=True, norm_first=True)
    theirs = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double().eval()
    names = {
        "attn.c_qkv.": "self_attn.in_proj_", "attn.c_proj": "self_attn.out_proj", "ln_1": "norm1", "ln_2": "norm2",
        "mlp.c_fc": "linear1", "mlp.c_proj": "linear2", "resblocks": "layers",
    }  # fmt: skip
    renamed = lambda key: functools.reduce(lambda name, pair: name.replace(*pair), names.items(), key)
    theirs.load_state_dict({renamed(key): value for key, value in ours.state_dict().items()})
    x, mask = noise(3, 6, 24), torch.arange(6) < torch.tensor([[6], [4], [1]])
    expected = theirs(
        x,
        mask=torch.ones(6, 6, dtype=torch.bool).triu(1) if causal else None,
        src_key_padding_mask=~mask if masked else None,
    )
    torch.testing.assert_close(ours(x, mask if masked else None), expected)


def test_the_order_of_words_enters_by_their_places_alone(text, tokens):
    shuffled = tokens[1:2, [2, 0, 1, 5, 3, 4]]
    assert not torch.allclose(text(tokens[1:2])[1].sum(1), text(shuffled)[1].sum(1), atol=1e-3)
    with torch.no_grad():
        text.positional_embedding.zero_()
    torch.testing.assert_close(text(tokens[1:2])[1][:, [2, 0, 1, 5, 3, 4]], text(shuffled)[1])


@torch.no_grad()
def test_places_stay_unlike_unless_embeddings_start_narrow():
    """What uniform attention adds is alike for all places; the scale of the embeddings decides what it drowns."""

    def unlike(std):
        torch.manual_seed(0)
        sequence = TextTransformer(dataclasses.replace(TEXT, embedding_std=std), 64)(torch.randint(11, (50, 6)))[1]
        return sequence.std(1).mean().item()

    assert unlike(0.02) < 0.3 and unlike(TEXT.embedding_std) > 0.6


def test_padding_is_learnt_and_belongs_to_its_place(text, tokens):
    before = text(tokens)[1]
    with torch.no_grad():
        text.padding_embedding[3].copy_(noise(24, seed=5))  # not a constant: layer norms would take it away
    after = text(tokens)[1]
    changed = (before - after).abs().amax((1, 2)) > 1e-6
    assert changed.tolist() == [True, False, True, True], "place 3 is a gap in all captions but the second"
    text(tokens)[0].square().sum().backward()
    assert bool((text.padding_embedding.grad.abs().amax(1) > 0).all())
    said = text.token_embedding.weight.grad.abs().amax(1) > 0
    assert said.tolist() == [bool((tokens == word).any()) for word in range(11)], "a gap is no word"


def test_a_caption_does_not_depend_on_its_batch(text, tokens):
    vector, sequence = text(tokens)
    for i in range(len(tokens)):
        alone = text(tokens[i : i + 1])
        torch.testing.assert_close(vector[i : i + 1], alone[0])
        torch.testing.assert_close(sequence[i : i + 1], alone[1])


@pytest.mark.parametrize(
    "bad, message",
    [
        (torch.zeros(2, 5).long(), r"of shape \(B, 6\), got \(2, 5\)"),
        (torch.zeros(6).long(), r"of shape \(B, 6\), got \(6,\)"),
        (torch.full((1, 6), 11), r"from -1 \(none\) to 10, got"),
        (torch.full((1, 6), -2), r"from -1 \(none\) to 10, got"),
    ],
)
def test_other_captions_are_refused(text, bad, message):
    with pytest.raises(ValueError, match=message):
        text(bad)


def test_widths_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="width 24 does not divide into 5 heads"):
        dataclasses.replace(TEXT, heads=5)


# --- attention to words ---------------------------------------------------------------------------------------------


def by_the_formula(block, x, words, counts=None):
    """The attention block, one pixel and one head at a time; ``counts`` (L,) says which words count."""
    b, c, h, w = x.shape
    flat = block.norm(x).flatten(2)
    qkv = torch.einsum("oc,bcl->blo", block.qkv.weight[..., 0], flat) + block.qkv.bias
    told = torch.einsum("oc,blc->blo", block.encoder_kv.weight[..., 0], words) + block.encoder_kv.bias
    if counts is not None:
        told = told[:, counts]
    d, out = c // block.heads, torch.zeros_like(flat)
    for i in range(b):
        for head in range(block.heads):
            part = slice(head * d, (head + 1) * d)
            q, k, v = (qkv[i, :, n * c :][:, part] for n in range(3))
            k = torch.cat([told[i, :, part], k])
            v = torch.cat([told[i, :, c:][:, part], v])
            for pixel in range(h * w):
                weight = (k @ q[pixel] / math.sqrt(d)).exp()
                out[i, part, pixel] = (weight[:, None] * v).sum(0) / weight.sum()
    out = torch.einsum("oc,bcl->bol", block.proj_out.weight[..., 0], out) + block.proj_out.bias[:, None]
    return x + out.reshape(x.shape)


@pytest.fixture
def block():
    return awake(AttentionBlock(16, 2, groups=4, tokens=24))


@pytest.fixture
def x():
    return noise(3, 16, 3, 3)


@pytest.fixture
def words():
    return noise(3, 5, 24, seed=1)


def test_words_join_the_keys_and_values(block, x, words):
    torch.testing.assert_close(block(x, words), by_the_formula(block, x, words))
    assert not torch.allclose(block(x, words), block(x))


def test_a_permutation_of_pixels_permutes_the_output(block, x, words):
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    permuted = lambda image: image.flatten(2)[..., order].unflatten(2, (3, 3))
    torch.testing.assert_close(block(permuted(x), words), permuted(block(x, words)))


def test_the_order_of_words_as_keys_does_not_matter(block, x, words):
    torch.testing.assert_close(block(x, words[:, [3, 0, 4, 1, 2]]), block(x, words))


def test_masked_words_have_no_influence(block, x, words):
    mask = torch.tensor([True, True, False, True, False]).expand(3, 5)
    torch.testing.assert_close(block(x, words, mask), by_the_formula(block, x, words, mask[0]))
    other = torch.where(mask[..., None], words, 100 * noise(3, 5, 24, seed=3))
    assert torch.equal(block(x, other, mask), block(x, words, mask))
    assert not torch.allclose(block(x, other), block(x, words)), "without a mask they have"
    torch.testing.assert_close(block(x, words, torch.zeros(3, 5, dtype=torch.bool)), block(x))
    torch.testing.assert_close(block(x, words, torch.ones(3, 5, dtype=torch.bool)), block(x, words))


def test_each_sample_has_its_own_mask(block, x, words):
    mask = torch.rand(3, 5, generator=torch.Generator().manual_seed(4)) < 0.5
    together = block(x, words, mask)
    for i in range(3):
        torch.testing.assert_close(together[i], block(x[i : i + 1], words[i : i + 1, mask[i]])[0])


def test_a_block_without_an_entrance_ignores_words(x, words):
    block = awake(AttentionBlock(16, 2, groups=4))
    assert block.encoder_kv is None and torch.equal(block(x, words), block(x))


def test_half_precision_masks_alike():
    q, k, v = (noise(2, 2, 7, 8, seed=i) for i in range(3))
    mask = torch.tensor([[True] * 5 + [False] * 2, [False, True] * 3 + [True]])
    full, half = attention(q, k, v, mask), attention(*(t.bfloat16() for t in (q, k, v)), mask)
    torch.testing.assert_close(half.double(), full, atol=0.03, rtol=0.03)


# --- the network ----------------------------------------------------------------------------------------------------


def asked(network, tokens, mask=None):
    vector, sequence = network.text(tokens)
    return Condition(vector=vector, tokens=None if network.config.text.pooled else sequence, tokens_mask=mask)


def test_every_attention_block_hears_the_caption(tokens):
    network = awake(UNet(TINY))
    images, time = noise(4, 3, 8, 8), torch.full((4,), 300)
    network(images, time, asked(network, tokens)).square().sum().backward()
    entrances = {n: p for n, p in network.named_parameters() if "encoder_kv" in n}
    blocks = [m for m in network.modules() if isinstance(m, AttentionBlock)]
    assert len(entrances) == 2 * len(blocks) == 8
    assert all(p.grad.abs().max() > 0 for n, p in entrances.items() if n.endswith("weight"))
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.text.parameters() if p.ndim > 1)


def test_the_mask_reaches_every_block(tokens):
    network = awake(UNet(TINY))
    images, time = noise(4, 3, 8, 8), torch.full((4,), 300)
    vector, sequence = network.text(tokens)
    mask, other = tokens >= 0, torch.where((tokens >= 0)[..., None], sequence, 50.0)
    outputs = [network(images, time, Condition(vector=vector, tokens=s, tokens_mask=mask)) for s in (sequence, other)]
    assert torch.equal(*outputs)


def test_recomputing_the_forward_pass_keeps_the_gradients(tokens):
    images, time, gradients = noise(4, 3, 8, 8), torch.full((4,), 300), []
    for checkpointing in (False, True):
        network = awake(UNet(TINY))
        for module in network.modules():
            if hasattr(module, "checkpointing"):
                module.checkpointing = checkpointing
        network(images, time, asked(network, tokens, tokens >= 0)).square().sum().backward()
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_pooled_text_enters_as_a_vector_alone(tokens):
    pooled = dataclasses.replace(TINY, text=dataclasses.replace(TEXT, pooled=True))
    network = awake(UNet(pooled))
    assert not [n for n, _ in network.named_parameters() if "encoder_kv" in n]
    images, time = noise(4, 3, 8, 8), torch.full((4,), 300)
    out = network(images, time, asked(network, tokens))
    assert not torch.allclose(out, network(images, time, asked(network, tokens.flip(0))))
    with pytest.raises(ValueError, match="no door for tokens"):
        network(images, time, Condition(tokens=network.text(tokens)[1]))


def test_tokens_from_elsewhere(tokens):
    """A width of tokens alone opens the door; beside a pooled text it is a width of its own."""
    elsewhere = noise(4, 5, 20)
    images, time = noise(4, 3, 8, 8), torch.full((4,), 300)
    pooled = dataclasses.replace(TEXT, pooled=True)
    for text in (None, pooled):
        network = awake(UNet(dataclasses.replace(TINY, text=text, token_width=20)))
        widths = {p.shape[1] for n, p in network.named_parameters() if "encoder_kv.weight" in n}
        assert widths == {20} and hasattr(network, "text") == (text is not None)
        plain, vector = network(images, time), network.text(tokens)[0] if text else None
        out = network(images, time, Condition(vector=vector, tokens=elsewhere))
        assert (out - plain).flatten(1).abs().amax(1).min() > 1e-4
        with pytest.raises(ValueError, match=r"attends to tokens \(B, L, 20\), got \(4, 5, 24\)"):
            network(images, time, Condition(tokens=noise(4, 5, 24)))


def test_the_width_of_tokens_is_that_of_the_text_unless_it_is_pooled():
    assert TINY.tokens == 24 and dataclasses.replace(TINY, token_width=24).tokens == 24
    assert dataclasses.replace(TINY, text=None).tokens is None
    assert dataclasses.replace(TINY, text=dataclasses.replace(TEXT, pooled=True)).tokens is None
    with pytest.raises(ValueError, match="token_width 20 is not the width 24 of the text transformer"):
        dataclasses.replace(TINY, token_width=20)


def test_tokens_through_the_wrong_door_are_refused(tokens):
    network, images, time = awake(UNet(TINY)), noise(4, 3, 8, 8), torch.full((4,), 300)
    with pytest.raises(ValueError, match=r"attends to tokens \(B, L, 24\), got \(4, 6, 20\)"):
        network(images, time, Condition(tokens=noise(4, 6, 20)))
    with pytest.raises(ValueError, match=r"attends to tokens \(B, L, 24\), got \(4, 24\)"):
        network(images, time, Condition(tokens=noise(4, 24)))
    with pytest.raises(ValueError, match="no door for tokens"):
        awake(UNet(dataclasses.replace(TINY, text=None)))(images, time, Condition(tokens=noise(4, 6, 24)))


def test_text_adds_no_output_at_the_start(tokens):
    """Zero-initialised branches: before training a caption moves nothing but what the time embedding moves."""
    torch.manual_seed(0)
    block = AttentionBlock(16, 2, groups=4, tokens=24)
    assert torch.equal(block(noise(3, 16, 3, 3).float(), noise(3, 5, 24).float()), noise(3, 16, 3, 3).float())
