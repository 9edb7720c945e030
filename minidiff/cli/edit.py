"""``minidiff edit``: pictures of one's own through the two halves of unCLIP, what CLIP sees of them and what not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import click

from .. import __version__
from ..files import write_atomically
from .finite import Finite
from .outputs import checked

FILE = click.Path(exists=True, dir_okay=False)


def _options(command: Callable) -> Callable:
    """The options that all edits have."""
    options = [
        click.option("--decoder", default="unclip-decoder", show_default=True, help="What is told an embedding."),
        click.option("--weights", type=click.Path(exists=True), help="Released file of a preset, or its folder."),
        click.option("--upsample", "upsamplers", multiple=True, help="Enlarge the results by this; repeatable."),
        click.option("--steps", default="50", show_default=True, help="Steps, both ways."),
        click.option("--scale", type=Finite(), default=1.0, show_default=True, help="Guidance scale of the way back."),
        click.option("--seed", type=int, default=0, show_default=True, help="Of whatever is drawn anew."),
        click.option("--out", type=click.Path(dir_okay=False), default="edit.png", show_default=True, help="PNG grid."),
        click.option("--cpu", is_flag=True, help="Stay on the CPU."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.group()
def edit() -> None:
    """Vary a picture, go from one to another, or turn it by a pair of texts; the first in the grid are the originals.

    A picture is encoded as what CLIP sees of it (its embedding) and what it does not (the noise that DDIM inversion
    finds), and decoded with one of them changed. The decoder is a checkpoint, the folder of a run, or a preset with
    its released --weights, that is told an image embedding.

    \b
    Examples:
      minidiff edit vary picture.png --eta 0.8 --count 8
      minidiff edit interpolate one.png other.png --count 7
      minidiff edit text picture.png --from "a red ring" --to "a blue ring" --most 0.5
    """


@edit.command()
@click.argument("picture", type=FILE)
@click.option("--count", type=click.IntRange(1), default=8, show_default=True, help="Number of variations.")
@click.option("--eta", type=click.FloatRange(0, 1), default=1.0, show_default=True, help="0 keeps the picture.")
@_options
def vary(picture, count, eta, **options) -> None:
    """Pictures with the same embedding."""
    _run("vary", [picture], options, lambda b, x, g: b.variations(x, count, eta, g), count=count, eta=eta)


@edit.command()
@click.argument("first", type=FILE)
@click.argument("second", type=FILE)
@click.option("--count", type=click.IntRange(2), default=7, show_default=True, help="Pictures on the way.")
@click.option("--fixed-noise", is_flag=True, help="One x_T for all, drawn anew, in place of the way between both.")
@_options
def interpolate(first, second, count, fixed_noise, **options) -> None:
    """Pictures on the way from one to another."""
    import torch

    from ..random import randn

    def run(bipartite, x, generator):
        x_T = randn((1, *x.shape[1:]), generator[0], x.dtype, x.device) if fixed_noise else None
        return bipartite.interpolate(x[:1], x[1:], torch.linspace(0, 1, count).tolist(), x_T)

    _run("interpolate", [first, second], options, run, count=count, fixed_noise=fixed_noise)


@edit.command()
@click.argument("picture", type=FILE)
@click.option("--to", "after", required=True, help="Caption to go to.")
@click.option("--from", "before", default="", help="Caption of the picture (default: the empty one).")
@click.option("--most", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="Largest share of the way.")
@click.option("--count", type=click.IntRange(2), default=6, show_default=True, help="Pictures on the way.")
@_options
def text(picture, after, before, most, count, **options) -> None:
    """Turn a picture by the difference of two texts."""
    import torch

    thetas = torch.linspace(0, most, count).tolist()
    run = lambda bipartite, x, generator: bipartite.text_diff(x, after, before, thetas)
    _run("text", [picture], options, run, count=count, after=after, before=before, most=most)


def _run(action: str, pictures: list[str], options: dict, change: Callable, **used) -> None:
    """Read, encode, change, decode, enlarge, and write the grid and its numbers."""
    import torch

    from ..guidance import cfg
    from ..metrics.processes import processes
    from ..pictures import read_picture, save_grid
    from ..random import sample_generators
    from ..store import load
    from ..systems.bipartite import Bipartite
    from ..systems.draw import draw, receiver

    path = checked(Path(options["out"]), (".png",), {"action", "pictures", "version"})
    ref = f"{options['decoder']}={options['weights']}" if options["weights"] else options["decoder"]
    steps = options["steps"]
    with processes(options["cpu"]) as here, torch.no_grad():
        decoder = load(ref, here.device)
        if not hasattr(decoder, "part") or decoder.part("embedding") is None:
            raise click.UsageError(f"{options['decoder']} is told no image embedding; unclip-decoder is")
        larger = [load(name, here.device) for name in options["upsamplers"]]
        size = decoder.drawn_shape[1]
        x = torch.stack([read_picture(picture, size) for picture in pictures]).to(here.device)
        count = used["count"]
        generators = sample_generators(options["seed"], range(count), torch.device(here.device).type)
        changed = change(Bipartite(decoder, steps, cfg(options["scale"])), x, generators)
        images = torch.cat([x.to(changed), changed]).clamp(-1, 1)
        for system in larger:
            part = receiver(system)
            if part is None or part.takes(system.shape) != tuple(images.shape[1:]):
                raise click.UsageError(f"--upsample takes what enlarges {tuple(images.shape[1:])}")
            more = sample_generators(options["seed"], range(len(images)), torch.device(here.device).type)
            given = {part.key: part.hand(images, 0.0, 0.0, more)}
            images = draw(system, len(images), levels=steps, generator=more, **given)
    save_grid(images.cpu(), path)
    said = {"action": action, "pictures": pictures, **used, **options, "version": __version__}
    write_atomically(path.with_suffix(".json"), (json.dumps(said, indent=2) + "\n").encode())
    click.echo(
        f"{path}: {len(pictures)} original{'s' if len(pictures) > 1 else ''} and {count} after `{action}`; numbers in "
        f"{path.with_suffix('.json')}"
    )
