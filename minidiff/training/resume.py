"""Everything that the next step of a training depends on, how a training goes on from a checkpoint, and from which."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from .checkpoint import average_prefix, load_checkpoint, require_fit
from .ema import EMA
from .parallel import placed, whole
from .plan import TrainingRecipe
from .trainable import Trainable

HOW_IT_RUNS = {  # keys of a recipe that define no result: they may change from one resume to the next
    "name",
    "data.path",
    "data.heldout",
    "data.workers",
    "training.checkpoint_every",
    "training.checkpointing",
    "training.accumulate",
    "training.compile",
}
SQUARES = (".exp_avg_sq", ".variance", ".row_var", ".col_var")  # that optimisers keep
WEIGHTS, OPTIMIZER, LEARNT = "model.", "optimizer.", "levels."  # what names of tensors begin with
T = TypeVar("T")


class State:
    """Weights, averages and moments of a training, by name.

    Args:
        system: What is trained.
        optimizer: Of its parameters, wrapped or not.
        ema: The averages of its weights.
    """

    def __init__(self, system: Trainable, optimizer, ema: EMA):
        self.system, self.ema = system, ema
        self.optimizer = getattr(optimizer, "optimizer", optimizer)

    def _modules(self) -> dict[str, dict[str, Tensor]]:
        averages = {average_prefix(decay): average for decay, average in self.ema.averages.items()}
        return {WEIGHTS: self.system.state_dict()} | averages

    def tensors(self) -> dict[str, Tensor]:
        """All of them; sharded tensors are gathered, so every process takes part."""
        tensors = {prefix + k: v for prefix, module in self._modules().items() for k, v in module.items()}
        tensors |= {f"{LEARNT}{k}": v for k, v in self.system.training_state().items()}
        names = {p: name for name, p in self.system.named_parameters()}
        for parameter, state in self.optimizer.state.items():
            tensors |= {f"{OPTIMIZER}{names[parameter]}.{k}": torch.as_tensor(v) for k, v in state.items()}
        return {name: whole(tensor) for name, tensor in tensors.items()}

    def facts(self) -> dict[str, list[str]]:
        """What a checkpoint must hold: which parameters the optimiser has not moved, for want of a gradient, and what
        was learnt beside the parameters."""
        unmoved = [name for name, p in self.system.named_parameters() if p not in self.optimizer.state]
        return {"unmoved": sorted(unmoved), "learnt": sorted(self.system.training_state())}

    def resume(self, folder: Path, recipe, images: int, data: str = "") -> tuple[int, float]:
        """Take the state of a folder's last checkpoint, where there is one.

        Args:
            folder: Of the training.
            recipe: Of this training, which should be that of the checkpoint.
            images: How many there are to train on.
            data: Digest of the data, see ``data.digests.of_set``; "" compares none.

        Returns:
            The step to go on from, and the seconds spent so far.

        Raises:
            ValueError: for a checkpoint that is damaged, not there although its predecessor is, or of another recipe.
                The message names the predecessor where that one is good. Nothing is changed.
        """
        if not in_run(folder):
            return 0, 0.0

        def read(path: Path) -> tuple[dict[str, Tensor], dict]:
            tensors, meta = load_checkpoint(path)
            require_facts(meta, path)
            require_same(recipe, meta, path)
            require_whole(tensors, meta, self.system, recipe.training, path)
            return tensors, meta

        tensors, meta = read_last(folder, read)
        where = folder / "last.safetensors"
        if meta.get("images", images) != images:
            raise ValueError(f"{where} was trained on {meta['images']} images, and the data hold {images} now")
        if data and meta.get("data", data) != data:
            raise ValueError(
                f"{where} was trained on other data: names, labels, captions or files have changed since then; "
                "go on with those, or choose another folder"
            )
        self._take(tensors)
        return meta["step"], meta["seconds"]

    @torch.no_grad()
    def _take(self, tensors: dict[str, Tensor]) -> None:
        own = lambda prefix: {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        for prefix, module in self._modules().items():
            saved = own(prefix)
            for name, tensor in module.items():
                tensor.copy_(placed(saved[name], tensor))
        for name, parameter in self.system.named_parameters():
            state = own(f"{OPTIMIZER}{name}.")
            if state:
                self.optimizer.state[parameter] = {k: placed(v, parameter) for k, v in state.items()}
        self.system.load_training_state(own(LEARNT))


class Another(ValueError):
    """The checkpoint is good, and another training's."""


def in_run(folder: Path) -> bool:
    """Whether a folder holds checkpoints of a run."""
    return any((folder / f"{name}.safetensors").exists() for name in ("last", "previous"))


def read_last(folder: Path, read: Callable[[Path], tuple[T, dict]]) -> tuple[T, dict]:
    """What ``read`` makes of a run's last checkpoint, and its meta.

    Raises:
        ValueError: that of ``read``, which names the checkpoint before where that one can be read.
    """
    last, previous = folder / "last.safetensors", folder / "previous.safetensors"
    try:
        return read(last)
    except Another:
        raise
    except ValueError as error:
        refused = error
    try:
        step = read(previous)[1]["step"]
    except ValueError:
        raise refused from None
    good = f"{previous} is good and stands at step {step}: copy it to {last.name} to go on from there"
    raise ValueError(f"{refused}. {good}") from None


def require_facts(meta: dict, path: Path) -> None:
    """Raise ValueError where a checkpoint does not say how far its training is in numbers that can be."""
    if not {"step", "recipe"} & meta.keys():
        raise ValueError(f"{path} is no checkpoint of a run: it says neither its step nor its recipe")
    step, seconds, images = (meta.get(name) for name in ("step", "seconds", "images"))
    if type(step) is not int or step < 1 or type(seconds) not in (int, float) or not 0 <= seconds < math.inf:
        raise ValueError(f"{path} is damaged: it stands at step {step!r} after {seconds!r} seconds")
    if "images" in meta and (type(images) is not int or images < 1):
        raise ValueError(f"{path} is damaged: it was trained on {images!r} images")
    for name in ("unmoved", "learnt"):
        names = meta.get(name, [])
        if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
            raise ValueError(f"{path} is damaged: its {name!r} is no list of names")


def require_whole(tensors: dict[str, Tensor], meta: dict, system: Trainable, plan: TrainingRecipe, path: Path) -> None:
    """Raise ValueError, naming them, where tensors are not all that a training of a system needs to go on.

    Args:
        tensors: Of the checkpoint.
        meta: Its facts, see ``require_facts``.
        system: What is trained.
        plan: How.
        path: The file.
    """
    if meta["step"] > plan.steps:
        raise ValueError(f"{path} is damaged: it stands at step {meta['step']} of {plan.steps}")
    learnt = sorted(k.removeprefix(LEARNT) for k in tensors if k.startswith(LEARNT))
    if learnt != sorted(meta.get("learnt", learnt)):
        raise ValueError(f"{path} is damaged: it learnt {meta['learnt']} beside the weights, and holds {learnt}")
    expected = dict(_expected(tensors, meta, system, plan))
    require_fit({k: v for k, v in tensors.items() if not k.startswith(LEARNT)}, expected, str(path), "its recipe")
    if other := [f"{k} {tensors[k].dtype}" for k, v in expected.items() if tensors[k].dtype != v.dtype]:
        raise ValueError(f"{path} does not fit its recipe; of another type: {', '.join(other[:10])}")
    moments = {k: v for k, v in tensors.items() if k.startswith(OPTIMIZER)}
    if late := [k for k, v in moments.items() if k.endswith(".step") and not 1 <= float(v) <= meta["step"]]:
        raise ValueError(f"{path} is damaged: no step up to {meta['step']}: {', '.join(late[:10])}")
    if bad := [k for k, v in moments.items() if k.endswith(SQUARES) and bool((v < 0).any())]:
        raise ValueError(f"{path} is damaged: a mean of squares is negative: {', '.join(bad[:10])}")


def _expected(
    tensors: dict[str, Tensor], meta: dict, system: Trainable, plan: TrainingRecipe
) -> Iterator[tuple[str, Tensor]]:
    weights = system.state_dict()
    for prefix in (WEIGHTS, *map(average_prefix, plan.ema)):
        yield from ((prefix + name, tensor) for name, tensor in weights.items())
    for name, parameter in system.named_parameters():
        moments = {f"{OPTIMIZER}{name}.{k}": like for k, like in _moments(parameter, plan.optimizer).items()}
        still = name in meta["unmoved"] if "unmoved" in meta else not tensors.keys() & moments.keys()
        if not still:
            yield from moments.items()


def _moments(parameter: Tensor, optimizer: str) -> dict[str, Tensor]:
    """What an optimiser keeps of a parameter: names, and tensors of the same shape and type."""
    step = {"step": torch.zeros(())}
    if optimizer == "adamw":
        return step | {"exp_avg": parameter, "exp_avg_sq": parameter}
    if parameter.ndim < 2:
        return step | {"variance": parameter}
    return step | {"row_var": parameter[..., :1], "col_var": parameter[..., :1, :]}


def require_same(recipe, meta: dict, path: Path) -> None:
    """Raise ValueError, naming keys and values, where a checkpoint's recipe defines another result than this one.

    The number of steps may change where the learning rate does not depend on it, to one that is not yet passed.
    """
    try:
        before = type(recipe).from_plain(meta.get("recipe"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    theirs, ours = _flat(before.to_plain()), _flat(recipe.to_plain())
    keys = [k for k in ours | theirs if theirs.get(k) != ours.get(k) and not _only_how(k)]
    if keys == ["training.steps"] and recipe.training.final_lr == 1 and meta["step"] <= recipe.training.steps:
        return
    if keys:
        changes = ", ".join(f"{k} {theirs.get(k)} -> {ours.get(k)}" for k in keys)
        why = "; the learning rate falls towards the last step unless training.final_lr is 1, and earlier steps cannot "
        why = why + "be undone" if "training.steps" in keys else ""
        raise Another(f"{path} was made by another recipe ({changes}{why}); choose another folder or move it")


def _only_how(key: str) -> bool:
    """Whether a key says how training runs, or how to sample afterwards, and nothing of the weights."""
    return key in HOW_IT_RUNS or key.partition(".")[0] == "sampling"


def _flat(plain: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in plain.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
