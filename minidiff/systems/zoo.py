"""From a recipe to a system, and from a committed checkpoint to a system that is ready to use."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from .. import schedule as schedules
from ..models.classifier import Classifier
from ..models.unet import UNet
from ..recipes import Recipe, from_dict, nearest
from ..training.checkpoint import load_weights
from .class_conditional import ClassConditional
from .classifier import NoisyClassifier

SCHEDULES = {
    "linear": schedules.linear_schedule,
    "sqrt_linear": schedules.sqrt_linear_schedule,
    "clipped_cosine": schedules.clipped_cosine_schedule,
}


def _class_conditional(recipe: Recipe, schedule) -> ClassConditional:
    has_null = recipe.label_dropout > 0
    return ClassConditional(
        UNet(recipe.network),
        schedule,
        recipe.predicts,
        recipe.variance,
        recipe.network.classes - has_null,
        recipe.label_dropout,
        recipe.data.bins,
    )


def _classifier(recipe: Recipe, schedule) -> NoisyClassifier:
    return NoisyClassifier(Classifier(recipe.network), schedule, recipe.noisy)


SYSTEMS = {"class_conditional": _class_conditional, "classifier": _classifier}


def build(recipe: Recipe) -> nn.Module:
    """The untrained system of a recipe.

    Raises:
        ValueError: for an unknown system or schedule.
    """
    for kind, known in (("system", SYSTEMS), ("schedule", SCHEDULES)):
        name = recipe.system if kind == "system" else recipe.schedule.name
        if name not in known:
            raise ValueError(f"unknown {kind} {name!r}: {nearest(name, known)}")
    return SYSTEMS[recipe.system](recipe, SCHEDULES[recipe.schedule.name](recipe.schedule.T))


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
