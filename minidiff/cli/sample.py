"""``minidiff sample``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .. import __version__
from .stages import chain, edited, enlarging, stages

TEXT_SCALE = 3.0  # as in GLIDE's published example
FILE = click.Path(exists=True, dir_okay=False)


@click.command()
@click.argument("system")
@click.argument("captions", nargs=-1, metavar="[CAPTION]...")
@click.option("--weights", type=FILE, help="Released file of a preset.")
@click.option("--label", type=int, help="Class to draw (default: all of them in turn).")
@click.option("--scale", type=float, help="Guidance scale s; 1 is plain conditional (default: 1; of captions 3).")
@click.option("--classifier", help="Guide by this classifier instead of classifier-free; a preset as NAME=FILE.")
@click.option("--clip", help="Guide by this CLIP instead of classifier-free.")
@click.option("--rule", type=click.Choice(["score", "adm"]), default="score", show_default=True, help="Guidance rule.")
@enlarging
@click.option("--edit", type=FILE, help="Picture to edit, by an inpainter: what is transparent in it is painted.")
@click.option("--mask", type=FILE, help="With --edit, says so instead: white is kept, black is painted.")
@click.option("--count", type=click.IntRange(1), default=16, show_default=True, help="Number of images.")
@click.option("--steps", default="50", show_default=True, help="Sampling steps; or ddim25, or sections 90,60,60,20,20.")
@click.option("--seed", type=int, default=0, show_default=True, help="Image i depends on the seed and i alone.")
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True, help="Images at a time.")
@click.option("--out", type=click.Path(dir_okay=False), help="PNG grid, or npz of all (default: samples-SYSTEM.png).")
@click.option("--cpu", is_flag=True, help="Stay on the CPU.")
def sample(system, captions, weights, out, cpu, seed, batch, **options) -> None:
    """Draw images: a PNG grid, or an npz file as ADM writes it, and the numbers used beside it as JSON.

    SYSTEM is a committed checkpoint, the folder of a run or of what it published, or a preset with its released
    --weights. One that reads CAPTIONs draws them in turn; in the npz file a label is then the number of the caption.
    Under torchrun every process draws its share, and the images are the same.

    \b
    Examples:
      minidiff sample digits --label 7 --scale 3
      minidiff sample digits --label 3 --scale 4 --classifier digits-classifier
      minidiff sample glide "a small red ring above a blue square" --upsample glide-up32 --upsample glide-up64
      minidiff sample glide-inpaint "a red ring and a blue square" --edit picture.png --count 4
      torchrun --nproc-per-node 8 -m minidiff sample adm-imagenet64 --weights 64x64_diffusion.pt --rule adm
        --classifier adm-classifier-64=64x64_classifier.pt --steps 250 --count 50000 --out samples.npz
    """
    import numpy as np
    import torch

    from ..metrics.processes import processes
    from ..metrics.sources import load_system
    from ..pictures import save_grid
    from ..systems.draw import draw
    from ..systems.upsampler import eight_bit

    path = Path(out or f"samples-{Path(system).name}.png")
    if path.suffix not in (".png", ".npz"):
        raise click.UsageError(f"--out must end in .png or .npz, got {path.name}")
    how = {"steps": chain(options["steps"]), "rule": options["rule"]}
    with processes(cpu) as here:
        model = load_system(system, here.device, weights)[0]
        given = edited(model, system, options, here.device)
        after = stages(model, options, here.device)
        told, labels, guide = _told(model, system, captions, options, here.device)
        reads = {"scale": (TEXT_SCALE if captions else 1.0) if options["scale"] is None else options["scale"]}
        drawn = draw(model, told, seed, batch, here.rank, here.world, after, **how, **reads, **guide, **given)
        gathered = here.gathered(drawn)
    if gathered is None:
        return
    images = gathered[0]
    if path.suffix == ".npz":
        pixels = ((eight_bit(images) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
        np.savez(path, arr_0=pixels.numpy(), arr_1=labels.numpy())
    else:
        save_grid(images, path)
    used = {"system": system, "captions": list(captions)} | options | how | reads
    used |= {"seed": seed, "version": __version__}
    path.with_suffix(".json").write_text(json.dumps(used, indent=2) + "\n")
    click.echo(
        f"{path}: {len(images)} images, s = {reads['scale']:g}, {how['steps']} steps, seed {seed}; numbers in"
        f" {path.with_suffix('.json')}"
    )


def _told(model, system: str, captions: tuple[str, ...], options: dict, device):
    """What each image is of, its label, and what guides it.

    Raises:
        UsageError: for captions of a system that reads none, and the like.
    """
    import torch

    from ..metrics.sources import load_classifier
    from ..systems.class_conditional import ClassConditional
    from ..systems.clip import load_clip
    from ..systems.glide import Glide
    from ..systems.upsampler import Enlarging

    count, label, classifier, clip = (options[name] for name in ("count", "label", "classifier", "clip"))
    if not isinstance(model, (Glide, ClassConditional)) or isinstance(model, Enlarging):
        raise click.UsageError(
            f"{system} draws nothing by class or caption alone; see --classifier, --clip, --upsample"
        )
    if isinstance(model, Glide):
        if label is not None or classifier:
            raise click.UsageError(f"{system} reads captions; --label and --classifier are for systems with classes")
        if not captions:
            raise click.UsageError(f'{system} draws captions: name some after it, such as "..."')
        labels = torch.arange(count) % len(captions)
        guide = load_clip(clip, str(device)) if clip else None
        return model.tokens(captions)[labels.to(device)], labels, {"clip": guide}
    if captions or clip:
        raise click.UsageError(f"{system} draws classes and reads no captions; choose one with --label")
    guide = load_classifier(classifier, device) if classifier else None
    classes = model.n_classes or (guide.n_classes if guide else 0)
    given = torch.arange(count) % classes if classes else torch.full((count,), -1)
    labels = given if label is None else torch.full((count,), label)
    return labels, labels, {"classifier": guide}
