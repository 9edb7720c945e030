"""``minidiff sample``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .. import __version__

TEXT_SCALE = 3.0  # as in GLIDE's published example


@click.command()
@click.argument("system")
@click.argument("captions", nargs=-1, metavar="[CAPTION]...")
@click.option("--weights", type=click.Path(exists=True, dir_okay=False), help="Released file of a preset.")
@click.option("--label", type=int, help="Class to draw (default: all of them in turn).")
@click.option("--scale", type=float, help="Guidance scale s; 1 is plain conditional (default: 1; of captions 3).")
@click.option("--classifier", help="Guide by this classifier instead of classifier-free; a preset as NAME=FILE.")
@click.option("--clip", help="Guide by this CLIP instead of classifier-free.")
@click.option("--rule", type=click.Choice(["score", "adm"]), default="score", show_default=True, help="Guidance rule.")
@click.option("--upsample", "upsamplers", multiple=True, help="Enlarge by this system, told the same; repeatable.")
@click.option("--count", type=click.IntRange(1), default=16, show_default=True, help="Number of images.")
@click.option("--steps", default="50", show_default=True, help="Sampling steps; or ddim25, or sections 90,60,60,20,20.")
@click.option("--seed", type=int, default=0, show_default=True, help="Image i depends on the seed and i alone.")
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True, help="Images at a time.")
@click.option("--out", type=click.Path(dir_okay=False), help="PNG grid, or npz of all (default: samples-SYSTEM.png).")
@click.option("--cpu", is_flag=True, help="Stay on the CPU.")
def sample(system, captions, weights, out, cpu, seed, batch, **options) -> None:
    """Draw images: a PNG grid, or an npz file as ADM writes it, and the numbers used beside it as JSON.

    SYSTEM is a committed checkpoint, the folder of a run, or a preset with its released --weights. One that reads
    CAPTIONs draws them in turn; in the npz file a label is then the number of the caption. Under torchrun every process
    draws its share, and the images are the same.

    \b
    Examples:
      minidiff sample digits --label 7 --scale 3
      minidiff sample digits --label 3 --scale 4 --classifier digits-classifier
      minidiff sample glide "a small red ring above a blue square" --scale 4
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
    steps = options["steps"]
    how = {"steps": int(steps) if steps.isdigit() else steps, "rule": options["rule"]}
    with processes(cpu) as here:
        model = load_system(system, here.device, weights)[0]
        stages = [(_enlarging(name, model, here.device), {"steps": how["steps"]}) for name in options["upsamplers"]]
        told, labels, guide = _told(model, system, captions, options, here.device)
        reads = {"scale": (TEXT_SCALE if captions else 1.0) if options["scale"] is None else options["scale"]}
        drawn = draw(model, told, seed, batch, here.rank, here.world, stages, **how, **reads, **guide)
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
        f"{path}: {len(images)} images, s = {reads['scale']:g}, {steps} steps, seed {seed}; numbers in"
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

    count, label, classifier, clip = (options[name] for name in ("count", "label", "classifier", "clip"))
    if type(model) is Glide:
        if label is not None or classifier:
            raise click.UsageError(f"{system} reads captions; --label and --classifier are for systems with classes")
        if not captions:
            raise click.UsageError(f'{system} draws captions: name some after it, such as "..."')
        labels = torch.arange(count) % len(captions)
        return (
            model.tokens(captions)[labels.to(device)],
            labels,
            {"clip": load_clip(clip, str(device)) if clip else None},
        )
    if type(model) is not ClassConditional:
        raise click.UsageError(
            f"{system} draws nothing by class or caption alone; see --classifier, --clip, --upsample"
        )
    if captions or clip:
        raise click.UsageError(f"{system} draws classes and reads no captions; choose one with --label")
    guide = load_classifier(classifier, device) if classifier else None
    classes = model.n_classes or (guide.n_classes if guide else 0)
    given = torch.arange(count) % classes if classes else torch.full((count,), -1)
    labels = given if label is None else torch.full((count,), label)
    return labels, labels, {"classifier": guide}


def _enlarging(name: str, model, device):
    """An upsampler by name, a preset as NAME=FILE, that is told the same as a model."""
    from ..metrics.sources import load_system
    from ..systems.inpainting import Inpainting
    from ..systems.upsampler import Enlarging

    name, _, released = name.partition("=")
    found = load_system(name, device, released or None)[0]
    if not isinstance(found, Enlarging) or isinstance(found, Inpainting):
        raise click.UsageError(f"{name} does not enlarge what another system drew; --upsample takes upsamplers")
    if getattr(found, "tokenizer", None) is not getattr(model, "tokenizer", None):
        raise click.UsageError(f"{name} is told something else than what is to be enlarged: labels, or other tokens")
    return found
