"""Names of our parameters in diffusers' networks.

Of unCLIP from each of ours to those of theirs that it is made of, in order: they have linear maps where we have
convolutions of one pixel, and separate maps for queries, keys and values. Of latent diffusion one by one: our names are
those of its first release.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

from .arguments import Count, checked

Names = dict[str, tuple[str, ...]]

KINDS = ("weight", "bias")
RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
DOORS = {  # of an EmbeddingDoors to UnCLIPTextProjModel
    "clip_emb": "clip_image_embeddings_project_to_time_embeddings",
    "clip_tok_proj": "clip_extra_context_tokens_proj",
    "text_feat_proj": "embedding_proj",
    "text_seq_proj.0": "encoder_hidden_states_proj",
    "text_seq_proj.1": "text_encoder_hidden_states_norm",
}
PRIOR = {  # of a DiffusionPrior to PriorTransformer
    "clip_img_proj": "proj_in",
    "text_emb_proj": "embedding_proj",
    "text_enc_proj": "encoder_hidden_states_proj",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "final_ln": "norm_out",
    "out_proj": "proj_to_clip_embeddings",
}
BLOCK = {
    "ln_1": "norm1",
    "attn.c_proj": "attn1.to_out.0",
    "ln_2": "norm3",
    "mlp.c_fc": "ff.net.0.proj",
    "mlp.c_proj": "ff.net.2",
}


def prior_names(network: nn.Module) -> Names:
    """Of a ``DiffusionPrior`` that reads states, in ``PriorTransformer``."""
    names = {
        "positional_embedding": ("positional_embedding",),
        "prd_emb": ("prd_embedding",),
        "scale.mean": ("clip_mean",),
        "scale.std": ("clip_std",),
    }
    for ours, theirs in PRIOR.items():
        names |= _both(ours, theirs)
    for i in range(network.config.layers):
        ours, theirs = f"transformer.resblocks.{i}", f"transformer_blocks.{i}"
        for own, other in BLOCK.items():
            names |= _both(f"{ours}.{own}", f"{theirs}.{other}")
        names |= _both(f"{ours}.attn.c_qkv", *(f"{theirs}.attn1.to_{part}" for part in "qkv"))
    return names


def unet_names(network: nn.Module) -> Names:
    """Of a ``UNet`` with resampling blocks, in ``UNet2DConditionModel`` or ``UNet2DModel``.

    Its doors for embeddings are those of ``UnCLIPTextProjModel``, whose names stand after "text_proj.", and the others
    after "decoder."; without doors names stand alone.
    """
    own, names = set(network.state_dict()), {}
    unet = "decoder." if network.config.embedding else ""
    for ours, theirs in _modules(network.config):
        if f"{ours}.qkv.weight" in own:
            names |= _both(f"{ours}.norm", f"{unet}{theirs}.group_norm")
            names |= _both(f"{ours}.qkv", *(f"{unet}{theirs}.to_{part}" for part in "qkv"))
            names |= _both(f"{ours}.encoder_kv", *(f"{unet}{theirs}.add_{part}_proj" for part in "kv"))
            names |= _both(f"{ours}.proj_out", f"{unet}{theirs}.to_out.0")
        elif f"{ours}.in_layers.0.weight" in own:
            for part, other in RESNET.items():
                names |= _both(f"{ours}.{part}", f"{unet}{theirs}.{other}")
        else:
            names |= _both(ours, f"{unet}{theirs}")
    if network.config.embedding:
        names["embedding.cf_param"] = ("text_proj.learned_classifier_free_guidance_embeddings",)
        for ours, theirs in DOORS.items():
            names |= _both(f"embedding.{ours}", f"text_proj.{theirs}")
    return {name: parts for name, parts in names.items() if name in own}


def _both(ours: str, *theirs: str) -> Names:
    return {f"{ours}.{kind}": tuple(f"{name}.{kind}" for name in theirs) for kind in KINDS}


def _modules(config) -> Iterator[tuple[str, str]]:
    """Our modules and theirs: time embedding, first and last convolution, residual blocks and attention."""
    yield "time_embed.0", "time_embedding.linear_1"
    yield "time_embed.2", "time_embedding.linear_2"
    yield from (("input_blocks.0.0", "conv_in"), ("out.0", "conv_norm_out"), ("out.2", "conv_out"))
    middle = ("resnets.0", "attentions.0", "resnets.1") if config.middle_attention else ("resnets.0", "resnets.1")
    yield from ((f"middle_block.{i}", f"mid_block.{place}") for i, place in enumerate(middle))
    levels, per = len(config.channel_mult), config.blocks + 1
    for level in range(levels):
        down, up = config.size // 2**level, config.size // 2 ** (levels - 1 - level)
        for i in range(config.blocks):
            yield from _stage(
                f"input_blocks.{1 + level * per + i}", f"down_blocks.{level}", i, down in config.attention
            )
        if level < levels - 1:
            yield f"input_blocks.{(level + 1) * per}.0", f"down_blocks.{level}.downsamplers.0"
        for i in range(per):
            ours, attends = f"output_blocks.{level * per + i}", up in config.attention
            yield from _stage(ours, f"up_blocks.{level}", i, attends)
            if i == per - 1 and level < levels - 1:
                yield f"{ours}.{1 + attends}", f"up_blocks.{level}.upsamplers.0"


def _stage(ours: str, theirs: str, i: int, attends: bool) -> Iterator[tuple[str, str]]:
    yield f"{ours}.0", f"{theirs}.resnets.{i}"
    if attends:
        yield f"{ours}.1", f"{theirs}.attentions.{i}"


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


@checked
def latent_unet_name(name: str, blocks: Count = 2) -> str:
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
    for ours, theirs in RESNET.items():
        if rest.startswith(f"{ours}."):
            return theirs + rest[len(ours) :]
    return rest


@checked
def autoencoder_name(name: str, levels: Count = 4) -> str:
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
