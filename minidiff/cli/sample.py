"""``minidiff sample``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from .. import __version__
from ..files import write_atomically, written_atomically
from .kept import Kept
from .outputs import checked
from .systems import FINITE, PER_STAGE, answers, drawing_of, drawing_options, help_of, scale_of, stages_of


def _show_help(context: click.Context, option: click.Parameter, name: str | None) -> None:
    if name:
        click.echo(help_of(name))
        context.exit()


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("system")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[CAPTION]... [OPTIONS OF THE SYSTEM]")
@click.option(
    "--help-system", metavar="NAME", is_eager=True, expose_value=False, callback=_show_help, help="Its options."
)
@click.option("--scale", type=FINITE, multiple=True, help="Guidance scale s (default: as published, or 1; captions 3).")
@click.option("--count", type=click.IntRange(1), default=16, show_default=True, help="Number of images.")
@click.option("--out", type=click.Path(dir_okay=False), help="PNG grid, or npz of all (default: samples-SYSTEM.png).")
@click.option("--cpu", is_flag=True, help="Stay on the CPU.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
@drawing_options
@click.pass_context
def sample(context, system, words, count, out, cpu, quiet, **options) -> None:
    """Draw images: a PNG grid, or an npz file as ADM writes it, and the numbers used beside it as JSON.

    SYSTEM is a committed checkpoint, the folder of a run or of what it published, or a preset with its released
    --weights. What it is asked for is an option of its own: --label 7, --caption "a red ring" (or captions by
    themselves), --edit and --mask, --image; see --help-system. Several are drawn in turn; in the npz file a label is
    the class, or the number of the caption. Under torchrun every process draws its share, and the images are the same.

    A preset is sampled as was published. --steps, --sampler, --gamma, --temperature and --scale change that; with
    --upsample each may be repeated, the base first, then every enlarger in order. Pictures are kept batch by batch:
    the same command goes on where it was killed.

    \b
    Examples:
      minidiff sample digits --label 7 --scale 3
      minidiff sample digits --label 3 --scale 4 --classifier digits-classifier
      minidiff sample glide "a small red ring above a blue square" --upsample glide-up32 --upsample glide-up64
      minidiff sample glide-inpaint "a red ring and a blue square" --edit picture.png --count 4
      minidiff sample --help-system glide-inpaint
      minidiff sample glide-base "an oil painting of a corgi" --weights weights/base.pt
        --upsample glide-upsampler=weights/upsample.pt
      minidiff sample glide-base "the same, spelled out" --weights weights/base.pt
        --upsample glide-upsampler=weights/upsample.pt --steps 100 --steps fast27 --sampler ancestral --sampler ddim
        --scale 3 --scale 1 --temperature 1 --temperature .997
      torchrun --nproc-per-node 8 -m minidiff sample adm-imagenet64 --weights weights/64x64_diffusion.pt
        --classifier adm-classifier-64=weights/64x64_classifier.pt --count 50000 --out samples.npz
    """
    from ..metrics.processes import processes

    if system.startswith("-"):
        raise click.UsageError(f"the name of the system comes first, then what it is asked for; got {system}")
    path = checked(Path(out or f"samples-{Path(system).name}.png"), (".png", ".npz"), {"system", "count", "version"})
    with processes(cpu) as here:
        drawing, _ = drawing_of(system, options, here.device)
        given = answers(drawing, system, words, [name for option in context.command.params for name in option.opts])
        scale = scale_of(drawing, bool(given.get("caption")))
        values, number = drawing.answers(given, count)
        stages = stages_of(drawing, scale)
        same = {name: value for name, value in options.items() if name not in (*PER_STAGE, "batch")}
        settings = {"system": system, "count": count, "stages": stages} | same | given
        stamps = _stamps([system, *same.values(), *given.values()])
        kept = Kept(path, settings | {"version": __version__, "files": stamps})
        kept.begin(here.rank == 0)
        found = _drawn(here, drawing, values, number, scale, given.get("caption", ()), kept, quiet)
    if found is None:
        return
    _write(path, found[0], number)
    used = settings | {"batch": options["batch"], "version": __version__}
    if drawing.class_names:
        used["classes"] = {i: name for i, name in enumerate(drawing.class_names) if i in number.tolist()}
    write_atomically(path.with_suffix(".json"), (json.dumps(used, indent=2) + "\n").encode())
    kept.end()
    own = {drawing.base: scale}
    said = [f"{name}: {_said(drawing.way(i), own.get(i))}" for i, name in enumerate(drawing.names)]
    seed, beside = options["seed"], path.with_suffix(".json")
    click.echo(f"{path}: {count} images by {'; '.join(said)}; seed {seed}; all numbers in {beside}")


def _stamps(values) -> dict[str, list[int]]:
    """Size and time of the files among the values of options, and of the weights of runs."""
    words = [word for value in values for word in (value if isinstance(value, (list, tuple)) else [value])]
    stamps = {}
    for word in filter(None, words):
        place = Path(str(word).rpartition("=")[2])
        for file in (place, place / "last.safetensors", place / "model.safetensors"):
            if file.is_file():
                stamps[str(file)] = [file.stat().st_size, file.stat().st_mtime_ns]
    return stamps


def _drawn(here, drawing, values, number, scale, captions, kept, quiet):
    """All pictures (n, H, W, C), uint8, in the first process: those that were kept, and those that are drawn now."""
    from tqdm import tqdm

    from ..pixels import to_uint8

    parts, done, share = [], set(), set(here.share(len(number)))
    for index, pixels in kept:
        if set(index.tolist()) <= share - done:
            parts.append((index, pixels))
            done |= set(index.tolist())
    hidden = True if quiet or here.rank else None  # None: where nobody watches
    with tqdm(total=drawing.steps(len(share - done)), desc="sample", unit="step", disable=hidden, leave=False) as bar:
        try:
            for index, images in drawing.draw(here, values, number, scale, captions, done, bar.update):
                pixels = to_uint8(images).permute(0, 2, 3, 1).contiguous()
                kept.add(index, pixels)
                parts.append((index, pixels))
        except BaseException as stop:
            have = sum(len(index) for index, _ in parts)
            said = f"{have} pictures are kept in {kept.folder}, and the same command goes on from there"
            said = said if have else "no batch was complete yet; with a smaller --batch more is kept"
            if isinstance(stop, KeyboardInterrupt):
                click.echo(f"minidiff: stopped; {said}", err=True)
            if not have:
                kept.leave()
            raise
    return here.gathered(parts)


def _write(path: Path, pixels, number) -> None:
    """All pictures in one file, which is whole or not there."""
    import numpy as np

    from ..pictures import save_grid
    from ..pixels import from_uint8

    if path.suffix == ".png":
        save_grid(from_uint8(pixels).permute(0, 3, 1, 2), path)
        return
    with written_atomically(path) as file:
        np.savez(file, arr_0=pixels.numpy(), arr_1=number.numpy())


def _said(way, scale: float | None) -> str:
    return str(way if scale is None else dataclasses.replace(way, scale=scale))
