"""``minidiff sample``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
from tqdm import tqdm

from .. import __version__
from .systems import answers, drawing_of, drawing_options, help_of

TEXT_SCALE = 3.0  # as in GLIDE's published example


def _show_help(context: click.Context, option: click.Parameter, name: str | None) -> None:
    if name:
        click.echo(help_of(name))
        context.exit()


def _require_own(numbers: Path) -> None:
    """The numbers of an earlier drawing may be replaced, another file of that name may not."""
    try:
        found = json.loads(numbers.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or not {"system", "scale", "version"} <= found.keys():
        raise click.UsageError(f"the numbers would replace {numbers}, which was not written here; choose another --out")


def _shown(parts: Iterable[tuple], total: int, rank: int) -> Iterator[tuple]:
    """The parts of what is drawn, with a progress bar where a person looks on."""
    with tqdm(total=total, desc="sample", unit="image", disable=True if rank else None) as bar:
        for part in parts:
            yield part
            bar.update(len(part[0]))


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("system")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[CAPTION]... [OPTIONS OF THE SYSTEM]")
@click.option(
    "--help-system", metavar="NAME", is_eager=True, expose_value=False, callback=_show_help, help="What it may be told."
)
@click.option("--scale", type=float, help="Guidance scale s; 1 is plain conditional (default: 1; of captions 3).")
@click.option("--count", type=click.IntRange(1), default=16, show_default=True, help="Number of images.")
@click.option("--out", type=click.Path(dir_okay=False), help="PNG grid, or npz of all (default: samples-SYSTEM.png).")
@click.option("--cpu", is_flag=True, help="Stay on the CPU.")
@drawing_options
@click.pass_context
def sample(context, system, words, scale, count, out, cpu, **options) -> None:
    """Draw images: a PNG grid, or an npz file as ADM writes it, and the numbers used beside it as JSON.

    SYSTEM is a committed checkpoint, the folder of a run or of what it published, or a preset with its released
    --weights. What it is told beside is an option of its own: --label 7, --caption "a red ring" (or captions by
    themselves), --edit and --mask, --image; see --help-system. Several are drawn in turn; in the npz file a label is
    the class, or the number of the caption. Under torchrun every process draws its share, and the images are the same.

    \b
    Examples:
      minidiff sample digits --label 7 --scale 3
      minidiff sample digits --label 3 --scale 4 --classifier digits-classifier
      minidiff sample glide "a small red ring above a blue square" --upsample glide-up32 --upsample glide-up64
      minidiff sample glide-inpaint "a red ring and a blue square" --edit picture.png --count 4
      minidiff sample --help-system glide-inpaint
      torchrun --nproc-per-node 8 -m minidiff sample adm-imagenet64 --weights 64x64_diffusion.pt --guide adm
        --classifier adm-classifier-64=64x64_classifier.pt --steps 250 --count 50000 --out samples.npz
    """
    import numpy as np

    from ..files import require_writable, write_atomically, written_atomically
    from ..metrics.processes import processes
    from ..pictures import save_grid
    from ..pixels import to_uint8

    if system.startswith("-"):
        raise click.UsageError(f"the name of the system comes first, then what it is told; got {system}")
    path = Path(out or f"samples-{Path(system).name}.png")
    if path.suffix not in (".png", ".npz"):
        raise click.UsageError(f"--out must end in .png or .npz, got {path.name}")
    numbers = path.with_suffix(".json")
    for file in (path, numbers):
        require_writable(file)
    _require_own(numbers)
    with processes(cpu) as here:
        drawing, _ = drawing_of(system, options, here.device)
        given = answers(drawing, system, words, [name for option in context.command.params for name in option.opts])
        if scale is None:
            scale = TEXT_SCALE if given.get("caption") else 1.0
        values, number = drawing.answers(given, count)
        drawn = drawing.draw(here, values, number, scale, given.get("caption", ()))
        gathered = here.gathered(_shown(drawn, len(here.share(count)), here.rank))
    if gathered is None:
        return
    images = gathered[0]
    if path.suffix == ".npz":
        with written_atomically(path) as file:
            np.savez(file, arr_0=to_uint8(images).permute(0, 2, 3, 1).numpy(), arr_1=number.numpy())
    else:
        save_grid(images, path)
    used = {"system": system, "scale": scale, "count": count} | options | given | {"version": __version__}
    if drawing.class_names:
        used["classes"] = {i: name for i, name in enumerate(drawing.class_names) if i in number.tolist()}
    write_atomically(numbers, (json.dumps(used, indent=2) + "\n").encode())
    click.echo(
        f"{path}: {len(images)} images, s = {scale:g}, {options['steps']} steps, seed {options['seed']}; numbers in"
        f" {numbers}"
    )
