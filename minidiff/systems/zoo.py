"""From a recipe to a system, and from a committed checkpoint to a system that is ready to use."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .. import schedule as schedules
from ..data.tokenizer import tokenizer
from ..models.classifier import Classifier
from ..models.unet import UNet
from ..recipes import Recipe, from_dict, nearest
from ..training.checkpoint import load_checkpoint, load_weights
from .class_conditional import ClassConditional
from .classifier import NoisyClassifier
from .glide import Glide, GlideUpsampler
from .upsampler import Upsampler

SCHEDULES = {
    "linear": schedules.linear_schedule,
    "sqrt_linear": schedules.sqrt_linear_schedule,
    "clipped_cosine": schedules.clipped_cosine_schedule,
}


def _class_conditional(recipe: Recipe, schedule, network: UNet, kind=ClassConditional) -> ClassConditional:
    rows = recipe.network.classes
    n_classes = 0 if rows is None else rows - (recipe.label_dropout > 0)
    options = (n_classes, recipe.label_dropout, recipe.data.bins)
    return kind(network, schedule, recipe.predicts, recipe.variance, *options)


def _upsampler(recipe: Recipe, schedule, network: UNet) -> Upsampler:
    return _class_conditional(recipe, schedule, network, Upsampler)


def _glide(recipe: Recipe, schedule, network: UNet, kind=Glide) -> Glide:
    options = (tokenizer(recipe.data.tokenizer), recipe.label_dropout, recipe.data.bins)
    return kind(network, schedule, recipe.predicts, recipe.variance, *options)


def _glide_upsampler(recipe: Recipe, schedule, network: UNet) -> GlideUpsampler:
    return _glide(recipe, schedule, network, GlideUpsampler)


def _classifier(recipe: Recipe, schedule, network: Classifier) -> NoisyClassifier:
    return NoisyClassifier(network, schedule, recipe.noisy)


SYSTEMS = {
    "class_conditional": (UNet, _class_conditional),
    "upsampler": (UNet, _upsampler),
    "classifier": (Classifier, _classifier),
    "glide": (UNet, _glide),
    "glide_upsampler": (UNet, _glide_upsampler),
}


class _Uninitialised(TorchFunctionMode):
    """Inside, the functions of torch.nn.init leave tensors as they are."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
        return function(*args, **(kwargs or {}))


def build(recipe: Recipe, empty: bool = False) -> nn.Module:
    """The untrained system of a recipe.

    Args:
        recipe: What to build.
        empty: Names and shapes alone, on the meta device: to count parameters, or to be filled by ``load_state_dict``
            with ``assign=True``.

    Raises:
        ValueError: for an unknown system or schedule.
    """
    for kind, known in (("system", SYSTEMS), ("schedule", SCHEDULES)):
        name = recipe.system if kind == "system" else recipe.schedule.name
        if name not in known:
            raise ValueError(f"unknown {kind} {name!r}: {nearest(name, known)}")
    network, system = SYSTEMS[recipe.system]
    schedule = SCHEDULES[recipe.schedule.name](recipe.schedule.T)
    if not empty:
        return system(recipe, schedule, network(recipe.network))
    with torch.device("meta"), _Uninitialised():
        blank = network(recipe.network)
    return system(recipe, schedule, blank)


def data_folder() -> Path:
    """The folder ``data/``: inside the installed package, or at the root of a source tree."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "_data"
    return installed if installed.is_dir() else package.parent / "data"


def checkpoints() -> list[str]:
    """Names of the committed checkpoints."""
    return sorted(p.parent.name for p in (data_folder() / "checkpoints").glob("*/card.json"))


def card(name: str) -> dict:
    """The card of a committed checkpoint: its recipe, seed, steps, time and metrics.

    Raises:
        ValueError: when there is no such checkpoint, naming the nearest.
    """
    path = data_folder() / "checkpoints" / name / "card.json"
    if name not in checkpoints():
        raise ValueError(f"no checkpoint {name!r}: {nearest(name, checkpoints())}")
    return json.loads(path.read_text())


def load(name: str, device: str = "cpu") -> nn.Module:
    """A committed checkpoint as a system in evaluation mode, float32.

    Raises:
        ValueError: when there is no such checkpoint, naming the nearest, or its file is damaged.
    """
    system = build(from_dict(Recipe, card(name)["recipe"]))
    load_weights(system, data_folder() / "checkpoints" / name / "model.safetensors")
    return system.to(device).eval().requires_grad_(False)


def reference(name: str) -> tuple[Tensor, Tensor]:
    """Features (N, d) and labels (N,) of held-out images, kept beside a clean classifier that computed them.

    Raises:
        ValueError: when that checkpoint keeps none.
    """
    path = data_folder() / "checkpoints" / name / "reference.safetensors"
    if not path.is_file():
        kept = [p.parent.name for p in path.parent.parent.glob("*/reference.safetensors")]
        raise ValueError(f"no reference features beside {name!r}: {nearest(name, kept)}")
    tensors, _ = load_checkpoint(path)
    return tensors["features"].float(), tensors["labels"]
