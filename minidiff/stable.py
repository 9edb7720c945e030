"""The files of latent diffusion and Stable Diffusion: one for several networks, under the names of several houses.

A file of the first release, or of a fine-tune (``.ckpt``, ``.safetensors``), or the folder that diffusers keeps. For
each network every naming is tried in turn, averaged weights first; the first whose names are all there is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from .diffusers_names import Names, autoencoder_name, latent_unet_name

Naming = Callable[[nn.Module], Names]
FOLDERS = {  # of diffusers, by what is in them
    "unet": ("unet",),
    "vae": ("vae", "vqvae"),
    "text_encoder": ("text_encoder",),
    "bert": ("bert",),
}
STEMS = {"text_encoder": ("model", "pytorch_model"), "bert": ("model", "pytorch_model")}
ENDINGS = (".safetensors", ".fp16.safetensors", ".bin", ".fp16.bin")
TOWERS = {  # where the parts of a text tower are, by whose names; queries, keys and values lie apart everywhere
    "transformers": {
        "token_embedding": "embeddings.token_embedding",
        "positional_embedding": "embeddings.position_embedding",
        "ln_1": "encoder.layers.{i}.layer_norm1",
        "attn.c_qkv": "encoder.layers.{i}.self_attn.{part}_proj",
        "attn.c_proj": "encoder.layers.{i}.self_attn.out_proj",
        "ln_2": "encoder.layers.{i}.layer_norm2",
        "mlp.c_fc": "encoder.layers.{i}.mlp.fc1",
        "mlp.c_proj": "encoder.layers.{i}.mlp.fc2",
        "ln_final": "final_layer_norm",
    },
    "first release": {  # of latent diffusion, a layer each for attention and perceptron
        "token_embedding": "token_emb",
        "positional_embedding": "pos_emb.emb",
        "ln_1": "attn_layers.layers.{even}.0",
        "attn.c_qkv": "attn_layers.layers.{even}.1.to_{part}",
        "attn.c_proj": "attn_layers.layers.{even}.1.to_out",
        "ln_2": "attn_layers.layers.{odd}.0",
        "mlp.c_fc": "attn_layers.layers.{odd}.1.net.0.0",
        "mlp.c_proj": "attn_layers.layers.{odd}.1.net.2",
        "ln_final": "norm",
    },
    "diffusers": {  # the same tower
        "token_embedding": "embed_tokens",
        "positional_embedding": "embed_positions",
        "ln_1": "layers.{i}.self_attn_layer_norm",
        "attn.c_qkv": "layers.{i}.self_attn.{part}_proj",
        "attn.c_proj": "layers.{i}.self_attn.out_proj",
        "ln_2": "layers.{i}.final_layer_norm",
        "mlp.c_fc": "layers.{i}.fc1",
        "mlp.c_proj": "layers.{i}.fc2",
        "ln_final": "layer_norm",
    },
}
BEFORE_2023 = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}  # in diffusers' autoencoders


def one_by_one(rename: Callable[[str], str]) -> Naming:
    """A naming in which every tensor of ours is one of theirs."""
    return lambda network: {name: (rename(name),) for name in network.state_dict()}


def under(prefix: str) -> Naming:
    """Our names, which are those of the first release, after a prefix; classes lie elsewhere there."""
    classes = "cond_stage_model.embedding.weight"
    return one_by_one(lambda name: classes if name == "label_emb.weight" else f"{prefix}{name}")


def averaged(network: nn.Module) -> Names:
    """Averaged weights of the first release, whose names have lost their dots."""
    plain = under("diffusion_model.")(network)
    flat = lambda name: name if name.startswith("cond_stage") else f"model_ema.{name.replace('.', '')}"
    return {ours: tuple(map(flat, theirs)) for ours, theirs in plain.items()}


def in_diffusers(network: nn.Module) -> Names:
    """Of a U-Net in a folder of diffusers."""
    return one_by_one(lambda name: f"unet.{latent_unet_name(name, network.config.blocks)}")(network)


def autoencoder_in_diffusers(network: nn.Module) -> Names:
    """Of an autoencoder in a folder of diffusers."""
    levels = len(network.config.channel_mult)
    return one_by_one(lambda name: f"vae.{autoencoder_name(name, levels)}")(network)


def autoencoder_before_2023(network: nn.Module) -> Names:
    """The same in older folders."""

    def older(name: str) -> str:
        for new, old in BEFORE_2023.items():
            name = name.replace(f".{new}.", f".{old}.")
        return name

    return {ours: tuple(map(older, theirs)) for ours, theirs in autoencoder_in_diffusers(network).items()}


def tower(whose: str, prefix: str) -> Naming:
    """Of a text tower, by a row of ``TOWERS``, after a prefix."""

    def names(network: nn.Module) -> Names:
        return {name: tuple(f"{prefix}{part}" for part in _tower_parts(name, whose)) for name in network.state_dict()}

    return names


def _tower_parts(name: str, whose: str) -> tuple[str, ...]:
    where, _, kind = name.rpartition(".") if "." in name else (name, "", "weight")
    number, layer = where.removeprefix("transformer.resblocks.").split(".", 1) if "." in where else (0, where)
    theirs, places = TOWERS[whose][layer], {"i": int(number), "even": 2 * int(number), "odd": 2 * int(number) + 1}
    parts = "qkv" if layer == "attn.c_qkv" else ("",)
    return tuple(f"{theirs.format(part=part, **places)}.{kind}" for part in parts)


def _tower_in_open_clip(name: str) -> str:
    name = name.replace("attn.c_qkv.", "attn.in_proj_").replace("attn.c_proj", "attn.out_proj")
    return f"cond_stage_model.model.{name}"


NAMINGS: dict[str, tuple[Naming, ...]] = {
    "unet": (averaged, under("model.diffusion_model."), in_diffusers, under("")),
    "vae": (
        under("first_stage_model."),
        under("vae."),
        autoencoder_in_diffusers,
        autoencoder_before_2023,
        under(""),
    ),
    "text": (
        tower("transformers", "cond_stage_model.transformer.text_model."),
        tower("transformers", "cond_stage_model.transformer."),
        tower("transformers", "text_encoder.text_model."),
        tower("transformers", "text_encoder."),
        one_by_one(_tower_in_open_clip),
        tower("first release", "cond_stage_model.transformer."),
        tower("diffusers", "bert.model."),
    ),
}


def tensors_in(source: str | Path, read: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of a released file, or of the folder that diffusers keeps, there after the name of their folder.

    Args:
        source: File or folder.
        read: From a file to its tensors.

    Raises:
        ValueError: for a folder without any of diffusers' files, or what ``read`` refuses.
    """
    source = Path(source)
    if not source.is_dir():
        return read(source)
    found = {}
    for part, folders in FOLDERS.items():
        stems = STEMS.get(part, ("diffusion_pytorch_model",))
        files = (source / name / f"{stem}{end}" for name in folders for stem in stems for end in ENDINGS)
        file = next((file for file in files if file.is_file()), None)
        if file is not None:
            found |= {f"{part}.{name}": tensor for name, tensor in read(file).items()}
    if not found:
        raise ValueError(f"{source} holds none of unet, vae and text_encoder as diffusers keeps them")
    return found


def fill(network: nn.Module, kind: str, tensors: Mapping[str, Tensor], what: str) -> bool:
    """Give a network its tensors, float32, under the first naming whose names are all there.

    Args:
        network: The network, which may lie on the meta device.
        kind: "unet", "vae" or "text".
        tensors: By their published names.
        what: What messages call the network.

    Returns:
        Whether there were any; not where no naming finds a single name.

    Raises:
        ValueError: when some names are there and others are missing, or a tensor has another number of numbers.
    """
    tried = [naming(network) for naming in NAMINGS[kind]]
    there = [sum(part in tensors for parts in names.values() for part in parts) for names in tried]
    whole = [n == sum(map(len, names.values())) for n, names in zip(there, tried, strict=True)]
    if not any(there):
        return False
    best = whole.index(True) if any(whole) else there.index(max(there))
    names, own = tried[best], network.state_dict()
    if missing := [part for parts in names.values() for part in parts if part not in tensors]:
        raise ValueError(f"{what} lacks {len(missing)} tensors, {', '.join(missing[:3])} among them")
    ours = {}
    for name, parts in names.items():
        joined = torch.cat([tensors[part].detach().flatten() for part in parts]).float()
        if joined.numel() != own[name].numel():
            given = ", ".join(str(tuple(tensors[part].shape)) for part in parts)
            raise ValueError(f"{what}: {', '.join(parts)} of {given} does not fit {tuple(own[name].shape)}")
        ours[name] = joined.reshape(own[name].shape)
    network.load_state_dict(ours, assign=True)
    return True


def lend_parts(system: nn.Module, made: Mapping[str, nn.Module]) -> None:
    """Let a system use the frozen networks that came in its own file, by the names that its recipe has for them."""

    def there(part: nn.Module) -> Callable[[], nn.Module]:
        return cache(lambda: part.to(system.device).eval().requires_grad_(False))

    lenders = {name: there(part) for name, part in made.items()}
    for borrower in system.borrowers:
        if borrower.frozen in lenders:
            borrower.lend(lenders[borrower.frozen])
