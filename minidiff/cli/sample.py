"""``minidiff sample``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .. import __version__


@click.command()
@click.argument("system")
@click.option("--weights", type=click.Path(exists=True, dir_okay=False), help="Released file of a preset.")
@click.option("--label", type=int, help="Class to draw (default: all of them in turn).")
@click.option("--scale", type=float, default=1.0, show_default=True, help="Guidance scale s; 1 is plain conditional.")
@click.option("--classifier", help="Guide by this classifier instead of classifier-free; a preset as NAME=FILE.")
@click.option("--rule", type=click.Choice(["score", "adm"]), default="score", show_default=True, help="Guidance rule.")
@click.option("--count", type=click.IntRange(1), default=16, show_default=True, help="Number of images.")
@click.option("--steps", default="50", show_default=True, help="Sampling steps; or ddim25, or sections 90,60,60,20,20.")
@click.option("--seed", type=int, default=0, show_default=True, help="Image i depends on the seed and i alone.")
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True, help="Images at a time.")
@click.option("--out", type=click.Path(dir_okay=False), help="PNG grid, or npz of all (default: samples-SYSTEM.png).")
@click.option("--cpu", is_flag=True, help="Stay on the CPU.")
def sample(system, weights, label, scale, classifier, rule, count, steps, seed, batch, out, cpu) -> None:
    """Draw images: a PNG grid, or an npz file as ADM writes it, and the numbers used beside it as JSON.

    SYSTEM is a committed checkpoint, the folder of a run, or a preset with its released --weights. Under torchrun every
    process draws its share, and the images are the same.

    \b
    Examples:
      minidiff sample digits --label 7 --scale 3
      minidiff sample digits --label 3 --scale 4 --classifier digits-classifier
      torchrun --nproc-per-node 8 -m minidiff sample adm-imagenet64 --weights 64x64_diffusion.pt --rule adm
        --classifier adm-classifier-64=64x64_classifier.pt --steps 250 --count 50000 --out samples.npz
    """
    import numpy as np
    import torch

    from ..metrics.processes import processes
    from ..metrics.sources import load_classifier, load_system
    from ..pictures import save_grid
    from ..systems.class_conditional import ClassConditional
    from ..systems.draw import draw
    from ..systems.upsampler import eight_bit

    path = Path(out or f"samples-{Path(system).name}.png")
    if path.suffix not in (".png", ".npz"):
        raise click.UsageError(f"--out must end in .png or .npz, got {path.name}")
    with processes(cpu) as here:
        model = load_system(system, here.device, weights)[0]
        if not isinstance(model, ClassConditional):
            raise click.UsageError(f"{system} draws nothing by class; a classifier is named with --classifier")
        guide = load_classifier(classifier, here.device) if classifier else None
        classes = model.n_classes or (guide.n_classes if guide else 0)
        given = torch.arange(count) % classes if classes else torch.full((count,), -1)
        labels = given if label is None else torch.full((count,), label)
        options = {"scale": scale, "steps": int(steps) if steps.isdigit() else steps, "classifier": guide, "rule": rule}
        drawn = draw(model, labels, seed, batch, here.rank, here.world, **options)
        gathered = here.gathered(drawn)
    if gathered is None:
        return
    images = gathered[0]
    if path.suffix == ".npz":
        pixels = ((eight_bit(images) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
        np.savez(path, arr_0=pixels.numpy(), arr_1=labels.numpy())
    else:
        save_grid(images, path)
    used = {"system": system, "label": label, "scale": scale, "classifier": classifier, "count": count}
    used |= {"rule": rule, "steps": options["steps"], "seed": seed, "version": __version__}
    path.with_suffix(".json").write_text(json.dumps(used, indent=2) + "\n")
    click.echo(
        f"{path}: {count} images, s = {scale:g}, {steps} steps, seed {seed}; numbers in {path.with_suffix('.json')}"
    )
