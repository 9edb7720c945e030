"""``minidiff train``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ..recipes import available


@click.command(epilog=f"Recipes: {', '.join(available())}.")
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--out", type=click.Path(file_okay=False), help="Folder of the run (default: runs/NAME).")
@click.option("--publish", "target", type=click.Path(file_okay=False), help="Write weights and card here at the end.")
@click.option("--cpu", is_flag=True, help="Stay on the CPU.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def train(recipe, overrides, out, target, cpu, threads, quiet) -> None:
    """Train a RECIPE (a name, or a YAML file), or go on where its folder stands.

    \b
    Examples:
      minidiff train digits
      minidiff train shapes16 training.batch=32 training.seed=7 --out runs/seed7
      minidiff train digits --publish data/checkpoints/digits
      torchrun --standalone --nproc-per-node 2 -m minidiff train digits
    """
    import torch

    from ..recipes import load_recipe
    from ..systems.zoo import build
    from ..training.loop import train as run

    if threads:
        torch.set_num_threads(threads)
    plan = load_recipe(recipe, overrides)
    folder = Path(out or f"runs/{plan.name}")
    run(plan, build, folder, cpu=cpu, quiet=quiet)
    click.echo(f"{plan.name}: {plan.training.steps} steps done, weights in {folder / 'last.safetensors'}")
    if target and int(os.environ.get("RANK", 0)) == 0:
        from ..training.publish import publish

        card = publish(plan, build(plan), folder, target)
        click.echo(f"{target}: {card['megabytes']} MB, {card['metrics']}")
