"""ADM's architecture changes, one at a time, at equal parameters and steps (about half an hour on one CPU core).

Usage: python tools/ablation.py [--out data/ablation.json]. Runs that are finished are not repeated, so it can be
interrupted. What each change is worth is computed from the file by the book's page on it, not here.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from minidiff.data.sets import load_set
from minidiff.files import write_atomically
from minidiff.random import sample_generators
from minidiff.recipes import load_recipe
from minidiff.store import begun
from minidiff.training.checkpoint import load_checkpoint
from minidiff.training.loop import train

SEEDS = (0, 1, 2)
PASSES = 4  # noisy versions of each held-out image
# name: (what changes, options, widths of the second and third level in channels, chosen for equal parameters)
VARIANTS = {
    "base": ("plain network", [], (48, 48)),
    "depth": ("two blocks a level, narrower", ["blocks=2"], (40, 36)),
    "heads": ("four attention heads", ["heads=4"], (48, 48)),
    "attention": ("attention at 8 and 4 pixels", ["attention=[8,4]"], (44, 48)),
    "resampling": ("BigGAN residual blocks resample", ["resample_blocks=true"], (40, 48)),
    "rescaling": ("residual sums divided by sqrt 2", ["rescale=true"], (48, 48)),
    "norm": ("adaptive group norm", ["scale_shift=true"], (48, 44)),
    "adm": (
        "heads, attention, resampling and norm together",
        ["heads=4", "attention=[8,4]", "resample_blocks=true", "scale_shift=true"],
        (36, 44),
    ),
}


def recipe_of(variant: str, seed: int):
    """The recipe of one run."""
    _, options, widths = VARIANTS[variant]
    base = load_recipe("ablation-base").network.channels
    mult = ", ".join(str(w / base) for w in (base, *widths))
    changes = [f"network.{o}" for o in options] + [f"network.channel_mult=[{mult}]", f"training.seed={seed}"]
    return load_recipe("ablation-base", changes)


@torch.no_grad()
def heldout_loss(recipe, averaged: dict) -> float:
    """Mean loss on held-out images; every run sees the same times and the same noise."""
    system = recipe.build().eval()
    system.load_state_dict(averaged)
    heldout = load_set(recipe.data, "heldout")
    generators = sample_generators(0, [f"ablation {i}" for i in range(PASSES)])
    losses = [system.loss(heldout, g)["simple"].mean().item() for g in generators]
    return sum(losses) / PASSES


def run(variant: str, seed: int, folder: Path) -> dict:
    """Train one network, and measure it."""
    recipe = recipe_of(variant, seed)
    averaged = train(recipe, begun, folder, cpu=True, quiet=True)
    _, meta = load_checkpoint(folder / "last.safetensors")
    return {"loss": heldout_loss(recipe, averaged), "seconds": round(meta["seconds"], 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("data/ablation.json"))
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"))
    options = parser.parse_args()
    plan = load_recipe("ablation-base").training
    result = {"recipe": "ablation-base", "steps": plan.steps, "batch": plan.batch, "seeds": SEEDS, "variants": {}}
    for variant, (change, _, _) in VARIANTS.items():
        parameters = sum(p.numel() for p in recipe_of(variant, 0).build(empty=True).parameters())
        result["variants"][variant] = {"change": change, "parameters": parameters, "runs": []}
    for seed in SEEDS:
        for variant in VARIANTS:
            measured = run(variant, seed, options.runs / f"{variant}-{seed}")
            result["variants"][variant]["runs"].append(measured)
            print(variant, seed, measured, flush=True)
    write_atomically(options.out, (json.dumps(result, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
