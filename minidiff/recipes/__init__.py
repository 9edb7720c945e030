"""Recipes: a system, its data and its training, as YAML files; the published presets and the small ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from torch.overrides import TorchFunctionMode

from .. import schedule as schedules
from ..arguments import Count, Inside, checked
from ..data.recipe import DataRecipe
from ..settings import from_plain, to_plain
from ..systems.registry import find
from ..systems.sampling import Sampling
from ..training.plan import TrainingRecipe
from ..words import nearest

FOLDER = Path(__file__).parent
SCHEDULES = {
    "linear": schedules.linear_schedule,
    "sqrt_linear": schedules.sqrt_linear_schedule,
    "clipped_cosine": schedules.clipped_cosine_schedule,
}
CONTINUOUS = {"cosine": schedules.cosine_schedule, "vp": schedules.vp_schedule}


@checked
@dataclass(frozen=True)
class ScheduleRecipe:
    """A noise schedule: a discrete one with T levels, or a continuous one.

    Attributes:
        name: "linear", "sqrt_linear" or "clipped_cosine"; or, of continuous time, "cosine" or "vp", the limit of
            "linear".
        T: Number of levels of a discrete schedule.
        betas: First and last beta of a linear schedule; those of its paper when left out.
        zero_terminal: Nothing is left of the image at the last level, see ``schedule.zero_terminal_snr``.

    Raises:
        ValueError: for an unknown schedule, a number of levels, a mended end or betas of one that has none, or other
            than two betas.
    """

    name: str = "clipped_cosine"
    T: Count = 1000
    betas: tuple[Inside, ...] | None = None
    zero_terminal: bool = False

    def __post_init__(self):
        if self.name not in SCHEDULES | CONTINUOUS:
            raise ValueError(f"unknown schedule {self.name!r}: {nearest(self.name, SCHEDULES | CONTINUOUS)}")
        if self.name in CONTINUOUS and self.T != type(self).T:
            raise ValueError(f"the {self.name} schedule is one of continuous time: it has no T, got {self.T}")
        if self.name in CONTINUOUS and self.zero_terminal:
            raise ValueError(
                f"zero_terminal mends a table of levels, and the {self.name} schedule is one of continuous time"
            )
        if self.betas is not None and not self.name.endswith("linear"):
            raise ValueError(f"betas are those of a linear schedule, not of {self.name!r}")
        if self.betas is not None and len(self.betas) != 2:
            raise ValueError(f"betas are two numbers, the first and the last, got {list(self.betas)}")

    def build(self) -> schedules.DiscreteSchedule | schedules.ContinuousSchedule:
        """The schedule."""
        if self.name in CONTINUOUS:
            return CONTINUOUS[self.name]()
        made = SCHEDULES[self.name](self.T, *(self.betas or ()))
        return schedules.zero_terminal_snr(made) if self.zero_terminal else made


@checked
@dataclass(frozen=True)
class Recipe:
    """A system, its data and its training. In YAML ``system`` is a name, or a mapping of a name and options.

    Attributes:
        name: Name of the checkpoint it makes.
        system: Name of the system, see ``systems.registry``.
        options: Of the system, a dataclass of its own.
        network: Shape of the network, a dataclass of the system's.
        data: Training data.
        training: Optimisation.
        schedule: Noise levels; None for a system without.
        start: Checkpoint whose weights training starts from, by name, by its folder or as a path to its
            ``model.safetensors``; input channels that it lacks start at zero. "" starts from nothing.
        sampling: How it is sampled; None where nothing was published.
        fresh: Parts, such as "network.text", that do not take the weights of the start, or that only the start has.
        before: Stages that training goes through first, in order, by name: what each has other than this recipe. Each
            goes on from where the one before it ended, see ``stages``.

    Raises:
        ValueError: for fresh parts without a start, no name, or one that leads out of the folder of runs; for a stage
            that is no mapping, has a start or stages of its own, or is no recipe.
    """

    name: str
    system: str
    options: Any
    network: Any
    data: DataRecipe
    training: TrainingRecipe
    schedule: ScheduleRecipe | None
    start: str = ""
    fresh: tuple[str, ...] = ()
    sampling: Sampling | None = None
    before: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if not self.name:
            raise ValueError("a recipe needs a name: its folder and its checkpoint are called by it")
        if Path(self.name).is_absolute() or not {".", ".."}.isdisjoint(self.name.split("/")) or "\0" in self.name:
            raise ValueError(f"a recipe's name is that of a folder below runs, got {self.name!r}")
        if self.fresh and not (self.start or self.before):
            raise ValueError(f"fresh {list(self.fresh)} without a start: everything begins anew")
        for stage, changes in self.before.items():
            if not isinstance(changes, dict):
                raise ValueError(f"recipe.before.{stage} must be a mapping, got {changes!r}")
            if own := {"name", "start", "before"} & changes.keys():
                raise ValueError(f"recipe.before.{stage}: a stage has no {' and no '.join(sorted(own))} of its own")
        if self.before:
            self.stages("runs")  # every stage is a recipe

    @classmethod
    def from_plain(cls, values: Any) -> Recipe:
        """A recipe from plain values, as they stand in YAML and on cards.

        Raises:
            ValueError: naming the first unknown key (with the nearest known one), missing key, or value of a wrong
                type; an option that the system does not have, or a schedule of one without noise levels.
        """
        if not isinstance(values, dict):
            raise ValueError(f"recipe must be a mapping, got {values!r}")
        if missing := [key for key in ("system", "network") if key not in values]:
            raise ValueError(f"recipe lacks {', '.join(missing)}")
        options = _options(values["system"])
        name = options.pop("name")
        kind = find(name)
        schedule = values.get("schedule", {} if kind.scheduled else None)
        if schedule is None and kind.scheduled:
            raise ValueError(f"a {name} has noise levels: recipe.schedule must be a mapping, got None")
        if schedule is not None and not kind.scheduled:
            raise ValueError(f"a {name} has no noise levels: recipe.schedule is not for it")
        typed = {
            "system": name,
            "options": from_plain(kind.options, options, "recipe.system"),
            "network": from_plain(kind.config, values["network"], "recipe.network"),
            "schedule": None if schedule is None else from_plain(ScheduleRecipe, schedule, "recipe.schedule"),
        }
        plain = {key: value for key, value in values.items() if key not in typed}
        if "options" in values:
            raise ValueError("unknown key recipe.options: options stand in the mapping recipe.system, beside its name")
        return from_plain(cls, plain | typed, "recipe")

    def to_plain(self) -> dict:
        """The recipe as plain dicts and lists, as it would stand in YAML."""
        plain = to_plain(self)
        plain["system"] = {"name": plain["system"], **plain.pop("options")}
        return plain

    def stages(self, folder: str | Path) -> list[Recipe]:
        """What is trained, in order: every stage of ``before``, and this recipe without them.

        Args:
            folder: Of the run; a stage's weights come into a folder in it, called by its name.
        """
        plain = self.to_plain() | {"before": {}, "fresh": []}
        recipes, start = [], self.start
        for stage, changes in self.before.items():
            named = {"name": f"{self.name}/{stage}", "start": start}
            try:
                recipes.append(Recipe.from_plain(_merged(plain, changes) | named))
            except ValueError as error:
                raise ValueError(f"recipe.before.{stage}: {error}") from None
            start = str(Path(folder) / stage / "model.safetensors")
        return [*recipes, replace(self, start=start, before={})]

    def build(self, empty: bool = False) -> nn.Module:
        """The untrained system.

        Args:
            empty: Names and shapes alone, on the meta device: to count parameters, or to be filled by
                ``load_state_dict`` with ``assign=True``.

        Raises:
            ValueError: for a network that does not fit the system.
        """
        kind, schedule = find(self.system), self.schedule and self.schedule.build()
        if not empty:
            return kind.make(kind.network(self.network), schedule, self.options, self.data)
        with torch.device("meta"), _Uninitialised():
            blank = kind.network(self.network)
        return kind.make(blank, schedule, self.options, self.data)


class _Uninitialised(TorchFunctionMode):
    """Inside, the functions of torch.nn.init leave tensors as they are."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
        return function(*args, **(kwargs or {}))


def _merged(values: dict, changes: dict) -> dict:
    """Values with changes, mapping by mapping."""
    both = {key: _merged(values[key], changes[key]) for key in changes if _deep(values.get(key), changes[key])}
    return values | changes | both


def _deep(value: Any, change: Any) -> bool:
    return isinstance(value, dict) and isinstance(change, dict)


def _options(system: Any) -> dict:
    """Name and options of a system, however they were written."""
    if isinstance(system, str):
        return {"name": system}
    if not isinstance(system, dict) or not isinstance(system.get("name"), str):
        raise ValueError(f"recipe.system must be a name, or a mapping with a name; got {system!r}")
    return dict(system)


def available() -> list[str]:
    """Names of the recipes of this package."""
    return sorted(p.stem for p in FOLDER.glob("*.yaml"))


@checked
def load_recipe(name: str, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """A recipe by name, or from a YAML file.

    Args:
        name: A name of ``available()``, or a path that ends in .yaml.
        overrides: Changes such as "training.steps=100" or "system.drop=0.2".

    Raises:
        ValueError: for an unknown recipe, an unreadable file, an override that is not key=value, or any invalid value.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"no recipe {name!r}: {nearest(name, available())}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from None
    if not isinstance(values, dict) or "system" not in values:
        raise ValueError(f"{path} is no recipe: a mapping with a system is accepted")
    values = {"name": path.stem, **values, "system": _options(values["system"])}
    for override in overrides:
        _override(values, override)
    return Recipe.from_plain(values)


def overridden(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """A recipe with changes, as ``load_recipe`` takes them.

    Raises:
        ValueError: for an override that is not key=value, or any invalid value.
    """
    if not overrides:
        return recipe
    values = recipe.to_plain()
    for override in overrides:
        _override(values, override)
    return Recipe.from_plain(values)


def _override(values: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise ValueError(f"{override!r} is not of the form key=value")
    try:
        value = yaml.safe_load(text) if text else ""
    except yaml.YAMLError:
        raise ValueError(f"{override!r}: {text!r} is no value in YAML") from None
    target, parts = values, key.split(".")
    for part in parts[:-1]:
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise ValueError(f"{key}: {part} has no keys of its own")
    target[parts[-1]] = value
