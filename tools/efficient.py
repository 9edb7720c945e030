"""Imagen's Efficient U-Net against ADM's as an enlarger, at equal parameters (about five minutes on a CPU core).

Usage: python tools/efficient.py [--out data/efficient.json]. Three networks from nothing: ADM's; the Efficient one for
as many steps; and for as much time, as a race of single steps on this machine has it. Rows that are finished are not
repeated. It holds the squared error of every single unseen picture; what follows is computed by lesson 12.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from minidiff.data.captions import plain_captions
from minidiff.data.render import render
from minidiff.data.scenes import sample_scenes
from minidiff.data.sets import all_captions, states_place
from minidiff.data.states import store_states
from minidiff.files import write_atomically
from minidiff.models.language import language
from minidiff.process import diffuse
from minidiff.random import randn
from minidiff.recipes import load_recipe
from minidiff.store import begun
from minidiff.training.cost import cost
from minidiff.training.loop import train

STEPS, RACED, UNSEEN, TIMES = 700, 12, 200, (0.8, 0.6, 0.4, 0.2)
# The plan is the same for both: that of `efficient32`. What goes on from `glide-up32` elsewhere begins untrained here.
PLAN = {"steps": STEPS, "batch": 32, "lr": 1.5e-3, "warmup": 100, "ema": 0.996, "seed": 123, "precision": "'no'"}
STATES = "data.text_states=embeddings/scenes-plain-32"
NETWORKS = {"ADM": ("imagen-up32", ['start=""', "fresh=[]", STATES]), "Efficient": ("efficient32", [STATES])}


def recipe_of(name: str, steps: int = STEPS):
    """The recipe of a network."""
    recipe, more = NETWORKS[name]
    plan = PLAN | {"steps": steps}
    return load_recipe(recipe, [*more, *(f"training.{key}={value}" for key, value in plan.items())])


def seconds_a_step(systems: dict) -> dict[str, float]:
    """Median CPU seconds of a forward and a backward pass of a batch of 32, in turns."""
    states = language("minilm").text_states(["a red circle left of a blue square"] * 32)
    batch = {
        "image": torch.rand(32, 3, 32, 32) * 2 - 1,
        "text_states": states[0],
        "text_mask": states[1],
    }
    found: dict[str, list[float]] = {name: [] for name in systems}
    for turn in range(RACED):
        for name, system in systems.items():
            begin = time.process_time()
            system.loss(batch, torch.Generator().manual_seed(turn))["simple"].mean().backward()
            found[name].append(time.process_time() - begin)
    return {name: sorted(values)[RACED // 2] for name, values in found.items()}


@torch.no_grad()
def misses(system) -> list[float]:
    """Squared error in v of each unseen picture, mean over levels; all networks see one noise."""
    generator = torch.Generator().manual_seed(95)
    scenes = sample_scenes(UNSEEN, generator, 2, "seen")
    images, captions = render(scenes, 32), plain_captions(scenes, generator)
    small = F.interpolate(images, (16, 16), mode="area")
    condition = system.condition(caption=language("minilm").text_states(captions), low_res=(small, 0.0))
    error = torch.zeros(UNSEEN)
    for i, at in enumerate(TIMES):
        level, eps = system.schedule.level(at), randn(images.shape, torch.Generator().manual_seed(i))
        v = level.alpha * eps - level.sigma * images
        error += (system(diffuse(images, level, eps), level, condition).v - v).square().mean((1, 2, 3)) / len(TIMES)
    return [round(value, 6) for value in error.tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/efficient.json"))
    parser.add_argument("--runs", type=Path, default=Path("runs/efficient"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = json.loads(options.out.read_text()) if options.out.exists() else {}
    data = recipe_of("ADM").data
    store_states(Path(states_place(data)), all_captions(data), language("minilm").text_states, data.language)
    seconds = kept.get("seconds_a_step") or seconds_a_step({name: recipe_of(name).build() for name in NETWORKS})
    rows = kept.get("rows", {})
    longer = round(STEPS * seconds["ADM"] / seconds["Efficient"] / 100) * 100
    for row, name, steps in (
        ("ADM", "ADM", STEPS),
        ("Efficient, equal steps", "Efficient", STEPS),
        ("Efficient, equal time", "Efficient", longer),
    ):
        if row not in rows:
            recipe = recipe_of(name, steps)
            system = recipe.build().eval()
            folder = options.runs / row.replace(", ", "-").replace(" ", "-")
            system.load_state_dict(train(recipe, begun, folder, cpu=True, quiet=True))
            rows[row] = {
                "network": name,
                "steps": steps,
                "parameters": sum(p.numel() for p in system.parameters()),
                "flops": cost(recipe).flops / 3,
                "misses": misses(system),
            }
            print(row, steps, flush=True)
        result = {"seconds_a_step": seconds, "batch": PLAN["batch"], "rows": rows}
        write_atomically(options.out, (json.dumps(result) + "\n").encode())


if __name__ == "__main__":
    main()
