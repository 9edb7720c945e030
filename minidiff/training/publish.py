"""From a finished run to a small committed checkpoint with its card."""

from __future__ import annotations

import json
import math
import platform
from pathlib import Path

import torch
from torch import nn

from ..files import write_atomically
from ..random import sample_generators
from ..recipes import Recipe
from .checkpoint import averaged, export_weights, load_checkpoint, load_weights
from .data import load_dataset, load_set

HELDOUT = 2000  # images that the losses on a card are measured on, at most


@torch.no_grad()
def heldout_metrics(system: nn.Module, recipe: Recipe, passes: int = 8) -> dict[str, float]:
    """The system's losses on held-out images, each image seen ``passes`` times at random levels.

    They are shown in equal parts no larger than a batch of the recipe: what was trained fits into memory then, and a
    contrastive loss, which depends on the number of pairs it sees at once, is that of training.
    """
    images, labels = load_set(recipe.data, recipe.network.size, "heldout", HELDOUT)
    parts = math.ceil(len(images) / recipe.training.batch)
    batches = list(zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True))
    system.eval()
    totals: dict[str, float] = {}
    for generator in sample_generators(recipe.training.seed, [f"heldout {i}" for i in range(passes)]):
        for shown, told in batches:
            for name, value in system.loss(shown, told, generator).items():
                totals[name] = totals.get(name, 0.0) + float(value.sum()) / (passes * len(images))
    return {f"heldout_{name}": round(value, 5) for name, value in totals.items()}


def _reference(system: nn.Module, recipe: Recipe) -> dict[str, torch.Tensor]:
    """Features of held-out images, so that distances to them can be measured where the images are not at hand."""
    images, labels = load_set(recipe.data, recipe.network.size, "heldout", HELDOUT)
    return {"features": torch.cat([system.features(part) for part in images.split(500)]), "labels": labels}


def publish(recipe: Recipe, system: nn.Module, run: str | Path, folder: str | Path) -> dict:
    """Write ``model.safetensors`` (averaged weights, float16) and ``card.json`` into a folder; return the card.

    Args:
        recipe: The recipe that was trained.
        system: A freshly built system of that recipe; it is given the weights.
        run: Folder of the finished run.
        folder: Where the checkpoint goes.

    Raises:
        ValueError: when the run has not reached its last step.
    """
    tensors, meta = load_checkpoint(Path(run) / "last.safetensors")
    if meta["step"] != recipe.training.steps:
        raise ValueError(f"{run} stands at step {meta['step']} of {recipe.training.steps}; finish it first")
    path = Path(folder) / "model.safetensors"
    export_weights(averaged(tensors, recipe.training.ema[0]), path, {"name": recipe.name})
    load_weights(system, path)
    if recipe.system == "classifier" and not recipe.noisy:
        export_weights(_reference(system, recipe), Path(folder) / "reference.safetensors", {"name": recipe.name})
    card = {
        "name": recipe.name,
        "recipe": recipe.to_dict(),
        "seed": recipe.training.seed,
        "steps": meta["step"],
        "data": f"{recipe.data.name}, {len(load_dataset(recipe.data, recipe.network.size))} training images",
        "seconds": round(meta["seconds"]),
        "parameters": sum(p.numel() for p in system.parameters()),
        "megabytes": round(path.stat().st_size / 1e6, 2),
        "metrics": heldout_metrics(system, recipe),
        "trained_with": {"torch": torch.__version__, "machine": platform.machine(), "device": meta["device"]},
    }
    write_atomically(Path(folder) / "card.json", (json.dumps(card, indent=2) + "\n").encode())
    return card
