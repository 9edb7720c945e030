"""The command line: train, sample, grade, claims, info."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click

from . import __version__
from .recipes import available

RECIPES = ", ".join(available())


class OneLine(click.Group):
    """A group that answers bad usage with one line and exit code 2."""

    def main(self, *args, **kwargs):
        try:
            code = super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.ctx.get_help())
            sys.exit(2)
        except click.Abort:
            sys.exit(130)
        except (click.ClickException, ValueError) as error:
            message = error.format_message() if isinstance(error, click.ClickException) else str(error)
            click.echo(f"minidiff: {' '.join(message.split())}", err=True)
            sys.exit(2)
        sys.exit(code if isinstance(code, int) else 0)


@click.group(cls=OneLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Guided diffusion, derived, computed and checked.

    \b
    Examples:
      minidiff sample digits --label 7 --scale 3
      minidiff train digits training.steps=200 --out runs/try
      minidiff grade hand-ins/ --csv grades.csv
      minidiff info
    """


@main.command(epilog=f"Recipes: {RECIPES}.")
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

    from .recipes import load_recipe
    from .systems.zoo import build
    from .training.loop import train as run

    if threads:
        torch.set_num_threads(threads)
    plan = load_recipe(recipe, overrides)
    folder = Path(out or f"runs/{plan.name}")
    run(plan, build, folder, cpu=cpu, quiet=quiet)
    click.echo(f"{plan.name}: {plan.training.steps} steps done, weights in {folder / 'last.safetensors'}")
    if target and int(os.environ.get("RANK", 0)) == 0:
        from .training.publish import publish

        card = publish(plan, build(plan), folder, target)
        click.echo(f"{target}: {card['megabytes']} MB, {card['metrics']}")


@main.command()
@click.argument("system")
@click.option("--label", type=int, help="Class to draw (default: all of them in turn).")
@click.option("--scale", type=float, default=1.0, show_default=True, help="Guidance scale s; 1 is plain conditional.")
@click.option("--classifier", help="Guide the unconditional score by this classifier instead of classifier-free.")
@click.option("--count", type=click.IntRange(1, 4096), default=16, show_default=True, help="Number of images.")
@click.option("--steps", type=int, default=50, show_default=True, help="Sampling steps.")
@click.option("--seed", type=int, default=0, show_default=True, help="Image i depends on the seed and i alone.")
@click.option("--out", type=click.Path(dir_okay=False), help="PNG to write (default: samples-SYSTEM.png).")
def sample(system, label, scale, classifier, count, steps, seed, out) -> None:
    """Draw images from a committed checkpoint; writes a PNG grid, and the numbers used beside it as JSON.

    \b
    Examples:
      minidiff sample digits --label 7 --scale 3
      minidiff sample shapes16 --count 64 --out shapes.png
      minidiff sample digits --label 3 --scale 4 --classifier digits-classifier
    """
    import torch

    from .pictures import save_grid
    from .random import sample_generators
    from .systems.zoo import load

    model = load(system)
    if not hasattr(model, "sample"):
        raise click.UsageError(f"{system} is a classifier and draws nothing; name it with --classifier")
    labels = torch.arange(count) % model.n_classes if label is None else torch.full((count,), label)
    generators = sample_generators(seed, range(count))
    guide = load(classifier) if classifier else None
    if guide is not None and not hasattr(guide, "classifier"):
        raise click.UsageError(f"{classifier} is no classifier")
    images = model.sample(labels, scale, steps, classifier=guide, generator=generators)
    path = Path(out or f"samples-{system}.png")
    save_grid(images, path)
    used = {"system": system, "label": label, "scale": scale, "classifier": classifier, "count": count}
    used |= {"steps": steps, "seed": seed, "sampler": "ddim, eta 0", "version": __version__}
    path.with_suffix(".json").write_text(json.dumps(used, indent=2) + "\n")
    click.echo(
        f"{path}: {count} images, s = {scale:g}, {steps} steps, seed {seed}; numbers in {path.with_suffix('.json')}"
    )


@main.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True))
@click.option("--csv", "csv_path", type=click.Path(dir_okay=False), default="grades.csv", show_default=True)
@click.option("--json", "json_path", type=click.Path(dir_okay=False), default="grades.json", show_default=True)
@click.option("--time-limit", type=click.FloatRange(min=1), default=120.0, show_default=True, help="Seconds a hand-in.")
@click.option("--memory-limit", type=click.IntRange(min=512), default=2048, show_default=True, help="MB a hand-in.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Hand-ins at a time.")
def grade(paths, csv_path, json_path, time_limit, memory_limit, jobs) -> None:
    """Grade hand-ins: notebooks, .py files, or folders of them.

    Each runs in a process of its own, with limits and without network; what one does costs that one its points only.

    \b
    Examples:
      minidiff grade hand-ins/ --csv grades.csv
      minidiff grade alice.ipynb bob.py --time-limit 60
    """
    from .course.grading import grade_paths

    results = grade_paths(
        [Path(p) for p in paths],
        out_csv=Path(csv_path),
        out_json=Path(json_path),
        time_limit_s=time_limit,
        memory_limit_mb=memory_limit,
        jobs=jobs,
        progress=lambda r: click.echo(f"{r['handin']}: {r['points']:g} of {r['max']:g} points ({r['status']})"),
    )
    click.echo(f"{len(results)} hand-ins graded: {csv_path}, {json_path}")


@main.command()
@click.option("--records", type=click.Path(file_okay=False), help="Folder of records (default: $MINIDIFF_RECORDS).")
def claims(records) -> None:
    """List the claims that the lessons recorded in their last run, with what was measured.

    \b
    Examples:
      minidiff claims --records _build/records
    """
    from .course.claims import ledger, load_records

    folder = records or os.environ.get("MINIDIFF_RECORDS")
    if not folder:
        raise click.UsageError("name the folder with --records, or set MINIDIFF_RECORDS; `make book` prints it")
    rows = ledger(load_records(Path(folder)))
    for row in rows:
        click.echo(f"{row['verdict']:<30} {row['id']:<40} {row['measured']}")
    click.echo(f"{len(rows)} claims")


@main.command()
def info() -> None:
    """Show versions, the device, and the checkpoints and recipes found."""
    import torch

    from .systems.zoo import card, checkpoints

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"
    click.echo(f"minidiff {__version__}, torch {torch.__version__}, python {sys.version.split()[0]}, {device}")
    for name in checkpoints():
        found = card(name)
        click.echo(f"checkpoint {name}: {found['parameters'] / 1e6:.2f} M, {found['steps']} steps, {found['metrics']}")
    click.echo(f"recipes: {RECIPES}")
