"""``minidiff sample``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .. import __version__


@click.command()
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

    from ..pictures import save_grid
    from ..random import sample_generators
    from ..systems.zoo import load

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
