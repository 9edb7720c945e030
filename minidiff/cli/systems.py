"""What ``minidiff sample`` and ``minidiff evaluate`` share: the systems they draw with, and what these may be asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import click

from ..metrics.drawing import GUIDES, SAMPLERS, Drawing

FILE = click.Path(exists=True, dir_okay=False)
KINDS = {"integer": click.INT, "number": click.FLOAT, "text": click.STRING, "file": FILE}


def drawing_options(command: Callable) -> Callable:
    """The options that say how a system draws, see ``drawing_of``."""
    options = [
        click.option("--weights", type=FILE, help="Released file of a preset."),
        click.option("--guide", type=click.Choice(GUIDES), help="Guide (default: whoever is named, or cfg)."),
        click.option("--classifier", help="Guide by this classifier; a preset as NAME=FILE."),
        click.option("--clip", help="Guide by this CLIP."),
        click.option("--sampler", type=click.Choice(SAMPLERS), help="Sampler (default: ddim, or the guide's own)."),
        click.option("--steps", default="50", show_default=True, help="Steps; or ddim25, or sections 90,60,60,20,20."),
        click.option("--temperature", type=float, default=1.0, show_default=True, help="Of the noise at the start."),
        click.option("--upsample", "upsamplers", multiple=True, help="Enlarge by this, told the same; repeatable."),
        click.option("--aug-level", "aug_levels", type=float, multiple=True, help="Noise in what each of them sees."),
        click.option("--seed", type=int, default=0, show_default=True, help="Image i depends on the seed and i alone."),
        click.option("--batch", type=click.IntRange(1), default=64, show_default=True, help="Images at a time."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


DRAWING = ("weights", "guide", "classifier", "clip", "sampler", "steps", "temperature", "upsamplers", "aug_levels")


def drawing_of(name: str, options: dict, device) -> tuple[Drawing, object]:
    """How a system draws, and what was found by its name.

    Raises:
        UsageError: for systems that draw nothing, or do not go together.
    """
    from ..store import find, load
    from ..systems.diffusion import Diffusion

    base = find(f"{name}={options['weights']}" if options["weights"] else name, device)
    if not isinstance(base.system, Diffusion):
        raise click.UsageError(f"{name} draws nothing; it guides another system as --classifier or --clip")
    systems, names = [base.system], [name]
    for text in options["upsamplers"]:
        found = load(text, device)
        if not isinstance(found, Diffusion):
            raise click.UsageError(f"{text.partition('=')[0]} draws nothing; --upsample takes systems that enlarge")
        systems.append(found)
        names.append(text.partition("=")[0])
    guides = {who: load(options[who], device, can) for who, can in CAN.items() if options[who]}
    steps = int(options["steps"]) if options["steps"].isdigit() else options["steps"]
    same = {key: options[key] for key in ("sampler", "guide", "aug_levels", "temperature", "seed", "batch")}
    return Drawing(systems, steps, names=names, **same, **guides), base


CAN = {"classifier": "classifier", "clip": "critic"}


def asking(drawing: Drawing, name: str) -> click.Command:
    """A command whose options are the questions that a system asks."""
    parameters: list[click.Parameter] = []
    for question in drawing.questions:
        kind = KINDS[question.kind]
        parameters.append(click.Option([f"--{question.name}"], type=kind, multiple=question.many, help=question.help))
        if question.first:
            parameters.append(click.Argument([f"{question.name}s"], nargs=-1, metavar=f"[{question.name.upper()}]..."))
    return click.Command(f"minidiff sample {name}", params=parameters, add_help_option=False)


def answers(drawing: Drawing, name: str, words: Sequence[str]) -> dict[str, object]:
    """The answers to the questions of a system among the words of the command line.

    Raises:
        UsageError: for an option that this system does not have (the nearest is named), or words that it does not read.
    """
    given = asking(drawing, name).make_context(name, list(words)).params
    for question in drawing.questions:
        if question.first:
            given[question.name] = [*given.pop(f"{question.name}s"), *given[question.name]]
    return {key: value for key, value in given.items() if value not in (None, (), [])}


def help_of(name: str) -> str:
    """What a system is told, its options on the command line, and the options of its recipe.

    Args:
        name: A checkpoint, run or preset's recipe, a recipe, or a registered system.
    """
    import dataclasses

    from ..recipes import available, load_recipe
    from ..store import checkpoints, find
    from ..systems import registry

    if name in checkpoints() or Path(name).is_dir():
        system, recipe = (lambda found: (found.system, found.recipe))(find(name))
    elif name in available() or name.endswith((".yaml", ".yml")):
        recipe = load_recipe(name)
        system = recipe.build(empty=True)
    elif Path(f"{name}.yaml").is_file():
        return help_of(f"{name}.yaml")
    else:
        return _recipe_options(registry.find(name))
    kind = registry.find(recipe.system)
    lines = [f"{recipe.name}: a {recipe.system}, {sum(p.numel() for p in system.parameters()) / 1e6:.2f} M parameters"]
    parts = getattr(system, "parts", ())
    for part in parts:
        null = (
            f"can be nothing, dropped with probability {part.p_drop:g} in training" if part.nullable else "always told"
        )
        lines.append(f"  {part.key}: {null}")
    if parts or dataclasses.is_dataclass(recipe.options):
        lines.append(_recipe_options(kind))
    if hasattr(system, "parts"):
        formatter = click.HelpFormatter(width=100)
        asking(Drawing([system], names=[name]), name).format_options(click.Context(click.Command(name)), formatter)
        lines.append(f"On the command line of `minidiff sample {name}`:\n{formatter.getvalue()}".rstrip())
    return "\n".join(lines)


def _recipe_options(kind) -> str:
    import dataclasses

    fields = [f"{f.name} = {f.default!r}" for f in dataclasses.fields(kind.options)]
    return f"In a recipe: system: {{name: {kind.name}, ...}} with {', '.join(fields) or 'no options'}"
