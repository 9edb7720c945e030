"""Our networks beside independent implementations given the same weights: diffusers' U-Net, open_clip's pooling."""

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from helpers import awake, noise
from open_clip.modified_resnet import AttentionPool2d

from minidiff.condition import Condition
from minidiff.models.layers import AttentionPool
from minidiff.models.unet import UNet, UNetConfig

CONFIG = UNetConfig(
    size=16, channels=16, channel_mult=(1, 2, 3), blocks=2, attention=(8, 4), out_channels=6, head_channels=8,
    classes=5, groups=8,
)  # fmt: skip


def theirs(config: UNetConfig, resample: str) -> UNet2DModel:
    widths = [int(m * config.channels) for m in config.channel_mult]
    sizes = [config.size // 2**i for i in range(len(widths))]
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
    if resample == "conv":
        plain = ("DownBlock2D", "UpBlock2D")
    kinds = [("AttnDownBlock2D", "AttnUpBlock2D") if s in config.attention else plain for s in sizes]
    return UNet2DModel(
        sample_size=config.size, in_channels=3, out_channels=config.out_channels, layers_per_block=config.blocks,
        block_out_channels=tuple(widths), down_block_types=tuple(k[0] for k in kinds),
        up_block_types=tuple(k[1] for k in reversed(kinds)), downsample_type=resample, upsample_type=resample,
        attention_head_dim=config.head_channels, norm_num_groups=config.groups, norm_eps=1e-5,
        resnet_time_scale_shift="scale_shift" if config.scale_shift else "default", flip_sin_to_cos=True, freq_shift=0,
        num_class_embeds=config.classes, attn_norm_num_groups=config.groups,
    )  # fmt: skip


def copied(ours: UNet, config: UNetConfig) -> dict:
    """Our state dict under diffusers' names."""
    state, out = ours.state_dict(), {}

    def copy(source, target):
        for kind in ("weight", "bias"):
            out[f"{target}.{kind}"] = state[f"{source}.{kind}"]

    def resnet(source, target):
        pairs = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1"}
        for name, own in (pairs | {"norm2": "out_layers.0", "conv2": "out_layers.3"}).items():
            copy(f"{source}.{own}", f"{target}.{name}")
        if f"{source}.skip_connection.weight" in state:
            copy(f"{source}.skip_connection", f"{target}.conv_shortcut")

    def attention(source, target):
        copy(f"{source}.norm", f"{target}.group_norm")
        if f"{source}.encoder_kv.weight" in state:
            for kind in ("weight", "bias"):
                for name, rows in zip("kv", state[f"{source}.encoder_kv.{kind}"].chunk(2), strict=True):
                    out[f"{target}.add_{name}_proj.{kind}"] = rows.flatten(1) if kind == "weight" else rows
        out[f"{target}.to_out.0.weight"] = state[f"{source}.proj_out.weight"][..., 0]
        out[f"{target}.to_out.0.bias"] = state[f"{source}.proj_out.bias"]
        for kind in ("weight", "bias"):
            for name, rows in zip("qkv", state[f"{source}.qkv.{kind}"].chunk(3), strict=True):
                out[f"{target}.to_{name}.{kind}"] = rows.flatten(1) if kind == "weight" else rows

    def stage(source, target, i, resampler):
        resnet(f"{source}.0", f"{target}.resnets.{i}")
        if f"{source}.1.qkv.weight" in state:
            attention(f"{source}.1", f"{target}.attentions.{i}")
        if resampler:
            place = f"{source}.{2 if f'{source}.1.qkv.weight' in state else 1}"
            if f"{place}.conv.weight" in state:
                copy(f"{place}.conv", f"{target}.upsamplers.0.conv")
            else:
                resnet(place, f"{target}.upsamplers.0")

    for source, target in {"0": "linear_1", "2": "linear_2"}.items():
        copy(f"time_embed.{source}", f"time_embedding.{target}")
    out["class_embedding.weight"] = state["label_emb.weight"]
    copy("input_blocks.0.0", "conv_in")
    levels, per = len(config.channel_mult), config.blocks + 1
    for level in range(levels):
        for i in range(config.blocks):
            stage(f"input_blocks.{1 + level * per + i}", f"down_blocks.{level}", i, False)
        if level < levels - 1:
            source, target = f"input_blocks.{(level + 1) * per}.0", f"down_blocks.{level}.downsamplers.0"
            copy(f"{source}.op", f"{target}.conv") if not config.resample_blocks else resnet(source, target)
        for i in range(per):
            stage(f"output_blocks.{level * per + i}", f"up_blocks.{level}", i, i == per - 1 and level < levels - 1)
    resnet("middle_block.0", "mid_block.resnets.0")
    attention("middle_block.1", "mid_block.attentions.0")
    resnet("middle_block.2", "mid_block.resnets.1")
    copy("out.0", "conv_norm_out")
    copy("out.2", "conv_out")
    return out


@pytest.mark.parametrize("changes", [{}, {"resample_blocks": False}, {"scale_shift": False, "attention": (4,)}])
def test_diffusers_u_net_computes_the_same(changes):
    config = UNetConfig(**(vars(CONFIG) | changes))
    if not config.resample_blocks:  # diffusers has no attention block with plain convolutions but this one
        config = UNetConfig(**(vars(config) | {"attention": (8,)}))
    ours = awake(UNet(config), 0.2)
    other = theirs(config, "resnet" if config.resample_blocks else "conv").double().eval()
    other.load_state_dict(copied(ours, config))
    x, t, labels = torch.randn(3, 3, 16, 16).double(), torch.tensor([0, 433, 999]), torch.tensor([0, 2, 4])
    # their sinusoids are float32 until the first linear layer, ours as well
    expected = other(x, t, class_labels=labels).sample
    torch.testing.assert_close(ours(x, t, Condition(vector=ours.label_emb(labels))), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("controlled", [False, True])
def test_diffusers_u_net_attends_to_the_same_tokens_and_adds_the_same_residuals(controlled, masked):
    """The decoder of unCLIP as diffusers has it: keys and values of tokens stand before those of the pixels."""
    config = UNetConfig(**(vars(CONFIG) | {"token_width": 12}))
    ours, widths = awake(UNet(config), 0.2), (16, 32, 48)
    other = UNet2DConditionModel(
        sample_size=16, out_channels=6, in_channels=3, layers_per_block=2, block_out_channels=widths,
        down_block_types=("ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 2),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=(*["SimpleCrossAttnUpBlock2D"] * 2, "ResnetUpsampleBlock2D"),
        attention_head_dim=8, cross_attention_dim=12, norm_num_groups=8, resnet_time_scale_shift="scale_shift",
        num_class_embeds=5,
    ).double().eval()  # fmt: skip
    other.load_state_dict(copied(ours, config))
    x, t, labels = noise(3, 3, 16, 16), torch.tensor([0, 433, 999]), torch.tensor([0, 2, 4])
    tokens, mask = noise(3, 7, 12, seed=1), torch.arange(7) < torch.tensor([[7], [3], [1]]) if masked else None
    x, *given = ours.entering(x, t, Condition(vector=ours.label_emb(labels), tokens=tokens, tokens_mask=mask))
    h, skips = ours.encode(x, *given)
    extra = [noise(*skip.shape, seed=i) for i, skip in enumerate([*skips, h])] if controlled else None
    expected = other(
        x, t, tokens, class_labels=labels, encoder_attention_mask=mask,
        down_block_additional_residuals=extra and extra[:-1], mid_block_additional_residual=extra and extra[-1],
    ).sample  # fmt: skip
    torch.testing.assert_close(ours.decode(h, skips, *given, extra=extra)[0], expected, rtol=1e-6, atol=1e-6)


def test_clip_pools_the_same():
    """CLIP's own pooling, from which ADM's classifiers have theirs."""
    ours, other = awake(AttentionPool(3, 24, 4, 10), 0.2), AttentionPool2d(3, 24, 4, 10).double()
    q, k, v = (part[..., 0] for part in ours.qkv_proj.weight.chunk(3))
    biases = ours.qkv_proj.bias.chunk(3)
    other.load_state_dict(
        {
            "positional_embedding": ours.positional_embedding.T,
            **{f"{n}_proj.weight": w for n, w in zip("qkv", (q, k, v), strict=True)},
            **{f"{n}_proj.bias": b for n, b in zip("qkv", biases, strict=True)},
            "c_proj.weight": ours.c_proj.weight[..., 0],
            "c_proj.bias": ours.c_proj.bias,
        }
    )
    x = torch.randn(2, 24, 3, 3).double()
    torch.testing.assert_close(ours(x), other(x))
