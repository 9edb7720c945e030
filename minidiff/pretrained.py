"""Released checkpoints: presets by name, their published layout read into ours, and download on request.

``load("adm-imagenet64", "64x64_diffusion.pt")`` gives the system with OpenAI's weights. Nothing here is fetched unless
``download`` is called.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

import torch
from torch import Tensor, nn

from . import stable
from .diffusers_names import prior_names, unet_names
from .download import Downloaded, fetch
from .recipes import Recipe, available, load_recipe
from .training.checkpoint import require_finite, require_fit
from .words import nearest


@dataclass(frozen=True)
class Layout:
    """How a published state dict is read.

    Attributes:
        published: The published name of one of our parameters.
        convert: ``(network, tensors)`` under our names, float32 and of our shapes, to what our network computes with.
        fixed: Parameters that no file holds, by our names, and their published value.
        within: Only tensors whose published names begin with this are read; the prefix is part of ``published``.
        made_of: From a network to the published tensors that each of ours is made of, one after another; in place of
            ``published`` and ``convert``.
    """

    published: Callable[[str], str] = lambda name: name
    convert: Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]] = lambda network, tensors: tensors
    fixed: Mapping[str, float] = field(default_factory=dict)
    within: str = ""
    made_of: Callable[[nn.Module], dict[str, tuple[str, ...]]] | None = None


def _heads_first(network: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rows of qkv from "each head its q, k, v" to "q, k, v, each with its heads" (the legacy attention order).

    Modules that say what they hold ``FUSED`` only: the attention pool of ADM's classifiers never had the legacy order.
    """
    converted = dict(tensors)
    for name, module in network.named_modules():
        for projection, parts in getattr(module, "FUSED", {}).items():
            for key in (f"{name}.{projection}.weight", f"{name}.{projection}.bias"):
                if key in tensors:
                    rows = tensors[key].unflatten(0, (module.heads, parts, -1))
                    converted[key] = rows.transpose(0, 1).flatten(0, 2).contiguous()
    return converted


def _clip_name(name: str) -> str:
    """GLIDE's noised CLIP says w and b for weight and bias, and g and b in layer norms; its towers are two files."""
    tower, _, rest = name.partition("_tower.")
    rest = rest.replace(".ln.weight", ".ln.g").replace(".weight", ".w").replace(".bias", ".b")
    return f"{tower}.{rest}" if rest else name


def _karlo_prior_name(name: str) -> str:
    """Karlo's checkpoint says "model." before its names; mean and deviation of the embeddings are a pair in a file."""
    return {"scale.mean": "stats.0", "scale.std": "stats.1"}.get(name, f"model.model.{name}")


def _karlo_upsampler(step: str) -> Layout:
    return Layout(lambda name: f"model_{step}.{name}", _heads_first, within=f"model_{step}.")


# Names and shapes of ADM's networks are ours; the 64x64 model has our order of attention rows, every other the legacy
# one. Time, label embedding, log variance between log beta-tilde and log beta, and its floor at t = 0 are as here.
# GLIDE's networks are ADM's with legacy rows; the text transformer's parameters stand among those of the U-Net.
LAYOUTS = {
    "adm": Layout(),
    "adm-legacy": Layout(convert=_heads_first),
    "glide": Layout(lambda name: name.removeprefix("text."), _heads_first),
    "karlo-prior": Layout(_karlo_prior_name, _heads_first),
    "karlo-decoder": Layout(lambda name: f"model.{name.removeprefix('embedding.')}", _heads_first),
    "karlo-first-steps": _karlo_upsampler("first_steps"),
    "karlo-last-step": _karlo_upsampler("last_step"),
    "diffusers-prior": Layout(made_of=prior_names),
    "diffusers-unet": Layout(made_of=unet_names),
    "latent": Layout(),  # several networks in one file, see ``stable``
    "glide-clip": Layout(_clip_name, fixed={"logit_scale": math.log(100)}),  # config.yaml of the released code
}

WRAPPERS = (
    "module.",
    "_orig_mod.",
    "model.",
    "network.",
)  # DataParallel, torch.compile, and modules that hold a network
_OPENAI = "https://openaipublic.blob.core.windows.net/diffusion/"


@dataclass(frozen=True)
class Preset:
    """A published model.

    Attributes:
        name: Its name, which is also that of its recipe.
        url: Where it is published; of a model in several files, where each part is.
        layout: Its key of ``LAYOUTS``.
        of: Name of its recipe, where it is another's: the same weights in another layout.
    """

    name: str
    url: str | Mapping[str, str]
    layout: str
    of: str = ""

    @property
    def recipe(self) -> Recipe:
        """Network, schedule, how it was trained, and in ``sampling`` how it is sampled."""
        return load_recipe(self.of or self.name)

    @property
    def urls(self) -> dict[str, str]:
        """Where each part is published; a model in one file has the part ""."""
        return {"": self.url} if isinstance(self.url, str) else dict(self.url)

    @property
    def files(self) -> dict[str, str]:
        """The published file name of each part."""
        return {part: unquote(url.rpartition("/")[2]) for part, url in self.urls.items()}

    @property
    def file(self) -> str:
        """The published file names, in words."""
        return " and ".join(self.files.values())

    @cached_property
    def parameters(self) -> int:
        """Number of parameters, counted on the network itself."""
        return sum(p.numel() for p in self.recipe.build(empty=True).parameters())


def _adm(name: str, file: str, layout: str = "adm-legacy") -> Preset:
    return Preset(f"adm-{name}", f"{_OPENAI}jul-2021/{file}", layout)


def _glide(name: str, file: str) -> Preset:
    return Preset(f"glide-{name}", f"{_OPENAI}dec-2021/{file}", "glide")


_KARLO = "https://arena.kakaocdn.net/brainrepo/models/karlo-public/v1.0.0.alpha/"
_KARLO_UP = f"{_KARLO}4226b831ae0279020d134281f3c31590/improved-sr-ckpt-step%3D1.2M.ckpt"


def _karlo_diffusers(name: str, folders: str | tuple[str, ...], layout: str) -> Preset:
    """The same weights as diffusers keeps them. The addresses were not looked up; the names in the files were."""
    where = "https://huggingface.co/kakaobrain/karlo-v1-alpha/resolve/main/{}/{}"
    file = lambda folder: "model.safetensors" if folder == "text_proj" else "diffusion_pytorch_model.safetensors"
    urls = {
        folder: where.format(folder, file(folder)) for folder in ([folders] if isinstance(folders, str) else folders)
    }
    url = urls[folders] if isinstance(folders, str) else urls
    return Preset(f"karlo-{name}-diffusers", url, layout, f"karlo-{name}")


_HUB = "https://huggingface.co/{}/resolve/main/{}"  # these addresses were not looked up
_LDM = "https://ommer-lab.com/files/latent-diffusion/"


def _latent(name: str, url: str) -> Preset:
    return Preset(name, url, "latent")


_PRESETS = {
    preset.name: preset
    for preset in (
        _adm("imagenet64", "64x64_diffusion.pt", layout="adm"),
        _adm("imagenet128", "128x128_diffusion.pt"),
        _adm("imagenet256", "256x256_diffusion.pt"),
        _adm("imagenet256-uncond", "256x256_diffusion_uncond.pt"),
        _adm("imagenet512", "512x512_diffusion.pt"),
        _adm("lsun-bedroom", "lsun_bedroom.pt"),
        _adm("lsun-cat", "lsun_cat.pt"),
        _adm("lsun-horse", "lsun_horse.pt"),
        _adm("lsun-horse-nodropout", "lsun_horse_nodropout.pt"),
        _adm("upsampler-64-256", "64_256_upsampler.pt"),
        _adm("upsampler-128-512", "128_512_upsampler.pt"),
        _adm("classifier-64", "64x64_classifier.pt"),
        _adm("classifier-128", "128x128_classifier.pt"),
        _adm("classifier-256", "256x256_classifier.pt"),
        _adm("classifier-512", "512x512_classifier.pt"),
        _glide("base", "base.pt"),
        _glide("upsampler", "upsample.pt"),
        _glide("base-inpaint", "base_inpaint.pt"),
        _glide("upsampler-inpaint", "upsample_inpaint.pt"),
        Preset(
            "glide-clip",
            {part: f"{_OPENAI}dec-2021/clip_{part}_enc.pt" for part in ("image", "text")},
            "glide-clip",
        ),
        Preset(
            "karlo-prior",
            {
                "model": f"{_KARLO}85626483eaca9f581e2a78d31ff905ca/prior-ckpt-step%3D01000000-of-01000000.ckpt",
                "stats": f"{_KARLO}0b62380a75e56f073e2844ab5199153d/ViT-L-14_stats.th",
            },
            "karlo-prior",
        ),
        Preset(
            "karlo-decoder",
            f"{_KARLO}efdf6206d8ed593961593dc029a8affa/decoder-ckpt-step%3D01000000-of-01000000.ckpt",
            "karlo-decoder",
        ),
        Preset("karlo-up256", _KARLO_UP, "karlo-first-steps"),
        Preset("karlo-up256-last", _KARLO_UP, "karlo-last-step"),
        _latent("sd15", _HUB.format("stable-diffusion-v1-5/stable-diffusion-v1-5", "v1-5-pruned-emaonly.safetensors")),
        _latent(
            "sd15-inpaint",
            _HUB.format("stable-diffusion-v1-5/stable-diffusion-inpainting", "sd-v1-5-inpainting.ckpt"),
        ),
        _latent("sd2-base", _HUB.format("stabilityai/stable-diffusion-2-base", "512-base-ema.safetensors")),
        _latent("sd2", _HUB.format("stabilityai/stable-diffusion-2", "768-v-ema.safetensors")),
        _latent("ldm-ffhq", f"{_LDM}ffhq.zip"),
        _latent("ldm-churches", f"{_LDM}lsun_churches.zip"),
        _latent("ldm-cin256", f"{_LDM}nitro/cin/model.ckpt"),
        _latent("ldm-txt2img", f"{_LDM}nitro/txt2img-f8-large/model.ckpt"),
        _latent("ldm-inpaint", f"{_LDM}nitro/inpainting/last.ckpt"),
        _latent("ldm-sr", f"{_LDM}sr_bsr.zip"),
        _karlo_diffusers("prior", "prior", "diffusers-prior"),
        _karlo_diffusers("decoder", ("decoder", "text_proj"), "diffusers-unet"),
        _karlo_diffusers("up256", "super_res_first", "diffusers-unet"),
        _karlo_diffusers("up256-last", "super_res_last", "diffusers-unet"),
    )
}


def presets() -> dict[str, Preset]:
    """Every published model by name."""
    return dict(_PRESETS)


def preset(name: str) -> Preset:
    """A published model.

    Raises:
        ValueError: for an unknown name, with the nearest known one.
    """
    if name not in _PRESETS:
        raise ValueError(f"no preset {name!r}: {nearest(name, _PRESETS)}")
    return _PRESETS[name]


def load(name: str, source: str | Path | Mapping, recipe: Recipe | None = None) -> nn.Module:
    """A released model as a system in evaluation mode, float32.

    Args:
        name: A name of ``presets()``.
        source: The published file (a torch checkpoint or safetensors; float16 or float32), or its state dict. Of a
            model in several files the folder that holds them, or a file or state dict for each part.
        recipe: Its recipe with changes; the published one when left out.

    Returns:
        The system of its recipe: a ``Diffusion``, a ``NoisyClassifier``, or a ``CLIP``.

    Raises:
        ValueError: for an unknown name; a file that is missing, damaged, or would run code when read; or tensors that
            are missing, unexpected or of another shape, by their published names.
    """
    chosen = preset(name)
    if chosen.layout == "latent":
        return _load_latent(chosen, source, recipe or chosen.recipe)
    if "" not in chosen.files:
        source = _joined(chosen, source)
    return read_into((recipe or chosen.recipe).build(empty=True), LAYOUTS[chosen.layout], source, f"preset {name!r}")


def _load_latent(chosen: Preset, source: str | Path | Mapping, recipe: Recipe) -> nn.Module:
    """The system of a file that holds its autoencoder and its text tower too, which are lent to it."""
    system, where = recipe.build(empty=True), f"preset {chosen.name!r}"
    given = isinstance(source, Mapping)
    tensors = _named_tensors(source, "the state dict") if given else stable.tensors_in(source, read_tensors)
    if not stable.fill(system.network, "unet", tensors, f"{where}: its U-Net"):
        raise ValueError(f"{'the state dict' if given else source} holds no U-Net of latent diffusion")
    require_finite(system.network.state_dict(), where)
    if not getattr(recipe.network, "transformers", True):
        system.network.load_state_dict(_heads_first(system.network, system.network.state_dict()), assign=True)
    if system.latents.scale == 0 and "scale_factor" in tensors:  # measured by those who trained it
        system.latents.scale.fill_(float(tensors["scale_factor"]))
    made = {}
    for name, kind in ((recipe.options.autoencoder, "vae"), (recipe.options.text, "text")):
        if name not in available():
            continue
        training_alone = ["system.adversarial=0"] if kind == "vae" else []  # a released file holds no critic
        part = load_recipe(name, training_alone).build(empty=True)
        if stable.fill(part.network, kind, tensors, f"{where}: its {name}"):
            require_finite(part.network.state_dict(), where)
            made[name] = part
    stable.lend_parts(system, made)
    return system.eval().requires_grad_(False)


def read_into(system: nn.Module, layout: Layout, source: str | Path | Mapping[str, Tensor], what: str) -> nn.Module:
    """Fill an empty system (``recipe.build(empty=True)``) from a published file or state dict, see ``load``.

    Args:
        system: The system, its network without weights.
        layout: How the published tensors are read.
        source: The published file, or its state dict.
        what: What the messages call the system.

    Raises:
        ValueError: as ``load`` does; for numbers that are not finite too, by name.
    """
    given = isinstance(source, Mapping)
    where = "the state dict" if given else str(source)
    tensors = _named_tensors(source, where) if given else read_tensors(source)
    tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(layout.within)}
    if layout.made_of is not None:
        require_finite(tensors, where)
        ours = _joined_parts(system.network, layout.made_of(system.network), tensors, where, what)
        system.network.load_state_dict(ours, assign=True)
        return system.eval().requires_grad_(False)
    own = {layout.published(k): v for k, v in system.network.state_dict().items()}
    fixed = {layout.published(k): value for k, value in layout.fixed.items()}
    tensors = _unwrapped(tensors, own) | {k: torch.full(own[k].shape, value) for k, value in fixed.items()}
    require_fit(tensors, own, where, what)
    require_finite(tensors, where)
    read = lambda name: tensors[layout.published(name)].detach().to("cpu", torch.float32, copy=given)
    ours = {name: read(name) for name in system.network.state_dict()}
    system.network.load_state_dict(layout.convert(system.network, ours), assign=True)
    return system.eval().requires_grad_(False)


def _unwrapped(tensors: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without what a wrapper put before every name of theirs."""
    for prefix in WRAPPERS:
        if all(name.startswith(prefix) for name in tensors) and not any(name.startswith(prefix) for name in own):
            return _unwrapped({name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, own)
    return tensors


def _joined_parts(network: nn.Module, made_of: dict, tensors: dict[str, Tensor], where: str, what: str) -> dict:
    """Our tensors, each from the published ones that it is made of, whose numbers come in the same order."""
    own = network.state_dict()
    lacking = sorted(own.keys() - made_of.keys())
    if lacking:
        raise ValueError(f"{what} has parameters that this layout does not know: {', '.join(lacking[:5])}")
    shares = {
        part: share.flatten()
        for name, parts in made_of.items()
        for part, share in zip(parts, own[name].chunk(len(parts)), strict=True)
    }
    require_fit({name: tensor.flatten() for name, tensor in tensors.items()}, shares, where, what)
    read = lambda name: torch.cat([tensors[part].detach().flatten().float() for part in made_of[name]])
    return {name: read(name).reshape(tensor.shape) for name, tensor in own.items()}


def _joined(chosen: Preset, source: str | Path | Mapping) -> dict[str, Tensor]:
    """The tensors of all parts, each name after that of its part."""
    if not isinstance(source, Mapping):
        source = {part: Path(source) / file for part, file in chosen.files.items()}
    if source.keys() != chosen.files.keys():
        raise ValueError(
            f"preset {chosen.name!r} is published in parts, {' and '.join(chosen.files)}; "
            f"a folder with {chosen.file}, or a mapping by part is accepted"
        )
    tensors = {}
    for part, one in source.items():
        named = _named_tensors(one, f"the state dict of {part}") if isinstance(one, Mapping) else read_tensors(one)
        tensors |= {f"{part}.{name}": tensor for name, tensor in named.items()}
    return tensors


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a torch checkpoint or a safetensors file, by name, on the CPU. No code in the file is run.

    Of a training's checkpoint, ``{"model": ..., "step": ...}``, those of its state dict.

    Raises:
        ValueError: for a file that is missing, damaged, holds anything but named tensors, or would run code when read.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}")
    with open(path, "rb") as file:
        head = file.read(9)
    try:
        if head[8:] == b"{":
            from safetensors.torch import load_file

            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"{path} is no checkpoint of plain tensors, and reading it could run code: {reason}") from None
    except Exception as error:  # torch and safetensors raise whatever a damaged file makes them stumble over
        raise ValueError(f"{path} is damaged, or no checkpoint ({type(error).__name__}: {error})") from None
    if isinstance(tensors, (tuple, list)) and tensors:
        tensors = {str(i): tensor for i, tensor in enumerate(tensors)}
    return _named_tensors(tensors, str(path))


def _named_tensors(tensors, where: str) -> dict[str, Tensor]:
    if not isinstance(tensors, Mapping) or not tensors:
        raise ValueError(f"{where} holds a {type(tensors).__name__}, not tensors by name")
    tensors = _state_dict(tensors, where)
    for key, value in tensors.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(f"{where} holds more than tensors by name: {key!r} is a {type(value).__name__}")
    return dict(tensors)


def _state_dict(found: Mapping, where: str) -> Mapping:
    """The state dict that a training's checkpoint holds beside its step and its optimiser; itself where it is one."""
    inner = {key: value for key, value in found.items() if isinstance(value, Mapping) and _only_tensors(value)}
    if not inner or any(isinstance(value, Tensor) for value in found.values()):
        return found
    if len(inner) > 1:
        raise ValueError(f"{where} holds several state dicts: {', '.join(map(str, inner))}; give the one that is meant")
    return next(iter(inner.values()))


def _only_tensors(value: Mapping) -> bool:
    return bool(value) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def download(name: str, folder: str | Path, **options) -> list[Downloaded]:
    """Fetch the files of a released model into a folder, or go on where a download stands; see ``download.fetch``.

    Raises:
        ValueError: for an unknown name, or when a file cannot be had whole.
    """
    chosen = preset(name)
    return [fetch(url, Path(folder) / chosen.files[part], **options) for part, url in chosen.urls.items()]
