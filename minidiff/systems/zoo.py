"""From a recipe to a system, and from a committed checkpoint to a system that is ready to use."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .. import schedule as schedules
from ..data.tokenizer import tokenizer
from ..models.classifier import Classifier
from ..models.unet import UNet
from ..recipes import Recipe, from_dict, nearest
from ..training.checkpoint import load_checkpoint, load_weights, require_fit
from .cascade import CDM, SR3, Augmented, GlideCDM, Regression
from .class_conditional import ClassConditional
from .classifier import NoisyClassifier
from .clip import CLIP, clip_network
from .glide import Glide, GlideUpsampler
from .inpainting import GlideInpainter, GlideUpsamplerInpainter, Inpainter, widened
from .upsampler import Enlarging, Upsampler

SCHEDULES = {
    "linear": schedules.linear_schedule,
    "sqrt_linear": schedules.sqrt_linear_schedule,
    "clipped_cosine": schedules.clipped_cosine_schedule,
}


def _class_conditional(recipe: Recipe, schedule, network: UNet, kind=ClassConditional, **more) -> ClassConditional:
    rows = recipe.network.classes
    n_classes = 0 if rows is None else rows - (recipe.label_dropout > 0)
    options = (n_classes, recipe.label_dropout, recipe.data.bins)
    return kind(network, schedule, recipe.predicts, recipe.variance, *options, **more)


def _glide(recipe: Recipe, schedule, network: UNet, kind=Glide, **more) -> Glide:
    options = (tokenizer(recipe.data.tokenizer), recipe.label_dropout, recipe.data.bins)
    return kind(network, schedule, recipe.predicts, recipe.variance, *options, **more)


def _enlarging(system: Callable, kind: type) -> Callable:
    """The same with an upsampler in place of the system that it is mixed into."""

    def upsampler(recipe: Recipe, schedule, network: UNet) -> Enlarging:
        more = {"augment": recipe.augment} if issubclass(kind, Augmented) else {}
        return system(recipe, schedule, network, kind, factor=recipe.factor, **more)

    return upsampler


def _classifier(recipe: Recipe, schedule, network: Classifier) -> NoisyClassifier:
    return NoisyClassifier(network, schedule, recipe.noisy)


def _clip(recipe: Recipe, schedule, network) -> CLIP:
    return CLIP(network, schedule, tokenizer(recipe.data.tokenizer), recipe.directions)


SYSTEMS = {
    "class_conditional": (UNet, _class_conditional),
    "inpainter": (UNet, partial(_class_conditional, kind=Inpainter)),
    "upsampler": (UNet, _enlarging(_class_conditional, Upsampler)),
    "sr3": (UNet, _enlarging(_class_conditional, SR3)),
    "cdm": (UNet, _enlarging(_class_conditional, CDM)),
    "regression": (UNet, _enlarging(_class_conditional, Regression)),
    "classifier": (Classifier, _classifier),
    "clip": (clip_network, _clip),
    "glide": (UNet, _glide),
    "glide_inpainter": (UNet, partial(_glide, kind=GlideInpainter)),
    "glide_upsampler_inpainter": (UNet, _enlarging(_glide, GlideUpsamplerInpainter)),
    "glide_upsampler": (UNet, _enlarging(_glide, GlideUpsampler)),
    "glide_cdm": (UNet, _enlarging(_glide, GlideCDM)),
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
    if recipe.schedule.betas is not None and not recipe.schedule.name.endswith("linear"):
        raise ValueError(f"betas are those of a linear schedule, not of {recipe.schedule.name!r}")
    schedule = SCHEDULES[recipe.schedule.name](recipe.schedule.T, *(recipe.schedule.betas or ()))
    if not empty:
        return system(recipe, schedule, network(recipe.network))
    with torch.device("meta"), _Uninitialised():
        blank = network(recipe.network)
    return system(recipe, schedule, blank)


FIRST = "network.input_blocks.0.0.weight"  # of the convolution that x and the image door enter


def begun(recipe: Recipe) -> nn.Module:
    """The system of a recipe as its training begins: with the weights of ``recipe.start``, where there is one.

    Input channels that the start lacks come after those of x and have zero weights, so the system begins as the start
    would go on (Nichol et al. 2022, section 2.4). The parts in ``recipe.fresh`` begin untrained.

    Raises:
        ValueError: for a start that cannot be read or does not fit, naming the tensors, or a part that is not there.
    """
    system = build(recipe)
    if not recipe.start:
        return system
    path = Path(recipe.start) if recipe.start.endswith(".safetensors") else weights_path(recipe.start)
    tensors, _ = load_checkpoint(path)
    own = system.state_dict()
    if FIRST in tensors and FIRST in own:
        tensors[FIRST] = widened(tensors[FIRST], own[FIRST].shape[1], system.shape[0])
    for part in recipe.fresh:
        untrained = {name: tensor for name, tensor in own.items() if name.startswith(f"{part}.")}
        if not untrained:
            raise ValueError(f"{recipe.name}: no part {part!r} to begin anew")
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{part}.")} | untrained
    require_fit(tensors, own, str(path), f"the network of {recipe.name!r}")
    system.load_state_dict({k: v.to(own[k].dtype) for k, v in tensors.items()})
    return system


def data_folder() -> Path:
    """The folder ``data/``: inside the installed package, or at the root of a source tree."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "_data"
    return installed if installed.is_dir() else package.parent / "data"


def checkpoints() -> list[str]:
    """Names of the committed checkpoints."""
    return sorted(p.parent.name for p in (data_folder() / "checkpoints").glob("*/card.json"))


def weights_path(name: str) -> Path:
    """Where the weights of a checkpoint lie, its card beside them.

    Args:
        name: Of a committed checkpoint, or the folder that another one was published to.

    Raises:
        ValueError: when there is no such checkpoint, naming the nearest.
    """
    folder = data_folder() / "checkpoints" / name if name in checkpoints() else Path(name)
    if not (folder / "card.json").is_file():
        raise ValueError(f"no checkpoint {name!r}: {nearest(name, checkpoints())}")
    return folder / "model.safetensors"


def card(name: str) -> dict:
    """The card of a checkpoint: its recipe, seed, steps, time and metrics; see ``weights_path`` for its name.

    Raises:
        ValueError: when there is no such checkpoint, naming the nearest.
    """
    return json.loads(weights_path(name).with_name("card.json").read_text())


def load(name: str, device: str = "cpu") -> nn.Module:
    """A checkpoint as a system in evaluation mode, float32; see ``weights_path`` for its name.

    Raises:
        ValueError: when there is no such checkpoint, naming the nearest, or its file is damaged.
    """
    system = build(from_dict(Recipe, card(name)["recipe"]))
    load_weights(system, weights_path(name))
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
