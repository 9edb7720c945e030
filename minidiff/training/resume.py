"""Everything that the next step of a training depends on, and how a training goes on from a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import average_prefix, load_checkpoint, require_fit
from .ema import EMA
from .parallel import placed, whole
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
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # of AdamW


class State:
    """Weights, averages and moments of a training, by name.

    Args:
        system: What is trained.
        optimizer: AdamW of its parameters, wrapped or not.
        ema: The averages of its weights.
    """

    def __init__(self, system: Trainable, optimizer, ema: EMA):
        self.system, self.ema = system, ema
        self.optimizer = getattr(optimizer, "optimizer", optimizer)

    def _modules(self) -> dict[str, dict[str, Tensor]]:
        averages = {average_prefix(decay): average for decay, average in self.ema.averages.items()}
        return {"model.": self.system.state_dict()} | averages

    def tensors(self) -> dict[str, Tensor]:
        """All of them; sharded tensors are gathered, so every process takes part."""
        tensors = {prefix + k: v for prefix, module in self._modules().items() for k, v in module.items()}
        tensors |= {f"levels.{k}": v for k, v in self.system.training_state().items()}
        names = {p: name for name, p in self.system.named_parameters()}
        for parameter, state in self.optimizer.state.items():
            tensors |= {f"optimizer.{names[parameter]}.{k}": torch.as_tensor(v) for k, v in state.items()}
        return {name: whole(tensor) for name, tensor in tensors.items()}

    def unmoved(self) -> list[str]:
        """Names of the parameters that the optimiser has not moved: those without a gradient."""
        return sorted(name for name, p in self.system.named_parameters() if p not in self.optimizer.state)

    def resume(self, folder: Path, recipe, images: int) -> tuple[int, float]:
        """Take the state of a folder's last checkpoint, where there is one.

        Args:
            folder: Of the training.
            recipe: Of this training, which should be that of the checkpoint.
            images: How many there are to train on.

        Returns:
            The step to go on from, and the seconds spent so far.

        Raises:
            ValueError: for a checkpoint that is damaged, not there although its predecessor is, or of another recipe.
                The message names the predecessor where that one is good. Nothing is changed.
        """
        last, previous = folder / "last.safetensors", folder / "previous.safetensors"
        if not last.exists() and not previous.exists():
            return 0, 0.0
        try:
            tensors, meta = self._checked(last, recipe)
        except _Another:
            raise
        except ValueError as error:
            raise ValueError(f"{error}{self._instead(previous, recipe)}") from None
        if meta.get("images", images) != images:
            raise ValueError(f"{last} was trained on {meta['images']} images, and the data hold {images} now")
        self._take(tensors)
        return meta["step"], meta["seconds"]

    def _instead(self, previous: Path, recipe) -> str:
        try:
            step = self._checked(previous, recipe)[1]["step"]
        except ValueError:
            return ""
        return f". {previous} is good and stands at step {step}: copy it to last.safetensors to go on from there"

    def _checked(self, path: Path, recipe) -> tuple[dict[str, Tensor], dict]:
        tensors, meta = load_checkpoint(path)
        step, seconds = meta.get("step"), meta.get("seconds")
        if type(step) is not int or step < 1 or type(seconds) not in (int, float) or not math.isfinite(seconds):
            raise ValueError(f"{path} is damaged: it stands at step {step!r} after {seconds!r} seconds")
        require_same(recipe, meta, path)
        if step > recipe.training.steps:
            raise ValueError(f"{path} is damaged: it stands at step {step} of {recipe.training.steps}")
        expected = dict(self._expected(meta, tensors))
        require_fit(
            {k: v for k, v in tensors.items() if not k.startswith("levels.")}, expected, str(path), "its recipe"
        )
        if other := [f"{k} {tensors[k].dtype}" for k, v in expected.items() if tensors[k].dtype != v.dtype]:
            raise ValueError(f"{path} does not fit its recipe; of another type: {', '.join(other[:10])}")
        return tensors, meta

    def _expected(self, meta: dict, tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        for prefix, module in self._modules().items():
            yield from ((prefix + name, tensor) for name, tensor in module.items())
        for name, parameter in self.system.named_parameters():
            names = [f"optimizer.{name}.{k}" for k in MOMENTS]
            still = name in meta["unmoved"] if "unmoved" in meta else not tensors.keys() & set(names)
            if not still:
                yield from zip(names, (torch.zeros(()), parameter, parameter), strict=True)

    @torch.no_grad()
    def _take(self, tensors: dict[str, Tensor]) -> None:
        own = lambda prefix: {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        for prefix, module in self._modules().items():
            saved = own(prefix)
            for name, tensor in module.items():
                tensor.copy_(placed(saved[name], tensor))
        for name, parameter in self.system.named_parameters():
            state = own(f"optimizer.{name}.")
            if state:
                self.optimizer.state[parameter] = {k: placed(v, parameter) for k, v in state.items()}
        self.system.load_training_state(own("levels."))


class _Another(ValueError):
    """The checkpoint is good, and another training's."""


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
        raise _Another(f"{path} was made by another recipe ({changes}{why}); choose another folder or move it")


def _only_how(key: str) -> bool:
    """Whether a key says how training runs, or how to sample afterwards, and nothing of the weights."""
    return key in HOW_IT_RUNS or key.partition(".")[0] == "sampling"


def _flat(plain: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in plain.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
