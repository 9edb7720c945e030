"""``minidiff train``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from ..recipes import available
from .finite import Finite

PEAK = "peak of one, an A100's bf16 by default"
SHARE = "share of the peak that training reaches (ADM reports .29 to .41, table 7)"


@click.command(epilog=f"Recipes: {', '.join(available())}.")
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--out", type=click.Path(file_okay=False), help="Folder of the run (default: runs/NAME).")
@click.option("--publish", "target", type=click.Path(file_okay=False), help="Write weights and card here at the end.")
@click.option("--cpu", is_flag=True, help="Stay on the CPU.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.")
@click.option("--dry-run", is_flag=True, help="Only say what it would cost.")
@click.option("--gpus", type=click.IntRange(min=1), default=8, show_default=True, help="Dry run: number of GPUs.")
@click.option("--tflops", type=Finite(min=0.1), default=312.0, show_default=True, help=f"Dry run: {PEAK}.")
@click.option("--utilisation", type=Finite(0.01, 1), default=0.35, show_default=True, help=f"Dry run: {SHARE}.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def train(recipe, overrides, out, target, cpu, threads, dry_run, gpus, tflops, utilisation, quiet) -> None:
    """Train a RECIPE (a name, or a YAML file), or go on where its folder stands.

    \b
    Examples:
      minidiff train digits
      minidiff train shapes16 training.batch=32 training.seed=7 --out runs/seed7
      minidiff train digits --publish data/checkpoints/digits
      minidiff train adm-imagenet64 --dry-run --gpus 8
      torchrun --standalone --nproc-per-node 2 -m minidiff train digits
    """
    import torch

    from ..recipes import load_recipe
    from ..store import begun, lend
    from ..training.loop import train as run
    from ..training.publish import publish, require_publishable

    if threads:
        torch.set_num_threads(threads)
    plan = load_recipe(recipe, overrides)
    folder = Path(out or f"runs/{plan.name}")
    if dry_run:
        click.echo("\n\n".join(report(stage, gpus, tflops, utilisation) for stage in plan.stages(folder)))
        return
    main = int(os.environ.get("RANK", 0)) == 0
    if target and main:
        require_publishable(plan, target)
    try:
        run(plan, begun, folder, cpu=cpu, quiet=quiet)
    except KeyboardInterrupt as stop:
        if str(stop) and main:
            click.echo(f"minidiff: {stop}; the same command goes on from there", err=True)
        sys.exit(130)
    if not main:
        return
    click.echo(f"{plan.name}: {plan.training.steps} steps done, weights in {folder / 'last.safetensors'}")
    if target:
        system = plan.build()
        lend(system)
        card = publish(plan, system, folder, target)
        click.echo(f"{target}: {card['megabytes']} MB, {card['metrics']}")


def report(plan, gpus: int, tflops: float, utilisation: float) -> str:
    """What a recipe costs, counted on the meta device and measured on three steps here."""
    from ..training.cost import cost, images_per_second

    counted, local = cost(plan), -(-plan.training.batch // (gpus * plan.training.accumulate))
    shared = counted.state_bytes / (gpus if plan.training.sharding == "full" else 1)
    days = counted.days(gpus, tflops * 1e12, utilisation)
    measured = images_per_second(plan, local)
    rows = {
        "recipe": plan.name,
        "parameters": f"{counted.parameters / 1e6:.2f} M",
        "operations": f"{counted.flops * plan.training.batch / 1e12:.4g} TFLOP a step of {plan.training.batch} images",
        "memory": f"{shared / 1e9:.2f} GB for the state, {counted.activation_bytes * local / 1e9:.2f} GB for the "
        f"activations of {local} images, on each of {gpus} GPUs",
        "training": f"{plan.training.steps} steps, {counted.images / 1e6:.4g} M images",
        "measured here": "no: too large for this machine"
        if measured is None
        else f"{measured[0]:.3g} images/s, batch {measured[1]}; {counted.images / measured[0] / 86400:.3g} days",
        "estimated": f"{days:.3g} days on {gpus} GPUs of {tflops:g} TFLOP/s at {utilisation:.0%} of their peak",
    }
    return "\n".join(f"{name:<14} {value}" for name, value in rows.items())
