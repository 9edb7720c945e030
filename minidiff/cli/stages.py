"""What ``minidiff sample`` and ``minidiff evaluate`` share: upsamplers after a system, and a picture to edit."""

from __future__ import annotations

import click


def enlarging(command):
    """The options ``--upsample`` and ``--level``, see ``stages``."""
    upsample = click.option(
        "--upsample", "upsamplers", multiple=True, help="Enlarge by this, told the same; repeatable."
    )
    level = click.option("--level", "levels", type=float, multiple=True, help="Noise in what each --upsample sees.")
    return upsample(level(command))


def chain(text: str) -> int | str:
    """What ``--steps`` says: a number of steps, or ADM's spelling of them."""
    return int(text) if text.isdigit() else text


def edited(model, name: str, options: dict, device) -> dict:
    """What an inpainter is told of the picture that is edited; nothing for other systems.

    Raises:
        UsageError: for an inpainter without a picture, and a picture without an inpainter.
    """
    from ..pictures import read_edit
    from ..systems.inpainting import Inpainting

    picture, kept = options.get("edit"), options.get("mask")
    if isinstance(model, Inpainting) and not picture:
        raise click.UsageError(f"{name} edits a picture: name it with --edit")
    if picture and not isinstance(model, Inpainting):
        raise click.UsageError(f"{name} edits no picture; --edit is for inpainters")
    if kept and not picture:
        raise click.UsageError("--mask says what to keep of a picture: name that with --edit")
    if not picture:
        return {}
    image, mask = read_edit(picture, model.shape[1], kept)
    return {"image": image.to(device), "mask": mask.to(device)}


def stages(model, options: dict, device) -> list[tuple]:
    """The systems that enlarge what a model draws, each with the options it is sampled with.

    Raises:
        UsageError: for a system that does not enlarge, or not what the model draws; for a level that has no use.
    """
    from ..systems.cascade import Augmented
    from ..systems.inpainting import Inpainting

    levels = options["levels"]
    if len(levels) > len(options["upsamplers"]):
        raise click.UsageError(f"--level is for the image of an --upsample; {len(levels)} are too many")
    after = []
    for i, text in enumerate(options["upsamplers"]):
        name, found = _enlarging(text, model, device)
        own = {"steps": chain(options["steps"])}
        if i < len(levels):
            if not isinstance(found, Augmented):
                raise click.UsageError(f"{name} was not trained with noise in the small image; --level is not for it")
            own["level"] = levels[i]
        if isinstance(found, Inpainting):
            own |= edited(found, name, options, device)
        after.append((found, own))
    return after


def _enlarging(text: str, model, device) -> tuple:
    """Name and system of an upsampler, a preset as NAME=FILE, that is told the same as a model."""
    from ..metrics.sources import load_system
    from ..systems.upsampler import Enlarging

    name, _, released = text.partition("=")
    found = load_system(name, device, released or None)[0]
    if not isinstance(found, Enlarging):
        raise click.UsageError(f"{name} does not enlarge what another system drew; --upsample takes upsamplers")
    if getattr(found, "tokenizer", None) is not getattr(model, "tokenizer", None):
        raise click.UsageError(f"{name} is told something else than what is to be enlarged: labels, or other tokens")
    return name, found
