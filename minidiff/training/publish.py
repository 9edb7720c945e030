"""From a finished run to a small committed checkpoint with its card."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..arguments import Count, checked
from ..data.sets import class_names, load_dataset, load_set, require_names
from ..files import owned, write_together
from ..random import sample_generators
from .checkpoint import averaged, exported, load_checkpoint, require_fit
from .resume import require_facts
from .trainable import Trainable

HELDOUT = 2000  # images that the losses on a card are measured on, at most


@checked
@torch.no_grad()
def heldout_terms(
    system: Trainable, recipe, heldout: dict[str, Tensor], passes: Count = 8
) -> Iterator[dict[str, Tensor]]:
    """The system's losses (B,) by name on held-out data, batch by batch, each sample seen ``passes`` times.

    Levels and noise are random, and the same each time. Data are shown in equal parts no larger than a batch of the
    recipe: what was trained fits into memory then, and a contrastive loss, which depends on the number of pairs it sees
    at once, is that of training.
    """
    parts = batches(recipe, heldout)
    rows = zip(*(column.tensor_split(parts) for column in heldout.values()), strict=True)
    split = [dict(zip(heldout, row, strict=True)) for row in rows]
    system.eval()
    for generator in sample_generators(recipe.training.seed, [f"heldout {i}" for i in range(passes)]):
        for batch in split:
            yield system.loss(batch, generator)


@checked
def batches(recipe, heldout: dict[str, Tensor]) -> int:
    """The number of parts in which held-out data are shown."""
    return math.ceil(len(next(iter(heldout.values()))) / recipe.training.batch)


@checked
def heldout_metrics(system: Trainable, recipe, heldout: dict[str, Tensor], passes: Count = 8) -> dict[str, float]:
    """The means of ``heldout_terms``, as a card holds them."""
    n = len(next(iter(heldout.values())))
    totals: dict[str, float] = {}
    for terms in heldout_terms(system, recipe, heldout, passes):
        for name, value in terms.items():
            totals[name] = totals.get(name, 0.0) + float(value.sum()) / (passes * n)
    return {f"heldout_{name}": round(value, 5) for name, value in totals.items()}


def require_publishable(recipe, folder: str | Path) -> None:
    """What publishing needs beside the training, looked at before it.

    Raises:
        ValueError: when the held-out data do not load, or the folder cannot be written to.
    """
    heldout = load_dataset(recipe.data, "heldout")
    if not len(heldout):
        raise ValueError(f"data.heldout={recipe.data.heldout!r} holds no images, and a card tells their losses")
    heldout[0]
    with owned(Path(folder)):
        pass


def publish(recipe, system: Trainable, run: str | Path, folder: str | Path) -> dict:
    """Write ``model.safetensors`` (averaged weights, float16) and ``card.json`` into a folder; return the card.

    Args:
        recipe: The recipe that was trained, a ``recipes.Recipe``.
        system: A freshly built system of that recipe; it is given the weights.
        run: Folder of the finished run.
        folder: Where the checkpoint goes.

    Raises:
        ValueError: when the run has not reached its last step, the classes of the held-out data are called otherwise
            than those it learnt, or numbers are not finite; nothing is written then.
    """
    last = Path(run) / "last.safetensors"
    tensors, meta = load_checkpoint(last)
    require_facts(meta, last)
    if meta["step"] != recipe.training.steps:
        raise ValueError(f"{run} stands at step {meta['step']} of {recipe.training.steps}; finish it first")
    before = [_told(Path(run) / stage / "last.safetensors") for stage in recipe.before]
    weights = averaged(tensors, recipe.training.ema[0])
    require_fit(weights, system.state_dict(), str(run), f"the network of {recipe.name!r}")
    path = Path(folder) / "model.safetensors"
    system.load_state_dict({k: v.half() if v.is_floating_point() else v for k, v in weights.items()})  # as published
    names = meta.get("classes", [])
    require_names(class_names(load_dataset(recipe.data, "heldout")), names, "the held-out data", str(run))
    heldout = load_set(recipe.data, "heldout", HELDOUT)
    beside, metrics = system.published_beside(heldout), heldout_metrics(system, recipe, heldout)
    if not all(map(math.isfinite, metrics.values())):
        raise ValueError(f"{run}: held-out losses are not finite: {metrics}")
    files = {path: exported(weights, path, {"name": recipe.name})}
    if beside:
        other = path.with_name("reference.safetensors")
        files[other] = exported(beside, other, {"name": recipe.name})
    card = {
        "name": recipe.name,
        "recipe": recipe.to_plain(),
        "seed": recipe.training.seed,
        "steps": meta["step"],
        "data": f"{recipe.data.name}, {len(load_dataset(recipe.data))} training images",
        **({"classes": names} if names else {}),
        "seconds": round(meta["seconds"] + sum(stage["seconds"] for stage in before)),
        **({"stages": before} if before else {}),
        "parameters": sum(p.numel() for p in system.parameters()),
        "megabytes": round(len(files[path]) / 1e6, 2),
        "metrics": metrics,
        "sha256": {file.name: hashlib.sha256(content).hexdigest() for file, content in files.items()},
        "trained_with": {"torch": torch.__version__, "machine": platform.machine(), "device": meta["device"]},
    }
    files[path.with_name("card.json")] = (json.dumps(card, indent=2, allow_nan=False) + "\n").encode()
    write_together(files)
    return card


def _told(path: Path) -> dict:
    """What a card tells of a stage that is finished."""
    _, meta = load_checkpoint(path)
    require_facts(meta, path)
    return {"name": path.parent.name, "steps": meta["step"], "seconds": round(meta["seconds"])}
