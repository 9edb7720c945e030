"""Would more training have helped? Committed networks go on for a tenth of their training, and are measured again.

Usage: python tools/longer.py NAME... [--share 0.1]. Each goes on from its committed weights, at a quarter of its rate,
down to the end of its recipe's decay, on one CPU thread. Both are then asked the same held-out questions: the change of
the loss, in shares of it, with a 95 % interval over the data, comes onto the card under ``longer``. Networks that have
it there are not trained again, so it can be interrupted.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import torch

from minidiff.data.sets import load_set
from minidiff.files import write_atomically
from minidiff.metrics.intervals import bootstrap
from minidiff.recipes import Recipe, overridden
from minidiff.store import begun, data_folder, find
from minidiff.training.checkpoint import load_checkpoint
from minidiff.training.loop import train
from minidiff.training.publish import HELDOUT, heldout_terms

SLOWER = 0.25  # of the rate of the recipe, which has ended in a decay: a full one would first undo it
SEED = 1000  # is added to that of the recipe, so that other samples come in another order
PASSES = 2  # of each held-out sample, with times and noise of its own
OPEN = re.compile(r"[;,]? ?whether more( training)? still helps was not measured")  # on cards, until it is


def going_on(recipe: Recipe, folder: Path, share: float) -> Recipe:
    """The recipe of the steps after a recipe's end."""
    plan = recipe.training
    steps = max(20, round(share * plan.steps))
    changes = {
        "start": str(folder),
        "fresh": "[]",
        "before": "{}",
        "training.steps": steps,
        "training.lr": SLOWER * plan.lr,
        "training.warmup": steps // 10,
        "training.seed": SEED + plan.seed,
    }
    return overridden(recipe, [f"{key}={value}" for key, value in changes.items()])


@torch.no_grad()
def losses(system, recipe: Recipe, heldout: dict) -> torch.Tensor:
    """(N,) losses of held-out data, each a mean over the times and noises it was shown with."""
    n = len(next(iter(heldout.values())))
    shown = torch.cat([terms["loss"] for terms in heldout_terms(system, recipe, heldout, PASSES)])
    return shown.view(-1, n).mean(0)


def compared(folder: Path, share: float, runs: Path) -> dict:
    """The change of the held-out loss, as it comes onto the card."""
    recipe = Recipe.from_plain(json.loads((folder / "card.json").read_text(encoding="utf-8"))["recipe"])
    heldout = load_set(recipe.data, "heldout", HELDOUT)
    system = find(str(folder)).system
    before = losses(system, recipe, heldout)
    further, run = going_on(recipe, folder, share), runs / recipe.name
    system.load_state_dict(train(further, begun, run, cpu=True))
    after = losses(system, recipe, heldout)
    change = bootstrap(lambda both: float(both[:, 1].mean() / both[:, 0].mean() - 1), torch.stack([before, after], 1))
    seconds = load_checkpoint(run / "last.safetensors")[1]["seconds"]
    return {
        "steps": further.training.steps,
        "seconds": round(seconds),
        "change": round(change.value, 5),
        "low": round(change.low, 5),
        "high": round(change.high, 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+")
    parser.add_argument("--share", type=float, default=0.1, help="of the steps of the recipe")
    parser.add_argument("--runs", type=Path, default=Path("runs/longer"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.names:
        path = data_folder() / "checkpoints" / name / "card.json"
        card = json.loads(path.read_text(encoding="utf-8"))
        if "longer" in card:
            continue
        card["longer"] = compared(path.parent, options.share, options.runs)
        if "remark" in card:
            card["remark"] = OPEN.sub("", card["remark"])
        write_atomically(path, (json.dumps(card, indent=2, allow_nan=False) + "\n").encode())
        print(name, card["longer"], flush=True)


if __name__ == "__main__":
    main()
