"""Recipes: everything that determines a trained model, as validated YAML."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from ..models.clip import CLIPConfig
from ..models.unet import UNetConfig

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class DataRecipe:
    """Which images to learn from.

    Attributes:
        name: "digits", "shapes"; "scenes", "scenes-pairs" and "emoji" (with captions), "cifar10", "folder" (or a zip
            archive), "shards" (with captions where a tokenizer is named), or a data set of torchvision.
        images: Number of images to render, for sets without a fixed size.
        seed: Seed of that rendering.
        bins: Number of values a pixel can take.
        path: Where the images lie, for sets that are not made here.
        train: Folder below ``path`` (or split of torchvision's set) to train on; "" for all.
        heldout: The same for the images to evaluate on.
        mirror: Every image is also seen flipped left to right.
        workers: Processes that decode images, per training process.
        tokenizer: Who reads the captions, of images that have some.
        reading: Of "scenes-pairs": probability that a caption names the left or the upper object first.
    """

    name: str
    images: int = 0
    seed: int = 0
    bins: int = 256
    path: str | None = None
    train: str = "train"
    heldout: str = "test"
    mirror: bool = False
    workers: int = 0
    tokenizer: str = ""
    reading: float = 0.5


@dataclass(frozen=True)
class ScheduleRecipe:
    """A discrete noise schedule with T levels.

    Attributes:
        name: "linear", "sqrt_linear" or "clipped_cosine".
        T: Number of levels.
        betas: First and last beta of a linear schedule; those of its paper when left out.
    """

    name: str = "clipped_cosine"
    T: int = 1000
    betas: tuple[float, float] | None = None


@dataclass(frozen=True)
class TrainingRecipe:
    """How to train.

    Attributes:
        steps: Optimiser steps.
        batch: Images per step, over all processes.
        lr: Peak learning rate; linear warm-up, then linear decay to ``final_lr`` times the peak.
        warmup: Steps of warm-up.
        final_lr: Fraction of the peak at the last step.
        betas: AdamW's betas.
        weight_decay: AdamW's weight decay.
        clip: Largest gradient norm, or None.
        ema: Decays of the weight averages, each reached from below as (1 + step) / (10 + step); the first is published.
        precision: "no" (float32) or "bf16"; a CPU without instructions for it takes float32 in both cases.
        seed: Seed of initialisation, data order and noise.
        checkpoint_every: Steps between checkpoints.
        accumulate: Parts into which each process cuts its share of a batch, to save memory; 1 for a CLIP.
        checkpointing: Recompute activations in the backward pass, to save memory.
        compile: Compile the network.
        sharding: "none" (every process holds the whole model, DDP) or "full" (FSDP).
        times: "uniform", "importance" (Nichol and Dhariwal 2021, section 3.3), or "noisiest", the noisiest quarter.
    """

    steps: int
    batch: int = 128
    lr: float = 1e-3
    warmup: int = 100
    final_lr: float = 0.02
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    clip: float | None = 1.0
    ema: tuple[float, ...] = (0.999,)
    precision: str = "no"
    seed: int = 0
    checkpoint_every: int = 500
    accumulate: int = 1
    checkpointing: bool = False
    compile: bool = False
    sharding: str = "none"
    times: str = "uniform"


@dataclass(frozen=True)
class Recipe:
    """A system, its data and its training.

    Attributes:
        name: Name of the checkpoint it makes.
        system: What it makes: a key of ``SYSTEMS`` in ``systems.zoo``, such as "class_conditional", "glide" or "clip".
        network: Shape of the network.
        data: Training images.
        training: Optimisation.
        schedule: Noise levels.
        predicts: What a denoiser predicts, "eps", "v" or "x0".
        variance: "fixed" or "learned_range".
        label_dropout: Probability with which a label or caption is replaced by the null, per sample.
        noisy: Whether a classifier sees noise.
        factor: Height of an upsampler's image over that of the small one.
        augment: Largest standard deviation of the noise added to the small image of a cascade's upsampler.
        directions: Of a CLIP's loss: "both", "image-to-text" or "text-to-image".
        start: Checkpoint whose weights training starts from, by name, by its folder or as a path to its
            ``model.safetensors``; input channels that it lacks start at zero. "" starts from nothing.
        fresh: Parts, such as "network.text", that do not take the weights of the start.

    Raises:
        ValueError: for a CLIP whose batch is cut into parts, or fresh parts without a start.
    """

    name: str
    system: str
    network: UNetConfig | CLIPConfig
    data: DataRecipe
    training: TrainingRecipe
    schedule: ScheduleRecipe = field(default_factory=ScheduleRecipe)
    predicts: str = "eps"
    variance: str = "fixed"
    label_dropout: float = 0.0
    noisy: bool = True
    factor: int = 4
    augment: float = 1.0
    directions: str = "both"
    start: str = ""
    fresh: tuple[str, ...] = ()

    def __post_init__(self):
        if self.system == "clip" and self.training.accumulate != 1:
            raise ValueError(
                f"training.accumulate must be 1 for a clip, got {self.training.accumulate}: "
                "the parts of a batch would lose each other as negatives"
            )
        if self.fresh and not self.start:
            raise ValueError(f"fresh {list(self.fresh)} without a start: everything begins anew")

    def to_dict(self) -> dict:
        """The recipe as plain dicts and lists, as it would stand in YAML."""
        return yaml.safe_load(yaml.safe_dump(_plain(dataclasses.asdict(self))))


def _plain(value):
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value


def available() -> list[str]:
    """Names of the recipes of this package."""
    return sorted(p.stem for p in FOLDER.glob("*.yaml"))


def nearest(word: str, words) -> str:
    """The accepted words, the nearest one first, as the end of an error message."""
    close = difflib.get_close_matches(word, list(words), n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(words))}"


def from_dict(cls: type, values: Any, where: str = "recipe"):
    """Build a (nested) dataclass from plain values.

    Raises:
        ValueError: naming the first unknown key (with the nearest known one), missing key, or value of a wrong type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be a mapping, got {values!r}")
    hints, fields = get_type_hints(cls), {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            raise ValueError(f"unknown key {where}.{key}: {nearest(str(key), fields)}")
    missing = [
        f.name
        for f in fields.values()
        if f.name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    return cls(**{k: _value(hints[k], v, f"{where}.{k}") for k, v in values.items()})


def _value(hint, value, where: str):
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)
    options = get_args(hint) if get_origin(hint) not in (tuple, None) or _is_union(hint) else ()
    if options and type(None) in options:
        return None if value is None else _value(next(o for o in options if o is not type(None)), value, where)
    if options:
        return from_dict(_nearest_shape(options, value), value, where)
    if get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            value = [value]
        return tuple(_value(get_args(hint)[0], v, where) for v in value)
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-3 as a string
        except ValueError:
            pass
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where} must be of type {hint.__name__}, got {value!r}")
    return value


def _nearest_shape(options: tuple[type, ...], value) -> type:
    """The dataclass that shares the most keys with a mapping, the first of equals."""
    keys = set(value) if isinstance(value, dict) else set()
    return max(options, key=lambda option: len(keys & {f.name for f in dataclasses.fields(option)}))


def _is_union(hint) -> bool:
    return isinstance(hint, UnionType)


def load_recipe(name: str, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """A recipe by name, or from a YAML file.

    Args:
        name: A name of ``available()``, or a path that ends in .yaml.
        overrides: Changes such as "training.steps=100".

    Raises:
        ValueError: for an unknown recipe, an unreadable file, an override that is not key=value, or any invalid value.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"no recipe {name!r}: {nearest(name, available())}")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"{override!r} is not of the form key=value")
        target, parts = values, key.split(".")
        for part in parts[:-1]:
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise ValueError(f"{key}: {part} has no keys of its own")
        target[parts[-1]] = yaml.safe_load(text) if text else ""
    return from_dict(Recipe, {"name": path.stem, **values})
