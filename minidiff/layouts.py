"""What the parameters of latent diffusion are called in files of Hugging Face's diffusers, by the names they have here.

Ours are the names of the first release (``model.diffusion_model.*``, ``first_stage_model.*``).
"""

from __future__ import annotations

import re

_RES_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_MIDDLE = {"0": "mid_block.resnets.0", "1": "mid_block.attentions.0", "2": "mid_block.resnets.1"}
_VAE_MIDDLE = {"block_1": "resnets.0", "attn_1": "attentions.0", "block_2": "resnets.1"}
_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def diffusers_unet(name: str, blocks: int = 2) -> str:
    """The name of a parameter of ``LatentUNet`` in a ``UNet2DConditionModel``.

    Args:
        name: Of the parameter.
        blocks: Residual blocks per level.
    """
    for ours, theirs in _ENDS.items():
        if name.startswith(f"{ours}."):
            return theirs + name[len(ours) :]
    side, first, rest = name.split(".", 2)
    if side == "middle_block":
        return f"{_MIDDLE[first]}.{_within(rest)}"
    way, number = ("down", int(first) - 1) if side == "input_blocks" else ("up", int(first))
    level, place = divmod(number, blocks + 1)
    layer, rest = rest.split(".", 1)
    if re.match(r"(op|conv)\.", rest):  # what ends a level
        return f"{way}_blocks.{level}.{way}samplers.0.conv.{rest.partition('.')[2]}"
    kind = "resnets" if layer == "0" else "attentions"
    return f"{way}_blocks.{level}.{kind}.{place}.{_within(rest)}"


def _within(rest: str) -> str:
    """Names inside a residual block; those inside a transformer are the same."""
    for ours, theirs in _RES_BLOCK.items():
        if rest.startswith(f"{ours}."):
            return theirs + rest[len(ours) :]
    return rest


def diffusers_vae(name: str, levels: int = 4) -> str:
    """The name of a parameter of ``AutoencoderKL`` in diffusers' network of that name.

    Args:
        name: Of the parameter.
        levels: Of the autoencoder; diffusers counts those of the decoder from the coarsest.
    """
    name = name.replace("nin_shortcut", "conv_shortcut").replace("norm_out", "conv_norm_out")
    name = re.sub(r"(down|up)sample\.conv", r"\1samplers.0.conv", name)
    name = re.sub(r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets.", name)
    name = re.sub(r"\.down\.(\d+)\.", r".down_blocks.\1.", name)
    name = re.sub(r"\.up\.(\d+)\.", lambda m: f".up_blocks.{levels - 1 - int(m[1])}.", name)
    name = re.sub(r"(up_blocks\.\d+)\.block\.", r"\1.resnets.", name)
    if found := re.fullmatch(r"(.*)\.mid\.(block_1|attn_1|block_2)\.(.*)", name):
        where, block, rest = found.groups()
        if block == "attn_1":
            layer, _, kind = rest.rpartition(".")
            rest = f"{_VAE_ATTENTION[layer]}.{kind}"
        return f"{where}.mid_block.{_VAE_MIDDLE[block]}.{rest}"
    return name
